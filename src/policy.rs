//! The verdict: a pure function of who asks, what for, and which rules hold.
//!
//! [`decide`] does no I/O, has no clock of its own and never waits. The data
//! plane, the dry-run and explain routes, the benchmarks and the property tests
//! all call it. A [`Permit`] is made nowhere else, and nothing is forwarded
//! without one.

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::context::{Context, Domain};
use crate::credits::{Credits, Factor};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::directory::Placement;
use crate::model::scope::Scope;
use crate::model::usage::RouteKind;
use crate::problem::Problem;

pub mod agents;
pub mod budget;
pub mod features;
pub mod guardrails;
pub mod models;

use budget::{BudgetRules, Chain, Link};
use models::ModelRules;

/// What a governed request asks for, read from its route and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The kind of route.
    pub kind: RouteKind,
    /// The model it names; `None` only for kinds that name none.
    pub model: Option<String>,
    /// Models the upstream may fall back to; each must pass the model policy too.
    pub fallbacks: Vec<String>,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// What the estimate is made from.
    pub size: AskSize,
}

/// What an estimate is made from (spec: allocations, section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AskSize {
    /// Estimated input tokens.
    pub input_tokens: u64,
    /// `max_tokens`, `max_completion_tokens` or `max_output_tokens`, if sent.
    pub max_output: Option<u64>,
    /// `n`, the number of answers asked for; at least 1.
    pub answers: u64,
}

/// Everything that holds for one subject in one domain.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The account that pays.
    pub account: Id<Account>,
    /// Its name, for refusals that say whom to ask.
    pub account_name: String,
    /// Whether it is suspended.
    pub account_suspended: bool,
    /// The product domain.
    pub domain: Domain,
    /// Where the subject stands in the directory.
    pub placement: Placement,
    /// Who may use which model.
    pub models: ModelRules,
    /// Which caps hold.
    pub budget: BudgetRules,
    /// The chain that follows from them, while its windows last.
    pub chain: Chain,
    /// Credits for each dollar.
    pub factor: Factor,
    /// Whether an account without an allocation is refused.
    pub allocation_required: bool,
}

/// Proof that the policy lets a request through; made by [`decide`] alone, and good
/// for one request.
#[derive(Debug)]
pub struct Permit {
    rules: Arc<Rules>,
    links: Arc<[Link]>,
}

impl Permit {
    /// The scopes that the request is counted under, in lock order.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The rules that it was given under.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    /// The account is suspended.
    AccountSuspended,
    /// The subject's user row is suspended.
    UserSuspended,
    /// The token does not allow the domain.
    DomainDenied(Domain),
    /// No grant, or one that denies.
    ModelDenied {
        /// The model.
        model: String,
        /// The account's name.
        account: String,
        /// Models that the subject may use; a few.
        allowed: Vec<String>,
    },
    /// The agent is unknown or not granted.
    AgentDenied,
    /// The connection is unknown or not granted.
    ConnectionDenied,
    /// The account has no allocation, and one is required.
    AllocationMissing,
    /// A scope's credits do not suffice.
    AllocationExhausted {
        /// The scope.
        scope: Scope,
        /// What it has left.
        remaining: Credits,
        /// What the request would hold.
        requested: Credits,
        /// When its window ends.
        resets_at: Option<Timestamp>,
    },
}

impl Denial {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::AccountSuspended => "account_suspended",
            Self::UserSuspended => "user_suspended",
            Self::DomainDenied(_) => "domain_denied",
            Self::ModelDenied { .. } => "model_denied",
            Self::AgentDenied => "agent_denied",
            Self::ConnectionDenied => "connection_denied",
            Self::AllocationMissing => "allocation_missing",
            Self::AllocationExhausted { .. } => "allocation_exhausted",
        }
    }
}

/// What a client asks for beside the body: an agent and a connection of the account.
#[derive(Debug, Clone, Copy, Default)]
pub struct Companions<'a> {
    /// `x-alchemi-agent-id`
    pub agent: Option<&'a str>,
    /// `x-alchemi-connection-id`
    pub connection: Option<&'a str>,
}

/// Decides, in this order, the first failure answering: account active, domain
/// allowed, model access, agent, connection, allocation. Guardrails have their own
/// stage behind this one, because they need the body's text.
///
/// # Errors
/// [`Denial`].
pub fn decide(
    context: &Context,
    ask: &Ask,
    with: Companions<'_>,
    rules: &Arc<Rules>,
    now: Timestamp,
) -> Result<Permit, Denial> {
    if rules.account_suspended {
        return Err(Denial::AccountSuspended);
    }
    if rules.placement.is_suspended() {
        return Err(Denial::UserSuspended);
    }
    if context.check_domain(rules.domain).is_err() {
        return Err(Denial::DomainDenied(rules.domain));
    }
    may_use_models(ask, rules)?;
    // No agent or connection can exist yet, so none can be granted.
    if with.agent.is_some() {
        return Err(Denial::AgentDenied);
    }
    if with.connection.is_some() {
        return Err(Denial::ConnectionDenied);
    }
    if ask.kind.is_metered() && rules.allocation_required && rules.budget.account.is_none() {
        return Err(Denial::AllocationMissing);
    }
    let links = rules
        .chain
        .at(now)
        .unwrap_or_else(|| rules.budget.chain(&rules.account, rules.domain, &rules.placement, now).into());
    Ok(Permit { rules: Arc::clone(rules), links })
}

/// The model and every fallback must be allowed.
fn may_use_models(ask: &Ask, rules: &Rules) -> Result<(), Denial> {
    let refused = ask.model.iter().chain(&ask.fallbacks).find(|model| !rules.models.resolve(model).allowed);
    match refused {
        None => Ok(()),
        Some(model) => {
            Err(Denial::ModelDenied { model: model.clone(), account: rules.account_name.clone(), allowed: Vec::new() })
        }
    }
}

/// What decided, rule by rule, in the order of [`decide`]: for admins who ask why.
pub fn trace(ask: &Ask, rules: &Rules, now: Timestamp) -> Vec<String> {
    let mut lines = vec![format!("account {} in domain {}", rules.account, rules.domain)];
    for model in ask.model.iter().chain(&ask.fallbacks) {
        let verdict = rules.models.resolve(model);
        let answer = if verdict.allowed { "allowed" } else { "denied" };
        lines.push(match verdict.resolved_from {
            Some(scope) => format!("model {model} {answer} by a grant on {scope}"),
            None => format!("model {model} {answer} ({:?})", verdict.reason),
        });
    }
    for link in rules.budget.chain(&rules.account, rules.domain, &rules.placement, now) {
        lines.push(match link.cap {
            Some(cap) => format!("{} capped at {cap} credits from {}", link.scope, link.window.start),
            None => format!("{} counted, not capped", link.scope),
        });
    }
    lines
}

impl From<Denial> for Problem {
    fn from(denial: Denial) -> Self {
        let code = denial.code();
        match denial {
            Denial::AccountSuspended => crate::context::account_suspended(),
            Denial::UserSuspended => {
                Self::forbidden(code, "Your user is suspended in this account; an admin of the account can restore it")
            }
            Denial::DomainDenied(domain) => Self::forbidden(
                code,
                format!("Domain access denied: {domain}. Send x-alchemi-domain with a domain that your token allows"),
            ),
            Denial::ModelDenied { model, account, allowed } => {
                let mut detail = format!("Ask an admin of account {account} to grant you the model `{model}`");
                if !allowed.is_empty() {
                    detail.push_str(&format!(", or choose one of: {}", allowed.join(", ")));
                }
                Self::forbidden(code, detail).with("model", model)
            }
            Denial::AgentDenied => {
                Self::forbidden(code, "The agent of x-alchemi-agent-id does not exist here or is not granted to you")
            }
            Denial::ConnectionDenied => Self::forbidden(
                code,
                "The connection of x-alchemi-connection-id does not exist here or is not granted to you",
            ),
            Denial::AllocationMissing => Self::new(
                http::StatusCode::PAYMENT_REQUIRED,
                code,
                "This account has no credits: an operator sets them with POST /v1/budgets/account-allocation",
            )
            .with_header(http::HeaderName::from_static("x-should-retry"), "false"),
            Denial::AllocationExhausted { scope, remaining, requested, resets_at } => {
                exhausted(code, &scope, remaining, requested, resets_at)
            }
        }
    }
}

fn exhausted(
    code: &'static str,
    scope: &Scope,
    remaining: Credits,
    requested: Credits,
    resets_at: Option<Timestamp>,
) -> Problem {
    let until = resets_at.map_or_else(String::new, |at| format!(" or wait until {at}"));
    let detail = format!(
        "The {} has {remaining} credits left and the request may need {requested}: ask an admin for more{until}, or lower max_tokens",
        scope.scope_type
    );
    Problem::new(http::StatusCode::PAYMENT_REQUIRED, code, detail)
        .with("scope", scope)
        .with("remaining_credits", remaining)
        .with("requested_credits", requested)
        .with("resets_at", resets_at)
        .with_header(http::HeaderName::from_static("x-should-retry"), "false")
}
