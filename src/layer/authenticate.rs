//! From the credential of a request to the context of its caller.
//!
//! 1. Three parts with dots between: a JWT, verified locally.
//! 2. Anything else: the operator's master key, else the upstream's own key, else
//!    an opaque token, which is introspected.
//! 3. The account is the first of the token's candidates that exists, by its id or
//!    by its Zitadel organisation, and is the token's issuer's: bound to it, or to none
//!    where the issuer is the platform's own. `X-Account-Id` moves a super admin to another.

use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use futures_util::future::BoxFuture;
use http::{Extensions, Request, Response};
use tower::{Layer, Service};
use tracing::{Instrument, Span};

use super::caller::CallerContext;
use super::headers::RequestHeaders;
use crate::allocation::rules::{AccountFacts, RuleBook, no_such_account};
use crate::context::{AskedPlace, Context, Domain, RequestInfo};
use crate::identity::{
    AccountBinding, Identity, IdentityError, MasterKey, Revocations, Verified, context as context_of,
    master_key_context,
};
use crate::problem::Problem;

/// What a caller presented, once it is known to be good.
#[derive(Debug, Clone)]
pub enum Credential {
    /// The master key.
    Operator,
    /// A token.
    Token(Arc<Verified>),
    /// A key of the upstream's own, which only the upstream can judge.
    Upstream,
}

/// Judges credentials and finds the account behind them.
#[derive(Debug, Clone)]
pub struct Authenticator {
    identity: Identity,
    master_key: Option<MasterKey>,
    rules: RuleBook,
}

/// A context and the account that it was established for.
#[derive(Debug, Clone)]
pub struct Established {
    /// Who calls.
    pub context: Context,
    /// Their account, if one is known.
    pub account: Option<Arc<AccountFacts>>,
}

impl Authenticator {
    /// An authenticator; without a master key, nobody is the operator.
    pub fn new(identity: Identity, master_key: Option<MasterKey>, rules: RuleBook) -> Self {
        Self { identity, master_key, rules }
    }

    /// Verifies what the caller presented.
    ///
    /// # Errors
    /// 401 when there is nothing, or nothing good; 503 when nobody can tell.
    pub async fn credential(&self, presented: Option<&str>) -> Result<Credential, Problem> {
        let token = presented.ok_or(IdentityError::Missing)?;
        if memchr::memchr_iter(b'.', token.as_bytes()).count() != 2 {
            if self.master_key.as_ref().is_some_and(|key| key.matches(token)) {
                return Ok(Credential::Operator);
            }
            if token.starts_with("sk-") {
                return Ok(Credential::Upstream);
            }
        }
        let verified = match self.identity.verify_cached(token) {
            Some(verdict) => verdict?,
            // Rare and large: it must not make every request's future large.
            None => Box::pin(self.identity.verify(token)).await?,
        };
        Ok(Credential::Token(verified))
    }

    /// The context of a credential, in the account that `asked` names or else in its own.
    ///
    /// # Errors
    /// 403 `account_mismatch`, `account_unknown`; 401 for an upstream key; 503.
    pub async fn establish(&self, credential: &Credential, asked: Option<&str>) -> Result<Established, Problem> {
        let named = match asked {
            Some(key) => self.rules.account(key).await?,
            None => None,
        };
        match credential {
            Credential::Upstream => Err(IdentityError::Missing.into()),
            Credential::Operator => {
                if asked.is_some() && named.is_none() {
                    return Err(no_such_account());
                }
                let context = master_key_context(named.as_deref().map(binding).as_ref());
                Ok(Established { context, account: named })
            }
            Credential::Token(verified) => self.of_token(verified, asked.is_some(), named).await,
        }
    }

    async fn of_token(
        &self,
        verified: &Verified,
        asked: bool,
        named: Option<Arc<AccountFacts>>,
    ) -> Result<Established, Problem> {
        let own = self.account_of(verified).await?;
        let same = match (&named, &own) {
            (Some(named), Some(own)) => named.account.account_id == own.account.account_id,
            _ => false,
        };
        let account = if asked { named } else { own };
        let bound = account.as_deref().map(binding);
        let context = context_of(verified, bound.as_ref(), asked && !same, self.identity.claim_rules())?;
        // Anybody else was refused already.
        if asked && account.is_none() {
            return Err(no_such_account());
        }
        if let Some(account) = &account {
            admit(self.identity.revocations(), account, verified, &context)?;
        }
        Ok(Established { context, account })
    }

    /// The first account that a token names. One of another issuer is none, as if it did not
    /// exist: an organisation's id says nothing at another issuer. An account that is bound to
    /// none is of the platform's own issuers.
    ///
    /// # Errors
    /// 503 when the database cannot be asked.
    pub async fn account_of(&self, verified: &Verified) -> Result<Option<Arc<AccountFacts>>, Problem> {
        for candidate in verified.account_candidates() {
            let found = self.rules.account(candidate).await?;
            if let Some(found) = found.filter(|facts| self.identity.claim_rules().admits(facts.issuer(), verified)) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The identity behind it.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The rules behind it.
    pub fn rules(&self) -> &RuleBook {
        &self.rules
    }
}

/// What the account itself says to a token: that of a former admin, known by their verified
/// address, is over, and while its binding is switched off none counts but an operator's.
fn admit(
    revocations: &Revocations,
    account: &AccountFacts,
    verified: &Verified,
    context: &Context,
) -> Result<(), Problem> {
    let before = verified.email().and_then(|email| account.cut_off(email));
    if before.is_some_and(|before| revocations.may_be_from_before(verified, before)) {
        return Err(IdentityError::Revoked.into());
    }
    if account.binding_is_off && !context.is_super_admin() {
        return Err(Problem::forbidden(
            "binding_off",
            "This account's binding to Zitadel is switched off: no token acts for it until the operator switches it on",
        ));
    }
    Ok(())
}

fn binding(facts: &AccountFacts) -> AccountBinding {
    let zitadel = facts.zitadel.as_ref();
    AccountBinding {
        id: facts.account.account_id.clone(),
        suspended: facts.suspended(),
        issuer: facts.issuer().map(str::to_owned),
        organization_id: zitadel.and_then(|z| z.organization_id.clone()),
        role_prefix: zitadel.and_then(|z| z.role_prefix.clone()),
        role_mappings: zitadel.map(|z| z.role_mappings.clone()).unwrap_or_default(),
    }
}

/// Puts the caller's [`Context`] into the extensions of each request that brings a
/// credential, and answers 401 or 403 itself when the credential is not good. A
/// request without one passes with no context: what needs one refuses it.
///
/// What serves the request also finds the context by [`CallerContext`], and runs in a
/// tracing span `caller` with account, subject, domain, team and request id. Headers
/// that only a gateway may set (`x-alchemi-*`, `x-account-id`) do not reach it.
#[derive(Debug, Clone)]
pub struct AuthenticateLayer(Authenticator);

impl AuthenticateLayer {
    /// A layer around `authenticator`.
    pub fn new(authenticator: Authenticator) -> Self {
        Self(authenticator)
    }
}

impl<S> Layer<S> for AuthenticateLayer {
    type Service = Authenticate<S>;

    fn layer(&self, inner: S) -> Authenticate<S> {
        Authenticate { inner, authenticator: self.0.clone() }
    }
}

/// See [`AuthenticateLayer`].
#[derive(Debug, Clone)]
pub struct Authenticate<S> {
    inner: S,
    authenticator: Authenticator,
}

impl<S, B, R> Service<Request<B>> for Authenticate<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: From<Vec<u8>> + Send,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<R>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The instance that was polled ready is the one to call.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let authenticator = self.authenticator.clone();
        Box::pin(async move {
            match authenticator.context_of(&mut request).await {
                Ok(Some(caller)) => {
                    let span = span_of(&caller, request.extensions());
                    CallerContext::scope(caller, async move { inner.call(request).await }).instrument(span).await
                }
                Ok(None) => inner.call(request).await,
                Err(problem) => {
                    let id = request.extensions().get::<RequestInfo>().map(|info| Arc::clone(&info.id));
                    let mut refusal = problem.clone().into_http(id.as_deref());
                    refusal.extensions_mut().insert(problem);
                    Ok(refusal)
                }
            }
        })
    }
}

impl Authenticator {
    /// Reads and removes the credential of a request, and leaves its context, and where
    /// the caller asks to act from, in the extensions.
    async fn context_of<B>(&self, request: &mut Request<B>) -> Result<Option<Context>, Problem> {
        let asked = RequestHeaders::take(request.headers_mut())?;
        request.extensions_mut().insert(AskedPlace { domain: asked.domain, team: asked.team_id.clone() });
        let Some(bearer) = &asked.bearer else { return Ok(None) };
        let credential = self.credential(Some(bearer.token())).await?;
        let established = self.establish(&credential, asked.account_id.as_deref()).await?;
        request.extensions_mut().insert(established.context.clone());
        Ok(Some(established.context))
    }
}

/// What every event of a request's work is found by.
fn span_of(caller: &Context, extensions: &Extensions) -> Span {
    let place = extensions.get::<AskedPlace>();
    tracing::info_span!(
        "caller",
        account = caller.account().map(AsRef::as_ref),
        subject = &*caller.actor().subject,
        domain = place.and_then(|place| place.domain).map(Domain::as_str),
        team = place.and_then(|place| place.team.as_deref()),
        request_id = extensions.get::<RequestInfo>().map(|info| &*info.id),
    )
}
