//! The ordering hold: after a SEND failed retryably, later ones to that conversation wait for it.
//!
//! A client that pipelines would otherwise see its second message stored before the repeat of its first. A hold names the earliest
//! message that failed, and ends when that one comes again, when it is answered for good, or when a SEND carries RELEASE. From then on
//! what follows it may pass at once: should it fail again here, the hold begins again before the next is read; should the store
//! refuse it, the store holds what is behind it (`store/hold.rs`).
//!
//! The store ends its own hold by the same rules, so it must see RELEASE. A SEND that carried it and was refused here leaves it owed:
//! whatever is mailed next to that conversation carries it instead.

use crate::ids::Cmid;
use crate::mutant::{self, Mutant};
use crate::wire::message::Text;

/// The held conversations of one connection; boxed, and only there while one is held.
#[derive(Debug, Default)]
pub struct Holds {
    held: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    conv: Text,
    /// The message that is waited for. `None`: nothing is held, and RELEASE is owed.
    failed: Option<Cmid>,
    /// The store has not seen a RELEASE that ended an earlier hold.
    owes_release: bool,
}

/// Who refused the message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// This core, when it read the message.
    Core,
    /// The store, which had been mailed it before whatever this core has refused meanwhile. It tells of a later failure first where an
    /// earlier message still waits; to what fails behind one that has failed it says 4003, which holds nothing anew.
    Store,
}

/// What the hold says to a SEND.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Go on.
    Pass,
    /// Go on, with RELEASE.
    Release,
    /// ERROR 4003.
    Held,
}

impl Holds {
    /// Judges a SEND to `conv`. The message that is waited for ends the hold, and so does RELEASE.
    pub fn check(&mut self, conv: &str, cmid: Cmid, release: bool) -> Verdict {
        let found = self.held.iter().enumerate().find(|(_, held)| &*held.conv == conv);
        let Some((place, held)) = found else { return Verdict::Pass };
        let is_free = release || held.failed.is_none_or(|failed| failed == cmid);
        if !is_free && !mutant::on(Mutant::HoldNotKept) {
            return Verdict::Held;
        }
        if self.held.swap_remove(place).owes_release { Verdict::Release } else { Verdict::Pass }
    }

    /// A SEND failed retryably: its conversation is held. `false`: too many conversations are held (ERROR 4004).
    ///
    /// What the store refuses is older than whatever is held, and takes its place.
    pub fn hold(&mut self, conv: &str, cmid: Cmid, by: By) -> bool {
        if let Some(held) = self.held.iter_mut().find(|held| &*held.conv == conv) {
            if held.failed.is_none() || by == By::Store {
                held.failed = Some(cmid);
            }
            return true;
        }
        self.push(conv, Some(cmid), false)
    }

    /// A SEND that carried RELEASE was refused here, after [`Holds::hold`] or [`Holds::settle`] if it asked for one.
    pub fn owe_release(&mut self, conv: &str) {
        if mutant::on(Mutant::ReleaseForgotten) {
            return;
        }
        match self.held.iter_mut().find(|held| &*held.conv == conv) {
            Some(held) => held.owes_release = true,
            // The hold it ended has left room.
            None => drop(self.push(conv, None, true)),
        }
    }

    /// A SEND was answered for good (SENT, or an error that is not retryable).
    pub fn settle(&mut self, cmid: Cmid) {
        for held in self.held.iter_mut().filter(|held| held.failed == Some(cmid)) {
            held.failed = None;
        }
        self.held.retain(|held| held.failed.is_some() || held.owes_release);
    }

    fn push(&mut self, conv: &str, failed: Option<Cmid>, owes_release: bool) -> bool {
        let has_room = self.held.len() < CONVERSATIONS_MAX;
        if has_room {
            self.held.push(Held { conv: Text::copy_from(conv), failed, owes_release });
        }
        has_room
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

/// Held conversations of one connection. Full: ERROR 4004.
pub const CONVERSATIONS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    /// Only the failed message passes; what comes behind it then passes too, unless it fails again.
    #[test]
    fn later_sends_wait_for_the_failed_one() {
        let (first, second) = (Cmid([1; 16]), Cmid([2; 16]));
        let mut holds = Holds::default();
        assert_eq!(holds.check("g:a", first, false), Verdict::Pass);
        assert!(holds.hold("g:a", first, By::Core));
        assert_eq!(holds.check("g:a", second, false), Verdict::Held);
        assert_eq!(holds.check("g:b", second, false), Verdict::Pass);
        assert_eq!(holds.check("g:a", first, false), Verdict::Pass);
        assert!(holds.hold("g:a", first, By::Core), "it fails again");
        assert_eq!(holds.check("g:a", second, false), Verdict::Held);
        assert_eq!(holds.check("g:a", first, false), Verdict::Pass);
        assert_eq!(holds.check("g:a", second, false), Verdict::Pass, "the store keeps the order from here");
        assert!(holds.hold("g:a", first, By::Core));
        holds.settle(first);
        assert!(holds.is_empty());
    }

    /// The fourth message is refused here while the others are at the store, which has no place for the third and then refuses the
    /// first: the first is waited for.
    #[test]
    fn the_earliest_failure_is_waited_for() {
        let [first, second, third, fourth] = [1, 2, 3, 4].map(|number| Cmid([number; 16]));
        let mut holds = Holds::default();
        assert!(holds.hold("g:a", fourth, By::Core));
        assert!(holds.hold("g:a", third, By::Store));
        assert_eq!(holds.check("g:a", fourth, false), Verdict::Held);
        assert!(holds.hold("g:a", first, By::Store));
        assert!(holds.hold("g:a", fourth, By::Core));
        assert_eq!(holds.check("g:a", third, false), Verdict::Held);
        assert_eq!(holds.check("g:a", second, false), Verdict::Held);
        assert_eq!(holds.check("g:a", first, false), Verdict::Pass);
        assert!(holds.is_empty());
    }

    /// A SEND with RELEASE is refused here: its repeat, or whatever comes next, takes RELEASE to the store, once. So it does if the
    /// store names an earlier message meanwhile, or if it is answered for good.
    #[test]
    fn a_release_that_was_refused_is_owed_to_the_store() {
        let [first, second, third] = [1, 2, 3].map(|number| Cmid([number; 16]));
        let mut holds = Holds::default();
        assert!(holds.hold("g:a", first, By::Store));
        assert_eq!(holds.check("g:a", second, true), Verdict::Pass);
        assert!(holds.hold("g:a", second, By::Core));
        holds.owe_release("g:a");
        assert_eq!(holds.check("g:a", third, false), Verdict::Held);
        assert!(holds.hold("g:a", first, By::Store));
        assert_eq!(holds.check("g:a", second, false), Verdict::Held);
        assert_eq!(holds.check("g:a", first, false), Verdict::Release);
        assert_eq!(holds.check("g:a", second, false), Verdict::Pass);

        assert_eq!(holds.check("g:b", first, true), Verdict::Pass);
        holds.owe_release("g:b");
        assert_eq!(holds.check("g:b", second, false), Verdict::Release, "nothing is held");
        assert!(holds.is_empty());

        assert!(holds.hold("g:c", first, By::Core));
        holds.owe_release("g:c");
        holds.settle(first);
        assert_eq!(holds.check("g:c", second, false), Verdict::Release);
        assert!(holds.is_empty());
    }

    /// RELEASE frees a conversation; a connection holds at most 32.
    #[test]
    fn release_frees_a_conversation() {
        let mut holds = Holds::default();
        for number in 0..CONVERSATIONS_MAX {
            assert!(holds.hold(&format!("g:{number}"), Cmid([1; 16]), By::Core));
        }
        assert!(!holds.hold("g:more", Cmid([1; 16]), By::Core));
        assert_eq!(holds.check("g:0", Cmid([9; 16]), true), Verdict::Pass);
        assert_eq!(holds.check("g:0", Cmid([9; 16]), false), Verdict::Pass);
        assert!(holds.hold("g:more", Cmid([1; 16]), By::Core));
    }
}
