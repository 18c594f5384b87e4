//! The two pumps of a connection: queue to datagrams, and datagrams to packets.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use quinn::{Connection, ConnectionError, SendDatagramError};
use tokio::{task, time};

use super::{
    counters::{Counters, DropReason},
    device::BATCH,
    queue::Queue,
};
use crate::{
    quic::SEND_BUFFER,
    wire::{
        datagram::Datagram,
        fragment::{Fragmenter, Joined, Joiner},
        packet::Packet,
    },
};

/// How long data that was given to quinn may take to leave.
const AHEAD: Duration = Duration::from_millis(4);
/// Bytes that quinn may hold in any case: a few packets.
const LEAST_AHEAD: usize = 6 * 1024;
/// The pause between two looks at quinn's buffer: the resolution of timers.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Maximum of packets that are delivered together: several super-packets of 64 KB.
const DELIVERED: usize = 256;

/// Sends the packets of the queue until the connection ends.
///
/// A packet that is larger than the path's current limit is sent in fragments. `unchecked` says
/// that the peer accepts packets whose checksum it must complete.
pub(crate) async fn uplink(
    connection: &Connection,
    queue: &Queue,
    counters: &Counters,
    unchecked: bool,
) -> ConnectionError {
    let mut batch = Vec::with_capacity(BATCH);
    let mut fragmenter = Fragmenter::default();
    let mut ahead = 0.0;
    loop {
        queue.ready().await;
        let room = room(connection, queue, &mut ahead).await;
        counters.dropped_by_queue(queue.pop(&mut batch, BATCH, room));
        let (mut packets, mut bytes) = (0, 0);
        let max = connection.max_datagram_size().unwrap_or_default();
        for at in 0..batch.len() {
            let packet = &batch[at];
            let datagram = if unchecked || !packet.is_unchecked() {
                packet.datagram().clone()
            } else if let Some(checked) = packet.checked() {
                checked.datagram().clone()
            } else {
                counters.dropped(DropReason::Malformed, 1);
                continue;
            };
            match send(connection, datagram, max, &mut fragmenter, counters).await {
                Ok(true) => {
                    packets += 1;
                    bytes += packet.size() as u64;
                }
                Ok(false) => counters.dropped(DropReason::TooLarge, 1),
                Err(error) => {
                    counters.sent.add(packets, bytes);
                    queue.put_back_all(batch.split_off(at));
                    return error;
                }
            }
        }
        counters.sent.add(packets, bytes);
        batch.clear();
    }
}

/// Waits until quinn has little left to send; returns the number of bytes to give it now.
///
/// quinn sends in the order of its buffer, so the buffer holds at most one window of data: a keystroke must
/// wait in our queue, which can reorder. Where a window is larger than quinn's buffer, quinn's own limit
/// applies. `last` is the window at the previous call: a drop to less than half means that the connection has
/// migrated.
async fn room(connection: &Connection, queue: &Queue, last: &mut f64) -> usize {
    let mut before = None;
    loop {
        let path = connection.stats().path;
        let ahead = path.cwnd as f64 * AHEAD.as_secs_f64() / path.rtt.as_secs_f64().max(1e-6);
        if std::mem::replace(last, ahead) > 2.0 * ahead {
            queue.be_patient();
        }
        let ahead = (ahead as usize).max(LEAST_AHEAD);
        if ahead >= SEND_BUFFER {
            return SEND_BUFFER;
        }
        let given = SEND_BUFFER.saturating_sub(connection.datagram_send_buffer_space());
        if given < ahead {
            return ahead - given;
        }
        // While its window is open, quinn sends all that it has at its next turn, and must not run dry:
        // a window that is not filled does not grow.
        if before.replace(given).is_none_or(|before| given < before) {
            task::yield_now().await;
        } else {
            time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// Sends one packet, whole or in fragments; `false` if even fragments do not fit. `max` is the last known
/// datagram limit, in bytes.
async fn send(
    connection: &Connection,
    packet: Bytes,
    max: usize,
    fragmenter: &mut Fragmenter,
    counters: &Counters,
) -> Result<bool, ConnectionError> {
    if packet.len() <= max
        && let Some(sent) = send_datagram(connection, packet.clone()).await?
    {
        return Ok(sent);
    }
    let Some(max) = connection.max_datagram_size() else { return Ok(false) };
    let Some(pieces) = fragmenter.split(&packet, max) else { return Ok(false) };
    for piece in pieces {
        if send_datagram(connection, piece).await? != Some(true) {
            return Ok(false);
        }
    }
    counters.split.fetch_add(1, Relaxed);
    Ok(true)
}

/// `None` if the datagram is too large for the path; `false` if the peer takes no datagrams at all.
async fn send_datagram(
    connection: &Connection,
    datagram: Bytes,
) -> Result<Option<bool>, ConnectionError> {
    match connection.send_datagram_wait(datagram).await {
        Ok(()) => Ok(Some(true)),
        Err(SendDatagramError::TooLarge) => Ok(None),
        Err(SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled) => Ok(Some(false)),
        Err(SendDatagramError::ConnectionLost(error)) => Err(error),
    }
}

/// Hands received packets to `deliver`, in batches, until the connection ends.
pub(crate) async fn downlink(
    connection: &Connection,
    counters: &Counters,
    mut deliver: impl FnMut(&mut Vec<Packet>),
) -> ConnectionError {
    let mut batch = Vec::with_capacity(DELIVERED);
    let mut joiner = Joiner::default();
    loop {
        let mut next = match connection.read_datagram().await {
            Ok(datagram) => Some(datagram),
            Err(error) => return error,
        };
        while let Some(datagram) = next {
            match Datagram::decode(datagram) {
                Ok(Datagram::Packet(packet)) => batch.push(packet),
                Ok(Datagram::Fragment(fragment)) => match joiner.join(fragment) {
                    Joined::Packet(bytes) => match Datagram::decode(bytes) {
                        Ok(Datagram::Packet(packet)) => batch.push(packet),
                        Ok(_) | Err(_) => counters.dropped(DropReason::UnknownDatagram, 1),
                    },
                    Joined::Incomplete => {}
                    Joined::Duplicate => counters.dropped(DropReason::LostPiece, 1),
                },
                Ok(Datagram::Padding) => {}
                Err(_unknown) => counters.dropped(DropReason::UnknownDatagram, 1),
            }
            // An error shows again at the next read, after this batch is delivered.
            next = (batch.len() < DELIVERED)
                .then(|| connection.read_datagram().now_or_never()?.ok())
                .flatten();
        }
        counters.dropped(DropReason::LostPiece, joiner.take_abandoned());
        if !batch.is_empty() {
            deliver(&mut batch);
            batch.clear();
        }
    }
}
