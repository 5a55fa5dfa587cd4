//! A client that sends as fast as it can, whatever it is told: how long until it is cut off, and what others notice of it.
//!
//! It comes back as another user several times a second.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tidegate::ids::Cmid;
use tidegate::wire::envelope::{ClientFrame, Encoding, Send, encode_client};

use crate::Common;
use crate::client::{OPENING_WAIT, greet, message};
use crate::gateway::{Gateway, metric_sum};
use crate::load::{self, Load};
use crate::results::{Run, spread};

/// One measurement: honest clients alone, then beside the abuser.
pub fn run(common: &Common) -> Result<Run, String> {
    // The bounds on one client are what is measured: they are as by default.
    let default = ["protocol.send_rate=20", "protocol.send_burst=128"].map(str::to_owned);
    let settings = default.into_iter().chain(common.settings.iter().cloned()).collect();
    let gateway = Gateway::start_apart(&Common { settings, ..common.clone() })?;
    let honest =
        format!("chat -n {} --rate {RATE} --warm-up {} --seconds {}", common.connections, common.warm_up, common.seconds);
    let alone = load::run(&gateway, &honest)?;
    let mint = gateway.minter()?;
    let mut load = Load::start(&gateway, &honest)?;
    let mut cut_s = Vec::new();
    let mut sent = 0;
    while load.is_running() {
        let user = format!("abuser-{}", cut_s.len());
        let (seconds, frames) = abuse(&gateway, &user, &mint(&user)).map_err(|error| format!("{user}: {error}"))?;
        cut_s.push(seconds);
        sent += frames;
        std::thread::sleep(COMES_BACK_AFTER);
    }
    let beside = load.finish()?;
    let closed = metric_sum(&gateway.metrics()?, "tidegate_closes_total{cause=\"rate_limited\"}");
    if closed < cut_s.len() as f64 {
        return Err(format!("{closed} of {} abusers were closed for their rate", cut_s.len()));
    }
    let p99 = "/stages/0/deliver_us/p99";
    let (abusers, cut) = (cut_s.len(), spread(cut_s));
    let mut run = Run::default();
    run.add("abusers_cut_count", abusers as f64);
    run.add("abuser_frames_count", f64::from(sent));
    run.add("cut_after_s_p50", cut.median);
    run.add("cut_after_s_max", cut.most);
    run.add("deliver_us_p99_alone", alone.number(p99)?);
    run.add("deliver_us_p99", beside.number(p99)?);
    run.add("deliver_p99_ratio", beside.number(p99)? / alone.number(p99)?);
    Ok(run)
}

/// Sends until it is closed: how long that took from the first message on, seconds, and how many it sent.
fn abuse(gateway: &Gateway, user: &str, token: &str) -> std::io::Result<(f64, u32)> {
    let mut stream = TcpStream::connect(gateway.address)?;
    stream.set_read_timeout(Some(OPENING_WAIT))?;
    greet(&mut stream, "localhost", token)?;
    stream.set_nonblocking(true)?;
    let begun = Instant::now();
    let conv = format!("d:{user}:victim");
    let mut answers = vec![0; 64 * 1024];
    for number in 1_u32.. {
        if begun.elapsed() > CUT_WITHIN {
            return Err(std::io::Error::other("it sends, and nobody cuts it off"));
        }
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
        let frame = message(|bytes| encode_client(Encoding::Binary, &ClientFrame::Send(send), bytes));
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Ok((begun.elapsed().as_secs_f64(), number)),
            }
            match stream.read(&mut answers) {
                Ok(0) => return Ok((begun.elapsed().as_secs_f64(), number)),
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Ok((begun.elapsed().as_secs_f64(), number)),
                _ => {}
            }
        }
    }
    Ok((begun.elapsed().as_secs_f64(), u32::MAX))
}

/// Far beyond the time in which a client that ignores its refusals is cut off.
const CUT_WITHIN: Duration = Duration::from_secs(60);
const COMES_BACK_AFTER: Duration = Duration::from_millis(250);
/// Messages per second of the honest.
const RATE: u32 = 500;
