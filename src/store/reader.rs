//! The threads that read the engine: SYNC and FETCH for clients, cold heads and old duplicates for the store.

use std::sync::Arc;
use std::time::Duration;

use super::engine::{Engine, View};
use super::history::{History, PageError, Reader};
use super::job::{Answer, Job, JobFault, Progress};
use super::rows::Rows;
use super::schema::Hashes;
use crate::clock::Clock;
use crate::mail::{ConversationSeen, LookReply, Looked, PageMail, PageReply, PageRequest, Question, Reached};
use crate::mailbox::{LaneReceiver, LaneSender, NoMail};
use crate::wire::envelope::{Encoding, ErrorCode};

/// Where a reader's answers go.
#[derive(Clone, Debug)]
pub struct Answers {
    /// To the store.
    pub store: LaneSender<Answer>,
    /// To each reactor, by number.
    pub pages: Vec<LaneSender<PageReply>>,
}

/// Answers jobs until every sender of the lane is gone.
pub fn run(engine: &Engine, hashes: Hashes, jobs: &LaneReceiver<Job>, progress: &Arc<Progress>, clock: Clock, answers: &Answers) {
    loop {
        match jobs.recv_within(PATIENCE) {
            Ok(job) => answer(engine, hashes, job, progress, clock, answers),
            Err(NoMail::Yet) => {}
            Err(NoMail::Ever) => return,
        }
    }
}

fn answer(engine: &Engine, hashes: Hashes, job: Job, progress: &Arc<Progress>, clock: Clock, answers: &Answers) {
    let history = open(engine, hashes, progress, job.after());
    match reply(history, job, clock.now().unix_ms / 1000) {
        Reply::Page(reply) => {
            let lane = &answers.pages[usize::from(reply.session.reactor.0)];
            // The reactor counts on an answer: the reader waits for room as long as the reactor lives.
            drop(lane.send(reply));
        }
        // Whoever asked may have given up.
        Reply::Look(to, result) => drop(to.try_send(result)),
        // The store parks submissions behind this answer: it must not be lost, and the store never waits for a reader.
        Reply::Answer(answer) => drop(answers.store.send(answer)),
    }
}

/// What a job is answered with, and by that to whom.
#[derive(Debug)]
pub enum Reply {
    /// To the reactor of the client that asked.
    Page(PageReply),
    /// To the store.
    Answer(Answer),
    /// To the admin thread.
    Look(LookReply, Result<Looked, ErrorCode>),
}

/// Answers a job from one state of the rows; `now_s` is the wall clock.
pub fn reply<R: Rows>(history: Result<History<R>, JobFault>, job: Job, now_s: u64) -> Reply {
    Reply::Answer(match job {
        Job::Page { mail, user, device, after: _ } => {
            let result = history.map_err(JobFault::code).and_then(|history| page(&history, &mail, &user, &device, now_s));
            let (result, reached) = match result {
                Ok((page, reached)) => (Ok(page), reached),
                Err(code) => (Err(code), Reached::Nothing),
            };
            return Reply::Page(PageReply { session: mail.from.session, rid: mail.from.rid, result, reached });
        }
        Job::Look { question, reply, after: _ } => {
            return Reply::Look(reply, history.map_err(JobFault::code).and_then(|history| look(&history, &question, now_s)));
        }
        Job::Load { conv, after: _ } => Answer::Loaded { result: history.and_then(|history| history.load(&conv)), conv },
        Job::Position { conv, user, after: _ } => {
            Answer::Position { result: history.and_then(|history| history.positions(&conv, &user)), conv, user }
        }
        Job::Share { watch, user, turn, after: _ } => {
            Answer::Shared { result: history.and_then(|history| history.shared(&user, &watch.users)), watch, turn }
        }
        Job::Sweep { keep, from, after: _ } => {
            Answer::Swept(history.and_then(|history| history.sweep(&keep, from, now_s.saturating_mul(1000))))
        }
        Job::Dedup { conv, user, cmid, after: _ } => {
            Answer::Dedup { result: history.and_then(|history| history.dedup(&user, cmid)), conv, user, cmid }
        }
    })
}

/// Answers what the operator's side asks of the rows.
fn look<R: Rows>(history: &History<R>, question: &Question, now_s: u64) -> Result<Looked, ErrorCode> {
    match question {
        Question::Devices { .. } | Question::Shed => unreachable!("the roster is the store's"),
        Question::Now => Ok(Looked::Now),
        Question::Conversation(conv) => {
            let seen = history.load(conv).map_err(JobFault::code)?.map(|loaded| ConversationSeen {
                floor: loaded.floor.max(1),
                head: loaded.head,
                version: loaded.version,
                members: loaded.members.iter().map(|it| (it.name.as_str().to_owned(), it.joined)).collect(),
            });
            Ok(Looked::Conversation(seen))
        }
        Question::Conversations { user, cursor } => {
            // No device has this name on purpose: what one device has acknowledged is not asked.
            let reader = Reader { user, device: "-", rid: 1, encoding: Encoding::Json, max_frame: LOOK_BYTES_MAX, now_s };
            let request = PageRequest::Sync { since: 0, limit: LOOK_ENTRIES_MAX, cursor: cursor.clone() };
            history.page(&reader, &request).map(|(page, _)| Looked::Conversations(page)).map_err(|error| match error {
                PageError::Refused(code) => code,
                PageError::Engine(_) => ErrorCode::Internal,
            })
        }
    }
}

/// A view that holds group `after`.
fn open<'e>(engine: &'e Engine, hashes: Hashes, progress: &Arc<Progress>, after: u64) -> Result<History<View<'e>>, JobFault> {
    if !progress.wait_for(after, PATIENCE_PROJECTOR) {
        return Err(JobFault::Behind);
    }
    History::new(engine.view(), hashes).map_err(|_| JobFault::Engine)
}

fn page<R: Rows>(
    history: &History<R>,
    mail: &PageMail,
    user: &str,
    device: &str,
    now_s: u64,
) -> Result<(Vec<u8>, Reached), ErrorCode> {
    let reader = Reader { user, device, rid: mail.from.rid, encoding: mail.encoding, max_frame: mail.max_frame as usize, now_s };
    history.page(&reader, &mail.request).map_err(|error| match error {
        PageError::Refused(code) => code,
        PageError::Engine(error) => {
            tracing::error!(%error, "a page could not be read");
            ErrorCode::Internal
        }
    })
}

/// How long a wait for jobs lasts before the end is looked for.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long a reader waits for the projector to reach the group a question follows.
const PATIENCE_PROJECTOR: Duration = Duration::from_secs(5);
/// One answer to the operator's side: entries, and bytes.
const LOOK_ENTRIES_MAX: u16 = 256;
const LOOK_BYTES_MAX: usize = 256 * 1024;
