-- alchemi 0007: the marketplace's listings, whom they are for, installations and ratings.

-- One of agent_id and connection_id is what is listed: a listing goes with it. title_folded is the
-- title in lower case, for searches; ratings are in millionths of a star.
CREATE TABLE IF NOT EXISTS "Alchemi_CopilotMarketplaceTable" (
    account_id         TEXT    NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    id                 TEXT    NOT NULL,
    entity_type        TEXT    NOT NULL CHECK (entity_type IN ('agent', 'connection')),
    agent_id           TEXT,
    connection_id      TEXT,
    title              TEXT    NOT NULL,
    title_folded       TEXT    NOT NULL,
    description        TEXT,
    visibility         TEXT    NOT NULL DEFAULT 'global' CHECK (visibility IN ('global', 'granted')),
    is_published       BOOLEAN NOT NULL DEFAULT TRUE,
    is_featured        BOOLEAN NOT NULL DEFAULT FALSE,
    is_verified        BOOLEAN NOT NULL DEFAULT FALSE,
    pricing_model      TEXT    NOT NULL DEFAULT 'free',
    version            TEXT    NOT NULL DEFAULT '1.0.0',
    author             TEXT,
    installation_count BIGINT  NOT NULL DEFAULT 0 CHECK (installation_count >= 0),
    rating_avg         BIGINT  NOT NULL DEFAULT 0 CHECK (rating_avg BETWEEN 0 AND 5000000),
    rating_count       BIGINT  NOT NULL DEFAULT 0 CHECK (rating_count >= 0),
    rating_total       BIGINT  NOT NULL DEFAULT 0 CHECK (rating_total >= 0),
    created_by         TEXT,
    created_at         BIGINT  NOT NULL,
    updated_at         BIGINT  NOT NULL,
    revision           BIGINT  NOT NULL DEFAULT 1,
    PRIMARY KEY (account_id, id),
    CHECK ((entity_type = 'agent') = (agent_id IS NOT NULL)),
    CHECK ((entity_type = 'connection') = (connection_id IS NOT NULL)),
    FOREIGN KEY (account_id, agent_id) REFERENCES "Alchemi_CopilotAgentTable" (account_id, id) ON DELETE CASCADE,
    FOREIGN KEY (account_id, connection_id) REFERENCES "Alchemi_CopilotConnectionTable" (account_id, id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_CopilotMarketplaceTable_agent_id_key" ON "Alchemi_CopilotMarketplaceTable" (account_id, agent_id);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_CopilotMarketplaceTable_connection_id_key" ON "Alchemi_CopilotMarketplaceTable" (account_id, connection_id);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotMarketplaceTable_created_at_idx" ON "Alchemi_CopilotMarketplaceTable" (account_id, created_at, id);

CREATE TABLE IF NOT EXISTS "Alchemi_CopilotMarketplaceGrantTable" (
    account_id     TEXT   NOT NULL,
    id             TEXT   NOT NULL,
    marketplace_id TEXT   NOT NULL,
    scope_type     TEXT   NOT NULL CHECK (scope_type IN ('org', 'team', 'user')),
    scope_id       TEXT   NOT NULL,
    created_by     TEXT,
    created_at     BIGINT NOT NULL,
    updated_at     BIGINT NOT NULL,
    PRIMARY KEY (account_id, id),
    FOREIGN KEY (account_id, marketplace_id) REFERENCES "Alchemi_CopilotMarketplaceTable" (account_id, id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_CopilotMarketplaceGrantTable_scope_key" ON "Alchemi_CopilotMarketplaceGrantTable" (account_id, marketplace_id, scope_type, scope_id);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotMarketplaceGrantTable_created_at_idx" ON "Alchemi_CopilotMarketplaceGrantTable" (account_id, marketplace_id, created_at, id);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotMarketplaceGrantTable_scope_idx" ON "Alchemi_CopilotMarketplaceGrantTable" (account_id, scope_type, scope_id);

CREATE TABLE IF NOT EXISTS "Alchemi_CopilotMarketplaceInstallTable" (
    account_id     TEXT   NOT NULL,
    id             TEXT   NOT NULL,
    marketplace_id TEXT   NOT NULL,
    scope_type     TEXT   NOT NULL CHECK (scope_type IN ('account', 'org', 'team', 'user')),
    scope_id       TEXT   NOT NULL,
    created_by     TEXT,
    created_at     BIGINT NOT NULL,
    PRIMARY KEY (account_id, id),
    FOREIGN KEY (account_id, marketplace_id) REFERENCES "Alchemi_CopilotMarketplaceTable" (account_id, id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_CopilotMarketplaceInstallTable_scope_key" ON "Alchemi_CopilotMarketplaceInstallTable" (account_id, marketplace_id, scope_type, scope_id);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotMarketplaceInstallTable_created_at_idx" ON "Alchemi_CopilotMarketplaceInstallTable" (account_id, marketplace_id, created_at, id);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotMarketplaceInstallTable_scope_idx" ON "Alchemi_CopilotMarketplaceInstallTable" (account_id, scope_type, scope_id);

CREATE TABLE IF NOT EXISTS "Alchemi_CopilotMarketplaceRatingTable" (
    account_id     TEXT   NOT NULL,
    marketplace_id TEXT   NOT NULL,
    issuer         TEXT   NOT NULL,
    subject        TEXT   NOT NULL,
    rating         BIGINT NOT NULL CHECK (rating BETWEEN 1 AND 5),
    created_at     BIGINT NOT NULL,
    updated_at     BIGINT NOT NULL,
    PRIMARY KEY (account_id, marketplace_id, issuer, subject),
    FOREIGN KEY (account_id, marketplace_id) REFERENCES "Alchemi_CopilotMarketplaceTable" (account_id, id) ON DELETE CASCADE
);
