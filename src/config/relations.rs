//! What settings must be to one another. A row here names its keys, so that the mistake is shown where one of them was set.

use std::net::{IpAddr, SocketAddr};

use super::settings::Settings;
use super::value::ClientCertificates;

/// Settings that do not go together.
#[derive(Debug)]
pub struct Conflict {
    /// Keys that take part, the one to change first.
    pub keys: &'static [&'static str],
    /// What was found.
    pub found: String,
    /// What would be allowed.
    pub allowed: String,
    /// What to do.
    pub remedy: String,
}

/// All conflicts within `settings`.
#[must_use]
pub fn conflicts(settings: &Settings) -> Vec<Conflict> {
    let mut found = doors(settings);
    found.extend(numbers(settings));
    found
}

/// What is allowed and yet worth a line at start.
#[must_use]
pub fn warnings(settings: &Settings) -> Vec<String> {
    let store = &settings.store;
    let levels = [store.level_direct, store.level_group, store.level_channel];
    let drain_ms = u64::from(settings.drain.lead_ms) + u64::from(settings.drain.window_ms);
    let rows = [
        (
            levels.iter().any(|level| level.unwrap_or(store.level) < 2),
            "store.level is below 2: a power failure takes acknowledged messages with it".to_owned(),
        ),
        (
            drain_ms > 90_000,
            format!("a drain takes up to {drain_ms} ms: the service manager must wait that long before it kills"),
        ),
        (
            settings.auth.asked().any(|url| url.is_exposed()),
            "auth.jwks_url or auth.webhook_url leaves this machine in the clear: what it says can be changed on its way"
                .to_owned(),
        ),
        (
            settings.origins.is_empty() && !is_loopback(settings.listen),
            "origins is empty: browsers are refused while listening beyond this machine".to_owned(),
        ),
    ];
    rows.into_iter().filter_map(|(applies, text)| applies.then_some(text)).collect()
}

/// Whether only this machine can reach `address`.
#[must_use]
pub fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Who may come in.
fn doors(settings: &Settings) -> Vec<Conflict> {
    let has_secret = settings.auth.secret.is_some() || settings.auth.secret_file.is_some() || settings.auth.has_others();
    let mut found = tls(settings);
    if let Some(listen) = settings.tls.listen.filter(|&listen| !is_loopback(listen) && !has_secret) {
        found.push(Conflict {
            keys: &["tls.listen", "auth.secret_file", "auth.secret"],
            found: format!("tls.listen is {listen}, which other machines can reach, and no secret is configured"),
            allowed: "a loopback address, or any address with a secret of your own".to_owned(),
            remedy: "make one with `head -c 32 /dev/urandom | base64 > secret` and set auth.secret_file".to_owned(),
        });
    }
    if !is_loopback(settings.listen) && !has_secret {
        found.push(Conflict {
            keys: &["listen", "auth.secret_file", "auth.secret"],
            found: format!("listen is {}, which other machines can reach, and no secret is configured", settings.listen),
            allowed: "a loopback address, or any address with a secret of your own or auth.keys".to_owned(),
            remedy: "make one with `head -c 32 /dev/urandom | base64 > secret` and set auth.secret_file".to_owned(),
        });
    }
    if settings.auth.secret.is_some() && settings.auth.secret_file.is_some() {
        found.push(Conflict {
            keys: &["auth.secret", "auth.secret_file"],
            found: "both auth.secret and auth.secret_file are set".to_owned(),
            allowed: "one of them".to_owned(),
            remedy: "keep auth.secret_file".to_owned(),
        });
    }
    if !is_loopback(settings.admin.listen) && !settings.admin.allow_remote {
        found.push(Conflict {
            keys: &["admin.listen", "admin.allow_remote"],
            found: format!(
                "admin.listen is {}, which other machines can reach, and it asks nobody for a password",
                settings.admin.listen
            ),
            allowed: "a loopback address".to_owned(),
            remedy: "if only trusted machines can reach it, set admin.allow_remote = true".to_owned(),
        });
    }
    if settings.proxy.protocol && settings.proxy.networks.is_empty() {
        found.push(Conflict {
            keys: &["proxy.protocol", "proxy.networks"],
            found: "proxy.protocol is true, and proxy.networks names nobody who may use it".to_owned(),
            allowed: "both, or neither".to_owned(),
            remedy: "set proxy.networks to the addresses of your balancers".to_owned(),
        });
    }
    if overlap(settings.listen, settings.admin.listen) {
        found.push(Conflict {
            keys: &["admin.listen", "listen"],
            found: format!("admin.listen {} and listen {} are the same door", settings.admin.listen, settings.listen),
            allowed: "two ports".to_owned(),
            remedy: "change the port of one".to_owned(),
        });
    }
    found
}

/// The listener for TLS, and what it needs.
fn tls(settings: &Settings) -> Vec<Conflict> {
    let tls = &settings.tls;
    let Some(listen) = tls.listen else { return Vec::new() };
    let mut found = Vec::new();
    for (keys, other) in [(&["tls.listen", "listen"], settings.listen), (&["tls.listen", "admin.listen"], settings.admin.listen)]
    {
        if overlap(listen, other) {
            found.push(Conflict {
                keys,
                found: format!("tls.listen {listen} and {} {other} are the same door", keys[1]),
                allowed: "two ports".to_owned(),
                remedy: "change the port of one".to_owned(),
            });
        }
    }
    if tls.certificates.is_empty() {
        found.push(Conflict {
            keys: &["tls.listen", "tls.certificates"],
            found: "tls.listen is set and tls.certificates names no file".to_owned(),
            allowed: "at least one certificate".to_owned(),
            remedy: "name the files in tls.certificates, and their keys in tls.keys".to_owned(),
        });
    }
    if !tls.keys.is_empty() && tls.keys.len() != tls.certificates.len() {
        found.push(Conflict {
            keys: &["tls.keys", "tls.certificates"],
            found: format!("tls.keys names {} files, tls.certificates {}", tls.keys.len(), tls.certificates.len()),
            allowed: "one key for each certificate, in the same order; or none, if each is in the file of its certificate"
                .to_owned(),
            remedy: "name as many".to_owned(),
        });
    }
    if tls.client_certificates != ClientCertificates::Off && tls.client_ca_file.is_none() {
        found.push(Conflict {
            keys: &["tls.client_certificates", "tls.client_ca_file"],
            found: format!("tls.client_certificates is {:?} and tls.client_ca_file is not set", tls.client_certificates.word()),
            allowed: "\"off\", or a file with the certificates that sign those of clients".to_owned(),
            remedy: "set tls.client_ca_file".to_owned(),
        });
    }
    found
}

/// Whether both addresses claim the same port of the same interface.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b): (IpAddr, IpAddr) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() != 0 && one.port() == other.port() && (a == b || a.is_unspecified() || b.is_unspecified())
}

/// A number, its key, and the smallest it may be beside another number.
struct AtLeast {
    keys: &'static [&'static str],
    value: u64,
    least: u64,
    because: &'static str,
}

/// Numbers that must leave room for one another.
fn numbers(settings: &Settings) -> Vec<Conflict> {
    let (protocol, limits) = (&settings.protocol, &settings.limits);
    let max_frame = u64::from(protocol.max_frame_bytes);
    let max_payload = u64::from(protocol.max_payload_bytes);
    let rows = [
        AtLeast {
            keys: &["protocol.max_frame_bytes", "protocol.max_payload_bytes"],
            value: max_frame,
            // In JSON a binary payload is base64, four letters for three bytes, between the other fields of a message.
            least: max_payload.div_ceil(3) * 4 + ENVELOPE_BYTES,
            because: "a payload of protocol.max_payload_bytes must fit it in base64, with 1024 bytes for the other fields",
        },
        AtLeast {
            keys: &["protocol.hello_ms", "auth.webhook_timeout_ms"],
            value: u64::from(protocol.hello_ms),
            least: settings.auth.webhook_url.as_ref().map_or(0, |_| u64::from(settings.auth.webhook_timeout_ms) + 1),
            because: "a HELLO whose token the webhook judges must be able to wait for it",
        },
        AtLeast {
            keys: &["protocol.send_burst", "protocol.send_window"],
            value: u64::from(protocol.send_burst),
            least: 2 * u64::from(protocol.send_window),
            because: "a client that reconnects repeats a whole window and may go on sending: twice protocol.send_window",
        },
        AtLeast {
            keys: &["protocol.window_max", "protocol.window_default"],
            value: u64::from(protocol.window_max),
            least: u64::from(protocol.window_default),
            because: "it bounds protocol.window_default too",
        },
        AtLeast {
            keys: &["protocol.window_bytes", "protocol.max_frame_bytes"],
            value: u64::from(protocol.window_bytes),
            least: max_frame,
            because: "the longest message, protocol.max_frame_bytes, must be deliverable",
        },
        AtLeast {
            keys: &["limits.queue_bytes_hard", "protocol.max_frame_bytes"],
            value: u64::from(limits.queue_bytes_hard),
            least: max_frame,
            because: "the longest message, protocol.max_frame_bytes, must be deliverable",
        },
        AtLeast {
            keys: &["limits.queue_bytes_hard", "limits.queue_bytes_soft"],
            value: u64::from(limits.queue_bytes_hard),
            least: u64::from(limits.queue_bytes_soft) + 1,
            because: "it lies above limits.queue_bytes_soft",
        },
        AtLeast {
            keys: &["limits.queue_bytes_max", "limits.queue_bytes_hard"],
            value: limits.queue_bytes_max.unwrap_or(u64::MAX),
            least: u64::from(limits.queue_bytes_hard),
            because: "one connection may have limits.queue_bytes_hard",
        },
        AtLeast {
            keys: &["limits.submit_bytes_max", "protocol.max_frame_bytes"],
            value: limits.submit_bytes_max,
            least: max_frame,
            because: "the longest message, protocol.max_frame_bytes, must be storable",
        },
        AtLeast {
            keys: &["store.segment_bytes", "protocol.max_frame_bytes"],
            value: settings.store.segment_bytes,
            least: 2 * max_frame,
            because: "the longest message and its headers must fit one file: twice protocol.max_frame_bytes",
        },
    ];
    rows.into_iter().filter(|row| row.value < row.least).map(AtLeast::conflict).collect()
}

impl AtLeast {
    fn conflict(self) -> Conflict {
        let (key, others) = self.keys.split_first().unwrap_or((&"", &[]));
        Conflict {
            keys: self.keys,
            found: format!("{key} is {}, too small beside {}", self.value, others.join(", ")),
            allowed: format!("{} or more", self.least),
            remedy: self.because.to_owned(),
        }
    }
}

/// Room for the fields of a message beside its payload, in either encoding.
const ENVELOPE_BYTES: u64 = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::{Layers, load};

    fn problems(text: &str) -> Vec<String> {
        let layers = Layers { file: Some(("t.toml", text)), ..Layers::default() };
        load(layers).err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    /// The defaults go together, and say nothing an operator must know.
    #[test]
    fn the_defaults_have_no_conflict() {
        assert_eq!(problems(""), Vec::<String>::new());
        assert_eq!(warnings(&Settings::default()), Vec::<String>::new());
    }

    /// Each relation, broken by one file: one line, at the value that was set, naming the remedy.
    #[test]
    fn each_relation_is_checked() {
        let told = [
            ("listen = \"0.0.0.0:80\"", "t.toml:1:10: listen is 0.0.0.0:80, which", "set auth.secret_file"),
            ("listen = \"[::]:80\"", "t.toml:1:10: listen is [::]:80, which", "set auth.secret_file"),
            (
                "auth.secret_file = \"s\"\nauth.secret = \"0123456789abcdef0123456789abcdef\"",
                "t.toml:2:15: both",
                "keep auth.secret_file",
            ),
            ("admin.listen = \"10.0.0.1:81\"", "t.toml:1:16: admin.listen is 10.0.0.1:81, which", "admin.allow_remote = true"),
            ("admin.listen = \"127.0.0.1:8080\"", "t.toml:1:16: admin.listen 127.0.0.1:8080 and listen", "port"),
            ("proxy.protocol = true", "t.toml:1:18: proxy.protocol is true, and", "set proxy.networks"),
            ("protocol.max_frame_bytes = 65536", "t.toml:1:28: protocol.max_frame_bytes is 65536, too small", "base64"),
            ("protocol.max_payload_bytes = 131072", "t.toml:1:30: protocol.max_frame_bytes is 131072, too small", "base64"),
            ("protocol.send_window = 65", "t.toml:1:24: protocol.send_burst is 128, too small", "twice protocol.send_window"),
            ("protocol.send_burst = 127", "t.toml:1:23: protocol.send_burst is 127, too small", "twice protocol.send_window"),
            ("protocol.window_max = 255", "t.toml:1:23: protocol.window_max is 255, too small", "window_default"),
            ("protocol.window_bytes = 65536", "t.toml:1:25: protocol.window_bytes is 65536, too small", "deliverable"),
            ("limits.queue_bytes_hard = 65536", "t.toml:1:27: limits.queue_bytes_hard is 65536, too small", "deliverable"),
            ("limits.queue_bytes_soft = 262144", "t.toml:1:27: limits.queue_bytes_hard is 262144, too small", "lies above"),
            (
                "limits.queue_bytes_hard = 2097152\nlimits.queue_bytes_max = 1048576",
                "t.toml:2:26: limits.queue_bytes_max is 1048576, too small",
                "one connection",
            ),
            ("[tls]\nlisten = \"127.0.0.1:8443\"", "t.toml:2:10: tls.listen is set and tls.certificates", "tls.keys"),
            (
                "[tls]\nlisten = \"127.0.0.1:8080\"\ncertificates = [\"c\"]",
                "t.toml:2:10: tls.listen 127.0.0.1:8080 and listen 127.0.0.1:8080 are the same door",
                "port",
            ),
            (
                "[tls]\nlisten = \"127.0.0.1:8081\"\ncertificates = [\"c\"]",
                "t.toml:2:10: tls.listen 127.0.0.1:8081 and admin.listen 127.0.0.1:8081 are the same door",
                "port",
            ),
            (
                "[tls]\nlisten = \"127.0.0.1:8443\"\ncertificates = [\"c\", \"d\"]\nkeys = [\"k\"]",
                "t.toml:4:8: tls.keys names 1 files, tls.certificates 2",
                "as many",
            ),
            (
                "[tls]\nlisten = \"127.0.0.1:8443\"\ncertificates = [\"c\"]\nclient_certificates = \"required\"",
                "t.toml:4:23: tls.client_certificates is \"required\" and tls.client_ca_file",
                "client_ca_file",
            ),
            (
                "[tls]\nlisten = \"0.0.0.0:443\"\ncertificates = [\"c\"]",
                "t.toml:2:10: tls.listen is 0.0.0.0:443, which",
                "set auth.secret_file",
            ),
            (
                "auth.webhook_url = \"http://127.0.0.1:1/\"\nauth.webhook_timeout_ms = 5000",
                "t.toml:2:27: protocol.hello_ms is 5000, too small",
                "wait for it",
            ),
            ("store.segment_bytes = 131072", "t.toml:1:23: store.segment_bytes is 131072, too small", "one file"),
        ];
        for (text, start, remedy) in told {
            let problems = problems(text);
            assert_eq!(problems.len().max(1), problems.len(), "{text}: no conflict found");
            assert!(problems[0].starts_with(start), "{problems:?}");
            assert!(problems[0].contains(remedy), "{problems:?}");
        }
        let long = "[protocol]\nmax_frame_bytes = 16777216\nwindow_bytes = 16777216\n[limits]\nqueue_bytes_hard = 16777216\n\
            submit_bytes_max = 1048576\n";
        let problems = problems(long);
        assert!(problems.iter().any(|line| line.contains("submit_bytes_max is 1048576, too small")), "{problems:?}");
    }

    /// With a secret any address is fine; loopback is fine in every spelling.
    #[test]
    fn doors_may_open_with_a_secret() {
        let free = [
            "listen = \"0.0.0.0:80\"\nauth.secret_file = \"/etc/tidegate/secret\"",
            "listen = \"0.0.0.0:80\"\nauth.secret = \"0123456789abcdef0123456789abcdef\"",
            "listen = \"0.0.0.0:80\"\nauth.keys = [\"/etc/tidegate/jwks.json\"]",
            "listen = \"127.9.9.9:80\"",
            "listen = \"[::1]:80\"",
            "listen = \"[::ffff:127.0.0.1]:80\"",
            "listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"",
            "admin.listen = \"0.0.0.0:81\"\nadmin.allow_remote = true",
        ];
        for text in free {
            assert_eq!(problems(text), Vec::<String>::new(), "{text}");
        }
    }

    /// A value that could not be taken is not blamed a second time through its relations.
    #[test]
    fn a_bad_value_is_told_once() {
        let told =
            problems("listen = \"0.0.0.0:80\"\nauth.secret = \"short\"\nprotocol.send_window = 9000\nprotocol.send_burst = 2");
        assert_eq!(told.len(), 2, "{told:?}");
    }

    /// What is allowed but dangerous gets a line.
    #[test]
    fn dangerous_settings_are_warned_about() {
        let mut settings = Settings::default();
        settings.store.level = 1;
        settings.drain.window_ms = 86_000;
        settings.listen = SocketAddr::from(([0, 0, 0, 0], 80));
        assert_eq!(warnings(&settings).len(), 3);
    }
}
