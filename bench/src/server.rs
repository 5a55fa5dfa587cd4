//! The servers that are compared, each in a process of its own.                                                          [nix]
//!
//! Servers run on the first core, the generator on the last: on two cores neither waits for the other, and what a server costs is read
//! from the scheduler's clock of its threads, in nanoseconds.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::gateway::{Gateway, free_address};
use crate::kernel::{Counted, Counter};
use crate::nats;
use crate::paired::Options;
use crate::peer;
use crate::threads::Kinds;

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contender {
    /// The least a server can do: the ratio of everybody else is taken against it.
    Floor,
    /// The floor once more: how far its ratio is from 1 is the noise.
    FloorAgain,
    /// Ours, by driver.
    Epoll,
    Uring,
    /// Another build of ours (`--against`), by driver.
    EpollBefore,
    UringBefore,
    /// uWebSockets' engine, driven through Bun's JavaScript.
    Bun,
    /// A few lines around tokio-tungstenite, one thread.
    Tungstenite,
    /// NATS JetStream, synced at every message.
    Nats,
    /// NATS that only passes messages on, over WebSocket.
    NatsRelay,
    /// Centrifugo, with its engine in memory.
    Centrifugo,
    /// Nchan, a module of nginx, with its messages in memory.
    Nchan,
}

impl Contender {
    /// Its name in results and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::FloorAgain => "floor_again",
            Self::Epoll => "epoll",
            Self::Uring => "uring",
            Self::EpollBefore => "epoll_before",
            Self::UringBefore => "uring_before",
            Self::Bun => "bun",
            Self::Tungstenite => "tokio_tungstenite",
            Self::Nats => "nats_jetstream",
            Self::NatsRelay => "nats_websocket",
            Self::Centrifugo => "centrifugo",
            Self::Nchan => "nchan",
        }
    }

    /// Whether its bytes are not framed: what comes in goes out.
    pub fn is_bare(self) -> bool {
        matches!(self, Self::Floor | Self::FloorAgain)
    }

    /// What must be there for it, if it is a stranger: `bench/peers/setup` puts it there.
    fn program(self) -> Option<PathBuf> {
        match self {
            Self::Bun => Some(Path::new(PEERS).join("bun/node_modules/bun/bin/bun.exe")),
            Self::Tungstenite => Some(Path::new(PEERS).join("tungstenite/bin/peer-tungstenite")),
            Self::Nats | Self::NatsRelay => Some(Path::new(PEERS).join("nats/nats-server")),
            Self::Centrifugo => Some(Path::new(PEERS).join("centrifugo/centrifugo")),
            Self::Nchan => Some(PathBuf::from("/usr/sbin/nginx")),
            _ => None,
        }
    }

    /// Whether it can be started here.
    pub fn is_here(self) -> bool {
        self.program().is_none_or(|program| program.exists()) && (self != Self::Nchan || peer::nchan_module().exists())
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a bare server does.
#[derive(Clone, Copy, Debug)]
pub enum Bare {
    Echo,
    Upgrade,
    /// Rooms of so many connections.
    Fanout {
        members: usize,
    },
}

impl Bare {
    /// The arguments of the hidden subcommand `floor`.
    fn arguments(self) -> Vec<String> {
        match self {
            Self::Echo => vec!["echo".to_owned()],
            Self::Upgrade => vec!["upgrade".to_owned()],
            Self::Fanout { members } => vec!["fanout".to_owned(), "--members".to_owned(), members.to_string()],
        }
    }
}

/// A running server; killed when dropped.
pub struct Server {
    /// Where clients connect.
    pub address: SocketAddr,
    process: Process,
}

enum Process {
    Gateway(Box<Gateway>),
    Other(Child),
    /// With a folder to be removed.
    Storing(Child, PathBuf),
}

impl Server {
    /// Starts one on the first core and waits until it listens.
    pub fn start(contender: Contender, bare: Bare, options: &Options, gateway_arguments: &[&str]) -> Result<Self, String> {
        on_core(Core::Server)?;
        let started = Self::start_here(contender, bare, options, gateway_arguments);
        on_core(Core::Generator)?;
        started.map_err(|error| format!("{contender}: {error}"))
    }

    fn start_here(contender: Contender, bare: Bare, options: &Options, arguments: &[&str]) -> Result<Self, String> {
        let driver = match contender {
            Contender::Floor | Contender::FloorAgain => {
                let program = std::env::current_exe().map_err(|error| error.to_string())?;
                return Self::spawn(Command::new(program).arg("floor").args(bare.arguments()));
            }
            Contender::Bun => {
                let program = contender.program().expect("a stranger has one");
                return Self::spawn(Command::new(program).arg(Path::new(PEERS).join("bun/echo.js")));
            }
            Contender::Tungstenite => return Self::spawn(&mut Command::new(contender.program().expect("a stranger has one"))),
            Contender::Nats | Contender::NatsRelay | Contender::Centrifugo | Contender::Nchan => {
                return Self::start_stranger(contender, options);
            }
            Contender::Epoll | Contender::EpollBefore => "driver=epoll",
            Contender::Uring | Contender::UringBefore => "driver=uring",
        };
        let mut common = options.common(contender.name());
        // A contender rests while others are measured: no ping may come between, and no deadline pass.
        let ours = [driver, "reactors=1", "protocol.ping_ms=3600000", "protocol.hello_ms=60000"];
        common.settings.splice(0..0, ours.map(str::to_owned));
        if matches!(contender, Contender::EpollBefore | Contender::UringBefore) {
            common.gateway = options.against.clone();
        }
        let gateway = Box::new(Gateway::start(&common, arguments)?);
        Ok(Self { address: gateway.address, process: Process::Gateway(gateway) })
    }

    /// Starts a program whose first line is its address.
    fn spawn(command: &mut Command) -> Result<Self, String> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
        let mut line = String::new();
        let stdout = child.stdout.take().expect("asked for");
        let read = BufReader::new(stdout).read_line(&mut line);
        // From here on it is killed, whatever happens.
        let mut server = Self { address: SocketAddr::from(([127, 0, 0, 1], 0)), process: Process::Other(child) };
        read.map_err(|error| error.to_string())?;
        server.address = line.trim().parse().map_err(|_| format!("its first line is not an address: {line:?}"))?;
        Ok(server)
    }

    /// Starts a program that is told by a file, and waits until it listens.
    fn start_stranger(contender: Contender, options: &Options) -> Result<Self, String> {
        let address = free_address()?;
        let folder = std::path::absolute(&options.data).map_err(|error| error.to_string())?;
        let folder = folder.join(format!("{contender}-{}", std::process::id()));
        let program = contender.program().expect("a stranger has one");
        let mut command = if contender == Contender::Nats {
            nats::write_configuration(&folder, address.port())?;
            let mut command = Command::new(program);
            command.arg("-c").arg(folder.join("nats.conf"));
            command
        } else {
            peer::command(contender, &program, &folder, address.port())?
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| error.to_string())?;
        let server = Self { address, process: Process::Storing(child, folder) };
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            if started.elapsed() > Duration::from_secs(10) {
                return Err("it does not listen".to_owned());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// The gateway, if it is one.
    pub fn gateway(&self) -> Option<&Gateway> {
        match &self.process {
            Process::Gateway(gateway) => Some(gateway),
            Process::Other(_) | Process::Storing(..) => None,
        }
    }

    /// What may be asked about it from another thread.
    pub fn probe(&self) -> Probe {
        let pid = match &self.process {
            Process::Gateway(gateway) => gateway.pid(),
            Process::Other(child) | Process::Storing(child, _) => child.id(),
        };
        Probe::of(pid)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Process::Other(child) | Process::Storing(child, _) = &mut self.process {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Process::Storing(_, folder) = &self.process {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// Reads what a server has cost so far.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pid: u32,
}

impl Probe {
    /// Of a process.
    pub fn of(pid: u32) -> Self {
        Self { pid }
    }

    /// CPU seconds of all its threads.
    pub fn cpu(self) -> Result<f64, String> {
        Kinds::of(self.pid).map(|kinds| kinds.total().cpu_s)
    }

    /// Proportional bytes of its process.
    pub fn user_bytes(self) -> Result<f64, String> {
        self.kib("smaps_rollup", "Pss:")
    }

    /// From here on [`Probe::resident_peak`] counts anew (Linux 4.0).
    pub fn forget_peak(self) -> Result<(), String> {
        let path = format!("/proc/{}/clear_refs", self.pid);
        fs::write(&path, "5").map_err(|error| format!("{path}: {error}"))
    }

    /// The most resident bytes since [`Probe::forget_peak`].
    pub fn resident_peak(self) -> Result<f64, String> {
        self.kib("status", "VmHWM:")
    }

    /// Bytes of the line of `/proc/PID/FILE` that begins with `name`.
    fn kib(self, file: &str, name: &str) -> Result<f64, String> {
        let path = format!("/proc/{}/{file}", self.pid);
        let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        let kib = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
        kib.map(|kib| kib * 1024.0).ok_or_else(|| format!("{path} has no {name}"))
    }

    /// Lets the kernel count, from when it is told.
    pub fn count(self, counted: Counted) -> Result<Counter, String> {
        Counter::attach(self.pid, counted)
    }
}

/// Which end of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Core {
    Server,
    Generator,
}

/// Binds the calling thread, and what it starts from now on.
pub fn on_core(core: Core) -> Result<(), String> {
    let usable = USABLE.get_or_init(|| {
        let all = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        (0..CpuSet::count()).filter(|&number| all.is_set(number).unwrap_or(false)).collect()
    });
    let number = match core {
        Core::Server => usable.first(),
        Core::Generator => usable.last(),
    };
    let mut wanted = CpuSet::new();
    wanted.set(*number.ok_or("no core to run on")?).map_err(|error| format!("cores: {error}"))?;
    sched_setaffinity(Pid::from_raw(0), &wanted).map_err(|error| format!("cores: {error}"))
}

/// The cores of the process, as they were before a thread was bound.
static USABLE: OnceLock<Vec<usize>> = OnceLock::new();
/// Where `bench/peers/setup` puts strangers, seen from the root of the repository.
pub const PEERS: &str = "bench/peers";
