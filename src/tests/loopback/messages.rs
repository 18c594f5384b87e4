//! The control stream over real connections, with one side that is no roamd.

use bytes::BytesMut;
use quinn::{RecvStream, SendStream};

use super::*;
use crate::{
    quic::session::MessageStream,
    wire::message::{Hello, LENGTH_SIZE, Message},
};

/// Longer than a byte is on its way through this machine.
const CUT: Duration = Duration::from_millis(3);
/// `[99, [{}]]` with its length, a message of a newer version.
const NEWER: &[u8] = b"\x00\x05\x82\x18\x63\x81\xa0";
const MALFORMED: &[u8] = b"\x00\x01\xff";

/// roamd on one side, the bare stream on the other.
struct Bare {
    _client: Client,
    messages: MessageStream,
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
}

/// Connects; the server takes `window` bytes of the stream before it reads.
async fn connect(window: u32) -> (Client, Connection, Connection) {
    let (server_key, client_key) =
        (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let mut transport = quic::transport(&quic_settings(), TUN_MTU, CongestionHandle::default());
    transport.stream_receive_window(window.into());
    let listen = "127.0.0.1:0".parse().unwrap();
    let endpoint = server_endpoint_with(&server_key, listen, transport);
    let client = Client::new(&client_key, server_key.public_key(), endpoint.local_addr().unwrap());
    let accepted = tokio::spawn(async move { endpoint.accept().await.unwrap().await.unwrap() });
    let here = client.connect().await.unwrap();
    (client, here, accepted.await.unwrap())
}

/// A client of ours and a server that has welcomed it.
async fn bare_server(window: u32) -> Bare {
    let (client, here, there) = connect(window).await;
    let greet = async {
        let (mut send, mut receive) = there.accept_bi().await.unwrap();
        read(&mut receive).await;
        send.write_all(&Message::Welcome(welcome(1)).encode().unwrap()).await.unwrap();
        (send, receive)
    };
    let (opened, (send, receive)) = tokio::join!(session::open(&here, true, 1), greet);
    let (messages, _) = opened.unwrap();
    Bare { _client: client, messages, connection: there, send, receive }
}

/// A server of ours and a client that has said hello.
async fn bare_client() -> Bare {
    let (client, here, there) = connect(1000).await;
    let (mut send, receive) = here.open_bi().await.unwrap();
    send.write_all(&hello().encode().unwrap()).await.unwrap();
    let accepted = session::accept(&there, |version, _| Some(welcome(version))).await;
    let (messages, _) = accepted.unwrap();
    Bare { _client: client, messages, connection: here, send, receive }
}

fn hello() -> Message {
    message(0)
}

/// One of many messages.
fn message(number: u64) -> Message {
    Message::Hello(Hello {
        versions: vec![1],
        software: "bare".into(),
        unchecked: false,
        instance: number,
        repair: true,
        copies: true,
        moves: false,
        number: 1,
    })
}

async fn read(stream: &mut RecvStream) -> Message {
    let mut length = [0; LENGTH_SIZE];
    stream.read_exact(&mut length).await.unwrap();
    let mut body = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut body).await.unwrap();
    Message::decode(&body).unwrap().unwrap()
}

async fn reason(connection: &Connection) -> (quinn::VarInt, Bytes) {
    match timeout(PATIENCE, connection.closed()).await.unwrap() {
        ConnectionError::ApplicationClosed(closed) => (closed.error_code, closed.reason),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_read_that_is_cancelled_at_every_byte_loses_nothing() {
    let sent = [message(7), message(300)];
    let mut stream = BytesMut::new();
    for message in &sent {
        stream.extend_from_slice(NEWER);
        stream.extend_from_slice(&message.encode().unwrap());
    }
    for mut bare in [bare_server(1000).await, bare_client().await] {
        let mut received = Vec::new();
        for byte in &stream {
            bare.send.write_all(&[*byte]).await.unwrap();
            while let Ok(message) = timeout(CUT, bare.messages.received()).await {
                received.push(message);
            }
        }
        assert_eq!(received, sent);
    }
}

#[tokio::test]
async fn a_malformed_message_ends_the_session_with_a_reason() {
    for mut bare in [bare_server(1000).await, bare_client().await] {
        bare.send.write_all(MALFORMED).await.unwrap();
        tokio::select! {
            message = bare.messages.received() => panic!("{message:?}"),
            (code, reason) = reason(&bare.connection) => {
                assert_eq!((code, &reason[..]), (close::PROTOCOL, &b"malformed control message"[..]));
            }
        }
    }
}

#[tokio::test]
async fn a_session_outlives_the_end_of_its_stream() {
    for mut bare in [bare_server(1000).await, bare_client().await] {
        bare.send.finish().unwrap();
        assert!(timeout(20 * CUT, bare.messages.received()).await.is_err());
        assert!(timeout(CUT, bare.messages.received()).await.is_err(), "the same when asked again");
        assert_eq!(bare.connection.close_reason(), None);
    }
}

#[tokio::test]
async fn messages_wait_for_a_server_that_reads_late_without_blocking_the_client() {
    let mut bare = bare_server(100).await;
    let sent: Vec<_> = (0..200).map(message).collect();
    sent.iter().for_each(|message| bare.messages.tell(message));
    assert!(timeout(20 * CUT, bare.messages.received()).await.is_err());
    assert_eq!(bare.connection.close_reason(), None);
    let mut received = Vec::new();
    let read_all = async {
        while received.len() < sent.len() {
            received.push(read(&mut bare.receive).await);
        }
    };
    tokio::select! {
        message = bare.messages.received() => panic!("{message:?}"),
        read = timeout(PATIENCE, read_all) => read.unwrap(),
    }
    assert_eq!(received, sent);
}

#[tokio::test]
async fn a_server_that_never_reads_loses_the_connection() {
    let mut bare = bare_server(100).await;
    for number in 0..10_000 {
        bare.messages.tell(&message(number));
    }
    let (code, reason) = reason(&bare.connection).await;
    assert_eq!((code, &reason[..]), (close::PROTOCOL, &b"no credit for a control message"[..]));
}
