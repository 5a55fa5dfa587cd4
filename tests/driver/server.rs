//! A server: a driver and the sink that records what it says.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use tidegate::ids::ConnectionId;
use tidegate::io::driver::{Block, Close, Door, Driver, Flow, Piece, Sent, Sink};
use tidegate::io::socket::{Listener, Socket};

/// The end of each wait.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub type Make<D> = fn(Listener) -> D;

/// A server: a driver and the sink that records what it says.
pub struct Server<D> {
    pub driver: D,
    pub address: SocketAddr,
    pub core: Core,
}

/// The sink. Attaches whatever is accepted; what else it does is set by the test.
#[derive(Default)]
pub struct Core {
    /// Every connection ever, in order of acceptance.
    pub connections: Vec<Connection>,
    pub by_id: HashMap<ConnectionId, usize>,
    pub vacant: Vec<ConnectionId>,
    /// Send back what arrives.
    pub echo: bool,
    /// Answer the first bytes of each connection with `Pause`.
    pub pause_first: bool,
    /// Keep a copy of the descriptor of each newcomer.
    pub duplicate: bool,
    pub duplicates: Vec<OwnedFd>,
    pub accept_failures: Vec<Duration>,
    /// Switch accepting off after so many.
    pub accepts_left: Option<u32>,
    /// Guards the rule that `closed` never comes out of a call of ours.
    pub inside_call: bool,
}

pub struct Connection {
    pub id: ConnectionId,
    pub received: Vec<u8>,
    pub deliveries: usize,
    pub out: Vec<u8>,
    pub out_offset: usize,
    /// Stretches of `out` that are offered as parts of shared blocks, and where each begins.
    pub shared: VecDeque<(usize, Block)>,
    pub pendings: usize,
    pub waiting: bool,
    pub writables: usize,
    pub blocks: usize,
    pub paused: bool,
    pub eofs: usize,
    pub failures: Vec<io::Error>,
    pub closing: bool,
    pub closed: bool,
    pub close_after_flush: bool,
}

impl Connection {
    /// What waits: blocks by reference, all else lent.
    fn pieces(&self) -> Vec<Piece<'_>> {
        let mut pieces = Vec::new();
        let mut at = self.out_offset;
        for (start, block) in &self.shared {
            if at < *start {
                pieces.push(Piece::Lent(&self.out[at..*start]));
                at = *start;
            }
            pieces.push(Piece::Shared { block, start: at - start, end: block.len() });
            at = start + block.len();
        }
        // In two, so that partial writes end in the first and in the second.
        let rest = &self.out[at..];
        let (first, second) = rest.split_at(rest.len().min(1000));
        pieces.extend([Piece::Lent(first), Piece::Lent(second)]);
        pieces
    }

    fn take(&mut self, count: usize) {
        self.out_offset += count;
        let offset = self.out_offset;
        while self.shared.pop_front_if(|(start, block)| *start + block.len() <= offset).is_some() {}
    }
}

impl Core {
    pub fn connection(&mut self, id: ConnectionId) -> &mut Connection {
        let at = *self.by_id.get(&id).expect("an event for a connection that lives");
        &mut self.connections[at]
    }

    /// Offers the queue until it is empty or the kernel is full.
    pub fn flush<D: Driver>(&mut self, driver: &mut D, id: ConnectionId) {
        while let connection = self.connection(id)
            && !connection.waiting
            && !connection.closing
            && connection.out_offset < connection.out.len()
        {
            match driver.send(id, &connection.pieces()) {
                Sent::Done(count) => connection.take(count),
                Sent::Blocked => {
                    connection.waiting = true;
                    connection.blocks += 1;
                }
                Sent::Pending => {
                    connection.waiting = true;
                    connection.pendings += 1;
                }
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

    pub fn close<D: Driver>(&mut self, driver: &mut D, id: ConnectionId, how: Close) {
        let connection = self.connection(id);
        connection.closing = true;
        // As the core does: what the kernel still sends is the driver's affair.
        connection.shared.clear();
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
            shared: VecDeque::new(),
            pendings: 0,
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
            Ok(count) => connection.take(count),
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
    pub fn new(make: Make<D>) -> Self {
        let listener = Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 128).unwrap();
        let address = listener.local_address().unwrap();
        Self { driver: make(listener), address, core: Core::default() }
    }

    pub fn echo(make: Make<D>) -> Self {
        let mut server = Self::new(make);
        server.core.echo = true;
        server
    }

    pub fn turn(&mut self, max_wait: Duration) {
        self.driver.turn(max_wait, &mut self.core).unwrap();
    }

    /// Turns until `done`.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&Core) -> bool) {
        let started = Instant::now();
        while !done(&self.core) {
            assert!(started.elapsed() < PATIENCE, "never came: {what}");
            self.turn(Duration::from_millis(20));
        }
    }

    /// Enough turns for whatever was going to happen to have happened.
    pub fn settle(&mut self) {
        for _ in 0..5 {
            self.turn(Duration::from_millis(10));
        }
    }

    pub fn connect(&mut self) -> (TcpStream, ConnectionId) {
        let count = self.core.connections.len();
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        self.until("accept", |core| core.connections.len() > count);
        (client, self.core.connections[count].id)
    }

    pub fn queue(&mut self, id: ConnectionId, bytes: &[u8]) {
        self.core.connection(id).out.extend_from_slice(bytes);
        self.core.flush(&mut self.driver, id);
    }

    /// Queues what others may send too, behind a few lent bytes.
    pub fn queue_shared(&mut self, id: ConnectionId, head: &[u8], blocks: impl IntoIterator<Item = Block>) {
        let connection = self.core.connection(id);
        for block in blocks {
            connection.out.extend_from_slice(head);
            connection.shared.push_back((connection.out.len(), Block::clone(&block)));
            connection.out.extend_from_slice(&block);
        }
        self.core.flush(&mut self.driver, id);
    }

    pub fn close(&mut self, id: ConnectionId, how: Close) {
        self.core.close(&mut self.driver, id, how);
    }
}

/// Small, seeded, good enough to cut bytes into odd pieces.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % bound
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| u8::try_from(self.below(256)).unwrap()).collect()
    }
}

/// The connection made `nth`, as the server saw it.
macro_rules! nth {
    ($server:expr, $nth:expr) => {
        $server.core.connections[$nth]
    };
}

/// Says a word and waits for its echo, `times` times: enough of them make a connection a talker.
pub fn chat<D: Driver>(server: &mut Server<D>, client: &mut TcpStream, at: usize, times: usize) {
    for _ in 0..times {
        let sent = server.core.connections[at].out_offset + 4;
        client.write_all(b"word").unwrap();
        server.until("echo", |core| core.connections[at].out_offset == sent);
        client.read_exact(&mut [0; 4]).unwrap();
    }
}
