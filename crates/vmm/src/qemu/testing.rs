//! A plan, its command line and a scripted QEMU for unit tests.

use super::command_line::command_line;
use super::instance::Instance;
use super::process::VmmProcess;
use super::start::Start;
use super::stderr::StderrTail;
use crate::qmp::QmpClient;
use bulkhead_model::vm::{Accelerator, BlockPlan, SharedFs};
use bulkhead_model::{HostProcess, VmPlan};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Longer than any test needs, shorter than any is waited for.
pub(super) const SOON: Duration = Duration::from_secs(20);

/// What the scripted QEMU answers: a value or an error class, and events after it.
pub(super) type Answer = (Result<Value, &'static str>, Vec<Value>);

/// Commands it was given, with their arguments.
pub(super) type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// A driver whose QEMU is `script`; its process is the test itself, which does not end.
pub(super) async fn scripted(
    plan: VmPlan,
    accelerator: Accelerator,
    mut script: impl FnMut(&str, &Value) -> Answer + Send + 'static,
) -> (Instance, Asked) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let asked = Asked::default();
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut stream = BufReader::new(theirs);
        writeln!(stream.get_mut(), "{}", json!({"QMP": {}})).unwrap();
        let mut line = String::new();
        while stream.read_line(&mut line).is_ok_and(|length| length > 0) {
            let request: Value = serde_json::from_str(&line).unwrap();
            line.clear();
            let command = request["execute"].as_str().unwrap();
            let (answer, events) = if command == "qmp_capabilities" {
                (Ok(json!({})), Vec::new())
            } else {
                log.lock()
                    .unwrap()
                    .push((command.to_owned(), request["arguments"].clone()));
                script(command, &request["arguments"])
            };
            let answer = match answer {
                Ok(value) => json!({"return": value, "id": request["id"]}),
                Err(class) => json!({"error": {"class": class, "desc": "no"}, "id": request["id"]}),
            };
            for message in std::iter::once(answer).chain(events) {
                let _ = writeln!(stream.get_mut(), "{message}");
            }
        }
    });
    let pid = i32::try_from(std::process::id()).unwrap();
    let start_time = bulkhead_host::process::start_time(pid).unwrap().unwrap();
    let process = VmmProcess::of_stranger(HostProcess { pid, start_time }, StderrTail::silent()).unwrap();
    let client = QmpClient::connect(ours.into(), SOON).await.unwrap();
    (Instance::started(process, client, plan, accelerator), asked)
}

/// Names of the commands asked so far.
pub(super) fn names(asked: &Asked) -> Vec<String> {
    asked
        .lock()
        .unwrap()
        .iter()
        .map(|(name, _)| name.clone())
        .collect()
}

/// A small plan; tests change what they are about.
pub(super) fn plan() -> VmPlan {
    VmPlan {
        hypervisor: "/usr/bin/qemu-system-x86_64".into(),
        kernel: "/k/vmlinux".into(),
        initrd: "/k/initrd".into(),
        kernel_params: Vec::new(),
        machine_type: "q35".into(),
        machine_options: Vec::new(),
        cpu_features: Vec::new(),
        vcpus: 1,
        max_vcpus: 1,
        memory_mib: 256,
        max_memory_mib: 1024,
        memory_slots: 4,
        memory_prealloc: false,
        hugepages: false,
        memory_backend: None,
        mlock: false,
        virtio_mem: false,
        root_ports: 3,
        entropy_source: "/dev/urandom".into(),
        shared_fs: SharedFs::None,
        boot_timeout_s: 60,
        debug: false,
        base_vcpus: 1,
        base_memory_mib: 256,
        asset_hashes: Vec::new(),
        firmware: None,
        block: BlockPlan::default(),
        iommu: false,
        iommu_platform: false,
        disable_vhost_net: false,
        vfio_on_root_bus: false,
        reclaim_freed_memory: false,
    }
}

/// What a translated machine of the plan boots with.
pub(super) fn line(plan: &VmPlan) -> String {
    let share = (PathBuf::from("/s"), "tag".to_owned());
    let line = command_line(plan, Accelerator::Tcg, None, Start::Boot, Some(&share)).unwrap();
    line.join(OsStr::new(" ")).into_string().unwrap()
}
