//! What a setting can hold, and how it comes from a file or from text. Ranges are the table's; types are here.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::address::{Network, Networks};

/// A value as written, before its type and range are checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Raw {
    /// Not set; only settings without a default have it.
    Absent,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A string.
    Text(String),
    /// A list of strings.
    List(Vec<String>),
}

/// The type of a setting, as an operator sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Integer,
    /// A string.
    Text,
    /// A path; a relative one starts at the working directory.
    Path,
    /// `address:port`; IPv6 in brackets; port 0 lets the kernel choose.
    Address,
    /// A list of strings; in the environment and in flags, separated by commas.
    List,
    /// A string that is never printed. It has no flag: other users of the machine can read a command line.
    Secret,
    /// One of these words.
    Word(&'static [&'static str]),
}

impl Kind {
    /// Reads text from the environment or a flag. `None`: not of this kind.
    #[must_use]
    pub fn read(self, text: &str) -> Option<Raw> {
        match self {
            Kind::Bool => text.parse().ok().map(Raw::Bool),
            Kind::Integer => text.replace('_', "").parse().ok().map(Raw::Integer),
            Kind::List => {
                Some(Raw::List(text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()))
            }
            Kind::Text | Kind::Path | Kind::Address | Kind::Secret | Kind::Word(_) => Some(Raw::Text(text.to_owned())),
        }
    }

    /// What an operator may write, without the range.
    #[must_use]
    pub fn allowed(self) -> String {
        match self {
            Kind::Bool => "true or false".to_owned(),
            Kind::Integer => "a whole number".to_owned(),
            Kind::Text | Kind::Secret => "a string".to_owned(),
            Kind::Path => "a path as a string".to_owned(),
            Kind::Address => "address:port as a string, such as \"127.0.0.1:8080\" or \"[::1]:8080\"".to_owned(),
            Kind::List => "a list of strings".to_owned(),
            Kind::Word(words) => words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", "),
        }
    }
}

/// A type that can stand in [`super::Settings`].
pub trait Value: Sized {
    /// What the operator writes.
    const KIND: Kind;
    /// The typed value; `None` if `raw` is not of this kind or does not fit.
    fn take(raw: &Raw) -> Option<Self>;
    /// The value as it would be written.
    fn show(&self) -> Raw;
}

impl Value for bool {
    const KIND: Kind = Kind::Bool;
    fn take(raw: &Raw) -> Option<Self> {
        if let Raw::Bool(value) = raw { Some(*value) } else { None }
    }
    fn show(&self) -> Raw {
        Raw::Bool(*self)
    }
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Value for $type {
            const KIND: Kind = Kind::Integer;
            fn take(raw: &Raw) -> Option<Self> {
                if let Raw::Integer(value) = raw { Self::try_from(*value).ok() } else { None }
            }
            fn show(&self) -> Raw {
                Raw::Integer(i64::try_from(*self).expect("the range of each setting ends below 2^63"))
            }
        }
    )*};
}

integers!(u8, u16, u32, u64);

impl Value for String {
    const KIND: Kind = Kind::Text;
    fn take(raw: &Raw) -> Option<Self> {
        if let Raw::Text(text) = raw { Some(text.clone()) } else { None }
    }
    fn show(&self) -> Raw {
        Raw::Text(self.clone())
    }
}

impl Value for PathBuf {
    const KIND: Kind = Kind::Path;
    fn take(raw: &Raw) -> Option<Self> {
        if let Raw::Text(text) = raw { (!text.is_empty()).then(|| text.into()) } else { None }
    }
    fn show(&self) -> Raw {
        Raw::Text(self.to_string_lossy().into_owned())
    }
}

impl Value for SocketAddr {
    const KIND: Kind = Kind::Address;
    fn take(raw: &Raw) -> Option<Self> {
        if let Raw::Text(text) = raw { text.parse().ok() } else { None }
    }
    fn show(&self) -> Raw {
        Raw::Text(self.to_string())
    }
}

impl Value for Vec<String> {
    const KIND: Kind = Kind::List;
    fn take(raw: &Raw) -> Option<Self> {
        if let Raw::List(items) = raw { Some(items.clone()) } else { None }
    }
    fn show(&self) -> Raw {
        Raw::List(self.clone())
    }
}

impl Value for Networks {
    const KIND: Kind = Kind::List;
    fn take(raw: &Raw) -> Option<Self> {
        let Raw::List(items) = raw else { return None };
        items.iter().map(|item| Network::read(item)).collect::<Option<_>>().map(Self)
    }
    fn show(&self) -> Raw {
        Raw::List(self.0.iter().map(Network::to_string).collect())
    }
}

impl<T: Value> Value for Option<T> {
    const KIND: Kind = T::KIND;
    fn take(raw: &Raw) -> Option<Self> {
        if *raw == Raw::Absent { Some(None) } else { T::take(raw).map(Some) }
    }
    fn show(&self) -> Raw {
        self.as_ref().map_or(Raw::Absent, Value::show)
    }
}

/// Key material. Never printed, not even by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Fewer bytes than this are no key for HS256 (RFC 7518 3.2: at least the size of the hash).
    pub const BYTES_MIN: usize = 32;
    /// More than this is a mistaken file, not a key.
    pub const BYTES_MAX: usize = 4096;

    /// Takes key material of [`Secret::BYTES_MIN`] to [`Secret::BYTES_MAX`] bytes; `None` outside of that.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        (Self::BYTES_MIN..=Self::BYTES_MAX).contains(&bytes.len()).then_some(Self(bytes))
    }

    /// The key material itself, for the one who signs or verifies.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

impl Value for Secret {
    const KIND: Kind = Kind::Secret;
    fn take(raw: &Raw) -> Option<Self> {
        if let Raw::Text(text) = raw { Self::new(text.clone().into_bytes()) } else { None }
    }
    fn show(&self) -> Raw {
        Raw::Absent
    }
}

macro_rules! words {
    ($(#[doc = $about:literal])+ $type:ident { $($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $type { $($(#[doc = $doc])+ $variant,)+ }

        impl $type {
            /// The word as it is written.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl Value for $type {
            const KIND: Kind = Kind::Word(&[$($word),+]);
            fn take(raw: &Raw) -> Option<Self> {
                let Raw::Text(text) = raw else { return None };
                match text.as_str() { $($word => Some(Self::$variant),)+ _ => None }
            }
            fn show(&self) -> Raw {
                Raw::Text(self.word().to_owned())
            }
        }
    };
}

words! {
    /// How a reactor waits for the kernel.
    DriverChoice {
        /// The one that our own figures favour.
        Auto = "auto",
        /// Readiness through epoll.
        Epoll = "epoll",
        /// Completions through io_uring; the start fails where the kernel does not allow it.
        Uring = "uring",
    }
}

words! {
    /// The least role that may do something.
    RoleChoice {
        /// Every member but observers.
        Member = "member",
        /// Admins and owners.
        Admin = "admin",
        /// Owners.
        Owner = "owner",
    }
}

words! {
    /// Who may watch whom.
    PresencePolicy {
        /// Users who share a conversation.
        Share = "share",
        /// Everybody everybody.
        All = "all",
    }
}

words! {
    /// Whether each reactor has a descriptor table of its own.
    PrivateFds {
        /// When the configured connections do not fit one table.
        Auto = "auto",
        /// Always.
        On = "on",
        /// Never.
        Off = "off",
    }
}

words! {
    /// The oldest version of TLS.
    TlsVersion {
        /// RFC 5246.
        Tls12 = "1.2",
        /// RFC 8446.
        Tls13 = "1.3",
    }
}

words! {
    /// Whether clients are asked for certificates.
    ClientCertificates {
        /// They are not.
        Off = "off",
        /// Who shows one must show a good one.
        Optional = "optional",
        /// Who shows none is refused.
        Required = "required",
    }
}

words! {
    /// The header in which HTTP balancers name the client.
    ForwardedHeader {
        /// What most of them write.
        XForwardedFor = "x-forwarded-for",
        /// RFC 7239.
        Forwarded = "forwarded",
        /// None: such headers are not looked at.
        None = "none",
    }
}

words! {
    /// The least important lines that are still written.
    LogLevel {
        /// What needs an operator.
        Error = "error",
        /// What may come to need one.
        Warn = "warn",
        /// Starts, stops and changes.
        Info = "info",
        /// Single connections.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

words! {
    /// The shape of a log line.
    LogFormat {
        /// One JSON object per line.
        Json = "json",
        /// For reading in a terminal.
        Text = "text",
    }
}
