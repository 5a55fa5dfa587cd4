//! Ordering holds of SENDs that were already on their way when an earlier one failed.
//!
//! The reactor holds a conversation from the moment it has read the failure; what it had mailed before that arrives here. Without a
//! second hold the store would commit the later messages and the client would repeat the earlier one behind them. The rule is the
//! one of the protocol: held until the failed cmid comes again or is answered for good, or a SEND carries RELEASE.
//!
//! A full parking fails the newcomer while earlier messages of its conversation still wait. They came before the hold, which does not
//! concern them; should one of them fail as well, the hold is about that one from then on. So it is always about the earliest that
//! failed, and whoever repeats the oldest first keeps the order.

use std::collections::BTreeMap;

use super::schema::Conv;
use crate::ids::{Cmid, SessionRef};
use crate::limits::STORE_HOLDS_MAX;
use crate::mutant::{self, Mutant};
use crate::wire::envelope::send_flags;

/// The earliest failed message of each session and conversation. Nothing here walks over all of them: a hold is found, and found in the
/// order, by its key.
#[derive(Debug, Default)]
pub struct Holds {
    failed: BTreeMap<(SessionRef, Conv), Hold>,
    /// By turn, oldest first. The oldest go first when there are too many: the reactor has long read of them and holds by itself.
    order: BTreeMap<u64, (SessionRef, Conv)>,
    /// Of the next hold.
    turn: u64,
}

#[derive(Clone, Copy, Debug)]
struct Hold {
    failure: Failed,
    /// Its place in `order`.
    turn: u64,
}

/// A message as its sender names it, and its place among all SENDs that have reached the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failed {
    /// Named by its sender.
    pub cmid: Cmid,
    /// Counted by the store.
    pub arrival: u64,
}

impl Holds {
    /// Whether a SEND must be refused with 4003. The failed cmid itself, or RELEASE, ends the hold, unless it came before the failure.
    pub fn refuses(&mut self, session: SessionRef, conv: Conv, Failed { cmid, arrival }: Failed, flags: u8) -> bool {
        if mutant::on(Mutant::StoreHoldNotKept) || self.failed.is_empty() {
            return false;
        }
        match self.failed.get(&(session, conv)) {
            None => false,
            Some(hold) if arrival < hold.failure.arrival && !mutant::on(Mutant::ParkingRefusesNewcomer) => false,
            Some(hold) if hold.failure.cmid == cmid || flags & send_flags::RELEASE != 0 => {
                self.end(session, conv);
                false
            }
            Some(_) => true,
        }
    }

    /// A SEND failed with a RETRYABLE error. `false`: an earlier one has failed before, and it is that one which is waited for.
    pub fn begin(&mut self, session: SessionRef, conv: Conv, failure: Failed) -> bool {
        if let Some(hold) = self.failed.get_mut(&(session, conv)) {
            let is_earlier = failure.arrival < hold.failure.arrival;
            if is_earlier && !mutant::on(Mutant::EarlierFailureIgnored) {
                hold.failure = failure;
            }
            return is_earlier;
        }
        if self.order.len() >= STORE_HOLDS_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.failed.remove(&oldest);
        }
        let turn = self.turn;
        self.turn += 1;
        self.failed.insert((session, conv), Hold { failure, turn });
        self.order.insert(turn, (session, conv));
        true
    }

    /// A SEND was answered for good. Its hold ends, if a repeat of it had failed: nobody would repeat it again.
    pub fn settle(&mut self, session: SessionRef, conv: Conv, cmid: Cmid) {
        if self.failed.get(&(session, conv)).is_some_and(|hold| hold.failure.cmid == cmid) {
            self.end(session, conv);
        }
    }

    /// A session is over: nobody will repeat what it has failed to send. Costs as much as it has holds.
    pub fn forget(&mut self, session: SessionRef) {
        let (first, last) = ((session, Conv([0; 16])), (session, Conv([0xFF; 16])));
        while let Some((&(_, conv), _)) = self.failed.range(first..=last).next() {
            self.end(session, conv);
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.failed.len()
    }

    fn end(&mut self, session: SessionRef, conv: Conv) {
        if let Some(hold) = self.failed.remove(&(session, conv)) {
            self.order.remove(&hold.turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ReactorId;

    const SESSION: SessionRef = SessionRef { reactor: ReactorId(0), index: 1, generation: 1 };

    /// Message `number`, which came as the `arrival`-th.
    fn sent(number: u8, arrival: u64) -> Failed {
        Failed { cmid: Cmid([number; 16]), arrival }
    }

    /// After a failure only the failed cmid, or RELEASE, goes through; other sessions and conversations are free.
    #[test]
    fn later_messages_wait_for_the_failed_one() {
        let (conv, other) = (Conv([1; 16]), Conv([2; 16]));
        let mut holds = Holds::default();
        assert!(holds.begin(SESSION, conv, sent(1, 1)));
        assert!(!holds.begin(SESSION, conv, sent(2, 2)), "the first is waited for");
        assert!(holds.refuses(SESSION, conv, sent(2, 3), 0));
        assert!(!holds.refuses(SESSION, other, sent(2, 4), 0));
        assert!(!holds.refuses(SessionRef { generation: 2, ..SESSION }, conv, sent(2, 5), 0));
        assert!(!holds.refuses(SESSION, conv, sent(1, 6), 0));
        assert!(!holds.refuses(SESSION, conv, sent(2, 7), 0));
        holds.begin(SESSION, conv, sent(3, 8));
        assert!(!holds.refuses(SESSION, conv, sent(4, 9), send_flags::RELEASE));
        assert!(holds.order.is_empty() && holds.failed.is_empty());
    }

    /// The third fails while the first two wait: they go on, and if the second fails too, it is the one that is waited for.
    #[test]
    fn an_earlier_failure_takes_the_hold() {
        let conv = Conv([1; 16]);
        let mut holds = Holds::default();
        assert!(holds.begin(SESSION, conv, sent(3, 3)));
        assert!(!holds.refuses(SESSION, conv, sent(1, 1), 0));
        assert!(holds.begin(SESSION, conv, sent(2, 2)));
        assert!(holds.refuses(SESSION, conv, sent(3, 4), 0));
        assert!(!holds.refuses(SESSION, conv, sent(2, 5), 0));
        assert!(!holds.refuses(SESSION, conv, sent(3, 6), 0));
        assert!(holds.order.is_empty() && holds.failed.is_empty());
    }

    /// A repeat fails while its original still waits, which is then stored: what comes next is not held for a repeat that never comes.
    #[test]
    fn an_answer_for_good_ends_the_hold() {
        let conv = Conv([1; 16]);
        let mut holds = Holds::default();
        holds.begin(SESSION, conv, sent(1, 2));
        assert!(!holds.refuses(SESSION, conv, sent(1, 1), 0));
        holds.settle(SESSION, conv, sent(2, 0).cmid);
        assert!(holds.refuses(SESSION, conv, sent(3, 3), 0));
        holds.settle(SESSION, conv, sent(1, 0).cmid);
        assert!(!holds.refuses(SESSION, conv, sent(3, 4), 0));
        assert!(holds.order.is_empty() && holds.failed.is_empty());
    }

    /// More holds than the bound: the oldest goes.
    #[test]
    fn holds_are_bounded() {
        let mut holds = Holds::default();
        for index in 0..=u32::try_from(STORE_HOLDS_MAX).unwrap() {
            holds.begin(SessionRef { index, ..SESSION }, Conv([0; 16]), sent(1, 1));
        }
        assert_eq!((holds.order.len(), holds.failed.len()), (STORE_HOLDS_MAX, STORE_HOLDS_MAX));
        assert!(!holds.refuses(SessionRef { index: 0, ..SESSION }, Conv([0; 16]), sent(9, 2), 0));
    }

    /// A hold that ends leaves nothing in the order, wherever it stood there; what is held again is the newest.
    #[test]
    fn a_hold_that_ends_leaves_no_place_behind() {
        let of = |number: usize| SessionRef { index: u32::try_from(number).unwrap(), ..SESSION };
        let conv = Conv([0; 16]);
        let mut holds = Holds::default();
        (0..STORE_HOLDS_MAX).for_each(|number| assert!(holds.begin(of(number), conv, sent(1, 1))));
        holds.settle(of(0), conv, sent(1, 0).cmid);
        assert_eq!((holds.order.len(), holds.failed.len()), (STORE_HOLDS_MAX - 1, STORE_HOLDS_MAX - 1));
        assert!(holds.begin(of(0), conv, sent(1, 1)), "there is room again");
        assert!(holds.begin(of(STORE_HOLDS_MAX), conv, sent(1, 1)));
        assert!(holds.refuses(of(0), conv, sent(9, 2), 0), "it came back behind all others");
        assert!(!holds.refuses(of(1), conv, sent(9, 2), 0), "it was the oldest");
        for number in (0..=STORE_HOLDS_MAX).rev() {
            holds.settle(of(number), conv, sent(1, 0).cmid);
            assert_eq!(holds.order.len(), holds.failed.len());
        }
        assert!(holds.order.is_empty() && holds.failed.is_empty());
    }

    /// Whoever leaves takes all holds along, and nobody else's.
    #[test]
    fn a_session_takes_its_holds_along() {
        let others =
            [SessionRef { index: 0, ..SESSION }, SessionRef { generation: 2, ..SESSION }, SessionRef { index: 2, ..SESSION }];
        let convs = [0, 1, 0xFF].map(|byte| Conv([byte; 16]));
        let mut holds = Holds::default();
        for conv in convs {
            assert!(others.iter().chain([&SESSION]).all(|&session| holds.begin(session, conv, sent(1, 1))));
        }
        holds.forget(SESSION);
        assert_eq!((holds.order.len(), holds.count()), (9, 9));
        assert!(convs.iter().all(|&conv| !holds.refuses(SESSION, conv, sent(9, 2), 0)));
        assert!(others.iter().all(|&other| convs.iter().all(|&conv| holds.refuses(other, conv, sent(9, 2), 0))));
        others.iter().for_each(|&other| holds.forget(other));
        assert!(holds.order.is_empty() && holds.failed.is_empty());
        holds.forget(SESSION);
    }
}
