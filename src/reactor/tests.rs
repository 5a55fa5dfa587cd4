use super::*;
use crate::config::Secret;
use crate::ids::{Cmid, RosterId, SessionRef};
use crate::io::epoll::Epoll;
use crate::io::socket::Listener;
use crate::mail::{Event, PageReply, Reached, SendMail, Sender};
use crate::mailbox::{Gathering, LaneReceiver, Post, lane, reactor_lanes, spares};
use crate::observe::counters::CloseCause;
use crate::session::auth::Verifier;
use crate::shard::{DEFECT_OF_TESTS, Rules};
use crate::wire::envelope::{ErrorCode, send_flags};
use crate::wire::message::Body;
use crate::wire::tls::{Keys, Pair, Policy};

fn rules() -> Rules {
    crate::gateway::rules(&crate::config::settings::Settings::default(), false, 1, 8, [0; 16]).unwrap()
}

/// The one cause of a close that nobody can provoke from outside: a defect while bytes are handled. It is counted once, as itself.
#[test]
fn a_panic_ends_one_connection_as_an_internal_error() {
    let secret = Secret::new(vec![7; 32]).unwrap();
    let now = Clock::new().now();
    let mut shard = Shard::new(ReactorId(0), Arc::new(rules()), Arc::new(Verifier::new(&secret, 0)), now);
    let mut stashes = Stashes::new(1 << 20);
    let id = shard.handle_accept(now, None).unwrap();
    let other = shard.handle_accept(now, None).unwrap();
    shard.handle_panic(id);
    shard.handle_closed(id, &mut stashes);
    assert_eq!(shard.counters.closes_count[CloseCause::InternalError.index()], 1);
    assert_eq!(shard.counters.closes_count.iter().sum::<u64>(), 1);
    assert_eq!((shard.connections_count(), shard.handshakes_open()), (1, 1));
    shard.handle_closed(other, &mut stashes);
    assert_eq!((shard.connections_count(), shard.handshakes_open()), (0, 0));
}

/// Messages fill seven eighths of the lane to the store, what is shed first half of it, and the rest of it takes who leaves.
#[test]
fn messages_leave_room_in_the_lane() {
    let (submit, submits) = lane(16, &Waker::for_thread());
    let (spare_groups, _) = spares(1);
    let mut outbox = Outbox {
        submit: Gathering::new(submit),
        credit: Credit::new(1000),
        peers: Vec::new(),
        spare_groups,
        judges: None,
        hooks: None,
    };
    let from = Sender { session: SessionRef { reactor: ReactorId(0), index: 0, generation: 1 }, roster: RosterId(0), rid: 1 };
    let send = |flags| {
        Submit::Send(SendMail {
            from,
            cmid: Cmid([1; 16]),
            flags,
            kind: 1,
            ttl_s: 0,
            trace: None,
            conv: "d:al:bo".into(),
            payload: Body::new(),
            refusal: None,
            received: Moment::default(),
        })
    };
    let mut count = |mail: &dyn Fn() -> Submit| (0..100).take_while(|_| outbox.submit(mail()).is_ok()).count();
    assert_eq!(count(&|| send(send_flags::TRANSIENT)), 9);
    assert_eq!(count(&|| send(0)), 6);
    assert_eq!(count(&|| Submit::Leave { session: from.session, roster: from.roster }), 1);
    assert_eq!(submits.len(), 16);
}

/// A reactor of one core, with the other ends of its lanes.
struct Made {
    reactor: Reactor<Epoll>,
    post: Post,
    block: Arc<ReactorBlock>,
    _others: (LaneReceiver<Submit>, std::sync::mpsc::Receiver<Report>),
}

fn made(listener: Option<Listener>) -> Made {
    made_of(listener, rules())
}

fn made_of(listener: Option<Listener>, rules: Rules) -> Made {
    let waker = Waker::for_driver().unwrap();
    let (post, inbox) = reactor_lanes(&waker, 1);
    let (submit, submitted) = lane(8, &Waker::for_thread());
    let (reports, reported) = std::sync::mpsc::channel();
    let clock = Clock::new();
    let secret = Secret::new(vec![7; 32]).unwrap();
    let shard = Shard::new(ReactorId(0), Arc::new(rules), Arc::new(Verifier::new(&secret, 0)), clock.now());
    let block = Arc::new(ReactorBlock::default());
    let parts = Parts {
        id: ReactorId(0),
        inbox,
        waker: waker.clone(),
        outbox: Outbox {
            submit: Gathering::new(submit),
            credit: Credit::new(1),
            peers: Vec::new(),
            spare_groups: spares(1).0,
            judges: None,
            hooks: None,
        },
        clock,
        block: Arc::clone(&block),
        histograms: ReactorHistograms::new().0,
        reports,
        table: None,
        steering: None,
        pressure: Arc::new(Pressure::new(u64::MAX, 1)),
    };
    let reactor = Reactor::new(Epoll::new(8, listener, waker).unwrap(), shard, Stashes::new(1 << 20), parts);
    Made { reactor, post, block, _others: (submitted, reported) }
}

/// A panic while the bytes of one connection are handled closes that connection with 1011, is counted, and leaves its neighbour on the
/// same core alone.
#[test]
fn a_panic_leaves_the_others_alone() {
    use std::io::{ErrorKind, Read, Write};
    use std::net::TcpStream;
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), 8).unwrap();
    let address = listener.local_address().unwrap();
    let Made { mut reactor, .. } = made(Some(listener));
    let mut turn = || {
        let Reactor { driver, hands, .. } = &mut reactor;
        driver.accept(true);
        driver.turn(Duration::from_millis(5), hands).unwrap();
        hands.tell_time();
        hands.shard.handle_time(hands.now, &mut hands.outbox);
        hands.flush(driver);
        hands.shard.counters.panics_count
    };
    let mut read_until = |stream: &mut TcpStream, is_all: &dyn Fn(&[u8]) -> bool| {
        stream.set_nonblocking(true).unwrap();
        let (mut seen, mut chunk) = (Vec::new(), [0; 512]);
        for _ in 0..2_000 {
            turn();
            match stream.read(&mut chunk) {
                Ok(0) => return (seen, turn()),
                Ok(count) => seen.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            if is_all(&seen) {
                return (seen, turn());
            }
        }
        panic!("never came; seen: {seen:?}");
    };
    let request = "GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: tidegate.v1\r\n\r\n";
    let mut streams = [0, 1].map(|_| TcpStream::connect(address).unwrap());
    for stream in &mut streams {
        stream.write_all(request.as_bytes()).unwrap();
        let (head, _) = read_until(stream, &|seen| seen.ends_with(b"\r\n\r\n"));
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    }
    let [victim, neighbour] = &mut streams;
    victim.write_all(DEFECT_OF_TESTS).unwrap();
    let (end, panics) = read_until(victim, &|_| false);
    assert_eq!((end.first(), end.get(2..4), panics), (Some(&0x88), Some(&1011_u16.to_be_bytes()[..]), 1), "{end:x?}");
    // A ping, masked with zeros.
    neighbour.write_all(&[0x89, 0x81, 0, 0, 0, 0, b'?']).unwrap();
    let (pong, panics) = read_until(neighbour, &|seen| seen.len() >= 3);
    assert_eq!((pong.as_slice(), panics), (&[0x8a, 1, b'?'][..], 1));
}

/// A slice ends by its steps or by its time, whichever comes first.
#[test]
fn a_slice_of_handshakes_ends_by_count_or_time() {
    let after = |micros: u64| Moment { mono_ns: 5_000_000_000 + micros * 1_000, unix_ms: 0 };
    let fresh = || Slice { begun: after(0), steps: 0 };
    let mut quick = fresh();
    assert_eq!((0..1_000).take_while(|_| quick.has_room(after(1))).count(), limits::TLS_STEPS_PER_TURN_MAX);
    let mut slow = fresh();
    // 300 us a step, as with RSA on a slow core: the fourth begins before the time is over.
    assert_eq!((0..1_000).take_while(|&step| slow.has_room(after(step * 300))).count(), 4);
}

/// Whatever stands in line, one turn makes a few steps of handshakes, in order; bytes alone make none.
#[test]
fn a_turn_makes_a_few_steps_of_handshakes() {
    const WAITING: usize = 96;
    let signed = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let pair = Pair {
        name: "test".to_owned(),
        chain: signed.cert.pem().into_bytes(),
        key: signed.signing_key.serialize_pem().into_bytes(),
    };
    let hello = {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let mut client = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    };
    let rules = Rules { tls_waiting_max: WAITING, handshakes_max: 100, connections_max: 100, ..rules() };
    let Made { mut reactor, .. } = made_of(None, rules);
    let hands = &mut reactor.hands;
    hands.shard.set_keys(Keys::new(&[pair], Policy::default(), 3_600).unwrap());
    for _ in 0..WAITING {
        let id = hands.shard.handle_accept(hands.now, None).unwrap();
        hands.shard.expect_tls(id);
        hands.shard.handle_bytes(hands.now, id, &mut hello.clone(), &mut hands.stashes, &mut hands.outbox);
    }
    assert_eq!(hands.shard.handshakes_waiting(), WAITING, "bytes wait for their turn");
    let mut turns = 0;
    while hands.shard.handshakes_waiting() > 0 {
        let before = hands.shard.handshakes_waiting();
        hands.shake_hands();
        let steps = before - hands.shard.handshakes_waiting();
        assert!((1..=limits::TLS_STEPS_PER_TURN_MAX).contains(&steps), "{steps} steps");
        turns += 1;
    }
    assert!(turns >= 3);
}

/// What finds a lane full is counted: a HELLO that the store cannot be told of ends with 4503, as overloaded.
#[test]
fn a_full_lane_is_counted() {
    struct Full;
    impl Outlet for Full {
        fn submit(&mut self, mail: Submit) -> Result<(), Submit> {
            Err(mail)
        }
        fn peer(&mut self, _: ReactorId, mail: Peer) -> Result<(), Peer> {
            Err(mail)
        }
    }
    let secret = Secret::new(vec![7; 32]).unwrap();
    let now = Moment { mono_ns: 1, unix_ms: 1_764_000_000_000 };
    let mut shard = Shard::new(ReactorId(0), Arc::new(rules()), Arc::new(Verifier::new(&secret, 0)), now);
    let mut stashes = Stashes::new(1 << 20);
    let id = shard.handle_accept(now, None).unwrap();
    let head = "GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: tidegate.v1.json\r\n\r\n";
    shard.handle_bytes(now, id, &mut head.as_bytes().to_vec(), &mut stashes, &mut Full);
    let token = crate::session::auth::mint(&secret, "al", None, 0..1_764_000_100).unwrap();
    let hello = format!(r#"{{"t":"hello","device":"1","token":"{token}"}}"#);
    let length = u16::try_from(hello.len()).unwrap().to_be_bytes();
    // Masked with zeros.
    let mut frame = [&[0x81, 0x80 | 126][..], &length, &[0; 4], hello.as_bytes()].concat();
    shard.handle_bytes(now, id, &mut frame, &mut stashes, &mut Full);
    assert_eq!(shard.counters.submit_full_count, 1);
    // Two sessions of other cores: the mail to one of them waits for room.
    let stranger = |core, index| SessionRef { reactor: ReactorId(core), index, generation: 1 };
    let evict = Event::Evict { session: stranger(0, 7), by: stranger(1, 7), claim: None };
    shard.handle_group(now, &Group { events: vec![evict], ..Group::default() }, &mut Full);
    assert_eq!(shard.counters.peer_full_count, 1);
    shard.handle_time(now, &mut Full);
    assert_eq!(shard.counters.peer_full_count, 2);
    shard.handle_closed(id, &mut stashes);
    assert_eq!(shard.counters.closes_count[CloseCause::Overloaded.index()], 1);
}

/// The gauges of the lanes say what waited when a turn began to take its mail.
#[test]
fn lanes_show_what_waited() {
    let Made { mut reactor, post, block, .. } = made(None);
    let stranger = SessionRef { reactor: ReactorId(0), index: 1, generation: 1 };
    let page = || PageReply { session: stranger, rid: 1, result: Err(ErrorCode::Internal), reached: Reached::Nothing };
    (0..3).for_each(|_| post.group.try_send(Group::default()).unwrap());
    (0..2).for_each(|_| post.peer.try_send(Peer::Gone { to: stranger, cursors: Vec::new() }).unwrap());
    post.page.try_send(page()).unwrap();
    let mut shown = || {
        let begun = reactor.hands.tell_time();
        assert!(!reactor.take_mail());
        reactor.publish(begun);
        ["group_lane_open", "peer_lane_open", "page_lane_open"].map(|name| block.value(name).unwrap())
    };
    assert_eq!(shown(), [3, 2, 1]);
    assert_eq!(shown(), [0, 0, 0]);
    // The time asleep is no latency of what ended the sleep: the first event after a wait reads the clock, later ones do not.
    let Reactor { driver, hands, .. } = &mut reactor;
    let (id, asleep) = (ConnectionId { index: 1, generation: 1 }, Moment::default());
    (hands.now, hands.has_slept) = (asleep, true);
    hands.bytes(driver, id, &mut []);
    assert!(hands.now > asleep);
    hands.now = asleep;
    hands.bytes(driver, id, &mut []);
    assert_eq!(hands.now, asleep);
}

/// When many connections end at once, a flush ends so many of them and leaves the rest to the turns that follow, which do not sleep.
#[test]
fn a_flush_ends_so_many_connections() {
    let most = limits::COMMANDS_PER_FLUSH_MAX;
    let mut made = made_of(None, Rules { connections_max: most + 1, ..rules() });
    let Reactor { driver, hands, .. } = &mut made.reactor;
    for _ in 0..=most {
        let id = hands.shard.handle_accept(hands.now, None).unwrap();
        hands.shard.handle_failed(id);
    }
    hands.flush(driver);
    assert!(hands.shard.is_busy(), "one is left");
    hands.flush(driver);
    assert!(!hands.shard.is_busy());
}
