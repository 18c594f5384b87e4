//! Cuts a link for somebody who wants to see what happens; see [`crate::path::cut`].

use std::time::Duration;

use tracing::info;

use super::{Client, command::no_way};
use crate::{
    daemon::{
        control::{LONGEST_CUT, Reply},
        events::{Event, Events},
    },
    path::cut::Lease,
};

/// A cut, told of when it begins and when it ends.
struct Announced<'a> {
    link: &'a str,
    events: &'a Events,
    lease: Option<Lease>,
}

impl<'a> Announced<'a> {
    fn begin(link: &'a str, seconds: u32, events: &'a Events, lease: Lease) -> Self {
        info!(link, seconds, "cutting a link for a drill");
        events.tell(Event::Cut { link: link.into(), seconds });
        Self { link, events, lease: Some(lease) }
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        self.lease.take();
        info!(link = self.link, "the link is not cut any more");
        self.events.tell(Event::CutEnded { link: self.link.into() });
    }
}

impl Client {
    /// Cuts a link for so long. The cut is over when this is dropped.
    pub(super) async fn cut(&self, link: &str, seconds: u32) -> Reply {
        if !(1..=LONGEST_CUT).contains(&seconds) {
            return Reply::Error(format!("a cut takes 1 to {LONGEST_CUT} seconds"));
        }
        let links = self.shown.links();
        if !links.iter().any(|other| other == link) {
            return no_way(link, links.iter().map(String::as_str));
        }
        let Some(lease) = self.roaming.network.cut(link).begin() else {
            return Reply::Error(format!("somebody else cuts {link} just now"));
        };
        let cut = Announced::begin(link, seconds, &self.events, lease);
        tokio::time::sleep(Duration::from_secs(seconds.into())).await;
        drop(cut);
        Reply::Done(vec![format!("{link} was cut for {seconds} s")])
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, time::Duration};

    use tokio::time::{Instant, sleep, timeout};

    use super::*;
    use crate::client::tests::session::Tunnel;

    fn refused(reply: Reply) -> String {
        match reply {
            Reply::Error(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_takes_its_time_is_told_of_and_costs_no_session() {
        let tunnel = Tunnel::connected().await;
        let mut events = tunnel.client.events.listen();
        let began = Instant::now();
        let done = tokio::spawn({
            let client = tunnel.client.clone();
            async move { client.cut("wifi0", 3).await }
        });
        sleep(Duration::from_secs(2)).await;
        assert!(!done.is_finished());
        let reply = done.await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(3));
        assert!(matches!(reply, Reply::Done(lines) if lines == ["wifi0 was cut for 3 s"]));
        let told: Vec<_> = std::iter::from_fn(|| events.try_recv().ok()).collect();
        let cut = |event: &&Event| matches!(event, Event::Cut { .. } | Event::CutEnded { .. });
        let expected = [
            Event::Cut { link: "wifi0".into(), seconds: 3 },
            Event::CutEnded { link: "wifi0".into() },
        ];
        assert_eq!(told.iter().filter(cut).cloned().collect::<Vec<_>>(), expected);
        sleep(Duration::from_secs(30)).await;
        assert_eq!(tunnel.states(), ["wifi0 Active", "lte0 Standby"]);
        assert_eq!(tunnel.client.status().sessions, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_ends_when_nobody_waits_for_it() {
        let tunnel = Tunnel::connected().await;
        let mut events = tunnel.client.events.listen();
        let cut = async {
            let cut = pin!(tunnel.client.cut("lte0", 10));
            timeout(Duration::from_secs(1), cut).await
        };
        assert!(cut.await.is_err());
        let told = std::iter::from_fn(|| events.try_recv().ok());
        let told = told.filter(|event| matches!(event, Event::CutEnded { .. }));
        assert_eq!(told.count(), 1);
        assert!(matches!(tunnel.client.cut("lte0", 1).await, Reply::Done(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_link_of_the_tunnel_is_cut_and_not_for_long_and_once_at_a_time() {
        let tunnel = Tunnel::connected().await;
        let why = refused(tunnel.client.cut("eth7", 3).await);
        assert_eq!(why, "eth7 has no way to the server; links that have one: lte0, wifi0");
        for seconds in [0, 11, u32::MAX] {
            let why = refused(tunnel.client.cut("wifi0", seconds).await);
            assert_eq!(why, "a cut takes 1 to 10 seconds");
        }
        let first = tokio::spawn({
            let client = tunnel.client.clone();
            async move { client.cut("wifi0", 3).await }
        });
        sleep(Duration::from_millis(10)).await;
        let why = refused(tunnel.client.cut("wifi0", 3).await);
        assert_eq!(why, "somebody else cuts wifi0 just now");
        assert!(matches!(first.await.unwrap(), Reply::Done(_)));
    }
}
