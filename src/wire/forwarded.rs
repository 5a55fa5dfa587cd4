//! Whom an HTTP balancer speaks for: `Forwarded` (RFC 7239) or `X-Forwarded-For`.
//!
//! Each balancer appends the address of whoever connected to it, so the list is read from its right end, and only as far as the
//! words of trusted balancers go:
//!
//! ```text
//!  X-Forwarded-For: 6.6.6.6, 203.0.113.7, 10.0.0.2        connection from 10.0.0.3; trusted: 10.0.0.0/8
//!                   ▲        ▲            └ said by 10.0.0.3, trusted, go on
//!                   │        └ said by 10.0.0.2, not trusted: the client
//!                   └ said by the client: anybody can write this
//! ```
//!
//! One header is read, the one that the balancers write; the other may come from the client and is not looked at.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Which header the balancers write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Header {
    /// `X-Forwarded-For: client, proxy, ...`
    XForwardedFor,
    /// `Forwarded: for=client;proto=https, for=proxy` (RFC 7239).
    Forwarded,
}

/// The rightmost address that is not trusted, or the last one that a trusted balancer named; `peer` when there is none. A port that is
/// not named is 0.
///
/// `head` is a whole request head, whose lines end with CR LF. A node that is no address (`unknown`, `_hidden`, nonsense) ends the
/// walk: what stands before it was said by nobody we know.
#[must_use]
pub fn client(head: &[u8], header: Header, peer: SocketAddr, is_trusted: impl Fn(IpAddr) -> bool) -> SocketAddr {
    let mut client = peer;
    // The last line of a head was written last, as the last item of a line.
    for value in values(head, header.name()).rev() {
        let mut rest = Some(value);
        while let Some(left) = rest {
            let (before, item) = split_last(left, b',');
            rest = before;
            if item.trim_ascii().is_empty() {
                continue;
            }
            if !is_trusted(client.ip()) {
                return client;
            }
            let Some(node) = header.node(item) else { return client };
            client = node;
        }
    }
    client
}

impl Header {
    fn name(self) -> &'static [u8] {
        match self {
            Self::XForwardedFor => b"x-forwarded-for",
            Self::Forwarded => b"forwarded",
        }
    }

    /// The address in one item of the list.
    fn node(self, item: &[u8]) -> Option<SocketAddr> {
        match self {
            Self::XForwardedFor => node(item.trim_ascii()),
            Self::Forwarded => forwarded_for(item),
        }
    }
}

/// The values of all lines of this name, in order.
fn values<'a>(head: &'a [u8], name: &'static [u8]) -> impl DoubleEndedIterator<Item = &'a [u8]> {
    head.split(|&byte| byte == b'\n').filter_map(move |line| {
        let (before, after) = line.split_at_checked(name.len())?;
        let value = after.strip_prefix(b":")?;
        before.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
    })
}

/// The one `for` of an element such as `for="[2001:db8::1]:4711";proto=https`.
fn forwarded_for(element: &[u8]) -> Option<SocketAddr> {
    let mut found = None;
    let mut rest = Some(element);
    while let Some(left) = rest {
        let (before, pair) = split_last(left, b';');
        rest = before;
        let pair = pair.trim_ascii();
        let Some((name, value)) = pair.split_at_checked(4) else { continue };
        if !name.eq_ignore_ascii_case(b"for=") {
            continue;
        }
        let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        if found.replace(node(value)?).is_some() {
            return None;
        }
    }
    found
}

/// Address, or address and port, IPv6 with brackets or, alone, without.
fn node(text: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::from);
    let alone = || text.parse::<IpAddr>().ok().or_else(in_brackets).map(|address| SocketAddr::new(address, 0));
    let address: SocketAddr = text.parse().ok().or_else(alone)?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// What stands before the last separator outside of quotes, and what stands behind it.
///
/// Read from the right, so that a quote which a client left open on the left does not swallow what a balancer appended.
fn split_last(bytes: &[u8], separator: u8) -> (Option<&[u8]>, &[u8]) {
    let mut is_quoted = false;
    for (index, &byte) in bytes.iter().enumerate().rev() {
        let (before, after) = bytes.split_at(index);
        if byte == b'"' {
            let escapes = before.iter().rev().take_while(|&&byte| byte == b'\\').count();
            is_quoted ^= escapes.is_multiple_of(2);
        } else if byte == separator && !is_quoted {
            return (Some(before), after.get(1..).unwrap_or_default());
        }
    }
    (None, bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BALANCER: &str = "10.0.0.3:40000";

    /// 10.0.0.0/8 and ::1 are trusted.
    fn is_trusted(address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 10) || address == IpAddr::from(Ipv6Addr::LOCALHOST)
    }

    fn seen(lines: &str, header: Header, peer: &str) -> String {
        let head = format!("GET /ws HTTP/1.1\r\nHost: h\r\n{lines}Upgrade: websocket\r\n\r\n");
        let client = client(head.as_bytes(), header, peer.parse().expect("an address"), is_trusted);
        if client.port() == 0 { client.ip().to_string() } else { client.to_string() }
    }

    /// Who tries to be somebody else, and who the gateway takes them for: header lines, where the connection comes from, the answer.
    #[test]
    fn spoof_matrix() {
        for (lines, peer, expected) in [
            // Not from a balancer: nothing is believed.
            ("X-Forwarded-For: 6.6.6.6\r\n", "203.0.113.7:1", "203.0.113.7:1"),
            ("X-Forwarded-For: 10.0.0.9\r\n", "203.0.113.7:1", "203.0.113.7:1"),
            ("X-Forwarded-For: 6.6.6.6\r\n", "[2001:db8::1]:1", "[2001:db8::1]:1"),
            // From a balancer, which appends whom it saw.
            ("", BALANCER, BALANCER),
            ("X-Forwarded-For: 203.0.113.7\r\n", BALANCER, "203.0.113.7"),
            ("x-forwarded-FOR:203.0.113.7\r\n", BALANCER, "203.0.113.7"),
            ("X-Forwarded-For: 203.0.113.7:5555\r\n", BALANCER, "203.0.113.7:5555"),
            ("X-Forwarded-For: 2001:db8::7\r\n", BALANCER, "2001:db8::7"),
            ("X-Forwarded-For: [2001:db8::7]\r\n", BALANCER, "2001:db8::7"),
            ("X-Forwarded-For: [2001:db8::7]:443\r\n", BALANCER, "[2001:db8::7]:443"),
            ("X-Forwarded-For: ::ffff:203.0.113.7\r\n", BALANCER, "203.0.113.7"),
            // The client wrote something first.
            ("X-Forwarded-For: 6.6.6.6, 203.0.113.7\r\n", BALANCER, "203.0.113.7"),
            ("X-Forwarded-For: 10.0.0.9, 203.0.113.7\r\n", BALANCER, "203.0.113.7"),
            ("X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 203.0.113.7\r\n", BALANCER, "203.0.113.7"),
            ("X-Forwarded-For: \"6.6.6.6, 203.0.113.7\r\n", BALANCER, "203.0.113.7"),
            ("X-Forwarded-For: , ,, 203.0.113.7\r\n", BALANCER, "203.0.113.7"),
            ("X-Forwarded-For: 203.0.113.7, ,\r\n", BALANCER, "203.0.113.7"),
            // The other header, and names that only look like it.
            ("Forwarded: for=6.6.6.6\r\nX-Forwarded-For: 203.0.113.7\r\n", BALANCER, "203.0.113.7"),
            ("X-Forwarded-For2: 6.6.6.6\r\nX-Forwarded-For : 6.6.6.6\r\n", BALANCER, BALANCER),
            ("X-Real-IP: 6.6.6.6\r\nTrue-Client-IP: 6.6.6.6\r\nClient-IP: 6.6.6.6\r\n", BALANCER, BALANCER),
            // Several balancers.
            ("X-Forwarded-For: 6.6.6.6, 203.0.113.7, 10.0.0.2\r\n", BALANCER, "203.0.113.7"),
            ("X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-For: ::1\r\nX-Forwarded-For: 10.0.0.2\r\n", BALANCER, "203.0.113.7"),
            ("X-Forwarded-For: 10.0.0.1, 10.0.0.2\r\n", BALANCER, "10.0.0.1"),
            // No addresses: the last balancer we know answers for it.
            ("X-Forwarded-For: unknown\r\n", BALANCER, BALANCER),
            ("X-Forwarded-For: 6.6.6.6, nonsense, 10.0.0.2\r\n", BALANCER, "10.0.0.2"),
            ("X-Forwarded-For: 6.6.6.6, 203.0.113.7/32\r\n", BALANCER, BALANCER),
            ("X-Forwarded-For: 6.6.6.6, 010.0.0.2\r\n", BALANCER, BALANCER),
            ("X-Forwarded-For: 6.6.6.6 203.0.113.7\r\n", BALANCER, BALANCER),
        ] {
            assert_eq!(seen(lines, Header::XForwardedFor, peer), expected, "{lines:?} from {peer}");
        }
        for (lines, peer, expected) in [
            ("Forwarded: for=6.6.6.6\r\n", "203.0.113.7:1", "203.0.113.7:1"),
            ("Forwarded: for=203.0.113.7\r\n", BALANCER, "203.0.113.7"),
            ("Forwarded: For=\"[2001:db8:cafe::17]:4711\"\r\n", BALANCER, "[2001:db8:cafe::17]:4711"),
            ("Forwarded: for=192.0.2.60;proto=http;by=203.0.113.43\r\n", BALANCER, "192.0.2.60"),
            ("Forwarded: by=203.0.113.43; FOR=192.0.2.60 ;host=\"a, for=6.6.6.6\"\r\n", BALANCER, "192.0.2.60"),
            ("Forwarded: for=6.6.6.6, for=198.51.100.17\r\n", BALANCER, "198.51.100.17"),
            ("Forwarded: for=6.6.6.6\r\nforwarded: for=198.51.100.17, for=10.0.0.2\r\n", BALANCER, "198.51.100.17"),
            ("Forwarded: for=\"6.6.6.6, for=198.51.100.17\r\n", BALANCER, "198.51.100.17"),
            ("Forwarded: for=198.51.100.17;host=\"\\\", for=6.6.6.6;x=\\\"\"\r\n", BALANCER, "198.51.100.17"),
            ("X-Forwarded-For: 6.6.6.6\r\nForwarded: for=198.51.100.17\r\n", BALANCER, "198.51.100.17"),
            ("X-Forwarded-For: 6.6.6.6\r\n", BALANCER, BALANCER),
            ("Forwarded: for=unknown\r\n", BALANCER, BALANCER),
            ("Forwarded: for=_hidden, for=10.0.0.2\r\n", BALANCER, "10.0.0.2"),
            ("Forwarded: for=6.6.6.6, proto=https\r\n", BALANCER, BALANCER),
            ("Forwarded: for=6.6.6.6;for=203.0.113.7\r\n", BALANCER, BALANCER),
            ("Forwarded: notfor=6.6.6.6\r\n", BALANCER, BALANCER),
            ("Forwarded: 6.6.6.6\r\n", BALANCER, BALANCER),
            ("Forwarded:\r\n", BALANCER, BALANCER),
        ] {
            assert_eq!(seen(lines, Header::Forwarded, peer), expected, "{lines:?} from {peer}");
        }
    }

    proptest! {
        /// Whatever a client writes before it, what the balancer appends decides; whoever is no balancer decides nothing.
        #[test]
        fn a_client_cannot_write_who_it_is(words in "[ -~]{0,60}", more in "[ -~]{0,60}", is_forwarded: bool) {
            let header = if is_forwarded { Header::Forwarded } else { Header::XForwardedFor };
            let name = if is_forwarded { "Forwarded" } else { "X-Forwarded-For" };
            let node = if is_forwarded { "for=203.0.113.7" } else { "203.0.113.7" };
            let lines = format!("{name}: {words}\r\n{name}: {more}, {node}\r\n");
            prop_assert_eq!(seen(&lines, header, BALANCER), "203.0.113.7");
            prop_assert_eq!(seen(&lines, header, "198.51.100.1:9"), "198.51.100.1:9");
        }
    }
}
