//! `roamd network-manager`: what NetworkManager and its plugin for connection editors run; `roamd network-manager-dialog`:
//! what its agents run.

use std::{
    fs::File,
    io::{self, Read, Write as _},
    os::fd::AsFd as _,
    path::Path,
};

use anyhow::anyhow;
use zeroize::Zeroizing;

use super::exit::Exit;
use crate::{
    config::Items,
    daemon,
    networkmanager::{
        self,
        dialog::{self, Question},
    },
};

/// What agents say to the dialogs of all VPNs.
#[derive(Debug, clap::Args)]
pub struct Dialog {
    /// The connection's name
    #[arg(short, long, default_value = "", allow_hyphen_values = true)]
    name: String,
    /// The connection's UUID
    #[arg(short, long, allow_hyphen_values = true)]
    uuid: Option<String>,
    /// The name of the VPN's service
    #[arg(short, long, allow_hyphen_values = true)]
    service: Option<String>,
    /// There is a person to ask
    #[arg(short = 'i', long)]
    allow_interaction: bool,
    /// What the agent keeps is wrong
    #[arg(short, long)]
    reprompt: bool,
    /// A secret that the service asks for, or what it has to say
    #[arg(short = 't', long, allow_hyphen_values = true)]
    hint: Vec<String>,
    /// The agent has a window of its own
    #[arg(long)]
    external_ui_mode: bool,
}

/// Answers the agent that has a connection on standard input.
pub(crate) fn answer(asked: Dialog) -> anyhow::Result<()> {
    daemon::guard_memory()?;
    if !asked.external_ui_mode {
        let why =
            anyhow!("roamd has no window to ask in: use an agent that has, such as nmcli --ask");
        return Err(Exit::Usage.because(why));
    }
    let question = Question {
        name: asked.name,
        hints: asked.hint,
        may_ask: asked.allow_interaction,
        is_again: asked.reprompt,
    };
    // Standard input and output have buffers of their own, which nobody wipes.
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let connection = connection(input)?;
    let text = str::from_utf8(&connection).map_err(|error| Exit::Data.because(error))?;
    Ok(output.write_all(question.answer(text).as_bytes())?)
}

/// Reads up to the end of the connection: some agents leave the pipe open.
fn connection(mut input: impl Read) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    // It does not grow: what it grew out of would not be wiped.
    let mut bytes = Zeroizing::new(vec![0; dialog::LONGEST]);
    let mut len = 0;
    loop {
        if len == bytes.len() {
            let why = anyhow!("the connection is longer than {len} bytes");
            return Err(Exit::Data.because(why));
        }
        let read = input.read(&mut bytes[len..])?;
        len += read;
        if read == 0 || dialog::is_whole(&bytes[..len]) {
            bytes.truncate(len);
            return Ok(bytes);
        }
    }
}

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
    fn a_connection_is_read_to_its_end_and_no_further() {
        let mut input = b"DATA_KEY=a\n".chain(&b"DATA_VAL=b\n\nDONE\n"[..]).chain(io::repeat(b'x'));
        assert_eq!(*connection(&mut input).unwrap(), b"DATA_KEY=a\nDATA_VAL=b\n\nDONE\n");
        assert_eq!(*connection(&b"DATA_KEY=a"[..]).unwrap(), b"DATA_KEY=a");
        let endless = connection(io::repeat(b'x')).unwrap_err();
        assert_eq!(Exit::of(&endless), Some(Exit::Data));
    }

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
