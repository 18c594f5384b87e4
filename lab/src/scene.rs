//! The scene in which roamd is shown and tested: a laptop with two ways to a server.
//!
//! ```text
//!                    5 ms
//!           wifi0 ◀────────▶ wifi ◀──▶┐
//!  client                             internet ◀──▶ eth0 server
//!           lte0  ◀────────▶ lte  ◀──▶┘
//!                   25 ms
//!
//!  client   wifi0  10.77.1.2/24   fd77:1::2/64    default route via .1, metric 100
//!           lte0   10.77.2.2/24   fd77:2::2/64    default route via .1, metric 200
//!  wifi     client 10.77.1.1/24   fd77:1::1/64    internet 10.77.11.2/24  fd77:11::2/64
//!  lte      client 10.77.2.1/24   fd77:2::1/64    internet 10.77.12.2/24  fd77:12::2/64
//!  internet wifi   10.77.11.1/24  fd77:11::1/64   lte      10.77.12.1/24  fd77:12::1/64
//!           server 10.77.9.1/24   fd77:9::1/64
//!  server   eth0   10.77.9.2/24   fd77:9::2/64    default route via .1
//! ```
//!
//! `wifi` and `lte` are the routers of the two access networks. They forward without translating
//! addresses: `internet` knows the way back to both networks.

mod access;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use access::Access;

use super::{
    emulator::{Emulator, LinkShape, Side},
    error::Result,
    link::veth,
    namespace::Namespace,
};

/// The server's IPv4 address.
pub const SERVER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 9, 2));
/// The server's IPv6 address.
pub const SERVER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 9, 0, 0, 0, 0, 0, 2));

/// The networks of the scene, by the number that stands in their addresses.
const SERVER_NET: u8 = 9;

/// A client with two access networks, and a server on the other side of them. Independent of any
/// other scene.
#[derive(Debug)]
pub struct Scene {
    client: Namespace,
    routers: [Namespace; 2],
    internet: Namespace,
    server: Namespace,
    air: [Emulator; 2],
    has_v4: [bool; 2],
}

impl Scene {
    /// Builds it: both access networks connected, one way to the router 5 ms over wifi and 25 ms
    /// over lte, nothing lost.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`](super::Error::NotPermitted) without the privileges of root; see
    /// [`enter_user_namespace`](super::enter_user_namespace).
    pub fn new() -> Result<Self> {
        let client = Namespace::new("client")?;
        let internet = Namespace::new("internet")?;
        let server = Namespace::new("server")?;
        let routers = [Namespace::new("wifi")?, Namespace::new("lte")?];
        // What systemd's distributions set on a laptop.
        client.reverse_path_filter(2)?;
        for router in [&internet, &routers[0], &routers[1]] {
            router.forward(true)?;
        }
        join((&internet, "server"), (&server, "eth0"), SERVER_NET)?;
        add_default_route(&server, "eth0", SERVER_NET, 0)?;
        let air = [
            build_access(Access::Wifi, &client, &routers[0], &internet)?,
            build_access(Access::Lte, &client, &routers[1], &internet)?,
        ];
        let scene = Self { client, routers, internet, server, air, has_v4: [true; 2] };
        for access in Access::BOTH {
            scene.connect(access)?;
        }
        Ok(scene)
    }

    /// The namespace of the roaming host, with the links `wifi0` and `lte0`.
    #[must_use]
    pub fn client(&self) -> &Namespace {
        &self.client
    }

    /// The namespace of an access network's router, with the links `client` and `internet`.
    #[must_use]
    pub fn router(&self, access: Access) -> &Namespace {
        &self.routers[access as usize]
    }

    /// The namespace between the routers and the server, with the links `wifi`, `lte` and
    /// `server`.
    #[must_use]
    pub fn internet(&self) -> &Namespace {
        &self.internet
    }

    /// The namespace of the server, with the link `eth0`.
    #[must_use]
    pub fn server(&self) -> &Namespace {
        &self.server
    }

    /// The emulated link between the client (left) and an access network's router (right): its
    /// delay, loss, rate and black hole.
    #[must_use]
    pub fn air(&self, access: Access) -> &Emulator {
        &self.air[access as usize]
    }

    /// Makes an access network one without IPv4, as many mobile ones are.
    ///
    /// # Errors
    ///
    /// When it is not connected.
    pub fn without_v4(&mut self, access: Access) -> Result<()> {
        self.has_v4[access as usize] = false;
        let address = format!("10.77.{}.2/24", access.net());
        self.client.delete_address(access.link(), &address)
    }

    /// Joins an access network as a host's network manager does: takes the link up and gives it
    /// its addresses and default routes. Nothing changes where that is so already.
    ///
    /// # Errors
    ///
    /// When the link has been deleted.
    pub fn connect(&self, access: Access) -> Result<()> {
        let (link, net) = (access.link(), access.net());
        self.client.set_up(link)?;
        self.air(access).settle()?;
        self.client.add_address(link, &format!("fd77:{net}::2/64"))?;
        if !self.has_v4[access as usize] {
            return self.client.add_route(
                "::/0",
                Some(&format!("fd77:{net}::1")),
                link,
                access.metric(),
            );
        }
        self.client.add_address(link, &format!("10.77.{net}.2/24"))?;
        add_default_route(&self.client, link, net, access.metric())
    }

    /// Leaves an access network as when the user switches it off: takes the link down and its
    /// addresses away; its routes go with them.
    ///
    /// # Errors
    ///
    /// When it is not connected.
    pub fn disconnect(&self, access: Access) -> Result<()> {
        self.client.set_down(access.link())?;
        // The kernel took the IPv6 address with the link.
        if !self.has_v4[access as usize] {
            return Ok(());
        }
        self.client.delete_address(access.link(), &format!("10.77.{}.2/24", access.net()))
    }

    /// Takes the carrier of an access network away or gives it back: the client's link loses its
    /// signal, its addresses and routes stay.
    ///
    /// # Errors
    ///
    /// When the emulator's end has been deleted.
    pub fn carrier(&self, access: Access, on: bool) -> Result<()> {
        self.air(access).plug(Side::Left, on)
    }
}

/// Makes one access network, all but the client's addresses.
fn build_access(
    access: Access,
    client: &Namespace,
    router: &Namespace,
    internet: &Namespace,
) -> Result<Emulator> {
    let shape = LinkShape::delayed(access.delay());
    let air = Emulator::connect((client, access.link()), (router, "client"), shape)?;
    let (net, backhaul) = (access.net(), access.net() + 10);
    router.add_address("client", &format!("10.77.{net}.1/24"))?;
    router.add_address("client", &format!("fd77:{net}::1/64"))?;
    let upstream = router.label();
    join((internet, upstream), (router, "internet"), backhaul)?;
    add_default_route(router, "internet", backhaul, 0)?;
    let v4_router = format!("10.77.{backhaul}.2");
    internet.add_route(&format!("10.77.{net}.0/24"), Some(&v4_router), upstream, 0)?;
    let v6_router = format!("fd77:{backhaul}::2");
    internet.add_route(&format!("fd77:{net}::/64"), Some(&v6_router), upstream, 0)?;
    Ok(air)
}

/// Joins two namespaces with a network of its own: `a` is its .1, `b` its .2.
fn join(a: (&Namespace, &str), b: (&Namespace, &str), net: u8) -> Result<()> {
    veth(a.0, a.1, b.0, b.1)?;
    for ((namespace, link), host) in [(a, 1), (b, 2)] {
        namespace.add_address(link, &format!("10.77.{net}.{host}/24"))?;
        namespace.add_address(link, &format!("fd77:{net}::{host}/64"))?;
    }
    Ok(())
}

fn add_default_route(namespace: &Namespace, link: &str, net: u8, metric: u32) -> Result<()> {
    namespace.add_route("0.0.0.0/0", Some(&format!("10.77.{net}.1")), link, metric)?;
    namespace.add_route("::/0", Some(&format!("fd77:{net}::1")), link, metric)
}
