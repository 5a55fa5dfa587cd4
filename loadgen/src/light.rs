//! Clients that cost next to nothing: a descriptor and two bytes each, many on a thread. They are welcomed, answer pings, and may be
//! echoed to; they keep no ledger and do not come back.                                                        [mio, nix, rustix]
//!
//! ```text
//!  connect ─► request ─► 101 ─► HELLO ─► WELCOME ─► active: ping ─► pong, echo ◄─► echo
//!                                └── on an echo gateway active at once
//! ```
//!
//! What a thread opens stays in its own table of descriptors. Threads open one after another, a few at a time, so that each wake-up
//! finds many events: with all of them at work a million connections mean as many switches between threads.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use tidegate::wire::envelope::{ClientFrame, Encoding, Hello, ServerFrame, ServerFrames, encode_client};
use tidegate::wire::frame::{self, FrameEnd, HEADER_BYTES_MAX, Opcode, Sender};
use tidegate::wire::mask;

use crate::client::Causes;
use crate::network::Timer;
use crate::pace::{Pace, nanos};
use crate::random::Random;
use crate::stats::histogram;
use crate::subject::{Minter, Target};

/// What all threads and whoever directs them share.
#[derive(Debug)]
pub struct Swarm {
    /// Times count from here.
    pub origin: Instant,
    /// Where connections go.
    pub target: Target,
    /// The upgrade request.
    pub request: Vec<u8>,
    /// Makes the tokens of HELLO; `None`: the gateway only echoes.
    pub minter: Option<Minter>,
    /// Begins every name, so that runs on one gateway do not meet.
    pub tag: String,
    /// All of them.
    pub connections: usize,
    /// Threads that carry them, each its own part.
    pub threads: usize,
    /// Each thread has a descriptor table of its own.
    pub private_tables: bool,
    /// Loopback addresses to come from in turn; 0: whichever the kernel chooses.
    pub sources: usize,
    /// Connections opened per second; 0: as fast as it goes.
    pub ramp_per_s: f64,
    /// Connections between connect and welcome, at most, over all threads.
    pub opening_max: usize,
    /// Decides who is echoed to.
    pub seed: u64,
    begun: AtomicUsize,
    /// Threads that have opened all of theirs.
    filled: AtomicUsize,
    pulse: Mutex<Pulse>,
    pulses: AtomicU64,
    is_over: AtomicBool,
    boards: Vec<Mutex<Board>>,
}

/// What is sent to be echoed.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Pulse {
    /// Messages per second over all threads, open loop, each to a connection drawn from all.
    pub rate_per_s: f64,
    /// Closed loop instead: connections that always have `depth` messages under way.
    pub busy: usize,
    /// See `busy`.
    pub depth: usize,
    /// Bytes of each payload.
    pub payload_bytes: usize,
    /// When it begins.
    pub from_ns: u64,
    /// Intended times from here on are measured.
    pub measured_from_ns: u64,
    /// When it ends.
    pub until_ns: u64,
}

/// What a thread shows.
#[derive(Clone, Default, Debug)]
pub struct Board {
    /// Connections begun.
    pub begun: usize,
    /// Welcomed and standing.
    pub active: usize,
    /// Pings of the gateway answered.
    pub pings: u64,
    /// Sent to be echoed, and come back.
    pub echoes: (u64, u64),
    /// Why connections could not be opened, or ended.
    pub causes: Causes,
    /// Latencies of the last pulse, and lateness of its sending; here once the pulse is over.
    pub pulse: Option<(Histogram<u64>, Histogram<u64>)>,
    /// Pulses that are over.
    pub pulses: u64,
    /// Connections it let go in the end.
    pub left: usize,
}

impl Swarm {
    /// A swarm of which nobody has come yet.
    #[must_use]
    pub fn new(target: Target, minter: Option<Minter>, tag: String, connections: usize, threads: usize) -> Self {
        let request = target.request(minter.is_some());
        Self {
            origin: Instant::now(),
            target,
            request,
            minter,
            tag,
            connections,
            threads,
            private_tables: false,
            sources: 0,
            ramp_per_s: 0.0,
            opening_max: OPENING_MAX,
            seed: 1,
            begun: AtomicUsize::new(0),
            filled: AtomicUsize::new(0),
            pulse: Mutex::default(),
            pulses: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            boards: (0..threads).map(|_| Mutex::default()).collect(),
        }
    }

    /// Nanoseconds since it began.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        nanos(self.origin.elapsed())
    }

    /// Begins a pulse.
    pub fn pulse(&self, pulse: Pulse) {
        *lock(&self.pulse) = pulse;
        self.pulses.fetch_add(1, Ordering::Release);
    }

    /// Lets all connections go.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// What all threads show, added up.
    #[must_use]
    pub fn board(&self) -> Board {
        let mut sum = Board { pulses: u64::MAX, ..Board::default() };
        for board in &self.boards {
            let board = lock(board);
            sum.begun += board.begun;
            sum.active += board.active;
            sum.pings += board.pings;
            sum.echoes = (sum.echoes.0 + board.echoes.0, sum.echoes.1 + board.echoes.1);
            sum.left += board.left;
            sum.pulses = sum.pulses.min(board.pulses);
            board.causes.iter().for_each(|(cause, count)| *sum.causes.entry(cause.clone()).or_default() += count);
            if let Some((latency, pacing)) = &board.pulse {
                let (all_latency, all_pacing) = sum.pulse.get_or_insert_with(|| (histogram(), histogram()));
                all_latency.add(latency).expect("all histograms have the same bounds");
                all_pacing.add(pacing).expect("all histograms have the same bounds");
            }
        }
        sum
    }

    /// Carries the connections of thread `number` until the swarm ends.
    ///
    /// # Errors
    /// The kernel's, when the thread cannot work at all; what befalls one connection is counted instead.
    pub fn carry(&self, number: usize) -> Result<(), String> {
        if self.private_tables {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).map_err(|error| format!("a descriptor table: {error}"))?;
        }
        let thread = Thread::new(self, number).map_err(|error| format!("thread {number}: {error}"))?;
        thread.run().map_err(|error| format!("thread {number}: {error}"))
    }

    /// How many of the connections the ramp lets begin now, at most `most`.
    fn take_births(&self, most: usize) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "saturates, which is what is wanted")]
        let due = if self.ramp_per_s > 0.0 { (self.now_ns() as f64 / 1e9 * self.ramp_per_s) as usize } else { usize::MAX };
        let taken = |begun: usize| Some(begun + due.saturating_sub(begun).min(most));
        let before = self.begun.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken);
        let before = before.expect("an update that never declines");
        due.saturating_sub(before).min(most)
    }
}

/// One thread's connections.
struct Thread<'a> {
    swarm: &'a Swarm,
    number: usize,
    poll: Poll,
    timer: Timer,
    slots: Vec<Slot>,
    /// The first of them that has not begun.
    next: usize,
    opening: usize,
    is_filled: bool,
    /// Unfinished heads and frames, of the few connections that have one.
    carries: HashMap<usize, Vec<u8>>,
    /// Bytes the kernel did not take, of the few connections that have some.
    outs: HashMap<usize, Vec<u8>>,
    scratch: Vec<u8>,
    out: Vec<u8>,
    random: Random,
    pulse: Option<Running>,
    board: Board,
    show_at: u64,
}

/// A pulse as one thread runs it.
struct Running {
    order: Pulse,
    pace: Pace,
    payload: Vec<u8>,
    latency: Histogram<u64>,
    pacing: Histogram<u64>,
}

/// One connection, 8 bytes.
#[derive(Debug)]
struct Slot {
    socket: Option<OwnedFd>,
    state: State,
    /// Whether the poll also tells when it is writable.
    is_watched: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Not begun, or over.
    Down,
    Connecting,
    Upgrading,
    Greeting,
    Active,
}

/// Bytes of a client beside its descriptor in the kernel.
pub const CLIENT_BYTES: usize = size_of::<Slot>();

impl<'a> Thread<'a> {
    fn new(swarm: &'a Swarm, number: usize) -> io::Result<Self> {
        let poll = Poll::new()?;
        let timer = Timer::new(&poll, TIMER)?;
        let count = (number..swarm.connections).step_by(swarm.threads).len();
        let slots = (0..count).map(|_| Slot { socket: None, state: State::Down, is_watched: false }).collect();
        Ok(Self {
            swarm,
            number,
            poll,
            timer,
            slots,
            next: 0,
            opening: 0,
            is_filled: count == 0,
            carries: HashMap::new(),
            outs: HashMap::new(),
            scratch: Vec::new(),
            out: Vec::new(),
            random: Random::new(swarm.seed ^ (number as u64) << 32),
            pulse: None,
            board: Board::default(),
            show_at: 0,
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut buffer = vec![0; BUFFER_BYTES];
        if self.is_filled {
            self.swarm.filled.fetch_add(1, Ordering::AcqRel);
        }
        while !self.swarm.is_over.load(Ordering::Acquire) {
            self.obey();
            let begins = self.begin_due();
            let sends = self.send_due();
            let longest = if begins || sends { Duration::ZERO } else { self.sleep() };
            let time_out = if longest.is_zero() { Some(longest) } else { self.timer.arm(longest).map(|()| None)? };
            match self.poll.poll(&mut events, time_out) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in events.iter().filter(|event| event.token() != TIMER) {
                let at = event.token().0;
                if event.is_writable() && self.slots[at].is_watched {
                    self.writable(at);
                }
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    self.readable(at, event.is_read_closed() || event.is_error(), &mut buffer);
                }
            }
            self.show(Moment::Sometimes);
        }
        self.let_go();
        Ok(())
    }

    /// Takes up a new pulse, and ends one whose time is over.
    fn obey(&mut self) {
        let known = self.board.pulses + u64::from(self.pulse.is_some());
        if self.pulse.is_none() && self.swarm.pulses.load(Ordering::Acquire) > known {
            self.begin_pulse(*lock(&self.swarm.pulse));
        }
        let over = |pulse: &Running| self.swarm.now_ns() >= pulse.order.until_ns + nanos(ECHO_WAIT);
        if let Some(pulse) = self.pulse.take_if(|pulse| over(pulse)) {
            self.board.pulse = Some((pulse.latency, pulse.pacing));
            self.board.pulses += 1;
            self.show(Moment::Now);
        }
    }

    fn begin_pulse(&mut self, order: Pulse) {
        let threads = self.swarm.threads as f64;
        // Threads take turns, so that the whole is as even as each.
        let lag_ns = if order.rate_per_s > 0.0 { 1e9 / order.rate_per_s * self.number as f64 } else { 0.0 };
        let start_ns = order.from_ns + nanos(Duration::from_secs_f64(lag_ns / 1e9));
        self.pulse = Some(Running {
            order,
            pace: Pace::new(order.rate_per_s / threads, start_ns),
            payload: vec![b'e'; order.payload_bytes.max(PAYLOAD_BYTES_MIN)],
            latency: histogram(),
            pacing: histogram(),
        });
        let busy = (self.number..order.busy).step_by(self.swarm.threads).len().min(self.slots.len());
        // Spread over the slots, so that they are spread over the reactors.
        let stride = (self.slots.len() / busy.max(1)).max(1);
        for at in (0..busy).map(|index| index * stride) {
            for _ in 0..order.depth {
                self.echo(at, self.swarm.now_ns());
            }
        }
    }

    /// Begins what the ramp allows; whether there is more to begin at once.
    fn begin_due(&mut self) -> bool {
        let filled = self.swarm.filled.load(Ordering::Acquire);
        if self.is_filled || self.number >= filled + OPENERS {
            return false;
        }
        let share = (self.swarm.opening_max / OPENERS.min(self.swarm.threads)).max(1);
        let left = self.slots.len() - self.next;
        let wanted = share.saturating_sub(self.opening).min(left).min(BIRTHS_PER_TURN_MAX);
        let births = self.swarm.take_births(wanted);
        for _ in 0..births {
            let at = self.next;
            self.next += 1;
            self.board.begun += 1;
            self.opening += 1;
            if let Err(error) = self.connect(at) {
                self.lose(at, &format!("connect: {}", error.kind()));
            }
        }
        if self.next == self.slots.len() && self.opening == 0 {
            self.is_filled = true;
            self.swarm.filled.fetch_add(1, Ordering::AcqRel);
        }
        births > 0 && births == wanted && self.opening < share && self.next < self.slots.len()
    }

    /// On loopback the handshake is through when connect returns, so the request can leave at once.
    fn connect(&mut self, at: usize) -> io::Result<()> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        if self.swarm.sources > 0 {
            // Else the kernel looks for a port that no connection of this address has, before it knows where this one goes.
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true)?;
            bind(&socket, &SocketAddr::from((source(self.index(at) % self.swarm.sources), 0)))?;
        }
        match connect(&socket, &SocketAddr::V4(self.swarm.target.address)) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let state = match rustix::io::write(&socket, &self.swarm.request) {
            Ok(count) if count == self.swarm.request.len() => State::Upgrading,
            Ok(_) => return Err(ErrorKind::WriteZero.into()),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOTCONN) => State::Connecting,
            Err(error) => return Err(error.into()),
        };
        let is_watched = state == State::Connecting;
        let interest = if is_watched { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        self.poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), Token(at), interest)?;
        self.slots[at] = Slot { socket: Some(socket), state, is_watched };
        Ok(())
    }

    fn send_due(&mut self) -> bool {
        for _ in 0..SENDS_PER_TURN_MAX {
            let now_ns = self.swarm.now_ns();
            let Some(pulse) = &mut self.pulse else { return false };
            if now_ns >= pulse.order.until_ns {
                return false;
            }
            let Some(intended_ns) = pulse.pace.due(now_ns) else { return false };
            if intended_ns >= pulse.order.measured_from_ns {
                pulse.pacing.saturating_record(now_ns.saturating_sub(intended_ns));
            }
            if !self.slots.is_empty() {
                let at = self.random.below(self.slots.len());
                self.echo(at, intended_ns);
            }
        }
        true
    }

    /// Sends one message that comes back: a ping where sessions are held, else a message of any length.
    fn echo(&mut self, at: usize, intended_ns: u64) {
        if self.slots[at].state != State::Active {
            return;
        }
        let Some(pulse) = &mut self.pulse else { return };
        pulse.payload[..8].copy_from_slice(&intended_ns.to_le_bytes());
        self.scratch.clear();
        self.scratch.extend_from_slice(&pulse.payload);
        let opcode = if self.swarm.minter.is_some() { Opcode::Ping } else { Opcode::Binary };
        self.out.clear();
        write_frame(&mut self.out, opcode, &mut self.scratch);
        self.board.echoes.0 += 1;
        self.write(at);
    }

    fn echoed(&mut self, at: usize, payload: &[u8]) {
        self.board.echoes.1 += 1;
        let now_ns = self.swarm.now_ns();
        let Some(pulse) = &mut self.pulse else { return };
        let Some(head) = payload.first_chunk() else { return };
        let intended_ns = u64::from_le_bytes(*head);
        if intended_ns >= pulse.order.measured_from_ns {
            pulse.latency.saturating_record(now_ns.saturating_sub(intended_ns));
        }
        if pulse.order.depth > 0 && now_ns < pulse.order.until_ns {
            self.echo(at, now_ns);
        }
    }

    fn writable(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        let Some(socket) = &slot.socket else { return };
        if slot.state == State::Connecting {
            match rustix::net::sockopt::socket_error(socket) {
                Ok(Ok(())) => {}
                Ok(Err(error)) | Err(error) => return self.lose(at, &format!("connect: {}", io::Error::from(error).kind())),
            }
            slot.state = State::Upgrading;
            self.out.clear();
            self.out.extend_from_slice(&self.swarm.request);
            return self.write(at);
        }
        if let Some(rest) = self.outs.remove(&at) {
            self.out = rest;
            self.write(at);
        }
    }

    fn readable(&mut self, at: usize, is_end: bool, buffer: &mut [u8]) {
        while let Some(socket) = &self.slots[at].socket {
            match rustix::io::read(socket, &mut *buffer) {
                Ok(0) => return self.lose(at, "ended without a Close frame"),
                Ok(count) => {
                    if let Err(cause) = self.received(at, &mut buffer[..count]) {
                        return self.lose(at, &cause);
                    }
                    // Linux makes a new edge for what comes after a short read, but for the end, which may be part of this one.
                    if count < buffer.len() && !is_end {
                        return;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(error) => return self.lose(at, &format!("read: {}", io::Error::from(error).kind())),
            }
        }
    }

    fn received(&mut self, at: usize, bytes: &mut [u8]) -> Result<(), String> {
        let Some(mut all) = self.carries.remove(&at) else {
            let used = self.take(at, bytes)?;
            if used < bytes.len() {
                self.carries.insert(at, bytes[used..].to_vec());
            }
            return Ok(());
        };
        all.extend_from_slice(bytes);
        let used = self.take(at, &all)?;
        if used < all.len() {
            all.drain(..used);
            self.carries.insert(at, all);
        }
        Ok(())
    }

    /// Handles the whole frames at the front of `bytes`; returns the bytes used.
    fn take(&mut self, at: usize, bytes: &[u8]) -> Result<usize, String> {
        let mut used = 0;
        if self.slots[at].state == State::Upgrading {
            let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(0) };
            if !bytes.starts_with(b"HTTP/1.1 101") {
                let head = String::from_utf8_lossy(&bytes[..end]);
                let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
                return Err(status.map_or_else(|| "no HTTP".to_owned(), |status| format!("http {status}")));
            }
            used = end + 4;
            if self.swarm.minter.is_some() {
                self.slots[at].state = State::Greeting;
                self.greet(at);
            } else {
                self.welcomed(at);
            }
        }
        while self.slots[at].socket.is_some() {
            let rest = &bytes[used..];
            let header = frame::decode(rest, Sender::Server).map_err(|violation| format!("{violation:?}"))?;
            let Some(header) = header else { break };
            let end = header.header_bytes.saturating_add(usize::try_from(header.payload_bytes).unwrap_or(usize::MAX));
            let Some(payload) = rest.get(header.header_bytes..end) else { break };
            used += end;
            match header.opcode {
                Opcode::Ping => {
                    self.board.pings += 1;
                    self.scratch.clear();
                    self.scratch.extend_from_slice(payload);
                    self.out.clear();
                    write_frame(&mut self.out, Opcode::Pong, &mut self.scratch);
                    self.write(at);
                }
                Opcode::Pong => self.echoed(at, payload),
                Opcode::Binary if header.fin && self.swarm.minter.is_none() => self.echoed(at, payload),
                Opcode::Binary if header.fin => self.message(at, payload)?,
                Opcode::Close => {
                    let code = frame::decode_close(payload).ok().and_then(|(code, _)| code);
                    return Err(code.map_or_else(|| "close without a code".to_owned(), |code| format!("close {code}")));
                }
                other => return Err(format!("unexpected {other:?}")),
            }
        }
        Ok(used)
    }

    fn message(&mut self, at: usize, payload: &[u8]) -> Result<(), String> {
        let mut frames = ServerFrames::new(Encoding::Binary, payload);
        while let Some(frame) = frames.next_frame().map_err(|error| format!("{error:?}"))? {
            match frame {
                ServerFrame::Welcome(_) if self.slots[at].state == State::Greeting => self.welcomed(at),
                ServerFrame::Error { code, .. } => return Err(format!("ERROR {code}")),
                ServerFrame::Goaway { code, .. } => return Err(format!("GOAWAY {code}")),
                _ => {}
            }
        }
        Ok(())
    }

    fn greet(&mut self, at: usize) {
        let Some(minter) = &self.swarm.minter else { return };
        let token = minter.token(&format!("{}-{:07}", self.swarm.tag, self.index(at)));
        let hello = Hello {
            minor: 0,
            platform: 5,
            window: 0,
            caps: 0,
            last_pos: 0,
            session: [0; 16],
            device: "d".into(),
            client: "loadgen".into(),
            token: token.as_str().into(),
        };
        self.scratch.clear();
        encode_client(Encoding::Binary, &ClientFrame::Hello(hello), &mut self.scratch);
        self.out.clear();
        write_frame(&mut self.out, Opcode::Binary, &mut self.scratch);
        self.write(at);
    }

    fn welcomed(&mut self, at: usize) {
        self.slots[at].state = State::Active;
        self.opening -= 1;
        self.board.active += 1;
    }

    /// Writes `self.out`, behind what waits already.
    fn write(&mut self, at: usize) {
        if let Some(rest) = self.outs.get_mut(&at) {
            rest.extend_from_slice(&self.out);
            return;
        }
        let slot = &mut self.slots[at];
        let Some(socket) = &slot.socket else { return };
        let mut written = 0;
        while written < self.out.len() {
            match rustix::io::write(socket, &self.out[written..]) {
                Ok(count) => written += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                // Reading tells the same, and then the connection is lost.
                Err(_) => return,
            }
        }
        if written < self.out.len() {
            self.outs.insert(at, self.out.split_off(written));
            if !slot.is_watched {
                slot.is_watched = true;
                let both = Interest::READABLE | Interest::WRITABLE;
                // It is registered, and the kernel has room for what it holds already.
                let _ = self.poll.registry().reregister(&mut SourceFd(&socket.as_raw_fd()), Token(at), both);
            }
        }
    }

    fn lose(&mut self, at: usize, cause: &str) {
        let slot = &mut self.slots[at];
        slot.socket = None;
        let state = std::mem::replace(&mut slot.state, State::Down);
        if state == State::Active {
            self.board.active -= 1;
        } else {
            self.opening -= 1;
        }
        self.carries.remove(&at);
        self.outs.remove(&at);
        let when = match state {
            State::Active => "active",
            State::Greeting => "before WELCOME",
            State::Upgrading => "before 101",
            State::Down | State::Connecting => "while connecting",
        };
        *self.board.causes.entry(format!("{when}: {cause}")).or_default() += 1;
        self.show_at = 0;
    }

    /// Pulls all cables at once: an orderly end would leave a million ports waiting for stragglers.
    fn let_go(&mut self) {
        for slot in &mut self.slots {
            if let Some(socket) = slot.socket.take() {
                // Refused only for a socket that is broken already.
                let _ = rustix::net::sockopt::set_socket_linger(socket.as_fd(), Some(Duration::ZERO));
                self.board.left += 1;
            }
        }
        self.board.active = 0;
        self.show(Moment::Now);
    }

    fn show(&mut self, moment: Moment) {
        let now_ns = self.swarm.now_ns();
        if moment == Moment::Sometimes && now_ns < self.show_at {
            return;
        }
        self.show_at = now_ns + nanos(SHOW_EVERY);
        lock(&self.swarm.boards[self.number]).clone_from(&self.board);
    }

    fn sleep(&self) -> Duration {
        if !self.is_filled {
            let is_next = self.number < self.swarm.filled.load(Ordering::Acquire) + OPENERS;
            return if is_next { OPENER_SLEEP } else { TURN_SLEEP };
        }
        let next = self.pulse.as_ref().map(|pulse| pulse.pace.next().unwrap_or(pulse.order.until_ns));
        let left = next.map(|at| Duration::from_nanos(at.saturating_sub(self.swarm.now_ns()).max(1)));
        left.unwrap_or(SLEEP_MAX).min(SLEEP_MAX)
    }

    /// The connection's number in the whole swarm.
    fn index(&self, at: usize) -> usize {
        at * self.swarm.threads + self.number
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    Now,
    Sometimes,
}

/// The `number`-th loopback address to come from: 127.1.0.1 and so on, 250 in each group.
#[must_use]
pub fn source(number: usize) -> Ipv4Addr {
    let part = |value: usize| u8::try_from(value).expect("at most 62,500 addresses");
    Ipv4Addr::new(127, 1, part(number / 250), part(number % 250 + 1))
}

fn write_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &mut [u8]) {
    let mut header = [0; HEADER_BYTES_MAX];
    let len = frame::encode_client(&mut header, opcode, FrameEnd::Message, payload.len(), MASK);
    // The whole payload at once: no rest needs the turned mask.
    let _ = mask::apply(payload, MASK);
    out.extend_from_slice(&header[..len]);
    out.extend_from_slice(payload);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Any mask will do for a server that must unmask.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
/// Connections under way if nothing else is said.
pub const OPENING_MAX: usize = 1024;
/// Most sources that are used.
pub const SOURCES_MAX: usize = 62_500;
/// The intended time of an echo begins its payload.
pub const PAYLOAD_BYTES_MIN: usize = 8;
/// Threads that open connections at the same time.
const OPENERS: usize = 4;
const BIRTHS_PER_TURN_MAX: usize = 64;
const SENDS_PER_TURN_MAX: usize = 64;
const EVENTS_MAX: usize = 1024;
const BUFFER_BYTES: usize = 64 * 1024;
/// How long echoes may take that were sent at the end of a pulse.
const ECHO_WAIT: Duration = Duration::from_secs(1);
const OPENER_SLEEP: Duration = Duration::from_millis(5);
/// How soon a thread sees that it is its turn to open: fifty that look more often take time from those that work.
const TURN_SLEEP: Duration = Duration::from_millis(50);
const SLEEP_MAX: Duration = Duration::from_millis(250);
const SHOW_EVERY: Duration = Duration::from_millis(250);
const TIMER: Token = Token(usize::MAX - 1);

#[cfg(test)]
mod tests {
    use super::*;

    /// A client is a descriptor and two bytes, far below the kibibyte it may cost.
    #[test]
    fn a_client_is_eight_bytes() {
        assert_eq!(CLIENT_BYTES, 8);
    }

    /// Sources are addresses of this machine, all different.
    #[test]
    fn sources_differ() {
        assert_eq!((source(0), source(250)), (Ipv4Addr::new(127, 1, 0, 1), Ipv4Addr::new(127, 1, 1, 1)));
        let all: std::collections::HashSet<Ipv4Addr> = (0..SOURCES_MAX).map(source).collect();
        assert_eq!(all.len(), SOURCES_MAX);
        assert!(all.iter().all(Ipv4Addr::is_loopback));
    }

    /// The ramp lets begin what is due, once, whoever asks.
    #[test]
    fn the_ramp_is_shared() {
        let target = Target::parse("ws://127.0.0.1:1/ws").unwrap();
        let mut swarm = Swarm::new(target, None, String::new(), 100, 4);
        assert_eq!((swarm.take_births(7), swarm.take_births(9)), (7, 9));
        swarm.ramp_per_s = 1e-9;
        assert_eq!(swarm.take_births(5), 0);
    }
}
