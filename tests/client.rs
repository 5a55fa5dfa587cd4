//! What the reference client asks for beside messages, through the real binary: presence, messages once more, trace contexts.

mod support;

use std::time::Duration;

use support::gateway::Gateway;
use support::raw::ENCODINGS;
use support::{PATIENCE, eventually};
use tidegate::wire::envelope::Encoding;
use tidegate_client::{Acknowledge, Client, Event, Events, Outgoing, Received, Settings, State, Trace};

const DIRECT: &str = "d:al:bo";

fn client(gateway: &Gateway, user: &str, device: &str, encoding: Encoding, set: impl FnOnce(&mut Settings)) -> (Client, Events) {
    let mut options = gateway.options(user, device);
    options.settings.encoding = encoding;
    set(&mut options.settings);
    gateway.client(options)
}

/// Waits for an event.
fn wait<T>(what: &str, events: &Events, mut find: impl FnMut(Event) -> Option<T>) -> T {
    loop {
        match events.recv_timeout(PATIENCE) {
            Ok(event) => {
                if let Some(found) = find(event) {
                    return found;
                }
            }
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

fn presence(events: &Events, of: &str, is: u8) {
    wait("PRESENCE", events, |event| match event {
        Event::Presence { user, state, .. } if *user == *of => (state == is).then_some(()),
        Event::Refused { code, detail } => panic!("refused with {code} {detail}"),
        _ => None,
    });
}

fn message(events: &Events) -> Received {
    wait("a message", events, |event| match event {
        Event::Message(message) => Some(message),
        Event::Refused { code, detail } => panic!("refused with {code} {detail}"),
        _ => None,
    })
}

/// Watched users come and go; the set is renewed before its time is over, and outlives the gateway. Nothing comes of it any more once it
/// is not wanted.
#[test]
fn a_set_of_users_stays_watched() {
    for encoding in ENCODINGS {
        let mut gateway = Gateway::start();
        gateway.group("g:team", &["al", "bo", "cy"]);
        let (al, al_events) = client(&gateway, "al", "1", encoding, |settings| settings.presence = true);
        al.watch(&["bo"], Duration::from_secs(1)).expect("a good set");
        // Each renewal tells everything again, also after the first would have ended.
        (0..4).for_each(|_| presence(&al_events, "bo", 0));
        let (bo, bo_events) = client(&gateway, "bo", "1", encoding, |_| {});
        presence(&al_events, "bo", 1);
        gateway.kill();
        wait("the connection ends", &al_events, |event| matches!(event, Event::State(State::Waiting { .. })).then_some(()));
        gateway.run();
        presence(&al_events, "bo", 1);
        // Bo leaves before cy, and is not watched any more: of the two only cy's leaving is told.
        let (cy, cy_events) = client(&gateway, "cy", "1", encoding, |_| {});
        al.unwatch();
        al.watch(&["cy"], Duration::ZERO).expect("a good set");
        presence(&al_events, "cy", 1);
        drop((bo, bo_events));
        eventually("bo is gone", || (gateway.metric("tidegate_connections_open") < 3.0).then_some(()));
        drop((cy, cy_events));
        wait("PRESENCE of cy", &al_events, |event| match event {
            Event::Presence { user, state, .. } => {
                assert_eq!(&*user, "cy", "bo is not watched");
                (state == 0).then_some(())
            }
            _ => None,
        });
    }
}

/// A message that cannot be processed yet comes again as often as it is asked for, and no more once it is processed.
#[test]
fn a_message_comes_once_more() {
    let gateway = Gateway::start();
    let (al, _al_events) = client(&gateway, "al", "1", Encoding::Binary, |_| {});
    let first = al.send(DIRECT, b"first").expect("acknowledged").seq;
    for (encoding, device) in ENCODINGS.into_iter().zip(["1", "2"]) {
        let (bo, events) = client(&gateway, "bo", device, encoding, |settings| settings.acknowledge = Acknowledge::ByHand);
        assert_eq!(message(&events).seq, first);
        for _ in 0..2 {
            bo.nack(DIRECT, first, Duration::ZERO, 7);
            wait("the message again", &events, |event| match event {
                Event::Message(message) => (message.seq == first && *message.payload == *b"first").then_some(()),
                _ => None,
            });
        }
        bo.nack(DIRECT, first, Duration::ZERO, 7);
        bo.processed(DIRECT, first);
        let text = format!("to {device}");
        al.send(DIRECT, text.as_bytes()).expect("acknowledged");
        wait("the next message", &events, |event| match event {
            Event::Message(message) if message.seq == first => panic!("it came again"),
            Event::Message(message) => (*message.payload == *text.as_bytes()).then_some(()),
            _ => None,
        });
    }
}

/// A trace context goes from who sends it to whoever has asked for it, and to nobody else.
#[test]
fn a_trace_context_comes_along() {
    let gateway = Gateway::start();
    let trace = Trace { trace_id: *b"0123456789abcdef", parent_id: *b"parentid", flags: 0 };
    for encoding in ENCODINGS {
        let (al, al_events) = client(&gateway, "al", "1", encoding, |settings| settings.trace = true);
        let devices = [("1", Encoding::Binary, true), ("2", Encoding::Json, true), ("3", Encoding::Binary, false)];
        let others = devices.map(|(device, encoding, is_wanted)| {
            let (bo, events) = client(&gateway, "bo", device, encoding, |settings| settings.trace = is_wanted);
            wait("SYNC", &events, |event| (event == Event::Synced).then_some(()));
            (bo, events, is_wanted)
        });
        let text = format!("{encoding:?}");
        let sent = al.submit(Outgoing { trace: Some(trace), ..Outgoing::new(DIRECT, text.as_bytes()) }).wait();
        assert!(sent.is_ok(), "{sent:?}");
        let of = |events: &Events| {
            wait("the message", events, |event| match event {
                Event::Message(message) if *message.payload == *text.as_bytes() => Some(message.trace),
                _ => None,
            })
        };
        assert_eq!(of(&al_events), Some(trace));
        for (_bo, events, is_wanted) in &others {
            assert_eq!(of(events), is_wanted.then_some(trace));
        }
    }
}
