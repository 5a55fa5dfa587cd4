//! The ordering hold: after a SEND failed retryably, later ones to that conversation wait for it.
//!
//! A client that pipelines would otherwise see its second message stored before the repeat of its first. The hold of a conversation
//! ends when every failed cmid of it was sent again and answered for good, or when a SEND carries RELEASE.

use crate::ids::Cmid;
use crate::wire::message::Text;

/// The held conversations of one connection; boxed, and only there while one is held.
#[derive(Debug, Default)]
pub struct Holds {
    held: Vec<(Text, Vec<Cmid>)>,
}

/// What the hold says to a SEND.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Go on.
    Pass,
    /// ERROR 4003.
    Held,
}

impl Holds {
    /// Judges a SEND to `conv`. RELEASE frees the conversation.
    pub fn check(&mut self, conv: &str, cmid: Cmid, release: bool) -> Verdict {
        let Some(place) = self.held.iter().position(|(held, _)| &**held == conv) else { return Verdict::Pass };
        if release {
            self.held.swap_remove(place);
            return Verdict::Pass;
        }
        if self.held[place].1.contains(&cmid) { Verdict::Pass } else { Verdict::Held }
    }

    /// A SEND failed retryably: its conversation is held. `false`: too many conversations or cmids are held (ERROR 4004).
    pub fn hold(&mut self, conv: &str, cmid: Cmid) -> bool {
        if let Some((_, cmids)) = self.held.iter_mut().find(|(held, _)| &**held == conv) {
            if cmids.contains(&cmid) {
                return true;
            }
            if cmids.len() == CMIDS_MAX {
                return false;
            }
            cmids.push(cmid);
            return true;
        }
        if self.held.len() == CONVERSATIONS_MAX {
            return false;
        }
        self.held.push((Text::copy_from(conv), vec![cmid]));
        true
    }

    /// A SEND was answered for good (SENT, or an error that is not retryable).
    pub fn settle(&mut self, cmid: Cmid) {
        for (_, cmids) in &mut self.held {
            cmids.retain(|&held| held != cmid);
        }
        self.held.retain(|(_, cmids)| !cmids.is_empty());
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

/// Held conversations of one connection. Full: ERROR 4004.
pub const CONVERSATIONS_MAX: usize = 32;
/// Failed cmids of one conversation: a send window, for clients that keep to it.
const CMIDS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    /// Only the failed message passes until it is answered for good.
    #[test]
    fn later_sends_wait_for_the_failed_one() {
        let (first, second) = (Cmid([1; 16]), Cmid([2; 16]));
        let mut holds = Holds::default();
        assert_eq!(holds.check("g:a", first, false), Verdict::Pass);
        assert!(holds.hold("g:a", first));
        assert_eq!(holds.check("g:a", second, false), Verdict::Held);
        assert_eq!(holds.check("g:b", second, false), Verdict::Pass);
        assert_eq!(holds.check("g:a", first, false), Verdict::Pass);
        assert_eq!(holds.check("g:a", second, false), Verdict::Held, "sent again is not yet answered");
        holds.settle(first);
        assert!(holds.is_empty());
        assert_eq!(holds.check("g:a", second, false), Verdict::Pass);
    }

    /// RELEASE frees every held message of the conversation; a connection holds at most 32 conversations.
    #[test]
    fn release_frees_a_conversation() {
        let mut holds = Holds::default();
        for number in 0..CONVERSATIONS_MAX {
            assert!(holds.hold(&format!("g:{number}"), Cmid([1; 16])));
        }
        assert!(!holds.hold("g:more", Cmid([1; 16])));
        assert_eq!(holds.check("g:0", Cmid([9; 16]), true), Verdict::Pass);
        assert_eq!(holds.check("g:0", Cmid([9; 16]), false), Verdict::Pass);
        assert!(holds.hold("g:more", Cmid([1; 16])));
    }
}
