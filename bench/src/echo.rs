//! WebSocket echo against a bare TCP echo: what framing, sessions and turns cost above the system calls nobody can save.

use std::time::Instant;

use crate::paired::{Case, Options, Team, measure};
use crate::server::{Bare, Contender, Server};
use crate::volley::{Shape, Volley};

/// All cases asked for.
pub fn run(options: &Options) -> Result<(), String> {
    let name = |&(payload, connections, depth, _): &Matrix| format!("{payload} B, {connections} connections, {depth} in flight");
    let cases = CASES.iter().map(|case| (name(case), case)).filter(|(name, _)| options.wants_case(name));
    let cases: Vec<(String, &Matrix)> = cases.collect();
    let started = Instant::now();
    for (at, (name, case)) in cases.iter().enumerate() {
        eprintln!("echo: {} of {}, {name}, after {:.0} s", at + 1, cases.len(), started.elapsed().as_secs_f64());
        one(options, name.clone(), case)?;
    }
    Ok(())
}

fn one(options: &Options, name: String, &(payload, connections, depth, contenders): &Matrix) -> Result<(), String> {
    let shape = Shape { connections, payload, depth, is_bare: false };
    let team = |contender: Contender| {
        let server = Server::start(contender, Bare::Echo, options, &["--echo"])?;
        let (address, shape) = (server.address, Shape { is_bare: contender.is_bare(), ..shape });
        Team::new(contender, server, move || Volley::open(address, shape))
    };
    let teams: Vec<Team> = options.choose(contenders).into_iter().map(team).collect::<Result<_, _>>()?;
    let facts = vec![
        ("payload_bytes", shape.payload as f64),
        ("connections_count", shape.connections as f64),
        ("in_flight_count", shape.depth as f64),
    ];
    measure("echo", &Case { seconds: SECONDS, ..Case::against_floor(name, "message", facts) }, teams, options)
}

/// Payload, connections, messages in flight, who.
type Matrix = (usize, usize, usize, &'static [Contender]);

const CASES: &[Matrix] = &[
    (20, 100, 1, OURS),
    (20, 1_000, 1, OURS),
    (64, 1, 1, OURS),
    (64, 100, 1, ALL),
    (64, 1_000, 1, ALL),
    (64, 10_000, 1, ALL),
    (1_024, 1, 1, OURS),
    (1_024, 100, 1, OURS),
    (1_024, 1_000, 1, OURS),
    (1_024, 10_000, 1, OURS),
    (4_096, 100, 1, OURS),
    (16_384, 1, 1, OURS),
    (16_384, 100, 1, ALL),
    (16_384, 1_000, 1, OURS),
    (16_384, 10_000, 1, OURS),
    (64, 100, 16, ALL),
    (64, 1_000, 16, OURS),
];
const OURS: &[Contender] = &[Contender::Floor, Contender::FloorAgain, Contender::Epoll, Contender::Uring];
const ALL: &[Contender] =
    &[Contender::Floor, Contender::FloorAgain, Contender::Epoll, Contender::Uring, Contender::Bun, Contender::Tungstenite];
/// All cases, seven times and with all peers, are to be measured within twelve minutes.
const SECONDS: f64 = 0.6;
