//! The spec's seccomp section, compiled.
//!
//! ```text
//!  LinuxSeccomp ──compile (agent, once a container)──► Filter ──install (each process, one call)──► kernel
//! ```
//!
//! Owns: the translation to libseccomp. Never: installs anything itself but by `sys::seccomp`.

use crate::sys::seccomp;
use bulkhead_model::oci::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};
use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Seek};

/// SECCOMP_FILTER_FLAG_LOG.
const FLAG_LOG: u32 = 2;
/// SECCOMP_FILTER_FLAG_SPEC_ALLOW.
const FLAG_SPEC_ALLOW: u32 = 4;

/// A program the kernel judges system calls by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Filter {
    program: Vec<u64>,
    flags: u32,
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilterError {
    /// An action that cannot be had.
    #[error("seccomp action {action:?}: expected one that needs no listener")]
    Action {
        /// The action given.
        action: LinuxSeccompAction,
    },
    /// The library's refusal.
    #[error("seccomp {what}")]
    Library {
        /// Which part of the section.
        what: String,
        /// Its reason.
        #[source]
        source: SeccompError,
    },
    /// The compiled program could not be had.
    #[error("compiling the seccomp filter")]
    Export(#[source] io::Error),
}

fn refused(what: impl Into<String>) -> impl FnOnce(SeccompError) -> FilterError {
    let what = what.into();
    move |source| FilterError::Library { what, source }
}

impl Filter {
    /// Compiles the section. System calls whose names this kernel's library does not know are left out, as runc does:
    /// profiles list those of many kernels.
    pub(crate) fn compile(section: &LinuxSeccomp) -> Result<Self, FilterError> {
        let default = action(section.default_action(), section.default_errno_ret())?;
        let mut context = ScmpFilterContext::new(default).map_err(refused("default action"))?;
        for arch in section.architectures().iter().flatten() {
            if let Some(arch) = architecture(*arch) {
                context.add_arch(arch).map_err(refused("architecture"))?;
            }
        }
        for call in section.syscalls().iter().flatten() {
            let then = action(call.action(), call.errno_ret())?;
            // The library refuses a rule that says what happens anyway.
            if then == default {
                continue;
            }
            let alternatives = alternatives(call.args().as_deref().unwrap_or_default());
            for name in call.names() {
                let Ok(number) = ScmpSyscall::from_name(name) else {
                    continue;
                };
                for conditions in &alternatives {
                    context
                        .add_rule_conditional(then, number, conditions)
                        .map_err(refused(format!("rule for {name}")))?;
                }
            }
        }
        let mut flags = 0;
        for flag in section.flags().iter().flatten() {
            match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => flags |= FLAG_LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => flags |= FLAG_SPEC_ALLOW,
                // One thread, and no listener: nothing to do.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync
                | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {}
            }
        }
        Ok(Self {
            program: export(&context).map_err(FilterError::Export)?,
            flags,
        })
    }

    /// Puts the calling thread under it, for good.
    pub(super) fn install(&self) -> io::Result<()> {
        seccomp::install(&self.program, self.flags)
    }
}

fn export(context: &ScmpFilterContext) -> io::Result<Vec<u64>> {
    // Older libraries write to a descriptor only; a pipe might be too small for a long program.
    let name = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let mut file = File::from(nix::sys::memfd::memfd_create(c"filter", name)?);
    context.export_bpf(&file).map_err(io::Error::other)?;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes
        .chunks_exact(8)
        .map(|chunk| {
            let mut instruction = [0; 8];
            instruction.copy_from_slice(chunk);
            u64::from_ne_bytes(instruction)
        })
        .collect())
}

/// An errno of EPERM where none is given (runtime-spec, `defaultErrnoRet` and `errnoRet`).
fn action(given: LinuxSeccompAction, number: Option<u32>) -> Result<ScmpAction, FilterError> {
    let code = number.unwrap_or(libc::EPERM.unsigned_abs());
    Ok(match given {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(i32::try_from(code).unwrap_or(libc::EPERM)),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(u16::try_from(code).unwrap_or(u16::MAX)),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        action @ LinuxSeccompAction::ScmpActNotify => return Err(FilterError::Action { action }),
    })
}

/// `None` for the machine's own, which a filter always has, and for those of other machines, which no call here can
/// come from: profiles list all their engine runs on.
const fn architecture(arch: Arch) -> Option<ScmpArch> {
    match arch {
        Arch::ScmpArchX86 => Some(ScmpArch::X86),
        Arch::ScmpArchX32 => Some(ScmpArch::X32),
        _ => None,
    }
}

/// Conditions on different arguments must all hold; several on the same argument are alternatives, as in runc.
fn alternatives(conditions: &[LinuxSeccompArg]) -> Vec<Vec<ScmpArgCompare>> {
    let twice = conditions.iter().any(|one| {
        conditions
            .iter()
            .filter(|other| other.index() == one.index())
            .count()
            > 1
    });
    let all = conditions.iter().map(comparison);
    if twice {
        all.map(|one| vec![one]).collect()
    } else {
        vec![all.collect()]
    }
}

fn comparison(given: &LinuxSeccompArg) -> ScmpArgCompare {
    let (operator, datum) = match given.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, given.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, given.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, given.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, given.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, given.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, given.value()),
        // The first value is the mask, the second what is left of the argument under it.
        LinuxSeccompOperator::ScmpCmpMaskedEq => (
            ScmpCompareOp::MaskedEqual(given.value()),
            given.value_two().unwrap_or(0),
        ),
    };
    ScmpArgCompare::new(u32::try_from(given.index()).unwrap_or(u32::MAX), operator, datum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn section(value: serde_json::Value) -> LinuxSeccomp {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_profile_compiles_and_unknown_calls_are_left_out() {
        let filter = Filter::compile(&section(json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [{"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
                         {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [
                            {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
                         {"names": ["write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]
        })))
        .unwrap();
        assert_eq!(filter.flags, FLAG_LOG);
        assert!(filter.program.len() > 10, "{}", filter.program.len());
        let text = serde_json::to_string(&filter).unwrap();
        assert_eq!(serde_json::from_str::<Filter>(&text).unwrap(), filter);
    }

    #[test]
    fn a_listener_is_refused() {
        let notify = Filter::compile(&section(json!({"defaultAction": "SCMP_ACT_NOTIFY"})));
        assert!(matches!(notify, Err(FilterError::Action { .. })));
    }

    #[test]
    fn conditions_on_one_argument_are_alternatives() {
        let args = |value| -> Vec<LinuxSeccompArg> { serde_json::from_value(value).unwrap() };
        let one = |index: u32| json!({"index": index, "value": 1, "op": "SCMP_CMP_EQ"});
        assert_eq!(alternatives(&args(json!([one(0), one(1)]))).len(), 1);
        assert_eq!(alternatives(&args(json!([one(0), one(0)]))).len(), 2);
        assert_eq!(alternatives(&[]), vec![Vec::new()]);
    }
}
