//! Newcomers: connections per CPU-second, against a bare accept and a canned answer.                                         [mio]
//!
//! Only the opening is measured. Connections are closed by reset between two measurements, so that nothing lingers in the kernel.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustix::net::sockopt::set_socket_linger;

use crate::client::Swarm;
use crate::idle::Greeter;
use crate::paired::{Case, Generator, Options, Sample, Team, Watch, measure};
use crate::server::{Bare, Contender, Server};

/// Both cases.
pub fn run(options: &Options) -> Result<(), String> {
    // Who never says HELLO counts as still shaking hands, of which there is a bound; the echo endpoint knows no HELLO.
    compare("full upgrade", options, &["--echo"], Until::Upgraded)?;
    // A session that nobody comes back for would be kept for two minutes; and the same devices come again and again.
    let ours = ["protocol.resume_ms=0", "protocol.hello_per_minute=0"].map(str::to_owned);
    let settings = [options.settings.as_slice(), &ours].concat();
    compare("full upgrade, HELLO and WELCOME", &Options { settings, ..options.clone() }, &[], Until::Welcomed)
}

/// How far a newcomer goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Upgraded,
    Welcomed,
}

fn compare(name: &str, options: &Options, arguments: &[&str], until: Until) -> Result<(), String> {
    if !options.wants_case(name) {
        return Ok(());
    }
    let team = |contender: Contender| {
        let server = Server::start(contender, Bare::Upgrade, options, arguments)?;
        let address = server.address;
        match server.gateway().filter(|_| until == Until::Welcomed) {
            None => Team::new(contender, server, move || Ok(Guests::Bare(Newcomers::new(address)?))),
            Some(gateway) => {
                let mint = gateway.minter()?;
                Team::new(contender, server, move || Ok(Guests::Ours { address, mint: Box::new(mint) }))
            }
        }
    };
    let teams = options.choose(OURS).into_iter().map(team).collect::<Result<_, _>>()?;
    let facts = vec![("connections_count", CONNECTIONS as f64), ("opening_count", OPENING_MAX as f64)];
    let case = Case::against_floor(name.to_owned(), "connection", facts);
    measure("upgrade", &case, teams, options)
}

/// Opens connections up to the 101, so many at a time.
struct Newcomers {
    poll: Poll,
    address: SocketAddr,
    request: Vec<u8>,
}

impl Newcomers {
    fn new(address: SocketAddr) -> Result<Self, String> {
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: tidegate.v1\r\n\r\n"
        );
        Ok(Self { poll: Poll::new().map_err(|error| error.to_string())?, address, request: request.into_bytes() })
    }

    fn open(&mut self) -> Result<Vec<TcpStream>, String> {
        let mut streams: Vec<TcpStream> = Vec::with_capacity(CONNECTIONS);
        let mut events = Events::with_capacity(1024);
        let (mut has_asked, mut is_open) = (vec![false; CONNECTIONS], vec![false; CONNECTIONS]);
        let (mut opened, mut buffer) = (0, [0; 1024]);
        let started = Instant::now();
        while opened < CONNECTIONS {
            while streams.len() < CONNECTIONS && streams.len() - opened < OPENING_MAX {
                let mut stream = TcpStream::connect(self.address).map_err(|error| format!("connect: {error}"))?;
                let token = Token(streams.len());
                let interest = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().register(&mut stream, token, interest).map_err(|error| error.to_string())?;
                streams.push(stream);
            }
            self.poll.poll(&mut events, Some(Duration::from_millis(100))).map_err(|error| error.to_string())?;
            for event in &events {
                let index = event.token().0;
                let stream = &mut streams[index];
                if event.is_readable() && !is_open[index] {
                    match stream.read(&mut buffer) {
                        Ok(count) if buffer[..count].starts_with(b"HTTP/1.1 101") => {
                            opened += 1;
                            is_open[index] = true;
                        }
                        Ok(count) => return Err(format!("refused: {}", String::from_utf8_lossy(&buffer[..count]))),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error.to_string()),
                    }
                } else if event.is_writable() && !has_asked[index] {
                    has_asked[index] = true;
                    stream.write_all(&self.request).map_err(|error| format!("request: {error}"))?;
                }
            }
            if started.elapsed() > OPEN_WAIT {
                return Err(format!("only {opened} of {CONNECTIONS} were let in"));
            }
        }
        Ok(streams)
    }
}

impl Generator for Newcomers {
    fn drive(&mut self, _: Duration, duration: Duration, watch: &mut Watch) -> Result<Sample, String> {
        rounds(duration, watch, |watch| {
            watch.begin()?;
            let streams = self.open()?;
            let sample = watch.end(CONNECTIONS as f64)?;
            streams
                .iter()
                .try_for_each(|stream| set_socket_linger(stream, Some(Duration::ZERO)))
                .map_err(|error| error.to_string())?;
            Ok(sample)
        })
    }
}

/// Newcomers that also say who they are.
enum Guests {
    Bare(Newcomers),
    Ours { address: SocketAddr, mint: Box<dyn Fn(&str) -> String> },
}

impl Generator for Guests {
    fn drive(&mut self, warm_up: Duration, duration: Duration, watch: &mut Watch) -> Result<Sample, String> {
        let (address, mint) = match self {
            Self::Bare(newcomers) => return newcomers.drive(warm_up, duration, watch),
            Self::Ours { address, mint } => (*address, mint),
        };
        rounds(duration, watch, |watch| {
            let mut greeter = Greeter::new(CONNECTIONS, &*mint);
            let mut swarm = Swarm::new(address, Some("tidegate.v1")).map_err(|error| error.to_string())?;
            watch.begin()?;
            swarm.grow(CONNECTIONS, &mut greeter)?;
            let sample = watch.end(CONNECTIONS as f64)?;
            swarm.reset()?;
            Ok(sample)
        })
    }
}

/// Opens and closes until enough was measured; gives the server time to forget in between.
fn rounds(
    duration: Duration,
    watch: &mut Watch,
    mut round: impl FnMut(&mut Watch) -> Result<Sample, String>,
) -> Result<Sample, String> {
    let mut sum: Option<Sample> = None;
    for _ in 0..ROUNDS_MAX {
        let one = round(watch)?;
        std::thread::sleep(REST);
        let before = sum.take();
        let added = match before {
            None => one,
            Some(before) => Sample {
                units: before.units + one.units,
                seconds: before.seconds + one.seconds,
                cpu_s: before.cpu_s + one.cpu_s,
                own_cpu_s: before.own_cpu_s + one.own_cpu_s,
                counted: None,
                more: one.more,
            },
        };
        if added.seconds >= duration.as_secs_f64() {
            return Ok(added);
        }
        sum = Some(added);
    }
    sum.ok_or_else(|| "nothing was measured".to_owned())
}

const OURS: &[Contender] = &[Contender::Floor, Contender::FloorAgain, Contender::Epoll, Contender::Uring];
const CONNECTIONS: usize = 8_000;
/// Connections on their way at a time.
const OPENING_MAX: usize = 256;
const OPEN_WAIT: Duration = Duration::from_secs(30);
/// The close of all of them is done by then.
const REST: Duration = Duration::from_millis(250);
const ROUNDS_MAX: usize = 3;
