//! How much several connections may do together: all devices of a user, and all connections from one address, on whatever core.
//!
//! An address is an IPv4 address or an IPv6 network of 64 bits, which is what one customer gets. It is judged as soon as it is known: at
//! accept, after a PROXY header, or after the request head; in any case before a token is looked at.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Shard;
use crate::address::Networks;
use crate::ids::ConnectionId;
use crate::limits::{COUNTED_ADDRESSES_MAX, METERED_KEYS_MAX};
use crate::observe::counters::CloseCause;
use crate::session::meters::{Meters, Tally};
use crate::session::rate::Rate;
use crate::wire::upgrade::Refusal;

/// What connections share, and how much of it.
#[derive(Clone, Default, Debug)]
pub struct Quotas {
    /// As so many connections a user may send, read and signal with all devices together; 0: no limit.
    pub user_connections: u16,
    /// Connects of one address.
    pub address_rate: Rate,
    /// Open connections of one address; 0: no limit.
    pub address_connections: u32,
    /// Addresses that are not judged.
    pub exempt: Networks,
    /// The tables of the node, the same for all its cores.
    pub tables: Arc<Tables>,
}

/// See [`Quotas::tables`].
#[derive(Debug)]
pub struct Tables {
    users: Meters,
    addresses: Meters,
    open: Tally,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            users: Meters::new(METERED_KEYS_MAX),
            addresses: Meters::new(METERED_KEYS_MAX),
            open: Tally::new(COUNTED_ADDRESSES_MAX),
        }
    }
}

/// What a command is counted as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Class {
    /// SEND.
    Send,
    /// FETCH, SYNC, READ and WATCH.
    Read,
    /// SIGNAL.
    Signal,
    /// None: having been closed for going on regardless.
    CutOff,
}

impl Shard {
    /// Takes one command of a class from what all devices of the user may do together.
    ///
    /// # Errors
    /// Milliseconds to wait.
    pub(super) fn take_of_user(&mut self, id: ConnectionId, class: Class, credit: u16) -> Result<(), u32> {
        let (rate, now_ns) = (self.user_rate(class), self.now.mono_ns);
        let Some(key) = self.session_mut(id).map(|session| key_of(session.user_hash, class)) else { return Ok(()) };
        let taken = self.rules.quotas.tables.users.take(key, rate, now_ns, credit);
        self.counters.users_limited_count += u64::from(taken.is_err());
        taken
    }

    /// Puts a SEND back that cost nothing.
    pub(super) fn give_back_to_user(&mut self, id: ConnectionId) {
        let (rate, now_ns) = (self.user_rate(Class::Send), self.now.mono_ns);
        let Some(key) = self.session_mut(id).map(|session| key_of(session.user_hash, Class::Send)) else { return };
        self.rules.quotas.tables.users.give_back(key, rate, now_ns);
    }

    /// Notes that a user was cut off for its rate: its next HELLOs are refused for [`CUT_OFF`].
    pub(super) fn note_cut_off(&mut self, id: ConnectionId) {
        let now_ns = self.now.mono_ns;
        let Some(user_hash) = self.session_mut(id).map(|session| session.user_hash) else { return };
        self.rules.quotas.tables.users.drain(key_of(user_hash, Class::CutOff), CUT_OFF, now_ns);
    }

    /// Milliseconds until a user that was cut off may come back; 0: it may.
    pub(super) fn cut_off_ms(&self, user_hash: u64) -> u32 {
        self.rules.quotas.tables.users.owed_ms(key_of(user_hash, Class::CutOff), self.now.mono_ns)
    }

    /// Takes one read of this connection and of its user.
    ///
    /// # Errors
    /// Milliseconds to wait.
    pub(super) fn take_read(&mut self, id: ConnectionId) -> Result<(), u32> {
        let now_ms = self.now_ms();
        self.cold[id].reads.take(self.rules.read_rate, now_ms)?;
        self.take_of_user(id, Class::Read, 0)?;
        self.cold[id].abuse_count = 0;
        Ok(())
    }

    /// A user's rate: so many times that of one connection.
    fn user_rate(&self, class: Class) -> Rate {
        let rate = match class {
            Class::Send => self.rules.send_rate,
            Class::Read => self.rules.read_rate,
            Class::Signal => self.rules.signal_rate,
            Class::CutOff => return CUT_OFF,
        };
        let times = u32::from(self.rules.quotas.user_connections);
        Rate { per_second: rate.per_second.saturating_mul(times), burst: rate.burst.saturating_mul(times) }
    }

    /// Counts a connection that has just been accepted towards the node's rate, and judges it by its address, unless a balancer is to say
    /// whom it speaks for.
    pub fn judge_newcomer(&mut self, id: ConnectionId, peer: Option<SocketAddr>) {
        self.entries.take(&self.rules.pace, self.rules.accept_rate, self.now.mono_ns);
        if let Some(peer) = peer {
            self.judge_address(id, peer.ip());
        }
    }

    /// Counts a connection for its address, or refuses it. Returns whether it may go on; a balancer, and whoever is exempt, may.
    pub(super) fn judge_address(&mut self, id: ConnectionId, address: IpAddr) -> bool {
        let Quotas { address_rate, address_connections, exempt, tables, .. } = &self.rules.quotas;
        let is_judged = address_rate.per_second > 0 || *address_connections > 0;
        if !is_judged || exempt.contain(address) || self.rules.balancers.networks.contain(address) {
            return true;
        }
        let hash = self.rules.hashes.address(address);
        let key = (hash >> 32) as u32;
        let may_come = tables.addresses.take(hash, *address_rate, self.now.mono_ns, 0).is_ok();
        let most = if *address_connections == 0 { u32::MAX } else { *address_connections };
        if may_come && tables.open.enter(key, most).is_ok() {
            self.cold[id].address = Some(key);
            return true;
        }
        self.counters.addresses_limited_count += 1;
        self.refuse_address(id);
        false
    }

    /// 429, as long as answers are cheap enough; beyond the rate of refusals a reset.
    fn refuse_address(&mut self, id: ConnectionId) {
        if !self.may_refuse(self.now) {
            return self.abort(id, CloseCause::RateLimited);
        }
        self.note_refusal();
        self.refuse_upgrade(id, Refusal::RateLimited, CloseCause::RateLimited);
    }

    /// A connection is gone: its address has one fewer.
    pub(super) fn leave_address(&self, address: Option<u32>) {
        if let Some(key) = address {
            self.rules.quotas.tables.open.leave(key);
        }
    }

    /// A time to wait, and up to a quarter more, so that those who are refused together do not come back together.
    #[expect(clippy::expect_used, reason = "a remainder is below its divisor, a quarter of 32 bits")]
    pub(super) fn jittered(&mut self, wait_ms: u32) -> u32 {
        // splitmix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let span = u64::from(wait_ms / 4) + 1;
        let more = u32::try_from((mixed ^ mixed >> 31) % span).expect("below 2^30");
        wait_ms.saturating_add(more)
    }
}

/// Whoever was cut off stays away for a burst of this: 10 s.
const CUT_OFF: Rate = Rate { per_second: 1, burst: 10 };

/// Each class of a user has a meter of its own.
fn key_of(user_hash: u64, class: Class) -> u64 {
    user_hash ^ u64::from(class as u8).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
