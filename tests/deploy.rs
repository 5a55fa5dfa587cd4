//! The examples in `deploy/`, as they are but for their ports: real balancers in front of the real gateway.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::gateway::{Gateway, free_address};
use support::raw::Raw;
use support::{PATIENCE, eventually};
use tidegate::wire::envelope::Encoding;
use tidegate_client::{Event, Events};

/// Two people chat through nginx; their messages are durable, and both sides see them.
#[test]
fn chat_through_nginx() {
    let gateway = Gateway::start();
    let balancer = Balancer::nginx(&gateway);
    chat(&gateway, &balancer);
    assert_eq!(balancer.request("/metrics").0, 404, "only the WebSocket is passed on");
}

/// The same through HAProxy. When the gateway begins to drain, HAProxy learns it from `/readyz` and sends no newcomer, while whoever
/// is connected goes on.
#[test]
fn chat_through_haproxy_until_the_drain() {
    let gateway = Gateway::with(&[("drain.lead_ms", "20000")]);
    let balancer = Balancer::haproxy(&gateway);
    let (al, bo) = chat(&gateway, &balancer);
    gateway.terminate();
    eventually("no newcomer is sent to a node that drains", || (balancer.request("/ws").0 == 503).then_some(()));
    let sent = al.client.send("d:al:bo", b"still here").expect("the connection lives through the lead of a drain");
    assert_eq!(next_message(&bo.events), (sent.seq, "still here".to_owned()));
}

/// Behind the real balancers the gateway sees the client: by X-Forwarded-For of nginx and of HAProxy its address, by the PROXY protocol of
/// HAProxy in both versions its port too. What the client writes into these headers changes nothing.
#[test]
fn the_client_is_seen_through_both_balancers() {
    let from = "127.0.0.8";
    let (networks, proxy) = (("proxy.networks", from), ("proxy.protocol", "true"));
    let nginx =
        |text: String| text.replace("proxy_pass http://gateways;", &format!("proxy_pass http://gateways; proxy_bind {from};"));
    let haproxy = |more: &'static str| {
        move |text: String| {
            let checks = "check inter 1s fall 2";
            assert!(text.contains(checks));
            // A check that has to wait for the cores does not keep newcomers out.
            let text = text.replace(checks, "check inter 10s fall 2");
            text.replace("port 8081\n", &format!("port 8081 source {from} {more}\n"))
        }
    };
    let gateway = Gateway::with(&[networks]);
    for balancer in [Balancer::nginx_with(&gateway, nginx), Balancer::haproxy_with(&gateway, haproxy(""))] {
        let (own, seen) = seen_through(&gateway, balancer.address);
        assert_eq!(seen, own.ip().to_string());
    }
    for more in ["send-proxy", "send-proxy-v2"] {
        let gateway = Gateway::with(&[networks, proxy]);
        let balancer = Balancer::haproxy_with(&gateway, haproxy(more));
        let (own, seen) = seen_through(&gateway, balancer.address);
        assert_eq!(seen, own.to_string(), "{more}");
        assert!(gateway.counted("tidegate_proxy_headers_total") > 0.0, "{more}");
    }
}

/// The same by `Forwarded` as nginx writes it, in place of what the client wrote and behind it: IPv4 as it is, IPv6 in brackets and quoted.
#[test]
fn the_client_is_seen_by_forwarded() {
    let from = "127.0.0.8";
    let gateway = Gateway::with(&[("proxy.networks", from), ("proxy.header", "forwarded")]);
    let second = free_address_v6();
    for value in ["$element", "$appended"] {
        let balancer = Balancer::nginx_with(&gateway, |text| {
            let text = text.replace("proxy_pass http://gateways;", &format!("proxy_pass http://gateways; proxy_bind {from};"));
            let usual = "proxy_set_header X-Forwarded-For $remote_addr;";
            assert!(text.contains(usual));
            let text = text.replace(usual, &format!("proxy_set_header Forwarded {value};"));
            let text = text.replace("listen 127.0.0.1:8443;", &format!("listen 127.0.0.1:8443; listen {second};"));
            text.replace("http {", FORWARDED)
        });
        let (own, seen) = seen_through(&gateway, balancer.address);
        assert_eq!(seen, own.ip().to_string(), "{value}");
        let (own, seen) = seen_through(&gateway, second);
        assert_eq!(seen, own.ip().to_string(), "{value}");
    }
}

/// The element for one client, and a list with what it wrote itself, if that is a list at all: as nginx documents it.
const FORWARDED: &str = r#"http {
    map $remote_addr $element {
        ~^[0-9.]+$        "for=$remote_addr";
        ~^[0-9A-Fa-f:.]+$ "for=\"[$remote_addr]\"";
        default           "for=unknown";
    }
    map $http_forwarded $appended {
        "~^[!#$%&'*+.^_`|~0-9A-Za-z=;:,\"\[\] -]+$" "$http_forwarded, $element";
        default "$element";
    }"#;

/// Opens a session through a balancer: this end's address, and what the operator reads.
fn seen_through(gateway: &Gateway, balancer: SocketAddr) -> (SocketAddr, String) {
    let stream = TcpStream::connect(balancer).expect("the balancer listens");
    let own = stream.local_addr().expect("a socket");
    let lies = [("X-Forwarded-For", "6.6.6.6"), ("Forwarded", "for=6.6.6.6")];
    let mut raw = Raw::open_on(stream, Encoding::Binary, &lies);
    raw.hello(&gateway.token("al"), "1");
    raw.welcome();
    let (code, answer) = gateway.admin("GET", "/v1/connections?user=al", "");
    assert_eq!(code, 200, "{answer}");
    let page: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    (own, page["connections"][0]["address"].as_str().expect("an address").to_owned())
}

/// The unit gives the service nothing it does not need: exposure at most 1.5 of 10 by systemd's own measure.
#[test]
fn the_unit_is_hardened() {
    let unit = example("tidegate.service");
    let output = need("systemd-analyze", "systemd", |command| {
        command.args(["security", "--offline=true", "--threshold=15", "--no-pager"]).arg(&unit).output()
    });
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("Overall exposure level for tidegate.service"), "{text}");
}

/// What the alerts ask for exists: every metric they name stands in the table of metrics.
#[test]
fn alerts_name_metrics_that_exist() {
    let table = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).expect("in the repository");
    let rules = fs::read_to_string(example("alerts.yml")).expect("in the repository");
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names = rules.split(|c| !is_name(c)).filter(|word| word.starts_with("tidegate_"));
    let mut count = 0;
    for name in names {
        count += 1;
        assert!(table.contains(&format!("`{}`", name.trim_end_matches("_bucket"))), "{name}");
    }
    assert!(count > 10, "the rules were read");
}

struct Person {
    client: tidegate_client::Client,
    events: Events,
}

/// `al` and `bo` say something to each other through the balancer.
fn chat(gateway: &Gateway, balancer: &Balancer) -> (Person, Person) {
    let url = format!("ws://{}/ws", balancer.address);
    let [al, bo] = ["al", "bo"].map(|user| {
        let (client, events) = gateway.client_through(&url, gateway.options(user, "1"));
        Person { client, events }
    });
    for (from, to, text) in [(&al, &bo, "hello"), (&bo, &al, "and to you")] {
        let sent = from.client.send("d:al:bo", text.as_bytes()).expect("acknowledged");
        assert_eq!(sent.level, 2);
        assert_eq!(next_message(&to.events), (sent.seq, text.to_owned()));
    }
    (al, bo)
}

/// The next message of somebody else.
fn next_message(events: &Events) -> (u64, String) {
    loop {
        match events.recv_timeout(PATIENCE).expect("a message comes") {
            Event::Message(message) if !message.own => {
                return (message.seq, String::from_utf8_lossy(&message.payload).into_owned());
            }
            _ => {}
        }
    }
}

/// A balancer with its example configuration. Ends with the value.
struct Balancer {
    child: Child,
    address: SocketAddr,
}

impl Balancer {
    fn nginx(gateway: &Gateway) -> Self {
        Self::nginx_with(gateway, |text| text)
    }

    /// The same with a change of its configuration.
    fn nginx_with(gateway: &Gateway, change: impl Fn(String) -> String) -> Self {
        let address = free_address();
        let config = configure(gateway, "nginx.conf", "127.0.0.1:8443", address, change);
        Self::start(address, "nginx", "nginx-light", |command| {
            command.arg("-p").arg(gateway.dir()).arg("-c").arg(&config).args(["-g", "daemon off;"])
        })
    }

    fn haproxy(gateway: &Gateway) -> Self {
        Self::haproxy_with(gateway, |text| text)
    }

    /// The same with a change of its configuration.
    fn haproxy_with(gateway: &Gateway, change: impl Fn(String) -> String) -> Self {
        let address = free_address();
        let config = configure(gateway, "haproxy.cfg", "127.0.0.1:8444", address, change);
        Self::start(address, "haproxy", "haproxy", |command| command.arg("-db").arg("-f").arg(&config))
    }

    fn start(address: SocketAddr, program: &str, package: &str, arguments: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let child = need(program, package, |command| {
            arguments(command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        });
        let mut balancer = Self { child, address };
        eventually("the balancer serves", || {
            if let Ok(Some(status)) = balancer.child.try_wait() {
                panic!("{program} ended at its start: {status}");
            }
            // 426: the gateway behind it says that this is no upgrade.
            (TcpStream::connect(address).is_ok() && balancer.request("/ws").0 == 426).then_some(())
        });
        balancer
    }

    /// Status and body of a plain GET.
    fn request(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).expect("the balancer listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("the balancer reads");
        let mut answer = String::new();
        drop(stream.read_to_string(&mut answer));
        let status = answer.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        (status, answer)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // TERM, so that workers end too.
        drop(Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status());
        drop(self.child.wait());
    }
}

/// Runs a program that a distribution ships, or says how to get it.
fn need<T>(program: &str, package: &str, run: impl FnOnce(&mut Command) -> std::io::Result<T>) -> T {
    run(&mut Command::new(program))
        .unwrap_or_else(|error| panic!("{program}: {error}; tests/run installs it (Debian: apt-get install {package})"))
}

/// Copies an example with the ports of this test.
fn configure(gateway: &Gateway, name: &str, listen: &str, address: SocketAddr, change: impl Fn(String) -> String) -> PathBuf {
    let text = change(fs::read_to_string(example(name)).expect("in the repository"));
    for expected in [listen, "127.0.0.1:8080"] {
        assert!(text.contains(expected), "{name} names {expected}");
    }
    let text = text.replace(listen, &address.to_string()).replace("127.0.0.1:8080", &gateway.listen.to_string());
    let text = text.replace("port 8081", &format!("port {}", gateway.admin_address().port()));
    let path = gateway.dir().join(name);
    fs::write(&path, text).expect("a directory of the test");
    path
}

/// A port of IPv6's loopback.
fn free_address_v6() -> SocketAddr {
    let listener = TcpListener::bind("[::1]:0").expect("IPv6 on loopback");
    listener.local_addr().expect("a socket")
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}
