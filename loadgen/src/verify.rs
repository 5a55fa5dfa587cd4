//! The ledger: what was sent, acknowledged and received, and what does not fit together.
//!
//! Every payload carries its origin: which connection sent it, and the how-manieth message of that connection to that conversation it
//! is. The first who tells what stands at a place of a conversation (a sender by its SENT, a device by what it received) writes it
//! down; everybody later must agree. A device must receive 1, 2, 3, … without a hole. In the end the numbers of each sender must stand
//! in each conversation once, in order and without a hole, and every device must have come to the end.
//!
//! It judges twice. On the *wire*, each connection keeps what docs/protocol.md promises of it: `pos` counts by one, `seq` of a
//! conversation grows, SENT answers what was asked. Behind it, the *applications* compare what they hold. A client heals much of what
//! a network does to it, so a fault between gateway and client may show only on the wire.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tidegate::verify::What;

use crate::notes::Notes;

/// Smallest payload: the origin alone.
pub const PAYLOAD_BYTES_MIN: usize = 32;
/// Examples kept of each kind of finding.
const EXAMPLES_MAX: usize = 8;

/// Where a message comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The connection.
    pub sender: u32,
    /// Counts its messages to one conversation, from 1.
    pub number: u32,
    /// When it was meant to be sent, in nanoseconds since the run began.
    pub intended_ns: u64,
}

impl Origin {
    /// The payload that carries it, `bytes` long.
    #[must_use]
    pub fn payload(&self, run: u64, bytes: usize) -> Vec<u8> {
        let mut payload = Vec::with_capacity(bytes.max(PAYLOAD_BYTES_MIN));
        payload.extend_from_slice(&run.to_le_bytes());
        payload.extend_from_slice(&self.sender.to_le_bytes());
        payload.extend_from_slice(&self.number.to_le_bytes());
        payload.extend_from_slice(&self.intended_ns.to_le_bytes());
        let length = bytes.max(PAYLOAD_BYTES_MIN) as u64;
        payload.extend_from_slice(&length.to_le_bytes());
        payload.extend((PAYLOAD_BYTES_MIN..bytes).map(filler));
        payload
    }

    /// Reads a payload; `None` if it is not whole, or not of this run.
    #[must_use]
    pub fn read(run: u64, payload: &[u8]) -> Option<Self> {
        let word = |at: usize| payload.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let half = |at: usize| payload.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let rest = payload.get(PAYLOAD_BYTES_MIN..)?;
        let is_whole = word(0)? == run && word(24)? == payload.len() as u64;
        let is_intact = rest.iter().enumerate().all(|(at, &byte)| byte == filler(PAYLOAD_BYTES_MIN + at));
        (is_whole && is_intact).then_some(Self { sender: half(8)?, number: half(12)?, intended_ns: word(16)? })
    }
}

fn filler(at: usize) -> u8 {
    b'a' + u8::try_from(at * 7 % 26).expect("below 26")
}

/// Kinds of findings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A message, an answer or a delivery that should be there and is not.
    Lost,
    /// Something that came or stands there twice.
    Duplicate,
    /// Something before or after its turn.
    Disorder,
    /// Something else than what was sent, or nothing the protocol knows.
    Corrupt,
}

/// What was found, counted, with examples.
#[derive(Clone, Default, Debug, Serialize)]
pub struct Findings {
    /// See [`Kind::Lost`].
    pub lost: u64,
    /// See [`Kind::Duplicate`].
    pub duplicate: u64,
    /// See [`Kind::Disorder`].
    pub out_of_order: u64,
    /// See [`Kind::Corrupt`].
    pub corrupt: u64,
    /// The first of each kind.
    pub examples: Vec<String>,
}

impl Findings {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lost + self.duplicate + self.out_of_order + self.corrupt == 0
    }

    fn add(&mut self, kind: Kind, text: String) {
        let count = match kind {
            Kind::Lost => &mut self.lost,
            Kind::Duplicate => &mut self.duplicate,
            Kind::Disorder => &mut self.out_of_order,
            Kind::Corrupt => &mut self.corrupt,
        };
        *count += 1;
        if *count <= EXAMPLES_MAX as u64 {
            self.examples.push(format!("{kind:?}: {text}"));
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lost, duplicate, out_of_order, corrupt, examples } = self;
        write!(f, "{lost} lost, {duplicate} duplicate, {out_of_order} out of order, {corrupt} corrupt")?;
        examples.iter().try_for_each(|example| write!(f, "\n  {example}"))
    }
}

/// All conversations of a run; shared by all workers.
#[derive(Debug)]
pub struct Ledger {
    books: Vec<Mutex<Book>>,
    findings: Mutex<Findings>,
    notes: Option<Notes>,
}

/// One conversation: what stands at `seq` 1, 2, 3, …, packed; 0 is not known yet.
#[derive(Default, Debug)]
struct Book {
    places: Vec<u64>,
    highest: u64,
}

/// sender + 1 in 31 bits, acknowledged in one, number in 32.
fn pack(origin: Origin) -> u64 {
    (u64::from(origin.sender) + 1) << 33 | u64::from(origin.number)
}
const ACKNOWLEDGED: u64 = 1 << 32;
/// Places a conversation may have beyond what is known: a seq above that is no seq.
const LEAP_MAX: u64 = 1 << 24;

impl Ledger {
    /// Empty books for so many conversations.
    #[must_use]
    pub fn new(conversations: usize) -> Self {
        Self { books: (0..conversations).map(|_| Mutex::default()).collect(), findings: Mutex::default(), notes: None }
    }

    /// Writes down what happens, for a later `verify`.
    #[must_use]
    pub fn with_notes(self, notes: Option<Notes>) -> Self {
        Self { notes, ..self }
    }

    /// Something happened to a device; `what` is worked out only if it is written down.
    pub fn note(&self, device: u32, conv: &str, what: impl FnOnce() -> What) {
        if let Some(notes) = &self.notes {
            notes.note(device, conv, what());
        }
    }

    /// Writes down the rest.
    ///
    /// # Errors
    /// The kernel's.
    pub fn finish_notes(&self) -> std::io::Result<()> {
        self.notes.as_ref().map_or(Ok(()), Notes::finish)
    }

    /// A sender was told that its message stands at `seq`.
    pub fn acknowledged(&self, conv: u32, seq: u64, origin: Origin) {
        self.enter(conv, seq, origin, ACKNOWLEDGED);
    }

    /// A device holds a message.
    pub fn received(&self, conv: u32, seq: u64, origin: Origin) {
        self.enter(conv, seq, origin, 0);
    }

    /// Something is wrong.
    pub fn find(&self, kind: Kind, text: String) {
        lock(&self.findings).add(kind, text);
    }

    /// The highest seq that anybody told of.
    #[must_use]
    pub fn head(&self, conv: u32) -> u64 {
        lock(&self.books[conv as usize]).highest
    }

    /// What was found so far.
    #[must_use]
    pub fn findings(&self) -> Findings {
        lock(&self.findings).clone()
    }

    /// How much was found so far.
    #[must_use]
    pub fn findings_count(&self) -> u64 {
        let Findings { lost, duplicate, out_of_order, corrupt, .. } = &*lock(&self.findings);
        lost + duplicate + out_of_order + corrupt
    }

    /// The run is over, and `seats` say what each device sent and holds. Judges what can be judged only now.
    pub fn close(&self, seats: &[SeatReport]) -> Findings {
        let mut submitted: Vec<Vec<(u32, u32)>> = self.books.iter().map(|_| Vec::new()).collect();
        for seat in seats {
            if seat.submitted > 0 {
                submitted[seat.conv as usize].push((seat.device, seat.submitted));
            }
            let head = self.head(seat.conv);
            if seat.must_have_all && seat.have < head {
                let (device, conv, missing) = (seat.device, seat.conv, head - seat.have);
                for seq in seat.have + 1..=head {
                    self.find(Kind::Lost, format!("device {device} never received {conv}/{seq}, one of {missing}"));
                }
            }
        }
        for (conv, (book, submitted)) in self.books.iter().zip(submitted).enumerate() {
            self.judge(conv, &lock(book), submitted);
        }
        self.findings()
    }

    fn judge(&self, conv: usize, book: &Book, submitted: Vec<(u32, u32)>) {
        let mut next: Vec<(u32, u32)> = submitted.iter().map(|&(sender, _)| (sender, 1)).collect();
        next.sort_unstable();
        for (seq, &place) in (1_u64..).zip(&book.places[..usize::try_from(book.highest).expect("in memory")]) {
            if place == 0 {
                self.find(Kind::Lost, format!("nobody told what stands at {conv}/{seq}"));
                continue;
            }
            let (sender, number) = unpack(place);
            let Ok(at) = next.binary_search_by_key(&sender, |&(known, _)| known) else {
                self.find(Kind::Corrupt, format!("{conv}/{seq} names connection {sender}, which sent nothing there"));
                continue;
            };
            let expected = next[at].1;
            if number < expected {
                self.find(
                    Kind::Duplicate,
                    format!("{conv}/{seq} is message {number} of {sender} again, or late: after {expected}"),
                );
            } else if number > expected {
                self.find(Kind::Disorder, format!("{conv}/{seq} is message {number} of {sender}, before its {expected}"));
            }
            next[at].1 = next[at].1.max(number + 1);
        }
        for (sender, count) in submitted {
            let at = next.binary_search_by_key(&sender, |&(known, _)| known).expect("made from the same list");
            for number in next[at].1..=count {
                self.find(Kind::Lost, format!("message {number} of {sender} to conversation {conv} is nowhere"));
            }
        }
    }

    fn enter(&self, conv: u32, seq: u64, origin: Origin, acknowledged: u64) {
        let mut book = lock(&self.books[conv as usize]);
        if seq == 0 || seq > book.highest + LEAP_MAX {
            drop(book);
            return self.find(Kind::Corrupt, format!("{conv}/{seq} is no place"));
        }
        let at = usize::try_from(seq - 1).expect("in memory");
        if book.places.len() <= at {
            book.places.resize(at + 1, 0);
        }
        book.highest = book.highest.max(seq);
        let (told, known) = (pack(origin), book.places[at]);
        if known == 0 {
            book.places[at] = told | acknowledged;
        } else if known & !ACKNOWLEDGED != told {
            drop(book);
            let ((sender, number), (other, before)) = (unpack(told), unpack(known));
            let kind = if known & ACKNOWLEDGED | acknowledged == 0 { Kind::Corrupt } else { Kind::Lost };
            self.find(kind, format!("{conv}/{seq} is message {number} of {sender}, and was message {before} of {other}"));
        } else {
            book.places[at] |= acknowledged;
        }
    }
}

/// What one device did and holds in one conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeatReport {
    /// The connection.
    pub device: u32,
    /// The conversation.
    pub conv: u32,
    /// Messages it sent.
    pub submitted: u32,
    /// Everything up to here was received.
    pub have: u64,
    /// It had the time to receive all.
    pub must_have_all: bool,
}

fn unpack(place: u64) -> (u32, u32) {
    let half = |word: u64| u32::try_from(word & u64::from(u32::MAX)).expect("32 bits");
    (half(place >> 33) - 1, half(place))
}

/// A ledger is only counted in: who panicked elsewhere left it whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(sender: u32, number: u32) -> Origin {
        Origin { sender, number, intended_ns: 7 }
    }

    fn seat(device: u32, submitted: u32, have: u64) -> SeatReport {
        SeatReport { device, conv: 0, submitted, have, must_have_all: true }
    }

    /// A payload gives back its origin; one bit, one byte less, or another run, and it does not.
    #[test]
    fn payloads_are_held_against_damage() {
        for bytes in [0, 32, 33, 200] {
            let payload = origin(3, 9).payload(77, bytes);
            assert_eq!(payload.len(), bytes.max(32));
            assert_eq!(Origin::read(77, &payload), Some(origin(3, 9)));
            assert_eq!(Origin::read(78, &payload), None);
            assert_eq!(Origin::read(77, &payload[..payload.len() - 1]), None);
        }
        let mut payload = origin(3, 9).payload(77, 200);
        payload[150] ^= 1;
        assert_eq!(Origin::read(77, &payload), None);
    }

    /// Two senders, everything told by SENT and received by both: nothing to find.
    #[test]
    fn a_good_run_has_no_findings() {
        let ledger = Ledger::new(1);
        for (seq, from) in [(1, origin(0, 1)), (2, origin(1, 1)), (3, origin(0, 2))] {
            ledger.received(0, seq, from);
            ledger.acknowledged(0, seq, from);
        }
        let findings = ledger.close(&[seat(0, 2, 3), seat(1, 1, 3)]);
        assert!(findings.is_empty(), "{findings}");
    }

    /// Each fault is found, under its name.
    #[test]
    fn each_fault_has_its_name() {
        let run = |told: &[(u64, Origin)], seats: &[SeatReport]| {
            let ledger = Ledger::new(1);
            told.iter().for_each(|&(seq, from)| ledger.acknowledged(0, seq, from));
            let Findings { lost, duplicate, out_of_order, corrupt, .. } = ledger.close(seats);
            [lost, duplicate, out_of_order, corrupt]
        };
        let good = [(1, origin(0, 1)), (2, origin(0, 2))];
        assert_eq!(run(&good, &[seat(0, 2, 2)]), [0, 0, 0, 0]);
        assert_eq!(run(&good, &[seat(0, 2, 1)]), [1, 0, 0, 0], "not received");
        assert_eq!(run(&good, &[seat(0, 3, 2)]), [1, 0, 0, 0], "not stored");
        assert_eq!(run(&[(1, origin(0, 1)), (3, origin(0, 2))], &[seat(0, 2, 3)]), [1, 0, 0, 0], "a hole");
        assert_eq!(run(&[(1, origin(0, 1)), (2, origin(0, 1))], &[seat(0, 1, 2)]), [0, 1, 0, 0], "stored twice");
        assert_eq!(run(&[(1, origin(0, 2)), (2, origin(0, 1))], &[seat(0, 2, 2)]), [0, 1, 1, 0], "overtaken");
        assert_eq!(run(&[(1, origin(0, 1)), (1, origin(0, 2))], &[seat(0, 2, 1)])[0], 2, "replaced after an acknowledgement");
        assert_eq!(run(&[(1, origin(9, 1))], &[seat(0, 0, 1)]), [0, 0, 0, 1], "from nobody");
    }
}
