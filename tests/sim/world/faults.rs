//! What goes wrong, and how it is mended; groups that are made and changed.

use std::sync::Arc;
use std::sync::mpsc::{TryRecvError, sync_channel};

use tidegate::mail::{MemberChange, MemberMail, MemberRefusal, Submit, UserMail};
use tidegate::shard::Outlet;
use tidegate::wire::message::Body;

use super::process::clock;
use super::{Happening, World};
use crate::disk::Crash;
use crate::ledger::{Conv, Finding};
use crate::network::{Due, End, Weather};
use crate::{MS, SECOND};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Fault {
    Kill,
    PowerCut,
    Stop,
    DiskError,
    DiskFull,
    DiskSlow,
    ClockJump,
    Stall,
    DeviceRestart,
    Members,
    Revoke,
}

impl World {
    pub(super) fn schedule_faults(&mut self) {
        for (fault, _) in self.fault_means() {
            self.schedule_fault(fault);
        }
    }

    pub(super) fn fault_means(&self) -> Vec<(Fault, u64)> {
        let faults = self.plan.faults;
        let means = [
            (Fault::Kill, faults.kill_ns),
            (Fault::PowerCut, faults.power_cut_ns),
            (Fault::Stop, faults.stop_ns),
            (Fault::DiskError, faults.disk_error_ns),
            (Fault::DiskFull, faults.disk_full_ns),
            (Fault::DiskSlow, faults.disk_slow_ns),
            (Fault::ClockJump, faults.clock_jump_ns),
            (Fault::Stall, faults.stall_ns),
            (Fault::DeviceRestart, faults.device_restart_ns),
            (Fault::Members, faults.members_ns),
            (Fault::Revoke, faults.revoke_ns),
        ];
        means.into_iter().filter(|(_, mean)| *mean > 0).collect()
    }

    pub(super) fn schedule_fault(&mut self, fault: Fault) {
        let Some((_, mean)) = self.fault_means().into_iter().find(|(other, _)| *other == fault) else { return };
        let at = self.now + self.random.spread(mean);
        self.push(at, Happening::Fault { fault });
    }

    pub(super) fn fault(&mut self, fault: Fault) -> Result<(), Finding> {
        self.schedule_fault(fault);
        let now = self.now;
        match fault {
            Fault::Kill => self.crash(Crash::Kill),
            Fault::PowerCut => self.crash(Crash::PowerCut),
            Fault::Stop => self.stop(),
            Fault::DiskError if self.process.is_none() => {}
            Fault::DiskError => {
                let writes = self.random.chance(500_000);
                self.note("the disk fails");
                self.disk.set_health(
                    |health| if writes { health.write_fails_ppm = 1_000_000 } else { health.sync_fails_ppm = 1_000_000 },
                );
            }
            Fault::DiskFull => {
                self.note("the disk is full");
                self.disk.set_health(|health| health.is_full = true);
                let at = now + self.random.spread(2 * SECOND);
                self.push(at, Happening::Mended { fault, what: 0 });
            }
            Fault::DiskSlow => {
                let sync_ns = self.random.between(20 * MS, 500 * MS);
                self.disk.set_health(|health| health.sync_ns = sync_ns);
                let at = now + self.random.spread(SECOND);
                self.push(at, Happening::Mended { fault, what: 0 });
            }
            Fault::ClockJump => {
                let jump = i64::try_from(self.random.spread(60_000)).expect("small");
                self.wall_offset_ms += if self.random.chance(500_000) { jump } else { -jump };
            }
            Fault::Stall => {
                let at = now + self.random.spread(100 * MS);
                let thread = self.random.index(self.plan.cores + 1);
                if let Some(process) = &self.process {
                    let due = process.cores.get(thread).map_or(process.store.due, |core| core.due);
                    let at = at.max(due);
                    if thread == self.plan.cores { self.set_store(at) } else { self.set_core(thread, at) }
                }
            }
            Fault::DeviceRestart => {
                let device = self.random.index(self.devices.len());
                self.note(&format!("device {device} is started again"));
                self.restart_device(device);
            }
            Fault::Members => {
                if !self.groups.is_empty() {
                    let place = self.random.index(self.groups.len());
                    let user: Arc<str> = format!("user{}", self.random.index(self.plan.users)).into();
                    let conv = self.groups[place].0.clone();
                    let names = vec![(&*user).into()];
                    self.ledger.removed.insert((conv.clone(), user));
                    let change = if self.random.chance(500_000) { MemberChange::Add(names) } else { MemberChange::Remove(names) };
                    self.change_members(&conv, change);
                }
            }
            Fault::Revoke => self.revoke(),
        }
        Ok(())
    }

    pub(super) fn mend(&mut self, fault: Fault, what: usize) {
        match fault {
            Fault::DiskFull => self.disk.set_health(|health| health.is_full = false),
            Fault::DiskSlow => self.disk.set_health(|health| health.sync_ns = self.plan.sync_ns),
            Fault::DeviceRestart => {
                let mut due = Due::default();
                self.links[what].client_ends(self.now, End::Reset, &self.weather, &mut due);
                self.note_due(what, due);
            }
            _ => {}
        }
    }

    pub(super) fn change_members(&mut self, conv: &Conv, change: MemberChange) {
        let Some(process) = self.process.as_mut() else { return };
        let (reply, answer) = sync_channel(1);
        let mail = MemberMail { conv: (&**conv).into(), change, data: Body::new(), reply };
        // A change that is not answered, or refused by load, is made again.
        if process.lanes.submit(Submit::Member(mail)).is_ok() {
            self.making.push((conv.clone(), answer));
        }
        self.wake_threads();
    }

    /// The operator revokes tokens of one user: all, those of a device, one by its id, or those before a time.
    fn revoke(&mut self) {
        let Some(process) = self.process.as_mut() else { return };
        let of = self.devices[self.random.index(self.devices.len())].shown();
        let earlier_s = self.random.between(1, self.ledger.tokens.issued_count.unwrap_or(0) + 1);
        let (number, device, change) = self.ledger.tokens.revoke(of, self.random.index(4), earlier_s, self.now);
        let (reply, answer) = sync_channel(1);
        let mail = UserMail { user: of.user.into(), device: device.map(|device| (&*device).into()), change, reply };
        match process.lanes.submit(Submit::User(mail)) {
            Ok(()) => self.revoking.push((number, answer)),
            Err(_) => self.ledger.tokens.answered(number, self.now, false),
        }
        self.wake_threads();
    }

    /// Takes the answers of a turn of the store that is over.
    pub(super) fn hear_of_revocations(&mut self) {
        let Self { revoking, ledger, now, .. } = self;
        revoking.retain(|(number, answer)| match answer.try_recv() {
            Ok(result) => {
                ledger.tokens.answered(*number, *now, result.is_ok());
                false
            }
            Err(error) => error == TryRecvError::Empty,
        });
    }

    pub(super) fn make_groups(&mut self) {
        // An answer that is there before the turn of the store is over is none yet.
        let answers = if self.is_store_in_turn() { Vec::new() } else { std::mem::take(&mut self.making) };
        for (conv, answer) in answers {
            if matches!(answer.try_recv(), Ok(Ok(_) | Err(MemberRefusal::Exists))) {
                self.made.insert(conv);
            }
        }
        for (conv, members) in self.groups.clone() {
            if !self.made.contains(&conv) {
                let members = members.iter().map(|member| (&**member).into()).collect();
                self.change_members(&conv, MemberChange::Create(members));
            }
        }
        if self.made.len() < self.groups.len() {
            self.push(self.now + 500 * MS, Happening::Groups);
        }
    }

    /// A clean end: everyone is asked to leave, what rides is written.
    pub(super) fn stop(&mut self) {
        let (window_ms, now) = (u32::try_from(self.random.below(2_000)).expect("small"), self.now);
        let moment = self.moment(now);
        let Some(process) = self.process.as_mut() else { return };
        if process.ends_by.is_some() {
            return;
        }
        process.ends_by = Some(now + 12 * SECOND);
        for core in &mut process.cores {
            core.shard.handle_drain(moment, 1012, window_ms);
        }
        self.note("a clean end begins");
        self.push(now + 50 * MS, Happening::Look);
    }

    /// Looks whether a clean end is near.
    pub(super) fn look(&mut self) -> Result<(), Finding> {
        let now = self.now;
        let Some(process) = self.process.as_mut() else { return Ok(()) };
        let Some(by) = process.ends_by else { return Ok(()) };
        let is_over = process.cores.iter().all(|core| core.shard.is_drained())
            && process.store.is_quiet()
            && process.lanes.submit.is_empty();
        if !is_over && now < by {
            self.push(now + 50 * MS, Happening::Look);
            return Ok(());
        }
        if !is_over {
            self.note("the clean end took too long");
            self.crash(Crash::Kill);
            return Ok(());
        }
        let (times, offset) = ((process.boot, process.drift_ppm), self.wall_offset_ms);
        if process.store.finish(now, |now| clock(times, offset, now), &mut process.lanes).is_err() {
            self.crash(Crash::Kill);
            return Ok(());
        }
        while process.store.projector_due != u64::MAX {
            process.store.project(u64::MAX - SECOND);
        }
        let mut process = self.process.take().expect("lives");
        process.store.engine.checkpoint();
        let at = self.disk.thread_ns().max(now);
        self.disk = self.disk.crash(at, Crash::Kill);
        self.engine = Some(process.store.engine);
        // Nothing was lost by this end: what was confirmed stays confirmed.
        self.end_links();
        self.note("a clean end");
        let after = self.random.between(50 * MS, SECOND);
        self.push(at + after, Happening::Start);
        Ok(())
    }

    /// No fault from here on, and those that last are over.
    pub(super) fn clear(&mut self) {
        self.is_troubled = false;
        self.weather = Weather {
            latency_ns: self.plan.weather.latency_ns,
            latency_max_ns: CALM_LATENCY_MAX_NS,
            reset_ppm: 0,
            silence_ppm: 0,
            silence_ns: 0,
            pause_ppm: 0,
        };
        // Whoever comes or renews from now on stays.
        self.ledger.tokens.life_s = 0;
        // Overload is over too: what it made small is as large as it is.
        self.plan.parked_max = self.plan.parked_max.max(self.plan.parked_calm_max);
        self.plan.jobs_max = self.plan.jobs_max.max(16);
        if let Some(process) = &mut self.process {
            process.store.widen(&self.plan);
        }
        let sync_ns = self.plan.sync_ns;
        self.disk.set_health(|health| {
            health.sync_ns = sync_ns;
            health.is_full = false;
            (health.sync_fails_ppm, health.write_fails_ppm) = (0, 0);
        });
        for link in 0..self.links.len() {
            let mut due = Due::default();
            if !self.links[link].is_over || !self.links[link].client_gone {
                self.links[link].clear(self.now, &mut due);
            }
            self.note_due(link, due);
        }
    }
}

/// In the calm nothing is longer on its way than that: one piece late by seconds, the last of a long exchange, would be taken for a client
/// that does not get what it should.
const CALM_LATENCY_MAX_NS: u64 = 400 * MS;
