//! Where a web page comes from: scheme, host and port (RFC 6454), as a browser writes it into `Origin`.
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

/// An origin, compared exactly: scheme, host and port, and nothing else. A port that is the scheme's own may be left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// Lower case.
    scheme: String,
    /// Lower case; IPv6 in brackets.
    host: String,
    /// `None`: the scheme has none of its own, and none is named.
    port: Option<u16>,
}

impl Origin {
    /// Reads a serialised origin. `None`: it is `null`, more than one, or has anything but the three parts, such as a user or a path.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(read_port(port)?)),
            _ => (authority, None),
        };
        let host = host.to_ascii_lowercase();
        let port = port.or_else(|| own_port(&scheme));
        (is_scheme && is_host(&host)).then_some(Self { scheme, host, port })
    }
}

/// A port as browsers write it: decimal, no leading zero.
fn read_port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| is_plain)
}

fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok_and(|parsed| parsed.to_string() == address),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')),
    }
}

/// The port that a scheme has by itself.
fn own_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What passes beside `https://chat.example`, `http://127.0.0.1:8081`, `https://[2001:db8::7]:8443` and `capacitor://localhost`, and what
    /// only looks like one of them.
    #[test]
    fn thirty_origins_are_told_apart() {
        let listed = ["https://chat.example", "http://127.0.0.1:8081", "https://[2001:db8::7]:8443", "capacitor://localhost"];
        let listed = listed.map(|text| Origin::read(text).expect("an origin"));
        for (text, passes) in [
            ("https://chat.example", true),
            ("https://chat.example:443", true),
            ("HTTPS://Chat.Example", true),
            ("http://127.0.0.1:8081", true),
            ("https://[2001:db8::7]:8443", true),
            ("https://[2001:DB8::7]:8443", true),
            ("capacitor://localhost", true),
            // Another scheme, host or port.
            ("http://chat.example", false),
            ("http://chat.example:443", false),
            ("wss://chat.example", false),
            ("https://chat.example:8443", false),
            ("https://chat.example:80", false),
            ("https://www.chat.example", false),
            ("https://chat.example.evil.example", false),
            ("https://chat-example", false),
            ("https://evilchat.example", false),
            ("https://chat.example.", false),
            ("http://127.0.0.1", false),
            ("http://127.0.0.1:80811", false),
            ("http://localhost:8081", false),
            ("https://[2001:db8::7]", false),
            ("https://[2001:db8::8]:8443", false),
            ("capacitor://localhost:80", false),
            // No origin, or more than one.
            ("null", false),
            ("", false),
            ("chat.example", false),
            ("https://", false),
            ("https://chat.example/", false),
            ("https://chat.example/ws", false),
            ("https://chat.example?", false),
            ("https://chat.example#", false),
            ("https://al@chat.example", false),
            ("https://chat.example@evil.example", false),
            ("https://evil.example\\@chat.example", false),
            ("https://chat.example:", false),
            ("https://chat.example:0443", false),
            ("https://chat.example:+443", false),
            ("https://chat.example https://evil.example", false),
            ("https://chat.example, https://evil.example", false),
            (" https://chat.example", false),
            ("https://chat%2eexample", false),
            ("https://ch\u{430}t.example", false),
            ("https:chat.example", false),
            ("://chat.example", false),
            ("https://[2001:db8:0::7]:8443", false),
        ] {
            let found = Origin::read(text).is_some_and(|origin| listed.contains(&origin));
            assert_eq!(found, passes, "{text:?}");
        }
    }
}
