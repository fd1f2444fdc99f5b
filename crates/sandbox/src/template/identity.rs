//! What a template must agree in with a start that uses it, and the key made of that.
//!
//! | part | why |
//! | --- | --- |
//! | signature of the machine | devices, memory, CPUs, kernel parameters |
//! | digests of kernel, initrd, firmware | what runs in it |
//! | digest of the VMM | its version, and what a patch changed |
//! | digest of the daemon of the share, if it is not ours | what it can do, which the guest knows |
//! | host CPU | what the guest found at its boot |
//! | version of this program | what agent and host agreed on |
//!
//! Paths, ids and addresses of a sandbox are in none of these.
//!
//! Owns: the key. Never: opens a template. Called by `store`, `make` and the real host.

use super::digests::{Digests, hex};
use super::error::TemplateError;
use bulkhead_model::VmPlan;
use bulkhead_model::vm::{Accelerator, SharedFs};
use bulkhead_vmm::{Vmm, VmmError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Version of the form templates have on disk.
pub(super) const FORM: u32 = 1;

/// Much more than the description of the first CPU.
const CPU_BYTES: u64 = 16 << 10;

/// Names a template: 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TemplateKey(String);

impl TemplateKey {
    /// Reads one as it was printed.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 32 && text.bytes().all(digit)).then(|| Self(text.to_owned()))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for TemplateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything the key of a template is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    signature: String,
    cpu: String,
    /// Role and path.
    files: Vec<(&'static str, PathBuf)>,
}

impl Identity {
    /// Of the machine of `plan`, which must be [`super::shape`]d.
    ///
    /// # Errors
    /// [`VmmError::Unsupported`] when such a machine cannot be saved.
    pub fn of(vmm: &dyn Vmm, plan: &VmPlan, accelerator: Accelerator) -> Result<Self, VmmError> {
        let mut files = vec![
            ("vmm", program(&plan.hypervisor)),
            ("kernel", plan.kernel.clone()),
            ("initrd", plan.initrd.clone()),
        ];
        files.extend(plan.firmware.clone().map(|firmware| ("firmware", firmware)));
        if let SharedFs::VirtioFs { daemon, .. } = &plan.shared_fs {
            files.extend(daemon.clone().map(|daemon| ("fsd", daemon)));
        }
        Ok(Self {
            signature: vmm.signature(plan, accelerator)?,
            cpu: cpu(),
            files,
        })
    }

    /// The key, if the digests of all files are known.
    pub(super) fn known(&self, digests: &Digests) -> Option<TemplateKey> {
        let files: Option<Vec<String>> = self.files.iter().map(|(_, path)| digests.known(path)).collect();
        Some(self.key(&files?))
    }

    /// The key and the digests; files that are not known are read.
    pub(super) fn learn(&self, digests: &mut Digests) -> Result<(TemplateKey, Vec<Asset>), TemplateError> {
        let assets: Vec<Asset> = self
            .files
            .iter()
            .map(|(role, path)| {
                let sha256 = digests.learn(path).map_err(TemplateError::io("reading", path))?;
                Ok(Asset {
                    role: (*role).to_owned(),
                    path: path.clone(),
                    sha256,
                })
            })
            .collect::<Result<_, TemplateError>>()?;
        let files: Vec<String> = assets.iter().map(|asset| asset.sha256.clone()).collect();
        Ok((self.key(&files), assets))
    }

    fn key(&self, digests: &[String]) -> TemplateKey {
        let mut hash = Sha256::new();
        let form = FORM.to_string();
        let fixed = [
            form.as_str(),
            env!("CARGO_PKG_VERSION"),
            &self.signature,
            &self.cpu,
        ];
        for part in fixed.into_iter().chain(digests.iter().map(String::as_str)) {
            // With its length, so that no two lists of parts give the same bytes.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        TemplateKey(hex(&hash.finalize()[..16]))
    }
}

/// A file a template depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asset {
    /// `vmm`, `kernel`, `initrd` or `firmware`.
    pub role: String,
    /// Where it was.
    pub path: PathBuf,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
}

/// The file a program's name stands for, as exec finds it.
fn program(name: &Path) -> PathBuf {
    if name.components().count() > 1 {
        return name.to_owned();
    }
    std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| name.to_owned())
}

/// What the first CPU is and can: no clock rates, which change by the second.
fn cpu() -> String {
    let mut text = String::new();
    if let Ok(file) = std::fs::File::open("/proc/cpuinfo") {
        // What was read before an error counts.
        let _ = file.take(CPU_BYTES).read_to_string(&mut text);
    }
    describe(&text)
}

fn describe(cpuinfo: &str) -> String {
    const TELLING: [&str; 6] = [
        "vendor_id",
        "cpu family",
        "model",
        "model name",
        "stepping",
        "flags",
    ];
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let lines: Vec<&str> = first
        .lines()
        .filter(|line| {
            let name = line.split(':').next().unwrap_or_default().trim();
            TELLING.contains(&name)
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            signature: "-m 1".into(),
            cpu: "A".into(),
            files: vec![("kernel", "/k".into())],
        }
    }

    #[test]
    fn every_part_counts() {
        let key = |identity: &Identity, digests: &[&str]| {
            let digests: Vec<String> = digests.iter().map(|d| (*d).to_owned()).collect();
            identity.key(&digests)
        };
        let base = key(&identity(), &["1", "2"]);
        assert_eq!(base, key(&identity(), &["1", "2"]));
        assert_eq!(TemplateKey::parse(base.as_str()), Some(base.clone()));
        let mut other = identity();
        other.signature = "-m 2".into();
        assert_ne!(key(&other, &["1", "2"]), base);
        other = identity();
        other.cpu = "B".into();
        assert_ne!(key(&other, &["1", "2"]), base);
        assert_ne!(key(&identity(), &["1", "3"]), base);
        assert_ne!(key(&identity(), &["12"]), base);
        other = identity();
        other.files = vec![("kernel", "/elsewhere".into())];
        assert_eq!(key(&other, &["1", "2"]), base, "where a file lies does not count");
    }

    #[test]
    fn a_key_is_32_digits() {
        for bad in ["", "../../../../../../../../../etc/x", "0123", &"g".repeat(32)] {
            assert_eq!(TemplateKey::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_cpu_is_what_it_is_not_how_fast_it_runs() {
        let text = "processor\t: 0\nmodel name\t: X 1\ncpu MHz\t\t: 2300.1\nflags\t\t: fpu vmx\n\nprocessor\t: 1\nmodel name\t: Y\n";
        assert_eq!(describe(text), "model name\t: X 1\nflags\t\t: fpu vmx");
    }

    #[test]
    fn programs_are_found_as_exec_finds_them() {
        assert_eq!(program(Path::new("/q/emu")), Path::new("/q/emu"));
        assert!(program(Path::new("sh")).is_absolute());
        assert_eq!(
            program(Path::new("no-such-program")),
            Path::new("no-such-program")
        );
    }
}
