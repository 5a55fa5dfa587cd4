//! The tokens a device shows, by HELLO and by AUTH, and what it is told of them.

use super::Device;
use crate::ledger::{Finding, Ledger};
use crate::tokens::{Shown, Token, Tokens};

impl Device {
    /// The person shows a token by AUTH: a fresh one, one that ends earlier, somebody else's, or one the device has or had.
    pub fn renew(&mut self, now: u64, ledger: &mut Ledger) {
        if !self.machine.is_active() || self.renewals.is_under_way() {
            return;
        }
        let (tokens, user) = (&mut ledger.tokens, &self.user);
        let token = match self.random.index(4) {
            0 => return self.show_fresh(now, ledger),
            1 => tokens.issue_short(user, now),
            2 => tokens.issue("somebody", now),
            _ => self.former.get(self.random.index(self.former.len() + 1)).unwrap_or(&self.token).clone(),
        };
        self.show(token);
    }

    /// A fresh token by AUTH.
    pub(super) fn show_fresh(&mut self, now: u64, ledger: &mut Ledger) {
        self.get_fresh(now, ledger);
        self.show(self.token.clone());
    }

    pub(super) fn get_fresh(&mut self, now: u64, ledger: &mut Ledger) {
        let fresh = ledger.tokens.issue(&self.user, now);
        self.former.push(std::mem::replace(&mut self.token, fresh));
    }

    fn show(&mut self, token: Token) {
        self.machine.handle_token(&token.text);
        self.renewals.offer(token);
    }

    /// ERROR 2001, or close 4401.
    pub(super) fn judge_unwelcome(&self, ledger: &Ledger) -> Result<(), Finding> {
        let (tokens, shown) = (&ledger.tokens, self.shown());
        if self.is_welcome { tokens.judge_end(shown) } else { tokens.judge_refusal(shown) }
    }

    /// ERROR 2002: the token of HELLO had ended, or the session had by all its tokens.
    pub(super) fn judge_expiry(&self, now: u64) -> Result<(), Finding> {
        let is_right = if self.is_welcome { self.renewals.has_ended(now) } else { self.shown.0.has_ended(now) };
        if is_right { Ok(()) } else { Err(format!("{} of {} is told that its token has ended", self.name, self.user)) }
    }

    /// A session that stays when the trouble is over.
    ///
    /// # Errors
    /// Its token passes no more.
    pub fn judge_stay(&self, tokens: &Tokens) -> Result<(), Finding> {
        tokens.judge_session(self.shown())?;
        if self.is_welcome && !self.renewals.is_lasting() {
            return Err(format!("{} of {} is still there, and its token has ended", self.name, self.user));
        }
        Ok(())
    }

    /// What it has shown last.
    pub fn shown(&self) -> Shown<'_> {
        Shown { user: &self.user, device: &self.name, token: &self.shown.0, at: self.shown.1 }
    }
}
