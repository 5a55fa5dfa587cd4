//! Allocations per message in steady state: a shard and the sequencer driven by hand, with every call to the allocator counted.
//!
//! ```text
//!  bytes lent ─► shard ─► submit │ order, log, rows, fan-out ─► group │ group ─► SENT, DELIVER gathered ─► taken │ ACK: receive
//!       receive                  │              store                 │                 send                     │
//! ```
//!
//! After a warm-up receive and send are to be free of allocations, but for a chunk of an arena now and then; so is the store, which gets
//! its emptied groups and batches back. The disk is one that keeps nothing: what a disk allocates is not the path's.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use allocation_counter::measure;
use tidegate::clock::Moment;
use tidegate::config::Secret;
use tidegate::conn::carry::Stashes;
use tidegate::conn::send_queue::Batch;
use tidegate::ids::{Cmid, ConnectionId, ReactorId};
use tidegate::io::driver::Flow;
use tidegate::limits;
use tidegate::mail::{Group, Peer, Submit};
use tidegate::observe::trace::Sampling;
use tidegate::session::auth::{Verifier, mint};
use tidegate::session::rate::Rate;
use tidegate::shard::{Outlet, Rules, Shard};
use tidegate::store::disk::{Disk, Space, SpaceRule};
use tidegate::store::job::{Answer, Job, JobFault, Loaded, Positions, Progress, Projection};
use tidegate::store::level::Levels;
use tidegate::store::log::{Log, LogSettings};
use tidegate::store::record;
use tidegate::store::recovery::Cold;
use tidegate::store::schema;
use tidegate::store::sequencer::{Policy, Ports, Sequencer, Settings};
use tidegate::wire::envelope::{ClientFrame, Cursor, Cursors, Encoding, Hello, Send, encode_client};

/// One message at a time: every message is a commit group of its own, the window is empty before and after it. The dearest way to send.
#[test]
fn a_lone_message_allocates_nothing() {
    let figures = Node::new(&[("al", "bo")]).run(1);
    figures.print("one message per group");
    figures.judge();
}

/// Thirty-two conversations with four messages under way in each: groups of 128.
#[test]
fn messages_in_large_groups_allocate_nothing() {
    let names: Vec<(String, String)> = (0..32).map(|pair| (format!("al{pair:02}"), format!("bo{pair:02}"))).collect();
    let pairs: Vec<(&str, &str)> = names.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let figures = Node::new(&pairs).run(4);
    figures.print("128 messages per group");
    figures.judge();
}

/// What was counted after the warm-up.
#[derive(Debug, Default)]
struct Figures {
    messages: u64,
    groups: u64,
    receive: u64,
    store: u64,
    send: u64,
}

impl Figures {
    fn print(&self, what: &str) {
        let Self { messages, groups, receive, store, send } = self;
        println!("{what}: {messages} messages in {groups} groups; allocations: receive {receive}, store {store}, send {send}");
    }

    fn judge(&self) {
        let few = self.messages / MESSAGES_PER_ALLOCATION_MIN;
        assert!(self.receive <= few, "{self:?}");
        assert!(self.send <= few, "{self:?}");
        assert!(self.store <= few, "{self:?}");
    }
}

/// A core, the store, and two sessions per pair of users.
struct Node {
    now: Moment,
    shard: Shard,
    stashes: Stashes,
    batch: Batch,
    sequencer: Sequencer<Nowhere>,
    lanes: Lanes,
    pairs: Vec<Pair>,
    cmids: u128,
}

struct Pair {
    sender: ConnectionId,
    receiver: ConnectionId,
    conv: String,
    sent: u64,
}

impl Node {
    fn new(pairs: &[(&str, &str)]) -> Self {
        let now = Moment { mono_ns: 1_000_000_000, unix_ms: UNIX_MS + 1_000 };
        let secret = Secret::new(vec![7; 32]).expect("long enough");
        let shard = Shard::new(ReactorId(0), Arc::new(rules()), Arc::new(Verifier::new(&secret, 5)), now);
        let progress = Arc::new(Progress::new(0));
        let mut lanes = Lanes::new(now, progress.clone());
        let settings = LogSettings { segment_bytes: 1 << 40, accept_loss: false, projected: 0 };
        let (log, recovered) = Log::open(Nowhere, settings).expect("nothing to read");
        let store = record::Store { shard: 0, shards: 1, dedup_s: 86_400, hash_key: [3; 16] };
        let settings = Settings {
            levels: Levels::all(2),
            hellos_per_minute: 0,
            sampling: Sampling { every: 0 },
            space: SpaceRule { free_bytes_min: 0, free_percent_min: 0 },
            cores: 1,
            policy: Policy::default(),
            started_ms: 0,
        };
        let position = record::Position::default();
        let sequencer =
            Sequencer::recover(log, &recovered, (&store, &position), settings, progress, &mut lanes).expect("an empty log");
        let stashes = Stashes::new(1 << 20);
        let mut node = Self { now, shard, stashes, batch: Batch::default(), sequencer, lanes, pairs: Vec::new(), cmids: 0 };
        for (a, b) in pairs {
            let (sender, receiver) = (node.connect(&secret, a), node.connect(&secret, b));
            node.pairs.push(Pair { sender, receiver, conv: format!("d:{a}:{b}"), sent: 0 });
        }
        node
    }

    /// Upgrade, HELLO, and the store's answer.
    fn connect(&mut self, secret: &Secret, user: &str) -> ConnectionId {
        let id = self.shard.handle_accept(self.now, None).expect("there is room");
        let mut head = b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
            Sec-WebSocket-Protocol: tidegate.v1\r\n\r\n"
            .to_vec();
        let token = mint(secret, user, None, 0..self.now.unix_ms / 1000 + 3600).expect("a good name");
        let hello = Hello::new("phone", "test/1", token.as_str());
        head.extend_from_slice(&message(&ClientFrame::Hello(hello)));
        self.lend(id, &mut head);
        self.turn_store();
        self.turn_groups();
        id
    }

    /// `burst` messages of each pair in one round, until enough are counted.
    fn run(mut self, burst: u64) -> Figures {
        let mut figures = Figures::default();
        let per_round = burst * self.pairs.len() as u64;
        for round in 0..(MESSAGES_WARM + MESSAGES_COUNTED) / per_round {
            let counts = round >= MESSAGES_WARM / per_round;
            let groups = self.lanes.groups_count;
            let parts = self.round(burst);
            if counts {
                figures.messages += per_round;
                figures.groups += self.lanes.groups_count - groups;
                figures.receive += parts[0];
                figures.store += parts[1];
                figures.send += parts[2];
            }
        }
        let sent: u64 = self.pairs.iter().map(|pair| pair.sent).sum();
        let counters = &self.shard.counters;
        assert_eq!((counters.sents_count, counters.deliveries_count), (sent, sent), "every message went all the way");
        assert_eq!(counters.deliveries_marked_count, 0);
        assert_eq!(self.shard.queued_bytes(), 0);
        assert!(figures.groups > 0 && figures.messages >= MESSAGES_COUNTED / 2);
        figures
    }

    /// One round; allocations of receive, store and send.
    fn round(&mut self, burst: u64) -> [u64; 3] {
        self.now.mono_ns += ROUND_NS;
        self.now.unix_ms = UNIX_MS + self.now.mono_ns / 1_000_000;
        self.lanes.now = self.now;
        let (mut sends, mut acks) = (Vec::new(), Vec::new());
        for pair in &mut self.pairs {
            let mut bytes = Vec::new();
            for _ in 0..burst {
                self.cmids += 1;
                bytes.extend_from_slice(&send(&pair.conv, self.cmids));
            }
            pair.sent += burst;
            sends.push((pair.sender, bytes));
            acks.push((pair.receiver, ack(&pair.conv, pair.sent)));
        }
        let mut receive = measure(|| sends.iter_mut().for_each(|(id, bytes)| self.lend(*id, bytes))).count_total;
        let store = measure(|| self.turn_store()).count_total;
        let send = measure(|| self.turn_groups()).count_total;
        receive += measure(|| acks.iter_mut().for_each(|(id, bytes)| self.lend(*id, bytes))).count_total;
        // What the reactor does between the events of a turn: timers, and cursors on their way to the store.
        receive += measure(|| self.shard.handle_time(self.now, &mut self.lanes)).count_total;
        self.lanes.project();
        [receive, store, send]
    }

    fn lend(&mut self, id: ConnectionId, bytes: &mut [u8]) {
        let flow = self.shard.handle_bytes(self.now, id, bytes, &mut self.stashes, &mut self.lanes);
        assert_eq!(flow, Flow::Continue);
    }

    fn turn_store(&mut self) {
        while self.sequencer.turn(&mut self.lanes).expect("the disk keeps up").is_busy || !self.lanes.answers.is_empty() {}
        // As the thread does after each turn.
        self.sequencer.counters();
        let latencies = self.sequencer.latencies();
        latencies.committed.clear();
        latencies.synced.clear();
    }

    fn turn_groups(&mut self) {
        while let Some(group) = self.lanes.groups.pop_front() {
            self.shard.handle_group(self.now, &group, &mut self.lanes);
            // As the reactor does with a group it is done with.
            if self.lanes.spare_groups.len() < limits::SPARE_GROUPS.most {
                self.lanes.spare_groups.extend(group.emptied());
            }
        }
        // As the reactor does after each turn.
        self.shard.latencies.acknowledged.clear();
        self.shard.latencies.upgraded.clear();
        while let Some(id) = self.shard.poll_dirty() {
            while self.shard.gather(id, &mut self.batch) {
                self.shard.handle_taken(id, self.batch.bytes());
            }
        }
        assert_eq!(self.shard.poll_command(), None);
    }
}

/// All lanes between the core and the store.
struct Lanes {
    now: Moment,
    submits: VecDeque<Submit>,
    answers: VecDeque<Answer>,
    groups: VecDeque<Group>,
    groups_count: u64,
    projections: VecDeque<Projection>,
    progress: Arc<Progress>,
    spare_groups: Vec<Group>,
    spare_batches: Vec<schema::Batch>,
}

impl Lanes {
    fn new(now: Moment, progress: Arc<Progress>) -> Self {
        Self {
            now,
            submits: VecDeque::new(),
            answers: VecDeque::new(),
            groups: VecDeque::new(),
            groups_count: 0,
            projections: VecDeque::new(),
            progress,
            spare_groups: Vec::new(),
            spare_batches: Vec::new(),
        }
    }

    /// The projector: what it does with the rows is its own affair.
    fn project(&mut self) {
        while let Some(projection) = self.projections.pop_front() {
            self.progress.written(projection.number, projection.batch.len_bytes() as u64);
            self.spare_batches.extend(projection.batch.emptied());
        }
    }
}

impl Outlet for Lanes {
    fn submit(&mut self, mail: Submit) -> Result<(), Submit> {
        self.submits.push_back(mail);
        Ok(())
    }
    fn peer(&mut self, _: ReactorId, mail: Peer) -> Result<(), Peer> {
        Err(mail)
    }
}

impl Ports for Lanes {
    fn now(&self) -> Moment {
        self.now
    }
    fn next_submit(&mut self) -> Option<Submit> {
        self.submits.pop_front()
    }
    fn next_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }
    fn send_group(&mut self, _: ReactorId, group: Group) -> Result<(), Group> {
        self.groups.push_back(group);
        self.groups_count += 1;
        Ok(())
    }
    fn send_job(&mut self, job: Job) -> bool {
        let answer = match job {
            Job::Load { conv, .. } => Answer::Loaded { conv, result: Ok(None) },
            Job::Position { conv, user, .. } => Answer::Position { conv, user, result: Ok(Positions::default()) },
            other => panic!("nobody asks for this: {other:?}"),
        };
        self.answers.push_back(answer);
        true
    }
    fn send_projection(&mut self, projection: Projection) -> Result<(), Projection> {
        self.projections.push_back(projection);
        Ok(())
    }
    fn give_back(&mut self, _: u64) {}
    fn spare_group(&mut self) -> Option<Group> {
        self.spare_groups.pop()
    }
    fn spare_batch(&mut self) -> Option<schema::Batch> {
        self.spare_batches.pop()
    }
}

impl Cold for Lanes {
    fn load(&mut self, _: &str) -> Result<Option<Loaded>, JobFault> {
        Ok(None)
    }
    fn meta(&mut self, _: &[u8]) -> Result<Vec<Vec<u8>>, JobFault> {
        Ok(Vec::new())
    }
    fn project(&mut self, _: Projection) {}
}

/// A disk that keeps nothing.
struct Nowhere;

impl Disk for Nowhere {
    type File = ();

    fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }
    fn create(&mut self, _: &str, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn prepare(&mut self, _: u64) {}
    fn open(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn len(&mut self, (): &()) -> io::Result<u64> {
        Ok(0)
    }
    fn read_at(&mut self, (): &(), _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
    fn write_at(&mut self, (): &(), _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn sync(&mut self, (): &()) -> io::Result<()> {
        Ok(())
    }
    fn remove(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn read_small(&mut self, _: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }
    fn replace_small(&mut self, _: &str, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn salt(&mut self) -> u32 {
        1
    }
    fn space(&mut self) -> io::Result<Space> {
        Ok(Space { free_bytes: 1 << 40, total_bytes: 1 << 40 })
    }
}

fn rules() -> Rules {
    let unlimited = Rate { per_second: 0, burst: 0 };
    Rules {
        send_rate: unlimited,
        read_rate: unlimited,
        signal_rate: unlimited,
        accept_rate: unlimited,
        ping_ms: 3_000_000,
        resume_ms: 0,
        queued_bytes_max: 1 << 24,
        ..tidegate::gateway::rules(&tidegate::config::settings::Settings::default(), false, 1, 128, [1; 16])
            .expect("random bytes")
    }
}

/// SEND as bytes of a client.
fn send(conv: &str, number: u128) -> Vec<u8> {
    let cmid = Cmid(number.to_be_bytes());
    message(&ClientFrame::Send(Send {
        rid: 1,
        cmid,
        flags: 0,
        kind: 1,
        ttl_s: 0,
        trace: None,
        conv: conv.into(),
        payload: PAYLOAD.as_slice().into(),
    }))
}

/// ACK of everything so far, by position and by cursor.
fn ack(conv: &str, seq: u64) -> Vec<u8> {
    let cursors = Cursors::List(vec![Cursor { conv: conv.into(), seq }]);
    message(&ClientFrame::Ack { pos: seq, cursors })
}

/// One final binary frame, masked.
fn message(frame: &ClientFrame<'_>) -> Vec<u8> {
    let mut payload = Vec::new();
    encode_client(Encoding::Binary, frame, &mut payload);
    let length = u16::try_from(payload.len()).expect("a short frame");
    let mut bytes = vec![0x82];
    if length < 126 {
        bytes.push(0x80 | u8::try_from(length).expect("short"));
    } else {
        bytes.push(0x80 | 126);
        bytes.extend_from_slice(&length.to_be_bytes());
    }
    bytes.extend_from_slice(&MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
const PAYLOAD: [u8; 200] = [b'x'; 200];
const UNIX_MS: u64 = 1_764_000_000_000;
/// Between two rounds: a lone message at a time is five thousand a second.
const ROUND_NS: u64 = 200_000;
/// Messages before the counting begins.
const MESSAGES_WARM: u64 = 20_000;
const MESSAGES_COUNTED: u64 = 30_000;
/// At most one allocation for so many messages: a table that doubles, a chunk of an arena, the list of cursors that leaves a core ten
/// times a second.
const MESSAGES_PER_ALLOCATION_MIN: u64 = 300;
