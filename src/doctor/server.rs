//! What a server needs.

use std::net::UdpSocket;

use super::{Finding, host};
use crate::{
    config::ServerConfig,
    control::{ControlError, Instance},
    host::sysctl,
};

pub(super) async fn examine(config: &ServerConfig, tell: &mut dyn FnMut(Finding)) {
    let listen = config.listen;
    host::port(listen.port(), tell);
    tell(match UdpSocket::bind(listen) {
        Ok(_) => Finding::good("port", format!("{listen} is free (UDP)")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => match Instance::only() {
            Ok(_) | Err(ControlError::Several(_)) => {
                Finding::good("port", format!("{listen} is in use: roamd runs"))
            }
            Err(_) => Finding::bad(
                "port",
                format!("{listen} is in use (UDP)"),
                format!(
                    "ss -ulpn 'sport = {}' tells by whom; stop it, or change listen",
                    listen.port()
                ),
            ),
        },
        Err(error) => Finding::bad(
            "port",
            format!("can't listen on {listen}: {error}"),
            "listen = \"[::]:4433\" works on every host",
        ),
    });
    if config.peers.is_empty() {
        let advice = "roamd peer add NAME --server FILE --endpoint HOST lets one in";
        tell(Finding::poor("peers", "nobody may connect", advice));
    } else {
        tell(Finding::good("peers", format!("{} may connect", config.peers.len())));
    }
    if config.tun.nat {
        host::firewall(&config.tun.name, "tun.nat", tell).await;
    } else if !config.tun.routes.is_empty() {
        forwarding(tell);
    }
}

/// Routes are offered; whoever takes them wants to be sent on.
fn forwarding(tell: &mut dyn FnMut(Finding)) {
    let on = sysctl::read("ipv4/ip_forward").is_ok_and(|value| value == "1");
    tell(if on {
        Finding::good("forwarding", "is on")
    } else {
        let advice =
            "tun.nat = true, or sysctl -w net.ipv4.ip_forward=1 and routes back to the peers";
        Finding::poor("forwarding", "is off, so peers don't get beyond this host", advice)
    });
}
