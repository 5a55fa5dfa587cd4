//! The client in async code: sends a hundred messages at once and answers what comes, all on one task. tokio is this example's choice;
//! the client's futures belong to no runtime.
//!
//! ```text
//! cargo run -p tidegate-client --example async -- ann bo "$(tidegate token --user ann)"
//! ```

use std::error::Error;

use tidegate_client::{Client, Event, Options, Outgoing, Pending};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [me, other, token, rest @ ..] = &*arguments else {
        return Err("async ME OTHER TOKEN [ws://127.0.0.1:8080/ws]".into());
    };
    let url = rest.first().map_or("ws://127.0.0.1:8080/ws", String::as_str);
    let conv = if me <= other { format!("d:{me}:{other}") } else { format!("d:{other}:{me}") };
    let token = token.clone();
    let (client, mut events) = Client::connect(url, Options::new("async", move |_fresh| Some(token.clone())))?;
    let say = |number: u32| client.try_submit(Outgoing::new(&conv, format!("message {number}").as_bytes()));
    let pending: Vec<Pending> = (1..=100).map(say).collect();
    for one in pending {
        let sent = one.await?;
        println!("stored as {}", sent.seq);
    }
    println!("now I answer; Ctrl-C ends");
    while let Some(event) = events.next().await {
        if let Event::Message(message) = event
            && !message.own
        {
            println!("{}: {}", message.from, String::from_utf8_lossy(&message.payload));
            client.try_submit(Outgoing::new(&conv, b"I heard you")).await?;
        }
    }
    Ok(())
}
