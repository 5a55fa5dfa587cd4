//! One eventfd per reactor ends its wait.                                                                             [libc]

/// Ends the wait of one reactor. Cheap to clone; may be used from any thread.
#[derive(Clone, Debug)]
pub struct Waker {}
