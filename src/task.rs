//! Background tasks. Each has a name, which its log line carries when it ends.
//!
//! A [`Task`] ends with its handle; one that must outlive whoever started it is [`detached`]. A panic in
//! either ends the process (see cli/panic.rs).

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Release},
        },
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;
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

/// Runs a future as a task and waits for its end. One that `block_on` polls itself costs a look at the kernel's events
/// each time that a task wakes it.
pub(crate) async fn entire<F>(future: F) -> F::Output
where
    F: Future<Output: Send> + Send + 'static,
{
    match tokio::spawn(future).await {
        Ok(output) => output,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A branch of a task, polled only when it was woken itself: `select!` polls all of its branches whenever one of them is
/// woken, which for one beside the datapath is with every batch.
pub(crate) fn apart<F: Future>(future: F) -> Apart<F> {
    let wakes = Arc::new(Wakes { woken: AtomicBool::new(true), task: AtomicWaker::new() });
    Apart { future, waker: wakes.clone().into(), wakes }
}

pin_project_lite::pin_project! {
    /// See [`apart`].
    pub(crate) struct Apart<F> {
        #[pin]
        future: F,
        wakes: Arc<Wakes>,
        waker: Waker,
    }
}

struct Wakes {
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Release);
        self.task.wake();
    }
}

impl<F: Future> Future for Apart<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context) -> Poll<F::Output> {
        let this = self.project();
        // In this order: a wake in between is seen below, or wakes the task.
        this.wakes.task.register(context.waker());
        if this.wakes.woken.swap(false, AcqRel) {
            this.future.poll(&mut Context::from_waker(this.waker))
        } else {
            Poll::Pending
        }
    }
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
        sync::{
            Arc, Mutex,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
    };

    use tokio::{sync::Notify, task::yield_now};

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

    /// Counts its polls, and ends when it is told to.
    async fn counted(polls: &AtomicUsize, end: &Notify) {
        let mut ended = std::pin::pin!(end.notified());
        std::future::poll_fn(|context| {
            polls.fetch_add(1, Relaxed);
            ended.as_mut().poll(context)
        })
        .await;
    }

    #[tokio::test]
    async fn a_branch_is_polled_at_first_and_when_it_is_woken() {
        let (polls, end) = (AtomicUsize::default(), Notify::new());
        let busy = async {
            for _ in 0..100 {
                yield_now().await;
            }
            end.notify_one();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = apart(counted(&polls, &end)) => {}
            () = busy => {}
        }
        assert_eq!(polls.into_inner(), 2);
    }

    #[tokio::test]
    async fn a_branch_that_moves_to_another_task_wakes_that() {
        let end = Arc::new(Notify::new());
        let mut branch = Box::pin(apart({
            let end = end.clone();
            async move { end.notified().await }
        }));
        assert!(futures_util::poll!(&mut branch).is_pending());
        let moved = tokio::spawn(branch);
        yield_now().await;
        end.notify_one();
        assert!(moved.await.is_ok());
    }

    #[tokio::test]
    async fn an_entire_future_gives_what_it_gives() {
        assert_eq!(entire(async { 7 }).await, 7);
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
