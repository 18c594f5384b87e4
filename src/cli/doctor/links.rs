//! This host's links, as the kernel lists them (rtnetlink(7)): sysfs may show those of another namespace.

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use crate::link::netlink::Netlink;

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) index: u32,
    /// In bytes.
    pub(super) mtu: u32,
    /// Whether it is a TUN or TAP device.
    pub(super) is_tun: bool,
}

/// All links.
pub(super) async fn all(netlink: &Netlink) -> Result<Vec<Link>, rtnetlink::Error> {
    let links = netlink.dump(|handle| handle.link().get().execute()).await?;
    Ok(links.iter().map(link).collect())
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link { name: String::new(), index: message.header.index, mtu: 0, is_tun: false };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                link.is_tun = infos.contains(&LinkInfo::Kind(InfoKind::Tun));
            }
            _ => {}
        }
    }
    link
}
