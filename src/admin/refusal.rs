//! Why a request was not carried out: a code for programs, a sentence and a remedy for people.

use axum::extract::rejection::JsonRejection;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Json, Response};

use super::ask::ANSWER_PATIENCE;
use crate::limits;
use crate::mail::MemberRefusal;

/// Every refusal of the admin listener. The body is `{"error": code, "detail": sentence, "remedy": sentence}`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The Host header names a foreign host: a web page whose name may have been bound to our address.
    Host(String),
    /// The request was made by a web page of another origin.
    Origin(String),
    /// No such path.
    NoSuchPath(String),
    /// The path is there, but not for this method.
    WrongMethod,
    /// The body is longer than [`limits::ADMIN_BODY_BYTES_MAX`].
    TooLarge,
    /// The body is not the JSON that is wanted.
    BadBody(String),
    /// A conversation or user id that is none.
    BadName(String),
    /// Nothing to add and nothing to remove.
    NoChange,
    /// What the store answered.
    Store(MemberRefusal),
    /// The lane to the store is full, or too many changes are waiting.
    Busy,
    /// A thread did not answer in time; what was asked may still happen.
    Silent(Thread),
    /// The page asks for a token where the gateway makes none.
    NoDemoTokens,
    /// The same cmid was used for another message.
    CmidReused,
    /// A query or a choice of connections that means nothing.
    BadQuery(String),
    /// Files of TLS that are no good, or no listener for it.
    KeysRefused(String),
    /// The node is leaving already.
    Draining,
    /// A defect of ours.
    Internal,
}

/// Whom a call waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Thread {
    /// The store thread.
    Store,
    /// A thread that reads the engine.
    Reader,
    /// A reactor.
    Reactor(u16),
    /// The main thread.
    Main,
}

impl Refusal {
    /// Status, code and remedy; one row per line of the table in `docs/admin.md`.
    fn facts(&self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::Host(_) => (S::FORBIDDEN, "host_refused", "ask for the admin listener by its address or as localhost"),
            Self::Origin(_) => (S::FORBIDDEN, "origin_refused", "call from a program, or from a page of the same origin"),
            Self::NoSuchPath(_) => (S::NOT_FOUND, "not_found", "docs/admin.md lists the paths"),
            Self::WrongMethod => (S::METHOD_NOT_ALLOWED, "method_not_allowed", "docs/admin.md lists the methods of each path"),
            Self::TooLarge => (
                S::PAYLOAD_TOO_LARGE,
                "too_large",
                "send less: members in several requests, text up to protocol.max_payload_bytes, data up to 4096 bytes",
            ),
            Self::BadBody(_) => (S::BAD_REQUEST, "bad_body", "send the JSON object shown in docs/admin.md as application/json"),
            Self::BadName(_) | Self::Store(MemberRefusal::BadName) => (
                S::BAD_REQUEST,
                "bad_name",
                "conversations read d:a:b, g:name, c:name or s:name, users 1 to 64 of A-Z a-z 0-9 _ . @ -",
            ),
            Self::NoChange => (S::BAD_REQUEST, "no_change", "name users under add, remove, roles, mute or unmute"),
            Self::Store(MemberRefusal::Exists) => (S::CONFLICT, "exists", "change its members instead"),
            Self::Store(MemberRefusal::Unknown) => (S::NOT_FOUND, "unknown", "create it first"),
            Self::Store(MemberRefusal::TooMany) => (S::CONFLICT, "too_many", "remove members first"),
            Self::Store(MemberRefusal::Overloaded) => (S::SERVICE_UNAVAILABLE, "overloaded", "try again after Retry-After"),
            Self::Store(MemberRefusal::ReadOnly) => (S::SERVICE_UNAVAILABLE, "read_only", "free space on the disk of the store"),
            Self::Busy => (S::SERVICE_UNAVAILABLE, "busy", "try again after Retry-After"),
            Self::Silent(Thread::Store) => {
                (S::GATEWAY_TIMEOUT, "store_silent", "read it again to see whether the change happened; look at the disk")
            }
            Self::Silent(Thread::Reader) => (S::GATEWAY_TIMEOUT, "reader_silent", "try again; look at the disk"),
            Self::Silent(Thread::Reactor(_)) => {
                (S::GATEWAY_TIMEOUT, "reactor_silent", "try again; /readyz names a reactor that stands still")
            }
            Self::CmidReused => (S::CONFLICT, "cmid_reused", "give every message a cmid of its own"),
            Self::BadQuery(_) => (S::BAD_REQUEST, "bad_query", "docs/admin.md lists what each path takes"),
            Self::Silent(Thread::Main) => (S::GATEWAY_TIMEOUT, "main_silent", "try again; look into the log of the gateway"),
            Self::KeysRefused(_) => (S::CONFLICT, "keys_refused", "repair the file that is named; what was in force stays so"),
            Self::Draining => (S::CONFLICT, "draining", "wait; a second signal to the process cuts a drain short"),
            Self::NoDemoTokens => (S::FORBIDDEN, "no_demo_tokens", "make one with `tidegate token`; the page takes it"),
            Self::Internal => (S::INTERNAL_SERVER_ERROR, "internal", "look into the log of the gateway"),
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Host(host) => format!(
                "the Host header says `{host}`, which is not this listener; web pages come by its address, or through a proxy that sets \
                 Host to it"
            ),
            Self::Origin(origin) => format!("the request comes from a web page of `{origin}`"),
            Self::NoSuchPath(path) => format!("there is no `{path}`"),
            Self::WrongMethod => "the path does not take this method".to_owned(),
            Self::TooLarge => format!(
                "the body is longer than {} bytes, the text longer than a message may be, or the data longer than {}",
                limits::ADMIN_BODY_BYTES_MAX,
                limits::CONV_DATA_BYTES_MAX
            ),
            Self::BadBody(why) => why.clone(),
            Self::BadName(name) => format!("`{name}` is no id of this kind"),
            Self::NoChange => "no user is named".to_owned(),
            Self::Store(MemberRefusal::BadName) => "the store refuses the name".to_owned(),
            Self::Store(MemberRefusal::Exists) => "the conversation exists".to_owned(),
            Self::Store(MemberRefusal::Unknown) => "the conversation does not exist".to_owned(),
            Self::Store(MemberRefusal::TooMany) => {
                let (members, bans, revocations) = (limits::GROUP_MEMBERS_MAX, limits::BANS_MAX, limits::REVOCATIONS_MAX);
                format!("more than {members} members, {bans} bans or {revocations} revocations (until_s makes room)")
            }
            Self::Store(MemberRefusal::Overloaded) => "the store is overloaded".to_owned(),
            Self::Store(MemberRefusal::ReadOnly) => "the store takes no changes: its disk is full or failed".to_owned(),
            Self::Busy => "the lane to the store is full, or too many changes wait".to_owned(),
            Self::Silent(Thread::Store) => format!("the store thread did not answer {}; the change may still happen", in_time()),
            Self::Silent(Thread::Reader) => format!("no reader thread answered {}", in_time()),
            Self::Silent(Thread::Reactor(number)) => format!("reactor {number} did not answer {}", in_time()),
            Self::Silent(Thread::Main) => format!("the main thread did not answer {}; it may still happen", in_time()),
            Self::KeysRefused(why) => why.clone(),
            Self::CmidReused => "this cmid belongs to another message".to_owned(),
            Self::BadQuery(why) => why.clone(),
            Self::Draining => "the node is draining".to_owned(),
            Self::NoDemoTokens => "tokens are made here only on loopback and with the generated secret".to_owned(),
            Self::Internal => "a defect of the gateway".to_owned(),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, error, remedy) = self.facts();
        let body = Json(serde_json::json!({ "error": error, "detail": self.detail(), "remedy": remedy }));
        let mut response = (status, body).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE { Self::TooLarge } else { Self::BadBody(rejection.body_text()) }
    }
}

fn in_time() -> String {
    format!("within {} s", ANSWER_PATIENCE.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `docs/admin.md` has a row for every refusal, with its code, status and remedy.
    #[test]
    fn every_refusal_is_documented() {
        let store = [
            MemberRefusal::BadName,
            MemberRefusal::Exists,
            MemberRefusal::Unknown,
            MemberRefusal::TooMany,
            MemberRefusal::Overloaded,
            MemberRefusal::ReadOnly,
        ];
        let mut all = vec![
            Refusal::Host(String::new()),
            Refusal::Origin(String::new()),
            Refusal::NoSuchPath(String::new()),
            Refusal::WrongMethod,
            Refusal::TooLarge,
            Refusal::BadBody(String::new()),
            Refusal::BadName(String::new()),
            Refusal::NoChange,
            Refusal::Busy,
            Refusal::Silent(Thread::Store),
            Refusal::Silent(Thread::Reader),
            Refusal::Silent(Thread::Reactor(0)),
            Refusal::Silent(Thread::Main),
            Refusal::KeysRefused(String::new()),
            Refusal::CmidReused,
            Refusal::BadQuery(String::new()),
            Refusal::Draining,
            Refusal::NoDemoTokens,
            Refusal::Internal,
        ];
        all.extend(store.map(Refusal::Store));
        let page = include_str!("../../docs/admin.md");
        for refusal in all {
            let (status, error, remedy) = refusal.facts();
            let row = format!("| `{error}` | {} | {remedy} |", status.as_u16());
            assert!(page.lines().any(|line| line == row), "docs/admin.md wants: {row}");
        }
    }
}
