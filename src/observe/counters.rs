//! What threads count. Each thread owns a struct of plain numbers and publishes it, once a turn, into a block of relaxed atomics
//! that the admin thread reads: one writer, no lock, no mail.

use std::sync::atomic::{AtomicU64, Ordering};

/// How a metric behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// One number of a block.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Name without prefix and unit suffix rules of the exposition.
    pub name: &'static str,
    /// What it says.
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

        /// The published form of the struct of the same name.
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

            /// The numbers in the order of `FIELDS`, arrays spread out.
            #[must_use]
            pub fn read(&self) -> Vec<u64> {
                self.0.iter().map(|slot| slot.load(Ordering::Relaxed)).collect()
            }
        }
    };
}

counters! {
    /// What one reactor counts.
    ReactorCounters, ReactorBlock;
    connections_open: Gauge = "Open connections",
    sessions_open: Gauge = "Sessions in the table, those being opened or closed included",
    queued_bytes: Gauge = "Bytes waiting to be sent",
    stash_bytes: Gauge = "Bytes of unfinished messages",
    connections_accepted_count: Counter = "Connections accepted",
    accepts_refused_count: Counter = "Connections closed at accept because the core is full",
    upgrades_accepted_count: Counter = "Requests answered with 101",
    upgrades_refused_count: Counter = "Requests refused with plain HTTP",
    sessions_opened_count: Counter = "WELCOMEs sent",
    sessions_closed_count: Counter = "Sessions ended",
    bytes_received_count: Counter = "Bytes received, as they arrived",
    bytes_sent_count: Counter = "Bytes the kernel took",
    frames_received_count: Counter = "WebSocket messages and control frames received",
    frames_sent_count: Counter = "WebSocket frames queued",
    messages_received_count: Counter = "Whole WebSocket messages received",
    protocol_errors_count: Counter = "Messages that are not of the protocol",
    sents_count: Counter = "SENT written",
    deliveries_count: Counter = "DELIVER queued",
    deliveries_marked_count: Counter = "Deliveries that became a mark because the window or the queue was full",
    notices_sent_count: Counter = "NOTICE sent",
    resyncs_sent_count: Counter = "RESYNC sent",
    pages_sent_count: Counter = "PAGE and SYNC_PAGE sent",
    pings_sent_count: Counter = "WebSocket pings sent",
    queued_bytes_full_count: Counter = "Connections closed because the core's queues were full",
    groups_received_count: Counter = "Commit groups received from the store",
    stale_events_count: Counter = "Events and mail for a connection or session that is no more",
    arena_chunks_count: Counter = "Arena chunks asked of the allocator",
    panics_count: Counter = "Panics caught while one connection's bytes were handled",
    turns_count: Counter = "Turns of the loop",
    turns_over_5ms_count: Counter = "Turns that worked longer than 5 ms",
    turns_over_50ms_count: Counter = "Turns that worked longer than 50 ms",
    driver_turns_count: Counter = "Waits in the kernel",
    driver_system_calls_count: Counter = "System calls for receiving, sending, accepting and waiting",
    driver_stale_events_count: Counter = "Kernel events of an older generation",
    driver_budget_exhausted_count: Counter = "Connections left unfinished in a turn because their budget was spent",
    driver_accept_errors_count: Counter = "Failed accepts",
    ;
    closes_count["cause"; CAUSE_NAMES] = "Connections ended, by cause",
    violations_count["rule"; VIOLATION_NAMES] = "Broken rules of RFC 6455, by rule",
    requests_count["frame"; REQUEST_NAMES] = "Protocol frames received, by type",
    errors_count["code"; ERROR_NAMES] = "ERROR sent, by code",
}

impl ReactorCounters {
    /// Counts an ERROR by its code.
    pub fn count_error(&mut self, code: u16) {
        let at = ERROR_CODES.iter().position(|&known| known == code).unwrap_or(ERROR_CODES.len());
        self.errors_count[at] += 1;
    }
}

counters! {
    /// What the store thread counts.
    StoreCounters, StoreBlock;
    log_bytes: Gauge = "Bytes of log segments on disk",
    project_backlog_bytes: Gauge = "Bytes committed to the log and not yet in the engine",
    parked_open: Gauge = "Submissions waiting for a cold conversation or a duplicate check",
    roster_devices_open: Gauge = "Devices in the roster",
    conversations_loaded_open: Gauge = "Conversations in memory",
    submit_lane_open: Gauge = "Submissions waiting in the lane",
    free_bytes: Gauge = "Free bytes of the file system that holds the log",
    read_only: Gauge = "1 while SEND is refused for want of space",
    groups_committed_count: Counter = "Commit groups",
    messages_stored_count: Counter = "Messages stored",
    messages_duplicate_count: Counter = "Repeats answered with the original",
    sends_refused_count: Counter = "SENDs refused by the store",
    deliveries_count: Counter = "Deliveries handed to reactors",
    deliveries_dropped_count: Counter = "Deliveries dropped because a core did not take its mail; RESYNC follows",
    log_written_bytes_count: Counter = "Bytes written to the log",
    log_syncs_count: Counter = "fdatasync calls of the log",
    cursors_merged_count: Counter = "Cursors taken",
    attaches_count: Counter = "Devices attached",
    evicts_count: Counter = "Devices replaced by a newer connection",
    stale_submissions_count: Counter = "Submissions of a session that is no more",
    submissions_refused_count: Counter = "Submissions refused because a bound of the store was full",
    ;
}

/// Why a connection ended. Every close has exactly one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum CloseCause {
    /// The client sent a Close frame (any code).
    ClientClosed,
    /// The client sent FIN or RST without a Close frame, or the network did.
    ClientGone,
    /// The request was refused with plain HTTP.
    UpgradeRefused,
    /// The request head was not complete in time (408).
    UpgradeTimeout,
    /// No HELLO in time (4408).
    HelloTimeout,
    /// A rule of RFC 6455 was broken (1002, 1003, 1007).
    ProtocolViolation,
    /// A message of the protocol was malformed or out of place (4400).
    ProtocolError,
    /// A message longer than allowed (1009).
    FrameTooLarge,
    /// A message took too long to arrive (1008).
    MessageTimeout,
    /// Token missing or wrong (4401).
    TokenInvalid,
    /// Token ran out (4401).
    TokenExpired,
    /// Banned, or too many devices (4403).
    Forbidden,
    /// The same device connected again (4409).
    Replaced,
    /// Nothing heard for 2.5 times the ping interval.
    LivenessTimeout,
    /// Too much waits and the peer takes nothing (4410).
    SlowReader,
    /// The window was full and no acknowledgement moved (4410).
    NotAcknowledging,
    /// Repeated abuse of a limit (4429).
    RateLimited,
    /// The node has no room (4503).
    Overloaded,
    /// The node is leaving (1001, 1012).
    Drain,
    /// A defect of ours (1011).
    InternalError,
}

impl CloseCause {
    /// Place in [`ReactorCounters::closes_count`].
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self as u8)
    }

    /// The label value.
    #[must_use]
    pub fn name(self) -> &'static str {
        CAUSE_NAMES[self.index()]
    }
}

const CAUSE_NAMES: [&str; 20] = [
    "client_closed",
    "client_gone",
    "upgrade_refused",
    "upgrade_timeout",
    "hello_timeout",
    "protocol_violation",
    "protocol_error",
    "frame_too_large",
    "message_timeout",
    "token_invalid",
    "token_expired",
    "forbidden",
    "replaced",
    "liveness_timeout",
    "slow_reader",
    "not_acknowledging",
    "rate_limited",
    "overloaded",
    "drain",
    "internal_error",
];
const _: () = assert!(CloseCause::InternalError as usize + 1 == CAUSE_NAMES.len());

/// The names of `wire::violation::Violation`, in its order; a test there compares.
pub const VIOLATION_NAMES: [&str; 18] = [
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
];

const REQUEST_NAMES: [&str; 11] = ["hello", "ping", "auth", "send", "ack", "nack", "sync", "fetch", "read", "watch", "signal"];

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
        counters.closes_count[CloseCause::Replaced.index()] = 3;
        counters.count_error(4001);
        counters.count_error(9999);
        block.publish(&counters);
        let values = block.read();
        let at = |name: &str| {
            let before = ReactorCounters::FIELDS.iter().take_while(|field| field.name != name);
            before.map(Field::width).sum::<usize>()
        };
        assert_eq!(values[at("connections_open")], 7);
        assert_eq!(values[at("closes_count") + CloseCause::Replaced.index()], 3);
        assert_eq!(values[at("errors_count") + 15], 1);
        assert_eq!(values[at("errors_count") + 25], 1);
        assert_eq!(values.len(), ReactorCounters::FIELDS.iter().map(Field::width).sum::<usize>());
    }

    /// Names are unique, because they become metrics.
    #[test]
    fn names_are_unique() {
        for fields in [ReactorCounters::FIELDS, StoreCounters::FIELDS] {
            let mut names: Vec<_> = fields.iter().map(|field| field.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), fields.len());
        }
    }
}
