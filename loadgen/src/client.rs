//! One simulated device: a [`Machine`] and its WebSocket, as bytes in and bytes out. Pure: no sockets, no clock.
//!
//! ```text
//!  worker ──opened, received, ended──► Client ──► frames ──► Machine ──► outcomes, messages ──► Ledger
//!     ▲                                  │
//!     └────────── Want, out ─────────────┘
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tidegate::verify::What;
use tidegate::wire::envelope::{Encoding, SENT_DUPLICATE, ServerFrame, ServerFrames, deliver_flags};
use tidegate::wire::frame::{self, Opcode};
use tidegate_client::{Action, Closed, Cmid, Event, Machine, Outgoing, SendError, Settings, Ticket};

use crate::framing;
use crate::pace::nanos;
use crate::scenario::Tempo;
use crate::stats::Stats;
use crate::verify::{Kind, Ledger, Origin, SeatReport};

/// What the worker is to do for a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// Nothing beyond writing `out`.
    Nothing,
    /// Open a connection.
    Connect,
    /// Write `out`, then close the connection, and say [`Client::ended`].
    Close,
}

/// What all clients of a worker share, lent for the length of a call.
#[derive(Debug)]
pub struct Hub<'a> {
    /// Nanoseconds since the run began.
    pub now_ns: u64,
    /// Of the whole run.
    pub ledger: &'a Ledger,
    /// Of this worker.
    pub stats: &'a mut Stats,
    /// The upgrade request.
    pub request: &'a [u8],
    /// Room for one frame.
    pub scratch: &'a mut Vec<u8>,
    /// Names this run in every payload.
    pub run: u64,
}

impl Hub<'_> {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.now_ns)
    }
}

/// See the head of this file.
#[derive(Debug)]
pub struct Client {
    index: u32,
    tempo: Tempo,
    machine: Machine,
    link: Link,
    token: Box<str>,
    seats: Vec<Seat>,
    pending: VecDeque<Pending>,
    /// Most of these.
    outbox: usize,
    /// When its connection was begun.
    begun_ns: u64,
    /// `pos` of the last DELIVER of this session.
    pos: u64,
    /// An unfinished answer or frame.
    carry: Vec<u8>,
    /// To be written; the worker takes from its front.
    pub out: Vec<u8>,
    /// The next time at which the worker looks after it, if one is set.
    pub wake_ns: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    Down,
    Opening,
    Upgrading,
    Open,
}

/// A conversation this device takes part in.
#[derive(Debug)]
struct Seat {
    conv: u32,
    name: Arc<str>,
    have: u64,
    /// Highest seq that came as DELIVER or SENT on this connection.
    wire_seq: u64,
    submitted: u32,
}

/// A message on its way.
#[derive(Clone, Copy, Debug)]
struct Pending {
    ticket: Ticket,
    seat: u32,
    number: u32,
    intended_ns: u64,
}

impl Client {
    /// A device that wants to connect as soon as it is turned.
    #[must_use]
    pub fn new(index: u32, tempo: Tempo, settings: Settings, seed: u64, token: String, seats: Vec<(u32, Arc<str>)>) -> Self {
        let seats = seats.into_iter().map(|(conv, name)| Seat { conv, name, have: 0, wire_seq: 0, submitted: 0 });
        Self {
            index,
            tempo,
            machine: Machine::new(settings, seed),
            link: Link::Down,
            token: token.into(),
            seats: seats.collect(),
            pending: VecDeque::new(),
            outbox: usize::MAX,
            begun_ns: 0,
            pos: 0,
            carry: Vec::new(),
            out: Vec::new(),
            wake_ns: None,
        }
    }

    /// At most so many messages may wait to be acknowledged; more are given up.
    #[must_use]
    pub fn with_outbox(self, outbox: usize) -> Self {
        Self { outbox, ..self }
    }

    /// Which connection of the run it is.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// How it reads.
    #[must_use]
    pub fn tempo(&self) -> Tempo {
        self.tempo
    }

    /// Whether it hears nothing any more: neither what comes nor the end of its connection.
    #[must_use]
    pub fn is_deaf(&self) -> bool {
        self.tempo == Tempo::Deaf && self.machine.is_active()
    }

    /// Whether it is connected and welcomed.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.machine.is_active()
    }

    /// Whether a connection is being opened.
    #[must_use]
    pub fn is_opening(&self) -> bool {
        self.link == Link::Opening
    }

    /// Messages asked to be sent and not acknowledged.
    #[must_use]
    pub fn unsent_count(&self) -> usize {
        self.pending.len()
    }

    /// Whether it holds all that anybody told of, or is not expected to.
    #[must_use]
    pub fn is_complete(&self, ledger: &Ledger) -> bool {
        self.tempo != Tempo::Brisk || self.seats.iter().all(|seat| seat.have >= ledger.head(seat.conv))
    }

    /// What it sent and holds, after the time it takes to receive everything.
    pub fn reports(&self) -> impl Iterator<Item = SeatReport> {
        self.seats.iter().map(move |seat| SeatReport {
            device: self.index,
            conv: seat.conv,
            submitted: seat.submitted,
            have: seat.have,
            must_have_all: self.tempo == Tempo::Brisk,
        })
    }

    /// Asks to send a message to a conversation, one of its own.
    pub fn submit(&mut self, hub: &mut Hub<'_>, conv: u32, intended_ns: u64, payload_bytes: usize) {
        let Some(at) = self.seats.iter().position(|seat| seat.conv == conv) else { return };
        if self.pending.len() >= self.outbox {
            return hub.stats.given_up(&SendError::OutboxFull);
        }
        let seat = &mut self.seats[at];
        seat.submitted += 1;
        let origin = Origin { sender: self.index, number: seat.submitted, intended_ns };
        let payload = origin.payload(hub.run, payload_bytes);
        let message = Outgoing { conv: Arc::clone(&seat.name), ..Outgoing::new("", &payload) };
        let mut cmid = [0; 16];
        cmid[..4].copy_from_slice(&self.index.to_le_bytes());
        cmid[4..8].copy_from_slice(&conv.to_le_bytes());
        cmid[8..12].copy_from_slice(&origin.number.to_le_bytes());
        cmid[12..].copy_from_slice(&hub.run.to_le_bytes()[..4]);
        hub.stats.submitted(intended_ns, hub.now_ns);
        match self.machine.send(Cmid(cmid), message) {
            Ok(ticket) => {
                hub.ledger.note(self.index, &seat.name, || What::Send {
                    number: u64::from(origin.number),
                    cmid: cmid.iter().map(|byte| format!("{byte:02x}")).collect(),
                    sum: tidegate::verify::sum(&payload),
                });
                let seat = u32::try_from(at).expect("few seats");
                self.pending.push_back(Pending { ticket, seat, number: origin.number, intended_ns });
            }
            Err(error) => {
                // It never was on its way, so no number is missing.
                seat.submitted -= 1;
                hub.stats.given_up(&error);
            }
        }
    }

    /// The TCP connection stands.
    pub fn opened(&mut self, hub: &mut Hub<'_>) {
        self.link = Link::Upgrading;
        self.out.extend_from_slice(hub.request);
    }

    /// Bytes of the connection.
    ///
    /// # Errors
    /// The gateway broke a rule; the connection is of no use any more.
    pub fn received(&mut self, hub: &mut Hub<'_>, bytes: &[u8]) -> Result<(), Closed> {
        if self.carry.is_empty() {
            let used = self.take(hub, bytes)?;
            self.carry.extend_from_slice(&bytes[used..]);
            return Ok(());
        }
        let mut all = std::mem::take(&mut self.carry);
        all.extend_from_slice(bytes);
        let used = self.take(hub, &all)?;
        if used < all.len() {
            all.drain(..used);
            self.carry = all;
        }
        Ok(())
    }

    /// The connection is gone, or could not be opened.
    pub fn ended(&mut self, hub: &mut Hub<'_>, closed: Closed) {
        self.link = Link::Down;
        self.carry = Vec::new();
        self.out = Vec::new();
        self.seats.iter_mut().for_each(|seat| seat.wire_seq = 0);
        self.machine.handle_closed(hub.now(), closed);
    }

    /// Says goodbye as a page does that is closed; the connection is to be ended behind it. What it has to send, it sends when it is back.
    pub fn leave(&mut self, hub: &mut Hub<'_>) {
        self.close_frame(hub, GOING_AWAY);
    }

    /// Does what is due. To be called after every other call, and at `wake_ns`.
    pub fn turn(&mut self, hub: &mut Hub<'_>) -> Want {
        let now = hub.now();
        let mut want = Want::Nothing;
        self.machine.handle_timeout(now);
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Connect { .. } => {
                    self.link = Link::Opening;
                    self.begun_ns = hub.now_ns;
                    want = Want::Connect;
                }
                Action::Token => self.machine.handle_token(&self.token),
                Action::Close(code) => {
                    self.transmit(hub);
                    self.close_frame(hub, code);
                    want = Want::Close;
                }
            }
        }
        if self.link == Link::Open && want == Want::Nothing {
            self.transmit(hub);
        }
        self.outcomes(hub);
        self.events(hub);
        if self.link == Link::Open && want == Want::Nothing {
            // Taking events moves cursors.
            self.transmit(hub);
        }
        want
    }

    /// When to turn it again at the latest.
    #[must_use]
    pub fn next_wake(&self) -> Option<u64> {
        self.machine.poll_timeout().map(nanos)
    }

    fn take(&mut self, hub: &mut Hub<'_>, bytes: &[u8]) -> Result<usize, Closed> {
        let mut used = 0;
        if self.link == Link::Upgrading {
            let Some((head, end)) = framing::answer(bytes) else { return Ok(0) };
            if let Err(status) = framing::upgraded(head) {
                hub.stats.refused(&status);
                let text = String::from_utf8_lossy(head);
                let after = text.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("retry-after: ")?.parse().ok());
                return Err(Closed { code: None, retry_after: after.map(Duration::from_secs) });
            }
            used = end;
            self.link = Link::Open;
            self.machine.handle_connected(hub.now(), &self.token);
        }
        while self.link == Link::Open {
            let whole = framing::first(&bytes[used..]).map_err(|violation| self.broken(hub, &format!("{violation:?}")))?;
            let Some((header, payload, length)) = whole else { return Ok(used) };
            used += length;
            match header.opcode {
                Opcode::Binary if header.fin => self.message(hub, payload)?,
                Opcode::Ping => self.frame(hub, Opcode::Pong, payload),
                Opcode::Pong => {}
                Opcode::Close => {
                    let code = frame::decode_close(payload).ok().and_then(|(code, _)| code);
                    hub.stats.closed(code);
                    return Err(Closed { code, retry_after: None });
                }
                other => return Err(self.broken(hub, &format!("unexpected {other:?}"))),
            }
        }
        Ok(used)
    }

    fn message(&mut self, hub: &mut Hub<'_>, payload: &[u8]) -> Result<(), Closed> {
        let mut frames = ServerFrames::new(Encoding::Binary, payload);
        loop {
            match frames.next_frame() {
                Ok(Some(frame)) => {
                    self.judge(hub, &frame);
                    self.machine.handle_frame(hub.now(), &frame);
                    self.outcomes(hub);
                }
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.broken(hub, &format!("{error:?}"))),
            }
        }
    }

    /// Holds a frame against what one connection promises.
    fn judge(&mut self, hub: &mut Hub<'_>, frame: &ServerFrame<'_>) {
        match frame {
            ServerFrame::Welcome(welcome) => {
                hub.stats.welcomed(self.begun_ns, hub.now_ns);
                if welcome.resumed == 0 {
                    self.pos = 0;
                } else {
                    hub.stats.counts.resumed += 1;
                }
            }
            ServerFrame::Deliver(deliver) if deliver.seq > 0 => {
                let (index, pos, conv, seq) = (self.index, deliver.pos, &*deliver.conv, deliver.seq);
                let expected = self.pos + 1;
                if pos != expected {
                    let kind = if pos == self.pos {
                        Kind::Duplicate
                    } else if pos < self.pos {
                        Kind::Disorder
                    } else {
                        Kind::Lost
                    };
                    let text = format!("device {index}: pos {pos} instead of {expected}, with {conv}/{seq}");
                    hub.ledger.find(kind, text);
                }
                self.pos = self.pos.max(pos);
                if deliver.flags & deliver_flags::REPLAY == 0
                    && let Some(seat) = self.seats.iter_mut().find(|seat| &*seat.name == conv)
                {
                    seat.follow(hub.ledger, index, seq);
                }
                if self.tempo == Tempo::Brisk
                    && let Some(origin) = Origin::read(hub.run, &deliver.payload)
                {
                    hub.stats.delivered(origin.intended_ns, hub.now_ns);
                }
            }
            ServerFrame::Error { code, .. } => *hub.stats.errors.entry(*code).or_default() += 1,
            ServerFrame::Goaway { .. } => hub.stats.counts.goaways += 1,
            ServerFrame::Notice { .. } => hub.stats.counts.notices += 1,
            ServerFrame::Resync { .. } => hub.stats.counts.resyncs += 1,
            ServerFrame::Sent { flags, .. } if flags & SENT_DUPLICATE != 0 => hub.stats.counts.repeats_recognised += 1,
            _ => {}
        }
    }

    fn outcomes(&mut self, hub: &mut Hub<'_>) {
        while let Some(outcome) = self.machine.poll_outcome() {
            let Some(at) = self.pending.iter().position(|pending| pending.ticket == outcome.ticket) else { continue };
            let Some(pending) = self.pending.remove(at) else { continue };
            let seat = &mut self.seats[pending.seat as usize];
            match outcome.result {
                Ok(sent) => {
                    let origin = Origin { sender: self.index, number: pending.number, intended_ns: pending.intended_ns };
                    hub.ledger.acknowledged(seat.conv, sent.seq, origin);
                    let (number, seq) = (u64::from(pending.number), sent.seq);
                    hub.ledger.note(self.index, &seat.name, || What::Sent { number, seq });
                    hub.stats.acknowledged(pending.intended_ns, hub.now_ns);
                    if !sent.duplicate {
                        seat.follow(hub.ledger, self.index, sent.seq);
                    }
                }
                Err(error) => {
                    hub.ledger.find(Kind::Lost, format!("device {}: message {}: {error}", self.index, pending.number));
                    hub.stats.given_up(&error);
                }
            }
        }
        if self.pending.is_empty() && self.pending.capacity() > IDLE_CAPACITY {
            self.pending = VecDeque::new();
        }
    }

    fn events(&mut self, hub: &mut Hub<'_>) {
        while let Some(event) = self.machine.poll_event(hub.now()) {
            match event {
                Event::Message(message) => {
                    let Some(seat) = self.seats.iter_mut().find(|seat| seat.name == message.conv) else { continue };
                    let Some(origin) = Origin::read(hub.run, &message.payload) else {
                        hub.ledger.find(Kind::Corrupt, format!("device {}: {}/{}", self.index, message.conv, message.seq));
                        continue;
                    };
                    let expected = seat.have + 1;
                    if message.seq != expected {
                        let kind = if message.seq < expected { Kind::Duplicate } else { Kind::Lost };
                        let text = format!("device {}: {}/{} instead of {expected}", self.index, message.conv, message.seq);
                        hub.ledger.find(kind, text);
                    }
                    seat.have = seat.have.max(message.seq);
                    hub.ledger.received(seat.conv, message.seq, origin);
                    let (seq, payload) = (message.seq, &message.payload);
                    hub.ledger.note(self.index, &seat.name, || What::Got { seq, sum: tidegate::verify::sum(payload) });
                    hub.stats.counts.received += 1;
                }
                Event::Break { conv, from, to } => {
                    hub.ledger.find(Kind::Lost, format!("device {}: {conv}/{from} to {to} are gone", self.index));
                }
                Event::Reset { conv } => hub.ledger.find(Kind::Lost, format!("device {}: {conv} began anew", self.index)),
                _ => {}
            }
        }
    }

    fn transmit(&mut self, hub: &mut Hub<'_>) {
        let now = hub.now();
        while self.out.len() < OUT_BYTES_MAX {
            hub.scratch.clear();
            if !self.machine.poll_transmit(now, hub.scratch) {
                return;
            }
            framing::write(&mut self.out, Opcode::Binary, hub.scratch);
        }
    }

    fn frame(&mut self, hub: &mut Hub<'_>, opcode: Opcode, payload: &[u8]) {
        hub.scratch.clear();
        hub.scratch.extend_from_slice(payload);
        framing::write(&mut self.out, opcode, hub.scratch);
    }

    fn close_frame(&mut self, hub: &mut Hub<'_>, code: u16) {
        if self.link == Link::Open {
            self.frame(hub, Opcode::Close, &code.to_be_bytes());
        }
    }

    fn broken(&self, hub: &mut Hub<'_>, what: &str) -> Closed {
        hub.ledger.find(Kind::Corrupt, format!("device {}: {what}", self.index));
        Closed::default()
    }
}

impl Seat {
    /// SENT and DELIVER of a conversation come in the order of `seq` on one connection.
    fn follow(&mut self, ledger: &Ledger, device: u32, seq: u64) {
        let before = self.wire_seq;
        if seq <= before {
            let kind = if seq == before { Kind::Duplicate } else { Kind::Disorder };
            ledger.find(kind, format!("device {device}: {}/{seq} came after {before} on one connection", self.name));
        }
        self.wire_seq = before.max(seq);
    }
}

/// Why messages were given up, by name.
#[must_use]
pub fn name_of(error: &SendError) -> String {
    match error {
        SendError::Refused { code, .. } => format!("refused {code}"),
        other => other.to_string(),
    }
}

/// Counted causes.
pub type Causes = BTreeMap<String, u64>;

/// RFC 6455 7.4.1.
const GOING_AWAY: u16 = 1001;
/// Bytes waiting for the socket, beyond which no more frames are made.
const OUT_BYTES_MAX: usize = 256 * 1024;
/// Places an idle client may keep.
const IDLE_CAPACITY: usize = 8;
