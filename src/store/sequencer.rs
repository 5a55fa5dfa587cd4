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

mod groups;
mod keeping;
mod live;
mod operator;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use self::operator::{Operator, is_operator};
use super::apply::{Admission, Conversation, MemberAdmission, ReadAdmission, Senders, State, Submission};
use super::attempts::Attempts;
use super::cursor::{Aside, Cursors, Pending, Waiting};
use super::disk::{Disk, SpaceRule};
use super::entry::{Change, Entry, Message, Operation};
use super::hold::Holds;
use super::job::{Answer, Job, JobFault, Progress, Projection};
use super::level::Levels;
use super::log::{Log, LogError, Recovered};
use super::outbox::Outbox;
use super::park::{Lookup, Parking, Work};
use super::record;
use super::recovery::{Cold, RecoverError, replay};
use super::retention::{Keep, Sweeper};
use super::schema::{Batch, Conv};
use crate::clock::Moment;
use crate::ids::{Cmid, Mid, ReactorId, SessionRef};
use crate::limits::{
    ARENA_CHUNK_BYTES, CURSOR_LOADS_MAX, DEVICES_PER_USER_MAX, GROUP_DELIVERIES_MAX, GROUP_SUBMISSIONS_MAX, JOB_LANE_MAX,
    LANE_RETRY_EVERY, NOTICE_ONLY_ABOVE, PARKED_MAX, PROJECT_BYTES_MAX, PROJECT_PATIENCE, RIDE_MAX, STORE_CHORES_EVERY,
    UNSYNCED_BYTES_MAX,
};
use crate::mail::{
    Attach, CursorMail, Delivery, Event, Group, MemberChange, MemberDone, MemberMail, MemberRefusal, PageMail, PostDone,
    SendMail, Sender, Submit,
};
use crate::mutant::{self, Mutant};
use crate::observe::counters::StoreCounters;
use crate::observe::trace::{Place, Sampling, Steps};
use crate::route::fanout::{Fanout, Source};
use crate::route::notices::Notices;
use crate::route::roster::{Attached, Roster};
use crate::wire::envelope::{ErrorCode, SENT_DUPLICATE, deliver_flags, send_flags};
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
}

/// See the head of this file.
pub struct Sequencer<D: Disk> {
    settings: Settings,
    log: Log<D>,
    state: State,
    roster: Roster,
    fanout: Fanout,
    parking: Parking,
    parked_max: usize,
    holds: Holds,
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
    /// As above: rows go before their floor is on disk.
    #[cfg(debug_assertions)]
    retire_before_floor: bool,
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
        let bans = cold.bans().map_err(|fault| RecoverError::Cold { conv: "bans".to_owned(), fault })?;
        bans.iter().for_each(|(user, device)| state.insert_ban(user, device.as_deref()));
        let after = position.group + u64::from(mutant::on(Mutant::ReplayOffByOne));
        log.replay(after, |group, _, body| replay(&mut state, group, body, cold))?;
        let number = log.last() + 1;
        let mut sequencer = Self {
            settings,
            log,
            state,
            roster: Roster::default(),
            fanout: Fanout::new(settings.cores),
            parking: Parking::default(),
            parked_max: PARKED_MAX,
            holds: Holds::default(),
            cursors: Cursors::default(),
            aside: Aside::default(),
            loading: HashSet::new(),
            attempts: Attempts::new(settings.hellos_per_minute),
            live: Live::default(),
            notices: Notices::default(),
            sweeper: Sweeper::default(),
            open: Open { number, ..Open::default() },
            operator: Operator::default(),
            outboxes: (0..settings.cores).map(|_| Outbox::default()).collect(),
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
            retire_before_floor: false,
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
        self.hand_out(committed, ports);
        let credit_bytes = std::mem::take(&mut self.credit_bytes);
        if !mutant::on(Mutant::CreditKept) {
            ports.give_back(credit_bytes);
        }
        Ok(Turn { is_busy, wake_in: self.wake_in(now) })
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
        self.parked_max = max;
    }

    /// Breaks another promise: retention takes rows before the floor above them is on disk. As above.
    #[cfg(debug_assertions)]
    pub fn plant_retirement_before_floor(&mut self) {
        self.retire_before_floor = true;
    }

    /// Whether everything has been handed over.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.unprojected.is_empty()
            && self.outboxes.iter().all(Outbox::is_empty)
            && self.parking.count() + self.aside.count() == 0
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
            Submit::Away { session, roster } => {
                if self.roster.session(roster) == Some(session) {
                    self.set_away(roster, now);
                }
            }
            Submit::User(mail) => self.change_user(mail, now),
            Submit::Watch(mail) => self.watch(mail, now, ports),
            Submit::Signal(mail) => match self.user(mail.from) {
                Some(user) => self.offer(Work::Signal { mail, user }, now, ports),
                None => self.credit_bytes += signal_bytes(&mail),
            },
            Submit::Send(mail) => match self.user(mail.from) {
                Some(user) => self.offer(Work::Send { mail, user, lookup: Lookup::Unasked }, now, ports),
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
        let Attach { session, user, device, platform, caps, claim } = attach;
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
                self.receipt_answered(conv, self.state.hashes().user(&user), now, ports);
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

    /// Carries out what waits for a conversation, in order, as far as it is ready.
    fn unpark(&mut self, conv: Conv, now: Moment, ports: &mut impl Ports) {
        while !mutant::on(Mutant::UnparkForgotten)
            && let Some(work) = self.parking.pop_ready(conv)
        {
            if let Some(work) = self.attempt(conv, work, now, ports) {
                self.parking.push_front(conv, work);
                return;
            }
        }
    }

    /// The engine cannot be read, or is too far behind: everything that waits for it fails, so that nothing overtakes.
    fn refuse_parked(&mut self, conv: Conv, fault: JobFault) {
        for work in self.parking.take(conv) {
            self.refuse(conv, work, fault.code());
        }
    }

    /// Takes a submission: carries it out, parks it, or refuses it.
    fn offer(&mut self, mut work: Work, now: Moment, ports: &mut impl Ports) {
        let conv = self.state.hashes().conv(work.conv());
        if let Some(code) = self.implausible(&work) {
            return self.refuse(conv, work, code);
        }
        let behind = self.parking.holds(conv);
        if behind {
            // Asked for ahead of its turn: a reconnect brings dozens, and one after the other would take as many reads in a row.
            self.ask_dedup(&mut work, ports);
        } else {
            match self.attempt(conv, work, now, ports) {
                Some(waits) => work = waits,
                None => return,
            }
        }
        if self.parking.count() >= self.parked_max {
            self.counters.submissions_refused_count += 1;
            // What waits before it in its conversation goes first: the hold must name the earliest message that failed, or the
            // client's repeat of this one would overtake it.
            if !mutant::on(Mutant::ParkingRefusesNewcomer) {
                self.refuse_parked(conv, JobFault::Behind);
            }
            self.refuse(conv, work, ErrorCode::StoreOverloaded);
        } else {
            self.parking.push_back(conv, work);
        }
    }

    /// What can be refused by names alone, without reading anything for a stranger.
    fn implausible(&self, work: &Work) -> Option<ErrorCode> {
        let (conv, user) = match work {
            Work::Send { mail, .. } if is_operator(mail.from.session) => return None,
            Work::Send { mail, user, .. } => (&mail.conv, user.as_str()),
            Work::Read { conv, user, .. } => (conv, user.as_str()),
            Work::Signal { mail, user } => (&mail.conv, user.as_str()),
            Work::Floor(_) => return None,
            Work::Member(mail) => {
                return (!State::is_group(&mail.conv)).then_some(ErrorCode::NotMember);
            }
        };
        (!State::is_plausible(conv, user)).then_some(ErrorCode::NotMember)
    }

    /// Carries out one submission, or gives it back if it must wait; a job for what it waits for is then under way.
    fn attempt(&mut self, conv: Conv, mut work: Work, now: Moment, ports: &mut impl Ports) -> Option<Work> {
        if let Work::Send { mail, .. } = &work {
            let Sender { session, roster, .. } = mail.from;
            if !is_operator(session) && self.roster.session(roster) != Some(session) {
                self.counters.stale_submissions_count += 1;
                self.credit_bytes += body_bytes(mail);
                return None;
            }
            if let Some(code) = self.unwelcome(conv, mail) {
                self.refuse(conv, work, code);
                return None;
            }
        }
        let after = self.last();
        if !self.state.is_loaded(conv) {
            let job = Job::Load { conv: work.conv().clone(), after };
            return self.wait_for(job, conv, work, ports);
        }
        self.state.touch(conv);
        match &work {
            Work::Send { mail, user, lookup: Lookup::Unasked }
                if self.state.needs_dedup(mail.cmid, self.state.hashes().user(user), mail.flags) =>
            {
                if self.ask_dedup(&mut work, ports) {
                    return Some(work);
                }
                self.refuse(conv, work, ErrorCode::StoreOverloaded);
                None
            }
            Work::Send { .. } => {
                self.send(conv, work, now);
                None
            }
            Work::Read { from, conv: id, user, seq } => {
                if self.read(conv, (*from, id, user, *seq), now, ports) {
                    return None;
                }
                let job = Job::Position { conv: id.clone(), user: user.clone(), after };
                self.wait_for(job, conv, work, ports)
            }
            Work::Signal { mail, user } => {
                self.signal(conv, mail, user);
                None
            }
            Work::Member(_) => {
                self.member(conv, work, now);
                None
            }
            Work::Floor(raise) => {
                self.raise_floor(conv, raise, now);
                None
            }
        }
    }

    /// Why a SEND is refused before anything is looked at: an earlier one failed, the disk is full, the projector is behind.
    fn unwelcome(&mut self, conv: Conv, mail: &SendMail) -> Option<ErrorCode> {
        if self.holds.refuses(mail.from.session, conv, mail.cmid, mail.flags) {
            Some(ErrorCode::Held)
        } else if self.is_read_only && mail.flags & send_flags::TRANSIENT == 0 {
            Some(ErrorCode::StorageFailed)
        } else if self.is_overloaded {
            Some(ErrorCode::StoreOverloaded)
        } else {
            None
        }
    }

    fn wait_for(&mut self, job: Job, conv: Conv, work: Work, ports: &mut impl Ports) -> Option<Work> {
        let is_load = matches!(job, Job::Load { .. });
        if !(is_load && self.loading.contains(&conv)) {
            if !ports.send_job(job) {
                self.counters.jobs_full_count += 1;
                self.refuse(conv, work, ErrorCode::StoreOverloaded);
                return None;
            }
            if is_load {
                self.loading.insert(conv);
            }
            self.must_sync |= self.last() > self.log.synced();
        }
        self.parking.block(conv);
        Some(work)
    }

    /// Has a reader look for the cmid of a SEND with RETRY that memory does not know. `false`: the lanes are full.
    fn ask_dedup(&mut self, work: &mut Work, ports: &mut impl Ports) -> bool {
        let Work::Send { mail, user, lookup } = work else { return true };
        if *lookup != Lookup::Unasked || !self.state.needs_dedup(mail.cmid, self.state.hashes().user(user), mail.flags) {
            return true;
        }
        let after = self.last();
        let job = Job::Dedup { conv: mail.conv.clone(), user: user.clone(), cmid: mail.cmid, after };
        if !ports.send_job(job) {
            self.counters.jobs_full_count += 1;
            return false;
        }
        *lookup = Lookup::Asked;
        self.must_sync |= after > self.log.synced();
        true
    }

    fn send(&mut self, conv: Conv, work: Work, now: Moment) {
        let Work::Send { mail, user, lookup } = work else { unreachable!("called for SEND") };
        let stored = if let Lookup::Answered(found) = lookup { found } else { None };
        let submission = Submission {
            conv: &mail.conv,
            user: &user,
            cmid: mail.cmid,
            flags: mail.flags,
            kind: mail.kind,
            ttl_s: mail.ttl_s,
            trace: mail.trace,
            payload: &mail.payload,
            is_operator: is_operator(mail.from.session),
            stored,
            refusal: mail.refusal,
        };
        match self.state.admit_send(&submission, now.unix_ms) {
            Admission::Accept(entry) => {
                let Change::Message(Message { seq, mid, exp_s, .. }) = entry.change else { unreachable!("SEND is a message") };
                self.accept(&entry, now);
                let level = self.settings.levels.of(&mail.conv);
                self.open.must_close = true;
                self.open.level = self.open.level.max(level);
                self.open.received.push(mail.received);
                let context = mail.trace.map(|it| (it.trace_id, it.flags));
                if let Some(followed) = self.settings.sampling.follow(mail.cmid, context)
                    && !self.steps.note(followed, &mail.conv, Place::Committed { mid, seq })
                {
                    self.counters.trace_steps_dropped_count += 1;
                }
                self.counters.messages_stored_count += 1;
                self.sent(&mail, level, 0, seq, mid);
                if self.state.conversation(conv).is_some_and(Conversation::is_notice_only) {
                    self.notices.note(conv.0, seq, mid);
                } else {
                    let flags = mail.flags & (send_flags::QUIET | send_flags::TRACE);
                    self.deliver(conv, &mail, &user, delivery(&mail, &user, flags, seq, mid, exp_s));
                }
            }
            Admission::Transient => {
                self.sent(&mail, 0, 0, 0, Mid(0));
                let flags = mail.flags & (send_flags::QUIET | send_flags::TRACE) | deliver_flags::TRANSIENT;
                self.deliver(conv, &mail, &user, delivery(&mail, &user, flags, 0, Mid(0), 0));
            }
            Admission::Duplicate { seq, mid } => {
                self.counters.messages_duplicate_count += 1;
                self.sent(&mail, self.settings.levels.of(&mail.conv), SENT_DUPLICATE, seq, mid);
            }
            Admission::Refuse(code) => {
                self.counters.sends_refused_count += 1;
                let named = Some((mail.conv.clone(), mail.cmid));
                self.fail(mail.from.session, mail.from.rid, code, named);
            }
        }
        self.credit_bytes += body_bytes(&mail);
    }

    fn sent(&mut self, mail: &SendMail, level: u8, flags: u8, seq: u64, mid: Mid) {
        let Sender { session, rid, .. } = mail.from;
        if is_operator(session) {
            return self.posted(session, Ok(PostDone { seq, mid, level, is_duplicate: flags & SENT_DUPLICATE != 0 }));
        }
        let costs_nothing = flags & SENT_DUPLICATE != 0 && mail.flags & send_flags::RETRY != 0;
        let (cmid, received) = (mail.cmid, mail.received);
        let event = Event::Sent { session, cmid, rid, level, flags, seq, mid, costs_nothing, received };
        self.fanout.push(session.reactor, event);
    }

    fn deliver(&mut self, conv: Conv, mail: &SendMail, user: &Text, message: Delivery) {
        let conversation = self.state.conversation(conv).expect("admitted");
        let members = conversation.members.iter().map(|member| (member.user.0, member.name.as_str()));
        let source = Source { hash: self.state.hashes().user(user).0, user, session: mail.from.session };
        let count = self.fanout.deliver(&self.roster, conv.0, members, source, &message);
        self.counters.deliveries_count += count as u64;
    }

    /// `false`: the read position must be loaded first.
    fn read(
        &mut self,
        conv: Conv,
        (from, id, user, seq): (Sender, &Text, &Text, u64),
        now: Moment,
        ports: &mut impl Ports,
    ) -> bool {
        let value = match self.state.admit_read(id, user, seq, now.unix_ms) {
            ReadAdmission::Accept(entry) => {
                if !mutant::on(Mutant::ReadNotKept) {
                    self.accept(&entry, now);
                }
                self.open.has_read = true;
                self.receipt(conv, self.state.hashes().user(user), from.session, now, ports);
                seq
            }
            ReadAdmission::Stands(position) => position,
            ReadAdmission::Unknown => return false,
            ReadAdmission::Refuse(code) => {
                self.fail(from.session, from.rid, code, None);
                return true;
            }
        };
        self.fanout.push(from.session.reactor, Event::Ok { session: from.session, rid: from.rid, value });
        true
    }

    /// Takes a cursor, or sets it aside: it never waits behind other work, and other work never behind it. Unknown conversations are
    /// skipped; a cursor lost otherwise only repeats deliveries.
    fn offer_cursor(&mut self, mail: &CursorMail, now: Moment, ports: &mut impl Ports) {
        if self.roster.session(mail.roster) != Some(mail.session) {
            self.counters.stale_submissions_count += 1;
            return;
        }
        let (user, device) = (self.roster.user(mail.roster), self.roster.device(mail.roster));
        if !State::is_plausible(&mail.conv, user) {
            return;
        }
        let conv = self.state.hashes().conv(&mail.conv);
        if self.state.is_loaded(conv) {
            let [user, device] = [user, device].map(|name| self.names.text(name));
            self.state.touch(conv);
            let pending = Pending { seq: mail.seq, conv: mail.conv.clone(), user, device };
            return self.cursor(conv, mail.session, &pending, now, ports);
        }
        let waiting = || {
            let [conv, user, device] = [&*mail.conv, user, device].map(Text::copy_from);
            Waiting { session: mail.session, pending: Pending { seq: mail.seq, conv, user, device } }
        };
        if !self.aside.push(conv, waiting, (mail.session, mail.seq)) {
            self.counters.cursors_dropped_count += 1;
        }
    }

    /// Has readers load a few of the conversations that cursors wait for.
    fn load_for_cursors(&mut self, ports: &mut impl Ports) {
        for _ in 0..CURSOR_LOADS_MAX {
            let Some((conv, name)) = self.aside.wanted() else { return };
            if self.parking.holds(conv) && !self.loading.contains(&conv) {
                // It may be loaded by what waits there.
                self.aside.again(conv);
                continue;
            }
            if !self.loading.contains(&conv) {
                let after = self.last();
                if !ports.send_job(Job::Load { conv: name, after }) {
                    return;
                }
                self.must_sync |= after > self.log.synced();
                self.loading.insert(conv);
            }
            self.aside.asked(conv);
        }
    }

    fn cursor(&mut self, conv: Conv, session: SessionRef, cursor: &Pending, now: Moment, ports: &mut impl Ports) {
        match self.state.admit_cursor(conv, &cursor.user, cursor.seq) {
            Ok(true) => {
                self.counters.cursors_merged_count += 1;
                let hashes = self.state.hashes();
                let user = hashes.user(&cursor.user);
                self.cursors.merge(user, hashes.device(&cursor.device), conv, cursor.seq, || {
                    // Slices of arenas as a rule: they are gone with the next group, a second from now at the latest.
                    [cursor.conv.clone(), cursor.user.clone(), cursor.device.clone()]
                });
                self.open.since.get_or_insert(now);
                self.received(conv, user, (session, cursor.seq), now, ports);
            }
            Ok(false) => {}
            Err(code) => {
                let named = Some((cursor.conv.clone(), Cmid::default()));
                self.fail(session, 0, code, named);
            }
        }
    }

    fn member(&mut self, conv: Conv, work: Work, now: Moment) {
        let Work::Member(mail) = work else { unreachable!("called for a change of members") };
        let is_show = matches!(mail.change, MemberChange::Show);
        if !is_show && (self.is_read_only || self.is_overloaded) {
            let refusal = if self.is_read_only { MemberRefusal::ReadOnly } else { MemberRefusal::Overloaded };
            self.open.replies.push((mail.reply, Err(refusal)));
            return;
        }
        let result = match self.state.admit_members(&mail.conv, &mail.change) {
            MemberAdmission::Accept(operation, users) => {
                self.change_members(conv, &mail, operation, &users, now);
                Ok(self.members(conv))
            }
            MemberAdmission::Set { users, role, muted } => {
                self.set_members(conv, &mail, (role, muted), &users, now);
                Ok(self.members(conv))
            }
            MemberAdmission::Shape(flags) => {
                self.shape(conv, &mail, flags, now);
                Ok(self.members(conv))
            }
            MemberAdmission::Unchanged => Ok(self.members(conv)),
            MemberAdmission::Refuse(refusal) => Err(refusal),
        };
        self.open.replies.push((mail.reply, result));
    }

    /// Logs and applies an entry that was admitted.
    fn accept(&mut self, entry: &Entry<'_>, now: Moment) {
        entry.encode(&mut self.open.body);
        self.open.entries_count += 1;
        self.open.since.get_or_insert(now);
        self.state.apply(entry, self.open.number, &mut self.open.batch).expect("admitted against this very state");
    }

    fn refuse(&mut self, conv: Conv, work: Work, code: ErrorCode) {
        match work {
            Work::Send { mail, .. } => {
                self.counters.sends_refused_count += 1;
                let is_transient = mail.flags & send_flags::TRANSIENT != 0;
                if code.is_retryable() && !is_transient && !is_operator(mail.from.session) {
                    self.holds.begin(mail.from.session, conv, mail.cmid);
                }
                self.credit_bytes += body_bytes(&mail);
                let Sender { session, rid, .. } = mail.from;
                // It is never retried, so nothing waits for its repeat.
                let cmid = if is_transient { Cmid::default() } else { mail.cmid };
                self.fail(session, rid, code, Some((mail.conv, cmid)));
            }
            Work::Read { from, .. } => self.fail(from.session, from.rid, code, None),
            Work::Signal { mail, .. } => self.refuse_signal(mail, code),
            // The next sweep finds it again.
            Work::Floor(_) => {}
            Work::Member(mail) => {
                let refusal = if code == ErrorCode::NotMember { MemberRefusal::BadName } else { MemberRefusal::Overloaded };
                self.open.replies.push((mail.reply, Err(refusal)));
            }
        }
    }

    fn fail(&mut self, session: SessionRef, rid: u32, code: ErrorCode, send: Option<(Text, Cmid)>) {
        if is_operator(session) {
            return self.posted(session, Err(code));
        }
        let event = Event::Failed { session, rid, code, retry_ms: retry_ms(code), send };
        self.fanout.push(session.reactor, event);
    }

    /// Makes the open group durable and hands its rows on; what it means to clients goes out with [`Self::hand_out`]. Says when that
    /// was, if there was anything.
    fn close(&mut self, now: Moment, ports: &mut impl Ports) -> Result<Option<Moment>, LogError> {
        let mut committed = None;
        let mut cursors = self.cursors.take();
        for cursor in cursors.drain(..) {
            let (conv, user, device) = (&*cursor.conv, &*cursor.user, &*cursor.device);
            let change = Change::Cursor { seq: cursor.seq, conv, user, device };
            self.accept(&Entry { stamp_ms: now.unix_ms, change }, now);
        }
        self.cursors.bring_back(cursors);
        if self.open.entries_count > 0 {
            if self.acknowledge_before_sync || mutant::on(Mutant::AcknowledgeBeforeSync) {
                self.hand_out(None, ports);
                #[cfg(debug_assertions)]
                self.write_delay.into_iter().for_each(std::thread::sleep);
            }
            #[cfg(feature = "mutants")]
            self.deliver_early(ports);
            let number = self.open.number;
            // What rides alone is no message, and is kept as well as any.
            let level = if self.open.must_close { self.open.level } else { self.settings.levels.most() };
            let begun = ports.now();
            self.write(level)?;
            let done = ports.now();
            if level > IN_MEMORY {
                self.latencies.synced.push(done.since(begun));
            }
            self.latencies.committed.extend(self.open.received.drain(..).map(|received| done.since(received)));
            committed = Some(done);
            self.counters.groups_committed_count += 1;
            self.state.finish(number, &mut self.open.batch);
            let batch = std::mem::replace(&mut self.open.batch, ports.spare_batch().unwrap_or_default());
            self.open.number = number + 1;
            self.state.evict(self.progress.projected(), self.open.number);
            self.progress.handed_over(batch.len_bytes() as u64);
            if number > self.log.synced() {
                self.unsynced_bytes += batch.len_bytes();
            }
            self.unprojected.push_back(Projection { number, batch });
        }
        self.open.body.clear();
        self.open.entries_count = 0;
        self.open.must_close = false;
        self.open.level = 0;
        self.open.has_read = false;
        self.open.since = None;
        Ok(committed)
    }

    /// Brings the open group to `level`. Lower ones before it come along: the log is in order.
    fn write(&mut self, level: u8) -> Result<(), LogError> {
        if level == IN_MEMORY {
            self.unwritten.push_back((self.open.entries_count, std::mem::take(&mut self.open.body)));
            return Ok(());
        }
        self.write_out()?;
        let number = self.log.write(self.open.entries_count, &self.open.body)?;
        self.counters.log_written_bytes_count += self.open.body.len() as u64;
        assert_eq!(number, self.open.number);
        if level >= SYNCED { self.sync() } else { Ok(()) }
    }

    fn write_out(&mut self) -> Result<(), LogError> {
        while let Some((entries_count, body)) = self.unwritten.pop_front() {
            self.log.write(entries_count, &body)?;
            self.counters.log_written_bytes_count += body.len() as u64;
        }
        Ok(())
    }

    /// Makes every closed group durable, whatever its level: the engine may have its rows then.
    fn sync(&mut self) -> Result<(), LogError> {
        self.must_sync = false;
        self.write_out()?;
        if self.log.synced() < self.log.last() && !mutant::on(Mutant::SyncForgotten) {
            self.log.sync()?;
            self.counters.log_syncs_count += 1;
        }
        self.unsynced_bytes = 0;
        Ok(())
    }

    /// Number of the last closed group, written or not.
    fn last(&self) -> u64 {
        self.open.number - 1
    }

    /// Gives every core what the turn means to it, then the rows to the projector.
    fn hand_out(&mut self, committed: Option<Moment>, ports: &mut impl Ports) {
        for (reactor, group, bytes) in
            self.fanout.take(self.open.number - 1, committed, || ports.spare_group().unwrap_or_default())
        {
            let outbox = &mut self.outboxes[usize::from(reactor.0)];
            if !outbox.is_empty() {
                self.counters.group_full_count += 1;
            }
            self.counters.deliveries_dropped_count += outbox.push(group, bytes);
        }
        for (reply, result) in self.open.replies.drain(..) {
            // Whoever asked may have given up.
            let _ = reply.try_send(result);
        }
        self.operator.hand_out();
        self.flush(ports);
    }

    #[cfg(feature = "mutants")]
    fn deliver_early(&mut self, ports: &mut impl Ports) {
        if !mutant::on(Mutant::DeliverBeforeSync) {
            return;
        }
        let groups: Vec<_> = self.fanout.take(self.open.number, None, Group::default).collect();
        for (reactor, mut group, bytes) in groups {
            let (early, late) = group.events.into_iter().partition(|event| !matches!(event, Event::Sent { .. }));
            group.events = early;
            self.outboxes[usize::from(reactor.0)].push(group, bytes);
            Vec::into_iter(late).for_each(|event| self.fanout.push(reactor, event));
        }
        self.flush(ports);
    }

    fn flush(&mut self, ports: &mut impl Ports) {
        for (index, outbox) in (0..).zip(&mut self.outboxes) {
            if !outbox.is_empty() {
                outbox.flush(|group| ports.send_group(ReactorId(index), group));
            }
        }
        while self.unprojected.front().is_some_and(|projection| projection.number <= self.log.synced())
            && let Some(projection) = self.unprojected.pop_front()
        {
            if let Err(projection) = ports.send_projection(projection) {
                self.unprojected.push_front(projection);
                break;
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
        let _ = self.log.save_watermark();
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

fn delivery(mail: &SendMail, user: &Text, flags: u8, seq: u64, mid: Mid, exp_s: u32) -> Delivery {
    Delivery {
        seq,
        mid,
        flags,
        kind: mail.kind,
        exp_s,
        cmid: mail.cmid,
        trace: mail.trace,
        conv: mail.conv.clone(),
        from: user.clone(),
        payload: mail.payload.clone(),
    }
}

/// What the sender took from the credit of the lane; the same sum as [`Submit::body_bytes`].
fn body_bytes(mail: &SendMail) -> u64 {
    (mail.payload.len() + mail.conv.len()) as u64
}

fn retry_ms(code: ErrorCode) -> u32 {
    match code {
        ErrorCode::StorageFailed => 30_000,
        ErrorCode::StoreOverloaded | ErrorCode::Internal => 1_000,
        ErrorCode::Held => 100,
        _ => 0,
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
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("durations of the store are seconds")
}

// QUIET and TRACE have one value in SEND and in DELIVER: flags are masked, not translated.
const _: () = assert!(send_flags::QUIET == deliver_flags::QUIET && send_flags::TRACE == deliver_flags::TRACE);

/// Levels, as numbers that compare.
const IN_MEMORY: u8 = 0;
const SYNCED: u8 = 2;

/// Hint with a page that no reader has room for, milliseconds.
const PAGE_RETRY_MS: u32 = 250;

#[cfg(test)]
#[path = "sequencer_tests.rs"]
mod tests;
