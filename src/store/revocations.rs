//! Tokens that pass no more, by user, device and id, with the time at which each revocation may be forgotten.
//!
//! A revocation is a floor in time: what was issued before it passes no more. There is at most one for a user, a device of the user and
//! an id, so a repetition takes no room. Whoever revokes says when the last token meant has ended by itself; a later revocation then
//! takes the room, two for one, so that those in force are all there is for long.

use std::collections::{BTreeSet, HashMap};

use super::schema::{Hashes, RevokedKey};
use crate::limits::REVOCATIONS_MAX;
use crate::mail::TokenMark;

/// Whose tokens are revoked, and which.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Whose<'a> {
    /// User.
    pub user: &'a str,
    /// Those shown by this device; empty: by any.
    pub device: &'a str,
    /// The one of this `jti`; empty: all.
    pub id: &'a str,
}

/// How far a revocation reaches. One that is repeated only grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reach {
    /// Tokens issued before this Unix second pass no more.
    pub before_s: u64,
    /// From this Unix second on it may be forgotten: all of them have ended. `u64::MAX`: never.
    pub until_s: u64,
}

/// All revocations in force, about 100 bytes each; at most [`REVOCATIONS_MAX`].
#[derive(Debug, Default)]
pub struct Revocations {
    reaches: HashMap<RevokedKey, Reach>,
    ends: BTreeSet<(u64, RevokedKey)>,
}

impl Revocations {
    /// Whether there is room for one more at this Unix second.
    #[must_use]
    pub fn has_room(&self, key: &RevokedKey, now_s: u64) -> bool {
        self.reaches.len() < REVOCATIONS_MAX || self.reaches.contains_key(key) || self.first_ended(now_s).is_some()
    }

    /// Adds one, or widens it, and returns how far it reaches now.
    pub fn insert(&mut self, key: RevokedKey, reach: Reach) -> Reach {
        let known = self.reaches.entry(key).or_default();
        self.ends.remove(&(known.until_s, key));
        *known = Reach { before_s: reach.before_s.max(known.before_s), until_s: reach.until_s.max(known.until_s) };
        self.ends.insert((known.until_s, key));
        *known
    }

    /// Forgets one whose tokens have ended by this Unix second.
    pub fn take_ended(&mut self, now_s: u64) -> Option<RevokedKey> {
        let end = self.first_ended(now_s)?;
        self.ends.remove(&end);
        self.reaches.remove(&end.1);
        Some(end.1)
    }

    /// Whether a token of a user, shown by a device, passes no more.
    #[must_use]
    pub fn bars(&self, hashes: &Hashes, user: &str, device: &str, token: &TokenMark) -> bool {
        let issued_s = token.issued_unix_s.unwrap_or(0);
        let ids = ["", token.id.as_deref().unwrap_or("")];
        let mut whose = ids.into_iter().flat_map(|id| ["", device].map(|device| Whose { user, device, id }));
        let is_barred = |whose| self.reaches.get(&hashes.revoked(whose)).is_some_and(|reach| issued_s < reach.before_s);
        !self.reaches.is_empty() && whose.any(is_barred)
    }

    fn first_ended(&self, now_s: u64) -> Option<(u64, RevokedKey)> {
        self.ends.first().copied().filter(|end| end.0 <= now_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: Whose<'_> = Whose { user: "ann", device: "", id: "" };

    fn hashes() -> Hashes {
        Hashes::new([7; 16])
    }

    fn token(issued_unix_s: Option<u64>, id: Option<&str>) -> TokenMark {
        TokenMark { issued_unix_s, id: id.map(Into::into) }
    }

    /// Each of the four kinds bars what it names and nothing beside it.
    #[test]
    fn a_revocation_bars_what_it_names() {
        let table = [
            (ANN, 10, [true, true, true, true]),
            (ANN, 5, [true, false, true, true]),
            (Whose { device: "web", ..ANN }, 10, [true, true, true, false]),
            (Whose { id: "one", ..ANN }, u64::MAX, [true, false, false, false]),
            (Whose { id: "one", device: "phone", ..ANN }, u64::MAX, [false; 4]),
            (Whose { user: "bo", ..ANN }, 10, [false; 4]),
        ];
        for (whose, before_s, barred) in table {
            let mut revocations = Revocations::default();
            revocations.insert(hashes().revoked(whose), Reach { before_s, until_s: 100 });
            let shown = [
                ("web", token(Some(4), Some("one"))),
                ("web", token(Some(5), Some("two"))),
                ("web", token(None, None)),
                ("phone", token(Some(1), None)),
            ];
            let found = shown.each_ref().map(|(device, token)| revocations.bars(&hashes(), "ann", device, token));
            assert_eq!(found, barred, "{whose:?} {before_s}");
            assert!(!revocations.bars(&hashes(), "ann", "web", &token(Some(10), None)), "issued in time");
        }
    }

    /// Repeated with less, a revocation stays as wide as it was, and it is one all the time.
    #[test]
    fn a_revocation_only_grows() {
        let (mut revocations, key) = (Revocations::default(), hashes().revoked(ANN));
        revocations.insert(key, Reach { before_s: 10, until_s: 20 });
        assert_eq!(revocations.insert(key, Reach { before_s: 5, until_s: 50 }), Reach { before_s: 10, until_s: 50 });
        assert_eq!(revocations.take_ended(49), None);
        assert_eq!((revocations.take_ended(50), revocations.take_ended(50)), (Some(key), None));
        assert!(!revocations.bars(&hashes(), "ann", "web", &token(Some(1), None)));
    }

    /// At the bound a newcomer finds no room until one has ended; what is there already may grow.
    #[test]
    fn there_are_at_most_so_many() {
        let mut revocations = Revocations::default();
        let keys: Vec<RevokedKey> = (0..=REVOCATIONS_MAX as u64).map(|user| RevokedKey([user, 0, 0])).collect();
        let (newcomer, known) = keys.split_last().unwrap();
        for key in known {
            assert!(revocations.has_room(key, 0));
            revocations.insert(*key, Reach { before_s: 10, until_s: 20 });
        }
        assert!(revocations.has_room(&known[0], 19));
        assert!(!revocations.has_room(newcomer, 19));
        assert!(revocations.has_room(newcomer, 20));
    }
}
