//! A client that sends as fast as it can, whatever it is told: how long until it is cut off, and what others notice of it.
//!
//! It comes back several times a second, and is refused as long as the gateway remembers it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::nice;
use tidegate::ids::Cmid;
use tidegate::wire::envelope::{ClientFrame, Encoding, Send, encode_client};

use crate::Common;
use crate::client::{greet, message};
use crate::gateway::{Gateway, metric_sum};
use crate::load::{self, Load, Report};
use crate::results::{Run, spread};

/// One measurement: honest clients alone and beside the abuser, in turns, so that what else the machine does is the same for both.
pub fn run(common: &Common) -> Result<Run, String> {
    // The bounds on one client are what is measured: they are as by default.
    let default = ["protocol.send_rate=20", "protocol.send_burst=128"].map(str::to_owned);
    let settings = default.into_iter().chain(common.settings.iter().cloned()).collect();
    let gateway = Gateway::start_apart(&Common { settings, ..common.clone() })?;
    let honest =
        format!("chat -n {} --rate {RATE} --warm-up {} --seconds {}", common.connections, common.warm_up, common.seconds);
    let token = gateway.minter()?(ABUSER);
    let (mut alone, mut beside, mut abuses) = (Turns::default(), Turns::default(), Abuses::default());
    for _ in 0..TURNS {
        alone.add(&load::run(&gateway, &honest)?)?;
        let mut load = Load::start(&gateway, &honest)?;
        std::thread::scope(|scope| {
            let abuser = scope.spawn(|| {
                nice(19).map_err(|error| format!("nice: {error}"))?;
                come_again(&gateway, &token, &mut abuses, || load.is_running()).map_err(|error| format!("the abuser: {error}"))
            });
            abuser.join().map_err(|_| "a thread panicked".to_owned())?
        })?;
        beside.add(&load.finish()?)?;
    }
    let closed = metric_sum(&gateway.metrics()?, "tidegate_closes_total{cause=\"rate_limited\"}");
    if closed < (abuses.cut_s.len() + abuses.refused) as f64 {
        return Err(format!("{closed} of {} abusers were closed for their rate", abuses.cut_s.len() + abuses.refused));
    }
    let ratios = spread(beside.deliver_us_p99.iter().zip(&alone.deliver_us_p99).map(|(beside, alone)| beside / alone).collect());
    let (cut_count, cut) = (abuses.cut_s.len(), spread(abuses.cut_s));
    let median = |values: Vec<f64>| spread(values).median;
    let mut run = Run::default();
    run.add("turns_count", f64::from(TURNS));
    run.add("abusers_cut_count", cut_count as f64);
    run.add("abuser_refused_count", abuses.refused as f64);
    run.add("abuser_frames_count", abuses.sent as f64);
    run.add("cut_after_s_p50", cut.median);
    run.add("cut_after_s_max", cut.most);
    run.add("generator_late_us_p99_alone", median(alone.late_us_p99));
    run.add("generator_late_us_p99", median(beside.late_us_p99));
    run.add("deliver_us_p99_alone", median(alone.deliver_us_p99));
    run.add("deliver_us_p99", median(beside.deliver_us_p99));
    run.add("deliver_p99_ratio", ratios.median);
    run.add("deliver_p99_ratio_least", ratios.least);
    run.add("deliver_p99_ratio_most", ratios.most);
    Ok(run)
}

/// What honest clients noticed, turn by turn.
#[derive(Default)]
struct Turns {
    deliver_us_p99: Vec<f64>,
    /// The generator's own lateness.
    late_us_p99: Vec<f64>,
}

impl Turns {
    fn add(&mut self, report: &Report) -> Result<(), String> {
        self.deliver_us_p99.push(report.number("/stages/0/deliver_us/p99")?);
        self.late_us_p99.push(report.number("/stages/0/pacing_us/p99")?);
        Ok(())
    }
}

/// What an abuser went through.
#[derive(Default)]
struct Abuses {
    /// How long it sent until it was cut off, each time, seconds.
    cut_s: Vec<f64>,
    /// Messages in all.
    sent: usize,
    /// How often it was not let in.
    refused: usize,
}

/// Abuses, and comes back, while it `may`.
fn come_again(gateway: &Gateway, token: &str, abuses: &mut Abuses, mut may: impl FnMut() -> bool) -> std::io::Result<()> {
    let frames = frames();
    while may() {
        match abuse(gateway, token, &frames)? {
            Some((seconds, sent)) => {
                abuses.cut_s.push(seconds);
                abuses.sent += sent;
            }
            None => abuses.refused += 1,
        }
        std::thread::sleep(COMES_BACK_AFTER);
    }
    Ok(())
}

/// Sends until it is closed: how long that took from the first message on, seconds, and how many it sent. `None`: it was not let in.
///
/// Much with each system call, and at the least priority: the honest, who are measured, share its core.
fn abuse(gateway: &Gateway, token: &str, frames: &[Vec<u8>]) -> std::io::Result<Option<(f64, usize)>> {
    let mut stream = TcpStream::connect(gateway.address)?;
    stream.set_read_timeout(Some(CUT_WITHIN))?;
    if !greet(&mut stream, "localhost", token)? {
        return Ok(None);
    }
    let begun = Instant::now();
    let mut reader = stream.try_clone()?;
    // It reads what it is told, and does not care.
    let heard = std::thread::spawn(move || {
        let mut answers = vec![0; 64 * 1024];
        loop {
            match reader.read(&mut answers) {
                Ok(1..) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
                _ => {
                    // Whoever writes still, writes no more.
                    drop(reader.shutdown(Shutdown::Both));
                    return Some(begun.elapsed().as_secs_f64());
                }
            }
        }
    });
    let mut sent = 0;
    for batch in frames.chunks(AT_ONCE) {
        if stream.write_all(&batch.concat()).is_err() {
            break;
        }
        sent += batch.len();
    }
    let cut_s = heard.join().map_err(|_| std::io::Error::other("a thread panicked"))?;
    let cut_s = cut_s.ok_or_else(|| std::io::Error::other("it sends, and nobody cuts it off"))?;
    Ok(Some((cut_s, sent)))
}

/// More messages than anybody is listened to.
fn frames() -> Vec<Vec<u8>> {
    let conv = format!("d:{ABUSER}:victim");
    let frame = |number: u32| {
        let mut cmid = [0; 16];
        cmid[..4].copy_from_slice(&number.to_le_bytes());
        let send = Send {
            rid: number,
            cmid: Cmid(cmid),
            flags: 0,
            kind: 0,
            ttl_s: 0,
            trace: None,
            conv: conv.as_str().into(),
            payload: b"again and again".as_slice().into(),
        };
        message(|bytes| encode_client(Encoding::Binary, &ClientFrame::Send(send), bytes))
    };
    (1..=FRAMES).map(frame).collect()
}

const ABUSER: &str = "abuser";
/// Pairs of turns.
const TURNS: u32 = 7;
const FRAMES: u32 = 8_192;
/// Messages with one system call.
const AT_ONCE: usize = 256;
/// Far beyond the time in which a client that ignores its refusals is cut off.
const CUT_WITHIN: Duration = Duration::from_secs(60);
const COMES_BACK_AFTER: Duration = Duration::from_millis(250);
/// Messages per second of the honest.
const RATE: u32 = 500;
