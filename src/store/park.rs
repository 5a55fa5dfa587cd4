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
#[derive(Debug, Default)]
pub struct Parking {
    waiting: HashMap<Conv, Waiting>,
    count: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<Work>,
    /// The first in the queue needs the answer to a job under way.
    is_blocked: bool,
}

impl Parking {
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

    /// Hands the answer about a cmid to those who asked.
    pub fn answer(&mut self, conv: Conv, user: &str, cmid: Cmid, found: Lookup) {
        for work in self.waiting.get_mut(&conv).into_iter().flat_map(|waiting| &mut waiting.queue) {
            if let Work::Send { mail, user: sender, lookup } = work
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
