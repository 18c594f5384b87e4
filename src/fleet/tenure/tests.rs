//! Servers against an etcd in memory: scenarios; a random world is in [`world`].

mod world;

use super::{
    suspension::{LONGEST_WAIT, UNHEARD},
    *,
};

const PEER: [u8; 32] = [7; 32];

fn peer() -> PublicKey {
    PEER.into()
}

fn hello(process: u64, number: u64) -> Hello {
    Hello { process, number }
}

/// One server, and what it has to do with etcd.
struct Server {
    tenure: Tenure,
    now: Instant,
    asked: Vec<Request>,
    done: Vec<Order>,
}

/// etcd for one key.
#[derive(Default)]
struct Etcd {
    revision: i64,
    known: Option<Known>,
    put: i64,
}

impl Server {
    /// A server that has a lease and knows that etcd has nothing.
    fn new(number: u8, etcd: &Etcd) -> Self {
        let now = Instant::now();
        let name = format!("server{number}").as_str().into();
        let tenure = Tenure::new([number; 32].into(), name, now);
        let mut server = Self { tenure, now, asked: Vec::new(), done: Vec::new() };
        server.renew(number.into());
        server.hear_all(etcd);
        server
    }

    fn handle(&mut self, event: Event) {
        for action in self.tenure.handle(event, self.now) {
            match action {
                Action::Ask(request) => self.asked.push(request),
                Action::Do(order) => self.done.push(order),
            }
        }
    }

    fn renew(&mut self, lease: i64) {
        self.handle(Event::Lease { id: lease, ends: self.now + LEASE });
    }

    fn begin(&mut self, session: SessionId, hello: Hello) {
        self.handle(Event::Began { peer: peer(), session, hello, client: None });
    }

    fn end(&mut self, session: SessionId) {
        self.handle(Event::Ended { peer: peer(), session });
    }

    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now = (self.now + TICK).min(until);
            self.handle(Event::Tick);
        }
    }

    fn hear_all(&mut self, etcd: &Etcd) {
        let claims = etcd.known.iter().map(|known| (peer(), etcd.put, known.clone())).collect();
        self.handle(Event::All { revision: etcd.revision, claims });
    }

    fn hear(&mut self, etcd: &Etcd) {
        let (revision, known) = (etcd.revision, etcd.known.clone());
        self.handle(Event::Changed { peer: peer(), revision, known });
    }

    /// Lets etcd do what was asked, and hears of it.
    fn ask(&mut self, etcd: &mut Etcd) {
        for action in std::mem::take(&mut self.asked) {
            let answer = etcd.asked(&action);
            self.handle(Event::Answered(peer(), answer));
            self.hear(etcd);
        }
    }

    fn done(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.done)
    }

    fn closed(&mut self) -> Vec<Why> {
        let why = |action| match action {
            Order::Close { why, .. } => Some(why),
            _ => None,
        };
        self.done().into_iter().filter_map(why).collect()
    }
}

impl Etcd {
    fn asked(&mut self, request: &Request) -> Answer {
        let (expected, known) = match request {
            Request::Claim { claim, after, lease, .. } => {
                (*after, Some(Known { claim: claim.clone(), lease: *lease }))
            }
            Request::Release { revision, .. } => (*revision, None),
        };
        if expected != if self.known.is_some() { self.put } else { 0 } {
            return Answer::Beaten;
        }
        self.change(known);
        Answer::Done(self.revision)
    }

    fn change(&mut self, known: Option<Known>) {
        self.revision += 1;
        self.put = self.revision;
        self.known = known;
    }

    fn holder(&self) -> Option<PublicKey> {
        self.known.as_ref().map(|known| known.claim.holder)
    }

    fn epoch(&self) -> u64 {
        self.known.as_ref().map_or(0, |known| known.claim.epoch)
    }
}

/// Two servers; the client's first session is at the first one, and etcd knows.
fn two(hello: Hello) -> (Etcd, Server, Server) {
    let mut etcd = Etcd::default();
    let [mut first, mut second] = [1, 2].map(|number| Server::new(number, &etcd));
    first.begin(10, hello);
    first.ask(&mut etcd);
    second.hear(&etcd);
    assert_eq!(etcd.holder(), Some(first.tenure.server));
    assert!(matches!(&second.done()[..], [Order::Elsewhere { holder: Some(_), .. }]));
    assert_eq!(first.done(), []);
    (etcd, first, second)
}

#[test]
fn a_session_that_moves_is_withdrawn_at_once_and_closed_after_a_grace() {
    let (mut etcd, mut first, mut second) = two(hello(1, 1));
    second.begin(20, hello(1, 2));
    second.ask(&mut etcd);
    assert_eq!((etcd.holder(), etcd.epoch()), (Some(second.tenure.server), 2));
    assert_eq!(second.done(), [Order::Elsewhere { peer: peer(), holder: None }]);
    first.hear(&etcd);
    let [Order::Elsewhere { .. }, Order::Withdraw { session: 10, .. }] = &first.done()[..] else {
        panic!("withdrawn at once")
    };
    first.wait(GRACE - TICK);
    assert_eq!(first.done(), []);
    first.wait(TICK);
    assert_eq!(first.closed(), [Why::TakenOver]);
}

#[test]
fn the_later_hello_counts_whichever_claim_comes_last() {
    for first_asks_last in [false, true] {
        let mut etcd = Etcd::default();
        let [mut first, mut second] = [1, 2].map(|number| Server::new(number, &etcd));
        first.begin(10, hello(1, 1));
        second.begin(20, hello(1, 2));
        let mut order = [&mut first, &mut second];
        if first_asks_last {
            order.reverse();
        }
        // Each hears of the other's claim late.
        for server in &mut order {
            for action in std::mem::take(&mut server.asked) {
                let answer = etcd.asked(&action);
                server.handle(Event::Answered(peer(), answer));
            }
        }
        for _ in 0..3 {
            for server in &mut order {
                server.hear(&etcd);
                server.ask(&mut etcd);
            }
        }
        assert_eq!(etcd.holder(), Some(second.tenure.server), "last: {first_asks_last}");
        assert!(first.done().contains(&Order::Withdraw { peer: peer(), session: 10 }));
        assert_eq!(second.closed(), []);
    }
}

#[test]
fn another_process_displaces_the_older_one_at_once() {
    let (mut etcd, mut first, mut second) = two(hello(1, 5));
    second.begin(20, hello(2, 1));
    second.ask(&mut etcd);
    assert_eq!(etcd.holder(), Some(second.tenure.server));
    first.hear(&etcd);
    assert_eq!(first.closed(), [Why::Displaced(None)]);
}

#[test]
fn of_equal_hellos_the_one_that_was_claimed_last_counts_and_nobody_claims_again() {
    let (mut etcd, mut first, mut second) = two(hello(1, 1));
    second.begin(20, hello(1, 1));
    for _ in 0..3 {
        second.ask(&mut etcd);
        first.hear(&etcd);
        first.ask(&mut etcd);
        second.hear(&etcd);
        first.wait(TICK);
        second.wait(TICK);
    }
    assert_eq!((etcd.holder(), etcd.epoch()), (Some(second.tenure.server), 2));
    assert_eq!(first.closed(), [Why::TakenOver]);
    assert_eq!(second.closed(), []);
}

#[test]
fn an_epoch_grows_when_the_claim_before_has_ended_or_is_back_from_old_data() {
    let (mut etcd, mut first, mut second) = two(hello(1, 1));
    let old = Etcd { revision: etcd.revision, known: etcd.known.clone(), put: etcd.put };
    second.begin(20, hello(1, 2));
    second.ask(&mut etcd);
    first.hear(&etcd);
    first.end(10);
    // The second one loses its lease.
    etcd.change(None);
    first.hear(&etcd);
    second.end(20);
    first.begin(11, hello(1, 3));
    first.ask(&mut etcd);
    assert_eq!((etcd.holder(), etcd.epoch()), (Some(first.tenure.server), 3));
    etcd = old;
    first.hear_all(&etcd);
    first.ask(&mut etcd);
    assert_eq!((etcd.holder(), etcd.epoch()), (Some(first.tenure.server), 4));
}

#[test]
fn the_largest_epoch_that_there_is_keeps_nobody_from_claiming() {
    let (mut etcd, mut first, mut second) = two(hello(1, 1));
    let mut known = etcd.known.clone().unwrap();
    known.claim.epoch = u64::MAX;
    etcd.change(Some(known));
    first.hear(&etcd);
    second.hear(&etcd);
    second.begin(20, hello(1, 2));
    second.ask(&mut etcd);
    assert_eq!((etcd.holder(), etcd.epoch()), (Some(second.tenure.server), u64::MAX));
}

#[test]
fn a_session_comes_back_when_the_one_that_took_it_over_ends_at_once() {
    let (mut etcd, mut first, mut second) = two(hello(1, 1));
    second.begin(20, hello(1, 2));
    second.ask(&mut etcd);
    first.hear(&etcd);
    first.wait(TICK);
    // Its welcome was of no use.
    second.end(20);
    second.ask(&mut etcd);
    assert_eq!(etcd.holder(), None);
    first.done();
    first.hear(&etcd);
    assert!(first.done().contains(&Order::Restore { peer: peer(), session: 10 }));
    first.ask(&mut etcd);
    assert_eq!(etcd.holder(), Some(first.tenure.server));
    first.wait(GRACE + TICK);
    assert_eq!(first.closed(), []);
}

#[test]
fn a_session_that_ends_before_its_claim_is_answered_is_released() {
    let mut etcd = Etcd::default();
    let mut server = Server::new(1, &etcd);
    server.begin(10, hello(1, 1));
    server.end(10);
    server.ask(&mut etcd);
    assert!(etcd.known.is_some());
    server.ask(&mut etcd);
    assert_eq!(etcd.holder(), None);
    assert!(server.tenure.peers.is_empty(), "nothing is left of it");
}

#[test]
fn without_etcd_a_client_that_is_heard_keeps_its_session_and_a_silent_one_is_cut_off() {
    for is_heard in [true, false] {
        let (_, mut server, _) = two(hello(1, 1));
        server.handle(Event::Away);
        for _ in 0..20 {
            if is_heard {
                server.handle(Event::Heard { peer: peer(), session: 10 });
            }
            server.wait(TICK);
        }
        let expected = if is_heard { vec![] } else { vec![Why::CutOff] };
        assert_eq!(server.closed(), expected);
    }
}

/// A server that hears neither etcd nor the client any more, and has told nobody so far.
fn suspended(etcd: &Etcd, server: &mut Server) {
    server.renew(1);
    server.hear_all(etcd);
    server.wait(UNSURE + UNHEARD);
    assert_eq!(server.done(), []);
    server.wait(TICK);
    assert_eq!(server.done(), [Order::Suspend { peer: peer(), session: 10 }]);
    server.wait(TICK);
    assert_eq!(server.done(), [], "said once");
}

#[test]
fn routes_to_a_silent_client_go_with_etcd_and_are_back_when_it_is_heard() {
    let (etcd, mut server, _) = two(hello(1, 1));
    suspended(&etcd, &mut server);
    server.handle(Event::Heard { peer: peer(), session: 10 });
    assert_eq!(server.done(), [Order::Restore { peer: peer(), session: 10 }]);
    server.wait(UNHEARD - TICK);
    server.handle(Event::Heard { peer: peer(), session: 10 });
    server.wait(UNHEARD - TICK);
    assert_eq!(server.done(), []);
}

#[test]
fn etcd_alone_brings_no_routes_back() {
    for is_elsewhere in [false, true] {
        let (mut etcd, mut first, mut second) = two(hello(1, 1));
        suspended(&etcd, &mut first);
        if is_elsewhere {
            second.begin(20, hello(1, 2));
            second.ask(&mut etcd);
        }
        // Its lease is well again, and it has not heard of the claim.
        first.renew(1);
        first.wait(TICK);
        assert_eq!(first.done(), []);
        assert!(first.tenure.wants_signs(first.now), "the client may answer first");
        first.hear_all(&etcd);
        let (restored, left) = (
            Order::Restore { peer: peer(), session: 10 },
            Order::Withdraw { peer: peer(), session: 10 },
        );
        let done = first.done();
        assert!(!done.contains(&restored) && done.contains(&left) == is_elsewhere, "{done:?}");
        assert_eq!(first.tenure.wants_signs(first.now), !is_elsewhere);
        first.handle(Event::Heard { peer: peer(), session: 10 });
        assert_eq!(first.done().contains(&restored), !is_elsewhere);
    }
}

/// Seconds pass without etcd, in some of which the client is heard: when routes went and came back.
fn changes(server: &mut Server, seconds: impl Iterator<Item = bool>) -> Vec<(usize, bool)> {
    let mut changes = Vec::new();
    for (second, is_heard) in (1..).zip(seconds) {
        server.wait(TICK);
        if is_heard {
            server.handle(Event::Heard { peer: peer(), session: 10 });
        }
        changes.extend(server.done().into_iter().map(|order| match order {
            Order::Suspend { .. } => (second, false),
            Order::Restore { .. } => (second, true),
            other => panic!("{other:?}"),
        }));
    }
    changes
}

#[test]
fn without_etcd_a_client_that_answers_now_and_then_has_its_routes_back_once_and_then_stays_without()
{
    let (etcd, mut server, _) = two(hello(1, 1));
    server.handle(Event::Away);
    let changes = changes(&mut server, (1..=600).map(|second| second % 5 == 0));
    let directions: Vec<_> = changes.iter().map(|(_, is_there)| *is_there).collect();
    assert_eq!(directions, [false, true, false], "{changes:?}");
    assert!(changes[2].0 < 20, "{changes:?}");
    // etcd is back, and the client answers as seldom as before.
    let mut waited = 0;
    while server.done().is_empty() {
        waited += 1;
        assert!(waited < 20, "no routes");
        server.renew(1);
        server.hear_all(&etcd);
        server.wait(TICK);
        if waited % 5 == 0 {
            server.handle(Event::Heard { peer: peer(), session: 10 });
        }
    }
    assert!(waited > 10, "{waited}");
}

#[test]
fn routes_that_go_again_and_again_wait_longer_each_time_until_they_have_stayed() {
    let (_, mut server, _) = two(hello(1, 1));
    server.handle(Event::Away);
    // Out of reach for four seconds, and then heard for a minute.
    let answers = |second: usize| second % 64 >= 4;
    let changes = changes(&mut server, (0..64 * 6).map(answers));
    let waits: Vec<_> = changes
        .iter()
        .filter(|(_, is_there)| *is_there)
        .map(|(second, _)| second % 64 - 4)
        .collect();
    // The first outage is over before the routes would go.
    assert_eq!(waits, [1, 11, 21, 31, 31], "{changes:?}");
    let mut heard = std::iter::repeat_n(true, 300);
    assert_eq!(self::changes(&mut server, &mut heard), []);
    let changes = self::changes(&mut server, (0..10).map(answers));
    assert_eq!(changes.iter().map(|it| it.1).collect::<Vec<_>>(), [false, true], "forgotten");
    assert!(changes[1].0 < 7, "{changes:?}");
}

#[test]
fn a_client_that_has_nothing_to_say_and_leaves_out_an_answer_now_and_then_is_heard_steadily() {
    let (_, mut server, _) = two(hello(1, 1));
    server.handle(Event::Away);
    let silent = |seconds| std::iter::repeat_n(false, seconds);
    assert_eq!(changes(&mut server, silent(8)).len(), 1);
    assert_eq!(changes(&mut server, std::iter::once(true)), [(1, true)]);
    assert_eq!(changes(&mut server, silent(4)), [(3, false)]);
    // It is asked when it was not heard: each other second, and once more after an answer that is lost.
    let idle = (0..13).map(|second| [0, 2].contains(&(second % 5)));
    assert_eq!(changes(&mut server, idle), [(11, true)]);
}

#[test]
fn the_session_of_a_dead_process_does_not_displace_the_one_that_follows_it() {
    let etcd = Etcd::default();
    let [mut first, mut second] = [1, 2].map(|number| Server::new(number, &etcd));
    // Both begin without etcd, and the second one is the first that reaches it again.
    first.handle(Event::Away);
    first.begin(10, hello(1, 1));
    first.asked.clear();
    suspended_without_etcd(&mut first);
    let mut etcd = etcd;
    second.begin(20, hello(2, 1));
    second.ask(&mut etcd);
    first.renew(1);
    first.hear_all(&etcd);
    assert_eq!(first.closed(), [Why::Displaced(None)]);
    assert_eq!(first.asked, []);
    assert_eq!(second.closed(), []);
}

fn suspended_without_etcd(server: &mut Server) {
    server.wait(UNSURE + UNHEARD + 2 * TICK);
    assert_eq!(server.done(), [Order::Suspend { peer: peer(), session: 10 }]);
}

#[test]
fn a_session_that_left_while_its_routes_were_gone_has_them_back_once() {
    let (mut etcd, mut first, mut second) = two(hello(1, 1));
    suspended(&etcd, &mut first);
    second.begin(20, hello(1, 2));
    second.ask(&mut etcd);
    first.renew(1);
    first.hear_all(&etcd);
    second.end(20);
    second.ask(&mut etcd);
    first.done();
    first.hear(&etcd);
    first.handle(Event::Heard { peer: peer(), session: 10 });
    let restored = Order::Restore { peer: peer(), session: 10 };
    assert_eq!(first.done().iter().filter(|it| **it == restored).count(), 1);
}

#[test]
fn a_server_is_cut_off_when_its_lease_is_over_and_not_before() {
    let (_, mut server, _) = two(hello(1, 1));
    server.wait(LEASE - TICK);
    assert_eq!(server.closed(), []);
    server.wait(TICK);
    assert_eq!(server.closed(), [Why::CutOff]);
}

#[test]
fn a_server_with_a_lease_that_is_not_told_of_claims_is_cut_off_from_a_client_that_is_silent() {
    for is_heard in [true, false] {
        let (etcd, mut server, _) = two(hello(1, 1));
        server.handle(Event::Away);
        for second in 1..15 {
            server.renew(1);
            server.wait(TICK);
            assert_eq!(server.tenure.wants_signs(server.now), second > 2, "{second} s");
            if is_heard && second > 2 {
                server.handle(Event::Heard { peer: peer(), session: 10 });
            }
            if second == 3 {
                // It is refused again, for another reason.
                server.handle(Event::Away);
            }
            if second == 9 {
                let suspended = Order::Suspend { peer: peer(), session: 10 };
                let expected = if is_heard { vec![] } else { vec![suspended] };
                assert_eq!(server.done(), expected);
            }
        }
        let expected = if is_heard { vec![] } else { vec![Why::CutOff] };
        assert_eq!(server.closed(), expected);
        server.hear_all(&etcd);
        assert!(!server.tenure.wants_signs(server.now));
    }
}

#[test]
fn a_server_that_stood_still_asks_its_clients_before_it_gives_them_up() {
    for is_heard in [true, false] {
        let (_, mut server, _) = two(hello(1, 1));
        server.now += LEASE + 2 * TICK;
        server.handle(Event::Tick);
        assert!(server.tenure.wants_signs(server.now));
        assert_eq!(server.done(), []);
        server.wait(TICK);
        if is_heard {
            server.handle(Event::Heard { peer: peer(), session: 10 });
        }
        server.wait(TICK);
        let expected = if is_heard { vec![] } else { vec![Why::CutOff] };
        assert_eq!(server.closed(), expected);
    }
}

#[test]
fn after_an_outage_of_etcd_a_session_is_claimed_with_the_new_lease() {
    let (mut etcd, mut server, _) = two(hello(1, 1));
    server.handle(Event::Away);
    for _ in 0..15 {
        server.wait(TICK);
        server.handle(Event::Heard { peer: peer(), session: 10 });
    }
    // The old lease has taken the claim along.
    etcd.change(None);
    server.renew(11);
    assert!(server.asked.is_empty(), "it does not know what is there");
    server.hear_all(&etcd);
    server.ask(&mut etcd);
    assert_eq!(etcd.known.as_ref().map(|known| known.lease), Some(11));
    server.renew(11);
    assert!(server.asked.is_empty());
}

#[test]
fn after_an_outage_a_silent_session_gives_way_and_one_that_is_heard_does_not() {
    for is_heard in [true, false] {
        let (mut etcd, mut first, mut second) = two(hello(1, 1));
        // The first server begins anew, without etcd, while the second one claims the session.
        first = Server { tenure: Tenure::new([1; 32].into(), "".into(), first.now), ..first };
        first.begin(11, hello(1, 1));
        second.begin(20, hello(2, 1));
        second.ask(&mut etcd);
        for _ in 0..9 {
            first.wait(TICK);
        }
        if is_heard {
            first.handle(Event::Heard { peer: peer(), session: 11 });
        }
        first.renew(12);
        first.now += TICK;
        first.hear_all(&etcd);
        first.ask(&mut etcd);
        let holder = if is_heard { &first } else { &second };
        assert_eq!(etcd.holder(), Some(holder.tenure.server));
    }
}

#[test]
fn a_claim_that_nobody_answered_is_made_again() {
    let mut etcd = Etcd::default();
    let mut server = Server::new(1, &etcd);
    server.begin(10, hello(1, 1));
    for was_done in [false, true] {
        let action = server.asked.remove(0);
        if was_done {
            etcd.asked(&action);
        }
        server.handle(Event::Answered(peer(), Answer::Unclear));
        server.wait(TICK);
    }
    // The second was done, as the watch tells, before the third is: that one comes too late.
    server.ask(&mut etcd);
    assert_eq!((etcd.epoch(), server.asked.len()), (1, 0));
}

#[test]
fn an_etcd_with_old_data_displaces_nobody() {
    for claims_are_back in [false, true] {
        // The second server had the session of an earlier process; then the first one claimed that of the next.
        let mut etcd = Etcd::default();
        let [mut first, mut second] = [1, 2].map(|number| Server::new(number, &etcd));
        second.begin(20, hello(1, 1));
        second.ask(&mut etcd);
        let (known, put) = (etcd.known.clone(), etcd.put);
        first.hear(&etcd);
        first.begin(10, hello(2, 1));
        first.ask(&mut etcd);
        assert_eq!(etcd.holder(), Some(first.tenure.server));
        first.done();
        let mut old = Etcd { revision: put, known: known.filter(|_| claims_are_back), put };
        first.handle(Event::Away);
        first.hear_all(&old);
        first.ask(&mut old);
        assert_eq!(old.holder(), Some(first.tenure.server), "back: {claims_are_back}");
        assert!(first.done().iter().all(|it| matches!(it, Order::Elsewhere { .. })));
    }
}

#[test]
fn a_claim_is_written_as_documented_and_read_again() {
    let claim = Claim {
        holder: [1; 32].into(),
        name: "berlin".into(),
        epoch: 3,
        hello: Some(hello(4660, 7)),
        client: Some([192, 0, 2, 1].into()),
    };
    let text = r#"{"version":1,"holder":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=","name":"berlin","epoch":3,"instance":4660,"hello":7,"client":"192.0.2.1"}"#;
    let value = crate::fleet::record::write(&claim);
    assert_eq!(String::from_utf8(value.clone()).unwrap(), text);
    assert_eq!(crate::fleet::record::read::<Claim>(&value).unwrap(), claim);
    let half = text.replace(r#""hello":7,"#, "");
    let read = crate::fleet::record::read::<Claim>(half.as_bytes()).unwrap();
    assert_eq!(read, Claim { hello: None, ..claim });
}
