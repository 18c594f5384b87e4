use serde::{Deserialize, Serialize};

/// A congestion controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Congestion {
    /// CUBIC (RFC 9438), the default.
    Cubic,
    /// BBR, for links that lose packets at random.
    Bbr,
}
