//! The servers of a fleet, as a server's file tells its clients of them: `[[directory.server]]`.
//!
//! They are in a file of the administrator's and not in etcd: who can write to etcd must not decide whom a new client
//! trusts.

use super::{
    ServerPeer,
    check::{Unique, elements, is_name},
    client::MOST_SERVERS,
    problem::Problems,
    raw::{List, RawFleetServer},
};
use crate::identity::PublicKey;

const SERVERS: &str = "directory.server";

/// What servers of one list cannot share.
pub(super) struct Distinct {
    names: Unique<String>,
    keys: Unique<PublicKey>,
    addresses: Unique<String>,
}

impl Distinct {
    pub(super) fn new() -> Self {
        Self { names: Unique::new(), keys: Unique::new(), addresses: Unique::new() }
    }

    /// Records the server in this section, or reports what another one has already.
    pub(super) fn claim(&mut self, section: &str, server: &ServerPeer, problems: &mut Problems) {
        let mut own: Vec<_> = server.addresses.iter().map(ToString::to_string).collect();
        own.sort();
        own.dedup();
        for address in own {
            self.addresses.claim(address, &format!("{section}.address"), problems);
        }
        self.names.claim(server.name.clone(), &format!("{section}.name"), problems);
        self.keys.claim(server.public_key, &format!("{section}.public-key"), problems);
    }
}

/// The servers, the preferred one first. `own` is the key of this one, if the file has it.
pub(super) fn build(
    raw: &List<RawFleetServer>,
    own: Option<PublicKey>,
    problems: &mut Problems,
) -> Vec<ServerPeer> {
    let (mut servers, mut distinct) = (Vec::new(), Distinct::new());
    let raw = elements(SERVERS, raw);
    // New clients would be told of its former key, or of none.
    if let Some(own) = own
        && !raw.is_empty()
        && raw.iter().all(|(_, server)| server.public_key != Some(own))
    {
        let reason = format!("has no element with the key of this server, {own}");
        problems.add(SERVERS, None, reason);
    }
    for (section, raw) in raw {
        let Some(server) = server(&section, &raw, problems) else { continue };
        distinct.claim(&section, &server, problems);
        servers.push(server);
    }
    if servers.len() > MOST_SERVERS {
        let reason = format!("has {} elements; it may have {MOST_SERVERS}", servers.len());
        problems.add(SERVERS, None, reason);
    }
    servers
}

fn server(section: &str, raw: &RawFleetServer, problems: &mut Problems) -> Option<ServerPeer> {
    let key = |name: &str| format!("{section}.{name}");
    let name = problems.require(&key("name"), raw.name.clone());
    let name = problems.accept(&key("name"), name, |name| is_name(name));
    problems.require_some(&key("address"), &raw.address);
    let addresses = elements("", &raw.address).into_iter().map(|(_, address)| address).collect();
    let tcp_port = problems.accept(&key("tcp-port"), raw.tcp_port, |port| *port > 0);
    let public_key = problems.require(&key("public-key"), raw.public_key);
    let (proxy, relay, home) = (None, None, Vec::new());
    let public_key = public_key?;
    Some(ServerPeer { name: name?, addresses, tcp_port, proxy, relay, home, public_key })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Origin;

    fn raw(name: &str, address: &str, key: u8) -> Option<RawFleetServer> {
        Some(RawFleetServer {
            name: Some(name.into()),
            address: Some(vec![Some(address.parse().unwrap())]),
            tcp_port: None,
            public_key: Some([key; 32].into()),
        })
    }

    fn said(servers: Vec<Option<RawFleetServer>>) -> Vec<String> {
        let mut problems = Problems::default();
        build(&Some(servers), Some([1; 32].into()), &mut problems);
        let problems = problems.into_vec(|_| (Origin::File { line: None }, true));
        problems.iter().map(|it| format!("{} {}", it.key, it.reason)).collect()
    }

    #[test]
    fn a_list_of_servers_has_each_once_and_this_one_with_its_own_key() {
        let berlin = || raw("berlin", "192.0.2.1", 1);
        let none: Vec<String> = Vec::new();
        assert_eq!(said(vec![berlin(), raw("paris", "192.0.2.2", 2)]), none);
        assert_eq!(said(Vec::new()), none);
        for (second, expected) in [
            (raw("berlin", "192.0.2.2", 2), "directory.server[1].name is already used by"),
            (raw("paris", "192.0.2.1:4433", 2), "directory.server[1].address is already used by"),
            (raw("paris", "192.0.2.2", 1), "directory.server[1].public-key is already used by"),
            (
                raw("paris", "192.0.2.2", 2).map(|it| RawFleetServer { name: None, ..it }),
                "directory.server[1].name is required",
            ),
            (
                raw("paris", "192.0.2.2", 2).map(|it| RawFleetServer { tcp_port: Some(0), ..it }),
                "directory.server[1].tcp-port ",
            ),
            (
                raw("paris", "192.0.2.2", 2).map(|it| RawFleetServer { address: None, ..it }),
                "directory.server[1].address is required",
            ),
        ] {
            let said = said(vec![berlin(), second]);
            assert!(said[0].starts_with(expected), "{expected}: {said:?}");
        }
        let other = said(vec![raw("berlin", "192.0.2.1", 3)]);
        let [reason] = &other[..] else { panic!("{other:?}") };
        let expected = "directory.server has no element with the key of this server, AQEB";
        assert!(reason.starts_with(expected), "{reason}");
        let many = (1..=9)
            .map(|number| raw(&format!("server {number}"), &format!("192.0.2.{number}"), number));
        assert_eq!(said(many.collect()), ["directory.server has 9 elements; it may have 8"]);
    }
}
