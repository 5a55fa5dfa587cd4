//! UTF-8 judged as bytes arrive, across fragments and reads.                                       [simdutf8]
//!
//! A sequence cut by the end of a piece waits in at most three carried bytes. It fails with the first byte after which no
//! continuation could make it valid, not at the end of the message: a peer that sends text learns of its mistake at once.

/// The text can no longer become valid UTF-8.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Invalid;

/// Whether `bytes` as a whole is UTF-8.
#[must_use]
pub fn is_valid(bytes: &[u8]) -> bool {
    simdutf8::basic::from_utf8(bytes).is_ok()
}

/// Judges one text that comes in pieces.
#[derive(Clone, Copy, Default, Debug)]
pub struct Validator {
    /// The begun sequence: `carried[..len]` is a proper prefix of at least one valid sequence.
    carried: [u8; 3],
    len: u8,
}

impl Validator {
    /// Judges the next piece.
    ///
    /// # Errors
    /// [`Invalid`] as soon as no further byte could help. The validator is of no use afterwards.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), Invalid> {
        let rest = self.finish_carried(piece)?;
        let Err(error) = simdutf8::compat::from_utf8(rest) else { return Ok(()) };
        if error.error_len().is_some() {
            return Err(Invalid);
        }
        // The piece ends inside a sequence, so nothing was carried over from before.
        let begun = rest.get(error.valid_up_to()..).unwrap_or_default();
        self.carry(begun);
        Ok(())
    }

    /// Judges the end of the text and makes the validator ready for the next one.
    ///
    /// # Errors
    /// [`Invalid`] when the text ends inside a sequence.
    pub fn finish(&mut self) -> Result<(), Invalid> {
        let complete = self.len == 0;
        *self = Self::default();
        if complete { Ok(()) } else { Err(Invalid) }
    }

    /// Completes the carried sequence from the front of `piece` as far as it goes, and returns what follows it.
    fn finish_carried<'p>(&mut self, piece: &'p [u8]) -> Result<&'p [u8], Invalid> {
        let carried = usize::from(self.len);
        if carried == 0 {
            return Ok(piece);
        }
        let wanted = sequence_bytes(self.carried[0]).saturating_sub(carried);
        let (front, rest) = piece.split_at(wanted.min(piece.len()));
        let mut sequence = [0; 4];
        let arrived = self.carried.iter().take(carried).chain(front);
        sequence.iter_mut().zip(arrived).for_each(|(to, from)| *to = *from);
        let begun = sequence.get(..carried.saturating_add(front.len())).unwrap_or_default();
        match std::str::from_utf8(begun) {
            Ok(_) => self.len = 0,
            Err(error) if error.error_len().is_some() => return Err(Invalid),
            Err(_) => self.carry(begun),
        }
        Ok(rest)
    }

    /// Keeps the beginning of a sequence.
    fn carry(&mut self, begun: &[u8]) {
        assert!(begun.len() <= self.carried.len());
        self.carried.iter_mut().zip(begun).for_each(|(to, from)| *to = *from);
        self.len = match begun {
            [] => 0,
            [_] => 1,
            [_, _] => 2,
            _ => 3,
        };
    }
}

/// Length of the sequence that the lead byte of a begun sequence announces, 2 to 4.
fn sequence_bytes(lead: u8) -> usize {
    match lead {
        0xf0.. => 4,
        0xe0.. => 3,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Where the first byte stands after which nothing can help; `Err(())` at the end if the text stops inside a sequence.
    /// Asks the standard library about every prefix: slow and obvious.
    fn slow(bytes: &[u8]) -> (Option<usize>, bool) {
        let dead = (1..=bytes.len())
            .find(|&len| matches!(std::str::from_utf8(&bytes[..len]), Err(error) if error.error_len().is_some()));
        (dead, std::str::from_utf8(bytes).is_ok())
    }

    fn byte_by_byte(bytes: &[u8]) -> (Option<usize>, bool) {
        let mut validator = Validator::default();
        for (at, byte) in bytes.iter().enumerate() {
            if validator.push(std::slice::from_ref(byte)).is_err() {
                return (Some(at + 1), false);
            }
        }
        (None, validator.finish().is_ok())
    }

    /// All texts of up to two bytes, and all of three and four that begin with the lead bytes where the rules are narrow.
    #[test]
    fn every_short_text_is_judged_at_the_byte_that_spoils_it() {
        let interesting = [0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc2, 0xe0, 0xed, 0xf0, 0xf4, 0xf5, 0xff];
        for a in 0..=255 {
            for b in 0..=255 {
                assert_eq!(byte_by_byte(&[a, b]), slow(&[a, b]), "{a:02x} {b:02x}");
            }
        }
        for a in 0xc0..=255 {
            for b in interesting {
                for c in interesting {
                    for d in interesting {
                        assert_eq!(byte_by_byte(&[a, b, c, d]), slow(&[a, b, c, d]), "{a:02x} {b:02x} {c:02x} {d:02x}");
                    }
                }
            }
        }
    }

    /// The suite's case 6.4: a text that leaves Unicode in its third fragment is refused there, before the rest has come.
    #[test]
    fn a_sequence_beyond_unicode_is_refused_at_its_second_byte() {
        let mut validator = Validator::default();
        assert_eq!(validator.push("\u{3ba}\u{1f79}\u{3c3}".as_bytes()), Ok(()));
        assert_eq!(validator.push(&[0xf4]), Ok(()));
        assert_eq!(validator.push(&[0x90]), Err(Invalid));
    }

    proptest! {
        /// Pieces of any size are judged like single bytes, and a good text is good in any cut.
        #[test]
        fn any_cut_gives_the_same_judgement(text in "\\PC{0,60}", spoil in any::<Option<(usize, u8)>>(), cuts in prop::collection::vec(0_usize..9, 0..60)) {
            let mut bytes = text.into_bytes();
            if let Some((at, byte)) = spoil.filter(|_| !bytes.is_empty()) {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            let mut validator = Validator::default();
            let mut rest = &bytes[..];
            let mut good = true;
            for cut in cuts {
                let (piece, later) = rest.split_at(cut.min(rest.len()));
                rest = later;
                good = good && validator.push(piece).is_ok();
            }
            good = good && validator.push(rest).is_ok() && validator.finish().is_ok();
            prop_assert_eq!(good, slow(&bytes).1);
            prop_assert_eq!(good, is_valid(&bytes));
        }
    }
}
