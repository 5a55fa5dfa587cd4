//! The kernel's side of a reactor, and the only room where unsafe code may stand.
#![expect(unsafe_code, reason = "system calls by descriptor; each block states why its conditions hold")]

pub mod atomic;
pub mod confine;
pub mod descriptors;
pub mod driver;
pub mod epoll;
pub mod file;
pub mod memory;
pub mod names;
pub mod pin;
pub mod queue;
pub mod socket;
pub mod uring;
pub mod wake;
