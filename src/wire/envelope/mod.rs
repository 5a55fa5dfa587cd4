//! The frames of `tidegate.v1`: what a message of the application means. `binary` and `json` are its two encodings; both borrow
//! from the received bytes and both write the same store.
//!
//! A WebSocket message carries one or more whole frames. [`Frames`] reads those of a client one at a time, so that good ones before
//! a bad one are carried out first; [`encode_server`] writes the answers. DELIVER is written in two parts, because all but its
//! first bytes are the same for every receiver: [`deliver_head`] and [`deliver_tail`]. Pages grow frame by frame while they fit:
//! [`PageWriter`], [`SyncPageWriter`]. A client uses the mirror image: [`encode_client`], [`ServerFrames`].

use std::borrow::Cow;

use crate::ids::{Cmid, Mid};

mod binary;
mod frames;
mod json;
mod json_write;
mod lists;
mod page;
mod scan;
#[cfg(test)]
mod tests;

pub use frames::{
    DELIVER_HEAD_BYTES_MAX, DecodeError, Frames, ServerFrames, deliver_head, deliver_head_bytes, deliver_tail, encode_client,
    encode_server, read_tail,
};
pub use lists::{CursorIter, UserIter};
pub use page::{PageHead, PageOrder, PageWriter, SyncPageWriter};

/// The two encodings of the protocol, chosen by the subprotocol.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Encoding {
    /// `tidegate.v1`: binary messages.
    Binary,
    /// `tidegate.v1.json`: text messages.
    Json,
}

/// A frame a client sends. Text and payload borrow from the received bytes wherever the encoding allows.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "fields carry the names and meanings of docs/protocol.md section 4")]
pub enum ClientFrame<'a> {
    Hello(Hello<'a>),
    Ping { pos: u64 },
    Auth { rid: u32, token: Cow<'a, str> },
    Send(Send<'a>),
    Ack { pos: u64, cursors: Cursors<'a> },
    Nack { conv: Cow<'a, str>, seq: u64, delay_ms: u32, reason: u16 },
    Sync { rid: u32, since: u64, limit: u16, cursor: Cow<'a, str> },
    Fetch { rid: u32, conv: Cow<'a, str>, from: u64, to: u64, limit: u16, flags: u8 },
    Read { rid: u32, conv: Cow<'a, str>, seq: u64 },
    Watch { rid: u32, ttl_s: u32, users: Users<'a> },
    Signal { conv: Cow<'a, str>, kind: u16, payload: Cow<'a, [u8]> },
}

/// The first frame of a connection.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "fields carry the names and meanings of docs/protocol.md section 4")]
pub struct Hello<'a> {
    pub minor: u8,
    pub platform: u8,
    pub window: u16,
    pub caps: u32,
    pub last_pos: u64,
    pub session: [u8; 16],
    pub device: Cow<'a, str>,
    pub client: Cow<'a, str>,
    pub token: Cow<'a, str>,
}

impl<'a> Hello<'a> {
    /// Of a new session that asks for nothing.
    #[must_use]
    pub fn new(device: &'a str, client: &'a str, token: &'a str) -> Self {
        Self {
            minor: 0,
            platform: 0,
            window: 0,
            caps: 0,
            last_pos: 0,
            session: [0; 16],
            device: device.into(),
            client: client.into(),
            token: token.into(),
        }
    }
}

/// A message on its way in.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "fields carry the names and meanings of docs/protocol.md section 4")]
pub struct Send<'a> {
    pub rid: u32,
    pub cmid: Cmid,
    pub flags: u8,
    pub kind: u16,
    pub ttl_s: u32,
    pub trace: Option<Trace>,
    pub conv: Cow<'a, str>,
    pub payload: Cow<'a, [u8]>,
}

/// W3C Trace Context in binary.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Trace {
    /// trace-id.
    pub trace_id: [u8; 16],
    /// parent-id.
    pub parent_id: [u8; 8],
    /// trace-flags.
    pub flags: u8,
}

/// A frame the gateway sends.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "fields carry the names and meanings of docs/protocol.md section 4")]
pub enum ServerFrame<'a> {
    Welcome(Welcome<'a>),
    Pong { server_ms: u64 },
    Ok { rid: u32, value: u64 },
    Expiring { in_ms: u32 },
    Sent { rid: u32, level: u8, flags: u8, seq: u64, mid: Mid },
    Deliver(Deliver<'a>),
    SyncPage { rid: u32, flags: u8, since: u64, cursor: Cow<'a, str>, entries: Vec<Entry<'a>> },
    Page { rid: u32, flags: u8, epoch: u32, floor: u64, head: u64, conv: Cow<'a, str>, messages: Vec<Message<'a>> },
    Notice { conv: Cow<'a, str>, head: u64, mid: Mid },
    Receipt { conv: Cow<'a, str>, user: Cow<'a, str>, recv: u64, read: u64 },
    Conv { conv: Cow<'a, str>, event: u8, version: u64, data: Cow<'a, [u8]> },
    Resync { reason: u16 },
    Error { rid: u32, code: u16, flags: u8, retry_ms: u32, detail: Cow<'a, str> },
    Goaway { code: u16, delay_ms: u32, spread_ms: u32, grace_ms: u32, target: Cow<'a, str> },
    Presence { user: Cow<'a, str>, state: u8, seen_ms: u64 },
    Signalled { conv: Cow<'a, str>, from: Cow<'a, str>, kind: u16, payload: Cow<'a, [u8]> },
}

/// The answer to a good HELLO.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "fields carry the names and meanings of docs/protocol.md section 4")]
pub struct Welcome<'a> {
    pub minor: u8,
    pub resumed: u8,
    pub level: u8,
    pub window: u16,
    pub send_window: u16,
    pub caps: u32,
    pub ping_ms: u32,
    pub resume_ms: u32,
    pub dedup_s: u32,
    pub max_frame: u32,
    pub max_payload: u32,
    pub server_ms: u64,
    pub pos: u64,
    pub session: [u8; 16],
    pub user: Cow<'a, str>,
    pub node: Cow<'a, str>,
    pub rate: u16,
    pub burst: u16,
}

/// A message on its way out.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "fields carry the names and meanings of docs/protocol.md section 4")]
pub struct Deliver<'a> {
    pub pos: u64,
    pub seq: u64,
    pub mid: Mid,
    pub flags: u8,
    pub kind: u16,
    pub exp_s: u32,
    /// Present exactly when `flags` has [`deliver_flags::OWN`].
    pub cmid: Option<Cmid>,
    /// Present exactly when `flags` has [`deliver_flags::TRACE`].
    pub trace: Option<Trace>,
    pub conv: Cow<'a, str>,
    pub from: Cow<'a, str>,
    pub payload: Cow<'a, [u8]>,
}

/// One conversation in SYNC_PAGE.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "fields carry the names and meanings of docs/protocol.md section 4")]
pub struct Entry<'a> {
    pub conv: Cow<'a, str>,
    pub epoch: u32,
    pub flags: u8,
    pub head: u64,
    pub head_mid: Mid,
    pub floor: u64,
    pub mine: u64,
    pub read: u64,
    pub unread: u32,
}

/// One message in PAGE.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "fields carry the names and meanings of docs/protocol.md section 4")]
pub struct Message<'a> {
    pub seq: u64,
    pub mid: Mid,
    pub flags: u8,
    pub kind: u16,
    pub exp_s: u32,
    /// Present exactly when `flags` has [`deliver_flags::OWN`].
    pub cmid: Option<Cmid>,
    pub from: Cow<'a, str>,
    pub payload: Cow<'a, [u8]>,
}

/// One cursor of ACK.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "fields carry the names and meanings of docs/protocol.md section 4")]
pub struct Cursor<'a> {
    pub conv: Cow<'a, str>,
    pub seq: u64,
}

/// The cursors of one ACK, at most 256. Binary ones are read from the frame as they are asked for: no allocation.
///
/// Two are equal when they hold the same cursors, whatever the encoding they came in.
#[derive(Clone, Debug)]
pub enum Cursors<'a> {
    /// `n` cursors as they stand in a binary frame, already checked.
    Binary(u16, &'a [u8]),
    /// Cursors of a JSON frame.
    List(Vec<Cursor<'a>>),
}

/// The users of one WATCH, at most 200. Equality as in [`Cursors`].
#[derive(Clone, Debug)]
pub enum Users<'a> {
    /// `n` names as they stand in a binary frame, already checked.
    Binary(u16, &'a [u8]),
    /// Names of a JSON frame.
    List(Vec<Cow<'a, str>>),
}

/// Every frame type of docs/protocol.md section 4.
#[expect(missing_docs, reason = "the names of docs/protocol.md section 4")]
pub mod frame_type {
    pub const HELLO: u8 = 0x01;
    pub const PING: u8 = 0x02;
    pub const AUTH: u8 = 0x03;
    pub const SEND: u8 = 0x10;
    pub const ACK: u8 = 0x11;
    pub const NACK: u8 = 0x12;
    pub const SYNC: u8 = 0x30;
    pub const FETCH: u8 = 0x31;
    pub const READ: u8 = 0x32;
    pub const WATCH: u8 = 0x33;
    pub const SIGNAL: u8 = 0x34;
    pub const WELCOME: u8 = 0x41;
    pub const PONG: u8 = 0x42;
    pub const OK: u8 = 0x43;
    pub const EXPIRING: u8 = 0x46;
    pub const ERROR: u8 = 0x4e;
    pub const GOAWAY: u8 = 0x4f;
    pub const SENT: u8 = 0x50;
    pub const DELIVER: u8 = 0x60;
    pub const NOTICE: u8 = 0x61;
    pub const RECEIPT: u8 = 0x62;
    pub const CONV: u8 = 0x63;
    pub const RESYNC: u8 = 0x64;
    pub const SYNC_PAGE: u8 = 0x70;
    pub const PAGE: u8 = 0x71;
    pub const PRESENCE: u8 = 0xe4;
    pub const SIGNALLED: u8 = 0xe5;
    /// A reader skips an unknown frame whose type has this bit.
    pub const SKIPPABLE: u8 = 0x80;
}

/// Flag bits of SEND.
#[expect(missing_docs, reason = "the names of docs/protocol.md section 4")]
pub mod send_flags {
    pub const RETRY: u8 = 1;
    pub const TRANSIENT: u8 = 2;
    pub const QUIET: u8 = 4;
    pub const RELEASE: u8 = 8;
    pub const TRACE: u8 = 16;
}

/// Flag bit of SENT: the cmid was already stored, seq and mid are the original ones.
pub const SENT_DUPLICATE: u8 = 1;

/// Flag bits of DELIVER and of a message in PAGE.
#[expect(missing_docs, reason = "the names of docs/protocol.md section 4")]
pub mod deliver_flags {
    pub const REPLAY: u8 = 1;
    pub const OWN: u8 = 2;
    pub const QUIET: u8 = 4;
    pub const TRANSIENT: u8 = 8;
    pub const TRACE: u8 = 16;
    pub const TOMBSTONE: u8 = 32;
}

/// Flag bits of SYNC_PAGE, PAGE, FETCH, ERROR and of an entry.
#[expect(missing_docs, reason = "the names of docs/protocol.md section 4")]
pub mod page_flags {
    pub const MORE: u8 = 1;
    pub const BELOW_FLOOR: u8 = 2;
    pub const FETCH_NEWEST: u8 = 1;
    pub const ERROR_RETRYABLE: u8 = 1;
    pub const ERROR_CLOSING: u8 = 2;
    pub const ENTRY_REMOVED: u8 = 1;
    pub const ENTRY_MUTED: u8 = 2;
    pub const ENTRY_NOTICE_ONLY: u8 = 4;
}

/// Bits of `caps` in HELLO and WELCOME.
#[expect(missing_docs, reason = "the names of docs/protocol.md section 4")]
pub mod caps {
    pub const RECEIPTS: u32 = 1;
    pub const PRESENCE: u32 = 2;
    pub const TRACE: u32 = 4;
}

/// Every error code of docs/protocol.md section 9. The number is the wire value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u16)]
#[expect(missing_docs, reason = "the table of docs/protocol.md section 9")]
pub enum ErrorCode {
    Malformed = 1001,
    BadField = 1002,
    UnknownType = 1003,
    WrongState = 1004,
    FrameTooLarge = 1005,
    TokenInvalid = 2001,
    TokenExpired = 2002,
    Banned = 2003,
    TooManyDevices = 2004,
    NotMember = 3001,
    NotAllowed = 3002,
    PayloadTooLarge = 3003,
    BeyondHead = 3004,
    NotGranted = 3005,
    CmidReused = 3009,
    RateLimited = 4001,
    WindowExceeded = 4002,
    Held = 4003,
    TooManySubscriptions = 4004,
    Internal = 5001,
    StoreOverloaded = 5002,
    StorageFailed = 5003,
    LogUnreachable = 5004,
    HomeUnreachable = 5005,
    ShuttingDown = 5006,
}

impl ErrorCode {
    /// The code with this wire value. `None`: a code of a later minor version, which a client treats by the flags of ERROR.
    #[must_use]
    pub fn from_value(value: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.value() == value)
    }

    /// Every code, ascending.
    pub const ALL: [Self; 25] = [
        Self::Malformed,
        Self::BadField,
        Self::UnknownType,
        Self::WrongState,
        Self::FrameTooLarge,
        Self::TokenInvalid,
        Self::TokenExpired,
        Self::Banned,
        Self::TooManyDevices,
        Self::NotMember,
        Self::NotAllowed,
        Self::PayloadTooLarge,
        Self::BeyondHead,
        Self::NotGranted,
        Self::CmidReused,
        Self::RateLimited,
        Self::WindowExceeded,
        Self::Held,
        Self::TooManySubscriptions,
        Self::Internal,
        Self::StoreOverloaded,
        Self::StorageFailed,
        Self::LogUnreachable,
        Self::HomeUnreachable,
        Self::ShuttingDown,
    ];

    /// The wire value.
    #[must_use]
    pub fn value(self) -> u16 {
        self as u16
    }

    /// Whether a client may repeat the request by itself (flag RETRYABLE of ERROR).
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(self.value(), 4001..=4003 | 5001..=5006)
    }

    /// The close code that follows, for the errors that end a connection.
    #[must_use]
    pub fn close_code(self) -> Option<u16> {
        match self.value() {
            1001..=1004 => Some(4400),
            1005 => Some(1009),
            2001 | 2002 => Some(4401),
            2003 | 2004 => Some(4403),
            _ => None,
        }
    }
}
