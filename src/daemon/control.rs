//! The control socket: how `roamd status` and its like talk to a running daemon.
//!
//! A UNIX socket named after the configuration file, in `/run/roamd` or `$ROAMD_RUNTIME_DIR`. A
//! client writes one line of JSON and gets one line back.

mod access;
mod ask;
mod serve;

use std::{io, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

pub(crate) use self::serve::serve;
use super::{status::Status, usage::Usage};

const SUFFIX: &str = "sock";
/// How long a client may take to send its request and to read its answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take: longer than a probe of all links.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
/// Seconds that a cut lasts at most.
pub(crate) const LONGEST_CUT: u32 = 10;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// What it is doing.
    Status,
    /// Move to a link.
    Switch {
        /// Its name.
        link: String,
        /// Stay there even when the link fails.
        pin: bool,
    },
    /// Move to a server.
    SwitchServer {
        /// Its name.
        name: String,
    },
    /// Choose link and server by itself again.
    Auto,
    /// Choose the link again. A server that was chosen stays.
    AutoLink,
    /// Ask the server over a link now, or over all.
    Probe {
        /// Its name.
        link: Option<String>,
    },
    /// Send nothing, and let traffic go directly.
    Pause {
        /// For how long; without it until it is resumed.
        seconds: Option<u32>,
    },
    /// End the pause.
    Resume,
    /// Drop in silence what goes over a link and comes over it, until the answer, or until nobody waits for that.
    Cut {
        /// Its name.
        link: String,
        /// Until the answer.
        seconds: u32,
    },
    /// Read the configuration again.
    Reload,
    /// Tell clients to go to another server, and stop when they have.
    Drain {
        /// How long they have.
        seconds: u32,
    },
    /// Do not stop after all.
    DrainCancel,
    /// What its links carried.
    Usage,
    /// Tell what happens from here on, see [`crate::daemon::events`].
    Events,
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    /// To [`Request::Status`].
    Ok(Box<Status>),
    /// To [`Request::Usage`].
    Usage(Box<Usage>),
    /// What was done, line by line.
    Done(Vec<String>),
    /// Why it was not done.
    Error(String),
}

/// Why a daemon cannot be asked, or cannot be where it wants to be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// No daemon by that name.
    #[error("no roamd named {name} is running (no answer at {path})")]
    NotRunning {
        /** The name. */
        name: String,
        /** The socket. */
        path: PathBuf,
    },
    /// None at all.
    #[error("no roamd is running (nothing in {0})")]
    NoneRunning(PathBuf),
    /// More than one and no name.
    #[error("several roamd are running, name one: {}", .0.join(", "))]
    Several(Vec<String>),
    /// One by that name already runs.
    #[error("another roamd named {name} is running (it answers at {path})")]
    AlreadyRunning {
        /** The name. */
        name: String,
        /** The socket. */
        path: PathBuf,
    },
    /// It is for others.
    #[error("{path} is for root and the daemon's group")]
    Denied {
        /** The socket, or its directory. */
        path: PathBuf,
        /** The cause. */
        source: io::Error,
    },
    /// The socket cannot be used.
    #[error("control socket {path}")]
    Io {
        /** The socket. */
        path: PathBuf,
        /** The cause. */
        source: io::Error,
    },
    /// The daemon did not do it.
    #[error("{0}")]
    Refused(String),
    /// The daemon gave no answer that we understand.
    #[error("the daemon at {path} answered: {answer}")]
    Answer {
        /** The socket. */
        path: PathBuf,
        /** What it said. */
        answer: String,
    },
}
#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        os::unix::net::UnixListener,
        path::Path,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        thread,
    };

    use super::{serve::Server, *};
    use crate::{daemon::events::Events, host::instance::Instance};

    #[test]
    fn a_daemon_that_ends_instead_of_answering_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let instance = Instance::within(folder.path(), "home");
        let listener = UnixListener::bind(instance.socket()).unwrap();
        let ended = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = String::new();
            BufReader::new(&mut stream).read_line(&mut asked).unwrap();
        });
        assert!(matches!(instance.status(), Err(ControlError::Io { .. })));
        ended.join().unwrap();
    }

    /// One of the cuts under way.
    struct Lease(Arc<AtomicUsize>);

    impl Lease {
        fn of(under_way: &Arc<AtomicUsize>) -> Self {
            under_way.fetch_add(1, Relaxed);
            Self(under_way.clone())
        }
    }

    impl Drop for Lease {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Relaxed);
        }
    }

    /// A daemon with cuts of a second, which are over at once, and longer ones, which take an hour; how many are under
    /// way.
    fn cutter(folder: &Path) -> (Instance, Server, Arc<AtomicUsize>) {
        let instance = Instance::within(folder, "home");
        let under_way = Arc::new(AtomicUsize::new(0));
        let leases = under_way.clone();
        let server = serve(&instance, Events::default(), move |request| {
            let lease = Lease::of(&leases);
            async move {
                if !matches!(request, Request::Cut { seconds: 1, .. }) {
                    tokio::time::sleep(Duration::from_secs(3600)).await;
                }
                drop(lease);
                Reply::Done(vec!["cut".into()])
            }
        });
        (instance, server.unwrap(), under_way)
    }

    async fn until(what: &str, mut done: impl FnMut() -> bool) {
        for _ in 0..1000 {
            if done() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{what}");
    }

    #[tokio::test]
    async fn a_cut_is_over_when_its_answer_came_or_whoever_asked_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let (instance, _server, under_way) = cutter(folder.path());
        let mut short = instance.cut("wlan0", 1).unwrap();
        until("the answer", || short.is_over().unwrap()).await;

        let mut long = instance.cut("wlan0", 2).unwrap();
        until("the cut begins", || under_way.load(Relaxed) == 1).await;
        assert!(!long.is_over().unwrap());
        drop(long);
        until("the cut is over", || under_way.load(Relaxed) == 0).await;
    }
}
