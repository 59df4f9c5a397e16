-- The check of the ledger: when a gateway last took one on, and what the last one that came to its end has found.
-- One row.
CREATE TABLE IF NOT EXISTS "Alchemi_LedgerCheckTable" (
    id               BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    claimed_at       BIGINT NOT NULL,
    started_at       BIGINT,
    finished_at      BIGINT,
    ledger_rows      BIGINT NOT NULL DEFAULT 0,
    differences      BIGINT NOT NULL DEFAULT 0,
    first_difference TEXT   NOT NULL DEFAULT ''
);

-- From here on a counter's cap is what it may be found to have used and leased: the cap that the last hold kept, and
-- what was used beyond holds since. Of that, what was before is not known.
UPDATE "Alchemi_AllocationCounterTable" SET cap = used + leased WHERE cap < used + leased;
