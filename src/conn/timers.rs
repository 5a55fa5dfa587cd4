//! Deadlines of connections and sessions, and who has been silent for too long. Pure: ticks come in, names go out.
//!
//! A deadline sits in a hashed wheel of four levels with 64 buckets each; a tick is 100 ms, so the levels span 6.4 s, 6.8 minutes,
//! 7.3 hours and 19 days:
//!
//! ```text
//!  level 3  [ ][ ][ ]…   one bucket per 262,144 ticks   ┐ when its time begins, a bucket is
//!  level 2  [ ][ ][ ]…   one bucket per 4,096 ticks     │ emptied into the level below
//!  level 1  [ ][ ][ ]…   one bucket per 64 ticks        ┘
//!  level 0  [ ][ ][ ]…   one bucket per tick            ─► due
//! ```
//!
//! Nothing is cancelled. An entry names slot, generation and kind; when it fires, the owner looks whether that is still what it
//! waits for, drops it or files it again. Buckets are lists of chunks, so filing and firing run through memory in order, and one that fills up
//! copies nothing.
//!
//! Receiving bytes moves no entry either: it writes one `u32` into [`Liveness`], whose array is scanned in stripes.
#![expect(clippy::indexing_slicing, reason = "places come from ticks, cut to the size of the wheel, and from slots of this core")]

use std::collections::VecDeque;

use crate::ids::ConnectionId;
use crate::limits;

/// What fires: the owner compares it with what the slot now waits for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Timer {
    /// Slot of a table.
    pub index: u32,
    /// 24 bits; an entry of an earlier life is dropped by its owner.
    pub generation: u32,
    /// The owner's own numbering of what it waits for.
    pub kind: u8,
}

/// See the module text.
#[derive(Debug)]
pub struct Wheel {
    buckets: Box<[Bucket]>,
    /// The last tick whose entries are due.
    now: u32,
    /// Taken from a higher level, to be filed again.
    moving: Vec<Entry>,
    due: VecDeque<Entry>,
    len: usize,
    /// Chunks of buckets that were emptied.
    spares: Vec<Vec<Entry>>,
}

impl Wheel {
    /// Bytes per timer.
    pub const TIMER_BYTES: usize = size_of::<Entry>();

    /// An empty wheel that stands at `now`, in ticks of [`crate::clock::Moment::tick`].
    #[must_use]
    pub fn new(now: u32) -> Self {
        Self {
            buckets: (0..LEVELS * BUCKETS).map(|_| Bucket::default()).collect(),
            now,
            moving: Vec::new(),
            due: VecDeque::new(),
            len: 0,
            spares: Vec::new(),
        }
    }

    /// Files `timer` to fire at tick `at`; a tick that has passed fires at the next [`Wheel::advance`].
    ///
    /// # Panics
    /// If the generation does not fit 24 bits.
    pub fn insert(&mut self, timer: Timer, at: u32) {
        assert!(timer.generation <= ConnectionId::GENERATION_MAX);
        self.len += 1;
        self.file(Entry { index: timer.index, what: timer.generation << 8 | u32::from(timer.kind), at });
    }

    /// Moves on to `now` and fires what became due, never early, at most `budget` entries; the rest fires in later calls.
    ///
    /// Returns whether something due is left. Entries of one tick fire in the order in which they were filed on level 0; between
    /// ticks the order is that of time, but for what was filed too late.
    pub fn advance(&mut self, now: u32, budget: usize, mut fire: impl FnMut(Timer)) -> bool {
        let mut fired_count = 0;
        let mut moved_count = 0;
        loop {
            while let Some(entry) = self.moving.pop() {
                self.file(entry);
                moved_count += 1;
            }
            while let Some(entry) = self.due.pop_front() {
                if fired_count == budget {
                    self.due.push_front(entry);
                    return true;
                }
                fired_count += 1;
                self.len -= 1;
                fire(entry.timer());
            }
            if self.now == now || is_before(now, self.now) {
                return false;
            }
            if self.len == 0 {
                self.now = now;
                return false;
            }
            if moved_count > limits::TIMERS_MOVED_PER_TURN_MAX {
                return true;
            }
            self.step();
        }
    }

    /// A tick by which [`Wheel::advance`] should be called: no entry fires before it. `None`: nothing waits.
    #[must_use]
    pub fn next(&self) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        if !self.due.is_empty() || !self.moving.is_empty() {
            return Some(self.now);
        }
        // Up to the tick at which level 1 is emptied into level 0; beyond it this level says nothing.
        let turn_of_level = (self.now | LOW_BITS).wrapping_add(1);
        let mut tick = self.now.wrapping_add(1);
        while tick != turn_of_level && self.buckets[bucket(0, tick)].is_empty() {
            tick = tick.wrapping_add(1);
        }
        Some(tick)
    }

    /// Entries filed and not fired, those of earlier lives included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn file(&mut self, entry: Entry) {
        if entry.at == self.now || is_before(entry.at, self.now) {
            self.due.push_back(entry);
            return;
        }
        let distance = entry.at.wrapping_sub(self.now);
        let level = (0..LEVELS).find(|level| distance < 1 << (BITS * (level + 1)));
        let place = match level {
            Some(level) => bucket(level, entry.at),
            // Beyond the wheel: into its last bucket, from which it is filed again with its own tick.
            None => bucket(LEVELS - 1, self.now.wrapping_add(SPAN - 1)),
        };
        self.buckets[place].push(entry, &mut self.spares);
    }

    /// One tick: higher levels whose bucket begins now are to be filed again, the bucket of the tick is due.
    fn step(&mut self) {
        self.now = self.now.wrapping_add(1);
        for level in 1..LEVELS {
            if self.now & ((1 << (BITS * level)) - 1) != 0 {
                break;
            }
            self.buckets[bucket(level, self.now)].empty_into(&mut self.spares, |entry| self.moving.push(entry));
        }
        self.buckets[bucket(0, self.now)].empty_into(&mut self.spares, |entry| self.due.push_back(entry));
    }
}

/// Entries in the order in which they were filed.
#[derive(Debug, Default)]
struct Bucket {
    /// Grows up to a chunk, and is kept.
    first: Vec<Entry>,
    /// What found no room there; all but the last are full.
    more: Vec<Vec<Entry>>,
}

impl Bucket {
    fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    fn push(&mut self, entry: Entry, spares: &mut Vec<Vec<Entry>>) {
        if self.first.len() < CHUNK {
            return self.first.push(entry);
        }
        match self.more.last_mut() {
            Some(chunk) if chunk.len() < CHUNK => chunk.push(entry),
            _ => {
                let mut chunk = spares.pop().unwrap_or_else(|| Vec::with_capacity(CHUNK));
                chunk.push(entry);
                self.more.push(chunk);
            }
        }
    }

    fn empty_into(&mut self, spares: &mut Vec<Vec<Entry>>, mut take: impl FnMut(Entry)) {
        self.first.drain(..).for_each(&mut take);
        for mut chunk in std::mem::take(&mut self.more) {
            chunk.drain(..).for_each(&mut take);
            if spares.len() < SPARE_CHUNKS_MAX {
                spares.push(chunk);
            }
        }
    }
}

/// 12 bytes: a million deadlines are 12 MB.
#[derive(Clone, Copy, Debug)]
struct Entry {
    index: u32,
    /// Generation in the high 24 bits, kind in the low 8.
    what: u32,
    at: u32,
}

impl Entry {
    #[expect(clippy::cast_possible_truncation, reason = "the low 8 bits are the kind")]
    fn timer(self) -> Timer {
        Timer { index: self.index, generation: self.what >> 8, kind: self.what as u8 }
    }
}

/// Ticks wrap: `a` is before `b` if that is the shorter way round.
fn is_before(a: u32, b: u32) -> bool {
    b.wrapping_sub(a).wrapping_sub(1) < 1 << 31
}

fn bucket(level: usize, tick: u32) -> usize {
    level * BUCKETS + (tick >> (BITS * level) & LOW_BITS) as usize
}

const LEVELS: usize = 4;
const BUCKETS: usize = 64;
const BITS: usize = 6;
const LOW_BITS: u32 = 63;
const SPAN: u32 = 1 << (BITS * LEVELS);
/// Entries of a chunk: 3 KB.
const CHUNK: usize = 256;
const SPARE_CHUNKS_MAX: usize = 4;

/// When each slot last received bytes, 4 bytes per slot, in an array of its own: a scan of a million reads 4 MB in order.
#[derive(Debug)]
pub struct Liveness {
    /// Ticks modulo 2^31; the highest bit says that the slot has been pinged before.
    last: Vec<u32>,
    /// Where the scan goes on.
    cursor: usize,
    /// Slots the scan is behind.
    owed: usize,
    scanned: u32,
}

impl Liveness {
    /// Bytes per slot.
    pub const SLOT_BYTES: usize = size_of::<u32>();

    /// For up to `capacity` slots, all vacant, beginning at tick `now`.
    #[must_use]
    pub fn new(capacity: usize, now: u32) -> Self {
        Self { last: Vec::with_capacity(capacity), cursor: 0, owed: 0, scanned: now }
    }

    /// Slot `index` received something, or begins. The one write per receive.
    pub fn touch(&mut self, index: u32, now: u32) {
        let index = index as usize;
        if index >= self.last.len() {
            self.last.resize(index + 1, VACANT);
        }
        let last = &mut self.last[index];
        let settled = if *last == VACANT { 0 } else { *last & SETTLED };
        // The tick that means vacant comes once in 7 years; that slot is then 100 ms older.
        *last = (now & !SETTLED).min(!SETTLED - 1) | settled;
    }

    /// Slot `index` is pinged: from now on it has the whole interval.
    pub fn settle(&mut self, index: u32) {
        if let Some(last) = self.last.get_mut(index as usize).filter(|last| **last != VACANT) {
            *last |= SETTLED;
        }
    }

    /// Slot `index` is vacant.
    pub fn clear(&mut self, index: u32) {
        if let Some(last) = self.last.get_mut(index as usize) {
            *last = VACANT;
        }
    }

    /// For how many ticks slot `index` has been silent; `None` if it is vacant.
    #[must_use]
    pub fn silent(&self, index: u32, now: u32) -> Option<u32> {
        self.last.get(index as usize).and_then(|&last| silence(last, now))
    }

    /// Ticks since the last scan. Wraps.
    #[must_use]
    pub fn unscanned(&self, now: u32) -> u32 {
        now.wrapping_sub(self.scanned)
    }

    /// Scans one tenth of the slots for each tick since the last scan, and reports those silent for at least `interval` ticks, the first
    /// time for [`first_ping_ticks`] of it, at most `budget` of them; the scan then goes on there in the next call.
    ///
    /// A slot is reported in every round until it is touched or cleared. So silence is noticed at most one second late.
    #[expect(clippy::expect_used, reason = "the cursor is an index of a table, whose indices have 32 bits")]
    pub fn scan(&mut self, now: u32, interval: u32, budget: usize, mut report: impl FnMut(u32)) {
        let ticks = (self.unscanned(now) as usize).min(STRIPES);
        self.scanned = now;
        self.owed = (self.owed + ticks * self.last.len().div_ceil(STRIPES)).min(self.last.len());
        let mut reported_count = 0;
        while self.owed > 0 && reported_count < budget {
            self.cursor = if self.cursor < self.last.len() { self.cursor } else { 0 };
            let last = self.last[self.cursor];
            let index = u32::try_from(self.cursor).expect("an index of a table");
            let limit = || if last & SETTLED == 0 { first_ping_ticks(index, interval) } else { interval };
            if silence(last, now).is_some_and(|silent| silent >= limit()) {
                report(index);
                reported_count += 1;
            }
            self.cursor += 1;
            self.owed -= 1;
        }
    }
}

/// Ticks since an entry of [`Liveness`]; a touch that is ahead of the scan's time is none.
fn silence(last: u32, now: u32) -> Option<u32> {
    let silent = now.wrapping_sub(last) & !SETTLED;
    (last != VACANT).then_some(if silent < SETTLED / 2 { silent } else { 0 })
}

/// Ticks from the beginning of slot `index` to its first ping, 1 to `ping_ticks`: pings of all slots are spread evenly over the
/// interval, also when all connected at once, and stay so, since later ones are a whole interval apart.
#[must_use]
#[expect(clippy::expect_used, reason = "a number of 32 bits times ping_ticks, divided by 2^32, is below ping_ticks")]
pub fn first_ping_ticks(index: u32, ping_ticks: u32) -> u32 {
    // Multiplication by the golden ratio lays consecutive slots evenly over the circle, and the first not at its beginning: a node with
    // few connections pings none of them at once.
    let phase = u64::from(index.wrapping_add(1).wrapping_mul(0x9E37_79B9));
    u32::try_from((phase * u64::from(ping_ticks)) >> 32).expect("below ping_ticks") + 1
}

const VACANT: u32 = u32::MAX;
/// The bit that is no part of the tick.
const SETTLED: u32 = 1 << 31;
/// The whole table once a second.
const STRIPES: usize = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timer(index: u32) -> Timer {
        Timer { index, generation: 0x00AB_CDEF, kind: 0x9A }
    }

    fn fired(wheel: &mut Wheel, now: u32, budget: usize) -> Vec<u32> {
        let mut fired = Vec::new();
        wheel.advance(now, budget, |timer| fired.push(timer.index));
        fired
    }

    /// The first and the last tick of each level, and one beyond the wheel, fire exactly on their tick, all parts of the name intact.
    #[test]
    fn each_level_fires_on_its_tick() {
        for start in [0, 77, u32::MAX - 100] {
            for distance in [1, 63, 64, 65, 4095, 4096, 4160, 262_143, 262_144, 300_000, SPAN - 1, SPAN, SPAN + 5000] {
                let mut wheel = Wheel::new(start);
                wheel.insert(timer(1), start.wrapping_add(distance));
                assert!(fired(&mut wheel, start.wrapping_add(distance - 1), 10).is_empty(), "{distance}");
                let mut names = Vec::new();
                wheel.advance(start.wrapping_add(distance), 10, |name| names.push(name));
                assert_eq!(names, [timer(1)], "{distance}");
                assert!(wheel.is_empty());
            }
        }
    }

    /// What the budget leaves fires next, before anything later; a deadline in the past fires at once.
    #[test]
    fn budget_delays_and_loses_nothing() {
        let mut wheel = Wheel::new(10);
        (0..5).for_each(|index| wheel.insert(timer(index), 12));
        wheel.insert(timer(5), 13);
        wheel.insert(timer(6), 3);
        assert_eq!(wheel.next(), Some(10));
        assert_eq!(fired(&mut wheel, 20, 3), [6, 0, 1]);
        assert_eq!(fired(&mut wheel, 20, 3), [2, 3, 4]);
        assert_eq!(fired(&mut wheel, 20, 3), [5]);
        assert_eq!(wheel.next(), None);
    }

    proptest! {
        /// Agrees with a plain list: after each step exactly those with a tick up to now have fired, each once, and `next` never
        /// lies beyond the earliest of the others.
        #[test]
        fn agrees_with_a_list(
            start in prop_oneof![Just(0_u32), any::<u32>()],
            steps in prop::collection::vec((0_u32..9000, prop::collection::vec(0_u32..20_000, 0..20), 1_usize..50), 1..40),
        ) {
            let mut wheel = Wheel::new(start);
            let mut model: Vec<(u32, u32)> = Vec::new();
            let (mut elapsed, mut names) = (0_u32, 0_u32);
            for (step, distances, budget) in steps {
                for distance in distances {
                    wheel.insert(timer(names), start.wrapping_add(elapsed + distance));
                    model.push((elapsed + distance, names));
                    names += 1;
                }
                if let Some(earliest) = model.iter().map(|&(at, _)| at).min() {
                    let next = wheel.next().unwrap().wrapping_sub(start);
                    prop_assert!(next <= earliest, "{} is beyond {}", next, earliest);
                }
                elapsed += step;
                let mut all = Vec::new();
                loop {
                    let some = fired(&mut wheel, start.wrapping_add(elapsed), budget);
                    prop_assert!(some.len() <= budget);
                    if some.is_empty() { break }
                    all.extend(some);
                }
                let mut expected: Vec<u32> = model.extract_if(.., |&mut (at, _)| at <= elapsed).map(|(_, name)| name).collect();
                all.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(all, expected);
                prop_assert_eq!(wheel.len(), model.len());
            }
        }
    }

    /// Within ten ticks each silent slot is reported once, a slot that spoke or is vacant never, and the budget only spreads it.
    #[test]
    fn silence_is_noticed_within_a_second() {
        for budget in [1, 7, 1000] {
            let mut liveness = Liveness::new(100, 100);
            (0..95).for_each(|index| liveness.touch(index, 0));
            (0..95).for_each(|index| liveness.settle(index));
            liveness.clear(40);
            (0..10).for_each(|index| liveness.touch(index, 90));
            let mut reported = Vec::new();
            for now in 101..=110 {
                liveness.scan(now, 100, budget, |index| reported.push(index));
            }
            for _ in 0..100 {
                liveness.scan(110, 100, budget, |index| reported.push(index));
            }
            reported.sort_unstable();
            assert_eq!(reported, (10..95).filter(|&index| index != 40).collect::<Vec<_>>(), "{budget}");
        }
    }

    /// One scan per tick reads a tenth of the slots.
    #[test]
    fn scan_is_striped() {
        let mut liveness = Liveness::new(1000, 0);
        (0..1000).for_each(|index| liveness.touch(index, 0));
        let mut count = 0;
        liveness.scan(1, 1, usize::MAX, |_| count += 1);
        assert_eq!(count, 100);
        liveness.scan(1, 1, usize::MAX, |_| count += 1);
        assert_eq!(count, 100);
        // After a long stop the whole table, once.
        liveness.scan(500, 1, usize::MAX, |_| count += 1);
        assert_eq!(count, 1100);
    }

    /// Whoever answers at once is asked once per interval, but for the first part of one: three intervals make two or three pings, and
    /// no tick has much more than its share, although all began at once. Across the wrap of the ticks, too.
    #[test]
    fn heartbeats_are_an_interval_apart() {
        for begun in [5, (1 << 31) - 150, u32::MAX - 150] {
            let (slots, interval) = (10_000_u32, 300);
            let mut liveness = Liveness::new(10_000, begun);
            (0..slots).for_each(|index| liveness.touch(index, begun));
            let (mut pings, mut busiest) = (vec![0_u32; 10_000], 0);
            for elapsed in 1..=3 * interval {
                let (now, mut asked) = (begun.wrapping_add(elapsed), Vec::new());
                liveness.scan(now, interval, usize::MAX, |index| asked.push(index));
                for &index in &asked {
                    pings[index as usize] += 1;
                    liveness.settle(index);
                    liveness.touch(index, now);
                }
                busiest = busiest.max(asked.len());
            }
            assert!(pings.iter().all(|count| (2..=3).contains(count)), "{begun}");
            assert!(busiest <= 70, "{busiest} of {slots} slots in one tick of {interval}");
            assert_eq!(liveness.silent(0, begun.wrapping_add(3 * interval)).map(|silent| silent < interval + 10), Some(true));
        }
    }

    /// A slot that is taken again begins anew.
    #[test]
    fn a_newcomer_has_a_first_ping_again() {
        let mut liveness = Liveness::new(1, 0);
        liveness.touch(0, 10);
        liveness.settle(0);
        assert_eq!(liveness.silent(0, 15), Some(5));
        liveness.clear(0);
        assert_eq!(liveness.silent(0, 15), None);
        liveness.settle(0);
        liveness.touch(0, 20);
        let first = first_ping_ticks(0, 300);
        let mut reported = |now| {
            let mut count = 0;
            liveness.scan(now, 300, 1, |_| count += 1);
            count
        };
        assert_eq!((reported(20 + first - 1), reported(20 + first), first < 300), (0, 1, true));
    }

    /// A hundred thousand connections of one moment ping evenly over thirty seconds: no tick is off by more than five of 333.
    #[test]
    fn first_pings_are_spread() {
        let mut per_tick = [0_u32; 301];
        (0..100_000).for_each(|index| per_tick[first_ping_ticks(index, 300) as usize] += 1);
        assert_eq!(per_tick[0], 0);
        assert!(per_tick[1..].iter().all(|count| (328..=338).contains(count)), "{per_tick:?}");
    }
}
