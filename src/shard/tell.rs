//! What is said at most once: receipts, presence, signals, TRANSIENT messages.

use super::Shard;
use super::answer::opcode_of;
use super::mail::{slot_of, variant_of};
use crate::conn::send_queue::Wrap;
use crate::ids::FrameIndex;
use crate::mail::Target;
use crate::observe::counters::Shed;
use crate::session::delivery::Stage;
use crate::wire::envelope::{ServerFrame, encode_server};

impl Shard {
    /// A frame that is sent at most once: built once per variant, and dropped when memory is short or for who has too much waiting.
    pub(super) fn tell<'f>(&mut self, kind: Shed, targets: &[Target], frame: impl Fn(bool) -> ServerFrame<'f>) {
        if self.drops(kind, targets.len()) {
            return;
        }
        let mut variants: [Option<FrameIndex>; 4] = [None; 4];
        for target in targets {
            let session = self.sessions.get(slot_of(self.session_of(*target)));
            // One that is joining has its WELCOME before it, one that is leaving nothing any more.
            let Some(session) = session.filter(|session| session.stage == Stage::Active) else { continue };
            let (id, encoding) = (session.connection, session.encoding);
            let Some(connection) = self.connections.get(id) else { continue };
            if connection.queue.bytes() > self.rules.queue_soft_bytes || self.pool.queued_bytes > self.rules.queued_bytes_max {
                self.counters.transients_dropped_count += 1;
                continue;
            }
            let variant = variant_of(encoding, target.own, false);
            let index = *variants[variant].get_or_insert_with(|| {
                self.pool.build(Wrap::Frame(opcode_of(encoding)), |out| encode_server(encoding, &frame(target.own), out))
            });
            self.push_frame(id, index, 0);
        }
        for frame in variants.into_iter().flatten() {
            self.pool.release(frame);
        }
    }
}
