//! The store against a real etcd, as Debian has it.

use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use nix::sys::{prctl::set_pdeathsig, signal::Signal};
use roamd_lab::etcd::Member;
use tempfile::TempDir;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Known, Standing, admin,
    cache::Cache,
    directory::Directory,
    entry::{Change, Snapshot},
    etcd::{
        Compare, Store, StoreError, Write,
        follow::{Follow, News},
    },
    record::ServerRecord,
};
use crate::{clock, config::Etcd, identity::PublicKey};

const PATIENCE: Duration = Duration::from_secs(20);

/// A cluster of etcd on this machine, which ends with this.
pub(super) struct Cluster {
    pub(super) members: Vec<Member>,
    running: Vec<Option<Running>>,
    _folder: TempDir,
}

/// A process that ends as by a power cut when this is dropped.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: prctl(2) allocates nothing and takes no lock.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        Self(command.spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Cluster {
    /// Runs so many members, and waits until they answer.
    pub(super) async fn of(count: usize) -> Self {
        for _ in 0..3 {
            let mut cluster = Self::begin(count);
            let store = cluster.store();
            let answers = async {
                while store.read("").await.is_err() {
                    if cluster.has_ended() {
                        return false;
                    }
                    sleep(Duration::from_millis(50)).await;
                }
                true
            };
            if timeout(PATIENCE, answers).await == Ok(true) {
                return cluster;
            }
            // A port may be somebody else's by now.
        }
        panic!("etcd does not begin");
    }

    fn begin(count: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let local = roamd_lab::etcd::loopback();
        let members = Member::cluster(count, folder.path(), local).unwrap();
        let mut cluster =
            Self { members, running: (0..count).map(|_| None).collect(), _folder: folder };
        for member in 0..count {
            cluster.start(member);
        }
        cluster
    }

    /// Whether a member ended by itself.
    fn has_ended(&mut self) -> bool {
        self.running.iter_mut().flatten().any(|it| it.0.try_wait().unwrap().is_some())
    }

    pub(super) fn start(&mut self, member: usize) {
        let command = self.members[member].command(&self.members);
        self.running[member] = Some(Running::start(command));
    }

    /// Ends a member as a power cut does.
    pub(super) fn kill(&mut self, member: usize) {
        self.running[member] = None;
    }

    pub(super) fn signal(&self, member: usize, signal: Signal) {
        let pid = self.running[member].as_ref().unwrap().0.id();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }

    pub(super) fn access(&self) -> Etcd {
        Etcd {
            endpoints: self.members.iter().map(Member::endpoint).collect(),
            prefix: "/roamd/home".into(),
            ca: None,
            cert: None,
            key: None,
        }
    }

    pub(super) fn store(&self) -> Store {
        Store::new(&self.access())
    }
}

pub(super) fn put(key: &str, value: &str) -> Write {
    Write::put(key, value)
}

async fn next(follow: &mut Follow) -> News {
    timeout(PATIENCE, follow.next()).await.expect("nothing is told")
}

async fn all(follow: &mut Follow) -> Snapshot {
    loop {
        match next(follow).await {
            News::All(snapshot) => return snapshot,
            News::Lost | News::Away(_) => {}
            News::Changes(changes) => panic!("{changes:?}"),
        }
    }
}

async fn changes(follow: &mut Follow) -> Vec<Change> {
    match next(follow).await {
        News::Changes(changes) => changes,
        other => panic!("{other:?}"),
    }
}

fn pairs(snapshot: &Snapshot) -> Vec<(&str, &str)> {
    let text = |bytes| std::str::from_utf8(bytes).unwrap();
    snapshot.entries.iter().map(|it| (it.key.as_str(), text(&it.value))).collect()
}

#[tokio::test]
async fn what_is_written_is_read_and_told() {
    let cluster = Cluster::of(1).await;
    let store = cluster.store();
    let other = Store::new(&Etcd { prefix: "/roamd/home2".into(), ..cluster.access() });
    other.transact([], [put("peers/x", "another fleet's")]).await.unwrap();
    let mut follow = store.follow("peers/");
    assert_eq!(pairs(&all(&mut follow).await), []);

    let absent = Compare::Modified("peers/a".into(), 0);
    let writes = [put("peers/a", "1"), put("peers/b", "2"), put("tickets", "3")];
    let revision = store.transact([absent.clone()], writes).await.unwrap().unwrap();
    let told = changes(&mut follow).await;
    let [Change::Put(a), Change::Put(b)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((a.key.as_str(), b.key.as_str()), ("peers/a", "peers/b"));
    assert_eq!((a.created, a.modified), (revision, revision));
    assert_eq!(store.transact([absent], [put("peers/a", "4")]).await.unwrap(), None);
    let snapshot = store.read("peers/").await.unwrap();
    assert_eq!(pairs(&snapshot), [("peers/a", "1"), ("peers/b", "2")]);
    assert_eq!(snapshot.revision, revision);
    assert_eq!(pairs(&store.read("tickets").await.unwrap()), [("tickets", "3")]);

    let held = Compare::Modified("peers/a".into(), revision);
    let revision = store.transact([held], [Write::Delete("peers/a".into())]).await.unwrap();
    let gone = Change::Deleted { key: "peers/a".into(), revision: revision.unwrap() };
    assert_eq!(changes(&mut follow).await, [gone]);
}

#[tokio::test]
async fn a_large_directory_is_read_in_pages_of_one_moment() {
    let cluster = Cluster::of(1).await;
    let store = cluster.store();
    for from in (0..5000).step_by(100) {
        let writes = (from..from + 100).map(|n| put(&format!("peers/{n:05}"), &n.to_string()));
        store.transact([], writes).await.unwrap();
    }
    let snapshot = store.read("peers/").await.unwrap();
    assert_eq!(snapshot.entries.len(), 5000);
    assert!(snapshot.entries.is_sorted_by(|a, b| a.key < b.key));
}

#[tokio::test]
async fn a_follower_is_told_that_etcd_is_away_and_all_when_it_is_back() {
    let mut cluster = Cluster::of(1).await;
    let store = cluster.store();
    let mut follow = store.follow("peers/");
    let before = all(&mut follow).await;
    cluster.kill(0);
    assert!(matches!(next(&mut follow).await, News::Lost));
    assert!(matches!(next(&mut follow).await, News::Away(StoreError::Away(_))));
    let begun = clock::now();
    assert!(matches!(store.read("peers/").await, Err(StoreError::Away(_))));
    assert!(matches!(store.transact([], [put("peers/a", "0")]).await, Err(StoreError::Away(_))));
    assert!(clock::now() - begun < Duration::from_secs(6));
    cluster.start(0);
    let after = all(&mut follow).await;
    assert_eq!((after.cluster, after.revision), (before.cluster, before.revision));
    store.transact([], [put("peers/a", "1")]).await.unwrap();
    assert_eq!(changes(&mut follow).await.len(), 1);
}

#[tokio::test]
async fn a_member_that_falls_silent_is_left_for_another() {
    let cluster = Cluster::of(3).await;
    let store = cluster.store();
    let mut follow = store.follow("peers/");
    all(&mut follow).await;
    // The first one is the one that is asked.
    cluster.signal(0, Signal::SIGSTOP);
    let begun = clock::now();
    assert!(matches!(next(&mut follow).await, News::Lost));
    assert!(matches!(next(&mut follow).await, News::All(_)), "another one answers at once");
    assert!(clock::now() - begun < Duration::from_secs(8));
    store.transact([], [put("peers/a", "1")]).await.unwrap();
    assert_eq!(changes(&mut follow).await.len(), 1);
    cluster.signal(0, Signal::SIGCONT);
}

#[tokio::test]
async fn a_lease_lasts_while_it_is_kept_and_takes_its_keys_along() {
    let mut cluster = Cluster::of(1).await;
    let store = cluster.store();
    let mut follow = store.follow("sessions/");
    all(&mut follow).await;
    let lease = store.lease(Duration::from_secs(2)).await.unwrap();
    let session = Write::Put { key: "sessions/a".into(), value: b"1".to_vec(), lease: lease.id() };
    store.transact([], [session.clone()]).await.unwrap();
    assert!(matches!(&changes(&mut follow).await[..], [Change::Put(it)] if it.lease == lease.id()));
    let first = lease.ends();
    sleep(Duration::from_secs(4)).await;
    assert!(lease.ends() > first && lease.ends() > clock::now());
    let id = lease.id();
    drop(lease);
    store.revoke(id).await.unwrap();
    assert!(matches!(&changes(&mut follow).await[..], [Change::Deleted { .. }]));

    let mut lease = store.lease(Duration::from_secs(2)).await.unwrap();
    cluster.kill(0);
    let over = async { while lease.renewed().await {} };
    timeout(Duration::from_secs(3), over).await.expect("it is over by our own clock");
    assert!(lease.ends() <= clock::now());
}

#[tokio::test]
async fn a_key_that_others_can_read_is_refused_and_a_missing_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| Some(folder.path().join(name));
    fs::write(folder.path().join("ca.pem"), "").unwrap();
    let mut access = Etcd {
        endpoints: vec!["https://127.0.0.1:1".into()],
        prefix: "/roamd/home".into(),
        ca: file("ca.pem"),
        cert: file("ca.pem"),
        key: file("none.pem"),
    };
    let why = Store::new(&access).read("").await.unwrap_err().to_string();
    assert!(why.contains("none.pem: cannot read it: No such file"), "{why}");
    access.key = file("ca.pem");
    let why = Store::new(&access).read("").await.unwrap_err().to_string();
    assert!(why.contains("ca.pem: has mode 0644, so others can use the key"), "{why}");
}

/// A server's directory with its cache in `folder`, and what is known of it.
async fn directory(access: &Etcd, folder: &Path) -> (Directory, watch::Receiver<Arc<Known>>) {
    let cache = Cache::at(folder.join("home.directory"), &access.prefix);
    let addresses = vec!["10.66.0.1/24".parse().unwrap()];
    let record = ServerRecord { name: "berlin".into(), addresses };
    let key = PublicKey::from([1; 32]);
    let directory = Directory::with(Store::new(access), cache, key, record).await;
    let known = directory.known();
    (directory, known)
}

fn names(known: &Known) -> Vec<&str> {
    known.peers.iter().map(|peer| peer.name.as_str()).collect()
}

async fn until(
    known: &mut watch::Receiver<Arc<Known>>,
    right: impl Fn(&Known) -> bool,
) -> Arc<Known> {
    let now = known.clone();
    match timeout(PATIENCE, known.wait_for(|known| right(known))).await {
        Ok(known) => known.unwrap().clone(),
        Err(_) => panic!("it stays so: {:?}", now.borrow()),
    }
}

/// The first free address of 10.66.0.0/16.
fn free(taken: &HashSet<IpAddr>) -> anyhow::Result<Vec<IpAddr>> {
    let all = (1..=u16::MAX).map(|n| IpAddr::from([10, 66, (n >> 8) as u8, n as u8]));
    Ok(all.filter(|it| !taken.contains(it)).take(1).collect())
}

async fn add(admin: &admin::Directory, name: &str) -> IpAddr {
    let mut key = [0; 32];
    fastrand::fill(&mut key);
    admin.add(name, PublicKey::from(key), free).await.unwrap().addresses[0]
}

#[tokio::test]
async fn a_change_is_known_at_once_and_a_bad_record_hurts_nobody() {
    let (cluster, folder) = (Cluster::of(1).await, tempfile::tempdir().unwrap());
    let admin = admin::Directory::new(&cluster.access());
    let (_directory, mut known) = directory(&cluster.access(), folder.path()).await;
    assert_eq!(
        (known.borrow().standing.clone(), names(&known.borrow()).len()),
        (Standing::Current, 0)
    );
    let store = cluster.store();
    while store.read("servers/").await.unwrap().entries.is_empty() {
        sleep(Duration::from_millis(10)).await;
    }
    let address = add(&admin, "laptop").await;
    assert_eq!(address.to_string(), "10.66.0.2", "the first one is the server's");
    until(&mut known, |known| names(known) == ["laptop"]).await;
    store.transact([], [put("peers/laptop", "{}"), put("peers/x/y", "\u{1b}[2J")]).await.unwrap();
    add(&admin, "phone").await;
    let now = until(&mut known, |known| names(known) == ["laptop", "phone"]).await;
    assert_eq!(now.passed_over.len(), 2, "{:?}", now.passed_over);
    assert_eq!(admin.remove("laptop").await.unwrap(), "laptop");
    until(&mut known, |known| names(known) == ["phone"]).await;

    let wrong = Etcd { prefix: "/roamd/hoem".into(), ..cluster.access() };
    let (_directory, known) = directory(&wrong, folder.path()).await;
    assert_eq!(
        (known.borrow().standing.clone(), known.borrow().peers.len()),
        (Standing::Current, 0)
    );
}

#[tokio::test]
async fn a_server_starts_without_etcd_with_what_it_knew() {
    let (mut cluster, folder) = (Cluster::of(1).await, tempfile::tempdir().unwrap());
    let admin = admin::Directory::new(&cluster.access());
    let (first, mut known) = directory(&cluster.access(), folder.path()).await;
    for name in ["laptop", "phone", "nas"] {
        add(&admin, name).await;
    }
    admin.remove("phone").await.unwrap();
    until(&mut known, |known| names(known) == ["laptop", "nas"]).await;
    cluster.kill(0);
    let away = until(&mut known, |known| matches!(known.standing, Standing::Away(_))).await;
    assert_eq!(names(&away), ["laptop", "nas"]);
    drop(first);

    let (_directory, mut known) = directory(&cluster.access(), folder.path()).await;
    let away = until(&mut known, |known| matches!(known.standing, Standing::Away(_))).await;
    assert_eq!(names(&away), ["laptop", "nas"]);
    cluster.start(0);
    until(&mut known, |known| known.standing == Standing::Current).await;
    admin.remove("nas").await.unwrap();
    until(&mut known, |known| names(known) == ["laptop"]).await;
}

#[tokio::test]
async fn an_etcd_with_old_data_brings_nobody_back_and_loses_nobody() {
    let (mut cluster, folder) = (Cluster::of(1).await, tempfile::tempdir().unwrap());
    let admin = admin::Directory::new(&cluster.access());
    let (_directory, mut known) = directory(&cluster.access(), folder.path()).await;
    for name in ["laptop", "phone"] {
        add(&admin, name).await;
    }
    until(&mut known, |known| names(known) == ["laptop", "phone"]).await;
    let (data, backup) = (cluster.members[0].folder().to_owned(), folder.path().join("backup"));
    let copy = |from: &Path, to: &Path| {
        let _ = fs::remove_dir_all(to);
        assert!(Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
    };
    cluster.kill(0);
    until(&mut known, |known| matches!(known.standing, Standing::Away(_))).await;
    copy(&data, &backup);
    cluster.start(0);
    until(&mut known, |known| known.standing == Standing::Current).await;
    admin.remove("phone").await.unwrap();
    add(&admin, "nas").await;
    until(&mut known, |known| names(known) == ["laptop", "nas"]).await;

    cluster.kill(0);
    until(&mut known, |known| matches!(known.standing, Standing::Away(_))).await;
    copy(&backup, &data);
    cluster.start(0);
    let old = until(&mut known, |known| matches!(known.standing, Standing::Old(_))).await;
    assert_eq!(names(&old), ["laptop", "nas"]);
    // Now it has come farther than the server has seen.
    for name in ["a", "b", "c"] {
        add(&admin, name).await;
    }
    let second = tempfile::tempdir().unwrap();
    copy(&folder.path().join("home.directory"), &second.path().join("home.directory"));
    let (_second, mut after_restart) = directory(&cluster.access(), second.path()).await;
    let old = until(&mut after_restart, |known| matches!(known.standing, Standing::Old(_))).await;
    assert!(!names(&old).contains(&"phone"), "{old:?}");

    assert_eq!(admin.confirm().await.unwrap(), 5);
    for known in [&mut known, &mut after_restart] {
        until(known, |known| names(known) == ["laptop", "phone", "a", "b", "c"]).await;
    }
}

#[tokio::test]
async fn two_admins_at_once_lose_no_peer_and_give_no_address_twice() {
    let mut cluster = Cluster::of(3).await;
    let access = cluster.access();
    let work = async |who: &str| {
        let admin = admin::Directory::new(&access);
        for n in 0..100 {
            add(&admin, &format!("{who}{n}")).await;
        }
    };
    let kill = async {
        sleep(Duration::from_millis(300)).await;
        cluster.kill(0);
    };
    tokio::join!(work("anna"), work("ben"), kill);
    let (peers, passed_over) = admin::Directory::new(&access).list().await.unwrap();
    assert_eq!((peers.len(), passed_over.len()), (200, 0));
    let addresses: HashSet<_> = peers.iter().map(|peer| peer.addresses[0]).collect();
    let names: HashSet<_> = peers.iter().map(|peer| &peer.name).collect();
    assert_eq!((addresses.len(), names.len()), (200, 200));

    let admin = admin::Directory::new(&access);
    let again = admin.add("anna7", PublicKey::from([9; 32]), free).await.unwrap_err().to_string();
    assert_eq!(again, "/roamd/home has a peer called anna7 already");
    let again = admin.add("carl", peers[0].public_key, free).await.unwrap_err().to_string();
    assert!(again.starts_with("/roamd/home has this key already, as "), "{again}");
    let nobody = admin.remove("carl").await.unwrap_err().to_string();
    assert!(nobody.starts_with("/roamd/home has no peer called carl, but "), "{nobody}");
}

#[tokio::test]
async fn a_file_that_cannot_be_written_does_not_keep_a_removed_peer() {
    let (cluster, folder) = (Cluster::of(1).await, tempfile::tempdir().unwrap());
    let admin = admin::Directory::new(&cluster.access());
    let (_directory, mut known) = directory(&cluster.access(), folder.path()).await;
    add(&admin, "laptop").await;
    add(&admin, "phone").await;
    let file = folder.path().join("home.directory");
    let saved = async |name: &str| {
        while !fs::read_to_string(&file).is_ok_and(|text| text.contains(name)) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    saved("phone").await;
    // Nothing can be put in the place of a folder, which can be deleted as little.
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    admin.remove("laptop").await.unwrap();
    let said = until(&mut known, |known| known.unsaved.is_some()).await.unsaved.clone().unwrap();
    assert!(said.as_str().ends_with("the old file still has a peer that was removed"), "{said}");
    assert_eq!(names(&known.borrow()), ["phone"]);
    fs::remove_dir(&file).unwrap();
    admin.remove("phone").await.unwrap();
    until(&mut known, |known| known.unsaved.is_none()).await;
    saved("removed").await;
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

#[tokio::test]
async fn etcd_is_reached_by_tls_with_certificates_on_both_sides() {
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let write = |name: &str, text: String| {
        fs::write(path(name), text).unwrap();
        fs::set_permissions(path(name), fs::Permissions::from_mode(0o600)).unwrap();
    };
    let authority = |file: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        write(file, pem("CERTIFICATE", params.self_signed(&key).unwrap().der()));
        Issuer::new(params, key)
    };
    let signed = |by: &Issuer<'_, KeyPair>, name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        params.extended_key_usages = vec![ServerAuth, ClientAuth];
        write(
            &format!("{name}.pem"),
            pem("CERTIFICATE", params.signed_by(&key, by).unwrap().der()),
        );
        write(&format!("{name}.key"), pem("PRIVATE KEY", &key.serialize_der()));
    };
    let ours = authority("ca.pem");
    signed(&ours, "member");
    signed(&ours, "berlin");
    signed(&authority("other.pem"), "stranger");

    let members = Member::cluster(1, folder.path(), Ipv4Addr::LOCALHOST.into()).unwrap();
    let member = &members[0];
    let mut command = member.command(&members);
    let secure = member.endpoint().replace("http:", "https:");
    command.args(["--listen-client-urls", &secure, "--advertise-client-urls", &secure]);
    command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(path("ca.pem"));
    command.arg("--cert-file").arg(path("member.pem")).arg("--key-file").arg(path("member.key"));
    let _running = Running::start(command);

    let access = |ca: &str, who: &str| Etcd {
        endpoints: vec![secure.clone()],
        prefix: "/roamd/home".into(),
        ca: Some(path(ca)),
        cert: Some(path(&format!("{who}.pem"))),
        key: Some(path(&format!("{who}.key"))),
    };
    let store = Store::new(&access("ca.pem", "berlin"));
    while store.read("").await.is_err() {
        sleep(Duration::from_millis(50)).await;
    }
    store.transact([], [put("peers/a", "1")]).await.unwrap();
    assert_eq!(pairs(&store.read("peers/").await.unwrap()), [("peers/a", "1")]);
    let foreign =
        Store::new(&access("other.pem", "berlin")).read("").await.unwrap_err().to_string();
    assert!(foreign.contains("certificate"), "{foreign}");
    assert!(Store::new(&access("ca.pem", "stranger")).read("").await.is_err());
}
