//! Messages and questions of the operator's side. A message takes the way of every other; only its sender is no session, and its answer
//! goes through the channel of the call, when SENT would have gone out.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::SyncSender;

use super::live::platform;
use super::{Ports, Sequencer};
use crate::clock::Moment;
use crate::ids::{ReactorId, RosterId, SessionRef};
use crate::limits::{ADMIN_PAGE_MAX, SHED_REMEMBERED_MAX};
use crate::mail::{DeviceSeen, LookMail, Looked, PostDone, PostMail, Question, Sender, ShedMail, ShedReader};
use crate::route::roster::Roster;
use crate::store::disk::Disk;
use crate::store::job::Job;
use crate::wire::envelope::ErrorCode;

type PostResult = Result<PostDone, ErrorCode>;

/// Calls under way. As many as `limits::ADMIN_CHANGES_MAX` at once, which the admin thread sees to.
#[derive(Debug, Default)]
pub(super) struct Operator {
    waiting: HashMap<u32, SyncSender<PostResult>>,
    last: u32,
    /// Due when the group has reached its level.
    replies: Vec<(SyncSender<PostResult>, PostResult)>,
    /// Readers closed for want of memory, the last one behind; and how many of them the log does not have yet.
    shed: VecDeque<ShedReader>,
    shed_unlogged: usize,
}

impl Operator {
    /// Notes the name of a reader that is closed for want of memory.
    pub(super) fn note_shed(&mut self, roster: &Roster, mail: &ShedMail) {
        let ShedMail { session, roster: slot, address, queued_bytes, held_bytes, unix_ms } = *mail;
        if roster.session(slot) != Some(session) {
            return;
        }
        let (user, device) = (roster.user(slot).to_owned(), roster.device(slot).to_owned());
        self.shed.push_back(ShedReader { unix_ms, user, device, reactor: session.reactor.0, address, queued_bytes, held_bytes });
        self.shed_unlogged += 1;
    }

    /// Answers what the turn has decided.
    pub(super) fn hand_out(&mut self) {
        for (reply, result) in self.replies.drain(..) {
            // Whoever asked may have given up.
            let _ = reply.try_send(result);
        }
    }
}

/// Whether a submission comes from the operator's side. No reactor has this number: settings end far below.
pub(super) fn is_operator(session: SessionRef) -> bool {
    session.reactor == OPERATOR
}

impl<D: Disk> Sequencer<D> {
    /// Readers closed for want of memory since the last call, for the log.
    pub fn shed(&mut self) -> impl Iterator<Item = &ShedReader> {
        let fresh = std::mem::take(&mut self.operator.shed_unlogged);
        let kept = fresh.max(SHED_REMEMBERED_MAX);
        self.operator.shed.drain(..self.operator.shed.len().saturating_sub(kept));
        let first = self.operator.shed.len() - fresh;
        self.operator.shed.range(first..)
    }

    /// Takes a message of the operator's side.
    pub(super) fn post(&mut self, mail: PostMail, now: Moment, ports: &mut impl Ports) {
        let PostMail { mut message, user, reply } = mail;
        self.operator.last = self.operator.last.wrapping_add(1);
        let session = SessionRef { reactor: OPERATOR, index: self.operator.last, generation: 0 };
        self.operator.waiting.insert(session.index, reply);
        message.from = Sender { session, roster: RosterId(u32::MAX), rid: 0 };
        self.offer_send(message, user, now, ports);
    }

    /// A message of the operator's side is decided.
    pub(super) fn posted(&mut self, session: SessionRef, result: PostResult) {
        if let Some(reply) = self.operator.waiting.remove(&session.index) {
            self.operator.replies.push((reply, result));
        }
    }

    /// Answers from the roster at once, or hands the question to a reader.
    pub(super) fn look(&mut self, mail: LookMail, ports: &mut impl Ports) {
        let LookMail { question, reply } = mail;
        let known = match &question {
            Question::Devices { user, from } => Some(self.devices(user.as_deref(), *from)),
            Question::Shed => Some(Looked::Shed(self.operator.shed.iter().rev().cloned().collect())),
            Question::Now | Question::Conversation(_) | Question::Conversations { .. } => None,
        };
        if let Some(looked) = known {
            let _ = reply.try_send(Ok(looked));
            return;
        }
        self.open.must_close |= self.open.has_read;
        let after = if self.open.has_read { self.open.number } else { self.last() };
        self.must_sync |= after > self.log.synced();
        if !ports.send_job(Job::Look { question, reply: reply.clone(), after }) {
            self.counters.jobs_full_count += 1;
            let _ = reply.try_send(Err(ErrorCode::StoreOverloaded));
        }
    }

    fn devices(&self, user: Option<&str>, from: u32) -> Looked {
        let seen = |id| {
            Some(DeviceSeen {
                session: self.roster.session(id)?,
                user: self.roster.user(id).to_owned(),
                device: self.roster.device(id).to_owned(),
                platform: platform(self.roster.platform(id)),
            })
        };
        if let Some(user) = user {
            let hash = self.state.hashes().user(user).0;
            return Looked::Devices { devices: self.roster.devices(hash, user).filter_map(seen).collect(), next: None };
        }
        let slots = self.roster.slots_count();
        let to = from.saturating_add(ADMIN_PAGE_MAX).min(slots);
        let devices = (from..to).map(RosterId).filter_map(seen).collect();
        Looked::Devices { devices, next: (to < slots).then_some(to) }
    }
}

const OPERATOR: ReactorId = ReactorId(u16::MAX);
