//! The local log: where a message becomes durable.
//!
//! Append-only segments, written over files that are filled already, so that a sync writes no metadata: with zeros, or with what a
//! segment that is not needed any more held. A commit group is written with one call and synced with one:
//!
//! ```text
//!  offset  0      4        8        16       24      28      32         36       40        44
//!          magic  version  number   synced   bytes   count   previous   body     header    body ...
//!          u32    u32      u64      u64      u32     u32     CRC-32C    CRC-32C  CRC-32C
//! ```
//!
//! A group begins where the one before it ends, or at the next block of 4 KiB: after a sync that wrote enough, so that a block that is
//! on disk is not written once more for what little room it has left.
//!
//! All little-endian. `previous` is the CRC of the previous group's header, which chains the groups; `synced` is the number of the
//! last group known to be on disk when this one was written. Segments are named by the number of their first group and by a *salt*,
//! under which the checksums of their headers are taken: neither can a client put into a payload what a later start would take for a
//! group, nor is what an earlier segment left in the file taken for one.
//!
//! A group is wholly there or wholly absent: lengths and checksums say which. What follows the last valid group is one of three:
//!
//! - no header of this segment: the clean end, or a group whose header never reached the disk;
//! - a *torn tail*: no group that could follow it knows it to be on disk, and the watermark lies below. Nobody was promised
//!   anything about it, and it is overwritten;
//! - *corruption*: a later group, or the watermark, says that it had been on disk. Something acknowledged may be lost, so opening
//!   refuses, names segment, offset and groups at stake, and goes on only when told to accept the loss.
//!
//! The watermark is a tiny file, replaced by rename, that says which group was certainly on disk; it is written every second,
//! by a thread that no message waits for, and on a clean stop.

mod format;
mod scan;

use std::collections::VecDeque;
use std::fmt;
use std::io;

use crc32c::crc32c;

use self::format::{
    BLOCK_BYTES, HEADER_BYTES, Header, WATERMARK, decode_watermark, encode_watermark, parse_segment_name, segment_name,
};
use self::scan::{Scan, Window, replay_segment};
use super::disk::{Disk, Space};
use crate::mutant::{self, Mutant};

/// How a log is kept.
#[derive(Clone, Copy, Debug)]
pub struct LogSettings {
    /// Size of a segment, bytes. A group that is longer gets a segment of its own length.
    pub segment_bytes: u64,
    /// Go on although groups are lost; [`Recovered::lost`] then says which.
    pub accept_loss: bool,
    /// The last group the engine holds: it was on disk, whatever the watermark says.
    pub projected: u64,
}

/// The log of one directory. After a failed write or sync it refuses everything: see [`LogError`].
#[derive(Debug)]
pub struct Log<D: Disk> {
    disk: D,
    settings: LogSettings,
    /// Oldest first; the last one is being written.
    segments: VecDeque<Segment<D::File>>,
    /// Where the next group goes in the last segment.
    offset: u64,
    /// Where it went after the last sync.
    synced_offset: u64,
    /// Number of the next group; numbers count from 1.
    next: u64,
    /// CRC of the last group's header.
    chain: u32,
    /// Last group known to be on disk.
    synced: u64,
    /// Value of the watermark file.
    watermark: u64,
    /// The same once the disk has done what it does aside.
    watermark_aside: u64,
    /// The group being written, header first; reused.
    buffer: Vec<u8>,
    /// The next group is the first after groups that were given up.
    after_loss: bool,
    /// The disk knows that the next segment will be needed soon.
    is_prepared: bool,
    /// What the file of [`Log::promise_less`] says.
    promises_less: bool,
    failed: bool,
}

/// What opening found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recovered {
    /// Number of the first group still held, or given up knowingly; above `last` if there is none.
    pub first: u64,
    /// Number of the last valid group, 0 in a new log.
    pub last: u64,
    /// A torn tail was cut off: segment and offset.
    pub torn: Option<(String, u64)>,
    /// The last process promised less than durability and did not end well: what it acknowledged may be missing without a trace. The
    /// caller begins a new epoch.
    pub unsafe_end: bool,
    /// Groups given up by `accept_loss`, first and last. The caller begins a new epoch, in a group of its own: until there is one, every
    /// start says so again, so that a crash in between does not hide the loss from clients.
    pub lost: Option<(u64, u64)>,
}

/// Why a log cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The kernel's.
    Io(io::Error),
    /// Groups that were on disk are not, or not as they were.
    Corrupt(Corruption),
}

/// What is damaged, for the operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Corruption {
    /// File.
    pub segment: String,
    /// Where the last valid group ends.
    pub offset: u64,
    /// First group that cannot be read.
    pub first: u64,
    /// Last group known to have been on disk.
    pub last: u64,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, offset, first, last } = self;
        write!(
            f,
            "log segment {segment} is damaged at offset {offset}: commit groups {first} to {last} were on disk and cannot be read. \
             Restore the data directory from a backup, or start once with --accept-loss to go on without them"
        )
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "opening the log: {error}"),
            Self::Corrupt(corruption) => corruption.fmt(f),
        }
    }
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Why nothing more can be written. Final: what the kernel has of the failed write is unknown, so the process ends and recovery
/// reads what is there.
#[derive(Debug)]
pub struct LogError {
    /// What was being done.
    pub operation: &'static str,
    /// The kernel's.
    pub source: io::Error,
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} the log: {}", self.operation, self.source)
    }
}

impl<D: Disk> Log<D> {
    /// Opens the log, reads every group to the last valid one, and cuts off a torn tail.
    ///
    /// # Errors
    /// [`OpenError::Corrupt`] when groups that were on disk are missing and `accept_loss` is not set.
    pub fn open(mut disk: D, settings: LogSettings) -> Result<(Self, Recovered), OpenError> {
        let watermark = disk.read_small(WATERMARK)?.map_or(0, |bytes| decode_watermark(&bytes));
        let unsafe_end = disk.read_small(LESS)?.is_some_and(|bytes| !bytes.is_empty());
        let mut segments = open_segments(&mut disk)?;
        let mut scan = Scan::new(segments.front().map_or(1, |segment| segment.first));
        for (index, segment) in segments.iter_mut().enumerate() {
            scan.segment(&mut disk, index, segment)?;
        }
        let last = scan.next - 1;
        let told = if mutant::on(Mutant::WatermarkIgnored) { 0 } else { watermark };
        let promised = told.max(scan.known).max(settings.projected);
        let place = || segments.get(scan.end.0).map_or_else(|| "(missing)".to_owned(), |segment| segment.name.clone());
        let mut recovered = Recovered {
            first: segments.front().map_or(1, |segment| segment.before + 1),
            last,
            torn: None,
            unsafe_end,
            lost: scan.marker,
        };
        if promised > last {
            if !settings.accept_loss {
                let corruption = Corruption { segment: place(), offset: scan.end.1, first: last + 1, last: promised };
                return Err(OpenError::Corrupt(corruption));
            }
            recovered.lost = Some((last + 1, promised.max(scan.seen)));
        } else if scan.is_broken {
            recovered.torn = Some((place(), scan.end.1));
        }
        let mut log = Self {
            disk,
            settings,
            segments,
            offset: scan.end.1,
            synced_offset: scan.end.1,
            next: scan.next,
            chain: scan.chain,
            synced: last,
            watermark,
            watermark_aside: watermark,
            buffer: Vec::new(),
            after_loss: false,
            is_prepared: false,
            promises_less: unsafe_end,
            failed: false,
        };
        if promised > last {
            log.give_up(promised.max(scan.seen), scan.end.0)?;
        } else if scan.is_broken {
            log.cut_tail(scan.end.0)?;
        }
        // Groups written just before a kill may rest in the kernel's cache alone, and from here on they count as synced.
        if let Some(segment) = log.segments.back() {
            log.disk.sync(&segment.file)?;
        }
        Ok((log, recovered))
    }

    /// Makes an empty directory into a log whose first group will be `first`: what came before is elsewhere.
    ///
    /// # Errors
    /// The kernel's.
    pub fn begin(disk: &mut D, first: u64, segment_bytes: u64) -> io::Result<()> {
        let salt = disk.salt();
        disk.create(&segment_name(first, salt), segment_bytes.max(HEADER_BYTES as u64)).map(drop)
    }

    /// Hands every group after `after`, in order, to `take` with its number, number of entries and body.
    ///
    /// # Errors
    /// The kernel's, or `take`'s; `InvalidData` if a group that opening has checked cannot be read any more.
    pub fn replay<E: From<io::Error>>(
        &mut self,
        after: u64,
        mut take: impl FnMut(u64, u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut window = Window::default();
        for (index, segment) in self.segments.iter().enumerate() {
            let following = self.segments.get(index + 1);
            if following.map_or(self.next, |following| following.first) <= after.saturating_add(1) {
                continue;
            }
            let reached = replay_segment(&mut self.disk, segment, after.saturating_add(1), &mut window, &mut take)?;
            if reached != following.map_or(self.next, |following| following.before + 1) {
                let reason = format!("commit group {reached} of log segment {} cannot be read any more", segment.name);
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason).into());
            }
        }
        Ok(())
    }

    /// Writes one group of `count` entries; returns its number. Not durable before [`Log::sync`].
    ///
    /// # Errors
    /// [`LogError`]; the log is finished then.
    ///
    /// # Panics
    /// If the body is longer than 4 GiB.
    pub fn write(&mut self, count: u32, body: &[u8]) -> Result<u64, LogError> {
        self.check("writing")?;
        let length = u32::try_from(body.len()).expect("a group is bounded far below 4 GiB");
        let whole = (HEADER_BYTES + body.len()) as u64;
        if self.segments.back().is_none_or(|segment| self.offset + whole > segment.bytes) {
            self.roll(whole).map_err(|error| self.fail("adding a segment to", error))?;
        }
        let header = Header {
            number: self.next,
            synced: self.synced,
            bytes: length,
            count,
            previous: self.chain,
            body: crc32c(body),
            after_loss: self.after_loss,
        };
        let segment = self.segments.back().expect("just made sure of one");
        self.buffer.clear();
        let chain = header.write(segment.salt, &mut self.buffer);
        self.buffer.extend_from_slice(body);
        let segment_bytes = segment.bytes;
        let written = self.disk.write_at(&segment.file, self.offset, &self.buffer);
        written.map_err(|error| self.fail("writing", error))?;
        self.offset += whole;
        if !self.is_prepared && self.offset > segment_bytes / 4 * 3 {
            // Not sooner: a segment that is not needed any more may take its place until then.
            self.disk.prepare(self.settings.segment_bytes);
            self.is_prepared = true;
        }
        self.after_loss = false;
        self.chain = chain;
        self.next += 1;
        Ok(header.number)
    }

    /// Makes everything written durable.
    ///
    /// # Errors
    /// [`LogError`]; the log is finished then.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.check("syncing")?;
        let Some(segment) = self.segments.back() else { return Ok(()) };
        let synced = self.disk.sync(&segment.file);
        synced.map_err(|error| self.fail("syncing", error))?;
        self.synced = self.next - 1;
        self.end_block();
        Ok(())
    }

    /// Puts the number of the last synced group into the watermark file, if it has moved.
    ///
    /// # Errors
    /// The kernel's. Not final: an old watermark says less, never something wrong.
    pub fn save_watermark(&mut self) -> io::Result<()> {
        if self.watermark == self.synced || self.failed {
            return Ok(());
        }
        self.disk.replace_small(WATERMARK, &encode_watermark(self.synced))?;
        (self.watermark, self.watermark_aside) = (self.synced, self.synced);
        Ok(())
    }

    /// The same without waiting for the disk: messages wait for the caller.
    ///
    /// # Errors
    /// As above.
    pub fn save_watermark_aside(&mut self) -> io::Result<()> {
        let is_told = self.watermark_aside == self.synced;
        if !is_told && !self.failed && self.disk.replace_small_aside(WATERMARK, &encode_watermark(self.synced))? {
            self.watermark_aside = self.synced;
        }
        Ok(())
    }

    /// Removes the segments whose groups are all at or below `number`; never the one being written. Does not wait for the disk either.
    ///
    /// # Errors
    /// The kernel's. Not final: what stays is removed later.
    pub fn delete_through(&mut self, number: u64) -> io::Result<()> {
        while self.segments.len() > 1 && self.segments[1].first <= number.saturating_add(1) {
            if !self.disk.remove_aside(&self.segments[0].name)? {
                return Ok(());
            }
            self.segments.pop_front();
        }
        Ok(())
    }

    /// Says on disk whether acknowledgements are given before the sync from here on. As long as it says so, a start cannot know what
    /// is missing: see [`Recovered::unsafe_end`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn promise_less(&mut self, less: bool) -> io::Result<()> {
        if self.promises_less != less {
            self.disk.replace_small(LESS, if less { b"less" } else { b"" })?;
            self.promises_less = less;
        }
        Ok(())
    }

    /// Number of the last group known to be on disk.
    #[must_use]
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// Number of the last group written, 0 in a new log.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.next - 1
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Room on the file system.
    ///
    /// # Errors
    /// The kernel's.
    pub fn space(&mut self) -> io::Result<Space> {
        self.disk.space()
    }

    fn check(&self, operation: &'static str) -> Result<(), LogError> {
        if self.failed {
            return Err(LogError { operation, source: io::Error::other("an earlier write or sync failed") });
        }
        Ok(())
    }

    fn fail(&mut self, operation: &'static str, source: io::Error) -> LogError {
        self.failed = true;
        LogError { operation, source }
    }

    /// Leaves the rest of a block empty if it is at most half of what the last sync wrote.
    fn end_block(&mut self) {
        let rest = self.offset.next_multiple_of(BLOCK_BYTES) - self.offset;
        if rest <= (self.offset - self.synced_offset) / 2 {
            self.offset += rest;
        }
        self.synced_offset = self.offset;
    }

    /// Ends the segment being written and begins the next. The old one is synced first, so that one sync covers one segment, and a
    /// segment's name proves that what came before it had been on disk.
    fn roll(&mut self, whole: u64) -> io::Result<()> {
        if let Some(segment) = self.segments.back() {
            self.disk.sync(&segment.file)?;
            self.synced = self.next - 1;
        }
        // One that holds no group, made just before a crash and too short for this one, must not stay beside its successor.
        if let Some(empty) = self.segments.pop_back_if(|segment| segment.first == self.next) {
            self.disk.remove(&empty.name)?;
        }
        let salt = self.disk.salt();
        let name = segment_name(self.next, salt);
        let bytes = self.settings.segment_bytes.max(whole);
        let file = self.disk.create(&name, bytes)?;
        self.segments.push_back(Segment { first: self.next, before: self.next - 1, salt, name, file, bytes });
        (self.offset, self.synced_offset) = (0, 0);
        self.is_prepared = false;
        Ok(())
    }

    /// Gives up every group from the next one to `through`. Their numbers are not used again: whoever saw them must not take new
    /// groups for them. An empty group in a segment of its own says so to every later start.
    ///
    /// The watermark comes first: after a crash in the middle of this, the next start refuses again.
    fn give_up(&mut self, through: u64, last_segment: usize) -> io::Result<()> {
        let held = self.synced;
        self.synced = through;
        self.save_watermark()?;
        self.cut_tail(last_segment)?;
        self.next = through + 1;
        self.roll(HEADER_BYTES as u64)?;
        self.segments.back_mut().expect("just made").before = held;
        // The mark says where the groups before it end, not what was on disk.
        self.synced = held;
        self.after_loss = true;
        self.write(0, &[]).and_then(|_| self.sync()).map_err(|error| error.source)
    }

    /// Zeros what follows the last valid group, and removes segments behind it: nothing old may be read as new later.
    fn cut_tail(&mut self, last_segment: usize) -> io::Result<()> {
        while self.segments.len() > last_segment + 1 {
            let segment = self.segments.pop_back().expect("counted above");
            self.disk.remove(&segment.name)?;
        }
        let Some(segment) = self.segments.back() else { return Ok(()) };
        let zeros = vec![0; ZEROS_BYTES];
        let mut at = self.offset;
        while at < segment.bytes {
            let step = usize::try_from(segment.bytes - at).map_or(ZEROS_BYTES, |rest| rest.min(ZEROS_BYTES));
            self.disk.write_at(&segment.file, at, &zeros[..step])?;
            at += step as u64;
        }
        self.disk.sync(&segment.file)
    }
}

/// All segments of the directory, oldest first.
fn open_segments<D: Disk>(disk: &mut D) -> io::Result<VecDeque<Segment<D::File>>> {
    let parsed = |name: String| parse_segment_name(&name).map(|(first, salt)| (first, salt, name));
    let mut names: Vec<(u64, u32, String)> = disk.list()?.into_iter().filter_map(parsed).collect();
    names.sort_unstable();
    let mut segments = VecDeque::with_capacity(names.len() + 1);
    for (first, salt, name) in names {
        let file = disk.open(&name)?;
        let bytes = disk.len(&file)?;
        segments.push_back(Segment { first, before: first.saturating_sub(1), salt, name, file, bytes });
    }
    Ok(segments)
}

/// One file of the log.
#[derive(Debug)]
struct Segment<F> {
    /// Number of its first group.
    first: u64,
    /// Number of the last group before it: the one before `first`, unless groups were given up there.
    before: u64,
    /// The checksums of its headers begin with this.
    salt: u32,
    name: String,
    file: F,
    bytes: u64,
}

/// The file of [`Log::promise_less`]: empty, or not.
const LESS: &str = "less";

/// How much of a torn tail is zeroed with one write.
const ZEROS_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::store::disk_memory::{Faults, MemoryDisk};

    type Files = BTreeMap<String, Vec<u8>>;

    const SMALL: LogSettings = LogSettings { segment_bytes: 1 << 12, accept_loss: false, projected: 0 };

    fn open(files: Files) -> Result<(Log<MemoryDisk>, Recovered), OpenError> {
        Log::open(MemoryDisk::with_files(files), SMALL)
    }

    fn open_with(files: Files, settings: LogSettings) -> Result<(Log<MemoryDisk>, Recovered), OpenError> {
        Log::open(MemoryDisk::with_files(files), settings)
    }

    fn body(number: u64) -> Vec<u8> {
        let len = 20 + usize::try_from(number * 37 % 150).unwrap();
        (0..len).map(|at| u8::try_from((at as u64 * 31 + number) % 256).unwrap()).collect()
    }

    /// Of those that are long enough the next begins a block.
    fn long_body(number: u64) -> Vec<u8> {
        body(number).repeat(usize::try_from(number * 7 % 40).unwrap() + 1)
    }

    fn groups(log: &mut Log<MemoryDisk>, after: u64) -> Vec<(u64, Vec<u8>)> {
        let mut groups = Vec::new();
        log.replay(after, |number, _, body| {
            groups.push((number, body.to_vec()));
            Ok::<(), io::Error>(())
        })
        .unwrap();
        groups
    }

    /// A log with `count` synced groups and the watermark at `watermark`.
    fn written(count: u64, watermark: u64, settings: LogSettings) -> MemoryDisk {
        written_with(count, watermark, settings, body)
    }

    fn written_with(count: u64, watermark: u64, settings: LogSettings, body: fn(u64) -> Vec<u8>) -> MemoryDisk {
        let disk = MemoryDisk::default();
        let (mut log, recovered) = Log::open(disk.clone(), settings).unwrap();
        assert_eq!(recovered, Recovered { first: 1, ..Recovered::default() });
        for number in 1..=count {
            assert_eq!(log.write(1, &body(number)).unwrap(), number);
            log.sync().unwrap();
            if number == watermark {
                log.save_watermark().unwrap();
            }
        }
        disk
    }

    /// What was written comes back in order over several segments, from any place, and goes on behind it.
    #[test]
    fn groups_come_back_in_order() {
        let disk = written(200, 150, SMALL);
        assert!(disk.files().len() > 4);
        let (mut log, recovered) = open(disk.files()).unwrap();
        assert_eq!(recovered, Recovered { first: 1, last: 200, torn: None, unsafe_end: false, lost: None });
        let all: Vec<_> = (1..=200).map(|number| (number, body(number))).collect();
        assert_eq!(groups(&mut log, 0), all);
        assert_eq!(groups(&mut log, 77), all[77..]);
        assert_eq!(log.write(1, b"next").unwrap(), 201);
        log.sync().unwrap();
        assert_eq!(groups(&mut log, 200), [(201, b"next".to_vec())]);
    }

    /// A block that was synced is not written again where groups are long. Short ones share blocks.
    #[test]
    fn long_groups_begin_blocks() {
        for (body_bytes, begins_block) in [(6000, true), (50, false)] {
            let settings = LogSettings { segment_bytes: 1 << 17, ..SMALL };
            let disk = MemoryDisk::default();
            let (mut log, _) = Log::open(disk.clone(), settings).unwrap();
            for number in 1..=10 {
                assert_eq!(log.offset.is_multiple_of(BLOCK_BYTES), begins_block || number == 1);
                log.write(1, &vec![7; body_bytes]).unwrap();
                log.sync().unwrap();
            }
            let (mut log, _) = Log::open(disk.clone(), settings).unwrap();
            assert_eq!(groups(&mut log, 0).len(), 10);
            // Behind the last group, wherever that ends.
            log.write(1, b"next").unwrap();
            log.sync().unwrap();
            let (mut log, _) = open_with(disk.files(), settings).unwrap();
            assert_eq!(groups(&mut log, 10), [(11, b"next".to_vec())]);
        }
    }

    /// Whole segments go once everything in them is passed, never the one being written; what stays still opens.
    #[test]
    fn passed_segments_are_deleted() {
        let disk = written(200, 200, SMALL);
        let (mut log, _) = Log::open(disk.clone(), SMALL).unwrap();
        let before = disk.files().len();
        log.delete_through(100).unwrap();
        assert!(disk.files().len() < before);
        assert_eq!(groups(&mut log, 100).len(), 100);
        log.delete_through(200).unwrap();
        assert_eq!(disk.files().keys().filter(|name| name.ends_with(".log")).count(), 1);
        let (log, recovered) = open(disk.files()).unwrap();
        assert_eq!((recovered.last, log.last()), (200, 200));
        assert!(recovered.first > 100);
    }

    /// A group larger than a segment gets a segment of its own.
    #[test]
    fn a_long_group_gets_a_long_segment() {
        let disk = MemoryDisk::default();
        let (mut log, _) = Log::open(disk.clone(), SMALL).unwrap();
        let long = vec![7; 10_000];
        log.write(1, &long).unwrap();
        log.write(1, b"short").unwrap();
        log.sync().unwrap();
        let (mut log, _) = open(disk.files()).unwrap();
        assert_eq!(groups(&mut log, 0), [(1, long), (2, b"short".to_vec())]);
    }

    /// A mark made aside is known to the next start, as one that was waited for is: what it speaks of may not be missing.
    #[test]
    fn watermark_aside_is_a_promise_too() {
        let disk = MemoryDisk::default();
        let (mut log, _) = Log::open(disk.clone(), SMALL).unwrap();
        for _ in 0..3 {
            log.write(1, b"one").unwrap();
            log.sync().unwrap();
        }
        log.save_watermark_aside().unwrap();
        let segment = disk.files().into_keys().find(|name| parse_segment_name(name).is_some()).unwrap();
        disk.edit(&segment, |bytes| bytes.fill(0));
        assert!(matches!(open(disk.files()), Err(OpenError::Corrupt(Corruption { first: 1, last: 3, .. }))));
    }

    /// A segment is written over one that is not needed any more: nothing of what it held comes back, whatever a power cut keeps of the
    /// groups written over it.
    #[test]
    fn what_a_file_held_before_is_no_group() {
        let disk = written(200, 200, SMALL);
        let (mut log, _) = Log::open(disk.clone(), SMALL).unwrap();
        log.delete_through(200).unwrap();
        let first = log.segments[0].first;
        // Bodies of the same lengths, so that headers of old and new lie at the same places.
        for number in 201..=400 {
            log.write(1, &body(number - 200)).unwrap();
            log.sync().unwrap();
            log.delete_through(number - 20).unwrap();
        }
        assert!(log.segments[0].first > first);
        let last = log.segments.back().unwrap();
        assert!(disk.files()[&last.name][usize::try_from(log.offset).unwrap()..].iter().any(|&byte| byte != 0), "written over");
        for number in 401..=403 {
            log.write(1, &body(number)).unwrap();
        }
        for part in 0..8 {
            let (log, recovered) = open(disk.power_cut(|sector| part >> (sector % 3) & 1 == 1)).unwrap();
            assert!((400..=403).contains(&recovered.last), "{part}: {}", recovered.last);
            assert_eq!((recovered.lost, log.last()), (None, recovered.last));
        }
    }

    /// A failed sync ends the log: nothing more is written, nothing more is promised.
    #[test]
    fn a_failed_sync_is_final() {
        let disk = MemoryDisk::default();
        let (mut log, _) = Log::open(disk.clone(), SMALL).unwrap();
        log.write(1, b"one").unwrap();
        log.sync().unwrap();
        disk.set_faults(Faults { syncs_left: Some(0), ..Faults::default() });
        log.write(1, b"two").unwrap();
        assert!(log.sync().is_err());
        disk.set_faults(Faults::default());
        assert!(log.sync().is_err());
        assert!(log.write(1, b"three").is_err());
        log.save_watermark().unwrap();
        assert!(!disk.files().contains_key(WATERMARK));
    }

    /// A full disk fails the write that needs a new segment, and what was synced stays.
    #[test]
    fn a_full_disk_is_said() {
        let disk = written(10, 0, SMALL);
        let (mut log, _) = Log::open(disk.clone(), SMALL).unwrap();
        disk.set_faults(Faults { room_bytes: Some(0), ..Faults::default() });
        let error = (0..100).find_map(|_| log.write(1, &body(1)).err()).unwrap();
        assert_eq!((error.operation, error.source.kind()), ("adding a segment to", io::ErrorKind::StorageFull));
    }

    /// Groups that were given up are not numbered again, and the log opens without being told so a second time.
    #[test]
    fn an_accepted_loss_begins_anew_behind_it() {
        let disk = written(50, 50, LogSettings { segment_bytes: 1 << 16, ..SMALL });
        let mut files = disk.files();
        let segment = files.iter_mut().find(|(name, _)| name.ends_with(".log")).unwrap().1;
        segment[3000] ^= 1;
        let Err(OpenError::Corrupt(corruption)) = open(files.clone()) else { panic!("damage must be refused") };
        assert_eq!(corruption.last, 50);
        assert!(corruption.to_string().contains("--accept-loss"));
        let disk = MemoryDisk::with_files(files);
        let (mut log, recovered) = Log::open(disk.clone(), LogSettings { accept_loss: true, ..SMALL }).unwrap();
        assert_eq!(recovered.lost, Some((corruption.first, 50)));
        assert_eq!(log.write(1, b"new").unwrap(), 52);
        log.sync().unwrap();
        let (mut log, recovered) = open(disk.files()).unwrap();
        assert_eq!((recovered.last, recovered.lost, recovered.torn), (52, None, None));
        assert_eq!(groups(&mut log, 50), [(51, Vec::new()), (52, b"new".to_vec())]);
        assert_eq!(groups(&mut log, 0).len() as u64, corruption.first - 1 + 2);
    }

    /// The engine is further than the log: what it holds was on disk, so something is missing.
    #[test]
    fn a_log_behind_the_engine_is_refused() {
        let files = written(5, 0, SMALL).files();
        let settings = LogSettings { projected: 7, ..SMALL };
        let Err(OpenError::Corrupt(corruption)) = Log::open(MemoryDisk::with_files(files), settings) else {
            panic!("groups 6 and 7 are missing")
        };
        assert_eq!((corruption.first, corruption.last), (6, 7));
    }

    proptest! {
        /// Power goes: whatever part of the unsynced writes reached the disk, every synced group is there and nothing is invented.
        #[test]
        fn a_power_cut_takes_only_what_was_not_synced(
            synced in 1u64..30, unsynced in 0u64..10, unit in 1usize..600, mask in any::<u64>(), is_long in any::<bool>(),
        ) {
            let (segment_bytes, body): (_, fn(u64) -> Vec<u8>) = if is_long { (1 << 14, long_body) } else { (1 << 12, body) };
            let settings = LogSettings { segment_bytes, ..SMALL };
            let disk = written_with(synced, 0, settings, body);
            let (mut log, _) = Log::open(disk.clone(), settings).unwrap();
            for number in synced + 1..=synced + unsynced {
                log.write(1, &body(number)).unwrap();
            }
            // Rolling over to a new segment syncs the old one.
            let promised = log.synced;
            let disk = MemoryDisk::with_files(disk.power_cut_by(unit, |part| mask >> (part % 64) & 1 == 1));
            let (mut log, recovered) = Log::open(disk.clone(), settings).unwrap();
            prop_assert!(recovered.last >= promised);
            let last = recovered.last;
            let mut expected: Vec<_> = (1..=last).map(|number| (number, body(number))).collect();
            prop_assert_eq!(groups(&mut log, 0), expected.clone());
            // It goes on where the valid groups end, in the middle of a block as well.
            for number in last + 1..last + 4 {
                log.write(1, &body(number)).unwrap();
                log.sync().unwrap();
                expected.push((number, body(number)));
            }
            let (mut log, _) = open_with(disk.files(), settings).unwrap();
            prop_assert_eq!(groups(&mut log, 0), expected);
        }
    }
    /// A segment made for a group that never came, and too short for the one that comes, gives way to another: the log goes on, and
    /// deleting old segments does not touch it.
    #[test]
    fn an_empty_segment_gives_way() {
        let disk = written(1, 1, LogSettings { segment_bytes: 100, ..SMALL });
        // Group 2 does not fit behind group 1. The crash comes between making its segment and writing it.
        let (mut log, _) = Log::open(disk.clone(), LogSettings { segment_bytes: 100, ..SMALL }).unwrap();
        log.roll(HEADER_BYTES as u64).unwrap();
        drop(log);
        let (mut log, recovered) = Log::open(disk.clone(), SMALL).unwrap();
        assert_eq!((recovered.last, recovered.torn), (1, None));
        log.write(1, &[7; 1000]).unwrap();
        log.sync().unwrap();
        assert_eq!(disk.files().keys().filter(|name| name.ends_with(".log")).count(), 2);
        log.delete_through(1).unwrap();
        log.delete_through(2).unwrap();
        drop(log);
        let (mut log, recovered) = open(disk.files()).unwrap();
        assert_eq!((recovered.first, recovered.last), (2, 2));
        assert_eq!(groups(&mut log, 0), [(2, vec![7; 1000])]);
    }

    /// The name of a segment proves that the groups before it were on disk, even if nothing has been written to it yet.
    #[test]
    fn the_name_of_an_empty_segment_is_proof() {
        let disk = written(9, 0, SMALL);
        let (mut log, _) = Log::open(disk.clone(), SMALL).unwrap();
        let last_byte = usize::try_from(log.offset).unwrap() - 1;
        log.roll(HEADER_BYTES as u64).unwrap();
        let mut files = disk.files();
        files.first_entry().unwrap().get_mut()[last_byte] ^= 1;
        let Err(OpenError::Corrupt(corruption)) = open(files) else { panic!("group 9 is missing") };
        assert_eq!((corruption.first, corruption.last), (9, 9));
    }

    /// A client sends the image of a log as its payload, and the power goes while the group is being written: the header of the group
    /// is lost, the payload is there. It proves nothing.
    #[test]
    fn a_payload_is_not_taken_for_a_group() {
        let mut forged = Vec::new();
        for salt in 0..3 {
            Header { number: 900, synced: 899, bytes: 0, count: 0, previous: 0, body: 0, after_loss: false }
                .write(salt, &mut forged);
        }
        let disk = written(3, 3, SMALL);
        let (mut log, _) = Log::open(disk.clone(), SMALL).unwrap();
        let start = log.offset;
        log.write(1, &forged).unwrap();
        let unit = usize::try_from(start).unwrap() + HEADER_BYTES;
        let (_, recovered) = open(disk.power_cut_by(unit, |part| part > 0)).unwrap();
        assert_eq!((recovered.last, recovered.torn), (3, None));
    }

    /// Numbers that no log reaches, under checksums that hold, are damage: the name of the segment they stand in says which groups are
    /// missing, and whoever accepts that goes on behind them.
    #[test]
    fn numbers_beyond_any_log_are_damage() {
        for (number, synced) in [(u64::MAX, 9), (20, u64::MAX), (u64::MAX, u64::MAX)] {
            let mut files = written(9, 9, SMALL).files();
            let mut group = Vec::new();
            Header { number, synced, bytes: 0, count: 0, previous: 0, body: 0, after_loss: true }.write(7, &mut group);
            files.insert(segment_name(20, 7), group.clone());
            files.insert(segment_name(u64::MAX, 7), group);
            files.insert(WATERMARK.to_owned(), encode_watermark(u64::MAX).to_vec());
            let Err(OpenError::Corrupt(corruption)) = open(files.clone()) else { panic!("groups are missing") };
            assert_eq!((corruption.first, corruption.last), (10, 19));
            let (mut log, recovered) = open_with(files, LogSettings { accept_loss: true, ..SMALL }).unwrap();
            assert_eq!(recovered.lost, Some((10, 19)));
            assert_eq!(log.write(1, b"new").unwrap(), 21);
        }
    }

    /// A group that was written but not synced when the process was killed is read back from the kernel's cache. Before anybody is
    /// told of it, it is on disk.
    #[test]
    fn what_a_kill_left_in_the_cache_is_synced_when_opened() {
        let disk = written(3, 0, SMALL);
        let (mut log, _) = Log::open(disk.clone(), SMALL).unwrap();
        log.write(1, b"unsynced").unwrap();
        drop(log);
        assert_eq!(open(disk.power_cut(|_| false)).unwrap().1.last, 3);
        assert_eq!(Log::open(disk.clone(), SMALL).unwrap().1.last, 4);
        assert_eq!(open(disk.power_cut(|_| false)).unwrap().1.last, 4);
    }

    /// An accepted loss is repeated at every start until a group stands behind it: the new epoch. And wherever a crash interrupts the
    /// giving up, the next start refuses again or knows of the loss.
    #[test]
    fn an_accepted_loss_is_not_forgotten_in_a_crash() {
        let settings = LogSettings { segment_bytes: 1 << 10, ..SMALL };
        let mut files = written(50, 0, settings).files();
        let (name, segment) = files.iter_mut().find(|(name, _)| name.ends_with(".log")).unwrap();
        segment[300] ^= 1;
        let (name, accepting) = (name.clone(), LogSettings { accept_loss: true, ..settings });
        let disk = MemoryDisk::with_files(files.clone());
        let (_, recovered) = Log::open(disk.clone(), accepting).unwrap();
        let lost = recovered.lost.unwrap();
        assert_eq!(lost.1, 50);
        for settings in [settings, accepting] {
            assert_eq!(open_with(disk.files(), settings).unwrap().1.lost, Some(lost));
        }
        let (mut log, _) = Log::open(disk.clone(), settings).unwrap();
        assert_eq!(log.write(1, b"epoch").unwrap(), 52);
        log.sync().unwrap();
        assert_eq!(open_with(disk.files(), settings).unwrap().1.lost, None);
        for syncs in 0..3 {
            let disk = MemoryDisk::with_files(files.clone());
            disk.set_faults(Faults { syncs_left: Some(syncs), ..Faults::default() });
            assert!(matches!(Log::open(disk.clone(), accepting), Err(OpenError::Io(_))), "{syncs}");
            match open_with(disk.files(), settings) {
                Ok((_, recovered)) => assert_eq!(recovered.lost, Some(lost)),
                Err(OpenError::Corrupt(corruption)) => assert_eq!((corruption.segment, corruption.last), (name.clone(), 50)),
                Err(OpenError::Io(error)) => panic!("{error}"),
            }
        }
        // What was held before the loss can be cut no more quietly than before.
        let mut files = disk.files();
        let end = {
            let (log, _) = Log::open(MemoryDisk::with_files(files.clone()), settings).unwrap();
            log.segments.iter().rfind(|segment| segment.first <= lost.0).unwrap().name.clone()
        };
        files.get_mut(&end).unwrap().fill(0);
        assert!(matches!(open_with(files, settings), Err(OpenError::Corrupt(_))));
    }
}
