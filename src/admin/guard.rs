//! Keeps web pages away from a listener that has no login.
//!
//! A page in the operator's browser can send requests to loopback addresses. Two doors are shut. *DNS rebinding*: the page's own
//! name is made to resolve to our address, so that the browser takes us for the page's server; the Host header then still carries
//! that name, and a listener on loopback answers only to loopback names. *Cross-origin requests*: a form or script of another site
//! posts to us; browsers then send Origin, which must be ours.

use std::net::{IpAddr, SocketAddr};
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
    let host = text(&HOST);
    if addr.ip().is_loopback()
        && let Some(host) = &host
        && !is_ours(host, addr.ip())
    {
        return Err(Refusal::Host(host.clone()));
    }
    if matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    if let Some(origin) = text(&ORIGIN) {
        let page = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if page.is_none() || page != host.as_deref() {
            return Err(Refusal::Origin(origin));
        }
    } else if let Some(site) = text(&FETCH_SITE)
        && site != "same-origin"
        && site != "none"
    {
        return Err(Refusal::Origin(site));
    }
    Ok(())
}

/// Whether a Host header names a loopback address, `localhost`, or the very address we listen on. The port says nothing here.
fn is_ours(host: &str, listen: IpAddr) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(name, _)| name),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback() || ip == listen)
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
