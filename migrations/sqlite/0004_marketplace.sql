-- alchemi 0004: feature entitlements.

CREATE TABLE IF NOT EXISTS "Alchemi_FeatureEntitlementTable" (
    account_id   TEXT    NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    id           TEXT    NOT NULL,
    domain       TEXT    NOT NULL CHECK (domain IN ('console', 'copilot')),
    feature_code TEXT    NOT NULL,
    scope_type   TEXT    NOT NULL CHECK (scope_type IN ('account', 'org', 'team', 'user')),
    scope_id     TEXT    NOT NULL,
    enabled      BOOLEAN NOT NULL DEFAULT TRUE,
    config_json  TEXT    NOT NULL DEFAULT '{}',
    created_by   TEXT,
    created_at   BIGINT  NOT NULL,
    updated_at   BIGINT  NOT NULL,
    version      BIGINT  NOT NULL DEFAULT 1,
    PRIMARY KEY (account_id, id)
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_FeatureEntitlementTable_scope_key" ON "Alchemi_FeatureEntitlementTable" (account_id, domain, feature_code, scope_type, scope_id);
CREATE INDEX IF NOT EXISTS "Alchemi_FeatureEntitlementTable_created_at_idx" ON "Alchemi_FeatureEntitlementTable" (account_id, domain, created_at, id);
