//! What a figure depends on besides the code.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};
use tidegate::io::descriptors::Descriptors;

/// Raises the limit of open files, which the gateway inherits, and refuses a number of connections it cannot hold.
pub fn raise_descriptors(connections: usize) -> Result<(), String> {
    let need = u64::try_from(connections).map_err(|error| error.to_string())?;
    let descriptors = Descriptors::for_connections(need).map_err(|error| format!("open files: {error}"))?;
    if descriptors.suffice() { Ok(()) } else { Err(descriptors.to_string()) }
}

/// Kernel, processor, memory, limits, and the commit that was measured.
pub fn facts(data: &Path) -> Value {
    let descriptors = Descriptors::for_connections(0).map(|descriptors| descriptors.limit).ok();
    json!({
        "commit": commit(),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "processor": after("/proc/cpuinfo", "model name"),
        // Of the machine: a comparison has bound this thread to one.
        "cores": read("/proc/cpuinfo").map(|text| text.lines().filter(|line| line.starts_with("processor")).count()),
        "memory": after("/proc/meminfo", "MemTotal"),
        // Measured beside other work, a latency says little; CPU per message says more.
        "load_average": read("/proc/loadavg"),
        // It paces, and costs: the same for everybody in a comparison.
        "congestion_control": read("/proc/sys/net/ipv4/tcp_congestion_control"),
        "open_files_limit": descriptors,
        "disk_sync_us_p50": disk_sync_us(data),
    })
}

/// Median time to append 4 KiB to a file and sync it: what one commit of the store costs at least.
fn disk_sync_us(data: &Path) -> Option<u64> {
    fs::create_dir_all(data).ok()?;
    let path = data.join("sync-probe");
    let mut file = fs::File::create(&path).ok()?;
    let mut times = Vec::new();
    for _ in 0..101 {
        let started = Instant::now();
        file.write_all(&[1; 4096]).ok()?;
        file.sync_data().ok()?;
        times.push(started.elapsed());
    }
    let _ = fs::remove_file(path);
    times.sort();
    u64::try_from(times[50].as_micros()).ok()
}

/// Kernel memory in slabs, bytes: sockets, files and whatever else the kernel makes one by one.
pub fn slab_bytes() -> Result<u64, String> {
    let line = after("/proc/meminfo", "Slab").ok_or("/proc/meminfo says nothing of Slab")?;
    let kib: u64 = line.trim_end_matches(" kB").trim().parse().map_err(|error| format!("Slab: {error}"))?;
    Ok(kib * 1024)
}

/// Bytes written so far to the disk that holds `path`, by whomever: the journal of the file system is in it. `None`: the kernel does
/// not count for this file system, as for one made of several.
pub fn disk_written_bytes(path: &Path) -> Option<u64> {
    let device = fs::metadata(path).ok()?.dev();
    written_bytes(&read("/proc/diskstats")?, rustix::fs::major(device), rustix::fs::minor(device))
}

/// The tenth word of a line is sectors written (Linux, Documentation/admin-guide/iostats.rst), of 512 bytes whatever the disk has.
fn written_bytes(diskstats: &str, major: u32, minor: u32) -> Option<u64> {
    let (major, minor) = (major.to_string(), minor.to_string());
    let words = diskstats.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let line = words.into_iter().find(|words| words.starts_with(&[major.as_str(), minor.as_str()]))?;
    Some(line.get(9)?.parse::<u64>().ok()? * 512)
}

/// Ticks of all cores since the machine started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticks {
    /// The hypervisor ran somebody else although this machine had work.
    pub stolen: u64,
    /// All.
    pub total: u64,
}

impl Ticks {
    /// Now.
    pub fn now() -> Result<Self, String> {
        read("/proc/stat").and_then(|text| Self::parse(&text)).ok_or_else(|| "a strange /proc/stat".to_owned())
    }

    /// The eighth number of the first line is what was stolen; guests, behind it, are part of user.
    fn parse(text: &str) -> Option<Self> {
        let words = text.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().take(8);
        let ticks: Vec<u64> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
        Some(Self { stolen: *ticks.get(7)?, total: ticks.iter().sum() })
    }

    /// The share of all cores that was stolen since `before`, 0 to 1.
    pub fn stolen_since(self, before: Self) -> f64 {
        (self.stolen - before.stolen) as f64 / (self.total - before.total).max(1) as f64
    }
}

fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let name = git(&["rev-parse", "--short=12", "HEAD"])?;
    // Results, and the tables made of them, are what an earlier run has changed.
    let dirty = git(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ":/",
        ":(top,exclude)bench/results",
        ":(top,exclude)README.md",
    ])
    .is_some_and(|changes| !changes.is_empty());
    Some(if dirty { format!("{name}+changes") } else { name })
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn after(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk is found by its number, not by a number that begins like it.
    #[test]
    fn disk_is_found_by_its_number() {
        let text = " 254 1 vda1 1 0 8 0 1 0 16 0 0 0 0\n 254 0 vda 374 768 154 661 785 893 1328 867 0 167 162\n";
        assert_eq!(written_bytes(text, 254, 0), Some(1328 * 512));
        assert_eq!(written_bytes(text, 254, 1), Some(16 * 512));
        assert_eq!(written_bytes(text, 25, 4), None);
    }

    /// Guests are not counted twice, and steal is a share of what passed.
    #[test]
    fn steal_is_a_share_of_all_cores() {
        let before = Ticks::parse("cpu  10 0 10 70 5 0 0 5 3 0\ncpu0 1\n").unwrap();
        assert_eq!(before, Ticks { stolen: 5, total: 100 });
        let after = Ticks { stolen: 10, total: 300 };
        assert!((after.stolen_since(before) - 0.025).abs() < 1e-9);
        assert_eq!(Ticks::parse("cpu 1 2 3"), None);
    }
}
