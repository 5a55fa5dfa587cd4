//! Single rules of the protocol, frame by frame.

use std::borrow::Cow;
use std::time::Duration;

use tidegate::ids::{Cmid, Mid};
use tidegate::wire::envelope::{
    ClientFrame, Deliver, Entry, Message, SENT_DUPLICATE, Send, ServerFrame, Welcome, deliver_flags, page_flags, send_flags,
};

use crate::event::{Event, Outgoing, SendError, State, Stop};
use crate::inbox::{History, Position};
use crate::machine::{Action, Closed, Machine};
use crate::settings::{Acknowledge, Settings};

pub(super) const ZERO: Duration = Duration::ZERO;

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(super) fn welcome(resumed: u8) -> ServerFrame<'static> {
    ServerFrame::Welcome(Welcome {
        minor: 0,
        resumed,
        level: 2,
        window: 4,
        send_window: 8,
        caps: 0,
        ping_ms: 30_000,
        resume_ms: 120_000,
        dedup_s: 86_400,
        max_frame: 131_072,
        max_payload: 1_000,
        server_ms: 0,
        pos: 0,
        session: [9; 16],
        user: "al".into(),
        node: "n".into(),
        rate: 20,
        burst: 128,
    })
}

/// A machine that is connected, welcomed and has asked for its SYNC, which is not answered.
pub(super) fn active(settings: Settings) -> Machine {
    let mut machine = Machine::new(settings, 1);
    connect(&mut machine, ZERO, 0);
    assert!(matches!(machine.poll_frame(ZERO), Some(ClientFrame::Sync { since: 0, .. })));
    assert!(machine.poll_frame(ZERO).is_none());
    machine
}

pub(super) fn connect(machine: &mut Machine, now: Duration, resumed: u8) {
    machine.handle_timeout(now);
    assert!(matches!(machine.poll_action(), Some(Action::Connect { .. })));
    machine.handle_connected(now, "token");
    assert!(matches!(machine.poll_frame(now), Some(ClientFrame::Hello(_))));
    machine.handle_frame(now, &welcome(resumed));
    drain(machine, now);
}

pub(super) fn drain(machine: &mut Machine, now: Duration) -> Vec<Event> {
    std::iter::from_fn(|| machine.poll_event(now)).collect()
}

fn send(machine: &mut Machine, number: u8, conv: &str) {
    machine.send(Cmid([number; 16]), Outgoing::new(conv, &[number])).expect("the outbox has room");
}

/// The SENDs that would be written now: number, rid, flags.
fn sends(machine: &mut Machine, now: Duration) -> Vec<(u8, u32, u8)> {
    machine.handle_timeout(now);
    let mut out = Vec::new();
    while let Some(frame) = machine.poll_frame(now) {
        if let ClientFrame::Send(Send { rid, cmid, flags, .. }) = frame {
            out.push((cmid.0[0], rid, flags));
        }
    }
    out
}

fn error(rid: u32, code: u16, retry_ms: u32) -> ServerFrame<'static> {
    let flags = if code >= 4000 { page_flags::ERROR_RETRYABLE } else { 0 };
    ServerFrame::Error { rid, code, flags, retry_ms, detail: "no".into() }
}

fn sent(rid: u32, seq: u64) -> ServerFrame<'static> {
    ServerFrame::Sent { rid, level: 2, flags: 0, seq, mid: Mid(seq) }
}

pub(super) fn deliver(pos: u64, seq: u64) -> ServerFrame<'static> {
    ServerFrame::Deliver(Deliver {
        pos,
        seq,
        mid: Mid(seq),
        flags: 0,
        kind: 1,
        exp_s: 0,
        cmid: None,
        trace: None,
        conv: "g:a".into(),
        from: "bo".into(),
        payload: Cow::Owned(vec![1]),
    })
}

fn message(seq: u64) -> Message<'static> {
    let from = "bo".into();
    Message { seq, mid: Mid(seq), flags: 0, kind: 1, exp_s: 0, cmid: None, from, payload: Cow::Owned(vec![1]) }
}

fn page(rid: u32, flags: u8, epoch: u32, floor: u64, head: u64, seqs: &[u64]) -> ServerFrame<'static> {
    let messages = seqs.iter().map(|&seq| message(seq)).collect();
    ServerFrame::Page { rid, flags, epoch, floor, head, conv: "g:a".into(), messages }
}

/// A conversation whose epoch is known and that holds nothing yet.
pub(super) fn known() -> Vec<Position> {
    vec![Position { conv: "g:a".into(), epoch: Some(1), have: 0 }]
}

pub(super) fn seqs(events: &[Event]) -> Vec<u64> {
    events.iter().filter_map(|event| if let Event::Message(message) = event { Some(message.seq) } else { None }).collect()
}

fn fetch(machine: &mut Machine, now: Duration) -> Option<(u32, u64, u64)> {
    match machine.poll_frame(now) {
        Some(ClientFrame::Fetch { rid, from, to, .. }) => Some((rid, from, to)),
        _ => None,
    }
}

/// Only `send_window` SENDs are on the way; each answer lets one more go.
#[test]
fn the_send_window_is_kept() {
    let mut machine = active(Settings::new("d"));
    (1..=10).for_each(|number| send(&mut machine, number, "g:a"));
    let first = sends(&mut machine, ZERO);
    assert_eq!(first.iter().map(|one| one.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8]);
    machine.handle_frame(ZERO, &sent(first[0].1, 1));
    assert_eq!(sends(&mut machine, ZERO).iter().map(|one| one.0).collect::<Vec<_>>(), [9]);
}

/// After a RETRYABLE error nothing goes to that conversation until all is answered; then all goes again, oldest first, with RETRY.
/// Another conversation is not held up.
#[test]
fn a_failed_send_holds_its_conversation_and_no_other() {
    let mut machine = active(Settings::new("d"));
    send(&mut machine, 1, "g:a");
    send(&mut machine, 2, "g:a");
    let first = sends(&mut machine, ZERO);
    machine.handle_frame(ZERO, &error(first[0].1, 5002, 200));
    send(&mut machine, 3, "g:a");
    send(&mut machine, 4, "g:b");
    assert_eq!(sends(&mut machine, ms(999)).iter().map(|one| one.0).collect::<Vec<_>>(), [4]);
    machine.handle_frame(ms(1000), &error(first[1].1, 4003, 0));
    let again = sends(&mut machine, ms(1000));
    assert_eq!(again.iter().map(|one| (one.0, one.2)).collect::<Vec<_>>(), [(1, 1), (2, 1), (3, 0)]);
}

/// `retry_ms` is waited for, with a quarter more at most.
#[test]
fn retry_ms_is_waited_for() {
    let mut machine = active(Settings::new("d"));
    send(&mut machine, 1, "g:a");
    let first = sends(&mut machine, ZERO);
    machine.handle_frame(ZERO, &error(first[0].1, 4001, 1000));
    assert!(sends(&mut machine, ms(999)).is_empty());
    assert_eq!(sends(&mut machine, ms(1250)).len(), 1);
}

/// An unanswered SEND is repeated after 10, 20, 40, 80 and 160 s; then the connection is given up.
#[test]
fn an_unanswered_send_is_repeated_five_times() {
    let mut machine = active(Settings::new("d"));
    let sync = ServerFrame::SyncPage { rid: 1, flags: 0, since: 5, cursor: "".into(), entries: vec![] };
    machine.handle_frame(ZERO, &sync);
    send(&mut machine, 1, "g:a");
    assert_eq!(sends(&mut machine, ZERO).len(), 1);
    let mut at = 0;
    for wait in [10, 20, 40, 80, 160] {
        at += wait;
        assert!(sends(&mut machine, ms(at * 1000 - 1)).is_empty());
        assert_eq!(sends(&mut machine, ms(at * 1000)).iter().map(|one| one.2).collect::<Vec<_>>(), [send_flags::RETRY]);
    }
    machine.handle_timeout(ms((at + 320) * 1000));
    assert_eq!(machine.poll_action(), Some(Action::Close(1001)));
}

/// A repeat for want of an answer may meet the error of the first attempt on its way. What was sent between the two was held, so
/// nothing new may follow the repeat before that is known.
#[test]
fn nothing_new_follows_a_repeat() {
    let mut machine = active(Settings::new("d"));
    machine.handle_frame(ZERO, &ServerFrame::SyncPage { rid: 1, flags: 0, since: 5, cursor: "".into(), entries: vec![] });
    send(&mut machine, 1, "g:a");
    let first = sends(&mut machine, ZERO);
    send(&mut machine, 2, "g:a");
    let second = sends(&mut machine, ms(9000));
    send(&mut machine, 3, "g:a");
    let repeat = sends(&mut machine, ms(10_000));
    assert_eq!(repeat.iter().map(|one| one.0).collect::<Vec<_>>(), [1]);
    send(&mut machine, 4, "g:a");
    let now = ms(10_001);
    assert!(sends(&mut machine, now).is_empty());
    machine.handle_frame(now, &error(first[0].1, 5002, 0));
    machine.handle_frame(now, &error(second[0].1, 4003, 0));
    assert!(sends(&mut machine, now).is_empty());
    machine.handle_frame(now, &sent(repeat[0].1, 1));
    assert_eq!(sends(&mut machine, now).iter().map(|one| one.0).collect::<Vec<_>>(), [2, 3, 4]);
}

/// After a reconnect everything unanswered goes again with RETRY; what was never written goes without.
#[test]
fn a_reconnect_repeats_what_is_unanswered() {
    let mut machine = active(Settings::new("d"));
    (1..=4).for_each(|number| send(&mut machine, number, "g:a"));
    assert_eq!(sends(&mut machine, ZERO).len(), 4);
    send(&mut machine, 5, "g:a");
    machine.handle_closed(ZERO, Closed::default());
    connect(&mut machine, ms(60_000), 1);
    let again = sends(&mut machine, ms(60_000));
    assert_eq!(again.iter().map(|one| (one.0, one.2)).collect::<Vec<_>>(), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 0)]);
    machine
        .handle_frame(ms(60_000), &ServerFrame::Sent { rid: again[0].1, level: 2, flags: SENT_DUPLICATE, seq: 1, mid: Mid(1) });
    assert!(machine.poll_outcome().is_some_and(|outcome| outcome.result.is_ok_and(|sent| sent.duplicate && sent.seq == 1)));
}

/// A refusal for good ends the message; a transient message is not repeated, and the hold it leaves is released.
#[test]
fn what_is_given_up_says_why() {
    let mut machine = active(Settings::new("d"));
    send(&mut machine, 1, "g:a");
    let first = sends(&mut machine, ZERO);
    machine.handle_frame(ZERO, &error(first[0].1, 3001, 0));
    let refused = Err(SendError::Refused { code: 3001, detail: "no".into() });
    assert_eq!(machine.poll_outcome().map(|outcome| outcome.result), Some(refused));

    let transient = Outgoing { transient: true, ..Outgoing::new("g:a", b"x") };
    machine.send(Cmid([2; 16]), transient).expect("the outbox has room");
    let second = sends(&mut machine, ZERO);
    assert_eq!(second[0].2, send_flags::TRANSIENT);
    machine.handle_frame(ZERO, &error(second[0].1, 4001, 100));
    assert_eq!(machine.poll_outcome().map(|outcome| outcome.result), Some(Err(SendError::NotRepeated)));
    send(&mut machine, 3, "g:a");
    assert_eq!(sends(&mut machine, ZERO).iter().map(|one| one.2).collect::<Vec<_>>(), [send_flags::RELEASE]);
}

/// Beyond the gateway's horizon a message is not repeated by itself any more.
#[test]
fn the_horizon_ends_repeating() {
    let mut machine = active(Settings::new("d"));
    send(&mut machine, 1, "g:a");
    assert_eq!(sends(&mut machine, ZERO).len(), 1);
    machine.handle_closed(ZERO, Closed::default());
    machine.handle_timeout(Duration::from_secs(86_401));
    assert_eq!(machine.poll_outcome().map(|outcome| outcome.result), Some(Err(SendError::Horizon)));
}

/// A message that cannot be right is not taken.
#[test]
fn nonsense_is_not_taken() {
    let mut machine = active(Settings::new("d"));
    assert_eq!(machine.send(Cmid([1; 16]), Outgoing::new("x", b"")), Err(SendError::BadConversation));
    assert_eq!(machine.send(Cmid([1; 16]), Outgoing::new("g:a", &[0; 1001])), Err(SendError::TooLarge));
}

/// A gap is fetched, up to what came too early, and all comes out in order; duplicates do not come out.
#[test]
fn a_gap_is_fetched() {
    let mut machine = active(Settings::new("d"));
    machine.handle_frame(ZERO, &deliver(1, 1));
    machine.handle_frame(ZERO, &deliver(2, 4));
    machine.handle_frame(ZERO, &deliver(3, 1));
    assert_eq!(seqs(&drain(&mut machine, ZERO)), [1]);
    machine.handle_frame(ZERO, &deliver(4, 5));
    let _ack = machine.poll_frame(ZERO);
    let (rid, from, to) = fetch(&mut machine, ZERO).expect("a FETCH");
    assert_eq!((from, to), (2, 3));
    machine.handle_frame(ZERO, &page(rid, page_flags::MORE, 1, 1, 5, &[2]));
    let (rid, from, to) = fetch(&mut machine, ZERO).expect("the rest");
    assert_eq!((from, to), (3, 3));
    machine.handle_frame(ZERO, &page(rid, 0, 1, 1, 5, &[3]));
    assert_eq!(seqs(&drain(&mut machine, ZERO)), [2, 3, 4, 5]);
}

/// An own message takes its place by its SENT, behind what was missing before it.
#[test]
fn sent_counts_as_delivery() {
    let mut machine = active(Settings::new("d"));
    send(&mut machine, 7, "g:a");
    let first = sends(&mut machine, ZERO);
    machine.handle_frame(ZERO, &sent(first[0].1, 2));
    assert!(seqs(&drain(&mut machine, ZERO)).is_empty());
    machine.handle_frame(ZERO, &deliver(1, 1));
    let events = drain(&mut machine, ZERO);
    assert_eq!(seqs(&events), [1, 2]);
    assert!(
        matches!(&events[1], Event::Message(message) if message.own && message.cmid == Some(Cmid([7; 16])) && &*message.from == "al")
    );
}

/// What lies below the floor, and what a page leaves out, is reported as a break.
#[test]
fn a_hole_is_not_silent() {
    let mut machine = active(Settings::new("d"));
    machine.handle_frame(ZERO, &ServerFrame::Notice { conv: "g:a".into(), head: 9, mid: Mid(9) });
    let (rid, from, to) = fetch(&mut machine, ZERO).expect("a FETCH");
    assert_eq!((from, to), (1, 9));
    machine.handle_frame(ZERO, &page(rid, page_flags::BELOW_FLOOR, 1, 4, 9, &[6, 7, 8, 9]));
    let events = drain(&mut machine, ZERO);
    let breaks: Vec<(u64, u64)> = events
        .iter()
        .filter_map(|event| if let Event::Break { from, to, .. } = event { Some((*from, *to)) } else { None })
        .collect();
    assert_eq!(breaks, [(1, 3), (4, 5)]);
    assert_eq!(seqs(&events), [6, 7, 8, 9]);
}

/// A page that is older than what is known does not become a break: it is asked for again.
#[test]
fn a_page_from_before_is_asked_again() {
    let mut machine = active(Settings::new("d"));
    machine.handle_frame(ZERO, &ServerFrame::Notice { conv: "g:a".into(), head: 2, mid: Mid(2) });
    let (rid, ..) = fetch(&mut machine, ZERO).expect("a FETCH");
    machine.handle_frame(ZERO, &page(rid, 0, 1, 1, 0, &[]));
    assert_eq!(fetch(&mut machine, ms(999)), None);
    let (rid, from, to) = fetch(&mut machine, ms(1000)).expect("again");
    assert_eq!((from, to), (1, 2));
    machine.handle_frame(ms(1000), &page(rid, 0, 1, 1, 2, &[1, 2]));
    assert_eq!(seqs(&drain(&mut machine, ms(1000))), [1, 2]);
}

/// Another epoch voids what was known, and the conversation is fetched anew.
#[test]
fn another_epoch_starts_over() {
    let mut settings = Settings::new("d");
    settings.positions = vec![Position { conv: "g:a".into(), epoch: Some(1), have: 7 }];
    let mut machine = active(settings);
    let entry =
        Entry { conv: "g:a".into(), epoch: 2, flags: 0, head: 3, head_mid: Mid(3), floor: 1, mine: 0, read: 0, unread: 0 };
    let sync = ServerFrame::SyncPage { rid: 1, flags: 0, since: 5, cursor: "".into(), entries: vec![entry] };
    // The rid of the SYNC that `active` has asked for.
    machine.handle_frame(ZERO, &sync);
    assert!(drain(&mut machine, ZERO).contains(&Event::Reset { conv: "g:a".into() }));
    let (rid, from, to) = fetch(&mut machine, ZERO).unwrap();
    assert_eq!((from, to), (1, 3));
    assert_eq!(machine.since(), 0, "a restart must be told again of what is not here yet");
    machine.handle_frame(ZERO, &page(rid, 0, 2, 1, 3, &[1, 2, 3]));
    assert_eq!(machine.since(), 0, "nor is it processed");
    assert_eq!(seqs(&drain(&mut machine, ZERO)), [1, 2, 3]);
    assert_eq!(machine.since(), 5);
}

/// What comes before the SYNC that tells of another epoch looks as if it were known. It is of the new epoch, and fetched.
#[test]
fn another_epoch_may_be_heard_before_it_is_told() {
    let mut settings = Settings::new("d");
    settings.positions = vec![Position { conv: "g:a".into(), epoch: Some(1), have: 7 }];
    let mut machine = active(settings);
    machine.handle_frame(ZERO, &deliver(1, 5));
    assert!(seqs(&drain(&mut machine, ZERO)).is_empty());
    let entry =
        Entry { conv: "g:a".into(), epoch: 2, flags: 0, head: 4, head_mid: Mid(4), floor: 1, mine: 0, read: 0, unread: 0 };
    machine.handle_frame(ZERO, &ServerFrame::SyncPage { rid: 1, flags: 0, since: 9, cursor: "".into(), entries: vec![entry] });
    assert!(drain(&mut machine, ZERO).contains(&Event::Reset { conv: "g:a".into() }));
    assert_eq!(fetch(&mut machine, ZERO).map(|(_, from, to)| (from, to)), Some((1, 5)));
}

/// DELIVER does not tell the epoch, so an empty FETCH asks for it, once.
#[test]
fn an_unknown_epoch_is_asked_for() {
    let mut machine = active(Settings::new("d"));
    machine.handle_frame(ZERO, &deliver(1, 1));
    let (rid, from, to) = fetch(&mut machine, ZERO).expect("a FETCH");
    assert_eq!((from, to), (2, 1));
    machine.handle_frame(ZERO, &page(rid, 0, 3, 1, 1, &[]));
    machine.handle_frame(ZERO, &deliver(2, 2));
    assert!(fetch(&mut machine, ZERO).is_none());
    assert_eq!(seqs(&drain(&mut machine, ZERO)), [1, 2]);
    assert_eq!(machine.positions(), [Position { conv: "g:a".into(), epoch: Some(3), have: 2 }]);
}

/// A device that remembers nothing may start at its cursor instead of fetching the whole history.
#[test]
fn history_may_start_at_the_cursor() {
    for (history, first) in [(History::Whole, 1), (History::SinceCursor, 6)] {
        let mut machine = active(Settings { history, ..Settings::new("d") });
        let (head, mine) = (8, 5);
        let conv = "g:a".into();
        let entry = Entry { conv, epoch: 1, flags: 0, head, head_mid: Mid(8), floor: 1, mine, read: 0, unread: 0 };
        machine
            .handle_frame(ZERO, &ServerFrame::SyncPage { rid: 1, flags: 0, since: 5, cursor: "".into(), entries: vec![entry] });
        assert_eq!(fetch(&mut machine, ZERO).map(|(_, from, to)| (from, to)), Some((first, 8)));
    }
}

/// ACK comes after half a window, or a second after the first delivery was taken, and not for what was not taken.
#[test]
fn acknowledgement_follows_taking() {
    let mut machine = active(Settings { positions: known(), ..Settings::new("d") });
    machine.handle_frame(ZERO, &deliver(1, 1));
    assert!(machine.poll_frame(ms(5000)).is_none());
    drain(&mut machine, ms(5000));
    assert!(machine.poll_frame(ms(5999)).is_none());
    let Some(ClientFrame::Ack { pos: 1, cursors }) = machine.poll_frame(ms(6000)) else { panic!("an ACK after a second") };
    assert_eq!(cursors.iter().map(|cursor| cursor.seq).collect::<Vec<_>>(), [1]);
    machine.handle_frame(ms(6000), &deliver(2, 2));
    machine.handle_frame(ms(6000), &deliver(3, 3));
    drain(&mut machine, ms(6000));
    let Some(ClientFrame::Ack { pos: 3, cursors }) = machine.poll_frame(ms(6000)) else { panic!("an ACK at half a window") };
    assert_eq!(cursors.iter().map(|cursor| cursor.seq).collect::<Vec<_>>(), [3]);
    assert!(machine.poll_frame(ms(9000)).is_none());
}

/// With acknowledgement by hand the position moves as messages are taken, the cursor only as the application says.
#[test]
fn acknowledgement_by_hand_moves_the_cursor() {
    let mut machine = active(Settings { acknowledge: Acknowledge::ByHand, positions: known(), ..Settings::new("d") });
    (1..=2).for_each(|seq| machine.handle_frame(ZERO, &deliver(seq, seq)));
    drain(&mut machine, ZERO);
    let Some(ClientFrame::Ack { pos: 2, cursors }) = machine.poll_frame(ZERO) else { panic!("an ACK") };
    assert!(cursors.is_empty());
    machine.processed(ZERO, "g:a", 2);
    let Some(ClientFrame::Ack { pos: 2, cursors }) = machine.poll_frame(ms(1000)) else { panic!("an ACK") };
    assert_eq!(cursors.iter().map(|cursor| cursor.seq).collect::<Vec<_>>(), [2]);
}

/// GOAWAY: nothing new is sent, what is unanswered is waited for, then the client leaves and comes back at the target within the spread.
#[test]
fn goaway_is_obeyed() {
    let mut machine = active(Settings::new("d"));
    send(&mut machine, 1, "g:a");
    let first = sends(&mut machine, ZERO);
    let goaway = ServerFrame::Goaway { code: 1, delay_ms: 2000, spread_ms: 1000, grace_ms: 5000, target: "other:7".into() };
    machine.handle_frame(ZERO, &goaway);
    send(&mut machine, 2, "g:a");
    assert!(sends(&mut machine, ZERO).is_empty());
    assert_eq!(machine.poll_action(), None);
    machine.handle_frame(ms(10), &sent(first[0].1, 1));
    machine.handle_timeout(ms(10));
    assert_eq!(machine.poll_action(), Some(Action::Close(1001)));
    machine.handle_closed(ms(10), Closed::default());
    machine.handle_timeout(ms(1999));
    assert_eq!(machine.poll_action(), None);
    machine.handle_timeout(ms(3000));
    assert_eq!(machine.poll_action(), Some(Action::Connect { target: Some("other:7".into()), fresh_token: false }));
}

/// 4409 ends the client and everything it had; 4401 asks for another token; 4411 asks for everything again.
#[test]
fn close_codes_are_obeyed() {
    let mut machine = active(Settings::new("d"));
    send(&mut machine, 1, "g:a");
    machine.handle_closed(ZERO, Closed { code: Some(4409), retry_after: None });
    assert_eq!(machine.stopped(), Some(Stop::Replaced));
    assert_eq!(machine.poll_outcome().map(|outcome| outcome.result), Some(Err(SendError::Stopped)));
    assert_eq!(drain(&mut machine, ZERO), [Event::State(State::Stopped(Stop::Replaced))]);
    machine.handle_timeout(Duration::from_secs(3600));
    assert_eq!(machine.poll_action(), None);

    let mut machine = active(Settings { since: 0, ..Settings::new("d") });
    machine.handle_closed(ZERO, Closed { code: Some(4401), retry_after: None });
    machine.handle_timeout(ms(500));
    assert_eq!(machine.poll_action(), Some(Action::Connect { target: None, fresh_token: true }));
}

/// `Retry-After` is a lower bound.
#[test]
fn retry_after_is_a_lower_bound() {
    let mut machine = active(Settings::new("d"));
    machine.handle_closed(ZERO, Closed { code: None, retry_after: Some(Duration::from_secs(7)) });
    machine.handle_timeout(ms(6999));
    assert_eq!(machine.poll_action(), None);
    machine.handle_timeout(ms(14_000));
    assert!(matches!(machine.poll_action(), Some(Action::Connect { .. })));
}

/// An ERROR with CLOSING says how long to stay away at least; the close after the next one without it does not.
#[test]
fn an_error_that_closes_says_when_to_come_back() {
    let mut machine = active(Settings::new("d"));
    let closing = ServerFrame::Error { rid: 0, code: 5002, flags: 3, retry_ms: 40_000, detail: "".into() };
    machine.handle_frame(ZERO, &closing);
    machine.handle_closed(ZERO, Closed { code: Some(4503), retry_after: None });
    machine.handle_timeout(ms(39_999));
    assert_eq!(machine.poll_action(), None);
    machine.handle_timeout(ms(50_000));
    assert!(matches!(machine.poll_action(), Some(Action::Connect { .. })));
    machine.handle_closed(ms(50_000), Closed::default());
    machine.handle_timeout(ms(80_000));
    assert!(matches!(machine.poll_action(), Some(Action::Connect { .. })));
}

/// A token that ends soon is replaced without reconnecting.
#[test]
fn an_expiring_token_is_replaced() {
    let mut machine = active(Settings::new("d"));
    machine.handle_frame(ZERO, &ServerFrame::Expiring { in_ms: 60_000 });
    assert_eq!(machine.poll_action(), Some(Action::Token));
    machine.handle_token("fresh");
    assert!(matches!(machine.poll_frame(ZERO), Some(ClientFrame::Auth { token, .. }) if token == "fresh"));
}

/// Silence is answered with PING when asked for, and further silence ends the connection.
#[test]
fn a_dead_link_is_found_by_ping() {
    let mut machine = active(Settings { ping_after: Some(ms(5000)), ..Settings::new("d") });
    machine.handle_frame(ZERO, &ServerFrame::SyncPage { rid: 1, flags: 0, since: 5, cursor: "".into(), entries: vec![] });
    assert!(machine.poll_frame(ms(4999)).is_none());
    assert!(matches!(machine.poll_frame(ms(5000)), Some(ClientFrame::Ping { .. })));
    machine.handle_timeout(ms(14_999));
    assert_eq!(machine.poll_action(), None);
    machine.handle_timeout(ms(15_000));
    assert_eq!(machine.poll_action(), Some(Action::Close(1001)));
}

/// A tombstone and a transient message come out as what they are.
#[test]
fn flags_reach_the_application() {
    let mut machine = active(Settings::new("d"));
    let ServerFrame::Deliver(plain) = deliver(1, 1) else { unreachable!() };
    machine.handle_frame(ZERO, &ServerFrame::Deliver(Deliver { flags: deliver_flags::TOMBSTONE, ..plain.clone() }));
    machine.handle_frame(ZERO, &ServerFrame::Deliver(Deliver { flags: deliver_flags::TRANSIENT, seq: 0, pos: 0, ..plain }));
    let events = drain(&mut machine, ZERO);
    assert!(matches!(&events[0], Event::Message(message) if message.flags & deliver_flags::TOMBSTONE != 0));
    assert!(matches!(&events[1], Event::Transient(_)));
    assert_eq!(events.len(), 2);
}

/// The last acknowledgement still leaves when the application closes.
#[test]
fn closing_acknowledges_what_was_taken() {
    let mut machine = active(Settings { positions: known(), ..Settings::new("d") });
    machine.handle_frame(ZERO, &deliver(1, 1));
    drain(&mut machine, ZERO);
    machine.close();
    assert_eq!(machine.poll_action(), Some(Action::Close(1000)));
    assert!(matches!(machine.poll_frame(ZERO), Some(ClientFrame::Ack { pos: 1, .. })));
    assert!(machine.poll_frame(ZERO).is_none());
}
