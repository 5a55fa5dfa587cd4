//! The work the store hands to readers and projector, and what comes back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::record::Dedup;
use super::retention::{Keep, Swept};
use super::schema::Batch;
use crate::ids::{Cmid, Role};
use crate::mail::{LookReply, PageMail, Question, WatchMail};
use crate::wire::envelope::ErrorCode;
use crate::wire::message::Text;

/// The store to a reader. Each is answered from one snapshot taken after the engine has passed group `after`.
#[derive(Debug)]
pub enum Job {
    /// SYNC or FETCH; answered to the reactor by [`crate::mail::PageReply`].
    Page {
        /// The request.
        mail: PageMail,
        /// Who asks.
        user: Text,
        /// The asking device, whose cursor is `mine`.
        device: Text,
        /// Group the snapshot must hold.
        after: u64,
    },
    /// Head and members of a conversation; answered by [`Answer::Loaded`].
    Load {
        /// Conversation.
        conv: Text,
        /// Group the snapshot must hold.
        after: u64,
    },
    /// Read position of a user and the highest cursor of the user's devices; answered by [`Answer::Position`].
    Position {
        /// Conversation.
        conv: Text,
        /// User.
        user: Text,
        /// Group the snapshot must hold.
        after: u64,
    },
    /// Which of these users share a conversation with the one who asks; answered by [`Answer::Shared`].
    Share {
        /// What is asked, to come back with the answer.
        watch: WatchMail,
        /// Who asks.
        user: Text,
        /// Order of the WATCHes.
        turn: u64,
        /// Group the snapshot must hold.
        after: u64,
    },
    /// Whether a cmid is stored; answered by [`Answer::Dedup`].
    Dedup {
        /// Conversation of the submission that waits; comes back with the answer.
        conv: Text,
        /// Sender.
        user: Text,
        /// The sender's id.
        cmid: Cmid,
        /// Group the snapshot must hold.
        after: u64,
    },
    /// Which floors may rise; answered by [`Answer::Swept`].
    Sweep {
        /// What is kept.
        keep: Keep,
        /// Key of the first conversation to look at.
        from: [u8; 16],
        /// Group the snapshot must hold.
        after: u64,
    },
    /// A question of the operator's side, answered to whoever asked.
    Look {
        /// The question.
        question: Question,
        /// Where the answer goes.
        reply: LookReply,
        /// Group the snapshot must hold.
        after: u64,
    },
}

impl Job {
    /// Group the snapshot must hold.
    #[must_use]
    pub fn after(&self) -> u64 {
        match self {
            Self::Page { after, .. }
            | Self::Load { after, .. }
            | Self::Position { after, .. }
            | Self::Share { after, .. }
            | Self::Dedup { after, .. }
            | Self::Sweep { after, .. }
            | Self::Look { after, .. } => *after,
        }
    }
}

/// A reader to the store.
#[derive(Debug)]
pub enum Answer {
    /// See [`Job::Load`]. `None`: the conversation does not exist.
    Loaded {
        /// Conversation.
        conv: Text,
        /// What the engine says.
        result: Result<Option<Loaded>, JobFault>,
    },
    /// See [`Job::Position`].
    Position {
        /// Conversation.
        conv: Text,
        /// User.
        user: Text,
        /// What the engine says.
        result: Result<Positions, JobFault>,
    },
    /// See [`Job::Share`].
    Shared {
        /// What was asked.
        watch: WatchMail,
        /// Order of the WATCHes.
        turn: u64,
        /// For each user asked about, whether a conversation is shared.
        result: Result<Vec<bool>, JobFault>,
    },
    /// See [`Job::Dedup`].
    Dedup {
        /// Conversation of the submission that waits.
        conv: Text,
        /// Sender.
        user: Text,
        /// The sender's id.
        cmid: Cmid,
        /// What the engine says.
        result: Result<Option<Dedup>, JobFault>,
    },
    /// See [`Job::Sweep`].
    Swept(Result<Swept, JobFault>),
}

/// A conversation as it stands in the engine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Loaded {
    /// Lowest seq kept, at least 1.
    pub floor: u64,
    /// How many not QUIET messages lie below `floor`.
    pub floor_count: u64,
    /// Highest seq: of the last message in `msg`, or of the head row if that is higher.
    pub head: u64,
    /// How many not QUIET messages up to `head`.
    pub count: u64,
    /// Changes of the membership.
    pub version: u64,
    /// Change stamp of the head row.
    pub changed: u64,
    /// [`super::record::head_flags`].
    pub flags: u8,
    /// Members; none for `d:`.
    pub members: Vec<LoadedMember>,
}

/// A member as it stands in the engine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LoadedMember {
    /// User id.
    pub name: Text,
    /// First seq the user may see.
    pub joined: u64,
    /// What the user may do.
    pub role: Role,
    /// Whether the user has silenced the conversation.
    pub muted: bool,
}

impl From<&super::record::Member<'_>> for LoadedMember {
    fn from(row: &super::record::Member<'_>) -> Self {
        Self { name: Text::from(row.user), joined: row.joined, role: Role::from_number(row.role), muted: row.muted != 0 }
    }
}

/// How far a user is in a conversation. 0: not at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Positions {
    /// Everything up to here is read.
    pub read: u64,
    /// Everything up to here is held by one of the user's devices.
    pub recv: u64,
}

/// Why a job has no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobFault {
    /// Two ids share a keyed hash, or a row is damaged.
    Mismatch,
    /// The engine cannot be read.
    Engine,
    /// The engine is too far behind what was asked for.
    Behind,
}

impl JobFault {
    /// What the client is told.
    #[must_use]
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Mismatch | Self::Engine => ErrorCode::Internal,
            Self::Behind => ErrorCode::StoreOverloaded,
        }
    }
}

/// The store to the projector: the rows of one commit group, in replay of several, already durable in the log.
#[derive(Debug)]
pub struct Projection {
    /// Number of the group in the log, of several the last. The batch carries it in `meta position` as well.
    pub number: u64,
    /// Its rows.
    pub batch: Batch,
}

/// How far the projector is. Written by the projector (and the backlog by the store), read by store and readers.
#[derive(Debug, Default)]
pub struct Progress {
    projected: AtomicU64,
    checkpointed: AtomicU64,
    backlog_bytes: AtomicU64,
    /// Of the engine, at the last look: blocks read from disk, rows not yet in tables.
    engine_bytes: (AtomicU64, AtomicU64),
    lock: Mutex<()>,
    moved: Condvar,
}

impl Progress {
    /// Starts at the group the engine holds when it is opened.
    #[must_use]
    pub fn new(projected: u64) -> Self {
        Self { projected: AtomicU64::new(projected), ..Self::default() }
    }

    /// Number of the last group whose rows a snapshot taken now holds.
    #[must_use]
    pub fn projected(&self) -> u64 {
        self.projected.load(Ordering::Acquire)
    }

    /// The projector has made everything up to group `number` durable in the engine, and has read that position back.
    pub fn checkpoint(&self, number: u64) {
        self.checkpointed.store(number, Ordering::Release);
    }

    /// The log may forget groups up to this one; 0 before the first checkpoint.
    #[must_use]
    pub fn checkpointed(&self) -> u64 {
        self.checkpointed.load(Ordering::Acquire)
    }

    /// The store gives `bytes` away.
    pub fn handed_over(&self, bytes: u64) {
        self.backlog_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The projector has written group `number`, of `bytes` as handed over.
    pub fn written(&self, number: u64, bytes: u64) {
        self.backlog_bytes.fetch_sub(bytes, Ordering::Relaxed);
        // Under the lock, so that a reader between its check and its wait is not missed.
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.projected.store(number, Ordering::Release);
        drop(guard);
        self.moved.notify_all();
    }

    /// Bytes handed over and not yet written.
    #[must_use]
    pub fn backlog_bytes(&self) -> u64 {
        self.backlog_bytes.load(Ordering::Relaxed)
    }

    /// The projector has looked at the engine's memory: blocks read from disk, rows not yet in tables.
    pub fn engine_holds(&self, cache_bytes: u64, tables_bytes: u64) {
        self.engine_bytes.0.store(cache_bytes, Ordering::Relaxed);
        self.engine_bytes.1.store(tables_bytes, Ordering::Relaxed);
    }

    /// The engine's memory when the projector last looked: blocks read from disk, rows not yet in tables.
    #[must_use]
    pub fn engine_bytes(&self) -> (u64, u64) {
        (self.engine_bytes.0.load(Ordering::Relaxed), self.engine_bytes.1.load(Ordering::Relaxed))
    }

    /// Waits until group `number` is in the engine, at most `patience`. Only readers wait here.
    #[must_use]
    pub fn wait_for(&self, number: u64, patience: Duration) -> bool {
        if self.projected() >= number {
            return true;
        }
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.moved.wait_timeout_while(guard, patience, |()| self.projected() < number);
        drop(waited);
        self.projected() >= number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A waiting reader is woken when its group is written, and gives up when it is not.
    #[test]
    fn a_reader_waits_for_its_group() {
        let progress = std::sync::Arc::new(Progress::new(3));
        assert!(progress.wait_for(3, Duration::ZERO));
        assert!(!progress.wait_for(4, Duration::from_millis(1)));
        let waiting = std::sync::Arc::clone(&progress);
        let reader = std::thread::spawn(move || waiting.wait_for(5, Duration::from_secs(30)));
        progress.handed_over(10);
        progress.written(5, 10);
        assert!(reader.join().unwrap());
        assert_eq!(progress.backlog_bytes(), 0);
    }
}
