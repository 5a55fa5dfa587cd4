//! Tokens, and those that pass no more: what is revoked, since when that is certain, and who may be turned away for it.

use std::sync::Arc;

use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;
use tidegate::mail::UserChange;

use crate::ledger::Finding;
use crate::{BEGINS_S, MS, SECOND};

/// A token, and what a revocation can name of it.
#[derive(Clone, Debug)]
pub struct Token {
    pub text: String,
    pub user: Arc<str>,
    /// Unix second.
    pub expires_s: u64,
    issued_s: u64,
    id: Option<String>,
}

/// All revocations there have been.
#[derive(Debug, Default)]
pub struct Tokens {
    /// How many were issued, which is the second at which the last was. `None`: nobody revokes, and all are of second 0.
    pub issued_count: Option<u64>,
    /// Seconds that a token lasts; 0: all outlast the run.
    pub life_s: u64,
    revocations: Vec<Revocation>,
}

#[derive(Debug)]
struct Revocation {
    user: Arc<str>,
    device: Option<String>,
    id: Option<String>,
    before_s: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// No answer: it holds or not.
    Asked,
    /// It was answered at this time, and holds for ever.
    Firm(u64),
    /// It was not made.
    Refused,
}

/// One connection of a device: who it says it is, and when.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    pub user: &'a str,
    pub device: &'a str,
    pub token: &'a Token,
    /// When it wrote HELLO, or AUTH.
    pub at: u64,
}

impl Tokens {
    /// A token for a user, later than all before it.
    pub fn issue(&mut self, user: &str, now: u64) -> Token {
        let expires_s = if self.life_s == 0 { ENDLESS_S } else { unix_s(now) + self.life_s };
        self.issue_until(user, expires_s)
    }

    /// One that ends earlier than others of this time.
    pub fn issue_short(&mut self, user: &str, now: u64) -> Token {
        let expires_s = if self.life_s == 0 { LASTING_S } else { unix_s(now) + self.life_s / 2 };
        self.issue_until(user, expires_s)
    }

    /// One that outlasts the run.
    pub fn issue_endless(&mut self, user: &str) -> Token {
        self.issue_until(user, ENDLESS_S)
    }

    fn issue_until(&mut self, user: &str, expires_s: u64) -> Token {
        if let Some(count) = &mut self.issued_count {
            *count += 1;
        }
        let issued_s = self.issued_count.unwrap_or(0);
        let id = self.issued_count.map(|count| format!("t{count}"));
        let mut claims = json!({"sub": user, "exp": expires_s, "iat": issued_s});
        if let Some(id) = &id {
            claims["jti"] = json!(id);
        }
        let text = encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET)).expect("claims are JSON");
        Token { text, user: user.into(), expires_s, issued_s, id }
    }

    /// Somebody asks for what `of` was shown to be revoked, in one of the four ways. Returns its number, and what to ask for.
    pub fn revoke(&mut self, of: Shown<'_>, way: usize, earlier_s: u64, now: u64) -> (usize, Option<String>, UserChange) {
        let all_s = self.issued_count.unwrap_or(0) + 1;
        let (device, id, before_s) = match way {
            0 => (None, None, all_s),
            1 => (Some(of.device.to_owned()), None, all_s),
            2 => (None, of.token.id.clone(), u64::MAX),
            _ => (None, None, earlier_s.min(all_s)),
        };
        // All tokens meant have ended by then.
        let until_s = if self.life_s == 0 { u64::MAX } else { unix_s(now) + self.life_s + LEEWAY_S };
        let change = UserChange::Revoke { before_s, until_s, id: id.as_deref().map(Into::into) };
        self.revocations.push(Revocation { user: of.user.into(), device: device.clone(), id, before_s, state: State::Asked });
        (self.revocations.len() - 1, device, change)
    }

    /// The operator has been answered.
    pub fn answered(&mut self, number: usize, now: u64, is_made: bool) {
        self.revocations[number].state = if is_made { State::Firm(now) } else { State::Refused };
    }

    /// WELCOME, or OK to an AUTH.
    ///
    /// # Errors
    /// The token had passed no more when it was shown.
    pub fn judge_passing(&self, shown: Shown<'_>) -> Result<(), Finding> {
        if shown.token.has_ended(shown.at) {
            return Err(format!("{} passes with a token shown at {} ms that had ended", shown.name(), shown.at / MS));
        }
        let firm = self.barring(shown).find_map(|it| it.firm_at().filter(|at| *at < shown.at));
        firm.map_or(Ok(()), |at| {
            Err(format!("{} passes with a token shown at {} ms, revoked at {} ms", shown.name(), shown.at / MS, at / MS))
        })
    }

    /// HELLO was refused for its token, or its session ended before WELCOME came through.
    ///
    /// # Errors
    /// Nobody has revoked it, and nobody revokes.
    pub fn judge_refusal(&self, shown: Shown<'_>) -> Result<(), Finding> {
        if self.may_bar(shown) || self.judge_end(shown).is_ok() {
            Ok(())
        } else {
            Err(format!("{} is refused with a token that is good", shown.name()))
        }
    }

    /// Whether somebody revokes the token.
    pub fn may_bar(&self, shown: Shown<'_>) -> bool {
        self.barring(shown).next().is_some()
    }

    /// A session was ended because somebody revokes.
    ///
    /// # Errors
    /// Nobody has, since it began.
    pub fn judge_end(&self, shown: Shown<'_>) -> Result<(), Finding> {
        let is_meant = self.naming(shown).any(|it| it.firm_at().is_none_or(|at| at >= shown.at));
        if is_meant { Ok(()) } else { Err(format!("the session of {} ends, and no token of it was revoked", shown.name())) }
    }

    /// A session that goes on.
    ///
    /// # Errors
    /// Its token passes no more.
    pub fn judge_session(&self, shown: Shown<'_>) -> Result<(), Finding> {
        let firm = self.barring(shown).find_map(Revocation::firm_at);
        firm.map_or(Ok(()), |at| Err(format!("{} is still there with a token revoked at {} ms", shown.name(), at / MS)))
    }

    /// What may have been revoked of the user and device, whichever token is meant: their sessions end.
    fn naming<'t>(&'t self, shown: Shown<'t>) -> impl Iterator<Item = &'t Revocation> {
        self.revocations.iter().filter(move |it| {
            it.state != State::Refused
                && *it.user == *shown.user
                && it.device.as_deref().is_none_or(|device| device == shown.device)
        })
    }

    /// What may bar the token.
    fn barring<'t>(&'t self, shown: Shown<'t>) -> impl Iterator<Item = &'t Revocation> {
        let token = shown.token;
        self.naming(shown).filter(|it| (it.id.is_none() || it.id == token.id) && token.issued_s < it.before_s)
    }
}

impl Token {
    /// It passes no more, whoever reads it.
    pub fn has_ended(&self, now: u64) -> bool {
        unix_s(now) >= self.expires_s + LEEWAY_S
    }
}

impl Revocation {
    fn firm_at(&self) -> Option<u64> {
        if let State::Firm(at) = self.state { Some(at) } else { None }
    }
}

impl Shown<'_> {
    fn name(&self) -> String {
        format!("{} of {}", self.device, self.user)
    }
}

pub const SECRET: &[u8; 32] = b"a secret of the simulation, 32 b";
/// How long after its end a token still passes, seconds.
pub const LEEWAY_S: u64 = 5;
/// Tokens that end no earlier than this outlast every run, Unix seconds.
pub const LASTING_S: u64 = 3_000_000_000;
const ENDLESS_S: u64 = 4_000_000_000;

/// The second of the wall clock.
pub fn unix_s(now: u64) -> u64 {
    BEGINS_S + now / SECOND
}
