-- Budgets in the order of how much of them is used: each counter knows a hundredth of what its scope has, how many of
-- those are used, and of which revision of the account's budgets that is.
ALTER TABLE "Alchemi_AllocationCounterTable" ADD COLUMN IF NOT EXISTS hundredth BIGINT;
ALTER TABLE "Alchemi_AllocationCounterTable" ADD COLUMN IF NOT EXISTS reached BIGINT;
ALTER TABLE "Alchemi_AllocationCounterTable" ADD COLUMN IF NOT EXISTS revision BIGINT NOT NULL DEFAULT -1;
CREATE INDEX IF NOT EXISTS "Alchemi_AllocationCounterTable_reached_idx" ON "Alchemi_AllocationCounterTable" (account_id, window_start, revision, reached, scope_id);
DROP INDEX IF EXISTS "Alchemi_AllocationCounterTable_window_start_idx";

-- How often an account's budgets have been changed, which of those revisions the counters were ranked for and when, and
-- when that ranking ends by itself. Every commit that changes budgets writes it last: no key is to be looked up then.
CREATE TABLE IF NOT EXISTS "Alchemi_BudgetRevisionTable" (
    account_id TEXT   NOT NULL PRIMARY KEY,
    revision   BIGINT NOT NULL,
    ranked     BIGINT NOT NULL DEFAULT -1,
    ranked_at  BIGINT NOT NULL DEFAULT 0,
    lapses_at  BIGINT
);
