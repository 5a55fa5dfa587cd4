//! Talks to somebody from a terminal.
//!
//! ```text
//! cargo run -p tidegate-client --example chat -- ann bo "$(tidegate token --user ann)"
//! cargo run -p tidegate-client --example chat -- bo ann "$(tidegate token --user bo)"      in a second terminal
//! ```
//!
//! Each line is sent and told its number once it is on disk. Kill the gateway and start it again: what was written meanwhile arrives
//! once. What is unsent when this program ends waits in a file and is sent the next time.

use std::error::Error;
use std::io::BufRead;

use tidegate_client::{Client, Event, Events, Options, Outgoing, State};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [me, other, token, rest @ ..] = &*arguments else {
        return Err("chat ME OTHER TOKEN [ws://127.0.0.1:8080/ws]".into());
    };
    let url = rest.first().map_or("ws://127.0.0.1:8080/ws", String::as_str);
    let conv = if me <= other { format!("d:{me}:{other}") } else { format!("d:{other}:{me}") };
    let token = token.clone();
    let mut options = Options::new("terminal", move |_fresh| Some(token.clone()));
    options.outbox = Some(std::env::temp_dir().join(format!("tidegate-chat-{me}.outbox")));
    let (client, events) = Client::connect(url, options)?;
    std::thread::spawn(move || listen(events));
    for line in std::io::stdin().lock().lines() {
        let pending = client.submit(Outgoing::new(&conv, line?.as_bytes()));
        std::thread::spawn(move || match pending.wait() {
            Ok(sent) => println!("  ({} is on disk)", sent.seq),
            Err(error) => println!("  (not sent: {error})"),
        });
    }
    client.close();
    Ok(())
}

fn listen(events: Events) {
    for event in events {
        match event {
            Event::Message(message) if message.own => {}
            Event::Message(message) => println!("{}: {}", message.from, String::from_utf8_lossy(&message.payload)),
            Event::State(State::Waiting { delay, .. }) => println!("  (not connected, trying again in {} ms)", delay.as_millis()),
            Event::State(State::Active { .. }) => println!("  (connected)"),
            Event::State(State::Stopped(stop)) => println!("  (ended: {stop:?})"),
            _ => {}
        }
    }
}
