//! AUTH: the person renews the session with a fresh token, one that ends earlier, one from before, or somebody else's.

use tidegate::wire::envelope::ServerFrame;

use crate::ledger::Finding;
use crate::tokens::{LASTING_S, Shown, Token, Tokens, unix_s};

/// The AUTHs of one connection, one at a time.
#[derive(Debug, Default)]
pub struct Renewals {
    /// Given to the machine, which has not written it.
    offered: Option<Token>,
    /// Written: its `rid`, the token, and when.
    asked: Option<(u32, Token, u64)>,
    /// When the session ends by all tokens that passed, Unix seconds.
    expires_s: u64,
    /// Codes of refusals that were judged, and of which the machine has not told the person yet.
    refusals: Vec<u16>,
}

impl Renewals {
    /// Another connection: what was asked is not answered any more, but may have been.
    pub fn connection_begins(&mut self) {
        *self = Self { refusals: std::mem::take(&mut self.refusals), ..Self::default() };
    }

    /// WELCOME to this token.
    pub fn welcome(&mut self, token: &Token) {
        self.expires_s = token.expires_s;
    }

    pub fn is_under_way(&self) -> bool {
        self.offered.is_some() || self.asked.is_some()
    }

    /// The machine has this token to show.
    pub fn offer(&mut self, token: Token) {
        self.offered = Some(token);
    }

    /// The machine has written an AUTH.
    pub fn written(&mut self, rid: u32, text: &str, now: u64) {
        if let Some(token) = self.offered.take_if(|token| token.text == text) {
            self.asked = Some((rid, token, now));
        }
    }

    /// By all tokens that passed the session is over.
    pub fn has_ended(&self, now: u64) -> bool {
        unix_s(now) >= self.expires_s
    }

    /// The session outlasts the run.
    pub fn is_lasting(&self) -> bool {
        self.expires_s >= LASTING_S
    }

    /// Judges the answer, if it is one to an AUTH of `user` and `device`.
    ///
    /// # Errors
    /// A token passed that should not, or did not and should, or the session ends at another time than it should.
    pub fn judge(&mut self, now: u64, frame: &ServerFrame<'_>, user: &str, device: &str, tokens: &Tokens) -> Result<(), Finding> {
        let (ServerFrame::Ok { rid, .. } | ServerFrame::Error { rid, .. }) = frame else { return Ok(()) };
        let Some((_, token, at)) = self.asked.take_if(|(asked, _, _)| asked == rid) else { return Ok(()) };
        let shown = Shown { user, device, token: &token, at };
        match frame {
            ServerFrame::Ok { .. } if *token.user != *user => {
                Err(format!("AUTH of {user} passes with a token of {}", token.user))
            }
            ServerFrame::Ok { value, .. } => {
                tokens.judge_passing(shown)?;
                self.expires_s = self.expires_s.max(token.expires_s);
                if *value == self.expires_s * 1000 {
                    return Ok(());
                }
                Err(format!("AUTH of {user}: the session ends at {value} ms, should be {} s", self.expires_s))
            }
            ServerFrame::Error { code, .. } => {
                self.refusals.push(*code);
                let is_right = match code {
                    2001 => *token.user != *user || tokens.may_bar(shown),
                    2002 => token.has_ended(now),
                    4001 | 4002 | 5002 | 5006 => true,
                    _ => false,
                };
                if is_right { Ok(()) } else { Err(format!("AUTH of {user} is refused with {code}, and its token is good")) }
            }
            _ => Ok(()),
        }
    }

    /// Whether the refusal that the machine tells of is one that was judged.
    pub fn take_refusal(&mut self, code: u16) -> bool {
        let judged = self.refusals.iter().position(|refusal| *refusal == code);
        judged.map(|at| self.refusals.remove(at)).is_some()
    }
}
