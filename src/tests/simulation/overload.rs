//! A network whose rate falls under a transfer, beside a clean one: it is left once, and what looks fine while nothing is
//! asked of it does not bring the tunnel back.

use super::{
    ends::Ends,
    quality::{link, reasons},
    *,
};

const WIFI: usize = 0;
const PACE: Duration = Duration::from_millis(10);
/// The size of the transfer's packets in bytes.
const SIZE: usize = 1200;
/// How many of them leave in each [`PACE`], and how many are under way at most: some 5 Mbit/s, and some 60.
const SPEEDS: [[u32; 2]; 2] = [[5, 256], [60, 1500]];
/// Without an arrival for so long the transfer begins again with few packets, as TCP's do.
const TIMEOUT: Duration = Duration::from_secs(1);
/// A packet of the stream, as of a call.
const SMALL: usize = 128;

/// A stream of small packets each way, and a transfer one way.
struct Traffic {
    ends: Ends,
    is_up: bool,
    /// One of [`SPEEDS`].
    speed: [u32; 2],
    /// The transfer's next packet, the first that may be under way, and how many may be.
    next: u32,
    first: u32,
    window: u32,
    /// When something arrived of it last.
    arrived: Instant,
    /// When each packet of the stream was sent.
    stream: Vec<Instant>,
}

impl Traffic {
    async fn begin(seed: u64, is_up: bool, speed: [u32; 2]) -> Self {
        let ends = Ends::connected(seed).await;
        ends.day.world.change(WIFI, |wifi| wifi.delay = Duration::from_millis(5));
        let (arrived, stream) = (clock::now(), Vec::new());
        Self { ends, is_up, speed, next: 0, first: 0, window: 2, arrived, stream }
    }

    async fn flow(&mut self, duration: Duration, has_transfer: bool) {
        let end = clock::now() + duration;
        while clock::now() < end {
            let number = self.stream.len() as u32;
            self.stream.push(clock::now());
            self.ends.send(UDP, number, SMALL).await;
            if has_transfer {
                self.transfer().await;
            }
            sleep(PACE).await;
        }
    }

    async fn transfer(&mut self) {
        let (now, [at_once, most]) = (clock::now(), self.speed);
        let first = self.ends.newest(self.is_up, TCP).map_or(0, |newest| newest + 1);
        if first > self.first {
            self.window = (self.window + first - self.first).min(most);
            (self.first, self.arrived) = (first, now);
        } else if now - self.arrived > TIMEOUT {
            (self.first, self.window, self.arrived) = (self.next, 2, now);
        }
        let room = (self.first + self.window).saturating_sub(self.next);
        for _ in 0..room.min(at_once) {
            self.ends.send_one(self.is_up, TCP, self.next, SIZE).await;
            self.next += 1;
        }
    }

    /// The packets of the stream that did not come, upwards and downwards, and how long those took that were sent from
    /// then on, the shortest first.
    fn told(&self, since: Instant) -> [(usize, Vec<Duration>); 2] {
        self.ends.arrived(UDP).map(|(_, arrivals)| {
            let recent = arrivals.iter().filter(|it| self.stream[it.0 as usize] >= since);
            let took = recent.map(|(number, at)| *at - self.stream[*number as usize]);
            let mut took: Vec<_> = took.collect();
            took.sort_unstable();
            (self.stream.len() - arrivals.len(), took)
        })
    }
}

/// So long a path is used whose rate fell, at most, and so many packets of the stream may be lost in all: of what it lost before
/// the last second nothing is kept.
const LEFT: (Duration, usize) = (Duration::from_secs(2), 130);
/// The same of a fast download, which loses all that is under way and begins again after [`TIMEOUT`]: only then something is
/// seen to be lost.
const LEFT_LATE: (Duration, usize) = (Duration::from_millis(2500), 180);

/// The rate of wifi falls to 0.2 Mbit/s under a transfer, of which so many bytes at once are let through; then it has another
/// address, and in the end its rate again.
fn fall(is_up: bool, speed: [u32; 2], bucket: u32) {
    virtual_time().block_on(async {
        let mut traffic = Traffic::begin(0, is_up, speed).await;
        let client = traffic.ends.client.clone();
        let uses_lte = || link(&client).as_deref() == Some("lte0");
        traffic.flow(Duration::from_secs(5), true).await;
        let world = traffic.ends.day.world.clone();
        world.change(WIFI, |wifi| (wifi.rate, wifi.bucket) = (Some(200_000), bucket));
        let fell = clock::now();
        while !uses_lte() && clock::now() - fell < SETTLED {
            traffic.flow(PACE, true).await;
        }
        let left = clock::now() - fell;
        traffic.flow(Duration::from_secs(20), true).await;
        let (soon, most) = if !is_up && speed != SPEEDS[0] { LEFT_LATE } else { LEFT };
        let told = traffic.told(fell + soon);
        // Nothing is asked of wifi any more.
        sleep(Duration::from_secs(60)).await;
        world.change(WIFI, Link::renumber);
        sleep(Duration::from_secs(60)).await;
        let status = client.status();
        let lost = told.each_ref().map(|it| it.0);
        let slowest = told.each_ref().map(|it| it.1[it.1.len() * 99 / 100]);
        let reasons = reasons(&status.switches);
        let figures = format!(
            "up {is_up}, {speed:?}, {bucket}: {left:?}, {reasons:?}, {lost:?} lost, {slowest:?} at 99 %"
        );
        assert!(left <= soon, "{figures}");
        assert!(uses_lte() && reasons.len() == 1, "{figures}");
        assert!(
            reasons[0].contains(" carries 0.") && lost.iter().all(|it| *it < most),
            "{figures}"
        );
        assert!(slowest.iter().all(|it| *it < Duration::from_millis(50)), "{figures}");
        world.change(WIFI, |wifi| wifi.rate = None);
        let good = clock::now();
        while uses_lte() && clock::now() - good < REST {
            sleep(INTERVAL).await;
        }
        let took = clock::now() - good;
        assert!(took < Duration::from_secs(40), "{took:?}");
    });
}

#[test]
fn a_network_whose_rate_falls_under_a_transfer_is_left_once() {
    for speed in SPEEDS {
        fall(true, speed, 0);
        fall(false, speed, 0);
    }
}

#[test]
fn a_network_that_lets_a_burst_through_is_not_taken_for_a_wide_one() {
    fall(true, SPEEDS[0], 12_000);
}
