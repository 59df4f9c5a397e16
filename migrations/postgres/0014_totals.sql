-- Pages of a plan's allocations, newest first.
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotBudgetAllocationTable_plan_id_idx" ON "Alchemi_CopilotBudgetAllocationTable" (account_id, plan_id, created_at, id);

-- Nothing reads the ledger of an account by time alone: what adds it up is led by the account in the other indexes.
DROP INDEX IF EXISTS "Alchemi_UsageLedgerTable_created_at_idx";

-- What an account has spent in both domains and ever, so that telling it reads one row. It outlives the account, as the roll-ups do.
CREATE TABLE IF NOT EXISTS "Alchemi_UsageTotalTable" (
    account_id       TEXT   NOT NULL PRIMARY KEY,
    raw_cost         BIGINT NOT NULL,
    credits_incurred BIGINT NOT NULL
);
INSERT INTO "Alchemi_UsageTotalTable" (account_id, raw_cost, credits_incurred)
SELECT account_id, CAST(SUM(raw_cost) AS BIGINT), CAST(SUM(credits_incurred) AS BIGINT) FROM "Alchemi_UsageRollupTable"
WHERE TRUE GROUP BY account_id ON CONFLICT (account_id) DO NOTHING;
