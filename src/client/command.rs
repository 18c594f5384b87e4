//! What a person tells a running client to do.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot};

use super::Client;
use crate::{
    daemon::{
        Daemon,
        control::{Reply, Request},
        status::milliseconds,
    },
    host::Wish,
    link::candidate::Candidate,
    path::{
        PathKey,
        manager::{Choice, Event},
    },
};

/// What became of a path that was asked in vain, for people.
pub(super) const NO_ANSWER: &str = "no answer";
/// The same of one whose network is another one meanwhile.
pub(super) const OTHER_NETWORK: &str = "the link is in another network by now";

/// An order, and where the answer goes.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) what: What,
    pub(crate) reply: oneshot::Sender<Reply>,
}

#[derive(Debug)]
pub(crate) enum What {
    Switch { link: String, pin: bool },
    Server { name: String },
    Auto,
    AutoLink,
    Probe { link: Option<String> },
}

impl Client {
    /// Answers a request on the control socket.
    pub(super) async fn answer(
        self: Arc<Self>,
        request: Request,
        orders: mpsc::Sender<Order>,
        host: Wish,
        daemon: Arc<Daemon>,
    ) -> Reply {
        let what = match request {
            Request::Status => return Reply::Ok(Box::new(self.whole_status().await)),
            Request::Reload => {
                let done = self.reload(&daemon, host).await;
                return done.map_or_else(Reply::Error, Reply::Done);
            }
            Request::Pause { seconds } => return self.pause(seconds, &mut host.clone()).await,
            Request::Resume => return self.resume(&mut host.clone()).await,
            Request::Usage => return Reply::Usage(Box::new(self.usage())),
            Request::Cut { link, seconds } => return self.cut(&link, seconds).await,
            Request::Events => return Reply::Error("events come without end".into()),
            Request::Drain { .. } | Request::DrainCancel => {
                return Reply::Error("a client has nobody to drain; a server has".into());
            }
            Request::Switch { link, pin } => What::Switch { link, pin },
            Request::SwitchServer { name } => What::Server { name },
            Request::Auto => What::Auto,
            Request::AutoLink => What::AutoLink,
            Request::Probe { link } => What::Probe { link },
        };
        let (reply, answer) = oneshot::channel();
        let sent = orders.send(Order { what, reply }).await;
        match answer.await {
            Ok(reply) if sent.is_ok() => reply,
            _ => Reply::Error("the connection was lost meanwhile".into()),
        }
    }
}

/// What a person chooses while there is no connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chosen {
    Link(Choice),
    /// The server of this name.
    Server(String),
    /// Nothing any more: the choice is left to us.
    Auto,
    /// The same of the link. A server that was chosen stays.
    AutoLink,
}

/// Waits until a person chooses, while there is no connection. What takes one is refused, for this reason. Cancel safe.
pub(super) async fn next_choice(
    orders: &mut mpsc::Receiver<Order>,
    why_not: impl Fn() -> String,
) -> (Chosen, oneshot::Sender<Reply>) {
    while let Some(Order { what, reply }) = orders.recv().await {
        match what {
            What::Switch { link, pin } => {
                return (Chosen::Link(Choice { link, pinned: pin }), reply);
            }
            What::Server { name } => return (Chosen::Server(name), reply),
            What::Auto => return (Chosen::Auto, reply),
            What::AutoLink => return (Chosen::AutoLink, reply),
            What::Probe { .. } => {
                let _ = reply.send(Reply::Error(why_not()));
            }
        }
    }
    std::future::pending().await
}

/// The answer to a person who chose a link that has no way to the server, unlike `links`.
pub(super) fn no_way<'a>(name: &str, links: impl Iterator<Item = &'a str>) -> Reply {
    let mut links: Vec<_> = links.collect();
    links.sort_unstable();
    links.dedup();
    let those = if links.is_empty() { "none has".into() } else { links.join(", ") };
    Reply::Error(format!("{name} has no way to the server; links that have one: {those}"))
}

/// A question about some paths, until all are answered.
#[derive(Debug)]
pub(crate) struct Inquiry {
    reply: Option<oneshot::Sender<Reply>>,
    /// Whether one of the paths works.
    works: bool,
    paths: BTreeMap<PathKey, (String, Option<String>)>,
}

impl Inquiry {
    pub(crate) fn new(reply: oneshot::Sender<Reply>) -> Self {
        Self { reply: Some(reply), works: false, paths: BTreeMap::new() }
    }

    /// Adds a path; one with a round trip is answered already.
    pub(crate) fn about(&mut self, key: PathKey, candidate: &Candidate, rtt: Option<Duration>) {
        let Candidate { link, source, server, transport, .. } = candidate;
        let answer = rtt.map(|rtt| format!("in use, {}", shown(rtt)));
        self.works |= answer.is_some();
        let way = transport.mark(format_args!("{link} {source} -> {server}"));
        self.paths.insert(key, (way, answer));
    }

    /// Takes in an answer if it is about one of the paths.
    fn hear(&mut self, event: &Event) {
        match event {
            // Otherwise another answer follows, with the round trip.
            Event::Answered(key, Some(rtt)) => {
                self.works |= self.paths.contains_key(key);
                self.end(*key, &format!("works, {}", shown(*rtt)));
            }
            Event::Refused(key) | Event::TimedOut(key) => self.end(*key, NO_ANSWER),
            _ => {}
        }
    }

    /// No further answer over this path is waited for; this is what became of it, unless one has come.
    fn end(&mut self, key: PathKey, what: &str) {
        if let Some((_, open)) = self.paths.get_mut(&key) {
            open.get_or_insert_with(|| what.into());
        }
    }

    /// Answers if all is known; whether it did.
    pub(crate) fn finish(&mut self) -> bool {
        if self.paths.values().any(|(_, answer)| answer.is_none()) {
            return self.reply.as_ref().is_none_or(oneshot::Sender::is_closed);
        }
        let lines = self
            .paths
            .values()
            .filter_map(|(path, answer)| Some(format!("{path}: {}", answer.as_ref()?)));
        let lines: Vec<_> = lines.collect();
        if let Some(reply) = self.reply.take() {
            let _ = reply.send(if lines.is_empty() {
                Reply::Error("no link has a way to the server".into())
            } else if self.works {
                Reply::Done(lines)
            } else {
                Reply::Error(lines.join("\n"))
            });
        }
        true
    }
}

/// Questions that are not answered yet.
#[derive(Debug, Default)]
pub(crate) struct Inquiries(Vec<Inquiry>);

impl Inquiries {
    pub(crate) fn add(&mut self, mut inquiry: Inquiry) {
        if !inquiry.finish() {
            self.0.push(inquiry);
        }
    }

    /// Lets those who asked hear an answer.
    pub(crate) fn hear(&mut self, answer: &Event) {
        self.tell(|inquiry| inquiry.hear(answer));
    }

    /// Lets them hear what became of a path that is not asked any more.
    pub(crate) fn end(&mut self, key: PathKey, what: &str) {
        self.tell(|inquiry| inquiry.end(key, what));
    }

    fn tell(&mut self, tell: impl Fn(&mut Inquiry)) {
        self.0.retain_mut(|inquiry| {
            tell(inquiry);
            !inquiry.finish()
        });
    }
}

fn shown(rtt: Duration) -> String {
    format!("{:.1} ms", milliseconds(rtt))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::candidate;

    #[tokio::test]
    async fn without_a_connection_a_choice_is_accepted_and_a_probe_is_refused() {
        let (orders, mut ordered) = mpsc::channel(2);
        let (reply, refused) = oneshot::channel();
        orders.send(Order { what: What::Probe { link: None }, reply }).await.unwrap();
        let (reply, _answer) = oneshot::channel();
        let what = What::Switch { link: "lte0".into(), pin: true };
        orders.send(Order { what, reply }).await.unwrap();
        let (choice, _reply) = next_choice(&mut ordered, || "not connected".into()).await;
        assert_eq!(choice, Chosen::Link(Choice { link: "lte0".into(), pinned: true }));
        assert!(matches!(refused.await, Ok(Reply::Error(why)) if why == "not connected"));
    }

    #[test]
    fn each_link_with_a_candidate_is_named_once() {
        let Reply::Error(error) = no_way("eth7", ["wlan0", "lte0", "wlan0"].into_iter()) else {
            panic!("no error");
        };
        assert_eq!(error, "eth7 has no way to the server; links that have one: lte0, wlan0");
    }

    const RTT: Duration = Duration::from_millis(12);

    fn key(index: u32) -> PathKey {
        PathKey::from(&candidate("", index))
    }

    /// Somebody asks about the path in use, and about one over lte.
    fn asked() -> (Inquiries, oneshot::Receiver<Reply>) {
        let (reply, answer) = oneshot::channel();
        let (mut inquiry, mut inquiries) = (Inquiry::new(reply), Inquiries::default());
        inquiry.about(key(1), &candidate("wlan0", 1), Some(RTT));
        inquiry.about(key(2), &candidate("wwan0", 2), None);
        inquiries.add(inquiry);
        (inquiries, answer)
    }

    fn done(answer: &mut oneshot::Receiver<Reply>) -> Vec<String> {
        match answer.try_recv() {
            Ok(Reply::Done(lines)) => lines,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_inquiry_is_answered_when_every_path_has_answered() {
        let (mut inquiries, mut answer) = asked();
        inquiries.hear(&Event::Answered(key(2), None));
        inquiries.hear(&Event::Answered(key(3), Some(RTT)));
        assert!(answer.try_recv().is_err(), "without a round trip another answer follows");
        inquiries.hear(&Event::Answered(key(2), Some(3 * RTT)));
        let expected = [
            "wlan0 10.0.0.2 -> 192.0.2.1:4433: in use, 12.0 ms",
            "wwan0 10.0.0.2 -> 192.0.2.1:4433: works, 36.0 ms",
        ];
        assert_eq!(done(&mut answer), expected);
        assert!(inquiries.0.is_empty());
    }

    #[test]
    fn a_path_that_fails_after_it_answered_has_answered() {
        let (mut inquiries, mut answer) = asked();
        let (reply, mut second) = oneshot::channel();
        let mut other = Inquiry::new(reply);
        other.about(key(2), &candidate("wwan0", 2), None);
        other.about(key(3), &candidate("eth0", 3), None);
        inquiries.add(other);
        inquiries.hear(&Event::Answered(key(2), Some(RTT)));
        inquiries.hear(&Event::Refused(key(2)));
        inquiries.hear(&Event::Refused(key(3)));
        assert_eq!(done(&mut answer).len(), 2);
        let lines = done(&mut second);
        assert!(
            lines[0].ends_with("works, 12.0 ms") && lines[1].ends_with("no answer"),
            "{lines:?}"
        );
    }

    #[test]
    fn an_inquiry_about_paths_that_all_fail_is_an_error() {
        let (reply, mut answer) = oneshot::channel();
        let (mut inquiry, mut inquiries) = (Inquiry::new(reply), Inquiries::default());
        inquiry.about(key(2), &candidate("wwan0", 2), None);
        inquiries.add(inquiry);
        inquiries.hear(&Event::Refused(key(2)));
        let failed = answer.try_recv();
        assert!(
            matches!(&failed, Ok(Reply::Error(why)) if why.ends_with("no answer")),
            "{failed:?}"
        );
    }

    #[test]
    fn an_inquiry_about_no_path_is_answered_at_once() {
        let (reply, mut answer) = oneshot::channel();
        Inquiries::default().add(Inquiry::new(reply));
        assert!(matches!(answer.try_recv(), Ok(Reply::Error(_))));
    }

    #[test]
    fn an_inquiry_that_nobody_waits_for_is_dropped() {
        let (mut inquiries, answer) = asked();
        drop(answer);
        inquiries.hear(&Event::Refused(key(7)));
        assert!(inquiries.0.is_empty());
    }
}
