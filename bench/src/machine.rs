//! What a figure depends on besides the code.

use std::fs;
use std::io::Write;
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

fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let name = git(&["rev-parse", "--short=12", "HEAD"])?;
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty());
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
