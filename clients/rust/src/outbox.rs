//! What was asked to be sent and is not acknowledged yet (docs/protocol.md section 7).
//!
//! One entry per cmid, in the order of asking. An entry waits, is in flight (written on this connection, not answered), and leaves with
//! SENT or with an error that is not RETRYABLE. A conversation is a *lane*: after a RETRYABLE error nothing more is sent in a lane
//! until everything outstanding in it is answered, then all is repeated oldest first, so pipelining never reorders.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tidegate::ids::Cmid;
use tidegate::wire::envelope::{Send, send_flags};

use crate::event::{Outgoing, SendError, Ticket};
use crate::random::Random;

/// Messages waiting to be acknowledged. Full: [`SendError::OutboxFull`].
pub(crate) const OUTBOX_MAX: usize = 4096;
/// First wait for an answer; it doubles with every repeat.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// Repeats on one connection before it is given up.
const REPEATS_MAX: u32 = 5;
/// Least wait after a RETRYABLE error that names none, so that a busy gateway is not hammered.
const RETRY_WAIT_MIN: Duration = Duration::from_millis(100);
/// ERROR 4003: an earlier message of the conversation must be sent first.
const HELD: u16 = 4003;
/// ERROR 5006: repeat after reconnecting.
const SHUTTING_DOWN: u16 = 5006;

/// The messages that wait.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    entries: BTreeMap<Ticket, Entry>,
    /// SENDs written on this connection and not answered, by rid. One entry may have several.
    outstanding: HashMap<u32, (Ticket, Arc<str>)>,
    lanes: HashMap<Arc<str>, Lane>,
    next_ticket: u64,
}

/// One message on its way.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) cmid: Cmid,
    pub(crate) message: Outgoing,
    /// When it was first written to a socket: from then on RETRY is set, and the horizon counts.
    first_written: Option<Duration>,
    state: EntryState,
}

#[derive(Clone, Copy, Debug)]
enum EntryState {
    /// To be sent, not before this time.
    Waiting(Duration),
    /// Written on this connection; repeated at this time for the `repeats + 1`-th time.
    InFlight { repeat_at: Duration, repeats: u32 },
}

/// One conversation, as far as this connection is concerned.
#[derive(Debug, Default)]
struct Lane {
    outstanding: u32,
    /// A RETRYABLE error came: nothing is sent until `outstanding` is 0.
    recovering: bool,
    /// A message was repeated because no answer came: nothing new is sent until `outstanding` is 0. The first attempt may have failed
    /// and its error be on the way; the repeat then ends the hold, and what is new would overtake what was held before it.
    repeating: bool,
    /// A failed message was abandoned: the next SEND carries RELEASE.
    release: bool,
}

/// What an ERROR did to an entry.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It will be sent again.
    Again,
    /// It left the outbox.
    GivenUp(Ticket, SendError),
}

impl Outbox {
    /// Takes a message. Nothing is sent before [`Outbox::next`].
    pub(crate) fn push(&mut self, cmid: Cmid, message: Outgoing) -> Result<Ticket, SendError> {
        if self.entries.len() >= OUTBOX_MAX {
            return Err(SendError::OutboxFull);
        }
        Ok(self.restore(cmid, message, None))
    }

    /// Takes a message that an earlier life may have written to a socket at `first_written`.
    pub(crate) fn restore(&mut self, cmid: Cmid, message: Outgoing, first_written: Option<Duration>) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let state = EntryState::Waiting(Duration::ZERO);
        self.entries.insert(ticket, Entry { cmid, message, first_written, state });
        ticket
    }

    /// Messages not acknowledged.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether a SEND of this connection waits for its answer.
    pub(crate) fn is_outstanding(&self) -> bool {
        !self.outstanding.is_empty()
    }

    /// The next SEND to write, oldest first among what may go. It counts as written from here on.
    pub(crate) fn next(&mut self, now: Duration, window: u16, rid: u32) -> Option<Send<'_>> {
        if self.outstanding.len() >= usize::from(window) {
            return None;
        }
        let ticket = self.pick(now)?;
        let entry = self.entries.get_mut(&ticket)?;
        let lane = self.lanes.entry(Arc::clone(&entry.message.conv)).or_default();
        let repeats = match entry.state {
            EntryState::InFlight { repeats, .. } => repeats + 1,
            EntryState::Waiting(_) => 0,
        };
        let mut flags = 0;
        flags |= if entry.first_written.is_some() && !entry.message.transient { send_flags::RETRY } else { 0 };
        flags |= if entry.message.transient { send_flags::TRANSIENT } else { 0 };
        flags |= if entry.message.quiet { send_flags::QUIET } else { 0 };
        flags |= if entry.message.trace.is_some() { send_flags::TRACE } else { 0 };
        flags |= if std::mem::take(&mut lane.release) { send_flags::RELEASE } else { 0 };
        lane.repeating |= repeats > 0;
        entry.first_written.get_or_insert(now);
        entry.state = EntryState::InFlight { repeat_at: now + ANSWER_WAIT * (1 << repeats), repeats };
        lane.outstanding += 1;
        self.outstanding.insert(rid, (ticket, Arc::clone(&entry.message.conv)));
        let Outgoing { conv, kind, ttl_s, trace, payload, .. } = &entry.message;
        let (conv, payload) = (Cow::Borrowed(&**conv), Cow::Borrowed(&**payload));
        Some(Send { rid, cmid: entry.cmid, flags, kind: *kind, ttl_s: *ttl_s, trace: *trace, conv, payload })
    }

    /// SENT: the entry leaves. `None`: not one of ours, or acknowledged before.
    pub(crate) fn sent(&mut self, rid: u32) -> Option<(Ticket, Entry)> {
        let ticket = self.answered(rid)?;
        Some((ticket, self.entries.remove(&ticket)?))
    }

    /// ERROR with the rid of a SEND. `None`: not one of ours.
    pub(crate) fn refused(&mut self, now: Duration, rid: u32, error: &Error<'_>, random: &mut Random) -> Option<Refusal> {
        let conv = Arc::clone(&self.outstanding.get(&rid)?.1);
        let ticket = self.answered(rid)?;
        let abandoned = match self.entries.get_mut(&ticket) {
            None => true,
            Some(entry) if error.retryable && !entry.message.transient => {
                entry.state = EntryState::Waiting(now + error.wait(random));
                false
            }
            Some(_) => true,
        };
        if error.retryable && error.code != SHUTTING_DOWN {
            let lane = self.lanes.entry(conv).or_default();
            lane.recovering = lane.outstanding > 0;
            lane.release |= abandoned && error.code != HELD;
        }
        if !abandoned {
            return Some(Refusal::Again);
        }
        let entry = self.entries.remove(&ticket);
        Some(match entry {
            None => Refusal::Again,
            Some(_) if error.retryable => Refusal::GivenUp(ticket, SendError::NotRepeated),
            Some(_) => Refusal::GivenUp(ticket, SendError::Refused { code: error.code, detail: error.detail.to_owned() }),
        })
    }

    /// The connection is gone: everything unanswered is to be sent again. Returns the transient messages, which are not.
    pub(crate) fn disconnected(&mut self) -> Vec<Ticket> {
        self.outstanding.clear();
        self.lanes.clear();
        let lost = |entry: &Entry| entry.message.transient && matches!(entry.state, EntryState::InFlight { .. });
        let tickets: Vec<Ticket> = self.entries.iter().filter(|(_, entry)| lost(entry)).map(|(&ticket, _)| ticket).collect();
        self.entries.retain(|_, entry| !lost(entry));
        for entry in self.entries.values_mut().filter(|entry| matches!(entry.state, EntryState::InFlight { .. })) {
            entry.state = EntryState::Waiting(Duration::ZERO);
        }
        tickets
    }

    /// Removes what may not be repeated any more: written before the gateway's horizon, transient and unanswered, or too large.
    pub(crate) fn expire(&mut self, now: Duration, dedup: Duration, payload_max: usize) -> Vec<(Ticket, SendError)> {
        let mut given_up = Vec::new();
        for (&ticket, entry) in &self.entries {
            let waits = matches!(entry.state, EntryState::Waiting(_));
            let due = matches!(entry.state, EntryState::InFlight { repeat_at, .. } if repeat_at <= now);
            if waits && entry.first_written.is_none() && entry.message.payload.len() > payload_max {
                given_up.push((ticket, SendError::TooLarge));
            } else if due && entry.message.transient {
                given_up.push((ticket, SendError::NotRepeated));
            } else if (waits || due) && entry.first_written.is_some_and(|first| now.saturating_sub(first) > dedup) {
                given_up.push((ticket, SendError::Horizon));
                // The gateway may hold its conversation for it.
                self.lanes.entry(Arc::clone(&entry.message.conv)).or_default().release = true;
            }
        }
        for (ticket, _) in &given_up {
            self.entries.remove(ticket);
        }
        given_up
    }

    /// Whether an answer is so late that the connection must be given up: repeats did not help, or may not be sent.
    pub(crate) fn is_silent(&self, now: Duration) -> bool {
        self.outstanding.values().any(|(ticket, conv)| {
            let recovering = self.lanes.get(conv).is_some_and(|lane| lane.recovering);
            let state = self.entries.get(ticket).map(|entry| entry.state);
            matches!(state, Some(EntryState::InFlight { repeat_at, repeats }) if repeat_at <= now && (recovering || repeats >= REPEATS_MAX))
        })
    }

    /// When something happens by itself, at the earliest.
    pub(crate) fn wake_at(&self) -> Option<Duration> {
        let times = self.entries.values().filter_map(|entry| match entry.state {
            EntryState::InFlight { repeat_at, .. } => Some(repeat_at),
            EntryState::Waiting(Duration::ZERO) => None,
            EntryState::Waiting(at) => Some(at),
        });
        times.min()
    }

    /// Empties the outbox for good.
    pub(crate) fn stop(&mut self) -> Vec<Ticket> {
        self.outstanding.clear();
        self.lanes.clear();
        std::mem::take(&mut self.entries).into_keys().collect()
    }

    fn pick(&self, now: Duration) -> Option<Ticket> {
        let mut blocked: HashSet<&str> = HashSet::new();
        for (&ticket, entry) in &self.entries {
            let conv = &*entry.message.conv;
            let (recovering, repeating) = self.lanes.get(conv).map_or((false, false), |lane| (lane.recovering, lane.repeating));
            match entry.state {
                EntryState::InFlight { repeat_at, repeats } => {
                    if repeat_at <= now && repeats < REPEATS_MAX && !recovering && !entry.message.transient {
                        return Some(ticket);
                    }
                }
                EntryState::Waiting(not_before) if recovering || repeating || not_before > now => drop(blocked.insert(conv)),
                EntryState::Waiting(_) if blocked.contains(conv) => {}
                EntryState::Waiting(_) => return Some(ticket),
            }
        }
        None
    }

    fn answered(&mut self, rid: u32) -> Option<Ticket> {
        let (ticket, conv) = self.outstanding.remove(&rid)?;
        if let Some(lane) = self.lanes.get_mut(&conv) {
            lane.outstanding -= 1;
            lane.recovering &= lane.outstanding > 0;
            lane.repeating &= lane.outstanding > 0;
            if lane.outstanding == 0 && !lane.release {
                self.lanes.remove(&conv);
            }
        }
        Some(ticket)
    }
}

/// An ERROR as far as a request is concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Error<'e> {
    pub(crate) code: u16,
    pub(crate) retryable: bool,
    pub(crate) retry: Duration,
    pub(crate) detail: &'e str,
}

impl Error<'_> {
    /// How long to wait before repeating: what the gateway asked and up to a quarter more.
    pub(crate) fn wait(&self, random: &mut Random) -> Duration {
        let least = if matches!(self.code, HELD | SHUTTING_DOWN) { Duration::ZERO } else { RETRY_WAIT_MIN };
        let wait = self.retry.max(least);
        wait + random.up_to(wait / 4)
    }
}
