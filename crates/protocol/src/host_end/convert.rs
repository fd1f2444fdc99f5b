//! The engine's nouns to wire messages and back.
//!
//! Owns: nothing. Called by `client`.

use crate::api::agent;
use crate::guest::{
    GuestContainer, GuestError, GuestEvent, GuestExit, GuestHello, GuestIdentity, GuestPids, GuestProcess,
    GuestStdio, GuestStep, GuestSteps, GuestStorage,
};
use bulkhead_model::{ExitStatus, ProcessKey};

pub(super) fn hello(hello: agent::Hello) -> GuestHello {
    GuestHello {
        protocol_version: hello.protocol_version,
        agent_version: hello.agent_version,
        kernel_release: hello.kernel_release,
        capabilities: hello.capabilities,
        ready_boottime_ns: hello.ready_boottime_ns,
        init_boottime_ns: hello.init_boottime_ns,
        boot_nonce: hello.boot_nonce,
    }
}

/// `None` from an agent that does not measure.
pub(super) fn steps(steps: protobuf::MessageField<agent::Steps>) -> Option<GuestSteps> {
    let steps = steps.into_option()?;
    let step = |step: agent::Step| GuestStep {
        name: step.name,
        begin_ns: step.begin_ns,
        end_ns: step.end_ns,
    };
    Some(GuestSteps {
        received_ns: steps.received_ns,
        answered_ns: steps.answered_ns,
        steps: steps.steps.into_iter().map(step).collect(),
    })
}

fn storages(storages: Vec<GuestStorage>) -> Vec<agent::Storage> {
    let storage = |s: GuestStorage| agent::Storage {
        driver: s.driver,
        source: s.source,
        fstype: s.fstype,
        options: s.options,
        mount_point: s.mount_point,
        ..Default::default()
    };
    storages.into_iter().map(storage).collect()
}

pub(super) fn configure(request_id: String, identity: GuestIdentity) -> agent::ConfigureRequest {
    agent::ConfigureRequest {
        request_id,
        hostname: identity.hostname,
        domainname: identity.domainname,
        time_ns: identity.time_ns,
        entropy: identity.entropy,
        storages: storages(identity.storages),
        kernel_modules: identity.kernel_modules,
        shm_bytes: identity.shm_bytes,
        debug: identity.debug,
        tracing: identity.tracing,
        settle: identity.settle,
        keep_share: identity.keep_share,
        ..Default::default()
    }
}

pub(super) fn stdio(stdio: GuestStdio) -> protobuf::MessageField<agent::Stdio> {
    protobuf::MessageField::some(agent::Stdio {
        stdin: stdio.stdin,
        stdout: stdio.stdout,
        stderr: stdio.stderr,
        terminal: stdio.terminal,
        columns: stdio.columns.into(),
        rows: stdio.rows.into(),
        ..Default::default()
    })
}

pub(super) fn create(request_id: String, container: GuestContainer) -> agent::CreateContainerRequest {
    let pids_of = match &container.pids {
        GuestPids::Of(other) => other.as_str().to_owned(),
        GuestPids::Own | GuestPids::Pod => String::new(),
    };
    agent::CreateContainerRequest {
        request_id,
        container: container.id.into(),
        spec: container.spec,
        rootfs: container.rootfs,
        bundle: container.bundle,
        storages: storages(container.storages),
        stdio: stdio(container.stdio),
        no_pivot: container.no_pivot,
        no_new_keyring: container.no_new_keyring,
        seccomp: container.seccomp,
        pipe_bytes: container.pipe_bytes,
        whole_dev: container.whole_dev,
        pod_pids: container.pids == GuestPids::Pod,
        pids_of,
        start: container.start,
        ..Default::default()
    }
}

/// Container and exec id as the wire has them.
pub(super) fn key(key: &ProcessKey) -> (String, String) {
    let exec = key
        .exec
        .as_ref()
        .map_or_else(String::new, |exec| exec.as_str().to_owned());
    (key.container.as_str().to_owned(), exec)
}

pub(super) fn exit(response: &agent::WaitResponse) -> Result<GuestExit, GuestError> {
    let byte = |number: u32, what: &str| {
        u8::try_from(number).map_err(|_| GuestError::Protocol {
            what: format!("a process ended with {what} {number}, expected 0 to 255"),
        })
    };
    let status = match response.signal {
        0 => ExitStatus::Code(byte(response.code, "code")?),
        signal => ExitStatus::Signal(byte(signal, "signal")?),
    };
    Ok(GuestExit {
        status,
        out_of_memory: response.out_of_memory,
        out_of_memory_kills: response.out_of_memory_kills,
        stdout_offset: response.stdout_offset,
        stderr_offset: response.stderr_offset,
        settled: response.settled,
    })
}

pub(super) fn process(process: agent::GuestProcess) -> GuestProcess {
    GuestProcess {
        pid: process.pid,
        ppid: process.ppid,
        uid: process.uid,
        user: process.user,
        exec: Some(process.exec).filter(|exec| !exec.is_empty()),
        command: process.command,
        cpu_s: process.cpu_s,
        started_s: process.started_s,
        tty: process.tty,
        state: process.state,
    }
}

/// `None` for an event of a later version.
pub(super) fn event(event: agent::Event) -> Option<(u64, GuestEvent)> {
    let said = match event.kind? {
        agent::event::Kind::Log(line) => GuestEvent::Log {
            level: line.level,
            message: line.message,
            time_ns: line.time_ns,
        },
        agent::event::Kind::OutOfMemory(killed) => GuestEvent::OutOfMemory {
            container: killed.container,
            kills: killed.kills,
        },
    };
    Some((event.sequence, said))
}
