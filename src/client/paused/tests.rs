use std::time::Duration;

use tokio::time::sleep;

use super::*;
use crate::{
    client::{
        command::What,
        plan::tests::{nets, welcome},
        tests::{FakeHost, FakeNetwork, client, config, session::Tunnel},
    },
    daemon::{
        events::Event,
        status::{ClientState, ClientStatus},
    },
    host::Layout,
};

impl Tunnel {
    async fn pause(&self, seconds: Option<u32>) -> String {
        line(self.client.pause(seconds, &mut self.host.clone()).await)
    }

    async fn resume(&self) -> String {
        line(self.client.resume(&mut self.host.clone()).await)
    }

    /// What was wanted of the host last.
    fn layout(&self) -> Layout {
        self.host.wishes().pop().expect("something was wanted")
    }

    /// Packets that left over either link so far.
    fn sent(&self) -> usize {
        self.world.links().iter().map(|link| link.sent).sum()
    }
}

fn line(reply: Reply) -> String {
    match reply {
        Reply::Done(lines) => lines.join("\n"),
        Reply::Error(why) => format!("error: {why}"),
        Reply::Ok(_) | Reply::Usage(_) => panic!("figures"),
    }
}

fn state(status: &ClientStatus) -> (ClientState, u64, Option<f64>) {
    (status.state, status.sessions, status.next_attempt)
}

#[tokio::test(start_paused = true)]
async fn a_paused_tunnel_sends_nothing_and_leads_nothing_into_itself_until_it_is_resumed() {
    let tunnel = Tunnel::connected().await;
    let usual = tunnel.layout();
    let mut events = tunnel.client.events.listen();
    let said = tunnel.pause(None).await;
    assert_eq!(
        said,
        "paused until roamd resume: what goes into the tunnel otherwise leaves directly"
    );
    assert_eq!(tunnel.layout(), usual.withdrawn());
    assert_eq!(state(&tunnel.after(2).await), (ClientState::Paused, 1, None));
    let sent = tunnel.sent();
    assert_eq!(state(&tunnel.after(3600).await), (ClientState::Paused, 1, None));
    assert_eq!(tunnel.sent(), sent);
    assert_eq!(tunnel.resume().await, "the server is asked");
    assert_eq!(state(&tunnel.after(2).await), (ClientState::Connected, 2, None));
    let wishes = tunnel.host.wishes();
    assert!(!wishes.is_empty() && wishes.iter().all(|it| *it == usual), "{wishes:?}");
    let told = std::iter::from_fn(|| events.try_recv().ok());
    let told: Vec<_> = told.filter(|it| !matches!(it, Event::Path { .. })).collect();
    assert!(
        matches!(
            &told[..],
            [Event::Paused { seconds: None }, Event::Resumed, Event::Connected { .. }]
        ),
        "{told:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pause_ends_by_itself_and_can_be_made_longer() {
    let tunnel = Tunnel::connected().await;
    tunnel.pause(Some(60)).await;
    assert_eq!(state(&tunnel.after(30).await), (ClientState::Paused, 1, Some(30.0)));
    let said = tunnel.pause(Some(120)).await;
    assert!(said.starts_with("paused for 2m: "), "{said}");
    assert_eq!(state(&tunnel.after(110).await), (ClientState::Paused, 1, Some(10.0)));
    assert_eq!(state(&tunnel.after(12).await), (ClientState::Connected, 2, None));
    assert!(!tunnel.layout().is_open);
    assert_eq!(tunnel.resume().await, "error: it is not paused");
}

#[tokio::test(start_paused = true)]
async fn a_pause_whose_end_the_host_refuses_lasts_until_the_routes_are_back() {
    let tunnel = Tunnel::connected().await;
    let usual = tunnel.layout();
    let mut events = tunnel.client.events.listen();
    tunnel.pause(Some(60)).await;
    sleep(Duration::from_secs(30)).await;
    // Twice the routes are not taken back, and what there was before is.
    tunnel.host.refuse(&[true, false, true, false]);
    sleep(Duration::from_millis(31_500)).await;
    assert_eq!(tunnel.client.status().state, ClientState::Paused);
    assert_eq!(tunnel.layout(), usual.withdrawn());
    assert_eq!(state(&tunnel.after(3).await), (ClientState::Connected, 2, None));
    assert_eq!(tunnel.layout(), usual);
    let told = std::iter::from_fn(|| events.try_recv().ok());
    let pauses: Vec<_> = told.filter(|it| matches!(it, Event::Paused { .. })).collect();
    assert_eq!(pauses.len(), 1, "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_pause_goes_on_while_the_machine_is_suspended() {
    let tunnel = Tunnel::connected().await;
    let mut events = tunnel.client.events.listen();
    tunnel.pause(Some(3600)).await;
    sleep(Duration::from_secs(60)).await;
    tunnel.client.wakes(Duration::from_secs(1800));
    assert_eq!(state(&tunnel.after(40).await), (ClientState::Paused, 1, Some(1700.0)));
    tunnel.client.wakes(Duration::from_secs(8 * 3600));
    assert_eq!(state(&tunnel.after(2).await), (ClientState::Connected, 2, None));
    let told = std::iter::from_fn(|| events.try_recv().ok());
    let pauses: Vec<_> = told.filter(|it| matches!(it, Event::Paused { .. })).collect();
    assert!(
        matches!(
            &pauses[..],
            [Event::Paused { seconds: Some(first) }, Event::Paused { seconds: Some(rest) }]
                if (3599.0..=3600.0).contains(first) && *rest == 1740.0
        ),
        "{pauses:?}"
    );
    tunnel.pause(None).await;
    tunnel.client.wakes(Duration::from_secs(8 * 3600));
    assert_eq!(state(&tunnel.after(2).await), (ClientState::Paused, 2, None));
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_does_not_reach_its_server_is_paused_at_once() {
    let tunnel = Tunnel::without_server();
    sleep(Duration::from_secs(20)).await;
    tunnel.pause(None).await;
    sleep(Duration::from_secs(1)).await;
    let sent = tunnel.sent();
    assert_eq!(state(&tunnel.after(600).await), (ClientState::Paused, 0, None));
    assert_eq!(tunnel.sent(), sent);
}

#[tokio::test(start_paused = true)]
async fn a_link_that_is_chosen_in_a_pause_is_used_after_it_and_a_probe_is_refused() {
    let tunnel = Tunnel::connected().await;
    tunnel.pause(None).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(tunnel.order(What::Probe { link: None }).await.unwrap_err(), "it is paused");
    tunnel.switch("lte0", true).await.unwrap();
    assert_eq!(state(&tunnel.after(60).await), (ClientState::Paused, 1, None));
    tunnel.resume().await;
    sleep(Duration::from_secs(3)).await;
    assert!(tunnel.states().contains(&"lte0 Active".to_owned()), "{:?}", tunnel.states());
}

#[tokio::test(start_paused = true)]
async fn a_host_that_does_not_withdraw_routes_leaves_the_tunnel_as_it_is() {
    let tunnel = Tunnel::connected().await;
    tunnel.host.refuse(&[true, false]);
    assert_eq!(tunnel.pause(None).await, "error: the task that sets up the host has ended");
    assert_eq!(state(&tunnel.after(5).await), (ClientState::Connected, 1, None));
}

#[tokio::test(start_paused = true)]
async fn the_kill_switch_holds_during_a_pause() {
    let mut config = config();
    config.tun.kill_switch = true;
    config.tun.routes = Some(nets(&["0.0.0.0/0"]));
    let (client, mut host) = (client(config, FakeNetwork::of(&[])), FakeHost::default());
    let server = client.servers.all()[0].key();
    client.greeted(&mut host, server, &welcome(&["10.66.0.2/24"], &[])).await.unwrap();
    let said = line(client.pause(None, &mut host).await);
    assert!(said.ends_with("the kill switch holds back what belongs in the tunnel"), "{said}");
    let layout = host.wishes().pop().unwrap();
    assert_eq!((layout.routes, layout.sealed), (Vec::new(), nets(&["0.0.0.0/0"])));
}
