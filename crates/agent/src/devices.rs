//! Which devices a container may open, as an eBPF program (contract D-.., OCI linux.resources.devices).
//!
//! Owns: the order of rules and their translation. Never: a system call (see `sys::bpf`).
//!
//! ```text
//! first match decides:
//!   1 guard     devices that are the VM's own: other block devices, agent ports, physical memory
//!   2 defaults  what every OCI container has: null, zero, full, random, urandom, tty, console, pts, ptmx; any mknod
//!   3 the spec  its rules, last one first
//!   4 deny
//! ```
//!
//! The guard stands even before a rule that allows everything: a privileged container owns its own
//! devices, not the disks of its neighbours. A block device is the container's own if the spec lists it
//! under `linux.devices` or in a rule with both numbers.

use crate::sys::bpf::Instruction;
use bulkhead_model::oci::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

/// Creating a node: `BPF_DEVCG_ACC_MKNOD`.
const MKNOD: u8 = 1;
/// `BPF_DEVCG_ACC_READ`.
const READ: u8 = 2;
/// `BPF_DEVCG_ACC_WRITE`.
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// Block or character: the values of `BPF_DEVCG_DEV_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Block = 1,
    Character = 2,
}

/// One rule; `None` stands for any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    kind: Option<Kind>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
    allow: bool,
}

/// What a rule is asked about.
#[derive(Debug, Clone, Copy)]
struct Request {
    kind: Kind,
    major: u32,
    minor: u32,
    access: u8,
}

impl Rule {
    /// An allow rule must cover the whole request; a deny rule any of it.
    fn matches(&self, request: Request) -> bool {
        let access = if self.allow {
            request.access & !self.access == 0
        } else {
            request.access & self.access != 0
        };
        access
            && self.kind.is_none_or(|kind| kind == request.kind)
            && self.major.is_none_or(|major| major == request.major)
            && self.minor.is_none_or(|minor| minor == request.minor)
    }

    const fn any_device(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none()
    }
}

/// A device rule that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeviceError {
    /// A number outside 32 bits.
    #[error("device rule number {value}: expected 0 to 4294967295, or -1 for any")]
    Number {
        /// The number given.
        value: i64,
    },
    /// An access letter other than r, w, m.
    #[error("device rule access {value:?}: expected letters of rwm")]
    Access {
        /// The text given.
        value: String,
    },
}

fn number(value: Option<i64>) -> Result<Option<u32>, DeviceError> {
    match value {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_| DeviceError::Number { value }),
    }
}

fn access(text: Option<&str>) -> Result<u8, DeviceError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(ALL);
    };
    text.chars().try_fold(0, |bits, letter| {
        Ok(bits
            | match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => {
                    return Err(DeviceError::Access {
                        value: text.to_owned(),
                    });
                }
            })
    })
}

const fn kind(typ: LinuxDeviceType) -> Option<Kind> {
    match typ {
        LinuxDeviceType::B => Some(Kind::Block),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(Kind::Character),
        LinuxDeviceType::A | LinuxDeviceType::P => None,
    }
}

fn spec_rules(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, DeviceError> {
    rules
        .iter()
        .map(|rule| {
            let typ = rule.typ().unwrap_or_default();
            // Type "a" means every device, whatever numbers stand beside it (cgroup v1 semantics).
            let everything = matches!(typ, LinuxDeviceType::A);
            Ok(Rule {
                kind: kind(typ),
                major: if everything { None } else { number(rule.major())? },
                minor: if everything { None } else { number(rule.minor())? },
                access: access(rule.access().as_deref())?,
                allow: rule.allow(),
            })
        })
        .collect()
}

fn defaults() -> impl Iterator<Item = Rule> {
    let character = |major, minor, access| Rule {
        kind: Some(Kind::Character),
        major,
        minor,
        access,
        allow: true,
    };
    [
        character(None, None, MKNOD),
        Rule {
            kind: Some(Kind::Block),
            ..character(None, None, MKNOD)
        },
        character(Some(1), Some(3), ALL),
        character(Some(1), Some(5), ALL),
        character(Some(1), Some(7), ALL),
        character(Some(1), Some(8), ALL),
        character(Some(1), Some(9), ALL),
        character(Some(5), Some(0), ALL),
        character(Some(5), Some(1), ALL),
        character(Some(5), Some(2), ALL),
        character(Some(136), None, ALL),
    ]
    .into_iter()
}

/// The VM's own: nobody reads or writes them unless the spec names them.
fn guard(rules: &[Rule], devices: &[LinuxDevice], port_major: Option<u32>) -> Vec<Rule> {
    let mut owned: Vec<(u32, u32)> = devices
        .iter()
        .filter(|device| device.typ() == LinuxDeviceType::B)
        .filter_map(|device| {
            Some((
                u32::try_from(device.major()).ok()?,
                u32::try_from(device.minor()).ok()?,
            ))
        })
        .collect();
    owned.extend(
        rules
            .iter()
            .filter(|rule| rule.allow && rule.kind == Some(Kind::Block))
            .filter_map(|rule| Some((rule.major?, rule.minor?))),
    );
    owned.sort_unstable();
    owned.dedup();
    let mut guard: Vec<Rule> = owned
        .into_iter()
        .filter_map(|(major, minor)| {
            // What the spec's own rules grant for this device, worked out here once.
            let granted = [READ, WRITE, MKNOD]
                .into_iter()
                .filter(|bit| {
                    let request = Request {
                        kind: Kind::Block,
                        major,
                        minor,
                        access: *bit,
                    };
                    *bit == MKNOD
                        || rules
                            .iter()
                            .rev()
                            .find(|rule| rule.matches(request))
                            .is_some_and(|rule| rule.allow)
                })
                .fold(0, |all, bit| all | bit);
            (granted & (READ | WRITE) != 0).then_some(Rule {
                kind: Some(Kind::Block),
                major: Some(major),
                minor: Some(minor),
                access: granted,
                allow: true,
            })
        })
        .collect();
    let refuse = |kind, major, minor| Rule {
        kind: Some(kind),
        major,
        minor,
        access: READ | WRITE,
        allow: false,
    };
    guard.push(refuse(Kind::Block, None, None));
    if let Some(major) = port_major {
        guard.push(refuse(Kind::Character, Some(major), None));
    }
    // /dev/mem, /dev/kmem, /dev/port
    for minor in [1, 2, 4] {
        guard.push(refuse(Kind::Character, Some(1), Some(minor)));
    }
    guard
}

fn ordered(
    spec: &[LinuxDeviceCgroup],
    devices: &[LinuxDevice],
    port_major: Option<u32>,
) -> Result<Vec<Rule>, DeviceError> {
    let spec = spec_rules(spec)?;
    let mut rules = guard(&spec, devices, port_major);
    rules.extend(defaults());
    rules.extend(spec.iter().rev());
    Ok(rules)
}

/// The program for a container with these cgroup rules and devices. `port_major` is the major number
/// of virtio ports.
///
/// # Errors
/// [`DeviceError`] for a rule that cannot be understood.
pub(crate) fn program(
    rules: &[LinuxDeviceCgroup],
    devices: &[LinuxDevice],
    port_major: Option<u32>,
) -> Result<Vec<Instruction>, DeviceError> {
    Ok(assemble(&ordered(rules, devices, port_major)?))
}

// Registers: 1 context, 2 type, 3 access, 4 major, 5 minor, 6 scratch, 0 result.
const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_NOT_EQUAL: u8 = 0x56;
const JUMP_EQUAL: u8 = 0x16;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5e;
const MOVE: u8 = 0xb4;
const EXIT: u8 = 0x95;

const fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: (source << 4) | destination,
        offset,
        immediate,
    }
}

fn assemble(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(MOVE_REGISTER, 3, 2, 0, 0),
        op(AND, 2, 0, 0, 0xffff),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let unconditional = rule.any_device() && rule.access == ALL;
        append(&mut program, rule);
        if unconditional {
            // Nothing after it can be reached, and the verifier refuses dead code.
            return program;
        }
    }
    program.push(op(MOVE, 0, 0, 0, 0));
    program.push(op(EXIT, 0, 0, 0, 0));
    program
}

fn append(program: &mut Vec<Instruction>, rule: &Rule) {
    let mut block = Vec::with_capacity(8);
    if let Some(kind) = rule.kind {
        block.push(op(JUMP_NOT_EQUAL, 2, 0, 0, kind as i32));
    }
    if rule.access != ALL {
        block.push(op(MOVE_REGISTER, 6, 3, 0, 0));
        block.push(op(AND, 6, 0, 0, i32::from(rule.access)));
        block.push(if rule.allow {
            op(JUMP_NOT_EQUAL_REGISTER, 6, 3, 0, 0)
        } else {
            op(JUMP_EQUAL, 6, 0, 0, 0)
        });
    }
    if let Some(major) = rule.major {
        block.push(op(JUMP_NOT_EQUAL, 4, 0, 0, major.cast_signed()));
    }
    if let Some(minor) = rule.minor {
        block.push(op(JUMP_NOT_EQUAL, 5, 0, 0, minor.cast_signed()));
    }
    block.push(op(MOVE, 0, 0, 0, i32::from(rule.allow)));
    block.push(op(EXIT, 0, 0, 0, 0));
    let length = block.len();
    for (index, instruction) in block.iter_mut().enumerate() {
        if matches!(
            instruction.code,
            JUMP_EQUAL | JUMP_NOT_EQUAL | JUMP_NOT_EQUAL_REGISTER
        ) {
            // A block has at most eight instructions.
            instruction.offset = (length - index - 1) as i16;
        }
    }
    program.extend(block);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Runs the program as the kernel would.
    fn run(program: &[Instruction], request: Request) -> bool {
        let mut registers = [0_u32; 11];
        let context = [
            (u32::from(request.access) << 16) | request.kind as u32,
            request.major,
            request.minor,
        ];
        let mut at = 0_usize;
        for _ in 0..10_000 {
            let instruction = program[at];
            let destination = usize::from(instruction.registers & 15);
            let source = usize::from(instruction.registers >> 4);
            let immediate = instruction.immediate.cast_unsigned();
            let mut jump = false;
            match instruction.code {
                LOAD_WORD => registers[destination] = context[instruction.offset as usize / 4],
                MOVE_REGISTER => registers[destination] = registers[source],
                AND => registers[destination] &= immediate,
                SHIFT_RIGHT => registers[destination] >>= immediate,
                MOVE => registers[destination] = immediate,
                JUMP_NOT_EQUAL => jump = registers[destination] != immediate,
                JUMP_EQUAL => jump = registers[destination] == immediate,
                JUMP_NOT_EQUAL_REGISTER => jump = registers[destination] != registers[source],
                EXIT => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
            at += 1;
            if jump {
                at += instruction.offset as usize;
            }
        }
        panic!("the program does not end");
    }

    fn allowed(rules: serde_json::Value, devices: serde_json::Value, ask: (Kind, u32, u32, u8)) -> bool {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(rules).unwrap();
        let devices: Vec<LinuxDevice> = serde_json::from_value(devices).unwrap();
        let program = program(&rules, &devices, Some(244)).unwrap();
        let (kind, major, minor, access) = ask;
        run(
            &program,
            Request {
                kind,
                major,
                minor,
                access,
            },
        )
    }

    #[test]
    fn default_devices_are_open_and_others_are_not() {
        let deny = || json!([{"allow": false, "access": "rwm"}]);
        assert!(allowed(deny(), json!([]), (Kind::Character, 1, 3, READ | WRITE)));
        assert!(allowed(
            deny(),
            json!([]),
            (Kind::Character, 136, 7, READ | WRITE)
        ));
        assert!(allowed(deny(), json!([]), (Kind::Character, 10, 229, MKNOD)));
        assert!(!allowed(deny(), json!([]), (Kind::Character, 10, 229, READ)));
        assert!(!allowed(deny(), json!([]), (Kind::Block, 253, 0, READ)));
    }

    #[test]
    fn a_container_that_may_do_everything_still_cannot_open_the_vms_disks_or_ports() {
        let all = || json!([{"allow": true, "access": "rwm"}]);
        assert!(allowed(
            all(),
            json!([]),
            (Kind::Character, 10, 229, READ | WRITE)
        ));
        assert!(allowed(all(), json!([]), (Kind::Block, 253, 0, MKNOD)));
        assert!(!allowed(all(), json!([]), (Kind::Block, 253, 0, READ)));
        assert!(!allowed(all(), json!([]), (Kind::Character, 244, 1, WRITE)));
        assert!(!allowed(all(), json!([]), (Kind::Character, 1, 1, READ)));
    }

    #[test]
    fn a_listed_disk_is_the_containers_own_with_the_access_its_rules_give() {
        let rules = || {
            json!([{"allow": false, "access": "rwm"},
                   {"allow": true, "type": "b", "major": 253, "minor": 16, "access": "r"}])
        };
        let devices = || json!([{"path": "/dev/xvda", "type": "b", "major": 253, "minor": 16}]);
        assert!(allowed(rules(), devices(), (Kind::Block, 253, 16, READ)));
        assert!(!allowed(rules(), devices(), (Kind::Block, 253, 16, WRITE)));
        assert!(!allowed(rules(), devices(), (Kind::Block, 253, 16, READ | WRITE)));
        assert!(!allowed(rules(), devices(), (Kind::Block, 253, 0, READ)));
        // Listed, but no rule grants it.
        assert!(!allowed(
            json!([{"allow": false}]),
            devices(),
            (Kind::Block, 253, 16, READ)
        ));
        // Listed, and everything is granted.
        assert!(allowed(
            json!([{"allow": true}]),
            devices(),
            (Kind::Block, 253, 16, READ | WRITE)
        ));
    }

    #[test]
    fn the_last_rule_wins() {
        let rules = || {
            json!([{"allow": true, "type": "c", "major": 10, "access": "rwm"},
                   {"allow": false, "type": "c", "major": 10, "minor": 200, "access": "w"}])
        };
        assert!(allowed(rules(), json!([]), (Kind::Character, 10, 200, READ)));
        assert!(!allowed(
            rules(),
            json!([]),
            (Kind::Character, 10, 200, READ | WRITE)
        ));
        assert!(allowed(
            rules(),
            json!([]),
            (Kind::Character, 10, 201, READ | WRITE)
        ));
    }

    #[test]
    fn bad_rules_name_the_value() {
        let rule = |value| -> Vec<LinuxDeviceCgroup> { serde_json::from_value(json!([value])).unwrap() };
        assert_eq!(
            program(&rule(json!({"allow": true, "type": "c", "major": -7})), &[], None),
            Err(DeviceError::Number { value: -7 })
        );
        assert_eq!(
            program(&rule(json!({"allow": true, "access": "rx"})), &[], None),
            Err(DeviceError::Access {
                value: "rx".to_owned()
            })
        );
    }

    #[test]
    fn every_instruction_can_be_reached() {
        // The verifier refuses dead code: after a rule without conditions nothing follows.
        let rules: Vec<LinuxDeviceCgroup> =
            serde_json::from_value(json!([{"allow": false}, {"allow": true}])).unwrap();
        let program = program(&rules, &[], None).unwrap();
        assert_eq!(program.last().map(|last| last.code), Some(EXIT));
        let exits = program
            .iter()
            .filter(|instruction| instruction.code == EXIT)
            .count();
        // guard: block, mem, kmem, port; eleven defaults; one rule.
        assert_eq!(exits, 4 + 11 + 1);
    }
}
