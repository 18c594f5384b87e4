//! Keeps the host as the session and its networks want it.

use std::{collections::HashSet, convert::Infallible, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tracing::warn;

use super::{
    Client,
    desired::{ApplyError, Desired},
    ended::Ended,
    greeting::Reached,
};
use crate::{
    host::{Layout, Setup},
    identity::PublicKey,
    path::servers::{Admit, Owner},
    wire::message::Welcome,
};

/// A host that refused a change which nobody else asks for again is asked again so soon.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

impl Client {
    /// Gives the host what is taken of the server's offer.
    pub(super) async fn greeted(
        &self,
        host: &mut impl Setup,
        server: PublicKey,
        welcome: &Welcome,
    ) -> Result<(), ApplyError> {
        self.apply(host, |desired| {
            desired.welcome = Some(welcome.clone());
            desired.session = Some(server);
            (desired.portal, desired.aside) = (false, None);
        })
        .await
    }

    /// There is no session any more: the host stands aside no more, and takes nothing of the inner address. An order to stand aside
    /// may be under way still, which nobody waits for; this one comes after it.
    pub(super) async fn end_session(&self, host: &mut impl Setup) {
        let is_due = {
            let desired = self.desired.lock().await;
            desired.aside.is_some() || desired.takes_own() || !desired.is_applied
        };
        let end = |desired: &mut Desired| (desired.aside, desired.session) = (None, None);
        if is_due && let Err(error) = self.apply(host, end).await {
            warn!(%error, "the host stays as it was");
        }
        // Whatever the host refuses.
        self.desired.lock().await.session = None;
    }

    /// Whether the session is of use, as the host is now. One that is not is closed.
    pub(super) async fn check(&self, reached: &Reached) -> Result<(), Ended> {
        let mut desired = self.desired.lock().await.clone();
        desired.facts = self.reports.facts.borrow().clone();
        desired.welcome = Some(reached.welcome.clone());
        desired.session = Some(reached.server.key());
        let planned = desired.plan().map(drop).map_err(ApplyError::from);
        planned.map_err(|error| error.end(&reached.connected.connection))
    }

    /// Takes the offer again whenever the host's networks have changed, and stands aside over the link that `aside` names, if it
    /// does; returns when the session cannot be kept.
    pub(super) async fn follow_host(
        &self,
        host: &mut impl Setup,
        mut aside: watch::Receiver<Option<String>>,
    ) -> ApplyError {
        let (mut reports, mut is_refused) = (self.reports.clone(), false);
        loop {
            let wanted = aside.borrow_and_update().clone();
            let is_there = {
                let desired = self.desired.lock().await;
                desired.aside == wanted && desired.is_applied
            };
            if is_there || is_refused {
                tokio::select! {
                    () = reports.changed() => {}
                    Ok(()) = aside.changed() => {
                        is_refused = false;
                        continue;
                    }
                    () = sleep(AGAIN), if is_refused => {}
                }
            }
            match self.apply(host, |desired| desired.aside.clone_from(&wanted)).await {
                Err(error @ ApplyError::Offer(_)) => return error,
                Err(ApplyError::Host(error)) => {
                    warn!(%error, "the host stays as it was");
                    is_refused = true;
                }
                Ok(()) => is_refused = false,
            }
        }
    }

    /// Lets packets to the addresses of servers, and of those who lead there, pass the kill switch, as they are found.
    pub(super) async fn admit(
        &self,
        mut host: impl Setup,
        mut admissions: mpsc::Receiver<Admit>,
    ) -> Infallible {
        while let Some(Admit { owner, mut addresses, done }) = admissions.recv().await {
            if self.shown.server().is_some_and(|server| owner == Owner::Server(server)) {
                addresses.extend(self.shown.remote());
            }
            let found = |desired: &mut Desired| {
                desired.found.insert(owner, addresses);
            };
            if let Err(error) = self.apply(&mut host, found).await {
                warn!(%error, "the host does not know the servers' addresses");
            }
            let _ = done.send(());
        }
        std::future::pending().await
    }

    /// Changes what is wanted of the host, and makes the host like that before it returns. On failure nothing
    /// has changed.
    pub(super) async fn apply(
        &self,
        host: &mut impl Setup,
        change: impl FnOnce(&mut Desired),
    ) -> Result<(), ApplyError> {
        let mut desired = self.desired.lock().await;
        let (before, mut changed) = (desired.plan()?.layout, desired.clone());
        changed.facts = self.reports.facts.borrow().clone();
        change(&mut changed);
        let plan = changed.plan()?;
        let layout = &plan.layout;
        // Whoever waits for the host may not wait any more.
        desired.is_applied = false;
        if let Err(error) = host.set(layout.clone()).await {
            if before.aside.is_some() && layout.aside.is_none() {
                // Whatever else failed: it does not stand aside again.
                desired.aside = None;
                return Err(ApplyError::Host(error));
            }
            if before == *layout {
                return Err(ApplyError::Host(error));
            }
            match host.set(before).await {
                Ok(()) => desired.is_applied = true,
                Err(error) => {
                    warn!(%error, "the host cannot be made as it was");
                }
            }
            return Err(ApplyError::Host(error));
        }
        let known: HashSet<_> = before.blocked.iter().collect();
        for route in layout.blocked.iter().filter(|route| !known.contains(route)) {
            warn!(%route, "the server gave this client no address of that family");
        }
        changed.take(&plan);
        *desired = changed;
        self.shown.stands_aside(plan.layout.aside.as_deref());
        if desired.welcome.is_some() {
            let declined = plan.declined();
            self.inside.store(Arc::new(plan.inside));
            let Layout { mtu, addresses, networks, routes, .. } = plan.layout;
            self.shown.set_up(mtu, addresses, [networks, routes].concat(), declined);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::{sync::oneshot, time::timeout};

    use super::*;
    use crate::client::{
        plan::tests::{nets, welcome},
        tests::{FakeHost, FakeNetwork, SERVER, client, client_on, config, reports},
    };

    fn key(client: &Client) -> PublicKey {
        client.servers.all()[0].key()
    }

    /// A client that the server has greeted, and its host.
    async fn greeted(client: Client) -> (Client, FakeHost) {
        let mut host = FakeHost::default();
        let welcome = welcome(&["10.66.0.2/24"], &["198.51.100.0/24"]);
        client.greeted(&mut host, key(&client), &welcome).await.unwrap();
        (client, host)
    }

    #[tokio::test]
    async fn the_servers_offer_is_laid_out_and_shown() {
        let (client, host) = greeted(client(config(), FakeNetwork::of(&[]))).await;
        let [layout] = &host.wishes()[..] else { panic!("not one wish") };
        assert_eq!(layout.addresses, nets(&["10.66.0.2/32"]));
        assert_eq!(layout.servers, [SERVER.into()]);
        let status = client.status();
        assert_eq!((status.mtu, status.addresses), (1400, layout.addresses.clone()));
        assert_eq!(status.routes, nets(&["10.66.0.0/24", "198.51.100.0/24"]));
    }

    #[tokio::test]
    async fn a_host_that_refuses_a_change_is_set_back_and_nothing_has_changed() {
        let (client, mut host) = greeted(client(config(), FakeNetwork::of(&[]))).await;
        let before = host.wishes();
        host.refuse(&[true]);
        let refused = client.apply(&mut host, |desired| desired.portal = true).await;
        assert!(matches!(refused, Err(ApplyError::Host(_))), "{refused:?}");
        assert_eq!(host.wishes(), [before[0].opened(), before[0].clone()]);
        let desired = client.desired.lock().await;
        assert!(!desired.portal && desired.is_applied);
    }

    #[tokio::test]
    async fn a_host_that_could_not_be_set_back_is_made_anew_at_the_next_occasion() {
        let (client, mut host) = greeted(client(config(), FakeNetwork::of(&[]))).await;
        let before = host.wishes();
        host.refuse(&[true, true]);
        client.apply(&mut host, |desired| desired.portal = true).await.unwrap_err();
        host.wishes();
        client.give_way(false, &mut host).await;
        assert_eq!(host.wishes(), before, "although it is as it was");
        client.give_way(false, &mut host).await;
        assert_eq!(host.wishes(), []);
    }

    #[tokio::test]
    async fn an_offer_without_an_address_leaves_the_host_alone() {
        let client = client(config(), FakeNetwork::of(&[]));
        let mut host = FakeHost::default();
        let refused = client.greeted(&mut host, key(&client), &welcome(&[], &[])).await;
        assert!(matches!(refused, Err(ApplyError::Offer(_))), "{refused:?}");
        assert_eq!(host.wishes(), []);
        let desired = client.desired.lock().await;
        assert!(desired.welcome.is_none() && desired.session.is_none());
    }

    #[tokio::test]
    async fn a_session_that_ends_is_over_whatever_the_host_refuses() {
        for is_refused in [false, true] {
            let (client, mut host) = greeted(client(config(), FakeNetwork::of(&[]))).await;
            client.apply(&mut host, |desired| desired.aside = Some("wlan0".into())).await.unwrap();
            host.refuse(&[is_refused]);
            client.end_session(&mut host).await;
            let desired = client.desired.lock().await;
            assert!(desired.session.is_none() && desired.aside.is_none());
            assert_eq!(desired.is_applied, !is_refused);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_kept_through_all_changes_but_one_that_takes_its_address() {
        let (facts, _, reports) = reports();
        let client = client_on(config(), FakeNetwork::of(&[]), reports);
        let (client, host) = greeted(client).await;
        let changes = async {
            let before = host.wishes();
            let own = "198.51.100.0/24".parse().unwrap();
            facts.send_modify(|facts| facts.networks.push(("eth0".into(), own)));
            sleep(Duration::from_secs(1)).await;
            assert_eq!(host.wishes()[0].routes, [], "the network is on a link");
            host.refuse(&[true]);
            facts.send_modify(|facts| facts.networks.clear());
            sleep(Duration::from_secs(1)).await;
            let wishes = host.wishes();
            assert_eq!(wishes[0], before[0]);
            assert_eq!(wishes[1].routes, [], "as before the refusal");
            let inner = [10, 66, 0, 2].into();
            facts.send_modify(|facts| facts.addresses.push(("eth0".into(), inner)));
        };
        let (mut setup, followed) = (host.clone(), Duration::from_secs(10));
        let followed =
            timeout(followed, client.follow_host(&mut setup, watch::Sender::default().subscribe()));
        let (ended, ()) = tokio::join!(followed, changes);
        assert!(matches!(ended, Ok(ApplyError::Offer(_))), "{ended:?}");
        assert_eq!(host.wishes(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_that_the_host_does_not_admit_are_answered_all_the_same() {
        let (client, host) = greeted(client(config(), FakeNetwork::of(&[]))).await;
        let (admission, admissions) = mpsc::channel(1);
        let found = SocketAddr::from(([203, 0, 113, 7], 4433));
        let owner = Owner::Server(client.servers.all()[0].key());
        let asking = async {
            for (refusal, expected) in
                [(true, vec![SERVER.into()]), (false, vec![SERVER.into(), found])]
            {
                host.refuse(&[refusal]);
                let (done, answer) = oneshot::channel();
                let request = Admit { owner, addresses: vec![found], done };
                admission.send(request).await.unwrap();
                assert_eq!(answer.await, Ok(()));
                assert_eq!(host.wishes().pop().unwrap().servers, expected);
            }
        };
        tokio::select! {
            never = client.admit(host.clone(), admissions) => match never {},
            () = asking => {}
        }
    }
}
