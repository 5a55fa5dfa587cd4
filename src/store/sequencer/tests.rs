//! Tests of [`super`]: a store driven turn by turn, on a disk and among neighbours that the test commands.

mod crash;
mod order;
mod pressure;

use std::ops::{Deref, DerefMut};

use super::*;
use crate::ids::{Cmid, RosterId, SessionRef};
use crate::mail::{PageRequest, SendMail, TokenMark};
use crate::store::disk_memory::MemoryDisk;
use crate::store::job::{JobFault, Loaded};
use crate::store::log::LogSettings;
use crate::store::model::Engine;
use crate::store::neighbours::Neighbours;
use crate::store::retention::Swept;
use crate::store::schema::Hashes;
use crate::wire::envelope::Encoding;
use crate::wire::message::Body;

const STORE: record::Store = record::Store { shard: 0, shards: 1, dedup_s: 86_400, hash_key: [7; 16] };
const SPACE: SpaceRule = SpaceRule { free_bytes_min: 1 << 20, free_percent_min: 0 };

/// The neighbours: readers and projector work when told, lanes hold as much as told.
struct World {
    neighbours: Neighbours,
    engine: Engine,
    progress: Arc<Progress>,
}

impl Deref for World {
    type Target = Neighbours;
    fn deref(&self) -> &Neighbours {
        &self.neighbours
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Neighbours {
        &mut self.neighbours
    }
}

impl Cold for World {
    fn load(&mut self, conv: &str) -> Result<Option<Loaded>, JobFault> {
        Ok(self.engine.load(&hashes(), conv))
    }
    fn meta(&mut self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, JobFault> {
        Ok(self.engine.meta(prefix))
    }
    fn project(&mut self, projection: Projection) {
        self.engine.write(projection.batch);
    }
}

impl World {
    fn new(engine: Engine) -> Self {
        let neighbours = Neighbours::new(Moment { mono_ns: 1, unix_ms: 1_764_000_000_000 });
        Self { neighbours, progress: Arc::new(Progress::new(engine.position().group)), engine }
    }

    /// The projector writes what it was given.
    fn project_all(&mut self) {
        while let Some(projection) = self.projections.pop_front() {
            let bytes = projection.batch.len_bytes() as u64;
            self.engine.write(projection.batch);
            self.progress.written(projection.number, bytes);
        }
    }

    /// A reader answers the first job, on an engine that holds the group it asks for. Pages are only checked.
    fn serve_job(&mut self) {
        let Some(job) = self.jobs.pop_front() else { return };
        self.project_all();
        let hashes = hashes();
        let answer = match job {
            Job::Look { .. } => return,
            Job::Page { after, .. } => {
                assert!(self.progress.projected() >= after, "a page waits for a group that is not there");
                return;
            }
            Job::Sweep { .. } => Answer::Swept(Ok(Swept::default())),
            Job::Load { conv, after } => {
                assert!(self.progress.projected() >= after);
                Answer::Loaded { result: Ok(self.engine.load(&hashes, &conv)), conv }
            }
            Job::Position { conv, user, .. } => {
                Answer::Position { result: Ok(self.engine.positions(&hashes, &conv, &user)), conv, user }
            }
            Job::Share { watch, user, turn, .. } => {
                let shares = |other: &Text| other.as_str() == user.as_str() || other.as_str().starts_with('f');
                Answer::Shared { result: Ok(watch.users.iter().map(shares).collect()), watch, turn }
            }
            Job::Dedup { conv, user, cmid, .. } => {
                Answer::Dedup { result: Ok(self.engine.dedup(&hashes, &user, cmid)), conv, user, cmid }
            }
        };
        self.answers.push_back(answer);
    }

    /// All events of one core so far, each with the targets it names.
    fn events(&mut self, core: u16) -> Vec<(Event, Vec<u32>)> {
        let (mine, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.groups).into_iter().partition(|(reactor, _)| reactor.0 == core);
        self.groups = others;
        let mut events = Vec::new();
        for (_, group) in mine {
            for event in group.events {
                let targets = match &event {
                    Event::Deliver { first, count, .. }
                    | Event::Conv { first, count, .. }
                    | Event::Notice { first, count, .. }
                    | Event::Receipt { first, count, .. }
                    | Event::Presence { first, count, .. }
                    | Event::Signalled { first, count, .. } => {
                        let range = *first as usize..(*first + *count) as usize;
                        group.targets[range].iter().map(|target| target.index).collect()
                    }
                    _ => Vec::new(),
                };
                events.push((event, targets));
            }
        }
        events
    }

    /// The events of core 0 in a form that is easy to compare.
    fn told(&mut self) -> Vec<String> {
        let tell = |(event, targets): (Event, Vec<u32>)| match event {
            Event::Sent { session, rid, flags, seq, .. } => format!("{} sent {rid} seq {seq} flags {flags}", session.index),
            Event::Deliver { message, .. } => format!("{targets:?} deliver {} seq {}", &*message.conv, message.seq),
            Event::Failed { session, rid, code, .. } => format!("{} failed {rid} {}", session.index, code.value()),
            Event::PageRefused { session, rid, code, .. } => format!("{} page {rid} refused {}", session.index, code.value()),
            Event::Ok { session, rid, value } => format!("{} ok {rid} {value}", session.index),
            Event::Renewed { session, rid, expires_s } => format!("{} renewed {rid} until {expires_s}", session.index),
            Event::Conv { event, version, .. } => format!("{targets:?} conv {event} version {version}"),
            Event::Evict { session, by, .. } => format!("{} evicted by {}", session.index, by.index),
            Event::Attached { session, .. } => format!("{} attached", session.index),
            Event::AttachRefused { session, code } => format!("{} not attached {}", session.index, code.value()),
            Event::Left { session } => format!("{} left", session.index),
            Event::Notice { conv, head, .. } => format!("{targets:?} notice {} {head}", &*conv),
            Event::Kick { session, why } => format!("{} kicked {why:?}", session.index),
            Event::Receipt { conv, user, recv, read, .. } => {
                format!("{targets:?} receipt {} {} recv {recv} read {read}", &*conv, &*user)
            }
            Event::Presence { user, state, .. } => format!("{targets:?} presence {} {state}", &*user),
            Event::Signalled { conv, from, kind, .. } => format!("{targets:?} signalled {} {} {kind}", &*conv, &*from),
            Event::Resync => "resync".to_owned(),
        };
        self.events(0).into_iter().map(tell).collect()
    }
}

fn hashes() -> Hashes {
    Hashes::new(STORE.hash_key)
}

fn open(disk: &MemoryDisk, world: &mut World) -> Result<Sequencer<MemoryDisk>, RecoverError> {
    open_with(disk, world, false)
}

/// Later than everything the tests do.
const STARTED_MS: u64 = 1_765_000_000_000;

fn open_with(disk: &MemoryDisk, world: &mut World, accept_loss: bool) -> Result<Sequencer<MemoryDisk>, RecoverError> {
    open_at(disk, world, accept_loss, Levels::all(2))
}

fn open_at(
    disk: &MemoryDisk,
    world: &mut World,
    accept_loss: bool,
    levels: Levels,
) -> Result<Sequencer<MemoryDisk>, RecoverError> {
    let position = world.engine.position();
    let settings = LogSettings { segment_bytes: 1 << 16, accept_loss, projected: position.group };
    let (log, recovered) = Log::open(disk.clone(), settings).expect("the log opens");
    let progress = Arc::clone(&world.progress);
    Sequencer::recover(log, &recovered, (&STORE, &position), settings_of(levels), progress, world)
}

/// Two cores, and nothing followed or limited.
fn settings_of(levels: Levels) -> Settings {
    Settings {
        levels,
        hellos_per_minute: 0,
        sampling: Sampling { every: 0 },
        space: SPACE,
        cores: 2,
        policy: Policy::default(),
        started_ms: STARTED_MS,
    }
}

fn session(index: u32) -> SessionRef {
    SessionRef { reactor: ReactorId(0), index, generation: 1 }
}

/// One device per user, on core 0: session and roster slot have the number of the user.
fn sender(index: u32, rid: u32) -> Sender {
    Sender { session: session(index), roster: RosterId(index), rid }
}

fn attach(index: u32, user: &str) -> Submit {
    Submit::Attach(Attach {
        session: session(index),
        user: user.into(),
        device: "web".into(),
        platform: 1,
        caps: 0,
        claim: None,
        token: TokenMark::default(),
    })
}

fn message(from: Sender, conv: &str, cmid: u8, flags: u8) -> SendMail {
    SendMail {
        from,
        cmid: Cmid([cmid; 16]),
        flags,
        kind: 1,
        ttl_s: 0,
        trace: None,
        conv: conv.into(),
        payload: Body::copy_from(&[cmid]),
        refusal: None,
        received: Moment::default(),
    }
}

fn send(index: u32, rid: u32, conv: &str, cmid: u8, flags: u8) -> Submit {
    Submit::Send(message(sender(index, rid), conv, cmid, flags))
}

fn page(index: u32) -> Submit {
    Submit::Page(PageMail {
        from: sender(index, 77),
        encoding: Encoding::Binary,
        max_frame: 1000,
        request: PageRequest::Sync { since: 0, limit: 100, cursor: Text::default() },
    })
}

/// A new store with users al (0), bo (1) and cy (2) online.
fn started() -> (MemoryDisk, World, Sequencer<MemoryDisk>) {
    let disk = MemoryDisk::default();
    let mut world = World::new(Engine::default());
    let mut sequencer = open(&disk, &mut world).unwrap();
    world.submits.extend([attach(0, "al"), attach(1, "bo"), attach(2, "cy")]);
    sequencer.turn(&mut world).unwrap();
    assert_eq!(world.told(), ["0 attached", "1 attached", "2 attached"]);
    (disk, world, sequencer)
}

/// Turns until nothing is left to do, with willing neighbours.
fn settle(sequencer: &mut Sequencer<MemoryDisk>, world: &mut World) {
    for _ in 0..1000 {
        sequencer.turn(world).unwrap();
        if world.jobs.is_empty() && world.submits.is_empty() && world.answers.is_empty() {
            world.project_all();
            return;
        }
        world.serve_job();
    }
    panic!("the store never rests");
}
