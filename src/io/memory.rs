//! How much memory there is: that of the machine, or of the control group the process is in, if that is less.

use std::fs;
use std::path::{Component, Path};

/// Memory the process may count on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Available {
    /// Bytes.
    pub bytes: u64,
    /// Which file says so, for the operator.
    pub from: &'static str,
}

/// What the kernel says. `None`: it says nothing that can be read.
#[must_use]
pub fn available() -> Option<Available> {
    read(Path::new("/"))
}

/// As [`available`], with `/proc` and `/sys` below `root`.
fn read(root: &Path) -> Option<Available> {
    let machine = machine_bytes(root).map(|bytes| Available { bytes, from: "MemTotal" });
    let group = group_bytes(root).map(|bytes| Available { bytes, from: "memory.max" });
    machine.into_iter().chain(group).min_by_key(|it| it.bytes)
}

fn machine_bytes(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The least `memory.max` (cgroup v2) of the group of this process and of those above it: each holds for all below.
fn group_bytes(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    // In a container the path may lead out of what is mounted (`/../..`): then the mount is the group.
    let steps = Path::new(path).components().filter(|step| matches!(step, Component::Normal(_)));
    let mut group = root.join("sys/fs/cgroup");
    let mut least = bound_of(&group);
    for step in steps {
        group.push(step);
        least = [least, bound_of(&group)].into_iter().flatten().min();
    }
    least
}

/// `None`: no bound ("max"), or no such file.
fn bound_of(group: &Path) -> Option<u64> {
    fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine as files: MemTotal in KiB, the path of the group, and which groups have which bound.
    fn machine(name: &str, kib: u64, path: &str, bounds: &[(&str, &str)]) -> Option<Available> {
        let root = std::env::temp_dir().join(format!("tidegate-memory-{}-{name}", std::process::id()));
        drop(fs::remove_dir_all(&root));
        let write = |file: &str, text: String| {
            let file = root.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        write("proc/meminfo", format!("MemTotal:       {kib} kB\nMemFree:        1 kB\n"));
        write("proc/self/cgroup", format!("4:memory:/old\n0::{path}\n"));
        for (group, bound) in bounds {
            write(&format!("sys/fs/cgroup/{group}/memory.max"), format!("{bound}\n"));
        }
        let found = read(&root);
        fs::remove_dir_all(&root).unwrap();
        found
    }

    /// The least of machine, group and the groups above counts; "max" is no bound, and neither is a group that cannot be seen.
    #[test]
    fn the_least_bound_counts() {
        let mib = 1024 * 1024;
        for (name, path, bounds, expected) in [
            ("bare", "/", &[][..], (1024 * mib, "MemTotal")),
            ("unbounded", "/a", &[("a", "max")], (1024 * mib, "MemTotal")),
            ("group", "/a/b", &[("a", "max"), ("a/b", "268435456")], (256 * mib, "memory.max")),
            ("above", "/a/b", &[("a", "134217728"), ("a/b", "268435456")], (128 * mib, "memory.max")),
            ("container", "/", &[("", "536870912")], (512 * mib, "memory.max")),
            ("outside", "/../..", &[("", "536870912")], (512 * mib, "memory.max")),
            ("larger", "/a", &[("a", "8589934592")], (1024 * mib, "MemTotal")),
        ] {
            let (bytes, from) = expected;
            assert_eq!(machine(name, 1024 * 1024, path, bounds), Some(Available { bytes, from }), "{name}");
        }
        assert!(available().is_some_and(|it| it.bytes > 16 * mib), "this machine says it");
    }
}
