//! The files of TLS: read at start, and again when asked to while clients stay connected.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::Fatal;
use crate::config::value::{ClientCertificates, TlsVersion};
use crate::config::{Exit, Settings};
use crate::mail::Control;
use crate::mailbox::Post;
use crate::wire::tls::{Clients, Keys, Pair, Policy, Version};

/// Reads what the settings name. `old` is what was in force: tickets made under it stay good.
///
/// # Errors
/// [`Exit::Usage`], naming the file and what to do.
pub fn load(settings: &Settings, old: Option<&Keys>) -> Result<Keys, Fatal> {
    let wrong = |reason: String| Fatal::new(Exit::Usage, format!("tls: {reason}"));
    let tls = &settings.tls;
    let mut pairs = Vec::new();
    for (number, name) in tls.certificates.iter().enumerate() {
        let chain = read(Path::new(name)).map_err(wrong)?;
        let key = tls.keys.get(number).map_or_else(|| Ok(chain.clone()), |key| read(Path::new(key))).map_err(wrong)?;
        pairs.push(Pair { name: name.clone(), chain, key });
    }
    let authority = || tls.client_ca_file.as_deref().map_or_else(|| Ok(Vec::new()), read).map_err(wrong);
    let policy = Policy {
        version_min: match tls.version_min {
            TlsVersion::Tls12 => Version::Tls12,
            TlsVersion::Tls13 => Version::Tls13,
        },
        clients: match tls.client_certificates {
            ClientCertificates::Off => Clients::Unasked,
            ClientCertificates::Optional => Clients::Optional(authority()?),
            ClientCertificates::Required => Clients::Required(authority()?),
        },
    };
    let keys = match old {
        Some(old) => old.renewed(&pairs, policy, tls.ticket_rotate_s),
        None => Keys::new(&pairs, policy, tls.ticket_rotate_s),
    };
    keys.map_err(|error| wrong(error.to_string()))
}

/// Reads the files again, and gives what they hold to every reactor. If one is no good all of them stay as they were.
pub(super) fn reload(settings: &Settings, keys: Option<&mut Keys>, posts: &[Post]) -> Result<(), String> {
    let Some(keys) = keys else {
        return Err("there is no listener for TLS; set tls.listen and start again".to_owned());
    };
    let fresh = load(settings, Some(keys)).map_err(|fatal| fatal.reason)?;
    for post in posts {
        // The lane is empty but for questions of the admin thread.
        if post.control.send_within(Control::Keys(fresh.clone()), Duration::from_secs(1)).is_err() {
            return Err("a reactor takes no mail; what it has stays in force, ask again".to_owned());
        }
    }
    *keys = fresh;
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    fs::read(file).map_err(|error| format!("{}: cannot read it: {error}", file.display()))
}
