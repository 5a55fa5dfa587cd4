//! The kernel's side of a reactor, and the only room where unsafe code may stand.

pub mod driver;
pub mod socket;
pub mod wake;
