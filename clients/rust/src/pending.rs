//! A message on its way, for who waits for it: by blocking or as a future.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tidegate::ids::Cmid;

use crate::event::{SendError, Sent};

/// A message that was asked to be sent. Resolves when the gateway has acknowledged it, or when it was given up; dropping it changes
/// nothing about the message.
#[derive(Debug)]
pub struct Pending {
    cmid: Cmid,
    slot: Arc<Slot>,
}

/// The other half of a [`Pending`]. Dropped unresolved, it says [`SendError::Stopped`].
#[derive(Debug)]
pub(crate) struct Resolver(Arc<Slot>);

#[derive(Debug, Default)]
struct Slot {
    state: Mutex<Outcome>,
    resolved: Condvar,
}

#[derive(Debug, Default)]
struct Outcome {
    result: Option<Result<Sent, SendError>>,
    waker: Option<Waker>,
}

impl Pending {
    pub(crate) fn new(cmid: Cmid) -> (Self, Resolver) {
        let slot = Arc::new(Slot::default());
        (Self { cmid, slot: Arc::clone(&slot) }, Resolver(slot))
    }

    /// The id the message is stored under.
    #[must_use]
    pub fn cmid(&self) -> Cmid {
        self.cmid
    }

    /// Blocks until it is resolved.
    ///
    /// # Errors
    /// Why it was given up.
    pub fn wait(self) -> Result<Sent, SendError> {
        let mut outcome = self.slot.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(result) = outcome.result.clone() {
                return result;
            }
            outcome = self.slot.resolved.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What is known now.
    #[must_use]
    pub fn try_result(&self) -> Option<Result<Sent, SendError>> {
        self.slot.state.lock().unwrap_or_else(PoisonError::into_inner).result.clone()
    }
}

impl Future for Pending {
    type Output = Result<Sent, SendError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut outcome = self.slot.state.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome.result.clone() {
            Some(result) => Poll::Ready(result),
            None => {
                outcome.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Resolver {
    pub(crate) fn resolve(self, result: Result<Sent, SendError>) {
        self.set(result);
    }

    fn set(&self, result: Result<Sent, SendError>) {
        let waker = {
            let mut outcome = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
            outcome.result.get_or_insert(result);
            outcome.waker.take()
        };
        self.0.resolved.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.set(Err(SendError::Stopped));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;
    use tidegate::ids::Mid;

    const SENT: Sent = Sent { cmid: Cmid([1; 16]), seq: 3, mid: Mid(4), level: 2, duplicate: false };

    /// A waiting thread gets the result of another.
    #[test]
    fn wait_returns_what_was_resolved() {
        let (pending, resolver) = Pending::new(Cmid([1; 16]));
        let waiter = std::thread::spawn(move || pending.wait());
        resolver.resolve(Ok(SENT));
        assert_eq!(waiter.join().expect("the waiter ends"), Ok(SENT));
    }

    /// As a future it wakes its task once, and is ready afterwards.
    #[test]
    fn a_future_is_woken() {
        #[derive(Default)]
        struct Count(AtomicU32);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let (mut pending, resolver) = Pending::new(Cmid([1; 16]));
        assert_eq!(Pin::new(&mut pending).poll(&mut Context::from_waker(&waker)), Poll::Pending);
        resolver.resolve(Ok(SENT));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(Pin::new(&mut pending).poll(&mut Context::from_waker(&waker)), Poll::Ready(Ok(SENT)));
    }

    /// A client that ends without an answer leaves nobody waiting.
    #[test]
    fn a_dropped_resolver_says_stopped() {
        let (pending, resolver) = Pending::new(Cmid([1; 16]));
        drop(resolver);
        assert_eq!(pending.wait(), Err(SendError::Stopped));
    }
}
