//! Clients that cost next to nothing: a byte each beside what the network needs, many on a thread. They are welcomed, answer pings, and may be
//! echoed to; they keep no ledger and do not come back.
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
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate::wire::envelope::{ClientFrame, Encoding, Hello, ServerFrame, ServerFrames, encode_client};
use tidegate::wire::frame::{self, Opcode};

use crate::framing;
use crate::network::{Ending, Network};
use crate::pace::{Pace, nanos};
use crate::random::Random;
use crate::stats::Latency;
use crate::swarm::{Board, Pulse, Swarm};

/// One thread's connections.
#[derive(Debug)]
pub struct Thread<'a, N> {
    swarm: &'a Swarm,
    number: usize,
    network: N,
    states: Vec<State>,
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
#[derive(Debug)]
struct Running {
    order: Pulse,
    pace: Pace,
    payload: Vec<u8>,
    latency: Latency,
    pacing: Latency,
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

/// Bytes of a client beside what its network needs.
pub const CLIENT_BYTES: usize = size_of::<State>();

impl<'a, N: Network> Thread<'a, N> {
    /// The `number`-th, with its part of the swarm: connections whose index leaves `number` when divided by the threads.
    pub fn new(swarm: &'a Swarm, number: usize, network: N) -> Self {
        let count = (number..swarm.connections).step_by(swarm.threads).len();
        Self {
            swarm,
            number,
            network,
            states: vec![State::Down; count],
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
        }
    }

    /// Works until the swarm ends.
    ///
    /// # Errors
    /// The network is broken.
    pub fn run(mut self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        if self.is_filled {
            self.swarm.filled.fetch_add(1, Ordering::AcqRel);
        }
        while !self.swarm.is_over.load(Ordering::Acquire) {
            self.obey();
            let begins = self.begin_due();
            let sends = self.send_due();
            let longest = if begins || sends { Duration::ZERO } else { self.sleep() };
            self.network.wait(longest)?;
            while let Some(ready) = self.network.next() {
                let at = ready.index as usize;
                if ready.writable {
                    self.writable(at);
                }
                if ready.readable {
                    self.readable(at, ready.ended, &mut buffer);
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
            self.begin_pulse(self.swarm.order());
        }
        let now_ns = self.swarm.now_ns();
        let is_quiet = self.board.echoes.0 == self.board.echoes.1;
        let over = |pulse: &Running| {
            let wait = if is_quiet && pulse.pace.next().is_none() { Duration::ZERO } else { ECHO_WAIT };
            now_ns >= pulse.order.window.until_ns() + nanos(wait)
        };
        if let Some(pulse) = self.pulse.take_if(|pulse| over(pulse)) {
            self.board.pulse = Some((pulse.latency, pulse.pacing));
            self.board.pulses += 1;
            self.show(Moment::Now);
        }
    }

    fn begin_pulse(&mut self, order: Pulse) {
        let (busy, depth) = (order.busy, order.depth);
        self.pulse = Some(Running {
            pace: Pace::new(order.schedule.clone(), self.number, self.swarm.threads),
            payload: vec![b'e'; order.payload_bytes.max(PAYLOAD_BYTES_MIN)],
            latency: Latency::new(&order.window),
            pacing: Latency::new(&order.window),
            order,
        });
        let busy = (self.number..busy).step_by(self.swarm.threads).len().min(self.states.len());
        // Spread over the slots, so that they are spread over the reactors.
        let stride = (self.states.len() / busy.max(1)).max(1);
        for at in (0..busy).map(|index| index * stride) {
            for _ in 0..depth {
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
        let left = self.states.len() - self.next;
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
        if self.next == self.states.len() && self.opening == 0 {
            self.is_filled = true;
            self.swarm.filled.fetch_add(1, Ordering::AcqRel);
        }
        births > 0 && births == wanted && self.opening < share && self.next < self.states.len()
    }

    /// On loopback the handshake is through when connect returns, so the request can leave at once.
    fn connect(&mut self, at: usize) -> io::Result<()> {
        self.states[at] = State::Connecting;
        self.network.connect(index(at))?;
        match self.network.write(index(at), &self.swarm.request) {
            Ok(count) if count == self.swarm.request.len() => self.states[at] = State::Upgrading,
            Ok(_) => return Err(ErrorKind::WriteZero.into()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn send_due(&mut self) -> bool {
        for _ in 0..SENDS_PER_TURN_MAX {
            let now_ns = self.swarm.now_ns();
            let Some(pulse) = &mut self.pulse else { return false };
            let Some(intended_ns) = pulse.pace.due(now_ns) else { return false };
            if let Some(stage) = pulse.order.window.stage(intended_ns) {
                pulse.pacing.record(stage, now_ns.saturating_sub(intended_ns));
            }
            if !self.states.is_empty() {
                let at = self.random.below(self.states.len());
                self.echo(at, intended_ns);
            }
        }
        true
    }

    /// Sends one message that comes back: a ping where sessions are held, else a message of any length.
    fn echo(&mut self, at: usize, intended_ns: u64) {
        if self.states[at] != State::Active {
            return;
        }
        let Some(pulse) = &mut self.pulse else { return };
        pulse.payload[..8].copy_from_slice(&intended_ns.to_le_bytes());
        self.scratch.clear();
        self.scratch.extend_from_slice(&pulse.payload);
        let opcode = if self.swarm.minter.is_some() { Opcode::Ping } else { Opcode::Binary };
        self.out.clear();
        framing::write(&mut self.out, opcode, &mut self.scratch);
        self.board.echoes.0 += 1;
        self.write(at);
    }

    fn echoed(&mut self, at: usize, payload: &[u8]) {
        self.board.echoes.1 += 1;
        let now_ns = self.swarm.now_ns();
        let Some(pulse) = &mut self.pulse else { return };
        let Some(head) = payload.first_chunk() else { return };
        let intended_ns = u64::from_le_bytes(*head);
        if let Some(stage) = pulse.order.window.stage(intended_ns) {
            pulse.latency.record(stage, now_ns.saturating_sub(intended_ns));
        }
        if pulse.order.depth > 0 && now_ns < pulse.order.window.until_ns() {
            self.echo(at, now_ns);
        }
    }

    fn writable(&mut self, at: usize) {
        if self.states[at] == State::Connecting {
            match self.network.stands(index(at)) {
                Ok(()) => {}
                // Some systems call a socket writable before it stands.
                Err(error) if error.kind() == ErrorKind::NotConnected => return,
                Err(error) => return self.lose(at, &format!("connect: {}", error.kind())),
            }
            self.states[at] = State::Upgrading;
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
        while self.states[at] != State::Down {
            match self.network.read(index(at), buffer) {
                Ok(0) => return self.lose(at, "ended without a Close frame"),
                Ok(count) => {
                    if let Err(cause) = self.received(at, &buffer[..count]) {
                        return self.lose(at, &cause);
                    }
                    // Linux makes a new edge for what comes after a short read, but for the end, which may be part of this one.
                    if count < buffer.len() && !is_end {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return self.lose(at, &format!("read: {}", error.kind())),
            }
        }
    }

    fn received(&mut self, at: usize, bytes: &[u8]) -> Result<(), String> {
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
        if self.states[at] == State::Upgrading {
            let Some((head, end)) = framing::answer(bytes) else { return Ok(0) };
            framing::upgraded(head).map_err(|status| format!("http {status}"))?;
            used = end;
            if self.swarm.minter.is_some() {
                self.states[at] = State::Greeting;
                self.greet(at);
            } else {
                self.welcomed(at);
            }
        }
        while self.states[at] != State::Down {
            let whole = framing::first(&bytes[used..]).map_err(|violation| format!("{violation:?}"))?;
            let Some((header, payload, length)) = whole else { break };
            used += length;
            match header.opcode {
                Opcode::Ping => {
                    self.board.pings += 1;
                    self.scratch.clear();
                    self.scratch.extend_from_slice(payload);
                    self.out.clear();
                    framing::write(&mut self.out, Opcode::Pong, &mut self.scratch);
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
                ServerFrame::Welcome(_) if self.states[at] == State::Greeting => self.welcomed(at),
                ServerFrame::Error { code, .. } => return Err(format!("ERROR {code}")),
                ServerFrame::Goaway { code, .. } => return Err(format!("GOAWAY {code}")),
                _ => {}
            }
        }
        Ok(())
    }

    fn greet(&mut self, at: usize) {
        let Some(minter) = &self.swarm.minter else { return };
        let token = minter.token(&format!("{}-{:07}", self.swarm.tag, self.number_of(at)));
        let hello = Hello { platform: 5, ..Hello::new("d", "loadgen", &token) };
        self.scratch.clear();
        encode_client(Encoding::Binary, &ClientFrame::Hello(hello), &mut self.scratch);
        self.out.clear();
        framing::write(&mut self.out, Opcode::Binary, &mut self.scratch);
        self.write(at);
    }

    fn welcomed(&mut self, at: usize) {
        self.states[at] = State::Active;
        self.opening -= 1;
        self.board.active += 1;
    }

    /// Writes `self.out`, behind what waits already.
    fn write(&mut self, at: usize) {
        if let Some(rest) = self.outs.get_mut(&at) {
            rest.extend_from_slice(&self.out);
            return;
        }
        let mut written = 0;
        while written < self.out.len() {
            match self.network.write(index(at), &self.out[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Reading tells the same, and then the connection is lost.
                Err(_) => return,
            }
        }
        if written < self.out.len() {
            self.outs.insert(at, self.out.split_off(written));
        }
    }

    fn lose(&mut self, at: usize, cause: &str) {
        self.network.close(index(at), Ending::Orderly);
        let state = std::mem::replace(&mut self.states[at], State::Down);
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
        for at in (0..self.states.len()).filter(|&at| self.states[at] != State::Down) {
            self.network.close(index(at), Ending::Reset);
            self.board.left += 1;
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
        self.swarm.show(self.number, &self.board);
    }

    fn sleep(&self) -> Duration {
        if !self.is_filled {
            let is_next = self.number < self.swarm.filled.load(Ordering::Acquire) + OPENERS;
            return if is_next { OPENER_SLEEP } else { TURN_SLEEP };
        }
        // Behind its end a pulse waits for its last echoes, which wake this thread.
        let now_ns = self.swarm.now_ns();
        let next = self.pulse.as_ref().and_then(|pulse| {
            let end_ns = pulse.order.window.until_ns();
            pulse.pace.next().or((end_ns > now_ns).then_some(end_ns))
        });
        let left = next.map(|at| Duration::from_nanos(at.saturating_sub(now_ns).max(1)));
        left.unwrap_or(SLEEP_MAX).min(SLEEP_MAX)
    }

    /// The connection's number in the whole swarm.
    fn number_of(&self, at: usize) -> usize {
        at * self.swarm.threads + self.number
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    Now,
    Sometimes,
}

/// What its network calls a connection.
fn index(at: usize) -> u32 {
    u32::try_from(at).expect("fewer connections than 2^32")
}

/// The intended time of an echo begins its payload.
pub const PAYLOAD_BYTES_MIN: usize = 8;
/// Threads that open connections at the same time.
const OPENERS: usize = 4;
const BIRTHS_PER_TURN_MAX: usize = 64;
const SENDS_PER_TURN_MAX: usize = 64;
const BUFFER_BYTES: usize = 64 * 1024;
/// How long echoes may take that were sent at the end of a pulse. It ends as soon as all are back; those of a connection that was
/// lost never are.
const ECHO_WAIT: Duration = Duration::from_secs(10);
const OPENER_SLEEP: Duration = Duration::from_millis(5);
/// How soon a thread sees that it is its turn to open: fifty that look more often take time from those that work.
const TURN_SLEEP: Duration = Duration::from_millis(50);
const SLEEP_MAX: Duration = Duration::from_millis(250);
const SHOW_EVERY: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    /// With sockets a client is a descriptor and a byte, as a phantom the control block of its TCP and a byte; they may cost 64.
    #[test]
    fn a_client_is_a_byte() {
        assert_eq!((CLIENT_BYTES, crate::phantom::stack::CLIENT_BYTES), (1, 12));
    }
}
