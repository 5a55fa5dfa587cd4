//! Whatever starts the gateway is tested on both drivers. Sources and scripts of tests are read as text, as in `layering.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every file of tests that starts the gateway, by itself or by a module it shares with others, is among those that `tests/run` runs on
/// io_uring too; and nothing is among them that is not there.
#[test]
fn every_test_that_starts_the_gateway_runs_on_both_drivers() {
    let output = Command::new("bash").args(["tests/run", "--drivers"]).current_dir(root()).output().expect("bash runs it");
    let named = String::from_utf8(output.stdout).expect("names");
    let mut named: Vec<&str> = named.lines().collect();
    named.sort_unstable();
    let mut found = Vec::new();
    for folder in ["tests", "loadgen/tests"] {
        let shared = starters(folder);
        let depth = folder.matches('/').count() + 1;
        let is_root = |file: &String| file.matches('/').count() == depth || file.ends_with("/main.rs");
        let roots = files(folder).into_iter().filter(is_root);
        found.extend(roots.filter(|file| starts(&read(file), &shared)));
    }
    found.sort_unstable();
    assert!(found.len() > 30, "the sources were not found: {found:?}");
    assert_eq!(named, found, "named by `tests/run --drivers`, and starting the gateway");
}

/// Who starts the gateway says on which driver; and what a variable says, `tests/run` sets to both.
#[test]
fn every_start_names_its_driver() {
    let run = read("tests/run");
    let mut starts = 0;
    for file in ["tests", "loadgen/tests"].into_iter().flat_map(files) {
        let text = read(&file);
        if !serves(&text) {
            continue;
        }
        starts += 1;
        let variable = ["TIDEGATE_TEST_DRIVER", "BROWSER_DRIVER", "AUTOBAHN_DRIVER"].into_iter().find(|name| text.contains(name));
        assert!(variable.is_some() || text.contains("--driver"), "{file} starts a gateway on the default driver");
        for driver in ["epoll", "uring"] {
            let set = variable.is_none_or(|name| run.contains(&format!("{name}={driver} ")));
            assert!(set, "{file} is not run on {driver} by tests/run");
        }
    }
    assert!(starts >= 5, "the starts were not found");
}

/// The rules find a start, a shared one too, and leave alone what starts nothing.
#[test]
fn the_rules_find_what_they_look_for() {
    // Names that no module has: this file starts nothing, and is not to be found.
    let shared = ["door".to_owned(), "window".to_owned()];
    let command = |word: &str| format!("Command::new(program).args([{word:?}, port])");
    assert!(starts(&command(SERVE), &[]) && !starts(&command("observe"), &[]));
    assert!(starts("mod support;\nuse support::door::Door;", &shared));
    assert!(starts("mod support;\nuse support::{PATIENCE, window};", &shared));
    assert!(!starts("mod support;\nuse support::websocket::client;", &shared));
    assert!(serves(&format!("x=1 \"$binary\" {SERVE} --echo")) && !serves(&format!("what they {SERVE} is {SERVE}d")));
}

/// Modules that the files of a folder share, by name, and that start the gateway, by themselves or by another.
fn starters(folder: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let shared: Vec<_> = files(&format!("{folder}/support")).into_iter().filter(|file| file.ends_with(".rs")).collect();
    loop {
        let before = found.len();
        for file in &shared {
            let name = Path::new(file).file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
            if !found.contains(&name) && starts(&read(file).replace("super::", "support::"), &found) {
                found.push(name);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// Whether a text starts the gateway, or names one of `shared`.
fn starts(text: &str, shared: &[String]) -> bool {
    let is_shared = |name: &str| shared.iter().any(|other| other == name);
    let named = text.split("support::").skip(1).any(|rest| match rest.strip_prefix('{') {
        Some(list) => list.split('}').next().is_some_and(|list| list.split(|c| !is_word(c)).any(is_shared)),
        None => rest.split(|c| !is_word(c)).next().is_some_and(is_shared),
    });
    // What all share in `mod.rs` has no name of its own.
    serves(text) || named || text.contains("mod support;") && is_shared("mod")
}

/// Whether it names the command that serves, as an argument of its own.
fn serves(text: &str) -> bool {
    text.contains(&format!("{SERVE:?}")) || text.contains(&format!(" {SERVE} --"))
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// All files below a folder, by their path from the root; but no packages that were installed there.
fn files(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.extend((!path.ends_with("node_modules")).then_some(path));
            } else {
                let path = path.strip_prefix(root()).expect("it is below");
                found.push(path.to_str().expect("UTF-8").to_owned());
            }
        }
    }
    found.sort_unstable();
    found
}

/// The text of a file; of one that is none, nothing.
fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_default()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

const SERVE: &str = concat!("se", "rve");
