//! The issuer's HTTP routes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode, header};
use jsonwebtoken::Algorithm;
use percent_encoding::percent_decode_str;
use serde_json::json;
use subtle::ConstantTimeEq as _;

use super::claims::{AUDIENCE_SCOPE, Session};
use super::{DEFAULT_LIFETIME, Service, State};

/// As Zitadel v4 sends it with its keys.
const KEYS_CACHE_CONTROL: &str = "max-age=300, must-revalidate";

pub(super) fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/oauth/v2/keys", get(keys))
        .route("/oauth/v2/token", post(token))
        .route("/oauth/v2/introspect", post(introspect))
        .route("/debug/healthz", get(async || "ok"))
        .fallback(not_here)
        .with_state(state)
}

async fn discovery(Shared(state): Shared<Arc<State>>) -> Response {
    let url = &state.url;
    let algorithms = ["EdDSA", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512"];
    let client_auth = ["none", "client_secret_basic", "client_secret_post", "private_key_jwt"];
    let api_auth = ["client_secret_basic", "private_key_jwt"];
    axum::Json(json!({
        "issuer": url,
        "authorization_endpoint": format!("{url}/oauth/v2/authorize"),
        "token_endpoint": format!("{url}/oauth/v2/token"),
        "introspection_endpoint": format!("{url}/oauth/v2/introspect"),
        "userinfo_endpoint": format!("{url}/oidc/v1/userinfo"),
        "revocation_endpoint": format!("{url}/oauth/v2/revoke"),
        "end_session_endpoint": format!("{url}/oidc/v1/end_session"),
        "device_authorization_endpoint": format!("{url}/oauth/v2/device_authorization"),
        "jwks_uri": format!("{url}/oauth/v2/keys"),
        "scopes_supported": ["openid", "profile", "email", "phone", "address", "offline_access"],
        "response_types_supported": ["code", "id_token", "id_token token"],
        "response_modes_supported": ["query", "fragment", "form_post"],
        "grant_types_supported": [
            "authorization_code", "implicit", "refresh_token", "client_credentials",
            "urn:ietf:params:oauth:grant-type:jwt-bearer", "urn:ietf:params:oauth:grant-type:device_code",
        ],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
        "request_object_signing_alg_values_supported": algorithms,
        "token_endpoint_auth_methods_supported": client_auth,
        "token_endpoint_auth_signing_alg_values_supported": algorithms,
        "revocation_endpoint_auth_methods_supported": client_auth,
        "revocation_endpoint_auth_signing_alg_values_supported": algorithms,
        "introspection_endpoint_auth_methods_supported": api_auth,
        "introspection_endpoint_auth_signing_alg_values_supported": algorithms,
        "code_challenge_methods_supported": ["S256"],
        "ui_locales_supported": ["de", "en"],
        "request_parameter_supported": true,
        "request_uri_parameter_supported": false,
        "backchannel_logout_supported": true,
        "backchannel_logout_session_supported": true,
    }))
    .into_response()
}

async fn keys(Shared(state): Shared<Arc<State>>) -> Response {
    let published = state.desk().keys.published();
    ([(header::CACHE_CONTROL, KEYS_CACHE_CONTROL)], axum::Json(published)).into_response()
}

/// RFC 6749 section 4.4; no refresh token for service users.
async fn token(Shared(state): Shared<Arc<State>>, headers: HeaderMap, body: Bytes) -> Result<Response, Refusal> {
    let form = form(&body);
    match form.get("grant_type").map(String::as_str) {
        Some("client_credentials") => {}
        Some(_) => {
            return Err(Refusal::bad("unsupported_grant_type", "the development issuer knows client_credentials"));
        }
        None => return Err(Refusal::bad("invalid_request", "grant_type missing")),
    }
    let (username, secret) = credentials(&headers, &form)?;
    let scope = form.get("scope").cloned().unwrap_or_default();
    let audience = audience(&scope, &username);
    let subject = match state.desk().services.get(&username) {
        Some(Service { subject, secret: expected }) if same(expected, &secret) => subject.clone(),
        _ => return Err(Refusal::client("invalid client credentials")),
    };
    let session = state.session(&subject, &username, audience, scope, DEFAULT_LIFETIME);
    let mut desk = state.desk();
    let user = desk.users.get(&subject).ok_or(Refusal::client("the user is not active"))?;
    let claims = session.access_token(&state.url, &state.project, user, false);
    let access_token = desk.keys.sign(Algorithm::RS256, &claims).map_err(|_| Refusal::server())?;
    desk.sessions.insert(session.token_id.clone(), session);
    // Zitadel rounds down what is left when it answers.
    let expires_in = DEFAULT_LIFETIME.saturating_sub(Duration::from_secs(1)).as_secs();
    let answer = json!({"access_token": access_token, "token_type": "Bearer", "expires_in": expires_in});
    Ok(([(header::CACHE_CONTROL, "no-store")], axum::Json(answer)).into_response())
}

/// RFC 7662: only a bad client is an error, any problem with the token is
/// `{"active": false}`.
async fn introspect(Shared(state): Shared<Arc<State>>, headers: HeaderMap, body: Bytes) -> Result<Response, Refusal> {
    let form = form(&body);
    let (id, secret) = credentials(&headers, &form)?;
    if state.desk().services.contains_key(&id) {
        return Err(Refusal(
            StatusCode::UNAUTHORIZED,
            "unauthorized_client",
            "only an API or OIDC application may introspect",
        ));
    }
    if !(same(&state.api.id, &id) && same(&state.api.secret, &secret)) {
        return Err(Refusal::client("invalid client credentials"));
    }
    let active = form.get("token").and_then(|token| state.active(token));
    Ok(axum::Json(active.unwrap_or_else(|| json!({"active": false}))).into_response())
}

impl State {
    /// The introspection of a token that is in its session store, was meant for
    /// the project, has not expired and whose user exists.
    fn active(&self, token: &str) -> Option<serde_json::Value> {
        let desk = self.desk();
        let session: &Session = if token.split('.').count() == 3 {
            let claims = desk.keys.verify(token)?;
            desk.sessions.get(claims.get("jti")?.as_str()?)?
        } else {
            desk.opaque.get(token)?
        };
        let ours = session.audience.iter().any(|audience| *audience == self.project || *audience == self.api.id);
        if !ours || session.expires_at <= self.clock.now().as_secs() {
            return None;
        }
        let user = desk.users.get(&session.subject)?;
        Some(json!(session.introspection(&self.url, &self.project, user)))
    }
}

/// A service user's audience: the projects that its scopes name, else itself.
fn audience(scope: &str, username: &str) -> Vec<String> {
    let (before, after) = AUDIENCE_SCOPE;
    let asked: Vec<String> = scope
        .split_ascii_whitespace()
        .filter_map(|scope| scope.strip_prefix(before)?.strip_suffix(after))
        .map(str::to_owned)
        .collect();
    if asked.is_empty() { vec![username.to_owned()] } else { asked }
}

fn form(body: &[u8]) -> HashMap<String, String> {
    url::form_urlencoded::parse(body).into_owned().collect()
}

/// HTTP Basic, each half form-encoded (RFC 6749 section 2.3.1), else the form.
fn credentials(headers: &HeaderMap, form: &HashMap<String, String>) -> Result<(String, String), Refusal> {
    let basic = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Basic "));
    if let Some(basic) = basic {
        let decoded = STANDARD.decode(basic.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let (id, secret) = decoded
            .as_deref()
            .and_then(|pair| pair.split_once(':'))
            .ok_or(Refusal::client("malformed Basic credentials"))?;
        return Ok((form_decoded(id), form_decoded(secret)));
    }
    match (form.get("client_id"), form.get("client_secret")) {
        (Some(id), Some(secret)) => Ok((id.clone(), secret.clone())),
        _ => Err(Refusal::client("client credentials missing")),
    }
}

fn form_decoded(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

fn same(expected: &str, given: &str) -> bool {
    expected.as_bytes().ct_eq(given.as_bytes()).into()
}

/// RFC 6749 section 5.2.
struct Refusal(StatusCode, &'static str, &'static str);

impl Refusal {
    const fn bad(error: &'static str, description: &'static str) -> Self {
        Self(StatusCode::BAD_REQUEST, error, description)
    }

    const fn client(description: &'static str) -> Self {
        Self(StatusCode::UNAUTHORIZED, "invalid_client", description)
    }

    const fn server() -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "the token could not be signed")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(status, error, description) = self;
        (status, axum::Json(json!({"error": error, "error_description": description}))).into_response()
    }
}

async fn not_here() -> Response {
    let description = "the development issuer serves discovery, keys, token and introspection only";
    Refusal(StatusCode::NOT_FOUND, "not_found", description).into_response()
}
