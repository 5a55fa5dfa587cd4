//! Who watches whom, and what was last said about whom.                                                                        [hashbrown]
//!
//! ```text
//!  roster: first device came, last device went ──► changed() ──► told 5 s later, if it is still so ──► watchers
//!  WATCH ──► the set of the device is replaced ──► the present state of each
//! ```
//!
//! A user is online while a device of the user is connected. A change is told only after it has lasted [`PRESENCE_DEBOUNCE_NS`]: who
//! reconnects in between does not blink. Telling is work for later: it is done in steps, and waits while the store is busy. Sets end
//! with the connection that asked for them, and by their time to live. Nothing is kept about a user nobody watches but when the last
//! device went.
//!
//! What is told may be dropped on the way, for want of room. Its core says so once there is room again ([`Presence::lost`]), and the
//! watcher is told its whole set anew: what it missed is in it, and nobody has to remember what that was.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use hashbrown::HashTable;

use crate::ids::{RosterId, SessionRef};
use crate::limits::{PRESENCE_DEBOUNCE_NS, PRESENCE_SEEN_MAX, PRESENCE_SUBSCRIPTIONS_MAX};
use crate::mutant::{self, Mutant};
use crate::wire::message::Text;

/// All sets of all watchers.
#[derive(Debug, Default)]
pub struct Presence {
    sets: HashMap<RosterId, Set>,
    watched: HashMap<u64, Watched>,
    subscriptions_count: usize,
    /// Changes that have not lasted long enough, by the time at which they will have.
    unsettled: VecDeque<(u64, u64)>,
    /// Users whose state is being told, and the last watcher told.
    telling: VecDeque<(u64, Option<u32>)>,
    /// Watchers to whom something was lost: they are told everything again.
    again: BTreeSet<u32>,
    /// The sets in the order in which they end.
    ends: BTreeSet<(u64, u32)>,
    seen: LastSeen,
}

#[derive(Debug)]
struct Set {
    session: SessionRef,
    turn: u64,
    ends_ns: u64,
    users: Vec<u64>,
    /// Those it may not watch, who look offline for good.
    strangers: Vec<Text>,
}

#[derive(Debug)]
struct Watched {
    name: Text,
    /// With what each believes: a telling reaches those whom it tells something new.
    watchers: BTreeMap<u32, bool>,
    is_online: bool,
    /// What the watchers believe, or are being told.
    told: bool,
    is_telling: bool,
    /// When the change under way will have lasted long enough; 0: none is.
    due_ns: u64,
}

/// What a watcher is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// User.
    pub user: Text,
    /// Whether a device of the user is connected.
    pub is_online: bool,
    /// When the user was last online, Unix milliseconds; 0: not known.
    pub seen_ms: u64,
}

/// One user of a WATCH.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Keyed hash of the user.
    pub user: u64,
    /// User id.
    pub name: Text,
    /// Whether a device of the user is connected now.
    pub is_online: bool,
}

impl Presence {
    /// Replaces the set of a device. `turn` orders the WATCHes of one device: an older one than the set in force changes nothing. Nothing
    /// is told by it: see [`Presence::tell_all`].
    ///
    /// # Errors
    /// No room for so many subscriptions; the old set is gone then.
    pub fn watch(
        &mut self,
        watcher: RosterId,
        session: SessionRef,
        turn: u64,
        ends_ns: u64,
        wishes: &[Wish],
        strangers: Vec<Text>,
    ) -> Result<(), TooMany> {
        if self.sets.get(&watcher).is_some_and(|set| set.session == session && set.turn > turn) {
            return Ok(());
        }
        self.forget(watcher);
        if self.subscriptions_count + wishes.len() + strangers.len() > PRESENCE_SUBSCRIPTIONS_MAX {
            return Err(TooMany);
        }
        for wish in wishes {
            let watched = self.watched.entry(wish.user).or_insert_with(|| Watched {
                name: wish.name.clone(),
                watchers: BTreeMap::new(),
                is_online: wish.is_online,
                told: wish.is_online,
                is_telling: false,
                due_ns: 0,
            });
            watched.watchers.insert(watcher.0, watched.told);
        }
        self.subscriptions_count += wishes.len() + strangers.len();
        // An empty set stands too: it outdates an answer to an earlier WATCH that is still on its way.
        let users = wishes.iter().map(|wish| wish.user).collect();
        self.sets.insert(watcher, Set { session, turn, ends_ns, users, strangers });
        self.ends.insert((ends_ns, watcher.0));
        Ok(())
    }

    /// The connection of a watcher is gone, or its device belongs to another.
    pub fn forget(&mut self, watcher: RosterId) {
        let Some(set) = self.sets.remove(&watcher) else { return };
        self.ends.remove(&(set.ends_ns, watcher.0));
        self.again.remove(&watcher.0);
        self.subscriptions_count -= set.count();
        for user in set.users {
            let watched = self.watched.get_mut(&user).expect("a set names users that are watched");
            watched.watchers.remove(&watcher.0);
            if watched.watchers.is_empty() {
                self.watched.remove(&user);
            }
        }
    }

    /// Whether anybody watches this user.
    #[must_use]
    pub fn is_watched(&self, user: u64) -> bool {
        self.watched.contains_key(&user)
    }

    /// The devices of a user came or went.
    pub fn changed(&mut self, user: u64, is_online: bool, now_ns: u64) {
        let Some(watched) = self.watched.get_mut(&user).filter(|watched| watched.is_online != is_online) else { return };
        watched.is_online = is_online;
        // Back before it was told: there is nothing to say.
        watched.due_ns = if watched.told == is_online { 0 } else { now_ns + PRESENCE_DEBOUNCE_NS };
        if watched.due_ns > 0 {
            self.unsettled.push_back((watched.due_ns, user));
        }
    }

    /// The last device of a user went.
    pub fn gone(&mut self, user: u64, now_ms: u64) {
        self.seen.insert(user, now_ms, PRESENCE_SEEN_MAX);
    }

    /// Tells a watcher how everyone of its set is, whatever it believes. Returns how many that are.
    pub fn tell_all(
        &mut self,
        watcher: RosterId,
        now_ms: u64,
        to: &mut impl FnMut(&Told, &mut dyn Iterator<Item = SessionRef>),
    ) -> usize {
        let Some(set) = self.sets.get(&watcher) else { return 0 };
        for user in &set.users {
            let watched = self.watched.get_mut(user).expect("a set names users that are watched");
            watched.watchers.insert(watcher.0, watched.told);
            to(&watched.state(self.seen.get(*user), now_ms), &mut std::iter::once(set.session));
        }
        for user in &set.strangers {
            to(&Told { user: user.clone(), is_online: false, seen_ms: 0 }, &mut std::iter::once(set.session));
        }
        set.count()
    }

    /// Something told to a watcher was dropped on the way, and there is room again.
    pub fn lost(&mut self, watcher: RosterId) {
        if self.sets.contains_key(&watcher) && !mutant::on(Mutant::PresenceNotToldAgain) {
            self.again.insert(watcher.0);
        }
    }

    /// Tells what has settled, to at most about `budget` watchers. Returns whether something is left to be told now.
    pub fn tell(
        &mut self,
        now_ns: u64,
        now_ms: u64,
        budget: usize,
        mut to: impl FnMut(&Told, &mut dyn Iterator<Item = SessionRef>),
    ) -> bool {
        while let Some(&(due_ns, user)) = self.unsettled.front()
            && due_ns <= now_ns
        {
            self.unsettled.pop_front();
            let Some(watched) = self.watched.get_mut(&user).filter(|watched| watched.due_ns == due_ns) else { continue };
            watched.due_ns = 0;
            watched.told = watched.is_online;
            // Whoever is being told half way is told again from the start.
            if !std::mem::replace(&mut watched.is_telling, true) {
                self.telling.push_back((user, None));
            } else if let Some(half) = self.telling.iter_mut().find(|(other, _)| *other == user) {
                half.1 = None;
            }
        }
        let mut left = budget;
        while left > 0
            && let Some((user, after)) = self.telling.pop_front()
        {
            let Some(watched) = self.watched.get_mut(&user) else { continue };
            let told = watched.state(self.seen.get(user), now_ms);
            let from = after.map_or(0, |last| last + 1);
            let mut last = None;
            let mut step = Vec::new();
            for (&id, believes) in watched.watchers.range_mut(from..).take(left) {
                last = Some(id);
                if std::mem::replace(believes, told.is_online) != told.is_online {
                    step.extend(self.sets.get(&RosterId(id)).map(|set| set.session));
                }
                left -= 1;
            }
            if mutant::on(Mutant::PresenceNotTold) && told.is_online {
                step.clear();
            }
            if !step.is_empty() {
                to(&told, &mut step.into_iter());
            }
            match last {
                Some(last) if watched.watchers.range(last + 1..).next().is_some() => self.telling.push_front((user, Some(last))),
                _ => watched.is_telling = false,
            }
        }
        while left > 0
            && let Some(watcher) = self.again.pop_first()
        {
            left = left.saturating_sub(self.tell_all(RosterId(watcher), now_ms, &mut to));
        }
        self.is_telling()
    }

    /// Ends the sets whose time is over.
    pub fn expire(&mut self, now_ns: u64) {
        while let Some(&(ends_ns, watcher)) = self.ends.first()
            && ends_ns <= now_ns
        {
            self.forget(RosterId(watcher));
        }
    }

    /// When [`Presence::tell`] is to be asked again.
    #[must_use]
    pub fn next_ns(&self) -> Option<u64> {
        if self.is_telling() { Some(0) } else { self.unsettled.front().map(|&(due_ns, _)| due_ns) }
    }

    fn is_telling(&self) -> bool {
        !self.telling.is_empty() || !self.again.is_empty()
    }

    /// Watchers and those they watch, pair by pair.
    #[must_use]
    pub fn subscriptions_count(&self) -> usize {
        self.subscriptions_count
    }
}

/// When the last device of a user went, of so many users. Bytes per user: 16, and 5.7 to 11.4 of the index.
#[derive(Debug, Default)]
struct LastSeen {
    /// User and Unix milliseconds. Who went again has a later place too; only the one the index names counts.
    places: Vec<(u64, u64)>,
    /// The oldest place, once all are taken.
    oldest: usize,
    /// Of each user the latest place. The keyed hash of a user is its own hash.
    index: HashTable<u32>,
}

impl LastSeen {
    fn insert(&mut self, user: u64, at_ms: u64, count_max: usize) {
        // Reserved once: untouched pages are not resident, and nothing doubles.
        self.places.reserve_exact(count_max - self.places.len());
        let place = if self.places.len() < count_max {
            self.places.push((user, at_ms));
            self.places.len() - 1
        } else {
            let place = self.oldest;
            self.oldest = (place + 1) % count_max;
            let (forgotten, _) = std::mem::replace(&mut self.places[place], (user, at_ms));
            if let Ok(entry) = self.index.find_entry(forgotten, |&other| other as usize == place) {
                entry.remove();
            }
            place
        };
        let places = &self.places;
        let number = u32::try_from(place).expect("the bound is less");
        let user_at = |&place: &u32| places[place as usize].0;
        self.index.entry(user, |place| user_at(place) == user, user_at).and_modify(|latest| *latest = number).or_insert(number);
    }

    fn get(&self, user: u64) -> Option<u64> {
        let place = self.index.find(user, |&place| self.places[place as usize].0 == user)?;
        Some(self.places[*place as usize].1)
    }
}

impl Set {
    fn count(&self) -> usize {
        self.users.len() + self.strangers.len()
    }
}

impl Watched {
    /// What watchers are told who ask. `seen_ms` is when the last device of the user went, if that is known.
    fn state(&self, seen_ms: Option<u64>, now_ms: u64) -> Told {
        let seen_ms = if self.told { now_ms } else { seen_ms.unwrap_or(0) };
        Told { user: self.name.clone(), is_online: self.told, seen_ms }
    }
}

/// No room for so many subscriptions: ERROR 4004.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooMany;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::ReactorId;

    fn session(index: u32) -> SessionRef {
        SessionRef { reactor: ReactorId(0), index, generation: 1 }
    }

    fn wish(user: u64, is_online: bool) -> Wish {
        Wish { user, name: Text::from(format!("u{user}").as_str()), is_online }
    }

    fn number(told: &Told) -> u64 {
        told.user[1..].parse().unwrap()
    }

    const SECOND_NS: u64 = 1_000_000_000;
    /// A user whom nobody may watch.
    const STRANGER: u64 = 9;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever comes and goes, however much of the telling waits, and whatever of it is lost: a watcher is told only of changes,
        /// alternating, until something is lost; once all is told and every loss was reported, whoever has been stable for the debounce
        /// is believed right by everybody; who comes back sooner is never told of; sets end in time; and at the end nothing is kept.
        #[test]
        fn watchers_believe_what_lasts(
            steps in prop::collection::vec((0..6_u8, 0..3_u32, 0..3_u64, 0..3_000_u64, any::<bool>(), any::<bool>()), 1..120),
        ) {
            let mut presence = Presence::default();
            let mut online = [false; 3];
            let mut stable_since = [0_u64; 3];
            let mut beliefs: BTreeMap<(u32, u64), bool> = BTreeMap::new();
            let mut now_ns = SECOND_NS;
            let mut ends_ns: BTreeMap<u32, u64> = BTreeMap::new();
            // Watchers of whom a loss was ever seen or reported, and those of whom one is to be reported.
            let (mut losers, mut unreported) = (BTreeSet::new(), BTreeSet::new());
            for (turn, (action, watcher, user, pause_ms, drains, loses)) in (0..).zip(steps) {
                now_ns += pause_ms * 1_000_000;
                let id = RosterId(watcher);
                let mut told = Vec::new();
                let mut is_left = true;
                while is_left {
                    is_left = presence.tell(now_ns, 1, 1, |state, to| told.extend(to.map(|it| (it.index, state.clone()))));
                    if !drains {
                        break;
                    }
                }
                for (index, state) in told {
                    if loses && index == watcher {
                        losers.insert(index);
                        unreported.insert(index);
                        continue;
                    }
                    let former = beliefs.insert((index, number(&state)), state.is_online);
                    prop_assert!(losers.contains(&index) || former == Some(!state.is_online), "only changes are told");
                }
                for (&(index, user), &believed) in &beliefs {
                    let Some(&since) = stable_since.get(usize::try_from(user).unwrap()) else { continue };
                    let is_settled = !is_left && !unreported.contains(&index) && now_ns - since >= PRESENCE_DEBOUNCE_NS;
                    prop_assert!(!is_settled || believed == online[usize::try_from(user).unwrap()]);
                }
                presence.expire(now_ns);
                ends_ns.retain(|_, ends_ns| *ends_ns > now_ns);
                beliefs.retain(|(watcher, _), _| ends_ns.contains_key(watcher));
                prop_assert_eq!(presence.subscriptions_count(), 3 * ends_ns.len());
                match action {
                    0 | 4 => {
                        let ends = if action == 0 { u64::MAX } else { now_ns + 2 * SECOND_NS };
                        let users = [user, (user + 1) % 3];
                        let wishes = users.map(|user| wish(user, online[usize::try_from(user).unwrap()]));
                        let stranger = wish(STRANGER, false).name;
                        prop_assert_eq!(presence.watch(id, session(watcher), turn, ends, &wishes, vec![stranger]), Ok(()));
                        ends_ns.insert(watcher, ends);
                        beliefs.retain(|(other, _), _| *other != watcher);
                        unreported.remove(&watcher);
                        let told = presence.tell_all(id, 1, &mut |state, to| {
                            to.for_each(|it| assert_eq!(it.index, watcher));
                            if loses {
                                losers.insert(watcher);
                                unreported.insert(watcher);
                            } else {
                                beliefs.insert((watcher, number(state)), state.is_online);
                            }
                        });
                        prop_assert_eq!(told, 3);
                    }
                    1 => {
                        presence.forget(id);
                        ends_ns.remove(&watcher);
                        beliefs.retain(|(other, _), _| *other != watcher);
                    }
                    5 => {
                        presence.lost(id);
                        losers.insert(watcher);
                        unreported.remove(&watcher);
                    }
                    _ => {
                        let at = usize::try_from(user).unwrap();
                        online[at] = !online[at];
                        stable_since[at] = now_ns;
                        presence.changed(user, online[at], now_ns);
                    }
                }
            }
            unreported.iter().for_each(|watcher| presence.lost(RosterId(*watcher)));
            now_ns += PRESENCE_DEBOUNCE_NS;
            let mut is_left = true;
            while is_left {
                is_left = presence.tell(now_ns, 1, 1, |state, to| {
                    beliefs.extend(to.map(|it| ((it.index, number(state)), state.is_online)));
                });
            }
            for watcher in ends_ns.into_keys() {
                let right = |user: u64| online.get(usize::try_from(user).unwrap()).copied().unwrap_or(false);
                let of: Vec<_> = beliefs.range((watcher, 0)..=(watcher, STRANGER)).collect();
                prop_assert_eq!(of.len(), 3, "of everyone");
                prop_assert!(of.iter().all(|((_, user), believed)| **believed == right(*user)));
            }
            (0..3).for_each(|watcher| presence.forget(RosterId(watcher)));
            prop_assert!(presence.watched.is_empty() && presence.ends.is_empty() && presence.again.is_empty());
            prop_assert_eq!(presence.subscriptions_count(), 0);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        /// Of the last so many goings, each user's latest is known, and nothing else.
        #[test]
        fn the_last_goings_are_known(users in prop::collection::vec(0..9_u64, 0..60), count_max in 1..8_usize) {
            let mut seen = LastSeen::default();
            for (at, &user) in users.iter().enumerate() {
                seen.insert(user, at as u64, count_max);
                let goings = &users[..=at];
                for user in 0..9 {
                    let latest = goings.iter().rposition(|other| *other == user).filter(|latest| goings.len() - latest <= count_max);
                    prop_assert_eq!(seen.get(user), latest.map(|at| at as u64));
                }
            }
            prop_assert!(seen.places.len() <= count_max && seen.index.len() <= count_max);
        }
    }

    /// A set ends by its time to live, an older WATCH changes nothing, and who went is remembered with the time.
    #[test]
    fn sets_end_and_turns_count() {
        let mut presence = Presence::default();
        let (id, one) = (RosterId(4), session(4));
        presence.watch(id, one, 2, 10, &[wish(7, true)], Vec::new()).unwrap();
        presence.watch(id, one, 1, 10, &[wish(8, true)], Vec::new()).unwrap();
        assert!(presence.is_watched(7) && !presence.is_watched(8));
        presence.changed(7, false, 3);
        presence.gone(7, 1_764_000_000_000);
        let mut told = Vec::new();
        presence.tell_all(id, 9, &mut |state, to| told.push((state.is_online, to.count())));
        assert_eq!(told, [(true, 1)], "not yet");
        let mut told = Vec::new();
        presence.tell(3 + PRESENCE_DEBOUNCE_NS, 9, 10, |state, to| told.push((state.clone(), to.count())));
        assert_eq!(told, [(Told { user: Text::from("u7"), is_online: false, seen_ms: 1_764_000_000_000 }, 1)]);
        presence.expire(9);
        assert_eq!(presence.subscriptions_count(), 1);
        presence.expire(10);
        assert_eq!((presence.subscriptions_count(), presence.is_watched(7)), (0, false));
        presence.watch(id, one, 3, 10, &[], Vec::new()).unwrap();
        assert_eq!(presence.subscriptions_count(), 0);
    }

    /// As many pairs are watched as a node may hold, strangers counted, and not one more (ERROR 4004). Who is refused has lost its old
    /// set; room comes back when a set is replaced, when its device goes, and when its time is over.
    #[test]
    fn pairs_are_bounded_and_come_back() {
        let mut presence = Presence::default();
        let watch = |presence: &mut Presence, watcher: u32, users: u64, strangers: usize, ends_ns: u64| {
            let wishes: Vec<_> = (0..users).map(|user| wish(user, true)).collect();
            let strangers = vec![Text::from("stranger"); strangers];
            presence.watch(RosterId(watcher), session(watcher), 1, ends_ns, &wishes, strangers)
        };
        assert_eq!(watch(&mut presence, 1, 2, PRESENCE_SUBSCRIPTIONS_MAX - 5, u64::MAX), Ok(()));
        assert_eq!(watch(&mut presence, 2, 2, 1, 10), Ok(()));
        assert_eq!(presence.subscriptions_count(), PRESENCE_SUBSCRIPTIONS_MAX);
        for (users, strangers) in [(1, 0), (0, 1)] {
            assert_eq!(watch(&mut presence, 3, users, strangers, u64::MAX), Err(TooMany));
        }
        assert_eq!(presence.subscriptions_count(), PRESENCE_SUBSCRIPTIONS_MAX, "a refusal takes no room");
        // Its own old set makes room for the new one, if that is no larger.
        assert_eq!(watch(&mut presence, 2, 1, 2, 10), Ok(()));
        assert_eq!(watch(&mut presence, 2, 1, 3, 10), Err(TooMany));
        assert_eq!(presence.subscriptions_count(), PRESENCE_SUBSCRIPTIONS_MAX - 3);
        assert_eq!(watch(&mut presence, 2, 3, 0, 10), Ok(()));
        presence.expire(10);
        assert_eq!(presence.subscriptions_count(), PRESENCE_SUBSCRIPTIONS_MAX - 3);
        presence.forget(RosterId(1));
        assert_eq!(presence.subscriptions_count(), 0);
        assert_eq!(watch(&mut presence, 3, 2, PRESENCE_SUBSCRIPTIONS_MAX - 2, u64::MAX), Ok(()));
    }
}
