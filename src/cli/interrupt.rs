//! Ctrl-C and its relatives, noticed so that what was begun can be ended.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::exit::Exit;
use crate::clock;

/// A terminal that closes sends several signals at once, and nobody insists with them.
const LATER: Duration = Duration::from_millis(300);

/// Whether the user wants to stop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Notices SIGINT, SIGTERM and SIGHUP from here on. Whoever looks at the flag may be waiting for something: at a
    /// SIGINT that comes [`LATER`] after the first signal, or any time after that, `insisted` is called.
    pub(crate) fn watch(insisted: fn()) -> anyhow::Result<Self> {
        let interrupt = Self::default();
        let flag = interrupt.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _inside = runtime.enter();
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
                .map(signal)
                .into_iter()
                .collect::<io::Result<Vec<_>>>()
                .context("cannot watch for Ctrl-C")?
        };
        thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
            let mut signals = signals;
            runtime.block_on(async {
                let any = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
                futures_util::future::select_all(any).await;
                flag.set();
                let from = clock::now() + LATER;
                loop {
                    signals[0].recv().await;
                    if clock::now() >= from {
                        return insisted();
                    }
                }
            });
        })?;
        Ok(interrupt)
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error if the user wants to stop.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.is_set() {
            return Err(Exit::Interrupted.because(anyhow::anyhow!("interrupted")));
        }
        Ok(())
    }

    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        io::{BufRead as _, BufReader},
        process::{self, Command, Stdio},
    };

    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    use super::*;

    const STANDS_IN: &str = "TEST_INTERRUPT";

    fn say(what: &str) {
        use io::Write as _;
        writeln!(io::stdout().lock(), "\n{what}").unwrap();
    }

    /// Signals are the process's, so that this test runs once more in one of its own, which waits for ever.
    #[test]
    fn who_insists_need_not_wait() {
        if env::var_os(STANDS_IN).is_some() {
            let interrupt = Interrupt::watch(|| process::exit(7)).unwrap();
            say("watching");
            while !interrupt.is_set() {
                thread::sleep(Duration::from_millis(1));
            }
            say("interrupted");
            loop {
                thread::park();
            }
        }
        let mut again = Command::new(env::current_exe().unwrap());
        again.args(["--exact", "--nocapture", "cli::interrupt::tests::who_insists_need_not_wait"]);
        let mut child = again.env(STANDS_IN, "1").stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let process = Pid::from_raw(child.id().try_into().unwrap());
        assert!(lines.any(|line| line == "watching"));
        // As a terminal that is closed.
        for signal in [Signal::SIGHUP, Signal::SIGHUP, Signal::SIGINT] {
            kill(process, signal).unwrap();
        }
        assert!(lines.any(|line| line == "interrupted"));
        thread::sleep(2 * LATER);
        for signal in [Signal::SIGTERM, Signal::SIGHUP] {
            kill(process, signal).unwrap();
        }
        thread::sleep(LATER);
        assert_eq!(child.try_wait().unwrap(), None, "nobody insisted");
        kill(process, Signal::SIGINT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(7));
    }
}
