//! The issuer's signing keys, made at start and published as Zitadel does.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde_json::{Map, Value};

use crate::dev::DevError;

/// A key pair under its `kid`, a numeric snowflake in Zitadel.
pub(super) struct SigningKey {
    algorithm: Algorithm,
    kid: String,
    private: EncodingKey,
    public: Jwk,
}

/// An RSA key of 2048 bits for an issuer: making one takes longer than everything else at its
/// start, and issuers of tests may share it.
#[derive(Clone)]
pub struct DevKey(EncodingKey);

impl DevKey {
    /// A fresh one.
    ///
    /// # Errors
    /// [`DevError::Signing`] when none can be made.
    pub fn generate() -> Result<Self, DevError> {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).map_err(unusable)?;
        let der = pair.as_der().map_err(unusable)?;
        let body = STANDARD.encode(der.as_ref());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
        EncodingKey::from_rsa_pem(pem.as_bytes()).map(Self).map_err(unusable)
    }
}

impl std::fmt::Debug for DevKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DevKey")
    }
}

impl SigningKey {
    /// An RSA key, for RS256.
    pub(super) fn rsa(kid: String, key: DevKey) -> Result<Self, DevError> {
        Self::new(Algorithm::RS256, kid, key.0)
    }

    /// A fresh P-256 key, for ES256.
    pub(super) fn ec(kid: String) -> Result<Self, DevError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(unusable)?;
        let der = pair.to_pkcs8v1().map_err(unusable)?;
        Self::new(Algorithm::ES256, kid, EncodingKey::from_ec_der(der.as_ref()))
    }

    fn new(algorithm: Algorithm, kid: String, private: EncodingKey) -> Result<Self, DevError> {
        let mut public = Jwk::from_encoding_key(&private, algorithm).map_err(unusable)?;
        public.common.key_id = Some(kid.clone());
        public.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self { algorithm, kid, private, public })
    }
}

/// The keys in publication order; of an algorithm, the last one signs.
#[derive(Default)]
pub(super) struct KeyRing(Vec<SigningKey>);

impl KeyRing {
    /// Publishes `key`, which signs from now on; the former ones still verify.
    pub(super) fn activate(&mut self, key: SigningKey) {
        self.0.push(key);
    }

    /// Withdraws every key that no longer signs.
    pub(super) fn withdraw_inactive(&mut self) {
        let signing: Vec<String> = [Algorithm::RS256, Algorithm::ES256]
            .into_iter()
            .filter_map(|algorithm| self.active(algorithm).map(|key| key.kid.clone()))
            .collect();
        self.0.retain(|key| signing.contains(&key.kid));
    }

    /// What `/oauth/v2/keys` answers.
    pub(super) fn published(&self) -> JwkSet {
        JwkSet { keys: self.0.iter().map(|key| key.public.clone()).collect() }
    }

    /// `claims` as a compact JWS with Zitadel's header: `alg`, `kid`, `typ: JWT`.
    pub(super) fn sign(&self, algorithm: Algorithm, claims: &Map<String, Value>) -> Result<String, DevError> {
        let key = self
            .active(algorithm)
            .ok_or_else(|| DevError::Signing(format!("there is no {algorithm:?} key, only RS256 and ES256")))?;
        let header = Header { kid: Some(key.kid.clone()), ..Header::new(algorithm) };
        jsonwebtoken::encode(&header, claims, &key.private).map_err(unusable)
    }

    /// The claims of a token that one of these keys signed; dates are not checked.
    pub(super) fn verify(&self, token: &str) -> Option<Map<String, Value>> {
        let kid = jsonwebtoken::decode_header(token).ok()?.kid?;
        let key = self.0.iter().find(|key| key.kid == kid)?;
        let mut validation = Validation::new(key.algorithm);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let public = DecodingKey::from_jwk(&key.public).ok()?;
        jsonwebtoken::decode(token, &public, &validation).ok().map(|data| data.claims)
    }

    fn active(&self, algorithm: Algorithm) -> Option<&SigningKey> {
        self.0.iter().rev().find(|key| key.algorithm == algorithm)
    }
}

fn unusable(error: impl std::fmt::Display) -> DevError {
    DevError::Signing(error.to_string())
}
