//! Does in etcd what [`Tenure`] wants done, and tells it what happens there.
//!
//! ```text
//!  sessions ─ began, ended ─▶ Tenure ─ claims, releases ─▶ etcd
//!  server ◀─ routes, closing ─┘  ▲───── lease, watch ───────┘
//! ```
//! Nobody waits for etcd: whoever tells an event has its consequences for this server when the call returns.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    sync::MutexGuard,
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{sync::Notify, time};
use tracing::{debug, info, warn};

use super::{
    entry::{Change, Entry},
    etcd::{Compare, Store, Write, follow::News},
    record,
    tenure::{Action, Answer, Claim, Event, Known, LEASE, Order, Request, SessionId, TICK, Tenure},
};
use crate::{clock, identity::PublicKey, mutex::Mutex, wire::foreign::Foreign};

/// Where the claims are: `sessions/`, and the peer's key as in `peers/`.
const SESSIONS: &str = "sessions/";
/// Requests to etcd that are under way at once, of a server to which all clients come at once.
const REQUESTS: usize = 64;
/// How long a server that stops tries to give up its claims: it stops without etcd, too.
const GIVING_UP: Duration = Duration::from_secs(1);

/// The server whose sessions these are. It tells the keeper nothing while it is asked.
pub(crate) trait Site: Sync {
    /// Does what concerns this server alone.
    fn carry_out(&self, order: Order);

    /// Its sessions, and how much each has received from its client.
    fn sessions(&self) -> Vec<(PublicKey, SessionId, u64)>;

    /// Has a client say that it is there.
    fn ask(&self, peer: PublicKey, session: SessionId);
}

/// Keeps the sessions of one server in step with etcd.
#[derive(Debug)]
pub(crate) struct Keeper {
    state: Mutex<State>,
    requested: Notify,
}

#[derive(Debug)]
struct State {
    tenure: Tenure,
    /// What etcd is to do.
    requests: VecDeque<Request>,
}

impl Keeper {
    /// The keeper of a server with this key and name.
    pub(crate) fn new(server: PublicKey, name: &str) -> Self {
        let tenure = Tenure::new(server, name.into(), clock::now());
        let state = State { tenure, requests: VecDeque::new() };
        Self { state: Mutex::new(state), requested: Notify::new() }
    }

    /// Something happened at this server.
    pub(crate) fn tell(&self, site: &impl Site, event: Event) {
        let state = &mut *self.state();
        // Under the lock, so that the server does everything in the order in which it was decided.
        for action in state.tenure.handle(event, clock::now()) {
            match action {
                Action::Ask(request) => state.requests.push_back(request),
                Action::Do(order) => site.carry_out(order),
            }
        }
        if !state.requests.is_empty() {
            self.requested.notify_one();
        }
    }

    /// The claims that are known, and whether each is this server's.
    pub(crate) fn claims(&self) -> Vec<(PublicKey, Claim, bool)> {
        let state = self.state();
        state.tenure.claims().map(|(peer, claim, is_ours)| (peer, claim.clone(), is_ours)).collect()
    }

    /// The claim of another server on the peer's session.
    pub(crate) fn elsewhere(&self, peer: PublicKey) -> Option<Claim> {
        self.state().tenure.elsewhere(peer).cloned()
    }

    /// Whether what is known is what etcd has.
    #[cfg(test)]
    pub(crate) fn is_in_step(&self) -> bool {
        self.state().tenure.is_in_step(clock::now())
    }

    /// Goes on for ever, whether etcd answers or not.
    pub(crate) async fn run(&self, store: &Store, site: &impl Site) -> Infallible {
        tokio::select! {
            never = self.hold_lease(store, site) => never,
            never = self.follow(store, site) => never,
            never = self.ask(store, site) => never,
            never = self.watch_clients(site) => never,
        }
    }

    /// Gives up all claims, when [`Self::run`] goes on no more: other servers need not wait for the end of the lease.
    /// With the store of [`Self::run`], which knows a member that answers; one that does not takes more than the time.
    pub(crate) async fn leave(&self, store: &Store) {
        let Some(lease) = self.state().tenure.lease() else { return };
        match time::timeout(GIVING_UP, store.revoke(lease)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "the lease in etcd lapses"),
            Err(_) => debug!("etcd does not answer: the lease lapses"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    async fn hold_lease(&self, store: &Store, site: &impl Site) -> Infallible {
        loop {
            match store.lease(LEASE).await {
                Ok(mut lease) => {
                    info!(lease = lease.id(), "sessions are claimed in etcd");
                    loop {
                        self.tell(site, Event::Lease { id: lease.id(), ends: lease.ends() });
                        if !lease.renewed().await {
                            break;
                        }
                    }
                    warn!(
                        "the lease in etcd is over: sessions go on while their clients are heard"
                    );
                }
                Err(error) => debug!(%error, "no lease"),
            }
            time::sleep(TICK).await;
        }
    }

    async fn follow(&self, store: &Store, site: &impl Site) -> Infallible {
        let mut follow = store.follow(SESSIONS);
        loop {
            match follow.next().await {
                News::All(snapshot) => {
                    let claim = |entry: &Entry| {
                        let (peer, known) = read(entry)?;
                        Some((peer, entry.modified, known))
                    };
                    let claims = snapshot.entries.iter().filter_map(claim).collect();
                    self.tell(site, Event::All { revision: snapshot.revision, claims });
                }
                News::Changes(changes) => {
                    for change in changes {
                        if let Some(event) = changed(change) {
                            self.tell(site, event);
                        }
                    }
                }
                News::Lost => self.tell(site, Event::Away),
                News::Away(error) => {
                    debug!(%error, "claims are not followed");
                    self.tell(site, Event::Away);
                }
            }
        }
    }

    /// Makes requests, many at once.
    async fn ask(&self, store: &Store, site: &impl Site) -> Infallible {
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < REQUESTS
                && let Some(next) = { self.state().requests.pop_front() }
            {
                running.push(request(store, next));
            }
            tokio::select! {
                Some((peer, answer)) = running.next() => {
                    self.tell(site, Event::Answered(peer, answer));
                }
                () = self.requested.notified() => {}
            }
        }
    }

    /// Lets time pass, and asks clients for a sign while etcd gives none.
    async fn watch_clients(&self, site: &impl Site) -> Infallible {
        let mut heard = HashMap::new();
        loop {
            time::sleep(TICK).await;
            if !{ self.state().tenure.wants_signs(clock::now()) } {
                heard = HashMap::new();
            } else {
                let before = std::mem::take(&mut heard);
                for (peer, session, count) in site.sessions() {
                    heard.insert(session, count);
                    match before.get(&session) {
                        Some(before) if *before != count => {
                            self.tell(site, Event::Heard { peer, session });
                        }
                        _ => site.ask(peer, session),
                    }
                }
            }
            self.tell(site, Event::Tick);
        }
    }
}

/// What etcd makes of a request.
async fn request(store: &Store, request: Request) -> (PublicKey, Answer) {
    let (peer, after, write) = match request {
        Request::Claim { peer, claim, after, lease } => {
            let value = record::write(&claim);
            (peer, after, Write::Put { key: key(peer), value, lease })
        }
        Request::Release { peer, revision } => (peer, revision, Write::Delete(key(peer))),
    };
    let condition = Compare::Modified(key(peer), after);
    let answer = match store.transact([condition], [write]).await {
        Ok(Some(revision)) => Answer::Done(revision),
        Ok(None) => Answer::Beaten,
        Err(error) => {
            debug!(%error, "a session is not claimed");
            Answer::Unclear
        }
    };
    (peer, answer)
}

fn key(peer: PublicKey) -> String {
    format!("{SESSIONS}{}", record::name_of(peer))
}

/// The peer of a key.
fn peer_of(key: &str) -> Option<PublicKey> {
    record::public_key(key.strip_prefix(SESSIONS)?).ok()
}

/// A peer and the claim on its session.
fn read(entry: &Entry) -> Option<(PublicKey, Known)> {
    let peer = peer_of(&entry.key)?;
    let claim = record::read(&entry.value).unwrap_or_else(|why| {
        warn!(key = %Foreign::from(entry.key.as_str()), %why, "this claim cannot be read");
        // Somebody has claimed the session, perhaps a newer program.
        let (hello, client) = (None, None);
        Claim { holder: [0; 32].into(), name: "?".into(), epoch: 0, hello, client }
    });
    Some((peer, Known { claim, lease: entry.lease }))
}

fn changed(change: Change) -> Option<Event> {
    Some(match change {
        Change::Put(entry) => {
            let (peer, known) = read(&entry)?;
            Event::Changed { peer, revision: entry.modified, known: Some(known) }
        }
        Change::Deleted { key, revision } => {
            Event::Changed { peer: peer_of(&key)?, revision, known: None }
        }
    })
}

#[cfg(test)]
#[expect(clippy::print_stdout, reason = "what a test measured")]
mod tests {
    use std::{net::TcpListener, sync::Arc};

    use nix::sys::signal::Signal;

    use super::*;
    use crate::{
        fleet::{
            tenure::{Hello, Why},
            tests::Cluster,
        },
        task::Task,
    };

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A server with at most one session, of one peer.
    #[derive(Default)]
    struct Hall {
        done: Mutex<Vec<Order>>,
        session: Mutex<Option<SessionId>>,
        /// Whether its client answers.
        is_heard: Mutex<bool>,
        count: Mutex<u64>,
    }

    impl Site for Hall {
        fn carry_out(&self, order: Order) {
            self.done.lock().push(order);
        }

        fn sessions(&self) -> Vec<(PublicKey, SessionId, u64)> {
            let session = *self.session.lock();
            session.map(|session| (peer(), session, *self.count.lock())).into_iter().collect()
        }

        fn ask(&self, _: PublicKey, _: SessionId) {
            *self.count.lock() += u64::from(*self.is_heard.lock());
        }
    }

    struct Server {
        keeper: Arc<Keeper>,
        hall: Arc<Hall>,
        _running: Task,
    }

    fn peer() -> PublicKey {
        [7; 32].into()
    }

    impl Server {
        async fn new(name: &str, number: u8, cluster: &Cluster) -> Self {
            Self::with(name, number, cluster.store()).await
        }

        async fn with(name: &str, number: u8, store: Store) -> Self {
            let keeper = Arc::new(Keeper::new([number; 32].into(), name));
            let hall = Arc::new(Hall::default());
            let running = Task::spawn("keeper", {
                let (keeper, hall) = (keeper.clone(), hall.clone());
                async move { keeper.run(&store, &*hall).await }
            });
            let server = Self { keeper, hall, _running: running };
            server.until("in step", || server.keeper.is_in_step()).await;
            server
        }

        fn begin(&self, session: SessionId, number: u64) {
            *self.hall.session.lock() = Some(session);
            let hello = Hello { process: 1, number };
            let began = Event::Began { peer: peer(), session, hello, client: None };
            self.keeper.tell(&*self.hall, began);
        }

        async fn until(&self, what: &str, is_so: impl Fn() -> bool) -> Duration {
            let begun = clock::now();
            while !is_so() {
                assert!(clock::now() - begun < PATIENCE, "{what}: {:?}", self.hall.done);
                time::sleep(Duration::from_millis(2)).await;
            }
            clock::now() - begun
        }

        /// Waits until the server has done what is wanted, once; how long that took.
        async fn does(&self, what: &str, is_it: impl Fn(&Order) -> bool) -> Duration {
            self.until(what, || self.hall.done.lock().iter().any(&is_it)).await
        }

        async fn holds(&self, epoch: u64) -> Duration {
            self.until("its claim", || {
                let claims = self.keeper.claims();
                matches!(&claims[..], [(_, claim, true)] if claim.epoch == epoch)
            })
            .await
        }

        fn is_closed(&self) -> bool {
            let done = self.hall.done.lock();
            done.iter().any(|it| matches!(it, Order::Close { .. }))
        }
    }

    #[tokio::test]
    async fn a_session_that_moves_between_two_servers_is_withdrawn_and_closed_where_it_was() {
        let cluster = Cluster::of(1).await;
        let berlin = Server::new("berlin", 1, &cluster).await;
        let paris = Server::new("paris", 2, &cluster).await;
        berlin.begin(1, 1);
        let claimed = berlin.holds(1).await;
        paris.begin(2, 2);
        let withdrawn =
            berlin.does("withdrawn", |it| matches!(it, Order::Withdraw { session: 1, .. })).await;
        assert_eq!(berlin.keeper.elsewhere(peer()).unwrap().name.as_str(), "paris");
        let closed = |it: &Order| matches!(it, Order::Close { why: Why::TakenOver, .. });
        let grace = berlin.does("closed", closed).await;
        println!(
            "claimed after {claimed:?}, withdrawn after {withdrawn:?}, closed {grace:?} later"
        );
        assert!(grace > Duration::from_secs(2));
        paris.keeper.tell(&*paris.hall, Event::Ended { peer: peer(), session: 2 });
        berlin.until("released", || berlin.keeper.claims().is_empty()).await;
        assert!(!paris.is_closed());
    }

    #[tokio::test]
    async fn a_server_that_stops_leaves_no_claims() {
        let cluster = Cluster::of(1).await;
        let berlin = Server::new("berlin", 1, &cluster).await;
        berlin.begin(1, 1);
        berlin.holds(1).await;
        let (keeper, store) = (berlin.keeper.clone(), cluster.store());
        drop(berlin);
        assert_eq!(store.read(SESSIONS).await.unwrap().entries.len(), 1);
        keeper.leave(&store).await;
        assert_eq!(store.read(SESSIONS).await.unwrap().entries, []);
    }

    #[tokio::test]
    async fn a_server_that_stops_gives_up_its_claims_although_a_member_is_silent() {
        let cluster = Cluster::of(1).await;
        // Its connections are taken, and nobody answers.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut access = cluster.access();
        access.endpoints.insert(0, format!("http://{}", silent.local_addr().unwrap()));
        let store = Store::new(&access);
        let berlin = Server::with("berlin", 1, store.clone()).await;
        berlin.begin(1, 1);
        berlin.holds(1).await;
        let keeper = berlin.keeper.clone();
        drop(berlin);
        keeper.leave(&store).await;
        assert_eq!(cluster.store().read(SESSIONS).await.unwrap().entries, []);
    }

    #[tokio::test]
    async fn without_etcd_a_client_that_answers_stays_and_a_silent_one_is_given_up() {
        let mut cluster = Cluster::of(1).await;
        let berlin = Server::new("berlin", 1, &cluster).await;
        let paris = Server::new("paris", 2, &cluster).await;
        *berlin.hall.is_heard.lock() = true;
        berlin.begin(1, 1);
        berlin.holds(1).await;
        paris.begin(2, 2);
        paris.holds(2).await;
        berlin.begin(3, 3);
        berlin.holds(3).await;
        cluster.kill(0);
        paris.begin(4, 4);
        let cut_off = |it: &Order| matches!(it, Order::Close { why: Why::CutOff, .. });
        let fenced = paris.does("cut off", cut_off).await;
        println!("cut off after {fenced:?}");
        assert!(fenced < LEASE + 3 * TICK);
        assert!(!berlin.is_closed());
        cluster.start(0);
        berlin.until("in step", || berlin.keeper.is_in_step()).await;
        berlin.until("its claim", || !berlin.keeper.claims().is_empty()).await;
        assert!(!berlin.is_closed(), "{:?}", berlin.hall.done);
    }

    #[tokio::test]
    async fn a_member_that_stops_does_not_end_claims_while_a_majority_lives() {
        let cluster = Cluster::of(3).await;
        let berlin = Server::new("berlin", 1, &cluster).await;
        berlin.begin(1, 1);
        berlin.holds(1).await;
        cluster.signal(0, Signal::SIGSTOP);
        time::sleep(LEASE + 2 * TICK).await;
        cluster.signal(0, Signal::SIGCONT);
        let claims = berlin.keeper.claims();
        assert!(berlin.keeper.is_in_step() && claims.len() == 1, "{claims:?}");
        assert!(!berlin.is_closed());
    }
}
