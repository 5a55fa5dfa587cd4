//! What the kernel counts of a process between two moments: calls of some kind, of all its threads and of those it starts later.
//!
//! `perf stat` is attached before the first moment and counts nothing until it is told to, over a pipe, at which it answers (perf-stat(1),
//! `--control`). So a window begins and ends with what is measured, however long `perf` needs to start. Several windows add up.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use rustix::process::{Pid, Signal, kill_process};

use crate::results::{Spread, spread};

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counted {
    /// Every system call. This slows each down a little: not to be counted where time is measured.
    Calls,
    /// Requests that something be on the disk.
    Syncs,
}

impl Counted {
    /// As figures are named, in the plural.
    pub fn name(self) -> &'static str {
        match self {
            Self::Calls => "system_calls",
            Self::Syncs => "syncs",
        }
    }

    /// As the head of a column.
    pub fn word(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Syncs => "syncs",
        }
    }

    fn events(self) -> &'static [&'static str] {
        match self {
            Self::Calls => &["raw_syscalls:sys_enter"],
            Self::Syncs => &[
                "syscalls:sys_enter_fsync",
                "syscalls:sys_enter_fdatasync",
                "syscalls:sys_enter_sync_file_range",
                "syscalls:sys_enter_msync",
            ],
        }
    }
}

/// Counts of one process, at rest until [`Counter::begin`]; ended when dropped.
pub struct Counter {
    perf: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Counter {
    /// Attaches to all threads of a process. Takes some tens of milliseconds.
    ///
    /// # Errors
    /// `perf` is not here, or may not.
    pub fn attach(pid: u32, counted: Counted) -> Result<Self, String> {
        let (pid, events) = (pid.to_string(), counted.events().join(","));
        let arguments = ["stat", "-x,", "-D", "-1", "--control", "fd:0,1", "-e", &events, "-p", &pid];
        let mut command = Command::new("perf");
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut perf = command.spawn().map_err(|error| format!("perf: {error}"))?;
        let (orders, answers) = (perf.stdin.take().expect("piped"), perf.stdout.take().expect("piped"));
        let mut counter = Self { perf, orders, answers: BufReader::new(answers) };
        // It answers once it is attached.
        counter.tell("disable").map_err(|error| format!("{error}: {}", counter.last_words()))?;
        Ok(counter)
    }

    /// From here on it counts.
    pub fn begin(&mut self) -> Result<(), String> {
        self.tell("enable")
    }

    /// No longer.
    pub fn end(&mut self) -> Result<(), String> {
        self.tell("disable")
    }

    /// What was counted in all windows.
    pub fn total(mut self) -> Result<f64, String> {
        let pid = i32::try_from(self.perf.id()).ok().and_then(Pid::from_raw).ok_or("a strange process id")?;
        kill_process(pid, Signal::INT).map_err(|error| format!("perf: {error}"))?;
        sum(&self.last_words())
    }

    fn tell(&mut self, order: &str) -> Result<(), String> {
        let mut answer = Vec::new();
        let told = self.orders.write_all(format!("{order}\n").as_bytes()).and_then(|()| self.orders.flush());
        told.and_then(|()| self.answers.read_until(b'\n', &mut answer)).map_err(|error| format!("perf: {error}"))?;
        // A zero ends each answer, behind its line.
        if answer.ends_with(b"ack\n") { Ok(()) } else { Err("perf does not count".to_owned()) }
    }

    /// What it says at its end.
    fn last_words(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut stderr) = self.perf.stderr.take() {
            let _ = stderr.read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = self.perf.kill();
        let _ = self.perf.wait();
    }
}

/// Whether `perf` can count here. Says why not, once.
pub fn may_count() -> bool {
    let ask =
        || Counter::attach(std::process::id(), Counted::Calls).inspect_err(|error| eprintln!("nothing is counted: {error}"));
    *MAY_COUNT.get_or_init(|| ask().is_ok())
}

static MAY_COUNT: OnceLock<bool> = OnceLock::new();

/// All lines of counts, `16451,,raw_syscalls:sys_enter,12500900,100.00,,`, together. One that was not counted says so.
fn sum(text: &str) -> Result<f64, String> {
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("sys_enter")).collect();
    let counts: Option<Vec<f64>> = lines.iter().map(|line| line.split(',').next()?.parse().ok()).collect();
    let counts = counts.filter(|counts| !counts.is_empty()).ok_or_else(|| format!("perf says {text:?}"))?;
    Ok(counts.iter().sum())
}

/// What was done, and counted, in one window.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub units: f64,
    pub seconds: f64,
    pub counted: f64,
}

/// Counts per unit. A window in which less than a tenth of `usual_per_s` went says nothing, nor do fewer than three others.
pub fn per_unit(windows: &[Window], usual_per_s: f64) -> Option<Spread> {
    let counts = windows.iter().filter(|window| window.units > 0.0 && window.units / window.seconds >= usual_per_s * USUAL_LEAST);
    let counts: Vec<f64> = counts.map(|window| window.counted / window.units).collect();
    (counts.len() >= WINDOWS_MIN).then(|| spread(counts))
}

/// Windows of which a median is taken at least.
const WINDOWS_MIN: usize = 3;
const USUAL_LEAST: f64 = 0.1;

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls are counted within the window alone, and of processes begun meanwhile, too: `dd` reads and writes each byte by itself.
    #[test]
    fn calls_of_a_window_are_counted() {
        let script = "read _; dd if=/dev/zero of=/dev/null bs=1 count=3000; echo; read _; dd if=/dev/zero of=/dev/null bs=1 count=1000 & \
                      dd if=/dev/zero of=/dev/null bs=1 count=500; wait; echo; read _; dd if=/dev/zero of=/dev/null bs=1 count=3000";
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell = command.spawn().unwrap();
        let (mut stdin, mut stdout) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
        let mut counter =
            Counter::attach(shell.id(), Counted::Calls).expect("perf is installed and may trace: linux-perf, as root");
        let mut line = String::new();
        writeln!(stdin).unwrap();
        stdout.read_line(&mut line).unwrap();
        counter.begin().unwrap();
        writeln!(stdin).unwrap();
        stdout.read_line(&mut line).unwrap();
        counter.end().unwrap();
        writeln!(stdin).unwrap();
        shell.wait().unwrap();
        let total = counter.total().unwrap();
        assert!((3_000.0..5_000.0).contains(&total), "{total}");
    }

    /// Lines of counts are added up, and what could not be counted is no zero.
    #[test]
    fn counts_are_added_up() {
        let text = "Events disabled\n7,,syscalls:sys_enter_fsync,9,100.00,,\n5,,syscalls:sys_enter_fdatasync,9,100.00,,\n";
        assert_eq!(sum(text), Ok(12.0));
        assert!(sum("<not counted>,,syscalls:sys_enter_fsync,0,0.00,,\n").is_err());
        assert!(sum("Events disabled\n").is_err());
    }

    /// A window in which nothing went, or hardly anything, does not touch the median; two windows are not enough.
    #[test]
    fn idle_windows_do_not_count() {
        let window = |units: f64, counted: f64| Window { units, seconds: 0.5, counted };
        let good = [window(500.0, 1000.0), window(600.0, 1800.0), window(400.0, 1000.0)];
        let calls = |windows: &[Window]| per_unit(windows, 1_000.0).map(|spread| spread.median);
        assert_eq!(calls(&good), Some(2.5));
        assert_eq!(calls(&good[..2]), None);
        let bad = [window(0.0, 50.0), window(10.0, 1.0), window(40.0, 4.0), window(49.0, 4.0)];
        assert_eq!(calls(&[good[0], bad[0], bad[1], good[1], bad[2], bad[3], good[2]]), Some(2.5));
        assert_eq!(calls(&[good[0], bad[0], bad[1], good[1]]), None);
    }
}
