use std::{
    io::{Read, Write as _},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use rustls::{
    HandshakeKind, NamedGroup,
    client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue},
    pki_types::ServerName,
};

use super::{
    connection::SHARE,
    sealed::{SEALS, TicketKey},
    *,
};
use crate::clock;

/// What became of a handshake.
#[derive(Debug, PartialEq, Eq)]
struct Met {
    is_resumed: bool,
    /// Whether the server took the client's early data; `None` if it sent none.
    early: Option<bool>,
}

const FULL: Met = Met { is_resumed: false, early: None };
const RESUMED: Met = Met { is_resumed: true, early: None };
const RESUMED_EARLY: Met = Met { is_resumed: true, early: Some(true) };

/// Both ends of one connection, without QUIC; the client sends early data if it may, and reads its tickets. Gives also
/// whether it sent some.
fn connect(
    client: rustls::ClientConfig,
    name: &str,
    server: &ServerTls,
) -> (rustls::ClientConnection, rustls::ServerConnection, bool) {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(client.into(), name).unwrap();
    let mut server = rustls::ServerConnection::new(server.rustls().unwrap().into()).unwrap();
    let sent = client.early_data().map(|mut early| early.write_all(b"early").unwrap()).is_some();
    let mut is_done = false;
    while !is_done {
        is_done = !client.is_handshaking() && !server.is_handshaking();
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut unread = wire.as_slice();
        while !unread.is_empty() {
            server.read_tls(&mut unread).unwrap();
            server.process_new_packets().unwrap();
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut unread = wire.as_slice();
        while !unread.is_empty() {
            client.read_tls(&mut unread).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    (client, server, sent)
}

/// A connection with a ticket, if there is one, and with early data, if the ticket allows it.
fn meet(client: &ClientTls, server: &ServerTls) -> Met {
    met(client.resuming.rustls(), &client.name, server)
}

fn met(client: rustls::ClientConfig, name: &str, server: &ServerTls) -> Met {
    let (client, mut server, sent) = connect(client, name, server);
    assert_eq!(client.handshake_kind(), server.handshake_kind());
    let mut arrived = Vec::new();
    if let Some(mut early) = server.early_data() {
        early.read_to_end(&mut arrived).unwrap();
    }
    assert_eq!(client.is_early_data_accepted(), arrived == b"early");
    Met {
        is_resumed: client.handshake_kind() == Some(HandshakeKind::Resumed),
        early: sent.then(|| client.is_early_data_accepted()),
    }
}

fn keys() -> (PrivateKey, PrivateKey) {
    (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap())
}

/// Two servers that share the keys of tickets, and a client of both.
struct Fleet {
    keys: [PrivateKey; 2],
    servers: [ServerTls; 2],
    tickets: TicketKey,
    client: Servers,
    client_key: PublicKey,
    to: [ClientTls; 2],
    is_known: Arc<AtomicBool>,
}

impl Fleet {
    fn new() -> Self {
        let keys: [PrivateKey; 2] = keys().into();
        let client_key = PrivateKey::generate().unwrap();
        let client = Servers::new(&client_key).unwrap();
        let mut fleet = Self {
            servers: keys.each_ref().map(|key| ServerTls::new(key, |_| true).unwrap()),
            tickets: TicketKey::generate(clock::unix()).unwrap(),
            to: keys.each_ref().map(|key| client.with(key.public_key(), TUNNEL).unwrap()),
            keys,
            client,
            client_key: client_key.public_key(),
            is_known: Arc::new(true.into()),
        };
        fleet.restart(0);
        fleet.restart(1);
        fleet
    }

    /// A server forgets everything but what the fleet shares.
    fn restart(&mut self, server: usize) {
        let is_known = self.is_known.clone();
        let knows = move |_| is_known.load(Relaxed);
        self.servers[server] = ServerTls::new(&self.keys[server], knows).unwrap();
        self.servers[server].ticket_keys().set(vec![self.tickets.clone()]);
    }

    fn meet(&self, server: usize) -> Met {
        meet(&self.to[server], &self.servers[server])
    }

    /// A connection of a client that decides itself which tickets it uses, and what for.
    fn meet_with(&self, store: &Arc<Pocket>, server: usize) -> Met {
        let mut config = self.to[server].resuming.rustls();
        config.resumption = rustls::client::Resumption::store(store.clone());
        met(config, &self.to[server].name, &self.servers[server])
    }
}

/// All tickets that a client was given.
#[derive(Debug, Default)]
struct Pocket {
    kept: Mutex<Vec<Tls13ClientSessionValue>>,
    sealed: Mutex<Vec<Tls13ClientSessionValue>>,
    /// Gives a sealed ticket as one that is good for early data.
    lies: AtomicBool,
}

impl Pocket {
    fn empty(&self) -> (usize, usize) {
        let taken = |tickets: &Mutex<Vec<_>>| std::mem::take(&mut *tickets.lock()).len();
        (taken(&self.kept), taken(&self.sealed))
    }
}

impl ClientSessionStore for Pocket {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let kind = if ticket.max_early_data_size() > 0 { &self.kept } else { &self.sealed };
        kind.lock().push(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut ticket = self.sealed.lock().pop()?;
        if self.lies.load(Relaxed) {
            ticket._private_set_max_early_data_size(u32::MAX);
        }
        Some(ticket)
    }
}

#[test]
fn the_key_exchange_is_post_quantum() {
    let (here, there) = keys();
    let tls = client(&here, there.public_key(), TUNNEL).unwrap();
    let server = ServerTls::new(&there, |_| true).unwrap();
    let (client, server, _) = connect(tls.resuming.rustls(), &tls.name, &server);
    let group = client.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
    assert_eq!(
        server.peer_certificates().and_then(|keys| public_key(&keys[0])),
        Some(here.public_key())
    );
}

#[test]
fn strangers_and_probes_do_not_cost_a_known_client_its_tickets() {
    let (here, there) = keys();
    let known = here.public_key();
    let server = ServerTls::new(&there, move |key| key == known).unwrap();
    server.ticket_keys().set(vec![TicketKey::generate(clock::unix()).unwrap()]);
    let client = |key: &PrivateKey, alpn| client(key, there.public_key(), alpn).unwrap();
    let returning = client(&here, TUNNEL);
    assert_eq!(meet(&returning, &server), FULL);
    let stranger = PrivateKey::generate().unwrap();
    for _ in 0..1100 {
        assert_eq!(meet(&client(&stranger, TUNNEL), &server), FULL);
    }
    for _ in 0..SHARE {
        assert_eq!(meet(&client(&here, PROBE), &server), FULL);
    }
    let returning_stranger = client(&stranger, TUNNEL);
    assert_eq!(meet(&returning_stranger, &server), FULL);
    assert_eq!(meet(&returning_stranger, &server), FULL, "a stranger has no ticket");
    assert_eq!(meet(&returning, &server), RESUMED_EARLY);
}

#[test]
fn a_ticket_dies_with_its_key() {
    let (here, there) = keys();
    let is_known = Arc::new(AtomicBool::new(true));
    let server = ServerTls::new(&there, {
        let is_known = is_known.clone();
        move |_| is_known.load(Relaxed)
    })
    .unwrap();
    let returning = client(&here, there.public_key(), TUNNEL).unwrap();
    assert_eq!(meet(&returning, &server), FULL);
    assert_eq!(meet(&returning, &server), RESUMED_EARLY);
    is_known.store(false, Relaxed);
    assert_eq!(meet(&returning, &server), Met { is_resumed: false, early: Some(false) });
    server.forget_strangers();
    is_known.store(true, Relaxed);
    assert_eq!(meet(&returning, &server).early, Some(false), "forgotten");
    assert_eq!(meet(&returning, &server), RESUMED_EARLY);
}

#[test]
fn a_ticket_resumes_at_another_server_of_the_fleet_without_early_data() {
    let fleet = Fleet::new();
    assert_eq!(fleet.meet(0), FULL);
    assert_eq!(fleet.meet(1), RESUMED, "with a sealed ticket of the other");
    assert_eq!(fleet.meet(1), RESUMED_EARLY, "with one that it gave itself");
    assert_eq!(fleet.meet(0), RESUMED_EARLY);
}

#[test]
fn a_server_knows_a_client_that_another_one_has_seen() {
    let fleet = Fleet::new();
    assert_eq!(fleet.meet(0), FULL);
    let (tls, server) = (&fleet.to[1], &fleet.servers[1]);
    let (client, server, _) = connect(tls.resuming.rustls(), &tls.name, server);
    assert_eq!(client.handshake_kind(), Some(HandshakeKind::Resumed));
    let seen = server.peer_certificates().and_then(|keys| public_key(&keys[0]));
    assert_eq!(seen, Some(fleet.client_key));
}

/// Without one, whoever takes the keys of tickets could read what he has recorded.
#[test]
fn every_session_that_is_resumed_has_a_key_exchange_of_its_own() {
    let fleet = Fleet::new();
    assert_eq!(fleet.meet(0), FULL);
    for (tls, server) in fleet.to.iter().zip(&fleet.servers) {
        let (client, server, _) = connect(tls.resuming.rustls(), &tls.name, server);
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Resumed));
        for group in
            [client.negotiated_key_exchange_group(), server.negotiated_key_exchange_group()]
        {
            assert_eq!(group.map(|group| group.name()), Some(NamedGroup::X25519MLKEM768));
        }
    }
}

/// rustls asks in an order of its own whether a server keeps its tickets. If it ever asks in another one, this fails.
#[test]
fn early_data_on_a_sealed_ticket_are_refused_whatever_the_client_claims() {
    let (fleet, pocket) = (Fleet::new(), Arc::new(Pocket::default()));
    assert_eq!(fleet.meet_with(&pocket, 0), FULL);
    pocket.lies.store(true, Relaxed);
    for server in [0, 1] {
        let refused = Met { is_resumed: true, early: Some(false) };
        assert_eq!(fleet.meet_with(&pocket, server), refused, "at {server}");
    }
}

#[test]
fn every_session_gives_tickets_of_both_kinds_however_it_began() {
    let (fleet, pocket) = (Fleet::new(), Arc::new(Pocket::default()));
    assert_eq!(fleet.meet_with(&pocket, 0), FULL);
    assert_eq!((pocket.kept.lock().len(), pocket.sealed.lock().len()), (4, 2));
    pocket.kept.lock().clear();
    assert_eq!(fleet.meet_with(&pocket, 1), RESUMED);
    assert_eq!(pocket.empty(), (4, 1 + 2));
    // Without keys in force all are of the one kind.
    fleet.servers[0].ticket_keys().set(Vec::new());
    assert_eq!(fleet.meet_with(&pocket, 0), FULL);
    assert_eq!(pocket.empty(), (4, 0));
}

#[test]
fn a_restarted_server_takes_the_fleets_tickets_without_early_data_and_its_own_no_more() {
    let (mut fleet, pocket) = (Fleet::new(), Arc::new(Pocket::default()));
    assert_eq!(fleet.meet_with(&pocket, 0), FULL);
    assert_eq!(fleet.meet(0), FULL);
    fleet.restart(0);
    assert_eq!(fleet.meet_with(&pocket, 0), RESUMED);
    assert_eq!(fleet.meet(0), Met { is_resumed: false, early: Some(false) });
}

#[test]
fn a_removed_client_has_no_ticket_anywhere() {
    let (fleet, pocket) = (Fleet::new(), Arc::new(Pocket::default()));
    assert_eq!(fleet.meet_with(&pocket, 0), FULL);
    fleet.is_known.store(false, Relaxed);
    assert_eq!(fleet.meet_with(&pocket, 1), FULL);
    assert_eq!(fleet.meet_with(&pocket, 0), FULL);
    assert_eq!(pocket.empty(), (4, 0), "and gets no new one");
}

#[test]
fn a_ticket_under_keys_that_a_server_does_not_have_is_no_ticket() {
    let fleet = Fleet::new();
    assert_eq!(fleet.meet(0), FULL);
    fleet.servers[1].ticket_keys().set(vec![TicketKey::generate(clock::unix()).unwrap()]);
    assert_eq!(fleet.meet(1), FULL);
    let fleet = Fleet::new();
    assert_eq!(fleet.meet(0), FULL);
    fleet.servers[1].ticket_keys().set(Vec::new());
    assert_eq!(fleet.meet(1), FULL);
}

#[test]
fn a_client_forgets_the_tickets_of_a_server_that_it_has_no_more() {
    let mut fleet = Fleet::new();
    assert_eq!(fleet.meet(0), FULL);
    let other = PrivateKey::generate().unwrap().public_key();
    fleet.to[0] = fleet.client.with(other, TUNNEL).unwrap();
    assert_eq!(fleet.meet(1), FULL);
}

/// Also in the name of another one.
#[test]
fn a_session_that_goes_back_to_a_server_that_a_client_has_no_more_is_not_resumed() {
    let mut fleet = Fleet::new();
    assert_eq!(fleet.meet(0), FULL);
    assert_eq!(fleet.meet(1), RESUMED);
    let other = PrivateKey::generate().unwrap().public_key();
    fleet.to[0] = fleet.client.with(other, TUNNEL).unwrap();
    assert_eq!(fleet.meet(1), FULL);
    assert_eq!(fleet.meet(1), RESUMED_EARLY);
}

/// A forger may have used them, and what he was given is void as well.
#[test]
fn what_goes_back_to_a_key_that_is_in_force_no_more_is_void() {
    let fleet = Fleet::new();
    assert_eq!(fleet.meet(0), FULL);
    assert_eq!(fleet.meet(1), RESUMED);
    assert_eq!(fleet.meet(1), RESUMED_EARLY);
    for server in &fleet.servers {
        server.ticket_keys().set(vec![TicketKey::generate(clock::unix()).unwrap()]);
    }
    assert_eq!(fleet.meet(1), Met { is_resumed: false, early: Some(false) });
    assert_eq!(fleet.meet(0), RESUMED_EARLY, "a full handshake was here");
}

#[test]
fn only_servers_of_one_fleet_take_the_tickets_of_each_other() {
    let mut fleet = Fleet::new();
    let key = PrivateKey::generate().unwrap();
    fleet.to = [0, 1].map(|server| {
        let fleet_of_its_own = Servers::new(&key).unwrap();
        fleet_of_its_own.with(fleet.keys[server].public_key(), TUNNEL).unwrap()
    });
    assert_eq!((fleet.meet(0), fleet.meet(1)), (FULL, FULL));
    assert_eq!((fleet.meet(0), fleet.meet(1)), (RESUMED_EARLY, RESUMED_EARLY));
}

#[test]
fn a_server_is_expected_for_as_long_as_anything_of_it_is_kept() {
    let fleet = Fleet::new();
    drop(fleet.client.with(fleet.keys[0].public_key(), TUNNEL).unwrap());
    assert_eq!(fleet.meet(0), FULL);
    drop(fleet.client.with(fleet.keys[0].public_key(), TUNNEL).unwrap());
    assert_eq!(fleet.meet(0), RESUMED_EARLY);
}

#[test]
fn each_of_a_clients_servers_proves_its_own_key() {
    let fleet = Fleet::new();
    let server: Arc<rustls::ServerConfig> = fleet.servers[1].rustls().unwrap().into();
    let tls = &fleet.to[0];
    let name = ServerName::try_from(tls.name.clone()).unwrap();
    let mut client = rustls::ClientConnection::new(tls.resuming.rustls().into(), name).unwrap();
    let mut server = rustls::ServerConnection::new(server).unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    server.read_tls(&mut wire.as_slice()).unwrap();
    server.process_new_packets().unwrap();
    wire.clear();
    while server.wants_write() {
        server.write_tls(&mut wire).unwrap();
    }
    client.read_tls(&mut wire.as_slice()).unwrap();
    client.process_new_packets().unwrap_err();
    assert_eq!(*tls.wrong.lock(), Some(fleet.keys[1].public_key()));
    assert_eq!(*fleet.to[1].wrong.lock(), None);
}

#[tokio::test(start_paused = true)]
async fn a_day_after_the_last_full_handshake_there_is_another() {
    let fleet = Fleet::new();
    assert_eq!(fleet.meet(0), FULL);
    tokio::time::advance(TICKET_LIFE - Duration::from_secs(60)).await;
    assert_eq!(fleet.meet(0), RESUMED_EARLY);
    assert_eq!(fleet.meet(1), RESUMED);
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(fleet.meet(1), FULL, "neither by its own tickets nor by the other's");
    assert_eq!(fleet.meet(0), RESUMED, "by one that goes back to that handshake");
}

#[test]
fn nobody_prints_a_ticket_key() {
    let fleet = Fleet::new();
    let secret = format!("{:?}", *fleet.tickets.secret);
    for text in [format!("{:?}", fleet.tickets), format!("{:?}", fleet.servers[0])] {
        assert!(!text.contains(secret.trim_matches(['[', ']'])), "{text}");
    }
    assert!(!fleet.tickets.seals(fleet.tickets.from + SEALS));
}
