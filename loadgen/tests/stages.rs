//! Stages: the rate climbs, stays, jumps and falls as it was told, by flags or from a file, and each stage is measured for itself.

mod support;

use serde_json::Value;
use support::{Place, said};

/// Each stage has the messages that were meant to leave in it, and none is lost between two; thresholds are of all together, and the
/// page has a row for each.
#[test]
fn chat_is_measured_by_stage() {
    let place = Place::new();
    let html = place.data.with_extension("html");
    let stages = ["--stage", "1s:300", "--stage", "1s:300", "--stage", "0s:100", "--stage", "2s:0"];
    let more = ["-n", "8", "--threads", "2", "--max-p99", "0", "--min-rate", "0.1", "--html", html.to_str().expect("a path")];
    let (output, report) = place.loadgen("chat", &place.command(), place.port, &[&stages[..], &more].concat());
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert_eq!(counts(&report["stages"], "sent_us"), [150, 300, 100], "{}", said(&output));
    assert_eq!(report["whole"]["sent_us"]["count"].as_u64(), Some(550), "{}", said(&output));
    assert_eq!(report["counts"]["submitted"].as_u64(), Some(550), "{}", said(&output));
    assert_eq!(rates(&report["stages"]), [(0.0, 300.0), (300.0, 300.0), (100.0, 0.0)]);
    assert_eq!(report["broken"].as_array().map(Vec::len), Some(1), "the whole run has one p99\n{}", said(&output));
    let page = std::fs::read_to_string(&html).expect("a page");
    std::fs::remove_file(&html).expect("a page");
    for row in ["<td>1<td>1.00<td>0 to 300<td>", "<td>3<td>2.00<td>100 to 0<td>", "<td>all<td>4.00<td>137.50<td>"] {
        assert!(page.contains(row), "{row}: {page}");
    }
}

/// A file has a table for each stage; echoes and the pings of idle sessions have stages too.
#[test]
fn a_file_has_stages() {
    for (scenario, flags) in [("echo", "--echo"), ("idle", "")] {
        let place = Place::new();
        let start = format!("{} {flags} --drain-lead-ms 0", place.command());
        let more = "connections = 4\n[[stage]]\nseconds = 1\nrate = 200\n[[stage]]\nseconds = 0.5\nrate = 200.0\n";
        let (output, report) = place.file(scenario, &start, more);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let echo = &report["held"]["echo"];
        assert_eq!(counts(&echo["stages"], "round_trip_us"), [100, 100], "{}", said(&output));
        assert_eq!(rates(&echo["stages"]), [(0.0, 200.0), (200.0, 200.0)]);
        assert_eq!((echo["round_trip_us"]["count"].as_u64(), echo["missing"].as_u64()), (Some(200), Some(0)));
    }
}

/// What cannot be is refused before anything is started, and the text says what is wanted.
#[test]
fn mistakes_are_named() {
    let place = Place::new();
    let never = "false";
    for (more, code, text) in [
        (&["--stage", "30:1000"][..], 2, "TIME:RATE such as 30s:1000"),
        (&["--stage", "30s:-5"], 2, "TIME:RATE such as 30s:1000"),
        (&["--stage", "1s:10", "--rate", "5"], 2, "cannot be used with"),
        (&["--stage", "1s:10", "--seconds", "5"], 2, "cannot be used with"),
        (&["--stage", "0s:1000"], 4, "the stages send nothing"),
    ] {
        let (output, _) = place.loadgen("chat", never, place.port, more);
        assert_eq!(output.status.code(), Some(code), "{more:?}: {}", said(&output));
        assert!(said(&output).contains(text), "{more:?}: {}", said(&output));
    }
    for wrong in
        ["[[stage]]\nseconds = 3\n", "[[stage]]\nseconds = \"3\"\nrate = 1\n", "[[stage]]\nseconds = 3\nrate = 1\nup = 1\n"]
    {
        let (output, _) = place.file("chat", never, wrong);
        assert_eq!(output.status.code(), Some(4), "{wrong}: {}", said(&output));
        assert!(said(&output).contains("a [[stage]] has seconds and rate"), "{wrong}: {}", said(&output));
    }
}

fn counts(stages: &Value, of: &str) -> Vec<u64> {
    stages.as_array().into_iter().flatten().filter_map(|stage| stage[of]["count"].as_u64()).collect()
}

fn rates(stages: &Value) -> Vec<(f64, f64)> {
    let rate = |stage: &Value, key: &str| stage[key].as_f64().unwrap_or(-1.0);
    let stages = stages.as_array().into_iter().flatten();
    stages.map(|stage| (rate(stage, "rate_from_per_s"), rate(stage, "rate_to_per_s"))).collect()
}
