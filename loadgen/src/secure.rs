//! TLS over another network, by the library the gateway has, too: connections that come back offer a ticket, as clients do. [rustls]

use std::io::{self, ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup, RootCertStore};

use crate::network::{Ending, Network, Ready};

/// Tickets a device keeps.
const TICKETS_MAX: usize = 8;

/// What all connections with TLS share.
#[derive(Clone, Debug)]
pub struct Trust {
    config: Arc<ClientConfig>,
    counts: Arc<[AtomicU64; 2]>,
}

impl Trust {
    /// Trusts the certificates in this file (PEM), and nothing else.
    ///
    /// # Errors
    /// The file cannot be read, or holds no certificate.
    pub fn read(authority: &Path) -> Result<Self, String> {
        let name = authority.display();
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(authority).map_err(|error| format!("{name}: {error}"))?;
        for certificate in certificates {
            let added =
                certificate.map_err(|error| error.to_string()).and_then(|one| roots.add(one).map_err(|error| error.to_string()));
            added.map_err(|error| format!("{name}: {error}"))?;
        }
        if roots.is_empty() {
            return Err(format!("{name} holds no certificate (PEM)"));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| format!("TLS: {error}"))?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), counts: Arc::default() })
    }

    /// Handshakes so far: in full, and taken up again by a ticket.
    #[must_use]
    pub fn handshakes(&self) -> (u64, u64) {
        (self.counts[0].load(Ordering::Relaxed), self.counts[1].load(Ordering::Relaxed))
    }
}

/// The tickets of each connection of a network, as each device has its own: what it is given it offers once, the latest first.
#[derive(Debug, Default)]
struct Tickets {
    /// The connection the library is at work for.
    current: AtomicU32,
    kept: Mutex<Vec<Vec<Tls13ClientSessionValue>>>,
}

impl Tickets {
    fn new(connections: usize) -> Self {
        Self { kept: Mutex::new((0..connections).map(|_| Vec::new()).collect()), ..Self::default() }
    }

    fn set_current(&self, index: u32) {
        self.current.store(index, Ordering::Relaxed);
    }

    fn of_current<T>(&self, act: impl FnOnce(&mut Vec<Tls13ClientSessionValue>) -> T) -> T {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut kept[self.current.load(Ordering::Relaxed) as usize])
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.of_current(|kept| {
            if kept.len() == TICKETS_MAX {
                kept.remove(0);
            }
            kept.push(value);
        });
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.of_current(Vec::pop)
    }
}

/// See the head of this file.
#[derive(Debug)]
pub struct Secure<N> {
    inner: N,
    trust: Trust,
    config: Arc<ClientConfig>,
    tickets: Arc<Tickets>,
    name: ServerName<'static>,
    lines: Vec<Option<Box<Line>>>,
}

#[derive(Debug)]
struct Line {
    tls: ClientConnection,
    is_counted: bool,
}

impl<N: Network> Secure<N> {
    /// So many connections over `inner`, to a gateway whose certificate is for this address.
    #[must_use]
    pub fn new(inner: N, trust: Trust, gateway: Ipv4Addr, connections: usize) -> Self {
        let name = ServerName::IpAddress(std::net::IpAddr::V4(gateway).into());
        let tickets = Arc::new(Tickets::new(connections));
        let mut config = ClientConfig::clone(&trust.config);
        config.resumption = Resumption::store(tickets.clone());
        Self { inner, trust, config: Arc::new(config), tickets, name, lines: (0..connections).map(|_| None).collect() }
    }

    /// Sends what TLS has to say, as far as there is room.
    fn flush(&mut self, index: u32) -> io::Result<()> {
        let Some(line) = &mut self.lines[index as usize] else { return Err(ErrorKind::NotConnected.into()) };
        while line.tls.wants_write() {
            match line.tls.write_tls(&mut Pipe { inner: &mut self.inner, index }) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// One connection of a network, as a stream.
struct Pipe<'a, N> {
    inner: &'a mut N,
    index: u32,
}

impl<N: Network> Read for Pipe<'_, N> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(self.index, buffer)
    }
}

impl<N: Network> Write for Pipe<'_, N> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(self.index, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<N: Network> Network for Secure<N> {
    fn connect(&mut self, index: u32) -> io::Result<()> {
        self.inner.connect(index)?;
        self.tickets.set_current(index);
        let tls = ClientConnection::new(self.config.clone(), self.name.clone()).map_err(io::Error::other)?;
        self.lines[index as usize] = Some(Box::new(Line { tls, is_counted: false }));
        Ok(())
    }

    fn stands(&mut self, index: u32) -> io::Result<()> {
        self.inner.stands(index)?;
        self.flush(index)
    }

    fn read(&mut self, index: u32, buffer: &mut [u8]) -> io::Result<usize> {
        self.tickets.set_current(index);
        loop {
            let Some(line) = &mut self.lines[index as usize] else { return Err(ErrorKind::NotConnected.into()) };
            match line.tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            let ended = line.tls.read_tls(&mut Pipe { inner: &mut self.inner, index })? == 0;
            line.tls.process_new_packets().map_err(io::Error::other)?;
            if !line.is_counted && !line.tls.is_handshaking() {
                line.is_counted = true;
                let resumed = usize::from(line.tls.handshake_kind() == Some(HandshakeKind::Resumed));
                self.trust.counts[resumed].fetch_add(1, Ordering::Relaxed);
            }
            self.flush(index)?;
            if ended {
                return Ok(0);
            }
        }
    }

    fn write(&mut self, index: u32, bytes: &[u8]) -> io::Result<usize> {
        let Some(line) = &mut self.lines[index as usize] else { return Err(ErrorKind::NotConnected.into()) };
        let count = line.tls.writer().write(bytes)?;
        self.flush(index)?;
        if count == 0 && !bytes.is_empty() { Err(ErrorKind::WouldBlock.into()) } else { Ok(count) }
    }

    fn close(&mut self, index: u32, ending: Ending) {
        self.lines[index as usize] = None;
        self.inner.close(index, ending);
    }

    fn wait(&mut self, longest: Duration) -> io::Result<()> {
        self.inner.wait(longest)
    }

    fn next(&mut self) -> Option<Ready> {
        let ready = self.inner.next()?;
        if ready.writable && self.lines[ready.index as usize].as_ref().is_some_and(|line| line.tls.wants_write()) {
            // An error shows again with what the caller does next.
            let _ = self.flush(ready.index);
        }
        Some(ready)
    }
}
