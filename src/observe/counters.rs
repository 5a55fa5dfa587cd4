//! What threads count. Each thread owns a struct of plain numbers and publishes it, once a turn, into a block of relaxed atomics
//! that the admin thread reads: one writer, no lock, no mail.
//!
//! The macro below is the one definition of a number: it yields the field, its help text and its place in the block. Names follow
//! the house rule (`*_count` only grows); `metrics.rs` turns them into Prometheus names.

use std::sync::atomic::{AtomicU64, Ordering};

/// How a number behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// One number of a block, or one row of numbers that differ in a label.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Name of the struct's field.
    pub name: &'static str,
    /// What it says, in one sentence.
    pub help: &'static str,
    /// How it behaves.
    pub shape: Shape,
    /// Label name, for fields that are arrays.
    pub label: Option<&'static str>,
    /// Label values; empty for a single number.
    pub values: &'static [&'static str],
}

impl Field {
    /// Numbers it occupies in a block.
    #[must_use]
    pub const fn width(&self) -> usize {
        if self.values.is_empty() { 1 } else { self.values.len() }
    }
}

macro_rules! counters {
    (
        $(#[$meta:meta])* $name:ident, $block:ident;
        $($field:ident: $shape:ident = $help:literal,)*
        ; $($array:ident [$label:literal; $values:expr] = $array_help:literal,)*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        pub struct $name {
            $(#[doc = $help] pub $field: u64,)*
            $(#[doc = $array_help] pub $array: [u64; $values.len()],)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: 0,)* $($array: [0; $values.len()],)* }
            }
        }

        impl $name {
            /// What each number of the block is, in order.
            pub const FIELDS: &[Field] = &[
                $(Field { name: stringify!($field), help: $help, shape: Shape::$shape, label: None, values: &[] },)*
                $(Field {
                    name: stringify!($array),
                    help: $array_help,
                    shape: Shape::Counter,
                    label: Some($label),
                    values: &$values,
                },)*
            ];

            const WIDTH: usize = {
                let mut width = 0;
                let mut at = 0;
                while at < Self::FIELDS.len() {
                    width += Self::FIELDS[at].width();
                    at += 1;
                }
                width
            };
        }

        /// The published form of the struct of the same name. Aligned so that no two threads write to one cache line, nor to the
        /// pair of lines that the prefetcher takes together.
        #[derive(Debug)]
        #[repr(align(128))]
        pub struct $block([AtomicU64; $name::WIDTH]);

        impl Default for $block {
            fn default() -> Self {
                Self(std::array::from_fn(|_| AtomicU64::new(0)))
            }
        }

        impl $block {
            /// Makes the numbers visible. Called by the one owner; cost: a store per number.
            pub fn publish(&self, counters: &$name) {
                let mut slots = self.0.iter();
                let mut put = |value: u64| slots.next().expect("as wide as the struct").store(value, Ordering::Relaxed);
                $(put(counters.$field);)*
                $(counters.$array.iter().for_each(|&value| put(value));)*
            }

            /// The numbers in the order of `FIELDS`, arrays spread out. Each is true, but they may stem from two turns.
            #[must_use]
            pub fn read(&self) -> Vec<u64> {
                self.0.iter().map(|slot| slot.load(Ordering::Relaxed)).collect()
            }

            /// The single number of this name; `None` for an array or an unknown name. Cost: a search by name.
            #[must_use]
            pub fn value(&self, name: &str) -> Option<u64> {
                let field = $name::FIELDS.iter().position(|field| field.name == name && field.values.is_empty())?;
                let at = $name::FIELDS[..field].iter().map(Field::width).sum::<usize>();
                Some(self.0[at].load(Ordering::Relaxed))
            }
        }
    };
}

counters! {
    /// What one reactor counts.
    ReactorCounters, ReactorBlock;
    connections_open: Gauge = "Open connections.",
    sessions_open: Gauge = "Sessions in the table, those being opened or closed included.",
    handshakes_open: Gauge = "Connections that are not past their HELLO.",
    tls_open: Gauge = "Open connections with TLS, those in their handshake included.",
    tls_waiting_open: Gauge = "TLS handshakes that wait for their turn.",
    sessions_detached_open: Gauge = "Sessions that wait for their client to come back.",
    queued_bytes: Gauge = "Bytes waiting to be sent.",
    memory_bytes: Gauge = "Bytes that connections, sessions, queues, windows, unfinished messages and sends under way take, shared ones once.",
    pressure_level: Gauge = "What the reactor gives up for want of memory: 0 nothing, 1 signals and presence, 2 newcomers too, 3 the slowest readers too.",
    held_bytes: Gauge = "Bytes of deliveries that are not acknowledged, shared ones counted once per session.",
    stash_bytes: Gauge = "Bytes of unfinished messages and frames.",
    group_lane_open: Gauge = "Commit groups waiting in the lane from the store.",
    peer_lane_open: Gauge = "Mails waiting in the lane from other reactors.",
    page_lane_open: Gauge = "Finished pages waiting in the lane from the readers.",
    connections_accepted_count: Counter = "Connections accepted.",
    accepts_refused_count: Counter = "Connections closed at accept because the core is full.",
    accepts_paused_count: Counter = "Turns in which no connection was accepted, for want of tokens or because too many handshakes are under way.",
    accepts_turned_away_count: Counter = "Connections answered with 503 at accept because the queue of the listener was half full or memory was short.",
    addresses_limited_count: Counter = "Connections refused with 429 because their address had too many, or came too fast.",
    users_limited_count: Counter = "Commands refused with 4001 because all devices of the user together were too fast.",
    proxy_headers_count: Counter = "PROXY headers taken from balancers.",
    upgrades_turned_away_count: Counter = "Upgrade requests answered with GOAWAY and 4503 because the node was full or draining.",
    hellos_limited_count: Counter = "HELLOs refused because the device tried too often, or its user had just been cut off for its rate.",
    tokens_asked_count: Counter = "Tokens given to the threads that judge those of public keys.",
    tokens_unjudged_count: Counter = "Tokens that nobody could judge, because too many wait or nobody answers; told to try again.",
    upgrades_accepted_count: Counter = "Upgrade requests answered with 101.",
    sessions_opened_count: Counter = "WELCOMEs sent.",
    sessions_closed_count: Counter = "Sessions ended.",
    sessions_resumed_count: Counter = "WELCOMEs that went on with an earlier session.",
    sessions_detached_dropped_count: Counter = "Sessions dropped before their time because the core held too much.",
    bytes_received_count: Counter = "Bytes received from sockets.",
    bytes_sent_count: Counter = "Bytes that the kernel took.",
    frames_received_count: Counter = "WebSocket frames received, control frames included.",
    frames_sent_count: Counter = "WebSocket frames queued for sending, control frames included.",
    messages_received_count: Counter = "Whole WebSocket messages received.",
    protocol_errors_count: Counter = "Messages that are not of the protocol.",
    sents_count: Counter = "SENT frames queued: messages acknowledged to their sender.",
    deliveries_count: Counter = "DELIVER frames queued.",
    deliveries_marked_count: Counter = "Deliveries that became a mark because the window or the queue was full.",
    deliveries_replayed_count: Counter = "DELIVER frames sent again after a resume.",
    deliveries_again_count: Counter = "DELIVER frames sent again after NACK.",
    notices_sent_count: Counter = "NOTICE frames queued.",
    resyncs_sent_count: Counter = "RESYNC frames queued.",
    pages_sent_count: Counter = "PAGE and SYNC_PAGE frames queued.",
    signals_shed_count: Counter = "SIGNALs dropped because the lane to the store was more than half full.",
    transients_dropped_count: Counter = "RECEIPT, PRESENCE, SIGNALLED and TRANSIENT frames dropped because too much waited on the connection.",
    pings_sent_count: Counter = "WebSocket pings sent to quiet clients.",
    queued_bytes_full_count: Counter = "Connections closed because the send queues of the core were full.",
    cursors_refused_count: Counter = "Device cursors refused by rate (4001) or because too many wait for the store (5002).",
    sessions_unmoved_count: Counter = "Sessions not moved to the core of their client because too much was on its way there; SYNC follows.",
    submit_full_count: Counter = "Submissions refused with 5002 because the lane to the store or its byte credit was full.",
    peer_full_count: Counter = "Mails to another reactor kept for the next turn because its lane was full.",
    groups_received_count: Counter = "Commit groups received from the store.",
    stale_events_count: Counter = "Events and mail for a connection or session that is no more.",
    arena_chunks_count: Counter = "Arena chunks asked of the allocator.",
    trace_steps_dropped_count: Counter = "Steps of followed messages that were not written to the log because a turn had too many.",
    panics_count: Counter = "Panics caught in the code of one connection.",
    turns_count: Counter = "Turns of the loop.",
    turns_over_5ms_count: Counter = "Turns that worked longer than 5 ms.",
    turns_over_50ms_count: Counter = "Turns that worked longer than 50 ms.",
    driver_turns_count: Counter = "Waits in the kernel.",
    driver_system_calls_count: Counter = "System calls for receiving, sending, accepting and waiting.",
    driver_stale_events_count: Counter = "Kernel events of an older generation.",
    driver_budget_exhausted_count: Counter = "Connections left unfinished in a turn because their budget was spent.",
    driver_accept_errors_count: Counter = "Failed accepts: descriptors or memory ran out.",
    driver_uring: Gauge = "1 while the reactor runs on io_uring, 0 on epoll.",
    driver_buffers_empty_count: Counter = "Receives that found no provided buffer (io_uring).",
    driver_overflows_count: Counter = "Turns that found the completion queue overflown (io_uring).",
    driver_promotions_count: Counter = "Connections that began to talk and got a receive of their own (io_uring).",
    driver_parks_count: Counter = "Connections that rest on a poll again: silent, paused or sending in bulk (io_uring).",
    driver_leaked_slots_count: Counter = "Slots given up because the kernel did not return their operations (io_uring).",
    ;
    upgrades_refused_count["status"; REFUSAL_STATUSES] = "Upgrade requests refused with plain HTTP, by status.",
    shed_count["kind"; SHED_NAMES] = "What was given up for want of memory, by kind: SIGNALs, PRESENCEs and WATCHes, RECEIPTs and TRANSIENT frames, newcomers, slow readers.",
    tls_handshakes_count["result"; HANDSHAKE_NAMES] = "TLS handshakes that ended, by result; the two that succeeded are full and resumed.",
    closes_count["cause"; CAUSE_NAMES] = "Connections ended, by cause.",
    violations_count["rule"; VIOLATION_NAMES] = "Broken rules of RFC 6455, by rule.",
    requests_count["frame"; REQUEST_NAMES] = "Protocol frames received, by type.",
    errors_count["code"; ERROR_NAMES] = "ERROR frames queued, by code.",
}

impl ReactorCounters {
    /// Counts an ERROR by its code on the wire.
    pub fn count_error(&mut self, code: u16) {
        let at = ERROR_CODES.iter().position(|&known| known == code).unwrap_or(ERROR_CODES.len());
        self.errors_count[at] += 1;
    }

    /// Counts an upgrade refused with this HTTP status.
    pub fn count_upgrade_refused(&mut self, status: u16) {
        let at = match status {
            400 => 0,
            403 => 1,
            404 => 2,
            405 => 3,
            408 => 4,
            426 => 5,
            429 => 6,
            431 => 7,
            503 => 8,
            _ => 9,
        };
        self.upgrades_refused_count[at] += 1;
    }

    /// Counts the end of a TLS handshake.
    pub fn count_handshake(&mut self, result: Handshake) {
        self.tls_handshakes_count[result as usize] += 1;
    }

    /// Counts what was given up for want of memory.
    pub fn count_shed(&mut self, kind: Shed, count: usize) {
        self.shed_count[kind as usize] += count as u64;
    }

    /// Counts the end of a connection.
    pub fn count_close(&mut self, cause: CloseCause) {
        self.closes_count[cause.index()] += 1;
    }
}

counters! {
    /// What the store thread counts.
    StoreCounters, StoreBlock;
    log_bytes: Gauge = "Bytes of log segments on disk.",
    project_backlog_bytes: Gauge = "Bytes committed to the log and not yet in the engine.",
    cursors_aside_open: Gauge = "Device cursors waiting for a conversation that is not in memory.",
    parked_open: Gauge = "Submissions waiting for a cold conversation or a duplicate check.",
    roster_devices_open: Gauge = "Devices in the roster.",
    conversations_loaded_open: Gauge = "Conversations whose head and members are in memory.",
    recent_cmids_open: Gauge = "Client message ids held in memory, for a repeat that races its original.",
    engine_cache_bytes: Gauge = "Memory of the engine for blocks read from disk.",
    engine_tables_bytes: Gauge = "Rows that the engine holds in memory until the next checkpoint, in bytes.",
    submit_lane_open: Gauge = "Submissions waiting in the lane to the store.",
    free_bytes: Gauge = "Free bytes of the file system that holds the log.",
    read_only: Gauge = "1 while SEND is refused because the disk is full or failed, else 0.",
    groups_committed_count: Counter = "Commit groups synced.",
    messages_stored_count: Counter = "Messages stored.",
    messages_duplicate_count: Counter = "Repeated SENDs answered with the original.",
    sends_refused_count: Counter = "SENDs refused by the store.",
    deliveries_count: Counter = "Deliveries handed to reactors.",
    deliveries_dropped_count: Counter = "Deliveries dropped because a core did not take its mail; RESYNC follows.",
    group_full_count: Counter = "Commit groups kept back because the lane to a core was full.",
    jobs_full_count: Counter = "Reads refused with 5002 because the lane to the readers was full.",
    log_written_bytes_count: Counter = "Bytes written to the log.",
    log_syncs_count: Counter = "fdatasync calls of the log.",
    cursors_merged_count: Counter = "Device cursors taken.",
    cursors_dropped_count: Counter = "Device cursors dropped because too many wait for conversations not in memory, or one could not be read.",
    attaches_count: Counter = "Devices attached.",
    evicts_count: Counter = "Devices replaced by a newer connection.",
    stale_submissions_count: Counter = "Submissions of a session that is no more.",
    subscriptions_open: Gauge = "Pairs of a watching device and a watched user.",
    receipts_count: Counter = "RECEIPTs handed to reactors.",
    receipts_dropped_count: Counter = "RECEIPTs dropped because too many positions moved or a lane was full.",
    notices_count: Counter = "NOTICEs of large conversations handed to reactors.",
    kicks_count: Counter = "Sessions ended because a device of the same class came, or by a ban or a revocation.",
    presences_count: Counter = "PRESENCEs handed to reactors.",
    signals_count: Counter = "SIGNALLEDs handed to reactors.",
    signals_dropped_count: Counter = "SIGNALs dropped by the store because it had no room.",
    floors_raised_count: Counter = "Floors raised by retention.",
    messages_retired_count: Counter = "Messages below a raised floor, which are kept no longer.",
    submissions_refused_count: Counter = "Submissions refused because a bound of the store was full.",
    trace_steps_dropped_count: Counter = "Commits of followed messages that were not written to the log because a turn had too many.",
    ;
    submissions_count["kind"; SUBMISSION_NAMES] = "Submissions taken from the lane, by kind.",
}

/// What is given up for want of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Shed {
    /// SIGNAL, before the store sees it or on the way out.
    Signal,
    /// PRESENCE, or a WATCH that is refused.
    Presence,
    /// RECEIPT and TRANSIENT frames.
    Transient,
    /// A connection that was not let in.
    Newcomer,
    /// A connection.
    Reader,
}

const SHED_NAMES: [&str; 5] = ["signal", "presence", "transient", "newcomer", "reader"];

/// How a TLS handshake ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Handshake {
    /// With certificates and signatures.
    Full,
    /// From a ticket.
    Resumed,
    /// Not TLS, a broken rule, or nothing in common.
    Failed,
    /// Too many waited; nothing was computed for it.
    Refused,
    /// Not over in time.
    Timeout,
    /// The client went, or the connection ended for a reason of its own.
    Left,
}

const HANDSHAKE_NAMES: [&str; 6] = ["full", "resumed", "failed", "refused", "timeout", "left"];

macro_rules! causes {
    ($($variant:ident, $name:literal, $code:expr, $sentence:literal;)*) => {
        /// Why a connection ended. Every connection that was accepted ends with exactly one.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum CloseCause {
            $(#[doc = $sentence] $variant,)*
        }

        impl CloseCause {
            /// Every cause, in the order of [`CloseCause::index`].
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// What the client sees: the code of the Close frame that is usual for this cause. `None`: the connection ends without
            /// one. A violation carries its own code (1002, 1003, 1007), a drain 1001 or 1012.
            #[must_use]
            pub const fn close_code(self) -> Option<u16> {
                match self { $(Self::$variant => $code,)* }
            }

            /// What happened, in one sentence for the operator.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }

        const CAUSE_NAMES: [&str; CloseCause::ALL.len()] = [$($name,)*];
    };
}

causes! {
    ClientClosed, "client_closed", None, "The client sent a Close frame.";
    ClientGone, "client_gone", None, "The client or the network ended the connection without a Close frame (FIN or RST).";
    UpgradeRefused, "upgrade_refused", None, "The request was refused with plain HTTP.";
    UpgradeTimeout, "upgrade_timeout", None, "The TLS handshake or the request head was not complete in time (408).";
    TlsFailed, "tls_failed", None, "What came was not TLS, or broke a rule of it.";
    ProxyHeader, "proxy_header", None, "A connection from proxy.networks did not begin with a good PROXY header.";
    HelloTimeout, "hello_timeout", Some(4408), "No HELLO came in time.";
    ProtocolViolation, "protocol_violation", Some(1002), "A rule of RFC 6455 was broken.";
    ProtocolError, "protocol_error", Some(4400), "A message of the protocol was malformed or out of place.";
    FrameTooLarge, "frame_too_large", Some(1009), "A message was longer than allowed.";
    MessageTimeout, "message_timeout", Some(1008), "One message took too long to arrive.";
    TokenInvalid, "token_invalid", Some(4401), "The token was missing or wrong.";
    TokenExpired, "token_expired", Some(4401), "The token ran out.";
    TokenRevoked, "token_revoked", Some(4401), "The operator revoked tokens of the user.";
    Forbidden, "forbidden", Some(4403), "The user or device is banned, or has too many devices.";
    Kicked, "kicked", Some(4403), "The operator closed it.";
    Replaced, "replaced", Some(4409), "The same device connected again, or another one of its class.";
    LivenessTimeout, "liveness_timeout", None, "Nothing was heard for 2.5 times the ping interval.";
    SlowReader, "slow_reader", Some(4410), "Too much waited to be sent and the peer took nothing.";
    Shed, "shed", None, "Memory was short, and for this reader the most was waiting or unacknowledged.";
    NotAcknowledging, "not_acknowledging", Some(4410), "The delivery window was full and no acknowledgement moved.";
    RateLimited, "rate_limited", Some(4429), "A rate limit was abused repeatedly.";
    Overloaded, "overloaded", Some(4503), "The node had no room.";
    Drain, "drain", Some(1001), "The node was leaving.";
    InternalError, "internal_error", Some(1011), "A defect of the gateway.";
}

impl CloseCause {
    /// Place in [`ReactorCounters::closes_count`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The label value.
    #[must_use]
    pub const fn name(self) -> &'static str {
        CAUSE_NAMES[self.index()]
    }
}

const REFUSAL_STATUSES: [&str; 10] = ["400", "403", "404", "405", "408", "426", "429", "431", "503", "other"];

/// The rules of `wire::violation`, which stands above this floor; the admin room's tests compare the two lists.
pub const VIOLATION_NAMES: [&str; 19] = [
    "reserved_bit",
    "unknown_opcode",
    "fragmented_control",
    "oversized_control",
    "unmasked",
    "masked",
    "length_not_minimal",
    "length_top_bit",
    "continuation_without_start",
    "start_inside_message",
    "close_body_too_short",
    "close_code_invalid",
    "close_reason_not_utf8",
    "text_not_utf8",
    "text_not_accepted",
    "binary_not_accepted",
    "message_too_large",
    "too_many_fragments",
    "deflate_invalid",
];

const REQUEST_NAMES: [&str; 11] = ["hello", "ping", "auth", "send", "ack", "nack", "sync", "fetch", "read", "watch", "signal"];

const SUBMISSION_NAMES: [&str; 14] = [
    "attach",
    "leave",
    "send",
    "read",
    "cursors",
    "page",
    "member",
    "watch",
    "signal",
    "away",
    "user",
    "renew",
    "shed",
    "presence_lost",
];

const ERROR_CODES: [u16; 25] = [
    1001, 1002, 1003, 1004, 1005, 2001, 2002, 2003, 2004, 3001, 3002, 3003, 3004, 3005, 3009, 4001, 4002, 4003, 4004, 5001, 5002,
    5003, 5004, 5005, 5006,
];
const ERROR_NAMES: [&str; 26] = [
    "1001", "1002", "1003", "1004", "1005", "2001", "2002", "2003", "2004", "3001", "3002", "3003", "3004", "3005", "3009",
    "4001", "4002", "4003", "4004", "5001", "5002", "5003", "5004", "5005", "5006", "other",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// What is published is read back in the order of the fields, arrays spread out.
    #[test]
    fn a_block_shows_what_was_published() {
        let block = ReactorBlock::default();
        let mut counters = ReactorCounters { connections_open: 7, ..ReactorCounters::default() };
        counters.count_close(CloseCause::Replaced);
        counters.count_error(4001);
        counters.count_error(9999);
        counters.count_upgrade_refused(503);
        block.publish(&counters);
        let values = block.read();
        let at = |name: &str| {
            let before = ReactorCounters::FIELDS.iter().take_while(|field| field.name != name);
            before.map(Field::width).sum::<usize>()
        };
        assert_eq!(values[at("connections_open")], 7);
        assert_eq!(block.value("connections_open"), Some(7));
        assert_eq!(block.value("closes_count"), None);
        assert_eq!(values[at("closes_count") + CloseCause::Replaced.index()], 1);
        assert_eq!(values[at("errors_count") + ERROR_NAMES.iter().position(|&name| name == "4001").unwrap()], 1);
        assert_eq!(values[at("errors_count") + ERROR_NAMES.len() - 1], 1);
        assert_eq!(values[at("upgrades_refused_count") + 8], 1);
        assert_eq!(values.iter().sum::<u64>(), 11);
        assert_eq!(values.len(), ReactorCounters::FIELDS.iter().map(Field::width).sum::<usize>());
    }

    /// Names are unique, because they become metrics, and so are the values of each label.
    #[test]
    fn names_are_unique() {
        for fields in [ReactorCounters::FIELDS, StoreCounters::FIELDS] {
            let mut names: Vec<_> = fields.iter().map(|field| field.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), fields.len());
            for field in fields {
                let mut values = field.values.to_vec();
                values.sort_unstable();
                values.dedup();
                assert_eq!(values.len(), field.values.len(), "{}", field.name);
            }
        }
    }

    /// A counter found by index belongs to the cause of that name, and its code is one a Close frame may carry.
    #[test]
    fn every_cause_stands_at_its_index_with_a_code_that_may_travel() {
        for (index, &cause) in CloseCause::ALL.iter().enumerate() {
            assert_eq!(cause.index(), index);
            assert!(cause.sentence().ends_with('.'));
            assert!(cause.close_code().is_none_or(|code| matches!(code, 1000..=1003 | 1007..=1014 | 4000..=4999)));
        }
        assert_eq!(CloseCause::NotAcknowledging.name(), "not_acknowledging");
    }

    /// Both lists of error codes say the same, and every status has its place.
    #[test]
    fn labels_agree_with_what_is_counted_under_them() {
        for (code, name) in ERROR_CODES.iter().zip(ERROR_NAMES) {
            assert_eq!(code.to_string(), name);
        }
        for (at, status) in REFUSAL_STATUSES.iter().enumerate() {
            let mut counters = ReactorCounters::default();
            counters.count_upgrade_refused(status.parse().unwrap_or(999));
            assert_eq!(counters.upgrades_refused_count[at], 1);
        }
    }
}
