//! The end of a group: it reaches its level in the log, and then everybody is told and the projector gets its rows.

use super::{IN_MEMORY, Ports, SYNCED, Sequencer};
use crate::clock::Moment;
use crate::ids::ReactorId;
#[cfg(feature = "mutants")]
use crate::mail::{Event, Group};
use crate::mutant::{self, Mutant};
use crate::store::disk::Disk;
use crate::store::entry::{Change, Entry};
use crate::store::job::Projection;
use crate::store::log::LogError;

impl<D: Disk> Sequencer<D> {
    /// Makes the open group durable and hands its rows on; what it means to clients goes out with [`Self::hand_out`]. Says when that
    /// was, if there was anything.
    pub(super) fn close(&mut self, now: Moment, ports: &mut impl Ports) -> Result<Option<Moment>, LogError> {
        let mut committed = None;
        let mut cursors = self.cursors.take();
        for cursor in cursors.drain(..) {
            let (conv, user, device) = (&*cursor.conv, &*cursor.user, &*cursor.device);
            let change = Change::Cursor { seq: cursor.seq, conv, user, device };
            self.accept(&Entry { stamp_ms: now.unix_ms, change }, now);
        }
        self.cursors.bring_back(cursors);
        if self.open.entries_count > 0 {
            if self.acknowledge_before_sync || mutant::on(Mutant::AcknowledgeBeforeSync) {
                self.hand_out(None, ports);
                #[cfg(debug_assertions)]
                self.write_delay.into_iter().for_each(std::thread::sleep);
            }
            #[cfg(feature = "mutants")]
            self.deliver_early(ports);
            let number = self.open.number;
            // What rides alone is no message, and is kept as well as any.
            let level = if self.open.must_close { self.open.level } else { self.settings.levels.most() };
            let begun = ports.now();
            self.write(level)?;
            let done = ports.now();
            if level > IN_MEMORY {
                self.latencies.synced.push(done.since(begun));
            }
            self.latencies.committed.extend(self.open.received.drain(..).map(|received| done.since(received)));
            committed = Some(done);
            self.counters.groups_committed_count += 1;
            self.state.finish(number, &mut self.open.batch);
            let batch = std::mem::replace(&mut self.open.batch, ports.spare_batch().unwrap_or_default());
            self.open.number = number + 1;
            self.state.evict(self.progress.projected(), self.open.number);
            self.progress.handed_over(batch.len_bytes() as u64);
            if number > self.log.synced() {
                self.unsynced_bytes += batch.len_bytes();
            }
            self.unprojected.push_back(Projection { number, batch });
        }
        self.open.body.clear();
        self.open.entries_count = 0;
        self.open.must_close = false;
        self.open.level = 0;
        self.open.has_read = false;
        self.open.since = None;
        Ok(committed)
    }

    /// Brings the open group to `level`. Lower ones before it come along: the log is in order.
    fn write(&mut self, level: u8) -> Result<(), LogError> {
        if level == IN_MEMORY {
            self.unwritten.push_back((self.open.entries_count, std::mem::take(&mut self.open.body)));
            return Ok(());
        }
        self.write_out()?;
        let number = self.log.write(self.open.entries_count, &self.open.body)?;
        self.counters.log_written_bytes_count += self.open.body.len() as u64;
        assert_eq!(number, self.open.number);
        if level >= SYNCED { self.sync() } else { Ok(()) }
    }

    fn write_out(&mut self) -> Result<(), LogError> {
        while let Some((entries_count, body)) = self.unwritten.pop_front() {
            self.log.write(entries_count, &body)?;
            self.counters.log_written_bytes_count += body.len() as u64;
        }
        Ok(())
    }

    /// Makes every closed group durable, whatever its level: the engine may have its rows then.
    pub(super) fn sync(&mut self) -> Result<(), LogError> {
        self.must_sync = false;
        self.write_out()?;
        if self.log.synced() < self.log.last() && !mutant::on(Mutant::SyncForgotten) {
            self.log.sync()?;
            self.counters.log_syncs_count += 1;
        }
        self.unsynced_bytes = 0;
        Ok(())
    }

    /// Number of the last closed group, written or not.
    pub(super) fn last(&self) -> u64 {
        self.open.number - 1
    }

    /// Gives every core what the turn means to it, then the rows to the projector.
    pub(super) fn hand_out(&mut self, committed: Option<Moment>, ports: &mut impl Ports) {
        for (reactor, group, bytes) in
            self.fanout.take(self.open.number - 1, committed, || ports.spare_group().unwrap_or_default())
        {
            let outbox = &mut self.outboxes[usize::from(reactor.0)];
            if !outbox.is_empty() {
                self.counters.group_full_count += 1;
            }
            self.counters.deliveries_dropped_count += outbox.push(group, bytes);
        }
        for (reply, result) in self.open.replies.drain(..) {
            // Whoever asked may have given up.
            let _ = reply.try_send(result);
        }
        self.operator.hand_out();
        self.flush(ports);
    }

    #[cfg(feature = "mutants")]
    fn deliver_early(&mut self, ports: &mut impl Ports) {
        if !mutant::on(Mutant::DeliverBeforeSync) {
            return;
        }
        let groups: Vec<_> = self.fanout.take(self.open.number, None, Group::default).collect();
        for (reactor, mut group, bytes) in groups {
            let (early, late) = group.events.into_iter().partition(|event| !matches!(event, Event::Sent { .. }));
            group.events = early;
            self.outboxes[usize::from(reactor.0)].push(group, bytes);
            Vec::into_iter(late).for_each(|event| self.fanout.push(reactor, event));
        }
        self.flush(ports);
    }

    pub(super) fn flush(&mut self, ports: &mut impl Ports) {
        for (index, outbox) in (0..).zip(&mut self.outboxes) {
            if !outbox.is_empty() {
                outbox.flush(|group| ports.send_group(ReactorId(index), group));
            }
        }
        while self.unprojected.front().is_some_and(|projection| projection.number <= self.log.synced())
            && let Some(projection) = self.unprojected.pop_front()
        {
            if let Err(projection) = ports.send_projection(projection) {
                self.unprojected.push_front(projection);
                break;
            }
        }
    }
}
