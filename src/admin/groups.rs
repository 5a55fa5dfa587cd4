//! Groups and their members: each call becomes mail to the store and is answered after the sync.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Json;
use serde::{Deserialize, Serialize};

use crate::admin::Shared;
use crate::admin::ask;
use crate::admin::refusal::{Refusal, Thread};
use crate::ids::{ConversationKind, Role, conversation_kind, is_device, is_user};
use crate::limits;
use crate::mail::{MemberChange, MemberDone, MemberMail, MemberRefusal, Submit, UserChange, UserMail};
use crate::wire::message::{Body, Text};

/// Body of `POST /v1/groups`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Creation {
    conv: String,
    #[serde(default)]
    members: Vec<String>,
    /// User to word of the role.
    #[serde(default)]
    roles: BTreeMap<String, String>,
    /// Newcomers see what was before them.
    #[serde(default)]
    history: bool,
    #[serde(default)]
    data: String,
}

/// Body of `POST /v1/groups/{conv}/members`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Change {
    #[serde(default)]
    add: Vec<String>,
    #[serde(default)]
    remove: Vec<String>,
    /// User to word of the role.
    #[serde(default)]
    roles: BTreeMap<String, String>,
    #[serde(default)]
    mute: Vec<String>,
    #[serde(default)]
    unmute: Vec<String>,
    #[serde(default)]
    data: String,
}

/// Body of `POST /v1/groups/{conv}/changed`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Touched {
    history: Option<bool>,
    #[serde(default)]
    data: String,
}

/// A group as it is after the call.
#[derive(Serialize, Debug)]
pub struct Group {
    conv: String,
    version: u64,
    head: u64,
    members: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    roles: BTreeMap<String, &'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    muted: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    history: bool,
}

/// `POST /v1/groups`: 201 with the new group.
pub async fn create(
    State(shared): State<Arc<Shared>>,
    body: Result<Json<Creation>, JsonRejection>,
) -> Result<(StatusCode, Json<Group>), Refusal> {
    let Json(Creation { conv, members, roles, history, data }) = body?;
    let (members, roles, data) = (users(members)?, roles_of(roles)?, data_of(data)?);
    let mut done = ask(&shared, &conv, MemberChange::Create(members), &data).await?;
    if history {
        done = ask(&shared, &conv, MemberChange::Touch { history: Some(true) }, &data).await?;
    }
    for change in roles {
        done = ask(&shared, &conv, change, &data).await?;
    }
    Ok((StatusCode::CREATED, shown(conv, done)))
}

/// `POST /v1/groups/{conv}/members`: 200 with the group after the change.
///
/// Adding, removing, each role, silencing and ending that are changes of their own, in this order: when one is refused, those before
/// it have happened.
pub async fn change(
    State(shared): State<Arc<Shared>>,
    Path(conv): Path<String>,
    body: Result<Json<Change>, JsonRejection>,
) -> Result<Json<Group>, Refusal> {
    let Json(Change { add, remove, roles, mute, unmute, data }) = body?;
    let (add, remove, mute, unmute) = (users(add)?, users(remove)?, users(mute)?, users(unmute)?);
    let (roles, data) = (roles_of(roles)?, data_of(data)?);
    let silence = |users, muted| MemberChange::Set { users, role: None, muted: Some(muted) };
    let mut changes = vec![MemberChange::Add(add), MemberChange::Remove(remove)];
    changes.extend(roles);
    changes.extend([silence(mute, true), silence(unmute, false)]);
    let mut done = None;
    for change in changes {
        let (MemberChange::Add(users) | MemberChange::Remove(users) | MemberChange::Set { users, .. }) = &change else {
            continue;
        };
        if !users.is_empty() {
            done = Some(ask(&shared, &conv, change, &data).await?);
        }
    }
    Ok(shown(conv, done.ok_or(Refusal::NoChange)?))
}

/// `GET /v1/groups/{conv}`: 200 with the group.
pub async fn show(State(shared): State<Arc<Shared>>, Path(conv): Path<String>) -> Result<Json<Group>, Refusal> {
    let done = ask(&shared, &conv, MemberChange::Show, &Body::new()).await?;
    Ok(shown(conv, done))
}

/// `POST /v1/groups/{conv}/changed`: 200 with the group; its members hear CONV 3 with the data.
pub async fn touch(
    State(shared): State<Arc<Shared>>,
    Path(conv): Path<String>,
    body: Result<Json<Touched>, JsonRejection>,
) -> Result<Json<Group>, Refusal> {
    let Json(Touched { history, data }) = body?;
    let done = ask(&shared, &conv, MemberChange::Touch { history }, &data_of(data)?).await?;
    Ok(shown(conv, done))
}

/// Body of the calls about a user.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Named {
    device: Option<String>,
}

/// The devices whose sessions were ended.
#[derive(Serialize, Debug)]
pub struct Ended {
    user: String,
    ended: Vec<String>,
}

/// `POST /v1/users/{user}/ban`: 200 with the devices whose sessions end; none is welcome any more, also after a restart.
pub async fn ban(
    State(shared): State<Arc<Shared>>,
    Path(user): Path<String>,
    body: Result<Json<Named>, JsonRejection>,
) -> Result<Json<Ended>, Refusal> {
    change_user(&shared, user, body?.0.device, UserChange::Ban).await
}

/// `POST /v1/users/{user}/unban`: ends a ban.
pub async fn unban(
    State(shared): State<Arc<Shared>>,
    Path(user): Path<String>,
    body: Result<Json<Named>, JsonRejection>,
) -> Result<Json<Ended>, Refusal> {
    change_user(&shared, user, body?.0.device, UserChange::Unban).await
}

/// What `revoke` is asked.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// Only sessions and tokens shown by this device.
    device: Option<String>,
    /// Only the token of this `jti`.
    jti: Option<String>,
    /// Only tokens issued before this Unix second; absent: up to now.
    before_s: Option<u64>,
    /// Unix second from which it may be forgotten, because all of these tokens have ended; absent: never.
    until_s: Option<u64>,
}

impl Revocation {
    /// What is to be revoked, by a clock that shows this Unix second.
    fn change(&self, now_s: u64) -> Result<UserChange, Refusal> {
        let wrong = |why: &str| Err(Refusal::BadBody(why.to_owned()));
        if self.jti.as_ref().is_some_and(|id| id.is_empty() || id.len() > limits::TOKEN_ID_BYTES_MAX) {
            return Err(Refusal::BadBody(format!("jti: 1 to {} bytes", limits::TOKEN_ID_BYTES_MAX)));
        }
        if self.jti.is_some() && self.before_s.is_some() {
            return wrong("before_s: not with jti, which names one token");
        }
        // Nothing takes a revocation back: one that reaches into the future would lock the user out.
        if self.before_s.is_some_and(|before_s| before_s > now_s + 1) {
            return wrong("before_s: a Unix second, not later than now");
        }
        if self.until_s.is_some_and(|until_s| until_s <= now_s) {
            return wrong("until_s: a Unix second in the future, when the last of these tokens has ended");
        }
        // A token of this very second may be one of those that are meant.
        let before_s = if self.jti.is_some() { u64::MAX } else { self.before_s.unwrap_or(now_s + 1) };
        let id = self.jti.as_deref().map(Text::copy_from);
        Ok(UserChange::Revoke { before_s, until_s: self.until_s.unwrap_or(u64::MAX), id })
    }
}

/// `POST /v1/users/{user}/revoke`: 200 with the devices whose sessions end; tokens that are revoked pass no more, also after a restart.
pub async fn revoke(
    State(shared): State<Arc<Shared>>,
    Path(user): Path<String>,
    body: Result<Json<Revocation>, JsonRejection>,
) -> Result<Json<Ended>, Refusal> {
    let Json(revocation) = body?;
    let change = revocation.change(shared.clock.now().unix_ms / 1000)?;
    change_user(&shared, user, revocation.device, change).await
}

async fn change_user(shared: &Shared, user: String, device: Option<String>, change: UserChange) -> Result<Json<Ended>, Refusal> {
    if !is_user(&user) {
        return Err(Refusal::BadName(user));
    }
    if let Some(wrong) = device.as_ref().filter(|device| !is_device(device)) {
        return Err(Refusal::BadName(wrong.clone()));
    }
    let (name, device) = (Text::copy_from(&user), device.as_deref().map(Text::copy_from));
    let mail = |reply| Submit::User(UserMail { user: name, device, change, reply });
    let done = ask::ask(shared, Thread::Store, |reply| ask::submit(shared, mail(reply))).await?.map_err(Refusal::Store)?;
    Ok(Json(Ended { user, ended: done.members }))
}

/// Mails one change to the store and waits for its answer.
async fn ask(shared: &Shared, conv: &str, change: MemberChange, data: &Body) -> Result<MemberDone, Refusal> {
    if matches!(conversation_kind(conv), None | Some(ConversationKind::Direct(..))) {
        return Err(Refusal::BadName(conv.to_owned()));
    }
    let (conv, data) = (Text::copy_from(conv), data.clone());
    let mail = |reply| Submit::Member(MemberMail { conv, change, data, reply });
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
    let MemberDone { version, head, members, roles, muted, history } = done;
    let roles = roles.into_iter().map(|(name, role)| (name, role.word())).collect();
    Json(Group { conv, version, head, members, roles, muted, history })
}

/// One change per role, from the least.
fn roles_of(words: BTreeMap<String, String>) -> Result<Vec<MemberChange>, Refusal> {
    let mut by_role: BTreeMap<Role, Vec<String>> = BTreeMap::new();
    for (user, word) in words {
        let role = Role::from_word(&word)
            .ok_or_else(|| Refusal::BadBody(format!("`{word}` is no role: observer, member, admin or owner")))?;
        by_role.entry(role).or_default().push(user);
    }
    let change = |(role, names)| Ok(MemberChange::Set { users: users(names)?, role: Some(role), muted: None });
    by_role.into_iter().map(change).collect()
}

fn data_of(data: String) -> Result<Body, Refusal> {
    if data.len() > limits::CONV_DATA_BYTES_MAX { Err(Refusal::TooLarge) } else { Ok(Body::from(data.into_bytes())) }
}
