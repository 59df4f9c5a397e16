-- What a renewal carried over goes on from window to window, also where a plan's windows leave nothing by themselves:
-- the table is made again with another check.
CREATE TABLE IF NOT EXISTS "Alchemi_CopilotBudgetRolloverTable_18" (
    account_id       TEXT   NOT NULL,
    plan_id          TEXT   NOT NULL,
    rollover         TEXT   NOT NULL CHECK (rollover IN ('none', 'unused', 'unallocated')),
    rollover_cap     BIGINT CHECK (rollover_cap >= 0),
    rollover_windows BIGINT NOT NULL CHECK (rollover_windows BETWEEN 1 AND 12),
    rolled_to        BIGINT NOT NULL,
    look_again_at    BIGINT,
    PRIMARY KEY (account_id, plan_id),
    FOREIGN KEY (account_id, plan_id) REFERENCES "Alchemi_CopilotBudgetPlanTable" (account_id, id) ON DELETE CASCADE
);
INSERT INTO "Alchemi_CopilotBudgetRolloverTable_18" SELECT * FROM "Alchemi_CopilotBudgetRolloverTable";
DROP TABLE "Alchemi_CopilotBudgetRolloverTable";
ALTER TABLE "Alchemi_CopilotBudgetRolloverTable_18" RENAME TO "Alchemi_CopilotBudgetRolloverTable";
