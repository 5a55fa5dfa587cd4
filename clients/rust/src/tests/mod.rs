//! The machine against a model of a gateway, over connections that are cut at any moment.

mod gateway;
mod requests;
mod rules;
mod socket;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use tidegate::ids::Cmid;
use tidegate::wire::envelope::{ClientFrame, Encoding, Frames};

use crate::event::{Event, Outgoing, SendError, Ticket};
use crate::machine::{Action, Closed, Machine};
use crate::settings::Settings;
use gateway::{Gateway, SEND_WINDOW};

const USERS: [&str; 4] = ["al", "al", "bo", "cy"];
const ENCODINGS: [Encoding; 4] = [Encoding::Binary, Encoding::Json, Encoding::Json, Encoding::Binary];
const CONVERSATIONS: [(&str, &[usize]); 3] = [("d:al:bo", &[0, 1, 2]), ("g:all", &[0, 1, 2, 3]), ("g:x", &[2, 3])];

/// One step of a schedule.
#[derive(Clone, Debug)]
enum Op {
    /// The application of a device asks to send.
    Submit(usize, usize),
    /// A driver's turn: actions are done, frames are written.
    Turn(usize),
    /// The gateway reads so many messages of a device.
    Serve(usize, usize),
    /// So many messages reach a device.
    Arrive(usize, usize),
    /// The application takes so many events.
    Take(usize, usize),
    /// The connection is cut; what was on the way is lost. The session may be forgotten too.
    Cut(usize, bool),
    /// The next SENDs fail.
    Fail(u16, u32),
    /// The next FETCHes fail.
    FailFetch(u32),
    /// The next deliveries to a device become marks.
    Skip(usize, u32),
    /// Time passes.
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let device = 0..USERS.len();
    prop_oneof![
        6 => (device.clone(), 0..3_usize).prop_map(|(device, conv)| Op::Submit(device, conv)),
        8 => device.clone().prop_map(Op::Turn),
        8 => (device.clone(), 1..9_usize).prop_map(|(device, count)| Op::Serve(device, count)),
        8 => (device.clone(), 1..9_usize).prop_map(|(device, count)| Op::Arrive(device, count)),
        4 => (device.clone(), 1..20_usize).prop_map(|(device, count)| Op::Take(device, count)),
        1 => (device.clone(), any::<bool>()).prop_map(|(device, forget)| Op::Cut(device, forget)),
        1 => (prop::sample::select(vec![4001_u16, 4002, 5002, 5004]), 1..4_u32).prop_map(|(code, count)| Op::Fail(code, count)),
        1 => (1..3_u32).prop_map(Op::FailFetch),
        1 => (device, 1..4_u32).prop_map(|(device, count)| Op::Skip(device, count)),
        3 => prop_oneof![8 => 1..3_000_u64, 1 => 3_000..12_000_u64].prop_map(Op::Wait),
    ]
}

struct World {
    gateway: Gateway,
    devices: Vec<Peer>,
    now: Duration,
}

/// One device and what its application saw.
struct Peer {
    machine: Machine,
    is_connected: bool,
    out: VecDeque<Vec<u8>>,
    submitted: Vec<(Ticket, Cmid, String)>,
    acknowledged: HashMap<Ticket, Result<u64, SendError>>,
    seen: BTreeMap<String, Vec<(u64, Vec<u8>)>>,
    breaks: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let devices = (0..USERS.len()).map(|index| {
            let mut settings = Settings::new(&format!("dev-{index}"));
            settings.encoding = ENCODINGS[index];
            Peer {
                machine: Machine::new(settings, seed + index as u64),
                is_connected: false,
                out: VecDeque::new(),
                submitted: Vec::new(),
                acknowledged: HashMap::new(),
                seen: BTreeMap::new(),
                breaks: 0,
            }
        });
        Self { gateway: Gateway::new(&USERS, &ENCODINGS, &CONVERSATIONS), devices: devices.collect(), now: Duration::ZERO }
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Submit(device, conv) => self.submit(device, conv),
            Op::Turn(device) => self.turn(device),
            Op::Serve(device, count) => {
                for _ in 0..count {
                    let Some(bytes) = self.devices[device].out.pop_front() else { return };
                    self.gateway.serve(device, &bytes);
                }
            }
            Op::Arrive(device, count) => {
                for _ in 0..count {
                    if !self.devices[device].is_connected {
                        return;
                    }
                    let Some(bytes) = self.gateway.devices[device].out.pop_front() else { return };
                    self.devices[device]
                        .machine
                        .handle_message(self.now, &bytes)
                        .expect("the gateway writes what the codec reads");
                }
            }
            Op::Take(device, count) => self.take(device, count),
            Op::Cut(device, forget) => {
                self.gateway.devices[device].forget |= forget;
                self.cut(device, None);
            }
            Op::Fail(code, count) => self.gateway.failures = (code, count),
            Op::FailFetch(count) => self.gateway.fetch_failures = count,
            Op::Skip(device, count) => self.gateway.devices[device].skip = count,
            Op::Wait(ms) => {
                self.now += Duration::from_millis(ms);
                self.gateway.pass();
            }
        }
    }

    fn submit(&mut self, device: usize, conv: usize) {
        let (conv, members) = CONVERSATIONS[conv];
        if !members.contains(&device) {
            return;
        }
        let peer = &mut self.devices[device];
        let number = u8::try_from(peer.submitted.len()).expect("a short schedule");
        let mut cmid = [0; 16];
        cmid[0] = u8::try_from(device + 1).expect("few devices");
        cmid[1] = number;
        let payload = format!("{device}/{number}");
        let ticket = peer.machine.send(Cmid(cmid), Outgoing::new(conv, payload.as_bytes())).expect("the outbox has room");
        peer.submitted.push((ticket, Cmid(cmid), conv.to_owned()));
    }

    fn turn(&mut self, device: usize) {
        let peer = &mut self.devices[device];
        peer.machine.handle_timeout(self.now);
        while let Some(action) = peer.machine.poll_action() {
            match action {
                Action::Connect { .. } => {
                    peer.is_connected = true;
                    peer.machine.handle_connected(self.now, "token");
                }
                Action::Token => peer.machine.handle_token("token"),
                Action::Close(_) => return self.cut(device, None),
            }
        }
        let mut bytes = Vec::new();
        while peer.machine.poll_transmit(self.now, &mut bytes) {
            peer.out.push_back(std::mem::take(&mut bytes));
        }
        let frames = |bytes: &Vec<u8>| {
            Frames::new(ENCODINGS[device], bytes).next_frame().ok().flatten().map(|f| matches!(f, ClientFrame::Send(_)))
        };
        assert!(peer.out.iter().filter(|bytes| frames(bytes) == Some(true)).count() <= usize::from(SEND_WINDOW));
        while let Some(outcome) = peer.machine.poll_outcome() {
            let result = outcome.result.map(|sent| sent.seq);
            assert!(peer.acknowledged.insert(outcome.ticket, result).is_none(), "one outcome for each message");
        }
    }

    fn take(&mut self, device: usize, count: usize) {
        let peer = &mut self.devices[device];
        for _ in 0..count {
            match peer.machine.poll_event(self.now) {
                Some(Event::Message(message)) => {
                    assert_eq!(message.own, &*message.from == USERS[device]);
                    peer.seen.entry(message.conv.to_string()).or_default().push((message.seq, message.payload.to_vec()));
                }
                Some(Event::Break { .. }) => peer.breaks += 1,
                Some(_) => {}
                None => return,
            }
        }
    }

    fn cut(&mut self, device: usize, code: Option<u16>) {
        if !self.devices[device].is_connected {
            return;
        }
        self.gateway.disconnect(device);
        let peer = &mut self.devices[device];
        peer.is_connected = false;
        peer.out.clear();
        peer.machine.handle_closed(self.now, Closed { code, retry_after: None });
    }

    /// No more faults: everything must come to rest.
    fn settle(&mut self) {
        self.gateway.failures.1 = 0;
        self.gateway.fetch_failures = 0;
        self.gateway.devices.iter_mut().for_each(|device| device.skip = 0);
        for _ in 0..600 {
            self.run(&Op::Wait(200));
            for device in 0..USERS.len() {
                for op in [Op::Turn(device), Op::Serve(device, 999), Op::Arrive(device, 999), Op::Take(device, 999)] {
                    self.run(&op);
                }
            }
            if self.is_settled() {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn is_settled(&self) -> bool {
        self.devices.iter().enumerate().all(|(device, peer)| {
            let complete = |conv: &String| peer.seen.get(conv).map_or(0, Vec::len) == self.gateway.logs[conv].len();
            let acknowledged = |conv: &String| {
                self.gateway.devices[device].cursors.get(conv).copied().unwrap_or(0) == self.gateway.logs[conv].len() as u64
            };
            let convs = self.gateway.conversations_of(device);
            peer.machine.unsent_count() == 0 && convs.iter().all(complete) && convs.iter().all(acknowledged)
        })
    }

    fn check(&self) {
        for peer in &self.devices {
            assert_eq!(peer.breaks, 0, "nothing is missing, so nothing is reported missing");
            for (ticket, cmid, conv) in &peer.submitted {
                let seq = peer.acknowledged[ticket].clone().expect("nothing is given up");
                assert_eq!(self.gateway.stored(conv, seq).cmid, *cmid);
            }
            for (conv, seen) in &peer.seen {
                let stored = self.gateway.logs[conv].iter().enumerate();
                let expected: Vec<(u64, Vec<u8>)> = stored.map(|(at, one)| (at as u64 + 1, one.payload.clone())).collect();
                assert_eq!(*seen, expected, "every message once and in order");
            }
        }
        for (conv, log) in &self.gateway.logs {
            for (device, peer) in self.devices.iter().enumerate() {
                let mine = log.iter().filter(|one| usize::from(one.cmid.0[0]) == device + 1).map(|one| one.cmid);
                let asked = peer.submitted.iter().filter(|(_, _, at)| at == conv).map(|(_, cmid, _)| *cmid);
                assert!(mine.eq(asked), "stored in the order of asking, each once");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 50_000, ..ProptestConfig::default() })]

    /// Whatever is cut, refused, skipped and delayed: what was asked to be sent is stored once and in the order of asking, and every
    /// device gives out every message once and in order.
    #[test]
    fn any_schedule_is_once_in_effect_and_in_order(ops in prop::collection::vec(op(), 1..250), seed in any::<u32>()) {
        let mut world = World::new(u64::from(seed));
        ops.iter().for_each(|op| world.run(op));
        world.settle();
        world.check();
    }
}

/// A cursor whose ACK is lost with the connection is acknowledged again after a resume: nothing is delivered again that would remind the
/// client, since the message is its own.
#[test]
fn a_lost_ack_is_repeated_after_a_resume() {
    let mut world = World::new(0);
    for op in [
        Op::Submit(3, 2),
        Op::Turn(3),
        Op::Serve(3, 9),
        Op::Arrive(3, 9),
        Op::Turn(3),
        Op::Serve(3, 9),
        Op::Arrive(3, 9),
        Op::Take(3, 9),
    ] {
        world.run(&op);
    }
    for op in [Op::Wait(1000), Op::Turn(3), Op::Cut(3, false)] {
        world.run(&op);
    }
    assert!(world.gateway.devices[3].cursors.is_empty());
    world.settle();
    assert_eq!(world.gateway.devices[3].cursors["g:x"], 1);
}
