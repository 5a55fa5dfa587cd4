//! Strangers that pass a group's messages on over WebSocket: what each is told, one file a stranger.

mod centrifugo;
mod nats;
mod nchan;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::client::{Outbox, Ready, Script};
use crate::server::Contender;

/// What connections say to one stranger. All are in one room; connection 0 publishes.
pub trait Peer: Send {
    /// What is asked for in the upgrade.
    fn path(&self) -> &'static str;
    /// The subprotocol offered.
    fn subprotocol(&self) -> Option<&'static str>;
    /// Whether who publishes gets the message, too.
    fn hears_itself(&self) -> bool;
    /// The connection is upgraded: enters the room.
    fn enter(&mut self, index: usize, out: &mut Outbox<'_>) -> Ready;
    /// A whole message came: what it holds.
    ///
    /// # Errors
    /// The stranger complains, or says what was not expected.
    fn hear(&mut self, index: usize, message: &[u8], out: &mut Outbox<'_>) -> Result<Heard, String>;
    /// Publishes so many messages at once.
    fn publish(&mut self, count: usize, payload: &[u8], out: &mut Outbox<'_>);
}

/// What a message of a stranger held.
#[derive(Clone, Copy, Default, Debug)]
pub struct Heard {
    /// Messages of the room.
    pub deliveries: u64,
    /// It answered that the connection is in the room.
    pub has_entered: bool,
}

/// Connections to one stranger, as they enter and hear.
pub struct Guests {
    pub peer: Box<dyn Peer>,
    /// Messages of the room, over all of them.
    pub delivered_count: u64,
}

impl Guests {
    /// Nobody yet.
    pub fn new(peer: Box<dyn Peer>) -> Self {
        Self { peer, delivered_count: 0 }
    }
}

impl Script for Guests {
    fn opened(&mut self, index: usize, out: &mut Outbox<'_>) -> Ready {
        self.peer.enter(index, out)
    }

    fn message(&mut self, index: usize, payload: &[u8], out: &mut Outbox<'_>) -> Result<Ready, String> {
        let heard = self.peer.hear(index, payload, out)?;
        self.delivered_count += heard.deliveries;
        Ok(if heard.has_entered { Ready::Yes } else { Ready::NotYet })
    }
}

/// What to say to this stranger; `None`: it has no rooms, or is none.
pub fn of(contender: Contender) -> Option<Box<dyn Peer>> {
    match contender {
        Contender::Centrifugo => Some(Box::new(centrifugo::Centrifugo)),
        Contender::Nchan => Some(Box::new(nchan::Nchan)),
        Contender::NatsRelay => Some(Box::<nats::Nats>::default()),
        _ => None,
    }
}

/// Writes the configuration of this stranger into `folder`, to listen on this port of loopback; the command that starts it.
///
/// # Errors
/// The file cannot be written.
pub fn command(contender: Contender, program: &Path, folder: &Path, port: u16) -> Result<Command, String> {
    let (name, text, arguments): (&str, String, &[&str]) = match contender {
        Contender::Centrifugo => centrifugo::configuration(port),
        Contender::Nchan => nchan::configuration(folder, port)?,
        _ => nats::configuration(port),
    };
    let file = folder.join(name);
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&file, text))
        .map_err(|error| format!("{}: {error}", file.display()))?;
    let mut command = Command::new(program);
    command.args(arguments).arg(file);
    Ok(command)
}

/// Where `bench/peers/setup` puts what Debian's package of Nchan has.
pub fn nchan_module() -> PathBuf {
    nchan::module()
}
