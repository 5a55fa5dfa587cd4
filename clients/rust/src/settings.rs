//! How a client speaks, and what it remembers.

use std::time::Duration;

use tidegate::wire::envelope::Encoding;

use crate::inbox::{History, Position};

/// What a client is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Encoding, by the subprotocol that is offered.
    pub encoding: Encoding,
    /// Device id.
    pub device: String,
    /// Name and version of the program, for the gateway's logs.
    pub client: String,
    /// 0 other, 1 web, 2 desktop, 3 phone, 4 tablet, 5 bot.
    pub platform: u8,
    /// Unacknowledged deliveries to ask for, 1 to 4096; 0 lets the gateway decide.
    pub window: u16,
    /// Whether RECEIPT and PRESENCE are wanted.
    pub receipts: bool,
    /// See [`Settings::receipts`].
    pub presence: bool,
    /// Whether trace contexts are sent and received.
    pub trace: bool,
    /// First ceiling of the reconnect delay.
    pub reconnect_base: Duration,
    /// Last ceiling of the reconnect delay.
    pub reconnect_cap: Duration,
    /// Longest that a connection may take from its start to WELCOME.
    pub welcome_wait: Duration,
    /// Send PING after this much silence, and give the connection up when nothing is heard for another 10 s. `None`: leave liveness to
    /// the gateway.
    pub ping_after: Option<Duration>,
    /// What to fetch of conversations that are not in `positions`.
    pub history: History,
    /// Whether taking an event acknowledges it. Otherwise the application calls [`crate::Machine::processed`] once it has stored a message.
    pub acknowledge: Acknowledge,
    /// Where the device stood when it last ran.
    pub positions: Vec<Position>,
    /// `since` of the last complete SYNC, see [`crate::Machine::since`].
    pub since: u64,
}

/// Who moves the cursors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acknowledge {
    /// Taking an event moves them.
    OnTake,
    /// The application does.
    ByHand,
}

impl Settings {
    /// The defaults of the protocol for a device.
    #[must_use]
    pub fn new(device: &str) -> Self {
        Self {
            encoding: Encoding::Binary,
            device: device.to_owned(),
            client: concat!("tidegate-client/", env!("CARGO_PKG_VERSION")).to_owned(),
            platform: 0,
            window: 0,
            receipts: false,
            presence: false,
            trace: false,
            reconnect_base: Duration::from_millis(500),
            reconnect_cap: Duration::from_secs(30),
            welcome_wait: Duration::from_secs(15),
            ping_after: None,
            history: History::Whole,
            acknowledge: Acknowledge::OnTake,
            positions: Vec::new(),
            since: 0,
        }
    }
}
