//! Whether the other side is silent.

use std::time::Duration;

/// Shorter silences are common on wireless links. No link that is of use takes longer, while an
/// acknowledgement that comes after an outage can make the measured round trip any length.
const SHORTEST_SILENCE: Duration = Duration::from_millis(250);
const LONGEST_SILENCE: Duration = Duration::from_secs(2);
/// How often somebody who should answer is asked.
pub(crate) const NUDGE: Duration = Duration::from_millis(250);

/// A path that was sent to is suspect when nothing is heard on it for twice what QUIC would wait before
/// it probes (RFC 9002 §6.2.1), and for a quarter of a second. quinn does not tell the variance
/// of the round trip: three halves of it and the other side's 25 ms for an acknowledgement are above
/// the probe timeout on all but the worst links.
#[must_use]
pub(crate) fn silence_limit(rtt: Duration) -> Duration {
    let pto = rtt * 3 / 2 + Duration::from_millis(25);
    (2 * pto).clamp(SHORTEST_SILENCE, LONGEST_SILENCE)
}
