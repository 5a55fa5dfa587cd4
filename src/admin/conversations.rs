//! Conversations as the operator's side sees them: head and members, what a user has not read, and messages of its own.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Json;
use serde::{Deserialize, Serialize};

use crate::admin::Shared;
use crate::admin::ask::{ask, look, refusal, submit};
use crate::admin::refusal::{Refusal, Thread};
use crate::ids::{Cmid, ConversationKind, ReactorId, RosterId, SessionRef, conversation_kind, is_user};
use crate::mail::{Looked, PostMail, Question, SendMail, Sender, Submit};
use crate::wire::envelope::send_flags;
use crate::wire::message::{Body, Text};

/// `GET /v1/conversations/{conv}`.
#[derive(Serialize, Debug)]
pub struct Shown {
    conv: String,
    head: u64,
    floor: u64,
    version: u64,
    members: Vec<Member>,
}

#[derive(Serialize, Debug)]
struct Member {
    user: String,
    /// First seq the user may see.
    joined: u64,
}

/// `GET /v1/conversations/{conv}`: 200 with the conversation as it is stored.
pub async fn show(State(shared): State<Arc<Shared>>, Path(conv): Path<String>) -> Result<Json<Shown>, Refusal> {
    let kind = conversation_kind(&conv).ok_or_else(|| Refusal::BadName(conv.clone()))?;
    let question = Question::Conversation(Text::copy_from(&conv));
    let Looked::Conversation(seen) = look(&shared, question).await? else { return Err(Refusal::Internal) };
    let seen = seen.ok_or(Refusal::Store(crate::mail::MemberRefusal::Unknown))?;
    let mut members: Vec<_> = match kind {
        ConversationKind::Direct(a, b) => [a, b].map(|user| Member { user: user.to_owned(), joined: 1 }).into(),
        _ => seen.members.into_iter().map(|(user, joined)| Member { user, joined }).collect(),
    };
    members.sort_by(|a, b| a.user.cmp(&b.user));
    members.dedup_by(|a, b| a.user == b.user);
    Ok(Json(Shown { head: seen.head, floor: seen.floor, version: seen.version, members, conv }))
}

/// Query of [`of_user`].
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct From {
    #[serde(default)]
    cursor: String,
}

/// `GET /v1/users/{user}/conversations`: 200 with head, read position and unread count of each, a page at a time.
pub async fn of_user(
    State(shared): State<Arc<Shared>>,
    Path(user): Path<String>,
    query: Result<Query<From>, QueryRejection>,
) -> Result<Json<serde_json::Value>, Refusal> {
    let Query(From { cursor }) = query.map_err(|error| Refusal::BadQuery(error.body_text()))?;
    if !is_user(&user) {
        return Err(Refusal::BadName(user));
    }
    let question = Question::Conversations { user: Text::copy_from(&user), cursor: Text::copy_from(&cursor) };
    let Looked::Conversations(page) = look(&shared, question).await? else { return Err(Refusal::Internal) };
    let page: serde_json::Value = serde_json::from_slice(&page).map_err(|_| Refusal::Internal)?;
    let number = |entry: &serde_json::Value, key: &str| entry[key].as_u64().unwrap_or(0);
    let entries = page["entries"].as_array().map_or(&[][..], Vec::as_slice);
    let conversations: Vec<_> = entries
        .iter()
        .map(|entry| {
            serde_json::json!({
                "conv": entry["conv"], "head": number(entry, "head"), "floor": number(entry, "floor"),
                "read": number(entry, "read"), "unread": number(entry, "unread"),
            })
        })
        .collect();
    let unread: u64 = entries.iter().map(|entry| number(entry, "unread")).sum();
    let mut answer = serde_json::json!({ "user": user, "unread": unread, "conversations": conversations });
    if let Some(cursor) = page["cursor"].as_str().filter(|cursor| !cursor.is_empty()) {
        answer["cursor"] = cursor.into();
    }
    Ok(Json(answer))
}

/// Body of [`send`].
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Message {
    text: String,
    from: Option<String>,
    #[serde(default = "kind_default")]
    kind: u16,
    #[serde(default)]
    ttl_s: u32,
    #[serde(default)]
    quiet: bool,
    cmid: Option<String>,
}

fn kind_default() -> u16 {
    1
}

/// Answer of [`send`].
#[derive(Serialize, Debug)]
pub struct Sent {
    seq: u64,
    /// A string: it exceeds 2^53.
    mid: String,
    level: u8,
    duplicate: bool,
    cmid: String,
}

/// `POST /v1/conversations/{conv}/messages`: 201 when the message has reached its level; 200 if it had before.
pub async fn send(
    State(shared): State<Arc<Shared>>,
    Path(conv): Path<String>,
    body: Result<Json<Message>, JsonRejection>,
) -> Result<(StatusCode, Json<Sent>), Refusal> {
    let Json(message) = body?;
    if conversation_kind(&conv).is_none() {
        return Err(Refusal::BadName(conv));
    }
    let user = message.from.unwrap_or_else(|| SYSTEM_USER.to_owned());
    if !is_user(&user) {
        return Err(Refusal::BadName(user));
    }
    if message.text.len() > shared.in_force().settings.protocol.max_payload_bytes as usize {
        return Err(Refusal::TooLarge);
    }
    // A cmid of the caller's makes a repeat harmless; one of ours is new by construction.
    let (cmid, retry) = match &message.cmid {
        Some(text) => (
            parse_cmid(text).ok_or_else(|| Refusal::BadBody("cmid is 32 lower-case hex digits, not all 0".to_owned()))?,
            send_flags::RETRY,
        ),
        None => (shared.fresh_cmid(), 0),
    };
    let nobody = SessionRef { reactor: ReactorId(u16::MAX), index: 0, generation: 0 };
    let mail = SendMail {
        from: Sender { session: nobody, roster: RosterId(u32::MAX), rid: 0 },
        cmid,
        flags: retry | if message.quiet { send_flags::QUIET } else { 0 },
        kind: message.kind,
        ttl_s: message.ttl_s,
        trace: None,
        conv: Text::copy_from(&conv),
        payload: Body::copy_from(message.text.as_bytes()),
        refusal: None,
        received: shared.clock.now(),
    };
    let user = Text::copy_from(&user);
    let done =
        ask(&shared, Thread::Store, |reply| submit(&shared, Submit::Post(PostMail { message: mail, user, reply }))).await?;
    let done = done.map_err(refusal)?;
    let status = if done.is_duplicate { StatusCode::OK } else { StatusCode::CREATED };
    let (mid, cmid) = (done.mid.0.to_string(), format!("{cmid:?}"));
    Ok((status, Json(Sent { seq: done.seq, mid, level: done.level, duplicate: done.is_duplicate, cmid })))
}

fn parse_cmid(text: &str) -> Option<Cmid> {
    let is_hex = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let cmid = is_hex.then(|| u128::from_str_radix(text, 16).ok())??;
    (cmid != 0).then(|| Cmid(cmid.to_be_bytes()))
}

/// Who sends when nobody is named.
const SYSTEM_USER: &str = "system";
