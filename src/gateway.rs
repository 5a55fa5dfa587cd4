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
//! Policy for panics: the handling of one connection's bytes is caught in `reactor.rs`, that of one token in `auth`; a panic anywhere else ends the process, because
//! a thread that is gone would leave its clients in silence.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, OnceLock, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::admin::{self, Admin, Demo, Health};
use crate::clock::Clock;
use crate::config::derived::{self, Derived, InForce, Machine};
use crate::config::value::{DriverChoice, PrivateFds};
use crate::config::{Exit, Secret, Settings};
use crate::conn::carry::Stashes;
use crate::ids::ReactorId;
use crate::io::descriptors::{self, Descriptors};
use crate::io::driver::Driver;
use crate::io::epoll::{self, Epoll};
use crate::io::memory;
use crate::io::pin;
use crate::io::socket::Listener;
use crate::io::uring::{self, Sizes, Uring};
use crate::io::wake::Waker;
use crate::limits;
use crate::mail::{Control, Report};
use crate::mailbox::{self, Gathering};
use crate::observe::auth::AuthFacts;
use crate::observe::counters::ReactorBlock;
use crate::observe::histogram::ReactorHistograms;
use crate::observe::metrics::resident_bytes;
use crate::observe::pressure::Pressure;
use crate::observe::trace::Sampling;
use crate::reactor::steering::Steering;
use crate::reactor::{Outbox, Parts, Reactor};
use crate::route::roster;
use crate::session::auth::Verifier;
use crate::session::rate::Rate;
use crate::shard::{self, Rules, Shard};
use crate::store::schema::Hashes;
use crate::wire::tls::Keys;

use self::budget::Budget;
pub use self::confined::{Confined, Files, confine};
use self::judges::{Around, Judges};
use self::live::Live;
use self::shares::Shares;
pub use self::store::at_rest;
use self::store::{Store, levels};

mod budget;
mod confined;
mod doors;
mod judges;
mod live;
mod shares;
mod store;
mod tls;

/// What one start was asked beyond its settings.
pub struct Options {
    /// The key that signs tokens; `None`: only tokens of public keys are good.
    pub secret: Option<Secret>,
    /// Serves WebSocket echo instead of the protocol: for the conformance suite.
    pub echo: bool,
    /// Whether the key was made by the gateway itself: on loopback the page to try may then have tokens.
    pub secret_is_ours: bool,
    /// Goes on with a damaged log, under a new epoch, so that clients resynchronise.
    pub accept_loss: bool,
    /// What [`confine`] found.
    pub confined: Confined,
    /// Reads the settings again.
    pub reread: Reread,
    /// Called once, when clients and operators can connect.
    pub on_ready: Box<dyn FnOnce(&Ready) + Send>,
}

/// Reads the settings of all layers again; every mistake is a line of the error.
pub type Reread = Box<dyn Fn() -> Result<Settings, String> + Send>;

/// Where the gateway can be reached; ports that were 0 are the real ones.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// For clients.
    pub listen: SocketAddr,
    /// For clients with TLS, if there is such a listener.
    pub tls: Option<SocketAddr>,
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
    let configured = settings;
    let mut settings = configured.clone();
    options.confined.report();
    let clock = Clock::new();
    let cores = reactors_count(&settings);
    // The first descriptors of all: their numbers are the same in every table, and nothing else is copied into them.
    let wakers = (0..cores).map(|_| Waker::for_driver()).collect::<Result<Vec<_>, _>>();
    let wakers = wakers.map_err(|error| Fatal::new(Exit::Failed, format!("making an eventfd per reactor: {error}")))?;
    let Share { connections: by_files, is_private, in_all } = share(&settings, cores)?;
    // Tables may need more reactors than there are cores; then newcomers come to as many of them as there are cores.
    let (steering, taking) = if is_private {
        Steering::begin(cores, std::thread::available_parallelism().map_or(1, usize::from), Listener::try_steering)
    } else {
        (None, cores)
    };
    let machine =
        Machine { memory: available_memory(), reactors: cores as u64, taking: taking as u64, connections_by_files: in_all };
    let derived = work_out(&mut settings, machine);
    // Hashing spreads unevenly: where one table serves all, each reactor may hold all of them; else it may fill its own.
    let connections_per_reactor = by_files.min(settings.limits.connections_max as usize).max(cores);
    let last_bell = wakers.iter().filter_map(Waker::descriptor).map(|bell| bell.as_raw_fd()).max().filter(|_| is_private);
    let kernel = Kernel::choose(&settings, cores, connections_per_reactor, options.confined.uring)?;
    let (events_in, events) = mpsc::channel();
    watch_signals(&events_in)?;
    let (posts, inboxes): (Vec<_>, Vec<_>) = wakers.iter().map(|waker| mailbox::reactor_lanes(waker, cores)).unzip();

    let keys = settings.tls.listen.map(|_| tls::load(&settings, None)).transpose()?;
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
    Shares::of(kernel, cores, rules.message_bytes_max() as usize).report();
    let mut tls = settings.tls.listen.zip(keys);
    let health = Arc::new(Health::new(u16::try_from(cores).expect("settings bound the number of reactors")));
    health.store_opened();
    let auth = Arc::new(AuthFacts::default());
    let around = Around { clock, posts: &posts, events: &events_in, health: &health, facts: &auth };
    let judges = Judges::start(&settings, options.secret.as_ref(), &around)?;
    let memory_bytes = settings.limits.memory_bytes.expect("worked out above");
    let pressure = Arc::new(Pressure::new(memory_bytes, cores));
    let mut blocks = Vec::new();
    let mut sources = vec![source];
    let mut listen = settings.listen;
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
                submit: Gathering::new(store.submit.clone()),
                credit: store.credit.clone(),
                peers: posts.iter().map(|post| post.peer.clone()).collect(),
                spare_groups: store.spare_groups.clone(),
                judges: judges.lane.clone(),
                hooks: judges.hooks.clone(),
            },
            clock,
            block,
            histograms,
            reports: reports_in.clone(),
            table: is_private.then_some(connections_per_reactor),
            steering: steering.clone(),
            pressure: pressure.clone(),
        };
        let start = Start {
            rules: rules.clone(),
            verifier: judges.verifier.clone(),
            listen,
            tls: tls.clone(),
            connections: connections_per_reactor,
            kernel,
            last_bell,
        };
        spawn_reactor(start, parts, &events_in)?;
        // The first one resolves port 0; the others join its group.
        let bound = wait_for_listener(&reports, &events)?;
        listen = bound.0;
        if let (Some((address, _)), Some(real)) = (&mut tls, bound.1) {
            *address = real;
        }
        health.reactor_accepts();
    }
    let may_demo = options.secret_is_ours && listen.ip().is_loopback() && settings.admin.listen.ip().is_loopback();
    let demo = Demo { listen, path: settings.path.clone(), secret: options.secret.filter(|_| may_demo) };
    let mut budget = Budget {
        pressure: pressure.clone(),
        reactors: blocks.clone(),
        store: store.block.clone(),
        short_since: None,
        credit: store.credit.clone(),
        credit_bytes: settings.limits.submit_bytes_max,
        fixed_bytes: 0,
        resident_bytes,
    };
    let shown = Arc::new(RwLock::new(InForce { settings: configured.clone(), derived }));
    let mut live = Live {
        given: configured,
        filled: settings.clone(),
        machine,
        reread: options.reread,
        pressure: pressure.clone(),
        shown: shown.clone(),
    };
    let sources = admin::Sources {
        pressure,
        reactors: blocks,
        store: store.block.clone(),
        histograms: sources,
        auth,
        health: health.clone(),
        submit: store.submit.clone(),
        credit: store.credit.clone(),
        controls: posts.iter().map(|post| post.control.clone()).collect(),
        in_force: shown,
        drain: {
            let events = events_in.clone();
            Box::new(move || drop(events.send(Occurrence::Signal(Signal::Terminate))))
        },
        reload: {
            let events = events_in.clone();
            Box::new(move |reply| drop(events.send(Occurrence::Reload(Some(reply)))))
        },
        clock,
        version: env!("CARGO_PKG_VERSION"),
        idle_session_bytes: idle_layout(kernel.slot_bytes()).iter().map(|(_, bytes)| bytes).sum(),
        demo,
    };
    let admin = Admin::start(settings.admin.listen, sources)
        .map_err(|error| Fatal::new(Exit::AddressInUse, format!("admin.listen {}: {error}", settings.admin.listen)))?;
    let tls_listen = tls.as_ref().map(|(address, _)| *address);
    let doors = [Some(listen), tls_listen].into_iter().flatten();
    rules.own_origins.set(doors::own_origins(doors, admin.addr())).expect("nobody else sets it");
    (options.on_ready)(&Ready { listen, admin: admin.addr(), tls: tls_listen });
    tracing::info!(%listen, admin = %admin.addr(), tls = tls_listen.map(tracing::field::display), reactors = cores, driver = kernel.name(), "ready");

    let mut keys = tls.map(|(_, keys)| keys);
    budget.begin();
    let ended = loop {
        let occurrence = match events.recv_timeout(limits::PRESSURE_EVERY) {
            Ok(occurrence) => occurrence,
            Err(RecvTimeoutError::Timeout) => {
                budget.judge(Instant::now());
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => unreachable!("the signal thread holds a sender"),
        };
        match occurrence {
            Occurrence::Reload(reply) => {
                if reply.is_none() {
                    match live.reload(&posts) {
                        Ok(()) => budget.check(),
                        Err(reason) => tracing::error!(reason, "settings stay as they were"),
                    }
                    if keys.is_none() {
                        continue;
                    }
                }
                let done = tls::reload(&settings, keys.as_mut(), &posts);
                match &done {
                    Ok(()) => tracing::info!("certificates were read again"),
                    Err(reason) => tracing::error!(reason, "certificates stay as they were"),
                }
                // Whoever asked may have given up.
                reply.map(|reply| reply.try_send(done));
            }
            Occurrence::Signal(signal) => {
                health.drain();
                break drain(&settings, signal, &posts, &reports, &events);
            }
            Occurrence::Fatal(fatal) => {
                health.fail();
                break Err(fatal);
            }
        }
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
    /// SIGHUP, or the admin listener, which wants the files of TLS alone read again, and an answer.
    Reload(Option<mpsc::SyncSender<Result<(), String>>>),
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
    if let Some(fatal) = cut_short(events, Duration::from_millis(u64::from(lead_ms))) {
        return Err(fatal);
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
        if let Some(fatal) = cut_short(events, Duration::ZERO) {
            return Err(fatal);
        }
    }
    if left > 0 {
        tracing::warn!(reactors = left, "clients were left at the end of the drain");
    }
    Ok(())
}

/// What ends a wait of at most `patience`; whoever starts or ends reads no certificates again.
fn cut_short(events: &Receiver<Occurrence>, patience: Duration) -> Option<Fatal> {
    let deadline = Instant::now() + patience;
    loop {
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()? {
            Occurrence::Reload(_) => {}
            Occurrence::Signal(_) => {
                return Some(Fatal::new(Exit::Aborted, "a second signal cut the drain short; clients were cut off"));
            }
            Occurrence::Fatal(fatal) => return Some(fatal),
        }
    }
}

/// SIGTERM, SIGINT and SIGHUP become events.
fn watch_signals(events: &mpsc::Sender<Occurrence>) -> Result<(), Fatal> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|error| Fatal::new(Exit::Failed, format!("catching signals: {error}")))?;
    let events = events.clone();
    spawn("signals", move || {
        for number in signals.forever() {
            let occurrence = match number {
                SIGHUP => Occurrence::Reload(None),
                SIGINT => Occurrence::Signal(Signal::Interrupt),
                _ => Occurrence::Signal(Signal::Terminate),
            };
            if events.send(occurrence).is_err() {
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
    /// The listener for TLS, and what it begins with.
    tls: Option<(SocketAddr, Keys)>,
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
                let park_after = Some(settings.uring.park_after_ms).filter(|&ms| ms > 0);
                let park_after = park_after.map(|ms| Duration::from_millis(u64::from(ms)));
                Ok(Self::Uring(Sizes::share(connections, reactors, park_after)))
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
    let failed = |error: std::io::Error| Fatal::new(Exit::Failed, format!("reactor {}: {error}", id.0));
    let (listener, address) = bind("listen", start.listen)?;
    let tls = start.tls.as_ref().map(|(address, _)| bind("tls.listen", *address)).transpose()?;
    let mut shard = Shard::new(id, start.rules.clone(), start.verifier.clone(), parts.clock.now());
    if let Some((_, keys)) = &start.tls {
        shard.set_keys(keys.clone());
    }
    let stashes = Stashes::share(parts.outbox.peers.len(), start.rules.message_bytes_max() as usize);
    let waker = parts.waker.clone();
    let bound = Report::Bound { address, tls: tls.as_ref().map(|(_, address)| *address) };
    // In the order of their doors.
    let listeners = [Some(listener), tls.map(|(listener, _)| listener)].into_iter().flatten();
    match start.kernel {
        Kernel::Epoll => {
            let driver = Epoll::new(start.connections, listeners, waker).map_err(failed)?;
            drop(parts.reports.send(bound));
            Reactor::new(driver, shard, stashes, parts).run()
        }
        Kernel::Uring(sizes) => {
            let driver = Uring::new(sizes, listeners, waker).map_err(failed)?;
            drop(parts.reports.send(bound));
            Reactor::new(driver, shard, stashes, parts).run()
        }
    }
    .map_err(failed)
}

/// A listener at the address that the setting `key` names, with what its connections inherit; and where it really is.
fn bind(key: &str, address: SocketAddr) -> Result<(Listener, SocketAddr), Fatal> {
    let bound = || -> std::io::Result<_> {
        let listener = Listener::bind(address, limits::LISTEN_BACKLOG)?;
        listener.set_client_options(USER_TIMEOUT)?;
        let real = listener.local_address()?;
        Ok((listener, real))
    };
    bound().map_err(|error| Fatal::new(Exit::AddressInUse, format!("{key} {address}: {error}; is another gateway running?")))
}

/// Where the first reactor listens, without TLS and with it.
fn wait_for_listener(
    reports: &Receiver<Report>,
    events: &Receiver<Occurrence>,
) -> Result<(SocketAddr, Option<SocketAddr>), Fatal> {
    loop {
        match reports.recv_timeout(Duration::from_millis(50)) {
            Ok(Report::Bound { address, tls }) => return Ok((address, tls)),
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Fatal::new(Exit::Failed, "no reactor is left")),
        }
        if let Some(fatal) = cut_short(events, Duration::ZERO) {
            return Err(fatal);
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

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Fatal> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn(body).map_err(|error| Fatal::new(Exit::Failed, format!("starting thread {name}: {error}")))
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
    /// What all tables hold.
    in_all: u64,
}

/// The share of one reactor by the limit of open files, refused if what is asked does not fit it.
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
    let most = descriptors.connections_per_table();
    let connections = if asked == 0 { most } else { asked.min(most) };
    let connections = usize::try_from(connections).unwrap_or(usize::MAX).min(CONNECTIONS_MAX);
    let in_all = descriptors.connections_enough().min(CONNECTIONS_MAX as u64);
    Ok(Share { connections, is_private, in_all })
}

/// Memory in bytes, and who says so.
fn available_memory() -> (u64, &'static str) {
    let found = memory::available();
    if found.is_none() {
        tracing::warn!(
            "neither /proc/meminfo nor sysinfo nor a control group says how much memory there is: {MEMORY_UNKNOWN_BYTES} bytes are \
             assumed; set limits.memory_bytes"
        );
    }
    found.map_or((MEMORY_UNKNOWN_BYTES, "assumed"), |found| (found.bytes, found.from))
}

/// Works out what is not set from memory and open files, and says so.
fn work_out(settings: &mut Settings, machine: Machine) -> Vec<Derived> {
    let (derived, warnings) = derived::fill(settings, machine);
    for Derived { key, value, from } in &derived {
        tracing::info!("{key} = {value}: {from}");
    }
    for text in &warnings {
        tracing::warn!("{text}");
    }
    derived
}

/// What the settings mean to one of `cores` reactors; a limit that was not worked out is that of a large machine. `hash_key` is the key of
/// the stored rows, which is another one.
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
    let moving = live::bounds(settings, cores);
    Ok(Rules {
        node: settings.node.clone(),
        path: settings.path.clone(),
        origins: doors::origins(settings),
        own_origins: OnceLock::new(),
        balancers: doors::balancers(settings),
        quotas: doors::quotas(settings, connections),
        deflate: protocol.deflate,
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
        queued_bytes_max: moving.queued_bytes_max,
        stall_ms: bounds.write_stall_ms,
        accept_rate: Rate { per_second: moving.accept_per_s, burst: moving.accept_burst },
        pace: Arc::default(),
        handshakes_max: moving.handshakes_max,
        tls_waiting_max: settings.tls.handshakes_waiting_max as usize,
        sampling: Sampling { every: settings.log.trace_every },
        spare_backlogs_max: limits::SPARE_BACKLOGS.part(cores),
        cursors_gathered_max: limits::CURSORS_GATHERED.part(cores),
        peers_kept_max: limits::PEERS_KEPT.part(cores),
        moved_bytes_max: limits::MOVED_BYTES.part(cores) as u64,
        drain_grace_ms: drain.window_ms.min(DRAIN_GRACE_MS),
        hashes: Hashes::new(key),
    })
}

/// What `driver = "auto"` takes: see `docs/decisions/0003-which-driver.md`.
const AUTO_IS_URING: bool = false;
/// How long sent bytes may go unacknowledged by the peer's kernel: the second net under liveness.
const USER_TIMEOUT: Duration = Duration::from_secs(90);
/// Connections of one node, whatever the limit of open files says.
const CONNECTIONS_MAX: usize = 10_000_000;
/// Memory of a machine that does not say how much it has.
const MEMORY_UNKNOWN_BYTES: u64 = 1 << 30;
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
            ("address of the client", shard::CLIENT_BYTES),
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
