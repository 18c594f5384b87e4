//! The thread that stays in a namespace for the namespace's whole life.
//!
//! A namespace is a property of a thread, so everything that must happen inside one is handed to
//! its worker: netlink requests, reads and writes below `/proc/sys/net`, and the start of child
//! processes. The last because of `PR_SET_PDEATHSIG`: its signal is sent when the *thread* that
//! started the child ends, and this thread ends last.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::mpsc,
    thread::{self, JoinHandle},
};

use nix::sched::{CloneFlags, unshare};
use tokio::runtime::Runtime;

type Job = Box<dyn FnOnce(&Inside) + Send>;

/// The state on the worker's thread that a job uses.
pub(super) struct Inside {
    pub(super) runtime: Runtime,
    pub(super) netlink: rtnetlink::Handle,
}

/// A thread in a network namespace of its own, doing one job after the other.
#[derive(Debug)]
pub(super) struct Worker {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread in a fresh network namespace and returns a descriptor of that namespace.
    pub(super) fn start(label: &str) -> io::Result<(Self, OwnedFd)> {
        let (ready, started) = mpsc::channel();
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = thread::Builder::new().name(format!("ns-{label}")).spawn(move || {
            let inside = match enter_fresh_namespace() {
                Ok((inside, namespace)) => {
                    let _ = ready.send(Ok(namespace));
                    inside
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            for job in queue {
                job(&inside);
            }
        })?;
        let namespace =
            started.recv().map_err(|_| io::Error::other("the worker ended early"))??;
        Ok((Self { jobs: Some(jobs), thread: Some(thread) }, namespace))
    }

    /// Does `job` on the worker's thread and waits for its result.
    ///
    /// # Panics
    ///
    /// When the job does.
    pub(super) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Inside) -> T + Send + 'static,
    ) -> io::Result<T> {
        let ended = || io::Error::other("the namespace's worker thread has ended");
        let (answer, answered) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |inside| {
            let _ = answer.send(catch_unwind(AssertUnwindSafe(|| job(inside))));
        });
        self.jobs.as_ref().ok_or_else(ended)?.send(job).map_err(|_| ended())?;
        match answered.recv().map_err(|_| ended())? {
            Ok(value) => Ok(value),
            Err(panic) => resume_unwind(panic),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        let Some(thread) = self.thread.take() else { return };
        // A job that held the last handle of the namespace drops it here, on the worker itself.
        if thread.thread().id() != thread::current().id() {
            let _ = thread.join();
        }
    }
}

fn enter_fresh_namespace() -> io::Result<(Inside, OwnedFd)> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let namespace = File::open("/proc/thread-self/ns/net")?.into();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let netlink = {
        let _inside = runtime.enter();
        let (connection, handle, _unsolicited) = rtnetlink::new_connection()?;
        runtime.spawn(connection);
        handle
    };
    Ok((Inside { runtime, netlink }, namespace))
}
