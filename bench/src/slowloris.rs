//! Slowloris: thousands of connections that send one byte of a request head per second. What each costs before it is authenticated, and
//! how long honest newcomers take meanwhile, from the intended time to WELCOME.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::sched::{CloneFlags, unshare};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, connect, send, socket_with};
use rustix::process::nice;

use crate::Common;
use crate::client::{OPENING_WAIT, greet, resets};
use crate::gateway::{Gateway, metric_sum};
use crate::idle::user;
use crate::pace::nanos;
use crate::results::Run;

/// One measurement: honest newcomers alone, then beside `--connections` slow ones.
pub fn run(common: &Common) -> Result<Run, String> {
    let slow = common.connections;
    // All of them are to be held at once: what bounds them in number, or in time, is set aside.
    let lifted = [
        // Two descriptor tables hold them, where one does not.
        "reactors=2".to_owned(),
        format!("limits.connections_max={}", slow + HONEST_ROOM),
        format!("limits.handshakes_max={}", slow + HONEST_ROOM),
        "limits.accept_per_s=0".to_owned(),
        "protocol.upgrade_ms=60000".to_owned(),
        // Whoever left is forgotten, so that only the slow ones grow in number.
        "protocol.resume_ms=0".to_owned(),
    ];
    let settings = lifted.into_iter().chain(common.settings.iter().cloned()).collect();
    let gateway = Gateway::start_apart(&Common { settings, ..common.clone() })?;
    let mut honest = Honest { gateway: &gateway, mint: gateway.minter()?, number: 0 };
    honest.come(common.warm_up())?;
    let alone = honest.come(common.duration())?;
    let empty = gateway.memory()?.pss;
    let cpu = gateway.cpu_total()?;
    let flood = Flood::start(gateway.address, slow)?;
    let opening_s = gateway.cpu_total()? - cpu;
    honest.come(common.warm_up())?;
    let (cpu, sent) = (gateway.cpu_total()?, flood.sent());
    let beside = honest.come(common.duration())?;
    let (flood_s, sent) = (gateway.cpu_total()? - cpu, flood.sent() - sent);
    let full = gateway.memory()?.pss;
    let held = metric_sum(&gateway.metrics()?, "tidegate_handshakes_open");
    if held < slow as f64 {
        return Err(format!("{held} slow connections are held, not {slow}"));
    }
    flood.stop()?;
    let mut run = Run::default();
    let us = |histogram: &Histogram<u64>, quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    run.add("slow_connections_count", held);
    run.add("pss_bytes_per_slow_connection", (full as f64 - empty as f64) / held);
    run.add("open_cpu_us_per_slow_connection", opening_s * 1e6 / held);
    run.add("bytes_per_slow_connection_and_s", sent as f64 / held / common.seconds);
    run.add("cpu_percent_beside", 100.0 * flood_s / common.seconds);
    run.add("honest_alone_us_p50", us(&alone, 0.5));
    run.add("honest_alone_us_p99", us(&alone, 0.99));
    run.add("honest_beside_us_p50", us(&beside, 0.5));
    run.add("honest_beside_us_p99", us(&beside, 0.99));
    run.add("honest_p99_ratio", us(&beside, 0.99) / us(&alone, 0.99));
    Ok(run)
}

/// Connections that one descriptor table of this program has to hold.
pub fn per_table(common: &Common) -> usize {
    common.connections.div_ceil(FLOOD_THREADS)
}

/// Newcomers at an even rate, each a user of its own that says HELLO and leaves.
struct Honest<'a, M> {
    gateway: &'a Gateway,
    mint: M,
    number: usize,
}

impl<M: Fn(&str) -> String> Honest<'_, M> {
    /// Nanoseconds from the intended time to WELCOME.
    fn come(&mut self, duration: Duration) -> Result<Histogram<u64>, String> {
        let mut latencies = Histogram::new(3).map_err(|error| error.to_string())?;
        let begun = Instant::now();
        for turn in 0.. {
            let intended = begun + HONEST_EVERY * turn;
            if intended - begun >= duration {
                break;
            }
            std::thread::sleep(intended.saturating_duration_since(Instant::now()));
            self.number += 1;
            let token = (self.mint)(&user(self.number));
            let mut stream = TcpStream::connect(self.gateway.address).map_err(|error| error.to_string())?;
            let greeted = stream.set_read_timeout(Some(OPENING_WAIT)).and_then(|()| greet(&mut stream, "localhost", &token));
            greeted.map_err(|error| format!("an honest newcomer: {error}"))?;
            latencies.record(nanos(intended.elapsed())).map_err(|error| error.to_string())?;
            resets(&stream).map_err(|error| error.to_string())?;
        }
        Ok(latencies)
    }
}

/// The slow ones, on threads with descriptor tables of their own.
struct Flood {
    threads: Vec<JoinHandle<Result<(), String>>>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    opened: AtomicUsize,
    /// Bytes.
    sent: AtomicUsize,
    is_over: AtomicBool,
}

impl Flood {
    /// Returns when all stand and have sent their first byte.
    fn start(address: SocketAddr, count: usize) -> Result<Self, String> {
        let counts = Arc::new(Counts::default());
        let threads = (0..FLOOD_THREADS).map(|thread| {
            let part = (count + thread) / FLOOD_THREADS;
            let counts = Arc::clone(&counts);
            std::thread::spawn(move || dribble(address, part, &counts))
        });
        let flood = Self { threads: threads.collect(), counts };
        while flood.counts.opened.load(Ordering::Relaxed) < count {
            if flood.threads.iter().any(JoinHandle::is_finished) {
                flood.stop()?;
                return Err("a thread of the flood ended early".to_owned());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(flood)
    }

    fn sent(&self) -> usize {
        self.counts.sent.load(Ordering::Relaxed)
    }

    fn stop(self) -> Result<(), String> {
        self.counts.is_over.store(true, Ordering::Relaxed);
        self.threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked".to_owned())?)
    }
}

/// Opens `count` connections and sends a byte on each of them every second, spread evenly over it.
fn dribble(address: SocketAddr, count: usize, counts: &Counts) -> Result<(), String> {
    unshare(CloneFlags::CLONE_FILES).map_err(|error| format!("a descriptor table: {error}"))?;
    // The honest are measured, on the same core: they go first.
    nice(19).map_err(|error| format!("nice: {error}"))?;
    let mut streams = Vec::with_capacity(count);
    for index in 0..count {
        streams.push(connect_from(source(index), address).map_err(|error| format!("slow connection {index}: {error}"))?);
        counts.opened.fetch_add(1, Ordering::Relaxed);
        if index % OPENED_AT_ONCE == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let begun = Instant::now();
    let mut head = HEAD.bytes().chain(std::iter::repeat(b'x'));
    for second in 0.. {
        let byte = [head.next().expect("it has no end")];
        for (index, stream) in streams.iter().enumerate() {
            if index % SENT_AT_ONCE == 0 {
                let due = begun + Duration::from_secs_f64(f64::from(second) + index as f64 / count as f64);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            if counts.is_over.load(Ordering::Relaxed) {
                return streams.iter().try_for_each(resets).map_err(|error| error.to_string());
            }
            match send(stream, &byte, SendFlags::NOSIGNAL) {
                Ok(_) | Err(Errno::INTR) => {
                    counts.sent.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => return Err(format!("slow connection {index} after {second} s: {error}")),
            }
        }
    }
    Ok(())
}

/// The slow ones come from addresses of their own: while 20,000 of the ports of one address are taken, the kernel looks at thousands of
/// them for each further connection from there, and that would be measured with the honest ones.
fn source(index: usize) -> Ipv4Addr {
    let number = u8::try_from(index % FLOOD_SOURCES).expect("there are few");
    Ipv4Addr::new(127, 0, 1, 1 + number)
}

fn connect_from(source: Ipv4Addr, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddr::from((source, 0)))?;
    connect(&socket, &address)?;
    Ok(TcpStream::from(socket))
}

/// What a slow one begins with; its last header never ends.
const HEAD: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nX-Slow: ";
/// Connections beside the slow ones.
const HONEST_ROOM: usize = 5_000;
const HONEST_EVERY: Duration = Duration::from_millis(10);
const FLOOD_THREADS: usize = 2;
const FLOOD_SOURCES: usize = 8;
const OPENED_AT_ONCE: usize = 4;
const SENT_AT_ONCE: usize = 16;
