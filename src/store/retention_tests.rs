//! Tests of [`super`]: a store with retention among neighbours that the test commands, and what crashes leave of it.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use proptest::prelude::*;

use super::super::disk::SpaceRule;
use super::super::disk_memory::{Faults, MemoryDisk};
use super::super::engine_memory::MemoryEngine;
use super::super::job::{Loaded, Progress, Projection};
use super::super::level::Levels;
use super::super::log::{Log, LogSettings};
use super::super::neighbours::Neighbours;
use super::super::reader::{Reply, reply};
use super::super::record;
use super::super::recovery::Cold;
use super::super::schema::Hashes;
use super::super::sequencer::{Policy, Sequencer, Settings};
use super::*;
use crate::clock::Moment;
use crate::ids::{Cmid, ReactorId, RosterId, SessionRef};
use crate::mail::{Attach, Event, MemberChange, MemberMail, PageMail, PageRequest, SendMail, Sender, Submit, TokenMark};
use crate::observe::trace::Sampling;
use crate::wire::envelope::{Encoding, ServerFrame, ServerFrames, page_flags, send_flags};
use crate::wire::message::Body;

const STORE: record::Store = record::Store { shard: 0, shards: 1, dedup_s: 86_400, hash_key: [7; 16] };
const CONVS: [&str; 3] = ["d:al:bo", "d:al:al", "d:al:cy"];
const SESSION: SessionRef = SessionRef { reactor: ReactorId(0), index: 0, generation: 1 };

/// A store and its neighbours. Readers and projector work when told.
struct World {
    disk: MemoryDisk,
    engine: MemoryEngine,
    progress: Arc<Progress>,
    neighbours: Neighbours,
    /// Pages the readers have made.
    pages: Vec<Vec<u8>>,
}

impl Deref for World {
    type Target = Neighbours;
    fn deref(&self) -> &Neighbours {
        &self.neighbours
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Neighbours {
        &mut self.neighbours
    }
}

impl Cold for World {
    fn load(&mut self, conv: &str) -> Result<Option<Loaded>, JobFault> {
        self.history().load(conv)
    }
    fn meta(&mut self, _: &[u8]) -> Result<Vec<Vec<u8>>, JobFault> {
        Ok(Vec::new())
    }
    fn project(&mut self, projection: Projection) {
        self.engine.write(projection.batch);
    }
}

impl World {
    fn new(disk: MemoryDisk, engine: MemoryEngine, now: Moment) -> Self {
        let group = Rows::position(&&engine).unwrap().group;
        Self { disk, engine, progress: Arc::new(Progress::new(group)), neighbours: Neighbours::new(now), pages: Vec::new() }
    }

    fn history(&self) -> History<&MemoryEngine> {
        History::new(&self.engine, Hashes::new(STORE.hash_key)).unwrap()
    }

    fn open(&mut self, keep: Keep) -> Result<Sequencer<MemoryDisk>, String> {
        let position = Rows::position(&&self.engine).unwrap();
        let settings = LogSettings { segment_bytes: 1 << 14, accept_loss: false, projected: position.group };
        let (log, recovered) = Log::open(self.disk.clone(), settings).map_err(|error| error.to_string())?;
        let settings = Settings {
            levels: Levels::all(2),
            hellos_per_minute: 0,
            sampling: Sampling { every: 0 },
            space: SpaceRule { free_bytes_min: 0, free_percent_min: 0 },
            cores: 1,
            policy: Policy { keep, ..Policy::default() },
            started_ms: 0,
        };
        let progress = Arc::clone(&self.progress);
        Sequencer::recover(log, &recovered, (&STORE, &position), settings, progress, self).map_err(|error| error.to_string())
    }

    fn project_all(&mut self) {
        while let Some(Projection { number, batch }) = self.projections.pop_front() {
            let bytes = batch.len_bytes() as u64;
            self.engine.write(batch);
            self.progress.written(number, bytes.min(self.progress.backlog_bytes()));
        }
    }

    /// A reader answers the first job from the engine as it stands.
    fn serve_job(&mut self) {
        let Some(job) = self.jobs.pop_front() else { return };
        if self.progress.projected() < job.after() {
            self.project_all();
        }
        match reply(Ok(self.history()), job, self.now.get().unix_ms / 1000) {
            Reply::Answer(answer) => self.answers.push_back(answer),
            Reply::Page(page) => self.pages.push(page.result.unwrap()),
            Reply::Look(..) => unreachable!("nobody looks"),
        }
    }

    fn settle(&mut self, sequencer: &mut Sequencer<MemoryDisk>) {
        for _ in 0..200 {
            sequencer.turn(self).unwrap();
            self.project_all();
            self.serve_job();
            self.pass(10);
        }
    }

    fn attach(&mut self) {
        let device = Text::from("web");
        self.submits.push_back(Submit::Attach(Attach {
            session: SESSION,
            user: "al".into(),
            device,
            platform: 0,
            caps: 0,
            claim: None,
            token: TokenMark::default(),
        }));
    }

    fn send(&mut self, conv: &str, number: u64, flags: u8) {
        let mut cmid = [3; 16];
        cmid[..8].copy_from_slice(&number.to_be_bytes());
        let mail = SendMail {
            from: Sender { session: SESSION, roster: RosterId(0), rid: u32::try_from(number).unwrap() },
            cmid: Cmid(cmid),
            flags,
            kind: 0,
            ttl_s: 0,
            trace: None,
            conv: conv.into(),
            payload: Body::copy_from(&number.to_be_bytes()),
            refusal: None,
            received: Moment::default(),
        };
        self.submits.push_back(Submit::Send(mail));
    }

    /// A group or channel with its sender as the only member.
    fn create(&mut self, conv: &str) {
        let (reply, _) = std::sync::mpsc::sync_channel(1);
        let change = MemberChange::Create(vec!["al".into()]);
        self.submits.push_back(Submit::Member(MemberMail { conv: conv.into(), change, data: Body::new(), reply }));
    }

    /// Seqs whose rows are there, and the floor of the head row.
    fn kept(&self, conv: &str) -> (u64, Vec<u64>) {
        let key = Hashes::new(STORE.hash_key).conv(conv);
        let engine = &self.engine;
        let rows = Rows::prefix(&engine, Keyspace::Msg, &key.0);
        let seqs = rows.map(|row| schema::msg_seq(row.unwrap().0).unwrap()).collect();
        let head = Rows::get(&&self.engine, Keyspace::Head, &schema::head_key(key)).unwrap();
        (head.map_or(1, |row| Head::decode(row).unwrap().floor), seqs)
    }
}

fn started(keep: Keep) -> (World, Sequencer<MemoryDisk>) {
    let engine = MemoryEngine::new(&STORE, &record::Position { epoch: 1, ..record::Position::default() });
    let mut world = World::new(MemoryDisk::default(), engine, Moment { mono_ns: 1, unix_ms: 1_764_000_000_000 });
    let mut sequencer = world.open(keep).unwrap();
    world.attach();
    sequencer.turn(&mut world).unwrap();
    (world, sequencer)
}

fn newest(count: u64) -> Keep {
    let bounds = Bounds { age_s: 0, count };
    Keep { direct: bounds, every: Duration::from_millis(50), ..Keep::default() }
}

/// By count the newest stay; by age the young ones; a class without bounds keeps all. The floor says where, and FETCH below it too.
#[test]
fn each_class_keeps_what_it_should() {
    let bounds = |age_s, count| Bounds { age_s, count };
    let keep = Keep { direct: bounds(100, 7), group: bounds(200, 3), every: Duration::from_millis(50), ..Keep::default() };
    let (mut world, mut sequencer) = started(keep);
    for conv in ["g:al", "c:al"] {
        world.create(conv);
    }
    world.settle(&mut sequencer);
    for number in 1..=20 {
        world.send("d:al:bo", number, if number % 2 == 0 { send_flags::QUIET } else { 0 });
        world.send("g:al", 100 + number, 0);
        world.send("c:al", 200 + number, 0);
    }
    world.settle(&mut sequencer);
    assert_eq!(world.kept("d:al:bo"), (14, (14..=20).collect()));
    assert_eq!(world.kept("g:al"), (18, vec![18, 19, 20]));
    world.pass(90_000);
    world.send("d:al:bo", 21, 0);
    world.settle(&mut sequencer);
    assert_eq!(world.kept("d:al:bo"), (15, (15..=21).collect()));
    world.pass(8_000);
    world.settle(&mut sequencer);
    assert_eq!(world.kept("d:al:bo"), (21, vec![21]));
    assert_eq!(world.kept("g:al"), (18, vec![18, 19, 20]), "younger than groups may be");
    world.pass(200_000);
    world.settle(&mut sequencer);
    assert_eq!(world.kept("d:al:bo"), (22, vec![]));
    assert_eq!(world.kept("g:al"), (21, vec![]));
    assert_eq!(world.kept("c:al"), (1, (1..=20).collect()), "nothing is set for channels");
    let from = Sender { session: SESSION, roster: RosterId(0), rid: 9 };
    let request = PageRequest::Fetch { conv: "d:al:bo".into(), from: 3, to: 0, limit: 100, newest: false };
    world.submits.push_back(Submit::Page(PageMail { from, encoding: Encoding::Binary, max_frame: 1 << 16, request }));
    world.settle(&mut sequencer);
    let page = world.pages.pop().unwrap();
    let frame = ServerFrames::new(Encoding::Binary, &page).next();
    let Some(Ok(ServerFrame::Page { flags, floor, head, messages, .. })) = frame else { panic!("a page: {frame:?}") };
    assert_eq!((flags, floor, head, messages.len()), (page_flags::BELOW_FLOOR, 22, 21, 0));
    // Numbering goes on, and a repeat of what is gone gets its old number.
    world.groups.clear();
    world.send("d:al:bo", 22, 0);
    world.send("d:al:bo", 1, send_flags::RETRY);
    world.settle(&mut sequencer);
    let sents = world.groups.iter().flat_map(|(_, group)| &group.events);
    let seqs: Vec<u64> = sents.filter_map(|event| if let Event::Sent { seq, .. } = event { Some(*seq) } else { None }).collect();
    assert_eq!(seqs, [22, 1]);
}

/// More than one step may take goes in several; whoever writes meanwhile is not in its way.
#[test]
fn much_goes_in_steps() {
    let (mut world, mut sequencer) = started(newest(3));
    let total = RETIRED_PER_STEP_MAX as u64 * 2 + 100;
    for number in 1..=total {
        world.send(CONVS[usize::try_from(number % 3).unwrap()], number, 0);
        if number <= 3 {
            // Then the conversations are in memory, and nothing is parked.
            world.settle(&mut sequencer);
        }
    }
    for _ in 0..10 {
        world.settle(&mut sequencer);
    }
    for conv in CONVS {
        let (floor, seqs) = world.kept(conv);
        assert_eq!((seqs.len(), seqs[0]), (3, floor), "{conv}");
    }
    let counters = sequencer.counters();
    assert_eq!(counters.messages_retired_count, total - 9);
    assert!(counters.floors_raised_count >= 3);
}

/// Opened again from the log alone, an engine that has lost everything holds what it held: nothing comes back from below a floor.
#[test]
fn replay_brings_nothing_back() {
    let (mut world, mut sequencer) = started(newest(2));
    for number in 1..=30 {
        world.send("d:al:bo", number, 0);
        world.settle(&mut sequencer);
    }
    let before = world.kept("d:al:bo");
    assert_eq!(before, (29, vec![29, 30]));
    sequencer.finish(&mut world).unwrap();
    drop(sequencer);
    let engine = MemoryEngine::new(&STORE, &record::Position { epoch: 1, ..record::Position::default() });
    let mut again = World::new(world.disk.clone(), engine, world.now.get());
    // Without retention now: what is gone stays gone.
    drop(again.open(Keep::default()).unwrap());
    assert_eq!(again.kept("d:al:bo"), before);
}

/// What a run knows for certain: the highest seq that was acknowledged, and the highest floor that a reader could have told.
#[derive(Debug, Default)]
struct Truth {
    sent: BTreeMap<&'static str, u64>,
    told: BTreeMap<&'static str, u64>,
    asked: BTreeMap<u32, &'static str>,
}

impl Truth {
    fn hear(&mut self, world: &mut World) {
        for event in world.groups.drain(..).flat_map(|(_, group)| group.events) {
            if let Event::Sent { rid, seq, .. } = event {
                let highest = self.sent.entry(self.asked[&rid]).or_default();
                *highest = seq.max(*highest);
            }
        }
        for conv in CONVS {
            self.told.insert(conv, world.kept(conv).0);
        }
    }

    /// After a crash: whole from the floor on, nothing below it, and no floor lower than one that was told.
    fn check(&self, world: &World, count: u64) -> Result<(), String> {
        for conv in CONVS {
            let (floor, seqs) = world.kept(conv);
            let (sent, told) = (self.sent.get(conv).copied().unwrap_or(0), self.told.get(conv).copied().unwrap_or(1));
            let head = seqs.last().copied().unwrap_or(floor - 1);
            if seqs != (floor..=head).collect::<Vec<_>>() || head < sent {
                return Err(format!("{conv}: floor {floor}, acknowledged up to {sent}, there are {seqs:?}"));
            }
            if floor < told {
                return Err(format!("{conv}: the floor was told as {told} and is {floor}"));
            }
            if floor > 1 && floor + count > head + 1 {
                return Err(format!("{conv}: floor {floor} and head {head} keep less than {count}"));
            }
        }
        Ok(())
    }
}

/// Traffic with retention, and then the power goes at a sync that fails, with any part of what was not synced on disk, and with the
/// engine at any place from its last checkpoint on. Returns what the checker says after recovery.
fn power_cut(steps: &[u8], syncs: u64, keep: u64) -> Result<(), String> {
    let count = 2;
    let (mut world, mut sequencer) = started(newest(count));
    world.disk.set_faults(Faults { syncs_left: Some(syncs), ..Faults::default() });
    let mut truth = Truth::default();
    for (number, step) in (1..).zip(steps) {
        match step {
            0..=8 => {
                let conv = CONVS[usize::from(step % 3)];
                truth.asked.insert(u32::try_from(number).unwrap(), conv);
                world.send(conv, number, 0);
            }
            9 | 10 => world.serve_job(),
            11 => world.project_all(),
            12 => drop(world.engine.checkpoint()),
            13 => world.pass(60),
            _ => {
                let ended = sequencer.turn(&mut world).is_err();
                truth.hear(&mut world);
                if ended {
                    break;
                }
            }
        }
    }
    // The projector writes on for a moment after the log has failed.
    world.project_all();
    truth.hear(&mut world);
    let mut bits = keep;
    let files = world.disk.power_cut(|_| {
        bits = bits.rotate_right(1);
        bits & 1 != 0
    });
    let kept = world.engine.unsynced_count() * usize::try_from(keep % 5).unwrap() / 4;
    let now = world.now.get();
    // A floor that only the lost part of the engine had is told again by the log.
    let mut world = World::new(MemoryDisk::with_files(files), world.engine.crash(kept), now);
    let mut sequencer = world.open(newest(count))?;
    truth.check(&world, count)?;
    world.attach();
    world.settle(&mut sequencer);
    truth.check(&world, count)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a crash leaves, each conversation is whole from its floor on, and no floor goes back.
    #[test]
    fn a_crash_leaves_floor_and_rows_consistent(
        steps in prop::collection::vec(0..22_u8, 1..250), syncs in 0..20_u64, keep in any::<u64>(),
    ) {
        prop_assert_eq!(power_cut(&steps, syncs, keep), Ok(()));
    }
}

/// Retention that is under way when a sync fails, and the rows of the engine are all kept: `Mutant::RowsBeforeFloor` fails here.
#[test]
fn rows_go_after_their_floor() {
    let mut steps = vec![];
    for _ in 0..4 {
        steps.extend([0, 0, 0, 21, 9, 21, 11, 12, 13, 21, 9, 21, 11, 12]);
    }
    for syncs in 0..8 {
        assert_eq!(power_cut(&steps, syncs, 0), Ok(()));
    }
}
