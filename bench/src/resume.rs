//! Everybody is gone at once and comes back: memory of a session that waits to be resumed, and what resuming costs.
//!
//! While they are gone, each misses one message of its group. A connection counts as back when that message has come, replayed.

use std::time::{Duration, Instant};

use serde_json::json;
use tidegate::ids::Cmid;
use tidegate::wire::envelope::{ClientFrame, Encoding, Hello, Send, ServerFrame, encode_client};

use crate::Common;
use crate::client::{Outbox, Ready, Script, Swarm, acknowledge, each_frame};
use crate::gateway::Gateway;
use crate::idle::{hello, user};
use crate::pace::nanos;
use crate::results::Run;
use crate::send::latency_histogram;

/// One measurement.
pub fn run(common: &Common) -> Result<Run, String> {
    let count = common.connections;
    let gateway = Gateway::start(common, &["--limits-handshakes-max", &count.to_string()])?;
    let mint = gateway.minter()?;
    for (group, members) in (0..count).collect::<Vec<_>>().chunks(MEMBERS).enumerate() {
        let members: Vec<String> = members.iter().copied().chain([count]).map(user).collect();
        gateway.post("/v1/groups", &json!({ "conv": conv(group), "members": members }))?;
    }
    let mut speaker = Guests::new(vec![mint(&user(count))]);
    let mut guests = Guests::new((0..count).map(|index| mint(&user(index))).collect());
    let open = || Swarm::new(gateway.address, Some("tidegate.v1")).map_err(|error| error.to_string());
    let mut podium = open()?;
    podium.grow(1, &mut speaker)?;
    let empty = gateway.memory()?;
    let mut swarm = open()?;
    swarm.grow(count, &mut guests)?;
    wait(&mut swarm, &mut guests, common.warm_up())?;
    let full = gateway.memory()?;
    swarm.reset()?;
    std::thread::sleep(common.warm_up());
    let gone = gateway.memory()?;

    for group in 0..count.div_ceil(MEMBERS) {
        podium.send(0, |bytes| write_send(group, bytes))?;
        let wanted = group + 1;
        let begun = Instant::now();
        while speaker.sent_count < wanted {
            if begun.elapsed() > ANSWER_WAIT {
                return Err(format!("the message to group {group} was not acknowledged"));
            }
            podium.turn(Duration::from_millis(10), &mut speaker)?;
        }
    }

    guests.are_back = true;
    let mut latency = latency_histogram()?;
    let (cpu, begun) = (gateway.cpu_total()?, Instant::now());
    let mut swarm = open()?;
    swarm.open_at_once(count);
    guests.begun = Some(begun);
    swarm.grow(count, &mut guests)?;
    let (took, used) = (begun.elapsed(), gateway.cpu_total()? - cpu);
    for &back_ns in &guests.back_ns {
        latency.saturating_record(back_ns);
    }
    wait(&mut swarm, &mut guests, common.warm_up())?;
    let back = gateway.memory()?;

    let per = |more: u64, less: u64| (more as f64 - less as f64) / count as f64;
    let mut run = Run::default();
    run.add("sessions_count", count as f64);
    run.add("resumed_count", guests.resumed_count as f64);
    run.add("live_pss_bytes_per_session", per(full.pss, empty.pss));
    run.add("resumable_pss_bytes_per_session", per(gone.pss, empty.pss));
    run.add("resumed_pss_bytes_per_session", per(back.pss, empty.pss));
    run.add("all_back_s", took.as_secs_f64());
    run.add("cpu_us_per_resume", used * 1e6 / count as f64);
    // From the moment at which all began, in the queue of a listener that takes them one after another.
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        run.add(format!("back_us_{name}"), latency.value_at_quantile(quantile) as f64 / 1e3);
    }
    Ok(run)
}

fn conv(group: usize) -> String {
    format!("g:{group}")
}

fn write_send(group: usize, bytes: &mut Vec<u8>) {
    let send = Send {
        rid: u32::try_from(group).expect("groups are few") + 1,
        cmid: Cmid((group as u128 + 1).to_be_bytes()),
        flags: 0,
        kind: 1,
        ttl_s: 0,
        trace: None,
        conv: conv(group).into(),
        payload: (&[b'r'; 200][..]).into(),
    };
    encode_client(Encoding::Binary, &ClientFrame::Send(send), bytes);
}

fn wait(swarm: &mut Swarm, guests: &mut Guests, duration: Duration) -> Result<(), String> {
    let begun = Instant::now();
    while begun.elapsed() < duration {
        swarm.turn(Duration::from_millis(100), guests)?;
    }
    Ok(())
}

/// Sessions with what it takes to resume them.
struct Guests {
    tokens: Vec<String>,
    sessions: Vec<[u8; 16]>,
    are_back: bool,
    begun: Option<Instant>,
    back_ns: Vec<u64>,
    resumed_count: usize,
    sent_count: usize,
}

impl Guests {
    fn new(tokens: Vec<String>) -> Self {
        let sessions = vec![[0; 16]; tokens.len()];
        Self { tokens, sessions, are_back: false, begun: None, back_ns: Vec::new(), resumed_count: 0, sent_count: 0 }
    }
}

impl Script for Guests {
    fn opened(&mut self, index: usize, out: &mut Outbox<'_>) -> Ready {
        let hello = Hello { window: 64, session: self.sessions[index], ..hello(&self.tokens[index]) };
        out.message(|bytes| encode_client(Encoding::Binary, &ClientFrame::Hello(hello), bytes));
        Ready::NotYet
    }

    fn message(&mut self, index: usize, payload: &[u8], out: &mut Outbox<'_>) -> Result<Ready, String> {
        each_frame(index, payload, |frame| match frame {
            ServerFrame::Welcome(welcome) if self.are_back => {
                if welcome.resumed == 0 {
                    return Err(format!("connection {index}: its session was not resumed"));
                }
                self.resumed_count += 1;
                Ok(Ready::NotYet)
            }
            ServerFrame::Welcome(welcome) => {
                self.sessions[index] = welcome.session;
                Ok(Ready::Yes)
            }
            ServerFrame::Deliver(deliver) => {
                acknowledge(deliver.pos, out);
                if let Some(begun) = self.begun {
                    self.back_ns.push(nanos(begun.elapsed()));
                }
                Ok(Ready::Yes)
            }
            ServerFrame::Sent { .. } => {
                self.sent_count += 1;
                Ok(Ready::NotYet)
            }
            ServerFrame::Conv { .. } => Ok(Ready::NotYet),
            other => Err(format!("connection {index}: unexpected {other:?}")),
        })
    }
}

/// Of a group, without the one who speaks. A larger group would be told by NOTICE.
const MEMBERS: usize = 999;
const ANSWER_WAIT: Duration = Duration::from_secs(10);
