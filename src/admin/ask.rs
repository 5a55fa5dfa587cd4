//! How a handler asks another thread: one value in its lane, one answer through a channel made for the call.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use crate::admin::Shared;
use crate::admin::refusal::{Refusal, Thread};
use crate::ids::SessionRef;
use crate::mail::{Control, LookMail, Looked, Question, Submit};
use crate::wire::envelope::ErrorCode;

/// Sends what `send` makes of the reply channel, and waits for the answer at most [`ANSWER_PATIENCE`].
///
/// # Errors
/// [`Refusal::Busy`] if the lane is full or too many calls wait, [`Refusal::Silent`] if nobody answers.
pub async fn ask<T: Send + 'static>(
    shared: &Shared,
    who: Thread,
    send: impl FnOnce(SyncSender<T>) -> Result<(), Refusal>,
) -> Result<T, Refusal> {
    let Ok(place) = Arc::clone(&shared.changes).try_acquire_owned() else { return Err(Refusal::Busy) };
    let (reply, answer): (_, Receiver<T>) = sync_channel(1);
    send(reply)?;
    let waiting = tokio::task::spawn_blocking(move || {
        let answer = answer.recv_timeout(ANSWER_PATIENCE);
        drop(place);
        answer
    });
    let answer = waiting.await.map_err(|_| Refusal::Internal)?;
    answer.map_err(|_| Refusal::Silent(who))
}

/// Puts a submission into the lane of the store, with the credit that its body takes.
///
/// # Errors
/// [`Refusal::Busy`].
pub fn submit(shared: &Shared, mail: Submit) -> Result<(), Refusal> {
    let bytes = mail.body_bytes();
    if bytes > 0 && !shared.credit.take(bytes) {
        return Err(Refusal::Busy);
    }
    shared.submit.try_send(mail).map_err(|_| {
        shared.credit.give(bytes);
        Refusal::Busy
    })
}

/// Asks the store, and through it perhaps a reader.
///
/// # Errors
/// [`Refusal`].
pub async fn look(shared: &Shared, question: Question) -> Result<Looked, Refusal> {
    let who = if matches!(question, Question::Devices { .. } | Question::Shed) { Thread::Store } else { Thread::Reader };
    let looked = ask(shared, who, |reply| submit(shared, Submit::Look(LookMail { question, reply }))).await?;
    looked.map_err(refusal)
}

/// Asks one reactor.
///
/// # Errors
/// [`Refusal`].
pub async fn control<T: Send + 'static>(
    shared: &Shared,
    reactor: u16,
    mail: impl FnOnce(SyncSender<T>) -> Control,
) -> Result<T, Refusal> {
    let lane = shared.controls.get(usize::from(reactor)).ok_or(Refusal::Internal)?;
    ask(shared, Thread::Reactor(reactor), |reply| lane.try_send(mail(reply)).map_err(|_| Refusal::Busy)).await
}

/// What a refusal of the store means to an operator.
pub fn refusal(code: ErrorCode) -> Refusal {
    use crate::mail::MemberRefusal as M;
    match code {
        ErrorCode::NotMember => Refusal::Store(M::Unknown),
        ErrorCode::StorageFailed => Refusal::Store(M::ReadOnly),
        ErrorCode::StoreOverloaded => Refusal::Store(M::Overloaded),
        ErrorCode::CmidReused => Refusal::CmidReused,
        ErrorCode::BadField => Refusal::BadQuery("the cursor is not one of ours".to_owned()),
        _ => Refusal::Internal,
    }
}

/// Sessions sorted by the reactor that has them.
pub fn by_reactor(sessions: impl Iterator<Item = SessionRef>) -> Vec<(u16, Vec<SessionRef>)> {
    let mut sorted: Vec<(u16, Vec<SessionRef>)> = Vec::new();
    for session in sessions {
        match sorted.iter_mut().find(|(reactor, _)| *reactor == session.reactor.0) {
            Some((_, of)) => of.push(session),
            None => sorted.push((session.reactor.0, vec![session])),
        }
    }
    sorted
}

/// How long a thread may take: a commit group and its sync, many times over, on a machine whose cores are busy.
pub(super) const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
