//! Keeps web pages away from a listener that has no login.
//!
//! A page in the operator's browser can send requests to whatever the operator's machine reaches. Two doors are shut. *DNS rebinding*:
//! the page's own name is made to resolve to our address, so that the browser takes us for the page's server; the Host header then still
//! carries that name. A listener on loopback answers only to loopback names. Beyond loopback a page is answered only under an address or
//! as `localhost`, which nobody can bind to another address. *Cross-origin requests*: a form or script of another site posts to us; the
//! browser then sends Origin, which must be ours.
//!
//! Beyond loopback programs go on asking by any name: balancers and scrapers do, and so do services that change groups. What tells a
//! page is Origin, which a browser sends with whatever changes something, and `Sec-Fetch-Site`, which it sends to https and loopback.
//! `Sec-Fetch-Mode` tells nothing, for programs have it from the fetch of their language. So what a rebound page reads by GET over plain
//! HTTP from another machine cannot be told from a program: only a network that clients are kept off shuts that door.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::admin::Shared;
use crate::admin::refusal::Refusal;

/// Refuses what a foreign web page sends, before anything else looks at it.
pub async fn check(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    match judge(shared.addr, request.method(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Decides from the address we listen on and the headers. A program that sends neither Host nor Origin is no browser.
fn judge(addr: SocketAddr, method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name: &HeaderName| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let (host, origin, site) = (text(&HOST), text(&ORIGIN), text(&FETCH_SITE));
    let is_here_only = addr.ip().to_canonical().is_loopback();
    let is_page = origin.is_some() || site.is_some();
    let is_answered = |host: &str| match address(host) {
        Some(ip) => ip.is_loopback() || !is_here_only,
        None => !is_page && !is_here_only,
    };
    if let Some(host) = host.as_deref().filter(|host| !is_answered(host)) {
        return Err(Refusal::Host(host.to_owned()));
    }
    if matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    if let Some(origin) = origin {
        let page = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if page.is_none() || page != host.as_deref() {
            return Err(Refusal::Origin(origin));
        }
    } else if let Some(site) = site
        && site != "same-origin"
        && site != "none"
    {
        return Err(Refusal::Origin(site));
    }
    Ok(())
}

/// The address that a Host header names by itself, of `localhost` the usual one; the port says nothing here. `None`: a name, which
/// whoever owns it may bind to any address, or nothing that makes sense.
fn address(host: &str) -> Option<IpAddr> {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(name, _)| name),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    if name.eq_ignore_ascii_case("localhost") {
        return Some(Ipv4Addr::LOCALHOST.into());
    }
    name.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(addr: &str, method: Method, headers: &[(&'static str, &str)]) -> Result<(), Refusal> {
        let pairs = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        judge(addr.parse().unwrap(), &method, &pairs.collect())
    }

    /// On loopback only loopback names are answered; a foreign name that resolves here is refused, whatever its port.
    #[test]
    fn a_foreign_host_is_refused_on_loopback() {
        for host in ["127.0.0.1:9100", "localhost:9100", "LOCALHOST", "127.1.2.3", "[::1]:9100", "[::1]"] {
            assert_eq!(judged("127.0.0.1:9100", Method::GET, &[("host", host)]), Ok(()), "{host}");
        }
        for host in ["evil.example:9100", "evil.example", "localhost.evil.example", "10.0.0.1:9100", "", "[", "[evil]:1"] {
            let refused = judged("127.0.0.1:9100", Method::GET, &[("host", host)]);
            assert_eq!(refused, Err(Refusal::Host(host.to_owned())), "{host}");
        }
        assert_eq!(judged("127.0.0.1:9100", Method::GET, &[]), Ok(()));
        assert_eq!(judged("10.0.0.1:9100", Method::GET, &[("host", "gateway.internal:9100")]), Ok(()));
    }

    /// Beyond loopback a page is answered under an address or as `localhost`, not under a name, which anybody may have bound to our address:
    /// its Origin is then the same as Host. Programs may use any name.
    #[test]
    fn a_page_under_a_bound_name_is_refused_beyond_loopback() {
        for listen in ["10.0.0.1:9100", "0.0.0.0:9100", "[::]:9100", "[2001:db8::1]:9100", "[::ffff:10.0.0.1]:9100"] {
            for name in ["evil.example:9100", "evil.example", "localhost.evil.example", "10.0.0.1.evil.example:9100"] {
                let (host, page) = (("host", name), format!("http://{name}"));
                let refused = Err(Refusal::Host(name.to_owned()));
                for method in [Method::GET, Method::POST] {
                    let asked = |mark| judged(listen, method.clone(), &[host, mark]);
                    assert_eq!(asked(("origin", page.as_str())), refused, "{listen} {name}");
                    assert_eq!(asked(("sec-fetch-site", "same-origin")), refused, "{listen} {name}");
                    assert_eq!(asked(("sec-fetch-mode", "cors")), Ok(()), "{listen} {name}");
                    assert_eq!(judged(listen, method, &[host]), Ok(()), "{listen} {name}");
                }
            }
            for name in ["10.0.0.1:9100", "192.0.2.7", "localhost:9100", "[2001:db8::1]:9100", "[::1]"] {
                let (host, page) = (("host", name), format!("http://{name}"));
                let asked = |method, mark| judged(listen, method, &[host, mark]);
                assert_eq!(asked(Method::POST, ("origin", page.as_str())), Ok(()), "{listen} {name}");
                assert_eq!(asked(Method::GET, ("sec-fetch-site", "none")), Ok(()), "{listen} {name}");
                let foreign = "http://evil.example:9100";
                let refused = Err(Refusal::Origin(foreign.to_owned()));
                assert_eq!(asked(Method::POST, ("origin", foreign)), refused, "{listen} {name}");
            }
        }
    }

    /// `::ffff:127.0.0.1` is loopback in other letters, for whoever listens there as for whoever asks.
    #[test]
    fn a_mapped_loopback_address_is_a_loopback_address() {
        for listen in ["[::ffff:127.0.0.1]:8081", "[::ffff:127.9.9.9]:8081", "127.0.0.1:8081"] {
            for host in ["127.0.0.1:8081", "[::ffff:127.0.0.1]:8081", "[::1]:8081", "localhost"] {
                assert_eq!(judged(listen, Method::GET, &[("host", host)]), Ok(()), "{listen} {host}");
            }
            for host in ["evil.example:8081", "10.0.0.1:8081", "[::ffff:10.0.0.1]:8081"] {
                let refused = judged(listen, Method::GET, &[("host", host)]);
                assert_eq!(refused, Err(Refusal::Host(host.to_owned())), "{listen} {host}");
            }
        }
    }

    /// A change needs the origin that the Host header names; programs send none. Reading is left to the browser's own rule.
    #[test]
    fn a_foreign_origin_may_change_nothing() {
        let host = ("host", "localhost:9100");
        let post = |origin| judged("127.0.0.1:9100", Method::POST, &[host, ("origin", origin)]);
        assert_eq!(post("http://localhost:9100"), Ok(()));
        for origin in ["http://localhost:3000", "http://evil.example", "null", "file://", ""] {
            assert_eq!(post(origin), Err(Refusal::Origin(origin.to_owned())), "{origin}");
        }
        assert_eq!(judged("127.0.0.1:9100", Method::POST, &[host]), Ok(()));
        let fetched = judged("127.0.0.1:9100", Method::POST, &[host, ("sec-fetch-site", "cross-site")]);
        assert_eq!(fetched, Err(Refusal::Origin("cross-site".to_owned())));
        assert_eq!(judged("127.0.0.1:9100", Method::GET, &[host, ("origin", "http://evil.example")]), Ok(()));
    }
}
