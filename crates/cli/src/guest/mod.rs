//! `bulkhead guest build|show`: the kernel and initial RAM disk that VMs boot.
//!
//! Owns: making, installing and describing a guest. Never: booting one. Called by `main`; `doctor` reads
//! [`Manifest`].

mod build;
mod compression;
mod elf;
mod error;
mod initrd;
mod kernel;
mod manifest;
mod module;
mod package;

pub(crate) use build::{KernelSource, Order, build};
pub(crate) use error::GuestError;
#[cfg(test)]
pub(crate) use manifest::Asset;
pub(crate) use manifest::{DEFAULT_DIR, Manifest};

use clap::{Args, Subcommand, ValueEnum};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where a lean kernel is installed: `vmlinux`, and `modules` with the list of what is built in.
const LEAN_DIR: &str = "/usr/lib/bulkhead/kernel";

/// The guest verbs.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum GuestCommand {
    /// Make the guest: kernel, modules and agent
    Build(BuildArgs),
    /// Say what is installed, with digests
    Show(ShowArgs),
}

/// Options of `guest build`.
#[derive(Debug, Clone, Args)]
pub(crate) struct BuildArgs {
    /// Kernel to use (bzImage or vmlinux with CONFIG_PVH) in place of the lean one, if that is installed, and of the
    /// newest cloud kernel package, if not
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Modules of that kernel: its lib/modules/RELEASE directory
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// Take the distribution's kernel though a lean one is installed: passed-through devices may need its drivers
    #[arg(long, conflicts_with_all = ["kernel", "package"])]
    distribution: bool,
    /// Kernel package file (.deb) to use in place of fetching one
    #[arg(long, value_name = "FILE", conflicts_with = "kernel")]
    package: Option<PathBuf>,
    /// Static agent binary; without it the one installed beside this program
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Where to install
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    out: PathBuf,
    /// Pack this module too; may be given more than once
    #[arg(long = "module", value_name = "NAME")]
    extra: Vec<String>,
    /// Build also when nothing has changed
    #[arg(long)]
    force: bool,
}

/// Options of `guest show`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ShowArgs {
    /// Where the guest is installed
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    out: PathBuf,
    /// Output form
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Output forms of `guest show`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// Runs a guest verb.
///
/// # Errors
/// One line that names what is wrong.
pub(crate) fn run(command: &GuestCommand, out: &mut dyn Write) -> Result<(), GuestError> {
    match command {
        GuestCommand::Build(arguments) => {
            let order = order(arguments)?;
            let built = build(&order)?;
            let verb = if built.changed {
                "installed"
            } else {
                "is up to date"
            };
            writeln!(out, "guest {verb} in {}", order.out.display()).map_err(GuestError::Output)?;
            table(&built.manifest, out)
        }
        GuestCommand::Show(arguments) => show(arguments, out),
    }
}

fn order(arguments: &BuildArgs) -> Result<Order, GuestError> {
    let source = match (&arguments.kernel, &arguments.package) {
        (Some(kernel), _) => KernelSource::Files {
            kernel: kernel.clone(),
            modules: arguments.modules.clone(),
        },
        (None, Some(package)) => KernelSource::Package(package.clone()),
        (None, None) if arguments.distribution => KernelSource::Newest,
        (None, None) => lean(Path::new(LEAN_DIR)).unwrap_or(KernelSource::Newest),
    };
    Ok(Order {
        source,
        agent: match &arguments.agent {
            Some(path) => path.clone(),
            None => find_agent()?,
        },
        out: arguments.out.clone(),
        modules: arguments.extra.clone(),
        force: arguments.force,
    })
}

/// The lean kernel in `dir`, if one is installed there.
fn lean(dir: &Path) -> Option<KernelSource> {
    let kernel = dir.join("vmlinux");
    kernel.is_file().then(|| KernelSource::Files {
        kernel,
        modules: Some(dir.join("modules")).filter(|tree| tree.is_dir()),
    })
}

/// The agent beside this program, or where a package would put it.
fn find_agent() -> Result<PathBuf, GuestError> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("bulkhead-agent")));
    let tried: Vec<PathBuf> = beside
        .into_iter()
        .chain([PathBuf::from("/usr/lib/bulkhead/bulkhead-agent")])
        .collect();
    match tried.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(GuestError::NoAgent { tried }),
    }
}

fn show(arguments: &ShowArgs, out: &mut dyn Write) -> Result<(), GuestError> {
    let manifest = Manifest::load(&arguments.out)?;
    manifest.verify(&arguments.out)?;
    match arguments.format {
        Format::Table => {
            write_path(&arguments.out, out)?;
            table(&manifest, out)
        }
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, &manifest).map_err(GuestError::Encode)?;
            writeln!(out).map_err(GuestError::Output)
        }
    }
}

fn write_path(dir: &Path, out: &mut dyn Write) -> Result<(), GuestError> {
    writeln!(out, "directory  {}", dir.display()).map_err(GuestError::Output)
}

fn table(manifest: &Manifest, out: &mut dyn Write) -> Result<(), GuestError> {
    let mut text = format!(
        "release    {}\nsource     {}\n",
        manifest.release, manifest.source
    );
    for (name, asset) in [
        ("kernel", &manifest.kernel),
        ("initrd", &manifest.initrd),
        ("agent", &manifest.agent),
    ] {
        text.push_str(&format!(
            "{name:<10} {:>9} bytes  sha256 {}\n",
            asset.bytes, asset.sha256
        ));
    }
    for (name, list) in [
        ("modules", &manifest.modules),
        ("built in", &manifest.built_in),
        ("absent", &manifest.absent),
    ] {
        if !list.is_empty() {
            text.push_str(&format!("{name:<10} {}\n", list.join(" ")));
        }
    }
    out.write_all(text.as_bytes()).map_err(GuestError::Output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lean_kernel_is_taken_when_it_is_installed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(lean(dir.path()), None);
        let kernel = dir.path().join("vmlinux");
        std::fs::write(&kernel, b"").unwrap();
        let source = |modules| {
            Some(KernelSource::Files {
                kernel: kernel.clone(),
                modules,
            })
        };
        assert_eq!(lean(dir.path()), source(None));
        let modules = dir.path().join("modules");
        std::fs::create_dir(&modules).unwrap();
        assert_eq!(lean(dir.path()), source(Some(modules)));
    }
}
