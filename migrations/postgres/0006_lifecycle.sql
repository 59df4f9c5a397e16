-- Logout tokens of identity providers: whom they cut off, and that none is taken twice.
-- A row is of use until every token that it cuts off has expired.
CREATE TABLE IF NOT EXISTS "Alchemi_LogoutTable" (
    issuer        TEXT   NOT NULL,
    token_id      TEXT   NOT NULL,
    subject       TEXT,
    session       TEXT,
    issued_before BIGINT NOT NULL,
    until         BIGINT NOT NULL,
    PRIMARY KEY (issuer, token_id)
);
CREATE INDEX IF NOT EXISTS "Alchemi_LogoutTable_until_idx" ON "Alchemi_LogoutTable" (until);

-- Users known by e-mail address alone, whose id at the identity provider is to be found.
CREATE TABLE IF NOT EXISTS "Alchemi_IdentityLookupTable" (
    account_id TEXT   NOT NULL,
    domain     TEXT   NOT NULL,
    user_id    TEXT   NOT NULL,
    state      TEXT   NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'unknown', 'ambiguous', 'taken', 'failed')),
    detail     TEXT,
    attempts   BIGINT NOT NULL DEFAULT 0,
    due_at     BIGINT NOT NULL,
    PRIMARY KEY (account_id, domain, user_id),
    FOREIGN KEY (account_id, domain, user_id) REFERENCES "Alchemi_UserTable" (account_id, domain, id) ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS "Alchemi_IdentityLookupTable_due_at_idx" ON "Alchemi_IdentityLookupTable" (due_at);
