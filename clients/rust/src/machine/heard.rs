//! What the gateway says.

use std::sync::Arc;
use std::time::Duration;

use tidegate::ids::Cmid;
use tidegate::wire::envelope::{
    DecodeError, Deliver, SENT_DUPLICATE, ServerFrame, ServerFrames, Welcome, deliver_flags, page_flags,
};

use super::{Action, Auth, CLOSE_PROTOCOL, Goaway, Machine, Phase, Sync, Terms};
use crate::event::{Event, Outcome, Outgoing, Received, Sent, State};
use crate::inbox::PageHead;
use crate::outbox::{self, Refusal};

impl Machine {
    /// One WebSocket message of the gateway.
    ///
    /// # Errors
    /// The message breaks the protocol. The connection is being given up; a fresh one may do better.
    pub fn handle_message(&mut self, now: Duration, bytes: &[u8]) -> Result<(), DecodeError> {
        let mut frames = ServerFrames::new(self.settings.encoding, bytes);
        loop {
            match frames.next_frame() {
                Ok(Some(frame)) => self.handle_frame(now, &frame),
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.leave(CLOSE_PROTOCOL);
                    return Err(error);
                }
            }
        }
    }

    /// One frame of the gateway.
    pub fn handle_frame(&mut self, now: Duration, frame: &ServerFrame<'_>) {
        self.heard = now;
        self.pinged = None;
        match frame {
            ServerFrame::Welcome(welcome) => self.welcome(now, welcome),
            ServerFrame::Pong { .. } => {}
            ServerFrame::Ok { rid, value } => self.ok(*rid, *value),
            ServerFrame::Expiring { .. } => self.actions.push_back(Action::Token),
            ServerFrame::Sent { rid, level, flags, seq, mid } => {
                let sent =
                    Sent { cmid: Cmid::default(), seq: *seq, mid: *mid, level: *level, duplicate: flags & SENT_DUPLICATE != 0 };
                self.sent(*rid, sent);
            }
            ServerFrame::Deliver(deliver) => self.inbox.deliver(deliver.pos, received(deliver)),
            ServerFrame::SyncPage { rid, flags, since, cursor, entries } => {
                if !matches!(self.sync, Sync::InFlight { rid: asked, .. } if asked == *rid) {
                    return;
                }
                if self.inbox.is_processed() {
                    self.since_processed = self.since;
                }
                entries.iter().for_each(|entry| self.inbox.entry(entry));
                if flags & page_flags::MORE != 0 {
                    self.sync = Sync::Due { at: now, cursor: cursor.to_string() };
                } else {
                    self.sync = Sync::Done;
                    self.since = *since;
                    self.inbox.emit(Event::Synced);
                }
            }
            ServerFrame::Page { rid, flags, epoch, floor, head, messages, .. } => {
                let page = PageHead { flags: *flags, epoch: *epoch, floor: *floor, head: *head };
                self.inbox.page(now, *rid, page, messages.iter(), &self.user);
            }
            ServerFrame::Notice { conv, head, .. } => self.inbox.head(conv, *head),
            ServerFrame::Resync { .. } => {
                let at = now + self.random.up_to(RESYNC_SPREAD);
                self.sync = Sync::Due { at, cursor: String::new() };
                self.watching.ask_at(at);
            }
            ServerFrame::Error { rid, code, flags, retry_ms, detail } => {
                if flags & page_flags::ERROR_CLOSING != 0 {
                    self.hold_off = Some(Duration::from_millis(u64::from(*retry_ms)));
                }
                let error = outbox::Error {
                    code: *code,
                    retryable: flags & page_flags::ERROR_RETRYABLE != 0,
                    retry: Duration::from_millis(u64::from(*retry_ms)),
                    detail,
                };
                self.error(now, *rid, &error);
            }
            ServerFrame::Goaway { delay_ms, spread_ms, grace_ms, target, .. } => {
                let millis = |ms: u32| Duration::from_millis(u64::from(ms));
                let reconnect_at = now + millis(*delay_ms) + self.random.up_to(millis(*spread_ms));
                let target = (!target.is_empty()).then(|| target.to_string());
                self.goaway = Some(Goaway { reconnect_at, target });
                self.leaving(now + millis(*grace_ms));
            }
            ServerFrame::Receipt { conv, user, recv, read } => {
                self.inbox.emit(Event::Receipt { conv: (**conv).into(), user: (**user).into(), recv: *recv, read: *read });
            }
            ServerFrame::Conv { conv, event, version, data } => {
                let data = (**data).into();
                self.inbox.emit(Event::Membership { conv: (**conv).into(), event: *event, version: *version, data });
            }
            ServerFrame::Presence { user, state, seen_ms } => {
                self.inbox.emit(Event::Presence { user: (**user).into(), state: *state, seen_ms: *seen_ms });
            }
            ServerFrame::Signalled { conv, from, kind, payload } => {
                let (conv, from, payload) = ((**conv).into(), (**from).into(), (**payload).into());
                self.inbox.emit(Event::Signal { conv, from, kind: *kind, payload });
            }
        }
    }

    fn welcome(&mut self, now: Duration, welcome: &Welcome<'_>) {
        if !matches!(self.phase, Phase::Greeting { .. }) {
            return;
        }
        let resumed = welcome.resumed != 0;
        self.phase = Phase::Active;
        self.backoff.active(now);
        self.session = welcome.session;
        self.user = (*welcome.user).into();
        self.terms = Terms {
            window: welcome.window,
            send_window: welcome.send_window,
            dedup: Duration::from_secs(u64::from(welcome.dedup_s)),
            payload_max: usize::try_from(welcome.max_payload).unwrap_or(usize::MAX),
            caps: welcome.caps,
        };
        self.inbox.welcome(resumed);
        self.watching.ask_at(now);
        if !resumed || !matches!(self.sync, Sync::Done) {
            self.sync = Sync::Due { at: now, cursor: String::new() };
        }
        self.inbox.emit(Event::State(State::Active { resumed }));
    }

    fn sent(&mut self, rid: u32, sent: Sent) {
        let Some((ticket, entry)) = self.outbox.sent(rid) else { return };
        let sent = Sent { cmid: entry.cmid, ..sent };
        let Outgoing { conv, kind, quiet, trace, payload, .. } = entry.message;
        if sent.seq > 0 {
            // An acknowledged message is in the conversation: it takes its place as if it had been delivered.
            self.inbox.store(Received {
                conv,
                seq: sent.seq,
                mid: sent.mid,
                flags: deliver_flags::OWN | if quiet { deliver_flags::QUIET } else { 0 },
                kind,
                exp_s: 0,
                cmid: Some(sent.cmid),
                from: Arc::clone(&self.user),
                own: true,
                trace,
                payload,
            });
        }
        self.outcomes.push_back(Outcome { ticket, result: Ok(sent) });
    }

    fn ok(&mut self, rid: u32, value: u64) {
        if let Some(conv) = self.reads.done(rid) {
            self.inbox.emit(Event::ReadPosition { conv, seq: value });
        } else if matches!(self.auth, Auth::InFlight(asked) if asked == rid) {
            self.auth = Auth::Idle;
        } else if self.watching.is_asked(rid) {
            self.watching.done();
        }
    }

    fn error(&mut self, now: Duration, rid: u32, error: &outbox::Error<'_>) {
        if error.code == SHUTTING_DOWN && matches!(self.phase, Phase::Active) {
            // It overtook its GOAWAY, or there is none: nothing new is accepted here.
            self.leaving(now + LEAVE_WAIT);
        }
        if rid == 0 {
            return self.refused(error);
        }
        if let Some(refusal) = self.outbox.refused(now, rid, error, &mut self.random) {
            if let Refusal::GivenUp(ticket, error) = refusal {
                self.outcomes.push_back(Outcome { ticket, result: Err(error) });
            }
            return;
        }
        let retry_at = error.retryable.then(|| now + error.wait(&mut self.random));
        if self.watching.is_asked(rid) {
            // Too many subscriptions for now: a gateway that names a delay wants to be asked again.
            let is_named = !error.retry.is_zero();
            let at = retry_at.or_else(|| is_named.then(|| now + error.wait(&mut self.random)));
            self.watching.refused(at);
            return if retry_at.is_none() {
                self.refused(error)
            };
        }
        if self.inbox.fetch_refused(rid, retry_at) || self.reads.refused(rid, retry_at) {
            return if retry_at.is_none() {
                self.refused(error)
            };
        }
        if matches!(self.sync, Sync::InFlight { rid: asked, .. } if asked == rid) {
            // A cursor the gateway no longer knows is not worth keeping: the next SYNC starts over.
            let at = retry_at.unwrap_or(now + SYNC_RETRY_WAIT);
            self.sync = Sync::Due { at, cursor: String::new() };
        } else if matches!(self.auth, Auth::InFlight(asked) if asked == rid) {
            self.auth = Auth::Idle;
            self.refused(error);
        }
    }

    fn refused(&mut self, error: &outbox::Error<'_>) {
        self.inbox.emit(Event::Refused { code: error.code, detail: error.detail.to_owned() });
    }
}

fn received(deliver: &Deliver<'_>) -> Received {
    Received {
        conv: (*deliver.conv).into(),
        seq: deliver.seq,
        mid: deliver.mid,
        flags: deliver.flags,
        kind: deliver.kind,
        exp_s: deliver.exp_s,
        cmid: deliver.cmid,
        from: (*deliver.from).into(),
        own: deliver.flags & deliver_flags::OWN != 0,
        trace: deliver.trace,
        payload: (*deliver.payload).into(),
    }
}

const SHUTTING_DOWN: u16 = 5006;
/// RESYNC reaches many clients at once, so each waits a while.
const RESYNC_SPREAD: Duration = Duration::from_secs(5);
/// Between a SYNC that was refused and the next.
const SYNC_RETRY_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for open answers after ERROR 5006 without GOAWAY.
const LEAVE_WAIT: Duration = Duration::from_secs(10);
