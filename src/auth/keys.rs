//! Where the public keys come from: files that are read again when they change or SIGHUP asks.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::limits::KEYS_BYTES_MAX;
use crate::session::keys::Keys;

/// The keys in force, swapped whole.
#[derive(Debug, Default)]
pub struct Ring(Mutex<Arc<Keys>>);

impl Ring {
    /// Those in force now.
    #[must_use]
    pub fn keys(&self) -> Arc<Keys> {
        // A value that is swapped whole is whole, whoever panicked.
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts others in their place. Tokens being judged go on with the old ones.
    pub fn swap(&self, keys: Keys) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }
}

/// The files of `auth.keys`.
#[derive(Debug)]
pub struct Files {
    paths: Vec<PathBuf>,
    issuer: Option<String>,
    stamps: Vec<Option<Stamp>>,
}

/// Changes whenever the file does: inode, length, seconds and nanoseconds of the last change.
type Stamp = (u64, u64, i64, i64);

impl Files {
    /// These files; `issuer` is that of keys that do not name their own.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>, issuer: Option<String>) -> Self {
        Self { paths, issuer, stamps: Vec::new() }
    }

    /// Reads all of them.
    ///
    /// # Errors
    /// The first mistake, with its file and the remedy; nothing of any file counts then.
    pub fn read(&mut self) -> Result<Keys, String> {
        // Before the contents: whoever writes meanwhile is seen the next time.
        self.stamps = self.look();
        let mut all = Keys::default();
        for path in &self.paths {
            let name = path.display().to_string();
            let mut text = String::new();
            let most = KEYS_BYTES_MAX as u64 + 1;
            let read = File::open(path).and_then(|file| file.take(most).read_to_string(&mut text));
            read.map_err(|error| format!("{name}: cannot read the keys: {error}"))?;
            if text.len() > KEYS_BYTES_MAX {
                return Err(format!("{name}: longer than {KEYS_BYTES_MAX} bytes, which no file of keys is"));
            }
            let keys = Keys::read(&name, &text, self.issuer.as_deref())?;
            all.add(keys).map_err(|error| format!("{name}: {error}"))?;
        }
        Ok(all)
    }

    /// Whether any file is another than the one that was read.
    #[must_use]
    pub fn have_changed(&self) -> bool {
        self.look() != self.stamps
    }

    fn look(&self) -> Vec<Option<Stamp>> {
        let stamp = |path| {
            let it = fs::metadata(path).ok()?;
            Some((it.ino(), it.size(), it.mtime(), it.mtime_nsec()))
        };
        self.paths.iter().map(stamp).collect()
    }
}

/// Keeps `ring` as the files are, until the process ends. `asked` is set by SIGHUP.
pub fn watch(mut files: Files, ring: &Ring, asked: &AtomicBool) {
    loop {
        std::thread::sleep(LOOK_EVERY);
        if asked.swap(false, Ordering::Relaxed) || files.have_changed() {
            renew(&mut files, ring);
        }
    }
}

/// Puts what the files hold in force, or says why not.
fn renew(files: &mut Files, ring: &Ring) {
    match files.read() {
        Ok(keys) => {
            tracing::info!(keys = keys.names(), "public keys were read again");
            ring.swap(keys);
        }
        Err(error) => {
            let kept = ring.keys().names();
            tracing::error!(error, kept, "public keys were not taken; the old ones stay in force");
        }
    }
}

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
