//! A disk under the real binary that fails and loses when the test says so; `faulty_disk.c` says how. Needs a C compiler and Linux.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::eventually;
use super::gateway::Gateway;

/// The switches of one disk.
pub struct FaultyDisk {
    control: PathBuf,
}

impl FaultyDisk {
    /// A gateway whose files with `part` in their path stand on such a disk.
    pub fn under(part: &str, settings: &[(&str, &str)]) -> (Gateway, Self) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let control = temporary().join(format!("disk-{}-{number}", std::process::id()));
        drop(fs::remove_dir_all(&control));
        fs::create_dir_all(&control).expect("a directory for the test");
        let path = control.to_str().expect("a plain path");
        let gateway = Gateway::within(&[program(), path, part], settings);
        (gateway, Self { control })
    }

    /// From now on every sync fails; the next life of the gateway finds a disk that works.
    pub fn fail_syncs(&self) {
        fs::write(self.control.join("fail"), b"").expect("a file of the test");
    }

    /// When the first sync failed, after [`Self::fail_syncs`].
    pub fn failed_at(&self) -> SystemTime {
        let told = fs::read_to_string(self.control.join("failed")).expect("a sync has failed");
        UNIX_EPOCH + Duration::from_nanos(told.trim().parse().expect("nanoseconds"))
    }

    /// After a failure: waits until what the kernel dropped is gone from the files.
    pub fn settle(&self) {
        eventually("the end of the failing disk", || (!self.control.join("fail").exists()).then_some(()));
    }

    /// Kills the gateway, and of what it had not synced every sector stands or falls by a coin that `seed` decides.
    pub fn cut_power(&self, seed: u64) {
        let (new, cut) = (self.control.join("new"), self.control.join("cut"));
        fs::write(&new, seed.to_string()).and_then(|()| fs::rename(new, &cut)).expect("a file of the test");
        eventually("the power cut", || (!cut.exists()).then_some(()));
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.control));
    }
}

/// The compiled program.
fn program() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/faulty_disk.c");
        let binary = temporary().join(format!("faulty_disk-{}", std::process::id()));
        let compiled = Command::new("cc").args(["-O1", "-Wall", "-Werror", "-o"]).arg(&binary).arg(source).output();
        let compiled = compiled.expect("a C compiler, cc (Debian: gcc)");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        binary.to_str().expect("a plain path").to_owned()
    })
}

fn temporary() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}
