//! Keyset pages: newest first, by (`created_at`, `id`), unless a list says otherwise.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::clock::Timestamp;

/// Which part of a list is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// How many items at most, 1 to 1000.
    pub limit: u32,
    /// Start behind this row.
    pub after: Option<Cursor>,
    /// Rows to skip, for clients that page by number.
    pub offset: u64,
}

impl Slice {
    /// The first `limit` items.
    pub fn first(limit: u32) -> Self {
        Self { limit, after: None, offset: 0 }
    }

    /// One more than the limit, to see whether a further page exists.
    pub(super) fn fetch(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    pub(super) fn skip(&self) -> i64 {
        i64::try_from(self.offset).unwrap_or(i64::MAX)
    }

    /// The bound of the keyset: the cursor, or a row that is newer than any.
    pub(super) fn before(&self) -> (Timestamp, String) {
        match &self.after {
            Some(cursor) => (cursor.at, cursor.id.clone()),
            None => (Timestamp::from_micros(i64::MAX), String::new()),
        }
    }

    /// Cuts fetched rows to the limit and names the next page.
    pub(super) fn page<T>(&self, mut rows: Vec<T>, key: impl Fn(&T) -> (Timestamp, &str)) -> Page<T> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(|last| {
            let (at, id) = key(last);
            Cursor { at, id: id.to_owned() }
        });
        Page { items: rows, next }
    }
}

/// A page of a list and where the next one starts.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The items, newest first.
    pub items: Vec<T>,
    /// The last item's place, if more follow.
    pub next: Option<Cursor>,
}

impl<T> Page<T> {
    /// The same page with its items turned into something else.
    pub fn map<U>(self, f: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(f).collect(), next: self.next }
    }

    /// As [`Page::map`], where an item may be unreadable.
    ///
    /// # Errors
    /// The first of `f`.
    pub(super) fn try_map<U, E>(self, f: impl FnMut(T) -> Result<U, E>) -> Result<Page<U>, E> {
        Ok(Page { items: self.items.into_iter().map(f).collect::<Result<_, E>>()?, next: self.next })
    }
}

/// A place in a list; opaque text to callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    at: Timestamp,
    id: String,
}

impl Cursor {
    /// The text that goes into `next_cursor`.
    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}:{}", self.at.as_micros(), self.id))
    }

    /// Reads what [`Cursor::encode`] wrote.
    pub fn decode(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (micros, id) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
        let id: crate::id::Id<()> = id.parse().ok()?;
        Some(Self { at: Timestamp::from_micros(micros.parse().ok()?), id: id.as_str().to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_cursor_reads_back(micros in proptest::num::i64::ANY, id in "[!-~]{1,40}") {
            let cursor = Cursor { at: Timestamp::from_micros(micros), id };
            proptest::prop_assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        }

        #[test]
        fn other_text_is_no_cursor(text in "\\PC{0,40}") {
            if let Some(cursor) = Cursor::decode(&text) {
                proptest::prop_assert_eq!(cursor.encode(), text);
            }
        }
    }
}
