//! A CRI client: pods and their containers over containerd's gRPC socket.

use crate::daemon::{CRI_NAMESPACE, Daemon};
use crate::image::BUSYBOX;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerStatsRequest, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, ImageSpec, LinuxContainerConfig, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusRequest, PortMapping,
    Protocol, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest,
};
use k8s_cri::v1::{ContainerStats, ContainerStatus, ExecSyncResponse};
pub use k8s_cri::v1::{NamespaceMode, NamespaceOption};
use std::path::PathBuf;
use std::time::Duration;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// Longest a call may take.
const DEADLINE: Duration = Duration::from_secs(180);

/// The client.
#[derive(Debug)]
pub struct Cri<'a> {
    daemon: &'a Daemon,
    runtime: Runtime,
    client: RuntimeServiceClient<Channel>,
}

/// A pod.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its id.
    pub id: String,
    config: PodSandboxConfig,
}

impl Pod {
    /// Where the logs of its containers are.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.config.log_directory.clone().into()
    }
}

impl<'a> Cri<'a> {
    pub(crate) fn connect(daemon: &'a Daemon) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let address = format!("unix://{}", daemon.socket().display());
        let client = runtime.block_on(async {
            let channel = Endpoint::from_shared(address)
                .unwrap()
                .timeout(DEADLINE)
                .connect()
                .await
                .unwrap();
            RuntimeServiceClient::new(channel)
        });
        Self {
            daemon,
            runtime,
            client,
        }
    }

    fn call<T>(
        &self,
        work: impl AsyncFnOnce(RuntimeServiceClient<Channel>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Status> {
        let client = self.client.clone();
        self.runtime
            .block_on(work(client))
            .map(tonic::Response::into_inner)
    }

    /// Runs a pod.
    ///
    /// # Errors
    /// What containerd reports.
    pub fn run_pod(&self, name: &str) -> Result<Pod, Status> {
        self.run_pod_with(name, &[])
    }

    /// Runs a pod of which TCP ports are published: the host's and the pod's.
    ///
    /// # Errors
    /// What containerd reports.
    pub fn run_pod_with(&self, name: &str, ports: &[(i32, i32)]) -> Result<Pod, Status> {
        let logs = self.daemon.place.dir().join("logs").join(name);
        std::fs::create_dir_all(&logs).unwrap();
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("{}-{name}", self.daemon.place.token()),
                namespace: self.daemon.place.token().to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: logs.display().to_string(),
            port_mappings: ports
                .iter()
                .map(|&(host_port, container_port)| PortMapping {
                    protocol: Protocol::Tcp.into(),
                    container_port,
                    host_port,
                    ..PortMapping::default()
                })
                .collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", self.daemon.place.token()),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        let response = self.call(async |mut client| client.run_pod_sandbox(request).await)?;
        let id = response.pod_sandbox_id;
        self.daemon.place.note(CRI_NAMESPACE, &id);
        Ok(Pod { id, config })
    }

    /// Creates a container in a pod.
    ///
    /// # Errors
    /// What containerd reports.
    pub fn create(&self, pod: &Pod, name: &str, command: &[&str]) -> Result<String, Status> {
        let own = NamespaceOption {
            pid: NamespaceMode::Container.into(),
            ..NamespaceOption::default()
        };
        self.create_in(pod, name, command, own)
    }

    /// Creates a container with the process namespace of `namespaces`: the pod's, its own, or another container's.
    ///
    /// # Errors
    /// What containerd reports.
    pub fn create_in(
        &self,
        pod: &Pod,
        name: &str,
        command: &[&str],
        namespaces: NamespaceOption,
    ) -> Result<String, Status> {
        let security_context = LinuxContainerSecurityContext {
            namespace_options: Some(namespaces),
            ..LinuxContainerSecurityContext::default()
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: BUSYBOX.to_owned(),
                ..ImageSpec::default()
            }),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(security_context),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let response = self.call(async |mut client| client.create_container(request).await)?;
        Ok(response.container_id)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// What containerd reports.
    pub fn start(&self, id: &str) -> Result<(), Status> {
        let request = StartContainerRequest {
            container_id: id.to_owned(),
        };
        self.call(async |mut client| client.start_container(request).await)
            .map(drop)
    }

    /// Creates and starts a container.
    ///
    /// # Errors
    /// What containerd reports.
    pub fn run(&self, pod: &Pod, name: &str, command: &[&str]) -> Result<String, Status> {
        let id = self.create(pod, name, command)?;
        self.start(&id)?;
        Ok(id)
    }

    /// Runs a command in a container to its end.
    ///
    /// # Errors
    /// What containerd reports.
    pub fn exec(&self, id: &str, command: &[&str]) -> Result<ExecSyncResponse, Status> {
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 60,
        };
        self.call(async |mut client| client.exec_sync(request).await)
    }

    /// The status of a container.
    ///
    /// # Errors
    /// What containerd reports.
    pub fn status(&self, id: &str) -> Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let response = self.call(async |mut client| client.container_status(request).await)?;
        Ok(response.status.unwrap_or_default())
    }

    /// The statistics of a container.
    ///
    /// # Errors
    /// What containerd reports.
    pub fn stats(&self, id: &str) -> Result<ContainerStats, Status> {
        let request = ContainerStatsRequest {
            container_id: id.to_owned(),
        };
        let response = self.call(async |mut client| client.container_stats(request).await)?;
        Ok(response.stats.unwrap_or_default())
    }

    /// Whether a pod is ready.
    ///
    /// # Errors
    /// What containerd reports.
    pub fn pod_is_ready(&self, pod: &Pod) -> Result<bool, Status> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: pod.id.clone(),
            verbose: false,
        };
        let response = self.call(async |mut client| client.pod_sandbox_status(request).await)?;
        Ok(response.status.is_some_and(|status| status.state == 0))
    }

    /// The address a pod was given.
    ///
    /// # Errors
    /// What containerd reports.
    pub fn address(&self, pod: &Pod) -> Result<String, Status> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: pod.id.clone(),
            verbose: false,
        };
        let response = self.call(async |mut client| client.pod_sandbox_status(request).await)?;
        let network = response.status.and_then(|status| status.network);
        Ok(network.unwrap_or_default().ip)
    }

    /// Stops a container: SIGTERM, `patience_s` later SIGKILL.
    ///
    /// # Errors
    /// What containerd reports.
    pub fn stop(&self, id: &str, patience_s: i64) -> Result<(), Status> {
        let request = StopContainerRequest {
            container_id: id.to_owned(),
            timeout: patience_s,
        };
        self.call(async |mut client| client.stop_container(request).await)
            .map(drop)
    }

    /// Removes a container, running or not.
    ///
    /// # Errors
    /// What containerd reports.
    pub fn remove(&self, id: &str) -> Result<(), Status> {
        let request = RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        self.call(async |mut client| client.remove_container(request).await)
            .map(drop)
    }

    /// Stops a pod and all in it.
    ///
    /// # Errors
    /// What containerd reports.
    pub fn stop_pod(&self, pod: &Pod) -> Result<(), Status> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: pod.id.clone(),
        };
        self.call(async |mut client| client.stop_pod_sandbox(request).await)
            .map(drop)
    }

    /// Removes a pod and all in it.
    ///
    /// # Errors
    /// What containerd reports.
    pub fn remove_pod(&self, pod: &Pod) -> Result<(), Status> {
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: pod.id.clone(),
        };
        self.call(async |mut client| client.remove_pod_sandbox(request).await)
            .map(drop)
    }
}
