//! NATS without JetStream, over WebSocket: its text protocol, cut into frames wherever it pleases.
//!
//! ```text
//!  S: INFO {...}     C: CONNECT {...} SUB room 1 PING     S: PONG
//!  C: PUB room 200 <payload>                              S: MSG room 1 200 <payload>
//! ```

use std::collections::HashMap;

use super::{Heard, Peer};
use crate::client::{Outbox, Ready};

/// See the module text.
#[derive(Default)]
pub struct Nats {
    /// What has come of a line, or of a payload, that is not whole.
    carries: HashMap<usize, Vec<u8>>,
}

/// WebSocket on this port; its own protocol on whichever is free.
pub fn configuration(port: u16) -> (&'static str, String, &'static [&'static str]) {
    let text = format!(
        "host: 127.0.0.1\nport: -1\nmax_connections: 100000\nping_interval: \"1h\"\n\
         websocket {{\n  host: 127.0.0.1\n  port: {port}\n  no_tls: true\n  compression: false\n}}\n"
    );
    ("nats.conf", text, &["-c"])
}

impl Peer for Nats {
    fn path(&self) -> &'static str {
        "/"
    }

    fn subprotocol(&self) -> Option<&'static str> {
        None
    }

    fn hears_itself(&self) -> bool {
        false
    }

    fn enter(&mut self, index: usize, out: &mut Outbox<'_>) -> Ready {
        let subscription = if index > 0 { "SUB room 1\r\n" } else { "" };
        let hello = format!("CONNECT {{\"verbose\":false,\"headers\":false}}\r\n{subscription}PING\r\n");
        out.message(|bytes| bytes.extend_from_slice(hello.as_bytes()));
        Ready::NotYet
    }

    fn hear(&mut self, index: usize, message: &[u8], out: &mut Outbox<'_>) -> Result<Heard, String> {
        let mut bytes = self.carries.remove(&index).unwrap_or_default();
        bytes.extend_from_slice(message);
        let (used, heard) = read(&bytes, out)?;
        if used < bytes.len() {
            self.carries.insert(index, bytes.split_off(used));
        }
        Ok(heard)
    }

    fn publish(&mut self, count: usize, payload: &[u8], out: &mut Outbox<'_>) {
        let one = [format!("PUB room {}\r\n", payload.len()).as_bytes(), payload, b"\r\n"].concat();
        out.message(|bytes| (0..count).for_each(|_| bytes.extend_from_slice(&one)));
    }
}

/// Bytes used of `bytes`, and what they held; a PING is answered.
fn read(bytes: &[u8], out: &mut Outbox<'_>) -> Result<(usize, Heard), String> {
    let (mut used, mut heard) = (0, Heard::default());
    while let Some(end) = bytes[used..].windows(2).position(|two| two == b"\r\n") {
        let line = &bytes[used..used + end];
        let mut after = used + end + 2;
        if line.starts_with(b"MSG ") {
            let length =
                line.rsplit(|&byte| byte == b' ').next().and_then(|word| std::str::from_utf8(word).ok()?.parse::<usize>().ok());
            after += length.ok_or("a strange MSG")? + 2;
            if bytes.len() < after {
                break;
            }
            heard.deliveries += 1;
        } else if line == b"PING" {
            out.message(|bytes| bytes.extend_from_slice(b"PONG\r\n"));
        } else if line == b"PONG" {
            heard.has_entered = true;
        } else if !line.starts_with(b"INFO ") {
            return Err(String::from_utf8_lossy(line).into_owned());
        }
        used = after;
    }
    Ok((used, heard))
}
