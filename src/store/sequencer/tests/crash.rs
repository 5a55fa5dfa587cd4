//! What each level keeps, and what a start makes of what a crash left.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use proptest::prelude::*;

use super::*;
use crate::mail::{MemberChange, MemberMail};
use crate::store::disk_memory::Faults;
use crate::wire::envelope::send_flags;

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
    let settings = settings_of(Levels::all(2));
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
    fn meta(&mut self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, JobFault> {
        Ok(self.engine.meta(prefix))
    }
    fn project(&mut self, projection: Projection) {
        self.engine.write(projection.batch);
    }
}

/// Replay gathers groups into one batch, also over a bucket of cmids that is emptied between them, and leaves the rows that the groups
/// left one by one; a start from any of them on as well.
#[test]
fn groups_replayed_as_one_leave_the_same_rows() {
    let (disk, mut world, mut sequencer) = started();
    let mut engines = vec![world.engine.clone()];
    for cmid in 1..=8 {
        world.submits.push_back(send(0, u32::from(cmid), "d:al:bo", cmid, 0));
        world.submits.push_back(send(1, u32::from(cmid), "d:bo:cy", 100 + cmid, 0));
        world.submits.push_back(Submit::Read { from: sender(1, 9), conv: "d:al:bo".into(), seq: 1 + u64::from(cmid) / 2 });
        settle(&mut sequencer, &mut world);
        engines.push(world.engine.clone());
        // By the fifth quarter of the window a bucket has its turn again.
        world.pass(u64::from(STORE.dedup_s) * 1_000 / 3);
    }
    drop(sequencer);
    for engine in engines {
        let mut replayed = World::new(engine);
        open(&disk, &mut replayed).unwrap();
        assert_eq!(replayed.engine, world.engine);
    }
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
    let settings = settings_of(Levels::all(2));
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
