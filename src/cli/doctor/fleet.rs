//! What new clients are told of the servers of a fleet.

use super::finding::Finding;
use crate::{config::ServerPeer, path::servers::ServerAddresses};

const SUBJECT: &str = "fleet";

/// Looks at the servers that `roamd peer add` writes into clients' files.
pub(super) async fn examine(fleet: &[ServerPeer], tell: &mut dyn FnMut(Finding)) {
    for server in fleet {
        for address in &server.addresses {
            let found = ServerAddresses::new(&[]).resolve(std::slice::from_ref(address)).await;
            tell(match found {
                Ok(found) => {
                    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
                    let said = format!("{}: {address} is {}", server.name, found.join(", "));
                    Finding::good(SUBJECT, said)
                }
                Err(error) => Finding::poor(
                    SUBJECT,
                    format!("{}: {error}", server.name),
                    "new clients are told this name: correct it in directory.server, or in DNS",
                ),
            });
        }
    }
}
