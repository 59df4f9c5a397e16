//! Public keys of an issuer (RFC 7517, RFC 7518 section 6), imported strictly.
//!
//! A key that is weak, ambiguous or not meant for signatures is dropped and
//! counted; the others keep working.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{self, ParsedPublicKey, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use foldhash::{HashMap, HashMapExt as _};
use serde_json::{Map, Value};

use super::json;

/// Largest key set document that is read.
pub const MAX_KEY_SET_BYTES: usize = 256 * 1024;
/// Most keys that a set may list.
pub const MAX_KEYS: usize = 64;

/// Signature algorithms that are accepted: asymmetric, and in use at Zitadel.
///
/// ES512 and the PSS family are not among them; `none` and HMAC never are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// ECDSA over P-256 with SHA-256.
    Es256,
    /// ECDSA over P-384 with SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    const RSA: [Self; 3] = [Self::Rs256, Self::Rs384, Self::Rs512];

    /// By its registered name (RFC 7518 section 3.1), which is case-sensitive.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// Why a key was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum KeyFlaw {
    /// `kid` is missing, empty or longer than 256 bytes.
    #[error("no usable kid")]
    NoKid,
    /// Two keys share a `kid`; neither is used.
    #[error("duplicate kid")]
    DuplicateKid,
    /// `kty` is unknown, or `oct`: a shared secret has no place in a public set.
    #[error("unsupported key type")]
    KeyType,
    /// `alg` is unknown or does not belong to `kty` and `crv`.
    #[error("unsupported or mismatched alg")]
    Algorithm,
    /// `use` is not `sig`, or `key_ops` lacks `verify`.
    #[error("not a signature key")]
    Use,
    /// Private parts were published: whoever reads the set can sign.
    #[error("private key published")]
    Private,
    /// RSA below 2048 or above 8192 bits, or an exponent below 65537 or even (FIPS 186-5 A.1.1).
    #[error("weak RSA key")]
    Weak,
    /// The modulus has the fingerprint of CVE-2017-15361.
    #[error("RSA key with the ROCA weakness")]
    Roca,
    /// The parameters do not make a point or number of the right form.
    #[error("malformed key")]
    Malformed,
}

/// The signature does not verify, or its algorithm is not this key's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotVerified {
    /// The key is not for this algorithm.
    #[error("the key is not for this algorithm")]
    Algorithm,
    /// The signature is wrong.
    #[error("wrong signature")]
    Signature,
}

/// One public key, parsed once, with the algorithms that it may verify.
pub struct Key {
    verifiers: Vec<(Algorithm, ParsedPublicKey)>,
    fingerprint: [u8; 32],
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.verifiers.iter().map(|(algorithm, _)| algorithm)).finish()
    }
}

impl Key {
    /// Imports a JWK.
    ///
    /// # Errors
    /// The first [`KeyFlaw`] found. `kid` is not looked at.
    pub fn import(jwk: &Map<String, Value>) -> Result<Self, KeyFlaw> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        if jwk.get("use").is_some_and(|v| v.as_str() != Some("sig")) || !may_verify(jwk.get("key_ops")) {
            return Err(KeyFlaw::Use);
        }
        if jwk.contains_key("d") {
            return Err(KeyFlaw::Private);
        }
        let pinned = match jwk.get("alg") {
            None => None,
            Some(name) => Some(name.as_str().and_then(Algorithm::from_name).ok_or(KeyFlaw::Algorithm)?),
        };
        match (text("kty"), text("crv")) {
            (Some("RSA"), _) => Self::rsa(pinned, bytes(jwk, "n")?, bytes(jwk, "e")?),
            (Some("EC"), Some("P-256")) => Self::curve(pinned, Algorithm::Es256, &point(jwk, 32)?),
            (Some("EC"), Some("P-384")) => Self::curve(pinned, Algorithm::Es384, &point(jwk, 48)?),
            (Some("OKP"), Some("Ed25519")) => Self::curve(pinned, Algorithm::EdDsa, &sized(jwk, "x", 32)?),
            _ => Err(KeyFlaw::KeyType),
        }
    }

    fn rsa(pinned: Option<Algorithm>, n: Vec<u8>, e: Vec<u8>) -> Result<Self, KeyFlaw> {
        // RFC 7518 section 6.3.1.1 knows of encoders that prepend a zero octet.
        let (n, e) = (without_leading_zeros(&n), without_leading_zeros(&e));
        let bits = n.first().map_or(0, |top| n.len() * 8 - top.leading_zeros() as usize);
        let exponent = match e.len() {
            1..=8 => e.iter().fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte)),
            _ => return Err(KeyFlaw::Weak),
        };
        if !(2048..=8192).contains(&bits) || exponent < 65_537 || exponent % 2 == 0 {
            return Err(KeyFlaw::Weak);
        }
        if has_roca_fingerprint(n) {
            return Err(KeyFlaw::Roca);
        }
        let algorithms = match pinned {
            None => Algorithm::RSA.to_vec(),
            Some(one) if Algorithm::RSA.contains(&one) => vec![one],
            Some(_) => return Err(KeyFlaw::Algorithm),
        };
        let verifiers = algorithms
            .into_iter()
            .map(|algorithm| {
                let parameters = match algorithm {
                    Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                    _ => &signature::RSA_PKCS1_2048_8192_SHA256,
                };
                let key = RsaPublicKeyComponents { n, e }.to_parsed_public_key(parameters);
                Ok((algorithm, key.map_err(|_| KeyFlaw::Malformed)?))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { verifiers, fingerprint: fingerprint(&[b"RSA", e, n]) })
    }

    fn curve(pinned: Option<Algorithm>, algorithm: Algorithm, public: &[u8]) -> Result<Self, KeyFlaw> {
        if pinned.is_some_and(|one| one != algorithm) {
            return Err(KeyFlaw::Algorithm);
        }
        let scheme: &'static dyn signature::VerificationAlgorithm = match algorithm {
            Algorithm::Es256 => &signature::ECDSA_P256_SHA256_FIXED,
            Algorithm::Es384 => &signature::ECDSA_P384_SHA384_FIXED,
            Algorithm::EdDsa => &signature::ED25519,
            _ => return Err(KeyFlaw::KeyType),
        };
        let key = signature::UnparsedPublicKey::new(scheme, public).parse().map_err(|_| KeyFlaw::Malformed)?;
        Ok(Self { verifiers: vec![(algorithm, key)], fingerprint: fingerprint(&[b"curve", public]) })
    }

    /// Checks a JWS signature (RFC 7515 section 5.2) with the algorithm that the
    /// token names, which must be one of this key's.
    ///
    /// # Errors
    /// [`NotVerified`].
    pub fn verify(&self, algorithm: Algorithm, signing_input: &[u8], signature: &[u8]) -> Result<(), NotVerified> {
        let (_, key) = self.verifiers.iter().find(|(own, _)| *own == algorithm).ok_or(NotVerified::Algorithm)?;
        key.verify_sig(signing_input, signature).map_err(|_| NotVerified::Signature)
    }

    /// SHA-256 over the public parts: the same key under the same `kid` stays the same.
    pub(super) fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }
}

/// Why a document gives no key set at all; the last good one stays in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeySetFlaw {
    /// Not `{"keys":[…]}`, or more than 64 keys, or larger than 256 KiB.
    #[error("the document is not a JSON Web Key Set of at most 64 keys")]
    NotAKeySet,
    /// Every key was dropped, or there was none.
    #[error("the key set has no usable key")]
    NoUsableKey,
}

/// The usable keys of an issuer by `kid`.
///
/// ```
/// use alchemi::identity::jwks::{KeySet, KeySetFlaw};
///
/// let hmac = br#"{"keys":[{"kty":"oct","kid":"a","k":"c2VjcmV0"}]}"#;
/// assert_eq!(KeySet::parse(hmac).unwrap_err(), KeySetFlaw::NoUsableKey);
/// ```
#[derive(Debug)]
pub struct KeySet {
    keys: HashMap<String, Key>,
    dropped: BTreeMap<KeyFlaw, usize>,
}

impl KeySet {
    /// Parses a JWK Set, dropping and counting what cannot be trusted.
    ///
    /// # Errors
    /// [`KeySetFlaw`] when nothing is left to verify with.
    pub fn parse(document: &[u8]) -> Result<Self, KeySetFlaw> {
        if document.len() > MAX_KEY_SET_BYTES {
            return Err(KeySetFlaw::NotAKeySet);
        }
        let set = json::object(document).ok_or(KeySetFlaw::NotAKeySet)?;
        let listed = set.get("keys").and_then(Value::as_array).ok_or(KeySetFlaw::NotAKeySet)?;
        if listed.len() > MAX_KEYS {
            return Err(KeySetFlaw::NotAKeySet);
        }
        let mut dropped = BTreeMap::new();
        let mut by_kid: HashMap<String, Vec<Key>> = HashMap::new();
        for jwk in listed {
            match named_key(jwk) {
                Ok((kid, key)) => by_kid.entry(kid).or_default().push(key),
                Err(flaw) => *dropped.entry(flaw).or_insert(0) += 1,
            }
        }
        let mut keys = HashMap::with_capacity(by_kid.len());
        for (kid, mut candidates) in by_kid {
            match (candidates.pop(), candidates.len()) {
                (Some(only), 0) => drop(keys.insert(kid, only)),
                (_, others) => *dropped.entry(KeyFlaw::DuplicateKid).or_insert(0) += others + 1,
            }
        }
        if keys.is_empty() { Err(KeySetFlaw::NoUsableKey) } else { Ok(Self { keys, dropped }) }
    }

    /// The key with this `kid`. The name is only ever compared.
    pub fn get(&self, kid: &str) -> Option<&Key> {
        self.keys.get(kid)
    }

    /// The names of the usable keys.
    pub fn kids(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// How many keys are usable; at least one.
    #[expect(clippy::len_without_is_empty, reason = "a key set is never empty")]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// How many keys were dropped, by reason.
    pub fn dropped(&self) -> &BTreeMap<KeyFlaw, usize> {
        &self.dropped
    }
}

fn named_key(jwk: &Value) -> Result<(String, Key), KeyFlaw> {
    let jwk = jwk.as_object().ok_or(KeyFlaw::Malformed)?;
    let key = Key::import(jwk)?;
    match jwk.get("kid").and_then(Value::as_str) {
        Some(kid) if (1..=super::jwt::MAX_KID_BYTES).contains(&kid.len()) => Ok((kid.to_owned(), key)),
        _ => Err(KeyFlaw::NoKid),
    }
}

fn may_verify(key_ops: Option<&Value>) -> bool {
    key_ops.is_none_or(|ops| ops.as_array().is_some_and(|ops| ops.iter().any(|op| op == "verify")))
}

fn bytes(jwk: &Map<String, Value>, name: &str) -> Result<Vec<u8>, KeyFlaw> {
    let text = jwk.get(name).and_then(Value::as_str).ok_or(KeyFlaw::Malformed)?;
    URL_SAFE_NO_PAD.decode(text).map_err(|_| KeyFlaw::Malformed)
}

fn sized(jwk: &Map<String, Value>, name: &str, len: usize) -> Result<Vec<u8>, KeyFlaw> {
    bytes(jwk, name).and_then(|found| if found.len() == len { Ok(found) } else { Err(KeyFlaw::Malformed) })
}

/// SEC 1 uncompressed form; the import checks that it lies on the curve.
fn point(jwk: &Map<String, Value>, len: usize) -> Result<Vec<u8>, KeyFlaw> {
    Ok([&[4_u8][..], &sized(jwk, "x", len)?, &sized(jwk, "y", len)?].concat())
}

fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

fn fingerprint(parts: &[&[u8]]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, &parts.join(&0)).as_ref());
    out
}

/// Odd primes up to 167, the factors of the primorial in CVE-2017-15361.
const ROCA_PRIMES: [u32; 38] = [
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109,
    113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
];

/// Whether the modulus is a power of 65537 modulo each of those primes: always so
/// for the weak keys, for others about once in 2^27 (Nemec et al., CCS 2017).
fn has_roca_fingerprint(modulus: &[u8]) -> bool {
    ROCA_PRIMES.iter().all(|&p| {
        let residue = modulus.iter().fold(0, |rest, byte| (rest * 256 + u32::from(*byte)) % p);
        let mut power = 1;
        (1..p).any(|_| {
            power = power * 65_537 % p;
            power == residue
        })
    })
}
