//! The control stream: the messages with which a session begins and is kept up to date.
//!
//! The client opens one bidirectional stream. Each message on it is a 16-bit big-endian length and
//! that many bytes of CBOR (RFC 8949): an array of the message's number and its body, a map with
//! small integers as keys. What a reader does not know (a message, a key) it skips, so that either
//! side can be upgraded first. A server that wants no session closes the connection and says why, see
//! [`crate::quic::close`].

use std::{fmt, str::FromStr};

use bytes::{BufMut, BytesMut};
use ipnet::IpNet;
use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};

use super::foreign::Foreign;

/// Versions of this protocol that we speak, best first.
pub(crate) const VERSIONS: [u16; 1] = [1];
/// Bytes of the length in front of each message.
pub(crate) const LENGTH_SIZE: usize = 2;
/// Bytes of the longest message with its length.
pub(crate) const LONGEST: usize = LENGTH_SIZE + u16::MAX as usize;

/// A message on the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Message {
    /// Client to server, first: what the client can do.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// Server to client: the session stands.
    #[n(1)]
    Welcome(#[n(0)] Welcome),
    /// Server to client, at any time: the server will stop, and serves this session until then.
    #[n(3)]
    GoAway(#[n(0)] GoAway),
    /// Client to server, at any time: whether bulk has to wait.
    #[n(4)]
    Bulk(#[n(0)] Bulk),
}

/// What the client can do.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// Protocol versions, best first.
    #[n(0)]
    pub versions: Vec<u16>,
    /// Name and version of the program, for people who read logs.
    #[n(1)]
    pub software: Foreign,
    /// Whether the client takes packets whose checksum is left to it.
    #[n(2)]
    #[cbor(default)]
    pub unchecked: bool,
    /// Drawn anew by each process: tells machines apart that have the same key.
    #[n(3)]
    pub instance: u64,
    /// Whether the client takes numbered packets, and repeats those that the server misses.
    #[n(4)]
    #[cbor(default)]
    pub repair: bool,
    /// Whether the client takes copies of numbered packets over its probe connections.
    #[n(6)]
    #[cbor(default)]
    pub copies: bool,
    /// Whether the client has another server to go to when this one will stop.
    #[n(7)]
    #[cbor(default)]
    pub moves: bool,
    /// Larger than in any hello that this process sent before, to whichever server: the session is where the last one went.
    #[n(8)]
    pub number: u64,
}

/// What the client must know to set up its side.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Welcome {
    /// The protocol version that the server chose.
    #[n(0)]
    pub version: u16,
    /// Name and version of the program, for people who read logs.
    #[n(1)]
    pub software: Foreign,
    /// The client's name in the server's configuration.
    #[n(2)]
    pub name: Foreign,
    /// The client's inner addresses, with the prefix length of the tunnel's network.
    #[n(3)]
    pub addresses: Vec<Net>,
    /// Networks behind the server, for a client that names none itself.
    #[n(4)]
    pub routes: Vec<Net>,
    /// The server's TUN MTU in bytes.
    #[n(5)]
    pub mtu: u16,
    /// Whether the server takes packets whose checksum is left to it.
    #[n(6)]
    #[cbor(default)]
    pub unchecked: bool,
    /// Resolvers behind the server, as text, for a client that names none itself.
    #[n(7)]
    #[cbor(default)]
    pub dns: Vec<String>,
    /// The domains that these are asked about.
    #[n(8)]
    #[cbor(default)]
    pub search_domains: Vec<String>,
    /// The server's own inner addresses, as text.
    #[n(9)]
    #[cbor(default)]
    pub server_addresses: Vec<String>,
    /// Whether the server takes numbered packets, and repeats those that the client misses.
    #[n(10)]
    #[cbor(default)]
    pub repair: bool,
    /// Whether the server takes copies of numbered packets over the client's probe connections.
    #[n(12)]
    #[cbor(default)]
    pub copies: bool,
    /// Whether the server holds bulk back when the client says so.
    #[n(13)]
    #[cbor(default)]
    pub holds_bulk: bool,
}

/// The server will stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct GoAway {
    /// How long it serves this session from here on, in milliseconds.
    #[n(0)]
    pub within: u32,
}

/// What becomes of bulk on its way to the client, whose link may be used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Bulk {
    /// Whether it is held back from here on; at first it is not.
    #[n(0)]
    pub held: bool,
}

/// An address with its prefix length, on the wire as text: `10.66.0.2/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net(pub IpNet);

impl<C> Encode<C> for Net {
    fn encode<W: encode::Write>(
        &self,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        encoder.str(&self.0.to_string())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Net {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let text = decoder.str()?;
        IpNet::from_str(text).map(Self).map_err(decode::Error::custom)
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a message cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The bytes are no message.
    #[error("malformed control message: {0}")]
    Malformed(#[from] decode::Error),
    /// The message cannot be written.
    #[error("control message cannot be encoded: {0}")]
    Encode(#[from] encode::Error<std::convert::Infallible>),
    /// The message does not fit a 16-bit length.
    #[error("control message of {0} bytes is larger than 65535")]
    TooLong(usize),
}

impl Message {
    /// The message with its length in front.
    pub fn encode(&self) -> Result<BytesMut, MessageError> {
        let body = minicbor::to_vec(self)?;
        let length = u16::try_from(body.len()).map_err(|_| MessageError::TooLong(body.len()))?;
        let mut bytes = BytesMut::with_capacity(LENGTH_SIZE + body.len());
        bytes.put_u16(length);
        bytes.put_slice(&body);
        Ok(bytes)
    }

    /// Reads a message without its length; `None` for one that a newer version brought.
    pub fn decode(body: &[u8]) -> Result<Option<Self>, MessageError> {
        match minicbor::decode(body) {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.is_unknown_variant() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod specification;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hello() -> Hello {
        Hello {
            versions: vec![1],
            software: "".into(),
            unchecked: false,
            instance: 1,
            repair: false,
            copies: false,
            moves: false,
            number: 1,
        }
    }

    fn net() -> impl Strategy<Value = Net> {
        prop_oneof![
            (any::<u32>(), 0u8..=32)
                .prop_map(|(bits, prefix)| (std::net::IpAddr::from(bits.to_be_bytes()), prefix)),
            (any::<u128>(), 0u8..=128)
                .prop_map(|(bits, prefix)| (std::net::IpAddr::from(bits.to_be_bytes()), prefix)),
        ]
        .prop_map(|(address, prefix)| Net(IpNet::new(address, prefix).unwrap()))
    }

    fn message() -> impl Strategy<Value = Message> {
        let nets = || proptest::collection::vec(net(), 0..5);
        prop_oneof![
            (
                proptest::collection::vec(any::<u16>(), 0..4),
                ".*",
                any::<[bool; 3]>(),
                any::<[u64; 2]>()
            )
                .prop_map(
                    |(versions, software, [unchecked, repair, moves], [instance, number])| {
                        let software = software.into();
                        Message::Hello(Hello {
                            versions,
                            software,
                            unchecked,
                            instance,
                            repair,
                            copies: repair,
                            moves,
                            number,
                        })
                    }
                ),
            any::<u32>().prop_map(|within| Message::GoAway(GoAway { within })),
            any::<bool>().prop_map(|held| Message::Bulk(Bulk { held })),
            (any::<u16>(), ".*", ".*", nets(), nets(), any::<u16>(), any::<[bool; 2]>(), nets())
                .prop_map(|(version, software, name, addresses, routes, mtu, flags, dns)| {
                    let [unchecked, repair] = flags;
                    Message::Welcome(Welcome {
                        version,
                        software: software.into(),
                        name: name.into(),
                        addresses,
                        routes,
                        mtu,
                        unchecked,
                        dns: dns.iter().map(|net| net.0.addr().to_string()).collect(),
                        search_domains: vec!["corp.example".into(); dns.len()],
                        server_addresses: vec!["10.66.0.1".into(); dns.len()],
                        repair,
                        copies: unchecked,
                        holds_bulk: repair,
                    })
                }),
        ]
    }

    proptest! {
        #[test]
        fn a_message_reads_as_it_was_written(message in message()) {
            let bytes = message.encode().unwrap();
            let (length, body) = bytes.split_at(LENGTH_SIZE);
            prop_assert_eq!(usize::from(u16::from_be_bytes([length[0], length[1]])), body.len());
            prop_assert_eq!(Message::decode(body).unwrap(), Some(message));
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(&bytes);
        }

        #[test]
        fn a_damaged_message_never_panics(
            message in message(),
            place in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut bytes = message.encode().unwrap();
            let place = place.index(bytes.len());
            bytes[place] = byte;
            let _ = Message::decode(&bytes[LENGTH_SIZE..]);
        }
    }

    #[test]
    fn unknown_keys_and_messages_of_a_newer_version_are_skipped() {
        // [99, [{}]] is a message that we do not know.
        assert_eq!(Message::decode(&[0x82, 0x18, 99, 0x81, 0xa0]).unwrap(), None);
        // [0, [{0: [1], 1: "x", 3: 1, 8: 1, 23: true}]] is a hello with a key that we do not know.
        let newer = [0x82, 0, 0x81, 0xa5, 0, 0x81, 1, 1, 0x61, b'x', 3, 1, 8, 1, 23, 0xf5];
        let hello = Hello { software: "x".into(), ..hello() };
        assert_eq!(Message::decode(&newer).unwrap(), Some(Message::Hello(hello)));
    }

    #[test]
    fn a_hello_names_its_process_and_its_number() {
        let with = |keys: &[u8]| {
            let mut hello = vec![0x82, 0, 0x81, 0xa2 + keys.len() as u8, 0, 0x81, 1, 1, 0x61, b'x'];
            hello.extend(keys.iter().flat_map(|key| [*key, 1]));
            Message::decode(&hello)
        };
        assert!(with(&[3, 8]).is_ok());
        assert!(with(&[3]).is_err() && with(&[8]).is_err());
    }

    #[test]
    fn the_name_of_a_server_is_printable_as_soon_as_it_is_read() {
        // [1, [{0: 1, 1: "a\n\x1b[0m", 2: "b\rc", 3: [], 4: [], 5: 1400}]]
        let raw = b"\x82\x01\x81\xa6\x00\x01\x01\x66a\n\x1b[0m\x02\x63b\rc\x03\x80\x04\x80\x05\x19\x05\x78";
        let Some(Message::Welcome(welcome)) = Message::decode(raw).unwrap() else {
            panic!("a welcome")
        };
        assert_eq!(welcome.software.as_str(), "a\\n\\u{1b}[0m");
        assert_eq!(welcome.name.as_str(), "b\\rc");
    }

    #[test]
    fn a_hello_is_what_the_specification_shows() {
        let hello = Message::Hello(Hello {
            versions: vec![1],
            software: "roamd 0.1.0".into(),
            unchecked: true,
            instance: 0x1234,
            repair: true,
            copies: true,
            moves: false,
            number: 3,
        });
        let shown =
            b"\x00\x22\x82\x00\x81\xa8\x00\x81\x01\x01\x6broamd 0.1.0\x02\xf5\x03\x19\x12\x34\x04\xf5\x06\xf5\x07\xf4\x08\x03";
        assert_eq!(hello.encode().unwrap()[..], shown[..]);
    }

    #[test]
    fn a_message_beyond_its_length_field_is_an_error() {
        let hello = Message::Hello(Hello { versions: vec![1000; 30_000], ..hello() });
        assert!(matches!(hello.encode(), Err(MessageError::TooLong(_))));
    }
}
