//! Giving up, for good, what a gateway will not need: privileges, files, ports, huge pages.                            [libc]
//!
//! All of it holds for the calling thread and for threads it makes later, so it comes before the first of them. Nothing here can be
//! undone, by this program or by whoever takes it over.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What stays allowed under Landlock. Everything else that Landlock knows is refused: other files, running a program, connecting elsewhere,
/// signals and abstract sockets of other processes.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Grants {
    /// Directories whose contents may be read, made, changed and removed.
    pub write: Vec<PathBuf>,
    /// Directories and files that may be read.
    pub read: Vec<PathBuf>,
    /// Ports that TCP may listen on; `None`: any.
    pub listen: Option<Vec<u16>>,
    /// Ports that TCP may connect to.
    pub connect: Vec<u16>,
}

/// How much Landlock could do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Landlock {
    /// In force, with what this version of its interface knows: files from 1 on, ports from 4, signals from 6.
    Enforced {
        /// Version of the interface.
        version: u32,
    },
    /// The kernel has none, or a container's filter hides it.
    Missing,
}

/// Keeps the kernel from backing this process with transparent huge pages, also where they are set to "always".
///
/// The tables of a gateway are reserved for all connections and touched sparsely; 2 MiB for every first touch make an idle session
/// several times as large: see `docs/decisions/0002-one-static-binary.md`.
///
/// # Errors
/// The kernel's; the process then goes on with what the machine does.
pub fn refuse_huge_pages() -> io::Result<()> {
    prctl(libc::PR_SET_THP_DISABLE)
}

/// No program started from here gains privileges by its file.
///
/// # Errors
/// The kernel's.
pub fn refuse_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS)
}

/// Whether this process runs as root.
#[must_use]
pub fn is_root() -> bool {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Drops every capability but two: to pass the permissions of files, without which root cannot use a data directory of another user
/// and which Landlock bounds, and to listen below port 1024. A process without capabilities is left as it is.
///
/// # Errors
/// The kernel's.
pub fn drop_capabilities() -> io::Result<()> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut sets = [CapabilitySets::default(); 2];
    // SAFETY: both point to structures of the layout this version of the call has; it reads one and writes the other.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, &raw mut sets) })?;
    if sets.iter().all(|set| set.permitted == 0) {
        return Ok(());
    }
    let kept = [CAPABILITIES_KEPT, 0];
    for (set, kept) in sets.iter_mut().zip(kept) {
        set.permitted &= kept;
        set.effective &= kept;
        set.inheritable = 0;
    }
    // SAFETY: as above; the call only reads both.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const sets) }).map(drop)
}

/// Confines this thread, and those it will make, to `grants`. [`refuse_new_privileges`] must have come before.
///
/// A path that does not exist is left out: whoever opens it later fails as it would have.
///
/// # Errors
/// The kernel's, but for having no Landlock.
pub fn enter(grants: &Grants) -> io::Result<Landlock> {
    let Some(version) = landlock_version()? else { return Ok(Landlock::Missing) };
    let listen = grants.listen.as_deref().filter(|_| version >= 4);
    let net = if version >= 4 { NET_CONNECT } else { 0 } | if listen.is_some() { NET_BIND } else { 0 };
    let attributes = RulesetAttributes {
        files: files_known(version),
        net,
        scoped: if version >= 6 { SCOPE_ABSTRACT | SCOPE_SIGNAL } else { 0 },
    };
    // SAFETY: the attributes are readable memory of the size given; the kernel takes a longer structure than it knows while what it
    // does not know is zero.
    let created =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size_of_val(&attributes), 0_u32) };
    let number = i32::try_from(check(created)?).expect("a descriptor is an int");
    // SAFETY: the call above made this descriptor, and nobody else has it.
    let ruleset = unsafe { OwnedFd::from_raw_fd(number) };
    for path in &grants.write {
        allow(&ruleset, path, FILES_WRITE & attributes.files)?;
    }
    for path in &grants.read {
        allow(&ruleset, path, FILES_READ & attributes.files)?;
    }
    let connect = if version >= 4 { grants.connect.as_slice() } else { &[] };
    let ports =
        listen.unwrap_or_default().iter().map(|port| (NET_BIND, port)).chain(connect.iter().map(|port| (NET_CONNECT, port)));
    for (allowed, &port) in ports {
        let rule = PortRule { allowed, port: u64::from(port) };
        add_rule(&ruleset, RULE_PORT, (&raw const rule).cast())?;
    }
    // SAFETY: the descriptor is open; the second argument is the flags.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) })?;
    Ok(Landlock::Enforced { version })
}

/// The version of Landlock's interface; `None`: there is none.
fn landlock_version() -> io::Result<Option<u32>> {
    // SAFETY: with this flag the call reads nothing and returns a number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION_FLAG) };
    match check(version) {
        Ok(version) => Ok(u32::try_from(version).ok()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Allows `access` beneath a directory, or to a file as far as files have it.
fn allow(ruleset: &OwnedFd, path: &Path, access: u64) -> io::Result<()> {
    let Ok(name) = CString::new(path.as_os_str().as_bytes()) else { return Ok(()) };
    // SAFETY: the name ends with a zero and lives through the call.
    let opened = unsafe { libc::open(name.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
    if opened < 0 {
        return Ok(());
    }
    // SAFETY: the call above made this descriptor, and nobody else has it.
    let parent = unsafe { OwnedFd::from_raw_fd(opened) };
    let access = if path.is_dir() { access } else { access & FILES_OF_FILES };
    let rule = PathRule { allowed: access, parent: parent.as_raw_fd() };
    add_rule(ruleset, RULE_PATH, (&raw const rule).cast())
}

fn add_rule(ruleset: &OwnedFd, kind: u32, rule: *const u8) -> io::Result<()> {
    // SAFETY: the ruleset is open, and both callers pass a rule of the kind they name, which lives through the call.
    check(unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), kind, rule, 0_u32) }).map(drop)
}

/// Switches on what one number and no argument switch on.
fn prctl(option: i32) -> io::Result<()> {
    // SAFETY: the two options used here take 1 and three zeros, and no pointer.
    check(unsafe { libc::prctl(option, 1_u64, 0_u64, 0_u64, 0_u64) }.into()).map(drop)
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Rights over files that a version of the interface can refuse.
const fn files_known(version: u32) -> u64 {
    let count = match version {
        1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    (1 << count) - 1
}

/// `landlock_ruleset_attr`.
#[repr(C)]
struct RulesetAttributes {
    files: u64,
    net: u64,
    scoped: u64,
}

/// `landlock_path_beneath_attr`, which the kernel has packed.
#[repr(C, packed)]
struct PathRule {
    allowed: u64,
    parent: i32,
}

/// `landlock_net_port_attr`.
#[repr(C)]
struct PortRule {
    allowed: u64,
    port: u64,
}

/// `__user_cap_header_struct`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// `__user_cap_data_struct`; two of them hold the 64 bits of each set.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilitySets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// `CAP_DAC_OVERRIDE` and `CAP_NET_BIND_SERVICE`.
const CAPABILITIES_KEPT: u32 = 1 << 1 | 1 << 10;
const VERSION_FLAG: u32 = 1;
const RULE_PATH: u32 = 1;
const RULE_PORT: u32 = 2;
/// Read a file, list a directory.
const FILES_READ: u64 = 1 << 2 | 1 << 3;
/// Reading; write and truncate; remove directories and files; make directories, regular files and sockets; move between directories.
const FILES_WRITE: u64 = FILES_READ | 1 << 1 | 1 << 14 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 13;
/// What a rule about a single file may name: execute, write, read, truncate.
const FILES_OF_FILES: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 14;
const NET_BIND: u64 = 1;
const NET_CONNECT: u64 = 1 << 1;
const SCOPE_ABSTRACT: u64 = 1;
const SCOPE_SIGNAL: u64 = 1 << 1;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::net::{TcpListener, TcpStream};
    use std::process::Command;

    /// Within: the directory is used as before. Without: files, ports, connections and programs are refused. On a thread of its own,
    /// since nothing of it can be undone. A kernel without Landlock says so.
    #[test]
    fn what_is_not_granted_is_refused() {
        let dir = std::env::temp_dir().join(format!("tidegate-confine-{}", std::process::id()));
        let (inside, outside) = (dir.join("inside"), dir.join("outside"));
        for dir in [&inside, &outside] {
            fs::create_dir_all(dir.join("deeper")).unwrap();
        }
        fs::write(outside.join("secret"), "s").unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        let granted = open.local_addr().unwrap();
        let write = vec![inside.clone(), dir.join("none")];
        let grants = Grants { write, read: Vec::new(), listen: Some(vec![0]), connect: vec![granted.port()] };
        let (within, without) = (inside, outside);
        let confined = std::thread::spawn(move || {
            refuse_new_privileges().unwrap();
            drop_capabilities().unwrap();
            let Landlock::Enforced { version } = enter(&grants).unwrap() else { return false };
            fs::write(within.join("draft"), "m").unwrap();
            fs::rename(within.join("draft"), within.join("deeper/kept")).unwrap();
            assert_eq!(fs::read_to_string(within.join("deeper/kept")).unwrap(), "m");
            fs::remove_dir_all(within.join("deeper")).unwrap();
            let refused = |error: io::Error| assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
            refused(fs::read(without.join("secret")).unwrap_err());
            refused(fs::write(without.join("new"), "m").unwrap_err());
            refused(fs::read_dir(&without).unwrap_err());
            refused(Command::new("/bin/true").spawn().unwrap_err());
            if version >= 4 {
                drop(TcpListener::bind("127.0.0.1:0").unwrap());
                refused(TcpListener::bind("127.0.0.1:1").unwrap_err());
                refused(TcpStream::connect(address).unwrap_err());
                drop(TcpStream::connect(granted).unwrap());
            }
            true
        });
        let was_confined = confined.join().unwrap();
        println!("confined: {was_confined}");
        assert_eq!(was_confined, landlock_version().unwrap().is_some());
        // This thread is as free as before.
        assert!(fs::read(dir.join("outside/secret")).is_ok());
        fs::remove_dir_all(&dir).unwrap();
    }
}
