//! Descriptor tables of the reactors' own: together they hold several times what one table may.

mod support;

use std::net::TcpStream;

use support::eventually;
use support::gateway::Gateway;

/// Four tables of 256 hold 600 connections, far more than one; filled up, they refuse newcomers instead of leaving them waiting, and
/// take them again when there is room.
#[test]
fn four_tables_hold_what_one_cannot() {
    let settings = [("reactors", "4"), ("reactor.private_fds", "on"), ("protocol.upgrade_ms", "60000")];
    let gateway = Gateway::with_few_descriptors(256, &settings);
    assert!(gateway.log().contains("open files: limit 256, need"), "{}", gateway.log());
    let open = || gateway.metric("tidegate_connections_open");
    let mut clients: Vec<_> = (0..600).map(|_| TcpStream::connect(gateway.listen).expect("a table has room")).collect();
    eventually("600 connections", || (open() >= 600.0).then_some(()));

    // Until every reactor has left the group, and the port is closed. A few are reset while one leaves.
    let refused = (0..2000).find_map(|_| match TcpStream::connect(gateway.listen) {
        Ok(client) => {
            clients.push(client);
            std::thread::sleep(std::time::Duration::from_millis(1));
            None
        }
        Err(error) => Some(error.kind()),
    });
    assert_eq!(refused, Some(std::io::ErrorKind::ConnectionRefused));
    eventually("full tables", || (open() >= 4.0 * 225.0).then_some(()));
    assert_eq!(gateway.metric("tidegate_accepts_refused_total"), 0.0);

    clients.drain(..400);
    eventually("room", || (open() < 600.0).then_some(()));
    let before = gateway.metric("tidegate_connections_accepted_total");
    clients.extend((0..50).map(|_| TcpStream::connect(gateway.listen).expect("there is room again")));
    eventually("newcomers", || (gateway.metric("tidegate_connections_accepted_total") >= before + 50.0).then_some(()));
}
