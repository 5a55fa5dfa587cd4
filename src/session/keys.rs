//! The public keys by which tokens are judged: read from PEM and JWKS (RFC 7517), each bound to one algorithm here and for good.
//! [jsonwebtoken]
//!
//! ```text
//! file                      kid                         algorithm
//! PEM, `PUBLIC KEY` (RFC 5280, 8410), `RSA PUBLIC KEY` (RFC 8017)
//!                           its name without the end    RS256 of RSA, ES256 of P-256, EdDSA of Ed25519
//! JWKS, {"keys":[…]}        `kid`, may be absent        `alg`, else as above
//! ```
//!
//! A key is found by issuer, kid and algorithm together, so neither a key of another issuer nor another reading of the same key can stand
//! in for it. Keys of a JWKS that are for something else (`use` or `alg`) are passed over; one that is meant for tokens and is weak,
//! private or not what it says makes the whole file refused, because a key that silently is not there locks users out.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

use super::auth::rules;
use crate::limits::KEYS_MAX;

/// The keys in force.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    keys: Vec<Key>,
}

/// A public key.
#[derive(Clone)]
pub struct Key {
    /// `iss` of its tokens; `None`: whatever they say.
    pub(super) issuer: Option<String>,
    kid: Option<String>,
    algorithm: Algorithm,
    pub(super) key: DecodingKey,
    pub(super) rules: Validation,
}

impl Keys {
    /// Reads the text of a file called `name`; `issuer` is that of the keys that do not name their own.
    ///
    /// # Errors
    /// What is wrong with which key, and what to do.
    pub fn read(name: &str, text: &str, issuer: Option<&str>) -> Result<Self, String> {
        let keys = if text.trim_start().starts_with('{') {
            jwks(text, issuer)
        } else {
            pem(text).map(|(algorithm, key)| vec![Key::new(issuer, Some(stem(name)), algorithm, key)])
        };
        let keys = keys.map_err(|error| format!("{name}: {error}"))?;
        let mut all = Self::default();
        all.add(Self { keys }).map_err(|error| format!("{name}: {error}"))?;
        Ok(all)
    }

    /// Takes in more keys.
    ///
    /// # Errors
    /// Two keys that a token could not tell apart, or more than [`KEYS_MAX`].
    pub fn add(&mut self, more: Self) -> Result<(), String> {
        for key in more.keys {
            if let Some(same) = self.keys.iter().find(|same| same.is_taken_for(&key)) {
                return Err(format!("{same} and {key} have the same issuer, kid and algorithm; give each a kid of its own"));
            }
            self.keys.push(key);
        }
        if self.keys.len() > KEYS_MAX {
            return Err(format!("more than {KEYS_MAX} keys; remove old ones"));
        }
        Ok(())
    }

    /// The key of this name. A token without `kid` has one only if there is no choice.
    pub(super) fn find(&self, issuer: Option<&str>, kid: Option<&str>, algorithm: Algorithm) -> Option<&Key> {
        let mut fitting = self.keys.iter().filter(|key| {
            key.algorithm == algorithm
                && (key.issuer.is_none() || key.issuer.as_deref() == issuer)
                && (kid.is_none() || key.kid.as_deref() == kid)
        });
        fitting.next().filter(|_| fitting.next().is_none())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Their names, for the log.
    #[must_use]
    pub fn names(&self) -> String {
        self.keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl Key {
    fn new(issuer: Option<&str>, kid: Option<&str>, algorithm: Algorithm, key: DecodingKey) -> Self {
        let (issuer, kid) = (issuer.map(str::to_owned), kid.map(str::to_owned));
        Self { issuer, kid, algorithm, key, rules: rules(algorithm) }
    }

    /// Whether some token would find both.
    fn is_taken_for(&self, other: &Self) -> bool {
        let issuers_meet = self.issuer.is_none() || other.issuer.is_none() || self.issuer == other.issuer;
        self.algorithm == other.algorithm && self.kid == other.kid && issuers_meet
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:.64?}", self.algorithm, self.kid.as_deref().unwrap_or(""))?;
        self.issuer.as_ref().map_or(Ok(()), |issuer| write!(f, " of {issuer:.128?}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

/// A file's name without its folder and its ending.
fn stem(name: &str) -> &str {
    let file = name.rsplit('/').next().unwrap_or(name);
    file.split_once('.').map_or(file, |(stem, _)| stem)
}

/// The one key of a PEM text.
fn pem(text: &str) -> Result<(Algorithm, DecodingKey), String> {
    if text.contains("PRIVATE KEY") {
        return Err(format!("this is a private key; the gateway needs the public one: {PUBLIC_FROM_PRIVATE}"));
    }
    let (label, rest) = text
        .split_once("-----BEGIN ")
        .and_then(|(_, rest)| rest.split_once("-----"))
        .ok_or("neither PEM nor JWKS; write the public key as PEM, or a JSON object {\"keys\":[…]}")?;
    let (body, after) = rest.split_once("-----END ").ok_or("the PEM ends before its END line")?;
    if after.contains("-----BEGIN ") {
        return Err("more than one key in a PEM file; give each a file, whose name is its kid".to_owned());
    }
    let body: String = body.split_ascii_whitespace().collect();
    let der = STANDARD.decode(body).map_err(|_| "the PEM is not base64")?;
    if label == "PUBLIC KEY" {
        if let Some(point) = der.strip_prefix(P256_PREFIX) {
            return p256(point);
        }
        if let Some(bytes) = der.strip_prefix(ED25519_PREFIX) {
            return ed25519(bytes);
        }
    }
    if label != "PUBLIC KEY" && label != "RSA PUBLIC KEY" {
        return Err(format!("a PEM of {label:.40?}; wanted: PUBLIC KEY; {PUBLIC_FROM_PRIVATE}"));
    }
    let key = DecodingKey::from_rsa_pem(text.as_bytes()).map_err(|_| KINDS.to_owned())?;
    let parts = Jwk::from_decoding_key(&key, None).map_err(|_| KINDS.to_owned())?;
    match parts.algorithm {
        AlgorithmParameters::RSA(parts) => rsa(&parts.n, &parts.e),
        _ => Err(KINDS.to_owned()),
    }
}

/// A key as RFC 7517 and 7518 6 write it. A member of another type makes the file refused.
#[derive(Deserialize)]
struct Member {
    kty: String,
    alg: Option<String>,
    r#use: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    /// Not of the RFC, but in files that hold the keys of several issuers.
    issuer: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Member>,
}

fn jwks(text: &str, issuer: Option<&str>) -> Result<Vec<Key>, String> {
    let set: Set = serde_json::from_str(text).map_err(|error| format!("no JWKS: {error}"))?;
    let mut keys = Vec::new();
    for (number, member) in set.keys.iter().enumerate() {
        let bound = member.bind().map_err(|error| format!("key {number}, kid {:.64?}: {error}", member.kid))?;
        if let Some((algorithm, key)) = bound {
            keys.push(Key::new(member.issuer.as_deref().or(issuer), member.kid.as_deref(), algorithm, key));
        }
    }
    if keys.is_empty() {
        return Err(format!("no key for tokens among {}; {KINDS}", set.keys.len()));
    }
    Ok(keys)
}

impl Member {
    /// The key and its algorithm; `None`: it is for something else.
    fn bind(&self) -> Result<Option<(Algorithm, DecodingKey)>, String> {
        let curve = self.crv.as_deref().unwrap_or("");
        let by_kind = match (self.kty.as_str(), curve) {
            ("oct", _) => return Err("a shared secret; set auth.secret_file instead".to_owned()),
            ("RSA", _) => "RS256",
            ("EC", "P-256") => "ES256",
            ("OKP", "Ed25519") => "EdDSA",
            _ => "",
        };
        let is_for_tokens = self.r#use.as_deref().is_none_or(|what| what == "sig");
        let algorithm = self.alg.as_deref().unwrap_or(by_kind);
        if !is_for_tokens || !matches!(algorithm, "RS256" | "ES256" | "EdDSA") {
            return Ok(None);
        }
        if self.d.is_some() {
            return Err("a private key; give the gateway the public members only".to_owned());
        }
        if algorithm != by_kind {
            return Err(format!("alg {algorithm} does not fit kty {:.16?} with crv {curve:.16?}", self.kty));
        }
        let part = |name: &str, text: &Option<String>| text.clone().ok_or(format!("no member {name}"));
        match algorithm {
            "RS256" => rsa(&part("n", &self.n)?, &part("e", &self.e)?),
            "ES256" => p256(&[vec![4], bytes32("x", &part("x", &self.x)?)?, bytes32("y", &part("y", &self.y)?)?].concat()),
            _ => ed25519(&bytes32("x", &part("x", &self.x)?)?),
        }
        .map(Some)
    }
}

fn bytes32(name: &str, text: &str) -> Result<Vec<u8>, String> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| format!("{name} is not base64url without padding"))?;
    if bytes.len() == 32 { Ok(bytes) } else { Err(format!("{name} has {} bytes; wanted: 32", bytes.len())) }
}

/// Modulus and exponent in base64url.
fn rsa(modulus: &str, exponent: &str) -> Result<(Algorithm, DecodingKey), String> {
    let number = |name: &str, text: &str| -> Result<Vec<u8>, String> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| format!("{name} is not base64url without padding"))?;
        Ok(bytes.into_iter().skip_while(|&byte| byte == 0).collect())
    };
    let (n, e) = (number("n", modulus)?, number("e", exponent)?);
    let bits = n.first().map_or(0, |first| n.len().saturating_mul(8).saturating_sub(first.leading_zeros() as usize));
    if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
        return Err(format!("an RSA key of {bits} bits; allowed: {RSA_BITS_MIN} to {RSA_BITS_MAX}; make a new one"));
    }
    // With an exponent of 1 every token is its own signature.
    let exponent = e.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    if e.len() > 8 || exponent < 3 || exponent.is_multiple_of(2) {
        return Err("no RSA key: its exponent is odd, at least 3 and below 2^64".to_owned());
    }
    Ok((Algorithm::RS256, DecodingKey::from_rsa_raw_components(&n, &e)))
}

/// An uncompressed point of P-256 (SEC 1 2.3.3), 65 bytes.
fn p256(point: &[u8]) -> Result<(Algorithm, DecodingKey), String> {
    if point.len() != 65 || point.first() != Some(&4) {
        return Err("no uncompressed point of P-256".to_owned());
    }
    Ok((Algorithm::ES256, DecodingKey::from_ec_der(point)))
}

fn ed25519(bytes: &[u8]) -> Result<(Algorithm, DecodingKey), String> {
    if bytes.len() != 32 {
        return Err(format!("an Ed25519 key of {} bytes; wanted: 32", bytes.len()));
    }
    Ok((Algorithm::EdDSA, DecodingKey::from_ed_der(bytes)))
}

/// Shorter ones can be broken; longer ones cost a milliseconds per token.
const RSA_BITS_MIN: usize = 2048;
/// See [`RSA_BITS_MIN`].
const RSA_BITS_MAX: usize = 8192;
/// `SubjectPublicKeyInfo` of P-256 with an uncompressed point up to that point (RFC 5480 2).
const P256_PREFIX: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03,
    0x01, 0x07, 0x03, 0x42, 0x00,
];
/// `SubjectPublicKeyInfo` of Ed25519 up to the key (RFC 8410 4).
const ED25519_PREFIX: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const KINDS: &str = "wanted: RSA of 2048 bits or more (RS256), P-256 (ES256) or Ed25519 (EdDSA)";
const PUBLIC_FROM_PRIVATE: &str = "openssl pkey -in private.pem -pubout -out public.pem";

#[cfg(test)]
mod tests {
    use super::*;

    const EC: &str = include_str!("../../tests/keys/ec.pem");
    const RSA: &str = include_str!("../../tests/keys/rsa.pem");

    fn names(name: &str, text: &str) -> String {
        Keys::read(name, text, None).unwrap().names()
    }

    /// The kind of key in a PEM file says its algorithm, the file's name its kid.
    #[test]
    fn a_pem_key_is_bound_to_one_algorithm() {
        assert_eq!(names("/etc/tidegate/2026-a.pem", RSA), r#"RS256 "2026-a""#);
        assert_eq!(names("a.b.pem", include_str!("../../tests/keys/rsa-pkcs1.pem")), r#"RS256 "a""#);
        assert_eq!(names("ec", EC), r#"ES256 "ec""#);
        assert_eq!(names("ed.pub", include_str!("../../tests/keys/ed.pem")), r#"EdDSA "ed""#);
        let keys = Keys::read("ec.pem", EC, Some("https://a.example")).unwrap();
        assert_eq!(keys.names(), r#"ES256 "ec" of "https://a.example""#);
        assert!(keys.find(Some("https://a.example"), Some("ec"), Algorithm::ES256).is_some());
        assert!(keys.find(None, Some("ec"), Algorithm::ES256).is_none());
        assert!(keys.find(Some("https://a.example"), Some("ec"), Algorithm::RS256).is_none());
    }

    /// A set keeps what is for tokens and passes over what is for something else.
    #[test]
    fn a_set_is_taken_by_what_it_says() {
        let keys = Keys::read("jwks.json", include_str!("../../tests/keys/jwks.json"), Some("https://c.example")).unwrap();
        let expected = r#"ES256 "shared" of "https://a.example", ES256 "shared" of "https://b.example", RS256 "rsa-a" of "https://a.example""#;
        assert_eq!((keys.len(), keys.names().as_str()), (3, expected));
        let ed = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"6B5lSqHJAtnt4slrmmk5gILGkS3VnNvAFqjyaHqUSUw"},{"kty":"OKP","crv":"X25519","x":""},{"kty":"new"}]}"#;
        assert_eq!(names("set", ed), r#"EdDSA """#);
    }

    /// What is refused at load, each with its reason.
    #[test]
    fn weak_private_and_misnamed_keys_are_refused() {
        let x = "jfL03FRDNM_yZGXNfrMFm3_TS3UgGoPLrRi8AX5Epdc";
        let n2048 = URL_SAFE_NO_PAD.encode([0xff; 256]);
        let set = |member: &str| format!(r#"{{"keys":[{{"kid":"k",{member}}}]}}"#);
        let rsa = |n: &str, e: &str| set(&format!(r#""kty":"RSA","n":"{n}","e":"{e}""#));
        let cases = [
            (include_str!("../../tests/keys/rsa1024.pem").to_owned(), "an RSA key of 1024 bits; allowed: 2048 to 8192"),
            (include_str!("../../tests/keys/p384.pem").to_owned(), "wanted: RSA of 2048 bits or more (RS256), P-256 (ES256)"),
            (
                include_str!("../../tests/keys/secp256k1.pem").to_owned(),
                "wanted: RSA of 2048 bits or more (RS256), P-256 (ES256)",
            ),
            (include_str!("../../tests/keys/ec.private.pem").to_owned(), "this is a private key"),
            (format!("{EC}{RSA}"), "more than one key"),
            (EC.replace("PUBLIC KEY", "CERTIFICATE"), "a PEM of \"CERTIFICATE\""),
            (EC.replace("-----END", "-----AND"), "ends before its END"),
            (EC.replace("MFkw", "MF*w"), "not base64"),
            ("ssh-ed25519 AAAA".to_owned(), "neither PEM nor JWKS"),
            (String::new(), "neither PEM nor JWKS"),
            ("{".to_owned(), "no JWKS"),
            (r#"{"keys":{}}"#.to_owned(), "no JWKS"),
            (r#"{"keys":[]}"#.to_owned(), "no key for tokens among 0"),
            (set(r#""kty":7"#), "no JWKS"),
            (set(r#""kty":"oct","k":"AAAA""#), "a shared secret; set auth.secret_file"),
            (set(&format!(r#""kty":"EC","crv":"P-384","alg":"ES256","x":"{x}","y":"{x}""#)), "alg ES256 does not fit"),
            (set(&format!(r#""kty":"RSA","alg":"ES256","n":"{n2048}","e":"AQAB""#)), "alg ES256 does not fit"),
            (set(&format!(r#""kty":"EC","crv":"P-256","x":"{x}","y":"{x}","d":"{x}""#)), "a private key"),
            (set(&format!(r#""kty":"EC","crv":"P-256","x":"{x}""#)), "no member y"),
            (set(&format!(r#""kty":"EC","crv":"P-256","x":"{x}","y":"{x}=""#)), "y is not base64url"),
            (set(r#""kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA""#), "x has 3 bytes; wanted: 32"),
            (set(r#""kty":"OKP","crv":"Ed25519","x":"AAAA""#), "x has 3 bytes; wanted: 32"),
            (rsa(&URL_SAFE_NO_PAD.encode([0xff; 128]), "AQAB"), "1024 bits"),
            // Zeros in front make no key longer.
            (rsa(&URL_SAFE_NO_PAD.encode([&[0; 128][..], &[0xff; 128]].concat()), "AQAB"), "1024 bits"),
            (rsa(&URL_SAFE_NO_PAD.encode([0xff; 1025]), "AQAB"), "8200 bits"),
            (rsa(&n2048, "AQ"), "exponent"),
            (rsa(&n2048, "AA"), "exponent"),
            (rsa(&n2048, "Ag"), "exponent"),
            (rsa(&n2048, "AQAAAAAAAAAB"), "exponent"),
        ];
        for (text, told) in cases {
            let error = Keys::read("k.pem", &text, None).unwrap_err();
            assert!(error.starts_with("k.pem: ") && error.contains(told), "{error}; wanted: {told}");
        }
    }

    /// Two keys that some token would find both are refused, in one file or in two; too many are.
    #[test]
    fn no_two_keys_share_a_name() {
        let read = |issuer| Keys::read("ec.pem", EC, issuer).unwrap();
        let mut keys = read(Some("https://a.example"));
        keys.add(read(Some("https://b.example"))).unwrap();
        keys.add(Keys::read("ec.pem", RSA, None).unwrap()).unwrap();
        assert!(keys.add(read(Some("https://a.example"))).unwrap_err().contains("give each a kid of its own"));
        assert!(keys.add(read(None)).is_err(), "a key of any issuer is one of that issuer too");
        let mut keys = Keys::default();
        let all = (0..=KEYS_MAX).try_for_each(|number| keys.add(Keys::read(&format!("k{number}"), EC, None).unwrap()));
        assert!(all.unwrap_err().contains("more than 64 keys"));
    }
}
