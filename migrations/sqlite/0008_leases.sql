-- One row for each gateway process that takes leases, made anew at each start. A holder that does not renew it in
-- time is fenced: its leases are lost, and what it settles later is an adjustment.
CREATE TABLE IF NOT EXISTS "Alchemi_LeaseHolderTable" (
    holder     TEXT   NOT NULL PRIMARY KEY,
    fenced     BIGINT NOT NULL DEFAULT 0 CHECK (fenced IN (0, 1)),
    started_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

-- One row for each slice that a holder has of the capped counters of a chain. While it is open, the same amount is
-- leased in each of them; once charged, it is what a late settlement may still take back.
CREATE TABLE IF NOT EXISTS "Alchemi_AllocationLeaseTable" (
    lease_id   TEXT   NOT NULL PRIMARY KEY,
    account_id TEXT   NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    holder     TEXT   NOT NULL,
    domain     TEXT   NOT NULL,
    counters   TEXT   NOT NULL,
    amount     BIGINT NOT NULL CHECK (amount >= 0),
    state      TEXT   NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'charged', 'released')),
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS "Alchemi_AllocationLeaseTable_holder_idx" ON "Alchemi_AllocationLeaseTable" (holder);
CREATE INDEX IF NOT EXISTS "Alchemi_AllocationLeaseTable_account_id_idx" ON "Alchemi_AllocationLeaseTable" (account_id);
