//! What the operator's side asks of the store: changes of groups and users, messages, questions.

use super::SendMail;
use crate::ids::{Mid, Role, RosterId, SessionRef};
use crate::wire::envelope::ErrorCode;
use crate::wire::message::{Body, Text};

/// See [`super::Submit::Member`].
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

/// See [`super::Submit::Post`].
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

/// See [`super::Submit::Look`].
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
    /// The readers that were closed for want of memory; answered by the store.
    Shed,
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
    /// At most `limits::SHED_REMEMBERED_MAX`, the last one first.
    Shed(Vec<ShedReader>),
    /// See [`Question::Now`].
    Now,
    /// `None`: it does not exist.
    Conversation(Option<ConversationSeen>),
    /// A `sync_page` in JSON.
    Conversations(Vec<u8>),
}

/// See [`crate::mail::Submit::Shed`].
#[derive(Clone, Debug)]
pub struct ShedMail {
    /// Its session.
    pub session: SessionRef,
    /// Its slot in the roster.
    pub roster: RosterId,
    /// Where the client is.
    pub address: Option<std::net::SocketAddr>,
    /// Bytes that waited to be sent.
    pub queued_bytes: u32,
    /// Bytes of deliveries it had not acknowledged, some of them queued.
    pub held_bytes: u32,
    /// When.
    pub unix_ms: u64,
}

/// A reader that was closed for want of memory, by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShedReader {
    /// When, Unix milliseconds.
    pub unix_ms: u64,
    /// User.
    pub user: String,
    /// Device.
    pub device: String,
    /// The core it was on.
    pub reactor: u16,
    /// Where the client is.
    pub address: Option<std::net::SocketAddr>,
    /// Bytes that waited to be sent.
    pub queued_bytes: u32,
    /// Bytes of deliveries it had not acknowledged.
    pub held_bytes: u32,
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
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UserChange {
    /// Their sessions end, and no new one is welcome.
    Ban,
    /// They may connect again.
    Unban,
    /// Their sessions end, and tokens issued before this Unix second, or the one of this id, pass no more.
    Revoke {
        /// See above.
        before_s: u64,
        /// Unix second from which it may be forgotten.
        until_s: u64,
        /// One token alone.
        id: Option<Text>,
    },
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
    /// More members, bans or revocations than `limits` allows.
    TooMany,
    /// The store is overloaded; try again.
    Overloaded,
    /// The disk is full or failed.
    ReadOnly,
}
