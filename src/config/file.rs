//! A configuration file: TOML with the place of every value.                                          [toml_edit]
//!
//! The parser stops at the first line it cannot read. An operator wants all mistakes at once, so that line is blanked, which
//! moves nothing, and the rest is read again.

use std::ops::Range;

use toml_edit::{Document, Item, TableLike};

use super::problem::{Place, Problem, beginning, nearest};
use super::settings::{DEFINITIONS, SECTIONS};
use super::value::{Kind, Raw};

/// A value of a file for the setting at `index` of the table.
#[derive(Debug)]
pub struct Entry {
    /// Place in [`DEFINITIONS`].
    pub index: usize,
    /// As written; `Err`: what it is instead, of a type no setting has.
    pub raw: Result<Raw, &'static str>,
    /// Where the value stands.
    pub place: Place,
}

/// What a file says.
#[derive(Debug, Default)]
pub struct Parsed {
    /// Settings it has.
    pub entries: Vec<Entry>,
    /// What could not be read, and keys nobody knows.
    pub problems: Vec<Problem>,
    /// Whether lines had to be left out: what the rest says together means nothing then.
    pub has_gaps: bool,
}

/// Reads the text of the file called `name`. Values are not judged yet.
#[must_use]
pub fn parse(name: &str, text: &str) -> Parsed {
    let mut reader = Reader { name, text, parsed: Parsed::default() };
    let mut readable = text.to_owned();
    for _ in 0..SYNTAX_PROBLEMS_MAX {
        let error = match Document::parse(readable.as_str()) {
            Ok(document) => {
                reader.root(document.as_table());
                break;
            }
            Err(error) => error,
        };
        let span = error.span().unwrap_or(0..0);
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        reader.problem(Some(span.clone()), format!("not TOML: {message}"), "", String::new());
        reader.parsed.has_gaps = true;
        let line = line_of(&readable, span.start);
        // Without its header, keys of a table would be taken for those of another; and a blank line cannot be the culprit.
        let culprit = readable.get(line.clone()).unwrap_or_default();
        if culprit.trim_start().starts_with('[') || culprit.trim().is_empty() {
            break;
        }
        let blank = " ".repeat(line.len());
        readable.replace_range(line, &blank);
    }
    reader.parsed
}

/// Lines that cannot be read, in one run.
const SYNTAX_PROBLEMS_MAX: usize = 32;

struct Reader<'a> {
    name: &'a str,
    text: &'a str,
    parsed: Parsed,
}

impl Reader<'_> {
    fn root(&mut self, root: &toml_edit::Table) {
        for (key, item) in root.iter() {
            let key_span = root.key(key).and_then(toml_edit::Key::span);
            let is_section = SECTIONS.iter().any(|(section, _)| *section == key);
            match item.as_table_like() {
                Some(table) if is_section => self.section(key, table),
                Some(_) if index_of(key).is_none() => self.unknown_section(key, key_span),
                None if is_section => {
                    let found = format!("{key} is {}", kind_of(item));
                    self.problem(item.span().or(key_span), found, "a table", format!("write [{key}] on a line of its own"));
                }
                _ => self.value(key, key_span, item),
            }
        }
    }

    fn section(&mut self, section: &str, table: &dyn TableLike) {
        for (key, item) in table.iter() {
            let key_span = table.key(key).and_then(toml_edit::Key::span);
            self.value(&format!("{section}.{key}"), key_span, item);
        }
    }

    fn value(&mut self, key: &str, key_span: Option<Range<usize>>, item: &Item) {
        let found = DEFINITIONS.iter().enumerate().find(|(_, definition)| definition.key == key);
        let Some((index, definition)) = found else { return self.unknown_key(key, key_span) };
        let raw = raw_of(item, definition.kind).ok_or(kind_of(item));
        let place = self.place(item.span().or(key_span));
        self.parsed.entries.push(Entry { index, raw, place });
    }

    fn unknown_key(&mut self, key: &str, span: Option<Range<usize>>) {
        let keys = DEFINITIONS.iter().map(|definition| definition.key);
        let remedy = nearest(key, keys)
            .map_or_else(|| "`tidegate default-config` lists all keys".to_owned(), |meant| format!("did you mean {meant}?"));
        self.problem(span, format!("unknown key {}", shown(key)), "", remedy);
    }

    fn unknown_section(&mut self, section: &str, span: Option<Range<usize>>) {
        let sections = SECTIONS.iter().map(|(section, _)| *section);
        let names = SECTIONS.iter().map(|(section, _)| *section).collect::<Vec<_>>().join(", ");
        let remedy = nearest(section, sections).map_or_else(String::new, |meant| format!("did you mean [{meant}]?"));
        self.problem(span, format!("unknown table [{}]", shown(section)), &names, remedy);
    }

    fn problem(&mut self, span: Option<Range<usize>>, found: String, allowed: &str, remedy: String) {
        let place = self.place(span);
        self.parsed.problems.push(Problem { place, found, allowed: allowed.to_owned(), remedy });
    }

    fn place(&self, span: Option<Range<usize>>) -> Place {
        let at = span.map_or(0, |span| span.start);
        let line = line_of(self.text, at);
        let (before, after) = self.text.split_at_checked(line.start).unwrap_or_default();
        let number = before.matches('\n').count() + 1;
        let column = after.char_indices().take_while(|(offset, _)| line.start + offset < at).count() + 1;
        Place::File { name: self.name.to_owned(), line: number, column }
    }
}

/// The bytes of the line around `at`, without its line feed.
fn line_of(text: &str, at: usize) -> Range<usize> {
    let at = at.min(text.len());
    let (before, after) = text.as_bytes().split_at(at);
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |feed| feed + 1);
    let end = after.iter().position(|byte| *byte == b'\n').map_or(text.len(), |feed| at + feed);
    start..end
}

/// A key as it is told: TOML lets a quoted one be of anything, and a line of ours stays one line.
fn shown(key: &str) -> String {
    let (key, dots) = beginning(key);
    format!("{}{dots}", key.escape_debug())
}

fn index_of(key: &str) -> Option<usize> {
    DEFINITIONS.iter().position(|definition| definition.key == key)
}

fn raw_of(item: &Item, kind: Kind) -> Option<Raw> {
    let value = item.as_value()?;
    if let Some(items) = value.as_array() {
        let texts: Option<Vec<String>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
        return texts.map(Raw::List).filter(|_| kind == Kind::List);
    }
    let text = value.as_str().map(|text| Raw::Text(text.to_owned()));
    text.or_else(|| value.as_integer().map(Raw::Integer)).or_else(|| value.as_bool().map(Raw::Bool))
}

fn kind_of(item: &Item) -> &'static str {
    match item.type_name() {
        "float" => "a number with a fraction",
        "array" => "a list",
        "table" | "inline table" => "a table",
        "array of tables" => "a list of tables",
        "string" => "a string",
        "integer" => "a number",
        "boolean" => "true or false",
        "datetime" => "a date",
        _ => "something else",
    }
}
