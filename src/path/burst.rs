//! Joins transmits of several calls by quinn into one send of the kernel.
//!
//! quinn hands over ten datagrams at most in one call; the kernel takes up to 64 KB (UDP GSO, udp(7)). Each
//! send costs a walk through the network stack and often a wake-up of the receiver. Full transmits are
//! therefore kept until quinn's tasks have run again. They are sent when 64 KB are reached, when a transmit
//! comes that is not full (quinn has no more to send), or when no further transmit came. A lone packet is
//! never kept.

use std::net::{IpAddr, SocketAddr};

use quinn::udp::{EcnCodepoint, Transmit};

/// Datagrams in one call of quinn (`MAX_TRANSMIT_SEGMENTS` of quinn's `connection.rs`). A transmit with fewer
/// datagrams means that quinn has no more to send now.
const FULL: usize = 10;
/// Maximum payload of one send: one UDP datagram over IPv4, which the kernel cuts into segments.
const ROOM: usize = 65_507;
/// Polls without a new transmit after which the burst is sent: all of quinn's tasks have run by
/// then.
const LOOKS: u8 = 3;

/// Full transmits that wait to be sent as one.
#[derive(Debug, Default)]
pub(super) struct Burst {
    bytes: Vec<u8>,
    kept: Option<Kept>,
    /// It ends with a shorter datagram, so nothing can be appended.
    ended: bool,
    /// Polls since the last transmit was added.
    looks: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    segment_size: usize,
    src_ip: Option<IpAddr>,
}

/// What to do with a transmit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// It was added; nothing is to be sent yet.
    Keep,
    /// It was added; all is to be sent.
    SendAll,
    /// It does not fit the kept transmits, which must be sent first.
    SendKeptFirst,
    /// It cannot be joined; send it alone.
    SendAlone,
}

impl Burst {
    /// Decides on a transmit; at most `segments` datagrams go in one send.
    pub(super) fn offer(&mut self, transmit: &Transmit, segments: usize) -> Advice {
        let Transmit { destination, ecn, contents, segment_size, src_ip } = *transmit;
        let size = segment_size.unwrap_or(contents.len());
        let is_full = contents.len() == FULL * size && 2 * FULL <= segments;
        let new = Kept { destination, ecn, segment_size: size, src_ip };
        if let Some(kept) = self.kept {
            let room = (kept.segment_size * segments).min(ROOM);
            // A single datagram that is shorter can be the last.
            let is_last = size < kept.segment_size && contents.len() == size;
            let is_alike = Kept { segment_size: kept.segment_size, ..new } == kept;
            if self.ended
                || !is_alike
                || !(is_last || size == kept.segment_size)
                || self.bytes.len() + contents.len() > room
            {
                return Advice::SendKeptFirst;
            }
        } else if !is_full {
            return Advice::SendAlone;
        }
        self.kept.get_or_insert(new);
        self.bytes.extend_from_slice(contents);
        self.looks = 0;
        self.ended = !is_full;
        let is_room_left = self.bytes.len() + contents.len() <= (size * segments).min(ROOM);
        if is_full && is_room_left { Advice::Keep } else { Advice::SendAll }
    }

    /// All kept transmits as one.
    pub(super) fn transmit(&self) -> Option<Transmit<'_>> {
        let Kept { destination, ecn, segment_size, src_ip } = self.kept?;
        let segment_size = Some(segment_size);
        Some(Transmit { destination, ecn, contents: &self.bytes, segment_size, src_ip })
    }

    /// Clears the burst.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        (self.kept, self.ended, self.looks) = (None, false, 0);
    }

    /// Counts a poll; returns whether the burst should be sent.
    pub(super) fn has_settled(&mut self) -> bool {
        self.looks = self.looks.saturating_add(1);
        self.looks >= LOOKS
    }

    /// Whether the burst is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_none()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn transmit(contents: &[u8], size: usize, port: u16) -> Transmit<'_> {
        Transmit {
            destination: ([127, 0, 0, 1], port).into(),
            ecn: None,
            contents,
            segment_size: (contents.len() > size).then_some(size),
            src_ip: None,
        }
    }

    /// Sends as the socket does; gives the datagrams of each send.
    fn send(burst: &mut Burst, transmit: &Transmit, sends: &mut Vec<Vec<(u16, Vec<u8>)>>) {
        let mut out = |transmit: &Transmit| {
            let size = transmit.segment_size.unwrap_or(transmit.contents.len());
            let datagrams = transmit.contents.chunks(size);
            sends.push(
                datagrams.map(|bytes| (transmit.destination.port(), bytes.to_vec())).collect(),
            );
        };
        loop {
            match burst.offer(transmit, 64) {
                Advice::Keep => return,
                Advice::SendAlone => return out(transmit),
                Advice::SendAll => {
                    out(&burst.transmit().unwrap());
                    return burst.clear();
                }
                Advice::SendKeptFirst => {
                    out(&burst.transmit().unwrap());
                    burst.clear();
                }
            }
        }
    }

    #[test]
    fn full_transmits_are_sent_as_one_burst() {
        let (mut burst, mut sends) = (Burst::default(), Vec::new());
        let contents = vec![1; 14_520];
        for _ in 0..8 {
            send(&mut burst, &transmit(&contents, 1452, 1), &mut sends);
        }
        assert_eq!(sends.iter().map(Vec::len).collect::<Vec<_>>(), [40, 40]);
        assert!(burst.is_empty());
    }

    #[test]
    fn a_transmit_that_is_not_full_is_never_delayed() {
        let (mut burst, mut sends) = (Burst::default(), Vec::new());
        send(&mut burst, &transmit(&[1; 100], 100, 1), &mut sends);
        assert_eq!(sends.len(), 1);
        send(&mut burst, &transmit(&[1; 1000], 100, 1), &mut sends);
        assert_eq!(sends.len(), 1);
        send(&mut burst, &transmit(&[1; 50], 50, 1), &mut sends);
        assert_eq!((sends.len(), sends[1].len(), burst.is_empty()), (2, 11, true));
        send(&mut burst, &transmit(&[1; 1000], 100, 1), &mut sends);
        assert_eq!((0..3).map(|_| burst.has_settled()).collect::<Vec<_>>(), [false, false, true]);
    }

    proptest! {
        #[test]
        fn every_datagram_leaves_as_it_came_and_in_order(
            transmits in proptest::collection::vec((1usize..=10, 900usize..903, 0usize..900, 1u16..3), 1..40),
        ) {
            let (mut burst, mut sends) = (Burst::default(), Vec::new());
            let mut expected = Vec::new();
            for (number, (count, size, cut, port)) in transmits.into_iter().enumerate() {
                let contents = vec![number as u8; count * size - cut];
                send(&mut burst, &transmit(&contents, size, port), &mut sends);
                expected.extend(contents.chunks(size).map(|bytes| (port, bytes.to_vec())));
            }
            if let Some(transmit) = burst.transmit() {
                let datagrams = transmit.contents.chunks(transmit.segment_size.unwrap());
                sends.push(datagrams.map(|bytes| (transmit.destination.port(), bytes.to_vec())).collect());
            }
            prop_assert!(sends.iter().all(|send| send.len() <= 64));
            prop_assert_eq!(sends.concat(), expected);
        }
    }
}
