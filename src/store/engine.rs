//! The engine: everything the log has said so far, in tables that can be searched.                                 [lsm-tree]
//!
//! A projection and nothing more: the log is the truth, and the only journal. Rows are in memory until a *checkpoint* writes them to
//! tables, the row with the position last; only then may the log forget what lies before it. What a crash takes is replayed.
//!
//! # What a crash in the middle of a checkpoint leaves
//!
//! Some trees have rows of groups that the position does not speak of yet. Each batch has a number of its own in all trees, so the rows
//! up to the position can still be told from those: views see no others ([`Engine::catch_up`]) until the log has been replayed, which
//! writes the others anew. Two rules keep that true. Nothing is merged before the position over it is on disk, because merging forgets
//! replaced rows; and no checkpoint begins before the log has been replayed to its end.

mod flusher;
mod views;

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lsm_tree::{
    AbstractTree, AnyTree, Cache, CompressionType, Config, DescriptorTable, Guard, KvSeparationOptions, SeqNo,
    SequenceNumberCounter, Slice,
};

use self::flusher::{Flusher, Job};
use self::views::Views;
use super::record::{self, Position, Value};
use super::rows::{Row, Rows};
use super::schema::{Batch, Change, Keyspace, META_POSITION, META_STORE};
use crate::limits::{ENGINE_FILES_MAX, REPLAY_BATCH_BYTES};

/// The open engine. Clones share it.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

/// Dropped in this order: the thread first, the lock last.
struct Shared {
    flusher: Flusher,
    /// In the order of [`Keyspace::ALL`].
    trees: Vec<AnyTree>,
    cache: Arc<Cache>,
    /// Number of the next batch, and of the next change of a tree's list of tables.
    next: SequenceNumberCounter,
    views: Arc<Views>,
    /// Nobody else has the directory open.
    _lock: File,
}

/// A checkpoint under way: see [`Engine::begin_checkpoint`].
#[derive(Debug)]
pub struct Checkpoint {
    begun: Instant,
    position: Position,
    number: u64,
}

/// Why the engine cannot be used, naming operation and remedy.
#[derive(Debug)]
pub enum EngineError {
    /// Another process has it open.
    Locked,
    /// It is of a release before this one.
    Older,
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
            Self::Older => f.write_str(
                "the engine in the data directory was written by an older release: make a backup with that one (tidegate backup) and \
                 restore it with this one into an empty data directory (tidegate restore)",
            ),
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
        if path.join(OLDER).exists() {
            return Err(EngineError::Older);
        }
        fs::create_dir_all(path).map_err(failed("making"))?;
        let lock = File::create(path.join("lock")).map_err(failed("locking"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => EngineError::Locked,
            TryLockError::Error(error) => failed("locking")(error),
        })?;
        // The last one is made last, so where it stands all have been made.
        let [.., meta] = Keyspace::ALL;
        let is_new = !path.join(meta.name()).join(TREE).exists();
        if let Some(missing) = Keyspace::ALL.iter().find(|it| !is_new && !path.join(it.name()).join(TREE).exists()) {
            return Err(EngineError::Failed { operation: "opening", reason: format!("{} is missing", missing.name()) });
        }
        let cache = Arc::new(Cache::with_capacity_bytes(cache_bytes));
        let files = Arc::new(DescriptorTable::new(ENGINE_FILES_MAX));
        // A view of state 0 would see nothing, so numbers begin with 1.
        let next = SequenceNumberCounter::new(1);
        let mut trees = Vec::with_capacity(Keyspace::ALL.len());
        for keyspace in Keyspace::ALL {
            let config = Config::new(path.join(keyspace.name()), next.clone(), SequenceNumberCounter::default());
            let config = config.use_cache(cache.clone()).use_descriptor_table(Some(files.clone()));
            // Bodies are written once, and not again with each merge of the rows that point to them.
            let apart = KvSeparationOptions::default().separation_threshold(VALUE_BYTES_APART).compression(CompressionType::None);
            let config = config.with_kv_separation((keyspace == Keyspace::Msg).then_some(apart));
            trees.push(config.open().map_err(failed("opening"))?);
        }
        if is_new {
            let sync = |path: &Path| File::open(path).and_then(|dir| dir.sync_all());
            sync(path).and_then(|()| path.parent().map_or(Ok(()), sync)).map_err(failed("making"))?;
        }
        let highest = trees.iter().filter_map(AbstractTree::get_highest_persisted_seqno).max();
        next.fetch_max(highest.map_or(1, |highest| highest + 1));
        let stands = trees[meta.index()].get_internal_entry(META_POSITION, SeqNo::MAX).map_err(failed("reading"))?;
        let stands = stands.map(|row| row.key.seqno);
        let behind = stands.filter(|stands| highest.is_some_and(|highest| highest > *stands)).map(|stands| stands + 1);
        let views = Arc::new(Views::new(next.get(), behind));
        let flusher = Flusher::start(trees.clone(), views.clone()).map_err(failed("starting a thread of"))?;
        Ok(Self(Arc::new(Shared { flusher, trees, cache, next, views, _lock: lock })))
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
        self.checkpoint().map(drop)
    }

    /// What the rows say: the last group, the last stamp, the epoch.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn position(&self) -> Result<Position, EngineError> {
        Ok(self.meta(META_POSITION, |bytes| Position::decode(bytes))?.unwrap_or_default())
    }

    /// Writes the rows of one group in one atomic batch, into memory. Sorts the batch: half the CPU of inserting unsorted. Only one
    /// thread writes. What empties a keyspace is on disk at once, and not only with the next checkpoint: nobody asks any more for what
    /// it held, and replay empties it again.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn write(&self, batch: &mut Batch) -> Result<(), EngineError> {
        batch.sort();
        for &keyspace in batch.clears() {
            self.tree(keyspace).clear().map_err(failed("writing"))?;
        }
        let seqno = self.0.next.next();
        for row in batch.rows() {
            let tree = self.tree(row.keyspace);
            match row.change {
                Change::Delete => drop(tree.remove(row.key, seqno)),
                Change::Max if holds_higher(tree, row.key, row.value)? => {}
                Change::Put | Change::Max => drop(tree.insert(row.key, row.value, seqno)),
            }
        }
        self.0.views.publish(seqno);
        Ok(())
    }

    /// What is in memory goes to tables, and this waits for it. Returns the position that is on disk.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn checkpoint(&self) -> Result<Position, EngineError> {
        let checkpoint = self.begin_checkpoint()?;
        loop {
            if let Some(position) = self.finish_checkpoint(&checkpoint)? {
                return Ok(position);
            }
            std::thread::sleep(FLUSH_WAIT);
        }
    }

    /// Sets the memory of all tables aside, to be flushed while writing goes on. Nobody may write meanwhile. Waits for an earlier
    /// checkpoint: what is set aside in one tree and not yet in another must not reach the disk under the older position.
    ///
    /// # Errors
    /// [`EngineError`].
    ///
    /// # Panics
    /// If the log has not been replayed: see [`Engine::catch_up`].
    pub fn begin_checkpoint(&self) -> Result<Checkpoint, EngineError> {
        const { assert!(matches!(Keyspace::ALL[Keyspace::ALL.len() - 1], Keyspace::Meta)) };
        assert!(self.0.views.behind().is_none(), "the log is replayed before the first checkpoint");
        self.wait_for_flusher()?;
        let position = self.position()?;
        self.0.trees.iter().for_each(|tree| drop(tree.rotate_memtable()));
        Ok(Checkpoint { begun: Instant::now(), position, number: self.0.flusher.ask(Job::Checkpoint) })
    }

    /// `None` while something of what was set aside is not in a table yet. Then returns the position that is on disk. For the thread
    /// that writes.
    ///
    /// # Errors
    /// [`EngineError`], also when the tables are not there after a minute.
    pub fn finish_checkpoint(&self, checkpoint: &Checkpoint) -> Result<Option<Position>, EngineError> {
        if self.0.flusher.has_done(checkpoint.number).map_err(failed("flushing"))? {
            self.let_go()?;
            return Ok(Some(checkpoint.position));
        }
        if checkpoint.begun.elapsed() > FLUSH_MAX {
            return Err(failed("flushing")("a table was not written within a minute"));
        }
        Ok(None)
    }

    /// What is in memory goes to tables without the position: room for the rest of a long replay.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn spill(&self) -> Result<(), EngineError> {
        self.wait_for_flusher()?;
        let rows = &self.0.trees[..Keyspace::Meta.index()];
        rows.iter().for_each(|tree| drop(tree.rotate_memtable()));
        self.0.flusher.ask(Job::Spill);
        self.wait_for_flusher()?;
        self.let_go()
    }

    /// The log has been replayed to its end: views see everything from here on. Until then they see the rows up to the position that
    /// was found, if a crash has left others beside them.
    pub fn catch_up(&self) {
        self.0.views.catch_up();
    }

    /// Takes out the rows beyond the position that was found, because the log does not have their groups any more. Looks at every row.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn fall_back(&self) -> Result<(), EngineError> {
        let Some((then, now)) = self.0.views.behind() else { return Ok(()) };
        for keyspace in Keyspace::ALL {
            let tree = self.tree(keyspace);
            let mut batch = Batch::default();
            for (from, to) in [(now, then), (then, now)] {
                for row in tree.iter(from, None) {
                    let (key, value) = row.into_inner().map_err(failed("reading"))?;
                    let other = tree.get(&key, to).map_err(failed("reading"))?;
                    let is_ahead = from == now;
                    match other {
                        Some(other) if is_ahead && other != value => {
                            batch.push(keyspace, Change::Put, &key, |out| out.extend_from_slice(&other));
                        }
                        None if is_ahead => batch.push(keyspace, Change::Delete, &key, |_| {}),
                        None => batch.push(keyspace, Change::Put, &key, |out| out.extend_from_slice(&value)),
                        Some(_) => {}
                    }
                    if batch.len_bytes() >= REPLAY_BATCH_BYTES {
                        self.write(&mut batch)?;
                        batch = Batch::default();
                    }
                }
            }
            self.write(&mut batch)?;
        }
        self.catch_up();
        Ok(())
    }

    /// Frees the memory that has been flushed. The list of tables before the flush names it, for views that began with that list; the
    /// next ones begin with the new one.
    fn let_go(&self) -> Result<(), EngineError> {
        self.0.views.publish(self.0.next.next());
        let unseen = self.0.views.unseen_below();
        self.0.trees.iter().try_for_each(|tree| {
            let lists = tree.get_version_history_lock().maintenance(&tree.tree_config().path, unseen);
            lists.map_err(failed("freeing memory of"))
        })
    }

    fn wait_for_flusher(&self) -> Result<(), EngineError> {
        while !self.0.flusher.is_idle().map_err(failed("flushing"))? {
            std::thread::sleep(FLUSH_WAIT);
        }
        Ok(())
    }

    /// Memory for blocks read from disk.
    #[must_use]
    pub fn cache_bytes(&self) -> u64 {
        self.0.cache.size()
    }

    /// Rows in memory that are not yet in tables on disk.
    #[must_use]
    pub fn tables_bytes(&self) -> u64 {
        self.0.trees.iter().map(AbstractTree::version_memtable_size_sum).sum()
    }

    /// The engine as it stands now, however long the view lives.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View { engine: self, instant: self.0.views.open() }
    }

    fn tree(&self, keyspace: Keyspace) -> &AnyTree {
        &self.0.trees[keyspace.index()]
    }

    fn meta<T>(&self, key: &[u8], decode: impl Fn(&[u8]) -> Result<T, record::BadValue>) -> Result<Option<T>, EngineError> {
        let Some(bytes) = self.tree(Keyspace::Meta).get(key, SeqNo::MAX).map_err(failed("reading"))? else { return Ok(None) };
        decode(&bytes).map(Some).map_err(failed("reading"))
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}

/// One state of the engine, however long it is looked at.
pub struct View<'e> {
    engine: &'e Engine,
    instant: SeqNo,
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        self.engine.0.views.close(self.instant);
    }
}

impl Rows for View<'_> {
    type Bytes = Slice;

    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Slice>, EngineError> {
        self.engine.tree(keyspace).get(key, self.instant).map_err(failed("reading"))
    }

    fn prefix(&self, keyspace: Keyspace, prefix: &[u8]) -> impl Iterator<Item = Row<Slice>> {
        let rows = self.engine.tree(keyspace).prefix(prefix, self.instant, None);
        rows.map(|row| row.into_inner().map_err(failed("reading")))
    }

    fn range(&self, keyspace: Keyspace, first: &[u8], last: &[u8]) -> impl DoubleEndedIterator<Item = Row<Slice>> {
        let rows = self.engine.tree(keyspace).range(first.to_vec()..=last.to_vec(), self.instant, None);
        rows.map(|row| row.into_inner().map_err(failed("reading")))
    }
}

fn holds_higher(tree: &AnyTree, key: &[u8], value: &[u8]) -> Result<bool, EngineError> {
    let Some(old) = tree.get(key, SeqNo::MAX).map_err(failed("reading"))? else { return Ok(false) };
    let seq = |bytes: &[u8]| record::Cursor::decode(bytes).map(|cursor| cursor.seq).unwrap_or(0);
    Ok(seq(&old) >= seq(value))
}

fn failed<E: fmt::Display>(operation: &'static str) -> impl Fn(E) -> EngineError {
    move |error| EngineError::Failed { operation, reason: error.to_string() }
}

/// How long the tables of a checkpoint may take to reach the disk.
const FLUSH_MAX: Duration = Duration::from_secs(60);
const FLUSH_WAIT: Duration = Duration::from_millis(10);
/// Values of `msg` from this size on stand in files of their own.
const VALUE_BYTES_APART: u32 = 128;
/// In the folder of a tree: which list of tables is in force. Made last.
const TREE: &str = "current";
/// What older releases kept their trees in.
const OLDER: &str = "keyspaces";

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

    /// What was checkpointed is there after opening again, with the position that belongs to it, and nothing that was not; a second
    /// opener is told why not.
    #[test]
    fn a_checkpoint_survives_and_the_directory_is_ours_alone() {
        let dir = model::Dir::new("engine");
        let engine = Engine::open(dir.path(), 1 << 20).unwrap();
        engine.write(&mut batch(7, &[(Keyspace::Cursor, Change::Max, b"a", 5)])).unwrap();
        assert!(engine.tables_bytes() > 0);
        assert_eq!(engine.checkpoint().unwrap().group, 7);
        assert_eq!(engine.tables_bytes(), 0, "what was flushed is not held");
        engine.write(&mut batch(8, &[(Keyspace::Cursor, Change::Max, b"b", 5)])).unwrap();
        assert!(matches!(Engine::open(dir.path(), 1 << 20), Err(EngineError::Locked)));
        drop(engine);
        let engine = Engine::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(engine.tables_bytes(), 0);
        assert_eq!(engine.position().unwrap(), Position { group: 7, changed: 7, epoch: 1, epoch_changed: 0 });
        assert!(engine.view().get(Keyspace::Cursor, b"a").unwrap().is_some());
        assert!(engine.view().get(Keyspace::Cursor, b"b").unwrap().is_none());
    }

    /// An engine of an older release, and one of which a tree is missing, are refused with what to do.
    #[test]
    fn what_is_no_engine_of_ours_is_refused() {
        let dir = model::Dir::new("engine");
        drop(Engine::open(dir.path(), 1 << 20).unwrap());
        fs::rename(dir.path().join("msg"), dir.path().join("gone")).unwrap();
        let error = Engine::open(dir.path(), 1 << 20).err().unwrap().to_string();
        assert!(error.contains("msg is missing") && error.contains("restore a backup"), "{error}");
        fs::create_dir(dir.path().join(OLDER)).unwrap();
        let error = Engine::open(dir.path(), 1 << 20).err().unwrap().to_string();
        assert!(error.contains("older release") && error.contains("tidegate restore"), "{error}");
    }

    /// Traffic of a few keys, group after group: everything that a batch can hold, and values that stand apart.
    fn traffic(group: u64) -> Batch {
        let mut batch = Batch::default();
        if group.is_multiple_of(7) {
            batch.clear_keyspace(Keyspace::Dedup0);
        }
        let low = |number: u64| u8::try_from(number % 256).unwrap();
        let key = [b'a' + low(group % 5)];
        let long = |out: &mut Vec<u8>| out.resize(out.len() + 100 + usize::from(low(group % 90)), key[0] ^ low(group));
        batch.push(Keyspace::Msg, Change::Put, &[key[0], low(group)], long);
        batch.push(Keyspace::Msg, Change::Delete, &[key[0], low(group - group.min(20))], |_| {});
        batch.push(Keyspace::Dedup0, Change::Put, &key, long);
        batch.push(Keyspace::Read, Change::Put, &key, |out| record::Read { seq: group, changed: group }.encode(out));
        batch.push(Keyspace::Cursor, Change::Max, &key, |out| record::Cursor { seq: group ^ 3 }.encode(out));
        batch.push(Keyspace::Meta, Change::Put, &[&b"ban."[..], &key].concat(), long);
        batch.push(Keyspace::Meta, Change::Put, META_POSITION, |out| {
            Position { group, changed: group, epoch: 1, epoch_changed: 0 }.encode(out)
        });
        batch
    }

    /// Without the keyspace that is emptied now and then: that is on disk at once, and replay empties it again.
    fn lasting(mut rows: model::Engine) -> model::Engine {
        rows.rows.retain(|(keyspace, _), _| *keyspace != Keyspace::Dedup0);
        rows
    }

    fn rows(engine: &Engine) -> model::Engine {
        let mut found = model::Engine::default();
        let view = engine.view();
        for keyspace in Keyspace::ALL {
            for row in view.prefix(keyspace, b"") {
                let (key, value) = row.unwrap();
                found.rows.insert((keyspace, key.to_vec()), value.to_vec());
            }
        }
        found
    }

    /// Rows as of a group.
    fn expected(group: u64) -> model::Engine {
        let mut model = model::Engine::default();
        (1..=group).for_each(|group| model.write(traffic(group)));
        model
    }

    /// A crash while a checkpoint has written some of the trees, whichever, and one after the other: what is seen is what the position
    /// says; replay makes the rest anew, or, where the log has lost it, it is taken out.
    #[test]
    fn what_a_crash_leaves_of_a_checkpoint_is_not_seen() {
        let dir = model::Dir::new("engine");
        let (mut group, mut durable) = (0, 0);
        for round in 0..40 {
            let engine = Engine::open(dir.path(), 1 << 20).unwrap();
            assert_eq!(engine.position().unwrap().group, durable);
            assert!(lasting(rows(&engine)) == lasting(expected(durable)), "round {round}");
            if round % 5 == 4 {
                engine.fall_back().unwrap();
                assert!(lasting(rows(&engine)) == lasting(expected(durable)), "round {round}");
                group = durable;
            }
            for replayed in durable + 1..=group {
                engine.write(&mut traffic(replayed)).unwrap();
                if replayed % 8 == 3 {
                    engine.spill().unwrap();
                }
                if round % 6 == 5 && replayed == durable + 2 {
                    break;
                }
            }
            if round % 6 == 5 {
                continue;
            }
            engine.catch_up();
            let whole = if round % 5 == 4 { lasting } else { |rows| rows };
            assert!(whole(rows(&engine)) == whole(expected(group)), "round {round}");
            for _ in 0..3 + round % 4 {
                group += 1;
                engine.write(&mut traffic(group)).unwrap();
                if group.is_multiple_of(3) {
                    durable = engine.checkpoint().unwrap().group;
                }
            }
            assert!(whole(rows(&engine)) == whole(expected(group)), "round {round}");
            // A checkpoint that comes as far as this; the thread has merged what it merges when it has done one thing more.
            engine.0.flusher.ask(Job::Spill);
            engine.wait_for_flusher().unwrap();
            engine.0.trees.iter().for_each(|tree| drop(tree.rotate_memtable()));
            flusher::flush(&engine.0.trees[..round % Keyspace::ALL.len()], &engine.0.views).unwrap();
        }
    }

    /// A long replay puts rows into tables many times before it comes to its end. Cut off by a crash, it has changed nothing that is seen.
    #[test]
    fn a_long_replay_that_is_cut_off_changes_nothing() {
        let dir = model::Dir::new("engine");
        let engine = Engine::open(dir.path(), 1 << 20).unwrap();
        (1..=10).for_each(|group| engine.write(&mut traffic(group)).unwrap());
        engine.checkpoint().unwrap();
        for group in 11..=40 {
            engine.write(&mut traffic(group)).unwrap();
            engine.spill().unwrap();
        }
        drop(engine);
        let engine = Engine::open(dir.path(), 1 << 20).unwrap();
        assert!(lasting(rows(&engine)) == lasting(expected(10)));
        (11..=40).for_each(|group| engine.write(&mut traffic(group)).unwrap());
        engine.catch_up();
        assert!(rows(&engine) == expected(40));
    }

    /// No checkpoint speaks of rows that replay has not made anew.
    #[test]
    #[should_panic(expected = "the log is replayed before the first checkpoint")]
    fn no_checkpoint_before_the_log_is_replayed() {
        let dir = model::Dir::new("engine");
        let engine = Engine::open(dir.path(), 1 << 20).unwrap();
        engine.write(&mut traffic(1)).unwrap();
        engine.checkpoint().unwrap();
        engine.write(&mut traffic(2)).unwrap();
        engine.spill().unwrap();
        drop(engine);
        let _ = Engine::open(dir.path(), 1 << 20).unwrap().checkpoint();
    }

    /// A view shows the same rows whatever is written, flushed and merged meanwhile.
    #[test]
    fn a_view_stays_as_it_is() {
        let dir = model::Dir::new("engine");
        let engine = Engine::open(dir.path(), 1 << 20).unwrap();
        (1..=30).for_each(|group| engine.write(&mut traffic(group)).unwrap());
        let view = engine.view();
        for group in 31..=70 {
            engine.write(&mut traffic(group)).unwrap();
            engine.checkpoint().unwrap();
        }
        assert!(rows(&engine) == expected(70));
        for ((keyspace, key), value) in expected(30).rows {
            assert_eq!(view.get(keyspace, &key).unwrap().as_deref(), Some(&value[..]), "{keyspace:?}");
        }
        let count: usize = Keyspace::ALL.iter().map(|&keyspace| view.prefix(keyspace, b"").count()).sum();
        assert_eq!(count, expected(30).rows.len());
    }
}
