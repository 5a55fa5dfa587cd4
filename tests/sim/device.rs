//! A client: the reference client's machine over simulated links, and the person who uses it.

mod cursors;
mod showing;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tidegate::ids::Cmid;
use tidegate::wire::envelope::{
    ClientFrame, Encoding, Frames, ServerFrame, ServerFrames, deliver_flags, encode_client, page_flags,
};
use tidegate_client::{Closed, Event, Machine, Outgoing, SendError, Settings, State, Ticket};

use crate::ledger::{Conv, Finding, Ledger, Said, payload};
use crate::random::Random;
use crate::renewals::Renewals;
use crate::socket::{self, Arrival, Incoming};
use crate::tokens::Token;

use cursors::Cursors;

pub struct Device {
    pub number: usize,
    pub user: Arc<str>,
    pub name: String,
    pub encoding: Encoding,
    pub machine: Machine,
    pub link: Option<usize>,
    incoming: Incoming,
    is_upgraded: bool,
    close_code: Option<u16>,
    token: Token,
    /// Tokens it had before, which somebody may have taken down.
    former: Vec<Token>,
    /// What it has shown on this connection, and when; and whether WELCOME has come.
    shown: (Token, u64),
    is_welcome: bool,
    /// The end of its token was the end of its session, or it came too late with it.
    is_expired: bool,
    renewals: Renewals,
    pub random: Random,
    /// Where it may write.
    pub convs: Vec<Conv>,
    tickets: BTreeMap<Ticket, Cmid>,
    said_count: u64,
    /// Highest seq taken, by conversation.
    pub have: BTreeMap<Conv, u64>,
    /// Last `pos`, and last seq by conversation, that came as DELIVER on this connection.
    last_pos: u64,
    last_seq: BTreeMap<Conv, u64>,
    /// The window WELCOME granted, and the highest `pos` this device has acknowledged by what it wrote.
    granted: u16,
    acknowledged: u64,
    pub cursors: Cursors,
    /// Whom it watches, and what was said of each since.
    pub watches: Vec<Arc<str>>,
    pub believes: BTreeMap<Arc<str>, u8>,
    /// What SYNC has said last: read and unread, by conversation.
    pub entries: BTreeMap<Conv, (u64, u32)>,
    pub synced_count: u64,
    /// An auditor only reads.
    pub is_auditor: bool,
    pub due: u64,
    pub next_say: u64,
    pub stopped_count: u64,
    /// Groups may change under its feet.
    pub members_change: bool,
    /// Wants receipts and presence.
    is_curious: bool,
}

/// What a device wants of the world.
#[derive(Debug, Default)]
pub struct Wishes {
    pub connect: bool,
    /// Bytes to write on its link, in order.
    pub bytes: Vec<u8>,
    /// To close its link, after the bytes.
    pub close: bool,
}

impl Device {
    #[expect(clippy::too_many_arguments, reason = "a device is what the world says it is")]
    pub fn new(
        number: usize,
        user: Arc<str>,
        name: String,
        token: Token,
        convs: Vec<Conv>,
        window: u16,
        (members_change, is_curious): (bool, bool),
        mut random: Random,
    ) -> Self {
        let encoding = if random.chance(200_000) { Encoding::Json } else { Encoding::Binary };
        let machine = Machine::new(settings(&name, encoding, window, is_curious), random.next());
        let cursors = Cursors::new(random.stream("cursors", 0));
        Self {
            number,
            user,
            name,
            encoding,
            machine,
            link: None,
            incoming: Incoming::default(),
            is_upgraded: false,
            close_code: None,
            shown: (token.clone(), 0),
            token,
            former: Vec::new(),
            is_welcome: false,
            is_expired: false,
            renewals: Renewals::default(),
            random,
            convs,
            tickets: BTreeMap::new(),
            said_count: 0,
            have: BTreeMap::new(),
            last_pos: 0,
            last_seq: BTreeMap::new(),
            granted: 0,
            acknowledged: 0,
            cursors,
            watches: Vec::new(),
            believes: BTreeMap::new(),
            entries: BTreeMap::new(),
            synced_count: 0,
            is_auditor: false,
            due: 0,
            next_say: 0,
            stopped_count: 0,
            members_change,
            is_curious,
        }
    }

    /// The program is started again, with what it keeps on disk: positions, but not what it had not sent.
    pub fn restart(&mut self, window: u16) {
        let mut settings = settings(&self.name, self.encoding, window, self.is_curious);
        settings.positions = self.machine.positions();
        settings.since = self.machine.since();
        self.machine = Machine::new(settings, self.random.next());
        self.watch_again();
        self.tickets.clear();
        self.link = None;
        self.connection_begins();
    }

    /// The person says something, if the group they choose exists.
    pub fn say(&mut self, ledger: &mut Ledger, payload_max: u64, made: &BTreeSet<Conv>) {
        let conv = self.random.pick(&self.convs).clone();
        if conv.starts_with("g:") && !made.contains(&conv) {
            return;
        }
        let mut bytes = [0; 16];
        self.random.fill(&mut bytes);
        bytes[15] |= 1;
        let cmid = Cmid(bytes);
        let length = usize::try_from(self.random.between(16, payload_max.max(16))).expect("small");
        let payload: Arc<[u8]> = payload(cmid, length).into();
        let quiet = self.random.chance(200_000);
        let message = Outgoing { quiet, ..Outgoing::new(&conv, &payload) };
        let Ok(ticket) = self.machine.send(cmid, message) else { return };
        self.tickets.insert(ticket, cmid);
        self.said_count += 1;
        let (device, user, order) = (self.number, self.user.clone(), self.said_count);
        ledger.says(cmid, Said { device, user, conv, order, payload, quiet, acknowledged: None });
    }

    /// Connected, and nothing it asked for is unanswered.
    pub fn is_settled(&self) -> bool {
        self.machine.is_active() && self.machine.unsent_count() == 0 && self.machine.unconfirmed_reads_count() == 0
    }

    /// The person reads one conversation.
    pub fn read(&mut self, ledger: &mut Ledger) {
        if self.have.is_empty() {
            return;
        }
        let place = self.random.index(self.have.len());
        let (conv, &have) = self.have.iter().nth(place).expect("below the length");
        let seq = self.random.between(have / 2, have);
        if seq > 0 {
            ledger.asks_read(&self.user, conv, seq);
            self.machine.read(conv, seq);
        }
    }

    /// A link was opened.
    pub fn connected(&mut self, link: usize) -> Vec<u8> {
        self.link = Some(link);
        self.connection_begins();
        socket::upgrade(self.encoding)
    }

    /// The link ended, or could not be opened.
    pub fn disconnected(&mut self, now: u64) {
        self.link = None;
        let code = self.close_code.take();
        self.connection_begins();
        self.machine.handle_closed(time(now), Closed { code, retry_after: None });
    }

    fn connection_begins(&mut self) {
        self.incoming = Incoming::default();
        self.is_upgraded = false;
        self.is_welcome = false;
        self.is_expired = false;
        self.renewals.connection_begins();
        self.close_code = None;
        self.last_pos = 0;
        self.last_seq.clear();
        self.cursors.connection_begins();
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
                    let former = if self.former.is_empty() || !self.random.chance(300_000) { None } else { self.former.last() };
                    self.shown = (former.unwrap_or(&self.token).clone(), now);
                    self.machine.handle_connected(time(now), &self.shown.0.text);
                }
                // 408: what it asked was on its way for longer than the gateway waits.
                Arrival::Refused(408 | 429 | 503, _) => {
                    wishes.close = true;
                    self.disconnected(now);
                }
                Arrival::Refused(status, _) => return Err(format!("the upgrade of a good client was refused with {status}")),
                Arrival::Message(message) => self.handle_message(now, &message, ledger)?,
                Arrival::Ping(payload) => self.frame(socket::PONG, &payload, wishes),
                Arrival::Close(code) => {
                    self.close_code = code;
                    if code == Some(4401) && !self.is_expired {
                        self.judge_unwelcome(ledger)?;
                    }
                    if matches!(code, Some(1002 | 1003 | 1007 | 1009 | 1011 | 4400 | 4403)) {
                        return Err(format!("device {} kept to the protocol and was closed with {code:?}", self.number));
                    }
                    self.frame(socket::CLOSE, &code.map_or(Vec::new(), |code| code.to_be_bytes().to_vec()), wishes);
                    wishes.close = true;
                    self.disconnected(now);
                }
            }
        }
        Ok(())
    }

    fn handle_message(&mut self, now: u64, message: &[u8], ledger: &mut Ledger) -> Result<(), Finding> {
        let mut frames = ServerFrames::new(self.encoding, message);
        while let Some(frame) = frames.next_frame().map_err(|error| format!("the gateway wrote {error:?}"))? {
            if let ServerFrame::Deliver(deliver) = &frame
                && deliver.flags & deliver_flags::TRANSIENT == 0
            {
                let quiet = deliver.flags & deliver_flags::QUIET != 0;
                ledger.received(&deliver.conv, deliver.seq, &deliver.from, &deliver.payload, quiet)?;
                if deliver.pos <= self.last_pos {
                    return Err(format!("device {}: pos {} after {}", self.number, deliver.pos, self.last_pos));
                }
                self.last_pos = deliver.pos;
                let open = deliver.pos.saturating_sub(self.acknowledged);
                if open > u64::from(self.granted) {
                    return Err(format!(
                        "device {}: {open} deliveries are unacknowledged, of {} granted",
                        self.number, self.granted
                    ));
                }
                if deliver.flags & deliver_flags::REPLAY == 0 {
                    match self.last_seq.get_mut(&*deliver.conv) {
                        Some(last) if deliver.seq <= *last => {
                            let (number, conv, seq) = (self.number, &deliver.conv, deliver.seq);
                            return Err(format!("device {number}: {conv} {seq} was delivered after {last}"));
                        }
                        Some(last) => *last = deliver.seq,
                        None => drop(self.last_seq.insert((*deliver.conv).into(), deliver.seq)),
                    }
                }
            }
            if let ServerFrame::Welcome(welcome) = &frame {
                ledger.tokens.judge_passing(self.shown())?;
                self.renewals.welcome(&self.shown.0);
                self.is_welcome = true;
                self.granted = welcome.window;
                // A new session counts from 1; one that goes on counts from what HELLO said.
                self.acknowledged = if welcome.resumed == 0 { 0 } else { self.acknowledged };
            }
            self.renewals.judge(now, &frame, &self.user, &self.name, &ledger.tokens)?;
            match &frame {
                ServerFrame::Error { code: 2001, rid: 0, .. } => {
                    self.judge_unwelcome(ledger)?;
                    self.machine.handle_frame(time(now), &frame);
                }
                ServerFrame::Error { code: 2002, rid: 0, .. } => {
                    self.judge_expiry(now)?;
                    self.is_expired = true;
                    self.machine.handle_frame(time(now), &frame);
                }
                _ => self.machine.handle_frame(time(now), &frame),
            }
        }
        Ok(())
    }

    /// Lets the machine do what it wants, and takes what it has.
    ///
    /// # Errors
    /// The finding.
    pub fn pump(&mut self, now: u64, ledger: &mut Ledger, wishes: &mut Wishes) -> Result<(), Finding> {
        let moment = time(now);
        self.machine.handle_timeout(moment);
        loop {
            let mut moved = false;
            while let Some(action) = self.machine.poll_action() {
                moved = true;
                match action {
                    tidegate_client::Action::Connect { fresh_token, .. } => {
                        wishes.connect = true;
                        if fresh_token {
                            self.get_fresh(now, ledger);
                        }
                    }
                    // Some let their session end.
                    tidegate_client::Action::Token if self.renewals.is_under_way() || self.random.chance(200_000) => {}
                    tidegate_client::Action::Token => self.show_fresh(now, ledger),
                    tidegate_client::Action::Close(code) => {
                        self.transmit(now, wishes);
                        if self.is_upgraded {
                            self.frame(socket::CLOSE, &code.to_be_bytes(), wishes);
                        }
                        wishes.close = self.link.is_some();
                        self.disconnected(now);
                    }
                }
            }
            moved |= self.transmit(now, wishes);
            moved |= self.take(now, ledger)?;
            if !moved {
                return Ok(());
            }
        }
    }

    fn transmit(&mut self, now: u64, wishes: &mut Wishes) -> bool {
        let mut any = false;
        let mut message = Vec::new();
        if self.machine.is_active()
            && let Some(older) = self.cursors.older(now)
        {
            self.put(&older, wishes);
            any = true;
        }
        while self.is_upgraded && self.machine.poll_transmit(time(now), &mut message) {
            self.note_written(now, &message);
            self.message(&message, wishes);
            message.clear();
            any = true;
        }
        any
    }

    /// Watches these users from now on.
    pub fn watch(&mut self, users: Vec<Arc<str>>) {
        self.watches = users;
        self.watch_again();
    }

    /// Asks for the presence of everybody it watches.
    pub fn watch_again(&mut self) {
        self.believes.clear();
        let users: Vec<&str> = self.watches.iter().map(|user| &**user).collect();
        // For as long as the run: a renewal tells everything again, and would hide what was not told.
        self.machine.watch(&users, Duration::ZERO).expect("a few users");
    }

    fn put(&mut self, frame: &ClientFrame<'_>, wishes: &mut Wishes) {
        let mut message = Vec::new();
        encode_client(self.encoding, frame, &mut message);
        self.message(&message, wishes);
    }

    fn message(&mut self, message: &[u8], wishes: &mut Wishes) {
        let opcode = if self.encoding == Encoding::Json { socket::TEXT } else { socket::BINARY };
        self.frame(opcode, message, wishes);
    }

    fn note_written(&mut self, now: u64, message: &[u8]) {
        let mut frames = Frames::new(self.encoding, message);
        while let Ok(Some(frame)) = frames.next_frame() {
            match frame {
                ClientFrame::Hello(hello) => self.acknowledged = hello.last_pos,
                ClientFrame::Auth { rid, token } => self.renewals.written(rid, &token, now),
                ClientFrame::Ack { pos, cursors } => {
                    self.acknowledged = self.acknowledged.max(pos);
                    self.cursors.written(now, &cursors);
                }
                ClientFrame::Ping { pos } => self.acknowledged = self.acknowledged.max(pos),
                _ => {}
            }
        }
    }

    fn frame(&mut self, opcode: u8, payload: &[u8], wishes: &mut Wishes) {
        let mut key = [0; 4];
        self.random.fill(&mut key);
        socket::frame(opcode, payload, key, &mut wishes.bytes);
    }

    fn take(&mut self, now: u64, ledger: &mut Ledger) -> Result<bool, Finding> {
        let mut any = false;
        while let Some(outcome) = self.machine.poll_outcome() {
            any = true;
            let Some(cmid) = self.tickets.remove(&outcome.ticket) else { continue };
            match outcome.result {
                Ok(sent) => {
                    if sent.level != 2 {
                        return Err(format!("SENT says level {}", sent.level));
                    }
                    ledger.acknowledged(cmid, sent.seq, sent.duplicate)?;
                }
                Err(SendError::Stopped) => {}
                // The group has lost this member.
                Err(SendError::Refused { code: 3001, .. }) if self.members_change => {}
                Err(error) => return Err(format!("device {}: {cmid:?} was given up: {error}", self.number)),
            }
        }
        while let Some(event) = self.machine.poll_event(time(now)) {
            any = true;
            self.event(now, event, ledger)?;
        }
        Ok(any)
    }

    fn event(&mut self, now: u64, event: Event, ledger: &mut Ledger) -> Result<(), Finding> {
        match event {
            Event::Message(message) => {
                let quiet = message.flags & deliver_flags::QUIET != 0;
                ledger.received(&message.conv, message.seq, &message.from, &message.payload, quiet)?;
                let have = self.have.entry(message.conv.clone()).or_default();
                if message.seq != *have + 1 {
                    return Err(format!("device {}: {} {} follows {have}", self.number, message.conv, message.seq));
                }
                *have = message.seq;
            }
            Event::Break { conv, from, to } => {
                if !self.members_change || conv.starts_with("d:") {
                    return Err(format!("device {}: {conv} {from} to {to} could not be had", self.number));
                }
                self.have.insert(conv, to);
            }
            Event::Reset { conv } => return Err(format!("device {}: the numbering of {conv} began anew", self.number)),
            Event::Conversation(entry) => {
                if entry.flags & page_flags::ENTRY_REMOVED == 0 {
                    self.cursors.told(&entry.conv, entry.mine)?;
                }
                self.entries.insert(entry.conv, (entry.read, entry.unread));
            }
            Event::Synced => self.synced_count += 1,
            Event::ReadPosition { conv, seq } => ledger.confirms_read(now, &self.user, &conv, seq),
            Event::Presence { user, state, .. } => {
                self.believes.insert(user, state);
            }
            Event::Receipt { conv, user, read, .. } => ledger.receipt(&conv, &user, read)?,
            Event::State(State::Stopped(_)) => self.stopped_count += 1,
            // An answer to AUTH, judged when it came.
            Event::Refused { code, .. } if self.renewals.take_refusal(code) => {}
            // HELLO came at a bad time; the close code says to come back.
            Event::Refused { code: 5002, .. } => {}
            // Judged when it came.
            Event::Refused { code: 2001 | 2002, .. } => {}
            Event::Refused { code, detail } if code != 3001 || !self.members_change => {
                return Err(format!("device {}: refused with {code} {detail}", self.number));
            }
            _ => {}
        }
        Ok(())
    }
}

/// The clock of a device.
pub fn time(now: u64) -> Duration {
    Duration::from_nanos(now)
}

fn settings(name: &str, encoding: Encoding, window: u16, is_curious: bool) -> Settings {
    Settings {
        presence: is_curious,
        receipts: is_curious,
        encoding,
        window,
        reconnect_base: Duration::from_millis(200),
        reconnect_cap: Duration::from_secs(3),
        welcome_wait: Duration::from_secs(6),
        ping_after: Some(Duration::from_secs(5)),
        ..Settings::new(name)
    }
}
