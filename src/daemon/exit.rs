//! How the process ends: the statuses of `sysexits.h` that roamd uses, so that a
//! service manager can tell what a restart would not mend.

use std::io;

use crate::{
    client::ended::Refusal,
    config::{ConfigErrors, rights::Unreadable},
    host::interface::InterfaceError,
    identity::KeyError,
};

/// A reason to end, with its exit status. Anything else ends with status 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The command line was wrong.
    Usage = 64,
    /// Input has the wrong contents.
    Data = 65,
    /// Input does not exist, or is a folder.
    NoInput = 66,
    /// A client that was started by hand got no first session: the server refused its key, has another key
    /// than the configured one, or speaks another version. Under a service manager it asks again instead.
    Refused = 69,
    /// A bug in roamd.
    Bug = 70,
    /// Output cannot be created.
    CannotCreate = 73,
    /// The system denied permission, also to read a file.
    Permission = 77,
    /// The configuration is wrong.
    Config = 78,
    /// The user pressed Ctrl-C: 128 plus the signal's number, as in a shell.
    Interrupted = 130,
}

/// An error with the exit status that it deserves.
#[derive(Debug, thiserror::Error)]
#[error("{error:#}")]
struct Failure {
    exit: Exit,
    error: anyhow::Error,
}

impl Exit {
    /// The process's exit status.
    pub(crate) fn code(self) -> u8 {
        self as u8
    }

    /// An error that ends the process this way.
    pub(crate) fn because(self, error: impl Into<anyhow::Error>) -> anyhow::Error {
        Failure { exit: self, error: error.into() }.into()
    }

    /// How this error ends the process, if it is one that says so.
    pub(crate) fn of(error: &anyhow::Error) -> Option<Self> {
        error.chain().find_map(|cause| {
            if let Some(failure) = cause.downcast_ref::<Failure>() {
                Some(failure.exit)
            } else if let Some(errors) = cause.downcast_ref::<ConfigErrors>() {
                Some(of_config(errors))
            } else if let Some(error) = cause.downcast_ref::<KeyError>() {
                of_key(error)
            } else if cause.is::<Unreadable>() {
                Some(Self::Permission)
            } else if cause.is::<Refusal>() {
                Some(Self::Refused)
            } else if let Some(error) = cause.downcast_ref::<InterfaceError>() {
                error.os_error().map(io::Error::from_raw_os_error).as_ref().and_then(of_io)
            } else {
                cause.downcast_ref::<io::Error>().and_then(of_io)
            }
        })
    }
}

fn of_config(errors: &ConfigErrors) -> Exit {
    match errors {
        ConfigErrors::Unreadable { error, .. } => of_io(error).unwrap_or(Exit::NoInput),
        ConfigErrors::Syntax { .. } | ConfigErrors::Problems { .. } => Exit::Config,
    }
}

fn of_key(error: &KeyError) -> Option<Exit> {
    match error {
        KeyError::Read { error, .. } => of_io(error).or(Some(Exit::NoInput)),
        KeyError::Exposed { .. } => Some(Exit::Permission),
        KeyError::Content { .. } => Some(Exit::Data),
        KeyError::Random => None,
    }
}

fn of_io(error: &io::Error) -> Option<Exit> {
    (error.kind() == io::ErrorKind::PermissionDenied).then_some(Exit::Permission)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn a_reason_survives_context_above_and_below_it() {
        let error = Exit::CannotCreate.because(anyhow!("inner").context("middle")).context("outer");
        assert_eq!(Exit::of(&error).map(Exit::code), Some(73));
    }

    #[test]
    fn denied_permission_is_recognized_by_itself() {
        let denied = Err::<(), _>(io::Error::from_raw_os_error(1)).context("writing");
        assert_eq!(Exit::of(&denied.unwrap_err()), Some(Exit::Permission));
    }

    #[test]
    fn any_other_error_has_no_status_of_its_own() {
        assert_eq!(Exit::of(&anyhow!("something")), None);
    }
}
