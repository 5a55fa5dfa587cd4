//! How long messages are kept, through the real binary.

mod support;

use support::eventually;
use support::gateway::Gateway;
use support::raw::{ENCODINGS, Raw};
use tidegate::wire::envelope::{Encoding, page_flags};

const DIRECT: &str = "d:al:bo";

/// Of direct conversations the newest five stay, of groups all. The floor is told by SYNC and FETCH, unread is that of what is left, a
/// kill brings nothing back, and a client that was away learns what is missing and goes on.
#[test]
fn what_is_beyond_the_count_goes_and_is_said_to_be_gone() {
    let mut gateway =
        Gateway::with(&[("retention.count_direct", "5"), ("retention.every_s", "1"), ("protocol.fetch_rate", "1000")]);
    gateway.group("g:team", &["al", "bo"]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    for number in 1..=20 {
        al.say(DIRECT, &format!("message {number}"));
        al.say("g:team", &format!("message {number}"));
    }
    let mut bo = Raw::connect(&gateway, Encoding::Json, "bo", "1");
    let page = eventually("the floor rises", || Some(bo.fetch(DIRECT, 0, 0, 100, 0)).filter(|page| page.floor == 16));
    assert_eq!((page.flags & page_flags::BELOW_FLOOR != 0, page.head), (true, 20));
    assert_eq!(page.messages.iter().map(|message| message.seq).collect::<Vec<_>>(), [16, 17, 18, 19, 20]);
    for encoding in ENCODINGS {
        gateway.kill();
        gateway.run();
        let mut bo = Raw::connect(&gateway, encoding, "bo", "2");
        let page = bo.fetch(DIRECT, 18, 0, 100, 0);
        assert_eq!((page.flags & page_flags::BELOW_FLOOR, page.floor, page.messages.len()), (0, 16, 3));
        assert_eq!(bo.fetch(DIRECT, 3, 10, 100, 0).messages.len(), 0);
        assert_eq!(bo.fetch("g:team", 0, 0, 100, 0).messages.len(), 20);
        let (mut entries, _) = bo.sync(0, 0);
        entries.sort_by(|a, b| a.conv.cmp(&b.conv));
        let told: Vec<_> = entries.iter().map(|entry| (&*entry.conv, entry.floor, entry.head, entry.unread)).collect();
        assert_eq!(told, [(DIRECT, 16, 20, 5), ("g:team", 1, 20, 20)]);
    }
    let (_client, events) = gateway.client(gateway.options("bo", "3"));
    let mut seqs = Vec::new();
    while seqs.last() != Some(&20) {
        if let tidegate_client::Event::Message(message) = events.recv_timeout(support::PATIENCE).expect("all that is left")
            && *message.conv == *DIRECT
        {
            seqs.push(message.seq);
        }
    }
    assert_eq!(seqs, [16, 17, 18, 19, 20]);
    assert!(gateway.metric("tidegate_store_messages_retired_total") >= 0.0);
}
