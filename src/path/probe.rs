//! Asking the server over a path that does not carry the tunnel.
//!
//! A probe is a connection of its own, a short QUIC handshake under the ALPN `roamd-probe`, on a
//! socket bound to the candidate's link. That it completes proves that the path works both ways and leads to the
//! right server. Echoes over it follow at once and measure the path, but for the first one, which still meets the
//! end of the handshake. The connection stays open, so that the next question is one round trip: the warm standby.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use quinn::Connection;
use tokio::{
    sync::{Notify, mpsc},
    time::{self, Instant},
};
use tracing::debug;

use super::{
    PathKey,
    handshake::{Attempt, Connected, Handshake, HandshakeError},
    manager::Event,
    network::Network,
};
use crate::{clock, link::candidate::Candidate, task::Task};

/// Until the question is asked again, at least; otherwise three round trips.
const SHORTEST_REPEAT: Duration = Duration::from_millis(50);
/// Questions that wait to be asked: a newer one voids the older ones.
const QUESTIONS: usize = 1;

/// What the probe's connection tells of its path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// The MTU as far as it is known: UDP payload in bytes.
    pub mtu: u16,
    /// Packets sent.
    pub sent: u64,
    /// Those of them that were lost.
    pub lost: u64,
}

/// A task that asks over one path. Dropped, it closes what it opened.
#[derive(Debug)]
pub(crate) struct Probe {
    questions: mpsc::Sender<()>,
    hurry: Arc<Notify>,
    measured: Arc<Mutex<Option<Measured>>>,
    _task: Task,
}

impl Probe {
    /// Starts a task that asks over `candidate` and tells the answers as events about `key`. It
    /// takes `limit` at most for one question.
    #[must_use]
    pub(crate) fn start(
        network: Arc<dyn Network>,
        handshake: Handshake,
        candidate: Candidate,
        key: PathKey,
        limit: Duration,
        answers: mpsc::Sender<Event>,
    ) -> Self {
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let (hurry, measured) = (Arc::default(), Arc::default());
        let asker = Asker {
            network,
            handshake,
            candidate,
            limit,
            attempt: None,
            standing: None,
            is_new: false,
            last: None,
            epoch: clock::now().into(),
            hurry: Arc::clone(&hurry),
            measured: Arc::clone(&measured),
        };
        let task = Task::spawn("probe", asker.run(key, asked, answers));
        Self { questions, hurry, measured, _task: task }
    }

    /// What was found out so far.
    #[must_use]
    pub(crate) fn measured(&self) -> Option<Measured> {
        *self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks. An earlier question that is not answered yet is void.
    pub(crate) fn ask(&self) {
        // Full means that the same question waits already.
        let _ = self.questions.try_send(());
    }

    /// Starts a further handshake if a question is not answered yet: the next retransmission may be far, and a
    /// server that was started again does not know the connection that stands.
    pub(crate) fn hurry(&self) {
        self.hurry.notify_one();
    }
}

struct Asker {
    network: Arc<dyn Network>,
    handshake: Handshake,
    candidate: Candidate,
    limit: Duration,
    attempt: Option<Attempt>,
    standing: Option<Connected>,
    /// Nothing was asked over it.
    is_new: bool,
    /// The last round trip over it.
    last: Option<Duration>,
    epoch: Instant,
    hurry: Arc<Notify>,
    measured: Arc<Mutex<Option<Measured>>>,
}

/// An answer to a question.
enum Answer {
    /// The handshake is complete.
    Connected,
    Echo(Duration),
}

impl Asker {
    async fn run(
        mut self,
        key: PathKey,
        mut asked: mpsc::Receiver<()>,
        answers: mpsc::Sender<Event>,
    ) {
        let mut pending = false;
        loop {
            if !pending && asked.recv().await.is_none() {
                return;
            }
            pending = false;
            let answer = tokio::select! {
                answer = time::timeout(self.limit, self.question()) => answer,
                again = asked.recv() => {
                    pending = again.is_some();
                    continue;
                }
            };
            let event = match answer {
                Ok(Some(Answer::Connected)) => {
                    pending = true;
                    Event::Answered(key, None)
                }
                Ok(Some(Answer::Echo(rtt))) => Event::Answered(key, Some(rtt)),
                Ok(None) => Event::Refused(key),
                Err(_elapsed) => {
                    (self.attempt, self.standing) = (None, None);
                    Event::TimedOut(key)
                }
            };
            if answers.send(event).await.is_err() {
                return;
            }
        }
    }

    /// One answer, over the connection that stands or a new one; `None` if there is no hope.
    async fn question(&mut self) -> Option<Answer> {
        self.standing.take_if(|standing| standing.connection.close_reason().is_some());
        let (standing, epoch) =
            (self.standing.as_ref().map(|it| it.connection.clone()), self.epoch);
        let over_standing = async {
            match &standing {
                Some(connection) => echo(connection, epoch).await,
                None => std::future::pending().await,
            }
        };
        // A server that was started again does not know the connection that stands.
        let mut rtt = tokio::select! {
            rtt = over_standing => rtt?,
            connected = self.connect(standing.is_none()) => {
                self.attempt = None;
                match connected {
                    Ok(connected) => self.standing = Some(connected),
                    Err(error) => {
                        debug!(%error, "probe failed");
                        return None;
                    }
                }
                (self.is_new, self.last) = (true, None);
                return Some(Answer::Connected);
            }
        };
        self.attempt = None;
        let connection = &self.standing.as_ref()?.connection;
        if mem::take(&mut self.is_new) {
            // The first echo met the end of the handshake.
            rtt = echo(connection, epoch).await?;
        }
        // One sample may be late because a machine was busy; of two the shorter one counts.
        let before = match self.last {
            None => echo(connection, epoch).await?,
            Some(before) => before,
        };
        self.last = Some(rtt);
        let rtt = before.min(rtt);
        let path = connection.stats().path;
        let measured =
            Measured { mtu: path.current_mtu, sent: path.sent_packets, lost: path.lost_packets };
        *self.measured.lock().unwrap_or_else(PoisonError::into_inner) = Some(measured);
        Some(Answer::Echo(rtt))
    }

    /// The first handshake to complete: of this question, of void ones before it, and of those that somebody
    /// in a hurry starts; without `at_once` of the latter alone. Cancel safe.
    async fn connect(&mut self, at_once: bool) -> Result<Connected, HandshakeError> {
        let attempt = self.attempt.get_or_insert_with(|| {
            let candidate = self.candidate.clone();
            Attempt::new(self.handshake.clone(), self.network.clone(), candidate)
        });
        if at_once {
            attempt.start(self.limit, None);
        }
        loop {
            tokio::select! {
                ended = attempt.next() => return ended,
                () = self.hurry.notified() => attempt.start(self.limit, None),
            }
        }
    }
}

/// The round trip of an echo, asked until it is answered; `None` if the connection ends. Questions carry
/// the time of their sending, counted from `epoch`, which is one for the whole connection.
async fn echo(connection: &Connection, epoch: Instant) -> Option<Duration> {
    let repeat = (3 * connection.rtt()).max(SHORTEST_REPEAT);
    let begun = epoch.elapsed();
    loop {
        let sent = epoch.elapsed().as_micros() as u64;
        connection.send_datagram(Bytes::copy_from_slice(&sent.to_be_bytes())).ok()?;
        let again = Instant::from(clock::now()) + repeat;
        while let Ok(reply) = time::timeout_at(again, connection.read_datagram()).await {
            let sent = u64::from_be_bytes(reply.ok()?.as_ref().try_into().ok()?);
            let sent = Duration::from_micros(sent);
            // A late answer to an earlier question says nothing of the present.
            if sent + Duration::from_micros(1) >= begun {
                return epoch.elapsed().checked_sub(sent);
            }
        }
    }
}
