//! Tokens that a service of the operator judges: `POST {"token":…}`.
//!
//! ```text
//!  hook-0 .. n, a kept connection each ──► caches ──► breaker ──► service
//!                                           │           └ open: after 5 failures in a row, for 5 s, then one tries again
//!  reactors: is it known to be good? ───────┴ what it said lately, good and bad apart
//!
//!  200 {"user":…,"exp":…}          a good token
//!  400, 401, 403, 404, 422         a bad one: whoever cannot read it says so too
//!  429, and what makes no sense    nothing about the token: its client comes back
//!  5xx, silence                    likewise, and a failure
//! ```
//!
//! Strangers choose what is asked. So what the service says about their tokens, as long as it says anything, is no failure, what is
//! remembered of bad tokens takes no room from the good ones, and reactors look for good ones themselves ([`Lately`]): their users do not
//! wait behind what strangers make up.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::time::Duration;

use serde::Deserialize;

use super::http::{Client, Failure};
use super::trust::Trust;
use crate::clock::{Clock, Moment};
use crate::config::url::Url;
use crate::ids::{is_device, is_user};
use crate::limits::{TOKEN_ID_BYTES_MAX, WEBHOOK_ANSWER_BYTES_MAX, WEBHOOK_BAD_CACHE_BYTES_MAX, WEBHOOK_CACHE_BYTES_MAX};
use crate::mail::{AuthError, Identity, TokenMark};
use crate::observe::auth::AuthFacts;
use crate::session::auth::{EXPIRY_UNIX_S_MAX, Recall};
use crate::wire::message::Text;

/// What all threads that ask share.
#[derive(Debug)]
pub struct Webhook {
    /// Written by whoever has asked, read by reactors too; held for a look or for one verdict, never while the service is asked.
    good: RwLock<Cache>,
    bad: Mutex<Cache>,
    breaker: Mutex<Breaker>,
    keep: Duration,
    facts: Arc<AuthFacts>,
}

impl Webhook {
    /// Verdicts are remembered for `keep`, at most until the token ends.
    #[must_use]
    pub fn new(keep: Duration, facts: Arc<AuthFacts>) -> Self {
        let cache = |bytes_max| Cache { bytes_max, ..Cache::default() };
        let good = RwLock::new(cache(WEBHOOK_CACHE_BYTES_MAX));
        let bad = Mutex::new(cache(WEBHOOK_BAD_CACHE_BYTES_MAX));
        Self { good, bad, breaker: Mutex::default(), keep, facts }
    }

    /// Judges `token` by what was said of it lately, or by asking.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] if the service says so, [`AuthError::Overloaded`] if it says nothing.
    pub fn judge(
        &self,
        client: &mut Client,
        token: &str,
        now: Moment,
        clock: impl Fn() -> Moment,
    ) -> Result<Identity, AuthError> {
        if let Some(verdict) = self.known(token, now) {
            self.facts.webhook_known.count();
            return verdict;
        }
        if !lock(&self.breaker).admits(now) {
            return Err(AuthError::Overloaded);
        }
        self.facts.webhook_asked.count();
        let answer = read(client.post(serde_json::json!({ "token": token }).to_string()), now.unix_ms);
        self.tell(&answer, clock());
        let Answer::Verdict(verdict) = answer else { return Err(AuthError::Overloaded) };
        self.remember(token, &verdict, now);
        verdict
    }

    fn known(&self, token: &str, now: Moment) -> Option<Result<Identity, AuthError>> {
        let good = self.good().find(token, now);
        good.or_else(|| lock(&self.bad).find(token, now))
    }

    fn remember(&self, token: &str, verdict: &Result<Identity, AuthError>, now: Moment) {
        if verdict.is_ok() {
            let mut good = self.good.write().unwrap_or_else(PoisonError::into_inner);
            good.keep(token, verdict.clone(), now, self.keep);
        } else {
            lock(&self.bad).keep(token, verdict.clone(), now, self.keep);
        }
    }

    fn good(&self) -> RwLockReadGuard<'_, Cache> {
        // As in `lock`.
        self.good.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the breaker, the metrics, and the operator, how a question went.
    fn tell(&self, answer: &Answer, now: Moment) {
        let failure = if let Answer::Failure(why) = answer { Some(why) } else { None };
        let mut breaker = lock(&self.breaker);
        let change = breaker.tell(failure.is_none(), now);
        let nonsense = if let Answer::Nothing(why) = answer { Some(why).filter(|_| breaker.may_complain(now)) } else { None };
        self.facts.webhook_open.set(u64::from(breaker.tries_at.is_some()));
        drop(breaker);
        if failure.is_some() {
            self.facts.webhook_failures.count();
        }
        if let Some(why) = nonsense {
            tracing::warn!(why, "auth.webhook_url says nothing about a token; its client is told to come back");
        }
        match change {
            None => {}
            Some(true) => tracing::info!("auth.webhook_url answers again"),
            Some(false) => {
                tracing::error!(why = failure, "auth.webhook_url does not answer; clients with its tokens are told to come back");
            }
        }
    }
}

/// What the service called good lately, for threads that may not wait for those who ask it. Cost of a look: a microsecond, a few for the
/// longest token.
pub struct Lately {
    webhook: Arc<Webhook>,
    clock: Clock,
}

impl Lately {
    /// By the clock of the threads that write the verdicts down.
    #[must_use]
    pub fn new(webhook: Arc<Webhook>, clock: Clock) -> Self {
        Self { webhook, clock }
    }
}

impl Recall for Lately {
    fn knows(&self, token: &str) -> bool {
        let good = match self.webhook.good.try_read() {
            Ok(good) => good,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Whoever asks the service will see it.
            Err(TryLockError::WouldBlock) => return false,
        };
        good.is_known(token, self.clock.now())
    }

    fn recall(&self, token: &str) -> Option<Identity> {
        let identity = self.webhook.good().find(token, self.clock.now())?.ok()?;
        self.webhook.facts.webhook_known.count();
        Some(identity)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is made whole under the lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the service says of a good token.
#[derive(Deserialize)]
struct Said {
    user: String,
    exp: u64,
    device: Option<String>,
    iat: Option<u64>,
    jti: Option<String>,
}

/// What an answer means.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Answer {
    /// The token is good, or bad.
    Verdict(Result<Identity, AuthError>),
    /// The service is there, and says nothing about the token.
    Nothing(String),
    /// It is not there, or failed.
    Failure(String),
}

fn read(asked: Result<(u16, Vec<u8>), Failure>, now_unix_ms: u64) -> Answer {
    let (status, body) = match asked {
        Ok(answer) => answer,
        Err(Failure::TooLong) => return Answer::Nothing(Failure::TooLong.to_string()),
        Err(Failure::Silent(why)) => return Answer::Failure(why),
    };
    match status {
        200 => said(&body, now_unix_ms).map_or_else(Answer::Nothing, |identity| Answer::Verdict(Ok(identity))),
        400 | 401 | 403 | 404 | 422 => Answer::Verdict(Err(AuthError::Invalid)),
        500.. => Answer::Failure(format!("status {status}")),
        _ => Answer::Nothing(format!("status {status}")),
    }
}

/// Whom a body of 200 names.
fn said(body: &[u8], now_unix_ms: u64) -> Result<Identity, String> {
    let said: Said = serde_json::from_slice(body).map_err(|error| {
        // The library's own words repeat what it found, and a service may answer with the token.
        let what = if error.is_data() { "without user or exp, or one of its values is of another type" } else { "no JSON" };
        format!("its answer: {what}, at line {} column {}", error.line(), error.column())
    })?;
    let device_is_one = said.device.as_deref().is_none_or(is_device);
    let id_fits = said.jti.as_ref().is_none_or(|id| !id.is_empty() && id.len() <= TOKEN_ID_BYTES_MAX);
    if !is_user(&said.user) || !device_is_one || !id_fits || said.exp > EXPIRY_UNIX_S_MAX {
        return Err("its answer: no user id, no device id, no jti of 1 to 255 bytes, or no Unix second in exp".to_owned());
    }
    Ok(Identity {
        user: Text::copy_from(&said.user),
        device: said.device.as_deref().map(Text::copy_from),
        expires_unix_s: said.exp,
        token: TokenMark { issued_unix_s: said.iat, id: said.jti.as_deref().map(Text::copy_from) },
        is_expired: now_unix_ms >= said.exp * 1000,
    })
}

/// Verdicts of late, the oldest one first in `order`.
#[derive(Debug, Default)]
struct Cache {
    known: HashMap<Box<str>, (Result<Identity, AuthError>, Moment)>,
    order: VecDeque<Box<str>>,
    bytes: usize,
    bytes_max: usize,
}

impl Cache {
    fn find(&self, token: &str, now: Moment) -> Option<Result<Identity, AuthError>> {
        self.at(token, now).cloned()
    }

    fn is_known(&self, token: &str, now: Moment) -> bool {
        self.at(token, now).is_some()
    }

    /// The verdict on `token`, while it counts.
    fn at(&self, token: &str, now: Moment) -> Option<&Result<Identity, AuthError>> {
        let (verdict, until) = self.known.get(token)?;
        let ends_ms = verdict.as_ref().map_or(u64::MAX, |identity| identity.expires_unix_s.saturating_mul(1000));
        (now < *until && now.unix_ms < ends_ms).then_some(verdict)
    }

    fn keep(&mut self, token: &str, verdict: Result<Identity, AuthError>, now: Moment, keep: Duration) {
        if keep.is_zero() {
            return;
        }
        let until = after(now, u64::try_from(keep.as_nanos()).unwrap_or(u64::MAX));
        if self.known.insert(token.into(), (verdict, until)).is_none() {
            self.order.push_back(token.into());
            self.bytes += ENTRY_BYTES + 2 * token.len();
        }
        while self.bytes > self.bytes_max
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
            self.bytes -= ENTRY_BYTES + 2 * oldest.len();
        }
    }
}

/// Keeps the threads from waiting for a service that does not answer.
#[derive(Debug, Default)]
struct Breaker {
    failures: u32,
    /// While it is open: when the next one may try.
    tries_at: Option<Moment>,
    /// When the next answer without sense is told to the operator.
    complains_at: Option<Moment>,
}

impl Breaker {
    fn admits(&mut self, now: Moment) -> bool {
        match self.tries_at {
            None => true,
            Some(at) if now < at => false,
            Some(_) => {
                // One tries; the others wait for what comes of it.
                self.tries_at = Some(after(now, OPEN_NS));
                true
            }
        }
    }

    /// Hears how a question went; `Some` if that opened (`false`) or closed it.
    fn tell(&mut self, answered: bool, now: Moment) -> Option<bool> {
        if answered {
            self.failures = 0;
            return self.tries_at.take().map(|_| true);
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURES_MAX {
            return None;
        }
        self.tries_at.replace(after(now, OPEN_NS)).is_none().then_some(false)
    }

    /// Whether the operator has not been told of nonsense lately.
    fn may_complain(&mut self, now: Moment) -> bool {
        let may = self.complains_at.is_none_or(|at| at <= now);
        if may {
            self.complains_at = Some(after(now, COMPLAINT_NS));
        }
        may
    }
}

fn after(now: Moment, ns: u64) -> Moment {
    Moment { mono_ns: now.mono_ns.saturating_add(ns), ..now }
}

/// The connection of one thread to the service.
///
/// # Errors
/// The kernel's.
pub fn client(url: Url, trust: Option<Trust>, patience: Duration) -> std::io::Result<Client> {
    Client::new(url, trust, patience, WEBHOOK_ANSWER_BYTES_MAX)
}

/// What an entry of the cache costs beside its token, which it holds twice.
const ENTRY_BYTES: usize = 256;
/// As many failures in a row open the breaker.
const FAILURES_MAX: u32 = 5;
/// For so long.
const OPEN_NS: u64 = 5_000_000_000;
/// Nonsense is told once in so long.
const COMPLAINT_NS: u64 = 60_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::Court;
    use crate::session::auth::Verifier;

    fn at(ms: u64) -> Moment {
        Moment { mono_ns: ms * 1_000_000, unix_ms: 1_764_000_000_000 + ms }
    }

    fn identity(expires_unix_s: u64) -> Identity {
        Identity { user: "al".into(), device: None, expires_unix_s, token: TokenMark::default(), is_expired: false }
    }

    /// Five failures in a row open it, one question every five seconds tries again, one answer closes it.
    #[test]
    fn the_breaker_opens_and_closes() {
        let mut breaker = Breaker::default();
        for _ in 0..4 {
            assert!(breaker.admits(at(0)));
            assert_eq!(breaker.tell(false, at(0)), None);
        }
        assert_eq!(breaker.tell(true, at(0)), None);
        assert!((0..4).all(|_| breaker.tell(false, at(0)).is_none()));
        assert_eq!(breaker.tell(false, at(0)), Some(false));
        assert!(!breaker.admits(at(4_999)));
        assert!(breaker.admits(at(5_000)) && !breaker.admits(at(5_001)), "one alone");
        assert_eq!(breaker.tell(false, at(5_002)), None);
        assert!(!breaker.admits(at(10_001)));
        assert!(breaker.admits(at(10_002)));
        assert_eq!(breaker.tell(true, at(10_003)), Some(true));
        assert!(breaker.admits(at(10_003)) && breaker.admits(at(10_003)));
    }

    /// A verdict is known for its time and not beyond the end of the token; the oldest ones make room.
    #[test]
    fn the_cache_forgets() {
        let mut cache = Cache { bytes_max: WEBHOOK_CACHE_BYTES_MAX, ..Cache::default() };
        let keep = Duration::from_secs(30);
        cache.keep("a", Ok(identity(1_764_000_010)), at(0), keep);
        cache.keep("b", Err(AuthError::Invalid), at(0), keep);
        assert_eq!(cache.find("a", at(9_999)), Some(Ok(identity(1_764_000_010))));
        assert_eq!(cache.find("a", at(10_000)), None, "the token has ended");
        assert_eq!((cache.find("b", at(29_999)), cache.find("b", at(30_000))), (Some(Err(AuthError::Invalid)), None));
        assert_eq!(cache.find("c", at(0)), None);
        cache.keep("c", Ok(identity(2_000_000_000)), at(0), Duration::ZERO);
        assert_eq!(cache.find("c", at(0)), None);
        for number in 0..10_000 {
            cache.keep(&format!("{number:01000}"), Err(AuthError::Invalid), at(0), keep);
        }
        assert!(cache.bytes <= WEBHOOK_CACHE_BYTES_MAX && cache.known.len() == cache.order.len());
        assert!(cache.find("b", at(0)).is_none() && cache.find(&format!("{:01000}", 9_999), at(0)).is_some());
    }

    /// Bad tokens in any number push no good verdict out.
    #[test]
    fn bad_verdicts_leave_good_ones_alone() {
        let webhook = Webhook::new(Duration::from_secs(30), Arc::default());
        webhook.remember("good", &Ok(identity(2_000_000_000)), at(0));
        for number in 0..20_000 {
            webhook.remember(&format!("{number:01000}"), &Err(AuthError::Invalid), at(0));
        }
        assert_eq!(webhook.known("good", at(0)), Some(Ok(identity(2_000_000_000))));
        assert_eq!(webhook.known(&format!("{:01000}", 19_999), at(0)), Some(Err(AuthError::Invalid)));
        assert!(lock(&webhook.bad).bytes <= WEBHOOK_BAD_CACHE_BYTES_MAX);
    }

    /// A reactor sees by itself that a token was called good lately, and waits for nobody, not even for a verdict that is being written down.
    /// What was called bad, what is over, and what nobody knows is for the threads that ask.
    #[test]
    fn a_token_that_is_known_to_be_good_waits_for_nobody() {
        let clock = Clock::new();
        let made = |keep| {
            let verifier = Verifier::of(None, false, true, Vec::new(), 0);
            let webhook = Arc::new(Webhook::new(keep, Arc::default()));
            verifier.remember_by(Arc::new(Lately::new(webhook.clone(), clock)));
            (verifier, webhook)
        };
        let now = clock.now();
        let (over_s, later_s) = (now.unix_ms / 1000, now.unix_ms / 1000 + 3600);
        let (verifier, webhook) = made(Duration::from_secs(600));
        webhook.remember("good", &Ok(identity(later_s)), now);
        webhook.remember("over", &Ok(identity(over_s)), now);
        webhook.remember("bad", &Err(AuthError::Invalid), now);
        assert_eq!(verifier.defers("good"), None);
        assert_eq!(verifier.read("good", now.unix_ms), Ok(identity(later_s)));
        for token in ["over", "bad", "made up"] {
            assert_eq!(verifier.defers(token), Some(Court::Webhook), "{token}");
            assert_eq!(verifier.read(token, now.unix_ms), Err(AuthError::Overloaded), "{token}: nobody says that it is bad");
        }
        assert_eq!(webhook.facts.webhook_known.value(), 1);
        let writing = webhook.good.write().unwrap();
        assert_eq!(verifier.defers("good"), Some(Court::Webhook));
        drop(writing);
        assert_eq!(verifier.defers("good"), None);
        // Remembered for its time and no longer.
        let (verifier, webhook) = made(Duration::from_nanos(1));
        webhook.remember("good", &Ok(identity(later_s)), Moment { mono_ns: 0, ..now });
        assert_eq!(verifier.defers("good"), Some(Court::Webhook));
    }

    /// What each status means, and that 200 counts only with a whole answer. Only silence and 5xx are failures.
    #[test]
    fn an_answer_is_read_strictly() {
        let of = |status, body: &[u8], now_ms| read(Ok((status, body.to_vec())), now_ms);
        let good = br#"{"user":"al","exp":1764000060,"device":"1","iat":5,"jti":"j","more":[1]}"#;
        let Answer::Verdict(Ok(said)) = of(200, good, 1_764_000_000_000) else { panic!("a good answer") };
        assert_eq!((said.user.as_str(), said.device.as_deref(), said.is_expired), ("al", Some("1"), false));
        assert_eq!(said.token, TokenMark { issued_unix_s: Some(5), id: Some("j".into()) });
        assert!(matches!(of(200, good, 1_764_000_060_000), Answer::Verdict(Ok(said)) if said.is_expired));
        for status in [400, 401, 403, 404, 422] {
            assert_eq!(of(status, b"", 0), Answer::Verdict(Err(AuthError::Invalid)), "{status}");
        }
        for status in [101, 201, 204, 301, 302, 405, 408, 413, 429] {
            assert!(matches!(of(status, good, 0), Answer::Nothing(_)), "{status}");
        }
        for status in [500, 502, 503, 504] {
            assert!(matches!(of(status, good, 0), Answer::Failure(_)), "{status}");
        }
        assert!(matches!(read(Err(Failure::TooLong), 0), Answer::Nothing(_)));
        assert!(matches!(read(Err(Failure::Silent(String::new())), 0), Answer::Failure(_)));
        let wrong: [&[u8]; 9] = [
            b"",
            b"[]",
            br#"{"user":"al"}"#,
            br#"{"exp":1}"#,
            br#"{"user":"a:b","exp":1}"#,
            br#"{"user":"al","exp":"1"}"#,
            br#"{"user":"al","exp":1764000060000000}"#,
            br#"{"user":"al","exp":1,"device":""}"#,
            br#"{"user":"al","exp":1,"jti":""}"#,
        ];
        for body in wrong {
            assert!(matches!(of(200, body, 0), Answer::Nothing(_)), "{}", String::from_utf8_lossy(body));
        }
    }

    /// A service may answer with the token that it was asked about. What the log is told of an answer repeats nothing of it.
    #[test]
    fn nothing_of_an_answer_is_repeated() {
        const TOKEN: &str = "t0ken-of-somebody";
        let bodies = [
            TOKEN.to_owned(),
            format!("{TOKEN:?}"),
            format!("[{TOKEN:?}]"),
            format!("{{{TOKEN:?}:1}}"),
            format!(r#"{{"user":["{TOKEN}"],"exp":1}}"#),
            format!(r#"{{"user":"{TOKEN} ","exp":1}}"#),
            format!(r#"{{"user":"al","exp":"{TOKEN}"}}"#),
            format!(r#"{{"user":"al","exp":1,"device":"{TOKEN}:{TOKEN:048}é"}}"#),
            format!(r#"{{"user":"al","exp":1,"iat":"{TOKEN}"}}"#),
            format!(r#"{{"user":"al","exp":1,"jti":{{"{TOKEN}":1}}}}"#),
        ];
        for body in bodies {
            for status in [200, 302, 500] {
                let (Answer::Nothing(why) | Answer::Failure(why)) = read(Ok((status, body.clone().into_bytes())), 0) else {
                    panic!("{status} {body}: a verdict")
                };
                assert!(!why.contains(TOKEN), "{status} {body}: {why}");
            }
        }
    }
}
