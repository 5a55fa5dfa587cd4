//! Memory per idle authenticated connection: growth of the process divided by the connections that came; kernel memory, in slabs,
//! apart.

use std::ops::Range;
use std::time::Instant;

use tidegate::wire::envelope::{ClientFrame, Encoding, Hello, ServerFrame, encode_client};

use crate::Common;
use crate::client::{Outbox, Ready, Script, Swarm, each_frame};
use crate::gateway::Gateway;
use crate::machine::slab_bytes;
use crate::results::Run;

/// One measurement. The first tenth of the connections pays for what is made once, so the marginal figure leaves it out.
pub fn run(common: &Common) -> Result<Run, String> {
    let gateway = Gateway::start(common, &[])?;
    let mint = gateway.minter()?;
    let mut script = Greeter::new(common.connections, mint);
    let mut swarm = Swarm::new(gateway.address, Some("tidegate.v1")).map_err(|error| error.to_string())?;
    let empty = gateway.memory()?;
    let slab_empty = slab_bytes()?;
    let first_count = common.connections / 10;
    swarm.grow(first_count, &mut script)?;
    swarm.turn_for(common.warm_up(), &mut script)?;
    let first = gateway.memory()?;
    let started = Instant::now();
    swarm.grow(common.connections, &mut script)?;
    let opened = started.elapsed();
    swarm.turn_for(common.warm_up(), &mut script)?;
    let cpu_before = gateway.cpu_total()?;
    swarm.turn_for(common.duration(), &mut script)?;
    let cpu_after = gateway.cpu_total()?;
    let full = gateway.memory()?;
    let slab_full = slab_bytes()?;

    let per = |more: u64, less: u64, count: usize| (more as f64 - less as f64) / count as f64;
    let added = common.connections - first_count;
    let mut run = Run::default();
    run.add("connections_count", common.connections as f64);
    run.add("pss_bytes_per_connection", per(full.pss, empty.pss, common.connections));
    run.add("rss_bytes_per_connection", per(full.rss, empty.rss, common.connections));
    run.add("pss_bytes_per_connection_marginal", per(full.pss, first.pss, added));
    run.add("private_dirty_bytes_per_connection", per(full.private_dirty, empty.private_dirty, common.connections));
    // Kernel memory is not the gateway's alone: both ends of every connection are on this machine, and whatever else it does.
    run.add("kernel_slab_bytes_per_connection_both_ends", per(slab_full, slab_empty, common.connections));
    run.add("rss_empty_bytes", empty.rss as f64);
    run.add("rss_full_bytes", full.rss as f64);
    run.add("opened_per_s", added as f64 / opened.as_secs_f64());
    run.add("cpu_idle_percent", 100.0 * (cpu_after - cpu_before) / common.seconds);
    Ok(run)
}

/// Says HELLO and waits for WELCOME.
pub struct Greeter {
    tokens: Vec<String>,
}

impl Greeter {
    /// Users [`user`]`(0)` to `count - 1`.
    pub fn new(count: usize, mint: impl Fn(&str) -> String) -> Self {
        Self::of(0..count, mint)
    }

    /// These users.
    pub fn of(users: Range<usize>, mint: impl Fn(&str) -> String) -> Self {
        Self { tokens: users.map(|index| mint(&user(index))).collect() }
    }

    /// HELLO of a connection with this delivery window.
    pub fn hello(&self, index: usize, window: u16, out: &mut Outbox<'_>) {
        let hello = Hello { window, ..hello(&self.tokens[index]) };
        out.message(|bytes| encode_client(Encoding::Binary, &ClientFrame::Hello(hello), bytes));
    }
}

/// HELLO of a new session, without a window.
pub fn hello(token: &str) -> Hello<'_> {
    Hello::new("bench", "tidegate-bench", token)
}

/// Zero-padded, so that the byte order of names is the order of numbers.
pub fn user(index: usize) -> String {
    format!("user-{index:07}")
}

impl Script for Greeter {
    fn opened(&mut self, index: usize, out: &mut Outbox<'_>) -> Ready {
        self.hello(index, 0, out);
        Ready::NotYet
    }

    fn message(&mut self, index: usize, payload: &[u8], _: &mut Outbox<'_>) -> Result<Ready, String> {
        each_frame(index, payload, |frame| match frame {
            ServerFrame::Welcome(_) => Ok(Ready::Yes),
            ServerFrame::Error { code, detail, .. } => Err(format!("connection {index}: ERROR {code} {detail}")),
            ServerFrame::Goaway { code, .. } => Err(format!("connection {index}: GOAWAY {code}")),
            _ => Ok(Ready::NotYet),
        })
    }
}
