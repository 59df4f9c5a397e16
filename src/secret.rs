//! Secrets: in memory never printed, never serialised, wiped when dropped; at rest
//! sealed under keys that the database does not have ([`KeyRing`]).

use std::fmt;

use serde::{Deserialize, Deserializer};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

mod key_file;
mod keyring;
mod object;

pub use key_file::KeyFile;
pub use keyring::{KeyRing, KeyRingError, Place, SealError, Sealed};
pub use object::{MASK, SecretObject, is_credentials, names_a_secret, secret_in_query};

/// Text that must not leave the process by accident.
///
/// It has no `Serialize` and no `Display`, its `Debug` is redacted, its equality
/// takes the same time wherever two values differ, and its memory is wiped.
///
/// ```
/// use alchemi::secret::SecretString;
///
/// let secret = SecretString::from("correct horse");
/// assert_eq!(format!("{secret:?}"), "SecretString(redacted)");
/// assert_eq!(secret.expose(), "correct horse");
/// ```
#[derive(Clone, Default)]
pub struct SecretString(Zeroizing<String>);

impl SecretString {
    /// The text itself, for the one call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is no text at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for SecretString {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl From<&str> for SecretString {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl fmt::Debug for SecretString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretString(redacted)")
    }
}

impl PartialEq for SecretString {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}
impl Eq for SecretString {}

impl<'de> Deserialize<'de> for SecretString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}
