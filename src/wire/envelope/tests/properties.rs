//! Round trips, cuts and damage over frames of every kind.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn text() -> impl Strategy<Value = Cow<'static, str>> {
    prop_oneof![Just(String::new()), "[a-z:.@-]{1,12}", vec(any::<char>(), 0..12).prop_map(String::from_iter)]
        .prop_map(Cow::Owned)
}

fn payload() -> impl Strategy<Value = Cow<'static, [u8]>> {
    prop_oneof![vec(any::<u8>(), 0..40), vec(any::<char>(), 0..12).prop_map(|text| String::from_iter(text).into_bytes())]
        .prop_map(Cow::Owned)
}

/// A value that is a number in JSON.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..4, 0_u64..1 << 53]
}

fn mid() -> impl Strategy<Value = Mid> {
    prop_oneof![Just(0), any::<u64>()].prop_map(Mid)
}

fn trace() -> impl Strategy<Value = Option<Trace>> {
    any::<Option<([u8; 16], [u8; 8], u8)>>()
        .prop_map(|trace| trace.map(|(trace_id, parent_id, flags)| Trace { trace_id, parent_id, flags }))
}

fn cmid() -> impl Strategy<Value = Option<Cmid>> {
    any::<Option<[u8; 16]>>().prop_map(|cmid| cmid.map(Cmid))
}

fn flags(flags: u8, own: bool, trace: bool) -> u8 {
    binary::with_bit(binary::with_bit(flags, deliver_flags::OWN, own), deliver_flags::TRACE, trace)
}

fn any_send() -> impl Strategy<Value = ClientFrame<'static>> {
    let fixed = (1_u32.., any::<[u8; 15]>(), any::<u8>(), any::<u16>(), any::<u32>());
    (fixed, trace(), text(), payload()).prop_map(|((rid, id, flags, kind, ttl_s), trace, conv, payload)| {
        let mut cmid = [1; 16];
        cmid[1..].copy_from_slice(&id);
        let flags = binary::with_bit(flags & !send_flags::RETRY, send_flags::TRACE, trace.is_some());
        ClientFrame::Send(Send { rid, cmid: Cmid(cmid), flags, kind, ttl_s, trace, conv, payload })
    })
}

fn any_hello() -> impl Strategy<Value = ClientFrame<'static>> {
    let fixed = (any::<u8>(), any::<u8>(), any::<u16>(), any::<u32>(), number(), any::<[u8; 16]>());
    (fixed, text(), text(), text()).prop_map(|((minor, platform, window, caps, last_pos, session), device, client, token)| {
        ClientFrame::Hello(Hello { minor, platform, window, caps, last_pos, session, device, client, token })
    })
}

fn any_client() -> impl Strategy<Value = ClientFrame<'static>> {
    let cursor = (text(), number()).prop_map(|(conv, seq)| Cursor { conv, seq });
    prop_oneof![
        any_hello(),
        any_send(),
        number().prop_map(|pos| ClientFrame::Ping { pos }),
        (1_u32.., text()).prop_map(|(rid, token)| ClientFrame::Auth { rid, token }),
        (number(), vec(cursor, 0..5)).prop_map(|(pos, cursors)| ClientFrame::Ack { pos, cursors: Cursors::List(cursors) }),
        (text(), number(), any::<u32>(), any::<u16>()).prop_map(|(conv, seq, delay_ms, reason)| ClientFrame::Nack {
            conv,
            seq,
            delay_ms,
            reason
        }),
        (1_u32.., any::<u64>(), any::<u16>(), text()).prop_map(|(rid, since, limit, cursor)| ClientFrame::Sync {
            rid,
            since,
            limit,
            cursor
        }),
        (1_u32.., text(), number(), number(), any::<u16>(), any::<u8>())
            .prop_map(|(rid, conv, from, to, limit, flags)| ClientFrame::Fetch { rid, conv, from, to, limit, flags }),
        (1_u32.., text(), number()).prop_map(|(rid, conv, seq)| ClientFrame::Read { rid, conv, seq }),
        (1_u32.., any::<u32>(), vec(text(), 0..5)).prop_map(|(rid, ttl_s, users)| ClientFrame::Watch {
            rid,
            ttl_s,
            users: Users::List(users)
        }),
        (text(), any::<u16>(), payload()).prop_map(|(conv, kind, payload)| ClientFrame::Signal { conv, kind, payload }),
    ]
}

fn any_welcome() -> impl Strategy<Value = ServerFrame<'static>> {
    let bytes = any::<(u8, u8, u8, u16, u16, u16, u16)>();
    let words = any::<(u32, u32, u32, u32, u32, u32)>();
    (bytes, words, number(), number(), any::<[u8; 16]>(), text(), text()).prop_map(
        |((minor, resumed, level, window, send_window, rate, burst), words, server_ms, pos, session, user, node)| {
            let (caps, ping_ms, resume_ms, dedup_s, max_frame, max_payload) = words;
            ServerFrame::Welcome(Welcome {
                minor,
                resumed,
                level,
                window,
                send_window,
                caps,
                ping_ms,
                resume_ms,
                dedup_s,
                max_frame,
                max_payload,
                server_ms,
                pos,
                session,
                user,
                node,
                rate,
                burst,
            })
        },
    )
}

fn any_deliver() -> impl Strategy<Value = Deliver<'static>> {
    let fixed = (number(), number(), mid(), any::<u8>(), any::<u16>(), any::<u32>());
    (fixed, cmid(), trace(), text(), text(), payload()).prop_map(|(fixed, cmid, trace, conv, from, payload)| {
        let (pos, seq, mid, bits, kind, exp_s) = fixed;
        let flags = flags(bits, cmid.is_some(), trace.is_some());
        Deliver { pos, seq, mid, flags, kind, exp_s, cmid, trace, conv, from, payload }
    })
}

fn any_message() -> impl Strategy<Value = Message<'static>> {
    let fixed = (number(), mid(), any::<u8>(), any::<u16>(), any::<u32>());
    (fixed, cmid(), text(), payload()).prop_map(|((seq, mid, bits, kind, exp_s), cmid, from, payload)| {
        let flags = flags(bits, cmid.is_some(), false);
        Message { seq, mid, flags, kind, exp_s, cmid, from, payload }
    })
}

fn any_entry() -> impl Strategy<Value = Entry<'static>> {
    let fixed = (any::<u32>(), any::<u8>(), number(), mid(), number(), number(), number(), any::<u32>());
    (text(), fixed).prop_map(|(conv, (epoch, flags, head, head_mid, floor, mine, read, unread))| Entry {
        conv,
        epoch,
        flags,
        head,
        head_mid,
        floor,
        mine,
        read,
        unread,
    })
}

fn any_page() -> impl Strategy<Value = ServerFrame<'static>> {
    prop_oneof![
        (any::<u32>(), any::<u8>(), any::<u64>(), text(), vec(any_entry(), 0..4))
            .prop_map(|(rid, flags, since, cursor, entries)| ServerFrame::SyncPage { rid, flags, since, cursor, entries }),
        ((any::<u32>(), any::<u8>(), any::<u32>(), number(), number()), text(), vec(any_message(), 0..4)).prop_map(
            |((rid, flags, epoch, floor, head), conv, messages)| ServerFrame::Page {
                rid,
                flags,
                epoch,
                floor,
                head,
                conv,
                messages
            }
        ),
    ]
}

fn any_server() -> impl Strategy<Value = ServerFrame<'static>> {
    prop_oneof![
        any_welcome(),
        any_page(),
        any_deliver().prop_map(ServerFrame::Deliver),
        number().prop_map(|server_ms| ServerFrame::Pong { server_ms }),
        (any::<u32>(), number()).prop_map(|(rid, value)| ServerFrame::Ok { rid, value }),
        any::<u32>().prop_map(|in_ms| ServerFrame::Expiring { in_ms }),
        (any::<u32>(), any::<u8>(), any::<u8>(), number(), mid()).prop_map(|(rid, level, flags, seq, mid)| ServerFrame::Sent {
            rid,
            level,
            flags,
            seq,
            mid
        }),
        (text(), number(), mid()).prop_map(|(conv, head, mid)| ServerFrame::Notice { conv, head, mid }),
        (text(), text(), number(), number()).prop_map(|(conv, user, recv, read)| ServerFrame::Receipt { conv, user, recv, read }),
        (text(), any::<u8>(), number(), payload()).prop_map(|(conv, event, version, data)| ServerFrame::Conv {
            conv,
            event,
            version,
            data
        }),
        any::<u16>().prop_map(|reason| ServerFrame::Resync { reason }),
        (any::<u32>(), any::<u16>(), any::<u8>(), any::<u32>(), text())
            .prop_map(|(rid, code, flags, retry_ms, detail)| ServerFrame::Error { rid, code, flags, retry_ms, detail }),
        (any::<(u16, u32, u32, u32)>(), text()).prop_map(|((code, delay_ms, spread_ms, grace_ms), target)| {
            ServerFrame::Goaway { code, delay_ms, spread_ms, grace_ms, target }
        }),
        (text(), any::<u8>(), number()).prop_map(|(user, state, seen_ms)| ServerFrame::Presence { user, state, seen_ms }),
        (text(), text(), any::<u16>(), payload()).prop_map(|(conv, from, kind, payload)| ServerFrame::Signalled {
            conv,
            from,
            kind,
            payload
        }),
    ]
}

proptest! {
    /// What a client writes is what the gateway reads, in either encoding: hence both mean the same.
    #[test]
    fn client_frames_survive_both_encodings(frame in any_client()) {
        for encoding in [Encoding::Binary, Encoding::Json] {
            let bytes = client(encoding, &frame);
            prop_assert_eq!(read_client(encoding, &bytes), [Ok(frame.clone())], "{:?}", String::from_utf8_lossy(&bytes));
        }
        let (binary, json) = (client(Encoding::Binary, &frame), client(Encoding::Json, &frame));
        prop_assert_eq!(read_client(Encoding::Binary, &binary), read_client(Encoding::Json, &json));
        prop_assert!(!json.contains(&b'\n'));
        prop_assert!(serde_json::from_slice::<serde_json::Value>(&json).is_ok());
    }

    /// As above, from the gateway to a client.
    #[test]
    fn server_frames_survive_both_encodings(frame in any_server()) {
        for encoding in [Encoding::Binary, Encoding::Json] {
            let bytes = server(encoding, &frame);
            prop_assert_eq!(read_server(encoding, &bytes), [Ok(frame.clone())], "{:?}", String::from_utf8_lossy(&bytes));
        }
        let (binary, json) = (server(Encoding::Binary, &frame), server(Encoding::Json, &frame));
        prop_assert_eq!(read_server(Encoding::Binary, &binary), read_server(Encoding::Json, &json));
        prop_assert!(!json.contains(&b'\n'));
        prop_assert!(serde_json::from_slice::<serde_json::Value>(&json).is_ok());
    }

    /// Any run of frames in one message comes out whole and in order.
    #[test]
    fn frames_of_one_message_keep_their_order(sent in vec(any_client(), 0..8)) {
        let expected: Vec<_> = sent.iter().cloned().map(Ok).collect();
        let binary: Vec<Vec<u8>> = sent.iter().map(|frame| client(Encoding::Binary, frame)).collect();
        let json: Vec<Vec<u8>> = sent.iter().map(|frame| client(Encoding::Json, frame)).collect();
        let (binary, json) = (binary.concat(), json.join(&b'\n'));
        prop_assert_eq!(read_client(Encoding::Binary, &binary), &expected[..]);
        prop_assert_eq!(read_client(Encoding::Json, &json), &expected[..]);
    }

    /// A frame cut anywhere, and a body cut anywhere under a true length, are malformed and never a frame.
    #[test]
    fn cut_client_frames_are_refused(frame in any_client()) {
        let bytes = client(Encoding::Binary, &frame);
        for end in 1..bytes.len() {
            prop_assert_eq!(refusal(Encoding::Binary, &bytes[..end]).0, 1001);
            if end >= 4 {
                prop_assert_eq!(refusal(Encoding::Binary, &framed(bytes[0], &bytes[4..end])).0, 1001);
            }
        }
        let line = client(Encoding::Json, &frame);
        for end in 1..line.len() {
            let code = refusal(Encoding::Json, &line[..end]).0;
            prop_assert!(code == 1001 || code == 1002 && std::str::from_utf8(&line[..end]).is_err());
        }
    }

    /// As above, from the gateway.
    #[test]
    fn cut_server_frames_are_refused(frame in any_server()) {
        let bytes = server(Encoding::Binary, &frame);
        for end in 4..bytes.len() {
            let cut = framed(bytes[0], &bytes[4..end]);
            let frames = read_server(Encoding::Binary, &cut);
            prop_assert_eq!(frames[0].as_ref().unwrap_err().code, ErrorCode::Malformed);
        }
    }

    /// Bytes after the fields we know belong to a later minor version.
    #[test]
    fn trailing_bytes_of_a_body_are_ignored(frame in any_client(), answer in any_server(), more in vec(any::<u8>(), 1..9)) {
        let bytes = client(Encoding::Binary, &frame);
        let longer = framed(bytes[0], &[&bytes[4..], &more].concat());
        prop_assert_eq!(read_client(Encoding::Binary, &longer), [Ok(frame)]);
        let bytes = server(Encoding::Binary, &answer);
        let longer = framed(bytes[0], &[&bytes[4..], &more].concat());
        prop_assert_eq!(read_server(Encoding::Binary, &longer), [Ok(answer)]);
    }

    /// Head and tail together are the frame, whatever the position, and the tail does not know the position.
    #[test]
    fn deliver_is_head_and_tail(mut deliver in any_deliver(), other in number()) {
        for encoding in [Encoding::Binary, Encoding::Json] {
            let mut tail = Vec::new();
            deliver_tail(encoding, &deliver, crate::limits::FRAME_BYTES_DEFAULT, &mut tail);
            for pos in [deliver.pos, other, 0] {
                deliver.pos = pos;
                let mut head = [0; DELIVER_HEAD_BYTES_MAX];
                let len = deliver_head(encoding, pos, tail.len(), &mut head);
                let whole = server(encoding, &ServerFrame::Deliver(deliver.clone()));
                prop_assert_eq!([&head[..len], &tail].concat(), whole);
            }
        }
    }

    /// No bytes make a decoder panic, nor a list that it gave out.
    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..200), kind in any::<u8>()) {
        let frame = framed(kind, &bytes);
        for message in [&bytes, &frame] {
            for frame in read_client(Encoding::Binary, message).into_iter().flatten() {
                match frame {
                    ClientFrame::Ack { cursors, .. } => prop_assert_eq!(cursors.iter().count(), cursors.len()),
                    ClientFrame::Watch { users, .. } => prop_assert_eq!(users.iter().count(), users.len()),
                    _ => {}
                }
            }
            drop(read_server(Encoding::Binary, message));
            drop(read_client(Encoding::Json, message));
            drop(read_server(Encoding::Json, message));
        }
    }

    /// A line with one byte changed is a frame or an error with one of the three codes, never a panic.
    #[test]
    fn damaged_lines_do_not_panic(frame in any_client(), answer in any_server(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut line = client(Encoding::Json, &frame);
        let index = at.index(line.len());
        line[index] = byte;
        for error in read_client(Encoding::Json, &line).into_iter().filter_map(Result::err) {
            prop_assert!((1001..=1003).contains(&error.code.value()));
        }
        let mut line = server(Encoding::Json, &answer);
        let index = at.index(line.len());
        line[index] = byte;
        for error in read_server(Encoding::Json, &line).into_iter().filter_map(Result::err) {
            prop_assert!((1001..=1003).contains(&error.code.value()));
        }
    }
}
