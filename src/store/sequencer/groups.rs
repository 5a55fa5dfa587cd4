//! Who is a member of what and may do what: groups, large conversations, devices and bans.

use super::{Attach, Conv, Event, MemberDone, MemberRefusal, Moment, Sequencer};
use crate::ids::{Role, RosterId};
use crate::limits::{BANS_MAX, NOTICE_MEMBERS_PER_TURN_MAX};
use crate::mail::{Kicked, MemberMail, RenewMail, UserChange, UserMail};
use crate::mutant::{self, Mutant};
use crate::store::disk::Disk;
use crate::store::entry::{Change, Entry, Operation};
use crate::store::record::head_flags;
use crate::store::revocations::{Reach, Whose};
use crate::wire::envelope::ErrorCode;
use crate::wire::message::Text;

impl<D: Disk> Sequencer<D> {
    pub(super) fn change_members(&mut self, conv: Conv, mail: &MemberMail, operation: Operation, users: &[Text], now: Moment) {
        let entry = self.state.members_entry(&mail.conv, operation, users, now.unix_ms);
        self.accept(&entry, now);
        self.measure(conv, &mail.conv, now);
        self.close_durably();
        self.fanout.forget(conv.0);
        let event = if operation == Operation::Remove { CONV_REMOVED } else { CONV_JOINED };
        self.tell_members(conv, mail, users, event, operation != Operation::Create);
    }

    /// Somebody waits for the open group, and what it holds is kept as well as any message.
    fn close_durably(&mut self) {
        self.open.must_close = true;
        self.open.level = self.settings.levels.most();
    }

    pub(super) fn set_members(
        &mut self,
        conv: Conv,
        mail: &MemberMail,
        (role, muted): (Option<Role>, Option<bool>),
        users: &[Text],
        now: Moment,
    ) {
        let entry = self.state.set_entry(&mail.conv, (role, muted), users, now.unix_ms);
        self.accept(&entry, now);
        self.close_durably();
        self.tell_members(conv, mail, users, CONV_CHANGED, role.is_some());
    }

    pub(super) fn shape(&mut self, conv: Conv, mail: &MemberMail, flags: u8, now: Moment) {
        let entry = self.state.shape_entry(&mail.conv, flags, now.unix_ms);
        self.accept(&entry, now);
        self.close_durably();
        self.tell_members(conv, mail, &[], CONV_CHANGED, true);
    }

    /// A conversation that grew above the bound, or shrank below it, is told from now on in the other way. The log says so: replay
    /// need not know the bound of that time.
    fn measure(&mut self, conv: Conv, id: &str, now: Moment) {
        let conversation = self.state.conversation(conv).expect("just changed");
        let others = conversation.flags & !head_flags::LARGE;
        let is_large = conversation.members.len() > self.settings.policy.notice_only_above;
        let flags = if is_large { others | head_flags::LARGE } else { others };
        if flags != conversation.flags {
            let entry = self.state.shape_entry(id, flags, now.unix_ms);
            self.accept(&entry, now);
        }
    }

    /// CONV `event` to those concerned, and "changed" to the other members unless they are too many: those find it by SYNC.
    fn tell_members(&mut self, conv: Conv, mail: &MemberMail, users: &[Text], event: u8, tells_others: bool) {
        let conversation = self.state.conversation(conv).expect("just changed");
        let (hashes, told) = (self.state.hashes(), (&mail.conv, &mail.data));
        let concerned = users.iter().map(|name| (hashes.user(name).0, name.as_str()));
        self.fanout.conv_event(&self.roster, concerned, told, event, conversation.version);
        if tells_others && !conversation.is_notice_only() {
            let others = conversation.members.iter().filter(|member| users.binary_search(&member.name).is_err());
            let others = others.map(|member| (member.user.0, member.name.as_str()));
            self.fanout.conv_event(&self.roster, others, told, CONV_CHANGED, conversation.version);
        }
    }

    pub(super) fn members(&self, conv: Conv) -> MemberDone {
        let conversation = self.state.conversation(conv).expect("admitted");
        let name = |member: &super::super::apply::Member| member.name.as_str().to_owned();
        let special = conversation.members.iter().filter(|member| member.role != Role::Member);
        MemberDone {
            version: conversation.version,
            head: conversation.head,
            members: conversation.members.iter().map(name).collect(),
            roles: special.map(|member| (name(member), member.role)).collect(),
            muted: conversation.members.iter().filter(|member| member.muted).map(name).collect(),
            history: conversation.flags & head_flags::HISTORY != 0,
        }
    }

    /// Tells members of large conversations that they moved, so many a turn. Returns whether more is due already.
    pub(super) fn step_notices(&mut self, now: Moment) -> bool {
        let mut left = NOTICE_MEMBERS_PER_TURN_MAX;
        while left > 0
            && self.has_room()
            && let Some(step) = self.notices.next(now.mono_ns)
        {
            let conv = Conv(step.conv);
            self.state.touch(conv);
            let Some(conversation) = self.state.conversation(conv) else {
                self.notices.stepped(step.conv, None, now.mono_ns);
                continue;
            };
            let first = step.after.map_or(0, |after| match conversation.find(&after) {
                Ok(index) => index + 1,
                Err(index) => index,
            });
            let last = (first + left).min(conversation.members.len());
            let members = &conversation.members[first..last];
            left -= members.len();
            let roster = &self.roster;
            let sessions = members.iter().flat_map(|member| roster.devices(member.user.0, &member.name));
            let count = self.fanout.tell(sessions.filter_map(|id| roster.session(id)), |first, count| Event::Notice {
                conv: conversation.id.clone(),
                head: step.head,
                mid: step.mid,
                first,
                count,
            });
            self.counters.notices_count += count as u64;
            let is_over = last == conversation.members.len();
            let told = members.last().filter(|_| !is_over).map(|member| member.name.clone());
            self.notices.stepped(step.conv, told, now.mono_ns);
        }
        self.notices.is_sweeping()
    }

    /// Why a device may not connect.
    pub(super) fn unwelcome_device(&self, hash: u64, attach: &Attach) -> Option<ErrorCode> {
        if self.state.is_banned(&attach.user, &attach.device) {
            return Some(ErrorCode::Banned);
        }
        if self.state.is_revoked(&attach.user, &attach.device, &attach.token) {
            return Some(ErrorCode::TokenInvalid);
        }
        let max = self.settings.policy.devices_max;
        let mut others = 0;
        for id in self.roster.devices(hash, &attach.user) {
            if self.roster.device(id) == attach.device.as_str() {
                return None;
            }
            // Who will be replaced takes no place.
            others += usize::from(!self.is_replaced(self.roster.platform(id), super::traits(attach.platform, 0)));
        }
        (others >= max).then_some(ErrorCode::TooManyDevices)
    }

    /// Ends the other devices of the same class, where a user may have one.
    pub(super) fn replace_class(&mut self, hash: u64, user: &str, roster: RosterId) {
        let mine = self.roster.platform(roster);
        for id in self.roster.devices(hash, user).filter(|id| *id != roster) {
            if self.is_replaced(self.roster.platform(id), mine) {
                let session = self.roster.session(id).expect("the roster names devices that are there");
                self.fanout.push(session.reactor, Event::Kick { session, why: Kicked::Replaced });
                self.counters.kicks_count += 1;
            }
        }
    }

    fn is_replaced(&self, old: u8, new: u8) -> bool {
        let class = super::live::platform(new);
        super::live::platform(old) == class && class < 8 && self.settings.policy.one_per_class & 1 << class != 0
    }

    /// A fresh token of a session: good unless it is revoked.
    pub(super) fn renew(&mut self, mail: &RenewMail) {
        let RenewMail { from, token, expires_s } = mail;
        let (session, rid) = (from.session, from.rid);
        if self.roster.session(from.roster) != Some(session) {
            self.counters.stale_submissions_count += 1;
            return;
        }
        let is_revoked = self.state.is_revoked(self.roster.user(from.roster), self.roster.device(from.roster), token);
        let event = match is_revoked && !mutant::on(Mutant::RenewalNotJudged) {
            true => Event::Failed { session, rid, code: ErrorCode::TokenInvalid, retry_ms: 0, send: None },
            false => Event::Renewed { session, rid, expires_s: *expires_s },
        };
        self.fanout.push(session.reactor, event);
    }

    /// What a user may do at all: a ban, the end of one, tokens that pass no more. Whom it concerns is disconnected.
    pub(super) fn change_user(&mut self, mail: UserMail, now: Moment) {
        let UserMail { user, device, change, reply } = mail;
        let named = device.as_deref().unwrap_or("");
        let (entry, why) = match &change {
            UserChange::Ban => (Change::Ban { banned: true, user: &user, device: named }, Some(Kicked::Banned)),
            UserChange::Unban => (Change::Ban { banned: false, user: &user, device: named }, None),
            UserChange::Revoke { before_s, until_s, id } => {
                let whose = Whose { user: &user, device: named, id: id.as_deref().unwrap_or("") };
                let reach = Reach { before_s: *before_s, until_s: *until_s };
                (Change::Revoked { whose, reach }, Some(Kicked::Revoked))
            }
        };
        let refusal = match &entry {
            _ if self.is_read_only => Some(MemberRefusal::ReadOnly),
            _ if self.is_overloaded => Some(MemberRefusal::Overloaded),
            Change::Ban { banned: true, .. } if self.state.bans_count() >= BANS_MAX => Some(MemberRefusal::TooMany),
            Change::Revoked { whose, .. } if !self.state.has_room_for(*whose, now.unix_ms) => Some(MemberRefusal::TooMany),
            _ => None,
        };
        if let Some(refusal) = refusal {
            return self.open.replies.push((reply, Err(refusal)));
        }
        self.accept(&Entry { stamp_ms: now.unix_ms, change: entry }, now);
        if !mutant::on(Mutant::RevocationNotDurable) {
            self.close_durably();
        }
        let mut done = MemberDone::default();
        let why = why.filter(|_| !mutant::on(Mutant::RevokedStays));
        if let Some(why) = why {
            let hash = self.state.hashes().user(&user).0;
            for id in self.roster.devices(hash, &user) {
                if device.as_deref().is_none_or(|device| device == self.roster.device(id)) {
                    let session = self.roster.session(id).expect("the roster names devices that are there");
                    self.fanout.push(session.reactor, Event::Kick { session, why });
                    self.counters.kicks_count += 1;
                    done.members.push(self.roster.device(id).to_owned());
                }
            }
        }
        done.members.sort_unstable();
        self.open.replies.push((reply, Ok(done)));
    }
}

const CONV_JOINED: u8 = 1;
const CONV_REMOVED: u8 = 2;
const CONV_CHANGED: u8 = 3;
