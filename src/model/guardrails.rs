//! Guardrails: presets of patterns, and the scopes that they are assigned to.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::accounts::{Account, JsonText};
use super::scope::ScopeType;
use crate::clock::Timestamp;
use crate::id::Id;
use crate::problem::Problem;

pub mod builtin;

/// What a pattern looks for. Each has a system preset of the same code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum GuardType {
    /// Personal data and secrets.
    Pii,
    /// Threats and abuse.
    Toxic,
    /// Attempts to talk a model out of its instructions.
    Jailbreak,
}

impl GuardType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pii, Self::Toxic, Self::Jailbreak];

    /// The name in JSON and in the database; the code of the system preset.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pii => "pii",
            Self::Toxic => "toxic",
            Self::Jailbreak => "jailbreak",
        }
    }

    /// Reads a guard type, exactly as it is written.
    ///
    /// # Errors
    /// 400 that lists what is allowed.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        Self::ALL
            .into_iter()
            .find(|known| known.as_str() == text)
            .ok_or_else(|| Problem::bad_request("invalid_guard_type", "guard_type must be one of: pii,toxic,jailbreak"))
    }
}

/// What a pattern does with a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PatternType {
    /// Notes it in the ledger.
    Detect,
    /// Refuses the request.
    Block,
    /// Exempts it from the other patterns of the preset.
    Allow,
}

impl PatternType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Detect, Self::Block, Self::Allow];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::Block => "block",
            Self::Allow => "allow",
        }
    }

    /// Reads a pattern type.
    ///
    /// # Errors
    /// 400 that lists what is allowed.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        Self::ALL.into_iter().find(|known| known.as_str() == text).ok_or_else(|| {
            Problem::bad_request("invalid_pattern_type", "pattern_type must be one of: detect,block,allow")
        })
    }
}

/// What is done with a match, where it differs from what the pattern's type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MatchAction {
    /// Notes it in the ledger.
    Detect,
    /// Replaces it with the pattern's name between brackets.
    Mask,
    /// Refuses the request.
    Block,
    /// Exempts it.
    Allow,
}

impl MatchAction {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Detect, Self::Mask, Self::Block, Self::Allow];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::Mask => "mask",
            Self::Block => "block",
            Self::Allow => "allow",
        }
    }

    /// What is done by a pattern of this type and action: the action where there is
    /// one, else what the type says.
    pub const fn of(pattern_type: PatternType, action: Option<Self>) -> Self {
        match (action, pattern_type) {
            (Some(action), _) => action,
            (None, PatternType::Detect) => Self::Detect,
            (None, PatternType::Block) => Self::Block,
            (None, PatternType::Allow) => Self::Allow,
        }
    }
}

/// A set of patterns that is assigned as a whole.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct GuardrailPreset {
    /// Its id.
    pub id: Id<GuardrailPreset>,
    /// The account.
    pub account_id: Id<Account>,
    /// Its code, unique in the account; what the ledger names.
    #[schema(example = "finance")]
    pub code: String,
    /// Its name.
    #[schema(example = "Finance data")]
    pub name: String,
    /// Its settings, and under `custom_patterns` the patterns that the account added.
    #[schema(value_type = Object)]
    pub preset_json: JsonText,
    /// Whether every account has it from its start.
    pub is_system: bool,
    /// Who made it.
    pub created_by: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it or one of its patterns was last changed.
    pub updated_at: Timestamp,
    /// Counts changes, of its patterns too; the `ETag`.
    #[serde(skip)]
    pub version: i64,
}

/// The member of `preset_json` that is shown out of the patterns' own rows.
const CUSTOM_PATTERNS: &str = "custom_patterns";

impl GuardrailPreset {
    /// The same preset with `patterns`, as far as the account added them, in its JSON.
    #[must_use]
    pub fn showing(mut self, patterns: &[GuardrailPattern]) -> Self {
        let mut json: Map<String, Value> = self.preset_json.read().unwrap_or_default();
        let own = patterns.iter().filter(|p| p.preset_id == self.id && !p.is_system);
        let shown = own.map(|p| serde_json::to_value(p).unwrap_or_default()).collect();
        json.entry("config").or_insert_with(|| Value::Object(Map::new()));
        json.insert(CUSTOM_PATTERNS.to_owned(), Value::Array(shown));
        self.preset_json = JsonText::of(&json);
        self
    }

    /// Takes what was shown under `custom_patterns` out of a preset's JSON; the ids that
    /// stood there, `None` for one without an id.
    pub fn take_patterns(json: &mut Map<String, Value>) -> Vec<Option<String>> {
        match json.remove(CUSTOM_PATTERNS) {
            Some(Value::Array(shown)) => {
                shown.iter().map(|p| p.get("id").and_then(Value::as_str).map(str::to_owned)).collect()
            }
            None | Some(Value::Null) => Vec::new(),
            Some(_) => vec![None],
        }
    }
}

/// A regular expression and what is done with its matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct GuardrailPattern {
    /// Its id.
    pub id: Id<GuardrailPattern>,
    /// The account.
    pub account_id: Id<Account>,
    /// The preset that it belongs to.
    pub preset_id: Id<GuardrailPreset>,
    /// What it looks for.
    pub guard_type: GuardType,
    /// Its name, unique in the preset; a mask shows it between brackets.
    #[schema(example = "customer_number")]
    pub pattern_name: String,
    /// The expression, in the syntax of Rust's `regex`: no look-around, no back-references.
    #[schema(example = r"\bC-[0-9]{8}\b")]
    pub pattern_regex: String,
    /// What it does with a match.
    pub pattern_type: PatternType,
    /// What is done instead.
    pub action: Option<MatchAction>,
    /// Whether it is in use.
    pub enabled: bool,
    /// Whether every account has it from its start: then only `enabled` can be changed.
    pub is_system: bool,
    /// Who made it.
    pub created_by: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Counts changes; the `ETag`.
    #[serde(skip)]
    pub version: i64,
}

impl GuardrailPattern {
    /// What is done with its matches.
    pub const fn does(&self) -> MatchAction {
        MatchAction::of(self.pattern_type, self.action)
    }
}

/// Puts a preset in force for a scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct GuardrailAssignment {
    /// Its id.
    pub id: Id<GuardrailAssignment>,
    /// The account.
    pub account_id: Id<Account>,
    /// The preset.
    pub preset_id: Id<GuardrailPreset>,
    /// The kind of scope.
    #[schema(example = "team")]
    pub scope_type: ScopeType,
    /// The scope.
    pub scope_id: String,
    /// Who made it.
    pub created_by: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A preset in force for somebody, and the scope that it comes from.
#[derive(Debug, Clone)]
pub struct AssignedPreset {
    /// The scope that it is assigned to.
    pub scope_type: ScopeType,
    /// Its id.
    pub scope_id: String,
    /// The preset.
    pub preset: GuardrailPreset,
}
