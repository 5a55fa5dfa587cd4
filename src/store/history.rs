//! What SYNC, FETCH and the store's own questions read from one view of the engine.

use super::engine::EngineError;
use super::job::{JobFault, Loaded, LoadedMember, Positions};
use super::record::{self, MessageHeader, Value, head_flags};
use super::rows::Rows;
use super::schema::{self, Conv, Device, Hashes, Keyspace, User};
use crate::ids::{self, Cmid, ConversationKind, Mid};
use crate::limits::SHARED_CONVERSATIONS_MAX;
use crate::mail::{PageRequest, Reached};
use crate::mutant::{self, Mutant};
use crate::wire::envelope::{
    Deliver, Encoding, Entry, ErrorCode, Message, PageHead, PageOrder, PageWriter, SyncPageWriter, deliver_flags, deliver_tail,
    page_flags,
};
use crate::wire::message::Text;

/// One reading of the engine, for one question.
pub struct History<R> {
    view: R,
    hashes: Hashes,
    epoch: u32,
    epoch_changed: u64,
    since: u64,
}

/// Who asks, and how the answer is to look.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    /// User.
    pub user: &'a str,
    /// Device, whose cursor is `mine`.
    pub device: &'a str,
    /// `rid` of the request.
    pub rid: u32,
    /// Encoding of the finished frame.
    pub encoding: Encoding,
    /// The finished frame is at most this long, unless one message alone is longer.
    pub max_frame: usize,
    /// Unix seconds: what has expired by now is a TOMBSTONE.
    pub now_s: u64,
}

/// Why a page cannot be made.
#[derive(Debug)]
pub enum PageError {
    /// The client's fault, or its bad luck.
    Refused(ErrorCode),
    /// Ours.
    Engine(EngineError),
}

impl From<EngineError> for PageError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl From<record::BadValue> for PageError {
    fn from(error: record::BadValue) -> Self {
        Self::Engine(EngineError::Failed { operation: "reading", reason: error.to_string() })
    }
}

impl<R: Rows> History<R> {
    /// Reads through `view`.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn new(view: R, hashes: Hashes) -> Result<Self, EngineError> {
        let position = view.position()?;
        Ok(Self { view, hashes, epoch: position.epoch, epoch_changed: position.epoch_changed, since: position.changed })
    }

    /// The rows it reads.
    pub(super) fn rows(&self) -> &R {
        &self.view
    }

    /// The finished frame that answers `request`, and what the session has once it is written.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn page(&self, reader: &Reader<'_>, request: &PageRequest) -> Result<(Vec<u8>, Reached), PageError> {
        match request {
            PageRequest::Sync { since, limit, cursor } => self.sync(reader, *since, *limit, cursor),
            PageRequest::Fetch { conv, from, to, limit, newest } => {
                let order = if *newest { PageOrder::Descending } else { PageOrder::Ascending };
                self.fetch(reader, conv, (*from, *to), *limit, order)
            }
            PageRequest::Again { conv, seq } => {
                let tail = self.again(reader, conv, *seq)?;
                Ok((tail, Reached::Again(conv.clone(), *seq)))
            }
        }
    }

    /// Head and members of a conversation, `None` if it does not exist.
    ///
    /// # Errors
    /// [`JobFault`].
    pub fn load(&self, id: &str) -> Result<Option<Loaded>, JobFault> {
        let conv = self.hashes.conv(id);
        let row = self.view.get(Keyspace::Head, &schema::head_key(conv)).map_err(engine)?;
        let Some(row) = row else { return Ok(None) };
        let head = record::Head::decode(&row).map_err(mismatch)?;
        if head.conv != id {
            return Err(JobFault::Mismatch);
        }
        let last = self.view.newest(conv, head.floor).transpose().map_err(engine)?;
        let (seq, count) = match &last {
            Some((key, value)) => {
                let (header, _) = MessageHeader::decode(value).map_err(mismatch)?;
                (schema::msg_seq(key).ok_or(JobFault::Mismatch)?, header.count)
            }
            None => (head.head, head.count),
        };
        let mut members = Vec::new();
        for row in self.view.prefix(Keyspace::Member, &conv.0) {
            let (_, value) = row.map_err(engine)?;
            let member = record::Member::decode(&value).map_err(mismatch)?;
            members.push(LoadedMember::from(&member));
        }
        Ok(Some(Loaded {
            floor: head.floor,
            floor_count: head.floor_count,
            head: seq.max(head.head),
            count: count.max(head.count),
            version: head.version,
            changed: head.changed,
            flags: head.flags,
            members,
        }))
    }

    /// The values of `meta` under keys that begin with `prefix`.
    ///
    /// # Errors
    /// [`JobFault`].
    pub fn meta(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, JobFault> {
        let rows = self.view.prefix(Keyspace::Meta, prefix);
        rows.map(|row| row.map(|(_, value)| value.to_vec()).map_err(engine)).collect()
    }

    /// Read position of a user, and the highest cursor of the user's devices.
    ///
    /// # Errors
    /// [`JobFault`].
    pub fn positions(&self, conv: &str, user: &str) -> Result<Positions, JobFault> {
        let (conv, user) = (self.hashes.conv(conv), self.hashes.user(user));
        let row = self.view.get(Keyspace::Read, &schema::user_key(user, conv)).map_err(engine)?;
        let read = row.map_or(Ok(0), |row| record::Read::decode(&row).map(|read| read.seq).map_err(mismatch))?;
        let mut recv = 0;
        // Cursors of one device stand together, so the search leaps from device to device.
        let last = schema::cursor_key(user, Device(u64::MAX), Conv([0xFF; 16]));
        let mut first = schema::cursor_key(user, Device(0), Conv([0; 16]));
        for _ in 0..DEVICES_SEARCHED_MAX {
            let Some(row) = self.view.range(Keyspace::Cursor, &first, &last).next() else { break };
            let (key, _) = row.map_err(engine)?;
            let device = schema::cursor_key_device(&key).ok_or(JobFault::Mismatch)?;
            if let Some(row) = self.view.get(Keyspace::Cursor, &schema::cursor_key(user, device, conv)).map_err(engine)? {
                recv = recv.max(record::Cursor::decode(&row).map_err(mismatch)?.seq);
            }
            let Some(next) = device.0.checked_add(1) else { break };
            first = schema::cursor_key(user, Device(next), Conv([0; 16]));
        }
        Ok(Positions { read, recv })
    }

    /// For each of `others`, whether `user` shares a conversation with them. Costs [`SHARED_CONVERSATIONS_MAX`] rows at most, however many
    /// they are; who has not been found by then counts as a stranger.
    ///
    /// # Errors
    /// [`JobFault`].
    pub fn shared(&self, user: &str, others: &[Text]) -> Result<Vec<bool>, JobFault> {
        let mut rows_left = SHARED_CONVERSATIONS_MAX;
        let mine = self.mine(self.hashes.user(user), &mut rows_left)?;
        // Direct conversations first: what groups cost takes nothing from them.
        let mut shared = Vec::with_capacity(others.len());
        for other in others {
            shared.push(other.as_str() == user || self.has_direct(user, other, &mine, &mut rows_left)?);
        }
        let mut found = None;
        for (other, is_shared) in others.iter().zip(&mut shared) {
            if !*is_shared {
                *is_shared = self.has_one_of(self.hashes.user(other), &mine.groups, &mut found, &mut rows_left)?;
            }
        }
        Ok(shared)
    }

    /// The conversations that `user` has and has not left, out of the first rows: half of those that may be read.
    fn mine(&self, user: User, rows_left: &mut usize) -> Result<Mine, JobFault> {
        let (max, prefix) = (*rows_left / 2, user.0.to_be_bytes());
        let (mut directs, mut groups, mut count) = (Vec::new(), Vec::new(), 0);
        for row in self.view.prefix(Keyspace::ConvOf, &prefix).take(max) {
            let (key, value) = row.map_err(engine)?;
            count += 1;
            let row = record::ConvOf::decode(&value).map_err(mismatch)?;
            if !row.left {
                let is_direct = matches!(ids::conversation_kind(row.conv), Some(ConversationKind::Direct(..)));
                let list = if is_direct { &mut directs } else { &mut groups };
                list.push(schema::user_key_conv(&key).ok_or(JobFault::Mismatch)?);
            }
        }
        *rows_left -= count;
        Ok(Mine { directs, groups, is_whole: count < max })
    }

    /// Whether the two have a direct conversation: asked for by its name, if it may be one of those not in `mine`.
    fn has_direct(&self, user: &str, other: &str, mine: &Mine, rows_left: &mut usize) -> Result<bool, JobFault> {
        let (a, b) = if other < user { (other, user) } else { (user, other) };
        let conv = self.hashes.conv(&format!("d:{a}:{b}"));
        Ok(mine.directs.binary_search(&conv).is_ok() || !mine.is_whole && self.has(self.hashes.user(user), conv, rows_left)?)
    }

    /// Whether a user has one of `groups`, which are in order, and has not left it. First asks for the one that was `found` last: many
    /// share one. Then reads as many rows of the user as there are groups, which tells of everybody who has fewer; only of the others each
    /// group is asked for.
    fn has_one_of(&self, user: User, groups: &[Conv], found: &mut Option<Conv>, rows_left: &mut usize) -> Result<bool, JobFault> {
        if let Some(conv) = *found
            && self.has(user, conv, rows_left)?
        {
            return Ok(true);
        }
        let (max, prefix) = (groups.len().min(*rows_left), user.0.to_be_bytes());
        if max == 0 {
            return Ok(false);
        }
        let mut count = 0;
        for row in self.view.prefix(Keyspace::ConvOf, &prefix).take(max) {
            let (key, value) = row.map_err(engine)?;
            count += 1;
            *rows_left -= 1;
            let conv = schema::user_key_conv(&key).ok_or(JobFault::Mismatch)?;
            if groups.binary_search(&conv).is_ok() && !record::ConvOf::decode(&value).map_err(mismatch)?.left {
                *found = Some(conv);
                return Ok(true);
            }
        }
        if count < max {
            return Ok(false);
        }
        for &conv in groups {
            if self.has(user, conv, rows_left)? {
                *found = Some(conv);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a user has a conversation and has not left it: one row. `false` as well when none may be read any more.
    fn has(&self, user: User, conv: Conv, rows_left: &mut usize) -> Result<bool, JobFault> {
        let Some(left) = rows_left.checked_sub(1) else { return Ok(false) };
        *rows_left = left;
        let row = self.view.get(Keyspace::ConvOf, &schema::user_key(user, conv)).map_err(engine)?;
        row.map_or(Ok(false), |row| record::ConvOf::decode(&row).map(|row| !row.left).map_err(mismatch))
    }

    /// What a cmid was used for within the window.
    ///
    /// # Errors
    /// [`JobFault`].
    pub fn dedup(&self, user: &str, cmid: Cmid) -> Result<Option<record::Dedup>, JobFault> {
        let key = schema::dedup_key(cmid, self.hashes.user(user));
        for keyspace in Keyspace::DEDUP {
            if let Some(row) = self.view.get(keyspace, &key).map_err(engine)? {
                return record::Dedup::decode(&row).map(Some).map_err(mismatch);
            }
        }
        Ok(None)
    }

    fn fetch(
        &self,
        reader: &Reader<'_>,
        id: &str,
        (from, to): (u64, u64),
        limit: u16,
        order: PageOrder,
    ) -> Result<(Vec<u8>, Reached), PageError> {
        let conv = self.hashes.conv(id);
        let joined = self.joined(reader.user, id, conv)?.ok_or(PageError::Refused(ErrorCode::NotMember))?;
        let state = self.state(id, conv)?.unwrap_or(State { floor: 1, ..State::default() });
        let page = PageHead { rid: reader.rid, epoch: self.epoch, floor: state.floor, head: state.head, conv: id };
        let mut writer = PageWriter::new(reader.encoding, reader.max_frame, order, &page);
        let joined = if state.flags & head_flags::HISTORY != 0 { 1 } else { joined };
        let wanted = from.max(1).max(joined);
        let mut flags = if wanted < state.floor { page_flags::BELOW_FLOOR } else { 0 };
        let first = wanted.max(state.floor);
        let last = if to == 0 { state.head } else { to.min(state.head) };
        let mut reached = last;
        if first > last {
            return Ok((writer.finish(flags), Reached::Seq(id.into(), reached)));
        }
        let mut given = 0;
        let (first, last) = (schema::msg_key(conv, first), schema::msg_key(conv, last));
        let mut rows = self.view.range(Keyspace::Msg, &first, &last);
        loop {
            let row = match order {
                PageOrder::Ascending => rows.next(),
                PageOrder::Descending => rows.next_back(),
            };
            let Some((key, value)) = row.transpose()? else { break };
            let (header, payload) = MessageHeader::decode(&value)?;
            let seq = schema::msg_seq(&key).ok_or(record::BadValue)?;
            if writer.count() == limit || !writer.push(&message(reader, seq, &header, payload)) {
                flags |= page_flags::MORE;
                break;
            }
            given = seq;
        }
        if flags & page_flags::MORE != 0 && order == PageOrder::Ascending {
            reached = given;
        }
        Ok((writer.finish(flags), Reached::Seq(id.into(), reached)))
    }

    /// The tail of a DELIVER that brings a message once more.
    fn again(&self, reader: &Reader<'_>, id: &str, seq: u64) -> Result<Vec<u8>, PageError> {
        let conv = self.hashes.conv(id);
        let joined = self.joined(reader.user, id, conv)?.ok_or(PageError::Refused(ErrorCode::NotMember))?;
        let floor = self.state(id, conv)?.map_or(1, |state| state.floor);
        let row = self.view.get(Keyspace::Msg, &schema::msg_key(conv, seq))?.filter(|_| seq >= joined.max(floor));
        let row = row.ok_or(PageError::Refused(ErrorCode::BeyondHead))?;
        let (header, payload) = MessageHeader::decode(&row)?;
        let Message { seq, mid, flags, kind, exp_s, cmid, from, payload } = message(reader, seq, &header, payload);
        let flags = flags | deliver_flags::REPLAY;
        let deliver = Deliver { pos: 0, seq, mid, flags, kind, exp_s, cmid, trace: None, conv: id.into(), from, payload };
        let mut tail = Vec::new();
        deliver_tail(reader.encoding, &deliver, reader.max_frame, &mut tail);
        Ok(tail)
    }

    fn sync(&self, reader: &Reader<'_>, since: u64, limit: u16, cursor: &str) -> Result<(Vec<u8>, Reached), PageError> {
        let place = SyncCursor::parse(cursor).ok_or(PageError::Refused(ErrorCode::BadField))?;
        let new_since = place.as_ref().map_or(self.since, |place| place.since);
        // A stamp that was not given out yet is of a life that was lost: whatever the device knows, everything has changed since.
        let since = (since > 0).then_some(if since > new_since { 0 } else { since });
        let user = self.hashes.user(reader.user);
        let device = self.hashes.device(reader.device);
        let mut writer = SyncPageWriter::new(reader.encoding, reader.max_frame, reader.rid);
        let first = match &place {
            Some(place) => schema::user_key(user, place.last).to_vec(),
            None => user.0.to_be_bytes().to_vec(),
        };
        let last = schema::user_key(user, Conv([0xFF; 16]));
        let mut reported = None;
        for row in self.view.range(Keyspace::ConvOf, &first, &last) {
            let (key, value) = row?;
            let conv = schema::user_key_conv(&key).ok_or(record::BadValue)?;
            if place.as_ref().is_some_and(|place| place.last == conv) {
                continue;
            }
            let row = record::ConvOf::decode(&value)?;
            let Some(entry) = self.entry(&row, conv, user, device, since)? else { continue };
            if writer.count() == limit || !writer.push(&entry) {
                let last = reported.expect("a page takes at least one entry");
                let next = SyncCursor { since: new_since, last };
                return Ok((writer.finish(page_flags::MORE, new_since, &next.to_string()), Reached::Nothing));
            }
            reported = Some(conv);
        }
        Ok((writer.finish(0, new_since, ""), Reached::All))
    }

    /// The entry of one conversation, `None` if it has not changed since.
    fn entry<'a>(
        &self,
        row: &record::ConvOf<'a>,
        conv: Conv,
        user: User,
        device: Device,
        since: Option<u64>,
    ) -> Result<Option<Entry<'a>>, PageError> {
        if row.left {
            let removed = Entry {
                conv: row.conv.into(),
                epoch: self.epoch,
                flags: page_flags::ENTRY_REMOVED,
                head: 0,
                head_mid: Mid(0),
                floor: 0,
                mine: 0,
                read: 0,
                unread: 0,
            };
            return Ok(since.is_some_and(|since| row.changed.max(self.epoch_changed) > since).then_some(removed));
        }
        let state = self.state(row.conv, conv)?.unwrap_or(State { floor: 1, ..State::default() });
        let read = match self.view.get(Keyspace::Read, &schema::user_key(user, conv))? {
            Some(bytes) => record::Read::decode(&bytes)?,
            None => record::Read { seq: 0, changed: 0 },
        };
        let changed = state.head_mid.0.max(state.changed).max(row.changed).max(read.changed).max(self.epoch_changed);
        if changed <= since.unwrap_or(0) {
            return Ok(None);
        }
        let mine = match self.view.get(Keyspace::Cursor, &schema::cursor_key(user, device, conv))? {
            Some(bytes) => record::Cursor::decode(&bytes)?.seq,
            None => 0,
        };
        let seen = read.seq.max(state.floor - 1).max(row.joined.max(1) - 1);
        let counted = if mutant::on(Mutant::UnreadOffByOne) { seen.saturating_sub(1) } else { seen };
        let unread = state.count.saturating_sub(self.count_at(&state, conv, counted)?).min(UNREAD_MAX);
        let kind = ids::conversation_kind(row.conv);
        let mut flags = 0;
        if matches!(kind, Some(ConversationKind::Channel)) || state.flags & head_flags::LARGE != 0 {
            flags |= page_flags::ENTRY_NOTICE_ONLY;
        }
        if !matches!(kind, Some(ConversationKind::Direct(..)))
            && let Some(bytes) = self.view.get(Keyspace::Member, &schema::member_key(conv, user))?
            && record::Member::decode(&bytes)?.muted != 0
        {
            flags |= page_flags::ENTRY_MUTED;
        }
        Ok(Some(Entry {
            conv: row.conv.into(),
            epoch: self.epoch,
            flags,
            head: state.head,
            head_mid: state.head_mid,
            floor: state.floor,
            mine,
            read: read.seq,
            unread: u32::try_from(unread).expect("capped"),
        }))
    }

    /// First seq the user may see, `None` for one who is not a member.
    fn joined(&self, user: &str, id: &str, conv: Conv) -> Result<Option<u64>, PageError> {
        match ids::conversation_kind(id) {
            Some(ConversationKind::Direct(a, b)) => Ok((user == a || user == b).then_some(1)),
            Some(_) => {
                let key = schema::member_key(conv, self.hashes.user(user));
                let Some(bytes) = self.view.get(Keyspace::Member, &key)? else { return Ok(None) };
                let member = record::Member::decode(&bytes)?;
                Ok((member.user == user).then_some(member.joined))
            }
            None => Ok(None),
        }
    }

    fn state(&self, id: &str, conv: Conv) -> Result<Option<State>, PageError> {
        let Some(bytes) = self.view.get(Keyspace::Head, &schema::head_key(conv))? else { return Ok(None) };
        let head = record::Head::decode(&bytes)?;
        if head.conv != id {
            return Err(PageError::Refused(ErrorCode::NotMember));
        }
        let mut state = State {
            floor: head.floor.max(1),
            floor_count: head.floor_count,
            head: head.head,
            head_mid: Mid(0),
            count: head.count,
            changed: head.changed,
            flags: head.flags,
        };
        if let Some((key, value)) = self.view.newest(conv, head.floor).transpose()? {
            let (header, _) = MessageHeader::decode(&value)?;
            let seq = schema::msg_seq(&key).ok_or(record::BadValue)?;
            (state.head, state.head_mid, state.count) = (seq, header.mid, header.count);
        }
        Ok(Some(state))
    }

    /// How many not QUIET messages the conversation holds up to and with `seq`.
    fn count_at(&self, state: &State, conv: Conv, seq: u64) -> Result<u64, PageError> {
        if seq >= state.head {
            return Ok(state.count);
        }
        if seq < state.floor {
            return Ok(state.floor_count);
        }
        let bytes = self.view.get(Keyspace::Msg, &schema::msg_key(conv, seq))?.ok_or(record::BadValue)?;
        Ok(MessageHeader::decode(&bytes)?.0.count)
    }
}

/// Conversations of one who asks about others, in the order of their keys.
#[derive(Debug)]
struct Mine {
    /// Of two.
    directs: Vec<Conv>,
    /// All others.
    groups: Vec<Conv>,
    /// There are no more.
    is_whole: bool,
}

/// A conversation as its rows say.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    floor: u64,
    floor_count: u64,
    head: u64,
    head_mid: Mid,
    count: u64,
    changed: u64,
    flags: u8,
}

fn message<'a>(reader: &Reader<'_>, seq: u64, header: &MessageHeader<'a>, payload: &'a [u8]) -> Message<'a> {
    let own = header.from == reader.user;
    let expired = header.exp_s != 0 && u64::from(header.exp_s) <= reader.now_s;
    let mut flags = header.flags & (deliver_flags::QUIET | deliver_flags::TOMBSTONE);
    if own {
        flags |= deliver_flags::OWN;
    }
    if expired {
        flags |= deliver_flags::TOMBSTONE;
    }
    Message {
        seq,
        mid: header.mid,
        flags,
        kind: header.kind,
        exp_s: header.exp_s,
        cmid: own.then_some(header.cmid),
        from: header.from.into(),
        payload: if flags & deliver_flags::TOMBSTONE != 0 { (&[] as &[u8]).into() } else { payload.into() },
    }
}

/// Where the next page of a SYNC goes on. Opaque to clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct SyncCursor {
    /// `since` of the first page, which all pages return.
    since: u64,
    /// The last conversation reported.
    last: Conv,
}

impl SyncCursor {
    /// `None`: not one of ours. `Some(None)`: empty, the first page.
    #[expect(clippy::option_option, reason = "wrong, first and later are three cases")]
    fn parse(text: &str) -> Option<Option<Self>> {
        if text.is_empty() {
            return Some(None);
        }
        let (since, last) = text.split_once('.')?;
        let last = if last.len() == 32 && last.is_ascii() { u128::from_str_radix(last, 16).ok()? } else { return None };
        Some(Some(Self { since: u64::from_str_radix(since, 16).ok()?, last: Conv(last.to_be_bytes()) }))
    }
}

impl std::fmt::Display for SyncCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}.{:032x}", self.since, u128::from_be_bytes(self.last.0))
    }
}

fn engine(_: EngineError) -> JobFault {
    JobFault::Engine
}

fn mismatch(_: record::BadValue) -> JobFault {
    JobFault::Mismatch
}

/// Devices of one user whose cursors are looked at for a receipt, in the order of their hashes.
const DEVICES_SEARCHED_MAX: usize = 256;

/// `unread` is capped here.
const UNREAD_MAX: u64 = 9_999;

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "history_watch_tests.rs"]
mod watch_tests;
