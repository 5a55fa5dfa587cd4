//! What the client tells its application.

use std::sync::Arc;
use std::time::Duration;

pub use tidegate::ids::{Cmid, Mid};
pub use tidegate::wire::envelope::Trace;

/// A message the application asked to send, in the order of asking.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Ticket(pub u64);

/// A message to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outgoing {
    /// Conversation.
    pub conv: Arc<str>,
    /// Kind, which belongs to the application.
    pub kind: u16,
    /// Lifetime in seconds; 0: the conversation's own.
    pub ttl_s: u32,
    /// Not counted as unread.
    pub quiet: bool,
    /// Delivered to who is online, at most once, never stored and never repeated.
    pub transient: bool,
    /// Trace context that goes with it, as far as [`crate::Settings::trace`] was asked for and granted. Not kept in an outbox on disk.
    pub trace: Option<Trace>,
    /// Content.
    pub payload: Arc<[u8]>,
}

impl Outgoing {
    /// An ordinary message of kind 1.
    pub fn new(conv: &str, payload: &[u8]) -> Self {
        Self { conv: conv.into(), kind: 1, ttl_s: 0, quiet: false, transient: false, trace: None, payload: payload.into() }
    }
}

/// The gateway's acknowledgement: the message is as durable as `level` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sent {
    /// Id the client gave it.
    pub cmid: Cmid,
    /// Place in the conversation; 0 for a transient message.
    pub seq: u64,
    /// Id the gateway gave it; 0 for a transient message.
    pub mid: Mid,
    /// Durability reached: 0 memory, 1 written, 2 synced, 3 replicated.
    pub level: u8,
    /// An earlier attempt had been stored already.
    pub duplicate: bool,
}

/// Why a message will not be sent by itself any more.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SendError {
    /// The gateway refused it for good.
    Refused {
        /// Code of docs/protocol.md section 9.
        code: u16,
        /// What the gateway said.
        detail: String,
    },
    /// Not a conversation id.
    BadConversation,
    /// The payload is larger than the gateway takes.
    TooLarge,
    /// Too many messages wait already.
    OutboxFull,
    /// A transient message was not answered, or was refused for now; it is never repeated.
    NotRepeated,
    /// The first attempt is older than the gateway remembers. It may have been stored: look for the cmid in the history.
    Horizon,
    /// The client stopped first. A message that was written before may have been stored; one in an outbox on disk is sent when the
    /// outbox is opened again.
    Stopped,
    /// The outbox on disk could not take it, so it was not sent.
    Storage,
}

impl std::fmt::Display for SendError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused { code, detail } => write!(f, "the gateway refused the message: {code} {detail}"),
            Self::BadConversation => f.write_str("not a conversation id"),
            Self::TooLarge => f.write_str("the payload is larger than the gateway takes"),
            Self::OutboxFull => f.write_str("too many messages wait to be acknowledged"),
            Self::NotRepeated => f.write_str("a transient message was not accepted, and is never repeated"),
            Self::Horizon => f.write_str("the message is too old to repeat safely; look for it in the history"),
            Self::Stopped => f.write_str("the client stopped before the message was acknowledged"),
            Self::Storage => f.write_str("the outbox on disk could not take the message"),
        }
    }
}

impl std::error::Error for SendError {}

/// What became of one message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Which.
    pub ticket: Ticket,
    /// Acknowledged or given up.
    pub result: Result<Sent, SendError>,
}

/// A message of a conversation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received {
    /// Conversation.
    pub conv: Arc<str>,
    /// Place in it, dense from 1; 0 for a transient message.
    pub seq: u64,
    /// Id the gateway gave it. Send time is `mid.unix_ms()`.
    pub mid: Mid,
    /// Flag bits, see [`tidegate::wire::envelope::deliver_flags`].
    pub flags: u8,
    /// Kind, which belongs to the application.
    pub kind: u16,
    /// Unix seconds of expiry, 0 = never.
    pub exp_s: u32,
    /// Id the sender gave it, known for one's own messages.
    pub cmid: Option<Cmid>,
    /// Sender.
    pub from: Arc<str>,
    /// Sent by this user, from this device or another.
    pub own: bool,
    /// Trace context its sender gave it, with [`crate::Settings::trace`]. Of what was missed and fetched later it is not known.
    pub trace: Option<Trace>,
    /// Content.
    pub payload: Arc<[u8]>,
}

/// What happened, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The connection changed.
    State(State),
    /// The next message of a conversation: every seq once, in order. Taking it acknowledges it, unless acknowledgement is manual. One that
    /// [`crate::Machine::nack`] has asked for comes once more, out of order.
    Message(Received),
    /// A transient message.
    Transient(Received),
    /// History that cannot be filled: `from` to `to` are gone or not for this user.
    Break {
        /// Conversation.
        conv: Arc<str>,
        /// First missing seq.
        from: u64,
        /// Last missing seq.
        to: u64,
    },
    /// The numbering of a conversation began anew (a restored backup): forget what was stored of it.
    Reset {
        /// Conversation.
        conv: Arc<str>,
    },
    /// What SYNC says of a conversation.
    Conversation(Conversation),
    /// SYNC is complete; what it named is being fetched.
    Synced,
    /// The read position in force after [`crate::Machine::read`].
    ReadPosition {
        /// Conversation.
        conv: Arc<str>,
        /// Highest seq read.
        seq: u64,
    },
    /// Another party's progress.
    Receipt {
        /// Conversation.
        conv: Arc<str>,
        /// Whose.
        user: Arc<str>,
        /// Highest seq delivered to them.
        recv: u64,
        /// Highest seq read by them.
        read: u64,
    },
    /// A conversation or its members changed.
    Membership {
        /// Conversation.
        conv: Arc<str>,
        /// 1 joined, 2 removed, 3 changed.
        event: u8,
        /// Version of the membership.
        version: u64,
        /// Belongs to the application.
        data: Arc<[u8]>,
    },
    /// A watched user's presence.
    Presence {
        /// Who.
        user: Arc<str>,
        /// 0 offline, 1 online.
        state: u8,
        /// Milliseconds since the Unix epoch.
        seen_ms: u64,
    },
    /// A signal, such as "typing".
    Signal {
        /// Conversation.
        conv: Arc<str>,
        /// Sender.
        from: Arc<str>,
        /// Belongs to the application.
        kind: u16,
        /// Content.
        payload: Arc<[u8]>,
    },
    /// An ERROR that concerns no request that waits: the connection, a signal, an acknowledgement, a read or a fetch that was given up.
    Refused {
        /// Code of docs/protocol.md section 9.
        code: u16,
        /// What the gateway said.
        detail: String,
    },
}

/// What SYNC says of a conversation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conversation {
    /// Conversation.
    pub conv: Arc<str>,
    /// Bits of [`tidegate::wire::envelope::page_flags`]: removed, muted, notice only.
    pub flags: u8,
    /// Highest seq.
    pub head: u64,
    /// Lowest seq that is kept.
    pub floor: u64,
    /// This device's cursor.
    pub mine: u64,
    /// The user's read position.
    pub read: u64,
    /// Messages not read, at most 9999.
    pub unread: u32,
}

/// Where the connection stands.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum State {
    /// Opening a socket.
    Connecting,
    /// WELCOME has come.
    Active {
        /// The session before was taken up again; otherwise SYNC follows.
        resumed: bool,
    },
    /// The gateway asked to leave; what is unanswered is waited for.
    Leaving,
    /// Not connected.
    Waiting {
        /// Until the next attempt.
        delay: Duration,
        /// Close code of the connection that ended, if it had one.
        close: Option<u16>,
    },
    /// Ended for good.
    Stopped(Stop),
}

/// Why the client does not come back by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Stop {
    /// The application closed it.
    Closed,
    /// 4400: this client broke the protocol.
    ProtocolError,
    /// 4403: not allowed.
    Forbidden,
    /// 4409: the same device connected elsewhere.
    Replaced,
    /// The outbox on disk cannot be synced any more: nothing can be promised.
    Storage,
}
