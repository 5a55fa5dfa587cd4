//! SYNC of somebody who is in very many conversations: how long from the first question to the last page.
//!
//! The conversations hold one message each, from the one who asks, so that all of them changed after 0. One device asks again and again.

use std::time::{Duration, Instant};

use tidegate::ids::Cmid;
use tidegate::wire::envelope::{ClientFrame, Encoding, Send, ServerFrame, encode_client, page_flags};

use crate::Common;
use crate::client::{Outbox, Ready, Script, Swarm, each_frame};
use crate::gateway::Gateway;
use crate::idle::{Greeter, user};
use crate::pace::nanos;
use crate::results::Run;
use crate::send::latency_histogram;

/// One measurement over as many conversations as `--connections` says, in pages of 256.
pub fn run(common: &Common) -> Result<Run, String> {
    let count = common.connections;
    let gateway = Gateway::start(common, &["--protocol-fetch-rate", "30000"])?;
    let greeter = Greeter::new(1, gateway.minter()?);
    let mut asker = Asker { greeter, sent_count: 0, entries_count: 0, next: None };
    let mut swarm = Swarm::new(gateway.address, Some("tidegate.v1")).map_err(|error| error.to_string())?;
    swarm.grow(1, &mut asker)?;
    for peer in 1..=count {
        swarm.send(0, |bytes| write_send(peer, bytes))?;
        turn_until(&mut swarm, &mut asker, |asker| asker.sent_count == peer)?;
    }

    let mut latency = latency_histogram()?;
    let (mut cpu, mut syncs) = (gateway.cpu_total()?, 0);
    let begun = Instant::now();
    while begun.elapsed() < common.warm_up() + common.duration() {
        let asked = Instant::now();
        asker.entries_count = 0;
        asker.next = Some(String::new());
        while let Some(cursor) = asker.next.take() {
            let sync = ClientFrame::Sync { rid: 1, since: 0, limit: PAGE, cursor: cursor.into() };
            swarm.send(0, |bytes| encode_client(Encoding::Binary, &sync, bytes))?;
            let seen = asker.entries_count;
            turn_until(&mut swarm, &mut asker, |asker| asker.entries_count > seen)?;
        }
        if asker.entries_count < count {
            return Err(format!("SYNC named {} of {count} conversations", asker.entries_count));
        }
        if begun.elapsed() < common.warm_up() {
            cpu = gateway.cpu_total()?;
        } else {
            syncs += 1;
            latency.saturating_record(nanos(asked.elapsed()));
        }
    }
    let used = gateway.cpu_total()? - cpu;

    let mut run = Run::default();
    run.add("conversations_count", count as f64);
    run.add("syncs_count", f64::from(syncs));
    run.add("cpu_us_per_sync", used * 1e6 / f64::from(syncs.max(1)));
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        run.add(format!("sync_us_{name}"), latency.value_at_quantile(quantile) as f64 / 1e3);
    }
    Ok(run)
}

fn write_send(peer: usize, bytes: &mut Vec<u8>) {
    let send = Send {
        rid: u32::try_from(peer).expect("conversations are few"),
        cmid: Cmid((peer as u128).to_be_bytes()),
        flags: 0,
        kind: 1,
        ttl_s: 0,
        trace: None,
        conv: format!("d:{}:{}", user(0), user(peer)).into(),
        payload: (&[b's'; 200][..]).into(),
    };
    encode_client(Encoding::Binary, &ClientFrame::Send(send), bytes);
}

fn turn_until(swarm: &mut Swarm, asker: &mut Asker, is_done: impl Fn(&Asker) -> bool) -> Result<(), String> {
    let begun = Instant::now();
    while !is_done(asker) {
        if begun.elapsed() > ANSWER_WAIT {
            return Err("no answer".to_owned());
        }
        swarm.turn(Duration::from_millis(100), asker)?;
    }
    Ok(())
}

struct Asker {
    greeter: Greeter,
    sent_count: usize,
    entries_count: usize,
    /// The cursor of the next page, when a page said that there is one.
    next: Option<String>,
}

impl Script for Asker {
    fn opened(&mut self, index: usize, out: &mut Outbox<'_>) -> Ready {
        self.greeter.opened(index, out)
    }

    fn message(&mut self, index: usize, payload: &[u8], _: &mut Outbox<'_>) -> Result<Ready, String> {
        each_frame(index, payload, |frame| match frame {
            ServerFrame::Welcome(_) => Ok(Ready::Yes),
            ServerFrame::Sent { .. } => {
                self.sent_count += 1;
                Ok(Ready::NotYet)
            }
            ServerFrame::SyncPage { flags, cursor, entries, .. } => {
                self.entries_count += entries.len();
                self.next = (flags & page_flags::MORE != 0).then(|| cursor.into_owned());
                Ok(Ready::NotYet)
            }
            other => Err(format!("unexpected {other:?}")),
        })
    }
}

const PAGE: u16 = 256;
const ANSWER_WAIT: Duration = Duration::from_secs(10);
