//! The engine: everything the log has said so far, in tables that can be searched.                                    [fjall]
//!
//! A projection and nothing more: the log is the truth. What the engine has not synced is replayed from the log after a crash, so
//! batches are written without a sync, each atomically with the number of the group it stems from. A *checkpoint* flushes the
//! tables, syncs, and reads the position back; only then may the log forget what lies before it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fjall::{Database, KeyspaceCreateOptions, PersistMode, Readable, Slice};

use super::record::{self, Position, Value};
use super::rows::{Row, Rows};
use super::schema::{Batch, Change, Keyspace, META_POSITION, META_STORE};
use crate::limits::ENGINE_FILES_MAX;

/// The open engine. Clones share it.
#[derive(Clone)]
pub struct Engine {
    database: Database,
    tables: [fjall::Keyspace; Keyspace::ALL.len()],
    /// What each table has in memory.
    memory: Arc<[Memory; Keyspace::ALL.len()]>,
}

/// The memory of one table, which is set aside by whoever writes, and then flushed by the engine's worker, the oldest first.
#[derive(Debug, Default)]
struct Memory {
    /// Bytes of rows written since it was last set aside.
    bytes: AtomicU64,
    /// How often it was set aside.
    turns: AtomicU64,
}

/// A checkpoint under way: see [`Engine::begin_checkpoint`].
#[derive(Debug)]
pub struct Checkpoint {
    begun: Instant,
    position: Position,
    turns: [u64; Keyspace::ALL.len()],
}

/// Why the engine cannot be used, naming operation and remedy.
#[derive(Debug)]
pub enum EngineError {
    /// Another process has it open.
    Locked,
    /// Anything else of the engine's.
    Failed {
        /// What was being done.
        operation: &'static str,
        /// The engine's words.
        reason: String,
    },
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked => f.write_str("the data directory is in use by another process; stop it or choose another data_dir"),
            Self::Failed { operation, reason } => write!(
                f,
                "{operation} the engine: {reason}. It is a projection of the log: if the log still begins with group 1, removing the \
                 folder engine in the data directory rebuilds it; otherwise restore a backup"
            ),
        }
    }
}

impl std::error::Error for EngineError {}

impl Engine {
    /// Opens or creates the engine in `path`, with `cache_bytes` for blocks read from disk.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn open(path: &Path, cache_bytes: u64) -> Result<Self, EngineError> {
        let database = Database::builder(path)
            .cache_size(cache_bytes)
            .manual_journal_persist(true)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .max_cached_files(Some(ENGINE_FILES_MAX))
            .worker_threads(WORKERS)
            .open()
            .map_err(|error| match error {
                fjall::Error::Locked => EngineError::Locked,
                other => failed("opening")(other),
            })?;
        // Set aside by `write`: the engine asks its worker anew at every write beyond the size, and a worker that is busy for long
        // finds its queue full of that and waits for itself.
        let options = || KeyspaceCreateOptions::default().manual_journal_persist(true).max_memtable_size(u64::MAX);
        let mut tables = Vec::with_capacity(Keyspace::ALL.len());
        for keyspace in Keyspace::ALL {
            tables.push(database.keyspace(keyspace.name(), options).map_err(failed("opening"))?);
        }
        let tables = tables.try_into().unwrap_or_else(|_| unreachable!("one table per keyspace"));
        Ok(Self { database, tables, memory: Arc::default() })
    }

    /// What was decided at creation, `None` in a new engine.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn store(&self) -> Result<Option<record::Store>, EngineError> {
        self.meta(META_STORE, |bytes| record::Store::decode(bytes))
    }

    /// Decides what is decided at creation, durably.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn create(&self, store: &record::Store, position: &Position) -> Result<(), EngineError> {
        let mut batch = Batch::default();
        batch.push(Keyspace::Meta, Change::Put, META_STORE, |out| store.encode(out));
        batch.push(Keyspace::Meta, Change::Put, META_POSITION, |out| position.encode(out));
        self.write(&mut batch)?;
        self.database.persist(PersistMode::SyncAll).map_err(failed("syncing"))
    }

    /// What the rows say: the last group, the last stamp, the epoch.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn position(&self) -> Result<Position, EngineError> {
        Ok(self.meta(META_POSITION, |bytes| Position::decode(bytes))?.unwrap_or_default())
    }

    /// Writes the rows of one group in one atomic batch, unsynced. Sorts the batch: half the CPU of inserting unsorted.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn write(&self, batch: &mut Batch) -> Result<(), EngineError> {
        batch.sort();
        for &keyspace in batch.clears() {
            self.table(keyspace).clear().map_err(failed("writing"))?;
        }
        let rows = batch.rows();
        let mut writes = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), rows.len());
        let mut bytes = [0; Keyspace::ALL.len()];
        for row in rows {
            bytes[row.keyspace.index()] += (row.key.len() + row.value.len()) as u64;
            let table = self.table(row.keyspace);
            match row.change {
                Change::Delete => writes.remove(table, row.key),
                Change::Max if self.holds_higher(table, row.key, row.value)? => {}
                Change::Put | Change::Max => writes.insert(table, row.key, row.value),
            }
        }
        writes.commit().map_err(failed("writing"))?;
        for (index, more) in bytes.into_iter().enumerate() {
            let held = self.memory[index].bytes.fetch_add(more, Ordering::Relaxed) + more;
            // Not the position: it goes to disk after the rows it speaks for, in a checkpoint.
            if held >= MEMTABLE_BYTES_MAX && index != Keyspace::Meta.index() {
                self.set_aside(index)?;
            }
        }
        Ok(())
    }

    /// Syncs everything. With `tables`, what is in memory goes to tables first, so that nothing rests on the engine's journal, and
    /// this waits for it. Returns the position read back afterwards.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn checkpoint(&self, tables: bool) -> Result<Position, EngineError> {
        if !tables {
            let position = self.position()?;
            return self.sync(position);
        }
        let checkpoint = self.begin_checkpoint()?;
        loop {
            if let Some(position) = self.finish_checkpoint(&checkpoint)? {
                return Ok(position);
            }
            std::thread::sleep(FLUSH_WAIT);
        }
    }

    /// Sets the memory of all tables aside, to be flushed while writing goes on. Nobody may write meanwhile.
    ///
    /// `meta` is the last table to be written: whatever becomes of the journal, the tables never hold a position that is ahead of
    /// their rows.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn begin_checkpoint(&self) -> Result<Checkpoint, EngineError> {
        const { assert!(matches!(Keyspace::ALL[Keyspace::ALL.len() - 1], Keyspace::Meta)) };
        let position = self.position()?;
        for index in 0..self.tables.len() {
            self.set_aside(index)?;
        }
        Ok(Checkpoint {
            begun: Instant::now(),
            position,
            turns: std::array::from_fn(|index| self.memory[index].turns.load(Ordering::Relaxed)),
        })
    }

    /// `None` while something of what was set aside is not in a table yet. Then syncs, and returns the position that no longer rests on
    /// the engine's journal.
    ///
    /// # Errors
    /// [`EngineError`], also when the tables are not there after a minute.
    pub fn finish_checkpoint(&self, checkpoint: &Checkpoint) -> Result<Option<Position>, EngineError> {
        let is_flushed = self.tables.iter().zip(&*self.memory).zip(checkpoint.turns).all(|((table, memory), turns)| {
            let since = memory.turns.load(Ordering::Relaxed) - turns;
            table.sealed_memtable_count() as u64 <= since
        });
        if is_flushed {
            return self.sync(checkpoint.position).map(Some);
        }
        if checkpoint.begun.elapsed() > FLUSH_MAX {
            return Err(EngineError::Failed {
                operation: "flushing",
                reason: "a table was not written within a minute".to_owned(),
            });
        }
        Ok(None)
    }

    fn set_aside(&self, index: usize) -> Result<(), EngineError> {
        self.memory[index].bytes.store(0, Ordering::Relaxed);
        if self.tables[index].rotate_memtable().map_err(failed("flushing"))? {
            self.memory[index].turns.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn sync(&self, position: Position) -> Result<Position, EngineError> {
        self.database.persist(PersistMode::SyncAll).map_err(failed("syncing"))?;
        let stands = self.position()?;
        if stands.group < position.group {
            let reason = format!("the position read back is {}, it was {}", stands.group, position.group);
            return Err(EngineError::Failed { operation: "syncing", reason });
        }
        Ok(position)
    }

    /// Memory for blocks read from disk.
    #[must_use]
    pub fn cache_bytes(&self) -> u64 {
        self.database.cache_size()
    }

    /// Rows in memory that are not yet in tables on disk.
    #[must_use]
    pub fn tables_bytes(&self) -> u64 {
        self.database.write_buffer_size()
    }

    /// The engine as it stands now, however long the view lives.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View { engine: self, snapshot: self.database.snapshot() }
    }

    fn holds_higher(&self, table: &fjall::Keyspace, key: &[u8], value: &[u8]) -> Result<bool, EngineError> {
        let Some(old) = table.get(key).map_err(failed("reading"))? else { return Ok(false) };
        let seq = |bytes: &[u8]| record::Cursor::decode(bytes).map(|cursor| cursor.seq).unwrap_or(0);
        Ok(seq(&old) >= seq(value))
    }

    fn table(&self, keyspace: Keyspace) -> &fjall::Keyspace {
        &self.tables[keyspace.index()]
    }

    fn meta<T>(&self, key: &[u8], decode: impl Fn(&[u8]) -> Result<T, record::BadValue>) -> Result<Option<T>, EngineError> {
        let Some(bytes) = self.table(Keyspace::Meta).get(key).map_err(failed("reading"))? else { return Ok(None) };
        let value = decode(&bytes).map_err(|error| EngineError::Failed { operation: "reading", reason: error.to_string() })?;
        Ok(Some(value))
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}

/// One snapshot of the engine.
pub struct View<'e> {
    engine: &'e Engine,
    snapshot: fjall::Snapshot,
}

impl Rows for View<'_> {
    type Bytes = Slice;

    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Slice>, EngineError> {
        self.snapshot.get(self.engine.table(keyspace), key).map_err(failed("reading"))
    }

    fn prefix(&self, keyspace: Keyspace, prefix: &[u8]) -> impl Iterator<Item = Row<Slice>> {
        let rows = self.snapshot.prefix(self.engine.table(keyspace), prefix);
        rows.map(|row| row.into_inner().map_err(failed("reading")))
    }

    fn range(&self, keyspace: Keyspace, first: &[u8], last: &[u8]) -> impl DoubleEndedIterator<Item = Row<Slice>> {
        let rows = self.snapshot.range(self.engine.table(keyspace), first.to_vec()..=last.to_vec());
        rows.map(|row| row.into_inner().map_err(failed("reading")))
    }
}

fn failed(operation: &'static str) -> impl Fn(fjall::Error) -> EngineError {
    move |error| EngineError::Failed { operation, reason: error.to_string() }
}

/// Memory of one table before it goes to disk.
const MEMTABLE_BYTES_MAX: u64 = 16 << 20;
/// The engine's own journal. With the log's segment it bounds the worst restart.
const JOURNAL_BYTES_MAX: u64 = 128 << 20;
/// How long the tables of a checkpoint may take to reach the disk.
const FLUSH_MAX: Duration = Duration::from_secs(60);
const FLUSH_WAIT: Duration = Duration::from_millis(10);
/// Threads for flushing and compaction. The first of several hands every compaction back to the queue while another is busy with one,
/// so that two of them cost a core as long as a compaction takes.
const WORKERS: usize = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::model;

    fn batch(group: u64, rows: &[(Keyspace, Change, &[u8], u64)]) -> Batch {
        let mut batch = Batch::default();
        for &(keyspace, change, key, seq) in rows {
            batch.push(keyspace, change, key, |out| record::Cursor { seq }.encode(out));
        }
        batch.push(Keyspace::Meta, Change::Put, META_POSITION, |out| {
            Position { group, changed: group, epoch: 1, epoch_changed: 0 }.encode(out)
        });
        batch
    }

    /// The same batches leave the same rows here and in the obvious model: replaced, deleted, highest-wins and cleared ones.
    #[test]
    fn batches_leave_what_the_model_says() {
        let dir = model::Dir::new("engine");
        let engine = Engine::open(dir.path(), 1 << 20).unwrap();
        let mut model = model::Engine::default();
        let cursor = Keyspace::Cursor;
        let mut batches = vec![
            batch(
                1,
                &[
                    (cursor, Change::Max, b"a", 5),
                    (Keyspace::Dedup0, Change::Put, b"x", 1),
                    (Keyspace::Read, Change::Put, b"r", 9),
                ],
            ),
            batch(2, &[(cursor, Change::Max, b"a", 3), (cursor, Change::Max, b"b", 1), (Keyspace::Read, Change::Put, b"r", 2)]),
            batch(3, &[(Keyspace::Read, Change::Delete, b"r", 0), (Keyspace::Dedup0, Change::Put, b"y", 1)]),
        ];
        batches[2].clear_keyspace(Keyspace::Dedup0);
        let again = || batch(3, &[(cursor, Change::Max, b"a", 4)]);
        for mut batch in batches {
            engine.write(&mut batch).unwrap();
            model.write(batch);
        }
        engine.write(&mut again()).unwrap();
        model.write(again());
        for keyspace in Keyspace::ALL {
            let rows: Vec<_> = engine.view().prefix(keyspace, b"").map(|row| row.unwrap()).collect();
            let rows: Vec<_> = rows.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
            let expected = model.rows.iter().filter(|((other, _), _)| *other == keyspace);
            let expected: Vec<_> = expected.map(|((_, key), value)| (key.clone(), value.clone())).collect();
            assert_eq!(rows, expected, "{keyspace:?}");
        }
        assert_eq!(engine.position().unwrap().group, 3);
    }

    /// What was checkpointed is there after opening again, with the position that belongs to it; a second opener is told why not.
    #[test]
    fn a_checkpoint_survives_and_the_directory_is_ours_alone() {
        let dir = model::Dir::new("engine");
        let engine = Engine::open(dir.path(), 1 << 20).unwrap();
        engine.write(&mut batch(7, &[(Keyspace::Cursor, Change::Max, b"a", 5)])).unwrap();
        assert_eq!(engine.checkpoint(true).unwrap().group, 7);
        assert!(matches!(Engine::open(dir.path(), 1 << 20), Err(EngineError::Locked)));
        drop(engine);
        let engine = Engine::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(engine.position().unwrap(), Position { group: 7, changed: 7, epoch: 1, epoch_changed: 0 });
        assert!(engine.view().get(Keyspace::Cursor, b"a").unwrap().is_some());
    }
}
