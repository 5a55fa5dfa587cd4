//! The key that signs tokens: from the settings, from a file, or made once and kept in the data directory.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::settings::Settings;
use super::value::Secret;

/// Where the key of a gateway stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// `auth.secret`.
    Settings,
    /// `auth.secret_file`.
    File(PathBuf),
    /// The file in the data directory.
    DataDir(PathBuf),
}

/// What to do when the data directory has no secret yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// Make one.
    Create,
    /// Tell the operator.
    Refuse,
}

/// A key and where it came from.
#[derive(Clone, Debug)]
pub struct Found {
    /// The key.
    pub secret: Secret,
    /// Its source.
    pub source: Source,
    /// What an operator should know all the same.
    pub warning: Option<String>,
}

/// Whether there is a key to be found at all: with public keys only one that is configured counts.
#[must_use]
pub fn needed(settings: &Settings) -> bool {
    !settings.auth.has_others() || settings.auth.secret.is_some() || settings.auth.secret_file.is_some()
}

/// Finds the key that `settings` speak of. [`Missing::Create`] makes the data directory and a random key in it, if need be.
///
/// # Errors
/// What could not be done, with the path and the remedy.
pub fn find(settings: &Settings, missing: Missing) -> Result<Found, String> {
    if let Some(secret) = &settings.auth.secret {
        return Ok(Found { secret: secret.clone(), source: Source::Settings, warning: None });
    }
    if let Some(path) = &settings.auth.secret_file {
        let (secret, warning) = read(path)?;
        return Ok(Found { secret, source: Source::File(path.clone()), warning });
    }
    let path = settings.data_dir.join(FILE_NAME);
    if !path.exists() {
        if missing == Missing::Refuse {
            let path = path.display();
            return Err(format!(
                "no secret in {path}; start the gateway there once, or name the gateway's own with --secret-file or --config"
            ));
        }
        create(&settings.data_dir, &path).map_err(|error| {
            format!("cannot make a secret in {}: {error}; check that the directory may be written", path.display())
        })?;
    }
    let (secret, warning) = read(&path)?;
    Ok(Found { secret, source: Source::DataDir(path), warning })
}

/// Name of the generated secret in the data directory.
pub const FILE_NAME: &str = "secret";

fn read(path: &Path) -> Result<(Secret, Option<String>), String> {
    let name = path.display();
    let refused = |error: io::Error| format!("cannot read the secret in {name}: {error}");
    let file = File::open(path).map_err(refused)?;
    let mode = file.metadata().map_err(refused)?.permissions().mode();
    let mut bytes = Vec::new();
    // One byte and a line end more than allowed, so that too long is seen without reading a mistaken file whole.
    let most = (Secret::BYTES_MAX + 3) as u64;
    file.take(most).read_to_end(&mut bytes).map_err(refused)?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        bytes.pop_if(|byte| *byte == b'\r');
    }
    let (least, most) = (Secret::BYTES_MIN, Secret::BYTES_MAX);
    let found = if bytes.len() > most { "more".to_owned() } else { bytes.len().to_string() };
    let secret = Secret::new(bytes).ok_or_else(|| {
        format!(
            "the secret in {name} has {found} bytes; allowed: {least} to {most}; make one with `head -c 32 /dev/urandom | base64`"
        )
    })?;
    let warning =
        (mode & 0o007 != 0).then(|| format!("the secret in {name} can be read by every user of this machine; try chmod 600"));
    Ok((secret, warning))
}

/// Makes a key of 32 random bytes, written as 64 hex digits. Whoever comes second takes the key of the first: the file appears
/// whole, under its name, or not at all.
fn create(dir: &Path, path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let draft = dir.join(format!("{FILE_NAME}.{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(format!("{text}\n").as_bytes())?;
    file.sync_all()?;
    let linked = std::fs::hard_link(&draft, path);
    std::fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => File::open(dir)?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of its own, removed at the end.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tidegate-secret-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn settings(&self) -> Settings {
            Settings { data_dir: self.0.join("data"), ..Settings::default() }
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// The first start makes a key only its user can read; the second finds the same one; nothing else is left behind.
    #[test]
    fn a_generated_secret_is_made_once() {
        let place = Place::new("once");
        let settings = place.settings();
        let first = find(&settings, Missing::Create).unwrap();
        let path = settings.data_dir.join("secret");
        assert_eq!(first.source, Source::DataDir(path.clone()));
        assert_eq!(first.secret.as_bytes().len(), 64);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(settings.data_dir.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(find(&settings, Missing::Refuse).unwrap().secret, first.secret);
        assert_eq!(std::fs::read_dir(&settings.data_dir).unwrap().count(), 1);
        let other = Place::new("other");
        assert_ne!(find(&other.settings(), Missing::Create).unwrap().secret, first.secret);
    }

    /// Asking for a token does not make a key that no gateway has.
    #[test]
    fn a_missing_secret_can_be_refused() {
        let place = Place::new("missing");
        let told = find(&place.settings(), Missing::Refuse).unwrap_err();
        assert!(told.contains("start the gateway there once"), "{told}");
        assert!(!place.settings().data_dir.exists());
    }

    /// A key in a file counts without its line end; one that is short, huge, absent or open to all is named.
    #[test]
    fn a_secret_file_is_judged() {
        let place = Place::new("file");
        let path = place.0.join("key");
        let mut settings = place.settings();
        settings.auth.secret_file = Some(path.clone());
        assert!(find(&settings, Missing::Create).unwrap_err().contains("cannot read"));
        let key = "k".repeat(32);
        let found = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            find(&settings, Missing::Create)
        };
        for text in [key.clone(), format!("{key}\n"), format!("{key}\r\n")] {
            let found = found(&text, 0o600).unwrap();
            assert_eq!((found.secret.as_bytes(), found.warning), (key.as_bytes(), None));
        }
        assert!(found(&key, 0o644).unwrap().warning.is_some());
        assert!(found(&key[1..], 0o600).unwrap_err().contains("has 31 bytes; allowed: 32 to 4096"));
        assert!(found(&"k".repeat(4096), 0o600).is_ok());
        assert!(found(&format!("{}\r\n", "k".repeat(4096)), 0o600).is_ok());
        assert!(found(&"k".repeat(4097), 0o600).unwrap_err().contains("has more bytes"));
        assert!(found(&"k".repeat(100_000), 0o600).unwrap_err().contains("has more bytes"));
        assert!(!settings.data_dir.exists());
    }

    /// The value in the settings needs no file at all.
    #[test]
    fn a_secret_in_the_settings_is_taken() {
        let place = Place::new("settings");
        let mut settings = place.settings();
        settings.auth.secret = Secret::new(vec![b'x'; 40]);
        assert_eq!(find(&settings, Missing::Create).unwrap().source, Source::Settings);
        assert!(!settings.data_dir.exists());
    }
}
