//! The local log: where a message becomes durable.
//!
//! Append-only segments, zero-filled ahead, so that a sync writes no metadata. A commit group is written with one call and synced
//! with one:
//!
//! ```text
//!  offset  0      4        8        16       24      28      32         36       40        44
//!          magic  version  number   synced   bytes   count   previous   body     header    body ...
//!          u32    u32      u64      u64      u32     u32     CRC-32C    CRC-32C  CRC-32C
//! ```
//!
//! All little-endian. `previous` is the CRC of the previous group's header, which chains the groups; `synced` is the number of the
//! last group known to be on disk when this one was written. Segments are named by the number of their first group.
//!
//! A group is wholly there or wholly absent: lengths and checksums say which. What follows the last valid group is one of three:
//!
//! - zeros: the clean end;
//! - a *torn tail*: no group that could follow it knows it to be on disk, and the watermark lies below. Nobody was promised
//!   anything about it, and it is overwritten;
//! - *corruption*: a later group, or the watermark, says that it had been on disk. Something acknowledged may be lost, so opening
//!   refuses, names segment, offset and groups at stake, and goes on only when told to accept the loss.
//!
//! The watermark is a tiny file, replaced by rename, that says which group was certainly on disk; it is written every second and on
//! a clean stop, off the path of a message.

use std::collections::VecDeque;
use std::fmt;
use std::io;

use crc32c::crc32c;

use super::disk::{Disk, Space};

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
    /// Number of the next group; numbers count from 1.
    next: u64,
    /// CRC of the last group's header.
    chain: u32,
    /// Last group known to be on disk.
    synced: u64,
    /// Value of the watermark file.
    watermark: u64,
    /// The group being written, header first; reused.
    buffer: Vec<u8>,
    /// The next group is the first after groups that were given up.
    after_loss: bool,
    failed: bool,
}

/// What opening found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recovered {
    /// Number of the first group still held; above `last` if there is none.
    pub first: u64,
    /// Number of the last valid group, 0 in a new log.
    pub last: u64,
    /// A torn tail was cut off: segment and offset.
    pub torn: Option<(String, u64)>,
    /// Groups given up by `accept_loss`, first and last. The caller begins a new epoch.
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
        let watermark = read_watermark(&mut disk)?;
        let mut names: Vec<(u64, String)> =
            disk.list()?.into_iter().filter_map(|name| Some((segment_number(&name)?, name))).collect();
        names.sort_unstable();
        let mut scan = Scan::new(names.first().map_or(1, |(first, _)| *first));
        let mut segments = VecDeque::new();
        let mut stop: Option<Stop> = None;
        let mut later = 0;
        let mut contents = Vec::new();
        for (first, name) in names {
            let file = disk.open(&name)?;
            let bytes = disk.len(&file)?;
            contents.resize(usize::try_from(bytes).expect("a segment fits memory"), 0);
            disk.read_at(&file, 0, &mut contents)?;
            if stop.is_none() && Header::read(&contents).is_some_and(|header| header.after_loss && header.number == first) {
                scan.restart(first);
            }
            if stop.is_none() && first != scan.next {
                // The segment that should come first is missing, or this one was named by a stranger.
                stop = Some(Stop { segment: name.clone(), offset: 0 });
            }
            if stop.is_some() {
                later = later.max(last_evidence(&contents, scan.next));
            } else {
                let end = scan.read(&contents);
                let rest = &contents[end..];
                let clean = rest.iter().all(|&byte| byte == 0);
                if !clean {
                    later = later.max(last_evidence(rest, scan.next));
                }
                // A clean end is an end only if no segment follows; the next one's name says whether it fits.
                if !clean {
                    stop = Some(Stop { segment: name.clone(), offset: end as u64 });
                }
                scan.end = (segments.len(), end as u64);
            }
            segments.push_back(Segment { first, name, file, bytes });
        }
        let last = scan.next - 1;
        let first = segments.front().map_or(1, |segment: &Segment<D::File>| segment.first);
        let promised = watermark.max(later).max(settings.projected);
        let mut recovered = Recovered { first, last, torn: None, lost: None };
        if promised > last {
            let (segment, offset) = match &stop {
                Some(stop) => (stop.segment.clone(), stop.offset),
                None => (segments.back().map_or_else(|| "(missing)".to_owned(), |segment| segment.name.clone()), scan.end.1),
            };
            if !settings.accept_loss {
                return Err(OpenError::Corrupt(Corruption { segment, offset, first: last + 1, last: promised }));
            }
            recovered.lost = Some((last + 1, promised));
        } else if let Some(stop) = &stop {
            recovered.torn = Some((stop.segment.clone(), stop.offset));
        }
        let mut log = Self {
            disk,
            settings,
            segments,
            offset: scan.end.1,
            next: scan.next,
            chain: scan.chain,
            synced: last,
            watermark,
            buffer: Vec::new(),
            after_loss: false,
            failed: false,
        };
        log.cut_tail(scan.end.0, stop.is_some())?;
        if recovered.lost.is_some() {
            log.begin_after_loss(promised)?;
        }
        Ok((log, recovered))
    }

    /// Hands every group after `after`, in order, to `take` with its number, number of entries and body.
    ///
    /// # Errors
    /// The kernel's, or `take`'s.
    ///
    /// # Panics
    /// If a group that opening has checked is not valid any more.
    pub fn replay<E: From<io::Error>>(
        &mut self,
        after: u64,
        mut take: impl FnMut(u64, u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut contents = Vec::new();
        for index in 0..self.segments.len() {
            let next_first = self.segments.get(index + 1).map_or(self.next, |segment| segment.first);
            if next_first <= after.saturating_add(1) {
                continue;
            }
            let segment = &self.segments[index];
            contents.resize(usize::try_from(segment.bytes).expect("a segment fits memory"), 0);
            self.disk.read_at(&segment.file, 0, &mut contents)?;
            let mut at = 0;
            while let Some(header) = Header::read(&contents[at..]) {
                let body = &contents[at + HEADER_BYTES..][..header.bytes as usize];
                assert!(crc32c(body) == header.body, "the log changed while it was open");
                if header.number > after {
                    take(header.number, header.count, body)?;
                }
                at += HEADER_BYTES + body.len();
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
        self.buffer.clear();
        let chain = header.write(&mut self.buffer);
        self.buffer.extend_from_slice(body);
        let segment = self.segments.back().expect("just made sure of one");
        let written = self.disk.write_at(&segment.file, self.offset, &self.buffer);
        written.map_err(|error| self.fail("writing", error))?;
        self.offset += whole;
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
        let mut bytes = self.synced.to_le_bytes().to_vec();
        bytes.extend_from_slice(&crc32c(&bytes).to_le_bytes());
        self.disk.replace_small(WATERMARK, &bytes)?;
        self.watermark = self.synced;
        Ok(())
    }

    /// Removes the segments whose groups are all at or below `number`; never the one being written.
    ///
    /// # Errors
    /// The kernel's. Not final: what stays is removed later.
    pub fn delete_through(&mut self, number: u64) -> io::Result<()> {
        while self.segments.len() > 1 && self.segments[1].first <= number.saturating_add(1) {
            self.disk.remove(&self.segments[0].name)?;
            self.segments.pop_front();
        }
        Ok(())
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

    /// Ends the segment being written and begins the next. The old one is synced first, so that one sync covers one segment.
    fn roll(&mut self, whole: u64) -> io::Result<()> {
        if let Some(segment) = self.segments.back() {
            self.disk.sync(&segment.file)?;
            self.synced = self.next - 1;
        }
        let name = segment_name(self.next);
        let bytes = self.settings.segment_bytes.max(whole);
        let file = self.disk.create(&name, bytes)?;
        self.segments.push_back(Segment { first: self.next, name, file, bytes });
        self.offset = 0;
        self.disk.prepare(self.settings.segment_bytes);
        Ok(())
    }

    /// Numbers of lost groups are not used again: whoever saw them must not take new groups for them. An empty group in a segment
    /// of its own says so to every later start.
    fn begin_after_loss(&mut self, promised: u64) -> io::Result<()> {
        self.next = promised + 1;
        self.synced = promised;
        self.after_loss = true;
        self.roll(HEADER_BYTES as u64)?;
        self.write(0, &[]).and_then(|_| self.sync()).map_err(|error| error.source)?;
        self.save_watermark()
    }

    /// Zeros what follows the last valid group, and removes segments behind it: nothing old may be read as new later.
    fn cut_tail(&mut self, last_segment: usize, is_dirty: bool) -> io::Result<()> {
        if !is_dirty {
            return Ok(());
        }
        while self.segments.len() > last_segment + 1 {
            let segment = self.segments.pop_back().expect("counted above");
            self.disk.remove(&segment.name)?;
        }
        let Some(segment) = self.segments.back() else { return Ok(()) };
        let rest = usize::try_from(segment.bytes - self.offset).expect("a segment fits memory");
        self.disk.write_at(&segment.file, self.offset, &vec![0; rest])?;
        self.disk.sync(&segment.file)?;
        Ok(())
    }
}

#[derive(Debug)]
struct Segment<F> {
    first: u64,
    name: String,
    file: F,
    bytes: u64,
}

/// Where reading stopped before the end of the log.
#[derive(Debug)]
struct Stop {
    segment: String,
    offset: u64,
}

/// Reading from the front: how far the chain of valid groups goes.
struct Scan {
    next: u64,
    chain: u32,
    /// Whether the chain has begun; the first group held says where.
    begun: bool,
    /// Segment index and offset after the last valid group.
    end: (usize, u64),
}

impl Scan {
    fn new(first: u64) -> Self {
        Self { next: first, chain: 0, begun: false, end: (0, 0) }
    }

    /// Groups before `first` were given up by an operator: a new chain begins.
    fn restart(&mut self, first: u64) {
        self.next = first;
        self.begun = false;
    }

    /// Reads one segment; returns where its last valid group ends.
    fn read(&mut self, contents: &[u8]) -> usize {
        let mut at = 0;
        while let Some(header) = Header::read(&contents[at..]) {
            let fits = header.number == self.next && (!self.begun || header.previous == self.chain);
            let body = contents[at + HEADER_BYTES..].get(..header.bytes as usize);
            let Some(body) = body.filter(|body| fits && crc32c(body) == header.body) else { break };
            self.chain = header_crc(&contents[at..]);
            self.begun = true;
            self.next += 1;
            at += HEADER_BYTES + body.len();
        }
        at
    }
}

/// The highest group number that `bytes` prove to have been on disk: a later group says so of the ones before it. Headers are
/// looked for at every byte, since nothing says where they begin once one of them is damaged.
fn last_evidence(bytes: &[u8], missing: u64) -> u64 {
    let magic = MAGIC.to_le_bytes();
    let mut last = 0;
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(magic.len()).position(|window| window == magic) {
        at += found;
        if let Some(header) = Header::read(&bytes[at..])
            && header.number > missing
            && header.synced >= missing
        {
            last = last.max(header.number - 1);
        }
        at += magic.len();
    }
    last
}

#[derive(Clone, Copy, Debug)]
struct Header {
    number: u64,
    synced: u64,
    bytes: u32,
    count: u32,
    previous: u32,
    body: u32,
    after_loss: bool,
}

impl Header {
    /// Reads a header whose own checksum holds; `None` for anything else.
    fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let version = u32_at(4)?;
        if u32_at(0)? != MAGIC || version & !AFTER_LOSS != VERSION || header_crc(bytes) != crc32c(&bytes[..HEADER_BYTES - 4]) {
            return None;
        }
        Some(Self {
            number: u64_at(8)?,
            synced: u64_at(16)?,
            bytes: u32_at(24)?,
            count: u32_at(28)?,
            previous: u32_at(32)?,
            body: u32_at(36)?,
            after_loss: version & AFTER_LOSS != 0,
        })
    }

    /// Appends the header; returns its checksum.
    fn write(&self, out: &mut Vec<u8>) -> u32 {
        let start = out.len();
        out.extend_from_slice(&MAGIC.to_le_bytes());
        let version = if self.after_loss { VERSION | AFTER_LOSS } else { VERSION };
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.synced.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.previous.to_le_bytes());
        out.extend_from_slice(&self.body.to_le_bytes());
        let crc = crc32c(&out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
        assert!(out.len() - start == HEADER_BYTES);
        crc
    }
}

/// The checksum that stands at the end of a header.
fn header_crc(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[HEADER_BYTES - 4..HEADER_BYTES].try_into().expect("four bytes"))
}

fn segment_name(first: u64) -> String {
    format!("{first:020}.log")
}

fn segment_number(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".log")?;
    if number.len() == 20 { number.parse().ok() } else { None }
}

fn read_watermark<D: Disk>(disk: &mut D) -> io::Result<u64> {
    let Some(bytes) = disk.read_small(WATERMARK)? else { return Ok(0) };
    let Some((number, crc)) = bytes.split_first_chunk::<8>() else { return Ok(0) };
    // The file is replaced as a whole; a damaged one says nothing, which is less but never wrong.
    if crc != crc32c(number).to_le_bytes() {
        return Ok(0);
    }
    Ok(u64::from_le_bytes(*number))
}

/// "TGLG".
const MAGIC: u32 = u32::from_le_bytes(*b"TGLG");
const VERSION: u32 = 1;
/// Set in the version of the first group after groups that were given up.
const AFTER_LOSS: u32 = 1 << 16;
const HEADER_BYTES: usize = 44;
const WATERMARK: &str = "watermark";

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

    fn body(number: u64) -> Vec<u8> {
        let len = 20 + usize::try_from(number * 37 % 150).unwrap();
        (0..len).map(|at| u8::try_from((at as u64 * 31 + number) % 256).unwrap()).collect()
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
        assert_eq!(recovered, Recovered { first: 1, last: 200, torn: None, lost: None });
        let all: Vec<_> = (1..=200).map(|number| (number, body(number))).collect();
        assert_eq!(groups(&mut log, 0), all);
        assert_eq!(groups(&mut log, 77), all[77..]);
        assert_eq!(log.write(1, b"next").unwrap(), 201);
        log.sync().unwrap();
        assert_eq!(groups(&mut log, 200), [(201, b"next".to_vec())]);
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
        fn a_power_cut_takes_only_what_was_not_synced(synced in 1u64..30, unsynced in 0u64..10, mask in any::<u64>()) {
            let disk = written(synced, 0, SMALL);
            let (mut log, _) = Log::open(disk.clone(), SMALL).unwrap();
            for number in synced + 1..=synced + unsynced {
                log.write(1, &body(number)).unwrap();
            }
            // Rolling over to a new segment syncs the old one.
            let promised = log.synced;
            let files = disk.power_cut(|sector| mask >> (sector % 64) & 1 == 1);
            let (mut log, recovered) = open(files).unwrap();
            prop_assert!(recovered.last >= promised);
            let expected: Vec<_> = (1..=recovered.last).map(|number| (number, body(number))).collect();
            prop_assert_eq!(groups(&mut log, 0), expected);
        }
    }

    /// Opens an image and holds what comes back against what was written. `promised`: groups below this may not be lost silently.
    fn judge(files: Files, originals: &[Vec<u8>], promised: u64, intact: u64) -> bool {
        match open(files) {
            Ok((mut log, recovered)) => {
                assert!(recovered.last >= promised, "a promised group is gone without a word");
                assert!(recovered.last >= intact, "a valid earlier group is gone");
                for (number, body) in groups(&mut log, 0) {
                    assert_eq!(body, originals[usize::try_from(number).unwrap() - 1]);
                }
                true
            }
            Err(OpenError::Corrupt(corruption)) => {
                assert!(!corruption.segment.is_empty() && corruption.first <= corruption.last);
                false
            }
            Err(OpenError::Io(error)) => panic!("{error}"),
        }
    }

    /// Every truncation and every single flipped bit of a 64 KiB log: recovered without losing a valid earlier group, or refused by
    /// name; never a panic, never silence.
    #[test]
    fn every_truncation_and_every_flipped_bit_is_recovered_or_refused() {
        const BYTES: usize = 64 * 1024;
        let settings = LogSettings { segment_bytes: BYTES as u64, ..SMALL };
        let count = 380;
        let watermark = 300;
        let disk = written(count, watermark, settings);
        let files = disk.files();
        let name = segment_name(1);
        let image = files[&name].clone();
        assert!(image.len() == BYTES && files.keys().filter(|name| name.ends_with(".log")).count() == 1);
        let originals: Vec<Vec<u8>> = (1..=count).map(body).collect();
        let ends: Vec<usize> = originals
            .iter()
            .scan(0, |end, body| {
                *end += HEADER_BYTES + body.len();
                Some(*end)
            })
            .collect();
        let intact_before = |offset: usize| ends.iter().take_while(|&&end| end <= offset).count() as u64;
        let (mut recovered, mut refused) = (0u64, 0u64);
        let mut tally = |ok: bool| if ok { recovered += 1 } else { refused += 1 };
        for offset in 0..BYTES {
            let mut damaged = files.clone();
            damaged.insert(name.clone(), image[..offset].to_vec());
            tally(judge(damaged, &originals, watermark, intact_before(offset)));
        }
        let mut damaged = files.clone();
        for bit in 0..BYTES * 8 {
            let byte = bit / 8;
            damaged.get_mut(&name).unwrap()[byte] ^= 1 << (bit % 8);
            tally(judge(damaged.clone(), &originals, watermark, intact_before(byte)));
            damaged.get_mut(&name).unwrap()[byte] ^= 1 << (bit % 8);
        }
        println!("{} cases: {recovered} recovered, {refused} refused by name", recovered + refused);
        assert_eq!(recovered + refused, (BYTES * 9) as u64);
        assert!(recovered > 0 && refused > 0);
    }
}
