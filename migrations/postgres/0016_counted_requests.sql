-- A correction of the ledger is no request: sums of days that have any are counted again.
UPDATE "Alchemi_UsageRollupTable" AS r SET requests = l.requests FROM (
    SELECT account_id, domain, day, COALESCE(org_id, '') AS org_id, COALESCE(team_id, '') AS team_id,
        COALESCE(user_id, '') AS user_id, COALESCE(agent_id, '') AS agent_id, COALESCE(model_name, '') AS model_name,
        COALESCE(connection_id, '') AS connection_id, COALESCE(guardrail_code, '') AS guardrail_code,
        SUM(CASE WHEN entry = 'usage' THEN 1 ELSE 0 END) AS requests
    FROM "Alchemi_UsageLedgerTable" WHERE (account_id, domain, day) IN (
        SELECT account_id, domain, day FROM "Alchemi_UsageLedgerTable" WHERE entry <> 'usage')
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10) AS l
WHERE r.account_id = l.account_id AND r.domain = l.domain AND r.day = l.day AND r.org_id = l.org_id
    AND r.team_id = l.team_id AND r.user_id = l.user_id AND r.agent_id = l.agent_id AND r.model_name = l.model_name
    AND r.connection_id = l.connection_id AND r.guardrail_code = l.guardrail_code;
