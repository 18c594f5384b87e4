//! The product: ssh through the tunnel.

use std::{fs, path::Path};

use crate::harness::{Net, eventually};

fn keygen(file: &Path) {
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(file)
        .status()
        .expect("ssh-keygen can't be run: apt-get install openssh-client");
    assert!(made.success());
}

#[test]
fn a_real_ssh_session_runs_through_the_tunnel() {
    let sshd = "/usr/sbin/sshd";
    assert!(Path::new(sshd).exists(), "no {sshd}: apt-get install openssh-server");
    fs::create_dir_all("/run/sshd").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    keygen(Path::new(&at("host")));
    keygen(Path::new(&at("user")));
    let public = fs::read_to_string(at("user.pub")).unwrap();
    fs::write(at("authorized"), &public).unwrap();
    fs::write(
        at("sshd_config"),
        format!(
            "ListenAddress 10.66.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
             StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\n",
            at("host"),
            at("authorized")
        ),
    )
    .unwrap();

    let mut net = Net::new(1);
    net.start();
    let mut command = net.server.namespace.command(sshd);
    command.args(["-D", "-e", "-f", &at("sshd_config")]);
    let daemon = net.server.namespace.spawn("sshd", command, folder.path()).unwrap();
    eventually("sshd listens", || daemon.log().unwrap().contains("Server listening").then_some(()));
    let script = "for i in $(seq 50); do echo line $i; sleep 0.02; done; exit 7";
    let output = net.clients[0].run(
        "ssh",
        &[
            "-i",
            &at("user"),
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "BatchMode=yes",
            "root@10.66.0.1",
            script,
        ],
    );
    let said = String::from_utf8_lossy(&output.stdout);
    let expected: String = (1..=50).map(|number| format!("line {number}\n")).collect();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, expected, "{complaint}\n{}", daemon.log().unwrap());
    assert_eq!(output.status.code(), Some(7));
}
