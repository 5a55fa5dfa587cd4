//! Whom the gateway believes when it asks a service over https.                                             [rustls]

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

/// Those who may sign the certificates of services. A copy is a count.
#[derive(Clone)]
pub struct Trust(pub(super) Arc<ClientConfig>);

impl Trust {
    /// Reads the authorities of `file`, or those of the system. TLS 1.2 and 1.3 are spoken.
    ///
    /// # Errors
    /// What is wrong with which file, and the remedy.
    pub fn read(file: Option<&Path>) -> Result<Self, String> {
        let system = || SYSTEM.map(Path::new).into_iter().find(|path| path.exists());
        let path = file.or_else(system).ok_or("no authorities are installed; name a file of them in auth.ca_file")?;
        let name = path.display();
        let text = fs::read(path).map_err(|error| format!("{name}: cannot read the authorities: {error}"))?;
        let mut roots = RootCertStore::empty();
        // Bundles of a system hold some that the library has no use for.
        let (count, _) = roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).flatten());
        if count == 0 {
            return Err(format!("{name}: no certificate of an authority in it; it must be PEM"));
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        Ok(Self(Arc::new(builder.with_root_certificates(roots).with_no_client_auth())))
    }
}

/// The name for which the certificate of `host` must be.
pub(super) fn name(host: &str) -> Result<ServerName<'static>, String> {
    let name = host.trim_end_matches('.').to_owned();
    ServerName::try_from(name).map_err(|_| format!("{host}: a certificate cannot be for this name"))
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust")
    }
}

/// Where systems keep their authorities: Debian, Fedora, openSUSE, Alpine.
pub const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
