//! Both encodings against the contract and against each other.

use super::*;

const CMID: Cmid = Cmid([0x01, 0x9a, 0x0b, 0x1c, 0x2d, 0x3e, 0x7f, 0x40, 0xa1, 0xb2, 0xc3, 0xd4, 0xe5, 0xf6, 0x07, 0x18]);
const MID: Mid = Mid(1_849_688_064_000_003_077);

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn client(encoding: Encoding, frame: &ClientFrame<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    encode_client(encoding, frame, &mut out);
    out
}

fn server(encoding: Encoding, frame: &ServerFrame<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    encode_server(encoding, frame, &mut out);
    out
}

fn hello() -> ClientFrame<'static> {
    ClientFrame::Hello(Hello {
        minor: 0,
        platform: 2,
        window: 256,
        caps: 0,
        last_pos: 0,
        session: [0; 16],
        device: "dev-1".into(),
        client: "demo/1".into(),
        token: "tok".into(),
    })
}

fn send() -> ClientFrame<'static> {
    ClientFrame::Send(Send {
        rid: 7,
        cmid: CMID,
        flags: 0,
        kind: 1,
        ttl_s: 0,
        trace: None,
        conv: "d:al:bo".into(),
        payload: b"hi".into(),
    })
}

fn ack() -> ClientFrame<'static> {
    ClientFrame::Ack { pos: 1, cursors: Cursors::List(vec![Cursor { conv: "d:al:bo".into(), seq: 42 }]) }
}

fn sent() -> ServerFrame<'static> {
    ServerFrame::Sent { rid: 7, level: 2, flags: 0, seq: 42, mid: MID }
}

fn deliver() -> Deliver<'static> {
    Deliver {
        pos: 1,
        seq: 42,
        mid: MID,
        flags: 0,
        kind: 1,
        exp_s: 0,
        cmid: None,
        trace: None,
        conv: "d:al:bo".into(),
        from: "al".into(),
        payload: b"hi".into(),
    }
}

/// The test vectors of the contract, section 12, written and read.
#[test]
fn client_vectors_hold_both_ways() {
    let fetch = ClientFrame::Fetch { rid: 9, conv: "d:al:bo".into(), from: 43, to: 0, limit: 100, flags: 0 };
    for (frame, hex) in [
        (hello(), "013200000002000100000000000000000000000000000000000000000000000000000000056465762d310664656d6f2f310300746f6b"),
        (send(), "1029000007000000019a0b1c2d3e7f40a1b2c3d4e5f607180001000000000007643a616c3a626f020000006869"),
        (ack(), "111a00000100000000000000010007643a616c3a626f2a00000000000000"),
        (fetch, "311f00000900000007643a616c3a626f2b000000000000000000000000000000640000"),
    ] {
        let bytes = unhex(hex);
        assert_eq!(client(Encoding::Binary, &frame), bytes, "{frame:?}");
        let mut frames = Frames::new(Encoding::Binary, &bytes);
        assert_eq!(frames.next_frame(), Ok(Some(frame)));
        assert_eq!(frames.next_frame(), Ok(None));
    }
}

/// As above, from the gateway.
#[test]
fn server_vectors_hold_both_ways() {
    let busy = ServerFrame::Error { rid: 7, code: 4001, flags: 1, retry_ms: 250, detail: "busy".into() };
    for (frame, hex) in [
        (sent(), "501600000700000002002a00000000000000050c00807e69ab19"),
        (
            ServerFrame::Deliver(deliver()),
            "6030000001000000000000002a00000000000000050c00807e69ab190001000000000007643a616c3a626f02616c020000006869",
        ),
        (busy, "4e10000007000000a10f01fa0000000462757379"),
    ] {
        let bytes = unhex(hex);
        assert_eq!(server(Encoding::Binary, &frame), bytes, "{frame:?}");
        let mut frames = ServerFrames::new(Encoding::Binary, &bytes);
        assert_eq!(frames.next_frame(), Ok(Some(frame)));
        assert_eq!(frames.next_frame(), Ok(None));
    }
}

/// The lines of the contract, section 5, written and read.
#[test]
fn json_examples_hold_both_ways() {
    let hello = ClientFrame::Hello(Hello {
        minor: 0,
        platform: 0,
        window: 256,
        caps: 0,
        last_pos: 0,
        session: [0; 16],
        device: "web-1".into(),
        client: "demo/1".into(),
        token: "eyJ...".into(),
    });
    for (frame, line) in [
        (hello, r#"{"t":"hello","window":256,"device":"web-1","client":"demo/1","token":"eyJ..."}"#),
        (send(), r#"{"t":"send","rid":7,"cmid":"019a0b1c2d3e7f40a1b2c3d4e5f60718","kind":1,"conv":"d:al:bo","text":"hi"}"#),
        (ack(), r#"{"t":"ack","pos":1,"cursors":[{"conv":"d:al:bo","seq":42}]}"#),
    ] {
        assert_eq!(String::from_utf8(client(Encoding::Json, &frame)).unwrap(), line);
        assert_eq!(Frames::new(Encoding::Json, line.as_bytes()).next_frame(), Ok(Some(frame)));
    }
    for (frame, line) in [
        (sent(), r#"{"t":"sent","rid":7,"level":2,"seq":42,"mid":"1849688064000003077"}"#),
        (
            ServerFrame::Deliver(deliver()),
            r#"{"t":"deliver","pos":1,"seq":42,"mid":"1849688064000003077","kind":1,"conv":"d:al:bo","from":"al","text":"hi"}"#,
        ),
    ] {
        assert_eq!(String::from_utf8(server(Encoding::Json, &frame)).unwrap(), line);
        assert_eq!(ServerFrames::new(Encoding::Json, line.as_bytes()).next_frame(), Ok(Some(frame)));
    }
}

/// Reads all frames of a client's message.
fn read_client(encoding: Encoding, message: &[u8]) -> Vec<Result<ClientFrame<'_>, DecodeError>> {
    Frames::new(encoding, message).collect()
}

/// Reads all frames of a gateway's message.
fn read_server(encoding: Encoding, message: &[u8]) -> Vec<Result<ServerFrame<'_>, DecodeError>> {
    ServerFrames::new(encoding, message).collect()
}

/// The code and rid of the one frame of a client's message that must be bad.
fn refusal(encoding: Encoding, message: &[u8]) -> (u16, u32) {
    match read_client(encoding, message)[..] {
        [Err(error)] => (error.code.value(), error.rid),
        ref other => panic!("{} is not refused: {other:?}", String::from_utf8_lossy(message)),
    }
}

/// A frame around `body`, as if from someone else's encoder.
fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap() << 8;
    [&(len | u32::from(kind)).to_le_bytes()[..], body].concat()
}

/// Bad JSON, line by line, and the code that each deserves. The second number is the rid of the answer.
#[test]
fn bad_json_has_its_code() {
    let cmid = "019a0b1c2d3e7f40a1b2c3d4e5f60718";
    let send = |rest: &str| format!(r#"{{"t":"send","rid":7,"cmid":"{cmid}","conv":"d:al:bo"{rest}}}"#);
    let list = |item: &str, count: usize| vec![item; count].join(",");
    for (line, code, rid) in [
        ("x".into(), 1001, 0),
        ("[]".into(), 1001, 0),
        ("7".into(), 1001, 0),
        ("null".into(), 1001, 0),
        ("{}".into(), 1001, 0),
        (r#"{"T":"ping"}"#.into(), 1001, 0),
        (r#"{"t":"ping"} {"t":"ping"}"#.into(), 1001, 0),
        (r#"{"t":"ping""#.into(), 1001, 0),
        (r#"{"t":"ping","pos":01}"#.into(), 1001, 0),
        (r#"{"t":"ping","x":"\u12"}"#.into(), 1001, 0),
        ("{\"t\":\"ping\",\"x\":\"\u{1}\"}".into(), 1001, 0),
        ("{\"t\":\"ping\",\n\"pos\":1}".into(), 1001, 0),
        ("\u{feff}{\"t\":\"ping\"}".into(), 1001, 0),
        (format!(r#"{{"t":"ping","x":{}}}"#, "[".repeat(100_000)), 1001, 0),
        (r#"{"t":5}"#.into(), 1002, 0),
        (r#"{"t":null}"#.into(), 1002, 0),
        (r#"{"t":"\ud800"}"#.into(), 1002, 0),
        (r#"{"t":"nope"}"#.into(), 1003, 0),
        (r#"{"t":""}"#.into(), 1003, 0),
        (r#"{"t":"Ping"}"#.into(), 1003, 0),
        (r#"{"t":"welcome"}"#.into(), 1003, 0),
        (r#"{"t":"presence","user":"al"}"#.into(), 1003, 0),
        (r#"{"t":"ping","pos":1.0}"#.into(), 1002, 0),
        (r#"{"t":"ping","pos":1e3}"#.into(), 1002, 0),
        (r#"{"t":"ping","pos":-1}"#.into(), 1002, 0),
        (r#"{"t":"ping","pos":-0}"#.into(), 1002, 0),
        (r#"{"t":"ping","pos":"1"}"#.into(), 1002, 0),
        (r#"{"t":"ping","pos":null}"#.into(), 1002, 0),
        (r#"{"t":"ping","pos":18446744073709551616}"#.into(), 1002, 0),
        (r#"{"t":"auth","token":"x"}"#.into(), 1002, 0),
        (r#"{"t":"auth","rid":0,"token":"x"}"#.into(), 1002, 0),
        (r#"{"t":"auth","rid":4294967296,"token":"x"}"#.into(), 1002, 0),
        (r#"{"t":"auth","rid":7,"token":7}"#.into(), 1002, 7),
        (r#"{"t":"sync","rid":7,"since":5}"#.into(), 1002, 7),
        (r#"{"t":"sync","rid":7,"since":"+5"}"#.into(), 1002, 7),
        (r#"{"t":"sync","rid":7,"since":""}"#.into(), 1002, 7),
        (r#"{"t":"sync","rid":7,"since":"18446744073709551616"}"#.into(), 1002, 7),
        (r#"{"t":"sync","rid":7,"limit":65536}"#.into(), 1002, 7),
        (r#"{"t":"fetch","rid":7,"flags":256}"#.into(), 1002, 7),
        (r#"{"t":"fetch","rid":7,"from":"al"}"#.into(), 1002, 7),
        (r#"{"t":"read","conv":"d:al:bo"}"#.into(), 1002, 0),
        (r#"{"t":"watch"}"#.into(), 1002, 0),
        (r#"{"t":"watch","rid":7,"users":[7]}"#.into(), 1002, 7),
        (r#"{"t":"watch","rid":7,"users":"al"}"#.into(), 1002, 7),
        (format!(r#"{{"t":"watch","rid":7,"users":[{}]}}"#, list(r#""al""#, 201)), 1002, 7),
        (r#"{"t":"ack","cursors":[7]}"#.into(), 1002, 0),
        (r#"{"t":"ack","cursors":[{"conv":7}]}"#.into(), 1002, 0),
        (r#"{"t":"ack","cursors":{}}"#.into(), 1002, 0),
        (format!(r#"{{"t":"ack","cursors":[{}]}}"#, list(r#"{"conv":"g:x","seq":1}"#, 257)), 1002, 0),
        (r#"{"t":"hello","session":"00"}"#.into(), 1002, 0),
        (r#"{"t":"send","rid":7,"conv":"d:al:bo"}"#.into(), 1002, 7),
        (format!(r#"{{"t":"send","rid":7,"cmid":"{}"}}"#, "0".repeat(32)), 1002, 7),
        (format!(r#"{{"t":"send","rid":7,"cmid":"{}"}}"#, cmid.to_uppercase()), 1002, 7),
        (format!(r#"{{"t":"send","cmid":"{cmid}"}}"#), 1002, 0),
        (send(r#","text":"a","b64":"YQ==""#), 1002, 7),
        (send(r#","text":"","b64":"""#), 1002, 7),
        (send(r#","text":"\ud83c""#), 1002, 7),
        (send(r#","text":"\udf0a\ud83c""#), 1002, 7),
        (send(r#","b64":"YQ""#), 1002, 7),
        (send(r#","b64":"YR==""#), 1002, 7),
        (send(r#","b64":"-_=="}"#), 1001, 0),
        (send(r#","b64":"-_==""#), 1002, 7),
        (send(r#","flags":3"#), 1002, 7),
        (send(r#","kind":65536"#), 1002, 7),
        (send(r#","trace":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331""#), 1002, 7),
        (send(r#","trace":"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01""#), 1002, 7),
        (send(r#","trace":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x""#), 1002, 7),
        (send(r#","trace":"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01""#), 1002, 7),
    ] {
        // A line feed within the line makes two bad lines of it; the first one counts.
        assert_eq!(refusal(Encoding::Json, line.as_bytes()), (code, rid), "{line:.120}");
    }
    assert_eq!(refusal(Encoding::Json, b"{\"t\":\"ping\",\"x\":\"\xff\"}"), (1002, 0));
}

/// What a reader must let pass: any order, unknown keys whatever they hold, known keys of other frames, the last of equal keys,
/// escapes in keys and values, white space.
#[test]
fn lenient_json_is_read() {
    let ping = |pos| ClientFrame::Ping { pos };
    for (line, pos) in [
        (r#"{"pos":5,"t":"ping"}"#, 5),
        (" { \"t\" : \"ping\" , \"pos\" : 5 } \r", 5),
        (r#"{"t":"ping","pos":1.5,"pos":5}"#, 5),
        (r#"{"t":"hello","t":"ping","pos":5}"#, 5),
        (r#"{"t":"ping","pos":5,"new":[{"a":[1e9,"\ud800"]}],"\ud800":1,"rid":"x","cmid":"UPPER","text":"a","b64":1}"#, 5),
        (r#"{"\u0074":"\u0070ing","p\u006fs":5}"#, 5),
        (r#"{"t":"ping"}"#, 0),
        (r#"{"t":"ping","pos":18446744073709551615}"#, u64::MAX),
    ] {
        assert_eq!(read_client(Encoding::Json, line.as_bytes()), [Ok(ping(pos))], "{line}");
    }
    let skipped = b"\n \r\n{\"t\":\"_new\",\"rid\":1.5,\"cursors\":7}\n\n{\"t\":\"ping\"}\n\n";
    assert_eq!(read_client(Encoding::Json, skipped), [Ok(ping(0))]);
    assert_eq!(read_client(Encoding::Json, b""), []);
    assert_eq!(read_client(Encoding::Json, b"\n\n"), []);
}

/// A traceparent sets the flag, and a flag without one is taken away: the bit always says whether a trace is there.
#[test]
fn trace_key_implies_the_flag() {
    let line = r#"{"t":"send","rid":7,"cmid":"019a0b1c2d3e7f40a1b2c3d4e5f60718","flags":FLAGS TRACE}"#;
    let trace = r#","trace":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01""#;
    let later = r#","trace":"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more""#;
    for (flags, trace, expected) in [("4", trace, 20), ("20", trace, 20), ("20", "", 4), ("0", later, 16)] {
        let line = line.replace("FLAGS", flags).replace(" TRACE", trace);
        let frames = read_client(Encoding::Json, line.as_bytes());
        let [Ok(ClientFrame::Send(send))] = &frames[..] else { panic!("{frames:?}") };
        assert_eq!(send.flags, expected, "{line}");
        assert_eq!(send.trace.is_some(), expected & send_flags::TRACE != 0);
        assert!(send.trace.is_none_or(|trace| trace.parent_id[0] == 0xb7 && trace.flags == 1));
    }
}

/// Bad binary frames and the code that each deserves.
#[test]
fn bad_binary_has_its_code() {
    let rid = [7, 0, 0, 0];
    let send = |rid: u8, cmid: [u8; 16], flags: u8, tail: &[u8]| {
        framed(0x10, &[&[rid, 0, 0, 0], &cmid[..], &[flags, 1, 0, 0, 0, 0, 0], tail].concat())
    };
    let empty = [0; 5];
    let watch = |count: u16| {
        let names = [1, b'a'].repeat(count.into());
        framed(0x33, &[&rid[..], &[0; 4], &count.to_le_bytes(), &names].concat())
    };
    let acked = |count: u16| {
        let cursor = [1, b'a', 0, 0, 0, 0, 0, 0, 0, 0].repeat(count.into());
        framed(0x11, &[&[0; 8][..], &count.to_le_bytes(), &cursor].concat())
    };
    for (bytes, code, rid) in [
        (vec![0x02], 1001, 0),
        (vec![0x02, 8, 0], 1001, 0),
        (vec![0x02, 8, 0, 0, 1], 1001, 0),
        (vec![0x02, 0xff, 0xff, 0xff], 1001, 0),
        (framed(0x02, &[0; 7]), 1001, 0),
        (framed(0x10, &[7, 0, 0]), 1001, 0),
        (framed(0x10, &rid), 1001, 7),
        (send(7, CMID.0, 0, &[0, 5, 0, 0, 0, b'x']), 1001, 7),
        (send(7, CMID.0, 0, &[0, 0xff, 0xff, 0xff, 0xff]), 1001, 7),
        (send(7, CMID.0, 16, &empty), 1001, 7),
        (send(0, CMID.0, 0, &empty), 1002, 0),
        (send(7, [0; 16], 0, &empty), 1002, 7),
        (send(7, CMID.0, 3, &empty), 1002, 7),
        (send(7, CMID.0, 0, &[1, 0xff, 0, 0, 0, 0]), 1002, 7),
        (framed(0x03, &[7, 0, 0, 0, 1, 0, 0x80]), 1002, 7),
        (framed(0x03, &[0; 6]), 1002, 0),
        (framed(0x30, &[0; 15]), 1002, 0),
        (framed(0x31, &[0; 24]), 1002, 0),
        (framed(0x32, &[0; 13]), 1002, 0),
        (framed(0x33, &[0; 10]), 1002, 0),
        (watch(201), 1002, 7),
        (acked(257), 1002, 0),
        (framed(0x11, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]), 1002, 0),
        (framed(0x00, &[]), 1003, 0),
        (framed(0x7f, &[]), 1003, 0),
        (framed(0x50, &[0; 22]), 1003, 0),
        (framed(0x60, &[]), 1003, 0),
        (framed(0xe4, &[]), 1003, 0),
        (framed(0xe5, &[]), 1003, 0),
    ] {
        assert_eq!(refusal(Encoding::Binary, &bytes), (code, rid), "{bytes:02x?}");
    }
    assert!(read_client(Encoding::Binary, &watch(200))[0].is_ok());
    assert!(read_client(Encoding::Binary, &acked(256))[0].is_ok());
    assert_eq!(read_client(Encoding::Binary, &[framed(0x80, &[1; 9]), framed(0xff, &[])].concat()), []);
    assert_eq!(read_client(Encoding::Binary, &[]), []);
}

/// Several frames in one message: each good one before the bad one is given out in order, unknown skippable ones are passed over,
/// and nothing after the bad one is looked at.
#[test]
fn good_frames_before_a_bad_one_come_first() {
    let binary = [
        client(Encoding::Binary, &ClientFrame::Ping { pos: 1 }),
        framed(0x9a, b"later"),
        client(Encoding::Binary, &send()),
        framed(0x7f, b""),
        client(Encoding::Binary, &ClientFrame::Ping { pos: 2 }),
    ]
    .concat();
    let json = [
        client(Encoding::Json, &ClientFrame::Ping { pos: 1 }),
        br#"{"t":"_later"}"#.to_vec(),
        client(Encoding::Json, &send()),
        br#"{"t":"nope"}"#.to_vec(),
        client(Encoding::Json, &ClientFrame::Ping { pos: 2 }),
    ]
    .join(&b'\n');
    for (encoding, message) in [(Encoding::Binary, binary), (Encoding::Json, json)] {
        let mut frames = Frames::new(encoding, &message);
        assert_eq!(frames.next_frame(), Ok(Some(ClientFrame::Ping { pos: 1 })));
        assert_eq!(frames.next_frame(), Ok(Some(send())));
        assert_eq!(frames.next_frame().unwrap_err().code, ErrorCode::UnknownType);
        assert_eq!(frames.next_frame(), Ok(None));
        assert!(frames.rest().is_empty());
    }
}

/// The 512 first frames are carried out, skipped ones included in the count; the next one is malformed.
#[test]
fn frames_of_one_message_are_counted() {
    for encoding in [Encoding::Binary, Encoding::Json] {
        let mut one = client(encoding, &ClientFrame::Ping { pos: 1 });
        let mut other = match encoding {
            Encoding::Binary => framed(0x80, b""),
            Encoding::Json => br#"{"t":"_"}"#.to_vec(),
        };
        if encoding == Encoding::Json {
            one.push(b'\n');
            other.push(b'\n');
        }
        assert!(read_client(encoding, &one.repeat(512)).iter().all(Result::is_ok));
        let message = [other, one.repeat(512)].concat();
        let frames = read_client(encoding, &message);
        assert_eq!(frames.len(), 512);
        assert_eq!(frames[511].as_ref().unwrap_err().code, ErrorCode::Malformed);
    }
}

/// Binary frames are read without copying: every text and payload lies in the message.
#[test]
fn binary_frames_borrow() {
    let message =
        [client(Encoding::Binary, &hello()), client(Encoding::Binary, &send()), client(Encoding::Binary, &ack())].concat();
    let frames = read_client(Encoding::Binary, &message);
    let [Ok(ClientFrame::Hello(hello)), Ok(ClientFrame::Send(send)), Ok(ClientFrame::Ack { cursors, .. })] = &frames[..] else {
        panic!("{frames:?}")
    };
    assert!(matches!((&hello.device, &hello.client, &hello.token), (Cow::Borrowed(_), Cow::Borrowed(_), Cow::Borrowed(_))));
    assert!(matches!((&send.conv, &send.payload), (Cow::Borrowed(_), Cow::Borrowed(_))));
    assert!(matches!(cursors, Cursors::Binary(1, _)));
    let line = client(Encoding::Json, &self::send());
    let frames = read_client(Encoding::Json, &line);
    let [Ok(ClientFrame::Send(send))] = &frames[..] else { panic!("{frames:?}") };
    assert!(matches!((&send.conv, &send.payload), (Cow::Borrowed(_), Cow::Borrowed(_))));
}

/// A text that fits only as base64 once its control characters are escaped travels as base64, in DELIVER and in PAGE.
#[test]
fn text_that_does_not_fit_escaped_travels_as_base64() {
    let mut deliver = deliver();
    deliver.payload = Cow::Owned(vec![1; 300]);
    let encoded = |max_frame| {
        let mut tail = Vec::new();
        deliver_tail(Encoding::Json, &deliver, max_frame, &mut tail);
        String::from_utf8(tail).unwrap()
    };
    let whole = encoded(usize::MAX);
    assert!(whole.contains(r#""text":"\u0001\u0001"#));
    // The longest head counts: all receivers get the same tail.
    let fits = whole.len() + 21 + 16 + 1;
    assert_eq!(encoded(fits), whole);
    assert!(encoded(fits - 1).contains(r#""b64":"AQEB"#));

    let head = PageHead { rid: 9, epoch: 1, floor: 1, head: 1, conv: "d:al:bo" };
    let mut message = message(1);
    message.payload = Cow::Owned(vec![1; 300]);
    for (max_frame, key) in [(4096, "\"text\""), (1024, "\"b64\"")] {
        let mut page = PageWriter::new(Encoding::Json, max_frame, PageOrder::Ascending, &head);
        assert!(page.push(&message));
        let bytes = page.finish(0);
        assert!(bytes.len() <= max_frame);
        assert!(String::from_utf8_lossy(&bytes).contains(key));
        let frames = read_server(Encoding::Json, &bytes);
        let [Ok(ServerFrame::Page { messages, .. })] = &frames[..] else { panic!("{frames:?}") };
        assert_eq!(messages[0], message);
    }
}

/// Integers stay below 2^53 where the contract says number; 64-bit values that may be greater are strings.
#[test]
fn json_numbers_stay_below_two_to_the_53() {
    let line = server(Encoding::Json, &ServerFrame::Ok { rid: 1, value: u64::MAX });
    assert_eq!(String::from_utf8(line).unwrap(), r#"{"t":"ok","rid":1,"value":9007199254740991}"#);
    let line = server(Encoding::Json, &ServerFrame::Notice { conv: "g:x".into(), head: 1, mid: Mid(u64::MAX) });
    assert_eq!(String::from_utf8(line).unwrap(), r#"{"t":"notice","conv":"g:x","head":1,"mid":"18446744073709551615"}"#);
}

/// An ERROR text longer than its field is cut at a character, not refused.
#[test]
fn long_detail_is_cut() {
    let detail = "\u{e9}".repeat(200);
    for encoding in [Encoding::Binary, Encoding::Json] {
        let bytes =
            server(encoding, &ServerFrame::Error { rid: 0, code: 3003, flags: 0, retry_ms: 0, detail: detail.as_str().into() });
        let frames = read_server(encoding, &bytes);
        let [Ok(ServerFrame::Error { detail, .. })] = &frames[..] else { panic!("{frames:?}") };
        assert_eq!(detail.chars().count(), 127);
    }
}

/// Every code is found by its number, and no other number is one.
#[test]
fn error_codes_are_found_by_value() {
    let found: Vec<u16> = (0..=u16::MAX).filter(|&value| ErrorCode::from_value(value).is_some()).collect();
    assert_eq!(found, ErrorCode::ALL.map(ErrorCode::value));
}

fn message(seq: u64) -> Message<'static> {
    Message {
        seq,
        mid: MID,
        flags: 0,
        kind: 1,
        exp_s: 0,
        cmid: None,
        from: "al".into(),
        payload: format!("message {seq} \" of several").into_bytes().into(),
    }
}

fn entry(index: usize) -> Entry<'static> {
    Entry { conv: format!("g:{index}").into(), epoch: 1, flags: 0, head: 9, head_mid: MID, floor: 1, mine: 8, read: 7, unread: 2 }
}

/// Pages take what fits and no more, always at least one item, and their messages ascend in whichever order they were pushed.
#[test]
fn pages_take_what_fits() {
    let head = PageHead { rid: 9, epoch: 1, floor: 1, head: 50, conv: "d:al:bo" };
    for encoding in [Encoding::Binary, Encoding::Json] {
        for max_frame in (0..6000).step_by(7) {
            for order in [PageOrder::Ascending, PageOrder::Descending] {
                let mut page = PageWriter::new(encoding, max_frame, order, &head);
                let pushed = |index: u64| if order == PageOrder::Ascending { index } else { 51 - index };
                let count = (1..=50).take_while(|&index| page.push(&message(pushed(index)))).count();
                assert_eq!(usize::from(page.count()), count);
                let bytes = page.finish(page_flags::MORE);
                assert!(count > 0 && (count == 1 || bytes.len() <= max_frame), "{encoding:?} {max_frame} {count}");
                // One more would not have fitted: an item takes at most 115 bytes.
                assert!(count == 50 || bytes.len() + 130 > max_frame, "{encoding:?} {max_frame} {count}");
                let frames = read_server(encoding, &bytes);
                let [Ok(ServerFrame::Page { messages, flags, rid: 9, .. })] = &frames[..] else { panic!("{frames:?}") };
                assert_eq!(*flags, page_flags::MORE);
                let first = if order == PageOrder::Ascending { 1 } else { 51 - count as u64 };
                assert!(messages.iter().zip(first..).all(|(read, seq)| *read == message(seq)), "{order:?} {count}");
                assert_eq!(messages.len(), count);
            }
            let mut page = SyncPageWriter::new(encoding, max_frame, 9);
            let count = (0..50).take_while(|&index| page.push(&entry(index))).count();
            assert_eq!(usize::from(page.count()), count);
            let cursor = "\u{1}".repeat(255);
            let bytes = page.finish(0, 77, &cursor);
            assert!(count > 0 && (count == 1 || bytes.len() <= max_frame), "{encoding:?} {max_frame} {count}");
            let frames = read_server(encoding, &bytes);
            let [Ok(ServerFrame::SyncPage { rid: 9, flags: 0, since: 77, cursor: read, entries })] = &frames[..] else {
                panic!("{frames:?}")
            };
            assert_eq!(*read, cursor);
            assert!(entries.len() == count && entries.iter().enumerate().all(|(index, read)| *read == entry(index)));
        }
    }
}

mod properties {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = Cow<'static, str>> {
        prop_oneof![Just(String::new()), "[a-z:.@-]{1,12}", vec(any::<char>(), 0..12).prop_map(String::from_iter)]
            .prop_map(Cow::Owned)
    }

    fn payload() -> impl Strategy<Value = Cow<'static, [u8]>> {
        prop_oneof![vec(any::<u8>(), 0..40), vec(any::<char>(), 0..12).prop_map(|text| String::from_iter(text).into_bytes())]
            .prop_map(Cow::Owned)
    }

    /// A value that is a number in JSON.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0_u64..4, 0_u64..1 << 53]
    }

    fn mid() -> impl Strategy<Value = Mid> {
        prop_oneof![Just(0), any::<u64>()].prop_map(Mid)
    }

    fn trace() -> impl Strategy<Value = Option<Trace>> {
        any::<Option<([u8; 16], [u8; 8], u8)>>()
            .prop_map(|trace| trace.map(|(trace_id, parent_id, flags)| Trace { trace_id, parent_id, flags }))
    }

    fn cmid() -> impl Strategy<Value = Option<Cmid>> {
        any::<Option<[u8; 16]>>().prop_map(|cmid| cmid.map(Cmid))
    }

    fn flags(flags: u8, own: bool, trace: bool) -> u8 {
        flags & !(deliver_flags::OWN | deliver_flags::TRACE)
            | u8::from(own) * deliver_flags::OWN
            | u8::from(trace) * deliver_flags::TRACE
    }

    fn any_send() -> impl Strategy<Value = ClientFrame<'static>> {
        let fixed = (1_u32.., any::<[u8; 15]>(), any::<u8>(), any::<u16>(), any::<u32>());
        (fixed, trace(), text(), payload()).prop_map(|((rid, id, flags, kind, ttl_s), trace, conv, payload)| {
            let mut cmid = [1; 16];
            cmid[1..].copy_from_slice(&id);
            let flags = flags & !(send_flags::TRACE | send_flags::RETRY) | u8::from(trace.is_some()) * send_flags::TRACE;
            ClientFrame::Send(Send { rid, cmid: Cmid(cmid), flags, kind, ttl_s, trace, conv, payload })
        })
    }

    fn any_hello() -> impl Strategy<Value = ClientFrame<'static>> {
        let fixed = (any::<u8>(), any::<u8>(), any::<u16>(), any::<u32>(), number(), any::<[u8; 16]>());
        (fixed, text(), text(), text()).prop_map(|((minor, platform, window, caps, last_pos, session), device, client, token)| {
            ClientFrame::Hello(Hello { minor, platform, window, caps, last_pos, session, device, client, token })
        })
    }

    fn any_client() -> impl Strategy<Value = ClientFrame<'static>> {
        let cursor = (text(), number()).prop_map(|(conv, seq)| Cursor { conv, seq });
        prop_oneof![
            any_hello(),
            any_send(),
            number().prop_map(|pos| ClientFrame::Ping { pos }),
            (1_u32.., text()).prop_map(|(rid, token)| ClientFrame::Auth { rid, token }),
            (number(), vec(cursor, 0..5)).prop_map(|(pos, cursors)| ClientFrame::Ack { pos, cursors: Cursors::List(cursors) }),
            (text(), number(), any::<u32>(), any::<u16>()).prop_map(|(conv, seq, delay_ms, reason)| ClientFrame::Nack {
                conv,
                seq,
                delay_ms,
                reason
            }),
            (1_u32.., any::<u64>(), any::<u16>(), text()).prop_map(|(rid, since, limit, cursor)| ClientFrame::Sync {
                rid,
                since,
                limit,
                cursor
            }),
            (1_u32.., text(), number(), number(), any::<u16>(), any::<u8>())
                .prop_map(|(rid, conv, from, to, limit, flags)| ClientFrame::Fetch { rid, conv, from, to, limit, flags }),
            (1_u32.., text(), number()).prop_map(|(rid, conv, seq)| ClientFrame::Read { rid, conv, seq }),
            (1_u32.., any::<u32>(), vec(text(), 0..5)).prop_map(|(rid, ttl_s, users)| ClientFrame::Watch {
                rid,
                ttl_s,
                users: Users::List(users)
            }),
            (text(), any::<u16>(), payload()).prop_map(|(conv, kind, payload)| ClientFrame::Signal { conv, kind, payload }),
        ]
    }

    fn any_welcome() -> impl Strategy<Value = ServerFrame<'static>> {
        let bytes = any::<(u8, u8, u8, u16, u16, u16, u16)>();
        let words = any::<(u32, u32, u32, u32, u32, u32)>();
        (bytes, words, number(), number(), any::<[u8; 16]>(), text(), text()).prop_map(
            |((minor, resumed, level, window, send_window, rate, burst), words, server_ms, pos, session, user, node)| {
                let (caps, ping_ms, resume_ms, dedup_s, max_frame, max_payload) = words;
                ServerFrame::Welcome(Welcome {
                    minor,
                    resumed,
                    level,
                    window,
                    send_window,
                    caps,
                    ping_ms,
                    resume_ms,
                    dedup_s,
                    max_frame,
                    max_payload,
                    server_ms,
                    pos,
                    session,
                    user,
                    node,
                    rate,
                    burst,
                })
            },
        )
    }

    fn any_deliver() -> impl Strategy<Value = Deliver<'static>> {
        let fixed = (number(), number(), mid(), any::<u8>(), any::<u16>(), any::<u32>());
        (fixed, cmid(), trace(), text(), text(), payload()).prop_map(|(fixed, cmid, trace, conv, from, payload)| {
            let (pos, seq, mid, bits, kind, exp_s) = fixed;
            let flags = flags(bits, cmid.is_some(), trace.is_some());
            Deliver { pos, seq, mid, flags, kind, exp_s, cmid, trace, conv, from, payload }
        })
    }

    fn any_message() -> impl Strategy<Value = Message<'static>> {
        let fixed = (number(), mid(), any::<u8>(), any::<u16>(), any::<u32>());
        (fixed, cmid(), text(), payload()).prop_map(|((seq, mid, bits, kind, exp_s), cmid, from, payload)| {
            let flags = flags(bits, cmid.is_some(), false);
            Message { seq, mid, flags, kind, exp_s, cmid, from, payload }
        })
    }

    fn any_entry() -> impl Strategy<Value = Entry<'static>> {
        let fixed = (any::<u32>(), any::<u8>(), number(), mid(), number(), number(), number(), any::<u32>());
        (text(), fixed).prop_map(|(conv, (epoch, flags, head, head_mid, floor, mine, read, unread))| Entry {
            conv,
            epoch,
            flags,
            head,
            head_mid,
            floor,
            mine,
            read,
            unread,
        })
    }

    fn any_page() -> impl Strategy<Value = ServerFrame<'static>> {
        prop_oneof![
            (any::<u32>(), any::<u8>(), any::<u64>(), text(), vec(any_entry(), 0..4))
                .prop_map(|(rid, flags, since, cursor, entries)| ServerFrame::SyncPage { rid, flags, since, cursor, entries }),
            ((any::<u32>(), any::<u8>(), any::<u32>(), number(), number()), text(), vec(any_message(), 0..4)).prop_map(
                |((rid, flags, epoch, floor, head), conv, messages)| ServerFrame::Page {
                    rid,
                    flags,
                    epoch,
                    floor,
                    head,
                    conv,
                    messages
                }
            ),
        ]
    }

    fn any_server() -> impl Strategy<Value = ServerFrame<'static>> {
        prop_oneof![
            any_welcome(),
            any_page(),
            any_deliver().prop_map(ServerFrame::Deliver),
            number().prop_map(|server_ms| ServerFrame::Pong { server_ms }),
            (any::<u32>(), number()).prop_map(|(rid, value)| ServerFrame::Ok { rid, value }),
            any::<u32>().prop_map(|in_ms| ServerFrame::Expiring { in_ms }),
            (any::<u32>(), any::<u8>(), any::<u8>(), number(), mid())
                .prop_map(|(rid, level, flags, seq, mid)| ServerFrame::Sent { rid, level, flags, seq, mid }),
            (text(), number(), mid()).prop_map(|(conv, head, mid)| ServerFrame::Notice { conv, head, mid }),
            (text(), text(), number(), number()).prop_map(|(conv, user, recv, read)| ServerFrame::Receipt {
                conv,
                user,
                recv,
                read
            }),
            (text(), any::<u8>(), number(), payload()).prop_map(|(conv, event, version, data)| ServerFrame::Conv {
                conv,
                event,
                version,
                data
            }),
            any::<u16>().prop_map(|reason| ServerFrame::Resync { reason }),
            (any::<u32>(), any::<u16>(), any::<u8>(), any::<u32>(), text())
                .prop_map(|(rid, code, flags, retry_ms, detail)| ServerFrame::Error { rid, code, flags, retry_ms, detail }),
            (any::<(u16, u32, u32, u32)>(), text()).prop_map(|((code, delay_ms, spread_ms, grace_ms), target)| {
                ServerFrame::Goaway { code, delay_ms, spread_ms, grace_ms, target }
            }),
            (text(), any::<u8>(), number()).prop_map(|(user, state, seen_ms)| ServerFrame::Presence { user, state, seen_ms }),
            (text(), text(), any::<u16>(), payload()).prop_map(|(conv, from, kind, payload)| ServerFrame::Signalled {
                conv,
                from,
                kind,
                payload
            }),
        ]
    }

    proptest! {
        /// What a client writes is what the gateway reads, in either encoding: hence both mean the same.
        #[test]
        fn client_frames_survive_both_encodings(frame in any_client()) {
            for encoding in [Encoding::Binary, Encoding::Json] {
                let bytes = client(encoding, &frame);
                prop_assert_eq!(read_client(encoding, &bytes), [Ok(frame.clone())], "{:?}", String::from_utf8_lossy(&bytes));
            }
            let (binary, json) = (client(Encoding::Binary, &frame), client(Encoding::Json, &frame));
            prop_assert_eq!(read_client(Encoding::Binary, &binary), read_client(Encoding::Json, &json));
            prop_assert!(!json.contains(&b'\n'));
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&json).is_ok());
        }

        /// As above, from the gateway to a client.
        #[test]
        fn server_frames_survive_both_encodings(frame in any_server()) {
            for encoding in [Encoding::Binary, Encoding::Json] {
                let bytes = server(encoding, &frame);
                prop_assert_eq!(read_server(encoding, &bytes), [Ok(frame.clone())], "{:?}", String::from_utf8_lossy(&bytes));
            }
            let (binary, json) = (server(Encoding::Binary, &frame), server(Encoding::Json, &frame));
            prop_assert_eq!(read_server(Encoding::Binary, &binary), read_server(Encoding::Json, &json));
            prop_assert!(!json.contains(&b'\n'));
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&json).is_ok());
        }

        /// Any run of frames in one message comes out whole and in order.
        #[test]
        fn frames_of_one_message_keep_their_order(sent in vec(any_client(), 0..8)) {
            let expected: Vec<_> = sent.iter().cloned().map(Ok).collect();
            let binary: Vec<Vec<u8>> = sent.iter().map(|frame| client(Encoding::Binary, frame)).collect();
            let json: Vec<Vec<u8>> = sent.iter().map(|frame| client(Encoding::Json, frame)).collect();
            let (binary, json) = (binary.concat(), json.join(&b'\n'));
            prop_assert_eq!(read_client(Encoding::Binary, &binary), &expected[..]);
            prop_assert_eq!(read_client(Encoding::Json, &json), &expected[..]);
        }

        /// A frame cut anywhere, and a body cut anywhere under a true length, are malformed and never a frame.
        #[test]
        fn cut_client_frames_are_refused(frame in any_client()) {
            let bytes = client(Encoding::Binary, &frame);
            for end in 1..bytes.len() {
                prop_assert_eq!(refusal(Encoding::Binary, &bytes[..end]).0, 1001);
                if end >= 4 {
                    prop_assert_eq!(refusal(Encoding::Binary, &framed(bytes[0], &bytes[4..end])).0, 1001);
                }
            }
            let line = client(Encoding::Json, &frame);
            for end in 1..line.len() {
                let code = refusal(Encoding::Json, &line[..end]).0;
                prop_assert!(code == 1001 || code == 1002 && std::str::from_utf8(&line[..end]).is_err());
            }
        }

        /// As above, from the gateway.
        #[test]
        fn cut_server_frames_are_refused(frame in any_server()) {
            let bytes = server(Encoding::Binary, &frame);
            for end in 4..bytes.len() {
                let cut = framed(bytes[0], &bytes[4..end]);
                let frames = read_server(Encoding::Binary, &cut);
                prop_assert_eq!(frames[0].as_ref().unwrap_err().code, ErrorCode::Malformed);
            }
        }

        /// Bytes after the fields we know belong to a later minor version.
        #[test]
        fn trailing_bytes_of_a_body_are_ignored(frame in any_client(), answer in any_server(), more in vec(any::<u8>(), 1..9)) {
            let bytes = client(Encoding::Binary, &frame);
            let longer = framed(bytes[0], &[&bytes[4..], &more].concat());
            prop_assert_eq!(read_client(Encoding::Binary, &longer), [Ok(frame)]);
            let bytes = server(Encoding::Binary, &answer);
            let longer = framed(bytes[0], &[&bytes[4..], &more].concat());
            prop_assert_eq!(read_server(Encoding::Binary, &longer), [Ok(answer)]);
        }

        /// Head and tail together are the frame, whatever the position, and the tail does not know the position.
        #[test]
        fn deliver_is_head_and_tail(mut deliver in any_deliver(), other in number()) {
            for encoding in [Encoding::Binary, Encoding::Json] {
                let mut tail = Vec::new();
                deliver_tail(encoding, &deliver, crate::limits::FRAME_BYTES_DEFAULT, &mut tail);
                for pos in [deliver.pos, other, 0] {
                    deliver.pos = pos;
                    let mut head = [0; DELIVER_HEAD_BYTES_MAX];
                    let len = deliver_head(encoding, pos, tail.len(), &mut head);
                    let whole = server(encoding, &ServerFrame::Deliver(deliver.clone()));
                    prop_assert_eq!([&head[..len], &tail].concat(), whole);
                }
            }
        }

        /// No bytes make a decoder panic, nor a list that it gave out.
        #[test]
        fn no_bytes_panic(bytes in vec(any::<u8>(), 0..200), kind in any::<u8>()) {
            let frame = framed(kind, &bytes);
            for message in [&bytes, &frame] {
                for frame in read_client(Encoding::Binary, message).into_iter().flatten() {
                    match frame {
                        ClientFrame::Ack { cursors, .. } => prop_assert_eq!(cursors.iter().count(), cursors.len()),
                        ClientFrame::Watch { users, .. } => prop_assert_eq!(users.iter().count(), users.len()),
                        _ => {}
                    }
                }
                drop(read_server(Encoding::Binary, message));
                drop(read_client(Encoding::Json, message));
                drop(read_server(Encoding::Json, message));
            }
        }

        /// A line with one byte changed is a frame or an error with one of the three codes, never a panic.
        #[test]
        fn damaged_lines_do_not_panic(frame in any_client(), answer in any_server(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut line = client(Encoding::Json, &frame);
            let index = at.index(line.len());
            line[index] = byte;
            for error in read_client(Encoding::Json, &line).into_iter().filter_map(Result::err) {
                prop_assert!((1001..=1003).contains(&error.code.value()));
            }
            let mut line = server(Encoding::Json, &answer);
            let index = at.index(line.len());
            line[index] = byte;
            for error in read_server(Encoding::Json, &line).into_iter().filter_map(Result::err) {
                prop_assert!((1001..=1003).contains(&error.code.value()));
            }
        }
    }
}
