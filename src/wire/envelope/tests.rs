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
