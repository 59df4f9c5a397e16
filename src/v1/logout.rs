//! `/v1/auth/zitadel/backchannel-logout`: the identity provider tells that somebody
//! signed out (OpenID Connect Back-Channel Logout 1.0).
//!
//! Nobody is signed in here: the logout token is the credential.

use std::fmt;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use futures_util::future::BoxFuture;
use http::{StatusCode, header};
use serde::Deserialize;

use super::App;
use super::answer::{Answer, Outcome, Refusals, StatusOk};
use super::input::read_body;
use crate::context::{Actor, Granted, RequestInfo};
use crate::model::audit::{Action, Label};
use crate::model::revocations::Logout;
use crate::problem::Problem;
use crate::store::audit::Entry;

/// Judges logout tokens, and makes a logout hold in this process.
pub trait SignOut: fmt::Debug + Send + Sync {
    /// Whom a logout token cuts off.
    ///
    /// # Errors
    /// 400 for a token that is not to be believed, 503 when its issuer's keys are not to be had.
    fn verify(&self, token: String) -> BoxFuture<'_, Result<Logout, Problem>>;

    /// Refuses the tokens that the logout ends, from now on.
    fn cut_off(&self, logout: &Logout);
}

/// Where no issuer is trusted, nobody signs out.
#[derive(Debug)]
pub(super) struct NoSignOut;

impl SignOut for NoSignOut {
    fn verify(&self, _: String) -> BoxFuture<'_, Result<Logout, Problem>> {
        Box::pin(async { Err(Problem::not_found("Logout tokens are not accepted here: no issuer is configured")) })
    }

    fn cut_off(&self, _: &Logout) {}
}

/// What the routes share of it.
pub(super) type SharedSignOut = Arc<dyn SignOut>;

/// The body, `application/x-www-form-urlencoded`; other members are ignored.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the form, which is read by hand")]
pub struct LogoutForm {
    /// A signed JWT with the event of a back-channel logout.
    #[schema(example = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjI5NjM5MzM5MjUwNDQzODc4NiJ9.e30.c2ln")]
    logout_token: String,
}

/// Receive a back-channel logout
///
/// For the identity provider: register the address as the application's back-channel
/// logout URI. Zitadel's access tokens do not name their session, so every token of the
/// subject that its issuer gave out up to then is refused, at once here and within a second
/// by the other gateways. A logout token is taken once. One without `sub` ends the opaque
/// tokens that name its session, and is refused where tokens of its issuer are not introspected.
#[utoipa::path(post, path = "/v1/auth/zitadel/backchannel-logout", tag = "revocations", security(()),
    request_body(content = LogoutForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, description = "The tokens are refused from now on", body = StatusOk), Refusals))]
pub async fn receive_logout(State(app): State<App>, info: Option<Extension<RequestInfo>>, request: Request) -> Outcome {
    let logout = app.sign_out.verify(logout_token(&app, request).await?).await?;
    let granted = Granted::identity_provider(actor(&logout));
    let granted = match info {
        Some(Extension(info)) => granted.for_request(info.id, info.client_ip),
        None => granted,
    };
    let mut tx = app.store.begin(&granted).await?;
    if !tx.insert_logout(&logout).await? {
        let detail = "This logout token was taken before";
        return Err(invalid_request("logout_token_replayed", detail).into());
    }
    let entry = Entry { action: Action::Create, table: "Alchemi_LogoutTable", id: &logout.token_id, label: Label::Iam };
    tx.audit(entry, None::<&Logout>, &logout).await?;
    tx.commit().await?;
    app.sign_out.cut_off(&logout);
    Ok(Answer::of(&StatusOk::OK))
}

/// Whose logout it is; the session, when the token names nobody.
fn actor(logout: &Logout) -> Actor {
    let subject = logout.subject.as_ref().or(logout.session.as_ref());
    Actor { issuer: logout.issuer.as_str().into(), subject: subject.map_or("", String::as_str).into(), email: None }
}

/// The one `logout_token` of a form.
async fn logout_token(app: &App, request: Request) -> Result<String, Problem> {
    let form = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        value
            .split(';')
            .next()
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"))
    });
    if !form {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "Send the body as Content-Type: application/x-www-form-urlencoded",
        ));
    }
    let body = read_body(request.into_body(), app.body_timeout).await?;
    let mut tokens = url::form_urlencoded::parse(&body).filter(|(name, _)| name == "logout_token");
    match (tokens.next(), tokens.next()) {
        (Some((_, token)), None) => Ok(token.into_owned()),
        _ => Err(invalid_request("logout_token_invalid", "Send logout_token exactly once")),
    }
}

/// 400 with the members of RFC 6749 section 5.2.
fn invalid_request(code: &'static str, detail: &'static str) -> Problem {
    Problem::bad_request(code, detail).with("error", "invalid_request").with("error_description", detail)
}
