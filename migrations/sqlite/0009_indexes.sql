-- Lists newest first, and what is looked up by its scope, where so far every row of the account was read.
CREATE INDEX IF NOT EXISTS "Alchemi_TeamMembershipTable_created_at_idx" ON "Alchemi_TeamMembershipTable" (account_id, domain, team_id, created_at, user_id);
CREATE INDEX IF NOT EXISTS "Alchemi_TeamTable_org_id_idx" ON "Alchemi_TeamTable" (account_id, domain, org_id, created_at, id);
CREATE INDEX IF NOT EXISTS "Alchemi_ModelGrantTable_model_name_idx" ON "Alchemi_ModelGrantTable" (account_id, domain, model_name, created_at, id);
CREATE INDEX IF NOT EXISTS "Alchemi_FeatureEntitlementTable_scope_idx" ON "Alchemi_FeatureEntitlementTable" (account_id, domain, scope_type, scope_id);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotAgentGrantTable_created_at_idx" ON "Alchemi_CopilotAgentGrantTable" (account_id, agent_id, created_at, id);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotGuardrailAssignmentTable_created_at_idx" ON "Alchemi_CopilotGuardrailAssignmentTable" (account_id, created_at, id);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotBudgetAllocationTable_created_at_idx" ON "Alchemi_CopilotBudgetAllocationTable" (account_id, created_at, id);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotBudgetOverrideTable_created_at_idx" ON "Alchemi_CopilotBudgetOverrideTable" (account_id, created_at, id);
CREATE INDEX IF NOT EXISTS "Alchemi_AccountAllocationTable_updated_at_idx" ON "Alchemi_AccountAllocationTable" (updated_at, account_id);
-- Counters of windows that are over stay: what is used now is found without them.
CREATE INDEX IF NOT EXISTS "Alchemi_AllocationCounterTable_window_start_idx" ON "Alchemi_AllocationCounterTable" (account_id, window_start);

-- Without figures, SQLite takes every column of an index for as good as the next, and reads an account's rows one by one
-- where an index leads to the few of a scope. These say what the columns are like in a large account, which is where it
-- matters: https://www.sqlite.org/fileformat2.html#the_sqlite_stat1_table
ANALYZE sqlite_schema;
DELETE FROM sqlite_stat1 WHERE tbl LIKE 'Alchemi\_%' ESCAPE '\';
INSERT INTO sqlite_stat1 (tbl, idx, stat)
SELECT tbl, idx, '100000 ' || group_concat(rows, ' ') FROM (
    SELECT m.name AS tbl, l.name AS idx, c.seqno, MIN(CASE
        WHEN l."unique" AND b.seqno = (SELECT MAX(z.seqno) FROM pragma_index_info(l.name) z) THEN 1
        WHEN b.name = 'account_id' THEN 10000
        WHEN b.name IN ('domain', 'kind', 'scope_type', 'state', 'status') THEN 5000
        WHEN b.name IN ('org_id', 'plan_id', 'window_start') THEN 1000
        WHEN b.name IN ('team_id', 'agent_id', 'connection_id', 'marketplace_id', 'preset_id', 'feature_code', 'model_name') THEN 100
        ELSE 5 END) AS rows
    FROM sqlite_schema m, pragma_index_list(m.name) l, pragma_index_info(l.name) c, pragma_index_info(l.name) b
    WHERE m.type = 'table' AND m.name LIKE 'Alchemi\_%' ESCAPE '\' AND b.seqno <= c.seqno AND NOT l.partial
    GROUP BY m.name, l.name, c.seqno ORDER BY m.name, l.name, c.seqno
) GROUP BY tbl, idx;
ANALYZE sqlite_schema;
