//! The client without I/O: frames and the time in; frames, actions and events out.
//!
//! ```text
//!  Waiting ──time──► Connecting ──handle_connected──► Greeting ──WELCOME──► Active ──GOAWAY──► Leaving
//!     ▲                  │                                │                   │                  │
//!     └──────────────────┴──────── handle_closed ─────────┴───────────────────┴──────────────────┘
//!                                       └── 4400, 4403, 4409 ──► Stopped
//! ```
//!
//! A driver calls, in each turn: `handle_*` for what happened; [`Machine::poll_action`] until `None`; [`Machine::poll_transmit`] until
//! `false`; [`Machine::poll_outcome`] and [`Machine::poll_event`] until `None`; then it sleeps until [`Machine::poll_timeout`] or until
//! something happens. Time is a [`Duration`] since any origin the driver likes, and never goes back.

mod heard;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tidegate::ids::{Cmid, conversation_kind};
use tidegate::wire::envelope::{ClientFrame, Cursors, Hello, Users, caps, encode_client, send_flags};

use crate::again::Nack;
use crate::event::{Event, Outcome, Outgoing, SendError, State, Stop, Ticket};
use crate::inbox::{Inbox, Position};
use crate::outbox::Outbox;
use crate::random::Random;
use crate::reads::Reads;
use crate::reconnect::{Backoff, Verdict, verdict};
use crate::settings::{Acknowledge, Settings};
use crate::watching::{BadWatch, Watching, Wish};

/// What the driver is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Open a connection and call [`Machine::handle_connected`] or [`Machine::handle_closed`].
    Connect {
        /// host:port to connect to instead of the usual one, as GOAWAY asked.
        target: Option<String>,
        /// The last token was refused: get another one.
        fresh_token: bool,
    },
    /// Get a fresh token and call [`Machine::handle_token`]: the one in use expires soon.
    Token,
    /// Write what is to be transmitted, close with this code and call [`Machine::handle_closed`] when done.
    Close(u16),
}

/// How a connection ended, or why there was none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Closed {
    /// Code of the gateway's Close frame.
    pub code: Option<u16>,
    /// `Retry-After` of an HTTP refusal.
    pub retry_after: Option<Duration>,
}

/// See the module.
#[derive(Debug)]
pub struct Machine {
    settings: Settings,
    random: Random,
    backoff: Backoff,
    phase: Phase,
    terms: Terms,
    session: [u8; 16],
    user: Arc<str>,
    fresh_token: bool,
    goaway: Option<Goaway>,
    /// What the last ERROR with CLOSING asked to wait at least.
    hold_off: Option<Duration>,
    next_rid: u32,
    outbox: Outbox,
    inbox: Inbox,
    reads: Reads,
    watching: Watching,
    since: u64,
    /// As `since`, of the last SYNC after which everything that it named was processed.
    since_processed: u64,
    sync: Sync,
    auth: Auth,
    /// Last inbound frame, and when a PING was sent after it.
    heard: Duration,
    pinged: Option<Duration>,
    actions: VecDeque<Action>,
    outcomes: VecDeque<Outcome>,
    signals: VecDeque<(String, u16, Vec<u8>)>,
    /// The application closed a live connection: what it processed is still acknowledged.
    is_last_ack_due: bool,
}

#[derive(Debug)]
enum Phase {
    Waiting { until: Duration },
    Connecting,
    Greeting { token: Option<String>, until: Duration },
    Active,
    Leaving { until: Duration },
    Closing,
    Stopped(Stop),
}

/// What WELCOME said and is obeyed.
#[derive(Clone, Copy, Debug)]
struct Terms {
    window: u16,
    send_window: u16,
    dedup: Duration,
    payload_max: usize,
    caps: u32,
}

#[derive(Debug)]
struct Goaway {
    reconnect_at: Duration,
    target: Option<String>,
}

/// SYNC, one page after another.
#[derive(Debug)]
enum Sync {
    Done,
    Due { at: Duration, cursor: String },
    InFlight { rid: u32, asked: Duration },
}

#[derive(Debug)]
enum Auth {
    Idle,
    Due(String),
    InFlight(u32),
}

impl Machine {
    /// A client that wants to connect at once. `seed` spreads clients, and decides every jitter of this one.
    #[must_use]
    pub fn new(mut settings: Settings, seed: u64) -> Self {
        let positions = std::mem::take(&mut settings.positions);
        Self {
            random: Random::new(seed),
            backoff: Backoff::new(settings.reconnect_base, settings.reconnect_cap),
            phase: Phase::Waiting { until: Duration::ZERO },
            terms: TERMS_BEFORE_WELCOME,
            session: [0; 16],
            user: "".into(),
            fresh_token: false,
            goaway: None,
            hold_off: None,
            next_rid: 1,
            outbox: Outbox::default(),
            inbox: Inbox::new(settings.history, positions),
            reads: Reads::default(),
            watching: Watching::default(),
            since: settings.since,
            since_processed: settings.since,
            sync: Sync::Done,
            auth: Auth::Idle,
            heard: Duration::ZERO,
            pinged: None,
            actions: VecDeque::new(),
            outcomes: VecDeque::new(),
            signals: VecDeque::new(),
            is_last_ack_due: false,
            settings,
        }
    }

    // What the application wants.

    /// Takes a message to send under `cmid`, which must be new; UUIDv7 is recommended. What becomes of it comes as an [`Outcome`].
    ///
    /// # Errors
    /// [`SendError::BadConversation`], [`SendError::TooLarge`], [`SendError::OutboxFull`], [`SendError::Stopped`]: nothing is taken.
    pub fn send(&mut self, cmid: Cmid, message: Outgoing) -> Result<Ticket, SendError> {
        if matches!(self.phase, Phase::Stopped(_)) {
            return Err(SendError::Stopped);
        }
        if conversation_kind(&message.conv).is_none() {
            return Err(SendError::BadConversation);
        }
        if message.payload.len() > self.terms.payload_max {
            return Err(SendError::TooLarge);
        }
        self.outbox.push(cmid, message)
    }

    /// Takes a message of an earlier life, which was asked for at `asked`. It may have been written to a socket and even stored since
    /// then, so it goes out as a repeat, before anything new, and is given up beyond the gateway's horizon.
    pub fn restore(&mut self, cmid: Cmid, message: Outgoing, asked: Duration) -> Ticket {
        self.outbox.restore(cmid, message, Some(asked))
    }

    /// How many conversations have a [`Machine::read`] that the gateway has not confirmed yet.
    #[must_use]
    pub fn unconfirmed_reads_count(&self) -> usize {
        self.reads.count()
    }

    /// Moves the user's read position; repeated until the gateway confirms it with [`Event::ReadPosition`].
    pub fn read(&mut self, conv: &str, seq: u64) {
        self.reads.want(conv, seq);
    }

    /// Sends a signal if the connection is up; otherwise it is dropped.
    pub fn signal(&mut self, conv: &str, kind: u16, payload: &[u8]) {
        if matches!(self.phase, Phase::Active) && self.signals.len() < SIGNALS_MAX && conversation_kind(conv).is_some() {
            self.signals.push_back((conv.to_owned(), kind, payload.to_vec()));
        }
    }

    /// Watches the presence of `users`, in place of those before: what is known of each comes as [`Event::Presence`], and so does every
    /// change, from one connection to the next, until [`Machine::unwatch`]. Needs [`Settings::presence`]. The gateway forgets them `ttl`
    /// after it has last heard of this client; zero stands for 300 s.
    ///
    /// # Errors
    /// [`BadWatch`]: nothing changes.
    pub fn watch(&mut self, users: &[&str], ttl: Duration) -> Result<(), BadWatch> {
        self.want_watch(Wish::new(users, ttl)?);
        Ok(())
    }

    /// As [`Machine::watch`], of what was looked at before.
    pub(crate) fn want_watch(&mut self, wish: Wish) {
        self.watching.want(wish);
    }

    /// Watches nobody any more.
    pub fn unwatch(&mut self) {
        self.watching.want(Wish::default());
    }

    /// Says that a message cannot be processed just now: the gateway delivers it again, not before `delay`, and later each time; after
    /// eight times it is in the history only. It comes as another [`Event::Message`]; those behind it do not wait. Needs
    /// [`Acknowledge::ByHand`]: [`Machine::processed`] up to it or beyond ends it. `reason` is for the gateway's logs. Of a message that
    /// has not come, or was processed, nothing is sent. At most 64 at a time, else [`Event::Refused`] with 4004.
    pub fn nack(&mut self, conv: &str, seq: u64, delay: Duration, reason: u16) {
        self.inbox.nack(conv, seq, delay, reason);
    }

    /// Says that the application holds everything of `conv` up to `seq`. Only needed with [`Acknowledge::ByHand`].
    pub fn processed(&mut self, now: Duration, conv: &str, seq: u64) {
        self.inbox.processed(now, conv, seq);
    }

    /// Ends the client: the gateway drops the session, and nothing is repeated any more.
    pub fn close(&mut self) {
        self.close_for(Stop::Closed);
    }

    /// Ends the client as [`Machine::close`] does, for another reason.
    pub fn close_for(&mut self, stop: Stop) {
        self.is_last_ack_due = matches!(self.phase, Phase::Active | Phase::Leaving { .. });
        if self.is_last_ack_due || matches!(self.phase, Phase::Greeting { .. } | Phase::Connecting) {
            self.actions.push_back(Action::Close(CLOSE_DONE));
        }
        self.stop(stop);
    }

    // What happened.

    /// The connection is open and speaks the subprotocol; HELLO follows with this token.
    pub fn handle_connected(&mut self, now: Duration, token: &str) {
        if matches!(self.phase, Phase::Connecting) {
            self.heard = now;
            self.pinged = None;
            self.phase = Phase::Greeting { token: Some(token.to_owned()), until: now + self.settings.welcome_wait };
        }
    }

    /// A fresh token, asked for by [`Action::Token`].
    pub fn handle_token(&mut self, token: &str) {
        if matches!(self.phase, Phase::Active) {
            self.auth = Auth::Due(token.to_owned());
        }
    }

    /// The connection ended, could not be opened, or was closed as [`Action::Close`] asked.
    pub fn handle_closed(&mut self, now: Duration, closed: Closed) {
        if matches!(self.phase, Phase::Stopped(_)) {
            return;
        }
        self.backoff.lost(now);
        self.inbox.disconnected();
        self.reads.disconnected();
        self.watching.disconnected();
        self.signals.clear();
        self.actions.clear();
        self.auth = Auth::Idle;
        let lost = self.outbox.disconnected();
        self.outcomes.extend(lost.into_iter().map(|ticket| Outcome { ticket, result: Err(SendError::NotRepeated) }));
        match verdict(closed.code) {
            Verdict::Stop => {
                return self.stop(match closed.code {
                    Some(4409) => Stop::Replaced,
                    Some(4403) => Stop::Forbidden,
                    _ => Stop::ProtocolError,
                });
            }
            Verdict::FreshToken => self.fresh_token = true,
            Verdict::SyncFromZero => self.since = 0,
            Verdict::Retry => {}
        }
        let planned = self.goaway.as_ref().map(|goaway| goaway.reconnect_at.saturating_sub(now));
        let mut delay = planned.unwrap_or_else(|| self.backoff.delay(&mut self.random));
        if let Some(least) = closed.retry_after {
            delay = delay.max(least + self.random.up_to(least));
        }
        if let Some(least) = self.hold_off.take() {
            delay = delay.max(least + self.random.up_to(least / 4));
        }
        self.phase = Phase::Waiting { until: now + delay };
        self.inbox.emit(Event::State(State::Waiting { delay, close: closed.code }));
    }

    /// Time has passed. Needed before the `poll_*` of a turn.
    pub fn handle_timeout(&mut self, now: Duration) {
        let given_up = self.outbox.expire(now, self.terms.dedup, self.terms.payload_max);
        self.outcomes.extend(given_up.into_iter().map(|(ticket, error)| Outcome { ticket, result: Err(error) }));
        match &self.phase {
            Phase::Waiting { until } if *until <= now => {
                self.phase = Phase::Connecting;
                let target = self.goaway.take().and_then(|goaway| goaway.target);
                self.actions.push_back(Action::Connect { target, fresh_token: std::mem::take(&mut self.fresh_token) });
                self.inbox.emit(Event::State(State::Connecting));
            }
            Phase::Greeting { until, .. } if *until <= now => self.leave(CLOSE_AWAY),
            Phase::Leaving { until } if *until <= now || !self.is_waiting_for_answers() => self.leave(CLOSE_AWAY),
            Phase::Active | Phase::Leaving { .. } if self.is_silent(now) => self.leave(CLOSE_AWAY),
            _ => {}
        }
    }

    // What to do next.

    /// The next thing the driver is to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Appends the next WebSocket message to `out`, one frame each. `false`: nothing to send now.
    pub fn poll_transmit(&mut self, now: Duration, out: &mut Vec<u8>) -> bool {
        let encoding = self.settings.encoding;
        self.poll_frame(now).map(|frame| encode_client(encoding, &frame, out)).is_some()
    }

    /// The next frame to send.
    pub fn poll_frame(&mut self, now: Duration) -> Option<ClientFrame<'_>> {
        match &mut self.phase {
            Phase::Greeting { token, .. } => {
                let token = token.take()?;
                return Some(self.hello(token));
            }
            Phase::Active | Phase::Leaving { .. } => {}
            Phase::Stopped(Stop::Closed) if self.is_last_ack_due => {}
            _ => return None,
        }
        let is_leaving = !matches!(self.phase, Phase::Active);
        if let Some((pos, cursors)) = self.inbox.next_ack(now, self.terms.window, is_leaving) {
            return Some(ClientFrame::Ack { pos, cursors: Cursors::List(cursors) });
        }
        if is_leaving {
            return None;
        }
        if let Auth::Due(_) = self.auth {
            let rid = self.rid();
            let Auth::Due(token) = std::mem::replace(&mut self.auth, Auth::InFlight(rid)) else { return None };
            return Some(ClientFrame::Auth { rid, token: Cow::Owned(token) });
        }
        if let Sync::Due { at, .. } = &self.sync
            && *at <= now
        {
            let rid = self.rid();
            let asked = std::mem::replace(&mut self.sync, Sync::InFlight { rid, asked: now });
            let Sync::Due { cursor, .. } = asked else { return None };
            return Some(ClientFrame::Sync { rid, since: self.since, limit: SYNC_LIMIT, cursor: Cow::Owned(cursor) });
        }
        let rid = self.rid();
        if let Some((conv, from, to, limit)) = self.inbox.next_fetch(now, rid) {
            let conv = Cow::Owned(conv.to_string());
            return Some(ClientFrame::Fetch { rid, conv, from, to, limit, flags: 0 });
        }
        if let Some((conv, seq)) = self.reads.next(now, rid) {
            return Some(ClientFrame::Read { rid, conv: Cow::Owned(conv.to_string()), seq });
        }
        if let Some((ttl_s, users)) = self.watching.next(now, rid, &mut self.random) {
            let users = Users::List(users.into_iter().map(Cow::Owned).collect());
            return Some(ClientFrame::Watch { rid, ttl_s, users });
        }
        if let Some(Nack { conv, seq, delay_ms, reason }) = self.inbox.next_nack() {
            return Some(ClientFrame::Nack { conv: Cow::Owned(conv.to_string()), seq, delay_ms, reason });
        }
        if let Some((conv, kind, payload)) = self.signals.pop_front() {
            return Some(ClientFrame::Signal { conv: Cow::Owned(conv), kind, payload: Cow::Owned(payload) });
        }
        if let Some(after) = self.settings.ping_after
            && self.pinged.is_none()
            && now >= self.heard + after
        {
            self.pinged = Some(now);
            return Some(ClientFrame::Ping { pos: 0 });
        }
        let mut send = self.outbox.next(now, self.terms.send_window, rid)?;
        if self.terms.caps & caps::TRACE == 0 {
            send.trace = None;
            send.flags &= !send_flags::TRACE;
        }
        Some(ClientFrame::Send(send))
    }

    /// What became of the next message that left the outbox.
    pub fn poll_outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// The next event. An application that does not take events is not acknowledging; the gateway then stops delivering.
    pub fn poll_event(&mut self, now: Duration) -> Option<Event> {
        self.inbox.poll(now, self.settings.acknowledge == Acknowledge::OnTake)
    }

    /// When to call [`Machine::handle_timeout`] at the latest; may have passed already.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let phase = match &self.phase {
            Phase::Waiting { until } | Phase::Greeting { until, .. } => return Some(*until),
            Phase::Connecting | Phase::Closing | Phase::Stopped(_) => return None,
            Phase::Leaving { until } => Some(*until),
            Phase::Active => None,
        };
        let sync = match &self.sync {
            Sync::Due { at, .. } => Some(*at),
            Sync::InFlight { asked, .. } => Some(*asked + READ_WAIT),
            Sync::Done => None,
        };
        let ping = self.settings.ping_after.map(|after| self.pinged.map_or(self.heard + after, |pinged| pinged + PONG_WAIT));
        let fetch = self.inbox.oldest_fetch().map(|asked| asked + READ_WAIT);
        let watch = self.watching.wake_at().filter(|_| self.is_active());
        let times = [phase, sync, fetch, watch, ping, self.outbox.wake_at(), self.inbox.wake_at(), self.reads.wake_at()];
        times.into_iter().flatten().min()
    }

    // How it stands.

    /// Whether WELCOME has come and the connection stands.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Active)
    }

    /// Why the client ended, if it did.
    #[must_use]
    pub fn stopped(&self) -> Option<Stop> {
        match self.phase {
            Phase::Stopped(stop) => Some(stop),
            _ => None,
        }
    }

    /// Messages not acknowledged yet.
    #[must_use]
    pub fn unsent_count(&self) -> usize {
        self.outbox.len()
    }

    /// The user, once WELCOME has named it.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// What to give to [`Settings::positions`] when the device runs again.
    #[must_use]
    pub fn positions(&self) -> Vec<Position> {
        self.inbox.positions()
    }

    /// What to give to [`Settings::since`] when the device runs again. While something that SYNC has named is still being fetched, or
    /// waits to be processed, it is the one before: the next SYNC must name it again.
    #[must_use]
    pub fn since(&self) -> u64 {
        if self.inbox.is_processed() { self.since } else { self.since_processed.min(self.since) }
    }

    fn hello(&mut self, token: String) -> ClientFrame<'_> {
        let mut wanted = 0;
        wanted |= if self.settings.receipts { caps::RECEIPTS } else { 0 };
        wanted |= if self.settings.presence { caps::PRESENCE } else { 0 };
        wanted |= if self.settings.trace { caps::TRACE } else { 0 };
        ClientFrame::Hello(Hello {
            minor: 0,
            platform: self.settings.platform,
            window: self.settings.window,
            caps: wanted,
            last_pos: self.inbox.last_pos(),
            session: self.session,
            device: Cow::Borrowed(&self.settings.device),
            client: Cow::Borrowed(&self.settings.client),
            token: Cow::Owned(token),
        })
    }

    fn leaving(&mut self, until: Duration) {
        if matches!(self.phase, Phase::Active) {
            self.phase = Phase::Leaving { until };
            self.inbox.emit(Event::State(State::Leaving));
        }
    }

    fn leave(&mut self, code: u16) {
        self.phase = Phase::Closing;
        self.actions.push_back(Action::Close(code));
    }

    fn stop(&mut self, stop: Stop) {
        if matches!(self.phase, Phase::Stopped(_)) {
            return;
        }
        self.phase = Phase::Stopped(stop);
        let tickets = self.outbox.stop();
        self.outcomes.extend(tickets.into_iter().map(|ticket| Outcome { ticket, result: Err(SendError::Stopped) }));
        self.inbox.emit(Event::State(State::Stopped(stop)));
    }

    fn is_waiting_for_answers(&self) -> bool {
        self.outbox.is_outstanding() || self.inbox.oldest_fetch().is_some()
    }

    fn is_silent(&self, now: Duration) -> bool {
        let unanswered_sync = matches!(self.sync, Sync::InFlight { asked, .. } if asked + READ_WAIT <= now);
        let unanswered_fetch = self.inbox.oldest_fetch().is_some_and(|asked| asked + READ_WAIT <= now);
        let unanswered_ping = self.pinged.is_some_and(|pinged| pinged + PONG_WAIT <= now);
        unanswered_sync || unanswered_fetch || unanswered_ping || self.outbox.is_silent(now)
    }

    fn rid(&mut self) -> u32 {
        let rid = self.next_rid;
        self.next_rid = self.next_rid.checked_add(1).unwrap_or(1);
        rid
    }
}

/// What is assumed until the first WELCOME: the protocol's defaults.
const TERMS_BEFORE_WELCOME: Terms =
    Terms { window: 256, send_window: 64, dedup: Duration::from_secs(86_400), payload_max: 64 * 1024, caps: 0 };
const CLOSE_DONE: u16 = 1000;
/// Going away: the session stays resumable.
const CLOSE_AWAY: u16 = 1001;
const CLOSE_PROTOCOL: u16 = 1002;
/// Entries asked for at once.
const SYNC_LIMIT: u16 = 256;
/// Signals waiting to be written. Full: dropped, as a signal may be.
const SIGNALS_MAX: usize = 16;
/// A SYNC or FETCH unanswered for this long means that the connection is dead.
const READ_WAIT: Duration = Duration::from_secs(30);
/// A PING unanswered for this long, with nothing else heard, means that the connection is dead.
const PONG_WAIT: Duration = Duration::from_secs(10);
