//! Two receivers of WebSocket bytes, to be held against one another: the gateway's, fed in any chunks, and a slow obvious one.

use tidegate::conn::carry::Stashes;
use tidegate::conn::connection::{Event, Kinds, Reader, Receive, ReceiveLimits, Stop};
use tidegate::conn::deflate::{Fault, Inflater};
use tidegate::limits::FRAGMENTS_PER_MESSAGE_MAX;
use tidegate::wire::frame::Reserved;
use tidegate::wire::violation::Violation;

/// An event, kept.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Seen {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
    Broken(Violation),
    Full,
}

/// Feeds `stream` to the gateway's receiver in pieces of the sizes `chunks`, over and over, and checks what must hold on the way.
pub fn receive(stream: &[u8], chunks: &[usize], limits: ReceiveLimits, stash_bytes_max: usize) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut receive = Receive::default();
    let mut stashes = Stashes::new(stash_bytes_max);
    let mut sizes = chunks.iter().cycle();
    let mut at = 0;
    while at < stream.len() {
        let size = (*sizes.next().expect("a size")).clamp(1, stream.len() - at);
        let mut lent = stream[at..at + size].to_vec();
        at += size;
        let mut reader = Reader::new(&mut lent, 3);
        loop {
            match reader.next(&mut receive, &mut stashes, &limits) {
                Ok(Some(event)) => seen.push(keep(event)),
                Ok(None) => break,
                Err(Stop::Violation(rule)) => seen.push(Seen::Broken(rule)),
                Err(Stop::StashesFull) => {
                    receive.stop(&mut stashes);
                    seen.push(Seen::Full);
                }
            }
        }
        assert!(reader.rest().is_empty(), "bytes were left behind");
        // The next size class is four times the last one, and message and control frame may each have begun the first.
        assert!(stashes.used_bytes() <= 4 * at + 512, "{} bytes held for {at} that came", stashes.used_bytes());
        assert!(stashes.used_bytes() + stashes.free_bytes() <= stash_bytes_max, "more is held than may be");
        assert!(!receive.is_idle() || stashes.used_count() == 0, "an idle connection keeps a stash");
    }
    receive.stop(&mut stashes);
    assert_eq!((stashes.used_count(), stashes.used_bytes()), (0, 0), "a stash outlived its connection");
    seen
}

fn keep(event: Event<'_>) -> Seen {
    match event {
        Event::Text(payload) => Seen::Text(payload.to_vec()),
        Event::Binary(payload) => Seen::Binary(payload.to_vec()),
        Event::Ping(payload) => Seen::Ping(payload.to_vec()),
        Event::Pong(payload) => Seen::Pong(payload.to_vec()),
        Event::Close { code, reason } => Seen::Close(code, reason.to_owned()),
    }
}

/// The same from the words of RFC 6455, with the whole stream in view and a copy at every step.
pub fn receive_slowly(stream: &[u8], limits: ReceiveLimits) -> Vec<Seen> {
    let mut seen = Vec::new();
    if let Err(rule) = read_slowly(stream, limits, &mut seen) {
        seen.push(Seen::Broken(rule));
    }
    seen
}

fn read_slowly(mut rest: &[u8], limits: ReceiveLimits, seen: &mut Vec<Seen>) -> Result<(), Violation> {
    let mut open: Option<(bool, Vec<u8>, u32)> = None;
    let mut compressed = false;
    loop {
        let Some(&first) = rest.first() else { return Ok(()) };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        let deflate = first & 0x40 != 0 && limits.reserved == Reserved::Deflate;
        require(first & 0x30 == 0 && (deflate || first & 0x40 == 0), Violation::ReservedBit)?;
        require([0, 1, 2, 8, 9, 10].contains(&opcode), Violation::UnknownOpcode)?;
        require(!deflate || opcode == 1 || opcode == 2, Violation::ReservedBit)?;
        require(opcode < 8 || fin, Violation::FragmentedControl)?;
        let Some(&second) = rest.get(1) else { return Ok(()) };
        require(second & 0x80 != 0, Violation::Unmasked)?;
        let short = second & 0x7f;
        require(opcode < 8 || short <= 125, Violation::OversizedControl)?;
        let length_bytes = if short == 126 {
            2
        } else if short == 127 {
            8
        } else {
            0
        };
        require(length_bytes < 8 || rest.get(2).is_none_or(|top| *top < 128), Violation::LengthTopBit)?;
        if rest.len() < 2 + length_bytes {
            return Ok(());
        }
        let mut length = rest[2..2 + length_bytes].iter().fold(0_u64, |sum, byte| sum * 256 + u64::from(*byte));
        match length_bytes {
            0 => length = u64::from(short),
            2 => require(length > 125, Violation::LengthNotMinimal)?,
            _ => require(length > 65_535, Violation::LengthNotMinimal)?,
        }
        if rest.len() < 2 + length_bytes + 4 {
            return Ok(());
        }
        let mask = &rest[2 + length_bytes..][..4];
        let after = &rest[2 + length_bytes + 4..];
        if opcode < 8 {
            require(opcode != 0 || open.is_some(), Violation::ContinuationWithoutStart)?;
            require(opcode == 0 || open.is_none(), Violation::StartInsideMessage)?;
            require(opcode != 1 || limits.kinds != Kinds::Binary, Violation::TextNotAccepted)?;
            require(opcode != 2 || limits.kinds != Kinds::Text, Violation::BinaryNotAccepted)?;
            compressed = if opcode == 0 { compressed } else { deflate };
            let (_, so_far, fragments) = open.get_or_insert((opcode == 1, Vec::new(), 0));
            require(so_far.len() as u64 + length <= u64::from(limits.message_bytes_max), Violation::MessageTooLarge)?;
            *fragments += 1;
            require(*fragments <= FRAGMENTS_PER_MESSAGE_MAX, Violation::TooManyFragments)?;
        }
        let here = usize::try_from(length).unwrap_or(usize::MAX).min(after.len());
        let payload: Vec<u8> = (0..here).map(|at| after[at] ^ mask[at % 4]).collect();
        let whole = here as u64 == length;
        rest = &after[here..];
        if opcode < 8 {
            let (text, message, _) = open.as_mut().expect("opened above");
            message.extend(payload);
            if *text
                && !compressed
                && let Err(error) = std::str::from_utf8(message)
            {
                let ended = whole && fin;
                require(error.error_len().is_none() && !ended, Violation::TextNotUtf8)?;
            }
            if whole && fin {
                let (text, mut message, _) = open.take().expect("opened above");
                if compressed {
                    message = inflate(&message, limits.message_bytes_max as usize)?;
                    require(!text || std::str::from_utf8(&message).is_ok(), Violation::TextNotUtf8)?;
                }
                seen.push(if text { Seen::Text(message) } else { Seen::Binary(message) });
            }
        } else if whole {
            match opcode {
                9 => seen.push(Seen::Ping(payload)),
                10 => seen.push(Seen::Pong(payload)),
                _ => {
                    seen.push(close_slowly(&payload)?);
                    return Ok(());
                }
            }
        }
        if !whole {
            return Ok(());
        }
    }
}

fn inflate(message: &[u8], bytes_max: usize) -> Result<Vec<u8>, Violation> {
    let mut out = Vec::new();
    match Inflater::default().inflate(message, bytes_max, &mut out) {
        Ok(()) => Ok(out),
        Err(Fault::TooLarge) => Err(Violation::MessageTooLarge),
        Err(Fault::Invalid) => Err(Violation::DeflateInvalid),
    }
}

fn close_slowly(payload: &[u8]) -> Result<Seen, Violation> {
    require(payload.len() != 1, Violation::CloseBodyTooShort)?;
    if payload.is_empty() {
        return Ok(Seen::Close(None, String::new()));
    }
    let code = u16::from(payload[0]) * 256 + u16::from(payload[1]);
    let named = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014].contains(&code);
    require(named || (3000..5000).contains(&code), Violation::CloseCodeInvalid)?;
    let reason = String::from_utf8(payload[2..].to_vec()).map_err(|_| Violation::CloseReasonNotUtf8)?;
    Ok(Seen::Close(Some(code), reason))
}

fn require(holds: bool, rule: Violation) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(rule) }
}
