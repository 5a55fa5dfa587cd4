//! A data directory made from a backup, under a new epoch.
//!
//! What was acknowledged after the backup is gone, and clients may hold it: the new epoch tells them that numbering began anew. It is
//! the time of the restoring, in seconds, or one above the old one if that is later: so two restorings of one backup never share an
//! epoch. The log goes on where the backup ends, with the entry of the new epoch as its first group: an engine that is made anew from
//! this log alone would be found out, because the log does not begin with group 1.

use std::fs;
use std::io::Read;
use std::path::Path;

use super::apply::State;
use super::backup::{BackupError, Extent, Reader};
use super::disk_real::RealDisk;
use super::engine::{Engine, EngineError};
use super::log::{Log, LogError, LogSettings, OpenError};
use super::record::BadValue;
use super::schema::{Batch, Change};

/// What was restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restored {
    /// Of the backup.
    pub extent: Extent,
    /// The new epoch.
    pub epoch: u32,
}

/// Makes `dir/engine` and `dir/log` from a backup; neither may exist. They are made aside and appear at the end, the engine first: what
/// a kill leaves before that is removed by the next restoring, and what it leaves in between refuses to start.
///
/// # Errors
/// [`BackupError`].
pub fn restore(from: impl Read, dir: &Path, segment_bytes: u64, now_ms: u64) -> Result<Restored, BackupError> {
    let aside = dir.join(ASIDE);
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    fs::create_dir_all(&aside)?;
    let made = fill(from, &aside, segment_bytes, now_ms);
    if made.is_ok() {
        fs::rename(aside.join("engine"), dir.join("engine"))?;
        fs::rename(aside.join("log"), dir.join("log"))?;
        fs::File::open(dir)?.sync_all()?;
    }
    fs::remove_dir_all(&aside)?;
    made
}

fn fill(from: impl Read, dir: &Path, segment_bytes: u64, now_ms: u64) -> Result<Restored, BackupError> {
    let mut reader = Reader::new(from)?;
    let engine = Engine::open(&dir.join("engine"), CACHE_BYTES)?;
    let mut batch = Batch::default();
    while reader.next_block()? {
        for (keyspace, key, value) in reader.rows() {
            batch.push(keyspace, Change::Put, key, |out| out.extend_from_slice(value));
        }
        engine.write(&mut batch)?;
        batch = batch.emptied().unwrap_or_default();
        if engine.tables_bytes() > MEMORY_BYTES_MAX {
            engine.checkpoint()?;
        }
    }
    let extent = reader.extent().ok_or(BackupError::Incomplete)?;
    let store = engine.store()?.ok_or_else(|| failed(BadValue))?;
    let position = engine.position()?;
    if position.group != extent.group {
        return Err(failed(BadValue));
    }
    let mut disk = RealDisk::new(&dir.join("log"))?;
    Log::begin(&mut disk, extent.group + 1, segment_bytes)?;
    let settings = LogSettings { segment_bytes, accept_loss: false, projected: extent.group };
    let (mut log, _) = Log::open(disk, settings).map_err(|error| match error {
        OpenError::Io(error) => BackupError::from(error),
        OpenError::Corrupt(corruption) => failed(corruption),
    })?;
    let mut state = State::new(&store, &position);
    let seconds = u32::try_from(now_ms / 1000).unwrap_or(u32::MAX);
    let entry = state.epoch_entry(now_ms, seconds);
    let (mut body, mut batch) = (Vec::new(), Batch::default());
    entry.encode(&mut body);
    state.apply(&entry, extent.group + 1, &mut batch).map_err(failed)?;
    let number = log.write(1, &body).map_err(log_failed)?;
    log.sync().map_err(log_failed)?;
    state.finish(number, &mut batch);
    engine.write(&mut batch)?;
    engine.checkpoint()?;
    Ok(Restored { extent, epoch: state.epoch() })
}

fn log_failed(error: LogError) -> BackupError {
    BackupError::Io(error.source)
}

fn failed(error: impl std::fmt::Display) -> BackupError {
    BackupError::Engine(EngineError::Failed { operation: "restoring", reason: error.to_string() })
}

/// Where the parts are made.
const ASIDE: &str = "restoring.new";
/// Rows in memory before they must be in tables.
const MEMORY_BYTES_MAX: u64 = 128 << 20;
/// Nothing is read back.
const CACHE_BYTES: u64 = 8 << 20;
