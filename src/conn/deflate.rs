//! Compressed messages (RFC 7692), one after the other for all connections of a core.                    [flate2, miniz_oxide]
//!
//! A compressed message has RSV1 set in its first frame. Its payload, all fragments together, is a DEFLATE stream (RFC 1951) that ends
//! with an empty stored block, of which the last four bytes do not travel:
//!
//! ```text
//!  [ blocks ... ][ 0 .. | 00 00 ff ff ]
//!    travels       travels   left away, and put back here
//! ```
//!
//! What a stream costs is not in its length alone: each block of it begins with tables to be built, which takes microseconds, and may be
//! ten bits long and hold nothing. So blocks are counted, and those of a message have to be worth it ([`BLOCK_BYTES`]).

use std::fmt;

use flate2::{Compress, Compression, FlushCompress, Status};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

/// Why a compressed message is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It would be longer than the limit; what was inflated until then is dropped.
    TooLarge,
    /// It is no DEFLATE stream, or one cut into more blocks than are read for what they hold.
    Invalid,
}

/// Inflates the messages of one core, one after the other. Holds some 11 KiB from the first one on.
///
/// A message is its own window: what it repeats is looked up in what was inflated of it. So nothing of the message before can be
/// referred to, and nothing before the beginning.
#[derive(Default)]
pub struct Inflater {
    stream: DecompressorOxide,
}

impl fmt::Debug for Inflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflater").finish_non_exhaustive()
    }
}

impl Inflater {
    /// Appends what `payload` says to `out`, which is empty and afterwards never longer than `bytes_max`. Never holds more than a
    /// message of `bytes_max` and a step. Cost: that of `bytes_max` bytes, and up to 4 microseconds for each block, of which
    /// [`BLOCKS_FREE`] are read and one more for every [`BLOCK_BYTES`] inflated; no more is looked at then.
    ///
    /// # Errors
    /// [`Fault`]; what is in `out` then means nothing.
    pub fn inflate(&mut self, payload: &[u8], bytes_max: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.stream.init();
        // The stream that is read now begins here.
        let mut begin = 0;
        let mut len = 0;
        let mut blocks = 0;
        for part in [payload, TAIL] {
            let mut rest = part;
            loop {
                if len > bytes_max {
                    return Err(Fault::TooLarge);
                }
                if len == out.len() {
                    if len == out.capacity() {
                        // One byte more than is allowed tells a message that is too large.
                        out.reserve_exact(len.max(STEP_BYTES).min(bytes_max + 1 - len));
                    }
                    // No room beyond that, so that the verdict does not depend on what the buffer held before.
                    out.resize(out.capacity().min(bytes_max + 1), 0);
                }
                let window = out.get_mut(begin..).ok_or(Fault::Invalid)?;
                let (status, taken, written) = decompress(&mut self.stream, rest, window, len - begin, FLAGS);
                len += written;
                rest = rest.get(taken..).ok_or(Fault::Invalid)?;
                match status {
                    TINFLStatus::HasMoreOutput => {}
                    TINFLStatus::NeedsMoreInput => break,
                    TINFLStatus::BlockBoundary | TINFLStatus::Done => {
                        blocks += 1;
                        if blocks > BLOCKS_FREE + len / BLOCK_BYTES {
                            return Err(Fault::Invalid);
                        }
                        // A final block may stand before the end; what follows is a stream of its own (RFC 7692 7.2.3.4).
                        if status == TINFLStatus::Done {
                            self.stream.init();
                            begin = len;
                        }
                    }
                    _ => return Err(Fault::Invalid),
                }
            }
        }
        out.truncate(len);
        if len > bytes_max { Err(Fault::TooLarge) } else { Ok(()) }
    }
}

/// Compresses the messages of one core, one after the other. Holds some 300 KiB from the first one on.
#[derive(Debug)]
pub struct Deflater {
    stream: Compress,
    /// The message as it was.
    plain: Vec<u8>,
    /// The message as it travels.
    small: Vec<u8>,
}

impl Default for Deflater {
    fn default() -> Self {
        Self { stream: Compress::new(Compression::fast(), false), plain: Vec::new(), small: Vec::new() }
    }
}

impl Deflater {
    /// What `write` appends, and whether it is compressed: it is not when it is short or would not become shorter.
    pub fn message(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> (&[u8], bool) {
        self.plain.clear();
        write(&mut self.plain);
        let is_small = self.plain.len() >= DEFLATED_BYTES_MIN && self.deflate().is_some();
        (if is_small { &self.small } else { &self.plain }, is_small)
    }

    fn deflate(&mut self) -> Option<()> {
        self.stream.reset();
        self.small.clear();
        // With its tail it must fit into less than it was.
        self.small.reserve(self.plain.len());
        let status = self.stream.compress_vec(&self.plain, &mut self.small, FlushCompress::Sync).ok()?;
        let is_whole = self.stream.total_in() == self.plain.len() as u64 && self.small.len() < self.small.capacity();
        if status != Status::Ok || !is_whole {
            return None;
        }
        let len = self.small.strip_suffix(TAIL)?.len();
        self.small.truncate(len);
        (len < self.plain.len()).then_some(())
    }

    /// Gives memory of an unusually long message back.
    pub fn trim(&mut self) {
        self.plain.shrink_to(KEPT_BYTES_MAX);
        self.small.shrink_to(KEPT_BYTES_MAX);
    }
}

/// Blocks of a message that are read whatever they hold: a compressor needs two, one for the text and one to flush it.
pub const BLOCKS_FREE: usize = 16;
/// One more is read for every so many bytes that the message has by then. Compressors begin a block when their buffer of symbols is full: the
/// smallest one of zlib (`memLevel` 1) has room for 127, usual ones for 16,383, and a symbol is a byte or more (RFC 1951 3.2.5).
pub const BLOCK_BYTES: usize = 120;

/// What a sender leaves away (RFC 7692 7.2.1).
const TAIL: &[u8] = &[0x00, 0x00, 0xff, 0xff];
/// More of the message may come, it is nothing but blocks, each is told, and what is inflated stays where it is.
const FLAGS: u32 = inflate_flags::TINFL_FLAG_HAS_MORE_INPUT
    | inflate_flags::TINFL_FLAG_IGNORE_ADLER32
    | inflate_flags::TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY
    | inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
/// First room for an inflated message, and least growth.
const STEP_BYTES: usize = 4 * 1024;
/// Shorter messages do not become shorter by enough to be worth it.
const DEFLATED_BYTES_MIN: usize = 512;
const KEPT_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn inflate(payload: &[u8], bytes_max: usize) -> Result<Vec<u8>, Fault> {
        let mut out = Vec::new();
        Inflater::default().inflate(payload, bytes_max, &mut out).map(|()| out)
    }

    /// Bits, in the order in which they are read, as bytes (RFC 1951 3.1.1).
    fn packed(bits: &str) -> Vec<u8> {
        let bits: Vec<u8> = bits.bytes().filter(|bit| *bit != b' ').map(|bit| bit - b'0').collect();
        bits.chunks(8).map(|byte| byte.iter().rev().fold(0_u8, |value, bit| (value << 1) | bit)).collect()
    }

    /// Blocks that hold nothing are read a few, of every kind, and more than that are refused, without a look at what comes behind.
    #[test]
    fn a_message_of_nothing_but_blocks_is_refused() {
        // 138 and 118 codes of no length, then one of a bit for the end and one for a distance (RFC 1951 3.2.7).
        let unused = "000".repeat(14);
        let dynamic = format!("0 01 00000 00000 0111 000000 100 {unused} 100 1 1111111 1 1101011 0 0 0");
        for (kind, block) in [
            ("stored", "0 00 00000 0000000000000000 1111111111111111"),
            ("fixed", "0 10 0000000"),
            ("dynamic", dynamic.as_str()),
            ("final", "1 10 0000000 000000"),
        ] {
            let of = |count: usize| packed(&block.repeat(count));
            // What is put back behind it may be a block more.
            assert_eq!(inflate(&of(BLOCKS_FREE - 1), 100), Ok(Vec::new()), "{kind}");
            for count in [BLOCKS_FREE + 1, 10_000] {
                assert_eq!(inflate(&of(count), 100), Err(Fault::Invalid), "{count} {kind}");
            }
        }
        let abc = &[0x4a, 0x4c, 0x4a, 0x06, 0x00][..];
        for (count, fault) in [(BLOCKS_FREE - 4, Fault::TooLarge), (BLOCKS_FREE + 4, Fault::Invalid)] {
            // So many come to whole bytes.
            let payload = [packed(&"0 10 0000000".repeat(count)).as_slice(), abc].concat();
            assert_eq!(inflate(&payload, 1), Err(fault), "{count}");
        }
    }

    /// Blocks as short as those of the thriftiest compressor are read, a message of them as long as one may be; shorter ones are not.
    #[test]
    fn blocks_of_the_thriftiest_compressor_are_read() {
        // Fixed codes: so many letters, and the end (RFC 1951 3.2.6).
        let of = |letters: usize| packed(&format!("0 10 {} 0000000", "10010001".repeat(letters)).repeat(1_000));
        assert!(inflate(&of(127), 128 * 1024) == Ok(vec![b'a'; 127_000]));
        assert_eq!(inflate(&of(64), 128 * 1024), Err(Fault::Invalid));
    }

    /// The examples of RFC 7692 7.2.3: one block, two blocks, without compression, with a final block, empty.
    #[test]
    fn examples_of_the_rfc_are_read() {
        for payload in [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
        ] {
            assert_eq!(inflate(payload, 5).as_deref(), Ok(&b"Hello"[..]), "{payload:x?}");
            assert_eq!(inflate(payload, 4), Err(Fault::TooLarge), "{payload:x?}");
        }
        assert_eq!(inflate(&[0x00], 0), Ok(Vec::new()));
        for broken in [&[0xff][..], b"not a stream", &[0x07, 0x00]] {
            assert_eq!(inflate(broken, 100), Err(Fault::Invalid), "{broken:x?}");
        }
    }

    /// A copy may reach back to the first byte of its stream and not further (RFC 1951 3.2.3): not to the message before, and not across
    /// a final block.
    #[test]
    fn nothing_before_the_beginning_is_repeated() {
        // A block each, with fixed codes: "abc", and three bytes from three back.
        let (abc, again) = (&[0x4a, 0x4c, 0x4a, 0x06, 0x00][..], &[0x02, 0x22, 0x00, 0x00][..]);
        let final_abc = &[0x4b, 0x4c, 0x4a, 0x06, 0x00][..];
        let mut inflater = Inflater::default();
        let mut inflate = |payload: &[u8]| {
            let mut out = Vec::new();
            inflater.inflate(payload, 100, &mut out).map(|()| out)
        };
        assert_eq!(inflate(&[abc, TAIL, again].concat()).as_deref(), Ok(&b"abcabc"[..]));
        assert_eq!(inflate(again), Err(Fault::Invalid));
        assert_eq!(inflate(&[final_abc, again].concat()), Err(Fault::Invalid));
        assert_eq!(inflate(abc).as_deref(), Ok(&b"abc"[..]));
    }

    /// What is too long and then no stream any more is too long, whatever room the buffer has.
    #[test]
    fn the_limit_comes_before_what_lies_beyond_it() {
        // "abc" and then no block: type 3 is reserved (RFC 1951 3.2.3).
        let payload = [&[0x4a, 0x4c, 0x4a, 0x06, 0x00][..], TAIL, &[0x06]].concat();
        for (bytes_max, fault) in [(1, Fault::TooLarge), (3, Fault::Invalid)] {
            for mut out in [Vec::new(), Vec::with_capacity(10_000)] {
                assert_eq!(Inflater::default().inflate(&payload, bytes_max, &mut out), Err(fault), "{bytes_max}");
            }
        }
    }

    /// A bomb is stopped at the limit: 64 MiB of zeros in 64 KiB never take more than the limit and a byte.
    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let mut bomb = Deflater { stream: Compress::new(Compression::best(), false), ..Deflater::default() };
        let (payload, is_small) = bomb.message(|out| out.resize(64 << 20, 0));
        assert!(is_small && payload.len() < 70_000);
        let mut out = Vec::new();
        assert_eq!(Inflater::default().inflate(payload, 100_000, &mut out), Err(Fault::TooLarge));
        assert!(out.capacity() <= 110_000, "{}", out.capacity());
    }

    /// Noise of every entropy, in sizes from a KiB to 128, comes back: what hardly becomes shorter fills every buffer to its end.
    #[test]
    fn noise_comes_back() {
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        let mut state = 1_u32;
        for (size, values) in (10..=17).flat_map(|power| [1_u32, 3, 16, 100, 200, 256].map(|values| (1_usize << power, values))) {
            let mut byte = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                u8::try_from((state >> 16) % values).expect("at most 255")
            };
            let plain: Vec<u8> = (0..size).map(|_| byte()).collect();
            let (payload, is_small) = deflater.message(|out| out.extend_from_slice(&plain));
            assert!(is_small || (payload == plain && values > 100), "{values} values, {size} bytes");
            if is_small {
                let mut out = Vec::new();
                assert_eq!(inflater.inflate(payload, size, &mut out), Ok(()));
                assert!(out == plain, "{values} values, {size} bytes");
            }
        }
    }

    proptest! {
        /// What we compress comes back, whatever came before it; and what is short or random travels as it is.
        #[test]
        fn messages_come_back(words in prop::collection::vec(("[a-d]{0,6}", 0usize..400), 1..5)) {
            let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
            for (word, times) in words {
                let plain = word.repeat(times).into_bytes();
                let (payload, is_small) = deflater.message(|out| out.extend_from_slice(&plain));
                prop_assert!(payload.len() <= plain.len());
                if !is_small {
                    prop_assert_eq!(payload, &plain[..]);
                    continue;
                }
                let mut out = Vec::new();
                prop_assert_eq!(inflater.inflate(payload, plain.len(), &mut out), Ok(()));
                prop_assert_eq!(&out, &plain);
                out.clear();
                prop_assert_eq!(inflater.inflate(payload, plain.len() - 1, &mut out), Err(Fault::TooLarge));
            }
        }

        /// Any bytes are a message or a fault, within the limit and in bounded steps.
        #[test]
        fn any_bytes_are_judged(payload in prop::collection::vec(any::<u8>(), 0..300), bytes_max in 0usize..10_000) {
            let mut out = Vec::new();
            if Inflater::default().inflate(&payload, bytes_max, &mut out).is_ok() {
                prop_assert!(out.len() <= bytes_max);
            }
            prop_assert!(out.capacity() <= bytes_max.max(STEP_BYTES) + STEP_BYTES);
        }
    }
}
