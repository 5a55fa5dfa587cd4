//! Keeps the house: imports point downwards, every outside package has one door, unsafe stands in `io` alone, and who reads bytes from
//! outside denies what could panic on them.
//!
//! The sources are read as text: `use` lines, paths that begin with `crate::`, and names of packages before `::`. Comments and
//! doc comments do not count. That finds what a person would write; it is no compiler.

use std::fs;
use std::path::{Path, PathBuf};

use toml_edit::Document;

/// Floor of each file or folder; the longest match counts. A file uses lower floors, its own folder, or a sibling named in
/// [`NEIGHBOURS`].
const FLOORS: &[(&str, u8)] = &[
    ("ids", 0),
    ("limits", 0),
    ("address", 0),
    ("origin", 0),
    ("clock", 0),
    ("table", 0),
    ("mutant", 0),
    ("io", 1),
    ("observe", 1),
    ("config", 1),
    ("wire", 2),
    ("mail", 2),
    ("store", 2),
    ("conn", 3),
    ("session", 3),
    ("route", 3),
    ("mailbox", 4),
    ("shard", 4),
    ("store/thread", 5),
    ("store/sequencer", 5),
    ("store/projector", 5),
    ("store/reader", 5),
    ("store/keeper", 5),
    ("reactor", 5),
    ("admin", 5),
    ("auth", 5),
    ("ctl", 6),
    ("keep", 7),
    ("verify", 5),
    ("gateway", 6),
    ("main", 6),
];

/// Same-floor imports that are meant: mail carries what wire reads, the store keeps both, a table hands out ids, and a mistake may be
/// planted in it.
const NEIGHBOURS: &[(&str, &[&str])] = &[("mail", &["wire"]), ("store", &["wire", "mail"]), ("table", &["ids", "mutant"])];

/// Where each outside package may be named: files, or folders that end with `/`.
const DOORS: &[(&str, &[&str])] = &[
    ("axum", &["admin/"]),
    ("base64", &["session/auth", "session/keys", "store/export", "verify", "wire/envelope/json", "wire/upgrade"]),
    ("bytes", &["wire/message"]),
    ("clap", &["main", "config/", "ctl", "keep"]),
    ("core_affinity", &["io/pin"]),
    ("crc32c", &["store/backup", "store/log", "store/log/", "verify"]),
    ("crossbeam_channel", &["io/queue"]),
    ("flate2", &["conn/deflate"]),
    ("getrandom", &["config/secret", "gateway", "gateway/store"]),
    ("hashbrown", &["route/presence"]),
    ("hdrhistogram", &["observe/histogram"]),
    ("http_body_util", &["auth/http"]),
    ("httparse", &["wire/upgrade"]),
    ("hyper", &["auth/http"]),
    ("hyper_util", &["auth/http"]),
    ("io_uring", &["io/uring", "io/uring/"]),
    ("jsonwebtoken", &["session/auth", "session/keys"]),
    ("libc", &["io/"]),
    ("lsm_tree", &["store/engine", "store/engine/"]),
    ("mimalloc", &["main"]),
    ("miniz_oxide", &["conn/deflate"]),
    ("mio", &["io/epoll"]),
    ("prometheus_client", &["observe/metrics"]),
    ("rkyv", &["store/record"]),
    ("rustls", &["auth/trust", "wire/tls", "wire/tls/"]),
    ("serde", &["admin/", "auth/webhook", "session/auth", "session/keys", "wire/envelope/scan"]),
    ("serde_json", &["admin/", "auth/webhook", "ctl", "session/keys", "store/export", "verify", "wire/envelope/scan"]),
    ("sha1", &["wire/upgrade"]),
    ("signal_hook", &["gateway", "gateway/"]),
    ("simdutf8", &["wire/utf8"]),
    ("siphasher", &["store/schema"]),
    ("slab", &["table"]),
    ("tokio", &["admin/", "auth/http"]),
    ("tokio_rustls", &["auth/http"]),
    ("toml_edit", &["config/"]),
    (
        "tracing",
        &[
            "admin/",
            "auth/",
            "gateway",
            "gateway/",
            "main",
            "observe/log",
            "observe/trace",
            "reactor",
            "reactor/steering",
            "store/engine/flusher",
            "store/keeper",
            "store/projector",
            "store/reader",
            "store/thread",
        ],
    ),
    ("tracing_subscriber", &["observe/log"]),
    ("webpki", &["wire/tls/keys"]),
];

/// What may panic on a value that was not foreseen.
const PARSER: &[&str] = &["expect_used", "indexing_slicing", "panic", "string_slice", "unreachable", "unwrap_used"];

/// The same, and numbers that do not fit: for those who count with what others say.
const DECODER: &[&str] =
    &["arithmetic_side_effects", "expect_used", "indexing_slicing", "panic", "string_slice", "unreachable", "unwrap_used"];

/// Which lints stand in which file or folder, because bytes from outside are read there: from the network, from an issuer of tokens, from an
/// operator, from the disk.
const STRICT: &[(&str, &[&str])] = &[
    ("address", DECODER),
    ("auth", PARSER),
    ("config", PARSER),
    ("conn", PARSER),
    ("origin", DECODER),
    ("session", DECODER),
    ("shard", PARSER),
    ("store/entry", PARSER),
    ("store/log/format", DECODER),
    ("store/log/scan", DECODER),
    ("store/record", PARSER),
    ("store/schema", PARSER),
    ("wire", DECODER),
];

/// Imports point downwards: a file names only lower floors, its own folder, and its neighbours.
#[test]
fn imports_point_downwards() {
    let mut wrong = Vec::new();
    for (module, text) in sources() {
        wrong.extend(imports(&text).into_iter().filter_map(|target| judge_import(&module, &target)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each outside package is named only behind its door, and every package of `Cargo.toml` has one.
#[test]
fn every_package_has_one_door() {
    let mut wrong = Vec::new();
    for (module, text) in sources() {
        for package in packages(&text) {
            wrong.extend(judge_package(&module, package));
        }
    }
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let begun = manifest.split("\n[dependencies]\n").nth(1).unwrap();
    for line in begun.lines().take_while(|line| !line.starts_with('[')) {
        let Some((name, _)) = line.split_once(" = ") else { continue };
        let name = name.replace('-', "_");
        if !DOORS.iter().any(|&(package, _)| package == name) {
            wrong.push(format!("Cargo.toml: {name} has no door in tests/layering.rs"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Unsafe code stands in `src/io` and nowhere else.
#[test]
fn unsafe_stands_in_io_alone() {
    for (module, text) in sources().into_iter().filter(|(module, _)| module != "io" && !module.starts_with("io/")) {
        assert!(!words(&text).any(|(_, word)| word == "unsafe"), "{module} has unsafe code; src/io is the room for it");
    }
}

/// The unbuffered interface of rustls, which its next version changes, is named in one file.
#[test]
fn one_file_knows_the_unbuffered_interface() {
    let knows = |text: &str| words(text).any(|(_, word)| word == "unbuffered" || word.starts_with("Unbuffered"));
    let found: Vec<_> = sources().into_iter().filter(|(_, text)| knows(text)).map(|(module, _)| module).collect();
    assert_eq!(found, ["wire/tls"]);
}

/// The rules do find what they forbid, in every spelling of an import, and leave comments and tests alone.
#[test]
fn the_rules_find_what_they_forbid() {
    let found = |module: &str, text: &str| {
        let text = code(text);
        let imports = imports(&text).into_iter().filter_map(|target| judge_import(module, &target)).count();
        imports + packages(&text).into_iter().filter_map(|package| judge_package(module, package)).count()
    };
    assert_eq!(found("wire/frame", "use crate::conn::connection::State;"), 1);
    assert_eq!(found("conn/carry", "use crate::{clock::Moment, session::rate, limits};"), 1);
    assert_eq!(found("io/epoll", "fn f() -> crate::shard::Shard { loop {} }"), 1);
    assert_eq!(found("session/rate", "use crate::route::roster::Roster;"), 1);
    assert_eq!(found("store/apply", "use crate::store::thread::Store; use crate::mail::Submit;"), 0);
    assert_eq!(found("store/apply", "use crate::route::roster::Roster;"), 1);
    assert_eq!(found("store/sequencer", "use crate::route::roster::Roster;"), 0);
    assert_eq!(found("shard", "use crate::reactor::Reactor;"), 1);
    assert_eq!(found("conn/carry", "use bytes::Bytes;"), 1);
    assert_eq!(found("reactor", "pub(crate) fn f(x: &::mio::Poll) {} use tokio as t;"), 2);
    assert_eq!(found("wire/message", "use bytes::Bytes; let bytes = b\"x\"; self.bytes.len()"), 0);
    assert_eq!(found("wire/frame", "// crate::shard\n/// [`crate::reactor`] mio::Poll\nfn f() {}"), 0);
    assert_eq!(found("wire/frame", "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::shard::Shard;\n}\n"), 0);
    assert_eq!(
        denied("#![cfg_attr(\n    not(test),\n    deny(clippy::panic, clippy::unwrap_used)\n)]"),
        ["panic", "unwrap_used"]
    );
    assert_eq!(denied("#![cfg_attr(not(test), warn(clippy::panic))]\n#![cfg_attr(test, deny(clippy::panic))]"), [""; 0]);
    assert_eq!(lifted("#![cfg_attr(not(test), deny(clippy::panic))]\n#[allow(clippy::vec_box)]"), [""; 0]);
    assert_eq!(lifted("#[expect(clippy::panic, clippy::unwrap_used, reason = \"it is there\")]"), [""; 0]);
    assert_eq!(lifted("#[expect(clippy::panic)]\nfn f() {}\n#[deprecated(reason = \"x\")]"), ["panic"]);
    assert_eq!(
        lifted("#[allow(clippy::panic, reason = \"x\")] #![warn(clippy::unwrap_used, reason = \"x\")]"),
        ["panic", "unwrap_used"]
    );
}

/// Whoever reads bytes from outside denies what could panic on them, and no attribute below lifts that without a reason.
#[test]
fn who_reads_bytes_from_outside_cannot_panic_on_them() {
    let mut wrong = Vec::new();
    for (module, lints) in STRICT {
        let (file, folder) = (root().join(format!("src/{module}.rs")), root().join(format!("src/{module}/mod.rs")));
        let text = fs::read_to_string(&file).or_else(|_| fs::read_to_string(&folder)).unwrap();
        let denied = denied(&text);
        for lint in lints.iter().filter(|lint| !denied.iter().any(|one| one == *lint)) {
            wrong.push(format!("{module} does not deny clippy::{lint}"));
        }
    }
    for (module, text) in sources() {
        let of = |name: &str| module == name || module.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
        if STRICT.iter().any(|(name, _)| of(name)) {
            wrong.extend(lifted(&text).into_iter().map(|lint| format!("{module} lifts clippy::{lint} without a reason")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the lints miss, a release build catches: a number that does not fit panics in every profile, and so ends one connection.
#[test]
fn numbers_are_checked_in_release_too() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let manifest: Document<String> = manifest.parse().unwrap();
    let profiles = manifest["profile"].as_table().expect("profiles");
    let checks = |profile: &str| profiles.get(profile)?.get("overflow-checks")?.as_bool();
    assert_eq!(checks("release"), Some(true), "Cargo.toml: overflow-checks of [profile.release]");
    for (profile, _) in profiles {
        assert_ne!(checks(profile), Some(false), "Cargo.toml: overflow-checks of [profile.{profile}]");
    }
    let config = fs::read_to_string(root().join(".cargo/config.toml")).unwrap();
    assert!(!config.contains("overflow-checks") && !config.contains("[profile"), ".cargo/config.toml changes a profile");
}

fn judge_import(module: &str, target: &str) -> Option<String> {
    let (room, target_room) = (top(module), top(target));
    let is_neighbour = NEIGHBOURS.iter().any(|(name, others)| *name == room && others.contains(&target_room));
    let (floor, target_floor) = (floor(module), floor(target));
    let is_fine = room == target_room || is_neighbour || target_floor < floor;
    (!is_fine).then(|| format!("{module} (floor {floor}) uses crate::{target} (floor {target_floor})"))
}

fn judge_package(module: &str, package: &str) -> Option<String> {
    let (_, doors) = DOORS.iter().find(|(name, _)| *name == package)?;
    let is_open =
        doors.iter().any(|door| module == door.trim_end_matches('/') || door.ends_with('/') && module.starts_with(door));
    (!is_open).then(|| format!("{module} names {package}, whose door is {}", doors.join(", ")))
}

/// The lints that a file denies, but in tests.
fn denied(text: &str) -> Vec<String> {
    let text: String = text.split_whitespace().collect();
    let Some((_, rest)) = text.split_once("#![cfg_attr(not(test),deny(") else { return Vec::new() };
    let (list, _) = rest.split_once(')').unwrap_or_default();
    list.split(',').filter_map(|lint| lint.strip_prefix("clippy::")).map(str::to_owned).collect()
}

/// The lints of [`DECODER`] that an attribute lifts, but for those that it expects with a reason.
fn lifted(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, word) in words(text).filter(|(at, word)| DECODER.contains(word) && text[..*at].ends_with("clippy::")) {
        let (before, after) = text.split_at(at);
        let (head, _) = before.rsplit_once('(').unwrap_or_default();
        let (rest, _) = after.split_once(")]").unwrap_or((after, ""));
        let stands = head.ends_with("deny") || head.ends_with("expect") && rest.contains("reason = ");
        if !stands {
            found.push(word);
        }
    }
    found
}

/// The floor of a module by its longest entry.
fn floor(module: &str) -> u8 {
    let of = |name: &str| module == name || module.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
    let entry = FLOORS.iter().filter(|(name, _)| of(name)).max_by_key(|(name, _)| name.len());
    entry.unwrap_or_else(|| panic!("{module} has no floor in tests/layering.rs")).1
}

fn top(module: &str) -> &str {
    module.split('/').next().unwrap_or(module)
}

/// Modules named after `crate::`, as `room` or `room/file`.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in words(text).filter(|&(_, word)| word == "crate") {
        let Some(rest) = text[at + "crate".len()..].strip_prefix("::") else { continue };
        let Some(group) = rest.strip_prefix('{') else {
            found.push(path(rest));
            continue;
        };
        let mut depth = 0;
        let mut begins = true;
        for (index, byte) in group.bytes().enumerate() {
            if begins && depth == 0 && (byte.is_ascii_lowercase() || byte == b'_') {
                found.push(path(&group[index..]));
                begins = false;
            }
            match byte {
                b'{' => depth += 1,
                b'}' if depth == 0 => break,
                b'}' => depth -= 1,
                b',' if depth == 0 => begins = true,
                _ => {}
            }
        }
    }
    found.retain(|path| !path.is_empty());
    found
}

/// The first two lower-case names of `a::b::C`, joined by `/`.
fn path(text: &str) -> String {
    let name = |text: &str| text.bytes().take_while(|&byte| is_word(byte)).count();
    let first = &text[..name(text)];
    let rest = text[first.len()..].strip_prefix("::").unwrap_or("");
    let second = &rest[..name(rest)];
    let is_module = second.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    if is_module { format!("{first}/{second}") } else { first.to_owned() }
}

/// Outside packages a text names: before `::`, but not behind it, or right after `use`.
fn packages(text: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    let mut previous = "";
    for (at, word) in words(text) {
        let after = &text[at + word.len()..];
        let inside =
            text[..at].ends_with("::") && text[..at - 2].bytes().next_back().is_some_and(|byte| is_word(byte) || byte == b'>');
        let named = after.starts_with("::") && !inside || previous == "use";
        if let Some(&(package, _)) = DOORS.iter().find(|(package, _)| *package == word && named) {
            found.push(package);
        }
        previous = word;
    }
    found
}

fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let begin = at + text.as_bytes()[at..].iter().position(|&byte| is_word(byte))?;
        let length = text.as_bytes()[begin..].iter().take_while(|&&byte| is_word(byte)).count();
        at = begin + length;
        Some((begin, &text[begin..at]))
    })
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// What counts of a file: no comment lines, and not the tests at its foot, which may use what they like.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

/// Every source file of the gateway but its tests, as `room/file` and its code. `room/mod.rs` is `room`.
fn sources() -> Vec<(String, String)> {
    let source = root().join("src");
    let mut found = Vec::new();
    let mut folders = vec![source.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let relative = path.strip_prefix(&source).unwrap().with_extension("");
            let module = relative.to_str().unwrap().trim_end_matches("/mod").to_owned();
            let is_test = module.split('/').any(|part| part == "tests" || part.ends_with("_tests"));
            if !is_test && module != "lib" && path.extension().is_some_and(|extension| extension == "rs") {
                found.push((module, code(&fs::read_to_string(&path).unwrap())));
            }
        }
    }
    assert!(found.len() > 40, "the sources were not found");
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}
