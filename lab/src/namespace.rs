//! One network namespace: a host of the lab.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    panic::resume_unwind,
    process::Command,
    sync::Arc,
    thread::{self, JoinHandle},
};

use nix::sched::{CloneFlags, setns};

use super::{
    error::{Error, Result, netlink_to_io},
    worker::{Inside, Worker},
};

/// A network namespace with its loopback up and nothing else in it.
///
/// A handle: clones name the same namespace, which vanishes once the last handle, process and
/// socket in it are gone.
#[derive(Clone, Debug)]
pub struct Namespace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    label: String,
    descriptor: Arc<OwnedFd>,
    worker: Worker,
}

impl Namespace {
    /// Makes a namespace; `label` is for messages only and need not be unique.
    ///
    /// Addresses of either family can be used the moment they are added (no duplicate address
    /// detection), and no router is looked for.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`] without `CAP_SYS_ADMIN`.
    pub fn new(label: &str) -> Result<Self> {
        let (worker, descriptor) = Worker::start(label).map_err(|source| {
            if source.kind() == io::ErrorKind::PermissionDenied {
                return Error::NotPermitted { namespace: label.to_owned(), source };
            }
            Error::refused(label, "make it", source)
        })?;
        let namespace = Self {
            inner: Arc::new(Inner {
                label: label.to_owned(),
                descriptor: Arc::new(descriptor),
                worker,
            }),
        };
        for scope in ["all", "default"] {
            for setting in ["accept_dad", "dad_transmits", "accept_ra", "router_solicitations"] {
                namespace.sysctl(&format!("net/ipv6/conf/{scope}/{setting}"), "0")?;
            }
        }
        namespace.set_up("lo")?;
        Ok(namespace)
    }

    /// The label that [`Namespace::new`] was given.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.inner.label
    }

    /// Writes a kernel setting below `/proc/sys`, such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    ///
    /// When there is no such setting or the kernel does not take the value.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        let file = format!("/proc/sys/{path}");
        let content = value.to_owned();
        self.inside(format!("set {path} to {value}"), move |_| std::fs::write(file, content))
    }

    /// Lets the namespace forward packets of both families between its links, or stops it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn forward(&self, on: bool) -> Result<()> {
        let value = if on { "1" } else { "0" };
        self.sysctl("net/ipv4/ip_forward", value)?;
        self.sysctl("net/ipv6/conf/all/forwarding", value)
    }

    /// Sets reverse path filtering for every link, present and future: 0 off, 1 strict, 2 loose
    /// (what systemd's distributions ship).
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn reverse_path_filter(&self, mode: u8) -> Result<()> {
        self.sysctl("net/ipv4/conf/all/rp_filter", &mode.to_string())?;
        self.sysctl("net/ipv4/conf/default/rp_filter", &mode.to_string())
    }

    /// Runs `f` on a thread inside the namespace and returns what it returns. Sockets opened there
    /// stay in the namespace wherever they are used later.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    ///
    /// When `f` does.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| self.enter().map(|()| f()))
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Starts a named thread inside the namespace that runs beside the caller.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started. One that cannot enter the namespace panics.
    pub fn thread<T: Send + 'static>(
        &self,
        name: &str,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let namespace = self.clone();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || namespace.enter().map(|()| f()))
            .map_err(|source| Error::refused(self.label(), format!("start thread {name}"), source))
    }

    /// A command that will run inside the namespace. It is for a program that is waited for at once;
    /// [`Namespace::spawn`] is for one that keeps running.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let descriptor = Arc::clone(&self.inner.descriptor);
        // SAFETY: between fork and exec the closure makes one system call, setns(2), which
        // allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(move || Ok(setns(&descriptor, CloneFlags::CLONE_NEWNET)?));
        }
        command
    }

    /// A descriptor of the namespace, as setns(2) and netlink's `IFLA_NET_NS_FD` take it.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.inner.descriptor.as_fd()
    }

    fn enter(&self) -> Result<()> {
        setns(&self.inner.descriptor, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::refused(self.label(), "enter it", errno))
    }

    /// Does `job` on the namespace's own long-lived thread; `action` says in an error what it was.
    pub(super) fn inside<T: Send + 'static>(
        &self,
        action: impl Into<String>,
        job: impl FnOnce(&Inside) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let done = self.inner.worker.run(job).and_then(|result| result);
        done.map_err(|source| Error::refused(self.label(), action, source))
    }

    /// Runs one netlink exchange inside the namespace.
    pub(super) fn netlink<T, F, Fut>(&self, action: impl Into<String>, exchange: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(rtnetlink::Handle) -> Fut + Send + 'static,
        Fut: Future<Output = std::result::Result<T, rtnetlink::Error>>,
    {
        self.inside(action, move |inside| {
            inside.runtime.block_on(exchange(inside.netlink.clone())).map_err(netlink_to_io)
        })
    }
}
