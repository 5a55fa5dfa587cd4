//! What is asked for beside messages, frame by frame: presence, messages once more, trace contexts.

use std::time::Duration;

use tidegate::ids::{Cmid, Mid};
use tidegate::wire::envelope::{
    ClientFrame, Deliver, Encoding, Entry, Frames, Send, ServerFrame, Trace, Welcome, caps, deliver_flags, page_flags, send_flags,
};

use super::rules::{ZERO, active, connect, deliver, drain, known, ms, seqs, welcome};
use crate::event::{Event, Outgoing};
use crate::machine::{Action, Closed, Machine};
use crate::settings::{Acknowledge, Settings};
use crate::watching::BadWatch;

const TTL: Duration = Duration::from_secs(100);

/// The next WATCH: rid, seconds, users. It is the only frame.
fn watch(machine: &mut Machine, now: Duration) -> Option<(u32, u32, Vec<String>)> {
    let frame = machine.poll_frame(now)?;
    let ClientFrame::Watch { rid, ttl_s, users } = frame else { panic!("expected WATCH: {frame:?}") };
    let asked = (rid, ttl_s, users.iter().map(|user| user.to_string()).collect());
    assert!(machine.poll_frame(now).is_none());
    Some(asked)
}

fn refuse(machine: &mut Machine, now: Duration, rid: u32, code: u16, flags: u8, retry_ms: u32) {
    machine.handle_frame(now, &ServerFrame::Error { rid, code, flags, retry_ms, detail: "no".into() });
}

fn refusals(machine: &mut Machine, now: Duration) -> Vec<u16> {
    let code = |event: Event| if let Event::Refused { code, .. } = event { Some(code) } else { None };
    drain(machine, now).into_iter().filter_map(code).collect()
}

/// Active, and SYNC is answered.
fn synced(settings: Settings) -> Machine {
    let mut machine = active(settings);
    answer_sync(&mut machine, ZERO, 1);
    machine
}

fn answer_sync(machine: &mut Machine, now: Duration, rid: u32) {
    machine.handle_frame(now, &ServerFrame::SyncPage { rid, flags: 0, since: 5, cursor: "".into(), entries: vec![] });
    drain(machine, now);
}

/// The connection ends and comes back a minute later, with its SYNC if the session is another.
fn reconnect(machine: &mut Machine, now: Duration, resumed: u8) -> Duration {
    machine.handle_closed(now, Closed::default());
    let now = now + ms(60_000);
    connect(machine, now, resumed);
    if resumed == 0 {
        let Some(ClientFrame::Sync { rid, .. }) = machine.poll_frame(now) else { panic!("a SYNC") };
        answer_sync(machine, now, rid);
    }
    now
}

/// A set is asked for once, renewed when between half and three quarters of its time have passed, and never after its time.
#[test]
fn a_set_is_renewed_before_its_time_is_over() {
    let mut machine = synced(Settings::new("d"));
    machine.watch(&["cy", "bo", "cy"], TTL).expect("a good set");
    let (rid, ttl_s, users) = watch(&mut machine, ZERO).expect("a WATCH");
    assert_eq!((ttl_s, users), (100, vec!["bo".to_owned(), "cy".to_owned()]));
    machine.handle_frame(ZERO, &ServerFrame::Ok { rid, value: 2 });
    let at = machine.poll_timeout().expect("a renewal");
    assert!(at >= TTL / 2 && at <= TTL * 3 / 4, "{at:?}");
    assert_eq!(watch(&mut machine, at - ms(1)), None);
    let (rid, ..) = watch(&mut machine, at).expect("the same again");
    assert!(machine.poll_timeout().is_some_and(|next| next >= at + TTL / 2), "also while it is not answered");
    machine.handle_frame(at, &ServerFrame::Ok { rid, value: 2 });
    machine.watch(&["bo"], ZERO).expect("a good set");
    assert_eq!(watch(&mut machine, at).map(|asked| (asked.1, asked.2)), Some((300, vec!["bo".to_owned()])));
    for (ttl, seconds) in [(Duration::from_nanos(1), 1), (ms(1), 1), (ms(1_500), 2)] {
        machine.watch(&["bo"], ttl).expect("a good set");
        assert_eq!(watch(&mut machine, at).map(|asked| asked.1), Some(seconds));
        assert!(machine.poll_timeout().is_some_and(|next| next >= at + ms(500)), "{ttl:?} does not flood");
    }
}

/// A set ends with its connection, and RESYNC says that something of it was missed: it is asked for again, also where the session is the
/// one before.
#[test]
fn a_set_is_asked_for_on_every_connection_and_after_resync() {
    let mut machine = synced(Settings::new("d"));
    machine.watch(&["bo"], TTL).expect("a good set");
    let (rid, ..) = watch(&mut machine, ZERO).expect("a WATCH");
    machine.handle_frame(ZERO, &ServerFrame::Ok { rid, value: 1 });
    let mut now = ZERO;
    for resumed in [1, 0] {
        now = reconnect(&mut machine, now, resumed);
        let (rid, ..) = watch(&mut machine, now).expect("a WATCH");
        machine.handle_frame(now, &ServerFrame::Ok { rid, value: 1 });
    }
    machine.handle_frame(now, &ServerFrame::Resync { reason: 1 });
    let later = now + ms(5000);
    assert!(matches!(machine.poll_frame(later), Some(ClientFrame::Sync { .. })));
    assert!(watch(&mut machine, later).is_some());
}

/// An empty set ends watching: it is told once, and asked for on no other connection. Whoever watches nobody tells nothing.
#[test]
fn watching_ends_when_it_is_not_wanted() {
    let mut machine = synced(Settings::new("d"));
    machine.unwatch();
    assert_eq!(watch(&mut machine, ZERO), None);
    machine.watch(&["bo"], TTL).expect("a good set");
    let (rid, ..) = watch(&mut machine, ZERO).expect("a WATCH");
    machine.unwatch();
    // The answer to the one before changes nothing.
    machine.handle_frame(ZERO, &ServerFrame::Ok { rid, value: 1 });
    let (rid, _, users) = watch(&mut machine, ZERO).expect("an empty one");
    assert!(users.is_empty());
    let now = reconnect(&mut machine, ZERO, 0);
    assert_eq!(watch(&mut machine, now), None, "the set has ended with its connection");
    machine.watch(&["bo"], TTL).expect("a good set");
    assert!(watch(&mut machine, now).is_some());
    machine.unwatch();
    let (empty, ..) = watch(&mut machine, now).expect("an empty one");
    assert_ne!(empty, rid);
    machine.handle_frame(now, &ServerFrame::Ok { rid: empty, value: 0 });
    machine.handle_frame(now, &ServerFrame::Resync { reason: 1 });
    assert!(matches!(machine.poll_frame(now + ms(5000)), Some(ClientFrame::Sync { .. })));
    assert_eq!(watch(&mut machine, now + ms(5000)), None);
}

/// A refused set is asked for again when the gateway says, RETRYABLE or with a delay; where it says neither, on the next connection. The
/// application hears of what is not RETRYABLE.
#[test]
fn a_refused_set_waits_as_long_as_the_gateway_says() {
    let retryable = page_flags::ERROR_RETRYABLE;
    for (code, flags, told) in [(5002, retryable, vec![]), (4001, retryable, vec![]), (4004, 0, vec![4004])] {
        let mut machine = synced(Settings::new("d"));
        machine.watch(&["bo"], TTL).expect("a good set");
        let (rid, ..) = watch(&mut machine, ZERO).expect("a WATCH");
        refuse(&mut machine, ZERO, rid, code, flags, 1000);
        assert_eq!(refusals(&mut machine, ZERO), told);
        assert_eq!(watch(&mut machine, ms(999)), None, "{code}");
        assert!(watch(&mut machine, ms(1250)).is_some(), "{code}");
    }
    for code in [4004, 3005] {
        let mut machine = synced(Settings::new("d"));
        machine.watch(&["bo"], TTL).expect("a good set");
        let (rid, ..) = watch(&mut machine, ZERO).expect("a WATCH");
        refuse(&mut machine, ZERO, rid, code, 0, 0);
        assert_eq!(refusals(&mut machine, ZERO), [code]);
        assert_eq!(watch(&mut machine, TTL), None, "{code}");
        let now = reconnect(&mut machine, TTL, 0);
        assert!(watch(&mut machine, now).is_some(), "{code}");
    }
}

/// What the gateway would close the connection for is not taken.
#[test]
fn what_cannot_be_watched_is_not_taken() {
    let mut machine = synced(Settings::new("d"));
    let names: Vec<String> = (0..201).map(|number| format!("user{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(machine.watch(&names, TTL), Err(BadWatch::TooMany));
    assert_eq!(machine.watch(&["bo", "c:y"], TTL), Err(BadWatch::BadUser));
    assert_eq!(machine.watch(&["bo"], ms(300_001)), Err(BadWatch::TooLong));
    assert!(machine.poll_frame(ZERO).is_none());
    assert_eq!(machine.watch(&names[..200], ms(300_000)), Ok(()));
}

fn by_hand() -> Machine {
    let mut machine = synced(Settings { acknowledge: Acknowledge::ByHand, positions: known(), ..Settings::new("d") });
    (1..=3).for_each(|seq| machine.handle_frame(ZERO, &deliver(seq, seq)));
    assert_eq!(seqs(&drain(&mut machine, ZERO)), [1, 2, 3]);
    machine
}

/// The NACKs to write: seq, delay, reason. Acknowledgements beside them are not looked at.
fn nacks(machine: &mut Machine, now: Duration) -> Vec<(u64, u32, u16)> {
    let mut out = Vec::new();
    while let Some(frame) = machine.poll_frame(now) {
        match frame {
            ClientFrame::Nack { conv, seq, delay_ms, reason } => {
                assert_eq!(conv, "g:a");
                out.push((seq, delay_ms, reason));
            }
            ClientFrame::Ack { .. } | ClientFrame::Sync { .. } => {}
            other => panic!("not expected: {other:?}"),
        }
    }
    out
}

/// What was asked for again comes to the application again, each time it is asked for, and no other duplicate does.
#[test]
fn a_message_that_was_asked_for_comes_once_more() {
    let mut machine = by_hand();
    for (pos, delay) in [(4, 0), (5, 2500)] {
        machine.nack("g:a", 2, ms(delay), 7);
        assert_eq!(nacks(&mut machine, ZERO), [(2, u32::try_from(delay).unwrap(), 7)]);
        machine.handle_frame(ZERO, &deliver(pos, 3));
        machine.handle_frame(ZERO, &deliver(pos, 2));
        machine.handle_frame(ZERO, &deliver(pos, 2));
        assert_eq!(seqs(&drain(&mut machine, ZERO)), [2]);
    }
    assert_eq!(machine.positions()[0].have, 0, "no cursor moves");
}

/// Only what was given out and is not processed is asked for; processing it, or more, ends it.
#[test]
fn what_is_processed_is_not_asked_for() {
    let mut machine = by_hand();
    machine.processed(ZERO, "g:a", 1);
    for (conv, seq) in [("g:a", 1), ("g:a", 4), ("g:b", 1), ("g:a", 0)] {
        machine.nack(conv, seq, ZERO, 0);
    }
    assert!(nacks(&mut machine, ms(2000)).is_empty());
    machine.nack("g:a", 2, ZERO, 0);
    machine.processed(ZERO, "g:a", 3);
    assert!(nacks(&mut machine, ms(4000)).is_empty());
    machine.handle_frame(ZERO, &deliver(4, 2));
    assert!(seqs(&drain(&mut machine, ZERO)).is_empty());
}

/// A NACK may be lost with its connection, and the session with what it was to deliver again: it is sent again on the next connection.
#[test]
fn a_lost_nack_is_sent_again() {
    for resumed in [0, 1] {
        let mut machine = by_hand();
        machine.nack("g:a", 2, ZERO, 7);
        assert_eq!(nacks(&mut machine, ZERO), [(2, 0, 7)]);
        assert!(nacks(&mut machine, ZERO).is_empty());
        let now = reconnect(&mut machine, ZERO, resumed);
        assert_eq!(nacks(&mut machine, now), [(2, 0, 7)], "resumed {resumed}");
    }
}

/// The numbering began anew: what was asked for of the former one is not asked for any more.
#[test]
fn another_epoch_ends_what_was_asked_for() {
    let mut machine = by_hand();
    machine.nack("g:a", 2, ZERO, 0);
    machine.handle_closed(ZERO, Closed::default());
    let now = ms(60_000);
    connect(&mut machine, now, 0);
    let Some(ClientFrame::Sync { rid, .. }) = machine.poll_frame(now) else { panic!("a SYNC") };
    let conv = "g:a".into();
    let entry = Entry { conv, epoch: 2, flags: 0, head: 0, head_mid: Mid(0), floor: 1, mine: 0, read: 0, unread: 0 };
    machine.handle_frame(now, &ServerFrame::SyncPage { rid, flags: 0, since: 9, cursor: "".into(), entries: vec![entry] });
    assert!(nacks(&mut machine, now).is_empty());
}

/// As many as the gateway remembers may wait; the application hears of one more.
#[test]
fn only_so_many_messages_are_asked_for() {
    let mut machine = synced(Settings { acknowledge: Acknowledge::ByHand, positions: known(), ..Settings::new("d") });
    for seq in 1..=65 {
        machine.handle_frame(ZERO, &deliver(seq, seq));
        machine.nack("g:a", seq, ZERO, 0);
    }
    assert_eq!(refusals(&mut machine, ZERO), [4004]);
    assert_eq!(nacks(&mut machine, ZERO).len(), 64);
}

/// Both encodings carry all three; HELLO asks for what the settings say.
#[test]
fn requests_are_what_the_codec_reads() {
    for encoding in [Encoding::Binary, Encoding::Json] {
        let mut machine = Machine::new(Settings { encoding, presence: true, trace: true, ..Settings::new("d") }, 1);
        machine.handle_timeout(ZERO);
        assert!(matches!(machine.poll_action(), Some(Action::Connect { .. })));
        machine.handle_connected(ZERO, "token");
        let read = |machine: &mut Machine| {
            let mut bytes = Vec::new();
            assert!(machine.poll_transmit(ZERO, &mut bytes));
            let frame = Frames::new(encoding, &bytes).next_frame().expect("well formed").expect("a frame");
            match frame {
                ClientFrame::Hello(hello) => format!("caps {}", hello.caps),
                ClientFrame::Watch { ttl_s, users, .. } => format!("{ttl_s} {:?}", users.iter().collect::<Vec<_>>()),
                ClientFrame::Send(send) => format!("{:?} {}", send.trace, send.flags),
                _ => String::new(),
            }
        };
        assert_eq!(read(&mut machine), format!("caps {}", caps::PRESENCE | caps::TRACE));
        machine.handle_frame(ZERO, &welcome_with(caps::TRACE));
        machine.watch(&["bo"], TTL).expect("a good set");
        machine.send(Cmid([1; 16]), Outgoing { trace: Some(TRACE), ..Outgoing::new("g:a", b"x") }).expect("room");
        assert_eq!(read(&mut machine), "");
        assert_eq!(read(&mut machine), "100 [\"bo\"]");
        assert_eq!(read(&mut machine), format!("{:?} {}", Some(TRACE), send_flags::TRACE));
    }
}

const TRACE: Trace = Trace { trace_id: [7; 16], parent_id: [8; 8], flags: 1 };

fn welcome_with(caps: u32) -> ServerFrame<'static> {
    let ServerFrame::Welcome(plain) = welcome(0) else { unreachable!("it is WELCOME") };
    ServerFrame::Welcome(Welcome { caps, ..plain })
}

/// A trace context leaves only where the gateway has granted it, stays with the own message, and comes with a delivery.
#[test]
fn a_trace_context_goes_along_where_it_is_granted() {
    for (granted, expected) in [(caps::TRACE, Some(TRACE)), (0, None)] {
        let mut machine = Machine::new(Settings::new("d"), 1);
        machine.handle_timeout(ZERO);
        machine.handle_connected(ZERO, "token");
        assert!(matches!(machine.poll_frame(ZERO), Some(ClientFrame::Hello(_))));
        machine.handle_frame(ZERO, &welcome_with(granted));
        assert!(matches!(machine.poll_frame(ZERO), Some(ClientFrame::Sync { .. })));
        machine.send(Cmid([1; 16]), Outgoing { trace: Some(TRACE), ..Outgoing::new("g:a", b"x") }).expect("room");
        let Some(ClientFrame::Send(Send { rid, trace, flags, .. })) = machine.poll_frame(ZERO) else { panic!("a SEND") };
        assert_eq!((trace, flags & send_flags::TRACE != 0), (expected, expected.is_some()));
        drain(&mut machine, ZERO);
        machine.handle_frame(ZERO, &ServerFrame::Sent { rid, level: 2, flags: 0, seq: 1, mid: Mid(1) });
        let ServerFrame::Deliver(plain) = deliver(1, 2) else { unreachable!("it is DELIVER") };
        machine.handle_frame(ZERO, &ServerFrame::Deliver(Deliver { flags: deliver_flags::TRACE, trace: Some(TRACE), ..plain }));
        let traces: Vec<Option<Trace>> = drain(&mut machine, ZERO)
            .into_iter()
            .filter_map(|event| if let Event::Message(message) = event { Some(message.trace) } else { None })
            .collect();
        assert_eq!(traces, [Some(TRACE), Some(TRACE)]);
    }
}
