//! The listener with its real thread, and a store played by the test.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use super::*;
use crate::config::Settings;
use crate::io::wake::Waker;
use crate::mail::{MemberChange, MemberDone, MemberMail, MemberRefusal};
use crate::mailbox::{LaneReceiver, lane};
use crate::observe::counters::{ReactorCounters, StoreCounters};
use crate::observe::histogram::{ReactorHistograms, StoreHistograms};

/// An admin thread, and everything the gateway would hold.
struct Node {
    admin: Admin,
    health: Arc<Health>,
    store: Arc<StoreBlock>,
    mail: LaneReceiver<Submit>,
}

fn node(submit_bound: usize) -> Node {
    let (submit, mail) = lane(submit_bound, &Waker::for_thread());
    let (health, store) = (Arc::new(Health::new(1)), Arc::new(StoreBlock::default()));
    let reactor = Arc::new(ReactorBlock::default());
    reactor.publish(&ReactorCounters { connections_open: 42, ..ReactorCounters::default() });
    let histograms = vec![ReactorHistograms::new().1, StoreHistograms::new().1];
    let sources = Sources {
        reactors: vec![reactor],
        store: Arc::clone(&store),
        histograms,
        auth: Arc::default(),
        health: Arc::clone(&health),
        submit,
        credit: Credit::new(1 << 20),
        controls: Vec::new(),
        in_force: Arc::new(RwLock::new(InForce { settings: Settings::default(), derived: Vec::new() })),
        pressure: Arc::new(Pressure::new(1_000, 1)),
        drain: Box::new(|| {}),
        reload: Box::new(|reply| drop(reply.try_send(Err("there is no listener for TLS".to_owned())))),
        clock: Clock::new(),
        idle_session_bytes: 196,
        version: "0.0.0-test",
        demo: Demo { listen: "127.0.0.1:8080".parse().unwrap(), path: "/ws".to_owned(), secret: None },
    };
    let admin = Admin::start("127.0.0.1:0".parse().unwrap(), sources).unwrap();
    Node { admin, health, store, mail }
}

impl Node {
    /// Sends raw bytes on a connection of its own and returns status and the whole answer.
    fn raw(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.admin.addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // A refusal may come before the whole body is taken; what was answered still counts.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("no status in {answer:?}")), answer)
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.raw(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
    }

    fn post(&self, path: &str, headers: &str, body: &str) -> (u16, String) {
        let length = body.len();
        self.raw(&format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}connection: close\r\n\
             content-length: {length}\r\n\r\n{body}"
        ))
    }

    /// Answers the next change as the store would, while `call` waits for it.
    fn with_store<T: Send>(
        &self,
        answer: Result<MemberDone, MemberRefusal>,
        call: impl FnOnce() -> T + Send,
    ) -> (T, MemberChange) {
        std::thread::scope(|scope| {
            let call = scope.spawn(call);
            let Ok(Submit::Member(MemberMail { conv, change, reply, .. })) = self.mail.recv_within(Duration::from_secs(5)) else {
                panic!("no change reached the store")
            };
            assert_eq!(&*conv, "g:team");
            reply.send(answer).unwrap();
            (call.join().unwrap(), change)
        })
    }
}

fn team() -> MemberDone {
    MemberDone { version: 2, head: 7, members: vec!["al".to_owned(), "bo".to_owned()], ..MemberDone::default() }
}

/// Alive at once, ready only when nothing is missing, and the body says what is.
#[test]
fn readiness_says_what_is_missing() {
    let node = node(1);
    assert_eq!(node.get("/livez").0, 200);
    let (status, answer) = node.get("/readyz");
    assert_eq!(status, 503);
    assert!(answer.contains("0 of 1 reactors") && answer.contains("still reading its log"), "{answer}");
    node.health.reactor_accepts();
    node.health.store_opened();
    assert_eq!(node.get("/readyz").0, 200);
    assert!(node.get("/metrics").1.contains("tidegate_ready 1\n"));
    node.store.publish(&StoreCounters { read_only: 1, ..StoreCounters::default() });
    let (status, answer) = node.get("/readyz");
    assert!(status == 503 && answer.contains("disk"), "{answer}");
    node.store.publish(&StoreCounters::default());
    node.health.drain();
    assert!(node.get("/readyz").1.contains("draining"));
    node.admin.stop();
}

/// The counters a reactor published are in the exposition, which is of the announced type.
#[test]
fn metrics_are_served() {
    let node = node(1);
    let (status, answer) = node.get("/metrics");
    assert_eq!(status, 200);
    assert!(answer.contains("content-type: application/openmetrics-text"), "{answer}");
    assert!(answer.contains("tidegate_connections_open{reactor=\"0\"} 42\n"), "{answer}");
    node.admin.stop();
}

/// Each call reaches the store as one value and answers what the store says.
#[test]
fn group_calls_travel_to_the_store_and_back() {
    let node = node(4);
    let body = r#"{"conv":"g:team","members":["bo","al","bo"]}"#;
    let ((status, answer), change) = node.with_store(Ok(team()), || node.post("/v1/groups", "", body));
    assert_eq!(status, 201, "{answer}");
    assert!(answer.ends_with(r#"{"conv":"g:team","version":2,"head":7,"members":["al","bo"]}"#), "{answer}");
    assert!(matches!(change, MemberChange::Create(users) if users == ["al".into(), "bo".into()]));

    let ((status, _), change) =
        node.with_store(Ok(team()), || node.post("/v1/groups/g:team/members", "", r#"{"remove":["cy"]}"#));
    assert_eq!(status, 200);
    assert!(matches!(change, MemberChange::Remove(users) if users == ["cy".into()]));

    let ((status, _), change) = node.with_store(Ok(team()), || node.get("/v1/groups/g:team"));
    assert!(status == 200 && matches!(change, MemberChange::Show));
    let ((status, answer), _) = node.with_store(Err(MemberRefusal::Unknown), || node.get("/v1/groups/g%3Ateam"));
    assert!(status == 404 && answer.contains(r#""error":"unknown""#), "{answer}");
    let ((status, answer), _) = node.with_store(Err(MemberRefusal::Overloaded), || node.get("/v1/groups/g:team"));
    assert!(status == 503 && answer.contains("retry-after: 1\r\n"), "{answer}");
    node.admin.stop();
}

/// What never needs to reach the store is refused with its code, and nothing reaches the store.
#[test]
fn wrong_requests_are_refused_by_name() {
    let node = node(1);
    let long = format!(r#"{{"conv":"g:team","members":["{}"]}}"#, "a".repeat(limits::ADMIN_BODY_BYTES_MAX));
    let groups = "/v1/groups";
    for ((status, answer), wanted, error) in [
        (node.get("/nothing"), 404, "not_found"),
        (node.get(groups), 405, "method_not_allowed"),
        (node.get("/v1/groups/d:al:bo"), 400, "bad_name"),
        (node.post(groups, "", "{"), 400, "bad_body"),
        (node.post(groups, "", r#"{"conv":"g:team","member":["al"]}"#), 400, "bad_body"),
        (node.post(groups, "", r#"{"conv":"g:team","members":["a:b"]}"#), 400, "bad_name"),
        (node.post(groups, "", &long), 413, "too_large"),
        (node.post("/v1/groups/g:team/members", "", "{}"), 400, "no_change"),
        (node.post(groups, "origin: http://evil.example\r\n", r#"{"conv":"g:team"}"#), 403, "origin_refused"),
        (node.raw("GET /metrics HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n"), 403, "host_refused"),
    ] {
        assert_eq!(status, wanted, "{answer}");
        assert!(answer.contains(&format!(r#""error":"{error}""#)) && answer.contains(r#""remedy":""#), "{answer}");
    }
    assert!(node.mail.is_empty());
    node.admin.stop();
}

/// A full lane is 503 at once; a store that does not answer is 504 after a while, and names the thread.
#[test]
fn a_store_that_does_not_answer_is_named() {
    let node = node(1);
    let begun = Instant::now();
    let (status, answer) = std::thread::scope(|scope| {
        let first = scope.spawn(|| node.get("/v1/groups/g:team"));
        while node.mail.is_empty() {
            std::thread::yield_now();
            assert!(begun.elapsed() < Duration::from_secs(5));
        }
        let (status, answer) = node.get("/v1/groups/g:other");
        assert!(status == 503 && answer.contains(r#""error":"busy""#), "{answer}");
        first.join().unwrap()
    });
    assert!(status == 504 && answer.contains("store thread"), "{answer}");
    assert!(begun.elapsed() >= Duration::from_secs(5));
    node.admin.stop();
}

/// The labels under which broken rules are counted are those of `wire`, in its order; `observe` stands below and cannot look.
#[test]
fn violations_are_counted_under_their_names() {
    use crate::observe::counters::VIOLATION_NAMES;
    use crate::wire::violation::Violation;
    assert_eq!(VIOLATION_NAMES.to_vec(), Violation::ALL.map(Violation::name).to_vec());
}
