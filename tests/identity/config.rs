//! Settings: defaults, and sentences for what is wrong.

use alchemi::identity::{IdentityConfig, IssuerConfig, ScopesSource};
use serde_json::json;

fn valid() -> IdentityConfig {
    IdentityConfig {
        issuers: vec![IssuerConfig::at("https://login.example.com")],
        project_id: Some("1".to_owned()),
        super_admin_org_id: Some("9".to_owned()),
        ..IdentityConfig::default()
    }
}

#[test]
fn an_empty_section_is_the_default_and_unknown_keys_are_named() {
    let config: IdentityConfig = serde_json::from_value(json!({})).unwrap();
    assert_eq!(config.check(), Ok(()));
    assert_eq!(config.account_id_claims.len(), 4);
    let config: IdentityConfig = serde_json::from_value(json!({
        "issuers": [{"url": "https://login.example.com"}],
        "scopes_source": "claim:scope",
        "introspection_client_secret": "hidden",
    }))
    .unwrap();
    assert_eq!(config.scopes_source, ScopesSource::Claim("scope".to_owned()));
    assert!(!format!("{config:?}").contains("hidden"));
    for (wrong, named) in [
        (json!({"isuers": []}), "isuers"),
        (json!({"issuers": [{"url": "x", "jwks": 1}]}), "jwks"),
        (json!({"scopes_source": "claims"}), "claim:<name>"),
    ] {
        let error = serde_json::from_value::<IdentityConfig>(wrong).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn what_is_wrong_is_said_in_one_sentence() {
    let issuer = |url: &str| vec![IssuerConfig::at(url)];
    let cases = [
        (IdentityConfig { project_id: None, ..valid() }, "ZITADEL_PROJECT_ID"),
        (IdentityConfig { project_id: None, ..valid() }, "audiences = [\"*\"]"),
        (IdentityConfig { issuers: issuer("http://login.example.com"), ..valid() }, "loopback"),
        (IdentityConfig { issuers: issuer("ftp://login.example.com"), ..valid() }, "expected a URL"),
        (IdentityConfig { issuers: issuer("login"), ..valid() }, "`login`"),
        (IdentityConfig { issuers: issuer("https://u:p@login.example.com"), ..valid() }, "no query"),
        (IdentityConfig { issuers: issuer("https://login.example.com/"), ..valid() }, "no slash at the end"),
        (IdentityConfig { leeway_seconds: 31, ..valid() }, "leeway_seconds = 31"),
        (IdentityConfig { introspection_cache_seconds: 61, ..valid() }, "introspection_cache_seconds"),
        (IdentityConfig { jwks_max_stale_seconds: 10, ..valid() }, "at least jwks_ttl_seconds"),
        (IdentityConfig { introspection_client_id: Some("c".to_owned()), ..valid() }, "introspection_client_secret"),
        (IdentityConfig { introspection_client_secret: Some("c".into()), ..valid() }, "introspection_client_id"),
        (IdentityConfig { scopes_source: ScopesSource::Introspection, ..valid() }, "scopes_source"),
    ];
    for (config, named) in cases {
        let sentence = config.check().unwrap_err().to_string();
        assert!(sentence.contains(named), "{sentence}");
    }
    for loopback in ["http://localhost:8080", "http://127.0.0.1:1", "http://[::1]:1", "http://zitadel.localhost"] {
        assert_eq!(IdentityConfig { issuers: issuer(loopback), ..valid() }.check(), Ok(()));
    }
}

#[test]
fn what_is_dangerous_is_warned_about() {
    assert!(valid().warnings().is_empty());
    let any = IdentityConfig { audiences: vec!["*".to_owned()], ..valid() };
    assert_eq!((any.check(), any.warnings().len()), (Ok(()), 1));
    let open = IdentityConfig { super_admin_org_id: None, scopes_source: ScopesSource::Claim("s".into()), ..valid() };
    assert_eq!(open.warnings().len(), 2);
    let several = |platform| IdentityConfig {
        issuers: vec![
            IssuerConfig::at("https://login.example.com"),
            IssuerConfig { platform, ..IssuerConfig::at("https://login.example.org") },
        ],
        ..valid()
    };
    assert!(several(None).warnings()[0].contains("the first alone makes super admins"));
    assert!(several(Some(false)).warnings().is_empty() && several(Some(true)).warnings().is_empty());
}

/// Whose word makes an operator, is said and not guessed: of several issuers, the first one's, unless said otherwise.
#[test]
fn super_admins_come_from_the_first_issuer_unless_said() {
    let [first, second] = ["https://login.example.com", "https://login.example.org"];
    let rules = |one: Option<bool>, two: Option<bool>| {
        let issuer = |url: &str, platform| IssuerConfig { platform, ..IssuerConfig::at(url) };
        let config = IdentityConfig { issuers: vec![issuer(first, one), issuer(second, two)], ..valid() };
        config.claim_rules().platform_issuers
    };
    assert_eq!(valid().claim_rules().platform_issuers, [first]);
    assert_eq!(rules(None, None), [first]);
    assert_eq!(rules(None, Some(true)), [first, second]);
    assert_eq!(rules(Some(false), Some(true)), [second]);
    assert_eq!(rules(Some(false), None), [""; 0]);
    let written = json!({"url": first, "platform": false});
    assert_eq!(serde_json::from_value::<IssuerConfig>(written).unwrap().platform, Some(false));
}
