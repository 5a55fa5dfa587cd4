//! A shard on a clock that the test turns, and what leaves it.

use std::sync::Arc;

use super::{Outlet, Shard};
use crate::clock::Moment;
use crate::config::{Secret, Settings};
use crate::conn::carry::Stashes;
use crate::conn::send_queue::Batch;
use crate::ids::{Cmid, ConnectionId, Mid, ReactorId, RosterId, SessionRef};
use crate::mail::{Attach, AuthError, Delivery, Event, Group, Identity, Judge, Judged, Peer, Submit, Target, TokenMark};
use crate::observe::counters::CloseCause;
use crate::session::auth::Verifier;
use crate::shard::Rules;
use crate::wire::message::Body;

/// Header and claims of a token of a public key; what signs it does not matter here.
pub(super) const TOKEN: &str = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImVjIn0.e30.e30";

/// Keeps what leaves.
#[derive(Default)]
pub(super) struct Port {
    /// The lanes to whoever judges tokens.
    pub(super) is_full: bool,
    /// The lane to the store.
    pub(super) takes_nothing: bool,
    /// The lane to the store has a defect.
    pub(super) panics: bool,
    pub(super) asked: Vec<Judge>,
    pub(super) submitted: Vec<Submit>,
}

impl Outlet for Port {
    fn submit(&mut self, mail: Submit) -> Result<(), Submit> {
        assert!(!self.panics, "a defect was planted");
        if self.takes_nothing {
            return Err(mail);
        }
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

pub(super) struct Core {
    pub(super) shard: Shard,
    pub(super) stashes: Stashes,
    pub(super) port: Port,
    pub(super) now: Moment,
}

impl Core {
    pub(super) fn new() -> Self {
        let rules: Rules = crate::gateway::rules(&Settings::default(), false, 1, 8, [0; 16]).unwrap();
        let secret = Secret::new(vec![7; 32]).unwrap();
        let verifier = Verifier::with_public_keys(Some(&secret), Vec::new(), 0);
        let now = Moment { mono_ns: 1_000_000_000, unix_ms: 1_764_000_000_000 };
        let shard = Shard::new(ReactorId(0), Arc::new(rules), Arc::new(verifier), now);
        Self { shard, stashes: Stashes::new(1 << 20), port: Port::default(), now }
    }

    /// Bytes of a client, masked with zeros.
    pub(super) fn text(&mut self, id: ConnectionId, text: &str) {
        let length = u8::try_from(text.len()).unwrap();
        assert!(length < 126);
        let mut frame = [&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat();
        self.shard.handle_bytes(self.now, id, &mut frame, &mut self.stashes, &mut self.port);
    }

    /// A connection whose HELLO shows [`TOKEN`].
    pub(super) fn hello(&mut self) -> ConnectionId {
        let id = self.shard.handle_accept(self.now, None).unwrap();
        let head = "GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: tidegate.v1.json\r\n\r\n";
        self.shard.handle_bytes(self.now, id, &mut head.as_bytes().to_vec(), &mut self.stashes, &mut self.port);
        self.said(id);
        self.text(id, &format!(r#"{{"t":"hello","device":"1","token":"{TOKEN}"}}"#));
        id
    }

    /// What leaves to a client.
    pub(super) fn said(&mut self, id: ConnectionId) -> String {
        String::from_utf8_lossy(&self.said_bytes(id)).into_owned()
    }

    pub(super) fn said_bytes(&mut self, id: ConnectionId) -> Vec<u8> {
        let mut said = Vec::new();
        while let Some(bytes) = self.laid_out(id) {
            self.shard.handle_taken(id, bytes.len());
            said.extend(bytes);
        }
        said
    }

    /// The next write to a client, of which nothing is taken yet.
    pub(super) fn laid_out(&mut self, id: ConnectionId) -> Option<Vec<u8>> {
        let mut batch = Batch::default();
        let is_some = self.shard.gather(id, &mut batch);
        is_some.then(|| (0..batch.segments.len()).flat_map(|index| self.shard.piece(&batch, index).bytes().to_vec()).collect())
    }

    pub(super) fn judged(&mut self, id: ConnectionId, rid: u32, verdict: Result<Identity, AuthError>) {
        self.shard.handle_judged(self.now, Judged { connection: id, rid, verdict }, &mut self.port);
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        self.pass_ms(seconds * 1_000);
    }

    pub(super) fn pass_ms(&mut self, ms: u64) {
        self.now.mono_ns += ms * 1_000_000;
        self.now.unix_ms += ms;
        self.shard.handle_time(self.now, &mut self.port);
    }

    /// Turns in steps of `step_ms` until `unix_ms`, while the client shows that it is there.
    pub(super) fn run_until(&mut self, id: ConnectionId, unix_ms: u64, step_ms: u64) {
        while self.now.unix_ms < unix_ms {
            self.pass_ms(step_ms.min(unix_ms - self.now.unix_ms));
            self.text(id, r#"{"t":"ping"}"#);
            self.said(id);
        }
    }

    /// What the store has decided.
    pub(super) fn group(&mut self, event: Event) {
        let group = Group { events: vec![event], ..Group::default() };
        self.shard.handle_group(self.now, &group, &mut self.port);
    }

    /// What the store has decided, for one session: `event` is given the place of its target.
    pub(super) fn tell(&mut self, session: SessionRef, event: impl FnOnce(u32, u32) -> Event) {
        let target = Target { index: session.index, generation: session.generation, own: false };
        let group = Group { events: vec![event(0, 1)], targets: vec![target], ..Group::default() };
        self.shard.handle_group(self.now, &group, &mut self.port);
    }

    /// A session whose token ends at this Unix second, and its connection; WELCOME has come.
    pub(super) fn active(&mut self, expires_unix_s: u64) -> (ConnectionId, SessionRef) {
        let (id, session) = self.joining_until(expires_unix_s);
        self.group(Event::Attached { session, roster: RosterId(session.index), evicted: None });
        assert!(self.said(id).contains(r#""t":"welcome""#));
        (id, session)
    }

    /// A session whose HELLO was good, and its connection; the store has not answered.
    pub(super) fn joining(&mut self) -> (ConnectionId, SessionRef) {
        self.joining_until(al().expires_unix_s)
    }

    fn joining_until(&mut self, expires_unix_s: u64) -> (ConnectionId, SessionRef) {
        let id = self.hello();
        self.judged(id, 0, Ok(Identity { expires_unix_s, ..al() }));
        let Some(Submit::Attach(Attach { session, .. })) = self.port.submitted.pop() else { panic!("the store is asked") };
        (id, session)
    }

    pub(super) fn cause(&self, id: ConnectionId) -> Option<CloseCause> {
        self.shard.cold[id].cause
    }

    /// Turns as a reactor does until the connection is told to end, or `unix_ms`. Returns what was said.
    pub(super) fn end_of(&mut self, id: ConnectionId, unix_ms: u64) -> String {
        let mut said = String::new();
        while self.cause(id).is_none() && self.now.unix_ms < unix_ms {
            self.pass_ms(self.shard.wait_ms_max());
            said += &self.said(id);
        }
        said
    }
}

/// The first message of a conversation.
pub(super) fn delivery(payload: &[u8]) -> Delivery {
    Delivery {
        seq: 1,
        mid: Mid(1),
        flags: 0,
        kind: 1,
        exp_s: 0,
        cmid: Cmid([1; 16]),
        trace: None,
        conv: "d:al:bo".into(),
        from: "bo".into(),
        payload: Body::copy_from(payload),
    }
}

/// Whom a good token speaks for.
pub(super) fn al() -> Identity {
    Identity { user: "al".into(), device: None, expires_unix_s: 1_764_000_600, token: TokenMark::default(), is_expired: false }
}
