//! Who is connected, and closing them. The store's roster knows who and on which core; the core knows the rest.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::Json;
use serde::{Deserialize, Serialize};

use crate::address::Shown;
use crate::admin::Shared;
use crate::admin::ask::{by_reactor, control, look};
use crate::admin::refusal::Refusal;
use crate::config::settings::PLATFORMS;
use crate::ids::{SessionRef, is_device, is_user};
use crate::mail::{Control, DeviceSeen, Looked, Question, SessionSeen};
use crate::wire::envelope::Encoding;
use crate::wire::message::Text;

/// Whom a call is about; everything given must fit.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct Whom {
    user: Option<String>,
    device: Option<String>,
    /// Without its port: all clients of a machine.
    address: Option<String>,
    /// Where the last answer ended.
    #[serde(default)]
    from: u32,
}

/// A connected device.
#[derive(Serialize, Debug)]
pub struct Connection {
    user: String,
    device: String,
    platform: &'static str,
    reactor: u16,
    /// `null`: no connection carries the session now.
    #[serde(flatten)]
    link: Option<Link>,
}

/// What the core says.
#[derive(Serialize, Debug)]
struct Link {
    address: Option<String>,
    encoding: &'static str,
    pos: u64,
    unacknowledged: u16,
    behind: bool,
    queued_bytes: u32,
    token_expires_s: u32,
}

/// One page of connections.
#[derive(Serialize, Debug)]
pub struct Page {
    connections: Vec<Connection>,
    /// Ask again with this as `from`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<u32>,
}

/// `GET /v1/connections`: 200 with those that fit. All of a user at once; else a page of the roster at a time.
pub async fn list(State(shared): State<Arc<Shared>>, query: Result<Query<Whom>, QueryRejection>) -> Result<Json<Page>, Refusal> {
    let Query(whom) = query.map_err(|error| Refusal::BadQuery(error.body_text()))?;
    let (found, next) = find(&shared, &whom).await?;
    let connections = found.into_iter().map(|(device, seen)| shown(device, seen)).collect();
    Ok(Json(Page { connections, next }))
}

/// `GET /v1/users/{user}`: 200 with the devices of a user; none: an empty list, since a user is whom a token names.
pub async fn user(State(shared): State<Arc<Shared>>, Path(user): Path<String>) -> Result<Json<serde_json::Value>, Refusal> {
    let whom = Whom { user: Some(user.clone()), ..Whom::default() };
    let (found, _) = find(&shared, &whom).await?;
    let devices: Vec<_> = found.into_iter().map(|(device, seen)| shown(device, seen)).collect();
    Ok(Json(serde_json::json!({ "user": user, "devices": devices })))
}

/// `POST /v1/kick`: 200 with how many were closed, by 4403.
pub async fn kick(
    State(shared): State<Arc<Shared>>,
    body: Result<Json<Whom>, JsonRejection>,
) -> Result<Json<serde_json::Value>, Refusal> {
    let Json(mut whom) = body?;
    if whom.user.is_none() && whom.address.is_none() {
        return Err(Refusal::BadQuery("name a user, with a device or without, or an address".to_owned()));
    }
    let mut closed = 0;
    loop {
        let (found, next) = find(&shared, &whom).await?;
        for (reactor, sessions) in by_reactor(found.iter().map(|(device, _)| device.session)) {
            closed += control(&shared, reactor, |reply| Control::Kick { sessions, reply }).await?;
        }
        let Some(next) = next else { break };
        whom.from = next;
    }
    tracing::info!(user = whom.user, device = whom.device, address = whom.address, closed, "kicked");
    Ok(Json(serde_json::json!({ "closed": closed })))
}

/// One page of the roster, what the cores say of it, and what of that fits.
async fn find(shared: &Shared, whom: &Whom) -> Result<(Vec<(DeviceSeen, Option<SessionSeen>)>, Option<u32>), Refusal> {
    if let Some(wrong) = whom.user.as_ref().filter(|user| !is_user(user)) {
        return Err(Refusal::BadName(wrong.clone()));
    }
    if let Some(wrong) = whom.device.as_ref().filter(|device| !is_device(device)) {
        return Err(Refusal::BadName(wrong.clone()));
    }
    let address = whom.address.as_deref().map(str::parse::<IpAddr>).transpose();
    let address = address.map_err(|_| Refusal::BadQuery("an address is an IP address, without a port".to_owned()))?;
    let question = Question::Devices { user: whom.user.as_deref().map(Text::copy_from), from: whom.from };
    let Looked::Devices { mut devices, next } = look(shared, question).await? else { return Err(Refusal::Internal) };
    devices.retain(|seen| whom.device.as_ref().is_none_or(|device| seen.device == *device));
    let mut links: HashMap<SessionRef, SessionSeen> = HashMap::new();
    for (reactor, sessions) in by_reactor(devices.iter().map(|seen| seen.session)) {
        let asked = sessions.clone();
        let seen = control(shared, reactor, |reply| Control::Inspect { sessions, reply }).await?;
        links.extend(asked.into_iter().zip(seen).filter_map(|(session, seen)| Some((session, seen?))));
    }
    let found = devices.into_iter().map(|device| {
        let link = links.remove(&device.session);
        (device, link)
    });
    let fits = |link: &Option<SessionSeen>| {
        address.is_none_or(|ip| link.as_ref().and_then(|link| link.address).is_some_and(|address| address.ip() == ip))
    };
    Ok((found.filter(|(_, link)| fits(link)).collect(), next))
}

fn shown(seen: DeviceSeen, link: Option<SessionSeen>) -> Connection {
    let DeviceSeen { session, user, device, platform } = seen;
    let link = link.map(|link| Link {
        address: link.address.map(|address| Shown(address).to_string()),
        encoding: if link.encoding == Encoding::Json { "json" } else { "binary" },
        pos: link.pos,
        unacknowledged: link.unacknowledged,
        behind: link.is_behind,
        queued_bytes: link.queued_bytes,
        token_expires_s: link.expires_s,
    });
    let platform = PLATFORMS.get(usize::from(platform)).copied().unwrap_or("other");
    Connection { user, device, platform, reactor: session.reactor.0, link }
}
