//! Tokens that must not pass where public keys judge: what each of them is, and whether it was good once.
#![allow(dead_code, reason = "every test file uses its own part")]

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use jsonwebtoken::crypto::sign;
use jsonwebtoken::{Algorithm, EncodingKey};

/// What the tokens of the table are for.
pub const AUDIENCE: &str = "tidegate";
/// A key file of the tests.
pub fn key_file(name: &str) -> String {
    format!("{}/tests/keys/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Who can sign.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signer {
    Rsa,
    Ec,
    Ec2,
    Ed,
    /// Nobody knows this one; a curve key.
    Stranger,
}

impl Signer {
    pub fn algorithm(self) -> Algorithm {
        match self {
            Self::Rsa => Algorithm::RS256,
            Self::Ec | Self::Ec2 | Self::Stranger => Algorithm::ES256,
            Self::Ed => Algorithm::EdDSA,
        }
    }

    pub fn key(self) -> EncodingKey {
        let pem: &[u8] = match self {
            Self::Rsa => return EncodingKey::from_rsa_pem(include_bytes!("../keys/rsa.private.pem")).expect("a key"),
            Self::Ed => return EncodingKey::from_ed_pem(include_bytes!("../keys/ed.private.pem")).expect("a key"),
            Self::Ec => include_bytes!("../keys/ec.private.pem"),
            Self::Ec2 => include_bytes!("../keys/ec2.private.pem"),
            Self::Stranger => include_bytes!("../keys/stranger.private.pem"),
        };
        EncodingKey::from_ec_pem(pem).expect("a key")
    }

    /// The header of an honest token: its algorithm, and the kid of its file.
    pub fn header(self) -> &'static str {
        match self {
            Self::Rsa => r#"{"alg":"RS256","kid":"rsa"}"#,
            Self::Ec | Self::Stranger => r#"{"alg":"ES256","kid":"ec"}"#,
            Self::Ec2 => r#"{"alg":"ES256","kid":"ec2"}"#,
            Self::Ed => r#"{"alg":"EdDSA","kid":"ed"}"#,
        }
    }

    /// A token of this header and these claims.
    pub fn token(self, header: &str, claims: &str) -> String {
        signed(header, claims, &self.key(), self.algorithm())
    }
}

fn signed(header: &str, claims: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    format!("{message}.{}", sign(message.as_bytes(), key, algorithm).expect("a key of this algorithm"))
}

/// Claims of `al` that are good until `later` and for [`AUDIENCE`].
pub fn good_claims(later: u64) -> String {
    format!(r#"{{"sub":"al","exp":{later},"aud":"{AUDIENCE}"}}"#)
}

/// A token that must not pass.
pub struct Bad {
    pub name: String,
    pub token: String,
    /// 2001 or 2002.
    pub code: u16,
}

impl Bad {
    /// Whether its header or its claims hold `text`.
    pub fn says(&self, text: &str) -> bool {
        let parts = self.token.split('.').take(2).filter_map(|part| URL_SAFE_NO_PAD.decode(part).ok());
        parts.into_iter().any(|part| String::from_utf8_lossy(&part).contains(text))
    }
}

/// The table. Keys in force: `rsa.pem`, `ec.pem`, `ec2.pem`, `ed.pem` and `jwks.json`. `now` in Unix seconds; `url` is an address with a
/// path that must never be asked; `secret` the shared one.
pub fn bad_tokens(now: u64, url: &str, secret: &[u8]) -> Vec<Bad> {
    let later = now + 3600;
    let good = good_claims(later);
    let mut table = Vec::new();
    let mut bad = |name: &str, token: String| table.push(Bad { name: name.to_owned(), token, code: 2001 });

    // What is no token.
    let token = Signer::Ec.token(Signer::Ec.header(), &good);
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, signature] = parts[..] else { unreachable!("three parts") };
    bad("empty", String::new());
    bad("dots", "..".to_owned());
    bad("two parts", format!("{header}.{claims}"));
    bad("four parts", format!("{token}.{signature}"));
    bad("five parts, as in JWE", format!("{token}.{claims}.{signature}"));
    bad("a blank in front", format!(" {token}"));
    bad("a line feed behind", format!("{token}\n"));
    bad("with its scheme", format!("Bearer {token}"));
    bad("a header that is not base64", format!("%%%%.{claims}.{signature}"));
    bad("claims that are not base64", format!("{header}.%%%%.{signature}"));
    bad("a signature that is not base64", format!("{header}.{claims}.%%%%"));
    bad("a padded header", format!("{}.{claims}.{signature}", URL_SAFE.encode(r#"{"alg":"ES256","kid":"ec","a":1}"#)));
    bad("a padded signature", format!("{header}.{claims}.{signature}=="));
    let standard = STANDARD.encode(r#"{"alg":"ES256","kid":"ec","?":"??>>"}"#);
    bad("the other alphabet", format!("{standard}.{claims}.{signature}"));
    bad(
        "8 KiB and more",
        Signer::Ec.token(Signer::Ec.header(), &good.replace('}', &format!(r#","x":"{}"}}"#, "x".repeat(8192)))),
    );

    // Signatures that do not hold.
    for signer in [Signer::Rsa, Signer::Ec, Signer::Ed] {
        let token = signer.token(signer.header(), &good);
        let (message, signature) = token.rsplit_once('.').expect("three parts");
        let bytes = URL_SAFE_NO_PAD.decode(signature).expect("base64");
        let mut with = |name: &str, bytes: &[u8]| {
            bad(&format!("{signer:?}: {name}"), format!("{message}.{}", URL_SAFE_NO_PAD.encode(bytes)));
        };
        with("no signature", &[]);
        with("zeros", &vec![0; bytes.len()]);
        with("cut short", &bytes[..bytes.len() - 1]);
        with("too long", &[&bytes[..], &[0]].concat());
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 3] ^= 1;
        with("one bit", &flipped);
        let (_, rest) = message.split_once('.').expect("two parts");
        let head = &message[..message.len() - rest.len()];
        let other = URL_SAFE_NO_PAD.encode(good.replace("\"al\"", "\"bo\""));
        bad(&format!("{signer:?}: other claims"), format!("{head}{other}.{signature}"));
        // 64 and 256 bytes leave unused bits in the last character: only one way to write them counts.
        let last = signature.chars().last().expect("a signature");
        let twin = char::from(last as u8 + 1);
        bad(&format!("{signer:?}: unused bits set"), format!("{message}.{}{twin}", &signature[..signature.len() - 1]));
    }
    let raw = URL_SAFE_NO_PAD.decode(signature).expect("base64");
    bad("ES256 in DER", format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode(der(&raw))));
    bad("another key under this kid", Signer::Stranger.token(Signer::Ec.header(), &good));
    bad("a neighbour's key under this kid", Signer::Ec2.token(Signer::Ec.header(), &good));

    // Algorithms that do not fit.
    let none = |alg: &str| format!("{}.{claims}", URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}","kid":"ec"}}"#)));
    bad("none without a signature", format!("{}.", none("none")));
    bad("none with a signature", format!("{}.{signature}", none("none")));
    bad("None", format!("{}.", none("None")));
    bad("nOnE", format!("{}.", none("nOnE")));
    bad("in lower case", format!("{}.{signature}", none("es256")));
    bad("no algorithm", Signer::Ec.token(r#"{"kid":"ec"}"#, &good));
    bad("a list of algorithms", Signer::Ec.token(r#"{"alg":["ES256"],"kid":"ec"}"#, &good));
    bad("two algorithms", Signer::Ec.token(r#"{"alg":"none","alg":"ES256","kid":"ec"}"#, &good));
    for (name, public) in [
        ("the RSA file", include_bytes!("../keys/rsa.pem").to_vec()),
        ("the curve file", include_bytes!("../keys/ec.pem").to_vec()),
        ("the bytes of the RSA file", pem_body(include_str!("../keys/rsa.pem"))),
        ("the point", pem_body(include_str!("../keys/ec.pem"))[26..].to_vec()),
        ("the Ed25519 key", pem_body(include_str!("../keys/ed.pem"))[12..].to_vec()),
    ] {
        for kid in ["rsa", "ec", "ed"] {
            let header = format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#);
            let token = signed(&header, &good, &EncodingKey::from_secret(&public), Algorithm::HS256);
            bad(&format!("HS256 by {name} as {kid}"), token);
        }
    }
    let rsa = Signer::Rsa.key();
    for (name, algorithm) in [("RS384", Algorithm::RS384), ("RS512", Algorithm::RS512), ("PS256", Algorithm::PS256)] {
        bad(name, signed(&format!(r#"{{"alg":"{name}","kid":"rsa"}}"#), &good, &rsa, algorithm));
    }
    bad("PS256 called RS256", signed(Signer::Rsa.header(), &good, &rsa, Algorithm::PS256));
    bad("PS256 of a set that has it", signed(r#"{"alg":"PS256","kid":"pss"}"#, &good, &rsa, Algorithm::PS256));
    bad("RS256 of a key for PS256", Signer::Rsa.token(r#"{"alg":"RS256","kid":"pss"}"#, &good));
    bad("RS256 of a key for encryption", Signer::Rsa.token(r#"{"alg":"RS256","kid":"for-encryption"}"#, &good));
    bad("RS256 of the curve's kid", Signer::Rsa.token(r#"{"alg":"RS256","kid":"ec"}"#, &good));
    bad("ES256 of RSA's kid", Signer::Ec.token(r#"{"alg":"ES256","kid":"rsa"}"#, &good));
    bad("EdDSA of the curve's kid", Signer::Ed.token(r#"{"alg":"EdDSA","kid":"ec"}"#, &good));
    bad("ES256 called EdDSA", Signer::Ec.token(r#"{"alg":"EdDSA","kid":"ed"}"#, &good));
    bad("HS512 of the secret", signed(r#"{"alg":"HS512"}"#, &good, &EncodingKey::from_secret(secret), Algorithm::HS512));

    // Kids that name no key, and headers that would bring one along.
    for kid in ["", "other", "EC", "../../keys/ec", "/etc/passwd", "ec\u{0}", "ec' or '1'='1", url, &"k".repeat(4000)] {
        let header = serde_json::json!({ "alg": "ES256", "kid": kid }).to_string();
        bad(&format!("kid {kid:.20?}"), Signer::Ec.token(&header, &good));
    }
    bad("kid is a number", Signer::Ec.token(r#"{"alg":"ES256","kid":1}"#, &good));
    bad("no kid where there is a choice", Signer::Ec.token(r#"{"alg":"ES256"}"#, &good));
    let jwk = r#"{"kty":"EC","crv":"P-256","x":"x","y":"y"}"#;
    let address = format!("{url:?}");
    for (name, value) in [
        ("jku", &*address),
        ("x5u", &address),
        ("iss", &address),
        ("url", &address),
        ("jwks_uri", &address),
        ("jwk", jwk),
        ("x5c", "[\"AAAA\"]"),
    ] {
        let of = |kid: &str| format!(r#"{{"alg":"ES256","kid":"{kid}","{name}":{value}}}"#);
        bad(&format!("{name} with the stranger's key"), Signer::Stranger.token(&of("ec"), &good));
        bad(&format!("{name} with a kid of its own"), Signer::Stranger.token(&of("stranger"), &good));
    }
    bad("a critical extension", Signer::Ec.token(r#"{"alg":"ES256","kid":"ec","crit":["exp"]}"#, &good));
    bad("an empty list of critical extensions", Signer::Ec.token(r#"{"alg":"ES256","kid":"ec","crit":[]}"#, &good));
    bad("an unencoded payload", Signer::Ec.token(r#"{"alg":"ES256","kid":"ec","crit":["b64"],"b64":false}"#, &good));
    bad("a header that is a list", Signer::Ec.token("[]", &good));

    // Claims that are signed and still do not count.
    let with = |claims: &str| {
        let claims = claims.replace("LATER", &later.to_string()).replace("NOW", &now.to_string());
        Signer::Ed.token(Signer::Ed.header(), &claims)
    };
    for claims in WRONG_CLAIMS {
        bad(claims, with(claims));
    }
    bad("sub of 65 bytes", with(&good.replace("\"al\"", &format!("{:?}", "a".repeat(65)))));
    bad("deep claims", with(&format!("{}{}", "[".repeat(1500), "]".repeat(1500))));

    // Issuers: the same kid belongs to both, with a key each.
    let of = |issuer: &str| format!(r#"{{"sub":"al","exp":{later},"aud":"{AUDIENCE}","iss":{issuer}}}"#);
    let shared = r#"{"alg":"ES256","kid":"shared"}"#;
    bad("the key of the other issuer", Signer::Ec2.token(shared, &of(r#""https://a.example""#)));
    bad("the other issuer's name", Signer::Ec.token(shared, &of(r#""https://b.example""#)));
    bad("an issuer nobody knows", Signer::Ec.token(shared, &of(r#""https://c.example""#)));
    bad("an issuer with a slash", Signer::Ec.token(shared, &of(r#""https://a.example/""#)));
    bad("no issuer", Signer::Ec.token(shared, &good));
    let (host, _) = url.trim_start_matches("http://").split_once('/').expect("a path");
    for address in [url, &format!("http://{host}"), &format!("http://{host}/"), host, &format!("//{host}/")] {
        let issuer = format!("{address:?}");
        bad(&format!("the issuer {address}"), Signer::Ec.token(shared, &of(&issuer)));
        bad(
            &format!("the issuer {address} with a kid of its own"),
            Signer::Stranger.token(r#"{"alg":"ES256","kid":"x"}"#, &of(&issuer)),
        );
        bad(&format!("the issuer {address} with the stranger's key"), Signer::Stranger.token(Signer::Ec.header(), &of(&issuer)));
        for audience in [issuer.clone(), format!("[{issuer}]")] {
            let claims = format!(r#"{{"sub":"al","exp":{later},"aud":{audience},"iss":{issuer}}}"#);
            bad(&format!("the audience {audience}"), Signer::Ed.token(Signer::Ed.header(), &claims));
        }
    }
    bad("an issuer that is a list", Signer::Ec.token(shared, &of(r#"["https://a.example"]"#)));
    bad("an issuer that is null", Signer::Ec.token(shared, &of("null")));
    bad("two issuers", Signer::Ec.token(shared, &of(r#""https://b.example","iss":"https://a.example""#)));

    for signer in [Signer::Rsa, Signer::Ec, Signer::Ed] {
        let token = signer.token(signer.header(), &good_claims(now - 60));
        table.push(Bad { name: format!("{signer:?}: expired"), token, code: 2002 });
    }
    table
}

/// Each is the whole set of claims.
const WRONG_CLAIMS: &[&str] = &[
    r#"{"sub":"al","aud":"tidegate"}"#,
    r#"{"sub":"al","aud":"tidegate","exp":"LATER"}"#,
    r#"{"sub":"al","aud":"tidegate","exp":LATER.0}"#,
    r#"{"sub":"al","aud":"tidegate","exp":2e9}"#,
    r#"{"sub":"al","aud":"tidegate","exp":-1}"#,
    r#"{"sub":"al","aud":"tidegate","exp":null}"#,
    r#"{"sub":"al","aud":"tidegate","exp":[LATER]}"#,
    r#"{"sub":"al","aud":"tidegate","exp":true}"#,
    r#"{"sub":"al","aud":"tidegate","exp":LATER000}"#,
    r#"{"sub":"al","aud":"tidegate","exp":99999999999999999999}"#,
    r#"{"sub":"al","aud":"tidegate","exp":1,"exp":LATER}"#,
    r#"{"sub":"al","aud":"tidegate","exp":LATER,"nbf":LATER}"#,
    r#"{"sub":"al","aud":"tidegate","exp":LATER,"nbf":"0"}"#,
    r#"{"sub":"al","aud":"tidegate","exp":LATER,"nbf":null}"#,
    r#"{"sub":"al","aud":"tidegate","exp":LATER,"iat":"NOW"}"#,
    r#"{"sub":"al","aud":"tidegate","exp":LATER,"iat":NOW.5}"#,
    r#"{"sub":"al","aud":"tidegate","exp":LATER,"iat":-1}"#,
    r#"{"sub":"al","aud":"tidegate","exp":LATER,"iat":null}"#,
    r#"{"aud":"tidegate","exp":LATER}"#,
    r#"{"sub":"","aud":"tidegate","exp":LATER}"#,
    r#"{"sub":7,"aud":"tidegate","exp":LATER}"#,
    r#"{"sub":null,"aud":"tidegate","exp":LATER}"#,
    r#"{"sub":["al"],"aud":"tidegate","exp":LATER}"#,
    r#"{"sub":"a:b","aud":"tidegate","exp":LATER}"#,
    r#"{"sub":"al\u0000","aud":"tidegate","exp":LATER}"#,
    r#"{"sub":"bo","sub":"al","aud":"tidegate","exp":LATER}"#,
    r#"{"sub":"al","exp":LATER}"#,
    r#"{"sub":"al","aud":"","exp":LATER}"#,
    r#"{"sub":"al","aud":"tidegate2","exp":LATER}"#,
    r#"{"sub":"al","aud":[],"exp":LATER}"#,
    r#"{"sub":"al","aud":["other"],"exp":LATER}"#,
    r#"{"sub":"al","aud":["tidegate",1],"exp":LATER}"#,
    r#"{"sub":"al","aud":1,"exp":LATER}"#,
    r#"{"sub":"al","aud":null,"exp":LATER}"#,
    r#"{"sub":"al","aud":"other","aud":"tidegate","exp":LATER}"#,
    r#"{"sub":"al","aud":"tidegate","exp":LATER,"dev":"2"}"#,
    r#"{"sub":"al","aud":"tidegate","exp":LATER,"dev":""}"#,
    r#"{"sub":"al","aud":"tidegate","exp":LATER,"dev":null}"#,
    r#"{"sub":"al","aud":"tidegate","exp":1,"dev":"2"}"#,
    r#"{"sub":"al","aud":"tidegate","exp":LATER}{}"#,
    r#"{"sub":"al","aud":"tidegate","exp":LATER"#,
    r#"["al",LATER]"#,
    r#""al""#,
    "",
];

/// An ECDSA signature of two numbers as ASN.1 writes it (RFC 3279 2.2.3).
fn der(fixed: &[u8]) -> Vec<u8> {
    let number = |bytes: &[u8]| {
        let lead = if bytes[0] >= 0x80 { &[0][..] } else { &[] };
        [&[0x02, u8::try_from(bytes.len() + lead.len()).expect("33")], lead, bytes].concat()
    };
    let both = [number(&fixed[..32]), number(&fixed[32..])].concat();
    [&[0x30, u8::try_from(both.len()).expect("short")][..], &both].concat()
}

fn pem_body(pem: &str) -> Vec<u8> {
    STANDARD.decode(pem.lines().filter(|line| !line.starts_with('-')).collect::<String>()).expect("base64")
}
