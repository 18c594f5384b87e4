//! Background tasks. Each has a name, which its log line carries when it ends.
//!
//! A [`Task`] ends with its handle; one that must outlive whoever started it is [`detached`]. A panic in
//! either ends the process (see cli/panic.rs).

use std::{convert::Infallible, fmt};

use tokio::task::JoinHandle;
use tracing::{debug, warn};

/// A task that ends, at the latest, when this is dropped.
#[must_use = "the task ends when this is dropped"]
#[derive(Debug)]
pub(crate) struct Task {
    handle: JoinHandle<()>,
}

impl Task {
    pub(crate) fn spawn<F>(name: &'static str, future: F) -> Self
    where
        F: Future<Output: Outcome> + Send + 'static,
    {
        Self { handle: spawn(name, future) }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    #[cfg(test)]
    pub(crate) fn abort(&self) {
        self.handle.abort();
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// Spawns a task that nobody can end.
pub(crate) fn detached<F>(name: &'static str, future: F)
where
    F: Future<Output: Outcome> + Send + 'static,
{
    drop(spawn(name, future));
}

fn spawn<F>(name: &'static str, future: F) -> JoinHandle<()>
where
    F: Future<Output: Outcome> + Send + 'static,
{
    tokio::spawn(async move { future.await.log(name) })
}

/// How a task ended.
pub(crate) trait Outcome {
    fn log(self, task: &'static str);
}

impl Outcome for () {
    fn log(self, task: &'static str) {
        debug!(task, "ended");
    }
}

impl Outcome for Infallible {
    fn log(self, _: &'static str) {
        match self {}
    }
}

impl<E: fmt::Display> Outcome for Result<(), E> {
    fn log(self, task: &'static str) {
        match self {
            Ok(()) => ().log(task),
            Err(error) => warn!(task, %error, "failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex},
    };

    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn a_task_ends_when_its_handle_is_dropped() {
        let held = Arc::new(());
        let task = Task::spawn("test", {
            let held = held.clone();
            async move {
                let _held = held;
                std::future::pending::<()>().await;
            }
        });
        yield_now().await;
        assert_eq!(Arc::strong_count(&held), 2);
        drop(task);
        yield_now().await;
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn a_detached_task_runs_to_its_end() {
        let (done, ended) = tokio::sync::oneshot::channel();
        detached("test", async move { done.send(()).map_err(|()| "nobody waits") });
        assert_eq!(ended.await, Ok(()));
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_task_that_fails_logs_its_name_and_its_error() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let _default = tracing::subscriber::set_default(subscriber);
        let task = Task::spawn("gardener", async { Err("no water") });
        while !task.is_finished() {
            yield_now().await;
        }
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(log.contains("WARN") && log.contains("gardener"), "{log}");
        assert!(log.contains("no water"), "{log}");
    }
}
