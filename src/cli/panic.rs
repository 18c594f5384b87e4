//! Ends the process at a panic of any thread or task. A daemon that went on without one of its tasks, for
//! example without its control socket, would look alive and not be.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    panic, process,
};

use super::exit::Exit;
use crate::daemon::logging;

/// From now on a panic prints where it happened and ends the process with [`Exit::Bug`].
pub(crate) fn end_process() {
    panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        let backtrace = match backtrace.status() {
            BacktraceStatus::Captured => format!("\n{backtrace}"),
            _ => String::new(),
        };
        // Nowhere is left to tell that standard error is closed.
        let _ = logging::complain(&format!("roamd: a bug, please report it: {panic}{backtrace}"));
        process::exit(Exit::Bug.code().into());
    }));
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        process::{Command, Output},
        thread,
        time::Duration,
    };

    use super::*;

    const PLACE: &str = "ROAMD_TEST_PANIC";

    /// Runs this test again in a process of its own that panics in the given place.
    fn panics(place: &str) -> Output {
        Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "cli::panic::tests::a_panic_anywhere_ends_the_process",
            ])
            .env(PLACE, place)
            .output()
            .unwrap()
    }

    #[test]
    fn a_panic_anywhere_ends_the_process() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        match env::var(PLACE).as_deref() {
            Ok(place) => {
                end_process();
                runtime.block_on(async {
                    match place {
                        "task" => drop(tokio::spawn(async { panic!("in a task") })),
                        "thread" => drop(thread::spawn(|| panic!("in a thread"))),
                        _ => panic!("here"),
                    }
                    tokio::time::sleep(Duration::from_secs(60)).await;
                });
            }
            Err(_) => {
                for (place, words) in
                    [("task", "in a task"), ("thread", "in a thread"), ("main", "here")]
                {
                    let output = panics(place);
                    let said = String::from_utf8_lossy(&output.stderr);
                    assert_eq!(output.status.code(), Some(70), "{place}: {said}");
                    assert!(said.contains("roamd: a bug, please report it"), "{place}: {said}");
                    assert!(said.contains(words) && said.contains("panic.rs:"), "{place}: {said}");
                }
            }
        }
    }
}
