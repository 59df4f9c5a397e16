//! What becomes of a token, check by check.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::{Failure, Parts, say, unusable};
use crate::allocation::rules::{AccountFacts, RuleBook, account_unknown};
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::config::Config;
use crate::identity::{Flaw, IdentityError, MasterKey, Verified};
use crate::jobs::load_revocations;
use crate::layer::{Authenticator, Credential};
use crate::problem::Problem;

/// One line of the answer.
struct Check {
    good: bool,
    text: String,
}

fn good(text: impl Into<String>) -> Check {
    Check { good: true, text: text.into() }
}

fn bad(text: impl Into<String>) -> Check {
    Check { good: false, text: text.into() }
}

/// Checks a token as the gateway would, and what it does not get to see because of an
/// earlier check.
pub(super) async fn why(parts: &Parts, token: &str) -> Result<(), Failure> {
    if let Some(key) = own_key(&parts.config, token)? {
        return say(key);
    }
    // Those who were cut off are refused whatever the token says.
    load_revocations(&parts.store, &parts.identity).await.map_err(unusable)?;
    let verdict = parts.identity.verify(token).await;
    let mut checks = readable(&parts.config, token);
    checks.extend(credible(parts, token, &verdict).await);
    tell(checks)?;
    let verified = match verdict {
        Ok(verified) => verified,
        Err(error) => return Err(refused(&error.to_string())),
    };

    let rules = RuleBook::new(parts.store.clone(), &parts.config.allocation, parts.config.rule_terms());
    let authenticator = Authenticator::new(parts.identity.clone(), None, rules);
    let failed = |problem: Problem| refused(problem.detail());
    match authenticator.account_of(&verified).await.map_err(failed)? {
        Some(facts) => tell(grants(&verified, &facts))?,
        None => tell(strangers(&authenticator, &verified).await.map_err(failed)?)?,
    }
    let established = authenticator.establish(&Credential::Token(verified), None).await.map_err(failed)?;
    let context = &established.context;
    say(&format!("subject {}", context.actor().subject))?;
    match &established.account {
        Some(facts) => say(&format!("account {} ({})", facts.account.account_id, facts.account.account_name))?,
        None => say("account none: no claim names an account or an organisation that is one here")?,
    }
    let roles = context.roles().join(", ");
    say(&format!("roles   {}", if roles.is_empty() { "none" } else { &roles }))?;
    say(&format!("domains {}", context.product_domains().names().join(", ")))?;
    if context.suspended() {
        return Err(refused("the account is suspended"));
    }
    if established.account.is_none() && !context.is_super_admin() {
        return Err(refused(account_unknown().detail()));
    }
    say("accepted")
}

/// What is no token, and is shown to no issuer.
fn own_key(config: &Config, token: &str) -> Result<Option<&'static str>, Failure> {
    let master_key = config.master_key.clone().map(MasterKey::new).transpose().map_err(Failure::misconfigured)?;
    if master_key.is_some_and(|key| key.matches(token)) {
        return Ok(Some("this is the master key and no token: it may do everything, in every account"));
    }
    if token.starts_with("sk-") && token.split('.').count() != 3 {
        return Err(refused("this is a key of the upstream (sk-…) and no token"));
    }
    Ok(None)
}

fn tell(checks: Vec<Check>) -> Result<(), Failure> {
    checks
        .iter()
        .try_for_each(|check| say(&format!("{} {}", if check.good { "ok     " } else { "MISSING" }, check.text)))
}

fn refused(why: &str) -> Failure {
    Failure::failed(format!("refused: {why}"))
}

/// What its issuer says of it: by its signature, or when it is asked.
async fn credible(parts: &Parts, token: &str, verdict: &Result<Arc<Verified>, IdentityError>) -> Option<Check> {
    let jwt = token.split('.').count() == 3;
    Some(match verdict {
        Ok(_) if jwt => good("signature, by a key that its issuer publishes; not revoked"),
        Ok(_) => good("its issuer says that it is active; not revoked"),
        Err(IdentityError::Revoked) => bad(
            "not revoked: the subject was cut off (`GET /v1/auth/revocations`) or has signed out since it was issued; \
             sign in again",
        ),
        Err(IdentityError::ClientRefused) => bad(
            "introspection: the issuer does not accept this service's client; the id and secret, or the key file, of \
             identity.introspection_… must be those of an application of type API in the project",
        ),
        Err(IdentityError::Unavailable) => bad(format!("an answer of its issuer: {}", outage(parts, jwt).await)),
        // Said by a check of its own above, or no more than that it is none.
        Err(
            IdentityError::Missing
            | IdentityError::Expired
            | IdentityError::Invalid(
                Flaw::Issuer | Flaw::Audience | Flaw::NotAnAccessToken | Flaw::Malformed | Flaw::OpaqueNotAccepted,
            ),
        ) => return None,
        Err(IdentityError::Invalid(Flaw::Signature)) => {
            bad("signature: the issuer's key did not make it; the token was changed, or somebody else signed it")
        }
        Err(IdentityError::Invalid(Flaw::Client)) => {
            bad("client: identity.allowed_client_ids does not name the one that the token was issued to")
        }
        Err(error @ (IdentityError::Invalid(_) | IdentityError::KeyPending { .. })) => bad(error.to_string()),
    })
}

/// Why the issuer says nothing.
async fn outage(parts: &Parts, jwt: bool) -> String {
    if !jwt && let Some(Err(error)) = parts.identity.probe_introspection().await {
        return error.to_string();
    }
    let status = parts.identity.status().into_iter().find_map(|issuer| Some((issuer.issuer, issuer.last_error?)));
    status.map_or_else(|| "it cannot be reached".to_owned(), |(issuer, error)| format!("{issuer}: {error}"))
}

/// Whose grants count in the account, and whether the token shows one.
fn grants(verified: &Verified, facts: &AccountFacts) -> Vec<Check> {
    let Some(organization) = facts.zitadel.as_ref().and_then(|zitadel| zitadel.organization_id.as_deref()) else {
        return vec![good("account is bound to no organisation: roles that any organisation granted count")];
    };
    let granted = |(role, by): (&String, &Vec<String>)| format!("{role} (by {})", by.join(", "));
    if verified.has_role_from(organization) {
        return vec![good(format!("a role that the account's organisation {organization} granted"))];
    }
    let mut checks = Vec::new();
    if verified.resource_owner() == Some(organization) {
        checks.push(good(format!("its subject belongs to the account's organisation {organization}")));
    }
    let others: Vec<String> = verified.roles().iter().map(granted).collect();
    checks.push(bad(match &*others.join("; ") {
        "" => format!("a role that organisation {organization} granted"),
        others => format!("a role that organisation {organization} granted, whose grants alone count here: {others}"),
    }));
    checks.push(bad(format!(
        "or no grant: `alchemi zitadel drift --account {}` shows who holds what",
        facts.account.account_id
    )));
    checks
}

/// Accounts that the token names and that are bound to another issuer.
async fn strangers(authenticator: &Authenticator, verified: &Verified) -> Result<Vec<Check>, Problem> {
    let mut checks = Vec::new();
    for candidate in verified.account_candidates() {
        let named = authenticator.rules().account(candidate).await?;
        let Some(facts) = named else { continue };
        let (account, own) = (&facts.account.account_id, verified.issuer());
        checks.push(bad(match facts.issuer() {
            Some(issuer) => format!("issuer of the account {account}: it is bound to {issuer}, and the token is of {own}"),
            None => format!(
                "issuer of the account {account}: it is bound to none, and so for the platform's own, which {own} is not \
                 (identity.issuers.platform)"
            ),
        }));
        break;
    }
    Ok(checks)
}

fn readable(config: &Config, token: &str) -> Vec<Check> {
    if token.split('.').count() != 3 {
        return vec![if config.identity.introspects() {
            good("an opaque token, about which its issuer is asked")
        } else {
            bad("opaque token, and no introspection client: set the application's token type to JWT in Zitadel, or \
                 identity.introspection_client_id")
        }];
    }
    let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let Some(claims) = claims.and_then(|bytes| serde_json::from_slice::<Map<String, Value>>(&bytes).ok()) else {
        return vec![bad(IdentityError::from(Flaw::Malformed).to_string())];
    };
    let mut checks = vec![issuer(config, &claims), audience(config, &claims)];
    checks.extend(times(&claims));
    checks.extend(kind(&claims));
    checks.extend(roles(config, &claims));
    checks.push(account(config, &claims));
    checks
}

fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> &'a str {
    claims.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn issuer(config: &Config, claims: &Map<String, Value>) -> Check {
    let iss = text(claims, "iss");
    if config.identity.issuers.iter().any(|issuer| issuer.url == iss) {
        return good(format!("issuer {iss}"));
    }
    let known: Vec<&str> = config.identity.issuers.iter().map(|issuer| issuer.url.as_str()).collect();
    bad(format!(
        "issuer {iss:?} is none of identity.issuers ({}); it must be the same letter by letter",
        known.join(", ")
    ))
}

fn audience(config: &Config, claims: &Map<String, Value>) -> Check {
    let listed: Vec<&str> = match claims.get("aud") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let project = config.identity.project_id.as_deref();
    let accepted =
        |aud: &&str| Some(*aud) == project || config.identity.audiences.iter().any(|own| own == "*" || own == aud);
    if let Some(found) = listed.iter().find(|aud| accepted(aud)) {
        return good(format!("audience {found}"));
    }
    bad(format!(
        "audience: the token is for {}; request it with the scope urn:zitadel:iam:org:project:id:{}:aud",
        if listed.is_empty() { "nobody".to_owned() } else { listed.join(", ") },
        project.unwrap_or("<project>")
    ))
}

fn times(claims: &Map<String, Value>) -> Option<Check> {
    let exp = claims.get("exp").and_then(Value::as_i64)?;
    let (exp, now) = (Timestamp::from_secs(exp), SystemClock.now());
    Some(if exp > now {
        good(format!("valid until {exp}"))
    } else {
        bad(format!("expired at {exp}: request a new token"))
    })
}

/// ID tokens share issuer, keys and audience with access tokens.
fn kind(claims: &Map<String, Value>) -> Option<Check> {
    let marks = ["nonce", "at_hash", "c_hash", "sid", "azp"].into_iter().filter(|name| claims.contains_key(*name));
    let marks: Vec<&str> = marks.collect();
    if !claims.contains_key("jti") || !marks.is_empty() {
        return Some(bad("this is an ID token: send the access token, and set the application's token type to JWT"));
    }
    None
}

fn roles(config: &Config, claims: &Map<String, Value>) -> Vec<Check> {
    let Some(project) = &config.identity.project_id else {
        return vec![bad("identity.project_id (ZITADEL_PROJECT_ID) is not set: no role counts")];
    };
    let name = format!("urn:zitadel:iam:org:project:{project}:roles");
    if let Some(Value::Object(roles)) = claims.get(&name) {
        let granted = |(role, by): (&String, &Value)| {
            let by: Vec<&str> = by.as_object().into_iter().flatten().map(|(org, _)| org.as_str()).collect();
            format!("{role} (by {})", by.join(", "))
        };
        return vec![good(format!("project roles {}", roles.iter().map(granted).collect::<Vec<_>>().join("; ")))];
    }
    let mut checks = vec![bad(format!("claim {name}"))];
    let others = claims.keys().filter(|key| key.ends_with(":roles") && key.contains(":project")).cloned();
    let others: Vec<String> = others.collect();
    if !others.is_empty() {
        checks.push(bad(format!(
            "roles of our project: the token has those of another ({}); add the scope \
             urn:zitadel:iam:org:project:id:{project}:aud and urn:zitadel:iam:org:projects:roles",
            others.join(", ")
        )));
        return checks;
    }
    // A service user's client_id is its name; an application's is a number.
    let application =
        text(claims, "client_id").split('@').next().is_some_and(|id| id.bytes().all(|b| b.is_ascii_digit()));
    checks.push(bad(if application {
        "role assertion: switch on \"Add user roles to the access token\" at the application, and request the scope \
         urn:zitadel:iam:org:projects:roles or switch on \"Assert Roles on Authentication\" at the project"
            .to_owned()
    } else {
        format!(
            "role scope: a service user asks for its roles; request the scopes \
             urn:zitadel:iam:org:project:id:{project}:aud and urn:zitadel:iam:org:projects:roles"
        )
    }));
    checks.push(bad("or no grant: `alchemi zitadel drift --account ID` shows who holds what"));
    checks
}

fn account(config: &Config, claims: &Map<String, Value>) -> Check {
    let found = config.identity.account_id_claims.iter().find(|name| !text(claims, name).is_empty());
    match found {
        Some(name) => good(format!("account by the claim {name}: {}", text(claims, name))),
        None => bad(format!(
            "account: none of the claims {}; request the scope urn:zitadel:iam:user:resourceowner",
            config.identity.account_id_claims.join(", ")
        )),
    }
}
