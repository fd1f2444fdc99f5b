//! The Sandbox service, the test in the place of a containerd that makes sandboxes by it.

use bulkhead_containerd::{Bundle, Engine, Place, Refused, Shim};
use bulkhead_e2e::{VERB, until};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, StartSandboxRequest, StartSandboxResponse, StopSandboxRequest,
    StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim_protos::ttrpc::Code;

fn ask<T: Message>(shim: &Shim, method: &str, message: &impl Message) -> Result<T, Refused> {
    shim.ask("containerd.runtime.sandbox.v1.Sandbox", method, message)
}

/// A sandbox through its life: created, started, looked at, a container in it, stopped while a client waits.
#[test]
#[ignore = "needs a VM"]
fn through_its_life() {
    let place = Place::new();
    let id = format!("{}-0", place.token());
    let bundle = Bundle::make(&place, &id, "exec sleep 1000");
    let shim = Shim::start(&place, Engine::Bulkhead, &bundle);
    let sandbox_id = || id.clone();
    let status = || {
        let request = SandboxStatusRequest {
            sandbox_id: sandbox_id(),
            verbose: true,
            ..Default::default()
        };
        ask::<SandboxStatusResponse>(&shim, "SandboxStatus", &request)
    };
    let create = CreateSandboxRequest {
        sandbox_id: sandbox_id(),
        bundle_path: bundle.dir.display().to_string(),
        ..Default::default()
    };
    let _: CreateSandboxResponse = ask(&shim, "CreateSandbox", &create).unwrap();
    let start = StartSandboxRequest {
        sandbox_id: sandbox_id(),
        ..Default::default()
    };
    let started: StartSandboxResponse = ask(&shim, "StartSandbox", &start).unwrap();
    let supervisor = place.marked(place.token(), &id, "supervisor")[0].0;
    assert_eq!(started.pid, u32::try_from(supervisor).unwrap());
    let ready = status().unwrap();
    assert_eq!((ready.state.as_str(), ready.pid), ("SANDBOX_READY", started.pid));
    let vmm = place.marked(place.token(), &id, "vmm")[0].0;
    assert_eq!(ready.info.get("vmm.pid"), Some(&vmm.to_string()));

    let platform = PlatformRequest {
        sandbox_id: sandbox_id(),
        ..Default::default()
    };
    let platform: PlatformResponse = ask(&shim, "Platform", &platform).unwrap();
    assert_eq!(
        (
            platform.platform.os.as_str(),
            platform.platform.architecture.as_str()
        ),
        ("linux", "amd64")
    );
    let ping = |sandbox_id: String| {
        let request = PingRequest {
            sandbox_id,
            ..Default::default()
        };
        ask::<PingResponse>(&shim, "PingSandbox", &request)
    };
    let _ = ping(id.clone()).unwrap();
    assert_eq!(ping("another".to_owned()).unwrap_err().code, Code::NOT_FOUND);

    shim.create(&bundle).unwrap();
    shim.begin(&id, "").unwrap();
    let metrics = SandboxMetricsRequest {
        sandbox_id: sandbox_id(),
        ..Default::default()
    };
    let metrics: SandboxMetricsResponse = ask(&shim, "SandboxMetrics", &metrics).unwrap();
    let data = metrics.metrics.data.clone().unwrap_or_default();
    assert!(
        data.type_url.starts_with("io.containerd.cgroups.v") && !data.value.is_empty(),
        "{data:?}"
    );

    let waiting = {
        let (shim, sandbox_id) = (shim.clone(), sandbox_id());
        std::thread::spawn(move || {
            let request = WaitSandboxRequest {
                sandbox_id,
                ..Default::default()
            };
            ask::<WaitSandboxResponse>(&shim, "WaitSandbox", &request)
        })
    };
    let stop = StopSandboxRequest {
        sandbox_id: sandbox_id(),
        ..Default::default()
    };
    let _: StopSandboxResponse = ask(&shim, "StopSandbox", &stop).unwrap();
    let over = waiting.join().unwrap().unwrap();
    assert!(over.exited_at.seconds > 0);
    assert!(place.marked(place.token(), &id, "vmm").is_empty());
    assert_eq!(status().unwrap().state, "SANDBOX_NOTREADY");
    let _: StopSandboxResponse = ask(&shim, "StopSandbox", &stop).unwrap();
    shim.shutdown(&id);
    until("the shim has ended", VERB, || {
        place.marked(place.token(), &id, "supervisor").is_empty()
    });
    place.assert_no_sandbox(place.token(), &id);
}
