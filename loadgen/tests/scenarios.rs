//! Scenarios by name, against the real gateway: each does what its name says, and its threshold can break.

mod support;

use support::{Place, said};

/// Every message goes to a group: each is delivered to all devices of its three members but the sender's.
#[test]
fn group_writes_to_groups() {
    let place = Place::new();
    let more = ["-n", "6", "--group-size", "3", "--rate", "50", "--warm-up", "0", "--seconds", "2"];
    let (output, report) = place.loadgen("group", &place.command(), place.port, &more);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let count = |name: &str| report["counts"][name].as_u64().unwrap_or(0);
    assert!(count("acknowledged") > 0 && count("delivered") == 2 * count("acknowledged"), "{}", said(&output));
}

/// Devices that read slowly or never do not keep the others from their messages, and what the gateway holds for them is bounded.
/// The kernel keeps little for the deaf, so the gateway must mark their conversations instead of queueing.
#[test]
fn slow_ones_disturb_nobody() {
    let place = Place::new();
    let more = [
        "-n",
        "12",
        "--users",
        "4",
        "--slow",
        "2",
        "--deaf",
        "4",
        "--rate",
        "300",
        "--payload",
        "4000",
        "--warm-up",
        "0",
        "--seconds",
        "5",
        "--max-rss",
        "400",
    ];
    let (output, report) = place.loadgen("slow", &place.command(), place.port, &more);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let submitted = report["counts"]["submitted"].as_u64();
    assert!(submitted.is_some_and(|count| count > 500) && submitted == report["counts"]["acknowledged"].as_u64());
}

/// With a bounded outbox more than a client may have under way is given up and counted; what was taken arrives, and the ledger is clean.
#[test]
fn a_full_outbox_gives_up() {
    let place = Place::new();
    let more = ["-n", "2", "--outbox", "1", "--rate", "20000", "--warm-up", "0", "--seconds", "1"];
    let (output, report) = place.loadgen("chat", &place.command(), place.port, &more);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let count = |name: &str| report["counts"][name].as_u64().unwrap_or(0);
    assert!(count("given_up") > 0 && count("acknowledged") > 0, "{}", said(&output));
    assert_eq!(count("delivered"), count("acknowledged"));
}

/// A gateway closes what begins and does not go on, and nobody notices; when it is given too little time the run fails and says so.
#[test]
fn half_open_ones_are_closed() {
    for (soon, within, code) in [(" --protocol-upgrade-ms 1000 --protocol-hello-ms 1000", "20", 0), ("", "0.2", 3)] {
        let place = Place::new();
        let start = format!("{}{soon}", place.command());
        let more = [
            "-n",
            "4",
            "--rate",
            "50",
            "--warm-up",
            "0",
            "--seconds",
            "3",
            "--each",
            "3",
            "--within",
            within,
            "--no-sockets-left",
        ];
        let (output, report) = place.loadgen("half-open", &start, place.port, &more);
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        let closed = |at: usize| report["half_open"][at]["closed"].as_u64().unwrap_or(0);
        if code == 0 {
            assert_eq!([closed(0), closed(1), closed(2)], [3, 3, 3], "{}", said(&output));
        } else {
            assert!(report["broken"][0].as_str().is_some_and(|text| text.contains("stood on")), "{}", said(&output));
        }
    }
}

/// Connections are cut all the time and take their sessions up again: `pos` goes on without a hole, no socket is left, and a memory
/// that may not shrink by itself breaks its threshold.
#[test]
fn churn_resumes_and_leaves_nothing() {
    let place = Place::new();
    let churn = ["-n", "16", "--users", "8", "--rate", "300", "--group-share", "0.3", "--churn", "20", "--warm-up", "0"];
    let more = ["--seconds", "6", "--back-off-ms", "20", "--back-off-max-ms", "100", "--no-sockets-left", "--max-growth=-99"];
    let (output, report) = place.loadgen("chat", &place.command(), place.port, &[&churn[..], &more].concat());
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    let broken = report["broken"].as_array().cloned().unwrap_or_default();
    assert!(broken.len() == 1 && broken[0].as_str().is_some_and(|text| text.contains("memory grew")), "{}", said(&output));
    assert!(report["counts"]["resumed"].as_u64().is_some_and(|count| count > 20), "{}", said(&output));
}

/// Connections come, talk and go at a rate, half of them with a goodbye: what was opened, closed, and is left of it is reported.
#[test]
fn churn_comes_talks_and_goes() {
    let place = Place::new();
    let more = ["--min-turnover", "0.1", "--max-connect-p99", "60000", "--no-sockets-left"];
    let (output, report) = place.loadgen("churn", &tireless(&place), place.port, &[&CHURN[..], &more].concat());
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let churn = &report["churn"];
    for rate in ["opened_per_s", "closed_per_s"] {
        assert!(churn[rate].as_f64().is_some_and(|rate| rate > 0.0), "{}", said(&output));
    }
    assert!(churn["connect_us"]["count"].as_u64().is_some_and(|count| count > 10), "{}", said(&output));
    assert!(churn["connect_us"]["p99"].as_f64().is_some_and(|p99| p99 > 0.0), "{}", said(&output));
    assert!(churn["resumed"].as_u64().is_some_and(|count| count > 0), "{}", said(&output));
    assert_eq!(churn["failed"].as_u64(), Some(0), "{}", said(&output));
    assert!(churn["memory_bytes"][1].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{}", said(&output));
    // Before the first, one more may be open: of whoever asked whether the gateway is ready.
    let sockets = |at: usize| churn["sockets"][at].as_u64().unwrap_or(0);
    assert!(sockets(1) > 0 && sockets(1) <= sockets(0), "{}", said(&output));
    let counts = &report["counts"];
    for count in ["left", "cut_on_purpose", "acknowledged"] {
        assert!(counts[count].as_u64().is_some_and(|count| count > 10), "{count}: {}", said(&output));
    }
}

/// Thresholds of churn set the exit code, also those of a file: connecting takes longer than no time, nobody leaves more often than is
/// meant, and a gateway that lets nobody in twice sends those away who come back.
#[test]
fn churn_names_what_was_not_kept() {
    let place = Place::new();
    let more = ["--min-turnover", "2", "--max-connect-p99", "0"];
    let (output, report) = place.loadgen("churn", &tireless(&place), place.port, &[&CHURN[..], &more].concat());
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert_eq!(report["broken"].as_array().map(Vec::len), Some(2), "{}", said(&output));
    assert!(said(&output).contains("p99 of connecting is") && said(&output).contains("closed per second, below 2"));

    let place = Place::new();
    let start = format!("{} --protocol-hello-per-minute 1", place.command());
    let more = "connections = 30\nchurn = 15\npolite = 0.5\nmin_turnover = 0\nmax_failed = 3\nwarm_up = 0\nseconds = 3\ndrain = 1\n\
                back_off_ms = 20\nback_off_max_ms = 100\n";
    let (output, _) = place.file("churn", &start, more);
    assert_ne!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("were refused, cut off or sent away, above 3"), "{}", said(&output));
}

/// A gateway that lets a device in as often as it comes.
fn tireless(place: &Place) -> String {
    format!("{} --protocol-hello-per-minute 0", place.command())
}

const CHURN: [&str; 14] = [
    "-n",
    "30",
    "--churn",
    "15",
    "--rate",
    "60",
    "--warm-up",
    "0",
    "--seconds",
    "4",
    "--back-off-ms",
    "20",
    "--back-off-max-ms",
    "100",
];

/// A storm cuts all but the spared, who go on; who was cut comes back in time, and what is not in time breaks a threshold.
#[test]
fn a_storm_cuts_all_but_the_spared() {
    let place = Place::new();
    let more = ["-n", "120", "--spared", "20", "--rate", "100", "--back-off-ms", "50", "--back-off-max-ms", "500"];
    let (output, report) = place.loadgen("storm", &place.command(), place.port, &[&more[..], &["--max-ratio", "0"]].concat());
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    let storm = &report["storm"];
    assert_eq!((storm["cut"].as_u64(), storm["spared"].as_u64()), (Some(100), Some(20)), "{}", said(&output));
    assert!(storm["back_s"].as_f64().is_some(), "{}", said(&output));
    assert_eq!(report["counts"]["cut_on_purpose"].as_u64(), Some(100), "{}", said(&output));
    assert!(storm["spared_us_p99"][1].as_f64().is_some_and(|p99| p99 > 0.0), "{}", said(&output));
    assert!(said(&output).contains("the p99 of the spared was"), "{}", said(&output));
    assert_eq!(report["broken"].as_array().map(Vec::len), Some(1), "{}", said(&output));
    assert_eq!(storm["spared_go_first"].as_bool(), Some(false), "they have no thread of their own");
    assert!(said(&output).contains("the spared waited for a core"), "{}", said(&output));
}

/// The same with TLS: who comes back has a ticket, a run that trusts nobody is refused, and the rate at which they are welcomed is plotted.
#[test]
fn a_storm_with_tls_comes_back_by_tickets() {
    let place = Place::new();
    let port = support::free_port();
    let folder = place.data.with_extension("tls");
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = |name: &str| folder.join(name).to_str().expect("a path").to_owned();
    let signed = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    std::fs::write(file("a.pem"), signed.cert.pem()).expect("a file");
    std::fs::write(file("a.key"), signed.signing_key.serialize_pem()).expect("a file");
    let start = format!(
        "{} --tls-listen 127.0.0.1:{port} --tls-certificates {} --tls-keys {}",
        place.command(),
        file("a.pem"),
        file("a.key")
    );
    let url = format!("wss://127.0.0.1:{port}/ws");
    let html = file("a.html");
    let more = ["-n", "60", "--spared", "10", "--rate", "50", "--back-off-ms", "50", "--back-off-max-ms", "500", "--url", &url];
    let last = ["--authority", &file("a.pem"), "--html", &html, "--no-sockets-left", "--max-memory", "100", "--threads", "2"];
    let (output, report) = place.loadgen("storm", &start, port, &[&more[..], &last].concat());
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let storm = &report["storm"];
    assert_eq!((storm["cut"].as_u64(), storm["handshakes"].clone()), (Some(50), serde_json::json!([0, 50])), "{}", said(&output));
    // Not every user who runs tests has a say over the scheduler; chrt (util-linux) asks for the same.
    let may = std::process::Command::new("chrt").args(["--fifo", "1", "true"]).status().expect("chrt runs").success();
    assert_eq!(storm["spared_go_first"].as_bool(), Some(may), "{}", said(&output));
    assert_eq!(said(&output).contains("the spared waited for a core"), !may, "{}", said(&output));
    assert!(storm["memory_bytes"][1].as_u64().is_some_and(|bytes| bytes > 0), "{}", said(&output));
    let page = std::fs::read_to_string(&html).expect("a page");
    assert!(page.contains("<h2>welcomed per second</h2><svg"));

    let (output, _) = place.loadgen("chat", "false", port, &["-n", "2", "--url", &url]);
    assert!(output.status.code() == Some(4) && said(&output).contains("wss:// needs --authority FILE"), "{}", said(&output));
    std::fs::remove_dir_all(&folder).expect("a folder");
}
