//! Cutting what one read of the TUN device gave into packets that fit the wire.
//!
//! With segmentation offload the kernel hands over up to 64 KB of one flow behind one set of headers. Each
//! segment gets its own, as the network card would have made them: lengths, identification and sequence
//! numbers, flags of the first and of the last segment. Checksums are completed by the receiving end, see
//! [`UNCHECKED`].

use bytes::{BufMut as _, BytesMut};

use super::{
    chunks::Chunks,
    vnet::{Checksum, Header, Segments},
};
use crate::wire::{
    checksum,
    packet::{DETACH_UP_TO, Packet, UNCHECKED},
    transport::{Protocol, Transport},
};

/// Packets are cut from chunks of this size: a super-packet with the headers of all its segments.
const CHUNK: usize = 72 * 1024;
/// What the device reads in at most [`DETACH_UP_TO`] bytes is cut from chunks of this size, of their own.
const SMALL_CHUNK: usize = 16 * 1024;
/// Used chunks that are kept for reuse: as many as the queue and QUIC's buffer hold.
const KEPT: usize = 32;

/// TCP's flags, in byte 13 of its header (RFC 9293 §3.1).
pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const CWR: u8 = 0x80;

/// A packet whose headers contradict what the kernel said about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Cuts packets. Each reader of a device has its own splitter.
#[derive(Debug)]
pub struct Splitter {
    bulk: Chunks,
    small: Chunks,
}

impl Default for Splitter {
    fn default() -> Self {
        Self { bulk: Chunks::new(CHUNK, KEPT), small: Chunks::new(SMALL_CHUNK, KEPT) }
    }
}

impl Splitter {
    /// Appends the packets that `ip` stands for to `batch`.
    pub fn split(
        &mut self,
        header: Header,
        ip: &[u8],
        batch: &mut Vec<Packet>,
    ) -> Result<(), Malformed> {
        match header {
            Header { segments: Some(segments), .. } => self.segment(segments, ip, batch),
            Header { checksum: Some(checksum), .. } => {
                batch.push(self.unchecked(checksum, ip)?);
                Ok(())
            }
            Header { .. } => {
                batch.push(self.whole(ip)?);
                Ok(())
            }
        }
    }

    /// A packet that is complete as it is.
    fn whole(&mut self, ip: &[u8]) -> Result<Packet, Malformed> {
        if !has_version(ip) {
            return Err(Malformed);
        }
        let chunk = self.chunk(ip.len());
        chunk.put_slice(ip);
        Ok(Packet::from_datagram(chunk.split().freeze()))
    }

    fn unchecked(&mut self, left: Checksum, ip: &[u8]) -> Result<Packet, Malformed> {
        let Checksum { start, field } = left;
        let (start, field) = (usize::from(start), usize::from(field));
        // The version stays what it is: no checksum is in the first byte.
        if start + field + 2 > ip.len() || start + field == 0 || !has_version(ip) {
            return Err(Malformed);
        }
        let chunk = self.chunk(1 + ip.len());
        let usual = Transport::of(ip)
            .is_some_and(|found| found.start == start && found.protocol.checksum() == field);
        if usual {
            chunk.put_u8(UNCHECKED);
            chunk.put_slice(ip);
        } else {
            chunk.put_slice(ip);
            checksum::complete(&mut chunk[start..], field);
        }
        Ok(Packet::from_datagram(chunk.split().freeze()))
    }

    fn segment(
        &mut self,
        segments: Segments,
        ip: &[u8],
        batch: &mut Vec<Packet>,
    ) -> Result<(), Malformed> {
        let transport = Transport::of(ip).ok_or(Malformed)?;
        let (headers, payload) = ip.split_at(transport.end);
        let size = usize::from(segments.size);
        if size == 0 || payload.is_empty() {
            return Err(Malformed);
        }
        let count = payload.len().div_ceil(size);
        let chunk = self.chunk(count * (1 + headers.len()) + payload.len());
        for (index, payload) in payload.chunks(size).enumerate() {
            chunk.put_u8(UNCHECKED);
            chunk.put_slice(headers);
            write_headers(&mut chunk[1..], transport, payload.len());
            let place = Place { index, size, is_last: index + 1 == count };
            place.write(&mut chunk[1..], transport);
            chunk.put_slice(payload);
            batch.push(Packet::from_datagram(chunk.split().freeze()));
        }
        Ok(())
    }

    fn chunk(&mut self, size: usize) -> &mut BytesMut {
        if size <= DETACH_UP_TO { self.small.room(size) } else { self.bulk.room(size) }
    }
}

/// Whether the first byte is that of an IP packet. Any other one would be taken for the tag of another kind of
/// datagram; a program with a packet socket can write such bytes into the device.
fn has_version(ip: &[u8]) -> bool {
    matches!(ip.first().map(|byte| byte >> 4), Some(4 | 6))
}

/// The position of a segment in its super-packet.
struct Place {
    index: usize,
    size: usize,
    is_last: bool,
}

impl Place {
    /// The fields in which this segment differs from the others.
    fn write(&self, ip: &mut [u8], transport: Transport) {
        if ip[0] >> 4 == 4 {
            let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(self.index as u16);
            ip[4..6].copy_from_slice(&id.to_be_bytes());
            checksum::complete_ipv4(&mut ip[..transport.start]);
        }
        if transport.protocol == Protocol::Tcp {
            let tcp = &mut ip[transport.start..];
            let first = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            let sequence = first.wrapping_add((self.index * self.size) as u32);
            tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
            if self.index > 0 {
                tcp[13] &= !CWR;
            }
            if !self.is_last {
                tcp[13] &= !(FIN | PSH);
            }
        }
    }
}

/// Writes the lengths for `payload` bytes and, as checksum, what [`UNCHECKED`] asks for. `ip` begins
/// with whole headers. The IPv4 header's own checksum is left alone.
pub(super) fn write_headers(ip: &mut [u8], transport: Transport, payload: usize) {
    let Transport { protocol, start, end } = transport;
    let length = end - start + payload;
    if ip[0] >> 4 == 4 {
        ip[2..4].copy_from_slice(&((start + length) as u16).to_be_bytes());
    } else {
        ip[4..6].copy_from_slice(&((start - 40 + length) as u16).to_be_bytes());
    }
    if protocol == Protocol::Udp {
        ip[start + 4..start + 6].copy_from_slice(&(length as u16).to_be_bytes());
    }
    let partial = checksum::pseudo_header(ip, protocol.number(), length);
    let field = start + protocol.checksum();
    ip[field..field + 2].copy_from_slice(&partial.to_be_bytes());
}
