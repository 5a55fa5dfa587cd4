//! The gateway's real work: a one-to-one message routed, stored, synced, acknowledged and delivered, against a bare echo of as many
//! bytes with one message in flight, which does nothing of that. All threads of the gateway are counted, engine included.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::SendOptions;
use crate::client::Swarm;
use crate::durable::Closed;
use crate::idle::Greeter;
use crate::paired::{Case, Generator, Options, Sample, Team, Watch, measure};
use crate::send::{Load, Loop, drain};
use crate::server::{Bare, Contender, Server};
use crate::volley::{Shape, Volley};

/// One message in flight of each connection, and sixteen.
pub fn run(options: &Options) -> Result<(), String> {
    for in_flight in [1, 16] {
        let name = format!("{CONNECTIONS} connections, {in_flight} in flight");
        if !options.wants_case(&name) {
            continue;
        }
        let team = |contender: Contender| {
            let server = Server::start(contender, Bare::Echo, options, &[])?;
            if server.gateway().is_some() {
                let open = pairs(contender, &server, options, in_flight)?;
                return Team::new(contender, server, move || Ok(Pairs::Ours(Box::new(open()?))));
            }
            let address = server.address;
            let shape = Shape { connections: CONNECTIONS, payload: PAYLOAD_BYTES, depth: 1, is_bare: true };
            Team::new(contender, server, move || Ok(Pairs::Bare(Volley::open(address, shape)?)))
        };
        let teams = options.choose(OURS).into_iter().map(team).collect::<Result<_, _>>()?;
        let facts = vec![
            ("connections_count", CONNECTIONS as f64),
            ("in_flight_count", f64::from(in_flight)),
            ("payload_bytes", PAYLOAD_BYTES as f64),
        ];
        measure("work", &Case::against_floor(name, "message", facts), teams, options)?;
    }
    Ok(())
}

enum Pairs {
    Bare(Volley),
    Ours(Box<OurPairs>),
}

/// What opens pairs of users who send to one another, on whatever thread it is called.
pub fn pairs(
    contender: Contender,
    server: &Server,
    options: &Options,
    in_flight: u32,
) -> Result<impl FnOnce() -> Result<OurPairs, String> + Send + use<>, String> {
    let (address, mint) = (server.address, server.gateway().ok_or("not a gateway")?.minter()?);
    let mut common = options.common(contender.name());
    (common.connections, common.payload) = (CONNECTIONS, Some(PAYLOAD_BYTES));
    let options = SendOptions { common, rate: 0, in_flight, nack: false, beside: 0 };
    Ok(move || {
        let mut load = Load::new(&options, Greeter::new(CONNECTIONS, mint))?;
        let mut swarm = Swarm::new(address, Some("tidegate.v1")).map_err(|error| error.to_string())?;
        swarm.grow(CONNECTIONS, &mut load)?;
        // Conversations are looked up when their first message comes; of those that wait for it the gateway keeps a bounded number.
        let first = SendOptions { in_flight: 1, ..options.clone() };
        Loop::new(&first, &load, &mut swarm)?.start(&mut swarm, &mut load)?;
        let driver = Loop::new(&options, &load, &mut swarm)?;
        let mut pairs = OurPairs { driver, swarm, load };
        pairs.stop()?;
        Ok(pairs)
    })
}

/// Pairs of users who send to one another.
pub struct OurPairs {
    driver: Loop,
    swarm: Swarm,
    load: Load,
}

impl Closed for OurPairs {
    fn start(&mut self) -> Result<(), String> {
        self.load.is_stopping = false;
        self.driver.start(&mut self.swarm, &mut self.load)
    }

    fn turn_for(&mut self, duration: Duration) -> Result<(), String> {
        self.driver.turn_for(&mut self.swarm, &mut self.load, duration)
    }

    fn acknowledged(&self) -> Vec<u64> {
        self.load.sent_counts()
    }

    fn latency(&mut self) -> &mut Histogram<u64> {
        &mut self.load.sent_latency
    }

    fn stop(&mut self) -> Result<(), String> {
        self.load.is_stopping = true;
        drain(&mut self.swarm, &mut self.load)
    }
}

impl Generator for OurPairs {
    fn drive(&mut self, warm_up: Duration, duration: Duration, watch: &mut Watch) -> Result<Sample, String> {
        self.start()?;
        self.turn_for(warm_up)?;
        self.load.sent_latency.reset();
        watch.begin()?;
        let before = self.load.sent_count;
        self.turn_for(duration)?;
        let mut sample = watch.end((self.load.sent_count - before) as f64)?;
        sample.more = self.quantiles();
        self.stop()?;
        Ok(sample)
    }
}

impl Generator for Pairs {
    fn drive(&mut self, warm_up: Duration, duration: Duration, watch: &mut Watch) -> Result<Sample, String> {
        match self {
            Self::Bare(volley) => volley.drive(warm_up, duration, watch),
            Self::Ours(ours) => ours.drive(warm_up, duration, watch),
        }
    }
}

const OURS: &[Contender] = &[Contender::Floor, Contender::FloorAgain, Contender::Epoll, Contender::Uring];
/// Half as many pairs.
pub const CONNECTIONS: usize = 1_000;
/// Of a message.
pub const PAYLOAD_BYTES: usize = 200;
