//! How connections end: by us, by the peer, in the middle of a word; and that the next one in the same slot starts clean.

use std::io::{self, Read, Write};
use std::net::Shutdown;

use tidegate::io::driver::{Close, Driver};
use tidegate::io::socket::Socket;
use tidegate::limits::{self, LEAVERS_PER_TURN_MAX};

use crate::server::{Core, Make, Random, Server, chat};

/// After the peer's FIN the other direction still works, to the last of many bytes.
pub fn half_close<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let (mut client, id) = server.connect();
    client.shutdown(Shutdown::Write).unwrap();
    server.until("the end", |core| core.connections[0].eofs == 1);
    let said = Random(5).bytes(3_000_000);
    server.core.connection(id).close_after_flush = true;
    server.queue(id, &said);
    let reading = std::thread::spawn(move || {
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).map(|_| heard)
    });
    server.until("closed", |core| core.connections[0].closed);
    assert!(reading.join().unwrap().unwrap() == said);
    assert_eq!(nth!(server, 0).eofs, 1);
}

/// A reset is told once, paused or not, and ends in `closed`.
pub fn reset<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    for round in 0..2 {
        let (client, id) = server.connect();
        server.settle();
        if round == 1 {
            server.core.connection(id).paused = true;
            server.driver.pause_recv(id);
        }
        let client = Socket::try_from(client).unwrap();
        client.set_abort().unwrap();
        drop(client);
        server.until("closed", |core| core.connections[round].closed);
        server.settle();
        let kinds: Vec<_> = nth!(server, round).failures.iter().map(io::Error::kind).collect();
        assert_eq!(kinds, [io::ErrorKind::ConnectionReset]);
    }
}

/// Slots and descriptor numbers are used again at once, many times; no tenant sees another's bytes, however the last one ended.
pub fn slots_and_descriptors_are_reused<D: Driver>(make: Make<D>) {
    let mut server = Server::echo(make);
    for round in 0..300_usize {
        let (mut client, id) = server.connect();
        assert_eq!((id.index, id.generation as usize), (0, round));
        let word = format!("round {round}");
        client.write_all(word.as_bytes()).unwrap();
        server.until("echo", |core| core.connections[round].out_offset == word.len());
        assert_eq!(nth!(server, round).received, word.as_bytes());
        let mut heard = vec![0; word.len()];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(heard, word.as_bytes());
        match round % 3 {
            0 => server.close(id, Close::Abort),
            1 => {
                server.close(id, Close::Graceful);
                drop(client);
            }
            _ => {
                // Late bytes meet a slot that is closing.
                server.close(id, Close::Graceful);
                let _ = client.write_all(b"late");
                drop(client);
            }
        }
        server.until("closed", |core| core.connections[round].closed);
    }
}

/// A graceful close delivers what was sent before it although the peer's own bytes were never read: the peer sees an end, not a
/// reset that would swallow the last words.
pub fn graceful_close_delivers_last_words<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let (mut client, id) = server.connect();
    server.core.connection(id).paused = true;
    server.driver.pause_recv(id);
    client.write_all(&[0; 50_000]).unwrap();
    server.settle();
    server.queue(id, b"goodbye");
    server.close(id, Close::Graceful);
    server.settle();
    client.write_all(b"one more thing").unwrap();
    server.settle();
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"goodbye");
    drop(client);
    server.until("closed", |core| core.connections[0].closed);
}

/// Nor are they swallowed by how much the peer sent, nor for being longer than what a peer takes that does not read yet.
pub fn graceful_close_delivers_last_words_to_who_sends_much<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let (mut client, id) = server.connect();
    server.core.connection(id).paused = true;
    server.driver.pause_recv(id);
    client.write_all(&[0; 8 * limits::RECV_BYTES_PER_TURN_MAX]).unwrap();
    let words = [b'w'; 100_000];
    server.queue(id, &words);
    assert!(!server.core.connection(id).waiting, "the kernel holds all of it");
    server.close(id, Close::Graceful);
    server.settle();
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).unwrap();
    assert!(heard == words, "{} of {} bytes", heard.len(), words.len());
    drop(client);
    server.until("closed", |core| core.connections[0].closed);
}

/// What a peer had sent and its FIN are taken to the end, more than one turn forgets: then our end is no reset, from a peer that rests or talks.
pub fn graceful_close_takes_all_there_is<D: Driver>(make: Make<D>) {
    for talks in [false, true] {
        let mut server = Server::echo(make);
        let (mut client, id) = server.connect();
        let writer = client.try_clone().unwrap();
        let sends = move |turns: usize| {
            let much = vec![0; turns * limits::DISCARD_BYTES_PER_TURN_MAX];
            (&writer).write_all(&much).and_then(|()| writer.shutdown(Shutdown::Write)).unwrap();
        };
        if talks {
            chat(&mut server, &mut client, 0, 20);
            // It goes on while it is closed.
            let sent = std::thread::spawn(move || sends(20));
            server.close(id, Close::Graceful);
            server.until("closed", |core| core.connections[0].closed);
            sent.join().unwrap();
        } else {
            // All of it is there before, FIN included: nothing more will be announced.
            server.core.connection(id).paused = true;
            server.driver.pause_recv(id);
            sends(2);
            server.settle();
            server.close(id, Close::Graceful);
            server.until("closed", |core| core.connections[0].closed);
        }
        assert!(client.take_error().unwrap().is_none(), "talks: {talks}");
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).unwrap();
    }
}

/// A peer that goes on sending is cut off in the end, whether it rests or talks when the close begins.
pub fn graceful_close_ends_a_flood<D: Driver>(make: Make<D>) {
    for talks in [false, true] {
        let mut server = Server::echo(make);
        let (mut client, id) = server.connect();
        if talks {
            chat(&mut server, &mut client, 0, 20);
        }
        let flood = std::thread::spawn(move || while client.write_all(&[0; 64 * 1024]).is_ok() {});
        server.close(id, Close::Graceful);
        server.until("closed", |core| core.connections[0].closed);
        flood.join().unwrap();
    }
}

/// A peer that never sends its FIN does not hold the slot for ever.
pub fn graceful_close_ends_without_the_peer<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let (_client, id) = server.connect();
    server.close(id, Close::Graceful);
    server.until("closed", |core| core.connections[0].closed);
}

/// An abort reaches the peer as a reset.
pub fn abort_is_a_reset<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let (mut client, id) = server.connect();
    server.close(id, Close::Abort);
    server.until("closed", |core| core.connections[0].closed);
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

/// However a talking connection ends (by us, by the peer, in the middle of a word), it ends once, its peer sees what it should, and
/// the next one in the same slot starts clean.
pub fn close_while_it_talks<D: Driver>(make: Make<D>) {
    let mut server = Server::echo(make);
    for round in 0..40_usize {
        let (mut client, id) = server.connect();
        chat(&mut server, &mut client, round, 8);
        match round % 4 {
            0 => server.close(id, Close::Abort),
            1 => {
                // The word meets a connection that closes.
                client.write_all(b"late").unwrap();
                server.close(id, Close::Graceful);
                server.settle();
                let _ = client.read_to_end(&mut Vec::new());
                drop(client);
            }
            2 => {
                client.shutdown(Shutdown::Write).unwrap();
                server.until("the end", |core| core.connections[round].eofs == 1);
                server.close(id, Close::Graceful);
                server.settle();
                assert_eq!(client.read(&mut [0]).unwrap(), 0);
            }
            _ => {
                server.core.connection(id).paused = true;
                server.driver.pause_recv(id);
                client.write_all(b"unread").unwrap();
                server.settle();
                server.close(id, Close::Abort);
            }
        }
        server.until("closed", |core| core.connections[round].closed);
        assert_eq!(nth!(server, round).received.len() % 4, 0, "no word was cut");
    }
}

/// When many leave at once, who stays is heard first, and nobody who leaves is forgotten.
pub fn who_stays_is_heard_before_who_leaves<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let leavers: Vec<_> = (0..3 * LEAVERS_PER_TURN_MAX).map(|_| server.connect().0).collect();
    let (mut stays, _) = server.connect();
    server.settle();
    for (number, client) in leavers.into_iter().enumerate() {
        let client = Socket::try_from(client).unwrap();
        if number % 2 == 0 {
            client.set_abort().unwrap();
        }
    }
    stays.write_all(b"still here").unwrap();
    let ended = |core: &Core| core.connections.iter().filter(|it| it.eofs + it.failures.len() > 0).count();
    server.until("bytes", |core| core.connections[3 * LEAVERS_PER_TURN_MAX].received == b"still here");
    assert!(ended(&server.core) <= LEAVERS_PER_TURN_MAX, "{} ended before", ended(&server.core));
    server.until("all ends", |core| ended(core) == 3 * LEAVERS_PER_TURN_MAX);
}
