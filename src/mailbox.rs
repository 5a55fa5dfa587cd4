//! Bounded lanes between threads with coalesced wake-up, over the queue of `io/queue.rs`.
//!
//! A reactor and the store never wait on a lane: they look into their inbox once per turn, with a budget, and sleep only where
//! their waker can end it. Whoever sends gives the value away, or gets it back and decides which of the four answers to "full" is
//! right; the table of lanes is in `limits.rs`.
//!
//! Sending is push, then [`Waker::wake`]: that order is what makes a lost wake-up impossible (`io/wake.rs`).

use std::sync::Arc;
use std::time::Duration;

use crate::io::atomic::{AtomicU64, Ordering};
use crate::io::queue as channel;
use crate::io::wake::Waker;
use crate::limits::{self, Share};
use crate::mail::{Control, Group, Judged, PageReply, Peer};
use crate::mutant::{self, Mutant};

/// Makes one lane of at most `bound` values to the owner of `waker`.
#[must_use]
pub fn lane<T>(bound: usize, waker: &Waker) -> (LaneSender<T>, LaneReceiver<T>) {
    let (sender, receiver) = channel::bounded(bound);
    (LaneSender { channel: sender, waker: waker.clone() }, LaneReceiver { channel: receiver })
}

/// The end of a lane that gives. May be cloned; values of one sender arrive in order.
#[derive(Debug)]
pub struct LaneSender<T> {
    channel: channel::Sender<T>,
    waker: Waker,
}

impl<T> LaneSender<T> {
    /// Gives `value` away and wakes the owner if it sleeps. Never waits.
    ///
    /// # Errors
    /// The value, when the lane is full or the owner has ended.
    pub fn try_send(&self, value: T) -> Result<(), T> {
        if mutant::on(Mutant::WakeBeforePush) {
            self.waker.wake();
            return self.push(value);
        }
        let result = self.push(value);
        // Also when full: a full lane in front of a sleeper would otherwise stay full.
        self.waker.wake();
        result
    }

    fn push(&self, value: T) -> Result<(), T> {
        self.channel.try_send(value).map_err(channel::TrySendError::into_inner)
    }

    /// As [`LaneSender::try_send`], but waits for room. For threads that may wait: readers and the admin thread, not a reactor.
    ///
    /// # Errors
    /// The value, when the lane stays full for `patience` or the owner has ended.
    pub fn send_within(&self, value: T, patience: Duration) -> Result<(), T> {
        let result = self.channel.send_timeout(value, patience).map_err(channel::SendTimeoutError::into_inner);
        self.waker.wake();
        result
    }

    /// As [`LaneSender::send_within`], but waits as long as the owner lives.
    ///
    /// # Errors
    /// The value, when the owner has ended.
    pub fn send(&self, value: T) -> Result<(), T> {
        // The owner may sleep in front of a full lane only until the next wake.
        self.waker.wake();
        let result = self.channel.send(value).map_err(|channel::SendError(value)| value);
        self.waker.wake();
        result
    }

    /// Values waiting; the owner may take some meanwhile.
    #[must_use]
    pub fn len(&self) -> usize {
        self.channel.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.channel.is_empty()
    }

    /// The most that may wait.
    #[must_use]
    pub fn bound(&self) -> usize {
        self.channel.capacity().expect("every lane is bounded")
    }
}

impl<T> Clone for LaneSender<T> {
    fn clone(&self) -> Self {
        Self { channel: self.channel.clone(), waker: self.waker.clone() }
    }
}

/// The end of a lane of one who has many values to give in a row: the owner is woken for several at a time, so that it finds them
/// together.
#[derive(Debug)]
pub struct Gathering<T> {
    lane: LaneSender<T>,
    /// Values given since the owner was woken last.
    untold: usize,
}

impl<T> Gathering<T> {
    /// Gives through `lane`.
    #[must_use]
    pub fn new(lane: LaneSender<T>) -> Self {
        Self { lane, untold: 0 }
    }

    /// As [`LaneSender::try_send`], but the owner may sleep on until [`Gathering::tell`], which whoever gives calls before it waits. A
    /// full lane, or one with [`limits::GATHERED_MAX`] values more, wakes it at once.
    ///
    /// # Errors
    /// The value, when the lane is full or the owner has ended.
    pub fn try_send(&mut self, value: T) -> Result<(), T> {
        let result = self.lane.push(value);
        self.untold += 1;
        if result.is_err() || self.untold == limits::GATHERED_MAX {
            self.tell();
        }
        result
    }

    /// Wakes the owner if it sleeps and was given anything.
    pub fn tell(&mut self) {
        if std::mem::take(&mut self.untold) > 0 {
            self.lane.waker.wake();
        }
    }

    /// Values waiting; the owner may take some meanwhile.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lane.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lane.is_empty()
    }

    /// The most that may wait.
    #[must_use]
    pub fn bound(&self) -> usize {
        self.lane.bound()
    }
}

/// Makes a lane on which emptied values come back to be filled again, at most `bound`. Nobody is woken for them.
#[must_use]
pub fn spares<T>(bound: usize) -> (SpareSender<T>, SpareReceiver<T>) {
    let (sender, receiver) = channel::bounded(bound);
    (SpareSender(sender), SpareReceiver(receiver))
}

/// The end of a lane of spares that gives. May be cloned.
#[derive(Debug)]
pub struct SpareSender<T>(channel::Sender<T>);

impl<T> SpareSender<T> {
    /// Gives `value` back. When the lane is full, it is freed here.
    pub fn give(&self, value: T) {
        let _ = self.0.try_send(value);
    }
}

impl<T> Clone for SpareSender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The end of a lane of spares that takes.
#[derive(Debug)]
pub struct SpareReceiver<T>(channel::Receiver<T>);

impl<T> SpareReceiver<T> {
    /// One that has come back.
    #[must_use]
    pub fn take(&self) -> Option<T> {
        self.0.try_recv().ok()
    }
}

/// The end of a lane that takes. One thread owns it, or several have a clone each: whichever is free takes the next value.
#[derive(Debug)]
pub struct LaneReceiver<T> {
    channel: channel::Receiver<T>,
}

impl<T> Clone for LaneReceiver<T> {
    fn clone(&self) -> Self {
        Self { channel: self.channel.clone() }
    }
}

impl<T> LaneReceiver<T> {
    /// Takes what waits, at most `budget` values: others keep filling while we empty.
    pub fn drain(&self, budget: usize) -> impl Iterator<Item = T> + '_ {
        self.channel.try_iter().take(budget)
    }

    /// Takes one value if one waits.
    #[must_use]
    pub fn try_recv(&self) -> Option<T> {
        self.channel.try_recv().ok()
    }

    /// Waits for a value. For threads with one lane and nothing else to do; they need no waker, and theirs is never asleep.
    ///
    /// # Errors
    /// [`NoMail`].
    pub fn recv_within(&self, patience: Duration) -> Result<T, NoMail> {
        self.channel.recv_timeout(patience).map_err(|error| match error {
            channel::RecvTimeoutError::Timeout => NoMail::Yet,
            channel::RecvTimeoutError::Disconnected => NoMail::Ever,
        })
    }

    /// Values waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.channel.len()
    }

    /// Whether none waits. To be asked again in [`Waker::may_sleep`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.channel.is_empty()
    }
}

/// Why [`LaneReceiver::recv_within`] has no value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoMail {
    /// None has come; wait again.
    Yet,
    /// All senders are gone and everything they gave has been taken.
    Ever,
}

/// Everything a reactor is told by other threads. Owned by the reactor; the gateway makes it and gives [`Post`] to the others.
#[derive(Debug)]
pub struct Inbox {
    /// From the store, in order.
    pub group: LaneReceiver<Group>,
    /// From other reactors.
    pub peer: LaneReceiver<Peer>,
    /// From the readers.
    pub page: LaneReceiver<PageReply>,
    /// From the threads that judge tokens.
    pub judged: LaneReceiver<Judged>,
    /// From control and admin.
    pub control: LaneReceiver<Control>,
}

impl Inbox {
    /// Whether nothing waits on any lane. To be asked again in [`Waker::may_sleep`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.group.is_empty() && self.peer.is_empty() && self.page.is_empty() && self.judged.is_empty() && self.control.is_empty()
    }
}

/// The giving ends of one reactor's [`Inbox`].
#[derive(Clone, Debug)]
pub struct Post {
    /// For the store.
    pub group: LaneSender<Group>,
    /// For other reactors.
    pub peer: LaneSender<Peer>,
    /// For the readers.
    pub page: LaneSender<PageReply>,
    /// For the threads that judge tokens.
    pub judged: LaneSender<Judged>,
    /// For control and admin.
    pub control: LaneSender<Control>,
}

/// The lanes of one of so many reactors, whose driver watches `waker`.
#[must_use]
pub fn reactor_lanes(waker: &Waker, reactors: usize) -> (Post, Inbox) {
    let (group_sender, group) = lane(limits::GROUP_LANE.part(reactors), waker);
    let (peer_sender, peer) = lane(limits::PEER_LANE.part(reactors), waker);
    let (page_sender, page) = lane(limits::PAGE_LANE.part(reactors), waker);
    let (judged_sender, judged) = lane(limits::JUDGED_LANE.part(reactors), waker);
    let (control_sender, control) = lane(limits::CONTROL_LANE.part(reactors), waker);
    let post = Post { group: group_sender, peer: peer_sender, page: page_sender, judged: judged_sender, control: control_sender };
    (post, Inbox { group, peer, page, judged, control })
}

/// Bytes that the lanes of one of so many reactors have from the start: a lane has a place for each value and a number beside it.
#[must_use]
pub fn reactor_lanes_bytes(reactors: usize) -> usize {
    fn places<T>(lane: Share, reactors: usize) -> usize {
        lane.part(reactors) * size_of::<(usize, T)>()
    }
    places::<Group>(limits::GROUP_LANE, reactors)
        + places::<Peer>(limits::PEER_LANE, reactors)
        + places::<PageReply>(limits::PAGE_LANE, reactors)
        + places::<Judged>(limits::JUDGED_LANE, reactors)
        + places::<Control>(limits::CONTROL_LANE, reactors)
}

/// A number of bytes shared by all producers of the node, [`limits::SUBMIT_BYTES_MAX`] for `submit`: a lane bounds values, this
/// bounds what they carry.
///
/// Whoever takes gives back, through any clone: the reactor takes before it sends, the store gives back when the body has left it.
#[derive(Clone, Debug)]
pub struct Credit {
    left: Arc<AtomicU64>,
}

impl Credit {
    /// A full credit.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self { left: Arc::new(AtomicU64::new(bytes)) }
    }

    /// Takes `bytes` if so many are left.
    #[must_use]
    pub fn take(&self, bytes: u64) -> bool {
        self.left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    /// Gives back what [`Credit::take`] took.
    pub fn give(&self, bytes: u64) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes left.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::*;

    /// A full lane gives the value back, and draining keeps to its budget and to the order.
    #[test]
    fn full_lane_gives_back() {
        let (sender, receiver) = lane(3, &Waker::for_thread());
        for value in 0..3 {
            sender.try_send(value).unwrap();
        }
        assert_eq!(sender.try_send(3), Err(3));
        assert_eq!(sender.send_within(3, Duration::from_millis(1)), Err(3));
        assert_eq!((sender.len(), sender.bound()), (3, 3));
        assert_eq!(receiver.drain(2).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(receiver.drain(2).collect::<Vec<_>>(), [2]);
        assert_eq!(receiver.recv_within(Duration::ZERO), Err(NoMail::Yet));
        drop(sender);
        assert_eq!(receiver.recv_within(Duration::ZERO), Err(NoMail::Ever));
    }

    /// Who gives several values in a row wakes the owner once, when it says so; at once when the lane is full or many wait untold.
    #[test]
    fn several_values_wake_once() {
        let waker = Waker::for_driver().unwrap();
        let (sender, receiver) = lane(limits::GATHERED_MAX + 1, &waker);
        let mut sender = Gathering::new(sender);
        let is_told = || !waker.is_asleep();
        let sleep = || assert!(waker.may_sleep(|| true));
        sleep();
        sender.tell();
        assert!(!is_told(), "nothing was given");
        sender.try_send(0).unwrap();
        sender.try_send(1).unwrap();
        assert!(!is_told());
        sender.tell();
        assert!(is_told());
        sleep();
        sender.tell();
        assert!(!is_told(), "it was told already");
        assert_eq!(receiver.drain(9).count(), 2);
        for value in 1..=limits::GATHERED_MAX {
            assert!(!is_told(), "{value}");
            sender.try_send(value).unwrap();
        }
        assert!(is_told());
        sleep();
        sender.try_send(0).unwrap();
        assert!(!is_told());
        assert_eq!(sender.try_send(0), Err(0));
        assert!(is_told());
    }

    /// Threads that do the same work take from one lane: one that is busy keeps no value from those that are free.
    #[test]
    fn whoever_is_free_takes_the_next() {
        let (sender, busy) = lane(4, &Waker::for_thread());
        let free = busy.clone();
        (0..4).for_each(|value| sender.try_send(value).unwrap());
        assert_eq!(sender.try_send(4), Err(4));
        assert_eq!(busy.try_recv(), Some(0));
        assert_eq!(free.drain(9).collect::<Vec<_>>(), [1, 2, 3]);
        drop(busy);
        assert_eq!(sender.try_send(5), Ok(()));
        drop(free);
        assert_eq!(sender.try_send(6), Err(6));
    }

    /// A receiver that asks without a pause loses no value, and hears of the end only after the last one.
    #[test]
    fn the_end_comes_after_the_last_value() {
        const VALUES: u32 = 20_000;
        let (sender, receiver) = lane(1_024, &Waker::for_thread());
        let giving = thread::spawn(move || {
            for value in 0..VALUES {
                sender.send(value).unwrap();
                // Slower than the receiver, so that values meet it between two questions.
                (0..500).for_each(|_| std::hint::spin_loop());
            }
        });
        let mut taken = Vec::new();
        let end = loop {
            match receiver.recv_within(Duration::ZERO) {
                Ok(value) => taken.push(value),
                Err(NoMail::Yet) => {}
                Err(end) => break end,
            }
        };
        giving.join().unwrap();
        assert_eq!(end, NoMail::Ever);
        assert_eq!(taken, (0..VALUES).collect::<Vec<_>>());
    }

    /// Any lane that holds something keeps the reactor from sleeping.
    #[test]
    fn inbox_is_empty_only_as_a_whole() {
        let waker = Waker::for_thread();
        let (post, inbox) = reactor_lanes(&waker, 1);
        assert!(inbox.is_empty());
        post.control.try_send(Control::Snapshot).unwrap();
        assert!(!inbox.is_empty() && !waker.may_sleep(|| inbox.is_empty()));
        assert_eq!(inbox.control.drain(10).count(), 1);
        post.group.try_send(Group::default()).unwrap();
        assert!(!inbox.is_empty());
    }

    /// Credit never goes below zero and comes back whole.
    #[test]
    fn credit_is_bounded() {
        let credit = Credit::new(100);
        assert!(credit.take(60));
        assert!(!credit.clone().take(41));
        assert!(credit.take(40));
        credit.give(60);
        assert_eq!(credit.left(), 60);
    }

    /// Four producers each wait for the answer to one value before they send the next, so nearly every value meets a thread about
    /// to sleep, on both ways. A lost wake-up shows as a value that was there all the time while somebody waited ten seconds for it.
    #[test]
    fn no_wake_up_is_lost() {
        const PRODUCERS: usize = 4;
        const VALUES: u32 = 3_000;
        let owner = Waker::for_thread();
        let (sender, receiver) = lane(PRODUCERS, &owner);
        let mut answers = Vec::new();
        let mut producers = Vec::new();
        for producer in 0..PRODUCERS {
            let mine = Waker::for_thread();
            let (answer, answered) = lane(1, &mine);
            answers.push(answer);
            let sender = sender.clone();
            producers.push(thread::spawn(move || {
                for value in 0..VALUES {
                    sender.try_send((producer, value)).unwrap();
                    assert_eq!(next(&mine, &answered), value);
                }
            }));
        }
        for _ in 0..VALUES as usize * PRODUCERS {
            let (producer, value) = next(&owner, &receiver);
            answers[producer].try_send(value).unwrap();
        }
        producers.into_iter().for_each(|producer| producer.join().unwrap());
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    fn next<T>(waker: &Waker, lane: &LaneReceiver<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(value) = lane.try_recv() {
                assert!(started.elapsed() < PATIENCE, "a wake-up was lost");
                return value;
            }
            waker.park(PATIENCE, || lane.is_empty());
        }
    }
}
