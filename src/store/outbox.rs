//! Groups that a core has not taken yet. Results are always kept: credit bounds them. Deliveries are kept up to a bound, then
//! dropped and counted, and the core is told once, when it takes mail again, that all its sessions must SYNC.

use std::collections::VecDeque;

use crate::mail::{Event, Group};

/// What waits for one core.
#[derive(Debug)]
pub struct Outbox {
    kept: VecDeque<(Group, usize)>,
    bytes: usize,
    bytes_max: usize,
    /// Deliveries have been dropped since the core last took everything.
    overflowed: bool,
}

impl Outbox {
    /// Empty, for at most so many bytes of deliveries: see [`crate::limits::OUTBOX_BYTES`].
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { kept: VecDeque::new(), bytes: 0, bytes_max, overflowed: false }
    }

    /// Adds a group of about `bytes`. Returns how many deliveries were dropped.
    pub fn push(&mut self, mut group: Group, mut bytes: usize) -> u64 {
        let mut dropped = 0;
        self.overflowed |= !self.kept.is_empty() && self.bytes + bytes > self.bytes_max;
        if self.overflowed {
            group.events.retain_mut(|event| match event {
                // What was dropped before this is owed to the session that moves, and RESYNC comes to this core too late for it.
                Event::Evict { claim, .. } => {
                    *claim = None;
                    true
                }
                Event::Deliver { count, .. }
                | Event::Conv { count, .. }
                | Event::Notice { count, .. }
                | Event::Receipt { count, .. }
                | Event::Presence { count, .. }
                | Event::Signalled { count, .. } => {
                    dropped += u64::from(*count);
                    false
                }
                _ => true,
            });
            group.targets = Vec::new();
            bytes = group.events.len() * size_of::<Event>();
        }
        if !group.events.is_empty() {
            self.bytes += bytes;
            self.kept.push_back((group, bytes));
        }
        dropped
    }

    /// Gives to `send` what it takes, in order. After an overflow the last thing is RESYNC: only once nothing will be dropped any
    /// more, or the SYNC that follows could miss what is dropped after it.
    pub fn flush(&mut self, mut send: impl FnMut(Group) -> Result<(), Group>) {
        while let Some((group, bytes)) = self.kept.pop_front() {
            if let Err(group) = send(group) {
                self.kept.push_front((group, bytes));
                return;
            }
            self.bytes -= bytes;
        }
        if self.overflowed {
            let resync = Group { events: vec![Event::Resync], ..Group::default() };
            self.overflowed = send(resync).is_err();
        }
    }

    /// Whether the core has everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty() && !self.overflowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;
    use crate::ids::{Cmid, Mid, ReactorId, SessionRef};
    use crate::mail::Claim;
    use crate::wire::message::{Body, Text};

    const MOST: usize = 1 << 20;

    fn group(number: u64) -> Group {
        let session = SessionRef { reactor: ReactorId(0), index: 1, generation: 1 };
        let sent = Event::Sent {
            session,
            cmid: Cmid::default(),
            rid: 1,
            level: 2,
            flags: 0,
            seq: number,
            mid: Mid(1),
            costs_nothing: false,
            received: Moment::default(),
        };
        let conv = Event::Conv { conv: Text::from("g:x"), event: 3, version: 1, data: Body::new(), first: 0, count: 2 };
        Group { number, events: vec![sent, conv], ..Group::default() }
    }

    /// A core that takes nothing: deliveries go beyond the bound, results stay, and RESYNC comes last, after everything else.
    #[test]
    fn an_overflow_keeps_results_and_ends_with_resync() {
        let mut outbox = Outbox::new(MOST);
        let third = MOST / 3 + 1;
        let dropped: u64 = (1..=5).map(|number| outbox.push(group(number), third)).sum();
        assert_eq!(dropped, 6);
        outbox.flush(Err);
        assert!(!outbox.is_empty());
        let mut taken = Vec::new();
        outbox.flush(|group| {
            if taken.len() == 3 {
                return Err(group);
            }
            taken.push(group);
            Ok(())
        });
        assert_eq!(outbox.push(group(6), third), 2);
        outbox.flush(|group| {
            taken.push(group);
            Ok(())
        });
        assert!(outbox.is_empty());
        let events: Vec<usize> = taken.iter().map(|group| group.events.len()).collect();
        assert_eq!(events, [2, 2, 1, 1, 1, 1, 1]);
        assert!(matches!(taken.last().unwrap().events[..], [Event::Resync]));
        assert_eq!(outbox.push(group(7), third), 0);
    }

    /// A session cannot be resumed past deliveries that were dropped: its new core is told that nothing is held.
    #[test]
    fn an_overflow_ends_what_could_be_resumed() {
        let session = SessionRef { reactor: ReactorId(0), index: 1, generation: 1 };
        let claim = Some(Claim { key: [1; 16], last_pos: 3 });
        let evict = || Group { events: vec![Event::Evict { session, by: session, claim }], ..Group::default() };
        let claimed = |group: &Group| matches!(group.events[..], [Event::Evict { claim: Some(_), .. }]);
        let mut outbox = Outbox::new(MOST);
        outbox.push(evict(), MOST);
        outbox.push(evict(), MOST);
        let mut taken = Vec::new();
        outbox.flush(|group| {
            taken.push(claimed(&group));
            Ok(())
        });
        assert_eq!(taken, [true, false, false]);
    }
}
