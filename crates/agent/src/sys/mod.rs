//! The only place of the agent with `unsafe`: system calls that no safe wrapper exists for.
//!
//! Owns: one small safe function per call, each with its safety argument. Never: policy.
//! Called by: every module that needs the kernel and finds nothing safe in `nix` or `std`.

pub(crate) mod bpf;
pub(crate) mod capabilities;
pub(crate) mod entropy;
pub(crate) mod fork;
pub(crate) mod heap;
pub(crate) mod interface;
pub(crate) mod keyring;
pub(crate) mod limits;
pub(crate) mod module;
pub(crate) mod mounts;
pub(crate) mod names;
pub(crate) mod packets;
pub(crate) mod pidfd;
pub(crate) mod rights;
pub(crate) mod seccomp;
pub(crate) mod signals;
pub(crate) mod tty;
