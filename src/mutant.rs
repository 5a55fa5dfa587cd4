//! Mistakes planted on purpose, so that the tests can prove that they would see them (`docs/simulation.md`). Without the feature
//! `mutants` the question is the constant `false`, and the compiler removes what hangs on it.

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!("the feature `mutants` is for tests; a release must not have it");

macro_rules! mutants {
    ($($(#[$text:meta])* $name:ident,)*) => {
        /// A mistake. The sentence says what is wrong while it is on.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Mutant {
            $($(#[$text])* $name,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Mutant] = &[$(Mutant::$name,)*];
        }
    };
}

mutants! {
    // The promise.
    /// SENT and DELIVER leave before the group is written.
    AcknowledgeBeforeSync,
    /// DELIVER leaves before the group is written, SENT after it.
    DeliverBeforeSync,
    /// The log is written and not synced.
    SyncForgotten,
    /// READ is answered and not logged.
    ReadNotKept,
    /// A page may be read before the group that it was promised.
    PageNotAwaited,

    // The start after a crash.
    /// Replay begins one group late.
    ReplayOffByOne,
    /// Segments go once they are projected, not once that is checkpointed.
    LogForgetsTooMuch,
    /// Nobody looks whether the log reaches as far as the watermark says.
    WatermarkIgnored,
    /// Retention takes rows before the floor above them is on disk.
    RowsBeforeFloor,

    // Once in effect.
    /// A RETRY that memory does not know is taken for new.
    RetryNotLookedUp,
    /// Recent cmids are not remembered.
    DedupForgotten,
    /// The bucket that is written next is emptied when a quarter begins, not the one before the oldest.
    DedupBucketEarly,

    // Order.
    /// A reactor holds nothing after a failed SEND.
    HoldNotKept,
    /// The store holds nothing after a failed SEND.
    StoreHoldNotKept,
    /// A RELEASE that this core refused is forgotten.
    ReleaseForgotten,
    /// What is parked comes out in the wrong order.
    OrderSwapped,
    /// What waited for a conversation to be loaded is not carried out.
    UnparkForgotten,
    /// A full parking refuses the newcomer, and what waits before it in its conversation is held behind it.
    ParkingRefusesNewcomer,
    /// What fails after a later message of its conversation does not take over the hold.
    EarlierFailureIgnored,
    /// What waits behind a message that waited and failed goes on waiting.
    BehindFailureKept,

    // Routes and sessions.
    /// The former connection of a device is not told.
    EvictForgotten,
    /// Revocations that are in the engine are not known after a start.
    RevocationForgotten,
    /// A revocation is answered before it is durable.
    RevocationNotDurable,
    /// A revocation ends no session.
    RevokedStays,
    /// AUTH is not asked whether its token is revoked.
    RenewalNotJudged,
    /// AUTH with a token that ends earlier shortens the session.
    RenewalShortens,
    /// A session outlives its token.
    ExpiredStays,
    /// An earlier tenant's key opens a slot.
    StaleGeneration,
    /// The sender's other devices get nothing.
    OwnDevicesForgotten,
    /// Receivers are not looked up again when devices come and go.
    RouteRemembered,
    /// A resume takes one delivery more for processed than the client said.
    ResumeOffByOne,
    /// A resumed session is not sent again what it had not acknowledged.
    ReplayForgotten,
    /// What came while a session was joining is dropped when it takes over what the one before it held.
    JoinedForgotten,

    // Windows, marks and acknowledgements.
    /// Deliveries go out whatever is unacknowledged.
    WindowNotEnforced,
    /// Conversations that moved while there was no room are not told.
    MarksForgotten,
    /// NACK counts as having the message.
    NackMovesCursor,
    /// A cursor is what was said last, not the highest.
    CursorNotMerged,
    /// The row of a cursor takes what comes, not the highest.
    CursorRowNotMerged,

    // Counting.
    /// QUIET messages count as unread.
    QuietCounted,
    /// SYNC counts the last read message as unread.
    UnreadOffByOne,

    // Waiting.
    /// The bodies of messages do not give their credit back.
    CreditKept,
    /// Reading is not taken up again after a pause.
    ResumeForgotten,
    /// Room in the kernel wakes nobody.
    WritableForgotten,
    /// A FETCH behind another is never asked.
    NextPageForgotten,
    /// Whoever is about to sleep does not look into the inbox again.
    LookAgainForgotten,
    /// Whoever gives looks at the sleeper first, and pushes then.
    WakeBeforePush,
    /// Between the push and the look at the sleeper stands no fence.
    FenceForgotten,
    /// A watcher is not told that somebody came back.
    PresenceNotTold,
    /// A PRESENCE is dropped without a note.
    PresenceLossIgnored,
    /// A watcher to whom a PRESENCE was lost is not told again.
    PresenceNotToldAgain,
}

/// Whether a mistake is on.
#[cfg(not(feature = "mutants"))]
#[must_use]
#[inline(always)]
pub const fn on(_: Mutant) -> bool {
    false
}

// What `if` and `&&` see is a constant: nothing of a mistake is compiled.
#[cfg(not(feature = "mutants"))]
const _: () = {
    let mut index = 0;
    while index < Mutant::ALL.len() {
        assert!(!on(Mutant::ALL[index]));
        index += 1;
    }
};

/// Whether a mistake is on, on this thread: the one named by `TIDEGATE_MUTANT`, unless [`set`] has said another.
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
    static PRESENT: std::cell::Cell<Option<Mutant>> = std::cell::Cell::new(named());
}

#[cfg(feature = "mutants")]
fn named() -> Option<Mutant> {
    let name = std::env::var("TIDEGATE_MUTANT").ok()?;
    let named = Mutant::ALL.iter().copied().find(|mutant| format!("{mutant:?}") == name);
    Some(named.unwrap_or_else(|| panic!("TIDEGATE_MUTANT={name}: there is no such mistake")))
}
