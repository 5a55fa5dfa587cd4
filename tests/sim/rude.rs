//! Clients that write their frames by hand: one that asks for messages again, and some that do not keep to the protocol. Whatever they
//! do, what they were told is true, and nobody else notices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate::ids::Cmid;
use tidegate::wire::envelope::{
    ClientFrame, Cursor, Cursors, Encoding, Hello, Send, ServerFrame, ServerFrames, Users, deliver_flags, encode_client,
    send_flags,
};

use crate::device::Wishes;
use crate::ledger::{Conv, Finding, Ledger, Said, payload};
use crate::random::Random;
use crate::socket::{self, Arrival, Incoming};
use crate::{MS, SECOND};

/// What a client is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// Keeps to the protocol, acknowledges by `pos` alone, and asks for some messages again.
    Asking,
    /// Says everything two or three times at once, and waits for nothing.
    Impatient,
    /// Takes what comes and acknowledges nothing.
    Silent,
    /// Says what nobody may say.
    Babbling,
}

/// Devices from this number on are rude.
pub const RUDE: usize = 1 << 20;
/// After NACK a message comes again within this time: 1 s and a fifth, the delay asked for, and what a reader and the network take.
const AGAIN_NS: u64 = 12 * SECOND;

pub struct Rude {
    pub number: usize,
    pub user: Arc<str>,
    pub manner: Manner,
    pub link: Option<usize>,
    pub due: u64,
    incoming: Incoming,
    is_upgraded: bool,
    is_active: bool,
    token: String,
    random: Random,
    convs: Vec<Conv>,
    next_rid: u32,
    said_count: u64,
    unanswered: BTreeMap<u32, Cmid>,
    pos: u64,
    /// The session, and the positions it can be taken up at.
    session: [u8; 16],
    /// Asked for again on this connection, with the time by which it must have come.
    asked: BTreeMap<(Conv, u64), u64>,
    /// Asked for once is enough.
    asked_ever: BTreeSet<(Conv, u64)>,
    pub again_count: u64,
}

impl Rude {
    pub fn new(number: usize, user: Arc<str>, token: String, convs: Vec<Conv>, mut random: Random) -> Self {
        let manner = *random.pick(&[Manner::Asking, Manner::Impatient, Manner::Silent, Manner::Babbling]);
        Self {
            number,
            user,
            manner,
            link: None,
            due: 0,
            incoming: Incoming::default(),
            is_upgraded: false,
            is_active: false,
            token,
            random,
            convs,
            next_rid: 1,
            said_count: 0,
            unanswered: BTreeMap::new(),
            pos: 0,
            session: [0; 16],
            asked: BTreeMap::new(),
            asked_ever: BTreeSet::new(),
            again_count: 0,
        }
    }

    pub fn connected(&mut self, link: usize) -> Vec<u8> {
        self.link = Some(link);
        socket::upgrade(Encoding::Binary)
    }

    pub fn disconnected(&mut self) {
        self.link = None;
        self.incoming = Incoming::default();
        (self.is_upgraded, self.is_active) = (false, false);
        self.unanswered.clear();
        self.asked.clear();
    }

    /// Bytes came on the link.
    ///
    /// # Errors
    /// The finding.
    pub fn handle_bytes(&mut self, now: u64, bytes: &[u8], ledger: &mut Ledger, wishes: &mut Wishes) -> Result<(), Finding> {
        self.incoming.push(bytes);
        while self.link.is_some()
            && let Some(arrival) = self.incoming.next()?
        {
            match arrival {
                Arrival::Upgraded => {
                    self.is_upgraded = true;
                    let window = if self.random.chance(500_000) { 0 } else { 4 };
                    let goes_on = self.random.chance(500_000);
                    let session = if goes_on { self.session } else { [0; 16] };
                    let last_pos = if self.manner == Manner::Babbling { self.random.below(50) } else { self.pos };
                    let hello = Hello {
                        minor: 0,
                        platform: 0,
                        window,
                        caps: 7,
                        last_pos: if goes_on { last_pos } else { 0 },
                        session,
                        device: "rude".into(),
                        client: "".into(),
                        token: self.token.clone().into(),
                    };
                    self.put(&ClientFrame::Hello(hello), wishes);
                }
                Arrival::Refused(..) | Arrival::Close(_) => {
                    wishes.close = true;
                    self.disconnected();
                }
                Arrival::Message(message) => self.handle_message(now, &message, ledger, wishes)?,
                Arrival::Ping(payload) => self.frame(socket::PONG, &payload, wishes),
            }
        }
        Ok(())
    }

    fn handle_message(&mut self, now: u64, message: &[u8], ledger: &mut Ledger, wishes: &mut Wishes) -> Result<(), Finding> {
        let mut frames = ServerFrames::new(Encoding::Binary, message);
        while let Some(frame) = frames.next_frame().map_err(|error| format!("the gateway wrote {error:?}"))? {
            match frame {
                ServerFrame::Welcome(welcome) => {
                    self.is_active = true;
                    self.session = welcome.session;
                    if welcome.resumed == 0 {
                        self.pos = 0;
                    }
                }
                ServerFrame::Sent { rid, seq, flags, .. } => {
                    if let Some(cmid) = self.unanswered.remove(&rid)
                        && seq > 0
                    {
                        ledger.acknowledged(cmid, seq, flags != 0)?;
                    }
                }
                ServerFrame::Deliver(deliver) if deliver.flags & deliver_flags::TRANSIENT == 0 => {
                    let quiet = deliver.flags & deliver_flags::QUIET != 0;
                    ledger.received(&deliver.conv, deliver.seq, &deliver.from, &deliver.payload, quiet)?;
                    self.pos = self.pos.max(deliver.pos);
                    let place: (Conv, u64) = ((*deliver.conv).into(), deliver.seq);
                    if self.manner == Manner::Asking {
                        if self.asked.remove(&place).is_some() {
                            self.again_count += 1;
                        } else if self.asked.len() < 8 && self.random.chance(100_000) && self.asked_ever.insert(place.clone()) {
                            let delay_ms = u32::try_from(self.random.below(2_000)).expect("small");
                            let (conv, seq) = place;
                            self.put(&ClientFrame::Nack { conv: (*conv).into(), seq, delay_ms, reason: 1 }, wishes);
                            self.asked.insert((conv, seq), now + AGAIN_NS);
                        }
                        let pos = self.pos;
                        self.put(&ClientFrame::Ack { pos, cursors: Cursors::List(Vec::new()) }, wishes);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A message it asked for again, on a connection that lasts, should have come by now. In trouble, and for what waits since, a reader
    /// may be behind for longer.
    pub fn waits_in_vain(&self, now: u64) -> Option<Finding> {
        let ((conv, seq), _) = self.asked.iter().find(|(_, due)| **due < now)?;
        Some(format!("{} asked for {conv} {seq} again, and it does not come", self.user))
    }

    /// What it does by itself, a few times a second.
    pub fn act(&mut self, ledger: &mut Ledger, wishes: &mut Wishes, payload_max: u64) {
        if !self.is_upgraded {
            return;
        }
        match self.manner {
            Manner::Silent => self.say(1, ledger, wishes, payload_max),
            Manner::Asking if self.is_active && self.random.chance(300_000) => self.say(1, ledger, wishes, payload_max),
            Manner::Asking => {}
            Manner::Impatient => {
                let times = self.random.between(1, 8);
                (0..times).for_each(|_| self.say(3, ledger, wishes, payload_max));
                let pos = self.pos;
                self.put(&ClientFrame::Ack { pos, cursors: Cursors::List(Vec::new()) }, wishes);
            }
            Manner::Babbling => self.babble(wishes),
        }
    }

    /// Says something up to `times` times at once; the first under RETRY too now and then.
    fn say(&mut self, times: u64, ledger: &mut Ledger, wishes: &mut Wishes, payload_max: u64) {
        if !self.is_active || self.convs.is_empty() {
            return;
        }
        let conv = self.random.pick(&self.convs).clone();
        let mut bytes = [0; 16];
        self.random.fill(&mut bytes);
        bytes[15] |= 1;
        let cmid = Cmid(bytes);
        let length = usize::try_from(self.random.between(16, payload_max.max(16))).expect("small");
        let content: Arc<[u8]> = payload(cmid, length).into();
        self.said_count += 1;
        let said = Said {
            device: self.number,
            user: self.user.clone(),
            conv: conv.clone(),
            order: self.said_count,
            payload: content.clone(),
            quiet: false,
            acknowledged: None,
        };
        ledger.says(cmid, said);
        for time in 0..self.random.between(1, times) {
            let flags = if time > 0 { send_flags::RETRY } else { 0 };
            let rid = self.rid();
            let send =
                Send { rid, cmid, flags, kind: 0, ttl_s: 0, trace: None, conv: (*conv).into(), payload: (&*content).into() };
            self.put(&ClientFrame::Send(send), wishes);
            self.unanswered.insert(rid, cmid);
        }
    }

    fn babble(&mut self, wishes: &mut Wishes) {
        let rid = self.rid();
        let conv = if self.convs.is_empty() { "d:x:y".into() } else { self.random.pick(&self.convs).clone() };
        let far = self.random.next();
        let what = self.random.below(14);
        let frame = match what {
            0 => ClientFrame::Ack { pos: far, cursors: Cursors::List(vec![Cursor { conv: (*conv).into(), seq: far }]) },
            1 => ClientFrame::Read { rid, conv: (*conv).into(), seq: far },
            2 => ClientFrame::Nack { conv: (*conv).into(), seq: far % 10, delay_ms: 0, reason: 0 },
            3 => ClientFrame::Fetch { rid, conv: "d:user0:user1".into(), from: 1, to: far, limit: 500, flags: 0 },
            4 => ClientFrame::Sync { rid, since: far, limit: 1, cursor: "nonsense".into() },
            5 => ClientFrame::Watch { rid, ttl_s: 1, users: Users::List((0..64).map(|n| format!("user{n}").into()).collect()) },
            6 => ClientFrame::Signal { conv: (*conv).into(), kind: 1, payload: vec![1; 100].into() },
            7 => ClientFrame::Auth { rid, token: "no token".into() },
            8 => ClientFrame::Ping { pos: far },
            9 => {
                let send = Send {
                    rid,
                    cmid: Cmid([7; 16]),
                    flags: send_flags::RETRY,
                    kind: 0,
                    ttl_s: 0,
                    trace: None,
                    conv: "d:user0:user1".into(),
                    payload: vec![0; 40].into(),
                };
                ClientFrame::Send(send)
            }
            10 => ClientFrame::Fetch { rid, conv: (*conv).into(), from: far, to: 1, limit: 0, flags: 0xFF },
            11 => {
                // What comes after it in the message may be anything.
                let mut bytes = vec![0; 40];
                self.random.fill(&mut bytes);
                return self.frame(socket::BINARY, &bytes, wishes);
            }
            12 => return wishes.bytes.extend_from_slice(&[0xFF, 0x80, 1, 2, 3, 4]),
            _ => {
                for number in 0..20 {
                    let fetch =
                        ClientFrame::Fetch { rid: rid + number, conv: (*conv).into(), from: 1, to: 9, limit: 9, flags: 0 };
                    self.put(&fetch, wishes);
                }
                return;
            }
        };
        self.put(&frame, wishes);
    }

    fn rid(&mut self) -> u32 {
        self.next_rid += 32;
        self.next_rid
    }

    fn put(&mut self, frame: &ClientFrame<'_>, wishes: &mut Wishes) {
        let mut message = Vec::new();
        encode_client(Encoding::Binary, frame, &mut message);
        self.frame(socket::BINARY, &message, wishes);
    }

    fn frame(&mut self, opcode: u8, payload: &[u8], wishes: &mut Wishes) {
        let mut key = [0; 4];
        self.random.fill(&mut key);
        socket::frame(opcode, payload, key, &mut wishes.bytes);
    }

    /// When it does something next.
    pub fn pause(&mut self) -> u64 {
        self.random.spread(300 * MS)
    }
}
