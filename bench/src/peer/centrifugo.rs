//! Centrifugo, by its own binary protocol: commands and replies are protobuf messages, each behind its length.
//!
//! ```text
//!  C: {id 1, connect 4 {}} {id 2, subscribe 5 {channel 1 "room"}}     S: {id 1, connect 5} {id 2, subscribe 6}
//!  C: {id 3, publish 7 {channel 1 "room", data 2 <payload>}}          S: {push 4 {channel 2, pub 4}}      an empty one is a ping
//! ```

use super::{Heard, Peer};
use crate::client::{Outbox, Ready};

/// See the module text.
pub struct Centrifugo;

/// Anybody may come, subscribe and publish; it keeps no history and writes to no disk.
pub fn configuration(port: u16) -> (&'static str, String, &'static [&'static str]) {
    let text = format!(
        r#"{{"http_server": {{"address": "127.0.0.1", "port": "{port}"}}, "log": {{"level": "error"}},
 "client": {{"allow_anonymous_connect_without_token": true, "ping_interval": "3600s", "queue_max_size": 67108864,
  "allowed_origins": ["*"]}},
 "websocket": {{"compression": false}},
 "channel": {{"without_namespace": {{"allow_subscribe_for_client": true, "allow_subscribe_for_anonymous": true,
  "allow_publish_for_client": true, "allow_publish_for_anonymous": true}}}}}}
"#
    );
    ("centrifugo.json", text, &["--config"])
}

impl Peer for Centrifugo {
    fn path(&self) -> &'static str {
        "/connection/websocket"
    }

    fn subprotocol(&self) -> Option<&'static str> {
        Some("centrifuge-protobuf")
    }

    fn hears_itself(&self) -> bool {
        false
    }

    fn enter(&mut self, index: usize, out: &mut Outbox<'_>) -> Ready {
        out.message(|bytes| {
            command(1, 4, &[], bytes);
            if index > 0 {
                command(2, 5, &field(1, ROOM), bytes);
            }
        });
        Ready::NotYet
    }

    fn hear(&mut self, index: usize, message: &[u8], out: &mut Outbox<'_>) -> Result<Heard, String> {
        let mut heard = Heard::default();
        let mut rest = message;
        while !rest.is_empty() {
            let reply = take(&mut rest).ok_or("a reply that is cut short")?;
            if reply.is_empty() {
                out.message(|bytes| bytes.push(0));
            }
            for (number, value) in Fields(reply) {
                match number {
                    2 => return Err(format!("connection {index}: {}", String::from_utf8_lossy(value))),
                    4 => heard.deliveries += u64::from(Fields(value).any(|(number, _)| number == 4)),
                    5 if index == 0 => heard.has_entered = true,
                    6 => heard.has_entered = true,
                    _ => {}
                }
            }
        }
        Ok(heard)
    }

    fn publish(&mut self, count: usize, payload: &[u8], out: &mut Outbox<'_>) {
        let publication = [field(1, ROOM), field(2, payload)].concat();
        out.message(|bytes| (0..count).for_each(|_| command(3, 7, &publication, bytes)));
    }
}

/// A command with its length: its id, and what it asks for as a field.
fn command(id: u8, request: u8, body: &[u8], out: &mut Vec<u8>) {
    let command = [&[1 << 3, id][..], &field(request, body)].concat();
    write_length(command.len(), out);
    out.extend_from_slice(&command);
}

/// A field of bytes: number and wire type 2, length, bytes.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    write_length(value.len(), &mut out);
    out.extend_from_slice(value);
    out
}

fn write_length(mut length: usize, out: &mut Vec<u8>) {
    while length >= 0x80 {
        out.push(length.to_le_bytes()[0] | 0x80);
        length >>= 7;
    }
    out.push(length.to_le_bytes()[0]);
}

fn read_length(rest: &mut &[u8]) -> Option<usize> {
    let mut length = 0;
    for shift in (0..35).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        length |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(length);
        }
    }
    None
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = read_length(rest)?;
    let (value, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(value)
}

/// Fields of a message: number, and bytes; empty for a field that is a number.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let tag = read_length(&mut self.0)?;
        let value = match tag & 7 {
            0 => read_length(&mut self.0).map(|_| &[][..]),
            2 => take(&mut self.0),
            _ => None,
        };
        Some((tag >> 3, value?))
    }
}

const ROOM: &[u8] = b"room";

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written is read again, lengths of two bytes too, and a cut is seen.
    #[test]
    fn fields_are_read_as_written() {
        let mut out = Vec::new();
        command(3, 7, &field(2, &[9; 300]), &mut out);
        let mut rest = &out[..];
        let one = take(&mut rest).unwrap();
        let fields: Vec<(usize, usize)> = Fields(one).map(|(number, value)| (number, value.len())).collect();
        assert_eq!((rest.len(), fields), (0, vec![(1, 0), (7, 303)]));
        assert_eq!(take(&mut &out[..20]), None);
    }
}
