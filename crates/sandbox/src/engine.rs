//! The one task that changes a sandbox; everyone else holds a handle (see `handle`).
//!
//! ```text
//!  Handle::call ──reads, signals──► published snapshot / live guest          (never waits for a verb)
//!             └──changes──► inbox ─► Engine: one verb at a time ─► World
//!                                      ▲ events: exits, stubs, VM, daemon
//!  kill or delete --force during a verb ──► its cancellation token ─► rollback
//! ```
//!
//! Owns: ordering and calling off. Never: what a verb does (see `lifecycle`). Called by `shim::supervisor`.

use crate::command::{Command, Notice, Reply};
use crate::error::SandboxError;
use crate::handle::{Handle, Request};
use crate::lifecycle::Attachment;
use crate::span;
use crate::verb::Verb;
use crate::world::{Event, Published, World};
use bulkhead_model::{ContainerId, ExitStatus, Failure, FailureKind, ProcessKey};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// How long a sandbox without any container waits for its first one.
const FIRST_CONTAINER_DEADLINE: Duration = Duration::from_secs(60);

/// How a process ended that never began.
const SIGKILL: u8 = 9;

/// The task.
pub struct Engine {
    world: World,
    requests: mpsc::UnboundedReceiver<Request>,
    events: mpsc::UnboundedReceiver<Event>,
    stubs: mpsc::UnboundedReceiver<Event>,
    calloff: mpsc::UnboundedReceiver<Option<ContainerId>>,
    desk: Desk,
    failure: Arc<OnceLock<Failure>>,
}

/// What arrived while a verb was under way.
#[derive(Default)]
struct Desk {
    queue: VecDeque<Request>,
    attachments: HashMap<ProcessKey, Attachment>,
}

/// How the engine begins.
pub enum Beginning {
    /// Boot the VM.
    Boot,
    /// The world was restored; nothing to boot.
    Restored,
}

impl Engine {
    /// An engine and its handle.
    #[must_use]
    pub fn new(world: World, published: Published, events: mpsc::UnboundedReceiver<Event>) -> (Self, Handle) {
        let (requests, inbox) = mpsc::unbounded_channel();
        let (calloff, calls) = mpsc::unbounded_channel();
        let (stubs, gone) = mpsc::unbounded_channel();
        let failure = Arc::clone(&published.failure);
        let handle = Handle {
            requests,
            published,
            calloff,
            stubs,
        };
        let engine = Self {
            world,
            requests: inbox,
            events,
            stubs: gone,
            calloff: calls,
            desk: Desk::default(),
            failure,
        };
        (engine, handle)
    }

    /// Runs until the sandbox is gone. Returns what could not be undone.
    pub async fn run(self, beginning: Beginning) -> Vec<String> {
        // What is logged between verbs says whose it is too.
        let whole = span::operation("sandbox", "supervise", &self.world.plan.id, None);
        self.supervise(beginning).instrument(whole).await
    }

    async fn supervise(mut self, beginning: Beginning) -> Vec<String> {
        if matches!(beginning, Beginning::Boot)
            && let Err(error) = self.boot().await
        {
            let failure = error.failure();
            let failures = self.tear_down().await;
            let _ = self.failure.set(failure.clone());
            self.refuse_all(&failure).await;
            return failures;
        }
        loop {
            self.world.settle_timeline();
            let request = match self.next().await {
                Some(request) => request,
                None => {
                    tracing::warn!("no container was made in time: taking the sandbox down");
                    return self.tear_down().await;
                }
            };
            if let Some(failures) = self.serve(request).await {
                return failures;
            }
        }
    }

    async fn boot(&mut self) -> Result<(), SandboxError> {
        let token = CancellationToken::new();
        let Self {
            world,
            requests,
            calloff,
            desk,
            ..
        } = self;
        let span = span::operation("sandbox", "boot", &world.plan.id, None);
        let work = span::within(span, world.boot());
        attend(work, &token, None, requests, calloff, desk)
            .await
            .unwrap_or(Err(SandboxError::Cancelled {
                operation: "the boot",
            }))
    }

    /// The next request; events are taken in on the way. `None`: there is no container and none came.
    async fn next(&mut self) -> Option<Request> {
        let deadline = tokio::time::sleep(FIRST_CONTAINER_DEADLINE);
        tokio::pin!(deadline);
        loop {
            if let Some(request) = self.desk.queue.pop_front() {
                return Some(request);
            }
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(request) => return Some(request),
                    None => return None,
                },
                Some(event) = self.events.recv() => {
                    self.happened(event).await;
                    self.world.settle_timeline();
                }
                Some(event) = self.stubs.recv() => self.stub_gone(event).await,
                Some(_) = self.calloff.recv() => {}
                () = &mut deadline, if self.world.containers.is_empty() && !self.world.plan.kept => return None,
            }
        }
    }

    async fn happened(&mut self, event: Event) {
        if !matches!(event, Event::NetworkChanged) {
            return self.world.happened(event).await;
        }
        // May wait for the guest: requests are taken in meanwhile.
        match self.attended(None, Verb::FollowNetwork).await {
            Ok(()) => {}
            // What called it off may not be the sandbox's end: then it is looked at again.
            Err(SandboxError::Cancelled { .. }) => self.world.network_changed(),
            Err(error) => {
                let error = bulkhead_model::failure::chain(&error);
                tracing::error!(error, "following the network namespace");
            }
        }
    }

    async fn stub_gone(&mut self, event: Event) {
        if let Event::StubGone { key, stub } = &event
            && self
                .desk
                .attachments
                .get(key)
                .is_some_and(|a| a.stub == Some(*stub))
        {
            self.desk.attachments.remove(key);
        }
        self.world.happened(event).await;
    }

    /// Carries out one request; `Some` when the sandbox is gone.
    async fn serve(&mut self, request: Request) -> Option<Vec<String>> {
        let Request {
            command,
            attachment,
            reply,
        } = request;
        let result = match command {
            Command::Attach { key, .. } => match attachment {
                Some(again) if self.is_known(&key, &again) => self.attach_again(&key, again),
                Some(first) => {
                    self.desk.attachments.insert(key, first);
                    Ok(())
                }
                None => Ok(()),
            },
            // Verbs are served when the boot is over.
            Command::AwaitBoot => Ok(()),
            Command::MountRoot { id, target, mounts } => self.world.mount_root(&id, &target, &mounts),
            Command::Create { plan } => return self.create(plan, Verb::Create, reply).await,
            Command::Run { plan } => return self.create(plan, Verb::Run, reply).await,
            Command::Delete { id, force } => match self.delete(&id, force).await {
                Ok(true) => return Some(self.end(reply).await),
                other => other.map(drop),
            },
            Command::Shutdown => return Some(self.end(reply).await),
            Command::Start { id } => self.attended(Some(id.clone()), Verb::Start(id)).await,
            Command::Exec { key, process } => {
                let attachment = attachment.or_else(|| self.desk.attachments.remove(&key));
                let container = key.container.clone();
                self.attended(Some(container), Verb::Exec(key, process, attachment))
                    .await
            }
            Command::Pause { id } => self.attended(Some(id.clone()), Verb::Pause(id)).await,
            Command::Resume { id } => self.attended(Some(id.clone()), Verb::Resume(id)).await,
            Command::Update { id, resources } => {
                self.attended(Some(id.clone()), Verb::Update(id, resources)).await
            }
            Command::Stop { id, patience_ms } => {
                let patience = Duration::from_millis(patience_ms);
                self.attended(Some(id.clone()), Verb::Stop(id, patience)).await
            }
            // Answered by the handle; they never get here.
            Command::Signal { .. }
            | Command::Watch { .. }
            | Command::Resize { .. }
            | Command::CloseStdin { .. }
            | Command::Wait { .. }
            | Command::Processes { .. }
            | Command::Stats { .. }
            | Command::Snapshot
            | Command::Inspect
            | Command::Timeline
            | Command::Tell { .. } => Ok(()),
        };
        answer(reply, result.map(|()| Reply::Done));
        None
    }

    async fn create(
        &mut self,
        plan: Box<bulkhead_model::ContainerPlan>,
        verb: fn(Box<bulkhead_model::ContainerPlan>, Option<Attachment>) -> Verb,
        reply: oneshot::Sender<Result<Reply, Failure>>,
    ) -> Option<Vec<String>> {
        let id = plan.id.clone();
        let key = ProcessKey {
            container: id.clone(),
            exec: None,
        };
        let attachment = self.desk.attachments.remove(&key);
        let exists = self.world.containers.contains_key(&id);
        let result = self.attended(Some(id.clone()), verb(plan, attachment)).await;
        let Err(error) = result else {
            answer(reply, Ok(Reply::Done));
            return None;
        };
        if !exists {
            let span = span::operation("container", "rollback", &self.world.plan.id, Some(&id));
            self.world.rollback(&id).instrument(span).await;
        }
        if self.world.containers.is_empty() && !self.world.plan.kept {
            // Answer when nothing is left, so that a retry finds the id free.
            let failures = self.tear_down().await;
            self.refuse_all(&error.failure()).await;
            answer(reply, Err(error));
            return Some(failures);
        }
        answer(reply, Err(error));
        None
    }

    async fn delete(&mut self, id: &ContainerId, force: bool) -> Result<bool, SandboxError> {
        let span = span::operation("container", "delete", &self.world.plan.id, Some(id));
        span::within(span, self.world.delete(id, force)).await
    }

    async fn tear_down(&mut self) -> Vec<String> {
        // Stubs of processes that nobody came to make: with their verb gone too, nothing else would end them.
        for (key, attachment) in self.desk.attachments.drain() {
            let status = ExitStatus::Signal(SIGKILL);
            let _ = attachment.notices.send(Notice::Exited { status });
            self.world.stubs.extend(attachment.stub);
            if key.exec.is_none() {
                self.world.forget_mapping(&key.container);
            }
        }
        let span = span::operation("sandbox", "tear down", &self.world.plan.id, None);
        self.world.tear_down().instrument(span).await
    }

    async fn end(&mut self, reply: oneshot::Sender<Result<Reply, Failure>>) -> Vec<String> {
        let failures = self.tear_down().await;
        let result = if failures.is_empty() {
            Ok(Reply::Done)
        } else {
            Err(Failure::new(
                FailureKind::Internal,
                format!(
                    "sandbox {} left: {}; `bulkhead gc` tries again",
                    self.world.plan.id,
                    failures.join("; ")
                ),
            ))
        };
        // A client that is gone does not need the answer.
        let _ = reply.send(result);
        failures
    }

    /// Runs a verb while the desk stays open.
    async fn attended(&mut self, subject: Option<ContainerId>, verb: Verb) -> Result<(), SandboxError> {
        let token = CancellationToken::new();
        let operation = verb.name();
        // Most changes of a namespace change nothing of the sandbox: those that do begin an operation themselves.
        if !matches!(verb, Verb::FollowNetwork) {
            let (subject, exec) = (subject.as_ref(), verb.exec());
            self.world.timeline.begin(operation, subject, exec);
        }
        let Self {
            world,
            requests,
            calloff,
            desk,
            ..
        } = self;
        let span = span::operation("container", operation, &world.plan.id, subject.as_ref());
        let work = span::within(span, verb.run(world));
        let result = attend(work, &token, subject.as_ref(), requests, calloff, desk)
            .await
            .unwrap_or(Err(SandboxError::Cancelled { operation }));
        self.attach_waiting();
        result.map_err(|error| {
            self.world.abandon_streams();
            if error.lost_the_guest() {
                self.world.told(operation, error)
            } else {
                error
            }
        })
    }

    /// Whether it comes from the stub that stands for the process already: it outlived an earlier supervisor.
    fn is_known(&self, key: &ProcessKey, attachment: &Attachment) -> bool {
        attachment
            .stub
            .is_some_and(|stub| self.world.stands_for(key, stub))
    }

    fn attach_again(&mut self, key: &ProcessKey, attachment: Attachment) -> Result<(), SandboxError> {
        let span = span::operation("process", "attach", &self.world.plan.id, Some(&key.container));
        let attached = span.in_scope(|| self.world.attach_again(key, attachment));
        attached.inspect_err(|error| span::failed(&span, error))
    }

    /// Known stubs that reported during a verb: no verb to come waits for them.
    fn attach_waiting(&mut self) {
        let known = |(key, attachment): (&ProcessKey, &Attachment)| {
            self.is_known(key, attachment).then(|| key.clone())
        };
        let keys: Vec<ProcessKey> = self.desk.attachments.iter().filter_map(known).collect();
        for key in keys {
            if let Some(attachment) = self.desk.attachments.remove(&key)
                && let Err(error) = self.attach_again(&key, attachment)
            {
                let error = bulkhead_model::failure::chain(&error);
                tracing::error!(error, process = %key, "attaching its stub again");
            }
        }
    }

    async fn refuse_all(&mut self, failure: &Failure) {
        self.requests.close();
        while let Some(request) = self.desk.queue.pop_front() {
            refuse(request, failure);
        }
        while let Some(request) = self.requests.recv().await {
            refuse(request, failure);
        }
    }
}

fn refuse(request: Request, failure: &Failure) {
    let result = match request.command {
        // What they ask for is done.
        Command::Shutdown | Command::Delete { force: true, .. } => Ok(Reply::Done),
        _ => Err(failure.clone()),
    };
    let _ = request.reply.send(result);
}

fn answer(reply: oneshot::Sender<Result<Reply, Failure>>, result: Result<Reply, SandboxError>) {
    // A client that is gone does not need the answer; a failure was logged where it happened.
    let _ = reply.send(result.map_err(|error| error.failure()));
}

/// Runs `work` while requests are taken in: attachments are kept, changes queued, a call-off of `subject`
/// (or of everything) ends it with `None`.
async fn attend<T>(
    work: impl Future<Output = T>,
    token: &CancellationToken,
    subject: Option<&ContainerId>,
    requests: &mut mpsc::UnboundedReceiver<Request>,
    calloff: &mut mpsc::UnboundedReceiver<Option<ContainerId>>,
    desk: &mut Desk,
) -> Option<T> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Some(done),
            () = token.cancelled() => return None,
            Some(request) = requests.recv() => match request {
                Request { command: Command::Attach { key, .. }, attachment: Some(attachment), reply } => {
                    desk.attachments.insert(key, attachment);
                    let _ = reply.send(Ok(Reply::Done));
                }
                other => desk.queue.push_back(other),
            },
            Some(whom) = calloff.recv() => {
                let ours = match (&whom, subject) {
                    (None, _) | (Some(_), None) => true,
                    (Some(whom), Some(subject)) => whom == subject,
                };
                if ours {
                    token.cancel();
                }
            }
        }
    }
}
