//! The store of a process without threads: the sequencer over the simulated disk, readers, the projector and an engine in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use tidegate::clock::Moment;
use tidegate::ids::ReactorId;
use tidegate::mail::{Group, Submit};
use tidegate::observe::trace::Sampling;
use tidegate::store::disk::SpaceRule;
use tidegate::store::engine_memory::MemoryEngine;
use tidegate::store::history::History;
use tidegate::store::job::{Answer, Job, JobFault, Loaded, Progress, Projection};
use tidegate::store::level::Levels;
use tidegate::store::log::{Log, LogError, LogSettings};
use tidegate::store::reader::{Reply, reply};
use tidegate::store::record;
use tidegate::store::recovery::Cold;
use tidegate::store::rows::Rows;
use tidegate::store::schema::Hashes;
use tidegate::store::sequencer::{Policy, Ports, Sequencer, Settings};

use crate::cores::Lanes;
use crate::disk::SimDisk;
use crate::plan::Plan;
use crate::random::Random;
use crate::{MS, SECOND};

pub struct Store {
    pub sequencer: Sequencer<SimDisk>,
    disk: SimDisk,
    pub engine: MemoryEngine,
    progress: Arc<Progress>,
    hashes: Hashes,
    pub answers: VecDeque<Answer>,
    /// With the time from which each may be seen.
    jobs: VecDeque<(u64, Job)>,
    jobs_max: usize,
    /// With the time from which each may be seen: its group is synced then.
    projections: VecDeque<(u64, Projection)>,
    projections_max: usize,
    random: Random,
    checkpoint_ppm: u64,
    /// When each thread's next turn is.
    pub due: u64,
    pub readers_due: u64,
    pub projector_due: u64,
    /// For which of these times a happening is on its way.
    pub readers_pushed: u64,
    pub projector_pushed: u64,
}

/// The engine while the log is replayed.
struct Bare<'a> {
    engine: &'a mut MemoryEngine,
    hashes: Hashes,
    progress: &'a Progress,
}

impl Cold for Bare<'_> {
    fn load(&mut self, conv: &str) -> Result<Option<Loaded>, JobFault> {
        History::new(&*self.engine, self.hashes).map_err(|_| JobFault::Engine)?.load(conv)
    }

    fn meta(&mut self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, JobFault> {
        History::new(&*self.engine, self.hashes).map_err(|_| JobFault::Engine)?.meta(prefix)
    }

    fn project(&mut self, projection: Projection) {
        self.engine.write(projection.batch);
        self.progress.handed_over(0);
        self.progress.written(projection.number, 0);
    }
}

impl Store {
    /// Opens what a crash left.
    ///
    /// # Errors
    /// What the operator would read.
    pub fn open(disk: SimDisk, mut engine: MemoryEngine, plan: &Plan, random: Random) -> Result<Self, String> {
        let position = (&engine).position().map_err(|error| error.to_string())?;
        let log = LogSettings { segment_bytes: plan.segment_bytes, accept_loss: false, projected: position.group };
        let (log, recovered) = Log::open(disk.clone(), log).map_err(|error| error.to_string())?;
        if recovered.lost.is_some() {
            return Err("the log lost groups".to_owned());
        }
        let store = identity(plan);
        let hashes = Hashes::new(store.hash_key);
        let progress = Arc::new(Progress::new(position.group));
        let settings = Settings {
            levels: Levels::all(2),
            hellos_per_minute: 0,
            sampling: Sampling { every: 0 },
            space: SpaceRule { free_bytes_min: 1 << 20, free_percent_min: 1 },
            cores: plan.cores,
            policy: Policy::default(),
            started_ms: 0,
        };
        let mut cold = Bare { engine: &mut engine, hashes, progress: &progress };
        let sequencer = Sequencer::recover(log, &recovered, (&store, &position), settings, progress.clone(), &mut cold);
        let mut sequencer = sequencer.map_err(|error| error.to_string())?;
        sequencer.limit_parking(plan.parked_max);
        Ok(Self {
            sequencer,
            disk,
            engine,
            progress,
            hashes,
            answers: VecDeque::new(),
            jobs: VecDeque::new(),
            jobs_max: plan.jobs_max,
            projections: VecDeque::new(),
            projections_max: plan.projections_max,
            random,
            checkpoint_ppm: plan.checkpoint_ppm,
            due: 0,
            readers_due: u64::MAX,
            projector_due: u64::MAX,
            readers_pushed: 0,
            projector_pushed: 0,
        })
    }

    /// One turn of the store thread. Returns how long it took, whether it goes on at once, and how long it sleeps otherwise.
    ///
    /// # Errors
    /// The log's: the process ends.
    pub fn turn(&mut self, now: u64, clock: impl Fn(u64) -> Moment, lanes: &mut Lanes) -> Result<(u64, bool, u64), LogError> {
        self.disk.begin_turn(now);
        let mut doors = Doors {
            disk: &self.disk,
            clock: &clock,
            lanes,
            answers: &mut self.answers,
            jobs: &mut self.jobs,
            jobs_max: self.jobs_max,
            projections: &mut self.projections,
            projections_max: self.projections_max,
        };
        let turn = self.sequencer.turn(&mut doors);
        let took = self.disk.thread_ns() - now;
        if !self.jobs.is_empty() && self.readers_due == u64::MAX {
            self.readers_due = now + took + self.random.spread(100_000);
        }
        if !self.projections.is_empty() && self.projector_due == u64::MAX {
            self.projector_due = now + took + self.random.spread(MS);
        }
        let turn = turn?;
        Ok((took, turn.is_busy, u64::try_from(turn.wake_in.as_nanos()).expect("seconds")))
    }

    /// The bounds are what the plan says now.
    pub fn widen(&mut self, plan: &Plan) {
        self.jobs_max = plan.jobs_max;
        self.sequencer.limit_parking(plan.parked_max);
    }

    /// Writes what rides, for a clean end.
    ///
    /// # Errors
    /// The log's.
    pub fn finish(&mut self, now: u64, clock: impl Fn(u64) -> Moment, lanes: &mut Lanes) -> Result<(), LogError> {
        // Its last turn may not be over.
        self.disk.begin_turn(now.max(self.disk.thread_ns()));
        let mut doors = Doors {
            disk: &self.disk,
            clock: &clock,
            lanes,
            answers: &mut self.answers,
            jobs: &mut self.jobs,
            jobs_max: self.jobs_max,
            projections: &mut self.projections,
            projections_max: usize::MAX,
        };
        self.sequencer.finish(&mut doors)
    }

    /// One of the readers takes a job: any of those that wait, for there are several readers.
    pub fn read(&mut self, now: u64, now_s: u64, lanes: &mut Lanes) {
        let place = self.random.index(self.jobs.len().min(2));
        let (at, job) = &self.jobs[place];
        let is_there = self.progress.projected() >= job.after();
        if *at > now || (!is_there && at + PATIENCE_NS > now) {
            self.readers_due = (now + MS).max(*at);
            return;
        }
        let (_, job) = self.jobs.remove(place).expect("just looked at");
        let history =
            if is_there { History::new(&self.engine, self.hashes).map_err(|_| JobFault::Engine) } else { Err(JobFault::Engine) };
        match reply(history, job, now_s) {
            Reply::Page(page) => {
                let core = usize::from(page.session.reactor.0);
                lanes.page[core].push_back(page);
                lanes.woken_cores.push(core);
            }
            Reply::Look(to, result) => drop(to.try_send(result)),
            Reply::Answer(answer) => {
                self.answers.push_back(answer);
                lanes.woken_store = true;
            }
        }
        self.readers_due = if self.jobs.is_empty() { u64::MAX } else { now + self.random.spread(200_000) };
    }

    /// The projector writes one group, and sometimes makes a checkpoint.
    pub fn project(&mut self, now: u64) {
        let Some((at, projection)) = self.projections.pop_front() else {
            self.projector_due = u64::MAX;
            return;
        };
        if at > now {
            self.projections.push_front((at, projection));
            self.projector_due = at;
            return;
        }
        let bytes = projection.batch.len_bytes() as u64;
        self.engine.write(projection.batch);
        self.progress.written(projection.number, bytes);
        let mut took = self.random.spread(MS / 2);
        if self.random.chance(self.checkpoint_ppm) {
            let position = self.engine.checkpoint();
            self.progress.checkpoint(position.group);
            took += self.random.spread(20 * MS);
        }
        self.projector_due = if self.projections.is_empty() { u64::MAX } else { now + took };
    }

    /// Whether every row is in the engine and nobody waits.
    pub fn is_quiet(&self) -> bool {
        self.projections.is_empty() && self.jobs.is_empty() && self.answers.is_empty() && self.sequencer.is_drained()
    }

    pub fn hashes(&self) -> Hashes {
        self.hashes
    }
}

pub fn identity(plan: &Plan) -> record::Store {
    record::Store { shard: 0, shards: 1, dedup_s: plan.dedup_s, hash_key: [7; 16] }
}

/// How long a reader waits for the projector.
const PATIENCE_NS: u64 = 5 * SECOND;

/// The lanes as the sequencer uses them.
struct Doors<'a, C> {
    disk: &'a SimDisk,
    clock: &'a C,
    lanes: &'a mut Lanes,
    answers: &'a mut VecDeque<Answer>,
    jobs: &'a mut VecDeque<(u64, Job)>,
    jobs_max: usize,
    projections: &'a mut VecDeque<(u64, Projection)>,
    projections_max: usize,
}

impl<C: Fn(u64) -> Moment> Ports for Doors<'_, C> {
    fn now(&self) -> Moment {
        (self.clock)(self.disk.thread_ns())
    }

    fn next_submit(&mut self) -> Option<Submit> {
        self.lanes.submit.pop_front()
    }

    fn next_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }

    fn send_group(&mut self, reactor: ReactorId, group: Group) -> Result<(), Group> {
        let core = usize::from(reactor.0);
        self.lanes.woken_cores.push(core);
        if self.lanes.group[core].len() >= self.lanes.group_max {
            return Err(group);
        }
        self.lanes.group[core].push_back((self.disk.thread_ns(), group));
        Ok(())
    }

    fn send_job(&mut self, job: Job) -> bool {
        if self.jobs.len() >= self.jobs_max {
            return false;
        }
        self.jobs.push_back((self.disk.thread_ns(), job));
        true
    }

    fn send_projection(&mut self, projection: Projection) -> Result<(), Projection> {
        if self.projections.len() >= self.projections_max {
            return Err(projection);
        }
        self.projections.push_back((self.disk.thread_ns(), projection));
        Ok(())
    }

    fn give_back(&mut self, bytes: u64) {
        self.lanes.credit += bytes;
    }
}
