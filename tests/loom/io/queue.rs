//! A bounded queue in the place of crossbeam's, for the model: what `mailbox.rs` asks of it, and no more order than a queue must give.

use std::collections::VecDeque;
use std::time::Duration;

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};

struct Inner<T> {
    values: Mutex<VecDeque<T>>,
    /// Raised after a push: who sees it above zero sees the value. Asking takes no lock, and so orders nothing.
    len: AtomicUsize,
    bound: usize,
}

pub struct Sender<T>(Arc<Inner<T>>);
pub struct Receiver<T>(Arc<Inner<T>>);
pub struct SendError<T>(pub T);
pub struct TrySendError<T>(T);
pub struct SendTimeoutError<T>(T);
pub enum RecvTimeoutError {
    Timeout,
    Disconnected,
}

pub fn bounded<T>(bound: usize) -> (Sender<T>, Receiver<T>) {
    let inner = Arc::new(Inner { values: Mutex::new(VecDeque::new()), len: AtomicUsize::new(0), bound });
    (Sender(inner.clone()), Receiver(inner))
}

impl<T> Sender<T> {
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        {
            let mut values = self.0.values.lock().expect("no thread panics");
            if values.len() >= self.0.bound {
                return Err(TrySendError(value));
            }
            values.push_back(value);
        }
        self.0.len.fetch_add(1, Ordering::Release);
        Ok(())
    }

    pub fn send_timeout(&self, value: T, _: Duration) -> Result<(), SendTimeoutError<T>> {
        self.try_send(value).map_err(|TrySendError(value)| SendTimeoutError(value))
    }

    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.try_send(value).map_err(|TrySendError(value)| SendError(value))
    }

    pub fn len(&self) -> usize {
        self.0.len.load(Ordering::Acquire)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn capacity(&self) -> Option<usize> {
        Some(self.0.bound)
    }
}

impl<T> Receiver<T> {
    pub fn try_recv(&self) -> Result<T, ()> {
        if self.is_empty() {
            return Err(());
        }
        let value = self.0.values.lock().expect("no thread panics").pop_front().ok_or(())?;
        self.0.len.fetch_sub(1, Ordering::Relaxed);
        Ok(value)
    }

    pub fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.try_recv().ok())
    }

    pub fn recv_timeout(&self, _: Duration) -> Result<T, RecvTimeoutError> {
        self.try_recv().map_err(|()| RecvTimeoutError::Timeout)
    }

    pub fn len(&self) -> usize {
        self.0.len.load(Ordering::Acquire)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender")
    }
}

impl<T> std::fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Receiver")
    }
}

impl<T> TrySendError<T> {
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> SendTimeoutError<T> {
    pub fn into_inner(self) -> T {
        self.0
    }
}
