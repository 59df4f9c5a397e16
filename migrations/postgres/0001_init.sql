-- alchemi 0001: accounts, directory, budgets, model grants, ledger, audit.
-- Money is BIGINT nano units, time BIGINT microseconds UTC, JSON is TEXT.
-- Every child's foreign key carries account_id: no reference can cross a tenant.
-- Every statement may be run twice.

CREATE TABLE IF NOT EXISTS "Alchemi_AccountTable" (
    account_id    TEXT    NOT NULL PRIMARY KEY,
    account_name  TEXT    NOT NULL,
    account_alias TEXT,
    domain        TEXT,
    status        TEXT    NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended')),
    metadata      TEXT    NOT NULL DEFAULT '{}',
    max_budget    BIGINT  CHECK (max_budget >= 0),
    created_by    TEXT,
    created_at    BIGINT  NOT NULL,
    updated_at    BIGINT  NOT NULL,
    version       BIGINT  NOT NULL DEFAULT 1
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_AccountTable_account_name_key" ON "Alchemi_AccountTable" (account_name);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_AccountTable_domain_key" ON "Alchemi_AccountTable" (domain);
CREATE INDEX IF NOT EXISTS "Alchemi_AccountTable_created_at_idx" ON "Alchemi_AccountTable" (created_at, account_id);

CREATE TABLE IF NOT EXISTS "Alchemi_AccountAdminTable" (
    account_id TEXT   NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    id         TEXT   NOT NULL,
    user_email TEXT   NOT NULL,
    role       TEXT   NOT NULL DEFAULT 'account_admin',
    created_by TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    version    BIGINT NOT NULL DEFAULT 1,
    PRIMARY KEY (account_id, id)
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_AccountAdminTable_user_email_key" ON "Alchemi_AccountAdminTable" (account_id, user_email);

CREATE TABLE IF NOT EXISTS "Alchemi_AccountFeaturePackTable" (
    account_id TEXT   NOT NULL PRIMARY KEY REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    features   TEXT   NOT NULL DEFAULT '[]',
    config     TEXT   NOT NULL DEFAULT '{}',
    updated_at BIGINT NOT NULL,
    version    BIGINT NOT NULL DEFAULT 1
);

CREATE TABLE IF NOT EXISTS "Alchemi_AccountModelPolicyTable" (
    account_id   TEXT   NOT NULL PRIMARY KEY REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    allow_models TEXT   NOT NULL DEFAULT '[]',
    deny_models  TEXT   NOT NULL DEFAULT '[]',
    updated_at   BIGINT NOT NULL,
    version      BIGINT NOT NULL DEFAULT 1
);

CREATE TABLE IF NOT EXISTS "Alchemi_AccountZitadelTable" (
    account_id             TEXT    NOT NULL PRIMARY KEY REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    enabled                BOOLEAN NOT NULL DEFAULT TRUE,
    issuer                 TEXT,
    audience               TEXT,
    project_id             TEXT,
    organization_id        TEXT,
    role_prefix            TEXT,
    role_mappings          TEXT    NOT NULL DEFAULT '{}',
    account_id_claim       TEXT,
    product_domains_claim  TEXT,
    updated_at             BIGINT  NOT NULL,
    version                BIGINT  NOT NULL DEFAULT 1
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_AccountZitadelTable_organization_id_key" ON "Alchemi_AccountZitadelTable" (organization_id);

CREATE TABLE IF NOT EXISTS "Alchemi_OrgTable" (
    account_id        TEXT    NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    domain            TEXT    NOT NULL CHECK (domain IN ('console', 'copilot')),
    id                TEXT    NOT NULL,
    name              TEXT    NOT NULL,
    description       TEXT,
    is_default_global BOOLEAN NOT NULL DEFAULT FALSE,
    created_by        TEXT,
    created_at        BIGINT  NOT NULL,
    updated_at        BIGINT  NOT NULL,
    version           BIGINT  NOT NULL DEFAULT 1,
    PRIMARY KEY (account_id, domain, id)
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_OrgTable_name_key" ON "Alchemi_OrgTable" (account_id, domain, name);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_OrgTable_default_key" ON "Alchemi_OrgTable" (account_id, domain) WHERE is_default_global;
CREATE INDEX IF NOT EXISTS "Alchemi_OrgTable_created_at_idx" ON "Alchemi_OrgTable" (account_id, domain, created_at, id);

CREATE TABLE IF NOT EXISTS "Alchemi_TeamTable" (
    account_id  TEXT   NOT NULL,
    domain      TEXT   NOT NULL,
    id          TEXT   NOT NULL,
    org_id      TEXT   NOT NULL,
    name        TEXT   NOT NULL,
    description TEXT,
    created_by  TEXT,
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,
    version     BIGINT NOT NULL DEFAULT 1,
    PRIMARY KEY (account_id, domain, id),
    FOREIGN KEY (account_id, domain, org_id) REFERENCES "Alchemi_OrgTable" (account_id, domain, id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_TeamTable_name_key" ON "Alchemi_TeamTable" (account_id, domain, org_id, name);
CREATE INDEX IF NOT EXISTS "Alchemi_TeamTable_created_at_idx" ON "Alchemi_TeamTable" (account_id, domain, created_at, id);

CREATE TABLE IF NOT EXISTS "Alchemi_UserTable" (
    account_id       TEXT   NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    domain           TEXT   NOT NULL CHECK (domain IN ('console', 'copilot')),
    id               TEXT   NOT NULL,
    identity_user_id TEXT,
    email            TEXT,
    display_name     TEXT,
    status           TEXT   NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended')),
    created_by       TEXT,
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL,
    version          BIGINT NOT NULL DEFAULT 1,
    PRIMARY KEY (account_id, domain, id)
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_UserTable_email_key" ON "Alchemi_UserTable" (account_id, domain, email);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_UserTable_identity_user_id_key" ON "Alchemi_UserTable" (account_id, domain, identity_user_id);
CREATE INDEX IF NOT EXISTS "Alchemi_UserTable_created_at_idx" ON "Alchemi_UserTable" (account_id, domain, created_at, id);

CREATE TABLE IF NOT EXISTS "Alchemi_TeamMembershipTable" (
    account_id TEXT   NOT NULL,
    domain     TEXT   NOT NULL,
    team_id    TEXT   NOT NULL,
    user_id    TEXT   NOT NULL,
    role       TEXT   NOT NULL DEFAULT 'member',
    created_at BIGINT NOT NULL,
    PRIMARY KEY (account_id, domain, team_id, user_id),
    FOREIGN KEY (account_id, domain, team_id) REFERENCES "Alchemi_TeamTable" (account_id, domain, id) ON DELETE CASCADE,
    FOREIGN KEY (account_id, domain, user_id) REFERENCES "Alchemi_UserTable" (account_id, domain, id) ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS "Alchemi_TeamMembershipTable_user_id_idx" ON "Alchemi_TeamMembershipTable" (account_id, domain, user_id, created_at);

CREATE TABLE IF NOT EXISTS "Alchemi_AccountAllocationTable" (
    account_id      TEXT   NOT NULL PRIMARY KEY REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    monthly_credits BIGINT NOT NULL DEFAULT 0 CHECK (monthly_credits >= 0),
    overflow_limit  BIGINT NOT NULL DEFAULT 0 CHECK (overflow_limit >= 0),
    credit_factor   BIGINT NOT NULL DEFAULT 1000000000 CHECK (credit_factor > 0),
    effective_from  BIGINT NOT NULL,
    updated_by      TEXT,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT NOT NULL,
    version         BIGINT NOT NULL DEFAULT 1
);

CREATE TABLE IF NOT EXISTS "Alchemi_CopilotBudgetPlanTable" (
    account_id  TEXT   NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    id          TEXT   NOT NULL,
    name        TEXT   NOT NULL,
    cycle       TEXT   NOT NULL DEFAULT 'monthly' CHECK (cycle IN ('daily', 'weekly', 'monthly', 'quarterly', 'yearly', 'none')),
    status      TEXT   NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'inactive')),
    over_commit TEXT   NOT NULL DEFAULT 'allow' CHECK (over_commit IN ('allow', 'forbid')),
    created_by  TEXT,
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,
    version     BIGINT NOT NULL DEFAULT 1,
    PRIMARY KEY (account_id, id)
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_CopilotBudgetPlanTable_active_key" ON "Alchemi_CopilotBudgetPlanTable" (account_id) WHERE status = 'active';

CREATE TABLE IF NOT EXISTS "Alchemi_CopilotBudgetAllocationTable" (
    account_id        TEXT   NOT NULL,
    id                TEXT   NOT NULL,
    plan_id           TEXT   NOT NULL,
    scope_type        TEXT   NOT NULL CHECK (scope_type IN ('org', 'team', 'user', 'pool')),
    scope_id          TEXT   NOT NULL,
    allocated_credits BIGINT NOT NULL DEFAULT 0 CHECK (allocated_credits >= 0),
    overflow_cap      BIGINT CHECK (overflow_cap >= 0),
    rollover_credits  BIGINT NOT NULL DEFAULT 0 CHECK (rollover_credits >= 0),
    rollover_until    BIGINT,
    source            TEXT   NOT NULL DEFAULT 'manual',
    created_by        TEXT,
    created_at        BIGINT NOT NULL,
    updated_at        BIGINT NOT NULL,
    version           BIGINT NOT NULL DEFAULT 1,
    PRIMARY KEY (account_id, id),
    FOREIGN KEY (account_id, plan_id) REFERENCES "Alchemi_CopilotBudgetPlanTable" (account_id, id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_CopilotBudgetAllocationTable_scope_key" ON "Alchemi_CopilotBudgetAllocationTable" (account_id, plan_id, scope_type, scope_id);

CREATE TABLE IF NOT EXISTS "Alchemi_CopilotBudgetOverrideTable" (
    account_id       TEXT   NOT NULL,
    id               TEXT   NOT NULL,
    plan_id          TEXT   NOT NULL,
    scope_type       TEXT   NOT NULL CHECK (scope_type IN ('org', 'team', 'user', 'pool')),
    scope_id         TEXT   NOT NULL,
    override_credits BIGINT NOT NULL CHECK (override_credits >= 0),
    reason           TEXT,
    expires_at       BIGINT,
    created_by       TEXT,
    created_at       BIGINT NOT NULL,
    PRIMARY KEY (account_id, id),
    FOREIGN KEY (account_id, plan_id) REFERENCES "Alchemi_CopilotBudgetPlanTable" (account_id, id) ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotBudgetOverrideTable_scope_idx" ON "Alchemi_CopilotBudgetOverrideTable" (account_id, plan_id, scope_type, scope_id, created_at);

CREATE TABLE IF NOT EXISTS "Alchemi_CopilotBudgetCycleTable" (
    account_id              TEXT   NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    id                      TEXT   NOT NULL,
    source_plan_id          TEXT   NOT NULL,
    new_plan_id             TEXT   NOT NULL,
    cycle_start             BIGINT NOT NULL,
    cycle_end               BIGINT NOT NULL,
    rollover_credits        BIGINT NOT NULL DEFAULT 0,
    overflow_charge_credits BIGINT NOT NULL DEFAULT 0,
    summary_json            TEXT   NOT NULL DEFAULT '{}',
    created_by              TEXT,
    created_at              BIGINT NOT NULL,
    PRIMARY KEY (account_id, id)
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_CopilotBudgetCycleTable_source_key" ON "Alchemi_CopilotBudgetCycleTable" (account_id, source_plan_id);

CREATE TABLE IF NOT EXISTS "Alchemi_ModelGrantTable" (
    account_id  TEXT   NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    id          TEXT   NOT NULL,
    domain      TEXT   NOT NULL CHECK (domain IN ('console', 'copilot')),
    model_name  TEXT   NOT NULL,
    scope_type  TEXT   NOT NULL CHECK (scope_type IN ('account', 'org', 'team', 'user')),
    scope_id    TEXT   NOT NULL,
    access_mode TEXT   NOT NULL DEFAULT 'allow' CHECK (access_mode IN ('allow', 'deny')),
    created_by  TEXT,
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,
    version     BIGINT NOT NULL DEFAULT 1,
    PRIMARY KEY (account_id, id)
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_ModelGrantTable_scope_key" ON "Alchemi_ModelGrantTable" (account_id, domain, scope_type, scope_id, model_name);
CREATE INDEX IF NOT EXISTS "Alchemi_ModelGrantTable_created_at_idx" ON "Alchemi_ModelGrantTable" (account_id, domain, created_at, id);

-- What a budget has spent and holds, per scope and window.
CREATE TABLE IF NOT EXISTS "Alchemi_AllocationCounterTable" (
    account_id   TEXT   NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    scope_type   TEXT   NOT NULL CHECK (scope_type IN ('account', 'org', 'team', 'user', 'pool')),
    scope_id     TEXT   NOT NULL,
    window_start BIGINT NOT NULL,
    used         BIGINT NOT NULL DEFAULT 0,
    leased       BIGINT NOT NULL DEFAULT 0 CHECK (leased >= 0),
    cap          BIGINT NOT NULL,
    updated_at   BIGINT NOT NULL,
    PRIMARY KEY (account_id, scope_type, scope_id, window_start)
);

-- One row for each admitted request that has not settled.
CREATE TABLE IF NOT EXISTS "Alchemi_AllocationReservationTable" (
    request_id TEXT   NOT NULL PRIMARY KEY,
    account_id TEXT   NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    amount     BIGINT NOT NULL CHECK (amount >= 0),
    detail     TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS "Alchemi_AllocationReservationTable_expires_at_idx" ON "Alchemi_AllocationReservationTable" (expires_at);

-- One row for each request that was forwarded, written when it settled. It outlives the account.
CREATE TABLE IF NOT EXISTS "Alchemi_UsageLedgerTable" (
    request_id          TEXT   NOT NULL PRIMARY KEY,
    account_id          TEXT   NOT NULL,
    kind                TEXT   NOT NULL,
    entry               TEXT   NOT NULL DEFAULT 'usage' CHECK (entry IN ('usage', 'adjustment', 'reversal')),
    domain              TEXT   NOT NULL,
    org_id              TEXT,
    team_id             TEXT,
    user_id             TEXT,
    subject             TEXT,
    agent_id            TEXT,
    model_name          TEXT,
    connection_id       TEXT,
    guardrail_code      TEXT,
    input_tokens        BIGINT NOT NULL DEFAULT 0,
    output_tokens       BIGINT NOT NULL DEFAULT 0,
    cached_tokens       BIGINT NOT NULL DEFAULT 0,
    cache_creation_tokens BIGINT NOT NULL DEFAULT 0,
    reasoning_tokens    BIGINT NOT NULL DEFAULT 0,
    audio_input_tokens  BIGINT NOT NULL DEFAULT 0,
    audio_output_tokens BIGINT NOT NULL DEFAULT 0,
    raw_cost            BIGINT NOT NULL,
    credit_factor       BIGINT NOT NULL,
    credits_incurred    BIGINT NOT NULL,
    cost_source         TEXT   NOT NULL,
    marks               TEXT   NOT NULL DEFAULT '',
    upstream_call_id    TEXT,
    status              BIGINT NOT NULL,
    duration_us         BIGINT NOT NULL,
    plan_id             TEXT,
    cycle_start         BIGINT,
    day                 TEXT   NOT NULL,
    chain               TEXT   NOT NULL DEFAULT '[]',
    metadata            TEXT   NOT NULL DEFAULT '{}',
    created_at          BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS "Alchemi_UsageLedgerTable_created_at_idx" ON "Alchemi_UsageLedgerTable" (account_id, created_at, request_id);
CREATE INDEX IF NOT EXISTS "Alchemi_UsageLedgerTable_user_id_idx" ON "Alchemi_UsageLedgerTable" (account_id, user_id, created_at, request_id);
CREATE INDEX IF NOT EXISTS "Alchemi_UsageLedgerTable_subject_idx" ON "Alchemi_UsageLedgerTable" (account_id, subject, created_at, request_id) WHERE user_id IS NULL;
CREATE INDEX IF NOT EXISTS "Alchemi_UsageLedgerTable_upstream_call_id_idx" ON "Alchemi_UsageLedgerTable" (account_id, upstream_call_id) WHERE kind = 'responses';

-- Sums of the ledger by day of the account's time zone; '' stands for none.
CREATE TABLE IF NOT EXISTS "Alchemi_UsageRollupTable" (
    account_id       TEXT   NOT NULL,
    domain           TEXT   NOT NULL,
    day              TEXT   NOT NULL,
    org_id           TEXT   NOT NULL,
    team_id          TEXT   NOT NULL,
    user_id          TEXT   NOT NULL,
    agent_id         TEXT   NOT NULL,
    model_name       TEXT   NOT NULL,
    connection_id    TEXT   NOT NULL,
    guardrail_code   TEXT   NOT NULL,
    requests         BIGINT NOT NULL,
    input_tokens     BIGINT NOT NULL,
    output_tokens    BIGINT NOT NULL,
    raw_cost         BIGINT NOT NULL,
    credits_incurred BIGINT NOT NULL,
    PRIMARY KEY (account_id, domain, day, org_id, team_id, user_id, agent_id, model_name, connection_id, guardrail_code)
);

-- The audit outlives the account; each row is chained to the one before by hash.
CREATE TABLE IF NOT EXISTS "Alchemi_AuditTable" (
    account_id     TEXT   NOT NULL,
    seq            BIGINT NOT NULL,
    id             TEXT   NOT NULL,
    at             BIGINT NOT NULL,
    actor_subject  TEXT   NOT NULL,
    actor_issuer   TEXT   NOT NULL,
    actor_email    TEXT,
    actor_roles    TEXT   NOT NULL,
    auth_provider  TEXT   NOT NULL,
    action         TEXT   NOT NULL,
    resource_type  TEXT   NOT NULL,
    resource_id    TEXT   NOT NULL,
    domain         TEXT   NOT NULL,
    before_value   TEXT   NOT NULL,
    updated_values TEXT   NOT NULL,
    request_id     TEXT,
    source_ip      TEXT,
    hash           TEXT   NOT NULL,
    PRIMARY KEY (account_id, seq)
);
CREATE INDEX IF NOT EXISTS "Alchemi_AuditTable_at_idx" ON "Alchemi_AuditTable" (account_id, at, seq);

CREATE TABLE IF NOT EXISTS "Alchemi_AuditHeadTable" (
    account_id TEXT   NOT NULL PRIMARY KEY,
    seq        BIGINT NOT NULL,
    hash       TEXT   NOT NULL
);

-- Tokens of a subject that were issued before a moment are refused.
CREATE TABLE IF NOT EXISTS "Alchemi_RevocationTable" (
    id            TEXT   NOT NULL,
    issuer        TEXT   NOT NULL,
    subject       TEXT   NOT NULL,
    issued_before BIGINT NOT NULL,
    reason        TEXT,
    created_by    TEXT,
    created_at    BIGINT NOT NULL,
    PRIMARY KEY (issuer, subject)
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_RevocationTable_id_key" ON "Alchemi_RevocationTable" (id);
CREATE INDEX IF NOT EXISTS "Alchemi_RevocationTable_created_at_idx" ON "Alchemi_RevocationTable" (created_at, id);

-- Answers to POSTs that carried an Idempotency-Key, kept for 24 hours.
CREATE TABLE IF NOT EXISTS "Alchemi_IdempotencyTable" (
    account_id TEXT   NOT NULL,
    caller     TEXT   NOT NULL,
    route      TEXT   NOT NULL,
    key        TEXT   NOT NULL,
    body_hash  TEXT   NOT NULL,
    status     BIGINT NOT NULL,
    etag       TEXT,
    answer     TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (account_id, caller, route, key)
);
CREATE INDEX IF NOT EXISTS "Alchemi_IdempotencyTable_created_at_idx" ON "Alchemi_IdempotencyTable" (created_at);
