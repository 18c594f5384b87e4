//! The two access networks of the scene.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// A network through which the client reaches the internet. The preferred one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// 5 ms to the router, metric 100.
    Wifi,
    /// 25 ms to the router, metric 200.
    Lte,
}

impl Access {
    /// Both of them.
    pub const BOTH: [Self; 2] = [Self::Wifi, Self::Lte];

    /// The client's link into it.
    #[must_use]
    pub fn link(self) -> &'static str {
        match self {
            Self::Wifi => "wifi0",
            Self::Lte => "lte0",
        }
    }

    /// The client's IPv4 address in it.
    #[must_use]
    pub fn client_v4(self) -> IpAddr {
        Ipv4Addr::new(10, 77, self.net(), 2).into()
    }

    /// The client's IPv6 address in it.
    #[must_use]
    pub fn client_v6(self) -> IpAddr {
        Ipv6Addr::new(0xfd77, self.net().into(), 0, 0, 0, 0, 0, 2).into()
    }

    /// The metric of the client's default routes through it.
    #[must_use]
    pub fn metric(self) -> u32 {
        match self {
            Self::Wifi => 100,
            Self::Lte => 200,
        }
    }

    /// How long a packet takes between the client and its router.
    pub(super) fn delay(self) -> Duration {
        match self {
            Self::Wifi => Duration::from_millis(5),
            Self::Lte => Duration::from_millis(25),
        }
    }

    /// The number that stands in its addresses.
    pub(super) fn net(self) -> u8 {
        match self {
            Self::Wifi => 1,
            Self::Lte => 2,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Wifi => "wifi",
            Self::Lte => "lte",
        })
    }
}
