//! Tests of [`super`]: live traffic against replay, and the rules one by one.

use proptest::prelude::*;

use super::super::entry::entries;
use super::super::model::Engine;
use super::*;
use crate::mail::MemberChange;

const STORE: record::Store = record::Store { shard: 0, shards: 1, dedup_s: 86_400, hash_key: [7; 16] };
const NOW_MS: u64 = 1_764_000_000_000;
const CONVS: [&str; 5] = ["d:al:bo", "d:al:al", "g:one", "g:two", "c:big"];
const USERS: [&str; 3] = ["al", "bo", "cy"];

/// What a test does to the store.
#[derive(Clone, Debug)]
enum Step {
    Send {
        conv: usize,
        user: usize,
        cmid: u8,
        payload: u8,
        flags: u8,
    },
    Members {
        conv: usize,
        operation: usize,
        users: Vec<usize>,
    },
    Read {
        conv: usize,
        user: usize,
        seq: u64,
    },
    Cursor {
        conv: usize,
        user: usize,
        seq: u64,
    },
    /// Retention.
    Floor {
        conv: usize,
        floor: u64,
    },
    /// The group ends here.
    Close,
    /// The wall clock jumps.
    Jump(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let (conv, user) = (0..CONVS.len(), 0..USERS.len());
    prop_oneof![
        6 => (conv.clone(), user.clone(), 0..40_u8, 0..2_u8, prop_oneof![Just(0), Just(send_flags::QUIET)])
            .prop_map(|(conv, user, cmid, payload, flags)| Step::Send { conv, user, cmid, payload, flags }),
        2 => (conv.clone(), 0..4_usize, prop::collection::vec(user.clone(), 0..4))
            .prop_map(|(conv, operation, users)| Step::Members { conv, operation, users }),
        1 => (conv.clone(), user.clone(), 0..9_u64).prop_map(|(conv, user, seq)| Step::Read { conv, user, seq }),
        1 => (conv.clone(), user, 0..9_u64).prop_map(|(conv, user, seq)| Step::Cursor { conv, user, seq }),
        1 => (conv, 0..9_u64).prop_map(|(conv, floor)| Step::Floor { conv, floor }),
        2 => Just(Step::Close),
        1 => prop_oneof![-90_000_000..90_000_000_i64, -5..5_i64].prop_map(Step::Jump),
    ]
}

/// A store without threads: live traffic on one side, the log and the engine it leaves on the other.
struct Bench {
    state: State,
    engine: Engine,
    now_ms: u64,
    group: u64,
    batch: Batch,
    open: Vec<u8>,
    /// Each group of the log, and the engine after it.
    log: Vec<(Vec<u8>, Engine)>,
    /// Every seq and mid given out, by conversation.
    given: HashMap<&'static str, Vec<u64>>,
    mids: Vec<Mid>,
    floors: HashMap<&'static str, u64>,
}

impl Bench {
    fn new() -> Self {
        Self {
            state: State::new(&STORE, &record::Position::default()),
            engine: Engine::default(),
            now_ms: NOW_MS,
            group: 1,
            batch: Batch::default(),
            open: Vec::new(),
            log: Vec::new(),
            given: HashMap::new(),
            mids: Vec::new(),
            floors: HashMap::new(),
        }
    }

    fn load(state: &mut State, engine: &Engine, id: &str) -> Conv {
        let conv = state.hashes().conv(id);
        if !state.is_loaded(conv) {
            let loaded = engine.load(state.hashes(), id);
            state.insert(id, loaded);
        }
        conv
    }

    fn accept(&mut self, entry: &Entry<'_>) {
        entry.encode(&mut self.open);
        self.state.apply(entry, self.group, &mut self.batch).unwrap();
    }

    fn send(&mut self, conv: &'static str, user: &str, cmid: Cmid, flags: u8, payload: &[u8]) -> Admission<'static> {
        Self::load(&mut self.state, &self.engine, conv);
        let stored = self.engine.dedup(self.state.hashes(), user, cmid).filter(|_| flags & send_flags::RETRY != 0);
        let send = Submission {
            conv,
            user,
            cmid,
            flags,
            kind: 1,
            ttl_s: 0,
            trace: None,
            payload,
            is_operator: false,
            refusal: None,
            stored,
        };
        match self.state.admit_send(&send, self.now_ms) {
            Admission::Accept(entry) => {
                let Change::Message(message) = &entry.change else { panic!("a message") };
                let (seq, mid) = (message.seq, message.mid);
                self.given.entry(conv).or_default().push(seq);
                self.mids.push(mid);
                self.accept(&entry);
                // The caller only asks which place it got.
                Admission::Duplicate { seq, mid }
            }
            Admission::Duplicate { seq, mid } => Admission::Duplicate { seq, mid },
            Admission::Transient => Admission::Transient,
            Admission::Refuse(code) => Admission::Refuse(code),
        }
    }

    fn members(&mut self, conv: &'static str, change: &MemberChange) -> MemberAdmission {
        Self::load(&mut self.state, &self.engine, conv);
        let admission = self.state.admit_members(conv, change);
        if let MemberAdmission::Accept(operation, users) = &admission {
            let entry = self.state.members_entry(conv, *operation, users, self.now_ms);
            entry.encode(&mut self.open);
            self.state.apply(&entry, self.group, &mut self.batch).unwrap();
        }
        admission
    }

    fn read(&mut self, conv: &'static str, user: &'static str, seq: u64) -> Result<u64, ErrorCode> {
        let key = Self::load(&mut self.state, &self.engine, conv);
        let hash = self.state.hashes().user(user);
        self.state.insert_positions(key, hash, self.engine.positions(self.state.hashes(), conv, user));
        match self.state.admit_read(conv, user, seq, self.now_ms) {
            ReadAdmission::Accept(entry) => {
                self.accept(&entry);
                Ok(seq)
            }
            ReadAdmission::Stands(position) => Ok(position),
            ReadAdmission::Refuse(code) => Err(code),
            ReadAdmission::Unknown => panic!("the position was given"),
        }
    }

    fn close(&mut self) {
        self.state.finish(self.group, &mut self.batch);
        self.engine.write(std::mem::take(&mut self.batch));
        self.log.push((std::mem::take(&mut self.open), self.engine.clone()));
        self.state.evict(self.group, self.group + 1);
        self.group += 1;
    }

    fn run(&mut self, steps: &[Step]) {
        for step in steps {
            match step.clone() {
                Step::Send { conv, user, cmid, payload, flags } => {
                    self.send(CONVS[conv], USERS[user], Cmid([cmid + 1; 16]), flags, &[payload]);
                }
                Step::Members { conv, operation, users } => {
                    let users = users.iter().map(|&user| Text::from(USERS[user])).collect();
                    let change = match operation {
                        0 => MemberChange::Create(users),
                        1 => MemberChange::Add(users),
                        2 => MemberChange::Remove(users),
                        _ => MemberChange::Show,
                    };
                    self.members(CONVS[conv], &change);
                }
                Step::Read { conv, user, seq } => {
                    let _ = self.read(CONVS[conv], USERS[user], seq);
                }
                Step::Cursor { conv, user, seq } => {
                    let key = Self::load(&mut self.state, &self.engine, CONVS[conv]);
                    if self.state.admit_cursor(key, USERS[user], seq) == Ok(true) {
                        let change = Change::Cursor { seq, conv: CONVS[conv], user: USERS[user], device: "web" };
                        self.accept(&Entry { stamp_ms: self.now_ms, change });
                    }
                }
                Step::Floor { conv, floor } => {
                    // What is not in the engine yet is not seen by a sweep.
                    self.close();
                    Self::load(&mut self.state, &self.engine, CONVS[conv]);
                    if let Some(entry) = self.state.floor_entry(CONVS[conv], floor, floor / 2, self.now_ms) {
                        self.floors.insert(CONVS[conv], floor);
                        self.accept(&entry);
                    }
                }
                Step::Close => self.close(),
                Step::Jump(by) => self.now_ms = self.now_ms.saturating_add_signed(by),
            }
        }
        self.close();
    }
}

/// Replays the groups after `from` upon the engine as it stood there.
fn replay(log: &[(Vec<u8>, Engine)], from: usize) -> Engine {
    let mut engine = if from == 0 { Engine::default() } else { log[from - 1].1.clone() };
    let mut state = State::new(&STORE, &engine.position());
    let mut group = engine.position().group;
    for (body, _) in &log[from..] {
        group += 1;
        let mut batch = Batch::default();
        for entry in entries(body) {
            let entry = entry.unwrap();
            match &entry.change {
                Change::Message(Message { conv, .. })
                | Change::Members { conv, .. }
                | Change::Set { conv, .. }
                | Change::Shape { conv, .. }
                | Change::Floor { conv, .. }
                | Change::Read { conv, .. } => {
                    Bench::load(&mut state, &engine, conv);
                }
                Change::Cursor { .. } | Change::Epoch { .. } | Change::Ban { .. } | Change::Revoked { .. } => {}
            }
            state.apply(&entry, group, &mut batch).unwrap();
        }
        state.finish(group, &mut batch);
        engine.write(batch);
    }
    engine
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any traffic, cut into any groups: seqs are dense, mids only rise whatever the wall clock does, and replay from every group
    /// gives exactly the rows that live traffic gave.
    #[test]
    fn replay_gives_the_same_rows_from_any_group(steps in prop::collection::vec(step(), 1..120)) {
        let mut bench = Bench::new();
        bench.run(&steps);
        for seqs in bench.given.values() {
            prop_assert!(seqs.iter().enumerate().all(|(index, &seq)| seq == index as u64 + 1));
        }
        prop_assert!(bench.mids.is_sorted_by(|a, b| a < b));
        for from in 0..=bench.log.len() {
            prop_assert_eq!(&replay(&bench.log, from).rows, &bench.engine.rows);
        }
        for (conv, seqs) in &bench.given {
            let history = bench.engine.history(bench.state.hashes(), conv);
            let floor = bench.floors.get(conv).copied().unwrap_or(1);
            let kept: Vec<u64> = history.iter().map(|(seq, ..)| *seq).collect();
            prop_assert_eq!(kept, (floor..=seqs.len() as u64).collect::<Vec<_>>());
            let mut cmids: Vec<_> = history.iter().map(|(_, user, cmid, _)| (user.clone(), *cmid)).collect();
            cmids.sort();
            cmids.dedup();
            prop_assert_eq!(cmids.len(), history.len());
        }
    }

    /// Read positions and cursors are merged by max: whatever is asked in whatever order, no row goes back from one group to the next,
    /// and at the end each stands at the highest that was accepted.
    #[test]
    fn positions_only_rise(steps in prop::collection::vec(step(), 1..120)) {
        // Whoever adds cursors to a group has merged them before: a device tells one of a conversation in each.
        let alone = |step: Step| if matches!(step, Step::Cursor { .. }) { vec![Step::Close, step] } else { vec![step] };
        let steps: Vec<_> = steps.into_iter().flat_map(alone).collect();
        let mut bench = Bench::new();
        bench.run(&steps);
        let seq = |keyspace, row: &[u8]| match keyspace {
            Keyspace::Read => record::Read::decode(row).unwrap().seq,
            _ => record::Cursor::decode(row).unwrap().seq,
        };
        let mut highest = std::collections::BTreeMap::new();
        for (body, engine) in &bench.log {
            for entry in entries(body) {
                let hashes = bench.state.hashes();
                let (key, at) = match entry.unwrap().change {
                    Change::Read { seq, conv, user, .. } => {
                        ((Keyspace::Read, schema::user_key(hashes.user(user), hashes.conv(conv)).to_vec()), seq)
                    }
                    Change::Cursor { seq, conv, user, device } => {
                        let key = schema::cursor_key(hashes.user(user), hashes.device(device), hashes.conv(conv));
                        ((Keyspace::Cursor, key.to_vec()), seq)
                    }
                    Change::Message(message) => {
                        // A message says that its sender has read up to it.
                        let key = schema::user_key(hashes.user(message.user), hashes.conv(message.conv));
                        ((Keyspace::Read, key.to_vec()), message.seq)
                    }
                    _ => continue,
                };
                let known = highest.entry(key).or_insert(0);
                *known = at.max(*known);
            }
            for ((keyspace, key), at) in &highest {
                let row = engine.get(*keyspace, key).map(|row| seq(*keyspace, row));
                prop_assert_eq!(row, Some(*at), "{:?}", keyspace);
            }
        }
    }

    /// Whatever the wall clock says, and however many messages fall into one millisecond, the next value is greater.
    #[test]
    fn hybrid_clock_never_goes_back(times in prop::collection::vec(NOW_MS - 5..NOW_MS + 5, 1..3000)) {
        let mut clock = HybridClock::new(3, Mid(0));
        for now_ms in times {
            let next = clock.next(now_ms);
            prop_assert!(next > clock.last);
            prop_assert!(next.unix_ms() >= now_ms);
            prop_assert_eq!(next.0 >> 10 & COUNTER_MASK, 3);
            clock.last = next;
        }
    }
}

/// The counter of one millisecond runs out after 1024 values: the clock borrows the next millisecond.
#[test]
fn hybrid_clock_borrows_the_next_millisecond() {
    let mut clock = HybridClock::new(0, Mid(0));
    let mids: Vec<Mid> = (0..1025)
        .map(|_| {
            clock.last = clock.next(NOW_MS);
            clock.last
        })
        .collect();
    assert_eq!(mids[1023], Mid::new(NOW_MS, 0, 1023));
    assert_eq!(mids[1024], Mid::new(NOW_MS + 1, 0, 0));
}

/// The same cmid again: the original place, from memory and, after a restart, from the engine when RETRY asks for it; another
/// payload, kind or conversation under it is 3009; another user's cmid is another message.
#[test]
fn a_repeat_gets_the_original_place() {
    let mut bench = Bench::new();
    let cmid = Cmid([9; 16]);
    let first = bench.send("d:al:bo", "al", cmid, 0, b"hi");
    assert_eq!(bench.send("d:al:bo", "al", cmid, 0, b"hi"), first);
    assert_eq!(bench.send("d:al:bo", "al", cmid, 0, b"ho"), Admission::Refuse(ErrorCode::CmidReused));
    assert_eq!(bench.send("d:al:al", "al", cmid, 0, b"hi"), Admission::Refuse(ErrorCode::CmidReused));
    assert_ne!(bench.send("d:al:bo", "bo", cmid, 0, b"hi"), first);
    bench.close();
    bench.state = State::new(&STORE, &bench.engine.position());
    assert_eq!(bench.send("d:al:bo", "al", cmid, send_flags::RETRY, b"hi"), first);
    let reused = bench.send("d:al:al", "al", cmid, send_flags::RETRY, b"hi");
    assert_eq!(reused, Admission::Refuse(ErrorCode::CmidReused));
    assert_eq!(bench.given["d:al:bo"], [1, 2]);
}

/// Who may send where, and that refusals and transient messages leave no trace.
#[test]
fn strangers_are_refused() {
    let mut bench = Bench::new();
    for (conv, user) in [("d:al:bo", "cy"), ("g:one", "al"), ("c:big", "al")] {
        assert_eq!(bench.send(conv, user, Cmid([1; 16]), 0, b""), Admission::Refuse(ErrorCode::NotMember));
    }
    let users = |names: &[&str]| names.iter().map(|name| Text::from(*name)).collect::<Vec<_>>();
    bench.members("g:one", &MemberChange::Create(users(&["al", "bo", "al"])));
    assert_eq!(bench.send("g:one", "al", Cmid([2; 16]), send_flags::TRANSIENT, b""), Admission::Transient);
    assert!(matches!(bench.send("g:one", "al", Cmid([2; 16]), 0, b""), Admission::Duplicate { seq: 1, .. }));
    bench.members("g:one", &MemberChange::Remove(users(&["al", "cy"])));
    assert_eq!(bench.send("g:one", "al", Cmid([3; 16]), 0, b""), Admission::Refuse(ErrorCode::NotMember));
    assert_eq!(bench.read("g:one", "al", 0), Err(ErrorCode::NotMember));
    let add = MemberChange::Add(users(&["bo"]));
    assert_eq!(bench.members("g:one", &add), MemberAdmission::Unchanged);
    assert_eq!(bench.members("g:two", &add), MemberAdmission::Refuse(MemberRefusal::Unknown));
    assert_eq!(bench.members("d:al:bo", &add), MemberAdmission::Refuse(MemberRefusal::BadName));
    let create = MemberChange::Create(users(&["bo"]));
    assert_eq!(bench.members("g:one", &create), MemberAdmission::Refuse(MemberRefusal::Exists));
    let rejoin = MemberChange::Add(users(&["al"]));
    assert_eq!(bench.members("g:one", &rejoin), MemberAdmission::Accept(Operation::Add, users(&["al"])));
    let conversation = bench.state.conversation(bench.state.hashes().conv("g:one")).unwrap();
    assert_eq!(conversation.version, 3);
    assert_eq!(conversation.members[0].joined, 2);
}

/// READ only moves forward and not beyond head; a committed SEND moves the sender's own.
#[test]
fn read_position_is_the_highest() {
    let mut bench = Bench::new();
    for cmid in 1..=5 {
        bench.send("d:al:bo", "al", Cmid([cmid; 16]), 0, b"");
    }
    assert_eq!(bench.read("d:al:bo", "bo", 3), Ok(3));
    assert_eq!(bench.read("d:al:bo", "bo", 2), Ok(3));
    assert_eq!(bench.read("d:al:bo", "bo", 6), Err(ErrorCode::BeyondHead));
    assert_eq!(bench.read("d:al:bo", "al", 1), Ok(5));
    let conv = bench.state.hashes().conv("d:al:bo");
    assert_eq!(bench.state.admit_cursor(conv, "al", 6), Err(ErrorCode::BeyondHead));
    assert_eq!(bench.state.admit_cursor(conv, "al", 5), Ok(true));
}

/// An entry that cannot follow the state is refused by name: a hole in seq, a mid of another clock, a version skipped.
#[test]
fn a_log_that_tells_another_story_is_refused() {
    let mut bench = Bench::new();
    bench.send("d:al:bo", "al", Cmid([1; 16]), 0, b"");
    bench.send("d:al:bo", "al", Cmid([2; 16]), 0, b"");
    let logged: Vec<_> = entries(&bench.open).map(Result::unwrap).collect();
    let mut state = State::new(&STORE, &record::Position::default());
    state.insert("d:al:bo", None);
    let what = |result: Result<(), Disagreement>| result.unwrap_err().what;
    assert_eq!(what(state.apply(&logged[1], 1, &mut Batch::default())), "seq");
    let mut late = State::new(&STORE, &record::Position { changed: Mid::new(NOW_MS + 9, 0, 0).0, ..Default::default() });
    late.insert("d:al:bo", None);
    assert_eq!(what(late.apply(&logged[0], 1, &mut Batch::default())), "mid");
    let users = [Text::from("al")];
    let members = Change::Members {
        mid: Mid::new(NOW_MS, 0, 0),
        version: 2,
        operation: Operation::Create,
        conv: "g:one",
        users: Names::List(&users),
    };
    state.insert("g:one", None);
    let entry = Entry { stamp_ms: NOW_MS, change: members };
    assert_eq!(what(state.apply(&entry, 1, &mut Batch::default())), "version");
}

/// When a quarter of the window begins, the bucket whose turn it is loses what it held a window and a quarter ago; the rest stays.
#[test]
fn dedup_buckets_are_emptied_in_turn() {
    let mut bench = Bench::new();
    let quarter_ms = u64::from(STORE.dedup_s) * 1000 / 4;
    for turn in 0..7_u8 {
        bench.send("d:al:bo", "al", Cmid([turn + 1; 16]), 0, b"");
        bench.close();
        bench.now_ms += quarter_ms;
    }
    let known = |turn: u8| bench.engine.dedup(bench.state.hashes(), "al", Cmid([turn + 1; 16])).is_some();
    assert_eq!((0..7).map(known).collect::<Vec<_>>(), [false, false, true, true, true, true, true]);
}
