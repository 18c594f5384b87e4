//! Configurations as users write them: every file in `tests/data/valid` loads, every one in
//! `tests/data/invalid` gives exactly the message beside it, and the examples in `config/`
//! say the truth about defaults.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use roamd::internals::config::{
    Budget, ClientConfig, Config, ConfigErrors, Congestion, HomeMode, Loaded, LogFormat, Origin,
    OverBudget, Period, Preference, ServerConfig,
};
use tempfile::TempDir;

/// RFC 8032 §7.1, test 1: fixtures name its public key.
const SEED: &str = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=\n";

/// A directory with the key files that fixtures refer to.
struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        let directory = Self(tempfile::tempdir().unwrap());
        directory.write("host.key", SEED, 0o600);
        directory.write("exposed.key", SEED, 0o640);
        directory.write("garbled.key", "secret\n", 0o600);
        directory
    }

    fn write(&self, name: &str, content: &str, mode: u32) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn load(&self, content: &str, environment: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
        self.load_as("test.toml", content, environment)
    }

    fn load_as(
        &self,
        name: &str,
        content: &str,
        environment: &[(&str, &str)],
    ) -> Result<Loaded, ConfigErrors> {
        let environment = environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        Loaded::new(&self.write(name, content, 0o644), environment)
    }

    /// The whole message, with paths relative to this directory.
    fn message(&self, result: Result<Loaded, ConfigErrors>) -> String {
        let directory = format!("{}/", self.0.path().display());
        result.unwrap_err().to_string().replace(&directory, "")
    }
}

fn fixtures(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(directory);
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

fn fixture(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn client(path: &str) -> ClientConfig {
    match Directory::new().load(&fixture(path), &[]).unwrap().config {
        Config::Client(client) => client,
        Config::Server(_) => panic!("{path} is for a server"),
    }
}

#[test]
fn what_takes_a_restart_stays_as_it_is_in_a_reload_and_the_rest_is_taken() {
    let (before, new) =
        (client("tests/data/valid/client-least.toml"), client("tests/data/valid/client-full.toml"));
    let named = before.takes_restart(&new);
    let now = before.reloaded(client("tests/data/valid/client-full.toml"));
    assert_eq!(before.takes_restart(&now), [""; 0]);
    assert_eq!(now.takes_restart(&new), named);
    assert_eq!((&now.paths, &now.tun.routes), (&new.paths, &new.tun.routes));
    assert_ne!(now.paths, before.paths);

    let (before, new) =
        (server("tests/data/valid/server-least.toml"), server("tests/data/valid/server-full.toml"));
    let named = before.takes_restart(&new);
    let now = before.reloaded(server("tests/data/valid/server-full.toml"));
    assert_eq!(before.takes_restart(&now), [""; 0]);
    assert_eq!(now.takes_restart(&new), named);
    assert_eq!((&now.peers, &now.tun.dns, now.drain), (&new.peers, &new.tun.dns, new.drain));
    assert_ne!(now.peers, before.peers);
}

fn server(path: &str) -> ServerConfig {
    match Directory::new().load(&fixture(path), &[]).unwrap().config {
        Config::Server(server) => server,
        Config::Client(_) => panic!("{path} is for a client"),
    }
}

#[test]
fn valid_files_load_and_so_do_their_effective_configurations() {
    let directory = Directory::new();
    for path in fixtures("valid") {
        let name = path.display();
        let loaded = directory.load(&fs::read_to_string(&path).unwrap(), &[]);
        let toml = loaded.unwrap_or_else(|e| panic!("{name}: {e}")).to_toml().unwrap();
        let again = directory.load(&toml, &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(again.to_toml().unwrap(), toml, "{name}");
        assert!(!toml.contains(SEED.trim()), "{name}");
    }
}

#[test]
fn invalid_files_give_the_expected_message() {
    let directory = Directory::new();
    let mut wrong = Vec::new();
    for path in fixtures("invalid") {
        let name = path.file_name().unwrap().to_str().unwrap();
        let expected = fs::read_to_string(path.with_extension("expected")).unwrap();
        let result = directory.load_as(name, &fs::read_to_string(&path).unwrap(), &[]);
        let message = match result {
            Ok(_) => "(no problem)".to_owned(),
            Err(_) => directory.message(result),
        };
        let is_whole = cfg!(all(feature = "dbus", feature = "metrics"));
        if !is_whole && message.contains(", which this build of roamd is without") {
            continue;
        }
        if message != expected.trim_end() {
            wrong.push(format!("{name}\n  expected:\n{expected}  got:\n{message}\n"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn everything_but_keys_and_addresses_has_a_default() {
    let client = client("tests/data/valid/client-least.toml");
    assert_eq!(client.servers[0].addresses[0].to_string(), "vpn.example.net:4433");
    assert_eq!(
        (client.tun.name.as_str(), client.tun.mtu, client.tun.routes),
        ("roam0", 1400, None)
    );
    assert_eq!(client.paths.probe_timeout, Duration::from_secs(5));
    assert_eq!(client.paths.standby_check, Some(Duration::from_secs(15)));
    assert_eq!(client.paths.metered_copies, 65_536);
    assert!(client.paths.prefer.is_empty() && client.paths.ignore.is_empty());
    assert_eq!(client.quic.idle_timeout, Duration::from_secs(30));
    assert_eq!(client.quic.keep_alive, Duration::from_secs(10));
    assert_eq!((client.quic.congestion, client.quic.dscp), (Congestion::Cubic, 0));
    assert!(client.tun.offload);
    assert_eq!(
        (client.log.level.to_string().as_str(), client.log.format),
        ("info", LogFormat::Text)
    );

    let server = server("tests/data/valid/server-least.toml");
    assert_eq!((server.tun.name.as_str(), server.tun.mtu), ("roam0", 1400));
    assert!(server.tun.routes.is_empty() && server.peers.is_empty());
}

#[test]
fn a_clients_values_arrive_where_they_are_used() {
    let client = client("tests/data/valid/client-full.toml");
    let addresses: Vec<_> = client.servers[0].addresses.iter().map(ToString::to_string).collect();
    assert_eq!(
        addresses,
        ["vpn.example.net:4433", "[2001:db8::1]:4434", "[2001:db8::2]:4433", "192.0.2.1:4433"]
    );
    let home: Vec<_> = client.servers[0].home.iter().map(ToString::to_string).collect();
    assert_eq!(home, ["192.168.1.10:4433", "[fd00::10]:443"]);
    assert_eq!(client.home, HomeMode::Off);
    assert_eq!(client.tun.name, "vpn-home");
    assert_eq!(client.tun.routes.unwrap().len(), 2);
    assert_eq!(client.paths.probe_timeout, Duration::from_millis(500));
    assert_eq!(client.paths.standby_check, None);
    assert_eq!(client.paths.metered_copies, 0);
    assert_eq!(client.paths.prefer.len(), 4);
    assert_eq!(
        client.paths.prefer[0],
        Preference { link: "en*".to_owned(), ..Preference::default() }
    );
    let budget = Budget {
        bytes: 2_000_000_000,
        period: Period::Month { first: 15 },
        over: OverBudget::Stop,
    };
    let lte = Preference { link: "ww?n*".to_owned(), metered: true, budget: Some(budget) };
    assert_eq!(client.paths.prefer[3], lte);
    let prepaid = client.paths.prefer[2].budget.unwrap();
    assert_eq!((prepaid.bytes, prepaid.period.to_string()), (500_000_000, "28 days".into()));
    assert_eq!(client.paths.ignore, ["docker*", "virbr0"]);
    assert_eq!((client.quic.congestion, client.quic.dscp), (Congestion::Bbr, 46));
    assert!(!client.tun.offload);
    assert_eq!(client.log.format, LogFormat::Json);
}

#[test]
fn several_servers_have_names_and_the_environment_sets_none_of_their_keys() {
    let path = "tests/data/valid/client-several-servers.toml";
    let client = client(path);
    let servers = client.servers.iter().map(|server| (server.name.as_str(), server.tcp_port));
    let servers: Vec<_> = servers.collect();
    assert_eq!(servers, [("berlin", Some(443)), ("[2001:db8::2]:443", None)]);
    assert!(client.paths.metered_reserve);
    let directory = Directory::new();
    let variable = [("ROAMD_SERVER__ADDRESS", "192.0.2.9")];
    let message = directory.message(directory.load(&fixture(path), &variable));
    let expected =
        "ROAMD_SERVER__ADDRESS: server.address is in a list of tables, which only the file can set";
    assert_eq!(message, expected);
}

#[test]
fn a_servers_values_arrive_where_they_are_used() {
    let server = server("tests/data/valid/server-full.toml");
    let listen: Vec<_> = server.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["0.0.0.0:4433", "0.0.0.0:443"]);
    assert_eq!(server.tun.addresses[1].to_string(), "fd66::1/64");
    assert_eq!(server.tun.routes[0].to_string(), "10.0.0.0/8");
    assert_eq!(server.peers[1].name, "Zoë's phone");
    assert_eq!(server.peers[1].addresses, ["fd66::3".parse::<IpAddr>().unwrap()]);
}

#[test]
fn an_empty_route_list_differs_from_a_missing_one() {
    assert_eq!(client("tests/data/valid/client-takes-no-routes.toml").tun.routes, Some(vec![]));
}

#[test]
fn the_environment_overrides_the_file() {
    let directory = Directory::new();
    directory.write("other.key", SEED, 0o600);
    let environment = [
        ("ROAMD_PRIVATE_KEY_FILE", directory.0.path().join("other.key")),
        ("ROAMD_QUIC__IDLE_TIMEOUT", "45s".into()),
        ("ROAMD_TUN__MTU", "1300".into()),
        ("ROAMD_TUN__NAME", "0".into()),
        ("ROAMD_SERVER__ADDRESS", "a.example, b.example:1".into()),
        ("ROAMD_LOG__LEVEL", "roamd=debug,warn".into()),
        ("ROAMD_QUIC__KEEP_ALIVE", "20s".into()),
        ("ROAMD_LOG__FORMAT", "".into()),
        ("ROAMD_RUNTIME_DIR", "/run/roamd".into()),
        ("HOME", "/root".into()),
    ];
    let environment: Vec<_> = environment.iter().map(|(n, v)| (*n, v.to_str().unwrap())).collect();
    let file = fixture("tests/data/valid/client-full.toml").replace("host.key", "absent.key");
    let loaded = directory.load(&file, &environment).unwrap();
    let Config::Client(client) = loaded.config else { panic!("not a client") };
    assert_eq!(client.quic.idle_timeout, Duration::from_secs(45));
    assert_eq!((client.tun.mtu, client.tun.name.as_str()), (1300, "0"));
    let addresses: Vec<_> = client.servers[0].addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["a.example:4433", "b.example:1"]);
    assert_eq!(client.log.level.to_string(), "roamd=debug,warn");
}

#[test]
fn a_problem_with_a_variable_names_the_variable() {
    let directory = Directory::new();
    let environment = [
        ("ROAMD_QUIC__IDEL_TIMEOUT", "45s"),
        ("ROAMD_QUIC__", "45s"),
        ("ROAMD_FOO__BAR", "1"),
        ("ROAMD_LOG", "debug"),
        ("ROAMD_PEER__NAME", "laptop"),
        ("ROAMD_LISTEN", "[::]:1"),
        ("ROAMD_TUN__MTU", "big"),
        ("ROAMD_TUN__ROUTES", "10.0.0.0/8,everything"),
    ];
    let result = directory.load(&fixture("tests/data/valid/client-least.toml"), &environment);
    assert_eq!(
        directory.message(result),
        r#"ROAMD_FOO__BAR: foo.bar is not a known key; the top level accepts role, private-key, private-key-file, server, home, listen, listen-tcp, drain, tun, directory, peer, paths, quic, log, metrics
ROAMD_LISTEN: listen is accepted only with role = "server", and here role = "client"
ROAMD_LOG: log is a table: the environment sets its keys one by one, as in ROAMD_LOG__LEVEL=debug
ROAMD_PEER__NAME: peer.name is in a list of tables, which only the file can set
ROAMD_QUIC__: quic. is not a known key; [quic] accepts idle-timeout, keep-alive, congestion, dscp
ROAMD_QUIC__IDEL_TIMEOUT: quic.idel-timeout is not a known key (did you mean quic.idle-timeout?); [quic] accepts idle-timeout, keep-alive, congestion, dscp
ROAMD_TUN__MTU: tun.mtu = big must be a number from 1280 (the least that IPv6 works with, RFC 8200 §5) to 9000
ROAMD_TUN__ROUTES: tun.routes[1] = everything must be a prefix such as "10.66.0.0/24" or "fd66::/64", or "default" for 0.0.0.0/0 and ::/0"#
    );
}

#[test]
fn a_private_key_in_a_variable_is_not_shown() {
    let directory = Directory::new();
    let environment = [("ROAMD_PRIVATE_KEY_FILE", SEED.trim())];
    let file = fixture("tests/data/valid/client-least.toml");
    let message = directory.message(directory.load(&file, &environment));
    assert!(message.starts_with("ROAMD_PRIVATE_KEY_FILE: private-key-file holds a key itself"));
    assert!(!message.contains(SEED.trim()), "{message}");
}

#[test]
fn a_password_of_a_proxy_is_shown_nowhere_and_is_kept_from_others() {
    let directory = Directory::new();
    let content = |proxy: &str| {
        let server = "[server]\ntcp-port = 443\naddress = \"vpn.example.net\"\n";
        let key = "ILl7CgG0nt3G7BMUtJESNrZDpV6uAAA4R6aRA/ywxhE=";
        let proxy = format!("public-key = \"{key}\"\nproxy = {proxy}\n");
        format!("role = \"client\"\nprivate-key-file = \"host.key\"\n{server}{proxy}")
    };
    let url = "http://laptop:open-sesame@proxy:3128";
    for (proxy, words) in [
        (format!("{url:?}"), "can be read by others, for this file has mode 0644"),
        (format!("[{url:?}]"), "must be the URL of an HTTP proxy"),
        (format!("{:?}", url.replace("http", "socks5")), "must be the URL of an HTTP proxy"),
        (format!("{:?}", url.replace(":3128", ":none")), "must be the URL of an HTTP proxy"),
    ] {
        let message = directory.message(directory.load(&content(&proxy), &[]));
        assert!(message.contains(words) && message.contains("server.proxy"), "{message}");
        assert!(!message.contains("sesame"), "{message}");
    }
    let nested = content(&format!("{url:?}")).replace("[server]", "[[server]]");
    let message = directory.message(directory.load(&nested, &[]));
    assert!(message.contains("server") && !message.contains("sesame"), "{message}");
    for variables in [[("ROAMD_SERVER__PROXY", url)], [("HTTPS_PROXY", url)]] {
        let written = content("\"\"").replace("proxy = \"\"\n", "");
        let loaded = directory.load(&written, &variables).unwrap();
        let shown = format!("{loaded:?}{}", loaded.to_toml().unwrap());
        assert!(shown.contains("[redacted]@proxy:3128"), "{shown}");
        assert!(!shown.contains("sesame") && !shown.contains("bGFwdG9w"), "{shown}");
    }
    let without = content("\"http://proxy\"").replace("tcp-port = 443\n", "");
    let message = directory.message(directory.load(&without, &[]));
    assert!(message.contains("server.proxy needs server.tcp-port"), "{message}");
}

#[test]
fn a_problem_names_its_key_value_and_line() {
    let file = fixture("tests/data/invalid/keep-alive-by-default.toml");
    let errors = Directory::new().load(&file, &[]).unwrap_err();
    let ConfigErrors::Problems { problems, .. } = errors else { panic!("{errors}") };
    let [problem] = problems.as_slice() else { panic!("{problems:?}") };
    assert_eq!(problem.key, "quic.keep-alive");
    assert_eq!(problem.value.as_deref(), Some("10s (the default)"));
    assert_eq!(problem.origin, Origin::File { line: Some(8) });
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let directory = Directory::new();
    let result = Loaded::new(&directory.0.path().join("absent.toml"), []);
    assert_eq!(
        directory.message(result),
        "cannot read absent.toml: No such file or directory (os error 2)"
    );
}

#[test]
fn commented_out_values_of_the_examples_are_the_defaults() {
    for name in ["client.toml", "server.toml"] {
        let directory = Directory::new();
        let key = directory.0.path().join("host.key");
        let environment = [("ROAMD_PRIVATE_KEY_FILE", key.to_str().unwrap())];
        let example = fixture(&format!("config/{name}"));
        let written = directory.load(&example, &environment).unwrap().to_toml().unwrap();
        let all: String = example.lines().map(uncommented).map(|line| line + "\n").collect();
        assert_ne!(all, example);
        assert_eq!(directory.load(&all, &environment).unwrap().to_toml().unwrap(), written);
        for line in written.lines().filter(|line| !line.starts_with('[')) {
            let key = line.split(" = ").next().unwrap();
            assert!(all.contains(key), "{name} says nothing of {line}");
        }
    }
}

/// `# mtu = 1400` without its mark; any other line as it is.
fn uncommented(line: &str) -> String {
    let key = |rest: &str| rest.split(" = ").next().map(str::to_owned);
    let is_key = |key: String| key.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    match line.strip_prefix("# ") {
        Some(rest) if rest.contains(" = ") && key(rest).is_some_and(is_key) => rest.to_owned(),
        _ => line.to_owned(),
    }
}

#[test]
fn a_key_that_this_build_has_no_feature_for_is_refused() {
    let client = fixture("tests/data/valid/client-least.toml");
    let server = fixture("tests/data/valid/server-least.toml");
    let [metrics, dbus, etcd] =
        [cfg!(feature = "metrics"), cfg!(feature = "dbus"), cfg!(feature = "etcd")];
    let with_prefix = format!("{server}\n[directory]\netcd = {{ prefix = \"/roamd/home\" }}\n");
    let directory = Directory::new();
    for (text, variable, value, feature, is_there) in [
        (&client, "ROAMD_METRICS__LISTEN", "127.0.0.1:9433", "metrics", metrics),
        (&server, "ROAMD_METRICS__LISTEN", "127.0.0.1:9433", "metrics", metrics),
        (&client, "ROAMD_TUN__DNS", "10.66.0.1", "dbus", dbus),
        // A server only tells its clients.
        (&server, "ROAMD_TUN__DNS", "10.66.0.1", "dbus", true),
        (&with_prefix, "ROAMD_DIRECTORY__ETCD__ENDPOINTS", "http://[::1]:2379", "etcd", etcd),
    ] {
        let loaded = directory.load(text, &[(variable, value)]);
        if is_there {
            assert!(loaded.is_ok(), "{variable}");
            continue;
        }
        let message = directory.message(loaded);
        let key = variable.trim_start_matches("ROAMD_").replace("__", ".").to_lowercase();
        let lacking =
            format!("needs the feature \"{feature}\", which this build of roamd is without");
        let section = key.split('.').take(2).collect::<Vec<_>>().join(".");
        assert!(message.contains(&format!("{section} = ")), "{message}");
        assert!(message.contains(&lacking), "{message}");
    }
}
