//! Identifiers: UUIDv7 text when made here, opaque text when made elsewhere.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// Longest identifier, in bytes.
pub const MAX_ID_BYTES: usize = 255;

/// The identifier of a `T`; one kind cannot be passed for another.
///
/// ```
/// use alchemi::id::Id;
/// struct Team;
///
/// let id: Id<Team> = "team-7".parse()?;
/// assert_eq!(id.as_str(), "team-7");
/// assert!("two words".parse::<Id<Team>>().is_err());
/// # Ok::<(), alchemi::id::NotAnId>(())
/// ```
pub struct Id<T>(Arc<str>, PhantomData<fn() -> T>);

/// The text cannot be an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id is 1 to 255 visible ASCII characters")]
pub struct NotAnId;

impl<T> Id<T> {
    /// The identifier's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same text as the identifier of another kind of thing.
    pub fn cast<U>(&self) -> Id<U> {
        Id(Arc::clone(&self.0), PhantomData)
    }

    /// The identifier that no row has: what is looked up under it is not found.
    pub(crate) fn nobody() -> Self {
        Self(Arc::from(""), PhantomData)
    }

    /// Text that the database holds; it was checked when it was written.
    pub(crate) fn stored(text: &str) -> Self {
        Self(Arc::from(text), PhantomData)
    }
}

impl<T> std::str::FromStr for Id<T> {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let fits = (1..=MAX_ID_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        if fits { Ok(Self(Arc::from(text), PhantomData)) } else { Err(NotAnId) }
    }
}

impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        self.cast()
    }
}
impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<T> Eq for Id<T> {}
impl<T> PartialOrd for Id<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Id<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}
impl<T> Hash for Id<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
impl<T> fmt::Display for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl<T> fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
impl<T> AsRef<str> for Id<T> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}
impl<T> Serialize for Id<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}
impl<'de, T> Deserialize<'de> for Id<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
// utoipa asks this hidden trait of types with parameters; it brings `PartialSchema` along.
impl<T> utoipa::__dev::ComposeSchema for Id<T> {
    fn compose(
        _: Vec<utoipa::openapi::RefOr<utoipa::openapi::schema::Schema>>,
    ) -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .min_length(Some(1))
            .max_length(Some(MAX_ID_BYTES))
            .pattern(Some("^[!-~]+$"))
            .examples([serde_json::json!("019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11")])
            .into()
    }
}
impl<T> utoipa::ToSchema for Id<T> {}

/// Where new identifiers come from, injected as the clock is.
pub trait IdSource: Send + Sync + fmt::Debug + 'static {
    /// A fresh UUID whose time part is `now`.
    fn uuid(&self, now: Timestamp) -> uuid::Uuid;
}

impl dyn IdSource {
    /// A fresh identifier of a `T`.
    pub fn id<T>(&self, now: Timestamp) -> Id<T> {
        let mut buffer = uuid::Uuid::encode_buffer();
        Id(Arc::from(&*self.uuid(now).hyphenated().encode_lower(&mut buffer)), PhantomData)
    }
}

/// UUIDv7 (RFC 9562 section 5.7) from a generator of cryptographic strength that the
/// operating system seeds.
#[derive(Debug, Clone, Copy, Default)]
pub struct RandomIds;

impl IdSource for RandomIds {
    fn uuid(&self, now: Timestamp) -> uuid::Uuid {
        let micros = u64::try_from(now.as_micros()).unwrap_or(0);
        let (secs, nanos) = (micros / 1_000_000, (micros % 1_000_000) * 1_000);
        let at = uuid::Timestamp::from_unix(uuid::NoContext, secs, u32::try_from(nanos).unwrap_or(0));
        uuid::Uuid::new_v7(at)
    }
}

/// Identifiers that count up, for tests that compare whole answers.
#[derive(Debug, Default)]
pub struct CountingIds(AtomicU64);

impl IdSource for CountingIds {
    fn uuid(&self, _now: Timestamp) -> uuid::Uuid {
        let n = self.0.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        uuid::Uuid::from_u128(0x7000_8000_0000_0000_0000_u128.saturating_add(u128::from(n)))
    }
}

/// Bytes as lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
