//! Puts a Tidegate gateway under load, open loop, and keeps a ledger of every message.
//!
//! ```text
//!  main ─► run: stages, kills, storms ──orders──► Shared ◄──boards── worker, one thread each
//!                                                                      │ pace: what is due
//!                                                                      │ client: Machine and frames, pure
//!                                                                      │ network: sockets, or phantom: a TCP on a TUN device; secure: TLS over either
//!                                                                      ▼
//!                                              verify: the ledger ─► report: text, JSON; page: HTML
//!
//!  main ─► hold: ramp, rounds of pings, echoes ──orders──► Swarm ◄──boards── light: thousands of clients per thread, no ledger, on either network
//! ```

pub mod churn;
pub mod client;
pub mod framing;
pub mod half_open;
pub mod hdr;
pub mod hold;
pub mod light;
pub mod machine;
pub mod network;
pub mod notes;
pub mod pace;
pub mod page;
pub mod phantom;
pub mod random;
pub mod report;
pub mod run;
pub mod scenario;
pub mod secure;
pub mod stats;
pub mod subject;
pub mod swarm;
pub mod verify;
pub mod worker;
