//! The operator's side of a running gateway, over HTTP and through `tidegate ctl`, with real clients connected.

mod support;

use std::process::{Command, Output};

use serde_json::{Value, json};
use support::eventually;
use support::gateway::Gateway;
use support::raw::{ENCODINGS, Raw};
use tidegate::wire::envelope::{Encoding, deliver_flags};

/// One call; the answer must be of this status.
fn call(gateway: &Gateway, method: &str, path: &str, body: &Value, status: u16) -> Value {
    let body = if method == "GET" { String::new() } else { body.to_string() };
    let (got, answer) = gateway.admin(method, path, &body);
    assert_eq!(got, status, "{method} {path}: {answer}");
    serde_json::from_str(&answer).unwrap()
}

fn get(gateway: &Gateway, path: &str) -> Value {
    call(gateway, "GET", path, &Value::Null, 200)
}

fn ctl(gateway: &Gateway, args: &[&str]) -> Output {
    let admin = gateway.admin_address().to_string();
    Command::new(env!("CARGO_BIN_EXE_tidegate")).args(["ctl", "--admin", &admin]).args(args).output().unwrap()
}

/// What `ctl` printed; it must have ended with 0.
fn said(gateway: &Gateway, args: &[&str]) -> String {
    let output = ctl(gateway, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A message of the operator's side is durable, delivered to every member, counted as unread, and once in effect under its cmid; users
/// cannot write to a system conversation, and nothing is made by writing to one that does not exist.
#[test]
fn a_message_of_the_operator_takes_the_way_of_every_other() {
    let gateway = Gateway::start();
    gateway.group("s:news", &["al", "bo"]);
    for encoding in ENCODINGS {
        let mut al = Raw::connect(&gateway, encoding, "al", "1");
        let path = "/v1/conversations/s:news/messages";
        let cmid = format!("{:032x}", 7 + u128::from(encoding == Encoding::Json));
        let body = json!({ "text": "maintenance at noon", "cmid": cmid });
        let sent = call(&gateway, "POST", path, &body, 201);
        assert_eq!((&sent["level"], &sent["duplicate"]), (&json!(2), &json!(false)));
        let delivered = al.deliver();
        assert_eq!((&*delivered.from, &*delivered.conv, &*delivered.payload), ("system", "s:news", &b"maintenance at noon"[..]));
        assert_eq!((json!(delivered.seq), json!(delivered.mid.0.to_string())), (sent["seq"].clone(), sent["mid"].clone()));
        assert_eq!(delivered.flags & deliver_flags::OWN, 0);
        let again = call(&gateway, "POST", path, &body, 200);
        assert_eq!((&again["seq"], &again["duplicate"]), (&sent["seq"], &json!(true)));
        let other = json!({ "text": "something else", "cmid": cmid });
        assert_eq!(call(&gateway, "POST", path, &other, 409)["error"], "cmid_reused");
        let rid = al.put_send("s:news", support::raw::cmid(), 0, b"me too");
        let error = al.error();
        assert_eq!((error.rid, error.code), (rid, 3002));
    }
    let unread = get(&gateway, "/v1/users/bo/conversations");
    assert_eq!(
        unread,
        json!({ "user": "bo", "unread": 2, "conversations": [{ "conv": "s:news", "head": 2, "floor": 1, "read": 0, "unread": 2 }] })
    );
    let body = json!({ "text": "hi" });
    for conv in ["g:nobody", "d:al:bo"] {
        assert_eq!(call(&gateway, "POST", &format!("/v1/conversations/{conv}/messages"), &body, 404)["error"], "unknown");
        assert_eq!(call(&gateway, "GET", &format!("/v1/conversations/{conv}"), &body, 404)["error"], "unknown");
    }
    let long = json!({ "text": "x".repeat(65_537) });
    assert_eq!(call(&gateway, "POST", "/v1/conversations/s:news/messages", &long, 413)["error"], "too_large");
}

/// What the operator's side sent before a kill -9 is there after it, and the cmid is still known.
#[test]
fn what_the_operator_sent_survives_a_kill() {
    let mut gateway = Gateway::start();
    gateway.group("g:team", &["al"]);
    let body = json!({ "text": "kept", "from": "ops", "cmid": "000000000000000000000000000000aa" });
    let path = "/v1/conversations/g:team/messages";
    assert_eq!(call(&gateway, "POST", path, &body, 201)["seq"], 1);
    gateway.kill();
    gateway.run();
    assert_eq!(call(&gateway, "POST", path, &body, 200)["duplicate"], true);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    assert_eq!(al.fetch("g:team", 0, 0, 0, 0).head, 1);
    let shown = get(&gateway, "/v1/conversations/g:team");
    assert_eq!(
        shown,
        json!({ "conv": "g:team", "head": 1, "floor": 1, "version": 1, "members": [{ "user": "al", "joined": 1 }] })
    );
}

/// Connections are listed with what their core knows, found by user, device and address, and closed with 4403 under a cause of its own.
#[test]
fn connections_are_listed_found_and_kicked() {
    let gateway = Gateway::start();
    let mut phone = Raw::connect(&gateway, Encoding::Binary, "al", "phone");
    let mut laptop = Raw::connect(&gateway, Encoding::Json, "al", "laptop");
    let mut bo = Raw::connect(&gateway, Encoding::Json, "bo", "web");
    bo.say("d:al:bo", "hi");
    phone.deliver();
    laptop.deliver();
    let all = get(&gateway, "/v1/connections");
    assert_eq!(all["connections"].as_array().map(Vec::len), Some(3), "{all}");
    let found = |query: &str| {
        let page = get(&gateway, &format!("/v1/connections?{query}"));
        let mut devices: Vec<_> =
            page["connections"].as_array().unwrap().iter().map(|it| it["device"].as_str().unwrap().to_owned()).collect();
        devices.sort();
        devices
    };
    assert_eq!(found("user=al"), ["laptop", "phone"]);
    assert_eq!(found("user=al&device=phone"), ["phone"]);
    assert_eq!(found("device=web"), ["web"]);
    assert_eq!(found("address=127.0.0.1"), ["laptop", "phone", "web"]);
    assert!(found("address=127.0.0.9").is_empty());
    let seen = get(&gateway, "/v1/connections?user=al&device=laptop")["connections"][0].clone();
    assert_eq!((&seen["encoding"], &seen["pos"], &seen["unacknowledged"]), (&json!("json"), &json!(1), &json!(1)), "{seen}");
    let local = laptop.socket.get_ref().local_addr().unwrap().to_string();
    assert_eq!(seen["address"], local);

    let kick = |body: Value| call(&gateway, "POST", "/v1/kick", &body, 200)["closed"].clone();
    assert_eq!(kick(json!({ "user": "al", "device": "phone" })), 1);
    assert_eq!(phone.closed(), Some(4403));
    assert_eq!(kick(json!({ "user": "nobody" })), 0);
    assert_eq!(kick(json!({ "address": "127.0.0.1" })), 2);
    assert_eq!((laptop.closed(), bo.closed()), (Some(4403), Some(4403)));
    eventually("the cause", || (gateway.metric("tidegate_closes_total{cause=\"kicked\"}") == 3.0).then_some(()));
    assert_eq!(call(&gateway, "POST", "/v1/kick", &json!({}), 400)["error"], "bad_query");
    assert_eq!(call(&gateway, "GET", "/v1/connections?adress=1", &json!({}), 400)["error"], "bad_query");
    assert_eq!(get(&gateway, "/v1/users/al")["devices"], json!([]));
}

/// The configuration in force is told, its secret is not; a configured secret means no tokens for the page.
#[test]
fn the_configuration_is_told_without_its_secret() {
    let gateway = Gateway::with(&[("protocol.send_rate", "33")]);
    let config = get(&gateway, "/v1/config");
    assert_eq!(config["protocol.send_rate"], json!({ "value": 33, "changed": true }));
    assert_eq!(config["auth.secret"], json!({ "value": "***", "changed": true }));
    assert!(!config.to_string().contains("secret of test"), "{config}");
    assert_eq!(get(&gateway, "/v1/version")["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(call(&gateway, "POST", "/demo/token", &json!({ "user": "al" }), 403)["error"], "no_demo_tokens");
    let (status, page) = gateway.admin("GET", "/demo/", "");
    assert!(status == 200 && page.contains("<title>Tidegate demo</title>"));
}

/// A drain by HTTP ends the process as SIGTERM does; a second one is refused.
#[test]
fn a_drain_is_begun_once() {
    let mut gateway = Gateway::with(&[("drain.lead_ms", "3000"), ("drain.window_ms", "1000")]);
    let mut al = Raw::connect(&gateway, Encoding::Json, "al", "1");
    assert_eq!(call(&gateway, "POST", "/v1/drain", &json!({}), 202)["draining"], true);
    let (status, answer) = gateway.admin("POST", "/v1/drain", "{}");
    assert!(status == 409 && answer.contains("\"draining\""), "{answer}");
    assert_eq!(al.closed(), Some(1012));
    assert!(gateway.wait().success());
}

/// `tidegate ctl` says the same as tables and as JSON, and its exit codes tell a refusal, a mistake and an absent gateway apart.
#[test]
fn ctl_speaks_to_it() {
    let gateway = Gateway::start();
    said(&gateway, &["group", "create", "g:team", "al", "bo"]);
    let _al = Raw::connect(&gateway, Encoding::Json, "al", "web");
    let sent: Value = serde_json::from_str(&said(&gateway, &["--json", "send", "g:team", "hello all"])).unwrap();
    assert_eq!((&sent["seq"], &sent["level"]), (&json!(1), &json!(2)));
    let table = said(&gateway, &["connections", "--user", "al"]);
    let lines: Vec<_> = table.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("USER  DEVICE") && lines[1].starts_with("al    web"), "{table}");
    let unread = said(&gateway, &["unread", "bo"]);
    assert!(unread.lines().nth(1).is_some_and(|line| line.split_whitespace().eq(["g:team", "1", "1", "0", "1"])), "{unread}");
    assert!(said(&gateway, &["conversation", "g:team"]).contains("members  al, bo\n"));
    assert!(said(&gateway, &["config", "store.level"]).contains("store.level  2"));
    let ready = eventually("readiness", || Some(ctl(&gateway, &["ready"])).filter(|output| output.status.success()));
    assert!(String::from_utf8_lossy(&ready.stdout).contains("true"));
    assert!(said(&gateway, &["kick", "--user", "al"]).contains("closed  1"));
    said(&gateway, &["group", "remove", "g:team", "bo"]);

    let refused = ctl(&gateway, &["conversation", "g:none"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).starts_with("unknown: "), "{refused:?}");
    assert_eq!(ctl(&gateway, &["shout"]).status.code(), Some(2));
    let away = Command::new(env!("CARGO_BIN_EXE_tidegate")).args(["ctl", "--admin", "127.0.0.1:1", "version"]).output().unwrap();
    assert_eq!(away.status.code(), Some(9));
}
