//! Which states of the rows are read, so that nothing of them is given up meanwhile.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lsm_tree::SeqNo;

/// The states that are read, and the newest.
#[derive(Debug)]
pub(super) struct Views(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    /// Rows below are written: what the next view sees.
    now: SeqNo,
    /// What it sees instead, as long as tables hold rows of groups that the position does not speak of.
    behind: Option<SeqNo>,
    /// How many views there are of each state.
    open: BTreeMap<SeqNo, usize>,
}

impl Views {
    pub fn new(now: SeqNo, behind: Option<SeqNo>) -> Self {
        Self(Mutex::new(Inner { now, behind, open: BTreeMap::new() }))
    }

    /// Begins a view: it sees the rows below the number returned, which goes back to [`Views::close`].
    pub fn open(&self) -> SeqNo {
        let mut inner = self.lock();
        let instant = inner.behind.unwrap_or(inner.now);
        *inner.open.entry(instant).or_default() += 1;
        instant
    }

    pub fn close(&self, instant: SeqNo) {
        let mut inner = self.lock();
        let count = inner.open.get_mut(&instant).expect("it was opened");
        *count -= 1;
        if *count == 0 {
            inner.open.remove(&instant);
        }
    }

    /// A batch under `seqno` is whole.
    pub fn publish(&self, seqno: SeqNo) {
        self.lock().now = seqno + 1;
    }

    /// The state that tables are behind of, and the newest.
    pub fn behind(&self) -> Option<(SeqNo, SeqNo)> {
        let inner = self.lock();
        inner.behind.map(|behind| (behind, inner.now))
    }

    /// From here on views see the newest state.
    pub fn catch_up(&self) {
        self.lock().behind = None;
    }

    /// What nobody sees any more: everything that was replaced below this number.
    pub fn unseen_below(&self) -> SeqNo {
        let inner = self.lock();
        let oldest = inner.open.keys().next().copied().unwrap_or(inner.now);
        inner.behind.map_or(oldest, |behind| behind.min(oldest)).saturating_sub(1)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The oldest view that is open says what may be given up, and so does a state that is returned to after a crash.
    #[test]
    fn what_is_seen_stays() {
        let views = Views::new(5, None);
        assert_eq!(views.unseen_below(), 4);
        let (first, again) = (views.open(), views.open());
        views.publish(7);
        let second = views.open();
        assert_eq!((first, again, second), (5, 5, 8));
        views.close(first);
        assert_eq!(views.unseen_below(), 4);
        views.close(again);
        assert_eq!(views.unseen_below(), 7);
        views.close(second);
        let views = Views::new(9, Some(3));
        assert_eq!((views.open(), views.behind(), views.unseen_below()), (3, Some((3, 9)), 2));
        views.close(3);
        views.catch_up();
        assert_eq!((views.open(), views.behind(), views.unseen_below()), (9, None, 8));
    }
}
