//! The order of everything: pure, deterministic, the same for live traffic and for replay.
//!
//! Two steps. *Admit* looks at a submission and the state in memory and either refuses it or writes the [`Entry`] that the log will
//! keep, with the seq and mid it would get. *Apply* takes an entry, changes the state, and adds the rows it means to the batch of the
//! group. Live traffic admits and applies at once; replay applies what was logged. `apply` works out seq, mid and version again and
//! refuses to go on if they differ from what is logged: then memory and log do not tell the same story.
//!
//! Time is the stamp of the entry. What is not in memory must be loaded first ([`State::is_loaded`], [`State::insert`]); loading is
//! somebody else's work.

use std::collections::{HashMap, VecDeque};

use super::dedup::{Known, Recent};
use super::entry::{Change, Entry, Message, Names, Operation};
use super::job::Loaded;
use super::record::{self, Value};
use super::schema::{
    self, Batch, Change as RowChange, Conv, Device, Hashes, Keyspace, META_POSITION, User, dedup_bucket, dedup_quarter,
};
use crate::ids::{Cmid, ConversationKind, Mid, conversation_kind, is_user};
use crate::limits::{DEDUP_RECENT_MAX, GROUP_MEMBERS_MAX, LOADED_WEIGHT_MAX};
use crate::mail::{MemberChange, MemberRefusal};
use crate::wire::envelope::{ErrorCode, Trace, deliver_flags, send_flags};
use crate::wire::message::Text;

/// A SEND as the store sees it.
#[derive(Clone, Copy, Debug)]
pub struct Submission<'a> {
    /// Conversation.
    pub conv: &'a str,
    /// Sender.
    pub user: &'a str,
    /// The sender's id for it.
    pub cmid: Cmid,
    /// [`send_flags`].
    pub flags: u8,
    /// The application's.
    pub kind: u16,
    /// Seconds to live; 0: as the conversation.
    pub ttl_s: u32,
    /// Trace context.
    pub trace: Option<Trace>,
    /// The payload.
    pub payload: &'a [u8],
    /// What `dedup.N` says about the cmid; asked only when SEND carries RETRY and memory does not know it.
    pub stored: Option<record::Dedup>,
}

/// What admission says about a SEND.
#[derive(Clone, PartialEq, Debug)]
pub enum Admission<'a> {
    /// It gets a place: log and apply this entry.
    Accept(Entry<'a>),
    /// TRANSIENT: deliver, store nothing.
    Transient,
    /// It was stored before.
    Duplicate {
        /// The place it got.
        seq: u64,
        /// The id it got.
        mid: Mid,
    },
    /// Nothing happens.
    Refuse(ErrorCode),
}

/// What admission says about a change of members.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MemberAdmission {
    /// Something changes: for these users only.
    Accept(Operation, Vec<Text>),
    /// Nothing changes; answer with the present state.
    Unchanged,
    /// It is not made.
    Refuse(MemberRefusal),
}

/// What admission says about READ.
#[derive(Clone, PartialEq, Debug)]
pub enum ReadAdmission<'a> {
    /// The position moves: log and apply this entry.
    Accept(Entry<'a>),
    /// It stands here already.
    Stands(u64),
    /// The position in force must be loaded first.
    Unknown,
    /// 3001 or 3004.
    Refuse(ErrorCode),
}

/// An entry and the state disagree: the log holds something that the state before it cannot have led to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disagreement {
    /// Which field.
    pub what: &'static str,
    /// What the log says.
    pub logged: u64,
    /// What the state gives.
    pub derived: u64,
}

impl std::fmt::Display for Disagreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "log and state disagree: {} is {} in the log, {} by the state", self.what, self.logged, self.derived)
    }
}

impl std::error::Error for Disagreement {}

/// A hybrid logical clock: every value is greater than the last, and close to the wall clock while that goes forward.
#[derive(Clone, Copy, Debug)]
pub struct HybridClock {
    last: Mid,
    shard: u16,
}

impl HybridClock {
    /// Goes on after `last`.
    #[must_use]
    pub fn new(shard: u16, last: Mid) -> Self {
        Self { last, shard }
    }

    /// The value that follows for the time `now_ms`. 1024 values fit a millisecond; more borrow from the next.
    #[must_use]
    pub fn next(&self, now_ms: u64) -> Mid {
        let last_ms = self.last.unix_ms();
        if now_ms > last_ms {
            return Mid::new(now_ms, self.shard, 0);
        }
        match u16::try_from(self.last.0 & COUNTER_MASK).expect("10 bits") + 1 {
            counter if u64::from(counter) <= COUNTER_MASK => Mid::new(last_ms, self.shard, counter),
            _ => Mid::new(last_ms + 1, self.shard, 0),
        }
    }
}

/// A member of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// User id.
    pub name: Text,
    /// Its keyed hash.
    pub user: User,
    /// First seq the user may see.
    pub joined: u64,
}

/// A conversation in memory.
#[derive(Debug)]
pub struct Conversation {
    /// Its id.
    pub id: Text,
    /// Whether it exists: created, or for `d:` written to.
    pub exists: bool,
    /// Highest seq.
    pub head: u64,
    /// Not QUIET messages up to head.
    pub count: u64,
    /// Changes of the membership.
    pub version: u64,
    /// Sorted by name. For `d:` its two users, one for a note to oneself.
    pub members: Vec<Member>,
    floor: u64,
    floor_count: u64,
    changed: u64,
    /// Read positions as far as they are known.
    reads: HashMap<User, u64>,
    /// Group that touched it last: not evicted before that group is closed.
    touched: u64,
    used: bool,
}

impl Conversation {
    /// Place of a user among the members.
    fn find(&self, name: &str) -> Result<usize, usize> {
        self.members.binary_search_by(|member| member.name.as_str().cmp(name))
    }

    /// Whether `name` is a member.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    fn weight(&self) -> usize {
        1 + self.members.len() + self.reads.len()
    }
}

/// All that is known in memory: conversations in use, recent cmids, the clock.
#[derive(Debug)]
pub struct State {
    hashes: Hashes,
    clock: HybridClock,
    epoch: u32,
    dedup_s: u32,
    conversations: HashMap<Conv, Conversation>,
    /// Conversations in the order in which they are looked at for eviction.
    ring: VecDeque<Conv>,
    weight: usize,
    recent: Recent,
}

impl State {
    /// The state at `position` of a store; no conversation is loaded yet.
    #[must_use]
    pub fn new(store: &record::Store, position: &record::Position) -> Self {
        Self {
            hashes: Hashes::new(store.hash_key),
            clock: HybridClock::new(store.shard, Mid(position.changed)),
            epoch: position.epoch,
            dedup_s: store.dedup_s,
            conversations: HashMap::new(),
            ring: VecDeque::new(),
            weight: 0,
            recent: Recent::new(DEDUP_RECENT_MAX),
        }
    }

    /// The hashes of this store.
    #[must_use]
    pub fn hashes(&self) -> &Hashes {
        &self.hashes
    }

    /// Epoch of every conversation.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Whether head and members are in memory.
    #[must_use]
    pub fn is_loaded(&self, conv: Conv) -> bool {
        self.conversations.contains_key(&conv)
    }

    /// A conversation in memory, existing or not.
    #[must_use]
    pub fn conversation(&self, conv: Conv) -> Option<&Conversation> {
        self.conversations.get(&conv)
    }

    /// Puts what the engine says into memory. What is there already is newer and stays.
    pub fn insert(&mut self, id: &str, loaded: Option<Loaded>) {
        let conv = self.hashes.conv(id);
        if self.conversations.contains_key(&conv) {
            return;
        }
        let exists = loaded.is_some();
        let loaded = loaded.unwrap_or(Loaded { floor: 1, ..Loaded::default() });
        let member = |name: &Text, joined| Member { user: self.hashes.user(name), name: name.clone(), joined };
        let mut members: Vec<Member> = match conversation_kind(id) {
            Some(ConversationKind::Direct(a, b)) => [a, b].iter().map(|name| member(&Text::from(*name), 1)).collect(),
            _ => loaded.members.iter().map(|(name, joined)| member(name, *joined)).collect(),
        };
        members.sort_by(|a, b| a.name.cmp(&b.name));
        members.dedup_by(|a, b| a.name == b.name);
        let conversation = Conversation {
            id: Text::from(id),
            exists,
            head: loaded.head,
            count: loaded.count,
            version: loaded.version,
            members,
            floor: loaded.floor.max(1),
            floor_count: loaded.floor_count,
            changed: loaded.changed,
            reads: HashMap::new(),
            touched: 0,
            used: true,
        };
        self.weight += conversation.weight();
        self.conversations.insert(conv, conversation);
        self.ring.push_back(conv);
    }

    /// Puts the read position of a user, as the engine says, into memory. A position known already is newer and stays.
    pub fn insert_read(&mut self, conv: Conv, user: User, seq: u64) {
        if let Some(conversation) = self.conversations.get_mut(&conv) {
            let before = conversation.weight();
            conversation.reads.entry(user).or_insert(seq);
            self.weight += conversation.weight() - before;
        }
    }

    /// Whether `dedup.N` must be asked before this SEND can be admitted.
    #[must_use]
    pub fn needs_dedup(&self, cmid: Cmid, user: User, flags: u8) -> bool {
        flags & send_flags::RETRY != 0 && self.recent.find(cmid, user).is_none()
    }

    /// Whether `user` may ask anything of a conversation at all, as far as its id tells: saves reading the engine for strangers.
    #[must_use]
    pub fn is_plausible(conv: &str, user: &str) -> bool {
        match conversation_kind(conv) {
            Some(ConversationKind::Direct(a, b)) => user == a || user == b,
            Some(_) => true,
            None => false,
        }
    }

    /// Looks at a SEND. Order of checks: 3001, 3002, dedup (3009).
    ///
    /// # Panics
    /// If the conversation is not loaded.
    #[must_use]
    pub fn admit_send<'a>(&self, send: &Submission<'a>, now_ms: u64) -> Admission<'a> {
        let (conv, user) = (self.hashes.conv(send.conv), self.hashes.user(send.user));
        let conversation = self.conversations.get(&conv).expect("loaded before it is asked");
        let direct = match conversation_kind(send.conv) {
            Some(ConversationKind::Direct(..)) => true,
            Some(ConversationKind::System) if conversation.has(send.user) => return Admission::Refuse(ErrorCode::NotAllowed),
            _ => false,
        };
        if !conversation.has(send.user) || !(direct || conversation.exists) {
            return Admission::Refuse(ErrorCode::NotMember);
        }
        if send.flags & send_flags::TRANSIENT != 0 {
            return Admission::Transient;
        }
        let fingerprint = self.hashes.fingerprint(send.kind, send.payload);
        let stored =
            send.stored.map(|row| Known { conv: Conv(row.conv), seq: row.seq, mid: Mid(row.mid), fingerprint: row.fingerprint });
        if let Some(known) = self.recent.find(send.cmid, user).copied().or(stored) {
            return if known.conv == conv && known.fingerprint == fingerprint {
                Admission::Duplicate { seq: known.seq, mid: known.mid }
            } else {
                Admission::Refuse(ErrorCode::CmidReused)
            };
        }
        let exp_s = match send.ttl_s {
            0 => 0,
            ttl_s => u32::try_from(now_ms / 1000 + u64::from(ttl_s)).unwrap_or(u32::MAX),
        };
        Admission::Accept(Entry {
            stamp_ms: now_ms,
            change: Change::Message(Message {
                mid: self.clock.next(now_ms),
                seq: conversation.head + 1,
                fingerprint,
                cmid: send.cmid,
                flags: send.flags & (send_flags::QUIET | send_flags::TRACE),
                kind: send.kind,
                exp_s,
                trace: send.trace,
                conv: send.conv,
                user: send.user,
                payload: send.payload,
            }),
        })
    }

    /// Looks at a READ.
    ///
    /// # Panics
    /// If the conversation is not loaded.
    #[must_use]
    pub fn admit_read<'a>(&self, conv: &'a str, user: &'a str, seq: u64, now_ms: u64) -> ReadAdmission<'a> {
        let conversation = self.conversations.get(&self.hashes.conv(conv)).expect("loaded before it is asked");
        if !conversation.has(user) {
            return ReadAdmission::Refuse(ErrorCode::NotMember);
        }
        if seq > conversation.head {
            return ReadAdmission::Refuse(ErrorCode::BeyondHead);
        }
        match conversation.reads.get(&self.hashes.user(user)) {
            None => ReadAdmission::Unknown,
            Some(&position) if seq <= position => ReadAdmission::Stands(position),
            Some(_) => {
                let mid = self.clock.next(now_ms);
                ReadAdmission::Accept(Entry { stamp_ms: now_ms, change: Change::Read { mid, seq, conv, user } })
            }
        }
    }

    /// Looks at a cursor: `Ok(false)` for a conversation the user does not have, which is skipped.
    ///
    /// # Errors
    /// 3004 above head.
    ///
    /// # Panics
    /// If the conversation is not loaded.
    pub fn admit_cursor(&self, conv: Conv, user: &str, seq: u64) -> Result<bool, ErrorCode> {
        let conversation = self.conversations.get(&conv).expect("loaded before it is asked");
        if !conversation.exists || !conversation.has(user) {
            return Ok(false);
        }
        if seq > conversation.head { Err(ErrorCode::BeyondHead) } else { Ok(seq > 0) }
    }

    /// Looks at a change of members.
    ///
    /// # Panics
    /// If the conversation is not loaded.
    #[must_use]
    pub fn admit_members(&self, conv: &str, change: &MemberChange) -> MemberAdmission {
        let named = match change {
            MemberChange::Create(users) | MemberChange::Add(users) | MemberChange::Remove(users) => &users[..],
            MemberChange::Show => &[],
        };
        if !is_group(conv) || !named.iter().all(|name| is_user(name)) {
            return MemberAdmission::Refuse(MemberRefusal::BadName);
        }
        let conversation = self.conversations.get(&self.hashes.conv(conv)).expect("loaded before it is asked");
        let creates = matches!(change, MemberChange::Create(_));
        match conversation.exists {
            true if creates => return MemberAdmission::Refuse(MemberRefusal::Exists),
            false if !creates => return MemberAdmission::Refuse(MemberRefusal::Unknown),
            _ => {}
        }
        let removes = matches!(change, MemberChange::Remove(_));
        let mut users: Vec<Text> = named.iter().filter(|name| conversation.has(name) == removes).cloned().collect();
        users.sort();
        users.dedup();
        if !removes && conversation.members.len() + users.len() > GROUP_MEMBERS_MAX {
            return MemberAdmission::Refuse(MemberRefusal::TooMany);
        }
        match change {
            MemberChange::Create(_) => MemberAdmission::Accept(Operation::Create, users),
            MemberChange::Add(_) if !users.is_empty() => MemberAdmission::Accept(Operation::Add, users),
            MemberChange::Remove(_) if !users.is_empty() => MemberAdmission::Accept(Operation::Remove, users),
            _ => MemberAdmission::Unchanged,
        }
    }

    /// The entry of an admitted change of members.
    ///
    /// # Panics
    /// If the conversation is not loaded.
    #[must_use]
    pub fn members_entry<'a>(&self, conv: &'a str, operation: Operation, users: &'a [Text], now_ms: u64) -> Entry<'a> {
        let conversation = self.conversations.get(&self.hashes.conv(conv)).expect("admitted");
        let (mid, version) = (self.clock.next(now_ms), conversation.version + 1);
        let users = Names::List(users);
        Entry { stamp_ms: now_ms, change: Change::Members { mid, version, operation, conv, users } }
    }

    /// Applies one entry of commit group `group` and adds its rows to `batch`.
    ///
    /// # Errors
    /// [`Disagreement`] if the entry cannot follow this state. Live traffic never sees it; in replay it means that log and engine do
    /// not belong together.
    ///
    /// # Panics
    /// If the conversation of a message, a membership change or a READ is not loaded.
    pub fn apply(&mut self, entry: &Entry<'_>, group: u64, batch: &mut Batch) -> Result<(), Disagreement> {
        match &entry.change {
            Change::Message(message) => self.apply_message(message, entry.stamp_ms, group, batch),
            Change::Members { mid, version, operation, conv, users } => {
                self.tick(*mid, entry.stamp_ms, batch)?;
                self.apply_members(*mid, *version, *operation, conv, users, group, batch)
            }
            Change::Read { mid, seq, conv, user } => {
                self.tick(*mid, entry.stamp_ms, batch)?;
                let (conv, user) = (self.hashes.conv(conv), self.hashes.user(user));
                self.set_read(conv, user, *seq, *mid, group, batch);
                Ok(())
            }
            Change::Cursor { seq, conv, user, device } => {
                let key = self.cursor_key(user, device, conv);
                let row = record::Cursor { seq: *seq };
                batch.push(Keyspace::Cursor, RowChange::Max, &key, |out| row.encode(out));
                Ok(())
            }
            Change::Epoch { epoch } => {
                self.epoch = *epoch;
                Ok(())
            }
        }
    }

    /// Closes a group: adds the row that says how far the engine is.
    pub fn finish(&self, group: u64, batch: &mut Batch) {
        let row = record::Position { group, changed: self.clock.last.0, epoch: self.epoch };
        batch.push(Keyspace::Meta, RowChange::Put, META_POSITION, |out| row.encode(out));
    }

    /// Forgets what is above the bounds. `projected` and `open` are the last group in the engine and the one being gathered: what the
    /// open group touched stays, because no snapshot will hold it yet.
    pub fn evict(&mut self, projected: u64, open: u64) {
        self.recent.evict(projected, open.saturating_sub(1));
        // Twice around at most: once to take the mark "used", once to take the conversation.
        for _ in 0..2 * self.ring.len() {
            if self.weight <= LOADED_WEIGHT_MAX {
                return;
            }
            let Some(conv) = self.ring.pop_front() else { return };
            let conversation = self.conversations.get_mut(&conv).expect("the ring names what is loaded");
            if conversation.used || conversation.touched >= open {
                conversation.used = false;
                self.ring.push_back(conv);
            } else {
                self.weight -= conversation.weight();
                self.conversations.remove(&conv);
            }
        }
    }

    /// Marks a conversation as in use.
    pub fn touch(&mut self, conv: Conv) {
        if let Some(conversation) = self.conversations.get_mut(&conv) {
            conversation.used = true;
        }
    }

    fn apply_message(&mut self, message: &Message<'_>, stamp_ms: u64, group: u64, batch: &mut Batch) -> Result<(), Disagreement> {
        let (conv, user) = (self.hashes.conv(message.conv), self.hashes.user(message.user));
        let conversation = self.conversations.get(&conv).expect("loaded before it is applied");
        agree("seq", message.seq, conversation.head + 1)?;
        self.tick(message.mid, stamp_ms, batch)?;
        let epoch = self.epoch;
        let conversation = self.conversations.get_mut(&conv).expect("looked up above");
        conversation.head = message.seq;
        conversation.count += u64::from(message.flags & send_flags::QUIET == 0);
        conversation.touched = group;
        conversation.used = true;
        if !conversation.exists {
            conversation.exists = true;
            conversation.changed = message.mid.0;
            push_head(conversation, conv, epoch, batch);
            for member in &conversation.members {
                push_conv_of(conversation, conv, member.user, member.joined, false, message.mid, batch);
            }
        } else if message.seq.is_multiple_of(HEAD_EVERY) {
            push_head(conversation, conv, epoch, batch);
        }
        let header = record::MessageHeader {
            mid: message.mid,
            count: conversation.count,
            kind: message.kind,
            flags: message.flags & (deliver_flags::QUIET | deliver_flags::TRACE),
            exp_s: message.exp_s,
            cmid: message.cmid,
            from: message.user,
            trace: message.trace,
        };
        batch.push(Keyspace::Msg, RowChange::Put, &schema::msg_key(conv, message.seq), |out| {
            header.encode(message.payload, out);
        });
        let row = record::Dedup { conv: conv.0, seq: message.seq, mid: message.mid.0, fingerprint: message.fingerprint };
        let bucket = dedup_bucket(dedup_quarter(message.mid, self.dedup_s));
        batch.push(bucket, RowChange::Put, &schema::dedup_key(message.cmid, user), |out| row.encode(out));
        let known = Known { conv, seq: message.seq, mid: message.mid, fingerprint: message.fingerprint };
        self.recent.insert(message.cmid, user, known, group);
        self.set_read(conv, user, message.seq, message.mid, group, batch);
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one entry, taken apart once")]
    fn apply_members(
        &mut self,
        mid: Mid,
        version: u64,
        operation: Operation,
        id: &str,
        users: &Names<'_>,
        group: u64,
        batch: &mut Batch,
    ) -> Result<(), Disagreement> {
        let conv = self.hashes.conv(id);
        let conversation = self.conversations.get_mut(&conv).expect("loaded before it is applied");
        agree("version", version, conversation.version + 1)?;
        let before = conversation.weight();
        conversation.exists = true;
        conversation.version = version;
        conversation.changed = mid.0;
        conversation.touched = group;
        push_head(conversation, conv, self.epoch, batch);
        for name in users.iter() {
            let user = self.hashes.user(name);
            match (operation, conversation.find(name)) {
                (Operation::Create | Operation::Add, Err(_)) => {
                    let joined = conversation.head + 1;
                    // Sorted once below: inserting one by one would be quadratic for a large group.
                    conversation.members.push(Member { name: Text::from(name), user, joined });
                    let row = record::Member { user: name, joined, role: 0, muted: 0 };
                    batch.push(Keyspace::Member, RowChange::Put, &schema::member_key(conv, user), |out| row.encode(out));
                    push_conv_of(conversation, conv, user, joined, false, mid, batch);
                }
                (Operation::Remove, Ok(index)) => {
                    let joined = conversation.members[index].joined;
                    batch.push(Keyspace::Member, RowChange::Delete, &schema::member_key(conv, user), |_| {});
                    push_conv_of(conversation, conv, user, joined, true, mid, batch);
                }
                _ => return Err(Disagreement { what: "member", logged: version, derived: version }),
            }
        }
        match operation {
            Operation::Create | Operation::Add => conversation.members.sort_by(|a, b| a.name.cmp(&b.name)),
            Operation::Remove => {
                let mut gone: Vec<&str> = users.iter().collect();
                gone.sort_unstable();
                conversation.members.retain(|member| gone.binary_search(&member.name.as_str()).is_err());
            }
        }
        self.weight = self.weight + conversation.weight() - before;
        Ok(())
    }

    fn set_read(&mut self, conv: Conv, user: User, seq: u64, mid: Mid, group: u64, batch: &mut Batch) {
        let conversation = self.conversations.get_mut(&conv).expect("loaded before it is applied");
        let before = conversation.weight();
        conversation.reads.insert(user, seq);
        conversation.touched = group;
        self.weight += conversation.weight() - before;
        let row = record::Read { seq, changed: mid.0 };
        batch.push(Keyspace::Read, RowChange::Put, &schema::user_key(user, conv), |out| row.encode(out));
    }

    /// Moves the clock, and empties the dedup buckets whose turn has come again.
    fn tick(&mut self, logged: Mid, stamp_ms: u64, batch: &mut Batch) -> Result<(), Disagreement> {
        let mid = self.clock.next(stamp_ms);
        agree("mid", logged.0, mid.0)?;
        let (before, after) = (dedup_quarter(self.clock.last, self.dedup_s), dedup_quarter(mid, self.dedup_s));
        if self.clock.last != Mid(0) && after > before {
            let first = (before + 1).max(after.saturating_sub(4));
            (first..=after).for_each(|quarter| batch.clear_keyspace(dedup_bucket(quarter)));
        }
        self.clock.last = mid;
        Ok(())
    }

    fn cursor_key(&self, user: &str, device: &str, conv: &str) -> [u8; 32] {
        let (user, device): (User, Device) = (self.hashes.user(user), self.hashes.device(device));
        schema::cursor_key(user, device, self.hashes.conv(conv))
    }
}

fn push_head(conversation: &Conversation, conv: Conv, epoch: u32, batch: &mut Batch) {
    let row = record::Head {
        conv: &conversation.id,
        epoch,
        floor: conversation.floor,
        floor_count: conversation.floor_count,
        head: conversation.head,
        count: conversation.count,
        version: conversation.version,
        changed: conversation.changed,
        flags: 0,
    };
    batch.push(Keyspace::Head, RowChange::Put, &schema::head_key(conv), |out| row.encode(out));
}

fn push_conv_of(conversation: &Conversation, conv: Conv, user: User, joined: u64, left: bool, mid: Mid, batch: &mut Batch) {
    let row = record::ConvOf { conv: &conversation.id, joined, left, version: conversation.version, changed: mid.0 };
    batch.push(Keyspace::ConvOf, RowChange::Put, &schema::user_key(user, conv), |out| row.encode(out));
}

fn agree(what: &'static str, logged: u64, derived: u64) -> Result<(), Disagreement> {
    if logged == derived { Ok(()) } else { Err(Disagreement { what, logged, derived }) }
}

fn is_group(conv: &str) -> bool {
    matches!(conversation_kind(conv), Some(ConversationKind::Group | ConversationKind::Channel))
}

/// Bits of the counter in a mid.
const COUNTER_MASK: u64 = (1 << 10) - 1;

/// A head row is written with every message whose seq is a multiple of this.
const HEAD_EVERY: u64 = 1_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::entry::entries;
    use super::super::model::Engine;
    use super::*;

    const STORE: record::Store = record::Store { shard: 0, shards: 1, dedup_s: 86_400, hash_key: [7; 16] };
    const NOW_MS: u64 = 1_764_000_000_000;
    const CONVS: [&str; 5] = ["d:al:bo", "d:al:al", "g:one", "g:two", "c:big"];
    const USERS: [&str; 3] = ["al", "bo", "cy"];

    /// What a test does to the store.
    #[derive(Clone, Debug)]
    enum Step {
        Send {
            conv: usize,
            user: usize,
            cmid: u8,
            payload: u8,
            flags: u8,
        },
        Members {
            conv: usize,
            operation: usize,
            users: Vec<usize>,
        },
        Read {
            conv: usize,
            user: usize,
            seq: u64,
        },
        Cursor {
            conv: usize,
            user: usize,
            seq: u64,
        },
        /// The group ends here.
        Close,
        /// The wall clock jumps.
        Jump(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let (conv, user) = (0..CONVS.len(), 0..USERS.len());
        prop_oneof![
            6 => (conv.clone(), user.clone(), 0..40_u8, 0..2_u8, prop_oneof![Just(0), Just(send_flags::QUIET)])
                .prop_map(|(conv, user, cmid, payload, flags)| Step::Send { conv, user, cmid, payload, flags }),
            2 => (conv.clone(), 0..4_usize, prop::collection::vec(user.clone(), 0..4))
                .prop_map(|(conv, operation, users)| Step::Members { conv, operation, users }),
            1 => (conv.clone(), user.clone(), 0..9_u64).prop_map(|(conv, user, seq)| Step::Read { conv, user, seq }),
            1 => (conv, user, 0..9_u64).prop_map(|(conv, user, seq)| Step::Cursor { conv, user, seq }),
            2 => Just(Step::Close),
            1 => prop_oneof![-90_000_000..90_000_000_i64, -5..5_i64].prop_map(Step::Jump),
        ]
    }

    /// A store without threads: live traffic on one side, the log and the engine it leaves on the other.
    struct Bench {
        state: State,
        engine: Engine,
        now_ms: u64,
        group: u64,
        batch: Batch,
        open: Vec<u8>,
        /// Each group of the log, and the engine after it.
        log: Vec<(Vec<u8>, Engine)>,
        /// Every seq and mid given out, by conversation.
        given: HashMap<&'static str, Vec<u64>>,
        mids: Vec<Mid>,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                state: State::new(&STORE, &record::Position::default()),
                engine: Engine::default(),
                now_ms: NOW_MS,
                group: 1,
                batch: Batch::default(),
                open: Vec::new(),
                log: Vec::new(),
                given: HashMap::new(),
                mids: Vec::new(),
            }
        }

        fn load(state: &mut State, engine: &Engine, id: &str) -> Conv {
            let conv = state.hashes().conv(id);
            if !state.is_loaded(conv) {
                let loaded = engine.load(state.hashes(), id);
                state.insert(id, loaded);
            }
            conv
        }

        fn accept(&mut self, entry: &Entry<'_>) {
            entry.encode(&mut self.open);
            self.state.apply(entry, self.group, &mut self.batch).unwrap();
        }

        fn send(&mut self, conv: &'static str, user: &str, cmid: Cmid, flags: u8, payload: &[u8]) -> Admission<'static> {
            Self::load(&mut self.state, &self.engine, conv);
            let stored = self.engine.dedup(self.state.hashes(), user, cmid).filter(|_| flags & send_flags::RETRY != 0);
            let send = Submission { conv, user, cmid, flags, kind: 1, ttl_s: 0, trace: None, payload, stored };
            match self.state.admit_send(&send, self.now_ms) {
                Admission::Accept(entry) => {
                    let Change::Message(message) = &entry.change else { panic!("a message") };
                    let (seq, mid) = (message.seq, message.mid);
                    self.given.entry(conv).or_default().push(seq);
                    self.mids.push(mid);
                    self.accept(&entry);
                    // The caller only asks which place it got.
                    Admission::Duplicate { seq, mid }
                }
                Admission::Duplicate { seq, mid } => Admission::Duplicate { seq, mid },
                Admission::Transient => Admission::Transient,
                Admission::Refuse(code) => Admission::Refuse(code),
            }
        }

        fn members(&mut self, conv: &'static str, change: &MemberChange) -> MemberAdmission {
            Self::load(&mut self.state, &self.engine, conv);
            let admission = self.state.admit_members(conv, change);
            if let MemberAdmission::Accept(operation, users) = &admission {
                let entry = self.state.members_entry(conv, *operation, users, self.now_ms);
                entry.encode(&mut self.open);
                self.state.apply(&entry, self.group, &mut self.batch).unwrap();
            }
            admission
        }

        fn read(&mut self, conv: &'static str, user: &'static str, seq: u64) -> Result<u64, ErrorCode> {
            let key = Self::load(&mut self.state, &self.engine, conv);
            let hash = self.state.hashes().user(user);
            self.state.insert_read(key, hash, self.engine.read(self.state.hashes(), conv, user));
            match self.state.admit_read(conv, user, seq, self.now_ms) {
                ReadAdmission::Accept(entry) => {
                    self.accept(&entry);
                    Ok(seq)
                }
                ReadAdmission::Stands(position) => Ok(position),
                ReadAdmission::Refuse(code) => Err(code),
                ReadAdmission::Unknown => panic!("the position was given"),
            }
        }

        fn close(&mut self) {
            self.state.finish(self.group, &mut self.batch);
            self.engine.write(std::mem::take(&mut self.batch));
            self.log.push((std::mem::take(&mut self.open), self.engine.clone()));
            self.state.evict(self.group, self.group + 1);
            self.group += 1;
        }

        fn run(&mut self, steps: &[Step]) {
            for step in steps {
                match step.clone() {
                    Step::Send { conv, user, cmid, payload, flags } => {
                        self.send(CONVS[conv], USERS[user], Cmid([cmid + 1; 16]), flags, &[payload]);
                    }
                    Step::Members { conv, operation, users } => {
                        let users = users.iter().map(|&user| Text::from(USERS[user])).collect();
                        let change = match operation {
                            0 => MemberChange::Create(users),
                            1 => MemberChange::Add(users),
                            2 => MemberChange::Remove(users),
                            _ => MemberChange::Show,
                        };
                        self.members(CONVS[conv], &change);
                    }
                    Step::Read { conv, user, seq } => {
                        let _ = self.read(CONVS[conv], USERS[user], seq);
                    }
                    Step::Cursor { conv, user, seq } => {
                        let key = Self::load(&mut self.state, &self.engine, CONVS[conv]);
                        if self.state.admit_cursor(key, USERS[user], seq) == Ok(true) {
                            let change = Change::Cursor { seq, conv: CONVS[conv], user: USERS[user], device: "web" };
                            self.accept(&Entry { stamp_ms: self.now_ms, change });
                        }
                    }
                    Step::Close => self.close(),
                    Step::Jump(by) => self.now_ms = self.now_ms.saturating_add_signed(by),
                }
            }
            self.close();
        }
    }

    /// Replays the groups after `from` upon the engine as it stood there.
    fn replay(log: &[(Vec<u8>, Engine)], from: usize) -> Engine {
        let mut engine = if from == 0 { Engine::default() } else { log[from - 1].1.clone() };
        let mut state = State::new(&STORE, &engine.position());
        let mut group = engine.position().group;
        for (body, _) in &log[from..] {
            group += 1;
            let mut batch = Batch::default();
            for entry in entries(body) {
                let entry = entry.unwrap();
                match &entry.change {
                    Change::Message(Message { conv, .. }) | Change::Members { conv, .. } | Change::Read { conv, .. } => {
                        Bench::load(&mut state, &engine, conv);
                    }
                    Change::Cursor { .. } | Change::Epoch { .. } => {}
                }
                state.apply(&entry, group, &mut batch).unwrap();
            }
            state.finish(group, &mut batch);
            engine.write(batch);
        }
        engine
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        /// Any traffic, cut into any groups: seqs are dense, mids only rise whatever the wall clock does, and replay from every group
        /// gives exactly the rows that live traffic gave.
        #[test]
        fn replay_gives_the_same_rows_from_any_group(steps in prop::collection::vec(step(), 1..120)) {
            let mut bench = Bench::new();
            bench.run(&steps);
            for seqs in bench.given.values() {
                prop_assert!(seqs.iter().enumerate().all(|(index, &seq)| seq == index as u64 + 1));
            }
            prop_assert!(bench.mids.is_sorted_by(|a, b| a < b));
            for from in 0..=bench.log.len() {
                prop_assert_eq!(&replay(&bench.log, from).rows, &bench.engine.rows);
            }
            for (conv, seqs) in &bench.given {
                let history = bench.engine.history(bench.state.hashes(), conv);
                prop_assert_eq!(history.len(), seqs.len());
                let mut cmids: Vec<_> = history.iter().map(|(_, user, cmid, _)| (user.clone(), *cmid)).collect();
                cmids.sort();
                cmids.dedup();
                prop_assert_eq!(cmids.len(), history.len());
            }
        }

        /// Whatever the wall clock says, and however many messages fall into one millisecond, the next value is greater.
        #[test]
        fn hybrid_clock_never_goes_back(times in prop::collection::vec(NOW_MS - 5..NOW_MS + 5, 1..3000)) {
            let mut clock = HybridClock::new(3, Mid(0));
            for now_ms in times {
                let next = clock.next(now_ms);
                prop_assert!(next > clock.last);
                prop_assert!(next.unix_ms() >= now_ms);
                prop_assert_eq!(next.0 >> 10 & COUNTER_MASK, 3);
                clock.last = next;
            }
        }
    }

    /// The counter of one millisecond runs out after 1024 values: the clock borrows the next millisecond.
    #[test]
    fn hybrid_clock_borrows_the_next_millisecond() {
        let mut clock = HybridClock::new(0, Mid(0));
        let mids: Vec<Mid> = (0..1025)
            .map(|_| {
                clock.last = clock.next(NOW_MS);
                clock.last
            })
            .collect();
        assert_eq!(mids[1023], Mid::new(NOW_MS, 0, 1023));
        assert_eq!(mids[1024], Mid::new(NOW_MS + 1, 0, 0));
    }

    /// The same cmid again: the original place, from memory and, after a restart, from the engine when RETRY asks for it; another
    /// payload, kind or conversation under it is 3009; another user's cmid is another message.
    #[test]
    fn a_repeat_gets_the_original_place() {
        let mut bench = Bench::new();
        let cmid = Cmid([9; 16]);
        let first = bench.send("d:al:bo", "al", cmid, 0, b"hi");
        assert_eq!(bench.send("d:al:bo", "al", cmid, 0, b"hi"), first);
        assert_eq!(bench.send("d:al:bo", "al", cmid, 0, b"ho"), Admission::Refuse(ErrorCode::CmidReused));
        assert_eq!(bench.send("d:al:al", "al", cmid, 0, b"hi"), Admission::Refuse(ErrorCode::CmidReused));
        assert_ne!(bench.send("d:al:bo", "bo", cmid, 0, b"hi"), first);
        bench.close();
        bench.state = State::new(&STORE, &bench.engine.position());
        assert_eq!(bench.send("d:al:bo", "al", cmid, send_flags::RETRY, b"hi"), first);
        let reused = bench.send("d:al:al", "al", cmid, send_flags::RETRY, b"hi");
        assert_eq!(reused, Admission::Refuse(ErrorCode::CmidReused));
        assert_eq!(bench.given["d:al:bo"], [1, 2]);
    }

    /// Who may send where, and that refusals and transient messages leave no trace.
    #[test]
    fn strangers_are_refused() {
        let mut bench = Bench::new();
        for (conv, user) in [("d:al:bo", "cy"), ("g:one", "al"), ("c:big", "al")] {
            assert_eq!(bench.send(conv, user, Cmid([1; 16]), 0, b""), Admission::Refuse(ErrorCode::NotMember));
        }
        let users = |names: &[&str]| names.iter().map(|name| Text::from(*name)).collect::<Vec<_>>();
        bench.members("g:one", &MemberChange::Create(users(&["al", "bo", "al"])));
        assert_eq!(bench.send("g:one", "al", Cmid([2; 16]), send_flags::TRANSIENT, b""), Admission::Transient);
        assert!(matches!(bench.send("g:one", "al", Cmid([2; 16]), 0, b""), Admission::Duplicate { seq: 1, .. }));
        bench.members("g:one", &MemberChange::Remove(users(&["al", "cy"])));
        assert_eq!(bench.send("g:one", "al", Cmid([3; 16]), 0, b""), Admission::Refuse(ErrorCode::NotMember));
        assert_eq!(bench.read("g:one", "al", 0), Err(ErrorCode::NotMember));
        let add = MemberChange::Add(users(&["bo"]));
        assert_eq!(bench.members("g:one", &add), MemberAdmission::Unchanged);
        assert_eq!(bench.members("g:two", &add), MemberAdmission::Refuse(MemberRefusal::Unknown));
        assert_eq!(bench.members("d:al:bo", &add), MemberAdmission::Refuse(MemberRefusal::BadName));
        let create = MemberChange::Create(users(&["bo"]));
        assert_eq!(bench.members("g:one", &create), MemberAdmission::Refuse(MemberRefusal::Exists));
        let rejoin = MemberChange::Add(users(&["al"]));
        assert_eq!(bench.members("g:one", &rejoin), MemberAdmission::Accept(Operation::Add, users(&["al"])));
        let conversation = bench.state.conversation(bench.state.hashes().conv("g:one")).unwrap();
        assert_eq!(conversation.version, 3);
        assert_eq!(conversation.members[0].joined, 2);
    }

    /// READ only moves forward and not beyond head; a committed SEND moves the sender's own.
    #[test]
    fn read_position_is_the_highest() {
        let mut bench = Bench::new();
        for cmid in 1..=5 {
            bench.send("d:al:bo", "al", Cmid([cmid; 16]), 0, b"");
        }
        assert_eq!(bench.read("d:al:bo", "bo", 3), Ok(3));
        assert_eq!(bench.read("d:al:bo", "bo", 2), Ok(3));
        assert_eq!(bench.read("d:al:bo", "bo", 6), Err(ErrorCode::BeyondHead));
        assert_eq!(bench.read("d:al:bo", "al", 1), Ok(5));
        let conv = bench.state.hashes().conv("d:al:bo");
        assert_eq!(bench.state.admit_cursor(conv, "al", 6), Err(ErrorCode::BeyondHead));
        assert_eq!(bench.state.admit_cursor(conv, "al", 5), Ok(true));
    }

    /// An entry that cannot follow the state is refused by name: a hole in seq, a mid of another clock, a version skipped.
    #[test]
    fn a_log_that_tells_another_story_is_refused() {
        let mut bench = Bench::new();
        bench.send("d:al:bo", "al", Cmid([1; 16]), 0, b"");
        bench.send("d:al:bo", "al", Cmid([2; 16]), 0, b"");
        let logged: Vec<_> = entries(&bench.open).map(Result::unwrap).collect();
        let mut state = State::new(&STORE, &record::Position::default());
        state.insert("d:al:bo", None);
        let what = |result: Result<(), Disagreement>| result.unwrap_err().what;
        assert_eq!(what(state.apply(&logged[1], 1, &mut Batch::default())), "seq");
        let mut late = State::new(&STORE, &record::Position { changed: Mid::new(NOW_MS + 9, 0, 0).0, ..Default::default() });
        late.insert("d:al:bo", None);
        assert_eq!(what(late.apply(&logged[0], 1, &mut Batch::default())), "mid");
        let users = [Text::from("al")];
        let members = Change::Members {
            mid: Mid::new(NOW_MS, 0, 0),
            version: 2,
            operation: Operation::Create,
            conv: "g:one",
            users: Names::List(&users),
        };
        state.insert("g:one", None);
        let entry = Entry { stamp_ms: NOW_MS, change: members };
        assert_eq!(what(state.apply(&entry, 1, &mut Batch::default())), "version");
    }

    /// When a quarter of the window begins, the bucket whose turn it is loses what it held a window and a quarter ago; the rest stays.
    #[test]
    fn dedup_buckets_are_emptied_in_turn() {
        let mut bench = Bench::new();
        let quarter_ms = u64::from(STORE.dedup_s) * 1000 / 4;
        for turn in 0..7_u8 {
            bench.send("d:al:bo", "al", Cmid([turn + 1; 16]), 0, b"");
            bench.close();
            bench.now_ms += quarter_ms;
        }
        let known = |turn: u8| bench.engine.dedup(bench.state.hashes(), "al", Cmid([turn + 1; 16])).is_some();
        assert_eq!((0..7).map(known).collect::<Vec<_>>(), [false, false, true, true, true, true, true]);
    }
}
