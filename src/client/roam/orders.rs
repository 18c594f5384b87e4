//! What people ask of a connection: another link, or a question over all paths.

use super::Roamer;
use crate::{
    client::{
        command::{Inquiry, Order, What, no_way},
        signs::Wish,
    },
    daemon::control::Reply,
    path::manager::{Choice, Event},
};

impl Roamer<'_> {
    /// Does what a person wants, and answers.
    pub(super) fn obey(&mut self, Order { what, reply }: Order) {
        let reply_with = match what {
            What::Server { name } => return self.signals.wish(Wish::Go { name, reply }),
            What::Auto | What::AutoLink => {
                if matches!(what, What::Auto) {
                    self.signals.wish(Wish::Auto);
                }
                self.handle_event(Event::Choose(None));
                Reply::Done(vec!["the best path is chosen again".into()])
            }
            What::Switch { link, pin } => match self.link(&link) {
                Ok(index) => {
                    self.handle_event(Event::Choose(Some(Choice {
                        link: link.clone(),
                        pinned: pin,
                    })));
                    let active = self.manager.active().is_some_and(|key| key.link == index);
                    let when = if active { "in use" } else { "used as soon as it answers" };
                    let until = if pin { "whatever happens" } else { "until it fails" };
                    Reply::Done(vec![format!("{link}: {when}, {until}")])
                }
                Err(error) => error,
            },
            What::Probe { link } => match link.as_deref().map(|link| self.link(link)).transpose() {
                Ok(index) => return self.inquire(Inquiry::new(reply), link, index),
                Err(error) => error,
            },
        };
        // Whoever asked may not wait for the answer any more.
        let _ = reply.send(reply_with);
    }

    /// Asks over all paths, or those of one link, because somebody wants to know.
    fn inquire(&mut self, mut inquiry: Inquiry, link: Option<String>, index: Option<u32>) {
        let active = self.manager.active();
        for (key, ..) in self.manager.paths() {
            if index.is_none_or(|index| index == key.link)
                && let Some(candidate) = self.paths.candidate(key)
            {
                let rtt = (active == Some(key)).then(|| self.connection.rtt());
                inquiry.about(key, candidate, rtt);
            }
        }
        self.handle_event(Event::Check(link));
        self.inquiries.add(inquiry);
    }

    /// The index of a link that could carry the tunnel.
    fn link(&self, name: &str) -> Result<u32, Reply> {
        let links: Vec<_> =
            self.manager.paths().filter_map(|(key, ..)| self.paths.candidate(key)).collect();
        if let Some(found) = links.iter().find(|candidate| candidate.link == name) {
            return Ok(found.index);
        }
        Err(no_way(name, links.iter().map(|candidate| candidate.link.as_str())))
    }
}
