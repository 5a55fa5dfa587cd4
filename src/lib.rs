//! Tidegate: the edge gateway of an instant-messaging system.
//!
//! ```text
//!  sockets ─► io ──bytes lent──► reactor ─► shard
//!                                            │ conn ─► wire ─► session ─► route
//!                                            │
//!                 submit (bounded mail) ─────┤
//!                                            ▼
//!                             store: order, log, sync, roster, fan-out
//!                                            │
//!  sockets ◄─ io ◄─ reactor ◄─ shard ◄───────┘ group (bounded mail): only now SENT and DELIVER exist
//! ```
//!
//! Modules are listed in the order in which a message meets them. A file uses lower floors, or its own folder; `tests/layering.rs`
//! keeps it so. `wire`, `conn`, `session`, `route`, `shard` and `store::apply` do no I/O, read no clock and log nothing: time and
//! settings come in, counters and effects go out.

// Floor 0: facts.
pub mod ids;
pub mod limits;
pub mod origin;

#[cfg(feature = "gateway")]
pub mod address;
#[cfg(feature = "gateway")]
pub mod clock;
#[cfg(feature = "gateway")]
pub mod mutant;
#[cfg(feature = "gateway")]
pub mod table;

// Floor 1: the outside world.
#[cfg(feature = "gateway")]
pub mod config;
#[cfg(feature = "gateway")]
pub mod io;
#[cfg(feature = "gateway")]
pub mod observe;

// Floor 2: bytes and records.
pub mod wire;

#[cfg(feature = "gateway")]
pub mod mail;

// Floor 3: meaning.
#[cfg(feature = "gateway")]
pub mod conn;
#[cfg(feature = "gateway")]
pub mod route;
#[cfg(feature = "gateway")]
pub mod session;

// Floor 4: one core, and the mail between cores.
#[cfg(feature = "gateway")]
pub mod mailbox;
#[cfg(feature = "gateway")]
pub mod shard;

// Floor 5: threads.
#[cfg(feature = "gateway")]
pub mod admin;
#[cfg(feature = "gateway")]
pub mod auth;
#[cfg(feature = "gateway")]
pub mod reactor;
#[cfg(feature = "gateway")]
pub mod store;

// Floor 6: the process.
#[cfg(feature = "gateway")]
pub mod gateway;

#[cfg(feature = "gateway")]
pub mod ctl;
#[cfg(feature = "gateway")]
pub mod keep;
#[cfg(feature = "gateway")]
pub mod verify;
