//! A burst of echoes over a probe's connection.
//!
//! A burst of small echoes takes some 2.5 kB in each direction, headers and acknowledgements included, one of large
//! echoes 24 kB, and one of both as much as the two.
//!
//! Echoes leave in trains: ten large ones, ten more when those are answered, and the small ones when these are. So no
//! more than ten stand in a queue, QUIC's pacer lets each train leave at once, and the small ones do not wait behind the
//! large ones. Whoever limits a rate mostly lets some packets pass at first (a token bucket), which the first train uses
//! up: how fast the second one arrives is the rate. There is none where the first one shows that the path carries next to
//! nothing.

use std::time::Duration;

use bytes::Bytes;
use quinn::Connection;
use tokio::time::{self, Instant};

use crate::path::quality::{Burst, LARGE_SIZE, OVERHEAD, Sample, VERY_NARROW};

/// The time from one small echo to the next. Large ones leave at once.
const PACE: Duration = Duration::from_millis(16);
/// Large echoes of a train; fewer answers than this to one of them show no rate.
const TRAIN: usize = 10;
const MOST: usize = 8;
/// How long the last answer may take: three round trips and 100 ms, or twice the longest that was seen, as a queue may
/// grow; within bounds. An answer that is late is not lost.
const SHORTEST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// A burst under way. Times are counted from the probe's epoch.
#[derive(Debug)]
pub(super) struct Sampling {
    wait: Duration,
    /// Trains of large echoes that are still to be sent, the echoes of those that were, and the small ones.
    trains: usize,
    large: Vec<Echo>,
    small: Vec<Echo>,
    /// Small echoes of the burst.
    count: usize,
}

#[derive(Debug)]
struct Echo {
    sent: Duration,
    answered: Option<Duration>,
}

impl Sampling {
    pub(super) fn new(burst: Burst) -> Self {
        let [large, count] = burst.echoes();
        let (trains, large, small) = (large / TRAIN, Vec::new(), Vec::new());
        Self { wait: SHORTEST_WAIT, trains, large, small, count }
    }

    /// Sends the echoes and counts their answers, until all have come or are overdue; `None` if the connection ends.
    /// Whatever else comes is for `heard`.
    pub(super) async fn run(
        &mut self,
        connection: &Connection,
        epoch: Instant,
        heard: &(impl Fn(Bytes) + ?Sized),
    ) -> Option<()> {
        let wait = 3 * connection.rtt() + Duration::from_millis(100);
        self.wait = wait.clamp(SHORTEST_WAIT, LONGEST_WAIT);
        let mut small_since = None;
        loop {
            let now = epoch.elapsed();
            if self.trains > 0 && self.is_over(&self.large, now) {
                self.trains -= 1;
                // A path that carries next to nothing needs no more, and would be full of them.
                if self.large.is_empty() || self.rate().is_some_and(|rate| rate >= VERY_NARROW) {
                    for _ in 0..TRAIN {
                        self.large.push(ask(connection, LARGE_SIZE, self.large.len(), now)?);
                    }
                }
                continue;
            }
            // Later answers make the wait longer, but what has begun goes on.
            if small_since.is_some() || self.trains == 0 && self.is_over(&self.large, now) {
                let since = *small_since.get_or_insert(now);
                let due = |echoes: usize| since + PACE * echoes as u32;
                while self.small.len() < self.count && due(self.small.len()) <= now {
                    self.small.push(ask(connection, size_of::<u64>(), self.small.len(), now)?);
                }
                if self.small.len() == self.count && self.is_over(&self.small, now) {
                    return Some(());
                }
            }
            let next = match small_since {
                Some(since) if self.small.len() < self.count => {
                    since + PACE * self.small.len() as u32
                }
                Some(_) => self.overdue(&self.small),
                None => self.overdue(&self.large),
            };
            if let Ok(reply) = time::timeout_at(epoch + next, connection.read_datagram()).await {
                let reply = reply.ok()?;
                if !self.answered(&reply, epoch.elapsed()) {
                    heard(reply);
                }
            }
        }
    }

    /// When the answer to the last of these echoes is overdue.
    fn overdue(&self, echoes: &[Echo]) -> Duration {
        echoes.last().map_or(Duration::ZERO, |echo| echo.sent + self.wait())
    }

    /// Whether nothing of these echoes is waited for any more.
    fn is_over(&self, echoes: &[Echo], now: Duration) -> bool {
        self.overdue(echoes) <= now || echoes.iter().all(|echo| echo.answered.is_some())
    }

    /// How long an answer may take, by those that came.
    fn wait(&self) -> Duration {
        let longest = self.round_trips().max();
        longest.map_or(LONGEST_WAIT, |longest| (2 * longest).clamp(self.wait, LONGEST_WAIT))
    }

    fn round_trips(&self) -> impl Iterator<Item = Duration> {
        self.large.iter().chain(&self.small).filter_map(Echo::round_trip)
    }

    /// Takes in an answer; whether it was one.
    fn answered(&mut self, reply: &[u8], now: Duration) -> bool {
        // A time is far from the first byte of everything else.
        let time = reply.first_chunk().filter(|bytes: &&[u8; 8]| bytes[0] == 0);
        let Some(sent) = time.map(|bytes| u64::from_be_bytes(*bytes)) else { return false };
        let mut echoes = self.large.iter_mut().chain(&mut self.small);
        let echo = echoes.find(|echo| echo.sent.as_micros() as u64 == sent);
        if let Some(echo) = echo {
            echo.answered.get_or_insert(now);
        }
        true
    }

    /// What is known so far; `None` if that is nothing. The small echoes tell what is lost and how long the way takes, if
    /// there are any: the large ones wait for one another.
    pub(super) fn sample(&self, now: Duration) -> Option<Sample> {
        let wait = self.wait();
        let echoes = if self.count > 0 { &self.small } else { &self.large };
        // While some may still be answered, those that are would be counted too often.
        let is_complete = echoes.iter().all(|echo| echo.answered.is_some());
        let is_due = |echo: &&Echo| is_complete || echo.sent + wait <= now;
        let due = || echoes.iter().filter(is_due);
        let (sent, answered) = (due().count(), due().filter(|it| it.answered.is_some()).count());
        let mut rtts: Vec<_> = echoes.iter().filter_map(Echo::round_trip).collect();
        rtts.sort_unstable();
        let middle = if self.count > 0 { rtts.len() / 2 } else { 0 };
        let rtt = rtts.get(middle).copied();
        let (sent, answered, rate) = (sent as u32, answered as u32, self.rate());
        (sent > 0).then_some(Sample { sent, answered, rtt, rate })
    }

    /// How fast the last train arrived, in bits per second, if most of it did.
    fn rate(&self) -> Option<u64> {
        let last = self.large.chunks(TRAIN).last()?;
        let mut answers: Vec<_> = last.iter().filter_map(|echo| echo.answered).collect();
        answers.sort_unstable();
        let spread = answers.last()?.saturating_sub(*answers.first()?);
        let bits = (answers.len() - 1) * (LARGE_SIZE + OVERHEAD) * 8;
        let seconds = spread.as_secs_f64().max(1e-3);
        (answers.len() >= MOST).then_some((bits as f64 / seconds) as u64)
    }
}

impl Echo {
    fn round_trip(&self) -> Option<Duration> {
        Some(self.answered?.saturating_sub(self.sent))
    }
}

/// Sends an echo of so many bytes. The time of its sending identifies it; `number` tells apart those of one moment.
fn ask(connection: &Connection, size: usize, number: usize, now: Duration) -> Option<Echo> {
    let sent = now + Duration::from_micros(number as u64);
    let mut question = vec![0; size];
    question[..8].copy_from_slice(&(sent.as_micros() as u64).to_be_bytes());
    connection.send_datagram(Bytes::from(question)).ok()?;
    Some(Echo { sent, answered: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Small echoes that left so many milliseconds apart.
    fn small(echoes: u32, pace: u32) -> Sampling {
        Sampling {
            small: echoes_at((0..echoes).map(|it| it * pace * MS)),
            ..sampling(Burst::Small)
        }
    }

    fn sampling(burst: Burst) -> Sampling {
        Sampling { wait: 150 * MS, trains: 0, ..Sampling::new(burst) }
    }

    fn echoes_at(sent: impl Iterator<Item = Duration>) -> Vec<Echo> {
        sent.map(|sent| Echo { sent, answered: None }).collect()
    }

    fn answer(sampling: &mut Sampling, sent: Duration, at: Duration) {
        sampling.answered(&(sent.as_micros() as u64).to_be_bytes(), at);
    }

    #[test]
    fn an_echo_that_may_still_be_answered_is_not_counted_as_lost() {
        let mut sampling = small(20, 10);
        assert_eq!(sampling.sample(149 * MS), None);
        for sent in [0, 20, 30, 100] {
            answer(&mut sampling, sent * MS, (sent + 40) * MS);
        }
        answer(&mut sampling, 15 * MS, 60 * MS);
        answer(&mut sampling, 20 * MS, 190 * MS);
        let sample = sampling.sample(200 * MS).unwrap();
        // The first six are due; that of 100 ms is answered, and its neighbours may be.
        assert_eq!(sample, Sample { sent: 6, answered: 3, rtt: Some(40 * MS), rate: None });
    }

    #[test]
    fn answers_that_a_growing_queue_delays_are_not_lost() {
        let mut sampling = small(24, 16);
        assert_eq!(sampling.sample(999 * MS), None, "nothing came, and all may come");
        for number in 0..16 {
            answer(&mut sampling, number * 16 * MS, number * (16 + 20) * MS);
        }
        // The longest took 300 ms, and the first that was not answered has waited for 344 ms.
        let sample = sampling.sample(600 * MS).unwrap();
        assert_eq!((sample.sent, sample.answered), (1, 1), "all but the first may still come");
        let sample = sampling.sample(1000 * MS).unwrap();
        assert_eq!((sample.sent, sample.answered), (24, 16), "after twice as long they are");
    }

    /// Half of them are lost, and the burst is cut short: what was answered at once is no better than what was not.
    #[test]
    fn answers_of_a_burst_that_is_cut_short_prove_nothing() {
        let mut sampling = small(24, 16);
        for number in (0..24).step_by(2) {
            answer(&mut sampling, number * 16 * MS, (number * 16 + 10) * MS);
        }
        assert_eq!(sampling.sample(149 * MS), None);
        let sample = sampling.sample(300 * MS).unwrap();
        assert_eq!((sample.sent, sample.answered), (10, 5));
    }

    #[test]
    fn the_rate_is_that_of_the_last_train_and_the_small_echoes_tell_the_rest() {
        let mut both = sampling(Burst::Both);
        both.large = echoes_at((0..10).map(|it| it * MS).chain((100..110).map(|it| it * MS)));
        for number in 0..10 {
            answer(&mut both, number * MS, 50 * MS);
        }
        let last = (100..110).filter(|sent| ![104, 107].contains(sent));
        for (answers, sent) in last.enumerate() {
            assert_eq!(both.rate(), None, "{answers} of ten");
            answer(&mut both, sent * MS, (150 + 40 * (sent - 100)) * MS);
        }
        // Seven packets of 1164 bytes after the first, in 360 ms: that the first train came at once shows nothing.
        assert_eq!(both.rate(), Some(181_066));
        assert_eq!(both.sample(2000 * MS), None, "no small echo was sent");
        both.small = echoes_at((0..24).map(|it| (600 + 16 * it) * MS));
        for number in 0..24 {
            answer(&mut both, (600 + 16 * number) * MS, (612 + 16 * number) * MS);
        }
        let expected = Sample { sent: 24, answered: 24, rtt: Some(12 * MS), rate: Some(181_066) };
        assert_eq!(both.sample(2000 * MS), Some(expected));
    }

    #[test]
    fn of_large_echoes_alone_the_first_one_tells_how_long_the_way_takes() {
        let mut large = sampling(Burst::Large);
        large.large = echoes_at((0..10).map(|it| it * MS));
        for number in 0..10 {
            answer(&mut large, number * MS, (50 + 40 * number) * MS);
        }
        let sample = large.sample(2000 * MS).unwrap();
        assert_eq!((sample.sent, sample.answered, sample.rtt), (10, 10, Some(50 * MS)));
    }
}
