//! Whether a client is in one network with this server, with nothing between them but a link.
//!
//! A client at home lets its traffic go outside of the tunnel, so that whoever makes it believe that it is there reads that
//! traffic. To forward packets between a café and this server is easy, with or without a change of addresses. So the server
//! says whether both see the same:
//!
//! - the client's address, as the handshake came from there, and all packets still do: nobody translates addresses;
//! - the hardware address that this host's kernel has learned for it: no router, proxy or NAT has that address;
//! - the address of the server at which the client arrived.
//!
//! The question and the answer are those of a connection on which both have proved their keys.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tracing::debug;

use crate::{
    clock,
    link::neighbour::{Hardware, Neighbours},
    wire::place::PlaceQuestion,
};

/// From one look at the kernel's neighbours to the next, at least, for one connection.
const FRESH: Duration = Duration::from_millis(500);

/// What this server sees of the client on one connection.
pub(super) struct Vicinity<'a> {
    neighbours: Option<&'a dyn Neighbours>,
    /// The address with which the handshake was made. A later one may not be validated yet, and is a forgery then.
    remote: SocketAddr,
    /// The hardware addresses that the client's address has, and when the kernel was asked.
    hardware: Option<(Instant, Vec<Hardware>)>,
}

impl<'a> Vicinity<'a> {
    /// For a connection whose handshake came from `remote`; without `neighbours` nobody is near.
    pub(super) fn new(neighbours: Option<&'a dyn Neighbours>, remote: SocketAddr) -> Self {
        Self { neighbours, remote, hardware: None }
    }

    /// Whether the client sees itself and the server where this host sees them. `seen` gives the client's address at present,
    /// and that of this host at which its connection began.
    pub(super) async fn has(
        &mut self,
        place: &PlaceQuestion,
        seen: impl Fn() -> (SocketAddr, Option<IpAddr>),
    ) -> bool {
        let Some(neighbours) = self.neighbours else { return false };
        let there = (self.remote, Some(place.server));
        if self.remote.ip() != place.client || seen() != there {
            return false;
        }
        let now = clock::now();
        self.hardware.take_if(|(asked, _)| now >= *asked + FRESH);
        let (_, hardware) = match &mut self.hardware {
            Some(known) => known,
            unknown @ None => unknown.insert((now, neighbours.hardware(place.client).await)),
        };
        let is_its_own = !hardware.is_empty() && hardware.iter().all(|it| *it == place.hardware);
        // It may have moved meanwhile.
        let is_near = is_its_own && seen() == there;
        debug!(client = %place.client, server = %place.server, is_near, "is a client at home?");
        is_near
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;

    use super::*;

    const LAPTOP: [u8; 4] = [192, 168, 1, 50];
    const SERVER: [u8; 4] = [192, 168, 1, 10];
    const HARDWARE: Hardware = [2, 0, 0, 0, 0, 1];

    /// The laptop has this hardware address.
    struct Laptop(Hardware);

    impl Neighbours for Laptop {
        fn hardware(&self, address: IpAddr) -> BoxFuture<'_, Vec<Hardware>> {
            let found = (address == IpAddr::from(LAPTOP)).then_some(self.0);
            Box::pin(std::future::ready(found.into_iter().collect()))
        }
    }

    /// Whether a laptop at home is near whose handshake came from `remote`, which is at `now` by now, with a connection to
    /// `local` and that hardware address.
    async fn is_near(remote: [u8; 4], now: [u8; 4], local: [u8; 4], hardware: Hardware) -> bool {
        let (laptop, port) = (Laptop(hardware), 1000);
        let mut vicinity = Vicinity::new(Some(&laptop), (remote, port).into());
        let (client, server) = (LAPTOP.into(), SERVER.into());
        let place = PlaceQuestion { asked: 1, process: 2, hardware: HARDWARE, client, server };
        vicinity.has(&place, || ((now, port).into(), Some(local.into()))).await
    }

    #[tokio::test]
    async fn a_client_is_near_only_where_both_see_the_same() {
        let elsewhere = [198, 51, 100, 9];
        assert!(is_near(LAPTOP, LAPTOP, SERVER, HARDWARE).await);
        assert!(!is_near(elsewhere, elsewhere, SERVER, HARDWARE).await, "a NAT is between");
        assert!(!is_near(elsewhere, LAPTOP, SERVER, HARDWARE).await, "it claims to have moved");
        assert!(!is_near(LAPTOP, elsewhere, SERVER, HARDWARE).await, "it has moved");
        assert!(!is_near(LAPTOP, LAPTOP, elsewhere, HARDWARE).await, "at another address");
        assert!(!is_near(LAPTOP, LAPTOP, SERVER, [9; 6]).await, "another host has its address");
    }

    #[tokio::test]
    async fn without_neighbours_nobody_is_near() {
        let remote = (LAPTOP, 1000).into();
        let mut vicinity = Vicinity::new(None, remote);
        let (client, server) = (LAPTOP.into(), SERVER.into());
        let place = PlaceQuestion { asked: 1, process: 2, hardware: HARDWARE, client, server };
        assert!(!vicinity.has(&place, || (remote, Some(server))).await);
    }
}
