//! HELLO and AUTH: whom a token speaks for. A token of the shared secret is judged at once; one of a public key costs a hundred times as
//! much and goes to the threads of `auth`, while the connection waits.
//!
//! ```text
//!  WaitHello ──HELLO──► Judging ──good──► Joining ──► Active ──AUTH──► Active, an answer owed ──► OK or ERROR
//!      └────────good, judged here────────────┘
//! ```
//!
//! Who waits holds its place among the handshakes and its deadline runs. If nobody can judge, it is told 5002 and 4503, never that its
//! token is bad.

use super::request::{RETRY_HELD_MS, RETRY_LOAD_MS};
use super::{ATTACH_MS, Greeting, Joining, Kind, Outlet, Shard, State, Work};
use crate::clock::Moment;
use crate::ids::{self, ConnectionId};
use crate::mail::{Attach, AuthError, Claim, Court, Identity, Judge, Judged, RenewMail, Submit};
use crate::mutant::{self, Mutant};
use crate::observe::counters::CloseCause;
use crate::session::delivery::{Session, Stage};
use crate::wire::envelope::{ErrorCode, Hello, ServerFrame, caps, page_flags};
use crate::wire::message::Text;

impl Shard {
    pub(super) fn handle_hello(&mut self, id: ConnectionId, hello: &Hello<'_>, outlet: &mut impl Outlet) {
        let bearer = self.cold[id].extra.as_mut().and_then(|extra| extra.bearer.take());
        let token: &str = if hello.token.is_empty() { bearer.as_deref().unwrap_or("") } else { &hello.token };
        if !ids::is_device(&hello.device) {
            return self.fail(id, 0, ErrorCode::BadField, "device: 1 to 64 of [A-Za-z0-9_.:@-]");
        }
        let greeting = Greeting {
            device: Text::copy_from(&hello.device),
            platform: hello.platform,
            window: hello.window,
            caps: granted_caps(hello.caps),
            claim: (hello.session != [0; 16]).then_some(Claim { key: hello.session, last_pos: hello.last_pos }),
        };
        let Some(court) = self.verifier.defers(token) else {
            let verdict = self.judge_here(token);
            return self.greet(id, greeting, verdict, outlet);
        };
        if self.ask(court, id, 0, token, outlet) {
            self.cold[id].extra.get_or_insert_default().greeting = Some(greeting);
            self.connections.known_mut(id).state = State::Judging;
        } else {
            self.unjudged(id);
        }
    }

    /// AUTH: a fresh token of the same user for a session that is active.
    pub(super) fn handle_auth(&mut self, id: ConnectionId, rid: u32, token: &str, outlet: &mut impl Outlet) {
        if let Err(retry_ms) = self.take_read(id) {
            return self.refuse_in_row(id, rid, ErrorCode::RateLimited, retry_ms, "");
        }
        let Some(court) = self.verifier.defers(token) else {
            let verdict = self.judge_here(token);
            return self.renew(id, rid, verdict, outlet);
        };
        if self.cold[id].extra.as_ref().is_some_and(|extra| extra.renewing.is_some()) {
            return self.refuse(id, rid, ErrorCode::WindowExceeded, RETRY_HELD_MS, "one AUTH at a time");
        }
        if self.ask(court, id, rid, token, outlet) {
            self.cold[id].extra.get_or_insert_default().renewing = Some(rid);
            self.ok_awaited(id);
        } else {
            self.renew(id, rid, Err(AuthError::Overloaded), outlet);
        }
    }

    /// Judges a token by the secret.
    fn judge_here(&self, token: &str) -> Result<Identity, AuthError> {
        #[cfg(debug_assertions)]
        super::guard::panic_over_defect(token.as_bytes());
        self.verifier.read(token, self.now.unix_ms)
    }

    /// A thread of `auth` has judged a token.
    pub fn handle_judged(&mut self, now: Moment, mail: Judged, outlet: &mut impl Outlet) {
        self.now = now;
        let id = mail.connection;
        self.guarded(Work::Verdict, id, |shard| shard.take_verdict(mail, outlet));
    }

    fn take_verdict(&mut self, mail: Judged, outlet: &mut impl Outlet) {
        let Judged { connection: id, rid, verdict } = mail;
        let Some(state) = self.connections.get(id).map(|connection| connection.state) else { return self.stale() };
        let Some(extra) = &mut self.cold[id].extra else { return };
        if rid == 0 {
            let greeting = extra.greeting.take();
            self.drop_empty_extra(id);
            // It may have broken a rule or left while it waited.
            if let (State::Judging, Some(greeting)) = (state, greeting) {
                self.greet(id, greeting, verdict, outlet);
            }
        } else if extra.renewing == Some(rid) {
            extra.renewing = None;
            self.drop_empty_extra(id);
            self.renew(id, rid, verdict, outlet);
            self.ok_answered(id);
        }
    }

    /// Gives a token to whoever judges it elsewhere. `false`: too many wait there.
    fn ask(&mut self, court: Court, id: ConnectionId, rid: u32, token: &str, outlet: &mut impl Outlet) -> bool {
        let mail = Judge { court, reactor: self.id, connection: id, rid, token: token.into(), shown: self.now };
        let is_taken = outlet.judge(mail).is_ok();
        self.counters.tokens_asked_count += u64::from(is_taken);
        is_taken
    }

    /// HELLO of which nobody can say whether its token is good.
    pub(super) fn unjudged(&mut self, id: ConnectionId) {
        self.counters.tokens_unjudged_count += 1;
        self.turn_away(id);
    }

    /// A HELLO refused by load or drain: 5002 and 4503, never a bad-token code; and when to come back.
    pub(super) fn turn_away(&mut self, id: ConnectionId) {
        let retry_ms = RETRY_LOAD_MS + self.book_return();
        self.push_error(id, 0, ErrorCode::StoreOverloaded, retry_ms, page_flags::ERROR_CLOSING, "try again later");
        self.close(id, 4503, CloseCause::Overloaded);
    }

    /// A HELLO that comes too soon: 4001 and 4429.
    pub(super) fn refuse_hello(&mut self, id: ConnectionId, retry_ms: u32, detail: &str) {
        self.counters.hellos_limited_count += 1;
        self.push_error(id, 0, ErrorCode::RateLimited, retry_ms, page_flags::ERROR_CLOSING, detail);
        self.close(id, 4429, CloseCause::RateLimited);
    }

    /// The token of a HELLO is judged: the store is asked for a place in the roster.
    #[expect(clippy::expect_used, reason = "HELLO is read only behind an upgrade, which sets the encoding")]
    fn greet(&mut self, id: ConnectionId, greeting: Greeting, verdict: Result<Identity, AuthError>, outlet: &mut impl Outlet) {
        let identity = match verdict.and_then(|identity| identity.shown_by(|device| device == greeting.device.as_str())) {
            Ok(identity) => identity,
            Err(AuthError::Expired) => return self.fail(id, 0, ErrorCode::TokenExpired, "token expired"),
            Err(AuthError::Invalid) => return self.fail(id, 0, ErrorCode::TokenInvalid, "token missing or invalid"),
            Err(AuthError::Overloaded) => return self.unjudged(id),
        };
        if self.drain.is_some() {
            return self.turn_away(id);
        }
        let user = identity.user;
        let user_hash = self.rules.hashes.user(&user).0;
        let cut_off_ms = self.cut_off_ms(user_hash);
        if cut_off_ms > 0 {
            return self.refuse_hello(id, cut_off_ms, "this user was too fast");
        }
        let window = if greeting.window == 0 { self.rules.window_default } else { greeting.window };
        let connection = self.connections.known(id);
        let encoding = connection.encoding.expect("set by the upgrade");
        let session = Session {
            user_hash,
            device_hash: self.device_hash(&greeting.device),
            pos: 0,
            connection: id,
            roster: None,
            window_bytes: 0,
            unacknowledged: 0,
            expires_s: expires_s(identity.expires_unix_s),
            turn: 0,
            window: window.clamp(1, self.rules.window_max),
            caps: greeting.caps,
            stage: Stage::New,
            encoding,
            backlog: None,
        };
        let Ok(session_id) = self.sessions.insert(session).map(ConnectionId::from) else { return self.turn_away(id) };
        let connection = self.connections.known_mut(id);
        connection.session = session_id.index + 1;
        connection.state = State::Joining;
        let joining =
            Joining { user: user.clone(), minor: MINOR, attached: false, done: false, resumed: None, cursors: Vec::new() };
        self.cold[id].extra.get_or_insert_default().joining = Some(joining);
        let Greeting { device, platform, caps, claim, .. } = greeting;
        let session = self.session_ref(session_id);
        let attach = Attach { session, user, device, platform, caps, claim, token: identity.token };
        if outlet.submit(Submit::Attach(attach)).is_err() {
            self.sessions.remove(session_id);
            self.connections.known_mut(id).session = 0;
            self.counters.submit_full_count += 1;
            return self.turn_away(id);
        }
        if let Some(line) = self.sessions.get_mut(session_id) {
            line.stage = Stage::Joining;
        }
        self.end_handshake(id);
        self.schedule(id, ATTACH_MS, Kind::Attach);
    }

    /// The token of an AUTH is judged: the store is asked whether it is revoked. One that does not pass leaves the old one in force.
    fn renew(&mut self, id: ConnectionId, rid: u32, verdict: Result<Identity, AuthError>, outlet: &mut impl Outlet) {
        let Some((user_hash, device_hash)) = self.session_mut(id).map(|it| (it.user_hash, it.device_hash)) else { return };
        let verdict = verdict.and_then(|identity| identity.shown_by(|device| self.device_hash(device) == device_hash));
        let hashes = self.rules.hashes;
        match verdict {
            Ok(identity) if hashes.user(&identity.user).0 == user_hash => {
                let Some(from) = self.sender(id, rid) else { return };
                let mail = RenewMail { from, token: identity.token, expires_s: expires_s(identity.expires_unix_s) };
                match outlet.submit(Submit::Renew(mail)) {
                    Ok(()) => self.ok_awaited(id),
                    Err(_) => self.overloaded(id, rid),
                }
            }
            Err(AuthError::Expired) => self.refuse(id, rid, ErrorCode::TokenExpired, 0, "token expired"),
            Err(AuthError::Overloaded) => {
                self.counters.tokens_unjudged_count += 1;
                self.refuse(id, rid, ErrorCode::StoreOverloaded, RETRY_LOAD_MS, "try again later");
            }
            Ok(_) | Err(AuthError::Invalid) => {
                self.refuse(id, rid, ErrorCode::TokenInvalid, 0, "token of another user or invalid");
            }
        }
    }

    /// A fresh token counts. One that ends earlier shortens nothing.
    pub(super) fn renewed(&mut self, id: ConnectionId, rid: u32, fresh_s: u32) {
        let Some(session) = self.session_mut(id) else { return };
        let is_later = fresh_s > session.expires_s;
        session.expires_s = if mutant::on(Mutant::RenewalShortens) { fresh_s } else { session.expires_s.max(fresh_s) };
        let expires_s = session.expires_s;
        if is_later {
            self.watch_expiry(id, expires_s);
        }
        self.push_server(id, &ServerFrame::Ok { rid, value: u64::from(expires_s) * 1000 });
    }

    #[expect(clippy::cast_possible_truncation, reason = "half of a keyed hash is a keyed hash")]
    fn device_hash(&self, device: &str) -> u32 {
        self.rules.hashes.device(device).0 as u32
    }
}

/// The capabilities of a HELLO that this release has.
fn granted_caps(asked: u32) -> u8 {
    (asked & (caps::RECEIPTS | caps::PRESENCE | caps::TRACE)) as u8
}

/// Seconds of an expiry in 32 bits: tokens beyond the year 2106 end then.
fn expires_s(unix_s: u64) -> u32 {
    u32::try_from(unix_s).unwrap_or(u32::MAX)
}

/// Minor version of the protocol spoken here; the lower of the two applies, and there is none below.
const MINOR: u8 = 0;

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;
