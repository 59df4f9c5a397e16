-- How strictly an account's caps hold, where that is not what the gateway's configuration says.
CREATE TABLE IF NOT EXISTS "Alchemi_AccountEnforcementTable" (
    account_id  TEXT   NOT NULL PRIMARY KEY REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    enforcement TEXT   NOT NULL CHECK (enforcement IN ('hard', 'soft', 'shadow', 'off'))
);

-- Plans whose windows leave something to the next one, and how far that has been done: up to rolled_to. What requests
-- still held in the last window may come back: it is looked at again at look_again_at.
CREATE TABLE IF NOT EXISTS "Alchemi_CopilotBudgetRolloverTable" (
    account_id       TEXT   NOT NULL,
    plan_id          TEXT   NOT NULL,
    rollover         TEXT   NOT NULL CHECK (rollover IN ('unused', 'unallocated')),
    rollover_cap     BIGINT CHECK (rollover_cap >= 0),
    rollover_windows BIGINT NOT NULL CHECK (rollover_windows BETWEEN 1 AND 12),
    rolled_to        BIGINT NOT NULL,
    look_again_at    BIGINT,
    PRIMARY KEY (account_id, plan_id),
    FOREIGN KEY (account_id, plan_id) REFERENCES "Alchemi_CopilotBudgetPlanTable" (account_id, id) ON DELETE CASCADE
);

-- One row for each window that was carried over into the next one, whoever was the first to look.
CREATE TABLE IF NOT EXISTS "Alchemi_CopilotBudgetWindowTable" (
    account_id              TEXT   NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    id                      TEXT   NOT NULL,
    plan_id                 TEXT   NOT NULL,
    cycle_start             BIGINT NOT NULL,
    cycle_end               BIGINT NOT NULL,
    rollover_credits        BIGINT NOT NULL,
    overflow_charge_credits BIGINT NOT NULL,
    summary_json            TEXT   NOT NULL,
    created_by              TEXT,
    created_at              BIGINT NOT NULL,
    PRIMARY KEY (account_id, id)
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_CopilotBudgetWindowTable_cycle_end_key" ON "Alchemi_CopilotBudgetWindowTable" (account_id, plan_id, cycle_end);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotBudgetWindowTable_created_at_idx" ON "Alchemi_CopilotBudgetWindowTable" (account_id, created_at, id);
