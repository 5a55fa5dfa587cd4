//! `tidegate backup`, `restore`, `export` and `verify`: copies of a store, of a gateway that runs or of one that does not.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use crate::config::{Exit, Settings};
use crate::gateway::{self, Fatal};
use crate::store::backup::{self, BackupError, Extent, Reader};
use crate::store::export::{self, Range};
use crate::store::keeper;
use crate::store::restore::{self, Restored};
use crate::verify::{Audit, Line, Verdict};

/// Where a backup is written.
#[derive(Args, Debug)]
pub struct BackupArgs {
    /// Directory to write to. It is made; an unfinished backup in it is replaced, nothing else.
    dir: PathBuf,
}

/// Where a backup is.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// Directory of the backup.
    dir: PathBuf,
}

/// What is exported.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// Only this conversation.
    #[arg(long)]
    conv: Option<String>,
    /// Messages from this seq on.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Messages up to this seq.
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    to: u64,
    /// Messages from this time on, in seconds since the Unix epoch.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    since: u64,
    /// Messages before this time, in seconds since the Unix epoch.
    #[arg(long, value_name = "SECONDS")]
    until: Option<u64>,
    /// Write to this file, which must not exist, instead of standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What is compared.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Ledgers of clients, in the format of `loadgen --ledger-out`.
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    ledger: Vec<PathBuf>,
    /// Compare with this export instead of the gateway's data.
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// Milliseconds from which on an acknowledgement or a delivery counts as late.
    #[arg(long, value_name = "MS", default_value_t = LATE_MS)]
    late_ms: u64,
}

/// Joins ledgers with what the store holds; returns what to say if nothing is wrong.
///
/// # Errors
/// [`Fatal`]; with [`Exit::Findings`] if something is lost, duplicate, reordered or late.
pub fn verify(args: &VerifyArgs, settings: &Settings) -> Result<String, Fatal> {
    let verdict = audit(&args.ledger, args.export.as_deref(), args.late_ms, settings)?;
    if verdict.total().is_clean() {
        return Ok(verdict.to_string());
    }
    Err(Fatal { exit: Exit::Findings, reason: verdict.to_string().trim_end().to_owned() })
}

/// Joins ledgers with an export, or with what a store holds.
///
/// # Errors
/// [`Fatal`]: nothing can be said.
pub fn audit(ledgers: &[PathBuf], export: Option<&Path>, late_ms: u64, settings: &Settings) -> Result<Verdict, Fatal> {
    let mut audit = Audit::new(late_ms);
    for path in ledgers {
        each_line(path, |number, line| {
            let line = Line::parse(line).ok_or_else(|| format!("line {number} is no line of a ledger"))?;
            audit.told(line);
            Ok(())
        })?;
    }
    if let Some(path) = export {
        let mut is_whole = false;
        each_line(path, |number, line| {
            is_whole = line.starts_with("{\"end\":");
            audit.exported(line).map_err(|error| format!("line {number}: {error}"))
        })?;
        if !is_whole {
            return Err(failed(format!("{}: the export is not complete: its last line is missing", path.display())));
        }
    } else {
        lines(settings, &Range::default(), |line| {
            let text = std::str::from_utf8(line).map_err(io::Error::other)?;
            audit.exported(text).map_err(io::Error::other)
        })?;
    }
    Ok(audit.close())
}

fn each_line(path: &Path, mut take: impl FnMut(u64, &str) -> Result<(), String>) -> Result<(), Fatal> {
    let named = |reason: String| failed(format!("{}: {reason}", path.display()));
    let file = File::open(path).map_err(|error| named(error.to_string()))?;
    for (number, line) in (1..).zip(BufReader::with_capacity(BUFFER_BYTES, file).lines()) {
        line.map_err(|error| error.to_string()).and_then(|line| take(number, &line)).map_err(named)?;
    }
    Ok(())
}

/// Writes a backup and reads it back on the way; returns what to say.
///
/// # Errors
/// [`Fatal`], with the remedy.
pub fn backup(args: &BackupArgs, settings: &Settings) -> Result<String, Fatal> {
    let dir = &args.dir;
    let (draft, place) = (dir.join(DRAFT), dir.join(ROWS));
    vacant(dir, &[DRAFT]).map_err(|found| {
        failed(format!("{} is not empty: it has {found}. Name a directory that is empty or not there", dir.display()))
    })?;
    let named = |error: io::Error| failed(format!("writing the backup to {}: {}", dir.display(), words(&error)));
    fs::create_dir_all(dir).map_err(named)?;
    let copied = File::create(&draft).map_err(named).and_then(|file| {
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
        let extent = match ask(&settings.data_dir, "backup\n")? {
            Some(stream) => copy(stream, &mut out).map_err(|error| match error {
                BackupError::Incomplete => failed("the gateway ended, or gave up, before the backup was complete: try again"),
                BackupError::Io(error) => named(error),
                other => failed(other),
            }),
            None => gateway::at_rest(settings, |view| backup::write(&view, &mut out))?.map_err(|error| match error {
                BackupError::Io(error) => named(error),
                other => failed(other),
            }),
        }?;
        let file = out.into_inner().map_err(|error| named(error.into_error()))?;
        file.sync_all().map_err(named)?;
        Ok(extent)
    });
    if copied.is_err() {
        // Half a backup would only be taken for one.
        let _ = fs::remove_file(&draft);
    }
    let Extent { rows, group } = copied?;
    fs::rename(&draft, &place).and_then(|()| File::open(dir)?.sync_all()).map_err(named)?;
    let bytes = fs::metadata(&place).map_or(0, |metadata| metadata.len());
    Ok(format!("{}: {rows} rows, {bytes} bytes, everything up to commit group {group}\n", place.display()))
}

/// Makes a data directory from a backup; returns what to say.
///
/// # Errors
/// [`Fatal`], with the remedy.
pub fn restore(args: &RestoreArgs, settings: &Settings) -> Result<String, Fatal> {
    let (from, dir) = (args.dir.join(ROWS), &settings.data_dir);
    let file = File::open(&from).map_err(|error| {
        let is_begun = error.kind() == io::ErrorKind::NotFound && args.dir.join(DRAFT).exists();
        let why = if is_begun { BackupError::Incomplete.to_string() } else { error.to_string() };
        failed(format!("{}: {why}", from.display()))
    })?;
    if let Some(found) = ["engine", "log"].into_iter().find(|name| dir.join(name).exists()) {
        return Err(failed(format!(
            "data_dir {} has a store already ({found}): stop its gateway and move it away, or name another data_dir",
            dir.display()
        )));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let file = BufReader::with_capacity(BUFFER_BYTES, file);
    let restored = restore::restore(file, dir, settings.store.segment_bytes, now_ms).map_err(|error| match error {
        BackupError::Io(error) => failed(format!("restoring to {}: {}", dir.display(), words(&error))),
        other => failed(format!("{}: {other}", from.display())),
    })?;
    let Restored { extent, epoch } = restored;
    Ok(format!(
        "{}: {} rows, everything up to commit group {}; epoch {epoch}, so clients synchronise\n",
        dir.display(),
        extent.rows,
        extent.group
    ))
}

/// Writes the export; returns what to say beside it.
///
/// # Errors
/// [`Fatal`], with the remedy.
pub fn export(args: &ExportArgs, settings: &Settings) -> Result<String, Fatal> {
    let range = Range {
        conv: args.conv.clone(),
        from: args.from,
        to: args.to,
        since_ms: args.since.saturating_mul(1_000),
        until_ms: args.until.map_or(u64::MAX, |until| until.saturating_mul(1_000)),
    };
    if range.conv.as_deref().is_some_and(|conv| crate::ids::conversation_kind(conv).is_none()) {
        return Err(Fatal { exit: Exit::Usage, reason: "--conv: no id of a conversation, such as d:al:bo or g:team".to_owned() });
    }
    let Some(path) = &args.out else {
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
        return lines(settings, &range, |line| out.write_all(line)).and_then(|()| {
            out.flush().map_err(|error| failed(format!("writing the export: {}", words(&error))))?;
            Ok(String::new())
        });
    };
    let named = |error: &io::Error| failed(format!("writing the export to {}: {}", path.display(), words(error)));
    let file = File::create_new(path).map_err(|error| named(&error))?;
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
    lines(settings, &range, |line| out.write_all(line))?;
    out.into_inner().map_err(|error| named(error.error()))?.sync_all().map_err(|error| named(&error))?;
    Ok(String::new())
}

/// Gives every line of an export, each with its line feed, to `take`.
///
/// # Errors
/// [`Fatal`]; also when the last line is missing.
pub fn lines(settings: &Settings, range: &Range, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> Result<(), Fatal> {
    let took = |error: &io::Error| failed(format!("writing the export: {}", words(error)));
    let Some(stream) = ask(&settings.data_dir, &format!("export {}\n", range.to_line()))? else {
        let mut out = Lines { take: &mut take, line: Vec::new() };
        return gateway::at_rest(settings, |view| export::write(&view, range, &mut out))?.map(drop).map_err(
            |error| match error {
                BackupError::Io(error) => took(&error),
                other => failed(other),
            },
        );
    };
    let mut stream = BufReader::with_capacity(BUFFER_BYTES, stream);
    let mut line = Vec::new();
    let mut is_whole = false;
    loop {
        line.clear();
        let count = stream.read_until(b'\n', &mut line).map_err(|error| took(&error))?;
        if count == 0 {
            break;
        }
        take(&line).map_err(|error| took(&error))?;
        is_whole = line.starts_with(b"{\"end\":") && line.ends_with(b"\n");
    }
    is_whole.then_some(()).ok_or_else(|| failed("the gateway ended, or gave up, before the export was complete: try again"))
}

/// What `export::write` writes into, when it is not asked of another process: gives whole lines away.
struct Lines<'a, F> {
    take: &'a mut F,
    line: Vec<u8>,
}

impl<F: FnMut(&[u8]) -> io::Result<()>> Write for Lines<'_, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        // Nothing but the end of a line has a line feed: JSON escapes them.
        if bytes.ends_with(b"\n") {
            (self.take)(&self.line)?;
            self.line.clear();
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Asks the gateway that runs on `dir`. `None`: none does.
fn ask(dir: &Path, question: &str) -> Result<Option<BufReader<std::os::unix::net::UnixStream>>, Fatal> {
    let mut stream = match keeper::connect(dir) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
        Err(error) => return Err(failed(format!("asking the gateway that runs on {}: {error}", dir.display()))),
    };
    let broken = |error: io::Error| failed(format!("asking the gateway that runs on {}: {error}", dir.display()));
    stream.write_all(question.as_bytes()).map_err(broken)?;
    let mut stream = BufReader::with_capacity(BUFFER_BYTES, stream);
    let mut answer = String::new();
    stream.read_line(&mut answer).map_err(broken)?;
    match answer.trim_end() {
        "ok" => Ok(Some(stream)),
        "" => Err(failed("the gateway ended before it answered: try again")),
        refusal => Err(failed(refusal)),
    }
}

/// Copies a backup, block by block, and checks each.
fn copy(from: impl Read, out: &mut impl Write) -> Result<Extent, BackupError> {
    let mut reader = Reader::new(from)?;
    out.write_all(&backup::head())?;
    while reader.next_block()? {
        for part in reader.bytes() {
            out.write_all(part)?;
        }
    }
    out.flush()?;
    reader.extent().ok_or(BackupError::Incomplete)
}

/// Whether a directory is missing or has nothing but what is named.
fn vacant(dir: &Path, but: &[&str]) -> Result<(), String> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    let mut names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.find(|name| !but.contains(&name.as_str())).map_or(Ok(()), Err)
}

/// The kernel's words, with a remedy where there is one.
fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull => format!("{error}. Make room, or name a directory on another file system"),
        io::ErrorKind::PermissionDenied => format!("{error}. Run it as the user of the gateway"),
        _ => error.to_string(),
    }
}

fn failed(reason: impl std::fmt::Display) -> Fatal {
    Fatal { exit: Exit::Failed, reason: reason.to_string() }
}

/// In the directory of a backup.
const ROWS: &str = "rows";
/// Before it is whole.
const DRAFT: &str = "rows.new";
const BUFFER_BYTES: usize = 256 * 1024;
/// As long as a client waits before it repeats.
const LATE_MS: u64 = 10_000;
