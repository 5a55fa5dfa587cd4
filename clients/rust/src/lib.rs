//! Reference client of the `tidegate.v1` protocol.
//!
//! ```text
//!  application ──send──► Client ──► Machine: outbox, inbox, SYNC, reconnecting   (pure: frames and time in, frames and events out)
//!       ▲                   │          ▲
//!       └──────events───────┘          └── Link: WebSocket, TCP, one reading thread
//! ```
//!
//! Async code awaits [`Client::try_submit`] and [`Events::next`] in any runtime, or none. With [`Options::outbox`] what waits to be sent
//! survives the program. `examples/chat.rs` and `examples/async.rs` show both ways.
//!
//! [`Client`] is all an application needs: it blocks in [`Client::send`] until a message is durable, and gives out every message of every
//! conversation once and in order. [`Machine`] is the same without sockets, threads or clocks, for who has those already.
//!
//! Beside messages there are read positions ([`Client::read`]), signals ([`Client::signal`]), the presence of others ([`Client::watch`],
//! with [`Settings::presence`]), messages that are to come once more ([`Client::nack`], with [`Acknowledge::ByHand`]) and trace contexts
//! ([`Outgoing::trace`], with [`Settings::trace`]).
//!
//! ```no_run
//! use tidegate_client::{Client, Event, Options};
//!
//! let options = Options::new("phone-1", |_fresh| std::env::var("TOKEN").ok());
//! let (client, events) = Client::connect("ws://127.0.0.1:8080/ws", options)?;
//! let sent = client.send("d:al:bo", b"hi")?;
//! println!("stored as message {} of the conversation", sent.seq);
//! for event in events {
//!     if let Event::Message(message) = event {
//!         println!("{}: {}", message.from, String::from_utf8_lossy(&message.payload));
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod again;
mod client;
mod event;
mod events;
mod inbox;
mod journal;
mod link;
mod machine;
mod outbox;
mod pending;
mod random;
mod reads;
mod reconnect;
mod settings;
#[cfg(test)]
mod tests;
mod watching;

pub use client::{Client, ConnectError, Options, Snapshot};
pub use event::{Cmid, Conversation, Event, Mid, Outcome, Outgoing, Received, SendError, Sent, State, Stop, Ticket, Trace};
pub use events::Events;
pub use inbox::{History, Position};
pub use link::BadUrl;
pub use machine::{Action, Closed, Machine};
pub use pending::Pending;
pub use settings::{Acknowledge, Settings};
pub use watching::BadWatch;
