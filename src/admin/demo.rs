//! A chat page to try the gateway with, and tokens for it where nothing is at stake.
//!
//! ```text
//!  GET  /demo/            the page; its files lie beside it, compiled into the binary
//!  GET  /demo/config      {"ws": URL of the gateway, "tokens": whether the next one answers, "users": whom to offer}
//!  POST /demo/token       {"user": "ann"} -> {"user", "token", "expires_s"}
//! ```
//!
//! The page speaks the JSON mirror of the protocol and loads nothing from elsewhere; the Content-Security-Policy says so to the
//! browser. Tokens exist only while both listeners are on loopback and the key is the one the gateway made for itself: whoever can
//! ask then can read that key from the data directory as well.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Json, Redirect, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};

use crate::admin::Shared;
use crate::admin::refusal::Refusal;
use crate::config::Secret;
use crate::session::auth;

/// What the page needs to know of the gateway.
#[derive(Clone, Debug)]
pub struct Demo {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Path of the upgrade.
    pub path: String,
    /// The key to make tokens with; `None`: the page asks for a token instead.
    pub secret: Option<Secret>,
}

/// One file of the page.
struct File {
    name: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
}

/// Body of `POST /demo/token`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Wanted {
    user: String,
}

/// Answer of `POST /demo/token`.
#[derive(Serialize, Debug)]
struct Token {
    user: String,
    token: String,
    expires_s: u64,
}

/// The paths of the page.
pub fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/demo", get(async || Redirect::permanent("/demo/")))
        .route("/demo/", get(index))
        .route("/demo/config", get(config))
        .route("/demo/token", post(token))
        .route("/demo/{name}", get(file))
}

async fn index(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    answer(&FILES[0], &shared, &headers)
}

async fn file(State(shared): State<Arc<Shared>>, Path(name): Path<String>, headers: HeaderMap) -> Result<Response, Refusal> {
    let file = FILES.iter().find(|file| file.name == name).ok_or_else(|| Refusal::NoSuchPath(format!("/demo/{name}")))?;
    Ok(answer(file, &shared, &headers))
}

async fn config(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> impl IntoResponse {
    let Demo { path, secret, .. } = &shared.demo;
    let address = address(&shared.demo, &headers);
    Json(serde_json::json!({ "ws": format!("ws://{address}{path}"), "tokens": secret.is_some(), "users": USERS }))
}

async fn token(
    State(shared): State<Arc<Shared>>,
    body: Result<Json<Wanted>, JsonRejection>,
) -> Result<impl IntoResponse, Refusal> {
    let Json(Wanted { user }) = body?;
    let secret = shared.demo.secret.as_ref().ok_or(Refusal::NoDemoTokens)?;
    let now_s = shared.clock.now().unix_ms / 1000;
    let expires_s = now_s.saturating_add(TOKEN_LIFE.as_secs());
    let token = auth::mint(secret, &user, None, now_s..expires_s).ok_or_else(|| Refusal::BadName(user.clone()))?;
    Ok(([(CACHE_CONTROL, "no-store")], Json(Token { user, token, expires_s })))
}

/// Host and port of the gateway as the browser reaches it: by the name it used for us, unless clients listen on another machine's.
fn address(demo: &Demo, headers: &HeaderMap) -> String {
    let ip = demo.listen.ip();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).and_then(host_name);
    match host {
        Some(host) if ip.is_loopback() || ip.is_unspecified() => format!("{host}:{}", demo.listen.port()),
        _ => demo.listen.to_string(),
    }
}

/// The Host header without its port, if it is made of nothing that would mean something in a policy.
fn host_name(host: &str) -> Option<&str> {
    let name = match host.rfind(']') {
        Some(end) => &host[..=end],
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']');
    (!name.is_empty() && name.bytes().all(is_plain)).then_some(name)
}

fn answer(file: &File, shared: &Shared, headers: &HeaderMap) -> Response {
    let address = address(&shared.demo, headers);
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' ws://{address} wss://{address}; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut answer = file.bytes.into_response();
    let fixed: [(HeaderName, &'static str); 5] = [
        (CONTENT_TYPE, file.content_type),
        // The bytes change with the binary, at the same address.
        (CACHE_CONTROL, "no-cache"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    let policy = HeaderValue::from_str(&policy).expect("an address is of visible characters");
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    answer
}

/// The page first.
static FILES: [File; 6] = [
    File { name: "index.html", content_type: "text/html; charset=utf-8", bytes: include_bytes!("demo/index.html") },
    File { name: "style.css", content_type: "text/css; charset=utf-8", bytes: include_bytes!("demo/style.css") },
    File { name: "client.js", content_type: "text/javascript; charset=utf-8", bytes: include_bytes!("demo/client.js") },
    File { name: "page.js", content_type: "text/javascript; charset=utf-8", bytes: include_bytes!("demo/page.js") },
    File { name: "words.js", content_type: "text/javascript; charset=utf-8", bytes: include_bytes!("demo/words.js") },
    File { name: "icon.svg", content_type: "image/svg+xml", bytes: include_bytes!("demo/icon.svg") },
];

/// Whom the page offers to be.
const USERS: [&str; 4] = ["ann", "bo", "chen", "dee"];
const TOKEN_LIFE: Duration = Duration::from_hours(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever a Host header says, it cannot widen the policy.
    #[test]
    fn a_host_is_a_name_or_nothing() {
        for (host, name) in [("127.0.0.1:8081", "127.0.0.1"), ("localhost", "localhost"), ("[::1]:8081", "[::1]")] {
            assert_eq!(host_name(host), Some(name));
        }
        for host in ["", ":80", "a b", "x;script-src *", "'self'", "*"] {
            assert_eq!(host_name(host), None, "{host}");
        }
    }

    /// No file of the page names an address outside, and each is small enough to be compiled in without a thought.
    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        for file in &FILES {
            let text = std::str::from_utf8(file.bytes).unwrap();
            let outside = text.match_indices("://").filter(|(at, _)| !text[at + 3..].starts_with("www.w3.org/2000/svg"));
            assert_eq!(outside.count(), 0, "{}", file.name);
            assert!(file.bytes.len() < 64 * 1024, "{}", file.name);
        }
    }
}
