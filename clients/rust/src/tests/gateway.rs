//! A gateway in a few lines, as docs/protocol.md describes it: the truth that the machine is tested against.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use tidegate::ids::{Cmid, Mid};
use tidegate::wire::envelope::{
    ClientFrame, Deliver, Encoding, Entry, Frames, Message, SENT_DUPLICATE, Send, ServerFrame, Welcome, deliver_flags,
    encode_server, page_flags, send_flags,
};

pub(super) const SEND_WINDOW: u16 = 8;
pub(super) const WINDOW: u16 = 8;
const PAGE_MESSAGES: usize = 3;
const PAGE_ENTRIES: usize = 2;

/// A stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub cmid: Cmid,
    pub from: String,
    pub payload: Vec<u8>,
}

/// Conversations, members and devices.
#[derive(Debug)]
pub(super) struct Gateway {
    pub logs: BTreeMap<String, Vec<Stored>>,
    members: BTreeMap<String, Vec<usize>>,
    users: Vec<String>,
    dedup: HashMap<(String, Cmid), (String, u64)>,
    /// cmids that were read from any socket: a repeat of them must carry RETRY.
    seen: HashSet<Cmid>,
    pub devices: Vec<Device>,
    /// The next SENDs fail with this code, so many times.
    pub failures: (u16, u32),
    /// The next FETCHes fail RETRYABLE, so many times.
    pub fetch_failures: u32,
    turns: u8,
}

/// One device: its connection, if any, and its session.
#[derive(Debug)]
pub(super) struct Device {
    encoding: Encoding,
    is_active: bool,
    holds: HashMap<String, Cmid>,
    session: [u8; 16],
    pos: u64,
    held: VecDeque<(u64, String, u64)>,
    /// Conversations with something left out: up to which head, and whether NOTICE has been written on this connection.
    marked: BTreeMap<String, (u64, bool)>,
    pub cursors: HashMap<String, u64>,
    pub out: VecDeque<Vec<u8>>,
    /// So many deliveries are lost to a mark, as if the window had been full.
    pub skip: u32,
    /// The session is forgotten at the next HELLO.
    pub forget: bool,
}

impl Gateway {
    pub(super) fn new(users: &[&str], encodings: &[Encoding], conversations: &[(&str, &[usize])]) -> Self {
        Self {
            logs: conversations.iter().map(|(conv, _)| ((*conv).to_owned(), Vec::new())).collect(),
            members: conversations.iter().map(|(conv, devices)| ((*conv).to_owned(), devices.to_vec())).collect(),
            users: users.iter().map(|&user| user.to_owned()).collect(),
            dedup: HashMap::new(),
            seen: HashSet::new(),
            devices: encodings.iter().map(|&encoding| Device::new(encoding)).collect(),
            failures: (0, 0),
            fetch_failures: 0,
            turns: 0,
        }
    }

    pub(super) fn stored(&self, conv: &str, seq: u64) -> &Stored {
        &self.logs[conv][usize::try_from(seq - 1).expect("a short log")]
    }

    pub(super) fn conversations_of(&self, device: usize) -> Vec<String> {
        self.members.iter().filter(|(_, devices)| devices.contains(&device)).map(|(conv, _)| conv.clone()).collect()
    }

    pub(super) fn disconnect(&mut self, device: usize) {
        let device = &mut self.devices[device];
        device.is_active = false;
        device.holds.clear();
        device.out.clear();
    }

    /// One WebSocket message of a device.
    pub(super) fn serve(&mut self, device: usize, bytes: &[u8]) {
        let mut frames = Frames::new(self.devices[device].encoding, bytes);
        while let Some(frame) = frames.next_frame().expect("the client writes what the codec reads") {
            self.frame(device, frame);
        }
    }

    fn frame(&mut self, device: usize, frame: ClientFrame<'_>) {
        match frame {
            ClientFrame::Hello(hello) => self.hello(device, hello.session, hello.last_pos),
            _ if !self.devices[device].is_active => panic!("a frame before HELLO: {frame:?}"),
            ClientFrame::Send(send) => self.send(device, &send),
            ClientFrame::Ack { pos, cursors } => {
                for cursor in &cursors {
                    let head = self.logs[&*cursor.conv].len() as u64;
                    assert!(cursor.seq <= head, "a cursor beyond head");
                    let mine = self.devices[device].cursors.entry(cursor.conv.to_string()).or_default();
                    *mine = (*mine).max(cursor.seq);
                    self.reached(device, &cursor.conv, cursor.seq);
                }
                assert!(pos <= self.devices[device].pos, "a position that was never given out");
                let device = &mut self.devices[device];
                device.held.retain(|(at, ..)| *at > pos);
            }
            ClientFrame::Sync { rid, since: _, limit: _, cursor } => {
                let all = self.conversations_of(device);
                let start: usize = cursor.parse().unwrap_or(0);
                let entries: Vec<Entry<'static>> =
                    all.iter().skip(start).take(PAGE_ENTRIES).map(|conv| self.entry(device, conv)).collect();
                let next = start + entries.len();
                let flags = if next < all.len() { page_flags::MORE } else { 0 };
                let cursor = Cow::Owned(next.to_string());
                self.put(device, &ServerFrame::SyncPage { rid, flags, since: 1, cursor, entries });
            }
            ClientFrame::Fetch { rid, conv, from, to, limit, .. } => {
                if self.fetch_failures > 0 {
                    self.fetch_failures -= 1;
                    return self.error(device, rid, 4001, true);
                }
                let log = &self.logs[&*conv];
                let head = log.len() as u64;
                let to = if to == 0 { head } else { to.min(head) };
                let wanted = (from.max(1)..=to).take(PAGE_MESSAGES.min(usize::from(limit)));
                let messages: Vec<Message<'static>> = wanted
                    .map(|seq| {
                        let stored = self.stored(&conv, seq);
                        let own = stored.from == self.users[device];
                        Message {
                            seq,
                            mid: Mid(seq << 20),
                            flags: if own { deliver_flags::OWN } else { 0 },
                            kind: 1,
                            exp_s: 0,
                            cmid: own.then_some(stored.cmid),
                            from: Cow::Owned(stored.from.clone()),
                            payload: Cow::Owned(stored.payload.clone()),
                        }
                    })
                    .collect();
                let last = messages.last().map_or(to, |message| message.seq);
                let flags = if last < to { page_flags::MORE } else { 0 };
                self.reached(device, &conv, last);
                let conv = Cow::Owned(conv.into_owned());
                self.put(device, &ServerFrame::Page { rid, flags, epoch: 1, floor: 1, head, conv, messages });
            }
            ClientFrame::Read { rid, seq, .. } => self.put(device, &ServerFrame::Ok { rid, value: seq }),
            other => panic!("not expected of this client: {other:?}"),
        }
        self.notice_marked(device);
    }

    /// Time passes: who was left out for want of room, and has nothing to say, is told all the same.
    pub(super) fn pass(&mut self) {
        (0..self.devices.len()).for_each(|device| self.notice_marked(device));
    }

    /// Once the window is open, what was marked is told by one NOTICE each.
    fn notice_marked(&mut self, device: usize) {
        if !self.devices[device].is_active || self.devices[device].held.len() >= usize::from(WINDOW) {
            return;
        }
        let marked: Vec<(String, u64)> = self.devices[device]
            .marked
            .iter()
            .filter(|(_, (_, told))| !told)
            .map(|(conv, (head, _))| (conv.clone(), *head))
            .collect();
        for (conv, head) in marked {
            self.devices[device].marked.insert(conv.clone(), (head, true));
            self.put(device, &ServerFrame::Notice { conv: Cow::Owned(conv), head, mid: Mid(head << 20) });
        }
    }

    /// A cursor or a FETCH that reaches a mark clears it.
    fn reached(&mut self, device: usize, conv: &str, seq: u64) {
        self.devices[device].marked.retain(|marked, (head, _)| marked != conv || *head > seq);
    }

    fn hello(&mut self, device: usize, session: [u8; 16], last_pos: u64) {
        self.turns += 1;
        let turn = self.turns;
        let state = &mut self.devices[device];
        let resumed = session == state.session && session != [0; 16] && !std::mem::take(&mut state.forget);
        state.is_active = true;
        state.session = [turn; 16];
        if resumed {
            state.held.retain(|(at, ..)| *at > last_pos);
            state.marked.values_mut().for_each(|mark| mark.1 = false);
        } else {
            state.held.clear();
            state.marked.clear();
            state.pos = 0;
        }
        let pos = state.pos;
        let user = Cow::Owned(self.users[device].clone());
        self.put(
            device,
            &ServerFrame::Welcome(Welcome {
                minor: 0,
                resumed: resumed.into(),
                level: 2,
                window: WINDOW,
                send_window: SEND_WINDOW,
                caps: 0,
                ping_ms: 30_000,
                resume_ms: 120_000,
                dedup_s: 86_400,
                max_frame: 131_072,
                max_payload: 65_536,
                server_ms: 0,
                pos,
                session: [turn; 16],
                user,
                node: "n".into(),
                rate: 20,
                burst: 128,
            }),
        );
        for (pos, conv, seq) in self.devices[device].held.clone() {
            self.put_deliver(device, pos, &conv, seq, deliver_flags::REPLAY);
        }
    }

    fn send(&mut self, device: usize, send: &Send<'_>) {
        let retry = send.flags & send_flags::RETRY != 0;
        assert!(self.seen.insert(send.cmid) || retry, "a repeat without RETRY");
        let conv = send.conv.to_string();
        if send.flags & send_flags::RELEASE != 0 {
            self.devices[device].holds.remove(&conv);
        }
        if self.devices[device].holds.get(&conv).is_some_and(|&failed| failed != send.cmid) {
            return self.error(device, send.rid, 4003, true);
        }
        if self.failures.1 > 0 {
            self.failures.1 -= 1;
            let (code, _) = self.failures;
            let retryable = code != 3003;
            if retryable && code != 5006 {
                self.devices[device].holds.insert(conv, send.cmid);
            } else {
                self.devices[device].holds.remove(&conv);
            }
            return self.error(device, send.rid, code, retryable);
        }
        self.devices[device].holds.remove(&conv);
        let key = (self.users[device].clone(), send.cmid);
        let known = self.dedup.get(&key).cloned();
        let (seq, flags) = match known {
            Some((at, seq)) => {
                assert_eq!(at, conv);
                (seq, SENT_DUPLICATE)
            }
            None => {
                let log = self.logs.get_mut(&conv).expect("a known conversation");
                log.push(Stored { cmid: send.cmid, from: key.0.clone(), payload: send.payload.to_vec() });
                let seq = log.len() as u64;
                self.dedup.insert(key, (conv.clone(), seq));
                for member in self.members[&conv].clone() {
                    if member != device {
                        self.deliver(member, &conv, seq);
                    }
                }
                (seq, 0)
            }
        };
        self.put(device, &ServerFrame::Sent { rid: send.rid, level: 2, flags, seq, mid: Mid(seq << 20) });
    }

    fn deliver(&mut self, device: usize, conv: &str, seq: u64) {
        let state = &mut self.devices[device];
        if state.session == [0; 16] {
            return;
        }
        if state.skip > 0 || state.held.len() >= usize::from(WINDOW) {
            state.skip = state.skip.saturating_sub(1);
            state.marked.insert(conv.to_owned(), (seq, false));
            return;
        }
        state.pos += 1;
        let pos = state.pos;
        state.held.push_back((pos, conv.to_owned(), seq));
        if state.is_active {
            self.put_deliver(device, pos, conv, seq, 0);
        }
    }

    fn put_deliver(&mut self, device: usize, pos: u64, conv: &str, seq: u64, flags: u8) {
        let stored = self.stored(conv, seq).clone();
        let own = stored.from == self.users[device];
        self.put(
            device,
            &ServerFrame::Deliver(Deliver {
                pos,
                seq,
                mid: Mid(seq << 20),
                flags: flags | if own { deliver_flags::OWN } else { 0 },
                kind: 1,
                exp_s: 0,
                cmid: own.then_some(stored.cmid),
                trace: None,
                conv: Cow::Borrowed(conv),
                from: Cow::Owned(stored.from),
                payload: Cow::Owned(stored.payload),
            }),
        );
    }

    fn entry(&self, device: usize, conv: &str) -> Entry<'static> {
        let head = self.logs[conv].len() as u64;
        Entry {
            conv: Cow::Owned(conv.to_owned()),
            epoch: 1,
            flags: 0,
            head,
            head_mid: Mid(head << 20),
            floor: 1,
            mine: self.devices[device].cursors.get(conv).copied().unwrap_or(0),
            read: 0,
            unread: 0,
        }
    }

    fn error(&mut self, device: usize, rid: u32, code: u16, retryable: bool) {
        let flags = if retryable { page_flags::ERROR_RETRYABLE } else { 0 };
        self.put(device, &ServerFrame::Error { rid, code, flags, retry_ms: 50, detail: "".into() });
    }

    fn put(&mut self, device: usize, frame: &ServerFrame<'_>) {
        let mut bytes = Vec::new();
        encode_server(self.devices[device].encoding, frame, &mut bytes);
        self.devices[device].out.push_back(bytes);
    }
}

impl Device {
    fn new(encoding: Encoding) -> Self {
        Self {
            encoding,
            is_active: false,
            holds: HashMap::new(),
            session: [0; 16],
            pos: 0,
            held: VecDeque::new(),
            marked: BTreeMap::new(),
            cursors: HashMap::new(),
            out: VecDeque::new(),
            skip: 0,
            forget: false,
        }
    }
}
