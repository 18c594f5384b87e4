//! Holds `docs/protocol.md` true: its CDDL has each message and each key, with the type that is on the wire.

use std::collections::BTreeMap;

use minicbor::{Decoder, data::Type};

use super::*;

/// A key of a message.
#[derive(Debug, PartialEq, Eq)]
struct Field {
    kind: Kind,
    is_optional: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Uint,
    Text,
    Bool,
    Array,
}

impl Kind {
    /// Of a CDDL type.
    fn specified(name: &str) -> Self {
        match name.split(' ').next().unwrap() {
            "uint" => Self::Uint,
            "tstr" | "net" => Self::Text,
            "bool" => Self::Bool,
            "[*" | "[+" => Self::Array,
            other => panic!("{other}"),
        }
    }

    /// Of the value that comes next.
    fn written(body: &Decoder<'_>) -> Self {
        match body.datatype().unwrap() {
            Type::U8 | Type::U16 | Type::U32 | Type::U64 => Self::Uint,
            Type::String => Self::Text,
            Type::Bool => Self::Bool,
            Type::Array => Self::Array,
            other => panic!("{other}"),
        }
    }
}

/// Each message with every key and no default.
fn samples() -> Vec<Message> {
    let nets = || vec![Net("10.66.0.2/24".parse().unwrap())];
    let texts = || vec!["x".to_owned()];
    vec![
        Message::Hello(Hello {
            versions: vec![1],
            software: "x".into(),
            unchecked: true,
            instance: 1,
            repair: true,
            copies: true,
            moves: true,
            number: 1,
        }),
        Message::Welcome(Welcome {
            version: 1,
            software: "x".into(),
            name: "x".into(),
            addresses: nets(),
            routes: nets(),
            mtu: 1400,
            unchecked: true,
            dns: texts(),
            search_domains: texts(),
            server_addresses: texts(),
            repair: true,
            copies: true,
            holds_bulk: true,
        }),
        Message::GoAway(GoAway { within: 1 }),
        Message::Bulk(Bulk { held: true }),
    ]
}

/// The name in the CDDL.
fn name(message: &Message) -> &'static str {
    match message {
        Message::Hello(_) => "hello",
        Message::Welcome(_) => "welcome",
        Message::GoAway(_) => "goaway",
        Message::Bulk(_) => "bulk",
    }
}

/// The messages of the CDDL by name: number and keys.
fn specified() -> BTreeMap<String, (u32, BTreeMap<u32, Field>)> {
    let page = include_str!("../../../docs/protocol.md");
    let block = page.split("```").find(|block| block.contains("message = ")).unwrap();
    let lines: Vec<_> =
        block.lines().map(|line| line.split(';').next().unwrap().trim_end()).collect();
    let choices = lines.iter().find_map(|line| line.strip_prefix("message = ")).unwrap();
    let rule = |name: &str| {
        let is_rule = |line: &&str| line.split('=').next().unwrap().trim() == name;
        let at = lines.iter().position(is_rule).unwrap_or_else(|| panic!("{name}"));
        let number = lines[at].split(['[', ',']).nth(1).unwrap().parse().unwrap();
        let body = lines[at + 1..].iter().take_while(|line| line.trim() != "}]]");
        let fields = body.map(|line| {
            let (key, kind) = line.split_once(": ").unwrap();
            let (is_optional, key) = match key.trim().strip_prefix('?') {
                Some(key) => (true, key.trim()),
                None => (false, key.trim()),
            };
            let kind = Kind::specified(kind.trim_end_matches(','));
            (key.parse().unwrap(), Field { kind, is_optional })
        });
        (number, fields.collect())
    };
    choices.split(" / ").map(|name| (name.to_owned(), rule(name))).collect()
}

/// Number and keys of an encoded message, with the bytes of each value.
fn read(message: &Message) -> (u32, BTreeMap<u32, (Kind, Vec<u8>)>) {
    let encoded = message.encode().unwrap();
    let body = &encoded[LENGTH_SIZE..];
    let mut decoder = Decoder::new(body);
    decoder.array().unwrap();
    let number = decoder.u32().unwrap();
    decoder.array().unwrap();
    let count = decoder.map().unwrap().unwrap();
    let entry = |_| {
        let key = decoder.u32().unwrap();
        let kind = Kind::written(&decoder);
        let from = decoder.position();
        decoder.skip().unwrap();
        (key, (kind, body[from..decoder.position()].to_vec()))
    };
    (number, (0..count).map(entry).collect())
}

/// A body with these keys and values.
fn body<'a>(number: u32, entries: impl Iterator<Item = (&'a u32, &'a Vec<u8>)>) -> Vec<u8> {
    let entries: Vec<_> = entries.collect();
    let mut encoder = Encoder::new(Vec::new());
    encoder.array(2).unwrap().u32(number).unwrap().array(1).unwrap();
    encoder.map(entries.len() as u64).unwrap();
    for (key, value) in entries {
        encoder.u32(*key).unwrap();
        encoder.writer_mut().extend_from_slice(value);
    }
    encoder.into_writer()
}

#[test]
fn the_specification_has_every_message_with_its_keys() {
    let mut specified = specified();
    for message in samples() {
        let (number, entries) = read(&message);
        let name = name(&message);
        let (its_number, fields) = specified.remove(name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(number, its_number, "{name}");
        let kinds: Vec<_> = entries.iter().map(|(key, (kind, _))| (*key, *kind)).collect();
        let expected: Vec<_> = fields.iter().map(|(key, field)| (*key, field.kind)).collect();
        assert_eq!(kinds, expected, "{name}");
        for (left_out, field) in &fields {
            let others = entries.iter().filter(|(key, _)| *key != left_out);
            let body = body(number, others.map(|(key, (_, value))| (key, value)));
            let read = Message::decode(&body);
            assert_eq!(read.is_ok(), field.is_optional, "{name} without {left_out}: {read:?}");
        }
    }
    assert!(specified.is_empty(), "no such message: {specified:?}");
}

#[test]
fn every_message_that_is_read_has_a_sample_here() {
    let known = (0..1000).filter(|number| {
        let empty = body(*number, std::iter::empty());
        !matches!(Message::decode(&empty), Ok(None))
    });
    let samples: Vec<_> = samples().iter().map(|message| read(message).0).collect();
    assert_eq!(known.collect::<Vec<_>>(), samples);
}
