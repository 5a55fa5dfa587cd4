//! The threads that judge tokens of public keys, where there are any.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{EndGuard, Fatal, Occurrence, spawn};
use crate::auth::keys::{Files, Ring};
use crate::auth::{self, Bench, keys};
use crate::clock::Clock;
use crate::config::{Exit, Secret, Settings};
use crate::io::wake::Waker;
use crate::limits::JUDGE_LANE_MAX;
use crate::mail::Judge;
use crate::mailbox::{LaneSender, Post, lane};
use crate::session::auth::Verifier;

/// How tokens are judged.
pub(super) struct Judges {
    /// By reactors.
    pub verifier: Arc<Verifier>,
    /// The lanes to the threads; empty: there is nothing for them to do.
    pub lanes: Vec<LaneSender<Judge>>,
}

impl Judges {
    /// Reads the keys and starts the threads.
    ///
    /// # Errors
    /// Keys that cannot be used, with the remedy.
    pub(super) fn start(
        settings: &Settings,
        secret: Option<&Secret>,
        clock: Clock,
        posts: &[Post],
        events: &std::sync::mpsc::Sender<Occurrence>,
    ) -> Result<Self, Fatal> {
        let auth = &settings.auth;
        if auth.keys.is_empty() {
            let secret = secret.expect("without public keys there is a secret");
            return Ok(Self { verifier: Arc::new(Verifier::new(secret, auth.leeway_s)), lanes: Vec::new() });
        }
        let mut files = Files::new(auth.keys.iter().map(PathBuf::from).collect(), auth.issuer.clone());
        let read = files.read().map_err(|error| Fatal::new(Exit::Usage, format!("auth.keys: {error}")))?;
        tracing::info!(keys = read.names(), threads = auth.threads, "tokens of public keys are good");
        let ring = Arc::new(Ring::default());
        ring.swap(read);
        let verifier = Arc::new(Verifier::with_public_keys(secret, auth.audience.clone(), auth.leeway_s));
        let mut lanes = Vec::new();
        for number in 0..auth.threads {
            let (sender, asked) = lane(JUDGE_LANE_MAX, &Waker::for_thread());
            lanes.push(sender);
            let answers = posts.iter().map(|post| post.judged.clone()).collect();
            let bench = Bench { verifier: verifier.clone(), ring: ring.clone(), clock, answers };
            let events = events.clone();
            spawn(&format!("auth-{number}"), move || {
                let guard = EndGuard { events, armed: true };
                auth::run(&bench, &asked);
                guard.disarm();
            })?;
        }
        let asked = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGHUP, asked.clone())
            .map_err(|error| Fatal::new(Exit::Failed, format!("catching SIGHUP: {error}")))?;
        spawn("auth-keys", move || keys::watch(files, &ring, &asked))?;
        Ok(Self { verifier, lanes })
    }
}
