//! Keeps a service method running when its caller is gone.
//!
//! The ttrpc server drops the futures of a connection that ended. A half-made container is worse than an answer
//! nobody hears: each call runs in a task of its own, and the host asks again with the same request id.
//!
//! Owns: nothing. Called by the ttrpc server; calls the agent's service.

use crate::api::agent::{
    ConfigureRequest, ContainerRequest, CreateContainerRequest, CreateContainerResponse, Done, Empty,
    ExecRequest, ExecResponse, ListProcessesResponse, NextEventsRequest, NextEventsResponse, OnlineRequest,
    OnlineResponse, ProcessRequest, ResizeTerminalRequest, SignalRequest, StatsResponse,
    UpdateNetworkRequest, UpdateRequest, WaitResponse,
};
use crate::api::agent_ttrpc::Agent;
use crate::refusal::refuse;
use async_trait::async_trait;
use bulkhead_model::FailureKind;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::oneshot;
use ttrpc::r#async::TtrpcContext;

pub(super) struct Detached(pub(super) Arc<dyn Agent + Send + Sync>);

macro_rules! detached {
    ($($method:ident($request:ty) -> $response:ty;)*) => {
        #[async_trait]
        impl Agent for Detached {
            $(async fn $method(&self, context: &TtrpcContext, request: $request) -> ttrpc::Result<$response> {
                let service = Arc::clone(&self.0);
                let context = copy(context);
                let (tell, answer) = oneshot::channel();
                apart(Box::pin(async move {
                    // Nobody listens any more when the connection ended.
                    let _ = tell.send(service.$method(&context, request).await);
                }));
                answer.await.unwrap_or_else(|_| Err(refuse(
                    FailureKind::Internal,
                    format!("the agent failed in {}", stringify!($method)),
                )))
            })*

            // These two only wait: they end with their caller.
            async fn wait(&self, context: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<WaitResponse> {
                self.0.wait(context, request).await
            }
            async fn next_events(
                &self,
                context: &TtrpcContext,
                request: NextEventsRequest,
            ) -> ttrpc::Result<NextEventsResponse> {
                self.0.next_events(context, request).await
            }
        }
    };
}

detached! {
    configure(ConfigureRequest) -> Done;
    create_container(CreateContainerRequest) -> CreateContainerResponse;
    start_container(ContainerRequest) -> Done;
    remove_container(ContainerRequest) -> Done;
    exec(ExecRequest) -> ExecResponse;
    signal(SignalRequest) -> Empty;
    forget_process(ProcessRequest) -> Empty;
    resize_terminal(ResizeTerminalRequest) -> Empty;
    list_processes(ContainerRequest) -> ListProcessesResponse;
    pause(ContainerRequest) -> Empty;
    resume(ContainerRequest) -> Empty;
    update(UpdateRequest) -> Empty;
    stats(ContainerRequest) -> StatsResponse;
    online(OnlineRequest) -> OnlineResponse;
    sync(Empty) -> Empty;
    rehearse(Empty) -> Empty;
    update_network(UpdateNetworkRequest) -> Empty;
}

/// Of one type for all methods: a task's machinery is compiled for each type of future, and in a translated guest every
/// copy of it costs its translation.
fn apart(call: Pin<Box<dyn Future<Output = ()> + Send>>) {
    tokio::spawn(call);
}

fn copy(context: &TtrpcContext) -> TtrpcContext {
    TtrpcContext {
        mh: context.mh,
        metadata: context.metadata.clone(),
        timeout_nano: context.timeout_nano,
        connection_data: context.connection_data.clone(),
    }
}
