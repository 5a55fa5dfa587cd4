//! Connections that only stand: user memory of each, and CPU to let it in, of ours and of strangers.
//!
//! Every figure is of a server of its own, which nobody has used before. Ours has an authenticated session behind each connection; strangers
//! that have rooms have it in one, the others only upgraded it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::client::{Outbox, Ready, Script, Swarm};
use crate::idle::Greeter;
use crate::paired::Options;
use crate::peer::{self, Guests};
use crate::results::{self, Spread};
use crate::server::{Bare, Contender, Server};

/// The one case.
pub fn run(options: &Options) -> Result<(), String> {
    let name = format!("{CONNECTIONS} idle connections");
    if !options.wants_case(&name) {
        return Ok(());
    }
    let contenders = options.choose(ALL);
    let mut found: BTreeMap<&str, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    for repetition in 0..options.repetitions {
        for turn in 0..contenders.len() {
            let contender = contenders[(repetition + turn) % contenders.len()];
            let one = measure(contender, options).map_err(|error| format!("{contender}: {error}"))?;
            let (bytes, cpu_us) = found.entry(contender.name()).or_default();
            bytes.push(one.0);
            cpu_us.push(one.1);
        }
    }
    println!("crowd: {name}\n{:<20} {:>10} {:>21} {:>10} {:>17}", "", "bytes", "least..most", "us", "least..most");
    let mut figures = Map::new();
    for contender in &contenders {
        let Some((bytes, cpu_us)) = found.remove(contender.name()) else { continue };
        let (bytes, cpu_us) = (results::spread(bytes), results::spread(cpu_us));
        let range = |spread: &Spread| format!("{:.0}..{:.0}", spread.least, spread.most);
        let (of_bytes, of_cpu) = (range(&bytes), range(&cpu_us));
        println!("{contender:<20} {:>10.0} {of_bytes:>21} {:>10.1} {of_cpu:>17}", bytes.median, cpu_us.median);
        let value = json!({ "user_bytes_per_connection": bytes.json(), "cpu_us_per_connection": cpu_us.json() });
        figures.insert(contender.name().to_owned(), value);
    }
    if options.dry {
        return Ok(());
    }
    let record = json!({
        "case": name,
        "facts": { "connections_count": CONNECTIONS },
        "repetitions": options.repetitions,
        "seconds": REST.as_secs_f64(),
        "contenders": Value::Object(figures),
    });
    results::keep("crowd", &options.common(""), record)
}

/// Bytes, and CPU microseconds, of one connection.
fn measure(contender: Contender, options: &Options) -> Result<(f64, f64), String> {
    let server = Server::start(contender, Bare::Echo, options, &[])?;
    let probe = server.probe();
    let (mut swarm, mut script) = nobody_yet(contender, &server, 0..CONNECTIONS)?;
    let (bytes, cpu) = (probe.user_bytes()?, probe.cpu()?);
    swarm.grow(CONNECTIONS, &mut *script)?;
    swarm.turn_for(REST, &mut *script)?;
    let each = |after: f64, before: f64| (after - before) / CONNECTIONS as f64;
    let found = (each(probe.user_bytes()?, bytes), each(probe.cpu()?, cpu) * 1e6);
    swarm.reset()?;
    Ok(found)
}

/// No connection yet, and what each will say: these users of ours, members of a room of a stranger that has rooms, nothing else.
pub fn nobody_yet(contender: Contender, server: &Server, users: Range<usize>) -> Result<(Swarm, Box<dyn Script + Send>), String> {
    let address = server.address;
    let (swarm, script): (_, Box<dyn Script + Send>) = match (server.gateway(), peer::of(contender)) {
        (Some(gateway), _) => (Swarm::new(address, Some("tidegate.v1")), Box::new(Greeter::of(users, gateway.minter()?))),
        (None, Some(peer)) => (Swarm::at(address, peer.path(), peer.subprotocol()), Box::new(Guests::new(peer))),
        (None, None) => (Swarm::new(address, None), Box::new(Silent)),
    };
    Ok((swarm.map_err(|error| error.to_string())?, script))
}

/// Only upgraded.
struct Silent;

impl Script for Silent {
    fn opened(&mut self, _: usize, _: &mut Outbox<'_>) -> Ready {
        Ready::Yes
    }

    fn message(&mut self, _: usize, _: &[u8], _: &mut Outbox<'_>) -> Result<Ready, String> {
        Ok(Ready::NotYet)
    }
}

/// Whose connections can stand.
pub const ALL: &[Contender] = &[
    Contender::Epoll,
    Contender::Uring,
    Contender::Bun,
    Contender::Tungstenite,
    Contender::NatsRelay,
    Contender::Centrifugo,
    Contender::Nchan,
];
const CONNECTIONS: usize = 5_000;
/// Before memory is read: what was needed only to let them in may be given back.
const REST: Duration = Duration::from_secs(2);
