//! From claims to a context: tenancy.

use std::collections::BTreeMap;
use std::sync::Arc;

use alchemi::context::{AuthProvider, Context, Domain};
use alchemi::identity::{AccountBinding, ClaimRules, ContextError, Verified, context, master_key_context};
use alchemi::problem::Problem;
use serde_json::{Value, json};

use crate::issuer::{PROJECT, TestIssuer};

async fn verified(roles: Value, extra: Value) -> Arc<Verified> {
    let issuer = TestIssuer::start().await;
    let mut changes = extra;
    changes[format!("urn:zitadel:iam:org:project:{PROJECT}:roles")] = roles;
    issuer.identity().0.verify(&issuer.token(changes)).await.unwrap()
}

/// An account that the tokens of `token`'s issuer are for.
fn account_of(token: &Verified, organization: Option<&str>) -> AccountBinding {
    AccountBinding { issuer: Some(token.issuer().to_string()), ..account(organization) }
}

fn rules() -> ClaimRules {
    ClaimRules {
        super_admin_roles: vec!["super_admin".to_owned()],
        platform_issuers: Vec::new(),
        super_admin_org_id: None,
        default_product_domains: vec!["console".to_owned(), "copilot".to_owned()],
        scopes_from_roles: true,
    }
}

fn account(organization: Option<&str>) -> AccountBinding {
    AccountBinding {
        id: "acc".parse().unwrap(),
        suspended: false,
        issuer: None,
        organization_id: organization.map(str::to_owned),
        role_prefix: None,
        role_mappings: BTreeMap::new(),
    }
}

fn roles(result: Result<Context, ContextError>) -> Vec<String> {
    result.unwrap().roles().to_vec()
}

#[tokio::test]
async fn only_the_accounts_own_organisation_grants_its_roles() {
    let token = verified(json!({"account_admin": {"B": "b"}, "end_user": {"A": "a", "B": "b"}}), json!({})).await;
    assert_eq!(roles(context(&token, Some(&account_of(&token, Some("A"))), false, &rules())), ["end_user"]);
    assert_eq!(
        roles(context(&token, Some(&account_of(&token, Some("B"))), false, &rules())),
        ["account_admin", "end_user"]
    );
    assert_eq!(roles(context(&token, Some(&account_of(&token, None)), false, &rules())), ["account_admin", "end_user"]);
    assert_eq!(roles(context(&token, None, false, &rules())), ["account_admin", "end_user"]);
    let error = context(&token, Some(&account_of(&token, Some("C"))), false, &rules()).unwrap_err();
    assert_eq!(error, ContextError::NotBound);
    assert_eq!(Problem::from(error).code(), "account_mismatch");
    // The forged account claim of another organisation's Action changes nothing.
    let forged = verified(json!({"account_admin": {"B": "b"}}), json!({"account_id": "acc"})).await;
    assert!(context(&forged, Some(&account_of(&forged, Some("A"))), false, &rules()).is_err());
}

#[tokio::test]
async fn the_resource_owner_binds_without_a_role() {
    let token =
        verified(json!({"account_admin": {"B": "b"}}), json!({"urn:zitadel:iam:user:resourceowner:id": "A"})).await;
    let context = context(&token, Some(&account_of(&token, Some("A"))), false, &rules()).unwrap();
    assert!(context.roles().is_empty() && context.member().is_ok() && context.account_admin().is_err());
}

#[tokio::test]
async fn mappings_and_prefixes_are_applied_backwards() {
    let token = verified(
        json!({"acme_copilot_org_admin": {"A": "a"}, "boss": {"A": "a"}, "beta_account_admin": {"A": "a"},
               "console_org_admin": {"A": "a"}, "super": {"A": "a"}}),
        json!({}),
    )
    .await;
    let mappings = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    let prefixed = AccountBinding { role_prefix: Some("acme_".to_owned()), ..account_of(&token, Some("A")) };
    assert_eq!(roles(context(&token, Some(&prefixed), false, &rules())), ["copilot_org_admin"]);
    let mapped = AccountBinding { role_mappings: mappings(&[("account_admin", "boss")]), ..prefixed };
    assert_eq!(roles(context(&token, Some(&mapped), false, &rules())), ["account_admin", "copilot_org_admin"]);
    // A canonical name that is mapped elsewhere is not itself; nobody maps to super admin.
    let renamed = AccountBinding {
        role_mappings: mappings(&[("console_org_admin", "boss"), ("super_admin", "super")]),
        ..account_of(&token, Some("A"))
    };
    let context = context(&token, Some(&renamed), false, &trusting(&token)).unwrap();
    assert_eq!(context.roles(), ["acme_copilot_org_admin", "beta_account_admin", "console_org_admin"]);
    assert!(!context.is_super_admin());
}

#[tokio::test]
async fn a_super_admin_is_one_by_the_trusted_organisation() {
    let token = verified(json!({"super_admin": {"OPS": "ops"}, "end_user": {"A": "a"}}), json!({})).await;
    let anywhere = trusting(&token);
    let trusting = |org: &str| ClaimRules { super_admin_org_id: Some(org.to_owned()), ..anywhere.clone() };
    for rules in [anywhere.clone(), trusting("OPS")] {
        let context = context(&token, Some(&account_of(&token, Some("C"))), true, &rules).unwrap();
        assert!(context.is_super_admin() && context.super_admin().is_ok());
        assert_eq!(context.roles(), ["super_admin"]);
    }
    let other = context(&token, Some(&account_of(&token, Some("A"))), false, &trusting("A")).unwrap();
    assert!(!other.is_super_admin());
    assert_eq!(other.roles(), ["end_user"]);
    let error = context(&token, Some(&account_of(&token, Some("A"))), true, &trusting("A")).unwrap_err();
    assert_eq!(error, ContextError::NotSuperAdmin);
    assert_eq!(Problem::from(error).status(), 403);
}

/// Rules by which tokens of this one's issuer may make super admins.
fn trusting(token: &Verified) -> ClaimRules {
    ClaimRules { platform_issuers: vec![token.issuer().to_string()], ..rules() }
}

#[tokio::test]
async fn a_super_admin_is_one_by_a_trusted_issuer() {
    let token = verified(json!({"super_admin": {"OPS": "ops"}}), json!({})).await;
    for issuers in [Vec::new(), vec!["https://login.example.com".to_owned()], vec![format!("{}/", token.issuer())]] {
        let rules = ClaimRules { platform_issuers: issuers, ..rules() };
        let context = context(&token, Some(&account_of(&token, None)), false, &rules).unwrap();
        assert!(!context.is_super_admin() && context.roles().is_empty());
    }
    assert!(context(&token, None, false, &trusting(&token)).unwrap().is_super_admin());
}

#[tokio::test]
async fn an_account_admits_tokens_of_its_issuer() {
    let token = verified(json!({"super_admin": {"A": "a"}, "account_admin": {"A": "a"}}), json!({})).await;
    let of = |issuer: &str| AccountBinding { issuer: Some(issuer.to_owned()), ..account(Some("A")) };
    // One that is bound to none is for the platform's own issuers.
    assert_eq!(context(&token, Some(&account(Some("A"))), false, &rules()).unwrap_err(), ContextError::OtherIssuer);
    let platform = ClaimRules { super_admin_roles: Vec::new(), ..trusting(&token) };
    assert_eq!(roles(context(&token, Some(&account(Some("A"))), false, &platform)), ["account_admin", "super_admin"]);
    assert_eq!(roles(context(&token, Some(&of(token.issuer())), false, &rules())), ["account_admin"]);
    for other in ["https://login.example.com", &format!("{}/", token.issuer()), ""] {
        let error = context(&token, Some(&of(other)), false, &rules()).unwrap_err();
        assert_eq!(error, ContextError::OtherIssuer);
        assert_eq!(Problem::from(error).code(), "account_mismatch");
        assert!(context(&token, Some(&of(other)), true, &trusting(&token)).is_ok(), "an operator is of no account");
    }
}

#[tokio::test]
async fn scopes_and_domains_follow_the_rules() {
    let token = verified(json!({"console:admin": {"B": "b"}, "end_user": {"A": "a"}}), json!({"scope": "*"})).await;
    let bound = context(&token, Some(&account_of(&token, Some("A"))), false, &rules()).unwrap();
    assert_eq!(bound.scopes(), ["end_user"], "a scope from a role is bound as the role is");
    assert!(bound.domain_admin(Domain::Console).is_err());
    assert!(bound.product_domains().allow(Domain::Console) && bound.product_domains().allow(Domain::Copilot));
    let token = verified(json!({"end_user": {"A": "a"}}), json!({"product_domains_allowed": ["copilot"]})).await;
    let limited = context(&token, Some(&account_of(&token, Some("A"))), false, &rules()).unwrap();
    assert_eq!(limited.product_domains().only(), Some(Domain::Copilot));
    let none = verified(json!({}), json!({"product_domains_allowed": []})).await;
    let none = context(&none, None, false, &rules()).unwrap();
    assert!(!none.product_domains().allow(Domain::Copilot));
}

#[tokio::test]
async fn suspension_reaches_the_guards() {
    let token = verified(json!({"account_admin": {"A": "a"}}), json!({})).await;
    let suspended = AccountBinding { suspended: true, ..account_of(&token, Some("A")) };
    let context = context(&token, Some(&suspended), false, &rules()).unwrap();
    assert_eq!(context.member().unwrap_err().code(), "account_suspended");
}

#[test]
fn the_master_key_is_super_admin_of_any_account_or_none() {
    let none = master_key_context(None);
    assert!(none.super_admin().is_ok() && none.member().is_err());
    assert_eq!(none.provider(), AuthProvider::MasterKey);
    let some = master_key_context(Some(&account(Some("A"))));
    assert!(some.account_admin().is_ok() && some.check_domain(Domain::Console).is_ok());
}
