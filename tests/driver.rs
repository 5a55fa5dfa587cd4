//! What every driver must do, over real loopback sockets: the suite is generic, and each driver joins it by one line at the foot.
//!
//! Nothing here asserts how long something takes. Each wait has an end, [`PATIENCE`], so that a driver which forgets an event
//! fails instead of hanging.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use tidegate::ids::ConnectionId;
use tidegate::io::driver::{Close, Door, Driver, Flow, Sent, Sink};
use tidegate::io::epoll::Epoll;
use tidegate::io::socket::{Listener, Socket};
use tidegate::io::uring::{Sizes, Uring};
use tidegate::io::wake::Waker;
use tidegate::limits;

const PATIENCE: Duration = Duration::from_secs(60);

type Make<D> = fn(Listener) -> D;

/// A server: a driver and the sink that records what it says.
struct Server<D> {
    driver: D,
    address: SocketAddr,
    core: Core,
}

/// The sink. Attaches whatever is accepted; what else it does is set by the test.
#[derive(Default)]
struct Core {
    /// Every connection ever, in order of acceptance.
    connections: Vec<Connection>,
    by_id: HashMap<ConnectionId, usize>,
    vacant: Vec<ConnectionId>,
    /// Send back what arrives.
    echo: bool,
    /// Answer the first bytes of each connection with `Pause`.
    pause_first: bool,
    /// Keep a copy of the descriptor of each newcomer.
    duplicate: bool,
    duplicates: Vec<OwnedFd>,
    accept_failures: Vec<Duration>,
    /// Switch accepting off after so many.
    accepts_left: Option<u32>,
    /// Guards the rule that `closed` never comes out of a call of ours.
    inside_call: bool,
}

struct Connection {
    id: ConnectionId,
    received: Vec<u8>,
    deliveries: usize,
    out: Vec<u8>,
    out_offset: usize,
    waiting: bool,
    writables: usize,
    blocks: usize,
    paused: bool,
    eofs: usize,
    failures: Vec<io::Error>,
    closing: bool,
    closed: bool,
    close_after_flush: bool,
}

impl Core {
    fn connection(&mut self, id: ConnectionId) -> &mut Connection {
        let at = *self.by_id.get(&id).expect("an event for a connection that lives");
        &mut self.connections[at]
    }

    /// Offers the queue until it is empty or the kernel is full.
    fn flush<D: Driver>(&mut self, driver: &mut D, id: ConnectionId) {
        while let connection = self.connection(id)
            && !connection.waiting
            && !connection.closing
            && connection.out_offset < connection.out.len()
        {
            // Two vectors, so that partial writes end in the first and in the second.
            let rest = &connection.out[connection.out_offset..];
            let (first, second) = rest.split_at(rest.len().min(1000));
            match driver.send(id, &[IoSlice::new(first), IoSlice::new(second)]) {
                Sent::Done(count) => connection.out_offset += count,
                Sent::Blocked => {
                    connection.waiting = true;
                    connection.blocks += 1;
                }
                Sent::Pending => connection.waiting = true,
                Sent::Failed(error) => {
                    connection.failures.push(error);
                    self.close(driver, id, Close::Abort);
                }
            }
        }
        let connection = self.connection(id);
        if connection.close_after_flush && connection.out_offset == connection.out.len() {
            self.close(driver, id, Close::Graceful);
        }
    }

    fn close<D: Driver>(&mut self, driver: &mut D, id: ConnectionId, how: Close) {
        self.connection(id).closing = true;
        self.inside_call = true;
        driver.close(id, how);
        self.inside_call = false;
    }
}

impl<D: Driver> Sink<D> for Core {
    fn accepted(&mut self, driver: &mut D, socket: Socket, _: Door) {
        let fresh = ConnectionId { index: u32::try_from(self.by_id.len()).unwrap(), generation: 0 };
        let id = self.vacant.pop().unwrap_or(fresh);
        if self.duplicate {
            self.duplicates.push(socket.as_fd().try_clone_to_owned().unwrap());
        }
        driver.attach(id, socket).unwrap();
        if let Some(left) = &mut self.accepts_left {
            *left -= 1;
            if *left == 0 {
                driver.accept(false);
            }
        }
        self.by_id.insert(id, self.connections.len());
        self.connections.push(Connection {
            id,
            received: Vec::new(),
            deliveries: 0,
            out: Vec::new(),
            out_offset: 0,
            waiting: false,
            writables: 0,
            blocks: 0,
            paused: false,
            eofs: 0,
            failures: Vec::new(),
            closing: false,
            closed: false,
            close_after_flush: false,
        });
    }

    fn bytes(&mut self, driver: &mut D, id: ConnectionId, bytes: &mut [u8]) -> Flow {
        let (echo, pause_first) = (self.echo, self.pause_first);
        let connection = self.connection(id);
        assert!(!bytes.is_empty(), "the end is told by `eof`");
        assert!(!connection.paused && !connection.closing && connection.eofs == 0, "bytes out of season");
        connection.received.extend_from_slice(bytes);
        connection.deliveries += 1;
        connection.paused = pause_first && connection.deliveries == 1;
        let flow = if connection.paused { Flow::Pause } else { Flow::Continue };
        if echo {
            connection.out.extend_from_slice(bytes);
            self.flush(driver, id);
        }
        flow
    }

    fn eof(&mut self, _: &mut D, id: ConnectionId) {
        let connection = self.connection(id);
        assert!(!connection.closing);
        connection.eofs += 1;
    }

    fn sent(&mut self, driver: &mut D, id: ConnectionId, result: io::Result<usize>) {
        let connection = self.connection(id);
        assert!(connection.waiting);
        connection.waiting = false;
        match result {
            Ok(count) => connection.out_offset += count,
            Err(error) => connection.failures.push(error),
        }
        self.flush(driver, id);
    }

    fn writable(&mut self, driver: &mut D, id: ConnectionId) {
        let connection = self.connection(id);
        assert!(connection.waiting, "nobody asked");
        connection.waiting = false;
        connection.writables += 1;
        self.flush(driver, id);
    }

    fn failed(&mut self, driver: &mut D, id: ConnectionId, error: io::Error) {
        self.connection(id).failures.push(error);
        self.close(driver, id, Close::Abort);
    }

    fn closed(&mut self, _: &mut D, id: ConnectionId) {
        assert!(!self.inside_call, "`closed` came out of a call of the core");
        let connection = self.connection(id);
        assert!(connection.closing && !connection.closed);
        connection.closed = true;
        self.by_id.remove(&id);
        self.vacant.push(ConnectionId { generation: id.generation + 1, ..id });
    }

    fn accept_failed(&mut self, _: &mut D, _: io::Error, retry: Duration) {
        self.accept_failures.push(retry);
    }
}

impl<D: Driver> Server<D> {
    fn new(make: Make<D>) -> Self {
        let listener = Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 128).unwrap();
        let address = listener.local_address().unwrap();
        Self { driver: make(listener), address, core: Core::default() }
    }

    fn echo(make: Make<D>) -> Self {
        let mut server = Self::new(make);
        server.core.echo = true;
        server
    }

    fn turn(&mut self, max_wait: Duration) {
        self.driver.turn(max_wait, &mut self.core).unwrap();
    }

    /// Turns until `done`.
    fn until(&mut self, what: &str, mut done: impl FnMut(&Core) -> bool) {
        let started = Instant::now();
        while !done(&self.core) {
            assert!(started.elapsed() < PATIENCE, "never came: {what}");
            self.turn(Duration::from_millis(20));
        }
    }

    /// Enough turns for whatever was going to happen to have happened.
    fn settle(&mut self) {
        for _ in 0..5 {
            self.turn(Duration::from_millis(10));
        }
    }

    fn connect(&mut self) -> (TcpStream, ConnectionId) {
        let count = self.core.connections.len();
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        self.until("accept", |core| core.connections.len() > count);
        (client, self.core.connections[count].id)
    }

    fn queue(&mut self, id: ConnectionId, bytes: &[u8]) {
        self.core.connection(id).out.extend_from_slice(bytes);
        self.core.flush(&mut self.driver, id);
    }

    fn close(&mut self, id: ConnectionId, how: Close) {
        self.core.close(&mut self.driver, id, how);
    }
}

/// Small, seeded, good enough to cut bytes into odd pieces.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % bound
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| u8::try_from(self.below(256)).unwrap()).collect()
    }
}

/// The connection made `nth`, as the server saw it.
macro_rules! nth {
    ($server:expr, $nth:expr) => {
        $server.core.connections[$nth]
    };
}

/// Twelve clients write odd pieces while they read the echo, the server pauses and resumes at random, then everyone half-closes:
/// every byte comes back, in order, and every connection ends.
fn no_byte_is_lost_or_reordered<D: Driver>(make: Make<D>) {
    const CLIENTS: usize = 12;
    for seed in 1..=3_u64 {
        let mut server = Server::echo(make);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let address = server.address;
                std::thread::spawn(move || talk(address, seed * 1000 + client as u64))
            })
            .collect();
        let mut random = Random(seed);
        let started = Instant::now();
        while server.core.connections.len() < CLIENTS || server.core.connections.iter().any(|connection| !connection.closed) {
            assert!(started.elapsed() < PATIENCE, "bytes or ends are missing, seed {seed}");
            server.turn(Duration::from_millis(5));
            for at in 0..server.core.connections.len() {
                let connection = &mut server.core.connections[at];
                let id = connection.id;
                if connection.closing || connection.close_after_flush {
                    continue;
                }
                if connection.paused || random.below(8) == 0 {
                    connection.paused = !connection.paused;
                    match connection.paused {
                        true => server.driver.pause_recv(id),
                        false => server.driver.resume_recv(id),
                    }
                } else if connection.eofs == 1 {
                    connection.close_after_flush = true;
                    server.core.flush(&mut server.driver, id);
                }
            }
        }
        clients.into_iter().for_each(|client| client.join().unwrap());
        assert!(server.core.connections.iter().all(|connection| connection.failures.is_empty()));
        assert!(server.core.connections.iter().all(|connection| connection.writables == connection.blocks));
    }
}

fn talk(address: SocketAddr, seed: u64) {
    let mut random = Random(seed);
    let count = 200_000 + random.below(1000);
    let said = random.bytes(count);
    let mut writer = TcpStream::connect(address).unwrap();
    let mut reader = writer.try_clone().unwrap();
    let listening = std::thread::spawn(move || {
        let mut heard = Vec::new();
        reader.read_to_end(&mut heard).map(|_| heard)
    });
    let mut rest = said.as_slice();
    while !rest.is_empty() {
        let (piece, next) = rest.split_at((1 + random.below(30_000)).min(rest.len()));
        writer.write_all(piece).unwrap();
        rest = next;
        if random.below(4) == 0 {
            std::thread::sleep(Duration::from_micros(random.below(2000) as u64));
        }
    }
    writer.shutdown(Shutdown::Write).unwrap();
    assert!(listening.join().unwrap().unwrap() == said, "the echo differs, seed {seed}");
}

/// Data and FIN that arrive as one event are both told: after the short read no second event would come.
fn data_and_fin_in_one_event<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let (mut client, _) = server.connect();
    server.settle();
    client.write_all(b"last words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    server.until("the end", |core| core.connections[0].eofs == 1);
    assert_eq!(nth!(server, 0).received, b"last words");
}

/// Bytes and FIN that were there before the socket was watched are told as well.
fn data_before_attach<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let mut client = TcpStream::connect(server.address).unwrap();
    client.write_all(b"early").unwrap();
    drop(client);
    server.until("the end", |core| core.connections.first().is_some_and(|connection| connection.eofs == 1));
    assert_eq!(nth!(server, 0).received, b"early");
}

/// An event of an earlier life of a slot is dropped: it neither reaches the new tenant nor disturbs it. The old descriptor is kept
/// open by a duplicate, so the kernel goes on reporting it.
fn stale_generation<D: Driver>(make: Make<D>) -> (Server<D>, u64) {
    let mut server = Server::new(make);
    server.core.duplicate = true;
    let (mut old_client, old) = server.connect();
    server.settle();
    server.close(old, Close::Abort);
    server.until("closed", |core| core.connections[0].closed);
    let (mut new_client, new) = server.connect();
    assert_eq!((new.index, new.generation), (old.index, old.generation + 1));
    server.settle();
    let before = server.driver.counters().stale_events_count;
    old_client.write_all(b"from the past").unwrap();
    server.settle();
    new_client.write_all(b"present").unwrap();
    server.until("bytes", |core| core.connections[1].received.len() >= 7);
    assert_eq!(nth!(server, 1).received, b"present");
    assert!(nth!(server, 0).received.is_empty());
    // Calls with the old name change nothing either.
    server.driver.pause_recv(old);
    server.driver.close(old, Close::Abort);
    assert!(matches!(server.driver.send(old, &[IoSlice::new(b"x")]), Sent::Failed(_)));
    new_client.write_all(b"!").unwrap();
    server.until("bytes", |core| core.connections[1].received.len() == 8);
    (server, before)
}

/// A peer that does not read blocks the sender, is told `writable` once per `Blocked`, and gets every byte in order.
fn blocked_and_partial_sends<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let (mut client, id) = server.connect();
    let said = Random(7).bytes(12_000_000);
    server.queue(id, &said);
    server.settle();
    assert!(nth!(server, 0).waiting, "twelve megabytes do not fit the kernel");
    let reading = std::thread::spawn(move || {
        let mut heard = vec![0; 12_000_000];
        client.read_exact(&mut heard).map(|()| (heard, client))
    });
    server.until("all sent", |core| core.connections[0].out_offset == 12_000_000);
    let (heard, mut client) = reading.join().unwrap().unwrap();
    assert!(heard == said);
    // The event of these bytes says writable too, and nobody waits for that any more.
    client.write_all(b"thanks").unwrap();
    server.until("bytes", |core| core.connections[0].received == b"thanks");
    assert_eq!(nth!(server, 0).writables, nth!(server, 0).blocks);
}

/// A paused connection delivers nothing, whether paused from inside `bytes` or from outside; resumed, it delivers what waited,
/// though no new bytes come to announce it.
fn pause_and_resume<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    server.core.pause_first = true;
    let (mut client, id) = server.connect();
    let said = Random(3).bytes(150_000);
    let writing = {
        let (mut client, said) = (client.try_clone().unwrap(), said.clone());
        std::thread::spawn(move || client.write_all(&said))
    };
    server.until("first bytes", |core| core.connections[0].paused);
    server.settle();
    assert_eq!(nth!(server, 0).deliveries, 1);
    server.core.connection(id).paused = false;
    server.driver.resume_recv(id);
    server.until("the rest", |core| core.connections[0].received.len() == 150_000);
    writing.join().unwrap().unwrap();
    assert!(nth!(server, 0).received == said);

    server.core.connection(id).paused = true;
    server.driver.pause_recv(id);
    client.write_all(b"later").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    server.settle();
    assert_eq!((nth!(server, 0).received.len(), nth!(server, 0).eofs), (150_000, 0));
    server.core.connection(id).paused = false;
    server.driver.resume_recv(id);
    server.until("the end", |core| core.connections[0].eofs == 1);
    assert_eq!(&nth!(server, 0).received[150_000..], b"later");
}

/// After the peer's FIN the other direction still works, to the last of many bytes.
fn half_close<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let (mut client, id) = server.connect();
    client.shutdown(Shutdown::Write).unwrap();
    server.until("the end", |core| core.connections[0].eofs == 1);
    let said = Random(5).bytes(3_000_000);
    server.core.connection(id).close_after_flush = true;
    server.queue(id, &said);
    let reading = std::thread::spawn(move || {
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).map(|_| heard)
    });
    server.until("closed", |core| core.connections[0].closed);
    assert!(reading.join().unwrap().unwrap() == said);
    assert_eq!(nth!(server, 0).eofs, 1);
}

/// A reset is told once, paused or not, and ends in `closed`.
fn reset<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    for round in 0..2 {
        let (client, id) = server.connect();
        server.settle();
        if round == 1 {
            server.core.connection(id).paused = true;
            server.driver.pause_recv(id);
        }
        let client = Socket::try_from(client).unwrap();
        client.set_abort().unwrap();
        drop(client);
        server.until("closed", |core| core.connections[round].closed);
        server.settle();
        let kinds: Vec<_> = nth!(server, round).failures.iter().map(io::Error::kind).collect();
        assert_eq!(kinds, [io::ErrorKind::ConnectionReset]);
    }
}

/// Slots and descriptor numbers are used again at once, many times; no tenant sees another's bytes, however the last one ended.
fn slots_and_descriptors_are_reused<D: Driver>(make: Make<D>) {
    let mut server = Server::echo(make);
    for round in 0..300_usize {
        let (mut client, id) = server.connect();
        assert_eq!((id.index, id.generation as usize), (0, round));
        let word = format!("round {round}");
        client.write_all(word.as_bytes()).unwrap();
        server.until("echo", |core| core.connections[round].out_offset == word.len());
        assert_eq!(nth!(server, round).received, word.as_bytes());
        let mut heard = vec![0; word.len()];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(heard, word.as_bytes());
        match round % 3 {
            0 => server.close(id, Close::Abort),
            1 => {
                server.close(id, Close::Graceful);
                drop(client);
            }
            _ => {
                // Late bytes meet a slot that is closing.
                server.close(id, Close::Graceful);
                let _ = client.write_all(b"late");
                drop(client);
            }
        }
        server.until("closed", |core| core.connections[round].closed);
    }
}

/// A graceful close delivers what was sent before it although the peer's own bytes were never read: the peer sees an end, not a
/// reset that would swallow the last words.
fn graceful_close_delivers_last_words<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let (mut client, id) = server.connect();
    server.core.connection(id).paused = true;
    server.driver.pause_recv(id);
    client.write_all(&[0; 50_000]).unwrap();
    server.settle();
    server.queue(id, b"goodbye");
    server.close(id, Close::Graceful);
    server.settle();
    client.write_all(b"one more thing").unwrap();
    server.settle();
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"goodbye");
    drop(client);
    server.until("closed", |core| core.connections[0].closed);
}

/// A peer that never sends its FIN does not hold the slot for ever.
fn graceful_close_ends_without_the_peer<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let (_client, id) = server.connect();
    server.close(id, Close::Graceful);
    server.until("closed", |core| core.connections[0].closed);
}

/// An abort reaches the peer as a reset.
fn abort_is_a_reset<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let (mut client, id) = server.connect();
    server.close(id, Close::Abort);
    server.until("closed", |core| core.connections[0].closed);
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

/// One that sends more than a turn's budget neither starves the others nor is forgotten: no new edge announces the rest.
fn budget_is_shared<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let (greedy, _) = server.connect();
    let (mut modest, _) = server.connect();
    server.settle();
    // Non-blocking: as much as the kernel takes, and then nothing more.
    greedy.set_nonblocking(true).unwrap();
    let mut written = 0;
    while let Ok(count) = (&greedy).write(&[1; 65_536]) {
        written += count;
    }
    modest.write_all(b"please").unwrap();
    assert!(written > 2 * limits::RECV_BYTES_PER_TURN_MAX);
    server.until("the modest one", |core| !core.connections[1].received.is_empty());
    assert!(nth!(server, 0).received.len() < written, "the greedy one was served to the end first");
    server.until("the rest", |core| core.connections[0].received.len() == written);
    assert!(server.driver.counters().budget_exhausted_count > 0);
}

/// Switched off, newcomers wait in the kernel; switched on again, they are taken although nobody new announces them.
fn accept_off_and_on<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    server.driver.accept(false);
    let _clients: Vec<_> = (0..100).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    server.settle();
    assert!(server.core.connections.is_empty());
    server.driver.accept(true);
    server.until("all hundred", |core| core.connections.len() == 100);
}

/// Switched off while a newcomer is handed over, the next waits in the kernel, however many came at once.
fn accept_stops_after_any<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    server.core.accepts_left = Some(3);
    let _clients: Vec<_> = (0..100).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    server.settle();
    assert_eq!(server.core.connections.len(), 3);
    for count in [4, 5] {
        server.core.accepts_left = Some(1);
        server.driver.accept(true);
        server.settle();
        assert_eq!(server.core.connections.len(), count);
    }
    server.core.accepts_left = None;
    server.driver.accept(true);
    server.until("all hundred", |core| core.connections.len() == 100);
}

/// Another thread ends the wait, again and again.
fn waker_ends_the_wait<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    for _ in 0..50 {
        let waker = server.driver.waker();
        let ringing = waker.clone();
        assert!(waker.may_sleep(|| true));
        let ringer = std::thread::spawn(move || ringing.wake());
        let started = Instant::now();
        server.turn(PATIENCE);
        assert!(started.elapsed() < PATIENCE, "nobody ended the wait");
        waker.awake();
        ringer.join().unwrap();
    }
}

/// Out of descriptors, accepting fails, is told with a growing delay, is tried again by the driver itself, and those connected
/// notice nothing. To be run in a process of its own, whose limit is small.
fn accept_at_descriptor_limit<D: Driver>(make: Make<D>) {
    let mut server = Server::echo(make);
    let (mut client, _) = server.connect();
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        assert!(hoard.len() < 1000, "the limit of this process is not small");
        hoard.push(file);
    }
    hoard.pop();
    let mut newcomer = TcpStream::connect(server.address).unwrap();
    server.until("failures", |core| core.accept_failures.len() >= 3);
    assert_eq!(server.core.accept_failures[..3], [1, 2, 4].map(|factor| limits::ACCEPT_RETRY_MIN * factor));
    assert!(server.driver.counters().accept_errors_count >= 3);
    let mut heard = [0; 5];
    client.write_all(b"still").unwrap();
    server.until("echo", |core| core.connections[0].out_offset == 5);
    client.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"still");

    drop(hoard);
    server.until("accept", |core| core.connections.len() == 2);
    newcomer.write_all(b"hello").unwrap();
    server.until("echo", |core| core.connections[1].out_offset == 5);
    newcomer.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
}

/// Says a word and waits for its echo, `times` times: enough of them make a connection a talker.
fn chat<D: Driver>(server: &mut Server<D>, client: &mut TcpStream, at: usize, times: usize) {
    for _ in 0..times {
        let sent = server.core.connections[at].out_offset + 4;
        client.write_all(b"word").unwrap();
        server.until("echo", |core| core.connections[at].out_offset == sent);
        client.read_exact(&mut [0; 4]).unwrap();
    }
}

/// However a talking connection ends (by us, by the peer, in the middle of a word), it ends once, its peer sees what it should, and
/// the next one in the same slot starts clean.
fn close_while_it_talks<D: Driver>(make: Make<D>) {
    let mut server = Server::echo(make);
    for round in 0..40_usize {
        let (mut client, id) = server.connect();
        chat(&mut server, &mut client, round, 8);
        match round % 4 {
            0 => server.close(id, Close::Abort),
            1 => {
                // The word meets a connection that closes.
                client.write_all(b"late").unwrap();
                server.close(id, Close::Graceful);
                server.settle();
                let _ = client.read_to_end(&mut Vec::new());
                drop(client);
            }
            2 => {
                client.shutdown(Shutdown::Write).unwrap();
                server.until("the end", |core| core.connections[round].eofs == 1);
                server.close(id, Close::Graceful);
                server.settle();
                assert_eq!(client.read(&mut [0]).unwrap(), 0);
            }
            _ => {
                server.core.connection(id).paused = true;
                server.driver.pause_recv(id);
                client.write_all(b"unread").unwrap();
                server.settle();
                server.close(id, Close::Abort);
            }
        }
        server.until("closed", |core| core.connections[round].closed);
        assert_eq!(nth!(server, round).received.len() % 4, 0, "no word was cut");
    }
}

/// A connection closed while the kernel is full of its bytes: one answer for each waiting send, then `closed`, and the slot serves the
/// next one.
fn close_while_sending<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    for round in 0..4_usize {
        let (mut client, id) = server.connect();
        server.queue(id, &Random(9).bytes(12_000_000));
        server.settle();
        assert!(nth!(server, round).waiting);
        server.close(id, if round % 2 == 0 { Close::Abort } else { Close::Graceful });
        server.until("closed", |core| core.connections[round].closed);
        // Whatever was sent is a beginning of what was to be sent.
        let mut heard = Vec::new();
        let _ = client.read_to_end(&mut heard);
        assert!(Random(9).bytes(heard.len()) == heard);
    }
}

/// A talking connection paused with bytes on their way keeps them in order, and one that is reset while paused is told so.
fn pause_while_it_talks<D: Driver>(make: Make<D>) {
    let mut server = Server::echo(make);
    let (mut client, id) = server.connect();
    chat(&mut server, &mut client, 0, 8);
    server.core.echo = false;
    let mut said = Vec::new();
    for round in 0..50_u8 {
        let piece = vec![round; 1 + usize::from(round) * 300];
        said.extend_from_slice(&piece);
        client.write_all(&piece).unwrap();
        if round % 3 == 0 {
            server.turn(Duration::ZERO);
        }
        server.core.connection(id).paused = true;
        server.driver.pause_recv(id);
        server.turn(Duration::from_millis(1));
        if round % 2 == 0 {
            server.turn(Duration::from_millis(1));
        }
        server.core.connection(id).paused = false;
        server.driver.resume_recv(id);
    }
    let before = 32;
    server.until("all of it", |core| core.connections[0].received.len() == before + said.len());
    assert!(nth!(server, 0).received[before..] == said);
    server.core.connection(id).paused = true;
    server.driver.pause_recv(id);
    server.settle();
    let client = Socket::try_from(client).unwrap();
    client.set_abort().unwrap();
    drop(client);
    server.until("closed", |core| core.connections[0].closed);
    assert_eq!(nth!(server, 0).failures.len(), 1);
}

/// Runs one test of this file in a process that may open 40 descriptors; in that process, returns `true`.
fn has_few_descriptors(test: &str) -> bool {
    const MARK: &str = "TIDEGATE_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let this = std::env::current_exe().unwrap();
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 40; exec \"$0\" --exact --test-threads=1 \"$1\""])
        .args([this.as_os_str(), test.as_ref()])
        .env(MARK, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    false
}

/// The suite for one driver.
macro_rules! suite {
    ($driver:ident, $make:expr, $($name:ident)*) => {
        mod $driver {
            use super::*;

            $(#[test] fn $name() { super::$name($make); })*

            #[test]
            fn stale_generation() {
                super::stale_generation($make);
            }

            #[test]
            fn accept_at_descriptor_limit() {
                if has_few_descriptors(concat!(stringify!($driver), "::accept_at_descriptor_limit")) {
                    super::accept_at_descriptor_limit($make);
                }
            }
        }
    };
    ($driver:ident, $make:expr) => {
        suite!($driver, $make,
            no_byte_is_lost_or_reordered data_and_fin_in_one_event data_before_attach blocked_and_partial_sends pause_and_resume
            half_close reset slots_and_descriptors_are_reused graceful_close_delivers_last_words
            graceful_close_ends_without_the_peer abort_is_a_reset budget_is_shared accept_off_and_on accept_stops_after_any waker_ends_the_wait
            close_while_it_talks close_while_sending pause_while_it_talks);
    };
}

suite!(epoll, make_epoll);
suite!(uring, make_uring);
// Every queue so short that it is always full: overflows, empty buffers and backlogs in each test.
suite!(uring_cramped, make_cramped_uring);

fn make_epoll(listener: Listener) -> Epoll {
    Epoll::new(1000, Some(listener), Waker::for_driver().unwrap()).unwrap()
}

fn make_uring(listener: Listener) -> Uring {
    let sizes = Sizes::share(1000, 1, 1, Some(Duration::from_secs(10)));
    Uring::new(sizes, Some(listener), Waker::for_driver().unwrap()).unwrap()
}

fn make_cramped_uring(listener: Listener) -> Uring {
    let sizes = Sizes {
        submissions: 2,
        completions: 4,
        buffers_first: 1,
        buffers_max: 2,
        // So short that talkers are parked and promoted all the time.
        park_after: Some(Duration::from_millis(2)),
        ..Sizes::share(1000, 1, 1, None)
    };
    Uring::new(sizes, Some(listener), Waker::for_driver().unwrap()).unwrap()
}

/// Of the readiness driver alone: the events of the past are counted.
#[test]
fn epoll_counts_stale_events() {
    let (server, before) = stale_generation(make_epoll);
    assert!(server.driver.counters().stale_events_count > before);
}

/// Of the completion driver: who talks is received without a system call per message, who falls silent rests again, and both
/// changes lose nothing.
#[test]
fn uring_promotes_talkers_and_parks_the_silent() {
    let make = |listener| {
        let sizes = Sizes::share(1000, 1, 1, Some(Duration::from_millis(50)));
        Uring::new(sizes, Some(listener), Waker::for_driver().unwrap()).unwrap()
    };
    let mut server = Server::echo(make);
    let (mut client, _) = server.connect();
    for round in 1..=3 {
        chat(&mut server, &mut client, 0, 10);
        assert_eq!(server.driver.counters().promotions_count, round);
        let started = Instant::now();
        while server.driver.counters().parks_count < round {
            assert!(started.elapsed() < PATIENCE, "it was never parked");
            server.turn(Duration::from_millis(20));
        }
    }
    assert_eq!(nth!(server, 0).received.len(), 120);
}

/// A few buffers serve two thousand talkers who all speak at once: receives that find none are no error, and nobody waits for ever.
#[test]
fn uring_serves_thousands_with_few_buffers() {
    const CLIENTS: usize = 2000;
    const FEW: usize = 50;
    const TALK: usize = 5;
    let make = |listener| {
        let sizes = Sizes { buffers_first: 4, buffers_max: 4, ..Sizes::share(CLIENTS, 1, 1, None) };
        Uring::new(sizes, Some(listener), Waker::for_driver().unwrap()).unwrap()
    };
    let mut server = Server::echo(make);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect().0).collect();
    // A few at a time talk fast enough to be promoted, on a slow machine too; then all talk at once.
    for few in 0..CLIENTS / FEW {
        for round in 1..=TALK {
            let range = few * FEW..(few + 1) * FEW;
            clients[range.clone()].iter_mut().for_each(|client| client.write_all(b"word").unwrap());
            server.until("echoes", |core| core.connections[range.clone()].iter().all(|it| it.out_offset == round * 4));
        }
    }
    assert!(server.driver.counters().promotions_count >= 500, "{:?}", server.driver.counters());
    let mut rounds = TALK;
    while server.driver.counters().buffers_empty_count == 0 {
        rounds += 1;
        assert!(rounds < 50, "two thousand at once found a buffer each");
        clients.iter_mut().for_each(|client| client.write_all(b"word").unwrap());
        server.until("echoes", |core| core.connections.iter().all(|connection| connection.out_offset == rounds * 4));
    }
    for client in &mut clients {
        let mut heard = vec![0; rounds * 4];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(heard, b"word".repeat(rounds));
    }
}

/// The completion queue overflows, which ends multishots on a good result; all of them are armed again and no byte is lost.
#[test]
fn uring_survives_overflows() {
    let mut server = Server::echo(make_cramped_uring);
    let mut clients: Vec<_> = (0..64).map(|_| server.connect().0).collect();
    for round in 1..=30 {
        clients.iter_mut().for_each(|client| client.write_all(b"word").unwrap());
        server.until("echoes", |core| core.connections.iter().all(|connection| connection.out_offset == round * 4));
    }
    for client in &mut clients {
        let mut heard = vec![0; 120];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(heard, b"word".repeat(30));
    }
    assert!(server.driver.counters().overflows_count > 0, "a queue of four held 64 connections");
}

/// This machine can run the driver; elsewhere the suite above would say so less clearly.
#[test]
fn uring_probe_passes() {
    Uring::probe().unwrap();
}
