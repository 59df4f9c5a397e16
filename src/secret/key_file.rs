//! Private keys as Zitadel hands them out, and what they sign (RFC 7523).

use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::{Value, json};

use super::SecretString;
use crate::clock::Timestamp;

/// How long an assertion lives.
const ASSERTION_LIFETIME: Duration = Duration::from_secs(60);

/// The RSA key of an application or a service user, out of its JSON file.
#[derive(Debug)]
pub struct KeyFile {
    owner: String,
    key_id: String,
    key: RsaKeyPair,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    r#type: String,
    key_id: String,
    key: SecretString,
    client_id: Option<String>,
    user_id: Option<String>,
}

impl KeyFile {
    /// The key of an application of type API, which may introspect.
    ///
    /// # Errors
    /// What is wrong with the file, without a word of its content.
    pub fn of_application(file: &[u8]) -> Result<Self, &'static str> {
        let file = File::read(file)?;
        match (&file.client_id, file.r#type.as_str()) {
            (Some(owner), "application") => Self::new(owner.clone(), &file),
            _ => Err("is not the key of an application; Zitadel lets only applications of type API introspect"),
        }
    }

    /// The key of a service user, who may call Zitadel's own APIs.
    ///
    /// # Errors
    /// What is wrong with the file, without a word of its content.
    pub fn of_service_user(file: &[u8]) -> Result<Self, &'static str> {
        let file = File::read(file)?;
        match (&file.user_id, file.r#type.as_str()) {
            (Some(owner), "serviceaccount") => Self::new(owner.clone(), &file),
            _ => Err("is not the key of a service user; Zitadel's management API takes no other"),
        }
    }

    fn new(owner: String, file: &File) -> Result<Self, &'static str> {
        let key = match PrivateKeyDer::from_pem_slice(file.key.expose().as_bytes()) {
            Ok(PrivateKeyDer::Pkcs1(der)) => RsaKeyPair::from_der(der.secret_pkcs1_der()).ok(),
            Ok(PrivateKeyDer::Pkcs8(der)) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).ok(),
            _ => None,
        };
        Ok(Self { owner, key_id: file.key_id.clone(), key: key.ok_or("holds no RSA private key in PEM form")? })
    }

    /// A JWT that says, for a minute, that its owner wants something of `audience`.
    pub fn assertion(&self, audience: &str, now: Timestamp) -> Option<String> {
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": self.key_id});
        let claims = json!({
            "iss": self.owner, "sub": self.owner, "aud": audience,
            "iat": now.as_secs(), "exp": now.plus(ASSERTION_LIFETIME).as_secs(),
        });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input = format!("{}.{}", encode(&header), encode(&claims));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input.as_bytes(), &mut signature).ok()?;
        Some(format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

impl File {
    fn read(file: &[u8]) -> Result<Self, &'static str> {
        serde_json::from_slice(file).map_err(|_| "is not a key file as Zitadel hands it out")
    }
}
