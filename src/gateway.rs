//! Assembly: mailboxes, a reactor per core, store, admin; ready, drain, stop; panic policy.

use std::fmt;
use std::net::SocketAddr;

use crate::config::{Exit, Secret, Settings};

/// What one start was asked beyond its settings.
pub struct Options {
    /// The key that signs tokens.
    pub secret: Secret,
    /// Serves WebSocket echo instead of the protocol: for the conformance suite.
    pub echo: bool,
    /// Goes on with a damaged log, under a new epoch, so that clients resynchronise.
    pub accept_loss: bool,
    /// Called once, when clients and operators can connect.
    pub on_ready: Box<dyn FnOnce(&Ready) + Send>,
}

/// Where the gateway can be reached; ports that were 0 are the real ones.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// For clients.
    pub listen: SocketAddr,
    /// For operators.
    pub admin: SocketAddr,
}

/// Why the gateway could not start or go on.
#[derive(Debug)]
pub struct Fatal {
    /// The exit code it maps to.
    pub exit: Exit,
    /// Operation, object and remedy, for the operator.
    pub reason: String,
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Fatal {}

/// Runs the gateway until it is drained.
///
/// # Errors
/// [`Fatal`], with everything closed that had been opened.
pub fn serve(settings: Settings, options: Options) -> Result<(), Fatal> {
    drop((settings, options));
    Err(Fatal { exit: Exit::Failed, reason: "this build has no gateway yet".to_owned() })
}
