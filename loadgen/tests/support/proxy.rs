//! A proxy between clients and gateway that harms DELIVER frames on their way down: what TCP and a right gateway never do.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use tidegate::wire::frame::{self, Opcode, SERVER_HEADER_BYTES_MAX, Sender};

/// What it does to every hundredth DELIVER of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Harm {
    Nothing,
    Lose,
    Duplicate,
    /// It comes after the next one.
    Reorder,
}

/// Starts a proxy to `port`; returns its own port. It ends with the test.
pub fn start(port: u16, harm: Harm) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let own = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
            let (up, down) = (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
            std::thread::spawn(move || pass(up, server));
            std::thread::spawn(move || harm_frames(down, client, harm));
        }
    });
    own
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    drop(std::io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Write));
}

fn harm_frames(mut from: TcpStream, mut to: TcpStream, harm: Harm) {
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 * 1024];
    let mut is_upgraded = false;
    let mut harmed = Harmed { harm, count: 0, kept: None };
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        bytes.extend_from_slice(&chunk[..count]);
        let mut out = Vec::new();
        if !is_upgraded && let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            out.extend(bytes.drain(..end + 4));
            is_upgraded = true;
        }
        while is_upgraded && let Ok(Some(header)) = frame::decode(&bytes, Sender::Server) {
            let end = header.header_bytes + usize::try_from(header.payload_bytes).expect("in memory");
            if bytes.len() < end {
                break;
            }
            let whole: Vec<u8> = bytes.drain(..end).collect();
            if header.opcode == Opcode::Binary {
                let payload = harmed.message(&whole[header.header_bytes..]);
                if !payload.is_empty() {
                    let mut head = [0; SERVER_HEADER_BYTES_MAX];
                    let len = frame::encode_server(&mut head, Opcode::Binary, payload.len());
                    out.extend_from_slice(&head[..len]);
                    out.extend_from_slice(&payload);
                }
            } else {
                out.extend_from_slice(&whole);
            }
        }
        if to.write_all(&out).is_err() {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Both));
}

struct Harmed {
    harm: Harm,
    count: u32,
    kept: Option<Vec<u8>>,
}

impl Harmed {
    fn message(&mut self, mut payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(head) = payload.first_chunk::<4>() {
            let length = usize::try_from(u32::from_le_bytes(*head) >> 8).expect("in memory");
            let (one, rest) = payload.split_at(4 + length);
            payload = rest;
            if one[0] != DELIVER {
                out.extend_from_slice(one);
                continue;
            }
            self.count += 1;
            match self.harm {
                Harm::Lose if self.count.is_multiple_of(EVERY) => {}
                Harm::Duplicate if self.count.is_multiple_of(EVERY) => out.extend(one.iter().chain(one)),
                Harm::Reorder if self.count.is_multiple_of(EVERY) => self.kept = Some(one.to_vec()),
                _ => {
                    out.extend_from_slice(one);
                    out.extend(self.kept.take().unwrap_or_default());
                }
            }
        }
        out
    }
}

const DELIVER: u8 = 0x60;
const EVERY: u32 = 20;
