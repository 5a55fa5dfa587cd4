//! A service of the operator: an HTTP listener whose answers the test decides.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::support::secure::Authority;

/// Status and body for the body of a question; `None`: the question is left without an answer.
type Answer = dyn Fn(&str) -> Option<(u16, String)> + Send + Sync;

/// Ends with the test's process.
pub struct Service {
    pub address: SocketAddr,
    asked: Arc<AtomicU32>,
    connections: Arc<AtomicU32>,
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
        let (asked, connections) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let counts = (asked.clone(), connections.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counts.1.fetch_add(1, Ordering::Relaxed);
                let (asked, answer, tls) = (counts.0.clone(), answer.clone(), tls.clone());
                thread::spawn(move || match tls {
                    None => serve(stream, &asked, &*answer),
                    Some(tls) => {
                        let session = ServerConnection::new(tls).expect("a good configuration");
                        serve(StreamOwned::new(session, stream), &asked, &*answer);
                    }
                });
            }
        });
        Self { address, asked, connections }
    }

    /// Its address with this path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Questions so far.
    pub fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Connections so far.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Questions on one connection, one after the other.
fn serve(stream: impl Read + Write, asked: &AtomicU32, answer: &Answer) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(count) if count > 0 => {}
                _ => return,
            }
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
        asked.fetch_add(1, Ordering::Relaxed);
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
