//! Where a server's peers are beside its file: `[directory]`.

use std::fs::File;
use std::path::{Path, PathBuf};

use hyper::Uri;
use nix::sys::utsname::uname;

use super::{
    Directory, Etcd,
    check::{self, Unique, elements},
    keys,
    problem::Problems,
    raw::{RawDirectory, RawEtcd},
    rights,
};
use crate::identity::PrivateKey;

/// The length of a prefix in bytes at most.
const MOST_PREFIX: usize = 200;
const ENDPOINTS: &str = "directory.etcd.endpoints";
const CA: &str = "directory.etcd.ca";
const CERT: &str = "directory.etcd.cert";
const KEY: &str = "directory.etcd.key";

/// Fills in every default in `raw`. Paths start from the folder of `file`.
pub(super) fn build(
    raw: &mut RawDirectory,
    file: &Path,
    problems: &mut Problems,
) -> Option<Directory> {
    if raw.name.is_none() {
        raw.name = uname().ok().and_then(|it| it.nodename().to_str().map(ToOwned::to_owned));
    }
    let name = problems.require("directory.name", raw.name.clone());
    let name = problems.accept("directory.name", name, |name| check::is_name(name));
    let etcd = problems.require("directory.etcd", raw.etcd.as_mut());
    let etcd = etcd.and_then(|raw| etcd_of(raw, file, problems));
    let folder = file.parent().unwrap_or(Path::new("/"));
    let ticket_key_file = ticket_key_file(&mut raw.ticket_key_file, folder, problems);
    Some(Directory { name: name?, etcd: etcd?, ticket_key_file })
}

fn etcd_of(raw: &mut RawEtcd, file: &Path, problems: &mut Problems) -> Option<Etcd> {
    problems.require_some(ENDPOINTS, &raw.endpoints);
    let mut taken = Unique::new();
    let mut endpoints = Vec::new();
    for (key, url) in elements(ENDPOINTS, &raw.endpoints) {
        let Some(url) = problems.accept(&key, Some(url), |url| is_endpoint(url)) else { continue };
        taken.claim(url.clone(), &key, problems);
        endpoints.push(url);
    }
    let prefix = problems.require("directory.etcd.prefix", raw.prefix.clone());
    let prefix = problems.accept("directory.etcd.prefix", prefix, |it| is_prefix(it));
    let folder = file.parent().unwrap_or(Path::new("/"));
    let [ca, cert, key] = [(CA, &mut raw.ca), (CERT, &mut raw.cert), (KEY, &mut raw.key)]
        .map(|(name, written)| there(name, written, folder, problems));
    if let Some(key) = &key {
        let remedy = "make another key if they are not to be trusted with this one";
        check::keep_secret(KEY, key, remedy, problems);
    }
    let secure = endpoints.iter().filter(|url| url.starts_with("https://")).count();
    match (secure, &ca) {
        (0, Some(_)) => problems.add(CA, None, "needs endpoints with https://"),
        (1.., None) => problems.add(CA, None, "is missing, and the endpoints have https://"),
        _ => {}
    }
    if secure > 0 && secure < endpoints.len() {
        problems.add(ENDPOINTS, None, "has both https:// and http://");
    }
    match (&cert, &key) {
        (Some(_), None) => problems.add(KEY, None, "is missing beside directory.etcd.cert"),
        (None, Some(_)) => problems.add(CERT, None, "is missing beside directory.etcd.key"),
        (Some(_), Some(_)) if ca.is_none() => {
            problems.add(CERT, None, "needs directory.etcd.ca");
        }
        _ => {}
    }
    Some(Etcd { endpoints, prefix: prefix?, ca, cert, key })
}

/// The absolute path of a file with a key that this process can read.
fn ticket_key_file(
    written: &mut Option<PathBuf>,
    folder: &Path,
    problems: &mut Problems,
) -> Option<PathBuf> {
    let path = folder.join(written.take()?);
    if let Err(error) = PrivateKey::load(&path) {
        check::unusable(keys::TICKET_KEY_FILE, &error, problems);
    }
    Some(written.insert(path).clone())
}

fn is_endpoint(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let is_host =
        uri.authority().is_some_and(|it| !it.host().is_empty() && !it.as_str().contains('@'));
    is_http && is_host && uri.path_and_query().is_none_or(|it| it.as_str() == "/")
}

fn is_prefix(prefix: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    let names = prefix.strip_prefix('/').map(|rest| rest.split('/'));
    prefix.len() <= MOST_PREFIX && names.is_some_and(|mut names| names.all(is_name))
}

/// The absolute path of a file, which this process can open.
fn there(
    name: &str,
    written: &mut Option<PathBuf>,
    folder: &Path,
    problems: &mut Problems,
) -> Option<PathBuf> {
    let path = folder.join(written.take()?);
    if let Err(error) = File::open(&path) {
        let advice = rights::advice(&path, &error).map(|advice| format!(": {advice}"));
        let shown = path.display();
        let reason = format!("cannot be used: {shown}: {error}{}", advice.unwrap_or_default());
        problems.add(name, None, reason);
    }
    Some(written.insert(path).clone())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::config::Origin;

    #[test]
    fn endpoints_are_urls_without_a_path() {
        for good in ["http://127.0.0.1:2379", "https://etcd.example.net:2379/", "http://[::1]"] {
            assert!(is_endpoint(good), "{good}");
        }
        for bad in ["", "etcd:2379", "ftp://etcd", "http://u:p@etcd", "http://etcd/v3", "http://"] {
            assert!(!is_endpoint(bad), "{bad}");
        }
    }

    #[test]
    fn a_prefix_begins_with_a_slash_and_ends_without() {
        for good in ["/roamd", "/roamd/home", "/r/o/a/m-d_1"] {
            assert!(is_prefix(good), "{good}");
        }
        for bad in ["", "/", "roamd", "/roamd/", "/a//b", "/a b", "/ä", &"/a".repeat(101)] {
            assert!(!is_prefix(bad), "{bad}");
        }
    }

    /// What is said of these values; `key.pem` can be read by others.
    fn said(etcd: RawEtcd) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, mode) in [("ca.pem", 0o644), ("key.pem", 0o644), ("own.pem", 0o600)] {
            fs::write(folder.path().join(name), "").unwrap();
            fs::set_permissions(folder.path().join(name), Permissions::from_mode(mode)).unwrap();
        }
        let mut problems = Problems::default();
        let mut raw = RawDirectory {
            name: Some("berlin".into()),
            etcd: Some(etcd),
            ticket_key_file: None,
            server: None,
        };
        let found = build(&mut raw, &folder.path().join("home.toml"), &mut problems);
        let problems = problems.into_vec(|_| (Origin::File { line: None }, true));
        assert!(found.is_some() || !problems.is_empty());
        problems.iter().map(|it| format!("{} {}", it.key, it.reason)).collect()
    }

    fn etcd(endpoints: &[&str], [ca, cert, key]: [&str; 3]) -> RawEtcd {
        let file = |name: &str| (!name.is_empty()).then(|| name.into());
        RawEtcd {
            endpoints: Some(endpoints.iter().map(|url| Some((*url).to_owned())).collect()),
            prefix: Some("/roamd/home".into()),
            ca: file(ca),
            cert: file(cert),
            key: file(key),
        }
    }

    #[test]
    fn certificates_and_urls_belong_together() {
        const HTTPS: &str = "https://10.0.0.1:2379";
        const HTTP: &str = "http://10.0.0.2:2379";
        let all = ["ca.pem", "ca.pem", "own.pem"];
        for (endpoints, files) in
            [(&[HTTPS][..], all), (&[HTTPS], ["ca.pem", "", ""]), (&[HTTP], [""; 3])]
        {
            assert_eq!(said(etcd(endpoints, files)), Vec::<String>::new(), "{endpoints:?}");
        }
        for (endpoints, files, expected) in [
            (&[HTTPS][..], [""; 3], "directory.etcd.ca is missing"),
            (&[HTTP], ["ca.pem", "", ""], "directory.etcd.ca needs endpoints with https://"),
            (&[HTTPS, HTTP], all, "directory.etcd.endpoints has both"),
            (&[HTTPS, HTTPS], all, "directory.etcd.endpoints[1] is already used"),
            (&[HTTPS], ["ca.pem", "ca.pem", ""], "directory.etcd.key is missing"),
            (&[HTTPS], ["ca.pem", "", "own.pem"], "directory.etcd.cert is missing"),
            (&[HTTPS], ["ca.pem", "ca.pem", "key.pem"], "directory.etcd.key can be read by others"),
            (&[HTTPS], ["none.pem", "", ""], "directory.etcd.ca cannot be used: "),
            (&[], [""; 3], "directory.etcd.endpoints must hold at least one element"),
        ] {
            let said = said(etcd(endpoints, files));
            assert!(said.len() == 1 && said[0].starts_with(expected), "{expected}: {said:?}");
        }
        let without_prefix = RawEtcd { prefix: None, ..etcd(&[HTTP], [""; 3]) };
        assert!(said(without_prefix)[0].starts_with("directory.etcd.prefix "));
    }
}
