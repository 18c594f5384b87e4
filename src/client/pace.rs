//! How often a client begins another handshake while it has no session.

use std::time::Duration;

/// How soon after the loss of the connection, and how often at most from then on, a handshake begins. Each costs some
/// 2.5 kB, and the server half a millisecond.
const PACES: [(Duration, Duration); 3] = [
    (Duration::ZERO, Duration::from_millis(250)),
    (Duration::from_secs(2), Duration::from_secs(1)),
    (Duration::from_secs(600), Duration::from_secs(5)),
];
/// The same for a server that is busy, perhaps with all the clients of another one: QUIC itself repeats the handshake that
/// the server has heard of, and a further one only helps if the network changed meanwhile.
const BUSY: Duration = Duration::from_secs(2);

/// The pause before a further handshake, when there has been no connection for as long as `outage` says, to a server that
/// `is_busy` or not: of the longest one half to all, by `chance`.
#[must_use]
pub fn pace(outage: Duration, is_busy: bool, chance: f32) -> Duration {
    let slower = PACES.iter().rev().find(|(from, _)| *from <= outage);
    let longest = slower.map_or(PACES[0].1, |(_, pace)| *pace);
    let longest = if is_busy { longest.max(BUSY) } else { longest };
    longest.mul_f32(0.5 + chance / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Handshakes that a path begins in an outage that lasts `seconds`.
    fn handshakes(seconds: u64) -> usize {
        let (mut outage, mut count) = (Duration::ZERO, 0);
        while outage < Duration::from_secs(seconds) {
            outage += pace(outage, false, 0.5);
            count += 1;
        }
        count
    }

    #[test]
    fn handshakes_slow_down_after_the_first_few() {
        assert!(handshakes(2) >= 8, "{}", handshakes(2));
        assert!(handshakes(60) <= 100, "{}", handshakes(60));
        let clients = [0.0, 0.3, 1.0].map(|chance| pace(Duration::from_secs(10), false, chance));
        assert!(clients.is_sorted() && clients[0] < clients[2], "not all at once: {clients:?}");
    }

    #[test]
    fn a_server_that_comes_back_is_found_within_a_second_in_the_first_ten_minutes() {
        for outage in (0..600).map(Duration::from_secs) {
            assert!(pace(outage, false, 1.0) <= Duration::from_secs(1));
        }
    }
}
