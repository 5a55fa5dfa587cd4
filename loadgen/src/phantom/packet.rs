//! IPv4 and TCP headers as they pass a TUN device (RFC 791 3.1, RFC 9293 3.1), with their checksums (RFC 1071). Pure.
//!
//! ```text
//!  | IPv4 header, 20 bytes | TCP header, 20 bytes, SYN 24 (MSS) | payload |
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};

/// One TCP segment and where it comes from and goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment<'a> {
    /// Who sent it.
    pub source: SocketAddrV4,
    /// Whom it is for.
    pub target: SocketAddrV4,
    /// Number of the first byte of the payload, or of SYN.
    pub seq: u32,
    /// The next number its sender expects; it counts with [`ACK`] only.
    pub ack: u32,
    /// [`FIN`], [`SYN`], [`RST`], [`PSH`], [`ACK`].
    pub flags: u8,
    /// Bytes its sender has room for. Windows are not scaled here: a SYN of ours does not offer it (RFC 7323 2.2).
    pub window: u16,
    /// What is carried.
    pub payload: &'a [u8],
}

/// Why a packet is none that can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// Not IPv4, not TCP, or a fragment: none of ours.
    Foreign,
    /// A length points beyond what is there.
    Short,
    /// A checksum is wrong.
    Checksum,
}

impl<'a> Segment<'a> {
    /// Reads a packet. Options are passed over, and so is padding behind the packet.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn decode(packet: &'a [u8]) -> Result<Self, Damage> {
        let ip = packet.get(..IP_BYTES).ok_or(Damage::Short)?;
        if ip[0] >> 4 != 4 || ip[9] != TCP || (be16(ip, 6) & FRAGMENT) != 0 {
            return Err(Damage::Foreign);
        }
        let ip_bytes = usize::from(ip[0] & 0x0f) * 4;
        let header = packet.get(..ip_bytes).filter(|_| ip_bytes >= IP_BYTES).ok_or(Damage::Short)?;
        let tcp = packet.get(ip_bytes..usize::from(be16(ip, 2))).filter(|tcp| tcp.len() >= TCP_BYTES).ok_or(Damage::Short)?;
        let (source, target) = (address(ip, 12), address(ip, 16));
        if fold(sum(header)) != 0 || fold(sum(tcp) + pseudo(source, target, tcp.len())) != 0 {
            return Err(Damage::Checksum);
        }
        let tcp_bytes = usize::from(tcp[12] >> 4) * 4;
        let payload = tcp.get(tcp_bytes..).filter(|_| tcp_bytes >= TCP_BYTES).ok_or(Damage::Short)?;
        Ok(Self {
            source: SocketAddrV4::new(source, be16(tcp, 0)),
            target: SocketAddrV4::new(target, be16(tcp, 2)),
            seq: be32(tcp, 4),
            ack: be32(tcp, 8),
            flags: tcp[13],
            window: be16(tcp, 14),
            payload,
        })
    }

    /// Appends the packet.
    ///
    /// # Panics
    /// The payload is longer than [`MSS`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.payload.len() <= MSS);
        let is_syn = self.flags & SYN != 0;
        let tcp_bytes = TCP_BYTES + if is_syn { MSS_OPTION.len() } else { 0 };
        let tcp_len = tcp_bytes + self.payload.len();
        let total = u16::try_from(IP_BYTES + tcp_len).expect("a payload has at most an MSS");
        let (source, target) = (*self.source.ip(), *self.target.ip());

        let start = out.len();
        out.extend_from_slice(&[0x45, 0]);
        out.extend_from_slice(&total.to_be_bytes());
        out.extend_from_slice(&[0, 0, 0x40, 0, TTL, TCP, 0, 0]);
        out.extend_from_slice(&source.octets());
        out.extend_from_slice(&target.octets());
        let check = fold(sum(&out[start..]));
        out[start + 10..start + 12].copy_from_slice(&check.to_be_bytes());

        let tcp = start + IP_BYTES;
        out.extend_from_slice(&self.source.port().to_be_bytes());
        out.extend_from_slice(&self.target.port().to_be_bytes());
        out.extend_from_slice(&self.seq.to_be_bytes());
        out.extend_from_slice(&self.ack.to_be_bytes());
        out.extend_from_slice(&[if is_syn { 6 } else { 5 } << 4, self.flags]);
        out.extend_from_slice(&self.window.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        if is_syn {
            out.extend_from_slice(&MSS_OPTION);
        }
        out.extend_from_slice(self.payload);
        let check = fold(sum(&out[tcp..]) + pseudo(source, target, tcp_len));
        out[tcp + 16..tcp + 18].copy_from_slice(&check.to_be_bytes());
    }
}

/// The part of the checksum that covers the addresses (RFC 9293 3.1).
fn pseudo(source: Ipv4Addr, target: Ipv4Addr, tcp_bytes: usize) -> u64 {
    sum(&source.octets()) + sum(&target.octets()) + u64::from(TCP) + tcp_bytes as u64
}

/// The sum of all 16-bit words, not yet folded; an odd byte counts as the upper half of a word.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(2);
    let odd = words.remainder().first().map_or(0, |&byte| u64::from(byte) << 8);
    words.map(|word| u64::from(be16(word, 0))).sum::<u64>() + odd
}

/// Ones' complement of the folded sum: 0 if the checksum in it was right.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn address(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(be32(bytes, at))
}

/// No more comes.
pub const FIN: u8 = 0x01;
/// Opens.
pub const SYN: u8 = 0x02;
/// There is no such connection.
pub const RST: u8 = 0x04;
/// Hand it on at once.
pub const PSH: u8 = 0x08;
/// `ack` counts.
pub const ACK: u8 = 0x10;
/// Largest packet, in bytes.
pub const MTU: u16 = 1500;
/// Most bytes of payload in a segment.
pub const MSS: usize = MTU as usize - IP_BYTES - TCP_BYTES;
const IP_BYTES: usize = 20;
const TCP_BYTES: usize = 20;
/// Kind 2, 4 bytes, [`MSS`] (RFC 9293 3.2).
const MSS_OPTION: [u8; 4] = [2, 4, MSS_BYTES[0], MSS_BYTES[1]];
const MSS_BYTES: [u8; 2] = (MTU - 40).to_be_bytes();
const _: () = assert!(MSS == MTU as usize - 40);
const TCP: u8 = 6;
const TTL: u8 = 64;
/// More fragments, and the offset of this one.
const FRAGMENT: u16 = 0x3fff;

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(flags: u8, payload: &[u8]) -> Segment<'_> {
        let at = |last, port| SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, last), port);
        Segment { source: at(9, 7000), target: at(1, 8080), seq: 0xdead_beef, ack: 0x0102_0304, flags, window: 65_535, payload }
    }

    /// What was written reads the same, at any length, with and without the option of a SYN.
    #[test]
    fn a_packet_reads_as_it_was_written() {
        for (flags, length) in [(SYN, 0), (ACK, 0), (ACK | PSH, 1), (ACK | PSH, 2), (FIN | ACK, MSS)] {
            let payload = vec![0xa5; length];
            let segment = segment(flags, &payload);
            let mut out = vec![7; 3];
            segment.encode(&mut out);
            assert_eq!(Segment::decode(&out[3..]), Ok(segment));
        }
    }

    /// The checksum of the example of RFC 1071 section 3.
    #[test]
    fn sums_are_those_of_the_rfc() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)), !0xddf2);
    }

    /// A bit turned anywhere is noticed, and no cut makes the reader stumble.
    #[test]
    fn damage_is_noticed() {
        let mut packet = Vec::new();
        segment(ACK | PSH, b"hello").encode(&mut packet);
        for bit in 0..packet.len() * 8 {
            let mut turned = packet.clone();
            turned[bit / 8] ^= 1 << (bit % 8);
            assert!(Segment::decode(&turned).is_err(), "bit {bit}");
        }
        for length in 0..packet.len() {
            assert!(Segment::decode(&packet[..length]).is_err(), "{length} bytes");
        }
        assert_eq!(Segment::decode(&[0x60; 60]), Err(Damage::Foreign));
    }
}
