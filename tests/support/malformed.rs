//! What a peer must not send, and the documented answer to each: data for the pure parts and for the real binary alike.
//!
//! The frames are meant for the gateway with its default limits, before HELLO: no case holds a whole message, so the answer is
//! that of the WebSocket layer alone.

/// One thing to send.
pub struct Case {
    /// A fact about `bytes`.
    pub name: String,
    /// When `bytes` are sent.
    pub on: On,
    /// What is sent.
    pub bytes: Vec<u8>,
    /// The answer.
    pub expected: Expected,
}

/// When the bytes of a case are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum On {
    /// As the first bytes of a TCP connection.
    Connect,
    /// After an upgrade to `tidegate.v1`.
    Binary,
    /// After an upgrade to `tidegate.v1.json`.
    Json,
}

/// What the gateway does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// An HTTP response with this status; unless it is 101 the connection ends.
    Status(u16),
    /// A Close frame with this code, and the connection ends.
    Close(u16),
    /// Nothing, until a deadline ends the wait: the rest may still come.
    Silence,
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = upgrades();
    cases.extend(frames());
    cases
}

/// A good request in which one line is replaced, named by its first word; an empty name adds a line, an empty line drops one.
pub fn request(name: &str, line: impl AsRef<[u8]>) -> Vec<u8> {
    let lines = [
        ("GET", "GET /ws HTTP/1.1\r\n"),
        ("Host", "Host: chat.example\r\n"),
        ("Upgrade", "Upgrade: websocket\r\n"),
        ("Connection", "Connection: Upgrade\r\n"),
        ("Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
        ("Version", "Sec-WebSocket-Version: 13\r\n"),
        ("Protocol", "Sec-WebSocket-Protocol: tidegate.v1\r\n"),
        ("", ""),
    ];
    let mut head = Vec::new();
    lines.iter().for_each(|(of, usual)| head.extend(if *of == name { line.as_ref() } else { usual.as_bytes() }));
    head.extend(b"\r\n");
    head
}

/// A masked frame. The length form is the shortest.
pub fn frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut out = vec![first_byte];
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | u8::try_from(len).expect("at most 125")),
        len @ 126..=65_535 => {
            out.push(0xfe);
            out.extend(u16::try_from(len).expect("at most 65535").to_be_bytes());
        }
        len => {
            out.push(0xff);
            out.extend((len as u64).to_be_bytes());
        }
    }
    out.extend(mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    out
}

fn upgrades() -> Vec<Case> {
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let changed = [
        // Lawful, and easy to refuse by mistake.
        ("a query", "GET", "GET /ws?token=secret&token=x HTTP/1.1\r\n", 400),
        ("an empty query", "GET", "GET /ws? HTTP/1.1\r\n", 400),
        ("an absolute target", "GET", "GET http://chat.example/ws HTTP/1.1\r\n", 101),
        ("an empty line before the request", "GET", "\r\nGET /ws HTTP/1.1\r\n", 101),
        ("lists and cases", "Connection", "CONNECTION: keep-alive\r\nconnection: ,, upgrade ,\r\n", 101),
        ("forwarding headers are ignored", "", "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8\r\n", 101),
        ("a known subprotocol after unknown ones", "Protocol", "Sec-WebSocket-Protocol: mqtt, tidegate.v1.json\r\n", 101),
        ("a length of nothing", "", "Content-Length: 0\r\n", 101),
        // Not HTTP/1.1.
        ("HTTP/2 named in the request line", "GET", "GET /ws HTTP/2.0\r\n", 400),
        ("HTTP/1.0", "GET", "GET /ws HTTP/1.0\r\n", 505),
        ("HTTP/0.9", "GET", "GET /ws\r\n", 400),
        ("two spaces in the request line", "GET", "GET  /ws HTTP/1.1\r\n", 400),
        ("a lower-case version", "GET", "GET /ws http/1.1\r\n", 400),
        ("a space in a header name", "", "X y: z\r\n", 400),
        ("a space before the colon", "", "X : z\r\n", 400),
        ("a header without a colon", "", "nonsense\r\n", 400),
        ("a header without a name", "", ": z\r\n", 400),
        ("a folded header", "", "X: y\r\n folded\r\n", 400),
        ("a line that ends with LF alone", "", "X: y\n", 400),
        ("a CR inside a line", "", "X: y\rz\r\n", 400),
        ("a NUL in a value", "", "X: \0\r\n", 400),
        ("an escape in a value", "", "X: \x1b[2J\r\n", 400),
        // Not for us.
        ("POST", "GET", "POST /ws HTTP/1.1\r\n", 405),
        ("HEAD", "GET", "HEAD /ws HTTP/1.1\r\n", 405),
        ("a method in lower case", "GET", "get /ws HTTP/1.1\r\n", 405),
        ("CONNECT", "GET", "CONNECT chat.example:443 HTTP/1.1\r\n", 405),
        ("another path", "GET", "GET /other HTTP/1.1\r\n", 404),
        ("a path that begins with ours", "GET", "GET /ws/ HTTP/1.1\r\n", 404),
        ("a path of many dots", "GET", "GET /../ws HTTP/1.1\r\n", 404),
        ("an encoded path", "GET", "GET /%77s HTTP/1.1\r\n", 404),
        ("the target of OPTIONS", "GET", "GET * HTTP/1.1\r\n", 404),
        // Not a WebSocket.
        ("no Upgrade", "Upgrade", "", 426),
        ("another Upgrade", "Upgrade", "Upgrade: h2c\r\n", 426),
        ("an Upgrade that begins with ours", "Upgrade", "Upgrade: websocket2\r\n", 426),
        ("no Connection", "Connection", "", 400),
        ("Connection: close", "Connection", "Connection: close\r\n", 400),
        ("no version", "Version", "", 426),
        ("an old version", "Version", "Sec-WebSocket-Version: 8\r\n", 426),
        ("a later version", "Version", "Sec-WebSocket-Version: 14\r\n", 426),
        ("two versions in one line", "Version", "Sec-WebSocket-Version: 13, 8\r\n", 426),
        ("a version with a sign", "Version", "Sec-WebSocket-Version: +13\r\n", 426),
        ("no key", "Key", "", 400),
        ("an empty key", "Key", "Sec-WebSocket-Key:\r\n", 400),
        ("a key of 15 bytes", "Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j\r\n", 400),
        ("a key of 18 bytes", "Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZSEh\r\n", 400),
        ("a key without padding", "Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ\r\n", 400),
        ("a key that is not base64", "Key", "Sec-WebSocket-Key: ************************\r\n", 400),
        ("no known subprotocol", "Protocol", "Sec-WebSocket-Protocol: mqtt, tidegate.v2\r\n", 400),
        ("no subprotocol", "Protocol", "", 400),
        ("a subprotocol in capitals", "Protocol", "Sec-WebSocket-Protocol: TIDEGATE.V1\r\n", 400),
        // What two readers could understand differently.
        ("no Host", "Host", "", 400),
        ("an empty Host", "Host", "Host: \r\n", 400),
        ("two Hosts", "", "Host: other.example\r\n", 400),
        ("two keys", "", key, 400),
        ("two versions", "", "Sec-WebSocket-Version: 13\r\n", 400),
        ("two origins", "", "Origin: https://a.example\r\nOrigin: https://b.example\r\n", 400),
        ("two credentials", "", "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n", 400),
        ("two lengths", "", "Content-Length: 0\r\nContent-Length: 5\r\n", 400),
        ("a body by length", "", "Content-Length: 5\r\n", 400),
        ("a length that is no number", "", "Content-Length: 0x0\r\n", 400),
        ("a chunked body", "", "Transfer-Encoding: chunked\r\n", 400),
        ("a chunked body in disguise", "", "Transfer-Encoding: identity, chunked\r\n", 400),
    ];
    let mut cases: Vec<Case> =
        changed.into_iter().map(|(name, of, line, status)| upgrade(name, request(of, line), Expected::Status(status))).collect();

    // Bytes beyond ASCII: whole characters, and what is none. Nobody's business in a value that means nothing here, wrong anywhere else.
    let beyond: [(&str, &str, &[u8], u16); 33] = [
        ("a target in UTF-8", "GET", "GET /wś HTTP/1.1\r\n".as_bytes(), 400),
        ("a target that is not UTF-8", "GET", b"GET /ws\xff HTTP/1.1\r\n", 400),
        ("a method in UTF-8", "GET", "GÉT /ws HTTP/1.1\r\n".as_bytes(), 400),
        ("a header name in UTF-8", "", "Ü: y\r\n".as_bytes(), 400),
        ("a header name that is not UTF-8", "", b"X\xff: y\r\n", 400),
        ("Host with a letter that only looks like its o", "Host", "H\u{43e}st: chat.example\r\n".as_bytes(), 400),
        ("a length with a letter that only looks like its o", "", "C\u{43e}ntent-Length: 5\r\n".as_bytes(), 400),
        ("a Host in UTF-8", "Host", "Host: bücher.example\r\n".as_bytes(), 101),
        ("a Host that is not UTF-8", "Host", b"Host: b\xfccher.example\r\n", 101),
        ("a Cookie in UTF-8", "", "Cookie: a=\u{1f36a}\r\n".as_bytes(), 101),
        ("a Cookie that is not UTF-8", "", b"Cookie: a=\xc3\x28\x80\r\n", 101),
        ("a User-Agent in UTF-8", "", "User-Agent: Tür/1\r\n".as_bytes(), 101),
        ("a User-Agent that is not UTF-8", "", b"User-Agent: T\xfcr/1\r\n", 101),
        ("an address that is not UTF-8", "", b"X-Forwarded-For: \xff\r\nForwarded: for=\xff\r\n", 101),
        ("a key in UTF-8", "Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZé==\r\n".as_bytes(), 400),
        ("a key that is not UTF-8", "Key", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZ\xff==\r\n", 400),
        ("digits of a version that are not ASCII's", "Version", "Sec-WebSocket-Version: \u{661}\u{663}\r\n".as_bytes(), 426),
        ("a version that is not UTF-8", "Version", b"Sec-WebSocket-Version: 13\xff\r\n", 426),
        ("a subprotocol in UTF-8", "Protocol", "Sec-WebSocket-Protocol: tidegate.v¹\r\n".as_bytes(), 400),
        ("a subprotocol that is not UTF-8", "Protocol", b"Sec-WebSocket-Protocol: tidegate.v1\xff\r\n", 400),
        (
            "a known subprotocol after one in UTF-8",
            "Protocol",
            "Sec-WebSocket-Protocol: gezeiten™, tidegate.v1\r\n".as_bytes(),
            101,
        ),
        ("a known subprotocol after one that is not UTF-8", "Protocol", b"Sec-WebSocket-Protocol: \xff, tidegate.v1\r\n", 101),
        ("an extension in UTF-8", "", "Sec-WebSocket-Extensions: größe; é=é\r\n".as_bytes(), 101),
        ("an extension that is not UTF-8", "", b"Sec-WebSocket-Extensions: permessage-deflate\xff; \xff=\xff\r\n", 101),
        ("an Upgrade in UTF-8", "Upgrade", "Upgrade: ẅebsocket\r\n".as_bytes(), 426),
        ("an Upgrade behind a space that is not ASCII's", "Upgrade", b"Upgrade:\xa0websocket\r\n", 426),
        ("a Connection in UTF-8", "Connection", "Connection: Üpgrade\r\n".as_bytes(), 400),
        ("a Connection before a space that is not ASCII's", "Connection", b"Connection: Upgrade\x85\r\n", 400),
        ("a length that is not ASCII", "", b"Content-Length: 0\xb2\r\n", 400),
        ("a coding in UTF-8", "", "Transfer-Encoding: chünked\r\n".as_bytes(), 400),
        ("an Origin in UTF-8", "", "Origin: https://ch\u{430}t.example\r\n".as_bytes(), 403),
        ("an Origin that is not UTF-8", "", b"Origin: http://\xff\r\n", 400),
        ("a credential that is not UTF-8", "", b"Authorization: Bearer \xff\r\n", 400),
    ];
    cases.extend(beyond.map(|(name, of, line, status)| upgrade(name, request(of, line), Expected::Status(status))));

    let mut long_line = b"GET /ws HTTP/1.1\r\nX: ".to_vec();
    long_line.resize(8 * 1024 + 1, b'x');
    let mut long_target = b"GET /".to_vec();
    long_target.resize(9 * 1024, b'w');
    let good = request("none", "");
    cases.extend([
        upgrade("65 headers", request("", "X: y\r\n".repeat(59)), Expected::Status(431)),
        upgrade("64 headers", request("", "X: y\r\n".repeat(58)), Expected::Status(101)),
        upgrade(
            "a head above 8 KiB in many lines",
            request("", "X: yyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(260)),
            Expected::Status(431),
        ),
        upgrade("a header line above 8 KiB, never finished", long_line, Expected::Status(431)),
        upgrade("a target above 8 KiB, never finished", long_target, Expected::Status(431)),
        upgrade("the first bytes of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), Expected::Status(400)),
        upgrade("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), Expected::Status(400)),
        upgrade("the hello of SSH, then a blank line", b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec(), Expected::Status(400)),
        upgrade("a WebSocket frame without an upgrade", frame(0x81, b"hi"), Expected::Status(400)),
        upgrade("two blank lines", b"\r\n\r\n".to_vec(), Expected::Status(400)),
        upgrade("a good request", good.clone(), Expected::Status(101)),
        upgrade("a request without its blank line", good[..good.len() - 2].to_vec(), Expected::Silence),
        upgrade("a request cut inside a header", good[..40].to_vec(), Expected::Silence),
        upgrade("nothing", Vec::new(), Expected::Silence),
    ]);
    cases
}

fn frames() -> Vec<Case> {
    let header = |bytes: &[u8]| bytes.to_vec();
    let text = |payload: &[u8]| frame(0x81, payload);
    let close = |payload: &[u8]| frame(0x88, payload);
    let mut cases = Vec::new();
    let mut push = |name: String, on: On, bytes: Vec<u8>, expected: Expected| cases.push(Case { name, on, bytes, expected });

    for bit in [0x40, 0x20, 0x10] {
        push(format!("reserved bit {bit:#x}"), On::Binary, frame(0x82 | bit, b"x"), Expected::Close(1002));
        push(format!("reserved bit {bit:#x} in a ping"), On::Binary, frame(0x89 | bit, b""), Expected::Close(1002));
    }
    for opcode in [0x3, 0x4, 0x5, 0x6, 0x7, 0xb, 0xc, 0xd, 0xe, 0xf] {
        push(format!("opcode {opcode:#x}"), On::Binary, frame(0x80 | opcode, b"x"), Expected::Close(1002));
    }
    for opcode in [0x8, 0x9, 0xa] {
        push(format!("control frame {opcode:#x} without FIN"), On::Binary, frame(opcode, b""), Expected::Close(1002));
        push(
            format!("control frame {opcode:#x} of 126 bytes"),
            On::Binary,
            frame(0x80 | opcode, &[b'x'; 126]),
            Expected::Close(1002),
        );
        push(
            format!("control frame {opcode:#x} of 64 bits of length"),
            On::Binary,
            header(&[0x80 | opcode, 0xff]),
            Expected::Close(1002),
        );
        push(format!("control frame {opcode:#x} without a mask"), On::Binary, header(&[0x80 | opcode, 0]), Expected::Close(1002));
    }
    push("a data frame without a mask".to_owned(), On::Binary, header(&[0x82, 1, b'x']), Expected::Close(1002));
    push("125 bytes in 16 bits of length".to_owned(), On::Binary, header(&[0x82, 0xfe, 0, 125]), Expected::Close(1002));
    push(
        "65535 bytes in 64 bits of length".to_owned(),
        On::Binary,
        header(&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff]),
        Expected::Close(1002),
    );
    push("a length with its top bit set".to_owned(), On::Binary, header(&[0x82, 0xff, 0x80]), Expected::Close(1002));
    push("a continuation of nothing".to_owned(), On::Binary, frame(0x80, b"x"), Expected::Close(1002));
    push("an unfinished continuation of nothing".to_owned(), On::Binary, frame(0x00, b"x"), Expected::Close(1002));
    let nested = [frame(0x02, b"x"), frame(0x82, b"y")].concat();
    push("a message inside a message".to_owned(), On::Binary, nested, Expected::Close(1002));
    let twice = [frame(0x02, b"x"), frame(0x02, b"y")].concat();
    push("two first fragments".to_owned(), On::Binary, twice, Expected::Close(1002));

    push("text on the binary subprotocol".to_owned(), On::Binary, text(b"{}"), Expected::Close(1003));
    push("binary on the text subprotocol".to_owned(), On::Json, frame(0x82, b"{}"), Expected::Close(1003));

    let one_more = [&[0x82, 0xff][..], &(128 * 1024_u64 + 1).to_be_bytes(), &[0; 4]].concat();
    push("a message of one byte too many".to_owned(), On::Binary, one_more, Expected::Close(1009));
    let longest = [&[0x82, 0xff][..], &(u64::MAX >> 1).to_be_bytes(), &[0; 4]].concat();
    push("the longest length there is".to_owned(), On::Binary, longest.clone(), Expected::Close(1009));
    let continued = [frame(0x02, b"x"), [&[0x80][..], &longest[1..]].concat()].concat();
    push("a continuation of the longest length there is".to_owned(), On::Binary, continued, Expected::Close(1009));
    let half = frame(0x02, &[0; 64 * 1024]);
    let sum = [half, frame(0x00, &[0; 64 * 1024]), frame(0x80, b"x")].concat();
    push("fragments of one byte too many".to_owned(), On::Binary, sum, Expected::Close(1009));
    let flood = [frame(0x02, b""), frame(0x00, b"").repeat(128 * 1024)].concat();
    push("endless empty fragments".to_owned(), On::Binary, flood, Expected::Close(1009));

    for (name, wrong) in [
        ("a byte that never occurs", &b"ab\xff"[..]),
        ("a continuation byte alone", b"\x80"),
        ("an overlong slash", b"\xc0\xaf"),
        ("an overlong sequence of three", b"\xe0\x80\x80"),
        ("half a surrogate pair", b"\xed\xa0\x80"),
        ("a character beyond Unicode", b"\xf4\x90\x80\x80"),
        ("a sequence of five", b"\xf8\x88\x80\x80\x80"),
        ("a cut sequence", b"\xe2\x82"),
    ] {
        push(format!("text with {name}"), On::Json, text(wrong), Expected::Close(1007));
        let cut = [frame(0x01, &wrong[..1]), frame(0x80, &wrong[1..])].concat();
        push(format!("text in fragments with {name}"), On::Json, cut, Expected::Close(1007));
    }
    let early = text(b"\xce\xba\xf4\x90 and more that never comes")[..6 + 4].to_vec();
    push("bad text in a frame that is not whole".to_owned(), On::Json, early, Expected::Close(1007));

    push("a close body of one byte".to_owned(), On::Binary, close(b"x"), Expected::Close(1002));
    push("a close reason that is not UTF-8".to_owned(), On::Binary, close(b"\x03\xe8\xff"), Expected::Close(1007));
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        push(format!("close code {code}"), On::Binary, close(&code.to_be_bytes()), Expected::Close(1002));
    }

    push("half a header".to_owned(), On::Binary, header(&[0x82]), Expected::Silence);
    push("a header and no payload".to_owned(), On::Binary, frame(0x82, b"x")[..6].to_vec(), Expected::Silence);
    push("a first fragment".to_owned(), On::Binary, frame(0x02, &[0; 8 * 1024]), Expected::Silence);
    push("a sequence that may still become good".to_owned(), On::Json, frame(0x01, b"\xf0\x9f"), Expected::Silence);
    push("a pong nobody asked for".to_owned(), On::Binary, frame(0x8a, b"hello"), Expected::Silence);
    cases
}

fn upgrade(name: &str, bytes: Vec<u8>, expected: Expected) -> Case {
    Case { name: name.to_owned(), on: On::Connect, bytes, expected }
}
