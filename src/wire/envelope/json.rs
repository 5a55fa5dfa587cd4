//! Reading the JSON mirror, `tidegate.v1.json` (docs/protocol.md section 5).                           [base64]
//!
//! Text borrows from the line unless it has escapes. The names of frames and keys stand here; `json_write` uses them too.

use std::borrow::Cow;

pub(super) use base64::Engine;
pub(super) use base64::engine::general_purpose::STANDARD;

use super::binary::{is_client_type, is_server_type, with_bit};
use super::frames::{Fault, Seen};
use super::scan::{self, Items, Value};
use super::{
    ClientFrame, Cursor, Cursors, Deliver, Entry, Hello, Message, Send, ServerFrame, Trace, Users, Welcome, deliver_flags,
    frame_type, send_flags,
};
use crate::ids::{Cmid, Mid};
use crate::limits::{ACK_CURSORS_MAX, WATCH_USERS_MAX};

/// Takes the next line that is not empty off the front of `rest`.
pub(super) fn split<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    while !rest.is_empty() {
        let mut parts = rest.splitn(2, |&byte| byte == b'\n');
        let line = parts.next().unwrap_or_default();
        *rest = parts.next().unwrap_or_default();
        if !line.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r')) {
            return Some(line);
        }
    }
    None
}

/// Decodes one line of a client; `None` if it may be skipped.
pub(super) fn client<'a>(line: &'a [u8], seen: &mut Seen) -> Result<Option<ClientFrame<'a>>, Fault> {
    let Some(fields) = open(line, seen)? else { return Ok(None) };
    if is_server_type(seen.frame) {
        return Err(Fault::unknown("frame type of the gateway"));
    }
    let f = &fields;
    Ok(Some(match seen.frame {
        frame_type::HELLO => ClientFrame::Hello(Hello {
            minor: f.u8(Key::minor)?,
            platform: f.u8(Key::platform)?,
            window: f.u16(Key::window)?,
            caps: f.u32(Key::caps)?,
            last_pos: f.u64(Key::last_pos)?,
            session: f.hex(Key::session)?,
            device: f.name(Key::device)?,
            client: f.name(Key::client)?,
            token: f.text(Key::token)?,
        }),
        frame_type::PING => ClientFrame::Ping { pos: f.u64(Key::pos)? },
        frame_type::AUTH => ClientFrame::Auth { rid: f.rid(seen)?, token: f.text(Key::token)? },
        frame_type::SEND => {
            let rid = f.rid(seen)?;
            let trace = f.trace()?;
            ClientFrame::Send(Send {
                rid,
                cmid: Cmid(f.hex(Key::cmid)?),
                flags: with_bit(f.u8(Key::flags)?, send_flags::TRACE, trace.is_some()),
                kind: f.u16(Key::kind)?,
                ttl_s: f.u32(Key::ttl_s)?,
                trace,
                conv: f.name(Key::conv)?,
                payload: f.payload()?,
            })
        }
        frame_type::ACK => ClientFrame::Ack { pos: f.u64(Key::pos)?, cursors: f.cursors()? },
        frame_type::NACK => ClientFrame::Nack {
            conv: f.name(Key::conv)?,
            seq: f.u64(Key::seq)?,
            delay_ms: f.u32(Key::delay_ms)?,
            reason: f.u16(Key::reason)?,
        },
        frame_type::SYNC => ClientFrame::Sync {
            rid: f.rid(seen)?,
            since: f.decimal(Key::since)?,
            limit: f.u16(Key::limit)?,
            cursor: f.name(Key::cursor)?,
        },
        frame_type::FETCH => ClientFrame::Fetch {
            rid: f.rid(seen)?,
            conv: f.name(Key::conv)?,
            from: f.u64(Key::from)?,
            to: f.u64(Key::to)?,
            limit: f.u16(Key::limit)?,
            flags: f.u8(Key::flags)?,
        },
        frame_type::READ => ClientFrame::Read { rid: f.rid(seen)?, conv: f.name(Key::conv)?, seq: f.u64(Key::seq)? },
        frame_type::WATCH => ClientFrame::Watch { rid: f.rid(seen)?, ttl_s: f.u32(Key::ttl_s)?, users: f.users()? },
        frame_type::SIGNAL => ClientFrame::Signal { conv: f.name(Key::conv)?, kind: f.u16(Key::kind)?, payload: f.payload()? },
        _ => return Err(Fault::unknown("unknown frame type")),
    }))
}

/// Decodes one line of the gateway; `None` if it may be skipped.
pub(super) fn server<'a>(line: &'a [u8], seen: &mut Seen) -> Result<Option<ServerFrame<'a>>, Fault> {
    let Some(fields) = open(line, seen)? else { return Ok(None) };
    if is_client_type(seen.frame) {
        return Err(Fault::unknown("frame type of a client"));
    }
    let f = &fields;
    Ok(Some(match seen.frame {
        frame_type::WELCOME => ServerFrame::Welcome(Welcome {
            minor: f.u8(Key::minor)?,
            resumed: f.u8(Key::resumed)?,
            level: f.u8(Key::level)?,
            window: f.u16(Key::window)?,
            send_window: f.u16(Key::send_window)?,
            caps: f.u32(Key::caps)?,
            ping_ms: f.u32(Key::ping_ms)?,
            resume_ms: f.u32(Key::resume_ms)?,
            dedup_s: f.u32(Key::dedup_s)?,
            max_frame: f.u32(Key::max_frame)?,
            max_payload: f.u32(Key::max_payload)?,
            server_ms: f.u64(Key::server_ms)?,
            pos: f.u64(Key::pos)?,
            session: f.hex(Key::session)?,
            user: f.text(Key::user)?,
            node: f.text(Key::node)?,
            rate: f.u16(Key::rate)?,
            burst: f.u16(Key::burst)?,
        }),
        frame_type::PONG => ServerFrame::Pong { server_ms: f.u64(Key::server_ms)? },
        frame_type::OK => ServerFrame::Ok { rid: f.rid(seen)?, value: f.u64(Key::value)? },
        frame_type::EXPIRING => ServerFrame::Expiring { in_ms: f.u32(Key::in_ms)? },
        frame_type::SENT => ServerFrame::Sent {
            rid: f.rid(seen)?,
            level: f.u8(Key::level)?,
            flags: f.u8(Key::flags)?,
            seq: f.u64(Key::seq)?,
            mid: Mid(f.decimal(Key::mid)?),
        },
        frame_type::DELIVER => {
            let trace = f.trace()?;
            let flags = with_bit(f.u8(Key::flags)?, deliver_flags::TRACE, trace.is_some());
            ServerFrame::Deliver(Deliver {
                pos: f.u64(Key::pos)?,
                seq: f.u64(Key::seq)?,
                mid: Mid(f.decimal(Key::mid)?),
                flags,
                kind: f.u16(Key::kind)?,
                exp_s: f.u32(Key::exp_s)?,
                cmid: f.cmid_if(flags & deliver_flags::OWN != 0)?,
                trace,
                conv: f.text(Key::conv)?,
                from: f.text(Key::from)?,
                payload: f.payload()?,
            })
        }
        frame_type::SYNC_PAGE => ServerFrame::SyncPage {
            rid: f.rid(seen)?,
            flags: f.u8(Key::flags)?,
            since: f.decimal(Key::since)?,
            cursor: f.text(Key::cursor)?,
            entries: f.list(Key::entries, |item| Fields::of(item)?.entry())?,
        },
        frame_type::PAGE => ServerFrame::Page {
            rid: f.rid(seen)?,
            flags: f.u8(Key::flags)?,
            epoch: f.u32(Key::epoch)?,
            floor: f.u64(Key::floor)?,
            head: f.u64(Key::head)?,
            conv: f.text(Key::conv)?,
            messages: f.list(Key::messages, |item| Fields::of(item)?.message())?,
        },
        frame_type::NOTICE => {
            ServerFrame::Notice { conv: f.text(Key::conv)?, head: f.u64(Key::head)?, mid: Mid(f.decimal(Key::mid)?) }
        }
        frame_type::RECEIPT => ServerFrame::Receipt {
            conv: f.text(Key::conv)?,
            user: f.text(Key::user)?,
            recv: f.u64(Key::recv)?,
            read: f.u64(Key::read)?,
        },
        frame_type::CONV => ServerFrame::Conv {
            conv: f.text(Key::conv)?,
            event: f.u8(Key::event)?,
            version: f.u64(Key::version)?,
            data: f.payload()?,
        },
        frame_type::RESYNC => ServerFrame::Resync { reason: f.u16(Key::reason)? },
        frame_type::ERROR => ServerFrame::Error {
            rid: f.rid(seen)?,
            code: f.u16(Key::code)?,
            flags: f.u8(Key::flags)?,
            retry_ms: f.u32(Key::retry_ms)?,
            detail: f.text(Key::detail)?,
        },
        frame_type::GOAWAY => ServerFrame::Goaway {
            code: f.u16(Key::code)?,
            delay_ms: f.u32(Key::delay_ms)?,
            spread_ms: f.u32(Key::spread_ms)?,
            grace_ms: f.u32(Key::grace_ms)?,
            target: f.text(Key::target)?,
        },
        frame_type::PRESENCE => {
            ServerFrame::Presence { user: f.text(Key::user)?, state: f.u8(Key::state)?, seen_ms: f.u64(Key::seen_ms)? }
        }
        frame_type::SIGNALLED => ServerFrame::Signalled {
            conv: f.text(Key::conv)?,
            from: f.text(Key::from)?,
            kind: f.u16(Key::kind)?,
            payload: f.payload()?,
        },
        _ => return Err(Fault::unknown("unknown frame type")),
    }))
}

/// Reads a line and its type. `None`: an unknown type that may be skipped.
fn open<'a>(line: &'a [u8], seen: &mut Seen) -> Result<Option<Fields<'a>>, Fault> {
    let line = std::str::from_utf8(line).map_err(|_| Fault::field("not UTF-8"))?;
    let fields = Fields::read(line)?;
    if fields.get(Key::t) == Value::Absent {
        return Err(Fault::malformed("no t"));
    }
    let name = fields.text(Key::t)?;
    match NAMES.iter().find(|(_, known)| *known == name) {
        Some(&(kind, _)) => seen.frame = kind,
        None if name.starts_with('_') => return Ok(None),
        None => return Err(Fault::unknown("unknown frame type")),
    }
    Ok(Some(fields))
}

/// Every frame type and its `t`.
pub(super) const NAMES: [(u8, &str); 27] = [
    (frame_type::SEND, "send"),
    (frame_type::ACK, "ack"),
    (frame_type::DELIVER, "deliver"),
    (frame_type::SENT, "sent"),
    (frame_type::HELLO, "hello"),
    (frame_type::WELCOME, "welcome"),
    (frame_type::PING, "ping"),
    (frame_type::PONG, "pong"),
    (frame_type::AUTH, "auth"),
    (frame_type::OK, "ok"),
    (frame_type::EXPIRING, "expiring"),
    (frame_type::NACK, "nack"),
    (frame_type::SYNC, "sync"),
    (frame_type::SYNC_PAGE, "sync_page"),
    (frame_type::FETCH, "fetch"),
    (frame_type::PAGE, "page"),
    (frame_type::READ, "read"),
    (frame_type::WATCH, "watch"),
    (frame_type::SIGNAL, "signal"),
    (frame_type::NOTICE, "notice"),
    (frame_type::RECEIPT, "receipt"),
    (frame_type::CONV, "conv"),
    (frame_type::RESYNC, "resync"),
    (frame_type::ERROR, "error"),
    (frame_type::GOAWAY, "goaway"),
    (frame_type::PRESENCE, "presence"),
    (frame_type::SIGNALLED, "signalled"),
];

/// One definition of the keys: the enum, the text on the wire, and what an ERROR says about a bad value.
macro_rules! keys {
    ($($name:ident)*) => {
        #[expect(non_camel_case_types, reason = "a key is named as on the wire")]
        #[derive(Clone, Copy)]
        pub(super) enum Key { $($name),* }

        impl Key {
            const COUNT: usize = [$(Self::$name),*].len();

            fn find(name: &str) -> Option<Self> {
                match name {
                    $(stringify!($name) => Some(Self::$name),)*
                    _ => None,
                }
            }

            pub(super) const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }

            const fn fault(self) -> Fault {
                Fault::field(match self { $(Self::$name => concat!("bad value of ", stringify!($name))),* })
            }
        }
    };
}

keys! {
    t rid pos seq mid flags kind conv from text b64 cmid trace exp_s ttl_s cursors level
    minor platform window caps last_pos session device client token
    resumed send_window ping_ms resume_ms dedup_s max_frame max_payload server_ms user node rate burst
    value in_ms delay_ms reason since limit cursor entries to epoch floor head messages users recv read
    event version code retry_ms detail spread_ms grace_ms target state seen_ms head_mid mine unread
}

/// The known keys of one object; of several equal ones the last.
struct Fields<'a>([Value<'a>; Key::COUNT]);

impl<'a> Fields<'a> {
    fn read(text: &'a str) -> Result<Self, Fault> {
        let mut values = [Value::Absent; Key::COUNT];
        scan::object(text, |name, value| {
            if let Some(place) = Key::find(name).and_then(|key| values.get_mut(key as usize)) {
                *place = value;
            }
        })?;
        Ok(Self(values))
    }

    /// The fields of an item of a list.
    fn of(item: Value<'a>) -> Result<Self, Fault> {
        match item {
            Value::Object(text) => Self::read(text),
            _ => Err(Fault::field("an item of a list is not an object")),
        }
    }

    fn get(&self, key: Key) -> Value<'a> {
        self.0.get(key as usize).copied().unwrap_or(Value::Absent)
    }

    fn u64(&self, key: Key) -> Result<u64, Fault> {
        match self.get(key) {
            Value::Absent => Ok(0),
            Value::Number(number) => Ok(number),
            _ => Err(key.fault()),
        }
    }

    fn u32(&self, key: Key) -> Result<u32, Fault> {
        self.u64(key)?.try_into().map_err(|_| key.fault())
    }

    fn u16(&self, key: Key) -> Result<u16, Fault> {
        self.u64(key)?.try_into().map_err(|_| key.fault())
    }

    fn u8(&self, key: Key) -> Result<u8, Fault> {
        self.u64(key)?.try_into().map_err(|_| key.fault())
    }

    fn rid(&self, seen: &mut Seen) -> Result<u32, Fault> {
        seen.rid = self.u32(Key::rid)?;
        Ok(seen.rid)
    }

    /// A text that a binary frame has as `s8`: no client has longer names than another because of how it writes them.
    fn name(&self, key: Key) -> Result<Cow<'a, str>, Fault> {
        let text = self.text(key)?;
        if text.len() > S8_BYTES_MAX { Err(key.fault()) } else { Ok(text) }
    }

    fn text(&self, key: Key) -> Result<Cow<'a, str>, Fault> {
        scan::text(self.get(key)).ok_or(key.fault())
    }

    /// A 64-bit number written as a string of decimal digits.
    fn decimal(&self, key: Key) -> Result<u64, Fault> {
        if self.get(key) == Value::Absent {
            return Ok(0);
        }
        let text = self.text(key)?;
        // `parse` would take a plus sign.
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(key.fault());
        }
        text.parse().map_err(|_| key.fault())
    }

    fn hex<const N: usize>(&self, key: Key) -> Result<[u8; N], Fault> {
        if self.get(key) == Value::Absent {
            return Ok([0; N]);
        }
        hex(&self.text(key)?).ok_or(key.fault())
    }

    fn cmid_if(&self, present: bool) -> Result<Option<Cmid>, Fault> {
        if !present {
            return Ok(None);
        }
        Ok(Some(Cmid(self.hex(Key::cmid)?)))
    }

    fn trace(&self) -> Result<Option<Trace>, Fault> {
        if self.get(Key::trace) == Value::Absent {
            return Ok(None);
        }
        traceparent(&self.text(Key::trace)?).map(Some).ok_or(Key::trace.fault())
    }

    fn payload(&self) -> Result<Cow<'a, [u8]>, Fault> {
        if self.get(Key::b64) == Value::Absent {
            return Ok(match self.text(Key::text)? {
                Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                Cow::Owned(text) => Cow::Owned(text.into_bytes()),
            });
        }
        if self.get(Key::text) != Value::Absent {
            return Err(Fault::field("both text and b64"));
        }
        STANDARD.decode(&*self.text(Key::b64)?).map(Cow::Owned).map_err(|_| Key::b64.fault())
    }

    fn list<T>(&self, key: Key, item: impl Fn(Value<'a>) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
        self.list_within(key, usize::MAX, "", item)
    }

    fn list_within<T>(
        &self,
        key: Key,
        count_max: usize,
        too_many: &'static str,
        item: impl Fn(Value<'a>) -> Result<T, Fault>,
    ) -> Result<Vec<T>, Fault> {
        let list = match self.get(key) {
            Value::Absent => return Ok(Vec::new()),
            Value::List(list) => list,
            _ => return Err(key.fault()),
        };
        let mut items = Vec::new();
        for value in Items::new(list) {
            if items.len() == count_max {
                return Err(Fault::field(too_many));
            }
            items.push(item(value?)?);
        }
        Ok(items)
    }

    fn cursors(&self) -> Result<Cursors<'a>, Fault> {
        self.list_within(Key::cursors, ACK_CURSORS_MAX, "more than 256 cursors", |item| {
            let f = Fields::of(item)?;
            Ok(Cursor { conv: f.name(Key::conv)?, seq: f.u64(Key::seq)? })
        })
        .map(Cursors::List)
    }

    fn users(&self) -> Result<Users<'a>, Fault> {
        let name = |item| scan::text(item).filter(|user| user.len() <= S8_BYTES_MAX).ok_or(Key::users.fault());
        self.list_within(Key::users, WATCH_USERS_MAX, "more than 200 users", name).map(Users::List)
    }

    fn entry(&self) -> Result<Entry<'a>, Fault> {
        Ok(Entry {
            conv: self.text(Key::conv)?,
            epoch: self.u32(Key::epoch)?,
            flags: self.u8(Key::flags)?,
            head: self.u64(Key::head)?,
            head_mid: Mid(self.decimal(Key::head_mid)?),
            floor: self.u64(Key::floor)?,
            mine: self.u64(Key::mine)?,
            read: self.u64(Key::read)?,
            unread: self.u32(Key::unread)?,
        })
    }

    fn message(&self) -> Result<Message<'a>, Fault> {
        let flags = self.u8(Key::flags)?;
        Ok(Message {
            seq: self.u64(Key::seq)?,
            mid: Mid(self.decimal(Key::mid)?),
            flags,
            kind: self.u16(Key::kind)?,
            exp_s: self.u32(Key::exp_s)?,
            cmid: self.cmid_if(flags & deliver_flags::OWN != 0)?,
            from: self.text(Key::from)?,
            payload: self.payload()?,
        })
    }
}

/// Bytes of a name: what the length of `s8` counts.
const S8_BYTES_MAX: usize = 255;

/// `2 * N` lower-case hexadecimal digits.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte & 0x0f),
        b'a'..=b'f' => Some(byte.saturating_sub(b'a' - 10)),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut out = [0; N];
    for (byte, &[high, low]) in out.iter_mut().zip(pairs) {
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(out)
}

/// W3C Trace Context: `version-trace_id-parent_id-flags`. A later version may go on behind a further dash.
fn traceparent(text: &str) -> Option<Trace> {
    let mut parts = text.splitn(5, '-');
    let [version] = hex(parts.next()?)?;
    let trace = Trace { trace_id: hex(parts.next()?)?, parent_id: hex(parts.next()?)?, flags: hex::<1>(parts.next()?)?[0] };
    let more = parts.next().is_some();
    (version != 0xff && (version != 0 || !more)).then_some(trace)
}
