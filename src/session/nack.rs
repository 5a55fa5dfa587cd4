//! NACK: messages a device could not process now, to be delivered again later.
//!
//! ```text
//!  NACK ──► waiting ──due──► reading ──found──► delivered ──NACK──► waiting (longer) ...
//!                               └──gone──► forgotten
//! ```
//!
//! Only (conversation, seq) is kept: the message is read back from the store when it is due. The n-th wait is the longer of what the
//! device asked for and 1 s x 2^(n-1), give or take a fifth, at most 60 s; after the eighth the message stays in history only. A cursor
//! at or above its seq ends it.

use crate::mail::Nack;
use crate::wire::message::Text;

/// The messages of one session that are to come again, at most [`PENDING_MAX`].
#[derive(Debug, Default)]
pub struct Nacks(Vec<Nack>);

/// Where one stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// It comes again at this time, monotonic milliseconds.
    At(u64),
    /// It waits already, or came back too often: nothing changes.
    Ignored,
    /// [`PENDING_MAX`] wait: ERROR 4004.
    Full,
}

impl Nacks {
    /// The device asks for a message again. `dice` decides the jitter.
    pub fn ask(&mut self, conv: &str, seq: u64, delay_ms: u32, now_ms: u64, dice: u64) -> Asked {
        if let Some(nack) = self.0.iter_mut().find(|nack| nack.seq == seq && &*nack.conv == conv) {
            if nack.due_ms.is_some() || nack.tries == TRIES_MAX {
                return Asked::Ignored;
            }
            nack.tries = nack.tries.saturating_add(1);
            let due_ms = now_ms.saturating_add(wait_ms(nack.tries, delay_ms, dice));
            nack.due_ms = Some(due_ms);
            return Asked::At(due_ms);
        }
        if self.0.len() == PENDING_MAX {
            // What was delivered again and not asked for since is most likely done; its place is worth more.
            let Some(done) = self.0.iter().position(|nack| nack.due_ms.is_none()) else { return Asked::Full };
            self.0.remove(done);
        }
        let due_ms = now_ms.saturating_add(wait_ms(1, delay_ms, dice));
        self.0.push(Nack { conv: Text::copy_from(conv), seq, tries: 1, due_ms: Some(due_ms), reading: false });
        Asked::At(due_ms)
    }

    /// The next message to read back, if one is due and none is being read: it counts as being read from now on.
    pub fn next_due(&mut self, now_ms: u64) -> Option<(Text, u64)> {
        if self.is_any_read() {
            return None;
        }
        let due = self.0.iter_mut().filter(|nack| nack.due_ms.is_some_and(|due| due <= now_ms));
        let nack = due.min_by_key(|nack| nack.due_ms)?;
        nack.reading = true;
        Some((nack.conv.clone(), nack.seq))
    }

    /// Whether the message that was read back is still wanted.
    #[must_use]
    pub fn is_reading(&self, conv: &str, seq: u64) -> bool {
        self.0.iter().any(|nack| nack.reading && nack.seq == seq && &*nack.conv == conv)
    }

    /// Whether a message is being read back.
    #[must_use]
    pub fn is_any_read(&self) -> bool {
        self.0.iter().any(|nack| nack.reading)
    }

    /// The message being read was delivered again: it is remembered, so that the next NACK waits longer.
    pub fn delivered(&mut self) {
        for nack in self.0.iter_mut().filter(|nack| nack.reading) {
            (nack.reading, nack.due_ms) = (false, None);
        }
    }

    /// The message being read cannot be had or delivered now: again at `due_ms`.
    pub fn postpone(&mut self, due_ms: u64) {
        for nack in self.0.iter_mut().filter(|nack| nack.reading) {
            (nack.reading, nack.due_ms) = (false, Some(due_ms));
        }
    }

    /// The message being read does not exist, or not for this user.
    pub fn forget(&mut self) {
        self.0.retain(|nack| !nack.reading);
    }

    /// The device holds a conversation up to `seq`.
    pub fn reach(&mut self, conv: &str, seq: u64) {
        self.0.retain(|nack| nack.seq > seq || &*nack.conv != conv);
    }

    /// When the earliest is due.
    #[must_use]
    pub fn earliest_ms(&self) -> Option<u64> {
        self.0.iter().filter_map(|nack| nack.due_ms).min()
    }

    /// Whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As they travel to another core: what was being read there is due here.
    #[must_use]
    pub fn into_mail(mut self) -> Vec<Nack> {
        self.0.iter_mut().for_each(|nack| nack.reading = false);
        self.0
    }
}

impl From<Vec<Nack>> for Nacks {
    fn from(nacks: Vec<Nack>) -> Self {
        Self(nacks)
    }
}

/// The wait before the n-th redelivery.
fn wait_ms(tries: u8, delay_ms: u32, dice: u64) -> u64 {
    let doubled_ms = STEP_MS.saturating_mul(2_u64.saturating_pow(u32::from(tries).saturating_sub(1)));
    let base_ms = u64::from(delay_ms).max(doubled_ms).min(WAIT_MS_MAX);
    // Between 4/5 and 6/5, in 1024 steps.
    let parts = (dice % 1024).saturating_mul(2).saturating_add(4 * 1024);
    (base_ms.saturating_mul(parts) / (5 * 1024)).min(WAIT_MS_MAX)
}

/// Messages of one session that wait to be delivered again, or were and may be asked for once more. Full: ERROR 4004.
pub const PENDING_MAX: usize = 64;
/// Redeliveries of one message; then it stays in history only.
const TRIES_MAX: u8 = 8;
const STEP_MS: u64 = 1_000;
const WAIT_MS_MAX: u64 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// Each wait doubles, obeys the delay asked for, stays within a fifth of it and below a minute; after eight nothing comes any more.
    #[test]
    fn waits_double_up_to_a_minute_and_end_after_eight() {
        for (delay_ms, bases) in [
            (0, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]),
            (5_000, [5_000, 5_000, 5_000, 8_000, 16_000, 32_000, 60_000, 60_000]),
            (u32::MAX, [60_000; 8]),
        ] {
            for dice in [0, 511, 1023, u64::MAX] {
                let mut nacks = Nacks::default();
                let mut now = 1_000_000;
                for base in bases {
                    let Asked::At(due) = nacks.ask("g:a", 7, delay_ms, now, dice) else { panic!("expected a wait") };
                    assert!((base * 4 / 5..=(base * 6 / 5).min(60_000)).contains(&(due - now)), "{base} {}", due - now);
                    assert_eq!(nacks.ask("g:a", 7, delay_ms, now, dice), Asked::Ignored);
                    assert_eq!(nacks.next_due(due - 1), None);
                    assert_eq!(nacks.next_due(due), Some((Text::from("g:a"), 7)));
                    assert_eq!(nacks.next_due(due), None, "one at a time");
                    nacks.delivered();
                    now = due;
                }
                assert_eq!(nacks.ask("g:a", 7, delay_ms, now, dice), Asked::Ignored);
                assert_eq!(nacks.earliest_ms(), None);
            }
        }
    }

    /// Sixty-four may wait; one that was delivered gives up its place to a new one; a cursor ends those up to it.
    #[test]
    fn waiting_messages_are_bounded_and_a_cursor_ends_them() {
        let mut nacks = Nacks::default();
        for seq in 1..=PENDING_MAX as u64 {
            assert!(matches!(nacks.ask("g:a", seq, 0, 0, 0), Asked::At(_)));
        }
        assert_eq!(nacks.ask("g:b", 1, 0, 0, 0), Asked::Full);
        assert_eq!(nacks.next_due(800), Some((Text::from("g:a"), 1)));
        nacks.delivered();
        assert!(matches!(nacks.ask("g:b", 1, 0, 0, 0), Asked::At(_)));
        assert_eq!(nacks.ask("g:b", 2, 0, 0, 0), Asked::Full);
        nacks.reach("g:a", 63);
        assert_eq!(nacks.0.iter().map(|nack| nack.seq).collect::<Vec<_>>(), [64, 1]);
        nacks.reach("g:a", 64);
        nacks.reach("g:b", 1);
        assert!(nacks.is_empty());
    }

    /// What cannot be delivered yet waits on without counting; what does not exist is forgotten.
    #[test]
    fn a_read_that_fails_is_put_off_or_forgotten() {
        let mut nacks = Nacks::default();
        nacks.ask("g:a", 1, 0, 0, 0);
        nacks.next_due(5_000);
        nacks.postpone(9_000);
        assert_eq!((nacks.next_due(8_999), nacks.earliest_ms()), (None, Some(9_000)));
        nacks.next_due(9_000);
        assert!(nacks.is_reading("g:a", 1) && !nacks.is_reading("g:a", 2));
        nacks.forget();
        assert!(nacks.is_empty());
    }
}
