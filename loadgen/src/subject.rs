//! The gateway under load, seen from outside: where it listens, its tokens, its admin side, its process.            [nix]

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidegate::config::Secret;
use tidegate::session::auth;

/// `ws://127.0.0.1:8080/ws`, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Where to connect.
    pub address: SocketAddrV4,
    /// What to ask for.
    pub path: String,
    /// With TLS.
    pub is_secure: bool,
}

impl Target {
    /// Reads a URL. The host is an IPv4 address, so that nothing is looked up.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(url: &str) -> Result<Self, String> {
        let wrong = || format!("{url} is not of the form ws://ADDRESS:PORT/PATH, or wss://, with an IPv4 address");
        let secure = url.strip_prefix("wss://");
        let rest = secure.or(url.strip_prefix("ws://")).ok_or_else(wrong)?;
        let (address, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.is_empty() { "/ws" } else { path };
        Ok(Self { address: address.parse().map_err(|_| wrong())?, path: path.to_owned(), is_secure: secure.is_some() })
    }

    /// Whether only this machine is put under load.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.address.ip().is_loopback()
    }

    /// The request that begins every connection: to speak the protocol, or only to be echoed to.
    #[must_use]
    pub fn request(&self, is_protocol: bool) -> Vec<u8> {
        let Self { address, path, .. } = self;
        let offer = if is_protocol { "Sec-WebSocket-Protocol: tidegate.v1\r\n" } else { "" };
        format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{offer}\r\n"
        )
        .into_bytes()
    }
}

/// Makes tokens with the gateway's secret.
#[derive(Clone)]
pub struct Minter {
    secret: Secret,
    expires_unix_s: u64,
}

impl std::fmt::Debug for Minter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Minter").finish_non_exhaustive()
    }
}

impl Minter {
    /// Reads the secret; its line feed at the end does not count.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn read(path: &Path) -> Result<Self, String> {
        let mut key = fs::read(path).map_err(|error| format!("cannot read the secret {}: {error}", path.display()))?;
        while key.last().is_some_and(u8::is_ascii_whitespace) {
            key.pop();
        }
        let secret = Secret::new(key).ok_or_else(|| format!("{}: a secret has 32 to 4096 bytes", path.display()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
        Ok(Self { secret, expires_unix_s: now.as_secs() + TOKEN_LIFE_S })
    }

    /// A token of a user, good for any device.
    #[must_use]
    pub fn token(&self, user: &str) -> String {
        auth::mint(&self.secret, user, None, 0..self.expires_unix_s).expect("user ids of ours are good")
    }
}

/// One HTTP exchange with the admin side.
///
/// # Errors
/// It did not take place.
pub fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, HTTP_WAIT)?;
    stream.set_read_timeout(Some(HTTP_WAIT))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok((status, answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned()))
}

/// A process that is watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Process(pub u32);

/// What a process uses at a moment.
#[derive(Clone, Copy, PartialEq, Default, Debug, serde::Serialize)]
pub struct Usage {
    /// CPU seconds so far.
    pub cpu_s: f64,
    /// Resident bytes.
    pub rss_bytes: u64,
    /// Open descriptors that are sockets: of the main thread's table, or of all.
    pub sockets: u64,
    /// Open descriptors that are regular files: of a gateway its log and its engine.
    pub files: u64,
    /// Open descriptors, all kinds.
    pub descriptors: u64,
}

impl Process {
    /// This one.
    #[must_use]
    pub fn own() -> Self {
        Self(std::process::id())
    }

    /// CPU seconds so far; `None` if it is gone.
    #[must_use]
    pub fn cpu_s(self) -> Option<f64> {
        cpu_seconds(&fs::read_to_string(format!("/proc/{}/stat", self.0)).ok()?)
    }

    /// What it uses now; `None` if it is gone.
    #[must_use]
    pub fn usage(self) -> Option<Usage> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).ok()?;
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?;
        let rss =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        let mut usage = Usage { cpu_s: cpu_seconds(&stat)?, rss_bytes: rss? * 1024, ..Usage::default() };
        for entry in fs::read_dir(format!("/proc/{}/fd", self.0)).into_iter().flatten().flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let name = target.to_string_lossy();
            usage.descriptors += 1;
            usage.sockets += u64::from(name.starts_with("socket:"));
            usage.files += u64::from(name.starts_with('/') && !name.starts_with("/dev/"));
        }
        Some(usage)
    }

    /// As [`Process::usage`], with the sockets of all threads, each of which may have a descriptor table of its own. Not for every second:
    /// walking a table holds its lock.
    #[must_use]
    pub fn usage_of_all_threads(self) -> Option<Usage> {
        Some(Usage { sockets: self.sockets()?.len() as u64, ..self.usage()? })
    }

    /// By name. A shared table shows the same ones under each of its threads.
    fn sockets(self) -> Option<HashSet<PathBuf>> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0)).ok()?;
        let entries = tasks.flatten().filter_map(|task| fs::read_dir(task.path().join("fd")).ok()).flatten().flatten();
        let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        Some(targets.filter(|target| target.to_string_lossy().starts_with("socket:")).collect())
    }
}

/// CPU seconds out of `/proc/PID/stat`, threads that ended included.
#[must_use]
pub fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut ticks = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11).map(str::parse::<u32>);
    let (user, system) = (ticks.next()?.ok()?, ticks.next()?.ok()?);
    // `USER_HZ`, which Linux shows to user space as 100.
    Some((f64::from(user) + f64::from(system)) / 100.0)
}

/// A gateway that this program started, ended with it.
#[derive(Debug)]
pub struct Started {
    child: Child,
    command: String,
    admin: SocketAddr,
}

impl Started {
    /// Runs `command` by the shell, in its place, and waits until the gateway is ready.
    ///
    /// # Errors
    /// It did not become ready.
    pub fn run(command: &str, admin: SocketAddr) -> Result<Self, String> {
        let mut started = Self { child: spawn(command)?, command: command.to_owned(), admin };
        started.wait_until_ready()?;
        Ok(started)
    }

    /// The process to watch.
    #[must_use]
    pub fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// kill -9; the end of the process is awaited.
    ///
    /// # Errors
    /// It had ended by itself, which is worth a finding.
    pub fn kill(&mut self) -> Result<(), String> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Err(format!("the gateway ended by itself: {status}"));
        }
        self.child.kill().and_then(|()| self.child.wait()).map(|_| ()).map_err(|error| format!("kill: {error}"))
    }

    /// SIGTERM: it is to drain.
    ///
    /// # Errors
    /// It takes no signal.
    pub fn terminate(&self) -> Result<(), String> {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        let told = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        told.map_err(|error| format!("SIGTERM: {error}"))
    }

    /// Whether its process has ended.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)) | Err(_))
    }

    /// Runs the command again.
    ///
    /// # Errors
    /// It did not become ready.
    pub fn run_again(&mut self) -> Result<(), String> {
        self.child = spawn(&self.command)?;
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        while begun.elapsed() < READY_WAIT {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("the gateway ended at its start: {status}"));
            }
            if http(self.admin, "GET", "/readyz", "").is_ok_and(|(status, _)| status == 200) {
                return Ok(());
            }
            std::thread::sleep(READY_POLL);
        }
        Err(format!("the gateway was not ready within {} s", READY_WAIT.as_secs()))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.terminate();
        let begun = Instant::now();
        while begun.elapsed() < STOP_WAIT {
            if self.has_ended() {
                return;
            }
            std::thread::sleep(READY_POLL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(command: &str) -> Result<Child, String> {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("exec {command}")).stdin(Stdio::null()).stdout(Stdio::null());
    shell.spawn().map_err(|error| format!("cannot start {command}: {error}"))
}

/// Tokens outlive every run.
const TOKEN_LIFE_S: u64 = 7 * 86_400;
const HTTP_WAIT: Duration = Duration::from_secs(10);
const READY_WAIT: Duration = Duration::from_secs(60);
const READY_POLL: Duration = Duration::from_millis(5);
/// A gateway that drains longer is killed: the run is over.
const STOP_WAIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    /// URLs of the one form pass, others are refused, and only loopback counts as such.
    #[test]
    fn urls_are_taken_apart() {
        let target = Target::parse("ws://127.0.0.1:8080/chat").unwrap();
        assert_eq!((target.path.as_str(), target.is_loopback()), ("/chat", true));
        assert_eq!(Target::parse("ws://127.0.0.9:80").unwrap().path, "/ws");
        assert!(!Target::parse("ws://10.0.0.1:80/ws").unwrap().is_loopback());
        assert!(Target::parse("wss://127.0.0.1:1/ws").unwrap().is_secure);
        for wrong in ["", "https://127.0.0.1:1/ws", "ws://localhost:1/ws", "ws://127.0.0.1/ws"] {
            assert!(Target::parse(wrong).is_err(), "{wrong}");
        }
    }

    /// The name of a process may hold blanks and parentheses.
    #[test]
    fn cpu_is_read_after_the_name() {
        assert_eq!(cpu_seconds("7 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0"), Some(2.0));
        assert!(Process::own().usage().is_some_and(|usage| usage.rss_bytes > 0 && usage.descriptors > 0));
    }
    /// A socket in a descriptor table of a thread's own is found, as one in the shared table is.
    #[test]
    fn sockets_of_all_tables_are_found() {
        use std::net::TcpListener;
        use std::os::fd::AsRawFd;
        let open = || TcpListener::bind("127.0.0.1:0").unwrap();
        let name = |socket: &TcpListener| fs::read_link(format!("/proc/thread-self/fd/{}", socket.as_raw_fd())).unwrap();
        let shared = open();
        let own = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).unwrap();
            let own = open();
            Process::own().sockets().unwrap().contains(&name(&own))
        });
        assert!(own.join().unwrap() && Process::own().sockets().unwrap().contains(&name(&shared)));
    }
}
