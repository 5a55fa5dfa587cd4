//! What the process gives up before its first thread.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::Kernel;
use crate::auth::trust;
use crate::config::Settings;
use crate::config::settings::DEFINITIONS;
use crate::config::value::{Kind, Raw};
use crate::io::confine::{self, Grants, Landlock};
use crate::io::uring::Uring;

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
    pub(super) uring: Option<Result<(), String>>,
}

/// Files that no setting names.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// With the settings, to be read again.
    pub config: Option<&'a Path>,
    /// To be written once ready.
    pub ready_file: Option<&'a Path>,
}

/// Gives up what a gateway with these settings will not need: new privileges, capabilities, huge pages; with `confine` all files but
/// those it keeps or was named, all ports but its own, connections, and running programs. Makes the data directory if there is none.
///
/// Holds for the calling thread and those it makes later, so it belongs before the first of them, which is the log's.
pub fn confine(settings: &Settings, files: Files<'_>) -> Confined {
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
        confine::enter(&grants(settings, files))
    });
    Confined { landlock, is_open: std::fs::read_dir("/").is_ok(), kept, is_root: confine::is_root(), uring }
}

impl Confined {
    /// Tells the operator, once there is a log.
    pub(super) fn report(&self) {
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
fn grants(settings: &Settings, Files { config, ready_file }: Files<'_>) -> Grants {
    let beside = |file: &Path| match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    // A link may lead elsewhere, and whoever renews a certificate lays a new file there and turns the link.
    let around = |file: &Path| {
        let real = file.canonicalize().ok().map(|real| beside(&real)).filter(|real| *real != beside(file));
        std::iter::once(beside(file)).chain(real).collect::<Vec<_>>()
    };
    let data = &settings.data_dir;
    // Either may be a link to another disk.
    let mut write = vec![data.clone(), data.join("log"), data.join("engine")];
    write.extend(ready_file.map(beside));
    // The settings, and files that they name, may be read again. A directory, not the file, because whoever changes a file puts another
    // in its place.
    let (mut ports, mut is_chosen) = (Vec::new(), false);
    let mut read = config.map_or_else(Vec::new, around);
    for definition in DEFINITIONS.iter().filter(|definition| definition.key != "data_dir") {
        match ((definition.value)(settings), definition.kind) {
            (Raw::Text(path), Kind::Path) => read.extend(around(Path::new(&path))),
            (Raw::List(items), _) => read.extend(items.iter().map(Path::new).filter(|item| item.is_file()).flat_map(around)),
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
    let mut connect = Vec::new();
    for url in settings.auth.asked() {
        // Ports alone: Landlock knows no addresses.
        connect.push(url.port);
        if url.is_named() {
            connect.push(DNS_PORT);
            read.extend(RESOLVER_FILES.map(PathBuf::from));
            // Whoever manages it lays a new file there.
            read.extend(
                Path::new(RESOLVER_FILES[0]).canonicalize().ok().map(|real| beside(&real)).filter(|dir| dir != Path::new("/etc")),
            );
        }
        if url.is_https && settings.auth.ca_file.is_none() {
            read.extend(trust::SYSTEM.map(PathBuf::from));
        }
    }
    Grants { write, read, listen, connect }
}

/// What the resolver of the C library reads.
const RESOLVER_FILES: [&str; 5] = ["/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/gai.conf", "/etc/nsswitch.conf"];
/// Answers that are too long for a datagram are asked for again by TCP.
const DNS_PORT: u16 = 53;

#[cfg(test)]
mod tests {
    use super::*;

    /// A process keeps within reach what its settings name, and nothing beside.
    #[test]
    fn grants_follow_the_settings() {
        let mut settings = Settings::default();
        settings.auth.secret_file = Some("key".into());
        let files = Files { config: Some(Path::new("/etc/t/t.toml")), ready_file: Some(Path::new("/run/t/ready")) };
        let of = |settings: &Settings| grants(settings, files);
        let Grants { write, read, listen, connect } = of(&settings);
        assert!(connect.is_empty());
        assert_eq!(write, ["./tidegate-data", "./tidegate-data/log", "./tidegate-data/engine", "/run/t"].map(PathBuf::from));
        assert_eq!(read[..4], ["/etc/t", ".", "/proc", "/sys/fs/cgroup"].map(PathBuf::from));
        assert_eq!(read.len(), 7, "and random bytes, and the binary: {read:?}");
        assert_eq!(listen, Some(vec![8080, 8081]));
        settings.auth.jwks_url = Some("http://127.0.0.1:7000/jwks.json".to_owned());
        settings.auth.webhook_url = Some("http://[::1]:7001/".to_owned());
        assert_eq!(of(&settings).connect, [7000, 7001]);
        settings.auth.webhook_url = Some("https://id.example.org/".to_owned());
        let named = of(&settings);
        assert_eq!(named.connect, [7000, 443, 53]);
        assert!(
            ["/etc/hosts", trust::SYSTEM[0]].iter().all(|file| named.read.contains(&PathBuf::from(file))),
            "{:?}",
            named.read
        );
        settings.admin.listen.set_port(0);
        assert_eq!(of(&settings).listen, Some(vec![8080, 0]));
        settings.listen.set_port(0);
        assert_eq!(of(&settings).listen, None);
    }
}
