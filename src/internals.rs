//! What benches, examples and tests of this repository use. It is no promise to anyone else.

pub use crate::cli::Cli;

pub mod client {
    pub mod pace {
        pub use crate::client::pace::pace;
    }
}

pub mod config {
    pub use crate::config::{
        Budget, ClientConfig, Config, ConfigErrors, Congestion, HomeMode, Loaded, LogFormat,
        Origin, OverBudget, Peer, Period, Preference, Quic, ServerConfig, load,
    };
}

#[cfg(any(test, fuzzing))]
pub mod fuzz {
    pub use crate::fuzz::{
        capsule, config, datagram, fragment, message, offload, paths, portal, repair,
    };
}

pub mod identity {
    pub use crate::identity::{PrivateKey, PublicKey};
}

pub mod link {
    pub mod monitor {
        pub use crate::link::monitor::Hints;
    }
    pub mod netlink {
        pub use crate::link::netlink::Netlink;
    }
}

pub mod path {
    pub mod handshake {
        pub use crate::path::handshake::Handshake;
    }
    pub mod network {
        pub use crate::path::network::Network;
        pub mod kernel {
            pub use crate::path::network::kernel::KernelNetwork;
        }
    }
    pub mod servers {
        pub use crate::path::servers::ServerAddresses;
    }
    pub mod udp {
        pub use crate::path::udp::UdpSocket;
    }
}

pub mod quic {
    pub use crate::quic::{
        client_endpoint, probe_transport, server_endpoint, token_key, transport,
    };
    pub mod close {
        pub use crate::quic::close::{GOODBYE, PROTOCOL};
    }
    pub mod congestion {
        pub use crate::quic::congestion::CongestionHandle;
    }
    pub mod session {
        pub use crate::quic::session::{MessageStream, accept, open};
    }
    pub mod tls {
        pub use crate::quic::tls::{ServerTls, TUNNEL, client, purpose};
    }
}

pub mod server {
    pub mod peers {
        pub use crate::server::peers::{Peer, Peers};
    }
    pub mod socket {
        pub use crate::server::socket::ServerSocket;
    }
}

pub mod tunnel {
    pub mod counters {
        pub use crate::tunnel::counters::Counters;
    }
    pub mod device {
        pub use crate::tunnel::device::PacketSink;
    }
    pub mod merge {
        pub use crate::tunnel::merge::Merger;
    }
    pub mod repair {
        pub use crate::tunnel::repair::{Moment, Receiver, Sender};
    }
    pub mod queue {
        pub use crate::tunnel::queue::Queue;
    }
    pub mod split {
        pub use crate::tunnel::split::Splitter;
    }
    pub mod vnet {
        pub use crate::tunnel::vnet::{Checksum, Header, Kind, Offload, Segments};
    }
}

pub mod wire {
    pub mod datagram {
        pub use crate::wire::datagram::Datagram;
    }
    pub mod fragment {
        pub use crate::wire::fragment::{Fragmenter, Joiner};
    }
    pub mod message {
        pub use crate::wire::message::{Message, Net, Welcome};
    }
    pub mod packet {
        pub use crate::wire::packet::Packet;
    }
}
