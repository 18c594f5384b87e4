//! Hardware addresses: this host's own, and those of the hosts on its links as the kernel knows them (RFC 826, RFC 4861).

use std::net::IpAddr;

use futures_util::{TryStreamExt as _, future::BoxFuture};
use netlink_packet_route::{
    AddressFamily,
    link::LinkAttribute,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};
use rtnetlink::Handle;
use tracing::debug;

use super::netlink::Netlink;

/// The address of an Ethernet or wifi interface (EUI-48).
pub(crate) type Hardware = [u8; 6];

/// The hosts on the links of this one.
pub(crate) trait Neighbours: Send + Sync {
    /// The hardware addresses that this address has, one on each link; none where a router leads there.
    fn hardware(&self, address: IpAddr) -> BoxFuture<'_, Vec<Hardware>>;
}

impl Neighbours for Netlink {
    fn hardware(&self, address: IpAddr) -> BoxFuture<'_, Vec<Hardware>> {
        Box::pin(async move {
            let found = find(self, address).await;
            let found = found.inspect_err(|error| debug!(%error, "cannot read neighbours"));
            found.into_iter().flatten().map(|(_, hardware)| hardware).collect()
        })
    }
}

/// The hardware address of the host at this address of the link with this index, if it has one and has answered.
pub(crate) async fn on(
    netlink: &Netlink,
    link: u32,
    address: IpAddr,
) -> Result<Option<Hardware>, rtnetlink::Error> {
    let found = find(netlink, address).await?;
    Ok(found.into_iter().find(|(on, _)| *on == link).map(|(_, hardware)| hardware))
}

/// The links on which this address is, and its hardware address there.
async fn find(
    netlink: &Netlink,
    address: IpAddr,
) -> Result<Vec<(u32, Hardware)>, rtnetlink::Error> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let request = |handle: Handle| handle.neighbours().get().set_address_family(family).execute();
    let found = netlink.dump(request).await?;
    let on_link = |it: &NeighbourMessage| Some((it.header.ifindex, hardware_of(it, address)?));
    Ok(found.iter().filter_map(on_link).collect())
}

/// The hardware address of this entry, if it is that of `address` and the host has answered.
fn hardware_of(neighbour: &NeighbourMessage, address: IpAddr) -> Option<Hardware> {
    let has_answered = matches!(
        neighbour.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
    );
    let (mut is_it, mut hardware) = (false, None);
    for attribute in &neighbour.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                is_it = address == IpAddr::from(*found);
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => {
                is_it = address == IpAddr::from(*found);
            }
            NeighbourAttribute::LinkLayerAddress(found) => hardware = found[..].try_into().ok(),
            _ => {}
        }
    }
    hardware.filter(|_| is_it && has_answered)
}

/// The hardware address of the link with this index.
pub(crate) async fn own(netlink: &Netlink, index: u32) -> Option<Hardware> {
    let mut links = netlink.handle().link().get().match_index(index).execute();
    let link = links.try_next().await.ok()??;
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(found) => found[..].try_into().ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HARDWARE: Hardware = [2, 0, 0, 0, 0, 1];

    fn neighbour(state: NeighbourState) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.state = state;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet([192, 168, 1, 50].into())),
            NeighbourAttribute::LinkLayerAddress(HARDWARE.into()),
        ];
        message
    }

    #[test]
    fn only_a_neighbour_that_answered_has_a_hardware_address() {
        let (laptop, other) = ([192, 168, 1, 50].into(), [192, 168, 1, 51].into());
        assert_eq!(hardware_of(&neighbour(NeighbourState::Stale), laptop), Some(HARDWARE));
        assert_eq!(hardware_of(&neighbour(NeighbourState::Stale), other), None);
        assert_eq!(hardware_of(&neighbour(NeighbourState::Failed), laptop), None);
        assert_eq!(hardware_of(&neighbour(NeighbourState::Incomplete), laptop), None);
    }
}
