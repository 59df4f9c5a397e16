//! What clients of the product's former control plane call: the operations by method and path, and the calls of its
//! dashboards.

mod dashboards;

use crate::operations::{Operation, operations};

/// Operations by the path under `/v1` and the methods.
type Table = &'static [(&'static str, &'static [&'static str])];

/// What the former control plane had.
const FORMER: Table = &[
    ("/me/context", &["GET"]),
    ("/accounts", &["POST", "GET"]),
    ("/accounts/{account_id}", &["GET", "PATCH", "DELETE"]),
    ("/accounts/{account_id}/status", &["POST"]),
    ("/accounts/{account_id}/admins", &["GET", "POST"]),
    ("/accounts/{account_id}/admins/{email}", &["PATCH", "DELETE"]),
    ("/accounts/{account_id}/sso", &["POST", "GET", "DELETE"]),
    ("/accounts/{account_id}/feature-pack", &["GET", "PUT"]),
    ("/accounts/{account_id}/console-model-policy", &["GET", "PUT"]),
    ("/auth/zitadel/status", &["GET"]),
    ("/accounts/{account_id}/zitadel/config", &["GET", "PUT"]),
    ("/accounts/{account_id}/zitadel/provision/user-grant", &["POST"]),
    ("/accounts/{account_id}/zitadel/provision/project-role", &["POST"]),
    ("/accounts/{account_id}/zitadel/provision/plan", &["GET"]),
    ("/accounts/{account_id}/zitadel/provision/sync-roles", &["POST"]),
    ("/accounts/{account_id}/zitadel/provision/sync-admin-grants", &["POST"]),
    ("/accounts/{account_id}/zitadel/provision/bootstrap", &["POST"]),
    ("/copilot/orgs", &["GET", "POST"]),
    ("/copilot/teams", &["GET", "POST"]),
    ("/copilot/users", &["GET", "POST"]),
    ("/console/orgs", &["GET", "POST"]),
    ("/console/teams", &["GET", "POST"]),
    ("/console/users", &["GET", "POST"]),
    ("/budgets/account-allocation", &["POST", "GET"]),
    ("/budgets/copilot/account-allocation", &["GET"]),
    ("/budgets/copilot/plans", &["POST"]),
    ("/budgets/copilot/plans/active", &["GET"]),
    ("/budgets/copilot/plans/{plan_id}", &["PATCH"]),
    ("/budgets/copilot/allocations/upsert", &["POST"]),
    ("/budgets/copilot/allocations", &["DELETE"]),
    ("/budgets/copilot/distribute/equal", &["POST"]),
    ("/budgets/copilot/overrides", &["POST"]),
    ("/budgets/copilot/effective-allocation", &["GET"]),
    ("/budgets/copilot/usage-by-scope", &["GET"]),
    ("/budgets/copilot/alerts", &["GET"]),
    ("/budgets/copilot/cost-breakdown", &["GET"]),
    ("/copilot/agents", &["GET", "POST"]),
    ("/copilot/agents/{agent_id}", &["GET", "PUT", "DELETE"]),
    ("/copilot/agents/{agent_id}/grants", &["GET", "POST", "DELETE"]),
    ("/copilot/connections", &["GET"]),
    ("/copilot/connections/{connection_type}", &["POST"]),
    ("/copilot/connections/{connection_id}", &["GET", "PATCH", "DELETE"]),
    ("/copilot/connections/{connection_id}/grants", &["POST"]),
    ("/copilot/guardrails/presets", &["GET", "POST"]),
    ("/copilot/guardrails/assignments", &["GET", "POST"]),
    ("/copilot/guardrails/patterns", &["GET", "POST"]),
    ("/copilot/guardrails/patterns/{pattern_id}", &["GET", "PUT", "DELETE"]),
    ("/copilot/guardrails/effective", &["GET"]),
    ("/copilot/models/grants", &["GET", "POST"]),
    ("/copilot/models/effective", &["GET"]),
    ("/console/models/grants", &["GET", "POST"]),
    ("/console/models/effective", &["GET"]),
    ("/features/entitlements", &["GET", "POST"]),
    ("/features/effective", &["GET"]),
    ("/copilot/marketplace", &["GET", "POST"]),
    ("/copilot/marketplace/discover", &["GET"]),
    ("/copilot/marketplace/{marketplace_id}/grants", &["POST", "GET", "DELETE"]),
    ("/copilot/marketplace/{marketplace_id}", &["GET", "PATCH", "DELETE"]),
    ("/copilot/marketplace/{marketplace_id}/publish", &["POST"]),
    ("/audit", &["GET"]),
    ("/costs/breakdown", &["GET"]),
];

/// What was added, so that nothing can be made that cannot be read, changed and removed; and what callers see of
/// themselves.
const ADDED: Table = &[
    ("/accounts/{account_id}/audit", &["GET"]),
    ("/accounts/{account_id}/audit/export", &["GET"]),
    ("/accounts/{account_id}/audit/verify", &["GET"]),
    ("/accounts/{account_id}/zitadel/provision/drift", &["GET"]),
    ("/audit/export", &["GET"]),
    ("/audit/verify", &["GET"]),
    ("/auth/revocations", &["GET", "POST"]),
    ("/auth/revocations/{revocation_id}", &["DELETE"]),
    ("/auth/zitadel/backchannel-logout", &["POST"]),
    ("/budgets/copilot/adjustments", &["POST"]),
    ("/budgets/copilot/alerts/deliveries", &["GET"]),
    ("/budgets/copilot/alerts/webhook", &["GET", "PUT", "DELETE"]),
    ("/budgets/copilot/alerts/webhook/test", &["POST"]),
    ("/budgets/copilot/allocations", &["GET"]),
    ("/budgets/copilot/cycles/history", &["GET"]),
    ("/budgets/copilot/cycles/renew", &["POST"]),
    ("/budgets/copilot/overrides", &["GET"]),
    ("/budgets/copilot/overrides/{override_id}", &["DELETE"]),
    ("/budgets/copilot/plans", &["GET"]),
    ("/budgets/copilot/plans/{plan_id}", &["GET"]),
    ("/budgets/copilot/plans/{plan_id}/activate", &["POST"]),
    ("/budgets/copilot/usage/record", &["POST"]),
    ("/console/models/grants/{grant_id}", &["GET", "DELETE"]),
    ("/console/orgs/{org_id}", &["GET", "PATCH", "DELETE"]),
    ("/console/teams/{team_id}", &["GET", "PATCH", "DELETE"]),
    ("/console/teams/{team_id}/members", &["GET", "POST"]),
    ("/console/teams/{team_id}/members/{user_id}", &["PATCH", "DELETE"]),
    ("/console/users/{user_id}", &["GET", "PATCH", "DELETE"]),
    ("/copilot/connections/{connection_id}/grants", &["GET"]),
    ("/copilot/connections/{connection_id}/grants/{grant_id}", &["DELETE"]),
    ("/copilot/guardrails/assignments/{assignment_id}", &["DELETE"]),
    ("/copilot/guardrails/presets/{preset_id}", &["GET", "DELETE"]),
    ("/copilot/marketplace/{marketplace_id}/install", &["GET", "POST", "DELETE"]),
    ("/copilot/marketplace/{marketplace_id}/rating", &["GET", "POST", "DELETE"]),
    ("/copilot/models/grants/{grant_id}", &["GET", "DELETE"]),
    ("/copilot/orgs/{org_id}", &["GET", "PATCH", "DELETE"]),
    ("/copilot/teams/{team_id}", &["GET", "PATCH", "DELETE"]),
    ("/copilot/teams/{team_id}/members", &["GET", "POST"]),
    ("/copilot/teams/{team_id}/members/{user_id}", &["PATCH", "DELETE"]),
    ("/copilot/users/{user_id}", &["GET", "PATCH", "DELETE"]),
    ("/costs/entries", &["GET"]),
    ("/features/entitlements/{entitlement_id}", &["GET", "DELETE"]),
    ("/me/agents", &["GET"]),
    ("/me/allocation", &["GET"]),
    ("/me/features", &["GET"]),
    ("/me/marketplace", &["GET"]),
    ("/me/models", &["GET"]),
    ("/me/usage", &["GET"]),
    ("/policy/explain", &["POST"]),
];

#[test]
fn every_operation_is_described() {
    let described: Vec<String> = operations().iter().map(Operation::name).collect();
    let named = |table: Table| -> Vec<String> {
        let of = |(path, methods): &(&str, &'static [&'static str])| {
            let path = (*path).to_owned();
            methods.iter().map(move |method| format!("{method} /v1{path}"))
        };
        table.iter().flat_map(of).collect()
    };
    let (former, added) = (named(FORMER), named(ADDED));
    assert_eq!(former.len(), 98);
    let missing: Vec<_> = former.iter().chain(&added).filter(|name| !described.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
