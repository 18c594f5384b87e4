//! roamd: a tunnel over one QUIC connection that migrates between networks.
