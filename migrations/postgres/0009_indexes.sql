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
