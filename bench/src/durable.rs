//! Durable acknowledged messages per second: every one is on the disk, by a sync, before its sender hears of it. Against NATS JetStream
//! with `sync_interval: always`.
//!
//! Both run on one core with all their threads, both get 1,000 senders with as many messages in flight each. The gateway also delivers
//! each message to another connection, which acknowledges it; JetStream only stores.

use std::time::Duration;

use crate::kernel::Counted;
use crate::nats::Publishers;
use crate::paired::{Case, Generator, Options, Per, Sample, Team, Watch, measure};
use crate::server::{Bare, Contender, Server};
use crate::work::{self, OurPairs};

/// The one case.
pub fn run(options: &Options) -> Result<(), String> {
    let name = format!("{SENDERS} senders, {IN_FLIGHT} in flight");
    if !options.wants_case(&name) {
        return Ok(());
    }
    let contenders = options.choose(&[Contender::Nats, Contender::Epoll, Contender::Uring]);
    if !contenders.contains(&Contender::Nats) {
        return Ok(());
    }
    let team = |contender: Contender| {
        let server = Server::start(contender, Bare::Echo, options, &[])?;
        if server.gateway().is_some() {
            let open = work::pairs(contender, &server, options, IN_FLIGHT)?;
            return Team::new(contender, server, move || Ok(Senders::Ours(Box::new(open()?))));
        }
        let address = server.address;
        Team::new(contender, server, move || {
            Ok(Senders::Nats(Publishers::open(address, SENDERS, IN_FLIGHT as usize, work::PAYLOAD_BYTES)?))
        })
    };
    let teams = contenders.into_iter().map(team).collect::<Result<_, _>>()?;
    let facts = vec![
        ("senders_count", SENDERS as f64),
        ("in_flight_count", f64::from(IN_FLIGHT)),
        ("payload_bytes", work::PAYLOAD_BYTES as f64),
    ];
    let (reference, per, counted) = (Contender::Nats, Per::Second, Counted::Syncs);
    measure("durable", &Case { name, unit: "message", facts, reference, per, seconds: SECONDS, counted }, teams, options)
}

enum Senders {
    Ours(Box<OurPairs>),
    Nats(Publishers),
}

impl Generator for Senders {
    fn drive(&mut self, warm_up: Duration, duration: Duration, watch: &mut Watch) -> Result<Sample, String> {
        match self {
            Self::Ours(pairs) => pairs.drive(warm_up, duration, watch),
            Self::Nats(publishers) => publishers.drive(warm_up, duration, watch),
        }
    }
}

const SENDERS: usize = work::CONNECTIONS;
const IN_FLIGHT: u32 = 16;
const SECONDS: f64 = 10.0;
