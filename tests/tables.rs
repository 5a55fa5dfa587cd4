//! Descriptor tables of the reactors' own: together they hold several times what one table may.

mod support;

use std::net::TcpStream;

use support::eventually;
use support::gateway::Gateway;

/// With more tables than cores newcomers come to as many reactors as there are cores, and to all once those are filled well.
#[test]
fn newcomers_come_to_as_many_reactors_as_cores() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let reactors = (2 * cores + 1).to_string();
    let settings = [("reactors", reactors.as_str()), ("reactor.private_fds", "on"), ("protocol.upgrade_ms", "60000")];
    let gateway = Gateway::with_few_descriptors(256, &settings);
    let open = || {
        let (_, text) = gateway.admin("GET", "/metrics", "");
        let lines = text.lines().filter(|line| line.starts_with("tidegate_connections_open{"));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap())
            .filter(|&count| count > 0)
            .collect::<Vec<_>>()
    };
    let mut clients = Vec::new();
    let mut come = |count: usize| {
        for _ in 0..count / 20 {
            clients.extend((0..20).map(|_| TcpStream::connect(gateway.listen).expect("a table has room")));
            // A queue that nobody looks at yet could fill a table beyond its room.
            let all = clients.len();
            eventually("all connections", || (open().iter().sum::<usize>() == all).then_some(()));
        }
        open().len()
    };
    // That one of them gets none of so many has no chance worth naming.
    assert_eq!(come(60 * cores), cores);
    assert_eq!(come(180 * cores), 2 * cores);
}

/// Four tables of 256 hold 600 connections, far more than one; filled up, they refuse newcomers instead of leaving them waiting, and
/// take them again when there is room.
#[test]
fn four_tables_hold_what_one_cannot() {
    let settings = [("reactors", "4"), ("reactor.private_fds", "on"), ("protocol.upgrade_ms", "60000")];
    let gateway = Gateway::with_few_descriptors(256, &settings);
    assert!(gateway.log().contains("open files: limit 256, need"), "{}", gateway.log());
    let open = || gateway.metric("tidegate_connections_open");
    let mut clients: Vec<TcpStream> = Vec::new();
    for all in (20..=600).step_by(20) {
        clients.extend((0..20).map(|_| TcpStream::connect(gateway.listen).expect("a table has room")));
        eventually("all connections", || (open() >= f64::from(all)).then_some(()));
    }

    // Until every reactor has left the group, and the port is closed. A few are reset while one leaves.
    let mut resets = 0;
    let refused = (0..2000).find_map(|_| match TcpStream::connect(gateway.listen) {
        Ok(client) => {
            clients.push(client);
            std::thread::sleep(std::time::Duration::from_millis(1));
            None
        }
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset && resets < RESETS_MAX => {
            resets += 1;
            None
        }
        Err(error) => Some(error.kind()),
    });
    assert_eq!(refused, Some(std::io::ErrorKind::ConnectionRefused));
    eventually("full tables", || (open() >= 4.0 * 225.0).then_some(()));
    assert_eq!(gateway.counted("tidegate_accepts_refused_total"), 0.0);

    clients.drain(..400);
    eventually("room", || (open() <= f64::from(u32::try_from(clients.len()).expect("some hundreds"))).then_some(()));
    let before = gateway.metric("tidegate_connections_accepted_total");
    // A reactor with few places takes its share, fills up and leaves again: a few are reset once more, and try again.
    eventually("newcomers", || {
        for _ in 0..10 {
            match TcpStream::connect(gateway.listen) {
                Ok(client) => clients.push(client),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
            }
        }
        (gateway.metric("tidegate_connections_accepted_total") >= before + 50.0).then_some(())
    });
}

/// Connections that may be reset while reactors leave the group.
const RESETS_MAX: usize = 100;
