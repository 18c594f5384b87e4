//! Fewer wake-ups under many small packets: what a network card calls interrupt moderation.
//!
//! A packet that comes alone costs a wake-up, a read and a send here, and the same on the other side. From some
//! thousands a second on these cost more than the packets do. Then the thread sleeps for [`PAUSE`] before it waits
//! for the kernel: packets gather there meanwhile, and pass in one batch. Wake-ups with larger batches are not
//! moderated, and a busy thread never waits.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::Builder;

use crate::{clock, mutex::Mutex};

/// How long packets may gather. The kernel adds some 50 us (PR_SET_TIMERSLACK of prctl(2)).
const PAUSE: Duration = Duration::from_micros(400);
/// Wake-ups that come more often than this, 5,000 times a second, are too many.
const OFTEN: Duration = Duration::from_micros(200);
/// A wake-up that takes less than this has a packet or two to deal with.
const SHORT: Duration = Duration::from_micros(60);
/// A wait for longer than this ends the pauses: nothing comes any more.
const QUIET: Duration = Duration::from_millis(1);
/// Wake-ups that are looked at before the pauses begin. The other side may pause as well, and then sends bursts, which gain
/// nothing from another pause, except while it looks at a few single packets.
const FIRST: u32 = 64;
/// Wake-ups that are looked at between pauses.
const AGAIN: u32 = 8;
/// Pauses until the next decision: some 60 ms.
const PAUSES: u32 = 128;

/// Lets the one thread of this runtime pause where that saves wake-ups.
pub(crate) fn moderate(runtime: &mut Builder) -> &mut Builder {
    let of_waits = Arc::new(Mutex::new(Moderation::Looking(Sample::first(clock::now()))));
    let of_wakes = of_waits.clone();
    runtime
        .on_thread_park(move || {
            let pause = of_waits.lock().waits(clock::now());
            if let Some(pause) = pause {
                thread::sleep(pause);
                of_waits.lock().paused(clock::now());
            }
        })
        .on_thread_unpark(move || of_wakes.lock().wakes(clock::now()))
}

/// When the thread should pause.
#[derive(Debug)]
enum Moderation {
    /// Looking at wake-ups as they come.
    Looking(Sample),
    Pausing {
        left: u32,
        waits_since: Instant,
    },
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    size: u32,
    begun: Instant,
    woke: Instant,
    wakes: u32,
    busy: Duration,
}

impl Sample {
    fn first(now: Instant) -> Self {
        Self { size: FIRST, begun: now, woke: now, wakes: 0, busy: Duration::ZERO }
    }

    fn again(now: Instant) -> Self {
        Self { size: AGAIN, ..Self::first(now) }
    }
}

impl Moderation {
    /// The thread has nothing to do. How long it should sleep before it waits for something.
    fn waits(&mut self, now: Instant) -> Option<Duration> {
        match self {
            Self::Looking(sample) => {
                sample.wakes += 1;
                sample.busy += now - sample.woke;
                if sample.wakes < sample.size {
                    return None;
                }
                let often = now - sample.begun < OFTEN * sample.size;
                let short = sample.busy < SHORT * sample.size;
                *self = if often && short {
                    Self::Pausing { left: PAUSES, waits_since: now }
                } else {
                    Self::Looking(Sample::first(now))
                };
                None
            }
            Self::Pausing { left: 0, .. } => {
                *self = Self::Looking(Sample::again(now));
                None
            }
            Self::Pausing { left, .. } => {
                *left -= 1;
                Some(PAUSE)
            }
        }
    }

    /// The pause is over, and the thread waits from now on.
    fn paused(&mut self, now: Instant) {
        if let Self::Pausing { waits_since, .. } = self {
            *waits_since = now;
        }
    }

    /// Something has come.
    fn wakes(&mut self, now: Instant) {
        match self {
            Self::Looking(sample) => sample.woke = now,
            Self::Pausing { waits_since, .. } if now - *waits_since > QUIET => {
                *self = Self::Looking(Sample::first(now));
            }
            Self::Pausing { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    /// A thread to whom a packet comes every `interval`, each of which takes `work`, for a second. Gives the
    /// number of wake-ups, and the longest that a packet waited.
    fn second(moderation: &mut Moderation, interval: Duration, work: Duration) -> (u32, Duration) {
        let start = Instant::now();
        let end = start + Duration::from_secs(1);
        let (mut now, mut next, mut wakes, mut longest) = (start, start, 0, Duration::ZERO);
        while now < end {
            moderation.wakes(now);
            wakes += 1;
            while next <= now {
                longest = longest.max(now - next);
                next += interval;
                now += work;
            }
            if let Some(pause) = moderation.waits(now) {
                now += pause;
                moderation.paused(now);
            }
            now = now.max(next);
        }
        (wakes, longest)
    }

    fn moderation() -> Moderation {
        Moderation::Looking(Sample::first(Instant::now()))
    }

    #[test]
    fn many_small_packets_share_wake_ups_and_wait_for_less_than_half_a_millisecond() {
        let (wakes, longest) = second(&mut moderation(), 96 * US, 20 * US);
        assert!(wakes < 2_500, "{wakes}");
        assert!(longest < 500 * US, "{longest:?}");
    }

    #[test]
    fn bursts_of_a_peer_that_pauses_wait_for_nothing() {
        let (mut moderation, mut now) = (moderation(), Instant::now());
        for wake in 0..10_000 {
            moderation.wakes(now);
            now += 40 * US;
            assert_eq!(moderation.waits(now), None, "wake-up {wake}");
            // From time to time the peer looks at single packets.
            let is_single = wake % (PAUSES + AGAIN) < AGAIN;
            now += if is_single { 60 * US } else { 460 * US };
        }
    }

    #[test]
    fn few_packets_wait_for_nothing() {
        for interval in [400 * US, 5_000 * US, 50_000 * US] {
            let (_, longest) = second(&mut moderation(), interval, 20 * US);
            assert_eq!(longest, Duration::ZERO, "{interval:?}");
        }
    }

    #[test]
    fn a_wake_up_with_much_to_do_is_worth_its_price() {
        let (_, longest) = second(&mut moderation(), 150 * US, 100 * US);
        assert_eq!(longest, Duration::ZERO);
    }

    #[test]
    fn a_packet_after_a_silence_waits_for_nothing() {
        let mut moderation = moderation();
        second(&mut moderation, 96 * US, 20 * US);
        let mut now = Instant::now() + Duration::from_secs(60);
        for _ in 0..10 {
            moderation.wakes(now);
            assert_eq!(moderation.waits(now + 20 * US), None);
            now += Duration::from_millis(100);
        }
    }
}
