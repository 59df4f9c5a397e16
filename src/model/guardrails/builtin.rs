//! The patterns that every account has from its start.
//!
//! Migration `0003_guardrails` holds the same table for accounts that were there
//! before it; a test compares the two. Word boundaries are of ASCII, which keeps the
//! search fast in every script.

use super::{GuardType, MatchAction, PatternType};

/// A pattern that every account has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Builtin {
    /// What it looks for; the code of its preset.
    pub guard_type: GuardType,
    /// Its name.
    pub name: &'static str,
    /// Its expression.
    pub regex: &'static str,
    /// What it does with a match.
    pub pattern_type: PatternType,
    /// What is done instead.
    pub action: Option<MatchAction>,
}

/// The name of a system preset.
pub const fn preset_name(guard_type: GuardType) -> &'static str {
    match guard_type {
        GuardType::Pii => "PII",
        GuardType::Toxic => "TOXIC",
        GuardType::Jailbreak => "JAILBREAK",
    }
}

const fn masks(name: &'static str, regex: &'static str) -> Builtin {
    let action = Some(MatchAction::Mask);
    Builtin { guard_type: GuardType::Pii, name, regex, pattern_type: PatternType::Detect, action }
}

const fn detects(guard_type: GuardType, name: &'static str, regex: &'static str) -> Builtin {
    Builtin { guard_type, name, regex, pattern_type: PatternType::Detect, action: None }
}

const fn blocks(guard_type: GuardType, name: &'static str, regex: &'static str) -> Builtin {
    Builtin { guard_type, name, regex, pattern_type: PatternType::Block, action: None }
}

/// All of them, preset by preset.
pub const ALL: &[Builtin] = &[
    masks("email", r"(?i)(?-u:\b)[a-z0-9._%+\-]+@(?:[a-z0-9\-]+\.)+[a-z]{2,24}(?-u:\b)"),
    masks(
        "phone",
        r"(?:\+[1-9]|(?-u:\b)00[1-9])[0-9 ().\-]{6,18}[0-9](?-u:\b)|(?:\([2-9][0-9]{2}\) ?|(?-u:\b)[2-9][0-9]{2}[-. ])[2-9][0-9]{2}[-. ][0-9]{4}(?-u:\b)",
    ),
    masks("payment_card", r"(?-u:\b)[2-6][0-9](?:[ \-]?[0-9]){11,17}(?-u:\b)"),
    masks("iban", r"(?-u:\b)[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}(?-u:\b)"),
    masks("us_ssn", r"(?-u:\b)[0-9]{3}-[0-9]{2}-[0-9]{4}(?-u:\b)"),
    masks("uk_nino", r"(?-u:\b)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D](?-u:\b)"),
    masks("es_dni", r"(?-u:\b)[0-9XYZ][0-9]{7}-?[A-HJ-NP-TV-Z](?-u:\b)"),
    masks("br_cpf", r"(?-u:\b)[0-9]{3}\.?[0-9]{3}\.?[0-9]{3}-?[0-9]{2}(?-u:\b)"),
    masks("de_tax_id", r"(?-u:\b)[1-9][0-9]{10}(?-u:\b)"),
    detects(
        GuardType::Pii,
        "ip_address",
        r"(?-u:\b)(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){2,7})(?-u:\b)",
    ),
    blocks(GuardType::Pii, "aws_access_key", r"(?-u:\b)(?:AKIA|ASIA)[0-9A-Z]{16}(?-u:\b)"),
    blocks(
        GuardType::Pii,
        "api_key",
        r"(?-u:\b)(?:sk-[A-Za-z0-9_\-]{20,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}|glpat-[A-Za-z0-9_\-]{20,}|xox[abpors]-[A-Za-z0-9\-]{10,}|AIza[0-9A-Za-z_\-]{35}|[rs]k_live_[0-9A-Za-z]{16,}|npm_[A-Za-z0-9]{36}|hf_[A-Za-z0-9]{30,})",
    ),
    blocks(GuardType::Pii, "private_key", r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    detects(
        GuardType::Toxic,
        "threat",
        r"(?i)(?-u:\b)(?:i am going to|i.?m going to|i will|i.?ll|gonna)\s+(?:kill|murder|stab|shoot|strangle)\s+(?:you|him|her|them|everyone)(?-u:\b)",
    ),
    detects(
        GuardType::Toxic,
        "self_harm_incitement",
        r"(?i)(?-u:\b)(?:kill yourself|hang yourself|end your life|slit your wrists|you should die|kys)(?-u:\b)",
    ),
    detects(
        GuardType::Toxic,
        "abuse",
        r"(?i)(?-u:\b)you(?: are|.?re)?\s+(?:an?\s+)?(?:worthless|pathetic|disgusting|fucking|filthy)\s+[a-z]+",
    ),
    blocks(
        GuardType::Jailbreak,
        "ignore_instructions",
        r"(?i)(?-u:\b)(?:ignore|disregard|forget|override|bypass)\s+(?:(?:all|any|the|your|my|of|these|those)\s+){0,4}(?:previous|prior|above|earlier|preceding|foregoing|system|safety)\s+(?:instructions?|prompts?|rules|guidelines|directions|messages)",
    ),
    blocks(
        GuardType::Jailbreak,
        "reveal_system_prompt",
        r"(?i)(?-u:\b)(?:reveal|show|print|repeat|output|display|tell|give)\s+(?:me\s+)?(?:(?:all|the|your|full|entire|hidden|initial|original|secret)\s+){1,4}(?:system\s+(?:prompt|message|instructions)|initial\s+(?:prompt|instructions)|hidden\s+(?:prompt|instructions))",
    ),
    blocks(
        GuardType::Jailbreak,
        "unrestricted_persona",
        r"(?i)(?-u:\b)(?:you are now|act as|pretend to be|pretend you are|roleplay as|behave as)\s+(?:(?:an?|the|my)\s+)?(?:dan(?-u:\b)|stan(?-u:\b)|do anything now|unrestricted|unfiltered|uncensored|jailbroken|amoral|evil (?:ai|assistant|bot))",
    ),
    blocks(
        GuardType::Jailbreak,
        "special_mode",
        r"(?i)(?-u:\b)(?:enable|enter|activate|switch to|you are in)\s+(?:developer|debug|god|jailbreak|dan|sudo|unrestricted)\s+mode(?-u:\b)",
    ),
    detects(
        GuardType::Jailbreak,
        "no_restrictions",
        r"(?i)(?-u:\b)without\s+(?:any\s+)?(?:ethical\s+|moral\s+|safety\s+|content\s+)?(?:restrictions|filters|limitations|censorship|guidelines|safeguards)(?-u:\b)",
    ),
];
