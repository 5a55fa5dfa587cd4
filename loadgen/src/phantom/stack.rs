//! Very many TCP clients in one value (RFC 9293): packets in, packets out, no system call, no clock.
//!
//! A client that rests is the [`CLIENT_BYTES`] of its control block. What it sent and nobody acknowledged, and what it received and nobody
//! read, lies in tables that hold only those who have some. Not built, because the peer is this machine's kernel over a device that
//! seldom loses: congestion control, selective acknowledgements, window scaling, timestamps, a queue for segments out of order (they are
//! dropped and the gap is acknowledged again), TIME-WAIT (numbers of the next connection of a port begin above those of the last).
//!
//! ```text
//!           connect            SYN ACK                close                 FIN acknowledged, and theirs came
//!  Closed ─────────► Opening ─────────► Open ───────────────────► Closing ────────────────────────────────► Closed
//!                       └── RST, or no answer: Refused, TimedOut    └── RST: Reset
//! ```
//!
//! To be called: [`Stack::input`] for each packet that came, [`Stack::expire`] when time passed, then the reader and writer of whoever is
//! [`Stack::next_ready`], then [`Stack::acknowledge`] for those who had nothing to say, then [`Stack::packets`] to be sent.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::network::{Ending, Ready};
use crate::phantom::packet::{ACK, FIN, MSS, PSH, RST, SYN, Segment};
use crate::phantom::wheel::{Entry, Wheel};

/// Which addresses and ports the clients have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    /// The first address; the others follow it.
    pub first: Ipv4Addr,
    /// Where all of them connect.
    pub peer: SocketAddrV4,
}

impl Addresses {
    /// Where a client connects from.
    #[must_use]
    pub fn of(&self, index: u32) -> SocketAddrV4 {
        let port = u16::try_from(index % PORTS).expect("fewer ports than 2^16") + PORT_FIRST;
        SocketAddrV4::new(Ipv4Addr::from_bits(self.first.to_bits() + index / PORTS), port)
    }

    /// The client that has an address.
    fn index(&self, address: SocketAddrV4) -> Option<u32> {
        let number = address.ip().to_bits().checked_sub(self.first.to_bits())?;
        let port = u32::from(address.port().checked_sub(PORT_FIRST)?);
        let index = number.checked_mul(PORTS)?.checked_add(port)?;
        (port < PORTS).then_some(index)
    }
}

/// What happened, counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Packets in.
    pub received: u64,
    /// Packets out.
    pub sent: u64,
    /// Segments that were sent again.
    pub resent: u64,
    /// Packets that were damaged, or for nobody here.
    pub strays: u64,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Stack {
    addresses: Addresses,
    clients: Vec<Control>,
    /// What is not acknowledged, of those who have some.
    sending: HashMap<u32, Sending>,
    /// What is not read, of those who have some.
    inbox: HashMap<u32, Vec<u8>>,
    /// Who may have to acknowledge.
    owing: Vec<u32>,
    wheel: Wheel,
    stamp: u32,
    now_ms: u64,
    ready: VecDeque<Ready>,
    out: Packets,
    counts: Counts,
}

/// The control block of one connection.
#[derive(Clone, Copy, Debug)]
struct Control {
    /// The first number that is not acknowledged.
    una: u32,
    /// The next number that is expected.
    rcv: u32,
    /// Bytes the peer has room for.
    window: u16,
    phase: Phase,
    flags: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Closed,
    Opening,
    Open,
    Closing,
    Refused,
    Reset,
    TimedOut,
}

/// Numbers that are on their way.
#[derive(Debug)]
struct Sending {
    /// From `una` on, without SYN and FIN.
    bytes: Vec<u8>,
    /// How many of them were sent.
    sent: usize,
    due_ms: u64,
    /// How often, without an answer.
    tries: u32,
    /// Names its entry in the wheel.
    stamp: u32,
}

/// Packets, one behind the other.
#[derive(Default, Debug)]
struct Packets {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// User memory of a client that rests, in bytes.
pub const CLIENT_BYTES: usize = size_of::<Control>();

impl Stack {
    /// Closed clients; `seed` decides their first numbers.
    ///
    /// # Panics
    /// More clients than [`CLIENTS_MAX`].
    #[must_use]
    pub fn new(addresses: Addresses, clients: usize, seed: u32) -> Self {
        assert!(clients <= CLIENTS_MAX);
        let begin = |index: u32| index.wrapping_mul(0x9e37_79b1) ^ seed;
        let count = u32::try_from(clients).expect("few enough");
        let control = |index| Control { una: begin(index), rcv: 0, window: 0, phase: Phase::Closed, flags: 0 };
        Self {
            addresses,
            clients: (0..count).map(control).collect(),
            sending: HashMap::new(),
            inbox: HashMap::new(),
            owing: Vec::new(),
            wheel: Wheel::new(),
            stamp: 0,
            now_ms: 0,
            ready: VecDeque::new(),
            out: Packets::default(),
            counts: Counts::default(),
        }
    }

    /// Clients, connected or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether it has none at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Begins a connection. One that exists is reset.
    pub fn connect(&mut self, index: u32) {
        self.close(index, Ending::Reset);
        let client = self.client(index);
        *client = Control { una: client.una.wrapping_add(NUMBERS_APART), rcv: 0, window: 0, phase: Phase::Opening, flags: 0 };
        self.arm(index);
        self.emit(index, SYN, 0, 0..0);
    }

    /// Whether a connection stands.
    ///
    /// # Errors
    /// Why it does not.
    pub fn stands(&mut self, index: u32) -> io::Result<()> {
        match self.client(index).phase {
            Phase::Open => Ok(()),
            phase => Err(phase.error()),
        }
    }

    /// Reads what came, in order; 0 is the end.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`], or why the connection ended.
    pub fn read(&mut self, index: u32, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(inbox) = self.inbox.get_mut(&index) else {
            let client = self.client(index);
            return match client.phase {
                Phase::Open if client.has(PEER_ENDED) => Ok(0),
                phase => Err(phase.error()),
            };
        };
        let count = inbox.len().min(buffer.len());
        buffer[..count].copy_from_slice(&inbox[..count]);
        let was_narrow = WINDOW - inbox.len() < MSS;
        if count == inbox.len() {
            self.inbox.remove(&index);
        } else {
            inbox.drain(..count);
        }
        if was_narrow {
            // Else the peer would not learn that there is room again.
            self.owe(index);
        }
        Ok(count)
    }

    /// Takes bytes to be sent, as many as there is room for; before the connection stands too.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`], or why the connection ended.
    pub fn write(&mut self, index: u32, bytes: &[u8]) -> io::Result<usize> {
        let phase = self.client(index).phase;
        if !matches!(phase, Phase::Open | Phase::Opening) {
            return Err(phase.error());
        }
        let room = SEND_BYTES_MAX - self.sending.get(&index).map_or(0, |sending| sending.bytes.len());
        if room == 0 {
            self.client(index).flags |= BLOCKED;
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = bytes.len().min(room);
        self.arm(index).bytes.extend_from_slice(&bytes[..count]);
        self.transmit(index);
        Ok(count)
    }

    /// Ends a connection: what was written still arrives, or nothing does any more.
    pub fn close(&mut self, index: u32, ending: Ending) {
        let client = *self.client(index);
        self.inbox.remove(&index);
        match (client.phase, ending) {
            (Phase::Open, Ending::Orderly) => {
                self.client(index).phase = Phase::Closing;
                self.arm(index);
                self.transmit(index);
            }
            (Phase::Closing, Ending::Orderly) => {}
            (Phase::Open | Phase::Closing, Ending::Reset) => {
                let sent = self.sending.get(&index).map_or(0, |sending| sending.sent);
                self.emit(index, RST | ACK, sent, 0..0);
                self.forget(index, Phase::Closed);
            }
            // A SYN ACK that is still to come is answered by RST.
            _ => self.forget(index, Phase::Closed),
        }
    }

    /// The next connection with something to read or room to write.
    pub fn next_ready(&mut self) -> Option<Ready> {
        self.ready.pop_front()
    }

    /// Whether somebody is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Acknowledges for all who have not sent anything since they received.
    pub fn acknowledge(&mut self) {
        for index in std::mem::take(&mut self.owing) {
            if self.client(index).has(OWES) {
                let sent = self.sending.get(&index).map_or(0, |sending| sending.sent);
                self.emit(index, ACK, sent, 0..0);
            }
        }
    }

    /// Bytes of all packets that wait to be sent.
    #[must_use]
    pub fn packets_bytes(&self) -> usize {
        self.out.bytes.len()
    }

    /// The packets to be sent, in order.
    pub fn packets(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.out.ends.iter().copied());
        starts.zip(&self.out.ends).map(|(start, &end)| &self.out.bytes[start..end])
    }

    /// They were sent.
    pub fn clear_packets(&mut self) {
        self.counts.sent += self.out.ends.len() as u64;
        self.out.bytes.clear();
        self.out.ends.clear();
    }

    /// Takes a packet that came.
    pub fn input(&mut self, packet: &[u8]) {
        self.counts.received += 1;
        let segment = Segment::decode(packet).ok().filter(|segment| segment.source == self.addresses.peer);
        let index = segment.and_then(|segment| self.addresses.index(segment.target));
        match segment.zip(index.filter(|&index| (index as usize) < self.clients.len())) {
            Some((segment, index)) => self.segment(index, &segment),
            None => self.counts.strays += 1,
        }
    }

    /// The time now; whoever waited too long for an acknowledgement sends again, or gives up.
    pub fn expire(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        while let Some(due) = self.wheel.turn(now_ms) {
            due.into_iter().for_each(|entry| self.due(entry));
        }
    }

    fn due(&mut self, entry: Entry) {
        let Entry { index, stamp } = entry;
        let Some(sending) = self.sending.get_mut(&index).filter(|sending| sending.stamp == stamp) else { return };
        if sending.due_ms > self.now_ms {
            return self.wheel.add(sending.due_ms, entry);
        }
        sending.tries += 1;
        if sending.tries > TRIES_MAX {
            self.forget(index, Phase::TimedOut);
            return self.ready.push_back(Ready { index, readable: true, writable: true, ended: true });
        }
        sending.due_ms = self.now_ms + (RESEND_MS << sending.tries);
        self.wheel.add(sending.due_ms, entry);
        self.resend(index);
    }

    /// Everything that is on its way once more; a byte of it at least where the window is closed, which asks for its size (RFC 9293
    /// 3.8.6.1).
    fn resend(&mut self, index: u32) {
        let client = *self.client(index);
        if client.phase == Phase::Opening {
            self.counts.resent += 1;
            return self.emit(index, SYN, 0, 0..0);
        }
        let Some(sending) = self.sending.get_mut(&index) else { return };
        sending.sent = sending.sent.max(1).min(sending.bytes.len());
        let sent = sending.sent;
        for start in (0..sent).step_by(MSS) {
            self.counts.resent += 1;
            self.emit(index, ACK | PSH, start, start..(start + MSS).min(sent));
        }
        if client.has(FIN_SENT) {
            self.counts.resent += 1;
            self.emit(index, FIN | ACK, sent, 0..0);
        }
    }

    fn segment(&mut self, index: u32, segment: &Segment<'_>) {
        match self.client(index).phase {
            Phase::Opening => self.answer(index, segment),
            Phase::Open | Phase::Closing => self.established(index, segment),
            Phase::Closed | Phase::Refused | Phase::Reset | Phase::TimedOut => self.reject(index, segment),
        }
    }

    /// There is no such connection (RFC 9293 3.10.7.1).
    fn reject(&mut self, index: u32, segment: &Segment<'_>) {
        if segment.flags & RST == 0 && segment.flags & ACK != 0 {
            let source = self.addresses.of(index);
            let target = self.addresses.peer;
            let reset = Segment { source, target, seq: segment.ack, ack: 0, flags: RST, window: 0, payload: &[] };
            self.out.push(&reset);
        }
    }

    /// What comes while the connection opens (RFC 9293 3.10.7.3).
    fn answer(&mut self, index: u32, segment: &Segment<'_>) {
        let client = self.client(index);
        let begun = client.una.wrapping_add(1);
        if segment.flags & ACK == 0 || segment.ack != begun {
            return self.reject(index, segment);
        }
        if segment.flags & RST != 0 {
            return self.fail(index, Phase::Refused);
        }
        if segment.flags & SYN == 0 {
            return;
        }
        *client = Control { una: begun, rcv: segment.seq.wrapping_add(1), window: segment.window, phase: Phase::Open, flags: 0 };
        self.owe(index);
        self.ready.push_back(Ready { index, readable: false, writable: true, ended: false });
        if self.sending.get(&index).is_some_and(|sending| sending.bytes.is_empty()) {
            self.sending.remove(&index);
        } else {
            // A new timer: the old one counted for the SYN.
            let bytes = self.sending.remove(&index).map_or(Vec::new(), |sending| sending.bytes);
            self.arm(index).bytes = bytes;
            self.transmit(index);
        }
    }

    /// What comes on a connection that stands (RFC 9293 3.10.7.4, RFC 5961 3 and 4).
    fn established(&mut self, index: u32, segment: &Segment<'_>) {
        let client = *self.client(index);
        let ahead = segment.seq.wrapping_sub(client.rcv);
        if segment.flags & RST != 0 {
            match ahead {
                0 => self.fail(index, Phase::Reset),
                1..HALF => self.owe(index),
                _ => {}
            }
            return;
        }
        // A SYN ACK comes again if its answer was lost.
        if segment.flags & SYN != 0 {
            return self.owe(index);
        }
        if segment.flags & ACK == 0 || !self.acknowledged(index, segment) {
            return;
        }
        if ahead != 0 {
            // Behind a gap, or known in part or in whole: say what is expected.
            self.owe(index);
        }
        let known = client.rcv.wrapping_sub(segment.seq) as usize;
        if let Some(fresh) = segment.payload.get(known..) {
            let is_whole = self.received(index, fresh);
            if is_whole && segment.flags & FIN != 0 {
                self.peer_ended(index);
            }
        }
        let client = self.client(index);
        if client.phase == Phase::Closing && client.has(FIN_KNOWN) && client.has(PEER_ENDED) {
            if client.has(OWES) {
                self.emit(index, ACK, 0, 0..0);
            }
            self.forget(index, Phase::Closed);
        }
    }

    /// Counts what the peer has; `false`: the segment is of no use.
    fn acknowledged(&mut self, index: u32, segment: &Segment<'_>) -> bool {
        let mut client = *self.client(index);
        let count = segment.ack.wrapping_sub(client.una);
        let sent = self.sending.get(&index).map_or(0, |sending| sending.sent);
        let fin = u32::from(client.has(FIN_SENT) && !client.has(FIN_KNOWN));
        let most = u32::try_from(sent).expect("at most a window") + fin;
        if (most + 1..HALF).contains(&count) {
            // Never sent.
            self.owe(index);
            return false;
        }
        if count > most {
            // An old one, whose payload may be news nevertheless.
            return true;
        }
        client.una = segment.ack;
        client.window = segment.window;
        if fin == 1 && count == most {
            client.flags |= FIN_KNOWN;
        }
        let has_room = client.has(BLOCKED) && count > 0;
        if has_room {
            client.flags &= !BLOCKED;
            self.ready.push_back(Ready { index, readable: false, writable: true, ended: false });
        }
        *self.client(index) = client;
        if let Some(sending) = self.sending.get_mut(&index) {
            let taken = sent.min(count as usize);
            sending.bytes.drain(..taken);
            sending.sent -= taken;
            // Whoever answers is alive, even with its window closed.
            sending.tries = 0;
            sending.due_ms = self.now_ms + RESEND_MS;
            let is_done = sending.bytes.is_empty() && (client.phase == Phase::Open || client.has(FIN_KNOWN));
            if is_done {
                self.sending.remove(&index);
            } else {
                self.transmit(index);
            }
        }
        true
    }

    /// Takes payload that comes next; whether all of it.
    fn received(&mut self, index: u32, fresh: &[u8]) -> bool {
        let client = *self.client(index);
        if fresh.is_empty() || client.has(PEER_ENDED) {
            return true;
        }
        let mut count = fresh.len();
        if client.phase == Phase::Open {
            let inbox = self.inbox.entry(index).or_default();
            count = count.min(WINDOW - inbox.len());
            inbox.extend_from_slice(&fresh[..count]);
            self.ready.push_back(Ready { index, readable: true, writable: false, ended: false });
        }
        let client = self.client(index);
        client.rcv = client.rcv.wrapping_add(u32::try_from(count).expect("at most an MSS"));
        self.owe(index);
        count == fresh.len()
    }

    fn peer_ended(&mut self, index: u32) {
        let client = self.client(index);
        if !client.has(PEER_ENDED) {
            client.flags |= PEER_ENDED;
            client.rcv = client.rcv.wrapping_add(1);
            self.ready.push_back(Ready { index, readable: true, writable: false, ended: true });
        }
        self.owe(index);
    }

    /// Sends what the window allows, and FIN behind the last byte of who is closing.
    fn transmit(&mut self, index: u32) {
        let client = *self.client(index);
        let Some(sending) = self.sending.get_mut(&index).filter(|_| client.phase != Phase::Opening) else { return };
        let (from, length) = (sending.sent, sending.bytes.len());
        let until = length.min(usize::from(client.window)).max(from);
        sending.sent = until;
        for start in (from..until).step_by(MSS) {
            self.emit(index, ACK | PSH, start, start..(start + MSS).min(until));
        }
        if client.phase == Phase::Closing && until == length && !client.has(FIN_SENT) {
            self.client(index).flags |= FIN_SENT;
            self.emit(index, FIN | ACK, length, 0..0);
        }
    }

    /// Writes a packet: numbers `offset` after the first that is not acknowledged, with these bytes of what is sent.
    fn emit(&mut self, index: u32, flags: u8, offset: usize, range: std::ops::Range<usize>) {
        let client = &mut self.clients[index as usize];
        client.flags &= if flags & ACK != 0 { !OWES } else { !0 };
        let fin = u32::from(client.has(FIN_SENT) && !client.has(FIN_KNOWN) && flags & (FIN | PSH) == 0);
        let room = WINDOW - self.inbox.get(&index).map_or(0, Vec::len);
        let segment = Segment {
            source: self.addresses.of(index),
            target: self.addresses.peer,
            seq: client.una.wrapping_add(u32::try_from(offset).expect("at most a window")).wrapping_add(fin),
            ack: if flags & ACK != 0 { client.rcv } else { 0 },
            flags,
            window: u16::try_from(room).expect("a window that is not scaled"),
            payload: self.sending.get(&index).map_or(&[], |sending| &sending.bytes[range]),
        };
        self.out.push(&segment);
    }

    fn owe(&mut self, index: u32) {
        let client = self.client(index);
        if !client.has(OWES) {
            client.flags |= OWES;
            self.owing.push(index);
        }
    }

    /// What a client sends, with a timer.
    fn arm(&mut self, index: u32) -> &mut Sending {
        let (due_ms, stamp) = (self.now_ms + RESEND_MS, self.stamp);
        self.sending.entry(index).or_insert_with(|| {
            self.stamp = stamp.wrapping_add(1);
            self.wheel.add(due_ms, Entry { index, stamp });
            Sending { bytes: Vec::new(), sent: 0, due_ms, tries: 0, stamp }
        })
    }

    fn fail(&mut self, index: u32, phase: Phase) {
        self.forget(index, phase);
        self.ready.push_back(Ready { index, readable: true, writable: true, ended: true });
    }

    fn forget(&mut self, index: u32, phase: Phase) {
        let sending = self.sending.remove(&index);
        self.inbox.remove(&index);
        let client = self.client(index);
        // The numbers of the next connection begin above all that were used.
        let used = sending.map_or(0, |sending| u32::try_from(sending.bytes.len()).expect("at most a window"));
        *client = Control { una: client.una.wrapping_add(used), phase, flags: 0, ..*client };
    }

    fn client(&mut self, index: u32) -> &mut Control {
        &mut self.clients[index as usize]
    }
}

impl Control {
    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

impl Phase {
    /// What reading or writing says in it, when there is nothing else to say.
    fn error(self) -> io::Error {
        let kind = match self {
            Self::Open => ErrorKind::WouldBlock,
            Self::Closed | Self::Opening | Self::Closing => ErrorKind::NotConnected,
            Self::Refused => ErrorKind::ConnectionRefused,
            Self::Reset => ErrorKind::ConnectionReset,
            Self::TimedOut => ErrorKind::TimedOut,
        };
        kind.into()
    }
}

impl Packets {
    fn push(&mut self, segment: &Segment<'_>) {
        segment.encode(&mut self.bytes);
        self.ends.push(self.bytes.len());
    }
}

/// Must acknowledge.
const OWES: u8 = 1;
/// The peer sends no more.
const PEER_ENDED: u8 = 2;
/// FIN was sent.
const FIN_SENT: u8 = 4;
/// FIN was acknowledged.
const FIN_KNOWN: u8 = 8;
/// A writer found no room.
const BLOCKED: u8 = 16;
/// Numbers that are less than half the circle ahead are ahead (RFC 9293 3.4).
const HALF: u32 = 1 << 31;
/// Bytes that come unread before the peer must wait.
const WINDOW: usize = u16::MAX as usize;
/// Bytes of a client that wait to be sent or acknowledged. Full: its writer must wait.
const SEND_BYTES_MAX: usize = 64 * 1024;
/// Until something is sent for the second time (RFC 6298 2.1); it doubles with every try.
const RESEND_MS: u64 = 1000;
/// Sent again so often, which takes two minutes, a connection has timed out.
const TRIES_MAX: u32 = 6;
/// Between the numbers of one connection of a port and the next, more than a window.
const NUMBERS_APART: u32 = 1 << 20;
/// Ports of one address.
const PORTS: u32 = 50_000;
const PORT_FIRST: u16 = 10_000;
/// Most clients of one stack.
pub const CLIENTS_MAX: usize = 100_000_000;
