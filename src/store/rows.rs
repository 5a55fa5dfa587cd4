//! The rows of the engine as a reader sees them: a small trait, so that a simulation can hold them in memory.

use std::ops::Deref;

use super::engine::EngineError;
use super::record::{Position, Value};
use super::schema::{Keyspace, META_POSITION};

/// A key and its value, or why they cannot be read.
pub type Row<B> = Result<(B, B), EngineError>;

/// One state of all rows, which does not change while it is read.
pub trait Rows {
    /// A key or a value.
    type Bytes: Deref<Target = [u8]>;

    /// The value under `key`.
    ///
    /// # Errors
    /// [`EngineError`].
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Self::Bytes>, EngineError>;

    /// The row with the highest key that begins with `prefix`.
    ///
    /// # Errors
    /// [`EngineError`].
    fn last(&self, keyspace: Keyspace, prefix: &[u8]) -> Option<Row<Self::Bytes>>;

    /// The rows whose keys begin with `prefix`, in order.
    fn prefix(&self, keyspace: Keyspace, prefix: &[u8]) -> impl Iterator<Item = Row<Self::Bytes>>;

    /// The rows from key `first` to key `last`, both included, from either end.
    fn range(&self, keyspace: Keyspace, first: &[u8], last: &[u8]) -> impl DoubleEndedIterator<Item = Row<Self::Bytes>>;

    /// The position that belongs to these rows.
    ///
    /// # Errors
    /// [`EngineError`].
    fn position(&self) -> Result<Position, EngineError> {
        let Some(bytes) = self.get(Keyspace::Meta, META_POSITION)? else { return Ok(Position::default()) };
        Position::decode(&bytes).map_err(|error| EngineError::Failed { operation: "reading", reason: error.to_string() })
    }
}
