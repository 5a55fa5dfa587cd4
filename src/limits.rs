//! Every bound: its unit, who fills it, what happens when it is full, and which counter then moves.

/// Kernel events delivered in one turn of a reactor. Full: the rest waits for the next turn.
pub const EVENTS_PER_TURN_MAX: usize = 1024;

/// Bytes taken from one connection in one turn. Full: the connection goes to the tail of the ready list.
pub const RECV_BYTES_PER_TURN_MAX: usize = 64 * 1024;

/// Frames taken from one connection in one turn. Full: as above.
pub const RECV_FRAMES_PER_TURN_MAX: usize = 64;

/// The shared receive buffer of a reactor, bytes.
pub const RECV_BUFFER_BYTES: usize = 64 * 1024;

/// Bytes of an arena chunk, in which bodies outlive the receive buffer.
pub const ARENA_CHUNK_BYTES: usize = 64 * 1024;

/// Mails taken by a reactor in one turn, over all lanes. Full: the rest waits for the next turn, which does not sleep.
pub const MAIL_PER_TURN_MAX: usize = 1024;

/// Expiries handled in one turn. Full: the rest fires in the next turn.
pub const EXPIRIES_PER_TURN_MAX: usize = 4096;

/// Connections accepted in one turn by the epoll driver.
pub const ACCEPTS_PER_TURN_MAX: usize = 64;

/// Segments and bytes of one gathered write.
pub const WRITE_SEGMENTS_MAX: usize = 64;
/// See [`WRITE_SEGMENTS_MAX`].
pub const WRITE_BYTES_MAX: usize = 256 * 1024;

/// `submit` lane, values. Filled by reactors, admin; full: ERROR 5002 to the client.
pub const SUBMIT_LANE_MAX: usize = 16_384;

/// `group` lane, values per core. Filled by the store; full: the store keeps the groups (8 MiB), then RESYNC.
pub const GROUP_LANE_MAX: usize = 256;

/// `peer` lane, values per core. Filled by reactors; full: kept, tried next turn.
pub const PEER_LANE_MAX: usize = 1_024;

/// `job` lane, values. Filled by the store; full: ERROR 5002.
pub const JOB_LANE_MAX: usize = 1_024;

/// `page` lane, values per core. Filled by readers; full: the reader waits.
pub const PAGE_LANE_MAX: usize = 256;

/// `control` lane, values per thread. Filled by control and admin; full: HTTP 503.
pub const CONTROL_LANE_MAX: usize = 64;

/// Bytes of groups between the store and the projector. Full: SEND gets 5002 until below half.
pub const PROJECT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Submissions taken into one commit group.
pub const GROUP_SUBMISSIONS_MAX: usize = 8_192;

/// Deliveries one commit group may make.
pub const GROUP_DELIVERIES_MAX: usize = 262_144;

/// Submissions parked behind a cold conversation. Full: ERROR 5002.
pub const PARKED_MAX: usize = 4_096;

/// Members of a group.
pub const GROUP_MEMBERS_MAX: usize = 100_000;

/// Members above which a conversation is NOTICE_ONLY.
pub const NOTICE_ONLY_ABOVE: usize = 1_000;
