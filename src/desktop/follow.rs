//! Follows the tunnels of this computer: looks at each when something happened there, and outlives their daemons.

use std::{collections::HashMap, io, iter, mem, time::Duration};

use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    net::UnixStream,
    sync::mpsc,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{matters::Budget, seen::Seen};
use crate::{
    daemon::{
        control::{ControlError, Reply},
        events,
        status::{ClientStatus, Role, Status},
        usage::{BudgetLevel, BudgetStatus},
    },
    host::instance::Instance,
    task::Task,
    wire::foreign::Foreign,
};

/// From one look for new daemons to the next.
const SEARCH: Duration = Duration::from_secs(2);
/// From one look at a tunnel to the next, at least. One look is enough for all that happens meanwhile.
const SETTLE: Duration = Duration::from_millis(500);
/// The same at most: what makes no event is seen then.
const PACE: Duration = Duration::from_secs(30);
/// A socket that is no daemon's is asked again after so many searches.
const STRANGER: u32 = 30;
/// How long what listens to a socket may take to say that it is a daemon.
const GREETING: Duration = Duration::from_secs(3);
/// Events that wait to be read.
const EVENTS: usize = 64;
/// The longest event in bytes. Whoever says a longer one is not listened to any more.
const LONGEST_EVENT: u64 = 64 * 1024;

/// What is new of the tunnel with this name.
#[derive(Debug)]
pub(super) struct News {
    pub(super) tunnel: String,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// How it is.
    Is(Seen),
    /// An event that no status tells of later.
    Budget(Budget),
    /// The same of a status, after events were missed.
    StillBudget(Budget),
    /// Its daemon has gone.
    Gone,
}

/// An event of a daemon, as far as it is told of as such.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Event {
    /// The first one.
    Listening,
    /// Others are missing before it.
    Missed,
    Budget {
        link: Foreign,
        level: BudgetLevel,
        summary: Foreign,
    },
    #[serde(other)]
    Other,
}

impl Event {
    fn read(line: &str) -> Self {
        serde_json::from_str(line).unwrap_or(Self::Other)
    }
}

/// The budgets that are used up or nearly so, in the words of their events, which may be among those that are missing.
fn budgets(status: &ClientStatus) -> impl Iterator<Item = Budget> {
    let with_budget = status.links.iter().filter_map(|it| Some((&it.link, it.budget.as_ref()?)));
    with_budget.filter(|(_, budget)| budget.level != BudgetLevel::Within).map(|(link, budget)| {
        let BudgetStatus { level, used, of, over, .. } = *budget;
        let event = events::Event::Budget { link: link.clone(), level, used, of, over };
        let (is_used_up, words) = (level == BudgetLevel::Reached, Foreign::from(event.summary()));
        Budget { link: Foreign::of(link), is_used_up, words }
    })
}

/// Follows all tunnels, or the one with this name, for ever.
pub(super) async fn follow(name: Option<String>, news: mpsc::Sender<News>) {
    let mut followed: HashMap<String, Task> = HashMap::new();
    // Sockets that nothing came of, and for how many searches they are left alone.
    let mut strangers: HashMap<String, u32> = HashMap::new();
    let mut is_told = false;
    loop {
        followed.retain(|_, task| !task.is_finished());
        strangers.retain(|_, left| left.checked_sub(1).map(|less| *left = less).is_some());
        let found = Instance::candidates().unwrap_or_else(|error| {
            complain(&error, &mut is_told);
            Vec::new()
        });
        for instance in found {
            let tunnel = instance.name().to_owned();
            let is_meant = name.as_ref().is_none_or(|name| *name == tunnel);
            if !is_meant || followed.contains_key(&tunnel) || strangers.contains_key(&tunnel) {
                continue;
            }
            match listen(instance.clone()).await {
                Ok(Some(events)) => {
                    let task = follow_one(instance, events, news.clone());
                    followed.insert(tunnel, Task::spawn("follow", task));
                }
                // It has ended, or is about to begin.
                Err(ControlError::NotRunning { .. }) => {}
                Ok(None) => drop(strangers.insert(tunnel, STRANGER)),
                Err(error) => {
                    complain(&error, &mut is_told);
                    strangers.insert(tunnel, STRANGER);
                }
            }
        }
        sleep(SEARCH).await;
    }
}

/// Says why a tunnel cannot be asked; once what a person can do about it.
fn complain(error: &ControlError, is_told: &mut bool) {
    if !matches!(error, ControlError::Denied { .. }) {
        info!(%error, "cannot ask");
    } else if !std::mem::replace(is_told, true) {
        warn!(%error, "cannot ask: sudo usermod -aG roamd $USER lets you, from the next login on");
    }
}

/// The events of a daemon, a line each, for as long as this is there.
struct Events {
    lines: mpsc::Receiver<String>,
    _reading: Task,
}

/// Listens to a daemon; none if what listens there is no daemon, or a busy one.
async fn listen(instance: Instance) -> Result<Option<Events>, ControlError> {
    let stream = timeout(GREETING, spawn_blocking(move || instance.event_stream())).await;
    let Ok(Ok(stream)) = stream else { return Ok(None) };
    let stream = stream?;
    let stream = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
    let Ok(stream) = stream else { return Ok(None) };
    let (tell, mut lines) = mpsc::channel(EVENTS);
    let reading = Task::spawn("events", async move {
        if let Err(error) = read(stream, tell).await {
            debug!(%error, "no more events");
        }
    });
    let Ok(Some(first)) = timeout(GREETING, lines.recv()).await else { return Ok(None) };
    if let Event::Listening = Event::read(&first) {
        return Ok(Some(Events { lines, _reading: reading }));
    }
    match serde_json::from_str(&first) {
        Ok(Reply::Error(why)) => Err(ControlError::Refused(why)),
        Ok(Reply::Ok(_) | Reply::Usage(_) | Reply::Done(_)) | Err(_) => Ok(None),
    }
}

/// Reads lines until there are no more, or one is too long.
async fn read(stream: impl AsyncRead + Unpin, tell: mpsc::Sender<String>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        (&mut stream).take(LONGEST_EVENT).read_line(&mut line).await?;
        if !line.ends_with('\n') || tell.send(line).await.is_err() {
            return Ok(());
        }
    }
}

/// Follows one tunnel until its daemon ends.
async fn follow_one(instance: Instance, mut events: Events, news: mpsc::Sender<News>) {
    let mut tunnel = instance.title();
    // Two may be called alike. What a person clicks is to reach this one.
    if Instance::named(&tunnel).called() != instance {
        tunnel = instance.name().to_owned();
    }
    let is = |what| News { tunnel: tunnel.clone(), what };
    let (mut first, mut has_missed) = (None, false);
    loop {
        // All others are in the status.
        let more = iter::from_fn(|| events.lines.try_recv().ok()).take(EVENTS);
        for line in first.take().into_iter().chain(more).collect::<Vec<String>>() {
            let what = match Event::read(&line) {
                Event::Budget { link, level, summary } => {
                    let is_used_up = level == BudgetLevel::Reached;
                    What::Budget(Budget { link, is_used_up, words: summary })
                }
                Event::Missed => {
                    has_missed = true;
                    continue;
                }
                Event::Listening | Event::Other => continue,
            };
            if news.send(is(what)).await.is_err() {
                return;
            }
        }
        let asked = instance.clone();
        let status = spawn_blocking(move || asked.status()).await;
        match status {
            Ok(Ok(Status { role: Role::Client(client), .. })) => {
                let missed = mem::take(&mut has_missed).then(|| budgets(&client));
                let missed = missed.into_iter().flatten().map(What::StillBudget);
                for what in iter::once(What::Is(Seen::of(&client))).chain(missed) {
                    if news.send(is(what)).await.is_err() {
                        return;
                    }
                }
            }
            // A server has nothing for a desktop.
            Ok(Ok(Status { role: Role::Server(_), .. })) => {
                while events.lines.recv().await.is_some() {}
                return;
            }
            Ok(Err(error)) => info!(%error, "no status"),
            Err(_stopped) => return,
        }
        sleep(SETTLE).await;
        // Without an event it is looked at all the same.
        match timeout(PACE, events.lines.recv()).await {
            Ok(Some(line)) => first = Some(line),
            Ok(None) => break,
            Err(_elapsed) => {}
        }
    }
    let _ = news.send(is(What::Gone)).await;
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::desktop::seen::tests::status;

    #[tokio::test]
    async fn lines_are_read_up_to_one_that_is_too_long() {
        let (tell, mut lines) = mpsc::channel(EVENTS);
        let endless = vec![b'x'; 2 * LONGEST_EVENT as usize];
        let said = [b"{}\n".as_slice(), &endless, b"\n{}\n"].concat();
        read(&*said, tell).await.unwrap();
        assert_eq!(lines.recv().await.as_deref(), Some("{}\n"));
        assert_eq!(lines.recv().await, None);
    }

    #[test]
    fn of_all_events_budgets_are_told_of_as_such() {
        let line = r#"{"schema":1,"time":"2026-11-29T15:00:00Z","event":"budget","link":"wwan0","level":"reached",
            "used":2000000000,"of":2000000000,"summary":"wwan0 has used up its budget of 2 GB"}"#;
        let Event::Budget { link, level, summary } = Event::read(line) else { panic!("a budget") };
        assert_eq!((link.as_str(), level), ("wwan0", BudgetLevel::Reached));
        assert_eq!(summary.as_str(), "wwan0 has used up its budget of 2 GB");
        for line in [r#"{"event":"switched","summary":"x"}"#, r#"{"event":"budget"}"#, "GET /", ""]
        {
            assert!(matches!(Event::read(line), Event::Other), "{line}");
        }
    }

    #[test]
    fn budgets_whose_events_are_missing_are_read_from_the_status() {
        let missed = events::Event::Missed { count: 3 }.line().unwrap();
        assert!(matches!(Event::read(&missed), Event::Missed));
        let link = |link: &str, budget: Value| {
            json!({ "link": link, "sent-bytes": 0, "received-bytes": 0, "upkeep-bytes": 0,
                    "budget": budget })
        };
        let budget = |used: u64, level: &str| {
            json!({ "used": used, "of": 2_000_000_000, "period": "month", "since": "2026-11-01",
                    "level": level, "over": "hold-bulk" })
        };
        let links = json!([
            link("wlan0", Value::Null),
            link("wwan0", budget(1_000_000_000, "within")),
            link("wwan1", budget(1_700_000_000, "warned")),
            link("wwan2", budget(2_000_000_000, "reached")),
        ]);
        let told: Vec<_> = budgets(&status(json!({ "links": links }))).collect();
        let words = told.iter().map(|it| (it.link.as_str(), it.is_used_up, it.words.as_str()));
        let expected = [
            ("wwan1", false, "wwan1 has carried 1.7 GB of its 2.0 GB"),
            ("wwan2", true, "wwan2 has used up its budget of 2.0 GB: large transfers wait"),
        ];
        assert_eq!(words.collect::<Vec<_>>(), expected);
    }
}
