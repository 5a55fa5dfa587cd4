//! A backup as bytes: every row of one view of the engine, in blocks that check themselves.
//!
//! ```text
//! file    "TGBACKUP"  version u32  0 u32  block  block ...  last block
//! block   length u32  CRC-32C u32  body                     the CRC is taken on from that of the block before
//! body    1  row  row ...                                   row: keyspace u8, key length u16, value length u32, key, value
//!         2  rows u64  group u64                            the last: how many rows there were, and the last commit group in them
//! ```
//!
//! All little-endian. A file that ends before its last block is no backup: whoever wrote it was stopped. Rows come table by table, the
//! position last. What it holds is the engine's and not the log's: a view holds everything up to one commit group, so nothing has to be
//! replayed.

use std::fmt;
use std::io::{self, Read, Write};

use crc32c::crc32c_append;

use super::engine::EngineError;
use super::rows::Rows;
use super::schema::Keyspace;

/// How much there was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Extent {
    /// Rows.
    pub rows: u64,
    /// The last commit group in them.
    pub group: u64,
}

/// Why a backup cannot be written or read.
#[derive(Debug)]
pub enum BackupError {
    /// The kernel's, of the other side of the copy.
    Io(io::Error),
    /// The engine cannot be read.
    Engine(EngineError),
    /// It does not begin as a backup does.
    NoBackup,
    /// Written by another release, in a format of this number.
    Version(u32),
    /// It ends before its end.
    Incomplete,
    /// Its bytes are not as they were written, in the block with this number, from 1.
    Damaged(u64),
}

impl fmt::Display for BackupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Engine(error) => error.fmt(f),
            Self::NoBackup => f.write_str("this is no backup of tidegate"),
            Self::Version(version) => {
                write!(f, "the backup has format {version}, this release reads {VERSION}: use the release that made it")
            }
            Self::Incomplete => {
                f.write_str("the backup is not complete: whoever wrote it was stopped. Take another one, or use an older one")
            }
            Self::Damaged(block) => write!(f, "the backup is damaged in block {block}: use another copy of it, or an older one"),
        }
    }
}

impl std::error::Error for BackupError {}

impl From<io::Error> for BackupError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Self::Incomplete,
            _ => Self::Io(error),
        }
    }
}

impl From<EngineError> for BackupError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

/// Writes all rows of `view`. Holds one block in memory.
///
/// # Errors
/// [`BackupError`]; what was written until then is no backup.
///
/// # Panics
/// If a key is longer than 65,535 bytes, which no key is.
pub fn write(view: &impl Rows, out: &mut impl Write) -> Result<Extent, BackupError> {
    let group = view.position()?.group;
    let mut writer = Writer { out, chain: 0 };
    writer.out.write_all(MAGIC)?;
    writer.out.write_all(&VERSION.to_le_bytes())?;
    writer.out.write_all(&[0; 4])?;
    let mut extent = Extent { rows: 0, group };
    let mut body = vec![ROWS];
    for keyspace in Keyspace::ALL {
        for row in view.prefix(keyspace, &[]) {
            let (key, value) = row?;
            body.push(u8::try_from(keyspace.index()).expect("a dozen tables"));
            body.extend_from_slice(&u16::try_from(key.len()).expect("keys are short").to_le_bytes());
            body.extend_from_slice(&u32::try_from(value.len()).expect("values are messages").to_le_bytes());
            body.extend_from_slice(&key);
            body.extend_from_slice(&value);
            extent.rows += 1;
            if body.len() >= BLOCK_BYTES {
                writer.block(&body)?;
                body.truncate(1);
            }
        }
    }
    if body.len() > 1 {
        writer.block(&body)?;
    }
    body.clear();
    body.push(LAST);
    body.extend_from_slice(&extent.rows.to_le_bytes());
    body.extend_from_slice(&extent.group.to_le_bytes());
    writer.block(&body)?;
    writer.out.flush()?;
    Ok(extent)
}

struct Writer<'a, W> {
    out: &'a mut W,
    chain: u32,
}

impl<W: Write> Writer<'_, W> {
    fn block(&mut self, body: &[u8]) -> io::Result<()> {
        self.chain = crc32c_append(self.chain, body);
        self.out.write_all(&u32::try_from(body.len()).expect("a block is short").to_le_bytes())?;
        self.out.write_all(&self.chain.to_le_bytes())?;
        self.out.write_all(body)
    }
}

/// Reads a backup block by block, and believes nothing that its checksum does not confirm.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    chain: u32,
    blocks: u64,
    rows: u64,
    /// Length and checksum of the block, as they stand before it.
    head: [u8; 8],
    body: Vec<u8>,
    extent: Option<Extent>,
}

impl<R: Read> Reader<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn new(mut from: R) -> Result<Self, BackupError> {
        let mut head = [0; HEAD_BYTES];
        from.read_exact(&mut head)?;
        if head[..8] != *MAGIC {
            return Err(BackupError::NoBackup);
        }
        let version = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        if version != VERSION {
            return Err(BackupError::Version(version));
        }
        Ok(Self { from, chain: 0, blocks: 0, rows: 0, head: [0; 8], body: Vec::new(), extent: None })
    }

    /// Reads the next block. `false`: that was the last one.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn next_block(&mut self) -> Result<bool, BackupError> {
        if self.extent.is_some() {
            return Ok(false);
        }
        self.blocks += 1;
        let damaged = BackupError::Damaged(self.blocks);
        self.from.read_exact(&mut self.head)?;
        let [a, b, c, d, rest @ ..] = self.head;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        if len == 0 || len > BLOCK_BYTES_MAX {
            return Err(damaged);
        }
        self.body.resize(len, 0);
        self.from.read_exact(&mut self.body)?;
        self.chain = crc32c_append(self.chain, &self.body);
        if self.chain != u32::from_le_bytes(rest) {
            return Err(damaged);
        }
        match self.body[0] {
            ROWS => {
                let mut rows = Parsed(&self.body[1..]);
                while !rows.0.is_empty() {
                    rows.row().ok_or(BackupError::Damaged(self.blocks))?;
                    self.rows += 1;
                }
                Ok(true)
            }
            LAST => {
                let mut last = Parsed(&self.body[1..]);
                let extent = last
                    .array()
                    .zip(last.array())
                    .map(|(rows, group)| Extent { rows: u64::from_le_bytes(rows), group: u64::from_le_bytes(group) });
                self.extent = Some(extent.filter(|extent| extent.rows == self.rows).ok_or(damaged)?);
                Ok(true)
            }
            _ => Err(damaged),
        }
    }

    /// The rows of the block just read.
    ///
    /// # Panics
    /// Never: the block was checked when it was read.
    pub fn rows(&self) -> impl Iterator<Item = (Keyspace, &[u8], &[u8])> {
        let mut rest = Parsed(if self.extent.is_some() { &[] } else { self.body.get(1..).unwrap_or(&[]) });
        std::iter::from_fn(move || if rest.0.is_empty() { None } else { rest.row() })
    }

    /// The bytes of the block just read, as they stand in the file.
    #[must_use]
    pub fn bytes(&self) -> [&[u8]; 2] {
        [&self.head, &self.body]
    }

    /// How much there was, once the last block is read.
    #[must_use]
    pub fn extent(&self) -> Option<Extent> {
        self.extent
    }
}

/// The head of every backup of this format.
#[must_use]
pub fn head() -> Vec<u8> {
    [MAGIC, &VERSION.to_le_bytes()[..], &[0; 4]].concat()
}

/// What is left of a block.
struct Parsed<'a>(&'a [u8]);

impl<'a> Parsed<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn row(&mut self) -> Option<(Keyspace, &'a [u8], &'a [u8])> {
        let [keyspace] = self.array()?;
        let key = usize::from(u16::from_le_bytes(self.array()?));
        let value = u32::from_le_bytes(self.array()?) as usize;
        let (key, rest) = self.0.split_at_checked(key)?;
        let (value, rest) = rest.split_at_checked(value)?;
        self.0 = rest;
        Some((*Keyspace::ALL.get(usize::from(keyspace))?, key, value))
    }
}

const MAGIC: &[u8; 8] = b"TGBACKUP";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 16;
const ROWS: u8 = 1;
const LAST: u8 = 2;
/// A block is closed once it has so many bytes.
const BLOCK_BYTES: usize = 256 * 1024;
/// So it has no more than this: the longest row is a message of 16 MiB at most.
const BLOCK_BYTES_MAX: usize = BLOCK_BYTES + (17 << 20);

#[cfg(test)]
mod tests {
    use super::super::engine_memory::MemoryEngine;
    use super::super::record::{self, Position, Value};
    use super::super::schema::{Batch, Change, META_POSITION};
    use super::*;

    const STORE: record::Store = record::Store { shard: 0, shards: 1, dedup_s: 60, hash_key: [1; 16] };

    fn engine(rows: u64) -> MemoryEngine {
        let mut engine = MemoryEngine::new(&STORE, &Position::default());
        let mut batch = Batch::default();
        for seq in 0..rows {
            batch.push(Keyspace::Cursor, Change::Put, &seq.to_be_bytes(), |out| record::Cursor { seq }.encode(out));
        }
        batch.push(Keyspace::Msg, Change::Put, b"long", |out| out.resize(700_000, 7));
        batch.push(Keyspace::Meta, Change::Put, META_POSITION, |out| Position { group: 9, ..Position::default() }.encode(out));
        engine.write(batch);
        engine
    }

    /// Table, key, value.
    type OwnedRow = (Keyspace, Vec<u8>, Vec<u8>);

    fn read(bytes: &[u8]) -> Result<(Extent, Vec<OwnedRow>), BackupError> {
        let mut reader = Reader::new(bytes)?;
        let mut rows = Vec::new();
        while reader.next_block()? {
            rows.extend(reader.rows().map(|(keyspace, key, value)| (keyspace, key.to_vec(), value.to_vec())));
        }
        Ok((reader.extent().expect("the last block is read"), rows))
    }

    /// Every row comes back, table by table, over several blocks.
    #[test]
    fn what_is_written_is_read() {
        let engine = engine(20_000);
        let mut bytes = Vec::new();
        let extent = write(&&engine, &mut bytes).unwrap();
        let (told, rows) = read(&bytes).unwrap();
        assert_eq!((told, told.group, rows.len() as u64), (extent, 9, extent.rows));
        let all = Keyspace::ALL.into_iter().flat_map(|keyspace| engine.rows(keyspace).map(move |row| (keyspace, row)));
        assert!(all.eq(rows.iter().map(|(keyspace, key, value)| (*keyspace, (&key[..], &value[..])))));
    }

    /// No cut and no flipped bit passes: each is named, and none makes the reader panic.
    #[test]
    fn damage_is_found() {
        let mut whole = Vec::new();
        write(&&engine(3), &mut whole).unwrap();
        // The long row is the same all over: a few of its bytes stand for all.
        let places = (0..whole.len()).filter(|at| *at < 100 || *at > whole.len() - 400 || at % 9_973 == 0);
        for at in places {
            assert!(matches!(read(&whole[..at]), Err(BackupError::Incomplete)), "cut at {at}");
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                let is_reserved = (12..16).contains(&at);
                assert!(is_reserved || read(&bytes).is_err(), "bit {bit} at {at}");
            }
        }
        whole[8] = 2;
        assert!(matches!(read(&whole), Err(BackupError::Version(2))));
        assert!(matches!(read(b"something else, long enough"), Err(BackupError::NoBackup)));
    }
}
