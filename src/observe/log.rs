//! Log lines on standard error.                                                                    [tracing-subscriber]
//!
//! Whoever writes a line formats it and gives it to a bounded channel; one thread does the writing. A pipe that nobody reads
//! therefore stops that thread and no reactor: when the channel is full, lines are dropped and counted, and the count is the
//! first thing written once the pipe moves again. Lines name connections, users and codes, never tokens or payloads.

use std::backtrace::Backtrace;
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// What a line looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// One JSON object.
    Json,
    /// For reading in a terminal.
    Text,
}

/// Keeps the log alive; dropping it writes what is waiting, but for no longer than [`FLUSH_MAX`].
#[derive(Debug)]
pub struct Log {
    lines: Lines,
    ended: Receiver<()>,
}

impl Log {
    /// Starts the writing thread and sends the lines of the whole process to it. `level` is one of error, warn, info, debug, trace:
    /// the least important lines that are written.
    ///
    /// # Errors
    /// `level` is another word, no thread could be made, or the process has a log already.
    pub fn start(level: &str, shape: Shape) -> io::Result<Self> {
        let level: LevelFilter = level.parse().map_err(io::Error::other)?;
        let (lines, ended) = writer(io::stderr())?;
        let log = tracing_subscriber::fmt().with_max_level(level).with_writer(lines.clone());
        let installed = match shape {
            Shape::Json => log.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
            Shape::Text => log.with_ansi(false).try_init(),
        };
        installed.map_err(io::Error::other)?;
        std::panic::set_hook(Box::new(record_crash));
        Ok(Self { lines, ended })
    }
}

/// The crash record: a panic as a line of the log, with its place and how the program came there.
fn record_crash(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = panic.payload_as_str().unwrap_or("no text");
    let thread = thread::current().name().unwrap_or("unnamed").to_owned();
    let trace = Backtrace::force_capture().to_string();
    tracing::error!(place, thread, trace, "panicked: {message}");
}

impl Drop for Log {
    fn drop(&mut self) {
        self.lines.end(&self.ended);
    }
}

/// Lines that may wait to be written. Full: further ones are dropped and counted in the log itself.
pub const LINES_WAITING_MAX: usize = 4_096;

/// Bytes of one line; what is beyond is cut.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// How long the end of the process waits for lines to be written.
pub const FLUSH_MAX: Duration = Duration::from_secs(2);

/// The near end of the channel: one per process, cloned by whoever writes.
#[derive(Clone, Debug)]
struct Lines {
    channel: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    End,
}

impl Lines {
    /// Asks the thread to end after what is waiting, and waits for it within [`FLUSH_MAX`].
    fn end(&self, ended: &Receiver<()>) {
        let deadline = Instant::now() + FLUSH_MAX;
        while self.channel.try_send(Entry::End).is_err() {
            // Full, and perhaps stuck; or the thread has ended.
            match ended.recv_timeout(Duration::from_millis(5)) {
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                _ => return,
            }
        }
        let _ = ended.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let kept = if line.len() > LINE_BYTES_MAX { [&line[..LINE_BYTES_MAX], b"\n"].concat() } else { line.to_vec() };
        if self.channel.try_send(Entry::Line(kept)).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Starts the thread that writes to `target`. The receiver hears when it has ended.
fn writer(mut target: impl Write + Send + 'static) -> io::Result<(Lines, Receiver<()>)> {
    let (channel, entries) = sync_channel(LINES_WAITING_MAX);
    let (end, ended) = sync_channel::<()>(1);
    let dropped = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&dropped);
    thread::Builder::new().name("log".to_owned()).spawn(move || {
        while let Ok(Entry::Line(line)) = entries.recv() {
            // A closed standard error is no reason to stop: there is nobody left to tell.
            let _ = target.write_all(&line);
            let lost = count.swap(0, Relaxed);
            if lost > 0 {
                let _ = writeln!(target, "{{\"level\":\"WARN\",\"message\":\"log lines dropped\",\"count\":{lost}}}");
            }
        }
        let _ = target.flush();
        drop(end);
    })?;
    Ok((Lines { channel, dropped }, ended))
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;

    #[derive(Default)]
    struct PipeState {
        is_open: bool,
        bytes: Vec<u8>,
    }

    /// A target that stands still until it is opened, and keeps what it got.
    #[derive(Clone, Default)]
    struct Pipe(Arc<(Mutex<PipeState>, Condvar)>);

    impl Pipe {
        fn open(&self) {
            self.0.0.lock().unwrap().is_open = true;
            self.0.1.notify_all();
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.0.lock().unwrap().bytes.clone()).unwrap()
        }
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.0.1.wait_while(self.0.0.lock().unwrap(), |state| !state.is_open).unwrap();
            state.bytes.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// While the target stands still, writing a line never waits; afterwards the log says how many are missing.
    #[test]
    fn a_stuck_target_costs_lines_not_time() {
        let pipe = Pipe::default();
        let (mut lines, ended) = writer(pipe.clone()).unwrap();
        let count = LINES_WAITING_MAX + 1000;
        let before = Instant::now();
        for number in 0..count {
            lines.write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        assert!(before.elapsed() < Duration::from_secs(5));
        pipe.open();
        lines.end(&ended);
        let text = pipe.text();
        assert!(text.starts_with("0\n"), "the oldest lines are kept");
        let lost = text.lines().find_map(|line| line.split_once("\"count\":")).map(|(_, count)| count.trim_end_matches('}'));
        let lost: usize = lost.expect("the loss is told").parse().unwrap();
        assert!((990..=1000).contains(&lost), "{lost}");
        assert_eq!(text.lines().count() - 1, count - lost);
    }

    /// Ending gives up on a target that stands still, and writes everything to one that moves.
    #[test]
    fn the_end_is_bounded() {
        let stuck = Pipe::default();
        let (mut lines, ended) = writer(stuck.clone()).unwrap();
        for _ in 0..LINES_WAITING_MAX + 10 {
            lines.write_all(b"x\n").unwrap();
        }
        let before = Instant::now();
        lines.end(&ended);
        assert!(before.elapsed() >= FLUSH_MAX);
        assert!(before.elapsed() < FLUSH_MAX * 5);
        stuck.open();

        let pipe = Pipe::default();
        pipe.open();
        let (mut lines, ended) = writer(pipe.clone()).unwrap();
        for _ in 0..1000 {
            lines.write_all(b"x\n").unwrap();
        }
        lines.end(&ended);
        assert_eq!(pipe.text().lines().count(), 1000);
    }

    /// A line that is far too long is cut and still ends.
    #[test]
    fn a_long_line_is_cut() {
        let pipe = Pipe::default();
        pipe.open();
        let (mut lines, ended) = writer(pipe.clone()).unwrap();
        lines.write_all(&vec![b'x'; LINE_BYTES_MAX * 2]).unwrap();
        lines.end(&ended);
        assert_eq!(pipe.text().len(), LINE_BYTES_MAX + 1);
        assert!(pipe.text().ends_with('\n'));
    }
}
