//! TLS in front of the real gateway: versions, names, tickets, reload, certificates of clients, limits, and what is not TLS.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use allocation_counter::{measure, opt_out};
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion, StreamOwned};
use support::gateway::Gateway;
use support::peer::Peer;
use support::raw::Raw;
use support::secure::{self, Authority, BOTH, Stream, connect, welcomed};
use support::{PATIENCE, eventually};
use tidegate::wire::envelope::Encoding;
use tidegate::wire::tls::{Keys, Pair, Policy, Session};
use tungstenite::Message;

/// Both versions carry a session, beside one without TLS; the next connection of a client resumes, and both are counted.
#[test]
fn both_versions_carry_a_session_and_resume() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let (gateway, address) = secure::start(&authority, &["a"], &[]);
    for (version, speaks) in [(&TLS13, ProtocolVersion::TLSv1_3), (&TLS12, ProtocolVersion::TLSv1_2)] {
        let config = Arc::new(authority.client(&[version], None));
        let stream = connect(address, &config, "localhost").expect("a handshake");
        assert_eq!(stream.conn.protocol_version(), Some(speaks));
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(stream.conn.handshake_kind(), Some(HandshakeKind::Full));
        welcomed(&gateway, stream, "ann");
        let stream = connect(address, &config, "localhost").expect("a handshake");
        assert_eq!(stream.conn.handshake_kind(), Some(HandshakeKind::Resumed));
        welcomed(&gateway, stream, "ann");
    }
    Raw::welcomed(&gateway, Encoding::Json, "bo", "1");
    assert_eq!((handshakes(&gateway, "full"), handshakes(&gateway, "resumed")), (2.0, 2.0));
}

/// With `tls.version_min = "1.3"` the older version is refused.
#[test]
fn an_old_version_can_be_refused() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let (gateway, address) = secure::start(&authority, &["a"], &[("tls.version_min", "1.3")]);
    assert!(connect(address, &Arc::new(authority.client(&[&TLS12], None)), "localhost").is_err());
    let _stream = connect(address, &Arc::new(authority.client(&BOTH, None)), "localhost").expect("a handshake");
    eventually("both counted", || (handshakes(&gateway, "failed") == 1.0 && handshakes(&gateway, "full") == 1.0).then_some(()));
}

/// A client gets the certificate of the name it asks for; who asks for another, or for none, gets the first.
#[test]
fn certificates_are_chosen_by_name() {
    let authority = Authority::new();
    authority.issue("a", &["a.example", "127.0.0.1"]);
    authority.issue("b", &["b.example", "*.c.example"]);
    let (_gateway, address) = secure::start(&authority, &["a", "b"], &[]);
    let config = Arc::new(authority.client(&BOTH, None));
    for (name, file) in [("a.example", "a"), ("b.example", "b"), ("B.Example", "b"), ("x.c.example", "b"), ("127.0.0.1", "a")] {
        let stream = connect(address, &config, name).expect("a handshake");
        assert_eq!(shown(&stream), authority.read(&format!("{file}.pem")), "{name}");
    }
    // The certificate of the first is not for this name, which the client finds out.
    let error = connect(address, &config, "other.example").expect_err("no certificate for it");
    assert!(error.to_string().contains("not valid for name"), "{error}");
}

/// A protocol that is not spoken is refused by name; what is sent without asking is judged as what it is.
#[test]
fn other_protocols_are_refused() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let (_gateway, address) = secure::start(&authority, &["a"], &[]);
    let mut config = authority.client(&BOTH, None);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let error = connect(address, &Arc::new(config.clone()), "localhost").expect_err("no protocol in common");
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    config.alpn_protocols = Vec::new();
    let mut stream = connect(address, &Arc::new(config), "localhost").expect("a handshake");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("it takes bytes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer, and close_notify behind it");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

/// Reading the files again changes what the next handshake sees, and no connection; a bad file changes nothing. Tickets stay good.
#[test]
fn certificates_are_read_again() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let (gateway, address) = secure::start(&authority, &["a"], &[]);
    let config = Arc::new(authority.client(&BOTH, None));
    let first = connect(address, &config, "localhost").expect("a handshake");
    let old = shown(&first);
    let mut live = welcomed(&gateway, first, "ann");

    std::fs::write(authority.path("a.pem"), "not a certificate").expect("a file");
    hang_up(&gateway);
    eventually("a complaint", || gateway.log().contains("certificates stay as they were").then_some(()));
    assert!(gateway.log().contains("a.pem"), "the file is named");
    assert_eq!(shown(&connect(address, &fresh(&authority), "localhost").expect("a handshake")), old);

    authority.issue("a", &["localhost"]);
    hang_up(&gateway);
    eventually("the new ones", || gateway.log().contains("certificates were read again").then_some(()));
    let new = shown(&connect(address, &fresh(&authority), "localhost").expect("a handshake"));
    assert_eq!(new, authority.read("a.pem"));
    assert_ne!(new, old);
    let again = connect(address, &config, "localhost").expect("a handshake");
    assert_eq!(again.conn.handshake_kind(), Some(HandshakeKind::Resumed));

    live.send(Message::Ping("still here".into())).expect("the connection lives");
    assert_eq!(secure::read(&mut live), Message::Pong("still here".into()));
}

/// Certificates as renewal tools lay them: links that lead to a directory of versions, which turn while the gateway runs confined. By
/// `tidegate ctl tls reload`, which says how it went.
#[test]
fn links_are_followed_when_files_are_read_again() {
    let authority = Authority::new();
    for version in ["1", "2"] {
        authority.issue(version, &["localhost"]);
    }
    let archive = authority.path("archive");
    std::fs::create_dir(&archive).expect("a directory");
    let turn = |version: &str| {
        for ending in ["pem", "key"] {
            let (real, link) = (format!("{archive}/{version}.{ending}"), authority.path(&format!("live/a.{ending}")));
            std::fs::copy(authority.path(&format!("{version}.{ending}")), &real).expect("a file");
            drop(std::fs::remove_file(&link));
            std::os::unix::fs::symlink(real, link).expect("a link");
        }
    };
    std::fs::create_dir(authority.path("live")).expect("a directory");
    turn("1");
    let (gateway, address) = secure::start(&authority, &["live/a"], &[]);
    turn("2");
    let (code, said) = ctl(&gateway, &["tls", "reload"]);
    assert!(code == Some(0) && said.contains("reloaded  true"), "{said}");
    assert_eq!(shown(&connect(address, &fresh(&authority), "localhost").expect("a handshake")), authority.read("2.pem"));
    std::fs::remove_file(authority.path("live/a.key")).expect("a link");
    let (code, said) = ctl(&gateway, &["tls", "reload"]);
    assert!(code == Some(1) && said.contains("live/a.key: cannot read it"), "{said}");
    assert_eq!(shown(&connect(address, &fresh(&authority), "localhost").expect("a handshake")), authority.read("2.pem"));
}

/// What a session keeps when its handshake is over and nothing is under way, counted byte by byte at Rust's allocator. The keys as the
/// library of cryptography spreads them out come on top; `tests/memory.rs` sees all of it.
#[test]
fn a_session_at_rest_keeps_little() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let read = |ending: &str| std::fs::read(authority.path(&format!("a.{ending}"))).expect("a file");
    let pair = Pair { name: "a".to_owned(), chain: read("pem"), key: read("key") };
    let keys = Keys::new(&[pair], Policy::default(), 3_600).expect("good files");
    for (name, version) in [("1.2", &TLS12), ("1.3", &TLS13)] {
        let config = Arc::new(authority.client(&[version], None));
        // What is made once, on the first handshake of a thread, is not this session's.
        drop(rested(&keys, &config));
        let mut session = None;
        let kept = measure(|| session = Some(rested(&keys, &config))).bytes_current;
        println!("TLS {name}: {kept} bytes at the allocator, of them {} in the session itself", size_of::<Session>());
        assert!((500..=SESSION_BYTES_MAX).contains(&kept), "TLS {name}: {kept} bytes");
        drop(session);
    }
}

/// Without a listener for TLS, and with settings as they were, there is nothing to take over, which is no reason to end.
#[test]
fn sighup_ends_nothing() {
    let mut gateway = Gateway::start();
    hang_up(&gateway);
    eventually("a word", || gateway.log().contains("nothing has changed").then_some(()));
    assert!(gateway.is_running());
    Raw::welcomed(&gateway, Encoding::Json, "bo", "1");
}

/// Certificates of clients: required, asked for, and only those of the right authority.
#[test]
fn clients_show_certificates_when_asked() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    authority.issue("a", &["localhost"]);
    authority.issue("c", &["client"]);
    stranger.issue("c", &["client"]);
    let none = || authority.client(&BOTH, None);
    let good = || authority.client(&BOTH, Some("c"));
    let bad = || stranger.client_of(&authority.certificate, &BOTH, Some("c"));
    for (asked, lets_in_none) in [("required", false), ("optional", true)] {
        let settings = [("tls.client_certificates", asked), ("tls.client_ca_file", &authority.path("ca.pem"))];
        let (gateway, address) = secure::start(&authority, &["a"], &settings);
        for (config, is_let_in) in [(none(), lets_in_none), (good(), true), (bad(), false)] {
            let config = Arc::new(config);
            assert_eq!(is_served(&gateway, address, &config), is_let_in, "{asked}");
        }
        // Whoever was let in with a certificate resumes with it.
        let config = Arc::new(good());
        assert!(is_served(&gateway, address, &config));
        let again = connect(address, &config, "localhost").expect("a handshake");
        assert_eq!(again.conn.handshake_kind(), Some(HandshakeKind::Resumed));
    }
}

/// HTTP in the clear is told where it is, noise is cut off, and TLS on the plain port is no request.
#[test]
fn what_is_not_tls_is_told_so() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let (gateway, address) = secure::start(&authority, &["a"], &[]);
    let answer = exchange(address, b"GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(answer.starts_with(b"HTTP/1.1 400 ") && answer.windows(6).any(|part| part == b"wss://"), "{answer:?}");
    // A ClientHello without anything in it: an alert, and no more.
    assert_eq!(exchange(address, &[22, 3, 1, 0, 4, 1, 0, 0, 0]).first(), Some(&21));
    // A record longer than any, and one that never ends.
    assert_eq!(exchange(address, &[&[22, 3, 1, 0xff, 0xff][..], &[0; 40_000]].concat()), b"");
    eventually("three failures", || (handshakes(&gateway, "failed") == 3.0).then_some(()));
    eventually("the cause", || (gateway.metric(r#"tidegate_closes_total{cause="tls_failed"}"#) >= 1.0).then_some(()));
    assert!(exchange(gateway.listen, &hello(&authority)).starts_with(b"HTTP/1.1 400 "));
}

/// Large messages both ways, with records and messages cut anywhere; the connection ends with close_notify.
#[test]
fn large_messages_cross_in_any_pieces() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let (mut gateway, address) = secure::start(&authority, &["a"], &[]);
    gateway.kill();
    gateway.run_with(&["--echo"]);
    for (version, piece) in [(&TLS13, 1_000_000), (&TLS12, 70_001), (&TLS13, 1_371), (&TLS12, 97)] {
        let config = Arc::new(authority.client(&[version], None));
        let connection = ClientConnection::new(config, "localhost".try_into().unwrap()).expect("a client");
        let socket = TcpStream::connect(address).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let stream = StreamOwned::new(connection, Pieces { socket, piece });
        let (mut socket, _) = tungstenite::client("ws://localhost/ws", stream).expect("an upgrade");
        let most = if piece > 1_000 { 3_000_000 } else { 100_000 };
        for size in [0, 1, 16_383, 16_384, 16_385, 65_536, most] {
            let payload: Vec<u8> = (0..=250).cycle().take(size).collect();
            socket.send(Message::binary(payload.clone())).expect("it takes it");
            assert!(socket.read().expect("it comes back") == Message::binary(payload), "{size} in pieces of {piece}");
        }
        socket.close(None).expect("a close");
        while socket.read().is_ok() {}
        // Without close_notify this would be an unexpected end.
        assert_eq!(socket.get_mut().read(&mut [0; 16]).expect("close_notify"), 0);
    }
}

/// A client that closes its side by close_notify alone has left; what it is told before the end of its connection still comes.
#[test]
fn close_notify_is_an_end() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let (gateway, address) = secure::start(&authority, &["a"], &[]);
    let mut stream = connect(address, &Arc::new(authority.client(&BOTH, None)), "localhost").expect("a handshake");
    stream.conn.send_close_notify();
    stream.flush().expect("it takes it");
    assert_eq!(stream.read(&mut [0; 16]).expect("close_notify"), 0);
    eventually("the end", || (gateway.metric("tidegate_tls_open") == 0.0).then_some(()));
}

/// A handshake that does not come to its end is given up, whatever part of it has come.
#[test]
fn a_slow_handshake_is_given_up() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let (gateway, address) = secure::start(&authority, &["a"], &[("protocol.upgrade_ms", "4000")]);
    let hello = hello(&authority);
    let parts = [0, 1, 5, hello.len() - 1, hello.len()];
    let sockets = parts.map(|part| {
        let mut socket = TcpStream::connect(address).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        socket.write_all(&hello[..part]).expect("it takes bytes");
        socket
    });
    for mut socket in sockets {
        let mut answer = Vec::new();
        match socket.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    eventually("five of them", || (handshakes(&gateway, "timeout") == 5.0).then_some(()));
    // Also when the handshake is over and the request does not come: that is told as on the plain port.
    let mut stream = connect(address, &Arc::new(authority.client(&BOTH, None)), "localhost").expect("a handshake");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer, and close_notify behind it");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

/// Byte by byte, each soon after the last, and without end: a first record, a ClientHello of many records, the answer to ours. The one
/// deadline of the whole ends it, and so it does with the request behind the handshake.
#[test]
fn a_dribbled_handshake_is_given_up() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let (gateway, address) = secure::start(&authority, &["a"], &[("protocol.upgrade_ms", "3000")]);
    let hello = hello(&authority);
    // The longest record, and the longest message there may be in records of one byte each.
    let record = [&[22, 3, 1, 0x3f, 0xff][..], &hello[5..]].concat();
    let message = [&[1, 0, 0x7f, 0xff][..], &hello[9..]].concat();
    let shapes: [(&[u8], &[u8]); 2] = [(b"", &record), (b"\x16\x03\x01\x00\x01", &message)];
    for (front, bytes) in shapes {
        let mut rest = bytes.iter().copied().chain(std::iter::repeat(0));
        let mut peer = Peer::connect(address);
        peer.dribble(|| [front, &[rest.next().expect("it has no end")]].concat());
        assert_eq!(peer.read_all(), b"", "keys are not agreed on: there is nothing to say");
    }
    let mut peer = Peer::connect(address);
    peer.write(&hello);
    let mut answer = b"\x14\x03\x03\x00\x01\x01\x17\x03\x03\x40\x00".iter().copied().chain(std::iter::repeat(0));
    peer.dribble(|| vec![answer.next().expect("it has no end")]);
    assert_eq!(peer.read_all().first(), Some(&22), "our part of the handshake, and no more");
    eventually("the causes", || (handshakes(&gateway, "timeout") == 3.0).then_some(()));
    let mut stream = connect(address, &Arc::new(authority.client(&BOTH, None)), "localhost").expect("a handshake");
    let mut request = b"GET /ws HTTP/1.1\r\nX: ".iter().copied().chain(std::iter::repeat(b'x'));
    let mut answer = Vec::new();
    stream.sock.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket");
    eventually("the end of the request", || {
        // It may have ended the connection before the last of them.
        drop(stream.write_all(&[request.next().expect("it has no end")]));
        match stream.read_to_end(&mut answer) {
            Ok(_) => Some(()),
            Err(error) => (error.kind() == ErrorKind::ConnectionReset).then_some(()),
        }
    });
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", answer.escape_ascii());
    assert_eq!(handshakes(&gateway, "timeout"), 3.0);
    eventually("the causes", || (gateway.metric(r#"tidegate_closes_total{cause="upgrade_timeout"}"#) == 4.0).then_some(()));
}

/// A record of a session that comes byte by byte, each soon after the last, ends as a message does that comes so; records that are whole do not.
#[test]
fn a_dribbled_record_is_given_up() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let (gateway, address) = secure::start(&authority, &["a"], &[("protocol.message_ms", "4000")]);
    let stream = connect(address, &Arc::new(authority.client(&BOTH, None)), "localhost").expect("a handshake");
    let mut socket = welcomed(&gateway, stream, "ann");
    let ping = |socket: &mut tungstenite::WebSocket<Stream>| {
        socket.send(Message::text(r#"{"t":"ping"}"#)).expect("it is served");
        while !matches!(socket.read().expect("an answer"), Message::Text(text) if text.contains("pong")) {}
    };
    let at_rest = gateway.metric("tidegate_memory_bytes");
    // In two pieces, one soon after the other, again and again for longer than one record may take.
    for _ in 0..45 {
        let mut bytes = Vec::new();
        socket.get_mut().conn.writer().write_all(b"\x89\x80\0\0\0\0").expect("room");
        socket.get_mut().conn.write_tls(&mut bytes).expect("room");
        let (first, second) = bytes.split_at(3);
        for part in [first, second] {
            socket.get_mut().sock.write_all(part).expect("a socket");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    ping(&mut socket);
    // The longest record there may be, most of it, and then a byte at a time.
    let record = [&b"\x17\x03\x03\x40\x00"[..], &[7; 12_000]].concat();
    let sock = &mut socket.get_mut().sock;
    sock.write_all(&record).expect("a socket");
    eventually("what is kept to be counted", || (gateway.metric("tidegate_memory_bytes") >= at_rest + 12_000.0).then_some(()));
    eventually("the end", || {
        drop(sock.write_all(&[7]));
        (gateway.metric(r#"tidegate_closes_total{cause="message_timeout"}"#) == 1.0).then_some(())
    });
    drop(socket);
    eventually("all of it to be given back", || (gateway.metric("tidegate_connections_open") == 0.0).then_some(()));
    assert!(gateway.counted("tidegate_memory_bytes") < at_rest + 12_000.0);
}

/// More handshakes at once than may wait: the others are reset, and nothing is computed for them; whoever waited is served.
#[test]
fn handshakes_beyond_the_budget_are_refused() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let settings = [("reactors", "1"), ("tls.handshakes_waiting_max", "2")];
    let (gateway, address) = secure::start(&authority, &["a"], &settings);
    let hello = hello(&authority);
    // All of them stand there when it looks.
    gateway.signal("STOP");
    let mut sockets: Vec<TcpStream> = (0..32).map(|_| TcpStream::connect(address).expect("the kernel listens")).collect();
    sockets.iter_mut().for_each(|socket| socket.write_all(&hello).expect("the kernel takes it"));
    gateway.signal("CONT");
    let mut answered = 0;
    for socket in &mut sockets {
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut first = [0];
        match socket.read(&mut first) {
            Ok(1) => answered += usize::from(first == [22]),
            Ok(_) => panic!("it ended without a word"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    assert!((1..32).contains(&answered), "{answered} of 32 were answered");
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let refused = (32 - answered) as f64;
    assert_eq!(handshakes(&gateway, "refused"), refused);
    assert!(connect(address, &Arc::new(authority.client(&BOTH, None)), "localhost").is_ok());
}

/// Ticket keys change: a ticket of long ago is good no more, and the client is served all the same.
#[test]
fn tickets_grow_old() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let (gateway, address) = secure::start(&authority, &["a"], &[("tls.ticket_rotate_s", "1")]);
    let mut config = authority.client(&[&TLS12], None);
    config.resumption = Resumption::store(Arc::new(FirstTicket::default()));
    let config = Arc::new(config);
    welcomed(&gateway, connect(address, &config, "localhost").expect("a handshake"), "ann");
    eventually("a full handshake", || {
        let again = connect(address, &config, "localhost").expect("a handshake");
        (again.conn.handshake_kind() == Some(HandshakeKind::Full)).then_some(())
    });
}

/// A client resumes also after an attempt that came to nothing, which used up the ticket it offered, as happens when many come back at once.
#[test]
fn an_attempt_that_is_lost_leaves_a_ticket() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let (gateway, address) = secure::start(&authority, &["a"], &[]);
    let config = Arc::new(authority.client(&[&TLS13], None));
    // Whoever has been welcomed has read its tickets.
    welcomed(&gateway, connect(address, &config, "localhost").expect("a handshake"), "ann");
    drop(ClientConnection::new(Arc::clone(&config), "localhost".try_into().unwrap()).expect("a client"));
    let stream = connect(address, &config, "localhost").expect("a handshake");
    assert_eq!(stream.conn.handshake_kind(), Some(HandshakeKind::Resumed));
}

/// The end of a draining gateway is told inside TLS.
#[test]
fn a_drain_says_goodbye() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let (mut gateway, address) = secure::start(&authority, &["a"], &[]);
    let stream = connect(address, &Arc::new(authority.client(&BOTH, None)), "localhost").expect("a handshake");
    let mut socket = welcomed(&gateway, stream, "ann");
    gateway.terminate();
    let code = loop {
        if let Message::Close(frame) = socket.read().expect("a close frame") {
            break frame.map(|frame| u16::from(frame.code));
        }
    };
    assert_eq!(code, Some(1012));
    while socket.read().is_ok() {}
    assert!(gateway.wait().success());
}

/// Keeps the first ticket of TLS 1.2 for ever.
#[derive(Debug, Default)]
struct FirstTicket(Mutex<Option<Tls12ClientSessionValue>>);

impl ClientSessionStore for FirstTicket {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.lock().unwrap().get_or_insert(value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.lock().unwrap().clone()
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, _: Tls13ClientSessionValue) {}

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }
}

/// A session that has shaken hands, given and taken a message. What the client allocates is not counted.
fn rested(keys: &Keys, config: &Arc<ClientConfig>) -> Box<Session> {
    let mut client = uncounted(|| ClientConnection::new(Arc::clone(config), "localhost".try_into().unwrap()).expect("a client"));
    let mut session = Box::<Session>::default();
    let (mut plain, mut out) = (Vec::new(), Vec::new());
    for round in 0..6 {
        let mut bytes = uncounted(|| {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).expect("a vector takes all");
            }
            bytes
        });
        if session.is_handshaking() {
            if session.hold(&bytes).expect("a handshake") {
                session.step(keys, &mut plain, &mut out).expect("a handshake");
            }
        } else {
            session.receive(&mut bytes, &mut plain, &mut out).expect("good records");
            session.seal(b"to the client", &mut out).expect("it is open");
        }
        opt_out(|| {
            drop(bytes);
            let mut rest = out.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest).expect("a slice");
                client.process_new_packets().expect("good records");
            }
            if round == 4 {
                client.writer().write_all(b"to the session").expect("a buffer");
            }
        });
        out.clear();
    }
    assert!(plain == b"to the session");
    opt_out(|| drop(client));
    session
}

fn uncounted<T>(make: impl FnOnce() -> T) -> T {
    let mut made = None;
    opt_out(|| made = Some(make()));
    made.expect("made above")
}

/// Runs `tidegate ctl`; its exit code and all it said.
fn ctl(gateway: &Gateway, arguments: &[&str]) -> (Option<i32>, String) {
    let admin = gateway.admin_address().to_string();
    let output =
        Command::new(env!("CARGO_BIN_EXE_tidegate")).args(["ctl", "--admin", &admin]).args(arguments).output().expect("it runs");
    (output.status.code(), [output.stdout, output.stderr].concat().iter().copied().map(char::from).collect())
}

fn handshakes(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric(&format!("tidegate_tls_handshakes_total{{result=\"{result}\"}}"))
}

fn shown(stream: &Stream) -> CertificateDer<'static> {
    stream.conn.peer_certificates().expect("it shows one")[0].clone().into_owned()
}

/// A client without tickets.
fn fresh(authority: &Authority) -> Arc<ClientConfig> {
    Arc::new(authority.client(&BOTH, None))
}

/// Whether a client gets as far as the upgrade; a server of TLS 1.3 judges the client's certificate after the client is done.
fn is_served(gateway: &Gateway, address: SocketAddr, config: &Arc<ClientConfig>) -> bool {
    let _ = gateway;
    let Ok(mut stream) = connect(address, config, "localhost") else { return false };
    let asked = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").and_then(|()| stream.read(&mut [0; 64]));
    matches!(asked, Ok(1..))
}

/// The first bytes of a client.
fn hello(authority: &Authority) -> Vec<u8> {
    let config = Arc::new(authority.client(&BOTH, None));
    let mut client = ClientConnection::new(config, "localhost".try_into().unwrap()).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("a vector takes all");
    bytes
}

/// Sends bytes in the clear; what comes back until the end.
fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    // It may have ended the connection before the last of them.
    drop(socket.write_all(bytes));
    let mut answer = Vec::new();
    match socket.read_to_end(&mut answer) {
        Ok(_) => answer,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            answer
        }
    }
}

fn hang_up(gateway: &Gateway) {
    gateway.signal("HUP");
}

/// What a session may keep: the target, of which a page of figures says how far below it is.
const SESSION_BYTES_MAX: i64 = 8 * 1024;

/// A socket that takes and gives a few bytes at a time.
struct Pieces {
    socket: TcpStream,
    piece: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = buffer.len().min(self.piece);
        self.socket.read(&mut buffer[..most])
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.socket.write(&bytes[..bytes.len().min(self.piece)])
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.socket.flush()
    }
}
