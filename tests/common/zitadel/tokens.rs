//! The issuer's side: discovery, keys, introspection, and tokens of people and of the service user.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, UnparsedPublicKey};
use axum::Json;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};

use super::{CLIENT, KEY_ID, SERVICE_USER, Shared, Zitadel, lock};

/// An application of type API of every project, which may introspect.
pub(crate) const API: (&str, &str) = ("310716400000000001", "secret-of-the-api-application");
/// The application that people sign in to.
const APPLICATION: &str = "310716400000000002";

impl Zitadel {
    /// An access token of a user for a project, as an application whose token type is JWT gets it: it says the roles
    /// that they hold now.
    pub(crate) fn token_of(&self, user: &str, project: &str) -> String {
        let claims = self.shared.claims(user, project, seconds());
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input = format!("{}.{}", encode(json!({"alg": "RS256", "kid": KEY_ID, "typ": "JWT"})), encode(claims));
        let mut signature = vec![0; self.shared.key.public_modulus_len()];
        self.shared.key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input.as_bytes(), &mut signature).unwrap();
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// The same, where the token type is left as it is at first.
    pub(crate) fn opaque_token_of(&self, user: &str, project: &str) -> String {
        let mut sessions = lock(&self.shared.sessions);
        let token = format!("opaque-{}", sessions.len());
        sessions.insert(token.clone(), (user.to_owned(), project.to_owned(), seconds()));
        token
    }
}

fn seconds() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

impl Shared {
    /// Roles are there under two names; without any, under none.
    fn claims(&self, user: &str, project: &str, iat: u64) -> Value {
        let world = lock(&self.world);
        let mut roles: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
        let held = world.live_grants().filter(|grant| grant.active && grant.user == user && grant.project == project);
        for grant in held {
            for role in &grant.roles {
                let domain = format!("{}.localhost", world.orgs[&grant.org].to_lowercase());
                roles.entry(role).or_default().insert(&grant.org, domain);
            }
        }
        let mut claims = json!({
            "iss": self.url, "sub": user, "aud": [APPLICATION, project], "client_id": APPLICATION,
            "iat": iat, "nbf": iat, "exp": iat + 3_600, "jti": format!("V2_{user}-at_{iat}"),
            "urn:zitadel:iam:user:resourceowner:id": world.users[user].org,
        });
        if !roles.is_empty() {
            claims[format!("urn:zitadel:iam:org:project:{project}:roles")] = json!(roles);
            claims["urn:zitadel:iam:org:project:roles"] = json!(roles);
        }
        claims
    }
}

pub(super) fn keys(shared: &Shared) -> Response {
    let public = shared.key.public_key();
    let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    Json(json!({"keys": [{
        "use": "sig", "kty": "RSA", "alg": "RS256", "kid": KEY_ID,
        "n": number(public.modulus().big_endian_without_leading_zero()),
        "e": number(public.exponent().big_endian_without_leading_zero()),
    }]}))
    .into_response()
}

/// Any problem with a token is that it is not active.
pub(super) fn introspection(shared: &Shared, headers: &HeaderMap, body: &[u8]) -> Response {
    if basic(headers).is_none_or(|(id, secret)| (id.as_str(), secret.as_str()) != API) {
        return oauth_error("invalid_client");
    }
    let form: BTreeMap<String, String> = url::form_urlencoded::parse(body).into_owned().collect();
    let session = form.get("token").and_then(|token| lock(&shared.sessions).get(token).cloned());
    let active = |(user, _, _): &(String, String, u64)| lock(&shared.world).users[user].active;
    Json(match session.filter(active) {
        Some((user, project, iat)) => {
            let mut claims = shared.claims(&user, &project, iat);
            (claims["active"], claims["token_type"]) = (json!(true), json!("Bearer"));
            claims
        }
        None => json!({"active": false}),
    })
    .into_response()
}

pub(super) fn discovery(url: &str) -> Value {
    json!({
        "issuer": url,
        "authorization_endpoint": format!("{url}/oauth/v2/authorize"),
        "token_endpoint": format!("{url}/oauth/v2/token"),
        "introspection_endpoint": format!("{url}/oauth/v2/introspect"),
        "userinfo_endpoint": format!("{url}/oidc/v1/userinfo"),
        "revocation_endpoint": format!("{url}/oauth/v2/revoke"),
        "jwks_uri": format!("{url}/oauth/v2/keys"),
        "grant_types_supported": ["authorization_code", "client_credentials", "urn:ietf:params:oauth:grant-type:jwt-bearer"],
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    })
}

pub(super) fn token(shared: &Shared, headers: &HeaderMap, body: &[u8]) -> Response {
    let knobs = lock(&shared.knobs).clone();
    if knobs.down || knobs.no_tokens {
        return (StatusCode::SERVICE_UNAVAILABLE, "down").into_response();
    }
    let form: BTreeMap<String, String> = url::form_urlencoded::parse(body).into_owned().collect();
    let text = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let known = match text("grant_type") {
        "client_credentials" => {
            let (id, secret) =
                basic(headers).unwrap_or((text("client_id").to_owned(), text("client_secret").to_owned()));
            (id.as_str(), secret.as_str()) == CLIENT
        }
        "urn:ietf:params:oauth:grant-type:jwt-bearer" => assertion_holds(shared, text("assertion")),
        _ => return oauth_error("unsupported_grant_type"),
    };
    if !known {
        return oauth_error("invalid_client");
    }
    if !text("scope").split(' ').any(|scope| scope == "urn:zitadel:iam:org:project:id:zitadel:aud") {
        return oauth_error("invalid_scope");
    }
    let seconds = if knobs.token_seconds == 0 { 3_600 } else { knobs.token_seconds };
    let mut tokens = lock(&shared.tokens);
    let token = format!("access-{}", tokens.len());
    tokens.insert(token.clone(), Instant::now() + Duration::from_secs(seconds));
    Json(json!({"access_token": token, "token_type": "Bearer", "expires_in": seconds})).into_response()
}

/// Both parts are form-encoded inside (RFC 6749 section 2.3.1).
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let text = String::from_utf8(STANDARD.decode(value).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    let decode = |text: &str| url::form_urlencoded::parse(text.as_bytes()).next().map(|(name, _)| name.into_owned());
    Some((decode(id)?, decode(secret)?))
}

fn assertion_holds(shared: &Shared, assertion: &str) -> bool {
    let Some((input, signature)) = assertion.rsplit_once('.') else { return false };
    let part = |text: Option<&str>| -> Value {
        let bytes = URL_SAFE_NO_PAD.decode(text.unwrap_or_default()).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    };
    let mut parts = input.split('.');
    let (header, claims) = (part(parts.next()), part(parts.next()));
    let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, shared.key.public_key().as_ref());
    let signed = URL_SAFE_NO_PAD.decode(signature).is_ok_and(|s| key.verify(input.as_bytes(), &s).is_ok());
    signed
        && header["kid"] == KEY_ID
        && claims["iss"] == SERVICE_USER
        && claims["sub"] == SERVICE_USER
        && (claims["aud"] == json!(shared.url) || claims["aud"] == json!([shared.url]))
        && claims["exp"].as_i64() > claims["iat"].as_i64()
}

fn oauth_error(error: &str) -> Response {
    let status = if error == "invalid_client" { StatusCode::UNAUTHORIZED } else { StatusCode::BAD_REQUEST };
    (status, Json(json!({"error": error, "error_description": "the stand-in says no"}))).into_response()
}
