//! Threads beside the reactors that judge tokens of public keys, and the keys they judge by.
//!
//! ```text
//!  reactor ──Judge──► auth-0 .. n ──Judged──► reactor        one bounded lane for all; full: 5002 and 4503, never a bad token
//!                         ▲
//!  files, a JWKS address ──► auth-keys ───┘ whole sets of keys, swapped
//!
//!  reactor ──Judge──► hook-0 .. n ──Judged──► reactor        each asks the operator's webhook
//!     └───────────────────► tokens it called good lately      a look, before the lane: these wait for nobody
//! ```
//!
//! As in `wire`, lints refuse whatever could panic on what is read here.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub mod http;
pub mod keys;
pub mod trust;
pub mod webhook;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::http::Client;
use self::keys::Ring;
use self::webhook::Webhook;
use crate::clock::Clock;
use crate::mail::{AuthError, Identity, Judge, Judged};
use crate::mailbox::{LaneReceiver, LaneSender, NoMail};
use crate::session::auth::Verifier;

/// What a thread that judges works with.
#[derive(Debug)]
pub struct Bench {
    /// By what.
    pub means: Means,
    /// The clock all threads share.
    pub clock: Clock,
    /// Where its answers go, by number of the reactor.
    pub answers: Vec<LaneSender<Judged>>,
}

/// By what a thread judges.
#[derive(Debug)]
pub enum Means {
    /// Public keys.
    Keys(Arc<Verifier>, Arc<Ring>),
    /// The operator's webhook, by a connection of this thread's own.
    Webhook(Arc<Webhook>, Box<Client>),
}

/// Judges until every sender of the lane is gone.
#[expect(clippy::indexing_slicing, reason = "only reactors ask, and each has its lane from the start")]
pub fn run(bench: &mut Bench, asked: &LaneReceiver<Judge>) {
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
fn judge(bench: &mut Bench, mail: &Judge) -> Result<Identity, AuthError> {
    let now = bench.clock.now();
    if now.since(mail.shown) > WAIT_MAX {
        return Err(AuthError::Overloaded);
    }
    let Bench { means, clock, .. } = bench;
    let judged = catch_unwind(AssertUnwindSafe(|| {
        #[cfg(debug_assertions)]
        crate::shard::panic_over_defect(mail.token.as_bytes());
        match means {
            Means::Keys(verifier, ring) => {
                // Read once: keys that come meanwhile must not turn "not here yet" into "bad".
                let held = ring.held();
                let verdict = verifier.read_public(&held.keys, &mail.token, now.unix_ms);
                let may_be_good =
                    |_: &AuthError| Verifier::lacks_key(&held.keys, &mail.token) && ring.misses(&held, Instant::now());
                if verdict.as_ref().is_err_and(may_be_good) { Err(AuthError::Overloaded) } else { verdict }
            }
            Means::Webhook(webhook, client) => webhook.judge(client, &mail.token, now, || clock.now()),
        }
    }));
    judged.unwrap_or_else(|_| {
        tracing::error!("a panic while judging a token; whoever showed it is told to try again");
        Err(AuthError::Overloaded)
    })
}

/// How long a wait for tokens lasts before the end is looked for.
const PATIENCE: Duration = Duration::from_millis(200);
/// Who has waited for longer has given up, or soon will.
const WAIT_MAX: Duration = Duration::from_secs(4);
