//! Ordering holds of SENDs that were already on their way when an earlier one failed.
//!
//! The reactor holds a conversation from the moment it has read the failure; what it had mailed before that arrives here. Without a
//! second hold the store would commit the later messages and the client would repeat the earlier one behind them. The rule is the
//! one of the protocol: held until the failed cmid comes again, or a SEND carries RELEASE.

use std::collections::{HashMap, VecDeque};

use super::schema::Conv;
use crate::ids::{Cmid, SessionRef};
use crate::limits::STORE_HOLDS_MAX;
use crate::mutant::{self, Mutant};
use crate::wire::envelope::send_flags;

/// The failed cmid of each session and conversation.
#[derive(Debug, Default)]
pub struct Holds {
    failed: HashMap<(SessionRef, Conv), Cmid>,
    /// Oldest first. The oldest go first when there are too many: the reactor has long read of them and holds by itself.
    order: VecDeque<(SessionRef, Conv)>,
}

impl Holds {
    /// Whether a SEND must be refused with 4003. The failed cmid itself, or RELEASE, ends the hold.
    pub fn refuses(&mut self, session: SessionRef, conv: Conv, cmid: Cmid, flags: u8) -> bool {
        if mutant::on(Mutant::StoreHoldNotKept) || self.failed.is_empty() {
            return false;
        }
        match self.failed.get(&(session, conv)) {
            None => false,
            Some(&failed) if failed == cmid || flags & send_flags::RELEASE != 0 => {
                self.failed.remove(&(session, conv));
                self.order.retain(|held| *held != (session, conv));
                false
            }
            Some(_) => true,
        }
    }

    /// A SEND failed with a RETRYABLE error; an earlier hold of the session and conversation stands.
    pub fn begin(&mut self, session: SessionRef, conv: Conv, cmid: Cmid) {
        if self.failed.contains_key(&(session, conv)) {
            return;
        }
        if self.order.len() >= STORE_HOLDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.failed.remove(&oldest);
        }
        self.failed.insert((session, conv), cmid);
        self.order.push_back((session, conv));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ReactorId;

    const SESSION: SessionRef = SessionRef { reactor: ReactorId(0), index: 1, generation: 1 };

    fn cmid(number: u8) -> Cmid {
        Cmid([number; 16])
    }

    /// After a failure only the failed cmid, or RELEASE, goes through; other sessions and conversations are free.
    #[test]
    fn later_messages_wait_for_the_failed_one() {
        let (conv, other) = (Conv([1; 16]), Conv([2; 16]));
        let mut holds = Holds::default();
        holds.begin(SESSION, conv, cmid(1));
        holds.begin(SESSION, conv, cmid(2));
        assert!(holds.refuses(SESSION, conv, cmid(2), 0));
        assert!(!holds.refuses(SESSION, other, cmid(2), 0));
        assert!(!holds.refuses(SessionRef { generation: 2, ..SESSION }, conv, cmid(2), 0));
        assert!(!holds.refuses(SESSION, conv, cmid(1), 0));
        assert!(!holds.refuses(SESSION, conv, cmid(2), 0));
        holds.begin(SESSION, conv, cmid(3));
        assert!(!holds.refuses(SESSION, conv, cmid(4), send_flags::RELEASE));
        assert!(holds.order.is_empty() && holds.failed.is_empty());
    }

    /// More holds than the bound: the oldest goes.
    #[test]
    fn holds_are_bounded() {
        let mut holds = Holds::default();
        for index in 0..=u32::try_from(STORE_HOLDS_MAX).unwrap() {
            holds.begin(SessionRef { index, ..SESSION }, Conv([0; 16]), cmid(1));
        }
        assert_eq!((holds.order.len(), holds.failed.len()), (STORE_HOLDS_MAX, STORE_HOLDS_MAX));
        assert!(!holds.refuses(SessionRef { index: 0, ..SESSION }, Conv([0; 16]), cmid(9), 0));
    }
}
