//! Captive portals, for as long as there is no connection.

use std::{convert::Infallible, time::Duration};

use tracing::{info, warn};

use super::Client;
use crate::{host::Setup, link::candidate::Candidate};

/// From one look for captive portals to the next, while there is no connection. Before the first one a good
/// network has answered.
const PORTAL_PACE: Duration = Duration::from_secs(3);

impl Client {
    /// Tells of captive portals that keep us from connecting, and lets a browser reach them, if it may.
    pub(super) async fn look_for_portals(&self, host: &mut impl Setup) -> Infallible {
        loop {
            tokio::time::sleep(PORTAL_PACE).await;
            // A link with a portal has one whichever server is asked.
            let known = self.servers.all().iter().map(|it| it.names.known()).collect::<Vec<_>>();
            let servers = known.into_iter().find(|known| !known.is_empty()).unwrap_or_default();
            let (network, config) = (&self.roaming.network, self.config.borrow().clone());
            let find =
                async || network.candidates(&servers, &config.paths).await.unwrap_or_default();
            let mut suspected = Vec::new();
            for (candidate, _) in find().await {
                if network.portal(&candidate).await {
                    suspected.push(candidate);
                }
            }
            // Meanwhile a link may be behind another router. Its metric and address may change within one network.
            let network_of = |it: &Candidate| (it.index, it.router);
            let found = find().await;
            let found = found.iter().map(|(it, _)| network_of(it)).collect::<Vec<_>>();
            suspected.retain(|it| found.contains(&network_of(it)));
            suspected.iter().for_each(|candidate| self.shown.portal(&candidate.link));
            let may_pass = self.config.borrow().tun.exclude.portal;
            self.give_way(!suspected.is_empty() && may_pass, host).await;
        }
    }

    /// Lets everything leave outside of the tunnel, or not any more.
    pub(super) async fn give_way(&self, gives_way: bool, host: &mut impl Setup) {
        let gave_way = {
            let desired = self.desired.lock().await;
            if desired.is_applied && desired.portal == gives_way {
                return;
            }
            desired.portal
        };
        match self.apply(host, |desired| desired.portal = gives_way).await {
            Err(error) => warn!(%error, "the host stays as it was"),
            Ok(()) if gave_way == gives_way => {}
            Ok(()) if gives_way => {
                info!("captive portal: everything may leave outside of the tunnel")
            }
            Ok(()) => info!("no captive portal any more: the tunnel takes its traffic again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::{
        client::tests::{FakeHost, FakeNetwork, client, config},
        config::Exclude,
        daemon::events::Event,
    };

    /// Looks `times` times for portals; whether each layout that was wanted lets everything out.
    async fn look(client: &Client, host: &FakeHost, times: u32) -> Vec<bool> {
        let limit = times * PORTAL_PACE + PORTAL_PACE / 2;
        let mut setup = host.clone();
        timeout(limit, client.look_for_portals(&mut setup)).await.unwrap_err();
        host.wishes().iter().map(|layout| layout.is_open).collect()
    }

    fn behind_portal(exclude: Exclude) -> (Client, FakeHost, std::sync::Arc<FakeNetwork>) {
        let network = FakeNetwork::of(&["eth0", "wlan0"]);
        network.portals.lock().unwrap().push("wlan0".into());
        let mut config = config();
        config.tun.exclude = exclude;
        (client(config, network.clone()), FakeHost::default(), network)
    }

    #[tokio::test(start_paused = true)]
    async fn everything_may_leave_for_as_long_as_a_portal_answers() {
        let exclude = Exclude { portal: true, ..Exclude::default() };
        let (client, host, network) = behind_portal(exclude);
        let mut events = client.events.listen();
        assert_eq!(look(&client, &host, 3).await, [true], "once");
        assert_eq!(client.status().portal.as_deref(), Some("wlan0"));
        assert_eq!(events.try_recv(), Ok(Event::Portal { link: "wlan0".into() }));
        assert!(events.try_recv().is_err(), "it is told once");
        network.portals.lock().unwrap().clear();
        assert_eq!(look(&client, &host, 3).await, [false]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_portal_that_answers_after_its_link_got_into_another_network_opens_nothing() {
        let exclude = Exclude { portal: true, ..Exclude::default() };
        let (client, host, network) = behind_portal(exclude);
        *network.portals_take.lock().unwrap() = Duration::from_secs(1);
        let moves = async {
            tokio::time::sleep(PORTAL_PACE + Duration::from_millis(1500)).await;
            let mut candidates = network.candidates.lock().unwrap();
            candidates[1].router = Some([10, 0, 0, 9].into());
            network.portals.lock().unwrap().clear();
        };
        let (wishes, ()) = tokio::join!(look(&client, &host, 2), moves);
        assert_eq!((wishes, client.status().portal), (vec![false], None));
    }

    /// NetworkManager makes a route behind a portal worse as soon as it knows.
    #[tokio::test(start_paused = true)]
    async fn a_portal_counts_although_the_metric_of_its_route_changes_meanwhile() {
        let exclude = Exclude { portal: true, ..Exclude::default() };
        let (client, host, network) = behind_portal(exclude);
        *network.portals_take.lock().unwrap() = Duration::from_secs(1);
        let changes = async {
            tokio::time::sleep(PORTAL_PACE + Duration::from_millis(1500)).await;
            network.candidates.lock().unwrap()[1].metric += 20_000;
        };
        let (wishes, ()) = tokio::join!(look(&client, &host, 2), changes);
        assert_eq!(wishes, [true]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_portal_is_only_told_of_where_nothing_may_leave_outside() {
        let (client, host, _) = behind_portal(Exclude::default());
        assert_eq!(look(&client, &host, 2).await, [false]);
        assert_eq!(client.status().portal.as_deref(), Some("wlan0"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_was_laid_out_at_the_start_is_not_laid_out_again() {
        let client = client(config(), FakeNetwork::of(&["eth0"]));
        let mut host = FakeHost::default();
        client.apply(&mut host, |_| ()).await.unwrap();
        assert_eq!(look(&client, &host, 2).await, [false], "that of the start");
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_does_not_give_way_is_asked_again_at_the_next_look() {
        let exclude = Exclude { portal: true, ..Exclude::default() };
        let (client, host, _) = behind_portal(exclude);
        host.refuse(&[true, false, false]);
        assert_eq!(look(&client, &host, 1).await, [true, false], "and set back");
        assert_eq!(look(&client, &host, 2).await, [true]);
    }
}
