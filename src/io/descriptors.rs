//! The open-file limit: raised as far as it goes, and compared with what the configuration needs before anything starts. [libc]

use std::fmt;
use std::io;

use crate::limits;

/// What the process has and what it needs, in descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptors {
    /// The soft limit after raising it to the hard one.
    pub limit: u64,
    /// The configured connections and [`limits::DESCRIPTORS_SPARE`].
    pub need: u64,
}

impl Descriptors {
    /// Raises the limit as far as the hard one allows and compares.
    ///
    /// # Errors
    /// The kernel's, when it does not tell the limit. A refused raise is no error: the old limit then counts.
    pub fn for_connections(connections: u64) -> io::Result<Self> {
        Ok(Self { limit: raise()?, need: connections.saturating_add(limits::DESCRIPTORS_SPARE) })
    }

    /// Whether the gateway may start.
    #[must_use]
    pub fn suffice(&self) -> bool {
        self.need <= self.limit
    }
}

impl fmt::Display for Descriptors {
    /// One line for the operator, with the remedy when there is need of one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "open files: limit {}, need {}", self.limit, self.need)?;
        if self.suffice() {
            return Ok(());
        }
        let fitting = self.limit.saturating_sub(limits::DESCRIPTORS_SPARE);
        write!(
            f,
            "; raise the hard limit to {} (systemd: LimitNOFILE=, container: --ulimit nofile=, shell: ulimit -Hn) \
             or lower the configured connections to {fitting}",
            self.need
        )
    }
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
        let lack = Descriptors { limit: 20_000, need: 100_128 };
        assert!(!lack.suffice());
        let line = lack.to_string();
        assert!(line.contains("limit 20000, need 100128") && line.contains("to 19872"), "{line}");
        assert!(!line.contains('\n'));
    }
}
