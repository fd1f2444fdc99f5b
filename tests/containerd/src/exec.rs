//! The request for a further process.
//!
//! Owns: its form, as containerd sends it. Never: sends it. Called by the tests that call `Exec` themselves.

use containerd_shim_protos::api::ExecProcessRequest;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

/// The request to run `args` as `exec` in the container `id`, without streams.
#[must_use]
pub fn exec(id: &str, exec: &str, args: &[&str]) -> ExecProcessRequest {
    let spec =
        serde_json::json!({ "args": args, "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } });
    ExecProcessRequest {
        id: id.to_owned(),
        exec_id: exec.to_owned(),
        spec: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: spec.to_string().into_bytes(),
            ..Any::default()
        })
        .into(),
        ..ExecProcessRequest::default()
    }
}
