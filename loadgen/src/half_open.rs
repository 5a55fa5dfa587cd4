//! Connections that begin and never come to an end: what a gateway must close by itself.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use serde::Serialize;

/// What became of the connections of one kind.
#[derive(Clone, PartialEq, Default, Debug, Serialize)]
pub struct HalfOpen {
    /// How far they come.
    pub kind: &'static str,
    /// Opened.
    pub opened: usize,
    /// Closed by the gateway in time.
    pub closed: usize,
    /// How long the last of these lived, seconds.
    pub longest_s: f64,
}

/// One connection.
#[derive(Debug)]
struct Standing {
    kind: usize,
    stream: TcpStream,
    since: Instant,
}

/// Opens `each` connections of every kind and waits until the gateway has closed them, at most `patience`.
///
/// # Errors
/// One cannot be opened.
pub fn stand(address: SocketAddrV4, request: &[u8], each: usize, patience: Duration) -> io::Result<Vec<HalfOpen>> {
    let sent: [(&'static str, &[u8]); 3] =
        [("nothing", b""), ("half a request", &request[..request.len() / 2]), ("no HELLO", request)];
    let mut found: Vec<HalfOpen> = sent.iter().map(|&(kind, _)| HalfOpen { kind, opened: each, ..HalfOpen::default() }).collect();
    let mut standing = Vec::with_capacity(each * sent.len());
    for _ in 0..each {
        for (kind, (_, bytes)) in sent.iter().enumerate() {
            let mut stream = TcpStream::connect(address)?;
            // Who was closed already is counted below.
            drop(stream.write_all(bytes));
            stream.set_nonblocking(true)?;
            standing.push(Standing { kind, stream, since: Instant::now() });
        }
    }
    let begun = Instant::now();
    while !standing.is_empty() && begun.elapsed() < patience {
        std::thread::sleep(LOOK_EVERY);
        standing.retain_mut(|it| {
            if !has_ended(&mut it.stream) {
                return true;
            }
            let kind = &mut found[it.kind];
            kind.closed += 1;
            kind.longest_s = kind.longest_s.max(it.since.elapsed().as_secs_f64());
            false
        });
    }
    Ok(found)
}

/// Reads what there is. What the gateway says is of no interest, only its end.
fn has_ended(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 1024];
    for _ in 0..READS_MAX {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }
    false
}

const LOOK_EVERY: Duration = Duration::from_millis(20);
const READS_MAX: usize = 16;
