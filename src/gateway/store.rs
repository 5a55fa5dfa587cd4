//! The store side: its threads, the lanes into them, and a store whose gateway does not run.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{EndGuard, Fatal, Occurrence, spawn};
use crate::clock::Clock;
use crate::config::settings::PLATFORMS;
use crate::config::value::{PresencePolicy, RoleChoice};
use crate::config::{Exit, Settings};
use crate::ids::{Mid, Role};
use crate::io::wake::Waker;
use crate::limits;
use crate::mail::{Group, Submit};
use crate::mailbox::{self, Credit, LaneReceiver, LaneSender, SpareSender, lane, spares};
use crate::observe::counters::StoreBlock;
use crate::observe::histogram::{self, StoreHistograms};
use crate::observe::trace::Sampling;
use crate::store::apply::Senders;
use crate::store::disk::SpaceRule;
use crate::store::disk_real::RealDisk;
use crate::store::engine::{Engine, EngineError, View};
use crate::store::history::History;
use crate::store::job::{Job, JobFault, Loaded, Progress, Projection};
use crate::store::keeper;
use crate::store::level::Levels;
use crate::store::log::{Log, LogError, LogSettings, OpenError, Recovered};
use crate::store::projector::{self, Checkpoints};
use crate::store::reader::{self, Answers};
use crate::store::record;
use crate::store::recovery::Cold;
use crate::store::retention::{Bounds, Keep};
use crate::store::schema::{Batch, Hashes};
use crate::store::sequencer::{self, Policy, Sequencer};
use crate::store::thread::{self, Lanes};

/// The store side: threads, and the lanes into them.
pub(super) struct Store {
    pub(super) submit: LaneSender<Submit>,
    pub(super) spare_groups: SpareSender<Group>,
    pub(super) credit: Credit,
    pub(super) block: Arc<StoreBlock>,
    pub(super) hash_key: [u8; 16],
    pub(super) dedup_s: u32,
    stop: Arc<AtomicBool>,
    waker: Waker,
    ended: Receiver<Result<(), LogError>>,
    projector: JoinHandle<()>,
}

impl Store {
    pub(super) fn start(
        settings: &Settings,
        accept_loss: bool,
        clock: Clock,
        posts: &[mailbox::Post],
        events: &mpsc::Sender<Occurrence>,
    ) -> Result<(Self, histogram::Source), Fatal> {
        let dir = &settings.data_dir;
        let engine = open_engine(dir, settings)?;
        let store = engine.store().map_err(storage)?.expect("made when it was opened");
        let position = engine.position().map_err(storage)?;
        let (log, recovered) = open_log(settings, accept_loss, &position)?;
        if recovered.lost.is_some() {
            engine.fall_back().map_err(storage)?;
        }
        if let Some((segment, offset)) = &recovered.torn {
            tracing::info!(segment, offset, "cut off an unfinished commit group that nobody was promised");
        }
        if let Some((first, last)) = recovered.lost {
            tracing::warn!(first, last, "commit groups were given up; clients resynchronise");
        }
        let progress = Arc::new(Progress::new(position.group));
        let hashes = Hashes::new(store.hash_key);
        let begun = Instant::now();
        let log_bytes = log.bytes();
        let mut cold =
            Bare { engine: &engine, hashes, progress: &progress, spill_bytes: settings.store.segment_bytes, failed: None };
        let how = store_settings(settings, posts.len(), clock);
        let sequencer = Sequencer::recover(log, &recovered, (&store, &position), how, progress.clone(), &mut cold);
        if let Some(error) = cold.failed {
            return Err(storage(error));
        }
        let sequencer = sequencer.map_err(|error| Fatal::new(Exit::LogCorrupt, error))?;
        engine.catch_up();
        let groups = progress.projected() - position.group;
        tracing::info!(groups, took_ms = begun.elapsed().as_millis(), "replayed the log");
        let checkpoints = Checkpoints { flush_bytes: settings.store.segment_bytes };
        flush_what_piled_up(&engine, log_bytes, checkpoints.flush_bytes, &progress)?;
        progress.engine_holds(engine.cache_bytes(), engine.tables_bytes());

        let waker = Waker::for_thread();
        let (submit, submits) = lane(limits::SUBMIT_LANE_MAX, &waker);
        let (answer, answers) = lane(limits::JOB_LANE_MAX, &waker);
        let (project, projections) = lane(PROJECT_LANE_MAX, &Waker::for_thread());
        let mut jobs = Vec::new();
        let to = Answers { store: answer, pages: posts.iter().map(|post| post.page.clone()).collect() };
        for number in 0..settings.store.readers {
            let (job, lane) = lane(limits::JOB_LANE_MAX, &Waker::for_thread());
            jobs.push(job);
            spawn_reader(number, engine.clone(), hashes, lane, progress.clone(), clock, to.clone())?;
        }
        let (spare_groups_in, spare_groups) = spares(limits::SPARE_GROUPS.part(posts.len()) * posts.len());
        let (spare_batches_in, spare_batches) = spares(limits::SPARE_BATCHES_MAX);
        let copies = engine.clone();
        let projector = spawn_projector(engine, projections, progress, spare_batches_in, checkpoints, events.clone())?;
        let stop = Arc::new(AtomicBool::new(false));
        let block = Arc::new(StoreBlock::default());
        let (histograms, source) = StoreHistograms::new();
        let credit = Credit::new(settings.limits.submit_bytes_max);
        let lanes = Lanes {
            submit: submits,
            answer: answers,
            group: posts.iter().map(|post| post.group.clone()).collect(),
            job: jobs,
            project,
            spare_groups,
            spare_batches,
            credit: credit.clone(),
            clock,
            waker: waker.clone(),
            stop: stop.clone(),
            block: block.clone(),
            histograms,
        };
        let ended = spawn_store(sequencer, lanes, events.clone())?;
        spawn_keeper(dir, copies, submit.clone())?;
        let store = Self {
            submit,
            spare_groups: spare_groups_in,
            credit,
            block,
            hash_key: store.hash_key,
            dedup_s: store.dedup_s,
            stop,
            waker,
            ended,
            projector,
        };
        Ok((store, source))
    }

    /// Writes what rides, makes a checkpoint, ends the threads.
    pub(super) fn finish(self) -> Result<(), Fatal> {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        let ended = self.ended.recv_timeout(FINISH_PATIENCE);
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Fatal::new(Exit::StorageFailed, error)),
            Err(_) => return Err(Fatal::new(Exit::Failed, "the store did not finish in time; the next start replays the log")),
        }
        if self.projector.join().is_err() {
            return Err(Fatal::new(Exit::Failed, "the projector panicked; the next start replays the log"));
        }
        Ok(())
    }
}

/// Flushes the engine before anything else, if lives too short for a checkpoint, or a long replay, left more than two checkpoints' worth
/// of rows in memory, or more of the log than checkpoints leave. Were that only begun and cut off by the next kill, the time to start and
/// the room on disk would grow without end.
fn flush_what_piled_up(engine: &Engine, log_bytes: u64, flush_bytes: u64, progress: &Progress) -> Result<(), Fatal> {
    let bytes = engine.tables_bytes();
    if bytes < flush_bytes.saturating_mul(2) && log_bytes <= flush_bytes.saturating_mul(LOG_SEGMENTS_USUAL) {
        return Ok(());
    }
    let begun = Instant::now();
    let position = engine.checkpoint().map_err(storage)?;
    progress.checkpoint(position.group);
    tracing::info!(bytes, log_bytes, took_ms = begun.elapsed().as_millis(), "flushed rows that earlier runs had not");
    Ok(())
}

/// Gives a view of a store whose gateway does not run to `look`: brought up to the end of its log first, as a start would.
///
/// # Errors
/// [`Fatal`]; above all when another process has the data directory.
pub fn at_rest<T>(settings: &Settings, look: impl FnOnce(View<'_>) -> T) -> Result<T, Fatal> {
    let dir = &settings.data_dir;
    if !dir.join("engine").exists() {
        return Err(Fatal::new(Exit::Failed, format!("data_dir {} holds no store: name the one of the gateway", dir.display())));
    }
    let engine = open_engine(dir, settings)?;
    let store = engine.store().map_err(storage)?.expect("made when it was opened");
    let position = engine.position().map_err(storage)?;
    let (log, recovered) = open_log(settings, false, &position)?;
    let progress = Arc::new(Progress::new(position.group));
    let hashes = Hashes::new(store.hash_key);
    let mut cold = Bare { engine: &engine, hashes, progress: &progress, spill_bytes: settings.store.segment_bytes, failed: None };
    let how = store_settings(settings, 0, Clock::new());
    let sequencer = Sequencer::recover(log, &recovered, (&store, &position), how, progress.clone(), &mut cold);
    if let Some(error) = cold.failed {
        return Err(storage(error));
    }
    drop(sequencer.map_err(|error| Fatal::new(Exit::LogCorrupt, error))?);
    engine.catch_up();
    let looked = look(engine.view());
    engine.checkpoint().map_err(storage)?;
    Ok(looked)
}

fn open_log(settings: &Settings, accept_loss: bool, position: &record::Position) -> Result<(Log<RealDisk>, Recovered), Fatal> {
    let dir = settings.data_dir.join("log");
    let disk = RealDisk::new(&dir).map_err(|error| Fatal::new(Exit::Failed, format!("data_dir: {error}")))?;
    let log = LogSettings { segment_bytes: settings.store.segment_bytes, accept_loss, projected: position.group };
    Log::open(disk, log).map_err(|error| match &error {
        OpenError::Corrupt(_) => Fatal::new(Exit::LogCorrupt, error),
        OpenError::Io(_) => Fatal::new(Exit::Failed, error),
    })
}

fn store_settings(settings: &Settings, cores: usize, clock: Clock) -> sequencer::Settings {
    sequencer::Settings {
        levels: levels(settings),
        hellos_per_minute: u32::from(settings.protocol.hello_per_minute),
        sampling: Sampling { every: settings.log.trace_every },
        space: SpaceRule { free_bytes_min: settings.store.free_bytes_min, free_percent_min: settings.store.free_percent_min },
        cores,
        policy: policy(settings),
        started_ms: clock.now().unix_ms,
    }
}

/// Opens the engine; a new one gets its identity.
fn open_engine(dir: &Path, settings: &Settings) -> Result<Engine, Fatal> {
    std::fs::create_dir_all(dir).map_err(|error| Fatal::new(Exit::Failed, format!("data_dir {}: {error}", dir.display())))?;
    let engine =
        Engine::open(&dir.join("engine"), settings.store.cache_bytes.unwrap_or(limits::CACHE_BYTES_MAX)).map_err(storage)?;
    if engine.store().map_err(storage)?.is_none() {
        let mut hash_key = [0; 16];
        getrandom::fill(&mut hash_key).map_err(|error| Fatal::new(Exit::Failed, format!("drawing random bytes: {error}")))?;
        let store = record::Store { shard: 0, shards: 1, dedup_s: settings.protocol.dedup_s, hash_key };
        let position = record::Position { group: 0, changed: Mid(0).0, epoch: 1, epoch_changed: 0 };
        engine.create(&store, &position).map_err(storage)?;
    }
    Ok(engine)
}

/// The engine during recovery, when nothing else uses it.
struct Bare<'a> {
    engine: &'a Engine,
    hashes: Hashes,
    progress: &'a Progress,
    /// A long replay puts rows into tables whenever it has four times as much in memory.
    spill_bytes: u64,
    failed: Option<EngineError>,
}

impl Cold for Bare<'_> {
    fn load(&mut self, conv: &str) -> Result<Option<Loaded>, JobFault> {
        History::new(self.engine.view(), self.hashes).map_err(|_| JobFault::Engine)?.load(conv)
    }

    fn meta(&mut self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, JobFault> {
        History::new(self.engine.view(), self.hashes).map_err(|_| JobFault::Engine)?.meta(prefix)
    }

    fn project(&mut self, mut projection: Projection) {
        let is_much = self.engine.tables_bytes() > self.spill_bytes.saturating_mul(4);
        let room = if is_much { self.engine.spill() } else { Ok(()) };
        match room.and_then(|()| self.engine.write(&mut projection.batch)) {
            Ok(()) => {
                self.progress.handed_over(0);
                self.progress.written(projection.number, 0);
            }
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
    }
}

fn spawn_reader(
    number: u16,
    engine: Engine,
    hashes: Hashes,
    jobs: LaneReceiver<Job>,
    progress: Arc<Progress>,
    clock: Clock,
    answers: Answers,
) -> Result<(), Fatal> {
    spawn(&format!("reader-{number}"), move || reader::run(&engine, hashes, &jobs, &progress, clock, &answers)).map(drop)
}

/// Without its socket the gateway runs as well; only nobody can copy what it holds.
fn spawn_keeper(dir: &Path, engine: Engine, submit: LaneSender<Submit>) -> Result<(), Fatal> {
    match keeper::listen(dir) {
        Ok(listener) => spawn("keeper", move || keeper::run(&listener, &keeper::Source { engine, submit })).map(drop),
        Err(error) => {
            tracing::warn!(%error, "no socket for copies in the data directory: no backup while this gateway runs");
            Ok(())
        }
    }
}

fn spawn_projector(
    engine: Engine,
    groups: LaneReceiver<Projection>,
    progress: Arc<Progress>,
    spares: SpareSender<Batch>,
    checkpoints: Checkpoints,
    events: mpsc::Sender<Occurrence>,
) -> Result<JoinHandle<()>, Fatal> {
    spawn("projector", move || {
        let guard = EndGuard { events: events.clone(), armed: true };
        let result = projector::run(&engine, &groups, &progress, &spares, checkpoints);
        guard.disarm();
        if let Err(error) = result {
            drop(events.send(Occurrence::Fatal(storage(error))));
        }
    })
}

fn spawn_store(
    sequencer: Sequencer<RealDisk>,
    lanes: Lanes,
    events: mpsc::Sender<Occurrence>,
) -> Result<Receiver<Result<(), LogError>>, Fatal> {
    let handle =
        thread::spawn(sequencer, lanes).map_err(|error| Fatal::new(Exit::Failed, format!("starting the store: {error}")))?;
    let (ended_in, ended) = mpsc::sync_channel(1);
    spawn("store-watch", move || {
        let result = handle.join();
        match result {
            Ok(Ok(())) => drop(ended_in.send(Ok(()))),
            Ok(Err(error)) => {
                let reason =
                    format!("{error}. Nothing more can be acknowledged; what was acknowledged is on disk. Look at the disk");
                drop(events.send(Occurrence::Fatal(Fatal::new(Exit::StorageFailed, reason))));
                drop(ended_in.send(Err(error)));
            }
            Err(_) => drop(events.send(Occurrence::Fatal(Fatal::new(Exit::Failed, "the store panicked; see the log above")))),
        }
    })?;
    Ok(ended)
}

fn storage(error: EngineError) -> Fatal {
    let exit = match error {
        EngineError::Locked => Exit::DataDirLocked,
        EngineError::Older | EngineError::Failed { .. } => Exit::StorageFailed,
    };
    Fatal::new(exit, error)
}

pub(super) fn levels(settings: &Settings) -> Levels {
    let store = &settings.store;
    let level = |class: Option<u8>| class.unwrap_or(store.level);
    Levels { direct: level(store.level_direct), group: level(store.level_group), channel: level(store.level_channel) }
}

fn keep(settings: &Settings) -> Keep {
    let retention = &settings.retention;
    let bounds = |age_s: Option<u64>, count: Option<u64>| Bounds {
        age_s: age_s.unwrap_or(retention.age_s),
        count: count.unwrap_or(retention.count),
    };
    Keep {
        direct: bounds(retention.age_s_direct, retention.count_direct),
        group: bounds(retention.age_s_group, retention.count_group),
        channel: bounds(retention.age_s_channel, retention.count_channel),
        system: bounds(retention.age_s_system, retention.count_system),
        every: Duration::from_secs(u64::from(retention.every_s)),
    }
}

fn policy(settings: &Settings) -> Policy {
    Policy {
        receipt_members_max: settings.state.receipt_members_max as usize,
        presence_for_all: settings.state.presence == PresencePolicy::All,
        senders: Senders { group: role(settings.groups.senders), channel: role(settings.groups.channel_senders) },
        notice_only_above: settings.groups.notice_only_above as usize,
        devices_max: usize::from(settings.login.devices_max),
        one_per_class: (0..).zip(PLATFORMS).fold(0, |bits, (number, platform)| {
            let named = settings.login.one_per_class.iter().any(|name| name == platform);
            bits | u8::from(named) << number
        }),
        keep: keep(settings),
    }
}

fn role(choice: RoleChoice) -> Role {
    match choice {
        RoleChoice::Member => Role::Member,
        RoleChoice::Admin => Role::Admin,
        RoleChoice::Owner => Role::Owner,
    }
}

/// Groups between store and projector; the bytes are bounded by the store.
const PROJECT_LANE_MAX: usize = 4_096;
/// Segments of the log that there are at most while checkpoints come to their end: the one being written, those a checkpoint under way
/// is for, and those filled meanwhile.
const LOG_SEGMENTS_USUAL: u64 = 5;
/// How long the store may take to finish.
const FINISH_PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    /// The settings of each class reach that class and no other; one that is absent is as the common one.
    #[test]
    fn each_class_has_the_bounds_that_are_set_for_it() {
        let mut settings = Settings::default();
        let retention = &mut settings.retention;
        (retention.age_s, retention.count, retention.every_s) = (1, 2, 3);
        let common = Bounds { age_s: 1, count: 2 };
        let same = keep(&settings);
        assert_eq!([same.direct, same.group, same.channel, same.system], [common; 4]);
        assert_eq!(same.every, Duration::from_secs(3));
        let retention = &mut settings.retention;
        (retention.age_s_direct, retention.count_direct) = (Some(10), Some(11));
        (retention.age_s_group, retention.count_group) = (Some(20), Some(21));
        (retention.age_s_channel, retention.count_channel) = (Some(30), Some(31));
        (retention.age_s_system, retention.count_system) = (Some(0), Some(41));
        let keep = keep(&settings);
        for (conv, age_s, count) in [("d:al:bo", 10, 11), ("g:x", 20, 21), ("c:x", 30, 31), ("s:al", 0, 41)] {
            assert_eq!(keep.of(conv), Bounds { age_s, count }, "{conv}");
        }
    }

    /// Each class of platform that is named has the bit of its number in HELLO.
    #[test]
    fn each_class_of_platform_has_its_own_bit() {
        let bits = |names: &[&str]| {
            let mut settings = Settings::default();
            settings.login.one_per_class = names.iter().map(|&name| name.to_owned()).collect();
            policy(&settings).one_per_class
        };
        let named = ["other", "web", "desktop", "phone", "tablet", "bot"];
        for (number, name) in named.into_iter().enumerate() {
            assert_eq!(bits(&[name]), 1 << number, "{name}");
        }
        assert_eq!((bits(&[]), bits(&named)), (0, 0b11_1111));
    }
}
