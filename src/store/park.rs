//! Submissions that wait for the engine: a cold conversation, a read position, the answer about a cmid. What comes later for the same
//! conversation waits behind them, so its order is kept; other conversations go on.

use std::collections::{HashMap, VecDeque};

use super::record::Dedup;
use super::retention::Raise;
use super::schema::Conv;
use crate::ids::Cmid;
use crate::mail::{MemberMail, SendMail, Sender, SignalMail};
use crate::mutant::{self, Mutant};
use crate::wire::message::Text;

/// A submission that concerns a conversation.
#[derive(Debug)]
pub enum Work {
    /// A message.
    Send {
        /// As submitted.
        mail: SendMail,
        /// Sending user.
        user: Text,
        /// What is known of its cmid.
        lookup: Lookup,
        /// Its place among all SENDs that have reached this store: what tells earlier from later.
        arrival: u64,
    },
    /// READ.
    Read {
        /// Who asks.
        from: Sender,
        /// Conversation.
        conv: Text,
        /// Reader.
        user: Text,
        /// Position asked for.
        seq: u64,
    },
    /// A change of members.
    Member(MemberMail),
    /// What lies below a floor is kept no longer.
    Floor(Raise),
    /// A SIGNAL.
    Signal {
        /// As submitted.
        mail: SignalMail,
        /// Who signals.
        user: Text,
    },
}

/// What is known of a cmid beyond what memory holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// Nobody has been asked.
    Unasked,
    /// A reader looks for it.
    Asked,
    /// What `dedup.N` said.
    Answered(Option<Dedup>),
}

impl Work {
    /// Conversation.
    #[must_use]
    pub fn conv(&self) -> &Text {
        match self {
            Work::Send { mail, .. } => &mail.conv,
            Work::Read { conv, .. } => conv,
            Work::Member(mail) => &mail.conv,
            Work::Signal { mail, .. } => &mail.conv,
            Work::Floor(raise) => &raise.conv,
        }
    }
}

/// All that waits, by conversation.
#[derive(Debug)]
pub struct Parking {
    waiting: HashMap<Conv, Waiting>,
    count: usize,
    max: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<Work>,
    /// The first in the queue needs the answer to a job under way.
    is_blocked: bool,
}

impl Parking {
    /// With room for `max` submissions.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { waiting: HashMap::new(), count: 0, max }
    }

    /// There is room for `max` from now on; what waits stays.
    pub fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Whether one more of this conversation may wait: as many as places stay free, and one in any case while there is a place.
    ///
    /// So a burst of one conversation never takes more than half, and others find a place as long as fewer conversations wait than
    /// there are places. Nobody who waits is sent away for a newcomer: the first of each conversation gets through.
    #[must_use]
    pub fn has_room(&self, conv: Conv) -> bool {
        let free = self.max.saturating_sub(self.count);
        let own = self.waiting.get(&conv).map_or(0, |waiting| waiting.queue.len());
        free > 0 && (own == 0 || own < free)
    }

    /// How many wait.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether something waits for this conversation: whatever comes now must wait behind it.
    #[must_use]
    pub fn holds(&self, conv: Conv) -> bool {
        self.waiting.contains_key(&conv)
    }

    /// Nothing of this conversation is ready before [`Parking::unblock`].
    pub fn block(&mut self, conv: Conv) {
        self.waiting.entry(conv).or_default().is_blocked = true;
    }

    /// The answer the first one needed is there.
    pub fn unblock(&mut self, conv: Conv) {
        if let Some(waiting) = self.waiting.get_mut(&conv) {
            waiting.is_blocked = false;
        }
        self.drop_if_done(conv);
    }

    /// Adds at the end.
    pub fn push_back(&mut self, conv: Conv, work: Work) {
        let queue = &mut self.waiting.entry(conv).or_default().queue;
        if mutant::on(Mutant::OrderSwapped) {
            queue.push_front(work);
        } else {
            queue.push_back(work);
        }
        self.count += 1;
    }

    /// Puts back what was taken from the front and still cannot go.
    pub fn push_front(&mut self, conv: Conv, work: Work) {
        self.waiting.entry(conv).or_default().queue.push_front(work);
        self.count += 1;
    }

    /// The next in order, if nothing it needs is under way.
    pub fn pop_ready(&mut self, conv: Conv) -> Option<Work> {
        let waiting = self.waiting.get_mut(&conv).filter(|waiting| !waiting.is_blocked)?;
        let is_ready = |work: &mut Work| !matches!(work, Work::Send { lookup: Lookup::Asked, .. });
        let work = waiting.queue.pop_front_if(is_ready)?;
        self.count -= 1;
        self.drop_if_done(conv);
        Some(work)
    }

    /// Takes all that wait for a conversation, in order.
    pub fn take(&mut self, conv: Conv) -> VecDeque<Work> {
        let queue = self.waiting.remove(&conv).unwrap_or_default().queue;
        self.count -= queue.len();
        queue
    }

    /// Takes the SENDs that wait for a conversation, in order; the rest stays.
    pub fn take_sends(&mut self, conv: Conv) -> VecDeque<Work> {
        let Some(waiting) = self.waiting.get_mut(&conv) else { return VecDeque::new() };
        let queue = std::mem::take(&mut waiting.queue);
        let (sends, rest) = queue.into_iter().partition(|work| matches!(work, Work::Send { .. }));
        waiting.queue = rest;
        self.count -= VecDeque::len(&sends);
        self.drop_if_done(conv);
        sends
    }

    /// Hands the answer about a cmid to those who asked.
    pub fn answer(&mut self, conv: Conv, user: &str, cmid: Cmid, found: Lookup) {
        for work in self.waiting.get_mut(&conv).into_iter().flat_map(|waiting| &mut waiting.queue) {
            if let Work::Send { mail, user: sender, lookup, .. } = work
                && mail.cmid == cmid
                && sender.as_str() == user
                && *lookup == Lookup::Asked
            {
                *lookup = found;
            }
        }
    }

    fn drop_if_done(&mut self, conv: Conv) {
        if self.waiting.get(&conv).is_some_and(|waiting| waiting.queue.is_empty() && !waiting.is_blocked) {
            self.waiting.remove(&conv);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ReactorId, RosterId, SessionRef};

    fn read() -> Work {
        let from = Sender { session: SessionRef { reactor: ReactorId(0), index: 0, generation: 0 }, roster: RosterId(0), rid: 1 };
        Work::Read { from, conv: "g:a".into(), user: "al".into(), seq: 1 }
    }

    /// Conversations that each want more than there is: whatever their number and the size of the parking, places are never exceeded,
    /// each conversation has one as long as there is one, and none has more than its share by more than one.
    #[test]
    fn conversations_share_the_places() {
        for max in [1, 2, 3, 8, 100] {
            for convs in 1..=12_u8 {
                let mut parking = Parking::new(max);
                for _ in 0..max {
                    for conv in (0..convs).map(|number| Conv([number; 16])) {
                        if parking.has_room(conv) {
                            parking.push_back(conv, read());
                        }
                    }
                }
                let own: Vec<usize> = (0..convs).map(|number| parking.take(Conv([number; 16])).len()).collect();
                let share = max / (usize::from(convs) + 1);
                assert!(own.iter().sum::<usize>() <= max);
                assert!(own.iter().take(max).all(|own| *own >= 1), "{own:?} of {max}");
                assert!(own.iter().all(|own| *own <= share + 1), "{own:?} of {max}");
                assert_eq!(parking.count(), 0);
            }
        }
    }
}
