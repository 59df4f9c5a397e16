//! `/v1/policy/explain`: what the gateway would say to a request, and why.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::answer::{Halt, Outcome, Refusals, or_404};
use super::budgets::roll_over;
use super::call::{Call, EitherAdmin};
use super::directory::{ChainQuery, not_found};
use super::input::{Body, require};
use crate::allocation::{Enforcement, drawn};
use crate::clock::Timestamp;
use crate::context::{Domain, ProductDomains, Tenant};
use crate::credits::{Credits, Usd};
use crate::id::Id;
use crate::model::directory::{Org, Placement, Team, User};
use crate::model::models::ModelGrant;
use crate::model::scope::{Scope, ScopeType};
use crate::model::text::{Email, Name};
use crate::model::usage::RouteKind;
use crate::policy::budget::{Drawn, Link, shortage};
use crate::policy::trace::{Rule, Step};
use crate::policy::{self, Ask, AskSize, Companions, Denial, Rules};
use crate::problem::Problem;
use crate::store::Tx;
use crate::store::directory::PlacementError;

/// What requests are expected to cost, as the data plane expects it.
#[derive(Clone)]
pub struct Estimator(Arc<Estimate>);

type Estimate = dyn Fn(&Ask, &str) -> Result<Usd, Denial> + Send + Sync;

impl Estimator {
    /// An estimator that asks `held` for a request and its model.
    pub fn new(held: impl Fn(&Ask, &str) -> Result<Usd, Denial> + Send + Sync + 'static) -> Self {
        Self(Arc::new(held))
    }
}

impl Default for Estimator {
    /// Of a gateway without prices: every request is free.
    fn default() -> Self {
        Self::new(|_, _| Ok(Usd::ZERO))
    }
}

impl fmt::Debug for Estimator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Estimator")
    }
}

/// A request that somebody might send.
///
/// Who sends it: the subject of a token, by `subject` and `email`; or a user of the
/// directory, by `user_id`; or whoever stands in a team or an org; else somebody whom the
/// directory does not know.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "domain": "copilot",
    "user_id": "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11",
    "model": "gpt-4o-mini",
    "estimate": {"input_tokens": 1200, "max_output_tokens": 400}
}))]
pub struct Question {
    /// The product domain; the gateway's default unless said.
    #[serde(default)]
    domain: Option<Domain>,
    /// The `sub` of the token.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    subject: Option<Name>,
    /// The verified e-mail address of the token.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    email: Option<Email>,
    /// A user of the directory, in place of `subject` and `email`.
    #[serde(default)]
    user_id: Option<Id<User>>,
    /// The team to act in; else the one that they joined first.
    #[serde(default)]
    team_id: Option<Id<Team>>,
    /// An org, where nobody is named.
    #[serde(default)]
    org_id: Option<Id<Org>>,
    /// Domains that the token allows; all unless said.
    #[serde(default)]
    #[schema(example = json!(["copilot"]))]
    product_domains_allowed: Option<Vec<String>>,
    /// The kind of request.
    #[serde(default = "chat")]
    #[schema(default = "chat")]
    kind: RouteKind,
    /// The model; of a kind that names none, absent.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "gpt-4o-mini")]
    model: Option<Name>,
    /// Models that the upstream may fall back to.
    #[serde(default)]
    #[schema(value_type = Vec<String>, max_items = 100)]
    fallbacks: Vec<Name>,
    /// `x-alchemi-agent-id`
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    agent_id: Option<Name>,
    /// `x-alchemi-connection-id`
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    connection_id: Option<Name>,
    /// How large the request is.
    #[serde(default)]
    estimate: Size,
}

fn chat() -> RouteKind {
    RouteKind::Chat
}

/// How large a request is.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Input tokens.
    #[serde(default)]
    input_tokens: u64,
    /// The request's own limit on output tokens; the gateway's default unless said.
    #[serde(default)]
    max_output_tokens: Option<u64>,
    /// How many answers it asks for; 1 unless said.
    #[serde(default)]
    answers: Option<u64>,
    /// What it costs in US dollars, in place of what the price book says.
    #[serde(default)]
    raw_cost: Option<Usd>,
}

/// Whether a request would be let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It would, as far as guardrails, which read its text, allow.
    Allow,
    /// It would not.
    Deny,
}

/// What the gateway would say, and why.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Explained {
    /// Whether the request would be let through.
    decision: Decision,
    /// The refusal's code; of a request that is let in over a cap, `over_cap` or `would_refuse`.
    #[schema(value_type = Option<String>, example = "model_denied")]
    code: Option<&'static str>,
    /// The refusal's status.
    #[schema(example = 403)]
    status: Option<u16>,
    /// The refusal's sentence.
    detail: Option<String>,
    /// The product domain.
    domain: Domain,
    /// Where the subject stands.
    place: Place,
    /// What the request is expected to cost; null when it was refused before, or is free by its kind.
    estimate: Option<Expected>,
    /// The rules that were asked, in their order.
    rules: Vec<Asked>,
}

/// Where a subject stands.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub struct Place {
    /// Their row of the directory.
    user_id: Option<Id<User>>,
    /// Their team.
    team_id: Option<Id<Team>>,
    /// The team's org.
    org_id: Option<Id<Org>>,
}

/// What a request is expected to cost.
#[derive(Debug, Clone, Copy, Serialize, utoipa::ToSchema)]
pub struct Expected {
    /// In US dollars.
    raw_cost: Usd,
    /// What would be held, in credits.
    credits: Credits,
}

/// What one rule said.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Asked {
    /// The rule.
    rule: Rule,
    /// Whether it lets the request through.
    passed: bool,
    /// The same in words.
    #[schema(example = "model gpt-4o-mini allowed by a grant on team 019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11")]
    detail: String,
    /// The model, agent or connection that it was asked about.
    about: Option<String>,
    /// The scope that decided, or whose credits are meant.
    scope: Option<Scope>,
    /// The model grant that decided.
    grant_id: Option<Id<ModelGrant>>,
    /// Of `credits`: what the scope has.
    credits: Option<ScopeCredits>,
}

/// What a scope has in its current window.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ScopeCredits {
    /// The most that may be used and held together; null: no limit.
    cap: Option<Credits>,
    /// Credits of settled requests.
    used: Credits,
    /// Credits that requests under way hold.
    reserved: Credits,
    /// What is left of the cap, below zero if more was drawn; null: no limit.
    remaining: Option<Credits>,
    /// When the window ends; null: never.
    resets_at: Option<Timestamp>,
}

impl Question {
    fn ask(&self) -> Result<Ask, Problem> {
        let needs_model = self.kind.is_metered() || self.kind == RouteKind::CountTokens;
        require(self.model.is_some() || !needs_model, "/model", "is required for this kind")?;
        require(self.fallbacks.len() <= 100, "/fallbacks", "must be at most 100")?;
        require(self.estimate.answers != Some(0), "/estimate/answers", "must be at least 1")?;
        require(!self.estimate.raw_cost.unwrap_or_default().is_negative(), "/estimate/raw_cost", "cannot be negative")?;
        Ok(Ask {
            kind: self.kind,
            model: self.model.as_ref().map(Name::to_string),
            fallbacks: self.fallbacks.iter().map(Name::to_string).collect(),
            stream: false,
            size: AskSize {
                input_tokens: self.estimate.input_tokens,
                most_input: self.estimate.input_tokens,
                max_output: self.estimate.max_output_tokens,
                answers: self.estimate.answers.unwrap_or(1),
                ..AskSize::default()
            },
        })
    }

    fn companions(&self) -> Companions<'_> {
        Companions {
            agent: self.agent_id.as_ref().map(Name::as_str),
            connection: self.connection_id.as_ref().map(Name::as_str),
        }
    }

    fn allows(&self, domain: Domain) -> bool {
        self.product_domains_allowed.as_ref().is_none_or(|names| ProductDomains::new(names.clone()).allow(domain))
    }

    /// Where the subject stands: found as the data plane finds it, where a token could say it.
    async fn place(&self, tx: &mut Tx<Tenant>, domain: Domain) -> Result<Result<Placement, PlacementError>, Halt> {
        let named = self.subject.is_some() || self.email.is_some();
        require(!(named && self.user_id.is_some()), "/user_id", "stands in place of subject and email")?;
        let somebody = named || self.user_id.is_some();
        require(!(somebody && self.org_id.is_some()), "/org_id", "follows from the team of whoever is named")?;
        let (mut subject, mut email) =
            (self.subject.as_ref().map(Name::to_string), self.email.as_ref().map(Email::to_string));
        if let Some(id) = &self.user_id {
            let user = or_404(tx.user(domain, id).await?, "").map_err(|_| not_found(domain, ScopeType::User))?;
            (subject, email) = (user.identity_user_id, user.email);
        }
        if subject.is_none() && email.is_none() {
            let (org_id, team_id, user_id) = (self.org_id.clone(), self.team_id.clone(), self.user_id.clone());
            return Ok(Ok(ChainQuery { org_id, team_id, user_id }.placement(tx, domain).await?));
        }
        let subject = subject.unwrap_or_default();
        Ok(tx.placement(domain, &subject, email.as_deref(), self.team_id.as_ref()).await)
    }
}

/// Explain a decision
///
/// What the gateway would say to a request, by the rules, the prices and the credits that
/// hold at this moment, and by the same code; with every rule that was asked. Nothing is
/// held and nothing is sent. Guardrails are not asked, because they read the request's
/// text. Needs the admin rights of the domain that is asked for.
#[utoipa::path(post, path = "/v1/policy/explain", tag = "policy", request_body = Question,
    responses((status = 200, description = "The decision, and what took part in it", body = Explained), Refusals))]
pub async fn explain_policy(call: Call<EitherAdmin>, Body(question): Body<Question>) -> Outcome {
    let domain = question.domain.unwrap_or(call.app.default_domain);
    let call = call.domain_admin(domain)?;
    let ask = question.ask()?;
    roll_over(&call).await?;
    let mut tx = call.ask().await?;
    let account = or_404(tx.this_account().await?, "Account not found")?;
    let place = match question.place(&mut tx, domain).await? {
        Ok(place) => place,
        Err(PlacementError::Store(error)) => return Err(error.into()),
        Err(denied @ PlacementError::TeamDenied) => {
            let step = Step::of(Rule::Team, false, "the subject is not a member of the team");
            let explained = Explained::new(domain, Place::default(), vec![step]).refused(denied.into());
            return call.done(tx, &explained).await;
        }
    };
    let agent = question.agent_id.as_ref().map(|id| id.as_str().parse().unwrap_or_else(|_| Id::nobody()));
    let connection = question.connection_id.as_ref().map(|id| id.as_str().parse().unwrap_or_else(|_| Id::nobody()));
    let companions = (agent.as_ref(), connection.as_ref());
    let rules = call.app.terms.rules(&mut tx, account, domain, place, companions).await?;
    let told = policy::explain(question.allows(domain), &ask, question.companions(), &rules, tx.now());
    let explained = Explained::new(domain, Place::of(&rules.placement), told.steps);
    let explained = match told.verdict {
        Err(denial) => explained.refused(denial.suggesting(&rules, || call.app.catalogue.models()).into()),
        Ok(links) => explained.admit(&call, &mut tx, (&question, &ask), &rules, &links).await?,
    };
    call.done(tx, &explained).await
}

impl Explained {
    fn new(domain: Domain, place: Place, steps: Vec<Step>) -> Self {
        let rules = steps.into_iter().map(Asked::from).collect();
        Self { decision: Decision::Allow, code: None, status: None, detail: None, domain, place, estimate: None, rules }
    }

    fn refused(self, problem: Problem) -> Self {
        Self {
            decision: Decision::Deny,
            code: Some(problem.code()),
            status: Some(problem.status()),
            detail: Some(problem.detail().to_owned()),
            ..self
        }
    }

    /// Goes on with price and credits, as the data plane does with a permit.
    async fn admit(
        mut self,
        call: &Call<super::call::DomainAdmin>,
        tx: &mut Tx<Tenant>,
        (question, ask): (&Question, &Ask),
        rules: &Rules,
        links: &[Link],
    ) -> Result<Self, Halt> {
        let Some(model) = ask.model.as_deref().filter(|_| ask.kind.is_metered()) else { return Ok(self) };
        let expected = match question.estimate.raw_cost {
            Some(cost) => Ok(cost),
            None => (call.app.estimator.0)(ask, model),
        };
        let raw_cost = match expected {
            Ok(cost) => cost,
            Err(denial) => {
                let step =
                    Step { about: Some(model.to_owned()), ..Step::of(Rule::Price, false, "the model has no price") };
                self.rules.push(step.into());
                return Ok(self.refused(denial.into()));
            }
        };
        let credits = rules.credits(raw_cost);
        self.estimate = Some(Expected { raw_cost, credits });
        let counters = tx.counters(links).await?;
        let chain = drawn(links, &counters);
        let enforcement = rules.enforcement;
        self.rules.extend(chain.iter().map(|drawn| Asked::credits(drawn, credits, enforcement)));
        let fits = chain.iter().all(|drawn| drawn.fits(credits));
        Ok(match (shortage(&chain, credits).filter(|_| !fits), enforcement) {
            (Some(denial), Enforcement::Hard) => self.refused(denial.into()),
            (Some(_), lax @ (Enforcement::Soft | Enforcement::Shadow)) => Self { code: Some(lax.mark()), ..self },
            _ => self,
        })
    }
}

impl Place {
    fn of(place: &Placement) -> Self {
        Self { user_id: place.user.clone(), team_id: place.team.clone(), org_id: place.org.clone() }
    }
}

impl From<Step> for Asked {
    fn from(step: Step) -> Self {
        let Step { rule, passed, about, scope, grant, detail } = step;
        Self { rule, passed, detail, about, scope, grant_id: grant, credits: None }
    }
}

impl Asked {
    fn credits(drawn: &Drawn<'_>, wanted: Credits, enforcement: Enforcement) -> Self {
        let scope = &drawn.link.scope;
        let detail = match (drawn.remaining(), drawn.fits(wanted), enforcement) {
            (None, ..) => format!("{scope} is counted, not capped"),
            (Some(left), true, _) => format!("{scope} has {left} credits left of the {wanted} that are needed"),
            (Some(left), false, Enforcement::Hard) => {
                format!("{scope} has only {left} credits left, {wanted} are needed")
            }
            (Some(left), false, lax @ (Enforcement::Soft | Enforcement::Shadow)) => {
                let lax = lax.as_str();
                format!(
                    "{scope} has only {left} credits left, {wanted} are needed; enforcement is {lax} and lets it through"
                )
            }
            (Some(left), false, Enforcement::Off) => {
                format!("{scope} has only {left} credits left, {wanted} are needed; enforcement is off")
            }
        };
        let passed = drawn.fits(wanted) || enforcement != Enforcement::Hard;
        let credits = ScopeCredits {
            cap: drawn.link.cap,
            used: drawn.used,
            reserved: drawn.reserved,
            remaining: drawn.remaining(),
            resets_at: drawn.link.window.end,
        };
        let step = Step { scope: Some(scope.clone()), ..Step::of(Rule::Credits, passed, detail) };
        Self { credits: Some(credits), ..step.into() }
    }
}
