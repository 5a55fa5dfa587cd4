//! TLS: handshakes per CPU-second of the gateway beside the library's own, and the memory of a session that rests beside plaintext.   [rustls]
//!
//! One certificate (ECDSA P-256), one provider, in full and by a ticket, TLS 1.3 and 1.2. The library's figure is that of a server in
//! memory, of the same library and settings, with no socket under it: its ratio says what accepting, reading, sending and closing cost
//! beside the handshake. Both are driven in turn, on the same core, by the same client. The gateway's counters must agree.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustix::time::{ClockId, clock_gettime};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};

use crate::Common;
use crate::client::{OPENING_WAIT, greet};
use crate::gateway::{Gateway, free_address, metric_sum};
use crate::idle::user;
use crate::results::Run;
use crate::server::{Core, Probe, on_core};

/// One measurement.
pub fn run(common: &Common) -> Result<Run, String> {
    let mut run = Run::default();
    let site = Site::new(common)?;
    for version in [&TLS13, &TLS12] {
        let name = if version.version == TLS13.version { "tls13" } else { "tls12" };
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let way = if kind == HandshakeKind::Full { "full" } else { "resumed" };
            let (ours, library) = site.handshakes(common, version, kind)?;
            run.add(format!("{name}_{way}_per_cpu_s"), 1.0 / ours);
            run.add(format!("{name}_{way}_library_per_cpu_s"), 1.0 / library);
            run.add(format!("{name}_{way}_of_library"), library / ours);
        }
    }
    run.add("connect_plain_cpu_us", site.plain(common)? * 1e6);
    let [plain, secure] = [Way::Plain, Way::Tls].map(|way| site.resting_bytes(common, way));
    let (plain, secure) = (plain?, secure?);
    run.add("pss_bytes_per_session_plain", plain);
    run.add("pss_bytes_per_session_tls", secure);
    run.add("tls_bytes_per_session", secure - plain);
    Ok(run)
}

/// A certificate, those who trust it, and a place to serve it.
pub struct Site {
    /// What makes a gateway serve it.
    pub settings: Vec<String>,
    /// Where.
    pub address: SocketAddr,
    roots: Arc<RootCertStore>,
    identity: CertifiedKey<rcgen::KeyPair>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    Tls,
}

impl Site {
    /// A new certificate of ECDSA P-256.
    pub fn new(common: &Common) -> Result<Self, String> {
        let identity = generate_simple_self_signed(vec![NAME.to_owned()]).map_err(|error| error.to_string())?;
        let file = common.data.join(format!("tls-{}.pem", std::process::id()));
        let pem = identity.cert.pem() + &identity.signing_key.serialize_pem();
        let written = fs::create_dir_all(&common.data).and_then(|()| fs::write(&file, pem));
        written.map_err(|error| format!("{}: {error}", file.display()))?;
        let address = free_address()?;
        let mut roots = RootCertStore::empty();
        roots.add(identity.cert.der().clone()).map_err(|error| error.to_string())?;
        let settings = vec![format!("tls.listen={address}"), format!("tls.certificates={}", file.display())];
        Ok(Self { settings, address, roots: Arc::new(roots), identity })
    }

    fn gateway(&self, common: &Common) -> Result<Gateway, String> {
        let settings = self.settings.iter().chain(&common.settings).cloned().collect();
        Gateway::start_apart(&Common { settings, ..common.clone() })
    }

    fn client(&self, version: &'static SupportedProtocolVersion, kind: HandshakeKind) -> Result<Arc<ClientConfig>, String> {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider())).with_protocol_versions(&[version]);
        let builder = builder.map_err(|error| error.to_string())?;
        let mut config = builder.with_root_certificates(Arc::clone(&self.roots)).with_no_client_auth();
        config.resumption =
            if kind == HandshakeKind::Full { Resumption::disabled() } else { Resumption::in_memory_sessions(TICKETS) };
        Ok(Arc::new(config))
    }

    /// As the gateway has it: tickets hold all that is needed to resume, one for each handshake.
    fn library(&self) -> Result<Arc<ServerConfig>, String> {
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider())).with_protocol_versions(&[&TLS13, &TLS12]);
        let builder = builder.map_err(|error| error.to_string())?.with_no_client_auth();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.identity.signing_key.serialize_der()));
        let config = builder.with_single_cert(vec![self.identity.cert.der().clone()], key);
        let mut config = config.map_err(|error| error.to_string())?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Ticketer::new().map_err(|error| error.to_string())?;
        config.send_tls13_tickets = 1;
        Ok(Arc::new(config))
    }

    /// CPU seconds of one handshake: of the gateway, and of the library.
    fn handshakes(
        &self,
        common: &Common,
        version: &'static SupportedProtocolVersion,
        kind: HandshakeKind,
    ) -> Result<(f64, f64), String> {
        let gateway = self.gateway(common)?;
        let probe = Probe::of(gateway.pid());
        let library = self.library()?;
        // Each client in flight has tickets of its own, of the server it visits.
        let clients = (0..CLIENTS).map(|_| self.client(version, kind)).collect::<Result<Vec<_>, _>>()?;
        let own_client = self.client(version, kind)?;
        let visit = |count| visit_all(self.address, &clients, count, kind);
        visit_all(self.address, &clients, CLIENTS, HandshakeKind::Full)?;
        in_memory(&own_client, &library)?;
        let (mut ours_s, mut library_s) = (0.0, 0.0);
        for _ in 0..ROUNDS {
            on_core(Core::Server)?;
            for _ in 0..HANDSHAKES / ROUNDS {
                let (cpu_s, found) = in_memory(&own_client, &library)?;
                expect(kind, found)?;
                library_s += cpu_s;
            }
            on_core(Core::Generator)?;
            let before = probe.cpu()?;
            visit(HANDSHAKES / ROUNDS)?;
            ours_s += probe.cpu()? - before;
        }
        let counted = |result: &str| -> Result<f64, String> {
            Ok(metric_sum(&gateway.metrics()?, &format!("tidegate_tls_handshakes_total{{result=\"{result}\"}}")))
        };
        let (full, resumed) = (counted("full")?, counted("resumed")?);
        let wanted = (HANDSHAKES + CLIENTS) as f64;
        if full + resumed != wanted || (kind == HandshakeKind::Resumed && full != CLIENTS as f64) {
            return Err(format!("the gateway counted {full} handshakes in full and {resumed} by a ticket, not {wanted}"));
        }
        Ok((ours_s / HANDSHAKES as f64, library_s / HANDSHAKES as f64))
    }

    /// CPU seconds of a connection to the same port that says nothing and goes.
    fn plain(&self, common: &Common) -> Result<f64, String> {
        let gateway = self.gateway(common)?;
        let probe = Probe::of(gateway.pid());
        let mut before = 0.0;
        for number in 0..=HANDSHAKES {
            if number == 1 {
                before = probe.cpu()?;
            }
            let mut stream = TcpStream::connect(self.address).map_err(|error| error.to_string())?;
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read(&mut [0; 64]);
        }
        Ok((probe.cpu()? - before) / HANDSHAKES as f64)
    }

    /// Growth of the gateway's proportional bytes by each of many sessions that rest.
    fn resting_bytes(&self, common: &Common, way: Way) -> Result<f64, String> {
        let gateway = self.gateway(common)?;
        let mint = gateway.minter()?;
        let config = self.client(&TLS13, HandshakeKind::Full)?;
        let mut standing = Vec::new();
        let mut grow = |count: usize| -> Result<(), String> {
            for index in standing.len()..count {
                let stream = match way {
                    Way::Plain => TcpStream::connect(gateway.address).map(|stream| Box::new(stream) as Box<dyn Stream>),
                    Way::Tls => secure(self.address, &config).map(|stream| Box::new(stream) as Box<dyn Stream>),
                };
                let mut stream = stream.map_err(|error| format!("connection {index}: {error}"))?;
                greet(&mut *stream, NAME, &mint(&user(index))).map_err(|error| format!("connection {index}: {error}"))?;
                standing.push(stream);
            }
            std::thread::sleep(common.warm_up());
            Ok(())
        };
        // The first ones pay for what is made once.
        let first = common.connections / 10;
        grow(first)?;
        let before = gateway.memory()?.pss;
        grow(common.connections)?;
        let after = gateway.memory()?.pss;
        let sessions = metric_sum(&gateway.metrics()?, "tidegate_sessions_open");
        if sessions != common.connections as f64 {
            return Err(format!("{sessions} sessions stand, not {}", common.connections));
        }
        Ok((after as f64 - before as f64) / (common.connections - first) as f64)
    }
}

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// So many handshakes with a server, `CLIENTS` of them under way at a time.
fn visit_all(address: SocketAddr, clients: &[Arc<ClientConfig>], count: usize, kind: HandshakeKind) -> Result<(), String> {
    std::thread::scope(|scope| {
        let visitors: Vec<_> = clients
            .iter()
            .map(|config| {
                scope.spawn(move || {
                    for _ in 0..count / CLIENTS {
                        let found = visit(address, config).map_err(|error| format!("{address}: {error}"))?;
                        expect(kind, found)?;
                    }
                    Ok(())
                })
            })
            .collect();
        visitors.into_iter().try_for_each(|visitor| visitor.join().map_err(|_| "a client panicked".to_owned())?)
    })
}

/// One handshake, up to the end of the connection: the ticket of TLS 1.3 comes behind the handshake.
fn visit(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Option<HandshakeKind>> {
    let StreamOwned { conn: mut client, mut sock } = secure(address, config)?;
    client.send_close_notify();
    while client.wants_write() {
        client.write_tls(&mut sock)?;
    }
    // No FIN before that: what is in its handshake and gone is not served any more.
    while client.read_tls(&mut sock)? > 0 {
        client.process_new_packets().map_err(io::Error::other)?;
    }
    Ok(client.handshake_kind())
}

/// A connection whose handshake is over on this side.
fn secure(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut sock = TcpStream::connect(address)?;
    sock.set_nodelay(true)?;
    sock.set_read_timeout(Some(OPENING_WAIT))?;
    let mut client = new_client(config)?;
    while client.is_handshaking() || client.wants_write() {
        client.complete_io(&mut sock)?;
    }
    Ok(StreamOwned::new(client, sock))
}

fn new_client(config: &Arc<ClientConfig>) -> io::Result<ClientConnection> {
    let name = NAME.try_into().expect("it is a name");
    ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)
}

/// One handshake between a client and a server in memory: CPU seconds of the server, and how it went.
fn in_memory(config: &Arc<ClientConfig>, library: &Arc<ServerConfig>) -> Result<(f64, Option<HandshakeKind>), String> {
    let mut client = new_client(config).map_err(|error| error.to_string())?;
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut server = None;
    let mut cpu_s = 0.0;
    // Until neither has anything to say: two round trips at most, and the ticket.
    for _ in 0..4 {
        while client.wants_write() {
            client.write_tls(&mut to_server).map_err(|error| error.to_string())?;
        }
        let begun = thread_cpu_s();
        if server.is_none() {
            server = Some(ServerConnection::new(Arc::clone(library)).map_err(|error| error.to_string())?);
        }
        let server = server.as_mut().expect("made above");
        pass(&mut to_server, |rest| server.read_tls(rest)).map_err(|error| error.to_string())?;
        server.process_new_packets().map_err(|error| error.to_string())?;
        while server.wants_write() {
            server.write_tls(&mut to_client).map_err(|error| error.to_string())?;
        }
        cpu_s += thread_cpu_s() - begun;
        pass(&mut to_client, |rest| client.read_tls(rest)).map_err(|error| error.to_string())?;
        client.process_new_packets().map_err(|error| error.to_string())?;
    }
    let begun = thread_cpu_s();
    drop(server);
    Ok((cpu_s + thread_cpu_s() - begun, client.handshake_kind()))
}

/// Gives all of `bytes` away.
fn pass(bytes: &mut Vec<u8>, mut take: impl FnMut(&mut &[u8]) -> io::Result<usize>) -> io::Result<()> {
    let mut rest = bytes.as_slice();
    while !rest.is_empty() && take(&mut rest)? > 0 {}
    bytes.clear();
    Ok(())
}

fn thread_cpu_s() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

fn expect(wanted: HandshakeKind, found: Option<HandshakeKind>) -> Result<(), String> {
    // A full one with another round trip is another handshake.
    if found == Some(wanted) { Ok(()) } else { Err(format!("a handshake was {found:?}, not {wanted:?}")) }
}

const NAME: &str = "localhost";
/// Handshakes of each kind that are measured, and the parts in which ours and the library's take turns.
const HANDSHAKES: usize = 2_000;
const ROUNDS: usize = 5;
/// Clients of the gateway at a time.
const CLIENTS: usize = 8;
const TICKETS: usize = 8;
const _: () = assert!(HANDSHAKES.is_multiple_of(ROUNDS * CLIENTS));
