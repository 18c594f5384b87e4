//! `roamd network-manager`: what NetworkManager and its plugin for connection editors run.

use std::{
    io::{self, Read as _, Write as _},
    path::Path,
};

use anyhow::anyhow;
use zeroize::Zeroizing;

use super::exit::Exit;
use crate::{config::Items, networkmanager};

/// Serves a connection; or prints what a file's items are, or the file that items on standard input make.
///
/// Items are names and texts, each with a NUL after it; first those that may be seen, then an empty name, then secrets.
pub(crate) fn run(bus_name: String, import: Option<&Path>, export: bool) -> anyhow::Result<()> {
    if let Some(file) = import {
        let items = Items::of_file(file)?;
        return Ok(io::stdout().lock().write_all(&write(&items))?);
    }
    if export {
        let mut input = Zeroizing::new(Vec::new());
        io::stdin().lock().read_to_end(&mut input)?;
        let items =
            read(&input).ok_or_else(|| Exit::Data.because(anyhow!("these are no items")))?;
        let file = items.to_toml().map_err(|error| Exit::Data.because(anyhow!(error)))?;
        return Ok(io::stdout().lock().write_all(file.as_bytes())?);
    }
    networkmanager::serve(bus_name)
}

fn write(items: &Items) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::new());
    let mut put = |text: &str| {
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
    };
    for (name, text) in &items.data {
        put(name);
        put(text);
    }
    put("");
    for (name, text) in &items.secrets {
        put(name);
        put(text);
    }
    bytes
}

fn read(bytes: &[u8]) -> Option<Items> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (mut items, mut is_secret) = (Items::default(), false);
    let mut parts = text.split_terminator('\0');
    while let Some(name) = parts.next() {
        match name {
            "" => is_secret = true,
            name if is_secret => {
                items.secrets.insert(name.into(), parts.next()?.to_owned().into());
            }
            name => {
                items.data.insert(name.into(), parts.next()?.into());
            }
        }
    }
    Some(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_read_as_they_are_written() {
        let data = [("server.address".to_owned(), "a b".to_owned()), ("x".into(), String::new())];
        let secrets = [("private-key".to_owned(), "secret".to_owned().into())];
        let items = Items { data: data.into(), secrets: secrets.into() };
        let again = read(&write(&items)).unwrap();
        assert_eq!((again.data, again.secrets), (items.data, items.secrets));
        assert!(read(b"a name without a text\0").is_none());
    }
}
