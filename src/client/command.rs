//! What a person tells a running client to do.

use std::{collections::BTreeMap, time::Duration};

use tokio::sync::oneshot;

use crate::{
    daemon::{control::Reply, status::milliseconds},
    link::candidate::Candidate,
    path::{PathKey, manager::Event},
};

/// An order, and where the answer goes.
#[derive(Debug)]
pub(crate) struct Order {
    /// The session that it is for, by its number: it means nothing to the next one.
    pub(crate) session: u64,
    pub(crate) what: What,
    pub(crate) reply: oneshot::Sender<Reply>,
}

#[derive(Debug)]
pub(crate) enum What {
    Switch { link: String, pin: bool },
    Auto,
    Probe { link: Option<String> },
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
        let Candidate { link, source, server, .. } = candidate;
        let answer = rtt.map(|rtt| format!("in use, {}", shown(rtt)));
        self.works |= answer.is_some();
        self.paths.insert(key, (format!("{link} {source} -> {server}"), answer));
    }

    /// Takes in an answer if it is about one of the paths.
    pub(crate) fn hear(&mut self, event: &Event) {
        let (key, answer) = match event {
            // Otherwise another answer follows, with the round trip.
            Event::Answered(key, Some(rtt)) => (key, format!("works, {}", shown(*rtt))),
            Event::Refused(key) | Event::TimedOut(key) => (key, "no answer".into()),
            _ => return,
        };
        if let Some((_, open)) = self.paths.get_mut(key) {
            self.works |= matches!(event, Event::Answered(..));
            open.get_or_insert(answer);
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

fn shown(rtt: Duration) -> String {
    format!("{:.1} ms", milliseconds(rtt))
}
