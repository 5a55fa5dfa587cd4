//! The one sequencer: orders messages and route changes, makes them durable, and says who receives what.
//!
//! ```text
//!  answers ──► unpark ─┐                              ┌► results and deliveries, one mail per core
//!  submissions ────────┼─► admit, apply ─► log, sync ─┤
//!            parked ◄──┘   (open group)               └► rows, to the projector
//! ```
//!
//! A turn takes what waits, up to a bound, into the open group. A message or a change of members closes the group in the same turn:
//! it is written and synced, and only then do SENT and DELIVER exist. READ positions and cursors ride on the next group, or close
//! one of their own after a second. While a group is syncing the next one gathers in the lanes. Below level 2 a group is acknowledged
//! before its sync, which then comes within a second, or when somebody asks for what was written (`level.rs`).
//!
//! It never reads the engine and never waits for another thread. Lanes and clock are a trait, the disk is a trait: tests drive it
//! turn by turn.

mod admit;
mod commit;
mod groups;
mod keeping;
mod live;
mod operator;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use self::admit::body_bytes;
use self::operator::Operator;
use super::apply::{Senders, State};
use super::attempts::Attempts;
use super::cursor::{Aside, Cursors};
use super::disk::{Disk, SpaceRule};
use super::hold::Holds;
use super::job::{Answer, Job, JobFault, Progress, Projection};
use super::level::Levels;
use super::log::{Log, LogError, Recovered};
use super::outbox::Outbox;
use super::park::{Lookup, Parking, Work};
use super::record;
use super::recovery::{self, Cold, RecoverError, replay};
use super::retention::{Keep, Sweeper};
use super::schema::{Batch, Conv};
use crate::clock::Moment;
use crate::ids::ReactorId;
use crate::limits::{
    ARENA_CHUNK_BYTES, DEVICES_PER_USER_MAX, GROUP_DELIVERIES_MAX, GROUP_SUBMISSIONS_MAX, JOB_LANE_MAX, LANE_RETRY_EVERY,
    NOTICE_ONLY_ABOVE, OUTBOX_BYTES, PARKED_MAX, PROJECT_BYTES_MAX, PROJECT_PATIENCE, RIDE_MAX, STORE_CHORES_EVERY,
    UNSYNCED_BYTES_MAX,
};
use crate::mail::{Attach, Event, Group, MemberDone, MemberRefusal, PageMail, Sender, Submit};
use crate::mutant::{self, Mutant};
use crate::observe::counters::StoreCounters;
use crate::observe::trace::{Sampling, Steps};
use crate::route::fanout::Fanout;
use crate::route::notices::Notices;
use crate::route::roster::{Attached, Roster};
use crate::wire::envelope::ErrorCode;
use crate::wire::message::{Arena, Text};
use live::{Live, signal_bytes, traits};

/// What surrounds the sequencer. Nothing here waits.
pub trait Ports {
    /// Reads the clocks.
    fn now(&self) -> Moment;
    /// The next submission.
    fn next_submit(&mut self) -> Option<Submit>;
    /// The next answer of a reader.
    fn next_answer(&mut self) -> Option<Answer>;
    /// Mails a group to a core.
    ///
    /// # Errors
    /// The group, when the lane is full.
    fn send_group(&mut self, reactor: ReactorId, group: Group) -> Result<(), Group>;
    /// Gives a reader work. `false`: the lanes are full.
    fn send_job(&mut self, job: Job) -> bool;
    /// Gives the projector a group of rows.
    ///
    /// # Errors
    /// The rows, when the lane is full.
    fn send_projection(&mut self, projection: Projection) -> Result<(), Projection>;
    /// Bodies of so many bytes have left the store: the credit of the `submit` lane gets them back.
    fn give_back(&mut self, bytes: u64);
    /// A group that a core is done with, emptied. `None`: none has come back.
    fn spare_group(&mut self) -> Option<Group> {
        None
    }
    /// A batch that the projector is done with, emptied. `None`: none has come back.
    fn spare_batch(&mut self) -> Option<Batch> {
        None
    }
}

/// How messages are kept.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What SENT promises.
    pub levels: Levels,
    /// HELLOs of one device per minute; 0: no limit.
    pub hellos_per_minute: u32,
    /// Which messages are followed through the log.
    pub sampling: Sampling,
    /// When SEND is refused for want of space.
    pub space: SpaceRule,
    /// How many reactors there are.
    pub cores: usize,
    /// Who may do and see what.
    pub policy: Policy,
    /// Wall clock at the start, which stamps a new epoch.
    pub started_ms: u64,
}

/// Who may do and see what; the defaults are those of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Members of a group above which receipts stay among the user's own devices.
    pub receipt_members_max: usize,
    /// Everybody may watch everybody; otherwise only those who share a conversation.
    pub presence_for_all: bool,
    /// The least role that may send.
    pub senders: Senders,
    /// Members above which a conversation is told by NOTICE.
    pub notice_only_above: usize,
    /// Devices of one user, at most [`crate::limits::DEVICES_PER_USER_MAX`].
    pub devices_max: usize,
    /// Classes of platform of which a user may have one device, a bit each.
    pub one_per_class: u8,
    /// How long messages are kept.
    pub keep: Keep,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            receipt_members_max: 100,
            presence_for_all: false,
            senders: Senders::default(),
            notice_only_above: NOTICE_ONLY_ABOVE,
            devices_max: DEVICES_PER_USER_MAX,
            one_per_class: 0,
            keep: Keep::default(),
        }
    }
}

/// What the caller does after a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    /// The budget ended the turn, not want of work: turn again at once.
    pub is_busy: bool,
    /// Otherwise sleep until mail comes, but no longer than this.
    pub wake_in: Duration,
    /// A group was written.
    pub has_committed: bool,
}

/// See the head of this file.
pub struct Sequencer<D: Disk> {
    settings: Settings,
    log: Log<D>,
    state: State,
    roster: Roster,
    fanout: Fanout,
    parking: Parking,
    holds: Holds,
    /// SENDs that have reached this store.
    arrivals_count: u64,
    cursors: Cursors,
    /// Cursors of conversations that are not in memory.
    aside: Aside,
    /// Conversations that readers load, whoever asked: one job for each.
    loading: HashSet<Conv>,
    attempts: Attempts,
    live: Live,
    notices: Notices,
    sweeper: Sweeper,
    open: Open,
    operator: Operator,
    outboxes: Vec<Outbox>,
    /// Groups that are not written yet, below level 1: their number of entries and bodies.
    unwritten: VecDeque<(u32, Vec<u8>)>,
    /// Groups that are not synced yet, or that the projector's lane had no room for.
    unprojected: VecDeque<Projection>,
    /// Bytes of rows that wait for a sync.
    unsynced_bytes: usize,
    /// Somebody waits for rows of a group that is not synced.
    must_sync: bool,
    progress: Arc<Progress>,
    /// User names of the submissions of this group.
    names: Arena,
    /// Bytes of bodies that have left since the last turn ended.
    credit_bytes: u64,
    /// The projector is more than half behind: submissions wait in their lane.
    is_paced: bool,
    /// The projector is behind by all it may be, or stuck: SEND is refused until it is below half.
    is_overloaded: bool,
    /// The last group seen written, and when that, or less than half behind, was seen.
    projected: (u64, u64),
    /// Too little space: SEND is refused.
    is_read_only: bool,
    chores_due: u64,
    counters: StoreCounters,
    latencies: Latencies,
    steps: Steps,
    /// Breaks the promise on purpose, so that tests can prove that they would see it.
    acknowledge_before_sync: bool,
    /// With the fault above: how long the write comes late, so that a kill finds the gap.
    #[cfg(debug_assertions)]
    write_delay: Option<Duration>,
}

/// The group being gathered.
#[derive(Debug, Default)]
struct Open {
    number: u64,
    body: Vec<u8>,
    entries_count: u32,
    batch: Batch,
    /// Holds something that somebody waits for.
    must_close: bool,
    /// The highest level that a message in it asks for.
    level: u8,
    /// Holds a READ: a page asked for now must wait for this group.
    has_read: bool,
    /// When the first entry or cursor came that nobody waits for.
    since: Option<Moment>,
    /// When the messages of the group were read by their reactors.
    received: Vec<Moment>,
    /// Answers to changes of members, due after the sync.
    replies: Vec<(SyncSender<MemberResult>, MemberResult)>,
}

/// Latencies since the thread last took them.
#[derive(Debug, Default)]
pub struct Latencies {
    /// From reading a SEND to the commit of its group.
    pub committed: Vec<Duration>,
    /// Of writing and syncing a group.
    pub synced: Vec<Duration>,
}

type MemberResult = Result<MemberDone, MemberRefusal>;

impl<D: Disk> Sequencer<D> {
    /// Brings memory and engine up to the end of the log, and is then ready for the first turn.
    ///
    /// `store` and `position` are what the engine's `meta` says; `cold` reads the engine and takes the rows it lacks.
    ///
    /// # Errors
    /// [`RecoverError`]: what the operator must know.
    pub fn recover(
        mut log: Log<D>,
        recovered: &Recovered,
        (store, position): (&record::Store, &record::Position),
        settings: Settings,
        progress: Arc<Progress>,
        cold: &mut impl Cold,
    ) -> Result<Self, RecoverError> {
        if recovered.first > position.group + 1 {
            return Err(RecoverError::Gap { engine: position.group, first: recovered.first });
        }
        let mut state = State::new(store, position);
        state.set_senders(settings.policy.senders);
        recovery::bar(&mut state, cold)?;
        let after = position.group + u64::from(mutant::on(Mutant::ReplayOffByOne));
        let mut batch = Batch::default();
        log.replay(after, |group, _, body| replay(&mut state, group, body, &mut batch, cold))?;
        if !batch.is_empty() {
            cold.project(Projection { number: log.last(), batch });
        }
        let number = log.last() + 1;
        let mut sequencer = Self {
            settings,
            log,
            state,
            roster: Roster::default(),
            fanout: Fanout::new(settings.cores),
            parking: Parking::new(PARKED_MAX),
            holds: Holds::default(),
            arrivals_count: 0,
            cursors: Cursors::default(),
            aside: Aside::default(),
            loading: HashSet::new(),
            attempts: Attempts::new(settings.hellos_per_minute),
            live: Live::default(),
            notices: Notices::default(),
            sweeper: Sweeper::default(),
            open: Open { number, ..Open::default() },
            operator: Operator::default(),
            outboxes: (0..settings.cores).map(|_| Outbox::new(OUTBOX_BYTES.part(settings.cores))).collect(),
            unwritten: VecDeque::new(),
            unprojected: VecDeque::new(),
            unsynced_bytes: 0,
            must_sync: false,
            progress,
            names: Arena::new(ARENA_CHUNK_BYTES),
            credit_bytes: 0,
            is_paced: false,
            is_overloaded: false,
            projected: (0, 0),
            is_read_only: false,
            chores_due: 0,
            counters: StoreCounters::default(),
            latencies: Latencies::default(),
            steps: Steps::default(),
            acknowledge_before_sync: false,
            #[cfg(debug_assertions)]
            write_delay: None,
        };
        if recovered.lost.is_some() || recovered.unsafe_end {
            sequencer.begin_epoch(cold).map_err(RecoverError::Log)?;
        }
        sequencer.log.promise_less(settings.levels.least() < SYNCED)?;
        Ok(sequencer)
    }

    /// One turn: takes answers and submissions, closes the group if somebody waits for it, and hands out what it means.
    ///
    /// # Errors
    /// [`LogError`], which is final: nothing of the open group was acknowledged, and nothing more can be.
    pub fn turn(&mut self, ports: &mut impl Ports) -> Result<Turn, LogError> {
        let now = ports.now();
        self.flush(ports);
        self.watch_backlog(now);
        if now.mono_ns >= self.chores_due {
            self.chores()?;
            self.chores_due = now.mono_ns + nanos(STORE_CHORES_EVERY);
        }
        let mut taken = 0;
        while taken < JOB_LANE_MAX
            && self.has_room()
            && let Some(answer) = ports.next_answer()
        {
            self.answer(answer, now, ports);
            taken += 1;
        }
        let mut submitted = 0;
        while submitted < GROUP_SUBMISSIONS_MAX
            && !self.is_paced
            && self.has_room()
            && let Some(submit) = ports.next_submit()
        {
            self.submit(submit, now, ports);
            submitted += 1;
        }
        let mut is_busy = taken == JOB_LANE_MAX || submitted == GROUP_SUBMISSIONS_MAX || !self.has_room();
        self.load_for_cursors(ports);
        self.sweep(now, ports);
        is_busy |= self.tell_live(is_busy, now, ports);
        let is_due = self.open.since.is_some_and(|since| now.since(since) >= RIDE_MAX);
        let committed = if self.open.must_close || is_due || self.cursors.is_full() { self.close(now, ports)? } else { None };
        if self.must_sync || self.unsynced_bytes > UNSYNCED_BYTES_MAX {
            self.sync()?;
        }
        is_busy |= self.step_notices(now);
        let has_committed = committed.is_some();
        self.hand_out(committed, ports);
        let credit_bytes = std::mem::take(&mut self.credit_bytes);
        if !mutant::on(Mutant::CreditKept) {
            ports.give_back(credit_bytes);
        }
        Ok(Turn { is_busy, wake_in: self.wake_in(now), has_committed })
    }

    /// Writes what still rides, before a clean stop. The lanes should be empty by then.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn finish(&mut self, ports: &mut impl Ports) -> Result<(), LogError> {
        let now = ports.now();
        let committed = self.close(now, ports)?;
        self.sync()?;
        self.hand_out(committed, ports);
        // A clean end: nothing that was promised is missing.
        self.log.promise_less(false).map_err(|source| LogError { operation: "ending", source })?;
        if self.log.save_watermark().is_err() {
            // The next start checks a little more of the tail against nothing: harmless.
            self.chores_due = 0;
        }
        Ok(())
    }

    /// Breaks the promise of this store from now on: everything is acknowledged before it is written, and written late. For tests that
    /// must see a checker fail; a release build has no such method.
    #[cfg(debug_assertions)]
    pub fn plant_early_acknowledgement(&mut self, write_delay: Duration) {
        self.acknowledge_before_sync = true;
        self.write_delay = Some(write_delay);
    }

    /// Parks no more than `max` submissions, instead of [`PARKED_MAX`]: for tests that must meet the bound.
    pub fn limit_parking(&mut self, max: usize) {
        self.parking.set_max(max);
    }

    /// Whether everything has been handed over.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.unprojected.is_empty()
            && self.outboxes.iter().all(Outbox::is_empty)
            && self.parking.count() + self.aside.count() == 0
    }

    /// Whether messages are refused for want of space, and the free bytes of the disk when it was last looked at.
    #[must_use]
    pub fn space(&self) -> (bool, u64) {
        (self.is_read_only, self.counters.free_bytes)
    }

    /// What is counted, with the gauges of this moment.
    pub fn counters(&mut self) -> &mut StoreCounters {
        self.counters.log_bytes = self.log.bytes();
        self.counters.project_backlog_bytes = self.progress.backlog_bytes();
        self.counters.parked_open = self.parking.count() as u64;
        self.counters.cursors_aside_open = self.aside.count() as u64;
        self.counters.roster_devices_open = self.roster.devices_count() as u64;
        self.counters.conversations_loaded_open = self.state.loaded_count() as u64;
        self.counters.recent_cmids_open = self.state.recent_count() as u64;
        (self.counters.engine_cache_bytes, self.counters.engine_tables_bytes) = self.progress.engine_bytes();
        self.counters.read_only = u64::from(self.is_read_only);
        &mut self.counters
    }

    /// What was measured; the caller takes it out.
    pub fn latencies(&mut self) -> &mut Latencies {
        &mut self.latencies
    }

    /// Commits of followed messages; the caller takes them out after a turn that went well.
    pub fn steps(&mut self) -> &mut Steps {
        &mut self.steps
    }

    fn has_room(&self) -> bool {
        self.fanout.deliveries_count() < GROUP_DELIVERIES_MAX
    }

    fn submit(&mut self, submit: Submit, now: Moment, ports: &mut impl Ports) {
        self.counters.submissions_count[submission_index(&submit)] += 1;
        match submit {
            Submit::Attach(attach) => self.attach(&attach, now),
            Submit::Leave { session, roster } => {
                self.leave(session, roster, now);
            }
            Submit::Shed(mail) => self.operator.note_shed(&self.roster, &mail),
            Submit::Away { session, roster } => {
                if self.roster.session(roster) == Some(session) {
                    self.set_away(roster, now);
                }
            }
            Submit::User(mail) => self.change_user(mail, now),
            Submit::Renew(mail) => self.renew(&mail),
            Submit::Watch(mail) => self.watch(mail, now, ports),
            Submit::PresenceLost { session, roster } => self.presence_lost(session, roster),
            Submit::Signal(mail) => match self.user(mail.from) {
                Some(user) => self.offer(Work::Signal { mail, user }, now, ports),
                None => self.credit_bytes += signal_bytes(&mail),
            },
            Submit::Send(mail) => match self.user(mail.from) {
                Some(user) => self.offer_send(mail, user, now, ports),
                None => self.credit_bytes += body_bytes(&mail),
            },
            Submit::Read { from, conv, seq } => {
                if let Some(user) = self.user(from) {
                    self.offer(Work::Read { from, conv, user, seq }, now, ports);
                }
            }
            Submit::Cursors(list) => {
                for mail in list {
                    self.offer_cursor(&mail, now, ports);
                }
            }
            Submit::Page(mail) => self.page(mail, ports),
            Submit::Member(mail) => self.offer(Work::Member(mail), now, ports),
            Submit::Post(mail) => self.post(mail, now, ports),
            Submit::Look(mail) => self.look(mail, ports),
        }
    }

    fn attach(&mut self, attach: &Attach, now: Moment) {
        self.counters.attaches_count += 1;
        let Attach { session, user, device, platform, caps, claim, .. } = attach;
        let hash = self.state.hashes().user(user).0;
        if !self.attempts.take((hash, self.state.hashes().device(device).0), now.mono_ns / 1_000_000) {
            let event = Event::AttachRefused { session: *session, code: ErrorCode::RateLimited };
            return self.fanout.push(session.reactor, event);
        }
        if let Some(code) = self.unwelcome_device(hash, attach) {
            return self.fanout.push(session.reactor, Event::AttachRefused { session: *session, code });
        }
        self.forget_device(hash, user, device);
        match self.roster.attach(hash, user, device, traits(*platform, *caps), *session) {
            Attached::Placed { roster, evicted } => {
                self.arrived(hash, roster, now);
                self.replace_class(hash, user, roster);
                if let Some(old) = evicted {
                    self.counters.evicts_count += 1;
                    self.holds.forget(old);
                    if !mutant::on(Mutant::EvictForgotten) {
                        self.fanout.push(old.reactor, Event::Evict { session: old, by: *session, claim: *claim });
                    }
                }
                self.fanout.push(session.reactor, Event::Attached { session: *session, roster, evicted });
            }
            Attached::TooMany => {
                let event = Event::AttachRefused { session: *session, code: ErrorCode::TooManyDevices };
                self.fanout.push(session.reactor, event);
            }
        }
    }

    fn page(&mut self, mail: PageMail, ports: &mut impl Ports) {
        let from = mail.from;
        let Some(user) = self.user(from) else { return };
        let device = self.names.text(self.roster.device(from.roster));
        // OK of a READ means that every later request sees it.
        self.open.must_close |= self.open.has_read;
        let after = if self.open.has_read { self.open.number } else { self.last() };
        let after = if mutant::on(Mutant::PageNotAwaited) { 0 } else { after };
        self.must_sync |= after > self.log.synced();
        if !ports.send_job(Job::Page { mail, user, device, after }) {
            self.counters.jobs_full_count += 1;
            let refused = Event::PageRefused {
                session: from.session,
                rid: from.rid,
                code: ErrorCode::StoreOverloaded,
                retry_ms: PAGE_RETRY_MS,
            };
            self.fanout.push(from.session.reactor, refused);
        }
    }

    /// The user of a session that still owns its roster slot.
    fn user(&mut self, from: Sender) -> Option<Text> {
        if self.roster.session(from.roster) != Some(from.session) {
            self.counters.stale_submissions_count += 1;
            return None;
        }
        Some(self.names.text(self.roster.user(from.roster)))
    }

    fn answer(&mut self, answer: Answer, now: Moment, ports: &mut impl Ports) {
        match answer {
            Answer::Loaded { conv: id, result } => {
                let conv = self.state.hashes().conv(&id);
                self.loading.remove(&conv);
                match result {
                    Ok(loaded) => self.state.insert(&id, loaded),
                    Err(fault) => {
                        match fault {
                            // The reader has waited for the projector already: this does not spin.
                            JobFault::Behind => self.aside.again(conv),
                            JobFault::Engine | JobFault::Mismatch => {
                                self.counters.cursors_dropped_count += self.aside.take(conv).count() as u64;
                            }
                        }
                        return self.refuse_parked(conv, fault);
                    }
                }
                for waiting in self.aside.take(conv) {
                    self.cursor(conv, waiting.session, &waiting.pending, now, ports);
                }
                self.parking.unblock(conv);
                self.unpark(conv, now, ports);
            }
            Answer::Position { conv: id, user, result } => {
                let conv = self.state.hashes().conv(&id);
                match result {
                    Ok(positions) => self.state.insert_positions(conv, self.state.hashes().user(&user), positions),
                    Err(fault) => return self.refuse_parked(conv, fault),
                }
                self.receipt_answered(conv, (self.state.hashes().user(&user), &user), ports);
                self.parking.unblock(conv);
                self.unpark(conv, now, ports);
            }
            Answer::Swept(result) => self.swept(result, now, ports),
            Answer::Shared { watch, turn, result } => self.watch_answered(&watch, turn, result, now),
            Answer::Dedup { conv: id, user, cmid, result } => {
                let conv = self.state.hashes().conv(&id);
                match result {
                    Ok(found) => self.parking.answer(conv, &user, cmid, Lookup::Answered(found)),
                    Err(fault) => return self.refuse_parked(conv, fault),
                }
                self.unpark(conv, now, ports);
            }
        }
    }

    /// Peaks are shaved before anything is refused: beyond half, submissions wait, for as long as the projector moves.
    fn watch_backlog(&mut self, now: Moment) {
        let max = PROJECT_BYTES_MAX as u64;
        let bytes = self.progress.backlog_bytes();
        let projected = self.progress.projected();
        let is_behind = bytes > max / 2;
        if !is_behind || projected != self.projected.0 {
            self.projected = (projected, now.mono_ns);
        }
        let is_stuck = now.mono_ns - self.projected.1 >= nanos(PROJECT_PATIENCE);
        self.is_overloaded = is_behind && (self.is_overloaded || bytes > max || is_stuck);
        self.is_paced = is_behind && !self.is_overloaded;
    }

    /// What is due every second and nobody waits for.
    fn chores(&mut self) -> Result<(), LogError> {
        // Below level 2 nobody waits for a sync: it comes here.
        self.sync()?;
        if let Ok(space) = self.log.space() {
            self.is_read_only = self.settings.space.is_short(space);
            self.counters.free_bytes = space.free_bytes;
        }
        // Neither is final: an old watermark says less, and a segment too many only takes room.
        let _ = self.log.save_watermark_aside();
        let too_much = mutant::on(Mutant::LogForgetsTooMuch);
        let _ = self.log.delete_through(if too_much { self.progress.projected() } else { self.progress.checkpointed() });
        Ok(())
    }

    fn wake_in(&self, now: Moment) -> Duration {
        let is_held = self.unprojected.front().is_some_and(|projection| projection.number <= self.log.synced());
        // A full lane to the readers says nothing when it has room again.
        if is_held || self.is_paced || !self.outboxes.iter().all(Outbox::is_empty) || self.aside.wanted().is_some() {
            return LANE_RETRY_EVERY;
        }
        let due = [self.live.next_ns(), self.notices.next_ns(), self.sweep_due_ns()]
            .into_iter()
            .flatten()
            .fold(self.chores_due, u64::min);
        let chores = Duration::from_nanos(due.saturating_sub(now.mono_ns));
        let ride = self.open.since.map_or(chores, |since| RIDE_MAX.saturating_sub(now.since(since)));
        chores.min(ride)
    }

    fn begin_epoch(&mut self, cold: &mut impl Cold) -> Result<(), LogError> {
        let entry = self.state.epoch_entry(self.settings.started_ms, 0);
        self.accept(&entry, Moment::default());
        let number = self.log.write(self.open.entries_count, &self.open.body)?;
        self.log.sync()?;
        self.state.finish(number, &mut self.open.batch);
        cold.project(Projection { number, batch: std::mem::take(&mut self.open.batch) });
        self.open = Open { number: number + 1, ..Open::default() };
        Ok(())
    }
}

fn submission_index(submit: &Submit) -> usize {
    match submit {
        Submit::Attach(_) => 0,
        Submit::Leave { .. } => 1,
        Submit::Send(_) | Submit::Post(_) => 2,
        Submit::Read { .. } => 3,
        Submit::Cursors(_) => 4,
        Submit::Page(_) | Submit::Look(_) => 5,
        Submit::Member(_) => 6,
        Submit::Watch(_) => 7,
        Submit::Signal(_) => 8,
        Submit::Away { .. } => 9,
        Submit::User(_) => 10,
        Submit::Renew(_) => 11,
        Submit::Shed(_) => 12,
        Submit::PresenceLost { .. } => 13,
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("durations of the store are seconds")
}

/// Levels, as numbers that compare.
const IN_MEMORY: u8 = 0;
const SYNCED: u8 = 2;

/// Hint with a page that no reader has room for, milliseconds.
const PAGE_RETRY_MS: u32 = 250;

#[cfg(test)]
mod tests;
