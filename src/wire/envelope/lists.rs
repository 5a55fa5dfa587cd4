//! The lists of ACK and WATCH, read where they lie.

use std::borrow::Cow;

use super::binary::Reader;
use super::{Cursor, Cursors, Users};

impl Cursors<'_> {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Binary(count, _) => usize::from(*count),
            Self::List(cursors) => cursors.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The cursors in order.
    #[must_use]
    pub fn iter(&self) -> CursorIter<'_> {
        CursorIter(match self {
            Self::Binary(count, bytes) => Source::Binary(*count, Reader::new(bytes)),
            Self::List(cursors) => Source::List(cursors.iter()),
        })
    }
}

impl PartialEq for Cursors<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<'c> IntoIterator for &'c Cursors<'_> {
    type Item = Cursor<'c>;
    type IntoIter = CursorIter<'c>;

    fn into_iter(self) -> CursorIter<'c> {
        self.iter()
    }
}

/// See [`Cursors::iter`].
#[derive(Clone, Debug)]
pub struct CursorIter<'c>(Source<'c, Cursor<'c>>);

impl<'c> Iterator for CursorIter<'c> {
    type Item = Cursor<'c>;

    fn next(&mut self) -> Option<Cursor<'c>> {
        match &mut self.0 {
            Source::Binary(left, reader) => {
                *left = left.checked_sub(1)?;
                // The decoder has checked them: an error here would be a list that did not come from it, and ends there.
                reader.cursor().ok()
            }
            Source::List(cursors) => {
                let cursor = cursors.next()?;
                Some(Cursor { conv: Cow::Borrowed(&cursor.conv), seq: cursor.seq })
            }
        }
    }
}

impl Users<'_> {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Binary(count, _) => usize::from(*count),
            Self::List(users) => users.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The users in order.
    #[must_use]
    pub fn iter(&self) -> UserIter<'_> {
        UserIter(match self {
            Self::Binary(count, bytes) => Source::Binary(*count, Reader::new(bytes)),
            Self::List(users) => Source::List(users.iter()),
        })
    }
}

impl PartialEq for Users<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<'u> IntoIterator for &'u Users<'_> {
    type Item = &'u str;
    type IntoIter = UserIter<'u>;

    fn into_iter(self) -> UserIter<'u> {
        self.iter()
    }
}

/// See [`Users::iter`].
#[derive(Clone, Debug)]
pub struct UserIter<'u>(Source<'u, Cow<'u, str>>);

impl<'u> Iterator for UserIter<'u> {
    type Item = &'u str;

    fn next(&mut self) -> Option<&'u str> {
        match &mut self.0 {
            Source::Binary(left, reader) => {
                *left = left.checked_sub(1)?;
                reader.s8("user").ok()
            }
            Source::List(users) => users.next().map(AsRef::as_ref),
        }
    }
}

#[derive(Clone, Debug)]
enum Source<'l, T> {
    Binary(u16, Reader<'l>),
    List(std::slice::Iter<'l, T>),
}
