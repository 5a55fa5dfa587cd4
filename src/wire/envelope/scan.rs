//! A JSON scanner (RFC 8259) that borrows. It exists because the contract tells apart what a general parser reports as one: a line
//! that is not JSON (1001), and a lone surrogate, a `1.0` or a wrong type in a field that the frame has (1002); the same in a field
//! that the frame does not have is ignored.
//!
//! A line is walked once: the grammar is checked to the end, and each known key keeps where its value lies. Values are judged only
//! when a frame asks for them. Lists are walked again by [`Items`]. Nothing recurses: containers are kept on a stack of bits.

use std::borrow::Cow;

use super::frames::Fault;
use crate::limits::JSON_DEPTH_MAX;

/// What a key has, with the grammar checked and nothing else.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    /// The key is not there.
    Absent,
    /// An integer without sign, fraction or exponent that fits 64 bits.
    Number(u64),
    /// A string without escapes, quotes taken off.
    Text(&'a str),
    /// A string with escapes, as it stands; [`unescape`] may still find a lone surrogate.
    Escaped(&'a str),
    /// `[...]` as it stands.
    List(&'a str),
    /// `{...}` as it stands.
    Object(&'a str),
    /// Anything else: no field is written so.
    Other,
}

/// The line is not JSON.
#[derive(Debug)]
pub(super) struct NotJson;

impl From<NotJson> for Fault {
    fn from(_: NotJson) -> Self {
        Self::malformed("not a JSON object")
    }
}

/// Calls `member` with every key and value of the object that `text` is, and nothing but white space around it.
pub(super) fn object<'a>(text: &'a str, mut member: impl FnMut(&str, Value<'a>)) -> Result<(), NotJson> {
    let mut scanner = Scanner { text, at: 0 };
    scanner.space();
    scanner.expect(b'{')?;
    scanner.space();
    if !scanner.take(b'}') {
        loop {
            let key = scanner.key()?;
            let value = scanner.value()?;
            match key {
                Value::Text(key) => member(key, value),
                // A key that is no Unicode is nobody's.
                Value::Escaped(key) => unescape(key).map(|key| member(&key, value)).unwrap_or_default(),
                _ => return Err(NotJson),
            }
            scanner.space();
            if scanner.take(b'}') {
                break;
            }
            scanner.expect(b',')?;
            scanner.space();
        }
    }
    scanner.space();
    if scanner.at == text.len() { Ok(()) } else { Err(NotJson) }
}

/// The values of a list that [`object`] has walked already.
pub(super) struct Items<'a>(Option<Scanner<'a>>);

impl<'a> Items<'a> {
    pub(super) fn new(list: &'a str) -> Self {
        Self(Some(Scanner { text: list, at: 0 }))
    }

    fn step(scanner: &mut Scanner<'a>) -> Result<Option<Value<'a>>, NotJson> {
        // Before the first item stands the bracket, before any other a comma.
        if scanner.at == 0 {
            scanner.expect(b'[')?;
            scanner.space();
            if scanner.take(b']') {
                return Ok(None);
            }
        } else {
            scanner.space();
            if scanner.take(b']') {
                return Ok(None);
            }
            scanner.expect(b',')?;
            scanner.space();
        }
        scanner.value().map(Some)
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<Value<'a>, NotJson>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = Self::step(self.0.as_mut()?).transpose();
        if !matches!(item, Some(Ok(_))) {
            self.0 = None;
        }
        item
    }
}

/// The characters of an escaped string. `None`: half of a surrogate pair.
pub(super) fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        out.push_str(plain);
        let (&escape, after) = (escaped.as_bytes().first()?, escaped.get(1..)?);
        rest = after;
        out.push(match escape {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = unit(rest)?;
                rest = rest.get(4..)?;
                if let Some(whole) = char::from_u32(first.into()) {
                    whole
                } else {
                    let second = unit(rest.strip_prefix("\\u")?)?;
                    rest = rest.get(6..)?;
                    char::decode_utf16([first, second]).next()?.ok()?
                }
            }
            other => char::from(other),
        });
    }
    out.push_str(rest);
    Some(out)
}

/// The text of a string value. `None`: not a string, or a lone surrogate.
pub(super) fn text(value: Value<'_>) -> Option<Cow<'_, str>> {
    match value {
        Value::Absent => Some(Cow::Borrowed("")),
        Value::Text(text) => Some(Cow::Borrowed(text)),
        Value::Escaped(text) => unescape(text).map(Cow::Owned),
        _ => None,
    }
}

/// One UTF-16 code unit: four hexadecimal digits.
fn unit(text: &str) -> Option<u16> {
    u16::from_str_radix(text.get(..4)?, 16).ok()
}

#[derive(Debug)]
struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Goes on behind what was looked at.
    fn skip(&mut self, count: usize) {
        self.at = self.at.saturating_add(count);
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.skip(usize::from(found));
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), NotJson> {
        if self.take(byte) { Ok(()) } else { Err(NotJson) }
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.skip(1);
        }
    }

    /// A key, its colon and the space after it.
    fn key(&mut self) -> Result<Value<'a>, NotJson> {
        let key = self.string()?;
        self.space();
        self.expect(b':')?;
        self.space();
        Ok(key)
    }

    fn value(&mut self) -> Result<Value<'a>, NotJson> {
        let start = self.at;
        match self.peek() {
            Some(b'[') => {
                self.container()?;
                Ok(Value::List(self.since(start)?))
            }
            Some(b'{') => {
                self.container()?;
                Ok(Value::Object(self.since(start)?))
            }
            _ => self.scalar(),
        }
    }

    /// What was read since `start`.
    fn since(&self, start: usize) -> Result<&'a str, NotJson> {
        self.text.get(start..self.at).ok_or(NotJson)
    }

    fn scalar(&mut self) -> Result<Value<'a>, NotJson> {
        match self.peek().ok_or(NotJson)? {
            b'"' => self.string(),
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.literal("true"),
            b'f' => self.literal("false"),
            b'n' => self.literal("null"),
            _ => Err(NotJson),
        }
    }

    fn literal(&mut self, word: &str) -> Result<Value<'a>, NotJson> {
        if !self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            return Err(NotJson);
        }
        self.skip(word.len());
        Ok(Value::Other)
    }

    fn string(&mut self) -> Result<Value<'a>, NotJson> {
        self.expect(b'"')?;
        let start = self.at;
        let mut escaped = false;
        loop {
            match self.peek().ok_or(NotJson)? {
                b'"' => break,
                b'\\' => {
                    escaped = true;
                    self.skip(1);
                    match self.peek().ok_or(NotJson)? {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.skip(1),
                        b'u' => {
                            self.skip(1);
                            let after = self.text.as_bytes().get(self.at..).ok_or(NotJson)?;
                            let digits = after.first_chunk::<4>().ok_or(NotJson)?;
                            if !digits.iter().all(u8::is_ascii_hexdigit) {
                                return Err(NotJson);
                            }
                            self.skip(digits.len());
                        }
                        _ => return Err(NotJson),
                    }
                }
                0..0x20 => return Err(NotJson),
                _ => self.skip(1),
            }
        }
        // Both ends stand beside an ASCII quote, hence on character boundaries.
        let text = self.since(start)?;
        self.skip(1);
        Ok(if escaped { Value::Escaped(text) } else { Value::Text(text) })
    }

    fn number(&mut self) -> Result<Value<'a>, NotJson> {
        let negative = self.take(b'-');
        let start = self.at;
        self.digits()?;
        let integer = self.since(start)?;
        if integer.len() > 1 && integer.starts_with('0') {
            return Err(NotJson);
        }
        let fraction = self.take(b'.');
        if fraction {
            self.digits()?;
        }
        let exponent = self.take(b'e') || self.take(b'E');
        if exponent {
            let _signed = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        if negative || fraction || exponent {
            return Ok(Value::Other);
        }
        Ok(integer.parse().map_or(Value::Other, Value::Number))
    }

    fn digits(&mut self) -> Result<(), NotJson> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.skip(1);
        }
        if self.at > start { Ok(()) } else { Err(NotJson) }
    }

    /// Walks over the list or object that begins here.
    fn container(&mut self) -> Result<(), NotJson> {
        // One bit per open container, the innermost lowest: 1 for an object.
        let mut objects = 0_u64;
        let mut depth = 0_u32;
        loop {
            // Here begins a value.
            let opens = self.peek();
            if let Some(open @ (b'[' | b'{')) = opens {
                if depth == JSON_DEPTH_MAX {
                    return Err(NotJson);
                }
                let outside = (depth, objects);
                depth = depth.saturating_add(1);
                objects = objects << 1 | u64::from(open == b'{');
                self.skip(1);
                self.space();
                if !self.closes(objects) {
                    if open == b'{' {
                        self.key()?;
                    }
                    continue;
                }
                (depth, objects) = outside;
            } else {
                self.scalar()?;
            }
            // Here ends a value, and with it perhaps what it lies in.
            loop {
                let Some(outside) = depth.checked_sub(1) else { return Ok(()) };
                self.space();
                if self.closes(objects) {
                    depth = outside;
                    objects >>= 1;
                    continue;
                }
                self.expect(b',')?;
                self.space();
                if objects & 1 == 1 {
                    self.key()?;
                }
                break;
            }
        }
    }

    /// Takes the bracket that closes the innermost container, if it is next.
    fn closes(&mut self, objects: u64) -> bool {
        self.take(if objects & 1 == 1 { b'}' } else { b']' })
    }
}

const _: () = assert!(JSON_DEPTH_MAX == u64::BITS);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;

    /// Walks `text` as an object; says whether it is one.
    fn walks(text: &str) -> bool {
        object(text, |_, value| {
            if let Value::List(list) = value {
                assert!(Items::new(list).all(|item| item.is_ok()), "a list that was walked is walked again: {list}");
            }
        })
        .is_ok()
    }

    /// Whether a general parser takes `text` for an object.
    fn is_object(text: &str) -> bool {
        text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok()
    }

    /// Texts near the edges of the grammar, against a general parser.
    #[test]
    fn grammar_agrees_with_a_general_parser_on_its_edges() {
        let values = [
            "0",
            "00",
            "01",
            "-0",
            "-",
            "1.",
            ".5",
            "1.0",
            "1e",
            "1e+",
            "1E-3",
            "+1",
            "true",
            "tru",
            "nul",
            "null",
            "[]",
            "[,]",
            "[1,]",
            "[1 2]",
            "[[],{}]",
            "{}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{,}",
            "[}",
            "{]",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u12g4\"",
            "\"\\/\\b\\f\\n\\r\\t\\\"\\\\\"",
            "\"a\nb\"",
            "\"\u{7f}\"",
            "\"",
            "'a'",
            "{\"a\":[{\"b\":[[{}]]}]}",
            "",
            "18446744073709551616",
            "\"\u{1f30a}\"",
            "NaN",
            "[1]]",
            "{\"a\":1}}",
        ];
        for value in values {
            let text = format!(" {{ \"k\" : {value} }} ");
            assert_eq!(walks(&text), is_object(&text), "{text}");
        }
        for text in ["", "{", "}", "{}", "{} {}", "[]", "\u{feff}{}", "{\"a\":1,}", "{a:1}"] {
            assert_eq!(walks(text), is_object(text), "{text}");
        }
    }

    /// Depth is bounded, and the bound is where it says.
    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(walks(&nested(64)));
        assert!(!walks(&nested(65)));
        assert!(!walks(&nested(100_000)));
    }

    proptest! {
        /// Random soups of JSON's characters are objects for us exactly when they are for a general parser.
        #[test]
        fn grammar_agrees_with_a_general_parser(soup in "\\{\"a\":[\\[\\]{},:\"ab0-9.eE+\\-\\\\ntu ]{0,12}\\}") {
            prop_assert_eq!(walks(&soup), is_object(&soup));
        }

        /// A valid object with one byte changed or cut: still the same judgement.
        #[test]
        fn grammar_agrees_after_damage(at in 0_usize..90, byte in any::<u8>(), cut in any::<bool>()) {
            let mut bytes = br#"{"t":"send","rid":7,"x":[1,{"y":null,"z":[true,-1.5e3]}],"text":"a\u00e9\ud83c\udf0a\n","c":{}}"#.to_vec();
            if cut { bytes.truncate(at) } else { bytes[at] = byte & 0x7f }
            let text = String::from_utf8(bytes).unwrap();
            prop_assert_eq!(walks(&text), is_object(&text));
        }

        /// Any string, escaped by a general writer, is read back.
        #[test]
        fn strings_are_read_back(string in any::<String>()) {
            let line = serde_json::to_string(&serde_json::json!({ "k": string })).unwrap();
            let mut read = None;
            object(&line, |_, value| read = text(value).map(Cow::into_owned)).unwrap();
            prop_assert_eq!(read, Some(string));
        }
    }

    /// Surrogates: a pair is one character, a half is none.
    #[test]
    fn half_of_a_surrogate_pair_is_no_text() {
        assert_eq!(unescape(r"\ud83c\udf0a").as_deref(), Some("\u{1f30a}"));
        for wrong in
            [r"\ud83c", r"\udf0a", r"\ud83cx", r"\ud83c\n", r"\ud83c\ud83c", r"\udf0a\ud83c", r"\ud83c\u0041", r"\ud83c\ue000"]
        {
            assert_eq!(unescape(wrong), None, "{wrong}");
        }
    }
}
