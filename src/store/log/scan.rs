//! Reading a log from its first group to the last valid one, and judging what lies behind that.
//!
//! As in `wire`, lints refuse whatever could panic on what is read here.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

use std::{fmt, io};

use crc32c::crc32c;

use super::Segment;
use super::format::{BLOCK_BYTES, HEADER_BYTES, Header, MAGIC, crc_and_body};
use crate::store::disk::Disk;

/// Reads segment after segment, in order. The chain, the numbers and the checksums say where the valid groups end.
#[derive(Debug)]
pub(super) struct Scan {
    /// Number that the next group must have.
    pub next: u64,
    /// CRC of the last group's header.
    pub chain: u32,
    /// Segment, by index, and offset in it where the last valid group ends.
    pub end: (usize, u64),
    /// The log does not go on as it should: what follows `end` is no part of it.
    pub is_broken: bool,
    /// The highest group that something behind `end` proves to have been on disk; 0: none.
    pub known: u64,
    /// The highest number that is used behind `end`; 0: none.
    pub seen: u64,
    /// The last valid group marks a loss that was accepted: the first and last group given up.
    pub marker: Option<(u64, u64)>,
    /// `chain` is known: not before the first group of a log whose beginning has been deleted.
    begun: bool,
    window: Window,
}

impl Scan {
    /// Before the first segment, which begins with group `first`.
    pub fn new(first: u64) -> Self {
        Self {
            next: first,
            chain: 0,
            end: (0, 0),
            is_broken: false,
            known: 0,
            seen: 0,
            marker: None,
            begun: first == 1,
            window: Window::default(),
        }
    }

    /// Reads the next segment.
    pub fn segment<D: Disk>(&mut self, disk: &mut D, index: usize, segment: &mut Segment<D::File>) -> io::Result<()> {
        self.window.clear();
        if self.is_broken && self.known == 0 && segment.first == self.next {
            // Only unused bytes of the segment before are damaged: this one goes on where its groups end.
            self.is_broken = false;
        }
        if !self.is_broken {
            self.enter(disk, segment)?;
        }
        if self.is_broken {
            return self.judge(disk, segment, 0);
        }
        let end = self.groups(disk, segment)?;
        self.end = (index, end);
        self.judge(disk, segment, end)
    }

    /// Whether the segment goes on where the one before ended.
    fn enter<D: Disk>(&mut self, disk: &mut D, segment: &mut Segment<D::File>) -> io::Result<()> {
        let head = self.window.at(disk, segment, 0, HEADER_BYTES as u64)?;
        if let Some(header) = Header::read(head, segment.salt)
            && header.after_loss
            && header.number == segment.first
            && (!self.begun || (header.synced.checked_add(1) == Some(self.next) && header.previous == self.chain))
        {
            self.next = segment.first;
            segment.before = header.synced;
        }
        self.is_broken = segment.first != self.next;
        Ok(())
    }

    /// Reads the groups of one segment; returns where its last valid one ends.
    fn groups<D: Disk>(&mut self, disk: &mut D, segment: &Segment<D::File>) -> io::Result<u64> {
        let mut at = 0;
        while let Some((start, header)) = self.window.group(disk, segment, at, self.next)? {
            if self.begun && header.previous != self.chain {
                break;
            }
            let group = self.window.at(disk, segment, start, header.group_bytes())?;
            let Some((chain, body)) = crc_and_body(group) else { break };
            if crc32c(body) != header.body {
                break;
            }
            self.chain = chain;
            self.begun = true;
            self.next = self.next.saturating_add(1);
            self.marker = header.after_loss.then(|| (header.synced.saturating_add(1), header.number.saturating_sub(1)));
            at = start.saturating_add(header.group_bytes());
        }
        Ok(at)
    }

    /// Looks at what lies in a segment from `from` on: nothing of this segment, or headers that break the log and may prove that groups
    /// are missing.
    ///
    /// A later group says which groups it knew to be on disk. So does the name of a later segment, because the one before it is
    /// synced first. Headers are looked for at every byte, since nothing says where they begin once one of them is damaged. The salt
    /// keeps a header in the payload of a client from being taken for one of ours.
    fn judge<D: Disk>(&mut self, disk: &mut D, segment: &Segment<D::File>, from: u64) -> io::Result<()> {
        if self.is_broken && segment.first > self.next {
            let before = segment.first.saturating_sub(1);
            self.known = self.known.max(before);
            self.seen = self.seen.max(before);
        }
        let mut at = from;
        while at < segment.bytes {
            let part = self.window.at(disk, segment, at, WINDOW_BYTES)?;
            let part_bytes = part.len() as u64;
            for header in headers(part, segment.salt) {
                self.is_broken = true;
                if header.number > self.next && (header.synced >= self.next || header.after_loss) {
                    self.known = self.known.max(header.synced);
                    self.seen = self.seen.max(header.number);
                }
            }
            let part_end = at.saturating_add(part_bytes);
            if part_end >= segment.bytes {
                break;
            }
            // A header may lie across the border of two parts.
            at = part_end.saturating_sub(OVERLAP_BYTES);
        }
        Ok(())
    }
}

/// Hands every group of a segment from number `first` on to `take`; returns the number that must come next.
///
/// Opening has checked the groups. One that is not valid any more ends the reading early, which the caller sees by the number.
pub(super) fn replay_segment<D: Disk, E: From<io::Error>>(
    disk: &mut D,
    segment: &Segment<D::File>,
    first: u64,
    window: &mut Window,
    take: &mut impl FnMut(u64, u32, &[u8]) -> Result<(), E>,
) -> Result<u64, E> {
    window.clear();
    let (mut at, mut next) = (0, segment.first);
    while let Some((start, header)) = window.group(disk, segment, at, next)? {
        if header.number >= first {
            let group = window.at(disk, segment, start, header.group_bytes())?;
            let Some((_, body)) = crc_and_body(group) else { break };
            if crc32c(body) != header.body {
                break;
            }
            take(header.number, header.count, body)?;
        }
        next = next.saturating_add(1);
        at = start.saturating_add(header.group_bytes());
    }
    Ok(next)
}

/// The part of a segment that is in memory: a megabyte, or the longest group if that is longer.
#[derive(Debug, Default)]
pub(super) struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// Forgets what was read: another file comes.
    fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Where group `number` begins, which follows one that ends at `end`: there or at the next block. `None` if neither holds its header,
    /// or if the segment ends before the group does.
    fn group<D: Disk>(
        &mut self,
        disk: &mut D,
        segment: &Segment<D::File>,
        end: u64,
        number: u64,
    ) -> io::Result<Option<(u64, Header)>> {
        for start in [end, end.next_multiple_of(BLOCK_BYTES).min(segment.bytes)] {
            if let Some(header) = Header::read(self.at(disk, segment, start, HEADER_BYTES as u64)?, segment.salt)
                && header.number == number
                && header.group_bytes() <= segment.bytes.saturating_sub(start)
            {
                return Ok(Some((start, header)));
            }
        }
        Ok(None)
    }

    /// The `wanted` bytes at `offset`, fewer if the segment ends before.
    fn at<D: Disk>(&mut self, disk: &mut D, segment: &Segment<D::File>, offset: u64, wanted: u64) -> io::Result<&[u8]> {
        let wrong = |kind, why: &dyn fmt::Display| io::Error::new(kind, format!("reading log segment {}: {why}", segment.name));
        let end = offset.saturating_add(wanted).min(segment.bytes).max(offset);
        let window_end = self.start.saturating_add(self.bytes.len() as u64);
        if offset < self.start || end > window_end {
            let step = wanted.max(WINDOW_BYTES).min(segment.bytes.saturating_sub(offset));
            let step = usize::try_from(step).map_err(|error| wrong(io::ErrorKind::OutOfMemory, &error))?;
            self.bytes.resize(step, 0);
            self.start = offset;
            disk.read_at(&segment.file, offset, &mut self.bytes).map_err(|error| wrong(error.kind(), &error))?;
        }
        let index = |at: u64| at.checked_sub(self.start).and_then(|index| usize::try_from(index).ok());
        let part = index(offset).zip(index(end)).and_then(|(from, to)| self.bytes.get(from..to));
        part.ok_or_else(|| wrong(io::ErrorKind::Other, &"a part of it is not in memory"))
    }
}

/// Every header in `bytes` whose checksum holds.
fn headers(bytes: &[u8], salt: u32) -> impl Iterator<Item = Header> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while let Some(window) = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>) {
            let start = at;
            // The last byte of the window says how far the next possible beginning of "TGLG" is: most bytes are never looked at.
            at = at.saturating_add(match window[3] {
                b'T' => 3,
                b'G' => 2,
                b'L' => 1,
                _ => 4,
            });
            if u32::from_le_bytes(*window) == MAGIC
                && let Some(header) = bytes.get(start..).and_then(|rest| Header::read(rest, salt))
            {
                return Some(header);
            }
        }
        None
    })
}

const WINDOW_BYTES: u64 = 1 << 20;
/// What two parts have in common.
const OVERLAP_BYTES: u64 = HEADER_BYTES as u64 - 1;

#[cfg(test)]
mod tests {
    use super::*;

    /// Headers are found at every offset, one right behind another, and not where only their magic stands.
    #[test]
    fn headers_are_found_at_every_offset() {
        for offset in 0..70 {
            let mut bytes: Vec<u8> = (0..offset).map(|at| b"TGLG."[at % 5]).collect();
            for number in [3, 4] {
                let header = Header { number, synced: 1, bytes: 0, count: 0, previous: 0, body: 0, after_loss: false };
                header.write(9, &mut bytes);
            }
            bytes.extend_from_slice(b"TGLGTGL");
            assert_eq!(headers(&bytes, 9).map(|header| header.number).collect::<Vec<_>>(), [3, 4], "{offset}");
        }
    }
}
