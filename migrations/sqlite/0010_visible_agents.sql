-- Agents that everybody may use, newest first.
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotAgentTable_visibility_idx" ON "Alchemi_CopilotAgentTable" (account_id, visibility, created_at, id);

-- The figures of this index, as of those before it (migration 9).
ANALYZE sqlite_schema;
DELETE FROM sqlite_stat1 WHERE idx = 'Alchemi_CopilotAgentTable_visibility_idx';
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES ('Alchemi_CopilotAgentTable', 'Alchemi_CopilotAgentTable_visibility_idx', '100000 10000 5000 5 1');
ANALYZE sqlite_schema;
