//! One TCP connection between a client and a core, under the contract of `io/driver.rs`: bytes arrive in order, in pieces that have
//! nothing to do with those that were written; a write takes part of what is offered, or is held back until there is room.

use std::collections::VecDeque;
use std::io::IoSlice;

use tidegate::ids::ConnectionId;
use tidegate::io::driver::{Close, Sent};

use crate::random::Random;
use crate::{MS, SECOND, US};

/// What the network is like at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Mean time on the way.
    pub latency_ns: u64,
    /// No piece is longer on its way than that.
    pub latency_max_ns: u64,
    /// Of a million pieces so many are followed by a reset.
    pub reset_ppm: u64,
    /// Of a million pieces so many begin a silence in their direction.
    pub silence_ppm: u64,
    pub silence_ns: u64,
    /// Of a million pieces so many begin a time in which the client does not read.
    pub pause_ppm: u64,
}

impl Weather {
    /// How long something is on its way.
    pub fn latency(&self, random: &mut Random) -> u64 {
        random.spread(self.latency_ns).min(self.latency_max_ns)
    }
}

/// How one direction ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Fin,
    Reset,
}

/// One direction: pieces on their way, and an end.
#[derive(Debug, Default)]
struct Way {
    pieces: VecDeque<(u64, Vec<u8>)>,
    end: Option<(u64, End)>,
    last: u64,
    silent_until: u64,
}

impl Way {
    /// Puts `bytes` on the way in pieces; returns when they arrive.
    fn put(&mut self, now: u64, bytes: Vec<u8>, weather: &Weather, random: &mut Random, arrivals: &mut Vec<u64>) {
        if self.end.is_some() {
            return;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let length = if random.chance(800_000) { rest.len() } else { 1 + random.index(rest.len()) };
            let after = rest.split_off(length);
            let piece = std::mem::replace(&mut rest, after);
            if random.chance(weather.silence_ppm) {
                self.silent_until = self.silent_until.max(now + random.spread(weather.silence_ns));
            }
            let at = (now + weather.latency(random)).max(self.last).max(self.silent_until);
            self.last = at;
            self.pieces.push_back((at, piece));
            arrivals.push(at);
            if random.chance(weather.reset_ppm) {
                self.end = Some((at, End::Reset));
                break;
            }
        }
    }

    fn finish(&mut self, arrives: u64, end: End) -> u64 {
        let mut at = arrives;
        match end {
            End::Fin => at = at.max(self.last),
            End::Reset => self.pieces.retain(|(arrival, _)| *arrival <= at),
        }
        if self.end.is_none_or(|(_, old)| old == End::Fin && end == End::Reset) {
            self.end = Some((at, end));
            self.last = at;
        }
        at
    }

    fn take(&mut self, now: u64) -> Option<Vec<u8>> {
        let (at, _) = self.pieces.front()?;
        if *at > now {
            return None;
        }
        self.pieces.pop_front().map(|(_, piece)| piece)
    }

    fn ended(&self, now: u64) -> Option<End> {
        match self.end {
            // A reset overtakes what had not arrived.
            Some((at, End::Reset)) if at <= now => Some(End::Reset),
            Some((at, End::Fin)) if at <= now && self.pieces.is_empty() => Some(End::Fin),
            _ => None,
        }
    }

    fn bytes(&self) -> usize {
        self.pieces.iter().map(|(_, piece)| piece.len()).sum()
    }
}

/// What the driver has to say to the core, beside bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    Sent(usize),
    Writable,
    Eof,
    Failed,
    Closed,
}

#[derive(Debug)]
pub struct Link {
    pub device: usize,
    pub core: usize,
    pub life: u32,
    /// Its slot, once accepted.
    pub id: Option<ConnectionId>,
    up: Way,
    down: Way,
    random: Random,
    /// What the kernel holds of what the core has written.
    capacity: usize,
    /// Completions instead of readiness: a send is held whole and answered later.
    is_completion: bool,
    pending: Option<(u64, usize)>,
    blocked: bool,
    writable_at: Option<u64>,
    paused: bool,
    /// The core was told of the end of the other side.
    told_end: bool,
    /// The core has asked to close; the last word follows then.
    closing_at: Option<u64>,
    /// The last word was said, or the process is gone.
    pub is_over: bool,
    /// The client has let go of its end.
    pub client_gone: bool,
    /// The client does not read until then.
    pub client_pauses_until: u64,
}

/// When something happens on a link, at the end of a call.
#[derive(Debug, Default)]
pub struct Due {
    pub core: Vec<u64>,
    pub device: Vec<u64>,
}

impl Link {
    pub fn new(device: usize, core: usize, life: u32, mut random: Random) -> Self {
        let capacity = 1 << random.between(9, 16);
        let is_completion = random.chance(300_000);
        Self {
            device,
            core,
            life,
            id: None,
            up: Way::default(),
            down: Way::default(),
            random,
            capacity,
            is_completion,
            pending: None,
            blocked: false,
            writable_at: None,
            paused: false,
            told_end: false,
            closing_at: None,
            is_over: false,
            client_gone: false,
            client_pauses_until: 0,
        }
    }

    // The client's side.

    pub fn client_writes(&mut self, now: u64, bytes: Vec<u8>, weather: &Weather, due: &mut Due) {
        self.up.put(now, bytes, weather, &mut self.random, &mut due.core);
        self.note_reset(due);
    }

    pub fn client_ends(&mut self, now: u64, end: End, weather: &Weather, due: &mut Due) {
        due.core.push(self.up.finish(now + weather.latency(&mut self.random), end));
        if end == End::Reset {
            self.client_gone = true;
        }
    }

    /// What has arrived at the client.
    pub fn client_reads(&mut self, now: u64, weather: &Weather, due: &mut Due) -> Vec<u8> {
        if self.client_pauses_until > now {
            due.device.push(self.client_pauses_until);
            return Vec::new();
        }
        if self.random.chance(weather.pause_ppm) {
            self.client_pauses_until = now + self.random.spread(3 * SECOND);
            due.device.push(self.client_pauses_until);
            return Vec::new();
        }
        let mut bytes = self.down.take(now).unwrap_or_default();
        while let Some(piece) = self.down.take(now) {
            bytes.extend_from_slice(&piece);
        }
        if self.blocked && self.down.bytes() <= self.capacity / 2 {
            self.blocked = false;
            let at = now + self.random.spread(200 * US);
            self.writable_at = Some(at);
            due.core.push(at);
        }
        bytes
    }

    pub fn client_sees_end(&self, now: u64) -> Option<End> {
        self.down.ended(now)
    }

    // The core's side: the driver.

    pub fn send(&mut self, now: u64, vectors: &[IoSlice<'_>], weather: &Weather, due: &mut Due) -> Sent {
        assert!(self.pending.is_none() && !self.blocked, "one send outstanding per connection");
        assert!(self.closing_at.is_none(), "nothing is sent after close");
        if self.up.ended(now) == Some(End::Reset) || self.down.end.is_some() {
            return Sent::Failed(std::io::ErrorKind::ConnectionReset.into());
        }
        let room = self.capacity.saturating_sub(self.down.bytes());
        let offered: usize = vectors.iter().map(|vector| vector.len()).sum();
        let taken = if self.is_completion { offered } else { offered.min(room) };
        if taken == 0 {
            self.blocked = true;
            return Sent::Blocked;
        }
        let mut bytes = Vec::with_capacity(taken);
        for vector in vectors {
            let length = vector.len().min(taken - bytes.len());
            bytes.extend_from_slice(&vector[..length]);
        }
        self.down.put(now, bytes, weather, &mut self.random, &mut due.device);
        if self.is_completion {
            let at = if taken <= room { now + self.random.spread(100 * US) } else { *due.device.last().unwrap_or(&now) };
            self.pending = Some((at, taken));
            due.core.push(at);
        }
        self.note_reset(due);
        if self.is_completion { Sent::Pending } else { Sent::Done(taken) }
    }

    pub fn pause(&mut self) {
        self.paused = true;
    }

    pub fn resume(&mut self, now: u64, due: &mut Due) {
        self.paused = false;
        due.core.push(now);
    }

    pub fn close(&mut self, now: u64, how: Close, weather: &Weather, due: &mut Due) {
        if self.closing_at.is_some() {
            return;
        }
        let end = if how == Close::Graceful { End::Fin } else { End::Reset };
        due.device.push(self.down.finish(now + weather.latency(&mut self.random), end));
        let lingers = how == Close::Graceful && self.up.ended(now).is_none();
        let after = if lingers { self.random.spread(500 * MS).min(2 * SECOND) } else { self.random.below(2 * MS) };
        // The kernel returns a send it holds before the last word; a reset has it return at once.
        if let Some((until, _)) = self.pending.as_mut().filter(|_| end == End::Reset) {
            *until = (*until).min(now + after);
        }
        let at = (now + after).max(self.pending.map_or(0, |(at, _)| at));
        self.closing_at = Some(at);
        due.core.push(at);
    }

    /// Bytes for the core, at most `max`.
    pub fn core_reads(&mut self, now: u64, max: usize) -> Option<Vec<u8>> {
        if self.paused || self.closing_at.is_some() || self.up.ended(now) == Some(End::Reset) {
            return None;
        }
        let mut bytes = self.up.take(now)?;
        while self.random.chance(500_000)
            && let Some(more) = self.up.take(now)
        {
            bytes.extend_from_slice(&more);
        }
        if bytes.len() > max {
            let rest = bytes.split_off(max);
            self.up.pieces.push_front((now, rest));
        }
        Some(bytes)
    }

    /// Another word for the core.
    pub fn core_hears(&mut self, now: u64) -> Option<Word> {
        if let Some((at, taken)) = self.pending
            && at <= now
        {
            self.pending = None;
            return Some(Word::Sent(taken));
        }
        if let Some(at) = self.closing_at {
            return (at <= now).then_some(Word::Closed);
        }
        if self.writable_at.is_some_and(|at| at <= now) {
            self.writable_at = None;
            return Some(Word::Writable);
        }
        if self.told_end {
            return None;
        }
        match self.up.ended(now)? {
            End::Reset => {
                self.told_end = true;
                Some(Word::Failed)
            }
            End::Fin if !self.paused => {
                self.told_end = true;
                Some(Word::Eof)
            }
            End::Fin => None,
        }
    }

    /// The process at the other end is gone.
    pub fn process_died(&mut self, now: u64, after_ns: u64, due: &mut Due) {
        self.is_over = true;
        due.device.push(self.down.finish(now + after_ns + self.random.spread(MS), End::Reset));
    }

    /// The weather clears: nothing is silent or paused any more.
    pub fn clear(&mut self, now: u64, due: &mut Due) {
        self.client_pauses_until = 0;
        self.widen();
        for way in [&mut self.up, &mut self.down] {
            let latest = now + 100 * MS;
            way.silent_until = 0;
            way.last = way.last.min(latest);
            way.pieces.iter_mut().for_each(|(at, _)| *at = (*at).min(latest));
            way.end = way.end.map(|(at, end)| (at.min(latest), end));
        }
        due.core.push(now + 100 * MS);
        due.device.push(now + 100 * MS);
        if let Some((at, _)) = &mut self.pending {
            *at = (*at).min(now + 100 * MS);
        }
    }

    /// A connection that takes what a good network takes.
    pub fn widen(&mut self) {
        self.capacity = 64 * 1024;
    }

    /// A reset that the weather made reaches both ends.
    fn note_reset(&mut self, due: &mut Due) {
        let reset = [&self.up, &self.down]
            .into_iter()
            .filter_map(|way| way.end.filter(|(_, end)| *end == End::Reset))
            .min_by_key(|(at, _)| *at);
        let Some((at, _)) = reset else { return };
        for way in [&mut self.up, &mut self.down] {
            if way.end.is_none_or(|(_, end)| end == End::Fin) {
                way.end = Some((at, End::Reset));
            }
        }
        due.core.push(at);
        due.device.push(at);
    }
}
