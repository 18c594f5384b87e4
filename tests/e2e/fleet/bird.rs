//! BIRD on the servers and on the site's router.

use std::path::Path;

use roamd_lab::{Namespace, Process};

use crate::{bird, harness::eventually};

/// The shipped example with this site's addresses.
fn server(number: usize) -> String {
    bird::shipped(&[
        ("OWN_AS = 65001", format!("OWN_AS = 6500{number}")),
        ("ROUTER_V4 = 10.10.0.1", format!("ROUTER_V4 = 10.78.{number}.2")),
        ("router id 10.10.0.2", format!("router id 10.78.{number}.1")),
    ])
}

/// The site's router, which believes both servers.
const ROUTER: &str = "
router id 10.78.0.10;
protocol device { }
protocol kernel { ipv4 { export filter { krt_prefsrc = 10.78.0.10; accept; }; import none; }; }
protocol bfd { interface \"*\" { interval 100 ms; multiplier 3; }; }
template bgp fleet {
    local as 65000;
    bfd on;
    connect delay time 1;
    connect retry time 1;
    error wait time 1, 2;
    ipv4 { import where net ~ [ 10.66.0.0/24{32,32} ]; export all; };
}
protocol bgp berlin from fleet { neighbor 10.78.1.1 as 65001; }
protocol bgp paris from fleet { neighbor 10.78.2.1 as 65002; }
";

/// Starts them, and waits until both servers have told the router what they know.
pub(super) fn start(servers: &[Namespace], router: &Namespace, folder: &Path) -> Vec<Process> {
    let texts = (1..).map(server).take(servers.len());
    let all = servers.iter().zip(texts).chain([(router, ROUTER.to_owned())]);
    let birds = all.map(|(namespace, text)| bird::run(namespace, &text, folder)).collect();
    let socket = bird::socket(router, folder);
    eventually("BGP is established", || {
        let mut birdc = router.command("birdc");
        let output = birdc.arg("-s").arg(&socket).args(["show", "protocols"]).output();
        let output = output.expect("birdc cannot be run: apt-get install bird2");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (text.matches("Established").count() == servers.len()).then_some(())
    });
    birds
}
