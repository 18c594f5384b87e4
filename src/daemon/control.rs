//! The control socket: how `roamd status` and its like talk to a running daemon.
//!
//! A UNIX socket named after the configuration file, in `/run/roamd` or `$ROAMD_RUNTIME_DIR`. A
//! client writes one line of JSON and gets one line back.

mod access;

use std::{
    convert::Infallible,
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream as StdStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, broadcast::error::RecvError},
    task::JoinSet,
};
use tracing::{debug, warn};

use super::{
    door::{self, Door, Place},
    events::{Event, Events},
    status::Status,
    usage::Usage,
};
use crate::{
    host::{
        instance::{Instance, directory},
        record,
    },
    task::Task,
};

const SUFFIX: &str = "sock";
/// The longest request; a longer one is cut off and does not parse.
const MAX_REQUEST: u64 = 4096;
/// The longest answer: a server's status with tens of thousands of peers.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;
/// Maximum of clients that have not sent a request; one more replaces the oldest.
const ASKING: usize = 16;
/// Maxima of clients that wait for an answer and of clients that listen to events; one more is
/// refused.
const ANSWERED: usize = 16;
const LISTENING: usize = 16;
/// How long a client may take to send its request and to read its answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after an error of the listener.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a socket may take to show whether a daemon listens on it.
const GREETING: Duration = Duration::from_secs(1);
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

/// How a daemon is asked.
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
    pub(crate) fn event_stream(&self) -> Result<StdStream, ControlError> {
        self.asked(&Request::Events)
    }

    /// A connection on which this was asked.
    fn asked(&self, request: &Request) -> Result<StdStream, ControlError> {
        let mut stream = self.connect()?;
        send(&mut stream, request).map_err(|source| self.io(source))?;
        Ok(stream)
    }

    fn socket(&self) -> PathBuf {
        self.file(SUFFIX)
    }

    fn connect(&self) -> Result<StdStream, ControlError> {
        let path = self.socket();
        StdStream::connect(&path).map_err(|source| match source.kind() {
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

    fn io(&self, source: io::Error) -> ControlError {
        ControlError::Io { path: self.socket(), source }
    }
}

/// A link is cut for as long as this is there, up to the time that was asked for.
#[derive(Debug)]
pub(crate) struct Cutting {
    instance: Instance,
    stream: StdStream,
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
    let Ok(mut stream) = StdStream::connect(path) else { return false };
    match ask_within(&mut stream, &Request::Status, GREETING) {
        Ok(answer) => serde_json::from_str::<Reply>(&answer).is_ok(),
        Err(error) => {
            matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
        }
    }
}

fn send(stream: &mut StdStream, request: &Request) -> io::Result<()> {
    stream.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())
}

fn ask(stream: &mut StdStream, request: &Request) -> io::Result<String> {
    ask_within(stream, request, ANSWER_TIMEOUT)
}

fn ask_within(stream: &mut StdStream, request: &Request, limit: Duration) -> io::Result<String> {
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

/// The served socket; it is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    path: PathBuf,
    _task: Task,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Room for clients that have asked.
#[derive(Debug)]
struct Room {
    answered: Semaphore,
    listening: Semaphore,
}

impl Default for Room {
    fn default() -> Self {
        Self { answered: Semaphore::new(ANSWERED), listening: Semaphore::new(LISTENING) }
    }
}

/// Answers requests to `instance` with what `handler` gives.
pub(crate) fn serve<F, R>(
    instance: &Instance,
    events: Events,
    handler: F,
) -> Result<Server, ControlError>
where
    F: Fn(Request) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Reply> + Send + 'static,
{
    let (name, path) = (instance.name().to_owned(), instance.socket());
    if StdStream::connect(&path).is_ok() {
        return Err(ControlError::AlreadyRunning { name, path });
    }
    let listener = bind(&path).map_err(|source| instance.io(source))?;
    let task = Task::spawn("control socket", listen(listener, events, handler));
    Ok(Server { path: instance.socket(), _task: task })
}

async fn listen<F, R>(listener: UnixListener, events: Events, handler: F) -> Infallible
where
    F: Fn(Request) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Reply> + Send + 'static,
{
    let mut requests = JoinSet::new();
    let (mut door, room) = (Door::new(ASKING), Arc::new(Room::default()));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (place, room) = (door.enter().await, room.clone());
                let answered = answer(stream, place, room, events.clone(), handler.clone());
                requests.spawn(async move {
                    if let Err(error) = answered.await {
                        debug!(%error, "control request failed");
                    }
                });
                while requests.try_join_next().is_some() {}
            }
            Err(error) => {
                warn!(%error, "control socket");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Listens for the owner and its group only. It replaces a socket without a listener.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    door::listen(path)
}

async fn answer<R: Future<Output = Reply>>(
    mut stream: UnixStream,
    mut place: Place,
    room: Arc<Room>,
    events: Events,
    handler: impl Fn(Request) -> R,
) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let allowed = access::is_allowed(&stream, peer.uid())?;
    let (read, mut write) = stream.split();
    let mut line = String::new();
    let mut read = tokio::io::BufReader::new(read.take(MAX_REQUEST));
    tokio::select! {
        read = tokio::time::timeout(TIMEOUT, read.read_line(&mut line)) => read??,
        () = place.lost() => return Err(io::Error::other("others ask")),
    };
    drop(place);
    let request = serde_json::from_str(&line);
    let listens = matches!(request, Ok(Request::Events));
    let room = if listens { &room.listening } else { &room.answered };
    let room = room.try_acquire();
    let reply = match request {
        _ if !allowed => {
            Reply::Error("only root and the daemon's own user and group may ask".into())
        }
        _ if room.is_err() => Reply::Error("too many ask at the same time, try again".into()),
        Ok(Request::Events) => return tell(events, &mut write).await,
        Ok(request) => {
            let is_lease = matches!(request, Request::Cut { .. });
            tokio::select! {
                reply = tokio::time::timeout(ANSWER_TIMEOUT, handler(request)) => reply?,
                () = left(&mut read), if is_lease => return Ok(()),
            }
        }
        Err(error) => Reply::Error(format!("bad request: {error}")),
    };
    let mut reply = serde_json::to_vec(&reply)?;
    reply.push(b'\n');
    tokio::time::timeout(TIMEOUT, write.write_all(&reply)).await?
}

/// Waits until the client goes, or sends more than a request.
async fn left(read: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = [0; 64];
    while let Ok(1..) = read.read(&mut buffer).await {}
}

/// Writes events until the other side goes.
async fn tell(events: Events, write: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut events = events.listen();
    let mut say = async |event: Event| {
        let line = event.line()?;
        tokio::time::timeout(TIMEOUT, write.write_all(line.as_bytes())).await?
    };
    say(Event::Listening).await?;
    loop {
        match events.recv().await {
            Ok(event) => say(event).await?,
            Err(RecvError::Lagged(missed)) => debug!(missed, "a listener is too slow for events"),
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::net::UnixListener as StdListener,
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        thread,
    };

    use super::*;

    #[test]
    fn a_daemon_that_ends_instead_of_answering_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let instance = Instance::within(folder.path(), "home");
        let listener = StdListener::bind(instance.socket()).unwrap();
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
