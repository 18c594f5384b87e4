//! Which link the user prefers: `paths.prefer` and `paths.ignore`.

use wildmatch::WildMatch;

use crate::config::Paths;

/// The user's preferences, ready to be asked.
#[derive(Debug)]
pub struct Preferences {
    prefer: Vec<(WildMatch, bool)>,
    ignore: Vec<WildMatch>,
}

/// A link's place. Declared in order of weight: the derived order puts the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Whether a captive portal is suspected there.
    pub portal: bool,
    /// The first preference that matches; those that none does come last.
    preference: usize,
    /// Whether traffic there costs money.
    pub metered: bool,
    /// The metric of the kernel's route.
    metric: u32,
}

impl Preferences {
    /// Reads the configuration.
    #[must_use]
    pub fn new(paths: &Paths) -> Self {
        Self {
            prefer: paths
                .prefer
                .iter()
                .map(|preference| (WildMatch::new(&preference.link), preference.metered))
                .collect(),
            ignore: paths.ignore.iter().map(|link| WildMatch::new(link)).collect(),
        }
    }

    /// Whether `link` is never to be used.
    #[must_use]
    pub fn ignores(&self, link: &str) -> bool {
        self.ignore.iter().any(|ignored| ignored.matches(link))
    }

    /// The place of `link` with a route of this metric; `None` if it is never to be used.
    #[must_use]
    pub fn rank(&self, link: &str, metric: u32) -> Option<Rank> {
        if self.ignores(link) {
            return None;
        }
        let preference = self.prefer.iter().position(|(pattern, _)| pattern.matches(link));
        let metered = preference.is_some_and(|index| self.prefer[index].1);
        let preference = preference.unwrap_or(self.prefer.len());
        Some(Rank { portal: false, preference, metered, metric })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Preference;

    fn preferences(prefer: &[(&str, bool)], ignore: &[&str]) -> Preferences {
        Preferences::new(&Paths {
            probe_timeout: Duration::from_secs(5),
            standby_check: Some(Duration::from_secs(15)),
            prefer: prefer
                .iter()
                .map(|(link, metered)| Preference { link: (*link).into(), metered: *metered })
                .collect(),
            ignore: ignore.iter().map(|link| (*link).into()).collect(),
        })
    }

    #[test]
    fn the_order_of_the_list_counts_before_the_metric() {
        let preferences = preferences(&[("en*", false), ("wl*", false), ("ww*", true)], &[]);
        let mut links = [("wwan0", 50), ("docker0", 0), ("wlan0", 600), ("enp3s0", 900)];
        links.sort_by_key(|(link, metric)| preferences.rank(link, *metric));
        assert_eq!(links.map(|(link, _)| link), ["enp3s0", "wlan0", "wwan0", "docker0"]);
        assert!(preferences.rank("wwan0", 50).unwrap().metered);
    }

    #[test]
    fn without_a_list_the_kernel_decides() {
        let preferences = preferences(&[], &[]);
        assert!(preferences.rank("wlan0", 600) > preferences.rank("eth0", 100));
    }

    #[test]
    fn an_ignored_link_has_no_place() {
        let preferences = preferences(&[("wg0", false)], &["wg*", "tun?"]);
        assert_eq!(preferences.rank("wg0", 0), None);
        assert_eq!(preferences.rank("tun1", 0), None);
        assert!(preferences.rank("tun10", 0).is_some());
    }
}
