//! What refusing costs: microseconds of CPU for each kind of refusal, and nanoseconds for the limits that every message passes.
//!
//! One is refused after the other, so that the gateway wakes for each: the dearest way. The time is that of all its threads.
//!
//! On the port for TLS a refusal comes before the handshake: the connection ends without a word.

use std::hint::black_box;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tidegate::session::meters::Meters;
use tidegate::session::rate::{Bucket, Rate};

use crate::Common;
use crate::client::upgrade_request;
use crate::gateway::Gateway;
use crate::results::Run;
use crate::tls::Site;

/// One kind of refusal: how the gateway is set, what is sent, and how the answer begins.
struct Case {
    name: &'static str,
    settings: &'static [&'static str],
    door: Door,
    headers: &'static str,
    /// A frame behind the request.
    frame: &'static [u8],
    /// Empty: none.
    answer: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Plain,
    Tls,
}

const CASES: [Case; 5] = [
    Case {
        name: "at_accept_429",
        settings: &["limits.address_exempt=", ONE_OF_AN_ADDRESS, "limits.address_per_s=0"],
        door: Door::Plain,
        headers: "",
        frame: b"",
        answer: "HTTP/1.1 429",
    },
    Case {
        name: "before_tls",
        settings: &["limits.address_exempt=", ONE_OF_AN_ADDRESS, "limits.address_per_s=0"],
        door: Door::Tls,
        headers: "",
        frame: b"",
        answer: "",
    },
    Case {
        name: "behind_a_balancer_429",
        settings: &["proxy.networks=127.0.0.1", ONE_OF_AN_ADDRESS, "limits.address_per_s=0"],
        door: Door::Plain,
        headers: "X-Forwarded-For: 203.0.113.7\r\n",
        frame: b"",
        answer: "HTTP/1.1 429",
    },
    Case {
        name: "origin_403",
        settings: &[],
        door: Door::Plain,
        headers: "Origin: https://evil.example\r\n",
        frame: b"",
        answer: "HTTP/1.1 403",
    },
    Case {
        name: "token_4401",
        settings: &[],
        door: Door::Plain,
        headers: "",
        // {"t":"hello","device":"1","token":"eyJhbGciOiJIUzI1NiJ9.e30.AAAA"}, masked with zeros.
        frame: b"\x81\xc2\0\0\0\0{\"t\":\"hello\",\"device\":\"1\",\"token\":\"eyJhbGciOiJIUzI1NiJ9.e30.AAAA\"}",
        answer: "HTTP/1.1 101",
    },
];

/// One measurement.
pub fn run(common: &Common) -> Result<Run, String> {
    let mut run = Run::default();
    let site = Site::new(common)?;
    for case in &CASES {
        let door: &[String] = if case.door == Door::Tls { &site.settings } else { &[] };
        let settings = case.settings.iter().map(|&setting| setting.to_owned()).chain(door.iter().cloned());
        let patient = PATIENT.map(str::to_owned).into_iter();
        let settings = common.settings.iter().cloned().chain(patient).chain(settings).collect();
        let common = Common { settings, ..common.clone() };
        let gateway = Gateway::start_apart(&common)?;
        let address = if case.door == Door::Tls { site.address } else { gateway.address };
        let named = |error: String| format!("{}: {error}", case.name);
        // The one connection that its address may have, where there is such a bound. It is let in before the others come: one of them
        // would take its place, and wait for a HELLO that nobody sends.
        let is_bounded = case.settings.contains(&ONE_OF_AN_ADDRESS);
        let _first = is_bounded.then(|| let_in(gateway.address, case)).transpose().map_err(named)?;
        for _ in 0..WARM_UP {
            expect_refusal(address, case).map_err(named)?;
        }
        let before = gateway.threads()?.total();
        for _ in 0..REFUSALS {
            expect_refusal(address, case).map_err(named)?;
        }
        let used = gateway.threads()?.total().since(before);
        run.add(format!("{}_cpu_us", case.name), used.cpu_s * 1e6 / f64::from(REFUSALS));
    }
    let rate = Rate { per_second: 65_535, burst: 65_535 };
    let meters = Meters::new(65_536);
    let mut bucket = Bucket::full(rate, 0);
    run.add("bucket_ns", nanos(|index| bucket.take(rate, u32::try_from(index).unwrap_or(u32::MAX))));
    run.add("meter_one_user_ns", nanos(|index| meters.take(7, rate, index, 0)));
    let mut own = Bucket::full(rate, 0);
    run.add(
        "limits_per_message_ns",
        nanos(|index| own.take(rate, u32::try_from(index).unwrap_or(u32::MAX)).and_then(|()| meters.take(7, rate, index, 0))),
    );
    run.add("meter_many_users_ns", nanos(|index| meters.take(index.wrapping_mul(0x9e37_79b9_7f4a_7c15), rate, index, 0)));
    Ok(run)
}

/// Connects, asks, and waits until it is let in.
fn let_in(address: SocketAddr, case: &Case) -> Result<TcpStream, String> {
    let opened = || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(ANSWER_WAIT))?;
        stream.write_all(request(case).as_bytes())?;
        let mut answer = [0; 1024];
        let count = stream.read(&mut answer)?;
        Ok::<_, std::io::Error>((stream, answer, count))
    };
    let (stream, answer, count) = opened().map_err(|error| error.to_string())?;
    if answer.starts_with(b"HTTP/1.1 101") {
        Ok(stream)
    } else {
        Err(format!("the first is not let in: {}", String::from_utf8_lossy(&answer[..count])))
    }
}

/// Once refused, in the way that the case names.
fn expect_refusal(address: SocketAddr, case: &Case) -> Result<(), String> {
    let answer = refused(address, case).map_err(|error| error.to_string())?;
    if answer.starts_with(case.answer.as_bytes()) && answer.is_empty() == case.answer.is_empty() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&answer).into_owned())
    }
}

/// Connects, asks, and reads until the gateway ends it.
fn refused(address: SocketAddr, case: &Case) -> std::io::Result<Vec<u8>> {
    // Whoever is refused at accept may be gone already, even before it knows that it is connected.
    let mut stream = match TcpStream::connect(address) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Vec::new()),
        connected => connected?,
    };
    stream.set_read_timeout(Some(ANSWER_WAIT))?;
    drop(stream.write_all(&[request(case).as_bytes(), case.frame].concat()));
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => answer.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Err(error),
            // At its end, or reset.
            _ => break,
        }
        // The code of the Close frame ends it.
        if answer.ends_with(&4401_u16.to_be_bytes()) {
            break;
        }
    }
    drop(stream.shutdown(Shutdown::Both));
    Ok(answer)
}

fn request(case: &Case) -> String {
    let request = upgrade_request("h", "/ws", Some("tidegate.v1.json"));
    let (lines, end) = request.split_at(request.len() - 2);
    format!("{lines}{}{end}", case.headers)
}

fn nanos<T>(mut take: impl FnMut(u64) -> T) -> f64 {
    let started = Instant::now();
    for index in 0..TAKES {
        black_box(take(black_box(index)));
    }
    started.elapsed().as_secs_f64() * 1e9 / TAKES as f64
}

const ONE_OF_AN_ADDRESS: &str = "limits.address_connections=1";
/// The connection that stays must outlive the case.
const PATIENT: [&str; 2] = ["protocol.upgrade_ms=60000", "protocol.hello_ms=60000"];
/// A refusal takes a fraction of a millisecond.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
const WARM_UP: u32 = 100;
const REFUSALS: u32 = 10_000;
const TAKES: u64 = 20_000_000;
