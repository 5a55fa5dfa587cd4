//! Ending the wait of another thread, at most once per sleep.                                                         [libc]
//!
//! A producer must not pay a system call for each value it pushes, and a sleeper must not miss the last one. Both follow from
//! one byte that says whether the owner sleeps, and from the order in which the two sides look:
//!
//! ```text
//!  owner                                   producer
//!  state := Sleeping                       push the value
//!  fence(SeqCst)                           fence(SeqCst)
//!  look into the inbox again ──► not empty: do not wait
//!  wait                                    compare-exchange Sleeping -> Awake wins? ring the bell
//!  state := Awake
//! ```
//!
//! Of the two fences one is first: either the owner sees the value when it looks again, or the producer sees `Sleeping` and
//! rings. Of many producers one wins the exchange, so a burst costs one system call.
//!
//! The bell is an eventfd for a reactor (its driver waits on it, edge-triggered, so the counter is never read back) and `unpark`
//! for a thread without a driver.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::io::atomic::thread::{self, Thread};
use crate::io::atomic::{AtomicU8, Ordering, fence};
use crate::mutant::{self, Mutant};

/// Ends the wait of one thread. Cheap to clone; may be used from any thread.
///
/// The owner calls [`Waker::may_sleep`], waits, then [`Waker::awake`]; everyone else calls [`Waker::wake`] after pushing.
#[derive(Clone, Debug)]
pub struct Waker {
    inner: Arc<Inner>,
}

impl Waker {
    /// A waker for a thread that waits in a driver. The main thread makes all of them before the reactors start, so that the
    /// descriptor has the same number in every descriptor table.
    ///
    /// # Errors
    /// The kernel's, for want of descriptors or memory.
    pub fn for_driver() -> io::Result<Self> {
        Ok(Self::with_bell(Bell::Event(eventfd()?)))
    }

    /// A waker for a thread that waits in [`Waker::park`]. It may be made, and given to producers, before that thread exists.
    #[must_use]
    pub fn for_thread() -> Self {
        Self::with_bell(Bell::Thread(OnceLock::new()))
    }

    /// Ends the wait of the owner if it sleeps. Call it after the push, never before: see the module text.
    ///
    /// Cost: a fence and a load while the owner is awake; one system call per sleep otherwise.
    pub fn wake(&self) {
        if !mutant::on(Mutant::FenceForgotten) {
            fence(Ordering::SeqCst);
        }
        // The plain load keeps the line shared between producers while the owner is awake, which is the usual case under load.
        if self.inner.state.load(Ordering::Relaxed) == SLEEPING
            && self.inner.state.compare_exchange(SLEEPING, AWAKE, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.inner.bell.ring();
        }
    }

    /// Announces that the owner is about to wait, then asks `is_empty` once more about its inbox.
    ///
    /// Returns whether it may wait; if not, it counts as awake again. To be called by the owner alone.
    pub fn may_sleep(&self, is_empty: impl FnOnce() -> bool) -> bool {
        self.inner.state.store(SLEEPING, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let empty = mutant::on(Mutant::LookAgainForgotten) || is_empty();
        if !empty {
            self.awake();
        }
        empty
    }

    /// The owner is awake: it will look into its inbox before it next sleeps, so nobody needs to ring.
    pub fn awake(&self) {
        self.inner.state.store(AWAKE, Ordering::Relaxed);
    }

    /// Whether the owner has announced that it waits, and nobody has ended that.
    #[cfg(test)]
    pub fn is_asleep(&self) -> bool {
        self.inner.state.load(Ordering::Relaxed) == SLEEPING
    }

    /// Waits until woken or for `max_wait`, unless `is_empty` says otherwise. For the owner of a [`Waker::for_thread`] alone.
    ///
    /// May return early for no reason, as parking may; the caller looks into its inbox anyway.
    ///
    /// # Panics
    /// If this is a [`Waker::for_driver`], or another thread has parked here before.
    pub fn park(&self, max_wait: Duration, is_empty: impl FnOnce() -> bool) {
        let Bell::Thread(owner) = &self.inner.bell else { panic!("a driver's owner waits in its driver") };
        let current = thread::current();
        assert!(owner.get_or_init(|| current.clone()).id() == current.id(), "one thread owns a waker");
        if self.may_sleep(is_empty) {
            thread::park_timeout(max_wait);
            self.awake();
        }
    }

    /// The eventfd, for the driver to watch. `None` for a [`Waker::for_thread`].
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.inner.bell {
            Bell::Event(fd) => Some(fd.as_fd()),
            Bell::Thread(_) => None,
        }
    }
}

#[derive(Debug)]
struct Inner {
    state: AtomicU8,
    bell: Bell,
}

#[derive(Debug)]
enum Bell {
    Event(OwnedFd),
    /// Set when the owner first parks. Until then the state is never `SLEEPING`, so nobody rings.
    Thread(OnceLock<Thread>),
}

impl Waker {
    fn with_bell(bell: Bell) -> Self {
        Self { inner: Arc::new(Inner { state: AtomicU8::new(AWAKE), bell }) }
    }
}

impl Bell {
    fn ring(&self) {
        match self {
            Self::Event(fd) => ring_eventfd(fd.as_fd()),
            Self::Thread(owner) => owner.get().expect("the owner sleeps, so it has parked").unpark(),
        }
    }
}

fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: eventfd takes two integers and no pointer.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above returned this descriptor, so it is open and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn ring_eventfd(fd: BorrowedFd<'_>) {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: the borrow keeps the descriptor open, and `one` is eight readable bytes that outlive the call.
    let written = unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    // The counter is not read back; it would take 2^64 - 2 wake-ups to refuse one.
    debug_assert_eq!(written, 8);
}

const AWAKE: u8 = 0;
const SLEEPING: u8 = 1;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use super::*;

    fn count(waker: &Waker) -> u64 {
        let mut bytes = [0; 8];
        let fd = waker.descriptor().unwrap().as_raw_fd();
        // SAFETY: the waker keeps the descriptor open, and `bytes` is eight writable bytes.
        let read = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), 8) };
        if read == 8 { u64::from_ne_bytes(bytes) } else { 0 }
    }

    /// Nobody pays for waking a thread that is awake, and a burst against a sleeper costs one write.
    #[test]
    fn bell_rings_once_per_sleep() {
        let waker = Waker::for_driver().unwrap();
        waker.wake();
        assert_eq!(count(&waker), 0);
        assert!(waker.may_sleep(|| true));
        for _ in 0..10 {
            waker.clone().wake();
        }
        assert_eq!(count(&waker), 1);
        waker.awake();
        assert!(!waker.may_sleep(|| false));
        waker.wake();
        assert_eq!(count(&waker), 0);
    }

    /// Two threads hand a number to and fro; a lost wake-up shows as five seconds of waiting.
    #[test]
    fn parked_threads_lose_no_wake_up() {
        let (left, right) = (Waker::for_thread(), Waker::for_thread());
        let slot = Arc::new(Mutex::new(0_u32));
        let other = {
            let (left, right, slot) = (left.clone(), right.clone(), slot.clone());
            std::thread::spawn(move || play(&right, &left, &slot, 1))
        };
        play(&left, &right, &slot, 0);
        other.join().unwrap();
        assert_eq!(*slot.lock().unwrap(), 4000);
    }

    const PATIENCE: Duration = Duration::from_secs(60);

    fn play(mine: &Waker, theirs: &Waker, slot: &Mutex<u32>, parity: u32) {
        for _ in 0..2000 {
            let my_turn = || *slot.lock().unwrap() % 2 == parity;
            let started = Instant::now();
            while !my_turn() {
                mine.park(PATIENCE, || !my_turn());
            }
            assert!(started.elapsed() < PATIENCE, "a wake-up was lost");
            *slot.lock().unwrap() += 1;
            theirs.wake();
        }
    }
}
