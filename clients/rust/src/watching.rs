//! Whose presence is wanted (docs/protocol.md section 8.5).
//!
//! The gateway keeps a set for one connection, until its time is over. So it is asked for again after every WELCOME and RESYNC, and
//! renewed before its time is over.

use std::collections::BTreeSet;
use std::time::Duration;

use tidegate::ids::is_user;

use crate::random::Random;

/// Most users in a set. More: [`BadWatch::TooMany`].
const USERS_MAX: usize = 200;
/// Longest that a set lasts without being renewed.
const TTL_MAX: Duration = Duration::from_secs(300);

/// Why a set of users cannot be watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum BadWatch {
    /// More than 200 users.
    TooMany,
    /// One of them is not a user id.
    BadUser,
    /// A time above 300 s.
    TooLong,
}

impl std::fmt::Display for BadWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TooMany => "at most 200 users can be watched: name fewer",
            Self::BadUser => "not a user id: 1 to 64 bytes of A-Z a-z 0-9 _ . @ -",
            Self::TooLong => "a set lasts for at most 300 s: it is renewed by itself",
        })
    }
}

impl std::error::Error for BadWatch {}

/// Users to watch, and how long the gateway shall keep them without hearing of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Wish {
    users: BTreeSet<String>,
    ttl: Duration,
}

impl Wish {
    /// A set of users; `ttl` zero stands for the longest.
    pub(crate) fn new(users: &[&str], ttl: Duration) -> Result<Self, BadWatch> {
        let users: BTreeSet<String> = users.iter().map(|&user| user.to_owned()).collect();
        if users.len() > USERS_MAX {
            return Err(BadWatch::TooMany);
        }
        if !users.iter().all(|user| is_user(user)) {
            return Err(BadWatch::BadUser);
        }
        if ttl > TTL_MAX {
            return Err(BadWatch::TooLong);
        }
        // In whole seconds, as WATCH tells it.
        let ttl = Duration::from_secs(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0));
        Ok(Self { users, ttl: if ttl.is_zero() { TTL_MAX } else { ttl } })
    }

    fn ttl_s(&self) -> u32 {
        u32::try_from(self.ttl.as_secs()).expect("at most 300")
    }
}

/// The set that is wanted, and what the gateway knows of it.
#[derive(Debug, Default)]
pub(crate) struct Watching {
    wish: Option<Wish>,
    /// When WATCH is to be sent next.
    due: Option<Duration>,
    /// rid of the last WATCH on its way.
    asked: Option<u32>,
}

impl Watching {
    /// Another set is wanted from now on; an empty one ends watching, and says nothing where nobody is watched.
    pub(crate) fn want(&mut self, wish: Wish) {
        if wish.users.is_empty() && self.wish.is_none() {
            return;
        }
        self.wish = Some(wish);
        self.ask_at(Duration::ZERO);
    }

    /// A connection begins, or something may have been missed: the set is asked for at `at`.
    pub(crate) fn ask_at(&mut self, at: Duration) {
        self.asked = None;
        self.due = self.wish.is_some().then_some(at);
    }

    /// The connection is gone, and with it the set.
    pub(crate) fn disconnected(&mut self) {
        self.wish.take_if(|wish| wish.users.is_empty());
        self.asked = None;
        self.due = None;
    }

    /// The next WATCH to write: seconds and users. It is renewed between half and three quarters of its time, so that those who began
    /// together do not stay together.
    pub(crate) fn next(&mut self, now: Duration, rid: u32, random: &mut Random) -> Option<(u32, Vec<String>)> {
        self.due.take_if(|at| *at <= now)?;
        let wish = self.wish.as_ref()?;
        self.asked = Some(rid);
        if !wish.users.is_empty() {
            self.due = Some(now + wish.ttl / 2 + random.up_to(wish.ttl / 4));
        }
        Some((wish.ttl_s(), wish.users.iter().cloned().collect()))
    }

    /// Whether the last WATCH waits for its answer under this rid.
    pub(crate) fn is_asked(&self, rid: u32) -> bool {
        self.asked == Some(rid)
    }

    /// OK: the set is in force.
    pub(crate) fn done(&mut self) {
        self.asked = None;
        self.wish.take_if(|wish| wish.users.is_empty());
    }

    /// ERROR: asked again at `retry_at`. `None`: not before the next connection or RESYNC.
    pub(crate) fn refused(&mut self, retry_at: Option<Duration>) {
        self.asked = None;
        self.due = retry_at;
    }

    /// When something happens by itself, at the earliest.
    pub(crate) fn wake_at(&self) -> Option<Duration> {
        self.due.filter(|at| !at.is_zero())
    }
}
