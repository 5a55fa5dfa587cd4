//! What SENT promises, by class of conversation: 0 in memory, 1 written to the log, 2 synced to the disk.
//!
//! | level | a kill -9 | a power cut |
//! |--:|---|---|
//! | 0 | loses up to a second | loses up to a second |
//! | 1 | loses nothing | loses up to a second |
//! | 2 | loses nothing | loses nothing |
//!
//! A commit group reaches the highest level that one of its messages asks for. Whatever the level, the engine gets only rows of groups
//! that are synced in the log, so that the log is never behind it after a crash.

use crate::ids::{ConversationKind, conversation_kind};

/// The level of each class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Levels {
    /// `d:`.
    pub direct: u8,
    /// `g:`.
    pub group: u8,
    /// `c:`.
    pub channel: u8,
}

impl Levels {
    /// One level for all classes.
    #[must_use]
    pub fn all(level: u8) -> Self {
        Self { direct: level, group: level, channel: level }
    }

    /// The level of a conversation.
    #[must_use]
    pub fn of(self, conv: &str) -> u8 {
        match conversation_kind(conv) {
            Some(ConversationKind::Direct(..)) => self.direct,
            Some(ConversationKind::Group) => self.group,
            Some(ConversationKind::Channel) => self.channel,
            Some(ConversationKind::System) | None => self.most(),
        }
    }

    /// The lowest: what WELCOME announces.
    #[must_use]
    pub fn least(self) -> u8 {
        self.direct.min(self.group).min(self.channel)
    }

    /// The highest: that of everything which is no message.
    #[must_use]
    pub fn most(self) -> u8 {
        self.direct.max(self.group).max(self.channel)
    }
}
