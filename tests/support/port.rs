//! Ports for gateways, of the tests here and of the load generator's.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// A port of loopback that stays free until a gateway takes it, and over several lives of that: below those the kernel gives out by itself,
/// so that no connection takes it meanwhile.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id() % 1000 * 10;
    let mut ports = (0..10_000).map(|_| {
        let offset = (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        20_000 + u16::try_from(offset).expect("below 10000")
    });
    ports.find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).expect("a free port")
}
