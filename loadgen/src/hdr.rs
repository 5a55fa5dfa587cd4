//! Latencies by interval as a HdrHistogram log, which the viewers of that library read: format 1.3, histograms of encoding V2, compressed
//! in name only, since zlib allows blocks that are stored as they are (RFC 1950, RFC 1951 3.2.4).           [base64, hdrhistogram]

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;

use crate::stats::{Stats, histogram};

/// A log that is being written.
#[derive(Debug)]
pub struct Log {
    out: BufWriter<File>,
    /// What is in the log already, of the stage that goes on.
    known: [Histogram<u64>; TAGS.len()],
    stage: u64,
    at_s: f64,
}

impl Log {
    /// Makes the file; times in it count from `unix_s`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(path: &Path, unix_s: u64) -> io::Result<Self> {
        let mut out = BufWriter::new(File::create(path)?);
        writeln!(out, "#[Logged by loadgen; values in nanoseconds, maxima in milliseconds]")?;
        writeln!(out, "#[Histogram log format version 1.3]")?;
        writeln!(out, "#[StartTime: {unix_s}.000 (seconds since epoch)]")?;
        writeln!(out, "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"")?;
        Ok(Self { out, known: [histogram(), histogram(), histogram()], stage: 0, at_s: 0.0 })
    }

    /// Writes what was measured since the last call; `stats` count from the beginning of `stage`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn follow(&mut self, at_s: f64, stage: u64, stats: &Stats) -> io::Result<()> {
        if self.stage != stage {
            self.known.iter_mut().for_each(Histogram::reset);
            self.stage = stage;
        }
        let from_s = std::mem::replace(&mut self.at_s, at_s);
        for (number, now) in [&stats.sent.all, &stats.deliver.all, &stats.pacing.all].into_iter().enumerate() {
            let mut fresh = now.clone();
            fresh.subtract(&self.known[number]).map_err(|error| io::Error::other(format!("{error:?}")))?;
            self.known[number].clone_from(now);
            self.interval(TAGS[number], from_s, at_s, &fresh)?;
        }
        Ok(())
    }

    /// Writes one interval, if anything was measured in it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn interval(&mut self, tag: &str, from_s: f64, until_s: f64, values: &Histogram<u64>) -> io::Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        let length_s = until_s - from_s;
        let max_ms = values.max() as f64 / 1e6;
        writeln!(self.out, "Tag={tag},{from_s:.3},{length_s:.3},{max_ms:.3},{}", STANDARD.encode(compressed(&encoded(values))))
    }

    /// Everything is in the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Encoding V2: a head, and the counts in the order of their buckets, in a run of zeros their number, negative.
fn encoded(values: &Histogram<u64>) -> Vec<u8> {
    let mut counts = Vec::new();
    let mut zeros = 0_i64;
    for bucket in values.iter_all() {
        match i64::try_from(bucket.count_at_value()).unwrap_or(i64::MAX) {
            0 => zeros += 1,
            count => {
                if zeros > 0 {
                    zig_zag(-zeros, &mut counts);
                    zeros = 0;
                }
                zig_zag(count, &mut counts);
            }
        }
    }
    let mut out = Vec::with_capacity(HEAD_BYTES + counts.len());
    out.extend_from_slice(&COOKIE_V2.to_be_bytes());
    out.extend_from_slice(&length(&counts));
    out.extend_from_slice(&0_u32.to_be_bytes());
    out.extend_from_slice(&u32::from(values.sigfig()).to_be_bytes());
    out.extend_from_slice(&values.low().to_be_bytes());
    out.extend_from_slice(&values.high().to_be_bytes());
    out.extend_from_slice(&1_f64.to_be_bytes());
    out.extend_from_slice(&counts);
    out
}

/// The form of a log: a cookie, a length, and zlib with stored blocks.
fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut zlib = ZLIB_HEAD.to_vec();
    let last = bytes.len().div_ceil(BLOCK_BYTES).max(1) - 1;
    for (number, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
        let length = u16::try_from(block.len()).expect("a block");
        zlib.push(u8::from(number == last));
        zlib.extend_from_slice(&length.to_le_bytes());
        zlib.extend_from_slice(&(!length).to_le_bytes());
        zlib.extend_from_slice(block);
    }
    zlib.extend_from_slice(&adler32(bytes).to_be_bytes());
    [&COOKIE_COMPRESSED.to_be_bytes()[..], &length(&zlib), &zlib].concat()
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("far below 4 GiB").to_be_bytes()
}

/// Seven bits a byte, least first, sign in the lowest bit; the ninth byte has eight (`ZigZagEncoding` of HdrHistogram).
fn zig_zag(value: i64, out: &mut Vec<u8>) {
    let mut left = u64::from_ne_bytes(((value << 1) ^ (value >> 63)).to_ne_bytes());
    for _ in 0..8 {
        let [low, ..] = left.to_le_bytes();
        if left < 0x80 {
            return out.push(low);
        }
        out.push(low | 0x80);
        left >>= 7;
    }
    let [low, ..] = left.to_le_bytes();
    out.push(low);
}

/// RFC 1950 8.2.
fn adler32(bytes: &[u8]) -> u32 {
    let (low, high) = bytes.iter().fold((1_u32, 0_u32), |(low, high), &byte| {
        let low = (low + u32::from(byte)) % 65_521;
        (low, (high + low) % 65_521)
    });
    (high << 16) | low
}

const TAGS: [&str; 3] = ["sent", "deliver", "pacing"];
const COOKIE_V2: u32 = 0x1c84_9313;
const COOKIE_COMPRESSED: u32 = 0x1c84_9314;
const HEAD_BYTES: usize = 40;
/// Deflate with a window of 32 KiB, no preset dictionary.
const ZLIB_HEAD: [u8; 2] = [0x78, 0x01];
const BLOCK_BYTES: usize = 65_535;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Window;

    /// The example of RFC 1950, and numbers at the borders of their bytes.
    #[test]
    fn parts_are_as_their_documents_say() {
        assert_eq!(adler32(b"Wikipedia"), 0x11e6_0398);
        let bytes = |value| {
            let mut out = Vec::new();
            zig_zag(value, &mut out);
            out
        };
        assert_eq!((bytes(0), bytes(-1), bytes(63), bytes(64)), (vec![0], vec![1], vec![126], vec![128, 1]));
        assert_eq!(bytes(i64::MIN), [0xff; 9]);
    }

    /// A histogram of two values: a run of empty buckets before each, and the length of the whole.
    #[test]
    fn a_histogram_is_a_head_and_runs() {
        let mut values = histogram();
        values.record_n(1_000, 3).expect("in range");
        values.record(600_000_000_000).expect("in range");
        let bytes = encoded(&values);
        assert_eq!(bytes[..4], COOKIE_V2.to_be_bytes());
        assert_eq!(u32::from_be_bytes(bytes[4..8].try_into().unwrap()) as usize, bytes.len() - HEAD_BYTES);
        assert_eq!(bytes[16..24], 1_000_u64.to_be_bytes());
        // 1,000 ns are in the second bucket of 512: one empty, three, a long run, one.
        assert_eq!(bytes[HEAD_BYTES..HEAD_BYTES + 2], [1, 6]);
        assert_eq!(bytes.last(), Some(&2));
        let whole = compressed(&bytes);
        assert_eq!((&whole[..4], whole.len()), (&COOKIE_COMPRESSED.to_be_bytes()[..], bytes.len() + 8 + 2 + 5 + 4));
    }

    /// Each interval has what is new in it, and a new stage begins from nothing.
    #[test]
    fn intervals_are_differences() {
        let path = std::env::temp_dir().join(format!("loadgen-hdr-{}", std::process::id()));
        let mut log = Log::create(&path, 7).unwrap();
        let mut stats = Stats { window: Window::new(0, u64::MAX), ..Stats::default() };
        stats.acknowledged(0, 2_000_000);
        log.follow(1.0, 1, &stats).unwrap();
        log.follow(2.0, 1, &stats).unwrap();
        stats.begin(Window::new(0, u64::MAX));
        stats.acknowledged(0, 5_000_000);
        log.follow(3.5, 2, &stats).unwrap();
        log.finish().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("Tag=")).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with("Tag=sent,0.000,1.000,2.0") && lines[1].starts_with("Tag=sent,2.000,1.500,5.0"), "{text}");
    }
}
