//! The step from the TUN device to the queues.

use std::io;

use super::{
    counters::{Counters, DropReason},
    device::{BATCH, PacketSource},
};
use crate::wire::packet::Packet;

/// Hands the packets of `source` to `route` in batches, and returns when the device is gone. `route` leaves the
/// batch empty.
pub(crate) async fn run(
    mut source: impl PacketSource,
    counters: &Counters,
    mut route: impl FnMut(&mut Vec<Packet>),
) -> io::Error {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        match source.recv(&mut batch).await {
            Ok(malformed) => counters.dropped(DropReason::Malformed, malformed),
            Err(error) => return error,
        }
        route(&mut batch);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, io::ErrorKind};

    use super::*;

    /// A device that gives these batches, each with a number of malformed packets, and is gone then.
    struct Script(VecDeque<(Vec<Packet>, u64)>);

    impl PacketSource for Script {
        async fn recv(&mut self, batch: &mut Vec<Packet>) -> io::Result<u64> {
            let (packets, malformed) = self.0.pop_front().ok_or(ErrorKind::NotConnected)?;
            batch.extend(packets);
            Ok(malformed)
        }
    }

    #[tokio::test]
    async fn every_batch_is_routed_until_the_device_is_gone() {
        let packet = |byte: u8| Packet::from(vec![byte; 28]);
        let script = [(vec![packet(1), packet(2)], 0), (Vec::new(), 2), (vec![packet(3)], 1)];
        let (counters, mut routed) = (Counters::default(), Vec::new());
        let ended = run(Script(script.into()), &counters, |batch| {
            routed.push(batch.len());
            batch.clear();
        })
        .await;
        assert_eq!(ended.kind(), ErrorKind::NotConnected);
        assert_eq!(routed, [2, 0, 1]);
        assert_eq!(counters.snapshot().dropped, [(DropReason::Malformed, 3)].into());
    }
}
