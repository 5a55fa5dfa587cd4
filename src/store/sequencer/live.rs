//! What is said at most once and kept nowhere: receipts, presence, signals. It takes the same way as messages, without the log.

use std::collections::HashMap;

use super::{Conv, Event, Moment, Policy, Ports, Sequencer};
use crate::ids::{Cmid, ConversationKind, RosterId, SessionRef, conversation_kind};
use crate::limits::{PRESENCE_TOLD_PER_TURN_MAX, WATCH_TTL_S_MAX};
use crate::mail::{SignalMail, WatchMail};
use crate::route::presence::{Presence, Told, TooMany, Wish};
use crate::route::receipts::{Change, Key, Receipts};
use crate::store::apply::{Conversation, Member};
use crate::store::disk::Disk;
use crate::store::job::{Job, JobFault};
use crate::store::schema::User;
use crate::wire::envelope::{ErrorCode, caps};
use crate::wire::message::Text;

/// Receipts, presence, and who asked for them.
#[derive(Debug, Default)]
pub(super) struct Live {
    receipts: Receipts,
    /// Users of the changes that `receipts` holds back: members are found by name.
    pub(super) names: HashMap<Key, Text>,
    pub(super) presence: Presence,
    /// Devices that want receipts: while there are none, nothing is worked out.
    receipt_devices: usize,
    /// Counts WATCHes, so that answers of readers do not overtake.
    watch_turn: u64,
}

impl Live {
    /// When there is something to be told.
    pub(super) fn next_ns(&self) -> Option<u64> {
        [self.receipts.next_ns(), self.presence.next_ns()].into_iter().flatten().min()
    }
}

impl<D: Disk> Sequencer<D> {
    /// Tells what is due, in a step of bounded size; what waits for load to pass waits while the store is busy. Returns whether more
    /// is due already.
    pub(super) fn tell_live(&mut self, is_busy: bool, now: Moment, ports: &mut impl Ports) -> bool {
        while self.has_room()
            && let Some((key, change)) = self.live.receipts.due(now.mono_ns)
        {
            // Each that is held back has one.
            if let Some(name) = self.live.names.remove(&key) {
                self.tell_receipt(key, &name, change, ports);
            }
        }
        self.live.presence.expire(now.mono_ns);
        self.counters.subscriptions_open = self.live.presence.subscriptions_count() as u64;
        if is_busy {
            return false;
        }
        let Self { live, fanout, counters, .. } = self;
        live.presence.tell(now.mono_ns, now.unix_ms, PRESENCE_TOLD_PER_TURN_MAX, |told, to| {
            counters.presences_count += fanout.tell(to, presence_event(told)) as u64;
        })
    }

    /// A user has read further.
    pub(super) fn receipt(
        &mut self,
        conv: Conv,
        (user, name): (User, &Text),
        by: SessionRef,
        now: Moment,
        ports: &mut impl Ports,
    ) {
        if self.live.receipt_devices == 0 {
            return;
        }
        let key = Key { conv: conv.0, user: user.0 };
        match self.live.receipts.note(key, by, now.mono_ns) {
            Some(true) => self.tell_receipt(key, name, Change { by: Some(by) }, ports),
            Some(false) => {
                // A copy: it outlives the chunk that the name stands in.
                self.live.names.entry(key).or_insert_with(|| Text::copy_from(name));
            }
            None => self.counters.receipts_dropped_count += 1,
        }
    }

    /// A device of a user holds more.
    pub(super) fn received(
        &mut self,
        conv: Conv,
        (user, name): (User, &Text),
        (session, seq): (SessionRef, u64),
        now: Moment,
        ports: &mut impl Ports,
    ) {
        if self.live.receipt_devices > 0 {
            self.state.merge_received(conv, user, seq);
            self.receipt(conv, (user, name), session, now, ports);
        }
    }

    /// The positions a receipt has waited for are in memory.
    pub(super) fn receipt_answered(&mut self, conv: Conv, (user, name): (User, &Text), ports: &mut impl Ports) {
        let key = Key { conv: conv.0, user: user.0 };
        if let Some(change) = self.live.receipts.answered(key) {
            self.live.names.remove(&key);
            self.tell_receipt(key, name, change, ports);
        }
    }

    fn tell_receipt(&mut self, key: Key, name: &Text, change: Change, ports: &mut impl Ports) {
        let (conv, user) = (Conv(key.conv), User(key.user));
        // A conversation forgotten meanwhile is nobody's concern just now: at most once.
        let Some(conversation) = self.state.conversation(conv) else { return };
        let Some((member, hearers)) = self.settings.policy.hearers(conversation, name) else { return };
        let roster = &self.roster;
        let devices = hearers.iter().flat_map(|member| roster.devices(member.user.0, &member.name));
        let sessions = devices
            .filter(|id| wants(roster.platform(*id), caps::RECEIPTS))
            .filter_map(|id| roster.session(id))
            .filter(|session| change.by != Some(*session));
        let mut sessions = sessions.peekable();
        if sessions.peek().is_none() {
            return;
        }
        let Some(positions) = self.state.positions(conv, user) else {
            let (id, name) = (conversation.id.clone(), member.name.clone());
            drop(sessions);
            return self.ask_positions(key, change, (id, name), ports);
        };
        let event = |first, count| Event::Receipt {
            conv: conversation.id.clone(),
            user: member.name.clone(),
            recv: positions.recv,
            read: positions.read,
            first,
            count,
        };
        debug_assert_eq!(user, member.user);
        self.counters.receipts_count += self.fanout.tell(sessions, event) as u64;
    }

    /// The last group, for a reader that waits until its rows are there: below level 2 it would wait for the next sync.
    fn synced_soon(&mut self) -> u64 {
        let last = self.log.last();
        self.must_sync |= last > self.log.synced();
        last
    }

    fn ask_positions(&mut self, key: Key, change: Change, (conv, user): (Text, Text), ports: &mut impl Ports) {
        let after = self.synced_soon();
        if ports.send_job(Job::Position { conv, user: user.clone(), after }) {
            self.live.receipts.wait(key, change);
            self.live.names.insert(key, user);
        } else {
            self.counters.receipts_dropped_count += 1;
        }
    }

    /// A device comes: what its former connection had asked for is over.
    pub(super) fn forget_device(&mut self, hash: u64, user: &str, device: &str) {
        let known = self.roster.devices(hash, user).find(|id| self.roster.device(*id) == device);
        if let Some(roster) = known {
            self.forget_wishes(roster);
        }
    }

    /// A device is in the roster.
    pub(super) fn arrived(&mut self, hash: u64, roster: RosterId, now: Moment) {
        self.live.receipt_devices += usize::from(wants(self.roster.platform(roster), caps::RECEIPTS));
        if self.live.presence.is_watched(hash) {
            self.live.presence.changed(hash, true, now.mono_ns);
        }
    }

    /// A session is over.
    pub(super) fn leave(&mut self, session: SessionRef, roster: RosterId, now: Moment) {
        if self.roster.session(roster) != Some(session) {
            return;
        }
        self.forget_wishes(roster);
        let (user, was_away) = (self.names.text(self.roster.user(roster)), is_away(self.roster.platform(roster)));
        assert!(self.roster.leave(roster, session), "asked above");
        self.holds.forget(session);
        self.fanout.push(session.reactor, Event::Left { session });
        if !was_away {
            self.departed(&user, now);
        }
    }

    /// A session waits to be resumed.
    pub(super) fn set_away(&mut self, roster: RosterId, now: Moment) {
        let traits = self.roster.platform(roster);
        if is_away(traits) {
            return;
        }
        self.forget_wishes(roster);
        self.roster.set_platform(roster, traits & !(caps_bits(caps::RECEIPTS)) | AWAY);
        let user = self.names.text(self.roster.user(roster));
        self.departed(&user, now);
    }

    fn forget_wishes(&mut self, roster: RosterId) {
        self.live.presence.forget(roster);
        self.live.receipt_devices -= usize::from(wants(self.roster.platform(roster), caps::RECEIPTS));
    }

    /// One connected device of a user less.
    fn departed(&mut self, user: &Text, now: Moment) {
        let hash = self.state.hashes().user(user).0;
        if !self.is_online(hash, user) {
            self.live.presence.gone(hash, now.unix_ms);
            self.live.presence.changed(hash, false, now.mono_ns);
        }
    }

    fn is_online(&self, hash: u64, user: &str) -> bool {
        self.roster.devices(hash, user).any(|id| !is_away(self.roster.platform(id)))
    }

    /// WATCH: who may be watched is looked up first, unless everybody may.
    pub(super) fn watch(&mut self, mail: WatchMail, now: Moment, ports: &mut impl Ports) {
        let from = mail.from;
        let Some(user) = self.user(from) else { return };
        self.live.watch_turn += 1;
        let turn = self.live.watch_turn;
        if self.settings.policy.presence_for_all || mail.users.is_empty() {
            let all = vec![true; mail.users.len()];
            return self.watch_answered(&mail, turn, Ok(all), now);
        }
        let after = self.synced_soon();
        if !ports.send_job(Job::Share { watch: mail, user, turn, after }) {
            self.counters.jobs_full_count += 1;
            self.fail(from.session, from.rid, ErrorCode::StoreOverloaded, None);
        }
    }

    pub(super) fn watch_answered(&mut self, mail: &WatchMail, turn: u64, shared: Result<Vec<bool>, JobFault>, now: Moment) {
        let WatchMail { from, users, ttl_s } = mail;
        if self.roster.session(from.roster) != Some(from.session) {
            self.counters.stale_submissions_count += 1;
            return;
        }
        let Ok(shared) = shared else { return self.fail(from.session, from.rid, ErrorCode::Internal, None) };
        assert_eq!(shared.len(), users.len());
        let (mut wishes, mut strangers) = (Vec::new(), Vec::new());
        for (name, is_shared) in users.iter().zip(shared) {
            // A copy: the set outlives the chunk that the name stands in.
            let (user, copy) = (self.state.hashes().user(name).0, Text::from(name.as_str()));
            if is_shared {
                wishes.push(Wish { user, name: copy, is_online: self.is_online(user, name) });
            } else {
                strangers.push(copy);
            }
        }
        let ttl_s = if *ttl_s == 0 { WATCH_TTL_S_MAX } else { (*ttl_s).min(WATCH_TTL_S_MAX) };
        let ends_ns = now.mono_ns + u64::from(ttl_s) * 1_000_000_000;
        if let Err(TooMany) = self.live.presence.watch(from.roster, from.session, turn, ends_ns, &wishes, strangers) {
            return self.fail(from.session, from.rid, ErrorCode::TooManySubscriptions, None);
        }
        let value = users.len() as u64;
        self.fanout.push(from.session.reactor, Event::Ok { session: from.session, rid: from.rid, value });
        let Self { live, fanout, counters, .. } = self;
        live.presence.tell_all(from.roster, now.unix_ms, &mut |told, to| {
            counters.presences_count += fanout.tell(to, presence_event(told)) as u64;
        });
    }

    /// A PRESENCE was dropped on its way to a session.
    pub(super) fn presence_lost(&mut self, session: SessionRef, roster: RosterId) {
        if self.roster.session(roster) == Some(session) {
            self.live.presence.lost(roster);
        } else {
            self.counters.stale_submissions_count += 1;
        }
    }

    /// SIGNAL: to every other device of the members that is connected. Brings no conversation into being.
    pub(super) fn signal(&mut self, conv: Conv, mail: &SignalMail, user: &Text) {
        self.credit_bytes += signal_bytes(mail);
        let SignalMail { from, conv: id, kind, payload } = mail;
        if self.roster.session(from.roster) != Some(from.session) {
            self.counters.stale_submissions_count += 1;
            return;
        }
        let conversation = self.state.conversation(conv).expect("loaded before it is asked");
        if !conversation.exists || !conversation.has(user) {
            return self.fail(from.session, 0, ErrorCode::NotMember, Some((id.clone(), Cmid::default())));
        }
        if conversation.is_notice_only() || !self.state.may_send(conversation, user) {
            return self.fail(from.session, 0, ErrorCode::NotAllowed, Some((id.clone(), Cmid::default())));
        }
        let roster = &self.roster;
        let devices = conversation.members.iter().flat_map(|member| roster.devices(member.user.0, &member.name));
        let sessions = devices.filter(|id| !is_away(roster.platform(*id))).filter_map(|id| roster.session(id));
        let others = sessions.filter(|session| *session != from.session);
        let count = self.fanout.tell(others, |first, count| Event::Signalled {
            conv: id.clone(),
            from: user.clone(),
            kind: *kind,
            payload: payload.clone(),
            first,
            count,
        });
        self.counters.signals_count += count as u64;
    }

    /// A SIGNAL that cannot be carried out: refused if it is the client's fault, else dropped.
    pub(super) fn refuse_signal(&mut self, mail: SignalMail, code: ErrorCode) {
        self.credit_bytes += signal_bytes(&mail);
        if code.is_retryable() {
            self.counters.signals_dropped_count += 1;
        } else {
            self.fail(mail.from.session, 0, code, Some((mail.conv, Cmid::default())));
        }
    }
}

fn presence_event(told: &Told) -> impl Fn(u32, u32) -> Event {
    let Told { user, is_online, seen_ms } = told.clone();
    move |first, count| Event::Presence { user: user.clone(), state: u8::from(is_online), seen_ms, first, count }
}

/// What the sender took from the credit of the lane; the same sum as [`Submit::body_bytes`].
pub(super) fn signal_bytes(mail: &SignalMail) -> u64 {
    (mail.payload.len() + mail.conv.len()) as u64
}

/// What the roster keeps of a device in its one byte: platform below, capabilities above.
pub(super) fn traits(platform: u8, caps: u8) -> u8 {
    let platform = if platform < 1 << CAPS_SHIFT { platform } else { 0 };
    platform | (caps & CAPS_MASK) << CAPS_SHIFT
}

/// The platform of a device, out of its [`traits`].
pub(super) fn platform(traits: u8) -> u8 {
    traits & ((1 << CAPS_SHIFT) - 1)
}

fn wants(traits: u8, cap: u32) -> bool {
    traits & caps_bits(cap) != 0
}

#[expect(clippy::cast_possible_truncation, reason = "capabilities have three bits")]
fn caps_bits(cap: u32) -> u8 {
    (cap as u8 & CAPS_MASK) << CAPS_SHIFT
}

fn is_away(traits: u8) -> bool {
    traits & AWAY != 0
}

const CAPS_SHIFT: u8 = 4;
const CAPS_MASK: u8 = 7;
/// In the roster, not connected: its session waits to be resumed.
const AWAY: u8 = 0x80;

impl Policy {
    /// The member whose positions a receipt tells, and who hears of them: all members, or that one alone. `None`: nobody, or no member.
    /// Looks at no other member than a search by name does.
    pub(super) fn hearers<'c>(&self, conversation: &'c Conversation, name: &str) -> Option<(&'c Member, &'c [Member])> {
        let for_all = self.receipts_for_all(conversation)?;
        let member = &conversation.members[conversation.find(name).ok()?];
        let hearers = if for_all { &conversation.members[..] } else { std::slice::from_ref(member) };
        Some((member, hearers))
    }

    /// Whether receipts of a conversation go to all members (`Some(true)`), to the user's own other devices, or nowhere.
    fn receipts_for_all(&self, conversation: &Conversation) -> Option<bool> {
        match conversation_kind(&conversation.id) {
            Some(ConversationKind::Direct(..)) => Some(true),
            Some(ConversationKind::Group) => Some(conversation.members.len() <= self.receipt_members_max),
            Some(ConversationKind::System) => Some(false),
            Some(ConversationKind::Channel) | None => None,
        }
    }
}
