-- alchemi 0003: agents, guardrails.

CREATE TABLE IF NOT EXISTS "Alchemi_CopilotAgentTable" (
    account_id      TEXT   NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    id              TEXT   NOT NULL,
    name            TEXT   NOT NULL,
    description     TEXT,
    definition_json TEXT   NOT NULL DEFAULT '{}',
    visibility      TEXT   NOT NULL DEFAULT 'account' CHECK (visibility IN ('account', 'granted')),
    created_by      TEXT,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT NOT NULL,
    version         BIGINT NOT NULL DEFAULT 1,
    PRIMARY KEY (account_id, id)
);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotAgentTable_created_at_idx" ON "Alchemi_CopilotAgentTable" (account_id, created_at, id);

CREATE TABLE IF NOT EXISTS "Alchemi_CopilotAgentGrantTable" (
    account_id TEXT   NOT NULL,
    id         TEXT   NOT NULL,
    agent_id   TEXT   NOT NULL,
    scope_type TEXT   NOT NULL CHECK (scope_type IN ('org', 'team', 'user')),
    scope_id   TEXT   NOT NULL,
    created_by TEXT,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (account_id, id),
    FOREIGN KEY (account_id, agent_id) REFERENCES "Alchemi_CopilotAgentTable" (account_id, id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_CopilotAgentGrantTable_scope_key" ON "Alchemi_CopilotAgentGrantTable" (account_id, agent_id, scope_type, scope_id);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotAgentGrantTable_scope_idx" ON "Alchemi_CopilotAgentGrantTable" (account_id, scope_type, scope_id);

CREATE TABLE IF NOT EXISTS "Alchemi_CopilotGuardrailPresetTable" (
    account_id  TEXT    NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    id          TEXT    NOT NULL,
    code        TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    preset_json TEXT    NOT NULL DEFAULT '{}',
    is_system   BOOLEAN NOT NULL DEFAULT FALSE,
    created_by  TEXT,
    created_at  BIGINT  NOT NULL,
    updated_at  BIGINT  NOT NULL,
    version     BIGINT  NOT NULL DEFAULT 1,
    PRIMARY KEY (account_id, id)
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_CopilotGuardrailPresetTable_code_key" ON "Alchemi_CopilotGuardrailPresetTable" (account_id, code);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotGuardrailPresetTable_created_at_idx" ON "Alchemi_CopilotGuardrailPresetTable" (account_id, created_at, id);

CREATE TABLE IF NOT EXISTS "Alchemi_CopilotGuardrailPatternTable" (
    account_id    TEXT    NOT NULL,
    id            TEXT    NOT NULL,
    preset_id     TEXT    NOT NULL,
    guard_type    TEXT    NOT NULL CHECK (guard_type IN ('pii', 'toxic', 'jailbreak')),
    pattern_name  TEXT    NOT NULL,
    pattern_regex TEXT    NOT NULL,
    pattern_type  TEXT    NOT NULL CHECK (pattern_type IN ('detect', 'block', 'allow')),
    action        TEXT    CHECK (action IN ('detect', 'mask', 'block', 'allow')),
    enabled       BOOLEAN NOT NULL DEFAULT TRUE,
    is_system     BOOLEAN NOT NULL DEFAULT FALSE,
    created_by    TEXT,
    created_at    BIGINT  NOT NULL,
    updated_at    BIGINT  NOT NULL,
    version       BIGINT  NOT NULL DEFAULT 1,
    PRIMARY KEY (account_id, id),
    FOREIGN KEY (account_id, preset_id) REFERENCES "Alchemi_CopilotGuardrailPresetTable" (account_id, id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_CopilotGuardrailPatternTable_pattern_name_key" ON "Alchemi_CopilotGuardrailPatternTable" (account_id, preset_id, pattern_name);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotGuardrailPatternTable_created_at_idx" ON "Alchemi_CopilotGuardrailPatternTable" (account_id, created_at, id);

CREATE TABLE IF NOT EXISTS "Alchemi_CopilotGuardrailAssignmentTable" (
    account_id TEXT   NOT NULL,
    id         TEXT   NOT NULL,
    preset_id  TEXT   NOT NULL,
    scope_type TEXT   NOT NULL CHECK (scope_type IN ('account', 'org', 'team', 'user', 'agent')),
    scope_id   TEXT   NOT NULL,
    created_by TEXT,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (account_id, id),
    FOREIGN KEY (account_id, preset_id) REFERENCES "Alchemi_CopilotGuardrailPresetTable" (account_id, id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX IF NOT EXISTS "Alchemi_CopilotGuardrailAssignmentTable_scope_key" ON "Alchemi_CopilotGuardrailAssignmentTable" (account_id, preset_id, scope_type, scope_id);
CREATE INDEX IF NOT EXISTS "Alchemi_CopilotGuardrailAssignmentTable_scope_idx" ON "Alchemi_CopilotGuardrailAssignmentTable" (account_id, scope_type, scope_id);

-- The system presets of accounts that are there already; later ones get theirs when they are made.
WITH builtin (code, name) AS (VALUES ('pii', 'PII'), ('toxic', 'TOXIC'), ('jailbreak', 'JAILBREAK'))
INSERT INTO "Alchemi_CopilotGuardrailPresetTable" (account_id, id, code, name, preset_json, is_system, created_by, created_at, updated_at)
SELECT a.account_id, a.account_id || '-' || b.code, b.code, b.name, '{}', TRUE, a.created_by, a.created_at, a.created_at
FROM "Alchemi_AccountTable" a CROSS JOIN builtin b WHERE 1 = 1
ON CONFLICT DO NOTHING;

WITH builtin (guard_type, pattern_name, pattern_regex, pattern_type, action) AS (VALUES
    ('pii', 'email', '(?i)(?-u:\b)[a-z0-9._%+\-]+@(?:[a-z0-9\-]+\.)+[a-z]{2,24}(?-u:\b)', 'detect', 'mask'),
    ('pii', 'phone', '(?:\+[1-9]|(?-u:\b)00[1-9])[0-9 ().\-]{6,18}[0-9](?-u:\b)|(?:\([2-9][0-9]{2}\) ?|(?-u:\b)[2-9][0-9]{2}[-. ])[2-9][0-9]{2}[-. ][0-9]{4}(?-u:\b)', 'detect', 'mask'),
    ('pii', 'payment_card', '(?-u:\b)[2-6][0-9](?:[ \-]?[0-9]){11,17}(?-u:\b)', 'detect', 'mask'),
    ('pii', 'iban', '(?-u:\b)[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}(?-u:\b)', 'detect', 'mask'),
    ('pii', 'us_ssn', '(?-u:\b)[0-9]{3}-[0-9]{2}-[0-9]{4}(?-u:\b)', 'detect', 'mask'),
    ('pii', 'uk_nino', '(?-u:\b)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D](?-u:\b)', 'detect', 'mask'),
    ('pii', 'es_dni', '(?-u:\b)[0-9XYZ][0-9]{7}-?[A-HJ-NP-TV-Z](?-u:\b)', 'detect', 'mask'),
    ('pii', 'br_cpf', '(?-u:\b)[0-9]{3}\.?[0-9]{3}\.?[0-9]{3}-?[0-9]{2}(?-u:\b)', 'detect', 'mask'),
    ('pii', 'de_tax_id', '(?-u:\b)[1-9][0-9]{10}(?-u:\b)', 'detect', 'mask'),
    ('pii', 'ip_address', '(?-u:\b)(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){2,7})(?-u:\b)', 'detect', NULL),
    ('pii', 'aws_access_key', '(?-u:\b)(?:AKIA|ASIA)[0-9A-Z]{16}(?-u:\b)', 'block', NULL),
    ('pii', 'api_key', '(?-u:\b)(?:sk-[A-Za-z0-9_\-]{20,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}|glpat-[A-Za-z0-9_\-]{20,}|xox[abpors]-[A-Za-z0-9\-]{10,}|AIza[0-9A-Za-z_\-]{35}|[rs]k_live_[0-9A-Za-z]{16,}|npm_[A-Za-z0-9]{36}|hf_[A-Za-z0-9]{30,})', 'block', NULL),
    ('pii', 'private_key', '-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----', 'block', NULL),
    ('toxic', 'threat', '(?i)(?-u:\b)(?:i am going to|i.?m going to|i will|i.?ll|gonna)\s+(?:kill|murder|stab|shoot|strangle)\s+(?:you|him|her|them|everyone)(?-u:\b)', 'detect', NULL),
    ('toxic', 'self_harm_incitement', '(?i)(?-u:\b)(?:kill yourself|hang yourself|end your life|slit your wrists|you should die|kys)(?-u:\b)', 'detect', NULL),
    ('toxic', 'abuse', '(?i)(?-u:\b)you(?: are|.?re)?\s+(?:an?\s+)?(?:worthless|pathetic|disgusting|fucking|filthy)\s+[a-z]+', 'detect', NULL),
    ('jailbreak', 'ignore_instructions', '(?i)(?-u:\b)(?:ignore|disregard|forget|override|bypass)\s+(?:(?:all|any|the|your|my|of|these|those)\s+){0,4}(?:previous|prior|above|earlier|preceding|foregoing|system|safety)\s+(?:instructions?|prompts?|rules|guidelines|directions|messages)', 'block', NULL),
    ('jailbreak', 'reveal_system_prompt', '(?i)(?-u:\b)(?:reveal|show|print|repeat|output|display|tell|give)\s+(?:me\s+)?(?:(?:all|the|your|full|entire|hidden|initial|original|secret)\s+){1,4}(?:system\s+(?:prompt|message|instructions)|initial\s+(?:prompt|instructions)|hidden\s+(?:prompt|instructions))', 'block', NULL),
    ('jailbreak', 'unrestricted_persona', '(?i)(?-u:\b)(?:you are now|act as|pretend to be|pretend you are|roleplay as|behave as)\s+(?:(?:an?|the|my)\s+)?(?:dan(?-u:\b)|stan(?-u:\b)|do anything now|unrestricted|unfiltered|uncensored|jailbroken|amoral|evil (?:ai|assistant|bot))', 'block', NULL),
    ('jailbreak', 'special_mode', '(?i)(?-u:\b)(?:enable|enter|activate|switch to|you are in)\s+(?:developer|debug|god|jailbreak|dan|sudo|unrestricted)\s+mode(?-u:\b)', 'block', NULL),
    ('jailbreak', 'no_restrictions', '(?i)(?-u:\b)without\s+(?:any\s+)?(?:ethical\s+|moral\s+|safety\s+|content\s+)?(?:restrictions|filters|limitations|censorship|guidelines|safeguards)(?-u:\b)', 'detect', NULL)
)
INSERT INTO "Alchemi_CopilotGuardrailPatternTable" (account_id, id, preset_id, guard_type, pattern_name, pattern_regex, pattern_type, action,
    is_system, created_by, created_at, updated_at)
SELECT p.account_id, p.id || '-' || b.pattern_name, p.id, b.guard_type, b.pattern_name, b.pattern_regex, b.pattern_type, b.action,
    TRUE, p.created_by, p.created_at, p.created_at
FROM "Alchemi_CopilotGuardrailPresetTable" p JOIN builtin b ON b.guard_type = p.code WHERE p.is_system
ON CONFLICT DO NOTHING;
