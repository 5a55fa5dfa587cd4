//! The open-file limit: raised as far as it goes, and compared with what the configuration needs before anything starts. [libc]
//!
//! The limit holds for each descriptor *table*, and threads may have tables of their own: N reactors then hold N times the limit, and
//! no two of them wait for one another at a table. A number means nothing in another table; so a [`crate::io::socket::Socket`] does not
//! leave its thread, and only what was open below the mark of [`take_own_table`] exists, as a copy, everywhere.

use std::fmt;
use std::io;

use crate::limits;

/// What the process has and what it needs, in descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptors {
    /// The soft limit after raising it to the hard one.
    pub limit: u64,
    /// The share of one table of the configured connections, and what else a table holds.
    pub need: u64,
    /// Tables that hold connections.
    pub tables: u64,
    /// All configured connections.
    pub connections: u64,
}

impl Descriptors {
    /// Raises the limit as far as the hard one allows and compares.
    ///
    /// # Errors
    /// The kernel's, when it does not tell the limit. A refused raise is no error: the old limit then counts.
    pub fn for_connections(connections: u64) -> io::Result<Self> {
        Ok(Self { limit: raise()?, need: need(connections, 1), tables: 1, connections })
    }

    /// The same if each of so many reactors has a table of its own, which it leaves some free of: see [`limits::TABLE_FULL_PERCENT`].
    ///
    /// # Errors
    /// As above.
    pub fn for_tables(connections: u64, tables: u64) -> io::Result<Self> {
        Ok(Self { limit: raise()?, need: need(connections, tables), tables, connections })
    }

    /// Connections that fit one table.
    #[must_use]
    pub fn connections_per_table(&self) -> u64 {
        self.limit.saturating_sub(spare(self.tables))
    }

    /// Whether the gateway may start.
    #[must_use]
    pub fn suffice(&self) -> bool {
        self.need <= self.limit
    }

    /// Tables that would be enough under this limit.
    fn tables_enough(&self) -> Option<u64> {
        (2..=limits::REACTORS_MAX.unsigned_abs()).find(|&tables| need(self.connections, tables) <= self.limit)
    }

    /// Connections that fit all tables.
    #[must_use]
    pub fn connections_enough(&self) -> u64 {
        let each = self.connections_per_table();
        if self.tables == 1 { each } else { each * self.tables * limits::TABLE_FULL_PERCENT / 100 }
    }
}

impl fmt::Display for Descriptors {
    /// One line for the operator, with the remedies when there is need of one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "open files: limit {}, need {}", self.limit, self.need)?;
        if self.tables > 1 {
            write!(f, " in each of {} tables", self.tables)?;
        }
        if self.suffice() {
            return Ok(());
        }
        write!(
            f,
            "; raise the hard limit to {} (systemd: LimitNOFILE=, container: --ulimit nofile=, shell: ulimit -Hn), ",
            self.need
        )?;
        if let Some(tables) = self.tables_enough() {
            write!(f, "set reactors to {tables} or more, each with a table of its own (reactor.private_fds = \"auto\"), ")?;
        }
        write!(f, "or lower limits.connections_max to {}", self.connections_enough())
    }
}

/// Gives the calling thread a table of its own, with the descriptors up to `last_kept` in it and nothing else.
///
/// To be called as the first act of a thread, before it opens anything. One call that unshares and drops the copies: a bare
/// `unshare` would keep every file of the process open in this table too, and the usual container filter refuses it.
///
/// # Errors
/// The kernel's; Linux 5.9 is needed.
pub fn take_own_table(last_kept: i32) -> io::Result<()> {
    let first = u32::try_from(last_kept + 1).expect("a descriptor is not negative");
    // SAFETY: the call takes three integers. What it closes in the new table is open in the old one still, where its owners are: this
    // thread owns no descriptor yet.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_UNSHARE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Descriptors that one of so many tables must hold.
fn need(connections: u64, tables: u64) -> u64 {
    let share = if tables == 1 { connections } else { (connections * 100).div_ceil(tables * limits::TABLE_FULL_PERCENT) };
    share.saturating_add(spare(tables))
}

/// What a table holds beside connections. One of a reactor's own: standard files, every bell, ring or poll, listener.
fn spare(tables: u64) -> u64 {
    if tables == 1 { limits::DESCRIPTORS_SPARE } else { tables + limits::DESCRIPTORS_OF_TABLE }
}

/// Sets the soft limit to the hard one; returns the soft limit in force.
fn raise() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a writable structure of the type asked for.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let wanted = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: `wanted` is a readable structure of the type asked for.
    let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wanted) } == 0;
    Ok(if raised { limit.rlim_max } else { limit.rlim_cur })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit is read and raised, and a need beyond it is said with its remedy in one line.
    #[test]
    fn a_lack_names_its_remedy() {
        let few = Descriptors::for_connections(0).unwrap();
        assert!(few.suffice(), "{few}");
        let lack = Descriptors { limit: 20_000, need: need(100_000, 1), tables: 1, connections: 100_000 };
        assert!(!lack.suffice());
        let line = lack.to_string();
        assert!(line.contains("limit 20000, need 100256; raise the hard limit to 100256 "), "{line}");
        assert!(line.contains("set reactors to 6 or more") && line.contains("to 19744"), "{line}");
        assert!(!line.contains('\n'));
        let lack = Descriptors { limit: 256, need: need(1_100, 4), tables: 4, connections: 1_100 };
        let line = lack.to_string();
        assert!(line.contains("limit 256, need 301 in each of 4 tables; raise"), "{line}");
        assert!(line.contains("set reactors to 5 or more") && line.contains("to 925"), "{line}");
        // What it advises is enough.
        assert!(need(925, 4) <= 256 && need(926, 4) > 256 && need(1_100, 5) <= 256);
    }

    /// A table of its own keeps what is below the mark and nothing else; what it opens and closes there, nobody else sees.
    #[test]
    fn a_table_of_its_own_is_nobody_elses() {
        use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
        let kept = std::fs::File::open("/dev/null").unwrap();
        let (first, last) = (kept.as_raw_fd(), kept.as_raw_fd());
        // SAFETY: F_DUPFD returns a new descriptor from a number on, which nobody else owns.
        let theirs = unsafe { OwnedFd::from_raw_fd(libc::fcntl(first, libc::F_DUPFD, last + 1)) };
        let number = theirs.as_raw_fd();
        std::thread::spawn(move || {
            take_own_table(last).unwrap();
            // SAFETY: F_GETFD takes and returns integers.
            assert!(unsafe { libc::fcntl(first, libc::F_GETFD) } >= 0);
            // SAFETY: as above.
            assert!(unsafe { libc::fcntl(number, libc::F_GETFD) } < 0);
            // SAFETY: dup returns a new descriptor of this table, which nobody else owns.
            drop(unsafe { OwnedFd::from_raw_fd(libc::dup(first)) });
        })
        .join()
        .unwrap();
        // SAFETY: as above.
        assert!(unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0);
        drop(theirs);
    }
}
