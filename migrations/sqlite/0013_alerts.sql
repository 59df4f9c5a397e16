-- Where an account's alerts are sent, sealed with what they are signed with, and since when its counters were looked at.
CREATE TABLE IF NOT EXISTS "Alchemi_AlertWebhookTable" (
    account_id    TEXT    NOT NULL PRIMARY KEY REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    id            TEXT    NOT NULL,
    url           TEXT    NOT NULL,
    enabled       BOOLEAN NOT NULL DEFAULT TRUE,
    thresholds    TEXT    NOT NULL,
    secret_json   TEXT    NOT NULL,
    secret_key_id TEXT    NOT NULL,
    observed_at   BIGINT  NOT NULL DEFAULT 0,
    observed_from BIGINT  NOT NULL DEFAULT 0,
    created_by    TEXT,
    created_at    BIGINT  NOT NULL,
    updated_at    BIGINT  NOT NULL,
    version       BIGINT  NOT NULL DEFAULT 1
);

-- One row for each message: of a budget that has reached a threshold in a window, or to try whether it arrives. It stays
-- when it was delivered, so that nothing is told twice.
CREATE TABLE IF NOT EXISTS "Alchemi_AlertDeliveryTable" (
    account_id      TEXT   NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    id              TEXT   NOT NULL,
    event           TEXT   NOT NULL CHECK (event IN ('alert', 'test')),
    scope_type      TEXT,
    scope_id        TEXT,
    window_start    BIGINT,
    window_end      BIGINT,
    threshold       BIGINT,
    payload         TEXT   NOT NULL,
    state           TEXT   NOT NULL CHECK (state IN ('pending', 'delivered', 'failed')),
    attempts        BIGINT NOT NULL DEFAULT 0,
    next_attempt_at BIGINT NOT NULL,
    last_status     BIGINT,
    last_error      TEXT,
    delivered_at    BIGINT,
    created_at      BIGINT NOT NULL,
    PRIMARY KEY (account_id, id)
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_AlertDeliveryTable_threshold_key" ON "Alchemi_AlertDeliveryTable" (account_id, scope_type, scope_id, window_start, threshold);
CREATE INDEX IF NOT EXISTS "Alchemi_AlertDeliveryTable_created_at_idx" ON "Alchemi_AlertDeliveryTable" (account_id, created_at, id);
CREATE INDEX IF NOT EXISTS "Alchemi_AlertDeliveryTable_next_attempt_at_idx" ON "Alchemi_AlertDeliveryTable" (next_attempt_at) WHERE state = 'pending';
