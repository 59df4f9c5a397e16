//! Who may call what: every operation of the description × every kind of caller.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::json;

use crate::common::{Client, Gateway, Person, backends};
use crate::operations::{LOGOUT, Operation, operations};

/// Who may call an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    /// Anybody, callers of a suspended account too.
    Anybody,
    /// Anybody but callers of a suspended account.
    Unsuspended,
    /// Any signed-in subject of an account.
    Member,
    /// Admins of the console domain.
    Console,
    /// Admins of the copilot domain.
    Copilot,
    /// Admins of one of the domains.
    Either,
    /// Admins of a whole account.
    Account,
    /// Operators, in an account.
    SuperInAccount,
    /// Operators.
    Super,
}

use Guard::{Account, Anybody, Console, Copilot, Either, Member, Super, SuperInAccount, Unsuspended};

const GUARDS: &[(Guard, &[&str])] = &[
    (Anybody, &["GET /v1/me/context", LOGOUT]),
    (Unsuspended, &["GET /v1/auth/zitadel/status"]),
    (
        Member,
        &[
            "GET /v1/copilot/marketplace/discover",
            "POST /v1/copilot/marketplace/{marketplace_id}/install",
            "DELETE /v1/copilot/marketplace/{marketplace_id}/install",
            "GET /v1/copilot/marketplace/{marketplace_id}/rating",
            "POST /v1/copilot/marketplace/{marketplace_id}/rating",
            "DELETE /v1/copilot/marketplace/{marketplace_id}/rating",
            "GET /v1/me/marketplace",
            "GET /v1/me/agents",
            "GET /v1/me/allocation",
            "GET /v1/me/features",
            "GET /v1/me/models",
            "GET /v1/me/usage",
        ],
    ),
    (
        Super,
        &[
            "GET /v1/auth/revocations",
            "POST /v1/auth/revocations",
            "DELETE /v1/auth/revocations/{revocation_id}",
            "GET /v1/accounts",
            "POST /v1/accounts",
            "GET /v1/accounts/{account_id}",
            "PATCH /v1/accounts/{account_id}",
            "DELETE /v1/accounts/{account_id}",
            "POST /v1/accounts/{account_id}/status",
            "GET /v1/accounts/{account_id}/admins",
            "POST /v1/accounts/{account_id}/admins",
            "PATCH /v1/accounts/{account_id}/admins/{email}",
            "DELETE /v1/accounts/{account_id}/admins/{email}",
            "GET /v1/accounts/{account_id}/sso",
            "POST /v1/accounts/{account_id}/sso",
            "DELETE /v1/accounts/{account_id}/sso",
            "GET /v1/accounts/{account_id}/feature-pack",
            "PUT /v1/accounts/{account_id}/feature-pack",
            "GET /v1/accounts/{account_id}/console-model-policy",
            "PUT /v1/accounts/{account_id}/console-model-policy",
            "GET /v1/accounts/{account_id}/zitadel/config",
            "PUT /v1/accounts/{account_id}/zitadel/config",
            "GET /v1/accounts/{account_id}/zitadel/provision/plan",
            "GET /v1/accounts/{account_id}/zitadel/provision/drift",
            "POST /v1/accounts/{account_id}/zitadel/provision/user-grant",
            "POST /v1/accounts/{account_id}/zitadel/provision/project-role",
            "POST /v1/accounts/{account_id}/zitadel/provision/sync-roles",
            "POST /v1/accounts/{account_id}/zitadel/provision/sync-admin-grants",
            "POST /v1/accounts/{account_id}/zitadel/provision/bootstrap",
            "DELETE /v1/accounts/{account_id}/zitadel/provision/items/{item_id}",
            "GET /v1/accounts/{account_id}/audit",
            "GET /v1/accounts/{account_id}/audit/verify",
            "GET /v1/accounts/{account_id}/audit/export",
            "GET /v1/budgets/account-allocation",
            "POST /v1/budgets/account-allocation",
        ],
    ),
    (Account, &["GET /v1/audit", "GET /v1/audit/verify", "GET /v1/audit/export"]),
    (SuperInAccount, &["POST /v1/budgets/copilot/adjustments"]),
    (
        Copilot,
        &[
            "GET /v1/copilot/agents",
            "POST /v1/copilot/agents",
            "GET /v1/copilot/agents/{agent_id}",
            "PUT /v1/copilot/agents/{agent_id}",
            "DELETE /v1/copilot/agents/{agent_id}",
            "GET /v1/copilot/agents/{agent_id}/grants",
            "POST /v1/copilot/agents/{agent_id}/grants",
            "DELETE /v1/copilot/agents/{agent_id}/grants",
            "GET /v1/copilot/guardrails/presets",
            "POST /v1/copilot/guardrails/presets",
            "GET /v1/copilot/guardrails/presets/{preset_id}",
            "DELETE /v1/copilot/guardrails/presets/{preset_id}",
            "GET /v1/copilot/guardrails/patterns",
            "POST /v1/copilot/guardrails/patterns",
            "GET /v1/copilot/guardrails/patterns/{pattern_id}",
            "PUT /v1/copilot/guardrails/patterns/{pattern_id}",
            "DELETE /v1/copilot/guardrails/patterns/{pattern_id}",
            "GET /v1/copilot/guardrails/assignments",
            "POST /v1/copilot/guardrails/assignments",
            "DELETE /v1/copilot/guardrails/assignments/{assignment_id}",
            "GET /v1/copilot/guardrails/effective",
            "GET /v1/copilot/connections",
            "POST /v1/copilot/connections/{connection_type}",
            "GET /v1/copilot/connections/{connection_id}",
            "PATCH /v1/copilot/connections/{connection_id}",
            "DELETE /v1/copilot/connections/{connection_id}",
            "GET /v1/copilot/connections/{connection_id}/grants",
            "POST /v1/copilot/connections/{connection_id}/grants",
            "DELETE /v1/copilot/connections/{connection_id}/grants/{grant_id}",
            "GET /v1/budgets/copilot/account-allocation",
            "GET /v1/budgets/copilot/plans",
            "POST /v1/budgets/copilot/plans",
            "GET /v1/budgets/copilot/plans/active",
            "GET /v1/budgets/copilot/plans/{plan_id}",
            "PATCH /v1/budgets/copilot/plans/{plan_id}",
            "POST /v1/budgets/copilot/plans/{plan_id}/activate",
            "GET /v1/budgets/copilot/allocations",
            "DELETE /v1/budgets/copilot/allocations",
            "POST /v1/budgets/copilot/allocations/upsert",
            "POST /v1/budgets/copilot/distribute/equal",
            "GET /v1/budgets/copilot/overrides",
            "POST /v1/budgets/copilot/overrides",
            "DELETE /v1/budgets/copilot/overrides/{override_id}",
            "POST /v1/budgets/copilot/cycles/renew",
            "GET /v1/budgets/copilot/cycles/history",
            "GET /v1/budgets/copilot/effective-allocation",
            "GET /v1/budgets/copilot/usage-by-scope",
            "GET /v1/budgets/copilot/alerts",
            "GET /v1/budgets/copilot/alerts/webhook",
            "PUT /v1/budgets/copilot/alerts/webhook",
            "DELETE /v1/budgets/copilot/alerts/webhook",
            "POST /v1/budgets/copilot/alerts/webhook/test",
            "GET /v1/budgets/copilot/alerts/deliveries",
            "GET /v1/budgets/copilot/cost-breakdown",
            "POST /v1/budgets/copilot/usage/record",
            // Of the domain that the query names, which is copilot unless it names one.
            "GET /v1/costs/breakdown",
            "GET /v1/costs/entries",
            "GET /v1/features/entitlements",
            "POST /v1/features/entitlements",
            "GET /v1/features/effective",
            "POST /v1/policy/explain",
            "GET /v1/copilot/marketplace",
            "POST /v1/copilot/marketplace",
            "GET /v1/copilot/marketplace/{marketplace_id}",
            "PATCH /v1/copilot/marketplace/{marketplace_id}",
            "DELETE /v1/copilot/marketplace/{marketplace_id}",
            "POST /v1/copilot/marketplace/{marketplace_id}/publish",
            "GET /v1/copilot/marketplace/{marketplace_id}/grants",
            "POST /v1/copilot/marketplace/{marketplace_id}/grants",
            "DELETE /v1/copilot/marketplace/{marketplace_id}/grants",
            "GET /v1/copilot/marketplace/{marketplace_id}/install",
        ],
    ),
    (
        // Of the domain that the row is of: of another, it does not exist.
        Either,
        &["GET /v1/features/entitlements/{entitlement_id}", "DELETE /v1/features/entitlements/{entitlement_id}"],
    ),
];

/// Operations of both domains, for the admins of each.
const OF_DOMAINS: &[&str] = &[
    "GET /v1/{domain}/orgs",
    "POST /v1/{domain}/orgs",
    "GET /v1/{domain}/orgs/{org_id}",
    "PATCH /v1/{domain}/orgs/{org_id}",
    "DELETE /v1/{domain}/orgs/{org_id}",
    "GET /v1/{domain}/teams",
    "POST /v1/{domain}/teams",
    "GET /v1/{domain}/teams/{team_id}",
    "PATCH /v1/{domain}/teams/{team_id}",
    "DELETE /v1/{domain}/teams/{team_id}",
    "GET /v1/{domain}/teams/{team_id}/members",
    "POST /v1/{domain}/teams/{team_id}/members",
    "PATCH /v1/{domain}/teams/{team_id}/members/{user_id}",
    "DELETE /v1/{domain}/teams/{team_id}/members/{user_id}",
    "GET /v1/{domain}/users",
    "POST /v1/{domain}/users",
    "GET /v1/{domain}/users/{user_id}",
    "PATCH /v1/{domain}/users/{user_id}",
    "DELETE /v1/{domain}/users/{user_id}",
    "GET /v1/{domain}/models/grants",
    "POST /v1/{domain}/models/grants",
    "GET /v1/{domain}/models/grants/{grant_id}",
    "DELETE /v1/{domain}/models/grants/{grant_id}",
    "GET /v1/{domain}/models/effective",
];

/// The order of the columns below.
const COLUMNS: [Guard; 9] = [Anybody, Unsuspended, Member, Console, Copilot, Either, Account, SuperInAccount, Super];

const OK: &str = "";
const MISSING: &str = "token_missing";
const NO_ACCOUNT: &str = "account_context_required";
const NO_DOMAIN: &str = "domain_admin_required";
const DENIED: &str = "domain_denied";
const NO_ADMIN: &str = "account_admin_required";
const NO_SUPER: &str = "super_admin_required";
const HALTED: &str = "account_suspended";
const FORGED: &str = "token_invalid";
const FOREIGN: &str = "account_mismatch";

/// What each caller is told at each guard: the code of the refusal, or nothing.
const EXPECTED: &[(&str, [&str; 9])] = &[
    ("anonymous", [OK, OK, MISSING, MISSING, MISSING, MISSING, MISSING, MISSING, MISSING]),
    ("forged token", [FORGED; 9]),
    ("end user", [OK, OK, OK, NO_DOMAIN, NO_DOMAIN, NO_DOMAIN, NO_ADMIN, NO_SUPER, NO_SUPER]),
    ("console_org_admin", [OK, OK, OK, OK, NO_DOMAIN, OK, NO_ADMIN, NO_SUPER, NO_SUPER]),
    ("console_team_admin", [OK, OK, OK, OK, NO_DOMAIN, OK, NO_ADMIN, NO_SUPER, NO_SUPER]),
    ("copilot_org_admin", [OK, OK, OK, NO_DOMAIN, OK, OK, NO_ADMIN, NO_SUPER, NO_SUPER]),
    ("copilot_team_admin", [OK, OK, OK, NO_DOMAIN, OK, OK, NO_ADMIN, NO_SUPER, NO_SUPER]),
    ("console_org_admin, copilot only", [OK, OK, OK, DENIED, NO_DOMAIN, NO_DOMAIN, NO_ADMIN, NO_SUPER, NO_SUPER]),
    ("account_admin", [OK, OK, OK, OK, OK, OK, OK, NO_SUPER, NO_SUPER]),
    ("account_admin, copilot only", [OK, OK, OK, DENIED, OK, OK, OK, NO_SUPER, NO_SUPER]),
    ("account_admin of another account, asking for this", [FOREIGN; 9]),
    (
        "account_admin of no account",
        [OK, OK, NO_ACCOUNT, NO_ACCOUNT, NO_ACCOUNT, NO_ACCOUNT, NO_ACCOUNT, NO_SUPER, NO_SUPER],
    ),
    ("account_admin, suspended", [OK, HALTED, HALTED, HALTED, HALTED, HALTED, HALTED, HALTED, HALTED]),
    ("super_admin", [OK, OK, OK, OK, OK, OK, OK, OK, OK]),
    ("super_admin of another account, asking for this", [OK, OK, OK, OK, OK, OK, OK, OK, OK]),
    ("super_admin of no account", [OK, OK, NO_ACCOUNT, NO_ACCOUNT, NO_ACCOUNT, NO_ACCOUNT, NO_ACCOUNT, NO_ACCOUNT, OK]),
    ("super_admin, suspended", [OK, OK, OK, OK, OK, OK, OK, OK, OK]),
    ("master key", [OK, OK, NO_ACCOUNT, NO_ACCOUNT, NO_ACCOUNT, NO_ACCOUNT, NO_ACCOUNT, NO_ACCOUNT, OK]),
    ("master key, asking for this", [OK, OK, OK, OK, OK, OK, OK, OK, OK]),
    ("master key, asking for a suspended one", [OK, OK, OK, OK, OK, OK, OK, OK, OK]),
];

/// The callers of [`EXPECTED`], by name.
async fn callers(gateway: &Gateway) -> BTreeMap<&'static str, Client> {
    let (own, other, halted) =
        (gateway.account("Acme").await, gateway.account("Other").await, gateway.account("Halted").await);
    let suspend = json!({"status": "suspended"});
    gateway.operator().post(&format!("/v1/accounts/{halted}/status"), suspend).await.ok();
    let of = |account: &str, subject: &str, role: &str| {
        let person = Person::of(account, subject);
        if role.is_empty() { person } else { person.role(role) }
    };
    let sign_in = |person: Person| gateway.sign_in(&person);
    BTreeMap::from([
        ("anonymous", gateway.anybody()),
        ("forged token", gateway.anybody().with_token("not.a.token")),
        ("end user", sign_in(of(&own, "eve", ""))),
        ("console_org_admin", sign_in(of(&own, "coa", "console_org_admin"))),
        ("console_team_admin", sign_in(of(&own, "cta", "console_team_admin"))),
        ("copilot_org_admin", sign_in(of(&own, "poa", "copilot_org_admin"))),
        ("copilot_team_admin", sign_in(of(&own, "pta", "copilot_team_admin"))),
        ("console_org_admin, copilot only", sign_in(of(&own, "coc", "console_org_admin").domains(&["copilot"]))),
        ("account_admin", sign_in(of(&own, "ada", "account_admin"))),
        ("account_admin, copilot only", sign_in(of(&own, "adc", "account_admin").domains(&["copilot"]))),
        ("account_admin of another account, asking for this", sign_in(of(&other, "oda", "account_admin")).within(&own)),
        ("account_admin of no account", sign_in(of("none", "nda", "account_admin"))),
        ("account_admin, suspended", sign_in(of(&halted, "hda", "account_admin"))),
        ("super_admin", sign_in(of(&own, "sue", "super_admin"))),
        ("super_admin of another account, asking for this", sign_in(of(&other, "osu", "super_admin")).within(&own)),
        ("super_admin of no account", sign_in(of("none", "nsu", "super_admin"))),
        ("super_admin, suspended", sign_in(of(&halted, "hsu", "super_admin"))),
        ("master key", gateway.operator()),
        ("master key, asking for this", gateway.operator_for(&own)),
        ("master key, asking for a suspended one", gateway.operator_for(&halted)),
    ])
}

/// The guard of each operation, by method and path.
fn guards() -> BTreeMap<String, Guard> {
    let plain = GUARDS.iter().flat_map(|(guard, names)| names.iter().map(|name| ((*name).to_owned(), *guard)));
    let of = |domain: &'static str, guard: Guard| {
        OF_DOMAINS.iter().map(move |name| (name.replace("{domain}", domain), guard))
    };
    plain.chain(of("console", Console)).chain(of("copilot", Copilot)).collect()
}

#[test]
fn every_operation_has_a_guard_and_every_guard_an_operation() {
    let described: Vec<String> = operations().iter().map(Operation::name).collect();
    let guards = guards();
    let unguarded: Vec<_> = described.iter().filter(|name| !guards.contains_key(*name)).collect();
    assert!(unguarded.is_empty(), "no line in GUARDS for {unguarded:#?}");
    let unknown: Vec<_> = guards.keys().filter(|name| !described.contains(name)).collect();
    assert!(unknown.is_empty(), "no operation for {unknown:#?}");
}

#[tokio::test]
async fn every_operation_admits_whom_its_guard_admits() {
    let guards = guards();
    for backend in backends().await {
        let gateway = crate::with_the_issuer_of_examples(backend).await;
        let callers = callers(&gateway).await;
        let mut broken = String::new();
        for operation in operations() {
            let name = operation.name();
            let column = COLUMNS.iter().position(|guard| *guard == guards[&name]).unwrap();
            let asked = operation.ask(|_| None);
            for (caller, expected) in EXPECTED {
                let reply = operation.call(&callers[caller], &asked).await;
                let (status, code) = (reply.status.as_u16(), refusal_code(&reply));
                let fits = match expected[column] {
                    OK if name == LOGOUT => (status, code.as_str()) == (400, "logout_token_invalid"),
                    // Past the guard: the ids of the request are nobody's.
                    OK => matches!(status, 200 | 404 | 409) && !reply.text().contains("no such route"),
                    MISSING | FORGED => status == 401 && code == expected[column] && challenges(&reply),
                    refused => status == 403 && code == refused,
                };
                if !fits {
                    let wanted = expected[column];
                    writeln!(broken, "{name} by {caller}: {status}, not {wanted:?}: {}", reply.text()).unwrap();
                }
            }
        }
        assert!(broken.is_empty(), "\n{broken}");
    }
}

fn refusal_code(reply: &crate::common::Reply) -> String {
    if reply.status.is_success() { String::new() } else { reply.code() }
}

fn challenges(reply: &crate::common::Reply) -> bool {
    reply.header("www-authenticate").starts_with("Bearer")
}

/// Operations whose guard depends on the query.
const GUARDED_BY_QUERY: &[&str] = &[
    "/v1/costs/breakdown?domain=DOMAIN",
    "/v1/features/entitlements?domain=DOMAIN",
    "/v1/features/effective?domain=DOMAIN&feature_code=f",
];

#[tokio::test]
async fn what_names_a_domain_is_guarded_by_the_domain_that_is_asked_for() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let callers = callers(&gateway).await;
        for (caller, expected) in EXPECTED {
            for (domain, column) in [("console", 3), ("copilot", 4)] {
                for path in GUARDED_BY_QUERY {
                    let reply = callers[caller].get(&path.replace("DOMAIN", domain)).await;
                    assert_eq!(refusal_code(&reply), expected[column], "{caller} asks for {path} of {domain}");
                }
            }
        }
    }
}

/// A guard refuses before the body is looked at, so that it tells nothing about it.
#[tokio::test]
async fn guards_come_before_bodies() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let callers = [(gateway.anybody(), 401), (gateway.as_end_user(&account, "eve"), 403)];
        let guards = guards();
        let guarded = |o: &Operation| !o.described["requestBody"].is_null() && o.name() != LOGOUT;
        for operation in operations().into_iter().filter(guarded) {
            for (client, status) in &callers {
                let path = operation.ask(|_| None).path;
                let request = client.request(operation.method.clone(), &path).body("not JSON");
                let reply = client.send(request).await;
                // Whoever may call hears of the body.
                let status = if *status == 403 && guards[&operation.name()] == Member { &415 } else { status };
                assert_eq!(reply.status.as_u16(), *status, "{}: {}", operation.name(), reply.text());
            }
        }
    }
}
