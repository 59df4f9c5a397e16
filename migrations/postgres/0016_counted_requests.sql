-- A correction of the ledger is no request: sums of days that have any are counted again.
UPDATE "Alchemi_UsageRollupTable" SET requests = (
    SELECT COUNT(*) FROM "Alchemi_UsageLedgerTable" AS l
    WHERE l.account_id = "Alchemi_UsageRollupTable".account_id AND l.domain = "Alchemi_UsageRollupTable".domain
    AND l.day = "Alchemi_UsageRollupTable".day AND COALESCE(l.org_id, '') = "Alchemi_UsageRollupTable".org_id
    AND COALESCE(l.team_id, '') = "Alchemi_UsageRollupTable".team_id
    AND COALESCE(l.user_id, '') = "Alchemi_UsageRollupTable".user_id
    AND COALESCE(l.agent_id, '') = "Alchemi_UsageRollupTable".agent_id
    AND COALESCE(l.model_name, '') = "Alchemi_UsageRollupTable".model_name
    AND COALESCE(l.connection_id, '') = "Alchemi_UsageRollupTable".connection_id
    AND COALESCE(l.guardrail_code, '') = "Alchemi_UsageRollupTable".guardrail_code AND l.entry = 'usage')
WHERE (account_id, domain, day) IN (SELECT account_id, domain, day FROM "Alchemi_UsageLedgerTable" WHERE entry <> 'usage');
