//! The end of the story: whether everyone has everything, and what must not stay behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate::store::record::{self, Value};
use tidegate::store::rows::Rows;
use tidegate::store::schema::{Keyspace, cursor_key};

use super::World;
use crate::cores::Core;
use crate::device::Device;
use crate::ledger::{Conv, Finding, Stored, stored};
use crate::network::{Due, End, Link};
use crate::random::Random;
use crate::{MS, SECOND};

impl World {
    pub(super) fn stored(&self) -> Result<BTreeMap<String, Stored>, Finding> {
        let process = self.process.as_ref().ok_or("no process runs")?;
        stored(&process.store.engine, process.store.hashes())
    }

    pub(super) fn has_converged(&self) -> bool {
        let Some(process) = &self.process else { return false };
        process.ends_by.is_none()
            && process.store.is_quiet()
            && self.devices.iter().all(|device| device.is_settled() && device.judge_stay(&self.ledger.tokens).is_ok())
            && self.rudes.iter().all(|rude| rude.waits_in_vain(self.now).is_none())
            && self.stored().is_ok_and(|stored| self.behind(&stored).is_none())
    }

    /// A device that does not have everything.
    pub(super) fn behind(&self, stored: &BTreeMap<String, Stored>) -> Option<Finding> {
        for device in &self.devices {
            for (conv, stored) in stored {
                let have = device.have.get(&**conv).copied().unwrap_or(0);
                let head = stored.messages.len() as u64;
                let Some(joined) = stored.members.get(&*device.user) else { continue };
                if have < head && *joined <= head {
                    return Some(format!("device {} of {} has {conv} up to {have}, not to {head}", device.number, device.user));
                }
            }
        }
        None
    }

    pub(super) fn what_is_missing(&self) -> Finding {
        let after = self.plan.converge_ns / SECOND;
        let Ok(stored) = self.stored() else { return format!("no process runs {after} s after the trouble") };
        if let Some(finding) = self.behind(&stored) {
            return format!("{after} s after the trouble {finding}");
        }
        if let Some(finding) = self.rudes.iter().find_map(|rude| rude.waits_in_vain(self.now)) {
            return format!("{after} s after the trouble {finding}");
        }
        for device in &self.devices {
            if let Err(finding) = device.judge_stay(&self.ledger.tokens) {
                return format!("{after} s after the trouble {finding}");
            }
            if !device.is_settled() {
                return format!(
                    "{after} s after the trouble device {} is active: {}, with {} messages unsent and {} reads unconfirmed",
                    device.number,
                    device.machine.is_active(),
                    device.machine.unsent_count(),
                    device.machine.unconfirmed_reads_count()
                );
            }
        }
        format!("{after} s after the trouble the store is not quiet")
    }

    /// A fresh device of every user reads everything there is; what it is told must be what the rows say.
    pub(super) fn audit(&mut self) -> Result<(), Finding> {
        let first = self.devices.len();
        let users: Vec<Arc<str>> = (0..self.plan.users).map(|number| format!("user{number}").into()).collect();
        for (place, user) in users.iter().enumerate() {
            let token = self.ledger.tokens.issue(user, self.now);
            let stream = Random::new(self.plan.seed).stream("auditor", place as u64);
            let number = self.devices.len();
            let wants = (self.plan.faults.members_ns > 0, self.plan.watches);
            let mut device = Device::new(number, user.clone(), "auditor".to_owned(), token, Vec::new(), 0, wants, stream);
            device.is_auditor = true;
            self.devices.push(device);
            self.wake_device(number, self.now + MS);
        }
        let end = self.now + 30 * SECOND;
        self.until(end, |world| world.has_converged() && world.devices[first..].iter().all(|device| device.synced_count > 0))?;
        if !self.has_converged() {
            return Err(format!("the auditors: {}", self.what_is_missing()));
        }
        let stored = self.stored()?;
        self.ledger.judge(&stored)?;
        for said in self.ledger.said.values().filter(|said| said.acknowledged.is_some()) {
            if !stored.contains_key(&*said.conv) {
                return Err(format!("{} does not exist, and was written to", said.conv));
            }
        }
        for device in &self.devices[first..] {
            for (conv, stored) in &stored {
                let conv: Conv = conv.as_str().into();
                let entry = device.entries.get(&conv);
                match (stored.members.contains_key(&*device.user), entry) {
                    (false, None) => {}
                    (true, None) => return Err(format!("SYNC does not tell {} of {conv}", device.user)),
                    (false, Some(_)) => return Err(format!("SYNC tells {} of {conv}", device.user)),
                    (true, Some(&(read, unread))) => self.ledger.judge_unread(&device.user, &conv, stored, read, unread)?,
                }
            }
        }
        Ok(())
    }

    /// What a device has named on a connection that stands is in the rows, once it has had the time to come there.
    pub(super) fn judge_cursors(&mut self) -> Result<(), Finding> {
        self.until(self.now + CURSORS_NS, |_| false)?;
        let process = self.process.as_ref().ok_or("no process runs")?;
        let (engine, hashes) = (&process.store.engine, process.store.hashes());
        for device in &self.devices {
            // Who is no member for a while names cursors that are not taken.
            let lasting = device.cursors.named_here().filter(|(conv, _)| !device.members_change || conv.starts_with("d:"));
            for (conv, named) in lasting {
                let key = cursor_key(hashes.user(&device.user), hashes.device(&device.name), hashes.conv(conv));
                let row = engine.get(Keyspace::Cursor, &key).expect("memory fails never");
                let kept = row.map_or(Ok(0), |row| record::Cursor::decode(row).map(|cursor| cursor.seq));
                let kept = kept.map_err(|_| "a cursor row is damaged")?;
                if kept < named {
                    return Err(format!("device {} has named {conv} {named}, and its cursor stands at {kept}", device.number));
                }
            }
        }
        Ok(())
    }

    /// Everyone asks who is there, and is told; then one user goes, and everyone who may know hears of it.
    pub(super) fn judge_presence(&mut self) -> Result<(), Finding> {
        let stored = self.stored()?;
        let shares = |a: &str, b: &str| stored.values().any(|it| it.members.contains_key(a) && it.members.contains_key(b));
        for number in 0..self.devices.len() {
            self.devices[number].watch_again();
            self.wake_device(number, self.now + MS);
        }
        self.until(self.now + PRESENCE_NS, |_| false)?;
        for device in self.devices.iter().filter(|device| !device.is_auditor) {
            for user in &device.watches {
                let (is_told, expected) = (device.believes.get(user), u8::from(shares(&device.user, user)));
                if is_told != Some(&expected) {
                    return Err(format!("{} hears {is_told:?} of {user}, should be {expected}: everybody is there", device.user));
                }
            }
        }
        let gone = self.devices[0].user.clone();
        for number in 0..self.devices.len() {
            if self.devices[number].user == gone {
                self.devices[number].is_auditor = true;
                self.devices[number].machine.close();
                self.turn_device(number)?;
            }
        }
        self.until(self.now + PRESENCE_NS, |_| false)?;
        let watchers = self.devices.iter().filter(|device| !device.is_auditor && device.user != gone);
        for device in watchers.filter(|device| device.watches.contains(&gone)) {
            if device.believes.get(&gone) != Some(&0) {
                return Err(format!("{} still believes that {gone} is there", device.user));
            }
        }
        Ok(())
    }

    /// Everyone leaves: nothing may stay behind.
    pub(super) fn leave(&mut self) -> Result<(), Finding> {
        for device in 0..self.devices.len() {
            self.devices[device].is_auditor = true;
            self.devices[device].machine.close();
            self.turn_device(device)?;
        }
        for link in 0..self.links.len() {
            if !self.links[link].client_gone {
                self.links[link].client_gone = true;
                let mut due = Due::default();
                self.links[link].client_ends(self.now, End::Fin, &self.weather, &mut due);
                self.note_due(link, due);
            }
        }
        self.until(self.now + LEAVE_NS, |world| world.what_stays().is_none())?;
        self.what_stays().map_or(Ok(()), Err)
    }

    pub(super) fn what_stays(&self) -> Option<Finding> {
        let process = self.process.as_ref()?;
        for (number, core) in process.cores.iter().enumerate() {
            let Core { shard, stashes, .. } = core;
            let left = (shard.connections_count(), shard.sessions_count(), shard.queued_bytes(), stashes.used_bytes());
            if left != (0, 0, 0, 0) {
                let links: Vec<&Link> =
                    self.links.iter().filter(|link| link.core == number && link.life == self.life && !link.is_over).collect();
                return Some(format!("core {number} keeps connections, sessions, queued and stashed bytes: {left:?}; {links:?}"));
            }
        }
        if process.lanes.credit != self.plan.credit_bytes {
            return Some(format!("of a credit of {} bytes {} came back", self.plan.credit_bytes, process.lanes.credit));
        }
        if !process.store.is_quiet() {
            return Some("the store is not quiet".to_owned());
        }
        None
    }
}

/// Cursors are gathered for 100 ms, and on disk within a second; the network takes a while before, and the projector behind.
const CURSORS_NS: u64 = 5 * SECOND;
/// A change of presence is told when it has lasted 5 s.
const PRESENCE_NS: u64 = 15 * SECOND;
/// After everyone has left nothing stays for longer: a machine that is gone without a word is noticed after 10 s in a handshake and 20 s
/// later on, a session waits for up to 8 s, and a close for 5 s.
const LEAVE_NS: u64 = 40 * SECOND;
