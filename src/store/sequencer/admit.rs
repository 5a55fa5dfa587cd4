//! What becomes of a submission: it is carried out, waits for what must be read first, or is refused.

use super::operator::is_operator;
use super::{Ports, Sequencer};
use crate::clock::Moment;
use crate::ids::{Cmid, Mid, SessionRef};
use crate::limits::CURSOR_LOADS_MAX;
use crate::mail::{CursorMail, Delivery, Event, MemberChange, MemberRefusal, PostDone, SendMail, Sender};
use crate::mutant::{self, Mutant};
use crate::observe::trace::Place;
use crate::route::fanout::Source;
use crate::store::apply::{Admission, Conversation, MemberAdmission, ReadAdmission, State, Submission};
use crate::store::cursor::{Pending, Waiting};
use crate::store::disk::Disk;
use crate::store::entry::{Change, Entry, Message};
use crate::store::hold::Failed;
use crate::store::job::{Job, JobFault};
use crate::store::park::{Lookup, Work};
use crate::store::schema::Conv;
use crate::wire::envelope::{ErrorCode, SENT_DUPLICATE, deliver_flags, send_flags};
use crate::wire::message::Text;

/// What has become of a submission.
enum Attempt {
    /// It is carried out, or nobody waits for it any more.
    Done,
    /// It needs the answer to a job.
    Waits(Work),
    /// It must be refused.
    Refused(Work, ErrorCode),
}

impl<D: Disk> Sequencer<D> {
    /// Carries out what waits for a conversation, in order, as far as it is ready.
    pub(super) fn unpark(&mut self, conv: Conv, now: Moment, ports: &mut impl Ports) {
        while !mutant::on(Mutant::UnparkForgotten)
            && let Some(work) = self.parking.pop_ready(conv)
        {
            match self.attempt(conv, work, now, ports) {
                Attempt::Done => {}
                Attempt::Waits(work) => return self.parking.push_front(conv, work),
                Attempt::Refused(work, code) => {
                    let is_send = matches!(work, Work::Send { .. });
                    self.refuse(conv, work, code);
                    if is_send {
                        // Now, not in their turn: its repeat ends the hold when it arrives, which may be before that.
                        self.refuse_behind(conv, code);
                    }
                }
            }
        }
    }

    /// A SEND that waited has failed: those behind it fail too.
    fn refuse_behind(&mut self, conv: Conv, code: ErrorCode) {
        if mutant::on(Mutant::BehindFailureKept) {
            return;
        }
        for work in self.parking.take_sends(conv) {
            self.refuse(conv, work, code);
        }
    }

    /// The engine cannot be read, or is too far behind: everything that waits for it fails, so that nothing overtakes.
    pub(super) fn refuse_parked(&mut self, conv: Conv, fault: JobFault) {
        for work in self.parking.take(conv) {
            self.refuse(conv, work, fault.code());
        }
    }

    /// Takes a message, as [`Sequencer::offer`].
    pub(super) fn offer_send(&mut self, mail: SendMail, user: Text, now: Moment, ports: &mut impl Ports) {
        self.arrivals_count += 1;
        let arrival = self.arrivals_count;
        self.offer(Work::Send { mail, user, lookup: Lookup::Unasked, arrival }, now, ports);
    }

    /// Takes a submission: carries it out, parks it, or refuses it.
    pub(super) fn offer(&mut self, mut work: Work, now: Moment, ports: &mut impl Ports) {
        let conv = self.state.hashes().conv(work.conv());
        if let Some(code) = self.implausible(&work) {
            return self.refuse(conv, work, code);
        }
        let is_behind = self.parking.holds(conv);
        if !is_behind {
            match self.attempt(conv, work, now, ports) {
                Attempt::Done => return,
                Attempt::Waits(waits) => work = waits,
                Attempt::Refused(work, code) => return self.refuse(conv, work, code),
            }
        } else if self.is_held(conv, &work) {
            // It takes no place: the client sends it again, behind the one that failed.
            return self.refuse(conv, work, ErrorCode::Held);
        }
        if !self.parking.has_room(conv) {
            // What waits before it goes on. Should that fail later, the hold becomes its own (`store/hold.rs`).
            self.counters.submissions_refused_count += 1;
            return self.refuse(conv, work, ErrorCode::StoreOverloaded);
        }
        if is_behind {
            // Asked for ahead of its turn: a reconnect brings dozens, and one after the other would take as many reads in a row.
            self.ask_dedup(&mut work, ports);
        }
        self.parking.push_back(conv, work);
    }

    /// What can be refused by names alone, without reading anything for a stranger.
    fn implausible(&self, work: &Work) -> Option<ErrorCode> {
        let (conv, user) = match work {
            Work::Send { mail, .. } if is_operator(mail.from.session) => return None,
            Work::Send { mail, user, .. } => (&mail.conv, user.as_str()),
            Work::Read { conv, user, .. } => (conv, user.as_str()),
            Work::Signal { mail, user } => (&mail.conv, user.as_str()),
            Work::Floor(_) => return None,
            Work::Member(mail) => {
                return (!State::is_group(&mail.conv)).then_some(ErrorCode::NotMember);
            }
        };
        (!State::is_plausible(conv, user)).then_some(ErrorCode::NotMember)
    }

    /// Carries out one submission, or gives it back. If it must wait, a job for what it waits for is under way.
    fn attempt(&mut self, conv: Conv, mut work: Work, now: Moment, ports: &mut impl Ports) -> Attempt {
        if let Work::Send { mail, arrival, .. } = &work {
            let Sender { session, roster, .. } = mail.from;
            if !is_operator(session) && self.roster.session(roster) != Some(session) {
                self.counters.stale_submissions_count += 1;
                self.credit_bytes += body_bytes(mail);
                return Attempt::Done;
            }
            if let Some(code) = self.unwelcome(conv, mail, *arrival) {
                return Attempt::Refused(work, code);
            }
        }
        let after = self.last();
        if !self.state.is_loaded(conv) {
            let job = Job::Load { conv: work.conv().clone(), after };
            return self.wait_for(job, conv, work, ports);
        }
        self.state.touch(conv);
        match &work {
            Work::Send { mail, user, lookup: Lookup::Unasked, .. }
                if self.state.needs_dedup(mail.cmid, self.state.hashes().user(user), mail.flags) =>
            {
                if !self.ask_dedup(&mut work, ports) {
                    return Attempt::Refused(work, ErrorCode::StoreOverloaded);
                }
                Attempt::Waits(work)
            }
            Work::Send { .. } => {
                self.send(conv, work, now);
                Attempt::Done
            }
            Work::Read { from, conv: id, user, seq } => {
                if self.read(conv, (*from, id, user, *seq), now, ports) {
                    return Attempt::Done;
                }
                let job = Job::Position { conv: id.clone(), user: user.clone(), after };
                self.wait_for(job, conv, work, ports)
            }
            Work::Signal { mail, user } => {
                self.signal(conv, mail, user);
                Attempt::Done
            }
            Work::Member(_) => {
                self.member(conv, work, now);
                Attempt::Done
            }
            Work::Floor(raise) => {
                self.raise_floor(conv, raise, now);
                Attempt::Done
            }
        }
    }

    /// Whether a submission is a SEND that must wait for the repeat of an earlier one. It may be the repeat itself, which ends the hold.
    fn is_held(&mut self, conv: Conv, work: &Work) -> bool {
        let Work::Send { mail, arrival, .. } = work else { return false };
        self.holds.refuses(mail.from.session, conv, Failed { cmid: mail.cmid, arrival: *arrival }, mail.flags)
    }

    /// Why a SEND is refused before anything is looked at: an earlier one failed, the disk is full, the projector is behind.
    fn unwelcome(&mut self, conv: Conv, mail: &SendMail, arrival: u64) -> Option<ErrorCode> {
        if self.holds.refuses(mail.from.session, conv, Failed { cmid: mail.cmid, arrival }, mail.flags) {
            Some(ErrorCode::Held)
        } else if self.is_read_only && mail.flags & send_flags::TRANSIENT == 0 {
            Some(ErrorCode::StorageFailed)
        } else if self.is_overloaded {
            Some(ErrorCode::StoreOverloaded)
        } else {
            None
        }
    }

    fn wait_for(&mut self, job: Job, conv: Conv, work: Work, ports: &mut impl Ports) -> Attempt {
        let is_load = matches!(job, Job::Load { .. });
        if !(is_load && self.loading.contains(&conv)) {
            if !ports.send_job(job) {
                self.counters.jobs_full_count += 1;
                return Attempt::Refused(work, ErrorCode::StoreOverloaded);
            }
            if is_load {
                self.loading.insert(conv);
            }
            self.must_sync |= self.last() > self.log.synced();
        }
        self.parking.block(conv);
        Attempt::Waits(work)
    }

    /// Has a reader look for the cmid of a SEND with RETRY that memory does not know. `false`: the lanes are full.
    fn ask_dedup(&mut self, work: &mut Work, ports: &mut impl Ports) -> bool {
        let Work::Send { mail, user, lookup, .. } = work else { return true };
        if *lookup != Lookup::Unasked || !self.state.needs_dedup(mail.cmid, self.state.hashes().user(user), mail.flags) {
            return true;
        }
        let after = self.last();
        let job = Job::Dedup { conv: mail.conv.clone(), user: user.clone(), cmid: mail.cmid, after };
        if !ports.send_job(job) {
            self.counters.jobs_full_count += 1;
            return false;
        }
        *lookup = Lookup::Asked;
        self.must_sync |= after > self.log.synced();
        true
    }

    fn send(&mut self, conv: Conv, work: Work, now: Moment) {
        let Work::Send { mail, user, lookup, .. } = work else { unreachable!("called for SEND") };
        let stored = if let Lookup::Answered(found) = lookup { found } else { None };
        let submission = Submission {
            conv: &mail.conv,
            user: &user,
            cmid: mail.cmid,
            flags: mail.flags,
            kind: mail.kind,
            ttl_s: mail.ttl_s,
            trace: mail.trace,
            payload: &mail.payload,
            is_operator: is_operator(mail.from.session),
            stored,
            refusal: mail.refusal,
        };
        match self.state.admit_send(&submission, now.unix_ms) {
            Admission::Accept(entry) => {
                let Change::Message(Message { seq, mid, exp_s, .. }) = entry.change else { unreachable!("SEND is a message") };
                self.accept(&entry, now);
                let level = self.settings.levels.of(&mail.conv);
                self.open.must_close = true;
                self.open.level = self.open.level.max(level);
                self.open.received.push(mail.received);
                let context = mail.trace.map(|it| (it.trace_id, it.flags));
                if let Some(followed) = self.settings.sampling.follow(mail.cmid, context)
                    && !self.steps.note(followed, &mail.conv, Place::Committed { mid, seq })
                {
                    self.counters.trace_steps_dropped_count += 1;
                }
                self.counters.messages_stored_count += 1;
                self.sent(&mail, level, 0, seq, mid);
                if self.state.conversation(conv).is_some_and(Conversation::is_notice_only) {
                    self.notices.note(conv.0, seq, mid);
                } else {
                    let flags = mail.flags & (send_flags::QUIET | send_flags::TRACE);
                    self.deliver(conv, &mail, &user, delivery(&mail, &user, flags, seq, mid, exp_s));
                }
            }
            Admission::Transient => {
                self.sent(&mail, 0, 0, 0, Mid(0));
                let flags = mail.flags & (send_flags::QUIET | send_flags::TRACE) | deliver_flags::TRANSIENT;
                self.deliver(conv, &mail, &user, delivery(&mail, &user, flags, 0, Mid(0), 0));
            }
            Admission::Duplicate { seq, mid } => {
                self.counters.messages_duplicate_count += 1;
                self.sent(&mail, self.settings.levels.of(&mail.conv), SENT_DUPLICATE, seq, mid);
            }
            Admission::Refuse(code) => {
                self.counters.sends_refused_count += 1;
                let named = Some((mail.conv.clone(), mail.cmid));
                self.fail(mail.from.session, mail.from.rid, code, named);
            }
        }
        self.holds.settle(mail.from.session, conv, mail.cmid);
        self.credit_bytes += body_bytes(&mail);
    }

    fn sent(&mut self, mail: &SendMail, level: u8, flags: u8, seq: u64, mid: Mid) {
        let Sender { session, rid, .. } = mail.from;
        if is_operator(session) {
            return self.posted(session, Ok(PostDone { seq, mid, level, is_duplicate: flags & SENT_DUPLICATE != 0 }));
        }
        let costs_nothing = flags & SENT_DUPLICATE != 0 && mail.flags & send_flags::RETRY != 0;
        let (cmid, received) = (mail.cmid, mail.received);
        let event = Event::Sent { session, cmid, rid, level, flags, seq, mid, costs_nothing, received };
        self.fanout.push(session.reactor, event);
    }

    fn deliver(&mut self, conv: Conv, mail: &SendMail, user: &Text, message: Delivery) {
        let conversation = self.state.conversation(conv).expect("admitted");
        let members = conversation.members.iter().map(|member| (member.user.0, member.name.as_str()));
        let source = Source { hash: self.state.hashes().user(user).0, user, session: mail.from.session };
        let count = self.fanout.deliver(&self.roster, conv.0, members, source, &message);
        self.counters.deliveries_count += count as u64;
    }

    /// `false`: the read position must be loaded first.
    fn read(
        &mut self,
        conv: Conv,
        (from, id, user, seq): (Sender, &Text, &Text, u64),
        now: Moment,
        ports: &mut impl Ports,
    ) -> bool {
        let value = match self.state.admit_read(id, user, seq, now.unix_ms) {
            ReadAdmission::Accept(entry) => {
                if !mutant::on(Mutant::ReadNotKept) {
                    self.accept(&entry, now);
                }
                self.open.has_read = true;
                self.receipt(conv, (self.state.hashes().user(user), user), from.session, now, ports);
                seq
            }
            ReadAdmission::Stands(position) => position,
            ReadAdmission::Unknown => return false,
            ReadAdmission::Refuse(code) => {
                self.fail(from.session, from.rid, code, None);
                return true;
            }
        };
        self.fanout.push(from.session.reactor, Event::Ok { session: from.session, rid: from.rid, value });
        true
    }

    /// Takes a cursor, or sets it aside: it never waits behind other work, and other work never behind it. Unknown conversations are
    /// skipped; a cursor lost otherwise only repeats deliveries.
    pub(super) fn offer_cursor(&mut self, mail: &CursorMail, now: Moment, ports: &mut impl Ports) {
        if self.roster.session(mail.roster) != Some(mail.session) {
            self.counters.stale_submissions_count += 1;
            return;
        }
        let (user, device) = (self.roster.user(mail.roster), self.roster.device(mail.roster));
        if !State::is_plausible(&mail.conv, user) {
            return;
        }
        let conv = self.state.hashes().conv(&mail.conv);
        if self.state.is_loaded(conv) {
            let [user, device] = [user, device].map(|name| self.names.text(name));
            self.state.touch(conv);
            let pending = Pending { seq: mail.seq, conv: mail.conv.clone(), user, device };
            return self.cursor(conv, mail.session, &pending, now, ports);
        }
        let waiting = || {
            let [conv, user, device] = [&*mail.conv, user, device].map(Text::copy_from);
            Waiting { session: mail.session, pending: Pending { seq: mail.seq, conv, user, device } }
        };
        if !self.aside.push(conv, waiting, (mail.session, mail.seq)) {
            self.counters.cursors_dropped_count += 1;
        }
    }

    /// Has readers load a few of the conversations that cursors wait for.
    pub(super) fn load_for_cursors(&mut self, ports: &mut impl Ports) {
        for _ in 0..CURSOR_LOADS_MAX {
            let Some((conv, name)) = self.aside.wanted() else { return };
            if self.parking.holds(conv) && !self.loading.contains(&conv) {
                // It may be loaded by what waits there.
                self.aside.again(conv);
                continue;
            }
            if !self.loading.contains(&conv) {
                let after = self.last();
                if !ports.send_job(Job::Load { conv: name, after }) {
                    return;
                }
                self.must_sync |= after > self.log.synced();
                self.loading.insert(conv);
            }
            self.aside.asked(conv);
        }
    }

    pub(super) fn cursor(&mut self, conv: Conv, session: SessionRef, cursor: &Pending, now: Moment, ports: &mut impl Ports) {
        match self.state.admit_cursor(conv, &cursor.user, cursor.seq) {
            Ok(true) => {
                self.counters.cursors_merged_count += 1;
                let hashes = self.state.hashes();
                let user = hashes.user(&cursor.user);
                self.cursors.merge(user, hashes.device(&cursor.device), conv, cursor.seq, || {
                    // Slices of arenas as a rule: they are gone with the next group, a second from now at the latest.
                    [cursor.conv.clone(), cursor.user.clone(), cursor.device.clone()]
                });
                self.open.since.get_or_insert(now);
                self.received(conv, (user, &cursor.user), (session, cursor.seq), now, ports);
            }
            Ok(false) => {}
            Err(code) => {
                let named = Some((cursor.conv.clone(), Cmid::default()));
                self.fail(session, 0, code, named);
            }
        }
    }

    fn member(&mut self, conv: Conv, work: Work, now: Moment) {
        let Work::Member(mail) = work else { unreachable!("called for a change of members") };
        let is_show = matches!(mail.change, MemberChange::Show);
        if !is_show && (self.is_read_only || self.is_overloaded) {
            let refusal = if self.is_read_only { MemberRefusal::ReadOnly } else { MemberRefusal::Overloaded };
            self.open.replies.push((mail.reply, Err(refusal)));
            return;
        }
        let result = match self.state.admit_members(&mail.conv, &mail.change) {
            MemberAdmission::Accept(operation, users) => {
                self.change_members(conv, &mail, operation, &users, now);
                Ok(self.members(conv))
            }
            MemberAdmission::Set { users, role, muted } => {
                self.set_members(conv, &mail, (role, muted), &users, now);
                Ok(self.members(conv))
            }
            MemberAdmission::Shape(flags) => {
                self.shape(conv, &mail, flags, now);
                Ok(self.members(conv))
            }
            MemberAdmission::Unchanged => Ok(self.members(conv)),
            MemberAdmission::Refuse(refusal) => Err(refusal),
        };
        self.open.replies.push((mail.reply, result));
    }

    /// Logs and applies an entry that was admitted.
    pub(super) fn accept(&mut self, entry: &Entry<'_>, now: Moment) {
        entry.encode(&mut self.open.body);
        self.open.entries_count += 1;
        self.open.since.get_or_insert(now);
        self.state.apply(entry, self.open.number, &mut self.open.batch).expect("admitted against this very state");
    }

    fn refuse(&mut self, conv: Conv, work: Work, code: ErrorCode) {
        match work {
            Work::Send { mail, arrival, .. } => {
                self.counters.sends_refused_count += 1;
                let Sender { session, roster, rid } = mail.from;
                let is_transient = mail.flags & send_flags::TRANSIENT != 0;
                // Nobody repeats what a session sent that has gone meanwhile. The operator's side has no place in the roster either.
                let is_here = self.roster.session(roster) == Some(session);
                let begins = code.is_retryable() && code != ErrorCode::Held && !is_transient && is_here;
                // The reactor holds what it is told last, unless that is 4003.
                let is_behind = begins && !self.holds.begin(session, conv, Failed { cmid: mail.cmid, arrival });
                let code = if is_behind { ErrorCode::Held } else { code };
                self.credit_bytes += body_bytes(&mail);
                // It is never retried, so nothing waits for its repeat.
                let cmid = if is_transient { Cmid::default() } else { mail.cmid };
                self.fail(session, rid, code, Some((mail.conv, cmid)));
            }
            Work::Read { from, .. } => self.fail(from.session, from.rid, code, None),
            Work::Signal { mail, .. } => self.refuse_signal(mail, code),
            // The next sweep finds it again.
            Work::Floor(_) => {}
            Work::Member(mail) => {
                let refusal = if code == ErrorCode::NotMember { MemberRefusal::BadName } else { MemberRefusal::Overloaded };
                self.open.replies.push((mail.reply, Err(refusal)));
            }
        }
    }

    pub(super) fn fail(&mut self, session: SessionRef, rid: u32, code: ErrorCode, send: Option<(Text, Cmid)>) {
        if is_operator(session) {
            return self.posted(session, Err(code));
        }
        let event = Event::Failed { session, rid, code, retry_ms: retry_ms(code), send };
        self.fanout.push(session.reactor, event);
    }
}

fn delivery(mail: &SendMail, user: &Text, flags: u8, seq: u64, mid: Mid, exp_s: u32) -> Delivery {
    Delivery {
        seq,
        mid,
        flags,
        kind: mail.kind,
        exp_s,
        cmid: mail.cmid,
        trace: mail.trace,
        conv: mail.conv.clone(),
        from: user.clone(),
        payload: mail.payload.clone(),
    }
}

/// What the sender took from the credit of the lane; the same sum as [`Submit::body_bytes`].
pub(super) fn body_bytes(mail: &SendMail) -> u64 {
    (mail.payload.len() + mail.conv.len()) as u64
}

fn retry_ms(code: ErrorCode) -> u32 {
    match code {
        ErrorCode::StorageFailed => 30_000,
        ErrorCode::StoreOverloaded | ErrorCode::Internal => 1_000,
        ErrorCode::Held => 100,
        _ => 0,
    }
}

// QUIET and TRACE have one value in SEND and in DELIVER: flags are masked, not translated.
const _: () = assert!(send_flags::QUIET == deliver_flags::QUIET && send_flags::TRACE == deliver_flags::TRACE);
