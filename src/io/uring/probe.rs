//! Whether this machine lets us use io_uring as the driver does.

use std::io::{self, ErrorKind, IoSlice};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::{Sizes, Uring};
use crate::ids::ConnectionId;
use crate::io::driver::{Block, Close, Door, Driver, Flow, Piece, Sent, Sink};
use crate::io::socket::{Listener, Socket};
use crate::io::wake::Waker;
use crate::limits;

/// One conversation over loopback: accepted by the ring, read while it rests and while it talks, answered in one piece and in two,
/// closed.
pub(super) fn probe() -> Result<(), String> {
    let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let listener = Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 1).map_err(failed("listening on loopback"))?;
    let address = listener.local_address().map_err(failed("listening on loopback"))?;
    let waker = Waker::for_driver().map_err(failed("making an eventfd"))?;
    let sizes = Sizes { submissions: 8, completions: 16, buffers_first: 2, buffers_max: 2, ..Sizes::share(1, 1, None) };
    let mut driver = Uring::new(sizes, Some(listener), waker).map_err(failed("making a ring"))?;
    let client = TcpStream::connect(address).map_err(failed("connecting to loopback"))?;
    let client = Socket::try_from(client).map_err(failed("connecting to loopback"))?;
    let mut probe = Probe::default();
    let deadline = Instant::now() + PROBE_MAX;
    let mut heard = 0;
    let mut said = 0;
    loop {
        if Instant::now() > deadline {
            return Err(format!("the ring carried {heard} of {PROBE_BYTES} bytes and then stood still"));
        }
        driver.turn(Duration::from_millis(10), &mut probe).map_err(failed("entering the ring"))?;
        if probe.is_closed {
            break;
        }
        if let Some(error) = probe.failure.take() {
            return Err(failed("a connection on the ring")(error));
        }
        if said == heard && said < ROUNDS {
            said += client.writev(&[IoSlice::new(b"?")]).map_err(failed("writing to loopback"))?;
        }
        match client.recv(&mut [0; 4096]) {
            Ok(0) => return Err("the ring ended a connection by itself".to_owned()),
            Ok(count) => heard += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(failed("reading from loopback")(error)),
        }
        if heard == PROBE_BYTES
            && let Some(connection) = probe.connection.take()
        {
            driver.close(connection, Close::Abort);
        }
    }
    if driver.counters.promotions_count != 1 {
        return Err("the ring was never used to receive".to_owned());
    }
    Ok(())
}

#[derive(Default)]
struct Probe {
    connection: Option<ConnectionId>,
    failure: Option<io::Error>,
    answers_count: usize,
    is_closed: bool,
}

impl Sink<Uring> for Probe {
    fn accepted(&mut self, driver: &mut Uring, socket: Socket, _: Door) {
        let connection = ConnectionId { index: 0, generation: 0 };
        self.connection = Some(connection);
        self.failure = driver.attach(connection, socket).err();
    }

    fn bytes(&mut self, driver: &mut Uring, connection: ConnectionId, bytes: &mut [u8]) -> Flow {
        self.answers_count += 1;
        let long = Block::new(vec![b'!'; LONG_BYTES]);
        let pieces = [Piece::Lent(bytes), Piece::Shared { block: &long, start: 0, end: LONG_BYTES }];
        let count = if self.answers_count == ROUNDS { 2 } else { 1 };
        if let Sent::Failed(error) = driver.send(connection, &pieces[..count]) {
            self.failure = Some(error);
        }
        Flow::Continue
    }

    fn eof(&mut self, _: &mut Uring, _: ConnectionId) {}

    fn sent(&mut self, _: &mut Uring, _: ConnectionId, result: io::Result<usize>) {
        self.failure = result.err();
    }

    fn writable(&mut self, _: &mut Uring, _: ConnectionId) {}

    fn failed(&mut self, _: &mut Uring, _: ConnectionId, error: io::Error) {
        self.failure = Some(error);
    }

    fn closed(&mut self, _: &mut Uring, _: ConnectionId) {
        self.is_closed = true;
    }

    fn accept_failed(&mut self, _: &mut Uring, error: io::Error, _: Duration) {
        self.failure = Some(error);
    }
}

/// Exchanges of the probe: enough to be promoted, and then some.
const ROUNDS: usize = limits::RING_TALK_EVENTS as usize + 3;
/// With the last answer, so that it leaves in two pieces.
const LONG_BYTES: usize = 4096;
const PROBE_BYTES: usize = ROUNDS + LONG_BYTES;
const PROBE_MAX: Duration = Duration::from_secs(5);
