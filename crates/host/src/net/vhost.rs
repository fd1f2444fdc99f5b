//! The host kernel's virtio-net back end, where it has one.

use std::fs::File;
use std::os::fd::OwnedFd;

/// One descriptor of /dev/vhost-net for each of `queues`; none if the kernel has none or does not give all.
#[must_use]
pub fn vhost_net(queues: u16) -> Vec<OwnedFd> {
    let open = || File::options().read(true).write(true).open("/dev/vhost-net");
    let opened: std::io::Result<Vec<OwnedFd>> = (0..queues).map(|_| open().map(OwnedFd::from)).collect();
    opened.unwrap_or_default()
}
