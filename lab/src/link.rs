//! Links of a namespace: made, taken up and down.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags};
use nix::net::if_::if_nametoindex;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::{
    error::{Error, Result},
    namespace::Namespace,
};

/// Timeout of the kernel's work in the background. A change of carrier takes 1 s where many links change at once.
const SETTLE_DEADLINE: Duration = Duration::from_secs(5);

/// How often to look whether it is done.
const POLL: Duration = Duration::from_millis(1);

/// Makes a pair of virtual Ethernet links, `a_name` in `a` and `b_name` in `b`, both up. A frame
/// sent on one arrives on the other.
///
/// # Errors
///
/// When one of the names is taken in its namespace.
pub fn veth(a: &Namespace, a_name: &str, b: &Namespace, b_name: &str) -> Result<()> {
    let action = format!("make link {a_name}, with {b_name} in namespace {}", b.label());
    let far: OwnedFd = b
        .descriptor()
        .try_clone_to_owned()
        .map_err(|source| Error::refused(b.label(), "be named to the kernel", source))?;
    let (near_name, far_name) = (a_name.to_owned(), b_name.to_owned());
    a.netlink(action, async move |netlink| {
        let peer = LinkMessageBuilder::<LinkUnspec>::default()
            .name(far_name.clone())
            .append_extra_attribute(LinkAttribute::NetNsFd(far.as_raw_fd()))
            .build();
        let pair = LinkVeth::new(&near_name, &far_name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        netlink.link().add(pair).execute().await
    })?;
    a.set_up(a_name)?;
    b.set_up(b_name)?;
    a.settle(a_name)
}

impl Namespace {
    /// The interface index of `link`.
    ///
    /// # Errors
    ///
    /// When there is no such link.
    pub fn ifindex(&self, link: &str) -> Result<u32> {
        let name = link.to_owned();
        self.inside(format!("find link {link}"), move |_| Ok(if_nametoindex(name.as_str())?))
    }

    /// Takes `link` up.
    ///
    /// # Errors
    ///
    /// When there is no such link.
    pub fn set_up(&self, link: &str) -> Result<()> {
        self.change(format!("take {link} up"), LinkUnspec::new_with_name(link).up())?;
        self.settle(link)
    }

    /// Takes `link` down, as its administrator would: the kernel deletes its routes and its IPv6
    /// addresses, and the link at the other end loses its carrier.
    ///
    /// # Errors
    ///
    /// When there is no such link.
    pub fn set_down(&self, link: &str) -> Result<()> {
        self.change(format!("take {link} down"), LinkUnspec::new_with_name(link).down())?;
        self.settle(link)
    }

    /// Sets the MTU of `link` in bytes.
    ///
    /// # Errors
    ///
    /// When there is no such link or the kernel does not take the value.
    pub fn set_mtu(&self, link: &str, mtu: u32) -> Result<()> {
        self.change(format!("set the MTU of {link}"), LinkUnspec::new_with_name(link).mtu(mtu))
    }

    /// Deletes `link`; the other end of a pair goes with it.
    ///
    /// # Errors
    ///
    /// When there is no such link.
    pub fn delete_link(&self, link: &str) -> Result<()> {
        let index = self.ifindex(link)?;
        self.netlink(format!("delete link {link}"), async move |netlink| {
            netlink.link().del(index).execute().await
        })
    }

    /// Waits until the kernel has followed the carrier of `link`. It does so in the background, and
    /// until then a link with a carrier drops all it is to send.
    ///
    /// # Errors
    ///
    /// When there is no such link, or the kernel takes longer than five seconds.
    pub fn settle(&self, link: &str) -> Result<()> {
        self.wait_until(format!("settle link {link}"), || {
            let flags = self.link_flags(link)?;
            // netdevice(7): LOWER_UP is the carrier itself, RUNNING the operational state.
            Ok(flags.contains(LinkFlags::LowerUp) == flags.contains(LinkFlags::Running))
        })
    }

    /// Polls until the condition holds; `action` names it in the error of a timeout.
    pub(super) fn wait_until(
        &self,
        action: String,
        mut is_so: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + SETTLE_DEADLINE;
        while !is_so()? {
            if Instant::now() > deadline {
                return Err(Error::refused(self.label(), action, io::ErrorKind::TimedOut));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    pub(super) fn link_flags(&self, link: &str) -> Result<LinkFlags> {
        let name = link.to_owned();
        self.netlink(format!("look at link {link}"), async move |netlink| {
            let mut answers = Box::pin(netlink.link().get().match_name(name).execute());
            let link = answers.try_next().await?.ok_or(rtnetlink::Error::RequestFailed)?;
            Ok(link.header.flags)
        })
    }

    fn change(&self, action: String, message: LinkMessageBuilder<LinkUnspec>) -> Result<()> {
        self.netlink(action, async move |netlink| {
            netlink.link().change(message.build()).execute().await
        })
    }
}
