//! From lent bytes to whole messages: the upgrade, then RFC 6455.

use std::time::Duration;

use super::{CLOSE_MS, Kind, Outlet, Rules, Shard, State, Work, flags};
use crate::clock::Moment;
use crate::conn::carry::{HeadCarry, Stashes};
use crate::conn::connection::{Event, Kinds, Reader, ReceiveLimits, Stop};
use crate::conn::send_queue::Wrap;
use crate::ids::ConnectionId;
use crate::io::driver::Flow;
use crate::limits;
use crate::observe::counters::CloseCause;
use crate::wire::deflate::Agreement;
use crate::wire::envelope::Encoding;
use crate::wire::frame::{Opcode, Reserved};
use crate::wire::upgrade::{self, Endpoint, Origins, Policy, Refusal, Request};
use crate::wire::violation::Violation;

impl Rules {
    /// The longest WebSocket message that is received, bytes.
    #[must_use]
    pub fn message_bytes_max(&self) -> u32 {
        if self.echo { limits::ECHO_MESSAGE_BYTES_MAX } else { self.max_frame }
    }
}

impl Shard {
    /// Bytes arrived. Everything they mean is done before this returns; what must be answered is queued.
    ///
    /// `stashes` is this core's; it is lent beside the shard because messages borrow from it while the shard acts on them.
    pub fn handle_bytes(
        &mut self,
        now: Moment,
        id: ConnectionId,
        bytes: &mut [u8],
        stashes: &mut Stashes,
        outlet: &mut impl Outlet,
    ) -> Flow {
        self.now = now;
        let flow = self.guarded_bytes(Work::Bytes, id, stashes, |shard, stashes| shard.take_bytes(id, bytes, stashes, outlet));
        flow.unwrap_or(Flow::Close)
    }

    fn take_bytes(&mut self, id: ConnectionId, bytes: &mut [u8], stashes: &mut Stashes, outlet: &mut impl Outlet) -> Flow {
        #[cfg(debug_assertions)]
        super::guard::panic_over_defect(bytes);
        let Some(connection) = self.connections.get_mut(id) else {
            self.stale();
            return Flow::Close;
        };
        connection.flags &= !flags::PINGED;
        self.signs_left = limits::SIGNS_PER_READ + bytes.len() / limits::SIGN_BYTES;
        self.liveness.touch(id.index, self.now.tick());
        self.counters.bytes_received_count += bytes.len() as u64;
        // A balancer speaks first and in the clear, before it is known to be TLS or HTTP.
        let mut bytes = bytes;
        if connection.state == State::Proxy {
            let taken = self.take_proxy_header(id, bytes).unwrap_or(bytes.len());
            bytes = bytes.get_mut(taken..).unwrap_or_default();
        }
        match self.connections.get(id).map(|connection| connection.flags & flags::TLS) {
            Some(0) if !bytes.is_empty() => self.receive_plain(id, bytes, stashes, outlet),
            Some(flags::TLS) if !bytes.is_empty() => self.receive_records(id, bytes, stashes, outlet),
            _ => {}
        }
        match self.connections.get(id) {
            Some(connection) if connection.state == State::Finished => Flow::Close,
            Some(connection) if connection.flags & flags::PAUSED != 0 => Flow::Pause,
            Some(_) => Flow::Continue,
            None => Flow::Close,
        }
    }

    /// Bytes of HTTP or WebSocket, as they came or out of TLS.
    pub(super) fn receive_plain(&mut self, id: ConnectionId, bytes: &mut [u8], stashes: &mut Stashes, outlet: &mut impl Outlet) {
        match self.connections.get(id).map(|connection| connection.state) {
            None | Some(State::Proxy | State::Failing | State::Closing | State::Finished) => {}
            Some(State::Upgrade) => self.receive_head(id, bytes, stashes, outlet),
            Some(_) => self.receive_frames(id, bytes, stashes, outlet),
        }
    }

    /// Collects the request head; at its end answers 101 or refuses, and goes on with what was pipelined behind it.
    fn receive_head(&mut self, id: ConnectionId, bytes: &mut [u8], stashes: &mut Stashes, outlet: &mut impl Outlet) {
        let extra = self.cold[id].extra.get_or_insert_default();
        let mut carry = std::mem::take(&mut extra.head);
        let rules = self.rules.clone();
        let policy = Policy {
            path: &rules.path,
            endpoint: if rules.echo { Endpoint::Echo } else { Endpoint::Gateway },
            origins: Origins::Listed { configured: &rules.origins, own: rules.own_origins.get().map_or(&[], Vec::as_slice) },
            deflate: rules.deflate,
        };
        let consumed = match carry.push(bytes) {
            Err(refusal) => return self.refuse_upgrade(id, refusal, CloseCause::UpgradeRefused),
            Ok(None) => {
                self.cold[id].extra.get_or_insert_default().head = carry;
                return;
            }
            Ok(Some(head)) => {
                if !self.take_forwarded(id, head.bytes) {
                    return;
                }
                match upgrade::parse(head.bytes, &policy) {
                    Err(refusal) => return self.refuse_upgrade(id, refusal, CloseCause::UpgradeRefused),
                    Ok(request) => {
                        self.accept_upgrade(id, &request);
                        head.consumed_bytes
                    }
                }
            }
        };
        let pipelined = bytes.get_mut(consumed..).unwrap_or_default();
        let accepted = self.connections.get(id).is_some_and(|connection| Self::reads_frames(connection.state));
        if accepted && !pipelined.is_empty() {
            self.receive_frames(id, pipelined, stashes, outlet);
        }
    }

    fn accept_upgrade(&mut self, id: ConnectionId, request: &Request<'_>) {
        if self.turn_away_request(id, request) {
            return;
        }
        self.counters.upgrades_accepted_count += 1;
        self.note_arrival(id, None);
        let accepted_us = self.connections.known(id).message_tick;
        self.latencies.upgraded.push(Duration::from_micros(u64::from(self.now_us().wrapping_sub(accepted_us))));
        let frame = self.pool.build(Wrap::Raw, |out| request.write_accept(out));
        let connection = self.connections.known_mut(id);
        self.pool.push(&mut connection.queue, frame, 0);
        self.pool.release(frame);
        connection.encoding = request.encoding;
        connection.flags |= match request.deflate {
            None => 0,
            Some(Agreement { may_deflate: false, .. }) => flags::INFLATE,
            Some(Agreement { may_deflate: true, .. }) => flags::INFLATE | flags::DEFLATE,
        };
        if self.rules.echo {
            self.let_in(id, State::Echo);
            self.end_handshake(id);
        } else {
            self.let_in(id, State::WaitHello);
            if let Some(bearer) = request.bearer {
                self.cold[id].extra.get_or_insert_default().bearer = Some(bearer.to_owned());
            }
            self.schedule(id, self.rules.hello_ms, Kind::Hello);
        }
        self.drop_empty_extra(id);
        self.touch(id);
    }

    /// Answers with plain HTTP and ends the connection.
    pub(super) fn refuse_upgrade(&mut self, id: ConnectionId, refusal: Refusal, cause: CloseCause) {
        if !self.can_speak(id) {
            return self.refuse_handshake(id, cause);
        }
        self.counters.count_upgrade_refused(refusal.status());
        self.note_arrival(id, Some(refusal));
        // Whoever is refused for its own rate keeps no place from others.
        let place_ms = if refusal == Refusal::Overloaded { self.book_return() } else { 0 };
        let retry_after_s = matches!(refusal, Refusal::Overloaded | Refusal::RateLimited).then(|| {
            // A quarter of four times as much is as much again.
            (place_ms + self.jittered(4 * RETRY_AFTER_MS) - 3 * RETRY_AFTER_MS) / 1_000
        });
        let frame = self.pool.build(Wrap::Raw, |out| refusal.write(retry_after_s, out));
        let connection = self.connections.known_mut(id);
        self.pool.push(&mut connection.queue, frame, 0);
        self.pool.release(frame);
        connection.state = State::Closing;
        let cold = &mut self.cold[id];
        cold.cause.get_or_insert(cause);
        cold.extra = None;
        self.end_handshake(id);
        self.schedule(id, CLOSE_MS, Kind::Close);
        self.touch(id);
    }

    /// Runs the frame decoder over the bytes and acts on each event.
    fn receive_frames(&mut self, id: ConnectionId, bytes: &mut [u8], stashes: &mut Stashes, outlet: &mut impl Outlet) {
        // The decoder leaves the shard for the length of the call, because events borrow from it.
        let connection = self.connections.known_mut(id);
        let mut receive = std::mem::take(&mut connection.receive);
        let was_inside = receive.is_in_message();
        let limits = self.receive_limits(id);
        let mut reader = Reader::new(bytes, id.index);
        let mut completed = false;
        loop {
            match reader.next(&mut receive, stashes, &limits) {
                Ok(None) => break,
                Ok(Some(event)) => {
                    completed |= matches!(event, Event::Text(_) | Event::Binary(_));
                    self.handle_event(id, event, outlet);
                }
                Err(Stop::StashesFull) if self.make_room(id, stashes) => {}
                Err(stop) => {
                    self.stop(id, stop);
                    break;
                }
            }
            if !self.connections.get(id).is_some_and(|connection| Self::reads_frames(connection.state)) {
                break;
            }
        }
        drop(reader);
        let now_inside = receive.is_in_message();
        let connection = self.connections.known_mut(id);
        if !Self::reads_frames(connection.state) {
            receive.stop(stashes);
        }
        connection.receive = receive;
        if now_inside && (!was_inside || completed) {
            self.watch_message(id);
        }
    }

    /// Something began that must be whole within `message_ms`.
    pub(super) fn watch_message(&mut self, id: ConnectionId) {
        let tick = self.now.tick();
        let connection = self.connections.known_mut(id);
        connection.message_tick = tick;
        if connection.flags & flags::MESSAGE_CLOCK == 0 {
            connection.flags |= flags::MESSAGE_CLOCK;
            self.schedule(id, self.rules.message_ms, Kind::Message);
        }
    }

    /// There is no room for more unfinished bytes: whoever holds the most of them is closed, unless that is `id` itself, or nobody knows who
    /// `id` is. Whether there is more room now.
    fn make_room(&mut self, id: ConnectionId, stashes: &mut Stashes) -> bool {
        if !Self::is_known(self.connections.known(id).state) {
            return false;
        }
        let Some(largest) = stashes.largest_owner().filter(|&index| index != id.index) else { return false };
        let Some((key, _)) = self.connections.at(largest) else { return false };
        let other = ConnectionId::from(key);
        self.connections.known_mut(other).receive.stop(stashes);
        self.stop(other, Stop::StashesFull);
        true
    }

    /// Whether its token was good and WELCOME is on its way, or none is needed.
    fn is_known(state: State) -> bool {
        matches!(state, State::Echo | State::Active | State::Draining)
    }

    pub(super) fn reads_frames(state: State) -> bool {
        !matches!(state, State::Proxy | State::Upgrade | State::Failing | State::Closing | State::Finished)
    }

    fn receive_limits(&self, id: ConnectionId) -> ReceiveLimits {
        let connection = self.connections.known(id);
        // Nothing is inflated for whom we do not know yet, and no more is kept than HELLO may be long.
        let is_known = Self::is_known(connection.state);
        let most = self.rules.message_bytes_max();
        let message_bytes_max = if is_known { most } else { most.min(limits::STRANGER_MESSAGE_BYTES_MAX) };
        let reserved = if is_known && connection.flags & flags::INFLATE != 0 { Reserved::Deflate } else { Reserved::None };
        let kinds = match connection.encoding {
            _ if self.rules.echo => Kinds::Both,
            Some(Encoding::Json) => Kinds::Text,
            _ => Kinds::Binary,
        };
        ReceiveLimits { message_bytes_max, kinds, reserved }
    }

    fn handle_event(&mut self, id: ConnectionId, event: Event<'_>, outlet: &mut impl Outlet) {
        self.counters.frames_received_count += 1;
        match event {
            Event::Text(payload) | Event::Binary(payload) => {
                self.counters.messages_received_count += 1;
                if self.rules.echo {
                    let opcode = if matches!(event, Event::Text(_)) { Opcode::Text } else { Opcode::Binary };
                    self.echo(id, opcode, payload);
                } else {
                    self.handle_message(id, payload, outlet);
                }
            }
            Event::Ping(payload) => {
                self.push_own(id, Opcode::Pong, payload);
                self.count_sign(id);
            }
            Event::Pong(_) => self.count_sign(id),
            Event::Close { code, .. } => self.handle_close_frame(id, code),
        }
    }

    /// Counts a sign of life, or what was refused without any rate. More of them in one read than any client gives are counted as going on regardless: thousands fit the read, and
    /// everybody else waits meanwhile.
    pub(super) fn count_sign(&mut self, id: ConnectionId) {
        match self.signs_left.checked_sub(1) {
            Some(left) => self.signs_left = left,
            None if self.connections.get(id).is_some_and(|it| Self::reads_frames(it.state)) => drop(self.goes_on_regardless(id)),
            None => {}
        }
    }

    fn echo(&mut self, id: ConnectionId, opcode: Opcode, payload: &[u8]) {
        if payload.len() <= SHORT_BYTES_MAX {
            self.push_short(id, opcode, |out| out.extend_from_slice(payload));
        } else {
            self.push_message(id, opcode, |out| out.extend_from_slice(payload));
        }
    }

    /// The peer closes: echo its code, then FIN.
    fn handle_close_frame(&mut self, id: ConnectionId, code: Option<u16>) {
        let code = code.map(u16::to_be_bytes);
        let payload = code.as_ref().map_or(&[][..], |bytes| &bytes[..]);
        self.push_own(id, Opcode::Close, payload);
        if code == Some(CLOSE_DONE.to_be_bytes()) {
            self.end_session(id);
        }
        self.begin_closing(id, CloseCause::ClientClosed);
    }

    fn stop(&mut self, id: ConnectionId, stop: Stop) {
        let cause = match stop {
            Stop::StashesFull => CloseCause::Overloaded,
            Stop::Violation(violation) => {
                if let Some(count) = self.counters.violations_count.get_mut(violation.index()) {
                    *count += 1;
                }
                match violation {
                    Violation::MessageTooLarge | Violation::TooManyFragments => CloseCause::FrameTooLarge,
                    _ => CloseCause::ProtocolViolation,
                }
            }
        };
        self.close(id, stop.close_code(), cause);
    }

    pub(super) fn drop_empty_extra(&mut self, id: ConnectionId) {
        let cold = &mut self.cold[id];
        if cold.extra.as_ref().is_some_and(|extra| extra.is_empty()) {
            cold.extra = None;
        }
    }
}

/// Whether a head carry holds nothing.
pub(super) fn is_empty(head: &HeadCarry) -> bool {
    head.held_bytes() == 0
}

/// An echo up to this length is worth joining to others.
const SHORT_BYTES_MAX: usize = 256;
/// Close code of a client that is done: nobody comes back for its session.
const CLOSE_DONE: u16 = 1000;
/// The least `Retry-After` of a refused upgrade; up to as much again is added at random, and the time until the next place among those who
/// are to come back.
const RETRY_AFTER_MS: u32 = 5_000;
