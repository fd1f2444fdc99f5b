//! Input nobody should send, the test in containerd's place: codes as runc's shim answers, nothing hung, nothing left.

use bulkhead_containerd::{Bundle, Engine, Place, Refused, Shim};
use bulkhead_e2e::{QUICK, VERB};
use containerd_shim_protos::api::{
    CheckpointTaskRequest, Empty, ExecProcessRequest, PauseRequest, PidsRequest, PidsResponse, StatsRequest,
    StatsResponse, UpdateTaskRequest,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::Code;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn code<T: std::fmt::Debug>(result: Result<T, Refused>) -> Code {
    let refused = result.unwrap_err();
    assert!(!refused.message.contains('\n'), "{refused:?}");
    refused.code
}

fn exec(id: &str, exec: &str, script: &str) -> ExecProcessRequest {
    bulkhead_containerd::exec(id, exec, &["/bin/sh", "-c", script])
}

on_both! {
    /// Unknown ids, everything twice, everything too early or too late.
    fn out_of_order(engine) {
        let place = Place::new();
        let id = format!("{}-0", place.token());
        let bundle = Bundle::make(&place, &id, "exec sleep 1000");
        let shim = Shim::start(&place, engine, &bundle);
        assert_eq!(code(shim.state("nobody", "")), Code::NOT_FOUND);
        assert_eq!(code(shim.begin("nobody", "")), Code::NOT_FOUND);
        assert_eq!(code(shim.delete("nobody", "")), Code::NOT_FOUND);
        let pid = shim.create(&bundle).unwrap().pid;
        assert!(pid > 0);
        assert_eq!(shim.state(&id, "").unwrap().pid, pid);
        if engine == Engine::Bulkhead {
            assert_eq!(code(shim.create(&bundle)), Code::ALREADY_EXISTS);
        }
        assert_eq!(shim.begin(&id, "").unwrap().pid, pid);
        assert!(shim.begin(&id, "").is_err(), "started twice");
        assert!(shim.delete(&id, "").is_err(), "deleted while running");
        assert_eq!(code(shim.state(&id, "nothing")), Code::NOT_FOUND);
        assert_eq!(code(shim.kill(&id, "nothing", 9)), Code::NOT_FOUND);
        let _: Empty = shim.call("Exec", &exec(&id, "e", "exec sleep 1000")).unwrap();
        assert_eq!(code(shim.call::<Empty>("Exec", &exec(&id, "e", "true"))), Code::ALREADY_EXISTS);
        shim.delete(&id, "e").unwrap();
        let _: Empty = shim.call("Exec", &exec(&id, "e", "exit 9")).unwrap();
        let exec_pid = shim.begin(&id, "e").unwrap().pid;
        assert!(exec_pid > 0 && exec_pid != pid);
        assert_eq!(shim.wait(&id, "e").unwrap().exit_status, 9);
        assert_eq!(code(shim.kill(&id, "e", 9)), Code::NOT_FOUND);
        assert!(shim.begin(&id, "e").is_err(), "started after its end");
        shim.delete(&id, "e").unwrap();
        assert_eq!(code(shim.wait(&id, "e")), Code::NOT_FOUND);
        let _: Empty = shim.kill(&id, "", 9).unwrap();
        let end = shim.wait(&id, "").unwrap();
        assert_eq!(end.exit_status, 137);
        assert_eq!(code(shim.kill(&id, "", 9)), Code::NOT_FOUND);
        if engine == Engine::Bulkhead {
            assert_eq!(code(shim.call::<Empty>("Exec", &exec(&id, "late", "true"))), Code::FAILED_PRECONDITION);
        }
        let deleted = shim.delete(&id, "").unwrap();
        assert_eq!((deleted.exit_status, deleted.pid), (137, pid));
        assert_eq!(code(shim.wait(&id, "")), Code::NOT_FOUND);
        assert_eq!(code(shim.delete(&id, "")), Code::NOT_FOUND);
        shim.shutdown(&id);
    }
}

/// What is sent by mistake or malice to the socket, and requests that are refused with a type.
#[test]
#[ignore = "needs a VM"]
fn garbage_and_oversized_requests() {
    let place = Place::new();
    let id = format!("{}-0", place.token());
    let bundle = Bundle::make(&place, &id, "exec sleep 1000");
    let shim = Shim::start(&place, Engine::Bulkhead, &bundle);
    let failed = shim.create_as(&bundle, |request| request.stdout = "/nonexistent/fifo".into());
    let failed = failed.unwrap_err();
    assert_eq!(failed.code, Code::INVALID_ARGUMENT);
    assert!(failed.message.contains("/nonexistent/fifo"), "{failed:?}");
    shim.shutdown(&id);
    place.assert_no_sandbox(place.token(), &id);

    // The id is free again.
    let shim = Shim::start(&place, Engine::Bulkhead, &bundle);
    shim.create(&bundle).unwrap();
    shim.begin(&id, "").unwrap();
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 64],
        &[0, 0, 0, 0, 0, 0, 0, 1, 1, 0],
    ] {
        let mut stream = UnixStream::connect(shim.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        stream.write_all(garbage).unwrap();
        // Whatever it answers, it goes on for the others.
        let _ = stream.read(&mut [0; 64]);
    }
    let mut large = UnixStream::connect(shim.socket()).unwrap();
    // A frame that announces 32 MiB: length, stream 1, request, no flags.
    large.write_all(&[2, 0, 0, 0, 0, 0, 0, 1, 1, 0]).unwrap();
    drop(large);
    assert_eq!(
        code(shim.call::<Empty>(
            "Checkpoint",
            &CheckpointTaskRequest {
                id: id.clone(),
                ..Default::default()
            }
        )),
        Code::UNIMPLEMENTED
    );
    let update = UpdateTaskRequest {
        id: id.clone(),
        resources: Some(Any {
            value: b"not json".to_vec(),
            ..Any::default()
        })
        .into(),
        ..UpdateTaskRequest::default()
    };
    assert_eq!(
        code(shim.call::<Empty>("Update", &update)),
        Code::INVALID_ARGUMENT
    );
    let mut request = exec(&id, "bad", "true");
    request.spec.mut_or_insert_default().value = b"[]".to_vec();
    assert_eq!(code(shim.call::<Empty>("Exec", &request)), Code::INVALID_ARGUMENT);
    assert_eq!(
        code(shim.call::<Empty>("Exec", &exec(&id, "a/b", "true"))),
        Code::INVALID_ARGUMENT
    );
    let _: Empty = shim.call("Exec", &exec(&id, "gone", "true")).unwrap();
    shim.delete(&id, "gone").unwrap();
    let pause = PauseRequest {
        id: id.clone(),
        ..PauseRequest::default()
    };
    let _: Empty = shim.call("Pause", &pause).unwrap();
    assert!(shim.call::<Empty>("Pause", &pause).is_err(), "paused twice");
    let _: Empty = shim.call("Resume", &pause).unwrap();
    let stats: StatsResponse = shim
        .call(
            "Stats",
            &StatsRequest {
                id: id.clone(),
                ..Default::default()
            },
        )
        .unwrap();
    assert!(
        stats.stats.type_url.starts_with("io.containerd.cgroups.v"),
        "{}",
        stats.stats.type_url
    );
    let pids: PidsResponse = shim
        .call(
            "Pids",
            &PidsRequest {
                id: id.clone(),
                ..Default::default()
            },
        )
        .unwrap();
    assert_eq!(pids.processes.len(), 1);
    let _: Empty = shim.kill(&id, "", 9).unwrap();
    assert_eq!(shim.wait(&id, "").unwrap().exit_status, 137);
    shim.delete(&id, "").unwrap();
    shim.shutdown(&id);
}

/// A hundred further processes at once, each with its own status.
#[test]
#[ignore = "needs a VM"]
fn a_hundred_execs_at_once() {
    let place = Place::new();
    let id = format!("{}-0", place.token());
    let bundle = Bundle::make(&place, &id, "exec sleep 1000");
    let shim = Shim::start(&place, Engine::Bulkhead, &bundle);
    shim.create(&bundle).unwrap();
    shim.begin(&id, "").unwrap();
    let threads: Vec<_> = (0..100_u32)
        .map(|number| {
            let (shim, id) = (shim.clone(), id.clone());
            std::thread::spawn(move || {
                let name = format!("e{number}");
                let _: Empty = shim
                    .call("Exec", &exec(&id, &name, &format!("exit {number}")))
                    .unwrap();
                shim.begin(&id, &name).unwrap();
                let status = shim.wait(&id, &name).unwrap().exit_status;
                shim.delete(&id, &name).unwrap();
                assert_eq!(status, number);
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    shim.kill(&id, "", 9).unwrap();
    shim.wait(&id, "").unwrap();
    shim.delete(&id, "").unwrap();
    shim.shutdown(&id);
}

/// A root file system that is gone when it is mounted: the create fails and leaves nothing.
#[test]
#[ignore = "needs a VM"]
fn a_root_file_system_that_vanished() {
    let place = Place::new();
    let id = format!("{}-0", place.token());
    let bundle = Bundle::make(&place, &id, "true");
    let shim = Shim::start(&place, Engine::Bulkhead, &bundle);
    let failed = shim.create_as(&bundle, |request| {
        request.rootfs[0].options[2] = "lowerdir=/nonexistent/layer".into();
    });
    let failed = failed.unwrap_err();
    assert!(failed.message.contains("root file system"), "{failed:?}");
    shim.shutdown(&id);
    place.assert_shim_ends(&id, QUICK);
}

/// `delete` without anything to delete, twice, and with a shim that is there.
#[test]
#[ignore = "needs a VM"]
fn the_delete_action() {
    let place = Place::new();
    let id = format!("{}-0", place.token());
    let bundle = Bundle::make(&place, &id, "exec sleep 1000");
    let nothing = Shim::invoke(&place, Engine::Bulkhead, &bundle, "delete").ok();
    assert!(!nothing.stdout.is_empty(), "no answer");
    let shim = Shim::start(&place, Engine::Bulkhead, &bundle);
    shim.create(&bundle).unwrap();
    shim.begin(&id, "").unwrap();
    let _ = Shim::invoke(&place, Engine::Bulkhead, &bundle, "delete").ok();
    place.assert_shim_ends(&id, VERB);
    let _ = Shim::invoke(&place, Engine::Bulkhead, &bundle, "delete").ok();
    let failed = Shim::invoke(&place, Engine::Bulkhead, &bundle, "frobnicate");
    failed.fails(&["frobnicate"]);
}
