//! What implementations that are not ours make of the same bytes. Each function takes the verdict of the gateway as well, and panics when
//! the two differ in more than the rules named there: what is accepted by both must mean the same, and what only one accepts must fall
//! under a rule that is stricter, or laxer, on purpose.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use tidegate::limits::JSON_DEPTH_MAX;
use tidegate::wire::envelope::{ClientFrame, DecodeError, Encoding, Frames};
use tidegate::wire::upgrade::{self, Refusal, Request};
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{self, create_response};

/// A whole request head, by the server's side of tungstenite. What opens a WebSocket here opens it there, with the same answer to its
/// key, unless `Connection` and `Upgrade` are lists, or the target is no URI to it. What opens it there and not here breaks a rule that
/// RFC 6455 leaves to the server, or is a head that two readers could understand differently.
pub fn check_head(head: &[u8], ours: &Result<Request<'_>, Refusal>) {
    let theirs =
        server::Request::try_parse(head).ok().flatten().filter(|(len, _)| *len == head.len()).map(|(_, request)| request);
    let opened = theirs.as_ref().and_then(|request| create_response(request).ok());
    // To it blanks separate the names in `Connection` as well as commas do.
    let splits_at_blanks = header(theirs.as_ref(), "Connection").is_some_and(|value| value.contains(&b' '));
    match (ours, opened) {
        (Ok(request), Some(response)) => {
            let accept = response.headers().get("Sec-WebSocket-Accept").expect("an answer to the key");
            assert_eq!(accept.as_bytes(), upgrade::accept_value(request_key(theirs.as_ref())), "two answers to one key");
            assert!(request.origin.map(str::as_bytes) == header(theirs.as_ref(), "Origin"));
        }
        (Ok(_), None) => {
            let is_one =
                |name: &str, word: &[u8]| header(theirs.as_ref(), name).is_some_and(|value| value.eq_ignore_ascii_case(word));
            let is_plain = is_one("Connection", b"Upgrade") && is_one("Upgrade", b"websocket");
            assert!(!is_plain, "another server refuses what is accepted: {}", String::from_utf8_lossy(head));
        }
        (Err(refusal), Some(_)) => assert!(
            matches!(
                refusal,
                Refusal::HeadTooLarge
                    | Refusal::TooManyHeaders
                    | Refusal::PathUnknown
                    | Refusal::QueryNotAllowed
                    | Refusal::DuplicateHeader
                    | Refusal::HostMissing
                    | Refusal::BodyNotAllowed
                    | Refusal::SubprotocolUnknown
                    | Refusal::ValueNotUtf8
                    | Refusal::OriginNotAllowed
            ) || *refusal == Refusal::ConnectionNotUpgrade && splits_at_blanks,
            "another server accepts what is refused as {}: {}",
            refusal.name(),
            String::from_utf8_lossy(head)
        ),
        (Err(_), None) => {}
    }
}

fn header<'a>(request: Option<&'a server::Request>, name: &str) -> Option<&'a [u8]> {
    request?.headers().get(name).map(|value| value.as_bytes())
}

fn request_key(request: Option<&server::Request>) -> &[u8] {
    header(request, "Sec-WebSocket-Key").expect("a key")
}

/// One line of a client, by serde_json: it is an object for both or for neither, but for one that is too deep here; a frame that is read
/// says what the values of the line say. Values are compared where serde_json has all of them: it has none of half a surrogate pair and of
/// a number beyond every float, which are ignored here in a field that the frame does not have.
pub fn check_line(line: &[u8]) {
    let Ok(text) = std::str::from_utf8(line) else { return };
    if text.trim_matches([' ', '\t', '\r']).is_empty() {
        return;
    }
    let ours = Frames::new(Encoding::Json, line).next_frame();
    let is_ours = !matches!(&ours, Err(DecodeError { detail: "not a JSON object", .. }));
    let is_theirs = text.trim_start().starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    let is_deep = depth(text) > JSON_DEPTH_MAX as usize + 1;
    assert_eq!(is_ours, is_theirs && !is_deep, "two verdicts on {text}");
    let values: Result<Map<String, Value>, _> = serde_json::from_str(text);
    if let (Ok(Some(frame)), Ok(values)) = (&ours, &values) {
        assert!(says(frame, &Line(values)), "{frame:?} was read from {text}");
    }
}

/// How many lists and objects are open at once in what is JSON.
fn depth(text: &str) -> usize {
    let (mut open, mut most, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => open += 1,
            b']' | b'}' if !in_string => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// The values of a line, by key; of several equal keys the last.
struct Line<'a>(&'a Map<String, Value>);

impl Line<'_> {
    fn number(&self, key: &str) -> u64 {
        self.0.get(key).map_or(0, |value| value.as_u64().expect("a number"))
    }

    fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", |value| value.as_str().expect("a string"))
    }

    fn decimal(&self, key: &str) -> u64 {
        self.0.get(key).map_or(0, |value| value.as_str().and_then(|digits| digits.parse().ok()).expect("digits"))
    }

    fn hex(&self, key: &str) -> u128 {
        self.0.get(key).map_or(0, |value| u128::from_str_radix(value.as_str().expect("a string"), 16).expect("digits"))
    }

    fn payload(&self) -> Vec<u8> {
        match self.0.get("b64") {
            Some(value) => STANDARD.decode(value.as_str().expect("a string")).expect("base64"),
            None => self.text("text").as_bytes().to_vec(),
        }
    }

    fn list(&self, key: &str) -> &[Value] {
        self.0.get(key).map_or(&[], |value| value.as_array().expect("a list"))
    }
}

/// Whether `frame` is what the line says, field by field.
fn says(frame: &ClientFrame<'_>, line: &Line<'_>) -> bool {
    let is = |name: &str| line.text("t") == name;
    let number = |key: &str, value: u64| line.number(key) == value;
    match frame {
        ClientFrame::Hello(hello) => {
            let numbers = number("minor", hello.minor.into())
                && number("platform", hello.platform.into())
                && number("window", hello.window.into())
                && number("caps", hello.caps.into())
                && number("last_pos", hello.last_pos);
            let names =
                [line.text("device"), line.text("client"), line.text("token")] == [&hello.device, &hello.client, &hello.token];
            is("hello") && numbers && names && line.hex("session") == u128::from_be_bytes(hello.session)
        }
        ClientFrame::Ping { pos } => is("ping") && number("pos", *pos),
        ClientFrame::Auth { rid, token } => is("auth") && number("rid", (*rid).into()) && line.text("token") == token,
        ClientFrame::Send(send) => {
            let trace = send.trace.map(|trace| u128::from_be_bytes(trace.trace_id));
            let traced = line.text("trace").split('-').nth(1).map(|id| u128::from_str_radix(id, 16).expect("digits"));
            is("send")
                && number("rid", send.rid.into())
                && number("kind", send.kind.into())
                && number("ttl_s", send.ttl_s.into())
                && line.hex("cmid") == u128::from_be_bytes(send.cmid.0)
                && line.text("conv") == send.conv
                && line.payload() == *send.payload
                && traced == trace
        }
        ClientFrame::Ack { pos, cursors } => {
            let listed = line.list("cursors").iter().map(|cursor| {
                let cursor = Line(cursor.as_object().expect("an object"));
                (cursor.text("conv").to_owned(), cursor.number("seq"))
            });
            is("ack") && number("pos", *pos) && listed.eq(cursors.iter().map(|cursor| (cursor.conv.to_string(), cursor.seq)))
        }
        ClientFrame::Nack { conv, seq, delay_ms, reason } => {
            let numbers = number("seq", *seq) && number("delay_ms", (*delay_ms).into()) && number("reason", (*reason).into());
            is("nack") && numbers && line.text("conv") == conv
        }
        ClientFrame::Sync { rid, since, limit, cursor } => {
            let numbers = number("rid", (*rid).into()) && line.decimal("since") == *since && number("limit", (*limit).into());
            is("sync") && numbers && line.text("cursor") == cursor
        }
        ClientFrame::Fetch { rid, conv, from, to, limit, flags } => {
            let bounds = number("from", *from) && number("to", *to) && number("limit", (*limit).into());
            is("fetch") && bounds && number("rid", (*rid).into()) && number("flags", (*flags).into()) && line.text("conv") == conv
        }
        ClientFrame::Read { rid, conv, seq } => {
            is("read") && number("rid", (*rid).into()) && number("seq", *seq) && line.text("conv") == conv
        }
        ClientFrame::Watch { rid, ttl_s, users } => {
            let listed = line.list("users").iter().map(|user| user.as_str().expect("a string"));
            let same = users.iter().map(|user| user.to_string()).eq(listed);
            is("watch") && number("rid", (*rid).into()) && number("ttl_s", (*ttl_s).into()) && same
        }
        ClientFrame::Signal { conv, kind, payload } => {
            is("signal") && number("kind", (*kind).into()) && line.text("conv") == conv && line.payload() == **payload
        }
    }
}
