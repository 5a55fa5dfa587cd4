//! What is wrong with a configuration, where, and what would be right.

use std::fmt;

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// Nobody set it.
    Default,
    /// A file, with line and column in characters, counted from 1.
    File {
        /// As named on the command line.
        name: String,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// A variable of the environment.
    Environment(String),
    /// A flag of the command line.
    Flag(String),
}

impl Place {
    /// Line and column in a file; zeros elsewhere.
    #[must_use]
    pub fn position(&self) -> (usize, usize) {
        if let Place::File { line, column, .. } = self { (*line, *column) } else { (0, 0) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Default => f.write_str("default"),
            Place::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
            Place::Environment(name) => write!(f, "environment {name}"),
            Place::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// One mistake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Where it stands.
    pub place: Place,
    /// What was found.
    pub found: String,
    /// What is allowed there; empty if there is nothing to choose.
    pub allowed: String,
    /// What to do about it; empty if that is plain.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.found)?;
        if !self.allowed.is_empty() {
            write!(f, "; allowed: {}", self.allowed)?;
        }
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

/// The beginning of what an operator wrote, and dots if it goes on.
#[must_use]
pub fn beginning(text: &str) -> (&str, &'static str) {
    match text.char_indices().nth(TOLD_MAX) {
        Some((end, _)) => (text.get(..end).unwrap_or(text), "..."),
        None => (text, ""),
    }
}

/// Characters of a key or a value that are told.
const TOLD_MAX: usize = 80;

/// The candidate that `word` was probably meant to be: few edits away, or the same word with more around it, such as a section
/// in front or a unit behind. `None`: nothing is close.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    let score = |candidate: &str| {
        let last = candidate.rsplit('.').next().unwrap_or(candidate);
        let edits = edit_distance(&word, candidate);
        if edits <= word.len().max(3) / 3 {
            return Some(edits);
        }
        let inner = word.rsplit('.').next().unwrap_or(&word);
        let edits_of_last = edit_distance(inner, last);
        if edits_of_last <= inner.len() / 4 {
            return Some(4 + edits_of_last);
        }
        let whole = candidate.starts_with(&format!("{word}_")) || last.starts_with(&format!("{inner}_"));
        whole.then_some(8)
    };
    candidates
        .filter_map(|candidate| score(candidate).map(|score| (score, candidate)))
        .min_by_key(|(score, _)| *score)
        .map(|(_, it)| it)
}

/// Edits between two words: a letter more, less, another, or two neighbours swapped (optimal string alignment). Both are keys or
/// words an operator typed; more than 64 characters are not compared.
#[expect(clippy::indexing_slicing, reason = "rows and columns are counted from the same two words")]
fn edit_distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().take(64).collect();
    let right: Vec<char> = right.chars().take(64).collect();
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    rows[0] = (0..=right.len()).collect();
    for i in 1..=left.len() {
        rows[i][0] = i;
        for j in 1..=right.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distance of the textbook, and its ends.
    #[test]
    fn edits_are_counted() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", ""), 3);
        assert_eq!(edit_distance("same", "same"), 0);
        assert_eq!(edit_distance("stroe", "store"), 1);
    }

    /// A slip of the finger, a missing section, a missing unit and a dash are understood; a stranger is not.
    #[test]
    fn the_key_that_was_meant_is_found() {
        let keys = ["listen", "admin.listen", "store.segment_bytes", "drain.window_ms", "data_dir", "protocol.ping_ms"];
        let meant = |word| nearest(word, keys.into_iter());
        assert_eq!(meant("listne"), Some("listen"));
        assert_eq!(meant("Listen"), Some("listen"));
        assert_eq!(meant("segment_bytes"), Some("store.segment_bytes"));
        assert_eq!(meant("drain.window"), Some("drain.window_ms"));
        assert_eq!(meant("data-dir"), Some("data_dir"));
        assert_eq!(meant("store.ping_ms"), Some("protocol.ping_ms"));
        assert_eq!(meant("colour"), None);
        assert_eq!(meant("x"), None);
    }
}
