//! `/v1/{domain}/orgs`, `/teams`, `/users` and memberships; and where the caller of a
//! self-service route stands in them.

use axum::extract::FromRequestParts;
use http::request::Parts;
use serde::Deserialize;

use super::App;
use super::answer::Halt;
use super::budgets::Dividing;
use super::input::{Query, require};
use crate::context::{AskedPlace, Context, Domain, Tenant};
use crate::id::Id;
use crate::model::budgets::Plan;
use crate::model::directory::{Membership, Org, Placement, Team, User};
use crate::model::scope::{Scope, ScopeType};
use crate::policy::Denial;
use crate::problem::Problem;
use crate::store::Tx;

pub mod orgs;
pub mod teams;
pub mod users;

/// How to remove what holds something.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Removal {
    /// Remove what is inside, too; without it, a 409 says what is.
    #[serde(default)]
    cascade: bool,
}

/// 404 for a scope that the domain's tree does not have.
pub fn not_found(domain: Domain, kind: ScopeType) -> Problem {
    match kind {
        ScopeType::Agent => Problem::not_found("Copilot agent not found"),
        kind => Problem::not_found(format!("{domain} {kind} not found")),
    }
}

/// 404 or 400, unless `scope` is one of this account's in `domain`.
///
/// # Errors
/// The refusal, 503.
pub async fn check_scope(tx: &mut Tx<Tenant>, domain: Domain, scope: &Scope) -> Result<(), Halt> {
    let exists = tx.scope_exists(domain, scope.scope_type, &scope.scope_id).await?;
    known(exists, domain, scope.scope_type)
}

/// As [`check_scope`], and keeps the scope from being removed until the end of the
/// transaction, so that something can be hung on it.
///
/// # Errors
/// The refusal, 503.
pub async fn hold_scope(tx: &mut Tx<Tenant>, domain: Domain, scope: &Scope) -> Result<(), Halt> {
    let exists = tx.hold_scope(domain, scope.scope_type, &scope.scope_id).await?;
    known(exists, domain, scope.scope_type)
}

fn known(exists: bool, domain: Domain, kind: ScopeType) -> Result<(), Halt> {
    match kind {
        _ if exists => Ok(()),
        ScopeType::Account => {
            Err(Problem::bad_request("account_scope_mismatch", "account scope_id must match current account_id").into())
        }
        kind => Err(not_found(domain, kind).into()),
    }
}

/// The chain of scopes that an admin asks about.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ChainQuery {
    /// The org of the chain.
    #[param(value_type = Option<String>)]
    pub(super) org_id: Option<Id<Org>>,
    /// The team of the chain.
    #[param(value_type = Option<String>)]
    pub(super) team_id: Option<Id<Team>>,
    /// The user of the chain.
    #[param(value_type = Option<String>)]
    pub(super) user_id: Option<Id<User>>,
}

impl ChainQuery {
    /// Whether any scope is named.
    pub fn is_named(&self) -> bool {
        self.org_id.is_some() || self.team_id.is_some() || self.user_id.is_some()
    }

    /// The scopes of `domain`, the nearest first and the account last; each must exist.
    ///
    /// # Errors
    /// As [`check_scope`].
    pub async fn scopes(self, tx: &mut Tx<Tenant>, domain: Domain) -> Result<Vec<Scope>, Halt> {
        let place = Placement { user: self.user_id, team: self.team_id, org: self.org_id, status: None };
        let chain = place.scopes(tx.account());
        for scope in &chain {
            check_scope(tx, domain, scope).await?;
        }
        Ok(chain)
    }

    /// Where requests of the subject are counted; each part must exist. A team brings its
    /// org, a user without a team and an org the team that they joined first.
    ///
    /// # Errors
    /// As [`check_scope`]; 422 when the org is not the team's.
    pub async fn placement(&self, tx: &mut Tx<Tenant>, domain: Domain) -> Result<Placement, Halt> {
        let Self { org_id: org, team_id: team, user_id: user } = self;
        let mut place = Placement { team: team.clone(), org: org.clone(), ..Placement::default() };
        if let Some(id) = org {
            check_scope(tx, domain, &Scope::new(ScopeType::Org, id.as_str())).await?;
        }
        if let Some(id) = team {
            let team = tx.team(domain, id).await?.ok_or_else(|| not_found(domain, ScopeType::Team))?;
            require(org.as_ref().is_none_or(|org| *org == team.org_id), "/org_id", "is not the team's org")?;
            place.org = Some(team.org_id);
        }
        if let Some(id) = user {
            let user = tx.user(domain, id).await?.ok_or_else(|| not_found(domain, ScopeType::User))?;
            if team.is_none() && org.is_none() {
                let first = tx.first_team(domain, &user.id).await?;
                place.team = first.as_ref().map(|t| t.id.clone());
                place.org = first.map(|t| t.org_id);
            }
            place.status = Some(user.status);
            place.user = Some(user.id);
        }
        Ok(place)
    }
}

/// Makes a user a member of a team, or changes their role, as [`Tx::put_member`] does;
/// `plan` is what [`held_plan`] gave.
///
/// # Errors
/// 409 `over_committed`, 503.
async fn join(
    tx: &mut Tx<Tenant>,
    plan: Option<&Plan>,
    (domain, team, user): (Domain, &Id<Team>, &Id<User>),
    role: Option<&str>,
) -> Result<Membership, Halt> {
    let dividing = match plan {
        Some(plan) => Dividing::by_members(tx, plan, user).await?,
        None => None,
    };
    let member = tx.put_member(domain, team, user, role).await?;
    if let Some(dividing) = dividing {
        dividing.check(tx, ()).await?;
    }
    Ok(member)
}

/// From where the caller of a self-service route asks: the product domain and, if
/// they name one, the team they act in.
#[derive(Debug, Clone)]
pub struct Standpoint {
    /// The domain.
    pub domain: Domain,
    team: Option<Id<Team>>,
}

/// The query of a [`Standpoint`].
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct StandpointQuery {
    /// The product domain; else the header `x-alchemi-domain`, else the only one that
    /// the token allows, else the gateway's default.
    domain: Option<Domain>,
}

/// The headers of a [`Standpoint`].
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes headers, is never made")]
pub struct StandpointHeaders {
    /// The product domain, when the query names none.
    #[param(rename = "x-alchemi-domain", value_type = Domain, required = false)]
    domain: Option<Domain>,
    /// The team to act in, one of the caller's own; else their oldest membership.
    #[param(rename = "x-alchemi-team-id")]
    team: Option<String>,
}

impl FromRequestParts<App> for Standpoint {
    type Rejection = Halt;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Halt> {
        let Query(params) = Query::<StandpointQuery>::from_request_parts(parts, app).await?;
        let asked = parts.extensions.get::<AskedPlace>().and_then(|asked| asked.domain);
        let context = parts.extensions.get::<Context>();
        let only = || context.and_then(|caller| caller.product_domains().only());
        Ok(Self::within(params.domain.or(asked).or_else(only).unwrap_or(app.default_domain), parts)?)
    }
}

impl Standpoint {
    /// The standpoint of a request in a domain that the route knows.
    ///
    /// # Errors
    /// 403 `domain_denied`.
    pub fn within(domain: Domain, parts: &Parts) -> Result<Self, Problem> {
        if let Some(context) = parts.extensions.get::<Context>() {
            context.check_domain(domain)?;
        }
        let asked = parts.extensions.get::<AskedPlace>().cloned().unwrap_or_default();
        // What cannot be an id is the id of no team: looked up, it is refused as any other.
        let team = asked.team.map(|id| id.parse().unwrap_or_else(|_| Id::nobody()));
        Ok(Self { domain, team })
    }

    /// Where the caller stands.
    ///
    /// # Errors
    /// 403 `team_denied`, `user_suspended`, 503.
    pub async fn place(&self, tx: &mut Tx<Tenant>, caller: &Context) -> Result<Placement, Halt> {
        let actor = caller.actor();
        let placement = tx.placement(self.domain, &actor.subject, actor.email.as_deref(), self.team.as_ref()).await;
        unsuspended(placement.map_err(Problem::from)?)
    }
}

/// Where somebody stands who is not suspended there.
fn unsuspended(place: Placement) -> Result<Placement, Halt> {
    if place.is_suspended() { Err(Problem::from(Denial::UserSuspended).into()) } else { Ok(place) }
}
