//! The envelope that secrets rest in: AES-256-GCM (NIST SP 800-38D) under one of
//! several keys, bound to the place where it stands.
//!
//! The text is `v1.<key id>.<base64url of nonce, ciphertext and tag>`. Version, key
//! id and [`Place`] are authenticated: an envelope that is copied to another row,
//! column or account does not open. The first key of a ring seals and all of them
//! open, so that a key is replaced without an interruption: put the new one first,
//! `alchemi secrets rotate`, take the old one out. A key seals 2^32 values at most,
//! which is more than a database of settings ever holds.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use zeroize::{Zeroize, Zeroizing};

use crate::problem::Problem;

const VERSION: &str = "v1";

/// Length of a key, in bytes.
const KEY_LEN: usize = 32;

/// Where a sealed value stands.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The account.
    pub account: &'a str,
    /// The table.
    pub table: &'a str,
    /// The row's key within the account.
    pub row: &'a str,
    /// The column.
    pub column: &'a str,
}

impl Place<'_> {
    /// What is authenticated; every part has its length before it.
    fn bound_to(&self, key_id: &str) -> Vec<u8> {
        let parts = ["alchemi", VERSION, key_id, self.account, self.table, self.row, self.column];
        let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len() + 8).sum());
        for part in parts {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes
    }
}

/// A value that only a [`KeyRing`] can open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The key that it was sealed under.
    pub key_id: String,
    /// The envelope.
    pub envelope: String,
}

/// Why a value could not be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// There is no key at all.
    #[error("there is no secret key")]
    NoKey,
    /// It was sealed under a key that the ring does not have.
    #[error("it was sealed under the key {0:?}, which is not among secrets.keys (ALCHEMI_SECRET_KEY)")]
    UnknownKey(String),
    /// It is no envelope, was changed, or was sealed for another place.
    #[error("it is no envelope, was changed, or belongs to another place")]
    Broken,
}

impl From<SealError> for Problem {
    fn from(error: SealError) -> Self {
        match error {
            SealError::NoKey => Self::unavailable(
                "secrets_not_configured",
                "The gateway has no key to keep secrets under: the operator sets secrets.keys (ALCHEMI_SECRET_KEY), \
                 which `alchemi keygen secret` makes",
                60,
            ),
            SealError::UnknownKey(id) => {
                tracing::error!(key = %id, "a secret was sealed under a key that is not configured");
                Self::unavailable(
                    "secret_key_unknown",
                    "The secret was sealed under a key that the gateway does not have: the operator adds it to \
                     secrets.keys (ALCHEMI_SECRET_KEY)",
                    60,
                )
            }
            SealError::Broken => {
                tracing::error!("a sealed secret does not open: it was changed or moved in the database");
                Self::internal()
            }
        }
    }
}

/// Why a text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyRingError {
    /// Not 32 bytes in base64.
    #[error("a key is 32 bytes in base64, perhaps after an id and a colon; `alchemi keygen secret` makes one")]
    NotAKey,
    /// The id cannot be one.
    #[error("a key's id is 1 to 32 letters, digits, hyphens and underscores")]
    NotAnId,
    /// Two keys with one id.
    #[error("two keys have the same id")]
    Twice,
}

struct Key {
    id: String,
    aead: RandomizedNonceKey,
    fingerprints: hmac::Key,
}

/// The keys that secrets are sealed under; cheap to clone.
///
/// ```
/// use alchemi::secret::{KeyRing, Place};
///
/// let ring: KeyRing = "2026:WrP6GF2DXtNn6BIQ6QkYvGv4Nd1FRcdzOP3D8ls1EcQ=".parse()?;
/// let place = Place { account: "acme", table: "ConnectionTable", row: "7", column: "secret" };
/// let sealed = ring.seal(b"correct horse", place)?;
/// assert!(sealed.envelope.starts_with("v1.2026."));
/// assert_eq!(*ring.open(&sealed.envelope, place)?, b"correct horse");
/// assert!(ring.open(&sealed.envelope, Place { row: "8", ..place }).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct KeyRing(Arc<[Key]>);

impl KeyRing {
    /// Reads keys, the one that seals first: each 32 bytes in base64, perhaps after
    /// an id and a colon. A key without an id is called after its digest.
    ///
    /// # Errors
    /// [`KeyRingError`], which never holds the text.
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, KeyRingError> {
        let mut keys: Vec<Key> = Vec::new();
        for text in texts.into_iter().map(str::trim).filter(|text| !text.is_empty()) {
            let key = read_key(text)?;
            if keys.iter().any(|known| known.id == key.id) {
                return Err(KeyRingError::Twice);
            }
            keys.push(key);
        }
        Ok(Self(keys.into()))
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ids, the one that seals first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|key| key.id.as_str())
    }

    /// A digest of `bytes` by which they are known again; from it, even what is easily
    /// guessed cannot be found out by trying, unless the ring is empty. Another first
    /// key gives another digest.
    pub fn fingerprint(&self, bytes: &[u8]) -> String {
        match self.0.first() {
            Some(key) => crate::id::hex(hmac::sign(&key.fingerprints, bytes).as_ref()),
            None => crate::id::hex(digest::digest(&digest::SHA256, bytes).as_ref()),
        }
    }

    /// Seals `plain` for `place` under the first key.
    ///
    /// # Errors
    /// [`SealError::NoKey`].
    pub fn seal(&self, plain: &[u8], place: Place<'_>) -> Result<Sealed, SealError> {
        let key = self.0.first().ok_or(SealError::NoKey)?;
        let mut text = plain.to_vec();
        let bound = Aad::from(place.bound_to(&key.id));
        let sealed = key.aead.seal_in_place_append_tag(bound, &mut text);
        let Ok(nonce) = sealed else {
            text.zeroize();
            return Err(SealError::Broken);
        };
        let whole = [nonce.as_ref().as_slice(), &text].concat();
        let envelope = format!("{VERSION}.{}.{}", key.id, URL_SAFE_NO_PAD.encode(whole));
        Ok(Sealed { key_id: key.id.clone(), envelope })
    }

    /// Opens what was sealed for `place` under any of the keys.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn open(&self, envelope: &str, place: Place<'_>) -> Result<Zeroizing<Vec<u8>>, SealError> {
        if self.is_empty() {
            return Err(SealError::NoKey);
        }
        let mut parts = envelope.splitn(3, '.');
        let (Some(VERSION), Some(id), Some(text)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(SealError::Broken);
        };
        let key = self.0.iter().find(|key| key.id == id).ok_or_else(|| SealError::UnknownKey(id.to_owned()))?;
        let whole = URL_SAFE_NO_PAD.decode(text).map_err(|_| SealError::Broken)?;
        let (nonce, text) = whole.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Broken)?;
        let mut text = Zeroizing::new(text.to_vec());
        let bound = Aad::from(place.bound_to(&key.id));
        let opened = key.aead.open_in_place(Nonce::from(nonce), bound, &mut text).map_err(|_| SealError::Broken)?;
        let length = opened.len();
        text.truncate(length);
        Ok(text)
    }
}

fn read_key(text: &str) -> Result<Key, KeyRingError> {
    let (id, text) = match text.split_once(':') {
        Some((id, text)) => (Some(id.trim()), text.trim()),
        None => (None, text),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if id.is_some_and(|id| id.is_empty() || id.len() > 32 || !id.chars().all(fits)) {
        return Err(KeyRingError::NotAnId);
    }
    let decoded = STANDARD
        .decode(text)
        .or_else(|_| STANDARD_NO_PAD.decode(text))
        .or_else(|_| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')));
    let bytes = Zeroizing::new(decoded.map_err(|_| KeyRingError::NotAKey)?);
    if bytes.len() != KEY_LEN {
        return Err(KeyRingError::NotAKey);
    }
    let id = id.map_or_else(|| name_of(&bytes), str::to_owned);
    let aead = RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| KeyRingError::NotAKey)?;
    // One key for one purpose.
    let fingerprints = hmac::Key::new(hmac::HMAC_SHA256, derived(&bytes, b"fingerprint").as_ref());
    Ok(Key { id, aead, fingerprints })
}

/// The first 32 bits of a digest: enough to tell keys apart, and nothing about the key.
fn name_of(key: &[u8]) -> String {
    crate::id::hex(derived(key, b"name").as_ref().first_chunk::<4>().unwrap_or(&[0; 4]))
}

fn derived(key: &[u8], purpose: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &[b"alchemi secret key ".as_slice(), purpose].concat())
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyRing").field(&self.ids().collect::<Vec<_>>()).finish()
    }
}

impl std::str::FromStr for KeyRing {
    type Err = KeyRingError;

    /// Reads keys with commas between them.
    fn from_str(text: &str) -> Result<Self, KeyRingError> {
        Self::new(text.split(','))
    }
}

/// A list of keys, or a text with commas. No error repeats what was there.
impl<'de> Deserialize<'de> for KeyRing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = KeyRing;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of keys")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<KeyRing, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<KeyRing, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = list.next_element::<super::SecretString>()? {
                    texts.push(text);
                }
                KeyRing::new(texts.iter().map(super::SecretString::expose)).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "old:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    const NEW: &str = "new:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

    fn ring(texts: &[&str]) -> KeyRing {
        KeyRing::new(texts.iter().copied()).unwrap()
    }

    const PLACE: Place<'_> = Place { account: "a", table: "t", row: "r", column: "c" };

    #[test]
    fn the_first_key_seals_and_all_open() {
        let before = ring(&[OLD]).seal(b"secret", PLACE).unwrap();
        let both = ring(&[NEW, OLD]);
        assert_eq!(*both.open(&before.envelope, PLACE).unwrap(), b"secret");
        let after = both.seal(b"secret", PLACE).unwrap();
        assert_eq!((before.key_id.as_str(), after.key_id.as_str()), ("old", "new"));
        assert_eq!(ring(&[OLD]).open(&after.envelope, PLACE), Err(SealError::UnknownKey("new".to_owned())));
        // The id says which key; another key under that id does not open it.
        let other = format!("old:{}", NEW.split_once(':').unwrap().1);
        assert_eq!(ring(&[&other]).open(&before.envelope, PLACE), Err(SealError::Broken));
        assert_eq!(KeyRing::default().seal(b"", PLACE), Err(SealError::NoKey));
        assert_eq!(KeyRing::default().open(&after.envelope, PLACE), Err(SealError::NoKey));
    }

    #[test]
    fn a_fingerprint_is_of_the_first_key() {
        let (one, other) = (ring(&[NEW, OLD]).fingerprint(b"a"), ring(&[OLD]).fingerprint(b"a"));
        assert_eq!(one, ring(&[NEW]).fingerprint(b"a"));
        assert!(one != other && one != KeyRing::default().fingerprint(b"a") && one != ring(&[NEW]).fingerprint(b"b"));
    }

    #[test]
    fn the_same_text_is_never_sealed_the_same() {
        let ring = ring(&[NEW]);
        assert_ne!(ring.seal(b"secret", PLACE), ring.seal(b"secret", PLACE));
    }

    #[test]
    fn an_envelope_opens_in_its_place_alone() {
        let ring = ring(&[NEW]);
        let sealed = ring.seal(b"secret", PLACE).unwrap().envelope;
        let moved = [
            Place { account: "b", ..PLACE },
            Place { table: "b", ..PLACE },
            Place { row: "b", ..PLACE },
            Place { column: "b", ..PLACE },
            // The same text with its parts cut elsewhere.
            Place { account: "at", table: "", ..PLACE },
            Place { table: "tr", row: "", ..PLACE },
        ];
        for place in moved {
            assert_eq!(ring.open(&sealed, place), Err(SealError::Broken), "{place:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_value_reads_back(plain: Vec<u8>) {
            let ring = ring(&[NEW]);
            let sealed = ring.seal(&plain, PLACE).unwrap();
            proptest::prop_assert_eq!(&*ring.open(&sealed.envelope, PLACE).unwrap(), &plain);
        }

        #[test]
        fn a_changed_envelope_does_not_open(at in 0_usize..44, bit in 0_u8..8) {
            let ring = ring(&[NEW]);
            let envelope = ring.seal(b"0123456789abcdef", PLACE).unwrap().envelope;
            let (head, text) = envelope.rsplit_once('.').unwrap();
            let mut bytes = URL_SAFE_NO_PAD.decode(text).unwrap();
            bytes[at] ^= 1 << bit;
            let changed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(bytes));
            proptest::prop_assert_eq!(ring.open(&changed, PLACE), Err(SealError::Broken));
        }

        #[test]
        fn other_text_is_no_envelope(text in "\\PC{0,60}") {
            proptest::prop_assert!(ring(&[NEW]).open(&text, PLACE).is_err());
        }
    }

    #[test]
    fn keys_are_read_strictly_and_never_shown() {
        let texts = ["short", "id:", "id:AAAA", "two words:AAAA", ":AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="];
        for text in texts {
            let error = text.parse::<KeyRing>().unwrap_err().to_string();
            assert!(!error.contains("AAAA"), "{text}: {error}");
        }
        assert_eq!(format!("{OLD},{OLD}").parse::<KeyRing>().map(drop), Err(KeyRingError::Twice));
        let bare = OLD.split_once(':').unwrap().1;
        let named = ring(&[bare]);
        assert_eq!(named.ids().count(), 1);
        assert_eq!(named.ids().next().unwrap().len(), 8);
        assert_eq!(ring(&[bare.trim_end_matches('=')]).ids().next(), named.ids().next(), "padding or not");
        assert!(" , ".parse::<KeyRing>().unwrap().is_empty());
        assert_eq!(format!("{:?}", ring(&[NEW, OLD])), r#"KeyRing(["new", "old"])"#);
        let text: KeyRing = serde_json::from_str(&format!("\"{NEW}, {OLD}\"")).unwrap();
        let list: KeyRing = serde_json::from_str(&format!("[\"{NEW}\", \"{OLD}\"]")).unwrap();
        assert!(text.ids().eq(list.ids()));
    }
}
