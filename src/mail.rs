//! The values threads give to one another. `mailbox.rs` has the channels, `docs/architecture.md` the lanes and their bounds.
//!
//! A value is given away whole. The one thing shared is immutable: message bodies and names, one count per core, never per
//! receiver. `submit` is first in, first out per reactor, `group` per core: the ordering arguments rest on that.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::clock::Moment;
use crate::ids::{Cmid, Mid, ReactorId, Role, RosterId, SessionRef};
use crate::limits::{SPARE_EVENTS_MAX, SPARE_TARGETS_MAX};
use crate::wire::envelope::{Encoding, ErrorCode, Trace, send_flags};
use crate::wire::message::{Body, Text};
use crate::wire::tls::Keys;

/// Reactors, admin and readers to the store thread.
#[derive(Debug)]
pub enum Submit {
    /// A session that has shown a good token wants to be in the roster.
    Attach(Attach),
    /// A session is over. Answered by [`Event::Left`], unless [`Event::Evict`] crossed it.
    Leave {
        /// The session.
        session: SessionRef,
        /// Its roster slot; a slot that meanwhile belongs to another session is left alone.
        roster: RosterId,
    },
    /// A message to be ordered, logged and delivered.
    Send(SendMail),
    /// READ: moves the user's read position. Answered by [`Event::Ok`] or [`Event::Failed`].
    Read {
        /// Who asks.
        from: Sender,
        /// Conversation.
        conv: Text,
        /// Position asked for.
        seq: u64,
    },
    /// Cursors of devices, merged by max on the reactor; they force no sync.
    Cursors(Vec<CursorMail>),
    /// SYNC or FETCH. Stamped with the last group number and handed to a reader.
    Page(PageMail),
    /// A change of groups and their members, from admin. Answered through the reply channel after the sync.
    Member(MemberMail),
    /// A change of what a user may do at all, from admin. Answered through the reply channel after the sync.
    User(UserMail),
    /// WATCH: replaces the set of users this device watches. Answered by [`Event::Ok`] or [`Event::Failed`].
    Watch(WatchMail),
    /// SIGNAL: to the other devices of the members, kept nowhere.
    Signal(SignalMail),
    /// The session waits to be resumed: its device is in the roster and not connected. An [`Attach`] ends it.
    Away {
        /// The session.
        session: SessionRef,
        /// Its slot in the roster.
        roster: RosterId,
    },
    /// A message of the operator's side, from admin. Answered through the reply channel when it has reached its level.
    Post(PostMail),
    /// A question of the operator's side, from admin.
    Look(LookMail),
}

impl Submit {
    /// Bytes of the body it carries: what its sender takes from the credit of the `submit` lane, and the store gives back.
    #[must_use]
    pub fn body_bytes(&self) -> u64 {
        match self {
            Self::Signal(signal) => (signal.payload.len() + signal.conv.len()) as u64,
            Self::Send(send) | Self::Post(PostMail { message: send, .. }) => (send.payload.len() + send.conv.len()) as u64,
            _ => 0,
        }
    }

    /// Whether it is shed first: not given to a lane that is more than half full.
    #[must_use]
    pub fn is_shed_first(&self) -> bool {
        match self {
            Self::Signal(_) | Self::Watch(_) => true,
            Self::Send(send) => send.flags & send_flags::TRANSIENT != 0,
            _ => false,
        }
    }
}

/// A session as the store knows it. A submission whose session no longer owns the roster slot is dropped and counted.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    /// The session.
    pub session: SessionRef,
    /// Its slot in the roster.
    pub roster: RosterId,
    /// `rid` of the request, echoed in the answer.
    pub rid: u32,
}

/// See [`Submit::Attach`].
#[derive(Debug)]
pub struct Attach {
    /// The new session, which counts as *joining* until [`Event::Attached`].
    pub session: SessionRef,
    /// User of the token.
    pub user: Text,
    /// Device of HELLO.
    pub device: Text,
    /// Platform of HELLO.
    pub platform: u8,
    /// Granted capabilities.
    pub caps: u8,
    /// The session HELLO named, if any.
    pub claim: Option<Claim>,
}

/// The session a client wants to go on with, as HELLO names it.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// Session id of its last WELCOME: a secret.
    pub key: [u8; 16],
    /// The last `pos` it processed.
    pub last_pos: u64,
}

/// A conversation that moved while a session had no room for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Conversation.
    pub conv: Text,
    /// Its highest seq known to the session.
    pub head: u64,
    /// Message id of that seq.
    pub mid: Mid,
    /// NOTICE was written on the present connection.
    pub told: bool,
}

/// A message that a device could not process.
#[derive(Clone, Debug)]
pub struct Nack {
    /// Conversation.
    pub conv: Text,
    /// Place in it.
    pub seq: u64,
    /// How often it was asked for.
    pub tries: u8,
    /// When it comes again, monotonic milliseconds; `None`: it came, and may be asked for again.
    pub due_ms: Option<u64>,
    /// A reader looks for it.
    pub reading: bool,
}

/// See [`Submit::Send`].
#[derive(Debug)]
pub struct SendMail {
    /// Who sends.
    pub from: Sender,
    /// Chosen by the sender, never zero.
    pub cmid: Cmid,
    /// [`crate::wire::envelope::send_flags`].
    pub flags: u8,
    /// The application's.
    pub kind: u16,
    /// Seconds to live; 0: the conversation's own retention.
    pub ttl_s: u32,
    /// Trace context, when granted.
    pub trace: Option<Trace>,
    /// Conversation, of a well-formed id.
    pub conv: Text,
    /// The payload; a slice of the same arena chunk as `conv`.
    pub payload: Body,
    /// What the reactor refuses it for, unless the sender may not even know the conversation; the payload is left out then.
    pub refusal: Option<ErrorCode>,
    /// When the reactor read it; for the latency histogram.
    pub received: Moment,
}

/// See [`Submit::Watch`].
#[derive(Debug)]
pub struct WatchMail {
    /// Who asks.
    pub from: Sender,
    /// Whom, sorted and without repeats; empty: nobody any more.
    pub users: Vec<Text>,
    /// For how long, seconds, at most [`crate::limits::WATCH_TTL_S_MAX`].
    pub ttl_s: u32,
}

/// See [`Submit::Signal`].
#[derive(Debug)]
pub struct SignalMail {
    /// Who signals; `rid` is 0.
    pub from: Sender,
    /// Conversation, of a well-formed id.
    pub conv: Text,
    /// The application's.
    pub kind: u16,
    /// The payload; a slice of the same arena chunk as `conv`.
    pub payload: Body,
}

/// One cursor of one device.
#[derive(Debug)]
pub struct CursorMail {
    /// The session that sent the ACK.
    pub session: SessionRef,
    /// Its slot in the roster.
    pub roster: RosterId,
    /// Conversation.
    pub conv: Text,
    /// Everything up to here is held by the device.
    pub seq: u64,
}

/// See [`Submit::Page`]. The reader answers with a [`PageReply`].
#[derive(Debug)]
pub struct PageMail {
    /// Who asks.
    pub from: Sender,
    /// How the finished frame is encoded.
    pub encoding: Encoding,
    /// The finished frame is at most this long, in bytes.
    pub max_frame: u32,
    /// What is asked.
    pub request: PageRequest,
}

/// The question of a SYNC or a FETCH.
#[derive(Clone, Debug)]
pub enum PageRequest {
    /// SYNC.
    Sync {
        /// Changes after this; 0: all.
        since: u64,
        /// Entries at most, already clamped to 1-256.
        limit: u16,
        /// Where the last page ended; empty: the first page.
        cursor: Text,
    },
    /// FETCH.
    Fetch {
        /// Conversation.
        conv: Text,
        /// First seq; 0 means 1.
        from: u64,
        /// Last seq; 0 or above head means head.
        to: u64,
        /// Messages at most, already clamped to 1-256.
        limit: u16,
        /// Backwards from `to`.
        newest: bool,
    },
    /// One message that is to be delivered again after NACK.
    Again {
        /// Conversation.
        conv: Text,
        /// Place in it.
        seq: u64,
    },
}

/// A reader to a reactor: the answer to one SYNC or FETCH.
#[derive(Debug)]
pub struct PageReply {
    /// Who asked.
    pub session: SessionRef,
    /// `rid` of the request; 0 for [`PageRequest::Again`].
    pub rid: u32,
    /// A finished frame in the encoding asked for, without WebSocket header; or why there is none.
    pub result: Result<Vec<u8>, ErrorCode>,
    /// What the session has once this is written.
    pub reached: Reached,
}

/// What an answered page means to the session that asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reached {
    /// Nothing yet: more pages follow, or there was none.
    Nothing,
    /// The last page of a SYNC.
    All,
    /// A FETCH that goes up to this seq, the highest it gave.
    Seq(Text, u64),
    /// The message of a [`PageRequest::Again`]: `result` is the tail of a DELIVER.
    Again(Text, u64),
}

/// See [`Submit::Member`].
#[derive(Debug)]
pub struct MemberMail {
    /// Conversation; a group or channel.
    pub conv: Text,
    /// What changes.
    pub change: MemberChange,
    /// The application's, for the CONV events of the change; kept nowhere.
    pub data: Body,
    /// Where the answer goes, after the sync: a channel of capacity 1 made for the call.
    pub reply: std::sync::mpsc::SyncSender<Result<MemberDone, MemberRefusal>>,
}

/// A change of a group.
#[derive(Clone, Debug)]
pub enum MemberChange {
    /// Creates it with these members.
    Create(Vec<Text>),
    /// Adds these users; those who are members stay.
    Add(Vec<Text>),
    /// Removes these users; those who are not members are ignored.
    Remove(Vec<Text>),
    /// Gives these members a role, or silences the conversation for them, or ends that; those who are not members are ignored.
    Set {
        /// Whom.
        users: Vec<Text>,
        /// The new role; `None`: as it is.
        role: Option<Role>,
        /// Whether it is silenced; `None`: as it is.
        muted: Option<bool>,
    },
    /// Whether newcomers see what was before them; `None`: as it is. All members hear of it.
    Touch {
        /// See above.
        history: Option<bool>,
    },
    /// Changes nothing; answers with the present state.
    Show,
}

/// See [`Submit::Post`].
#[derive(Debug)]
pub struct PostMail {
    /// The message; its sender is nobody's session, so `from` says nothing.
    pub message: SendMail,
    /// Whom the members see as its sender. Need not be a member.
    pub user: Text,
    /// Where the answer goes: a channel of capacity 1 made for the call.
    pub reply: std::sync::mpsc::SyncSender<Result<PostDone, ErrorCode>>,
}

/// A message of the operator's side has its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PostDone {
    /// Place in the conversation.
    pub seq: u64,
    /// Message id.
    pub mid: Mid,
    /// Durability reached.
    pub level: u8,
    /// The cmid was stored before; place and id are those of that time.
    pub is_duplicate: bool,
}

/// See [`Submit::Look`].
#[derive(Debug)]
pub struct LookMail {
    /// What is asked.
    pub question: Question,
    /// Where the answer goes, from the store or from a reader: a channel of capacity 1 made for the call.
    pub reply: LookReply,
}

/// Where a [`Question`] is answered.
pub type LookReply = std::sync::mpsc::SyncSender<Result<Looked, ErrorCode>>;

/// What the operator's side may ask.
#[derive(Clone, Debug)]
pub enum Question {
    /// The devices of a user, or one page of everybody's; answered by the store from the roster.
    Devices {
        /// `None`: all.
        user: Option<Text>,
        /// First roster slot of the page.
        from: u32,
    },
    /// Nothing: the answer says that a view of the engine holds everything that was acknowledged before; answered by a reader.
    Now,
    /// Head, floor and members of a conversation; answered by a reader.
    Conversation(Text),
    /// The conversations of a user with what is unread, as SYNC from 0 says; answered by a reader.
    Conversations {
        /// User.
        user: Text,
        /// Where the last page ended; empty: the first page.
        cursor: Text,
    },
}

/// Answers a [`Question`].
#[derive(Debug)]
pub enum Looked {
    /// Devices, and the slot where the next page begins.
    Devices {
        /// At most `limits::ADMIN_PAGE_MAX`.
        devices: Vec<DeviceSeen>,
        /// `None`: that was the last page.
        next: Option<u32>,
    },
    /// See [`Question::Now`].
    Now,
    /// `None`: it does not exist.
    Conversation(Option<ConversationSeen>),
    /// A `sync_page` in JSON.
    Conversations(Vec<u8>),
}

/// A device in the roster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceSeen {
    /// Its session.
    pub session: SessionRef,
    /// User.
    pub user: String,
    /// Device.
    pub device: String,
    /// Platform of HELLO.
    pub platform: u8,
}

/// A conversation as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConversationSeen {
    /// Lowest seq kept.
    pub floor: u64,
    /// Highest seq.
    pub head: u64,
    /// Changes of the membership.
    pub version: u64,
    /// Members with their first visible seq; empty for `d:`.
    pub members: Vec<(String, u64)>,
}

/// What a group is after a change.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemberDone {
    /// Counts the changes of the conversation, from 1.
    pub version: u64,
    /// Highest seq.
    pub head: u64,
    /// All members, sorted.
    pub members: Vec<String>,
    /// The roles of those who are not simply members, sorted by name.
    pub roles: Vec<(String, Role)>,
    /// Those for whom it is silenced, sorted.
    pub muted: Vec<String>,
    /// Whether newcomers see what was before them.
    pub history: bool,
}

/// A change of what a user may do at all, from admin. Answered after the sync.
#[derive(Debug)]
pub struct UserMail {
    /// User.
    pub user: Text,
    /// One device of the user, or all.
    pub device: Option<Text>,
    /// What changes.
    pub change: UserChange,
    /// Where the answer goes, after the sync: a channel of capacity 1 made for the call.
    pub reply: std::sync::mpsc::SyncSender<Result<MemberDone, MemberRefusal>>,
}

/// See [`UserMail`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UserChange {
    /// Their sessions end, and no new one is welcome.
    Ban,
    /// They may connect again.
    Unban,
}

/// Why a change was not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberRefusal {
    /// Not a `g:` or `c:` id, or a name that is no user id.
    BadName,
    /// Create: it exists.
    Exists,
    /// Not created yet.
    Unknown,
    /// More members than `limits::GROUP_MEMBERS_MAX`.
    TooMany,
    /// The store is overloaded; try again.
    Overloaded,
    /// The disk is full or failed.
    ReadOnly,
}

/// The store thread to one reactor: all that one commit group means to that core, in order.
#[derive(Debug, Default)]
pub struct Group {
    /// Number of the commit group.
    pub number: u64,
    /// When the group reached the durability it promises, for the latency histograms; `None`: nothing was committed, this only
    /// carries answers or RESYNC.
    pub committed: Option<Moment>,
    /// What happened, in the order in which clients must see it.
    pub events: Vec<Event>,
    /// Receivers of the deliveries; [`Event::Deliver`] names a range of it.
    pub targets: Vec<Target>,
}

impl Group {
    /// The memory of a group whose core is done with it, for the store to fill again. `None` if it is more than is worth keeping.
    #[must_use]
    pub fn emptied(mut self) -> Option<Self> {
        self.events.clear();
        self.targets.clear();
        let is_small = self.events.capacity() <= SPARE_EVENTS_MAX && self.targets.capacity() <= SPARE_TARGETS_MAX;
        is_small.then_some(self)
    }
}

/// One thing of a [`Group`].
#[derive(Debug)]
pub enum Event {
    /// The session is in the roster: WELCOME, once the former owner of the device has answered [`Peer::Gone`].
    Attached {
        /// The session.
        session: SessionRef,
        /// Its slot.
        roster: RosterId,
        /// Who had the device before and will answer by `peer` mail.
        evicted: Option<SessionRef>,
    },
    /// The attach was refused.
    AttachRefused {
        /// The session.
        session: SessionRef,
        /// 2003, 2004, 4001 or 5002.
        code: ErrorCode,
    },
    /// The same device came back elsewhere. Everything before this went to `session`, everything after goes to `by`. The slot is
    /// free after this.
    Evict {
        /// Whose connection closes with 4409.
        session: SessionRef,
        /// Who must hear [`Peer::Moved`] or [`Peer::Gone`].
        by: SessionRef,
        /// What `by` wants to go on with.
        claim: Option<Claim>,
    },
    /// Answers [`Submit::Leave`]: no entry in flight names the slot any more.
    Left {
        /// The session.
        session: SessionRef,
    },
    /// SENT.
    Sent {
        /// The sender.
        session: SessionRef,
        /// The sender's id for the message: it ends an ordering hold.
        cmid: Cmid,
        /// `rid` of the SEND.
        rid: u32,
        /// Durability reached: 0 memory, 1 written, 2 synced, 3 replicated.
        level: u8,
        /// [`crate::wire::envelope::SENT_DUPLICATE`].
        flags: u8,
        /// Place in the conversation.
        seq: u64,
        /// Message id.
        mid: Mid,
        /// A RETRY of what was stored: it costs no rate.
        costs_nothing: bool,
        /// When the reactor read the SEND; for the latency histogram.
        received: Moment,
    },
    /// OK.
    Ok {
        /// Who asked.
        session: SessionRef,
        /// `rid` of the request.
        rid: u32,
        /// Meaning depends on the request.
        value: u64,
    },
    /// ERROR to one request; the connection lives.
    Failed {
        /// Who asked.
        session: SessionRef,
        /// `rid` of the request; 0: concerns a frame without rid.
        rid: u32,
        /// Why.
        code: ErrorCode,
        /// When to try again; 0 if not retryable.
        retry_ms: u32,
        /// For SEND: its conversation and cmid, so that the send window and the ordering hold know; a cmid of zeros for a TRANSIENT
        /// one, which starts no hold. For a cursor and a SIGNAL (rid 0): their conversation and a cmid of zeros.
        send: Option<(Text, Cmid)>,
    },
    /// A SYNC or FETCH that no reader could be given: ERROR, and the next one of the connection starts.
    PageRefused {
        /// Who asked.
        session: SessionRef,
        /// `rid` of the request.
        rid: u32,
        /// Why.
        code: ErrorCode,
        /// When to try again.
        retry_ms: u32,
    },
    /// DELIVER, to `targets[first..first + count]` of the group.
    Deliver {
        /// The message, shared.
        message: Delivery,
        /// First target.
        first: u32,
        /// How many.
        count: u32,
    },
    /// CONV to the targets.
    Conv {
        /// Conversation.
        conv: Text,
        /// 1 joined, 2 removed, 3 changed.
        event: u8,
        /// Version of the membership.
        version: u64,
        /// The application's.
        data: Body,
        /// First target.
        first: u32,
        /// How many.
        count: u32,
    },
    /// NOTICE to the targets: a large conversation moved.
    Notice {
        /// Conversation.
        conv: Text,
        /// Highest seq.
        head: u64,
        /// The message id of that.
        mid: Mid,
        /// First target.
        first: u32,
        /// How many.
        count: u32,
    },
    /// The session ends, connected or not.
    Kick {
        /// The session.
        session: SessionRef,
        /// Why.
        why: Kicked,
    },
    /// RECEIPT to the targets.
    Receipt {
        /// Conversation.
        conv: Text,
        /// Whose positions.
        user: Text,
        /// Highest cursor of the user's devices.
        recv: u64,
        /// Read position.
        read: u64,
        /// First target.
        first: u32,
        /// How many.
        count: u32,
    },
    /// PRESENCE to the targets.
    Presence {
        /// User.
        user: Text,
        /// 0 offline, 1 online.
        state: u8,
        /// Last time the user was online, Unix milliseconds; 0: not known.
        seen_ms: u64,
        /// First target.
        first: u32,
        /// How many.
        count: u32,
    },
    /// SIGNALLED to the targets.
    Signalled {
        /// Conversation.
        conv: Text,
        /// Who signals.
        from: Text,
        /// The application's.
        kind: u16,
        /// The payload.
        payload: Body,
        /// First target.
        first: u32,
        /// How many.
        count: u32,
    },
    /// The mail of this core overflowed: every session of it runs SYNC again (RESYNC reason 1).
    Resync,
}

/// What a good token says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The user; satisfies [`crate::ids::is_user`].
    pub user: Text,
    /// The one device that may show it; `None`: any.
    pub device: Option<Text>,
    /// Unix seconds. The token passes until this and the leeway are over.
    pub expires_unix_s: u64,
    /// That time is past.
    pub is_expired: bool,
}

impl Identity {
    /// Judges the rest: whether the device that shows the token may, and whether it still may.
    ///
    /// # Errors
    /// [`AuthError::Expired`] only if the token is good in every other way, so that a forger learns nothing from it.
    pub fn shown_by(self, device_fits: impl FnOnce(&str) -> bool) -> Result<Self, AuthError> {
        if !self.device.as_deref().is_none_or(device_fits) {
            return Err(AuthError::Invalid);
        }
        if self.is_expired { Err(AuthError::Expired) } else { Ok(self) }
    }
}

/// Why a token does not pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AuthError {
    /// Not a token of ours, or not for this device: ERROR 2001.
    Invalid,
    /// Was good once: ERROR 2002.
    Expired,
    /// Nobody could judge it now: ERROR 5002, close 4503.
    Overloaded,
}

/// A reactor to a thread of `auth`: a token that costs too much to be judged on the way.
#[derive(Debug)]
pub struct Judge {
    /// Who waits.
    pub reactor: ReactorId,
    /// Its connection; another one in the same slot is not meant.
    pub connection: crate::ids::ConnectionId,
    /// `rid` of the AUTH; 0: a HELLO.
    pub rid: u32,
    /// The token as it was shown, at most [`crate::limits::TOKEN_BYTES_MAX`].
    pub token: Box<str>,
    /// When it was shown.
    pub shown: Moment,
}

/// The answer to a [`Judge`].
#[derive(Debug)]
pub struct Judged {
    /// As it was asked.
    pub connection: crate::ids::ConnectionId,
    /// As it was asked.
    pub rid: u32,
    /// Whom the token speaks for; whether this device may show it is still to be judged.
    pub verdict: Result<Identity, AuthError>,
}

/// Why the store ends a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kicked {
    /// Another device of the same class came: 4409.
    Replaced,
    /// The user or device is banned: 2003, 4403.
    Banned,
}

/// A receiver within a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// Session slot on the receiving core; valid by the rule of [`Event::Left`].
    pub index: u32,
    /// Turn of the slot.
    pub generation: u32,
    /// Another device of the sender: flag OWN and the cmid.
    pub own: bool,
}

/// A stored message on its way to receivers.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Place in the conversation, from 1.
    pub seq: u64,
    /// Message id.
    pub mid: Mid,
    /// QUIET, TRANSIENT, TOMBSTONE, TRACE as in [`crate::wire::envelope::deliver_flags`]; OWN and REPLAY are added per receiver.
    pub flags: u8,
    /// The application's.
    pub kind: u16,
    /// Unix seconds; 0: never.
    pub exp_s: u32,
    /// The sender's id for it.
    pub cmid: Cmid,
    /// Trace context.
    pub trace: Option<Trace>,
    /// Conversation.
    pub conv: Text,
    /// Sending user.
    pub from: Text,
    /// The payload.
    pub payload: Body,
}

/// Reactor to reactor.
#[derive(Debug)]
pub enum Peer {
    /// Everything the evicted session had to say is written; the new one may send its WELCOME (resumed = 0).
    Gone {
        /// The new session.
        to: SessionRef,
        /// Positions the old one had not handed to the store yet.
        cursors: Vec<(Text, u64)>,
    },
    /// The same, and the new session goes on where the old one was (resumed = 1).
    Moved(Box<Moved>),
}

/// A session on its way to another core. At most a window of frames, copied.
#[derive(Debug)]
pub struct Moved {
    /// The new session.
    pub to: SessionRef,
    /// As in [`Peer::Gone`].
    pub cursors: Vec<(Text, u64)>,
    /// Highest `pos` given out.
    pub pos: u64,
    /// How the frames are encoded.
    pub encoding: Encoding,
    /// Tails of the unacknowledged deliveries, the last one of `pos`.
    pub frames: Vec<Vec<u8>>,
    /// Marked conversations.
    pub marks: Vec<Mark>,
    /// Whether a RESYNC must be told.
    pub resync: bool,
    /// Messages to be delivered again.
    pub nacks: Vec<Nack>,
    /// Held as long as the frames are on their way: the sender counts them until it is dropped.
    pub toll: Toll,
}

/// What a core has given away and the receiver has not taken yet, in bytes.
#[derive(Debug, Default)]
pub struct Carriage {
    bytes: u64,
    under_way: VecDeque<(Arc<()>, u64)>,
}

/// See [`Moved::toll`].
#[derive(Debug)]
pub struct Toll(#[expect(dead_code, reason = "what counts is that it is there")] Arc<()>);

impl Carriage {
    /// A toll for so many bytes, if no more than `bytes_max` are under way with them.
    pub fn toll(&mut self, bytes: u64, bytes_max: u64) -> Option<Toll> {
        if self.bytes + bytes > bytes_max {
            let left = &mut self.bytes;
            self.under_way.retain(|(toll, bytes)| {
                let is_taken = Arc::strong_count(toll) == 1;
                *left -= if is_taken { *bytes } else { 0 };
                !is_taken
            });
            if self.bytes + bytes > bytes_max {
                return None;
            }
        }
        let toll = Arc::new(());
        self.under_way.push_back((toll.clone(), bytes));
        self.bytes += bytes;
        Some(Toll(toll))
    }
}

/// Control and admin to a reactor.
#[derive(Debug)]
pub enum Control {
    /// Stop accepting, tell every client GOAWAY, flush, close and end.
    Drain {
        /// 1001 or 1012.
        close_code: u16,
        /// GOAWAYs and closes are spread over this many milliseconds.
        window_ms: u32,
    },
    /// What is known of these sessions; at most `limits::ADMIN_PAGE_MAX` of them.
    Inspect {
        /// Sessions of this core.
        sessions: Vec<SessionRef>,
        /// One answer for each, `None` where there is none any more: a channel of capacity 1 made for the call.
        reply: std::sync::mpsc::SyncSender<Vec<Option<SessionSeen>>>,
    },
    /// Close these with 4403.
    Kick {
        /// Sessions of this core.
        sessions: Vec<SessionRef>,
        /// How many were closed.
        reply: std::sync::mpsc::SyncSender<u32>,
    },
    /// Certificates for the handshakes that begin from now on.
    Keys(Keys),
    /// Send back a copy of the histograms.
    Snapshot,
}

/// A connected session, for the operator's side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionSeen {
    /// Its connection.
    pub connection: crate::ids::ConnectionId,
    /// Address of the client: as a balancer said, else as the kernel knows it. Port 0: nobody said.
    pub address: Option<std::net::SocketAddr>,
    /// How its frames are encoded.
    pub encoding: Encoding,
    /// Highest `pos` given out.
    pub pos: u64,
    /// Deliveries given out and not acknowledged.
    pub unacknowledged: u16,
    /// Conversations wait for room in the window.
    pub is_behind: bool,
    /// Bytes waiting to be sent.
    pub queued_bytes: u32,
    /// Unix second at which the token ends.
    pub expires_s: u32,
}

/// A reactor to the thread that holds the process together.
#[derive(Debug)]
pub enum Report {
    /// The listener is bound.
    Bound {
        /// Its address; a port that was 0 is the real one.
        address: std::net::SocketAddr,
        /// That of TLS, if there is one.
        tls: Option<std::net::SocketAddr>,
    },
    /// The reactor turns.
    Ready {
        /// Which.
        reactor: ReactorId,
    },
    /// The reactor ended after a drain.
    Drained {
        /// Which.
        reactor: ReactorId,
    },
    /// The reactor cannot go on.
    Failed {
        /// Which.
        reactor: ReactorId,
        /// What the operator reads.
        reason: String,
    },
}
