//! The phantom back end: a TCP against a slow, obvious peer over a network that loses, doubles and reorders; and against the kernel's and
//! the real gateway.

mod support;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;

use loadgen::network::{Ending, Ready};
use loadgen::phantom::GATEWAY;
use loadgen::phantom::packet::{ACK, FIN, MSS, PSH, RST, SYN, Segment};
use loadgen::phantom::stack::{Addresses, Stack};
use loadgen::phantom::wheel::TICK_MS;
use proptest::prelude::*;
use support::{Place, said};

/// A TCP server of one connection. It sends all it has at every tick until it is acknowledged, and takes only what comes next.
struct Peer {
    own: SocketAddrV4,
    other: SocketAddrV4,
    una: u32,
    rcv: u32,
    is_open: bool,
    /// To be sent, from `una` on.
    outgoing: VecDeque<u8>,
    incoming: Vec<u8>,
    /// Bytes it has room for.
    window: u16,
    got_fin: bool,
}

impl Peer {
    fn new(own: SocketAddrV4, other: SocketAddrV4, outgoing: &[u8], window: u16) -> Self {
        let outgoing = outgoing.iter().copied().collect();
        let (una, rcv) = (4_294_967_000, 0);
        Self { own, other, una, rcv, is_open: false, outgoing, incoming: Vec::new(), window, got_fin: false }
    }

    fn packet(&self, flags: u8, offset: u32, payload: &[u8]) -> Vec<u8> {
        let (source, target) = (self.own, self.other);
        let seq = self.una.wrapping_add(offset);
        let mut out = Vec::new();
        Segment { source, target, seq, ack: self.rcv, flags, window: self.window, payload }.encode(&mut out);
        out
    }

    /// Takes a packet, whose checksums must be right; answers.
    fn input(&mut self, packet: &[u8]) -> Vec<Vec<u8>> {
        let segment = Segment::decode(packet).expect("a whole packet with right checksums");
        assert_eq!((segment.source, segment.target), (self.other, self.own));
        if segment.flags & SYN != 0 && self.is_open {
            // An old one (RFC 9293 3.10.7.4).
            return vec![self.packet(ACK, 0, &[])];
        }
        if segment.flags & SYN != 0 {
            self.rcv = segment.seq.wrapping_add(1);
            return vec![self.packet(SYN | ACK, 0, &[])];
        }
        if !self.is_open && segment.ack == self.una.wrapping_add(1) {
            self.is_open = true;
            self.una = segment.ack;
        }
        if !self.is_open {
            return Vec::new();
        }
        let taken = segment.ack.wrapping_sub(self.una) as usize;
        if taken <= self.outgoing.len() {
            self.outgoing.drain(..taken);
            self.una = segment.ack;
        }
        if segment.seq == self.rcv && !self.got_fin {
            self.incoming.extend_from_slice(segment.payload);
            self.got_fin = segment.flags & FIN != 0;
            let length = u32::try_from(segment.payload.len()).expect("short") + u32::from(self.got_fin);
            self.rcv = self.rcv.wrapping_add(length);
        }
        let must_answer = !segment.payload.is_empty() || segment.flags & FIN != 0;
        if must_answer { vec![self.packet(ACK, 0, &[])] } else { Vec::new() }
    }

    /// Everything that is not acknowledged, once more, its SYN included.
    fn tick(&mut self) -> Vec<Vec<u8>> {
        if !self.is_open {
            let is_asked = self.rcv != 0;
            return if is_asked { vec![self.packet(SYN | ACK, 0, &[])] } else { Vec::new() };
        }
        let bytes: Vec<u8> = self.outgoing.iter().copied().take(8 * MSS).collect();
        let offset = |number: usize| u32::try_from(number * MSS).expect("little");
        bytes.chunks(MSS).enumerate().map(|(number, part)| self.packet(ACK | PSH, offset(number), part)).collect()
    }
}

/// What the network does to a packet.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Pass,
    Lose,
    Double,
    /// It comes so many packets later.
    Delay(usize),
    /// A bit is turned.
    Damage,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        4 => Just(Fate::Pass),
        1 => Just(Fate::Lose),
        1 => Just(Fate::Double),
        1 => (1_usize..6).prop_map(Fate::Delay),
        1 => Just(Fate::Damage),
    ]
}

/// One direction of a network. Its faults come to an end, and after each one two packets pass: a connection may die of more.
struct Line {
    fates: VecDeque<Fate>,
    spared: u32,
    packets: VecDeque<Vec<u8>>,
    late: Vec<(usize, Vec<u8>)>,
}

impl Line {
    fn new(fates: &[Fate]) -> Self {
        Self { fates: fates.iter().copied().collect(), spared: 0, packets: VecDeque::new(), late: Vec::new() }
    }

    fn carry(&mut self, mut packet: Vec<u8>) {
        self.late.iter_mut().for_each(|(left, _)| *left -= 1);
        for (_, due) in self.late.extract_if(.., |(left, _)| *left == 0) {
            self.packets.push_back(due);
        }
        let fate = self.fates.pop_front().filter(|_| self.spared == 0).unwrap_or(Fate::Pass);
        self.spared = if matches!(fate, Fate::Pass | Fate::Double) { self.spared.saturating_sub(1) } else { 2 };
        match fate {
            Fate::Pass => self.packets.push_back(packet),
            Fate::Lose => {}
            Fate::Double => self.packets.extend([packet.clone(), packet]),
            Fate::Delay(by) => self.late.push((by, packet)),
            Fate::Damage => {
                let last = packet.len() - 1;
                packet[last] ^= 0x10;
                self.packets.push_back(packet);
            }
        }
    }
}

const INDEX: u32 = 3;

fn addresses() -> Addresses {
    Addresses { first: Ipv4Addr::new(198, 18, 0, 2), peer: SocketAddrV4::new(GATEWAY, 8080) }
}

fn readies(stack: &mut Stack) -> Vec<Ready> {
    std::iter::from_fn(|| stack.next_ready()).collect()
}

/// Sends `up` to a peer that sends `down`, and ends; returns what each received.
fn exchange(up: &[u8], down: &[u8], fates: (&[Fate], &[Fate]), window: u16, read_bytes: usize) -> (Vec<u8>, Vec<u8>) {
    let mut stack = Stack::new(addresses(), 5, 7);
    let mut peer = Peer::new(addresses().peer, addresses().of(INDEX), down, window);
    let (mut there, mut back) = (Line::new(fates.0), Line::new(fates.1));
    let (mut written, mut received) = (0, Vec::new());
    let mut buffer = vec![0; read_bytes];
    stack.connect(INDEX);
    // Faults come to an end, and with them what they can cost: a time-out each, and those double.
    for turn in 0..40_000_u64 {
        stack.expire(turn * TICK_MS);
        while written < up.len() {
            match stack.write(INDEX, &up[written..]) {
                Ok(count) => written += count,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    break;
                }
            }
        }
        readies(&mut stack);
        loop {
            match stack.read(INDEX, &mut buffer) {
                Ok(count) => received.extend_from_slice(&buffer[..count]),
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected), "{error}");
                    break;
                }
            }
        }
        stack.acknowledge();
        let packets: Vec<Vec<u8>> = stack.packets().map(<[u8]>::to_vec).collect();
        stack.clear_packets();
        packets.into_iter().for_each(|packet| there.carry(packet));
        while let Some(packet) = there.packets.pop_front() {
            // The kernel drops what is damaged before anybody sees it.
            if Segment::decode(&packet).is_ok() {
                peer.input(&packet).into_iter().for_each(|packet| back.carry(packet));
            }
        }
        peer.tick().into_iter().for_each(|packet| back.carry(packet));
        while let Some(packet) = back.packets.pop_front() {
            stack.input(&packet);
        }
        if received.len() >= down.len() && written == up.len() && stack.stands(INDEX).is_ok() {
            stack.close(INDEX, Ending::Orderly);
        }
        if peer.got_fin {
            break;
        }
    }
    (peer.incoming, received)
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 31 + at / 251) % 256).expect("a byte")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the network does to packets, both sides get what the other sent, whole and in order, with windows narrow and wide.
    #[test]
    fn both_sides_get_the_same_bytes(
        up in 0_usize..30_000,
        down in 0_usize..30_000,
        there in prop::collection::vec(fate(), 0..60),
        back in prop::collection::vec(fate(), 0..60),
        window in prop_oneof![Just(1_u16), 100..5000_u16, Just(65_535)],
        read_bytes in prop_oneof![Just(100_usize), Just(4096)],
    ) {
        let up = if window == 1 { bytes(up % 50) } else { bytes(up) };
        let down = bytes(down);
        let (at_peer, at_client) = exchange(&up, &down, (&there, &back), window, read_bytes);
        prop_assert_eq!((at_peer.len(), at_client.len()), (up.len(), down.len()));
        prop_assert!(at_peer == up && at_client == down);
    }

    /// No packet, however wrong, makes the stack stumble, in any phase.
    #[test]
    fn any_packet_is_borne(
        steps in prop::collection::vec((any::<u8>(), any::<u32>(), any::<u32>(), any::<u16>(), 0_usize..9, 0_u8..8), 0..60),
    ) {
        let mut stack = Stack::new(addresses(), 2, 1);
        for (flags, seq, ack, window, length, act) in steps {
            // Numbers near those in use are met often.
            let near = |number: u32| if number & 1 == 0 { number % 16 } else { number };
            let target = addresses().of(u32::from(act & 1));
            let payload = bytes(length);
            let mut packet = Vec::new();
            let (seq, ack) = (near(seq), near(ack));
            Segment { source: addresses().peer, target, seq, ack, flags, window, payload: &payload }.encode(&mut packet);
            stack.input(&packet);
            match act {
                0 => stack.connect(0),
                1 => stack.close(0, Ending::Orderly),
                2 => stack.close(0, Ending::Reset),
                3 => drop(stack.write(0, b"some")),
                4 => drop(stack.read(0, &mut [0; 3])),
                5 => stack.expire(u64::from(window) * 10),
                6 => stack.acknowledge(),
                _ => stack.input(&payload),
            }
            stack.packets().for_each(|packet| assert!(Segment::decode(packet).is_ok()));
            stack.clear_packets();
            readies(&mut stack);
        }
    }
}

/// Opens a client of a stack at a peer; returns both.
fn open() -> (Stack, Peer) {
    let mut stack = Stack::new(addresses(), 5, 9);
    let mut peer = Peer::new(addresses().peer, addresses().of(INDEX), b"", 65_535);
    stack.connect(INDEX);
    for _ in 0..2 {
        for packet in sent(&mut stack) {
            peer.input(&packet).iter().for_each(|packet| stack.input(packet));
        }
        stack.acknowledge();
    }
    assert!(stack.stands(INDEX).is_ok() && peer.is_open);
    (stack, peer)
}

fn sent(stack: &mut Stack) -> Vec<Vec<u8>> {
    let packets = stack.packets().map(<[u8]>::to_vec).collect();
    stack.clear_packets();
    packets
}

/// What is written before the connection stands leaves with the answer to SYN ACK, and what is answered needs no ACK of its own.
#[test]
fn a_request_costs_no_packet_more() {
    let mut stack = Stack::new(addresses(), 5, 9);
    let mut peer = Peer::new(addresses().peer, addresses().of(INDEX), b"", 65_535);
    stack.connect(INDEX);
    assert_eq!(stack.write(INDEX, b"GET").ok(), Some(3));
    let syn = sent(&mut stack);
    assert_eq!(syn.len(), 1);
    stack.input(&peer.input(&syn[0])[0]);
    stack.acknowledge();
    let request = sent(&mut stack);
    assert_eq!(request.len(), 1);
    peer.input(&request[0]);
    assert_eq!(peer.incoming, b"GET");
    peer.outgoing.extend(b"101");
    peer.tick().iter().for_each(|packet| stack.input(packet));
    assert_eq!(stack.read(INDEX, &mut [0; 9]).ok(), Some(3));
    assert_eq!(stack.write(INDEX, b"HELLO").ok(), Some(5));
    stack.acknowledge();
    let hello = sent(&mut stack);
    assert_eq!(hello.len(), 1);
    peer.input(&hello[0]);
    assert!(peer.outgoing.is_empty() && peer.incoming == b"GETHELLO");
}

/// A reset counts only with the number that is expected (RFC 5961 3.2); a refusal and silence have their names.
#[test]
fn a_connection_ends_for_a_reason() {
    let (mut stack, peer) = open();
    readies(&mut stack);
    stack.input(&peer.packet(RST, 1, &[]));
    assert!(stack.stands(INDEX).is_ok());
    stack.acknowledge();
    assert_eq!(sent(&mut stack).len(), 1, "it is challenged");
    stack.input(&peer.packet(RST, 0, &[]));
    assert_eq!(stack.read(INDEX, &mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(readies(&mut stack).iter().any(|ready| ready.index == INDEX && ready.ended));

    let mut stack = Stack::new(addresses(), 5, 9);
    stack.connect(INDEX);
    let syn = sent(&mut stack);
    let seq = Segment::decode(&syn[0]).unwrap().seq;
    let refusal = Peer { rcv: seq.wrapping_add(1), ..Peer::new(addresses().peer, addresses().of(INDEX), b"", 0) };
    stack.input(&refusal.packet(RST | ACK, 0, &[]));
    assert_eq!(stack.stands(INDEX).unwrap_err().kind(), ErrorKind::ConnectionRefused);

    stack.connect(INDEX);
    sent(&mut stack);
    (0..2000).for_each(|turn| stack.expire(turn * TICK_MS));
    assert_eq!(sent(&mut stack).len(), 6, "sent again, each time later");
    assert_eq!(stack.stands(INDEX).unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(stack.counts().resent, 6);
}

/// The end of the peer comes behind its last byte, once, and who closes resets nobody.
#[test]
fn the_end_comes_last() {
    let (mut stack, mut peer) = open();
    sent(&mut stack);
    stack.input(&peer.packet(ACK | FIN, 0, b"bye"));
    let mut buffer = [0; 8];
    assert_eq!(stack.read(INDEX, &mut buffer).ok(), Some(3));
    assert_eq!(stack.read(INDEX, &mut buffer).ok(), Some(0));
    stack.close(INDEX, Ending::Orderly);
    let last = sent(&mut stack);
    assert_eq!(last.len(), 1);
    let fin = Segment::decode(&last[0]).unwrap();
    assert_eq!((fin.flags & (FIN | RST), fin.ack), (FIN, peer.una.wrapping_add(4)));
    peer.una = fin.ack;
    peer.input(&last[0]).iter().for_each(|packet| stack.input(packet));
    assert_eq!(stack.stands(INDEX).unwrap_err().kind(), ErrorKind::NotConnected);
    // Whoever speaks to a connection that is no more is told.
    stack.input(&peer.packet(ACK, 0, b"late"));
    assert_eq!(Segment::decode(&sent(&mut stack)[0]).unwrap().flags, RST);
}

/// What is for nobody here is counted and answered by nothing.
#[test]
fn strays_are_counted() {
    let mut stack = Stack::new(addresses(), 2, 1);
    let (peer, other) = (addresses().peer, SocketAddrV4::new(GATEWAY, 81));
    for (source, target) in [(other, addresses().of(0)), (peer, addresses().of(2)), (peer, other)] {
        stack.input(&Peer::new(source, target, b"", 0).packet(SYN, 0, b""));
    }
    stack.input(b"no packet");
    assert_eq!((stack.counts().strays, sent(&mut stack).len()), (4, 0));
}

/// A gateway that phantoms reach, whose secret is in a file: others than this machine could reach it, as far as it knows.
fn start(place: &Place) -> String {
    let secret = place.data.with_extension("secret");
    std::fs::write(&secret, [b's'; 40]).expect("a secret");
    let command = place
        .command()
        .replace("--listen 127.0.0.1:", "--listen 0.0.0.0:")
        .replace("--admin-listen 0.0.0.0:", "--admin-listen 127.0.0.1:");
    format!("{command} --auth-secret-file {}", secret.display())
}

/// The load generator with phantoms against it.
fn phantoms(place: &Place, scenario: &str, start: &str, more: &str) -> String {
    let (port, admin) = (place.port, place.admin);
    format!(
        "{} {scenario} --back-end phantom --url ws://{GATEWAY}:{port}/ws --admin 127.0.0.1:{admin} --secret-file {} --json {} --start '{start}' {more}",
        env!("CARGO_BIN_EXE_loadgen"),
        place.data.with_extension("secret").display(),
        place.data.with_extension("json").display(),
    )
}

/// Hundreds of phantoms are welcomed by the real gateway, answer its pings, are pinged back and go, over a device for each thread; the
/// devices are gone with the program, also when it is killed.
#[test]
fn phantoms_are_welcomed_and_leave_nothing() {
    let place = Place::new();
    let start = format!("{} --protocol-ping-ms 4000 --drain-lead-ms 0", start(&place));
    let more = "--threads 2 -n 600 --warm-up 1 --seconds 10 --echo-rate 300 --echo-seconds 1";
    let load = phantoms(&place, "idle", &start, more);
    let output = in_own_network(&format!("{load}; code=$?; ip -brief link show | grep tgphantom && exit 9; exit $code"));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report = std::fs::read_to_string(place.data.with_extension("json")).expect("a report");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let held = &report["held"];
    assert_eq!((held["held"].as_u64(), held["opened"].as_u64()), (Some(600), Some(600)), "{}", said(&output));
    assert_eq!((held["back_end"].as_str(), held["gateway_open"].clone()), (Some("phantom"), serde_json::json!([600, 600])));
    assert!(held["pings_answered"].as_u64().is_some_and(|count| count >= 1200), "{}", said(&output));
    assert_eq!(held["echo"]["missing"].as_u64(), Some(0), "{}", said(&output));
    assert!(held["empty_s"].as_f64().is_some(), "the gateway notices that all have gone\n{}", said(&output));

    let load = load.replace("--seconds 10", "--seconds 60");
    let kill = format!(
        "{load} & pid=$!; n=0; until ip link show tgphantom1 || [ $n = 600 ]; do n=$((n+1)); sleep 0.1; done; \
         ip link show tgphantom1 || exit 8; kill -9 $pid; wait $pid; ip link show tgphantom1 && exit 9; exit 0"
    );
    let output = in_own_network(&kill);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    std::fs::remove_file(place.data.with_extension("secret")).expect("a secret");
}

/// Scenarios of messages go over phantoms as over sockets, in segments of any size, and the ledger is clean.
#[test]
fn phantoms_carry_messages() {
    let place = Place::new();
    let start = start(&place);
    let more = "-n 40 --payload 10-20000 --rate 100 --churn 5 --group-share 0.2 --warm-up 0 --seconds 2";
    let output = in_own_network(&phantoms(&place, "chat", &start, more));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("PASS"), "{}", said(&output));
    std::fs::remove_file(place.data.with_extension("secret")).expect("a secret");
}

/// Who may not make a device is told what is missing, and a gateway elsewhere is none of its.
#[test]
fn what_is_missing_is_named() {
    let run = |lead: &str, url: &str| {
        let line = format!("{lead} {} idle --back-end phantom --url {url}", env!("CARGO_BIN_EXE_loadgen"));
        in_own_network(&line)
    };
    let output = run("setpriv --bounding-set -net_admin --inh-caps -net_admin", "ws://198.18.0.1:8080/ws");
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains("needs CAP_NET_ADMIN"), "{}", said(&output));
    let output = run("", "ws://127.0.0.1:8080/ws");
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains("--url ws://198.18.0.1:PORT/ws"), "{}", said(&output));
}

/// Runs a script in namespaces of its own, of networks and processes: whatever it leaves ends with it.
fn in_own_network(script: &str) -> std::process::Output {
    let script = format!("ip link set lo up && {{ {script}; }}");
    let own = ["--net", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let output = Command::new("unshare").args(own).args(["sh", "-c", &script]).output();
    let output = output.expect("this test needs unshare, of util-linux");
    assert!(
        !said(&output).contains("unshare: "),
        "this test needs root, or CAP_SYS_ADMIN and CAP_NET_ADMIN, for a network namespace and a TUN device: {}",
        said(&output)
    );
    output
}
