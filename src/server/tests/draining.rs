//! A server that will stop, and clients with another server to go to.

use quinn::{RecvStream, SendStream};

use super::*;
use crate::{
    daemon::control::Reply,
    wire::message::{GoAway, Hello, LENGTH_SIZE},
};

/// More than any of these tests takes.
const SECONDS: u32 = 60;

/// A client that is bare but for its session.
struct Bare {
    connection: Connection,
    receive: RecvStream,
    _send: SendStream,
}

impl Bare {
    /// A session of the process `instance`, which has another server to go to if it `moves`.
    async fn new(site: &Site, instance: u64, moves: bool) -> Self {
        let connection = site.connect(&site.laptop, tls::TUNNEL).await;
        let (mut send, receive) = connection.open_bi().await.unwrap();
        let hello = Message::Hello(Hello {
            versions: vec![1],
            software: "bare".into(),
            unchecked: false,
            instance,
            repair: false,
            copies: false,
            moves,
            number: 1,
        });
        send.write_all(&hello.encode().unwrap()).await.unwrap();
        let mut bare = Self { connection, receive, _send: send };
        assert!(matches!(bare.next().await, Message::Welcome(_)));
        bare
    }

    async fn next(&mut self) -> Message {
        timeout(PATIENCE, self.read()).await.unwrap()
    }

    async fn read(&mut self) -> Message {
        let mut length = [0; LENGTH_SIZE];
        self.receive.read_exact(&mut length).await.unwrap();
        let mut body = vec![0; usize::from(u16::from_be_bytes(length))];
        self.receive.read_exact(&mut body).await.unwrap();
        Message::decode(&body).unwrap().unwrap()
    }

    /// Whether the client is told to go away, in time.
    async fn is_sent_away(&mut self) -> bool {
        match self.next().await {
            Message::GoAway(GoAway { within }) => within > 0 && within <= 1000 * SECONDS,
            other => panic!("{other:?}"),
        }
    }
}

fn begin(site: &Site, seconds: u32) {
    assert!(matches!(site.server.begin_drain(seconds), Reply::Done(_)));
}

/// How many clients that can move are still here, of how many that were told.
fn counts(site: &Site) -> (usize, usize) {
    let draining = site.server.drain.status().expect("it drains");
    (draining.here, draining.clients)
}

async fn is_over(site: &Site) -> bool {
    timeout(WHILE, site.server.drain.over()).await.is_ok()
}

#[tokio::test]
async fn a_client_with_another_server_is_sent_away_and_served_until_it_has_gone() {
    let mut site = Site::new();
    let mut client = Bare::new(&site, 1, true).await;
    begin(&site, SECONDS);
    assert!(client.is_sent_away().await);
    assert_eq!(counts(&site), (1, 1));
    client.connection.send_datagram(from_laptop()).unwrap();
    assert!(site.delivers().await);
    assert!(!is_over(&site).await);
    client.connection.close(close::GOODBYE, b"moved");
    assert!(is_over(&site).await);
    assert_eq!(counts(&site), (0, 1));
}

#[tokio::test]
async fn nobody_waits_for_a_client_without_another_server() {
    let site = Site::new();
    let mut client = Bare::new(&site, 1, false).await;
    assert!(!is_over(&site).await, "nothing is drained");
    begin(&site, SECONDS);
    assert!(is_over(&site).await);
    assert!(timeout(WHILE, client.read()).await.is_err(), "it is told nothing");
    assert_eq!(client.connection.close_reason(), None);
}

#[tokio::test]
async fn a_client_that_comes_meanwhile_is_welcomed_and_sent_away() {
    let site = Site::new();
    begin(&site, SECONDS);
    let mut client = Bare::new(&site, 1, true).await;
    assert!(client.is_sent_away().await);
    assert_eq!(counts(&site), (1, 1));
}

#[tokio::test]
async fn the_wait_ends_with_its_time() {
    let site = Site::new();
    let mut client = Bare::new(&site, 1, true).await;
    begin(&site, SECONDS);
    assert!(client.is_sent_away().await);
    // Whoever wants it to be over sooner says so again, and the client hears of that.
    begin(&site, 1);
    assert!(client.is_sent_away().await);
    timeout(PATIENCE, site.server.drain.over()).await.unwrap();
    assert_eq!(counts(&site), (1, 1));
}

#[tokio::test]
async fn a_server_that_serves_on_sends_nobody_away() {
    let site = Site::new();
    assert!(matches!(site.server.cancel_drain(), Reply::Error(_)), "nothing to cancel");
    begin(&site, SECONDS);
    assert!(matches!(site.server.cancel_drain(), Reply::Done(_)));
    let mut client = Bare::new(&site, 1, true).await;
    assert!(timeout(WHILE, client.read()).await.is_err());
    assert!(!is_over(&site).await);
}

#[tokio::test]
async fn a_stop_is_not_cancelled() {
    let site = Site::new();
    let mut client = Bare::new(&site, 1, true).await;
    begin(&site, 1);
    assert!(client.is_sent_away().await);
    site.server.drain.stop(clock::now() + PATIENCE);
    assert!(matches!(site.server.cancel_drain(), Reply::Error(_)), "somebody waits for the end");
    // The time that was given before is the shorter one, and stays.
    begin(&site, SECONDS);
    timeout(PATIENCE / 2, site.server.drain.over()).await.unwrap();
}

#[tokio::test]
async fn a_probe_of_a_process_that_is_elsewhere_is_refused_while_the_server_drains() {
    let site = Site::new();
    let _client = Bare::new(&site, 1, true).await;
    let (standby, reserve) = (site.probe().await, site.probe().await);
    assert!(ask(&standby, 1).await);
    assert!(!ask(&reserve, 2).await);
    begin(&site, SECONDS);
    assert_eq!(closed(&reserve).await, close::GOODBYE);
    assert!(ask(&standby, 1).await, "the session is here");
    let late = site.probe().await;
    late.send_datagram(Question { asked: 5, process: 2 }.encode()).unwrap();
    assert_eq!(closed(&late).await, close::GOODBYE);
}
