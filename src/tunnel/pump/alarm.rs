//! A timer whose deadline moves with every packet.

use std::{pin::Pin, time::Instant};

use tokio::time::{Sleep, sleep_until};

/// It is armed anew only when a deadline comes nearer: one that moves away costs nothing until the old one has passed.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    timer: Option<Pin<Box<Sleep>>>,
    armed: Option<Instant>,
}

impl Alarm {
    /// Waits until `deadline`, or less; for ever without one. Cancel safe.
    pub(super) async fn wait(&mut self, deadline: Option<Instant>) {
        let Some(deadline) = deadline else { return std::future::pending().await };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline.into())));
        if self.armed.is_none_or(|armed| deadline < armed) {
            timer.as_mut().reset(deadline.into());
            self.armed = Some(deadline);
        }
        timer.await;
        self.armed = None;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock;

    #[tokio::test(start_paused = true)]
    async fn it_rings_at_the_nearest_deadline_and_not_after_it() {
        let (mut alarm, start) = (Alarm::default(), clock::now());
        let after = |milliseconds| Some(start + Duration::from_millis(milliseconds));
        let short = Duration::from_millis(1);
        for deadline in [None, after(50), after(20), after(70)] {
            assert!(tokio::time::timeout(short, alarm.wait(deadline)).await.is_err());
        }
        alarm.wait(after(70)).await;
        assert_eq!(clock::now(), start + Duration::from_millis(20), "the nearest");
        alarm.wait(after(70)).await;
        assert_eq!(clock::now(), start + Duration::from_millis(70));
        alarm.wait(after(60)).await;
        assert_eq!(clock::now(), start + Duration::from_millis(70), "it has passed");
    }
}
