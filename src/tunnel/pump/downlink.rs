//! From datagrams to packets.

use std::{
    sync::MutexGuard,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use quinn::{Connection, ConnectionError};

use super::{Repair, Session, alarm::Alarm, moment};
use crate::{
    tunnel::{
        acks::Thinning,
        counters::{Counters, DropReason},
        repair::{Moment, Receiver},
    },
    wire::{
        datagram::{Datagram, NUMBERED, Unknown},
        fragment::{Joined, Joiner},
        numbered::Exchange,
        packet::Packet,
    },
};

/// Maximum of packets that are delivered together: several super-packets of 64 KB.
const DELIVERED: usize = 256;

/// Hands received packets to `deliver`, in batches, until the connection ends.
pub(crate) async fn downlink(
    connection: &Connection,
    counters: &Counters,
    session: &Session,
    mut deliver: impl FnMut(&mut Vec<Packet>),
) -> ConnectionError {
    let mut batch = Vec::with_capacity(DELIVERED);
    let (mut joiner, mut alarm) = (Joiner::default(), Alarm::default());
    let mut way = Way::default();
    loop {
        let deadline = session.repair.as_ref().and_then(|repair| repair.receiver().next_deadline());
        let first = tokio::select! {
            biased;
            read = connection.read_datagram() => match read {
                Ok(datagram) => Some(datagram),
                Err(error) => return error,
            },
            () = copies_arrived(session) => None,
            () = alarm.wait(deadline) => None,
        };
        let mut intake = Intake {
            counters,
            repair: session.repair.as_ref(),
            receiver: session.repair.as_ref().map(Repair::receiver),
            thinning: session.repair.as_ref().map(Repair::thinning),
            moment: moment(connection),
            joiner: &mut joiner,
            batch: &mut batch,
            answer: None,
        };
        intake.follow(&mut way);
        // What came over the path in use makes its copies superfluous.
        let is_path_heard = first.is_some();
        intake.take_all(connection, first);
        intake.take_copies(is_path_heard);
        intake.ask(connection);
        drop(intake);
        if !batch.is_empty() {
            deliver(&mut batch);
            batch.clear();
        }
    }
}

/// Waits until copies have come over the standby. Cancel safe.
async fn copies_arrived(session: &Session) {
    match session.standby() {
        Some(standby) => standby.arrived().await,
        None => std::future::pending().await,
    }
}

/// Where the datagrams of one batch become packets.
struct Intake<'a> {
    counters: &'a Counters,
    repair: Option<&'a Repair>,
    receiver: Option<MutexGuard<'a, Receiver>>,
    thinning: Option<MutexGuard<'a, Thinning>>,
    moment: Moment,
    joiner: &'a mut Joiner,
    batch: &'a mut Vec<Packet>,
    /// What the other side asked for.
    answer: Option<Bytes>,
}

/// The path over which packets come.
#[derive(Debug, Default)]
struct Way {
    began: Option<Instant>,
    rtt: Duration,
}

impl Intake<'_> {
    /// Notices that the connection has another path.
    fn follow(&mut self, way: &mut Way) {
        let (Some(receiver), Some(repair)) = (&mut self.receiver, self.repair) else { return };
        let began = repair.congestion.began();
        let before = std::mem::replace(&mut way.began, began);
        if before.is_some() && before != began {
            receiver.path_changed(Moment { rtt: way.rtt, ..self.moment });
        }
        way.rtt = self.moment.rtt;
    }

    /// Takes the copies that came over the standby. One that comes before its original says that the path in use is in
    /// trouble, until something comes over it.
    fn take_copies(&mut self, is_path_heard: bool) {
        let Some(repair) = self.repair else { return };
        let Some(standby) = &repair.standby else { return };
        if is_path_heard {
            standby.set_needed(false);
        }
        for datagram in standby.take() {
            let is_packet = datagram.first() == Some(&NUMBERED);
            let duplicates = |receiver: &Option<MutexGuard<'_, Receiver>>| {
                receiver.as_ref().map_or(0, |receiver| receiver.duplicates())
            };
            let before = duplicates(&self.receiver);
            let is_taken = self.take(datagram);
            if !is_packet || !is_taken || duplicates(&self.receiver) > before {
                continue;
            }
            self.counters.rescued();
            if is_path_heard {
                continue;
            }
            if let Some(receiver) = &mut self.receiver {
                receiver.wait_for_switch(self.moment);
            }
            if !standby.set_needed(true) {
                repair.wanted.notify_one();
            }
        }
    }

    /// Takes what has arrived.
    fn take_all(&mut self, connection: &Connection, first: Option<Bytes>) {
        let (mut next, mut taken) = (first, 0);
        while let Some(datagram) = next {
            self.take(datagram);
            taken += 1;
            // What is held, or carries no packet, takes its time as well. An error shows again at the next read,
            // after this batch is delivered.
            next = (taken < 2 * DELIVERED && self.batch.len() < DELIVERED)
                .then(|| connection.read_datagram().now_or_never()?.ok())
                .flatten();
        }
        self.counters.dropped(DropReason::LostPiece, self.joiner.take_abandoned());
    }

    /// Gives up what is too late, asks for what is missing.
    fn ask(&mut self, connection: &Connection) {
        let Some(receiver) = &mut self.receiver else { return };
        let request = receiver.expire(self.moment, self.batch);
        for datagram in request.into_iter().chain(self.answer.take()) {
            // One that is lost is made again. Without room, quinn would drop what it has not sent yet.
            if datagram.len() <= connection.datagram_send_buffer_space() {
                let _ = connection.send_datagram(datagram);
            }
        }
        self.counters.repair(receiver.take_events());
    }

    /// Takes a datagram; whether it could be read.
    fn take(&mut self, datagram: Bytes) -> bool {
        let taken = match Datagram::decode(datagram) {
            Ok(Datagram::Fragment(fragment)) => match self.joiner.join(fragment) {
                Joined::Packet(whole) => Datagram::decode(whole).and_then(|it| self.take_whole(it)),
                Joined::Incomplete => Ok(()),
                Joined::Duplicate => {
                    self.counters.dropped(DropReason::LostPiece, 1);
                    Ok(())
                }
            },
            whole => whole.and_then(|it| self.take_whole(it)),
        };
        if let Err(Unknown) = taken {
            self.counters.dropped(DropReason::UnknownDatagram, 1);
        }
        taken.is_ok()
    }

    fn take_whole(&mut self, datagram: Datagram) -> Result<(), Unknown> {
        match (datagram, &mut self.receiver) {
            (Datagram::Padding, _) => {}
            (Datagram::Packet(packet), _) => self.batch.push(packet),
            (Datagram::Numbered(numbered), Some(receiver)) => {
                let (before, size) = (self.batch.len(), numbered.packet.size());
                receiver.receive(numbered, self.moment, self.batch);
                if let Some(thinning) = &mut self.thinning {
                    thinning.arrived(size, self.moment);
                    if self.batch.len() > before + 1 {
                        thinning.released(self.moment.now);
                    }
                }
            }
            (Datagram::Next(next), Some(receiver)) => {
                receiver.next_is(next, self.moment, self.batch);
            }
            (Datagram::Missing(missing), _) => {
                let repair = self.repair.ok_or(Unknown)?;
                let mut sender = repair.sender(self.moment);
                if sender.asked(&missing, self.moment) {
                    repair.wanted.notify_one();
                }
                repair.congestion.asked_for(sender.take_missed());
            }
            (Datagram::Resume(resume), Some(receiver)) => {
                let (repair, moment) = (self.repair.ok_or(Unknown)?, self.moment);
                let Exchange { id, is_answer } = resume.exchange;
                let since = if is_answer {
                    let Some(since) = repair.exchanges().answered(id) else { return Ok(()) };
                    since
                } else if !repair.exchanges().may_answer(moment.now) {
                    return Ok(());
                } else {
                    let answer = Exchange { id, is_answer: true };
                    self.answer = Some(receiver.resume(answer, moment));
                    // What is younger may be under way, unless it went by the path that was left.
                    let young = moment.now.checked_sub(moment.rtt);
                    repair.congestion.began().max(young).unwrap_or(moment.now)
                };
                if repair.sender(moment).resumed(&resume, since, moment) {
                    repair.wanted.notify_one();
                }
            }
            (Datagram::Fragment(_), _)
            | (Datagram::Numbered(_) | Datagram::Next(_) | Datagram::Resume(_), None) => {
                return Err(Unknown);
            }
        }
        Ok(())
    }
}
