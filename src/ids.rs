//! Identifiers. Small `Copy` values; the names of users, devices and conversations travel as [`crate::wire::message::Text`].

use std::fmt;

/// A reactor, counted from 0 in core order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct ReactorId(pub u16);

/// One life of one connection slot on one reactor.
///
/// A completion or a message for an older generation is counted and dropped, so nothing can wake a reused slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnectionId {
    /// Slot, counted from 0.
    pub index: u32,
    /// 24 bits used: it must fit the user data of an io_uring entry beside slot and operation.
    pub generation: u32,
}

impl ConnectionId {
    /// The highest generation; a slot that reaches it is retired until the process restarts.
    pub const GENERATION_MAX: u32 = (1 << 24) - 1;
}

/// One life of one session slot on one reactor. The store addresses deliveries with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SessionRef {
    /// The core that owns the session.
    pub reactor: ReactorId,
    /// Slot in that core's session table.
    pub index: u32,
    /// Turn of the slot: a reference to an earlier life of the slot is dropped and counted.
    pub generation: u32,
}

/// A device in the roster of the store thread. The slot is reused only after the store answered `Left` or `Evict`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RosterId(pub u32);

/// A frame in the pool of one core; 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameIndex(pub u32);

/// Message id chosen by the sender, 16 bytes; never all zeros in a stored message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Cmid(pub [u8; 16]);

impl Cmid {
    /// Whether this is the reserved value that no message may carry.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == [0; 16]
    }
}

impl fmt::Debug for Cmid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Server-made message id: `unix_ms << 20 | shard << 10 | counter` (44 + 10 + 10 bits), a hybrid logical clock.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Mid(pub u64);

impl Mid {
    /// Joins the three parts. `shard` and `counter` are below 1024.
    #[must_use]
    pub fn new(unix_ms: u64, shard: u16, counter: u16) -> Self {
        assert!(unix_ms < 1 << 44);
        assert!(shard < 1 << 10);
        assert!(counter < 1 << 10);
        Self(unix_ms << 20 | u64::from(shard) << 10 | u64::from(counter))
    }

    /// Send time, milliseconds since the Unix epoch.
    #[must_use]
    pub fn unix_ms(self) -> u64 {
        self.0 >> 20
    }
}

/// Whether `name` may be a user id: 1 to 64 bytes of `[A-Za-z0-9_.@-]`. User ids contain no `:`.
#[must_use]
pub fn is_user(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte != b':' && is_id_byte(byte))
}

/// Whether `name` may be a device id: 1 to 64 bytes of `[A-Za-z0-9_.:@-]`.
#[must_use]
pub fn is_device(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(is_id_byte)
}

/// What a member of a group may do; ordered by how much.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum Role {
    /// Reads.
    Observer,
    /// Reads and, where members may, sends.
    #[default]
    Member,
    /// Also sends where only admins may.
    Admin,
    /// Also sends where only owners may.
    Owner,
}

impl Role {
    /// Every role, from the least.
    pub const ALL: [Self; 4] = [Self::Observer, Self::Member, Self::Admin, Self::Owner];

    /// The number in log and rows; part of the format on disk.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Member => 0,
            Self::Admin => 1,
            Self::Owner => 2,
            Self::Observer => 3,
        }
    }

    /// The role of a number; one this release does not know may only read.
    #[must_use]
    pub fn from_number(number: u8) -> Self {
        Self::ALL.into_iter().find(|role| role.number() == number).unwrap_or(Self::Observer)
    }

    /// The word operators use.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Observer => "observer",
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }

    /// The role of a word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.word() == word)
    }
}

/// What a conversation id says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConversationKind<'a> {
    /// `d:<a>:<b>`, a <= b in byte order; equal for a note to oneself.
    Direct(&'a str, &'a str),
    /// `g:` with stored members.
    Group,
    /// `c:` large channel.
    Channel,
    /// `s:` system.
    System,
}

/// Reads a conversation id: 1 to 160 bytes of `[A-Za-z0-9_.:@-]` in one of the four forms. `None` for anything else.
#[must_use]
pub fn conversation_kind(name: &str) -> Option<ConversationKind<'_>> {
    if !(1..=160).contains(&name.len()) || !name.bytes().all(is_id_byte) {
        return None;
    }
    let (prefix, rest) = name.split_once(':')?;
    match prefix {
        "d" => {
            let (a, b) = rest.split_once(':')?;
            (is_user(a) && is_user(b) && a.as_bytes() <= b.as_bytes()).then_some(ConversationKind::Direct(a, b))
        }
        "g" if !rest.is_empty() => Some(ConversationKind::Group),
        "c" if !rest.is_empty() => Some(ConversationKind::Channel),
        "s" if !rest.is_empty() => Some(ConversationKind::System),
        _ => None,
    }
}

/// Whether `byte` may stand in a device or conversation id.
#[must_use]
pub fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b':' | b'@' | b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the protocol page: 1764000000000 ms, shard 3, counter 5.
    #[test]
    fn mid_joins_time_shard_and_counter() {
        let mid = Mid::new(1_764_000_000_000, 3, 5);
        assert_eq!(mid.0, 1_849_688_064_000_003_077);
        assert_eq!(mid.unix_ms(), 1_764_000_000_000);
    }

    /// Every form of conversation id, and the neighbours that are refused.
    #[test]
    fn conversation_ids_are_read_by_prefix() {
        assert_eq!(conversation_kind("d:al:bo"), Some(ConversationKind::Direct("al", "bo")));
        assert_eq!(conversation_kind("d:a:a"), Some(ConversationKind::Direct("a", "a")));
        assert_eq!(conversation_kind("g:x:y"), Some(ConversationKind::Group));
        for wrong in ["", "d:bo:al", "d:a", "d:a:b:c", "d::a", "x:a", "g:", "g", "g:a b", "d:a:b\u{e9}"] {
            assert_eq!(conversation_kind(wrong), None, "{wrong}");
        }
        assert_eq!(conversation_kind(&format!("g:{}", "x".repeat(159))), None);
    }
}
