//! The annotated file of all defaults, and what `--help` says about a setting.

use super::load::{allowed, flag, variable};
use super::settings::{DEFINITIONS, Definition, SECTIONS, Settings};
use super::value::{Kind, Raw};

/// A configuration file with every setting at its default, and beside each its meaning, range and other names.
///
/// Reading it back gives the defaults. A setting without a default stands as a comment.
#[must_use]
pub fn default_file() -> String {
    let mut file = String::from(HEAD);
    let defaults = Settings::default();
    let mut section = "";
    for definition in DEFINITIONS {
        let (own, name) = definition.key.rsplit_once('.').unwrap_or(("", definition.key));
        if own != section {
            let about = SECTIONS.iter().find(|(name, _)| *name == own).map_or("", |(_, about)| about);
            line(&mut file, &format!("\n# {about}\n[{own}]"));
            section = own;
        }
        line(&mut file, "");
        for text in definition.text {
            line(&mut file, &format!("# {}", text.trim()));
        }
        line(&mut file, &format!("# Allowed: {}.", allowed(definition)));
        let flag = flag(definition).map_or_else(String::new, |flag| format!(", --{flag}"));
        line(&mut file, &format!("# Also: {}{flag}", variable(definition.key)));
        match (definition.value)(&defaults) {
            Raw::Absent if definition.kind == Kind::Integer => line(&mut file, &format!("# {name} = 0")),
            Raw::Absent => line(&mut file, &format!("# {name} = \"\"")),
            raw => line(&mut file, &format!("{name} = {}", toml(&raw))),
        }
    }
    file
}

/// One paragraph for `--help`: the first line of its text, range and default.
#[must_use]
pub fn help(definition: &Definition) -> String {
    let text = definition.text.first().map_or("", |text| text.trim());
    let default = match (definition.value)(&Settings::default()) {
        Raw::Absent => "none".to_owned(),
        raw => toml(&raw).trim_matches('"').to_owned(),
    };
    format!("{text} Allowed: {}. Default: {default}", allowed(definition))
}

/// Everything that is not as the defaults have it, for the line at start; a secret is never among it.
#[must_use]
pub fn changes(settings: &Settings) -> String {
    let defaults = Settings::default();
    let changed = DEFINITIONS.iter().map(|definition| (definition, (definition.value)(settings)));
    let changed = changed.filter(|(definition, raw)| *raw != (definition.value)(&defaults));
    changed.map(|(definition, raw)| format!("{} = {}", definition.key, toml(&raw))).collect::<Vec<_>>().join(", ")
}

const HEAD: &str = "\
# Configuration of tidegate: every setting with its default.
#
# A value is taken from the highest layer that has it: default, this file, a variable of the environment, a flag.
# Units stand in the names. Unknown keys are mistakes. `tidegate check-config FILE` tells all mistakes at once.
# A change takes effect at the next start.
";

fn line(file: &mut String, text: &str) {
    file.push_str(text);
    file.push('\n');
}

fn toml(raw: &Raw) -> String {
    match raw {
        Raw::Absent => String::new(),
        Raw::Bool(value) => value.to_string(),
        Raw::Integer(value) => value.to_string(),
        Raw::Text(text) => toml_text(text),
        Raw::List(items) => format!("[{}]", items.iter().map(|item| toml_text(item)).collect::<Vec<_>>().join(", ")),
    }
}

/// A basic string of TOML: quotes, backslashes and control characters escaped.
fn toml_text(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            control if control.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(control))),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layers, load};

    fn read(text: &str) -> Settings {
        load(Layers { file: Some(("t", text)), ..Layers::default() }).unwrap().settings
    }

    /// The generated file is accepted and means the defaults; it names every key, also in its variables and flags.
    #[test]
    fn the_default_file_is_the_defaults() {
        let file = default_file();
        assert_eq!(read(&file), Settings::default());
        for definition in DEFINITIONS {
            assert!(file.contains(&variable(definition.key)), "{}", definition.key);
            assert!(flag(definition).is_none_or(|flag| file.contains(&format!("--{flag}"))), "{}", definition.key);
        }
    }

    /// A string written is the string read, whatever is in it.
    #[test]
    fn a_written_string_reads_back() {
        for text in ["plain", "with \"quotes\"", "back\\slash", "line\nfeed \u{1} \u{7f}", "\u{e4}\u{1f300}"] {
            let settings = Settings { data_dir: text.into(), ..Settings::default() };
            assert_eq!(read(&changes(&settings)), settings);
        }
        let settings =
            Settings { origins: vec!["https://a.example".to_owned(), "http://localhost:1".to_owned()], ..Settings::default() };
        assert_eq!(read(&changes(&settings)), settings);
        assert_eq!(changes(&Settings::default()), "");
    }

    /// A secret appears neither in the line at start nor in any debug output.
    #[test]
    fn a_secret_is_never_shown() {
        let settings = read("auth.secret = \"correct-horse-battery-staple-4711-x\"");
        assert!(settings.auth.secret.is_some());
        assert!(!changes(&settings).contains("horse"));
        assert!(!format!("{settings:?}").contains("horse"));
    }
}
