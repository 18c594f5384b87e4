//! Keeps the host as the session and its networks want it.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::{
    Client,
    desired::{ApplyError, Desired},
};
use crate::{
    host::{Layout, Setup, Wish},
    wire::message::Welcome,
};

impl Client {
    /// Gives the host what is taken of the server's offer.
    pub(super) async fn greeted(
        &self,
        host: &mut impl Setup,
        welcome: &Welcome,
    ) -> Result<(), ApplyError> {
        self.apply(host, |desired| {
            desired.welcome = Some(welcome.clone());
            desired.in_session = true;
            desired.portal = false;
        })
        .await
    }

    /// Takes the offer again whenever the host's networks have changed; returns when the session cannot be kept.
    pub(super) async fn follow_host(&self, host: &mut impl Setup) -> ApplyError {
        let mut reports = self.reports.clone();
        loop {
            reports.changed().await;
            match self.apply(host, |_| ()).await {
                Err(error @ ApplyError::Offer(_)) => return error,
                Err(ApplyError::Host(error)) => {
                    warn!(%error, "the host stays as it was");
                }
                Ok(()) => {}
            }
        }
    }

    /// Lets packets to the server's addresses pass the kill switch, as they are found.
    pub(super) async fn admit(
        &self,
        mut host: Wish,
        mut admissions: mpsc::Receiver<(Vec<SocketAddr>, oneshot::Sender<()>)>,
    ) -> Infallible {
        while let Some((mut found, done)) = admissions.recv().await {
            found.extend(self.shown.remote());
            if let Err(error) = self.apply(&mut host, |desired| desired.found = found).await {
                warn!(%error, "the host does not know the server's addresses");
            }
            let _ = done.send(());
        }
        std::future::pending().await
    }

    /// Changes what is wanted of the host, and makes the host like that before it returns. On failure nothing
    /// has changed.
    pub(super) async fn apply(
        &self,
        host: &mut impl Setup,
        change: impl FnOnce(&mut Desired),
    ) -> Result<(), ApplyError> {
        let mut desired = self.desired.lock().await;
        let (before, mut changed) = (desired.plan()?.layout, desired.clone());
        changed.facts = self.reports.facts.borrow().clone();
        change(&mut changed);
        let plan = changed.plan()?;
        let layout = &plan.layout;
        // Whoever waits for the host may not wait any more.
        desired.is_applied = false;
        if let Err(error) = host.set(layout.clone()).await {
            match host.set(before).await {
                Ok(()) => desired.is_applied = true,
                Err(error) => {
                    warn!(%error, "the host cannot be made as it was");
                }
            }
            return Err(ApplyError::Host(error));
        }
        for route in layout.blocked.iter().filter(|route| !before.blocked.contains(route)) {
            warn!(%route, "the server gave this client no address of that family");
        }
        changed.take(&plan);
        *desired = changed;
        if desired.welcome.is_some() {
            let declined = plan.declined();
            self.inside.store(Arc::new(plan.inside));
            let Layout { mtu, addresses, networks, routes, .. } = plan.layout;
            self.shown.set_up(mtu, addresses, [networks, routes].concat(), declined);
        }
        Ok(())
    }
}
