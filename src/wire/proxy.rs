//! The PROXY protocol, versions 1 and 2: whom a balancer speaks for (haproxy.org, proxy-protocol.txt).
//!
//! The header comes before anything else on the connection, before TLS as well:
//!
//! ```text
//!  version 1   PROXY TCP4 203.0.113.7 192.0.2.1 51234 443 CR LF        at most 107 bytes
//!
//!  version 2   0D 0A 0D 0A 00 0D 0A 51 55 49 54 0A                     signature
//!              21  11  00 0C                                           version and command, family, length of the rest
//!              source (4 or 16), destination (4 or 16), ports (2, 2)   then extensions, which are passed over
//! ```
//!
//! The destination is checked and not kept. A header that names no address (`UNKNOWN`, `LOCAL`, a socket of the balancer's machine)
//! speaks for the balancer itself: that is how it asks whether the gateway is well.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::limits::PROXY_HEADER_BYTES_MAX;

/// For whom a balancer speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// For itself, or it does not say.
    Balancer,
    /// For this client.
    Client(SocketAddr),
}

/// It is no PROXY header, or one that breaks its rules, or one longer than [`PROXY_HEADER_BYTES_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// Decodes a header at the front of `bytes`. Returns what it says and its length; `Ok(None)` if `bytes` ends inside it.
///
/// # Errors
/// [`Malformed`], at the latest when [`PROXY_HEADER_BYTES_MAX`] bytes are there.
pub fn decode(bytes: &[u8]) -> Result<Option<(Source, usize)>, Malformed> {
    match bytes.first() {
        None => Ok(None),
        Some(b'P') => decode_text(bytes),
        Some(_) => decode_binary(bytes),
    }
}

fn decode_text(bytes: &[u8]) -> Result<Option<(Source, usize)>, Malformed> {
    if !is_begun(bytes, TEXT_BEGIN) {
        return Err(Malformed);
    }
    let front = bytes.get(..TEXT_BYTES_MAX).unwrap_or(bytes);
    let header = front.split_inclusive(|&byte| byte == b'\n').next().unwrap_or_default();
    if !header.ends_with(b"\n") {
        return if bytes.len() < TEXT_BYTES_MAX { Ok(None) } else { Err(Malformed) };
    }
    let line = header.strip_suffix(b"\r\n").ok_or(Malformed)?;
    if line.contains(&b'\r') {
        // Who looks for the end by its CR, as section 9 of the specification does, ends the line there.
        return Err(Malformed);
    }
    let line = std::str::from_utf8(line).map_err(|_| Malformed)?;
    let mut words = line.split(' ').skip(1);
    let source = match words.next() {
        // What follows is to be ignored.
        Some("UNKNOWN") => return Ok(Some((Source::Balancer, header.len()))),
        Some("TCP4") => source_of::<Ipv4Addr>(words),
        Some("TCP6") => source_of::<Ipv6Addr>(words),
        _ => None,
    };
    Ok(Some((Source::Client(source.ok_or(Malformed)?), header.len())))
}

/// Source, destination and their ports, and nothing more.
fn source_of<'a, A: FromStr + Into<IpAddr>>(mut words: impl Iterator<Item = &'a str>) -> Option<SocketAddr> {
    let source: A = words.next()?.parse().ok()?;
    let _destination: A = words.next()?.parse().ok()?;
    let source_port = port(words.next()?)?;
    let _destination_port = port(words.next()?)?;
    words.next().is_none().then(|| canonical(source.into(), source_port))
}

/// A port in decimal without leading zeros.
fn port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

fn decode_binary(bytes: &[u8]) -> Result<Option<(Source, usize)>, Malformed> {
    if !is_begun(bytes, SIGNATURE) {
        return Err(Malformed);
    }
    let Some(&[version_command, family, high, low]) = bytes.get(SIGNATURE.len()..).and_then(<[u8]>::first_chunk) else {
        return Ok(None);
    };
    let end = BINARY_BEGIN_BYTES.saturating_add(usize::from(u16::from_be_bytes([high, low])));
    if end > PROXY_HEADER_BYTES_MAX {
        return Err(Malformed);
    }
    let is_local = match version_command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed),
    };
    let Some(body) = bytes.get(BINARY_BEGIN_BYTES..end) else { return Ok(None) };
    let source = match family {
        _ if is_local => Source::Balancer,
        TCP_V4 => Source::Client(addresses::<4>(body).ok_or(Malformed)?),
        TCP_V6 => Source::Client(addresses::<16>(body).ok_or(Malformed)?),
        // Unspecified, UDP, and sockets of the balancer's machine.
        _ if family >> 4 <= 3 && family & 0x0f <= 2 => Source::Balancer,
        _ => return Err(Malformed),
    };
    Ok(Some((source, end)))
}

/// Source and destination of `N` bytes each, then their ports: the source.
fn addresses<const N: usize>(body: &[u8]) -> Option<SocketAddr>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = body.split_first_chunk::<N>()?;
    let (_destination, rest) = rest.split_first_chunk::<N>()?;
    let [high, low, _, _] = rest.first_chunk()?;
    Some(canonical(IpAddr::from(*source), u16::from_be_bytes([*high, *low])))
}

/// An IPv4 address mapped into IPv6 is an IPv4 address.
fn canonical(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address.to_canonical(), port)
}

/// Whether `bytes` is, as far as it goes, the beginning of `word`, or begins with it.
fn is_begun(bytes: &[u8], word: &[u8]) -> bool {
    bytes.iter().zip(word).all(|(one, other)| one == other)
}

const TEXT_BEGIN: &[u8] = b"PROXY ";
/// Version 1, CR LF included, by its specification.
const TEXT_BYTES_MAX: usize = 107;
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Up to the length of the rest, and with it.
const BINARY_BEGIN_BYTES: usize = SIGNATURE.len() + 4;
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;

const _: () = assert!(TEXT_BYTES_MAX <= PROXY_HEADER_BYTES_MAX);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(text: &str) -> Source {
        Source::Client(text.parse().expect("an address"))
    }

    /// A header of version 2 with extensions behind the addresses.
    fn binary(version_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).expect("short").to_be_bytes();
        [SIGNATURE, &[version_command, family], &length, body].concat()
    }

    fn body(source: SocketAddr, extensions: &[u8]) -> (u8, Vec<u8>) {
        let port = source.port().to_be_bytes();
        match source.ip() {
            IpAddr::V4(v4) => (TCP_V4, [&v4.octets()[..], &[192, 0, 2, 1], &port, &[1, 187], extensions].concat()),
            IpAddr::V6(v6) => (TCP_V6, [&v6.octets()[..], &[9; 16], &port, &[1, 187], extensions].concat()),
        }
    }

    /// The lines of the specification, and the shortest and longest that are lawful.
    #[test]
    fn lines_of_version_1_are_read() {
        let long = "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        for (line, source) in [
            ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", client("255.255.255.255:65535")),
            ("PROXY TCP4 192.0.2.7 192.0.2.1 0 443\r\n", client("192.0.2.7:0")),
            ("PROXY TCP6 2001:db8::7 ::1 51234 443\r\n", client("[2001:db8::7]:51234")),
            ("PROXY TCP6 ::ffff:192.0.2.7 ::1 51234 443\r\n", client("192.0.2.7:51234")),
            ("PROXY UNKNOWN\r\n", Source::Balancer),
            ("PROXY UNKNOWN ffff:f...f:ffff 65535 anything\r\n", Source::Balancer),
            (long, client("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535")),
        ] {
            let stream = [line.as_bytes(), b"GET"].concat();
            assert_eq!(decode(&stream), Ok(Some((source, line.len()))), "{line:?}");
        }
    }

    /// Everything that could be read in two ways is refused.
    #[test]
    fn lines_that_break_a_rule_are_refused() {
        for line in [
            "GET /ws HTTP/1.1\r\n",
            "PROXX",
            "proxy tcp4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY\r\n",
            "PROXY \r\n",
            "PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            "PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4  2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\r\n",
            "PROXY UNKNOWN\rX\n",
            "PROXY UNKNOWN \rX\r\n",
            "PROXY UNKNOWN \r\r\n",
            "PROXY UNKNOWN \nX\r\n",
        ] {
            assert_eq!(decode(line.as_bytes()), Err(Malformed), "{line:?}");
        }
        assert_eq!(decode(&[TEXT_BEGIN, &[b'x'; 101]].concat()), Err(Malformed), "107 bytes and no end");
        assert_eq!(decode(&[TEXT_BEGIN, &[b'x'; 100]].concat()), Ok(None));
        assert_eq!(decode(b"PROXY UNKNOWN \xff\r\n"), Err(Malformed));
    }

    /// Version 2 in both families, with extensions, and the ways to name no client.
    #[test]
    fn headers_of_version_2_are_read() {
        for address in ["203.0.113.7:51234", "[2001:db8::7]:65535"] {
            let (family, body) = body(address.parse().expect("an address"), b"\x04\0\x02ab");
            let header = binary(0x21, family, &body);
            assert_eq!(decode(&[&header, &b"GET"[..]].concat()), Ok(Some((client(address), header.len()))));
            assert_eq!(decode(&binary(0x20, family, &body)), Ok(Some((Source::Balancer, header.len()))), "LOCAL");
        }
        for (version_command, family, body) in
            [(0x20, 0, &[][..]), (0x21, 0, &[]), (0x21, 0x12, &[7; 12]), (0x21, 0x31, &[7; 216]), (0x20, 0xff, &[7; 3])]
        {
            let header = binary(version_command, family, body);
            assert_eq!(decode(&header), Ok(Some((Source::Balancer, header.len()))), "{version_command:x} {family:x}");
        }
        let (family, mapped) = body("[::ffff:203.0.113.7]:1".parse().expect("an address"), b"");
        assert_eq!(decode(&binary(0x21, family, &mapped)), Ok(Some((client("203.0.113.7:1"), 16 + 36))));
    }

    /// Another version or command, unknown families, addresses that are cut short, and more than is waited for.
    #[test]
    fn headers_of_version_2_that_break_a_rule_are_refused() {
        let long = vec![0; PROXY_HEADER_BYTES_MAX - 15];
        for (version_command, family, body) in [
            (0x11, 0x11, &[0; 12][..]),
            (0x31, 0x11, &[0; 12]),
            (0x22, 0x11, &[0; 12]),
            (0x21, 0x11, &[0; 11]),
            (0x21, 0x21, &[0; 35]),
            (0x21, 0x41, &[0; 12]),
            (0x21, 0x13, &[0; 12]),
            (0x21, 0x11, &long),
        ] {
            assert_eq!(decode(&binary(version_command, family, body)), Err(Malformed), "{version_command:x} {family:x}");
        }
        assert_eq!(decode(&binary(0x21, 0x11, &long)[..16]), Err(Malformed), "too long by its length");
        assert_eq!(decode(b"\r\n\r\nX"), Err(Malformed));
        assert_eq!(decode(b"\x16\x03\x01"), Err(Malformed));
    }

    proptest! {
        /// What was written is what is read, and no cut of it says anything else.
        #[test]
        fn any_cut_waits_for_the_rest(v6: bool, octets: [u8; 16], port: u16, extensions in prop::collection::vec(any::<u8>(), 0..200), version_1: bool) {
            let [a, b, c, d, ..] = octets;
            let ip = if v6 { IpAddr::from(octets) } else { IpAddr::from([a, b, c, d]) };
            let source = SocketAddr::new(ip, port);
            let header = if version_1 {
                let family = if v6 { "TCP6" } else { "TCP4" };
                format!("PROXY {family} {ip} {ip} {port} 443\r\n").into_bytes()
            } else {
                let (family, body) = body(source, &extensions);
                binary(0x21, family, &body)
            };
            for cut in 0..header.len() {
                prop_assert_eq!(decode(&header[..cut]), Ok(None));
            }
            let expected = Source::Client(SocketAddr::new(ip.to_canonical(), port));
            prop_assert_eq!(decode(&[&header, &extensions[..]].concat()), Ok(Some((expected, header.len()))));
        }

        /// Whatever comes, an answer stays what it is when more comes, lies within the bound, and is there by then.
        #[test]
        fn an_answer_is_final(start in 0_usize..4, mut bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
            let front: [&[u8]; 4] = [b"", TEXT_BEGIN, SIGNATURE, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"];
            bytes.splice(0..0, front[start].iter().copied());
            let mut known = Ok(None);
            for end in 0..=bytes.len() {
                let now = decode(&bytes[..end]);
                prop_assert!(known == Ok(None) || known == now);
                known = now;
            }
            if let Ok(Some((_, length))) = known {
                prop_assert!(length <= bytes.len().min(PROXY_HEADER_BYTES_MAX));
            }
            prop_assert!(known != Ok(None) || bytes.len() < PROXY_HEADER_BYTES_MAX);
        }
    }
}
