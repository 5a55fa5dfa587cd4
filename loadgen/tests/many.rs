//! Very many connections, with few: sessions that only live, echoes among them, and the script that does it with a million.

mod support;

use std::path::Path;
use std::process::Command;

use support::{Place, said};

/// Sessions of several threads with tables of their own come from several addresses, stand, answer every ping, and are pinged back.
#[test]
fn idle_holds_sessions_and_answers_pings() {
    let place = Place::new();
    let start = format!("{} --protocol-ping-ms 4000 --drain-lead-ms 0", place.command());
    let more = ["-n", "60", "--threads", "3", "--sources", "5", "--warm-up", "1", "--seconds", "10"];
    let echo = ["--echo-rate", "200", "--echo-seconds", "1", "--max-open", "60", "--max-user-bytes", "1e9", "--max-cpu", "200"];
    let (output, report) = place.loadgen("idle", &start, place.port, &[&more[..], &echo].concat());
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let held = &report["held"];
    assert_eq!((held["held"].as_u64(), held["opened"].as_u64()), (Some(60), Some(60)), "{}", said(&output));
    assert_eq!(held["gateway_open"], serde_json::json!([60, 60]));
    // Eleven seconds and more of an interval of four, the first part of it aside.
    assert!(held["pings_answered"].as_u64().is_some_and(|count| count >= 120), "{}", said(&output));
    let echo = &held["echo"];
    assert_eq!((echo["kind"].as_str(), echo["missing"].as_u64()), (Some("ping and pong"), Some(0)));
    assert!(echo["round_trip_us"]["count"].as_u64().is_some_and(|count| (190..=210).contains(&count)), "{}", said(&output));
    assert!(held["empty_s"].as_f64().is_some(), "the gateway notices that all have gone\n{}", said(&output));
    assert!(report["causes"].as_object().is_some_and(serde_json::Map::is_empty), "{}", said(&output));
}

/// Connections for which there is no room are a finding with its cause.
#[test]
fn idle_names_who_does_not_stand() {
    let place = Place::new();
    let start = format!("{} --reactors 1 --limits-connections-max 20", place.command());
    let more = ["-n", "40", "--warm-up", "0", "--seconds", "0"];
    let (output, report) = place.loadgen("idle", &start, place.port, &more);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    let held = report["held"]["held"].as_u64().unwrap_or(0);
    assert_eq!(held, 20, "{}", said(&output));
    let causes: u64 = report["causes"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
    assert_eq!(held + causes, 40, "{}", said(&output));
    let text = said(&output);
    assert!(text.contains("of 40 connections do not stand"), "{text}");
}

/// Messages come back whole and at once, open loop and closed, small and longer than what a read takes.
#[test]
fn echo_measures_round_trips() {
    let place = Place::new();
    let start = format!("{} --echo --drain-lead-ms 0", place.command());
    let open = ["-n", "30", "--threads", "2", "--rate", "300", "--warm-up", "0", "--seconds", "1"];
    let (output, report) = place.loadgen("echo", &start, place.port, &open);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let echo = &report["held"]["echo"];
    assert_eq!((echo["kind"].as_str(), echo["missing"].as_u64()), (Some("message"), Some(0)));
    assert!(echo["round_trip_us"]["count"].as_u64().is_some_and(|count| (290..=310).contains(&count)), "{}", said(&output));

    let place = Place::new();
    let start = format!("{} --echo --drain-lead-ms 0", place.command());
    let closed = ["-n", "10", "--depth", "8", "--busy", "5", "--payload", "16384", "--warm-up", "0", "--seconds", "3"];
    let (output, report) = place.loadgen("echo", &start, place.port, &[&closed[..], &["--max-p99", "0"]].concat());
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    let echo = &report["held"]["echo"];
    assert_eq!(
        (echo["closed_loop"].clone(), echo["missing"].as_u64()),
        (serde_json::json!([5, 8]), Some(0)),
        "{}",
        said(&output)
    );
    assert!(echo["round_trip_us"]["count"].as_u64().is_some_and(|count| count >= 40), "{}", said(&output));
    assert!(said(&output).contains("p99 of the round trip is"));
}

/// The script of the million, with a hundred and both drivers: it keeps what it measured, with its facts, and leaves nothing behind.
#[test]
fn the_million_with_a_hundred() {
    let place = Place::new();
    let _built = place.command();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let bin = Path::new(env!("CARGO_BIN_EXE_loadgen")).parent().expect("a folder");
    let results = place.data.with_extension("json");
    let folder = place.data.with_extension("work");
    std::fs::create_dir_all(&folder).expect("a folder");
    for driver in ["epoll", "uring"] {
        let output = Command::new(root.join("bench/million"))
            .args(["--driver", driver, "--connections", "100", "--rest", "1", "--seconds", "1", "--no-tune", "--bin"])
            .arg(bin)
            .arg("--results")
            .arg(&results)
            .args(["--set", "--store-free-bytes-min 1048576", "--", "--echo-seconds", "1"])
            .env("TMPDIR", &folder)
            .output()
            .expect("bash runs it");
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    }
    let list: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&results).expect("results")).expect("JSON");
    assert_eq!(list.as_array().map(Vec::len), Some(2));
    for (report, driver) in list.as_array().into_iter().flatten().zip(["epoll", "uring"]) {
        assert!(
            report["command"].as_str().is_some_and(|command| command.starts_with(&format!("bench/million --driver {driver} ")))
        );
        assert_eq!((report["machine"]["driver"].as_str(), report["held"]["held"].as_u64()), (Some(driver), Some(100)));
    }
    assert_eq!(std::fs::read_dir(&folder).expect("a folder").count(), 0, "its working directory is gone");
    std::fs::remove_dir_all(&folder).expect("a folder");
}
