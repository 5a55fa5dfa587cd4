//! The persistence thread: turns of the [`Sequencer`], and sleep in between.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::disk::Disk;
use super::job::{Answer, Job, Projection};
use super::log::LogError;
use super::schema::Batch;
use super::sequencer::{Ports, Sequencer};
use crate::address::Shown;
use crate::clock::{Clock, Moment};
use crate::ids::ReactorId;
use crate::io::wake::Waker;
use crate::limits::COMMIT_EVERY;
use crate::mail::{Group, ShedReader, Submit};
use crate::mailbox::{Credit, LaneReceiver, LaneSender, SpareReceiver};
use crate::observe::counters::StoreBlock;
use crate::observe::histogram::StoreHistograms;
use crate::observe::trace;

/// The ends of all lanes that the store thread holds.
#[derive(Debug)]
pub struct Lanes {
    /// From reactors and admin.
    pub submit: LaneReceiver<Submit>,
    /// From the readers.
    pub answer: LaneReceiver<Answer>,
    /// To each reactor, by its number.
    pub group: Vec<LaneSender<Group>>,
    /// To each reader.
    pub job: Vec<LaneSender<Job>>,
    /// To the projector.
    pub project: LaneSender<Projection>,
    /// Emptied groups, from every reactor.
    pub spare_groups: SpareReceiver<Group>,
    /// Emptied batches, from the projector.
    pub spare_batches: SpareReceiver<Batch>,
    /// What submissions take of memory.
    pub credit: Credit,
    /// The clocks of the process.
    pub clock: Clock,
    /// Ends the sleep of this thread; `submit` and `answer` were made with it.
    pub waker: Waker,
    /// Set, then `waker` woken: write what rides, and end.
    pub stop: Arc<AtomicBool>,
    /// Where the counters are published.
    pub block: Arc<StoreBlock>,
    /// Where the latencies are published.
    pub histograms: StoreHistograms,
}

/// Starts the thread. It ends with `Ok` after [`Lanes::stop`], and with the error of the log as soon as there is one: nothing can be
/// acknowledged any more, and the process ends with the exit code for it.
///
/// # Errors
/// The kernel's, if no thread can be started.
pub fn spawn<D>(mut sequencer: Sequencer<D>, lanes: Lanes) -> io::Result<JoinHandle<Result<(), LogError>>>
where
    D: Disk + Send + 'static,
    D::File: Send,
{
    std::thread::Builder::new().name("store".to_owned()).spawn(move || {
        let ended = run(&mut sequencer, lanes);
        if ended.is_err() {
            // Letting go of the log waits for the zeros of its next segment, and a disk that fails may take long over them.
            std::mem::forget(sequencer);
        }
        ended
    })
}

/// The thread itself.
fn run<D: Disk>(sequencer: &mut Sequencer<D>, lanes: Lanes) -> Result<(), LogError> {
    #[cfg(debug_assertions)]
    if std::env::var_os(EARLY_ACKNOWLEDGEMENT).is_some() {
        sequencer.plant_early_acknowledgement(EARLY_BY);
    }
    let mut doors = Doors { lanes, next_reader: 0 };
    let mut was_read_only = false;
    loop {
        let begun = doors.lanes.clock.now();
        let turn = sequencer.turn(&mut doors)?;
        doors.lanes.publish(sequencer);
        was_read_only = tell_space(sequencer.space(), was_read_only);
        if turn.has_committed {
            // Whoever comes meanwhile shares the next group.
            std::thread::sleep(COMMIT_EVERY.saturating_sub(doors.lanes.clock.now().since(begun)));
        }
        if turn.is_busy {
            continue;
        }
        if doors.lanes.stop.load(Ordering::Acquire) && doors.lanes.is_empty() {
            return finish(sequencer, &mut doors);
        }
        doors.lanes.waker.park(turn.wake_in, || doors.lanes.is_empty() && !doors.lanes.stop.load(Ordering::Acquire));
    }
}

/// Logs that messages are refused for want of space, or are taken again; whether they are refused.
fn tell_space((is_read_only, free_bytes): (bool, u64), was_read_only: bool) -> bool {
    if is_read_only && !was_read_only {
        tracing::error!(
            free_bytes,
            "messages are refused with 5003: the disk has less free space than store.free_bytes_min or store.free_percent_min; free space"
        );
    } else if !is_read_only && was_read_only {
        tracing::info!(free_bytes, "the disk has space again: messages are taken");
    }
    is_read_only
}

/// Writes what rides, and gives the receivers a moment to take what is theirs.
fn finish<D: Disk>(sequencer: &mut Sequencer<D>, doors: &mut Doors) -> Result<(), LogError> {
    sequencer.finish(doors)?;
    for _ in 0..FINISH_TURNS_MAX {
        if sequencer.is_drained() && doors.lanes.is_empty() {
            break;
        }
        std::thread::sleep(FINISH_TURN);
        sequencer.turn(doors)?;
    }
    sequencer.finish(doors)?;
    doors.lanes.publish(sequencer);
    Ok(())
}

impl Lanes {
    fn is_empty(&self) -> bool {
        self.submit.is_empty() && self.answer.is_empty()
    }

    fn publish<D: Disk>(&mut self, sequencer: &mut Sequencer<D>) {
        let waiting = self.submit.len() as u64;
        let counters = sequencer.counters();
        counters.submit_lane_open = waiting;
        self.block.publish(counters);
        for step in sequencer.steps().drain() {
            trace::log("store", &step);
        }
        for reader in sequencer.shed() {
            let ShedReader { user, device, reactor, address, queued_bytes, held_bytes, .. } = reader;
            let address = address.map(|address| tracing::field::display(Shown(address)));
            tracing::warn!(
                user,
                device,
                reactor,
                address,
                queued_bytes,
                held_bytes,
                "the slowest reader is closed: memory is short"
            );
        }
        let latencies = sequencer.latencies();
        latencies.committed.drain(..).for_each(|latency| self.histograms.committed(latency));
        latencies.synced.drain(..).for_each(|latency| self.histograms.synced(latency));
        self.histograms.publish(self.clock.now());
    }
}

/// The lanes as the sequencer uses them.
#[derive(Debug)]
struct Doors {
    lanes: Lanes,
    next_reader: usize,
}

impl Ports for Doors {
    fn now(&self) -> Moment {
        self.lanes.clock.now()
    }

    fn next_submit(&mut self) -> Option<Submit> {
        self.lanes.submit.try_recv()
    }

    fn next_answer(&mut self) -> Option<Answer> {
        self.lanes.answer.try_recv()
    }

    fn send_group(&mut self, reactor: ReactorId, group: Group) -> Result<(), Group> {
        self.lanes.group[usize::from(reactor.0)].try_send(group)
    }

    /// Readers take turns; one that is full is passed over.
    fn send_job(&mut self, mut job: Job) -> bool {
        for _ in 0..self.lanes.job.len() {
            self.next_reader = (self.next_reader + 1) % self.lanes.job.len();
            match self.lanes.job[self.next_reader].try_send(job) {
                Ok(()) => return true,
                Err(back) => job = back,
            }
        }
        false
    }

    fn send_projection(&mut self, projection: Projection) -> Result<(), Projection> {
        self.lanes.project.try_send(projection)
    }

    fn give_back(&mut self, bytes: u64) {
        self.lanes.credit.give(bytes);
    }

    fn spare_group(&mut self) -> Option<Group> {
        self.lanes.spare_groups.take()
    }

    fn spare_batch(&mut self) -> Option<Batch> {
        self.lanes.spare_batches.take()
    }
}

/// Set in the environment of a build with debug assertions, it plants a fault: the crash campaign of the load generator must find it.
#[cfg(debug_assertions)]
const EARLY_ACKNOWLEDGEMENT: &str = "FAULT_ACKNOWLEDGE_BEFORE_WRITE";
#[cfg(debug_assertions)]
const EARLY_BY: Duration = Duration::from_millis(20);

/// How long a stopping store waits for others to take their mail: 2 s in all.
const FINISH_TURNS_MAX: u32 = 2_000;
const FINISH_TURN: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::super::disk::SpaceRule;
    use super::super::disk_memory::{Faults, MemoryDisk};
    use super::super::job::{JobFault, Loaded, Progress};
    use super::super::level::Levels;
    use super::super::log::{Log, LogSettings};
    use super::super::record;
    use super::super::recovery::Cold;
    use super::super::sequencer::{Policy, Settings};
    use super::*;
    use crate::ids::{Cmid, RosterId, SessionRef};
    use crate::mail::{Attach, Event, SendMail, Sender, TokenMark};
    use crate::mailbox::{lane, spares};
    use crate::wire::message::Body;

    struct Nothing;

    impl Cold for Nothing {
        fn load(&mut self, _: &str) -> Result<Option<Loaded>, JobFault> {
            Ok(None)
        }
        fn meta(&mut self, _: &[u8]) -> Result<Vec<Vec<u8>>, JobFault> {
            Ok(Vec::new())
        }
        fn project(&mut self, _: Projection) {}
    }

    const SESSION: SessionRef = SessionRef { reactor: ReactorId(0), index: 3, generation: 1 };

    fn send(cmid: u8) -> Submit {
        Submit::Send(SendMail {
            from: Sender { session: SESSION, roster: RosterId(0), rid: u32::from(cmid) },
            cmid: Cmid([cmid; 16]),
            flags: 0,
            kind: 0,
            ttl_s: 0,
            trace: None,
            conv: "d:al:bo".into(),
            payload: Body::copy_from(b"hi"),
            refusal: None,
            received: Moment::default(),
        })
    }

    /// The thread among real lanes: it wakes for mail, asks a reader, answers after the sync, gives credit back, writes what rides and
    /// ends when told; and it ends by itself with the log's error when a sync fails.
    #[test]
    fn the_thread_wakes_works_and_ends() {
        let patience = Duration::from_secs(10);
        for fails in [false, true] {
            let disk = MemoryDisk::default();
            let settings = LogSettings { segment_bytes: 1 << 16, accept_loss: false, projected: 0 };
            let (log, recovered) = Log::open(disk.clone(), settings).unwrap();
            let settings = Settings {
                levels: Levels::all(2),
                hellos_per_minute: 0,
                sampling: trace::Sampling { every: 0 },
                space: SpaceRule { free_bytes_min: 0, free_percent_min: 0 },
                cores: 1,
                policy: Policy::default(),
                started_ms: 0,
            };
            let store = record::Store { shard: 0, shards: 1, dedup_s: 60, hash_key: [1; 16] };
            let position = record::Position::default();
            let progress = Arc::new(Progress::new(0));
            let sequencer = Sequencer::recover(log, &recovered, (&store, &position), settings, progress, &mut Nothing).unwrap();
            let (waker, mine) = (Waker::for_thread(), Waker::for_thread());
            let (submit, submitted) = lane(100, &waker);
            let (answer, answered) = lane(100, &waker);
            let (group, groups) = lane(100, &mine);
            let (job, jobs) = lane(100, &mine);
            let (project, projections) = lane(100, &mine);
            let (stop, credit) = (Arc::new(AtomicBool::new(false)), Credit::new(100));
            let thread = spawn(
                sequencer,
                Lanes {
                    submit: submitted,
                    answer: answered,
                    group: vec![group],
                    job: vec![job],
                    project,
                    spare_groups: spares(1).1,
                    spare_batches: spares(1).1,
                    credit: credit.clone(),
                    clock: Clock::new(),
                    waker: waker.clone(),
                    stop: Arc::clone(&stop),
                    block: Arc::default(),
                    histograms: StoreHistograms::new().0,
                },
            );
            let thread = thread.unwrap();
            let attach = Attach {
                session: SESSION,
                user: "al".into(),
                device: "web".into(),
                platform: 0,
                caps: 0,
                claim: None,
                token: TokenMark::default(),
            };
            submit.try_send(Submit::Attach(attach)).unwrap();
            let attached = groups.recv_within(patience).unwrap();
            assert!(matches!(attached.events[..], [Event::Attached { roster: RosterId(0), .. }]));
            assert!(credit.take(send(1).body_bytes()));
            submit.try_send(send(1)).unwrap();
            let Ok(Job::Load { conv, after: 0 }) = jobs.recv_within(patience) else { panic!("the conversation is cold") };
            if fails {
                disk.set_faults(Faults { syncs_left: Some(0), ..Faults::default() });
            }
            answer.try_send(Answer::Loaded { conv, result: Ok(None) }).unwrap();
            if fails {
                assert!(thread.join().unwrap().is_err());
                assert!(groups.is_empty() && projections.is_empty());
                continue;
            }
            let group = groups.recv_within(patience).unwrap();
            assert!(matches!(group.events[..], [Event::Sent { seq: 1, level: 2, .. }]));
            assert_eq!(projections.recv_within(patience).unwrap().number, 1);
            submit.try_send(Submit::Leave { session: SESSION, roster: RosterId(0) }).unwrap();
            assert!(matches!(groups.recv_within(patience).unwrap().events[..], [Event::Left { .. }]));
            assert_eq!(credit.left(), 100);
            stop.store(true, Ordering::Release);
            waker.wake();
            assert!(thread.join().unwrap().is_ok());
        }
    }
}
