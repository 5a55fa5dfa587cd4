//! How much memory there is: that of the machine, or of the control group the process is in, if that is less.              [libc]

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Memory the process may count on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Available {
    /// Bytes.
    pub bytes: u64,
    /// Who says so, for the operator.
    pub from: &'static str,
}

/// What the kernel says. `None`: it says nothing that can be read.
#[must_use]
pub fn available() -> Option<Available> {
    read(Path::new("/"), told_bytes)
}

/// As [`available`], with `/proc` and `/sys` below `root`, and what the kernel tells whom it shows no `/proc/meminfo`.
fn read(root: &Path, told: impl FnOnce() -> Option<u64>) -> Option<Available> {
    // The file first: in a container that is given a part of a machine it may show that part.
    let machine = shown_bytes(root).map(|bytes| Available { bytes, from: "MemTotal" });
    let machine = machine.or_else(|| told().map(|bytes| Available { bytes, from: "sysinfo" }));
    machine.into_iter().chain(groups(root)).min_by_key(|it| it.bytes)
}

fn shown_bytes(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What sysinfo(2) says: the same number, and also where a service manager hides the file (`ProcSubset=pid`).
fn told_bytes() -> Option<u64> {
    let mut told = std::mem::MaybeUninit::<libc::sysinfo>::uninit();
    // SAFETY: the call writes one structure, for which there is room.
    if unsafe { libc::sysinfo(told.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: a call that succeeds has written all of it.
    let told = unsafe { told.assume_init() };
    told.totalram.checked_mul(u64::from(told.mem_unit))
}

/// The least bound of the groups of this process and of those above them: each holds for all below. Of both versions, for a machine may have
/// either count memory.
fn groups(root: &Path) -> impl Iterator<Item = Available> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    // `4:memory:/path` of version 1, `0::/path` of version 2.
    let path_of = |is_it: fn(&str) -> bool| {
        let fields = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        fields.filter(|(controllers, _)| is_it(controllers)).map(|(_, path)| PathBuf::from(path)).next()
    };
    let second = path_of(str::is_empty).map(|path| (path, "sys/fs/cgroup", "memory.max"));
    let first = path_of(|controllers| controllers.split(',').any(|it| it == "memory"));
    let first = first.map(|path| (path, "sys/fs/cgroup/memory", "memory.limit_in_bytes"));
    let bounds = second.into_iter().chain(first).filter_map(|(path, mount, file)| {
        let bytes = least(&root.join(mount), &path, file)?;
        Some(Available { bytes, from: file })
    });
    bounds.collect::<Vec<_>>().into_iter()
}

/// The least that `file` says in any group on the way from the mount to `path`.
fn least(mount: &Path, path: &Path, file: &str) -> Option<u64> {
    // In a container the path may lead out of what is mounted (`/../..`): then the mount is the group.
    let steps = path.components().filter(|step| matches!(step, Component::Normal(_)));
    let mut group = mount.to_owned();
    let mut least = bound_of(&group.join(file));
    for step in steps {
        group.push(step);
        least = [least, bound_of(&group.join(file))].into_iter().flatten().min();
    }
    least
}

/// `None`: no bound, which version 2 calls "max" and version 1 a number beyond any machine; or no such file.
fn bound_of(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok().filter(|&bytes| bytes < UNBOUNDED_BYTES)
}

/// From here on a bound is none.
const UNBOUNDED_BYTES: u64 = 1 << 60;

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine as files: MemTotal in KiB, the groups of the process, and which files of groups have which bound.
    fn machine(name: &str, kib: Option<u64>, told: Option<u64>, groups: &str, bounds: &[(&str, &str)]) -> Option<Available> {
        let root = std::env::temp_dir().join(format!("tidegate-memory-{}-{name}", std::process::id()));
        drop(fs::remove_dir_all(&root));
        let write = |file: &str, text: String| {
            let file = root.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        if let Some(kib) = kib {
            write("proc/meminfo", format!("MemTotal:       {kib} kB\nMemFree:        1 kB\n"));
        }
        write("proc/self/cgroup", format!("{groups}\n"));
        for (file, bound) in bounds {
            write(&format!("sys/fs/cgroup/{file}"), format!("{bound}\n"));
        }
        let found = read(&root, || told);
        fs::remove_dir_all(&root).unwrap();
        found
    }

    /// The least of machine, group and the groups above counts, by either version; no bound is none, and neither is a group that cannot
    /// be seen.
    #[test]
    fn the_least_bound_counts() {
        let mib = 1024 * 1024;
        let none = "9223372036854771712";
        let (max, limit) = ("memory.max", "memory.limit_in_bytes");
        for (name, groups, bounds, expected) in [
            ("bare", "0::/", &[][..], (1024 * mib, "MemTotal")),
            ("unbounded", "4:memory:/old\n0::/a", &[("a/memory.max", "max")], (1024 * mib, "MemTotal")),
            ("group", "0::/a/b", &[("a/memory.max", "max"), ("a/b/memory.max", "268435456")], (256 * mib, max)),
            ("above", "0::/a/b", &[("a/memory.max", "134217728"), ("a/b/memory.max", "268435456")], (128 * mib, max)),
            ("container", "0::/", &[("memory.max", "536870912")], (512 * mib, max)),
            ("outside", "0::/../..", &[("memory.max", "536870912")], (512 * mib, max)),
            ("larger", "0::/a", &[("a/memory.max", "8589934592")], (1024 * mib, "MemTotal")),
            (
                "first",
                "5:devices:/d\n4:memory:/a/b\n0::/",
                &[("memory/a/memory.limit_in_bytes", none), ("memory/a/b/memory.limit_in_bytes", "268435456")],
                (256 * mib, limit),
            ),
            ("together", "4:cpu,memory:/a:b", &[("memory/a:b/memory.limit_in_bytes", "134217728")], (128 * mib, limit)),
            ("contained", "4:memory:/docker/x\n0::/", &[("memory/memory.limit_in_bytes", "536870912")], (512 * mib, limit)),
            (
                "both",
                "4:memory:/a\n0::/b",
                &[("memory/a/memory.limit_in_bytes", "268435456"), ("b/memory.max", "134217728")],
                (128 * mib, max),
            ),
        ] {
            let (bytes, from) = expected;
            assert_eq!(machine(name, Some(1024 * 1024), None, groups, bounds), Some(Available { bytes, from }), "{name}");
        }
    }

    /// Where `/proc` shows no memory the kernel is asked, a group's bound still counts, and what nobody knows is not made up.
    #[test]
    fn what_is_not_shown_is_asked_for() {
        let (bytes, bounded) = (1 << 30, [("memory.max", "536870912")]);
        let found = |told, bounds: &[_]| machine("hidden", None, told, "0::/", bounds);
        assert_eq!(found(Some(bytes), &[]), Some(Available { bytes, from: "sysinfo" }));
        assert_eq!(found(Some(bytes), &bounded), Some(Available { bytes: bytes / 2, from: "memory.max" }));
        assert_eq!(found(None, &bounded), Some(Available { bytes: bytes / 2, from: "memory.max" }));
        assert_eq!(found(None, &[]), None);
        assert!(told_bytes() >= shown_bytes(Path::new("/")), "the same number, unless a container is shown a part");
        assert!(available().is_some_and(|it| it.bytes > 16 << 20), "this machine says it");
    }
}
