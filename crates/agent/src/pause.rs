//! The process that keeps the pid namespace of a pod whose containers share one: its pid is 1 there, and it outlives each
//! of them.
//!
//! ```text
//!  first container that shares ─► pause ─► its pid namespace ◄─ every further one
//! ```
//! It is a container with a root that holds one program, without capabilities, mounts and devices of its own: who is in
//! the same pid namespace finds nothing in it.
//!
//! Owns: what it is. Never: when it is needed. Called by `guest`.

use crate::container::Container;
use crate::elf;
use crate::guest::Services;
use crate::launch::Refusal;
use crate::paths;
use crate::spec::Facts;
use bulkhead_protocol::api::agent::CreateContainerRequest;
use serde_json::json;
use std::path::Path;

/// Its name; no id of a container has such a sign.
const NAME: &str = "@pause";

/// Ignores SIGCHLD, so that the kernel forgets orphans that end, and pauses for ever. Signals from inside the namespace
/// do not end its first process, pid_namespaces(7).
const CODE: [u8; 68] = [
    0xbf, 17, 0, 0, 0, // mov edi, SIGCHLD
    0x48, 0x8d, 0x35, 24, 0, 0, 0, // lea rsi, [action]
    0x31, 0xd2, // xor edx, edx
    0x41, 0xba, 8, 0, 0, 0, // mov r10d, 8 (bytes of a signal set)
    0xb8, 13, 0, 0, 0, // mov eax, SYS_rt_sigaction
    0x0f, 0x05, // syscall
    0xb8, 34, 0, 0, 0, // again: mov eax, SYS_pause
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // jmp again
    1, 0, 0, 0, 0, 0, 0, 0, // action: SIG_IGN, no flags, no restorer, no mask
    0, 0, 0, 0, 0, 0, 0, 0, //
    0, 0, 0, 0, 0, 0, 0, 0, //
    0, 0, 0, 0, 0, 0, 0, 0, //
];

/// Makes and starts it.
///
/// # Errors
/// [`Refusal`] of the step that failed; nothing is left then.
pub(crate) fn start(services: &Services) -> Result<Container, Refusal> {
    let rootfs = Path::new(paths::BASE).join("pause");
    elf::write(&rootfs.join("pause"), &CODE)
        .map_err(|error| Refusal::internal("writing the pod's own program", &error))?;
    let kinds = ["pid", "ipc", "uts", "mount", "cgroup"];
    let namespaces: Vec<_> = kinds.iter().map(|kind| json!({"type": kind})).collect();
    let none: [&str; 0] = [];
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 65534, "gid": 65534},
            "args": ["/pause"],
            "cwd": "/",
            "capabilities": {"bounding": none, "effective": none, "permitted": none},
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": true},
        "linux": {"namespaces": namespaces}
    });
    let request = CreateContainerRequest {
        container: NAME.to_owned(),
        spec: spec.to_string().into_bytes(),
        rootfs: rootfs.display().to_string(),
        bundle: "/".to_owned(),
        ..CreateContainerRequest::default()
    };
    let pause = Container::make(services, &request, Facts::default())?;
    match pause.start(services) {
        Ok(()) => Ok(pause),
        Err(refusal) => {
            let _ = pause.remove(services);
            Err(refusal)
        }
    }
}
