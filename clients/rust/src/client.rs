//! The client with sockets and threads: one thread drives a [`Machine`], another reads the socket.           [getrandom]

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidegate::ids::Cmid;

use crate::event::{Event, Outgoing, SendError, Sent, Stop, Ticket};
use crate::events::{Events, Feed, events};
use crate::inbox::Position;
use crate::journal::{Journal, Kept};
use crate::link::{Arrival, BadUrl, Endpoint, Inbound, Link};
use crate::machine::{Action, Closed, Machine};
use crate::pending::{Pending, Resolver};
use crate::settings::Settings;
use crate::watching::{BadWatch, Wish};

/// Commands and chunks of bytes on their way to the driving thread. Full: the caller, or the reading thread, waits.
const INPUTS_MAX: usize = 256;
/// Events that the application has not taken. Full: they stay in the machine, unacknowledged, and the gateway stops delivering.
const EVENTS_MAX: usize = 1024;
/// Inputs taken before what they caused is written.
const INPUTS_PER_TURN_MAX: usize = 64;
/// Shortest and longest sleep of the driving thread.
const SLEEP_MIN: Duration = Duration::from_millis(1);
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// How often a full event queue is looked at again.
const BLOCKED_WAIT: Duration = Duration::from_millis(10);
/// Time that lies before the start of a client, as far as messages of an earlier life are concerned: longer than any horizon.
const BEFORE: Duration = Duration::from_secs(60 * 86_400);
/// Longest wait for the application to take the last events of a client that ended.
const LAST_EVENTS_WAIT: Duration = Duration::from_secs(1);

/// What a [`Client`] is told once.
pub struct Options {
    /// How to speak and what to remember.
    pub settings: Settings,
    /// A file in which messages wait until they are acknowledged, so that they survive the program. One client at a time may use it.
    /// `None`: they wait in memory.
    pub outbox: Option<PathBuf>,
    token: TokenSource,
}

/// Gives a token; `fresh` is set when the last one was refused or ends soon. `None`: none to be had now, try again later.
type TokenSource = Box<dyn FnMut(bool) -> Option<String> + Send>;

impl Options {
    /// The protocol's defaults for `device`, with tokens from `token`: it is asked before each connection and when the one in use
    /// ends soon, told whether it must be a fresh one, and may answer `None` to be asked again later.
    pub fn new(device: &str, token: impl FnMut(bool) -> Option<String> + Send + 'static) -> Self {
        Self { settings: Settings::new(device), outbox: None, token: Box::new(token) }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// A device's connection that is kept alive: it reconnects, repeats what was not acknowledged and fetches what was missed.
///
/// Clones are handles of the same connection; it ends when [`Client::close`] is called or the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Client(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    inputs: SyncSender<Input>,
    /// Messages of an earlier life that nobody has asked about yet.
    restored: Mutex<Vec<Pending>>,
}

/// Why there is no client.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL is of no use.
    Url(BadUrl),
    /// The outbox on disk cannot be opened.
    Outbox(io::Error),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(error) => error.fmt(f),
            Self::Outbox(error) => write!(f, "the outbox cannot be opened: {error}"),
        }
    }
}

impl std::error::Error for ConnectError {}

/// Where the device stands: what an application keeps to go on from after a restart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// For [`Settings::positions`].
    pub positions: Vec<Position>,
    /// For [`Settings::since`].
    pub since: u64,
}

enum Input {
    Send(Cmid, Outgoing, Resolver),
    Read(String, u64),
    Signal(String, u16, Vec<u8>),
    Watch(Wish),
    Nack(String, u64, Duration, u16),
    Processed(String, u64),
    Snapshot(SyncSender<Snapshot>),
    Close,
    /// From the reading thread of the connection with this number.
    Inbound(u64, Inbound),
}

impl Client {
    /// Starts a client for `url`, such as `ws://127.0.0.1:8080/ws`. Returns at once; events tell how the connection stands.
    ///
    /// # Errors
    /// [`ConnectError`].
    ///
    /// # Panics
    /// If the system gives no randomness or no thread.
    pub fn connect(url: &str, options: Options) -> Result<(Self, Events), ConnectError> {
        let endpoint = Endpoint::parse(url).map_err(ConnectError::Url)?;
        let (inputs, input) = sync_channel(INPUTS_MAX);
        let (feed, events) = events(EVENTS_MAX);
        let (journal, kept) = match options.outbox.as_deref().map(Journal::open).transpose().map_err(ConnectError::Outbox)? {
            Some((journal, kept)) => (Some(journal), kept),
            None => (None, Vec::new()),
        };
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).expect("the system has randomness");
        let mut driver = Driver {
            machine: Machine::new(options.settings.clone(), u64::from_le_bytes(seed)),
            settings: options.settings,
            token: options.token,
            endpoint,
            origin: Instant::now(),
            link: None,
            link_number: 0,
            resolvers: HashMap::new(),
            inputs: inputs.clone(),
            events: feed,
            blocked: None,
            journal,
        };
        let restored = kept.into_iter().map(|one| driver.restore(one)).collect();
        let spawned = std::thread::Builder::new().name("tidegate".to_owned()).spawn(move || driver.run(&input));
        spawned.expect("the system has a thread");
        Ok((Self(Arc::new(Handle { inputs, restored: Mutex::new(restored) })), events))
    }

    /// Messages that the outbox on disk still held, in the order in which they were asked for; each is told once. They are sent whether
    /// or not anybody asks.
    #[must_use]
    pub fn restored(&self) -> Vec<Pending> {
        std::mem::take(&mut *self.0.restored.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends `payload` to `conv` and blocks until the gateway has acknowledged it, across reconnects, for as long as it takes.
    ///
    /// # Errors
    /// Why it was given up.
    pub fn send(&self, conv: &str, payload: &[u8]) -> Result<Sent, SendError> {
        self.submit(Outgoing::new(conv, payload)).wait()
    }

    /// Asks to send `message`, and returns at once unless hundreds were asked for in this moment. Messages to one conversation keep the
    /// order of asking.
    ///
    /// # Panics
    /// If the system gives no randomness.
    #[must_use]
    pub fn submit(&self, message: Outgoing) -> Pending {
        let cmid = fresh_cmid();
        let (pending, resolver) = Pending::new(cmid);
        // A client that ended drops the resolver, which says so.
        drop(self.0.inputs.send(Input::Send(cmid, message, resolver)));
        pending
    }

    /// As [`Client::submit`], but never blocks: if too much was asked for in this moment, the result is [`SendError::OutboxFull`]. What
    /// it returns is a future that belongs to no runtime.
    ///
    /// # Panics
    /// If the system gives no randomness.
    pub fn try_submit(&self, message: Outgoing) -> Pending {
        let cmid = fresh_cmid();
        let (pending, resolver) = Pending::new(cmid);
        if let Err(TrySendError::Full(Input::Send(_, _, resolver))) = self.0.inputs.try_send(Input::Send(cmid, message, resolver))
        {
            resolver.resolve(Err(SendError::OutboxFull));
        }
        pending
    }

    /// Moves the user's read position; [`Event::ReadPosition`] confirms it.
    pub fn read(&self, conv: &str, seq: u64) {
        drop(self.0.inputs.send(Input::Read(conv.to_owned(), seq)));
    }

    /// Sends a signal if the connection is up.
    pub fn signal(&self, conv: &str, kind: u16, payload: &[u8]) {
        drop(self.0.inputs.send(Input::Signal(conv.to_owned(), kind, payload.to_vec())));
    }

    /// Watches the presence of `users`, as [`Machine::watch`] does.
    ///
    /// # Errors
    /// [`BadWatch`]: nothing changes.
    pub fn watch(&self, users: &[&str], ttl: Duration) -> Result<(), BadWatch> {
        let wish = Wish::new(users, ttl)?;
        drop(self.0.inputs.send(Input::Watch(wish)));
        Ok(())
    }

    /// Watches nobody any more.
    pub fn unwatch(&self) {
        drop(self.0.inputs.send(Input::Watch(Wish::default())));
    }

    /// Asks for a message once more, later, as [`Machine::nack`] does; with [`crate::Acknowledge::ByHand`].
    pub fn nack(&self, conv: &str, seq: u64, delay: Duration, reason: u16) {
        drop(self.0.inputs.send(Input::Nack(conv.to_owned(), seq, delay, reason)));
    }

    /// Acknowledges everything of `conv` up to `seq`, with [`crate::Acknowledge::ByHand`].
    pub fn processed(&self, conv: &str, seq: u64) {
        drop(self.0.inputs.send(Input::Processed(conv.to_owned(), seq)));
    }

    /// Where the device stands; empty if the client has ended.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let (answer, answered) = sync_channel(1);
        drop(self.0.inputs.send(Input::Snapshot(answer)));
        answered.recv().unwrap_or_default()
    }

    /// Ends the connection for good. What was not acknowledged resolves to [`SendError::Stopped`].
    pub fn close(&self) {
        drop(self.0.inputs.send(Input::Close));
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.inputs.send(Input::Close));
    }
}

struct Driver {
    machine: Machine,
    settings: Settings,
    token: TokenSource,
    endpoint: Endpoint,
    origin: Instant,
    link: Option<Link>,
    /// Counts connections: what an earlier one still hands over is dropped.
    link_number: u64,
    resolvers: HashMap<Ticket, (Cmid, Resolver)>,
    inputs: SyncSender<Input>,
    events: Feed,
    /// An event the application has no room for yet.
    blocked: Option<Event>,
    journal: Option<Journal>,
}

impl Driver {
    fn restore(&mut self, one: Kept) -> Pending {
        let (pending, resolver) = Pending::new(one.cmid);
        let age = Duration::from_millis(unix_ms().saturating_sub(one.asked_unix_ms));
        let ticket = self.machine.restore(one.cmid, one.message, self.now().saturating_sub(age));
        self.resolvers.insert(ticket, (one.cmid, resolver));
        pending
    }

    fn run(mut self, input: &Receiver<Input>) {
        loop {
            self.turn();
            if self.machine.stopped().is_some() {
                break;
            }
            match input.recv_timeout(self.sleep()) {
                Ok(first) => {
                    self.take(first);
                    for _ in 1..INPUTS_PER_TURN_MAX {
                        match input.try_recv() {
                            Ok(next) => self.take(next),
                            Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let deadline = Instant::now() + LAST_EVENTS_WAIT;
        while self.blocked.is_some() && Instant::now() < deadline {
            std::thread::sleep(BLOCKED_WAIT);
            self.give_events();
        }
    }

    fn turn(&mut self) {
        self.machine.handle_timeout(self.now());
        while let Some(action) = self.machine.poll_action() {
            self.act(action);
        }
        self.transmit();
        while let Some(outcome) = self.machine.poll_outcome() {
            if let Some((cmid, resolver)) = self.resolvers.remove(&outcome.ticket) {
                if let Some(journal) = self.journal.as_mut().filter(|_| outcome.result != Err(SendError::Stopped)) {
                    // Not noted, it is sent once more in the next life and recognised.
                    drop(journal.done(cmid));
                }
                resolver.resolve(outcome.result);
            }
        }
        self.give_events();
        // Taking events moves cursors, and a pause in the history may end.
        self.transmit();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Connect { target, fresh_token } => self.connect(target.as_deref(), fresh_token),
            Action::Token => {
                if let Some(token) = (self.token)(true) {
                    self.machine.handle_token(&token);
                }
            }
            Action::Close(code) => {
                self.transmit();
                if let Some(link) = self.link.take() {
                    link.close(code);
                }
                self.machine.handle_closed(self.now(), Closed::default());
            }
        }
    }

    fn connect(&mut self, target: Option<&str>, fresh_token: bool) {
        self.link_number += 1;
        let (inputs, number) = (self.inputs.clone(), self.link_number);
        let feed = move |inbound| inputs.send(Input::Inbound(number, inbound)).is_ok();
        let Some(token) = (self.token)(fresh_token) else {
            return self.machine.handle_closed(self.now(), Closed::default());
        };
        match Link::open(&self.endpoint.at(target), self.settings.encoding, feed) {
            Ok(link) => {
                self.link = Some(link);
                self.machine.handle_connected(self.now(), &token);
                self.arrivals();
            }
            Err(closed) => self.machine.handle_closed(self.now(), closed),
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Send(cmid, message, resolver) => match self.send(cmid, message) {
                Ok(ticket) => drop(self.resolvers.insert(ticket, (cmid, resolver))),
                Err(error) => resolver.resolve(Err(error)),
            },
            Input::Read(conv, seq) => self.machine.read(&conv, seq),
            Input::Signal(conv, kind, payload) => self.machine.signal(&conv, kind, &payload),
            Input::Watch(wish) => self.machine.want_watch(wish),
            Input::Nack(conv, seq, delay, reason) => self.machine.nack(&conv, seq, delay, reason),
            Input::Processed(conv, seq) => self.machine.processed(self.now(), &conv, seq),
            Input::Snapshot(answer) => {
                drop(answer.send(Snapshot { positions: self.machine.positions(), since: self.machine.since() }));
            }
            Input::Close => self.machine.close(),
            Input::Inbound(number, inbound) => {
                if let Some(link) = self.link.as_mut()
                    && number == self.link_number
                {
                    link.feed(inbound);
                    self.arrivals();
                }
            }
        }
    }

    fn send(&mut self, cmid: Cmid, message: Outgoing) -> Result<Ticket, SendError> {
        let copy = (self.journal.is_some() && !message.transient).then(|| message.clone());
        let ticket = self.machine.send(cmid, message)?;
        if let Some((journal, message)) = self.journal.as_mut().zip(copy)
            && journal.keep(&Kept { cmid, asked_unix_ms: unix_ms(), message }).is_err()
        {
            self.machine.close_for(Stop::Storage);
            return Err(SendError::Storage);
        }
        Ok(ticket)
    }

    fn arrivals(&mut self) {
        while let Some(arrival) = self.link.as_mut().and_then(Link::arrival) {
            let now = self.now();
            match arrival {
                // A message that breaks the protocol makes the machine close; there is nobody to tell here.
                Arrival::Message(bytes) => drop(self.machine.handle_message(now, &bytes)),
                Arrival::Ended(closed) => {
                    self.link = None;
                    self.machine.handle_closed(now, closed);
                }
            }
        }
    }

    fn transmit(&mut self) {
        let now = self.now();
        // What may leave now is on disk first.
        if self.journal.as_mut().is_some_and(|journal| journal.sync().is_err()) {
            self.journal = None;
            self.machine.close_for(Stop::Storage);
        }
        let Some(link) = self.link.as_mut() else { return };
        let mut bytes = Vec::new();
        let mut result = Ok(());
        let mut is_idle = true;
        while result.is_ok() && self.machine.poll_transmit(now, &mut bytes) {
            result = link.write(&bytes);
            bytes.clear();
            is_idle = false;
        }
        if !is_idle && result.is_ok() {
            result = link.flush();
        }
        if let Err(closed) = result {
            self.link = None;
            self.machine.handle_closed(now, closed);
        }
    }

    fn give_events(&mut self) {
        loop {
            let Some(event) = self.blocked.take().or_else(|| self.machine.poll_event(self.now())) else { return };
            match self.events.give(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event)) => {
                    self.blocked = Some(event);
                    return;
                }
                // The application does not want events; messages count as taken all the same.
                Err(TrySendError::Disconnected(_)) => {}
            }
        }
    }

    fn sleep(&self) -> Duration {
        let wake = self.machine.poll_timeout().map_or(SLEEP_MAX, |at| at.saturating_sub(self.now()));
        let longest = if self.blocked.is_some() { BLOCKED_WAIT } else { SLEEP_MAX };
        wake.clamp(SLEEP_MIN, longest)
    }

    fn now(&self) -> Duration {
        // Messages of an earlier life were asked for before this one began.
        BEFORE + self.origin.elapsed()
    }
}

fn unix_ms() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(unix.as_millis()).unwrap_or_default()
}

/// A UUIDv7: 48 bits of time, 74 of chance.
fn fresh_cmid() -> Cmid {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes[6..]).expect("the system has randomness");
    bytes[..6].copy_from_slice(&unix_ms().to_be_bytes()[2..]);
    bytes[6] = bytes[6] & 0x0f | 0x70;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Cmid(bytes)
}
