//! Damage to a whole store, log and real engine: after it a start gives back every promised message in its place, or refuses by
//! name. Never silence.
//!
//! The log has been deleted as far as the engine's position reaches; of some groups behind that the tables have rows, as a crash in the
//! middle of a checkpoint leaves them, and the last ones are in the log alone. Each case damages one place: a bit, or the rest of a file from there on. The places are drawn, with a
//! seed, from the bytes that are in use.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tidegate::ids::Cmid;
use tidegate::observe::trace::Sampling;
use tidegate::store::apply::{Admission, State, Submission};
use tidegate::store::disk::SpaceRule;
use tidegate::store::disk_memory::MemoryDisk;
use tidegate::store::engine::Engine;
use tidegate::store::history::History;
use tidegate::store::job::{JobFault, Loaded, Progress, Projection};
use tidegate::store::level::Levels;
use tidegate::store::log::{Log, LogSettings};
use tidegate::store::record::{MessageHeader, Position, Store};
use tidegate::store::recovery::Cold;
use tidegate::store::rows::Rows;
use tidegate::store::schema::{Batch, Hashes, Keyspace, msg_seq};
use tidegate::store::sequencer::{Policy, Sequencer, Settings};

const STORE: Store = Store { shard: 0, shards: 1, dedup_s: 86_400, hash_key: [7; 16] };
const CONVS: [&str; 3] = ["d:al:bo", "d:al:cy", "d:al:al"];
const NOW_MS: u64 = 1_764_000_000_000;
const SEGMENT_BYTES: u64 = 8 * 1024;
const GROUPS: u64 = 120;
/// Groups the engine's position speaks of; the log begins in the segment behind them.
const IN_TABLES: u64 = 60;
/// Groups of which its tables have rows.
const IN_ENGINE: u64 = 90;
const WATERMARK: u64 = 110;

/// Conversation, seq, cmid and payload of a message.
type Row = (&'static str, u64, Cmid, Vec<u8>);

/// The store before anything is damaged.
struct Written {
    /// Messages by the group they came with.
    groups: Vec<Vec<Row>>,
    log: BTreeMap<String, Vec<u8>>,
    /// Engine files: contents up to the last byte that is not zero, and length.
    engine: BTreeMap<PathBuf, (Vec<u8>, u64)>,
}

impl Written {
    fn new() -> Self {
        let dir = Dir::new("whole");
        let engine = Engine::open(&dir.0, 1 << 20).unwrap();
        let position = Position { group: 0, changed: 0, epoch: 1, epoch_changed: 0 };
        engine.create(&STORE, &position).unwrap();
        let disk = MemoryDisk::default();
        let mut log = Log::open(disk.clone(), log_settings(0)).unwrap().0;
        let mut state = State::new(&STORE, &position);
        for conv in CONVS {
            state.insert(conv, None);
        }
        let mut groups = Vec::new();
        for number in 1..=GROUPS {
            let (body, rows, mut batch) = group(&mut state, number);
            assert_eq!(log.write(u32::try_from(rows.len()).unwrap(), &body).unwrap(), number);
            log.sync().unwrap();
            groups.push(rows);
            if number == WATERMARK {
                log.save_watermark().unwrap();
            }
            if number <= IN_ENGINE {
                engine.write(&mut batch).unwrap();
            }
            if number == IN_TABLES {
                assert_eq!(engine.checkpoint().unwrap().group, IN_TABLES);
                log.delete_through(IN_TABLES).unwrap();
            }
        }
        engine.spill().unwrap();
        drop(engine);
        Self { groups, log: disk.files(), engine: files_of(&dir.0) }
    }

    /// Starts on these files. `Ok`: the last group that is there, every message up to it having been found in its place, and nothing
    /// else.
    fn start(&self, log: BTreeMap<String, Vec<u8>>, engine: &BTreeMap<PathBuf, (Vec<u8>, u64)>) -> Result<u64, String> {
        let dir = Dir::new("damaged");
        write_files(&dir.0, engine);
        let open = Engine::open(&dir.0, 1 << 20).map_err(|error| error.to_string())?;
        let store = open.store().map_err(|error| error.to_string())?.ok_or("a new engine")?;
        assert_eq!(store, STORE);
        let position = open.position().map_err(|error| error.to_string())?;
        let disk = MemoryDisk::with_files(log);
        let (log, recovered) = Log::open(disk, log_settings(position.group)).map_err(|error| error.to_string())?;
        let last = recovered.last;
        let mut cold = Direct { engine: &open };
        let settings = Settings {
            levels: Levels::all(2),
            hellos_per_minute: 0,
            sampling: Sampling { every: 0 },
            space: SpaceRule { free_bytes_min: 0, free_percent_min: 0 },
            cores: 1,
            policy: Policy::default(),
            started_ms: 0,
        };
        let progress = Arc::new(Progress::new(position.group));
        Sequencer::recover(log, &recovered, (&store, &position), settings, progress, &mut cold)
            .map_err(|error| error.to_string())?;
        assert_eq!(open.position().unwrap().group, last);
        open.catch_up();
        self.compare(&open, last)?;
        Ok(last)
    }

    /// Holds the rows against what was written. An error of the engine's is an answer; a row that is missing or wrong is not.
    fn compare(&self, engine: &Engine, last: u64) -> Result<(), String> {
        let hashes = Hashes::new(STORE.hash_key);
        let expected: BTreeSet<Row> = self.groups.iter().take(usize::try_from(last).unwrap()).flatten().cloned().collect();
        let mut found = BTreeSet::new();
        for conv in CONVS {
            for row in engine.view().prefix(Keyspace::Msg, &hashes.conv(conv).0) {
                let (key, value) = row.map_err(|error| error.to_string())?;
                let (header, payload) = MessageHeader::decode(&value).map_err(|error| error.to_string())?;
                assert!(found.insert((conv, msg_seq(&key).unwrap(), header.cmid, payload.to_vec())));
            }
        }
        assert!(found == expected, "{} messages of {} after group {last}", found.len(), expected.len());
        let history = History::new(engine.view(), hashes).map_err(|error| error.to_string())?;
        for (conv, seq, cmid, _) in &expected {
            let stored = history.dedup("al", *cmid).map_err(|fault| format!("{fault:?}"))?.expect("a stored cmid is known");
            assert_eq!((stored.conv, stored.seq), (hashes.conv(conv).0, *seq));
        }
        Ok(())
    }
}

/// One to three messages of `al`, as the store thread would take them in.
fn group(state: &mut State, number: u64) -> (Vec<u8>, Vec<Row>, Batch) {
    let (mut body, mut rows, mut batch) = (Vec::new(), Vec::new(), Batch::default());
    for index in 0..=number % 3 {
        let conv = CONVS[usize::try_from((number + index) % 3).unwrap()];
        let mut cmid = [1; 16];
        cmid[..8].copy_from_slice(&number.to_be_bytes());
        cmid[8] = u8::try_from(index).unwrap();
        let payload = vec![u8::try_from(number % 251).unwrap(); usize::try_from(20 + number * 7 % 150).unwrap()];
        let cmid = Cmid(cmid);
        let send = Submission {
            conv,
            user: "al",
            cmid,
            flags: 0,
            kind: 1,
            ttl_s: 0,
            trace: None,
            payload: &payload,
            is_operator: false,
            refusal: None,
            stored: None,
        };
        let Admission::Accept(entry) = state.admit_send(&send, NOW_MS + number) else { panic!("a good message is accepted") };
        entry.encode(&mut body);
        state.apply(&entry, number, &mut batch).unwrap();
        let seq = state.conversation(state.hashes().conv(conv)).unwrap().head;
        rows.push((conv, seq, cmid, payload.clone()));
    }
    state.finish(number, &mut batch);
    (body, rows, batch)
}

/// The engine during recovery.
struct Direct<'a> {
    engine: &'a Engine,
}

impl Cold for Direct<'_> {
    fn meta(&mut self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, JobFault> {
        History::new(self.engine.view(), Hashes::new(STORE.hash_key)).map_err(|_| JobFault::Engine)?.meta(prefix)
    }

    fn load(&mut self, conv: &str) -> Result<Option<Loaded>, JobFault> {
        History::new(self.engine.view(), Hashes::new(STORE.hash_key)).map_err(|_| JobFault::Engine)?.load(conv)
    }

    fn project(&mut self, mut projection: Projection) {
        self.engine.write(&mut projection.batch).expect("the engine takes rows");
    }
}

fn log_settings(projected: u64) -> LogSettings {
    LogSettings { segment_bytes: SEGMENT_BYTES, accept_loss: false, projected }
}

/// A directory of its own, removed with it.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let thread = std::thread::current().id();
        let path = std::env::temp_dir().join(format!("tidegate-{name}-{}-{thread:?}", std::process::id()));
        drop(fs::remove_dir_all(&path));
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn files_of(root: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u64)> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let mut bytes = fs::read(&path).unwrap();
            let len = bytes.len() as u64;
            bytes.truncate(bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1));
            files.insert(path.strip_prefix(root).unwrap().to_owned(), (bytes, len));
        }
    }
    files
}

fn write_files(root: &Path, files: &BTreeMap<PathBuf, (Vec<u8>, u64)>) {
    for (name, (bytes, len)) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = fs::File::create(path).unwrap();
        file.write_all(bytes).unwrap();
        file.set_len(*len).unwrap();
    }
}

/// Small, seeded, good enough to spread the samples.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).unwrap()
    }
}

/// What damage came to.
#[derive(Default, Debug)]
struct Tally {
    recovered: u64,
    refused: BTreeMap<String, u64>,
}

impl Tally {
    fn count(&mut self, outcome: Result<u64, String>) {
        match outcome {
            Ok(_) => self.recovered += 1,
            Err(reason) => {
                assert!(!reason.is_empty());
                *self.refused.entry(reason.chars().filter(|c| !c.is_ascii_digit()).take(90).collect()).or_default() += 1;
            }
        }
    }
}

/// Undamaged, everything is there; without the group that ends a conversation, the comparison says so.
#[test]
fn an_undamaged_store_starts_and_the_comparison_can_fail() {
    let mut written = Written::new();
    assert!(
        !written.log.keys().any(|name| name.starts_with(&format!("{:020}-", 1))),
        "the log has been deleted behind the tables"
    );
    assert_eq!(written.start(written.log.clone(), &written.engine), Ok(GROUPS));
    written.groups[70].pop();
    let failed = catch_unwind(AssertUnwindSafe(|| written.start(written.log.clone(), &written.engine)));
    assert!(failed.is_err());
}

/// One place of the log is damaged.
#[test]
fn a_damaged_log_is_recovered_or_refused() {
    let written = Written::new();
    let mut dice = Dice(0x5DEE_CE66_D1CE_CAFE);
    let mut tally = Tally::default();
    let begun = Instant::now();
    let names: Vec<&String> = written.log.keys().collect();
    for case in 0..150 {
        let name = names[dice.below(names.len())];
        let mut log = written.log.clone();
        let bytes = log.get_mut(name).unwrap();
        let at = dice.below(bytes.len());
        if case % 3 == 0 {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 1 << dice.below(8);
        }
        let is_watermark = name == "watermark";
        let outcome = written.start(log, &written.engine);
        if let Ok(last) = &outcome {
            // A damaged watermark says nothing, and is the only damage then.
            assert!(*last >= if is_watermark { GROUPS } else { WATERMARK }, "{name} at {at}");
        }
        tally.count(outcome);
    }
    println!("{:?}: {tally:#?}", begun.elapsed());
    assert!(tally.recovered > 0 && tally.refused.keys().all(|reason| reason.starts_with("log segment")));
}

/// One place of the engine is damaged: a table, a body, or what it keeps about them.
#[test]
fn a_damaged_engine_is_filled_from_the_log_or_refused() {
    let written = Written::new();
    let mut dice = Dice(0x1CEB_00DA_F00D_FACE);
    let mut tally = Tally::default();
    let begun = Instant::now();
    let names: Vec<&PathBuf> = written.engine.iter().filter(|(_, (bytes, _))| !bytes.is_empty()).map(|(name, _)| name).collect();
    for case in 0..150 {
        let name = names[dice.below(names.len())];
        let mut engine = written.engine.clone();
        let (bytes, len) = engine.get_mut(name).unwrap();
        let at = dice.below(bytes.len());
        if case % 3 == 0 {
            bytes.truncate(at);
            *len = at as u64;
        } else {
            bytes[at] ^= 1 << dice.below(8);
        }
        let outcome = written.start(written.log.clone(), &engine);
        if let Ok(last) = &outcome {
            assert_eq!(*last, GROUPS, "{} at {at}", name.display());
        }
        tally.count(outcome);
    }
    println!("{:?}: {tally:#?}", begun.elapsed());
    assert!(tally.recovered > 0);
}
