//! A reactor without a kernel: the phases of a turn as in `reactor.rs`, over simulated links.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use tidegate::clock::Moment;
use tidegate::conn::carry::Stashes;
use tidegate::conn::send_queue::Batch;
use tidegate::ids::{ConnectionId, ReactorId};
use tidegate::io::driver::{Flow, Sent};
use tidegate::limits;
use tidegate::mail::{Group, PageReply, Peer, Submit};
use tidegate::session::auth::Verifier;
use tidegate::shard::{Command, Latencies, Outlet, Rules, Shard};

use crate::network::{Due, Link, Weather, Word};
use crate::random::Random;

/// The lanes of a process, between its threads.
pub struct Lanes {
    pub submit: VecDeque<Submit>,
    pub submit_max: usize,
    pub credit: u64,
    /// By core, with the time from which each may be seen.
    pub group: Vec<VecDeque<(u64, Group)>>,
    pub group_max: usize,
    pub peer: Vec<VecDeque<Peer>>,
    pub peer_max: usize,
    pub page: Vec<VecDeque<PageReply>>,
    /// Cores that got mail from another core, and whether the store got some: to be woken.
    pub woken_cores: Vec<usize>,
    pub woken_store: bool,
}

impl Outlet for Lanes {
    fn submit(&mut self, mail: Submit) -> Result<(), Submit> {
        let bytes = mail.body_bytes();
        self.woken_store = true;
        if self.submit.len() >= self.submit_max || bytes > self.credit {
            return Err(mail);
        }
        self.credit -= bytes;
        self.submit.push_back(mail);
        Ok(())
    }

    fn peer(&mut self, to: ReactorId, mail: Peer) -> Result<(), Peer> {
        let to = usize::from(to.0);
        self.woken_cores.push(to);
        if self.peer[to].len() >= self.peer_max {
            return Err(mail);
        }
        self.peer[to].push_back(mail);
        Ok(())
    }
}

pub struct Core {
    number: usize,
    pub shard: Shard,
    pub stashes: Stashes,
    batch: Batch,
    /// Links to be accepted.
    pub arrivals: VecDeque<usize>,
    /// Links on which something has happened.
    pub ready: Vec<usize>,
    /// Link of each slot.
    slots: Vec<Option<usize>>,
    pub random: Random,
    /// When its next turn is.
    pub due: u64,
}

/// What surrounds a core in one turn.
pub struct Around<'a> {
    pub now: u64,
    pub moment: Moment,
    pub links: &'a mut [Link],
    pub lanes: &'a mut Lanes,
    pub weather: &'a Weather,
    /// Links and times at which their devices, or this core, must look.
    pub device_due: &'a mut Vec<(usize, u64)>,
    pub core_due: &'a mut Vec<(usize, u64)>,
}

impl Core {
    pub fn new(number: usize, rules: Arc<Rules>, verifier: Arc<Verifier>, moment: Moment, random: Random) -> Self {
        let id = ReactorId(u16::try_from(number).expect("few cores"));
        Self {
            number,
            shard: Shard::new(id, rules, verifier, moment),
            stashes: Stashes::new(STASH_BYTES_MAX),
            batch: Batch::default(),
            arrivals: VecDeque::new(),
            ready: Vec::new(),
            slots: Vec::new(),
            random,
            due: 0,
        }
    }

    /// One turn. Returns how long the next one may wait, nanoseconds; 0: not at all.
    pub fn turn(&mut self, around: &mut Around<'_>) -> u64 {
        self.take_events(around);
        let more_mail = self.take_mail(around);
        self.shard.handle_time(around.moment, around.lanes);
        self.shard.shed(around.moment, 0, |_| None);
        self.flush(around);
        self.shard.latencies = Latencies::default();
        if more_mail || self.shard.is_busy() { 0 } else { self.shard.wait_ms_max() * crate::MS }
    }

    fn take_events(&mut self, around: &mut Around<'_>) {
        for _ in 0..limits::ACCEPTS_PER_TURN_MAX {
            let Some(link) = self.arrivals.pop_front() else { break };
            self.accept(link, around);
        }
        let mut ready = std::mem::take(&mut self.ready);
        ready.sort_unstable();
        ready.dedup();
        self.random.shuffle(&mut ready);
        for link in ready {
            self.serve(link, around);
        }
    }

    fn accept(&mut self, link: usize, around: &mut Around<'_>) {
        let Some(id) = self.shard.handle_accept(around.moment, None) else {
            let mut due = Due::default();
            around.links[link].process_died(around.now, 0, &mut due);
            around.device_due.extend(due.device.into_iter().map(|at| (link, at)));
            return;
        };
        around.links[link].id = Some(id);
        let slot = id.index as usize;
        if self.slots.len() <= slot {
            self.slots.resize(slot + 1, None);
        }
        assert!(self.slots[slot].is_none(), "a slot was given out before the last word about its connection");
        self.slots[slot] = Some(link);
        self.ready.push(link);
    }

    /// Everything that has happened on one link.
    fn serve(&mut self, link: usize, around: &mut Around<'_>) {
        let Some(id) = around.links[link].id else { return };
        if around.links[link].is_over {
            return;
        }
        let mut budget = limits::RECV_BYTES_PER_TURN_MAX;
        while budget > 0
            && let Some(mut bytes) = around.links[link].core_reads(around.now, budget)
        {
            budget -= bytes.len();
            let flow = self.shard.handle_bytes(around.moment, id, &mut bytes, &mut self.stashes, around.lanes);
            match flow {
                Flow::Continue => {}
                Flow::Pause => around.links[link].pause(),
                Flow::Close => break,
            }
        }
        if budget == 0 {
            self.ready.push(link);
        }
        while let Some(word) = around.links[link].core_hears(around.now) {
            match word {
                Word::Sent(taken) => {
                    self.shard.handle_taken(id, taken);
                    self.transmit(id, around);
                }
                Word::Writable => self.shard.handle_writable(id),
                Word::Eof => self.shard.handle_eof(id),
                Word::Failed => self.shard.handle_failed(id),
                Word::Closed => {
                    around.links[link].is_over = true;
                    self.slots[id.index as usize] = None;
                    self.shard.handle_closed(id, &mut self.stashes);
                    return;
                }
            }
        }
    }

    fn take_mail(&mut self, around: &mut Around<'_>) -> bool {
        let mut budget = limits::MAIL_PER_TURN_MAX;
        while budget > 0 && around.lanes.group[self.number].front().is_some_and(|(at, _)| *at <= around.now) {
            budget -= 1;
            let (_, group) = around.lanes.group[self.number].pop_front().expect("just looked at");
            self.shard.handle_group(around.moment, &group, around.lanes);
        }
        while budget > 0
            && let Some(mail) = around.lanes.peer[self.number].pop_front()
        {
            budget -= 1;
            self.shard.handle_peer(around.moment, mail);
        }
        while budget > 0
            && let Some(page) = around.lanes.page[self.number].pop_front()
        {
            budget -= 1;
            self.shard.handle_page(around.moment, page, around.lanes);
        }
        budget == 0
    }

    fn flush(&mut self, around: &mut Around<'_>) {
        for _ in 0..self.shard.dirty_count() {
            let Some(id) = self.shard.poll_dirty() else { break };
            self.transmit(id, around);
        }
        while let Some(command) = self.shard.poll_command() {
            let (Command::Close(id, _) | Command::Pause(id) | Command::Resume(id)) = command;
            let Some(link) = self.link_of(id, around) else { continue };
            let mut due = Due::default();
            match command {
                Command::Close(_, how) => around.links[link].close(around.now, how, around.weather, &mut due),
                Command::Pause(_) => around.links[link].pause(),
                Command::Resume(_) => around.links[link].resume(around.now, &mut due),
            }
            self.note(link, due, around);
        }
    }

    fn transmit(&mut self, id: ConnectionId, around: &mut Around<'_>) {
        let mut budget = SEND_BYTES_PER_TURN_MAX;
        while self.shard.gather(id, &mut self.batch) {
            let offered = self.batch.bytes();
            let link = self.link_of(id, around).expect("the shard sends to connections that live");
            let mut due = Due::default();
            let sent = {
                let vectors: Vec<IoSlice<'_>> = (0..self.batch.segments.len())
                    .map(|index| IoSlice::new(self.shard.piece(&self.batch, index).bytes()))
                    .collect();
                around.links[link].send(around.now, &vectors, around.weather, &mut due)
            };
            self.note(link, due, around);
            match sent {
                Sent::Done(taken) => {
                    self.shard.handle_taken(id, taken);
                    budget = budget.saturating_sub(taken);
                    if taken < offered {
                        continue;
                    }
                    if budget == 0 {
                        return self.shard.handle_writable(id);
                    }
                }
                Sent::Pending | Sent::Blocked => return self.shard.handle_waiting(id),
                Sent::Failed(_) => return self.shard.handle_failed(id),
            }
        }
    }

    /// The link of a connection, unless its slot has another tenant by now.
    fn link_of(&self, id: ConnectionId, around: &Around<'_>) -> Option<usize> {
        let link = (*self.slots.get(id.index as usize)?)?;
        (around.links[link].id == Some(id)).then_some(link)
    }

    fn note(&mut self, link: usize, due: Due, around: &mut Around<'_>) {
        around.device_due.extend(due.device.into_iter().map(|at| (link, at)));
        around.core_due.extend(due.core.into_iter().map(|at| (link, at)));
    }
}

const SEND_BYTES_PER_TURN_MAX: usize = 256 * 1024;
pub const STASH_BYTES_MAX: usize = 4 * 1024 * 1024;
