//! Newcomers: one at a time from each listener, and patience when there is no room.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use super::Uring;
use crate::io::driver::{Door, Sink};
use crate::io::socket::{Listener, is_passing};
use crate::limits;

/// Accepting.
impl Uring {
    /// Newcomers wait, or did: the poll on a listener ends with one event, and the next begins with a look at the queue. They are
    /// taken one by one, because the core may say "no more" after each; what a multishot accept had taken by then could not be put back.
    pub(super) fn handle_newcomers<S: Sink<Self>>(&mut self, door: Door, result: i32, sink: &mut S) {
        self.accepting.doors[door.0].armed = false;
        if result < 0 {
            return self.accept_failed(io::Error::from_raw_os_error(-result), sink);
        }
        for _ in 0..limits::ACCEPTS_PER_TURN_MAX {
            if !self.accepting.wanted() {
                return;
            }
            self.counters.system_calls_count += 1;
            match self.accepting.doors[door.0].listener.accept() {
                Ok(socket) => {
                    self.accepting.retry = limits::ACCEPT_RETRY_MIN;
                    sink.accepted(self, socket, door);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_passing(&error) => {}
                Err(error) => return self.accept_failed(error, sink),
            }
        }
    }

    pub(super) fn accept_failed<S: Sink<Self>>(&mut self, error: io::Error, sink: &mut S) {
        self.counters.accept_errors_count += 1;
        let retry = self.accepting.back_off();
        sink.accept_failed(self, error, retry);
    }
}

/// A listener.
#[derive(Debug)]
pub(super) struct Entrance {
    pub(super) listener: Listener,
    /// The kernel has the entry.
    pub(super) armed: bool,
}

#[derive(Debug)]
pub(super) struct Accepting {
    pub(super) doors: Vec<Entrance>,
    pub(super) on: bool,
    /// Out of the group of listeners.
    pub(super) absent: bool,
    /// Not before this, for want of descriptors or memory.
    pub(super) retry_at: Option<Instant>,
    /// The next wait.
    pub(super) retry: Duration,
}

impl Accepting {
    pub(super) fn new(listeners: Vec<Listener>) -> Self {
        let doors = listeners.into_iter().map(|listener| Entrance { listener, armed: false }).collect();
        Self { doors, on: true, absent: false, retry_at: None, retry: limits::ACCEPT_RETRY_MIN }
    }

    pub(super) fn wanted(&self) -> bool {
        self.on && !self.absent && self.doors.iter().any(|door| !door.armed)
    }

    pub(super) fn back_off(&mut self) -> Duration {
        let retry = self.retry;
        self.retry_at = Some(Instant::now() + retry);
        self.retry = (retry * 2).min(limits::ACCEPT_RETRY_MAX);
        retry
    }
}
