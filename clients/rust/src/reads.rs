//! Read positions that the gateway has not confirmed yet: the highest wins, so one wish per conversation is enough.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Conversations whose read position moves.
#[derive(Debug, Default)]
pub(crate) struct Reads(BTreeMap<Arc<str>, Wish>);

#[derive(Debug)]
struct Wish {
    seq: u64,
    /// rid and seq of the READ on the way.
    asked: Option<(u32, u64)>,
    not_before: Duration,
}

impl Reads {
    pub(crate) fn want(&mut self, conv: &str, seq: u64) {
        let wish = self.0.entry(conv.into()).or_insert(Wish { seq, asked: None, not_before: Duration::ZERO });
        wish.seq = wish.seq.max(seq);
    }

    /// Wishes that are not fulfilled.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The next READ to write.
    pub(crate) fn next(&mut self, now: Duration, rid: u32) -> Option<(Arc<str>, u64)> {
        let (conv, wish) = self.0.iter_mut().find(|(_, wish)| wish.asked.is_none() && wish.not_before <= now)?;
        wish.asked = Some((rid, wish.seq));
        Some((Arc::clone(conv), wish.seq))
    }

    /// OK: the wish is fulfilled, unless it grew meanwhile. `None`: not one of ours.
    pub(crate) fn done(&mut self, rid: u32) -> Option<Arc<str>> {
        let (conv, wish) = self.asked(rid)?;
        let (conv, seq) = (Arc::clone(conv), wish.asked.take()?.1);
        if wish.seq <= seq {
            self.0.remove(&conv);
        }
        Some(conv)
    }

    /// ERROR: asked again at `retry_at`, or given up. `false`: not one of ours.
    pub(crate) fn refused(&mut self, rid: u32, retry_at: Option<Duration>) -> bool {
        let Some((conv, wish)) = self.asked(rid) else { return false };
        wish.asked = None;
        match retry_at {
            Some(at) => wish.not_before = at,
            None => {
                let conv = Arc::clone(conv);
                self.0.remove(&conv);
            }
        }
        true
    }

    /// The connection is gone: what was asked is asked again.
    pub(crate) fn disconnected(&mut self) {
        self.0.values_mut().for_each(|wish| wish.asked = None);
    }

    /// When something happens by itself, at the earliest.
    pub(crate) fn wake_at(&self) -> Option<Duration> {
        self.0.values().filter(|wish| wish.asked.is_none() && !wish.not_before.is_zero()).map(|wish| wish.not_before).min()
    }

    fn asked(&mut self, rid: u32) -> Option<(&Arc<str>, &mut Wish)> {
        self.0.iter_mut().find(|(_, wish)| wish.asked.is_some_and(|(asked, _)| asked == rid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wish that grows while READ is on the way is asked again; one that shrinks is not.
    #[test]
    fn the_highest_position_wins() {
        let mut reads = Reads::default();
        reads.want("g:a", 5);
        assert_eq!(reads.next(Duration::ZERO, 1), Some(("g:a".into(), 5)));
        reads.want("g:a", 3);
        reads.want("g:a", 8);
        assert_eq!(reads.next(Duration::ZERO, 2), None);
        assert_eq!(reads.done(1), Some("g:a".into()));
        assert_eq!(reads.next(Duration::ZERO, 2), Some(("g:a".into(), 8)));
        assert!(reads.done(2).is_some());
        assert_eq!(reads.next(Duration::ZERO, 3), None);
        assert_eq!(reads.done(2), None);
    }

    /// A lost connection, and a refusal that may be repeated, bring the same READ again.
    #[test]
    fn a_read_is_repeated_until_it_is_answered() {
        let mut reads = Reads::default();
        reads.want("g:a", 5);
        assert!(reads.next(Duration::ZERO, 1).is_some());
        reads.disconnected();
        assert!(reads.next(Duration::ZERO, 2).is_some());
        assert!(reads.refused(2, Some(Duration::from_secs(1))));
        assert_eq!(reads.next(Duration::ZERO, 3), None);
        assert_eq!(reads.wake_at(), Some(Duration::from_secs(1)));
        assert!(reads.next(Duration::from_secs(1), 4).is_some());
        assert!(reads.refused(4, None));
        assert_eq!(reads.next(Duration::from_secs(9), 5), None);
    }
}
