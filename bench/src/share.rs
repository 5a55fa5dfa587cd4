//! A share of one core for a process under measurement, so that one generator can offer more than it carries.
//!
//! It is a group of cgroup v1 with a quota (Linux, Documentation/scheduler/sched-bwc.rst), made for one run and removed at its end. The
//! period is short, so that the process stands still for milliseconds and not for a tenth of a second.

use std::fs;
use std::path::{Path, PathBuf};

/// A group with a quota; removed when dropped, so the process in it must have ended before.
pub struct Share {
    folder: PathBuf,
}

impl Share {
    /// A group that may use so many percent of one core.
    ///
    /// # Errors
    /// This machine has no such groups, or they may not be made here.
    pub fn new(percent: u32) -> Result<Self, String> {
        let folder = Path::new(CPU_GROUPS).join(format!("tidegate-bench-{}", std::process::id()));
        fs::create_dir(&folder).map_err(|error| {
            format!("cannot make {}: {error}; a share of a core needs root and the controller cpu of cgroup v1", folder.display())
        })?;
        let share = Self { folder };
        share.write("cpu.cfs_period_us", PERIOD_US)?;
        share.write("cpu.cfs_quota_us", PERIOD_US * percent / 100)?;
        Ok(share)
    }

    /// Puts a process into it, with all its threads.
    ///
    /// # Errors
    /// The process is gone, or may not be moved.
    pub fn hold(&self, pid: u32) -> Result<(), String> {
        self.write("cgroup.procs", pid)
    }

    fn write(&self, file: &str, value: u32) -> Result<(), String> {
        let path = self.folder.join(file);
        fs::write(&path, value.to_string()).map_err(|error| format!("{}: {error}", path.display()))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.folder) {
            eprintln!("cannot remove {}: {error}", self.folder.display());
        }
    }
}

const CPU_GROUPS: &str = "/sys/fs/cgroup/cpu";
const PERIOD_US: u32 = 10_000;
