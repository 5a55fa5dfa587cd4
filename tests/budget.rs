//! Memory as a budget, through the real binary: limits that follow the machine.

mod support;

use support::gateway::Gateway;

/// Limits that are not set follow from the machine: the start says each with what it is from, `GET /v1/config` shows it, and it is no
/// change of the operator's. What is set wins, and a line says where it does not fit.
#[test]
fn limits_are_worked_out_and_told() {
    let gateway = Gateway::with(&[("limits.memory_bytes", "268435456"), ("limits.handshakes_max", "100000")]);
    let log = gateway.log();
    let (status, text) = gateway.admin("GET", "/v1/config", "");
    assert_eq!(status, 200);
    let config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    for (key, value, from) in [
        ("limits.connections_max", 16_384, "half of limits.memory_bytes at 8192 bytes each"),
        ("limits.accept_per_s", 200, "twice 1/32 of limits.memory_bytes"),
        ("limits.accept_burst", 400, "twice limits.accept_per_s"),
        ("limits.queue_bytes_max", 64 << 20, "1/4 of limits.memory_bytes"),
    ] {
        assert!(log.contains(&format!("{key} = {value}: {from}")), "{key}: {log}");
        let entry = &config[key];
        assert_eq!((entry["value"].as_u64(), entry["changed"].as_bool()), (Some(value), Some(false)), "{key}");
        assert!(entry["from"].as_str().is_some_and(|text| text.starts_with(from)), "{entry}");
    }
    for (key, value) in [("limits.memory_bytes", 268_435_456), ("limits.handshakes_max", 100_000)] {
        assert!(!log.contains(&format!("{key} = {value}:")), "{key}: {log}");
        assert_eq!(config[key], serde_json::json!({ "value": value, "changed": true }));
    }
    assert!(log.contains("limits.handshakes_max lets handshakes take"), "{log}");

    let gateway = Gateway::start();
    let log = gateway.log();
    let half = log.split("limits.memory_bytes = ").nth(1).expect("a line").split(':').next().and_then(|text| text.parse().ok());
    assert!(half.is_some_and(|bytes: u64| bytes > 1 << 26) && log.contains(": half of "), "{log}");
}
