//! What a running gateway takes over when it is told to read its settings again: `limits.memory_bytes`, and the limits that follow from it
//! and are not set. Tables and caches were made to a size at the start, so `limits.connections_max` and `store.cache_bytes` stay.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::{Reread, work_out};
use crate::config::Settings;
use crate::config::derived::{InForce, Machine};
use crate::config::settings::DEFINITIONS;
use crate::limits;
use crate::mail::{Bounds, Control};
use crate::mailbox::Post;
use crate::observe::pressure::Pressure;

/// The settings in force, and where others are to be found.
pub(super) struct Live {
    /// As they were given.
    pub(super) given: Settings,
    /// With what was worked out.
    pub(super) filled: Settings,
    pub(super) machine: Machine,
    pub(super) reread: Reread,
    pub(super) pressure: Arc<Pressure>,
    /// What the operator is shown.
    pub(super) shown: Arc<RwLock<InForce>>,
}

impl Live {
    /// Reads the settings again, and takes over what may change.
    ///
    /// # Errors
    /// Every mistake of the configuration, or a reactor that does not listen. What was in force stays.
    pub(super) fn reload(&mut self, posts: &[Post]) -> Result<(), String> {
        let fresh = (self.reread)()?;
        let others = DEFINITIONS.iter().filter(|definition| definition.key != KEY);
        let waiting: Vec<_> = others
            .filter(|definition| (definition.value)(&fresh) != (definition.value)(&self.given))
            .map(|definition| definition.key)
            .collect();
        let is_same = fresh.limits.memory_bytes == self.given.limits.memory_bytes;
        if !waiting.is_empty() {
            tracing::warn!("changed, and not in force before the next start: {}", waiting.join(", "));
        } else if is_same {
            tracing::info!("settings were read again: nothing has changed");
        }
        if is_same {
            return Ok(());
        }
        let mut filled = self.filled.clone();
        let (limits, given) = (&mut filled.limits, &self.given.limits);
        limits.memory_bytes = fresh.limits.memory_bytes;
        limits.handshakes_max = given.handshakes_max;
        limits.accept_per_s = given.accept_per_s;
        limits.accept_burst = given.accept_burst;
        limits.queue_bytes_max = given.queue_bytes_max;
        let derived = work_out(&mut filled, self.machine);
        let bounds = bounds(&filled, posts.len());
        for post in posts {
            // The lane is empty but for questions of the admin thread.
            if post.control.send_within(Control::Bounds(bounds), Duration::from_secs(1)).is_err() {
                return Err("a reactor takes no mail; ask again".to_owned());
            }
        }
        let (before, now) = (self.pressure.budget_bytes(), filled.limits.memory_bytes.expect("worked out above"));
        self.given.limits.memory_bytes = fresh.limits.memory_bytes;
        self.filled = filled;
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        shown.settings = self.given.clone();
        let is_new = |key: &str| MOVING.contains(&key);
        shown.derived.retain(|one| !is_new(one.key));
        shown.derived.extend(derived);
        drop(shown);
        // Last: whoever sees the new budget in a metric is shown all that goes with it.
        self.pressure.set_budget(now);
        tracing::info!(before, now, "{KEY} has changed; limits.connections_max and store.cache_bytes stay until the next start");
        Ok(())
    }
}

/// Limits that may change: newcomers per second are those of the node, the others those of one of `cores` reactors. One that was not
/// worked out is that of a large machine.
pub(super) fn bounds(settings: &Settings, cores: usize) -> Bounds {
    let limits = &settings.limits;
    Bounds {
        accept_per_s: limits.accept_per_s.unwrap_or(limits::ACCEPTS_PER_SECOND_MAX),
        accept_burst: limits.accept_burst.unwrap_or(limits::ACCEPTS_PER_SECOND_MAX),
        handshakes_max: limits.handshakes_max.unwrap_or(limits::HANDSHAKES_MAX),
        queued_bytes_max: limits.queue_bytes_max.unwrap_or(limits::QUEUE_BYTES_MAX) / cores as u64,
    }
}

const KEY: &str = "limits.memory_bytes";
/// Limits that follow from it while the gateway runs.
const MOVING: [&str; 5] = [KEY, "limits.handshakes_max", "limits.accept_per_s", "limits.accept_burst", "limits.queue_bytes_max"];
