//! Tri-state fields of a partial update.

use serde::{Deserialize, Deserializer};

/// A field of a PATCH: absent keeps, `null` clears, a value sets.
///
/// ```
/// use alchemi::model::field::Field;
///
/// #[derive(serde::Deserialize)]
/// struct Change {
///     #[serde(default)]
///     alias: Field<String>,
/// }
///
/// let keep: Change = serde_json::from_str("{}")?;
/// assert_eq!(keep.alias, Field::Keep);
/// let clear: Change = serde_json::from_str(r#"{"alias":null}"#)?;
/// assert_eq!(clear.alias.over(Some("old".into())), None);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Field<T> {
    /// Not sent.
    #[default]
    Keep,
    /// Sent as `null`.
    Clear,
    /// Sent with a value.
    Set(T),
}

impl<T> Field<T> {
    /// The value after the change, of a field that may be empty.
    pub fn over(self, old: Option<T>) -> Option<T> {
        match self {
            Self::Keep => old,
            Self::Clear => None,
            Self::Set(new) => Some(new),
        }
    }

    /// The same change of another type.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Field<U> {
        match self {
            Self::Keep => Field::Keep,
            Self::Clear => Field::Clear,
            Self::Set(new) => Field::Set(f(new)),
        }
    }

    /// Whether nothing was sent.
    pub const fn is_keep(&self) -> bool {
        matches!(self, Self::Keep)
    }

    /// The value after the change, of a field that is never empty.
    ///
    /// # Errors
    /// 422 at `pointer` when the field was sent as `null`.
    pub fn over_required(self, old: T, pointer: &str) -> Result<T, crate::problem::Problem> {
        match self {
            Self::Keep => Ok(old),
            Self::Set(new) => Ok(new),
            Self::Clear => Err(crate::problem::Problem::invalid(pointer, "cannot be null; leave it out to keep it")),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::<T>::deserialize(deserializer).map(|value| value.map_or(Self::Clear, Self::Set))
    }
}
