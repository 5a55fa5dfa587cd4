//! The real binary: started on free ports with a data directory of its own, stopped, killed and started again.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto::sign;
use jsonwebtoken::{Algorithm, EncodingKey};
use tidegate::config::{Exit, Secret};
use tidegate::session::auth::mint;
use tidegate_client::{Client, Events, Options};

use super::eventually;
use super::port::free_port;

/// One gateway, over several lives.
pub struct Gateway {
    child: Option<Child>,
    dir: PathBuf,
    settings: Vec<(String, String)>,
    pub listen: SocketAddr,
    admin: SocketAddr,
    secret: Arc<Secret>,
    lives: u32,
    /// Program and arguments that start the gateway; empty: it is started itself.
    within: Vec<String>,
}

/// Whether a gateway takes clients.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Readiness {
    Ready,
    /// And why not.
    NotReady(String),
    /// Nobody answers: the process ends, or has ended.
    Gone,
}

impl Gateway {
    /// Starts a gateway with the defaults and two reactors.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts a gateway that may open so many files in each table.
    pub fn with_few_descriptors(descriptors: u32, settings: &[(&str, &str)]) -> Self {
        Self::within(&["sh", "-c", &format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"")], settings)
    }

    /// Starts a gateway by another program, which gets the command as its last arguments and becomes the gateway.
    pub fn within(program: &[&str], settings: &[(&str, &str)]) -> Self {
        Self::start_with(settings, program.iter().map(|&part| part.to_owned()).collect())
    }

    /// Starts a gateway with these settings, such as `("protocol.ping_ms", "1000")`.
    pub fn with(settings: &[(&str, &str)]) -> Self {
        Self::start_with(settings, Vec::new())
    }

    fn start_with(settings: &[(&str, &str)], within: Vec<String>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("gateway-{}-{number}", std::process::id()));
        drop(fs::remove_dir_all(&dir));
        fs::create_dir_all(&dir).expect("a directory for the test");
        let secret = Secret::new(format!("secret of test {number} in process {}, long enough", std::process::id()).into_bytes());
        // Tests reconnect as often as they like.
        let defaults = [
            ("reactors", "2"),
            ("drain.lead_ms", "0"),
            ("drain.window_ms", "500"),
            ("store.free_bytes_min", "1048576"),
            ("protocol.hello_per_minute", "0"),
        ];
        let driver = std::env::var("TIDEGATE_TEST_DRIVER").ok();
        let driver = driver.as_deref().map(|name| ("driver", name));
        let kept = defaults.iter().chain(&driver).filter(|(key, _)| !settings.iter().any(|(other, _)| other == key));
        let listen = free_address();
        let mut gateway = Self {
            child: None,
            dir,
            settings: kept.chain(settings).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            listen,
            admin: listen,
            secret: Arc::new(secret.expect("a good secret")),
            lives: 0,
            within,
        };
        if let Err(status) = gateway.try_run(&[]) {
            // Somebody may have taken the port since it was seen to be free.
            assert_eq!(status.code(), Some(i32::from(Exit::AddressInUse.code())), "at the start:\n{}", gateway.log());
            gateway.listen = free_address();
            gateway.run();
        }
        gateway
    }

    /// Starts the process again on the same port and data. It must not be running.
    pub fn run(&mut self) {
        self.run_with(&[]);
    }

    /// As [`Gateway::run`], with flags that are no settings, such as `--accept-loss`.
    pub fn run_with(&mut self, flags: &[&str]) {
        if let Err(status) = self.try_run(flags) {
            panic!("the gateway ended at its start, {status}:\n{}", self.log());
        }
    }

    /// As [`Gateway::run_with`]; how the process ended if it did so before it was ready.
    fn try_run(&mut self, flags: &[&str]) -> Result<(), ExitStatus> {
        assert!(self.child.is_none(), "it runs already");
        let ready = self.dir.join("ready");
        drop(fs::remove_file(&ready));
        self.lives += 1;
        let log = File::create(self.dir.join(format!("log-{}", self.lives))).expect("a log file");
        let out = log.try_clone().expect("a log file");
        let binary = env!("CARGO_BIN_EXE_tidegate");
        let mut command = Command::new(self.within.first().map_or(binary, String::as_str));
        if let [_, arguments @ ..] = self.within.as_slice() {
            command.args(arguments).arg(binary);
        }
        command.arg("serve").arg("--ready-file").arg(&ready).args(flags);
        command.arg("--listen").arg(self.listen.to_string()).args(["--admin-listen", "127.0.0.1:0"]);
        command.arg("--data-dir").arg(self.dir.join("data"));
        for (key, value) in &self.settings {
            command.arg(format!("--{}", key.replace(['.', '_'], "-"))).arg(value);
        }
        command.env("TIDEGATE_AUTH_SECRET", String::from_utf8_lossy(self.secret.as_bytes()).into_owned());
        command.stdin(Stdio::null()).stdout(out).stderr(log);
        self.child = Some(command.spawn().expect("the binary starts"));
        let started = eventually("the ready file", || match self.child.as_mut()?.try_wait() {
            Ok(Some(status)) => Some(Err(status)),
            _ => fs::read_to_string(&ready).ok().map(Ok),
        });
        let text = started.inspect_err(|_| self.child = None)?;
        let told: serde_json::Value = serde_json::from_str(&text).expect("the ready file is JSON");
        let address = |key: &str| -> SocketAddr { told[key].as_str().and_then(|text| text.parse().ok()).expect("an address") };
        assert_eq!(address("listen"), self.listen);
        self.admin = address("admin");
        Ok(())
    }

    /// kill -9, and the end of the process is awaited.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// A signal by its name, such as `STOP`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().expect("kill runs");
        assert!(status.success(), "the process takes the signal");
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        eventually("the end of the gateway", || child.try_wait().expect("a child"))
    }

    /// Copies the data of a dead gateway aside.
    pub fn copy_data(&self) {
        assert!(self.child.is_none(), "it runs");
        copy(&self.dir.join("data"), &self.dir.join("copy"));
    }

    /// Puts back what was copied aside, and forgets what came after.
    pub fn forget_data(&self) {
        assert!(self.child.is_none(), "it runs");
        fs::remove_dir_all(self.dir.join("data")).expect("a directory of the test");
        copy(&self.dir.join("copy"), &self.dir.join("data"));
    }

    /// Whether the process lives.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// What the process of this life wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join(format!("log-{}", self.lives))).unwrap_or_default()
    }

    /// As [`Gateway::log`], with all that was written until it was ready: a thread of its own writes the lines, and may be behind.
    pub fn log_of_start(&self) -> String {
        eventually("the line that says ready", || Some(self.log()).filter(|log| log.contains(READY)))
    }

    /// Memory in use, bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux says it");
        let kib: u64 = line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number");
        kib * 1024
    }

    /// Memory of the process, shared pages by share, without pages of files: the share of the binary's own pages doubles when another
    /// gateway that ran beside this one ends.
    pub fn proportional_bytes(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid())).expect("it runs");
        let kib = |name: &str| -> u64 {
            let line = text.lines().find(|line| line.starts_with(name)).expect("Linux says it");
            line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
        };
        (kib("Pss:") - kib("Pss_File:")) * 1024
    }

    /// A token for `user` that lives for an hour.
    pub fn token(&self, user: &str) -> String {
        token(&self.secret, user, None, 3600)
    }

    /// A token for `user`, and for `device` alone if named, that ends in so many seconds or ended before.
    pub fn token_for(&self, user: &str, device: Option<&str>, seconds: i64) -> String {
        token(&self.secret, user, device, seconds)
    }

    /// A token of any header and claims, signed with the gateway's own key.
    pub fn token_of(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let key = EncodingKey::from_secret(self.secret.as_bytes());
        format!("{message}.{}", sign(message.as_bytes(), &key, Algorithm::HS256).expect("a key for this algorithm"))
    }

    /// Options of a client that comes back quickly.
    pub fn options(&self, user: &str, device: &str) -> Options {
        let (secret, user) = (Arc::clone(&self.secret), user.to_owned());
        let mut options = Options::new(device, move |_| Some(token(&secret, &user, None, 3600)));
        options.settings.reconnect_base = Duration::from_millis(20);
        options.settings.reconnect_cap = Duration::from_millis(200);
        options
    }

    /// A client with these options.
    pub fn client(&self, options: Options) -> (Client, Events) {
        Client::connect(&format!("ws://{}/ws", self.listen), options).expect("a good URL")
    }

    /// A client that goes through something in between, such as a balancer at `url`.
    pub fn client_through(&self, url: &str, options: Options) -> (Client, Events) {
        Client::connect(url, options).expect("a good URL")
    }

    /// Where operators connect.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// A directory for what belongs to this gateway's test; removed with it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// One request to the admin listener: status and body.
    pub fn admin(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        self.ask_admin(method, path, body).expect("the admin listener answers")
    }

    /// What `/readyz` says.
    pub fn readiness(&self) -> Readiness {
        match self.ask_admin("GET", "/readyz", "") {
            Ok((200, _)) => Readiness::Ready,
            Ok((503, reasons)) => Readiness::NotReady(reasons),
            Ok((status, text)) => panic!("/readyz: {status} {text}"),
            Err(_) => Readiness::Gone,
        }
    }

    /// Whether `/readyz` of a process that lives says so.
    pub fn is_ready(&self) -> bool {
        let told = self.readiness();
        assert_ne!(told, Readiness::Gone);
        told == Readiness::Ready
    }

    /// As [`Gateway::admin`], of a gateway that may be gone.
    pub fn ask_admin(&self, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.admin)?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| std::io::Error::other("no status line"))?;
        Ok((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
    }

    /// Creates a group.
    pub fn group(&self, conv: &str, members: &[&str]) {
        let body = serde_json::json!({ "conv": conv, "members": members }).to_string();
        let (status, answer) = self.admin("POST", "/v1/groups", &body);
        assert_eq!(status, 201, "{answer}");
    }

    /// Changes the members of a group.
    pub fn change_group(&self, conv: &str, add: &[&str], remove: &[&str]) {
        let body = serde_json::json!({ "add": add, "remove": remove }).to_string();
        let (status, answer) = self.admin("POST", &format!("/v1/groups/{conv}/members"), &body);
        assert_eq!(status, 200, "{answer}");
    }

    /// The sum of all samples of a metric, 0 if there is none. A name may go on with its labels, such as `x_total{cause="y"}`.
    pub fn metric(&self, name: &str) -> f64 {
        samples(&self.metrics(), name).iter().sum()
    }

    /// As [`Gateway::metric`], when every reactor has ended the turn it was in: a turn tells clients first and counts then.
    pub fn counted(&self, name: &str) -> f64 {
        let before = samples(&self.metrics(), TURNS);
        assert!(!before.is_empty(), "{TURNS} is told");
        let text = eventually("the end of a turn of each reactor", || {
            let text = self.metrics();
            let turns = samples(&text, TURNS);
            turns.iter().zip(&before).all(|(now, before)| now > before).then_some(text)
        });
        samples(&text, name).iter().sum()
    }

    fn metrics(&self) -> String {
        let (status, text) = self.admin("GET", "/metrics", "");
        assert_eq!(status, 200);
        text
    }

    /// Whether its deadlines for newcomers are shorter than a busy machine may need.
    pub fn is_hasty(&self) -> bool {
        let deadlines = ["protocol.upgrade_ms", "protocol.hello_ms"];
        self.settings.iter().any(|(key, value)| deadlines.contains(&&**key) && value.parse::<u32>().is_ok_and(|ms| ms < HASTY_MS))
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }
}

/// The values of a metric in a page of them.
fn samples(text: &str, name: &str) -> Vec<f64> {
    let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
    text.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect()
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() {
            eprintln!("the gateway's log:\n{}", self.log());
        }
        drop(fs::remove_dir_all(&self.dir));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory of the test");
    for entry in fs::read_dir(from).expect("a directory of the test") {
        let entry = entry.expect("a directory of the test");
        let target = to.join(entry.file_name());
        let kind = entry.file_type().expect("a file of the test");
        if kind.is_dir() {
            copy(&entry.path(), &target);
        } else if kind.is_file() {
            // Not the socket through which a running gateway is copied.
            fs::copy(entry.path(), target).expect("a file of the test");
        }
    }
}

/// Seconds since the Unix epoch.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

fn token(secret: &Secret, user: &str, device: Option<&str>, seconds: i64) -> String {
    let now = unix_s();
    mint(secret, user, device, now..now.saturating_add_signed(seconds)).expect("good names")
}

/// An address that stays free over several lives of a gateway.
pub fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// Of the line that a gateway writes when it takes clients.
pub const READY: &str = r#""message":"ready""#;
const TURNS: &str = "tidegate_turns_total";
const HASTY_MS: u32 = 5_000;
