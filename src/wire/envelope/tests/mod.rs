//! Both encodings against the contract and against each other.

use super::*;

mod properties;

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

/// What the documentation shows is what is read and written: its test vectors, and every line of its conversation.
#[test]
fn documentation_tells_the_truth() {
    let page = include_str!("../../../../docs/protocol.md");
    let (mut vectors, mut lines) = (0, 0);
    for line in page.lines() {
        let mut again = Vec::new();
        if let Some(hex) = line.strip_prefix("         ").filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            let bytes = unhex(hex);
            match Frames::new(Encoding::Binary, &bytes).next_frame() {
                Ok(frame) => encode_client(Encoding::Binary, &frame.unwrap(), &mut again),
                Err(_) => {
                    let frame = ServerFrames::new(Encoding::Binary, &bytes).next_frame();
                    encode_server(Encoding::Binary, &frame.unwrap().unwrap(), &mut again);
                }
            }
            assert_eq!(again, bytes, "{line}");
            vectors += 1;
        } else if let Some(text) = line.strip_prefix("> {").map(|_| &line[2..]).filter(|text| !text.contains("1.0}")) {
            let frame = Frames::new(Encoding::Json, text.as_bytes()).next_frame();
            encode_client(Encoding::Json, &frame.unwrap().unwrap(), &mut again);
            assert_eq!(String::from_utf8(again).unwrap(), text);
            lines += 1;
        } else if let Some(text) = line.strip_prefix("< {").map(|_| &line[2..]) {
            let frame = ServerFrames::new(Encoding::Json, text.as_bytes()).next_frame();
            encode_server(Encoding::Json, &frame.unwrap().unwrap(), &mut again);
            assert_eq!(String::from_utf8(again).unwrap(), text);
            lines += 1;
        }
    }
    assert_eq!(vectors, 7);
    assert!(lines >= 14, "{lines}");
    let error = Frames::new(Encoding::Json, br#"{"t":"ping","pos":1.0}"#).next_frame().unwrap_err();
    assert!(page.contains(&format!(r#""code":{},"flags":2,"detail":"{}""#, error.code.value(), error.detail)));
    for code in ErrorCode::ALL {
        assert!(page.contains(&format!("\n| {} |", code.value())), "{code:?} is documented");
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

/// A name is as long in JSON as in binary, where one byte counts it.
#[test]
fn names_are_no_longer_in_json() {
    for line in [
        r#"{"t":"hello","device":"NAME"}"#,
        r#"{"t":"hello","client":"NAME"}"#,
        r#"{"t":"send","rid":7,"cmid":"019a0b1c2d3e7f40a1b2c3d4e5f60718","conv":"NAME"}"#,
        r#"{"t":"ack","cursors":[{"conv":"NAME","seq":1}]}"#,
        r#"{"t":"nack","conv":"NAME","seq":1}"#,
        r#"{"t":"sync","rid":7,"cursor":"NAME"}"#,
        r#"{"t":"fetch","rid":7,"conv":"NAME"}"#,
        r#"{"t":"read","rid":7,"conv":"NAME"}"#,
        r#"{"t":"watch","rid":7,"users":["NAME"]}"#,
        r#"{"t":"signal","conv":"NAME"}"#,
    ] {
        let of = |bytes: usize| line.replace("NAME", &"x".repeat(bytes));
        let (longest, longer) = (of(255), of(256));
        assert!(matches!(Frames::new(Encoding::Json, longest.as_bytes()).next_frame(), Ok(Some(_))), "{line}");
        assert_eq!(refusal(Encoding::Json, longer.as_bytes()).0, 1002, "{line}");
    }
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
