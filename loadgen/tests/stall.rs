//! The generator measures itself: a server with a planted stall knows when it answered each message, and the report must agree.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use support::said;
use tidegate::ids::Mid;
use tidegate::wire::envelope::{ClientFrame, Encoding, Frames, ServerFrame, Welcome, encode_server};
use tidegate::wire::frame::{self, Opcode, SERVER_HEADER_BYTES_MAX, Sender};
use tidegate::wire::mask;

/// One message in two milliseconds for five seconds, and no answer in the second of these: a tenth of that second is one percent of
/// all, so p99 lies near 0.95 s. A generator that waits for answers would send nothing meanwhile, and see one slow message.
///
/// A stall that nobody planted is in the one figure or in the other: such a run is made once more, twice at most.
#[test]
fn a_planted_stall_is_reported() {
    let mut runs = Vec::new();
    while runs.len() < 3 {
        let (told, known) = told_and_known();
        runs.push((told, known));
        if known > 0.8 && (told - known).abs() <= known * 0.02 {
            return;
        }
    }
    panic!("told and known, in seconds: {runs:?}");
}

/// p99 by the report and by the server, seconds.
fn told_and_known() -> (f64, f64) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let server = std::thread::spawn(move || serve(listener.accept().expect("a client").0));
    let folder = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("stall-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("secret"), [b's'; 40]).expect("a secret");
    let json = folder.join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["chat", "--url", &format!("ws://127.0.0.1:{port}/ws"), "-n", "1", "--rate", "500", "--warm-up", "0"])
        .args(["--seconds", "5", "--data-dir"])
        .arg(&folder)
        .arg("--json")
        .arg(&json)
        .output()
        .expect("the load generator runs");
    let mut answers = server.join().expect("the server ends");
    answers.truncate(2_500);
    // The clocks agree where the way was shortest.
    let shortest = answers.iter().map(|(answered, intended)| answered - intended).fold(f64::INFINITY, f64::min);
    let mut truth: Vec<f64> = answers.iter().map(|(answered, intended)| answered - intended - shortest).collect();
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json).expect("a report")).expect("JSON");
    truth.sort_by(f64::total_cmp);
    assert!(truth.len() >= 2_400, "{}", said(&output));
    let known = truth[truth.len() * 99 / 100];
    let told = report["stages"][0]["sent_us"]["p99"].as_f64().expect("a figure") / 1e6;
    std::fs::remove_dir_all(&folder).expect("a folder");
    (told, known)
}

/// Answers everything at once but for the stall; returns of each message when it was answered, by the server's own clock, and when it was
/// meant to leave, by the generator's.
fn serve(mut stream: TcpStream) -> Vec<(f64, f64)> {
    stream.set_nodelay(true).expect("a socket");
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    let mut answers = Vec::new();
    let mut begun: Option<Instant> = None;
    let mut is_upgraded = false;
    let mut seq = 0;
    loop {
        let Ok(count @ 1..) = stream.read(&mut chunk) else { return answers };
        bytes.extend_from_slice(&chunk[..count]);
        let mut out = Vec::new();
        if !is_upgraded && let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            bytes.drain(..end + 4);
            out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
            is_upgraded = true;
        }
        while is_upgraded && let Ok(Some(header)) = frame::decode(&bytes, Sender::Client) {
            let end = header.header_bytes + usize::try_from(header.payload_bytes).expect("in memory");
            if bytes.len() < end {
                break;
            }
            let mut whole: Vec<u8> = bytes.drain(..end).skip(header.header_bytes).collect();
            let _ = mask::apply(&mut whole, header.mask);
            if header.opcode != Opcode::Binary {
                return answers;
            }
            let mut frames = Frames::new(Encoding::Binary, &whole);
            while let Ok(Some(one)) = frames.next_frame() {
                let answer = match one {
                    ClientFrame::Hello(_) => ServerFrame::Welcome(welcome()),
                    ClientFrame::Sync { rid, .. } => {
                        ServerFrame::SyncPage { rid, flags: 0, since: 1, cursor: "".into(), entries: Vec::new() }
                    }
                    ClientFrame::Send(send) => {
                        let intended = u64::from_le_bytes(send.payload[16..24].try_into().expect("eight bytes")) as f64 / 1e9;
                        let at = *begun.get_or_insert_with(Instant::now);
                        let since = at.elapsed();
                        if (STALL_FROM..STALL_TO).contains(&since) {
                            std::thread::sleep(STALL_TO - since);
                        }
                        answers.push((at.elapsed().as_secs_f64(), intended));
                        seq += 1;
                        ServerFrame::Sent { rid: send.rid, level: 2, flags: 0, seq, mid: Mid(seq) }
                    }
                    _ => continue,
                };
                let mut payload = Vec::new();
                encode_server(Encoding::Binary, &answer, &mut payload);
                let mut head = [0; SERVER_HEADER_BYTES_MAX];
                let len = frame::encode_server(&mut head, Opcode::Binary, payload.len());
                out.extend_from_slice(&head[..len]);
                out.extend_from_slice(&payload);
            }
        }
        if stream.write_all(&out).is_err() {
            return answers;
        }
    }
}

fn welcome() -> Welcome<'static> {
    Welcome {
        minor: 0,
        resumed: 0,
        level: 2,
        window: 256,
        send_window: 4096,
        caps: 0,
        ping_ms: 30_000,
        resume_ms: 0,
        dedup_s: 86_400,
        max_frame: 131_072,
        max_payload: 65_536,
        server_ms: 0,
        pos: 0,
        session: [1; 16],
        user: "stall".into(),
        node: "stall".into(),
        rate: 65_535,
        burst: 65_535,
    }
}

const STALL_FROM: Duration = Duration::from_secs(2);
const STALL_TO: Duration = Duration::from_secs(3);
