//! From what a token says, and the account it is for, to a [`Context`]. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use subtle::ConstantTimeEq;

use super::verified::Verified;
use crate::context::{AccountStanding, Actor, AuthProvider, Context, ContextFacts, ProductDomains};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::problem::Problem;
use crate::secret::SecretString;

/// An account, and how its Zitadel settings tie tokens to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountBinding {
    /// The account.
    pub id: Id<Account>,
    /// Whether it is suspended.
    pub suspended: bool,
    /// Its issuer, letter by letter: tokens of another one are not its own.
    pub issuer: Option<String>,
    /// Its organisation: only roles that this one granted count.
    pub organization_id: Option<String>,
    /// What its project roles begin with.
    pub role_prefix: Option<String>,
    /// Canonical role to project role, as provisioned; applied backwards here.
    pub role_mappings: BTreeMap<String, String>,
}

/// The settings that decide what claims are worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRules {
    /// Project roles that make a super admin.
    pub super_admin_roles: Vec<String>,
    /// The platform's own issuers: whose tokens may show them, and are for accounts bound to none.
    pub platform_issuers: Vec<String>,
    /// When set, the only organisation whose grant of them counts.
    pub super_admin_org_id: Option<String>,
    /// Domains of a token that names none.
    pub default_product_domains: Vec<String>,
    /// Whether the roles that count are the scopes too.
    pub scopes_from_roles: bool,
}

impl ClaimRules {
    /// Whether the token is one of the platform's own issuers'.
    fn is_of_platform(&self, verified: &Verified) -> bool {
        self.platform_issuers.iter().any(|own| **own == **verified.issuer())
    }

    /// Whether the token is for an account that is bound to `issuer`, or to none: that is for the
    /// platform's own issuers.
    pub fn admits(&self, issuer: Option<&str>, verified: &Verified) -> bool {
        issuer.map_or_else(|| self.is_of_platform(verified), |issuer| issuer == &**verified.issuer())
    }
}

/// Why the caller cannot act for the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// `X-Account-Id` names an account that is not the token's.
    #[error("Only a super admin may choose another account; leave the header X-Account-Id out")]
    NotSuperAdmin,
    /// The account is bound to another issuer than the token's.
    #[error("This account is bound to another identity provider than the one that issued the token")]
    OtherIssuer,
    /// Nothing in the token ties it to the account's organisation.
    #[error(
        "The token shows neither a role granted by this account's organization nor that organization as resource owner; ask its admin for a role, and request the token with the role scopes"
    )]
    NotBound,
}

impl From<ContextError> for Problem {
    fn from(error: ContextError) -> Self {
        Self::forbidden("account_mismatch", error.to_string())
    }
}

/// The context of a verified token.
///
/// `account` is what the store found for the token's
/// [candidates](Verified::account_candidates), or for `X-Account-Id`, in which case
/// `override_account` says that it is not the account of the token itself.
///
/// Roles are a union over organisations, so for an account with an organisation only
/// its own grants count, and the token must show one of them or that organisation as
/// resource owner. Nor do tokens count of an issuer that the account is not [for](ClaimRules::admits).
/// A super admin is not bound to any.
///
/// # Errors
/// [`ContextError`], a 403.
pub fn context(
    verified: &Verified,
    account: Option<&AccountBinding>,
    override_account: bool,
    rules: &ClaimRules,
) -> Result<Context, ContextError> {
    let super_admin = is_super_admin(verified, rules);
    if override_account && !super_admin {
        return Err(ContextError::NotSuperAdmin);
    }
    let admitted = account.is_none_or(|account| rules.admits(account.issuer.as_deref(), verified));
    if !super_admin && !admitted {
        return Err(ContextError::OtherIssuer);
    }
    let organization = account.and_then(|account| account.organization_id.as_deref());
    if let Some(organization) = organization {
        let bound = verified.has_role_from(organization) || verified.resource_owner() == Some(organization);
        if !bound && !super_admin {
            return Err(ContextError::NotBound);
        }
    }
    let roles = effective_roles(verified, account, organization, super_admin, rules);
    let domains = verified.product_domains().map_or_else(|| rules.default_product_domains.clone(), <[String]>::to_vec);
    Ok(Context::establish(ContextFacts {
        account: account.map(standing),
        actor: Actor {
            issuer: verified.issuer().clone(),
            subject: verified.subject().clone(),
            email: verified.email().cloned(),
        },
        provider: AuthProvider::Zitadel,
        scopes: if rules.scopes_from_roles { roles.clone() } else { verified.scopes().to_vec() },
        roles,
        product_domains: ProductDomains::new(domains),
        super_admin,
    }))
}

fn is_super_admin(verified: &Verified, rules: &ClaimRules) -> bool {
    if !rules.is_of_platform(verified) {
        return false;
    }
    rules.super_admin_roles.iter().filter_map(|role| verified.roles().get(role)).any(|grants| {
        match &rules.super_admin_org_id {
            Some(trusted) => grants.contains(trusted),
            None => !grants.is_empty(),
        }
    })
}

/// Canonical names of the roles that count, sorted. A super-admin role is among
/// them only for a super admin, whatever a tenant maps.
fn effective_roles(
    verified: &Verified,
    account: Option<&AccountBinding>,
    organization: Option<&str>,
    super_admin: bool,
    rules: &ClaimRules,
) -> Vec<String> {
    let counts = |grants: &[String]| match organization {
        Some(own) => grants.iter().any(|org| org == own),
        None => !grants.is_empty(),
    };
    let is_super = |role: &str| rules.super_admin_roles.iter().any(|name| name == role);
    let mut roles = BTreeSet::new();
    for (role, grants) in verified.roles() {
        if is_super(role) {
            if super_admin {
                roles.insert(role.clone());
            }
        } else if counts(grants) {
            roles.extend(canonical(role, account).into_iter().filter(|name| !is_super(name)).map(str::to_owned));
        }
    }
    roles.into_iter().collect()
}

/// The canonical names of a project role, by the account's mapping read backwards,
/// else by its prefix. Under a prefix, a role without it is another tenant's.
fn canonical<'a>(role: &'a str, account: Option<&'a AccountBinding>) -> Vec<&'a str> {
    let Some(account) = account else { return vec![role] };
    let mapped: Vec<&str> =
        account.role_mappings.iter().filter(|(_, project)| *project == role).map(|(name, _)| name.as_str()).collect();
    if !mapped.is_empty() {
        return mapped;
    }
    let name = match account.role_prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
        Some(prefix) => role.strip_prefix(prefix),
        None => Some(role),
    };
    // A canonical name that is mapped elsewhere is not also itself.
    name.filter(|name| !name.is_empty() && !account.role_mappings.contains_key(*name)).into_iter().collect()
}

fn standing(account: &AccountBinding) -> AccountStanding {
    AccountStanding { id: account.id.clone(), suspended: account.suspended }
}

/// The context of the operator's master key: super admin, of any account or none.
pub fn master_key_context(account: Option<&AccountBinding>) -> Context {
    Context::establish(ContextFacts {
        account: account.map(standing),
        actor: Actor { issuer: "alchemi".into(), subject: "master_key".into(), email: None },
        provider: AuthProvider::MasterKey,
        roles: Vec::new(),
        scopes: Vec::new(),
        product_domains: ProductDomains::new(vec!["all".to_owned()]),
        super_admin: true,
    })
}

/// Fewest characters of a master key.
pub const MIN_MASTER_KEY_CHARS: usize = 32;

/// The operator's key.
///
/// ```
/// use alchemi::identity::MasterKey;
///
/// assert!(MasterKey::new("too short".into()).is_err());
/// let key = MasterKey::new("0123456789abcdef0123456789abcdef".into())?;
/// assert!(key.matches("0123456789abcdef0123456789abcdef"));
/// assert!(!key.matches("0123456789abcdef0123456789abcdee"));
/// # Ok::<(), alchemi::identity::WeakMasterKey>(())
/// ```
#[derive(Clone)]
pub struct MasterKey {
    digest: [u8; 32],
}

/// The master key is too short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the master key (ALCHEMI_MASTER_KEY) needs at least 32 characters; `alchemi keygen` makes one")]
pub struct WeakMasterKey;

impl MasterKey {
    /// Takes the key; only its hash is kept.
    ///
    /// # Errors
    /// [`WeakMasterKey`] below 32 characters.
    pub fn new(secret: SecretString) -> Result<Self, WeakMasterKey> {
        if secret.expose().chars().count() < MIN_MASTER_KEY_CHARS {
            return Err(WeakMasterKey);
        }
        Ok(Self { digest: sha256(secret.expose()) })
    }

    /// Whether `presented` is the key, in a time that depends on neither.
    pub fn matches(&self, presented: &str) -> bool {
        sha256(presented).ct_eq(&self.digest).into()
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(redacted)")
    }
}

/// SHA-256 of a secret or token.
pub(super) fn sha256(text: &str) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    out
}
