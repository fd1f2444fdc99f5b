//! The floor: the same kernel in the same QEMU, until its first process speaks.

use crate::error::TaskError;
use crate::tool::Tool;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What the first process says.
const WORD: &str = "bare-init-is-up";

/// Options of the product's own QEMU that shape a boot.
const SHAPE: &[&str] = &["-machine", "-accel", "-cpu", "-smp", "-m", "-append"];

const BOOT_DEADLINE: Duration = Duration::from_secs(120);

/// A QEMU command line without any of the product's devices.
#[derive(Debug)]
pub(super) struct Bare {
    program: PathBuf,
    arguments: Vec<String>,
}

impl Bare {
    /// From the command line of a VM of the product, booting the same kernel with an initrd that holds the same modules
    /// and a shell script as `/init`.
    pub(super) fn like(vmm_pid: i64, guest: &Path, work: &Path) -> Result<Self, TaskError> {
        let path = PathBuf::from(format!("/proc/{vmm_pid}/cmdline"));
        let line = std::fs::read(&path).map_err(|e| TaskError::io(&path, e))?;
        let words: Vec<String> = line
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let mut arguments: Vec<String> = shape(&words);
        let initrd = initrd(guest, work)?;
        let rest = [
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-serial",
            "stdio",
        ];
        arguments.extend(rest.map(str::to_owned));
        for (option, value) in [("-kernel", guest.join("vmlinux")), ("-initrd", initrd)] {
            arguments.extend([option.to_owned(), value.display().to_string()]);
        }
        Ok(Self {
            program: words.first().map(PathBuf::from).unwrap_or_default(),
            arguments,
        })
    }

    /// Time from starting QEMU to the first word of the guest's first process.
    pub(super) fn boot(&self) -> Result<Duration, TaskError> {
        let program = self.program.display().to_string();
        let start = Instant::now();
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| TaskError::Start {
                program: program.clone(),
                source,
            })?;
        let (found, up) = mpsc::channel();
        let reader = child.stdout.take().map(|out| {
            std::thread::spawn(move || {
                let mut lines = BufReader::new(out).split(b'\n').map_while(Result::ok);
                if lines.any(|line| String::from_utf8_lossy(&line).contains(WORD)) {
                    // Nobody listens after the deadline.
                    let _ = found.send(Instant::now());
                }
            })
        });
        let outcome = up.recv_timeout(BOOT_DEADLINE);
        let _ = child.kill();
        let _ = child.wait();
        let _ = reader.map(std::thread::JoinHandle::join);
        outcome.map(|at| at - start).map_err(|_| TaskError::Deadline {
            line: format!("{program} (bare boot)"),
            deadline: BOOT_DEADLINE,
        })
    }
}

/// The options that shape a boot, and the memory they refer to.
fn shape(words: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    for pair in words.windows(2) {
        let memory = pair[0] == "-object" && pair[1].starts_with("memory-backend");
        if SHAPE.contains(&pair[0].as_str()) || memory {
            kept.extend(pair.iter().cloned());
        }
    }
    kept
}

fn initrd(guest: &Path, work: &Path) -> Result<PathBuf, TaskError> {
    let tree = work.join("bare");
    for below in ["bin", "dev", "proc"] {
        let dir = tree.join(below);
        std::fs::create_dir_all(&dir).map_err(|e| TaskError::io(&dir, e))?;
    }
    let busybox = tree.join("bin/busybox");
    std::fs::copy("/bin/busybox", &busybox).map_err(|e| TaskError::io(&busybox, e))?;
    let init = tree.join("init");
    let script = format!(
        "#!/bin/busybox sh\n/bin/busybox mount -t devtmpfs dev /dev\necho {WORD} > /dev/console\nread x\n"
    );
    std::fs::write(&init, script).map_err(|e| TaskError::io(&init, e))?;
    std::fs::set_permissions(&init, std::fs::Permissions::from_mode(0o755))
        .map_err(|e| TaskError::io(&init, e))?;
    let out = work.join("bare-initrd");
    let script = "cd \"$1\" && find . | busybox cpio -o -H newc > \"$2\" && cat \"$3\" >> \"$2\"";
    Tool::new("sh")
        .args(["-c", script, "sh"])
        .arg(&tree)
        .arg(&out)
        .arg(guest.join("modules.cpio"))
        .output()?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_shapes_the_boot_is_kept() {
        let line = "qemu -nodefaults -machine q35,memory-backend=mem0 -object memory-backend-memfd,id=mem0 \
                    -object rng-random,id=r -device x -m 5 -append a";
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        assert_eq!(
            shape(&words).join(" "),
            "-machine q35,memory-backend=mem0 -object memory-backend-memfd,id=mem0 -m 5 -append a"
        );
    }
}
