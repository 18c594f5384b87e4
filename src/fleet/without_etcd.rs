//! A build without the feature `etcd` has no directory: its configuration cannot name one.

pub(crate) mod directory {
    use std::{convert::Infallible, sync::Arc};

    use ipnet::IpNet;
    use tokio::sync::watch;

    use crate::{config, fleet::Known, host::instance::Instance, identity::PublicKey};

    pub(crate) struct Directory(Infallible);

    impl Directory {
        #[expect(clippy::unused_async, reason = "as it is with etcd")]
        pub(crate) async fn open(
            _: Option<&config::Directory>,
            _: &Instance,
            _: PublicKey,
            _: &[IpNet],
        ) -> Option<Self> {
            None
        }

        pub(crate) fn known(&self) -> watch::Receiver<Arc<Known>> {
            match self.0 {}
        }
    }
}

pub(crate) mod tickets {
    use crate::{config, quic::tls::ServerTls, task::Task};

    pub(crate) fn open(_: Option<&config::Directory>, _: &ServerTls) -> Option<Task> {
        None
    }
}

pub(crate) mod admin {
    use std::{collections::HashSet, net::IpAddr};

    use crate::{
        config::{Etcd, Peer},
        fleet::PassedOver,
        identity::PublicKey,
    };

    /// The directory, to be changed.
    pub(crate) struct Directory;

    impl Directory {
        pub(crate) fn new(_: &Etcd) -> Self {
            Self
        }

        #[expect(clippy::unused_async, reason = "as it is with etcd")]
        pub(crate) async fn list(&self) -> anyhow::Result<(Vec<Peer>, Vec<PassedOver>)> {
            without()
        }

        #[expect(clippy::unused_async, reason = "as it is with etcd")]
        pub(crate) async fn add(
            &self,
            _: &str,
            _: PublicKey,
            _: impl Fn(&HashSet<IpAddr>) -> anyhow::Result<Vec<IpAddr>>,
        ) -> anyhow::Result<Peer> {
            without()
        }

        #[expect(clippy::unused_async, reason = "as it is with etcd")]
        pub(crate) async fn remove(&self, _: &str) -> anyhow::Result<String> {
            without()
        }

        #[expect(clippy::unused_async, reason = "as it is with etcd")]
        pub(crate) async fn confirm(&self) -> anyhow::Result<usize> {
            without()
        }
    }

    fn without<T>() -> anyhow::Result<T> {
        anyhow::bail!("this build of roamd is without the feature \"etcd\"")
    }
}
