//! The configuration in force, and how another one takes its place while the client runs.
//!
//! ```text
//!                             refused: nothing changes
//!                               ▲
//!  file ─▶ reload ─▶ renew ─▶ apply ─▶ watch ─┬─▶ Roamer       follows it: settings, candidates, names
//!                             (host)          └─▶ all others   read it at each use
//! ```

use std::sync::Arc;

use tokio::sync::watch;

use super::Client;
use crate::{
    config::{ClientConfig, Config},
    daemon::{Daemon, events::Event},
    host::{Setup, Wish},
};

/// The configuration in force, for one that reads or follows it.
pub(super) type InForce = watch::Receiver<Arc<ClientConfig>>;

impl Client {
    /// Takes over a changed configuration; what takes a restart stays as it was and is named. If the host cannot
    /// be made as it says, nothing changes.
    async fn renew(
        &self,
        new: ClientConfig,
        host: &mut impl Setup,
    ) -> anyhow::Result<Vec<&'static str>> {
        let before = self.config.borrow().clone();
        let stays = before.takes_restart(&new);
        let config = Arc::new(before.reloaded(new));
        self.apply(host, |desired| desired.configure(config.clone())).await?;
        self.servers.renew(&config)?;
        self.config.send_replace(config);
        Ok(stays)
    }

    /// Reads the configuration again; what to say about it.
    pub(super) async fn reload(
        &self,
        daemon: &Daemon,
        mut host: Wish,
    ) -> Result<Vec<String>, String> {
        let config = match daemon.read_again().map_err(|errors| errors.to_string())? {
            Config::Client(config) => config,
            Config::Server(_) => {
                return Err("role: a client becomes a server with a restart".into());
            }
        };
        let stays = match self.renew(config, &mut host).await {
            Ok(stays) => stays,
            Err(error) => return Err(daemon.refused(&error)),
        };
        daemon.log(&self.config.borrow().log);
        let restart_needed = stays.iter().map(ToString::to_string).collect();
        self.events.tell(Event::Reloaded { restart_needed });
        Ok(daemon.reloaded(&stays))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::{
            plan::tests::{nets, welcome},
            tests::{FakeHost, FakeNetwork, client, config},
        },
        config::{ClientTun, Preference},
    };

    /// The configuration of this client with these routes, a kill switch and a preference.
    fn changed(client: &Client, routes: &[&str]) -> ClientConfig {
        let before = client.config.borrow().clone();
        let mut new = before.reloaded(config());
        new.tun = ClientTun { routes: Some(nets(routes)), kill_switch: true, ..new.tun };
        new.paths.prefer.push(Preference {
            link: "wl*".into(),
            metered: false,
            ..Preference::default()
        });
        new
    }

    #[tokio::test]
    async fn without_a_session_a_reload_changes_the_kill_switch_and_what_the_roamer_follows() {
        let (client, mut host) = (client(config(), FakeNetwork::of(&[])), FakeHost::default());
        let mut followed = client.config.subscribe();
        let mut new = changed(&client, &["10.1.0.0/16"]);
        (new.tun.mtu, new.quic.dscp) = (1300, 46);
        assert_eq!(client.renew(new, &mut host).await.unwrap(), ["tun.mtu", "quic"]);
        let [layout] = &host.wishes()[..] else { panic!("not one wish") };
        assert_eq!((&layout.sealed, layout.mtu), (&nets(&["10.1.0.0/16"]), 1500));
        assert!(followed.has_changed().unwrap());
        let config = followed.borrow_and_update();
        assert_eq!((config.paths.prefer.len(), config.tun.mtu, config.quic.dscp), (1, 1500, 0));
    }

    #[tokio::test]
    async fn in_a_session_the_users_routes_take_the_place_of_those_offered() {
        let (client, mut host) = (client(config(), FakeNetwork::of(&[])), FakeHost::default());
        let welcome = welcome(&["10.66.0.2/24"], &["198.51.100.0/24"]);
        let server = client.servers.all()[0].key();
        client.greeted(&mut host, server, &welcome).await.unwrap();
        assert_eq!(host.wishes().pop().unwrap().routes, nets(&["198.51.100.0/24"]));
        let new = changed(&client, &["10.1.0.0/16"]);
        assert_eq!(client.renew(new, &mut host).await.unwrap(), [""; 0]);
        assert_eq!(host.wishes().pop().unwrap().routes, nets(&["10.1.0.0/16"]));
        assert_eq!(client.status().routes, nets(&["10.66.0.0/24", "10.1.0.0/16"]));
    }

    #[tokio::test]
    async fn a_configuration_that_the_host_refuses_leaves_the_old_one_in_force() {
        let (client, mut host) = (client(config(), FakeNetwork::of(&[])), FakeHost::default());
        let before = client.config.borrow().clone();
        let followed = client.config.subscribe();
        host.refuse(&[true]);
        client.renew(changed(&client, &["10.1.0.0/16"]), &mut host).await.unwrap_err();
        let sealed: Vec<_> = host.wishes().into_iter().map(|layout| layout.sealed).collect();
        assert_eq!(sealed, [nets(&["10.1.0.0/16"]), Vec::new()], "and set back");
        assert!(!followed.has_changed().unwrap());
        assert!(Arc::ptr_eq(&before, &client.config.borrow()));
        client.apply(&mut host, |_| ()).await.unwrap();
        assert_eq!(host.wishes().pop().unwrap().sealed, [], "nor is it laid out later");
    }

    #[tokio::test]
    async fn a_portal_that_may_not_be_reached_any_more_is_shut_out() {
        let mut config = config();
        config.tun.exclude.portal = true;
        let (client, mut host) = (client(config, FakeNetwork::of(&[])), FakeHost::default());
        client.give_way(true, &mut host).await;
        assert!(host.wishes().pop().unwrap().is_open);
        client.renew(changed(&client, &["10.1.0.0/16"]), &mut host).await.unwrap();
        assert!(!host.wishes().pop().unwrap().is_open);
    }
}
