//! From committed messages to one mail per core: members -> roster -> targets.
//!
//! ```text
//! core 0   events   Sent a │ Deliver 1 ─┐ │ Deliver 2 ─┐ │ Sent b ...       in commit order
//!          targets  [s4 s9 s9'] ◄───────┘◄─────────────┘                  one range, shared by messages of one sender
//! ```
//!
//! Events of one core stand in one list in commit order, results of senders among deliveries: what a client sees of a conversation is
//! in seq order because nothing ever sorts it again. A conversation is resolved once per group, and its targets are written once per
//! sending session, however many of its messages arrive together.

use std::collections::HashMap;

use super::roster::Roster;
use crate::clock::Moment;
use crate::ids::{ReactorId, RosterId, SessionRef};
use crate::mail::{Delivery, Event, Group, Target};
use crate::mutant::{self, Mutant};
use crate::wire::message::{Body, Text};

/// The open group: what it means to each core so far.
#[derive(Debug)]
pub struct Fanout {
    cores: Vec<Core>,
    resolved: HashMap<[u8; 16], Resolved>,
    /// Receivers of all resolved conversations, one conversation after the other, by core.
    receivers: Vec<Receiver>,
    /// Ranges of targets of all resolved conversations.
    ranges: Vec<Range>,
    /// The roster for which `resolved` holds.
    roster_version: u64,
    deliveries_count: usize,
}

#[derive(Debug, Default)]
struct Core {
    events: Vec<Event>,
    targets: Vec<Target>,
    bytes: usize,
    /// Where the targets of the event being told begin.
    first: u32,
}

#[derive(Clone, Copy, Debug)]
struct Receiver {
    session: SessionRef,
    /// First device of the user: tells users apart.
    user: RosterId,
}

#[derive(Clone, Debug)]
struct Resolved {
    receivers: std::ops::Range<usize>,
    /// Whose targets stand in `ranges`.
    sender: Option<SessionRef>,
    ranges: std::ops::Range<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    core: u16,
    first: u32,
    count: u32,
}

/// Who sends: excluded from the receivers; other devices of the user are marked OWN.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Keyed hash of the user.
    pub hash: u64,
    /// User id.
    pub user: &'a str,
    /// The sending session.
    pub session: SessionRef,
}

impl Fanout {
    /// An empty group for `cores` reactors.
    #[must_use]
    pub fn new(cores: usize) -> Self {
        Self {
            cores: (0..cores).map(|_| Core::default()).collect(),
            resolved: HashMap::new(),
            receivers: Vec::new(),
            ranges: Vec::new(),
            roster_version: 0,
            deliveries_count: 0,
        }
    }

    /// Adds an event for one core.
    pub fn push(&mut self, reactor: ReactorId, event: Event) {
        let core = &mut self.cores[usize::from(reactor.0)];
        core.bytes += EVENT_BYTES;
        core.events.push(event);
    }

    /// Adds a message for every device of `members` but the sending one. Returns how many receive it.
    ///
    /// `conv` is the keyed hash of the conversation; the members, each with the keyed hash of the user, are asked only the first time
    /// in a group. Call [`Fanout::forget`] when they change.
    pub fn deliver<'m>(
        &mut self,
        roster: &Roster,
        conv: [u8; 16],
        members: impl Iterator<Item = (u64, &'m str)>,
        source: Source<'_>,
        message: &Delivery,
    ) -> usize {
        if self.roster_version != roster.version() && !mutant::on(Mutant::RouteRemembered) {
            self.resolved.clear();
            self.roster_version = roster.version();
        }
        let known = self.resolved.get(&conv).cloned();
        let mut resolved = known.unwrap_or_else(|| self.resolve(roster, members));
        if resolved.sender != Some(source.session) {
            resolved.ranges = self.write_targets(roster, &resolved, source);
            resolved.sender = Some(source.session);
            self.resolved.insert(conv, resolved.clone());
        }
        let mut count = 0;
        for range in &self.ranges[resolved.ranges] {
            let core = &mut self.cores[usize::from(range.core)];
            let event = Event::Deliver { message: message.clone(), first: range.first, count: range.count };
            core.events.push(event);
            core.bytes += EVENT_BYTES + message.payload.len();
            count += range.count as usize;
        }
        self.deliveries_count += count;
        count
    }

    /// Adds an event for `sessions`, made once per core that has one of them by `event` from the first target and the number of
    /// targets. Returns how many receive it.
    pub fn tell(&mut self, sessions: impl Iterator<Item = SessionRef>, event: impl Fn(u32, u32) -> Event) -> usize {
        for core in &mut self.cores {
            core.first = target_index(core.targets.len());
        }
        for session in sessions {
            self.cores[usize::from(session.reactor.0)].push_target(session, false);
        }
        let mut told = 0;
        for core in &mut self.cores {
            let count = target_index(core.targets.len()) - core.first;
            if count > 0 {
                core.events.push(event(core.first, count));
                core.bytes += EVENT_BYTES;
                told += count as usize;
            }
        }
        self.deliveries_count += told;
        told
    }

    /// Adds a CONV event for every device of `users`.
    pub fn conv_event<'m>(
        &mut self,
        roster: &Roster,
        users: impl Iterator<Item = (u64, &'m str)>,
        (conv, data): (&Text, &Body),
        event: u8,
        version: u64,
    ) {
        let devices = users.flat_map(|(hash, user)| roster.devices(hash, user));
        let sessions = devices.map(|id| roster.session(id).expect("the roster names devices that are there"));
        self.tell(sessions, |first, count| Event::Conv { conv: conv.clone(), event, version, data: data.clone(), first, count });
    }

    /// The members of a conversation have changed: it is resolved anew.
    pub fn forget(&mut self, conv: [u8; 16]) {
        self.resolved.remove(&conv);
    }

    /// Deliveries of the open group.
    #[must_use]
    pub fn deliveries_count(&self) -> usize {
        self.deliveries_count
    }

    /// Ends the group: what it means to each core that it means anything to, with its size in bytes, roughly. `spare` gives empty
    /// groups, in whose memory the next ones are gathered.
    pub fn take(
        &mut self,
        number: u64,
        committed: Option<Moment>,
        mut spare: impl FnMut() -> Group,
    ) -> impl Iterator<Item = (ReactorId, Group, usize)> {
        self.resolved.clear();
        self.receivers.clear();
        self.ranges.clear();
        self.deliveries_count = 0;
        (0..).zip(&mut self.cores).filter(|(_, core)| !core.events.is_empty()).map(move |(index, core)| {
            let Group { events, targets, .. } = spare();
            assert!(events.is_empty() && targets.is_empty());
            let next = Core { events, targets, bytes: 0, first: 0 };
            let Core { events, targets, bytes, .. } = std::mem::replace(core, next);
            (ReactorId(index), Group { number, committed, events, targets }, bytes)
        })
    }

    fn resolve<'m>(&mut self, roster: &Roster, members: impl Iterator<Item = (u64, &'m str)>) -> Resolved {
        let start = self.receivers.len();
        for (hash, user) in members {
            let mut devices = roster.devices(hash, user).peekable();
            let Some(&first) = devices.peek() else { continue };
            self.receivers.extend(devices.map(|id| Receiver {
                session: roster.session(id).expect("the roster names devices that are there"),
                user: first,
            }));
        }
        self.receivers[start..].sort_unstable_by_key(|receiver| (receiver.session.reactor, receiver.session.index));
        Resolved { receivers: start..self.receivers.len(), sender: None, ranges: 0..0 }
    }

    fn write_targets(&mut self, roster: &Roster, resolved: &Resolved, source: Source<'_>) -> std::ops::Range<usize> {
        let own = roster.devices(source.hash, source.user).next();
        let start = self.ranges.len();
        for receiver in &self.receivers[resolved.receivers.clone()] {
            if receiver.session == source.session || (mutant::on(Mutant::OwnDevicesForgotten) && Some(receiver.user) == own) {
                continue;
            }
            let index = receiver.session.reactor.0;
            let core = &mut self.cores[usize::from(index)];
            match self.ranges[start..].last_mut() {
                Some(range) if range.core == index => range.count += 1,
                _ => self.ranges.push(Range { core: index, first: target_index(core.targets.len()), count: 1 }),
            }
            core.push_target(receiver.session, Some(receiver.user) == own);
        }
        start..self.ranges.len()
    }
}

impl Core {
    fn push_target(&mut self, session: SessionRef, own: bool) {
        self.targets.push(Target { index: session.index, generation: session.generation, own });
        self.bytes += size_of::<Target>();
    }
}

fn target_index(index: usize) -> u32 {
    u32::try_from(index).expect("GROUP_DELIVERIES_MAX bounds the targets")
}

/// An event in its list, with what it holds by count.
const EVENT_BYTES: usize = size_of::<Event>();

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::roster::Attached;
    use super::*;
    use crate::ids::{Cmid, Mid};

    const CORES: u16 = 3;
    const USERS: [&str; 5] = ["al", "bo", "cy", "di", "ed"];

    fn delivery(seq: u64) -> Delivery {
        Delivery {
            seq,
            mid: Mid(seq),
            flags: 0,
            kind: 0,
            exp_s: 0,
            cmid: Cmid([1; 16]),
            trace: None,
            conv: Text::from("g:x"),
            from: Text::from("al"),
            payload: Body::new(),
        }
    }

    fn hash(user: &str) -> u64 {
        u64::from(user.as_bytes()[0])
    }

    /// What each session sees, in order: (number of the message, OWN) or the end of a SENT.
    type Seen = BTreeMap<(u16, u32), Vec<(u64, bool)>>;

    #[derive(Clone, Debug)]
    enum Step {
        Attach(usize, u8, u16),
        Leave(usize),
        Send(usize, usize),
        Member(usize, usize),
        Take,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => (0..USERS.len(), 0..3_u8, 0..CORES).prop_map(|(user, device, core)| Step::Attach(user, device, core)),
            1 => (0..20_usize).prop_map(Step::Leave),
            6 => (0..20_usize, 0..3_usize).prop_map(|(sender, conv)| Step::Send(sender, conv)),
            1 => (0..3_usize, 0..USERS.len()).prop_map(|(conv, user)| Step::Member(conv, user)),
            1 => Just(Step::Take),
        ]
    }

    fn collect(fanout: &mut Fanout, seen: &mut Seen) {
        for (reactor, group, _) in fanout.take(1, None, Group::default) {
            for event in &group.events {
                match event {
                    Event::Deliver { message, first, count } => {
                        for target in &group.targets[*first as usize..(*first + *count) as usize] {
                            seen.entry((reactor.0, target.index)).or_default().push((message.seq, target.own));
                        }
                    }
                    Event::Sent { session, seq, .. } => {
                        seen.entry((reactor.0, session.index)).or_default().push((*seq, true));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        /// Agrees with asking, for each message by itself, every member for every device: the same sessions see the same messages in
        /// the same order with the same OWN, while devices come, move and go and members change within a group.
        #[test]
        fn agrees_with_asking_everyone(steps in prop::collection::vec(step(), 1..150)) {
            let mut roster = Roster::default();
            let mut fanout = Fanout::new(usize::from(CORES));
            let mut online: Vec<(usize, u8, RosterId, SessionRef)> = Vec::new();
            let mut members: [Vec<usize>; 3] = [vec![0, 1], vec![0, 1, 2, 3], vec![]];
            let (mut seen, mut expected) = (Seen::new(), Seen::new());
            for (number, step) in (1..).zip(steps) {
                match step {
                    Step::Attach(user, device, core) => {
                        let session =
                            SessionRef { reactor: ReactorId(core), index: u32::try_from(number).unwrap(), generation: 1 };
                        let name = format!("d{device}");
                        let attached = roster.attach(hash(USERS[user]), USERS[user], &name, 0, session);
                        let Attached::Placed { roster: id, .. } = attached else { panic!("three devices at most") };
                        online.retain(|(_, _, other, _)| *other != id);
                        online.push((user, device, id, session));
                    }
                    Step::Leave(which) if which < online.len() => {
                        let (_, _, id, session) = online.remove(which);
                        prop_assert!(roster.leave(id, session));
                    }
                    Step::Send(which, conv) if which < online.len() => {
                        let (user, _, _, session) = online[which];
                        let name = USERS[user];
                        let event = Event::Sent {
                            cmid: Cmid::default(), costs_nothing: false,
                            session, rid: 1, level: 2, flags: 0, seq: number, mid: Mid(1), received: Moment::default(),
                        };
                        fanout.push(session.reactor, event);
                        expected.entry((session.reactor.0, session.index)).or_default().push((number, true));
                        let key = [u8::try_from(conv).unwrap(); 16];
                        let names = members[conv].iter().map(|&user| (hash(USERS[user]), USERS[user]));
                        let source = Source { hash: hash(name), user: name, session };
                        let count = fanout.deliver(&roster, key, names, source, &delivery(number));
                        let receivers = online.iter().filter(|(user, _, _, other)| members[conv].contains(user) && *other != session);
                        prop_assert_eq!(count, receivers.clone().count());
                        for (other, _, _, receiver) in receivers {
                            let list = expected.entry((receiver.reactor.0, receiver.index)).or_default();
                            list.push((number, *other == user));
                        }
                    }
                    Step::Member(conv, user) => {
                        match members[conv].iter().position(|&member| member == user) {
                            Some(index) => drop(members[conv].remove(index)),
                            None => members[conv].push(user),
                        }
                        fanout.forget([u8::try_from(conv).unwrap(); 16]);
                    }
                    Step::Take => collect(&mut fanout, &mut seen),
                    Step::Leave(_) | Step::Send(..) => {}
                }
            }
            collect(&mut fanout, &mut seen);
            prop_assert_eq!(seen, expected);
        }
    }

    /// Sixteen messages of one session to one conversation share one range of targets per core.
    #[test]
    fn targets_are_written_once_per_sender() {
        let mut roster = Roster::default();
        let session = |index| SessionRef { reactor: ReactorId(0), index, generation: 1 };
        for (index, user) in (0..).zip(USERS) {
            roster.attach(hash(user), user, "web", 0, session(index));
        }
        let mut fanout = Fanout::new(1);
        let source = Source { hash: hash("al"), user: "al", session: session(0) };
        for seq in 1..=16 {
            let members = USERS.iter().map(|user| (hash(user), *user));
            assert_eq!(fanout.deliver(&roster, [1; 16], members, source, &delivery(seq)), 4);
        }
        assert_eq!(fanout.deliveries_count(), 64);
        let (_, group, _) = fanout.take(1, None, Group::default).next().unwrap();
        assert_eq!((group.events.len(), group.targets.len()), (16, 4));
    }

    /// A CONV event reaches every device of the users named, and cores without one get nothing.
    #[test]
    fn conv_event_reaches_its_users_only() {
        let mut roster = Roster::default();
        let session = |core, index| SessionRef { reactor: ReactorId(core), index, generation: 1 };
        roster.attach(hash("al"), "al", "web", 0, session(0, 1));
        roster.attach(hash("al"), "al", "app", 0, session(2, 2));
        roster.attach(hash("bo"), "bo", "web", 0, session(1, 3));
        let mut fanout = Fanout::new(3);
        let told = (&Text::from("g:x"), &Body::new());
        fanout.conv_event(&roster, [(hash("al"), "al"), (hash("cy"), "cy")].into_iter(), told, 1, 4);
        let groups: Vec<_> = fanout.take(1, None, Group::default).map(|(reactor, group, _)| (reactor.0, group)).collect();
        assert_eq!(groups.iter().map(|(core, _)| *core).collect::<Vec<_>>(), [0, 2]);
        for (_, group) in groups {
            assert!(matches!(group.events[..], [Event::Conv { event: 1, version: 4, first: 0, count: 1, .. }]));
        }
    }
}
