//! The outbox on disk: what was asked to be sent survives the program (docs/protocol.md section 7, step 1).
//!
//! ```text
//!  record = body bytes u32 │ checksum u32 │ body
//!  body   = 1 │ cmid 16 │ first asked, Unix ms u64 │ flags u8 │ kind u16 │ ttl_s u32 │ conv s8 │ payload      to be sent
//!         = 2 │ cmid 16                                                                                       done
//! ```
//!
//! Appended, and synced before the first SEND may leave. Opening reads what is not done, in the order of asking, and rewrites the file
//! with that alone; a torn last record was never acted upon and is dropped. One program at a time may use a file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tidegate::ids::Cmid;

use crate::event::Outgoing;

/// File size from which a journal in which nothing is open is emptied.
const REWRITE_BYTES: u64 = 1 << 20;

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    bytes: u64,
    open: usize,
    is_dirty: bool,
}

/// A message of an earlier life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Kept {
    pub(crate) cmid: Cmid,
    pub(crate) asked_unix_ms: u64,
    pub(crate) message: Outgoing,
}

impl Journal {
    /// Opens or makes the file; returns what is not done.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Vec<Kept>)> {
        let kept = match fs::read(path) {
            Ok(bytes) => read(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        kept.iter().for_each(|one| put(&mut bytes, &keep_body(one)));
        let draft = draft(path);
        fs::write(&draft, &bytes)?;
        File::open(&draft)?.sync_all()?;
        fs::rename(&draft, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
        let file = OpenOptions::new().append(true).open(path)?;
        Ok((Self { file, bytes: bytes.len() as u64, open: kept.len(), is_dirty: false }, kept))
    }

    /// Notes a message to be sent; on disk after [`Journal::sync`].
    pub(crate) fn keep(&mut self, one: &Kept) -> io::Result<()> {
        self.append(&keep_body(one))?;
        self.open += 1;
        self.is_dirty = true;
        Ok(())
    }

    /// Notes that nothing more is to be done about a message. Lost in a crash, this only costs a repeat.
    pub(crate) fn done(&mut self, cmid: Cmid) -> io::Result<()> {
        let mut body = vec![DONE];
        body.extend_from_slice(&cmid.0);
        self.append(&body)?;
        self.open = self.open.saturating_sub(1);
        if self.open == 0 && self.bytes > REWRITE_BYTES {
            self.file.set_len(0)?;
            self.bytes = 0;
        }
        Ok(())
    }

    /// Makes everything noted so far durable.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        if self.is_dirty {
            self.file.sync_data()?;
            self.is_dirty = false;
        }
        Ok(())
    }

    fn append(&mut self, body: &[u8]) -> io::Result<()> {
        let mut record = Vec::with_capacity(body.len() + 8);
        put(&mut record, body);
        self.file.write_all(&record)?;
        self.bytes += record.len() as u64;
        Ok(())
    }
}

fn draft(path: &Path) -> PathBuf {
    path.with_added_extension("draft")
}

fn put(out: &mut Vec<u8>, body: &[u8]) {
    let length = u32::try_from(body.len()).expect("a payload is far smaller than 4 GiB");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&checksum(body).to_le_bytes());
    out.extend_from_slice(body);
}

fn keep_body(one: &Kept) -> Vec<u8> {
    let Kept { cmid, asked_unix_ms, message } = one;
    let Outgoing { conv, kind, ttl_s, quiet, payload, .. } = message;
    let mut body = vec![KEEP];
    body.extend_from_slice(&cmid.0);
    body.extend_from_slice(&asked_unix_ms.to_le_bytes());
    body.push(u8::from(*quiet));
    body.extend_from_slice(&kind.to_le_bytes());
    body.extend_from_slice(&ttl_s.to_le_bytes());
    body.push(u8::try_from(conv.len()).expect("a conversation id has at most 160 bytes"));
    body.extend_from_slice(conv.as_bytes());
    body.extend_from_slice(payload);
    body
}

/// What is not done, in the order of asking. Reading ends at the first record that is not whole.
fn read(mut bytes: &[u8]) -> Vec<Kept> {
    let mut kept: Vec<Kept> = Vec::new();
    while let Some((body, rest)) = record(bytes) {
        bytes = rest;
        match parse(body) {
            Some(Ok(one)) => kept.push(one),
            Some(Err(done)) => kept.retain(|one| one.cmid != done),
            None => break,
        }
    }
    kept
}

fn record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (sum, rest) = rest.split_first_chunk()?;
    let (body, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    (checksum(body) == u32::from_le_bytes(*sum)).then_some((body, rest))
}

fn parse(body: &[u8]) -> Option<Result<Kept, Cmid>> {
    let (tag, rest) = body.split_first()?;
    let (cmid, rest) = rest.split_first_chunk()?;
    if *tag == DONE {
        return Some(Err(Cmid(*cmid)));
    }
    let (asked, rest) = rest.split_first_chunk()?;
    let (flags, rest) = rest.split_first()?;
    let (kind, rest) = rest.split_first_chunk()?;
    let (ttl_s, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first()?;
    let (conv, payload) = rest.split_at_checked(usize::from(*length))?;
    let mut message = Outgoing::new(std::str::from_utf8(conv).ok()?, payload);
    (message.kind, message.ttl_s) = (u16::from_le_bytes(*kind), u32::from_le_bytes(*ttl_s));
    message.quiet = *flags != 0;
    Some(Ok(Kept { cmid: Cmid(*cmid), asked_unix_ms: u64::from_le_bytes(*asked), message }))
}

/// FNV-1a, against torn writes.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, &byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

const KEEP: u8 = 1;
const DONE: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(number: u8) -> Kept {
        let message = Outgoing { quiet: true, ttl_s: 9, kind: 7, ..Outgoing::new("d:al:bo", &[number; 40]) };
        Kept { cmid: Cmid([number; 16]), asked_unix_ms: 1_764_000_000_000, message }
    }

    /// What is done is gone after reopening, the rest is there in its order; a file cut anywhere gives the whole records before the cut.
    #[test]
    fn what_is_not_done_survives() {
        let folder = std::env::temp_dir().join(format!("tidegate-journal-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("outbox");
        let (mut journal, before) = Journal::open(&path).unwrap();
        assert_eq!(before, []);
        (1..=3).for_each(|number| journal.keep(&kept(number)).unwrap());
        journal.done(Cmid([2; 16])).unwrap();
        journal.sync().unwrap();
        drop(journal);
        let whole = fs::read(&path).unwrap();
        let (journal, again) = Journal::open(&path).unwrap();
        assert_eq!(again, [kept(1), kept(3)]);
        drop(journal);
        assert_eq!(Journal::open(&path).unwrap().1, [kept(1), kept(3)], "rewriting keeps it");
        let one = whole.len() - 25;
        for cut in 0..whole.len() {
            let expected = (cut / (one / 3)).min(3);
            assert_eq!(read(&whole[..cut]).len(), expected, "cut at {cut}");
        }
        let mut damaged = whole.clone();
        damaged[one / 3 + 20] ^= 1;
        assert_eq!(read(&damaged), [kept(1)]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
