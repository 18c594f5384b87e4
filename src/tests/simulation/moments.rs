//! What happens at the worst moment: drawn by the random days, and one cause each in tests of their own.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{
    App, Day, MOMENT, virtual_time,
    world::{Hole, Moment},
};
use crate::clock;

const WIFI: usize = 0;
const LTE: usize = 1;
/// Longer than the idle timeout: the session is over.
const OVER: Duration = Duration::from_secs(35);
/// A moment that has not come by then does not come.
const SOON: Duration = Duration::from_secs(4);
/// No packet is longer under way.
const UNDER_WAY: Duration = Duration::from_millis(300);
/// So long somebody waits who waits in vain.
const IN_VAIN: Duration = Duration::from_secs(60);

pub(super) fn milliseconds(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

impl Day {
    /// A handshake, a greeting or a switch is brought about, and in the middle of it something else happens.
    /// How much more than the usual moment it may cost the tunnel.
    pub(super) async fn strike(&mut self) -> Duration {
        let moments = [Moment::Handshake, Moment::Greeting, Moment::Switch];
        let moment = moments[self.random.usize(..3)];
        let (hole, at_once) = (self.hole(), self.random.bool());
        let passed = self.world.ambush(moment, move |link| {
            if at_once {
                link.hole = hole;
            }
        });
        let mut grace = MOMENT;
        match self.random.u32(..4) {
            0 => grace = self.restart_server(),
            1 | 2 => {
                self.tell("both fall silent for longer than a session lasts");
                self.outage().await;
                self.tell("both answer");
            }
            _ => {
                let up = !self.world.links()[WIFI].up;
                self.world.change(WIFI, |wifi| (wifi.up, wifi.hole) = (up, Hole::None));
                self.tell(&format!("wifi is {}", if up { "up" } else { "down" }));
            }
        }
        let begun = clock::now();
        match timeout(SOON, passed).await {
            Ok(Ok(link)) if at_once => {
                self.tell(&format!("{moment:?} on link {link}, which loses {hole:?}"));
            }
            Ok(Ok(link)) => {
                self.tell(&format!("{moment:?} on link {link}"));
                let blow = self.blow(link).await;
                return blow.max(grace.saturating_sub(clock::now() - begun)).max(MOMENT);
            }
            Ok(Err(_)) | Err(_) => {}
        }
        grace.saturating_sub(clock::now() - begun).max(MOMENT)
    }

    /// A link comes back, and less than a round trip later something else happens.
    pub(super) async fn strike_on_return(&mut self, link: usize) -> Duration {
        self.world.change(link, |it| (it.up, it.hole) = (true, Hole::None));
        self.tell(&format!("link {link} works"));
        let other = self.random.usize(..2);
        self.blow(other).await
    }

    /// Something happens to `link`, or to the server, less than a round trip from now.
    async fn blow(&mut self, link: usize) -> Duration {
        let round_trip = 2 * self.world.links()[link].delay;
        sleep(round_trip.mul_f64(self.random.f64())).await;
        let hole = self.hole();
        match self.random.u32(..6) {
            0..3 => {
                self.world.change(link, |it| it.hole = hole);
                self.tell(&format!("link {link} loses {hole:?}"));
            }
            3 => {
                self.world.change(link, |it| it.up = false);
                self.tell(&format!("link {link} is down"));
            }
            4 => {
                self.world.change(link, |it| it.rebind());
                self.tell(&format!("the NAT of link {link} restarts"));
            }
            _ => return self.restart_server(),
        }
        MOMENT
    }

    fn hole(&mut self) -> Hole {
        [Hole::Everything, Hole::Everything, Hole::Uplink, Hole::Downlink][self.random.usize(..4)]
    }

    /// Makes the links lose this.
    fn lose(&self, links: [Hole; 2]) {
        for (link, hole) in links.into_iter().enumerate() {
            self.world.change(link, |it| it.hole = hole);
        }
    }

    /// Both links are silent for longer than the session lasts, and work again.
    async fn outage(&self) {
        self.lose([Hole::Everything; 2]);
        sleep(OVER).await;
        for link in 0..2 {
            self.world.change(link, |it| (it.up, it.hole) = (true, Hole::None));
        }
    }

    /// The same of this link alone, while the other one is as it was.
    async fn outage_of(&self, link: usize) {
        self.world.change(link, |it| it.hole = Hole::Everything);
        sleep(OVER).await;
        self.world.change(link, |it| it.hole = Hole::None);
    }

    /// The link of the next such moment loses what the client sends at that moment.
    async fn lose_packets_at(&self, moment: Moment) {
        let link = self.lose_at(moment, Hole::Uplink).await;
        sleep(milliseconds(1)).await;
        self.world.change(link, |it| it.hole = Hole::None);
    }

    /// The link of the next such moment loses this from then on.
    async fn lose_at(&self, moment: Moment, hole: Hole) -> usize {
        let passed = self.world.ambush(moment, move |link| link.hole = hole);
        timeout(IN_VAIN, passed).await.expect("such a moment").unwrap()
    }
}

/// Lives through `plot` after a quiet while with these round trips over wifi and lte. How long it takes from
/// its end until the client has an answer to what it sent after that.
fn wait_after(round_trips: [u64; 2], plot: impl AsyncFnOnce(&mut Day)) -> Duration {
    virtual_time().block_on(async {
        let mut day = Day::new(0);
        let (_client, _tasks) = day.begin();
        for (link, round_trip) in round_trips.into_iter().enumerate() {
            day.world.change(link, |it| it.delay = milliseconds(round_trip / 2));
        }
        sleep(Duration::from_secs(20)).await;
        plot(&mut day).await;
        let end = clock::now();
        let answered = |app: &App| app.0.lock().unwrap().last_answer;
        while answered(&day.app).is_none_or(|sent| sent <= end + UNDER_WAY)
            && clock::now() - end < IN_VAIN
        {
            sleep(milliseconds(1)).await;
        }
        clock::now() - end
    })
}

#[test]
fn a_link_that_dies_when_its_handshake_has_won_is_left_for_the_other() {
    for hole in [Hole::Everything, Hole::Uplink, Hole::Downlink] {
        for round_trips in [[540, 590], [20, 590], [20, 50]] {
            let waited = wait_after(round_trips, async |day| {
                day.outage().await;
                day.lose_at(Moment::Handshake, hole).await;
            });
            assert!(waited < Duration::from_secs(4), "{hole:?} {round_trips:?}: {waited:?}");
        }
    }
}

#[test]
fn a_link_that_dies_while_the_server_greets_is_left_for_the_other() {
    for hole in [Hole::Everything, Hole::Uplink, Hole::Downlink] {
        for round_trips in [[540, 590], [20, 590], [20, 50]] {
            let waited = wait_after(round_trips, async |day| {
                day.outage().await;
                day.lose_at(Moment::Greeting, hole).await;
            });
            assert!(waited < Duration::from_secs(5), "{hole:?} {round_trips:?}: {waited:?}");
        }
    }
}

#[test]
fn a_server_that_restarts_in_the_middle_of_a_handshake_or_greeting_is_found_again() {
    for moment in [Moment::Handshake, Moment::Greeting] {
        let waited = wait_after([540, 590], async |day| {
            day.start_server();
            let passed = day.world.ambush(moment, |_| ());
            timeout(IN_VAIN, passed).await.expect("such a moment").unwrap();
            day.start_server();
        });
        assert!(waited < Duration::from_secs(4), "{moment:?}: {waited:?}");
    }
}

#[test]
fn a_link_that_dies_when_the_tunnel_has_moved_there_is_left_again() {
    for hole in [Hole::Everything, Hole::Uplink] {
        let waited = wait_after([540, 590], async |day| {
            day.world.change(WIFI, |wifi| wifi.up = false);
            sleep(milliseconds(2000)).await;
            day.world.change(WIFI, |wifi| wifi.up = true);
            assert_eq!(day.lose_at(Moment::Switch, hole).await, WIFI);
        });
        assert!(waited < Duration::from_secs(5), "{hole:?}: {waited:?}");
    }
}

/// QUIC repeats the first packet of a handshake ever more rarely: after 0.3, 0.9, 2.1 and 4.5 s.
#[test]
fn a_network_that_comes_back_is_used_although_earlier_attempts_over_it_failed() {
    for asked in [1000, 2500, 3500, 5000, 6500] {
        let waited = wait_after([20, 590], async |day| {
            day.lose([Hole::None, Hole::Everything]);
            sleep(OVER).await;
            day.lose([Hole::Everything; 2]);
            sleep(milliseconds(asked)).await;
            day.lose([Hole::Everything, Hole::None]);
        });
        assert!(waited < Duration::from_secs(4), "asked for {asked} ms: {waited:?}");
    }
}

#[test]
fn a_slow_link_that_works_one_way_only_is_left_for_the_other() {
    for hole in [Hole::Uplink, Hole::Downlink] {
        let waited = wait_after([600, 50], async |day| {
            day.lose([hole, Hole::None]);
        });
        assert!(waited < milliseconds(4500), "{hole:?}: {waited:?}");
    }
}

/// The server heard the handshakes meanwhile and gives them up; what it says of that may be the first to arrive.
#[test]
fn a_handshake_that_the_server_gave_up_does_not_end_the_attempts_on_its_link() {
    for asked in (8000..9000).step_by(50) {
        let waited = wait_after([20, 50], async |day| {
            day.lose([Hole::Everything; 2]);
            sleep(OVER).await;
            day.lose([Hole::Everything, Hole::Downlink]);
            sleep(milliseconds(asked)).await;
            day.lose([Hole::Everything, Hole::None]);
        });
        assert!(waited < milliseconds(1500), "asked for {asked} ms: {waited:?}");
    }
}

/// The server cannot read the hello before it has the end of the handshake, which QUIC repeats after three round
/// trips.
#[test]
fn a_greeting_that_is_lost_is_overtaken_by_the_next_handshake() {
    for round_trip in [50, 300, 580] {
        let waited = wait_after([round_trip, 50], async |day| {
            day.world.change(LTE, |lte| lte.up = false);
            day.outage_of(WIFI).await;
            day.lose_packets_at(Moment::Handshake).await;
        });
        let bound = milliseconds(3 * round_trip + 550);
        assert!(waited < bound, "{round_trip} ms: {waited:?}");
    }
}

#[test]
fn a_path_is_used_as_soon_as_a_handshake_over_it_is_complete() {
    let waited = wait_after([20, 580], async |day| {
        day.world.change(LTE, |lte| lte.up = false);
        day.lose([Hole::Everything; 2]);
        sleep(milliseconds(500)).await;
        day.world.change(LTE, |lte| lte.up = true);
        sleep(milliseconds(2000)).await;
        day.lose([Hole::Everything, Hole::None]);
        day.lose_packets_at(Moment::Handshake).await;
    });
    assert!(waited < milliseconds(1200), "{waited:?}");
}

/// Two round trips find out that the server forgot, and three make a new session. One more is lost with a question
/// whose time is over a moment before its answer comes.
#[test]
fn a_server_that_forgot_is_found_again_over_another_slow_network_that_comes_back() {
    for asked in (3000..9000).step_by(100) {
        let waited = wait_after([580, 50], async |day| {
            day.world.change(WIFI, |wifi| wifi.up = false);
            sleep(milliseconds(2000)).await;
            day.lose([Hole::Everything; 2]);
            day.world.change(WIFI, |wifi| wifi.up = true);
            day.start_server();
            sleep(milliseconds(asked)).await;
            day.lose([Hole::None, Hole::Everything]);
        });
        assert!(waited < milliseconds(6 * 580 + 500), "asked for {asked} ms: {waited:?}");
    }
}

#[test]
fn a_server_that_completes_a_handshake_is_not_called_silent() {
    virtual_time().block_on(async {
        let mut day = Day::new(0);
        let (client, _tasks) = day.begin();
        day.world.change(WIFI, |wifi| wifi.delay = milliseconds(290));
        day.world.change(LTE, |lte| lte.up = false);
        day.lose_at(Moment::Handshake, Hole::Uplink).await;
        let answered = clock::now();
        while clock::now() - answered < milliseconds(2300) {
            sleep(milliseconds(10)).await;
            let told = client.status().last_error;
            assert_eq!(told, None, "{:?} after the handshake", clock::now() - answered);
        }
        day.lose([Hole::None; 2]);
    });
}

/// The server hears nothing more from the address with which a handshake began, and drops the rest of it: that one is
/// lost, and the next one begins within a quarter of a second.
#[test]
fn a_nat_that_forgets_a_handshake_or_greeting_costs_the_round_trips_of_another() {
    for moment in [Moment::Handshake, Moment::Greeting] {
        for (round_trip, after) in
            [50, 580].into_iter().flat_map(|it| [0, 25, 400].map(|after| (it, after)))
        {
            let waited = wait_after([20, round_trip], async |day| {
                day.outage().await;
                day.world.change(WIFI, |wifi| wifi.up = false);
                let passed = day.world.ambush(moment, |_| ());
                timeout(IN_VAIN, passed).await.expect("such a moment").unwrap();
                sleep(milliseconds(after)).await;
                day.world.change(LTE, |lte| lte.rebind());
            });
            let bound = milliseconds(4 * round_trip + 500);
            assert!(waited < bound, "{moment:?} {round_trip} ms, {after} ms later: {waited:?}");
        }
    }
}
