//! The persistence thread: turns of the [`Sequencer`], and sleep in between.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::disk::Disk;
use super::job::{Answer, Job, Projection};
use super::log::LogError;
use super::sequencer::{Ports, Sequencer};
use crate::clock::{Clock, Moment};
use crate::ids::ReactorId;
use crate::io::wake::Waker;
use crate::mail::{Group, Submit};
use crate::mailbox::{Credit, LaneReceiver, LaneSender};
use crate::observe::counters::StoreBlock;

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
}

/// Starts the thread. It ends with `Ok` after [`Lanes::stop`], and with the error of the log as soon as there is one: nothing can be
/// acknowledged any more, and the process ends with the exit code for it.
///
/// # Errors
/// The kernel's, if no thread can be started.
pub fn spawn<D>(sequencer: Sequencer<D>, lanes: Lanes) -> io::Result<JoinHandle<Result<(), LogError>>>
where
    D: Disk + Send + 'static,
    D::File: Send,
{
    std::thread::Builder::new().name("store".to_owned()).spawn(move || run(sequencer, lanes))
}

/// The thread itself.
fn run<D: Disk>(mut sequencer: Sequencer<D>, lanes: Lanes) -> Result<(), LogError> {
    let mut doors = Doors { lanes, next_reader: 0 };
    loop {
        let turn = sequencer.turn(&mut doors)?;
        doors.lanes.publish(&mut sequencer);
        if turn.is_busy {
            continue;
        }
        if doors.lanes.stop.load(Ordering::Acquire) && doors.lanes.is_empty() {
            return finish(&mut sequencer, &mut doors);
        }
        doors.lanes.waker.park(turn.wake_in, || doors.lanes.is_empty() && !doors.lanes.stop.load(Ordering::Acquire));
    }
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

    fn publish<D: Disk>(&self, sequencer: &mut Sequencer<D>) {
        let waiting = self.submit.len() as u64;
        let counters = sequencer.counters();
        counters.submit_lane_open = waiting;
        self.block.publish(counters);
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
}

/// How long a stopping store waits for others to take their mail: 2 s in all.
const FINISH_TURNS_MAX: u32 = 2_000;
const FINISH_TURN: Duration = Duration::from_millis(1);
