//! A network namespace in memory.

use super::*;

use bulkhead_model::{Interface, InterfaceAddress, LinkKind, Mac, NetworkScan};
use tokio::sync::Notify;

pub struct FakeSpace {
    pub faults: Arc<Faults>,
    pub ledger: Arc<Ledger>,
    /// What is in it.
    pub scan: Mutex<NetworkScan>,
    changed: Notify,
}

impl FakeSpace {
    pub fn new(faults: Arc<Faults>, ledger: Arc<Ledger>) -> Self {
        Self {
            faults,
            ledger,
            scan: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Changes what is in it, and says so.
    pub fn change(&self, change: impl FnOnce(&mut NetworkScan)) {
        change(&mut self.scan.lock().unwrap());
        self.changed.notify_one();
    }

    pub fn release(&self, resource: &Resource) {
        let mut links = self.ledger.links.lock().unwrap();
        match resource {
            Resource::Link { name, .. } => links.remove(name),
            Resource::Redirect { tap, .. } => links.remove(&format!("to {tap}")),
            _ => false,
        };
    }
}

#[async_trait]
impl NetworkSpace for FakeSpace {
    fn identity(&self) -> (u64, u64) {
        (4, 99)
    }
    fn path(&self) -> &Path {
        Path::new("/run/netns/fake")
    }
    async fn scan(&self) -> io::Result<NetworkScan> {
        self.faults.slow_step("scan").await?;
        Ok(self.scan.lock().unwrap().clone())
    }
    async fn connect(&self, request: TapRequest) -> io::Result<Vec<OwnedFd>> {
        // Half of it is there when the step fails.
        self.ledger.links.lock().unwrap().insert(request.tap.clone());
        self.faults.slow_step("tap").await?;
        self.ledger
            .links
            .lock()
            .unwrap()
            .insert(format!("to {}", request.tap));
        self.faults.step("redirect")?;
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        Ok((0..request.queues).map(|_| null()).collect())
    }
    async fn changed(&self) -> io::Result<()> {
        self.changed.notified().await;
        Ok(())
    }
    fn undo(&self, resource: &Resource) -> io::Result<()> {
        self.release(resource);
        Ok(())
    }
}

/// `eth<index>` with an address.
pub fn interface(index: u32) -> Interface {
    Interface {
        index,
        name: format!("eth{index}"),
        kind: LinkKind::Veth,
        mac: Mac([2, 0, 0, 0, 0, index as u8]),
        mtu: 1500,
        queues: 4,
        up: true,
        arp: true,
        addresses: vec![InterfaceAddress {
            address: format!("10.0.0.{index}").parse().unwrap(),
            prefix: 24,
            peer: None,
            broadcast: None,
            scope: 0,
        }],
    }
}
