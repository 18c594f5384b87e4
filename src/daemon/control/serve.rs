//! How a daemon answers.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::net::UnixStream as StdStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
        BufReader,
    },
    net::{UnixListener, UnixStream},
    sync::{Semaphore, broadcast::error::RecvError},
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{ANSWER_TIMEOUT, ControlError, Reply, Request, TIMEOUT, access};
use crate::{
    daemon::{
        door::{self, Door, Place},
        events::{Event, Events},
    },
    host::instance::Instance,
    task::Task,
};

/// The longest request; a longer one is cut off and does not parse.
const MAX_REQUEST: u64 = 4096;
/// Maximum of clients that have not sent a request; one more replaces the oldest.
const ASKING: usize = 16;
/// Maxima of clients that wait for an answer and of clients that listen to events; one more is
/// refused.
const ANSWERED: usize = 16;
const LISTENING: usize = 16;
/// The pause after an error of the listener.
const PAUSE: Duration = Duration::from_secs(1);

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
                sleep(PAUSE).await;
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
    let mut read = BufReader::new(read.take(MAX_REQUEST));
    tokio::select! {
        read = timeout(TIMEOUT, read.read_line(&mut line)) => read??,
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
                reply = timeout(ANSWER_TIMEOUT, handler(request)) => reply?,
                () = left(&mut read), if is_lease => return Ok(()),
            }
        }
        Err(error) => Reply::Error(format!("bad request: {error}")),
    };
    let mut reply = serde_json::to_vec(&reply)?;
    reply.push(b'\n');
    timeout(TIMEOUT, write.write_all(&reply)).await?
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
        timeout(TIMEOUT, write.write_all(line.as_bytes())).await?
    };
    say(Event::Listening).await?;
    loop {
        match events.recv().await {
            Ok(event) => say(event).await?,
            Err(RecvError::Lagged(count)) => say(Event::Missed { count }).await?,
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn a_listener_that_is_too_slow_is_told_how_many_events_it_missed() {
        let events = Events::default();
        // Room for the first line and no more.
        let (mut write, read) = duplex(128);
        tokio::spawn({
            let events = events.clone();
            async move { tell(events, &mut write).await }
        });
        let mut lines = BufReader::new(read).lines();
        let name = |line: String| {
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            (line["event"].as_str().unwrap().to_owned(), line["count"].as_u64())
        };
        let mut told = vec![name(lines.next_line().await.unwrap().unwrap())];
        (0..1000).for_each(|_| events.tell(Event::Resumed));
        events.tell(Event::DrainCancelled);
        while told.last().is_none_or(|(event, _)| event != "drain-cancelled") {
            told.push(name(lines.next_line().await.unwrap().unwrap()));
        }
        let missed: u64 = told.iter().filter_map(|(_, count)| *count).sum();
        let resumed = told.iter().filter(|(event, _)| event == "resumed").count() as u64;
        assert_eq!((told[0].0.as_str(), missed + resumed), ("listening", 1000));
        assert!(missed > 0, "{told:?}");
    }
}
