//! The HTTP/1.1 request that opens a WebSocket (RFC 6455 4.2).                                 [httparse, sha1, base64]
//!
//! Three steps: [`HeadScan`] finds the end of the head, byte by byte and whatever the cut; [`parse`] judges the whole head once;
//! [`Request::write_accept`] or [`Refusal::write`] answers. Everything after the blank line belongs to the WebSocket stream, also
//! when it came in the same read.
//!
//! A query is refused, because credentials in it would end in every log on the way. Headers in which balancers name the client are read
//! elsewhere ([`crate::wire::forwarded`]), because anybody can write them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use crate::limits::{UPGRADE_HEAD_BYTES_MAX, UPGRADE_HEADERS_MAX};
use crate::origin::Origin;
use crate::wire::deflate::{self, Agreement};
use crate::wire::envelope::Encoding;

/// What this endpoint takes.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'p> {
    /// Path of the endpoint, `/ws` by default.
    pub path: &'p str,
    /// What is behind it.
    pub endpoint: Endpoint,
    /// Which web pages may connect.
    pub origins: Origins<'p>,
    /// Whether an offer of permessage-deflate is looked at. What comes before the token is judged must not be compressed, and a browser
    /// compresses all it sends: only a client that shows its token in this request is agreed with.
    pub deflate: bool,
}

/// What stands behind the upgrade.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// The gateway: the client must offer a subprotocol we know.
    Gateway,
    /// Every message comes back as it is: for conformance tests and measurements. Any subprotocol will do, and none.
    Echo,
}

/// Which values of `Origin` are accepted. A request without one does not come from a web page and passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origins<'p> {
    /// All: whoever has a token may use it from anywhere.
    Any,
    /// Those of two lists.
    Listed {
        /// The operator's.
        configured: &'p [Origin],
        /// The gateway's own page.
        own: &'p [Origin],
    },
}

/// A request that may be upgraded. Borrows from the head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    /// The encoding the chosen subprotocol stands for; `None` only on the echo endpoint.
    pub encoding: Option<Encoding>,
    /// The subprotocol the answer names.
    pub subprotocol: Option<&'a str>,
    /// The token of `Authorization: Bearer`. Secret.
    pub bearer: Option<&'a str>,
    /// The web page, as its browser names it.
    pub origin: Option<&'a str>,
    /// What is agreed to about compression.
    pub deflate: Option<Agreement>,
    key: &'a [u8],
}

/// Why a request is not upgraded: the status, and a reason that names the remedy.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Refusal {
    /// Not HTTP/1.
    BadSyntax,
    /// More than [`UPGRADE_HEAD_BYTES_MAX`].
    HeadTooLarge,
    /// More than [`UPGRADE_HEADERS_MAX`].
    TooManyHeaders,
    /// A method other than GET.
    MethodNotGet,
    /// HTTP/1.0.
    HttpVersion,
    /// A path other than the endpoint's.
    PathUnknown,
    /// The target has a query, which is where tokens end in every log on the way.
    QueryNotAllowed,
    /// A header that may stand once stands twice: two readers of this request could understand it differently.
    DuplicateHeader,
    /// No `Host`, or an empty one.
    HostMissing,
    /// A body is announced.
    BodyNotAllowed,
    /// `Upgrade` does not name `websocket`.
    UpgradeMissing,
    /// `Connection` does not name `Upgrade`: usually a proxy that does not pass it on.
    ConnectionNotUpgrade,
    /// `Sec-WebSocket-Version` is not 13.
    WebSocketVersion,
    /// `Sec-WebSocket-Key` is not 16 bytes in base64.
    KeyInvalid,
    /// No subprotocol we know was offered.
    SubprotocolUnknown,
    /// `Origin` or `Authorization` is not UTF-8.
    ValueNotUtf8,
    /// The web page is not on the list.
    OriginNotAllowed,
    /// The head was not complete in time.
    HeadTimeout,
    /// Too many attempts; `Retry-After` says when.
    RateLimited,
    /// No room for another connection; `Retry-After` says when.
    Overloaded,
    /// HTTP in the clear where TLS is spoken.
    NotTls,
}

/// Judges a whole request head, up to and with its blank line.
///
/// # Errors
/// The first [`Refusal`] that applies.
pub fn parse<'a>(head: &'a [u8], policy: &Policy<'_>) -> Result<Request<'a>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; UPGRADE_HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => {}
        Ok(_) => return Err(Refusal::BadSyntax),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooManyHeaders),
        Err(_) => return Err(Refusal::BadSyntax),
    }
    if request.method != Some("GET") {
        return Err(Refusal::MethodNotGet);
    }
    if request.version != Some(1) {
        return Err(Refusal::HttpVersion);
    }
    let target = request.path.ok_or(Refusal::BadSyntax)?;
    if path_of(target) != Some(policy.path) {
        return Err(Refusal::PathUnknown);
    }
    if target.contains('?') {
        return Err(Refusal::QueryNotAllowed);
    }
    let fields = Fields::collect(request.headers)?;
    if fields.host.is_none_or(<[u8]>::is_empty) {
        return Err(Refusal::HostMissing);
    }
    if fields.transfer_encoding.is_some() || fields.content_length.is_some_and(|length| length != b"0") {
        return Err(Refusal::BodyNotAllowed);
    }
    if !fields.upgrade_websocket {
        return Err(Refusal::UpgradeMissing);
    }
    if !fields.connection_upgrade {
        return Err(Refusal::ConnectionNotUpgrade);
    }
    if fields.version != Some(b"13") {
        return Err(Refusal::WebSocketVersion);
    }
    let key = fields.key.filter(|key| is_key(key)).ok_or(Refusal::KeyInvalid)?;
    let origin = fields.origin.map(as_text).transpose()?;
    if !policy.origins.allow(origin) {
        return Err(Refusal::OriginNotAllowed);
    }
    let subprotocol = choose_subprotocol(request.headers, policy.endpoint);
    let encoding = match policy.endpoint {
        Endpoint::Gateway => Some(subprotocol.and_then(encoding_of).ok_or(Refusal::SubprotocolUnknown)?),
        Endpoint::Echo => None,
    };
    let bearer = fields.authorization.map(as_text).transpose()?.and_then(bearer_of);
    let may_deflate = policy.deflate && (bearer.is_some() || policy.endpoint == Endpoint::Echo);
    let deflate = if may_deflate { deflate::negotiate(values(request.headers, "sec-websocket-extensions")) } else { None };
    Ok(Request { encoding, subprotocol, bearer, origin, deflate, key })
}

impl Request<'_> {
    /// Appends the answer that opens the WebSocket, status 101.
    pub fn write_accept(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
        );
        out.extend_from_slice(&accept_value(self.key));
        if let Some(subprotocol) = self.subprotocol {
            out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
            out.extend_from_slice(subprotocol.as_bytes());
        }
        if let Some(agreement) = &self.deflate {
            agreement.write(out);
        }
        out.extend_from_slice(b"\r\n\r\n");
    }
}

/// The value of `Sec-WebSocket-Accept` that answers `key` (RFC 6455 4.2.2).
#[must_use]
pub fn accept_value(key: &[u8]) -> [u8; 28] {
    let digest = Sha1::new().chain_update(key).chain_update(KEY_SUFFIX).finalize();
    let mut value = [0; 28];
    let written = STANDARD.encode_slice(digest, &mut value);
    assert!(written == Ok(value.len()), "20 bytes make 28 characters");
    value
}

/// Looks for the end of a request head in pieces of any size, and refuses what no head may contain as soon as it is there.
///
/// Stricter than [`parse`] needs: lines end with CR LF and not with a bare LF, because two readers that disagree about where a
/// line ends are how requests are smuggled.
#[derive(Clone, Copy, Default, Debug)]
pub struct HeadScan {
    at: At,
    len: usize,
}

/// Where a head stands after its latest byte.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum At {
    /// Inside the first line: visible ASCII and spaces, so that a stray WebSocket frame does not pass for its beginning.
    #[default]
    Request,
    /// Inside a header line.
    Line,
    /// After the CR of a line.
    LineReturn,
    /// Before the first byte of a header line.
    Start,
    /// After a CR that begins a line: LF ends the head.
    BlankReturn,
}

impl HeadScan {
    /// Takes the next piece and returns how many bytes of it end the head, if they do.
    ///
    /// # Errors
    /// [`Refusal::BadSyntax`] at a control character or a bare CR or LF, [`Refusal::HeadTooLarge`] at the first byte too many.
    pub fn push(&mut self, piece: &[u8]) -> Result<Option<usize>, Refusal> {
        for (count, &byte) in (1..).zip(piece) {
            self.len = self.len.saturating_add(1);
            if self.len > UPGRADE_HEAD_BYTES_MAX {
                return Err(Refusal::HeadTooLarge);
            }
            self.at = match (self.at, byte) {
                (At::Request | At::Line, b'\r') => At::LineReturn,
                (At::Start, b'\r') => At::BlankReturn,
                (At::LineReturn, b'\n') => At::Start,
                (At::BlankReturn, b'\n') => return Ok(Some(count)),
                (At::Request, b' '..=b'~') => At::Request,
                (At::Line | At::Start, b'\t' | b' '..=b'~' | 0x80..) => At::Line,
                _ => return Err(Refusal::BadSyntax),
            };
        }
        Ok(None)
    }
}

impl Refusal {
    /// Every refusal, in the order of [`Refusal::index`].
    pub const ALL: [Self; 20] = [
        Self::BadSyntax,
        Self::HeadTooLarge,
        Self::TooManyHeaders,
        Self::MethodNotGet,
        Self::HttpVersion,
        Self::PathUnknown,
        Self::QueryNotAllowed,
        Self::DuplicateHeader,
        Self::HostMissing,
        Self::BodyNotAllowed,
        Self::UpgradeMissing,
        Self::ConnectionNotUpgrade,
        Self::WebSocketVersion,
        Self::KeyInvalid,
        Self::SubprotocolUnknown,
        Self::ValueNotUtf8,
        Self::OriginNotAllowed,
        Self::HeadTimeout,
        Self::RateLimited,
        Self::Overloaded,
    ];

    /// Position in [`Refusal::ALL`]: the slot of its counter.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self as u8)
    }

    /// The name under which it is counted.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().0
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(self) -> u16 {
        self.facts().1
    }

    /// What the client reads: what is wrong, and what to do.
    #[must_use]
    pub fn reason(self) -> &'static str {
        self.facts().2
    }

    /// Appends a whole HTTP response, after which the connection closes. `retry_after_s` makes a `Retry-After`.
    #[expect(clippy::arithmetic_side_effects, reason = "a reason is one of the lines below")]
    pub fn write(self, retry_after_s: Option<u32>, out: &mut Vec<u8>) {
        let (_, status, reason) = self.facts();
        let more = match status {
            405 => "Allow: GET\r\nConnection: close\r\n",
            426 => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nConnection: Upgrade, close\r\n",
            _ => "Connection: close\r\n",
        };
        let retry_after = retry_after_s.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
        let response = format!(
            "HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len}\r\n{more}{retry_after}\r\n\
             {reason}\n",
            phrase = phrase(status),
            len = reason.len() + 1,
        );
        out.extend_from_slice(response.as_bytes());
    }

    #[rustfmt::skip]
    fn facts(self) -> (&'static str, u16, &'static str) {
        match self {
            Self::BadSyntax => ("bad_syntax", 400, "This is not an HTTP/1.1 request; open a WebSocket here (RFC 6455)."),
            Self::HeadTooLarge => ("head_too_large", 431, "The request head is longer than 8 KiB; send fewer or shorter headers."),
            Self::TooManyHeaders => ("too_many_headers", 431, "The request has more than 64 headers; send fewer."),
            Self::MethodNotGet => ("method_not_get", 405, "A WebSocket is opened with GET."),
            Self::HttpVersion => ("http_version", 505, "A WebSocket is opened with HTTP/1.1."),
            Self::PathUnknown => ("path_unknown", 404, "There is no WebSocket at this path; use the configured one, by default /ws."),
            Self::QueryNotAllowed => ("query_not_allowed", 400, "The URL has a query; leave it away, and send the token in HELLO or in Authorization: Bearer."),
            Self::DuplicateHeader => ("duplicate_header", 400, "A header that may stand once stands twice; send it once."),
            Self::HostMissing => ("host_missing", 400, "HTTP/1.1 needs a Host header; send one."),
            Self::BodyNotAllowed => ("body_not_allowed", 400, "The request announces a body; send it without one."),
            Self::UpgradeMissing => ("upgrade_missing", 426, "This is a WebSocket endpoint; connect with a WebSocket client, which sends Upgrade: websocket."),
            Self::ConnectionNotUpgrade => ("connection_not_upgrade", 400, "Connection: Upgrade is missing; a proxy on the way must pass it on."),
            Self::WebSocketVersion => ("websocket_version", 426, "Sec-WebSocket-Version must be 13."),
            Self::KeyInvalid => ("key_invalid", 400, "Sec-WebSocket-Key must be 16 random bytes in base64."),
            Self::SubprotocolUnknown => ("subprotocol_unknown", 400, "Offer tidegate.v1 or tidegate.v1.json in Sec-WebSocket-Protocol."),
            Self::ValueNotUtf8 => ("value_not_utf8", 400, "Origin and Authorization must be UTF-8."),
            Self::OriginNotAllowed => ("origin_not_allowed", 403, "This web page may not connect; the operator lists the origins that may."),
            Self::HeadTimeout => ("head_timeout", 408, "The request head took too long; send it at once."),
            Self::RateLimited => ("rate_limited", 429, "Too many attempts; wait as long as Retry-After says."),
            Self::Overloaded => ("overloaded", 503, "No room for another connection; wait as long as Retry-After says."),
            Self::NotTls => ("not_tls", 400, "TLS is spoken on this port; use wss:// instead of ws://."),
        }
    }
}

impl Origins<'_> {
    fn allow(self, origin: Option<&str>) -> bool {
        match (self, origin) {
            (Self::Any, _) | (_, None) => true,
            (Self::Listed { configured, own }, Some(origin)) => {
                Origin::read(origin).is_some_and(|origin| configured.iter().chain(own).any(|one| *one == origin))
            }
        }
    }
}

/// The headers that are judged, each at most once, and the two lists by what is asked of them.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    key: Option<&'a [u8]>,
    version: Option<&'a [u8]>,
    origin: Option<&'a [u8]>,
    authorization: Option<&'a [u8]>,
    content_length: Option<&'a [u8]>,
    transfer_encoding: Option<&'a [u8]>,
    upgrade_websocket: bool,
    connection_upgrade: bool,
}

impl<'a> Fields<'a> {
    fn collect(headers: &[httparse::Header<'a>]) -> Result<Self, Refusal> {
        let mut fields = Self::default();
        for header in headers {
            let singleton = match header.name {
                name if name.eq_ignore_ascii_case("host") => &mut fields.host,
                name if name.eq_ignore_ascii_case("sec-websocket-key") => &mut fields.key,
                name if name.eq_ignore_ascii_case("sec-websocket-version") => &mut fields.version,
                name if name.eq_ignore_ascii_case("origin") => &mut fields.origin,
                name if name.eq_ignore_ascii_case("authorization") => &mut fields.authorization,
                name if name.eq_ignore_ascii_case("content-length") => &mut fields.content_length,
                name if name.eq_ignore_ascii_case("transfer-encoding") => &mut fields.transfer_encoding,
                name if name.eq_ignore_ascii_case("upgrade") => {
                    fields.upgrade_websocket |= list(header.value).any(|item| item.eq_ignore_ascii_case(b"websocket"));
                    continue;
                }
                name if name.eq_ignore_ascii_case("connection") => {
                    fields.connection_upgrade |= list(header.value).any(|item| item.eq_ignore_ascii_case(b"upgrade"));
                    continue;
                }
                _ => continue,
            };
            if singleton.replace(header.value.trim_ascii()).is_some() {
                return Err(Refusal::DuplicateHeader);
            }
        }
        Ok(fields)
    }
}

/// The path of a request target: what stands before the query, after scheme and host if the target has them (RFC 9112 3.2.2).
fn path_of(target: &str) -> Option<&str> {
    let target = target.split_once('?').map_or(target, |(before, _)| before);
    if target.starts_with('/') {
        return Some(target);
    }
    let (scheme, rest) = target.split_once("://")?;
    let known = ["http", "https", "ws", "wss"].iter().any(|one| one.eq_ignore_ascii_case(scheme));
    known.then(|| rest.find('/').and_then(|slash| rest.get(slash..)).unwrap_or("/"))
}

/// The values of all headers of this name.
fn values<'a>(headers: &[httparse::Header<'a>], name: &str) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

/// The items of a comma-separated header value; empty ones do not count (RFC 9110 5.6.1).
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|item| !item.is_empty())
}

/// Whether `key` is the base64 of 16 bytes.
fn is_key(key: &[u8]) -> bool {
    let mut nonce = [0; 18];
    key.len() == 24 && STANDARD.decode_slice(key, &mut nonce) == Ok(16)
}

/// The first subprotocol we know in the client's order; on the echo endpoint, the first that is a token at all.
fn choose_subprotocol<'a>(headers: &[httparse::Header<'a>], endpoint: Endpoint) -> Option<&'a str> {
    values(headers, "sec-websocket-protocol")
        .flat_map(list)
        .filter(|item| item.iter().all(|&byte| is_token_byte(byte)))
        .filter_map(|item| std::str::from_utf8(item).ok())
        .find(|item| endpoint == Endpoint::Echo || encoding_of(item).is_some())
}

fn encoding_of(subprotocol: &str) -> Option<Encoding> {
    match subprotocol {
        "tidegate.v1" => Some(Encoding::Binary),
        "tidegate.v1.json" => Some(Encoding::Json),
        _ => None,
    }
}

/// The token of a Bearer credential. Another scheme is for somebody else on the way, and is not an error.
fn bearer_of(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn as_text(value: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(value).map_err(|_| Refusal::ValueNotUtf8)
}

/// RFC 9110 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "HTTP Version Not Supported",
    }
}

/// RFC 6455 1.3.
const KEY_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy<'static> = Policy { path: "/ws", endpoint: Endpoint::Gateway, origins: Origins::Any, deflate: false };

    /// A good request in which one line is replaced: `("Host", "")` drops it, `("", "X: y\r\n")` adds one.
    fn request(change: &str, line: &str) -> Vec<u8> {
        let lines = [
            ("GET", "GET /ws HTTP/1.1\r\n"),
            ("Host", "Host: chat.example\r\n"),
            ("Upgrade", "Upgrade: websocket\r\n"),
            ("Connection", "Connection: keep-alive, Upgrade\r\n"),
            ("Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
            ("Version", "Sec-WebSocket-Version: 13\r\n"),
            ("Protocol", "Sec-WebSocket-Protocol: tidegate.v1\r\n"),
            ("", ""),
        ];
        let mut head: String = lines.iter().map(|(name, usual)| if *name == change { line } else { usual }).collect();
        head.push_str("\r\n");
        head.into_bytes()
    }

    fn refused(head: &[u8]) -> Refusal {
        parse(head, &POLICY).expect_err("refused")
    }

    /// Key and accept value of RFC 6455 1.3, and the whole answer.
    #[test]
    fn accept_value_is_that_of_the_rfc() {
        assert_eq!(&accept_value(b"dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let mut out = Vec::new();
        parse(&request("none", ""), &POLICY).expect("good").write_accept(&mut out);
        assert_eq!(
            String::from_utf8(out).expect("ASCII"),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: tidegate.v1\r\n\r\n"
        );
    }

    /// What clients and proxies do and the RFC allows: other cases, lists over several lines, absolute targets, a length of 0.
    #[test]
    fn lawful_variants_are_accepted() {
        for (change, line) in [
            ("GET", "GET http://chat.example/ws HTTP/1.1\r\n"),
            ("GET", "\r\nGET /ws HTTP/1.1\r\n"),
            ("Upgrade", "uPGRADE: h2c, WebSocket\r\n"),
            ("Connection", "connection: keep-alive\r\nCONNECTION: ,, upgrade ,\r\n"),
            ("Key", "sec-websocket-key:  dGhlIHNhbXBsZSBub25jZQ== \r\n"),
            ("", "Content-Length: 0\r\n"),
            ("", "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8\r\n"),
            ("", "Sec-WebSocket-Extensions: permessage-deflate\r\n"),
            ("", "Authorization: Basic dXNlcjpwYXNz\r\n"),
        ] {
            let head = request(change, line);
            let request = parse(&head, &POLICY).unwrap_or_else(|refusal| panic!("{line}: {refusal:?}"));
            assert_eq!((request.encoding, request.bearer), (Some(Encoding::Binary), None), "{line}");
        }
    }

    /// The client's order decides, over several lines and past names we do not know.
    #[test]
    fn the_first_known_subprotocol_is_chosen() {
        for (line, expected) in [
            ("Sec-WebSocket-Protocol: mqtt, tidegate.v1.json, tidegate.v1\r\n", Encoding::Json),
            ("Sec-WebSocket-Protocol: mqtt\r\nsec-websocket-protocol: tidegate.v1,tidegate.v1.json\r\n", Encoding::Binary),
        ] {
            assert_eq!(parse(&request("Protocol", line), &POLICY).expect("good").encoding, Some(expected));
        }
        for line in ["", "Sec-WebSocket-Protocol: TIDEGATE.V1\r\n", "Sec-WebSocket-Protocol: tidegate.v2, ,\r\n"] {
            assert_eq!(refused(&request("Protocol", line)), Refusal::SubprotocolUnknown);
        }
    }

    /// On the echo endpoint nothing need be offered, and what is offered comes back unless it is not a token.
    #[test]
    fn echo_takes_any_subprotocol() {
        let policy = Policy { endpoint: Endpoint::Echo, ..POLICY };
        for (line, expected) in [
            ("", None),
            ("Sec-WebSocket-Protocol: chat.v9, tidegate.v1\r\n", Some("chat.v9")),
            ("Sec-WebSocket-Protocol: a b, c\r\n", Some("c")),
        ] {
            let head = request("Protocol", line);
            let request = parse(&head, &policy).expect("good");
            assert_eq!((request.encoding, request.subprotocol), (None, expected));
        }
    }

    /// Each refusal by the smallest change of a good request that earns it.
    #[test]
    fn each_broken_rule_is_refused_by_name() {
        for (change, line, expected) in [
            ("GET", "GET /ws HTTP/2.0\r\n", Refusal::BadSyntax),
            ("GET", "GET  /ws HTTP/1.1\r\n", Refusal::BadSyntax),
            ("GET", "POST /ws HTTP/1.1\r\n", Refusal::MethodNotGet),
            ("GET", "GET /ws HTTP/1.0\r\n", Refusal::HttpVersion),
            ("GET", "GET / HTTP/1.1\r\n", Refusal::PathUnknown),
            ("GET", "GET /wss HTTP/1.1\r\n", Refusal::PathUnknown),
            ("GET", "GET ftp://chat.example/ws HTTP/1.1\r\n", Refusal::PathUnknown),
            ("GET", "GET * HTTP/1.1\r\n", Refusal::PathUnknown),
            ("GET", "GET /ws?token=never HTTP/1.1\r\n", Refusal::QueryNotAllowed),
            ("GET", "GET http://chat.example/ws? HTTP/1.1\r\n", Refusal::QueryNotAllowed),
            ("GET", "GET /elsewhere?x HTTP/1.1\r\n", Refusal::PathUnknown),
            ("Host", "", Refusal::HostMissing),
            ("Host", "Host: \r\n", Refusal::HostMissing),
            ("", "Host: other.example\r\n", Refusal::DuplicateHeader),
            ("", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", Refusal::DuplicateHeader),
            ("", "Sec-WebSocket-Version: 13\r\n", Refusal::DuplicateHeader),
            ("", "Origin: a\r\nOrigin: a\r\n", Refusal::DuplicateHeader),
            ("", "Authorization: Bearer a\r\nauthorization: Bearer b\r\n", Refusal::DuplicateHeader),
            ("", "Content-Length: 0\r\nContent-Length: 0\r\n", Refusal::DuplicateHeader),
            ("", "Content-Length: 5\r\n", Refusal::BodyNotAllowed),
            ("", "Transfer-Encoding: chunked\r\n", Refusal::BodyNotAllowed),
            ("Upgrade", "", Refusal::UpgradeMissing),
            ("Upgrade", "Upgrade: websockets\r\n", Refusal::UpgradeMissing),
            ("Connection", "", Refusal::ConnectionNotUpgrade),
            ("Connection", "Connection: close\r\n", Refusal::ConnectionNotUpgrade),
            ("Version", "", Refusal::WebSocketVersion),
            ("Version", "Sec-WebSocket-Version: 8\r\n", Refusal::WebSocketVersion),
            ("Version", "Sec-WebSocket-Version: 13, 8\r\n", Refusal::WebSocketVersion),
            ("Key", "", Refusal::KeyInvalid),
            ("Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ\r\n", Refusal::KeyInvalid),
            ("Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZSEh\r\n", Refusal::KeyInvalid),
            ("Key", "Sec-WebSocket-Key: !GhlIHNhbXBsZSBub25jZQ==\r\n", Refusal::KeyInvalid),
            ("", "X y: z\r\n", Refusal::BadSyntax),
            ("", " folded\r\n", Refusal::BadSyntax),
        ] {
            assert_eq!(refused(&request(change, line)), expected, "{change:?} {line:?}");
        }
        assert_eq!(refused(&request("", &"X: y\r\n".repeat(UPGRADE_HEADERS_MAX))), Refusal::TooManyHeaders);
        let mut head = request("", "Origin: http://\r\n");
        let at = head.windows(7).position(|window| window == b"http://").expect("there");
        head[at] = 0xff;
        assert_eq!(refused(&head), Refusal::ValueNotUtf8);
    }

    /// Origins of both lists pass, others do not, and a client that is not a web page does. What is the same origin, `src/origin.rs` says.
    #[test]
    fn origins_are_held_against_both_lists() {
        let [configured, own] =
            ["https://chat.example", "http://localhost:8081"].map(|text| [Origin::read(text).expect("an origin")]);
        let policy = Policy { origins: Origins::Listed { configured: &configured, own: &own }, ..POLICY };
        let passes = |line| parse(&request("", line), &policy).map(|_| ());
        for line in ["", "Origin: HTTPS://Chat.Example\r\n", "origin: http://localhost:8081 \r\n"] {
            assert_eq!(passes(line), Ok(()), "{line}");
        }
        for line in
            ["Origin: https://chat.example.evil\r\n", "Origin: null\r\n", "Origin: \r\n", "Origin: https://chat.example:8443\r\n"]
        {
            assert_eq!(passes(line), Err(Refusal::OriginNotAllowed), "{line}");
        }
    }

    /// The token comes from the header alone.
    #[test]
    fn bearer_tokens_are_found() {
        for (line, expected) in [
            ("Authorization: Bearer abc.def.ghi\r\n", Some("abc.def.ghi")),
            ("authorization: bearer   abc\r\n", Some("abc")),
            ("Authorization: Bearer \r\n", None),
            ("Authorization: Bearerabc\r\n", None),
        ] {
            assert_eq!(parse(&request("", line), &POLICY).expect("good").bearer, expected, "{line}");
        }
    }

    /// Compression is agreed to when it is switched on and the token is there; the answer then says so.
    #[test]
    fn compression_is_for_those_who_show_a_token() {
        let line = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
        let token = format!("{line}Authorization: Bearer abc\r\n");
        let answer = |line: &str, policy: &Policy<'_>| {
            let mut out = Vec::new();
            parse(&request("", line), policy).expect("good").write_accept(&mut out);
            String::from_utf8(out).expect("ASCII").contains("Sec-WebSocket-Extensions: permessage-deflate; ")
        };
        let on = Policy { deflate: true, ..POLICY };
        assert!(answer(&token, &on));
        assert!(!answer(line, &on));
        assert!(!answer(&token, &POLICY));
        assert!(!answer("Authorization: Bearer abc\r\n", &on));
        assert!(answer(line, &Policy { endpoint: Endpoint::Echo, ..on }));
    }

    /// What is not a head is refused at its first impossible byte, without waiting for more.
    #[test]
    fn another_protocol_is_refused_at_once() {
        for wrong in [
            &b"\x16\x03\x01\x02"[..],
            b"GET /ws HTTP/1.1\nHost",
            b"GET /\rws",
            b"GET /ws HTTP/1.1\r\n\rX",
            b"GET /\0",
            b"GET /\xc3\xa9",
            b"\x81\x85",
        ] {
            assert_eq!(HeadScan::default().push(wrong), Err(Refusal::BadSyntax), "{wrong:?}");
        }
    }

    /// Every refusal is a complete response with its own name, and the two special statuses carry what RFC 9110 asks of them.
    #[test]
    fn refusals_are_whole_responses() {
        for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal.index(), index);
            assert_eq!(Refusal::ALL.iter().filter(|other| other.name() == refusal.name()).count(), 1);
            let mut out = Vec::new();
            refusal.write(None, &mut out);
            let mut headers = [httparse::EMPTY_HEADER; 8];
            let mut response = httparse::Response::new(&mut headers);
            let Ok(httparse::Status::Complete(len)) = response.parse(&out) else { panic!("{refusal:?} is not a response") };
            assert_eq!(response.code, Some(refusal.status()));
            let value = |name: &str| response.headers.iter().find(|header| header.name == name).map(|header| header.value);
            assert_eq!(value("Content-Length"), Some((out.len() - len).to_string().as_bytes()));
            assert_eq!(value("Sec-WebSocket-Version").is_some(), refusal.status() == 426);
            assert_eq!(value("Allow").is_some(), refusal.status() == 405);
            assert!(response.reason == Some("HTTP Version Not Supported") || refusal.status() != 505);
        }
        let mut out = Vec::new();
        Refusal::Overloaded.write(Some(7), &mut out);
        assert!(String::from_utf8(out).expect("ASCII").contains("\r\nRetry-After: 7\r\n"));
    }
}
