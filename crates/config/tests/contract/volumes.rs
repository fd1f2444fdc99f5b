//! M-11 and O-06.

use crate::support::*;
use bulkhead_config::Config;
use bulkhead_config::PlanKind;
use bulkhead_config::mounts::DEFAULT_SHM_BYTES;
use serde_json::{Value, json};

fn shm(mounts: Value) -> u64 {
    let mut spec = spec();
    spec["mounts"] = mounts;
    let mut files = Files::default();
    files.file_systems.insert("/host/shm".into(), 123 << 20);
    let plans = plans_on(&files, &host(), &Config::default(), &spec).unwrap();
    let PlanKind::Sandbox { sandbox, .. } = plans.kind else {
        panic!()
    };
    sandbox.shm_bytes
}

/// M-11, O-06: 64 MiB unless a bind of something else says otherwise; 0 without a mount.
#[test]
fn m11_o06_shm_size() {
    assert_eq!(DEFAULT_SHM_BYTES, 67_108_864);
    assert_eq!(shm(json!([])), 0);
    assert_eq!(shm(json!([{"destination": "/dev/shmx", "type": "tmpfs"}])), 0);
    assert_eq!(
        shm(json!([{"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}])),
        DEFAULT_SHM_BYTES
    );
    assert_eq!(
        shm(json!([{"destination": "/dev/shm", "type": "bind", "source": "/dev/shm"}])),
        DEFAULT_SHM_BYTES
    );
    assert_eq!(
        shm(json!([{"destination": "/dev/shm", "type": "bind", "source": "/host/shm"}])),
        123 << 20
    );
    // The first decides.
    let two = json!([
        {"destination": "/dev/shm", "type": "tmpfs"},
        {"destination": "/dev/shm", "type": "bind", "source": "/host/shm"}
    ]);
    assert_eq!(shm(two), DEFAULT_SHM_BYTES);
}

/// O-06: a source that cannot be examined is an error.
#[test]
fn o06_statfs_failure() {
    let mut spec = spec();
    spec["mounts"] = json!([{"destination": "/dev/shm", "type": "bind", "source": "/gone"}]);
    let text = refusal(&Config::default(), &spec);
    says(&text, &["mounts[0].source", "\"/gone\"", "file system"]);
}
