//! A change of a sandbox that is to be carried out.
//!
//! Owns: its name for people, and which method it is. Never: what that does (see `lifecycle`). Called by `engine`.

use crate::error::SandboxError;
use crate::lifecycle::Attachment;
use crate::world::World;
use bulkhead_model::{ContainerId, ExecId, ProcessKey};
use std::time::Duration;

pub(crate) enum Verb {
    Create(Box<bulkhead_model::ContainerPlan>, Option<Attachment>),
    Run(Box<bulkhead_model::ContainerPlan>, Option<Attachment>),
    Start(ContainerId),
    Exec(ProcessKey, Box<bulkhead_model::oci::Process>, Option<Attachment>),
    Stop(ContainerId, Duration),
    Pause(ContainerId),
    Resume(ContainerId),
    Update(ContainerId, Box<bulkhead_model::oci::LinuxResources>),
    FollowNetwork,
}

impl Verb {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Create(..) | Self::Run(..) => "create",
            Self::Start(_) => "start",
            Self::Exec(..) => "exec",
            Self::Stop(..) => "stop",
            Self::Pause(_) => "pause",
            Self::Resume(_) => "resume",
            Self::Update(..) => "update",
            Self::FollowNetwork => "follow the network",
        }
    }

    pub(crate) const fn exec(&self) -> Option<&ExecId> {
        match self {
            Self::Exec(key, ..) => key.exec.as_ref(),
            _ => None,
        }
    }

    pub(crate) async fn run(self, world: &mut World) -> Result<(), SandboxError> {
        match self {
            Self::Create(plan, attachment) => world.create(*plan, attachment).await,
            Self::Run(plan, attachment) => world.run(*plan, attachment).await,
            Self::Start(id) => world.start(&id).await,
            Self::Exec(key, process, attachment) => world.exec(&key, &process, attachment).await,
            Self::Stop(id, patience) => world.stop_patiently(&id, patience).await,
            Self::Pause(id) => world.pause(&id).await,
            Self::Resume(id) => world.resume(&id).await,
            Self::Update(id, resources) => world.update(&id, &resources).await,
            Self::FollowNetwork => world.sync_network().await,
        }
    }
}
