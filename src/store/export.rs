//! What the engine holds, for people and other programs: one JSON object per line.
//!
//! ```text
//! {"conversation":{"id":"g:team","epoch":1,"floor":1,"head":2,"version":1,"history":false}}
//! {"member":{"conv":"g:team","user":"al","joined":1,"role":"owner","muted":false}}
//! {"message":{"conv":"g:team","seq":1,"mid":"1849…","at_ms":1764000000000,"from":"al","cmid":"0123…","kind":1,"quiet":false,"exp_s":0,"text":"hi"}}
//! {"end":{"conversations":1,"messages":1}}
//! ```
//!
//! Conversation after conversation, its members, then its messages in order. A payload that is not UTF-8 is `b64` instead of `text`.
//! Without the last line the rest is missing. One row is in memory at a time.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};

use super::backup::BackupError;
use super::engine::EngineError;
use super::record::{self, BadValue, Head, Member, MessageHeader, Value};
use super::rows::Rows;
use super::schema::{self, Conv, Hashes, Keyspace};
use crate::ids::Role;
use crate::wire::envelope::deliver_flags;

/// What is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    /// Only this conversation.
    pub conv: Option<String>,
    /// Messages from this seq on.
    pub from: u64,
    /// Messages up to this seq.
    pub to: u64,
    /// Messages from this time on, milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// Messages before this time.
    pub until_ms: u64,
}

impl Default for Range {
    fn default() -> Self {
        Self { conv: None, from: 1, to: u64::MAX, since_ms: 0, until_ms: u64::MAX }
    }
}

impl Range {
    /// One line without a line feed.
    #[must_use]
    pub fn to_line(&self) -> String {
        let Self { conv, from, to, since_ms, until_ms } = self;
        format!("{} {from} {to} {since_ms} {until_ms}", conv.as_deref().unwrap_or("*"))
    }

    /// What [`Range::to_line`] wrote; `None` for anything else.
    #[must_use]
    pub fn from_line(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let conv = words.next().filter(|word| !word.is_empty())?;
        let mut number = || words.next()?.parse().ok();
        let range = Self {
            conv: (conv != "*").then(|| conv.to_owned()),
            from: number()?,
            to: number()?,
            since_ms: number()?,
            until_ms: number()?,
        };
        words.next().is_none().then_some(range)
    }
}

/// How much was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Exported {
    /// Conversations.
    pub conversations: u64,
    /// Messages.
    pub messages: u64,
}

/// Writes what `range` asks for.
///
/// # Errors
/// [`BackupError`]; the last line is missing then.
pub fn write(view: &impl Rows, range: &Range, out: &mut impl Write) -> Result<Exported, BackupError> {
    let store = view.get(Keyspace::Meta, schema::META_STORE)?.ok_or_else(|| bad(BadValue))?;
    let hashes = Hashes::new(record::Store::decode(&store).map_err(bad)?.hash_key);
    let epoch = view.position()?.epoch;
    let mut exported = Exported::default();
    let (first, last) = match &range.conv {
        Some(conv) => (hashes.conv(conv).0, hashes.conv(conv).0),
        None => ([0; 16], [0xFF; 16]),
    };
    for row in view.range(Keyspace::Head, &first, &last) {
        let (key, value) = row?;
        let conv = Conv(<[u8; 16]>::try_from(&key[..]).map_err(|_| bad(BadValue))?);
        let head = Head::decode(&value).map_err(bad)?;
        exported.conversations += 1;
        exported.messages += conversation(view, (conv, &head, epoch), range, out)?;
    }
    let Exported { conversations, messages } = exported;
    line(out, &json!({ "end": { "conversations": conversations, "messages": messages } }))?;
    out.flush()?;
    Ok(exported)
}

/// One conversation; returns how many messages.
fn conversation(
    view: &impl Rows,
    (conv, head, epoch): (Conv, &Head<'_>, u32),
    range: &Range,
    out: &mut impl Write,
) -> Result<u64, BackupError> {
    let floor = head.floor.max(1);
    let newest = view.newest(conv, floor).transpose()?;
    let newest = newest.and_then(|(key, _)| schema::msg_seq(&key)).unwrap_or(head.head);
    let history = head.flags & record::head_flags::HISTORY != 0;
    line(
        out,
        &json!({ "conversation": {
            "id": head.conv, "epoch": epoch, "floor": floor, "head": newest, "version": head.version, "history": history,
        } }),
    )?;
    for row in view.prefix(Keyspace::Member, &conv.0) {
        let (_, value) = row?;
        let member = Member::decode(&value).map_err(bad)?;
        let role = Role::from_number(member.role).word();
        let (user, joined, muted) = (member.user, member.joined, member.muted != 0);
        line(out, &json!({ "member": { "conv": head.conv, "user": user, "joined": joined, "role": role, "muted": muted } }))?;
    }
    let from = range.from.max(floor);
    if from > range.to {
        return Ok(0);
    }
    let mut count = 0;
    let (first, last) = (schema::msg_key(conv, from), schema::msg_key(conv, range.to));
    for row in view.range(Keyspace::Msg, &first, &last) {
        let (key, value) = row?;
        let (header, payload) = MessageHeader::decode(&value).map_err(bad)?;
        let at_ms = header.mid.unix_ms();
        if at_ms < range.since_ms {
            continue;
        }
        if at_ms >= range.until_ms {
            break;
        }
        let seq = schema::msg_seq(&key).ok_or_else(|| bad(BadValue))?;
        line(out, &message(head.conv, seq, &header, payload))?;
        count += 1;
    }
    Ok(count)
}

fn message(conv: &str, seq: u64, header: &MessageHeader<'_>, payload: &[u8]) -> Json {
    let cmid: String = header.cmid.0.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut message = json!({
        "conv": conv,
        "seq": seq,
        "mid": header.mid.0.to_string(),
        "at_ms": header.mid.unix_ms(),
        "from": header.from,
        "cmid": cmid,
        "kind": header.kind,
        "quiet": header.flags & deliver_flags::QUIET != 0,
        "exp_s": header.exp_s,
    });
    match std::str::from_utf8(payload) {
        Ok(text) => message["text"] = text.into(),
        Err(_) => message["b64"] = STANDARD.encode(payload).into(),
    }
    json!({ "message": message })
}

fn line(out: &mut impl Write, json: &Json) -> io::Result<()> {
    writeln!(out, "{json}")
}

fn bad(error: BadValue) -> BackupError {
    BackupError::Engine(EngineError::Failed { operation: "reading", reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A range survives the way to the gateway, and what is none is refused.
    #[test]
    fn a_range_is_one_line() {
        let some = Range { conv: Some("d:al:bo".to_owned()), from: 2, to: 9, since_ms: 1, until_ms: 77 };
        for range in [Range::default(), some] {
            assert_eq!(Range::from_line(&range.to_line()), Some(range));
        }
        for line in ["", "*", "* 1 2 3", "* 1 2 3 x", "* 1 2 3 4 5", "g:x -1 2 3 4"] {
            assert_eq!(Range::from_line(line), None, "{line}");
        }
    }
}
