//! Retention, step by step, beside the messages: nobody waits for it, and it never makes anybody wait.

use super::{Conv, Moment, Ports, Sequencer};
use crate::limits::PROJECT_BYTES_MAX;
use crate::mutant::{self, Mutant};
use crate::store::disk::Disk;
use crate::store::job::{Job, JobFault, Projection};
use crate::store::park::Work;
use crate::store::retention::{Raise, Swept};
use crate::store::schema::{self, Batch, Change, Keyspace};

impl<D: Disk> Sequencer<D> {
    /// Has a reader look for what need not be kept any more, when it is time and the projector is not busy. It goes on while the disk
    /// is full: it makes room.
    pub(super) fn sweep(&mut self, now: Moment, ports: &mut impl Ports) {
        let keep = self.settings.policy.keep;
        if keep.is_everything() || self.progress.backlog_bytes() > PROJECT_BYTES_MAX as u64 / 4 {
            return;
        }
        if let Some((from, after)) = self.sweeper.next(self.progress.projected(), now.mono_ns)
            && ports.send_job(Job::Sweep { keep, from, after })
        {
            self.sweeper.asked();
        }
    }

    /// When [`Self::sweep`] is due again.
    pub(super) fn sweep_due_ns(&self) -> Option<u64> {
        self.sweeper.next_ns().filter(|_| !self.settings.policy.keep.is_everything())
    }

    /// A step has found what may go.
    pub(super) fn swept(&mut self, result: Result<Swept, JobFault>, now: Moment, ports: &mut impl Ports) {
        // What cannot be read now is looked for with the next sweep.
        let Swept { raises, next } = result.unwrap_or_default();
        if mutant::on(Mutant::RowsBeforeFloor) {
            self.retire_at_once(&raises, ports);
        }
        for raise in raises {
            self.offer(Work::Floor(raise), now, ports);
        }
        if next.is_some() {
            // Much is due: the rest must not wait until this group is closed for want of anything to wait for.
            self.open.must_close |= self.open.entries_count > 0;
            self.open.level = self.open.level.max(self.settings.levels.most());
        }
        self.sweeper.answered(next, self.settings.policy.keep.every, now.mono_ns);
    }

    /// Raises a floor in memory and in the open group.
    pub(super) fn raise_floor(&mut self, conv: Conv, raise: &Raise, now: Moment) {
        let before = self.state.conversation(conv).map_or(1, |conversation| conversation.floor());
        let Some(entry) = self.state.floor_entry(&raise.conv, raise.floor, raise.count, now.unix_ms) else { return };
        self.accept(&entry, now);
        self.sweeper.raised(self.open.number);
        self.counters.floors_raised_count += 1;
        self.counters.messages_retired_count += raise.floor - before;
    }

    /// What [`Mutant::RowsBeforeFloor`] does.
    fn retire_at_once(&mut self, raises: &[Raise], ports: &mut impl Ports) {
        let mut batch = Batch::default();
        for raise in raises {
            let conv = self.state.hashes().conv(&raise.conv);
            for seq in raise.floor.saturating_sub(10)..raise.floor {
                batch.push(Keyspace::Msg, Change::Delete, &schema::msg_key(conv, seq), |_| {});
            }
        }
        drop(ports.send_projection(Projection { number: self.progress.projected(), batch }));
    }
}
