//! What leaves: the dirty list, gathered writes, and what their progress means.

use super::{Command, Shard, State, Work, flags};
use crate::conn::send_queue::Batch;
use crate::ids::ConnectionId;
use crate::io::driver::{Close, Piece};
use crate::mutant::{self, Mutant};
use crate::wire::envelope::Encoding;

impl Shard {
    /// The next connection with something to send or to finish, each at most once per flush.
    pub fn poll_dirty(&mut self) -> Option<ConnectionId> {
        let id = self.dirty.pop_front()?;
        if let Some(connection) = self.connections.get_mut(id) {
            connection.flags &= !flags::DIRTY;
        }
        Some(id)
    }

    /// Connections with something to send.
    #[must_use]
    pub fn dirty_count(&self) -> usize {
        self.dirty.len()
    }

    /// Lays out the next write of a connection; `false` when there is none now.
    pub fn gather(&mut self, id: ConnectionId, batch: &mut Batch) -> bool {
        self.guarded(Work::Output, id, |shard| shard.lay_out(id, batch)).unwrap_or(false)
    }

    fn lay_out(&mut self, id: ConnectionId, batch: &mut Batch) -> bool {
        let Some(connection) = self.connections.get(id) else { return false };
        if connection.flags & flags::SENDING != 0 || connection.state == State::Finished {
            return false;
        }
        if connection.flags & flags::TLS != 0 {
            let has_more = self.gather_records(id, batch);
            if !has_more {
                self.finish_if_done(id);
            }
            return has_more;
        }
        if connection.queue.is_empty() {
            self.finish_if_done(id);
            return false;
        }
        self.pool.gather(&connection.queue, connection.encoding.unwrap_or(Encoding::Binary), batch);
        true
    }

    /// One segment of what [`Shard::gather`] laid out.
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "the reactor counts to the end of the batch that it was given")]
    pub fn piece<'a>(&'a self, batch: &'a Batch, index: usize) -> Piece<'a> {
        self.pool.piece(batch, &batch.segments[index])
    }

    /// The kernel took `taken` bytes at once.
    pub fn handle_taken(&mut self, id: ConnectionId, taken: usize) {
        self.guarded(Work::Output, id, |shard| shard.advance(id, taken));
    }

    fn advance(&mut self, id: ConnectionId, taken: usize) {
        let Some(connection) = self.connections.get_mut(id) else { return self.stale() };
        connection.flags &= !flags::SENDING;
        if connection.state == State::Finished {
            // Its queue is gone; a driver that held bytes of it says so before its last word.
            return;
        }
        if taken > 0 {
            connection.flags |= flags::PROGRESS;
            if connection.flags & flags::PAUSED != 0 {
                // We do not read it, so its pongs are not seen; that it takes bytes is as good a sign of life.
                self.liveness.touch(id.index, self.now.tick());
            }
        }
        self.counters.bytes_sent_count += taken as u64;
        if connection.flags & flags::TLS == 0 {
            self.pool.advance(&mut connection.queue, connection.encoding.unwrap_or(Encoding::Binary), taken);
        } else {
            self.advance_records(id, taken);
        }
        let connection = self.connections.known_mut(id);
        let soft = self.rules.queue_soft_bytes;
        if connection.flags & flags::PAUSED != 0 && connection.queue.bytes() <= soft / 2 {
            connection.flags &= !flags::PAUSED;
            if !mutant::on(Mutant::ResumeForgotten) {
                self.commands.push_back(Command::Resume(id));
            }
        }
        let behind = connection.session != 0 && connection.queue.bytes() <= soft;
        if behind && self.session_mut(id).is_some_and(|session| session.is_behind()) {
            self.catch_up(id);
        }
    }

    /// The kernel keeps the bytes, or will say when it takes more: no other write until then.
    pub fn handle_waiting(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return self.stale() };
        connection.flags |= flags::SENDING;
    }

    /// The kernel takes bytes again.
    pub fn handle_writable(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return self.stale() };
        connection.flags &= !flags::SENDING;
        if !mutant::on(Mutant::WritableForgotten) {
            self.touch(id);
        }
    }

    /// A closing connection whose queue is empty: the driver sends FIN, waits for the peer's, and says `closed`.
    fn finish_if_done(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.state == State::Closing {
            connection.state = State::Finished;
            self.commands.push_back(Command::Close(id, Close::Graceful));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::ids::ConnectionId;
    use crate::observe::counters::CloseCause;
    use crate::shard::alone_tests::Core;

    /// Gives a PONG to the kernel, which has not said yet how much of it it takes. Returns the bytes.
    fn outstanding(core: &mut Core, id: ConnectionId) -> Vec<u8> {
        core.said(id);
        core.text(id, r#"{"t":"ping"}"#);
        let bytes = core.laid_out(id).unwrap();
        core.shard.handle_waiting(id);
        assert_eq!(core.laid_out(id), None, "one write at a time");
        bytes
    }

    /// A ping that is due while the kernel holds data stands behind that data: what the kernel then takes, however much it is, is of that
    /// data.
    #[test]
    fn a_ping_stands_behind_what_the_kernel_holds() {
        for left in 0..5 {
            let mut core = Core::new();
            let (id, _) = core.active(1_764_100_000);
            let held = outstanding(&mut core, id);
            core.pass_ms(u64::from(core.shard.rules.ping_ms));
            assert_eq!(core.shard.counters.pings_sent_count, 1);
            let taken = held.len() - left;
            core.shard.handle_taken(id, taken);
            assert_eq!(core.laid_out(id).unwrap(), [&held[taken..], &[0x89, 0]].concat());
        }
    }

    /// A connection ends while the kernel holds bytes of it: its queue goes at once, and what the kernel says afterwards changes nothing.
    #[test]
    fn the_last_word_about_a_dropped_queue_changes_nothing() {
        let mut core = Core::new();
        let [(id, _), (other, _)] = [core.active(1_764_100_000), core.active(1_764_100_000)];
        let held = outstanding(&mut core, id);
        core.shard.abort(id, CloseCause::Shed);
        let sent_bytes = core.shard.counters.bytes_sent_count;
        core.shard.handle_taken(id, held.len());
        assert_eq!(core.shard.counters.bytes_sent_count, sent_bytes);
        core.said(other);
        core.text(other, r#"{"t":"ping"}"#);
        assert!(core.said(other).contains("pong"));
    }
}
