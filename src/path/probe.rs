//! Probes a path that does not carry the tunnel.
//!
//! A probe is a QUIC connection of its own with the ALPN `roamd-probe`, on a socket bound to the candidate's link.
//! A complete handshake proves that the path works both ways and leads to the right server. Echoes over the
//! connection then measure the round trip; the first one is ignored, because it overlaps with the end of the
//! handshake. The connection stays open (a warm standby), so that each further answer takes one round trip. Bursts of
//! echoes tell more: loss, and how fast the path carries large ones.

mod report;
mod sampling;

use std::{
    mem,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use quinn::Connection;
use tokio::{
    sync::{Notify, mpsc},
    time::{self, Instant},
};
use tracing::debug;

pub(crate) use self::report::Report;
use self::sampling::Sampling;
use super::{
    PathKey,
    handshake::{Attempt, Connected, Handshake, HandshakeError},
    manager::Event,
    network::Network,
    quality::{Burst, Sample},
};
use crate::{
    clock,
    link::candidate::Candidate,
    mutex::Mutex,
    task::Task,
    wire::question::{Answer, Question},
};

/// The minimum time before a question is repeated; three round trips if that is longer.
const SHORTEST_REPEAT: Duration = Duration::from_millis(50);
/// The longest time until a burst may begin: for a handshake, if need be.
const READY: Duration = Duration::from_millis(2000);
/// From one handshake for a burst to the next, until one is complete: the path likely loses packets, and QUIC repeats
/// them ever more rarely.
const FURTHER: Duration = Duration::from_millis(250);
/// Capacity of the channel for questions: a newer one replaces older ones, and a burst waits beside it.
const QUESTIONS: usize = 4;

/// How paths are probed.
#[derive(Clone)]
pub(crate) struct Probes {
    pub(crate) handshake: Handshake,
    /// This process, as its hello names it.
    pub(crate) process: u64,
}

/// Figures about a path from the probe's connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// The path MTU found so far, in bytes of UDP payload.
    pub mtu: u16,
    /// Packets sent.
    pub sent: u64,
    /// Packets lost.
    pub lost: u64,
}

/// How probes ask, and where what they hear goes.
#[derive(Clone)]
pub(crate) struct Prober {
    probes: Probes,
    /// Answers, as events about the path.
    pub(crate) reports: mpsc::Sender<Report>,
    /// Datagrams that are no answers: the server has something to say over a standby.
    heard: Arc<dyn Fn(Bytes) + Send + Sync>,
}

impl Prober {
    pub(crate) fn new(
        probes: Probes,
        reports: mpsc::Sender<Report>,
        heard: impl Fn(Bytes) + Send + Sync + 'static,
    ) -> Self {
        Self { probes, reports, heard: Arc::new(heard) }
    }
}

/// A task that probes one path. When dropped, it closes its connection and sockets.
#[derive(Debug)]
pub(crate) struct Probe {
    questions: mpsc::Sender<Wanted>,
    hurry: Arc<Notify>,
    measured: Arc<Mutex<Option<Measured>>>,
    standing: Arc<Mutex<Option<Connection>>>,
    /// What it finds out counts while this is there.
    _held: Arc<()>,
    _task: Task,
}

/// What is asked of the task.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Echo,
    /// Over a link that may be metered.
    Burst {
        burst: Burst,
        is_metered: bool,
    },
}

/// What is wanted and not done yet: a newer question, or burst, replaces the one before.
#[derive(Debug, Default)]
struct Open {
    question: bool,
    /// Over a link that may be metered.
    burst: Option<(Burst, bool)>,
}

impl Open {
    fn add(&mut self, wanted: Wanted) {
        match wanted {
            Wanted::Echo => self.question = true,
            Wanted::Burst { burst, is_metered } => self.burst = Some((burst, is_metered)),
        }
    }
}

impl Probe {
    /// Starts a task that probes `candidate` and reports answers as events about `key`. The timeout of a question
    /// is `limit`.
    #[must_use]
    pub(crate) fn start(
        network: Arc<dyn Network>,
        prober: Prober,
        candidate: Candidate,
        key: PathKey,
        limit: Duration,
    ) -> Self {
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let (hurry, measured, standing) = (Arc::default(), Arc::default(), Arc::default());
        let held = Arc::new(());
        let asker = Asker {
            network,
            prober,
            candidate,
            key,
            handle: Arc::downgrade(&held),
            limit,
            attempt: None,
            standing: None,
            is_new: false,
            is_unanswered: false,
            has_session: None,
            last: None,
            epoch: clock::now().into(),
            hurry: Arc::clone(&hurry),
            measured: Arc::clone(&measured),
            shown: Arc::clone(&standing),
        };
        let task = Task::spawn("probe", asker.run(asked));
        Self { questions, hurry, measured, standing, _held: held, _task: task }
    }

    /// The connection, if it stands: the path is warm.
    #[must_use]
    pub(crate) fn standing(&self) -> Option<Connection> {
        self.standing.lock().clone()
    }

    /// The figures so far.
    #[must_use]
    pub(crate) fn measured(&self) -> Option<Measured> {
        *self.measured.lock()
    }

    /// Asks a question. It replaces an earlier one that is not answered yet.
    pub(crate) fn ask(&self) {
        // If the channel is full, such a question is already waiting.
        let _ = self.questions.try_send(Wanted::Echo);
    }

    /// Makes a burst of echoes, after a question that is not answered yet; the result is an
    /// [`Event::Sampled`].
    pub(crate) fn sample(&self, burst: Burst, is_metered: bool) {
        // Its result is not awaited for ever.
        let _ = self.questions.try_send(Wanted::Burst { burst, is_metered });
    }

    /// Starts a further handshake if a question is not answered yet: the next retransmission may be seconds away,
    /// and a restarted server does not know the existing connection.
    pub(crate) fn hurry(&self) {
        self.hurry.notify_one();
    }
}

struct Asker {
    network: Arc<dyn Network>,
    prober: Prober,
    candidate: Candidate,
    key: PathKey,
    /// Whoever asks.
    handle: Weak<()>,
    limit: Duration,
    attempt: Option<Attempt>,
    standing: Option<Connected>,
    /// No question was asked on it.
    is_new: bool,
    /// For the last burst there was no connection.
    is_unanswered: bool,
    /// What the server said last on it about our session.
    has_session: Option<bool>,
    /// The last round trip on it.
    last: Option<Duration>,
    epoch: Instant,
    hurry: Arc<Notify>,
    measured: Arc<Mutex<Option<Measured>>>,
    /// The connection that stands, for others.
    shown: Arc<Mutex<Option<Connection>>>,
}

/// What became of a question.
enum Outcome {
    /// The handshake is complete.
    Connected,
    Echo(Duration),
}

impl Asker {
    async fn run(mut self, mut asked: mpsc::Receiver<Wanted>) {
        let key = self.key;
        let mut open = Open::default();
        loop {
            self.show();
            if !open.question && open.burst.is_none() {
                tokio::select! {
                    wanted = asked.recv() => {
                        let Some(wanted) = wanted else { return };
                        open.add(wanted);
                    }
                    () = self.listen() => continue,
                }
            }
            let event = if open.question {
                let answer = tokio::select! {
                    answer = time::timeout(self.limit, self.question()) => answer,
                    again = asked.recv() => {
                        let Some(wanted) = again else { return };
                        open.add(wanted);
                        continue;
                    }
                };
                open.question = false;
                match answer {
                    Ok(Some(Outcome::Connected)) => {
                        open.question = true;
                        Event::Answered(key, None)
                    }
                    Ok(Some(Outcome::Echo(rtt))) => Event::Answered(key, Some(rtt)),
                    Ok(None) => Event::Refused(key),
                    Err(_elapsed) => {
                        (self.attempt, self.standing) = (None, None);
                        Event::TimedOut(key)
                    }
                }
            } else if let Some((burst, is_metered)) = open.burst.take() {
                let mut sampling = Sampling::new(burst);
                let has_failed = tokio::select! {
                    is_made = self.sample(&mut sampling, is_metered) => !is_made,
                    again = asked.recv() => {
                        let Some(wanted) = again else { return };
                        open.add(wanted);
                        if open.burst.is_some() {
                            // The result of the newer one is awaited.
                            continue;
                        }
                        // What was sent so far counts.
                        false
                    }
                };
                self.is_unanswered |= has_failed;
                if has_failed && is_metered {
                    // The server would go on with each of these handshakes.
                    self.attempt = None;
                }
                let sample = sampling.sample(self.epoch.elapsed());
                debug!(link = self.candidate.link, ?sample, has_failed, "burst");
                // A burst that was cut short shows nothing.
                Event::Sampled(key, sample.or((!has_failed).then(Sample::default)))
            } else {
                continue;
            };
            self.show();
            let report = self.report(event);
            if self.prober.reports.send(report).await.is_err() {
                return;
            }
        }
    }

    fn report(&self, event: Event) -> Report {
        Report::of(&self.handle, event)
    }

    /// Lets others know which connection stands.
    fn show(&self) {
        let standing = self.standing.as_ref().map(|it| it.connection.clone());
        *self.shown.lock() = standing;
    }

    /// Hears what the server says unasked, until the connection ends. Cancel safe.
    async fn listen(&mut self) {
        let Some(standing) = &self.standing else { return std::future::pending().await };
        while let Ok(datagram) = standing.connection.read_datagram().await {
            (self.prober.heard)(datagram);
        }
        self.standing = None;
    }

    /// Waits for one answer on the existing connection or a new one; `None` if that failed.
    async fn question(&mut self) -> Option<Outcome> {
        let (epoch, prober) = (self.epoch, self.prober.clone());
        let (mut rtt, has_session) = loop {
            self.standing.take_if(|standing| standing.connection.close_reason().is_some());
            let standing = self.standing.as_ref().map(|it| it.connection.clone());
            let over_standing = async {
                match &standing {
                    Some(connection) => echo(connection, epoch, &prober).await,
                    None => std::future::pending().await,
                }
            };
            // A restarted server does not know the existing connection. It may say so, or not.
            tokio::select! {
                echoed = over_standing => match echoed {
                    Some(echoed) => break echoed,
                    None if self.is_new => return None,
                    None => self.standing = None,
                },
                // The next of hurried handshakes would take the place of a connection whose first answer is on its way.
                connected = self.connect(standing.is_none()), if !self.is_new || standing.is_none() => {
                    self.attempt = None;
                    match connected {
                        Ok(connected) => self.begin(connected),
                        Err(error) => {
                            debug!(%error, "probe failed");
                            return None;
                        }
                    }
                    return Some(Outcome::Connected);
                }
            }
        };
        self.attempt = None;
        if self.has_session.replace(has_session) != Some(has_session) {
            let report = self.report(Event::HasSession(self.key, has_session));
            let _ = self.prober.reports.send(report).await;
        }
        let connection = &self.standing.as_ref()?.connection;
        if mem::take(&mut self.is_new) {
            // The first echo overlapped with the end of the handshake.
            (rtt, _) = echo(connection, epoch, &prober).await?;
        }
        // A busy machine can delay one sample, so the shorter of two counts.
        let before = match self.last {
            None => echo(connection, epoch, &prober).await?.0,
            Some(before) => before,
        };
        self.last = Some(rtt);
        let rtt = before.min(rtt);
        let path = connection.stats().path;
        let measured =
            Measured { mtu: path.current_mtu, sent: path.sent_packets, lost: path.lost_packets };
        *self.measured.lock() = Some(measured);
        Some(Outcome::Echo(rtt))
    }

    /// Makes a burst on the existing connection or a new one; whether there is one in time.
    async fn sample(&mut self, sampling: &mut Sampling, is_metered: bool) -> bool {
        let ready = time::timeout(READY, self.ready(is_metered)).await;
        let Some(connection) = ready.ok().flatten() else { return false };
        // What came until it ended counts.
        let _ = sampling.run(&connection, self.epoch, &*self.prober.heard).await;
        true
    }

    /// Goes on with a new connection.
    fn begin(&mut self, connected: Connected) {
        self.standing = Some(connected);
        self.is_unanswered = false;
        (self.is_new, self.has_session, self.last) = (true, None, None);
    }

    /// The existing connection or a new one, over which all arrives; `None` if it failed.
    async fn ready(&mut self, is_metered: bool) -> Option<Connection> {
        self.standing.take_if(|standing| standing.connection.close_reason().is_some());
        if self.standing.is_none() {
            // A server that nobody hears repeats its part of each handshake. On a metered link the pauses double, and after a
            // burst without an answer there is one handshake only.
            let mut pause = if is_metered && self.is_unanswered { READY } else { FURTHER };
            let connected = loop {
                if let Ok(connected) = time::timeout(pause, self.connect(true)).await {
                    break connected;
                }
                if is_metered {
                    pause *= 2;
                }
            };
            self.attempt = None;
            self.begin(connected.ok()?);
        }
        let connection = &self.standing.as_ref()?.connection;
        if self.is_new {
            // A server drops what overtakes the end of the handshake.
            echo(connection, self.epoch, &self.prober).await?;
            self.is_new = false;
        }
        Some(connection.clone())
    }

    /// Waits for the first of all handshakes to complete: those of replaced questions, one that `at_once` starts
    /// here, and one for each [`Probe::hurry`]. Cancel safe.
    async fn connect(&mut self, at_once: bool) -> Result<Connected, HandshakeError> {
        let attempt = self.attempt.get_or_insert_with(|| {
            let candidate = self.candidate.clone();
            Attempt::new(self.prober.probes.handshake.clone(), self.network.clone(), candidate)
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

/// The round trip of an echo, repeated until it is answered, and whether the server has a session of this process;
/// `None` if the connection ends. A question carries the time at which it was sent, counted from `epoch`,
/// which is the same for the whole task.
async fn echo(
    connection: &Connection,
    epoch: Instant,
    Prober { probes, heard, .. }: &Prober,
) -> Option<(Duration, bool)> {
    let repeat = (3 * connection.rtt()).max(SHORTEST_REPEAT);
    let begun = epoch.elapsed();
    loop {
        let asked = epoch.elapsed().as_micros() as u64;
        connection.send_datagram(Question { asked, process: probes.process }.encode()).ok()?;
        let again = Instant::from(clock::now()) + repeat;
        while let Ok(reply) = time::timeout_at(again, connection.read_datagram()).await {
            let reply = reply.ok()?;
            let Some(Answer { asked, has_session }) = Answer::decode(&reply) else {
                heard(reply);
                continue;
            };
            let asked = Duration::from_micros(asked);
            // A late answer to an earlier question says nothing about the path at present.
            if asked + Duration::from_micros(1) >= begun {
                return Some((epoch.elapsed().checked_sub(asked)?, has_session));
            }
        }
    }
}
