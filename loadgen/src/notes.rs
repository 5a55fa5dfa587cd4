//! The ledger as a file, for `verify`: what happened to every device, line by line.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tidegate::verify::{Line, What};

/// A file that all workers write to. What cannot be written is told in the end.
pub struct Notes {
    file: Mutex<(BufWriter<File>, io::Result<()>)>,
    run: u64,
}

impl Notes {
    /// A new file for the run.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create(path: &Path, run: u64) -> io::Result<Self> {
        Ok(Self { file: Mutex::new((BufWriter::new(File::create(path)?), Ok(()))), run })
    }

    /// Something happened to a device just now.
    pub fn note(&self, device: u32, conv: &str, what: What) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        // Several runs may be judged together.
        let device = format!("{:x}-{device}", self.run);
        let line = Line { at_ms, device, conv: conv.to_owned(), what };
        let mut guard = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, done) = &mut *guard;
        if done.is_ok() {
            *done = writeln!(file, "{line}");
        }
    }

    /// Writes what is still in memory.
    ///
    /// # Errors
    /// The kernel's, of now or of before.
    pub fn finish(&self) -> io::Result<()> {
        let mut guard = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, done) = &mut *guard;
        std::mem::replace(done, Ok(()))?;
        file.flush()
    }
}

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Notes")
    }
}
