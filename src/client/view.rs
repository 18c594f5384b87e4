//! What the client shows of itself through `roamd status`, beyond its counters.

mod answer;
mod copies;
mod history;
mod paths;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;
use quinn::{Connection, Endpoint};
use tracing::info;

pub(super) use self::paths::{Said, ShownPath};
use self::{copies::Copies, history::History};
use super::{greeting::Reached, paused::Paused};
use crate::{
    clock,
    daemon::{
        events::{Event, Events},
        status::{
            self, BulkState, ClientState, Gaps, HomeState, HomeStatus, MoveReason, MoveStatus,
            SwitchStatus,
        },
        systemd,
    },
    host::interface::{self, LeftOut},
    identity::PublicKey,
    link::candidate::Candidate,
    mutex::Mutex,
    path::{Reason, quality::Figures, socket::PathSocket, switch_meter::Switched},
    quic::congestion::CongestionHandle,
    wire::foreign::Foreign,
};

/// The state of the client, written by its one task and read by whoever asks.
#[derive(Debug)]
pub(super) struct Shown {
    state: Mutex<State>,
    events: Events,
}

#[derive(Debug)]
struct State {
    state: ClientState,
    last_error: Option<String>,
    /// Since when the server refuses us.
    refused: Option<SystemTime>,
    /// When the server is asked again.
    next_attempt: Option<Instant>,
    mtu: u16,
    addresses: Vec<IpNet>,
    routes: Vec<IpNet>,
    /// What the server offered and the client does not take.
    declined: Vec<LeftOut>,
    sessions: u64,
    line: Option<Line>,
    paths: Vec<ShownPath>,
    /// Of the path in use.
    figures: Figures,
    copies: Copies,
    bulk: BulkState,
    /// The server that has the session, or had the last one.
    server: Option<PublicKey>,
    /// The servers that are asked now and then.
    reserves: Vec<ShownReserve>,
    moves: History<MoveStatus, MoveReason>,
    switches: History<SwitchStatus, Reason>,
    gaps: Gaps,
    /// The link of home, while the path in use is one there.
    home: Option<String>,
    /// The link over which the tunnel stands aside, while the host is made so.
    aside: Option<String>,
    /// The link with a captive portal that was told of last.
    portal: Option<String>,
    /// Why there is no connection, as it was told last.
    told: Option<String>,
    /// What the service manager was told last.
    said: String,
}

/// The key of the reserve, when it last answered, and the round trip of the answer.
type ShownReserve = (PublicKey, Option<Instant>, Option<Duration>);

/// The connection of the day.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) connection: Connection,
    pub(super) endpoint: Endpoint,
    pub(super) socket: Arc<PathSocket>,
    pub(super) congestion: CongestionHandle,
    pub(super) software: Foreign,
    /// The server's key and name.
    pub(super) server: (PublicKey, String),
    pub(super) since: SystemTime,
}

impl Shown {
    pub(super) fn new(mtu: u16, events: Events) -> Self {
        let state = Mutex::new(State {
            state: ClientState::Connecting,
            last_error: None,
            refused: None,
            next_attempt: None,
            mtu,
            addresses: Vec::new(),
            routes: Vec::new(),
            declined: Vec::new(),
            sessions: 0,
            line: None,
            paths: Vec::new(),
            figures: Figures::default(),
            copies: Copies::default(),
            bulk: BulkState::Flows,
            server: None,
            reserves: Vec::new(),
            moves: History::default(),
            switches: History::default(),
            gaps: Gaps::default(),
            home: None,
            aside: None,
            portal: None,
            told: None,
            said: String::new(),
        });
        Self { state, events }
    }

    pub(super) fn connecting(&self) {
        self.with(|state| {
            state.state = ClientState::Connecting;
            state.next_attempt = None;
        });
    }

    pub(super) fn set_up(
        &self,
        mtu: u16,
        addresses: Vec<IpNet>,
        routes: Vec<IpNet>,
        declined: Vec<LeftOut>,
    ) {
        self.with(|state| {
            interface::log(&state.declined, &declined);
            state.declined = declined;
            state.mtu = mtu;
            state.addresses = addresses;
            state.routes = routes;
        });
    }

    pub(super) fn connected(&self, line: Line, candidate: &Candidate) {
        let rtt = status::milliseconds(line.rtt().unwrap_or_else(|| line.connection.rtt()));
        let (link, server) = (candidate.link.clone(), candidate.server);
        systemd::ready(&format!("active on {link}, {rtt:.0} ms"));
        self.events.tell(Event::Connected { link, server, rtt });
        self.with(|state| {
            state.state = ClientState::Connected;
            state.refused = None;
            state.said.clear();
            state.told = None;
            state.portal = None;
            state.sessions += 1;
            state.line = Some(line);
        });
    }

    /// There is no session, for this reason; the next attempt begins after `pause`.
    pub(super) fn waiting(&self, reason: &str, refused: bool, pause: Duration) {
        if self.is_connected() {
            self.events.tell(Event::Disconnected { reason: reason.into() });
        }
        let words = self.with(|state| {
            state.state = ClientState::Waiting;
            state.last_error = Some(reason.into());
            state.line = None;
            state.bulk = BulkState::Flows;
            state.paths.clear();
            state.next_attempt = Some(clock::now() + pause);
            let words = if refused {
                let since = *state.refused.get_or_insert_with(clock::wall);
                let (since, next) = (clock::local(since), clock::local(clock::wall() + pause));
                format!("refused by the server since {since}; asks again at {next}")
            } else {
                state.refused = None;
                format!("not connected: {reason}")
            };
            state.say(words)
        });
        // A client that is refused does what it can: whoever waits for it to start learns why.
        match words {
            Some(words) if refused => systemd::ready(&words),
            Some(words) => systemd::report(&words),
            None => {}
        }
    }

    /// The tunnel is paused.
    pub(super) fn paused(&self, paused: Paused) {
        let lasts = paused.lasts();
        self.events.tell(Event::Paused { seconds: lasts.map(status::rounded) });
        let words = self.with(|state| {
            state.state = ClientState::Paused;
            state.refused = None;
            state.portal = None;
            state.line = None;
            state.bulk = BulkState::Flows;
            state.paths.clear();
            state.next_attempt = paused.until;
            let words = match lasts {
                Some(lasts) => format!("paused until {}", clock::local(clock::wall() + lasts)),
                None => "paused".into(),
            };
            state.say(words)
        });
        // Whoever waits for it to start learns that it has.
        if let Some(words) = words {
            systemd::ready(&words);
        }
    }

    /// The pause is over.
    pub(super) fn resumed(&self) {
        self.events.tell(Event::Resumed);
    }

    /// The server does not answer so far.
    pub(super) fn silent(&self, reason: &str) {
        let words = self.with(|state| {
            state.last_error = Some(reason.into());
            match state.refused {
                Some(_) => None,
                None => state.say(format!("not connected: {reason}")),
            }
        });
        if let Some(words) = words {
            systemd::report(&words);
        }
    }

    /// Whether this reason for having no connection was not the last one since there was one.
    pub(super) fn is_news(&self, reason: &str) -> bool {
        self.with(|state| state.told.replace(reason.into()).as_deref() != Some(reason))
    }

    /// Whoever waits for the daemon to start learns that it has, and what came of it.
    pub(super) fn end_start(&self) {
        let words = self.with(|state| (state.sessions == 0).then(|| state.said.clone()));
        match words.as_deref() {
            Some("") => systemd::ready("not connected: the server is asked"),
            Some(words) => systemd::ready(words),
            None => {}
        }
    }

    /// What the path in use carries and loses at present.
    pub(super) fn figures(&self, figures: Figures) {
        self.with(|state| state.figures = figures);
    }

    /// What becomes of flows that take much.
    pub(super) fn bulk(&self, bulk: BulkState) {
        self.with(|state| state.bulk = bulk);
    }

    /// The copies that were sent and used so far. They are told of together, later, and with the link that was in use when
    /// the first of them was seen: whoever leaves a path says it before.
    pub(super) fn copies(&self, copies: [u64; 2], now: Instant) {
        let event = self.with(|state| {
            let link = state.paths.iter().find(|path| path.is_in_use());
            state.copies.look(copies, link.map(|path| path.candidate.link.as_str()), now)
        });
        if let Some(event) = event {
            self.events.tell(event);
        }
    }

    pub(super) fn paths(&self, paths: Vec<ShownPath>) {
        let words = self.with(|state| {
            for change in paths::changes(&state.paths, &paths) {
                self.events.tell(change);
            }
            state.paths = paths;
            let words = paths::in_words(&state.paths);
            state.say(words)
        });
        if let Some(words) = words {
            systemd::report(&words);
        }
    }

    pub(super) fn switched(&self, Switched { from, to, reason, words, gap }: &Switched) {
        let switch = SwitchStatus {
            ago: 0.0,
            from: from.as_ref().map(|from| from.link.clone()),
            from_transport: from.as_ref().map(|from| from.transport).unwrap_or_default(),
            to: to.link.clone(),
            to_transport: to.transport,
            server: to.server,
            reason: words.clone(),
            gap: status::milliseconds(*gap),
        };
        let SwitchStatus { from, from_transport, to, to_transport, reason: words, gap, .. } =
            switch.clone();
        self.events.tell(Event::Switched {
            from,
            from_transport,
            to,
            to_transport,
            reason: words,
            gap,
        });
        self.with(|state| {
            state.gaps.add(switch.gap);
            state.switches.add(switch, *reason);
        });
    }

    /// The states of the servers that are asked now and then.
    pub(super) fn reserves(&self, reserves: Vec<ShownReserve>) {
        self.with(|state| state.reserves = reserves);
    }

    /// The server with this key has the session from here on.
    pub(super) fn serves(&self, server: PublicKey) {
        self.with(|state| state.server = Some(server));
    }

    /// The session moved from one server to another.
    pub(super) fn moved(&self, from: String, to: String, reason: MoveReason, gap: Duration) {
        info!(from, to, %reason, gap = %milliseconds(gap), "another server");
        let gap = status::milliseconds(gap);
        let (from_name, to_name) = (from.clone(), to.clone());
        self.events.tell(Event::ServerChanged { from: from_name, to: to_name, reason, gap });
        self.with(|state| {
            state.moves.add(MoveStatus { ago: 0.0, from, to, reason, gap }, reason);
        });
    }

    /// The path in use is one at home, over this link; or it is not.
    pub(super) fn home(&self, link: Option<&str>) {
        self.change_home(|state| state.home = link.map(Into::into));
    }

    /// The host is made so that the tunnel stands aside over this link; or not.
    pub(super) fn stands_aside(&self, link: Option<&str>) {
        self.change_home(|state| state.aside = link.map(Into::into));
    }

    fn change_home(&self, change: impl FnOnce(&mut State)) {
        let changed = self.with(|state| {
            let before = state.home_status();
            change(state);
            let now = state.home_status();
            (before != now)
                .then(|| now.or(before.map(|it| HomeStatus { state: HomeState::Away, ..it })))
        });
        if let Some(HomeStatus { link, state }) = changed.flatten() {
            info!(link, %state, "home");
            self.events.tell(Event::Home { link, state });
        }
    }

    /// A captive portal is suspected on this link.
    pub(super) fn portal(&self, link: &str) {
        let is_new = self.with(|state| state.portal.replace(link.into()).as_deref() != Some(link));
        if is_new {
            info!(link, "a captive portal seems to answer in the server's place");
            self.events.tell(Event::Portal { link: link.into() });
            if !self.is_connected() {
                systemd::report(&format!("captive portal on {link}: log in with a browser"));
            }
        }
    }

    /// Whether there is a session.
    pub(super) fn is_connected(&self) -> bool {
        self.with(|state| state.line.is_some())
    }

    /// Why the last attempt or session ended.
    pub(super) fn last_error(&self) -> Option<String> {
        self.with(|state| state.last_error.clone())
    }

    /// The address of the server that is in use, unless somebody else leads to it.
    pub(super) fn remote(&self) -> Option<SocketAddr> {
        let in_use = self.in_use().filter(|candidate| !candidate.transport.is_detour());
        in_use.map(|candidate| candidate.server)
    }

    /// The key of the server that has the session, or had the last one.
    pub(super) fn server(&self) -> Option<PublicKey> {
        self.with(|state| state.server)
    }

    /// The links of the paths.
    pub(super) fn links(&self) -> Vec<String> {
        self.with(|state| state.paths.iter().map(|path| path.candidate.link.clone()).collect())
    }

    /// Where the connection of the day leads.
    pub(super) fn in_use(&self) -> Option<Candidate> {
        self.with(|state| {
            state.paths.iter().find(|path| path.is_in_use()).map(|path| path.candidate.clone())
        })
    }

    /// Sessions begun so far.
    pub(super) fn sessions(&self) -> u64 {
        self.with(|state| state.sessions)
    }

    /// The connection of the day, which is not shown any more.
    pub(super) fn take_line(&self) -> Option<Line> {
        self.with(|state| state.line.take())
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock())
    }
}

impl State {
    /// None while away. Whoever leaves is away when the routes are back.
    fn home_status(&self) -> Option<HomeStatus> {
        let (link, state) = match (&self.aside, &self.home) {
            (Some(link), _) => (link, HomeState::Aside),
            (None, Some(link)) => (link, HomeState::Direct),
            (None, None) => return None,
        };
        Some(HomeStatus { link: link.clone(), state })
    }

    /// The words, if the service manager was told others last.
    fn say(&mut self, words: String) -> Option<String> {
        (self.said != words).then(|| self.said.clone_from(&words)).map(|()| words)
    }
}

impl Line {
    pub(super) fn of(Reached { server, connected, welcome, .. }: &Reached) -> Self {
        Self {
            connection: connected.connection.clone(),
            endpoint: connected.underlay.endpoint().clone(),
            socket: connected.underlay.socket().clone(),
            congestion: server.congestion.clone(),
            server: (server.key(), server.name().into()),
            software: welcome.software.clone(),
            since: clock::wall(),
        }
    }

    fn rtt(&self) -> Option<Duration> {
        self.congestion.round_trip(self.connection.rtt())
    }
}

/// A duration as people read it, without micro- and nanoseconds.
pub(super) fn milliseconds(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(duration.as_millis() as u64))
}

#[cfg(test)]
mod tests;
