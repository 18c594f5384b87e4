//! Hears of all that changes below a prefix, over every interruption.

use std::time::Duration;

use etcd_client::{Client, EventType, GetOptions, WatchOptions, WatchResponse};
use tokio::{sync::mpsc, time::sleep};
use tracing::debug;

use super::{
    ANSWER, CALL, Failure, MOST_ANSWER, Member, Store, StoreError, end_of, pauses, within,
};
use crate::{
    clock,
    fleet::entry::{Change, Snapshot},
    task::Task,
    wire::foreign::Foreign,
};

/// How often a follower asks whether etcd still answers.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// From the first failed attempt of a follower to the next, doubled up to the longest, with jitter.
pub(super) const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
/// News that wait for a slow follower. Then etcd waits, too.
const NEWS: usize = 16;

/// What a follower hears, in this order: `All`, then `Changes`, until `Lost` or `Away`, after which `All` comes again.
#[derive(Clone, Debug)]
pub(crate) enum News {
    /// Everything, at the beginning and after each interruption: what is not there was deleted.
    All(Snapshot),
    /// What changed since; in order, each once.
    Changes(Vec<Change>),
    /// The watch has ended, and etcd is asked for everything: until it answers nobody knows what changes.
    Lost,
    /// etcd cannot be asked any more; said once, and again when the reason changes.
    Away(StoreError),
}

/// The news of what is below a prefix, see [`Store::follow`].
pub(crate) struct Follow {
    news: mpsc::Receiver<News>,
    _task: Task,
}

impl Follow {
    /// One that waits already.
    pub(crate) fn try_next(&mut self) -> Option<News> {
        self.news.try_recv().ok()
    }

    /// The next. It may be dropped before there is one, and none is lost.
    pub(crate) async fn next(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => news,
            // Its task lasts as long as this.
            None => std::future::pending().await,
        }
    }
}

/// Tells `news` of what is below `prefix` until nobody listens.
async fn follow(store: Store, prefix: String, news: mpsc::Sender<News>) {
    let begin = || pauses(SHORTEST, LONGEST);
    let mut pauses = begin();
    let mut told = None;
    loop {
        let begun = clock::now();
        match store.read(&prefix).await {
            Ok(snapshot) => {
                told = None;
                match store.watch(&prefix, snapshot, &news).await {
                    Ok(()) => return,
                    Err(why) => debug!(%why, prefix, "the watch has ended"),
                }
                if news.send(News::Lost).await.is_err() {
                    return;
                }
                if clock::now() - begun > LONGEST {
                    pauses = begin();
                }
            }
            Err(error) => {
                let words = error.to_string();
                if told.as_ref() != Some(&words) {
                    told = Some(words);
                    if news.send(News::Away(error)).await.is_err() {
                        return;
                    }
                }
            }
        }
        sleep(pauses.next().unwrap_or(LONGEST)).await;
    }
}

impl Store {
    /// Hears of all that is below `prefix`, for as long as what this returns is kept.
    pub(crate) fn follow(&self, prefix: &str) -> Follow {
        let (sender, news) = mpsc::channel(NEWS);
        let follow = follow(self.clone(), prefix.to_owned(), sender);
        Follow { news, _task: Task::spawn("etcd", follow) }
    }

    /// Tells `news` of `snapshot` and of all changes after it. Ends well when nobody listens any more.
    async fn watch(
        &self,
        prefix: &str,
        snapshot: Snapshot,
        news: &mpsc::Sender<News>,
    ) -> Result<(), Foreign> {
        let Member { number, client } = self.member().await.map_err(Foreign::of)?;
        let key = self.key(prefix);
        let options =
            WatchOptions::new().with_range(end_of(&key)).with_start_revision(snapshot.revision + 1);
        if news.send(News::All(snapshot)).await.is_err() {
            return Ok(());
        }
        let mut watch = client.watch_client().max_decoding_message_size(MOST_ANSWER);
        let watching = within(clock::now() + CALL, watch.watch(key.clone(), Some(options)));
        let watched = async {
            let mut stream = watching.await?;
            loop {
                let answer = stream.message().await.map_err(|error| Failure::of(&error))?;
                let answer =
                    answer.ok_or_else(|| Failure::Silent("it has ended the watch".into()))?;
                if answer.canceled() {
                    // Too old a revision is none of the member's faults.
                    return Err(match answer.compact_revision() {
                        0 => Failure::Silent(answer.cancel_reason().into()),
                        _ => Failure::Refused("the revision is compacted".into()),
                    });
                }
                let changes = self.changes(&answer);
                if !changes.is_empty() && news.send(News::Changes(changes)).await.is_err() {
                    return Ok(());
                }
            }
        };
        let ended = tokio::select! {
            ended = watched => ended,
            why = self.heart(number, &client, &key) => Err(why),
            () = news.closed() => Ok(()),
        };
        ended.map_err(|failure| match failure {
            Failure::Refused(why) => why,
            Failure::NotSent(why) | Failure::Silent(why) => {
                self.leave(number);
                why
            }
        })
    }

    /// Asks the member, again and again, whether it is there and one of a majority; a silent watch cannot tell. Nor is
    /// it known what one missed whose member was left by another call.
    async fn heart(&self, number: usize, client: &Client, key: &[u8]) -> Failure {
        let mut kv = client.kv_client();
        loop {
            sleep(HEARTBEAT).await;
            if self.place().number != number {
                return Failure::Refused("another call was not answered".into());
            }
            let asked = kv.get(key, Some(GetOptions::new().with_count_only()));
            if let Err(failure) = within(clock::now() + ANSWER, asked).await {
                return failure;
            }
        }
    }

    fn changes(&self, answer: &WatchResponse) -> Vec<Change> {
        let change = |event: &etcd_client::Event| {
            let entry = self.entry(event.kv()?)?;
            Some(match event.event_type() {
                EventType::Put => Change::Put(entry),
                EventType::Delete => Change::Deleted { key: entry.key, revision: entry.modified },
            })
        };
        answer.events().iter().filter_map(change).collect()
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;
    use tokio::time::timeout;

    use super::*;
    use crate::fleet::tests::Cluster;

    async fn next(follow: &mut Follow) -> News {
        timeout(5 * HEARTBEAT, follow.next()).await.expect("nothing is told")
    }

    #[tokio::test]
    async fn a_watch_begins_anew_when_another_call_has_left_its_member() {
        let cluster = Cluster::of(1).await;
        let store = cluster.store();
        let mut follow = store.follow("sessions/");
        for _ in 0..2 {
            let news = next(&mut follow).await;
            assert!(matches!(news, News::All(_)), "{news:?}");
            let number = store.place().number;
            store.leave(number);
            let news = next(&mut follow).await;
            assert!(matches!(news, News::Lost), "{news:?}");
        }
    }

    #[tokio::test]
    async fn a_watch_that_ends_is_told_before_etcd_is_asked_again() {
        let cluster = Cluster::of(1).await;
        let mut follow = cluster.store().follow("sessions/");
        let news = next(&mut follow).await;
        assert!(matches!(news, News::All(_)), "{news:?}");
        cluster.signal(0, Signal::SIGSTOP);
        let news = next(&mut follow).await;
        assert!(matches!(news, News::Lost), "{news:?}");
        // What asks etcd has not been told yet that nobody answers.
        assert!(follow.try_next().is_none());
        let news = next(&mut follow).await;
        assert!(matches!(news, News::Away(_)), "{news:?}");
        cluster.signal(0, Signal::SIGCONT);
        let news = next(&mut follow).await;
        assert!(matches!(news, News::All(_)), "{news:?}");
    }
}
