//! What surrounds a sequencer under test: lanes that hold as much as told, and a clock that stands until it is moved.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::DerefMut;

use super::job::{Answer, Job, Projection};
use super::sequencer::Ports;
use crate::clock::Moment;
use crate::ids::ReactorId;
use crate::mail::{Group, Submit};

/// The lanes and the clock. A world of its own, with readers and a projector, derefs to them and is [`Ports`] by that.
pub struct Neighbours {
    pub now: Cell<Moment>,
    pub submits: VecDeque<Submit>,
    pub answers: VecDeque<Answer>,
    pub jobs: VecDeque<Job>,
    pub jobs_max: usize,
    pub projections: VecDeque<Projection>,
    pub groups: Vec<(ReactorId, Group)>,
    pub groups_max: usize,
    pub given_back: u64,
}

impl Neighbours {
    pub fn new(now: Moment) -> Self {
        Self {
            now: Cell::new(now),
            submits: VecDeque::new(),
            answers: VecDeque::new(),
            jobs: VecDeque::new(),
            jobs_max: usize::MAX,
            projections: VecDeque::new(),
            groups: Vec::new(),
            groups_max: usize::MAX,
            given_back: 0,
        }
    }

    /// Time passes.
    pub fn pass(&self, ms: u64) {
        let now = self.now.get();
        self.now.set(Moment { mono_ns: now.mono_ns + ms * 1_000_000, unix_ms: now.unix_ms + ms });
    }
}

impl<W: DerefMut<Target = Neighbours>> Ports for W {
    fn now(&self) -> Moment {
        self.now.get()
    }
    fn next_submit(&mut self) -> Option<Submit> {
        self.submits.pop_front()
    }
    fn next_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }
    fn send_group(&mut self, reactor: ReactorId, group: Group) -> Result<(), Group> {
        if self.groups.len() >= self.groups_max {
            return Err(group);
        }
        self.groups.push((reactor, group));
        Ok(())
    }
    fn send_job(&mut self, job: Job) -> bool {
        let fits = self.jobs.len() < self.jobs_max;
        if fits {
            self.jobs.push_back(job);
        }
        fits
    }
    fn send_projection(&mut self, projection: Projection) -> Result<(), Projection> {
        self.projections.push_back(projection);
        Ok(())
    }
    fn give_back(&mut self, bytes: u64) {
        self.given_back += bytes;
    }
}
