//! From what a crash left to where it stopped: the groups of the log behind the engine are applied again.

use std::fmt;
use std::io;

use super::apply::{Disagreement, State};
use super::entry::{BadEntry, Change, Message, entries};
use super::job::{JobFault, Loaded, Projection};
use super::log::LogError;
use super::record::{self, Value};
use super::schema::{Batch, META_BAN, META_REVOKED};
use crate::limits::REPLAY_BATCH_BYTES;
use crate::mutant::{self, Mutant};

/// Why the store cannot start on what it found.
#[derive(Debug)]
pub enum RecoverError {
    /// The kernel's, while reading the log.
    Io(io::Error),
    /// Writing the new epoch failed.
    Log(LogError),
    /// A group of the log holds something unreadable.
    Entry {
        /// Number of the group.
        group: u64,
        /// What.
        source: BadEntry,
    },
    /// Log and engine do not tell the same story.
    Disagreement {
        /// Number of the group.
        group: u64,
        /// What.
        source: Disagreement,
    },
    /// A conversation cannot be read from the engine.
    Cold {
        /// Its id.
        conv: String,
        /// Why.
        fault: JobFault,
    },
    /// Bans and revocations cannot be read from the engine.
    Meta {
        /// Why.
        fault: JobFault,
    },
    /// The engine's rows end before the log begins.
    Gap {
        /// Last group in the engine.
        engine: u64,
        /// First group of the log.
        first: u64,
    },
}

impl fmt::Display for RecoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(source) => write!(f, "reading the log: {source}"),
            Self::Log(source) => write!(f, "beginning a new epoch: {source}"),
            Self::Entry { group, source } => write!(f, "commit group {group}: {source}"),
            Self::Disagreement { group, source } => write!(f, "commit group {group}: {source}"),
            Self::Cold { conv, fault } => write!(f, "reading conversation {conv} from the engine: {fault:?}"),
            Self::Meta { fault } => write!(f, "reading bans and revocations from the engine: {fault:?}"),
            Self::Gap { engine, first } => write!(
                f,
                "the engine holds commit groups up to {engine}, the log begins with {first}: groups {} to {} are lost. Restore the \
                 data directory from a backup",
                engine + 1,
                first - 1
            ),
        }
    }
}

impl std::error::Error for RecoverError {}

impl From<io::Error> for RecoverError {
    fn from(source: io::Error) -> Self {
        Self::Io(source)
    }
}

/// The engine as recovery sees it: before anything else uses it.
pub trait Cold {
    /// Head and members of a conversation.
    ///
    /// # Errors
    /// [`JobFault`], which ends the start.
    fn load(&mut self, conv: &str) -> Result<Option<Loaded>, JobFault>;
    /// The values of `meta` under keys that begin so.
    ///
    /// # Errors
    /// [`JobFault`], which ends the start.
    fn meta(&mut self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, JobFault>;
    /// Takes the rows of replayed groups, in order: of all after the last call up to the number given.
    fn project(&mut self, projection: Projection);
}

/// Puts into memory who may not connect, and which tokens pass no more.
///
/// # Errors
/// [`RecoverError::Meta`].
pub fn bar(state: &mut State, cold: &mut impl Cold) -> Result<(), RecoverError> {
    let fault = |fault| RecoverError::Meta { fault };
    let mismatch = |_: record::BadValue| RecoverError::Meta { fault: JobFault::Mismatch };
    for row in cold.meta(META_BAN).map_err(fault)? {
        let ban = record::Ban::decode(&row).map_err(mismatch)?;
        state.insert_ban(ban.user, Some(ban.device).filter(|device| !device.is_empty()));
    }
    for row in cold.meta(META_REVOKED).map_err(fault)? {
        let (whose, reach) = record::Revoked::decode(&row).map_err(mismatch)?.read();
        if !mutant::on(Mutant::RevocationForgotten) {
            state.insert_revoked(whose, reach);
        }
    }
    Ok(())
}

/// Applies one group of the log again and adds its rows to `batch`, which goes to `cold` when it is large enough. The caller hands over
/// the last one.
///
/// Engine and batch never hold rows of one conversation that `cold` is asked for: what a group has touched stays in memory.
///
/// # Errors
/// [`RecoverError`], naming the group.
pub fn replay(state: &mut State, group: u64, body: &[u8], batch: &mut Batch, cold: &mut impl Cold) -> Result<(), RecoverError> {
    for entry in entries(body) {
        let mut entry = entry.map_err(|source| RecoverError::Entry { group, source })?;
        if let Change::Message(message) = &mut entry.change {
            // The logged one belongs to the key of the engine of that time, which may have been made anew since.
            message.fingerprint = state.hashes().fingerprint(message.kind, message.payload);
        }
        if let Change::Message(Message { conv, .. })
        | Change::Members { conv, .. }
        | Change::Read { conv, .. }
        | Change::Set { conv, .. }
        | Change::Shape { conv, .. }
        | Change::Floor { conv, .. } = &entry.change
            && !state.is_loaded(state.hashes().conv(conv))
        {
            let loaded = cold.load(conv).map_err(|fault| RecoverError::Cold { conv: (*conv).to_owned(), fault })?;
            state.insert(conv, loaded);
        }
        state.apply(&entry, group, batch).map_err(|source| RecoverError::Disagreement { group, source })?;
    }
    state.finish(group, batch);
    if batch.len_bytes() >= REPLAY_BATCH_BYTES {
        cold.project(Projection { number: group, batch: std::mem::take(batch) });
    }
    Ok(())
}
