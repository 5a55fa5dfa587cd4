//! Writing the JSON mirror, `tidegate.v1.json` (docs/protocol.md section 5).
//!
//! Keys without a value (zero, empty) are not written. In DELIVER `t` comes first and `pos` second, so that all behind them is the
//! same for every receiver; in pages what is known only at the end comes last.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "it writes into blocks of its own, at places it has just found or made"
)]

use super::binary::{cut, with_bit};
use super::frames::DELIVER_HEAD_BYTES_MAX;
use super::json::{Engine, Key, NAMES, STANDARD};
use super::page::{PageHead, PageOrder, PageWriter, SyncPageWriter};
use super::{ClientFrame, Deliver, Encoding, Entry, Message, ServerFrame, Trace, deliver_flags, frame_type, send_flags};
use crate::limits::FRAME_BYTES_DEFAULT;

/// See [`super::encode_client`].
pub(super) fn encode_client(frame: &ClientFrame<'_>, out: &mut Vec<u8>) {
    match frame {
        ClientFrame::Hello(hello) => Line::begin(out, frame_type::HELLO)
            .number(Key::minor, hello.minor)
            .number(Key::platform, hello.platform)
            .number(Key::window, hello.window)
            .number(Key::caps, hello.caps)
            .number(Key::last_pos, hello.last_pos)
            .hex(Key::session, &hello.session)
            .text(Key::device, &hello.device)
            .text(Key::client, &hello.client)
            .text(Key::token, &hello.token)
            .end(),
        ClientFrame::Ping { pos } => Line::begin(out, frame_type::PING).number(Key::pos, *pos).end(),
        ClientFrame::Auth { rid, token } => {
            Line::begin(out, frame_type::AUTH).number(Key::rid, *rid).text(Key::token, token).end();
        }
        ClientFrame::Send(send) => Line::begin(out, frame_type::SEND)
            .number(Key::rid, send.rid)
            .hex(Key::cmid, &send.cmid.0)
            .number(Key::flags, with_bit(send.flags, send_flags::TRACE, send.trace.is_some()))
            .number(Key::kind, send.kind)
            .number(Key::ttl_s, send.ttl_s)
            .trace(send.trace.as_ref())
            .text(Key::conv, &send.conv)
            .payload(&send.payload, FRAME_BYTES_DEFAULT)
            .end(),
        ClientFrame::Ack { pos, cursors } => {
            let mut line = Line::begin(out, frame_type::ACK);
            line.number(Key::pos, *pos);
            if !cursors.is_empty() {
                line.key(Key::cursors).push(b'[');
                for (index, cursor) in cursors.iter().enumerate() {
                    line.separate(index);
                    Line::object(line.out).text(Key::conv, &cursor.conv).number(Key::seq, cursor.seq).end();
                }
                line.out.push(b']');
            }
            line.end();
        }
        ClientFrame::Nack { conv, seq, delay_ms, reason } => Line::begin(out, frame_type::NACK)
            .text(Key::conv, conv)
            .number(Key::seq, *seq)
            .number(Key::delay_ms, *delay_ms)
            .number(Key::reason, *reason)
            .end(),
        ClientFrame::Sync { rid, since, limit, cursor } => Line::begin(out, frame_type::SYNC)
            .number(Key::rid, *rid)
            .decimal(Key::since, *since)
            .number(Key::limit, *limit)
            .text(Key::cursor, cursor)
            .end(),
        ClientFrame::Fetch { rid, conv, from, to, limit, flags } => Line::begin(out, frame_type::FETCH)
            .number(Key::rid, *rid)
            .text(Key::conv, conv)
            .number(Key::from, *from)
            .number(Key::to, *to)
            .number(Key::limit, *limit)
            .number(Key::flags, *flags)
            .end(),
        ClientFrame::Read { rid, conv, seq } => {
            Line::begin(out, frame_type::READ).number(Key::rid, *rid).text(Key::conv, conv).number(Key::seq, *seq).end();
        }
        ClientFrame::Watch { rid, ttl_s, users } => {
            let mut line = Line::begin(out, frame_type::WATCH);
            line.number(Key::rid, *rid).number(Key::ttl_s, *ttl_s);
            if !users.is_empty() {
                line.key(Key::users).push(b'[');
                for (index, user) in users.iter().enumerate() {
                    line.separate(index);
                    quoted(user, line.out);
                }
                line.out.push(b']');
            }
            line.end();
        }
        ClientFrame::Signal { conv, kind, payload } => Line::begin(out, frame_type::SIGNAL)
            .text(Key::conv, conv)
            .number(Key::kind, *kind)
            .payload(payload, FRAME_BYTES_DEFAULT)
            .end(),
    }
}

/// See [`super::encode_server`].
pub(super) fn encode_server(frame: &ServerFrame<'_>, out: &mut Vec<u8>) {
    match frame {
        ServerFrame::Welcome(w) => Line::begin(out, frame_type::WELCOME)
            .number(Key::minor, w.minor)
            .number(Key::resumed, w.resumed)
            .number(Key::level, w.level)
            .number(Key::window, w.window)
            .number(Key::send_window, w.send_window)
            .number(Key::caps, w.caps)
            .number(Key::ping_ms, w.ping_ms)
            .number(Key::resume_ms, w.resume_ms)
            .number(Key::dedup_s, w.dedup_s)
            .number(Key::max_frame, w.max_frame)
            .number(Key::max_payload, w.max_payload)
            .number(Key::server_ms, w.server_ms)
            .number(Key::pos, w.pos)
            .hex(Key::session, &w.session)
            .text(Key::user, &w.user)
            .text(Key::node, &w.node)
            .number(Key::rate, w.rate)
            .number(Key::burst, w.burst)
            .end(),
        ServerFrame::Pong { server_ms } => Line::begin(out, frame_type::PONG).number(Key::server_ms, *server_ms).end(),
        ServerFrame::Ok { rid, value } => {
            Line::begin(out, frame_type::OK).number(Key::rid, *rid).number(Key::value, *value).end();
        }
        ServerFrame::Expiring { in_ms } => Line::begin(out, frame_type::EXPIRING).number(Key::in_ms, *in_ms).end(),
        ServerFrame::Sent { rid, level, flags, seq, mid } => Line::begin(out, frame_type::SENT)
            .number(Key::rid, *rid)
            .number(Key::level, *level)
            .number(Key::flags, *flags)
            .number(Key::seq, *seq)
            .decimal(Key::mid, mid.0)
            .end(),
        ServerFrame::Deliver(deliver) => {
            let mut head = [0; DELIVER_HEAD_BYTES_MAX];
            let len = deliver_head(deliver.pos, &mut head);
            out.extend_from_slice(&head[..len]);
            deliver_tail(deliver, FRAME_BYTES_DEFAULT, out);
        }
        ServerFrame::SyncPage { rid, flags, since, cursor, entries } => {
            let mut page = SyncPageWriter::new(Encoding::Json, usize::MAX, *rid);
            entries.iter().for_each(|entry| assert!(page.push(entry), "more entries than a page can count"));
            out.extend_from_slice(&page.finish(*flags, *since, cursor));
        }
        ServerFrame::Page { rid, flags, epoch, floor, head, conv, messages } => {
            let head = PageHead { rid: *rid, epoch: *epoch, floor: *floor, head: *head, conv };
            let mut page = PageWriter::new(Encoding::Json, usize::MAX, PageOrder::Ascending, &head);
            messages.iter().for_each(|message| assert!(page.push(message), "more messages than a page can count"));
            out.extend_from_slice(&page.finish(*flags));
        }
        ServerFrame::Notice { conv, head, mid } => {
            Line::begin(out, frame_type::NOTICE).text(Key::conv, conv).number(Key::head, *head).decimal(Key::mid, mid.0).end();
        }
        ServerFrame::Receipt { conv, user, recv, read } => Line::begin(out, frame_type::RECEIPT)
            .text(Key::conv, conv)
            .text(Key::user, user)
            .number(Key::recv, *recv)
            .number(Key::read, *read)
            .end(),
        ServerFrame::Conv { conv, event, version, data } => Line::begin(out, frame_type::CONV)
            .text(Key::conv, conv)
            .number(Key::event, *event)
            .number(Key::version, *version)
            .payload(data, FRAME_BYTES_DEFAULT)
            .end(),
        ServerFrame::Resync { reason } => Line::begin(out, frame_type::RESYNC).number(Key::reason, *reason).end(),
        ServerFrame::Error { rid, code, flags, retry_ms, detail } => Line::begin(out, frame_type::ERROR)
            .number(Key::rid, *rid)
            .number(Key::code, *code)
            .number(Key::flags, *flags)
            .number(Key::retry_ms, *retry_ms)
            .text(Key::detail, cut(detail))
            .end(),
        ServerFrame::Goaway { code, delay_ms, spread_ms, grace_ms, target } => Line::begin(out, frame_type::GOAWAY)
            .number(Key::code, *code)
            .number(Key::delay_ms, *delay_ms)
            .number(Key::spread_ms, *spread_ms)
            .number(Key::grace_ms, *grace_ms)
            .text(Key::target, target)
            .end(),
        ServerFrame::Presence { user, state, seen_ms } => Line::begin(out, frame_type::PRESENCE)
            .text(Key::user, user)
            .number(Key::state, *state)
            .number(Key::seen_ms, *seen_ms)
            .end(),
        ServerFrame::Signalled { conv, from, kind, payload } => Line::begin(out, frame_type::SIGNALLED)
            .text(Key::conv, conv)
            .text(Key::from, from)
            .number(Key::kind, *kind)
            .payload(payload, FRAME_BYTES_DEFAULT)
            .end(),
    }
}

/// See [`super::deliver_head`].
pub(super) fn deliver_head(pos: u64, out: &mut [u8; DELIVER_HEAD_BYTES_MAX]) -> usize {
    let mut digits = [0; 20];
    let digits = decimal(pos.min(NUMBER_MAX), &mut digits);
    let end = DELIVER_START.len() + digits.len();
    out[..DELIVER_START.len()].copy_from_slice(DELIVER_START);
    out[DELIVER_START.len()..end].copy_from_slice(digits);
    out[end] = b',';
    end + 1
}

/// See [`super::deliver_head_bytes`].
pub(super) fn deliver_head_bytes(pos: u64) -> usize {
    let digits = pos.min(NUMBER_MAX).checked_ilog10().map_or(1, |power| power as usize + 1);
    DELIVER_START.len() + digits + 1
}

/// See [`super::deliver_tail`]. `seq` is written even when zero, so that something stands behind the comma of the head.
pub(super) fn deliver_tail(deliver: &Deliver<'_>, max_frame: usize, out: &mut Vec<u8>) {
    let flags = with_bit(deliver.flags, deliver_flags::OWN, deliver.cmid.is_some());
    let flags = with_bit(flags, deliver_flags::TRACE, deliver.trace.is_some());
    let mut line = Line { start: out.len(), out, empty: true };
    line.key(Key::seq);
    number(deliver.seq.min(NUMBER_MAX), line.out);
    line.decimal(Key::mid, deliver.mid.0)
        .number(Key::flags, flags)
        .number(Key::kind, deliver.kind)
        .number(Key::exp_s, deliver.exp_s)
        .hex(Key::cmid, deliver.cmid.as_ref().map_or(&[], |cmid| &cmid.0))
        .trace(deliver.trace.as_ref())
        .text(Key::conv, &deliver.conv)
        .text(Key::from, &deliver.from)
        .payload(&deliver.payload, max_frame.saturating_sub(DELIVER_START.len() + NUMBER_DIGITS_MAX + 1))
        .end();
}

const DELIVER_START: &[u8] = br#"{"t":"deliver","pos":"#;
const _: () = assert!(DELIVER_START.len() + NUMBER_DIGITS_MAX < DELIVER_HEAD_BYTES_MAX);

/// Appends a PAGE up to its first message.
pub(super) fn begin_page(head: &PageHead<'_>, out: &mut Vec<u8>) {
    Line::begin(out, frame_type::PAGE)
        .number(Key::rid, head.rid)
        .number(Key::epoch, head.epoch)
        .number(Key::floor, head.floor)
        .number(Key::head, head.head)
        .text(Key::conv, head.conv)
        .key(Key::messages)
        .push(b'[');
}

/// Completes a PAGE.
pub(super) fn end_page(page: &mut Vec<u8>, flags: u8) {
    page.push(b']');
    Line::resume(page).number(Key::flags, flags).end();
}

/// Most bytes of [`end_page`]: `],"flags":255}`.
pub(super) const PAGE_END_BYTES_MAX: usize = 14;

/// Appends a SYNC_PAGE up to its first entry.
pub(super) fn begin_sync_page(rid: u32, out: &mut Vec<u8>) {
    Line::begin(out, frame_type::SYNC_PAGE).number(Key::rid, rid).key(Key::entries).push(b'[');
}

/// Completes a SYNC_PAGE.
pub(super) fn end_sync_page(page: &mut Vec<u8>, flags: u8, since: u64, cursor: &str) {
    page.push(b']');
    Line::resume(page).number(Key::flags, flags).decimal(Key::since, since).text(Key::cursor, cursor).end();
}

/// Most bytes of [`end_sync_page`]: `],"flags":255,"since":"<20>","cursor":"<255 bytes, each six when escaped>"}`.
pub(super) const SYNC_PAGE_END_BYTES_MAX: usize = 13 + 31 + 12 + 6 * 255 + 1;

/// Appends one message of PAGE, text as text if the object stays within `max_object`.
pub(super) fn message(message: &Message<'_>, max_object: usize, out: &mut Vec<u8>) {
    let flags = with_bit(message.flags, deliver_flags::OWN, message.cmid.is_some());
    Line::object(out)
        .number(Key::seq, message.seq)
        .decimal(Key::mid, message.mid.0)
        .number(Key::flags, flags)
        .number(Key::kind, message.kind)
        .number(Key::exp_s, message.exp_s)
        .hex(Key::cmid, message.cmid.as_ref().map_or(&[], |cmid| &cmid.0))
        .text(Key::from, &message.from)
        .payload(&message.payload, max_object)
        .end();
}

/// Appends one entry of SYNC_PAGE.
pub(super) fn entry(entry: &Entry<'_>, out: &mut Vec<u8>) {
    Line::object(out)
        .text(Key::conv, &entry.conv)
        .number(Key::epoch, entry.epoch)
        .number(Key::flags, entry.flags)
        .number(Key::head, entry.head)
        .decimal(Key::head_mid, entry.head_mid.0)
        .number(Key::floor, entry.floor)
        .number(Key::mine, entry.mine)
        .number(Key::read, entry.read)
        .number(Key::unread, entry.unread)
        .end();
}

/// The greatest integer that every JSON reader keeps exactly; what is greater is written as this.
const NUMBER_MAX: u64 = (1 << 53) - 1;
const NUMBER_DIGITS_MAX: usize = 16;

/// Keys and values onto the end of an object.
struct Line<'o> {
    out: &'o mut Vec<u8>,
    /// Where the object begins.
    start: usize,
    /// No comma before the next key.
    empty: bool,
}

impl<'o> Line<'o> {
    /// A frame.
    #[expect(clippy::expect_used, reason = "NAMES has every frame type, or its round trip in the tests would fail")]
    fn begin(out: &'o mut Vec<u8>, kind: u8) -> Self {
        let (_, name) = NAMES.iter().find(|(known, _)| *known == kind).expect("every frame has a name");
        let mut line = Self::object(out);
        line.text(Key::t, name);
        line
    }

    /// An object within a frame.
    fn object(out: &'o mut Vec<u8>) -> Self {
        let start = out.len();
        out.push(b'{');
        Self { out, start, empty: true }
    }

    /// A frame that has keys already.
    fn resume(out: &'o mut Vec<u8>) -> Self {
        Self { out, start: 0, empty: false }
    }

    fn end(&mut self) {
        self.out.push(b'}');
    }

    /// Writes a key, and returns where its value goes.
    fn key(&mut self, key: Key) -> &mut Vec<u8> {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
        self.out.push(b'"');
        self.out.extend_from_slice(key.name().as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    /// Puts the comma before every item of a list but the first.
    fn separate(&mut self, index: usize) {
        if index > 0 {
            self.out.push(b',');
        }
    }

    fn number(&mut self, key: Key, value: impl Into<u64>) -> &mut Self {
        let value = value.into();
        if value != 0 {
            number(value.min(NUMBER_MAX), self.key(key));
        }
        self
    }

    fn decimal(&mut self, key: Key, value: u64) -> &mut Self {
        if value != 0 {
            let out = self.key(key);
            out.push(b'"');
            number(value, out);
            out.push(b'"');
        }
        self
    }

    fn text(&mut self, key: Key, text: &str) -> &mut Self {
        if !text.is_empty() {
            quoted(text, self.key(key));
        }
        self
    }

    fn hex(&mut self, key: Key, bytes: &[u8]) -> &mut Self {
        if bytes.iter().any(|&byte| byte != 0) {
            let out = self.key(key);
            out.push(b'"');
            push_hex(bytes, out);
            out.push(b'"');
        }
        self
    }

    fn trace(&mut self, trace: Option<&Trace>) -> &mut Self {
        if let Some(trace) = trace {
            let out = self.key(Key::trace);
            out.extend_from_slice(b"\"00-");
            push_hex(&trace.trace_id, out);
            out.push(b'-');
            push_hex(&trace.parent_id, out);
            out.push(b'-');
            push_hex(&[trace.flags], out);
            out.push(b'"');
        }
        self
    }

    /// The last field: as text, if it is text and the object, closed, stays within `max_object` bytes.
    fn payload(&mut self, payload: &[u8], max_object: usize) -> &mut Self {
        if payload.is_empty() {
            return self;
        }
        let (before, empty) = (self.out.len(), self.empty);
        if let Ok(text) = std::str::from_utf8(payload) {
            self.text(Key::text, text);
            if self.out.len() + 1 - self.start <= max_object {
                return self;
            }
            self.out.truncate(before);
            self.empty = empty;
        }
        let out = self.key(Key::b64);
        out.push(b'"');
        let start = out.len();
        out.resize(start + payload.len().div_ceil(3) * 4, 0);
        let written = STANDARD.encode_slice(payload, &mut out[start..]);
        assert!(written == Ok(out.len() - start), "four bytes for every three");
        out.push(b'"');
        self
    }
}

/// Appends `text` in quotes. Runs without a character to escape are copied whole.
fn quoted(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
            byte => {
                out.extend_from_slice(b"\\u00");
                push_hex(&[byte], out);
            }
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn push_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

fn number(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(decimal(value, &mut [0; 20]));
}

/// The digits of `value`, written into the end of `buffer`.
fn decimal(mut value: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut start = buffer.len();
    loop {
        start -= 1;
        buffer[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return &buffer[start..];
        }
    }
}
