//! `/v1/me/context` and `/v1/auth/zitadel/status`: what the gateway makes of the caller.

use axum::extract::State;
use serde::Serialize;

use super::App;
use super::answer::{Answer, Outcome, Refusals};
use super::call::Anyone;
use crate::context::{AuthProvider, Context};
use crate::id::Id;
use crate::model::accounts::Account;

/// What follows from the caller's token.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub struct CallerContext {
    /// The account, if the token or `X-Account-Id` names one.
    account_id: Option<Id<Account>>,
    /// Whether they may act for every account.
    is_super_admin: bool,
    /// `zitadel` or `master_key`; `null` for an anonymous caller.
    #[schema(example = "zitadel")]
    auth_provider: Option<&'static str>,
    /// Roles that count for the account, by their canonical names.
    #[schema(example = json!(["account_admin"]))]
    roles: Vec<String>,
    /// Scopes of the token.
    #[schema(example = json!(["openid"]))]
    scopes: Vec<String>,
    /// Product domains of the token; `all` stands for every one.
    #[schema(example = json!(["copilot"]))]
    product_domains_allowed: Vec<String>,
}

impl From<&Context> for CallerContext {
    fn from(context: &Context) -> Self {
        Self {
            account_id: context.account().cloned(),
            is_super_admin: context.is_super_admin(),
            auth_provider: Some(context.provider().as_str()),
            roles: context.roles().to_vec(),
            scopes: context.scopes().to_vec(),
            product_domains_allowed: context.product_domains().names().to_vec(),
        }
    }
}

/// Whether Zitadel is in use, and what follows from the caller's token.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ZitadelStatus {
    /// Whether the caller came with a token of Zitadel.
    enabled: bool,
    /// Whether tokens of Zitadel are accepted at all.
    zitadel_configured: bool,
    /// The issuer of the caller's token, else the usual one; `null` for an anonymous caller.
    #[schema(example = "https://login.example.com")]
    issuer: Option<String>,
    /// `zitadel` or `master_key`; `null` for an anonymous caller.
    #[schema(example = "zitadel")]
    auth_provider: Option<&'static str>,
    /// The account, if the token or `X-Account-Id` names one.
    account_id: Option<Id<Account>>,
    /// Roles that count for the account, by their canonical names.
    roles: Vec<String>,
    /// Scopes of the token.
    scopes: Vec<String>,
    /// Product domains of the token.
    product_domains_allowed: Vec<String>,
}

/// Show who is calling
///
/// Anybody may ask, callers of a suspended account too; an anonymous caller gets an
/// empty context.
#[utoipa::path(get, path = "/v1/me/context", tag = "context", security((), ("bearer" = [])),
    responses((status = 200, description = "The caller's context", body = CallerContext), Refusals))]
pub async fn get_context(Anyone(context): Anyone) -> Answer {
    Answer::of(&context.as_ref().map(CallerContext::from).unwrap_or_default())
}

/// Show whether Zitadel is in use
///
/// Anybody may ask; only a signed-in caller sees the issuer.
#[utoipa::path(get, path = "/v1/auth/zitadel/status", tag = "context", security((), ("bearer" = [])),
    responses((status = 200, description = "The status", body = ZitadelStatus), Refusals))]
pub async fn get_zitadel_status(State(app): State<App>, Anyone(context): Anyone) -> Outcome {
    context.as_ref().map_or(Ok(()), Context::check_active)?;
    let issuer = context.as_ref().and_then(|caller| {
        let own = app.issuers.iter().find(|issuer| ***issuer == *caller.actor().issuer);
        own.or_else(|| app.issuers.first()).cloned()
    });
    let caller = context.as_ref().map(CallerContext::from).unwrap_or_default();
    Ok(Answer::of(&ZitadelStatus {
        enabled: context.is_some_and(|c| c.provider() == AuthProvider::Zitadel),
        zitadel_configured: !app.issuers.is_empty(),
        issuer,
        auth_provider: caller.auth_provider,
        account_id: caller.account_id,
        roles: caller.roles,
        scopes: caller.scopes,
        product_domains_allowed: caller.product_domains_allowed,
    }))
}
