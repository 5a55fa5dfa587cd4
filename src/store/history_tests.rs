//! Tests of [`super`]: rows made by `apply` and kept by the real engine, read back page by page and held against a slow obvious model.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::super::apply::{Admission, MemberAdmission, ReadAdmission, State as Applied, Submission};
use super::super::engine::Engine;
use super::super::entry::{Change as Logged, Entry as LogEntry, Operation};
use super::super::model::Dir;
use super::super::schema::{Batch, Change, META_POSITION};
use super::*;
use crate::mail::MemberChange;
use crate::wire::envelope::{ServerFrame, ServerFrames, send_flags};

pub(super) const STORE: record::Store = record::Store { shard: 0, shards: 1, dedup_s: 86_400, hash_key: [7; 16] };
const NOW_MS: u64 = 1_764_000_000_000;
const CONVS: [&str; 6] = ["d:al:bo", "d:al:al", "d:bo:cy", "g:one", "g:two", "c:big"];
const USERS: [&str; 3] = ["al", "bo", "cy"];
const WHOLE: usize = 1 << 20;

/// What the model knows of a conversation.
#[derive(Clone, Debug, Default)]
struct Told {
    exists: bool,
    messages: Vec<ToldMessage>,
    floor: u64,
    /// Nobody looks at the messages up to here: their mids are forgotten.
    deleted: usize,
    /// Stamp of membership and floor.
    changed: u64,
    /// Members, and those who have left.
    users: BTreeMap<&'static str, ToldUser>,
}

#[derive(Clone, Debug)]
struct ToldMessage {
    mid: Mid,
    from: &'static str,
    cmid: Cmid,
    flags: u8,
    exp_s: u32,
    payload: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default)]
struct ToldUser {
    joined: u64,
    left: bool,
    changed: u64,
    read: u64,
    read_changed: u64,
}

/// A store without threads: `apply` in front of the real engine, the model beside it.
struct Bench {
    engine: Engine,
    /// `None`: the engine outlives the bench.
    _dir: Option<Dir>,
    state: Applied,
    now_ms: u64,
    group: u64,
    batch: Batch,
    next_cmid: u64,
    told: BTreeMap<&'static str, Told>,
    cursors: BTreeMap<(&'static str, &'static str, &'static str), u64>,
}

/// An answer, free of the frame it came in.
#[derive(Clone, PartialEq, Debug)]
struct Page {
    flags: u8,
    floor: u64,
    head: u64,
    messages: Vec<Message<'static>>,
}

#[derive(Clone, PartialEq, Debug)]
struct SyncPage {
    flags: u8,
    since: u64,
    cursor: String,
    entries: Vec<Entry<'static>>,
}

impl Bench {
    fn new(name: &str) -> Self {
        let dir = Dir::new(name);
        let engine = Engine::open(dir.path(), 1 << 20).unwrap();
        Self { _dir: Some(dir), ..Self::with_engine(engine) }
    }

    /// Deletes whatever an earlier bench has left: much faster than an engine of its own.
    fn with_engine(engine: Engine) -> Self {
        let mut batch = Batch::default();
        let view = engine.view();
        for keyspace in Keyspace::ALL {
            view.prefix(keyspace, b"").for_each(|row| batch.push(keyspace, Change::Delete, &row.unwrap().0, |_| {}));
        }
        engine.write(&mut batch).unwrap();
        let position = record::Position { group: 0, changed: 0, epoch: 1, epoch_changed: 0 };
        engine.create(&STORE, &position).unwrap();
        drop(view);
        Self {
            engine,
            _dir: None,
            state: Applied::new(&STORE, &position),
            now_ms: NOW_MS,
            group: 1,
            batch: Batch::default(),
            next_cmid: 1,
            told: BTreeMap::new(),
            cursors: BTreeMap::new(),
        }
    }

    fn history(&self) -> History<crate::store::engine::View<'_>> {
        History::new(self.engine.view(), *self.state.hashes()).unwrap()
    }

    fn load(&mut self, conv: &'static str) -> Conv {
        let hash = self.state.hashes().conv(conv);
        if !self.state.is_loaded(hash) {
            let loaded = self.history().load(conv).unwrap();
            self.state.insert(conv, loaded);
        }
        hash
    }

    fn accept(&mut self, entry: &LogEntry<'_>) {
        self.state.apply(entry, self.group, &mut self.batch).unwrap();
    }

    /// Sends a message under a new cmid; `false`: refused.
    fn send(&mut self, conv: &'static str, user: &'static str, flags: u8, ttl_s: u32, payload: &[u8]) -> bool {
        self.load(conv);
        let mut cmid = [9; 16];
        cmid[..8].copy_from_slice(&self.next_cmid.to_be_bytes());
        self.next_cmid += 1;
        let cmid = Cmid(cmid);
        let send = Submission {
            conv,
            user,
            cmid,
            flags,
            kind: 7,
            ttl_s,
            trace: None,
            payload,
            is_operator: false,
            refusal: None,
            stored: None,
        };
        let Admission::Accept(entry) = self.state.admit_send(&send, self.now_ms) else { return false };
        let Logged::Message(message) = &entry.change else { panic!("a message") };
        let (mid, exp_s) = (message.mid, message.exp_s);
        let told = self.told.entry(conv).or_insert_with(|| Told { floor: 1, ..Told::default() });
        if !told.exists {
            told.exists = true;
            told.changed = mid.0;
            for name in USERS.iter().filter(|name| conv.split(':').skip(1).any(|part| part == **name)) {
                told.users.insert(*name, ToldUser { joined: 1, changed: mid.0, ..ToldUser::default() });
            }
        }
        told.messages.push(ToldMessage { mid, from: user, cmid, flags, exp_s, payload: payload.to_vec() });
        let seq = told.messages.len() as u64;
        let sender = told.users.get_mut(user).unwrap();
        (sender.read, sender.read_changed) = (seq, mid.0);
        self.accept(&entry);
        true
    }

    fn members(&mut self, conv: &'static str, change: &MemberChange) {
        self.load(conv);
        let MemberAdmission::Accept(operation, users) = self.state.admit_members(conv, change) else { return };
        let entry = self.state.members_entry(conv, operation, &users, self.now_ms);
        let Logged::Members { mid, .. } = entry.change else { panic!("a change of members") };
        let told = self.told.entry(conv).or_insert_with(|| Told { floor: 1, ..Told::default() });
        told.exists = true;
        told.changed = mid.0;
        for name in USERS.iter().filter(|name| users.iter().any(|user| user.as_str() == **name)) {
            let user = told.users.entry(name).or_default();
            user.changed = mid.0;
            user.left = operation == Operation::Remove;
            if !user.left {
                user.joined = told.messages.len() as u64 + 1;
            }
        }
        self.accept(&entry);
    }

    fn read(&mut self, conv: &'static str, user: &'static str, seq: u64) {
        let key = self.load(conv);
        let hash = self.state.hashes().user(user);
        if self.state.admit_read(conv, user, seq, self.now_ms) == ReadAdmission::Unknown {
            let stands = self.history().positions(conv, user).unwrap();
            self.state.insert_positions(key, hash, stands);
        }
        if let ReadAdmission::Accept(entry) = self.state.admit_read(conv, user, seq, self.now_ms) {
            let Logged::Read { mid, .. } = entry.change else { panic!("a read position") };
            let told = self.told.get_mut(conv).unwrap().users.get_mut(user).unwrap();
            (told.read, told.read_changed) = (seq, mid.0);
            self.accept(&entry);
        }
    }

    fn cursor(&mut self, conv: &'static str, user: &'static str, device: &'static str, seq: u64) {
        let key = self.load(conv);
        if self.state.admit_cursor(key, user, seq) == Ok(true) {
            // One group carries the highest of a device only: so does the store thread.
            self.close();
            self.accept(&LogEntry { stamp_ms: self.now_ms, change: Logged::Cursor { seq, conv, user, device } });
            let held = self.cursors.entry((user, device, conv)).or_default();
            *held = seq.max(*held);
        }
    }

    fn close(&mut self) {
        self.state.finish(self.group, &mut self.batch);
        self.engine.write(&mut std::mem::take(&mut self.batch)).unwrap();
        self.state.evict(self.group, self.group + 1);
        self.group += 1;
    }

    /// What retention does: the floor rises and messages go. Or the floor alone, as if they were still there; memory reads it back.
    fn raise_floor(&mut self, conv: &'static str, floor: u64, deletes: bool) {
        self.close();
        let key = self.state.hashes().conv(conv);
        let Some(loaded) = self.history().load(conv).unwrap() else { return };
        let told = &self.told[conv];
        let floor = floor.clamp(told.floor, told.messages.len() as u64 + 1);
        let below = told.messages.iter().take(usize::try_from(floor - 1).unwrap());
        let floor_count = below.filter(|message| message.flags & send_flags::QUIET == 0).count() as u64;
        if deletes {
            self.load(conv);
            let Some(entry) = self.state.floor_entry(conv, floor, floor_count, self.now_ms) else { return };
            let Logged::Floor { mid, .. } = entry.change else { panic!("a floor") };
            let told = self.told.get_mut(conv).unwrap();
            (told.floor, told.changed, told.deleted) = (floor, mid.0, usize::try_from(floor - 1).unwrap());
            return self.accept(&entry);
        }
        let position = self.engine.position().unwrap();
        let position = record::Position { changed: position.changed + 1, ..position };
        let told = self.told.get_mut(conv).unwrap();
        (told.floor, told.changed, told.deleted) = (floor, position.changed, usize::try_from(floor - 1).unwrap());
        let head = record::Head {
            conv,
            epoch: 1,
            floor,
            floor_count,
            head: loaded.head,
            count: loaded.count,
            version: loaded.version,
            changed: position.changed,
            flags: 0,
        };
        let mut batch = Batch::default();
        batch.push(Keyspace::Head, Change::Put, &schema::head_key(key), |out| head.encode(out));
        batch.push(Keyspace::Meta, Change::Put, META_POSITION, |out| position.encode(out));
        self.engine.write(&mut batch).unwrap();
        self.state = Applied::new(&STORE, &position);
    }

    fn reader<'a>(&self, user: &'a str, device: &'a str, encoding: Encoding, max_frame: usize) -> Reader<'a> {
        Reader { user, device, rid: 5, encoding, max_frame, now_s: self.now_ms / 1000 }
    }

    fn fetch(&self, reader: &Reader<'_>, conv: &str, range: (u64, u64), limit: u16, newest: bool) -> Result<Page, ErrorCode> {
        let request = PageRequest::Fetch { conv: conv.into(), from: range.0, to: range.1, limit, newest };
        let frame = refused(self.history().page(reader, &request).map(|(frame, _)| frame))?;
        let read = one_frame(reader.encoding, &frame);
        let ServerFrame::Page { rid, flags, epoch, floor, head, conv: echoed, messages } = read else { panic!("{read:?}") };
        assert_eq!((rid, epoch, &*echoed), (5, 1, conv));
        assert!(frame.len() <= reader.max_frame || messages.len() == 1);
        assert!(messages.len() <= usize::from(limit));
        let messages = messages.into_iter().map(owned_message).collect();
        Ok(Page { flags, floor, head, messages })
    }

    fn sync(&self, reader: &Reader<'_>, since: u64, limit: u16, cursor: &str) -> Result<SyncPage, ErrorCode> {
        let request = PageRequest::Sync { since, limit, cursor: cursor.into() };
        let frame = refused(self.history().page(reader, &request).map(|(frame, _)| frame))?;
        let read = one_frame(reader.encoding, &frame);
        let ServerFrame::SyncPage { rid, flags, since, cursor, entries } = read else { panic!("{read:?}") };
        assert_eq!(rid, 5);
        assert!(frame.len() <= reader.max_frame || entries.len() == 1);
        assert!(entries.len() <= usize::from(limit));
        assert_eq!(flags & page_flags::MORE == 0, cursor.is_empty());
        let entries = entries.into_iter().map(owned_entry).collect();
        Ok(SyncPage { flags, since, cursor: cursor.into_owned(), entries })
    }

    /// What FETCH must answer when everything fits.
    fn expected_messages(&self, user: &str, conv: &str, (from, to): (u64, u64)) -> Result<Vec<Message<'static>>, ErrorCode> {
        let direct = matches!(ids::conversation_kind(conv), Some(ConversationKind::Direct(a, b)) if user == a || user == b);
        let nothing = Told { floor: 1, ..Told::default() };
        let told = self.told.get(conv).unwrap_or(&nothing);
        let member = told.users.get(user).filter(|member| !member.left);
        let joined = member.map(|member| member.joined).or(direct.then_some(1)).ok_or(ErrorCode::NotMember)?;
        let to = if to == 0 { u64::MAX } else { to };
        let messages = told.messages.iter().zip(1..).filter(|(_, seq)| {
            let visible = *seq >= joined && *seq >= told.floor;
            visible && *seq >= from && *seq <= to
        });
        Ok(messages
            .map(|(message, seq)| {
                let own = message.from == user;
                let gone = message.exp_s != 0 && u64::from(message.exp_s) <= self.now_ms / 1000;
                let mut flags = message.flags & deliver_flags::QUIET;
                flags |= if own { deliver_flags::OWN } else { 0 };
                flags |= if gone { deliver_flags::TOMBSTONE } else { 0 };
                Message {
                    seq,
                    mid: message.mid,
                    flags,
                    kind: 7,
                    exp_s: message.exp_s,
                    cmid: own.then_some(message.cmid),
                    from: message.from.into(),
                    payload: if gone { Vec::new() } else { message.payload.clone() }.into(),
                }
            })
            .collect())
    }

    /// What a whole SYNC must answer, with the key that orders it.
    fn expected_entries(&self, user: &'static str, device: &'static str, since: u64) -> Vec<(Conv, Entry<'static>)> {
        let mut entries: Vec<_> = self
            .told
            .iter()
            .filter_map(|(conv, told)| Some((*conv, told, told.users.get(user)?)))
            .filter_map(|(conv, told, row)| {
                let removed = Entry {
                    conv: conv.into(),
                    epoch: 1,
                    flags: page_flags::ENTRY_REMOVED,
                    head: 0,
                    head_mid: Mid(0),
                    floor: 0,
                    mine: 0,
                    read: 0,
                    unread: 0,
                };
                let key = self.state.hashes().conv(conv);
                if row.left {
                    return (since > 0 && row.changed > since).then_some((key, removed));
                }
                let kept = told.messages.iter().zip(1..).filter(|(_, seq)| *seq >= told.floor);
                let head_mid = told.messages.iter().skip(told.deleted).last().map_or(Mid(0), |message| message.mid);
                let changed = row.changed.max(row.read_changed).max(told.changed).max(head_mid.0);
                let seen = row.read.max(told.floor - 1).max(row.joined - 1);
                let unread = kept.filter(|(message, seq)| *seq > seen && message.flags & send_flags::QUIET == 0).count();
                let entry = Entry {
                    flags: if conv.starts_with("c:") { page_flags::ENTRY_NOTICE_ONLY } else { 0 },
                    head: told.messages.len() as u64,
                    head_mid,
                    floor: told.floor,
                    mine: self.cursors.get(&(user, device, conv)).copied().unwrap_or(0),
                    read: row.read,
                    unread: u32::try_from(unread).unwrap(),
                    ..removed
                };
                (changed > since).then_some((key, entry))
            })
            .collect();
        entries.sort_by_key(|(key, _)| *key);
        entries
    }

    /// Pages a FETCH until MORE clears; from the front, or with `newest` from the back. The pages in ascending order.
    fn fetch_all(&self, reader: &Reader<'_>, conv: &str, range: (u64, u64), limit: u16, newest: bool) -> Vec<Message<'static>> {
        let (mut range, mut all) = (range, Vec::new());
        loop {
            let page = self.fetch(reader, conv, range, limit, newest).unwrap();
            let more = page.flags & page_flags::MORE != 0;
            assert!(!more || !page.messages.is_empty(), "a page that says MORE holds something");
            if newest {
                range.1 = page.messages.first().map_or(0, |message| message.seq - 1);
                all.splice(0..0, page.messages);
            } else {
                range.0 = page.messages.last().map_or(0, |message| message.seq + 1);
                all.extend(page.messages);
            }
            if !more {
                return all;
            }
        }
    }
}

fn refused(result: Result<Vec<u8>, PageError>) -> Result<Vec<u8>, ErrorCode> {
    result.map_err(|error| match error {
        PageError::Refused(code) => code,
        PageError::Engine(error) => panic!("{error}"),
    })
}

fn one_frame(encoding: Encoding, bytes: &[u8]) -> ServerFrame<'_> {
    let mut frames = ServerFrames::new(encoding, bytes);
    let frame = frames.next_frame().unwrap().unwrap();
    assert_eq!(frames.next_frame(), Ok(None));
    frame
}

fn owned_message(message: Message<'_>) -> Message<'static> {
    let (from, payload) = (message.from.into_owned().into(), message.payload.into_owned().into());
    let Message { seq, mid, flags, kind, exp_s, cmid, .. } = message;
    Message { seq, mid, flags, kind, exp_s, cmid, from, payload }
}

fn owned_entry(entry: Entry<'_>) -> Entry<'static> {
    let conv = entry.conv.into_owned().into();
    let Entry { epoch, flags, head, head_mid, floor, mine, read, unread, .. } = entry;
    Entry { conv, epoch, flags, head, head_mid, floor, mine, read, unread }
}

pub(super) fn names(users: &[&str]) -> Vec<Text> {
    users.iter().map(|user| Text::from(*user)).collect()
}

const ENCODINGS: [Encoding; 2] = [Encoding::Binary, Encoding::Json];

/// Thirty messages of very different length, fetched in pages of every kind: each message comes once and in order, forwards and
/// backwards, in both encodings.
#[test]
fn pages_hold_every_message_once_and_in_order() {
    let mut bench = Bench::new("history-pages");
    for turn in 0..30_usize {
        let user = USERS[turn % 2];
        assert!(bench.send("d:al:bo", user, 0, 0, &vec![b'a' + u8::try_from(turn % 26).unwrap(); turn * turn]));
    }
    bench.close();
    let all = bench.expected_messages("al", "d:al:bo", (1, 0)).unwrap();
    assert_eq!(all.len(), 30);
    for encoding in ENCODINGS {
        for (limit, max_frame) in [(1, WHOLE), (7, WHOLE), (256, WHOLE), (256, 1000), (3, 300), (256, 1)] {
            let reader = bench.reader("al", "web", encoding, max_frame);
            assert_eq!(bench.fetch_all(&reader, "d:al:bo", (1, 0), limit, false), all);
            assert_eq!(bench.fetch_all(&reader, "d:al:bo", (1, 0), limit, true), all);
            assert_eq!(bench.fetch_all(&reader, "d:al:bo", (10, 20), limit, false), all[9..20]);
            assert_eq!(bench.fetch_all(&reader, "d:al:bo", (10, 20), limit, true), all[9..20]);
        }
        let reader = bench.reader("al", "web", encoding, WHOLE);
        let page = |from, to, limit, newest| bench.fetch(&reader, "d:al:bo", (from, to), limit, newest).unwrap();
        assert_eq!((page(0, 0, 256, false).messages, page(0, 0, 256, false).flags), (all.clone(), 0));
        assert_eq!(page(0, 99, 256, false).messages, all);
        assert_eq!((page(5, 4, 256, false).messages, page(5, 4, 256, false).flags), (Vec::new(), 0));
        assert_eq!((page(31, 0, 256, false).messages, page(31, 0, 256, true).messages), (Vec::new(), Vec::new()));
        assert_eq!((page(1, 0, 30, false).flags, page(1, 0, 29, false).flags), (0, page_flags::MORE));
        assert_eq!(page(1, 0, 2, true).messages, all[28..]);
        assert_eq!(page(u64::MAX, u64::MAX, 256, false).messages, Vec::new());
    }
}

/// Who may fetch what: members from where they joined, the two of a direct conversation from the start, and nobody else.
#[test]
fn only_members_see_and_only_from_where_they_joined() {
    let mut bench = Bench::new("history-members");
    bench.members("g:one", &MemberChange::Create(names(&["al", "bo"])));
    for _ in 0..5 {
        bench.send("g:one", "al", 0, 0, b"before");
    }
    bench.members("g:one", &MemberChange::Add(names(&["cy"])));
    bench.send("g:one", "bo", 0, 0, b"after");
    bench.close();
    let fetch = |bench: &Bench, user: &str, conv: &str| {
        let reader = bench.reader(user, "web", Encoding::Binary, WHOLE);
        bench
            .fetch(&reader, conv, (0, 0), 256, false)
            .map(|page| page.messages.iter().map(|message| message.seq).collect::<Vec<_>>())
    };
    assert_eq!(fetch(&bench, "al", "g:one"), Ok(vec![1, 2, 3, 4, 5, 6]));
    assert_eq!(fetch(&bench, "cy", "g:one"), Ok(vec![6]));
    assert_eq!(fetch(&bench, "di", "g:one"), Err(ErrorCode::NotMember));
    for unknown in ["g:none", "c:none", "s:none", "d:bo:cy", "d:al:bo:x", "nonsense", ""] {
        assert_eq!(fetch(&bench, "al", unknown), Err(ErrorCode::NotMember), "{unknown}");
    }
    // A direct conversation exists for its two users before its first message.
    assert_eq!(fetch(&bench, "al", "d:al:bo"), Ok(vec![]));
    let reader = bench.reader("al", "web", Encoding::Json, WHOLE);
    let empty = bench.fetch(&reader, "d:al:bo", (0, 0), 256, true).unwrap();
    assert_eq!((empty.floor, empty.head, empty.flags), (1, 0, 0));
    // After removal nothing; after coming back, only what is new.
    bench.members("g:one", &MemberChange::Remove(names(&["bo"])));
    bench.close();
    assert_eq!(fetch(&bench, "bo", "g:one"), Err(ErrorCode::NotMember));
    bench.members("g:one", &MemberChange::Add(names(&["bo"])));
    bench.send("g:one", "al", 0, 0, b"again");
    bench.close();
    assert_eq!(fetch(&bench, "bo", "g:one"), Ok(vec![7]));
}

/// A raised floor hides what lies below whether it has been deleted or not, and says so to those who ask for it. Even when nothing
/// is left, head and numbering go on.
#[test]
fn what_lies_below_the_floor_is_gone_and_said_to_be() {
    for deletes in [false, true] {
        let mut bench = Bench::new("history-floor");
        for _ in 0..10 {
            bench.send("d:al:bo", "al", 0, 0, b"hi");
        }
        bench.raise_floor("d:al:bo", 5, deletes);
        bench.close();
        let page = |bench: &Bench, from, to| {
            let reader = bench.reader("bo", "web", Encoding::Binary, WHOLE);
            let page = bench.fetch(&reader, "d:al:bo", (from, to), 256, false).unwrap();
            (page.flags, page.floor, page.head, page.messages.len())
        };
        assert_eq!(page(&bench, 0, 0), (page_flags::BELOW_FLOOR, 5, 10, 6));
        assert_eq!(page(&bench, 4, 0), (page_flags::BELOW_FLOOR, 5, 10, 6));
        assert_eq!(page(&bench, 5, 0), (0, 5, 10, 6));
        assert_eq!(page(&bench, 2, 3), (page_flags::BELOW_FLOOR, 5, 10, 0));
        let sync = |bench: &Bench, since| bench.sync(&bench.reader("bo", "web", Encoding::Json, WHOLE), since, 256, "").unwrap();
        let since = sync(&bench, 0).since;
        assert_eq!(sync(&bench, 0).entries[0].unread, 6);
        bench.raise_floor("d:al:bo", 11, deletes);
        bench.close();
        assert_eq!(page(&bench, 0, 0), (page_flags::BELOW_FLOOR, 11, 10, 0));
        let entry = sync(&bench, since).entries.remove(0);
        assert_eq!((entry.head, entry.floor, entry.unread), (10, 11, 0));
        bench.send("d:al:bo", "al", 0, 0, b"goes on");
        bench.close();
        assert_eq!(page(&bench, 11, 0), (0, 11, 11, 1));
        assert_eq!(sync(&bench, 0).entries[0].unread, 1);
    }
}

/// From the second in which it expires a message is a tombstone: its place stays, its content does not, and it counts as unread.
#[test]
fn an_expired_message_keeps_only_its_place() {
    let mut bench = Bench::new("history-expired");
    bench.send("d:al:bo", "al", 0, 60, b"secret");
    bench.send("d:al:bo", "al", 0, 0, b"stays");
    bench.close();
    let seen = |bench: &Bench, user| {
        let reader = bench.reader(user, "web", Encoding::Binary, WHOLE);
        let page = bench.fetch(&reader, "d:al:bo", (0, 0), 256, false).unwrap();
        assert_eq!(page.messages, bench.expected_messages(user, "d:al:bo", (0, 0)).unwrap());
        page.messages.iter().map(|message| (message.flags, message.payload.to_vec())).collect::<Vec<_>>()
    };
    bench.now_ms += 59_999;
    assert_eq!(seen(&bench, "bo"), [(0, b"secret".to_vec()), (0, b"stays".to_vec())]);
    bench.now_ms += 1;
    assert_eq!(seen(&bench, "bo"), [(deliver_flags::TOMBSTONE, vec![]), (0, b"stays".to_vec())]);
    let own = deliver_flags::OWN;
    assert_eq!(seen(&bench, "al"), [(own | deliver_flags::TOMBSTONE, vec![]), (own, b"stays".to_vec())]);
    let page = bench.sync(&bench.reader("bo", "web", Encoding::Binary, WHOLE), 0, 256, "").unwrap();
    assert_eq!(page.entries[0].unread, 2);
}

/// A cursor that is none of ours is 1002; ours is accepted.
#[test]
fn a_foreign_cursor_is_refused() {
    let bench = Bench::new("history-cursor");
    let reader = bench.reader("al", "web", Encoding::Binary, WHOLE);
    let long = format!("1.{:033x}", 5);
    let umlaut = format!("1.{}\u{e4}", "0".repeat(30));
    for wrong in ["x", "1", "1.", ".1", "1.2", "g.00000000000000000000000000000000", &long, &umlaut, "1.\u{e4}"] {
        assert_eq!(bench.sync(&reader, 0, 256, wrong), Err(ErrorCode::BadField), "{wrong}");
    }
    let ours = SyncCursor { since: u64::MAX, last: Conv([0xAB; 16]) };
    assert_eq!(SyncCursor::parse(&ours.to_string()), Some(Some(ours)));
    assert_eq!(bench.sync(&reader, 0, 256, &ours.to_string()).unwrap().since, u64::MAX);
}

/// Unread begins after the greatest of read position, floor and joining; QUIET messages and one's own do not count. A READ alone makes
/// the conversation changed, for the reader only.
#[test]
fn unread_counts_what_is_new_to_the_user() {
    let mut bench = Bench::new("history-unread");
    bench.members("g:one", &MemberChange::Create(names(&["al", "bo"])));
    for _ in 0..5 {
        bench.send("g:one", "al", 0, 0, b"before");
    }
    bench.members("g:one", &MemberChange::Add(names(&["cy"])));
    bench.close();
    let entries = |bench: &Bench, user: &str, since| {
        let page = bench.sync(&bench.reader(user, "web", Encoding::Binary, WHOLE), since, 256, "").unwrap();
        page.entries.iter().map(|entry| (entry.read, entry.unread)).collect::<Vec<_>>()
    };
    assert_eq!(entries(&bench, "al", 0), [(5, 0)]);
    assert_eq!(entries(&bench, "bo", 0), [(0, 5)]);
    assert_eq!(entries(&bench, "cy", 0), [(0, 0)]);
    bench.send("g:one", "al", send_flags::QUIET, 0, b"quiet");
    bench.send("g:one", "al", 0, 0, b"after");
    bench.close();
    assert_eq!((entries(&bench, "bo", 0), entries(&bench, "cy", 0)), (vec![(0, 6)], vec![(0, 1)]));
    let since = bench.engine.position().unwrap().changed;
    bench.read("g:one", "bo", 3);
    bench.close();
    assert_eq!((entries(&bench, "bo", since), entries(&bench, "cy", since)), (vec![(3, 3)], vec![]));
    bench.send("g:one", "bo", 0, 0, b"own");
    bench.close();
    assert_eq!((entries(&bench, "bo", 0), entries(&bench, "cy", 0)), (vec![(8, 0)], vec![(0, 2)]));
}

/// Unread is exact up to its cap.
#[test]
fn unread_is_capped() {
    let mut bench = Bench::new("history-capped");
    for _ in 0..10_050 {
        bench.send("d:al:bo", "al", 0, 0, b"");
    }
    bench.read("d:al:bo", "bo", 50);
    bench.close();
    let reader = bench.reader("bo", "web", Encoding::Binary, WHOLE);
    assert_eq!(bench.sync(&reader, 0, 256, "").unwrap().entries[0].unread, 9_999);
    bench.read("d:al:bo", "bo", 52);
    bench.close();
    assert_eq!(bench.sync(&reader, 0, 256, "").unwrap().entries[0].unread, 9_998);
}

/// What a test does to the store.
#[derive(Clone, Debug)]
enum Step {
    Send { conv: usize, user: usize, flags: u8, ttl_s: u32, bytes: usize },
    Members { conv: usize, operation: usize, users: Vec<usize> },
    Read { conv: usize, user: usize, seq: u64 },
    Cursor { conv: usize, user: usize, device: usize, seq: u64 },
    Floor { conv: usize, floor: u64, deletes: bool },
    Jump(i64),
    Fetch { conv: usize, user: usize, range: (u64, u64), limit: u16, newest: bool, max_frame: usize, json: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let (conv, user) = (0..CONVS.len(), 0..USERS.len());
    let flags = prop_oneof![Just(0), Just(send_flags::QUIET)];
    let sizes = (0..20_u64, 0..20_u64);
    let max_frame = || prop_oneof![Just(WHOLE), 100..1000_usize];
    prop_oneof![
        6 => (conv.clone(), user.clone(), flags, prop_oneof![3 => Just(0), 1 => 1..3_u32], 0..300_usize)
            .prop_map(|(conv, user, flags, ttl_s, bytes)| Step::Send { conv, user, flags, ttl_s, bytes }),
        3 => (conv.clone(), 0..3_usize, prop::collection::vec(user.clone(), 0..4))
            .prop_map(|(conv, operation, users)| Step::Members { conv, operation, users }),
        2 => (conv.clone(), user.clone(), 0..9_u64).prop_map(|(conv, user, seq)| Step::Read { conv, user, seq }),
        1 => (conv.clone(), user.clone(), 0..2_usize, 0..9_u64)
            .prop_map(|(conv, user, device, seq)| Step::Cursor { conv, user, device, seq }),
        1 => (conv.clone(), 0..12_u64, any::<bool>()).prop_map(|(conv, floor, deletes)| Step::Floor { conv, floor, deletes }),
        1 => (-2_000..5_000_i64).prop_map(Step::Jump),
        2 => (conv, user, sizes, 1..6_u16, any::<bool>(), max_frame(), any::<bool>()).prop_map(
            |(conv, user, range, limit, newest, max_frame, json)| Step::Fetch { conv, user, range, limit, newest, max_frame, json }
        ),
    ]
}

impl Bench {
    fn run(&mut self, steps: &[Step]) {
        for step in steps {
            match step.clone() {
                Step::Send { conv, user, flags, ttl_s, bytes } => {
                    self.send(CONVS[conv], USERS[user], flags, ttl_s, &vec![b'x'; bytes]);
                }
                Step::Members { conv, operation, users } => {
                    let users = users.iter().map(|&user| Text::from(USERS[user])).collect();
                    let change = match operation {
                        0 => MemberChange::Create(users),
                        1 => MemberChange::Add(users),
                        _ => MemberChange::Remove(users),
                    };
                    self.members(CONVS[conv], &change);
                }
                Step::Read { conv, user, seq } => self.read(CONVS[conv], USERS[user], seq),
                Step::Cursor { conv, user, device, seq } => self.cursor(CONVS[conv], USERS[user], DEVICES[device], seq),
                Step::Floor { conv, floor, deletes } => self.raise_floor(CONVS[conv], floor, deletes),
                Step::Jump(by) => self.now_ms = self.now_ms.saturating_add_signed(by),
                Step::Fetch { conv, user, range, limit, newest, max_frame, json } => {
                    self.close();
                    self.check_fetch((CONVS[conv], USERS[user]), range, limit, newest, max_frame, ENCODINGS[usize::from(json)]);
                }
            }
        }
        self.close();
    }

    /// One page against the model: the right end of what is asked for, as much as limit and frame allow, MORE exactly if it is cut.
    fn check_fetch(
        &self,
        (conv, user): (&'static str, &'static str),
        range: (u64, u64),
        limit: u16,
        newest: bool,
        max_frame: usize,
        encoding: Encoding,
    ) {
        let reader = self.reader(user, "web", encoding, max_frame);
        let page = self.fetch(&reader, conv, range, limit, newest);
        let expected = match self.expected_messages(user, conv, range) {
            Ok(expected) => expected,
            Err(code) => return assert_eq!(page, Err(code)),
        };
        let page = page.unwrap();
        let count = page.messages.len();
        let part = if newest { &expected[expected.len() - count..] } else { &expected[..count] };
        assert_eq!(page.messages, part);
        assert_eq!(page.flags & page_flags::MORE != 0, count < expected.len());
        assert!(count > 0 || expected.is_empty());
        if max_frame == WHOLE {
            assert_eq!(count, expected.len().min(usize::from(limit)));
        }
        let told = self.told.get(conv);
        assert_eq!((page.floor, page.head), told.map_or((1, 0), |told| (told.floor, told.messages.len() as u64)));
    }

    /// One page of SYNC against the model, given where the last page ended. Returns where this one ends.
    fn check_sync(&self, reader: &Reader<'_>, since: u64, limit: u16, place: Option<&SyncPage>) -> SyncPage {
        let page = self.sync(reader, since, limit, place.map_or("", |page| &page.cursor)).unwrap();
        let after = place.and_then(|page| page.entries.last()).map(|entry| self.state.hashes().conv(&entry.conv));
        let user = USERS.iter().find(|user| **user == reader.user).unwrap();
        let device = DEVICES.iter().find(|device| **device == reader.device).unwrap();
        let expected = self.expected_entries(user, device, since).into_iter();
        let expected: Vec<_> =
            expected.filter(|(key, _)| after.is_none_or(|after| *key > after)).map(|(_, entry)| entry).collect();
        let count = page.entries.len();
        assert_eq!(page.entries, expected[..count]);
        assert_eq!(page.flags & page_flags::MORE != 0, count < expected.len());
        let first_since = place.map_or_else(|| self.engine.position().unwrap().changed, |page| page.since);
        assert_eq!(page.since, first_since);
        page
    }
}

const DEVICES: [&str; 2] = ["web", "tab"];

/// What a client knows from SYNC: a conversation without its own cursor, which is no change.
fn known(view: &mut BTreeMap<String, Entry<'static>>, page: &SyncPage) {
    for entry in &page.entries {
        if entry.flags & page_flags::ENTRY_REMOVED != 0 {
            view.remove(&*entry.conv);
        } else {
            view.insert(entry.conv.to_string(), Entry { mine: 0, ..entry.clone() });
        }
    }
}

/// Any traffic, with clients that page through SYNC while it goes on: every page is what the model says of its moment, and a client
/// that then syncs once more from the `since` it was given knows exactly what is so.
#[test]
fn a_client_that_syncs_knows_what_is_so() {
    let round = (prop::collection::vec(step(), 0..14), 1..4_u16, any::<bool>(), 120..600_usize);
    let traffic = (prop::collection::vec(round, 1..12), 0..USERS.len(), 0..DEVICES.len());
    let dir = Dir::new("history-sync");
    let engine = Engine::open(dir.path(), 1 << 20).unwrap();
    let config = ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() };
    let run = TestRunner::new(config).run(&traffic, |(rounds, user, device)| {
        let mut bench = Bench::with_engine(engine.clone());
        // Groups with a past: most steps then meet a conversation that exists.
        for conv in ["g:one", "g:two", "c:big"] {
            bench.members(conv, &MemberChange::Create(names(&["al", "bo"])));
            (0..4).for_each(|turn| assert!(bench.send(conv, USERS[turn % 2], 0, 0, b"past")));
        }
        let mut view = BTreeMap::new();
        let (mut since, mut place) = (0, None::<SyncPage>);
        let (user, device) = (USERS[user], DEVICES[device]);
        for (steps, limit, json, max_frame) in &rounds {
            bench.run(steps);
            let reader = bench.reader(user, device, ENCODINGS[usize::from(*json)], *max_frame);
            let page = bench.check_sync(&reader, since, *limit, place.as_ref());
            known(&mut view, &page);
            if page.flags & page_flags::MORE == 0 {
                (since, place) = (page.since, None);
            } else {
                place = Some(page);
            }
        }
        let reader = bench.reader(user, device, Encoding::Binary, WHOLE);
        if place.is_some() {
            let rest = bench.check_sync(&reader, since, 256, place.as_ref());
            known(&mut view, &rest);
            since = rest.since;
        }
        known(&mut view, &bench.check_sync(&reader, since, 256, None));
        let so = bench.expected_entries(user, device, 0).into_iter();
        let so: BTreeMap<_, _> = so.map(|(_, entry)| (entry.conv.to_string(), Entry { mine: 0, ..entry })).collect();
        assert_eq!(view, so);
        let last = bench.sync(&reader, bench.engine.position().unwrap().changed, 256, "").unwrap();
        assert_eq!(last.entries, Vec::new());
        Ok(())
    });
    run.unwrap_or_else(|failure| panic!("{failure}"));
}
