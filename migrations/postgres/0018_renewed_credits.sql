-- What a renewal carried over goes on from window to window, also where a plan's windows leave nothing by themselves.
ALTER TABLE "Alchemi_CopilotBudgetRolloverTable" DROP CONSTRAINT IF EXISTS "Alchemi_CopilotBudgetRolloverTable_rollover_check";
ALTER TABLE "Alchemi_CopilotBudgetRolloverTable" ADD CONSTRAINT "Alchemi_CopilotBudgetRolloverTable_rollover_check"
    CHECK (rollover IN ('none', 'unused', 'unallocated'));
