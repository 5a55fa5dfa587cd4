//! Bounded lanes between threads with coalesced wake-up.                                    [crossbeam-channel]
