//! Groups: deliveries per CPU-second, against bare sends of as many bytes. A thousand members in one group, or in fifty.      [mio]
//!
//! One member of each group sends a burst, everybody else gets it, then comes the next burst. The gateway orders, stores and syncs each message,
//! numbers each delivery and takes acknowledgements; the bare server writes what it reads to everyone of the room, a burst in one send each. What
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
use crate::paired::{Case, Generator, Options, Sample, Team, Watch, measure};
use crate::peer::{self, Guests, Peer};
use crate::server::{Bare, Contender, Server};

/// Small groups and a large one, one message at a time and bursts.
pub fn run(options: &Options) -> Result<(), String> {
    for shape in SHAPES {
        let name = shape.name();
        if !options.wants_case(&name) {
            continue;
        }
        let team = |contender: Contender| {
            let server = Server::start(contender, Bare::Fanout { members: shape.members }, options, &[])?;
            let address = server.address;
            if let Some(peer) = peer::of(contender) {
                return Team::new(contender, server, move || {
                    Ok(Room::Strange(Box::new(StrangeRoom::open(address, peer, shape)?)))
                });
            }
            let Some(gateway) = server.gateway() else {
                return Team::new(contender, server, move || Ok(Room::Bare(BareRoom::open(address, shape)?)));
            };
            for (group, first) in shape.speakers().enumerate() {
                let members: Vec<String> = (first..first + shape.members).map(user).collect();
                gateway.post("/v1/groups", &json!({ "conv": conv(group), "members": members }))?;
            }
            let mint = gateway.minter()?;
            Team::new(contender, server, move || {
                Ok(Room::Ours(OurRoom::open(address, Greeter::new(shape.connections(), mint), shape)?))
            })
        };
        // A stranger has one room.
        let contenders = if shape.groups == 1 { ALL } else { OURS };
        let teams = options.choose(contenders).into_iter().map(team).collect::<Result<_, _>>()?;
        let facts = vec![
            ("members_count", shape.members as f64),
            ("groups_count", shape.groups as f64),
            ("burst_count", shape.burst as f64),
            ("payload_bytes", PAYLOAD_BYTES as f64),
        ];
        measure("fanout", &Case::against_floor(name, "delivery", facts), teams, options)?;
    }
    Ok(())
}

/// How many speak to how many.
#[derive(Clone, Copy, Debug)]
struct Shape {
    groups: usize,
    /// Of each group, with the one who sends.
    members: usize,
    /// Messages of each group at a time.
    burst: usize,
}

impl Shape {
    fn name(self) -> String {
        let Self { groups, members, burst } = self;
        if groups == 1 {
            format!("{members} members, {burst} at a time")
        } else {
            format!("{members} members in each of {groups} groups, {burst} at a time")
        }
    }

    fn connections(self) -> usize {
        self.groups * self.members
    }

    /// The first member of each group.
    fn speakers(self) -> impl Iterator<Item = usize> {
        (0..self.connections()).step_by(self.members)
    }

    /// Deliveries of one burst of everybody who speaks.
    fn deliveries(self) -> usize {
        self.groups * (self.members - 1) * self.burst
    }
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
    shape: Shape,
    buffer: Vec<u8>,
}

impl BareRoom {
    fn open(address: SocketAddr, shape: Shape) -> Result<Self, String> {
        let poll = Poll::new().map_err(|error| error.to_string())?;
        let open = |index| {
            let stream = std::net::TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(index), Interest::READABLE)?;
            Ok(stream)
        };
        let streams =
            (0..shape.connections()).map(open).collect::<std::io::Result<Vec<_>>>().map_err(|error| error.to_string())?;
        // The server has accepted them all when it has answered the last.
        std::thread::sleep(Duration::from_millis(200));
        Ok(Self { poll, events: Events::with_capacity(1024), streams, shape, buffer: vec![0; 64 * 1024] })
    }

    fn burst(&mut self) -> Result<u64, String> {
        let bytes = vec![b'f'; self.shape.burst * DELIVERED_BYTES];
        for speaker in self.shape.speakers() {
            self.streams[speaker].write_all(&bytes).map_err(|error| format!("send: {error}"))?;
        }
        let mut left = self.shape.deliveries() * DELIVERED_BYTES;
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
        Ok(self.shape.deliveries() as u64)
    }
}

/// Members of groups; the first one of each sends.
struct OurRoom {
    swarm: Swarm,
    listeners: Listeners,
    shape: Shape,
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
    fn open(address: SocketAddr, greeter: Greeter, shape: Shape) -> Result<Self, String> {
        let mut listeners =
            Listeners { greeter, unacked: vec![0; shape.connections()], delivered_count: 0, acknowledged_count: 0 };
        let mut swarm = Swarm::new(address, Some("tidegate.v1")).map_err(|error| error.to_string())?;
        swarm.grow(shape.connections(), &mut listeners)?;
        Ok(Self { swarm, listeners, shape, sent_count: 0 })
    }

    fn burst(&mut self) -> Result<u64, String> {
        let before = (self.listeners.delivered_count, self.listeners.acknowledged_count);
        let count = self.shape.deliveries() as u64;
        let first = self.sent_count;
        self.sent_count += u32::try_from(self.shape.burst).map_err(|error| error.to_string())?;
        for (group, speaker) in self.shape.speakers().enumerate() {
            // Frames of one message arrive together.
            let write = |bytes: &mut Vec<u8>| (first..self.sent_count).for_each(|number| write_send(group, number, bytes));
            self.swarm.send(speaker, write)?;
        }
        let (delivered, acknowledged) = (before.0 + count, before.1 + (self.shape.groups * self.shape.burst) as u64);
        let started = Instant::now();
        while self.listeners.delivered_count < delivered || self.listeners.acknowledged_count < acknowledged {
            if started.elapsed() > BURST_WAIT {
                return Err(format!("{} deliveries of a burst did not come", delivered - self.listeners.delivered_count));
            }
            self.swarm.turn(Duration::from_millis(100), &mut self.listeners)?;
        }
        Ok(count)
    }
}

/// Members of a room of a stranger; the first one sends.
struct StrangeRoom {
    swarm: Swarm,
    guests: Guests,
    shape: Shape,
}

impl StrangeRoom {
    fn open(address: SocketAddr, peer: Box<dyn Peer>, shape: Shape) -> Result<Self, String> {
        let swarm = Swarm::at(address, peer.path(), peer.subprotocol());
        let mut swarm = swarm.map_err(|error| error.to_string())?;
        let mut guests = Guests::new(peer);
        swarm.grow(shape.members, &mut guests)?;
        Ok(Self { swarm, guests, shape })
    }

    fn burst(&mut self) -> Result<u64, String> {
        let Shape { members, burst, .. } = self.shape;
        let receivers = if self.guests.peer.hears_itself() { members } else { members - 1 };
        let count = (receivers * burst) as u64;
        let wanted = self.guests.delivered_count + count;
        self.swarm.say(0, |out| self.guests.peer.publish(burst, &[b'f'; PAYLOAD_BYTES], out))?;
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

fn conv(group: usize) -> String {
    format!("g:room-{group}")
}

fn write_send(group: usize, number: u32, bytes: &mut Vec<u8>) {
    let send = Send {
        rid: number + 1,
        cmid: Cmid(u128::from(number + 1).to_be_bytes()),
        flags: 0,
        kind: 1,
        ttl_s: 0,
        trace: None,
        conv: conv(group).into(),
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
const OURS: &[Contender] = &[Contender::Floor, Contender::FloorAgain, Contender::Epoll, Contender::Uring];
/// A group of more than a thousand would be told by NOTICE.
const SHAPES: [Shape; 4] = [
    Shape { groups: 50, members: 20, burst: 1 },
    Shape { groups: 50, members: 20, burst: 16 },
    Shape { groups: 1, members: 1_000, burst: 1 },
    Shape { groups: 1, members: 1_000, burst: 16 },
];
const PAYLOAD_BYTES: usize = 200;
/// What one delivery of such a message is on the wire.
const DELIVERED_BYTES: usize = 260;
const ACK_EVERY: u32 = 64;
const BURST_WAIT: Duration = Duration::from_secs(10);
