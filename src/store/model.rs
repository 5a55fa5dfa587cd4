//! A slow, obvious engine in memory, for tests: what readers and projector do to the real one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::job::{Loaded, LoadedMember, Positions};
use super::record::{self, Value};
use super::schema::{Batch, Change, Hashes, Keyspace, META_POSITION, dedup_key, head_key, msg_seq, user_key};
use crate::ids::Cmid;

/// All rows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Engine {
    pub rows: BTreeMap<(Keyspace, Vec<u8>), Vec<u8>>,
}

impl Engine {
    /// Writes one batch, sorted as the projector does.
    pub fn write(&mut self, mut batch: Batch) {
        batch.sort();
        for &keyspace in batch.clears() {
            self.rows.retain(|(other, _), _| *other != keyspace);
        }
        for row in batch.rows() {
            let key = (row.keyspace, row.key.to_vec());
            let seq = |value: &[u8]| record::Cursor::decode(value).unwrap().seq;
            match row.change {
                Change::Delete => {
                    self.rows.remove(&key);
                }
                Change::Max if self.rows.get(&key).is_some_and(|old| seq(old) >= seq(row.value)) => {}
                Change::Put | Change::Max => {
                    self.rows.insert(key, row.value.to_vec());
                }
            }
        }
    }

    pub fn get(&self, keyspace: Keyspace, key: &[u8]) -> Option<&[u8]> {
        self.rows.get(&(keyspace, key.to_vec())).map(Vec::as_slice)
    }

    pub fn position(&self) -> record::Position {
        self.get(Keyspace::Meta, META_POSITION).map_or(record::Position::default(), |row| record::Position::decode(row).unwrap())
    }

    pub fn load(&self, hashes: &Hashes, id: &str) -> Option<Loaded> {
        let conv = hashes.conv(id);
        let head = record::Head::decode(self.get(Keyspace::Head, &head_key(conv))?).unwrap();
        assert_eq!(head.conv, id);
        let last = self.prefixed(Keyspace::Msg, &conv.0).last();
        let last = last.map(|(key, value)| (msg_seq(key).unwrap(), record::MessageHeader::decode(value).unwrap().0.count));
        let (seq, count) = last.unwrap_or((head.head, head.count));
        let members = self.prefixed(Keyspace::Member, &conv.0).map(|(_, value)| record::Member::decode(value).unwrap());
        Some(Loaded {
            floor: head.floor,
            floor_count: head.floor_count,
            head: seq,
            count,
            version: head.version,
            changed: head.changed,
            flags: head.flags,
            members: members.map(|member| LoadedMember::from(&member)).collect(),
        })
    }

    pub fn positions(&self, hashes: &Hashes, conv: &str, user: &str) -> Positions {
        let (conv, user) = (hashes.conv(conv), hashes.user(user));
        let read = self.get(Keyspace::Read, &user_key(user, conv)).map_or(0, |row| record::Read::decode(row).unwrap().seq);
        let prefix = user.0.to_be_bytes();
        let cursors = self.prefixed(Keyspace::Cursor, &prefix).filter(|(key, _)| key.ends_with(&conv.0));
        let recv = cursors.map(|(_, row)| record::Cursor::decode(row).unwrap().seq).max().unwrap_or(0);
        Positions { read, recv }
    }

    pub fn dedup(&self, hashes: &Hashes, user: &str, cmid: Cmid) -> Option<record::Dedup> {
        let key = dedup_key(cmid, hashes.user(user));
        let row = Keyspace::DEDUP.iter().find_map(|&bucket| self.get(bucket, &key))?;
        Some(record::Dedup::decode(row).unwrap())
    }

    /// The values of `meta` under keys that begin with `prefix`.
    pub fn meta(&self, prefix: &[u8]) -> Vec<Vec<u8>> {
        self.prefixed(Keyspace::Meta, prefix).map(|(_, row)| row.to_vec()).collect()
    }

    /// Messages of a conversation: seq, sender, cmid, payload.
    pub fn history(&self, hashes: &Hashes, id: &str) -> Vec<(u64, String, Cmid, Vec<u8>)> {
        let conv = hashes.conv(id);
        let rows = self.prefixed(Keyspace::Msg, &conv.0);
        rows.map(|(key, value)| {
            let (header, payload) = record::MessageHeader::decode(value).unwrap();
            (msg_seq(key).unwrap(), header.from.to_owned(), header.cmid, payload.to_vec())
        })
        .collect()
    }

    fn prefixed(&self, keyspace: Keyspace, prefix: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.rows
            .range((keyspace, prefix.to_vec())..)
            .take_while(move |((other, key), _)| *other == keyspace && key.starts_with(prefix))
            .map(|((_, key), value)| (key.as_slice(), value.as_slice()))
    }
}

/// A directory of its own for one test, removed with it.
#[derive(Debug)]
pub struct Dir(PathBuf);

impl Dir {
    /// A fresh name under the temporary directory; `name` says whose it is.
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tidegate-{name}-{}-{number}", std::process::id()));
        drop(std::fs::remove_dir_all(&path));
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}
