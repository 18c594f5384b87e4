//! Tables of the firewall, through nft(8): in its own language they read as an admin reads them.

use std::{
    fmt::Write as _,
    io,
    process::{Output, Stdio},
    time::Duration,
};

use futures_util::FutureExt as _;
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, TokioSocket, protocols::NETLINK_NETFILTER,
};
use serde_json::Value;
use tokio::{io::AsyncWriteExt as _, process::Command, time};

use crate::wire::foreign::Foreign;

/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h.
const NFTABLES: u32 = 7;
/// As much of a message as is read.
const MESSAGE: usize = 4096;
/// How long nft(8) may take. It takes milliseconds.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a daemon that stops waits for it.
pub(crate) const STOP: Duration = Duration::from_secs(1);

/// Why nft(8) did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NftError {
    #[error("cannot run nft (is nftables installed?): {0}")]
    Start(io::Error),
    #[error("cannot talk to nft: {0}")]
    Talk(io::Error),
    #[error("nft does not answer")]
    Timeout,
    #[error("nft refuses: {0}")]
    Refused(Foreign),
}

impl NftError {
    /// The system's error, if nft could not be started.
    pub(crate) fn io_error(&self) -> Option<&io::Error> {
        match self {
            Self::Start(error) | Self::Talk(error) => Some(error),
            Self::Timeout | Self::Refused(_) => None,
        }
    }
}

/// The name of the one table that the tunnel on `interface` has (family `inet`). Other tools leave it alone. No two
/// interfaces have the same: what nft does not take in a name, and `_` itself, is `_` and its bytes in hexadecimal.
#[must_use]
pub(crate) fn table(interface: &str) -> String {
    let mut table = String::from("roamd-");
    for byte in interface.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            table.push(byte.into());
        } else {
            let _ = write!(table, "_{byte:02x}");
        }
    }
    table
}

/// Puts these chains in place of all that the table has, at once.
pub(crate) async fn replace(table: &str, chains: &str) -> Result<(), NftError> {
    run(&format!(
        "table inet {table} {{}}\ndelete table inet {table}\ntable inet {table} {{\n{chains}}}\n"
    ))
    .await
}

/// Deletes the table, if it is there.
pub(crate) async fn delete(table: &str) -> Result<(), NftError> {
    run(&format!("table inet {table} {{}}\ndelete table inet {table}\n")).await
}

/// The same work, for no longer than this.
pub(crate) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, NftError>>,
) -> Result<T, NftError> {
    time::timeout(limit, work).await.map_err(|_elapsed| NftError::Timeout)?
}

/// The table with the handles of its rules and without its counters, as nft(8) shows it; `None` where there is
/// no such table. Any change to the table makes another text.
pub(crate) async fn listing(table: &str) -> Result<Option<String>, NftError> {
    let output = ask(&["--stateless", "--handle", "list", "table", "inet", table]).await?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// All rules of this host, as libnftables-json(5) has them.
pub(crate) async fn ruleset() -> Result<Value, NftError> {
    let output = ask(&["--json", "list", "ruleset"]).await?;
    check(&output)?;
    serde_json::from_slice(&output.stdout).map_err(|error| NftError::Talk(error.into()))
}

async fn ask(arguments: &[&str]) -> Result<Output, NftError> {
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    within(LIMIT, async { command.output().await.map_err(NftError::Start) }).await
}

/// Hears of changes to tables, also those that other programs make.
pub(crate) struct Changes(TokioSocket);

impl Changes {
    /// Listens to `NFNLGRP_NFTABLES` of netlink(7) from here on.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(NFTABLES)?;
        Ok(Self(socket))
    }

    /// Returns after a change, and takes all that was told so far. Cancel safe.
    pub(crate) async fn next(&mut self) {
        let mut message = Vec::with_capacity(MESSAGE);
        // What was lost for want of room (ENOBUFS) is a change, too.
        let _ = self.0.recv(&mut message).await;
        message.clear();
        while let Some(Ok(())) = self.0.recv(&mut message).now_or_never() {
            message.clear();
        }
    }
}

async fn run(script: &str) -> Result<(), NftError> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut nft = command.spawn().map_err(NftError::Start)?;
    let talk = async {
        if let Some(mut stdin) = nft.stdin.take() {
            stdin.write_all(script.as_bytes()).await?;
        }
        nft.wait_with_output().await
    };
    let output = within(LIMIT, async { talk.await.map_err(NftError::Talk) }).await?;
    check(&output)
}

fn check(output: &Output) -> Result<(), NftError> {
    if output.status.success() {
        return Ok(());
    }
    let complaint = output.stderr.split(|byte| *byte == b'\n').next();
    Err(NftError::Refused(Foreign::from(complaint.unwrap_or(b"without a word"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_interface_has_a_table_of_its_own_under_a_name_that_nft_takes() {
        assert_eq!(table("roam0"), "roamd-roam0");
        let names = ["a.b", "a_b", "a-b", "a_2eb", "ä", "a;b"];
        let tables: std::collections::BTreeSet<_> = names.iter().map(|it| table(it)).collect();
        assert_eq!(tables.len(), names.len(), "{tables:?}");
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        assert!(tables.iter().all(|it| it.chars().all(is_plain)), "{tables:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_stops_does_not_wait_long_for_nft() {
        let begun = time::Instant::now();
        let stuck = within(STOP, within(LIMIT, std::future::pending::<Result<(), _>>())).await;
        assert!(matches!(stuck, Err(NftError::Timeout)), "{stuck:?}");
        assert_eq!(begun.elapsed().as_secs(), 1);
    }
}
