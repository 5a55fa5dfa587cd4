//! The threads that judge tokens where others than a secret of this gateway sign them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::Duration;

use super::{EndGuard, Fatal, Occurrence, spawn};
use crate::admin::Health;
use crate::auth::keys::{self, Files, Remote, Ring, Sources};
use crate::auth::trust::Trust;
use crate::auth::webhook::{self, Lately, Webhook};
use crate::auth::{self, Bench, Means};
use crate::clock::Clock;
use crate::config::url::Url;
use crate::config::{Exit, Secret, Settings};
use crate::io::names;
use crate::io::wake::Waker;
use crate::limits::JUDGE_LANE_MAX;
use crate::mail::Judge;
use crate::mailbox::{LaneReceiver, LaneSender, Post, lane};
use crate::observe::auth::AuthFacts;
use crate::session::auth::Verifier;

/// How tokens are judged.
pub(super) struct Judges {
    /// By reactors.
    pub verifier: Arc<Verifier>,
    /// The lane to the threads that have public keys; `None`: there is nothing for them to do.
    pub lane: Option<LaneSender<Judge>>,
    /// Likewise to those that ask the webhook.
    pub hooks: Option<LaneSender<Judge>>,
}

/// What the threads share with the rest of the process.
pub(super) struct Around<'a> {
    pub clock: Clock,
    pub posts: &'a [Post],
    pub events: &'a mpsc::Sender<Occurrence>,
    pub health: &'a Arc<Health>,
    pub facts: &'a Arc<AuthFacts>,
}

impl Judges {
    /// Reads the keys and starts the threads.
    ///
    /// # Errors
    /// Keys that cannot be used, with the remedy.
    pub(super) fn start(settings: &Settings, secret: Option<&Secret>, around: &Around<'_>) -> Result<Self, Fatal> {
        let auth = &settings.auth;
        let (has_keys, has_webhook) = (auth.has_public_keys(), auth.webhook_url.is_some());
        let verifier = Arc::new(Verifier::of(secret, has_keys, has_webhook, auth.audience.clone(), auth.leeway_s));
        let answers: Vec<_> = around.posts.iter().map(|post| post.judged.clone()).collect();
        let bench = |means| Bench { means, clock: around.clock, answers: answers.clone() };
        let trust = auth.asked().any(|url| url.is_https).then(|| Trust::read(auth.ca_file.as_deref())).transpose();
        let trust = trust.map_err(|error| Fatal::new(Exit::Usage, format!("auth.ca_file: {error}")))?;
        if auth.asked().any(|url| url.is_named()) {
            names::use_files_and_dns();
        }
        let (mut keys_lane, mut hooks) = (None, None);
        if has_keys {
            let ring = Arc::new(Ring::new(Duration::from_secs(u64::from(auth.jwks_again_s))));
            watch_keys(settings, trust.as_ref(), &ring, around)?;
            let (sender, asked) = lane_to(auth.threads);
            for number in 0..auth.threads {
                let means = Means::Keys(verifier.clone(), ring.clone());
                spawn_judge(&format!("auth-{number}"), bench(means), asked.clone(), around.events)?;
            }
            keys_lane = Some(sender);
        }
        if let Some(url) = auth.webhook_url.as_deref().and_then(Url::read) {
            let keep = Duration::from_secs(u64::from(auth.webhook_cache_s));
            let webhook = Arc::new(Webhook::new(keep, around.facts.clone()));
            verifier.remember_by(Arc::new(Lately::new(webhook.clone(), around.clock)));
            let patience = Duration::from_millis(u64::from(auth.webhook_timeout_ms));
            let trust = trust.filter(|_| url.is_https);
            let (sender, asked) = lane_to(auth.webhook_threads);
            for number in 0..auth.webhook_threads {
                let client = webhook::client(url.clone(), trust.clone(), patience);
                let client = client.map_err(|error| Fatal::new(Exit::Failed, format!("auth.webhook_url: {error}")))?;
                let means = Means::Webhook(webhook.clone(), Box::new(client));
                spawn_judge(&format!("hook-{number}"), bench(means), asked.clone(), around.events)?;
            }
            hooks = Some(sender);
        }
        Ok(Self { verifier, lane: keys_lane, hooks })
    }
}

/// Reads the files of keys, and starts the thread that keeps them as their sources are.
fn watch_keys(settings: &Settings, trust: Option<&Trust>, ring: &Arc<Ring>, around: &Around<'_>) -> Result<(), Fatal> {
    let auth = &settings.auth;
    let files = Files::new(auth.keys.iter().map(PathBuf::from).collect(), auth.issuer.clone());
    let every = Duration::from_secs(u64::from(auth.jwks_every_s));
    let remote = auth.jwks_url.as_deref().and_then(Url::read).map(|url| {
        let trust = trust.filter(|_| url.is_https).cloned();
        Remote::new(url, trust, auth.issuer.clone(), every)
    });
    let remote = remote.transpose().map_err(|error| Fatal::new(Exit::Failed, format!("auth.jwks_url: {error}")))?;
    let sources = Sources::start(files, remote, ring, around.facts.clone());
    let sources = sources.map_err(|error| Fatal::new(Exit::Usage, format!("auth.keys: {error}")))?;
    tracing::info!(keys = ring.held().keys.names(), threads = auth.threads, "tokens of public keys are good");
    let asked = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGHUP, asked.clone())
        .map_err(|error| Fatal::new(Exit::Failed, format!("catching SIGHUP: {error}")))?;
    let (ring, health, clock) = (ring.clone(), around.health.clone(), around.clock);
    health.await_keys();
    spawn("auth-keys", move || keys::watch(sources, &ring, &asked, clock, || health.keys_came())).map(drop)
}

/// One lane for so many threads: a token that takes long to be judged, because a service is slow, keeps no other waiting while one of
/// them is free.
fn lane_to(threads: u16) -> (LaneSender<Judge>, LaneReceiver<Judge>) {
    lane(JUDGE_LANE_MAX * usize::from(threads), &Waker::for_thread())
}

fn spawn_judge(name: &str, mut bench: Bench, asked: LaneReceiver<Judge>, events: &mpsc::Sender<Occurrence>) -> Result<(), Fatal> {
    let events = events.clone();
    spawn(name, move || {
        let guard = EndGuard { events, armed: true };
        auth::run(&mut bench, &asked);
        guard.disarm();
    })
    .map(drop)
}
