//! Which link the user prefers: `paths.prefer` and `paths.ignore`.

use wildmatch::WildMatch;

use super::rank::{LinkFacts, Place};
use crate::{
    config::{Budget, Paths, Preference},
    link::candidate::Candidate,
};

/// The user's preferences.
#[derive(Debug)]
pub(crate) struct Preferences {
    prefer: Vec<(WildMatch, Preference)>,
    ignore: Vec<WildMatch>,
}

impl Preferences {
    /// Reads the configuration.
    #[must_use]
    pub(crate) fn new(paths: &Paths) -> Self {
        Self {
            prefer: paths
                .prefer
                .iter()
                .map(|preference| (WildMatch::new(&preference.link), preference.clone()))
                .collect(),
            ignore: paths.ignore.iter().map(|link| WildMatch::new(link)).collect(),
        }
    }

    /// Whether `link` must not be used.
    #[must_use]
    pub(crate) fn ignores(&self, link: &str) -> bool {
        self.ignore.iter().any(|ignored| ignored.matches(link))
    }

    /// How much this link may carry, if the configuration says so.
    #[must_use]
    pub(crate) fn budget(&self, link: &str) -> Option<Budget> {
        self.line(link).and_then(|line| self.prefer[line].1.budget)
    }

    /// The first line that names this link.
    fn line(&self, link: &str) -> Option<usize> {
        self.prefer.iter().position(|(pattern, _)| pattern.matches(link))
    }

    /// The facts by which the candidate's link is ranked; `None` if it must not be used. `is_metered` is what
    /// sources other than the configuration say.
    #[must_use]
    pub(crate) fn facts(&self, candidate: &Candidate, is_metered: bool) -> Option<LinkFacts> {
        let Candidate { link, metric, transport, .. } = candidate;
        if self.ignores(link) {
            return None;
        }
        let line = self.line(link);
        let metered = is_metered || line.is_some_and(|line| self.prefer[line].1.metered);
        let preference = line.unwrap_or(self.prefer.len());
        let place = Place::Away;
        Some(LinkFacts { place, transport: *transport, preference, metered, metric: *metric })
    }

    /// The same for a candidate whose server is in the network of the link: nothing that passes there costs money.
    #[must_use]
    pub(crate) fn at_home(&self, candidate: &Candidate) -> Option<LinkFacts> {
        let facts = self.facts(candidate, false)?;
        Some(LinkFacts { place: Place::Home, metered: false, ..facts })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::link::candidate::Transport;

    fn preferences(prefer: &[(&str, bool)], ignore: &[&str]) -> Preferences {
        Preferences::new(&Paths {
            probe_timeout: Duration::from_secs(5),
            standby_check: Some(Duration::from_secs(15)),
            metered_copies: 64 << 10,
            metered_reserve: false,
            prefer: prefer
                .iter()
                .map(|(link, metered)| Preference {
                    link: (*link).into(),
                    metered: *metered,
                    budget: None,
                })
                .collect(),
            ignore: ignore.iter().map(|link| (*link).into()).collect(),
        })
    }

    fn candidate(link: &str, metric: u32) -> Candidate {
        let (source, server) = ([10, 0, 0, 1].into(), ([192, 0, 2, 1], 4433).into());
        let (router, transport) = (None, Transport::Udp);
        Candidate { link: link.into(), index: 1, source, router, metric, server, transport }
    }

    #[test]
    fn the_order_of_the_list_counts_before_the_metric() {
        let preferences = preferences(&[("en*", false), ("wl*", false), ("ww*", true)], &[]);
        let facts = |link, metric| preferences.facts(&candidate(link, metric), false).unwrap();
        let mut links = [("wwan0", 50), ("docker0", 0), ("wlan0", 600), ("enp3s0", 900)];
        links.sort_by_key(|(link, metric)| facts(link, *metric));
        assert_eq!(links.map(|(link, _)| link), ["enp3s0", "wlan0", "wwan0", "docker0"]);
        assert!(facts("wwan0", 50).metered);
    }

    #[test]
    fn without_a_preference_list_the_kernel_metric_decides() {
        let preferences = preferences(&[], &[]);
        let facts = |link, metric| preferences.facts(&candidate(link, metric), false);
        assert!(facts("wlan0", 600) > facts("eth0", 100));
    }

    #[test]
    fn a_link_is_metered_if_any_source_says_so() {
        let preferences = preferences(&[("eth0", false), ("ww*", true)], &[]);
        let is_metered = |link, said| preferences.facts(&candidate(link, 0), said).unwrap().metered;
        assert!(is_metered("wwan0", false) && is_metered("eth0", true));
        assert!(!is_metered("eth0", false) && !is_metered("eth1", false));
    }

    #[test]
    fn a_path_at_home_comes_first_and_is_not_metered() {
        let preferences = preferences(&[("en*", false), ("wl*", true)], &["wlan9"]);
        let home = preferences.at_home(&candidate("wlan0", 600)).unwrap();
        assert!(
            !home.metered && home < preferences.facts(&candidate("enp3s0", 100), false).unwrap()
        );
        assert_eq!(preferences.at_home(&candidate("wlan9", 600)), None);
    }

    #[test]
    fn an_ignored_link_is_no_candidate() {
        let preferences = preferences(&[("wg0", false)], &["wg*", "tun?"]);
        let facts = |link| preferences.facts(&candidate(link, 0), false);
        assert_eq!(facts("wg0"), None);
        assert_eq!(facts("tun1"), None);
        assert!(facts("tun10").is_some());
    }
}
