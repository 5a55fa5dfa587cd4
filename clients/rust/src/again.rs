//! Messages the application wants once more, later (NACK, docs/protocol.md section 8).
//!
//! ```text
//!  nack ──► due ──NACK──► asked ──DELIVER──► given out once more
//!            ▲              │
//!            └───WELCOME────┘     it may have been lost on its way; one that waits already changes nothing at the gateway
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Messages that are to come again, as many as the gateway remembers of a session. Full: [`Again::ask`] says so.
const AGAIN_MAX: usize = 64;

/// The messages that are to come again, by conversation and seq.
#[derive(Debug, Default)]
pub(crate) struct Again(BTreeMap<(Arc<str>, u64), Ask>);

#[derive(Debug)]
struct Ask {
    delay_ms: u32,
    reason: u16,
    is_written: bool,
}

/// A NACK to write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Nack {
    pub(crate) conv: Arc<str>,
    pub(crate) seq: u64,
    pub(crate) delay_ms: u32,
    pub(crate) reason: u16,
}

impl Again {
    /// Asks for a message. `false`: too many are to come already.
    pub(crate) fn ask(&mut self, conv: Arc<str>, seq: u64, delay: Duration, reason: u16) -> bool {
        let place = (conv, seq);
        if self.0.len() >= AGAIN_MAX && !self.0.contains_key(&place) {
            return false;
        }
        let delay_ms = u32::try_from(delay.as_millis()).unwrap_or(u32::MAX);
        self.0.insert(place, Ask { delay_ms, reason, is_written: false });
        true
    }

    /// The next NACK to write.
    pub(crate) fn next(&mut self) -> Option<Nack> {
        let ((conv, seq), ask) = self.0.iter_mut().find(|(_, ask)| !ask.is_written)?;
        ask.is_written = true;
        Some(Nack { conv: Arc::clone(conv), seq: *seq, delay_ms: ask.delay_ms, reason: ask.reason })
    }

    /// A message has come. `true`: it was asked for, and is wanted once more.
    pub(crate) fn came(&mut self, conv: &Arc<str>, seq: u64) -> bool {
        !self.0.is_empty() && self.0.remove(&(Arc::clone(conv), seq)).is_some()
    }

    /// Everything of `conv` up to `seq` is processed: it need not come again.
    pub(crate) fn processed(&mut self, conv: &str, seq: u64) {
        self.0.retain(|(asked, at), _| **asked != *conv || *at > seq);
    }

    /// A connection begins: the gateway may not have heard of them.
    pub(crate) fn welcome(&mut self) {
        self.0.values_mut().for_each(|ask| ask.is_written = false);
    }
}
