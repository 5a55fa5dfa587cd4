//! Attach, evict and move of a session against deliveries, in every order in which the mail between threads can arrive.
//!
//! Two real cores and a store reduced to its one duty, to order: who owns the device, and what it is sent. Every run takes one path
//! through all choices (which lane moves next, when the link breaks, when the client comes back); the next run takes the next path,
//! until there is none. A hole or a double on any of them fails.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tidegate::clock::Moment;
use tidegate::config::Secret;
use tidegate::conn::carry::Stashes;
use tidegate::conn::send_queue::Batch;
use tidegate::ids::{Cmid, ConnectionId, Mid, ReactorId, RosterId, SessionRef};
use tidegate::limits;
use tidegate::mail::{Delivery, Event, Group, Peer, Submit, Target};
use tidegate::observe::trace::Sampling;
use tidegate::session::auth::{Verifier, mint};
use tidegate::session::rate::Rate;
use tidegate::shard::{Command, Outlet, Rules, Shard};
use tidegate::store::schema::Hashes;
use tidegate::wire::envelope::{ClientFrame, Cursor, Cursors, Encoding, Hello, ServerFrame, ServerFrames, encode_client};
use tidegate::wire::message::{Body, Text};

/// One delivery before the link breaks or after, and one connection that comes back on the other core: every order.
#[test]
fn a_session_moves_without_hole_or_double() {
    let scenario = Scenario { deliveries: 2, cores: &[0, 1], ..Scenario::default() };
    let seen = explore(&scenario);
    assert_eq!(seen.resumed, seen.runs, "with a good claim every one is resumed");
}

/// The same on one core.
#[test]
fn a_session_stays_without_hole_or_double() {
    let scenario = Scenario { deliveries: 2, cores: &[0, 0], ..Scenario::default() };
    let seen = explore(&scenario);
    assert_eq!(seen.resumed, seen.runs);
}

/// A window of one: what does not fit is marked, here or there, and the notice reaches as far as the hole.
#[test]
fn a_full_window_moves_with_its_marks() {
    for cores in [&[0, 1], &[0, 0]] {
        let scenario = Scenario { deliveries: 3, cores, window: 1, deliver_first: 1, ..Scenario::default() };
        let seen = explore(&scenario);
        assert_eq!(seen.resumed, seen.runs);
        assert!(seen.noticed > 0);
    }
}

/// Two come back, one after the other: the first may be evicted while it is joining, and takes what it was given with it. SYNC finds it.
#[test]
fn an_evicted_newcomer_loses_nothing() {
    for cores in [&[0, 1, 0], &[0, 1, 1], &[0, 0, 1]] {
        let scenario = Scenario { deliveries: 1, deliver_first: 1, cores, is_abrupt: true, ..Scenario::default() };
        let seen = explore(&scenario);
        assert!(seen.resumed > 0 && seen.resumed < seen.runs, "{} of {}", seen.resumed, seen.runs);
    }
}

/// The former core is slow: after five seconds the newcomer starts afresh, and what arrives later is not taken.
#[test]
fn a_slow_owner_is_not_waited_for() {
    let scenario = Scenario { deliveries: 1, cores: &[0, 1], patience: true, ..Scenario::default() };
    let seen = explore(&scenario);
    assert!(seen.resumed > 0 && seen.resumed < seen.runs, "{} of {}", seen.resumed, seen.runs);
}

/// A forged claim is never taken, and the true owner of the device starts afresh without a hole.
#[test]
fn a_forged_claim_starts_afresh() {
    let scenario = Scenario { deliveries: 2, cores: &[0, 1], forged: true, ..Scenario::default() };
    assert_eq!(explore(&scenario).resumed, 0);
}

/// Whoever names more conversations in ACK than anybody has is refused the rest, and so is READ beyond its rate. With the lane to the
/// store full, positions are gathered up to a bound and offered by the clock, not by every ACK; nothing that was taken is lost.
#[test]
fn cursors_and_reads_have_a_rate_and_a_bound() {
    let scenario = Scenario { cores: &[0], ..Scenario::default() };
    let fixed = Fixed::new(&scenario);
    let mut world = World::new(&fixed);
    world.hello(&scenario, &fixed);
    world.settle();
    for rid in 1..=129 {
        world.put(0, &ClientFrame::Read { rid, conv: format!("g:{rid}").into(), seq: 1 });
    }
    assert_eq!((world.submits.len(), &*world.errors), (128, &[(129, 4001)][..]));
    world.submits.clear();
    world.errors.clear();
    for round in 0..8 {
        world.acknowledge(round);
    }
    assert!(world.errors.is_empty());
    world.acknowledge(8);
    assert_eq!(std::mem::take(&mut world.errors), [(0, 4001)], "one ERROR for the frame");
    world.wait(200);
    assert_eq!(world.cursors_submitted(), 2_048);
    world.is_full = true;
    let mut round = 8;
    while !world.errors.contains(&(0, 5002)) {
        round += 1;
        assert!(round < 100, "no bound");
        world.wait(1_000);
        world.acknowledge(round);
        world.acknowledge(round);
        let refused = world.refused;
        (0..5).for_each(|_| world.acknowledge(round));
        assert_eq!(world.refused, refused, "a full lane is not tried by every ACK");
        world.pump();
    }
    world.is_full = false;
    world.wait(200);
    assert_eq!(world.cursors_submitted(), 16_384);
}

/// A core that takes nothing of what others give it: what is on its way to it is bounded, and the sessions beyond start afresh. When it
/// takes its mail again, sessions move again.
#[test]
fn what_is_on_its_way_is_bounded() {
    let scenario = Scenario { cores: &HOPS, is_abrupt: true, ..Scenario::default() };
    let fixed = Fixed::new(&scenario);
    let mut world = World::new(&fixed);
    world.payload_bytes = 60_000;
    let hop = |world: &mut World| {
        world.hello(&scenario, &fixed);
        world.settle_store();
        world.wait(6_000);
        world.pump();
        world.links.last_mut().unwrap().is_read = false;
        (0..4).for_each(|_| world.deliver());
        world.settle_store();
    };
    for _ in 0..HOPS.len() - 2 {
        hop(&mut world);
    }
    for (from, to) in [(0, 1), (1, 0)] {
        let lane = &world.cores[from].peers[to];
        let moved = |mail: &Peer| match mail {
            Peer::Moved(moved) => moved.frames.iter().map(Vec::len).sum(),
            Peer::Gone { .. } => 0,
        };
        let bytes: usize = lane.iter().map(moved).sum();
        assert!(bytes > 15 << 20 && bytes <= 16 << 20, "{bytes} bytes");
        assert!(lane.iter().any(|mail| matches!(mail, Peer::Gone { .. })));
        assert_eq!(
            usize::try_from(world.cores[from].shard.counters.sessions_unmoved_count).unwrap(),
            lane.iter().filter(|it| moved(it) == 0).count()
        );
    }
    world.settle();
    hop(&mut world);
    hop(&mut world);
    let lanes = world.cores.iter().flat_map(|core| core.peers.iter().flatten());
    assert_eq!(lanes.filter(|mail| matches!(mail, Peer::Moved(_))).count(), 2);
}

/// From one core to the other and back.
static HOPS: [usize; 182] = {
    let mut hops = [0; 182];
    let mut at = 1;
    while at < hops.len() {
        hops[at] = at % 2;
        at += 1;
    }
    hops
};

#[derive(Clone, Copy, Debug)]
struct Scenario {
    /// Messages the store delivers, at any time.
    deliveries: u64,
    /// Messages delivered and read before anything else happens; one of them acknowledged.
    deliver_first: u64,
    /// Cores of the connections, one after the other.
    cores: &'static [usize],
    window: u16,
    /// Whether the five seconds for the former owner may pass.
    patience: bool,
    forged: bool,
    /// The client breaks its link in the same moment in which it comes back, and the core never hears of the first one.
    is_abrupt: bool,
}

impl Default for Scenario {
    fn default() -> Self {
        Self { deliveries: 0, deliver_first: 2, cores: &[], window: 8, patience: false, forged: false, is_abrupt: false }
    }
}

#[derive(Debug, Default)]
struct Seen {
    runs: u32,
    /// Runs whose last connection was resumed.
    resumed: u32,
    /// Runs with a notice.
    noticed: u32,
}

/// Takes every path.
fn explore(scenario: &Scenario) -> Seen {
    let fixed = Fixed::new(scenario);
    let mut path = Path::default();
    let mut seen = Seen::default();
    loop {
        let world = World::run(scenario, &fixed, &mut path);
        seen.runs += 1;
        seen.resumed += u32::from(world.is_resumed);
        seen.noticed += u32::from(world.noticed > 0);
        assert!(seen.runs < 500_000, "too many paths to take them all");
        if !path.next() {
            println!("{scenario:?}: {seen:?}");
            return seen;
        }
    }
}

/// The choices of one run, and those still open.
#[derive(Debug, Default)]
struct Path {
    taken: Vec<(usize, usize)>,
    at: usize,
}

impl Path {
    fn choose(&mut self, count: usize) -> usize {
        if self.at == self.taken.len() {
            self.taken.push((0, count));
        }
        let (choice, known) = self.taken[self.at];
        assert_eq!(known, count, "a run is decided by its choices alone");
        self.at += 1;
        choice
    }

    /// Goes to the next path; `false` after the last.
    fn next(&mut self) -> bool {
        self.at = 0;
        while let Some((choice, count)) = self.taken.pop() {
            if choice + 1 < count {
                self.taken.push((choice + 1, count));
                return true;
            }
        }
        false
    }
}

struct Fixed {
    rules: Arc<Rules>,
    verifier: Arc<Verifier>,
    token: String,
}

impl Fixed {
    fn new(scenario: &Scenario) -> Self {
        let secret = Secret::new(vec![b's'; 32]).unwrap();
        let rate = Rate { per_second: 20, burst: 128 };
        let rules = Rules {
            node: "n".into(),
            path: "/ws".into(),
            origins: Vec::new(),
            own_origins: std::sync::OnceLock::new(),
            balancers: tidegate::shard::Balancers::default(),
            quotas: tidegate::shard::Quotas::default(),
            deflate: false,
            echo: false,
            level: 2,
            connections_max: 8,
            max_frame: 128 * 1024,
            max_payload: 64 * 1024,
            max_signal: 1024,
            signal_rate: rate,
            window_default: scenario.window,
            window_max: 4096,
            window_bytes_max: 256 * 1024,
            send_window: 64,
            send_rate: rate,
            read_rate: rate,
            ping_ms: 30_000,
            hello_ms: 5_000,
            upgrade_ms: 5_000,
            message_ms: 60_000,
            ack_timeout_ms: 60_000,
            expiring_ms: 60_000,
            dedup_s: 86_400,
            resume_ms: 120_000,
            queue_soft_bytes: 64 * 1024,
            queue_hard_bytes: 256 * 1024,
            queued_bytes_max: 1 << 20,
            stall_ms: 10_000,
            drain_grace_ms: 1_000,
            accept_rate: Rate { per_second: 0, burst: 0 },
            pace: Arc::default(),
            handshakes_max: 8,
            tls_waiting_max: 64,
            sampling: Sampling { every: 0 },
            spare_backlogs_max: limits::SPARE_BACKLOGS.part(2),
            cursors_gathered_max: limits::CURSORS_GATHERED.part(2),
            peers_kept_max: limits::PEERS_KEPT.part(2),
            moved_bytes_max: limits::MOVED_BYTES.part(2) as u64,
            hashes: Hashes::new([3; 16]),
        };
        let token = mint(&secret, "bo", None, 0..NOW_MS / 1000 + 86_400).unwrap();
        Self { rules: Arc::new(rules), verifier: Arc::new(Verifier::new(&secret, 5)), token }
    }
}

/// Where the mail of one core goes.
struct Lanes<'w> {
    submits: &'w mut VecDeque<Submit>,
    peers: &'w mut [VecDeque<Peer>; 2],
    is_full: bool,
    refused: &'w mut u32,
}

impl Outlet for Lanes<'_> {
    fn submit(&mut self, mail: Submit) -> Result<(), Submit> {
        if self.is_full {
            *self.refused += 1;
            return Err(mail);
        }
        self.submits.push_back(mail);
        Ok(())
    }

    fn peer(&mut self, to: ReactorId, mail: Peer) -> Result<(), Peer> {
        self.peers[usize::from(to.0)].push_back(mail);
        Ok(())
    }
}

struct Core {
    shard: Shard,
    stashes: Stashes,
    groups: VecDeque<Group>,
    /// To each core.
    peers: [VecDeque<Peer>; 2],
}

/// A connection as the client sees it.
struct Link {
    core: usize,
    id: ConnectionId,
    /// The client reads it.
    is_read: bool,
    /// The core still has it.
    is_open: bool,
    bytes: Vec<u8>,
    has_upgraded: bool,
}

struct World {
    now: Moment,
    cores: [Core; 2],
    links: Vec<Link>,
    /// The one lane to the store.
    submits: VecDeque<Submit>,
    /// It takes nothing, and how often it was tried.
    is_full: bool,
    refused: u32,
    // The store.
    owner: Option<SessionRef>,
    seq: u64,
    attached: BTreeMap<(u16, u32, u32), u64>,
    // The client.
    got: BTreeSet<u64>,
    last_pos: u64,
    session: [u8; 16],
    is_resumed: bool,
    noticed: u64,
    welcomed: usize,
    payload_bytes: usize,
    /// ERRORs: `rid` and code.
    errors: Vec<(u32, u16)>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Deliver,
    Cut,
    Closed(usize),
    Hello,
    Wait,
    Store,
    Group(usize),
    Peer(usize, usize),
}

impl World {
    fn new(fixed: &Fixed) -> Self {
        let now = Moment { mono_ns: 1_000_000_000, unix_ms: NOW_MS };
        let core = |id| Core {
            shard: Shard::new(ReactorId(id), fixed.rules.clone(), fixed.verifier.clone(), now),
            stashes: Stashes::new(1 << 20),
            groups: VecDeque::new(),
            peers: Default::default(),
        };
        World {
            now,
            cores: [core(0), core(1)],
            links: Vec::new(),
            submits: VecDeque::new(),
            is_full: false,
            refused: 0,
            owner: None,
            seq: 0,
            attached: BTreeMap::new(),
            got: BTreeSet::new(),
            last_pos: 0,
            session: [0; 16],
            is_resumed: false,
            noticed: 0,
            welcomed: 0,
            payload_bytes: 2,
            errors: Vec::new(),
        }
    }

    fn run(scenario: &Scenario, fixed: &Fixed, path: &mut Path) -> Self {
        let mut world = Self::new(fixed);
        world.hello(scenario, fixed);
        world.settle();
        for _ in 0..scenario.deliver_first {
            world.deliver();
        }
        world.settle();
        if scenario.deliver_first > 1 {
            world.put(0, &ClientFrame::Ping { pos: 1 });
        }
        world.is_resumed = false;
        let (mut deliveries, mut waits) = (scenario.deliveries, scenario.patience);
        loop {
            let steps = world.steps(scenario, deliveries, waits);
            if steps.is_empty() {
                break;
            }
            match steps[path.choose(steps.len())] {
                Step::Deliver => {
                    deliveries -= 1;
                    world.deliver();
                }
                Step::Cut => world.links.last_mut().unwrap().is_read = false,
                Step::Closed(link) => world.closed(link),
                Step::Hello => world.hello(scenario, fixed),
                Step::Wait => {
                    waits = false;
                    world.wait(6_000);
                }
                Step::Store => world.store(),
                Step::Group(core) => world.group(core),
                Step::Peer(from, to) => world.peer(from, to),
            }
            world.pump();
        }
        world.judge();
        world
    }

    fn steps(&self, scenario: &Scenario, deliveries: u64, waits: bool) -> Vec<Step> {
        let mut steps = Vec::new();
        let last = self.links.last().unwrap();
        let more = self.links.len() < scenario.cores.len();
        if deliveries > 0 {
            steps.push(Step::Deliver);
        }
        if more && last.is_read && !scenario.is_abrupt {
            steps.push(Step::Cut);
        }
        if more && (!last.is_read || scenario.is_abrupt) {
            steps.push(Step::Hello);
        }
        let lost = self.links.iter().skip(usize::from(scenario.is_abrupt)).position(|link| !link.is_read && link.is_open);
        steps.extend(lost.map(|at| Step::Closed(at + usize::from(scenario.is_abrupt))));
        if waits && self.links.len() > 1 {
            steps.push(Step::Wait);
        }
        if !self.submits.is_empty() {
            steps.push(Step::Store);
        }
        for (index, core) in self.cores.iter().enumerate() {
            if !core.groups.is_empty() {
                steps.push(Step::Group(index));
            }
            let ready = core.peers.iter().enumerate().filter(|(_, lane)| !lane.is_empty());
            steps.extend(ready.map(|(to, _)| Step::Peer(index, to)));
        }
        steps
    }

    /// Everybody has everything, nothing came twice, and when the client says goodbye nobody holds anything.
    fn judge(&mut self) {
        let link = self.links.len() - 1;
        assert_eq!(self.welcomed, link, "the last one was welcomed");
        assert_eq!(self.errors, []);
        // What waits for room in the window comes when it opens.
        for _ in 0..4 {
            let pos = self.last_pos;
            self.put(link, &ClientFrame::Ping { pos });
        }
        let missing: Vec<u64> = (1..=self.seq).filter(|seq| !self.got.contains(seq) && *seq > self.noticed).collect();
        assert!(missing.is_empty(), "never came: {missing:?}, got {:?} and a notice of {}", self.got, self.noticed);
        self.put_bytes(link, 0x88, &1000u16.to_be_bytes());
        self.settle();
        for link in 0..self.links.len() {
            self.closed(link);
        }
        self.wait(1_000);
        self.settle();
        for core in &self.cores {
            assert_eq!((core.shard.sessions_count(), core.shard.connections_count(), core.shard.held_bytes()), (0, 0, 0));
        }
    }

    /// Moves all mail until there is none.
    fn settle(&mut self) {
        loop {
            self.pump();
            let core = |wanted: fn(&Core) -> bool| self.cores.iter().position(wanted);
            if !self.submits.is_empty() {
                self.store();
            } else if let Some(core) = core(|core| !core.groups.is_empty()) {
                self.group(core);
            } else if let Some(core) = core(|core| core.peers.iter().any(|lane| !lane.is_empty())) {
                let to = self.cores[core].peers.iter().position(|lane| !lane.is_empty()).unwrap();
                self.peer(core, to);
            } else {
                return;
            }
        }
    }

    /// Moves the mail of the store, and none between cores.
    fn settle_store(&mut self) {
        loop {
            self.pump();
            if !self.submits.is_empty() {
                self.store();
            } else if let Some(core) = self.cores.iter().position(|core| !core.groups.is_empty()) {
                self.group(core);
            } else {
                return;
            }
        }
    }

    fn wait(&mut self, ms: u64) {
        self.now.mono_ns += ms * 1_000_000;
        self.now.unix_ms += ms;
        for core in &mut self.cores {
            let mut lanes =
                Lanes { submits: &mut self.submits, peers: &mut core.peers, is_full: self.is_full, refused: &mut self.refused };
            core.shard.handle_time(self.now, &mut lanes);
        }
    }

    fn deliver(&mut self) {
        self.seq += 1;
        let Some(owner) = self.owner else { return };
        let message = Delivery {
            seq: self.seq,
            mid: Mid(self.seq),
            flags: 0,
            kind: 1,
            exp_s: 0,
            cmid: Cmid([1; 16]),
            trace: None,
            conv: Text::from("d:al:bo"),
            from: Text::from("al"),
            payload: Body::copy_from(&vec![b'h'; self.payload_bytes]),
        };
        let target = Target { index: owner.index, generation: owner.generation, own: false };
        let events = vec![Event::Deliver { message, first: 0, count: 1 }];
        self.cores[usize::from(owner.reactor.0)].groups.push_back(Group { events, targets: vec![target], ..Group::default() });
    }

    /// The store takes one submission.
    fn store(&mut self) {
        let roster = RosterId(0);
        match self.submits.pop_front().unwrap() {
            Submit::Attach(attach) => {
                let session = attach.session;
                let evicted = self.owner.replace(session);
                self.attached.insert(key(session), self.seq);
                if let Some(old) = evicted {
                    self.tell(old.reactor, Event::Evict { session: old, by: session, claim: attach.claim });
                }
                self.tell(session.reactor, Event::Attached { session, roster, evicted });
            }
            Submit::Leave { session, .. } => {
                if self.owner == Some(session) {
                    self.owner = None;
                    self.tell(session.reactor, Event::Left { session });
                }
            }
            Submit::Cursors(_) | Submit::Away { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    fn tell(&mut self, to: ReactorId, event: Event) {
        self.cores[usize::from(to.0)].groups.push_back(Group { events: vec![event], ..Group::default() });
    }

    fn group(&mut self, index: usize) {
        let core = &mut self.cores[index];
        let group = core.groups.pop_front().unwrap();
        let mut lanes =
            Lanes { submits: &mut self.submits, peers: &mut core.peers, is_full: self.is_full, refused: &mut self.refused };
        core.shard.handle_group(self.now, &group, &mut lanes);
    }

    fn peer(&mut self, from: usize, to: usize) {
        let mail = self.cores[from].peers[to].pop_front().unwrap();
        self.cores[to].shard.handle_peer(self.now, mail);
    }

    /// The core hears that the link is gone.
    fn closed(&mut self, link: usize) {
        let Link { core, id, ref mut is_open, .. } = self.links[link];
        if std::mem::take(is_open) {
            let core = &mut self.cores[core];
            core.shard.handle_failed(id);
            core.shard.handle_closed(id, &mut core.stashes);
            let mut lanes =
                Lanes { submits: &mut self.submits, peers: &mut core.peers, is_full: self.is_full, refused: &mut self.refused };
            core.shard.flush_mail(self.now, &mut lanes);
        }
    }

    fn hello(&mut self, scenario: &Scenario, fixed: &Fixed) {
        if let Some(last) = self.links.last_mut() {
            last.is_read = false;
        }
        let core = scenario.cores[self.links.len()];
        let id = self.cores[core].shard.handle_accept(self.now, None).unwrap();
        self.links.push(Link { core, id, is_read: true, is_open: true, bytes: Vec::new(), has_upgraded: false });
        let link = self.links.len() - 1;
        self.feed(link, REQUEST.as_bytes().to_vec());
        let mut session = self.session;
        if scenario.forged && session != [0; 16] {
            session[8] ^= 128;
        }
        self.put(
            link,
            &ClientFrame::Hello(Hello {
                minor: 0,
                platform: 0,
                window: 0,
                caps: 0,
                last_pos: self.last_pos,
                session,
                device: "1".into(),
                client: "t".into(),
                token: fixed.token.as_str().into(),
            }),
        );
    }

    /// An ACK with 256 cursors, others in each round.
    fn acknowledge(&mut self, round: u32) {
        let cursors = (0..256).map(|index| Cursor { conv: format!("g:{}", round * 256 + index).into(), seq: 1 }).collect();
        self.put(0, &ClientFrame::Ack { pos: 0, cursors: Cursors::List(cursors) });
    }

    /// Cursors given to the store meanwhile, in submissions of at most 1 024.
    fn cursors_submitted(&mut self) -> usize {
        let count = |mail| match mail {
            Submit::Cursors(cursors) => cursors.len(),
            other => panic!("{other:?}"),
        };
        self.submits.drain(..).map(count).inspect(|count| assert!(*count <= 1_024)).sum()
    }

    fn put(&mut self, link: usize, frame: &ClientFrame<'_>) {
        let mut body = Vec::new();
        encode_client(Encoding::Binary, frame, &mut body);
        self.put_bytes(link, 0x82, &body);
    }

    /// One frame with a mask of zeros.
    fn put_bytes(&mut self, link: usize, first: u8, body: &[u8]) {
        let mut bytes = vec![first];
        match u8::try_from(body.len()) {
            Ok(short @ 0..=125) => bytes.push(0x80 | short),
            _ => {
                bytes.push(0x80 | 126);
                bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
            }
        }
        bytes.extend([0; 4]);
        bytes.extend(body);
        self.feed(link, bytes);
    }

    fn feed(&mut self, link: usize, mut bytes: Vec<u8>) {
        let Link { core, id, .. } = self.links[link];
        let core = &mut self.cores[core];
        let mut lanes =
            Lanes { submits: &mut self.submits, peers: &mut core.peers, is_full: self.is_full, refused: &mut self.refused };
        core.shard.handle_bytes(self.now, id, &mut bytes, &mut core.stashes, &mut lanes);
        core.shard.flush_mail(self.now, &mut lanes);
        self.pump();
    }

    /// What the cores have written goes to the client, as far as it reads.
    fn pump(&mut self) {
        let mut batch = Batch::default();
        for index in 0..2 {
            let core = &mut self.cores[index];
            while let Some(id) = core.shard.poll_dirty() {
                while core.shard.gather(id, &mut batch) {
                    let bytes = batch.bytes();
                    let link = self.links.iter_mut().find(|link| link.core == index && link.id == id).unwrap();
                    for segment in 0..batch.segments.len() {
                        if link.is_read {
                            link.bytes.extend_from_slice(core.shard.piece(&batch, segment).bytes());
                        }
                    }
                    core.shard.handle_taken(id, bytes);
                }
            }
            while let Some(command) = core.shard.poll_command() {
                if let Command::Close(id, _) = command {
                    core.shard.handle_closed(id, &mut core.stashes);
                    let link = self.links.iter_mut().find(|link| link.core == index && link.id == id).unwrap();
                    link.is_open = false;
                }
            }
            let mut lanes =
                Lanes { submits: &mut self.submits, peers: &mut core.peers, is_full: self.is_full, refused: &mut self.refused };
            core.shard.flush_mail(self.now, &mut lanes);
        }
        for link in 0..self.links.len() {
            while let Some((opcode, body)) = self.links[link].take_frame() {
                if opcode == 0x82 {
                    self.read(link, &body);
                }
            }
        }
    }

    fn read(&mut self, link: usize, body: &[u8]) {
        for frame in ServerFrames::new(Encoding::Binary, body) {
            match frame.unwrap() {
                ServerFrame::Welcome(welcome) => {
                    self.is_resumed = welcome.resumed == 1;
                    self.session = welcome.session;
                    self.welcomed = link;
                    if welcome.resumed == 0 {
                        self.last_pos = 0;
                        // SYNC reads at least up to the attach.
                        let index = u32::from_le_bytes(welcome.session[2..6].try_into().unwrap());
                        let generation = u32::from(u16::from_le_bytes([welcome.session[6], welcome.session[7]]));
                        let reactor = u16::from_le_bytes([welcome.session[0], welcome.session[1]]);
                        let head = self.attached[&(reactor, index, generation)];
                        self.got.extend(1..=head);
                    }
                }
                ServerFrame::Deliver(deliver) => {
                    assert_eq!(deliver.pos, self.last_pos + 1, "positions are dense");
                    self.last_pos = deliver.pos;
                    assert!(self.got.insert(deliver.seq), "{} came twice", deliver.seq);
                }
                ServerFrame::Notice { head, .. } => self.noticed = self.noticed.max(head),
                ServerFrame::Pong { .. } => {}
                ServerFrame::Error { rid, code, .. } => self.errors.push((rid, code)),
                other => panic!("{other:?}"),
            }
        }
    }
}

impl Link {
    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        if !self.has_upgraded {
            let end = self.bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
            self.bytes.drain(..end + 4);
            self.has_upgraded = true;
        }
        let [opcode, short, ..] = self.bytes[..] else { return None };
        let (header, len) = match short {
            126 => (4, usize::from(u16::from_be_bytes([self.bytes[2], self.bytes[3]]))),
            short => (2, usize::from(short)),
        };
        let body = self.bytes[header..header + len].to_vec();
        self.bytes.drain(..header + len);
        Some((opcode, body))
    }
}

fn key(session: SessionRef) -> (u16, u32, u32) {
    (session.reactor.0, session.index, session.generation)
}

const NOW_MS: u64 = 1_800_000_000_000;
const REQUEST: &str = "GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: tidegate.v1\r\n\r\n";
