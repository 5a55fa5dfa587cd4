//! Where newcomers go when reactors outnumber cores, as they do for the sake of descriptor tables.
//!
//! A reactor that gets one newcomer in fifty wakes for each step of a handshake alone; one that gets every second finds the steps of
//! several at each wake. So newcomers go to as many reactors as there are cores, the first that have room, and to the next one when a
//! table fills up:
//!
//! ```text
//!  table   full   90 %   filling   filling   empty   empty
//!                           ▲         ▲
//!                           └─ newcomers, two cores
//! ```
//!
//! All reactors stay in the group of listeners: what waits in the queue of the one that filled up is accepted, not reset. When no table
//! has room, steering is over until the next start, and the kernel spreads newcomers by hash. Where the kernel takes no such list there is
//! none from the start, and limits of one reactor on newcomers are worked out for all of them.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by all reactors of the node. See the module text.
#[derive(Debug)]
pub struct Steering {
    is_on: AtomicBool,
    /// Taken when a table fills up or empties, never for a newcomer.
    choice: Mutex<Choice>,
}

impl Steering {
    /// For `reactors`, of which `width` get newcomers at a time. Off until the last of them listens.
    #[must_use]
    pub fn new(reactors: usize, width: usize) -> Self {
        Self { is_on: AtomicBool::new(false), choice: Mutex::new(Choice::new(reactors, width)) }
    }

    /// For `reactors` with tables of their own, on so many cores: `None` where they do not outnumber the cores, or where the kernel takes
    /// no list, as `attempt` says. And how many reactors newcomers come to at a time.
    #[must_use]
    pub fn begin(reactors: usize, cores: usize, attempt: impl FnOnce() -> io::Result<()>) -> (Option<Arc<Self>>, usize) {
        if reactors <= cores {
            return (None, reactors);
        }
        match attempt() {
            Ok(()) => {
                tracing::info!("newcomers come to {cores} of {reactors} reactors at a time");
                (Some(Arc::new(Self::new(reactors, cores))), cores)
            }
            Err(error) => {
                tracing::warn!(%error, "the kernel does not let newcomers be steered; they come to all {reactors} reactors");
                (None, reactors)
            }
        }
    }

    /// Whether newcomers go where [`Steering`] says.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// A reactor listens; they begin one after the other, in order. From the last one on the list counts that `tell` gives the kernel.
    pub fn listens(&self, reactor: usize, tell: impl FnOnce(&[u16]) -> io::Result<()>) {
        let choice = self.choice.lock().unwrap_or_else(PoisonError::into_inner);
        if reactor + 1 == choice.has_room.len() {
            self.apply(&choice, tell);
        }
    }

    /// The table of a reactor has room for newcomers from now on, or none.
    pub fn report(&self, reactor: usize, has_room: bool, tell: impl FnOnce(&[u16]) -> io::Result<()>) {
        let mut choice = self.choice.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_on() && choice.set_room(reactor, has_room) {
            self.apply(&choice, tell);
        }
    }

    fn apply(&self, choice: &Choice, tell: impl FnOnce(&[u16]) -> io::Result<()>) {
        let told = tell(&choice.chosen);
        if let Err(error) = &told {
            tracing::warn!(%error, "cannot say where newcomers go; the kernel spreads them by hash");
        }
        self.is_on.store(told.is_ok() && !choice.chosen.is_empty(), Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Choice {
    has_room: Vec<bool>,
    /// Who gets newcomers, at most `width`. Empty: nobody has room.
    chosen: Vec<u16>,
    width: usize,
}

impl Choice {
    fn new(reactors: usize, width: usize) -> Self {
        let mut choice = Self { has_room: vec![true; reactors], chosen: Vec::new(), width };
        choice.fill();
        choice
    }

    /// Notes it; whether others are chosen now.
    fn set_room(&mut self, reactor: usize, has_room: bool) -> bool {
        self.has_room[reactor] = has_room;
        let count = self.chosen.len();
        self.chosen.retain(|&chosen| self.has_room[usize::from(chosen)]);
        let has_left = self.chosen.len() < count;
        self.fill() || has_left
    }

    /// The first who have room take the places that are free.
    fn fill(&mut self) -> bool {
        let count = self.chosen.len();
        let others = (0..).zip(&self.has_room).filter(|&(reactor, has_room)| *has_room && !self.chosen.contains(&reactor));
        let more: Vec<u16> = others.map(|(reactor, _)| reactor).take(self.width - count).collect();
        self.chosen.extend(more);
        self.chosen.len() > count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Newcomers go to the first with room, to the next when one fills up, and back when nobody else has any; the kernel hears of it only
    /// when the list changes. When nobody has room, or the kernel refuses, it is over.
    #[test]
    fn newcomers_go_where_there_is_room() {
        let steering = Steering::new(4, 2);
        let report = |reactor, has_room| {
            let mut told = None;
            steering.report(reactor, has_room, |to| {
                told = Some(to.to_vec());
                Ok(())
            });
            told
        };
        assert!(!steering.is_on());
        assert_eq!(report(0, false), None, "not begun");
        steering.listens(2, |_| panic!("one is missing"));
        steering.listens(3, |to| {
            assert_eq!(to, [0, 1]);
            Ok(())
        });
        assert!(steering.is_on());
        assert_eq!(report(0, false), Some(vec![1, 2]));
        assert_eq!(report(3, false), None);
        assert_eq!(report(0, true), None);
        assert_eq!(report(1, false), Some(vec![2, 0]));
        assert_eq!(report(2, false), Some(vec![0]));
        assert_eq!(report(3, true), Some(vec![0, 3]));
        assert_eq!(report(3, false), Some(vec![0]));
        assert!(steering.is_on());
        assert_eq!(report(0, false), Some(Vec::new()));
        assert!(!steering.is_on());
        assert_eq!(report(0, true), None, "the kernel spreads by hash until the next start");

        let refused = || Err(io::ErrorKind::Unsupported.into());
        for (reactors, refuses, is_steered, taking) in [(2, false, false, 2), (6, false, true, 2), (6, true, false, 6)] {
            let (steering, count) = Steering::begin(reactors, 2, || if refuses { refused() } else { Ok(()) });
            assert_eq!((steering.is_some(), count), (is_steered, taking), "{reactors}");
        }

        let refused = Steering::new(2, 1);
        refused.listens(1, |_| Err(io::ErrorKind::Unsupported.into()));
        assert!(!refused.is_on());
    }
}
