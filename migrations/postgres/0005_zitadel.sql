-- What is to be so in Zitadel, and how far it is. No foreign key to the account: what was granted for an account that
-- is deleted is still to be taken back.
CREATE TABLE IF NOT EXISTS "Alchemi_ZitadelItemTable" (
    account_id      TEXT   NOT NULL,
    id              TEXT   NOT NULL,
    kind            TEXT   NOT NULL CHECK (kind IN ('role', 'project_grant', 'user_grant')),
    project_id      TEXT   NOT NULL,
    organization_id TEXT   NOT NULL DEFAULT '',
    target          TEXT   NOT NULL,
    display_name    TEXT,
    role_group      TEXT,
    role_keys       TEXT   NOT NULL DEFAULT '[]',
    retired_keys    TEXT   NOT NULL DEFAULT '[]',
    user_id         TEXT,
    state           TEXT   NOT NULL CHECK (state IN ('pending', 'applied', 'conflict', 'failed')),
    reason          TEXT,
    detail          TEXT,
    attempts        BIGINT NOT NULL DEFAULT 0,
    next_attempt_at BIGINT NOT NULL,
    applied_at      BIGINT,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT NOT NULL,
    version         BIGINT NOT NULL DEFAULT 1,
    PRIMARY KEY (account_id, id)
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_ZitadelItemTable_target_key" ON "Alchemi_ZitadelItemTable" (account_id, kind, project_id, organization_id, target);
CREATE INDEX IF NOT EXISTS "Alchemi_ZitadelItemTable_next_attempt_at_idx" ON "Alchemi_ZitadelItemTable" (next_attempt_at) WHERE state <> 'applied';
CREATE INDEX IF NOT EXISTS "Alchemi_ZitadelItemTable_user_id_idx" ON "Alchemi_ZitadelItemTable" (user_id, project_id, organization_id) WHERE user_id IS NOT NULL;

-- Which gateway writes into a project: one at a time.
CREATE TABLE IF NOT EXISTS "Alchemi_ZitadelLeaseTable" (
    project_id TEXT   NOT NULL PRIMARY KEY,
    holder     TEXT   NOT NULL,
    until      BIGINT NOT NULL
);
