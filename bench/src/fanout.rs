//! A group of a thousand: deliveries per CPU-second, against bare sends of as many bytes.                                    [mio]
//!
//! One member sends a burst, everybody else gets it, then comes the next burst. The gateway orders, stores and syncs each message,
//! numbers each delivery and takes acknowledgements; the bare server writes what it reads to everyone, a burst in one send each. What
//! all threads of the gateway use is counted. Strangers pass messages on from memory: no order over several senders, nothing stored.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde_json::json;
use tidegate::ids::Cmid;
use tidegate::wire::envelope::{ClientFrame, Encoding, Send, ServerFrame, encode_client};

use crate::client::{Outbox, Ready, Script, Swarm, acknowledge, each_frame};
use crate::idle::{Greeter, user};
use crate::paired::{Case, Generator, Options, Per, Sample, Team, Watch, measure};
use crate::peer::{self, Guests, Peer};
use crate::server::{Bare, Contender, Server};

/// One message at a time, and bursts.
pub fn run(options: &Options) -> Result<(), String> {
    for burst in [1, 16] {
        let name = format!("{MEMBERS} members, {burst} at a time");
        if !options.wants_case(&name) {
            continue;
        }
        let team = |contender: Contender| {
            let server = Server::start(contender, Bare::Fanout, options, &[])?;
            let address = server.address;
            if let Some(peer) = peer::of(contender) {
                return Team::new(contender, server, move || {
                    Ok(Room::Strange(Box::new(StrangeRoom::open(address, peer, burst)?)))
                });
            }
            let Some(gateway) = server.gateway() else {
                return Team::new(contender, server, move || Ok(Room::Bare(BareRoom::open(address, burst)?)));
            };
            let members: Vec<String> = (0..MEMBERS).map(user).collect();
            gateway.post("/v1/groups", &json!({ "conv": CONV, "members": members }))?;
            let mint = gateway.minter()?;
            Team::new(contender, server, move || Ok(Room::Ours(OurRoom::open(address, Greeter::new(MEMBERS, mint), burst)?)))
        };
        let teams = options.choose(ALL).into_iter().map(team).collect::<Result<_, _>>()?;
        let facts =
            vec![("members_count", MEMBERS as f64), ("burst_count", burst as f64), ("payload_bytes", PAYLOAD_BYTES as f64)];
        measure(
            "fanout",
            &Case { name, unit: "delivery", facts, reference: Contender::Floor, per: Per::CpuSecond },
            teams,
            options,
        )?;
    }
    Ok(())
}

enum Room {
    Bare(BareRoom),
    Ours(OurRoom),
    Strange(Box<StrangeRoom>),
}

impl Generator for Room {
    fn drive(&mut self, warm_up: Duration, duration: Duration, watch: &mut Watch) -> Result<Sample, String> {
        let mut bursts = |duration: Duration| -> Result<u64, String> {
            let (started, mut count) = (Instant::now(), 0);
            while started.elapsed() < duration {
                count += match self {
                    Self::Bare(room) => room.burst()?,
                    Self::Ours(room) => room.burst()?,
                    Self::Strange(room) => room.burst()?,
                };
            }
            Ok(count)
        };
        bursts(warm_up)?;
        watch.begin()?;
        let count = bursts(duration)?;
        watch.end(count as f64)
    }
}

/// Readers of a bare server; the first one sends.
struct BareRoom {
    poll: Poll,
    events: Events,
    streams: Vec<TcpStream>,
    burst: usize,
    buffer: Vec<u8>,
}

impl BareRoom {
    fn open(address: SocketAddr, burst: usize) -> Result<Self, String> {
        let poll = Poll::new().map_err(|error| error.to_string())?;
        let open = |index| {
            let stream = std::net::TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(index), Interest::READABLE)?;
            Ok(stream)
        };
        let streams = (0..MEMBERS).map(open).collect::<std::io::Result<Vec<_>>>().map_err(|error| error.to_string())?;
        // The server has accepted them all when it has answered the last.
        std::thread::sleep(Duration::from_millis(200));
        Ok(Self { poll, events: Events::with_capacity(1024), streams, burst, buffer: vec![0; 64 * 1024] })
    }

    fn burst(&mut self) -> Result<u64, String> {
        let bytes = vec![b'f'; self.burst * DELIVERED_BYTES];
        self.streams[0].write_all(&bytes).map_err(|error| format!("send: {error}"))?;
        let mut left = (MEMBERS - 1) * bytes.len();
        let started = Instant::now();
        while left > 0 {
            if started.elapsed() > BURST_WAIT {
                return Err(format!("{left} bytes of a burst did not come"));
            }
            match self.poll.poll(&mut self.events, Some(Duration::from_millis(100))) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(format!("poll: {error}")),
                _ => {}
            }
            for event in &self.events {
                loop {
                    match self.streams[event.token().0].read(&mut self.buffer) {
                        Ok(0) => return Err("the server closed a connection".to_owned()),
                        Ok(count) => left -= count,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error.to_string()),
                    }
                }
            }
        }
        Ok(((MEMBERS - 1) * self.burst) as u64)
    }
}

/// Members of a group; the first one sends.
struct OurRoom {
    swarm: Swarm,
    listeners: Listeners,
    burst: usize,
    sent_count: u32,
}

/// What members do with what comes.
struct Listeners {
    greeter: Greeter,
    /// Deliveries since the last acknowledgement, of each.
    unacked: Vec<u32>,
    delivered_count: u64,
    acknowledged_count: u64,
}

impl OurRoom {
    fn open(address: SocketAddr, greeter: Greeter, burst: usize) -> Result<Self, String> {
        let mut listeners = Listeners { greeter, unacked: vec![0; MEMBERS], delivered_count: 0, acknowledged_count: 0 };
        let mut swarm = Swarm::new(address, Some("tidegate.v1")).map_err(|error| error.to_string())?;
        swarm.grow(MEMBERS, &mut listeners)?;
        Ok(Self { swarm, listeners, burst, sent_count: 0 })
    }

    fn burst(&mut self) -> Result<u64, String> {
        let before = (self.listeners.delivered_count, self.listeners.acknowledged_count);
        let count = (MEMBERS - 1) * self.burst;
        let first = self.sent_count;
        self.sent_count += u32::try_from(self.burst).map_err(|error| error.to_string())?;
        // Frames of one message arrive together.
        self.swarm.send(0, |bytes| (first..self.sent_count).for_each(|number| write_send(number, bytes)))?;
        let (delivered, acknowledged) = (before.0 + count as u64, before.1 + self.burst as u64);
        let started = Instant::now();
        while self.listeners.delivered_count < delivered || self.listeners.acknowledged_count < acknowledged {
            if started.elapsed() > BURST_WAIT {
                return Err(format!("{} deliveries of a burst did not come", delivered - self.listeners.delivered_count));
            }
            self.swarm.turn(Duration::from_millis(100), &mut self.listeners)?;
        }
        Ok(count as u64)
    }
}

/// Members of a room of a stranger; the first one sends.
struct StrangeRoom {
    swarm: Swarm,
    guests: Guests,
    burst: usize,
}

impl StrangeRoom {
    fn open(address: SocketAddr, peer: Box<dyn Peer>, burst: usize) -> Result<Self, String> {
        let swarm = Swarm::at(address, peer.path(), peer.subprotocol());
        let mut swarm = swarm.map_err(|error| error.to_string())?;
        let mut guests = Guests::new(peer);
        swarm.grow(MEMBERS, &mut guests)?;
        Ok(Self { swarm, guests, burst })
    }

    fn burst(&mut self) -> Result<u64, String> {
        let receivers = if self.guests.peer.hears_itself() { MEMBERS } else { MEMBERS - 1 };
        let count = (receivers * self.burst) as u64;
        let wanted = self.guests.delivered_count + count;
        self.swarm.say(0, |out| self.guests.peer.publish(self.burst, &[b'f'; PAYLOAD_BYTES], out))?;
        let started = Instant::now();
        while self.guests.delivered_count < wanted {
            if started.elapsed() > BURST_WAIT {
                return Err(format!("{} deliveries of a burst did not come", wanted - self.guests.delivered_count));
            }
            self.swarm.turn(Duration::from_millis(100), &mut self.guests)?;
        }
        Ok(count)
    }
}

fn write_send(number: u32, bytes: &mut Vec<u8>) {
    let send = Send {
        rid: number + 1,
        cmid: Cmid(u128::from(number + 1).to_be_bytes()),
        flags: 0,
        kind: 1,
        ttl_s: 0,
        trace: None,
        conv: CONV.into(),
        payload: (&[b'f'; PAYLOAD_BYTES][..]).into(),
    };
    encode_client(Encoding::Binary, &ClientFrame::Send(send), bytes);
}

impl Script for Listeners {
    fn opened(&mut self, index: usize, out: &mut Outbox<'_>) -> Ready {
        self.greeter.hello(index, 4096, out);
        Ready::NotYet
    }

    fn message(&mut self, index: usize, payload: &[u8], out: &mut Outbox<'_>) -> Result<Ready, String> {
        each_frame(index, payload, |frame| {
            match frame {
                ServerFrame::Deliver(deliver) => {
                    self.delivered_count += 1;
                    self.unacked[index] += 1;
                    if self.unacked[index] == ACK_EVERY {
                        self.unacked[index] = 0;
                        acknowledge(deliver.pos, out);
                    }
                }
                ServerFrame::Sent { .. } => self.acknowledged_count += 1,
                ServerFrame::Welcome(_) => return Ok(Ready::Yes),
                ServerFrame::Conv { .. } => {}
                other => return Err(format!("connection {index}: unexpected {other:?}")),
            }
            Ok(Ready::NotYet)
        })
    }
}

const ALL: &[Contender] = &[
    Contender::Floor,
    Contender::FloorAgain,
    Contender::Epoll,
    Contender::Uring,
    Contender::NatsRelay,
    Contender::Centrifugo,
    Contender::Nchan,
];
const CONV: &str = "g:room";
/// With the one who sends. A larger group would be told by NOTICE.
const MEMBERS: usize = 1_000;
const PAYLOAD_BYTES: usize = 200;
/// What one delivery of such a message is on the wire.
const DELIVERED_BYTES: usize = 260;
const ACK_EVERY: u32 = 64;
const BURST_WAIT: Duration = Duration::from_secs(10);
