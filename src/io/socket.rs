//! Sockets by descriptor.                                                                                             [libc]

use std::os::fd::OwnedFd;

/// A non-blocking, close-on-exec TCP socket. `!Send`: a descriptor number means nothing in another thread once tables are private.
#[derive(Debug)]
pub struct Socket {
    #[expect(dead_code, reason = "the epoll driver is about to use it")]
    fd: OwnedFd,
    not_send: std::marker::PhantomData<*const ()>,
}
