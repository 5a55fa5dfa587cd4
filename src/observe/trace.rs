//! Messages that are followed through the log: where each was received, committed and delivered, under one trace id.
//!
//! A message is followed if its sender asks for it (the sampled bit of its trace context), or if it is one in so many. Every thread decides
//! for itself and all decide alike: the choice hangs on the cmid alone. The trace id is the sender's, else the cmid. The pure parts note a
//! [`Step`], the thread around them writes it with [`log`]. Never a payload or a token.

use std::fmt;

use crate::ids::{Cmid, Mid};

/// Which messages are followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sampling {
    /// One message in so many; 0: none but those whose sender asks.
    pub every: u32,
}

impl Sampling {
    /// The trace id under which a message is followed, if it is. `context`: trace id and flags of its trace context.
    #[must_use]
    pub fn follow(self, cmid: Cmid, context: Option<([u8; 16], u8)>) -> Option<TraceId> {
        let is_asked = context.is_some_and(|(_, flags)| flags & SAMPLED != 0);
        let is_drawn = || self.every > 0 && mix(cmid).is_multiple_of(u64::from(self.every));
        (is_asked || is_drawn()).then(|| TraceId(context.map_or(cmid.0, |(id, _)| id)))
    }
}

/// 16 bytes, written as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceId(pub [u8; 16]);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One place that a followed message passed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Which message.
    pub trace: TraceId,
    /// Its conversation.
    pub conv: String,
    /// Where.
    pub place: Place,
}

/// Where a followed message was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Read by a reactor, and submitted or refused.
    Received,
    /// Its group has the durability of its class.
    Committed {
        /// Message id.
        mid: Mid,
        /// Place in the conversation.
        seq: u64,
    },
    /// Queued for devices of one core.
    Delivered {
        /// Message id.
        mid: Mid,
        /// Place in the conversation.
        seq: u64,
        /// How many devices the core was to deliver to.
        devices: u32,
    },
}

/// Steps of one turn. Bounded: a sender that asks for all of its messages fills the log no faster than this.
#[derive(Debug, Default)]
pub struct Steps(Vec<Step>);

impl Steps {
    /// Notes a step; `false`: the turn has enough of them.
    pub fn note(&mut self, trace: TraceId, conv: &str, place: Place) -> bool {
        let fits = self.0.len() < crate::limits::TRACE_STEPS_PER_TURN_MAX;
        if fits {
            self.0.push(Step { trace, conv: conv.to_owned(), place });
        }
        fits
    }

    /// Takes what was noted. Costs a comparison when there is nothing.
    pub fn drain(&mut self) -> impl Iterator<Item = Step> + '_ {
        self.0.drain(..)
    }
}

/// Writes one step of a message on `thread`.
pub fn log(thread: &str, step: &Step) {
    let Step { trace, conv, place } = step;
    match *place {
        Place::Received => tracing::info!(%trace, conv, thread, "message received"),
        Place::Committed { mid, seq } => tracing::info!(%trace, conv, mid = mid.0, seq, thread, "message committed"),
        Place::Delivered { mid, seq, devices } => {
            tracing::info!(%trace, conv, mid = mid.0, seq, devices, thread, "message delivered");
        }
    }
}

/// All bits of a cmid count, whatever scheme its sender has.
fn mix(cmid: Cmid) -> u64 {
    let half = |at: usize| u64::from_le_bytes(cmid.0[at..at + 8].try_into().expect("eight bytes"));
    // The finish of SplitMix64.
    let mut mixed = half(0) ^ half(8).rotate_left(32);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

const SAMPLED: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn cmid(number: u64) -> Cmid {
        let mut bytes = [7; 16];
        bytes[8..].copy_from_slice(&number.to_le_bytes());
        Cmid(bytes)
    }

    /// About one in so many is followed, under its cmid; who asks always is, under the id of its own; 0 switches drawing off.
    #[test]
    fn one_in_so_many_and_who_asks() {
        let sampling = Sampling { every: 100 };
        let followed = (0..10_000).filter(|&number| sampling.follow(cmid(number), None).is_some()).count();
        assert!((50..200).contains(&followed), "{followed}");
        let drawn = (0..).find_map(|number| sampling.follow(cmid(number), None).map(|id| (id, cmid(number)))).unwrap();
        assert_eq!(drawn.0.0, drawn.1.0);
        for every in [0, 1_000_000] {
            let sampling = Sampling { every };
            assert_eq!(sampling.follow(cmid(1), Some(([9; 16], 1))), Some(TraceId([9; 16])));
            assert_eq!(sampling.follow(cmid(1), Some(([9; 16], 0))), None);
            assert_eq!(sampling.follow(cmid(1), None), None);
        }
        assert_eq!(TraceId([0xab; 16]).to_string(), "ab".repeat(16));
    }

    /// A turn notes so many steps and no more.
    #[test]
    fn a_turn_has_a_bound() {
        let mut steps = Steps::default();
        let noted = (0..1000).filter(|_| steps.note(TraceId([1; 16]), "d:al:bo", Place::Received)).count();
        assert_eq!((noted, steps.drain().count()), (crate::limits::TRACE_STEPS_PER_TURN_MAX, noted));
        assert!(steps.note(TraceId([1; 16]), "d:al:bo", Place::Received));
    }
}
