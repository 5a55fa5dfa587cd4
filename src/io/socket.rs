//! Sockets by descriptor.                                                                                             [libc]

use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, size_of};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::io::driver::{Backlog, Piece};
use crate::limits;

/// A close-on-exec TCP socket whose calls never wait. `!Send`: a descriptor number means nothing in another thread once tables are
/// private.
///
/// Each call says so by itself (`MSG_DONTWAIT`); the open file is in blocking mode, because `O_NONBLOCK` makes io_uring answer
/// `EAGAIN` where it is meant to wait for the socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    not_send: PhantomData<*const ()>,
}

impl Socket {
    /// Reads what is there, at most `buffer`. `Ok(0)`: the peer will send nothing more.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; else the kernel's.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: `self` keeps the descriptor open, and `buffer` is writable memory of the length given.
        let count = unsafe { libc::recv(self.raw(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// Forgets what is there, at most `room` bytes, without copying it; returns how many they were. `Ok(0)`: the peer will send nothing more.
    ///
    /// `MSG_TRUNC` does so for TCP: tcp(7), since Linux 2.4.
    ///
    /// # Errors
    /// As [`Socket::recv`].
    pub fn discard(&self, room: usize) -> io::Result<usize> {
        // SAFETY: `self` keeps the descriptor open; with `MSG_TRUNC` the kernel writes nothing to the buffer of a TCP socket.
        let count = unsafe { libc::recv(self.raw(), std::ptr::null_mut(), room, libc::MSG_DONTWAIT | libc::MSG_TRUNC) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// Writes the vectors in order; returns the bytes taken, which may be fewer than offered. Never raises `SIGPIPE`.
    ///
    /// Offers at most [`limits::WRITE_SEGMENTS_MAX`] vectors; a caller must not conclude from a short count that the kernel is full.
    ///
    /// # Errors
    /// `WouldBlock` when the kernel takes nothing; else the kernel's.
    pub fn writev(&self, vectors: &[IoSlice<'_>]) -> io::Result<usize> {
        let vectors = &vectors[..vectors.len().min(limits::WRITE_SEGMENTS_MAX)];
        if let [one] = vectors {
            // SAFETY: `self` keeps the descriptor open, and `one` is readable memory of the length given.
            let count = unsafe { libc::send(self.raw(), one.as_ptr().cast(), one.len(), SEND_FLAGS) };
            return usize::try_from(count).map_err(|_| io::Error::last_os_error());
        }
        // SAFETY: all-zero is a valid `msghdr`: no name, no control data, no vectors.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = vectors.as_ptr().cast::<libc::iovec>().cast_mut();
        message.msg_iovlen = vectors.len();
        // SAFETY: `self` keeps the descriptor open; `IoSlice` has the layout of `iovec` by its documentation; the kernel only reads
        // the vectors and what they point to, all of which the borrow keeps alive until the call returns.
        let count = unsafe { libc::sendmsg(self.raw(), &raw const message, SEND_FLAGS) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// As [`Socket::writev`].
    ///
    /// # Errors
    /// As [`Socket::writev`].
    pub fn send(&self, pieces: &[Piece<'_>]) -> io::Result<usize> {
        if let [one] = pieces {
            return self.writev(&[IoSlice::new(one.bytes())]);
        }
        let mut vectors = [IoSlice::new(&[]); limits::WRITE_SEGMENTS_MAX];
        let count = pieces.len().min(vectors.len());
        for (vector, piece) in vectors.iter_mut().zip(pieces) {
            *vector = IoSlice::new(piece.bytes());
        }
        self.writev(&vectors[..count])
    }

    /// Sends FIN after what the kernel holds; reading goes on.
    ///
    /// # Errors
    /// The kernel's, for instance when the peer has reset the connection.
    pub fn shutdown_write(&self) -> io::Result<()> {
        // SAFETY: `self` keeps the descriptor open; no pointer is passed.
        check(unsafe { libc::shutdown(self.raw(), libc::SHUT_WR) })
    }

    /// Sets what every client connection gets: `TCP_NODELAY`, since frames are gathered before they are sent;
    /// `TCP_NOTSENT_LOWAT` [`limits::NOTSENT_LOWAT_BYTES`], so that a slow reader shows in our queue rather than in the kernel's;
    /// `TCP_USER_TIMEOUT`, the second net under the heartbeat.
    ///
    /// # Errors
    /// The kernel's; an option refused leaves the others set.
    pub fn set_client_options(&self, user_timeout: Duration) -> io::Result<()> {
        let timeout_ms = i32::try_from(user_timeout.as_millis()).unwrap_or(i32::MAX);
        self.set(libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        self.set(libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, limits::NOTSENT_LOWAT_BYTES)?;
        self.set(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, timeout_ms)
    }

    /// Makes the coming close a reset: unsent bytes are dropped and the peer gets RST.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_abort(&self) -> io::Result<()> {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        set_option(self.raw(), libc::SOL_SOCKET, libc::SO_LINGER, &linger)
    }

    /// Takes the pending error of the socket, which the kernel then forgets.
    ///
    /// # Errors
    /// The kernel's, about the question itself.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        as_stream(self.fd.as_fd()).take_error()
    }

    /// Address of the other end.
    ///
    /// # Errors
    /// The kernel's; `NotConnected` once the peer has reset the connection.
    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        as_stream(self.fd.as_fd()).peer_addr()
    }

    /// Address of this end.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        as_stream(self.fd.as_fd()).local_addr()
    }

    fn set(&self, level: i32, name: i32, value: i32) -> io::Result<()> {
        set_option(self.raw(), level, name, &value)
    }

    fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Takes over a socket that the kernel has just handed to this thread.
    pub(super) fn own(fd: OwnedFd) -> Self {
        Self { fd, not_send: PhantomData }
    }
}

impl TryFrom<TcpStream> for Socket {
    type Error = io::Error;

    /// Takes a stream over, in blocking mode.
    fn try_from(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        Ok(Self::own(OwnedFd::from(stream)))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A listening socket of a reuse-port group: every reactor binds its own to the same address, and the kernel spreads newcomers.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
}

impl Listener {
    /// Binds and listens. Port 0 picks a free one: the first reactor binds 0, the others what [`Listener::local_address`] then says.
    ///
    /// # Errors
    /// The kernel's: address in use by a stranger, no such address, no permission.
    pub fn bind(address: SocketAddr, backlog: u32) -> io::Result<Self> {
        let mut listener = Self::bound(address)?;
        if address.port() == 0 {
            // A port that the kernel chose is given back when the listener leaves its group; one that was asked for is kept. The first
            // holds the port until the second has it.
            listener = Self::bound(listener.local_address()?)?;
        }
        // SAFETY: `listener` keeps the descriptor open; no pointer is passed.
        check(unsafe { libc::listen(listener.socket.raw(), i32::try_from(backlog).unwrap_or(i32::MAX)) })?;
        Ok(listener)
    }

    /// Whether the kernel takes what [`Listener::steer`] tells it, found out on a socket of its own.
    ///
    /// # Errors
    /// As [`Listener::steer`].
    pub fn try_steering() -> io::Result<()> {
        Self::unbound(libc::AF_INET)?.steer(&[0])
    }

    fn bound(address: SocketAddr) -> io::Result<Self> {
        let listener = Self::unbound(if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 })?;
        bind(listener.socket.raw(), address)?;
        Ok(listener)
    }

    /// A socket that may join a group.
    fn unbound(domain: i32) -> io::Result<Self> {
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: socket takes three integers and no pointer.
        let fd = unsafe { libc::socket(domain, kind, 0) };
        check(fd)?;
        // SAFETY: the call above returned this descriptor, so it is open and nobody else owns it.
        let socket = Socket::own(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        socket.set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        Ok(Self { socket })
    }

    /// The address bound, with the port the kernel chose.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_address()
    }

    /// Sets [`Socket::set_client_options`] on the listener: Linux hands these options on to what it accepts, which saves three
    /// system calls per connection.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_client_options(&self, user_timeout: Duration) -> io::Result<()> {
        self.socket.set_client_options(user_timeout)
    }

    /// How full the accept queue is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn backlog(&self) -> io::Result<Backlog> {
        // SAFETY: all-zero is a valid `tcp_info`: it is numbers only.
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        let mut length = libc::socklen_t::try_from(size_of_val(&info)).expect("an option is short");
        let into = (&raw mut info).cast();
        // SAFETY: `info` is writable for `length` bytes until the call returns, and `self` keeps the descriptor open.
        check(unsafe { libc::getsockopt(self.socket.raw(), libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut length) })?;
        // For a listener the kernel puts the queue into these two fields.
        Ok(Backlog { waiting: info.tcpi_unacked, length: info.tcpi_sacked })
    }

    /// Leaves the group: the kernel gives newcomers to the other listeners of the port. What waits in the queue is reset, unless
    /// `net.ipv4.tcp_migrate_req` is 1.
    ///
    /// # Errors
    /// The kernel's.
    pub fn leave(&self) -> io::Result<()> {
        // SAFETY: `self` keeps the descriptor open; no pointer is passed.
        check(unsafe { libc::shutdown(self.socket.raw(), libc::SHUT_RD) })
    }

    /// Listens again after [`Listener::leave`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn come_back(&self, backlog: u32) -> io::Result<()> {
        // SAFETY: `self` keeps the descriptor open; no pointer is passed.
        check(unsafe { libc::listen(self.socket.raw(), i32::try_from(backlog).unwrap_or(i32::MAX)) })
    }

    /// Says for the whole group to which of its listeners newcomers go, each as often as the others: places in the group, in the order of
    /// listening. An empty list leaves it to the kernel's hash. What waits in a queue stays there. A place without listener means any.
    ///
    /// # Errors
    /// The kernel's: no classic BPF for groups.
    pub fn steer(&self, to: &[u16]) -> io::Result<()> {
        let Some((&last, others)) = to.split_last() else {
            return self.socket.set(libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, 0).or_else(|error| {
                // There was no program.
                if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
            });
        };
        let instruction = |code: u32, skip_else: u8, k: u32| libc::sock_filter {
            code: u16::try_from(code).expect("codes are small"),
            jt: 0,
            jf: skip_else,
            k,
        };
        let count = u32::try_from(to.len()).expect("a u16 numbers them");
        // A = random % count; if A == 0 return the first, if A == 1 the second, ...
        let mut program = vec![
            instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, BPF_RANDOM),
            instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, count),
        ];
        for (number, &place) in (0..).zip(others) {
            program.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number));
            program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, u32::from(place)));
        }
        program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, u32::from(last)));
        let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
        set_option(self.socket.raw(), libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &filter)
    }

    /// Takes one connection from the queue, close-on-exec.
    ///
    /// # Errors
    /// `WouldBlock` when the queue is empty; what [`is_passing`] accepts concerns one connection that is gone already; anything
    /// else is want of descriptors or memory and will happen again at once.
    pub fn accept(&self) -> io::Result<Socket> {
        // SAFETY: `self` keeps the descriptor open; null address and length are allowed and mean: not asked for.
        let fd = unsafe { libc::accept4(self.socket.raw(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC) };
        check(fd)?;
        // SAFETY: the call above returned this descriptor, so it is open and nobody else owns it.
        Ok(Socket::own(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether an error of [`Listener::accept`] concerns only the connection that was next: accept(2) passes on what happened to it
/// while it waited, and says to try again.
#[must_use]
pub fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EINTR
                | libc::ECONNABORTED
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
                | libc::EPERM
        )
    )
}

fn bind(fd: RawFd, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(v4) => {
            let name = libc::sockaddr_in {
                sin_family: libc::sa_family_t::try_from(libc::AF_INET).expect("a small constant"),
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            bind_name(fd, &name)
        }
        SocketAddr::V6(v6) => {
            let name = libc::sockaddr_in6 {
                sin6_family: libc::sa_family_t::try_from(libc::AF_INET6).expect("a small constant"),
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            bind_name(fd, &name)
        }
    }
}

/// `T` is one of the two `sockaddr` structures; the caller keeps `fd` open.
fn bind_name<T>(fd: RawFd, name: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).expect("an address is short");
    // SAFETY: `name` is readable for `length` bytes until the call returns; a wrong descriptor or family is an error, not a fault.
    check(unsafe { libc::bind(fd, std::ptr::from_ref(name).cast(), length) })
}

/// `T` is the C structure the option asks for, and what it points to is good; the caller keeps `fd` open.
fn set_option<T>(fd: RawFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).expect("an option is short");
    // SAFETY: `value` is readable for `length` bytes until the call returns; a wrong option is an error, not a fault.
    check(unsafe { libc::setsockopt(fd, level, name, std::ptr::from_ref(value).cast(), length) })
}

/// The socket seen as a stream of the standard library, which knows how to read addresses. Does not own the descriptor.
fn as_stream(fd: BorrowedFd<'_>) -> ManuallyDrop<TcpStream> {
    // SAFETY: the callers use the stream only while their borrow keeps the descriptor open, and `ManuallyDrop` never closes it.
    ManuallyDrop::new(unsafe { TcpStream::from_raw_fd(fd.as_raw_fd()) })
}

/// What a classic program loads to draw a random number: `SKF_AD_OFF + SKF_AD_RANDOM` of the kernel's header.
const BPF_RANDOM: u32 = 0xffff_f000 + 56;
const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;

    fn pair() -> (Socket, TcpStream) {
        let listener = Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 16).unwrap();
        let client = TcpStream::connect(listener.local_address().unwrap()).unwrap();
        (listener.accept().unwrap(), client)
    }

    /// Two listeners share the port which the first was given, over both families.
    #[test]
    fn listeners_share_a_port() {
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let first = match Listener::bind(SocketAddr::from((ip, 0)), 16) {
                Ok(listener) => listener,
                // A machine without IPv6 has nothing to show here.
                Err(_) if ip.is_ipv6() => continue,
                Err(error) => panic!("{error}"),
            };
            let address = first.local_address().unwrap();
            assert_ne!(address.port(), 0);
            assert_eq!(Listener::bind(address, 16).unwrap().local_address().unwrap(), address);
        }
    }

    /// An accepted socket does not wait, knows both addresses, takes the client options, and carries vectors in order.
    #[test]
    fn vectors_arrive_in_order() {
        let (server, mut client) = pair();
        server.set_client_options(Duration::from_secs(75)).unwrap();
        assert_eq!(server.peer_address().unwrap(), client.local_addr().unwrap());
        assert_eq!(server.local_address().unwrap(), client.peer_addr().unwrap());
        assert_eq!(server.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);

        assert_eq!(server.writev(&[IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cde")]).unwrap(), 5);
        assert_eq!(server.writev(&[IoSlice::new(b"f")]).unwrap(), 1);
        server.shutdown_write().unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcdef");

        client.write_all(b"xyz").unwrap();
        drop(client);
        let mut buffer = [0; 8];
        assert_eq!(recv_soon(&server, &mut buffer), 3);
        assert_eq!(&buffer[..3], b"xyz");
        assert_eq!(recv_soon(&server, &mut buffer), 0);
    }

    /// What is set on the listener holds for what it accepts.
    #[test]
    fn client_options_are_inherited() {
        let listener = Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 16).unwrap();
        listener.set_client_options(Duration::from_secs(75)).unwrap();
        let _client = TcpStream::connect(listener.local_address().unwrap()).unwrap();
        let server = listener.accept().unwrap();
        assert_eq!(option(&server, libc::TCP_NODELAY), 1);
        assert_eq!(option(&server, libc::TCP_NOTSENT_LOWAT), limits::NOTSENT_LOWAT_BYTES);
        assert_eq!(option(&server, libc::TCP_USER_TIMEOUT), 75_000);
    }

    fn option(socket: &Socket, name: i32) -> i32 {
        let (mut value, mut length) = (0_i32, 4);
        // SAFETY: `value` is four writable bytes, as `length` says, and `socket` keeps the descriptor open.
        let result = unsafe { libc::getsockopt(socket.raw(), libc::IPPROTO_TCP, name, (&raw mut value).cast(), &raw mut length) };
        assert_eq!(result, 0);
        value
    }

    /// The queue of a listener says how many wait and how many may.
    #[test]
    fn a_listener_knows_its_queue() {
        let listener = Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 5).unwrap();
        let clients = [(); 3].map(|()| TcpStream::connect(listener.local_address().unwrap()).unwrap());
        let backlog = listener.backlog().unwrap();
        assert_eq!(backlog, Backlog { waiting: 3, length: 5 });
        assert!(backlog.is_half_full());
        listener.accept().unwrap();
        assert!(!listener.backlog().unwrap().is_half_full());
        drop(clients);
    }

    /// A group gives newcomers to the listeners it was told, one at least to each, and to any once it is told none; a place without listener
    /// means any.
    #[test]
    fn a_group_goes_where_it_is_steered() {
        let first = Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 64).unwrap();
        let address = first.local_address().unwrap();
        let bound = || Listener::bind(address, 64).unwrap();
        let group = [first, bound(), bound(), bound()];
        let came = |steer: &[u16]| {
            group[3].steer(steer).unwrap();
            let clients = [(); 60].map(|()| TcpStream::connect(address).unwrap());
            let counts = group.each_ref().map(|listener| listener.backlog().unwrap().waiting);
            for (listener, &count) in group.iter().zip(&counts) {
                (0..count).for_each(|_| drop(listener.accept().unwrap()));
            }
            drop(clients);
            counts.map(|count| count > 0)
        };
        // That somebody gets none of 60 has a chance of 2^-60, 3^-20 and so on.
        assert_eq!(came(&[2]), [false, false, true, false]);
        assert_eq!(came(&[0, 3]), [true, false, false, true]);
        assert_eq!(came(&[3, 1, 0]), [true, true, false, true]);
        assert_eq!(came(&[]), [true; 4]);
        assert_eq!(came(&[]), [true; 4]);
        assert_eq!(came(&[9]), [true; 4]);
        // A socket without address finds out as well.
        Listener::try_steering().unwrap();
    }

    /// An aborted connection reaches the peer as a reset, not as an end.
    #[test]
    fn abort_is_a_reset() {
        let (server, mut client) = pair();
        server.set_abort().unwrap();
        drop(server);
        assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    fn recv_soon(socket: &Socket, buffer: &mut [u8]) -> usize {
        for _ in 0..1000 {
            match socket.recv(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
                other => return other.unwrap(),
            }
        }
        panic!("nothing came");
    }
}
