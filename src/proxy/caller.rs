//! Who calls and what holds for them, kept for as long as nothing of it changes.

use std::sync::Arc;

use super::headers::{CallerFacts, CallerHeaders};
use super::{Gateway, Shared};
use crate::allocation::rules::{Epoch, RuleBook, Subject, without_account};
use crate::context::{Context, Domain};
use crate::id::Id;
use crate::identity::Verified;
use crate::layer::Credential;
use crate::layer::headers::RequestHeaders;
use crate::policy::Rules;
use crate::problem::Problem;

/// Which caller: a verified token (by its place in memory, which the entry keeps
/// alive) and what the request's headers ask for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct CallerKey {
    verified: usize,
    account: Option<Box<str>>,
    team: Option<Box<str>>,
    agent: Option<Box<str>>,
    connection: Option<Box<str>>,
    domain: Option<Domain>,
}

/// Everything about a caller that outlives one request.
#[derive(Debug)]
pub(super) struct Caller {
    _verified: Option<Arc<Verified>>,
    pub(super) context: Context,
    pub(super) rules: Arc<Rules>,
    pub(super) headers: CallerHeaders,
    epoch: Epoch,
    /// At which state of all bindings the account was found.
    bindings: u64,
}

impl Caller {
    pub(super) fn facts<'a>(context: &'a Context, rules: &'a Rules) -> CallerFacts<'a> {
        let place = &rules.placement;
        CallerFacts {
            account_id: rules.account.as_str(),
            subject: &context.actor().subject,
            roles: context.roles(),
            scopes: context.scopes(),
            product_domains: context.product_domains().names(),
            domain: rules.domain,
            org_id: place.org.as_ref().map(AsRef::as_ref),
            team_id: place.team.as_ref().map(AsRef::as_ref),
            user_id: place.user.as_ref().map(AsRef::as_ref),
        }
    }
}

impl Gateway {
    /// Who calls and what holds for them; from the cache when nothing has changed.
    pub(super) async fn caller(&self, credential: Credential, asked: &RequestHeaders) -> Result<Arc<Caller>, Problem> {
        let Shared { parts, callers } = &*self.0;
        let verified = match &credential {
            Credential::Token(verified) => Some(Arc::clone(verified)),
            _ => None,
        };
        let rules = parts.authenticator.rules();
        let key = verified.as_ref().map(|verified| CallerKey {
            verified: Arc::as_ptr(verified).addr(),
            account: asked.account_id.clone(),
            team: asked.team_id.clone(),
            agent: asked.agent_id.clone(),
            connection: asked.connection_id.clone(),
            domain: asked.domain,
        });
        if let Some(known) = key.as_ref().and_then(|key| callers.get(key))
            && rules.is_current(&known.rules.account, known.epoch)
            && rules.bindings_epoch() == known.bindings
            && known.rules.chain.holds_at(parts.clock.now())
        {
            return Ok(known);
        }
        let caller = Arc::new(Box::pin(self.establish(&credential, verified, asked, rules)).await?);
        if let Some(key) = key {
            callers.insert(key, Arc::clone(&caller));
        }
        Ok(caller)
    }

    async fn establish(
        &self,
        credential: &Credential,
        verified: Option<Arc<Verified>>,
        asked: &RequestHeaders,
        book: &RuleBook,
    ) -> Result<Caller, Problem> {
        let own = &self.0.parts;
        // Before the look-ups: what changes meanwhile makes the entry stale.
        let bindings = book.bindings_epoch();
        let established = own.authenticator.establish(credential, asked.account_id.as_deref()).await?;
        let context = established.context;
        let account = context.account().cloned().ok_or_else(|| without_account(context.is_super_admin()))?;
        let domain = asked.domain.or_else(|| context.product_domains().only()).unwrap_or(own.config.domain_default);
        let team = asked.team_id.as_deref().map(str::parse).transpose();
        let team = team.map_err(|_| Problem::bad_request("invalid_header", "x-alchemi-team-id is not an id"))?;
        // What cannot be an id is the id of nothing.
        let agent = asked.agent_id.as_deref().map(|id| id.parse().unwrap_or_else(|_| Id::nobody()));
        let connection = asked.connection_id.as_deref().map(|id| id.parse().unwrap_or_else(|_| Id::nobody()));
        let mut epoch = book.epoch(&account);
        let subject = Subject { account, domain, actor: context.actor().clone(), team, agent, connection };
        let mut rules = book.rules(&subject).await?;
        if own.config.jit && rules.placement.user.is_none() && book.enrol(&context, &subject).await {
            epoch = book.epoch(&subject.account);
            rules = book.rules(&subject).await?;
        }
        let headers = Caller::facts(&context, &rules).headers(own.config.litellm);
        Ok(Caller { _verified: verified, context, rules, headers, epoch, bindings })
    }
}
