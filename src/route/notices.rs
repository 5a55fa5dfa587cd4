//! Who is told that a large conversation moved: all its members, step by step, and each connection at most once a second.
//!
//! ```text
//!  message ─► note() ─► sweep: members in order of name, so many a turn ─► a second of rest ─► sweep again if it moved meanwhile
//! ```
//!
//! A sweep of 100,000 members takes many turns of the store; messages of others pass between the steps. A step tells the head of its
//! own moment, so nothing has to be remembered per member. Nothing is kept about a conversation at rest.

use std::collections::{HashMap, VecDeque};

use crate::ids::Mid;
use crate::limits::NOTICE_EVERY_NS;
use crate::wire::message::Text;

/// The large conversations that moved within the last second or so.
#[derive(Debug, Default)]
pub struct Notices {
    open: HashMap<[u8; 16], Open>,
    /// Sweeps under way, taken in turns.
    sweeping: VecDeque<[u8; 16]>,
    /// Rests, by their end.
    resting: VecDeque<(u64, [u8; 16])>,
}

#[derive(Debug)]
struct Open {
    head: u64,
    mid: Mid,
    /// The last member told in this sweep.
    after: Option<Text>,
    /// It moved since the sweep began.
    moved: bool,
}

/// One step of a sweep.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Conversation.
    pub conv: [u8; 16],
    /// Its highest seq now.
    pub head: u64,
    /// The message id of that.
    pub mid: Mid,
    /// The last member told; `None` at the beginning.
    pub after: Option<Text>,
}

impl Notices {
    /// A large conversation moved.
    pub fn note(&mut self, conv: [u8; 16], head: u64, mid: Mid) {
        if let Some(open) = self.open.get_mut(&conv) {
            assert!(head > open.head, "seq grows");
            (open.head, open.mid, open.moved) = (head, mid, true);
            return;
        }
        self.open.insert(conv, Open { head, mid, after: None, moved: false });
        self.sweeping.push_back(conv);
    }

    /// The next step, if one is due. [`Notices::stepped`] must follow.
    pub fn next(&mut self, now_ns: u64) -> Option<Step> {
        while let Some(&(end_ns, conv)) = self.resting.front()
            && end_ns <= now_ns
        {
            self.resting.pop_front();
            let open = self.open.get_mut(&conv).expect("a rest is of what is open");
            if std::mem::take(&mut open.moved) {
                self.sweeping.push_back(conv);
            } else {
                self.open.remove(&conv);
            }
        }
        let conv = self.sweeping.pop_front()?;
        let open = &self.open[&conv];
        Some(Step { conv, head: open.head, mid: open.mid, after: open.after.clone() })
    }

    /// A step was made up to member `last`; `None`: the sweep is over, and the rest begins.
    pub fn stepped(&mut self, conv: [u8; 16], last: Option<Text>, now_ns: u64) {
        let open = self.open.get_mut(&conv).expect("the step was of this");
        if last.is_some() {
            self.sweeping.push_back(conv);
        } else {
            self.resting.push_back((now_ns + NOTICE_EVERY_NS, conv));
        }
        open.after = last;
    }

    /// Whether a step is due without waiting.
    #[must_use]
    pub fn is_sweeping(&self) -> bool {
        !self.sweeping.is_empty()
    }

    /// When [`Notices::next`] is to be asked again.
    #[must_use]
    pub fn next_ns(&self) -> Option<u64> {
        if self.is_sweeping() { Some(0) } else { self.resting.front().map(|&(end_ns, _)| end_ns) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        /// Five members told two a step: whenever messages come, nobody is told twice within a second, and at rest everybody knows the
        /// head and nothing is kept.
        #[test]
        fn everybody_hears_and_nobody_twice_a_second(steps in prop::collection::vec((0..900_u64, any::<bool>()), 1..100)) {
            let names = ["a", "b", "c", "d", "e"];
            let mut notices = Notices::default();
            let mut told = [(0, 0); 5];
            let (mut now_ns, mut head) = (0, 0);
            let mut walk = |notices: &mut Notices, now_ns: u64| {
                let Some(step) = notices.next(now_ns) else { return false };
                let first = step.after.map_or(0, |after| names.iter().position(|name| *name == after.as_str()).unwrap() + 1);
                let last = (first + 2).min(names.len());
                for known in &mut told[first..last] {
                    assert!(known.0 == 0 || now_ns - known.1 >= NOTICE_EVERY_NS, "twice within a second");
                    assert!(step.head >= known.0, "heads grow");
                    *known = (step.head, now_ns);
                }
                notices.stepped(step.conv, (last < names.len()).then(|| Text::from(names[last - 1])), now_ns);
                true
            };
            for (pause_ms, sends) in steps {
                now_ns += pause_ms * 1_000_000;
                if sends {
                    head += 1;
                    notices.note([1; 16], head, Mid(head));
                }
                walk(&mut notices, now_ns);
            }
            for _ in 0..3 {
                while walk(&mut notices, now_ns) {}
                now_ns += NOTICE_EVERY_NS;
            }
            walk(&mut notices, now_ns);
            prop_assert!(told.iter().all(|(known, _)| *known == head));
            prop_assert!(notices.open.is_empty() && notices.sweeping.is_empty() && notices.resting.is_empty());
        }
    }
}
