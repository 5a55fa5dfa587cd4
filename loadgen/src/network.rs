//! Where connections are made: a trait, so that another TCP than the kernel's can carry the same clients; and the kernel's. [mio, nix, rustix]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime};

/// How a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// What was written still arrives.
    Orderly,
    /// At once, as when a cable is pulled and the peer is told.
    Reset,
}

/// What became possible on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ready {
    /// Which.
    pub index: u32,
    /// It has bytes, or its end.
    pub readable: bool,
    /// It stands, or has room again.
    pub writable: bool,
    /// Its end is there, perhaps behind bytes.
    pub ended: bool,
}

/// Connections by index, each at most once at a time.
pub trait Network {
    /// Begins to open a connection; [`Ready::writable`] says when it stands. Some networks take bytes at once.
    ///
    /// # Errors
    /// It cannot be begun.
    fn connect(&mut self, index: u32) -> io::Result<()>;
    /// Whether a connection that became writable really stands.
    ///
    /// # Errors
    /// Why it does not.
    fn stands(&mut self, index: u32) -> io::Result<()>;
    /// Reads; 0 is the end.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`], or why it ended.
    fn read(&mut self, index: u32, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes what there is room for.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`], or why it ended.
    fn write(&mut self, index: u32, bytes: &[u8]) -> io::Result<usize>;
    /// Forgets a connection.
    fn close(&mut self, index: u32, ending: Ending);
    /// Waits until something is ready, but not longer than `longest`, to the microsecond.
    ///
    /// # Errors
    /// The network is broken.
    fn wait(&mut self, longest: Duration) -> io::Result<()>;
    /// The next that is ready since the last wait.
    fn next(&mut self) -> Option<Ready>;
}

/// Sockets of the kernel, in one epoll.
#[derive(Debug)]
pub struct Sockets {
    poll: Poll,
    events: Events,
    ready: Vec<Ready>,
    streams: Vec<Option<TcpStream>>,
    timer: Timer,
    target: SocketAddrV4,
    sources: Vec<Ipv4Addr>,
    /// From this index on the kernel keeps little for who does not read.
    narrow_from: usize,
}

impl Sockets {
    /// None open yet; all will go to `target`, from these addresses in turn, or from whichever the kernel chooses. From index
    /// `narrow_from` on receive buffers are small, so that the gateway notices when they are not read.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(target: SocketAddrV4, sources: Vec<Ipv4Addr>, connections: usize, narrow_from: usize) -> io::Result<Self> {
        let poll = Poll::new()?;
        let timer = Timer::new(&poll, TIMER)?;
        let streams = (0..connections).map(|_| None).collect();
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            ready: Vec::new(),
            streams,
            timer,
            target,
            sources,
            narrow_from,
        })
    }

    fn stream(&mut self, index: u32) -> io::Result<&mut TcpStream> {
        self.streams[index as usize].as_mut().ok_or_else(|| ErrorKind::NotConnected.into())
    }

    fn dial(&self, index: u32) -> io::Result<TcpStream> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        if index as usize >= self.narrow_from {
            rustix::net::sockopt::set_socket_recv_buffer_size(&socket, NARROW_BYTES)?;
        }
        if !self.sources.is_empty() {
            // Else the kernel looks for a port that no connection of this address has, before it knows where this one goes.
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true)?;
            let source = self.sources[index as usize % self.sources.len()];
            bind(&socket, &SocketAddr::from((source, 0)))?;
        }
        match connect(&socket, &SocketAddr::V4(self.target)) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(TcpStream::from_std(std::net::TcpStream::from(socket)))
    }
}

impl Network for Sockets {
    fn connect(&mut self, index: u32) -> io::Result<()> {
        let mut stream = self.dial(index)?;
        stream.set_nodelay(true)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(index as usize), interest)?;
        self.streams[index as usize] = Some(stream);
        Ok(())
    }

    fn stands(&mut self, index: u32) -> io::Result<()> {
        let stream = self.stream(index)?;
        stream.take_error()?.map_or(Ok(()), Err)?;
        stream.peer_addr().map(|_| ())
    }

    fn read(&mut self, index: u32, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream(index)?.read(buffer)
    }

    fn write(&mut self, index: u32, bytes: &[u8]) -> io::Result<usize> {
        self.stream(index)?.write(bytes)
    }

    fn close(&mut self, index: u32, ending: Ending) {
        let Some(stream) = self.streams[index as usize].take() else { return };
        if ending == Ending::Reset {
            // Refused only for a socket that is broken already.
            let _ = rustix::net::sockopt::set_socket_linger(stream.as_fd(), Some(Duration::ZERO));
        }
    }

    fn wait(&mut self, longest: Duration) -> io::Result<()> {
        let time_out = if longest.is_zero() { Some(Duration::ZERO) } else { self.timer.arm(longest).map(|()| None)? };
        match self.poll.poll(&mut self.events, time_out) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        self.ready.clear();
        for event in self.events.iter().filter(|event| event.token() != TIMER) {
            let index = u32::try_from(event.token().0).expect("tokens are indices");
            let ended = event.is_read_closed() || event.is_error();
            self.ready.push(Ready { index, readable: event.is_readable() || ended, writable: event.is_writable(), ended });
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Ready> {
        self.ready.pop()
    }
}

/// The `number`-th loopback address to come from: 127.1.0.1 and so on, 250 in each group.
///
/// # Panics
/// It is not below [`SOURCES_MAX`].
#[must_use]
pub fn source(number: usize) -> Ipv4Addr {
    let part = |value: usize| u8::try_from(value).expect("at most 62,500 addresses");
    Ipv4Addr::new(127, 1, part(number / 250), part(number % 250 + 1))
}

/// A timer in a poll: the poll's own time-out has a grain of a millisecond.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// Not armed; the events of `token` are its own.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(poll: &Poll, token: Token) -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Self(timer))
    }

    /// Ends the next wait after `longest`, at most a second.
    ///
    /// # Errors
    /// The kernel's.
    pub fn arm(&self, longest: Duration) -> io::Result<()> {
        let longest = longest.clamp(Duration::from_micros(1), Duration::from_secs(1));
        let value = Timespec { tv_sec: i64::from(longest.as_secs() > 0), tv_nsec: i64::from(longest.subsec_nanos()) };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

/// Most sources that are used.
pub const SOURCES_MAX: usize = 62_500;
/// Receive buffer of a connection that reads slowly or not at all; the kernel doubles it.
const NARROW_BYTES: usize = 4 * 1024;
const EVENTS_MAX: usize = 1024;
const TIMER: Token = Token(usize::MAX - 1);

#[cfg(test)]
mod tests {
    use super::*;

    /// Sources are addresses of this machine, all different.
    #[test]
    fn sources_differ() {
        assert_eq!((source(0), source(250)), (Ipv4Addr::new(127, 1, 0, 1), Ipv4Addr::new(127, 1, 1, 1)));
        let all: std::collections::HashSet<Ipv4Addr> = (0..SOURCES_MAX).map(source).collect();
        assert_eq!(all.len(), SOURCES_MAX);
        assert!(all.iter().all(Ipv4Addr::is_loopback));
    }
}
