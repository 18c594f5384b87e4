//! Application error codes with which a connection is closed (RFC 9000 §20.2).

use quinn::VarInt;

/// The daemon stops.
pub const GOODBYE: VarInt = VarInt::from_u32(0);
/// Another connection of the same key took the session over.
pub(crate) const TAKEN_OVER: VarInt = VarInt::from_u32(1);
/// The server does not know the client's key.
pub(crate) const UNKNOWN_KEY: VarInt = VarInt::from_u32(2);
/// No common version of the protocol.
pub(crate) const VERSION: VarInt = VarInt::from_u32(3);
/// The other side broke the protocol.
pub const PROTOCOL: VarInt = VarInt::from_u32(4);
/// This connection lost the race against another one of the same client.
pub(crate) const NOT_NEEDED: VarInt = VarInt::from_u32(5);
/// Another machine with the same key has the session. The reason is its address.
pub(crate) const DISPLACED: VarInt = VarInt::from_u32(6);
