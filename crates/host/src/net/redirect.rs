//! All that arrives on one link leaves by another (tc-mirred(8)): an ingress queue and one filter that matches
//! every frame. The u32 classifier does it, as `matchall` is not in every kernel.
//!
//! ```text
//!  frames into `from` ─► ingress queue ─► u32, matches all ─► mirred: out of `to`
//! ```
//!
//! Owns: the queue and the filter on `from`. Never: takes away a queue whose filter leads to a link of somebody
//! else's.

use super::{Netlink, NetlinkError, link};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};
use nix::errno::Errno;

/// `ffff:`, tc(8): the handle of the ingress queue and the parent of its filters.
const INGRESS: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};

/// ETH_P_ALL of linux/if_ether.h in network order, as the message header wants it.
const ALL_PROTOCOLS: u16 = 3_u16.to_be();

/// The only filter's place in the list.
const PRIORITY: u16 = 1;

/// Sends all that arrives on `from` out of `to`. What a dead predecessor left on `from`, a queue whose filter leads
/// nowhere, is replaced.
///
/// # Errors
/// The kernel's reason; `EEXIST` when `from` has an ingress queue of somebody else's.
pub fn add(netlink: &mut Netlink, from: u32, to: u32) -> Result<(), NetlinkError> {
    match add_queue(netlink, from) {
        Err(error) if error.is(Errno::EEXIST) && leads(netlink, from)? == Leads::Nowhere => {
            remove_queue(netlink, from)?;
            add_queue(netlink, from)?;
        }
        other => other?,
    }
    let mut filter = message(from);
    filter.header.parent = INGRESS;
    filter.header.info = u32::from(PRIORITY) << 16 | u32::from(ALL_PROTOCOLS);
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut mirror = TcMirror::default();
    mirror.generic = TcActionGeneric::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    filter.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(selector)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]),
    ];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let request = RouteNetlinkMessage::NewTrafficFilter(filter);
    netlink.change("redirecting what arrives on", &name(from), request, flags)
}

/// Takes the redirection from `from` away if it leads to the link named `to`, or nowhere any more. One that is not
/// there, with its link or without, is success.
///
/// # Errors
/// The kernel's reason.
pub fn remove(netlink: &mut Netlink, from: u32, to: &str) -> Result<(), NetlinkError> {
    if link::name(from).is_none() {
        return Ok(());
    }
    match leads(netlink, from)? {
        Leads::To(other) if other != to => Ok(()),
        Leads::Elsewhere => Ok(()),
        Leads::To(_) | Leads::Nowhere => remove_queue(netlink, from),
    }
}

/// Where what arrives on a link goes.
#[derive(Debug, PartialEq, Eq)]
enum Leads {
    /// Out of the link of this name.
    To(String),
    /// There is no redirection, or its link is gone.
    Nowhere,
    /// There are filters of another kind.
    Elsewhere,
}

fn leads(netlink: &mut Netlink, from: u32) -> Result<Leads, NetlinkError> {
    let mut ask = message(from);
    ask.header.parent = INGRESS;
    let filters = match netlink.dump("listing filters", &RouteNetlinkMessage::GetTrafficFilter(ask)) {
        // No ingress queue, and no filter on it.
        Err(error) if error.is(Errno::EINVAL) || error.is(Errno::ENOENT) => return Ok(Leads::Nowhere),
        other => other?,
    };
    let mut leads = Leads::Nowhere;
    for filter in filters {
        let RouteNetlinkMessage::NewTrafficFilter(filter) = filter else {
            continue;
        };
        for attribute in &filter.attributes {
            match attribute {
                TcAttribute::Kind(kind) if kind != TcFilterU32::KIND => return Ok(Leads::Elsewhere),
                TcAttribute::Options(options) => {
                    if let Some(name) = options.iter().find_map(target).and_then(link::name) {
                        leads = Leads::To(name);
                    }
                }
                _ => {}
            }
        }
    }
    Ok(leads)
}

/// Index of the link a u32 filter redirects to.
fn target(option: &TcOption) -> Option<u32> {
    let TcOption::U32(TcFilterU32Option::Action(actions)) = option else {
        return None;
    };
    let attributes = actions.iter().flat_map(|action| &action.attributes);
    let options = attributes.filter_map(|attribute| match attribute {
        TcActionAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) => Some(mirror.ifindex),
        _ => None,
    })
}

fn message(index: u32) -> TcMessage {
    // An interface index is a positive i32 in the kernel.
    TcMessage::with_index(i32::try_from(index).unwrap_or(i32::MAX))
}

fn queue(index: u32) -> TcMessage {
    let mut message = message(index);
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = INGRESS;
    message.attributes.push(TcAttribute::Kind("ingress".to_owned()));
    message
}

fn add_queue(netlink: &mut Netlink, index: u32) -> Result<(), NetlinkError> {
    let request = RouteNetlinkMessage::NewQueueDiscipline(queue(index));
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    netlink.change("adding an ingress queue to", &name(index), request, flags)
}

fn remove_queue(netlink: &mut Netlink, index: u32) -> Result<(), NetlinkError> {
    let request = RouteNetlinkMessage::DelQueueDiscipline(queue(index));
    match netlink.change("removing the ingress queue of", &name(index), request, 0) {
        // Gone with its link, or never made.
        Err(error)
            if [Errno::ENODEV, Errno::EINVAL, Errno::ENOENT]
                .iter()
                .any(|e| error.is(*e)) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn name(index: u32) -> String {
    link::name(index).unwrap_or_else(|| format!("interface {index}"))
}
