//! The order of everything: pure, deterministic, the same for live traffic and for replay.
//!
//! Two steps. *Admit* looks at a submission and the state in memory and either refuses it or writes the [`Entry`] that the log will
//! keep, with the seq and mid it would get. *Apply* takes an entry, changes the state, and adds the rows it means to the batch of the
//! group. Live traffic admits and applies at once; replay applies what was logged. `apply` works out seq, mid and version again and
//! refuses to go on if they differ from what is logged: then memory and log do not tell the same story.
//!
//! Time is the stamp of the entry. What is not in memory must be loaded first ([`State::is_loaded`], [`State::insert`]); loading is
//! somebody else's work.

mod admit;

use std::collections::{HashMap, HashSet, VecDeque};

use super::dedup::{Known, Recent};
use super::entry::{Change, Entry, Message, Names, Operation};
use super::job::{Loaded, LoadedMember, Positions};
use super::record::{self, Value, head_flags};
use super::revocations::{Reach, Revocations, Whose};
use super::schema::{
    self, Batch, Change as RowChange, Conv, Device, Hashes, Keyspace, META_POSITION, User, dedup_bucket, dedup_quarter,
};
use crate::ids::{Cmid, ConversationKind, Mid, Role, conversation_kind};
use crate::limits::{DEDUP_RECENT_MAX, LOADED_WEIGHT_MAX, REVOCATIONS_FORGOTTEN_MAX};
use crate::mail::{MemberRefusal, TokenMark};
use crate::mutant::{self, Mutant};
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
    /// From the operator's side: membership is not asked, the conversation must exist.
    pub is_operator: bool,
    /// What the reactor found wrong with it, of less weight than 3001 and 3002.
    pub refusal: Option<ErrorCode>,
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
    /// These members change.
    Set {
        /// Whom it concerns: for each of them something changes.
        users: Vec<Text>,
        /// The new role.
        role: Option<Role>,
        /// Whether silenced.
        muted: Option<bool>,
    },
    /// The flags of the conversation, from now on.
    Shape(u8),
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
    /// What the user may do.
    pub role: Role,
    /// Whether the user has silenced the conversation.
    pub muted: bool,
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
    /// [`head_flags`].
    pub flags: u8,
    floor: u64,
    floor_count: u64,
    changed: u64,
    /// Read positions as far as they are known.
    reads: HashMap<User, u64>,
    /// Highest cursors, of users about whom somebody wants receipts.
    received: HashMap<User, Received>,
    /// Group that touched it last: not evicted before that group is closed.
    touched: u64,
    used: bool,
}

/// The highest cursor of the devices of a user.
#[derive(Clone, Copy, Debug, Default)]
struct Received {
    seq: u64,
    /// The cursors in the engine are in it; otherwise only those seen since the conversation was loaded.
    is_whole: bool,
}

impl Conversation {
    /// Place of a user among the members.
    pub(super) fn find(&self, name: &str) -> Result<usize, usize> {
        self.members.binary_search_by(|member| {
            #[cfg(test)]
            LOOKED_AT.set(LOOKED_AT.get() + 1);
            member.name.as_str().cmp(name)
        })
    }

    /// Whether `name` is a member.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    /// Whether its members are told by NOTICE instead of content.
    #[must_use]
    pub fn is_notice_only(&self) -> bool {
        self.flags & head_flags::LARGE != 0 || matches!(conversation_kind(&self.id), Some(ConversationKind::Channel))
    }

    /// Lowest seq that is kept.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.floor
    }

    fn weight(&self) -> usize {
        1 + self.members.len() + self.reads.len() + self.received.len()
    }
}

#[cfg(test)]
thread_local! {
    /// Members that [`Conversation::find`] has looked at on this thread.
    pub(super) static LOOKED_AT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// All that is known in memory: conversations in use, recent cmids, the clock.
#[derive(Debug)]
pub struct State {
    hashes: Hashes,
    clock: HybridClock,
    epoch: u32,
    epoch_changed: u64,
    dedup_s: u32,
    conversations: HashMap<Conv, Conversation>,
    /// Conversations in the order in which they are looked at for eviction.
    ring: VecDeque<Conv>,
    weight: usize,
    recent: Recent,
    senders: Senders,
    bans: HashSet<(User, Option<Device>)>,
    revocations: Revocations,
}

/// The least role that may send, by class of conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Senders {
    /// `g:`.
    pub group: Role,
    /// `c:`.
    pub channel: Role,
}

impl State {
    /// The state at `position` of a store; no conversation is loaded yet.
    #[must_use]
    pub fn new(store: &record::Store, position: &record::Position) -> Self {
        Self {
            hashes: Hashes::new(store.hash_key),
            clock: HybridClock::new(store.shard, Mid(position.changed)),
            epoch: position.epoch,
            epoch_changed: position.epoch_changed,
            dedup_s: store.dedup_s,
            conversations: HashMap::new(),
            ring: VecDeque::new(),
            weight: 0,
            recent: Recent::new(DEDUP_RECENT_MAX),
            senders: Senders::default(),
            bans: HashSet::new(),
            revocations: Revocations::default(),
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

    /// How many recent cmids are in memory.
    #[must_use]
    pub fn recent_count(&self) -> usize {
        self.recent.count()
    }

    /// How many conversations are in memory.
    #[must_use]
    pub fn loaded_count(&self) -> usize {
        self.conversations.len()
    }

    /// Puts what the engine says into memory. What is there already is newer and stays.
    pub fn insert(&mut self, id: &str, loaded: Option<Loaded>) {
        let conv = self.hashes.conv(id);
        if self.conversations.contains_key(&conv) {
            return;
        }
        let exists = loaded.is_some();
        let loaded = loaded.unwrap_or(Loaded { floor: 1, ..Loaded::default() });
        let member = |it: &LoadedMember| Member {
            user: self.hashes.user(&it.name),
            name: it.name.clone(),
            joined: it.joined,
            role: it.role,
            muted: it.muted,
        };
        let mut members: Vec<Member> = match conversation_kind(id) {
            Some(ConversationKind::Direct(a, b)) => {
                let both = [a, b].map(|name| LoadedMember { name: Text::from(name), joined: 1, ..LoadedMember::default() });
                both.iter().map(member).collect()
            }
            _ => loaded.members.iter().map(member).collect(),
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
            flags: loaded.flags,
            floor: loaded.floor.max(1),
            floor_count: loaded.floor_count,
            changed: loaded.changed,
            reads: HashMap::new(),
            received: HashMap::new(),
            touched: 0,
            used: true,
        };
        self.weight += conversation.weight();
        self.conversations.insert(conv, conversation);
        self.ring.push_back(conv);
    }

    /// Puts the positions of a user, as the engine says, into memory. A position known already is newer and stays; the highest cursor
    /// is that of engine and memory together.
    pub fn insert_positions(&mut self, conv: Conv, user: User, positions: Positions) {
        if let Some(conversation) = self.conversations.get_mut(&conv) {
            let before = conversation.weight();
            conversation.reads.entry(user).or_insert(positions.read);
            let received = conversation.received.entry(user).or_default();
            received.seq = received.seq.max(positions.recv);
            received.is_whole = true;
            self.weight += conversation.weight() - before;
        }
    }

    /// A device of the user holds the conversation up to `seq`.
    pub fn merge_received(&mut self, conv: Conv, user: User, seq: u64) {
        if let Some(conversation) = self.conversations.get_mut(&conv) {
            let before = conversation.weight();
            let received = conversation.received.entry(user).or_default();
            received.seq = received.seq.max(seq);
            self.weight += conversation.weight() - before;
        }
    }

    /// How far a user is; `None` while memory does not know it.
    #[must_use]
    pub fn positions(&self, conv: Conv, user: User) -> Option<Positions> {
        let conversation = self.conversations.get(&conv)?;
        let received = conversation.received.get(&user).filter(|received| received.is_whole)?;
        Some(Positions { read: *conversation.reads.get(&user)?, recv: received.seq })
    }

    /// Whether `dedup.N` must be asked before this SEND can be admitted.
    #[must_use]
    pub fn needs_dedup(&self, cmid: Cmid, user: User, flags: u8) -> bool {
        !mutant::on(Mutant::RetryNotLookedUp) && flags & send_flags::RETRY != 0 && self.recent.find(cmid, user).is_none()
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

    /// Whether a conversation has stored members that can be changed.
    #[must_use]
    pub fn is_group(conv: &str) -> bool {
        matches!(conversation_kind(conv), Some(ConversationKind::Group | ConversationKind::Channel | ConversationKind::System))
    }

    /// Who may send from now on. Only admission asks; what the log holds was admitted.
    pub fn set_senders(&mut self, senders: Senders) {
        self.senders = senders;
    }

    /// Whether a member may send to a conversation in memory.
    #[must_use]
    pub fn may_send(&self, conversation: &Conversation, user: &str) -> bool {
        let least = match conversation_kind(&conversation.id) {
            Some(ConversationKind::Direct(..)) => return true,
            Some(ConversationKind::Group) => self.senders.group,
            Some(ConversationKind::Channel) => self.senders.channel,
            Some(ConversationKind::System) | None => return false,
        };
        conversation.find(user).is_ok_and(|index| conversation.members[index].role >= least.max(Role::Member))
    }

    /// Puts a ban of the engine into memory.
    pub fn insert_ban(&mut self, user: &str, device: Option<&str>) {
        self.bans.insert((self.hashes.user(user), device.map(|device| self.hashes.device(device))));
    }

    /// Whether a user, or the user on this device, may not connect.
    #[must_use]
    pub fn is_banned(&self, user: &str, device: &str) -> bool {
        let user = self.hashes.user(user);
        !self.bans.is_empty()
            && (self.bans.contains(&(user, None)) || self.bans.contains(&(user, Some(self.hashes.device(device)))))
    }

    /// Puts a revocation of the engine into memory.
    pub fn insert_revoked(&mut self, whose: Whose<'_>, reach: Reach) {
        self.revocations.insert(self.hashes.revoked(whose), reach);
    }

    /// Whether a token of a user, shown by this device, passes no more.
    #[must_use]
    pub fn is_revoked(&self, user: &str, device: &str, token: &TokenMark) -> bool {
        self.revocations.bars(&self.hashes, user, device, token)
    }

    /// Whether one more revocation can be kept.
    #[must_use]
    pub fn has_room_for(&self, whose: Whose<'_>, now_ms: u64) -> bool {
        self.revocations.has_room(&self.hashes.revoked(whose), now_ms / 1000)
    }

    /// How many bans there are.
    #[must_use]
    pub fn bans_count(&self) -> usize {
        self.bans.len()
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
                let change = if mutant::on(Mutant::CursorRowNotMerged) { RowChange::Put } else { RowChange::Max };
                batch.push(Keyspace::Cursor, change, &key, |out| row.encode(out));
                Ok(())
            }
            Change::Epoch { mid, epoch } => {
                self.tick(*mid, entry.stamp_ms, batch)?;
                (self.epoch, self.epoch_changed) = (*epoch, mid.0);
                Ok(())
            }
            Change::Set { mid, version, role, muted, conv, users } => {
                self.tick(*mid, entry.stamp_ms, batch)?;
                self.apply_set((*mid, *version), (*role, *muted), conv, users, group, batch)
            }
            Change::Shape { mid, version, flags, conv } => {
                self.tick(*mid, entry.stamp_ms, batch)?;
                let conv = self.hashes.conv(conv);
                let conversation = self.conversations.get_mut(&conv).expect("loaded before it is applied");
                agree("version", *version, conversation.version + 1)?;
                (conversation.version, conversation.flags) = (*version, *flags);
                (conversation.changed, conversation.touched) = (mid.0, group);
                push_head(conversation, conv, self.epoch, batch);
                Ok(())
            }
            Change::Floor { mid, floor, count, conv } => {
                self.tick(*mid, entry.stamp_ms, batch)?;
                self.apply_floor(*mid, (*floor, *count), conv, group, batch)
            }
            Change::Revoked { whose, reach } => {
                self.apply_revoked(*whose, *reach, entry.stamp_ms, batch);
                Ok(())
            }
            Change::Ban { banned, user, device } => {
                let named = (!device.is_empty()).then(|| self.hashes.device(device));
                let key = (self.hashes.user(user), named);
                let row_key = schema::ban_key(key.0, key.1);
                if *banned {
                    self.bans.insert(key);
                    batch.push(Keyspace::Meta, RowChange::Put, &row_key, |out| record::Ban { user, device }.encode(out));
                } else {
                    self.bans.remove(&key);
                    batch.push(Keyspace::Meta, RowChange::Delete, &row_key, |_| {});
                }
                Ok(())
            }
        }
    }

    /// Closes a group: adds the row that says how far the engine is.
    pub fn finish(&self, group: u64, batch: &mut Batch) {
        let row = record::Position { group, changed: self.clock.last.0, epoch: self.epoch, epoch_changed: self.epoch_changed };
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

    /// What has ended makes room, by the stamp of the entry, so that replay forgets the same.
    fn apply_revoked(&mut self, whose: Whose<'_>, reach: Reach, stamp_ms: u64, batch: &mut Batch) {
        for _ in 0..REVOCATIONS_FORGOTTEN_MAX {
            let Some(ended) = self.revocations.take_ended(stamp_ms / 1000) else { break };
            batch.push(Keyspace::Meta, RowChange::Delete, &ended.row_key(), |_| {});
        }
        let key = self.hashes.revoked(whose);
        let row = record::Revoked::new(whose, self.revocations.insert(key, reach));
        batch.push(Keyspace::Meta, RowChange::Put, &key.row_key(), |out| row.encode(out));
    }

    fn apply_message(&mut self, message: &Message<'_>, stamp_ms: u64, group: u64, batch: &mut Batch) -> Result<(), Disagreement> {
        let (conv, user) = (self.hashes.conv(message.conv), self.hashes.user(message.user));
        let conversation = self.conversations.get(&conv).expect("loaded before it is applied");
        agree("seq", message.seq, conversation.head + 1)?;
        self.tick(message.mid, stamp_ms, batch)?;
        let epoch = self.epoch;
        let conversation = self.conversations.get_mut(&conv).expect("looked up above");
        conversation.head = message.seq;
        conversation.count += u64::from(mutant::on(Mutant::QuietCounted) || message.flags & send_flags::QUIET == 0);
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
                    conversation.members.push(Member { name: Text::from(name), user, joined, role: Role::Member, muted: false });
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

    /// Roles and silence. Silence is the user's own affair: only a role is a change for the others.
    fn apply_set(
        &mut self,
        (mid, version): (Mid, u64),
        (role, muted): (Option<u8>, Option<u8>),
        id: &str,
        users: &Names<'_>,
        group: u64,
        batch: &mut Batch,
    ) -> Result<(), Disagreement> {
        let conv = self.hashes.conv(id);
        let conversation = self.conversations.get_mut(&conv).expect("loaded before it is applied");
        agree("version", version, conversation.version + 1)?;
        conversation.version = version;
        conversation.touched = group;
        if role.is_some() {
            conversation.changed = mid.0;
        }
        push_head(conversation, conv, self.epoch, batch);
        for name in users.iter() {
            let Ok(index) = conversation.find(name) else {
                return Err(Disagreement { what: "member", logged: version, derived: version });
            };
            let member = &mut conversation.members[index];
            member.role = role.map_or(member.role, Role::from_number);
            member.muted = muted.map_or(member.muted, |muted| muted != 0);
            let (user, joined) = (member.user, member.joined);
            let row = record::Member { user: name, joined, role: member.role.number(), muted: u8::from(member.muted) };
            batch.push(Keyspace::Member, RowChange::Put, &schema::member_key(conv, user), |out| row.encode(out));
            push_conv_of(conversation, conv, user, joined, false, mid, batch);
        }
        Ok(())
    }

    /// Raises the floor and takes the rows below it, in one atomic batch: whatever a crash leaves of the engine, no row is missing that
    /// its floor does not account for.
    fn apply_floor(
        &mut self,
        mid: Mid,
        (floor, count): (u64, u64),
        id: &str,
        group: u64,
        batch: &mut Batch,
    ) -> Result<(), Disagreement> {
        let conv = self.hashes.conv(id);
        let conversation = self.conversations.get_mut(&conv).expect("loaded before it is applied");
        if floor <= conversation.floor || floor > conversation.head + 1 {
            return Err(Disagreement { what: "floor", logged: floor, derived: conversation.floor });
        }
        for seq in conversation.floor..floor {
            batch.push(Keyspace::Msg, RowChange::Delete, &schema::msg_key(conv, seq), |_| {});
        }
        (conversation.floor, conversation.floor_count) = (floor, count);
        (conversation.changed, conversation.touched) = (mid.0, group);
        push_head(conversation, conv, self.epoch, batch);
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
            let early = u64::from(mutant::on(Mutant::DedupBucketEarly)) * 4;
            (first + early..=after + early).for_each(|quarter| batch.clear_keyspace(dedup_bucket(quarter)));
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
        flags: conversation.flags,
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

/// Bits of the counter in a mid.
const COUNTER_MASK: u64 = (1 << 10) - 1;

/// A head row is written with every message whose seq is a multiple of this.
const HEAD_EVERY: u64 = 1_000;

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
