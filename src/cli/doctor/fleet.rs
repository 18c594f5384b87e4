//! What new clients are told of the servers of a fleet.

use super::finding::Finding;
use crate::{config::ServerPeer, identity::PublicKey, path::servers::ServerAddresses};

const SUBJECT: &str = "fleet";

/// Looks at the servers that `roamd peer add` writes into clients' files. `own` is this server's key.
pub(super) async fn examine(fleet: &[ServerPeer], own: PublicKey, tell: &mut dyn FnMut(Finding)) {
    if fleet.is_empty() {
        return;
    }
    tell(match fleet.iter().find(|server| server.public_key == own) {
        Some(server) => Finding::good(SUBJECT, format!("this server is {}", server.name)),
        None => Finding::poor(
            SUBJECT,
            "this server's key is not in directory.server: no new client comes here",
            format!("add a [[directory.server]] with the key {own}"),
        ),
    });
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
