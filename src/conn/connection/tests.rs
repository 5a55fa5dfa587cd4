use super::*;
use crate::conn::deflate::Deflater;
use crate::limits::{ECHO_MESSAGE_BYTES_MAX, STASH_BYTES};
use crate::wire::frame::FrameEnd;
use proptest::prelude::*;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const BOTH: ReceiveLimits =
    ReceiveLimits { message_bytes_max: ECHO_MESSAGE_BYTES_MAX, kinds: Kinds::Both, reserved: Reserved::None };

#[derive(Clone, PartialEq, Eq, Debug)]
enum Owned {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
    Stop(Stop),
}

impl From<Event<'_>> for Owned {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Text(payload) => Self::Text(payload.to_vec()),
            Event::Binary(payload) => Self::Binary(payload.to_vec()),
            Event::Ping(payload) => Self::Ping(payload.to_vec()),
            Event::Pong(payload) => Self::Pong(payload.to_vec()),
            Event::Close { code, reason } => Self::Close(code, reason.to_owned()),
        }
    }
}

/// One connection that is fed, and what came out of it.
struct Fed {
    receive: Receive,
    stashes: Stashes,
    limits: ReceiveLimits,
    events: Vec<Owned>,
}

impl Fed {
    fn new(limits: ReceiveLimits) -> Self {
        Self { receive: Receive::default(), stashes: Stashes::new(STASH_BYTES.most), limits, events: Vec::new() }
    }

    fn feed(&mut self, bytes: &[u8]) -> &mut Self {
        let mut lent = bytes.to_vec();
        let mut reader = Reader::new(&mut lent, 5);
        loop {
            match reader.next(&mut self.receive, &mut self.stashes, &self.limits) {
                Ok(Some(event)) => self.events.push(event.into()),
                Ok(None) => return self,
                Err(stop) => self.events.push(Owned::Stop(stop)),
            }
        }
    }
}

fn frame(opcode: Opcode, end: FrameEnd, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; HEADER_BYTES_MAX];
    let len = frame::encode_client(&mut header, opcode, end, payload.len(), MASK);
    let mut out = header[..len].to_vec();
    out.extend_from_slice(payload);
    let _ = mask::apply(&mut out[len..], MASK);
    out
}

fn whole(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    frame(opcode, FrameEnd::Message, payload)
}

fn part(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    frame(opcode, FrameEnd::Fragment, payload)
}

fn events_of(bytes: &[u8]) -> Vec<Owned> {
    Fed::new(BOTH).feed(bytes).events.clone()
}

fn broken(rule: Violation) -> Owned {
    Owned::Stop(Stop::Violation(rule))
}

/// The masked examples of RFC 6455 5.7: a text, and a pong.
#[test]
fn examples_of_the_rfc_are_received() {
    let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    let mut pong = hello;
    pong[0] = 0x8a;
    assert_eq!(events_of(&[hello, pong].concat()), [Owned::Text(b"Hello".to_vec()), Owned::Pong(b"Hello".to_vec())]);
}

/// A ping between two fragments is handed out before the message is whole, and neither disturbs the other in any cut.
#[test]
fn ping_between_fragments_comes_first() {
    let stream = [
        part(Opcode::Text, b"Hel"),
        whole(Opcode::Ping, b"in between"),
        part(Opcode::Continuation, b""),
        whole(Opcode::Continuation, b"lo"),
        whole(Opcode::Binary, b""),
    ]
    .concat();
    let expected = [Owned::Ping(b"in between".to_vec()), Owned::Text(b"Hello".to_vec()), Owned::Binary(Vec::new())];
    for cut in 0..=stream.len() {
        let mut fed = Fed::new(BOTH);
        fed.feed(&stream[..cut]).feed(&stream[cut..]);
        assert_eq!(fed.events, expected, "cut at {cut}");
        assert!(fed.receive.is_idle());
        assert_eq!((fed.stashes.used_count(), fed.stashes.used_bytes()), (0, 0));
    }
}

/// A compressed message is the same in one frame and in many, whatever the cut, with a ping in between; an uncompressed one may follow.
#[test]
fn compressed_messages_are_inflated_when_they_are_whole() {
    let limits = ReceiveLimits { reserved: Reserved::Deflate, ..BOTH };
    let text = "what repeats is short, ".repeat(40);
    let mut deflater = Deflater::default();
    let (small, is_small) = deflater.message(|out| out.extend_from_slice(text.as_bytes()));
    assert!(is_small && small.len() < 60);
    let (front, rest) = small.split_at(20);
    let compressed = |mut frame: Vec<u8>| {
        frame[0] |= 0x40;
        frame
    };
    let stream = [
        compressed(whole(Opcode::Text, small)),
        compressed(part(Opcode::Binary, front)),
        whole(Opcode::Ping, b"in between"),
        whole(Opcode::Continuation, rest),
        whole(Opcode::Text, b"plain"),
    ]
    .concat();
    let (text, ping) = (text.into_bytes(), Owned::Ping(b"in between".to_vec()));
    let expected = [Owned::Text(text.clone()), ping, Owned::Binary(text), Owned::Text(b"plain".to_vec())];
    for cut in 0..=stream.len() {
        let mut fed = Fed::new(limits);
        fed.feed(&stream[..cut]).feed(&stream[cut..]);
        assert_eq!(fed.events, expected, "cut at {cut}");
        assert!(fed.receive.is_idle());
        assert_eq!((fed.stashes.used_count(), fed.stashes.used_bytes()), (0, 0));
    }
    let ends = |limits, frame: Vec<u8>| Fed::new(limits).feed(&compressed(frame)).events.clone();
    let bounded = ReceiveLimits { message_bytes_max: 900, ..limits };
    assert_eq!(ends(bounded, whole(Opcode::Text, small)), [broken(Violation::MessageTooLarge)]);
    assert_eq!(ends(limits, whole(Opcode::Binary, &[0xff])), [broken(Violation::DeflateInvalid)]);
    // A stored block with a byte that is no text.
    assert_eq!(ends(limits, whole(Opcode::Text, &[0, 1, 0, 0xfe, 0xff, 0xff, 0])), [broken(Violation::TextNotUtf8)]);
    for opcode in [Opcode::Ping, Opcode::Close, Opcode::Continuation] {
        assert_eq!(ends(limits, whole(opcode, b"")), [broken(Violation::ReservedBit)], "{opcode:?}");
    }
    assert_eq!(ends(BOTH, whole(Opcode::Text, small)), [broken(Violation::ReservedBit)]);
}

/// Each rule that depends on what came before, and what is thereafter ignored.
#[test]
fn each_broken_rule_ends_receiving() {
    let text = part(Opcode::Text, b"a");
    for (bytes, rule) in [
        (whole(Opcode::Continuation, b"x"), Violation::ContinuationWithoutStart),
        ([text.clone(), whole(Opcode::Text, b"x")].concat(), Violation::StartInsideMessage),
        ([text.clone(), part(Opcode::Binary, b"x")].concat(), Violation::StartInsideMessage),
        (whole(Opcode::Close, b"x"), Violation::CloseBodyTooShort),
        (whole(Opcode::Close, &1005_u16.to_be_bytes()), Violation::CloseCodeInvalid),
        (whole(Opcode::Close, b"\x03\xe8\xff"), Violation::CloseReasonNotUtf8),
        (whole(Opcode::Text, b"\xff"), Violation::TextNotUtf8),
        (whole(Opcode::Text, b"\xe2\x82"), Violation::TextNotUtf8),
        ([text, whole(Opcode::Continuation, b"\xe2\x82")].concat(), Violation::TextNotUtf8),
        (vec![0x81, 0x05], Violation::Unmasked),
    ] {
        let stream = [whole(Opcode::Pong, b""), bytes, whole(Opcode::Ping, b"ignored")].concat();
        let mut fed = Fed::new(BOTH);
        fed.feed(&stream).feed(b"ignored as well");
        assert_eq!(fed.events, [Owned::Pong(Vec::new()), broken(rule)], "{rule:?}");
        assert!(fed.receive.is_stopped());
        assert_eq!((fed.stashes.used_count(), fed.stashes.used_bytes()), (0, 0));
    }
}

/// After a Close frame nothing follows, not even a broken rule.
#[test]
fn close_is_the_last_event() {
    for (body, expected) in
        [(&b""[..], Owned::Close(None, String::new())), (b"\x0f\xa0bye", Owned::Close(Some(4000), "bye".to_owned()))]
    {
        let stream = [part(Opcode::Text, b"never finished"), whole(Opcode::Close, body), vec![0xff; 40]].concat();
        let mut fed = Fed::new(BOTH);
        fed.feed(&stream);
        assert_eq!(fed.events, [expected]);
        assert_eq!(fed.stashes.used_bytes(), 0);
    }
}

/// The wrong kind of message is refused by its header, before its payload has come.
#[test]
fn the_wrong_kind_is_refused_by_its_header() {
    for (kinds, opcode, rule) in
        [(Kinds::Binary, Opcode::Text, Violation::TextNotAccepted), (Kinds::Text, Opcode::Binary, Violation::BinaryNotAccepted)]
    {
        let mut fed = Fed::new(ReceiveLimits { kinds, ..BOTH });
        assert_eq!(fed.feed(&whole(opcode, b"x")[..6]).events, [broken(rule)]);
    }
}

/// The size is judged by header, for one frame and for the sum of fragments, and nothing is allocated for it. A message of
/// exactly the limit passes.
#[test]
fn messages_above_the_limit_are_refused_before_they_are_stored() {
    let limits = ReceiveLimits { message_bytes_max: 1000, ..BOTH };
    let mut fed = Fed::new(limits);
    fed.feed(&[part(Opcode::Binary, &[1; 600]), whole(Opcode::Continuation, &[1; 400])].concat());
    fed.feed(&whole(Opcode::Binary, &[2; 1000]));
    assert_eq!(fed.events, [Owned::Binary(vec![1; 1000]), Owned::Binary(vec![2; 1000])]);

    let mut fed = Fed::new(limits);
    fed.feed(&whole(Opcode::Binary, &[1; 1001])[..8]);
    assert_eq!(fed.events, [broken(Violation::MessageTooLarge)]);
    assert_eq!(fed.stashes.free_bytes() + fed.stashes.used_bytes(), 0);

    let mut fed = Fed::new(limits);
    fed.feed(&[part(Opcode::Binary, &[1; 600]), whole(Opcode::Continuation, &[1; 401])[..8].to_vec()].concat());
    assert_eq!(fed.events, [broken(Violation::MessageTooLarge)]);

    let huge = [0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    assert_eq!(events_of(&huge), [broken(Violation::MessageTooLarge)]);
    assert_eq!(
        events_of(&[part(Opcode::Binary, b"x"), [&[0x80][..], &huge[1..]].concat()].concat()),
        [broken(Violation::MessageTooLarge)]
    );
}

/// The suite's message of 4 MiB in 65,536 fragments and an empty last one passes; a flood of empty fragments ends at the limit
/// without holding a byte.
#[test]
fn many_fragments_pass_and_endless_ones_do_not() {
    let mut fed = Fed::new(BOTH);
    let mut stream = part(Opcode::Binary, &[7; 64]);
    (1..65_536).for_each(|_| stream.extend(part(Opcode::Continuation, &[7; 64])));
    stream.extend(whole(Opcode::Continuation, b""));
    stream.chunks(65_536).for_each(|chunk| {
        fed.feed(chunk);
    });
    assert_eq!(fed.events, [Owned::Binary(vec![7; 4 << 20])]);

    let mut fed = Fed::new(BOTH);
    fed.feed(&part(Opcode::Text, b""));
    let empty = part(Opcode::Continuation, b"");
    let some = empty.repeat(1024);
    for _ in 0..FRAGMENTS_PER_MESSAGE_MAX / 1024 - 1 {
        assert!(fed.feed(&some).events.is_empty());
    }
    assert!(fed.feed(&empty.repeat(1023)).events.is_empty());
    assert_eq!(fed.stashes.used_bytes(), 0);
    assert_eq!(fed.feed(&empty).events, [broken(Violation::TooManyFragments)]);
}

/// The suite's case 6.4: text is judged inside a frame whose rest has not come.
#[test]
fn text_is_judged_as_bytes_arrive() {
    let bytes = whole(Opcode::Text, b"\xce\xba\xe1\xbd\xb9\xf4\x90\x80\x80edited");
    let mut fed = Fed::new(BOTH);
    assert!(fed.feed(&bytes[..6 + 6]).events.is_empty());
    assert_eq!(fed.feed(&bytes[12..13]).events, [broken(Violation::TextNotUtf8)]);
}

/// When there is no room nothing is lost: another connection lets go, and the message arrives whole.
#[test]
fn full_stashes_stop_and_go_on() {
    let mut stashes = Stashes::new(1024);
    let (mut first, mut second) = (Receive::default(), Receive::default());
    let mut bytes = whole(Opcode::Text, &[b'a'; 1000])[..900].to_vec();
    assert_eq!(Reader::new(&mut bytes, 1).next(&mut first, &mut stashes, &BOTH), Ok(None));
    let stream = whole(Opcode::Text, &[b'b'; 500]);
    let mut lent = stream[..400].to_vec();
    let mut reader = Reader::new(&mut lent, 2);
    assert_eq!(reader.next(&mut second, &mut stashes, &BOTH), Err(Stop::StashesFull));
    assert_eq!(Stop::StashesFull.close_code(), 4503);
    assert_eq!(stashes.largest_owner(), Some(1));
    first.stop(&mut stashes);
    assert_eq!(reader.next(&mut second, &mut stashes, &BOTH), Ok(None));
    let mut rest = stream[400..].to_vec();
    let mut reader = Reader::new(&mut rest, 2);
    assert_eq!(reader.next(&mut second, &mut stashes, &BOTH), Ok(Some(Event::Text(&[b'b'; 500]))));
}

/// A message that lies whole in the lent bytes is handed out there: no stash, no copy, no allocation.
#[test]
fn a_whole_message_is_not_copied() {
    let mut lent = whole(Opcode::Binary, b"payload");
    let at = lent.as_ptr() as usize + 6;
    let (mut receive, mut stashes) = (Receive::default(), Stashes::new(0));
    let mut reader = Reader::new(&mut lent, 0);
    let Ok(Some(Event::Binary(payload))) = reader.next(&mut receive, &mut stashes, &BOTH) else { panic!("a message") };
    assert_eq!(payload.as_ptr() as usize, at);
}

/// Who stops early finds the rest as it arrived.
#[test]
fn the_rest_can_be_lent_again() {
    let stream = [whole(Opcode::Binary, b"one"), whole(Opcode::Binary, b"two")].concat();
    let mut lent = stream.clone();
    let (mut receive, mut stashes) = (Receive::default(), Stashes::new(0));
    let mut reader = Reader::new(&mut lent, 0);
    assert_eq!(reader.next(&mut receive, &mut stashes, &BOTH), Ok(Some(Event::Binary(b"one"))));
    assert_eq!(reader.rest(), &stream[9..]);
}

/// Frames as another implementation writes them.
#[test]
fn another_implementation_is_understood() {
    use tungstenite::{Message, WebSocket, protocol::Role};
    let mut client = WebSocket::from_raw_socket(std::io::Cursor::new(Vec::new()), Role::Client, None);
    let payloads: Vec<Vec<u8>> = [0, 1, 125, 126, 65_535, 65_536, 200_000].map(|len| vec![b'x'; len]).to_vec();
    for payload in &payloads {
        client.write(Message::Binary(payload.clone().into())).expect("memory");
        client.write(Message::Text(String::from_utf8(payload.clone()).expect("ASCII").into())).expect("memory");
        client.flush().expect("memory");
    }
    let stream = client.get_ref().get_ref().clone();
    let mut fed = Fed::new(BOTH);
    stream.chunks(50_000).for_each(|chunk| {
        fed.feed(chunk);
    });
    let expected: Vec<Owned> = payloads.into_iter().flat_map(|p| [Owned::Binary(p.clone()), Owned::Text(p)]).collect();
    assert!(fed.events == expected);
}

/// What a peer might send: messages in fragments with control frames in between.
#[derive(Clone, Debug)]
struct Sent {
    text: Option<String>,
    binary: Vec<u8>,
    cuts: Vec<usize>,
    pings: Vec<(usize, Vec<u8>)>,
}

impl Sent {
    fn encode(&self, stream: &mut Vec<u8>, expected: &mut Vec<Owned>) {
        let (opcode, payload) = match &self.text {
            Some(text) => (Opcode::Text, text.as_bytes()),
            None => (Opcode::Binary, &self.binary[..]),
        };
        let mut rest = payload;
        for (index, cut) in self.cuts.iter().enumerate() {
            let (fragment, later) = rest.split_at(*cut % (rest.len() + 1));
            rest = later;
            stream.extend(part(if index == 0 { opcode } else { Opcode::Continuation }, fragment));
            for (_, ping) in self.pings.iter().filter(|(after, _)| *after == index) {
                stream.extend(whole(Opcode::Ping, ping));
                expected.push(Owned::Ping(ping.clone()));
            }
        }
        stream.extend(whole(if self.cuts.is_empty() { opcode } else { Opcode::Continuation }, rest));
        expected.push(if self.text.is_some() { Owned::Text(payload.to_vec()) } else { Owned::Binary(payload.to_vec()) });
    }
}

fn sent() -> impl Strategy<Value = Sent> {
    let pings = prop::collection::vec((0_usize..4, prop::collection::vec(any::<u8>(), 0..=125)), 0..3);
    let binary = prop_oneof![prop::collection::vec(any::<u8>(), 0..300), (0_usize..70_000).prop_map(|len| vec![0xa5; len])];
    (prop::option::of("\\PC{0,80}"), binary, prop::collection::vec(any::<usize>(), 0..5), pings)
        .prop_map(|(text, binary, cuts, pings)| Sent { text, binary, cuts, pings })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// What was sent is what arrives, whatever the cut of the bytes, and all memory is given back.
    #[test]
    fn any_chunking_gives_the_same_events(messages in prop::collection::vec(sent(), 1..4), chunks in prop::collection::vec(1_usize..400, 1..40)) {
        let (mut stream, mut expected) = (Vec::new(), Vec::new());
        messages.iter().for_each(|message| message.encode(&mut stream, &mut expected));
        let mut fed = Fed::new(BOTH);
        let mut rest = &stream[..];
        for chunk in chunks.iter().cycle() {
            let (now, later) = rest.split_at((*chunk).min(rest.len()));
            fed.feed(now);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert!(fed.events == expected);
        prop_assert!(events_of(&stream) == expected);
        prop_assert!(fed.receive.is_idle());
        prop_assert_eq!((fed.stashes.used_count(), fed.stashes.used_bytes()), (0, 0));
    }
}
