//! The phantom back end: a TCP of our own on a TUN device, so that very many clients cost this machine next to nothing, and its memory
//! belongs to the gateway.                                                                                     [mio, rustix, tun-rs]
//!
//! ```text
//!  gateway ◄─► kernel's TCP ◄─► 198.18.0.1, TUN device ◄─► Phantom: reads and writes packets ◄─► Stack: pure ◄─► clients
//! ```
//!
//! The network is 198.18.0.0/15, set apart for measuring (RFC 2544 C.2.2). Nothing of it leaves the machine. The device belongs to the
//! open file: it is gone with this process, however that ends.

pub mod packet;
pub mod stack;
pub mod wheel;

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::network::{Ending, Network, Ready, Timer};
use stack::{Addresses, Stack};

/// A TUN device, up and with its address. It disappears with this value.
pub struct Device {
    device: SyncDevice,
    number: u8,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Device {
    /// Makes the device of each thread, to reach a gateway at `target`.
    ///
    /// # Errors
    /// What is missing, and the remedy.
    pub fn all(target: SocketAddrV4, threads: usize) -> Result<Vec<Self>, String> {
        if *target.ip() != GATEWAY {
            return Err(format!(
                "the phantom back end reaches a gateway at {GATEWAY} alone: let it listen there, or at 0.0.0.0, and say --url ws://{GATEWAY}:PORT/ws"
            ));
        }
        let count = u8::try_from(threads).ok().filter(|count| *count <= DEVICES_MAX);
        let count = count.ok_or_else(|| format!("the phantom back end has at most {DEVICES_MAX} threads, each with a device"))?;
        let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
        if let Some(device) = taken_by(&routes) {
            return Err(format!(
                "198.18.0.0/15 is in use on {device}; run in a network of its own: unshare --net sh -c 'ip link set lo up; loadgen ...'"
            ));
        }
        (0..count).map(Self::new).collect()
    }

    fn new(number: u8) -> Result<Self, String> {
        let why = |error: io::Error| match error.kind() {
            ErrorKind::PermissionDenied => format!(
                "the phantom back end makes a TUN device and needs CAP_NET_ADMIN: run as root, or as a user with that capability ({error})"
            ),
            ErrorKind::NotFound => {
                format!("the phantom back end needs /dev/net/tun: modprobe tun, or give the container the device ({error})")
            }
            _ => format!("a TUN device {NAME}{number}: {error}"),
        };
        let device = DeviceBuilder::new()
            .name(format!("{NAME}{number}"))
            .ipv4(address(number, 1), PREFIX, None)
            .mtu(packet::MTU)
            .tx_queue_len(QUEUE_PACKETS)
            .build_sync()
            .map_err(why)?;
        device.set_nonblocking(true).map_err(why)?;
        Ok(Self { device, number })
    }
}

/// The clients of one thread, on its device.
#[derive(Debug)]
pub struct Phantom<'a> {
    device: &'a Device,
    poll: Poll,
    events: Events,
    timer: Timer,
    stack: Stack,
    buffer: Vec<u8>,
    origin: Instant,
    /// The device had more packets than one turn takes.
    has_more: bool,
}

impl<'a> Phantom<'a> {
    /// None connected yet; all will go to `target`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(device: &'a Device, target: SocketAddrV4, connections: usize, seed: u64) -> io::Result<Self> {
        let poll = Poll::new()?;
        let timer = Timer::new(&poll, TIMER)?;
        poll.registry().register(&mut SourceFd(&device.device.as_raw_fd()), DEVICE, Interest::READABLE)?;
        let addresses = Addresses { first: address(device.number, 2), peer: target };
        #[expect(clippy::cast_possible_truncation, reason = "half of a seed is one")]
        let seed = seed as u32;
        Ok(Self {
            device,
            poll,
            events: Events::with_capacity(4),
            timer,
            stack: Stack::new(addresses, connections, seed),
            buffer: vec![0; usize::from(packet::MTU)],
            origin: Instant::now(),
            has_more: false,
        })
    }

    /// Writes what waits. What the kernel does not take is lost, as on any network, and comes again.
    fn flush(&mut self) -> io::Result<()> {
        for packet in self.stack.packets() {
            match rustix::io::write(self.device.device.as_fd(), packet) {
                Ok(_) => {}
                Err(
                    rustix::io::Errno::INTR | rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS | rustix::io::Errno::NOMEM,
                ) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.stack.clear_packets();
        Ok(())
    }

    /// Writes what waits if that is much.
    fn flush_much(&mut self) -> io::Result<()> {
        if self.stack.packets_bytes() < PACKETS_BYTES_MAX {
            return Ok(());
        }
        self.flush()
    }

    fn receive(&mut self) -> io::Result<()> {
        self.has_more = true;
        for _ in 0..PACKETS_PER_TURN_MAX {
            match rustix::io::read(self.device.device.as_fd(), &mut self.buffer[..]) {
                Ok(count) => self.stack.input(&self.buffer[..count]),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    self.has_more = false;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Network for Phantom<'_> {
    fn connect(&mut self, index: u32) -> io::Result<()> {
        self.stack.connect(index);
        self.flush_much()
    }

    fn stands(&mut self, index: u32) -> io::Result<()> {
        self.stack.stands(index)
    }

    fn read(&mut self, index: u32, buffer: &mut [u8]) -> io::Result<usize> {
        self.stack.read(index, buffer)
    }

    fn write(&mut self, index: u32, bytes: &[u8]) -> io::Result<usize> {
        let count = self.stack.write(index, bytes)?;
        self.flush_much()?;
        Ok(count)
    }

    fn close(&mut self, index: u32, ending: Ending) {
        self.stack.close(index, ending);
        // A device that is broken says so at the next wait.
        let _ = self.flush_much();
    }

    fn wait(&mut self, longest: Duration) -> io::Result<()> {
        self.stack.acknowledge();
        self.flush()?;
        if !self.has_more {
            let is_idle = !self.stack.is_ready() && !longest.is_zero();
            let time_out = if is_idle { self.timer.arm(longest.min(TICK)).map(|()| None)? } else { Some(Duration::ZERO) };
            match self.poll.poll(&mut self.events, time_out) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        if self.has_more || self.events.iter().any(|event| event.token() == DEVICE) {
            self.receive()?;
        }
        self.stack.expire(u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX));
        Ok(())
    }

    fn next(&mut self) -> Option<Ready> {
        self.stack.next_ready()
    }
}

impl Drop for Phantom<'_> {
    /// As sockets do when their process ends: the gateway hears of it. A device that is broken has nobody to tell.
    fn drop(&mut self) {
        let count = u32::try_from(self.stack.len()).expect("counted by indices");
        for index in 0..count {
            self.close(index, Ending::Reset);
        }
        let _ = self.flush();
    }
}

/// The device that has a route into 198.18.0.0/15, by `/proc/net/route`: addresses in hexadecimal, least significant byte first.
fn taken_by(routes: &str) -> Option<&str> {
    routes.lines().skip(1).find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (device, target) = (words.next()?, words.next()?);
        let target = u32::from_str_radix(target, 16).ok()?.swap_bytes();
        let mask = u32::from_str_radix(words.nth(5)?, 16).ok()?.swap_bytes();
        let common = mask & NETWORK_MASK;

        (mask != 0 && target & common == GATEWAY.to_bits() & common).then_some(device)
    })
}

/// An address of the network of a device.
fn address(number: u8, last: u8) -> Ipv4Addr {
    let [first, second, ..] = GATEWAY.octets();
    Ipv4Addr::new(first, second, number * NETWORK_STEP, last)
}

/// Where the gateway is reached: the address of the first device.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Of 198.18.0.0/15.
const NETWORK_MASK: u32 = !0 << 17;
/// Networks of 8,192 addresses in 198.18.0.0/16.
const DEVICES_MAX: u8 = 8;
const PREFIX: u8 = 19;
/// Between their third bytes.
const NETWORK_STEP: u8 = 1 << (24 - PREFIX);
const NAME: &str = "tgphantom";
/// Packets of the kernel that wait for this program. Full: they are lost, and the kernel sends them again.
const QUEUE_PACKETS: u32 = 100_000;
const PACKETS_PER_TURN_MAX: usize = 256;
const PACKETS_BYTES_MAX: usize = 64 * 1024;
const TICK: Duration = Duration::from_millis(wheel::TICK_MS);
const DEVICE: Token = Token(0);
const TIMER: Token = Token(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// Networks of devices do not meet, and the gateway is in the first.
    #[test]
    fn every_device_has_its_network() {
        assert_eq!(address(0, 1), GATEWAY);
        let numbers: Vec<u32> = (0..DEVICES_MAX).map(|number| address(number, 1).to_bits() >> (32 - u32::from(PREFIX))).collect();
        assert!(numbers.windows(2).all(|two| two[0] + 1 == two[1]), "{numbers:?}");
        assert!(address(DEVICES_MAX - 1, 1).to_bits() & NETWORK_MASK == GATEWAY.to_bits() & NETWORK_MASK);
    }

    /// A route into the network is seen, one that leads everywhere or elsewhere is none.
    #[test]
    fn routes_in_the_way_are_seen() {
        let head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
        let line = |target: &str, mask: &str| format!("{head}eth7\t{target}\t00000000\t0001\t0\t0\t0\t{mask}\t0\t0\t0\n");
        assert_eq!(taken_by(&line("00000000", "00000000")), None);
        assert_eq!(taken_by(&line("0000A8C0", "00FFFFFF")), None);
        assert_eq!(taken_by(&line("0000130A", "0000FFFF")), None);
        for (target, mask) in [("000012C6", "0000FEFF"), ("000013C6", "00FFFFFF"), ("000000C6", "000000FF")] {
            assert_eq!(taken_by(&line(target, mask)), Some("eth7"), "{target}");
        }
    }
}
