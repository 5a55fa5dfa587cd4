//! The blocking client over real sockets, against the model of a gateway behind a listener that drops connections.

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tidegate::wire::envelope::{ClientFrame, Encoding, Frames};
use tungstenite::handshake::server::{Request, Response};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, accept_hdr};

use super::gateway::Gateway;
use crate::{Client, Event, Events, Options, Outgoing, SendError, State, Stop};

const PATIENCE: Duration = Duration::from_secs(30);

/// A listener in front of a model with users al and bo, one device each.
struct Server {
    url: String,
    model: Arc<Mutex<Gateway>>,
    /// Connections opened so far; those up to `cut` are dropped after a few messages.
    cut: Arc<AtomicU32>,
    /// What HELLO is answered with instead of WELCOME, if not 0.
    refuse: Arc<AtomicU32>,
    is_ending: Arc<AtomicBool>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = Self {
            url: format!("ws://{}/ws", listener.local_addr().expect("an address")),
            model: Arc::new(Mutex::new(Gateway::new(
                &["al", "bo"],
                &[Encoding::Binary, Encoding::Json],
                &[("d:al:bo", &[0, 1])],
            ))),
            cut: Arc::default(),
            refuse: Arc::default(),
            is_ending: Arc::default(),
        };
        let (model, cut, refuse) = (Arc::clone(&server.model), Arc::clone(&server.cut), Arc::clone(&server.refuse));
        let is_ending = Arc::clone(&server.is_ending);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if is_ending.load(Ordering::Relaxed) {
                    return;
                }
                let (model, refuse) = (Arc::clone(&model), refuse.swap(0, Ordering::Relaxed));
                let left = cut.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
                std::thread::spawn(move || connection(stream, &model, left.is_ok(), refuse));
            }
        });
        server
    }

    fn client(&self, user: &'static str, encoding: Encoding) -> (Client, Events) {
        let mut options = Options::new(user, move |fresh| Some(format!("{user} {fresh}")));
        options.settings.encoding = encoding;
        options.settings.reconnect_base = Duration::from_millis(5);
        options.settings.reconnect_cap = Duration::from_millis(20);
        Client::connect(&self.url, options).expect("a good URL")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_ending.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(&self.url[5..self.url.len() - 3]));
    }
}

fn connection(stream: TcpStream, model: &Mutex<Gateway>, is_cut: bool, refuse: u32) {
    stream.set_nodelay(true).expect("a socket");
    let mut encoding = Encoding::Binary;
    #[expect(clippy::result_large_err, reason = "the library's own type")]
    let choose = |request: &Request, mut response: Response| {
        let protocol = request.headers()["sec-websocket-protocol"].clone();
        encoding = if protocol == "tidegate.v1" { Encoding::Binary } else { Encoding::Json };
        response.headers_mut().insert("sec-websocket-protocol", protocol);
        Ok(response)
    };
    let Ok(mut socket) = accept_hdr(stream, choose) else { return };
    // Short, because the same loop writes what the model has for this device.
    socket.get_ref().set_read_timeout(Some(Duration::from_millis(1))).expect("a socket");
    let mut device = None;
    let mut left = if is_cut { 6 } else { u32::MAX };
    while left > 0 {
        let bytes: Option<Vec<u8>> = match socket.read() {
            Ok(Message::Binary(bytes)) => Some(bytes.into()),
            Ok(Message::Text(text)) => Some(text.as_bytes().to_vec()),
            Ok(Message::Close(_)) => break,
            Ok(_) => None,
            Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            Err(_) => break,
        };
        let mut model = model.lock().expect("no panic elsewhere");
        if let Some(bytes) = bytes {
            left -= 1;
            if let Ok(Some(ClientFrame::Hello(hello))) = Frames::new(encoding, &bytes).next_frame() {
                if refuse != 0 {
                    drop(model);
                    let code = u16::try_from(refuse).expect("a close code").into();
                    drop(socket.close(Some(CloseFrame { code, reason: "".into() })));
                    drop(socket.flush());
                    std::thread::sleep(Duration::from_millis(50));
                    return;
                }
                device = Some(usize::from(hello.device == "bo"));
            }
            model.serve(device.expect("HELLO comes first"), &bytes);
        }
        let Some(device) = device else { continue };
        while let Some(bytes) = model.devices[device].out.pop_front() {
            let message = match encoding {
                Encoding::Binary => Message::binary(bytes),
                Encoding::Json => Message::text(String::from_utf8(bytes).expect("JSON")),
            };
            if socket.send(message).is_err() {
                left = 0;
                break;
            }
        }
    }
    if let Some(device) = device {
        model.lock().expect("no panic elsewhere").disconnect(device);
    }
}

/// The payloads of messages, until there are `count`.
fn messages(events: &Events, count: usize) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut payloads = Vec::new();
    while payloads.len() < count {
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Message(message)) => payloads.push(String::from_utf8_lossy(&message.payload).into_owned()),
            Ok(Event::Break { .. }) => panic!("a break"),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => panic!("only {payloads:?}"),
        }
    }
    payloads
}

/// Waits for the state that ends a client.
fn stopped(events: &Events) -> Stop {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::State(State::Stopped(stop))) => return stop,
            Ok(_) => {}
            Err(error) => panic!("not stopped: {error}"),
        }
    }
}

/// Two clients, one per encoding, talk while their connections are dropped again and again: every message arrives once and in order.
#[test]
fn messages_survive_dropped_connections() {
    let server = Server::start();
    server.cut.store(12, Ordering::Relaxed);
    let (al, al_events) = server.client("al", Encoding::Binary);
    let (bo, bo_events) = server.client("bo", Encoding::Json);
    let from_al: Vec<String> = (0..40).map(|number| format!("al {number}")).collect();
    let pending: Vec<_> = from_al.iter().map(|text| al.submit(Outgoing::new("d:al:bo", text.as_bytes()))).collect();
    for number in 0..10 {
        bo.send("d:al:bo", format!("bo {number}").as_bytes()).expect("acknowledged in the end");
    }
    for one in pending {
        one.wait().expect("acknowledged in the end");
    }
    let (al_saw, bo_saw) = (messages(&al_events, 50), messages(&bo_events, 50));
    assert_eq!(al_saw, bo_saw);
    assert!(al_saw.iter().filter(|text| text.starts_with("al")).eq(&from_al));
    assert!(server.cut.load(Ordering::Relaxed) == 0, "every planned cut happened");
    assert_eq!(al.snapshot().positions.iter().map(|position| position.have).collect::<Vec<_>>(), [50]);
}

/// A client that was replaced ends: its senders hear of it, and so does who comes later.
#[test]
fn a_replaced_client_ends() {
    let server = Server::start();
    server.refuse.store(4409, Ordering::Relaxed);
    let (al, events) = server.client("al", Encoding::Binary);
    assert_eq!(stopped(&events), Stop::Replaced);
    assert_eq!(al.send("d:al:bo", b"late"), Err(SendError::Stopped));
}

/// 4401 brings another token, asked for as fresh, and the client goes on.
#[test]
fn a_refused_token_is_replaced() {
    let server = Server::start();
    server.refuse.store(4401, Ordering::Relaxed);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    let options = Options::new("al", move |fresh| {
        noted.lock().expect("no panic elsewhere").push(fresh);
        Some("token".to_owned())
    });
    let (al, _events) = Client::connect(&server.url, options).expect("a good URL");
    al.send("d:al:bo", b"hi").expect("acknowledged in the end");
    assert_eq!(*asked.lock().expect("no panic elsewhere"), [false, true]);
}

/// Closing ends the client and what it still had to send, also while there is no gateway.
#[test]
fn closing_ends_what_waits() {
    let options = Options::new("al", |_| Some("token".to_owned()));
    let (al, events) = Client::connect("ws://127.0.0.1:1/ws", options).expect("a good URL");
    let pending = al.submit(Outgoing::new("d:al:bo", b"never"));
    al.close();
    assert_eq!(pending.wait(), Err(SendError::Stopped));
    assert_eq!(stopped(&events), Stop::Closed);
}

/// Dropping the last handle closes the connection.
#[test]
fn dropping_the_client_ends_it() {
    let server = Server::start();
    let (al, events) = server.client("al", Encoding::Binary);
    al.send("d:al:bo", b"hi").expect("acknowledged in the end");
    drop(al);
    assert_eq!(stopped(&events), Stop::Closed);
}

/// What is not a WebSocket URL is refused at once.
#[test]
fn a_bad_url_is_refused() {
    for url in ["", "http://127.0.0.1/ws", "wss://127.0.0.1/ws", "ws:///x", "127.0.0.1:80"] {
        assert!(Client::connect(url, Options::new("al", |_| None)).is_err(), "{url}");
    }
}

/// What an outbox on disk holds when a client ends is sent by the next one, before anything new and once in effect; what was
/// acknowledged is not sent again.
#[test]
fn an_outbox_on_disk_survives_the_client() {
    let folder = std::env::temp_dir().join(format!("tidegate-outbox-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let server = Server::start();
    let options = |url_device: &str| {
        let mut options = Options::new(url_device, |_| Some("token".to_owned()));
        options.outbox = Some(folder.join("outbox"));
        options
    };
    let (offline, _events) = Client::connect("ws://127.0.0.1:1/ws", options("al")).expect("a good URL");
    let waiting: Vec<_> = ["one", "two"].map(|text| offline.submit(Outgoing::new("d:al:bo", text.as_bytes()))).into();
    offline.close();
    for one in waiting {
        assert_eq!(one.wait(), Err(SendError::Stopped));
    }
    let (online, _events) = Client::connect(&server.url, options("al")).expect("a good URL");
    assert_eq!(online.send("d:al:bo", b"three").expect("acknowledged").seq, 3);
    let seqs: Vec<_> = online.restored().into_iter().map(|one| one.wait().expect("acknowledged").seq).collect();
    assert_eq!(seqs, [1, 2]);
    online.close();
    drop((online, offline));
    let (again, _events) = Client::connect(&server.url, options("al")).expect("a good URL");
    assert_eq!(again.restored().len(), 0);
    drop(again);
    std::fs::remove_dir_all(&folder).expect("a folder");
}

/// Async code needs no runtime of ours: futures of the client resolve under any executor.
#[test]
fn futures_run_anywhere() {
    let server = Server::start();
    let (al, mut events) = server.client("al", Encoding::Binary);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let (one, two) = (al.try_submit(Outgoing::new("d:al:bo", b"1")), al.try_submit(Outgoing::new("d:al:bo", b"2")));
        assert_eq!((one.await.expect("acknowledged").seq, two.await.expect("acknowledged").seq), (1, 2));
        al.close();
        let mut seen = 0;
        while let Some(event) = events.next().await {
            seen += u32::from(matches!(event, Event::Message(_)));
        }
        assert_eq!(seen, 2);
    });
}
