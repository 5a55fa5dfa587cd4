//! Mistakes planted on purpose, so that the tests can prove that they would see them. Without the feature `mutants` none exists, and
//! the compiler removes the question.

/// A mistake. The sentence says what is wrong while it is on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mutant {
    /// SENT and DELIVER leave before the group is written.
    AcknowledgeBeforeSync,
    /// The log is written and not synced.
    SyncForgotten,
    /// Replay begins one group late.
    ReplayOffByOne,
    /// Segments go once they are projected, not once that is checkpointed.
    LogForgetsTooMuch,
    /// The former connection of a device is not told.
    EvictForgotten,
    /// The bodies of messages do not give their credit back.
    CreditKept,
    /// What waited for a conversation to be loaded is not carried out.
    UnparkForgotten,
    /// A RETRY that memory does not know is taken for new.
    RetryNotLookedUp,
    /// QUIET messages count as unread.
    QuietCounted,
    /// Recent cmids are not remembered.
    DedupForgotten,
    /// A reactor holds nothing after a failed SEND.
    HoldNotKept,
    /// The store holds nothing after a failed SEND.
    StoreHoldNotKept,
    /// What is parked comes out in the wrong order.
    OrderSwapped,
    /// Conversations that moved while there was no room are not told.
    MarksForgotten,
    /// Deliveries go out whatever is unacknowledged.
    WindowNotEnforced,
    /// SYNC counts the last read message as unread.
    UnreadOffByOne,
    /// An earlier tenant's key opens a slot.
    StaleGeneration,
    /// The sender's other devices get nothing.
    OwnDevicesForgotten,
    /// Receivers are not looked up again when devices come and go.
    RouteRemembered,
    /// Reading is not taken up again after a pause.
    ResumeForgotten,
    /// Room in the kernel wakes nobody.
    WritableForgotten,
    /// A FETCH behind another is never asked.
    NextPageForgotten,
    /// READ is answered and not logged.
    ReadNotKept,
    /// A torn group is left in the log.
    TailNotCut,
}

impl Mutant {
    /// All of them.
    pub const ALL: &[Mutant] = &[
        Mutant::AcknowledgeBeforeSync,
        Mutant::SyncForgotten,
        Mutant::ReplayOffByOne,
        Mutant::LogForgetsTooMuch,
        Mutant::EvictForgotten,
        Mutant::CreditKept,
        Mutant::UnparkForgotten,
        Mutant::RetryNotLookedUp,
        Mutant::QuietCounted,
        Mutant::DedupForgotten,
        Mutant::HoldNotKept,
        Mutant::StoreHoldNotKept,
        Mutant::OrderSwapped,
        Mutant::MarksForgotten,
        Mutant::WindowNotEnforced,
        Mutant::UnreadOffByOne,
        Mutant::StaleGeneration,
        Mutant::OwnDevicesForgotten,
        Mutant::RouteRemembered,
        Mutant::ResumeForgotten,
        Mutant::WritableForgotten,
        Mutant::NextPageForgotten,
        Mutant::ReadNotKept,
        Mutant::TailNotCut,
    ];
}

/// Whether a mistake is on.
#[cfg(not(feature = "mutants"))]
#[must_use]
#[inline(always)]
pub const fn on(_: Mutant) -> bool {
    false
}

/// Whether a mistake is on, on this thread.
#[cfg(feature = "mutants")]
#[must_use]
pub fn on(mutant: Mutant) -> bool {
    PRESENT.get() == Some(mutant)
}

/// Switches one mistake on, and any other off, on this thread.
#[cfg(feature = "mutants")]
pub fn set(mutant: Option<Mutant>) {
    PRESENT.set(mutant);
}

#[cfg(feature = "mutants")]
thread_local! {
    static PRESENT: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}
