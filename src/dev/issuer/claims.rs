//! Who a token speaks of, and the claims that Zitadel puts into it.

use serde_json::{Map, Value, json};

/// An organisation of the issuer: a tenant's home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Org {
    /// Zitadel's id, a numeric snowflake as text.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its primary domain.
    pub domain: String,
}

/// A person or a service user.
#[derive(Debug, Clone)]
pub struct DevUser {
    /// `sub`, a numeric snowflake as text in Zitadel.
    pub subject: String,
    /// The address, always shown as verified. Zitadel puts it into access tokens
    /// only when an Action does; so do these tokens.
    pub email: Option<String>,
    /// The name to show.
    pub name: String,
    /// Where the user lives: the resource owner.
    pub organization: Org,
    /// Roles of the project, each with the organisation that granted it.
    pub roles: Vec<(String, Org)>,
    /// What Actions append, such as `alchemi:account_id` or
    /// `product_domains_allowed`. As in Zitadel, a name under `urn:zitadel:iam`
    /// is ignored and a claim that exists is not replaced.
    pub claims: Map<String, Value>,
}

/// What was issued, under its `jti` or its opaque text.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) token_id: String,
    pub(super) subject: String,
    pub(super) client_id: String,
    pub(super) audience: Vec<String>,
    pub(super) scope: String,
    pub(super) issued_at: i64,
    pub(super) expires_at: i64,
}

pub(super) const AUDIENCE_SCOPE: (&str, &str) = ("urn:zitadel:iam:org:project:id:", ":aud");
const ALL_ROLES_SCOPE: &str = "urn:zitadel:iam:org:projects:roles";
const ROLE_SCOPE: &str = "urn:zitadel:iam:org:project:role:";
const ROLE_ORG_SCOPE: &str = "urn:zitadel:iam:org:roles:id:";
const OWNER: &str = "urn:zitadel:iam:user:resourceowner";
const ORG_ID: &str = "urn:zitadel:iam:org:id";
const ORG_DOMAIN: &str = "urn:zitadel:iam:org:domain:primary";
const RESERVED: &str = "urn:zitadel:iam";
const GENERIC_ROLES: &str = "urn:zitadel:iam:org:project:roles";

/// The scope that a person signs in with here: all that the gateway reads.
pub(super) fn sign_in_scope(project: &str) -> String {
    let (before, after) = AUDIENCE_SCOPE;
    format!("openid profile email {OWNER} {ALL_ROLES_SCOPE} {before}{project}{after}")
}

impl Session {
    fn scopes(&self) -> impl Iterator<Item = &str> {
        self.scope.split_ascii_whitespace()
    }

    fn scopes_under(&self, prefix: &str) -> Vec<&str> {
        self.scopes().filter_map(|scope| scope.strip_prefix(prefix)).collect()
    }

    fn has_scope(&self, wanted: &str) -> bool {
        self.scopes().any(|scope| scope == wanted)
    }

    /// The claims of a JWT access token: the registered ones, no `scope`, no
    /// profile, then what scopes and Actions add. `app` says that an OIDC
    /// application of the project asked, which alone adds the generic role claim.
    pub(super) fn access_token(&self, issuer: &str, project: &str, user: &DevUser, app: bool) -> Map<String, Value> {
        let mut claims = self.registered(issuer);
        if self.audience.iter().any(|audience| audience == project) {
            let keys = self.scopes_under(ROLE_SCOPE);
            if self.has_scope(ALL_ROLES_SCOPE) {
                self.add_roles(&mut claims, project, user, &[], app);
            } else if !keys.is_empty() {
                self.add_roles(&mut claims, project, user, &keys, app);
            }
        }
        self.add_owner(&mut claims, user);
        add_custom(&mut claims, user);
        claims
    }

    /// The answer of RFC 7662 for an active token: roles always, profile and
    /// address by scope.
    pub(super) fn introspection(&self, issuer: &str, project: &str, user: &DevUser) -> Map<String, Value> {
        let mut claims = self.registered(issuer);
        let username = user.email.clone().unwrap_or_else(|| self.client_id.clone());
        claims.insert("active".to_owned(), json!(true));
        claims.insert("scope".to_owned(), json!(self.scope));
        claims.insert("token_type".to_owned(), json!("Bearer"));
        claims.insert("username".to_owned(), json!(username));
        if self.has_scope("profile") {
            claims.insert("name".to_owned(), json!(user.name));
            claims.insert("preferred_username".to_owned(), json!(username));
        }
        self.add_roles(&mut claims, project, user, &[], true);
        self.add_owner(&mut claims, user);
        add_custom(&mut claims, user);
        claims
    }

    fn registered(&self, issuer: &str) -> Map<String, Value> {
        let claims = json!({
            "iss": issuer, "sub": self.subject, "aud": self.audience, "client_id": self.client_id, "jti": self.token_id,
            "iat": self.issued_at, "nbf": self.issued_at, "exp": self.expires_at,
        });
        match claims {
            Value::Object(claims) => claims,
            _ => Map::new(),
        }
    }

    /// `{role: {organisation id: primary domain}}`, of the named roles or of all.
    fn add_roles(&self, claims: &mut Map<String, Value>, project: &str, user: &DevUser, keys: &[&str], generic: bool) {
        let organizations = self.scopes_under(ROLE_ORG_SCOPE);
        let mut roles: Map<String, Value> = Map::new();
        for (role, org) in &user.roles {
            let asked = keys.is_empty() || keys.contains(&role.as_str());
            let here = organizations.is_empty() || organizations.contains(&org.id.as_str());
            if asked && here {
                let grants = roles.entry(role.as_str()).or_insert_with(|| json!({}));
                if let Some(grants) = grants.as_object_mut() {
                    grants.insert(org.id.clone(), json!(org.domain));
                }
            }
        }
        if roles.is_empty() {
            return;
        }
        if generic {
            claims.insert(GENERIC_ROLES.to_owned(), json!(roles));
        }
        claims.insert(format!("urn:zitadel:iam:org:project:{project}:roles"), json!(roles));
    }

    /// The resource owner is always the user's own organisation, whichever one
    /// the scope names: compare claims, never trust that a scope was honoured.
    fn add_owner(&self, claims: &mut Map<String, Value>, user: &DevUser) {
        let home = &user.organization;
        let named = self.scopes_under("urn:zitadel:iam:org:id:");
        if self.has_scope(OWNER) || !named.is_empty() {
            claims.insert(format!("{OWNER}:id"), json!(home.id));
            claims.insert(format!("{OWNER}:name"), json!(home.name));
            claims.insert(format!("{OWNER}:primary_domain"), json!(home.domain));
        }
        if named.contains(&home.id.as_str()) {
            claims.insert(ORG_ID.to_owned(), json!(home.id));
        }
        if self.scopes_under("urn:zitadel:iam:org:domain:primary:").contains(&home.domain.as_str()) {
            claims.insert(ORG_DOMAIN.to_owned(), json!(home.domain));
        }
    }
}

fn add_custom(claims: &mut Map<String, Value>, user: &DevUser) {
    if let Some(email) = &user.email {
        claims.insert("email".to_owned(), json!(email));
        claims.insert("email_verified".to_owned(), json!(true));
    }
    for (name, value) in &user.claims {
        if !name.starts_with(RESERVED) && !claims.contains_key(name) {
            claims.insert(name.clone(), value.clone());
        }
    }
}
