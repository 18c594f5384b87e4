//! How a daemon is found and asked.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{ANSWER_TIMEOUT, ControlError, Reply, Request, SUFFIX, TIMEOUT};
use crate::{
    daemon::{status::Status, usage::Usage},
    host::{
        instance::{Instance, directory},
        record,
    },
};

/// The longest answer: a server's status with tens of thousands of peers.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;
/// How long a socket may take to show whether a daemon listens on it.
const GREETING: Duration = Duration::from_secs(1);

impl Instance {
    /// The only one that runs.
    pub(crate) fn only() -> Result<Self, ControlError> {
        let mut running = Self::running()?;
        match running.len() {
            0 => Err(ControlError::NoneRunning(directory())),
            1 => Ok(running.remove(0)),
            _ => Err(ControlError::Several(running.iter().map(Self::title).collect())),
        }
    }

    /// The one that people call so, by its name or else by its label; one that runs before one that does not.
    pub(crate) fn called(self) -> Self {
        let has = |it: &Self, suffix| it.file(suffix).exists();
        let mut labelled = self.labelled(self.name());
        if has(&self, SUFFIX) || labelled.is_empty() {
            return self;
        }
        match labelled.iter().position(|it| has(it, SUFFIX)) {
            Some(running) => labelled.swap_remove(running),
            None if has(&self, record::SUFFIX) => self,
            None => labelled.swap_remove(0),
        }
    }

    /// All that run, by name.
    pub(crate) fn running() -> Result<Vec<Self>, ControlError> {
        Ok(Self::candidates()?.into_iter().filter(|it| is_daemon(&it.socket())).collect())
    }

    /// Whatever has a socket where daemons have theirs, by name.
    pub(crate) fn candidates() -> Result<Vec<Self>, ControlError> {
        let directory = directory();
        match Self::all_within(&directory, SUFFIX) {
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                Err(ControlError::Denied { path: directory, source })
            }
            found => Ok(found.unwrap_or_default()),
        }
    }

    /// Asks for its status.
    pub(crate) fn status(&self) -> Result<Status, ControlError> {
        match self.ask(&Request::Status)? {
            Reply::Ok(status) => Ok(*status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Asks what its links carried.
    pub(crate) fn usage(&self) -> Result<Usage, ControlError> {
        match self.ask(&Request::Usage)? {
            Reply::Usage(usage) => Ok(*usage),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Tells it to do something; what it says to that.
    pub(crate) fn tell(&self, request: &Request) -> Result<Vec<String>, ControlError> {
        match self.ask(request)? {
            Reply::Done(lines) => Ok(lines),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Cuts a link there until the result is dropped, or has been answered.
    pub(crate) fn cut(&self, link: &str, seconds: u32) -> Result<Cutting, ControlError> {
        let stream = self.asked(&Request::Cut { link: link.into(), seconds })?;
        stream.set_nonblocking(true).map_err(|source| self.io(source))?;
        Ok(Cutting { instance: self.clone(), stream, answer: Vec::new() })
    }

    /// Listens to what happens there; one line of JSON for each event.
    pub(crate) fn events(
        &self,
    ) -> Result<impl Iterator<Item = io::Result<String>> + use<>, ControlError> {
        Ok(BufReader::new(self.event_stream()?).lines())
    }

    /// The same, to be read by the caller.
    pub(crate) fn event_stream(&self) -> Result<UnixStream, ControlError> {
        self.asked(&Request::Events)
    }

    /// A connection on which this was asked.
    fn asked(&self, request: &Request) -> Result<UnixStream, ControlError> {
        let mut stream = self.connect()?;
        send(&mut stream, request).map_err(|source| self.io(source))?;
        Ok(stream)
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.file(SUFFIX)
    }

    fn connect(&self) -> Result<UnixStream, ControlError> {
        let path = self.socket();
        UnixStream::connect(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ControlError::NotRunning { name: self.title(), path }
            }
            io::ErrorKind::PermissionDenied => ControlError::Denied { path, source },
            _ => self.io(source),
        })
    }

    fn unexpected(&self, reply: &Reply) -> ControlError {
        ControlError::Answer { path: self.socket(), answer: format!("{reply:?}") }
    }

    fn ask(&self, request: &Request) -> Result<Reply, ControlError> {
        let mut stream = self.connect()?;
        let answer = ask(&mut stream, request).map_err(|source| self.io(source))?;
        self.reply(answer)
    }

    fn reply(&self, answer: String) -> Result<Reply, ControlError> {
        match serde_json::from_str(&answer) {
            Ok(Reply::Error(reason)) => Err(ControlError::Refused(reason)),
            Ok(reply) => Ok(reply),
            Err(_) => Err(ControlError::Answer { path: self.socket(), answer }),
        }
    }

    pub(super) fn io(&self, source: io::Error) -> ControlError {
        ControlError::Io { path: self.socket(), source }
    }
}

/// A link is cut for as long as this is there, up to the time that was asked for.
#[derive(Debug)]
pub(crate) struct Cutting {
    instance: Instance,
    stream: UnixStream,
    answer: Vec<u8>,
}

impl Cutting {
    /// Whether the cut is over; an error if there was none.
    pub(crate) fn is_over(&mut self) -> Result<bool, ControlError> {
        match self.stream.read_to_end(&mut self.answer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(source) => Err(self.instance.io(source)),
            Ok(_) => {
                let answer = String::from_utf8_lossy(&self.answer).into_owned();
                match self.instance.reply(answer)? {
                    Reply::Done(_) => Ok(true),
                    other @ (Reply::Ok(_) | Reply::Usage(_) | Reply::Error(_)) => {
                        Err(self.instance.unexpected(&other))
                    }
                }
            }
        }
    }
}

/// Whether a daemon listens there, and not another program or our own metrics: those close the connection or give
/// another answer. One that gives none in time is a daemon that is busy.
fn is_daemon(path: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(path) else { return false };
    match ask_within(&mut stream, &Request::Status, GREETING) {
        Ok(answer) => serde_json::from_str::<Reply>(&answer).is_ok(),
        Err(error) => {
            matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
        }
    }
}

fn send(stream: &mut UnixStream, request: &Request) -> io::Result<()> {
    stream.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())
}

fn ask(stream: &mut UnixStream, request: &Request) -> io::Result<String> {
    ask_within(stream, request, ANSWER_TIMEOUT)
}

fn ask_within(stream: &mut UnixStream, request: &Request, limit: Duration) -> io::Result<String> {
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    send(stream, request)?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_ANSWER)).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer"));
    }
    Ok(answer)
}
