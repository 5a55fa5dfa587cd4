//! Where the public keys come from: files that are read again when they change or SIGHUP asks, and an address that is asked again and
//! again. Each part that fails leaves its last good keys in force.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::http::Client;
use super::trust::Trust;
use crate::clock::Clock;
use crate::config::url::Url;
use crate::limits::KEYS_BYTES_MAX;
use crate::observe::auth::AuthFacts;
use crate::session::keys::Keys;

/// The keys in force, swapped whole.
#[derive(Debug)]
pub struct Ring {
    held: Mutex<Held>,
    /// After a fetch it is not worth asking again for so long.
    again: Duration,
    /// A token of a key that is not here was shown.
    is_missed: AtomicBool,
}

/// Keys, and how new they are.
#[derive(Clone, Debug)]
pub struct Held {
    /// All of them.
    pub keys: Arc<Keys>,
    fetched: Fetched,
}

/// When the address was asked for the keys at hand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fetched {
    /// There is no address: these are all.
    Needless,
    /// No answer yet.
    Never,
    /// Then.
    At(Instant),
}

impl Ring {
    /// Without keys. A key that is not here makes them be fetched `again` after the last time, not before.
    #[must_use]
    pub fn new(again: Duration) -> Self {
        let held = Held { keys: Arc::default(), fetched: Fetched::Needless };
        Self { held: Mutex::new(held), again, is_missed: AtomicBool::new(false) }
    }

    /// Those in force now.
    #[must_use]
    pub fn held(&self) -> Held {
        // A value that is swapped whole is whole, whoever panicked.
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A token was shown whose key is not among those `held`. Whether that key may exist all the same: then the keys are fetched soon, and
    /// until they are here nobody can say that the token is bad.
    #[must_use]
    pub fn misses(&self, held: &Held, now: Instant) -> bool {
        let may_exist = match held.fetched {
            Fetched::Needless => false,
            Fetched::Never => true,
            Fetched::At(then) => now.saturating_duration_since(then) >= self.again,
        };
        if may_exist {
            self.is_missed.store(true, Ordering::Relaxed);
        }
        may_exist
    }

    /// Puts others in their place. Tokens being judged go on with the old ones.
    fn swap(&self, keys: Keys, fetched: Fetched) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Held { keys: Arc::new(keys), fetched };
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

/// The address of `auth.jwks_url`.
#[derive(Debug)]
pub struct Remote {
    url: String,
    issuer: Option<String>,
    client: Client,
    every: Duration,
    due: Instant,
    /// When it was asked last.
    asked: Option<Instant>,
    /// What the last good answer was, to see whether it changed.
    last: String,
    /// What the last question came to, to be told once.
    failed: bool,
}

impl Remote {
    /// Asks `url`, once in `every`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(url: Url, trust: Option<Trust>, issuer: Option<String>, every: Duration) -> io::Result<Self> {
        let name = format!("{}{}", url.authority, url.path);
        let client = Client::new(url, trust, FETCH_PATIENCE, KEYS_BYTES_MAX)?;
        Ok(Self { url: name, issuer, client, every, due: Instant::now(), asked: None, last: String::new(), failed: false })
    }

    /// Whether it is time to ask, also for one who misses a key.
    fn is_due(&self, is_missed: bool, again: Duration, now: Instant) -> bool {
        self.due <= now || is_missed && self.asked.is_none_or(|then| now.saturating_duration_since(then) >= again)
    }

    /// The keys, if they are others than the last time.
    fn fetch(&mut self) -> Result<Option<Keys>, String> {
        let (status, body) = self.client.get().map_err(|error| format!("{}: {error}", self.url))?;
        if status != 200 {
            return Err(format!("{}: status {status}; wanted: 200 with a JWKS", self.url));
        }
        let text = String::from_utf8(body).map_err(|_| format!("{}: not UTF-8", self.url))?;
        if text == self.last {
            return Ok(None);
        }
        let keys = Keys::read(&self.url, &text, self.issuer.as_deref())?;
        self.last = text;
        Ok(Some(keys))
    }
}

/// All sources, with the last good keys of each.
#[derive(Debug)]
pub struct Sources {
    files: Files,
    of_files: Keys,
    remote: Option<Remote>,
    of_remote: Keys,
    fetched: Fetched,
    facts: Arc<AuthFacts>,
}

impl Sources {
    /// Reads the files; the address is asked by [`watch`].
    ///
    /// # Errors
    /// The first mistake in the files.
    pub fn start(mut files: Files, remote: Option<Remote>, ring: &Ring, facts: Arc<AuthFacts>) -> Result<Self, String> {
        let of_files = files.read()?;
        let fetched = if remote.is_some() { Fetched::Never } else { Fetched::Needless };
        ring.swap(of_files.clone(), fetched);
        Ok(Self { files, of_files, remote, of_remote: Keys::default(), fetched, facts })
    }

    /// Looks at what is due, and hands it to `ring`.
    fn look(&mut self, ring: &Ring, is_asked: bool, clock: Clock) {
        let files_changed = (is_asked || self.files.have_changed()) && self.read_files();
        let is_missed = ring.is_missed.swap(false, Ordering::Relaxed);
        let now = Instant::now();
        let is_due = self.remote.as_ref().is_some_and(|remote| is_asked || remote.is_due(is_missed, ring.again, now));
        let fetched = is_due.then(|| self.fetch(now)).flatten();
        if !files_changed && fetched.is_none() {
            return;
        }
        let mut all = self.of_files.clone();
        match all.add(self.of_remote.clone()) {
            Err(error) => tracing::error!(error, "public keys were not taken; the old ones stay in force"),
            Ok(()) => {
                let names = all.names();
                if fetched.is_some() {
                    self.fetched = Fetched::At(now);
                }
                ring.swap(all, self.fetched);
                // Whoever reads this finds the keys in force.
                if fetched.is_some() {
                    self.facts.jwks_fetched_s.set(clock.now().unix_ms / 1000);
                }
                if files_changed || fetched == Some(true) {
                    tracing::info!(keys = names, "public keys in force");
                }
            }
        }
    }

    /// `true`: they may be others now.
    fn read_files(&mut self) -> bool {
        match self.files.read() {
            Ok(keys) => {
                self.of_files = keys;
                true
            }
            Err(error) => {
                tracing::error!(error, "public keys were not taken; the old ones stay in force");
                false
            }
        }
    }

    /// Asks the address. `None`: it failed; `true`: there are other keys now.
    fn fetch(&mut self, now: Instant) -> Option<bool> {
        let remote = self.remote.as_mut()?;
        remote.asked = Some(now);
        match remote.fetch() {
            Ok(keys) => {
                remote.due = now + remote.every;
                if std::mem::replace(&mut remote.failed, false) {
                    tracing::info!("public keys are fetched again");
                }
                let changed = keys.is_some();
                self.of_remote = keys.unwrap_or_else(|| std::mem::take(&mut self.of_remote));
                Some(changed)
            }
            Err(error) => {
                remote.due = now + remote.every.min(FETCH_AGAIN);
                self.facts.jwks_failures.count();
                if !std::mem::replace(&mut remote.failed, true) {
                    let first = if self.fetched == Fetched::Never { "; the gateway is not ready until they are" } else { "" };
                    tracing::error!(
                        error,
                        "public keys were not fetched; the old ones stay in force, and it is tried again{first}"
                    );
                }
                None
            }
        }
    }
}

/// Keeps `ring` as its sources are, until the process ends. `asked` is set by SIGHUP. `on_complete` hears once that nothing is missing.
pub fn watch(mut sources: Sources, ring: &Ring, asked: &AtomicBool, clock: Clock, on_complete: impl FnOnce()) {
    let mut on_complete = Some(on_complete);
    loop {
        sources.look(ring, asked.swap(false, Ordering::Relaxed), clock);
        if sources.fetched != Fetched::Never
            && let Some(tell) = on_complete.take()
        {
            tell();
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// How often the files are looked at, and whether a key is missed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long an address may take to give its keys.
const FETCH_PATIENCE: Duration = Duration::from_secs(5);
/// After a failure it is asked again this soon.
const FETCH_AGAIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    /// A key that is not here may exist until the keys have been fetched lately; each question for it waits for its time.
    #[test]
    fn a_missing_key_is_asked_for_at_most_so_often() {
        let (start, again) = (Instant::now(), Duration::from_secs(10));
        let at = |seconds| start + Duration::from_secs(seconds);
        let ring = Ring::new(again);
        assert!(!ring.misses(&ring.held(), at(0)), "without an address the files are all there is");
        ring.swap(Keys::default(), Fetched::Never);
        assert!(ring.misses(&ring.held(), at(0)));
        ring.swap(Keys::default(), Fetched::At(at(0)));
        assert!(ring.is_missed.swap(false, Ordering::Relaxed));
        assert!(!ring.misses(&ring.held(), at(9)) && !ring.is_missed.load(Ordering::Relaxed));
        assert!(ring.misses(&ring.held(), at(10)) && ring.is_missed.load(Ordering::Relaxed));
        let url = Url::read("http://127.0.0.1:1/").unwrap();
        let mut remote = Remote::new(url, None, None, Duration::from_secs(300)).unwrap();
        (remote.due, remote.asked) = (at(300), Some(at(0)));
        assert!(!remote.is_due(false, again, at(299)) && remote.is_due(false, again, at(300)));
        assert!(!remote.is_due(true, again, at(9)) && remote.is_due(true, again, at(10)));
    }
}
