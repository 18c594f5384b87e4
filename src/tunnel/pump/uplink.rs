//! From the queue to datagrams.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, SendDatagramError};
use tokio::{task, time};

use super::{
    Repair, Session,
    alarm::Alarm,
    moment,
    spacing::{Given, Spacing},
};
use crate::{
    clock,
    quic::{SEND_BUFFER, SMALLEST_UDP_PAYLOAD},
    tunnel::{
        counters::{Counters, DropReason},
        device::BATCH,
        queue::Queue,
        repair::{Moment, Question},
    },
    wire::{fragment::Fragmenter, numbered::Exchange, packet::Packet},
};

/// How long data that was given to quinn may take to leave.
const AHEAD: Duration = Duration::from_millis(4);
/// Bytes that quinn may hold in any case: a few packets.
const LEAST_AHEAD: usize = 6 * 1024;
/// Bytes of acknowledgements that may gather.
const MOST_GATHERED: usize = 8 * 1024;
/// The pause between two looks at quinn's buffer: the resolution of timers.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The same while the path is late.
const LOOK_WHILE_LATE: Duration = Duration::from_millis(20);

/// Sends the packets of the queue until the connection ends, and once more those that the other side misses.
///
/// A packet that is larger than the path's current limit is sent in fragments.
pub(crate) async fn uplink(
    connection: &Connection,
    queue: &Queue,
    counters: &Counters,
    session: &Session,
) -> ConnectionError {
    let mut uplink = Uplink {
        connection,
        queue,
        counters,
        session,
        fragmenter: Fragmenter::default(),
        alarm: Alarm::default(),
        ahead: 0.0,
        budget: 0,
        spacing: Spacing::default(),
    };
    let (mut batch, mut datagrams) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
    loop {
        uplink.ready().await;
        uplink.gather().await;
        let room = uplink.room().await;
        if session.is_retired() {
            continue;
        }
        counters.dropped_by_queue(match room {
            Room::For { packets, bytes } => queue.pop(&mut batch, packets, bytes),
            Room::ForCopies(count) => queue.pop_sparse(&mut batch, count.min(BATCH)),
        });
        if !session.unchecked {
            counters.dropped(DropReason::Malformed, complete(&mut batch));
        }
        match &session.repair {
            Some(repair) => {
                let moment = moment(connection);
                queue.set_round_trip(moment.rtt);
                let thinned = repair.thinning().thin(&mut batch, moment.now);
                repair.sender(moment).number(&batch, moment, &mut datagrams);
                if let Some(at) = thinned {
                    repair.thinning().copy_later(datagrams[at].clone(), moment.now);
                }
            }
            None => datagrams.extend(batch.iter().map(|packet| packet.datagram().clone())),
        }
        if let Some(repair) = &session.repair {
            uplink.copy(repair);
        }
        if let Err(error) = uplink.send_all(&mut batch, &mut datagrams).await {
            return error;
        }
    }
}

/// Completes all checksums; the number of packets in which that was impossible, which are dropped.
fn complete(batch: &mut Vec<Packet>) -> u64 {
    let before = batch.len();
    batch.retain_mut(|packet| packet.checked().map(|checked| *packet = checked).is_some());
    (before - batch.len()) as u64
}

/// What may leave the queue.
enum Room {
    /// So many packets, and so many bytes.
    For { packets: usize, bytes: usize },
    /// So many packets that do not wait for the path, which is late: small ones of flows that send little.
    ForCopies(usize),
}

struct Uplink<'a> {
    connection: &'a Connection,
    queue: &'a Queue,
    counters: &'a Counters,
    session: &'a Session,
    fragmenter: Fragmenter,
    alarm: Alarm,
    /// The window at the last look, as bytes that may be ahead.
    ahead: f64,
    /// Bytes that may be sent again before new packets have their turn.
    budget: usize,
    spacing: Spacing,
}

impl Uplink<'_> {
    /// Waits for packets in the queue. Meanwhile it sends what the other side misses, and tells of the last packet.
    async fn ready(&mut self) {
        let Some(repair) = &self.session.repair else {
            return self.session.supplied(self.queue).await;
        };
        loop {
            self.budget = usize::MAX;
            let kept = repair.standby.as_ref().and_then(|standby| standby.keep(clock::now()));
            let deadlines = [self.repeat(repair), self.copy(repair), kept];
            let deadline = deadlines.into_iter().flatten().min();
            tokio::select! {
                biased;
                () = repair.wanted.notified() => {}
                () = self.session.supplied(self.queue) => return,
                () = self.alarm.wait(deadline) => {}
            }
        }
    }

    /// Waits for more acknowledgements of what a repair has just released, unless there is more to send than those.
    async fn gather(&self) {
        let Some(repair) = &self.session.repair else { return };
        let until = repair.thinning().gathers_until(clock::now());
        if let Some(until) = until.filter(|_| self.queue.bytes() < MOST_GATHERED) {
            time::sleep_until(until.into()).await;
        }
    }

    /// Sends once more what is due, while quinn has little left to send: a keystroke would wait behind the rest.
    /// Returns when there is more to do.
    fn repeat(&mut self, repair: &Repair) -> Option<Instant> {
        let moment = moment(self.connection);
        let asked = self.ask(repair, moment);
        let mut sender = repair.sender(moment);
        if asked.is_some_and(|question| question.is_first) {
            sender.moved(moment);
        }
        let mut repeated = 0;
        // Twice what new packets may be ahead: they would leave no room otherwise.
        let (most, mut left) = if sender.is_wanted() {
            (2 * ahead(self.connection), self.spaced(moment.now).unwrap_or(usize::MAX))
        } else {
            (0, 0)
        };
        let all_sent = loop {
            if !sender.is_wanted() {
                break true;
            }
            if left == 0 {
                break false;
            }
            let room = most.min(SEND_BUFFER).saturating_sub(given(self.connection));
            let Some(datagram) = sender.repeat(room.min(self.budget), moment.now) else {
                break !sender.is_wanted();
            };
            self.budget -= datagram.len();
            self.send_now(datagram);
            repeated += 1;
            left -= 1;
        };
        if let Some(tail) = sender.tail(moment)
            && tail.len() <= self.connection.datagram_send_buffer_space()
        {
            if let Some(standby) = repair.late_standby(moment.now) {
                standby.send(&tail, moment.now);
            }
            self.send_now(tail);
        }
        if repeated > 0 {
            self.counters.repeated(repeated);
            self.queue.note_repair();
        }
        self.counters.resumed(sender.take_resumed());
        let next = if all_sent { sender.next_deadline() } else { Some(moment.now + LOOK_AGAIN) };
        // The downlink locks them in the other order.
        drop(sender);
        let mut thinning = repair.thinning();
        if let Some(copy) = thinning.copy(moment.now)
            && copy.len() <= self.connection.datagram_send_buffer_space()
        {
            self.send_now(copy);
        }
        let exchange = repair.exchanges().next_deadline().filter(|_| all_sent);
        [next, thinning.next_deadline(), exchange].into_iter().flatten().min()
    }

    /// Sends small packets a second time, over the standby, while the path is late. Returns when to look again.
    fn copy(&self, repair: &Repair) -> Option<Instant> {
        let moment = moment(self.connection);
        let late_at = repair.congestion.late_at();
        if let Some(standby) = repair.late_standby(moment.now) {
            let send = |datagram: &Bytes| standby.send(datagram, moment.now);
            self.counters.copied(repair.sender(moment).copy(moment, send));
        }
        match late_at? {
            at if at > moment.now => Some(at),
            // The end of a silence shows only to who looks.
            _ => (!repair.sender(moment).is_empty()).then_some(moment.now + LOOK_WHILE_LATE),
        }
    }

    /// Asks the other side what it has, if that is due.
    fn ask(&self, repair: &Repair, moment: Moment) -> Option<Question> {
        let question = repair.exchanges().question(moment.now)?;
        let exchange = Exchange { id: question.id, is_answer: false };
        let resume = repair.receiver().resume(exchange, moment);
        // One that is lost is asked again. Without room, quinn would drop what it has not sent yet.
        if resume.len() <= self.connection.datagram_send_buffer_space() {
            let _ = self.connection.send_datagram(resume);
        }
        Some(question)
    }

    /// Waits until quinn has little left to send; returns how much to give it now.
    ///
    /// quinn sends in the order of its buffer, so the buffer holds at most one window of data: a keystroke must
    /// wait in our queue, which can reorder. Where a window is larger than quinn's buffer, quinn's own limit
    /// applies. A drop to less than half since the last call means that the connection has migrated. CoDel pauses then, and
    /// while the cut that ended slow start is on trial.
    async fn room(&mut self) -> Room {
        let mut before = None;
        self.budget = ahead(self.connection);
        loop {
            let window = window_ahead(self.connection);
            let has_dropped = std::mem::replace(&mut self.ahead, window) > 2.0 * window;
            if has_dropped || self.is_start_on_trial() {
                self.queue.be_patient();
            }
            let ahead = (window as usize).max(LEAST_AHEAD);
            let packets = self.spaced(clock::now()).unwrap_or(BATCH).min(BATCH);
            if packets > 0 && ahead >= SEND_BUFFER {
                return Room::For { packets, bytes: SEND_BUFFER };
            }
            let given = given(self.connection);
            if packets > 0 && given < ahead {
                return Room::For { packets, bytes: ahead - given };
            }
            // While its window is open, quinn sends all that it has at its next turn, and must not run dry:
            // a window that is not filled does not grow.
            if before.replace(given).is_none_or(|before| given < before) {
                task::yield_now().await;
            } else {
                time::sleep(LOOK_AGAIN).await;
            }
            if let Some(repair) = &self.session.repair {
                self.repeat(repair);
                self.copy(repair);
                let now = clock::now();
                if given < SEND_BUFFER / 2
                    && let Some(standby) = repair.late_standby(now)
                    && self.queue.has_sparse()
                {
                    return Room::ForCopies(standby.room(now));
                }
            }
        }
    }

    fn is_start_on_trial(&self) -> bool {
        self.session.repair.as_ref().is_some_and(|repair| repair.congestion.is_start_on_trial())
    }

    /// How many packets may leave now, where they overtake one another.
    fn spaced(&mut self, now: Instant) -> Option<usize> {
        let (repair, connection) = (self.session.repair.as_ref()?, self.connection);
        self.spacing.room(now, repair.congestion.reordering(), || Given {
            sent: connection.stats().udp_tx.datagrams,
            held: given(connection)
                .div_ceil(connection.max_datagram_size().unwrap_or(SMALLEST_UDP_PAYLOAD.into())),
        })
    }

    /// Sends a batch; after an error the rest of it is in the queue again.
    async fn send_all(
        &mut self,
        batch: &mut Vec<Packet>,
        datagrams: &mut Vec<Bytes>,
    ) -> Result<(), ConnectionError> {
        let (mut packets, mut bytes) = (0, 0);
        let max = self.connection.max_datagram_size().unwrap_or_default();
        for (at, datagram) in datagrams.drain(..).enumerate() {
            match self.send(datagram, max).await {
                Ok(true) => {
                    packets += 1;
                    bytes += batch[at].size() as u64;
                }
                Ok(false) => self.counters.dropped(DropReason::TooLarge, 1),
                Err(error) => {
                    self.counters.sent.add(packets, bytes);
                    self.put_back(batch.split_off(at));
                    return Err(error);
                }
            }
        }
        self.counters.sent.add(packets, bytes);
        batch.clear();
        Ok(())
    }

    /// The newest packets were not sent, and will not be: they go into the queue again, unless they are there already.
    fn put_back(&self, mut packets: Vec<Packet>) {
        if let Some(repair) = &self.session.repair {
            repair.sender(moment(self.connection)).take_unsent(&mut packets);
        }
        self.queue.put_back_all(packets);
    }

    /// Sends one datagram, whole or in fragments; `false` if even fragments do not fit. `max` is the last known
    /// limit, in bytes.
    async fn send(&mut self, datagram: Bytes, max: usize) -> Result<bool, ConnectionError> {
        if datagram.len() <= max
            && let Some(sent) = send_datagram(self.connection, datagram.clone()).await?
        {
            return Ok(sent);
        }
        let Some(max) = self.connection.max_datagram_size() else { return Ok(false) };
        let Some(pieces) = self.fragmenter.split(&datagram, max) else { return Ok(false) };
        for piece in pieces {
            if send_datagram(self.connection, piece).await? != Some(true) {
                return Ok(false);
            }
        }
        self.counters.split.fetch_add(1, Relaxed);
        Ok(true)
    }

    /// The same without waiting, for what may be lost. The end of the connection shows elsewhere.
    fn send_now(&mut self, datagram: Bytes) {
        let max = self.connection.max_datagram_size().unwrap_or_default();
        if datagram.len() <= max {
            let _ = self.connection.send_datagram(datagram);
            return;
        }
        for piece in self.fragmenter.split(&datagram, max).into_iter().flatten() {
            let _ = self.connection.send_datagram(piece);
        }
    }
}

/// What leaves in [`AHEAD`] at the connection's present rate, in bytes.
fn window_ahead(connection: &Connection) -> f64 {
    let path = connection.stats().path;
    path.cwnd as f64 * AHEAD.as_secs_f64() / path.rtt.as_secs_f64().max(1e-6)
}

/// Bytes that quinn may hold.
fn ahead(connection: &Connection) -> usize {
    (window_ahead(connection) as usize).clamp(LEAST_AHEAD, SEND_BUFFER)
}

/// Bytes that quinn holds.
fn given(connection: &Connection) -> usize {
    SEND_BUFFER.saturating_sub(connection.datagram_send_buffer_space())
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
