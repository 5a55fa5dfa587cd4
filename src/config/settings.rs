//! The table of settings: one row per key.
//!
//! A row reads: text, `name: type = default, rule, change;`. The name of the TOML key is the section, a dot and the field; the
//! variable is `TIDEGATE_` and the key in capitals with `_` for the dot; the flag is `--` and the key with `-` for dot and `_`.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::url::Url;
use super::value::{
    ClientCertificates, DriverChoice, ForwardedHeader, Kind, LogFormat, LogLevel, PresencePolicy, PrivateFds, Raw, RoleChoice,
    Secret, TlsVersion, Value,
};
use crate::address::{Network, Networks};
use crate::limits;
use crate::origin::Origin;

/// What a value must satisfy beyond its type.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// The type says it all.
    Any,
    /// A number in this range, both ends included.
    Between(i64, i64),
    /// Each string (the text itself, or every item of a list) must pass.
    Each {
        /// What is allowed, for the operator.
        allowed: &'static str,
        /// Whether a string passes.
        test: fn(&str) -> bool,
    },
}

/// When a change of a setting may take effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Only at start: something is built to this size or bound to this name.
    Start,
    /// A running gateway could take it over at the start of a turn.
    Live,
}

/// One row of the table.
#[derive(Debug)]
pub struct Definition {
    /// Key in a file, such as `store.level`.
    pub key: &'static str,
    /// What it means; the first line stands alone in `--help`.
    pub text: &'static [&'static str],
    /// Type of the value.
    pub kind: Kind,
    /// Range of the value.
    pub rule: Rule,
    /// When it may change.
    pub change: Change,
    /// Puts a value into the settings; `false`: it is not of this kind or does not fit.
    pub set: fn(&mut Settings, &Raw) -> bool,
    /// Reads the value back; a secret reads as absent.
    pub value: fn(&Settings) -> Raw,
}

macro_rules! settings {
    (
        $($(#[doc = $text:literal])+ $field:ident: $type:ty = $default:expr, $rule:expr, $change:ident;)*
        $(
            [$section:ident: $struct:ident, $about:literal]
            $($(#[doc = $sub_text:literal])+ $sub:ident: $sub_type:ty = $sub_default:expr, $sub_rule:expr, $sub_change:ident;)+
        )*
    ) => {
        /// All settings of one gateway, checked. Rooms get their section, or the single numbers they need.
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub struct Settings {
            $($(#[doc = $text])+ pub $field: $type,)*
            $(#[doc = $about] pub $section: $struct,)*
        }

        impl Default for Settings {
            fn default() -> Self {
                Self { $($field: $default,)* $($section: $struct::default(),)* }
            }
        }

        $(
            #[doc = $about]
            #[derive(Clone, PartialEq, Eq, Debug)]
            pub struct $struct {
                $($(#[doc = $sub_text])+ pub $sub: $sub_type,)+
            }

            impl Default for $struct {
                fn default() -> Self {
                    Self { $($sub: $sub_default,)+ }
                }
            }
        )*

        /// Every setting, in the order in which the default file shows them.
        pub static DEFINITIONS: &[Definition] = &[
            $(Definition {
                key: stringify!($field),
                text: &[$($text),+],
                kind: <$type as Value>::KIND,
                rule: $rule,
                change: Change::$change,
                set: |settings, raw| Value::take(raw).map(|value| settings.$field = value).is_some(),
                value: |settings| settings.$field.show(),
            },)*
            $($(Definition {
                key: concat!(stringify!($section), ".", stringify!($sub)),
                text: &[$($sub_text),+],
                kind: <$sub_type as Value>::KIND,
                rule: $sub_rule,
                change: Change::$sub_change,
                set: |settings, raw| Value::take(raw).map(|value| settings.$section.$sub = value).is_some(),
                value: |settings| settings.$section.$sub.show(),
            },)+)*
        ];

        /// The tables of a file, each with what stands in it.
        pub static SECTIONS: &[(&str, &str)] = &[$((stringify!($section), $about),)*];
    };
}

const KIB: u32 = 1024;
const MIB: u64 = 1024 * 1024;
const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;

settings! {
    /// Name of this gateway, as clients read it in WELCOME.
    node: String = "tidegate-1".to_owned(),
        Rule::Each { allowed: "1 to 64 bytes of A-Z a-z 0-9 _ . : @ -", test: |text| crate::ids::is_device(text) }, Start;
    /// Where clients connect.
    /// Any address but loopback needs `auth.secret_file` or `auth.secret`. Port 0: the kernel chooses.
    listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8080)), Rule::Any, Start;
    /// Path of the WebSocket upgrade.
    path: String = "/ws".to_owned(),
        Rule::Each { allowed: "a path from \"/\" on, 1 to 256 printable characters, without ? # and blanks", test: is_path }, Start;
    /// Origins from which a browser may connect, such as "https://chat.example.org": scheme, host and port must be the same.
    /// Empty: no page but the gateway's own chat page, which may connect while both listeners are on loopback. A client that sends no
    /// Origin is no browser and is not judged by it.
    origins: Vec<String> = Vec::new(),
        Rule::Each { allowed: "scheme://host or scheme://host:port in lower case, without a path", test: is_origin }, Live;
    /// Where messages, the log and the generated secret are kept. One process at a time.
    data_dir: PathBuf = PathBuf::from("./tidegate-data"), Rule::Any, Start;
    /// Threads that carry connections.
    /// 0: one per core, and from 4 cores on one less, which leaves a core to the store. More than cores make sense where one table of
    /// open files does not hold all connections: see `reactor.private_fds`.
    reactors: u16 = 0, Rule::Between(0, limits::REACTORS_MAX), Start;
    /// How a reactor waits for the kernel: readiness (epoll) or completions (io_uring, Linux 6.6 or newer).
    /// "auto" is epoll: docs/decisions/0003-which-driver.md says why. "uring" does not start where the kernel or a seccomp filter
    /// forbids it.
    driver: DriverChoice = DriverChoice::Auto, Rule::Any, Start;
    /// Whether the process gives up, at its start, all it will not need: other files, other ports, connecting, running programs.
    /// It is Landlock that refuses them then, Linux 5.13 or newer. What stays open: `data_dir`, and the directories of files that
    /// settings name, for reading. Privileges and huge pages are given up in any case.
    confine: bool = true, Rule::Any, Start;

    [admin: AdminSettings, "The HTTP side of operators: health, metrics, groups."]
    /// Where operators connect. Whoever reaches it may change groups: keep it on loopback.
    listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8081)), Rule::Any, Start;
    /// Whether `admin.listen` may be an address other machines reach.
    allow_remote: bool = false, Rule::Any, Start;

    [proxy: ProxySettings, "Balancers in front of the gateway, and what is believed of what they say."]
    /// Networks of balancers, such as "10.0.0.0/8" or "2001:db8::/32". Only from these addresses is it believed whom they speak for.
    /// Name balancers alone: whoever else connects from there can be anybody.
    networks: Networks = Networks(Vec::new()),
        Rule::Each { allowed: "address or address/bits, no bits set behind the prefix", test: |text| Network::read(text).is_some() }, Start;
    /// Whether every connection from `proxy.networks` begins with a header of the PROXY protocol, version 1 or 2.
    /// One that begins otherwise is closed. From elsewhere such a header is no request.
    protocol: bool = false, Rule::Any, Start;
    /// The header in which balancers of `proxy.networks` append the address of the client. The other one is not looked at, since they
    /// may pass on what a client wrote into it.
    header: ForwardedHeader = ForwardedHeader::XForwardedFor, Rule::Any, Start;

    [auth: AuthSettings, "Who may connect: tokens are JWTs, signed with a shared secret (HS256) or for public keys (RS256, ES256, EdDSA)."]
    /// File with the secret that signs tokens, 32 to 4096 bytes; a line feed at the end does not count.
    secret_file: Option<PathBuf> = None, Rule::Any, Start;
    /// The secret itself, 32 to 4096 bytes. Has no flag, since a command line can be read by others; prefer `auth.secret_file`.
    secret: Option<Secret> = None,
        Rule::Each { allowed: "32 to 4096 bytes", test: |text| Secret::new(text.as_bytes().to_vec()).is_some() }, Start;
    /// Files with the public keys of those who sign tokens: one PEM key, whose name without its ending is the `kid`, or a JWKS.
    /// They are read again when they change, and at SIGHUP; mistakes keep the old keys. With public keys and no secret of your own no
    /// secret is made, and no token of a secret passes.
    keys: Vec<String> = Vec::new(), Rule::Each { allowed: "paths of files", test: |text| !text.is_empty() }, Start;
    /// Where more public keys are fetched, as a JWKS: "https://NAME/path". By http only from this machine or a network you trust.
    /// The node is not ready until they came once. Later fetches that fail leave the keys as they are, for however long it takes.
    jwks_url: Option<String> = None, HTTP, Start;
    /// How often they are fetched, in seconds.
    jwks_every_s: u32 = 300, Rule::Between(5, 86_400), Start;
    /// How long after a fetch a token of a key that is not here makes them be fetched again, in seconds.
    jwks_again_s: u32 = 10, Rule::Between(1, 3_600), Start;
    /// Who is asked about tokens for which there is no kind of key here: POST {"token":…} to "https://NAME/path".
    /// 200 {"user":…,"exp":…} says whose it is, 400, 401, 403, 404 or 422 that it is bad; anything else, that its client is to come back.
    webhook_url: Option<String> = None, HTTP, Start;
    /// Threads that ask it, each on a connection of its own: as many questions at once.
    webhook_threads: u16 = 8, Rule::Between(1, 256), Start;
    /// How long an answer may take, in milliseconds. Below `protocol.hello_ms`.
    webhook_timeout_ms: u32 = 2_000, Rule::Between(50, 60_000), Start;
    /// How long an answer is remembered, in seconds, at most until the token ends. 0: not at all.
    webhook_cache_s: u32 = 30, Rule::Between(0, 3_600), Start;
    /// File with the authorities (PEM) that sign the certificates of those two, if they are https. Absent: those of the system.
    ca_file: Option<PathBuf> = None, Rule::Any, Start;
    /// What `iss` must be in tokens of keys that name no issuer themselves. Absent: anything.
    issuer: Option<String> = None, Rule::Each { allowed: "1 or more bytes", test: |text| !text.is_empty() }, Start;
    /// What `aud` of a token of a public key must name, one of these. Empty: such a token must not have `aud`, since it is for another.
    audience: Vec<String> = Vec::new(), Rule::Each { allowed: "1 or more bytes each", test: |text| !text.is_empty() }, Start;
    /// Threads that judge tokens of public keys. None runs without such keys.
    threads: u16 = 2, Rule::Between(1, 64), Start;
    /// How long after its expiry a token still passes, in seconds: for clocks that disagree.
    leeway_s: u32 = 5, Rule::Between(0, 5), Live;
    /// How long before its expiry a client is told, in milliseconds.
    expiring_ms: u32 = 60_000, Rule::Between(1_000, HOUR_MS), Live;

    [protocol: ProtocolSettings, "Numbers clients see or feel. WELCOME announces those a client must obey."]
    /// The longest WebSocket message, reassembled, in bytes.
    max_frame_bytes: u32 = 128 * KIB, Rule::Between(4_096, 16 << 20), Start;
    /// The longest payload of one message, in bytes.
    max_payload_bytes: u32 = 64 * KIB, Rule::Between(1_024, 8 << 20), Live;
    /// Whether messages may be compressed (permessage-deflate), for clients that show their token in the upgrade request.
    /// Each message by itself, with one compressor per core. Browsers do not show their token there, and are not compressed.
    deflate: bool = false, Rule::Any, Start;
    /// Silence after which the gateway pings, in milliseconds. It closes after 2.5 times this.
    ping_ms: u32 = 30_000, Rule::Between(1_000, HOUR_MS), Start;
    /// How long a connection may take to send a whole upgrade request, in milliseconds.
    upgrade_ms: u32 = 10_000, Rule::Between(100, MINUTE_MS), Live;
    /// How long a connection may take from the upgrade to HELLO, in milliseconds.
    hello_ms: u32 = 5_000, Rule::Between(100, MINUTE_MS), Live;
    /// How long one message may take to arrive, in milliseconds.
    message_ms: u32 = 60_000, Rule::Between(1_000, HOUR_MS), Live;
    /// How long a repeated message is recognised, in seconds.
    dedup_s: u32 = 86_400, Rule::Between(60, 30 * 86_400), Start;
    /// How long a session waits for its client to come back before it is dropped, in milliseconds. 0: not at all.
    /// Meanwhile its deliveries are held, up to its window, and count in `limits.queue_bytes_max`.
    resume_ms: u32 = 120_000, Rule::Between(0, HOUR_MS), Start;
    /// SENDs of one connection that may be unanswered.
    send_window: u16 = 64, Rule::Between(1, 4_096), Start;
    /// Deliveries that may be unacknowledged when a client asks for no number of its own.
    window_default: u16 = 256, Rule::Between(1, 4_096), Live;
    /// Deliveries that may be unacknowledged, whatever a client asks.
    window_max: u16 = 4_096, Rule::Between(1, 4_096), Live;
    /// Bytes of deliveries that may be unacknowledged.
    window_bytes: u32 = 256 * KIB, Rule::Between(64 * KIB as i64, 16 << 20), Live;
    /// How long a full window may stand without an acknowledgement, in milliseconds.
    ack_stall_ms: u32 = 60_000, Rule::Between(1_000, HOUR_MS), Live;
    /// SENDs per second of one connection.
    send_rate: u16 = 20, Rule::Between(1, 65_535), Live;
    /// SENDs at once of one connection. At least twice `protocol.send_window`.
    send_burst: u16 = 128, Rule::Between(2, 65_535), Live;
    /// FETCH, SYNC, READ and WATCH per second of one connection, together.
    fetch_rate: u16 = 20, Rule::Between(1, 65_535), Live;
    /// HELLOs with a good token of one device per minute. 0: no limit.
    hello_per_minute: u16 = 10, Rule::Between(0, 60_000), Start;

    [state: StateSettings, "Receipts, presence and signals: what is said at most once and kept nowhere."]
    /// Who may watch whom: users who share a conversation, or everybody everybody.
    presence: PresencePolicy = PresencePolicy::Share, Rule::Any, Start;
    /// Members of a group above which receipts stay among the user's own devices.
    receipt_members_max: u32 = 100, Rule::Between(0, 1_000), Start;
    /// SIGNALs per second of one connection.
    signal_rate: u16 = 10, Rule::Between(1, 65_535), Start;
    /// The longest payload of a SIGNAL, in bytes.
    signal_bytes_max: u32 = KIB, Rule::Between(0, 65_535), Start;

    [groups: GroupSettings, "Who may send where, and when a group counts as large."]
    /// The least role that may send to a group (`g:`).
    senders: RoleChoice = RoleChoice::Member, Rule::Any, Start;
    /// The least role that may send to a large channel (`c:`).
    channel_senders: RoleChoice = RoleChoice::Member, Rule::Any, Start;
    /// Members above which a group is told by NOTICE instead of content, as `c:` always is.
    notice_only_above: u32 = 1_000, Rule::Between(1, 1_000), Start;

    [login: LoginSettings, "Who may be connected at the same time."]
    /// Devices of one user that are connected or resumable.
    devices_max: u8 = 16, Rule::Between(1, 16), Start;
    /// Classes of platform of which a user may have one device at a time; a second one replaces the first.
    one_per_class: Vec<String> = Vec::new(),
        Rule::Each { allowed: "other, web, desktop, phone, tablet, bot", test: |text| PLATFORMS.contains(&text) }, Start;

    [limits: LimitSettings, "What one gateway may hold in memory. Full never means silence: the newcomer is refused, or the slowest is closed."]
    /// Bytes of memory that this process may hold. Absent: half of the memory of the machine, or of its control group if that is less;
    /// the kernel needs as much again for sockets and files. A change is taken over at SIGHUP, with what follows from it but the number of
    /// connections and `store.cache_bytes`.
    memory_bytes: Option<u64> = None, Rule::Between(32 * MIB as i64, 1 << 50), Live;
    /// Connections of this gateway. 0: as many as the limit of open files and half of `limits.memory_bytes` allow.
    connections_max: u32 = 0, Rule::Between(0, 10_000_000), Start;
    /// Connections accepted per second by this gateway, whichever reactors they come to. 0: no limit. Beyond it newcomers wait in the
    /// kernel, and those who are sent away are told when to come back by it. Absent: 200 to 2,000 for each reactor that newcomers come to, by
    /// `limits.memory_bytes`.
    accept_per_s: Option<u32> = None, Rule::Between(0, 1_000_000), Live;
    /// Connections accepted at once after a rest. Absent: a fifth of `limits.accept_per_s`.
    accept_burst: Option<u32> = None, Rule::Between(1, 1_000_000), Live;
    /// Connections of one reactor that are not past their HELLO. Beyond it newcomers wait in the kernel. Absent: 64 to 1,024, by
    /// `limits.memory_bytes` and `limits.connections_max`.
    handshakes_max: Option<u32> = None, Rule::Between(1, 10_000_000), Live;
    /// Connections from one address at once; of IPv6 the first 64 bits are the address. 0: no limit. Absent: a sixteenth of what the
    /// gateway may hold, at least 256. Many people may share an address; a balancer that is not named in `proxy.networks` is one.
    address_connections: Option<u32> = None, Rule::Between(0, 10_000_000), Start;
    /// Connections from one address per second. 0: no limit.
    address_per_s: u32 = 100, Rule::Between(0, 1_000_000), Start;
    /// Connections from one address in quick succession.
    address_burst: u32 = 400, Rule::Between(1, 1_000_000), Start;
    /// Networks whose addresses have no limit of their own.
    address_exempt: Networks = Networks::loopback(),
        Rule::Each { allowed: "address or address/bits, no bits set behind the prefix", test: |text| Network::read(text).is_some() }, Start;
    /// As how many connections a user may send, read and signal with all devices together. 0: no limit.
    user_connections: u16 = 4, Rule::Between(0, 1_000), Start;
    /// Bytes waiting for one connection, above which the gateway stops reading from it.
    queue_bytes_soft: u32 = 64 * KIB, Rule::Between(4_096, 1 << 30), Live;
    /// Bytes waiting for one connection, above which deliveries become notices.
    queue_bytes_hard: u32 = 256 * KIB, Rule::Between(16_384, 1 << 30), Live;
    /// How long a connection over its soft limit may take no byte, in milliseconds.
    write_stall_ms: u32 = 10_000, Rule::Between(1_000, HOUR_MS), Live;
    /// Bytes waiting for all connections of this gateway, above which the slowest are closed. Each reactor has an equal share, and what
    /// several receivers share counts for each. Absent: a quarter of `limits.memory_bytes`.
    queue_bytes_max: Option<u64> = None, Rule::Between(1 << 20, 1 << 40), Live;
    /// Bytes of messages between the reactors and the store. Full: the sender is told to try again.
    submit_bytes_max: u64 = 64 * MIB, Rule::Between(1 << 20, 1 << 40), Start;

    [reactor: ReactorSettings, "Threads that carry connections."]
    /// Whether each has a table of open files of its own, so that the limit of open files holds for each and not for all together.
    /// "auto": when `limits.connections_max` does not fit one table; more reactors than cores then make room. "on": always.
    private_fds: PrivateFds = PrivateFds::Auto, Rule::Any, Start;

    [uring: UringSettings, "What concerns the io_uring driver alone."]
    /// Silence after which a connection that talked goes back to the cheaper way of waiting, in milliseconds. 0: never.
    park_after_ms: u32 = 10_000, Rule::Between(0, HOUR_MS), Start;

    [tls: TlsSettings, "TLS in front of the same service, beside `listen`. The files are read again on SIGHUP and by `tidegate ctl tls reload`."]
    /// Where clients connect with TLS (`wss://`). Absent: nowhere.
    listen: Option<SocketAddr> = None, Rule::Any, Start;
    /// Files with certificates (PEM), each with those between it and a root behind it. A client gets the one that is for the name it
    /// asks for; who asks for none, or for another, gets the first.
    certificates: Vec<String> = Vec::new(), Rule::Any, Live;
    /// Files with their private keys (PEM, not encrypted), in the same order. Empty: each key is in the file of its certificate.
    keys: Vec<String> = Vec::new(), Rule::Any, Live;
    /// The oldest version of TLS that is spoken.
    version_min: TlsVersion = TlsVersion::Tls12, Rule::Any, Live;
    /// Whether clients are asked for a certificate of their own.
    client_certificates: ClientCertificates = ClientCertificates::Off, Rule::Any, Live;
    /// File with the certificates (PEM) that may sign those of clients.
    client_ca_file: Option<PathBuf> = None, Rule::Any, Live;
    /// How long tickets are made under one key, in seconds. A client resumes with one that is up to twice as old.
    ticket_rotate_s: u32 = 21_600, Rule::Between(1, 21_600), Live;
    /// Handshakes of one reactor that wait for their turn. Beyond it newcomers are refused before anything is computed for them.
    handshakes_waiting_max: u32 = 256, Rule::Between(1, 1_000_000), Start;

    [store: StoreSettings, "How messages are kept."]
    /// What an acknowledgement means: 2 synced to disk, 1 written, 0 in memory.
    /// Below 2 a power failure takes up to a second of acknowledged messages with it, at 0 any crash does; after a crash clients are
    /// told that numbering began anew.
    level: u8 = 2, Rule::Between(0, 2), Start;
    /// The same for direct conversations, `d:`. Absent: as `store.level`.
    level_direct: Option<u8> = None, Rule::Between(0, 2), Start;
    /// The same for groups, `g:`. Absent: as `store.level`.
    level_group: Option<u8> = None, Rule::Between(0, 2), Start;
    /// The same for channels, `c:`. Absent: as `store.level`.
    level_channel: Option<u8> = None, Rule::Between(0, 2), Start;
    /// Size of one file of the log, in bytes.
    segment_bytes: u64 = 64 * MIB, Rule::Between(1 << 16, 4 << 30), Start;
    /// Free bytes of the disk, below which SEND is refused.
    free_bytes_min: u64 = 1024 * MIB, Rule::Between(0, 1 << 50), Live;
    /// Free part of the disk in percent, below which SEND is refused. 0 leaves it to `free_bytes_min`: a part of a large disk, or of one
    /// under a quota, says little about what the store can still write.
    free_percent_min: u8 = 0, Rule::Between(0, 90), Live;
    /// Threads that answer SYNC and FETCH.
    readers: u16 = 2, Rule::Between(1, 64), Start;
    /// Memory for blocks read from disk, in bytes. Absent: 64 MiB, but no more than an eighth of `limits.memory_bytes`.
    cache_bytes: Option<u64> = None, Rule::Between(1 << 20, 1 << 40), Start;

    [retention: RetentionSettings, "How long messages are kept, by class of conversation. What is older or beyond the count goes, the oldest first."]
    /// Seconds a message is kept. 0: for ever.
    /// What goes is told honestly: the floor of the conversation rises first, and clients see that something is missing.
    age_s: u64 = 0, Rule::Between(0, 1 << 40), Start;
    /// Messages kept of each conversation, the newest ones. 0: all.
    count: u64 = 0, Rule::Between(0, 1 << 40), Start;
    /// The age for direct conversations, `d:`. Absent: as `retention.age_s`.
    age_s_direct: Option<u64> = None, Rule::Between(0, 1 << 40), Start;
    /// The count for direct conversations, `d:`. Absent: as `retention.count`.
    count_direct: Option<u64> = None, Rule::Between(0, 1 << 40), Start;
    /// The age for groups, `g:`. Absent: as `retention.age_s`.
    age_s_group: Option<u64> = None, Rule::Between(0, 1 << 40), Start;
    /// The count for groups, `g:`. Absent: as `retention.count`.
    count_group: Option<u64> = None, Rule::Between(0, 1 << 40), Start;
    /// The age for large channels, `c:`. Absent: as `retention.age_s`.
    age_s_channel: Option<u64> = None, Rule::Between(0, 1 << 40), Start;
    /// The count for large channels, `c:`. Absent: as `retention.count`.
    count_channel: Option<u64> = None, Rule::Between(0, 1 << 40), Start;
    /// The age for system conversations, `s:`. Absent: as `retention.age_s`.
    age_s_system: Option<u64> = None, Rule::Between(0, 1 << 40), Start;
    /// The count for system conversations, `s:`. Absent: as `retention.count`.
    count_system: Option<u64> = None, Rule::Between(0, 1 << 40), Start;
    /// How long to rest between two sweeps over all conversations, in seconds.
    every_s: u32 = 60, Rule::Between(1, 86_400), Start;

    [drain: DrainSettings, "How the gateway leaves."]
    /// How long it is not ready before the first client is told, in milliseconds: for balancers to notice.
    lead_ms: u32 = 5_000, Rule::Between(0, HOUR_MS), Live;
    /// How long goodbyes are spread, in milliseconds.
    /// Together with the lead it must stay below the stop time-out of the service manager, often 90 s.
    window_ms: u32 = 60_000, Rule::Between(0, HOUR_MS), Live;

    [log: LogSettings, "What the gateway says about itself, on standard error."]
    /// The least important lines that are written.
    level: LogLevel = LogLevel::Info, Rule::Any, Live;
    /// One message in so many is followed: a line where it is received, committed and delivered.
    /// 0: only those whose sender sets the sampled bit of its trace context, which are followed in any case.
    trace_every: u32 = 1_000, Rule::Between(0, 1_000_000_000), Live;
    /// The shape of a line.
    format: LogFormat = LogFormat::Json, Rule::Any, Start;
}

/// Classes of platform, by their number in HELLO.
pub const PLATFORMS: [&str; 6] = ["other", "web", "desktop", "phone", "tablet", "bot"];

/// Fixed addresses that are asked.
const HTTP: Rule = Rule::Each {
    allowed: "http:// or https:// with a name or an IP address, a port if it is not the usual one, and a path",
    test: |text| Url::read(text).is_some(),
};

impl AuthSettings {
    /// Whether tokens are good that no secret of this gateway signs.
    #[must_use]
    pub fn has_others(&self) -> bool {
        self.has_public_keys() || self.webhook_url.is_some()
    }

    /// Whether tokens of public keys are good.
    #[must_use]
    pub fn has_public_keys(&self) -> bool {
        !self.keys.is_empty() || self.jwks_url.is_some()
    }

    /// The addresses that are asked.
    pub fn asked(&self) -> impl Iterator<Item = Url> {
        [&self.jwks_url, &self.webhook_url].into_iter().flatten().filter_map(|text| Url::read(text))
    }
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.len() <= 256 && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'))
}

/// The serialised form browsers send (RFC 6454 6.2), as they write it.
fn is_origin(text: &str) -> bool {
    Origin::read(text).is_some() && !text.contains(|letter: char| letter.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every default passes its own rule, and both ends of every range fit the type.
    #[test]
    fn defaults_and_ranges_fit_their_types() {
        let defaults = Settings::default();
        for definition in DEFINITIONS {
            let raw = (definition.value)(&defaults);
            let mut copy = defaults.clone();
            assert!(raw == Raw::Absent || (definition.set)(&mut copy, &raw), "{}", definition.key);
            assert_eq!(copy, defaults, "{}", definition.key);
            match (definition.rule, &raw) {
                (Rule::Between(low, high), Raw::Integer(value)) => {
                    assert!((low..=high).contains(value), "{}", definition.key);
                    assert!((definition.set)(&mut copy, &Raw::Integer(low)), "{}", definition.key);
                    assert!((definition.set)(&mut copy, &Raw::Integer(high)), "{}", definition.key);
                }
                (Rule::Between(low, high), Raw::Absent) => {
                    assert!((definition.set)(&mut copy, &Raw::Integer(low)), "{}", definition.key);
                    assert!((definition.set)(&mut copy, &Raw::Integer(high)), "{}", definition.key);
                }
                (Rule::Between(..), _) => panic!("{}: a range needs a number", definition.key),
                (Rule::Each { test, .. }, Raw::Text(text)) => assert!(test(text), "{}", definition.key),
                (Rule::Each { .. } | Rule::Any, _) => {}
            }
            assert!(!matches!(raw, Raw::Integer(_)) || matches!(definition.rule, Rule::Between(..)), "{}", definition.key);
        }
    }
}
