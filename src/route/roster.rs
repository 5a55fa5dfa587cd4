//! Who is online: user to devices to sessions. One owner, the store thread, so a route needs no lock and no hop.
//!
//! ```text
//! table   u32 per slot, open addressing by 32 bits of the user's hash: the first device of a user
//! entry   24 bytes: session 10, hash 4, next device of the user 4, names 4, length of the user id 1, platform 1
//! names   pooled in 16-byte units: length of the device id, user id, device id
//! ```
//!
//! Per device: 24 bytes, 4 to 9 of the table at load 0.44 to 0.87, and its names. The keyed hash of a user comes from the caller, so
//! nobody can choose users that collide.

use crate::ids::{ReactorId, RosterId, SessionRef};
use crate::limits::{DEVICES_PER_USER_MAX, ROSTER_DEVICES_RESERVED};

/// The devices that are connected or resumable.
#[derive(Debug)]
pub struct Roster {
    entries: Vec<Entry>,
    /// First free entry; they are chained by `next`.
    free: Option<RosterId>,
    table: Vec<u32>,
    users_count: usize,
    devices_count: usize,
    names: NamePool,
    version: u64,
}

/// One device. Free when `user_len` is 0.
#[derive(Clone, Copy, Debug)]
struct Entry {
    session_index: u32,
    session_generation: u32,
    hash: u32,
    next: u32,
    names: u32,
    reactor: u16,
    user_len: u8,
    platform: u8,
}

/// Bytes of a device beside its names and its place in the table.
pub const ENTRY_BYTES: usize = size_of::<Entry>();

/// What became of an attach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attached {
    /// The device is in the roster.
    Placed {
        /// Its slot; a device that comes back elsewhere keeps the slot.
        roster: RosterId,
        /// Who had the device before, and must be evicted.
        evicted: Option<SessionRef>,
    },
    /// The user has `limits::DEVICES_PER_USER_MAX` devices already: 2004.
    TooMany,
}

impl Default for Roster {
    /// An empty roster. Address space for [`ROSTER_DEVICES_RESERVED`] devices is reserved; untouched pages are not resident.
    fn default() -> Self {
        Self {
            entries: Vec::with_capacity(ROSTER_DEVICES_RESERVED),
            free: None,
            table: Vec::new(),
            users_count: 0,
            devices_count: 0,
            names: NamePool { bytes: Vec::with_capacity(ROSTER_DEVICES_RESERVED * 2 * UNIT_BYTES), free: Default::default() },
            version: 0,
        }
    }
}

impl Roster {
    /// Puts a device of `user` into the roster, or points the one that is there at `session`.
    ///
    /// # Panics
    /// If a name is empty or longer than 64 bytes; ids are checked when a connection says hello.
    pub fn attach(&mut self, hash: u64, user: &str, device: &str, platform: u8, session: SessionRef) -> Attached {
        assert!((1..=64).contains(&user.len()));
        assert!((1..=64).contains(&device.len()));
        let tag = tag(hash);
        let first = self.first(tag, user);
        let known = self.chain(first).find(|id| self.device(*id) == device);
        if let Some(roster) = known {
            let evicted = self.session(roster);
            let entry = &mut self.entries[roster.0 as usize];
            (entry.session_index, entry.session_generation) = (session.index, session.generation);
            (entry.reactor, entry.platform) = (session.reactor.0, platform);
            self.version += 1;
            return Attached::Placed { roster, evicted };
        }
        if self.chain(first).count() >= DEVICES_PER_USER_MAX {
            return Attached::TooMany;
        }
        self.version += 1;
        self.devices_count += 1;
        let names = self.names.insert(user, device);
        let roster = self.place(Entry {
            session_index: session.index,
            session_generation: session.generation,
            hash: tag,
            next: NONE,
            names,
            reactor: session.reactor.0,
            user_len: u8::try_from(user.len()).expect("checked above"),
            platform,
        });
        match first {
            // Behind the first, so that the table keeps naming the same entry.
            Some(first) => {
                self.entries[roster.0 as usize].next = self.entries[first.0 as usize].next;
                self.entries[first.0 as usize].next = roster.0;
            }
            None => self.table_insert(roster.0),
        }
        Attached::Placed { roster, evicted: None }
    }

    /// Removes a device if `session` still owns its slot. `false`: another session has it, or nobody.
    pub fn leave(&mut self, roster: RosterId, session: SessionRef) -> bool {
        if self.session(roster) != Some(session) {
            return false;
        }
        let entry = self.entries[roster.0 as usize];
        let slot = self.table_slot(entry.hash, self.user(roster)).expect("whoever is in the roster is in the table");
        let first = RosterId(self.table[slot]);
        if first != roster {
            let before = self.chain(Some(first)).find(|id| self.entries[id.0 as usize].next == roster.0);
            self.entries[before.expect("the chain of a user holds all devices").0 as usize].next = entry.next;
        } else if entry.next == NONE {
            self.table_remove(slot);
        } else {
            self.table[slot] = entry.next;
        }
        self.names.remove(entry.names, usize::from(entry.user_len));
        self.entries[roster.0 as usize] = Entry { user_len: 0, next: self.free.map_or(NONE, |id| id.0), ..entry };
        self.free = Some(roster);
        self.devices_count -= 1;
        self.version += 1;
        true
    }

    /// Who owns a slot.
    #[must_use]
    pub fn session(&self, roster: RosterId) -> Option<SessionRef> {
        let entry = self.entries.get(roster.0 as usize).filter(|entry| entry.user_len > 0)?;
        Some(SessionRef { reactor: ReactorId(entry.reactor), index: entry.session_index, generation: entry.session_generation })
    }

    /// User id of a slot in use.
    #[must_use]
    pub fn user(&self, roster: RosterId) -> &str {
        let entry = &self.entries[roster.0 as usize];
        self.names.get(entry.names, usize::from(entry.user_len)).0
    }

    /// Device id of a slot in use.
    #[must_use]
    pub fn device(&self, roster: RosterId) -> &str {
        let entry = &self.entries[roster.0 as usize];
        self.names.get(entry.names, usize::from(entry.user_len)).1
    }

    /// Platform of a slot in use.
    #[must_use]
    pub fn platform(&self, roster: RosterId) -> u8 {
        self.entries[roster.0 as usize].platform
    }

    /// Changes what is kept as the platform of a slot in use: its owner may keep other traits of the device in the same byte.
    pub fn set_platform(&mut self, roster: RosterId, platform: u8) {
        self.entries[roster.0 as usize].platform = platform;
    }

    /// The devices of a user, in no particular order.
    pub fn devices(&self, hash: u64, user: &str) -> impl Iterator<Item = RosterId> + '_ {
        self.chain(self.first(tag(hash), user))
    }

    /// How many users have a device here.
    #[must_use]
    pub fn users_count(&self) -> usize {
        self.users_count
    }

    /// How many devices.
    #[must_use]
    pub fn devices_count(&self) -> usize {
        self.devices_count
    }

    /// Slots in use or free: every device's slot is below.
    ///
    /// # Panics
    /// Never: descriptors bound the devices.
    #[must_use]
    pub fn slots_count(&self) -> u32 {
        u32::try_from(self.entries.len()).expect("placed with a u32")
    }

    /// Grows with every change: what was resolved under another version is void.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    fn place(&mut self, entry: Entry) -> RosterId {
        match self.free {
            Some(id) => {
                let next = self.entries[id.0 as usize].next;
                self.free = (next != NONE).then_some(RosterId(next));
                self.entries[id.0 as usize] = entry;
                id
            }
            None => {
                let index = u32::try_from(self.entries.len()).expect("descriptors bound the devices");
                assert!(index < NONE);
                self.entries.push(entry);
                RosterId(index)
            }
        }
    }

    fn chain(&self, first: Option<RosterId>) -> impl Iterator<Item = RosterId> + '_ {
        std::iter::successors(first, |id| {
            let next = self.entries[id.0 as usize].next;
            (next != NONE).then_some(RosterId(next))
        })
    }

    fn first(&self, tag: u32, user: &str) -> Option<RosterId> {
        self.table_slot(tag, user).map(|slot| RosterId(self.table[slot]))
    }

    fn table_slot(&self, tag: u32, user: &str) -> Option<usize> {
        if self.table.is_empty() {
            return None;
        }
        let mut slot = self.home(tag);
        loop {
            let id = self.table[slot];
            if id == NONE {
                return None;
            }
            if self.entries[id as usize].hash == tag && self.user(RosterId(id)) == user {
                return Some(slot);
            }
            slot = (slot + 1) & (self.table.len() - 1);
        }
    }

    fn table_insert(&mut self, id: u32) {
        self.users_count += 1;
        if self.users_count * 8 > self.table.len() * 7 {
            let slots = (self.table.len() * 2).max(TABLE_SLOTS_MIN);
            let old = std::mem::replace(&mut self.table, vec![NONE; slots]);
            old.into_iter().filter(|&id| id != NONE).for_each(|id| self.table_fill(id));
        }
        self.table_fill(id);
    }

    fn table_fill(&mut self, id: u32) {
        let mut slot = self.home(self.entries[id as usize].hash);
        while self.table[slot] != NONE {
            slot = (slot + 1) & (self.table.len() - 1);
        }
        self.table[slot] = id;
    }

    /// Empties a slot and moves back what stands behind it and belongs further forward, so that no search ends too early.
    fn table_remove(&mut self, slot: usize) {
        self.users_count -= 1;
        let mask = self.table.len() - 1;
        let (mut hole, mut slot) = (slot, slot);
        loop {
            slot = (slot + 1) & mask;
            let id = self.table[slot];
            if id == NONE {
                break;
            }
            let home = self.home(self.entries[id as usize].hash);
            if (slot.wrapping_sub(home) & mask) >= (slot.wrapping_sub(hole) & mask) {
                self.table[hole] = id;
                hole = slot;
            }
        }
        self.table[hole] = NONE;
    }

    fn home(&self, tag: u32) -> usize {
        tag as usize & (self.table.len() - 1)
    }
}

/// Names of devices in units of 16 bytes, with a list of free places per size.
#[derive(Debug)]
struct NamePool {
    bytes: Vec<u8>,
    /// By units: offsets, in units, of free places.
    free: [Vec<u32>; UNITS_MAX + 1],
}

impl NamePool {
    fn insert(&mut self, user: &str, device: &str) -> u32 {
        let units = units(user.len(), device.len());
        let place = self.free[units].pop().unwrap_or_else(|| {
            let place = u32::try_from(self.bytes.len() / UNIT_BYTES).expect("64 GiB of names");
            self.bytes.resize(self.bytes.len() + units * UNIT_BYTES, 0);
            place
        });
        let at = place as usize * UNIT_BYTES;
        self.bytes[at] = u8::try_from(device.len()).expect("at most 64 bytes");
        self.bytes[at + 1..][..user.len()].copy_from_slice(user.as_bytes());
        self.bytes[at + 1 + user.len()..][..device.len()].copy_from_slice(device.as_bytes());
        place
    }

    fn remove(&mut self, place: u32, user_len: usize) {
        let device_len = usize::from(self.bytes[place as usize * UNIT_BYTES]);
        self.free[units(user_len, device_len)].push(place);
    }

    fn get(&self, place: u32, user_len: usize) -> (&str, &str) {
        let at = place as usize * UNIT_BYTES;
        let device_len = usize::from(self.bytes[at]);
        let (user, rest) = self.bytes[at + 1..].split_at(user_len);
        let text = |bytes| std::str::from_utf8(bytes).expect("copied from a str");
        (text(user), text(&rest[..device_len]))
    }
}

fn units(user_len: usize, device_len: usize) -> usize {
    (1 + user_len + device_len).div_ceil(UNIT_BYTES)
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is as good as the upper")]
fn tag(hash: u64) -> u32 {
    hash as u32
}

const NONE: u32 = u32::MAX;
const TABLE_SLOTS_MIN: usize = 16;
const UNIT_BYTES: usize = 16;
const UNITS_MAX: usize = (1 + 64 + 64_usize).div_ceil(UNIT_BYTES);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn session(number: u32) -> SessionRef {
        SessionRef { reactor: ReactorId(u16::try_from(number % 3).unwrap()), index: number, generation: number * 7 }
    }

    /// A hash of eight values, so that users share tags and homes, and chains of the table grow long.
    fn poor_hash(user: &str) -> u64 {
        user.bytes().map(u64::from).sum::<u64>() % 8
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        /// Agrees with a map from (user, device) to session, whatever comes and goes, under a hash that collides on purpose.
        #[test]
        fn agrees_with_a_slow_map(steps in prop::collection::vec((0..3_u8, 0..40_u32, 0..20_u32), 1..400)) {
            let mut roster = Roster::default();
            let mut model: BTreeMap<(String, String), (RosterId, SessionRef)> = BTreeMap::new();
            for (number, (action, user, device)) in (0..).zip(steps) {
                let (user, device) = (format!("user-{user}"), "d".repeat(1 + device as usize));
                let key = (user.clone(), device.clone());
                let known = model.get(&key).copied();
                if action < 2 {
                    let count = model.keys().filter(|(other, _)| *other == user).count();
                    let attached = roster.attach(poor_hash(&user), &user, &device, 1, session(number));
                    match attached {
                        Attached::Placed { roster, evicted } => {
                            prop_assert_eq!(evicted, known.map(|(_, session)| session));
                            prop_assert!(known.is_none_or(|(id, _)| id == roster));
                            prop_assert!(model.iter().all(|(other, (id, _))| *other == key || *id != roster));
                            model.insert(key, (roster, session(number)));
                        }
                        Attached::TooMany => prop_assert!(known.is_none() && count == DEVICES_PER_USER_MAX),
                    }
                } else if let Some((id, owner)) = known {
                    prop_assert!(!roster.leave(id, session(number)));
                    prop_assert!(roster.leave(id, owner));
                    prop_assert!(!roster.leave(id, owner));
                    model.remove(&key);
                }
                let mut online: Vec<_> = roster.devices(poor_hash(&user), &user).collect();
                online.sort_by_key(|id| id.0);
                let mut expected: Vec<_> =
                    model.iter().filter(|((other, _), _)| *other == user).map(|(_, (id, _))| *id).collect();
                expected.sort_by_key(|id| id.0);
                prop_assert_eq!(online, expected);
            }
            for ((user, device), (id, owner)) in &model {
                prop_assert_eq!((roster.user(*id), roster.device(*id)), (user.as_str(), device.as_str()));
                prop_assert_eq!(roster.session(*id), Some(*owner));
            }
            prop_assert_eq!(roster.devices_count(), model.len());
            let users = model.keys().map(|(user, _)| user).collect::<std::collections::BTreeSet<_>>().len();
            prop_assert_eq!(roster.users_count(), users);
        }
    }

    /// Ten thousand devices come and go and come back: slots, names and table are used again, nothing grows.
    #[test]
    fn memory_is_used_again() {
        let mut roster = Roster::default();
        let mut sizes = Vec::new();
        for _ in 0..3 {
            let ids: Vec<_> = (0..10_000_u32)
                .map(|number| {
                    let user = format!("user-{number}");
                    match roster.attach(u64::from(number) * 0x9e37_79b9, &user, "web", 1, session(number)) {
                        Attached::Placed { roster, .. } => (roster, session(number)),
                        Attached::TooMany => panic!("one device each"),
                    }
                })
                .collect();
            sizes.push((roster.entries.len(), roster.table.len(), roster.names.bytes.len()));
            assert!(ids.into_iter().all(|(id, session)| roster.leave(id, session)));
        }
        assert_eq!(sizes, [(10_000, 16_384, 160_000); 3]);
        assert_eq!((roster.devices_count(), roster.users_count()), (0, 0));
    }
}
