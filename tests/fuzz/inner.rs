//! What is fuzzed behind the first two doors: the codecs, tokens, configuration files and the log. Each function panics when a promise is
//! broken and returns what kind of thing happened, as in `targets`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use tidegate::config::Secret;
use tidegate::config::load::{Layers, load};
use tidegate::config::problem::Problem;
use tidegate::config::render::default_file;
use tidegate::config::settings::DEFINITIONS;
use tidegate::config::value::Raw;
use tidegate::session::auth::{AuthError, Verifier, mint};
use tidegate::session::keys::Keys;
use tidegate::store::disk_memory::MemoryDisk;
use tidegate::store::entry::entries;
use tidegate::store::log::{Log, LogSettings, OpenError};
use tidegate::wire::envelope::{ClientFrame, Cursors, Encoding, Frames, ServerFrames, Users, encode_client, encode_server};

use crate::others;
use crate::targets::hash;
use crate::tokens::{AUDIENCE, Signer, bad_tokens, good_claims, key_file};

/// Words of the binary frames: types with short lengths, counts, names.
pub const BINARY_WORDS: [&[u8]; 14] = [
    b"\x01\0\0\0",
    b"\x02\x08\0\0",
    b"\x10\x30\0\0",
    b"\x11\x20\0\0",
    b"\x30\x10\0\0",
    b"\x31\x20\0\0",
    b"\x33\x10\0\0",
    b"\x60\x40\0\0",
    b"\x70\x20\0\0",
    b"\xff\xff\xff\xff",
    b"\x07d:al:bo",
    b"\xff\xff",
    b"\0\0\0\0\0\0\0\x80",
    b"\xc3\x28",
];

/// Words of the JSON frames.
pub const JSON_WORDS: [&[u8]; 20] = [
    b"{\"t\":\"hello\",",
    b"{\"t\":\"send\",",
    b"{\"t\":\"ack\",",
    b"\"cursors\":[[\"d:al:bo\",1]]",
    b"\"users\":[\"al\"]",
    b"\"rid\":1,",
    b"\"cmid\":\"00112233445566778899aabbccddeeff\",",
    b"\"conv\":\"d:al:bo\",",
    b"\"text\":\"\\ud83c\\udf0a\"",
    b"\\u0000",
    b"\\ud800",
    b"\"data\":\"AAEC\"",
    b"9007199254740993",
    b"1e400",
    b"-1",
    b"null",
    b"[[[[[[[[",
    b"{\"a\":{\"a\":{\"a\":",
    b"\n",
    b"\xff",
];

/// Words of a token.
pub const TOKEN_WORDS: [&[u8]; 12] = [
    b".",
    b"..",
    b"=",
    b"eyJhbGciOiJIUzI1NiJ9",
    b"eyJhbGciOiJub25lIn0",
    b"eyJhbGciOiJSUzI1NiJ9",
    b"eyJhbGciOiJFUzI1NiIsImtpZCI6ImVjIn0",
    b"eyJhbGciOiJFZERTQSIsImtpZCI6ImVkIn0",
    b"eyJzdWIiOiJhbCIsImV4cCI6OTk5OTk5OTk5OX0",
    b"-_",
    b"+/",
    b"\0",
];

/// Words of a configuration file.
pub const CONFIGURATION_WORDS: [&[u8]; 16] = [
    b"listen = \"0.0.0.0:1\"\n",
    b"[store]\n",
    b"[limits]\n",
    b"level = 2\n",
    b"= 99999999999999999999\n",
    b"= -1\n",
    b"= 0x7fff_ffff\n",
    b"= nan\n",
    b"= 1979-05-27\n",
    b"'''",
    b"\"\"\"",
    b"\\u0000",
    b"[[",
    b"{ a = { b = ",
    b"#",
    b"\xef\xbb\xbf",
];

/// Words of a segment: numbers of little groups, and zeros.
pub const LOG_WORDS: [&[u8]; 6] =
    [b"\0\0\0\0\0\0\0\0", b"\x01\0\0\0", b"\xff\xff\xff\xff", b"\x02\0\0\0\0\0\0\0", b"\x80", b"\0"];

/// Frames of either side: what can be read can be written, and what is written reads the same again; no list lies about its length.
pub fn envelope(encoding: Encoding, input: &[u8]) -> u64 {
    let mut kinds = Vec::new();
    let mut frames = Frames::new(encoding, input);
    loop {
        match frames.next_frame() {
            Ok(None) => break,
            Ok(Some(frame)) => {
                match &frame {
                    ClientFrame::Ack { cursors, .. } => assert_eq!(Cursors::iter(cursors).count(), cursors.len()),
                    ClientFrame::Watch { users, .. } => assert_eq!(Users::iter(users).count(), users.len()),
                    _ => {}
                }
                // In JSON a name may be longer than an encoder takes; who echoes one has checked it.
                if encoding == Encoding::Binary {
                    let mut again = Vec::new();
                    encode_client(encoding, &frame, &mut again);
                    assert_eq!(Frames::new(encoding, &again).next_frame(), Ok(Some(frame.clone())));
                }
                kinds.push(hash(&std::mem::discriminant(&frame)));
            }
            Err(error) => {
                assert!((1001..=1003).contains(&error.code.value()), "{error}");
                kinds.push(hash(&(error.code.value(), error.detail)));
                assert_eq!(frames.next_frame(), Ok(None), "an error ends the message");
                break;
            }
        }
    }
    for frame in ServerFrames::new(encoding, input).map_while(Result::ok) {
        if encoding == Encoding::Binary {
            let mut again = Vec::new();
            encode_server(encoding, &frame, &mut again);
            assert_eq!(ServerFrames::new(encoding, &again).next_frame(), Ok(Some(frame.clone())));
        }
        kinds.push(hash(&std::mem::discriminant(&frame)));
    }
    kinds.truncate(4);
    hash(&kinds)
}

/// Both encodings have a target of their own.
pub fn binary(input: &[u8]) -> u64 {
    envelope(Encoding::Binary, input)
}

/// See [`binary`]. Each line means to another reader of JSON what it means here.
pub fn json(input: &[u8]) -> u64 {
    input.split(|&byte| byte == b'\n').for_each(others::check_line);
    envelope(Encoding::Json, input)
}

/// No token passes but those that these keys have signed, of each algorithm one: whatever is changed in one makes it invalid, and never
/// "expired", which is said of those that were good once.
pub fn token(input: &[u8]) -> u64 {
    let Court { verifier, keys, good, expired } = &*COURT;
    let text = String::from_utf8_lossy(input);
    let is_public = verifier.defers(&text).is_some();
    let read = if is_public { verifier.read_public(keys, &text, NOW_S * 1000) } else { verifier.read(&text, NOW_S * 1000) };
    // A signature can be made by its key alone, so it is what was signed that counts. There may be more than one signature for it.
    let is_one_of = |tokens: &[String]| {
        tokens.iter().any(|token| token.rsplit_once('.').map(|(said, _)| said) == text.rsplit_once('.').map(|(said, _)| said))
    };
    match read.and_then(|identity| identity.shown_by(|device| device == "1")) {
        Ok(identity) => assert!(is_one_of(good) && identity.user.as_str() == "al", "a forged token passed: {text}"),
        Err(AuthError::Expired) => assert!(is_one_of(expired), "a forger learned that a token was good once: {text}"),
        Err(AuthError::Invalid) => assert!(!good.iter().any(|token| *token == text), "a good token is refused: {text}"),
        Err(AuthError::Overloaded) => panic!("a token is judged at once: {text}"),
    }
    let parts: Vec<usize> = text.split('.').take(5).map(|part| part.len().min(40) / 8).collect();
    let algorithm = jsonwebtoken::decode_header(&*text).ok().map(|header| format!("{:?}", header.alg));
    hash(&(parts, is_public, algorithm, Verifier::lacks_key(keys, &text)))
}

/// Who judges the tokens of [`token`], and what was signed.
struct Court {
    verifier: Verifier,
    keys: Keys,
    good: Vec<String>,
    expired: Vec<String>,
}

static COURT: LazyLock<Court> = LazyLock::new(|| {
    let secret = Secret::new(SECRET.to_vec()).expect("long enough");
    let mut keys = Keys::default();
    for name in ["rsa.pem", "ec.pem", "ec2.pem", "ed.pem", "jwks.json"] {
        let text = std::fs::read_to_string(key_file(name)).expect("a file of the tests");
        keys.add(Keys::read(name, &text, None).expect("good keys")).expect("good keys");
    }
    let signed = |until_s| {
        [Signer::Rsa, Signer::Ec, Signer::Ec2, Signer::Ed].map(|signer| signer.token(signer.header(), &good_claims(until_s)))
    };
    let of_secret = mint(&secret, "al", None, 0..9_999_999_999).expect("a name");
    Court {
        verifier: Verifier::with_public_keys(Some(&secret), vec![AUDIENCE.to_owned()], 0),
        keys,
        good: [of_secret].into_iter().chain(signed(NOW_S + 3600)).collect(),
        expired: signed(NOW_S - 60).into(),
    }
});

/// When tokens are judged, Unix seconds.
const NOW_S: u64 = 1_764_000_000;
const SECRET: [u8; 32] = [7; 32];

/// Tokens of every algorithm, and those of the table that must not pass.
pub fn token_seeds() -> Vec<Vec<u8>> {
    let bad = bad_tokens(NOW_S, "http://127.0.0.1:1/", &SECRET).into_iter().map(|bad| bad.token);
    COURT.good.iter().cloned().chain(bad).map(String::into_bytes).collect()
}

/// The default file without its comments, whole and section by section.
pub fn configuration_seeds() -> Vec<Vec<u8>> {
    let whole: String = default_file().lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
    let sections = whole.split("\n[").skip(1).map(|section| format!("[{section}").into_bytes());
    sections.chain([whole.clone().into_bytes()]).collect()
}

/// A file is taken or all its mistakes are told, each in one line; what is taken is made of values that each setting takes.
pub fn configuration(input: &[u8]) -> u64 {
    let Ok(text) = std::str::from_utf8(input) else { return 0 };
    match load(Layers { file: Some(("fuzzed.toml", text)), ..Layers::default() }) {
        Ok(loaded) => {
            let defaults = load(Layers::default()).expect("the defaults go together").settings;
            let mut again = defaults.clone();
            let mut changed = Vec::new();
            for definition in DEFINITIONS {
                let raw = (definition.value)(&loaded.settings);
                assert!(raw == Raw::Absent || (definition.set)(&mut again, &raw), "{}", definition.key);
                if raw != (definition.value)(&defaults) {
                    changed.push(definition.key);
                }
            }
            // A secret is never shown.
            again.auth.secret.clone_from(&loaded.settings.auth.secret);
            assert_eq!(again, loaded.settings);
            assert_eq!(
                load(Layers { file: Some(("again.toml", text)), ..Layers::default() }).expect("as before").settings,
                again
            );
            changed.truncate(2);
            hash(&changed)
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            assert!(lines.iter().all(|line| !line.contains('\n')), "{lines:?}");
            // What is allowed there tells settings apart; behind the first words stands what was written.
            let first = problems.first().map(|Problem { allowed, found, .. }| {
                let words = if found.starts_with("not TOML") { 6 } else { 2 };
                (allowed, found.split(' ').take(words).collect::<Vec<_>>())
            });
            hash(&(lines.len().min(6), first))
        }
    }
}

/// Any bytes as the one segment of a log: opened, with what is valid of it, or refused by name; opened again it is the same, and everything
/// it says it has can be read. Its groups, and any bytes as a group, are entries or are not.
pub fn log_replay(input: &[u8]) -> u64 {
    let (&choice, segment) = input.split_first().unwrap_or((&0, &[]));
    let settings = LogSettings { segment_bytes: 4096, accept_loss: choice & 1 != 0, projected: u64::from(choice >> 1 & 3) };
    let (name, _) = SEGMENT.first_key_value().expect("a log has a segment");
    let disk = MemoryDisk::with_files(BTreeMap::from([(name.clone(), segment.to_vec())]));
    let groups = entries(segment).take_while(Result::is_ok).count();
    let (recovered, read) = match Log::open(disk.clone(), settings) {
        Ok((mut log, recovered)) => {
            let mut read = 0;
            let replayed = log.replay(0, |number, _, body| {
                read = number;
                entries(body).take_while(Result::is_ok).for_each(drop);
                Ok::<(), std::io::Error>(())
            });
            replayed.expect("what opening has checked can be read");
            (recovered, read)
        }
        Err(OpenError::Corrupt(corruption)) => return hash(&(1, corruption.offset.min(1), corruption.first.min(4))),
        Err(OpenError::Io(error)) => return hash(&(2, error.kind().to_string())),
    };
    // Groups that were given up are followed by a mark of their own.
    let last = recovered.lost.map_or(recovered.last, |(_, given_up)| recovered.last.max(given_up + 1));
    assert_eq!(read, last, "{recovered:?}");
    let (_, again) = Log::open(disk, settings).expect("what was opened opens again");
    assert_eq!((again.last, again.lost), (last, recovered.lost));
    hash(&(recovered.last.min(8), recovered.torn.is_some(), recovered.lost.is_some(), groups.min(3)))
}

/// A log of a few groups, as it is on disk.
static SEGMENT: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(|| {
    let disk = MemoryDisk::default();
    let settings = LogSettings { segment_bytes: 4096, accept_loss: false, projected: 0 };
    let (mut log, _) = Log::open(disk.clone(), settings).expect("an empty disk");
    for number in 1..6_u8 {
        log.write(1, &vec![number; 20 * usize::from(number)]).expect("it fits");
        log.sync().expect("nothing fails");
    }
    drop(log);
    disk.files().into_iter().filter(|(name, _)| name.ends_with(".log")).collect()
});

/// The bytes of [`SEGMENT`] behind each choice of settings.
pub fn log_seeds() -> Vec<Vec<u8>> {
    let (_, bytes) = SEGMENT.first_key_value().expect("a log has a segment");
    (0..8).map(|choice| [&[choice][..], bytes].concat()).collect()
}
