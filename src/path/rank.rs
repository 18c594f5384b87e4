//! Which of two paths is better: one list of criteria, the weightiest first.
//!
//! [`compare`] asks whether a path may take the place of one that works, and wants a margin where
//! measured round trips decide. [`Facts`] themselves are ordered best first, without a margin: for
//! when no path works.

use std::{cmp::Ordering, time::Duration};

use super::{
    Reason,
    quality::{Fault, Grade},
};
use crate::link::candidate::Transport;

/// Among paths that are equal otherwise, one takes over only if it saves this much, and a quarter, of
/// the round trip.
const RTT_MARGIN: Duration = Duration::from_millis(10);

/// The text about a path behind a captive portal.
pub(crate) const PORTAL: &str = "a captive portal seems to answer: log in with a browser";

/// Whether the server is in the network of a path's link. Declared best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// It has one of its home addresses there, and no router is on the way.
    Home,
    /// It is elsewhere.
    #[default]
    Away,
}

/// What the configuration and the kernel say of a link and its route to the server. Declared in order of
/// weight: the derived order puts the best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkFacts {
    /// A path at home comes before all others.
    pub place: Place,
    /// A path over TCP comes after all over UDP: what is lost below holds up what follows.
    pub transport: Transport,
    /// The position of the first line of `paths.prefer` that names the link; behind all lines if none
    /// does.
    pub preference: usize,
    /// Traffic there costs money.
    pub metered: bool,
    /// The metric of the route; the kernel prefers the smallest.
    pub metric: u32,
}

/// The facts by which two paths are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The user chose its link.
    pub(crate) chosen: bool,
    /// A captive portal seems to answer in the server's place.
    pub(crate) portal: bool,
    /// It works badly.
    pub(crate) fault: Option<Fault>,
    pub(crate) link: LinkFacts,
    /// The round trip, once it is measured.
    pub(crate) rtt: Option<Duration>,
}

/// The result of a comparison of a candidate with the active path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Better(Reason),
    Same,
    /// With the reason, for people.
    Worse(&'static str),
}

/// Whether `candidate` is worth a move from `active`, which works.
#[must_use]
pub(crate) fn compare(active: &Facts, candidate: &Facts) -> Verdict {
    for (order, better, worse) in criteria(active, candidate) {
        match order {
            Ordering::Greater => return Verdict::Better(better),
            Ordering::Less => return Verdict::Worse(worse),
            Ordering::Equal => {}
        }
    }
    match (active.rtt, candidate.rtt) {
        (Some(old), Some(new)) if new + RTT_MARGIN < old && new < old * 3 / 4 => {
            Verdict::Better(Reason::Faster)
        }
        (Some(old), Some(new)) if new > old => Verdict::Worse("the active path is faster"),
        (Some(_), Some(_)) | (None, _) | (_, None) => Verdict::Same,
    }
}

/// For each criterion: `Greater` if the candidate is better, the reason to move then, and what to say
/// if it is worse.
fn criteria(active: &Facts, candidate: &Facts) -> [(Ordering, Reason, &'static str); 4] {
    // Without `..`: a fact that is missing below does not compile.
    let Facts { chosen, portal, fault, link, rtt: _ } = active;
    let leave = fault.map_or(Reason::Preferred, Fault::reason);
    let grade = |facts: &Facts| facts.fault.map_or(Grade::Clean, Fault::grade);
    [
        (candidate.chosen.cmp(chosen), Reason::Chosen, "somebody chose another link"),
        (portal.cmp(&candidate.portal), Reason::Preferred, PORTAL),
        (grade(active).cmp(&grade(candidate)), leave, "it works, but badly"),
        (link.cmp(&candidate.link), Reason::Preferred, "the active path is preferred"),
    ]
}

/// The best first.
impl Ord for Facts {
    fn cmp(&self, other: &Self) -> Ordering {
        let speed = |facts: &Self| (facts.rtt.is_none(), facts.rtt);
        criteria(self, other)
            .into_iter()
            .map(|(order, ..)| order)
            .find(|order| order.is_ne())
            .unwrap_or_else(|| speed(self).cmp(&speed(other)))
    }
}

impl PartialOrd for Facts {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn measured(milliseconds: u32) -> Facts {
        Facts { rtt: Some(milliseconds * MS), ..Facts::default() }
    }

    #[test]
    fn each_criterion_weighs_more_than_all_that_follow() {
        let link = LinkFacts {
            place: Place::Away,
            transport: Transport::Tcp,
            preference: 1,
            metered: true,
            metric: 100,
        };
        let fault = Some(Fault::Lossy(30));
        let worst = Facts { portal: true, fault, link, ..measured(90) };
        let mut best = worst;
        let mut before = worst;
        type Step = (fn(&mut Facts), Reason);
        let steps: [Step; 10] = [
            (|facts| facts.rtt = Some(9 * MS), Reason::Faster),
            (|facts| facts.link.metric = 50, Reason::Preferred),
            (|facts| facts.link.metered = false, Reason::Preferred),
            (|facts| facts.link.preference = 0, Reason::Preferred),
            (|facts| facts.link.transport = Transport::Udp, Reason::Preferred),
            (|facts| facts.link.place = Place::Home, Reason::Preferred),
            (|facts| facts.fault = Some(Fault::Lossy(10)), Reason::Lossy),
            (|facts| facts.fault = None, Reason::Lossy),
            (|facts| facts.portal = false, Reason::Preferred),
            (|facts| facts.chosen = true, Reason::Chosen),
        ];
        for (improve, reason) in steps {
            let mut better = worst;
            improve(&mut better);
            assert_eq!(compare(&before, &better), Verdict::Better(reason), "{better:?}");
            assert!(matches!(compare(&better, &before), Verdict::Worse(_)), "{better:?}");
            assert!(better < before);
            improve(&mut best);
            assert!(best <= better);
            before = better;
        }
    }

    #[test]
    fn a_faster_path_must_save_a_quarter_and_ten_milliseconds() {
        let faster = Verdict::Better(Reason::Faster);
        assert_eq!(compare(&measured(40), &measured(29)), faster);
        assert_eq!(compare(&measured(40), &measured(30)), Verdict::Same, "not a quarter");
        assert_eq!(compare(&measured(12), &measured(3)), Verdict::Same, "not ten milliseconds");
        assert_eq!(
            compare(&measured(30), &measured(31)),
            Verdict::Worse("the active path is faster")
        );
    }

    #[test]
    fn an_unmeasured_round_trip_causes_no_switch() {
        let unmeasured = Facts::default();
        assert_eq!(compare(&measured(500), &unmeasured), Verdict::Same);
        assert_eq!(compare(&unmeasured, &measured(1)), Verdict::Same);
        assert!(measured(500) < unmeasured, "but is tried last");
    }

    #[test]
    fn a_worse_path_reports_its_first_difference() {
        let portal = Facts { portal: true, ..measured(1) };
        assert_eq!(compare(&measured(90), &portal), Verdict::Worse(PORTAL));
        let link = LinkFacts { metered: true, ..LinkFacts::default() };
        let metered = Facts { link, ..measured(1) };
        let why = Verdict::Worse("the active path is preferred");
        assert_eq!(compare(&measured(90), &metered), why);
    }

    fn facts() -> impl Strategy<Value = Facts> {
        let transport = prop_oneof![3 => Just(Transport::Udp), 1 => Just(Transport::Tcp)];
        let link = (transport, 0usize..3, any::<bool>(), 0u32..3).prop_map(
            |(transport, preference, metered, metric)| LinkFacts {
                place: if metric == 2 { Place::Home } else { Place::Away },
                transport,
                preference,
                metered,
                metric,
            },
        );
        let rtt = proptest::option::of((1u32..100).prop_map(|ms| ms * MS));
        let slow = Fault::Slow { rtt: 200 * MS, floor: 10 * MS };
        let fault = prop_oneof![
            2 => Just(None),
            1 => (5u8..40).prop_map(|percent| Some(Fault::Lossy(percent))),
            1 => Just(Some(slow)),
            1 => Just(Some(Fault::Narrow(200_000))),
        ];
        (any::<bool>(), any::<bool>(), fault, link, rtt).prop_map(
            |(chosen, portal, fault, link, rtt)| Facts { chosen, portal, fault, link, rtt },
        )
    }

    proptest! {
        #[test]
        fn comparison_and_order_agree(a in facts(), b in facts(), c in facts()) {
            match compare(&a, &b) {
                Verdict::Better(_) => {
                    prop_assert!(b < a);
                    prop_assert!(!matches!(compare(&b, &a), Verdict::Better(_)), "no way back");
                }
                Verdict::Worse(_) => prop_assert!(a < b),
                Verdict::Same => {
                    let grade = |it: &Facts| it.fault.map_or(Grade::Clean, Fault::grade);
                    prop_assert_eq!(grade(&a), grade(&b));
                    let same = |it: &Facts| Facts { rtt: None, fault: None, ..*it };
                    prop_assert_eq!(same(&a), same(&b), "only round trips differ");
                }
            }
            if a <= b && b <= c {
                prop_assert!(a <= c);
            }
        }
    }
}
