//! Certificates by server name, tickets, and what is asked of clients: made from files once, shared by all reactors, swapped whole.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::crypto::{CryptoProvider, GetRandomFailed};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::ticketer::TicketRotator;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};
use webpki::EndEntityCert;

/// What the TLS stage works with. A copy is a count; connections keep the one they began with.
#[derive(Clone, Debug)]
pub struct Keys {
    config: Arc<ServerConfig>,
    /// What clients are asked: tickets are good only as long as it stays the same.
    policy: Policy,
}

/// A certificate chain and its key, as they stand in files.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// Where the chain came from, for errors.
    pub name: String,
    /// PEM: the certificate, then those between it and a root.
    pub chain: Vec<u8>,
    /// PEM: the private key, PKCS#8, SEC1 or PKCS#1. May be the same file.
    pub key: Vec<u8>,
}

/// What is asked of clients.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    /// The oldest version spoken.
    pub version_min: Version,
    /// Certificates of clients.
    pub clients: Clients,
}

/// A version of TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Version {
    /// 1.2, RFC 5246.
    #[default]
    Tls12,
    /// 1.3, RFC 8446.
    Tls13,
}

/// Whether clients show certificates; the PEM holds those who may sign them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Clients {
    /// They are not asked.
    #[default]
    Unasked,
    /// Who shows one must show a good one.
    Optional(Vec<u8>),
    /// Who shows none is refused.
    Required(Vec<u8>),
}

/// Why files make no keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeysError {
    /// No pair was named.
    NoPair,
    /// The file holds no certificate.
    NoCertificate(String),
    /// The file holds no private key.
    NoKey(String),
    /// The key is of no use, or not that of the certificate.
    BadPair(String, String),
    /// The file of those who sign clients' certificates is of no use.
    BadClients(String),
    /// The library refuses for another reason.
    Refused(String),
}

impl fmt::Display for KeysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPair => f.write_str("no certificate is configured; name one in tls.certificates"),
            Self::NoCertificate(name) => write!(f, "{name}: no certificate in it; it must be PEM, the certificate first"),
            Self::NoKey(name) => {
                write!(f, "{name}: no private key for it; it must be PEM, unencrypted, in tls.keys or in the same file")
            }
            Self::BadPair(name, why) => write!(f, "{name}: {why}; the key must be that of the first certificate"),
            Self::BadClients(why) => {
                write!(f, "tls.client_ca_file: {why}; it must be PEM with the certificates that sign clients'")
            }
            Self::Refused(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for KeysError {}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pair({})", self.name)
    }
}

impl Keys {
    /// Keys from files; the first pair also serves who names no server, or one that is not here.
    ///
    /// # Errors
    /// [`KeysError`], which names the file.
    pub fn new(pairs: &[Pair], policy: Policy, rotate_s: u32) -> Result<Self, KeysError> {
        Self::with_tickets(pairs, policy, tickets(rotate_s)?)
    }

    /// Keys in the place of these. Tickets given out before stay good, unless clients are now asked for something else.
    ///
    /// # Errors
    /// [`KeysError`]; these stay as they are.
    pub fn renewed(&self, pairs: &[Pair], policy: Policy, rotate_s: u32) -> Result<Self, KeysError> {
        if policy == self.policy {
            return Self::with_tickets(pairs, policy, Arc::clone(&self.config.ticketer));
        }
        Self::new(pairs, policy, rotate_s)
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    fn with_tickets(pairs: &[Pair], policy: Policy, tickets: Arc<dyn ProducesTickets>) -> Result<Self, KeysError> {
        let provider = Arc::new(default_provider());
        let names = Names::new(pairs, &provider)?;
        let versions: &[_] = if policy.version_min == Version::Tls13 { &[&TLS13] } else { &[&TLS13, &TLS12] };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(versions).map_err(|error| KeysError::Refused(error.to_string()))?;
        let builder = match verifier(&policy.clients, &provider)? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(names));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // What is needed to resume is in the ticket: a million clients that may come back cost nothing here.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = tickets;
        // An attempt uses up the ticket it offers, also one that is refused before the handshake: one is left for the next.
        config.send_tls13_tickets = 2;
        Ok(Self { config: Arc::new(config), policy })
    }
}

/// Chains and keys by server name.
#[derive(Debug)]
struct Names {
    first: Arc<CertifiedKey>,
    /// Lower case; a wildcard as it is written, `*.example.org`.
    by_name: HashMap<String, Arc<CertifiedKey>>,
}

impl Names {
    fn new(pairs: &[Pair], provider: &CryptoProvider) -> Result<Self, KeysError> {
        let mut first = None;
        let mut by_name = HashMap::new();
        for pair in pairs {
            let bad = |error: &dyn fmt::Display| KeysError::BadPair(pair.name.clone(), error.to_string());
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pair.chain).collect();
            let chain = chain.map_err(|error| bad(&error))?;
            let leaf = chain.first().ok_or_else(|| KeysError::NoCertificate(pair.name.clone()))?.clone();
            let key = PrivateKeyDer::from_pem_slice(&pair.key).map_err(|_| KeysError::NoKey(pair.name.clone()))?;
            let certified = CertifiedKey::from_der(chain, key, provider).map_err(|error| bad(&error))?;
            let certified = Arc::new(certified);
            for name in EndEntityCert::try_from(&leaf).map_err(|error| bad(&error))?.valid_dns_names() {
                // Of two for one name the one named first is served.
                by_name.entry(name.to_ascii_lowercase()).or_insert_with(|| Arc::clone(&certified));
            }
            first.get_or_insert(certified);
        }
        Ok(Self { first: first.ok_or(KeysError::NoPair)?, by_name })
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        self.by_name.get(&name).or_else(|| {
            let (_, domain) = name.split_once('.')?;
            self.by_name.get(&format!("*.{domain}"))
        })
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.find(name));
        Some(Arc::clone(named.unwrap_or(&self.first)))
    }
}

fn verifier(clients: &Clients, provider: &Arc<CryptoProvider>) -> Result<Option<Arc<dyn ClientCertVerifier>>, KeysError> {
    let bad = |error: &dyn fmt::Display| KeysError::BadClients(error.to_string());
    let (Clients::Optional(pem) | Clients::Required(pem)) = clients else { return Ok(None) };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder = if matches!(clients, Clients::Optional(_)) { builder.allow_unauthenticated() } else { builder };
    builder.build().map(Some).map_err(|error| bad(&error))
}

/// Tickets under a key that changes every `rotate_s` seconds; one is good under the present key and the one before.
fn tickets(rotate_s: u32) -> Result<Arc<dyn ProducesTickets>, KeysError> {
    let fresh = || -> Result<Box<dyn ProducesTickets>, GetRandomFailed> {
        Ok(Box::new(Tickets(Ticketer::new().map_err(|_| GetRandomFailed)?)))
    };
    let rotator = TicketRotator::new(rotate_s, fresh).map_err(|error| KeysError::Refused(error.to_string()))?;
    Ok(Arc::new(rotator))
}

/// Tickets under one key of the library's making. It would change that every six hours, which is the longest [`tickets`] keeps one.
#[derive(Debug)]
struct Tickets(Arc<dyn ProducesTickets>);

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        self.0.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(cipher)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey as Signed, generate_simple_self_signed};

    use super::*;

    fn pair(name: &str, names: &[&str]) -> Pair {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let Signed { cert, signing_key } = generate_simple_self_signed(names).unwrap();
        Pair { name: name.to_owned(), chain: cert.pem().into(), key: signing_key.serialize_pem().into() }
    }

    /// Names are found as they are, by a wildcard for one label, in any case, and the file named first wins.
    #[test]
    fn certificates_are_found_by_name() {
        let pairs = [pair("a", &["a.example", "*.b.example"]), pair("b", &["x.b.example", "a.example"])];
        let names = Names::new(&pairs, &default_provider()).unwrap();
        let [a, b] = [Some("a.example"), Some("x.b.example")].map(|name| names.find(name.unwrap()).cloned().unwrap());
        let place = |name: &str| names.find(name).map(|found| if Arc::ptr_eq(found, &a) { 'a' } else { 'b' });
        assert!(!Arc::ptr_eq(&a, &b) && Arc::ptr_eq(&names.first, &a));
        assert_eq!(place("A.Example"), Some('a'));
        assert_eq!(place("y.b.example"), Some('a'));
        assert_eq!(place("x.b.example"), Some('b'));
        assert_eq!(place("b.example"), None);
        assert_eq!(place("z.y.b.example"), None);
    }

    /// Each way a file can be no good is told by its name.
    #[test]
    fn bad_files_are_named() {
        let (good, other) = (pair("good", &["a"]), pair("other", &["a"]));
        let refused = |pair: Pair| Keys::new(&[pair], Policy::default(), 60).unwrap_err();
        assert_eq!(Keys::new(&[], Policy::default(), 60).unwrap_err(), KeysError::NoPair);
        assert_eq!(refused(Pair { chain: Vec::new(), ..good.clone() }), KeysError::NoCertificate("good".to_owned()));
        assert_eq!(refused(Pair { key: b"?".to_vec(), ..good.clone() }), KeysError::NoKey("good".to_owned()));
        assert!(matches!(refused(Pair { key: other.key, ..good.clone() }), KeysError::BadPair(name, _) if name == "good"));
        let policy = Policy { clients: Clients::Required(b"?".to_vec()), ..Policy::default() };
        assert!(matches!(Keys::new(&[good], policy, 60), Err(KeysError::BadClients(_))));
    }
}
