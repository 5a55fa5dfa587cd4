//! Bytes that leave: all of them, in order, however the peer takes them.

use std::io::{Read, Write};
use std::rc::Rc;

use tidegate::io::driver::{Block, Close, Driver};
use tidegate::io::uring::Uring;
use tidegate::limits;

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

/// Shared blocks of all lengths between lent heads, more than one send can name, to a peer that reads odd amounts: sends end in the
/// middle of heads and of blocks, and every byte comes once, in order. What was sent is no longer held.
pub fn pieces_leave_in_order<D: Driver>(make: Make<D>) {
    for seed in 1..=3 {
        let mut server = Server::new(make);
        let (mut client, id) = server.connect();
        let mut random = Random(seed);
        let lengths: Vec<usize> = (0..40 * limits::WRITE_SEGMENTS_MAX).map(|at| [1, 900, 1500, 40_000][at % 4]).collect();
        let blocks: Vec<_> = lengths
            .iter()
            .map(|&max| {
                Block::new({
                    let count = 1 + random.below(max);
                    random.bytes(count)
                })
            })
            .collect();
        let watched: Vec<_> = blocks.iter().map(Rc::downgrade).collect();
        server.queue_shared(id, b"head", blocks);
        server.settle();
        assert!(nth!(server, 0).waiting, "thirteen megabytes do not fit the kernel");
        server.queue(id, b"the last words");
        let said = nth!(server, 0).out.clone();
        let count = said.len();
        let reading = std::thread::spawn(move || {
            let mut heard = vec![0; count];
            let mut rest = heard.as_mut_slice();
            while !rest.is_empty() {
                let piece = (1 + random.below(30_000)).min(rest.len());
                client.read_exact(&mut rest[..piece])?;
                rest = &mut rest[piece..];
            }
            std::io::Result::Ok(heard)
        });
        server.until("all sent", |core| core.connections[0].out_offset == count);
        assert!(reading.join().unwrap().unwrap() == said);
        assert!(watched.iter().all(|block| block.strong_count() == 0));
    }
}

/// One block on its way to several peers, of whom one is closed in the middle: as long as the kernel may read it somebody holds it,
/// whatever the core has forgotten; then nobody does. The others get every byte.
pub fn close_while_a_shared_block_is_sent<D: Driver>(make: Make<D>) {
    for how in [Close::Abort, Close::Graceful] {
        let mut server = Server::new(make);
        let mut peers: Vec<_> = (0..3).map(|_| server.connect()).collect();
        let block = Block::new(Random(9).bytes(8_000_000));
        let watched = Rc::downgrade(&block);
        for (_, id) in &peers {
            server.queue_shared(*id, b"head", [Block::clone(&block)]);
        }
        drop(block);
        server.settle();
        assert!(server.core.connections.iter().all(|connection| connection.waiting));
        let before = watched.strong_count();
        server.close(peers[0].1, how);
        let holds_its_own = nth!(server, 0).pendings > 0;
        assert_eq!(before - watched.strong_count(), 1, "the core has let go of it");
        // With a driver that keeps what it sends: the other cores, and a send of each.
        assert_eq!(watched.strong_count(), if holds_its_own { 2 + 3 } else { 2 });
        let rest = peers.split_off(1);
        server.until("closed", |core| core.connections[0].closed);
        assert_eq!(watched.strong_count(), if holds_its_own { 2 + 2 } else { 2 });
        let reading = rest.into_iter().map(|(mut client, _)| {
            std::thread::spawn(move || {
                let mut heard = vec![0; 8_000_004];
                client.read_exact(&mut heard).map(|()| heard)
            })
        });
        let reading: Vec<_> = reading.collect();
        server.until("all sent", |core| core.connections[1..].iter().all(|connection| connection.out_offset == 8_000_004));
        for heard in reading {
            let heard = heard.join().unwrap().unwrap();
            assert!(heard[..4] == *b"head" && heard[4..] == Random(9).bytes(8_000_000));
        }
        assert_eq!(watched.strong_count(), 0);
    }
}

/// Of a driver that keeps what it sends: a graceful close lets it leave to the end, from where the kernel stopped, though the core has
/// forgotten it.
pub fn graceful_close_finishes_a_send(make: Make<Uring>) {
    let mut server = Server::new(make);
    let (mut client, id) = server.connect();
    let blocks: Vec<_> =
        [5_000_000, 1500, 70_000, 2000, 8_000_000].map(|count| Block::new(Random(count as u64).bytes(count))).into();
    server.queue_shared(id, b"head", blocks);
    assert!(nth!(server, 0).waiting);
    server.close(id, Close::Graceful);
    let said = nth!(server, 0).out.clone();
    let reading = std::thread::spawn(move || {
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).map(|_| heard)
    });
    server.until("closed", |core| core.connections[0].closed);
    assert!(reading.join().unwrap().unwrap() == said);
}
