//! The values threads give to one another. `mailbox.rs` has the channels, `docs/architecture.md` the lanes and their bounds.
//!
//! A value is given away whole. The one thing shared is immutable: message bodies and names, one count per core, never per
//! receiver. `submit` is first in, first out per reactor, `group` per core: the ordering arguments rest on that.

mod control;
mod moving;
mod operator;
mod token;

use crate::clock::Moment;
use crate::ids::{Cmid, Mid, RosterId, SessionRef};
use crate::limits::{SPARE_EVENTS_MAX, SPARE_TARGETS_MAX};
use crate::wire::envelope::{Encoding, ErrorCode, Trace, send_flags};
use crate::wire::message::{Body, Text};

pub use self::control::{Bounds, Control, Report, SessionSeen};
pub use self::moving::{Carriage, Moved, Peer, Toll};
pub use self::operator::{
    ConversationSeen, DeviceSeen, LookMail, LookReply, Looked, MemberChange, MemberDone, MemberMail, MemberRefusal, PostDone,
    PostMail, Question, ShedMail, ShedReader, UserChange, UserMail,
};
pub use self::token::{AuthError, Court, Identity, Judge, Judged, RenewMail, TokenMark};

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
    /// A PRESENCE to this session was dropped, and there is room again: all it watches is told anew. No answer.
    PresenceLost {
        /// The session.
        session: SessionRef,
        /// Its slot in the roster.
        roster: RosterId,
    },
    /// SIGNAL: to the other devices of the members, kept nowhere.
    Signal(SignalMail),
    /// The session waits to be resumed: its device is in the roster and not connected. An [`Attach`] ends it.
    Away {
        /// The session.
        session: SessionRef,
        /// Its slot in the roster.
        roster: RosterId,
    },
    /// A reader is closed for want of memory. [`Submit::Leave`] follows; until then the store knows its name.
    Shed(ShedMail),
    /// A session has shown a fresh good token: is it revoked? Answered by [`Event::Renewed`] or [`Event::Failed`].
    Renew(RenewMail),
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
            Self::Signal(_) | Self::Watch(_) | Self::PresenceLost { .. } => true,
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
    /// The token of HELLO.
    pub token: TokenMark,
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
    /// OK to an AUTH: the session goes on until then, or for longer if it had longer.
    Renewed {
        /// Who asked.
        session: SessionRef,
        /// `rid` of the AUTH.
        rid: u32,
        /// Unix second.
        expires_s: u32,
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

/// Why the store ends a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kicked {
    /// Another device of the same class came: 4409.
    Replaced,
    /// The user or device is banned: 2003, 4403.
    Banned,
    /// Tokens of the user are revoked: 2001, 4401; whoever has another comes back.
    Revoked,
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
