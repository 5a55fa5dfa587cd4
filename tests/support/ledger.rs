//! The checker: what senders were told and devices gave out, against what the store holds in the end.
//!
//! Every message carries its origin: who sent it, and the how-manieth of that sender in that conversation it is. The history of a
//! conversation is the truth; the findings are what it and the tellings disagree on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A message, as its sender made it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Origin {
    /// One device: the order of its sends is kept.
    pub sender: String,
    /// Counts its messages in one conversation.
    pub number: u64,
}

impl Origin {
    /// The `number`-th message of `sender`.
    pub fn new(sender: &str, number: u64) -> Self {
        Self { sender: sender.to_owned(), number }
    }

    /// The payload that carries it.
    pub fn payload(&self) -> Vec<u8> {
        format!("{}#{}", self.sender, self.number).into_bytes()
    }

    /// Reads a payload.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (sender, number) = std::str::from_utf8(payload).ok()?.rsplit_once('#')?;
        Some(Self::new(sender, number.parse().ok()?))
    }
}

/// All that was told.
#[derive(Clone, Default, Debug)]
pub struct Ledger {
    acknowledged: Vec<(String, u64, Origin)>,
    delivered: BTreeMap<(String, String), Vec<(u64, Origin)>>,
    histories: BTreeMap<String, Vec<(u64, Origin)>>,
    complete: BTreeSet<(String, String)>,
}

/// What is wrong. Empty: nothing.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Findings {
    /// Acknowledged or delivered, and not there; or there, and missing on a device that must have all.
    pub lost: Vec<String>,
    /// In effect more than once.
    pub duplicated: Vec<String>,
    /// Out of the order in which a device sent, or a device given out of the order of the conversation.
    pub inverted: Vec<String>,
}

impl Ledger {
    /// A sender was told that its message is stored at `seq`.
    pub fn acknowledged(&mut self, conv: &str, seq: u64, origin: Origin) {
        self.acknowledged.push((conv.to_owned(), seq, origin));
    }

    /// A device gave out a message, after what it gave out before.
    pub fn delivered(&mut self, device: &str, conv: &str, seq: u64, origin: Origin) {
        self.delivered.entry((device.to_owned(), conv.to_owned())).or_default().push((seq, origin));
    }

    /// `device` must have given out all of `conv` by now.
    pub fn complete(&mut self, device: &str, conv: &str) {
        self.complete.insert((device.to_owned(), conv.to_owned()));
    }

    /// The store holds a message, in the order of the conversation.
    pub fn stored(&mut self, conv: &str, seq: u64, origin: Origin) {
        self.histories.entry(conv.to_owned()).or_default().push((seq, origin));
    }

    /// Takes over the histories that another ledger noted.
    pub fn take_histories(&mut self, other: Self) {
        self.histories = other.histories;
    }

    /// How many acknowledgements and deliveries were noted.
    pub fn counts(&self) -> (usize, usize) {
        (self.acknowledged.len(), self.delivered.values().map(Vec::len).sum())
    }

    /// Compares.
    pub fn check(&self) -> Findings {
        let mut findings = Findings::default();
        for (conv, history) in &self.histories {
            findings.history(conv, history);
        }
        let empty = Vec::new();
        let holds = |conv: &str, seq: u64, origin: &Origin| {
            self.histories.get(conv).unwrap_or(&empty).binary_search_by_key(&seq, |(at, _)| *at).is_ok_and(|at| {
                let (_, stored) = &self.histories[conv][at];
                stored == origin
            })
        };
        for (conv, seq, origin) in &self.acknowledged {
            if !holds(conv, *seq, origin) {
                findings.lost.push(format!("{conv} {seq}: {origin} was acknowledged"));
            }
        }
        for ((device, conv), seen) in &self.delivered {
            let mut given = BTreeSet::new();
            let mut last = 0;
            for (seq, origin) in seen {
                if !holds(conv, *seq, origin) {
                    findings.lost.push(format!("{conv} {seq}: {origin} was delivered to {device}"));
                }
                if !given.insert(*seq) {
                    findings.duplicated.push(format!("{conv} {seq}: {origin} twice on {device}"));
                } else if *seq < last {
                    findings.inverted.push(format!("{conv} {seq}: {origin} after {last} on {device}"));
                }
                last = *seq;
            }
        }
        for (device, conv) in &self.complete {
            let seen = self.delivered.get(&(device.clone(), conv.clone())).unwrap_or(&empty);
            let seen: BTreeSet<u64> = seen.iter().map(|(seq, _)| *seq).collect();
            for (seq, origin) in self.histories.get(conv).unwrap_or(&empty) {
                if !seen.contains(seq) {
                    findings.lost.push(format!("{conv} {seq}: {origin} never reached {device}"));
                }
            }
        }
        findings
    }
}

impl Findings {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.lost.is_empty() && self.duplicated.is_empty() && self.inverted.is_empty()
    }

    fn history(&mut self, conv: &str, history: &[(u64, Origin)]) {
        let mut origins = BTreeSet::new();
        let mut last_of: BTreeMap<&str, u64> = BTreeMap::new();
        for (at, (seq, origin)) in (1..).zip(history) {
            if *seq != at {
                self.lost.push(format!("{conv} {at}: a hole, {seq} stands there"));
            }
            if !origins.insert(origin) {
                self.duplicated.push(format!("{conv} {seq}: {origin} is stored twice"));
            } else if let Some(before) = last_of.insert(&origin.sender, origin.number)
                && before > origin.number
            {
                self.inverted.push(format!("{conv} {seq}: {origin} is stored after {before}"));
            }
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.sender, self.number)
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, found) in [("lost", &self.lost), ("duplicated", &self.duplicated), ("inverted", &self.inverted)] {
            write!(f, "{} {what}; ", found.len())?;
            for line in found.iter().take(10) {
                write!(f, "\n  {what}: {line}")?;
            }
        }
        Ok(())
    }
}
