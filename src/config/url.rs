//! Addresses of the services that a gateway asks.

use std::net::IpAddr;

/// `http://` or `https://`, a name or an IP address, a port unless it is the usual one, and a path that may carry a query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Url {
    /// Whether the service shows a certificate and what is said is sealed.
    pub is_https: bool,
    /// A name, or an IP address without brackets.
    pub host: String,
    /// Never 0.
    pub port: u16,
    /// Host and port as they were written, for the header `Host`.
    pub authority: String,
    /// From `/` on.
    pub path: String,
}

impl Url {
    /// Reads one; `None`: it is none, or it has a user or a fragment.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let (is_https, rest) = match text.split_once("://")? {
            ("http", rest) => (false, rest),
            ("https", rest) => (true, rest),
            _ => return None,
        };
        let (authority, path) = rest.split_at_checked(rest.find('/').unwrap_or(rest.len()))?;
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => rest.split_once(']').filter(|(host, _)| host.contains(':') && host.parse::<IpAddr>().is_ok())?,
            None => {
                authority.split_at_checked(authority.find(':').unwrap_or(authority.len())).filter(|(host, _)| is_name(host))?
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => Some(if is_https { 443 } else { 80 }),
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok().filter(|&port| port != 0),
            _ => None,
        }?;
        let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        let path = if path.is_empty() { "/" } else { path };
        is_plain.then(|| Self { is_https, host: host.to_owned(), port, authority: authority.to_owned(), path: path.to_owned() })
    }

    /// Whether somebody has to be asked for the address of the host.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.host.parse::<IpAddr>().is_err()
    }

    /// Whether what is said can be read and changed on its way.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        let is_here = self.host.parse::<IpAddr>().map_or(self.host == "localhost", |ip| ip.is_loopback());
        !self.is_https && !is_here
    }
}

fn is_name(text: &str) -> bool {
    let letters = |label: &str| label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    text.len() <= 253 && text.trim_end_matches('.').split('.').all(|label| !label.is_empty() && letters(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is an address, and what each part of it is.
    #[test]
    fn addresses_are_taken_apart() {
        let of = |text| Url::read(text).map(|url| (url.is_https, url.host, url.port, url.path));
        let parts = |is_https, host: &str, port, path: &str| Some((is_https, host.to_owned(), port, path.to_owned()));
        assert_eq!(of("http://127.0.0.1:7000/jwks.json"), parts(false, "127.0.0.1", 7000, "/jwks.json"));
        assert_eq!(of("https://id.example.org/a?b=c"), parts(true, "id.example.org", 443, "/a?b=c"));
        assert_eq!(of("http://localhost"), parts(false, "localhost", 80, "/"));
        assert_eq!(of("https://[::1]:8443/"), parts(true, "::1", 8443, "/"));
        for wrong in [
            "",
            "id.example.org",
            "ftp://a/",
            "HTTP://a/",
            "http://",
            "http:///x",
            "http://a:0/",
            "http://a:65536/",
            "http://a:+80/",
            "http://a:/",
            "http://user@a/",
            "http://a b/",
            "http://a..b/",
            "http://::1/",
            "http://[a]/",
            "http://[127.0.0.1]/",
            "http://a/x#y",
            "http://a/x y",
            "http://a?x",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    /// Only what leaves the machine in the clear is exposed.
    #[test]
    fn what_leaves_in_the_clear_is_exposed() {
        let exposed = ["http://10.0.0.1/", "http://id.example.org/"];
        let fine = ["http://127.0.0.1/", "http://[::1]/", "http://localhost:1/", "https://10.0.0.1/"];
        assert!(exposed.iter().all(|text| Url::read(text).unwrap().is_exposed()));
        assert!(fine.iter().all(|text| !Url::read(text).unwrap().is_exposed()));
        assert_eq!(["http://localhost/", "http://[::1]/"].map(|text| Url::read(text).unwrap().is_named()), [true, false]);
    }
}
