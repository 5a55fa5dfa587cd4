//! The node itself: version, configuration in force, drain.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Json;
use serde_json::{Map, Value, json};

use crate::address::Shown;
use crate::admin::Shared;
use crate::admin::ask::{ask, look};
use crate::admin::refusal::{Refusal, Thread};
use crate::config::Settings;
use crate::config::derived::Derived;
use crate::config::settings::DEFINITIONS;
use crate::config::value::{Kind, Raw};
use crate::mail::{Looked, Question, ShedReader};

/// `GET /v1/version`.
pub async fn version(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({
        "version": shared.version, "protocols": ["tidegate.v1", "tidegate.v1.json"], "node": shared.in_force().settings.node,
        "pid": std::process::id(), "reactors": shared.controls.len(),
    }))
}

/// `GET /v1/config`: every setting with its value in force; `changed` where that is not the default, `from` where it was not set and
/// follows from the machine. A secret reads as `"***"`.
pub async fn config(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let defaults = Settings::default();
    let in_force = shared.in_force();
    let settings: Map<String, Value> = DEFINITIONS
        .iter()
        .map(|definition| {
            let raw = (definition.value)(&in_force.settings);
            let changed = raw != (definition.value)(&defaults);
            let derived = in_force.derived.iter().find(|derived| derived.key == definition.key);
            let entry = match definition.kind {
                _ if let Some(Derived { value, from, .. }) = derived => json!({ "value": value, "changed": false, "from": from }),
                // Its row reads as absent whatever it holds.
                Kind::Secret if in_force.settings.auth.secret.is_some() => json!({ "value": "***", "changed": true }),
                _ => json!({ "value": value(raw), "changed": changed }),
            };
            (definition.key.to_owned(), entry)
        })
        .collect();
    Json(Value::Object(settings))
}

/// `GET /v1/memory`: 200 with the budget, what is in use and given up, what each reactor holds, and the readers that were closed for want
/// of memory, the last one first.
pub async fn memory(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, Refusal> {
    let Looked::Shed(closed) = look(&shared, Question::Shed).await? else { return Err(Refusal::Internal) };
    let reader = |reader: &ShedReader| {
        json!({
            "unix_ms": reader.unix_ms, "user": reader.user, "device": reader.device, "reactor": reader.reactor,
            "address": reader.address.map(|address| Shown(address).to_string()),
            "queued_bytes": reader.queued_bytes, "held_bytes": reader.held_bytes,
        })
    };
    let gauge = |name: &str| shared.reactors.iter().map(|block| block.value(name)).collect::<Vec<_>>();
    Ok(Json(json!({
        "budget_bytes": shared.pressure.budget_bytes(), "used_bytes": shared.pressure.used_bytes(),
        "level": shared.pressure.level() as u8, "reactor_levels": gauge("pressure_level"), "reactor_bytes": gauge("memory_bytes"),
        "closed": closed.iter().map(reader).collect::<Vec<_>>(),
    })))
}

fn value(raw: Raw) -> Value {
    match raw {
        Raw::Absent => Value::Null,
        Raw::Bool(value) => value.into(),
        Raw::Integer(value) => value.into(),
        Raw::Text(value) => value.into(),
        Raw::List(value) => value.into(),
    }
}

/// `POST /v1/drain`: 202; the same as SIGTERM. A second one is refused: it would cut the first short.
pub async fn drain(State(shared): State<Arc<Shared>>) -> Result<(StatusCode, Json<Value>), Refusal> {
    let Some(drain) = shared.drain.lock().ok().and_then(|mut drain| drain.take()) else { return Err(Refusal::Draining) };
    if shared.health.is_draining() {
        return Err(Refusal::Draining);
    }
    tracing::info!("told to drain by the admin listener");
    drain();
    Ok((StatusCode::ACCEPTED, Json(json!({ "draining": true, "window_ms": shared.in_force().settings.drain.window_ms }))))
}

/// `POST /v1/tls/reload`: 200 when the files of TLS were read again, as by SIGHUP; refused, with the file, when one is no good.
pub async fn reload_tls(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, Refusal> {
    let send = |reply| {
        (shared.reload)(reply);
        Ok(())
    };
    ask(&shared, Thread::Main, send).await?.map_err(Refusal::KeysRefused)?;
    Ok(Json(json!({ "reloaded": true })))
}
