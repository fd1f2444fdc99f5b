//! The Sandbox service, the test in the place of a containerd that makes sandboxes by it.

use bulkhead_containerd::{Bundle, Engine, Place, Refused, Shim, World};
use bulkhead_e2e::{VERB, until};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedOutputStream, Message};
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim_protos::ttrpc::Code;

fn ask<T: Message>(shim: &Shim, method: &str, message: &impl Message) -> Result<T, Refused> {
    shim.ask("containerd.runtime.sandbox.v1.Sandbox", method, message)
}

/// Any request that names just the sandbox.
macro_rules! of {
    ($request:ident, $id:expr) => {
        $request {
            sandbox_id: $id.to_owned(),
            ..Default::default()
        }
    };
}

/// A pod in protobuf's encoding, with a host name and two annotations.
fn pod_config() -> Any {
    let write = |fill: &dyn Fn(&mut CodedOutputStream<'_>)| {
        let mut bytes = Vec::new();
        let mut out = CodedOutputStream::vec(&mut bytes);
        fill(&mut out);
        out.flush().unwrap();
        drop(out);
        bytes
    };
    let annotation = |key: &str, value: &str| {
        write(&|out| {
            out.write_string(1, key).unwrap();
            out.write_string(2, value).unwrap();
        })
    };
    let any = annotation("org.example.pod", "seen");
    let spans = annotation("io.katacontainers.config.agent.enable_tracing", "true");
    Any {
        type_url: "runtime.v1.PodSandboxConfig".to_owned(),
        value: write(&|out| {
            out.write_string(2, "ordered").unwrap();
            out.write_bytes(7, &any).unwrap();
            out.write_bytes(7, &spans).unwrap();
        }),
        ..Any::default()
    }
}

/// A sandbox for which containerd wrote no config.json: made from the request, in its network namespace, without a
/// container of its own; a container that no annotation places runs in it.
#[test]
#[ignore = "needs a VM"]
fn ordered_without_a_bundles_specification() {
    let place = Place::new();
    let id = format!("{}-0", place.token());
    let bundle = Bundle::make(&place, &id, "true");
    std::fs::remove_file(bundle.dir.join("config.json")).unwrap();
    let shim = Shim::start(&place, Engine::Bulkhead, &bundle);

    // Before the order: there is nothing, and that is said.
    let start = of!(StartSandboxRequest, id);
    let early = ask::<StartSandboxResponse>(&shim, "StartSandbox", &start).unwrap_err();
    assert_eq!(early.code, Code::NOT_FOUND);
    assert_eq!(early.message, format!("sandbox {id} was not created yet"));
    let _: PingResponse = ask(&shim, "PingSandbox", &of!(PingRequest, id)).unwrap();
    let create = |netns_path: &str| {
        let request = CreateSandboxRequest {
            bundle_path: bundle.dir.display().to_string(),
            netns_path: netns_path.to_owned(),
            options: Some(pod_config()).into(),
            ..of!(CreateSandboxRequest, id)
        };
        ask::<CreateSandboxResponse>(&shim, "CreateSandbox", &request)
    };
    let refused = create("/nowhere/netns").unwrap_err();
    assert_eq!(refused.code, Code::INVALID_ARGUMENT);
    assert!(refused.message.contains("/nowhere/netns"), "{}", refused.message);

    let world = World::new(&place);
    let links = "ip link add pod0 type veth peer name peer0 && ip addr add 10.9.0.1/24 dev pod0 && ip link set pod0 up";
    let _ = world.run(&place, links).ok();
    let _ = create(world.path().to_str().unwrap()).unwrap();
    let _: StartSandboxResponse = ask(&shim, "StartSandbox", &start).unwrap();
    let status = SandboxStatusRequest {
        verbose: true,
        ..of!(SandboxStatusRequest, id)
    };
    let status: SandboxStatusResponse = ask(&shim, "SandboxStatus", &status).unwrap();
    assert_eq!(status.state, "SANDBOX_READY");

    let script = "hostname; ls /sys/class/net; exec sleep 1000";
    let inside = Bundle::with(&place, &format!("{id}-in"), script, |config| {
        config.as_object_mut().unwrap().remove("hostname");
    });
    let output = inside.dir.join("output");
    let stdout = format!("file://{}", output.display());
    shim.create_as(&inside, |request| request.stdout = stdout)
        .unwrap();
    shim.begin(&inside.id, "").unwrap();
    until("its output is there", VERB, || {
        std::fs::read_to_string(&output).is_ok_and(|text| text.contains("pod0"))
    });
    let text = std::fs::read_to_string(&output).unwrap();
    assert!(text.starts_with("ordered\n"), "{text}");
    assert_eq!(place.marked(place.token(), &id, "vmm").len(), 1);
    // The log was there before the annotation that asks for more of it.
    let log = bundle.logged();
    assert!(log.contains(r#""message":"close""#), "{log}");

    let _: StopSandboxResponse = ask(&shim, "StopSandbox", &of!(StopSandboxRequest, id)).unwrap();
    let _ = ask::<ShutdownSandboxResponse>(&shim, "ShutdownSandbox", &of!(ShutdownSandboxRequest, id));
    place.assert_shim_ends(&id, VERB);
}

/// One that is told to go before anything was ordered, and one that is deleted after it was killed.
#[test]
#[ignore = "needs root"]
fn never_ordered_it_leaves_nothing() {
    let place = Place::new();
    let bundle = |number: u32| {
        let bundle = Bundle::make(&place, &format!("{}-{number}", place.token()), "true");
        std::fs::remove_file(bundle.dir.join("config.json")).unwrap();
        bundle
    };
    let told = bundle(0);
    let shim = Shim::start(&place, Engine::Bulkhead, &told);
    shim.shutdown(&told.id);
    place.assert_shim_ends(&told.id, VERB);

    let killed = bundle(1);
    let _ = Shim::start(&place, Engine::Bulkhead, &killed);
    let _ = Shim::invoke(&place, Engine::Bulkhead, &killed, "delete").ok();
    place.assert_no_sandbox(place.token(), &killed.id);
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
    // It ends before its answer has arrived, or after.
    let _ = ask::<ShutdownSandboxResponse>(&shim, "ShutdownSandbox", &of!(ShutdownSandboxRequest, id));
    place.assert_shim_ends(&id, VERB);
}
