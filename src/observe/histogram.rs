//! Latency histograms: recorded by the thread that measures, carried to the admin thread, added up there.      [hdrhistogram]
//!
//! ```text
//!  owner: record ─► current ──┐ once a second, if a buffer came back        ┌──► totals since start (Prometheus buckets)
//!                             └─► full buffer ──────────► admin: collect ───┤
//!                    empty buffer ◄─────────────────────────────┘           └──► the last minute (quantiles)
//! ```
//!
//! Two buffers per thread travel to and fro, so recording allocates nothing and waits for nobody: if the admin thread is late, the
//! owner goes on recording into the buffer it has, and nothing is lost.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::clock::Moment;

/// What is measured. The order is that of a message's way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Stage {
    /// Socket accepted to watched by the driver; on a reactor.
    Accept,
    /// Connection accepted to 101 queued; on a reactor.
    Upgrade,
    /// Bytes lent by the driver to the messages in them submitted; on a reactor, one lend in [`PARSE_SAMPLED_EVERY`].
    Parse,
    /// SEND read by a reactor to its group committed; on the store thread.
    Commit,
    /// One write and sync of the log; on the store thread.
    Sync,
    /// Group committed to its deliveries queued for the socket; on a reactor.
    Delivery,
    /// Group committed to the end of the turn in which all it means to a core was offered to the kernel; on a reactor.
    Write,
    /// SEND read to SENT queued for the socket; on a reactor.
    Acknowledge,
}

impl Stage {
    /// Every stage, in the order of its index.
    pub const ALL: [Self; 8] =
        [Self::Accept, Self::Upgrade, Self::Parse, Self::Commit, Self::Sync, Self::Delivery, Self::Write, Self::Acknowledge];

    /// The label value.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Upgrade => "upgrade",
            Self::Parse => "parse",
            Self::Commit => "commit",
            Self::Sync => "sync",
            Self::Delivery => "delivery",
            Self::Write => "write",
            Self::Acknowledge => "acknowledge",
        }
    }
}

/// The measuring side of one reactor.
#[derive(Debug)]
pub struct ReactorHistograms(Owner<6>);

impl ReactorHistograms {
    /// Bytes of the counts of one reactor, which are there from the start.
    #[must_use]
    pub fn bytes() -> usize {
        BUFFERS * 6 * empty_histogram().distinct_values() * size_of::<u32>()
    }

    /// The two ends: one for the reactor, one for the admin thread.
    #[must_use]
    pub fn new() -> (Self, Source) {
        let (owner, source) =
            ends([Stage::Accept, Stage::Upgrade, Stage::Parse, Stage::Delivery, Stage::Write, Stage::Acknowledge]);
        (Self(owner), source)
    }

    /// A socket was watched this long after it was accepted.
    pub fn accepted(&mut self, latency: Duration) {
        self.0.record(0, latency);
    }

    /// An upgrade was answered this long after the accept.
    pub fn upgraded(&mut self, latency: Duration) {
        self.0.record(1, latency);
    }

    /// Messages were submitted this long after their bytes were lent.
    pub fn parsed(&mut self, latency: Duration) {
        self.0.record(2, latency);
    }

    /// Deliveries were queued this long after the commit of their group.
    pub fn delivered(&mut self, latency: Duration) {
        self.0.record(3, latency);
    }

    /// What a group meant was offered to the kernel this long after its commit.
    pub fn written(&mut self, latency: Duration) {
        self.0.record(4, latency);
    }

    /// A SENT was queued this long after its SEND was read.
    pub fn acknowledged(&mut self, latency: Duration) {
        self.0.record(5, latency);
    }

    /// Gives what was recorded to the admin thread, once a second at most. To be called every turn; cost: one comparison.
    pub fn publish(&mut self, now: Moment) {
        self.0.publish(now);
    }
}

/// The measuring side of the store thread.
#[derive(Debug)]
pub struct StoreHistograms(Owner<2>);

impl StoreHistograms {
    /// The two ends: one for the store thread, one for the admin thread.
    #[must_use]
    pub fn new() -> (Self, Source) {
        let (owner, source) = ends([Stage::Commit, Stage::Sync]);
        (Self(owner), source)
    }

    /// A message was committed this long after a reactor read it.
    pub fn committed(&mut self, latency: Duration) {
        self.0.record(0, latency);
    }

    /// One write and sync of the log took this long.
    pub fn synced(&mut self, latency: Duration) {
        self.0.record(1, latency);
    }

    /// Gives what was recorded to the admin thread, once a second at most. To be called every turn; cost: one comparison.
    pub fn publish(&mut self, now: Moment) {
        self.0.publish(now);
    }
}

/// The reading side of one thread's histograms.
#[derive(Debug)]
pub struct Source {
    full: Receiver<Buffer>,
    empty: SyncSender<Buffer>,
}

/// All stages of all threads, added up on the admin thread.
#[derive(Debug)]
pub struct Totals {
    sources: Vec<Source>,
    stages: [StageTotals; Stage::ALL.len()],
}

impl Totals {
    /// Nothing yet, from these threads.
    #[must_use]
    pub fn new(sources: Vec<Source>) -> Self {
        Self { sources, stages: std::array::from_fn(|_| StageTotals::new()) }
    }

    /// Takes what the threads have given since the last call. To be called once a second; what happened is then seen at most two
    /// seconds later.
    pub fn collect(&mut self, now: Moment) {
        for stage in &mut self.stages {
            stage.turn_slice(now);
        }
        for source in &self.sources {
            while let Ok(mut buffer) = source.full.try_recv() {
                for (stage, recorded) in &mut buffer {
                    self.stages[*stage as usize].add(recorded);
                    recorded.reset();
                }
                // The owner has ended when the lane is closed; its buffer ends with it.
                let _ = source.empty.try_send(buffer);
            }
        }
    }

    /// The stages that any thread measures, with what was added up.
    pub fn stages(&self) -> impl Iterator<Item = (Stage, &StageTotals)> {
        Stage::ALL.into_iter().zip(&self.stages)
    }
}

/// One stage of all threads.
#[derive(Debug)]
pub struct StageTotals {
    buckets: [u64; BUCKET_BOUNDS_US.len()],
    count: u64,
    sum_us: u64,
    slices: VecDeque<Histogram<u32>>,
    slice_begun: Moment,
}

impl StageTotals {
    fn new() -> Self {
        Self {
            buckets: [0; BUCKET_BOUNDS_US.len()],
            count: 0,
            sum_us: 0,
            slices: VecDeque::from([empty_histogram()]),
            slice_begun: Moment::default(),
        }
    }

    /// Values since the start of the process.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their sum in seconds, within 1 %.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "53 bits of microseconds are 285 years")]
    pub fn sum_s(&self) -> f64 {
        self.sum_us as f64 / 1e6
    }

    /// Upper bounds in seconds and how many values, since the start of the process, lie at or below each but above the one before.
    /// The last bound is infinite.
    #[expect(clippy::cast_precision_loss, reason = "bounds are small")]
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + Clone {
        let bound = |us: u64| if us == u64::MAX { f64::INFINITY } else { us as f64 / 1e6 };
        BUCKET_BOUNDS_US.into_iter().map(bound).zip(self.buckets)
    }

    /// The value in seconds below which the share `quantile` of the last minute lies, within 1 %; zero if nothing was recorded.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "at most 60 million microseconds")]
    pub fn quantile_s(&self, quantile: f64) -> f64 {
        let mut minute = empty_histogram();
        for slice in &self.slices {
            minute.add(slice).expect("all histograms have one shape");
        }
        minute.value_at_quantile(quantile) as f64 / 1e6
    }

    fn turn_slice(&mut self, now: Moment) {
        if now.since(self.slice_begun) < SLICE {
            return;
        }
        self.slice_begun = now;
        let mut fresh = if self.slices.len() == SLICES_MAX {
            self.slices.pop_front().expect("there are as many as may be")
        } else {
            empty_histogram()
        };
        fresh.reset();
        self.slices.push_back(fresh);
    }

    fn add(&mut self, recorded: &Histogram<u32>) {
        if recorded.is_empty() {
            return;
        }
        for value in recorded.iter_recorded() {
            let us = recorded.median_equivalent(value.value_iterated_to());
            let count = u64::from(value.count_at_value());
            let at = BUCKET_BOUNDS_US.iter().position(|&bound| us <= bound).expect("the last bound is infinite");
            self.buckets[at] += count;
            self.count += count;
            self.sum_us = self.sum_us.saturating_add(us.saturating_mul(count));
        }
        let slice = self.slices.back_mut().expect("there is always a slice");
        slice.add(recorded).expect("all histograms have one shape");
    }
}

type Buffer = Vec<(Stage, Histogram<u32>)>;

/// The recording end: the buffer being filled, and the two lanes of capacity 2 through which buffers travel.
#[derive(Debug)]
struct Owner<const N: usize> {
    current: Buffer,
    published: Moment,
    full: SyncSender<Buffer>,
    empty: Receiver<Buffer>,
}

impl<const N: usize> Owner<N> {
    fn record(&mut self, at: usize, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1);
        self.current[at].1.saturating_record(us);
    }

    fn publish(&mut self, now: Moment) {
        if now.since(self.published) < PUBLISH_EVERY || self.current.iter().all(|(_, recorded)| recorded.is_empty()) {
            return;
        }
        self.published = now;
        let Ok(spare) = self.empty.try_recv() else { return };
        let given = std::mem::replace(&mut self.current, spare);
        // There are as many places as buffers; the lane is closed only when the admin thread has ended, and then nobody asks.
        let _ = self.full.try_send(given);
    }
}

fn ends<const N: usize>(stages: [Stage; N]) -> (Owner<N>, Source) {
    let buffer = || stages.iter().map(|&stage| (stage, empty_histogram())).collect::<Buffer>();
    let (full_sender, full) = sync_channel(BUFFERS);
    let (empty, empty_receiver) = sync_channel(BUFFERS);
    empty.try_send(buffer()).expect("the lane is new and has room");
    let owner = Owner { current: buffer(), published: Moment::default(), full: full_sender, empty: empty_receiver };
    (owner, Source { full, empty })
}

/// One histogram: 1 us to 60 s, two significant digits, about 10 KiB. Later values count as 60 s.
fn empty_histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, VALUE_US_MAX, 2).expect("the bounds are fit for a histogram")
}

/// Longest latency told apart, in microseconds.
const VALUE_US_MAX: u64 = 60_000_000;
/// Buffers per thread: one is filled, one travels.
const BUFFERS: usize = 2;
/// Of so many lends of bytes one is measured: the two clock reads cost as much as parsing a short frame.
pub const PARSE_SAMPLED_EVERY: u32 = 16;
/// How often a thread gives its buffer away.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);
/// The minute that quantiles look back on, in slices.
const SLICE: Duration = Duration::from_secs(10);
const SLICES_MAX: usize = 6;
/// Upper bounds of the exposed buckets, in microseconds.
const BUCKET_BOUNDS_US: [u64; 20] = [
    50,
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    u64::MAX,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment { mono_ns: seconds * 1_000_000_000, unix_ms: 0 }
    }

    /// What two threads recorded is added up by stage; quantiles and buckets say so within 1 %.
    #[test]
    fn totals_add_up_what_threads_recorded() {
        let (mut one, first) = ReactorHistograms::new();
        let (mut two, second) = ReactorHistograms::new();
        let mut totals = Totals::new(vec![first, second]);
        for ms in 1..=50 {
            one.delivered(Duration::from_millis(ms));
            two.delivered(Duration::from_millis(50 + ms));
        }
        two.acknowledged(Duration::from_micros(70));
        one.publish(at(1));
        two.publish(at(1));
        totals.collect(at(2));
        let delivery = &totals.stages[Stage::Delivery as usize];
        assert_eq!(delivery.count(), 100);
        assert!((delivery.quantile_s(0.5) - 0.050).abs() < 0.001, "{}", delivery.quantile_s(0.5));
        assert!((delivery.quantile_s(0.99) - 0.099).abs() < 0.002, "{}", delivery.quantile_s(0.99));
        assert!((delivery.sum_s() - 5.05).abs() < 0.05, "{}", delivery.sum_s());
        let buckets: Vec<_> = delivery.buckets().filter(|&(_, count)| count > 0).collect();
        assert_eq!(buckets.iter().map(|&(_, count)| count).sum::<u64>(), 100);
        assert!(buckets.contains(&(0.1, 50)), "{buckets:?}");
        assert_eq!(totals.stages[Stage::Acknowledge as usize].buckets().find(|&(_, count)| count > 0), Some((0.0001, 1)));
    }

    /// A late admin thread costs nothing: values wait in the owner's buffer and arrive when a buffer comes back.
    #[test]
    fn nothing_is_lost_while_the_admin_thread_is_late() {
        let (mut owner, source) = StoreHistograms::new();
        let mut totals = Totals::new(vec![source]);
        for second in 1..=10 {
            owner.committed(Duration::from_millis(3));
            owner.publish(at(second));
        }
        totals.collect(at(11));
        owner.publish(at(12));
        totals.collect(at(13));
        assert_eq!(totals.stages[Stage::Commit as usize].count(), 10);
    }

    /// Values beyond the range count as its end instead of being lost.
    #[test]
    fn values_beyond_the_range_count_as_its_end() {
        let (mut owner, source) = StoreHistograms::new();
        let mut totals = Totals::new(vec![source]);
        owner.synced(Duration::ZERO);
        owner.synced(Duration::from_secs(3600));
        owner.publish(at(1));
        totals.collect(at(1));
        let sync = &totals.stages[Stage::Sync as usize];
        assert_eq!(sync.count(), 2);
        assert!((60.0..61.0).contains(&sync.quantile_s(1.0)));
    }

    /// Quantiles forget what is older than a minute; totals do not.
    #[test]
    fn quantiles_look_back_one_minute() {
        let (mut owner, source) = StoreHistograms::new();
        let mut totals = Totals::new(vec![source]);
        owner.synced(Duration::from_secs(1));
        owner.publish(at(1));
        for second in 1..=59 {
            totals.collect(at(second));
        }
        assert!(totals.stages[Stage::Sync as usize].quantile_s(0.5) > 0.9);
        for second in 60..=80 {
            totals.collect(at(second));
        }
        let sync = &totals.stages[Stage::Sync as usize];
        assert!(sync.quantile_s(0.5) < 1e-9);
        assert_eq!(sync.count(), 1);
    }
}
