//! Bytes that leave: all of them, in order, however the peer takes them.

use std::io::{Read, Write};

use tidegate::io::driver::{Close, Driver};

use crate::server::{Make, Random, Server};

/// A peer that does not read blocks the sender, is told `writable` once per `Blocked`, and gets every byte in order.
pub fn blocked_and_partial_sends<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let (mut client, id) = server.connect();
    let said = Random(7).bytes(12_000_000);
    server.queue(id, &said);
    server.settle();
    assert!(nth!(server, 0).waiting, "twelve megabytes do not fit the kernel");
    let reading = std::thread::spawn(move || {
        let mut heard = vec![0; 12_000_000];
        client.read_exact(&mut heard).map(|()| (heard, client))
    });
    server.until("all sent", |core| core.connections[0].out_offset == 12_000_000);
    let (heard, mut client) = reading.join().unwrap().unwrap();
    assert!(heard == said);
    // The event of these bytes says writable too, and nobody waits for that any more.
    client.write_all(b"thanks").unwrap();
    server.until("bytes", |core| core.connections[0].received == b"thanks");
    assert_eq!(nth!(server, 0).writables, nth!(server, 0).blocks);
}

/// A connection closed while the kernel is full of its bytes: one answer for each waiting send, then `closed`, and the slot serves the
/// next one.
pub fn close_while_sending<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    for round in 0..4_usize {
        let (mut client, id) = server.connect();
        server.queue(id, &Random(9).bytes(12_000_000));
        server.settle();
        assert!(nth!(server, round).waiting);
        server.close(id, if round % 2 == 0 { Close::Abort } else { Close::Graceful });
        server.until("closed", |core| core.connections[round].closed);
        // Whatever was sent is a beginning of what was to be sent.
        let mut heard = Vec::new();
        let _ = client.read_to_end(&mut heard);
        assert!(Random(9).bytes(heard.len()) == heard);
    }
}
