//! The first step: what a submission would become, or why it is refused. It changes nothing.

use super::{Admission, MemberAdmission, ReadAdmission, State, Submission};
use crate::ids::{ConversationKind, Mid, Role, conversation_kind, is_user};
use crate::limits::{GROUP_MEMBERS_MAX, RETIRED_PER_STEP_MAX};
use crate::mail::{MemberChange, MemberRefusal};
use crate::store::dedup::Known;
use crate::store::entry::{Change, Entry, Message, Names, Operation};
use crate::store::record::head_flags;
use crate::store::schema::Conv;
use crate::wire::envelope::{ErrorCode, send_flags};
use crate::wire::message::Text;

impl State {
    /// Looks at a SEND. Order of checks: 3001, 3002, dedup (3009).
    ///
    /// # Panics
    /// If the conversation is not loaded.
    #[must_use]
    pub fn admit_send<'a>(&self, send: &Submission<'a>, now_ms: u64) -> Admission<'a> {
        let (conv, user) = (self.hashes.conv(send.conv), self.hashes.user(send.user));
        let conversation = self.conversations.get(&conv).expect("loaded before it is asked");
        let direct = !send.is_operator && matches!(conversation_kind(send.conv), Some(ConversationKind::Direct(..)));
        if !(send.is_operator || conversation.has(send.user)) || !(direct || conversation.exists) {
            return Admission::Refuse(ErrorCode::NotMember);
        }
        if !send.is_operator && !self.may_send(conversation, send.user) {
            return Admission::Refuse(ErrorCode::NotAllowed);
        }
        if let Some(code) = send.refusal {
            return Admission::Refuse(code);
        }
        if send.flags & send_flags::TRANSIENT != 0 {
            if conversation.is_notice_only() {
                // Content goes to nobody there.
                return Admission::Refuse(ErrorCode::NotAllowed);
            }
            return Admission::Transient;
        }
        let fingerprint = self.hashes.fingerprint(send.kind, send.payload);
        let stored =
            send.stored.map(|row| Known { conv: Conv(row.conv), seq: row.seq, mid: Mid(row.mid), fingerprint: row.fingerprint });
        if let Some(known) = self.recent.find(send.cmid, user).copied().or(stored) {
            return if known.conv == conv && known.fingerprint == fingerprint {
                Admission::Duplicate { seq: known.seq, mid: known.mid }
            } else {
                Admission::Refuse(ErrorCode::CmidReused)
            };
        }
        let exp_s = match send.ttl_s {
            0 => 0,
            ttl_s => u32::try_from(now_ms / 1000 + u64::from(ttl_s)).unwrap_or(u32::MAX),
        };
        Admission::Accept(Entry {
            stamp_ms: now_ms,
            change: Change::Message(Message {
                mid: self.clock.next(now_ms),
                seq: conversation.head + 1,
                fingerprint,
                cmid: send.cmid,
                flags: send.flags & (send_flags::QUIET | send_flags::TRACE),
                kind: send.kind,
                exp_s,
                trace: send.trace,
                conv: send.conv,
                user: send.user,
                payload: send.payload,
            }),
        })
    }

    /// Looks at a READ.
    ///
    /// # Panics
    /// If the conversation is not loaded.
    #[must_use]
    pub fn admit_read<'a>(&self, conv: &'a str, user: &'a str, seq: u64, now_ms: u64) -> ReadAdmission<'a> {
        let conversation = self.conversations.get(&self.hashes.conv(conv)).expect("loaded before it is asked");
        if !conversation.has(user) {
            return ReadAdmission::Refuse(ErrorCode::NotMember);
        }
        if seq > conversation.head {
            return ReadAdmission::Refuse(ErrorCode::BeyondHead);
        }
        match conversation.reads.get(&self.hashes.user(user)) {
            None => ReadAdmission::Unknown,
            Some(&position) if seq <= position => ReadAdmission::Stands(position),
            Some(_) => {
                let mid = self.clock.next(now_ms);
                ReadAdmission::Accept(Entry { stamp_ms: now_ms, change: Change::Read { mid, seq, conv, user } })
            }
        }
    }

    /// Looks at a cursor: `Ok(false)` for a conversation the user does not have, which is skipped.
    ///
    /// # Errors
    /// 3004 above head.
    ///
    /// # Panics
    /// If the conversation is not loaded.
    pub fn admit_cursor(&self, conv: Conv, user: &str, seq: u64) -> Result<bool, ErrorCode> {
        let conversation = self.conversations.get(&conv).expect("loaded before it is asked");
        if !conversation.exists || !conversation.has(user) {
            return Ok(false);
        }
        if seq > conversation.head { Err(ErrorCode::BeyondHead) } else { Ok(seq > 0) }
    }

    /// Looks at a change of members.
    ///
    /// # Panics
    /// If the conversation is not loaded.
    #[must_use]
    pub fn admit_members(&self, conv: &str, change: &MemberChange) -> MemberAdmission {
        let named = match change {
            MemberChange::Create(users) | MemberChange::Add(users) | MemberChange::Remove(users) => &users[..],
            MemberChange::Set { users, .. } => &users[..],
            MemberChange::Touch { .. } | MemberChange::Show => &[],
        };
        if !Self::is_group(conv) || !named.iter().all(|name| is_user(name)) {
            return MemberAdmission::Refuse(MemberRefusal::BadName);
        }
        let conversation = self.conversations.get(&self.hashes.conv(conv)).expect("loaded before it is asked");
        let creates = matches!(change, MemberChange::Create(_));
        match conversation.exists {
            true if creates => return MemberAdmission::Refuse(MemberRefusal::Exists),
            false if !creates => return MemberAdmission::Refuse(MemberRefusal::Unknown),
            _ => {}
        }
        let removes = matches!(change, MemberChange::Remove(_) | MemberChange::Set { .. });
        let mut users: Vec<Text> = named.iter().filter(|name| conversation.has(name) == removes).cloned().collect();
        users.sort();
        users.dedup();
        if let MemberChange::Set { role, muted, .. } = change {
            users.retain(|name| {
                let member = &conversation.members[conversation.find(name).expect("filtered above")];
                role.is_some_and(|role| role != member.role) || muted.is_some_and(|muted| muted != member.muted)
            });
            return match users.is_empty() {
                true => MemberAdmission::Unchanged,
                false => MemberAdmission::Set { users, role: *role, muted: *muted },
            };
        }
        if let MemberChange::Touch { history } = change {
            let others = conversation.flags & !head_flags::HISTORY;
            let flags = history.map_or(conversation.flags, |shown| others | if shown { head_flags::HISTORY } else { 0 });
            return MemberAdmission::Shape(flags);
        }
        if !removes && conversation.members.len() + users.len() > GROUP_MEMBERS_MAX {
            return MemberAdmission::Refuse(MemberRefusal::TooMany);
        }
        match change {
            MemberChange::Create(_) => MemberAdmission::Accept(Operation::Create, users),
            MemberChange::Add(_) if !users.is_empty() => MemberAdmission::Accept(Operation::Add, users),
            MemberChange::Remove(_) if !users.is_empty() => MemberAdmission::Accept(Operation::Remove, users),
            _ => MemberAdmission::Unchanged,
        }
    }

    /// The entry of an admitted change of members.
    ///
    /// # Panics
    /// If the conversation is not loaded.
    #[must_use]
    pub fn members_entry<'a>(&self, conv: &'a str, operation: Operation, users: &'a [Text], now_ms: u64) -> Entry<'a> {
        let conversation = self.conversations.get(&self.hashes.conv(conv)).expect("admitted");
        let (mid, version) = (self.clock.next(now_ms), conversation.version + 1);
        let users = Names::List(users);
        Entry { stamp_ms: now_ms, change: Change::Members { mid, version, operation, conv, users } }
    }

    /// The entry of an admitted change of roles or silence.
    ///
    /// # Panics
    /// If the conversation is not loaded.
    #[must_use]
    pub fn set_entry<'a>(
        &self,
        conv: &'a str,
        (role, muted): (Option<Role>, Option<bool>),
        users: &'a [Text],
        now_ms: u64,
    ) -> Entry<'a> {
        let conversation = self.conversations.get(&self.hashes.conv(conv)).expect("admitted");
        let (mid, version) = (self.clock.next(now_ms), conversation.version + 1);
        let (role, muted) = (role.map(Role::number), muted.map(u8::from));
        Entry { stamp_ms: now_ms, change: Change::Set { mid, version, role, muted, conv, users: Names::List(users) } }
    }

    /// The entry of an admitted change of flags.
    ///
    /// # Panics
    /// If the conversation is not loaded.
    #[must_use]
    pub fn shape_entry<'a>(&self, conv: &'a str, flags: u8, now_ms: u64) -> Entry<'a> {
        let conversation = self.conversations.get(&self.hashes.conv(conv)).expect("admitted");
        let (mid, version) = (self.clock.next(now_ms), conversation.version + 1);
        Entry { stamp_ms: now_ms, change: Change::Shape { mid, version, flags, conv } }
    }

    /// The entry that raises the floor of a conversation in memory; `None` if it stands there already, would pass the head, or would
    /// take more rows at once than one group may.
    ///
    /// # Panics
    /// If the conversation is not loaded.
    #[must_use]
    pub fn floor_entry<'a>(&self, conv: &'a str, floor: u64, count: u64, now_ms: u64) -> Option<Entry<'a>> {
        let conversation = self.conversations.get(&self.hashes.conv(conv)).expect("loaded before it is asked");
        let rises = conversation.exists && floor > conversation.floor && floor <= conversation.head + 1;
        if !rises || floor - conversation.floor > RETIRED_PER_STEP_MAX as u64 {
            return None;
        }
        let mid = self.clock.next(now_ms);
        Some(Entry { stamp_ms: now_ms, change: Change::Floor { mid, floor, count, conv } })
    }

    /// The entry that begins a new epoch: the next one, or `least` if that is later.
    #[must_use]
    pub fn epoch_entry(&self, now_ms: u64, least: u32) -> Entry<'static> {
        let epoch = least.max(self.epoch + 1);
        Entry { stamp_ms: now_ms, change: Change::Epoch { mid: self.clock.next(now_ms), epoch } }
    }
}
