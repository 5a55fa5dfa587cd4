//! What was received, per conversation, and what is missing (docs/protocol.md section 8).
//!
//! ```text
//!  seq   1 ........ have | have+1 ....... | stash: 57 58 .. | ........ target
//!        given out       | missing: FETCH | came too early  | known to exist
//! ```
//!
//! Everything enters through [`Inbox::store`], whether it came by DELIVER, in a PAGE, or as the SENT of an own message, and leaves as
//! [`Event::Message`] with every seq once and in order.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tidegate::wire::envelope::{Cursor, Entry, Message, deliver_flags, page_flags};

use crate::again::{Again, Nack};
use crate::event::{Event, Received};

/// Messages that came before their turn, over all conversations. Full: dropped, and fetched later like any missing one.
const STASH_MAX: usize = 1024;
/// FETCHes on the way. The gateway lets 8 reads wait; SYNC and the application's own want room too.
const FETCHES_MAX: usize = 4;
/// Messages asked for at once.
const FETCH_LIMIT: u16 = 256;
/// A FETCH that brings nothing although more should exist is repeated this often, then left until the next NOTICE or SYNC.
const STALLS_MAX: u32 = 5;
/// Between two such repeats.
const STALL_WAIT: Duration = Duration::from_secs(1);
/// Cursors in one ACK.
const ACK_CURSORS_MAX: usize = 256;
/// ERROR 4004: too many wait already.
const TOO_MANY: u16 = 4004;
/// Longest that something processed stays unacknowledged.
const ACK_WAIT: Duration = Duration::from_secs(1);

/// Where a device stands in a conversation: what an application keeps beside its copy of the messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Position {
    /// Conversation.
    pub conv: Arc<str>,
    /// Life of the numbering; `None` if it was never told.
    pub epoch: Option<u32>,
    /// Every message up to here was processed.
    pub have: u64,
}

/// Which history a device wants of a conversation it holds nothing of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum History {
    /// All that is kept.
    #[default]
    Whole,
    /// What lies above the cursor that this device acknowledged in an earlier life.
    SinceCursor,
}

/// The conversations of one device.
#[derive(Debug)]
pub(crate) struct Inbox {
    conversations: BTreeMap<Arc<str>, Conversation>,
    history: History,
    stash_count: usize,
    /// Conversations with something to fetch, in the order in which that became known.
    wanted: VecDeque<Arc<str>>,
    /// FETCHes on the way, by rid.
    fetches: HashMap<u32, Fetch>,
    /// Conversations whose cursor is to be acknowledged.
    dirty: BTreeSet<Arc<str>>,
    /// Those acknowledged last on this connection: nothing answers an ACK, so with the connection some may be lost.
    told: VecDeque<Arc<str>>,
    /// Highest pos received and taken in this session, and how many of them were taken since the last ACK.
    pos_received: u64,
    pos_taken: u64,
    unacked: u32,
    ack_at: Option<Duration>,
    queue: VecDeque<Queued>,
    again: Again,
    /// Counts sessions: a pos of an earlier one means nothing.
    turn: u32,
}

/// An event in the queue; taking it acknowledges `pos`.
#[derive(Debug)]
struct Queued {
    event: Option<Event>,
    pos: u64,
    turn: u32,
}

#[derive(Debug, Default)]
struct Conversation {
    epoch: Option<u32>,
    have: u64,
    /// Highest seq processed by the application.
    processed: u64,
    target: u64,
    /// Highest seq that came by itself in the session with this number. Another epoch does not void it.
    heard: (u32, u64),
    stash: BTreeMap<u64, Received>,
    fetch: FetchState,
    stalls: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum FetchState {
    #[default]
    Idle,
    Queued,
    InFlight,
    Pausing(Duration),
}

#[derive(Debug)]
struct Fetch {
    conv: Arc<str>,
    to: u64,
    asked: Duration,
}

/// What a PAGE says beside its messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageHead {
    pub(crate) flags: u8,
    pub(crate) epoch: u32,
    pub(crate) floor: u64,
    pub(crate) head: u64,
}

impl Inbox {
    pub(crate) fn new(history: History, positions: Vec<Position>) -> Self {
        let conversations = positions.into_iter().map(|position| {
            let Position { conv, epoch, have } = position;
            (conv, Conversation { epoch, have, processed: have, target: have, ..Conversation::default() })
        });
        Self {
            conversations: conversations.collect(),
            history,
            stash_count: 0,
            wanted: VecDeque::new(),
            fetches: HashMap::new(),
            dirty: BTreeSet::new(),
            told: VecDeque::new(),
            pos_received: 0,
            pos_taken: 0,
            unacked: 0,
            ack_at: None,
            queue: VecDeque::new(),
            again: Again::default(),
            turn: 0,
        }
    }

    /// A session begins; when it is not the one before, positions start again.
    pub(crate) fn welcome(&mut self, resumed: bool) {
        self.again.welcome();
        if !resumed {
            self.turn += 1;
            self.pos_received = 0;
            self.pos_taken = 0;
            self.unacked = 0;
        }
    }

    /// The connection is gone: what was asked and not answered is asked again.
    pub(crate) fn disconnected(&mut self) {
        self.dirty.extend(self.told.drain(..));
        self.fetches.clear();
        self.wanted.clear();
        for (conv, conversation) in &mut self.conversations {
            conversation.fetch = FetchState::Idle;
            conversation.stalls = 0;
            if conversation.missing().is_some() {
                conversation.fetch = FetchState::Queued;
                self.wanted.push_back(Arc::clone(conv));
            }
        }
    }

    /// The position to name in HELLO.
    pub(crate) fn last_pos(&self) -> u64 {
        self.pos_received
    }

    /// A DELIVER: its position, and the message.
    pub(crate) fn deliver(&mut self, pos: u64, message: Received) {
        self.pos_received = self.pos_received.max(pos);
        if message.flags & deliver_flags::TRANSIENT != 0 || message.seq == 0 {
            self.emit(Event::Transient(message));
        } else {
            self.store(message);
        }
        // The position is taken once everything it brought has been.
        self.queue.push_back(Queued { event: None, pos, turn: self.turn });
    }

    /// The application wants a message once more, that it has been given and has not processed; any other is none of its business.
    pub(crate) fn nack(&mut self, conv: &str, seq: u64, delay: Duration, reason: u16) {
        let Some((name, conversation)) = self.conversations.get_key_value(conv) else { return };
        if seq <= conversation.processed || seq > conversation.have {
            return;
        }
        if !self.again.ask(Arc::clone(name), seq, delay, reason) {
            self.emit(Event::Refused { code: TOO_MANY, detail: format!("{conv} too many wait for redelivery") });
        }
    }

    /// The next NACK to write.
    pub(crate) fn next_nack(&mut self) -> Option<Nack> {
        self.again.next()
    }

    /// A message by any way. One that was asked for again is given out again, another duplicate is dropped, an early one is kept aside
    /// and what lies before it becomes wanted.
    pub(crate) fn store(&mut self, message: Received) {
        let conv = Arc::clone(&message.conv);
        let conversation = self.conversations.entry(Arc::clone(&conv)).or_default();
        conversation.target = conversation.target.max(message.seq);
        conversation.heard = conversation.heard.max((self.turn, message.seq));
        if message.seq > conversation.have + 1 {
            if self.stash_count < STASH_MAX && conversation.stash.insert(message.seq, message).is_none() {
                self.stash_count += 1;
            }
            self.want(&conv);
        } else if message.seq == conversation.have + 1 {
            conversation.have += 1;
            self.emit(Event::Message(message));
            self.unstash(&conv);
            self.want(&conv);
        } else if self.again.came(&conv, message.seq) {
            self.emit(Event::Message(message));
        }
    }

    /// The gateway says that `conv` reaches to `head`.
    pub(crate) fn head(&mut self, conv: &str, head: u64) {
        let conv = self.name(conv);
        let conversation = self.conversations.entry(Arc::clone(&conv)).or_default();
        conversation.target = conversation.target.max(head);
        self.want(&conv);
    }

    /// One entry of SYNC_PAGE.
    pub(crate) fn entry(&mut self, entry: &Entry<'_>) {
        let conv = self.name(&entry.conv);
        let is_new = !self.conversations.contains_key(&conv);
        if entry.flags & page_flags::ENTRY_REMOVED == 0 {
            self.check_epoch(&conv, entry.epoch);
            let conversation = self.conversations.entry(Arc::clone(&conv)).or_default();
            if is_new && self.history == History::SinceCursor {
                conversation.have = entry.mine;
                conversation.processed = entry.mine;
            }
            conversation.target = conversation.target.max(entry.head);
            if conversation.processed > entry.mine {
                self.dirty.insert(Arc::clone(&conv));
            }
            self.skip_below(&conv, entry.floor);
            self.want(&conv);
        } else if let Some(conversation) = self.conversations.get_mut(&conv) {
            conversation.target = conversation.have;
        }
        self.emit(Event::Conversation(crate::event::Conversation {
            conv,
            flags: entry.flags,
            head: entry.head,
            floor: entry.floor,
            mine: entry.mine,
            read: entry.read,
            unread: entry.unread,
        }));
    }

    /// The next range to FETCH: conversation, from, to, limit.
    pub(crate) fn next_fetch(&mut self, now: Duration, rid: u32) -> Option<(Arc<str>, u64, u64, u16)> {
        if self.fetches.len() >= FETCHES_MAX || self.queue.len() >= STASH_MAX {
            return None;
        }
        for _ in 0..self.wanted.len() {
            let conv = self.wanted.pop_front()?;
            let Some(conversation) = self.conversations.get_mut(&conv) else { continue };
            if let FetchState::Pausing(until) = conversation.fetch
                && until > now
            {
                self.wanted.push_back(conv);
                continue;
            }
            conversation.fetch = FetchState::Idle;
            if let Some((from, to)) = conversation.missing() {
                conversation.fetch = FetchState::InFlight;
                self.fetches.insert(rid, Fetch { conv: Arc::clone(&conv), to, asked: now });
                return Some((conv, from, to, FETCH_LIMIT));
            }
        }
        None
    }

    /// When the oldest FETCH that waits for its answer was written.
    pub(crate) fn oldest_fetch(&self) -> Option<Duration> {
        self.fetches.values().map(|fetch| fetch.asked).min()
    }

    /// A PAGE. `false`: it answers no FETCH of this inbox.
    pub(crate) fn page<'m>(
        &mut self,
        now: Duration,
        rid: u32,
        head: PageHead,
        messages: impl Iterator<Item = &'m Message<'m>>,
        user: &str,
    ) -> bool {
        let Some(Fetch { conv, to, .. }) = self.fetches.remove(&rid) else { return false };
        let Some(before) = self.conversations.get_mut(&conv).map(|conversation| {
            conversation.fetch = FetchState::Idle;
            conversation.have
        }) else {
            return true;
        };
        if self.check_epoch(&conv, head.epoch) {
            self.head(&conv, head.head);
            return true;
        }
        self.skip_below(&conv, head.floor);
        for message in messages {
            // The page holds all there is from its first seq on, so what it leaves out is not there for this user.
            self.skip_below(&conv, message.seq);
            self.store(received(&conv, message, user));
        }
        if head.flags & page_flags::MORE == 0 {
            self.skip_below(&conv, to.min(head.head) + 1);
        }
        let Some(conversation) = self.conversations.get_mut(&conv) else { return true };
        if conversation.have > before {
            conversation.stalls = 0;
        } else if conversation.missing().is_some() {
            conversation.stalls += 1;
            if conversation.stalls >= STALLS_MAX {
                conversation.stalls = 0;
                conversation.target = conversation.have;
            }
            self.pause(&conv, now + STALL_WAIT);
            return true;
        }
        self.want(&conv);
        true
    }

    /// ERROR in place of a PAGE. `retry_at`: when to ask again; `None`: give up. `false`: not of this inbox.
    pub(crate) fn fetch_refused(&mut self, rid: u32, retry_at: Option<Duration>) -> bool {
        let Some(Fetch { conv, .. }) = self.fetches.remove(&rid) else { return false };
        let Some(conversation) = self.conversations.get_mut(&conv) else { return true };
        conversation.fetch = FetchState::Idle;
        match retry_at {
            Some(at) => self.pause(&conv, at),
            None => conversation.target = conversation.have,
        }
        true
    }

    /// The next event. Taking a message counts as having processed it when `auto` is set.
    pub(crate) fn poll(&mut self, now: Duration, auto: bool) -> Option<Event> {
        while let Some(Queued { event, pos, turn }) = self.queue.pop_front() {
            if pos > 0 && turn == self.turn {
                self.pos_taken = self.pos_taken.max(pos);
                self.unacked += 1;
                self.ack_soon(now);
            }
            match &event {
                Some(Event::Message(message)) if auto => self.processed(now, &message.conv.clone(), message.seq),
                Some(Event::Break { conv, to, .. }) if auto => self.processed(now, &conv.clone(), *to),
                _ => {}
            }
            if event.is_some() {
                // Positions behind it, up to the next event, bring nothing more to take.
                return event;
            }
        }
        None
    }

    /// Adds an event that is not a message.
    pub(crate) fn emit(&mut self, event: Event) {
        self.queue.push_back(Queued { event: Some(event), pos: 0, turn: self.turn });
    }

    /// The application holds everything of `conv` up to `seq`.
    pub(crate) fn processed(&mut self, now: Duration, conv: &str, seq: u64) {
        let Some((name, conversation)) = self.conversations.get_key_value(conv) else { return };
        let seq = seq.min(conversation.have);
        if seq > conversation.processed {
            let name = Arc::clone(name);
            self.conversations.entry(Arc::clone(&name)).or_default().processed = seq;
            self.again.processed(&name, seq);
            self.dirty.insert(name);
            self.ack_soon(now);
        }
    }

    /// The next ACK, if one is due: half a window of deliveries, or a second, or `flush`.
    pub(crate) fn next_ack(&mut self, now: Duration, window: u16, flush: bool) -> Option<(u64, Vec<Cursor<'static>>)> {
        if self.unacked == 0 && self.dirty.is_empty() {
            self.ack_at = None;
            return None;
        }
        let half = u32::from(window / 2).max(1);
        if !flush && self.unacked < half && self.ack_at.is_some_and(|at| at > now) {
            return None;
        }
        self.unacked = 0;
        let mut cursors = Vec::with_capacity(self.dirty.len().min(ACK_CURSORS_MAX));
        while cursors.len() < ACK_CURSORS_MAX
            && let Some(conv) = self.dirty.pop_first()
        {
            let seq = self.conversations.get(&conv).map_or(0, |conversation| conversation.processed);
            if seq > 0 {
                cursors.push(Cursor { conv: Cow::Owned(conv.to_string()), seq });
                self.told.push_back(conv);
            }
        }
        let surplus = self.told.len().saturating_sub(ACK_CURSORS_MAX);
        self.told.drain(..surplus);
        self.ack_at = (!self.dirty.is_empty()).then_some(now);
        Some((self.pos_taken, cursors))
    }

    /// When something happens by itself, at the earliest.
    pub(crate) fn wake_at(&self) -> Option<Duration> {
        let pauses = self.wanted.iter().filter_map(|conv| match self.conversations.get(conv)?.fetch {
            FetchState::Pausing(until) => Some(until),
            _ => None,
        });
        self.ack_at.into_iter().chain(pauses).min()
    }

    /// Whether the application has processed everything that is known to exist.
    pub(crate) fn is_processed(&self) -> bool {
        self.conversations.values().all(|conversation| conversation.processed >= conversation.target)
    }

    /// What the application has processed, to be kept beside its messages.
    pub(crate) fn positions(&self) -> Vec<Position> {
        let all = self.conversations.iter();
        all.map(|(conv, one)| Position { conv: Arc::clone(conv), epoch: one.epoch, have: one.processed }).collect()
    }

    fn ack_soon(&mut self, now: Duration) {
        self.ack_at.get_or_insert(now + ACK_WAIT);
    }

    fn name(&self, conv: &str) -> Arc<str> {
        self.conversations.get_key_value(conv).map_or_else(|| conv.into(), |(name, _)| Arc::clone(name))
    }

    /// Queues a FETCH if something is missing and none is queued or on the way.
    fn want(&mut self, conv: &Arc<str>) {
        let Some(conversation) = self.conversations.get_mut(conv) else { return };
        if conversation.fetch == FetchState::Idle && conversation.missing().is_some() {
            conversation.fetch = FetchState::Queued;
            self.wanted.push_back(Arc::clone(conv));
        }
    }

    fn pause(&mut self, conv: &Arc<str>, until: Duration) {
        if let Some(conversation) = self.conversations.get_mut(conv)
            && conversation.missing().is_some()
        {
            conversation.fetch = FetchState::Pausing(until);
            self.wanted.push_back(Arc::clone(conv));
        }
    }

    /// Nothing below `seq` is to be had: what is missing there becomes a break. Early messages are given out on the way.
    fn skip_below(&mut self, conv: &Arc<str>, seq: u64) {
        loop {
            self.unstash(conv);
            let Some(conversation) = self.conversations.get_mut(conv) else { return };
            if conversation.have + 1 >= seq {
                return;
            }
            let early = conversation.stash.keys().next().copied().unwrap_or(u64::MAX);
            let (from, to) = (conversation.have + 1, seq.min(early) - 1);
            conversation.have = to;
            self.emit(Event::Break { conv: Arc::clone(conv), from, to });
        }
    }

    /// Gives out the early messages whose turn has come, and drops those that came another way meanwhile.
    fn unstash(&mut self, conv: &Arc<str>) {
        let Some(conversation) = self.conversations.get_mut(conv) else { return };
        while let Some(first) = conversation.stash.first_entry()
            && *first.key() <= conversation.have + 1
        {
            let message = first.remove();
            self.stash_count -= 1;
            if message.seq == conversation.have + 1 {
                conversation.have += 1;
                self.queue.push_back(Queued { event: Some(Event::Message(message)), pos: 0, turn: self.turn });
            }
        }
    }

    /// A different epoch: the numbering began anew, so everything known of the conversation is void. `true` if so.
    fn check_epoch(&mut self, conv: &Arc<str>, epoch: u32) -> bool {
        let Some(conversation) = self.conversations.get_mut(conv) else { return false };
        let known = conversation.epoch.replace(epoch);
        if known.is_none_or(|known| known == epoch) {
            return false;
        }
        self.stash_count -= conversation.stash.len();
        // What was heard before SYNC told of the epoch was of it already, and may have been dropped as known.
        let (turn, heard) = conversation.heard;
        let target = if turn == self.turn { heard } else { 0 };
        *conversation = Conversation { epoch: Some(epoch), target, fetch: conversation.fetch, ..Conversation::default() };
        self.dirty.remove(conv);
        self.again.processed(conv, u64::MAX);
        self.emit(Event::Reset { conv: Arc::clone(conv) });
        true
    }
}

impl Conversation {
    /// The first missing range. An empty one where only the epoch is not known: nothing but a PAGE or a SYNC tells it, and without it
    /// a new life of the numbering would not be noticed.
    fn missing(&self) -> Option<(u64, u64)> {
        let early = self.stash.keys().next().copied().unwrap_or(u64::MAX);
        let (from, to) = (self.have + 1, self.target.min(early - 1));
        if from <= to {
            return Some((from, to));
        }
        (self.epoch.is_none() && self.have > 0).then_some((from, self.have))
    }
}

fn received(conv: &Arc<str>, message: &Message<'_>, user: &str) -> Received {
    Received {
        conv: Arc::clone(conv),
        seq: message.seq,
        mid: message.mid,
        flags: message.flags,
        kind: message.kind,
        exp_s: message.exp_s,
        cmid: message.cmid,
        from: (*message.from).into(),
        own: message.flags & deliver_flags::OWN != 0 || message.from == user,
        trace: None,
        payload: (*message.payload).into(),
    }
}
