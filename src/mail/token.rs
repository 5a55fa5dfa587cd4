//! Tokens on their way to whoever judges them, and what they turn out to say.

use crate::clock::Moment;
use crate::ids::ReactorId;
use crate::wire::message::Text;

/// What a good token says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The user; satisfies [`crate::ids::is_user`].
    pub user: Text,
    /// The one device that may show it; `None`: any.
    pub device: Option<Text>,
    /// Unix seconds. The token passes until this and the leeway are over.
    pub expires_unix_s: u64,
    /// By what it can be revoked.
    pub token: TokenMark,
    /// That time is past.
    pub is_expired: bool,
}

impl Identity {
    /// Judges the rest: whether the device that shows the token may, and whether it still may.
    ///
    /// # Errors
    /// [`AuthError::Expired`] only if the token is good in every other way, so that a forger learns nothing from it.
    pub fn shown_by(self, device_fits: impl FnOnce(&str) -> bool) -> Result<Self, AuthError> {
        if !self.device.as_deref().is_none_or(device_fits) {
            return Err(AuthError::Invalid);
        }
        if self.is_expired { Err(AuthError::Expired) } else { Ok(self) }
    }
}

/// What tells a token from the others of its user: by that it can be revoked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TokenMark {
    /// `iat`, Unix seconds; `None`: it does not say, so it counts as older than any.
    pub issued_unix_s: Option<u64>,
    /// `jti`, if it has one.
    pub id: Option<Text>,
}

/// See [`super::Submit::Renew`].
#[derive(Debug)]
pub struct RenewMail {
    /// Who asks.
    pub from: super::Sender,
    /// Which token.
    pub token: TokenMark,
    /// Unix second at which it ends.
    pub expires_s: u32,
}

/// Why a token does not pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AuthError {
    /// Not a token of ours, or not for this device: ERROR 2001.
    Invalid,
    /// Was good once: ERROR 2002.
    Expired,
    /// Nobody could judge it now: ERROR 5002, close 4503.
    Overloaded,
}

/// Who judges a token that is not judged where it arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Court {
    /// The threads that have the public keys.
    Keys,
    /// Those that ask the operator's webhook.
    Webhook,
}

/// A reactor to a thread of `auth`: a token that costs too much to be judged on the way.
#[derive(Debug)]
pub struct Judge {
    /// By whom.
    pub court: Court,
    /// Who waits.
    pub reactor: ReactorId,
    /// Its connection; another one in the same slot is not meant.
    pub connection: crate::ids::ConnectionId,
    /// `rid` of the AUTH; 0: a HELLO.
    pub rid: u32,
    /// The token as it was shown, at most [`crate::limits::TOKEN_BYTES_MAX`].
    pub token: Box<str>,
    /// When it was shown.
    pub shown: Moment,
}

/// The answer to a [`Judge`].
#[derive(Debug)]
pub struct Judged {
    /// As it was asked.
    pub connection: crate::ids::ConnectionId,
    /// As it was asked.
    pub rid: u32,
    /// Whom the token speaks for; whether this device may show it is still to be judged.
    pub verdict: Result<Identity, AuthError>,
}
