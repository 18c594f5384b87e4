//! Chance, so that many clients of one server do not all do the same at the same moment.

use ring::rand::{SecureRandom as _, SystemRandom};

/// Between zero and one.
pub(super) fn fraction() -> f32 {
    let mut byte = [0];
    // Without randomness all do the same.
    let _ = SystemRandom::new().fill(&mut byte);
    f32::from(byte[0]) / 255.0
}
