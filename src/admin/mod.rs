//! HTTP beside the path: health, metrics, groups. Its own thread and listener.                              [axum, tokio]
//!
//! ```text
//!  GET  /livez                          200 while the process lives
//!  GET  /readyz                         200 when clients may come, else 503 with the reasons
//!  GET  /metrics                        OpenMetrics text
//!  POST /v1/groups                      {conv, members[]}  ─┐
//!  POST /v1/groups/{conv}/members       {add[], remove[]}   ├─► mail to the store, answered after the sync
//!  POST /v1/groups/{conv}/changed       {history, data}      │
//!  POST /v1/users/{user}/ban, unban     {device}            │
//!  POST /v1/users/{user}/revoke         {device, jti, before_s, until_s}
//!  GET  /v1/groups/{conv}                                  ─┘
//!  POST /v1/conversations/{conv}/messages, GET /v1/conversations/{conv}, /v1/users/{user}/conversations     store, readers
//!  GET  /v1/connections, /v1/users/{user}, POST /v1/kick            store for who, then the reactors named
//!  GET  /v1/memory                      here, and the store for names
//!  GET  /v1/version, /v1/config, POST /v1/drain, /v1/tls/reload     here, main
//!  GET  /demo/                          a page to try it
//! ```
//!
//! Nothing here can slow a message: counters are read from blocks that their owners publish, histograms travel in buffers of their
//! own, and a change of a group is one value in the lane to the store. There is no login: who reaches the listener may use it, so it
//! stands on a loopback address unless the operator says otherwise, and `guard.rs` keeps web pages away from it.

mod ask;
mod connections;
mod conversations;
mod demo;
mod groups;
mod guard;
mod health;
mod listener;
mod node;
mod refusal;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::MissedTickBehavior;

use crate::clock::Clock;
use crate::config::derived::InForce;
use crate::ids::Cmid;
use crate::limits;
use crate::mail::{Control, Submit};
use crate::mailbox::{Credit, LaneSender};
use crate::observe::auth::AuthFacts;
use crate::observe::counters::{ReactorBlock, StoreBlock};
use crate::observe::histogram::Source;
use crate::observe::metrics::{self, Metrics};
use crate::observe::pressure::Pressure;

pub use crate::admin::demo::Demo;
pub use crate::admin::health::Health;
use crate::admin::refusal::Refusal;

/// Begins a drain.
pub type Drain = Box<dyn FnOnce() + Send>;

/// Has the files of TLS read again; the answer says why not.
pub type Reload = Box<dyn Fn(SyncSender<Result<(), String>>) + Send + Sync>;

/// What the admin thread reads from and sends to; built by the gateway.
pub struct Sources {
    /// The published counters, by number of the reactor.
    pub reactors: Vec<Arc<ReactorBlock>>,
    /// The published counters of the store thread.
    pub store: Arc<StoreBlock>,
    /// The histograms of all threads.
    pub histograms: Vec<Source>,
    /// What is counted where tokens are judged.
    pub auth: Arc<AuthFacts>,
    /// Whether clients may come.
    pub health: Arc<Health>,
    /// How short memory is.
    pub pressure: Arc<Pressure>,
    /// The lane to the store.
    pub submit: LaneSender<Submit>,
    /// Bytes that bodies on their way to the store may hold.
    pub credit: Credit,
    /// The lanes to the reactors, by number.
    pub controls: Vec<LaneSender<Control>>,
    /// The settings, and what was worked out.
    pub in_force: Arc<RwLock<InForce>>,
    /// Begins a drain, as SIGTERM does.
    pub drain: Drain,
    /// Reads the files of TLS again, as SIGHUP does.
    pub reload: Reload,
    /// The clock all threads share.
    pub clock: Clock,
    /// Bytes that an idle session occupies by layout.
    pub idle_session_bytes: usize,
    /// What `--version` says.
    pub version: &'static str,
    /// What the page to try needs.
    pub demo: Demo,
}

/// The running admin thread.
#[derive(Debug)]
pub struct Admin {
    addr: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Admin {
    /// Binds `addr` and starts the thread.
    ///
    /// # Errors
    /// The kernel's, when the address cannot be bound or a thread cannot be made; nothing runs then.
    pub fn start(addr: SocketAddr, sources: Sources) -> io::Result<Self> {
        let listener = TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(limits::ADMIN_CHANGES_MAX)
            .thread_name("admin-wait")
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
            runtime.block_on(serve(listener, addr, sources, stopped));
            runtime.shutdown_timeout(STOP_PATIENCE);
        })?;
        Ok(Self { addr, stop, thread })
    }

    /// Where it listens; the real port if 0 was asked.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends the thread. Answers on their way get a moment; lasts two seconds at most.
    pub fn stop(self) {
        // The thread may have ended by itself; then nobody hears this, and nobody needs to.
        let _ = self.stop.send(());
        // A panic of the admin thread was already reported by the panic hook.
        let _ = self.thread.join();
    }
}

/// What the handlers share.
struct Shared {
    addr: SocketAddr,
    metrics: Metrics,
    store: Arc<StoreBlock>,
    health: Arc<Health>,
    submit: LaneSender<Submit>,
    credit: Credit,
    controls: Vec<LaneSender<Control>>,
    in_force: Arc<RwLock<InForce>>,
    pressure: Arc<Pressure>,
    reactors: Vec<Arc<ReactorBlock>>,
    /// Taken by the first who uses it.
    drain: Mutex<Option<Drain>>,
    reload: Reload,
    version: &'static str,
    cmids: AtomicU64,
    changes: Arc<Semaphore>,
    clock: Clock,
    demo: Demo,
}

impl Shared {
    /// A cmid that no message has: the time, then a count, and the process in between.
    fn fresh_cmid(&self) -> Cmid {
        let now = self.clock.now();
        let count = self.cmids.fetch_add(1, Ordering::Relaxed);
        let [mut cmid, low] = [now.unix_ms.to_be_bytes().to_vec(), now.mono_ns.wrapping_add(count << 40).to_be_bytes().to_vec()];
        cmid.extend(low);
        Cmid(cmid.try_into().expect("twice eight bytes"))
    }

    fn in_force(&self) -> RwLockReadGuard<'_, InForce> {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn reasons(&self) -> Vec<String> {
        self.health.reasons(self.store.value("read_only") == Some(1))
    }
}

async fn serve(listener: TcpListener, addr: SocketAddr, sources: Sources, stopped: oneshot::Receiver<()>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let Sources { reactors, store, histograms, auth, health, submit, credit, controls, in_force, drain, clock, .. } = sources;
    let Sources { pressure, reload, idle_session_bytes, version, demo, .. } = sources;
    let (blocks, of_store, facts) = (reactors.clone(), Arc::clone(&store), (auth, Arc::clone(&pressure)));
    let metrics = Metrics::new(version, clock.now(), idle_session_bytes, blocks, of_store, histograms, facts);
    let changes = Arc::new(Semaphore::new(limits::ADMIN_CHANGES_MAX));
    let shared = Arc::new(Shared {
        addr,
        metrics,
        store,
        health,
        submit,
        credit,
        controls,
        in_force,
        pressure,
        reactors: reactors.clone(),
        drain: Mutex::new(Some(drain)),
        reload,
        version,
        cmids: AtomicU64::new(0),
        changes,
        clock,
        demo,
    });
    let watch = watch(Arc::clone(&shared), reactors, clock);
    let http = axum::serve(listener::Bounded::new(listener), router(shared)).into_future();
    // The watch never ends, and a listener of axum answers no error; so this waits for the word to stop, then drops both.
    tokio::select! {
        () = watch => {}
        _ = http => {}
        _ = stopped => {}
    }
}

/// Once a second: takes the histograms, and looks whether every reactor turned.
async fn watch(shared: Arc<Shared>, reactors: Vec<Arc<ReactorBlock>>, clock: Clock) {
    let mut every = tokio::time::interval(WATCH_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let now = clock.now();
        shared.metrics.collect(now);
        let turns = reactors.iter().map(|block| block.value("turns_count").unwrap_or(0));
        shared.health.watch_turns(turns, now);
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(show_metrics))
        .route("/v1/groups", post(groups::create))
        .route("/v1/groups/{conv}", get(groups::show))
        .route("/v1/groups/{conv}/members", post(groups::change))
        .route("/v1/groups/{conv}/changed", post(groups::touch))
        .route("/v1/users/{user}/ban", post(groups::ban))
        .route("/v1/users/{user}/unban", post(groups::unban))
        .route("/v1/users/{user}/revoke", post(groups::revoke))
        .route("/v1/version", get(node::version))
        .route("/v1/config", get(node::config))
        .route("/v1/memory", get(node::memory))
        .route("/v1/drain", post(node::drain))
        .route("/v1/tls/reload", post(node::reload_tls))
        .route("/v1/connections", get(connections::list))
        .route("/v1/kick", post(connections::kick))
        .route("/v1/users/{user}", get(connections::user))
        .route("/v1/users/{user}/conversations", get(conversations::of_user))
        .route("/v1/conversations/{conv}", get(conversations::show))
        .route("/v1/conversations/{conv}/messages", post(conversations::send))
        .merge(demo::routes())
        .fallback(async |uri: Uri| Refusal::NoSuchPath(uri.path().to_owned()))
        .method_not_allowed_fallback(async || Refusal::WrongMethod)
        .layer(DefaultBodyLimit::max(limits::ADMIN_BODY_BYTES_MAX))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&shared), guard::check))
        .with_state(shared)
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let reasons = shared.reasons();
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(serde_json::json!({ "ready": reasons.is_empty(), "reasons": reasons }))).into_response()
}

async fn show_metrics(State(shared): State<Arc<Shared>>) -> Result<(HeaderMap, String), Refusal> {
    let text = shared.metrics.text(shared.reasons().is_empty()).map_err(|_| Refusal::Internal)?;
    let content_type = axum::http::HeaderValue::from_static(metrics::CONTENT_TYPE);
    Ok((HeaderMap::from_iter([(CONTENT_TYPE, content_type)]), text))
}

const WATCH_EVERY: Duration = Duration::from_secs(1);
/// For calls under way at the end of the process. The threads that would answer have ended, so nobody waits as long as [`ask`] may.
const STOP_PATIENCE: Duration = Duration::from_millis(1_500);

#[cfg(test)]
mod tests;
