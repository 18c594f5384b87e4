//! The same for the directory that several servers share: each change is a transaction, which two at once cannot make.

use std::{
    fs,
    io::{self, Write as _},
    net::IpAddr,
    path::Path,
};

use anyhow::{anyhow, bail, ensure};

use super::{Add, addresses_of, client, free_addresses, show};
use crate::{
    cli::exit::Exit,
    config::{self, DirectoryFile, Etcd},
    fleet::admin::Directory,
};

/// What `path` says, and the directory that it names.
fn open(path: &Path) -> anyhow::Result<(DirectoryFile, Etcd)> {
    let file = config::load_directory(path)?;
    match &file.directory {
        Some(directory) => {
            let etcd = directory.etcd.clone();
            Ok((file, etcd))
        }
        None => {
            Err(Exit::Config
                .because(anyhow!("{} names no [directory] of a server", path.display())))
        }
    }
}

fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

pub(super) fn add(add: &Add, path: &Path) -> anyhow::Result<()> {
    let (DirectoryFile { networks, server, fleet, .. }, etcd) = open(path)?;
    let (shown, in_file) = (path.display(), server.as_ref().map(addresses_of).unwrap_or_default());
    let mut peers = server.iter().flat_map(|server| &server.peers);
    ensure!(peers.all(|it| it.name != add.name), "{shown} has a peer called {} already", add.name);
    for address in &add.address {
        if let Some(why) = config::misplaced(*address, &networks) {
            bail!("{address} {why}");
        }
        ensure!(!in_file.contains(address), "{shown} has {address} already");
    }
    let (key, public_key) = add.key()?;
    let servers = add.servers(&fleet, server.as_ref(), path)?;
    let text = client::toml(&servers, key.as_ref(), &add.route);
    if let Some(output) = &add.output {
        client::write_new(output, &text)?;
    }
    let own = networks.iter().map(ipnet::IpNet::addr);
    let in_file: Vec<IpAddr> = in_file.iter().copied().chain(own).collect();
    let added = block_on(async {
        let choose = |taken: &std::collections::HashSet<IpAddr>| match add.address.is_empty() {
            true => free_addresses(&networks, &taken.iter().chain(&in_file).copied().collect()),
            false => Ok(add.address.clone()),
        };
        Directory::new(&etcd).add(&add.name, public_key, choose).await
    });
    let peer = added.inspect_err(|_| {
        if let Some(output) = &add.output {
            let _ = fs::remove_file(output);
        }
    })?;
    if add.output.is_none() {
        add.print(&text)?;
    }
    Ok(add.say(&peer, &etcd.prefix, &mut io::stderr().lock())?)
}

pub(super) fn list(path: &Path) -> anyhow::Result<()> {
    let (_, etcd) = open(path)?;
    let (peers, passed_over) = block_on(async { Directory::new(&etcd).list().await })?;
    show(&peers)?;
    let mut stderr = io::stderr().lock();
    for it in passed_over {
        writeln!(stderr, "roamd: warning: not used: {}: {}", it.record, it.reason)?;
    }
    Ok(())
}

pub(super) fn remove(name: &str, path: &Path) -> anyhow::Result<()> {
    let (_, etcd) = open(path)?;
    let called = block_on(async { Directory::new(&etcd).remove(name).await })?;
    Ok(writeln!(io::stderr().lock(), "{called} is not in {} any more", etcd.prefix)?)
}

pub(super) fn confirm(path: &Path) -> anyhow::Result<()> {
    let (_, etcd) = open(path)?;
    let count = block_on(async { Directory::new(&etcd).confirm().await })?;
    let prefix = etcd.prefix;
    Ok(writeln!(io::stderr().lock(), "all servers take {prefix} as it is, with {count} peers")?)
}
