//! The choice.
//!
//! Owns: the order of the questions and the words of the answers. Never: I/O. The presence of `/dev/kvm`
//! proves nothing: it can be a software implementation that aborts or hangs stock guest kernels.

use super::facts::{Device, Facts, Speed};
use bulkhead_model::vm::Accelerator;

/// What follows from the facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// This accelerator, for this reason.
    Decided(Accelerator, String),
    /// The speed has to be measured.
    Measure,
}

/// Decides, or asks for the speed.
#[must_use]
pub fn choose(facts: &Facts) -> Choice {
    let translator = |reason: String| Choice::Decided(Accelerator::Tcg, reason);
    match facts.device {
        Device::Opens => {}
        Device::Missing => {
            return translator(match &facts.flag {
                Some(flag) => {
                    format!("there is no /dev/kvm though the processor has {flag}: load the kvm module")
                }
                None => "there is no /dev/kvm".into(),
            });
        }
        Device::Denied => {
            return translator("/dev/kvm may not be opened: expected access for this user".into());
        }
        Device::Broken => return translator("/dev/kvm cannot be opened".into()),
    }
    if facts.flag.is_none() && facts.module.is_none() {
        return translator(
            "/dev/kvm is there, but neither vmx nor svm in the processor's flags nor kvm_intel or kvm_amd in the kernel".into(),
        );
    }
    match facts.speed {
        None => Choice::Measure,
        Some(Speed::Micros(micros)) => {
            let with = facts
                .module
                .as_deref()
                .or(facts.flag.as_deref())
                .unwrap_or("/dev/kvm");
            Choice::Decided(
                Accelerator::Kvm,
                format!("{with}: a million guest steps took {micros} µs"),
            )
        }
        Some(Speed::TooSlow) => {
            translator("/dev/kvm is too slow to be hardware: a million guest steps took over 20 ms".into())
        }
        Some(Speed::Distrusted) => {
            translator("a VM did not start with /dev/kvm since the host booted".into())
        }
        Some(Speed::Failed) => translator("/dev/kvm does not run a simple guest".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(flag: bool, module: bool, device: Device, speed: Option<Speed>) -> Facts {
        Facts {
            flag: flag.then(|| "vmx".into()),
            module: module.then(|| "kvm_intel".into()),
            device,
            speed,
        }
    }

    fn accelerator(facts: &Facts) -> Option<Accelerator> {
        match choose(facts) {
            Choice::Decided(accelerator, reason) => {
                assert!(!reason.is_empty() && !reason.contains('\n'));
                Some(accelerator)
            }
            Choice::Measure => None,
        }
    }

    /// Every combination of inputs: hardware only with flag or module, a device that opens and a speed.
    #[test]
    fn hardware_only_when_all_of_it_is_there() {
        let speeds = [
            None,
            Some(Speed::Micros(700)),
            Some(Speed::TooSlow),
            Some(Speed::Failed),
        ];
        for flag in [false, true] {
            for module in [false, true] {
                for device in [Device::Missing, Device::Denied, Device::Broken, Device::Opens] {
                    for speed in speeds {
                        let facts = facts(flag, module, device, speed);
                        let able = (flag || module) && device == Device::Opens;
                        let expected = match (able, speed) {
                            (true, None) => None,
                            (true, Some(Speed::Micros(_))) => Some(Accelerator::Kvm),
                            _ => Some(Accelerator::Tcg),
                        };
                        assert_eq!(accelerator(&facts), expected, "{facts:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_reason_names_what_to_look_at() {
        let reason = |facts| match choose(&facts) {
            Choice::Decided(_, reason) => reason,
            Choice::Measure => panic!("undecided"),
        };
        assert!(reason(facts(true, false, Device::Missing, None)).contains("load the kvm module"));
        assert!(reason(facts(false, false, Device::Opens, None)).contains("neither vmx nor svm"));
        assert!(reason(facts(true, true, Device::Opens, Some(Speed::Micros(700)))).contains("700 µs"));
    }
}
