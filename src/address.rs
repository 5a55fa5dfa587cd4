//! Addresses: networks by prefix, and what counts as one client.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// All addresses that begin with the same bits, as `10.0.0.0/8` writes them (RFC 4632, RFC 4291 2.3).
///
/// An IPv4 address is the same whether it comes as itself or mapped into IPv6 (`::ffff:a.b.c.d`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    first: u128,
    /// Of 128.
    bits: u8,
}

impl Network {
    /// Reads `address` or `address/bits`. `None`: neither, or bits are set behind the prefix, which is a slip of the pen.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let (bits_max, bits_before) = if address.is_ipv4() { (32, 96) } else { (128, 0) };
        let bits: u8 = match bits {
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= bits_max && !text.contains('+'))?,
            None => bits_max,
        };
        let network = Self { first: number(address), bits: bits.saturating_add(bits_before) };
        (network.first & !network.mask() == 0).then_some(network)
    }

    /// Whether `address` belongs to it.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        (number(address) ^ self.first) & self.mask() == 0
    }

    fn mask(self) -> u128 {
        u128::MAX.checked_shl(u32::from(128_u8.saturating_sub(self.bits))).unwrap_or(0)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = Ipv6Addr::from_bits(self.first);
        match address.to_ipv4_mapped().zip(self.bits.checked_sub(96)) {
            Some((address, bits)) => write!(f, "{address}/{bits}"),
            None => write!(f, "{address}/{}", self.bits),
        }
    }
}

/// Several networks.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Networks(pub Vec<Network>);

impl Networks {
    /// Whether one of them contains `address`. Cost: a few nanoseconds for each.
    #[must_use]
    pub fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// This machine.
    #[must_use]
    pub fn loopback() -> Self {
        Self(["127.0.0.0/8", "::1/128"].iter().filter_map(|text| Network::read(text)).collect())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// An address as operators read it: without a port when nobody named one.
#[derive(Clone, Copy, Debug)]
pub struct Shown(pub SocketAddr);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.port() == 0 { self.0.ip().fmt(f) } else { self.0.fmt(f) }
    }
}

/// The address as a number of 128 bits, IPv4 mapped into IPv6.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => mapped(v4),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn mapped(v4: Ipv4Addr) -> u128 {
    v4.to_ipv6_mapped().to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(network: &str, address: &str) -> bool {
        Network::read(network).expect("a network").contains(address.parse().expect("an address"))
    }

    /// Both ends of a network belong to it, their neighbours do not; IPv4 is the same in both spellings, and no IPv6.
    #[test]
    fn a_network_ends_where_its_prefix_says() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.0.0.0", "9.255.255.255"),
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::10.1.2.3"),
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("::/0", "2001:db8::1", "x"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("2001:db8:0:1::/64", "2001:db8:0:1:ffff::", "2001:db8:0:2::"),
            ("::1", "::1", "::2"),
            ("::ffff:10.0.0.0/104", "10.9.9.9", "11.0.0.0"),
        ] {
            assert!(contains(network, inside), "{network} {inside}");
            assert!(outside == "x" || !contains(network, outside), "{network} {outside}");
        }
    }

    /// What is no network, or not the one that was meant.
    #[test]
    fn what_is_no_network_is_refused() {
        for wrong in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "10.0.0.1/8",
            "010.0.0.0/8",
            "10.0.0/8",
            "::/129",
            "2001:db8::1/64",
            "[::1]",
            "localhost",
            "10.0.0.0 /8",
        ] {
            assert_eq!(Network::read(wrong), None, "{wrong}");
        }
    }

    /// What is shown reads as what it was.
    #[test]
    fn a_network_is_shown_as_it_is_read() {
        for text in ["10.0.0.0/8", "192.0.2.1/32", "0.0.0.0/0", "::/0", "2001:db8::/32", "::1/128"] {
            assert_eq!(Network::read(text).expect("a network").to_string(), text);
        }
        assert_eq!(Network::read("192.0.2.1").expect("a network").to_string(), "192.0.2.1/32");
    }
}
