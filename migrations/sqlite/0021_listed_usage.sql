-- Pages of an account's ledger, newest first, for its admins; and of the few rows that have a mark.
CREATE INDEX IF NOT EXISTS "Alchemi_UsageLedgerTable_listed_idx" ON "Alchemi_UsageLedgerTable" (account_id, domain, created_at, request_id);
CREATE INDEX IF NOT EXISTS "Alchemi_UsageLedgerTable_marked_idx" ON "Alchemi_UsageLedgerTable" (account_id, domain, created_at, request_id) WHERE marks <> '';
