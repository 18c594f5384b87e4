//! Numbers that look random and are the same in every run.

/// SplitMix64 (Steele, Lea, Flood 2014), with the constants of its reference implementation.
#[derive(Debug)]
pub(super) struct SplitMix(pub(super) u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly spread over 0.0 up to, not including, 1.0.
    pub(super) fn fraction(&mut self) -> f64 {
        // 53 bits: as many as an f64 holds exactly.
        #[expect(clippy::cast_precision_loss, reason = "53 bits are exact in an f64")]
        let numerator = (self.next() >> 11) as f64;
        numerator / (1_u64 << 53) as f64
    }
}
