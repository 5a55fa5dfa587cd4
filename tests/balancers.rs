//! Who a client is when balancers stand in between, through the real binary: the operator's list, the log and kicking show the client, and
//! nobody becomes somebody else by writing so.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::eventually;
use support::gateway::Gateway;
use support::peer::{Peer, status, upgrade};
use support::raw::Raw;
use support::secure::{self, Authority, BOTH};
use tidegate::wire::envelope::Encoding;

/// This machine is the balancer.
const HERE: (&str, &str) = ("proxy.networks", "127.0.0.1,2001:db8::/32");
const PROXY: (&str, &str) = ("proxy.protocol", "true");
const DEBUG: (&str, &str) = ("log.level", "debug");

/// Clients that write who they are, and whom the gateway takes them for: what is sent before the request, header lines, the answer.
/// `None`: the address of the socket.
type Case = (&'static [u8], &'static [(&'static str, &'static str)], Option<&'static str>);

const XFF: &str = "X-Forwarded-For";

/// The header of a balancer that speaks HTTP counts from its network, and from nowhere else.
#[test]
fn http_balancers_name_the_client() {
    let cases: &[Case] = &[
        (b"", &[], None),
        (b"", &[(XFF, "203.0.113.7")], Some("203.0.113.7")),
        (b"", &[(XFF, "6.6.6.6, 203.0.113.7")], Some("203.0.113.7")),
        (b"", &[(XFF, "6.6.6.6, 203.0.113.7, 127.0.0.1")], Some("203.0.113.7")),
        (b"", &[(XFF, "[2001:db9::7]:4711, 2001:db8::1")], Some("[2001:db9::7]:4711")),
        (b"", &[("Forwarded", "for=6.6.6.6")], None),
        (b"", &[("Forwarded", "for=6.6.6.6"), (XFF, "203.0.113.7")], Some("203.0.113.7")),
        (b"", &[(XFF, "unknown")], None),
    ];
    spoof(&[HERE], cases);
    let cases: &[Case] = &[
        (b"", &[(XFF, "6.6.6.6"), ("Forwarded", "for=203.0.113.7;proto=https")], Some("203.0.113.7")),
        (b"", &[("Forwarded", "for=6.6.6.6, for=\"[2001:db9::7]:4711\"")], Some("[2001:db9::7]:4711")),
        (b"", &[(XFF, "6.6.6.6")], None),
    ];
    spoof(&[HERE, ("proxy.header", "forwarded")], cases);
    spoof(&[HERE, ("proxy.header", "none")], &[(b"", &[(XFF, "6.6.6.6"), ("Forwarded", "for=6.6.6.6")], None)]);
    // Nobody, or somebody else, is a balancer.
    let strangers: &[Case] = &[(b"", &[(XFF, "6.6.6.6"), ("Forwarded", "for=6.6.6.6")], None)];
    spoof(&[], strangers);
    spoof(&[("proxy.networks", "127.0.0.8/29")], strangers);
}

/// The PROXY header of a balancer counts, in both versions; then its own words in HTTP do, and those of its client do not.
#[test]
fn proxy_headers_name_the_client() {
    let cases: &[Case] = &[
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 51234 443\r\n", &[], Some("203.0.113.7:51234")),
        (b"PROXY TCP6 2001:db9::7 ::1 51234 443\r\n", &[(XFF, "6.6.6.6")], Some("[2001:db9::7]:51234")),
        (
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f\xcb\0\x71\x07\x7f\0\0\x01\xc8\x22\x01\xbb\x04\0\0",
            &[(XFF, "6.6.6.6")],
            Some("203.0.113.7:51234"),
        ),
        // For itself, and for a balancer before it that speaks HTTP.
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", &[(XFF, "203.0.113.9")], Some("203.0.113.9")),
        (b"PROXY UNKNOWN\r\n", &[], None),
        (b"PROXY TCP6 2001:db8::1 ::1 51234 443\r\n", &[(XFF, "6.6.6.6, 203.0.113.9")], Some("203.0.113.9")),
    ];
    spoof(&[HERE, PROXY], cases);
}

/// On the port of TLS a balancer's header comes before the handshake, in one piece with it or not; the client is whom it names. A
/// handshake of a balancer without a header is cut off, and a header of anybody else is no handshake.
#[test]
fn proxy_headers_come_before_tls() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let fronts: [(&[u8], &str); 3] = [
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 51234 443\r\n", "203.0.113.7:51234"),
        (b"PROXY TCP6 2001:db9::7 ::1 51234 443\r\n", "[2001:db9::7]:51234"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f\xcb\0\x71\x07\x7f\0\0\x01\xc8\x22\x01\xbb\x04\0\0", "203.0.113.7:51234"),
    ];
    let settings = [("protocol.upgrade_ms", "60000"), PROXY];
    let (gateway, address) = secure::start(&authority, &["a"], &[&settings[..], &[HERE]].concat());
    for version in BOTH {
        let config = Arc::new(authority.client(&[version], None));
        for (front, client) in fronts {
            let together = secure::connect_behind(address, front, &config, "localhost").expect("a handshake");
            let mut apart = TcpStream::connect(address).expect("it listens");
            apart.set_nodelay(true).expect("a socket");
            front.chunks(1).for_each(|byte| apart.write_all(byte).expect("a socket"));
            let apart = secure::connect_on(apart, &[], &config, "localhost").expect("a handshake");
            for stream in [together, apart] {
                let socket = secure::welcomed(&gateway, stream, "al");
                assert_eq!(address_of(&gateway, "al"), client);
                drop(socket);
            }
        }
        assert!(secure::connect(address, &config, "localhost").is_err(), "a balancer must say for whom it comes");
    }
    eventually("the causes", || (gateway.metric("tidegate_closes_total{cause=\"proxy_header\"}") == 2.0).then_some(()));
    let strangers = [("proxy.networks", "127.0.0.8/29")];
    let (elsewhere, address) = secure::start(&authority, &["a"], &[&settings[..], &strangers].concat());
    let config = Arc::new(authority.client(&BOTH, None));
    for (front, _) in fronts {
        assert!(secure::connect_behind(address, front, &config, "localhost").is_err(), "{}", front.escape_ascii());
    }
    let stream = secure::connect(address, &config, "localhost").expect("who is no balancer needs no header");
    secure::welcomed(&elsewhere, stream, "al");
    assert_eq!(elsewhere.counted("tidegate_proxy_headers_total"), 0.0);
}

/// Opens a session per case, whole and byte by byte, and asks the operator's side who it is.
fn spoof(settings: &[(&str, &str)], cases: &[Case]) {
    let gateway = Gateway::with(&[settings, &[DEBUG]].concat());
    for (front, headers, expected) in cases {
        for is_whole in [true, false] {
            let mut stream = TcpStream::connect(gateway.listen).expect("the gateway listens");
            stream.set_nodelay(true).expect("a socket");
            front.chunks(if is_whole { 1024 } else { 1 }).for_each(|some| stream.write_all(some).expect("a socket"));
            let own = stream.local_addr().expect("a socket").to_string();
            let mut raw = Raw::open_on(stream, Encoding::Binary, headers);
            raw.hello(&gateway.token("al"), "1");
            raw.welcome();
            let address = address_of(&gateway, "al");
            assert_eq!(address, expected.unwrap_or(&own), "{headers:?} behind {}", front.escape_ascii());
            let line = format!(r#""address":"{address}""#);
            eventually("a line of the log", || {
                gateway.log().lines().any(|it| it.contains(&line) && it.contains("upgraded")).then_some(())
            });
        }
    }
}

/// The address of a user's one connection, as the operator reads it.
fn address_of(gateway: &Gateway, user: &str) -> String {
    let (code, answer) = gateway.admin("GET", &format!("/v1/connections?user={user}"), "");
    assert_eq!(code, 200, "{answer}");
    let page: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    page["connections"][0]["address"].as_str().unwrap_or_else(|| panic!("no address: {answer}")).to_owned()
}

/// Whoever is kicked by address is the client, not the balancer it came through.
#[test]
fn a_client_behind_a_balancer_is_kicked_by_its_address() {
    let gateway = Gateway::with(&[HERE]);
    let connect = |user: &str, address: &str| {
        let stream = TcpStream::connect(gateway.listen).expect("the gateway listens");
        let mut raw = Raw::open_on(stream, Encoding::Binary, &[(XFF, address)]);
        raw.hello(&gateway.token(user), "1");
        raw.welcome();
        raw
    };
    let (mut al, mut bo) = (connect("al", "203.0.113.7"), connect("bo", "203.0.113.8"));
    let (code, answer) = gateway.admin("POST", "/v1/kick", r#"{"address":"203.0.113.7"}"#);
    assert_eq!((code, answer.as_str()), (200, r#"{"closed":1}"#));
    assert_eq!(al.closed(), Some(4403));
    bo.say("d:bo:bo", "still here");
}

/// A balancer that forgets its header, bends it, or never ends it is cut off; from anywhere else such a header is no request.
#[test]
fn what_is_no_proxy_header_is_cut_off() {
    let gateway = Gateway::with(&[HERE, PROXY, ("protocol.upgrade_ms", "60000")]);
    let cut_off = |gateway: &Gateway, bytes: &[u8]| {
        let mut peer = Peer::connect(gateway.listen);
        peer.write(bytes);
        assert_eq!(peer.read_all(), b"", "{}", bytes.escape_ascii());
    };
    let request = upgrade("tidegate.v1", "");
    let wrong: &[&[u8]] = &[
        request.as_bytes(),
        b"PROXY TCP4 203.0.113.7\r\n",
        b"PROXY TCP4 203.0.113.300 127.0.0.1 1 2\r\n",
        b"\x16\x03\x01\x02\0",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        &[b'P'; 2000],
    ];
    wrong.iter().for_each(|bytes| cut_off(&gateway, bytes));
    let count = |gateway: &Gateway, cause: &str| gateway.metric(&format!("tidegate_closes_total{{cause=\"{cause}\"}}"));
    eventually("the causes", || (count(&gateway, "proxy_header") == 6.0).then_some(()));
    let hasty = Gateway::with(&[HERE, PROXY, ("protocol.upgrade_ms", "1000")]);
    cut_off(&hasty, b"PROXY TCP4 203.0.113.7 ");
    eventually("the cause", || (count(&hasty, "upgrade_timeout") == 1.0).then_some(()));
    let elsewhere = Gateway::with(&[("proxy.networks", "127.0.0.8/29"), PROXY]);
    let mut peer = Peer::connect(elsewhere.listen);
    peer.write([&b"PROXY TCP4 203.0.113.7 127.0.0.1 51234 443\r\n"[..], request.as_bytes()].concat().as_slice());
    assert_eq!(status(&peer.read_all()), 400);
    let mut peer = Peer::connect(elsewhere.listen);
    peer.write(request.as_bytes());
    assert_eq!(status(&peer.read_head()), 101, "who is no balancer needs no header");
    let mut end = [0; 1];
    drop(peer.stream.set_nonblocking(true));
    assert!(peer.stream.read(&mut end).is_err());
}

/// A PROXY header byte by byte, each soon after the last: the one deadline ends it, in both versions, on both ports, and it goes on when the
/// header is over.
#[test]
fn a_dribbled_proxy_header_is_given_up() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let (gateway, secured) = secure::start(&authority, &["a"], &[HERE, PROXY, ("protocol.upgrade_ms", "500")]);
    let closes = |cause: &str| gateway.metric(&format!("tidegate_closes_total{{cause=\"{cause}\"}}"));
    // So slowly that it is not over for want of room: 107 bytes, and 1,000.
    let text = b"PROXY TCP4 203.0.113.7 ".iter().copied().chain(std::iter::repeat(b'1'));
    let binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x03\xd8".iter().copied().chain(std::iter::repeat(0));
    for address in [gateway.listen, secured] {
        let ways: [(&mut dyn Iterator<Item = u8>, u64); 2] = [(&mut text.clone(), 80), (&mut binary.clone(), 0)];
        for (bytes, pause_ms) in ways {
            let mut peer = Peer::connect(address);
            peer.dribble(|| {
                std::thread::sleep(Duration::from_millis(pause_ms));
                vec![bytes.next().expect("it has no end")]
            });
            assert_eq!(peer.read_all(), b"");
        }
    }
    eventually("the causes", || (closes("upgrade_timeout") == 4.0).then_some(()));
    // The header ends, and what follows does not: a request head hears so, a handshake does not.
    let whole = b"PROXY TCP4 203.0.113.7 127.0.0.1 1 2\r\n";
    let mut given_up = 4.0;
    for (address, begin, heard) in
        [(gateway.listen, &b"GET /ws HTTP/1.1\r\nX: "[..], Some(408)), (secured, b"\x16\x03\x01\x3f\xff\x01", None)]
    {
        eventually("a header that is over well before the deadline", || {
            let begun = Instant::now();
            let mut peer = Peer::connect(address);
            peer.write(&whole[..whole.len() - 1]);
            peer.write(b"\n");
            let is_in_time = begun.elapsed() < Duration::from_millis(300);
            let mut rest = begin.iter().copied().chain(std::iter::repeat(b'x'));
            peer.dribble(|| vec![rest.next().expect("it has no end")]);
            let answer = peer.read_all();
            given_up += 1.0;
            is_in_time.then(|| assert_eq!(heard, (!answer.is_empty()).then(|| status(&answer))))
        });
    }
    eventually("the causes", || (closes("upgrade_timeout") == given_up).then_some(()));
    assert_eq!(closes("proxy_header"), 0.0);
}
