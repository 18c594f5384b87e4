//! The path manager, told anything in any order, beside a model of what it may do; and then in a world that stays
//! as it is, where it must find the best path that works.

mod adapter;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use self::adapter::{PROBE_TIMEOUT, is_over_tcp, key, link};
use crate::{
    clock,
    path::{
        Condition, PathKey, Reason,
        manager::{Action, Event, Manager},
        quality::{Sample, Symptoms},
    },
};

const PATHS: u8 = 8;
const MS: Duration = Duration::from_millis(1);
/// Enough for all back-off and for the longest wait of a path that failed often.
const LONG: Duration = Duration::from_secs(600);
/// A burst takes so long.
const BURST: Duration = Duration::from_millis(500);
/// Until the silence of a path is noticed.
const NOTICED: Duration = Duration::from_secs(1);

/// Reads `data` as
///
/// ```text
///  settings (1)   0x01: standbys are checked
///  works (1)      the paths that work in the end, one bit each
///  steps (3)      kind, operand, pause: something is told, and 4 * pause * pause ms pass
/// ```
///
/// The kinds are those of [`World::step`], by number. A path is the low three bits of the operand, or the active one
/// with 0x80; a rank or a round trip is in the four bits between.
///
/// At most one path is active, and it is a candidate. Only candidates are asked. A switch has the reason that it
/// names. A pinned link is not left, and no other one is dialed. A path that is being asked has a deadline, and a
/// standby is checked; over TCP neither need be while there is UDP over the same link. No deadline is in the past. The session is given up only for a path that answers and whose
/// server does not have it, and no other one is switched to.
pub fn paths(data: &[u8]) {
    let Some(([settings, works], mut steps)) = data.split_first_chunk() else { return };
    let mut world = World::new(settings & 1 != 0);
    while let Some(([kind, operand, pause], rest)) = steps.split_first_chunk() {
        steps = rest;
        world.step(*kind, *operand);
        world.wait(4 * u32::from(*pause).pow(2) * MS);
    }
    world.settle(|path| works & 1 << path != 0);
}

/// The manager, and what is known of it.
struct World {
    manager: Manager,
    checks_standbys: bool,
    now: Instant,
    ranks: [u8; PATHS as usize],
    /// The paths that there are, and those of them that the manager was told of since it has a connection.
    present: BTreeSet<u8>,
    candidates: BTreeSet<u8>,
    connected: bool,
    active: Option<u8>,
    /// The active path is silent, refuses to send, or was not heard since the machine woke.
    in_doubt: bool,
    /// The last event was that the active path refuses to send.
    refused: bool,
    /// Paths over which a question may still be answered.
    asked: BTreeSet<u8>,
    /// Paths over which a burst was wanted.
    sampled: BTreeSet<u8>,
    /// Paths that answered, or carried the tunnel, since they failed.
    good: BTreeSet<u8>,
    /// Paths whose server does not have the session.
    strangers: BTreeSet<u8>,
    choice: Option<(u8, bool)>,
}

impl World {
    fn new(checks_standbys: bool) -> Self {
        Self {
            manager: Manager::new(adapter::settings(checks_standbys)),
            checks_standbys,
            now: clock::now(),
            ranks: [0; PATHS as usize],
            present: BTreeSet::new(),
            candidates: BTreeSet::new(),
            connected: false,
            active: None,
            in_doubt: false,
            refused: false,
            asked: BTreeSet::new(),
            sampled: BTreeSet::new(),
            good: BTreeSet::new(),
            strangers: BTreeSet::new(),
            choice: None,
        }
    }

    fn step(&mut self, kind: u8, operand: u8) {
        let path = self.active.filter(|_| operand & 0x80 != 0).unwrap_or(operand % PATHS);
        let number = operand >> 3 & 0x0f;
        let is_active = self.active == Some(path);
        let some_link = (operand & 0x08 != 0).then_some(operand & 0x03);
        let event = match kind % 18 {
            0 => {
                self.present = (0..PATHS).filter(|path| operand & 1 << path != 0).collect();
                return self.find();
            }
            1 => {
                self.ranks[usize::from(path)] = number;
                return self.find();
            }
            2 => return self.connect(path),
            3 => return self.disconnect(),
            4 => return self.answer(path, (number > 0).then(|| 10 * u32::from(number) * MS)),
            5 => Event::Measured(key(path), (10 * u32::from(number) + 1) * MS),
            6 => Event::Refused(key(path)),
            7 => {
                self.in_doubt |= is_active;
                Event::Silent(key(path))
            }
            8 => {
                self.in_doubt &= !is_active;
                Event::Heard(key(path))
            }
            9 => {
                self.in_doubt |= is_active;
                self.refused = is_active;
                Event::SendFailed(key(path))
            }
            10 => {
                self.in_doubt = self.active.is_some();
                Event::Woke
            }
            11 => {
                self.choice = some_link.map(|link| (link, operand & 0x04 != 0));
                adapter::choose(self.choice)
            }
            12 => adapter::check(some_link),
            13 => Event::TimedOut(key(path)),
            14 => return self.recognise(path, number & 1 != 0),
            15 => Event::Portal(key(path)),
            16 => {
                let rtt = (number & 1 != 0).then(|| 50 * u32::from(number) * MS);
                let rate = (number & 2 != 0).then_some(200_000);
                Event::Symptoms(
                    key(path),
                    Symptoms {
                        loss: f64::from(number) / 20.0,
                        rtt,
                        rate,
                        fell_to: rate,
                        starved: rate,
                    },
                )
            }
            _ => {
                let (answered, rate) =
                    (u32::from(number) + 9, (number & 1 != 0).then_some(5_000_000));
                let sample = Sample { sent: 24, answered, rtt: Some(answered * MS), rate };
                Event::Sampled(key(path), (number > 0).then_some(sample))
            }
        };
        self.tell(event);
    }

    fn ranked(&self, paths: &BTreeSet<u8>) -> Vec<(u8, u8)> {
        paths.iter().map(|path| (*path, self.ranks[usize::from(*path)])).collect()
    }

    fn find(&mut self) {
        self.candidates.clone_from(&self.present);
        self.strangers.retain(|path| self.candidates.contains(path));
        if self.active.take_if(|path| !self.candidates.contains(path)).is_some() {
            self.in_doubt = false;
        }
        self.tell(adapter::candidates(self.ranked(&self.candidates)));
    }

    /// A connection begins as the client has it: the last one is lost, candidates are looked for, and the one that
    /// was dialed carries it.
    fn connect(&mut self, path: u8) {
        self.disconnect();
        self.find();
        self.connected = true;
        self.active = Some(path).filter(|path| self.candidates.contains(path));
        self.good.extend(self.active);
        self.tell(Event::Connected(key(path)));
    }

    fn disconnect(&mut self) {
        self.connected = false;
        self.in_doubt = false;
        self.active = None;
        let Self { candidates, asked, good, strangers, .. } = self;
        for paths in [candidates, asked, good, strangers] {
            paths.clear();
        }
        self.tell(Event::Disconnected);
    }

    fn recognise(&mut self, path: u8, has_session: bool) {
        match has_session || !self.candidates.contains(&path) {
            true => self.strangers.remove(&path),
            false => self.strangers.insert(path),
        };
        self.tell(Event::HasSession(key(path), has_session));
    }

    fn answer(&mut self, path: u8, rtt: Option<Duration>) {
        if self.candidates.contains(&path) {
            self.good.insert(path);
        }
        self.asked.remove(&path);
        self.tell(Event::Answered(key(path), rtt));
    }

    /// Does what the manager wants done.
    fn tell(&mut self, event: impl Into<Option<Event>>) {
        let mut is_given_up = false;
        for action in self.manager.handle(event, self.now) {
            match action {
                Action::BeginAnew(key) => {
                    let path = self.candidate(key);
                    assert!(self.strangers.contains(&path) && self.is_allowed(path));
                    let is_chosen = self.choice.is_some_and(|(chosen, _)| chosen == link(path));
                    let has_answered = self.good.contains(&path) && (self.in_doubt || is_chosen);
                    assert!(has_answered || self.active.is_none());
                    is_given_up = true;
                }
                Action::Ask(key) => {
                    let path = self.candidate(key);
                    self.asked.insert(path);
                }
                Action::Forget(forgotten) | Action::Renew(forgotten) => {
                    let is_kept = |path: &u8| key(*path) != forgotten;
                    self.asked.retain(is_kept);
                    self.good.retain(|path| is_kept(path) || self.active == Some(*path));
                }
                Action::Sample(key, _) => {
                    let path = self.candidate(key);
                    self.sampled.insert(path);
                }
                Action::Switch(key, reason) => {
                    let path = self.candidate(key);
                    self.switch(path, reason);
                }
            }
        }
        self.refused = false;
        if is_given_up {
            return self.disconnect();
        }
        self.check();
    }

    fn candidate(&self, key: PathKey) -> u8 {
        let path = (0..PATHS).find(|path| adapter::key(*path) == key);
        path.filter(|path| self.candidates.contains(path)).expect("a path that is there")
    }

    fn switch(&mut self, path: u8, reason: Reason) {
        let old = self.active.replace(path);
        assert!(!self.strangers.contains(&path));
        assert!(self.connected && old != Some(path) && self.is_allowed(path));
        let rank = |path: u8| self.rank(path);
        let is_chosen = |path: u8| self.choice.is_some_and(|(chosen, _)| chosen == link(path));
        match (reason, old) {
            (Reason::Gone, None) => {}
            (Reason::Silent, Some(_)) => assert!(self.in_doubt),
            (Reason::SendFailed, Some(_)) => assert!(self.refused),
            (Reason::Preferred, Some(old)) => assert!(rank(path) < rank(old)),
            (Reason::Faster, Some(old)) => assert_eq!(rank(path), rank(old)),
            (Reason::Chosen, Some(old)) => assert!(is_chosen(path) && !is_chosen(old)),
            (Reason::Lossy | Reason::Slow | Reason::Narrow, Some(old)) => {
                assert!(!is_chosen(old) && self.manager.fault(key(old)).is_some());
            }
            _ => panic!("{reason:?} from {old:?} to {path}"),
        }
        assert!(reason == Reason::Gone || self.good.contains(&path), "{path} did not answer");
        if reason.is_soft() {
            assert!(!self.in_doubt);
            self.good.extend(old);
        }
        self.in_doubt = false;
    }

    /// The smaller one is better.
    fn rank(&self, path: u8) -> (bool, u8) {
        (is_over_tcp(path), self.ranks[usize::from(path)])
    }

    /// Whether the path need not be asked.
    fn may_rest(&self, path: u8) -> bool {
        is_over_tcp(path) && self.candidates.contains(&(path - 1))
    }

    /// Whether the person's choice lets the path be used.
    fn is_allowed(&self, path: u8) -> bool {
        self.choice.is_none_or(|(chosen, pinned)| !pinned || chosen == link(path))
    }

    fn check(&self) {
        assert_eq!(self.manager.active(), self.active.map(key));
        assert!(self.asked.is_subset(&self.candidates), "a path that is gone is still asked");
        if self.connected && self.candidates.iter().any(|path| self.is_allowed(*path)) {
            assert!(self.active.is_some(), "there is a path that could be used");
        }
        let deadline = self.manager.next_deadline();
        assert!(deadline.is_none_or(|at| at > self.now), "a deadline that has passed");
        let mut found = BTreeSet::new();
        for (path, condition, _) in self.manager.paths() {
            let path = self.candidate(path);
            assert!(found.insert(path));
            let is_active = self.active == Some(path);
            match condition {
                Condition::Active => assert!(is_active && !self.in_doubt),
                Condition::Suspect => assert!(is_active && self.in_doubt),
                Condition::Standby => {
                    assert!(!is_active && self.good.contains(&path));
                    let is_checked = self.manager.is_asked_again(key(path));
                    let must_be_checked = self.checks_standbys && !self.may_rest(path);
                    assert!(is_checked || !must_be_checked, "{path} is never checked");
                }
                Condition::Probing => {
                    assert!(!is_active && self.asked.contains(&path));
                    assert!(deadline.is_some_and(|at| at <= self.now + PROBE_TIMEOUT));
                }
                Condition::Failed => assert!(!is_active && deadline.is_some()),
                Condition::Waiting => assert!(self.may_rest(path), "{path} is not asked"),
            }
        }
        assert_eq!(found, self.candidates);
        self.check_dialing();
    }

    /// All paths are dialed that the person's choice allows.
    fn check_dialing(&self) {
        let order = adapter::dial_order(&self.manager, self.ranked(&self.present), self.now);
        let allowed = self.present.iter().copied().filter(|path| self.is_allowed(*path));
        let dialed: BTreeSet<_> = order.iter().copied().collect();
        assert_eq!(dialed, allowed.map(key).collect());
        assert_eq!(dialed.len(), order.len());
    }

    /// Lets time pass.
    fn wait(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(deadline) = self.manager.next_deadline().filter(|at| *at <= end) {
            self.now = deadline;
            self.tell(None);
        }
        self.now = end;
    }

    /// From here on the paths that work are the same: they answer, and nothing is wrong with them, and the others are
    /// silent. In the end the best of them carries the tunnel.
    fn settle(&mut self, works: impl Fn(u8) -> bool) {
        if !self.choice.is_some_and(|(_, pinned)| pinned) {
            self.choice = None;
            self.tell(adapter::choose(None));
        }
        for path in std::mem::take(&mut self.strangers) {
            self.recognise(path, true);
        }
        let usable =
            self.candidates.iter().copied().filter(|path| works(*path) && self.is_allowed(*path));
        let usable: BTreeSet<_> = usable.collect();
        if !self.connected || usable.is_empty() {
            return;
        }
        let end = self.now + LONG;
        let mut answers = BTreeMap::new();
        let (mut news, mut burst) = (None, None);
        let fine = Sample { sent: 24, answered: 24, rtt: Some(MS), rate: Some(50_000_000) };
        loop {
            self.sampled.retain(|path| works(*path));
            burst = burst.or(Some(self.now + BURST)).filter(|_| !self.sampled.is_empty());
            answers.retain(|path, _| self.asked.contains(path));
            for path in self.asked.iter().filter(|path| works(**path)) {
                answers.entry(*path).or_insert(self.now + round_trip(*path));
            }
            let is_wrong = self.active.is_some_and(|active| works(active) == self.in_doubt);
            news = news.or(Some(self.now + NOTICED)).filter(|_| is_wrong);
            let answer = answers.iter().map(|(path, at)| (*at, Some(*path))).min();
            let due = self.manager.next_deadline().map(|at| (at, None));
            let told = [news, burst].map(|at| at.map(|at| (at, None)));
            let next = [answer, due].into_iter().chain(told).flatten().min();
            let Some((at, path)) = next.filter(|(at, _)| *at <= end) else { break };
            self.now = at;
            match (path, self.active) {
                (Some(path), _) => self.answer(path, Some(round_trip(path))),
                (None, _) if burst == Some(at) => {
                    burst = None;
                    if let Some(path) = self.sampled.pop_first() {
                        self.tell(Event::Sampled(key(path), Some(fine)));
                    }
                    if let Some(active) = self.active {
                        let fine = Symptoms { rtt: Some(MS), ..Symptoms::default() };
                        self.tell(Event::Symptoms(key(active), fine));
                    }
                }
                (None, Some(active)) if news == Some(at) => {
                    news = None;
                    self.in_doubt = !works(active);
                    let told = if works(active) { Event::Heard } else { Event::Silent };
                    self.tell(told(key(active)));
                }
                (None, _) => self.tell(None),
            }
        }
        let rank = |path: &u8| self.rank(*path);
        let active = self.active.filter(|active| usable.contains(active));
        let best = usable.iter().map(rank).min();
        assert_eq!(active.as_ref().map(rank), best, "{:?} of {usable:?}", self.active);
    }
}

fn round_trip(path: u8) -> Duration {
    20 * MS * u32::from(path + 1)
}
