//! The calls of `agent.proto`: from the wire to `guest`, and refusals back.
//!
//! Owns: which calls are remembered by request id. Never: does anything itself. Calls that block run on threads
//! of their own, so one of them never holds up another, and goes on to its end when its caller is gone: a half-made container
//! is worse than an answer nobody hears.

use crate::calls::Calls;
use crate::guest::Guest;
use crate::launch::Refusal;
use crate::{flush, hotplug, listing, rehearsal, stats, stdio, steps};
use async_trait::async_trait;
use bulkhead_model::{ExitStatus, FailureKind};
use bulkhead_protocol::api::agent::{
    ConfigureRequest, ContainerRequest, CreateContainerRequest, CreateContainerResponse, Done, Empty,
    ExecRequest, ExecResponse, ListProcessesResponse, NextEventsRequest, NextEventsResponse, OnlineRequest,
    OnlineResponse, ProcessRequest, ResizeTerminalRequest, SignalRequest, StatsResponse, Steps,
    UpdateNetworkRequest, UpdateRequest, WaitResponse,
};
use bulkhead_protocol::api::agent_ttrpc::Agent;
use bulkhead_protocol::refusal::refuse;
use std::sync::Arc;
use std::time::Instant;
use ttrpc::r#async::TtrpcContext;

/// What a remembered call answered.
#[derive(Debug, Clone)]
enum Answer {
    Done,
    Pid(i32),
    Online(u32, u64),
}

type Outcome = Result<Answer, Refusal>;

/// What a call does. Of one type for all calls, see `calls`.
type Work = Box<dyn FnOnce(&Guest) -> Outcome + Send>;

/// Work that has nothing to answer.
fn plain(work: impl FnOnce(&Guest) -> Result<(), Refusal> + Send + 'static) -> Work {
    Box::new(move |guest| work(guest).map(|()| Answer::Done))
}

/// A call that changes something, as its trace names it.
struct Called {
    name: &'static str,
    container: String,
    id: String,
}

impl Called {
    fn new(name: &'static str, container: &str, id: &str) -> Self {
        Self {
            name,
            container: container.to_owned(),
            id: id.to_owned(),
        }
    }

    /// Does it and, where the sandbox is traced (O-15), tells how long it took and how it failed.
    fn traced(&self, guest: &Guest, work: Work) -> Outcome {
        let began = Instant::now();
        let outcome = work(guest);
        if guest.is_traced() {
            let Self { name, container, .. } = self;
            let us = began.elapsed().as_micros();
            let failure = outcome.as_ref().err().map(|refusal| refusal.message.as_str());
            let failure = failure.map(|text| format!(" failed: {text}")).unwrap_or_default();
            let line = format!("trace: {name} {container} {us} us{failure}");
            guest.services.events.log("info", line);
        }
        outcome
    }
}

/// The service.
pub(crate) struct Service {
    guest: Arc<Guest>,
    calls: Calls<(Outcome, Steps)>,
}

fn refused(refusal: Refusal) -> ttrpc::Error {
    refuse(refusal.kind, refusal.message)
}

fn torn() -> ttrpc::Error {
    refuse(FailureKind::Internal, "the call broke off in the agent")
}

impl Service {
    /// Serves `guest`.
    #[must_use]
    pub(crate) fn new(guest: Arc<Guest>) -> Self {
        Self {
            guest,
            calls: Calls::default(),
        }
    }

    /// Runs `work` once per request id, on a thread that may block.
    async fn once(&self, call: Called, work: Work) -> ttrpc::Result<(Answer, Steps)> {
        let guest = self.guest.clone();
        let id = call.id.clone();
        let run = Box::new(move || steps::during(|| call.traced(&guest, work)));
        let (outcome, steps) = self.calls.once(&id, run).await.ok_or_else(torn)?;
        Ok((outcome.map_err(refused)?, steps))
    }

    /// A call that answers with nothing but what it did.
    async fn measured(&self, call: Called, work: Work) -> ttrpc::Result<Done> {
        let (_, steps) = self.once(call, work).await?;
        Ok(Done {
            steps: Some(steps).into(),
            ..Default::default()
        })
    }

    async fn done(&self, call: Called, work: Work) -> ttrpc::Result<Empty> {
        self.once(call, work).await?;
        Ok(Empty::new())
    }

    /// A call that only reads.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Guest) -> Result<T, Refusal> + Send + 'static,
    ) -> ttrpc::Result<T> {
        let guest = self.guest.clone();
        tokio::task::spawn_blocking(move || work(&guest))
            .await
            .map_err(|_| torn())?
            .map_err(refused)
    }
}

#[async_trait]
impl Agent for Service {
    async fn configure(&self, _: &TtrpcContext, request: ConfigureRequest) -> ttrpc::Result<Done> {
        let call = Called::new("configure", "", &request.request_id);
        self.measured(call, plain(move |guest| guest.configure(&request)))
            .await
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let call = Called::new("create_container", &request.container, &request.request_id);
        let (answer, steps) = self
            .once(
                call,
                Box::new(move |guest| guest.create(&request).map(Answer::Pid)),
            )
            .await?;
        let Answer::Pid(guest_pid) = answer else {
            return Err(torn());
        };
        Ok(CreateContainerResponse {
            guest_pid,
            steps: Some(steps).into(),
            ..Default::default()
        })
    }

    async fn start_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Done> {
        let call = Called::new("start_container", &request.container, &request.request_id);
        self.measured(
            call,
            plain(move |guest| guest.container(&request.container)?.start(&guest.services)),
        )
        .await
    }

    async fn remove_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Done> {
        let call = Called::new("remove_container", &request.container, &request.request_id);
        self.measured(call, plain(move |guest| guest.remove(&request.container)))
            .await
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecRequest) -> ttrpc::Result<ExecResponse> {
        let call = Called::new("exec", &request.container, &request.request_id);
        let (answer, steps) = self
            .once(
                call,
                Box::new(move |guest| {
                    let container = guest.container(&request.container)?;
                    let stdio = request.stdio.clone().unwrap_or_default();
                    container
                        .exec(&guest.services, &request.exec, &request.process, &stdio)
                        .map(Answer::Pid)
                }),
            )
            .await?;
        let Answer::Pid(guest_pid) = answer else {
            return Err(torn());
        };
        Ok(ExecResponse {
            guest_pid,
            steps: Some(steps).into(),
            ..Default::default()
        })
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<Empty> {
        let call = Called::new("signal", &request.container, &request.request_id);
        self.done(
            call,
            plain(move |guest| {
                guest
                    .container(&request.container)?
                    .signal(&request.exec, request.signal, request.all)
            }),
        )
        .await
    }

    async fn wait(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<WaitResponse> {
        let process = self
            .guest
            .container(&request.container)
            .and_then(|it| it.process(&request.exec))
            .map_err(refused)?;
        let mut exit = process.exit();
        let exit = exit
            .wait_for(Option::is_some)
            .await
            .map_err(|_| torn())?
            .ok_or_else(torn)?;
        let (code, signal) = match exit.status {
            ExitStatus::Code(code) => (u32::from(code), 0),
            ExitStatus::Signal(signal) => (0, u32::from(signal)),
        };
        Ok(WaitResponse {
            code,
            signal,
            stdout_offset: exit.stdout_offset,
            stderr_offset: exit.stderr_offset,
            out_of_memory: exit.out_of_memory,
            out_of_memory_kills: exit.out_of_memory_kills,
            settled: exit.settled,
            ..Default::default()
        })
    }

    async fn forget_process(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<Empty> {
        let call = Called::new("forget_process", &request.container, &request.request_id);
        self.done(
            call,
            plain(move |guest| match guest.container(&request.container) {
                Ok(container) => container.forget(&guest.services, &request.exec),
                // Gone with its container.
                Err(_) => Ok(()),
            }),
        )
        .await
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: ResizeTerminalRequest,
    ) -> ttrpc::Result<Empty> {
        let (columns, rows) = (stdio::cells(request.columns), stdio::cells(request.rows));
        self.guest
            .container(&request.container)
            .and_then(|container| container.process(&request.exec))
            .and_then(|process| {
                process
                    .resize(columns, rows)
                    .map_err(|error| Refusal::internal("window size", &error))
            })
            .map_err(refused)?;
        Ok(Empty::new())
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<ListProcessesResponse> {
        let processes = self
            .read(move |guest| {
                let container = guest.container(&request.container)?;
                let pids = container
                    .cgroup()
                    .processes()
                    .map_err(|error| Refusal::internal("listing processes", &error))?;
                Ok(listing::list(&pids, container.init().pid, &container.exec_pids()))
            })
            .await?;
        Ok(ListProcessesResponse {
            processes,
            ..Default::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        let call = Called::new("pause", &request.container, &request.request_id);
        self.done(
            call,
            plain(move |guest| guest.container(&request.container)?.freeze(true)),
        )
        .await
    }

    async fn resume(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        let call = Called::new("resume", &request.container, &request.request_id);
        self.done(
            call,
            plain(move |guest| guest.container(&request.container)?.freeze(false)),
        )
        .await
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateRequest) -> ttrpc::Result<Empty> {
        let call = Called::new("update", &request.container, &request.request_id);
        self.done(
            call,
            plain(move |guest| {
                guest
                    .container(&request.container)?
                    .update(&guest.services, &request.resources)
            }),
        )
        .await
    }

    async fn stats(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<StatsResponse> {
        let stats = self
            .read(move |guest| {
                let container = guest.container(&request.container)?;
                serde_json::to_vec(&stats::read(container.cgroup().path()))
                    .map_err(|error| Refusal::internal("encoding statistics", &error))
            })
            .await?;
        Ok(StatsResponse {
            stats,
            ..Default::default()
        })
    }

    async fn online(&self, _: &TtrpcContext, request: OnlineRequest) -> ttrpc::Result<OnlineResponse> {
        let call = Called::new("online", "", &request.request_id);
        let (answer, _) = self
            .once(
                call,
                Box::new(move |_| {
                    let trouble = |error: hotplug::HotplugError| Refusal::internal("hot-plug", &error);
                    let cpus = hotplug::cpus(request.cpus).map_err(trouble)?;
                    let memory = hotplug::memory(request.memory).map_err(trouble)?;
                    Ok(Answer::Online(cpus, memory))
                }),
            )
            .await?;
        let Answer::Online(cpus, memory_bytes) = answer else {
            return Err(torn());
        };
        Ok(OnlineResponse {
            cpus,
            memory_bytes,
            ..Default::default()
        })
    }

    async fn next_events(
        &self,
        _: &TtrpcContext,
        request: NextEventsRequest,
    ) -> ttrpc::Result<NextEventsResponse> {
        let events = self.guest.services.events.next(request.after).await;
        Ok(NextEventsResponse {
            events,
            ..Default::default()
        })
    }

    async fn update_network(&self, _: &TtrpcContext, request: UpdateNetworkRequest) -> ttrpc::Result<Empty> {
        let call = Called::new("update_network", "", &request.request_id);
        self.done(call, plain(move |guest| guest.update_network(&request)))
            .await
    }

    async fn rehearse(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.read(rehearsal::rehearse).await?;
        Ok(Empty::new())
    }

    async fn sync(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.read(|_| {
            flush::flush();
            Ok(())
        })
        .await?;
        Ok(Empty::new())
    }
}
