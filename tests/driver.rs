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
use tidegate::io::driver::{Close, Driver, Flow, Sent, Sink};
use tidegate::io::epoll::Epoll;
use tidegate::io::socket::{Listener, Socket};
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
    fn accepted(&mut self, driver: &mut D, socket: Socket) {
        let fresh = ConnectionId { index: u32::try_from(self.by_id.len()).unwrap(), generation: 0 };
        let id = self.vacant.pop().unwrap_or(fresh);
        if self.duplicate {
            self.duplicates.push(socket.as_fd().try_clone_to_owned().unwrap());
        }
        driver.attach(id, socket).unwrap();
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
        server.until("bytes", |core| core.connections[round].received.len() == word.len());
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

/// Runs one ignored test of this file in a process that may open 40 descriptors.
fn run_with_few_descriptors(test: &str) {
    let this = std::env::current_exe().unwrap();
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 40; exec \"$0\" --exact --ignored --test-threads=1 \"$1\""])
        .args([this.as_os_str(), test.as_ref()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
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
            #[ignore = "run by accept_at_descriptor_limit in a process of its own"]
            fn accept_at_descriptor_limit_child() {
                super::accept_at_descriptor_limit($make);
            }

            #[test]
            fn accept_at_descriptor_limit() {
                run_with_few_descriptors(concat!(stringify!($driver), "::accept_at_descriptor_limit_child"));
            }
        }
    };
    ($driver:ident, $make:expr) => {
        suite!($driver, $make,
            no_byte_is_lost_or_reordered data_and_fin_in_one_event data_before_attach blocked_and_partial_sends pause_and_resume
            half_close reset slots_and_descriptors_are_reused graceful_close_delivers_last_words
            graceful_close_ends_without_the_peer abort_is_a_reset budget_is_shared accept_off_and_on waker_ends_the_wait);
    };
}

suite!(epoll, make_epoll);

fn make_epoll(listener: Listener) -> Epoll {
    Epoll::new(1000, Some(listener), Waker::for_driver().unwrap()).unwrap()
}

/// Of the readiness driver alone: the events of the past are counted.
#[test]
fn epoll_counts_stale_events() {
    let (server, before) = stale_generation(make_epoll);
    assert!(server.driver.counters().stale_events_count > before);
}
