//! The rows of the engine as a reader sees them: a small trait, so that a simulation can hold them in memory.

use std::ops::Deref;

use super::engine::EngineError;
use super::record::{Position, Value};
use super::schema::{self, Conv, Keyspace, META_POSITION};

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

    /// The rows whose keys begin with `prefix`, in order.
    fn prefix(&self, keyspace: Keyspace, prefix: &[u8]) -> impl Iterator<Item = Row<Self::Bytes>>;

    /// The rows from key `first` to key `last`, both included, from either end.
    fn range(&self, keyspace: Keyspace, first: &[u8], last: &[u8]) -> impl DoubleEndedIterator<Item = Row<Self::Bytes>>;

    /// The newest message of a conversation. What retention has deleted is not walked over: the search ends at `floor`.
    fn newest(&self, conv: Conv, floor: u64) -> Option<Row<Self::Bytes>> {
        let (first, last) = (schema::msg_key(conv, floor), schema::msg_key(conv, u64::MAX));
        self.range(Keyspace::Msg, &first, &last).next_back()
    }

    /// The position that belongs to these rows.
    ///
    /// # Errors
    /// [`EngineError`].
    fn position(&self) -> Result<Position, EngineError> {
        let Some(bytes) = self.get(Keyspace::Meta, META_POSITION)? else { return Ok(Position::default()) };
        Position::decode(&bytes).map_err(|error| EngineError::Failed { operation: "reading", reason: error.to_string() })
    }
}
