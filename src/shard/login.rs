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
use super::{ATTACH_MS, Greeting, Joining, Kind, Outlet, Shard, State};
use crate::clock::Moment;
use crate::ids::{self, ConnectionId};
use crate::mail::{Attach, AuthError, Claim, Court, Identity, Judge, Judged, RenewMail, Submit};
use crate::observe::counters::CloseCause;
use crate::session::delivery::{Session, Stage};
use crate::wire::envelope::{ErrorCode, Hello, ServerFrame, caps, page_flags};
use crate::wire::message::Text;

impl Shard {
    pub(super) fn handle_hello(&mut self, id: ConnectionId, hello: &Hello<'_>, outlet: &mut impl Outlet) {
        let bearer = self.cold[id.index as usize].extra.as_mut().and_then(|extra| extra.bearer.take());
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
            let verdict = self.verifier.read(token, self.now.unix_ms);
            return self.greet(id, greeting, verdict, outlet);
        };
        if self.ask(court, id, 0, token, outlet) {
            self.cold[id.index as usize].extra.get_or_insert_default().greeting = Some(greeting);
            self.connections.get_mut(id).expect("checked after every frame").state = State::Judging;
        } else {
            self.unjudged(id);
        }
    }

    /// AUTH: a fresh token of the same user for a session that is active.
    pub(super) fn handle_auth(&mut self, id: ConnectionId, rid: u32, token: &str, outlet: &mut impl Outlet) {
        let slot = id.index as usize;
        if let Err(retry_ms) = self.take_read(id) {
            return self.refuse(id, rid, ErrorCode::RateLimited, retry_ms, "");
        }
        let Some(court) = self.verifier.defers(token) else {
            let verdict = self.verifier.read(token, self.now.unix_ms);
            return self.renew(id, rid, verdict, outlet);
        };
        if self.cold[slot].extra.as_ref().is_some_and(|extra| extra.renewing.is_some()) {
            return self.refuse(id, rid, ErrorCode::WindowExceeded, RETRY_HELD_MS, "one AUTH at a time");
        }
        if self.ask(court, id, rid, token, outlet) {
            self.cold[slot].extra.get_or_insert_default().renewing = Some(rid);
            self.ok_awaited(id);
        } else {
            self.renew(id, rid, Err(AuthError::Overloaded), outlet);
        }
    }

    /// A thread of `auth` has judged a token.
    pub fn handle_judged(&mut self, now: Moment, mail: Judged, outlet: &mut impl Outlet) {
        self.now = now;
        let Judged { connection: id, rid, verdict } = mail;
        let Some(state) = self.connections.get(id).map(|connection| connection.state) else { return self.stale() };
        let Some(extra) = &mut self.cold[id.index as usize].extra else { return };
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

    /// A HELLO refused by load or drain: 5002 and 4503, never a bad-token code.
    pub(super) fn turn_away(&mut self, id: ConnectionId) {
        self.push_error(id, 0, ErrorCode::StoreOverloaded, RETRY_LOAD_MS, page_flags::ERROR_CLOSING, "try again later");
        self.close(id, 4503, CloseCause::Overloaded);
    }

    /// The token of a HELLO is judged: the store is asked for a place in the roster.
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
        let window = if greeting.window == 0 { self.rules.window_default } else { greeting.window };
        let connection = self.connections.get(id).expect("looked up by the caller");
        let encoding = connection.encoding.expect("set by the upgrade");
        let session = Session {
            user_hash: self.rules.hashes.user(&user).0,
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
            stage: Stage::Joining,
            encoding,
            backlog: None,
        };
        let Ok(session_id) = self.sessions.insert(session).map(ConnectionId::from) else { return self.turn_away(id) };
        let connection = self.connections.get_mut(id).expect("looked up by the caller");
        connection.session = session_id.index + 1;
        connection.state = State::Joining;
        let joining =
            Joining { user: user.clone(), minor: MINOR, attached: false, done: false, resumed: None, cursors: Vec::new() };
        self.cold[id.index as usize].extra.get_or_insert_default().joining = Some(joining);
        let Greeting { device, platform, caps, claim, .. } = greeting;
        let session = self.session_ref(session_id);
        let attach = Attach { session, user, device, platform, caps, claim, token: identity.token };
        if outlet.submit(Submit::Attach(attach)).is_err() {
            self.sessions.remove(session_id);
            self.connections.get_mut(id).expect("looked up by the caller").session = 0;
            self.counters.submit_full_count += 1;
            return self.turn_away(id);
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
        session.expires_s = session.expires_s.max(fresh_s);
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
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{Secret, Settings};
    use crate::conn::carry::Stashes;
    use crate::conn::send_queue::Batch;
    use crate::ids::ReactorId;
    use crate::mail::{Peer, TokenMark};
    use crate::session::auth::Verifier;
    use crate::shard::Rules;

    /// Header and claims of a token of a public key; what signs it does not matter here.
    const TOKEN: &str = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImVjIn0.e30.e30";

    /// Keeps what leaves.
    #[derive(Default)]
    struct Port {
        is_full: bool,
        asked: Vec<Judge>,
        submitted: Vec<Submit>,
    }

    impl Outlet for Port {
        fn submit(&mut self, mail: Submit) -> Result<(), Submit> {
            self.submitted.push(mail);
            Ok(())
        }
        fn peer(&mut self, _: ReactorId, mail: Peer) -> Result<(), Peer> {
            Err(mail)
        }
        fn judge(&mut self, mail: Judge) -> Result<(), Judge> {
            if self.is_full {
                return Err(mail);
            }
            self.asked.push(mail);
            Ok(())
        }
    }

    struct Core {
        shard: Shard,
        stashes: Stashes,
        port: Port,
        now: Moment,
    }

    impl Core {
        fn new() -> Self {
            let rules: Rules = crate::gateway::rules(&Settings::default(), false, 1, 8, [0; 16]).unwrap();
            let secret = Secret::new(vec![7; 32]).unwrap();
            let verifier = Verifier::with_public_keys(Some(&secret), Vec::new(), 0);
            let now = Moment { mono_ns: 1_000_000_000, unix_ms: 1_764_000_000_000 };
            let shard = Shard::new(ReactorId(0), Arc::new(rules), Arc::new(verifier), now);
            Self { shard, stashes: Stashes::new(1 << 20), port: Port::default(), now }
        }

        /// Bytes of a client, masked with zeros.
        fn text(&mut self, id: ConnectionId, text: &str) {
            let length = u8::try_from(text.len()).unwrap();
            assert!(length < 126);
            let mut frame = [&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat();
            self.shard.handle_bytes(self.now, id, &mut frame, &mut self.stashes, &mut self.port);
        }

        /// A connection whose HELLO shows [`TOKEN`].
        fn hello(&mut self) -> ConnectionId {
            let id = self.shard.handle_accept(self.now, None).unwrap();
            let head = "GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: tidegate.v1.json\r\n\r\n";
            self.shard.handle_bytes(self.now, id, &mut head.as_bytes().to_vec(), &mut self.stashes, &mut self.port);
            self.said(id);
            self.text(id, &format!(r#"{{"t":"hello","device":"1","token":"{TOKEN}"}}"#));
            id
        }

        /// What leaves to a client.
        fn said(&mut self, id: ConnectionId) -> String {
            let mut batch = Batch::default();
            let mut said = Vec::new();
            while self.shard.gather(id, &mut batch) {
                (0..batch.segments.len()).for_each(|index| said.extend_from_slice(self.shard.piece(&batch, index).bytes()));
                self.shard.handle_taken(id, batch.bytes());
            }
            String::from_utf8_lossy(&said).into_owned()
        }

        fn judged(&mut self, id: ConnectionId, rid: u32, verdict: Result<Identity, AuthError>) {
            self.shard.handle_judged(self.now, Judged { connection: id, rid, verdict }, &mut self.port);
        }

        fn pass(&mut self, seconds: u64) {
            self.now.mono_ns += seconds * 1_000_000_000;
            self.now.unix_ms += seconds * 1_000;
            self.shard.handle_time(self.now, &mut self.port);
        }
    }

    fn al() -> Identity {
        Identity {
            user: "al".into(),
            device: None,
            expires_unix_s: 1_764_000_600,
            token: TokenMark::default(),
            is_expired: false,
        }
    }

    fn is_told_to_come_later(said: &str) -> bool {
        let retry_ms = said.split_once(r#""retry_ms":"#).and_then(|(_, rest)| rest.split(',').next()?.parse::<u32>().ok());
        said.contains(r#""code":5002"#) && retry_ms.is_some_and(|retry_ms| (250..=313).contains(&retry_ms))
    }

    /// Nobody can take the token, or nobody answers in time, or the answer is that nobody knows: 5002, and the end as overloaded.
    #[test]
    fn a_token_nobody_judges_is_no_bad_token() {
        let mut core = Core::new();
        core.port.is_full = true;
        let full = core.hello();
        let said = core.said(full);
        assert!(is_told_to_come_later(&said), "{said}");
        core.port.is_full = false;
        let [silent, unknown] = [core.hello(), core.hello()];
        assert_eq!((core.said(silent), core.said(unknown)), (String::new(), String::new()));
        core.judged(unknown, 0, Err(AuthError::Overloaded));
        let said = core.said(unknown);
        assert!(is_told_to_come_later(&said), "{said}");
        core.pass(6);
        let said = core.said(silent);
        assert!(is_told_to_come_later(&said), "{said}");
        assert_eq!((core.shard.counters.tokens_unjudged_count, core.shard.counters.tokens_asked_count), (3, 2));
        let causes = [full, silent, unknown].map(|id| core.shard.cold[id.index as usize].cause);
        assert_eq!(causes, [Some(CloseCause::Overloaded); 3]);
        // The verdict comes after all: nobody waits for it any more.
        core.judged(silent, 0, Ok(al()));
        assert!(core.port.submitted.is_empty());
    }

    /// A good verdict leads to the roster with what HELLO asked for; a bad one is told as such; the one of a connection that was there
    /// before in the same slot says nothing.
    #[test]
    fn a_verdict_is_for_the_connection_that_asked() {
        let mut core = Core::new();
        let id = core.hello();
        assert_eq!((core.port.asked.len(), &*core.port.asked[0].token), (1, TOKEN));
        let older = ConnectionId { generation: id.generation.wrapping_sub(1), ..id };
        core.judged(older, 0, Ok(al()));
        core.judged(id, 7, Ok(al()));
        assert!(core.port.submitted.is_empty());
        core.judged(id, 0, Ok(al()));
        assert!(matches!(&core.port.submitted[..], [Submit::Attach(attach)] if &*attach.user == "al" && &*attach.device == "1"));
        let bad = [AuthError::Invalid, AuthError::Expired].map(|error| {
            let id = core.hello();
            core.judged(id, 0, Err(error));
            core.said(id)
        });
        assert!(bad[0].contains(r#""code":2001"#) && bad[1].contains(r#""code":2002"#), "{bad:?}");
        let other = core.hello();
        core.judged(other, 0, Ok(Identity { device: Some("2".into()), ..al() }));
        assert!(core.said(other).contains(r#""code":2001"#));
    }

    /// What comes while a token is judged breaks the rule of HELLO, and the verdict changes nothing any more.
    #[test]
    fn nothing_is_read_while_a_token_is_judged() {
        let mut core = Core::new();
        let id = core.hello();
        core.text(id, r#"{"t":"ping"}"#);
        assert!(core.said(id).contains(r#""code":1004"#));
        core.judged(id, 0, Ok(al()));
        assert!(core.port.submitted.is_empty());
    }

    /// A drain that comes while a token is judged turns the connection away.
    #[test]
    fn a_drain_turns_away_who_is_judged() {
        let mut core = Core::new();
        let id = core.hello();
        core.shard.handle_drain(core.now, 1012, 1);
        core.pass(1);
        let said = core.said(id);
        assert!(is_told_to_come_later(&said), "{said}");
    }
}
