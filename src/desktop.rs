//! `roamd notify`: notifications and a tray icon on a person's desktop, for the tunnels of this computer.
//!
//! ```text
//!  control sockets ─▶ follow ─▶ Seen ─┬─▶ Desk: what a person acts on ─▶ Board ─▶ org.freedesktop.Notifications
//!                                     └─▶ menu, icon ─▶ Tray ─▶ org.kde.StatusNotifierWatcher
//!  control sockets ◀── requests ◀── clicks ◀──────────┘
//! ```
//! It runs as the person, and asks daemons as `roamd status` and its like do. Both services may come, go and be missing.

mod board;
mod browser;
mod follow;
mod icon;
mod markup;
mod matters;
mod menu;
mod owners;
mod seen;
mod tray;

use anyhow::{Context as _, bail};
use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
};
use tracing::{debug, info};
use zbus::Connection;

use self::{
    board::{Board, Happened},
    follow::{News, What, follow},
    matters::{Action, Desk, failed},
    tray::{Click, Tray},
};
use crate::{clock, daemon::signals, host::instance::Instance, task::Task};

/// News of tunnels that wait to be looked at.
const NEWS: usize = 16;

/// Tells of the tunnel with this name, or of all, until the process is told to stop or the desktop ends.
pub(crate) async fn run(name: Option<String>, has_tray: bool) -> anyhow::Result<()> {
    let mut stops = signals::Stops::listen()?;
    let bus = Connection::session().await.context("there is no D-Bus session bus")?;
    let mut board = Board::new(&bus).await?;
    board.begin_anew().await;
    let (mut tray, mut clicks) = match has_tray {
        true => {
            let (tray, clicks) = Tray::new(&bus).await?;
            (Some(tray), clicks)
        }
        false => (None, mpsc::channel(1).1),
    };
    let (tell, mut news) = mpsc::channel(NEWS);
    let _following = Task::spawn("search", follow(name, tell));
    let (mut desk, mut asked) = (Desk::default(), JoinSet::new());
    info!(tray = has_tray, "waiting for what a person acts on");
    loop {
        tokio::select! {
            Some(News { tunnel, what }) = news.recv() => match what {
                What::Is(seen) => desk.see(&tunnel, seen),
                What::Budget(budget) => desk.hear(&tunnel, budget),
                What::StillBudget(budget) => desk.hear_again(&tunnel, budget),
                What::Gone => desk.gone(&tunnel, clock::now()),
            },
            () = clock::sleep_until(desk.next_deadline()) => {}
            happened = board.next() => match happened {
                Happened::Click(page) => browser::open(&bus, &page).await,
                Happened::Service => board.begin_anew().await,
                Happened::End => bail!("the D-Bus session bus is gone"),
            },
            Some(click) = clicks.recv() => {
                asked.spawn(ask(click));
            }
            Some(Ok(Some(action))) = asked.join_next() => board.act(action).await,
            () = next_tray(&mut tray) => if let Some(tray) = &tray {
                tray.register(&bus).await;
            },
            _ = stops.next() => {
                board.clear().await;
                return Ok(());
            }
        }
        for action in desk.judge(clock::now()) {
            board.act(action).await;
        }
        if let Some(tray) = &tray
            && let Err(error) = tray.show(&desk.tunnels()).await
        {
            debug!(%error, "the tray icon cannot be changed");
        }
    }
}

/// Without a tray it waits for ever.
async fn next_tray(tray: &mut Option<Tray>) {
    match tray {
        Some(tray) => tray.next().await,
        None => std::future::pending().await,
    }
}

/// Asks a daemon for what a person clicked; what to tell them if it does not do it.
async fn ask((tunnel, request): Click) -> Option<Action> {
    let instance = Instance::named(&tunnel).called();
    let done = spawn_blocking(move || instance.tell(&request)).await.ok()?;
    let error = done.err()?;
    Some(failed(&tunnel, crate::wire::foreign::Foreign::of(error).as_str()))
}
