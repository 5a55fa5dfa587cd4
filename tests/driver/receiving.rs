//! Bytes that come: all of them, in order, to whom they were sent, and not while it is paused.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tidegate::io::driver::{Close, Driver, Piece, Sent};
use tidegate::io::socket::Socket;
use tidegate::limits;

use crate::server::{Make, PATIENCE, Random, Server, chat};

/// Twelve clients write odd pieces while they read the echo, the server pauses and resumes at random, then everyone half-closes:
/// every byte comes back, in order, and every connection ends.
pub fn no_byte_is_lost_or_reordered<D: Driver>(make: Make<D>) {
    const CLIENTS: usize = 12;
    for seed in 1..=3_u64 {
        let mut server = Server::echo(make);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let address = server.address;
                std::thread::spawn(move || talk(address, seed * 1000 + client as u64))
            })
            .collect();
        let mut random = Random(seed);
        let started = Instant::now();
        while server.core.connections.len() < CLIENTS || server.core.connections.iter().any(|connection| !connection.closed) {
            assert!(started.elapsed() < PATIENCE, "bytes or ends are missing, seed {seed}");
            server.turn(Duration::from_millis(5));
            for at in 0..server.core.connections.len() {
                let connection = &mut server.core.connections[at];
                let id = connection.id;
                if connection.closing || connection.close_after_flush {
                    continue;
                }
                if connection.paused || random.below(8) == 0 {
                    connection.paused = !connection.paused;
                    match connection.paused {
                        true => server.driver.pause_recv(id),
                        false => server.driver.resume_recv(id),
                    }
                } else if connection.eofs == 1 {
                    connection.close_after_flush = true;
                    server.core.flush(&mut server.driver, id);
                }
            }
        }
        clients.into_iter().for_each(|client| client.join().unwrap());
        assert!(server.core.connections.iter().all(|connection| connection.failures.is_empty()));
        assert!(server.core.connections.iter().all(|connection| connection.writables == connection.blocks));
    }
}

fn talk(address: SocketAddr, seed: u64) {
    let mut random = Random(seed);
    let count = 200_000 + random.below(1000);
    let said = random.bytes(count);
    let mut writer = TcpStream::connect(address).unwrap();
    let mut reader = writer.try_clone().unwrap();
    let listening = std::thread::spawn(move || {
        let mut heard = Vec::new();
        reader.read_to_end(&mut heard).map(|_| heard)
    });
    let mut rest = said.as_slice();
    while !rest.is_empty() {
        let (piece, next) = rest.split_at((1 + random.below(30_000)).min(rest.len()));
        writer.write_all(piece).unwrap();
        rest = next;
        if random.below(4) == 0 {
            std::thread::sleep(Duration::from_micros(random.below(2000) as u64));
        }
    }
    writer.shutdown(Shutdown::Write).unwrap();
    assert!(listening.join().unwrap().unwrap() == said, "the echo differs, seed {seed}");
}

/// Data and FIN that arrive as one event are both told: after the short read no second event would come.
pub fn data_and_fin_in_one_event<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let (mut client, _) = server.connect();
    server.settle();
    client.write_all(b"last words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    server.until("the end", |core| core.connections[0].eofs == 1);
    assert_eq!(nth!(server, 0).received, b"last words");
}

/// Bytes and FIN that were there before the socket was watched are told as well.
pub fn data_before_attach<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let mut client = TcpStream::connect(server.address).unwrap();
    client.write_all(b"early").unwrap();
    drop(client);
    server.until("the end", |core| core.connections.first().is_some_and(|connection| connection.eofs == 1));
    assert_eq!(nth!(server, 0).received, b"early");
}

/// An event of an earlier life of a slot is dropped: it neither reaches the new tenant nor disturbs it. The old descriptor is kept
/// open by a duplicate, so the kernel goes on reporting it.
pub fn stale_generation<D: Driver>(make: Make<D>) -> (Server<D>, u64) {
    let mut server = Server::new(make);
    server.core.duplicate = true;
    let (mut old_client, old) = server.connect();
    server.settle();
    server.close(old, Close::Abort);
    server.until("closed", |core| core.connections[0].closed);
    let (mut new_client, new) = server.connect();
    assert_eq!((new.index, new.generation), (old.index, old.generation + 1));
    server.settle();
    let before = server.driver.counters().stale_events_count;
    old_client.write_all(b"from the past").unwrap();
    server.settle();
    new_client.write_all(b"present").unwrap();
    server.until("bytes", |core| core.connections[1].received.len() >= 7);
    assert_eq!(nth!(server, 1).received, b"present");
    assert!(nth!(server, 0).received.is_empty());
    // Calls with the old name change nothing either.
    server.driver.pause_recv(old);
    server.driver.close(old, Close::Abort);
    assert!(matches!(server.driver.send(old, &[Piece::Lent(b"x")]), Sent::Failed(_)));
    new_client.write_all(b"!").unwrap();
    server.until("bytes", |core| core.connections[1].received.len() == 8);
    (server, before)
}

/// A paused connection delivers nothing, whether paused from inside `bytes` or from outside; resumed, it delivers what waited,
/// though no new bytes come to announce it.
pub fn pause_and_resume<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    server.core.pause_first = true;
    let (mut client, id) = server.connect();
    let said = Random(3).bytes(150_000);
    let writing = {
        let (mut client, said) = (client.try_clone().unwrap(), said.clone());
        std::thread::spawn(move || client.write_all(&said))
    };
    server.until("first bytes", |core| core.connections[0].paused);
    server.settle();
    assert_eq!(nth!(server, 0).deliveries, 1);
    server.core.connection(id).paused = false;
    server.driver.resume_recv(id);
    server.until("the rest", |core| core.connections[0].received.len() == 150_000);
    writing.join().unwrap().unwrap();
    assert!(nth!(server, 0).received == said);

    server.core.connection(id).paused = true;
    server.driver.pause_recv(id);
    client.write_all(b"later").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    server.settle();
    assert_eq!((nth!(server, 0).received.len(), nth!(server, 0).eofs), (150_000, 0));
    server.core.connection(id).paused = false;
    server.driver.resume_recv(id);
    server.until("the end", |core| core.connections[0].eofs == 1);
    assert_eq!(&nth!(server, 0).received[150_000..], b"later");
}

/// One that sends more than a turn's budget neither starves the others nor is forgotten: no new edge announces the rest.
pub fn budget_is_shared<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    let (greedy, _) = server.connect();
    let (mut modest, _) = server.connect();
    server.settle();
    // Non-blocking: as much as the kernel takes, and then nothing more.
    greedy.set_nonblocking(true).unwrap();
    let mut written = 0;
    while let Ok(count) = (&greedy).write(&[1; 65_536]) {
        written += count;
    }
    modest.write_all(b"please").unwrap();
    assert!(written > 2 * limits::RECV_BYTES_PER_TURN_MAX);
    server.until("the modest one", |core| !core.connections[1].received.is_empty());
    assert!(nth!(server, 0).received.len() < written, "the greedy one was served to the end first");
    server.until("the rest", |core| core.connections[0].received.len() == written);
    assert!(server.driver.counters().budget_exhausted_count > 0);
}

/// A talking connection paused with bytes on their way keeps them in order, and one that is reset while paused is told so.
pub fn pause_while_it_talks<D: Driver>(make: Make<D>) {
    let mut server = Server::echo(make);
    let (mut client, id) = server.connect();
    chat(&mut server, &mut client, 0, 8);
    server.core.echo = false;
    let mut said = Vec::new();
    for round in 0..50_u8 {
        let piece = vec![round; 1 + usize::from(round) * 300];
        said.extend_from_slice(&piece);
        client.write_all(&piece).unwrap();
        if round % 3 == 0 {
            server.turn(Duration::ZERO);
        }
        server.core.connection(id).paused = true;
        server.driver.pause_recv(id);
        server.turn(Duration::from_millis(1));
        if round % 2 == 0 {
            server.turn(Duration::from_millis(1));
        }
        server.core.connection(id).paused = false;
        server.driver.resume_recv(id);
    }
    let before = 32;
    server.until("all of it", |core| core.connections[0].received.len() == before + said.len());
    assert!(nth!(server, 0).received[before..] == said);
    server.core.connection(id).paused = true;
    server.driver.pause_recv(id);
    server.settle();
    let client = Socket::try_from(client).unwrap();
    client.set_abort().unwrap();
    drop(client);
    server.until("closed", |core| core.connections[0].closed);
    assert_eq!(nth!(server, 0).failures.len(), 1);
}
