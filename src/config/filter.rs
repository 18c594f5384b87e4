use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Which events are logged: a level, or directives such as `info,roamd::path=debug`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Filter(String);

/// A text that is not a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a level and not directives such as info,roamd::path=debug")]
pub struct FilterError;

impl Filter {
    /// The filter that tracing applies.
    ///
    /// rustls logs where the feature `etcd` is on. What it says of handshakes, anybody can have said as often as he likes,
    /// so it stays silent unless the user names it. tonic and tower have ten lines for each attempt to reach etcd, and
    /// netlink_proto warns of each question that was given up before its answer.
    pub fn to_env_filter(&self) -> EnvFilter {
        EnvFilter::new(format!("rustls=off,tonic=off,tower=off,netlink_proto=error,{}", self.0))
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        // By itself `inof` is a directive too: everything from the module of that name.
        let is_meant = |part: &str| part.contains('=') || is_level(part);
        match text.split(',').all(is_meant) && EnvFilter::try_new(text).is_ok() {
            true => Ok(Self(text.to_owned())),
            false => Err(FilterError),
        }
    }
}

fn is_level(text: &str) -> bool {
    // LevelFilter reads numbers as well.
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphabetic())
        && text.parse::<LevelFilter>().is_ok()
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Filter {
    type Error = FilterError;

    fn try_from(text: String) -> Result<Self, FilterError> {
        text.parse()
    }
}

impl From<Filter> for String {
    fn from(filter: Filter) -> Self {
        filter.0
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn levels_and_directives_are_accepted() {
        for text in ["error", "warn", "info", "debug", "trace", "off", "info,roamd::path=debug"] {
            assert_eq!(text.parse::<Filter>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn rustls_is_silent_unless_it_is_asked() {
        for (filter, expected) in
            [("info", [true, false]), ("trace", [true, false]), ("off,rustls=warn", [false, true])]
        {
            let filter = filter.parse::<Filter>().unwrap().to_env_filter();
            let subscriber = tracing_subscriber::registry().with(filter);
            let enabled = tracing::subscriber::with_default(subscriber, || {
                [
                    tracing::enabled!(target: "roamd::server", tracing::Level::WARN),
                    tracing::enabled!(target: "rustls::server::tls13", tracing::Level::WARN),
                ]
            });
            assert_eq!(enabled, expected);
        }
    }

    #[test]
    fn a_mistyped_level_is_not_taken_for_a_module() {
        for text in ["inof", "", "3", "info,", "roamd::path", "roamd=loud", "info debug"] {
            assert_eq!(text.parse::<Filter>(), Err(FilterError), "{text}");
        }
    }
}
