use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    super::seen::tests::{path, seen},
    *,
};
use crate::clock;

/// A desk whose time passes second by second.
struct Days {
    desk: Desk,
    begun: Instant,
    now: Instant,
    told: Vec<(u64, String)>,
}

impl Days {
    fn new() -> Self {
        let now = clock::now();
        Self { desk: Desk::default(), begun: now, now, told: Vec::new() }
    }

    fn judge(&mut self) {
        let at = (self.now - self.begun).as_secs();
        for action in self.desk.judge(self.now) {
            let words = match action {
                Action::Show(_, note) | Action::Conclude(_, note) => note.title,
                Action::Close((_, matter)) => format!("close {matter:?}"),
            };
            self.told.push((at, words));
        }
    }

    /// The tunnel is like this for so many seconds.
    fn is(&mut self, changes: Value, seconds: u64) -> &mut Self {
        self.desk.see("home", seen(changes));
        self.passes(seconds)
    }

    fn passes(&mut self, seconds: u64) -> &mut Self {
        let end = self.now + Duration::from_secs(seconds);
        self.judge();
        while let Some(at) = self.desk.next_deadline().filter(|at| *at <= end) {
            assert!(at > self.now, "a deadline that has passed was judged");
            self.now = at;
            self.judge();
        }
        self.now = end;
        self
    }

    fn told(&mut self) -> Vec<(u64, String)> {
        std::mem::take(&mut self.told)
    }
}

fn words(told: &[(u64, &str)]) -> Vec<(u64, String)> {
    told.iter().map(|(at, words)| (*at, (*words).to_owned())).collect()
}

fn lost() -> Value {
    json!({"state": "waiting", "paths": [], "last-error": "no network link has a route"})
}

fn metered() -> Value {
    json!({"paths": [path("wwan0", "active")]})
}

#[test]
fn a_tunnel_that_works_and_switches_is_not_told_of() {
    let mut days = Days::new();
    for _ in 0..100 {
        days.is(json!({}), 20).is(json!({"paths": [path("eth0", "active")]}), 20);
        days.is(json!({"paths": [path("eth0", "suspect")]}), 3).is(lost(), 30);
    }
    assert_eq!(days.told(), []);
}

#[test]
fn an_outage_is_told_of_after_a_minute_and_so_is_its_end() {
    let mut days = Days::new();
    days.is(json!({}), 10).is(lost(), 300).is(json!({}), 100);
    let expected = [(70, "home: no connection for a minute"), (310, "home: connected again")];
    assert_eq!(days.told(), words(&expected));
}

#[test]
fn a_paused_tunnel_closes_what_was_told_and_tells_nothing() {
    let mut days = Days::new();
    days.is(lost(), 100).is(json!({"state": "paused", "paths": []}), 1000);
    assert_eq!(
        days.told(),
        words(&[(60, "home: no connection for a minute"), (100, "close Away")])
    );
}

#[test]
fn a_portal_is_told_of_at_once_with_a_page_and_no_outage_beside_it() {
    let mut days = Days::new();
    days.is(json!({"state": "waiting", "portal": "wlan0", "paths": []}), 200).is(json!({}), 10);
    assert_eq!(days.told(), words(&[(0, "home: wlan0 wants a login"), (200, "close Portal")]));
    days.desk.see("home", seen(json!({"state": "waiting", "portal": "wlan0", "paths": []})));
    let [Action::Show(_, note)] = &days.desk.judge(days.now)[..] else { panic!("not one") };
    assert_eq!(note.page.as_deref(), Some("http://vpn.example.net/"));
}

#[test]
fn a_refusal_is_told_of_once_for_as_long_as_it_lasts() {
    let mut days = Days::new();
    let why = "no [[peer]] of the server has this client's key";
    let refused = json!({"state": "waiting", "paths": [], "refused-since": 1.0, "last-error": why});
    for _ in 0..50 {
        days.is(refused.clone(), 60);
    }
    days.is(json!({}), 1);
    let expected = [(0, "home: the server refuses this computer"), (3000, "close Refused")];
    assert_eq!(days.told(), words(&expected));
}

#[test]
fn metered_data_are_told_of_unless_it_was_for_a_moment() {
    let mut days = Days::new();
    days.is(json!({}), 10).is(metered(), 4).is(json!({}), 10);
    assert_eq!(days.told(), []);
    days.is(metered(), 600).is(json!({}), 10);
    assert_eq!(days.told(), words(&[(29, "home: on metered data"), (624, "close Metered")]));
}

#[test]
fn matters_outlive_the_restart_of_a_daemon_and_end_with_it() {
    let mut days = Days::new();
    days.is(metered(), 10);
    days.desk.gone("home", days.now);
    days.passes(5).is(metered(), 10);
    assert_eq!(days.told(), words(&[(5, "home: on metered data")]));
    days.desk.gone("home", days.now);
    days.passes(60);
    assert_eq!(days.told(), words(&[(35, "close Metered")]));
    assert!(days.desk.tunnels.is_empty());
}

fn budget(link: &str, words: &str, is_used_up: bool) -> Budget {
    Budget { link: link.into(), is_used_up, words: words.into() }
}

/// The status of a client whose links are so far with their budgets.
fn budgets(links: &[(&str, &str)]) -> Value {
    let link = |(link, level): &(&str, &str)| {
        let budget = json!({"used": 9, "of": 9, "period": "month", "since": "2026-11-01",
                            "level": level, "over": "stop"});
        json!({"link": link, "sent-bytes": 9, "received-bytes": 0, "upkeep-bytes": 0,
               "budget": budget})
    };
    json!({ "links": links.iter().map(link).collect::<Vec<_>>() })
}

#[test]
fn each_word_on_a_budget_is_told_of_and_the_last_of_many() {
    let mut days = Days::new();
    days.is(json!({}), 1);
    days.desk.hear("home", budget("wwan0", "four fifths", false));
    days.passes(100);
    for number in 0..50 {
        days.desk.hear("home", budget("wwan0", &format!("all, {number}"), true));
        days.passes(0);
    }
    days.passes(100);
    let title = "home: data budget of wwan0";
    assert_eq!(days.told(), words(&[(1, title), (101, title), (131, title)]));
    let matter = Matter::Budget("wwan0".into());
    let shown = days.desk.tunnels["home"].matters[&matter].shown.as_ref().unwrap();
    assert_eq!((&*shown.body, shown.vanishes), ("all, 49", None));
}

#[test]
fn the_notification_of_a_budget_is_closed_when_its_next_period_begins() {
    let mut days = Days::new();
    days.is(budgets(&[("wwan0", "warned")]), 1);
    days.desk.hear("home", budget("wwan0", "all of it", true));
    days.is(budgets(&[("wwan0", "reached")]), 100).is(budgets(&[("wwan0", "within")]), 1);
    let expected = [(1, "home: data budget of wwan0"), (101, "close Budget(\"wwan0\")")];
    assert_eq!(days.told(), words(&expected));
}

#[test]
fn a_budget_of_which_an_event_told_is_no_news_after_others_were_missed() {
    let mut days = Days::new();
    days.is(budgets(&[("wwan0", "warned")]), 1);
    days.desk.hear("home", budget("wwan0", "1.7 GB", false));
    days.is(budgets(&[("wwan0", "warned")]), 100);
    days.desk.hear_again("home", budget("wwan0", "1.8 GB", false));
    days.is(budgets(&[("wwan0", "warned")]), 100);
    days.desk.hear_again("home", budget("wwan0", "all of it", true));
    days.is(budgets(&[("wwan0", "reached")]), 100);
    let news = "home: data budget of wwan0";
    assert_eq!(days.told(), words(&[(1, news), (201, news)]));
}

#[test]
fn two_links_that_reach_their_budgets_have_a_notification_each() {
    let mut days = Days::new();
    days.is(json!({}), 1);
    days.desk.hear("home", budget("usb0", "most of usb0's", false));
    days.desk.hear("home", budget("wwan0", "all of wwan0's", true));
    let both = [("usb0", "warned"), ("wwan0", "reached")];
    days.is(budgets(&both), 10).is(budgets(&[("usb0", "within"), both[1]]), 1);
    let [usb, wwan] = ["usb0", "wwan0"].map(|link| format!("home: data budget of {link}"));
    let expected = [(1, &*usb), (1, &*wwan), (11, "close Budget(\"usb0\")")];
    assert_eq!(days.told(), words(&expected));
    days.desk.hear("home", budget("usb0", "most of usb0's", false));
    days.is(budgets(&both), 100);
    assert_eq!(days.told(), words(&[(31, &usb)]), "wwan0's is shown already");
}

#[test]
fn budgets_of_many_links_are_no_storm() {
    let mut days = Days::new();
    let links: Vec<_> = (0..64).map(|number| format!("usb{number}")).collect();
    days.is(json!({}), 1);
    for link in &links {
        days.desk.hear("home", budget(link, "all of it", true));
        days.passes(0);
    }
    assert_eq!(days.told().len(), MOST_BUDGETS);
    days.passes(60);
    assert_eq!(days.told().len(), 2 * MOST_BUDGETS, "the next ones after 30 s each");
    days.desk.hear("home", budget("wwan0", "all of it", true));
    days.passes(600);
    let told = days.told();
    assert_eq!(told.len(), 65 - 3 * MOST_BUDGETS, "each is told of once");
}

#[test]
fn a_daemon_that_ends_again_and_again_is_no_storm() {
    let (mut desk, begun, mut told) = (Desk::default(), clock::now(), 0);
    for turn in 0..12 {
        let now = begun + turn * GRACE;
        // It is taken for gone.
        let _ = desk.judge(now);
        desk.see("home", seen(json!({"state": "waiting", "portal": "wlan0", "paths": []})));
        told += desk.judge(now).iter().filter(|it| matches!(it, Action::Show(..))).count();
        desk.gone("home", now);
    }
    assert_eq!(told, 4, "in two minutes");
    while let Some(at) = desk.next_deadline() {
        assert!(at <= begun + 12 * GRACE + PACE);
        let _ = desk.judge(at);
    }
    assert!(desk.tunnels.is_empty());
}

#[test]
fn of_links_that_come_and_go_nothing_is_kept() {
    let mut days = Days::new();
    for number in 0..1000 {
        let link = format!("usb{number}");
        days.desk.see("home", seen(json!({})));
        days.desk.hear("home", budget(&link, "all of it", true));
        days.is(budgets(&[(&link, "reached")]), 60);
    }
    days.is(json!({}), 60).is(json!({}), 1);
    assert_eq!(days.told().len(), 2000);
    let tunnel = &days.desk.tunnels["home"];
    assert!(tunnel.budgets.is_empty() && tunnel.matters.is_empty(), "{tunnel:?}");
}

fn any_status() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        Just(metered()),
        Just(json!({"state": "paused", "paths": []})),
        ("[a-z]{1,3}", any::<bool>()).prop_map(|(why, refused)| {
            let refused = refused.then_some(1.0);
            json!({"state": "waiting", "paths": [], "last-error": why, "refused-since": refused})
        }),
        "[a-z]{1,3}".prop_map(|link| json!({"state": "waiting", "portal": link, "paths": []})),
    ]
}

proptest! {
    #[test]
    fn a_storm_of_statuses_makes_two_notifications_of_a_matter_in_half_a_minute_at_most(
        storm in prop::collection::vec((any_status(), 0u64..20_000, any::<bool>()), 1..300),
    ) {
        let (mut desk, mut now) = (Desk::default(), clock::now());
        let mut shown: BTreeMap<Matter, Vec<Instant>> = BTreeMap::new();
        for (status, milliseconds, is_gone) in storm {
            if is_gone { desk.gone("home", now) } else { desk.see("home", seen(status)) }
            let end = now + Duration::from_millis(milliseconds);
            loop {
                for action in desk.judge(now) {
                    if let Action::Show((_, matter), _) | Action::Conclude((_, matter), _) = action {
                        shown.entry(matter).or_default().push(now);
                    }
                }
                let Some(at) = desk.next_deadline().filter(|at| *at <= end) else { break };
                prop_assert!(at > now);
                now = at;
            }
            now = end;
        }
        for (matter, times) in shown {
            for window in times.windows(3) {
                prop_assert!(window[2] - window[0] >= PACE, "{matter:?}: {window:?}");
            }
        }
    }
}
