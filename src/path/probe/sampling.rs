//! A burst of echoes over a probe's connection.
//!
//! A burst of small echoes takes some 2.5 kB in each direction, headers and acknowledgements included, one of large
//! echoes 24 kB, and one of both as much as the two.
//!
//! Whoever limits a rate mostly lets some packets pass at first (a token bucket). So the first half of the large echoes
//! only empties what there is, and how fast the second half arrives is the rate.

use std::time::Duration;

use bytes::Bytes;
use quinn::Connection;
use tokio::time::{self, Instant};

use crate::path::quality::{Burst, LARGE_SIZE, OVERHEAD, Sample};

/// The time from one small echo to the next. Large ones leave at once, and QUIC paces them.
const PACE: Duration = Duration::from_millis(16);
/// Fewer answers to the second half of the large ones, four of five, show no rate.
const MOST: [usize; 2] = [4, 5];
/// How long the last answer may take: three round trips and 100 ms, or twice the longest that was seen, as a queue may
/// grow; within bounds. An answer that is late is not lost.
const SHORTEST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// A burst under way. Times are counted from the probe's epoch.
#[derive(Debug)]
pub(super) struct Sampling {
    burst: Burst,
    wait: Duration,
    echoes: Vec<Echo>,
}

#[derive(Debug)]
struct Echo {
    sent: Duration,
    answered: Option<Duration>,
}

impl Sampling {
    pub(super) fn new(burst: Burst) -> Self {
        Self { burst, wait: SHORTEST_WAIT, echoes: Vec::new() }
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
        let begun = epoch.elapsed();
        let [large, small] = self.burst.echoes();
        let count = large + small;
        loop {
            let now = epoch.elapsed();
            let due = |echoes: usize| begun + PACE * echoes.saturating_sub(large) as u32;
            while self.echoes.len() < count && due(self.echoes.len()) <= now {
                // The time of its sending identifies it.
                let sent = now + Duration::from_micros(self.echoes.len() as u64);
                let is_large = self.echoes.len() < large;
                let mut question = vec![0; if is_large { LARGE_SIZE } else { size_of::<u64>() }];
                question[..8].copy_from_slice(&(sent.as_micros() as u64).to_be_bytes());
                connection.send_datagram(Bytes::from(question)).ok()?;
                self.echoes.push(Echo { sent, answered: None });
            }
            let next = if self.echoes.len() < count {
                due(self.echoes.len())
            } else if self.echoes.iter().all(|echo| echo.answered.is_some()) {
                return Some(());
            } else {
                self.echoes.last()?.sent + self.wait()
            };
            if self.echoes.len() == count && next <= now {
                return Some(());
            }
            if let Ok(reply) = time::timeout_at(epoch + next, connection.read_datagram()).await {
                let reply = reply.ok()?;
                if !self.answered(&reply, epoch.elapsed()) {
                    heard(reply);
                }
            }
        }
    }

    /// How long an answer may take, by those that came.
    fn wait(&self) -> Duration {
        let longest = self.round_trips().max();
        longest.map_or(LONGEST_WAIT, |longest| (2 * longest).clamp(self.wait, LONGEST_WAIT))
    }

    fn round_trips(&self) -> impl Iterator<Item = Duration> {
        self.echoes.iter().filter_map(|echo| Some(echo.answered?.saturating_sub(echo.sent)))
    }

    /// Takes in an answer; whether it was one.
    fn answered(&mut self, reply: &[u8], now: Duration) -> bool {
        // A time is far from the first byte of everything else.
        let time = reply.first_chunk().filter(|bytes: &&[u8; 8]| bytes[0] == 0);
        let Some(sent) = time.map(|bytes| u64::from_be_bytes(*bytes)) else { return false };
        let echo = self.echoes.iter_mut().find(|echo| echo.sent.as_micros() as u64 == sent);
        if let Some(echo) = echo {
            echo.answered.get_or_insert(now);
        }
        true
    }

    /// What is known so far; `None` if that is nothing.
    pub(super) fn sample(&self, now: Duration) -> Option<Sample> {
        let wait = self.wait();
        // While some may still be answered, those that are would be counted too often.
        let is_complete = self.echoes.iter().all(|echo| echo.answered.is_some());
        let is_due = |echo: &&Echo| is_complete || echo.sent + wait <= now;
        let due = || self.echoes.iter().filter(is_due);
        let (sent, answered) = (due().count(), due().filter(|it| it.answered.is_some()).count());
        let mut rtts: Vec<_> = self.round_trips().collect();
        rtts.sort_unstable();
        let rtt = rtts.get(rtts.len() / 2).copied();
        let (sent, answered, rate) = (sent as u32, answered as u32, self.rate());
        (sent > 0).then_some(Sample { sent, answered, rtt, rate })
    }

    /// How fast the second half of the large echoes arrived, in bits per second, if most of them did.
    fn rate(&self) -> Option<u64> {
        let [large, _] = self.burst.echoes();
        let second = self.echoes.get(large / 2..large)?;
        let mut answers: Vec<_> = second.iter().filter_map(|echo| echo.answered).collect();
        answers.sort_unstable();
        let (first, last) = (*answers.first()?, *answers.last()?);
        let bits = (answers.len() - 1) * (LARGE_SIZE + OVERHEAD) * 8;
        let seconds = last.saturating_sub(first).as_secs_f64().max(1e-3);
        let [most, of] = MOST;
        (of * answers.len() >= most * second.len()).then_some((bits as f64 / seconds) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A burst whose echoes left `pace` milliseconds apart.
    fn burst(burst: Burst, echoes: u32, pace: u32) -> Sampling {
        let echoes = (0..echoes).map(|number| Echo { sent: number * pace * MS, answered: None });
        Sampling { burst, wait: 150 * MS, echoes: echoes.collect() }
    }

    fn answer(sampling: &mut Sampling, sent: Duration, at: Duration) {
        sampling.answered(&(sent.as_micros() as u64).to_be_bytes(), at);
    }

    #[test]
    fn an_echo_that_may_still_be_answered_is_not_counted_as_lost() {
        let mut sampling = burst(Burst::Small, 20, 10);
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
        let mut sampling = burst(Burst::Small, 24, 16);
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
        let mut sampling = burst(Burst::Small, 24, 16);
        for number in (0..24).step_by(2) {
            answer(&mut sampling, number * 16 * MS, (number * 16 + 10) * MS);
        }
        assert_eq!(sampling.sample(149 * MS), None);
        let sample = sampling.sample(300 * MS).unwrap();
        assert_eq!((sample.sent, sample.answered), (10, 5));
    }

    #[test]
    fn the_rate_follows_from_the_spread_of_the_second_half_of_large_echoes() {
        let mut sampling = burst(Burst::Large, 20, 1);
        for number in 0..10 {
            answer(&mut sampling, number * MS, 50 * MS);
        }
        let second = (10..20).filter(|number| ![14, 17].contains(number));
        for (answers, number) in second.enumerate() {
            assert_eq!(sampling.sample(2000 * MS).and_then(|it| it.rate), None, "{answers} of ten");
            answer(&mut sampling, number * MS, (50 + 40 * (number - 9)) * MS);
        }
        let rate = sampling.sample(2000 * MS).unwrap().rate.unwrap();
        // Seven packets of 1164 bytes after the first, in 360 ms: that the first half came at once shows nothing.
        assert_eq!(rate, 181_066);
        let mut both = burst(Burst::Both, 44, 1);
        for number in (0..44).filter(|number| ![14, 17].contains(number)) {
            answer(&mut both, number * MS, (50 + 40 * number.min(19)) * MS);
        }
        let sample = both.sample(2000 * MS).unwrap();
        assert_eq!((sample.sent, sample.answered), (44, 42));
        assert_eq!(sample.rate, Some(181_066), "by the large ones alone");
    }
}
