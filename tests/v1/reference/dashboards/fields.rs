//! What the reference's dashboards load, and which fields they read.

pub(super) const ACCOUNT: &[&str] = &[
    "account_id",
    "account_name",
    "account_alias",
    "domain",
    "status",
    "metadata",
    "max_budget",
    "spend",
    "created_at",
    "created_by",
    "updated_at",
    "admins",
    "sso_config",
    "allocation",
    "feature_pack",
    "console_model_policy",
    "zitadel_config",
];

pub(super) const ADMIN: &[&str] = &["id", "account_id", "user_email", "role", "created_at", "created_by", "updated_at"];

/// What the page of an account's admins loads, and what it reads of each row.
pub(super) const LISTS: &[(&str, &[&str])] = &[
    (
        "/copilot/orgs",
        &["id", "account_id", "name", "description", "is_default_global", "created_by", "created_at", "updated_at"],
    ),
    (
        "/copilot/teams",
        &["id", "account_id", "org_id", "name", "description", "created_by", "created_at", "updated_at"],
    ),
    (
        "/copilot/users",
        &[
            "id",
            "account_id",
            "identity_user_id",
            "email",
            "display_name",
            "status",
            "created_by",
            "created_at",
            "updated_at",
        ],
    ),
    (
        "/copilot/agents",
        &[
            "id",
            "account_id",
            "name",
            "description",
            "definition_json",
            "created_by",
            "created_at",
            "updated_at",
            "mandatory_guardrail_preset_ids",
        ],
    ),
    (
        "/copilot/connections",
        &[
            "id",
            "account_id",
            "connection_type",
            "name",
            "description",
            "credential_visibility",
            "allow_user_self_manage",
            "config_json",
            "secret_json",
            "created_by",
            "created_at",
            "updated_at",
        ],
    ),
    ("/copilot/guardrails/presets", &["id", "account_id", "code", "name", "preset_json", "created_by", "created_at"]),
    (
        "/copilot/guardrails/assignments",
        &["id", "account_id", "preset_id", "scope_type", "scope_id", "created_by", "created_at"],
    ),
    (
        "/copilot/guardrails/patterns?limit=200",
        &[
            "id",
            "account_id",
            "guard_type",
            "pattern_name",
            "pattern_regex",
            "pattern_type",
            "action",
            "enabled",
            "is_system",
            "created_at",
            "updated_at",
        ],
    ),
    ("/copilot/models/grants", MODEL_GRANT),
    ("/console/models/grants", MODEL_GRANT),
    (
        "/features/entitlements?domain=copilot",
        &[
            "id",
            "account_id",
            "domain",
            "feature_code",
            "scope_type",
            "scope_id",
            "enabled",
            "config_json",
            "created_by",
            "created_at",
        ],
    ),
    (
        "/copilot/marketplace?limit=100&include_grants=true",
        &[
            "id",
            "account_id",
            "entity_type",
            "entity_id",
            "title",
            "description",
            "is_published",
            "is_featured",
            "is_verified",
            "pricing_model",
            "version",
            "author",
            "installation_count",
            "rating_avg",
            "rating_count",
            "created_by",
            "created_at",
            "updated_at",
            "grants",
        ],
    ),
    (
        "/audit?domain=copilot&limit=100",
        &["id", "action", "table_name", "object_id", "changed_by", "before_value", "updated_values", "updated_at"],
    ),
    (
        "/budgets/copilot/usage-by-scope",
        &["scope_type", "scope_id", "allocated_credits", "used", "usage_percentage", "overflow_cap", "overflow_used"],
    ),
    ("/budgets/copilot/alerts?threshold=80", &["entity_name", "usage_percentage", "alert_level", "budget"]),
    ("/budgets/copilot/cost-breakdown?by=agent", COST),
    ("/budgets/copilot/cost-breakdown?by=llm", COST),
    ("/budgets/copilot/cost-breakdown?by=connection", COST),
    ("/budgets/copilot/cost-breakdown?by=guardrail", COST),
    (
        "/costs/breakdown?domain=copilot",
        &["model_name", "agent_id", "connection_id", "guardrail_code", "raw_cost", "credits_incurred"],
    ),
];

pub(super) const MODEL_GRANT: &[&str] =
    &["id", "account_id", "domain", "model_name", "scope_type", "scope_id", "access_mode", "created_by", "created_at"];

pub(super) const COST: &[&str] = &["key", "raw_cost", "credits"];
