//! Newcomers, the bell, and the limit of descriptors.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Instant;

use tidegate::io::driver::Driver;
use tidegate::limits;

use crate::server::{Make, PATIENCE, Server};

/// Switched off, newcomers wait in the kernel; switched on again, they are taken although nobody new announces them.
pub fn accept_off_and_on<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    server.driver.accept(false);
    let _clients: Vec<_> = (0..100).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    server.settle();
    assert!(server.core.connections.is_empty());
    server.driver.accept(true);
    server.until("all hundred", |core| core.connections.len() == 100);
}

/// Switched off while a newcomer is handed over, the next waits in the kernel, however many came at once.
pub fn accept_stops_after_any<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    server.core.accepts_left = Some(3);
    let _clients: Vec<_> = (0..100).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    server.settle();
    assert_eq!(server.core.connections.len(), 3);
    for count in [4, 5] {
        server.core.accepts_left = Some(1);
        server.driver.accept(true);
        server.settle();
        assert_eq!(server.core.connections.len(), count);
    }
    server.core.accepts_left = None;
    server.driver.accept(true);
    server.until("all hundred", |core| core.connections.len() == 100);
}

/// Another thread ends the wait, again and again.
pub fn waker_ends_the_wait<D: Driver>(make: Make<D>) {
    let mut server = Server::new(make);
    for _ in 0..50 {
        let waker = server.driver.waker();
        let ringing = waker.clone();
        assert!(waker.may_sleep(|| true));
        let ringer = std::thread::spawn(move || ringing.wake());
        let started = Instant::now();
        server.turn(PATIENCE);
        assert!(started.elapsed() < PATIENCE, "nobody ended the wait");
        waker.awake();
        ringer.join().unwrap();
    }
}

/// Out of descriptors, accepting fails, is told with a growing delay, is tried again by the driver itself, and those connected
/// notice nothing. To be run in a process of its own, whose limit is small.
pub fn accept_at_descriptor_limit<D: Driver>(make: Make<D>) {
    let mut server = Server::echo(make);
    let (mut client, _) = server.connect();
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        assert!(hoard.len() < 1000, "the limit of this process is not small");
        hoard.push(file);
    }
    hoard.pop();
    let mut newcomer = TcpStream::connect(server.address).unwrap();
    server.until("failures", |core| core.accept_failures.len() >= 3);
    assert_eq!(server.core.accept_failures[..3], [1, 2, 4].map(|factor| limits::ACCEPT_RETRY_MIN * factor));
    assert!(server.driver.counters().accept_errors_count >= 3);
    let mut heard = [0; 5];
    client.write_all(b"still").unwrap();
    server.until("echo", |core| core.connections[0].out_offset == 5);
    client.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"still");

    drop(hoard);
    server.until("accept", |core| core.connections.len() == 2);
    newcomer.write_all(b"hello").unwrap();
    server.until("echo", |core| core.connections[1].out_offset == 5);
    newcomer.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
}

/// Runs one test of this file in a process that may open 40 descriptors; in that process, returns `true`.
pub fn has_few_descriptors(test: &str) -> bool {
    const MARK: &str = "TIDEGATE_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let this = std::env::current_exe().unwrap();
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 40; exec \"$0\" --exact --test-threads=1 \"$1\""])
        .args([this.as_os_str(), test.as_ref()])
        .env(MARK, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    false
}
