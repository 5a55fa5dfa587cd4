//! The binary encoding, `tidegate.v1` (docs/protocol.md section 3). Decoding borrows everything and allocates nothing, but for the
//! lists of pages, which only a client reads.
//!
//! ```text
//!  0      1            4                  4 + len
//!  ┌──────┬────────────┬───────────────────┐
//!  │ type │ len u24 LE │ body              │   little-endian; s8, s16, b16, b32 = length, then bytes
//!  └──────┴────────────┴───────────────────┘
//! ```
//!
//! Bytes of a body after the fields we know belong to a later minor version and are not looked at.

use super::frames::{DELIVER_HEAD_BYTES_MAX, Fault, Seen};
use super::page::{PageHead, PageOrder, PageWriter, SyncPageWriter};
use super::{
    ClientFrame, Cursor, Cursors, Deliver, Encoding, Entry, Hello, Message, Send, ServerFrame, Trace, Users, Welcome,
    deliver_flags, frame_type, send_flags,
};
use crate::ids::{Cmid, Mid};
use crate::limits::{ACK_CURSORS_MAX, WATCH_USERS_MAX};

/// Takes the next frame off the front of `rest`: its type and its body.
pub(super) fn split<'a>(rest: &mut &'a [u8]) -> Result<Option<(u8, &'a [u8])>, Fault> {
    if rest.is_empty() {
        return Ok(None);
    }
    let (&[kind, a, b, c], after) =
        rest.split_first_chunk::<4>().ok_or(Fault::malformed("message ends inside a frame header"))?;
    let len = usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
    let (body, after) = after.split_at_checked(len).ok_or(Fault::malformed("frame longer than its message"))?;
    *rest = after;
    Ok(Some((kind, body)))
}

/// Decodes the body of a client's frame; `None` if it may be skipped.
pub(super) fn client<'a>(kind: u8, body: &'a [u8], seen: &mut Seen) -> Result<Option<ClientFrame<'a>>, Fault> {
    seen.frame = kind;
    let mut body = Reader::new(body);
    if matches!(
        kind,
        frame_type::AUTH | frame_type::SEND | frame_type::SYNC | frame_type::FETCH | frame_type::READ | frame_type::WATCH
    ) {
        seen.rid = body.u32()?;
    }
    let rid = seen.rid;
    let frame = match kind {
        frame_type::HELLO => ClientFrame::Hello(Hello {
            minor: body.u8()?,
            platform: body.u8()?,
            window: body.u16()?,
            caps: body.u32()?,
            last_pos: body.u64()?,
            session: body.array()?,
            device: body.s8("device is not UTF-8")?.into(),
            client: body.s8("client is not UTF-8")?.into(),
            token: body.s16("token is not UTF-8")?.into(),
        }),
        frame_type::PING => ClientFrame::Ping { pos: body.u64()? },
        frame_type::AUTH => ClientFrame::Auth { rid, token: body.s16("token is not UTF-8")?.into() },
        frame_type::SEND => {
            let cmid = Cmid(body.array()?);
            let flags = body.u8()?;
            ClientFrame::Send(Send {
                rid,
                cmid,
                flags,
                kind: body.u16()?,
                ttl_s: body.u32()?,
                trace: body.trace_if(flags & send_flags::TRACE != 0)?,
                conv: body.s8(CONV)?.into(),
                payload: body.b32()?.into(),
            })
        }
        frame_type::ACK => {
            let pos = body.u64()?;
            let count = body.u16()?;
            if usize::from(count) > ACK_CURSORS_MAX {
                return Err(Fault::field("more than 256 cursors"));
            }
            ClientFrame::Ack { pos, cursors: Cursors::Binary(count, body.items(count, Reader::cursor)?) }
        }
        frame_type::NACK => {
            ClientFrame::Nack { conv: body.s8(CONV)?.into(), seq: body.u64()?, delay_ms: body.u32()?, reason: body.u16()? }
        }
        frame_type::SYNC => {
            ClientFrame::Sync { rid, since: body.u64()?, limit: body.u16()?, cursor: body.s8("cursor is not UTF-8")?.into() }
        }
        frame_type::FETCH => ClientFrame::Fetch {
            rid,
            conv: body.s8(CONV)?.into(),
            from: body.u64()?,
            to: body.u64()?,
            limit: body.u16()?,
            flags: body.u8()?,
        },
        frame_type::READ => ClientFrame::Read { rid, conv: body.s8(CONV)?.into(), seq: body.u64()? },
        frame_type::WATCH => {
            let ttl_s = body.u32()?;
            let count = body.u16()?;
            if usize::from(count) > WATCH_USERS_MAX {
                return Err(Fault::field("more than 200 users"));
            }
            let users = body.items(count, |body| body.s8("user is not UTF-8"))?;
            ClientFrame::Watch { rid, ttl_s, users: Users::Binary(count, users) }
        }
        frame_type::SIGNAL => ClientFrame::Signal { conv: body.s8(CONV)?.into(), kind: body.u16()?, payload: body.b16()?.into() },
        _ if is_server_type(kind) => return Err(Fault::unknown("frame type of the gateway")),
        _ if kind & frame_type::SKIPPABLE != 0 => return Ok(None),
        _ => return Err(Fault::unknown("unknown frame type")),
    };
    Ok(Some(frame))
}

/// Decodes the body of a gateway's frame; `None` if it may be skipped.
pub(super) fn server<'a>(kind: u8, body: &'a [u8], seen: &mut Seen) -> Result<Option<ServerFrame<'a>>, Fault> {
    seen.frame = kind;
    let mut body = Reader::new(body);
    if matches!(kind, frame_type::OK | frame_type::SENT | frame_type::SYNC_PAGE | frame_type::PAGE | frame_type::ERROR) {
        seen.rid = body.u32()?;
    }
    let rid = seen.rid;
    let frame = match kind {
        frame_type::WELCOME => ServerFrame::Welcome(body.welcome()?),
        frame_type::PONG => ServerFrame::Pong { server_ms: body.u64()? },
        frame_type::OK => ServerFrame::Ok { rid, value: body.u64()? },
        frame_type::EXPIRING => ServerFrame::Expiring { in_ms: body.u32()? },
        frame_type::SENT => {
            ServerFrame::Sent { rid, level: body.u8()?, flags: body.u8()?, seq: body.u64()?, mid: Mid(body.u64()?) }
        }
        frame_type::DELIVER => ServerFrame::Deliver(body.deliver()?),
        frame_type::SYNC_PAGE => ServerFrame::SyncPage {
            rid,
            flags: body.u8()?,
            since: body.u64()?,
            cursor: body.s8("cursor is not UTF-8")?.into(),
            entries: body.list(Reader::entry)?,
        },
        frame_type::PAGE => ServerFrame::Page {
            rid,
            flags: body.u8()?,
            epoch: body.u32()?,
            floor: body.u64()?,
            head: body.u64()?,
            conv: body.s8(CONV)?.into(),
            messages: body.list(Reader::message)?,
        },
        frame_type::NOTICE => ServerFrame::Notice { conv: body.s8(CONV)?.into(), head: body.u64()?, mid: Mid(body.u64()?) },
        frame_type::RECEIPT => ServerFrame::Receipt {
            conv: body.s8(CONV)?.into(),
            user: body.s8("user is not UTF-8")?.into(),
            recv: body.u64()?,
            read: body.u64()?,
        },
        frame_type::CONV => {
            ServerFrame::Conv { conv: body.s8(CONV)?.into(), event: body.u8()?, version: body.u64()?, data: body.b32()?.into() }
        }
        frame_type::RESYNC => ServerFrame::Resync { reason: body.u16()? },
        frame_type::ERROR => ServerFrame::Error {
            rid,
            code: body.u16()?,
            flags: body.u8()?,
            retry_ms: body.u32()?,
            detail: body.s8("detail is not UTF-8")?.into(),
        },
        frame_type::GOAWAY => ServerFrame::Goaway {
            code: body.u16()?,
            delay_ms: body.u32()?,
            spread_ms: body.u32()?,
            grace_ms: body.u32()?,
            target: body.s16("target is not UTF-8")?.into(),
        },
        frame_type::PRESENCE => {
            ServerFrame::Presence { user: body.s8("user is not UTF-8")?.into(), state: body.u8()?, seen_ms: body.u64()? }
        }
        frame_type::SIGNALLED => ServerFrame::Signalled {
            conv: body.s8(CONV)?.into(),
            from: body.s8(FROM)?.into(),
            kind: body.u16()?,
            payload: body.b16()?.into(),
        },
        _ if is_client_type(kind) => return Err(Fault::unknown("frame type of a client")),
        _ if kind & frame_type::SKIPPABLE != 0 => return Ok(None),
        _ => return Err(Fault::unknown("unknown frame type")),
    };
    Ok(Some(frame))
}

/// Whether only the gateway sends this type.
pub(super) fn is_server_type(kind: u8) -> bool {
    matches!(
        kind,
        frame_type::WELCOME
            | frame_type::PONG
            | frame_type::OK
            | frame_type::EXPIRING
            | frame_type::SENT
            | frame_type::DELIVER
            | frame_type::SYNC_PAGE
            | frame_type::PAGE
            | frame_type::NOTICE
            | frame_type::RECEIPT
            | frame_type::CONV
            | frame_type::RESYNC
            | frame_type::ERROR
            | frame_type::GOAWAY
            | frame_type::PRESENCE
            | frame_type::SIGNALLED
    )
}

/// Whether only a client sends this type.
pub(super) fn is_client_type(kind: u8) -> bool {
    matches!(
        kind,
        frame_type::HELLO
            | frame_type::PING
            | frame_type::AUTH
            | frame_type::SEND
            | frame_type::ACK
            | frame_type::NACK
            | frame_type::SYNC
            | frame_type::FETCH
            | frame_type::READ
            | frame_type::WATCH
            | frame_type::SIGNAL
    )
}

/// Fields off the front of a body.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (&field, rest) = self.0.split_first_chunk::<N>().ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(field)
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let (field, rest) = self.0.split_at_checked(len).ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(field)
    }

    fn u8(&mut self) -> Result<u8, Fault> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Fault> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    /// Text of at most 255 bytes; `detail` says which field is not UTF-8.
    pub(super) fn s8(&mut self, detail: &'static str) -> Result<&'a str, Fault> {
        let len = self.u8()?.into();
        std::str::from_utf8(self.bytes(len)?).map_err(|_| Fault::field(detail))
    }

    fn s16(&mut self, detail: &'static str) -> Result<&'a str, Fault> {
        let len = self.u16()?.into();
        std::str::from_utf8(self.bytes(len)?).map_err(|_| Fault::field(detail))
    }

    fn b16(&mut self) -> Result<&'a [u8], Fault> {
        let len = self.u16()?.into();
        self.bytes(len)
    }

    fn b32(&mut self) -> Result<&'a [u8], Fault> {
        let len = usize::try_from(self.u32()?).map_err(|_| TRUNCATED)?;
        self.bytes(len)
    }

    fn trace_if(&mut self, present: bool) -> Result<Option<Trace>, Fault> {
        if !present {
            return Ok(None);
        }
        Ok(Some(Trace { trace_id: self.array()?, parent_id: self.array()?, flags: self.u8()? }))
    }

    fn cmid_if(&mut self, present: bool) -> Result<Option<Cmid>, Fault> {
        if !present {
            return Ok(None);
        }
        Ok(Some(Cmid(self.array()?)))
    }

    pub(super) fn cursor(&mut self) -> Result<Cursor<'a>, Fault> {
        Ok(Cursor { conv: self.s8(CONV)?.into(), seq: self.u64()? })
    }

    /// Checks `count` items and returns the bytes they lie in.
    fn items<T>(&mut self, count: u16, item: impl Fn(&mut Self) -> Result<T, Fault>) -> Result<&'a [u8], Fault> {
        let all = self.0;
        for _ in 0..count {
            item(self)?;
        }
        Ok(all.get(..all.len().saturating_sub(self.0.len())).unwrap_or_default())
    }

    /// A count, then as many items. What is reserved is bounded by what can be there: no item is shorter than 8 bytes.
    fn list<T>(&mut self, item: impl Fn(&mut Self) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
        let count = usize::from(self.u16()?);
        let mut items = Vec::with_capacity(count.min(self.0.len() / 8));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn welcome(&mut self) -> Result<Welcome<'a>, Fault> {
        let [minor, resumed, level, _zero] = self.array()?;
        Ok(Welcome {
            minor,
            resumed,
            level,
            window: self.u16()?,
            send_window: self.u16()?,
            caps: self.u32()?,
            ping_ms: self.u32()?,
            resume_ms: self.u32()?,
            dedup_s: self.u32()?,
            max_frame: self.u32()?,
            max_payload: self.u32()?,
            server_ms: self.u64()?,
            pos: self.u64()?,
            session: self.array()?,
            user: self.s8("user is not UTF-8")?.into(),
            node: self.s8("node is not UTF-8")?.into(),
            rate: self.u16()?,
            burst: self.u16()?,
        })
    }

    fn deliver(&mut self) -> Result<Deliver<'a>, Fault> {
        let (pos, seq, mid, flags) = (self.u64()?, self.u64()?, Mid(self.u64()?), self.u8()?);
        Ok(Deliver {
            pos,
            seq,
            mid,
            flags,
            kind: self.u16()?,
            exp_s: self.u32()?,
            cmid: self.cmid_if(flags & deliver_flags::OWN != 0)?,
            trace: self.trace_if(flags & deliver_flags::TRACE != 0)?,
            conv: self.s8(CONV)?.into(),
            from: self.s8(FROM)?.into(),
            payload: self.b32()?.into(),
        })
    }

    fn entry(&mut self) -> Result<Entry<'a>, Fault> {
        Ok(Entry {
            conv: self.s8(CONV)?.into(),
            epoch: self.u32()?,
            flags: self.u8()?,
            head: self.u64()?,
            head_mid: Mid(self.u64()?),
            floor: self.u64()?,
            mine: self.u64()?,
            read: self.u64()?,
            unread: self.u32()?,
        })
    }

    fn message(&mut self) -> Result<Message<'a>, Fault> {
        let (seq, mid, flags) = (self.u64()?, Mid(self.u64()?), self.u8()?);
        Ok(Message {
            seq,
            mid,
            flags,
            kind: self.u16()?,
            exp_s: self.u32()?,
            cmid: self.cmid_if(flags & deliver_flags::OWN != 0)?,
            from: self.s8(FROM)?.into(),
            payload: self.b32()?.into(),
        })
    }
}

const TRUNCATED: Fault = Fault::malformed("frame ends inside a field");
const CONV: &str = "conv is not UTF-8";
const FROM: &str = "from is not UTF-8";

/// See [`super::encode_client`].
pub(super) fn encode_client(frame: &ClientFrame<'_>, out: &mut Vec<u8>) {
    match frame {
        ClientFrame::Hello(hello) => put(out, frame_type::HELLO, |body| {
            body.u8(hello.minor).u8(hello.platform).u16(hello.window).u32(hello.caps).u64(hello.last_pos);
            body.raw(&hello.session).s8(&hello.device).s8(&hello.client).s16(&hello.token);
        }),
        ClientFrame::Ping { pos } => put(out, frame_type::PING, |body| {
            body.u64(*pos);
        }),
        ClientFrame::Auth { rid, token } => put(out, frame_type::AUTH, |body| {
            body.u32(*rid).s16(token);
        }),
        ClientFrame::Send(send) => put(out, frame_type::SEND, |body| {
            let flags = with_bit(send.flags, send_flags::TRACE, send.trace.is_some());
            body.u32(send.rid).raw(&send.cmid.0).u8(flags).u16(send.kind).u32(send.ttl_s);
            body.trace(send.trace.as_ref()).s8(&send.conv).b32(&send.payload);
        }),
        ClientFrame::Ack { pos, cursors } => put(out, frame_type::ACK, |body| {
            body.u64(*pos).count(cursors.len());
            for cursor in cursors {
                body.s8(&cursor.conv).u64(cursor.seq);
            }
        }),
        ClientFrame::Nack { conv, seq, delay_ms, reason } => put(out, frame_type::NACK, |body| {
            body.s8(conv).u64(*seq).u32(*delay_ms).u16(*reason);
        }),
        ClientFrame::Sync { rid, since, limit, cursor } => put(out, frame_type::SYNC, |body| {
            body.u32(*rid).u64(*since).u16(*limit).s8(cursor);
        }),
        ClientFrame::Fetch { rid, conv, from, to, limit, flags } => put(out, frame_type::FETCH, |body| {
            body.u32(*rid).s8(conv).u64(*from).u64(*to).u16(*limit).u8(*flags);
        }),
        ClientFrame::Read { rid, conv, seq } => put(out, frame_type::READ, |body| {
            body.u32(*rid).s8(conv).u64(*seq);
        }),
        ClientFrame::Watch { rid, ttl_s, users } => put(out, frame_type::WATCH, |body| {
            body.u32(*rid).u32(*ttl_s).count(users.len());
            for user in users {
                body.s8(user);
            }
        }),
        ClientFrame::Signal { conv, kind, payload } => put(out, frame_type::SIGNAL, |body| {
            body.s8(conv).u16(*kind).b16(payload);
        }),
    }
}

/// See [`super::encode_server`].
pub(super) fn encode_server(frame: &ServerFrame<'_>, out: &mut Vec<u8>) {
    match frame {
        ServerFrame::Welcome(w) => put(out, frame_type::WELCOME, |body| {
            body.u8(w.minor).u8(w.resumed).u8(w.level).u8(0).u16(w.window).u16(w.send_window).u32(w.caps);
            body.u32(w.ping_ms).u32(w.resume_ms).u32(w.dedup_s).u32(w.max_frame).u32(w.max_payload);
            body.u64(w.server_ms).u64(w.pos).raw(&w.session).s8(&w.user).s8(&w.node).u16(w.rate).u16(w.burst);
        }),
        ServerFrame::Pong { server_ms } => put(out, frame_type::PONG, |body| {
            body.u64(*server_ms);
        }),
        ServerFrame::Ok { rid, value } => put(out, frame_type::OK, |body| {
            body.u32(*rid).u64(*value);
        }),
        ServerFrame::Expiring { in_ms } => put(out, frame_type::EXPIRING, |body| {
            body.u32(*in_ms);
        }),
        ServerFrame::Sent { rid, level, flags, seq, mid } => put(out, frame_type::SENT, |body| {
            body.u32(*rid).u8(*level).u8(*flags).u64(*seq).u64(mid.0);
        }),
        ServerFrame::Deliver(deliver) => put(out, frame_type::DELIVER, |body| {
            body.u64(deliver.pos);
            deliver_tail(deliver, body.0);
        }),
        ServerFrame::SyncPage { rid, flags, since, cursor, entries } => {
            let mut page = SyncPageWriter::new(Encoding::Binary, usize::MAX, *rid);
            entries.iter().for_each(|entry| assert!(page.push(entry), "more entries than a page can count"));
            out.extend_from_slice(&page.finish(*flags, *since, cursor));
        }
        ServerFrame::Page { rid, flags, epoch, floor, head, conv, messages } => {
            let head = PageHead { rid: *rid, epoch: *epoch, floor: *floor, head: *head, conv };
            let mut page = PageWriter::new(Encoding::Binary, usize::MAX, PageOrder::Ascending, &head);
            messages.iter().for_each(|message| assert!(page.push(message), "more messages than a page can count"));
            out.extend_from_slice(&page.finish(*flags));
        }
        ServerFrame::Notice { conv, head, mid } => put(out, frame_type::NOTICE, |body| {
            body.s8(conv).u64(*head).u64(mid.0);
        }),
        ServerFrame::Receipt { conv, user, recv, read } => put(out, frame_type::RECEIPT, |body| {
            body.s8(conv).s8(user).u64(*recv).u64(*read);
        }),
        ServerFrame::Conv { conv, event, version, data } => put(out, frame_type::CONV, |body| {
            body.s8(conv).u8(*event).u64(*version).b32(data);
        }),
        ServerFrame::Resync { reason } => put(out, frame_type::RESYNC, |body| {
            body.u16(*reason);
        }),
        ServerFrame::Error { rid, code, flags, retry_ms, detail } => put(out, frame_type::ERROR, |body| {
            body.u32(*rid).u16(*code).u8(*flags).u32(*retry_ms).s8(cut(detail));
        }),
        ServerFrame::Goaway { code, delay_ms, spread_ms, grace_ms, target } => put(out, frame_type::GOAWAY, |body| {
            body.u16(*code).u32(*delay_ms).u32(*spread_ms).u32(*grace_ms).s16(target);
        }),
        ServerFrame::Presence { user, state, seen_ms } => put(out, frame_type::PRESENCE, |body| {
            body.s8(user).u8(*state).u64(*seen_ms);
        }),
        ServerFrame::Signalled { conv, from, kind, payload } => put(out, frame_type::SIGNALLED, |body| {
            body.s8(conv).s8(from).u16(*kind).b16(payload);
        }),
    }
}

/// See [`super::deliver_head`].
pub(super) fn deliver_head(pos: u64, tail_len: usize, out: &mut [u8; DELIVER_HEAD_BYTES_MAX]) -> usize {
    out[..4].copy_from_slice(&header(frame_type::DELIVER, tail_len.saturating_add(8)));
    out[4..DELIVER_HEAD_BYTES].copy_from_slice(&pos.to_le_bytes());
    DELIVER_HEAD_BYTES
}

/// Bytes of [`deliver_head`]: the header of the frame, and `pos`.
pub(super) const DELIVER_HEAD_BYTES: usize = 12;

/// See [`super::deliver_tail`].
pub(super) fn deliver_tail(deliver: &Deliver<'_>, out: &mut Vec<u8>) {
    let flags = with_bit(deliver.flags, deliver_flags::OWN, deliver.cmid.is_some());
    let flags = with_bit(flags, deliver_flags::TRACE, deliver.trace.is_some());
    let mut body = Body(out);
    body.u64(deliver.seq).u64(deliver.mid.0).u8(flags).u16(deliver.kind).u32(deliver.exp_s);
    body.cmid(deliver.cmid).trace(deliver.trace.as_ref()).s8(&deliver.conv).s8(&deliver.from).b32(&deliver.payload);
}

/// Appends a PAGE without its messages, count 0, flags 0; [`end_page`] sets what is known only then.
pub(super) fn begin_page(head: &PageHead<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(&header(frame_type::PAGE, 0));
    Body(out).u32(head.rid).u8(0).u32(head.epoch).u64(head.floor).u64(head.head).s8(head.conv).u16(0);
}

/// Completes the PAGE that fills `page`. Its messages begin at `first`.
#[expect(clippy::arithmetic_side_effects, clippy::indexing_slicing, reason = "into the head that begin_page wrote")]
pub(super) fn end_page(page: &mut [u8], first: usize, count: u16, flags: u8) {
    let head = header(frame_type::PAGE, page.len() - 4);
    page[..4].copy_from_slice(&head);
    page[8] = flags;
    page[first - 2..first].copy_from_slice(&count.to_le_bytes());
}

/// Appends a SYNC_PAGE without its entries; [`end_sync_page`] sets what is known only then.
pub(super) fn begin_sync_page(rid: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&header(frame_type::SYNC_PAGE, 0));
    Body(out).u32(rid).u8(0).u64(0).s8("").u16(0);
}

/// Completes the SYNC_PAGE that fills `page`: the cursor is put before the count and the entries, which move up once.
#[expect(clippy::arithmetic_side_effects, clippy::indexing_slicing, reason = "into the head that begin_sync_page wrote")]
pub(super) fn end_sync_page(page: &mut Vec<u8>, count: u16, flags: u8, since: u64, cursor: &str) {
    page[8] = flags;
    page[9..17].copy_from_slice(&since.to_le_bytes());
    let mut field = Vec::with_capacity(cursor.len() + 1);
    Body(&mut field).s8(cursor);
    page[18..20].copy_from_slice(&count.to_le_bytes());
    page.splice(17..18, field);
    let head = header(frame_type::SYNC_PAGE, page.len() - 4);
    page[..4].copy_from_slice(&head);
}

/// Appends one message of PAGE.
pub(super) fn message(message: &Message<'_>, out: &mut Vec<u8>) {
    let flags = with_bit(message.flags, deliver_flags::OWN, message.cmid.is_some());
    let mut body = Body(out);
    body.u64(message.seq).u64(message.mid.0).u8(flags).u16(message.kind).u32(message.exp_s);
    body.cmid(message.cmid).s8(&message.from).b32(&message.payload);
}

/// Appends one entry of SYNC_PAGE.
pub(super) fn entry(entry: &Entry<'_>, out: &mut Vec<u8>) {
    let mut body = Body(out);
    body.s8(&entry.conv).u32(entry.epoch).u8(entry.flags).u64(entry.head).u64(entry.head_mid.0);
    body.u64(entry.floor).u64(entry.mine).u64(entry.read).u32(entry.unread);
}

/// `flags` with `bit` exactly as `present`: a bit that says that a field follows always tells the truth.
pub(super) fn with_bit(flags: u8, bit: u8, present: bool) -> u8 {
    if present { flags | bit } else { flags & !bit }
}

/// The longest beginning of `detail` that fits its length field and is whole characters.
#[expect(clippy::string_slice, reason = "at a boundary that was asked for")]
pub(super) fn cut(detail: &str) -> &str {
    &detail[..detail.floor_char_boundary(usize::from(u8::MAX))]
}

#[expect(clippy::arithmetic_side_effects, clippy::indexing_slicing, reason = "into the four bytes just appended")]
fn put(out: &mut Vec<u8>, kind: u8, fields: impl FnOnce(&mut Body<'_>)) {
    let start = out.len();
    out.extend_from_slice(&header(kind, 0));
    fields(&mut Body(out));
    let head = header(kind, out.len() - start - 4);
    out[start..start + 4].copy_from_slice(&head);
}

fn header(kind: u8, len: usize) -> [u8; 4] {
    assert!(len < 1 << 24, "a frame body is at most 16 MiB");
    let [a, b, c, ..] = len.to_le_bytes();
    [kind, a, b, c]
}

/// Fields onto the end of a body. Names and lists have been held against their bounds before they come here: those of a client when
/// its frame was judged, those of an operator when his request was.
struct Body<'o>(&'o mut Vec<u8>);

#[expect(clippy::expect_used, reason = "what is written was held against its bound before, as the type says")]
impl Body<'_> {
    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    fn count(&mut self, count: usize) -> &mut Self {
        self.u16(u16::try_from(count).expect("a list has at most 65,535 items"))
    }

    fn s8(&mut self, text: &str) -> &mut Self {
        self.u8(u8::try_from(text.len()).expect("a name has at most 255 bytes")).raw(text.as_bytes())
    }

    fn s16(&mut self, text: &str) -> &mut Self {
        self.b16(text.as_bytes())
    }

    fn b16(&mut self, bytes: &[u8]) -> &mut Self {
        self.u16(u16::try_from(bytes.len()).expect("a short payload or token has at most 65,535 bytes")).raw(bytes)
    }

    fn b32(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(u32::try_from(bytes.len()).expect("a payload has at most 16 MiB")).raw(bytes)
    }

    fn cmid(&mut self, cmid: Option<Cmid>) -> &mut Self {
        if let Some(cmid) = cmid {
            self.raw(&cmid.0);
        }
        self
    }

    fn trace(&mut self, trace: Option<&Trace>) -> &mut Self {
        if let Some(trace) = trace {
            self.raw(&trace.trace_id).raw(&trace.parent_id).u8(trace.flags);
        }
        self
    }
}
