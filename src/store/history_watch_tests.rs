//! Tests of [`super`]: with whom somebody who watches shares a conversation, and how many rows are read to find it.

use std::cell::Cell;

use super::super::engine_memory::MemoryEngine;
use super::super::rows::Row;
use super::super::schema::{Batch, Change};
use super::tests::{STORE, names};
use super::*;

/// Rows that count what is read of `conv_of`.
struct Counted<R> {
    rows: R,
    count: Cell<usize>,
}

impl<R> Counted<R> {
    fn count_one(&self, keyspace: Keyspace) {
        self.count.set(self.count.get() + usize::from(keyspace == Keyspace::ConvOf));
    }
}

impl<R: Rows> Rows for Counted<R> {
    type Bytes = R::Bytes;

    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<R::Bytes>, EngineError> {
        self.count_one(keyspace);
        self.rows.get(keyspace, key)
    }

    fn prefix(&self, keyspace: Keyspace, prefix: &[u8]) -> impl Iterator<Item = Row<R::Bytes>> {
        self.rows.prefix(keyspace, prefix).inspect(move |_| self.count_one(keyspace))
    }

    fn range(&self, keyspace: Keyspace, first: &[u8], last: &[u8]) -> impl DoubleEndedIterator<Item = Row<R::Bytes>> {
        self.rows.range(keyspace, first, last).inspect(move |_| self.count_one(keyspace))
    }
}

/// Adds that `user` has a conversation, or has had it.
fn has(rows: &mut Batch, user: &str, conv: &str, left: bool) {
    let hashes = Hashes::new(STORE.hash_key);
    let row = record::ConvOf { conv, joined: 1, left, version: 1, changed: 1 };
    rows.push(Keyspace::ConvOf, Change::Put, &schema::user_key(hashes.user(user), hashes.conv(conv)), |out| row.encode(out));
}

/// With whom `user` shares a conversation, if these are all there are, and how many rows are read to find it.
fn shared_by(rows: Batch, user: &str, others: &[&str]) -> (Vec<bool>, usize) {
    let mut engine = MemoryEngine::new(&STORE, &record::Position::default());
    engine.write(rows);
    let rows = Counted { rows: &engine, count: Cell::new(0) };
    let history = History::new(rows, Hashes::new(STORE.hash_key)).unwrap();
    let shared = history.shared(user, &names(others)).unwrap();
    (shared, history.rows().count.get())
}

/// A direct conversation is shared, a group, a channel; not one that either of the two has left, and not one of two others.
#[test]
fn who_shares_a_conversation_is_found() {
    let mut rows = Batch::default();
    for (user, conv, left) in [
        ("al", "d:al:bo", false),
        ("bo", "d:al:bo", false),
        ("bo", "d:bo:cy", false),
        ("cy", "d:bo:cy", false),
        ("cy", "g:theirs", false),
        ("al", "g:left", true),
        ("di", "g:left", false),
        ("al", "g:one", false),
        ("ed", "g:one", true),
        ("ed", "g:theirs", false),
        ("flo", "g:one", false),
        ("flo", "g:theirs", false),
        ("al", "c:two", false),
        ("gus", "c:two", false),
        ("gus", "g:one", true),
    ] {
        has(&mut rows, user, conv, left);
    }
    let (shared, _) = shared_by(rows, "al", &["al", "bo", "cy", "di", "ed", "flo", "gus", "nobody"]);
    assert_eq!(shared, [true, true, false, false, false, true, true, false]);
}

/// Two hundred people of one team, each with a hundred conversations of their own besides: who shares the team is found by a row each.
#[test]
fn a_team_is_found_by_few_rows() {
    let mut rows = Batch::default();
    let team: Vec<String> = (0..200).map(|number| format!("user{number:03}")).collect();
    for user in &team {
        has(&mut rows, user, "g:team", false);
        (0..100).for_each(|number| has(&mut rows, user, &format!("g:{user}-{number}"), false));
    }
    has(&mut rows, "al", "g:team", false);
    (0..20).for_each(|number| has(&mut rows, "al", &format!("g:al-{number}"), false));
    let team: Vec<&str> = team.iter().map(String::as_str).collect();
    let (shared, read) = shared_by(rows, "al", &team);
    assert_eq!(shared, [true; 200]);
    // Al's own, for the first of the team al's groups both ways, and one for each other.
    assert!(read <= 21 + 2 * 21 + 199, "{read} rows");
}

/// The rows read for one WATCH are bounded, whoever is watched: those whose turn comes when the bound is reached count as strangers. Direct
/// conversations are found all the same.
#[test]
fn a_watch_reads_no_more_than_it_may() {
    let mut rows = Batch::default();
    (0..2_000).for_each(|number| has(&mut rows, "al", &format!("g:al-{number}"), false));
    has(&mut rows, "bo", "g:al-7", false);
    let strangers = ["ca", "cb", "cc", "cd"];
    for user in strangers {
        (0..3_000).for_each(|number| has(&mut rows, user, &format!("g:{user}-{number}"), false));
    }
    for user in ["al", "yo"] {
        has(&mut rows, user, "d:al:yo", false);
    }
    has(&mut rows, "zoe", "g:al-7", false);
    let (shared, read) = shared_by(rows, "al", &["bo", "ca", "cb", "cc", "cd", "yo", "zoe"]);
    assert_eq!(shared, [true, false, false, false, false, true, false], "zoe is not looked at any more");
    assert_eq!(read, SHARED_CONVERSATIONS_MAX);
}

/// More direct conversations than are looked through, and no group: every one of them is found by its name, for a row each.
#[test]
fn a_direct_conversation_is_found_among_any_number() {
    let (mut rows, half) = (Batch::default(), SHARED_CONVERSATIONS_MAX / 2);
    let partners: Vec<String> = (0..half + half / 5).map(|number| format!("user{number:05}")).collect();
    for partner in &partners {
        has(&mut rows, "al", &format!("d:al:{partner}"), false);
        has(&mut rows, partner, &format!("d:al:{partner}"), false);
        has(&mut rows, partner, "g:all-but-al", false);
    }
    has(&mut rows, "zoe", "g:all-but-al", false);
    let mut others: Vec<&str> = partners.iter().map(String::as_str).step_by(40).collect();
    others.push("zoe");
    let (shared, read) = shared_by(rows, "al", &others);
    let (zoe, partners) = shared.split_last().unwrap();
    assert!(partners.iter().all(|is_shared| *is_shared) && !zoe);
    assert!(read <= half + others.len(), "{read} rows for {} users", others.len());
}
