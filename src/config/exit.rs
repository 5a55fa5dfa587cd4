//! The exit codes of the process: one list for the program, `--help` and `docs/operations.md`.

/// How the process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Done, or drained after a signal.
    Ok = 0,
    /// Something failed that has no code of its own; the last line on standard error says what.
    Failed = 1,
    /// The command line, the environment or the configuration file is wrong. Nothing was started.
    Usage = 2,
    /// Writing or syncing the log failed. What was acknowledged is on disk; look at the disk before starting again.
    StorageFailed = 3,
    /// The log is damaged in the middle. Nothing was started and nothing was changed.
    LogCorrupt = 4,
    /// An address could not be bound.
    AddressInUse = 5,
    /// Another process has the data directory.
    DataDirLocked = 6,
    /// The connections asked for do not fit the limit of open files.
    OpenFiles = 7,
    /// A second signal arrived while draining: connections were cut.
    Aborted = 8,
    /// `ctl` found no gateway to ask.
    NoAnswer = 9,
    /// `verify` found something lost, duplicate, reordered or late.
    Findings = 10,
}

impl Exit {
    /// All codes, each with what an operator should know.
    pub const ALL: &[(Exit, &str)] = &[
        (Exit::Ok, "done, or drained after SIGTERM or SIGINT"),
        (Exit::Failed, "failed for a reason without a code of its own; the last line on standard error says which"),
        (Exit::Usage, "wrong command line, environment or configuration; nothing was started"),
        (Exit::StorageFailed, "writing or syncing the log failed; what was acknowledged is on disk"),
        (Exit::LogCorrupt, "the log is damaged in the middle; nothing was started, see --accept-loss"),
        (Exit::AddressInUse, "an address could not be bound"),
        (Exit::DataDirLocked, "another process has the data directory"),
        (Exit::OpenFiles, "limits.connections_max does not fit the limit of open files"),
        (Exit::Aborted, "a second signal cut a drain short"),
        (Exit::NoAnswer, "ctl: no gateway answers at that address"),
        (Exit::Findings, "verify: something is lost, duplicate, reordered or late"),
    ];

    /// The number the shell sees.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list is complete and in order: code n stands at place n.
    #[test]
    fn the_list_is_in_the_order_of_the_codes() {
        for (place, (exit, _)) in Exit::ALL.iter().enumerate() {
            assert_eq!(usize::from(exit.code()), place);
        }
        assert_eq!(Exit::ALL.last().map(|(exit, _)| *exit), Some(Exit::Findings));
    }
}
