//! Tests of [`super`]: a store driven turn by turn, on a disk and among neighbours that the test commands.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use proptest::prelude::*;

use super::super::disk_memory::{Faults, MemoryDisk};
use super::super::job::{JobFault, Loaded};
use super::super::log::LogSettings;
use super::super::model::Engine;
use super::super::retention::Swept;
use super::super::schema::{Hashes, Keyspace};
use super::*;
use crate::ids::RosterId;
use crate::mail::PageRequest;
use crate::wire::envelope::Encoding;
use crate::wire::message::Body;

const STORE: record::Store = record::Store { shard: 0, shards: 1, dedup_s: 86_400, hash_key: [7; 16] };
const SPACE: SpaceRule = SpaceRule { free_bytes_min: 1 << 20, free_percent_min: 0 };

/// The neighbours: readers and projector work when told, lanes hold as much as told.
struct World {
    now: Cell<Moment>,
    submits: VecDeque<Submit>,
    answers: VecDeque<Answer>,
    jobs: VecDeque<Job>,
    jobs_max: usize,
    projections: VecDeque<Projection>,
    engine: Engine,
    progress: Arc<Progress>,
    groups: Vec<(ReactorId, Group)>,
    groups_max: usize,
    given_back: u64,
}

impl Ports for World {
    fn now(&self) -> Moment {
        self.now.get()
    }
    fn next_submit(&mut self) -> Option<Submit> {
        self.submits.pop_front()
    }
    fn next_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }
    fn send_group(&mut self, reactor: ReactorId, group: Group) -> Result<(), Group> {
        if self.groups.len() >= self.groups_max {
            return Err(group);
        }
        self.groups.push((reactor, group));
        Ok(())
    }
    fn send_job(&mut self, job: Job) -> bool {
        let fits = self.jobs.len() < self.jobs_max;
        if fits {
            self.jobs.push_back(job);
        }
        fits
    }
    fn send_projection(&mut self, projection: Projection) -> Result<(), Projection> {
        self.projections.push_back(projection);
        Ok(())
    }
    fn give_back(&mut self, bytes: u64) {
        self.given_back += bytes;
    }
}

impl Cold for World {
    fn load(&mut self, conv: &str) -> Result<Option<Loaded>, JobFault> {
        Ok(self.engine.load(&hashes(), conv))
    }
    fn bans(&mut self) -> Result<Vec<(Text, Option<Text>)>, JobFault> {
        Ok(self.engine.bans())
    }
    fn project(&mut self, projection: Projection) {
        self.engine.write(projection.batch);
    }
}

impl World {
    fn new(engine: Engine) -> Self {
        Self {
            now: Cell::new(Moment { mono_ns: 1, unix_ms: 1_764_000_000_000 }),
            submits: VecDeque::new(),
            answers: VecDeque::new(),
            jobs: VecDeque::new(),
            jobs_max: usize::MAX,
            projections: VecDeque::new(),
            progress: Arc::new(Progress::new(engine.position().group)),
            engine,
            groups: Vec::new(),
            groups_max: usize::MAX,
            given_back: 0,
        }
    }

    fn pass(&self, ms: u64) {
        let now = self.now.get();
        self.now.set(Moment { mono_ns: now.mono_ns + ms * 1_000_000, unix_ms: now.unix_ms + ms });
    }

    /// The projector writes what it was given.
    fn project_all(&mut self) {
        while let Some(projection) = self.projections.pop_front() {
            let bytes = projection.batch.len_bytes() as u64;
            self.engine.write(projection.batch);
            self.progress.written(projection.number, bytes);
        }
    }

    /// A reader answers the first job, on an engine that holds the group it asks for. Pages are only checked.
    fn serve_job(&mut self) {
        let Some(job) = self.jobs.pop_front() else { return };
        self.project_all();
        let hashes = hashes();
        let answer = match job {
            Job::Look { .. } => return,
            Job::Page { after, .. } => {
                assert!(self.progress.projected() >= after, "a page waits for a group that is not there");
                return;
            }
            Job::Sweep { .. } => Answer::Swept(Ok(Swept::default())),
            Job::Load { conv, after } => {
                assert!(self.progress.projected() >= after);
                Answer::Loaded { result: Ok(self.engine.load(&hashes, &conv)), conv }
            }
            Job::Position { conv, user, .. } => {
                Answer::Position { result: Ok(self.engine.positions(&hashes, &conv, &user)), conv, user }
            }
            Job::Share { watch, user, turn, .. } => {
                let shares = |other: &Text| other.as_str() == user.as_str() || other.as_str().starts_with('f');
                Answer::Shared { result: Ok(watch.users.iter().map(shares).collect()), watch, turn }
            }
            Job::Dedup { conv, user, cmid, .. } => {
                Answer::Dedup { result: Ok(self.engine.dedup(&hashes, &user, cmid)), conv, user, cmid }
            }
        };
        self.answers.push_back(answer);
    }

    /// All events of one core so far, each with the targets it names.
    fn events(&mut self, core: u16) -> Vec<(Event, Vec<u32>)> {
        let (mine, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.groups).into_iter().partition(|(reactor, _)| reactor.0 == core);
        self.groups = others;
        let mut events = Vec::new();
        for (_, group) in mine {
            for event in group.events {
                let targets = match &event {
                    Event::Deliver { first, count, .. }
                    | Event::Conv { first, count, .. }
                    | Event::Notice { first, count, .. }
                    | Event::Receipt { first, count, .. }
                    | Event::Presence { first, count, .. }
                    | Event::Signalled { first, count, .. } => {
                        let range = *first as usize..(*first + *count) as usize;
                        group.targets[range].iter().map(|target| target.index).collect()
                    }
                    _ => Vec::new(),
                };
                events.push((event, targets));
            }
        }
        events
    }

    /// The events of core 0 in a form that is easy to compare.
    fn told(&mut self) -> Vec<String> {
        let tell = |(event, targets): (Event, Vec<u32>)| match event {
            Event::Sent { session, rid, flags, seq, .. } => format!("{} sent {rid} seq {seq} flags {flags}", session.index),
            Event::Deliver { message, .. } => format!("{targets:?} deliver {} seq {}", &*message.conv, message.seq),
            Event::Failed { session, rid, code, .. } => format!("{} failed {rid} {}", session.index, code.value()),
            Event::PageRefused { session, rid, code, .. } => format!("{} page {rid} refused {}", session.index, code.value()),
            Event::Ok { session, rid, value } => format!("{} ok {rid} {value}", session.index),
            Event::Conv { event, version, .. } => format!("{targets:?} conv {event} version {version}"),
            Event::Evict { session, by, .. } => format!("{} evicted by {}", session.index, by.index),
            Event::Attached { session, .. } => format!("{} attached", session.index),
            Event::AttachRefused { session, code } => format!("{} not attached {}", session.index, code.value()),
            Event::Left { session } => format!("{} left", session.index),
            Event::Notice { conv, head, .. } => format!("{targets:?} notice {} {head}", &*conv),
            Event::Kick { session, why } => format!("{} kicked {why:?}", session.index),
            Event::Receipt { conv, user, recv, read, .. } => {
                format!("{targets:?} receipt {} {} recv {recv} read {read}", &*conv, &*user)
            }
            Event::Presence { user, state, .. } => format!("{targets:?} presence {} {state}", &*user),
            Event::Signalled { conv, from, kind, .. } => format!("{targets:?} signalled {} {} {kind}", &*conv, &*from),
            Event::Resync => "resync".to_owned(),
        };
        self.events(0).into_iter().map(tell).collect()
    }
}

fn hashes() -> Hashes {
    Hashes::new(STORE.hash_key)
}

fn open(disk: &MemoryDisk, world: &mut World) -> Result<Sequencer<MemoryDisk>, RecoverError> {
    open_with(disk, world, false)
}

/// Later than everything the tests do.
const STARTED_MS: u64 = 1_765_000_000_000;

fn open_with(disk: &MemoryDisk, world: &mut World, accept_loss: bool) -> Result<Sequencer<MemoryDisk>, RecoverError> {
    open_at(disk, world, accept_loss, Levels::all(2))
}

fn open_at(
    disk: &MemoryDisk,
    world: &mut World,
    accept_loss: bool,
    levels: Levels,
) -> Result<Sequencer<MemoryDisk>, RecoverError> {
    let position = world.engine.position();
    let settings = LogSettings { segment_bytes: 1 << 16, accept_loss, projected: position.group };
    let (log, recovered) = Log::open(disk.clone(), settings).expect("the log opens");
    let settings = Settings {
        levels,
        hellos_per_minute: 0,
        sampling: Sampling { every: 0 },
        space: SPACE,
        cores: 2,
        policy: Policy::default(),
        started_ms: STARTED_MS,
    };
    let progress = Arc::clone(&world.progress);
    Sequencer::recover(log, &recovered, (&STORE, &position), settings, progress, world)
}

fn session(index: u32) -> SessionRef {
    SessionRef { reactor: ReactorId(0), index, generation: 1 }
}

/// One device per user, on core 0: session and roster slot have the number of the user.
fn sender(index: u32, rid: u32) -> Sender {
    Sender { session: session(index), roster: RosterId(index), rid }
}

fn attach(index: u32, user: &str) -> Submit {
    Submit::Attach(Attach { session: session(index), user: user.into(), device: "web".into(), platform: 1, caps: 0, claim: None })
}

fn message(from: Sender, conv: &str, cmid: u8, flags: u8) -> SendMail {
    SendMail {
        from,
        cmid: Cmid([cmid; 16]),
        flags,
        kind: 1,
        ttl_s: 0,
        trace: None,
        conv: conv.into(),
        payload: Body::copy_from(&[cmid]),
        refusal: None,
        received: Moment::default(),
    }
}

fn send(index: u32, rid: u32, conv: &str, cmid: u8, flags: u8) -> Submit {
    Submit::Send(message(sender(index, rid), conv, cmid, flags))
}

fn page(index: u32) -> Submit {
    Submit::Page(PageMail {
        from: sender(index, 77),
        encoding: Encoding::Binary,
        max_frame: 1000,
        request: PageRequest::Sync { since: 0, limit: 100, cursor: Text::default() },
    })
}

/// A new store with users al (0), bo (1) and cy (2) online.
fn started() -> (MemoryDisk, World, Sequencer<MemoryDisk>) {
    let disk = MemoryDisk::default();
    let mut world = World::new(Engine::default());
    let mut sequencer = open(&disk, &mut world).unwrap();
    world.submits.extend([attach(0, "al"), attach(1, "bo"), attach(2, "cy")]);
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told(), ["0 attached", "1 attached", "2 attached"]);
    (disk, world, sequencer)
}

/// Turns until nothing is left to do, with willing neighbours.
fn settle(sequencer: &mut Sequencer<MemoryDisk>, world: &mut World) {
    for _ in 0..1000 {
        sequencer.turn(world).unwrap();
        if world.jobs.is_empty() && world.submits.is_empty() && world.answers.is_empty() {
            world.project_all();
            return;
        }
        world.serve_job();
    }
    panic!("the store never rests");
}

/// SENT and DELIVER come with the sync, in seq order in one list, to the sender and to the others; one sync for all.
#[test]
fn a_group_is_synced_once_and_told_in_order() {
    let (disk, mut world, mut sequencer) = started();
    world.submits.push_back(send(0, 1, "d:al:bo", 1, 0));
    settle(&mut sequencer, &mut world);
    assert_eq!(world.told(), ["0 sent 1 seq 1 flags 0", "[1] deliver d:al:bo seq 1"]);
    let syncs = disk.syncs_count();
    world.submits.extend([send(0, 2, "d:al:bo", 2, 0), send(1, 3, "d:al:bo", 3, 0), send(0, 4, "d:al:bo", 4, 0)]);
    world.submits.push_back(send(2, 5, "d:al:bo", 5, 0));
    sequencer.turn(&mut world).unwrap();
    assert_eq!(disk.syncs_count(), syncs + 1);
    let expected = [
        "0 sent 2 seq 2 flags 0",
        "[1] deliver d:al:bo seq 2",
        "1 sent 3 seq 3 flags 0",
        "[0] deliver d:al:bo seq 3",
        "0 sent 4 seq 4 flags 0",
        "[1] deliver d:al:bo seq 4",
        "2 failed 5 3001",
    ];
    assert_eq!(world.told(), expected);
    assert_eq!(world.given_back, 5 * 8);
    assert!(world.jobs.is_empty(), "a stranger's question reads nothing");
}

/// While a cold conversation is read, its messages wait in order and others go on; a repeat behind them finds its original.
#[test]
fn parked_messages_keep_their_order() {
    let (_, mut world, mut sequencer) = started();
    world.submits.push_back(send(0, 1, "d:al:cy", 1, 0));
    settle(&mut sequencer, &mut world);
    world.told();
    world.submits.extend([send(0, 2, "d:al:bo", 2, 0), send(0, 3, "d:al:cy", 3, 0), send(0, 4, "d:al:bo", 4, 0)]);
    world.submits.extend([send(1, 5, "d:al:bo", 5, 0), send(0, 6, "d:al:bo", 2, send_flags::RETRY)]);
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told(), ["0 sent 3 seq 2 flags 0", "[2] deliver d:al:cy seq 2"]);
    assert_eq!(sequencer.counters().parked_open, 4);
    settle(&mut sequencer, &mut world);
    let told: Vec<_> = world.told().into_iter().filter(|line| line.contains("sent")).collect();
    let expected = ["0 sent 2 seq 1 flags 0", "0 sent 4 seq 2 flags 0", "1 sent 5 seq 3 flags 0", "0 sent 6 seq 1 flags 1"];
    assert_eq!(told, expected);
    assert!(sequencer.is_drained());
}

/// In a conversation that is warm, a repeat that must be looked up is not overtaken by what comes behind it; another conversation is
/// not held up.
#[test]
fn nothing_overtakes_a_repeat_that_is_looked_up() {
    let (_, mut world, mut sequencer) = started();
    world.submits.extend([send(0, 1, "d:al:bo", 1, 0), send(0, 2, "d:al:cy", 2, 0)]);
    settle(&mut sequencer, &mut world);
    world.told();
    world.submits.extend([send(0, 3, "d:al:bo", 3, send_flags::RETRY), send(0, 4, "d:al:bo", 4, 0)]);
    world.submits.push_back(send(0, 5, "d:al:cy", 5, 0));
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told()[0], "0 sent 5 seq 2 flags 0");
    settle(&mut sequencer, &mut world);
    let told: Vec<_> = world.told().into_iter().filter(|line| line.contains("sent")).collect();
    assert_eq!(told, ["0 sent 3 seq 2 flags 0", "0 sent 4 seq 3 flags 0"]);
}

/// After a restart 64 repeats are looked up together, not one after the other; known ones are duplicates, new ones are stored in
/// order behind them.
#[test]
fn a_reconnect_wave_is_looked_up_together() {
    let (disk, mut world, mut sequencer) = started();
    world.submits.extend((1..=32).map(|cmid| send(0, u32::from(cmid), "d:al:bo", cmid, 0)));
    settle(&mut sequencer, &mut world);
    drop(sequencer);
    let mut world = World::new(world.engine);
    let mut sequencer = open(&disk, &mut world).unwrap();
    world.submits.push_back(attach(0, "al"));
    world.submits.extend((1..=64).map(|cmid| send(0, u32::from(cmid), "d:al:bo", cmid, send_flags::RETRY)));
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.jobs.len(), 1 + 63);
    settle(&mut sequencer, &mut world);
    let told: Vec<_> = world.told().into_iter().filter(|line| line.contains("sent")).collect();
    let expected: Vec<_> = (1..=64).map(|n| format!("0 sent {n} seq {n} flags {}", u8::from(n <= 32))).collect();
    assert_eq!(told, expected);
}

/// The lanes to the readers are full: the first message is refused, those already behind it are held, and the repeats are stored in
/// the order in which they were first sent.
#[test]
fn a_refused_message_holds_those_behind_it() {
    let (_, mut world, mut sequencer) = started();
    world.jobs_max = 0;
    world.submits.extend([send(0, 1, "d:al:bo", 1, 0), send(0, 2, "d:al:bo", 2, 0)]);
    sequencer.turn(&mut world).unwrap();
    world.jobs_max = usize::MAX;
    world.submits.push_back(send(0, 3, "d:al:bo", 3, 0));
    settle(&mut sequencer, &mut world);
    assert_eq!(world.told(), ["0 failed 1 5002", "0 failed 2 4003", "0 failed 3 4003"]);
    world.submits.extend((1..=3).map(|cmid| send(0, 3 + u32::from(cmid), "d:al:bo", cmid, send_flags::RETRY)));
    settle(&mut sequencer, &mut world);
    let told: Vec<_> = world.told().into_iter().filter(|line| line.contains("sent")).collect();
    assert_eq!(told, ["0 sent 4 seq 1 flags 0", "0 sent 5 seq 2 flags 0", "0 sent 6 seq 3 flags 0"]);
}

/// No more can be parked while an earlier message of the conversation waits for it to be read: the earlier one fails first, so that
/// the repeats are stored in the order in which they were first sent.
#[test]
fn a_full_parking_names_the_earliest_failure() {
    let (_, mut world, mut sequencer) = started();
    world.submits.push_back(send(0, 1, "d:al:bo", 1, 0));
    world.submits.extend((1..PARKED_MAX).map(|_| send(0, 9, "d:al:cy", 9, 0)));
    sequencer.turn(&mut world).unwrap();
    world.submits.push_back(send(0, 2, "d:al:bo", 2, 0));
    sequencer.turn(&mut world).unwrap();
    world.submits.push_back(send(0, 3, "d:al:bo", 3, 0));
    settle(&mut sequencer, &mut world);
    let mut told = world.told();
    told.retain(|line| line.starts_with("0 failed") && !line.starts_with("0 failed 9 "));
    assert_eq!(told, ["0 failed 1 5002", "0 failed 2 5002", "0 failed 3 4003"]);
    world.submits.extend((1..=3).map(|cmid| send(0, 3 + u32::from(cmid), "d:al:bo", cmid, send_flags::RETRY)));
    settle(&mut sequencer, &mut world);
    let told: Vec<_> = world.told().into_iter().filter(|line| line.contains("sent")).collect();
    assert_eq!(told, ["0 sent 4 seq 1 flags 0", "0 sent 5 seq 2 flags 0", "0 sent 6 seq 3 flags 0"]);
}

/// A sync that fails: nobody is told anything, and the store is finished.
#[test]
fn a_failed_sync_is_final() {
    let (disk, mut world, mut sequencer) = started();
    world.submits.push_back(send(0, 1, "d:al:bo", 1, 0));
    settle(&mut sequencer, &mut world);
    world.told();
    disk.set_faults(Faults { syncs_left: Some(0), ..Faults::default() });
    world.submits.push_back(send(0, 2, "d:al:bo", 2, 0));
    assert!(sequencer.turn(&mut world).is_err());
    disk.set_faults(Faults::default());
    world.submits.push_back(send(0, 3, "d:al:bo", 3, 0));
    assert!(sequencer.turn(&mut world).is_err());
    assert!(world.told().is_empty() && world.projections.is_empty());
}

/// READ is answered at once and rides; a page asked for behind it closes the group and waits for it. Alone it is written after a
/// second.
#[test]
fn a_page_sees_the_read_before_it() {
    let (disk, mut world, mut sequencer) = started();
    world.submits.extend([send(0, 1, "d:al:bo", 1, 0), send(0, 2, "d:al:bo", 2, 0)]);
    settle(&mut sequencer, &mut world);
    world.told();
    let syncs = disk.syncs_count();
    let read = |rid, seq| Submit::Read { from: sender(1, rid), conv: "d:al:bo".into(), seq };
    world.submits.extend([read(3, 1), read(4, 9), read(5, 0)]);
    settle(&mut sequencer, &mut world);
    assert_eq!(world.told(), ["1 ok 3 1", "1 failed 4 3004", "1 ok 5 1"]);
    assert_eq!(disk.syncs_count(), syncs);
    world.submits.push_back(page(1));
    sequencer.turn(&mut world).unwrap();
    assert_eq!(disk.syncs_count(), syncs + 1);
    world.serve_job();
    assert_eq!(world.engine.positions(&hashes(), "d:al:bo", "bo").read, 1);
    world.submits.extend([page(1), read(6, 2)]);
    let turn = sequencer.turn(&mut world).unwrap();
    assert_eq!((disk.syncs_count(), turn.wake_in), (syncs + 1, RIDE_MAX));
    world.pass(1000);
    settle(&mut sequencer, &mut world);
    assert_eq!(disk.syncs_count(), syncs + 2);
    assert_eq!(world.engine.positions(&hashes(), "d:al:bo", "bo").read, 2);
}

/// Cursors are merged, checked against head, written within a second, and never go back, also not through replay.
#[test]
fn cursors_ride_and_never_go_back() {
    let (disk, mut world, mut sequencer) = started();
    world.submits.extend((1..=5).map(|cmid| send(0, u32::from(cmid), "d:al:bo", cmid, 0)));
    settle(&mut sequencer, &mut world);
    world.told();
    let cursor = |seq| CursorMail { session: session(1), roster: RosterId(1), conv: "d:al:bo".into(), seq };
    let strange = CursorMail { conv: "g:none".into(), ..cursor(1) };
    world.submits.push_back(Submit::Cursors(vec![cursor(2), cursor(4), cursor(3), cursor(6), strange]));
    settle(&mut sequencer, &mut world);
    assert_eq!(world.told(), ["1 failed 0 3004"]);
    let row = |engine: &Engine| {
        let rows: Vec<_> = engine.rows.iter().filter(|((keyspace, _), _)| *keyspace == Keyspace::Cursor).collect();
        rows.iter().map(|(_, value)| record::Value::decode(value).map(|row: record::Cursor| row.seq).unwrap()).collect::<Vec<_>>()
    };
    assert!(row(&world.engine).is_empty());
    world.pass(1000);
    settle(&mut sequencer, &mut world);
    assert_eq!(row(&world.engine), [4]);
    world.submits.push_back(Submit::Cursors(vec![cursor(1)]));
    world.pass(1);
    settle(&mut sequencer, &mut world);
    world.pass(1000);
    settle(&mut sequencer, &mut world);
    assert_eq!(row(&world.engine), [4]);
    let mut replayed = World::new(Engine::default());
    open(&disk, &mut replayed).unwrap();
    assert_eq!(replayed.engine, world.engine);
}

/// A flood of cursors for conversations nobody has heard of takes a few readers, no place of those that wait for an answer, and no
/// cursor of a conversation that is cold for good: it is kept although its device goes.
#[test]
fn invented_conversations_take_nothing_from_others() {
    let (disk, mut world, mut sequencer) = started();
    world.submits.extend((1..=5).map(|cmid| send(0, u32::from(cmid), "d:al:bo", cmid, 0)));
    settle(&mut sequencer, &mut world);
    let mut sequencer = open(&disk, &mut world).unwrap();
    world.submits.extend([attach(0, "al"), attach(1, "bo"), attach(2, "cy")]);
    settle(&mut sequencer, &mut world);
    world.told();
    let cursor = |index, conv: &str| CursorMail { session: session(index), roster: RosterId(index), conv: conv.into(), seq: 4 };
    world.jobs_max = JOB_LANE_MAX;
    world.submits.push_back(Submit::Cursors((0..20_000).map(|name| cursor(2, &format!("g:{name}"))).collect()));
    world.submits.push_back(Submit::Cursors(vec![cursor(1, "d:al:bo"), cursor(1, "d:al:bo")]));
    world.submits.push_back(Submit::Leave { session: session(1), roster: RosterId(1) });
    sequencer.turn(&mut world).unwrap();
    assert!(world.jobs.len() <= JOB_LANE_MAX / 4, "{} readers for one client", world.jobs.len());
    assert_eq!(sequencer.counters().cursors_aside_open, 20_001);
    world.submits.push_back(send(2, 9, "d:al:cy", 9, 0));
    sequencer.turn(&mut world).unwrap();
    while !world.told().iter().any(|told| told == "2 sent 9 seq 1 flags 0") {
        assert!(sequencer.counters().cursors_aside_open > 10_000, "the message came behind the flood");
        world.serve_job();
        sequencer.turn(&mut world).unwrap();
    }
    for _ in 0..200_000 {
        world.serve_job();
        sequencer.turn(&mut world).unwrap();
        if sequencer.is_drained() && world.jobs.is_empty() && world.answers.is_empty() {
            break;
        }
    }
    assert_eq!(sequencer.counters().cursors_aside_open, 0);
    world.pass(1000);
    settle(&mut sequencer, &mut world);
    let seqs = world.engine.rows.iter().filter(|((keyspace, _), _)| *keyspace == Keyspace::Cursor);
    let seqs: Vec<_> = seqs.map(|(_, row)| record::Value::decode(row).map(|row: record::Cursor| row.seq).unwrap()).collect();
    assert_eq!((seqs, sequencer.counters().cursors_dropped_count), (vec![4], 0));
}

/// The projector falls behind by more than its bound: SEND is refused until half of it is written.
#[test]
fn a_backlog_refuses_messages_until_below_half() {
    let (_, mut world, mut sequencer) = started();
    world.submits.push_back(send(0, 1, "d:al:bo", 1, 0));
    settle(&mut sequencer, &mut world);
    world.told();
    let max = PROJECT_BYTES_MAX as u64;
    let progress = Arc::clone(&world.progress);
    let mut told = |cmid: u8, flags| {
        world.submits.push_back(send(0, u32::from(cmid), "d:al:bo", cmid, flags));
        sequencer.turn(&mut world).unwrap();
        world.told().remove(0)
    };
    progress.handed_over(max + 1);
    assert_eq!(told(2, 0), "0 failed 2 5002");
    progress.written(1, max / 4);
    assert_eq!(told(2, 0), "0 failed 2 5002");
    progress.written(1, max / 2);
    assert_eq!(told(2, 0), "0 sent 2 seq 2 flags 0");
}

/// The projector falls behind by more than half: submissions wait in their lane, and nothing is refused, until it is below half. If it
/// writes nothing in the meantime, it is stuck: then they are refused.
#[test]
fn half_a_backlog_lets_submissions_wait() {
    let (_, mut world, mut sequencer) = started();
    world.submits.push_back(send(0, 1, "d:al:bo", 1, 0));
    settle(&mut sequencer, &mut world);
    world.told();
    let half = PROJECT_BYTES_MAX as u64 / 2;
    let progress = Arc::clone(&world.progress);
    progress.handed_over(half + 1);
    world.submits.push_back(send(0, 2, "d:al:bo", 2, 0));
    for group in 2..=4 {
        world.pass(900);
        progress.written(group, 0);
        let turn = sequencer.turn(&mut world).unwrap();
        assert_eq!((world.told(), turn.is_busy, turn.wake_in), (vec![], false, LANE_RETRY_EVERY));
    }
    progress.written(5, half);
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told()[0], "0 sent 2 seq 2 flags 0");

    progress.handed_over(half + 1);
    world.submits.push_back(send(0, 3, "d:al:bo", 3, 0));
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told(), [""; 0]);
    world.pass(2000);
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told(), ["0 failed 3 5002"]);
}

/// Too little space: messages and changes of members are refused, the rest goes on; messages are taken again when there is room.
#[test]
fn too_little_space_refuses_messages_only() {
    let (disk, mut world, mut sequencer) = started();
    world.submits.push_back(send(0, 1, "d:al:bo", 1, 0));
    settle(&mut sequencer, &mut world);
    disk.set_faults(Faults { free_bytes: Some(1000), ..Faults::default() });
    world.pass(1000);
    sequencer.turn(&mut world).unwrap();
    world.told();
    let (reply, answer) = std::sync::mpsc::sync_channel(1);
    let change = MemberChange::Create(vec!["al".into()]);
    world.submits.push_back(Submit::Member(MemberMail { conv: "g:x".into(), change, data: Body::new(), reply }));
    world.submits.push_back(send(0, 2, "d:al:bo", 2, 0));
    world.submits.push_back(Submit::Read { from: sender(1, 3), conv: "d:al:bo".into(), seq: 1 });
    settle(&mut sequencer, &mut world);
    assert_eq!(world.told(), ["0 failed 2 5003", "1 ok 3 1"]);
    assert_eq!(answer.try_recv(), Ok(Err(MemberRefusal::ReadOnly)));
    disk.set_faults(Faults::default());
    world.pass(1000);
    sequencer.turn(&mut world).unwrap();
    world.submits.push_back(send(0, 4, "d:al:bo", 2, 0));
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told()[0], "0 sent 4 seq 2 flags 0");
}

/// The same device comes back: what it sent before counts, the old session hears everything up to that point and then that it is
/// evicted, the new one everything after; what the old one sends later is dropped unanswered.
#[test]
fn a_replaced_device_is_a_clean_cut() {
    let (_, mut world, mut sequencer) = started();
    world.submits.push_back(send(0, 1, "d:al:bo", 1, 0));
    settle(&mut sequencer, &mut world);
    world.told();
    let again = Attach { session: session(9), user: "bo".into(), device: "web".into(), platform: 1, caps: 0, claim: None };
    world.submits.extend([send(0, 2, "d:al:bo", 2, 0), Submit::Attach(again), send(0, 3, "d:al:bo", 3, 0)]);
    world.submits.push_back(send(1, 4, "d:al:bo", 4, 0));
    world.submits.push_back(Submit::Leave { session: session(1), roster: RosterId(1) });
    world.submits.push_back(Submit::Leave { session: session(9), roster: RosterId(1) });
    sequencer.turn(&mut world).unwrap();
    let expected = [
        "0 sent 2 seq 2 flags 0",
        "[1] deliver d:al:bo seq 2",
        "1 evicted by 9",
        "9 attached",
        "0 sent 3 seq 3 flags 0",
        "[9] deliver d:al:bo seq 3",
        "9 left",
    ];
    assert_eq!(world.told(), expected);
    assert_eq!(sequencer.counters().stale_submissions_count, 1);
}

/// Changes of members are answered after the sync, and told to those online: joined and removed to the ones concerned, changed to
/// the others. A transient message reaches the members and leaves no trace.
#[test]
fn members_change_and_hear_of_it() {
    let (disk, mut world, mut sequencer) = started();
    let (reply, answer) = std::sync::mpsc::sync_channel(9);
    let member = |change| Submit::Member(MemberMail { conv: "g:x".into(), change, data: Body::new(), reply: reply.clone() });
    let users = |names: &[&str]| names.iter().map(|name| Text::from(*name)).collect::<Vec<_>>();
    world.submits.extend([member(MemberChange::Create(users(&["bo", "al"]))), member(MemberChange::Add(users(&["cy"])))]);
    world.submits.extend([send(0, 1, "g:x", 1, 0), send(0, 2, "g:x", 2, send_flags::TRANSIENT)]);
    world.submits.extend([member(MemberChange::Remove(users(&["bo"]))), send(1, 3, "g:x", 3, 0)]);
    sequencer.turn(&mut world).unwrap();
    assert!(answer.try_recv().is_err());
    settle(&mut sequencer, &mut world);
    let expected = [
        "[0, 1] conv 1 version 1",
        "[2] conv 1 version 2",
        "[0, 1] conv 3 version 2",
        "0 sent 1 seq 1 flags 0",
        "[1, 2] deliver g:x seq 1",
        "0 sent 2 seq 0 flags 0",
        "[1, 2] deliver g:x seq 0",
        "[1] conv 2 version 3",
        "[0, 2] conv 3 version 3",
        "1 failed 3 3001",
    ];
    assert_eq!(world.told(), expected);
    let done: Vec<_> = answer.try_iter().map(|done| done.unwrap().members).collect();
    assert_eq!(done, [vec!["al", "bo"], vec!["al", "bo", "cy"], vec!["al", "cy"]]);
    let mut replayed = World::new(Engine::default());
    open(&disk, &mut replayed).unwrap();
    assert_eq!(replayed.engine.history(&hashes(), "g:x").len(), 1);
}

/// Each class of conversations has its level, and each level is exactly what it says: what a kill leaves and what a power cut leaves of
/// messages that were all acknowledged. Nothing of the engine is ahead of the log, and clients are told that numbering began anew.
#[test]
fn each_level_is_what_it_says() {
    let levels = Levels { direct: 0, group: 1, channel: 2 };
    let names = ["d:al:bo", "g:x", "c:x"];
    for (order, power, expected) in [
        ([0, 1, 2], false, [1, 1, 1]),
        // One of level 2 takes everything before it along; one of level 1 only out of memory.
        ([2, 1, 0], false, [0, 1, 1]),
        ([2, 1, 0], true, [0, 0, 1]),
        ([0, 1, 2], true, [1, 1, 1]),
        ([2, 0, 1], false, [1, 1, 1]),
        ([2, 0, 1], true, [0, 0, 1]),
    ] {
        let disk = MemoryDisk::default();
        let mut world = World::new(Engine::default());
        let mut sequencer = open_at(&disk, &mut world, false, levels).unwrap();
        let epoch = world.engine.position().epoch;
        world.submits.extend([attach(0, "al"), attach(1, "bo")]);
        for name in ["g:x", "c:x"] {
            let (reply, answer) = std::sync::mpsc::sync_channel(1);
            let change = MemberChange::Create(vec!["al".into(), "bo".into()]);
            world.submits.push_back(Submit::Member(MemberMail { conv: name.into(), change, data: Body::new(), reply }));
            settle(&mut sequencer, &mut world);
            assert!(answer.try_recv().unwrap().is_ok());
        }
        // Warm, so that nobody asks for the disk.
        for (cmid, name) in (1..).zip(names) {
            world.submits.push_back(send(0, u32::from(cmid), name, cmid, 0));
            settle(&mut sequencer, &mut world);
        }
        world.pass(1_000);
        settle(&mut sequencer, &mut world);
        world.told();
        for class in order {
            let cmid = 10 + u8::try_from(class).unwrap();
            world.submits.push_back(send(0, u32::from(cmid), names[class], cmid, 0));
            sequencer.turn(&mut world).unwrap();
            let sent = world.events(0).into_iter().find_map(|(event, _)| match event {
                Event::Sent { level, seq, .. } => Some((level, seq)),
                _ => None,
            });
            assert_eq!(sent, Some((u8::try_from(class).unwrap(), 2)), "acknowledged in the same turn");
            world.project_all();
        }
        drop(sequencer);
        let disk = MemoryDisk::with_files(if power { disk.power_cut(|_| false) } else { disk.files() });
        let mut world = World::new(world.engine);
        let mut sequencer = open_at(&disk, &mut world, false, levels).unwrap();
        let left = names.map(|name| world.engine.load(&hashes(), name).map_or(0, |loaded| loaded.head) - 1);
        assert_eq!(left, expected, "{order:?}, power cut {power}");
        assert_eq!(world.engine.position().epoch, epoch + 1);
        // After a clean end nothing is missing, and nobody is told so.
        sequencer.finish(&mut world).unwrap();
        world.project_all();
        drop(sequencer);
        let mut world = World::new(world.engine);
        open_at(&disk, &mut world, false, levels).unwrap();
        assert_eq!(world.engine.position().epoch, epoch + 1);
    }
}

/// Below level 2 a page or a cold conversation that needs what is not synced brings the sync, and nobody waits for a chore.
#[test]
fn who_asks_brings_the_sync() {
    let disk = MemoryDisk::default();
    let mut world = World::new(Engine::default());
    let mut sequencer = open_at(&disk, &mut world, false, Levels::all(1)).unwrap();
    world.submits.extend([attach(0, "al"), attach(1, "bo"), send(0, 1, "d:al:bo", 1, 0)]);
    settle(&mut sequencer, &mut world);
    world.pass(1_000);
    settle(&mut sequencer, &mut world);
    world.submits.push_back(send(0, 2, "d:al:bo", 2, 0));
    let syncs = disk.syncs_count();
    sequencer.turn(&mut world).unwrap();
    assert_eq!((disk.syncs_count(), world.projections.len()), (syncs, 0));
    world.submits.push_back(page(0));
    sequencer.turn(&mut world).unwrap();
    assert_eq!((disk.syncs_count(), world.projections.len()), (syncs + 1, 1));
    settle(&mut sequencer, &mut world);
    // By itself it comes within a second.
    world.submits.push_back(send(0, 3, "d:al:bo", 3, 0));
    let turn = sequencer.turn(&mut world).unwrap();
    assert!(world.projections.is_empty());
    assert!(!turn.is_busy && turn.wake_in > LANE_RETRY_EVERY && turn.wake_in <= STORE_CHORES_EVERY);
    world.pass(1_000);
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.projections.len(), 1);
}

/// Groups between the engine and a log whose last segment is still empty are missed all the same.
#[test]
fn a_gap_before_an_empty_segment_is_noticed() {
    let (disk, mut world, mut sequencer) = started();
    for cmid in 1..=250 {
        let mut mail = message(sender(0, u32::from(cmid)), "d:al:bo", cmid, 0);
        mail.payload = Body::copy_from(&[cmid; 1000]);
        world.submits.push_back(Submit::Send(mail));
        if cmid % 10 == 0 {
            settle(&mut sequencer, &mut world);
        }
    }
    drop(sequencer);
    let mut files = disk.files();
    let mut names: Vec<String> = files.iter().filter(|(_, bytes)| bytes.len() >= 1 << 16).map(|(name, _)| name.clone()).collect();
    names.sort_unstable();
    assert!(names.len() > 2, "{names:?}");
    let last = names.pop().unwrap();
    files.retain(|name, _| *name == last);
    files.get_mut(&last).unwrap().fill(0);
    let mut world = World::new(Engine::default());
    assert!(matches!(open(&MemoryDisk::with_files(files), &mut world), Err(RecoverError::Gap { engine: 0, .. })));
}

/// The engine was thrown away and made anew with another key: replay fills it, and a repeat from before finds its original.
#[test]
fn a_repeat_is_known_to_an_engine_made_anew() {
    let (disk, mut world, mut sequencer) = started();
    world.submits.push_back(send(0, 1, "d:al:bo", 1, 0));
    settle(&mut sequencer, &mut world);
    drop(sequencer);
    let store = record::Store { hash_key: [8; 16], ..STORE };
    let mut anew = Anew { engine: Engine::default(), hashes: Hashes::new(store.hash_key) };
    let settings = LogSettings { segment_bytes: 1 << 16, accept_loss: false, projected: 0 };
    let (log, recovered) = Log::open(disk, settings).unwrap();
    let position = anew.engine.position();
    let settings = Settings {
        levels: Levels::all(2),
        hellos_per_minute: 0,
        sampling: Sampling { every: 0 },
        space: SPACE,
        cores: 2,
        policy: Policy::default(),
        started_ms: STARTED_MS,
    };
    let progress = Arc::new(Progress::new(0));
    let mut sequencer = Sequencer::recover(log, &recovered, (&store, &position), settings, progress, &mut anew).unwrap();
    let mut world = World::new(anew.engine);
    world.submits.extend([attach(0, "al"), send(0, 7, "d:al:bo", 1, send_flags::RETRY)]);
    sequencer.turn(&mut world).unwrap();
    while let Some(job) = world.jobs.pop_front() {
        let answer = match job {
            Job::Load { conv, .. } => Answer::Loaded { result: Ok(world.engine.load(&anew.hashes, &conv)), conv },
            Job::Dedup { conv, user, cmid, .. } => {
                Answer::Dedup { result: Ok(world.engine.dedup(&anew.hashes, &user, cmid)), conv, user, cmid }
            }
            other => panic!("{other:?}"),
        };
        world.answers.push_back(answer);
        sequencer.turn(&mut world).unwrap();
    }
    assert_eq!(world.told(), ["0 attached", "0 sent 7 seq 1 flags 1"]);
}

/// An engine under a key of its own.
struct Anew {
    engine: Engine,
    hashes: Hashes,
}

impl Cold for Anew {
    fn load(&mut self, conv: &str) -> Result<Option<Loaded>, JobFault> {
        Ok(self.engine.load(&self.hashes, conv))
    }
    fn bans(&mut self) -> Result<Vec<(Text, Option<Text>)>, JobFault> {
        Ok(self.engine.bans())
    }
    fn project(&mut self, projection: Projection) {
        self.engine.write(projection.batch);
    }
}

/// What waits for an engine that is too far behind may be tried again; what it cannot read is a defect.
#[test]
fn an_engine_behind_is_not_an_engine_broken() {
    for (fault, code) in [(JobFault::Behind, 5002), (JobFault::Engine, 5001)] {
        let (_, mut world, mut sequencer) = started();
        world.submits.push_back(send(0, 1, "d:al:bo", 1, 0));
        sequencer.turn(&mut world).unwrap();
        assert_eq!(world.jobs.len(), 1);
        world.answers.push_back(Answer::Loaded { conv: "d:al:bo".into(), result: Err(fault) });
        sequencer.turn(&mut world).unwrap();
        assert_eq!(world.told(), [format!("0 failed 1 {code}")]);
    }
}

/// A core that takes no mail: results wait for it, deliveries too up to the bound; nothing of it stops the others.
#[test]
fn a_core_that_takes_nothing_stops_nobody() {
    let (_, mut world, mut sequencer) = started();
    world.groups_max = 0;
    for cmid in 1..=3 {
        world.submits.push_back(send(0, u32::from(cmid), "d:al:bo", cmid, 0));
        settle(&mut sequencer, &mut world);
    }
    assert!(world.told().is_empty());
    assert!(!sequencer.is_drained());
    assert_eq!(sequencer.turn(&mut world).unwrap().wake_in, LANE_RETRY_EVERY);
    world.groups_max = usize::MAX;
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told().len(), 6);
    assert!(sequencer.is_drained());
}

/// Groups were lost and the operator accepted it: the store goes on under a new epoch, in memory, in the rows and after a restart.
#[test]
fn accepted_loss_begins_a_new_epoch() {
    let (disk, mut world, mut sequencer) = started();
    for cmid in 1..=3 {
        world.submits.push_back(send(0, u32::from(cmid), "d:al:bo", cmid, 0));
        settle(&mut sequencer, &mut world);
    }
    world.pass(1000);
    sequencer.turn(&mut world).unwrap();
    let since = world.engine.position().changed;
    let mut files = disk.files();
    let (_, segment) = files.iter_mut().find(|(name, _)| *name != "watermark" && !name.contains("mark")).unwrap();
    segment.fill(0);
    let disk = MemoryDisk::with_files(files);
    let mut world = World::new(Engine::default());
    let sequencer = open_with(&disk, &mut world, true).unwrap();
    assert_eq!((sequencer.state.epoch(), world.engine.position().epoch), (1, 1));
    let position = world.engine.position();
    assert!(position.epoch_changed > since && position.changed == position.epoch_changed, "later than all that was lost");
    drop(sequencer);
    let mut again = World::new(world.engine);
    assert_eq!(open(&disk, &mut again).unwrap().state.epoch(), 1);
}

/// The checker: what a client was told, against what is there after a crash.
#[derive(Default)]
struct Ledger {
    /// Conversation, seq, cmid of every SENT.
    acknowledged: BTreeMap<(String, u64), Cmid>,
    /// The same of every DELIVER.
    delivered: BTreeMap<(String, u64), Cmid>,
    /// Conversation and cmid by rid.
    asked: BTreeMap<u32, (String, Cmid)>,
}

impl Ledger {
    fn hear(&mut self, world: &mut World) {
        for (event, _) in world.events(0) {
            match event {
                Event::Sent { rid, seq, .. } => {
                    let (conv, cmid) = self.asked[&rid].clone();
                    let before = self.acknowledged.insert((conv, seq), cmid);
                    assert!(before.is_none_or(|before| before == cmid), "a seq was given twice");
                }
                Event::Deliver { message, .. } => {
                    self.delivered.insert((message.conv.as_str().to_owned(), message.seq), message.cmid);
                }
                _ => {}
            }
        }
    }

    /// Whether everything that was acknowledged or delivered is there, once, without holes and in the order in which each session
    /// sent it.
    fn check(&self, engine: &Engine) -> Result<(), String> {
        for conv in CONVS {
            let history = engine.history(&hashes(), conv);
            let mut cmids = HashSet::new();
            let mut last_of: BTreeMap<&str, u8> = BTreeMap::new();
            for (index, (seq, user, cmid, _)) in history.iter().enumerate() {
                if *seq != index as u64 + 1 {
                    return Err(format!("{conv}: a hole before {seq}"));
                }
                if !cmids.insert((user, *cmid)) {
                    return Err(format!("{conv}: {user} {cmid:?} twice"));
                }
                // Every user numbers the messages of a conversation.
                let last = last_of.entry(user).or_default();
                if cmid.0[0] <= *last {
                    return Err(format!("{conv}: {user} out of order at {seq}"));
                }
                *last = cmid.0[0];
            }
            let there: BTreeSet<(u64, Cmid)> = history.iter().map(|(seq, _, cmid, _)| (*seq, *cmid)).collect();
            for (what, told) in [("acknowledged", &self.acknowledged), ("delivered", &self.delivered)] {
                for ((_, seq), cmid) in told.iter().filter(|((other, _), _)| other == conv) {
                    if !there.contains(&(*seq, *cmid)) {
                        return Err(format!("{conv}: {what} and lost: {seq}"));
                    }
                }
            }
        }
        Ok(())
    }
}

const CONVS: [&str; 2] = ["d:al:bo", "d:al:al"];

/// Traffic, and then the power goes: at a sync that fails, with any part of the unsynced sectors on disk, and with the engine as far
/// as it happened to be. Returns what the checker says after recovery.
fn power_cut(steps: &[(u8, u8)], syncs: u64, keep: u64, acknowledge_before_sync: bool, sync_lies: bool) -> Result<(), String> {
    let (disk, mut world, mut sequencer) = started();
    sequencer.acknowledge_before_sync = acknowledge_before_sync;
    disk.set_faults(Faults { syncs_left: Some(syncs), sync_lies, ..Faults::default() });
    let mut ledger = Ledger::default();
    let mut next = [[0_u8; 2]; 2];
    let mut rid = 0;
    for &(user, what) in steps {
        let (user, conv) = (usize::from(user % 2), usize::from(what % 2));
        match what / 2 {
            0..=5 if user == 0 || conv == 0 => {
                rid += 1;
                next[user][conv] += 1;
                let (cmid, name) = (next[user][conv], CONVS[conv]);
                let mut mail = message(sender(u32::try_from(user).unwrap(), rid), name, cmid, 0);
                mail.cmid.0[1] = what % 2;
                ledger.asked.insert(rid, (name.to_owned(), mail.cmid));
                world.submits.push_back(Submit::Send(mail));
            }
            6 => world.serve_job(),
            7 => world.project_all(),
            _ => {
                let ended = sequencer.turn(&mut world).is_err();
                ledger.hear(&mut world);
                if ended {
                    break;
                }
            }
        }
    }
    let mut bits = keep;
    let files = disk.power_cut(|_| {
        bits = bits.rotate_right(1);
        bits & 1 != 0
    });
    let disk = MemoryDisk::with_files(files);
    let mut world = World::new(world.engine);
    let position = world.engine.position();
    let settings = LogSettings { segment_bytes: 1 << 16, accept_loss: false, projected: position.group };
    let (log, recovered) = Log::open(disk, settings).map_err(|error| error.to_string())?;
    let settings = Settings {
        levels: Levels::all(2),
        hellos_per_minute: 0,
        sampling: Sampling { every: 0 },
        space: SPACE,
        cores: 2,
        policy: Policy::default(),
        started_ms: STARTED_MS,
    };
    let progress = Arc::clone(&world.progress);
    Sequencer::recover(log, &recovered, (&STORE, &position), settings, progress, &mut world)
        .map_err(|error| error.to_string())?;
    ledger.check(&world.engine)
}

fn traffic() -> impl Strategy<Value = (Vec<(u8, u8)>, u64, u64)> {
    (prop::collection::vec((0..2_u8, 0..20_u8), 1..150), 0..12_u64, any::<u64>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever was acknowledged or delivered is there after a power cut, once, dense, in order.
    #[test]
    fn nothing_acknowledged_is_lost_in_a_power_cut((steps, syncs, keep) in traffic()) {
        prop_assert_eq!(power_cut(&steps, syncs, keep, false, false), Ok(()));
    }
}

/// The checker can fail: acknowledging before the sync, or a disk that only claims to sync, is found out by it in a short run.
#[test]
fn acknowledging_before_the_sync_is_found_out() {
    let steps: Vec<(u8, u8)> = (0..60).map(|n| (0, [0, 12, 18, 18][n % 4])).collect();
    assert_eq!(power_cut(&steps, 3, 0, false, false), Ok(()));
    let planted = power_cut(&steps, 3, 0, true, false).unwrap_err();
    assert!(planted.contains("lost"), "{planted}");
    assert!(power_cut(&steps, 100, 0, false, true).is_err());
}
