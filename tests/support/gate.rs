//! Many clients under load while the gateway ends and comes back, again and again; then the ledger judges.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidegate::wire::envelope::Encoding;
use tidegate_client::{Client, Event, Events, Outgoing, Pending};

use super::disk::FaultyDisk;
use super::eventually;
use super::gateway::Gateway;
use super::ledger::{Findings, Ledger, Origin};
use super::raw::Raw;

/// How a life of the gateway ends.
#[derive(Clone, Copy)]
pub enum End<'d> {
    /// kill -9.
    Kill,
    /// SIGTERM, and the process is waited for.
    Drain,
    /// kill -9, and the data is copied aside.
    KillAndCopy,
    /// kill -9, and the data becomes what was copied aside: a disk that lost what it had promised to keep.
    KillAndForget,
    /// The power of the gateway's disk is cut.
    PowerCut(&'d FaultyDisk),
}

const USERS: [&str; 4] = ["al", "bo", "cy", "di"];
const CONVERSATIONS: [(&str, &[&str]); 4] =
    [("d:al:bo", &["al", "bo"]), ("d:cy:di", &["cy", "di"]), ("g:all", &USERS), ("g:trio", &["al", "bo", "cy"])];
/// Messages of one sender on their way.
const PIPELINE: usize = 12;
/// Acknowledgements between two ends, at least: every life of the gateway carries load.
const PROGRESS: u64 = 60;

/// What a run saw.
pub struct Report {
    /// What the checker found.
    pub findings: Findings,
    /// Acknowledged sends.
    pub acknowledged: usize,
    /// Messages given out by devices.
    pub delivered: usize,
    /// Breaks and resets that clients reported.
    pub holes: Vec<String>,
}

#[derive(Default)]
struct Shared {
    ledger: Mutex<Ledger>,
    holes: Mutex<Vec<String>>,
    acknowledged: AtomicU64,
    counts: Mutex<BTreeMap<(String, String), u64>>,
    is_over: AtomicBool,
    failed: Mutex<Vec<String>>,
}

/// Runs `lives` lives of `gateway` under load. `settle`: how long devices may take to have everything in the end.
pub fn run(mut gateway: Gateway, ends: &[End<'_>], settle: Duration) -> Report {
    for (conv, members) in CONVERSATIONS.iter().filter(|(conv, _)| conv.starts_with("g:")) {
        gateway.group(conv, members);
    }
    let shared = Arc::new(Shared::default());
    let mut senders = Vec::new();
    let mut receivers = Vec::new();
    let mut clients = Vec::new();
    for (index, user) in USERS.into_iter().enumerate() {
        for device in 0..2 {
            let name = format!("{user}-{device}");
            let mut options = gateway.options(user, &name);
            options.settings.encoding = if (index + device) % 2 == 0 { Encoding::Binary } else { Encoding::Json };
            let (client, events) = gateway.client(options);
            if device == 0 {
                senders.push(sender(&shared, user, name.clone(), client.clone()));
            }
            clients.push(client);
            receivers.push(receiver(&shared, name, events));
        }
    }
    for (number, end) in (1_u64..).zip(ends) {
        let before = shared.acknowledged.load(Ordering::Relaxed);
        eventually("progress after a restart", || {
            (shared.acknowledged.load(Ordering::Relaxed) >= before + PROGRESS).then_some(())
        });
        // At another moment of the commit each time, without asking for true randomness.
        std::thread::sleep(Duration::from_micros(number * 7919 % 60_000));
        match end {
            End::Kill => gateway.kill(),
            End::KillAndCopy => {
                gateway.kill();
                gateway.copy_data();
            }
            End::KillAndForget => {
                gateway.kill();
                gateway.forget_data();
            }
            End::PowerCut(disk) => {
                disk.cut_power(number);
                gateway.kill();
            }
            End::Drain => {
                gateway.terminate();
                let status = gateway.wait();
                assert!(status.success(), "a drained gateway ends well: {status}");
            }
        }
        gateway.run();
    }
    shared.is_over.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.join().expect("a sender");
    }
    let mut ledger = finish(&gateway, &shared, settle);
    // The last handles go, so the clients end, and with them the threads that take their events.
    drop(clients);
    for receiver in receivers {
        receiver.join().expect("a receiver");
    }
    let failed = std::mem::take(&mut *shared.failed.lock().expect("no panic elsewhere"));
    assert!(failed.is_empty(), "given up: {failed:?}");
    for user in USERS {
        for (conv, members) in CONVERSATIONS {
            if members.contains(&user) {
                (0..2).for_each(|device| ledger.complete(&format!("{user}-{device}"), conv));
            }
        }
    }
    let (acknowledged, delivered) = ledger.counts();
    let holes = std::mem::take(&mut *shared.holes.lock().expect("no panic elsewhere"));
    Report { findings: ledger.check(), acknowledged, delivered, holes }
}

/// Reads the whole history with a device of its own, waits until every device has it, and returns the ledger with both.
fn finish(gateway: &Gateway, shared: &Shared, settle: Duration) -> Ledger {
    let mut stored = Ledger::default();
    let mut heads = BTreeMap::new();
    for (conv, members) in CONVERSATIONS {
        let mut reader = Raw::connect(gateway, Encoding::Binary, members[0], "reader");
        let mut from = 1;
        loop {
            let page = reader.fetch(conv, from, 0, 256, 0);
            for message in &page.messages {
                stored.stored(conv, message.seq, Origin::read(&message.payload).expect("an origin"));
                from = message.seq + 1;
            }
            if page.flags & 1 == 0 {
                heads.insert(conv, page.head);
                break;
            }
        }
    }
    let deadline = Instant::now() + settle;
    let is_complete = || {
        let counts = shared.counts.lock().expect("no panic elsewhere");
        CONVERSATIONS.iter().all(|(conv, members)| {
            members.iter().flat_map(|user| [format!("{user}-0"), format!("{user}-1")]).all(|device| {
                let count = counts.get(&(device, (*conv).to_owned())).copied().unwrap_or(0);
                count >= heads[conv]
            })
        })
    };
    while !is_complete() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut ledger = std::mem::take(&mut *shared.ledger.lock().expect("no panic elsewhere"));
    ledger.take_histories(stored);
    ledger
}

/// One device that sends to all its conversations in turn, a few messages ahead of their acknowledgements.
fn sender(shared: &Arc<Shared>, user: &'static str, device: String, client: Client) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    let convs: Vec<&str> = CONVERSATIONS.iter().filter(|(_, members)| members.contains(&user)).map(|(conv, _)| *conv).collect();
    std::thread::spawn(move || {
        let mut numbers: BTreeMap<&str, u64> = BTreeMap::new();
        let mut pending: std::collections::VecDeque<(&str, Origin, Pending)> = std::collections::VecDeque::new();
        let mut turn = 0;
        while !shared.is_over.load(Ordering::Relaxed) || !pending.is_empty() {
            if pending.len() < PIPELINE && !shared.is_over.load(Ordering::Relaxed) {
                let conv = convs[turn % convs.len()];
                turn += 1;
                let number = numbers.entry(conv).or_default();
                *number += 1;
                let origin = Origin::new(&device, *number);
                pending.push_back((conv, origin.clone(), client.submit(Outgoing::new(conv, &origin.payload()))));
                // A steady trickle: the point is what is under way when the process ends, not throughput.
                std::thread::sleep(Duration::from_millis(4));
                continue;
            }
            let Some((conv, origin, one)) = pending.pop_front() else { continue };
            match one.wait() {
                Ok(sent) => {
                    shared.ledger.lock().expect("no panic elsewhere").acknowledged(conv, sent.seq, origin);
                    shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => shared.failed.lock().expect("no panic elsewhere").push(format!("{conv} {origin}: {error}")),
            }
        }
    })
}

/// Notes what a device gives out, until its client ends.
fn receiver(shared: &Arc<Shared>, device: String, events: Events) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        loop {
            match events.recv_timeout(Duration::from_secs(1)) {
                Ok(Event::Message(message)) => {
                    let origin = Origin::read(&message.payload).expect("an origin");
                    shared.ledger.lock().expect("no panic elsewhere").delivered(&device, &message.conv, message.seq, origin);
                    let key = (device.clone(), message.conv.to_string());
                    *shared.counts.lock().expect("no panic elsewhere").entry(key).or_default() += 1;
                }
                Ok(hole @ (Event::Break { .. } | Event::Reset { .. })) => {
                    shared.holes.lock().expect("no panic elsewhere").push(format!("{device}: {hole:?}"));
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    })
}
