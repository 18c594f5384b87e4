//! How the process ends: the statuses of `sysexits.h` that roamd uses, so that a
//! service manager can tell what a restart would not mend.

use std::{error::Error, io};

use crate::{
    client::ended::Refusal,
    config::{ConfigErrors, rights::Unreadable},
    host::{
        HostError,
        firewall::FirewallError,
        interface::InterfaceError,
        nat::NatError,
        nft::NftError,
        record::{RecordError, UndoError},
    },
    identity::KeyError,
    link::netlink::os_error,
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
    /// What a drill would disturb is in use; a later try may succeed.
    Busy = 75,
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
        error.chain().find_map(of_cause)
    }
}

fn of_cause(cause: &(dyn Error + 'static)) -> Option<Exit> {
    if let Some(failure) = cause.downcast_ref::<Failure>() {
        Some(failure.exit)
    } else if let Some(errors) = cause.downcast_ref::<ConfigErrors>() {
        Some(of_config(errors))
    } else if let Some(error) = cause.downcast_ref::<HostError>() {
        of_host(error)
    } else if let Some(error) = cause.downcast_ref::<KeyError>() {
        of_key(error)
    } else if cause.is::<Unreadable>() {
        Some(Exit::Permission)
    } else if cause.is::<Refusal>() {
        Some(Exit::Refused)
    } else {
        of_system(cause)
    }
}

/// Without its kill switch, or beside another tunnel that takes everything, a tunnel does not start. What a kernel or nft
/// refuses at one moment they may take at the next: that has no status.
fn of_host(error: &HostError) -> Option<Exit> {
    match error {
        HostError::Record(RecordError::Taken(_)) => Some(Exit::Config),
        HostError::Firewall(FirewallError::Set(error) | FirewallError::Lift(error))
        | HostError::Tables(error) => of_nft(error),
        HostError::Rules(error) => os_error(error).and_then(of_errno),
        // What may pass: a restart tries again.
        HostError::Record(_) | HostError::Interface(_) | HostError::Gone => None,
    }
}

fn of_nft(error: &NftError) -> Option<Exit> {
    match error {
        NftError::Start(error) if error.kind() == io::ErrorKind::NotFound => Some(Exit::Config),
        NftError::Start(error) | NftError::Talk(error) => of_io(error),
        NftError::Timeout | NftError::Refused(_) => None,
    }
}

/// The status of an error of the operating system, whichever part of this host it comes from.
fn of_system(cause: &(dyn Error + 'static)) -> Option<Exit> {
    if let Some(error) = cause.downcast_ref::<InterfaceError>() {
        return error.os_error().and_then(of_errno);
    }
    let error = if let Some(error) = cause.downcast_ref::<NatError>() {
        error.io_error()
    } else if let Some(error) = cause.downcast_ref::<RecordError>() {
        error.io_error()
    } else if let Some(error) = cause.downcast_ref::<UndoError>() {
        error.io_error()
    } else {
        cause.downcast_ref::<io::Error>()
    };
    error.and_then(of_io)
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

fn of_errno(errno: i32) -> Option<Exit> {
    of_io(&io::Error::from_raw_os_error(errno))
}

fn of_io(error: &io::Error) -> Option<Exit> {
    (error.kind() == io::ErrorKind::PermissionDenied).then_some(Exit::Permission)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};
    use nix::errno::Errno;

    fn refused(errno: Errno) -> rtnetlink::Error {
        let mut message = rtnetlink::packet_core::ErrorMessage::default();
        message.code = std::num::NonZeroI32::new(-(errno as i32));
        rtnetlink::Error::NetlinkError(message)
    }

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
    fn a_host_without_nft_or_with_another_tunnel_that_takes_all_is_a_wrong_configuration() {
        let absent = NftError::Start(io::ErrorKind::NotFound.into());
        for error in [
            HostError::Firewall(FirewallError::Set(absent)),
            HostError::Record(RecordError::Taken("work".into())),
        ] {
            assert_eq!(Exit::of(&anyhow!(error).context("starting")), Some(Exit::Config));
        }
    }

    #[test]
    fn passing_trouble_of_the_host_is_tried_again() {
        let busy = || io::Error::from_raw_os_error(11);
        for error in [
            HostError::Firewall(FirewallError::Set(NftError::Timeout)),
            HostError::Firewall(FirewallError::Set(NftError::Refused("Resource busy".into()))),
            HostError::Firewall(FirewallError::Lift(NftError::Start(busy()))),
            HostError::Tables(NftError::Talk(busy())),
            HostError::Rules(refused(Errno::ENOBUFS)),
            HostError::Record(RecordError::Io { path: "home.state".into(), error: busy() }),
            HostError::Gone,
        ] {
            assert_eq!(Exit::of(&anyhow!(error)), None);
        }
    }

    #[test]
    fn denied_permission_is_recognized_inside_errors_of_the_host() {
        let denied = || io::Error::from_raw_os_error(1);
        for error in [
            anyhow!(NatError::Forwarding(denied())).context("starting"),
            anyhow!(RecordError::Io { path: "home.state".into(), error: denied() }),
            anyhow!(UndoError::Netlink(denied())),
            anyhow!(HostError::Tables(NftError::Start(denied()))),
            anyhow!(HostError::Rules(refused(Errno::EPERM))),
            anyhow!(HostError::Record(RecordError::Io {
                path: "home.state".into(),
                error: denied()
            })),
        ] {
            assert_eq!(Exit::of(&error), Some(Exit::Permission), "{error:#}");
        }
    }

    #[test]
    fn any_other_error_has_no_status_of_its_own() {
        assert_eq!(Exit::of(&anyhow!("something")), None);
    }
}
