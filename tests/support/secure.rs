//! Certificates for tests, and clients that speak TLS.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned, SupportedProtocolVersion};

use super::PATIENCE;
use super::gateway::{Gateway, free_address};

/// An authority that signs for tests, and the directory where it puts files.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: CertificateDer<'static>,
    dir: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("certificates-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory for the test");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, format!("authority {number}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        fs::write(dir.join("ca.pem"), certificate.pem()).expect("a file");
        Self { certificate: certificate.der().clone(), issuer: Issuer::new(params, key), dir }
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).to_str().expect("UTF-8").to_owned()
    }

    /// Writes `file.pem` and `file.key`: a certificate for these names.
    pub fn issue(&self, file: &str, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let params = CertificateParams::new(names).expect("good names");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        fs::write(self.dir.join(format!("{file}.pem")), certificate.pem()).expect("a file");
        fs::write(self.dir.join(format!("{file}.key")), key.serialize_pem()).expect("a file");
    }

    /// The certificate in a file.
    pub fn read(&self, file: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.dir.join(file)).expect("a certificate")
    }

    /// A client that trusts this authority, speaks these versions, and shows the certificate of `file` if one is named.
    pub fn client(&self, versions: &[&'static SupportedProtocolVersion], file: Option<&str>) -> ClientConfig {
        self.client_of(&self.certificate, versions, file)
    }

    /// As [`Authority::client`], with trust in another authority.
    pub fn client_of(
        &self,
        trusted: &CertificateDer<'static>,
        versions: &[&'static SupportedProtocolVersion],
        file: Option<&str>,
    ) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).expect("a certificate");
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).expect("versions");
        let builder = builder.with_root_certificates(roots);
        let mut config = match file {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let key = PrivateKeyDer::from_pem_file(self.dir.join(format!("{file}.key"))).expect("a key");
                builder.with_client_auth_cert(vec![self.read(&format!("{file}.pem"))], key).expect("a pair")
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::in_memory_sessions(64);
        config
    }

    /// A server that shows the certificate of `file`.
    pub fn server(&self, file: &str) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::from_pem_file(self.dir.join(format!("{file}.key"))).expect("a key");
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&BOTH).expect("versions");
        let builder = builder.with_no_client_auth();
        Arc::new(builder.with_single_cert(vec![self.read(&format!("{file}.pem"))], key).expect("a pair"))
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// Both versions, and each alone.
pub const BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

/// A gateway with a listener for TLS and the certificates of these files, and where that listener is.
pub fn start(authority: &Authority, files: &[&str], settings: &[(&str, &str)]) -> (Gateway, SocketAddr) {
    start_within(&[], authority, files, settings)
}

/// As [`start`], by another program: see [`Gateway::within`].
pub fn start_within(program: &[&str], authority: &Authority, files: &[&str], settings: &[(&str, &str)]) -> (Gateway, SocketAddr) {
    let listen = free_address();
    let list = |ending: &str| files.iter().map(|file| authority.path(&format!("{file}.{ending}"))).collect::<Vec<_>>().join(",");
    let (address, certificates, keys) = (listen.to_string(), list("pem"), list("key"));
    let mut all = vec![("tls.listen", address.as_str()), ("tls.certificates", &certificates), ("tls.keys", &keys)];
    all.extend(settings);
    (Gateway::within(program, &all), listen)
}

pub type Stream = StreamOwned<ClientConnection, TcpStream>;

/// A connection whose handshake is over.
pub fn connect(address: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> Result<Stream, std::io::Error> {
    connect_behind(address, &[], config, name)
}

/// As [`connect`], with these bytes in the clear before the handshake, in one piece with its beginning.
pub fn connect_behind(
    address: SocketAddr,
    front: &[u8],
    config: &Arc<ClientConfig>,
    name: &str,
) -> Result<Stream, std::io::Error> {
    connect_on(TcpStream::connect(address)?, front, config, name)
}

/// As [`connect_behind`], on a socket that is there.
pub fn connect_on(mut socket: TcpStream, front: &[u8], config: &Arc<ClientConfig>, name: &str) -> Result<Stream, std::io::Error> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    let mut connection = ClientConnection::new(Arc::clone(config), name).expect("a client");
    let mut first = front.to_vec();
    connection.write_tls(&mut first)?;
    socket.write_all(&first)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(connection, socket))
}

/// Upgrades to the JSON subprotocol and says HELLO; the WELCOME has come.
pub fn welcomed(gateway: &Gateway, stream: Stream, user: &str) -> tungstenite::WebSocket<Stream> {
    let mut socket = upgraded(stream);
    let hello = serde_json::json!({ "t": "hello", "device": "d", "token": gateway.token(user) }).to_string();
    socket.send(tungstenite::Message::text(hello)).expect("it takes a HELLO");
    let welcome = read(&mut socket);
    assert!(welcome.to_text().expect("text").contains("\"welcome\""), "{welcome:?}");
    socket
}

/// The next message that is no ping of the gateway.
pub fn read(socket: &mut tungstenite::WebSocket<Stream>) -> tungstenite::Message {
    loop {
        let message = socket.read().expect("the connection lives");
        if !message.is_ping() {
            return message;
        }
    }
}

/// Upgrades to the JSON subprotocol.
pub fn upgraded(stream: Stream) -> tungstenite::WebSocket<Stream> {
    let url = "ws://localhost/ws".parse().expect("a good URL");
    let request = tungstenite::client::ClientRequestBuilder::new(url).with_sub_protocol("tidegate.v1.json");
    tungstenite::client(request, stream).expect("the gateway upgrades").0
}
