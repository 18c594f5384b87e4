//! A build without the feature `dbus` asks nobody which links are metered and tells no resolver: the log says so once.

pub(crate) mod metered {
    use std::{
        collections::HashSet,
        convert::Infallible,
        future::{Pending, pending},
    };

    use tracing::info;

    /// Tells nothing: the configuration alone says which links are metered.
    pub(crate) fn watch(_: impl Fn(HashSet<String>)) -> Pending<Infallible> {
        info!(
            "this build is without D-Bus: which links are metered is known from paths.prefer alone"
        );
        pending()
    }
}

pub(crate) mod resolver {
    use std::future::{Ready, ready};

    use tracing::warn;

    use crate::host::Layout;

    #[derive(Debug)]
    pub(crate) struct Resolver {
        is_said: bool,
    }

    impl Resolver {
        pub(crate) fn new(_: u32, _: bool) -> Self {
            Self { is_said: false }
        }

        /// Names are looked up as before.
        pub(crate) fn set(&mut self, layout: &Layout) -> Ready<()> {
            if !layout.dns.servers.is_empty() && !std::mem::replace(&mut self.is_said, true) {
                warn!(
                    servers = ?layout.dns.servers,
                    "this build is without D-Bus: the resolvers that the server offers are not used"
                );
            }
            ready(())
        }

        pub(crate) fn revert(&mut self) -> Ready<()> {
            ready(())
        }
    }
}
