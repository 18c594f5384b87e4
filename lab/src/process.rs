//! A child process in a namespace, and the guard that never lets it outlive its owner.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::{Pid, getpid, getppid},
};

use super::{
    error::{Error, Result},
    namespace::Namespace,
};

/// How long a process may take to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often to look whether a process has ended.
const POLL: Duration = Duration::from_millis(2);

/// A running child with its own process group; what it prints goes to a file.
///
/// Dropped, it ends the group: SIGTERM, SIGKILL one second later, and reaps the child. When this
/// whole process is killed, the kernel kills the child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// Its exit status, once it has ended. Its process id may belong to another process then.
    ended: Option<ExitStatus>,
    log: PathBuf,
    namespace: Namespace,
}

impl Namespace {
    /// Starts `command`, best made with [`Namespace::command`], as a process that lasts until the
    /// guard is dropped. Its standard output and error go to `NAME.log` in `folder`.
    ///
    /// # Errors
    ///
    /// When the file cannot be made or the program cannot be run.
    pub fn spawn(&self, name: &str, mut command: Command, folder: &Path) -> Result<Process> {
        let log = folder.join(format!("{name}.log"));
        let path = log.clone();
        let program = command.get_program().to_string_lossy().into_owned();
        let child = self.inside(format!("run {program} as {name}"), move |_| {
            let output = File::options().create(true).append(true).open(path)?;
            command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
            command.process_group(0);
            die_with_parent(&mut command);
            command.spawn()
        })?;
        Ok(Process { name: name.to_owned(), child, ended: None, log, namespace: self.clone() })
    }
}

/// Must be spawned from a thread that lasts: the signal comes when the spawning thread ends.
fn die_with_parent(command: &mut Command) {
    let parent = getpid();
    // SAFETY: between fork and exec the closure makes two system calls, prctl(2) and getppid(2),
    // which allocate nothing and take no lock.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(Signal::SIGKILL)?;
            // Killed between the fork and the prctl, the parent would never be noticed.
            if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
        });
    }
}

/// Seconds of CPU that the process with this id has used (`utime` and `stime` of proc_pid_stat(5)).
///
/// # Errors
///
/// When there is none.
pub fn cpu_seconds(pid: u32) -> io::Result<f64> {
    /// The kernel's USER_HZ, the same on all of Linux's architectures.
    const TICK: f64 = 0.01;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may have blanks in it.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2);
    Ok(ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() * TICK)
}

impl Process {
    /// The name that it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, which is its process group's too.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// The file that holds all it has printed.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All it has printed so far.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn log(&self) -> io::Result<String> {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Seconds of CPU that it has used.
    ///
    /// # Errors
    ///
    /// When it has been waited for already.
    pub fn cpu(&self) -> io::Result<f64> {
        cpu_seconds(self.living()?)
    }

    /// What it has in memory, in kB: `field` is one of proc_pid_status(5), such as `VmRSS`.
    ///
    /// # Errors
    ///
    /// When it has been waited for already, or has no such field.
    pub fn memory(&self, field: &str) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.living()?))?;
        let value = |line: &str| line.strip_prefix(field)?.strip_prefix(':').map(str::to_owned);
        let line = status.lines().find_map(value);
        let kilobytes = line.and_then(|it| it.trim().strip_suffix(" kB")?.parse().ok());
        kilobytes.ok_or_else(|| io::Error::other(format!("{} has no {field}", self.name)))
    }

    /// Its process id, unless that may be another process's.
    fn living(&self) -> io::Result<u32> {
        if self.ended.is_some() { Err(Errno::ESRCH.into()) } else { Ok(self.child.id()) }
    }

    /// Sends `signal` to the process, not to its children.
    ///
    /// # Errors
    ///
    /// When it has been waited for already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let sent = if self.ended.is_some() { Err(Errno::ESRCH) } else { kill(self.pid(), signal) };
        sent.map_err(|errno| self.refused(format!("send it {signal}"), errno))
    }

    /// Whether it has not ended yet.
    #[must_use]
    pub fn is_running(&self) -> bool {
        if self.ended.is_some() {
            return false;
        }
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(self.pid()), flags) == Ok(WaitStatus::StillAlive)
    }

    /// Waits until it ends by itself; `None` when it has not within `limit`. What it leaves of its
    /// process group is killed.
    ///
    /// # Errors
    ///
    /// When it cannot be waited for.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        if self.ends_within(limit) { self.reap().map(Some) } else { Ok(None) }
    }

    /// Ends it as dropping the guard does, and tells how it ended.
    ///
    /// # Errors
    ///
    /// When it cannot be waited for.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if self.is_running() {
            let _ = killpg(self.pid(), Signal::SIGTERM);
            // A stopped process takes the signal only once it goes on.
            let _ = killpg(self.pid(), Signal::SIGCONT);
            self.ends_within(PATIENCE);
        }
        self.reap()
    }

    fn reap(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        // Not reaped yet, the child still holds the number, so the group can be no one else's.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let status = self.child.wait().map_err(|source| self.refused("wait for it", source))?;
        self.ended = Some(status);
        Ok(status)
    }

    fn ends_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.is_running() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(POLL);
        }
        true
    }

    fn refused(&self, action: impl AsRef<str>, source: impl Into<io::Error>) -> Error {
        let action = format!("{} ({}, process {})", action.as_ref(), self.name, self.pid());
        Error::refused(self.namespace.label(), action, source)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}
