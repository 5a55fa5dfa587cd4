//! When to send next, whatever the answers do, and the clock latencies are read from.                               [rustix]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime};

/// An even schedule with a timer of microsecond grain: a poll's own time-out has one of a millisecond.
pub struct Pace {
    timer: OwnedFd,
    origin: Instant,
    /// When the schedule begins, since the origin.
    start_ns: u64,
    rate: u64,
    sent_count: u64,
}

impl Pace {
    /// `rate` messages per second from now on; times count from `origin`.
    pub fn new(rate: u64, origin: Instant) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let start_ns = nanos(origin.elapsed());
        Ok(Self { timer, origin, start_ns, rate, sent_count: 0 })
    }

    /// The intended time of the next message, in nanoseconds since the origin, if it has come.
    pub fn due(&mut self) -> Option<u64> {
        let at = self.next();
        if at > nanos(self.origin.elapsed()) {
            return None;
        }
        self.sent_count += 1;
        Some(at)
    }

    /// Arms the timer for the next message.
    pub fn arm(&self) -> io::Result<()> {
        let left = self.next().saturating_sub(nanos(self.origin.elapsed())).max(1);
        let value = Timespec { tv_sec: 0, tv_nsec: i64::try_from(left).unwrap_or(999_999_999).min(999_999_999) };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    fn next(&self) -> u64 {
        self.start_ns + self.sent_count * 1_000_000_000 / self.rate
    }
}

impl AsFd for Pace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

/// Nanoseconds; 584 years fit.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
