//! What main and admin say to a reactor, and what a reactor says to them.

use crate::ids::{ReactorId, SessionRef};
use crate::wire::envelope::Encoding;
use crate::wire::tls::Keys;

/// Control and admin to a reactor.
#[derive(Debug)]
pub enum Control {
    /// Stop accepting, tell every client GOAWAY, flush, close and end.
    Drain {
        /// 1001 or 1012.
        close_code: u16,
        /// GOAWAYs and closes are spread over this many milliseconds.
        window_ms: u32,
    },
    /// What is known of these sessions; at most `limits::ADMIN_PAGE_MAX` of them.
    Inspect {
        /// Sessions of this core.
        sessions: Vec<SessionRef>,
        /// One answer for each, `None` where there is none any more: a channel of capacity 1 made for the call.
        reply: std::sync::mpsc::SyncSender<Vec<Option<SessionSeen>>>,
    },
    /// Close these with 4403.
    Kick {
        /// Sessions of this core.
        sessions: Vec<SessionRef>,
        /// How many were closed.
        reply: std::sync::mpsc::SyncSender<u32>,
    },
    /// Certificates for the handshakes that begin from now on.
    Keys(Keys),
    /// Limits from now on.
    Bounds(Bounds),
    /// Send back a copy of the histograms.
    Snapshot,
}

/// Limits of one reactor that may change while it runs; named as the configuration keys they come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "see above")]
pub struct Bounds {
    pub accept_per_s: u32,
    pub accept_burst: u32,
    pub handshakes_max: u32,
    pub queued_bytes_max: u64,
}

/// A connected session, for the operator's side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionSeen {
    /// Its connection.
    pub connection: crate::ids::ConnectionId,
    /// Address of the client: as a balancer said, else as the kernel knows it. Port 0: nobody said.
    pub address: Option<std::net::SocketAddr>,
    /// How its frames are encoded.
    pub encoding: Encoding,
    /// Highest `pos` given out.
    pub pos: u64,
    /// Deliveries given out and not acknowledged.
    pub unacknowledged: u16,
    /// Conversations wait for room in the window.
    pub is_behind: bool,
    /// Bytes waiting to be sent.
    pub queued_bytes: u32,
    /// Unix second at which the token ends.
    pub expires_s: u32,
}

/// A reactor to the thread that holds the process together.
#[derive(Debug)]
pub enum Report {
    /// The listener is bound.
    Bound {
        /// Its address; a port that was 0 is the real one.
        address: std::net::SocketAddr,
        /// That of TLS, if there is one.
        tls: Option<std::net::SocketAddr>,
    },
    /// The reactor turns.
    Ready {
        /// Which.
        reactor: ReactorId,
    },
    /// The reactor ended after a drain.
    Drained {
        /// Which.
        reactor: ReactorId,
    },
    /// The reactor cannot go on.
    Failed {
        /// Which.
        reactor: ReactorId,
        /// What the operator reads.
        reason: String,
    },
}
