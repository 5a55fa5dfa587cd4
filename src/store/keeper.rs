//! The thread that gives out copies of a running store: backups and exports, over a socket in the data directory.
//!
//! ```text
//!  tidegate backup ──"backup\n"──────────────► keeper ──"ok\n", then the bytes of store/backup.rs──►
//!  tidegate export ──"export * 1 9 0 9\n"────► keeper ──"ok\n", then the lines of store/export.rs──►
//! ```
//!
//! Who may open the socket is a matter of the file system: the user of the gateway and root, who can read the data anyway. One copy is
//! made at a time, from one view of the engine that holds everything acknowledged before it was asked for. Whoever takes it slowly
//! slows only this thread.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::backup;
use super::engine::Engine;
use super::export::{self, Range};
use crate::mail::{LookMail, Looked, Question, Submit};
use crate::mailbox::LaneSender;

/// What a copy is taken from.
#[derive(Debug)]
pub struct Source {
    /// The rows.
    pub engine: Engine,
    /// The way to the store, which knows what was acknowledged.
    pub submit: LaneSender<Submit>,
}

/// Opens the socket in `dir`, which this process has to itself.
///
/// # Errors
/// The kernel's.
pub fn listen(dir: &Path) -> io::Result<UnixListener> {
    // Made where nobody else may look, and put in its place when it is done.
    let (room, place) = (dir.join(ROOM), dir.join(SOCKET));
    let _ = fs::remove_dir_all(&room);
    DirBuilder::new().mode(0o700).create(&room)?;
    let made = (|| {
        let handle = File::open(&room)?;
        let listener = UnixListener::bind(short(&handle, SOCKET))?;
        fs::set_permissions(room.join(SOCKET), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        fs::rename(room.join(SOCKET), place)?;
        Ok(listener)
    })();
    let _ = fs::remove_dir_all(&room);
    made
}

/// Connects to the gateway that runs on `dir`.
///
/// # Errors
/// The kernel's: `NotFound` or `ConnectionRefused` if none does.
pub fn connect(dir: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(short(&File::open(dir)?, SOCKET))
}

/// Serves one after the other until the process ends.
pub fn run(listener: &UnixListener, source: &Source) {
    for stream in listener.incoming() {
        match stream.and_then(|stream| serve(stream, source)) {
            Ok(done) => tracing::info!(done, "gave out a copy of the store"),
            Err(error) => tracing::warn!(%error, "a copy of the store was not taken to its end"),
        }
    }
}

fn serve(stream: UnixStream, source: &Source) -> io::Result<String> {
    stream.set_read_timeout(Some(ASK_PATIENCE))?;
    stream.set_write_timeout(Some(TAKE_PATIENCE))?;
    let mut asked = String::new();
    BufReader::new((&stream).take(ASKED_BYTES_MAX)).read_line(&mut asked)?;
    let asked = asked.trim_end_matches('\n');
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, &stream);
    let range = asked.strip_prefix("export ").and_then(Range::from_line);
    if asked != "backup" && range.is_none() {
        writeln!(out, "this gateway does not know what was asked: use the release that runs here")?;
        out.flush()?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an unknown question"));
    }
    if let Err(reason) = catch_up(source) {
        writeln!(out, "{reason}")?;
        out.flush()?;
        return Err(io::Error::other(reason));
    }
    writeln!(out, "ok")?;
    let view = source.engine.view();
    let failed = |error: backup::BackupError| io::Error::other(error.to_string());
    match range {
        Some(range) => {
            let done = export::write(&view, &range, &mut out).map_err(failed)?;
            Ok(format!("export of {} conversations, {} messages", done.conversations, done.messages))
        }
        None => {
            let done = backup::write(&view, &mut out).map_err(failed)?;
            Ok(format!("backup of {} rows up to commit group {}", done.rows, done.group))
        }
    }
}

/// Waits until the engine holds everything that is acknowledged by now.
fn catch_up(source: &Source) -> Result<(), &'static str> {
    let (reply, answered) = mpsc::sync_channel(1);
    let busy = "the store is too busy to be copied: try again later";
    source.submit.try_send(Submit::Look(LookMail { question: Question::Now, reply })).map_err(|_| busy)?;
    match answered.recv_timeout(CATCH_UP_PATIENCE) {
        Ok(Ok(Looked::Now)) => Ok(()),
        _ => Err(busy),
    }
}

/// A path that is short enough for a socket, wherever the directory lies.
fn short(dir: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// In the data directory.
const SOCKET: &str = "copies";
/// Where it is made.
const ROOM: &str = "copies.new";
/// How long a question may take to arrive.
const ASK_PATIENCE: Duration = Duration::from_secs(5);
/// How long whoever asked may take nothing.
const TAKE_PATIENCE: Duration = Duration::from_secs(60);
/// How long the engine may take to hold what was acknowledged.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(30);
const ASKED_BYTES_MAX: u64 = 512;
const BUFFER_BYTES: usize = 256 * 1024;
