//! Who a token speaks for.                                                                        [jsonwebtoken]
//!
//! A token is a JWT (RFC 7519) in compact form, three base64url parts: header, claims, signature. There are two kinds of keys. The shared
//! secret knows one algorithm, HS256, and costs a microsecond, so it is used where the token arrives. Public keys ([`Keys`]) know RS256,
//! ES256 or EdDSA, each bound to the key when it is loaded, and cost up to a hundred microseconds: elsewhere. What the header says can
//! only agree with the key. It names a key by `kid`, which is compared and never opened; `jku`, `x5u`, `jwk` and their like are not read.
//!
//! Claims read: `sub` (user), `exp` (Unix seconds), and, where present, `dev` (device), `nbf`, `iat`, `jti`, `iss`, `aud`. Each has its
//! type or the token is refused. The time is an argument; the library's clock is not used.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use serde::{Deserialize, Deserializer, Serialize};

use super::keys::Keys;
use crate::config::Secret;
use crate::ids::{is_device, is_user};
use crate::limits::{TOKEN_BYTES_MAX, TOKEN_ID_BYTES_MAX};
use crate::mail::{Court, TokenMark};
use crate::wire::message::Text;

pub use crate::mail::{AuthError, Identity};

/// Checks tokens.
pub struct Verifier {
    /// `None`: no token of HS256 passes.
    secret: Option<(DecodingKey, Validation)>,
    /// Whether there are public keys, held by others.
    has_public_keys: bool,
    /// Whether the operator's webhook judges what no key here is for.
    has_webhook: bool,
    /// What the webhook said lately. Unset: nothing is remembered here.
    recall: OnceLock<Arc<dyn Recall>>,
    audience: Vec<String>,
    leeway_ms: u64,
}

/// Good verdicts of the webhook that are remembered. Reactors look here first, so that a token that is known to be good waits for nobody
/// whose token is not.
pub trait Recall: Send + Sync {
    /// Whether `token` is known to be good. `false` too where that cannot be said at once: never waits.
    fn knows(&self, token: &str) -> bool;

    /// Whom `token` speaks for, if it is still known. Waits at most for one verdict to be written down.
    fn recall(&self, token: &str) -> Option<Identity>;
}

impl Verifier {
    /// For tokens of one secret. `leeway_s` is how long after `exp` a token still passes.
    #[must_use]
    pub fn new(secret: &Secret, leeway_s: u32) -> Self {
        let secret = (DecodingKey::from_secret(secret.as_bytes()), rules(Algorithm::HS256));
        Self {
            secret: Some(secret),
            has_public_keys: false,
            has_webhook: false,
            recall: OnceLock::new(),
            audience: Vec::new(),
            leeway_ms: u64::from(leeway_s).saturating_mul(1000),
        }
    }

    /// For tokens of public keys, and of a secret if there is one. A token of a public key that has an audience must name one of
    /// `audience`: its issuer may sign for others too.
    #[must_use]
    pub fn with_public_keys(secret: Option<&Secret>, audience: Vec<String>, leeway_s: u32) -> Self {
        let secret = secret.map(|secret| (DecodingKey::from_secret(secret.as_bytes()), rules(Algorithm::HS256)));
        Self {
            secret,
            has_public_keys: true,
            has_webhook: false,
            recall: OnceLock::new(),
            audience,
            leeway_ms: u64::from(leeway_s).saturating_mul(1000),
        }
    }

    /// For tokens of a secret if there is one, of public keys if there are any, and of the webhook for what is left if it is asked.
    #[must_use]
    pub fn of(secret: Option<&Secret>, has_public_keys: bool, has_webhook: bool, audience: Vec<String>, leeway_s: u32) -> Self {
        Self { has_public_keys, has_webhook, ..Self::with_public_keys(secret, audience, leeway_s) }
    }

    /// Looks into `recall` before the webhook is asked. Once, at the start; another one later is passed over.
    pub fn remember_by(&self, recall: Arc<dyn Recall>) {
        drop(self.recall.set(recall));
    }

    /// Who is to judge `token`, because it takes too long for a thread that others wait for; `None`: [`Verifier::read`]. A token for
    /// which there is a key is judged by keys alone: the webhook does not hear of it whatever they say. One that the webhook called good
    /// lately is not given to its threads again.
    #[must_use]
    pub fn defers(&self, token: &str) -> Option<Court> {
        let court = self.court(token)?;
        let is_known = court == Court::Webhook && self.recall.get().is_some_and(|recall| recall.knows(token));
        (!is_known).then_some(court)
    }

    /// Whose business `token` is; `None`: that of the secret.
    fn court(&self, token: &str) -> Option<Court> {
        if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        match decode_header(token).ok().map(|header| header.alg) {
            Some(Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA) if self.has_public_keys => Some(Court::Keys),
            Some(Algorithm::HS256) if self.secret.is_some() => None,
            _ => self.has_webhook.then_some(Court::Webhook),
        }
    }

    /// Judges `token`, shown by `device` at `now_unix_ms`, by the secret. Cost: a few microseconds, some allocations.
    ///
    /// # Errors
    /// As [`Verifier::read`], and [`AuthError::Expired`], but only if the token is good in every other way, so that a forger learns nothing
    /// from it.
    pub fn verify(&self, token: &str, device: &str, now_unix_ms: u64) -> Result<Identity, AuthError> {
        self.read(token, now_unix_ms)?.shown_by(|named| named == device)
    }

    /// As [`Verifier::verify`], but leaves the device and the end to [`Identity::shown_by`]. A token of the webhook's is judged by what is
    /// remembered.
    ///
    /// # Errors
    /// [`AuthError::Invalid`]; [`AuthError::Overloaded`] if what was remembered has just been forgotten.
    pub fn read(&self, token: &str, now_unix_ms: u64) -> Result<Identity, AuthError> {
        if let Some(recall) = self.recall.get()
            && self.court(token) == Some(Court::Webhook)
        {
            return recall.recall(token).ok_or(AuthError::Overloaded);
        }
        let (key, rules) = self.secret.as_ref().ok_or(AuthError::Invalid)?;
        self.judge(&claims_of(token, key, rules)?, now_unix_ms)
    }

    /// Judges `token` by the one of `keys` that it names. Cost: 20 to 100 microseconds.
    ///
    /// # Errors
    /// [`AuthError::Invalid`].
    pub fn read_public(&self, keys: &Keys, token: &str, now_unix_ms: u64) -> Result<Identity, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::Invalid);
        }
        let header = decode_header(token).map_err(|_| AuthError::Invalid)?;
        // Not believed, only used to choose among keys that are here.
        let named: Issuer = insecure_decode_claims(token).map_err(|_| AuthError::Invalid)?;
        let key = keys.find(named.iss.as_deref(), header.kid.as_deref(), header.alg).ok_or(AuthError::Invalid)?;
        let claims = claims_of(token, &key.key, &key.rules)?;
        let issuer_fits = key.issuer.is_none() || key.issuer == claims.iss;
        let audience_fits = claims.aud.as_ref().map_or(self.audience.is_empty(), |named| named.names_one_of(&self.audience));
        if !issuer_fits || !audience_fits {
            return Err(AuthError::Invalid);
        }
        self.judge(&claims, now_unix_ms)
    }

    /// Whether `token` names a key that is not among `keys`. A text that is no token names none.
    #[must_use]
    pub fn lacks_key(keys: &Keys, token: &str) -> bool {
        let Ok(header) = decode_header(token) else { return false };
        let Ok(named) = insecure_decode_claims::<Issuer>(token) else { return false };
        keys.find(named.iss.as_deref(), header.kid.as_deref(), header.alg).is_none()
    }

    /// What is left once the signature holds.
    fn judge(&self, claims: &Claims, now_unix_ms: u64) -> Result<Identity, AuthError> {
        let device_is_one = claims.dev.as_deref().is_none_or(is_device);
        // One that is longer could not be named when it is to be revoked.
        if claims.jti.as_ref().is_some_and(|id| id.is_empty() || id.len() > TOKEN_ID_BYTES_MAX) {
            return Err(AuthError::Invalid);
        }
        if !is_user(&claims.sub) || !device_is_one || claims.exp > EXPIRY_UNIX_S_MAX {
            return Err(AuthError::Invalid);
        }
        if claims.nbf.is_some_and(|from| from.saturating_mul(1000) > now_unix_ms.saturating_add(self.leeway_ms)) {
            return Err(AuthError::Invalid);
        }
        Ok(Identity {
            user: Text::copy_from(&claims.sub),
            device: claims.dev.as_deref().map(Text::copy_from),
            expires_unix_s: claims.exp,
            token: TokenMark { issued_unix_s: claims.iat, id: claims.jti.as_deref().map(Text::copy_from) },
            is_expired: now_unix_ms >= claims.exp.saturating_mul(1000).saturating_add(self.leeway_ms),
        })
    }
}

/// The claims of a token whose signature holds under `key`.
fn claims_of(token: &str, key: &DecodingKey, rules: &Validation) -> Result<Claims, AuthError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(AuthError::Invalid);
    }
    let token = decode::<Claims>(token, key, rules).map_err(|_| AuthError::Invalid)?;
    // RFC 7515 4.1.11: a header that lists extensions as critical must be refused by whoever does not know them.
    if token.header.crit.is_some() {
        return Err(AuthError::Invalid);
    }
    Ok(token.claims)
}

/// What the library checks: the signature, by this algorithm alone. Claims are judged here, against the time we are given.
pub(super) fn rules(algorithm: Algorithm) -> Validation {
    let mut rules = Validation::new(algorithm);
    rules.required_spec_claims.clear();
    rules.validate_exp = false;
    rules.validate_nbf = false;
    rules.validate_aud = false;
    rules
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("leeway_ms", &self.leeway_ms).finish_non_exhaustive()
    }
}

/// Makes a token for `user`, for any device or for `device` alone, issued and expiring at these Unix seconds. `None`: a name is not one,
/// or the expiry is beyond the year 9999.
#[must_use]
pub fn mint(secret: &Secret, user: &str, device: Option<&str>, life: Range<u64>) -> Option<String> {
    if !is_user(user) || !device.is_none_or(is_device) || life.end > EXPIRY_UNIX_S_MAX {
        return None;
    }
    let (sub, dev) = (user.to_owned(), device.map(str::to_owned));
    let claims = Claims { sub, dev, exp: life.end, nbf: None, iat: Some(life.start), jti: None, iss: None, aud: None };
    encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret.as_bytes())).ok()
}

/// The end of the year 9999. A later expiry is a mistake of unit, such as milliseconds.
pub const EXPIRY_UNIX_S_MAX: u64 = 253_402_300_799;

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    dev: Option<String>,
    exp: u64,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    iat: Option<u64>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    jti: Option<String>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    iss: Option<String>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    aud: Option<Audience>,
}

/// The one claim by which a key is chosen.
#[derive(Deserialize)]
struct Issuer {
    #[serde(default, deserialize_with = "present")]
    iss: Option<String>,
}

/// RFC 7519 4.1.3: one name, or a list of them.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn names_one_of(&self, allowed: &[String]) -> bool {
        match self {
            Self::One(name) => allowed.contains(name),
            Self::Many(names) => names.iter().any(|name| allowed.contains(name)),
        }
    }
}

/// A claim that is there must have its type: `null` is not "absent", or a broken issuer would widen its own tokens.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
    use jsonwebtoken::crypto::sign;

    use super::*;

    const NOW_S: u64 = 1_800_000_000;
    const NOW_MS: u64 = NOW_S * 1000;
    const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
    const GOOD: &str = r#"{"sub":"ann","exp":1800000060}"#;

    fn secret() -> Secret {
        Secret::new(b"0123456789abcdef0123456789abcdef".to_vec()).unwrap()
    }

    fn verify(token: &str) -> Result<Identity, AuthError> {
        Verifier::new(&secret(), 5).verify(token, "phone", NOW_MS)
    }

    /// A token of any header and claims, with a signature that is right for `algorithm`.
    fn signed_as(header: &str, claims: &str, algorithm: Algorithm) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = sign(message.as_bytes(), &EncodingKey::from_secret(secret().as_bytes()), algorithm).unwrap();
        format!("{message}.{signature}")
    }

    fn signed(header: &str, claims: &str) -> String {
        signed_as(header, claims, Algorithm::HS256)
    }

    /// What `mint` makes passes, for any device or for the one it names, and says who and until when.
    #[test]
    fn a_minted_token_passes() {
        let token = mint(&secret(), "ann", None, NOW_S..NOW_S + 60).unwrap();
        let identity = Identity {
            user: "ann".into(),
            device: None,
            expires_unix_s: NOW_S + 60,
            token: TokenMark { issued_unix_s: Some(NOW_S), id: None },
            is_expired: false,
        };
        assert_eq!(verify(&token), Ok(identity));
        let bound = mint(&secret(), "ann", Some("phone"), NOW_S..NOW_S + 60).unwrap();
        assert!(verify(&bound).is_ok());
        assert_eq!(Verifier::new(&secret(), 5).verify(&bound, "laptop", NOW_MS), Err(AuthError::Invalid));
        assert_eq!(mint(&secret(), "a:b", None, NOW_S..NOW_S + 1), None);
        assert_eq!(mint(&secret(), "ann", Some("my phone"), NOW_S..NOW_S + 1), None);
    }

    /// The helper of the table below is honest: with good parts its token passes, also with claims we do not know.
    #[test]
    fn a_hand_made_token_passes() {
        assert!(verify(&signed(HS256, GOOD)).is_ok());
        let more = r#"{"sub":"ann","exp":1800000060,"nbf":1800000004,"iat":1,"aud":["x"],"iss":"y","name":{"a":[null]}}"#;
        assert!(verify(&signed(HS256, more)).is_ok());
        assert!(verify(&signed(r#"{"alg":"HS256","kid":"k1"}"#, GOOD)).is_ok());
    }

    /// The last millisecond of the leeway passes and the next does not.
    #[test]
    fn expiry_is_judged_at_the_given_time() {
        let token = signed(HS256, GOOD);
        let at = |now_ms| Verifier::new(&secret(), 5).verify(&token, "phone", now_ms).map(|_| ());
        assert_eq!(at(1_800_000_064_999), Ok(()));
        assert_eq!(at(1_800_000_065_000), Err(AuthError::Expired));
        assert_eq!(at(u64::MAX), Err(AuthError::Expired));
        assert_eq!(Verifier::new(&secret(), 0).verify(&token, "phone", 1_800_000_060_000), Err(AuthError::Expired));
    }

    /// Claims and headers that are signed with the right key and still must not pass.
    #[test]
    fn signed_tokens_with_wrong_contents_are_invalid() {
        let wrong_claims = [
            ("missing exp", r#"{"sub":"ann"}"#),
            ("exp is a string", r#"{"sub":"ann","exp":"1800000060"}"#),
            ("exp is a float", r#"{"sub":"ann","exp":1800000060.0}"#),
            ("exp has an exponent", r#"{"sub":"ann","exp":18e8}"#),
            ("exp is negative", r#"{"sub":"ann","exp":-1}"#),
            ("exp is null", r#"{"sub":"ann","exp":null}"#),
            ("exp is a list", r#"{"sub":"ann","exp":[1800000060]}"#),
            ("exp is true", r#"{"sub":"ann","exp":true}"#),
            ("exp in milliseconds", r#"{"sub":"ann","exp":1800000060000}"#),
            ("exp beyond u64", r#"{"sub":"ann","exp":18446744073709551616}"#),
            ("exp twice", r#"{"sub":"ann","exp":1,"exp":1800000060}"#),
            ("missing sub", r#"{"exp":1800000060}"#),
            ("sub twice", r#"{"sub":"bo","sub":"ann","exp":1800000060}"#),
            ("sub is empty", r#"{"sub":"","exp":1800000060}"#),
            ("sub is a number", r#"{"sub":7,"exp":1800000060}"#),
            ("sub is null", r#"{"sub":null,"exp":1800000060}"#),
            ("sub is a list", r#"{"sub":["ann"],"exp":1800000060}"#),
            ("sub with a colon", r#"{"sub":"a:b","exp":1800000060}"#),
            ("sub with a blank", r#"{"sub":"a b","exp":1800000060}"#),
            ("sub with a NUL", r#"{"sub":"ann\u0000","exp":1800000060}"#),
            ("sub beyond ASCII", r#"{"sub":"\u00e4nn","exp":1800000060}"#),
            ("dev of another device", r#"{"sub":"ann","exp":1800000060,"dev":"laptop"}"#),
            ("dev is empty", r#"{"sub":"ann","exp":1800000060,"dev":""}"#),
            ("dev is null", r#"{"sub":"ann","exp":1800000060,"dev":null}"#),
            ("dev is a number", r#"{"sub":"ann","exp":1800000060,"dev":1}"#),
            ("not before later", r#"{"sub":"ann","exp":1800000060,"nbf":1800000006}"#),
            ("nbf is a string", r#"{"sub":"ann","exp":1800000060,"nbf":"0"}"#),
            ("claims are a list", r#"["ann",1800000060]"#),
            ("claims are a string", r#""ann""#),
            ("claims are empty", ""),
            ("claims end early", r#"{"sub":"ann","exp":1800000060"#),
            ("claims with a tail", r#"{"sub":"ann","exp":1800000060}{}"#),
        ];
        for (name, claims) in wrong_claims {
            assert_eq!(verify(&signed(HS256, claims)), Err(AuthError::Invalid), "{name}");
        }
        let long = format!(r#"{{"sub":"{}","exp":1800000060}}"#, "a".repeat(65));
        assert_eq!(verify(&signed(HS256, &long)), Err(AuthError::Invalid), "sub of 65 bytes");
        let wrong_headers = [
            ("alg none", r#"{"alg":"none"}"#),
            ("alg None", r#"{"alg":"None"}"#),
            ("alg empty", r#"{"alg":""}"#),
            ("alg missing", r#"{"typ":"JWT"}"#),
            ("alg in lower case", r#"{"alg":"hs256"}"#),
            ("alg of a public key", r#"{"alg":"RS256"}"#),
            ("alg of a curve", r#"{"alg":"EdDSA"}"#),
            ("alg is a list", r#"{"alg":["HS256"]}"#),
            ("critical extension", r#"{"alg":"HS256","crit":["b64"],"b64":false}"#),
            ("header is a list", "[]"),
        ];
        for (name, header) in wrong_headers {
            assert_eq!(verify(&signed(header, GOOD)), Err(AuthError::Invalid), "{name}");
        }
        for (name, algorithm) in [("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)] {
            let header = format!(r#"{{"alg":"{name}"}}"#);
            assert_eq!(verify(&signed_as(&header, GOOD, algorithm)), Err(AuthError::Invalid), "{name}");
        }
    }

    /// Strings that are no token, or whose signature does not hold.
    #[test]
    fn damaged_tokens_are_invalid() {
        let good = signed(HS256, GOOD);
        let parts: Vec<&str> = good.split('.').collect();
        let (header, claims, signature) = (parts[0], parts[1], parts[2]);
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let other_claims = URL_SAFE_NO_PAD.encode(r#"{"sub":"bo","exp":1800000060}"#);
        let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let mut flipped = bytes.clone();
        flipped[31] ^= 1;
        let damaged = [
            ("empty", String::new()),
            ("dots", "..".to_owned()),
            ("one part", header.to_owned()),
            ("two parts", format!("{header}.{claims}")),
            ("no signature", format!("{header}.{claims}.")),
            ("four parts", format!("{good}.{signature}")),
            ("five parts, as in JWE", format!("{header}.{claims}.{signature}.{claims}.{signature}")),
            ("none without signature", format!("{none}.{claims}.")),
            ("none with a good signature's bytes", format!("{none}.{claims}.{signature}")),
            ("other claims", format!("{header}.{other_claims}.{signature}")),
            ("one bit of the signature", format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode(&flipped))),
            ("a signature cut short", format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode(&bytes[..31]))),
            ("a signature too long", format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode([bytes.as_slice(), b"x"].concat()))),
            ("padded base64", format!("{header}.{claims}.{}", URL_SAFE.encode(&bytes))),
            ("not base64", format!("{header}.{claims}.****")),
            ("the other alphabet", format!("{}.{claims}.{signature}", STANDARD.encode(r#"{"alg":"HS256","k":"??>>"}"#))),
            ("a blank in front", format!(" {good}")),
            ("a line feed behind", format!("{good}\n")),
            ("with its scheme", format!("Bearer {good}")),
            ("truncated", good[..good.len() - 1].to_owned()),
            ("beyond ASCII", format!("{header}.{claims}.\u{e9}")),
        ];
        for (name, token) in damaged {
            assert_eq!(verify(&token), Err(AuthError::Invalid), "{name}");
        }
        let other_key = Secret::new(vec![7; 32]).unwrap();
        assert_eq!(verify(&mint(&other_key, "ann", None, NOW_S..NOW_S + 60).unwrap()), Err(AuthError::Invalid));
        // An expired token of a stranger is not told to be expired.
        assert_eq!(verify(&mint(&other_key, "ann", None, NOW_S - 90..NOW_S - 60).unwrap()), Err(AuthError::Invalid));
        assert_eq!(verify(&mint(&secret(), "ann", None, NOW_S - 90..NOW_S - 60).unwrap()), Err(AuthError::Expired));
    }

    /// 8 KiB is looked at, one byte more is not, however well signed.
    #[test]
    fn a_token_above_8_kib_is_invalid() {
        let of = |filler: usize| signed(HS256, &format!(r#"{{"sub":"ann","exp":1800000060,"x":"{}"}}"#, "x".repeat(filler)));
        let filler = (0..8192).rev().find(|&filler| of(filler).len() <= TOKEN_BYTES_MAX).unwrap();
        assert!(verify(&of(filler)).is_ok());
        assert!(of(filler + 2).len() > TOKEN_BYTES_MAX);
        assert_eq!(verify(&of(filler + 2)), Err(AuthError::Invalid));
    }

    /// Every prefix of a good token is refused without a panic.
    #[test]
    fn no_prefix_of_a_token_passes() {
        let good = signed(HS256, GOOD);
        for end in 0..good.len() {
            assert_eq!(verify(&good[..end]), Err(AuthError::Invalid), "{end}");
        }
    }
}
