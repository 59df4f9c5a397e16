-- Agents that everybody may use, newest first.
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotAgentTable_visibility_idx" ON "Alchemi_CopilotAgentTable" (account_id, visibility, created_at, id);
