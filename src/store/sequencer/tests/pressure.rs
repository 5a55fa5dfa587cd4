//! Bounds: a full disk, an engine that is behind, a core that takes nothing.

use super::*;
use crate::limits::{GROUP_MEMBERS_MAX, NOTICE_MEMBERS_PER_TURN_MAX, PRESENCE_SUBSCRIPTIONS_MAX};
use crate::mail::{MemberChange, MemberMail, WatchMail};
use crate::store::apply::LOOKED_AT;
use crate::store::disk_memory::Faults;
use crate::store::job::LoadedMember;

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

/// A message to a channel of 100,000 members, of whom every hundredth is online: a turn looks up so many of them, what somebody else
/// sends meanwhile is answered in the turn in which it comes, and everybody who is online hears of it once.
#[test]
fn a_channel_of_100_000_members_stalls_nobody() {
    let (_, mut world, mut sequencer) = started();
    let names: Vec<Text> = (1..GROUP_MEMBERS_MAX).map(|number| format!("m{number:05}").as_str().into()).collect();
    let online: Vec<&Text> = names.iter().step_by(100).collect();
    world.submits.extend((3..).zip(&online).map(|(index, name)| attach(index, name)));
    let expected: Vec<u32> = std::iter::once(0).chain((3..).take(online.len())).collect();
    let (reply, answer) = std::sync::mpsc::sync_channel(1);
    let change = MemberChange::Create(std::iter::once("al".into()).chain(names).collect());
    world.submits.push_back(Submit::Member(MemberMail { conv: "c:all".into(), change, data: Body::new(), reply }));
    world.submits.push_back(send(1, 1, "d:bo:cy", 1, 0));
    settle(&mut sequencer, &mut world);
    assert_eq!(answer.try_recv().unwrap().unwrap().members.len(), GROUP_MEMBERS_MAX);
    world.told();
    world.submits.push_back(send(0, 2, "c:all", 2, 0));
    let (mut heard, mut turns) = (Vec::new(), 0);
    loop {
        turns += 1;
        let rid = 100 + u32::from(turns);
        world.submits.push_back(send(1, rid, "d:bo:cy", 100 + turns, 0));
        let is_busy = sequencer.turn(&mut world).unwrap().is_busy;
        let events = world.events(0);
        assert!(events.iter().any(|(event, _)| matches!(event, Event::Sent { rid: of, .. } if *of == rid)), "turn {turns}");
        let notices = events.into_iter().filter(|(event, _)| matches!(event, Event::Notice { .. }));
        let told: Vec<u32> = notices.flat_map(|(_, targets)| targets).collect();
        assert!(told.len() <= NOTICE_MEMBERS_PER_TURN_MAX.div_ceil(100) + 1, "turn {turns}: {} at once", told.len());
        heard.extend(told);
        if !is_busy {
            break;
        }
    }
    assert_eq!(heard, expected);
    assert_eq!(usize::from(turns), GROUP_MEMBERS_MAX.div_ceil(NOTICE_MEMBERS_PER_TURN_MAX));
}

/// A cursor or a READ in a conversation of 10,000 members: in a channel nobody is looked at, in a group the member is found by name, and
/// only who hears of it is gone through.
#[test]
fn a_receipt_looks_at_few_of_many_members() {
    let mut state = State::new(&STORE, &record::Position::default());
    let policy = Policy::default();
    let names: Vec<Text> = (0..10_000).map(|number| format!("m{number:05}").as_str().into()).collect();
    for (conv, count) in [("c:all", names.len()), ("g:all", names.len()), ("s:all", names.len()), ("g:few", 100)] {
        let members = names[..count].iter().map(|name| LoadedMember { name: name.clone(), ..LoadedMember::default() }).collect();
        state.insert(conv, Some(Loaded { floor: 1, members, ..Loaded::default() }));
    }
    let looked = |conv: &str, name: &str| {
        let conversation = state.conversation(state.hashes().conv(conv)).unwrap();
        LOOKED_AT.set(0);
        let hearers = policy.hearers(conversation, name);
        (hearers.map(|(member, hearers)| (member.name.as_str().to_owned(), hearers.len())), LOOKED_AT.get())
    };
    assert_eq!(looked("c:all", "m09999"), (None, 0));
    for (conv, name, count) in [("g:all", "m09999", 1), ("s:all", "m05000", 1), ("g:few", "m00007", 100)] {
        let (hearers, looks) = looked(conv, name);
        assert_eq!(hearers, Some((name.to_owned(), count)), "{conv}");
        assert!((1..=20).contains(&looks), "{looks} members of {conv} for one");
    }
    assert_eq!(looked("g:all", "stranger").0, None);
}

/// When the node watches as many pairs as it may, a WATCH is refused with 4004, and one that fits is taken; the gauge says how many there
/// are, and none when everybody has left.
#[test]
fn a_watch_beyond_the_bound_is_refused() {
    let (_, mut world, mut sequencer) = started();
    let strangers = vec![Text::from("dee"); PRESENCE_SUBSCRIPTIONS_MAX - 1];
    sequencer.live.presence.watch(RosterId(1), session(1), 0, u64::MAX, &[], strangers).unwrap();
    let watch = |rid: u32, users: &[&str]| {
        Submit::Watch(WatchMail { from: sender(0, rid), users: users.iter().map(|&user| user.into()).collect(), ttl_s: 0 })
    };
    world.submits.extend([watch(7, &["bo", "cy"]), watch(8, &["bo"])]);
    settle(&mut sequencer, &mut world);
    let told = world.told();
    assert!(told.contains(&"0 failed 7 4004".to_owned()) && told.contains(&"0 ok 8 1".to_owned()), "{told:?}");
    world.pass(1);
    sequencer.turn(&mut world).unwrap();
    assert_eq!(sequencer.counters().subscriptions_open, PRESENCE_SUBSCRIPTIONS_MAX as u64);
    world.submits.extend([0, 1].map(|index| Submit::Leave { session: session(index), roster: RosterId(index) }));
    settle(&mut sequencer, &mut world);
    sequencer.turn(&mut world).unwrap();
    assert_eq!(sequencer.counters().subscriptions_open, 0);
}
