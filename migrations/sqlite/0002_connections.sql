-- alchemi 0002: connections with their grants, and sign-on settings, with sealed secrets.
-- secret_json is an envelope that the gateway's secret keys open, secret_key_id the key
-- that it was sealed under, secret_keys the names of what is inside.

CREATE TABLE IF NOT EXISTS "Alchemi_AccountSsoTable" (
    account_id    TEXT    NOT NULL PRIMARY KEY REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    id            TEXT    NOT NULL,
    sso_provider  TEXT,
    sso_settings  TEXT    NOT NULL DEFAULT '{}',
    enabled       BOOLEAN NOT NULL DEFAULT FALSE,
    secret_json   TEXT,
    secret_key_id TEXT,
    secret_keys   TEXT    NOT NULL DEFAULT '[]',
    created_at    BIGINT  NOT NULL,
    updated_at    BIGINT  NOT NULL,
    version       BIGINT  NOT NULL DEFAULT 1,
    CHECK ((secret_json IS NULL) = (secret_key_id IS NULL))
);

CREATE TABLE IF NOT EXISTS "Alchemi_CopilotConnectionTable" (
    account_id             TEXT    NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    id                     TEXT    NOT NULL,
    connection_type        TEXT    NOT NULL CHECK (connection_type IN ('openapi', 'mcp', 'composio')),
    name                   TEXT    NOT NULL,
    description            TEXT,
    credential_visibility  TEXT    NOT NULL DEFAULT 'use_only' CHECK (credential_visibility IN ('use_only', 'self_managed')),
    allow_user_self_manage BOOLEAN NOT NULL DEFAULT FALSE,
    config_json            TEXT    NOT NULL DEFAULT '{}',
    secret_json            TEXT,
    secret_key_id          TEXT,
    secret_keys            TEXT    NOT NULL DEFAULT '[]',
    created_by             TEXT,
    created_at             BIGINT  NOT NULL,
    updated_at             BIGINT  NOT NULL,
    version                BIGINT  NOT NULL DEFAULT 1,
    PRIMARY KEY (account_id, id),
    CHECK ((secret_json IS NULL) = (secret_key_id IS NULL))
);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotConnectionTable_created_at_idx" ON "Alchemi_CopilotConnectionTable" (account_id, created_at, id);

CREATE TABLE IF NOT EXISTS "Alchemi_CopilotConnectionGrantTable" (
    account_id    TEXT    NOT NULL,
    id            TEXT    NOT NULL,
    connection_id TEXT    NOT NULL,
    scope_type    TEXT    NOT NULL CHECK (scope_type IN ('org', 'team', 'user')),
    scope_id      TEXT    NOT NULL,
    can_manage    BOOLEAN NOT NULL DEFAULT FALSE,
    created_by    TEXT,
    created_at    BIGINT  NOT NULL,
    updated_at    BIGINT  NOT NULL,
    version       BIGINT  NOT NULL DEFAULT 1,
    PRIMARY KEY (account_id, id),
    FOREIGN KEY (account_id, connection_id) REFERENCES "Alchemi_CopilotConnectionTable" (account_id, id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_CopilotConnectionGrantTable_scope_key" ON "Alchemi_CopilotConnectionGrantTable" (account_id, connection_id, scope_type, scope_id);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotConnectionGrantTable_created_at_idx" ON "Alchemi_CopilotConnectionGrantTable" (account_id, connection_id, created_at, id);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotConnectionGrantTable_scope_idx" ON "Alchemi_CopilotConnectionGrantTable" (account_id, scope_type, scope_id);
