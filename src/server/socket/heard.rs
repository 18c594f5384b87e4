//! Where a client was heard, and where answers to it leave from. Pure: it is handed the time.
//!
//! Anybody can forge a datagram in a client's name to another address or port of this server. The address of the
//! connection's first datagram is therefore preferred while the client is heard there, and after it the
//! address and port that are known for the longest time.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// Local addresses and sockets that are kept for each client.
const ADDRESSES: usize = 4;
/// How long an address counts after the client was heard there: longer than the default keep-alive
/// interval.
const LATELY: Duration = Duration::from_secs(15);

/// Where a datagram arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Local {
    /// The socket's place among those of the server.
    pub(super) place: usize,
    /// This host's address, if the kernel tells.
    pub(super) ip: Option<IpAddr>,
}

/// Where a client was heard, with the last time, in the order in which the places became known.
#[derive(Debug, Default)]
pub(super) struct Heard([Option<(Local, Instant)>; ADDRESSES]);

impl Heard {
    pub(super) fn note(&mut self, local: Local, now: Instant) {
        let known = self.0.iter_mut().flatten().find(|(known, _)| *known == local);
        if let Some((_, at)) = known {
            *at = now;
            return;
        }
        // The place that was not heard for the longest time is removed.
        let oldest = (0..ADDRESSES).min_by_key(|&place| self.0[place].map(|(_, at)| at));
        self.0[oldest.unwrap_or_default()..].rotate_left(1);
        self.0[ADDRESSES - 1] = Some((local, now));
    }

    /// Where answers on a connection that began at the address `first` leave from.
    pub(super) fn answer_from(&self, first: Option<IpAddr>, now: Instant) -> Option<Local> {
        let is_late = |at: Instant| now.saturating_duration_since(at) < LATELY;
        let mut lately = self.0.iter().flatten().filter(|(_, at)| is_late(*at));
        let senior = lately.clone().next();
        lately
            .find(|(local, _)| local.ip == first)
            .or(senior)
            .or_else(|| self.0.iter().flatten().max_by_key(|(_, at)| *at))
            .map(|(local, _)| *local)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn at(local: &str) -> Local {
        Local { place: 0, ip: Some(local.parse().unwrap()) }
    }

    const FIRST: &str = "2001:db8::1";
    const SECOND: &str = "2001:db8::2";
    const FORGED: &str = "2001:db8::3";

    /// The address from which a client is answered that was heard at these addresses, so many seconds
    /// before; its connection began at the first one.
    fn answered_from(heard: &[(&str, u64)]) -> IpAddr {
        let start = Instant::now();
        let mut clients = Heard::default();
        for (local, before) in heard {
            let now = start + Duration::from_secs(100 - before);
            clients.note(at(local), now);
        }
        let now = start + Duration::from_secs(100);
        clients.answer_from(Some(FIRST.parse().unwrap()), now).unwrap().ip.unwrap()
    }

    #[test]
    fn a_client_that_moved_to_another_address_is_answered_from_there() {
        let moved = [(FIRST, 40), (SECOND, 9), (SECOND, 8)];
        assert_eq!(answered_from(&moved), SECOND.parse::<IpAddr>().unwrap());
        assert_eq!(
            answered_from(&[(SECOND, 30)]),
            SECOND.parse::<IpAddr>().unwrap(),
            "the only one"
        );
    }

    #[test]
    fn forged_datagrams_do_not_redirect_answers_while_the_client_is_heard() {
        let idle = [(FIRST, 10), (FORGED, 9), (FORGED, 0)];
        assert_eq!(answered_from(&idle), FIRST.parse::<IpAddr>().unwrap());
        let moved = [(FIRST, 40), (SECOND, 20), (FORGED, 19), (SECOND, 10), (FORGED, 0)];
        assert_eq!(answered_from(&moved), SECOND.parse::<IpAddr>().unwrap());
        let came_back = [(FIRST, 60), (FORGED, 30), (FORGED, 10), (FIRST, 9), (FORGED, 0)];
        assert_eq!(answered_from(&came_back), FIRST.parse::<IpAddr>().unwrap());
    }

    #[test]
    fn forgers_use_no_memory_and_evict_no_address_in_use() {
        let start = Instant::now();
        let mut heard = Heard::default();
        for second in 0..100 {
            let now = start + Duration::from_secs(second);
            heard.note(at(FIRST), now);
            for forged in 10..13_u16 {
                let forged = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, second as u16, forged);
                heard.note(Local { place: 0, ip: Some(forged.into()) }, now);
            }
            assert_eq!(heard.answer_from(None, now), Some(at(FIRST)));
        }
    }
}
