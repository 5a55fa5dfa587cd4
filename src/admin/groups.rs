//! Groups and their members: each call becomes mail to the store and is answered after the sync.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Json;
use serde::{Deserialize, Serialize};

use crate::admin::Shared;
use crate::admin::ask;
use crate::admin::refusal::{Refusal, Thread};
use crate::ids::{ConversationKind, conversation_kind, is_user};
use crate::limits;
use crate::mail::{MemberChange, MemberDone, MemberMail, MemberRefusal, Submit};
use crate::wire::message::Text;

/// Body of `POST /v1/groups`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Creation {
    conv: String,
    #[serde(default)]
    members: Vec<String>,
}

/// Body of `POST /v1/groups/{conv}/members`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Change {
    #[serde(default)]
    add: Vec<String>,
    #[serde(default)]
    remove: Vec<String>,
}

/// A group as it is after the call.
#[derive(Serialize, Debug)]
pub struct Group {
    conv: String,
    version: u64,
    head: u64,
    members: Vec<String>,
}

/// `POST /v1/groups`: 201 with the new group.
pub async fn create(
    State(shared): State<Arc<Shared>>,
    body: Result<Json<Creation>, JsonRejection>,
) -> Result<(StatusCode, Json<Group>), Refusal> {
    let Json(Creation { conv, members }) = body?;
    let change = MemberChange::Create(users(members)?);
    let done = ask(&shared, &conv, change).await?;
    Ok((StatusCode::CREATED, shown(conv, done)))
}

/// `POST /v1/groups/{conv}/members`: 200 with the group after the change.
///
/// Adding and removing are two changes, in this order: when the second is refused, the first has happened.
pub async fn change(
    State(shared): State<Arc<Shared>>,
    Path(conv): Path<String>,
    body: Result<Json<Change>, JsonRejection>,
) -> Result<Json<Group>, Refusal> {
    let Json(Change { add, remove }) = body?;
    let (add, remove) = (users(add)?, users(remove)?);
    let mut done = None;
    if !add.is_empty() {
        done = Some(ask(&shared, &conv, MemberChange::Add(add)).await?);
    }
    if !remove.is_empty() {
        done = Some(ask(&shared, &conv, MemberChange::Remove(remove)).await?);
    }
    Ok(shown(conv, done.ok_or(Refusal::NoChange)?))
}

/// `GET /v1/groups/{conv}`: 200 with the group.
pub async fn show(State(shared): State<Arc<Shared>>, Path(conv): Path<String>) -> Result<Json<Group>, Refusal> {
    let done = ask(&shared, &conv, MemberChange::Show).await?;
    Ok(shown(conv, done))
}

/// Mails one change to the store and waits for its answer.
async fn ask(shared: &Shared, conv: &str, change: MemberChange) -> Result<MemberDone, Refusal> {
    if !matches!(conversation_kind(conv), Some(ConversationKind::Group | ConversationKind::Channel | ConversationKind::System)) {
        return Err(Refusal::BadName(conv.to_owned()));
    }
    let mail = |reply| Submit::Member(MemberMail { conv: Text::copy_from(conv), change, reply });
    ask::ask(shared, Thread::Store, |reply| ask::submit(shared, mail(reply))).await?.map_err(Refusal::Store)
}

/// Checks user ids and drops repeats.
fn users(mut names: Vec<String>) -> Result<Vec<Text>, Refusal> {
    if let Some(wrong) = names.iter().find(|name| !is_user(name)) {
        return Err(Refusal::BadName(wrong.clone()));
    }
    names.sort_unstable();
    names.dedup();
    if names.len() > limits::GROUP_MEMBERS_MAX {
        return Err(Refusal::Store(MemberRefusal::TooMany));
    }
    Ok(names.iter().map(|name| Text::copy_from(name)).collect())
}

fn shown(conv: String, done: MemberDone) -> Json<Group> {
    Json(Group { conv, version: done.version, head: done.head, members: done.members })
}
