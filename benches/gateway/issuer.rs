//! The issuer: Zitadel's discovery document and key set, and its tokens signed with RS256.

use std::convert::Infallible;
use std::thread;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair, RSA_PKCS1_SHA256};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::{Result, process};

pub(crate) const PROJECT: &str = "294645919545032706";
const KEY_ID: &str = "296393392504438786";

/// Serves what a verifier fetches.
pub(crate) async fn run(keys: &str) -> Result<()> {
    let keys = keys.to_owned();
    process::serve(move |request: Request<Incoming>| {
        let body = if request.uri().path() == "/oauth/v2/keys" { keys.clone() } else { discovery(&request) };
        let mut answer = Response::new(Full::new(Bytes::from(body)));
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        async { Ok::<_, Infallible>(answer) }
    })
    .await
}

fn discovery(request: &Request<Incoming>) -> String {
    let host = request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
    json!({
        "issuer": format!("http://{host}"),
        "authorization_endpoint": format!("http://{host}/oauth/v2/authorize"),
        "token_endpoint": format!("http://{host}/oauth/v2/token"),
        "introspection_endpoint": format!("http://{host}/oauth/v2/introspect"),
        "jwks_uri": format!("http://{host}/oauth/v2/keys"),
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    })
    .to_string()
}

/// Signs with one 2048-bit key.
pub(crate) struct Signer(RsaKeyPair);

impl Signer {
    pub(crate) fn generate() -> Result<Self> {
        Ok(Self(RsaKeyPair::generate(KeySize::Rsa2048)?))
    }

    /// The key set to publish.
    pub(crate) fn keys(&self) -> String {
        let public = self.0.public_key();
        let (n, e) = (public.modulus(), public.exponent());
        let (n, e) = (
            URL_SAFE_NO_PAD.encode(n.big_endian_without_leading_zero()),
            URL_SAFE_NO_PAD.encode(e.big_endian_without_leading_zero()),
        );
        json!({"keys": [{"use": "sig", "kty": "RSA", "kid": KEY_ID, "alg": "RS256", "n": n, "e": e}]}).to_string()
    }

    /// Signs as many tokens of about 1 KB as are asked for, on two threads. `claims` is given each token's number.
    pub(crate) fn tokens(&self, count: usize, claims: impl Fn(usize) -> Value + Sync) -> Result<Vec<String>> {
        let half = count / 2;
        thread::scope(|scope| {
            let sign =
                |numbers: std::ops::Range<usize>| numbers.map(|n| self.sign(&claims(n))).collect::<Result<Vec<_>>>();
            let first = scope.spawn(move || sign(0..half));
            let mut tokens = sign(half..count)?;
            tokens.extend(first.join().map_err(|_| "a signer panicked")??);
            Ok(tokens)
        })
    }

    fn sign(&self, claims: &Value) -> Result<String> {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": "RS256", "kid": KEY_ID, "typ": "JWT"}).to_string());
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}
