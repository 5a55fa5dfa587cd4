//! What `/metrics` shows of the real binary: the names that are documented, and numbers that move with what happens.

mod support;

use std::collections::BTreeSet;

use support::eventually;
use support::gateway::Gateway;
use support::raw::Raw;
use tidegate::wire::envelope::Encoding;

const DIRECT: &str = "d:al:bo";

/// Every metric of the real binary has its row in `docs/metrics.md`, and every row its metric.
#[test]
fn the_page_of_metrics_names_what_is_exposed() {
    let gateway = Gateway::start();
    let (_, text) = gateway.admin("GET", "/metrics", "");
    let mut exposed = BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').expect("a name and a type");
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        exposed.insert(format!("{name}{suffix}"));
    }
    let page = include_str!("../docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let documented: BTreeSet<String> = rows
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.starts_with("tidegate_") || name.starts_with("process_"))
        .collect();
    assert!(exposed.len() > 50);
    assert_eq!(exposed, documented);
}

/// Every stage of a message's way is measured: one message between two devices leaves a value in each, and none that is absurd.
#[test]
fn every_stage_is_measured() {
    let gateway = Gateway::start();
    let page = include_str!("../docs/metrics.md");
    let table = page.split_once("| label `stage`").expect("the table of stages").1.split_once("\n\n").expect("its end").0;
    let stages: Vec<&str> =
        table.lines().skip(2).filter_map(|row| row.strip_prefix("| ")?.split_once(' ').map(|(stage, _)| stage)).collect();
    assert_eq!(stages, ["accept", "upgrade", "parse", "commit", "sync", "delivery", "write", "acknowledge"]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut bo = Raw::connect(&gateway, Encoding::Json, "bo", "1");
    // One read in sixteen is measured as parsing, and each sender writes to one core.
    for number in 0..40 {
        al.say(DIRECT, &format!("{number}"));
        bo.deliver();
    }
    let count = |stage: &str| gateway.metric(&format!("tidegate_stage_seconds_count{{stage=\"{stage}\"}}"));
    for stage in stages {
        let measured = eventually(stage, || Some(count(stage)).filter(|&count| count > 0.0));
        let sum = gateway.metric(&format!("tidegate_stage_seconds_sum{{stage=\"{stage}\"}}"));
        eprintln!("{stage}: {measured} values, mean {:.0} us", sum / measured * 1e6);
        assert!(sum > 0.0, "{stage}");
    }
    eventually("all commits", || (count("commit") == 40.0 && count("acknowledge") == 40.0).then_some(()));
    eventually("both newcomers", || ((count("accept"), count("upgrade")) == (2.0, 2.0)).then_some(()));
    // Each message waited for the one before.
    eventually("all syncs", || (count("sync") >= 40.0).then_some(()));
    // The parts cannot exceed the whole.
    let sum = |stage: &str| gateway.metric(&format!("tidegate_stage_seconds_sum{{stage=\"{stage}\"}}"));
    assert!(sum("sync") <= sum("commit") && sum("commit") <= sum("acknowledge") * 1.02);
}
