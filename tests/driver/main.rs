//! What every driver must do, over real loopback sockets: the suite is generic, and each driver joins it by one line.
//!
//! Nothing here asserts how long something takes. Each wait has an end, [`PATIENCE`], so that a driver which forgets an event
//! fails instead of hanging.

#[macro_use]
mod server;
mod accepting;
mod ending;
mod receiving;
mod sending;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use accepting::*;
use ending::*;
use receiving::*;
use sending::*;
use server::{PATIENCE, Random, Server, chat};
use tidegate::io::driver::{Close, Driver};
use tidegate::io::epoll::Epoll;
use tidegate::io::socket::Listener;
use tidegate::io::uring::{Sizes, Uring};
use tidegate::io::wake::Waker;

/// The suite for one driver.
macro_rules! suite {
    ($driver:ident, $make:expr, $($name:ident)*) => {
        mod $driver {
            use super::*;

            $(#[test] fn $name() { super::$name($make); })*

            #[test]
            fn stale_generation() {
                super::stale_generation($make);
            }

            #[test]
            fn accept_at_descriptor_limit() {
                if has_few_descriptors(concat!(stringify!($driver), "::accept_at_descriptor_limit")) {
                    super::accept_at_descriptor_limit($make);
                }
            }
        }
    };
    ($driver:ident, $make:expr) => {
        suite!($driver, $make,
            no_byte_is_lost_or_reordered data_and_fin_in_one_event data_before_attach blocked_and_partial_sends pause_and_resume
            half_close reset slots_and_descriptors_are_reused graceful_close_delivers_last_words
            graceful_close_delivers_last_words_to_who_sends_much graceful_close_takes_all_there_is graceful_close_ends_a_flood
            graceful_close_ends_without_the_peer abort_is_a_reset budget_is_shared accept_off_and_on accept_stops_after_any waker_ends_the_wait
            close_while_it_talks close_while_sending pause_while_it_talks
            pieces_leave_in_order close_while_a_shared_block_is_sent);
    };
}

suite!(epoll, make_epoll);
suite!(uring, make_uring);
// Every queue so short that it is always full: overflows, empty buffers and backlogs in each test.
suite!(uring_cramped, make_cramped_uring);

fn make_epoll(listener: Listener) -> Epoll {
    Epoll::new(1000, Some(listener), Waker::for_driver().unwrap()).unwrap()
}

fn make_uring(listener: Listener) -> Uring {
    let sizes = Sizes::share(1000, 1, Some(Duration::from_secs(10)));
    Uring::new(sizes, Some(listener), Waker::for_driver().unwrap()).unwrap()
}

fn make_cramped_uring(listener: Listener) -> Uring {
    let sizes = Sizes {
        submissions: 2,
        completions: 4,
        buffers_first: 1,
        buffers_max: 2,
        // So short that talkers are parked and promoted all the time.
        park_after: Some(Duration::from_millis(2)),
        ..Sizes::share(1000, 1, None)
    };
    Uring::new(sizes, Some(listener), Waker::for_driver().unwrap()).unwrap()
}

/// Of the readiness driver alone: the events of the past are counted.
#[test]
fn epoll_counts_stale_events() {
    let (server, before) = stale_generation(make_epoll);
    assert!(server.driver.counters().stale_events_count > before);
}

/// Of the readiness driver alone: it hears of all at once. A ring tells some 20 events a turn, in their order.
#[test]
fn epoll_hears_those_who_stay_before_those_who_leave() {
    who_stays_is_heard_before_who_leaves(make_epoll);
}

/// Of the completion driver: who talks is received without a system call per message, who falls silent rests again, and both
/// changes lose nothing.
#[test]
fn uring_promotes_talkers_and_parks_the_silent() {
    let make = |listener| {
        let sizes = Sizes::share(1000, 1, Some(Duration::from_secs(1)));
        Uring::new(sizes, Some(listener), Waker::for_driver().unwrap()).unwrap()
    };
    let mut server = Server::echo(make);
    let (mut client, _) = server.connect();
    for round in 1..=3 {
        chat(&mut server, &mut client, 0, 10);
        assert_eq!(server.driver.counters().promotions_count, round);
        let started = Instant::now();
        while server.driver.counters().parks_count < round {
            assert!(started.elapsed() < PATIENCE, "it was never parked");
            server.turn(Duration::from_millis(20));
        }
    }
    assert_eq!(nth!(server, 0).received.len(), 120);
}

/// A few buffers serve two thousand talkers who all speak at once: receives that find none are no error, and nobody waits for ever.
#[test]
fn uring_serves_thousands_with_few_buffers() {
    const CLIENTS: usize = 2000;
    const FEW: usize = 50;
    const TALK: usize = 5;
    let make = |listener| {
        let sizes = Sizes { buffers_first: 4, buffers_max: 4, ..Sizes::share(CLIENTS, 1, None) };
        Uring::new(sizes, Some(listener), Waker::for_driver().unwrap()).unwrap()
    };
    let mut server = Server::echo(make);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect().0).collect();
    // A few at a time talk fast enough to be promoted, on a slow machine too; then all talk at once.
    for few in 0..CLIENTS / FEW {
        for round in 1..=TALK {
            let range = few * FEW..(few + 1) * FEW;
            clients[range.clone()].iter_mut().for_each(|client| client.write_all(b"word").unwrap());
            server.until("echoes", |core| core.connections[range.clone()].iter().all(|it| it.out_offset == round * 4));
        }
    }
    assert!(server.driver.counters().promotions_count >= 500, "{:?}", server.driver.counters());
    let mut rounds = TALK;
    while server.driver.counters().buffers_empty_count == 0 {
        rounds += 1;
        assert!(rounds < 50, "two thousand at once found a buffer each");
        clients.iter_mut().for_each(|client| client.write_all(b"word").unwrap());
        server.until("echoes", |core| core.connections.iter().all(|connection| connection.out_offset == rounds * 4));
    }
    for client in &mut clients {
        let mut heard = vec![0; rounds * 4];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(heard, b"word".repeat(rounds));
    }
}

/// One that does not read holds little of the memory for sends, however much is queued for it: the rest stays with the core, where it is
/// counted.
#[test]
fn uring_holds_little_for_one_that_does_not_read() {
    let mut server = Server::new(make_uring);
    let (_client, id) = server.connect();
    server.queue(id, &Random(9).bytes(12_000_000));
    server.settle();
    assert!(nth!(server, 0).waiting, "twelve megabytes do not fit the kernel");
    let held_bytes = server.driver.counters().sending_bytes;
    assert!((1..=4096).contains(&held_bytes), "{held_bytes} bytes");
    server.close(id, Close::Abort);
    server.until("closed", |core| core.connections[0].closed);
    assert_eq!(server.driver.counters().sending_bytes, 0);
}

/// Many that do not read hold all the memory for sends. Whoever reads gets a word, and then more than its socket takes at once: it is told
/// `writable` although nobody gives anything back. Those who wait end as others do.
#[test]
fn uring_serves_readers_while_others_hold_all_memory_for_sends() {
    const SILENT: usize = 24;
    // Less than they would hold together.
    const SENDS_BYTES: usize = 64 * 1024;
    const MUCH: usize = 4_000_000;
    let make = |listener: Listener| {
        // As in service: the kernel takes little of what is not read, and goes on trying.
        listener.set_client_options(Duration::from_secs(600)).unwrap();
        let sizes = Sizes { sends_bytes: SENDS_BYTES, ..Sizes::share(1000, 1, None) };
        Uring::new(sizes, Some(listener), Waker::for_driver().unwrap()).unwrap()
    };
    let mut server = Server::new(make);
    let silent: Vec<_> = (0..SILENT).map(|_| server.connect()).collect();
    let said = Random(11).bytes(MUCH);
    silent.iter().for_each(|(_, id)| server.queue(*id, &said));
    let mut taken = 0;
    loop {
        server.settle();
        let now = server.core.connections.iter().map(|connection| connection.out_offset).sum::<usize>();
        if now == taken {
            break;
        }
        taken = now;
    }
    assert!(server.core.connections.iter().all(|connection| connection.waiting), "four megabytes do not fit the kernel");
    assert_eq!(server.driver.counters().sending_bytes, SENDS_BYTES as u64, "there is room left");

    let (mut reader, id) = server.connect();
    server.queue(id, b"a word");
    server.until("a word", |core| core.connections[SILENT].out_offset == 6);
    let mut heard = [0; 6];
    reader.read_exact(&mut heard).unwrap();
    assert_eq!(heard, *b"a word");

    server.queue(id, &said);
    assert!(nth!(server, SILENT).waiting, "four megabytes do not fit the kernel");
    let reading = std::thread::spawn(move || {
        let mut heard = vec![0; MUCH];
        reader.read_exact(&mut heard).map(|()| heard)
    });
    server.until("all sent", |core| core.connections[SILENT].out_offset == 6 + MUCH);
    assert!(reading.join().unwrap().unwrap() == said);
    assert!(nth!(server, SILENT).blocks > 0, "it was never told to wait");
    assert_eq!(nth!(server, SILENT).writables, nth!(server, SILENT).blocks);
    assert_eq!(server.driver.counters().sending_bytes, SENDS_BYTES as u64, "somebody gave memory back");

    silent.iter().for_each(|(_, id)| server.close(*id, Close::Abort));
    server.until("closed", |core| core.connections[..SILENT].iter().all(|connection| connection.closed));
    assert_eq!(server.driver.counters().sending_bytes, 0);
}

#[test]
fn uring_finishes_a_send_of_a_closed_connection() {
    graceful_close_finishes_a_send(make_uring);
    graceful_close_finishes_a_send(make_cramped_uring);
}

/// The completion queue overflows, which ends multishots on a good result; all of them are armed again and no byte is lost.
#[test]
fn uring_survives_overflows() {
    let mut server = Server::echo(make_cramped_uring);
    let mut clients: Vec<_> = (0..64).map(|_| server.connect().0).collect();
    for round in 1..=30 {
        clients.iter_mut().for_each(|client| client.write_all(b"word").unwrap());
        server.until("echoes", |core| core.connections.iter().all(|connection| connection.out_offset == round * 4));
    }
    for client in &mut clients {
        let mut heard = vec![0; 120];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(heard, b"word".repeat(30));
    }
    assert!(server.driver.counters().overflows_count > 0, "a queue of four held 64 connections");
}

/// This machine can run the driver; elsewhere the suite above would say so less clearly.
#[test]
fn uring_probe_passes() {
    Uring::probe().unwrap();
}
