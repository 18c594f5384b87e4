//! Why the lab could not be built as asked.

use std::{fmt, io};

/// What a call of the lab returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the lab could not be built as asked.
#[derive(thiserror::Error)]
pub enum Error {
    /// The kernel refused, in the namespace with this label.
    #[error("namespace {namespace}: cannot {action}: {source}")]
    Refused {
        /// The label of the namespace.
        namespace: String,
        /// What was asked, as a phrase that follows "cannot".
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// This process may not make network namespaces.
    #[error(
        "namespace {namespace}: this process may not make network namespaces: run it as root \
         (CAP_SYS_ADMIN and CAP_NET_ADMIN), or enter a user namespace first ({source})"
    )]
    NotPermitted {
        /// The label of the namespace.
        namespace: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A text that was to be an address or a network is neither.
    #[error("`{text}` is not {expected}")]
    Malformed {
        /// The text as given.
        text: String,
        /// What it was to be, with an example.
        expected: &'static str,
    },
    /// This process may not enter a user namespace of its own.
    #[error("cannot enter a user namespace ({source}): {advice}")]
    UserNamespace {
        /// What the reader can do about it.
        advice: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// As [`Display`](fmt::Display): a test that unwraps the error is to say what to do.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    pub(super) fn refused(
        namespace: &str,
        action: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Refused {
            namespace: namespace.to_owned(),
            action: action.into(),
            source: source.into(),
        }
    }
}

/// The errno inside a netlink error, so that all refusals read alike.
pub(super) fn netlink_to_io(error: rtnetlink::Error) -> io::Error {
    if let rtnetlink::Error::NetlinkError(message) = &error {
        return message.to_io();
    }
    io::Error::other(error)
}
