//! Assembly: mailboxes, a reactor per core, store, admin; ready, drain, stop; panic policy.
//!
//! ```text
//!  main ─┬─ store ── projector
//!        ├─ reader 0, 1
//!        ├─ reactor 0 .. n        each makes its own listener and driver, on its own thread
//!        ├─ admin
//!        └─ signals ─► events ─► main: drain, abort, end
//! ```
//!
//! Policy for panics: the handling of one connection's bytes is caught in `reactor.rs`; a panic anywhere else ends the process, because
//! a thread that is gone would leave its clients in silence.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::admin::{self, Admin, Demo, Health};
use crate::clock::Clock;
use crate::config::settings::{DEFINITIONS, PLATFORMS};
use crate::config::value::{DriverChoice, Kind, PresencePolicy, PrivateFds, Raw, RoleChoice};
use crate::config::{Exit, Secret, Settings};
use crate::ids::{Mid, ReactorId, Role};
use crate::io::confine::{self, Grants, Landlock};
use crate::io::descriptors::{self, Descriptors};
use crate::io::driver::Driver;
use crate::io::epoll::{self, Epoll};
use crate::io::pin;
use crate::io::socket::Listener;
use crate::io::uring::{self, Sizes, Uring};
use crate::io::wake::Waker;
use crate::limits;
use crate::mail::{Control, Group, Report, Submit};
use crate::mailbox::{self, Credit, LaneReceiver, LaneSender, SpareSender, lane, spares};
use crate::observe::counters::{ReactorBlock, StoreBlock};
use crate::observe::histogram::{self, ReactorHistograms, StoreHistograms};
use crate::observe::trace::Sampling;
use crate::reactor::{Outbox, Parts, Reactor};
use crate::route::roster;
use crate::session::auth::Verifier;
use crate::session::rate::Rate;
use crate::shard::{self, Rules, Shard};
use crate::store::apply::Senders;
use crate::store::disk::SpaceRule;
use crate::store::disk_real::RealDisk;
use crate::store::engine::{Engine, EngineError, View};
use crate::store::history::History;
use crate::store::job::{Job, JobFault, Loaded, Progress, Projection};
use crate::store::keeper;
use crate::store::level::Levels;
use crate::store::log::{Log, LogError, LogSettings, OpenError, Recovered};
use crate::store::projector::{self, Checkpoints};
use crate::store::reader::{self, Answers};
use crate::store::record;
use crate::store::recovery::Cold;
use crate::store::retention::{Bounds, Keep};
use crate::store::schema::{Batch, Hashes};
use crate::store::sequencer::{self, Policy, Sequencer};
use crate::store::thread::{self, Lanes};
use crate::wire::message::Text;

/// What one start was asked beyond its settings.
pub struct Options {
    /// The key that signs tokens.
    pub secret: Secret,
    /// Serves WebSocket echo instead of the protocol: for the conformance suite.
    pub echo: bool,
    /// Whether the key was made by the gateway itself: on loopback the page to try may then have tokens.
    pub secret_is_ours: bool,
    /// Goes on with a damaged log, under a new epoch, so that clients resynchronise.
    pub accept_loss: bool,
    /// What [`confine`] found.
    pub confined: Confined,
    /// Called once, when clients and operators can connect.
    pub on_ready: Box<dyn FnOnce(&Ready) + Send>,
}

/// What the process gave up before its first thread, and what it found out while it still could.
#[derive(Debug)]
pub struct Confined {
    /// `None`: told not to.
    landlock: Option<std::io::Result<Landlock>>,
    /// Whether another directory than the granted ones can still be listed.
    is_open: bool,
    /// What could not be given up.
    kept: Vec<String>,
    is_root: bool,
    /// Whether io_uring can be used; `None`: nobody asked.
    uring: Option<Result<(), String>>,
}

/// Gives up what a gateway with these settings will not need: new privileges, capabilities, huge pages; with `confine` all files but
/// those it keeps or was named, all ports but its own, connections, and running programs. Makes the data directory if there is none.
///
/// Holds for the calling thread and those it makes later, so it belongs before the first of them, which is the log's.
pub fn confine(settings: &Settings, ready_file: Option<&Path>) -> Confined {
    let mut kept = Vec::new();
    let mut tell = |what: &str, done: std::io::Result<()>| {
        if let Err(error) = done {
            kept.push(format!("{what}: {error}"));
        }
    };
    tell("huge pages", confine::refuse_huge_pages());
    tell("new privileges", confine::refuse_new_privileges());
    tell("capabilities", confine::drop_capabilities());
    // The probe connects to itself, which is not allowed later.
    let uring = Kernel::asks_uring(settings.driver).then(Uring::probe);
    let landlock = settings.confine.then(|| {
        // Whoever opens it later reports what is wrong with it.
        drop(std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&settings.data_dir));
        confine::enter(&grants(settings, ready_file))
    });
    Confined { landlock, is_open: std::fs::read_dir("/").is_ok(), kept, is_root: confine::is_root(), uring }
}

impl Confined {
    /// Tells the operator, once there is a log.
    fn report(&self) {
        for what in &self.kept {
            tracing::warn!("could not give up {what}");
        }
        if self.is_root {
            tracing::warn!(
                "running as root, which a gateway does not need; use a user of its own, as deploy/tidegate.service does, or \
                 setpriv --reuid tidegate --regid tidegate --clear-groups"
            );
        }
        match &self.landlock {
            None => tracing::warn!("confine = false: files, ports and programs stay within reach of this process"),
            Some(Ok(Landlock::Enforced { version })) if !self.is_open => {
                tracing::info!(landlock = version, "confined to its own files and ports");
            }
            Some(Ok(Landlock::Enforced { version })) => tracing::warn!(landlock = version, "confined, but / can still be listed"),
            Some(Ok(Landlock::Missing)) => {
                tracing::warn!("this kernel, or the filter of a container, has no Landlock: files and ports stay within reach");
            }
            Some(Err(error)) => tracing::warn!(%error, "Landlock refused: files and ports stay within reach"),
        }
    }
}

/// What a gateway with these settings needs after its start.
fn grants(settings: &Settings, ready_file: Option<&Path>) -> Grants {
    let beside = |file: &Path| match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let data = &settings.data_dir;
    // Either may be a link to another disk.
    let mut write = vec![data.clone(), data.join("log"), data.join("engine")];
    write.extend(ready_file.map(beside));
    // Files that settings name may be read again. A directory, not the file, because whoever changes a file puts another in its place.
    let (mut read, mut ports, mut is_chosen) = (Vec::new(), Vec::new(), false);
    for definition in DEFINITIONS.iter().filter(|definition| definition.key != "data_dir") {
        match ((definition.value)(settings), definition.kind) {
            (Raw::Text(path), Kind::Path) => read.push(beside(Path::new(&path))),
            (Raw::List(items), _) => read.extend(items.iter().map(Path::new).filter(|item| item.is_file()).map(beside)),
            (Raw::Text(address), Kind::Address) => {
                let port = address.parse().map_or(0, |address: SocketAddr| address.port());
                // A port that the kernel chooses is bound once by the first reactor and then by its number.
                is_chosen |= port == 0 && definition.key != "admin.listen";
                ports.push(port);
            }
            _ => {}
        }
    }
    // Memory and processor time of this process; the share of cores that a container has.
    read.extend(["/proc", "/sys/fs/cgroup"].map(PathBuf::from));
    // A static binary draws random bytes from here.
    read.extend(["/dev/urandom", "/dev/random"].map(PathBuf::from));
    // The names of functions, for the record of a crash.
    read.extend(std::env::current_exe());
    let listen = (!is_chosen).then_some(ports);
    Grants { write, read, listen }
}

/// Where the gateway can be reached; ports that were 0 are the real ones.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// For clients.
    pub listen: SocketAddr,
    /// For operators.
    pub admin: SocketAddr,
}

/// Why the gateway could not start or go on.
#[derive(Debug)]
pub struct Fatal {
    /// The exit code it maps to.
    pub exit: Exit,
    /// Operation, object and remedy, for the operator.
    pub reason: String,
}

impl Fatal {
    fn new(exit: Exit, reason: impl fmt::Display) -> Self {
        Self { exit, reason: reason.to_string() }
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Fatal {}

/// Runs the gateway until it is drained.
///
/// # Errors
/// [`Fatal`]. What was acknowledged is on disk whatever the reason.
pub fn serve(settings: Settings, options: Options) -> Result<(), Fatal> {
    options.confined.report();
    let clock = Clock::new();
    let cores = reactors_count(&settings);
    // The first descriptors of all: their numbers are the same in every table, and nothing else is copied into them.
    let wakers = (0..cores).map(|_| Waker::for_driver()).collect::<Result<Vec<_>, _>>();
    let wakers = wakers.map_err(|error| Fatal::new(Exit::Failed, format!("making an eventfd per reactor: {error}")))?;
    let Share { connections: connections_per_reactor, is_private } = share(&settings, cores)?;
    let last_bell = wakers.iter().filter_map(Waker::descriptor).map(|bell| bell.as_raw_fd()).max().filter(|_| is_private);
    let kernel = Kernel::choose(&settings, cores, connections_per_reactor, options.confined.uring)?;
    let (events_in, events) = mpsc::channel();
    watch_signals(&events_in)?;
    let (posts, inboxes): (Vec<_>, Vec<_>) = wakers.iter().map(mailbox::reactor_lanes).unzip();

    let (store, source) = Store::start(&settings, options.accept_loss, clock, &posts, &events_in)?;
    let mut rules = rules(&settings, options.echo, cores, connections_per_reactor, store.hash_key)?;
    if settings.protocol.dedup_s > store.dedup_s {
        let (configured, kept) = (settings.protocol.dedup_s, store.dedup_s);
        tracing::warn!(
            configured,
            kept,
            "protocol.dedup_s is longer than what this data directory was made for; clients are told what is kept"
        );
        rules.dedup_s = kept;
    }
    let rules = Arc::new(rules);
    let verifier = Arc::new(Verifier::new(&options.secret, settings.auth.leeway_s));
    let mut blocks = Vec::new();
    let mut sources = vec![source];
    let mut listen = settings.listen;
    let health = Arc::new(Health::new(u16::try_from(cores).expect("settings bound the number of reactors")));
    health.store_opened();
    let (reports_in, reports) = mpsc::channel();
    for (number, (inbox, waker)) in inboxes.into_iter().zip(wakers).enumerate() {
        let block = Arc::new(ReactorBlock::default());
        let (histograms, source) = ReactorHistograms::new();
        blocks.push(block.clone());
        sources.push(source);
        let parts = Parts {
            id: ReactorId(u16::try_from(number).expect("settings bound the number of reactors")),
            inbox,
            waker,
            outbox: Outbox {
                submit: store.submit.clone(),
                credit: store.credit.clone(),
                peers: posts.iter().map(|post| post.peer.clone()).collect(),
                spare_groups: store.spare_groups.clone(),
            },
            clock,
            block,
            histograms,
            reports: reports_in.clone(),
            table: is_private.then_some(connections_per_reactor),
        };
        let start = Start {
            rules: rules.clone(),
            verifier: verifier.clone(),
            listen,
            connections: connections_per_reactor,
            kernel,
            last_bell,
        };
        spawn_reactor(start, parts, &events_in)?;
        // The first one resolves port 0; the others join its group.
        listen = wait_for_listener(&reports, &events)?;
        health.reactor_accepts();
    }
    let may_demo = options.secret_is_ours && listen.ip().is_loopback() && settings.admin.listen.ip().is_loopback();
    let demo = Demo { listen, path: settings.path.clone(), secret: may_demo.then(|| options.secret.clone()) };
    let sources = admin::Sources {
        reactors: blocks,
        store: store.block.clone(),
        histograms: sources,
        health: health.clone(),
        submit: store.submit.clone(),
        credit: store.credit.clone(),
        controls: posts.iter().map(|post| post.control.clone()).collect(),
        settings: settings.clone(),
        drain: {
            let events = events_in.clone();
            Box::new(move || drop(events.send(Occurrence::Signal(Signal::Terminate))))
        },
        clock,
        version: env!("CARGO_PKG_VERSION"),
        idle_session_bytes: idle_layout(kernel.slot_bytes()).iter().map(|(_, bytes)| bytes).sum(),
        demo,
    };
    let admin = Admin::start(settings.admin.listen, sources)
        .map_err(|error| Fatal::new(Exit::AddressInUse, format!("admin.listen {}: {error}", settings.admin.listen)))?;
    (options.on_ready)(&Ready { listen, admin: admin.addr() });
    tracing::info!(%listen, admin = %admin.addr(), reactors = cores, driver = kernel.name(), "ready");

    let reason = events.recv().expect("the signal thread holds a sender");
    let ended = match reason {
        Occurrence::Signal(signal) => {
            health.drain();
            drain(&settings, signal, &posts, &reports, &events)
        }
        Occurrence::Fatal(fatal) => Err(fatal),
    };
    // A store that failed has nothing to finish, and its thread is gone.
    if ended.as_ref().is_err_and(|fatal| fatal.exit == Exit::StorageFailed) {
        return ended;
    }
    let finished = store.finish();
    admin.stop();
    ended.and(finished)
}

/// Bytes that an idle session occupies by layout, line by line: the table of `docs/architecture.md`. `socket` is the driver's part.
/// Names, the table that finds them and the timer of the token come on top.
fn idle_layout(socket: usize) -> [(&'static str, usize); 6] {
    let [hot, cold, tick, session] = shard::IDLE_LINES;
    [hot, cold, tick, session, ("socket", socket), ("roster entry", roster::ENTRY_BYTES)]
}

/// What main waits for.
enum Occurrence {
    /// SIGTERM or SIGINT.
    Signal(Signal),
    /// A thread cannot go on.
    Fatal(Fatal),
}

/// Who asks for the drain.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Signal {
    /// SIGTERM: a service manager, with balancers that must notice first.
    Terminate,
    /// SIGINT: a person at the terminal, who wants it to end.
    Interrupt,
}

/// Tells every reactor to let its clients go, and waits for the last one.
fn drain(
    settings: &Settings,
    signal: Signal,
    posts: &[mailbox::Post],
    reports: &Receiver<Report>,
    events: &Receiver<Occurrence>,
) -> Result<(), Fatal> {
    let lead_ms = if signal == Signal::Interrupt { 0 } else { settings.drain.lead_ms };
    tracing::info!(lead_ms, window_ms = settings.drain.window_ms, "draining; a second signal cuts it short");
    if let Ok(occurrence) = events.recv_timeout(Duration::from_millis(u64::from(lead_ms))) {
        return Err(cut_short(occurrence));
    }
    for post in posts {
        let window_ms = settings.drain.window_ms;
        // The lane is empty but for questions of the admin thread.
        drop(post.control.send_within(Control::Drain { close_code: 1012, window_ms }, Duration::from_secs(1)));
    }
    let patience = Duration::from_millis(u64::from(settings.drain.window_ms)) + DRAIN_PATIENCE;
    let deadline = Instant::now() + patience;
    let mut left = posts.len();
    while left > 0 && Instant::now() < deadline {
        match reports.recv_timeout(DRAIN_LOOK) {
            Ok(Report::Drained { .. }) => left -= 1,
            Ok(Report::Failed { reason, .. }) => return Err(Fatal::new(Exit::Failed, reason)),
            Ok(Report::Ready { .. } | Report::Bound { .. }) | Err(_) => {}
        }
        match events.try_recv() {
            Ok(occurrence) => return Err(cut_short(occurrence)),
            Err(_) => continue,
        }
    }
    if left > 0 {
        tracing::warn!(reactors = left, "clients were left at the end of the drain");
    }
    Ok(())
}

fn cut_short(occurrence: Occurrence) -> Fatal {
    match occurrence {
        Occurrence::Signal(_) => Fatal::new(Exit::Aborted, "a second signal cut the drain short; clients were cut off"),
        Occurrence::Fatal(fatal) => fatal,
    }
}

/// SIGTERM and SIGINT become events.
fn watch_signals(events: &mpsc::Sender<Occurrence>) -> Result<(), Fatal> {
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])
        .map_err(|error| Fatal::new(Exit::Failed, format!("catching signals: {error}")))?;
    let events = events.clone();
    spawn("signals", move || {
        for number in signals.forever() {
            let signal = if number == signal_hook::consts::SIGINT { Signal::Interrupt } else { Signal::Terminate };
            if events.send(Occurrence::Signal(signal)).is_err() {
                return;
            }
        }
    })
    .map(drop)
}

/// What a reactor thread needs to make itself.
struct Start {
    rules: Arc<Rules>,
    verifier: Arc<Verifier>,
    listen: SocketAddr,
    connections: usize,
    kernel: Kernel,
    /// The last descriptor to keep in a table of its own; `None`: it shares the process's.
    last_bell: Option<i32>,
}

/// How reactors wait; chosen once, before the first of them starts.
#[derive(Clone, Copy, Debug)]
enum Kernel {
    Epoll,
    Uring(Sizes),
}

impl Kernel {
    /// Whether it is to be found out if io_uring can be used.
    fn asks_uring(wanted: DriverChoice) -> bool {
        match wanted {
            DriverChoice::Epoll => false,
            DriverChoice::Auto => AUTO_IS_URING,
            DriverChoice::Uring => true,
        }
    }

    /// What the settings ask, if this machine allows it: `uring` is what the probe said, `None` if nobody asked.
    fn choose(
        settings: &Settings,
        reactors: usize,
        connections: usize,
        uring: Option<Result<(), String>>,
    ) -> Result<Self, Fatal> {
        match uring {
            None => Ok(Self::Epoll),
            Some(Ok(())) => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                let park_after = Some(settings.uring.park_after_ms).filter(|&ms| ms > 0);
                let park_after = park_after.map(|ms| Duration::from_millis(u64::from(ms)));
                Ok(Self::Uring(Sizes::share(connections, reactors, cores, park_after)))
            }
            Some(Err(reason)) if settings.driver == DriverChoice::Auto => {
                tracing::info!(reason, "io_uring is not to be had here; the driver is epoll");
                Ok(Self::Epoll)
            }
            Some(Err(reason)) => Err(Fatal::new(
                Exit::Failed,
                format!(
                    "driver \"uring\": {reason}; it needs Linux 6.6 or newer, kernel.io_uring_disabled = 0, and a container whose \
                     seccomp filter lets io_uring_setup, io_uring_enter and io_uring_register pass. Or set driver = \"epoll\""
                ),
            )),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Epoll => Epoll::NAME,
            Self::Uring(_) => Uring::NAME,
        }
    }

    fn slot_bytes(self) -> usize {
        match self {
            Self::Epoll => epoll::SLOT_BYTES,
            Self::Uring(_) => uring::SLOT_BYTES,
        }
    }
}

fn spawn_reactor(start: Start, parts: Parts, events: &mpsc::Sender<Occurrence>) -> Result<(), Fatal> {
    let name = format!("reactor-{}", parts.id.0);
    let events = events.clone();
    spawn(&name, move || {
        let guard = EndGuard { events: events.clone(), armed: true };
        let result = run_reactor(&start, parts);
        guard.disarm();
        if let Err(fatal) = result {
            drop(events.send(Occurrence::Fatal(fatal)));
        }
    })
    .map(drop)
}

fn run_reactor(start: &Start, parts: Parts) -> Result<(), Fatal> {
    let id = parts.id;
    if let Some(last_bell) = start.last_bell {
        descriptors::take_own_table(last_bell).map_err(|error| {
            let remedy = "set reactor.private_fds = \"off\" and lower limits.connections_max";
            Fatal::new(Exit::Failed, format!("a descriptor table for reactor {}: {error}; {remedy}", id.0))
        })?;
    }
    if pin::pin_current_thread(usize::from(id.0)).is_none() {
        tracing::warn!(reactor = id.0, "not pinned to a core: the process may not choose its cores");
    }
    let listener = Listener::bind(start.listen, limits::LISTEN_BACKLOG).map_err(|error| {
        Fatal::new(Exit::AddressInUse, format!("listen {}: {error}; is another gateway running?", start.listen))
    })?;
    let failed = |error: std::io::Error| Fatal::new(Exit::Failed, format!("reactor {}: {error}", id.0));
    listener.set_client_options(USER_TIMEOUT).map_err(failed)?;
    let address = listener.local_address().map_err(failed)?;
    let shard = Shard::new(id, start.rules.clone(), start.verifier.clone(), parts.clock.now());
    let waker = parts.waker.clone();
    let bound = Report::Bound { address };
    match start.kernel {
        Kernel::Epoll => {
            let driver = Epoll::new(start.connections, Some(listener), waker).map_err(failed)?;
            drop(parts.reports.send(bound));
            Reactor::new(driver, shard, limits::STASH_BYTES_MAX, parts).run()
        }
        Kernel::Uring(sizes) => {
            let driver = Uring::new(sizes, Some(listener), waker).map_err(failed)?;
            drop(parts.reports.send(bound));
            Reactor::new(driver, shard, limits::STASH_BYTES_MAX, parts).run()
        }
    }
    .map_err(failed)
}

fn wait_for_listener(reports: &Receiver<Report>, events: &Receiver<Occurrence>) -> Result<SocketAddr, Fatal> {
    loop {
        match reports.recv_timeout(Duration::from_millis(50)) {
            Ok(Report::Bound { address }) => return Ok(address),
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Fatal::new(Exit::Failed, "no reactor is left")),
        }
        if let Ok(occurrence) = events.try_recv() {
            return Err(cut_short(occurrence));
        }
    }
}

/// A thread that panics takes the process with it, by way of main and its exit code.
struct EndGuard {
    events: mpsc::Sender<Occurrence>,
    armed: bool,
}

impl EndGuard {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        if self.armed {
            let name = std::thread::current().name().unwrap_or("a thread").to_owned();
            drop(self.events.send(Occurrence::Fatal(Fatal::new(Exit::Failed, format!("{name} panicked; see the log above")))));
        }
    }
}

/// The store side: threads, and the lanes into them.
struct Store {
    submit: LaneSender<Submit>,
    spare_groups: SpareSender<Group>,
    credit: Credit,
    block: Arc<StoreBlock>,
    hash_key: [u8; 16],
    dedup_s: u32,
    stop: Arc<AtomicBool>,
    waker: Waker,
    ended: Receiver<Result<(), LogError>>,
    projector: JoinHandle<()>,
}

impl Store {
    fn start(
        settings: &Settings,
        accept_loss: bool,
        clock: Clock,
        posts: &[mailbox::Post],
        events: &mpsc::Sender<Occurrence>,
    ) -> Result<(Self, histogram::Source), Fatal> {
        let dir = &settings.data_dir;
        let engine = open_engine(dir, settings)?;
        let store = engine.store().map_err(storage)?.expect("made when it was opened");
        let position = engine.position().map_err(storage)?;
        let (log, recovered) = open_log(settings, accept_loss, &position)?;
        if let Some((segment, offset)) = &recovered.torn {
            tracing::info!(segment, offset, "cut off an unfinished commit group that nobody was promised");
        }
        if let Some((first, last)) = recovered.lost {
            tracing::warn!(first, last, "commit groups were given up; clients resynchronise");
        }
        let progress = Arc::new(Progress::new(position.group));
        let hashes = Hashes::new(store.hash_key);
        let begun = Instant::now();
        let mut cold = Bare { engine: &engine, hashes, progress: &progress, groups: 0, failed: None };
        let how = store_settings(settings, posts.len(), clock);
        let sequencer = Sequencer::recover(log, &recovered, (&store, &position), how, progress.clone(), &mut cold);
        let groups = cold.groups;
        if let Some(error) = cold.failed {
            return Err(storage(error));
        }
        let sequencer = sequencer.map_err(|error| Fatal::new(Exit::LogCorrupt, error))?;
        tracing::info!(groups, took_ms = begun.elapsed().as_millis(), "replayed the log");

        let waker = Waker::for_thread();
        let (submit, submits) = lane(limits::SUBMIT_LANE_MAX, &waker);
        let (answer, answers) = lane(limits::JOB_LANE_MAX, &waker);
        let (project, projections) = lane(PROJECT_LANE_MAX, &Waker::for_thread());
        let mut jobs = Vec::new();
        let to = Answers { store: answer, pages: posts.iter().map(|post| post.page.clone()).collect() };
        for number in 0..settings.store.readers {
            let (job, lane) = lane(limits::JOB_LANE_MAX, &Waker::for_thread());
            jobs.push(job);
            spawn_reader(number, engine.clone(), hashes, lane, progress.clone(), clock, to.clone())?;
        }
        let checkpoints = Checkpoints { flush_bytes: settings.store.segment_bytes, sync_every: CHECKPOINT_EVERY };
        let (spare_groups_in, spare_groups) = spares(limits::SPARES_PER_CORE_MAX * posts.len());
        let (spare_batches_in, spare_batches) = spares(limits::SPARE_BATCHES_MAX);
        let copies = engine.clone();
        let projector = spawn_projector(engine, projections, progress, spare_batches_in, checkpoints, events.clone())?;
        let stop = Arc::new(AtomicBool::new(false));
        let block = Arc::new(StoreBlock::default());
        let (histograms, source) = StoreHistograms::new();
        let credit = Credit::new(settings.limits.submit_bytes_max);
        let lanes = Lanes {
            submit: submits,
            answer: answers,
            group: posts.iter().map(|post| post.group.clone()).collect(),
            job: jobs,
            project,
            spare_groups,
            spare_batches,
            credit: credit.clone(),
            clock,
            waker: waker.clone(),
            stop: stop.clone(),
            block: block.clone(),
            histograms,
        };
        let ended = spawn_store(sequencer, lanes, events.clone())?;
        spawn_keeper(dir, copies, submit.clone())?;
        let store = Self {
            submit,
            spare_groups: spare_groups_in,
            credit,
            block,
            hash_key: store.hash_key,
            dedup_s: store.dedup_s,
            stop,
            waker,
            ended,
            projector,
        };
        Ok((store, source))
    }

    /// Writes what rides, makes a checkpoint, ends the threads.
    fn finish(self) -> Result<(), Fatal> {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        let ended = self.ended.recv_timeout(FINISH_PATIENCE);
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Fatal::new(Exit::StorageFailed, error)),
            Err(_) => return Err(Fatal::new(Exit::Failed, "the store did not finish in time; the next start replays the log")),
        }
        if self.projector.join().is_err() {
            return Err(Fatal::new(Exit::Failed, "the projector panicked; the next start replays the log"));
        }
        Ok(())
    }
}

/// Gives a view of a store whose gateway does not run to `look`: brought up to the end of its log first, as a start would.
///
/// # Errors
/// [`Fatal`]; above all when another process has the data directory.
pub fn at_rest<T>(settings: &Settings, look: impl FnOnce(View<'_>) -> T) -> Result<T, Fatal> {
    let dir = &settings.data_dir;
    if !dir.join("engine").exists() {
        return Err(Fatal::new(Exit::Failed, format!("data_dir {} holds no store: name the one of the gateway", dir.display())));
    }
    let engine = open_engine(dir, settings)?;
    let store = engine.store().map_err(storage)?.expect("made when it was opened");
    let position = engine.position().map_err(storage)?;
    let (log, recovered) = open_log(settings, false, &position)?;
    let progress = Arc::new(Progress::new(position.group));
    let hashes = Hashes::new(store.hash_key);
    let mut cold = Bare { engine: &engine, hashes, progress: &progress, groups: 0, failed: None };
    let how = store_settings(settings, 0, Clock::new());
    let sequencer = Sequencer::recover(log, &recovered, (&store, &position), how, progress.clone(), &mut cold);
    if let Some(error) = cold.failed {
        return Err(storage(error));
    }
    drop(sequencer.map_err(|error| Fatal::new(Exit::LogCorrupt, error))?);
    let looked = look(engine.view());
    engine.checkpoint(true).map_err(storage)?;
    Ok(looked)
}

fn open_log(settings: &Settings, accept_loss: bool, position: &record::Position) -> Result<(Log<RealDisk>, Recovered), Fatal> {
    let dir = settings.data_dir.join("log");
    let disk = RealDisk::new(&dir).map_err(|error| Fatal::new(Exit::Failed, format!("data_dir: {error}")))?;
    let log = LogSettings { segment_bytes: settings.store.segment_bytes, accept_loss, projected: position.group };
    Log::open(disk, log).map_err(|error| match &error {
        OpenError::Corrupt(_) => Fatal::new(Exit::LogCorrupt, error),
        OpenError::Io(_) => Fatal::new(Exit::Failed, error),
    })
}

fn store_settings(settings: &Settings, cores: usize, clock: Clock) -> sequencer::Settings {
    sequencer::Settings {
        levels: levels(settings),
        hellos_per_minute: u32::from(settings.protocol.hello_per_minute),
        sampling: Sampling { every: settings.log.trace_every },
        space: SpaceRule { free_bytes_min: settings.store.free_bytes_min, free_percent_min: settings.store.free_percent_min },
        cores,
        policy: policy(settings),
        started_ms: clock.now().unix_ms,
    }
}

/// Opens the engine; a new one gets its identity.
fn open_engine(dir: &Path, settings: &Settings) -> Result<Engine, Fatal> {
    std::fs::create_dir_all(dir).map_err(|error| Fatal::new(Exit::Failed, format!("data_dir {}: {error}", dir.display())))?;
    let engine = Engine::open(&dir.join("engine"), settings.store.cache_bytes).map_err(storage)?;
    if engine.store().map_err(storage)?.is_none() {
        let mut hash_key = [0; 16];
        getrandom::fill(&mut hash_key).map_err(|error| Fatal::new(Exit::Failed, format!("drawing random bytes: {error}")))?;
        let store = record::Store { shard: 0, shards: 1, dedup_s: settings.protocol.dedup_s, hash_key };
        let position = record::Position { group: 0, changed: Mid(0).0, epoch: 1, epoch_changed: 0 };
        engine.create(&store, &position).map_err(storage)?;
    }
    Ok(engine)
}

/// The engine during recovery, when nothing else uses it.
struct Bare<'a> {
    engine: &'a Engine,
    hashes: Hashes,
    progress: &'a Progress,
    groups: u64,
    failed: Option<EngineError>,
}

impl Cold for Bare<'_> {
    fn load(&mut self, conv: &str) -> Result<Option<Loaded>, JobFault> {
        History::new(self.engine.view(), self.hashes).map_err(|_| JobFault::Engine)?.load(conv)
    }

    fn bans(&mut self) -> Result<Vec<(Text, Option<Text>)>, JobFault> {
        History::new(self.engine.view(), self.hashes).map_err(|_| JobFault::Engine)?.bans()
    }

    fn project(&mut self, mut projection: Projection) {
        self.groups += 1;
        match self.engine.write(&mut projection.batch) {
            Ok(()) => {
                self.progress.handed_over(0);
                self.progress.written(projection.number, 0);
            }
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
    }
}

fn spawn_reader(
    number: u16,
    engine: Engine,
    hashes: Hashes,
    jobs: LaneReceiver<Job>,
    progress: Arc<Progress>,
    clock: Clock,
    answers: Answers,
) -> Result<(), Fatal> {
    spawn(&format!("reader-{number}"), move || reader::run(&engine, hashes, &jobs, &progress, clock, &answers)).map(drop)
}

/// Without its socket the gateway runs as well; only nobody can copy what it holds.
fn spawn_keeper(dir: &Path, engine: Engine, submit: LaneSender<Submit>) -> Result<(), Fatal> {
    match keeper::listen(dir) {
        Ok(listener) => spawn("keeper", move || keeper::run(&listener, &keeper::Source { engine, submit })).map(drop),
        Err(error) => {
            tracing::warn!(%error, "no socket for copies in the data directory: no backup while this gateway runs");
            Ok(())
        }
    }
}

fn spawn_projector(
    engine: Engine,
    groups: LaneReceiver<Projection>,
    progress: Arc<Progress>,
    spares: SpareSender<Batch>,
    checkpoints: Checkpoints,
    events: mpsc::Sender<Occurrence>,
) -> Result<JoinHandle<()>, Fatal> {
    spawn("projector", move || {
        let guard = EndGuard { events: events.clone(), armed: true };
        let result = projector::run(&engine, &groups, &progress, &spares, checkpoints);
        guard.disarm();
        if let Err(error) = result {
            drop(events.send(Occurrence::Fatal(storage(error))));
        }
    })
}

fn spawn_store(
    sequencer: Sequencer<RealDisk>,
    lanes: Lanes,
    events: mpsc::Sender<Occurrence>,
) -> Result<Receiver<Result<(), LogError>>, Fatal> {
    let handle =
        thread::spawn(sequencer, lanes).map_err(|error| Fatal::new(Exit::Failed, format!("starting the store: {error}")))?;
    let (ended_in, ended) = mpsc::sync_channel(1);
    spawn("store-watch", move || {
        let result = handle.join();
        match result {
            Ok(Ok(())) => drop(ended_in.send(Ok(()))),
            Ok(Err(error)) => {
                let reason =
                    format!("{error}. Nothing more can be acknowledged; what was acknowledged is on disk. Look at the disk");
                drop(events.send(Occurrence::Fatal(Fatal::new(Exit::StorageFailed, reason))));
                drop(ended_in.send(Err(error)));
            }
            Err(_) => drop(events.send(Occurrence::Fatal(Fatal::new(Exit::Failed, "the store panicked; see the log above")))),
        }
    })?;
    Ok(ended)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Fatal> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn(body).map_err(|error| Fatal::new(Exit::Failed, format!("starting thread {name}: {error}")))
}

fn storage(error: EngineError) -> Fatal {
    let exit = match error {
        EngineError::Locked => Exit::DataDirLocked,
        EngineError::Failed { .. } => Exit::StorageFailed,
    };
    Fatal::new(exit, error)
}

fn reactors_count(settings: &Settings) -> usize {
    if settings.reactors > 0 {
        return usize::from(settings.reactors);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores >= 4 { cores - 1 } else { cores }
}

/// What one reactor may hold.
struct Share {
    connections: usize,
    /// In a descriptor table of its own.
    is_private: bool,
}

/// The share of one reactor, refused if it does not fit the open files.
fn share(settings: &Settings, cores: usize) -> Result<Share, Fatal> {
    let asked = u64::from(settings.limits.connections_max);
    let failed = |error| Fatal::new(Exit::Failed, format!("asking for the limit of open files: {error}"));
    let one = Descriptors::for_connections(asked).map_err(failed)?;
    let is_private = match settings.reactor.private_fds {
        PrivateFds::On => cores > 1,
        PrivateFds::Off => false,
        PrivateFds::Auto => cores > 1 && !one.suffice(),
    };
    let descriptors = if is_private { Descriptors::for_tables(asked, cores as u64).map_err(failed)? } else { one };
    if !descriptors.suffice() {
        return Err(Fatal::new(Exit::OpenFiles, descriptors));
    }
    tracing::info!("{descriptors}");
    // Hashing spreads unevenly: where one table serves all, each reactor may hold all of them; else it may fill its own.
    let most = descriptors.connections_per_table();
    let connections = if asked == 0 { most } else { asked.min(most) };
    let connections = usize::try_from(connections).unwrap_or(usize::MAX).min(CONNECTIONS_MAX);
    Ok(Share { connections: connections.max(cores), is_private })
}

fn levels(settings: &Settings) -> Levels {
    let store = &settings.store;
    let level = |class: Option<u8>| class.unwrap_or(store.level);
    Levels { direct: level(store.level_direct), group: level(store.level_group), channel: level(store.level_channel) }
}

fn keep(settings: &Settings) -> Keep {
    let retention = &settings.retention;
    let bounds = |age_s: Option<u64>, count: Option<u64>| Bounds {
        age_s: age_s.unwrap_or(retention.age_s),
        count: count.unwrap_or(retention.count),
    };
    Keep {
        direct: bounds(retention.age_s_direct, retention.count_direct),
        group: bounds(retention.age_s_group, retention.count_group),
        channel: bounds(retention.age_s_channel, retention.count_channel),
        system: bounds(retention.age_s_system, retention.count_system),
        every: Duration::from_secs(u64::from(retention.every_s)),
    }
}

fn policy(settings: &Settings) -> Policy {
    Policy {
        receipt_members_max: settings.state.receipt_members_max as usize,
        presence_for_all: settings.state.presence == PresencePolicy::All,
        senders: Senders { group: role(settings.groups.senders), channel: role(settings.groups.channel_senders) },
        notice_only_above: settings.groups.notice_only_above as usize,
        devices_max: usize::from(settings.login.devices_max),
        one_per_class: (0..).zip(PLATFORMS).fold(0, |bits, (number, platform)| {
            let named = settings.login.one_per_class.iter().any(|name| name == platform);
            bits | u8::from(named) << number
        }),
        keep: keep(settings),
    }
}

fn role(choice: RoleChoice) -> Role {
    match choice {
        RoleChoice::Member => Role::Member,
        RoleChoice::Admin => Role::Admin,
        RoleChoice::Owner => Role::Owner,
    }
}

/// What the settings mean to one of `cores` reactors. `hash_key` is the key of the stored rows, which is another one.
///
/// # Errors
/// When the system draws no random bytes.
///
/// # Panics
/// If the system draws `hash_key`.
pub fn rules(settings: &Settings, echo: bool, cores: usize, connections: usize, hash_key: [u8; 16]) -> Result<Rules, Fatal> {
    let Settings { protocol, limits: bounds, drain, .. } = settings;
    // New at every start, and never the key of the stored rows: session ids come from it.
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(|error| Fatal::new(Exit::Failed, format!("drawing random bytes: {error}")))?;
    assert!(key != hash_key);
    Ok(Rules {
        node: settings.node.clone(),
        path: settings.path.clone(),
        // Nothing configured: on loopback the pages of this machine may connect, elsewhere no page may.
        origins: (!settings.origins.is_empty()).then(|| settings.origins.clone()),
        loopback: settings.listen.ip().is_loopback(),
        echo,
        level: levels(settings).least(),
        connections_max: connections,
        max_frame: protocol.max_frame_bytes,
        max_payload: protocol.max_payload_bytes,
        window_default: protocol.window_default,
        window_max: protocol.window_max,
        window_bytes_max: protocol.window_bytes,
        send_window: protocol.send_window,
        send_rate: Rate { per_second: u32::from(protocol.send_rate), burst: u32::from(protocol.send_burst) },
        read_rate: Rate { per_second: u32::from(protocol.fetch_rate), burst: u32::from(protocol.fetch_rate) * 2 },
        signal_rate: Rate { per_second: u32::from(settings.state.signal_rate), burst: u32::from(settings.state.signal_rate) * 2 },
        max_signal: settings.state.signal_bytes_max,
        ping_ms: protocol.ping_ms,
        hello_ms: protocol.hello_ms,
        upgrade_ms: protocol.upgrade_ms,
        message_ms: protocol.message_ms,
        ack_timeout_ms: protocol.ack_stall_ms,
        expiring_ms: settings.auth.expiring_ms,
        dedup_s: protocol.dedup_s,
        resume_ms: protocol.resume_ms,
        queue_soft_bytes: if echo { ECHO_QUEUE_BYTES } else { bounds.queue_bytes_soft },
        queue_hard_bytes: if echo { ECHO_QUEUE_BYTES } else { bounds.queue_bytes_hard },
        queued_bytes_max: bounds.queue_bytes_max / cores as u64,
        stall_ms: bounds.write_stall_ms,
        accept_rate: Rate { per_second: bounds.accept_per_s, burst: bounds.accept_burst },
        handshakes_max: bounds.handshakes_max,
        sampling: Sampling { every: settings.log.trace_every },
        drain_grace_ms: drain.window_ms.min(DRAIN_GRACE_MS),
        hashes: Hashes::new(key),
    })
}

/// What `driver = "auto"` takes: see `docs/decisions/0003-which-driver.md`.
const AUTO_IS_URING: bool = false;
/// How long sent bytes may go unacknowledged by the peer's kernel: the second net under liveness.
const USER_TIMEOUT: Duration = Duration::from_secs(90);
/// Groups between store and projector; the bytes are bounded by the store.
const PROJECT_LANE_MAX: usize = 4_096;
/// The engine's journal is synced at least so often.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);
/// How long the store may take to finish.
const FINISH_PATIENCE: Duration = Duration::from_secs(30);
/// Connections of one node, whatever the limit of open files says.
const CONNECTIONS_MAX: usize = 10_000_000;
/// After GOAWAY a client may finish what it waits for.
const DRAIN_GRACE_MS: u32 = 1_000;
/// How long a drain may take beyond its window.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
const DRAIN_LOOK: Duration = Duration::from_millis(20);
/// The echo endpoint answers messages of 16 MiB.
const ECHO_QUEUE_BYTES: u32 = 20 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::timers::Wheel;

    /// Without io_uring "auto" goes on with epoll, and "uring" refuses by name; whoever did not ask for it is not told of it.
    #[test]
    fn a_machine_without_io_uring_is_served_by_epoll() {
        let with = |driver| Settings { driver, ..Settings::default() };
        let refused = || Some(Err("making a ring: Operation not permitted (os error 1)".to_owned()));
        let chosen = |driver, probe| Kernel::choose(&with(driver), 1, 16, probe);
        assert!(matches!(chosen(DriverChoice::Auto, refused()), Ok(Kernel::Epoll)));
        assert!(matches!(chosen(DriverChoice::Auto, Some(Ok(()))), Ok(Kernel::Uring(_))));
        assert!(matches!(chosen(DriverChoice::Epoll, None), Ok(Kernel::Epoll)));
        let fatal = chosen(DriverChoice::Uring, refused()).unwrap_err();
        assert!(fatal.exit == Exit::Failed && fatal.reason.contains("set driver = \"epoll\""), "{fatal}");
        assert!(!Kernel::asks_uring(DriverChoice::Epoll) && Kernel::asks_uring(DriverChoice::Uring));
    }

    /// A process keeps within reach what its settings name, and nothing beside.
    #[test]
    fn grants_follow_the_settings() {
        let mut settings = Settings::default();
        settings.auth.secret_file = Some("key".into());
        let of = |settings: &Settings| grants(settings, Some(Path::new("/run/t/ready")));
        let Grants { write, read, listen } = of(&settings);
        assert_eq!(write, ["./tidegate-data", "./tidegate-data/log", "./tidegate-data/engine", "/run/t"].map(PathBuf::from));
        assert_eq!(read[..3], [".", "/proc", "/sys/fs/cgroup"].map(PathBuf::from));
        assert_eq!(read.len(), 6, "and random bytes, and the binary: {read:?}");
        assert_eq!(listen, Some(vec![8080, 8081]));
        settings.admin.listen.set_port(0);
        assert_eq!(of(&settings).listen, Some(vec![8080, 0]));
        settings.listen.set_port(0);
        assert_eq!(of(&settings).listen, None);
    }

    /// "What a connection costs" in `docs/architecture.md` says line by line what the compiler says.
    #[test]
    fn the_page_of_costs_is_true() {
        let page = include_str!("../docs/architecture.md");
        let (_, section) = page.split_once("## What a connection costs").expect("the section is there");
        let section = section.split("\n## ").next().expect("a part");
        let rows: Vec<(&str, usize)> = section.lines().filter_map(costs).collect();
        let layout = idle_layout(epoll::SLOT_BYTES);
        let sum = |lines: &[(&str, usize)]| lines.iter().map(|(_, bytes)| bytes).sum::<usize>();
        let (roster, core) = layout.split_last().expect("six lines");
        let mut expected = core.to_vec();
        expected.extend([
            ("sum in the reactor", sum(core)),
            *roster,
            ("sum by layout", sum(&layout)),
            ("instead of epoll", uring::SLOT_BYTES),
            ("timer", Wheel::TIMER_BYTES),
        ]);
        assert_eq!(rows.len(), expected.len(), "{rows:?}");
        for ((what, bytes), (name, size)) in rows.into_iter().zip(expected) {
            assert!(what.starts_with(name) && bytes == size, "the page says {what}: {bytes}, the layout {name}: {size}");
        }
        let ring = sum(core) - epoll::SLOT_BYTES + uring::SLOT_BYTES;
        assert!(ring <= 200 && sum(core) <= 200, "the contract");
        assert!(section.contains(&format!("the two sums are {ring} and {}", ring + roster.1)));
    }

    /// A row whose second cell is a sum of numbers, in the section of costs: what it names and how many bytes.
    fn costs(line: &'static str) -> Option<(&'static str, usize)> {
        let [what, bytes, _where] =
            line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect::<Vec<_>>().try_into().ok()?;
        let parts: Option<Vec<usize>> = bytes.split(" + ").map(|part| part.split(' ').next()?.parse().ok()).collect();
        Some((what, parts?.iter().sum()))
    }
}
