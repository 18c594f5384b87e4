//! The step from a connection to the TUN device: packets whose addresses do not belong there are dropped.

use super::{
    counters::{Counters, DropReason},
    device::PacketSink,
};
use crate::wire::packet::{Addresses, Packet};

/// What becomes of a packet that came over a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It goes to the device.
    Deliver,
    /// It went elsewhere already.
    Taken,
    Refuse(DropReason),
}

/// Delivers the packets of `batch` that `judge` lets pass, and counts what was received and what was dropped. The
/// packets that went to the device stay in `batch`.
pub(crate) fn deliver(
    batch: &mut Vec<Packet>,
    device: &dyn PacketSink,
    counters: &Counters,
    mut judge: impl FnMut(Addresses, &Packet) -> Verdict,
) {
    let (mut packets, mut bytes) = (0, 0);
    batch.retain(|packet| {
        let verdict = match packet.addresses() {
            Some(addresses) => judge(addresses, packet),
            None => Verdict::Refuse(DropReason::Malformed),
        };
        if let Verdict::Refuse(reason) = verdict {
            counters.dropped(reason, 1);
            return false;
        }
        packets += 1;
        bytes += packet.size() as u64;
        verdict == Verdict::Deliver
    });
    counters.received.add(packets, bytes);
    counters.dropped(DropReason::Device, device.send(batch));
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tokio::sync::mpsc;

    use super::*;
    use crate::wire::packet::tests::packet;

    fn from(source: u8) -> Packet {
        packet([10, 66, 0, source].into(), [10, 66, 0, 1].into(), 8).into()
    }

    #[test]
    fn each_packet_is_delivered_taken_or_counted_with_its_reason() {
        let (device, mut delivered) = mpsc::channel(8);
        let counters = Counters::default();
        let mut batch = vec![from(2), from(3), from(4), vec![0x45, 0].into()];
        deliver(&mut batch, &device, &counters, |addresses, _| match addresses.source {
            IpAddr::V4(source) if source.octets()[3] == 2 => Verdict::Deliver,
            IpAddr::V4(source) if source.octets()[3] == 3 => Verdict::Taken,
            _ => Verdict::Refuse(DropReason::ForeignSource),
        });
        assert_eq!(delivered.try_recv().unwrap(), from(2));
        assert!(delivered.try_recv().is_err(), "one packet is for the device");
        let counted = counters.snapshot();
        assert_eq!(counted.received_packets, 2, "what was taken was received, too");
        assert_eq!(counted.received_bytes, 2 * from(2).size() as u64);
        assert_eq!(
            counted.dropped,
            [(DropReason::Malformed, 1), (DropReason::ForeignSource, 1)].into()
        );
    }

    #[test]
    fn a_packet_that_the_device_does_not_take_is_counted() {
        let (device, _delivered) = mpsc::channel(1);
        let counters = Counters::default();
        deliver(&mut vec![from(2), from(3)], &device, &counters, |_, _| Verdict::Deliver);
        assert_eq!(counters.snapshot().dropped, [(DropReason::Device, 1)].into());
    }
}
