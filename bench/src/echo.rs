//! WebSocket echo against a bare TCP echo: what framing, sessions and turns cost above the system calls nobody can save.

use crate::paired::{Case, Options, Team, measure};
use crate::server::{Bare, Contender, Server};
use crate::volley::{Shape, Volley};

/// All cases asked for.
pub fn run(options: &Options) -> Result<(), String> {
    for &(payload, connections, depth, contenders) in CASES {
        let name = format!("{payload} B, {connections} connections, {depth} in flight");
        if options.wants_case(&name) {
            one(options, name, Shape { connections, payload, depth, is_bare: false }, contenders)?;
        }
    }
    Ok(())
}

fn one(options: &Options, name: String, shape: Shape, contenders: &[Contender]) -> Result<(), String> {
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
    measure("echo", &Case::against_floor(name, "message", facts), teams, options)
}

/// Payload, connections, messages in flight, who.
const CASES: &[(usize, usize, usize, &[Contender])] = &[
    (64, 1, 1, OURS),
    (64, 100, 1, ALL),
    (64, 1_000, 1, ALL),
    (64, 10_000, 1, ALL),
    (1_024, 100, 1, OURS),
    (1_024, 1_000, 1, OURS),
    (4_096, 100, 1, OURS),
    (16_384, 100, 1, ALL),
    (16_384, 1_000, 1, OURS),
    (64, 100, 16, ALL),
    (64, 1_000, 16, OURS),
];
const OURS: &[Contender] = &[Contender::Floor, Contender::FloorAgain, Contender::Epoll, Contender::Uring];
const ALL: &[Contender] =
    &[Contender::Floor, Contender::FloorAgain, Contender::Epoll, Contender::Uring, Contender::Bun, Contender::Tungstenite];
