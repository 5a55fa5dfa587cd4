//! The application's end of the events: to be waited for by blocking, or as futures of any runtime.

use std::future::poll_fn;
use std::ops::Deref;
use std::sync::mpsc::{IntoIter, Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use crate::event::Event;

/// Events of a client, in order. A [`Receiver`] for who blocks; [`Events::next`] for who awaits.
#[derive(Debug)]
pub struct Events {
    receiver: Receiver<Event>,
    waker: Arc<Slot>,
}

#[derive(Debug, Default)]
struct Slot(Mutex<Option<Waker>>);

/// The other end; dropping it ends the events.
#[derive(Debug)]
pub(crate) struct Feed {
    sender: Option<SyncSender<Event>>,
    waker: Arc<Slot>,
}

/// Both ends of a queue of so many events.
pub(crate) fn events(max: usize) -> (Feed, Events) {
    let (sender, receiver) = sync_channel(max);
    let waker = Arc::new(Slot::default());
    (Feed { sender: Some(sender), waker: Arc::clone(&waker) }, Events { receiver, waker })
}

impl Events {
    /// The next event; `None`: the client has ended. Belongs to no runtime, and may be dropped unfinished without losing an event.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|context| {
            if let Some(result) = self.take() {
                return Poll::Ready(result);
            }
            *self.waker.lock() = Some(context.waker().clone());
            // It may have come before the waker stood there.
            self.take().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    fn take(&self) -> Option<Option<Event>> {
        match self.receiver.try_recv() {
            Ok(event) => Some(Some(event)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(None),
        }
    }
}

impl Deref for Events {
    type Target = Receiver<Event>;

    fn deref(&self) -> &Receiver<Event> {
        &self.receiver
    }
}

impl IntoIterator for Events {
    type Item = Event;
    type IntoIter = IntoIter<Event>;

    fn into_iter(self) -> IntoIter<Event> {
        self.receiver.into_iter()
    }
}

impl Feed {
    /// As [`SyncSender::try_send`].
    #[expect(clippy::result_large_err, reason = "what there is no room for comes back")]
    pub(crate) fn give(&self, event: Event) -> Result<(), TrySendError<Event>> {
        let sender = self.sender.as_ref().expect("taken only when dropped");
        sender.try_send(event).inspect(|()| self.waker.wake())
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.sender = None;
        self.waker.wake();
    }
}

impl Slot {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Waker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let waker = self.lock().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Context, Wake};

    #[derive(Default)]
    struct Count(AtomicU32);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A waiting task is woken by an event and by the end; a future that was dropped takes nothing with it.
    #[test]
    fn futures_see_every_event_and_the_end() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        let (feed, mut events) = events(4);
        assert!(pin!(events.next()).poll(&mut context).is_pending());
        feed.give(Event::Synced).unwrap();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(pin!(events.next()).poll(&mut context), Poll::Ready(Some(Event::Synced)));
        assert!(pin!(events.next()).poll(&mut context).is_pending());
        drop(feed);
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        assert_eq!(pin!(events.next()).poll(&mut context), Poll::Ready(None));
    }
}
