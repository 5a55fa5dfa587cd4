//! How long messages are kept: by age and by count, each per class of conversation.
//!
//! A sweep walks over the conversations in steps of bounded size. A reader finds what need not be kept any more ([`History::sweep`]);
//! the store then logs the new *floor* of each conversation and applies it as any other change. Only when that record is on disk do
//! the rows go to the engine: the head row with the new floor and the deletions in one atomic batch. So at every moment, and after
//! every crash, what lies at or above the floor is whole, and what lies below it is said to be gone.
//!
//! Nobody waits for any of this: a floor rides on the next commit group.

use std::time::Duration;

use super::history::History;
use super::job::JobFault;
use super::record::{Head, MessageHeader, Value};
use super::rows::Rows;
use super::schema::{self, Conv, Keyspace};
use crate::ids::{ConversationKind, Mid, conversation_kind};
use crate::limits::{RETIRED_PER_STEP_MAX, SWEEP_REST, SWEPT_PER_STEP_MAX};
use crate::wire::message::Text;

/// What is kept of one class of conversations. 0: no bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bounds {
    /// Messages older than so many seconds go.
    pub age_s: u64,
    /// Messages beyond so many go, the oldest first.
    pub count: u64,
}

impl Bounds {
    /// Whether everything is kept.
    #[must_use]
    pub fn is_everything(self) -> bool {
        self == Self::default()
    }

    /// Whether a message goes, of a conversation whose highest seq is `head`.
    #[must_use]
    pub fn retires(self, seq: u64, mid: Mid, head: u64, now_ms: u64) -> bool {
        let is_old = self.age_s > 0 && mid.unix_ms().saturating_add(self.age_s.saturating_mul(1000)) <= now_ms;
        let is_beyond = self.count > 0 && seq.saturating_add(self.count) <= head;
        is_old || is_beyond
    }
}

/// What is kept of each class, and how often it is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keep {
    /// `d:`.
    pub direct: Bounds,
    /// `g:`.
    pub group: Bounds,
    /// `c:`.
    pub channel: Bounds,
    /// `s:`.
    pub system: Bounds,
    /// From the end of one sweep to the beginning of the next.
    pub every: Duration,
}

impl Default for Keep {
    /// Everything is kept.
    fn default() -> Self {
        let all = Bounds::default();
        Self { direct: all, group: all, channel: all, system: all, every: Duration::from_mins(1) }
    }
}

impl Keep {
    /// Whether no class has a bound.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        [self.direct, self.group, self.channel, self.system].iter().all(|bounds| bounds.is_everything())
    }

    /// The bounds of a conversation.
    #[must_use]
    pub fn of(&self, conv: &str) -> Bounds {
        match conversation_kind(conv) {
            Some(ConversationKind::Direct(..)) => self.direct,
            Some(ConversationKind::Group) => self.group,
            Some(ConversationKind::Channel) => self.channel,
            Some(ConversationKind::System) => self.system,
            None => Bounds::default(),
        }
    }
}

/// A floor that may rise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Raise {
    /// Conversation.
    pub conv: Text,
    /// The new floor.
    pub floor: u64,
    /// How many not QUIET messages lie below it.
    pub count: u64,
}

/// What one step of a sweep has found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// For each conversation at most once.
    pub raises: Vec<Raise>,
    /// Where the next step begins; `None`: the sweep is over.
    pub next: Option<[u8; 16]>,
}

impl<R: Rows> History<R> {
    /// One step of a sweep, from the conversation with the key `from` on: at most [`SWEPT_PER_STEP_MAX`] conversations and
    /// [`RETIRED_PER_STEP_MAX`] messages.
    ///
    /// # Errors
    /// [`JobFault`].
    pub fn sweep(&self, keep: &Keep, from: [u8; 16], now_ms: u64) -> Result<Swept, JobFault> {
        let mut swept = Swept::default();
        let mut left = RETIRED_PER_STEP_MAX;
        for (looked_at, row) in self.rows().range(Keyspace::Head, &from, &[0xFF; 16]).enumerate() {
            let (key, value) = row.map_err(|_| JobFault::Engine)?;
            let conv = Conv(<[u8; 16]>::try_from(&key[..]).map_err(|_| JobFault::Mismatch)?);
            if looked_at == SWEPT_PER_STEP_MAX || left == 0 {
                swept.next = Some(conv.0);
                break;
            }
            let head = Head::decode(&value).map_err(|_| JobFault::Mismatch)?;
            let bounds = keep.of(head.conv);
            if bounds.is_everything() {
                continue;
            }
            let (raise, retired) = self.retired(&head, conv, bounds, left, now_ms)?;
            left -= retired;
            swept.raises.extend(raise);
            if left == 0 {
                // There may be more of this one.
                swept.next = Some(conv.0);
                break;
            }
        }
        Ok(swept)
    }

    /// The new floor of one conversation, at most `most` messages above the present one, and how many messages that takes.
    fn retired(
        &self,
        head: &Head<'_>,
        conv: Conv,
        bounds: Bounds,
        most: usize,
        now_ms: u64,
    ) -> Result<(Option<Raise>, usize), JobFault> {
        let floor = head.floor.max(1);
        let newest = self.rows().newest(conv, floor).transpose().map_err(|_| JobFault::Engine)?;
        let Some((key, _)) = newest else { return Ok((None, 0)) };
        let newest = schema::msg_seq(&key).ok_or(JobFault::Mismatch)?;
        let mut raise = None;
        let mut retired = 0;
        let (first, last) = (schema::msg_key(conv, floor), schema::msg_key(conv, newest));
        for row in self.rows().range(Keyspace::Msg, &first, &last).take(most) {
            let (key, value) = row.map_err(|_| JobFault::Engine)?;
            let seq = schema::msg_seq(&key).ok_or(JobFault::Mismatch)?;
            let (header, _) = MessageHeader::decode(&value).map_err(|_| JobFault::Mismatch)?;
            if !bounds.retires(seq, header.mid, newest, now_ms) {
                break;
            }
            retired += 1;
            raise = Some((seq + 1, header.count));
        }
        let conv = || Text::from(head.conv);
        Ok((raise.map(|(floor, count)| Raise { conv: conv(), floor, count }), retired))
    }
}

/// Where the sweep stands, in the store.
#[derive(Debug, Default)]
pub struct Sweeper {
    from: [u8; 16],
    /// A reader is at it.
    is_asked: bool,
    /// Group with the floors of the last step: the next one must see it.
    after: u64,
    due_ns: u64,
}

impl Sweeper {
    /// When the next step is due; `None` while a reader is at it.
    #[must_use]
    pub fn next_ns(&self) -> Option<u64> {
        (!self.is_asked).then_some(self.due_ns)
    }

    /// Where the next step begins, if it is due and the engine, which holds group `projected`, has what the last one changed.
    pub fn next(&mut self, projected: u64, now_ns: u64) -> Option<([u8; 16], u64)> {
        if self.is_asked || now_ns < self.due_ns {
            return None;
        }
        self.rest(SWEEP_REST, now_ns);
        (projected >= self.after).then_some((self.from, self.after))
    }

    /// A reader has been asked.
    pub fn asked(&mut self) {
        self.is_asked = true;
    }

    /// A floor was raised in group `number`.
    pub fn raised(&mut self, number: u64) {
        self.after = number;
    }

    /// A step is over. `next`: see [`Swept`].
    pub fn answered(&mut self, next: Option<[u8; 16]>, every: Duration, now_ns: u64) {
        self.is_asked = false;
        self.from = next.unwrap_or_default();
        self.rest(if next.is_some() { SWEEP_REST } else { every }, now_ns);
    }

    fn rest(&mut self, rest: Duration, now_ns: u64) {
        self.due_ns = now_ns.saturating_add(u64::try_from(rest.as_nanos()).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
