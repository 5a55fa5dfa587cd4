//! What is told to whom and in which order, cursors, devices and members.

use super::*;
use crate::mail::{CursorMail, MemberChange, MemberMail, TokenMark, UserChange, UserMail};
use crate::store::disk_memory::Faults;
use crate::store::schema::Keyspace;
use crate::wire::envelope::send_flags;

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

/// The parking has no place for a third message, and then the conversation cannot be read: the first is the one that is waited for,
/// so that the repeats are stored in the order in which they were first sent.
#[test]
fn a_full_parking_names_the_earliest_failure() {
    let (_, mut world, mut sequencer) = started();
    sequencer.limit_parking(4);
    world.submits.extend((1..=4).map(|cmid| send(0, u32::from(cmid), "d:al:bo", cmid, 0)));
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told(), ["0 failed 3 5002", "0 failed 4 4003"]);
    world.jobs.clear();
    world.answers.push_back(Answer::Loaded { conv: "d:al:bo".into(), result: Err(JobFault::Behind) });
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told(), ["0 failed 1 5002", "0 failed 2 4003"]);
    world.submits.push_back(send(0, 5, "d:al:bo", 3, send_flags::RETRY));
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told(), ["0 failed 5 4003"], "the third waits for the first");
    sequencer.limit_parking(8);
    world.submits.extend((1..=4).map(|cmid| send(0, 5 + u32::from(cmid), "d:al:bo", cmid, send_flags::RETRY)));
    settle(&mut sequencer, &mut world);
    let told: Vec<_> = world.told().into_iter().filter(|line| line.contains("sent")).collect();
    assert_eq!(told, (1..=4).map(|n| format!("0 sent {} seq {n} flags 0", 5 + n)).collect::<Vec<_>>());
}

/// The lanes are full when the second message of a parked burst wants to be looked up, while the third waits for its answer: the third
/// fails with it, or the repeat of the second would come behind it.
#[test]
fn what_waits_behind_a_failure_fails_with_it() {
    let (_, mut world, mut sequencer) = started();
    for (rid, flags, jobs_max) in [(1, 0, 1), (2, send_flags::RETRY, 1), (3, send_flags::RETRY, 2)] {
        world.jobs_max = jobs_max;
        world.submits.push_back(send(0, u32::from(rid), "d:al:bo", rid, flags));
        sequencer.turn(&mut world).unwrap();
    }
    world.serve_job();
    world.jobs_max = 0;
    sequencer.turn(&mut world).unwrap();
    let mut told = world.told();
    told.retain(|line| line.starts_with('0'));
    assert_eq!(told, ["0 sent 1 seq 1 flags 0", "0 failed 2 5002", "0 failed 3 4003"]);
    world.jobs_max = usize::MAX;
    world.submits.extend([2, 3].map(|cmid| send(0, 2 + u32::from(cmid), "d:al:bo", cmid, send_flags::RETRY)));
    settle(&mut sequencer, &mut world);
    let told: Vec<_> = world.told().into_iter().filter(|line| line.contains("sent")).collect();
    assert_eq!(told, ["0 sent 4 seq 2 flags 0", "0 sent 5 seq 3 flags 0"]);
}

/// A full send window to one cold conversation, and a parking of two places: each time the sender repeats what failed, oldest first, one
/// message more is stored, and all are in order.
#[test]
fn a_burst_gets_through_a_parking_of_two() {
    let (_, mut world, mut sequencer) = started();
    sequencer.limit_parking(2);
    let mut unsent: Vec<u8> = (1..=64).collect();
    for round in 1..=64 {
        world.submits.extend(unsent.iter().map(|&cmid| send(0, u32::from(cmid), "d:al:bo", cmid, send_flags::RETRY)));
        settle(&mut sequencer, &mut world);
        let sent: Vec<_> = world.told().into_iter().filter(|line| line.contains("sent")).collect();
        assert_eq!(sent, [format!("0 sent {round} seq {round} flags 0")]);
        unsent.remove(0);
    }
    assert!(sequencer.is_drained());
}

/// A burst of one conversation, and of a second: both leave places for a third, whose first message is not refused.
#[test]
fn a_burst_leaves_places_for_other_conversations() {
    let (_, mut world, mut sequencer) = started();
    sequencer.limit_parking(12);
    for (index, conv) in [(0, "d:al:bo"), (1, "d:bo:cy")] {
        world.submits.extend((1..=20).map(|cmid| send(index, u32::from(cmid), conv, cmid, 0)));
    }
    world.submits.push_back(send(2, 99, "d:al:cy", 99, 0));
    sequencer.turn(&mut world).unwrap();
    assert_eq!(sequencer.counters().parked_open, 6 + 3 + 1);
    assert!(!world.told().iter().any(|line| line.starts_with("2 failed")));
    settle(&mut sequencer, &mut world);
    let sent = world.told().into_iter().filter(|line| line.contains("sent")).count();
    assert_eq!(sent, 6 + 3 + 1);
}

/// A repeat finds no place behind its own original, which is then stored: the next message is not held for it.
#[test]
fn a_stored_original_frees_its_refused_repeat() {
    let (_, mut world, mut sequencer) = started();
    sequencer.limit_parking(2);
    world.submits.extend([send(0, 1, "d:al:bo", 1, 0), send(0, 2, "d:al:bo", 1, send_flags::RETRY)]);
    settle(&mut sequencer, &mut world);
    world.submits.push_back(send(0, 3, "d:al:bo", 2, 0));
    settle(&mut sequencer, &mut world);
    let told: Vec<_> = world.told().into_iter().filter(|line| line.starts_with('0')).collect();
    assert_eq!(told, ["0 failed 2 5002", "0 sent 1 seq 1 flags 0", "0 sent 3 seq 2 flags 0"]);
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

/// What a session failed to send is waited for while it is there: no longer when it leaves, when another takes its place, or when it has
/// left and what still waited fails then.
#[test]
fn nobody_waits_for_a_session_that_is_gone() {
    let (_, mut world, mut sequencer) = started();
    world.jobs_max = 0;
    world.submits.extend([send(0, 1, "d:al:bo", 1, 0), send(1, 2, "d:al:bo", 2, 0), send(1, 3, "d:bo:cy", 3, 0)]);
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told(), ["0 failed 1 5002", "1 failed 2 5002", "1 failed 3 5002"]);
    assert_eq!(sequencer.holds.count(), 3);
    world.submits.push_back(Submit::Leave { session: session(1), roster: RosterId(1) });
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told(), ["1 left"]);
    assert_eq!(sequencer.holds.count(), 1);
    world.submits.push_back(attach(9, "al"));
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told(), ["0 evicted by 9", "9 attached"]);
    assert_eq!(sequencer.holds.count(), 0);
    world.jobs_max = usize::MAX;
    let from = Sender { session: session(9), roster: RosterId(0), rid: 4 };
    world.submits.push_back(Submit::Send(message(from, "d:al:bo", 4, 0)));
    world.submits.push_back(Submit::Leave { session: session(9), roster: RosterId(0) });
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told(), ["9 left"]);
    world.jobs.clear();
    world.answers.push_back(Answer::Loaded { conv: "d:al:bo".into(), result: Err(JobFault::Behind) });
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told(), ["9 failed 4 5002"]);
    assert_eq!(sequencer.holds.count(), 0);
}

/// A position that moves again within the second is told at its end, and at rest nothing is kept of whose it is.
#[test]
fn a_receipt_held_back_names_its_user() {
    let disk = MemoryDisk::default();
    let mut world = World::new(Engine::default());
    let mut sequencer = open(&disk, &mut world).unwrap();
    for (index, user) in [(0, "al"), (1, "bo")] {
        let Submit::Attach(attach) = attach(index, user) else { unreachable!("a device comes") };
        world.submits.push_back(Submit::Attach(Attach { caps: 1, ..attach }));
    }
    world.submits.extend((1..=3).map(|cmid| send(0, u32::from(cmid), "d:al:bo", cmid, 0)));
    settle(&mut sequencer, &mut world);
    world.told();
    let mut receipts = |seq: u64, ms: u64| {
        world.pass(ms);
        let cursor = CursorMail { session: session(1), roster: RosterId(1), conv: "d:al:bo".into(), seq };
        world.submits.push_back(Submit::Cursors(vec![cursor]));
        settle(&mut sequencer, &mut world);
        let told: Vec<_> = world.told().into_iter().filter(|line| line.contains("receipt")).collect();
        (told, sequencer.live.names.len())
    };
    let receipt = |recv: u64| vec![format!("[0] receipt d:al:bo bo recv {recv} read 0")];
    assert_eq!(receipts(1, 0), (receipt(1), 0), "read from the engine, and told");
    assert_eq!(receipts(2, 1), (vec![], 1), "held back");
    assert_eq!(receipts(3, 1), (vec![], 1), "together with the next");
    assert_eq!(receipts(3, 1_000), (receipt(3), 0));
}

/// The same device comes back: what it sent before counts, the old session hears everything up to that point and then that it is
/// evicted, the new one everything after; what the old one sends later is dropped unanswered.
#[test]
fn a_replaced_device_is_a_clean_cut() {
    let (_, mut world, mut sequencer) = started();
    world.submits.push_back(send(0, 1, "d:al:bo", 1, 0));
    settle(&mut sequencer, &mut world);
    world.told();
    let again = Attach {
        session: session(9),
        user: "bo".into(),
        device: "web".into(),
        platform: 1,
        caps: 0,
        claim: None,
        token: TokenMark::default(),
    };
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

/// A revocation ends the sessions of its user in the turn that makes it durable: nothing is left to be found by a later look. Others stay,
/// and a fresh token of that time is refused.
#[test]
fn a_revocation_ends_sessions_at_once() {
    let (_disk, mut world, mut sequencer) = started();
    let (reply, answer) = std::sync::mpsc::sync_channel(1);
    let change = UserChange::Revoke { before_s: 1_764_000_001, until_s: 1_764_086_400, id: None };
    world.submits.push_back(Submit::User(UserMail { user: "bo".into(), device: None, change, reply }));
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told(), ["1 kicked Revoked"]);
    assert_eq!(answer.try_recv().unwrap().unwrap().members, ["web"]);
    world.submits.push_back(attach(3, "bo"));
    settle(&mut sequencer, &mut world);
    assert_eq!(world.told(), ["3 not attached 2001"]);
}
