//! A service of the operator: an HTTP listener whose answers the test decides.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::support::secure::Authority;

/// Status and body for the body of a question; `None`: the question is left without an answer.
type Answer = dyn Fn(&str) -> Option<(u16, String)> + Send + Sync;

/// Ends with the test's process.
pub struct Service {
    pub address: SocketAddr,
    heard: Arc<Heard>,
}

#[derive(Default)]
struct Heard {
    asked: AtomicU32,
    connections: AtomicU32,
    lines: Mutex<BTreeSet<String>>,
}

impl Service {
    pub fn start(answer: impl Fn(&str) -> Option<(u16, String)> + Send + Sync + 'static) -> Self {
        Self::with(Arc::new(answer), None)
    }

    /// Over https, with the certificate in `file` of this authority.
    pub fn secure(
        authority: &Authority,
        file: &str,
        answer: impl Fn(&str) -> Option<(u16, String)> + Send + Sync + 'static,
    ) -> Self {
        Self::with(Arc::new(answer), Some(authority.server(file)))
    }

    fn with(answer: Arc<Answer>, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("a port");
        let heard = Arc::new(Heard::default());
        let hears = heard.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                hears.connections.fetch_add(1, Ordering::Relaxed);
                let (heard, answer, tls) = (hears.clone(), answer.clone(), tls.clone());
                thread::spawn(move || match tls {
                    None => serve(stream, &heard, &*answer),
                    Some(tls) => {
                        let session = ServerConnection::new(tls).expect("a good configuration");
                        serve(StreamOwned::new(session, stream), &heard, &*answer);
                    }
                });
            }
        });
        Self { address, heard }
    }

    /// Its address with this path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Questions so far.
    pub fn asked(&self) -> u32 {
        self.heard.asked.load(Ordering::Relaxed)
    }

    /// Connections so far.
    pub fn connections(&self) -> u32 {
        self.heard.connections.load(Ordering::Relaxed)
    }

    /// The first lines of all questions so far, such as `GET /path HTTP/1.1`.
    pub fn lines(&self) -> BTreeSet<String> {
        self.heard.lines.lock().expect("no panic elsewhere").clone()
    }
}

/// Questions on one connection, one after the other.
fn serve(stream: impl Read + Write, heard: &Heard, answer: &Answer) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut length, mut first) = (0, None);
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(count) if count > 0 => {}
                _ => return,
            }
            first.get_or_insert_with(|| line.trim_end().to_owned());
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().expect("a number");
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        heard.lines.lock().expect("no panic elsewhere").extend(first);
        heard.asked.fetch_add(1, Ordering::Relaxed);
        let Some((status, text)) = answer(&String::from_utf8_lossy(&body)) else {
            // Held open, so that it is the one who asks who gives up.
            drop(reader.read_line(&mut String::new()));
            return;
        };
        let head = format!("HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", text.len());
        if reader.get_mut().write_all(format!("{head}{text}").as_bytes()).is_err() {
            return;
        }
    }
}
