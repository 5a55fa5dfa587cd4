//! Every bound: its unit, who fills it, what happens when it is full, and which counter then moves.

use std::time::Duration;

/// A bound of what exists once per reactor, as a share of the node's: more reactors do not make more of it. The unit is that of the
/// constant; `gateway/shares.rs` adds them up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    /// Of all reactors together.
    pub node: usize,
    /// Of one, where there are few: more would not help it.
    pub most: usize,
    /// Of one, however many there are: with less it does not work. [`SHARED_REACTORS`] of them fit `node`.
    pub least: usize,
}

impl Share {
    /// What one of so many reactors has.
    #[must_use]
    pub const fn part(self, reactors: usize) -> usize {
        let part = self.node / if reactors == 0 { 1 } else { reactors };
        if part > self.most {
            self.most
        } else if part < self.least {
            self.least
        } else {
            part
        }
    }

    /// The same for what must be a power of two: the greatest that is no more.
    #[must_use]
    pub const fn part_power_of_two(self, reactors: usize) -> usize {
        1 << self.part(reactors).ilog2()
    }
}

/// So many reactors have no more together than one node; with more each has its least, and the start says what that comes to.
pub const SHARED_REACTORS: usize = 128;

/// What all reactors of a node cost before anybody connects, bytes. More, as several hundred reactors need: a warning at the start.
pub const REACTORS_FIXED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Protocol frames in one WebSocket message, skipped ones included. Filled by clients; full: ERROR 1001, close 4400.
pub const FRAMES_PER_MESSAGE_MAX: u32 = 512;

/// Cursors in one ACK. Filled by clients; full: ERROR 1002, close 4400.
pub const ACK_CURSORS_MAX: usize = 256;

/// Users in one WATCH. Filled by clients; full: ERROR 1002, close 4400.
pub const WATCH_USERS_MAX: usize = 200;

/// Bytes of one protocol frame, header included, unless configured otherwise. Full: ERROR 1005, close 1009.
pub const FRAME_BYTES_DEFAULT: usize = 128 * 1024;

/// Objects and lists within one another in the value of one key of a JSON frame. Full: ERROR 1001, close 4400. It is the width of a
/// bit stack.
pub const JSON_DEPTH_MAX: u32 = 64;

/// Bytes of a message of whom nobody knows yet: until WELCOME. A HELLO with the longest token is below 9 KiB. Longer: 1009.
pub const STRANGER_MESSAGE_BYTES_MAX: u32 = 16 * 1024;

/// Pings and pongs of one connection, of WebSocket or of the protocol, that one read may have, and one more for each [`SIGN_BYTES`] of it. Each
/// beyond counts as a request refused, of which 1,024 in a row end the connection with 4429.
pub const SIGNS_PER_READ: usize = 64;
/// See [`SIGNS_PER_READ`]: about what the longest of them has.
pub const SIGN_BYTES: usize = 128;

/// Kernel events delivered in one turn of a reactor. Full: the rest waits for the next turn.
pub const EVENTS_PER_TURN_MAX: usize = 1024;
/// Connections whose peer has left, ended by a driver in one turn, behind what all others ask for: about a millisecond of work.
pub const LEAVERS_PER_TURN_MAX: usize = 64;

/// Bytes taken from one connection in one turn. Full: the connection goes to the tail of the ready list.
pub const RECV_BYTES_PER_TURN_MAX: usize = 64 * 1024;

/// The shared receive buffer of a reactor, bytes.
pub const RECV_BUFFER_BYTES: usize = 64 * 1024;

/// Connections of a reactor beyond `limits.connections_max`, to be told that there is no room. Full: a newcomer is closed at accept.
/// Counter: `accepts_refused_count`.
pub const REFUSALS_MAX: usize = 64;

/// Devices whose attempts to say HELLO are remembered, for the node. Full: the longest known is forgotten, and may try as if it were
/// new.
pub const DEVICE_ATTEMPTS_MAX: usize = 65_536;

/// How far ahead those who are told to go when the node drains may be told to come back, milliseconds: 600,000 at 1,000 a second. Full:
/// places are given from the beginning once more, so they come back evenly and faster than `limits.accept_per_s`.
pub const LEAVERS_AHEAD_MS_MAX: u32 = 600_000;
/// The same for those who are not let in for want of room or rate: no longer than somebody waits who was refused among strangers.
pub const REFUSED_AHEAD_MS_MAX: u32 = 60_000;

/// Users whose commands, and addresses whose connects, are metered across cores; 8 bytes each for the node. Full: of eight that share a
/// line the one that owes least is forgotten, and may take a burst more.
pub const METERED_KEYS_MAX: usize = 65_536;

/// Addresses whose open connections are counted across cores, 8 bytes each for the node. Full: of eight that share a line the one with
/// the fewest is forgotten, and may have up to twice its number.
pub const COUNTED_ADDRESSES_MAX: usize = 131_072;

/// Bytes of a request head, request line and blank line included. Filled by whoever connects; full: HTTP 431 and the connection ends.
pub const UPGRADE_HEAD_BYTES_MAX: usize = 8 * 1024;

/// Header lines of a request head. Full: HTTP 431 and the connection ends.
pub const UPGRADE_HEADERS_MAX: usize = 64;

/// Bytes of a PROXY header. Filled by balancers, whose extensions vary; full: the connection ends. Cause: `proxy_header`.
pub const PROXY_HEADER_BYTES_MAX: usize = 1024;

/// Bytes of one WebSocket message, fragments together: what `max_frame` is by default. Full: close 1009, before anything is
/// allocated for the part that does not fit. Counter: the violation `message_too_large`.
pub const MESSAGE_BYTES_MAX: u32 = 128 * 1024;

/// The same on the echo endpoint: the conformance suite sends messages of 16 MiB.
pub const ECHO_MESSAGE_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// Fragments of one WebSocket message. Filled by the peer, also with empty ones, which no byte limit sees; full: close 1009.
/// A message of the default size passes in fragments of one byte, and the conformance suite's 65 537 pass. Counter: the violation
/// `too_many_fragments`.
pub const FRAGMENTS_PER_MESSAGE_MAX: u32 = 128 * 1024;

/// Bytes held for unfinished messages over all connections of one reactor, at least two of the longest. Full: a connection is closed
/// with 4503.
pub const STASH_BYTES: Share = Share { node: 128 * MIB, most: 64 * MIB, least: MIB };

/// Bytes of empty receive stashes kept by one reactor for the next message. Full: a returned stash goes back to the allocator.
pub const STASH_FREE_BYTES: Share = Share { node: 16 * MIB, most: MIB, least: 128 * KIB };

/// Size classes of receive stashes, bytes, ascending. A message above the last one gets memory of its own size.
pub const STASH_CLASSES_BYTES: [usize; 5] = [256, 1024, 4 * 1024, 16 * 1024, 64 * 1024];

const _: () = assert!(MESSAGE_BYTES_MAX <= FRAGMENTS_PER_MESSAGE_MAX);
const _: () = assert!(MESSAGE_BYTES_MAX as usize <= STASH_BYTES.least && ECHO_MESSAGE_BYTES_MAX as usize <= STASH_BYTES.most);
const _: () = assert!(STASH_FREE_BYTES.least <= STASH_BYTES.least && STASH_FREE_BYTES.most <= STASH_BYTES.most);

/// Bytes of an arena chunk, in which bodies outlive the receive buffer.
pub const ARENA_CHUNK_BYTES: usize = 64 * 1024;

/// Mails taken by a reactor in one turn, over all lanes. Full: the rest waits for the next turn, which does not sleep.
pub const MAIL_PER_TURN_MAX: usize = 1024;

/// Connections ended, paused and resumed after a flush: an end costs several system calls, and when all end at once the messages of the
/// others come in between. Full: the rest after the next flush, in a turn that does not sleep.
pub const COMMANDS_PER_FLUSH_MAX: usize = 128;

/// Submissions that a reactor hands over before it wakes the store; fewer wake it when the events of a turn are done. What arrives
/// together is committed together so: a store woken by the first message of a burst commits that one alone.
pub const GATHERED_MAX: usize = 64;

/// Expiries handled in one turn. Full: the rest fires in the next turn.
pub const EXPIRIES_PER_TURN_MAX: usize = 4096;

/// Connections accepted in one turn by the epoll driver.
pub const ACCEPTS_PER_TURN_MAX: usize = 64;

/// Segments and bytes of one gathered write.
pub const WRITE_SEGMENTS_MAX: usize = 64;
/// See [`WRITE_SEGMENTS_MAX`].
pub const WRITE_BYTES_MAX: usize = 256 * 1024;

/// `submit` lane, values. Filled by reactors, admin; full: ERROR 5002 to the client. SEND leaves an eighth of it to whoever logs in,
/// reads and leaves.
pub const SUBMIT_LANE_MAX: usize = 32_768;

/// `group` lane, values per reactor. Filled by the store; full: the store keeps the groups ([`OUTBOX_BYTES`]), then RESYNC.
pub const GROUP_LANE: Share = Share { node: 8_192, most: 256, least: 64 };

/// `peer` lane, values per reactor. Filled by reactors; full: kept, tried next turn.
pub const PEER_LANE: Share = Share { node: 32_768, most: 1_024, least: 256 };

/// Mails to other cores kept by one core because their lane is full. Full: the mail is dropped, and the session that waits for it starts
/// afresh after five seconds. Counter: `sessions_unmoved_count`.
pub const PEERS_KEPT: Share = Share { node: 65_536, most: 16_384, least: 512 };

/// Bytes of frames of resumed sessions on their way from one core to others. Full: the session does not move, and its client runs
/// SYNC. Counter: `sessions_unmoved_count`.
pub const MOVED_BYTES: Share = Share { node: 64 * MIB, most: 16 * MIB, least: 512 * KIB };

/// `job` lane, values. Filled by the store; full: ERROR 5002.
pub const JOB_LANE_MAX: usize = 1_024;

/// `page` lane, values per reactor. Filled by readers; full: the reader waits.
pub const PAGE_LANE: Share = Share { node: 8_192, most: 256, least: 64 };

/// The longest token that is looked at, bytes. Longer: ERROR 2001.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// `jti` of a token, bytes. Longer: ERROR 2001.
pub const TOKEN_ID_BYTES_MAX: usize = 255;

/// Answer of the authentication webhook, bytes. Longer: it is no answer.
pub const WEBHOOK_ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What is remembered of tokens that the webhook called good, bytes. Full: the oldest verdicts are forgotten, and asked for again.
pub const WEBHOOK_CACHE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Likewise of those it called bad. Strangers fill it, so it is apart from the good ones.
pub const WEBHOOK_BAD_CACHE_BYTES_MAX: usize = 1024 * 1024;

/// Values on the lane to the threads that judge tokens, for each of them: 2 MiB of the longest. Filled by reactors; full: ERROR 5002, and
/// for a HELLO close 4503. Counter: `tokens_unjudged_count`.
pub const JUDGE_LANE_MAX: usize = 256;

/// `judged` lane, values per reactor. Filled by the threads that judge tokens; full: the thread waits.
pub const JUDGED_LANE: Share = Share { node: 8_192, most: 256, least: 64 };

/// Bytes of one file of public keys, or of the answer of an address that gives them. Longer: it is refused as a whole.
pub const KEYS_BYTES_MAX: usize = 256 * 1024;

/// Public keys of all files together. More: they are refused as a whole.
pub const KEYS_MAX: usize = 64;

/// `control` lane, values per reactor. Filled by control and admin; full: HTTP 503.
pub const CONTROL_LANE: Share = Share { node: 4_096, most: 64, least: 32 };

/// Bytes of groups between the store and the projector. More than half: submissions wait in their lane. Full: SEND gets 5002 until
/// below half.
pub const PROJECT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long submissions wait for a projector that writes nothing: then it is stuck, and SEND gets 5002 at once. Below what a client
/// waits for SENT.
pub const PROJECT_PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of rows that wait for a sync while the level asks for none. Full: the log is synced at once.
pub const UNSYNCED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Emptied groups on their way back to the store, per core, and batches of rows. Filled by reactors and projector; full: one more is
/// freed where it was emptied.
pub const SPARE_GROUPS: Share = Share { node: 128, most: 2, least: 1 };
/// See [`SPARE_GROUPS`].
pub const SPARE_BATCHES_MAX: usize = 8;

/// Events and targets that an emptied group has room for, and bytes of an emptied batch. Larger: it is not kept.
pub const SPARE_EVENTS_MAX: usize = 512;
/// See [`SPARE_EVENTS_MAX`].
pub const SPARE_TARGETS_MAX: usize = 4_096;
/// See [`SPARE_EVENTS_MAX`].
pub const SPARE_BATCH_BYTES_MAX: usize = 256 * 1024;

/// Bytes of rows that replay gathers from commit groups that follow each other before the engine gets them, all in one sorted batch.
/// Filled at the start after a crash; full: they are written.
pub const REPLAY_BATCH_BYTES: usize = 4 << 20;

/// Empty windows of unacknowledged deliveries that a core keeps for the next session that needs one. Filled by ACK; full: one more is
/// freed.
pub const SPARE_BACKLOGS: Share = Share { node: 16_384, most: 1_024, least: 128 };

/// How often a core gives back what its pools have not needed since the last time.
pub const TRIM_EVERY: Duration = Duration::from_secs(10);

/// Submissions taken into one commit group.
pub const GROUP_SUBMISSIONS_MAX: usize = 8_192;

/// Deliveries one commit group may make.
pub const GROUP_DELIVERIES_MAX: usize = 262_144;

/// Messages that one step of retention takes out of the engine: the store makes their deletions between two groups of messages. More
/// wait for the next step.
pub const RETIRED_PER_STEP_MAX: usize = 4_096;

/// Conversations that one step of retention looks at.
pub const SWEPT_PER_STEP_MAX: usize = 256;

/// Rest between two steps of retention.
pub const SWEEP_REST: Duration = Duration::from_millis(20);

/// Submissions parked behind cold conversations: enough for a thousand senders who come back with sixteen messages each. Their bodies
/// are within the byte credit of submissions. A conversation has at most as many as stay free. Full: the newcomer gets ERROR 5002.
/// Counter: `submissions_refused`.
pub const PARKED_MAX: usize = 16_384;

/// Members of a group.
pub const GROUP_MEMBERS_MAX: usize = 100_000;

/// Members above which a conversation is NOTICE_ONLY.
pub const NOTICE_ONLY_ABOVE: usize = 1_000;

/// Bytes the kernel holds for one connection but has not yet put on the wire (`TCP_NOTSENT_LOWAT`). Full: the send blocks, and the
/// rest waits in our own queue, where it is counted.
pub const NOTSENT_LOWAT_BYTES: i32 = 16 * 1024;

/// What a connection is reckoned at, bytes, when their number is worked out from the memory: some 500 of ours, 4 KiB of the kernel, and
/// what is on its way to and from those that talk.
pub const CONNECTION_BYTES: u64 = 8 * 1024;
/// See [`CONNECTION_BYTES`]; with TLS some 4.5 KiB more.
pub const CONNECTION_TLS_BYTES: u64 = 12 * 1024;

/// What a connection before its HELLO is reckoned at, bytes: head, TLS handshake, and the kernel's part.
pub const HANDSHAKE_BYTES: u64 = (UPGRADE_HEAD_BYTES_MAX + TLS_HANDSHAKE_BYTES_MAX) as u64 + 8 * 1024;

/// Bounds of `limits.handshakes_max` where it is worked out.
pub const HANDSHAKES_MIN: u32 = 64;
/// See [`HANDSHAKES_MIN`].
pub const HANDSHAKES_MAX: u32 = 1_024;

/// Bounds of `limits.accept_per_s` where it is worked out, for each reactor that newcomers come to.
pub const ACCEPTS_PER_SECOND_MIN: u32 = 200;
/// See [`ACCEPTS_PER_SECOND_MIN`].
pub const ACCEPTS_PER_SECOND_MAX: u32 = 2_000;

/// The least that `limits.queue_bytes_max` is worked out to, bytes, and what it is where nothing was worked out.
pub const QUEUE_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// See [`QUEUE_BYTES_MIN`].
pub const QUEUE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Parts of `limits.memory_bytes` in use, percent, from which signals and presence are shed, newcomers refused, and the slowest readers
/// closed. A reactor does the same by what is queued, of its share of `limits.queue_bytes_max`. Counter: `shed_count`.
pub const PRESSURE_SIGNALS_PERCENT: u64 = 80;
/// See [`PRESSURE_SIGNALS_PERCENT`].
pub const PRESSURE_NEWCOMERS_PERCENT: u64 = 90;
/// See [`PRESSURE_SIGNALS_PERCENT`].
pub const PRESSURE_READERS_PERCENT: u64 = 96;
/// So much less must be in use before a level ends. Readers are closed until newcomers have room again.
pub const PRESSURE_RELIEF_PERCENT: u64 = 5;

const _: () =
    assert!(PRESSURE_RELIEF_PERCENT < PRESSURE_SIGNALS_PERCENT && PRESSURE_SIGNALS_PERCENT < PRESSURE_NEWCOMERS_PERCENT);
const _: () = assert!(PRESSURE_NEWCOMERS_PERCENT < PRESSURE_READERS_PERCENT && PRESSURE_READERS_PERCENT <= 100);

/// Part of `limits.memory_bytes`, percent, that resident memory may count beyond the account. Bounded, since what an allocator keeps is not
/// given back by closing readers: beyond it they would be closed without end.
pub const PRESSURE_UNCOUNTED_PERCENT: u64 = 10;

/// What `store.cache_bytes` is at most if it is not set, bytes.
pub const CACHE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How long newcomers are refused for want of memory while there are slow readers. Over: the slowest are closed until there is room.
pub const PRESSURE_NEWCOMERS_MAX: Duration = Duration::from_secs(10);

/// How often main adds up what the process holds.
pub const PRESSURE_EVERY: Duration = Duration::from_millis(25);

/// What the store is reckoned to use in passing, bytes: buffers of checkpoints, merges, readers and the log.
pub const STORE_WORKING_BYTES: u64 = 8 * 1024 * 1024;

/// Readers and absent sessions that one reactor gives up in one turn. Full: the rest when it is asked again.
pub const SHED_PER_TURN_MAX: usize = 1_024;

/// Readers closed for want of memory that the store remembers for the operator. Full: the oldest is forgotten; the log has all.
pub const SHED_REMEMBERED_MAX: usize = 256;

/// What an idle session is reckoned at, bytes, all included but TLS, and what TLS adds (`tests/memory.rs` measures both).
pub const IDLE_SESSION_BYTES: u64 = 440;
/// See [`IDLE_SESSION_BYTES`].
pub const IDLE_TLS_BYTES: u64 = 4_400;

/// What the store keeps of one recent cmid and of one loaded conversation, bytes, about; see [`DEDUP_RECENT_MAX`] and
/// [`LOADED_WEIGHT_MAX`].
pub const RECENT_CMID_BYTES: u64 = 160;
/// See [`RECENT_CMID_BYTES`].
pub const LOADED_CONVERSATION_BYTES: u64 = 640;

/// Descriptors kept free of connections.
pub const DESCRIPTORS_SPARE: u64 = 256;

/// Table files of the engine that stay open for the next read. Full: the one not read for long is closed, and opened again when it is.
pub const ENGINE_FILES_MAX: usize = 64;

/// Descriptors of everything else: listeners, drivers, bells, the log and the tables that the engine is writing.
const DESCRIPTORS_OTHER: usize = 96;

const _: () = assert!((ENGINE_FILES_MAX + ADMIN_CONNECTIONS_MAX + DESCRIPTORS_OTHER) as u64 <= DESCRIPTORS_SPARE);

/// Reactors of one gateway.
pub const REACTORS_MAX: i64 = 1_024;

/// Descriptors kept free of connections in a reactor's own table, beside one bell for each reactor.
pub const DESCRIPTORS_OF_TABLE: u64 = 16;

/// Share of its own table at which a reactor leaves the group of listeners, so that newcomers reach those who have room, and the share
/// below which it comes back, in percent.
pub const TABLE_FULL_PERCENT: u64 = 98;
/// See [`TABLE_FULL_PERCENT`].
pub const TABLE_ROOM_PERCENT: u64 = 95;

/// Share of its own table at which newcomers are steered to another reactor, and the share below which they come again, in percent. What
/// waits in the queue of the listener then has the rest.
pub const TABLE_PASSES_ON_PERCENT: u64 = 90;
/// See [`TABLE_PASSES_ON_PERCENT`].
pub const TABLE_TAKES_PERCENT: u64 = 85;

const _: () = assert!(TABLE_ROOM_PERCENT < TABLE_FULL_PERCENT && TABLE_FULL_PERCENT <= 100);
const _: () = assert!(TABLE_TAKES_PERCENT < TABLE_PASSES_ON_PERCENT && TABLE_PASSES_ON_PERCENT < TABLE_FULL_PERCENT);

/// First and longest wait before accepting is tried again for want of descriptors or memory; it doubles in between. Counter:
/// `accept_errors_count`.
pub const ACCEPT_RETRY_MIN: Duration = Duration::from_millis(100);
/// See [`ACCEPT_RETRY_MIN`].
pub const ACCEPT_RETRY_MAX: Duration = Duration::from_secs(1);

/// How long a gracefully closed connection may take to send its own FIN. Then it is closed as it is.
pub const LINGER_MAX: Duration = Duration::from_secs(2);
/// Bytes of a closing connection that are forgotten in one turn, in one system call that copies nothing. Full: the connection waits for its
/// next turn, of which [`LEAVERS_PER_TURN_MAX`] have theirs.
pub const DISCARD_BYTES_PER_TURN_MAX: usize = 256 * 1024;

/// Bytes of message bodies between the reactors and the store, for the node. Full: ERROR 5002 to the client.
pub const SUBMIT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Recent cmids held in memory beyond what must be, some 160 bytes each with the empty places of their table. Full: the oldest that
/// the engine holds are forgotten; a repeat without RETRY of one that old is stored again. Gauge: `recent_cmids_open`.
pub const DEDUP_RECENT_MAX: usize = 65_536;

/// Conversations, members and read positions in memory, added up. A conversation with its names takes some 540 to 720 bytes, each
/// further member or position some 60 to 200: at most about 750 MB. Full: conversations not used for long are forgotten and read back
/// when they are.
pub const LOADED_WEIGHT_MAX: usize = 1_048_576;

/// Devices of one user that are connected or resumable. Full: ERROR 2004.
pub const DEVICES_PER_USER_MAX: usize = 16;

/// Devices for which the roster reserves address space, so that entries and names stay where they are and nothing doubles. More: it
/// grows by doubling.
pub const ROSTER_DEVICES_RESERVED: usize = 1_048_576;

/// New device cursors that one connection may name per second, and at once; one that waits already is merged for nothing. Full: ERROR
/// 4001 with rid 0 for the rest of the ACK. Counter: `cursors_refused_count`.
pub const CURSORS_PER_SECOND: u32 = 256;
/// See [`CURSORS_PER_SECOND`].
pub const CURSORS_BURST: u32 = 2_048;

/// Device cursors of one core in one submission to the store. So many gathered: they do not wait for the clock.
pub const CURSORS_SUBMITTED_MAX: usize = 1_024;

/// Device cursors of one core that wait for the store. Full: ERROR 5002 with rid 0 for the rest of the ACK. Counter:
/// `cursors_refused_count`.
pub const CURSORS_GATHERED: Share = Share { node: 131_072, most: 16_384, least: 1_024 };

/// Device cursors that wait for conversations that are not in memory. Full: dropped; the next ACK of the device names the conversation
/// again when it moves. Counter: `cursors_dropped_count`.
pub const CURSORS_ASIDE_MAX: usize = 65_536;

/// Conversations that readers load at once for nothing but cursors. Full: the others wait in order.
pub const CURSOR_LOADS_MAX: usize = 64;

const _: () = assert!(CURSORS_BURST as usize >= ACK_CURSORS_MAX && CURSORS_SUBMITTED_MAX <= CURSORS_GATHERED.least);
const _: () = assert!(CURSOR_LOADS_MAX * 4 <= JOB_LANE_MAX);

/// Cursors of devices waiting for a group of the log. Full: the group is closed at once.
pub const CURSORS_PENDING_MAX: usize = 65_536;

/// Ordering holds kept by the store for SENDs that crossed the failure of an earlier one. Full: the oldest ends; its reactor knows.
pub const STORE_HOLDS_MAX: usize = 65_536;

/// Bytes of groups kept for a core whose `group` lane is full. Full: deliveries are dropped, results kept, RESYNC follows. Counter:
/// `deliveries_dropped_count`.
pub const OUTBOX_BYTES: Share = Share { node: 64 * MIB, most: 8 * MIB, least: 512 * KIB };

/// Steps of followed messages that one turn of a thread notes for the log. Full: later ones of the turn are not written. Counter:
/// `trace_steps_dropped_count`.
pub const TRACE_STEPS_PER_TURN_MAX: usize = 64;

/// Answered upgrade requests that one turn of a reactor notes for the log, at level debug. Full: later ones of the turn are not written.
pub const ARRIVALS_PER_TURN_MAX: usize = 1_024;

/// From the beginning of one commit group to that of the next, at least. A message that comes alone does not wait; of many, those that
/// come meanwhile share a group. A group costs the disk whole blocks of 4 KiB however short it is, and each core a wake-up.
pub const COMMIT_EVERY: Duration = Duration::from_millis(1);

/// How long READ positions and cursors wait for a group to ride on before they are written alone.
pub const RIDE_MAX: Duration = Duration::from_secs(1);

/// How often the store looks at free space, moves the watermark and drops old segments.
pub const STORE_CHORES_EVERY: Duration = Duration::from_secs(1);

/// How long the store sleeps at most while a lane to another thread is full.
pub const LANE_RETRY_EVERY: Duration = Duration::from_millis(1);

/// Connections to the admin listener. Full: the rest waits in the kernel until one closes or is silent for 65 s.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;

/// Calls of the admin listener waiting for another thread. Full: HTTP 503.
pub const ADMIN_CHANGES_MAX: usize = 16;

/// Slots of the roster looked at for one answer to the operator's side, and sessions inspected by one mail to a reactor. More: the
/// caller asks again from where the answer ended.
pub const ADMIN_PAGE_MAX: u32 = 1_000;

/// Body of one admin request, bytes. Longer: HTTP 413.
pub const ADMIN_BODY_BYTES_MAX: usize = 1024 * 1024;

/// Timers carried from a coarse level of the wheel to a finer one before a turn stops to move on (one bucket may exceed it, 10 ns
/// each). Full: the rest in the next turn.
pub const TIMERS_MOVED_PER_TURN_MAX: usize = 65_536;

/// Nanoseconds between two receipts of one position. A change within them is told at their end.
pub const RECEIPT_EVERY_NS: u64 = 1_000_000_000;

/// Positions told within the last second. Filled by ACK and READ; full: the receipt is dropped. Counter: `receipts_dropped_count`.
pub const RECEIPTS_OPEN_MAX: usize = 65_536;

/// Nanoseconds a user must have come or gone before the watchers hear of it. Together with a step of the store it stays below the 6 s
/// of the protocol.
pub const PRESENCE_DEBOUNCE_NS: u64 = 5_000_000_000;

/// Pairs of a watching device and a watched user. Filled by WATCH; full: ERROR 4004.
pub const PRESENCE_SUBSCRIPTIONS_MAX: usize = 1_048_576;

/// Users of whom is known when their last device went. Full: the oldest are forgotten, and their `seen_ms` reads 0.
pub const PRESENCE_SEEN_MAX: usize = 65_536;

/// Watchers told in one turn of the store. Full: the rest in the next turn.
pub const PRESENCE_TOLD_PER_TURN_MAX: usize = 4_096;

/// The longest life of a set of WATCH, seconds; what 0 means as well.
pub const WATCH_TTL_S_MAX: u32 = 300;

/// Conversations looked at for one WATCH, for all its users together, to find with whom the watcher shares one; the watcher's own take half
/// of them at most. Full: who has not been found by then counts as a stranger, but for direct conversations, which come first.
pub const SHARED_CONVERSATIONS_MAX: usize = 10_000;

const _: () = assert!(SHARED_CONVERSATIONS_MAX / 2 > WATCH_USERS_MAX);

/// Submission entries of a ring, a power of two. Full: they are submitted at once, and what still finds no room waits in memory.
pub const RING_SUBMISSIONS: Share = Share { node: 16_384, most: 1_024, least: 128 };

/// Completions of a ring, a power of two. Full: the kernel keeps the rest and ends multishots; nothing is lost. Counter:
/// `driver_overflows_count`.
pub const RING_COMPLETIONS: Share = Share { node: 131_072, most: 16_384, least: 1_024 };

/// Provided receive buffers of a ring that circulate at first, and at most, powers of two. Few, because every one of them passes through
/// the cache before the first comes round again. Empty: the connection is read with a plain receive. More than one empty in a hundred
/// receives: twice as many. Counter: `driver_buffers_empty_count`.
pub const RING_BUFFERS_FIRST: Share = Share { node: 8_192, most: 256, least: 64 };
/// See [`RING_BUFFERS_FIRST`].
pub const RING_BUFFERS: Share = Share { node: 16_384, most: 4_096, least: 128 };

/// Bytes of a provided buffer. A connection that fills [`RING_BULK_BUFFERS`] in a row is read by plain receives instead.
pub const RING_BUFFER_BYTES: usize = 2048;
/// See [`RING_BUFFER_BYTES`].
pub const RING_BULK_BUFFERS: u8 = 8;

/// Bytes that one send through the ring copies. Few, because a peer that does not read holds them until it is closed. More: the rest
/// stays in the queue of the connection, where it is counted, and is offered again.
pub const RING_SEND_BYTES_MAX: usize = 4 * 1024;

/// Bytes of sends in flight on one ring. Full: sends are plain calls, and a connection whose socket takes nothing is told "blocked" until
/// it does.
pub const RING_SENDS_BYTES: Share = Share { node: 256 * MIB, most: 128 * MIB, least: MIB };

/// Bytes of blocks kept for the next send of a ring, in each of their sizes.
pub const RING_SPARE_BYTES: Share = Share { node: 8 * MIB, most: 256 * KIB, least: 64 * KIB };

/// Bytes received for connections that had been paused meanwhile, on one ring. Full: the connection whose bytes find no room fails.
pub const RING_STASH_BYTES: Share = Share { node: 128 * MIB, most: 16 * MIB, least: MIB };

/// Events within a second after which a connection counts as talking and gets a receive of its own.
pub const RING_TALK_EVENTS: u8 = 4;

/// Connections parked in one turn. Full: the rest in the next turn.
pub const RING_PARKS_PER_TURN_MAX: usize = 256;

/// How long the kernel may take to return the operations of a connection that ends. Then they are cancelled once more, and then the
/// slot is given up. Counter: `driver_leaked_slots_count`.
pub const RING_QUIESCE_MAX: Duration = Duration::from_secs(2);

/// How long a wait for several completions may hold back the first one.
pub const RING_GATHER_MAX: Duration = Duration::from_micros(100);

const _: () = assert!(RING_BUFFERS_FIRST.most <= RING_BUFFERS.most && RING_BUFFERS_FIRST.least <= RING_BUFFERS.least);
const _: () = assert!(RING_BUFFERS.most <= u16::MAX as usize && RING_BUFFERS_FIRST.node <= RING_BUFFERS.node);
const _: () = assert!(RING_BUFFERS.most * RING_BUFFER_BYTES <= RING_STASH_BYTES.most);
const _: () = assert!(RING_BUFFERS.node * RING_BUFFER_BYTES <= RING_STASH_BYTES.node);
const _: () = assert!(RING_SEND_BYTES_MAX <= RING_SENDS_BYTES.least && RING_SEND_BYTES_MAX <= RING_SPARE_BYTES.least);

/// Connections waiting to be accepted, per reactor; the kernel may cap it (`net.core.somaxconn`).
pub const LISTEN_BACKLOG: u32 = 4_096;

/// Bytes of one TLS record on the wire, its header included (RFC 5246 6.2.3: 2^14 + 2048 and five). Longer: an alert, and the connection
/// ends.
pub const TLS_RECORD_BYTES_MAX: usize = 16_384 + 2_048 + 5;

/// Bytes of a TLS handshake that wait for its rest or its turn; a chain of client certificates fits. Full: the connection ends.
pub const TLS_HANDSHAKE_BYTES_MAX: usize = 32 * 1024;

/// Bytes of one connection that are sealed into TLS records at once, about. More waits in its queue as it is, where it is shared with
/// other receivers.
pub const TLS_SEALED_BYTES_MAX: usize = 64 * 1024;

/// Steps of TLS handshakes made in one turn of a reactor, and the time after which no further one is begun: a full handshake costs some
/// hundred microseconds, with RSA a millisecond. Full: the rest in the next turn, after the events of all others.
pub const TLS_STEPS_PER_TURN_MAX: usize = 32;
/// See [`TLS_STEPS_PER_TURN_MAX`].
pub const TLS_STEPS_TIME_MAX: Duration = Duration::from_millis(1);

/// Nanoseconds of rest between two sweeps of notices over a large conversation.
pub const NOTICE_EVERY_NS: u64 = 1_000_000_000;

/// Members looked up for notices of large conversations in one turn of the store. Full: the rest in the next turn.
pub const NOTICE_MEMBERS_PER_TURN_MAX: usize = 4_096;

/// Frames a reactor queues in one turn for groups of the store, about: a sweep over a large channel must not hold up the rest. Full:
/// the rest in the next turn.
pub const GROUP_FRAMES_PER_TURN_MAX: u64 = 8_192;

/// Data of one CONV event, bytes. Longer: HTTP 413.
pub const CONV_DATA_BYTES_MAX: usize = 4_096;

/// Revocations of tokens in force: 25 MiB of memory. Filled by the operator; full, with none that may be forgotten: HTTP 409.
pub const REVOCATIONS_MAX: usize = 262_144;

/// Revocations forgotten for each new one: more than one, so that those that ended do not stay.
pub const REVOCATIONS_FORGOTTEN_MAX: usize = 2;

/// Banned users and devices. Filled by the operator; full: HTTP 409.
pub const BANS_MAX: usize = 1_000_000;

/// Removals and replacements of files that the log's disk does aside, chores: one or two come each second. Full: no more are begun, and the
/// next second tries again; an old watermark says less, and a segment too many only takes room.
pub const DISK_CHORES_MAX: usize = 64;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
