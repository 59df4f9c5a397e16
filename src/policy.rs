//! The verdict: a pure function of who asks, what for, and which rules hold.
//!
//! [`decide`] does no I/O, has no clock of its own and never waits. The data
//! plane, the dry-run and explain routes, the benchmarks and the property tests
//! all call it. A [`Permit`] is made nowhere else, and nothing is forwarded
//! without one.

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::context::{Context, Domain};
use crate::credits::{Credits, Factor, Usd};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::agents::Agent;
use crate::model::budgets::Enforcement;
use crate::model::connections::Connection;
use crate::model::directory::Placement;
use crate::model::scope::Scope;
use crate::model::usage::RouteKind;
use crate::problem::Problem;

pub mod budget;
pub mod companions;
pub mod features;
pub mod guardrails;
pub mod models;
pub mod trace;

use budget::{BudgetRules, Chain, Link};
use companions::{CompanionRule, may_use};
use features::KindFeature;
use guardrails::Guardrails;
use models::{ModelRules, ModelVerdict, Reason};
use trace::{Rule, Step, Witness};

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

/// What an estimate is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AskSize {
    /// Estimated input tokens.
    pub input_tokens: u64,
    /// Input tokens that its text cannot be more than, because a token is a byte at least.
    pub most_input: u64,
    /// Bytes of its text, which is at least as many as characters.
    pub characters: u64,
    /// Images, audio clips and files in it.
    pub media: u64,
    /// Seconds of audio in its files, by their length in bytes.
    pub seconds: u64,
    /// `max_tokens`, `max_completion_tokens` or `max_output_tokens`, if sent.
    pub max_output: Option<u64>,
    /// How many answers are asked for, `n` for each prompt; at least 1.
    pub answers: u64,
    /// Whether it asks for a `service_tier` that may be dearer than the plain one.
    pub priority: bool,
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
    /// Features that kinds of requests require, and whether the subject has them.
    pub features: Vec<KindFeature>,
    /// What holds for the agent that the rules were asked for with.
    pub agent: Option<CompanionRule<Agent>>,
    /// What holds for the connection that the rules were asked for with.
    pub connection: Option<CompanionRule<Connection>>,
    /// What prompts are screened by: the agent's and the subject's presets together.
    pub guardrails: Guardrails,
    /// Which caps hold.
    pub budget: BudgetRules,
    /// The chain that follows from them, while its windows last.
    pub chain: Chain,
    /// Credits for each dollar.
    pub factor: Factor,
    /// What happens to a request that does not fit into a cap.
    pub enforcement: Enforcement,
    /// Whether an account without an allocation is refused.
    pub allocation_required: bool,
}

impl Rules {
    /// What a request is held at that is expected to cost this much; more than there can
    /// be if the credits do not fit.
    pub fn credits(&self, estimate: Usd) -> Credits {
        self.factor.credits(estimate).unwrap_or(Credits::MAX)
    }
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
    /// The subject does not have the feature that the kind of request requires.
    FeatureDisabled {
        /// The feature's code.
        feature: String,
        /// The account's name.
        account: String,
    },
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
    /// The model has no price, and one is required.
    ModelUnpriced {
        /// The model.
        model: String,
    },
    /// What it could cost fits into no budget.
    EstimateTooLarge,
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
        /// What is held of it, by requests under way or ahead of them, if that alone stands in the way.
        held: Option<Credits>,
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
            Self::FeatureDisabled { .. } => "feature_disabled",
            Self::ModelDenied { .. } => "model_denied",
            Self::AgentDenied => "agent_denied",
            Self::ConnectionDenied => "connection_denied",
            Self::ModelUnpriced { .. } => "model_unpriced",
            Self::EstimateTooLarge => "estimate_too_large",
            Self::AllocationMissing => "allocation_missing",
            Self::AllocationExhausted { .. } => "allocation_exhausted",
        }
    }

    /// A refused model with some of those `known` that the subject may use instead.
    #[must_use]
    pub fn suggesting(self, rules: &Rules, known: impl FnOnce() -> Vec<String>) -> Self {
        match self {
            Self::ModelDenied { model, account, .. } => {
                let mut allowed = rules.models.suggestions(known().iter().map(String::as_str));
                allowed.sort_unstable();
                allowed.truncate(SUGGESTED);
                Self::ModelDenied { model, account, allowed }
            }
            other => other,
        }
    }
}

/// How many models a refusal suggests.
const SUGGESTED: usize = 8;

/// What a client asks for beside the body: an agent and a connection of the account.
#[derive(Debug, Clone, Copy, Default)]
pub struct Companions<'a> {
    /// `x-alchemi-agent-id`
    pub agent: Option<&'a str>,
    /// `x-alchemi-connection-id`
    pub connection: Option<&'a str>,
}

/// Decides, in this order, the first failure answering: account active, domain
/// allowed, feature of the kind, model access, agent, connection, allocation. Guardrails have their own
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
    let domain_allowed = context.check_domain(rules.domain).is_ok();
    let links = judge(domain_allowed, ask, with, rules, now, &mut ())?;
    Ok(Permit { rules: Arc::clone(rules), links })
}

/// A verdict that nobody can act on, with everything that took part in it.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The scopes that the request would be counted under, or why it would be refused.
    pub verdict: Result<Arc<[Link]>, Denial>,
    /// The rules that were asked, in their order; after the first that fails, none is.
    pub steps: Vec<Step>,
}

/// What [`decide`] would say of a subject who need not be there: the same code, watched.
pub fn explain(domain_allowed: bool, ask: &Ask, with: Companions<'_>, rules: &Rules, now: Timestamp) -> Explanation {
    let mut steps = Vec::new();
    let verdict = judge(domain_allowed, ask, with, rules, now, &mut steps);
    Explanation { verdict, steps }
}

fn judge(
    domain_allowed: bool,
    ask: &Ask,
    with: Companions<'_>,
    rules: &Rules,
    now: Timestamp,
    seen: &mut impl Witness,
) -> Result<Arc<[Link]>, Denial> {
    let Rules { account, domain, .. } = rules;
    hold(
        seen,
        !rules.account_suspended,
        || Denial::AccountSuspended,
        |passed| {
            let status = if passed { "active" } else { "suspended" };
            Step::of(Rule::Account, passed, format!("account {account} in domain {domain} is {status}"))
        },
    )?;
    hold(
        seen,
        !rules.placement.is_suspended(),
        || Denial::UserSuspended,
        |passed| {
            let user = rules.placement.user.as_ref();
            let user =
                user.map_or_else(|| "the directory does not know the subject".to_owned(), |id| format!("user {id}"));
            Step::of(Rule::User, passed, if passed { user } else { format!("{user} is suspended") })
        },
    )?;
    hold(
        seen,
        domain_allowed,
        || Denial::DomainDenied(*domain),
        |passed| {
            let may = if passed { "allows" } else { "does not allow" };
            Step::of(Rule::Domain, passed, format!("the token {may} domain {domain}"))
        },
    )?;
    if let Some(required) = rules.features.iter().find(|feature| feature.kind == ask.kind) {
        let denied = || Denial::FeatureDisabled { feature: required.code.clone(), account: rules.account_name.clone() };
        hold(seen, required.enabled, denied, |_| feature_step(required))?;
    }
    for model in ask.model.iter().chain(&ask.fallbacks) {
        let verdict = rules.models.resolve(model);
        let denied =
            || Denial::ModelDenied { model: model.clone(), account: rules.account_name.clone(), allowed: Vec::new() };
        hold(seen, verdict.allowed, denied, |_| model_step(model, &verdict))?;
    }
    let agent = may_use(with.agent, rules.agent.as_ref());
    hold_companion(seen, Rule::Agent, with.agent, agent, Denial::AgentDenied)?;
    let connection = may_use(with.connection, rules.connection.as_ref());
    hold_companion(seen, Rule::Connection, with.connection, connection, Denial::ConnectionDenied)?;
    if ask.kind.is_metered() {
        let has_one = rules.budget.account.is_some();
        hold(
            seen,
            has_one || !rules.allocation_required,
            || Denial::AllocationMissing,
            |passed| {
                let detail = match (has_one, passed) {
                    (true, _) => "the account has an allocation",
                    (false, true) => "the account has no allocation, and needs none",
                    (false, false) => "the account has no allocation",
                };
                Step::of(Rule::Allocation, passed, detail)
            },
        )?;
    }
    let kept = rules.chain.at(now);
    Ok(kept.unwrap_or_else(|| rules.budget.chain(account, *domain, &rules.placement, now).into()))
}

/// Goes on if the rule is kept.
fn hold(
    seen: &mut impl Witness,
    kept: bool,
    denial: impl FnOnce() -> Denial,
    step: impl FnOnce(bool) -> Step,
) -> Result<(), Denial> {
    seen.sees(|| step(kept));
    if kept { Ok(()) } else { Err(denial()) }
}

fn hold_companion(
    seen: &mut impl Witness,
    rule: Rule,
    id: Option<&str>,
    granted: bool,
    denial: Denial,
) -> Result<(), Denial> {
    let Some(id) = id else { return Ok(()) };
    hold(
        seen,
        granted,
        || denial,
        |passed| {
            let is = if passed { "exists and may be used" } else { "does not exist here or is not granted" };
            Step { about: Some(id.to_owned()), ..Step::of(rule, passed, format!("{id} {is}")) }
        },
    )
}

fn feature_step(required: &KindFeature) -> Step {
    let KindFeature { kind, code, enabled, resolved_from } = required;
    let is = if *enabled { "on" } else { "off" };
    let by = match resolved_from {
        Some(scope) => format!("by an entitlement of {scope}"),
        None => "because no entitlement of the account's pack says otherwise".to_owned(),
    };
    Step {
        about: Some(code.clone()),
        scope: resolved_from.clone(),
        ..Step::of(Rule::Feature, *enabled, format!("{} requires feature {code}, which is {is} {by}", kind.as_str()))
    }
}

fn model_step(model: &str, verdict: &ModelVerdict<'_>) -> Step {
    let answer = if verdict.allowed { "allowed" } else { "denied" };
    let by = match (verdict.reason, verdict.resolved_from) {
        (Reason::Grant, Some(scope)) => format!("a grant on {scope}"),
        (Reason::PolicyDenies, _) => "the account's console policy".to_owned(),
        (Reason::OutsidePolicy, _) => "the account's console policy, which does not list it".to_owned(),
        (Reason::Grant | Reason::Default, _) => "default: no grant matches".to_owned(),
    };
    Step {
        about: Some(model.to_owned()),
        scope: verdict.resolved_from.cloned(),
        grant: verdict.candidates.first().map(|grant| grant.id.clone()),
        ..Step::of(Rule::Model, verdict.allowed, format!("model {model} {answer} by {by}"))
    }
}

/// What decided, one sentence for each rule that was asked and each scope that the request
/// is counted under: for admins who ask why.
pub fn trace(context: &Context, ask: &Ask, with: Companions<'_>, rules: &Rules, now: Timestamp) -> Vec<String> {
    let explanation = explain(context.check_domain(rules.domain).is_ok(), ask, with, rules, now);
    let links = explanation.verdict.iter().flat_map(|links| links.iter());
    let counted = links.map(|link| match link.cap {
        Some(cap) => format!("{} capped at {cap} credits from {}", link.scope, link.window.start),
        None => format!("{} counted, not capped", link.scope),
    });
    explanation.steps.iter().map(|step| step.detail.clone()).chain(counted).collect()
}

impl From<Denial> for Problem {
    fn from(denial: Denial) -> Self {
        let code = denial.code();
        match denial {
            Denial::AccountSuspended => crate::context::account_suspended(),
            Denial::UserSuspended => Self::forbidden(
                code,
                "Your user is suspended in this domain of the account; an admin of the account can restore it",
            ),
            Denial::DomainDenied(domain) => Self::forbidden(
                code,
                format!("Domain access denied: {domain}. Send x-alchemi-domain with a domain that your token allows"),
            ),
            Denial::FeatureDisabled { feature, account } => Self::forbidden(
                code,
                format!("Ask an admin of account {account} to switch the feature `{feature}` on for you"),
            )
            .with("feature", feature),
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
            Denial::ModelUnpriced { model } => Self::forbidden(
                code,
                format!(
                    "Model `{model}` has no price: ask the operator to set one in the upstream or under metering.prices"
                ),
            ),
            Denial::EstimateTooLarge => Self::bad_request(
                code,
                "This request could cost more than any budget holds: ask for fewer tokens or answers",
            ),
            Denial::AllocationMissing => Self::new(
                http::StatusCode::PAYMENT_REQUIRED,
                code,
                "This account has no credits: an operator sets them with POST /v1/budgets/account-allocation",
            )
            .with_header(http::HeaderName::from_static("x-should-retry"), "false"),
            Denial::AllocationExhausted { scope, remaining, requested, held, resets_at } => {
                exhausted(code, &scope, (remaining, requested, held), resets_at)
            }
        }
    }
}

fn exhausted(
    code: &'static str,
    scope: &Scope,
    (remaining, requested, held): (Credits, Credits, Option<Credits>),
    resets_at: Option<Timestamp>,
) -> Problem {
    let until = resets_at.map_or_else(String::new, |at| format!(" or wait until {at}"));
    let way_out = match held {
        Some(held) => format!("try again in a moment, when others have given back of the {held} that they hold"),
        None => format!("ask an admin for more{until}"),
    };
    let detail = format!(
        "The {} has {remaining} credits left and the request may need {requested}: {way_out}, or lower max_tokens",
        scope.scope_type
    );
    let problem = Problem::new(http::StatusCode::PAYMENT_REQUIRED, code, detail)
        .with("scope", scope)
        .with("remaining_credits", remaining)
        .with("requested_credits", requested)
        .with("resets_at", resets_at);
    let should_retry = http::HeaderName::from_static("x-should-retry");
    match held {
        Some(_) => problem.with_header(should_retry, "true").with_header(http::header::RETRY_AFTER, "1"),
        None => problem.with_header(should_retry, "false"),
    }
}
