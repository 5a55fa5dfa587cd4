//! One gateway process under measurement, on an empty data directory of its own.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tidegate::config::Secret;
use tidegate::io::descriptors::Descriptors;
use tidegate::session::auth;

use crate::Common;
use crate::server::{Core, on_core};
use crate::threads::{Kinds, Times};

/// A running gateway; killed, and its data removed, when dropped.
pub struct Gateway {
    command: Command,
    child: Child,
    data: PathBuf,
    /// Where clients connect.
    pub address: SocketAddr,
    admin: SocketAddr,
}

impl Gateway {
    /// Starts it and waits until it is ready.
    pub fn start(common: &Common, arguments: &[&str]) -> Result<Self, String> {
        let data = common.data.join(format!("run-{}-{}", std::process::id(), common.label));
        let _ = fs::remove_dir_all(&data);
        fs::create_dir_all(&data).map_err(|error| format!("cannot make {}: {error}", data.display()))?;
        let (address, admin) = (free_address()?, free_address()?);
        let mut command = Command::new(common.gateway());
        command
            .arg("serve")
            .args(arguments)
            .env("TIDEGATE_LISTEN", address.to_string())
            .env("TIDEGATE_ADMIN_LISTEN", admin.to_string())
            .env("TIDEGATE_DATA_DIR", &data)
            .env("TIDEGATE_LOG_LEVEL", "error")
            // The bounds on one client are not what is measured.
            .env("TIDEGATE_PROTOCOL_SEND_RATE", "65535")
            .env("TIDEGATE_PROTOCOL_SEND_BURST", "65535")
            .env("TIDEGATE_LIMITS_ACCEPT_PER_S", "100000")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        for setting in &common.settings {
            let (key, value) = setting.split_once('=').ok_or_else(|| format!("--set {setting}: expected key=value"))?;
            command.env(format!("TIDEGATE_{}", key.replace('.', "_").to_uppercase()), value);
        }
        let child = command.spawn().map_err(|error| format!("cannot start {}: {error}", common.gateway().display()))?;
        let mut gateway = Self { command, child, data, address, admin };
        gateway.wait_until_ready()?;
        Ok(gateway)
    }

    /// As [`Gateway::start`], on the first core, with one reactor; the caller, and what it starts from now on, is bound to the last.
    pub fn start_apart(common: &Common) -> Result<Self, String> {
        on_core(Core::Server)?;
        let settings = std::iter::once("reactors=1".to_owned()).chain(common.settings.iter().cloned()).collect();
        let gateway = Self::start(&Common { settings, ..common.clone() }, &[]);
        on_core(Core::Generator)?;
        gateway
    }

    /// kill -9. Its data stays.
    pub fn kill(&mut self) -> Result<(), String> {
        self.child.kill().and_then(|()| self.child.wait()).map(drop).map_err(|error| format!("kill: {error}"))
    }

    /// Starts it again after [`Gateway::kill`], on the same data; how long it took until it was ready.
    pub fn reopen(&mut self) -> Result<Duration, String> {
        let started = Instant::now();
        self.child = self.command.spawn().map_err(|error| format!("cannot start it again: {error}"))?;
        self.wait_until_ready()?;
        Ok(started.elapsed())
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Holds `count` idle sessions open beside what is measured, with the `loadgen` beside this program, until the answer is dropped.
    pub fn crowd(&self, count: usize) -> Result<Crowd, String> {
        let mut command = self.loadgen(&format!("idle -n {count} --seconds 3600"));
        let child = command.stdout(Stdio::null()).spawn().map_err(|error| format!("cannot start {command:?}: {error}"))?;
        let mut crowd = Crowd(child);
        let started = Instant::now();
        while metric_sum(&self.metrics()?, "tidegate_sessions_open") < count as f64 {
            if let Ok(Some(status)) = crowd.0.try_wait() {
                return Err(format!("loadgen ended: {status}"));
            }
            if started.elapsed() > CROWD_WAIT {
                return Err(format!("{count} idle sessions did not come in time"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(crowd)
    }

    /// What it must be told to hold `count` connections, if they do not fit one table of open files.
    pub fn room(count: usize) -> Result<Vec<String>, String> {
        let connections = u64::try_from(count).map_err(|error| error.to_string())?;
        for tables in 1..=TABLES_MAX {
            let descriptors = Descriptors::for_tables(connections, tables).map_err(|error| format!("open files: {error}"))?;
            if descriptors.suffice() {
                let told =
                    ["--reactors".to_owned(), tables.to_string(), "--limits-connections-max".to_owned(), count.to_string()];
                return Ok(if tables == 1 { Vec::new() } else { told.into() });
            }
        }
        Err(format!("{count} connections do not fit {TABLES_MAX} tables of open files: raise the limit, ulimit -Hn"))
    }

    /// The `loadgen` beside this program, for a scenario with its flags, against this gateway.
    pub fn loadgen(&self, scenario: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap_or_default().with_file_name("loadgen"));
        command.args(scenario.split_ascii_whitespace());
        command.args(["--url", &format!("ws://{}/ws", self.address), "--admin", &self.admin.to_string(), "--data-dir"]);
        command.arg(&self.data).stdin(Stdio::null());
        command
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A good token of a user, signed with the key the gateway made.
    pub fn minter(&self) -> Result<impl Fn(&str) -> String + use<>, String> {
        let path = self.data.join("secret");
        let mut key = fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        while key.last().is_some_and(u8::is_ascii_whitespace) {
            key.pop();
        }
        let secret = Secret::new(key).ok_or("the gateway's secret has an unexpected length")?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_err(|error| error.to_string())?;
        let expires = now.as_secs() + 86_400;
        Ok(move |user: &str| auth::mint(&secret, user, None, 0..expires).expect("user ids of ours are good"))
    }

    /// Resident and proportional bytes of the process.
    pub fn memory(&self) -> Result<Memory, String> {
        let text = self.proc("smaps_rollup")?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
        };
        match (field("Rss:"), field("Pss:"), field("Private_Dirty:")) {
            (Some(rss), Some(pss), Some(private_dirty)) => Ok(Memory { rss, pss, private_dirty }),
            _ => Err("smaps_rollup has no Rss, Pss or Private_Dirty".to_owned()),
        }
    }

    /// What each kind of its threads used so far, and waited for.
    pub fn threads(&self) -> Result<Kinds, String> {
        Kinds::of(self.pid())
    }

    /// CPU seconds of the whole process, threads that ended included.
    pub fn cpu_total(&self) -> Result<f64, String> {
        parse_stat(&self.proc("stat")?).map(|(_, seconds)| seconds).ok_or_else(|| "a strange /proc/PID/stat".to_owned())
    }

    /// The whole exposition.
    pub fn metrics(&self) -> Result<String, String> {
        let (status, body) = get(self.admin, "/metrics").map_err(|error| format!("GET /metrics: {error}"))?;
        if status == 200 { Ok(body) } else { Err(format!("GET /metrics: status {status}")) }
    }

    /// Asks its admin interface to do something. While the store is busy it is asked again: on a slow disk with much to write an answer
    /// may come too late. What took place although it seemed not to is no error.
    pub fn post(&self, path: &str, body: &Value) -> Result<(), String> {
        let body = body.to_string();
        let head = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        let mut attempt = 1;
        loop {
            let answer = ask(self.admin, "POST", path, &head, &body);
            let (status, answer) = answer.map_err(|error| format!("POST {path}: {error}"))?;
            match verdict(status, attempt) {
                Verdict::Done => return Ok(()),
                Verdict::Again => std::thread::sleep(POST_REST),
                Verdict::Refused => return Err(format!("POST {path}: status {status}: {answer}")),
            }
            attempt += 1;
        }
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(30) {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("the gateway ended at once: {status}"));
            }
            if get(self.admin, "/readyz").is_ok_and(|(status, _)| status == 200) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err("the gateway was not ready within 30 s".to_owned())
    }

    fn proc(&self, name: &str) -> Result<String, String> {
        let path = format!("/proc/{}/{name}", self.child.id());
        fs::read_to_string(&path).map_err(|error| format!("cannot read {path}: {error}"))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.data);
    }
}

/// Idle sessions of another process, gone when dropped.
pub struct Crowd(Child);

impl Crowd {
    /// What its threads used so far, and waited for.
    pub fn times(&self) -> Result<Times, String> {
        Kinds::of(self.0.id()).map(|kinds| kinds.total())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `smaps_rollup` says, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub rss: u64,
    pub pss: u64,
    pub private_dirty: u64,
}

/// Upper bounds of the buckets of one stage in seconds, with counts up to each.
pub fn stage_buckets(metrics: &str, stage: &str) -> Vec<(f64, u64)> {
    let prefix = "tidegate_stage_seconds_bucket{";
    let label = format!("stage=\"{stage}\"");
    let lines = metrics.lines().filter_map(|line| line.strip_prefix(prefix)?.split_once('}'));
    let parse = |(labels, value): (&str, &str)| {
        let bound = labels.split(',').find_map(|pair| pair.strip_prefix("le=\"")?.strip_suffix('"'))?;
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
        labels.split(',').any(|pair| pair == label).then_some(())?;
        Some((bound, value.trim().parse().ok()?))
    };
    lines.filter_map(parse).collect()
}

/// The quantile of what was added between two scrapes, interpolated within its bucket. `None`: nothing was.
pub fn stage_quantile(before: &[(f64, u64)], after: &[(f64, u64)], quantile: f64) -> Option<f64> {
    let added: Vec<(f64, f64)> = after
        .iter()
        .map(|&(bound, count)| {
            let earlier = before.iter().find(|(known, _)| *known == bound).map_or(0, |&(_, count)| count);
            (bound, (count - earlier) as f64)
        })
        .collect();
    let total = added.last().map(|&(_, count)| count).filter(|&count| count > 0.0)?;
    let rank = quantile * total;
    let (mut low, mut below) = (0.0, 0.0);
    for (bound, count) in added {
        if count >= rank && count > below {
            let high = if bound.is_finite() { bound } else { low };
            return Some(low + (high - low) * (rank - below) / (count - below));
        }
        (low, below) = (bound, count);
    }
    None
}

/// The sum of all samples of a metric, 0 if there is none.
pub fn metric_sum(metrics: &str, name: &str) -> f64 {
    let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
    metrics.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

pub fn parse_stat(stat: &str) -> Option<(String, f64)> {
    let (head, rest) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let mut ticks = rest.split_ascii_whitespace().skip(11).map(str::parse::<u32>);
    let (user, system) = (ticks.next()?.ok()?, ticks.next()?.ok()?);
    Some((name, (f64::from(user) + f64::from(system)) / TICKS_PER_SECOND))
}

/// What an answer of the admin interface means for who asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Done,
    Again,
    Refused,
}

/// Judges the status of an attempt, counted from 1.
fn verdict(status: u16, attempt: u32) -> Verdict {
    match status {
        200..300 => Verdict::Done,
        503 | 504 if attempt < POST_ATTEMPTS_MAX => Verdict::Again,
        // It exists: the attempt before had an effect, only its answer did not come.
        409 if attempt > 1 => Verdict::Done,
        _ => Verdict::Refused,
    }
}

fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    ask(address, "GET", path, "", "")
}

fn ask(address: SocketAddr, method: &str, path: &str, head: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{head}\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
    Ok((status, body))
}

/// An address nobody listens on at this moment.
pub fn free_address() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    listener.map_err(|error| format!("no free port: {error}"))
}

/// Attempts to change something over the admin interface, and the rest between two of them.
const POST_ATTEMPTS_MAX: u32 = 20;
const POST_REST: Duration = Duration::from_millis(500);
/// Tables of open files, one of each reactor.
const TABLES_MAX: u64 = 64;
const CROWD_WAIT: Duration = Duration::from_secs(180);
/// `USER_HZ`, which Linux shows to user space as 100.
const TICKS_PER_SECOND: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    /// Buckets are read by stage and the quantile is taken of the difference alone.
    #[test]
    fn quantile_is_of_what_was_added() {
        let text = |a, b, c| {
            format!(
                "tidegate_stage_seconds_bucket{{le=\"0.001\",stage=\"commit\"}} {a}\n\
                 tidegate_stage_seconds_bucket{{stage=\"commit\",le=\"0.002\"}} {b}\n\
                 tidegate_stage_seconds_bucket{{stage=\"sync\",le=\"0.002\"}} 99\n\
                 tidegate_stage_seconds_bucket{{stage=\"commit\",le=\"+Inf\"}} {c}\n"
            )
        };
        let before = stage_buckets(&text(100, 100, 100), "commit");
        let after = stage_buckets(&text(100, 200, 200), "commit");
        assert_eq!(before.len(), 3);
        let half = stage_quantile(&before, &after, 0.5).unwrap();
        assert!((half - 0.0015).abs() < 1e-9, "{half}");
        assert_eq!(stage_quantile(&before, &before, 0.5), None);
    }

    /// A store that is busy is asked again, for a while; what exists already was made by an attempt whose answer was lost.
    #[test]
    fn busy_store_is_asked_again() {
        assert_eq!(verdict(201, 1), Verdict::Done);
        assert_eq!(verdict(504, 1), Verdict::Again);
        assert_eq!(verdict(503, POST_ATTEMPTS_MAX), Verdict::Refused);
        assert_eq!((verdict(409, 1), verdict(409, 2)), (Verdict::Refused, Verdict::Done));
        assert_eq!(verdict(400, 2), Verdict::Refused);
    }

    /// The name may hold blanks and parentheses.
    #[test]
    fn stat_is_read_after_the_name() {
        let stat = "7 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0";
        assert_eq!(parse_stat(stat), Some(("a (b) c".to_owned(), 2.0)));
    }
}
