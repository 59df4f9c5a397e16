-- Budgets in the order of how much of them is used: each counter knows a hundredth of what its scope has, how many of
-- those are used, and of which revision of the account's budgets that is. The table is made again with these columns.
CREATE TABLE IF NOT EXISTS "Alchemi_AllocationCounterTable_20" (
    account_id   TEXT   NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    scope_type   TEXT   NOT NULL CHECK (scope_type IN ('account', 'org', 'team', 'user', 'pool')),
    scope_id     TEXT   NOT NULL,
    window_start BIGINT NOT NULL,
    used         BIGINT NOT NULL DEFAULT 0,
    leased       BIGINT NOT NULL DEFAULT 0 CHECK (leased >= 0),
    cap          BIGINT NOT NULL,
    updated_at   BIGINT NOT NULL,
    hundredth    BIGINT,
    reached      BIGINT,
    revision     BIGINT NOT NULL DEFAULT -1,
    PRIMARY KEY (account_id, scope_type, scope_id, window_start)
);
DELETE FROM "Alchemi_AllocationCounterTable_20";
INSERT INTO "Alchemi_AllocationCounterTable_20" (account_id, scope_type, scope_id, window_start, used, leased, cap, updated_at)
SELECT account_id, scope_type, scope_id, window_start, used, leased, cap, updated_at FROM "Alchemi_AllocationCounterTable";
DROP TABLE "Alchemi_AllocationCounterTable";
ALTER TABLE "Alchemi_AllocationCounterTable_20" RENAME TO "Alchemi_AllocationCounterTable";
CREATE INDEX IF NOT EXISTS "Alchemi_AllocationCounterTable_reached_idx" ON "Alchemi_AllocationCounterTable" (account_id, window_start, revision, reached, scope_id);

-- How often an account's budgets have been changed, which of those revisions the counters were ranked for and when, and
-- when that ranking ends by itself. Every commit that changes budgets writes it last: no key is to be looked up then.
CREATE TABLE IF NOT EXISTS "Alchemi_BudgetRevisionTable" (
    account_id TEXT   NOT NULL PRIMARY KEY,
    revision   BIGINT NOT NULL,
    ranked     BIGINT NOT NULL DEFAULT -1,
    ranked_at  BIGINT NOT NULL DEFAULT 0,
    lapses_at  BIGINT
);

-- What 0009 says of the columns, for the table that was made again.
DELETE FROM sqlite_stat1 WHERE tbl = 'Alchemi_AllocationCounterTable';
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('Alchemi_AllocationCounterTable', 'sqlite_autoindex_Alchemi_AllocationCounterTable_1', '100000 10000 5000 5 1'),
    ('Alchemi_AllocationCounterTable', 'Alchemi_AllocationCounterTable_reached_idx', '100000 10000 1000 1000 5 1');
ANALYZE sqlite_schema;
