//! The thread that writes to tables what the projector has set aside, and then merges tables.
//!
//! One at a time, and merging only between checkpoints: tables hold rows that the position does not speak of for no longer than one
//! checkpoint takes, and no merge mixes them with others. See [`super`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use lsm_tree::compaction::Leveled;
use lsm_tree::{AbstractTree, AnyTree};

use super::views::Views;
use crate::io::pin;

/// The thread, ended when dropped, after what it is doing.
#[derive(Debug)]
pub(super) struct Flusher {
    asked: Option<SyncSender<Job>>,
    status: Arc<Status>,
    thread: Option<JoinHandle<()>>,
}

/// What is asked of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Job {
    /// Writes what is set aside in all trees.
    Checkpoint,
    /// Writes what is set aside in all but the last, and merges nothing.
    Spill,
}

/// How much was asked for, and how much of it is on disk.
#[derive(Debug, Default)]
struct Status {
    asked: AtomicU64,
    done: AtomicU64,
    /// Why there will be no more.
    failed: OnceLock<String>,
}

impl Flusher {
    /// Starts the thread. The last tree is the one whose rows say what the others hold.
    pub fn start(trees: Vec<AnyTree>, views: Arc<Views>) -> std::io::Result<Self> {
        let (asked, jobs) = sync_channel(1);
        let status = Arc::new(Status::default());
        let own = status.clone();
        let work = move || {
            // Who has no cores to spare acknowledges first; what waits for this thread is bounded by the projector.
            if !pin::give_way() {
                tracing::warn!("setpriority(2) is refused: where cores are few, writing tables may hold up acknowledgements");
            }
            if let Err(error) = run(&jobs, &trees, &views, &own) {
                own.failed.get_or_init(|| error.to_string());
            }
        };
        let thread = std::thread::Builder::new().name("flusher".to_owned()).spawn(work)?;
        Ok(Self { asked: Some(asked), status, thread: Some(thread) })
    }

    /// Asks for what is set aside to be written, and says by which number [`Flusher::has_done`] knows it.
    pub fn ask(&self, job: Job) -> u64 {
        let number = self.status.asked.fetch_add(1, Ordering::Relaxed) + 1;
        // A thread that has ended is found out by whoever waits for this.
        let _ = self.asked.as_ref().map(|asked| asked.send(job));
        number
    }

    /// Whether it is on disk.
    ///
    /// # Errors
    /// Why it will never be.
    pub fn has_done(&self, number: u64) -> Result<bool, String> {
        if self.status.done.load(Ordering::Acquire) >= number {
            return Ok(true);
        }
        match self.status.failed.get() {
            Some(reason) => Err(reason.clone()),
            None if self.thread.as_ref().is_none_or(JoinHandle::is_finished) => Err("its thread has ended".to_owned()),
            None => Ok(false),
        }
    }

    /// Whether everything asked for is on disk.
    ///
    /// # Errors
    /// As above.
    pub fn is_idle(&self) -> Result<bool, String> {
        self.has_done(self.status.asked.load(Ordering::Relaxed))
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.asked = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Until the engine is dropped.
fn run(jobs: &Receiver<Job>, trees: &[AnyTree], views: &Views, status: &Status) -> lsm_tree::Result<()> {
    while let Ok(job) = jobs.recv() {
        let last = trees.len() - usize::from(job == Job::Spill);
        flush(&trees[..last], views)?;
        status.done.fetch_add(1, Ordering::Release);
        if job == Job::Checkpoint {
            merge(trees, views, status)?;
        }
    }
    Ok(())
}

/// Writes what is set aside to tables, tree after tree.
pub(super) fn flush(trees: &[AnyTree], views: &Views) -> lsm_tree::Result<()> {
    for tree in trees {
        let lock = tree.get_flush_lock();
        tree.flush(&lock, views.unseen_below())?;
    }
    Ok(())
}

/// Merges tables where there are too many. One round for each checkpoint keeps up; more only while nobody waits.
fn merge(trees: &[AnyTree], views: &Views, status: &Status) -> lsm_tree::Result<()> {
    for _ in 0..MERGES_MAX {
        let mut has_merged = false;
        for tree in trees {
            let before = tree.current_version().id();
            tree.compact(Arc::new(Leveled::default()), views.unseen_below())?;
            has_merged |= tree.current_version().id() != before;
        }
        if !has_merged || status.asked.load(Ordering::Relaxed) > status.done.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(())
}

/// Rounds of merging after a checkpoint: enough to pass rows through all seven levels.
const MERGES_MAX: usize = 8;
