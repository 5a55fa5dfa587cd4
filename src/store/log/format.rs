//! Groups, segment names and the watermark as bytes. The picture stands at the head of `store/log.rs`.
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

use crc32c::{crc32c, crc32c_append};

/// What stands before the body of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub number: u64,
    pub synced: u64,
    pub bytes: u32,
    pub count: u32,
    pub previous: u32,
    pub body: u32,
    /// The first group behind groups that were given up.
    pub after_loss: bool,
}

impl Header {
    /// Reads a header whose own checksum holds under `salt`; `None` for anything else.
    pub fn read(bytes: &[u8], salt: u32) -> Option<Self> {
        let (fields, crc) = bytes.get(..HEADER_BYTES)?.split_last_chunk()?;
        let u32_at = |at: usize| fields.get(at..)?.first_chunk().map(|field| u32::from_le_bytes(*field));
        let u64_at = |at: usize| fields.get(at..)?.first_chunk().map(|field| u64::from_le_bytes(*field));
        let version = u32_at(4)?;
        let is_ours = u32_at(0)? == MAGIC && version & !AFTER_LOSS == VERSION;
        let crc = u32::from_le_bytes(*crc);
        if !is_ours || crc != crc32c_append(salt, fields) {
            return None;
        }
        let (number, synced) = (u64_at(8)?, u64_at(16)?);
        if number > NUMBER_MAX || synced > NUMBER_MAX {
            return None;
        }
        Some(Self {
            number,
            synced,
            bytes: u32_at(24)?,
            count: u32_at(28)?,
            previous: u32_at(32)?,
            body: u32_at(36)?,
            after_loss: version & AFTER_LOSS != 0,
        })
    }

    /// Bytes of the header and of what stands behind it.
    pub fn group_bytes(&self) -> u64 {
        u64::from(self.bytes).saturating_add(HEADER_BYTES as u64)
    }

    /// Appends the header; returns its checksum.
    #[expect(clippy::arithmetic_side_effects, clippy::indexing_slicing, reason = "what has just been appended is read back")]
    pub fn write(&self, salt: u32, out: &mut Vec<u8>) -> u32 {
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
        let crc = crc32c_append(salt, &out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
        assert!(out.len() - start == HEADER_BYTES);
        crc
    }
}

/// The checksum that stands at the end of the header of a group, and the body behind it.
pub(super) fn crc_and_body(group: &[u8]) -> Option<(u32, &[u8])> {
    let (header, body) = group.split_at_checked(HEADER_BYTES)?;
    Some((u32::from_le_bytes(*header.last_chunk()?), body))
}

/// Name of the segment that begins with group `first` and whose headers are checked under `salt`.
pub(super) fn segment_name(first: u64, salt: u32) -> String {
    format!("{first:020}-{salt:08x}.log")
}

/// Reads a segment's name; `None` for the name of anything else.
pub(super) fn parse_segment_name(name: &str) -> Option<(u64, u32)> {
    let (first, salt) = name.strip_suffix(".log")?.split_once('-')?;
    let parsed = (first.parse().ok()?, u32::from_str_radix(salt, 16).ok()?);
    ((1..=NUMBER_MAX).contains(&parsed.0) && segment_name(parsed.0, parsed.1) == name).then_some(parsed)
}

/// The contents of the watermark file.
pub(super) fn encode_watermark(number: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&crc32c(&number.to_le_bytes()).to_le_bytes());
    bytes
}

/// The number of the watermark file; 0 for a damaged one, which says less, but never something wrong.
pub(super) fn decode_watermark(bytes: &[u8]) -> u64 {
    match bytes.split_first_chunk::<8>() {
        Some((number, crc)) if crc == crc32c(number).to_le_bytes() => {
            Some(u64::from_le_bytes(*number)).filter(|number| *number <= NUMBER_MAX).unwrap_or(0)
        }
        _ => 0,
    }
}

/// No log has so many groups: what says a greater number is damaged, and whoever counts on from one does not overflow.
const NUMBER_MAX: u64 = 1 << 62;
/// "TGLG".
pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"TGLG");
/// Bytes before the body of a group.
pub(super) const HEADER_BYTES: usize = 44;
/// What a file system writes at least, and where a group may begin that does not follow the one before it at once.
pub(super) const BLOCK_BYTES: u64 = 4096;
/// Name of the watermark file.
pub(super) const WATERMARK: &str = "watermark";
const VERSION: u32 = 1;
/// Set in the version of the first group after groups that were given up.
const AFTER_LOSS: u32 = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// A header and a watermark, written down once: they are on disk, so they may never move.
    #[test]
    fn layout_is_frozen() {
        let header = Header { number: 1, synced: 2, bytes: 3, count: 4, previous: 5, body: 6, after_loss: true };
        let mut bytes = Vec::new();
        let crc = header.write(7, &mut bytes);
        assert_eq!(crc_and_body(&bytes), Some((crc, &[][..])));
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            hex(&bytes[..40]),
            "54474c470100010001000000000000000200000000000000030000000400000005000000".to_owned() + "06000000"
        );
        assert_eq!(Header::read(&bytes, 7), Some(header));
        assert_eq!(Header::read(&bytes, 8), None);
        assert_eq!(Header::read(&bytes[..43], 7), None);
        assert_eq!(segment_name(12, 0xAB), "00000000000000000012-000000ab.log");
        assert_eq!(parse_segment_name("00000000000000000012-000000ab.log"), Some((12, 0xAB)));
        for wrong in [
            "12-ab.log",
            "00000000000000000000-000000ab.log",
            "spare.new",
            "watermark",
            "00000000000000000012.log",
            "+0000000000000000012-000000ab.log",
        ] {
            assert_eq!(parse_segment_name(wrong), None);
        }
        assert_eq!(decode_watermark(&encode_watermark(9)), 9);
        assert_eq!(decode_watermark(&encode_watermark(9)[..11]), 0);
    }
}
