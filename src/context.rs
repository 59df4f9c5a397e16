//! Who is calling, on whose behalf, and what they have been granted.
//!
//! [`Verified`](crate::identity::Verified) says whose token it is; [`Context`]
//! says which account, roles and domains follow from it; [`Granted`] is the proof
//! that a guard let them through, and the only key to the database.

use std::marker::PhantomData;
use std::sync::Arc;

use crate::id::Id;
use crate::model::accounts::Account;
pub use crate::model::domain::Domain;
use crate::problem::Problem;

/// How a caller proved who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthProvider {
    /// A token of Zitadel.
    Zitadel,
    /// The operator's master key.
    MasterKey,
}

impl AuthProvider {
    /// `zitadel` or `master_key`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Zitadel => "zitadel",
            Self::MasterKey => "master_key",
        }
    }
}

/// The product domains a caller may use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProductDomains(Vec<String>);

impl ProductDomains {
    /// From the token's claim, or the configured default.
    pub fn new(names: Vec<String>) -> Self {
        Self(names)
    }

    /// Whether `domain` is among them; `all` stands for every domain.
    pub fn allow(&self, domain: Domain) -> bool {
        self.0.iter().any(|name| name == "all" || name == domain.as_str())
    }

    /// The only domain they allow, if it is one.
    pub fn only(&self) -> Option<Domain> {
        let mut allowed = Domain::ALL.into_iter().filter(|d| self.allow(*d));
        match (allowed.next(), allowed.next()) {
            (Some(one), None) => Some(one),
            _ => None,
        }
    }

    /// As in the token.
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

/// The person or service that acts; identity is (issuer, subject), never a token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Actor {
    /// The issuer of the token; `alchemi` for the master key and for the system itself.
    pub issuer: Arc<str>,
    /// The token's `sub`.
    pub subject: Arc<str>,
    /// The verified e-mail address, where the token shows one.
    pub email: Option<Arc<str>>,
}

impl Actor {
    /// alchemi itself: settlement, caches, jobs.
    pub fn system() -> Self {
        Self { issuer: Arc::from("alchemi"), subject: Arc::from("system"), email: None }
    }
}

/// Everything that follows from a caller's identity.
///
/// Only this crate's identity makes one, from facts that identity has verified
/// and an account that the store has confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    facts: ContextFacts,
}

/// What a context is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextFacts {
    /// The account, when the token (or `X-Account-Id`) names one that exists.
    pub account: Option<AccountStanding>,
    /// Who acts.
    pub actor: Actor,
    /// How they proved it.
    pub provider: AuthProvider,
    /// Roles that count for this account, by their canonical names.
    pub roles: Vec<String>,
    /// Scopes of the token.
    pub scopes: Vec<String>,
    /// Domains that the token allows.
    pub product_domains: ProductDomains,
    /// Whether a super-admin role or the master key was shown.
    pub super_admin: bool,
}

/// An account as the context needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountStanding {
    /// Its id.
    pub id: Id<Account>,
    /// Whether it is suspended.
    pub suspended: bool,
}

impl Context {
    /// Freezes verified facts into a context.
    pub(crate) fn establish(facts: ContextFacts) -> Self {
        Self { facts }
    }

    /// The account, if one is known.
    pub fn account(&self) -> Option<&Id<Account>> {
        self.facts.account.as_ref().map(|a| &a.id)
    }

    /// Whether the account is suspended.
    pub fn suspended(&self) -> bool {
        self.facts.account.as_ref().is_some_and(|a| a.suspended)
    }

    /// Who acts.
    pub fn actor(&self) -> &Actor {
        &self.facts.actor
    }

    /// How they proved it.
    pub fn provider(&self) -> AuthProvider {
        self.facts.provider
    }

    /// Roles that count for this account.
    pub fn roles(&self) -> &[String] {
        &self.facts.roles
    }

    /// Scopes of the token.
    pub fn scopes(&self) -> &[String] {
        &self.facts.scopes
    }

    /// Domains that the token allows.
    pub fn product_domains(&self) -> &ProductDomains {
        &self.facts.product_domains
    }

    /// Whether they may act for every account.
    pub fn is_super_admin(&self) -> bool {
        self.facts.super_admin
    }

    fn has_role(&self, names: &[&str]) -> bool {
        self.facts.roles.iter().any(|role| names.contains(&role.as_str()))
    }

    fn has_scope(&self, names: &[&str]) -> bool {
        self.facts.scopes.iter().any(|scope| names.contains(&scope.as_str()))
    }

    /// The account of an active caller.
    fn active_account(&self) -> Result<&Id<Account>, Problem> {
        let account =
            self.account().ok_or_else(|| Problem::forbidden("account_context_required", "Account context required"))?;
        self.check_active()?;
        Ok(account)
    }

    /// Refuses callers of a suspended account; operators may call all the same.
    ///
    /// # Errors
    /// 403 `account_suspended`.
    pub fn check_active(&self) -> Result<(), Problem> {
        if self.suspended() && !self.is_super_admin() { Err(account_suspended()) } else { Ok(()) }
    }

    /// Guard SUPER: the operator's own right over every account.
    ///
    /// # Errors
    /// 403 `account_suspended` or `super_admin_required`.
    pub fn super_admin(&self) -> Result<Granted<Platform>, Problem> {
        self.check_active()?;
        if !self.is_super_admin() {
            return Err(Problem::forbidden("super_admin_required", "Super admin access required"));
        }
        Ok(Granted::new(Id::nobody(), self.actor_grant()))
    }

    /// Guard ACCOUNT: an admin of the whole account.
    ///
    /// # Errors
    /// 403 `account_context_required`, `account_suspended` or `account_admin_required`.
    pub fn account_admin(&self) -> Result<Granted<Tenant>, Problem> {
        let account = self.active_account()?;
        if !self.is_super_admin() && !self.has_role(&["account_admin"]) {
            return Err(Problem::forbidden("account_admin_required", "Account admin access required"));
        }
        Ok(Granted::new(account.clone(), self.actor_grant()))
    }

    /// Guard DOMAIN(d): an admin of one product domain of the account.
    ///
    /// The domain check comes before the roles, so that an `account_admin` who is
    /// limited to one domain is refused in the other.
    ///
    /// # Errors
    /// 403 `account_context_required`, `account_suspended`, `domain_denied` or
    /// `domain_admin_required`.
    pub fn domain_admin(&self, domain: Domain) -> Result<Granted<Tenant>, Problem> {
        let account = self.active_account()?;
        if !self.is_super_admin() {
            self.check_domain(domain)?;
            let (org, team, scope) = match domain {
                Domain::Console => ("console_org_admin", "console_team_admin", "console:admin"),
                Domain::Copilot => ("copilot_org_admin", "copilot_team_admin", "copilot:admin"),
            };
            let admin =
                self.has_role(&[org, team, "account_admin"]) || self.has_scope(&[scope, "control_plane:admin", "*"]);
            if !admin {
                return Err(Problem::forbidden("domain_admin_required", format!("{domain} admin access required")));
            }
        }
        Ok(Granted::new(account.clone(), self.actor_grant()))
    }

    /// Guard MEMBER: any signed-in subject of the account.
    ///
    /// # Errors
    /// 403 `account_context_required` or `account_suspended`.
    pub fn member(&self) -> Result<Granted<Tenant>, Problem> {
        Ok(Granted::new(self.active_account()?.clone(), self.actor_grant()))
    }

    /// Whether the token allows `domain`.
    ///
    /// # Errors
    /// 403 `domain_denied`.
    pub fn check_domain(&self, domain: Domain) -> Result<(), Problem> {
        if self.is_super_admin() || self.product_domains().allow(domain) {
            return Ok(());
        }
        Err(Problem::forbidden("domain_denied", format!("Domain access denied: {domain}")))
    }

    fn actor_grant(&self) -> ActingAs {
        ActingAs {
            actor: self.facts.actor.clone(),
            roles: self.facts.roles.clone(),
            provider: self.facts.provider.as_str(),
            request_id: None,
            source_ip: None,
        }
    }
}

/// 403 for callers of a suspended account.
pub fn account_suspended() -> Problem {
    Problem::forbidden(
        "account_suspended",
        "This account is suspended; an operator can restore it with POST /v1/accounts/{account_id}/status",
    )
}

/// Reach of a grant over every account.
#[derive(Debug, Clone, Copy)]
pub struct Platform;

/// Reach of a grant within one account.
#[derive(Debug, Clone, Copy)]
pub struct Tenant;

/// Who the audit says did it.
#[derive(Debug, Clone)]
pub struct ActingAs {
    /// Who acts.
    pub actor: Actor,
    /// With which roles.
    pub roles: Vec<String>,
    /// `zitadel`, `master_key` or `system`.
    pub provider: &'static str,
    /// The request that caused it.
    pub request_id: Option<Arc<str>>,
    /// Where the request came from.
    pub source_ip: Option<std::net::IpAddr>,
}

/// Proof that a guard let the caller through. No grant, no database.
#[derive(Debug, Clone)]
pub struct Granted<Reach> {
    account: Id<Account>,
    by: ActingAs,
    reach: PhantomData<fn() -> Reach>,
}

impl<Reach> Granted<Reach> {
    fn new(account: Id<Account>, by: ActingAs) -> Self {
        Self { account, by, reach: PhantomData }
    }

    /// Who acts.
    pub fn by(&self) -> &ActingAs {
        &self.by
    }

    /// Notes which request this grant serves, for the audit.
    #[must_use]
    pub fn for_request(mut self, request_id: Arc<str>, source_ip: Option<std::net::IpAddr>) -> Self {
        self.by.request_id = Some(request_id);
        self.by.source_ip = source_ip;
        self
    }
}

impl Granted<Tenant> {
    /// The account that the grant reaches.
    pub fn account(&self) -> &Id<Account> {
        &self.account
    }
}

impl Granted<Platform> {
    /// The same right, narrowed to one account.
    pub fn over(&self, account: Id<Account>) -> Granted<Tenant> {
        Granted::new(account, self.by.clone())
    }

    /// alchemi's own right, for settlement, caches and jobs.
    pub(crate) fn system() -> Self {
        Self::of("system", Actor::system())
    }

    /// The right of an identity provider, whose token was verified, to end what it
    /// began: `actor` is whom it speaks of.
    pub(crate) fn identity_provider(actor: Actor) -> Self {
        Self::of(AuthProvider::Zitadel.as_str(), actor)
    }

    fn of(provider: &'static str, actor: Actor) -> Self {
        let by = ActingAs { actor, roles: Vec::new(), provider, request_id: None, source_ip: None };
        Self::new(Id::nobody(), by)
    }
}

/// Where a caller asks to act from, by the headers `x-alchemi-domain` and
/// `x-alchemi-team-id`, which are off the request by then; in its extensions.
#[derive(Debug, Clone, Default)]
pub struct AskedPlace {
    /// The product domain.
    pub domain: Option<Domain>,
    /// The team.
    pub team: Option<Box<str>>,
}

/// The request as logs and audit know it; in the extensions of every request.
#[derive(Debug, Clone)]
pub struct RequestInfo {
    /// Our id of it, also the answer's `x-request-id`.
    pub id: Arc<str>,
    /// The client's address, behind trusted proxies the one they report.
    pub client_ip: Option<std::net::IpAddr>,
}
