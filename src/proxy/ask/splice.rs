//! Changes to a body, as replacements of ranges of its bytes.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// A replacement of a range of bytes; an empty range inserts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Splice {
    /// The bytes to replace.
    pub at: Range<usize>,
    /// What takes their place.
    pub text: Cow<'static, str>,
}

/// The body with all splices done; those that start at the same byte keep their
/// order. Ranges must not overlap: of two that do, the later one is left out.
///
/// ```
/// use alchemi::proxy::ask::{Splice, splice};
/// use bytes::Bytes;
///
/// let body = Bytes::from_static(b"{\"n\":1}");
/// let spliced = splice(&body, vec![Splice { at: 5..6, text: "2".into() }]);
/// assert_eq!(spliced, "{\"n\":2}");
/// ```
pub fn splice(body: &Bytes, mut splices: Vec<Splice>) -> Bytes {
    if splices.is_empty() {
        return body.clone();
    }
    splices.sort_by_key(|splice| (splice.at.start, splice.at.end));
    let grown: usize = splices.iter().map(|splice| splice.text.len()).sum();
    let mut out = BytesMut::with_capacity(body.len() + grown);
    let mut done = 0;
    for Splice { at, text } in splices {
        let Some(before) = body.get(done..at.start).filter(|_| at.start <= at.end && at.end <= body.len()) else {
            continue;
        };
        out.extend_from_slice(before);
        out.extend_from_slice(text.as_bytes());
        done = at.end;
    }
    out.extend_from_slice(body.get(done..).unwrap_or_default());
    out.freeze()
}

/// Where a JSON body can be changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Edits {
    /// Right behind the `{` of the outer object; `None` if there is no such object.
    pub(super) members: Option<Insertion>,
    pub(super) usage: UsageEdit,
    /// Limits of output that the caller set.
    pub(super) limits: Vec<Limit>,
    /// The member that limits output on this kind of route.
    pub(super) limit_name: Option<&'static str>,
}

/// A limit of output in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limit {
    /// Where its value stands.
    pub(super) at: Range<usize>,
    /// The value, `None` for null.
    pub(super) tokens: Option<u64>,
}

/// A place for one more member of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Insertion {
    pub(super) at: usize,
    /// The object has no members: none follows the new one.
    pub(super) empty: bool,
}

impl Insertion {
    fn member(self, member: String) -> Splice {
        let text = if self.empty { member } else { member + "," };
        Splice { at: self.at..self.at, text: text.into() }
    }
}

/// What makes the upstream report usage in a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum UsageEdit {
    /// There is no `stream_options`.
    #[default]
    Options,
    /// `stream_options` is null.
    Null(Range<usize>),
    /// `stream_options` has no `include_usage`.
    Member(Insertion),
    /// `include_usage` is there, and not true.
    Value(Range<usize>),
}

impl Edits {
    pub(super) fn include_usage(&self) -> Option<Splice> {
        match &self.usage {
            UsageEdit::Options => {
                self.members.map(|place| place.member(r#""stream_options":{"include_usage":true}"#.to_owned()))
            }
            UsageEdit::Null(at) => Some(Splice { at: at.clone(), text: r#"{"include_usage":true}"#.into() }),
            UsageEdit::Member(place) => Some(place.member(r#""include_usage":true"#.to_owned())),
            UsageEdit::Value(at) => Some(Splice { at: at.clone(), text: "true".into() }),
        }
    }

    pub(super) fn bound_output(&self, bound: u64) -> Vec<Splice> {
        if self.limits.is_empty() {
            let member = self.limit_name.map(|name| format!("\"{name}\":{bound}"));
            return self.members.zip(member).map(|(place, member)| place.member(member)).into_iter().collect();
        }
        let above = self.limits.iter().filter(|limit| limit.tokens.is_none_or(|tokens| tokens > bound));
        above.map(|limit| Splice { at: limit.at.clone(), text: bound.to_string().into() }).collect()
    }
}
