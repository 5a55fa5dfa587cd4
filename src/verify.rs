//! Joins what clients noted with what the store holds: was anything lost, doubled, out of order or late.
//!
//! A client's *ledger* is a file of lines, each one thing that happened to one device, in the order in which it happened:
//!
//! ```text
//! {"send":{"at_ms":1764000000000,"device":"7","conv":"d:al:bo","number":1,"cmid":"0123…","sum":3735928559}}
//! {"sent":{"at_ms":1764000000004,"device":"7","conv":"d:al:bo","number":1,"seq":42}}
//! {"got":{"at_ms":1764000000005,"device":"8","conv":"d:al:bo","seq":42,"sum":3735928559}}
//! ```
//!
//! `device` is any name that no other device of these ledgers has, `number` counts the messages of the device to the conversation from 1,
//! `sum` is the CRC-32C of the payload. What the store holds comes as the lines of `tidegate export`.
//!
//! - *lost*: acknowledged or received, and not there; or there, between two messages that a device received, and never received by it;
//! - *duplicate*: one message at two places, or received twice;
//! - *reordered*: not in the order in which its device sent it, not where SENT said, or received after a later one;
//! - *late*: acknowledged or received so long after it was sent.
//!
//! What retention has taken is not judged.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use serde_json::{Value, json};

/// One line of a ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// When, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The device.
    pub device: String,
    /// The conversation.
    pub conv: String,
    /// What happened.
    pub what: What,
}

/// See [`Line`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// A message was handed to the client.
    Send {
        /// Counts the messages of the device to the conversation, from 1.
        number: u64,
        /// 32 hexadecimal digits.
        cmid: String,
        /// See [`sum`].
        sum: u32,
    },
    /// It was acknowledged.
    Sent {
        /// As in `Send`.
        number: u64,
        /// Its place.
        seq: u64,
    },
    /// A message was received.
    Got {
        /// Its place.
        seq: u64,
        /// See [`sum`].
        sum: u32,
    },
}

/// The checksum by which payloads are compared.
#[must_use]
pub fn sum(payload: &[u8]) -> u32 {
    crc32c::crc32c(payload)
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at_ms, device, conv, what } = self;
        let line = match what {
            What::Send { number, cmid, sum } => json!({ "send": {
                "at_ms": at_ms, "device": device, "conv": conv, "number": number, "cmid": cmid, "sum": sum,
            } }),
            What::Sent { number, seq } => {
                json!({ "sent": { "at_ms": at_ms, "device": device, "conv": conv, "number": number, "seq": seq } })
            }
            What::Got { seq, sum } => {
                json!({ "got": { "at_ms": at_ms, "device": device, "conv": conv, "seq": seq, "sum": sum } })
            }
        };
        line.fmt(f)
    }
}

impl Line {
    /// Reads a line; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let (name, fields) = value.as_object()?.iter().next()?;
        let number = |key: &str| fields[key].as_u64();
        let word = |key: &str| fields[key].as_str().map(str::to_owned);
        let sum = || number("sum").and_then(|sum| u32::try_from(sum).ok());
        let what = match name.as_str() {
            "send" => What::Send { number: number("number")?, cmid: word("cmid")?, sum: sum()? },
            "sent" => What::Sent { number: number("number")?, seq: number("seq")? },
            "got" => What::Got { seq: number("seq")?, sum: sum()? },
            _ => return None,
        };
        Some(Self { at_ms: number("at_ms")?, device: word("device")?, conv: word("conv")?, what })
    }
}

/// What was found in one conversation, or in all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Messages acknowledged.
    pub acknowledged: u64,
    /// Messages received, by each device.
    pub received: u64,
    /// See the head of this file.
    pub lost: u64,
    /// As above.
    pub duplicate: u64,
    /// As above.
    pub reordered: u64,
    /// As above.
    pub late: u64,
}

impl Counts {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost + self.duplicate + self.reordered + self.late == 0
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, received, lost, duplicate, reordered, late } = self;
        write!(f, "{acknowledged} acknowledged, {received} received: ")?;
        write!(f, "{lost} lost, {duplicate} duplicate, {reordered} reordered, {late} late")
    }
}

/// The verdict.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verdict {
    /// By conversation.
    pub conversations: BTreeMap<String, Counts>,
    /// The first findings, in words.
    pub examples: Vec<String>,
}

impl Verdict {
    /// The sum over all conversations.
    #[must_use]
    pub fn total(&self) -> Counts {
        self.conversations.values().fold(Counts::default(), |sum, it| Counts {
            acknowledged: sum.acknowledged + it.acknowledged,
            received: sum.received + it.received,
            lost: sum.lost + it.lost,
            duplicate: sum.duplicate + it.duplicate,
            reordered: sum.reordered + it.reordered,
            late: sum.late + it.late,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (conv, counts) in self.conversations.iter().filter(|(_, counts)| !counts.is_clean()) {
            writeln!(f, "{conv}: {counts}")?;
        }
        self.examples.iter().try_for_each(|example| writeln!(f, "  {example}"))?;
        writeln!(f, "{} conversations: {}", self.conversations.len(), self.total())
    }
}

/// Gathers ledgers, then what the store holds, and judges.
#[derive(Debug)]
pub struct Audit {
    late_ms: u64,
    books: HashMap<String, Book>,
}

/// One conversation.
#[derive(Debug, Default)]
struct Book {
    /// By device and number: cmid, sum and time.
    sends: BTreeMap<(String, u64), (String, u32, u64)>,
    /// Device, number, seq and time.
    sents: Vec<(String, u64, u64, u64)>,
    /// By device: seq, sum and time.
    gots: BTreeMap<String, Vec<(u64, u32, u64)>>,
    /// By seq: cmid and sum.
    stored: BTreeMap<u64, (String, u32)>,
    floor: u64,
}

impl Audit {
    /// `late_ms`: from when on something is late.
    #[must_use]
    pub fn new(late_ms: u64) -> Self {
        Self { late_ms, books: HashMap::new() }
    }

    /// Takes a line of a ledger.
    pub fn told(&mut self, line: Line) {
        let Line { at_ms, device, conv, what } = line;
        let book = self.books.entry(conv).or_default();
        match what {
            What::Send { number, cmid, sum } => drop(book.sends.insert((device, number), (cmid, sum, at_ms))),
            What::Sent { number, seq } => book.sents.push((device, number, seq, at_ms)),
            What::Got { seq, sum } => book.gots.entry(device).or_default().push((seq, sum, at_ms)),
        }
    }

    /// Takes a line of an export. What no ledger names is not kept.
    ///
    /// # Errors
    /// It is no line of an export.
    pub fn exported(&mut self, text: &str) -> Result<(), String> {
        let bad = || format!("this is no line of an export: {text:.100}");
        let value: Value = serde_json::from_str(text).map_err(|_| bad())?;
        let (name, fields) = value.as_object().and_then(|object| object.iter().next()).ok_or_else(bad)?;
        let conv = |key: &str| fields[key].as_str().ok_or_else(bad);
        match name.as_str() {
            "conversation" => {
                if let Some(book) = self.books.get_mut(conv("id")?) {
                    book.floor = fields["floor"].as_u64().ok_or_else(bad)?;
                }
            }
            "message" => {
                let Some(book) = self.books.get_mut(conv("conv")?) else { return Ok(()) };
                let payload = match (fields["text"].as_str(), fields["b64"].as_str()) {
                    (Some(text), _) => sum(text.as_bytes()),
                    (None, Some(b64)) => sum(&decode(b64).ok_or_else(bad)?),
                    _ => return Err(bad()),
                };
                let cmid = fields["cmid"].as_str().ok_or_else(bad)?.to_owned();
                book.stored.insert(fields["seq"].as_u64().ok_or_else(bad)?, (cmid, payload));
            }
            "member" | "end" => {}
            _ => return Err(bad()),
        }
        Ok(())
    }

    /// Judges.
    #[must_use]
    pub fn close(self) -> Verdict {
        let mut verdict = Verdict::default();
        let mut books: Vec<_> = self.books.into_iter().collect();
        books.sort_by(|a, b| a.0.cmp(&b.0));
        for (conv, book) in books {
            let mut judge = Judge { conv: &conv, counts: Counts::default(), examples: &mut verdict.examples };
            book.judge(self.late_ms, &mut judge);
            let counts = judge.counts;
            verdict.conversations.insert(conv, counts);
        }
        verdict
    }
}

/// Counts, and keeps the first examples.
struct Judge<'a> {
    conv: &'a str,
    counts: Counts,
    examples: &'a mut Vec<String>,
}

impl Judge<'_> {
    fn find(&mut self, kind: fn(&mut Counts) -> &mut u64, text: impl FnOnce() -> String) {
        *kind(&mut self.counts) += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(format!("{}: {}", self.conv, text()));
        }
    }
}

impl Book {
    fn judge(&self, late_ms: u64, judge: &mut Judge<'_>) {
        let mut places: HashMap<&str, Vec<u64>> = HashMap::new();
        for (seq, (cmid, _)) in &self.stored {
            places.entry(cmid).or_default().push(*seq);
        }
        let is_late = |sent_ms: u64, at_ms: u64| at_ms.saturating_sub(sent_ms) > late_ms;
        for (device, number, seq, at_ms) in &self.sents {
            judge.counts.acknowledged += 1;
            let Some((cmid, _, sent_ms)) = self.sends.get(&(device.clone(), *number)) else {
                judge.find(|it| &mut it.lost, || format!("{device} was told of its message {number}, which it never sent"));
                continue;
            };
            if is_late(*sent_ms, *at_ms) {
                judge.find(|it| &mut it.late, || format!("message {number} of {device} after {} ms", at_ms - sent_ms));
            }
            let stands = self.stored.get(seq).is_some_and(|(stored, _)| stored == cmid);
            if !stands && *seq >= self.floor {
                match places.get(cmid.as_str()) {
                    Some(others) => judge
                        .find(|it| &mut it.reordered, || format!("message {number} of {device} was {seq} and is at {others:?}")),
                    None => judge.find(|it| &mut it.lost, || format!("message {number} of {device}, acknowledged as {seq}")),
                }
            }
        }
        // In the order of each device, then of its numbers.
        let mut last: Option<(&str, u64, u64)> = None;
        for ((device, number), (cmid, ..)) in &self.sends {
            let Some(seqs) = places.get(cmid.as_str()) else { continue };
            if seqs.len() > 1 {
                judge.find(|it| &mut it.duplicate, || format!("message {number} of {device} is at {seqs:?}"));
            }
            if let Some((other, before, seq)) = last
                && other == device
                && seq > seqs[0]
            {
                judge.find(
                    |it| &mut it.reordered,
                    || format!("message {number} of {device} is at {}, its message {before} at {seq}", seqs[0]),
                );
            }
            last = Some((device, *number, seqs[0]));
        }
        let by_cmid: HashMap<&str, u64> = self.sends.values().map(|(cmid, _, at_ms)| (cmid.as_str(), *at_ms)).collect();
        for (device, gots) in &self.gots {
            self.judge_device(device, gots, judge);
            for (seq, _, at_ms) in gots {
                let sent_ms = self.stored.get(seq).and_then(|(cmid, _)| by_cmid.get(cmid.as_str()));
                if let Some(sent_ms) = sent_ms.filter(|sent_ms| is_late(**sent_ms, *at_ms)) {
                    judge.find(|it| &mut it.late, || format!("{seq} reached {device} after {} ms", at_ms - sent_ms));
                }
            }
        }
    }

    fn judge_device(&self, device: &str, gots: &[(u64, u32, u64)], judge: &mut Judge<'_>) {
        let mut had = BTreeSet::new();
        let mut last = 0;
        for (seq, sum, _) in gots {
            judge.counts.received += 1;
            if !had.insert(*seq) {
                judge.find(|it| &mut it.duplicate, || format!("{seq} reached {device} twice"));
            } else if *seq < last {
                judge.find(|it| &mut it.reordered, || format!("{seq} reached {device} after {last}"));
            }
            last = last.max(*seq);
            let stands = self.stored.get(seq).is_some_and(|(_, stored)| stored == sum);
            if !stands && *seq >= self.floor {
                judge.find(|it| &mut it.lost, || format!("{seq} reached {device} and is not there"));
            }
        }
        // Its own messages come to it as SENT.
        had.extend(self.sents.iter().filter(|(sender, ..)| sender == device).map(|(_, _, seq, _)| *seq));
        let (Some(first), Some(last)) = (had.first(), had.last()) else { return };
        for (seq, _) in self.stored.range(first..=last).filter(|(seq, _)| !had.contains(seq)) {
            judge.find(|it| &mut it.lost, || format!("{seq} never reached {device}"));
        }
    }
}

/// Standard base64.
fn decode(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

const EXAMPLES_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    const CONV: &str = "d:al:bo";

    fn line(device: &str, at_ms: u64, what: What) -> Line {
        Line { at_ms, device: device.to_owned(), conv: CONV.to_owned(), what }
    }

    fn send(number: u64) -> Line {
        line("al", number, What::Send { number, cmid: format!("{number:032x}"), sum: sum(number.to_string().as_bytes()) })
    }

    fn sent(number: u64, seq: u64) -> Line {
        line("al", number + 5, What::Sent { number, seq })
    }

    fn got(seq: u64, number: u64) -> Line {
        line("bo", number + 7, What::Got { seq, sum: sum(number.to_string().as_bytes()) })
    }

    fn stored(seq: u64, number: u64) -> String {
        json!({ "message": { "conv": CONV, "seq": seq, "cmid": format!("{number:032x}"), "text": number.to_string() } })
            .to_string()
    }

    fn judge(told: &[Line], stored: &[String]) -> [u64; 4] {
        let mut audit = Audit::new(100);
        told.iter().for_each(|line| audit.told(Line::parse(&line.to_string()).unwrap()));
        audit.exported(&json!({ "conversation": { "id": CONV, "floor": 1 } }).to_string()).unwrap();
        stored.iter().for_each(|line| audit.exported(line).unwrap());
        let Counts { lost, duplicate, reordered, late, .. } = audit.close().total();
        [lost, duplicate, reordered, late]
    }

    /// What fits is clean, and each fault is found under its name: the negative controls.
    #[test]
    fn each_fault_has_its_name() {
        let good = vec![send(1), send(2), send(3), sent(1, 1), sent(2, 2), sent(3, 3), got(1, 1), got(2, 2), got(3, 3)];
        let log: Vec<_> = (1..=3).map(|number| stored(number, number)).collect();
        assert_eq!(judge(&good, &log), [0, 0, 0, 0]);
        assert_eq!(judge(&good, &log[..2]), [2, 0, 0, 0], "acknowledged and received, and gone");
        assert_eq!(judge(&good, &[&log[..], &[stored(4, 3)]].concat()), [0, 1, 0, 0], "stored twice");
        let mut ledger = good.clone();
        ledger.remove(7);
        assert_eq!(judge(&ledger, &log), [1, 0, 0, 0], "never received");
        let mut ledger = good.clone();
        ledger.push(got(2, 2));
        assert_eq!(judge(&ledger, &log), [0, 1, 0, 0], "received twice");
        let mut ledger = good.clone();
        ledger.swap(6, 7);
        assert_eq!(judge(&ledger, &log), [0, 0, 1, 0], "received after a later one");
        assert_eq!(judge(&[send(1), send(2)], &[stored(1, 2), stored(2, 1)]), [0, 0, 1, 0], "overtaken");
        assert_eq!(judge(&[send(1), sent(1, 2)], &[stored(1, 1)]), [0, 0, 1, 0], "not where SENT said");
        assert_eq!(judge(&[send(1), got(1, 2)], &[stored(1, 1)]), [1, 0, 0, 0], "something else was received");
        let late = line("al", 500, What::Sent { number: 1, seq: 1 });
        assert_eq!(judge(&[send(1), late], &[stored(1, 1)]), [0, 0, 0, 1]);
    }

    /// What retention took is not judged.
    #[test]
    fn what_is_below_the_floor_is_not_judged() {
        let mut audit = Audit::new(100);
        [send(1), send(2), sent(1, 1), sent(2, 2), got(1, 1), got(2, 2)].into_iter().for_each(|line| audit.told(line));
        audit.exported(&json!({ "conversation": { "id": CONV, "floor": 2 } }).to_string()).unwrap();
        audit.exported(&stored(2, 2)).unwrap();
        assert!(audit.close().total().is_clean());
    }
}
