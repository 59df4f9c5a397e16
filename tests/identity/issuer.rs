//! An issuer on the loopback interface that signs with real keys and can misbehave.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use alchemi::clock::{ManualClock, Timestamp};
use alchemi::identity::{Identity, IdentityConfig, IssuerConfig};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RsaKeyPair,
};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

pub(crate) const NOW: i64 = 1_800_000_000;
pub(crate) const PROJECT: &str = "294645919545032706";

pub(crate) fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) enum Signer {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair, &'static str),
    Ed(Ed25519KeyPair),
}

impl Signer {
    pub(crate) fn rsa(size: KeySize) -> Self {
        Self::Rsa(RsaKeyPair::generate(size).unwrap())
    }
    pub(crate) fn p256() -> Self {
        Self::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(), "P-256")
    }
    pub(crate) fn p384() -> Self {
        Self::Ec(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap(), "P-384")
    }
    pub(crate) fn ed() -> Self {
        Self::Ed(Ed25519KeyPair::generate().unwrap())
    }

    pub(crate) fn alg(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::Ec(_, "P-256") => "ES256",
            Self::Ec(..) => "ES384",
            Self::Ed(_) => "EdDSA",
        }
    }

    pub(crate) fn jwk(&self, kid: &str) -> Value {
        let mut jwk = match self {
            Self::Rsa(pair) => {
                let public = pair.public_key();
                json!({
                    "kty": "RSA",
                    "n": b64(public.modulus().big_endian_without_leading_zero()),
                    "e": b64(public.exponent().big_endian_without_leading_zero()),
                })
            }
            Self::Ec(pair, curve) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"kty": "EC", "crv": curve, "x": b64(x), "y": b64(y)})
            }
            Self::Ed(pair) => json!({"kty": "OKP", "crv": "Ed25519", "x": b64(pair.public_key())}),
        };
        jwk["kid"] = json!(kid);
        jwk["use"] = json!("sig");
        jwk["alg"] = json!(self.alg());
        jwk
    }

    pub(crate) fn sign_raw(&self, input: &[u8], alg: &str) -> Vec<u8> {
        let rng = SystemRandom::new();
        match self {
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                let padding = match alg {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                pair.sign(padding, &rng, input, &mut signature).unwrap();
                signature
            }
            Self::Ec(pair, _) => pair.sign(&rng, input).unwrap().as_ref().to_vec(),
            Self::Ed(pair) => pair.sign(input).as_ref().to_vec(),
        }
    }

    /// Signs exactly these bytes, valid JSON or not.
    pub(crate) fn sign_text(&self, header: &str, payload: &str) -> String {
        let alg = serde_json::from_str::<Value>(header).ok().and_then(|h| Some(h.get("alg")?.as_str()?.to_owned()));
        let input = format!("{}.{}", b64(header), b64(payload));
        let signature = self.sign_raw(input.as_bytes(), alg.as_deref().unwrap_or(self.alg()));
        format!("{input}.{}", b64(signature))
    }

    pub(crate) fn sign(&self, kid: &str, claims: &Value) -> String {
        let header = json!({"alg": self.alg(), "kid": kid, "typ": "JWT"});
        self.sign_text(&header.to_string(), &claims.to_string())
    }
}

pub(crate) static RSA: LazyLock<Signer> = LazyLock::new(|| Signer::rsa(KeySize::Rsa2048));
pub(crate) static RSA_OTHER: LazyLock<Signer> = LazyLock::new(|| Signer::rsa(KeySize::Rsa2048));
pub(crate) static EC: LazyLock<Signer> = LazyLock::new(Signer::p256);
pub(crate) static EC384: LazyLock<Signer> = LazyLock::new(Signer::p384);
pub(crate) static ED: LazyLock<Signer> = LazyLock::new(Signer::ed);

#[derive(Default)]
pub(crate) enum Mode {
    #[default]
    Serve,
    Status(u16),
    Bytes(Vec<u8>),
    Redirect,
    /// Answers once the gate is opened.
    Gate(Arc<tokio::sync::Notify>),
}

#[derive(Default)]
pub(crate) struct Knobs {
    pub(crate) keys: Mutex<Vec<Value>>,
    pub(crate) mode: Mutex<Mode>,
    pub(crate) fetches: AtomicUsize,
    pub(crate) discovery: Mutex<Option<Value>>,
    pub(crate) hosts: Mutex<Vec<String>>,
    pub(crate) introspections: AtomicUsize,
    pub(crate) answers: Mutex<HashMap<String, Value>>,
    pub(crate) introspection_down: Mutex<bool>,
    /// Introspection waits for a permit of it.
    pub(crate) introspection_gate: Mutex<Option<Arc<tokio::sync::Semaphore>>>,
    pub(crate) last_introspection: Mutex<Option<(HeaderMap, HashMap<String, String>)>>,
}

pub(crate) struct TestIssuer {
    pub(crate) url: String,
    pub(crate) knobs: Arc<Knobs>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for TestIssuer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl TestIssuer {
    /// Publishes an RSA, an EC and an Ed25519 key: `rsa`, `ec`, `ed`.
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let knobs = Arc::new(Knobs::default());
        *knobs.keys.lock().unwrap() = vec![RSA.jwk("rsa"), EC.jwk("ec"), EC384.jwk("ec384"), ED.jwk("ed")];
        *knobs.discovery.lock().unwrap() = Some(json!({
            "issuer": url,
            "jwks_uri": format!("{url}/oauth/v2/keys"),
            "introspection_endpoint": format!("{url}/oauth/v2/introspect"),
        }));
        let app = axum::Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/oauth/v2/keys", get(keys))
            .route("/oauth/v2/introspect", post(introspect))
            .with_state(Arc::clone(&knobs));
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, knobs, server }
    }

    pub(crate) fn config(&self) -> IdentityConfig {
        IdentityConfig {
            issuers: vec![IssuerConfig::at(&self.url)],
            project_id: Some(PROJECT.to_owned()),
            ..IdentityConfig::default()
        }
    }

    pub(crate) fn identity(&self) -> (Identity, Arc<ManualClock>) {
        identity(&self.config())
    }

    pub(crate) fn publish(&self, keys: Vec<Value>) {
        *self.knobs.keys.lock().unwrap() = keys;
    }

    pub(crate) fn mode(&self, mode: Mode) {
        *self.knobs.mode.lock().unwrap() = mode;
    }

    pub(crate) fn fetches(&self) -> usize {
        self.knobs.fetches.load(Ordering::SeqCst)
    }

    pub(crate) fn introspections(&self) -> usize {
        self.knobs.introspections.load(Ordering::SeqCst)
    }

    /// The claims of a Zitadel access token, with changes; `null` removes a claim.
    pub(crate) fn claims(&self, changes: Value) -> Value {
        let mut claims = json!({
            "iss": self.url, "sub": "286399320075272196", "aud": ["client-1", PROJECT],
            "exp": NOW + 43_200, "iat": NOW, "nbf": NOW, "client_id": "client-1",
            "jti": "V2_296398617516703746-at_296398617516769282",
        });
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
                value => claims[name] = value.clone(),
            }
        }
        claims
    }

    pub(crate) fn token(&self, changes: Value) -> String {
        RSA.sign("rsa", &self.claims(changes))
    }
}

pub(crate) fn identity(config: &IdentityConfig) -> (Identity, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at(Timestamp::from_secs(NOW)));
    (Identity::new(config, clock.clone()).unwrap(), clock)
}

async fn discovery(State(knobs): State<Arc<Knobs>>, headers: HeaderMap) -> Response {
    let host = headers.get("host").map(|h| h.to_str().unwrap().to_owned()).unwrap_or_default();
    knobs.hosts.lock().unwrap().push(host);
    match &*knobs.discovery.lock().unwrap() {
        Some(document) => axum::Json(document).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn keys(State(knobs): State<Arc<Knobs>>) -> Response {
    knobs.fetches.fetch_add(1, Ordering::SeqCst);
    let gate = match &*knobs.mode.lock().unwrap() {
        Mode::Serve => None,
        Mode::Status(code) => return StatusCode::from_u16(*code).unwrap().into_response(),
        Mode::Bytes(bytes) => return bytes.clone().into_response(),
        Mode::Redirect => return (StatusCode::FOUND, [("location", "/oauth/v2/keys2")]).into_response(),
        Mode::Gate(gate) => Some(Arc::clone(gate)),
    };
    if let Some(gate) = gate {
        gate.notified().await;
    }
    axum::Json(json!({"keys": *knobs.keys.lock().unwrap()})).into_response()
}

async fn introspect(State(knobs): State<Arc<Knobs>>, headers: HeaderMap, body: String) -> Response {
    let form: HashMap<String, String> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    knobs.introspections.fetch_add(1, Ordering::SeqCst);
    if *knobs.introspection_down.lock().unwrap() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let gate = knobs.introspection_gate.lock().unwrap().clone();
    if let Some(gate) = gate {
        gate.acquire().await.unwrap().forget();
    }
    let answer = knobs.answers.lock().unwrap().get(&form["token"]).cloned();
    *knobs.last_introspection.lock().unwrap() = Some((headers, form));
    axum::Json(answer.unwrap_or(json!({"active": false}))).into_response()
}
