//! The layers, one over the other: default < file < environment < flag. Every value is judged, then their relations.

use super::file;
use super::problem::{Place, Problem, beginning, nearest};
use super::relations::{self, Conflict};
use super::settings::{DEFINITIONS, Definition, Rule, Settings};
use super::value::{Kind, Raw};

/// What is laid over the defaults, lowest first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layers<'a> {
    /// Name and text of the file.
    pub file: Option<(&'a str, &'a str)>,
    /// Names and values; those that do not begin with `TIDEGATE_` are passed over.
    pub environment: &'a [(String, String)],
    /// Keys of settings and the text behind their flags.
    pub flags: &'a [(&'static str, String)],
}

/// Settings that passed every check.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// What an operator should know all the same.
    pub warnings: Vec<String>,
}

/// Name of the variable of a key: `store.level` has `TIDEGATE_STORE_LEVEL`.
#[must_use]
pub fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_uppercase())
}

/// Name of the flag of a key, without the two dashes: `store.level` has `store-level`. `None`: it may not stand on a command line.
#[must_use]
pub fn flag(definition: &Definition) -> Option<String> {
    (definition.kind != Kind::Secret).then(|| definition.key.replace(['.', '_'], "-"))
}

/// What may be written for a setting: its range, or its type where that says all.
#[must_use]
pub fn allowed(definition: &Definition) -> String {
    match definition.rule {
        Rule::Between(low, high) => format!("{low} to {high}"),
        Rule::Each { allowed, .. } => allowed.to_owned(),
        Rule::Any => definition.kind.allowed(),
    }
}

/// Joins the layers.
///
/// # Errors
/// All mistakes of all layers, in the order of the layers.
#[expect(clippy::indexing_slicing, reason = "an index is that of a row of the table")]
pub fn load(layers: Layers<'_>) -> Result<Loaded, Vec<Problem>> {
    let mut join = Join::default();
    let mut warnings = Vec::new();
    let mut has_gaps = false;
    if let Some((name, text)) = layers.file {
        let parsed = file::parse(name, text);
        join.problems = parsed.problems;
        has_gaps = parsed.has_gaps;
        for entry in parsed.entries {
            join.take(entry.index, entry.raw, entry.place);
        }
        join.problems.sort_by_key(|problem| problem.place.position());
    }
    for (name, text) in layers.environment.iter().filter(|(name, _)| is_ours(name)) {
        match DEFINITIONS.iter().position(|definition| variable(definition.key) == *name) {
            Some(index) => join.take_text(index, text, Place::Environment(name.clone())),
            None => warnings.push(unknown_variable(name)),
        }
    }
    for (key, text) in layers.flags {
        let index = index_of(key);
        let name = flag(&DEFINITIONS[index]).unwrap_or_default();
        join.take_text(index, text, Place::Flag(format!("--{name}")));
    }
    // A line that could not be read may hold any key, so what the others say together means nothing yet.
    if !has_gaps {
        join.relate();
    }
    if join.problems.is_empty() {
        warnings.extend(relations::warnings(&join.settings));
        return Ok(Loaded { settings: join.settings, warnings });
    }
    Err(join.problems)
}

/// What all variables begin with.
const PREFIX: &str = "TIDEGATE_";

/// Variables of the program that are no settings: the file to read.
const NOT_SETTINGS: &[&str] = &["TIDEGATE_CONFIG"];

struct Join {
    settings: Settings,
    /// Of each setting, where its value came from.
    places: Vec<Place>,
    /// Of each setting, whether some layer was wrong about it.
    is_bad: Vec<bool>,
    problems: Vec<Problem>,
}

impl Default for Join {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            places: vec![Place::Default; DEFINITIONS.len()],
            is_bad: vec![false; DEFINITIONS.len()],
            problems: Vec::new(),
        }
    }
}

#[expect(clippy::indexing_slicing, reason = "an index is that of a row of the table, and both lists are as long as the table")]
impl Join {
    fn take_text(&mut self, index: usize, text: &str, place: Place) {
        let raw = DEFINITIONS[index].kind.read(text);
        // A text that is no number is still worth a suggestion, so it is judged as the text it is.
        self.take(index, Ok(raw.unwrap_or_else(|| Raw::Text(text.to_owned()))), place);
    }

    fn take(&mut self, index: usize, raw: Result<Raw, &'static str>, place: Place) {
        let definition = &DEFINITIONS[index];
        let (found, remedy) = match raw {
            Ok(raw) if passes(definition, &raw) && (definition.set)(&mut self.settings, &raw) => {
                self.places[index] = place;
                return;
            }
            Ok(raw) => (show(definition, &raw), suggestion(definition, &raw)),
            Err(kind) => (kind.to_owned(), String::new()),
        };
        self.is_bad[index] = true;
        let found = format!("{} is {found}", definition.key);
        self.problems.push(Problem { place, found, allowed: allowed(definition), remedy });
    }

    fn relate(&mut self) {
        for conflict in relations::conflicts(&self.settings) {
            // Between values of which one could not be taken, the culprit is known already.
            if conflict.keys.iter().any(|key| self.is_bad[index_of(key)]) {
                continue;
            }
            let places = conflict.keys.iter().map(|key| &self.places[index_of(key)]);
            let place = places.clone().find(|place| **place != Place::Default).cloned().unwrap_or(Place::Default);
            let Conflict { found, allowed, remedy, .. } = conflict;
            self.problems.push(Problem { place, found, allowed, remedy });
        }
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX) && !NOT_SETTINGS.contains(&name)
}

/// Place of a key that comes from the table itself.
#[expect(clippy::expect_used, reason = "whoever calls names a key of the table")]
fn index_of(key: &str) -> usize {
    DEFINITIONS.iter().position(|definition| definition.key == key).expect("the key is one of the table")
}

fn passes(definition: &Definition, raw: &Raw) -> bool {
    match (definition.rule, raw) {
        (Rule::Between(low, high), Raw::Integer(value)) => (low..=high).contains(value),
        (Rule::Each { test, .. }, Raw::Text(text)) => test(text),
        (Rule::Each { test, .. }, Raw::List(items)) => items.iter().all(|item| test(item)),
        // A value of another type is left to the type.
        _ => true,
    }
}

/// The value as the operator wrote it, but never a secret.
fn show(definition: &Definition, raw: &Raw) -> String {
    match raw {
        Raw::Text(text) if definition.kind == Kind::Secret => format!("a string of {} bytes", text.len()),
        _ if definition.kind == Kind::Secret => "not a string".to_owned(),
        Raw::Absent => "absent".to_owned(),
        Raw::Bool(value) => value.to_string(),
        Raw::Integer(value) => value.to_string(),
        Raw::Text(text) => quoted(text),
        Raw::List(items) => match definition.rule {
            Rule::Each { test, .. } => items
                .iter()
                .find(|item| !test(item))
                .map_or_else(|| "a list".to_owned(), |item| format!("a list with {}", quoted(item))),
            Rule::Any | Rule::Between(..) => "a list".to_owned(),
        },
    }
}

/// In quotes, escaped, at most 80 characters: what is wrong may also be long.
fn quoted(text: &str) -> String {
    let (text, dots) = beginning(text);
    format!("{text:?}{dots}")
}

fn suggestion(definition: &Definition, raw: &Raw) -> String {
    let tried = match (definition.kind, raw) {
        (Kind::Integer, Raw::Integer(value)) => match definition.rule {
            Rule::Between(low, high) => Some((*value).clamp(low, high).to_string()),
            Rule::Any | Rule::Each { .. } => None,
        },
        (Kind::Integer, Raw::Text(text)) => with_unit(definition.key, text).map(|value| value.to_string()),
        (Kind::Bool, Raw::Text(text)) => match text.to_lowercase().as_str() {
            "yes" | "on" | "true" | "1" => Some("true".to_owned()),
            "no" | "off" | "false" | "0" => Some("false".to_owned()),
            _ => None,
        },
        (Kind::Bool, Raw::Integer(value)) => Some((*value != 0).to_string()),
        (Kind::Word(words), Raw::Text(text)) => nearest(text, words.iter().copied()).map(quoted),
        (Kind::Address, Raw::Text(text)) => address(text).map(|address| quoted(&address)),
        (Kind::Address, Raw::Integer(port)) if u16::try_from(*port).is_ok() => Some(format!("\"127.0.0.1:{port}\"")),
        (Kind::List, Raw::Text(text)) => Some(format!("[{}]", quoted(text))),
        _ => None,
    };
    tried.map_or_else(String::new, |value| format!("try {value}"))
}

/// Reads a number with a unit, such as "30s" or "64 KiB", in the unit that the key ends with.
fn with_unit(key: &str, text: &str) -> Option<i64> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit() && letter != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let value: i64 = number.replace('_', "").parse().ok()?;
    let unit = unit.trim().to_lowercase();
    if unit.is_empty() {
        return Some(value);
    }
    let (family, scale) = UNITS.iter().find_map(|(name, family, scale)| (*name == unit).then_some((*family, *scale)))?;
    let own = if key.contains("bytes") { 1 } else { UNITS.iter().find(|(name, ..)| key.ends_with(&format!("_{name}")))?.2 };
    let own_family = if key.contains("bytes") { Family::Bytes } else { Family::Time };
    (family == own_family).then(|| value.checked_mul(scale).map(|value| value / own))?
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Time,
    Bytes,
}

/// Units an operator may write behind a number, in microseconds and in bytes.
const UNITS: &[(&str, Family, i64)] = &[
    ("us", Family::Time, 1),
    ("ms", Family::Time, 1_000),
    ("s", Family::Time, 1_000_000),
    ("sec", Family::Time, 1_000_000),
    ("m", Family::Time, 60_000_000),
    ("min", Family::Time, 60_000_000),
    ("h", Family::Time, 3_600_000_000),
    ("d", Family::Time, 86_400_000_000),
    ("b", Family::Bytes, 1),
    ("k", Family::Bytes, 1 << 10),
    ("kb", Family::Bytes, 1_000),
    ("kib", Family::Bytes, 1 << 10),
    ("mb", Family::Bytes, 1_000_000),
    ("mib", Family::Bytes, 1 << 20),
    ("gb", Family::Bytes, 1_000_000_000),
    ("gib", Family::Bytes, 1 << 30),
];

/// What was probably meant by an address that is none.
fn address(text: &str) -> Option<String> {
    let text = text.trim();
    let candidates =
        [text.replace("localhost", "127.0.0.1"), format!("127.0.0.1{text}"), format!("127.0.0.1:{text}"), format!("{text}:8080")];
    candidates.into_iter().find(|candidate| candidate.parse::<std::net::SocketAddr>().is_ok())
}

fn unknown_variable(name: &str) -> String {
    let names: Vec<String> = DEFINITIONS.iter().map(|definition| variable(definition.key)).collect();
    let lower: Vec<String> = names.iter().map(|name| name.to_lowercase()).collect();
    // Only a warning: container platforms invent variables from the name of a service, such as TIDEGATE_PORT.
    let meant = nearest(name, lower.iter().map(String::as_str)).map(str::to_uppercase);
    meant.map_or_else(
        || format!("environment {name}: no setting has this variable; it is ignored"),
        |meant| format!("environment {name}: no setting has this variable; it is ignored; did you mean {meant}?"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_file(text: &str) -> Result<Settings, Vec<String>> {
        let layers = Layers { file: Some(("t.toml", text)), ..Layers::default() };
        load(layers).map(|loaded| loaded.settings).map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    /// Nothing said is the defaults, and an empty file says nothing.
    #[test]
    fn no_layer_is_the_defaults() {
        assert_eq!(of_file(""), Ok(Settings::default()));
        assert_eq!(of_file("# nothing\n[store]\n"), Ok(Settings::default()));
    }

    /// Each layer wins over those below it and leaves the rest alone.
    #[test]
    fn a_higher_layer_wins() {
        let file = "node = \"f\"\n[store]\nreaders = 3\nfree_percent_min = 10\ncache_bytes = 2097152\n";
        let environment = pairs(&[("TIDEGATE_STORE_READERS", "4"), ("TIDEGATE_STORE_FREE_PERCENT_MIN", "20"), ("HOME", "/root")]);
        let flags = [("store.free_percent_min", "30".to_owned())];
        let loaded = load(Layers { file: Some(("t", file)), environment: &environment, flags: &flags }).unwrap();
        let settings = loaded.settings;
        assert_eq!(settings.node, "f");
        assert_eq!(settings.store.cache_bytes, Some(2_097_152));
        assert_eq!(settings.store.readers, 4);
        assert_eq!(settings.store.free_percent_min, 30);
        assert_eq!(settings.store.level, 2);
        assert_eq!(loaded.warnings, Vec::<String>::new());
    }

    /// Every kind of value can be written in a file, a variable and a flag, and means the same.
    #[test]
    fn every_kind_is_read_from_every_layer() {
        let file = "data_dir = \"/d\"\norigins = [\"https://a.example\", \"http://localhost:3000\"]\nlisten = \"[::1]:0\"\n\
            [admin]\nallow_remote = true\n[log]\nlevel = \"debug\"\n[store]\nreaders = 7\n[auth]\nsecret_file = \"/s\"";
        let values = [
            ("data_dir", "/d"),
            ("origins", "https://a.example, http://localhost:3000"),
            ("listen", "[::1]:0"),
            ("admin.allow_remote", "true"),
            ("log.level", "debug"),
            ("store.readers", "7"),
            ("auth.secret_file", "/s"),
        ];
        let environment: Vec<_> = values.iter().map(|(key, text)| (variable(key), (*text).to_owned())).collect();
        let flags: Vec<_> = values.iter().map(|(key, text)| (*key, (*text).to_owned())).collect();
        let from_file = of_file(file).unwrap();
        assert_ne!(from_file, Settings::default());
        let from_environment = load(Layers { environment: &environment, ..Layers::default() }).unwrap();
        let from_flags = load(Layers { flags: &flags, ..Layers::default() }).unwrap();
        assert_eq!(from_environment.settings, from_file);
        assert_eq!(from_flags.settings, from_file);
    }

    /// A table may be written in any of TOML's ways.
    #[test]
    fn tables_may_be_inline_or_dotted() {
        let plain = of_file("[store]\nreaders = 7\nlevel = 1").unwrap();
        assert_eq!(of_file("store = { readers = 7, level = 1 }").unwrap(), plain);
        assert_eq!(of_file("store.readers = 7\nstore.level = 1").unwrap(), plain);
    }

    /// One line per class of mistake: what is reported, with line, column, range and suggestion.
    #[test]
    fn each_mistake_is_told_with_its_place() {
        let told = [
            ("lsten = \"127.0.0.1:1\"", "t.toml:1:1: unknown key lsten; did you mean listen?"),
            ("\n  colour = 1", "t.toml:2:3: unknown key colour; `tidegate default-config` lists all keys"),
            ("\"a\\nb\" = 1", "t.toml:1:1: unknown key a\\nb; `tidegate default-config` lists all keys"),
            ("[store]\nlevle = 2", "t.toml:2:1: unknown key store.levle; did you mean store.level?"),
            ("segment_bytes = 1", "t.toml:1:1: unknown key segment_bytes; did you mean store.segment_bytes?"),
            ("drain.window = 1", "t.toml:1:7: unknown key drain.window; did you mean drain.window_ms?"),
            (
                "[stroe]\nlevel = 2",
                "t.toml:1:2: unknown table [stroe]; allowed: admin, proxy, auth, protocol, state, groups, login, limits, reactor, uring, tls, \
                store, retention, drain, log; did you mean [store]?",
            ),
            (
                "[\"a\\nb\"]",
                "t.toml:1:2: unknown table [a\\nb]; allowed: admin, proxy, auth, protocol, state, groups, login, limits, reactor, uring, tls, \
                store, retention, drain, log",
            ),
            ("store = 7", "t.toml:1:9: store is a number; allowed: a table; write [store] on a line of its own"),
            (
                "[[store]]\nlevel = 2",
                "t.toml:1:1: store is a list of tables; allowed: a table; write [store] on a line of its own",
            ),
            ("[store]\n\nlevel = 7", "t.toml:3:9: store.level is 7; allowed: 0 to 2; try 2"),
            ("[store]\nlevel = -1", "t.toml:2:9: store.level is -1; allowed: 0 to 2; try 0"),
            ("[store]\nlevel = 2.0", "t.toml:2:9: store.level is a number with a fraction; allowed: 0 to 2"),
            ("[store]\nlevel = 2026-01-01", "t.toml:2:9: store.level is a date; allowed: 0 to 2"),
            ("[store]\nlevel = \"2\"", "t.toml:2:9: store.level is \"2\"; allowed: 0 to 2; try 2"),
            ("[store.level]\nx = 1", "t.toml:1:1: store.level is a table; allowed: 0 to 2"),
            ("drain.window_ms = \"30s\"", "t.toml:1:19: drain.window_ms is \"30s\"; allowed: 0 to 3600000; try 30000"),
            (
                "store.cache_bytes = \"64 MiB\"",
                "t.toml:1:21: store.cache_bytes is \"64 MiB\"; allowed: 1048576 to 1099511627776; \
                try 67108864",
            ),
            ("admin.allow_remote = \"yes\"", "t.toml:1:22: admin.allow_remote is \"yes\"; allowed: true or false; try true"),
            ("driver = \"epol\"", "t.toml:1:10: driver is \"epol\"; allowed: \"auto\", \"epoll\", \"uring\"; try \"epoll\""),
            (
                "listen = \"localhost:80\"",
                "t.toml:1:10: listen is \"localhost:80\"; allowed: address:port as a string, such as \
                \"127.0.0.1:8080\" or \"[::1]:8080\"; try \"127.0.0.1:80\"",
            ),
            (
                "listen = 80",
                "t.toml:1:10: listen is 80; allowed: address:port as a string, such as \
                \"127.0.0.1:8080\" or \"[::1]:8080\"; try \"127.0.0.1:80\"",
            ),
            (
                "path = \"ws\"",
                "t.toml:1:8: path is \"ws\"; allowed: a path from \"/\" on, 1 to 256 printable characters, \
                without ? # and blanks",
            ),
            (
                "origins = \"https://a\"",
                "t.toml:1:11: origins is \"https://a\"; allowed: scheme://host or scheme://host:port in \
                lower case, without a path; try [\"https://a\"]",
            ),
            (
                "origins = [\"https://ok\", \"https://a/b\"]",
                "t.toml:1:11: origins is a list with \"https://a/b\"; allowed: \
                scheme://host or scheme://host:port in lower case, without a path",
            ),
            (
                "origins = [1]",
                "t.toml:1:11: origins is a list; allowed: scheme://host or scheme://host:port in lower case, \
                without a path",
            ),
            ("auth.secret = \"hunter2\"", "t.toml:1:15: auth.secret is a string of 7 bytes; allowed: 32 to 4096 bytes"),
            ("data_dir = \"\"", "t.toml:1:12: data_dir is \"\"; allowed: a path as a string"),
            (
                "node = \"\u{e4}\u{e4}\"\nnode2 = 1",
                "t.toml:1:8: node is \"\u{e4}\u{e4}\"; allowed: 1 to 64 bytes of A-Z a-z 0-9 _ . : @ -",
            ),
        ];
        for (text, expected) in told {
            let problems = of_file(text).expect_err(text);
            assert_eq!(problems[0], expected, "{text}");
        }
        // Columns are counted in characters, not in bytes.
        assert_eq!(
            of_file("store = { \"\u{e4}\" = 1, level = 9 }").unwrap_err()[1],
            "t.toml:1:28: store.level is 9; allowed: 0 to 2; try 2"
        );
    }

    /// Mistakes of all classes and layers come together: also lines that are not TOML do not hide the rest.
    #[test]
    fn all_mistakes_come_at_once() {
        let text = "listen = 127.0.0.1:80\nnode = \"ok\nreaktors = 2\n[store]\nlevel = 9\nlevel = 1\nreaders = 0\n";
        let environment = pairs(&[("TIDEGATE_LOG_LEVEL", "loud"), ("TIDEGATE_STORE_READERS", "0")]);
        let flags = [("reactors", "many".to_owned())];
        let problems = load(Layers { file: Some(("t", text)), environment: &environment, flags: &flags }).unwrap_err();
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let starts = [
            "t:1:15: not TOML",
            "t:2:",
            "t:3:1: unknown key reaktors; did you mean reactors?",
            "t:5:9: store.level is 9",
            "t:6:1: not TOML: duplicate key",
            "t:7:11: store.readers is 0",
            "environment TIDEGATE_LOG_LEVEL: log.level is \"loud\"",
            "environment TIDEGATE_STORE_READERS: store.readers is 0; allowed: 1 to 64; try 1",
            "flag --reactors: reactors is \"many\"; allowed: 0 to 1024",
        ];
        assert_eq!(told.len(), starts.len(), "{told:#?}");
        for (line, start) in told.iter().zip(starts) {
            assert!(line.starts_with(start), "{line} should begin with {start}");
        }
    }

    /// A file of nothing but mistakes ends, and a broken table header does not blame its keys.
    #[test]
    fn hopeless_files_end() {
        assert_eq!(of_file(&"=\n".repeat(1000)).unwrap_err().len(), 32);
        let problems = of_file("[store\nlevel = 2\n").unwrap_err();
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with("t.toml:1:"), "{problems:?}");
        for text in ["\"\"\"", "a = [", "a = {", "\0", "\u{feff}", "[", "]", "\r", "a.b.c.d = 1", "[a.b]\n[a.b]"] {
            let _ = of_file(text);
        }
    }

    /// An unknown variable is named and ignored: a container platform may have set it. The file's own variable is known.
    #[test]
    fn an_unknown_variable_is_a_warning() {
        let environment =
            pairs(&[("TIDEGATE_STORE_LEVLE", "1"), ("TIDEGATE_PORT", "tcp://10.0.0.1"), ("TIDEGATE_CONFIG", "/etc/t")]);
        let loaded = load(Layers { environment: &environment, ..Layers::default() }).unwrap();
        assert_eq!(loaded.settings, Settings::default());
        assert_eq!(loaded.warnings.len(), 2);
        assert!(loaded.warnings[0].ends_with("did you mean TIDEGATE_STORE_LEVEL?"), "{:?}", loaded.warnings);
    }

    /// No two settings share a variable or a flag, and none takes a name of the program's own flags.
    #[test]
    fn names_are_unique() {
        let mut variables: Vec<String> = DEFINITIONS.iter().map(|definition| variable(definition.key)).collect();
        let mut flags: Vec<String> = DEFINITIONS.iter().filter_map(flag).collect();
        flags.extend(["config", "echo", "accept-loss", "ready-file", "help", "version"].map(str::to_owned));
        variables.extend(NOT_SETTINGS.iter().map(|name| (*name).to_owned()));
        for names in [&mut variables, &mut flags] {
            let count = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count);
        }
        assert_eq!(variable("store.level"), "TIDEGATE_STORE_LEVEL");
        assert!(DEFINITIONS.iter().all(|definition| (definition.key == "auth.secret") == flag(definition).is_none()));
    }
}
