//! The thread that writes what the log says into the engine.
//!
//! It is handed each group after its sync, in order, and writes its rows in one batch together with the group's number. Now and
//! then it makes a checkpoint; when one has flushed the tables, the log may forget everything up to it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::engine::{Checkpoint, Engine, EngineError};
use super::job::{Progress, Projection};
use super::schema::Batch;
use crate::mailbox::{LaneReceiver, NoMail, SpareSender};

/// When the projector makes a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Checkpoints {
    /// After so many bytes of rows the tables are flushed, and the log may forget: about one segment.
    pub flush_bytes: u64,
}

/// Writes groups until every sender of the lane is gone, then makes a last checkpoint. Written batches go back through `spares`.
///
/// # Errors
/// [`EngineError`]: the store stops taking messages once the backlog is full, and the operator is told at once.
pub fn run(
    engine: &Engine,
    groups: &LaneReceiver<Projection>,
    progress: &Arc<Progress>,
    spares: &SpareSender<Batch>,
    checkpoints: Checkpoints,
) -> Result<(), EngineError> {
    // What an earlier run left unflushed counts as well: lives may be too short to write as much.
    let mut written_bytes = engine.tables_bytes();
    let mut looked_at: Option<Instant> = None;
    let mut under_way: Option<Checkpoint> = None;
    loop {
        if looked_at.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            progress.engine_holds(engine.cache_bytes(), engine.tables_bytes());
            looked_at = Some(Instant::now());
        }
        match groups.recv_within(PATIENCE) {
            Ok(mut projection) => {
                let bytes = projection.batch.len_bytes() as u64;
                engine.write(&mut projection.batch)?;
                progress.written(projection.number, bytes);
                if let Some(spare) = projection.batch.emptied() {
                    spares.give(spare);
                }
                written_bytes += bytes;
            }
            Err(NoMail::Yet) => {}
            Err(NoMail::Ever) => {
                let position = engine.checkpoint()?;
                progress.checkpoint(position.group);
                return Ok(());
            }
        }
        while let Some(checkpoint) = &under_way {
            if let Some(position) = engine.finish_checkpoint(checkpoint)? {
                progress.checkpoint(position.group);
                under_way = None;
            } else if written_bytes < checkpoints.flush_bytes {
                break;
            } else {
                // As much again is in memory: the groups wait in their lane.
                std::thread::sleep(PATIENCE_FULL);
            }
        }
        if under_way.is_none() && written_bytes >= checkpoints.flush_bytes {
            under_way = Some(engine.begin_checkpoint()?);
            written_bytes = 0;
        }
    }
}

/// How long a wait for groups lasts before the clock is looked at.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often it is asked whether there is room.
const PATIENCE_FULL: Duration = Duration::from_millis(5);
/// How often the engine's memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
