//! Threads beside the reactors that judge tokens of public keys, and the keys they judge by.
//!
//! ```text
//!  reactor ──Judge──► auth-0 .. n ──Judged──► reactor        bounded lanes; full: 5002 and 4503, never a bad token
//!                         ▲
//!  files ──► auth-keys ───┘ whole sets of keys, swapped
//! ```

pub mod keys;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::auth::keys::Ring;
use crate::clock::Clock;
use crate::mail::{AuthError, Identity, Judge, Judged};
use crate::mailbox::{LaneReceiver, LaneSender, NoMail};
use crate::session::auth::Verifier;

/// What a thread that judges works with.
#[derive(Debug)]
pub struct Bench {
    /// How it judges.
    pub verifier: Arc<Verifier>,
    /// By what.
    pub ring: Arc<Ring>,
    /// The clock all threads share.
    pub clock: Clock,
    /// Where its answers go, by number of the reactor.
    pub answers: Vec<LaneSender<Judged>>,
}

/// Judges until every sender of the lane is gone.
pub fn run(bench: &Bench, asked: &LaneReceiver<Judge>) {
    loop {
        match asked.recv_within(PATIENCE) {
            Ok(mail) => {
                let verdict = judge(bench, &mail);
                let lane = &bench.answers[usize::from(mail.reactor.0)];
                // The connection waits for its answer: so does this thread for room, as long as the reactor lives.
                drop(lane.send(Judged { connection: mail.connection, rid: mail.rid, verdict }));
            }
            Err(NoMail::Yet) => {}
            Err(NoMail::Ever) => return,
        }
    }
}

/// A defect met by one token is the end of that token, as it is the end of one connection on a reactor.
fn judge(bench: &Bench, mail: &Judge) -> Result<Identity, AuthError> {
    let now = bench.clock.now();
    if now.since(mail.shown) > WAIT_MAX {
        return Err(AuthError::Overloaded);
    }
    let keys = bench.ring.keys();
    catch_unwind(AssertUnwindSafe(|| bench.verifier.read_public(&keys, &mail.token, now.unix_ms))).unwrap_or_else(|_| {
        tracing::error!("a panic while judging a token; whoever showed it is told to try again");
        Err(AuthError::Overloaded)
    })
}

/// How long a wait for tokens lasts before the end is looked for.
const PATIENCE: Duration = Duration::from_millis(200);
/// Who has waited for longer has given up, or soon will.
const WAIT_MAX: Duration = Duration::from_secs(4);
