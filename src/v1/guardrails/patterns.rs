//! `/v1/copilot/guardrails/patterns`.

use serde::{Deserialize, Serialize};

use super::{PRESET_NOT_FOUND, entry, held_preset};
use crate::context::Tenant;
use crate::id::Id;
use crate::model::audit::Action;
use crate::model::field::Field;
use crate::model::guardrails::{GuardType, GuardrailPattern, GuardrailPreset, MatchAction, PatternType};
use crate::model::text::Name;
use crate::policy::guardrails::{MAX_PATTERNS, check_pattern};
use crate::problem::Problem;
use crate::store::Tx;
use crate::store::guardrails::PatternFilter;
use crate::v1::answer::{Answer, Deleted, Halt, Item, Items, Outcome, Refusals, or_404, taken};
use crate::v1::call::{Call, CopilotAdmin, IfMatch};
use crate::v1::input::{Body, PageParams, Paging, Path, Query};
use crate::v1::trial::{Trial, Tried};

/// A new pattern.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "guard_type": "pii",
    "pattern_name": "customer_number",
    "pattern_regex": r"\bC-[0-9]{8}\b",
    "pattern_type": "detect",
    "action": "mask"
}))]
pub struct NewPattern {
    /// `pii`, `toxic` or `jailbreak`.
    #[schema(value_type = GuardType)]
    guard_type: String,
    /// The preset that it is added to; else the system preset of its type.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    preset_id: Option<Id<GuardrailPreset>>,
    /// Unique in the preset; a mask shows it between brackets.
    pattern_name: Name,
    /// At most 1024 bytes, in the syntax of Rust's `regex`.
    pattern_regex: String,
    /// `detect`, `block` or `allow`.
    #[schema(value_type = PatternType)]
    pattern_type: String,
    /// What is done in place of what `pattern_type` says.
    #[serde(default)]
    action: Option<MatchAction>,
    /// Whether it is in use; true unless said.
    #[serde(default = "yes")]
    #[schema(default = true)]
    enabled: bool,
}

fn yes() -> bool {
    true
}

/// A change of a pattern: what is not sent stays. Of a system pattern, only `enabled` may
/// be sent.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"enabled": false}))]
pub struct PatternChange {
    #[serde(default)]
    #[schema(value_type = Option<Name>)]
    pattern_name: Field<Name>,
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pattern_regex: Field<String>,
    /// `detect`, `block` or `allow`.
    #[serde(default)]
    #[schema(value_type = Option<PatternType>)]
    pattern_type: Field<String>,
    /// What is done in place of what the type says; null: nothing else.
    #[serde(default)]
    #[schema(value_type = Option<MatchAction>)]
    action: Field<MatchAction>,
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    enabled: Field<bool>,
}

/// Which patterns are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PatternParams {
    /// `pii`, `toxic` or `jailbreak`.
    #[param(value_type = Option<GuardType>, inline)]
    guard_type: Option<String>,
    /// Only those that are, or are not, in use.
    enabled: Option<bool>,
    /// Only those of this preset.
    #[param(value_type = Option<String>)]
    preset_id: Option<Id<GuardrailPreset>>,
}

/// `{"items": […], "next_cursor": …, "total": …}`
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Patterns {
    #[serde(flatten)]
    page: Items<GuardrailPattern>,
    /// How many there are on all pages.
    total: i64,
}

/// The pattern of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtPattern {
    /// The pattern.
    #[param(value_type = String)]
    pattern_id: Id<GuardrailPattern>,
}

const TABLE: &str = "Alchemi_CopilotGuardrailPatternTable";
const PATTERN_NOT_FOUND: &str = "Pattern not found";
const NAME_TAKEN: &str = "The preset has a pattern with this name already";

/// Checks an expression and its meaning.
fn checked(pattern: GuardrailPattern) -> Result<GuardrailPattern, Problem> {
    check_pattern(&pattern.pattern_regex).map_err(|error| Problem::invalid("/pattern_regex", error.to_string()))?;
    let exempts = pattern.pattern_type == PatternType::Allow;
    if pattern.action.is_some_and(|action| (action == MatchAction::Allow) != exempts) {
        return Err(Problem::invalid(
            "/action",
            "must be left out, or allow, where pattern_type is allow, and only there",
        ));
    }
    Ok(pattern)
}

/// List guardrail patterns
#[utoipa::path(get, path = "/v1/copilot/guardrails/patterns", tag = "guardrails", params(PatternParams, PageParams),
    responses((status = 200, description = "A page of patterns, newest first", body = Patterns), Refusals))]
pub async fn list_guardrail_patterns(
    call: Call<CopilotAdmin>,
    Query(params): Query<PatternParams>,
    Paging(slice): Paging<100>,
) -> Outcome {
    let guard_type = params.guard_type.as_deref().map(GuardType::parse).transpose()?;
    let filter = PatternFilter { guard_type, enabled: params.enabled, preset: params.preset_id };
    let mut tx = call.read().await?;
    let total = tx.count_guardrail_patterns(&filter).await?;
    let page = tx.guardrail_patterns(&filter, &slice).await?;
    Ok(Answer::of(&Patterns { page: page.into(), total }))
}

/// Make a guardrail pattern
///
/// What is done with a match is what `action` says, else `pattern_type`: `allow` exempts it
/// from the other patterns of the preset, `block` refuses the request, `mask` replaces it
/// with the pattern's name between brackets, `detect` notes it in the ledger.
#[utoipa::path(post, path = "/v1/copilot/guardrails/patterns", tag = "guardrails", params(Trial),
    request_body = NewPattern,
    responses((status = 200, description = "The new pattern", body = Tried<Item<GuardrailPattern>>), Refusals))]
pub async fn create_guardrail_pattern(
    call: Call<CopilotAdmin>,
    Query(trial): Query<Trial>,
    Body(new): Body<NewPattern>,
) -> Outcome {
    let guard_type = GuardType::parse(&new.guard_type.trim().to_lowercase())?;
    let pattern_type = PatternType::parse(&new.pattern_type)?;
    let mut tx = call.begin_or_try(&trial).await?;
    let preset = match &new.preset_id {
        Some(id) => held_preset(&mut tx, id).await?,
        None => or_404(tx.hold_guardrail_preset_of(guard_type.as_str()).await?, PRESET_NOT_FOUND)?,
    };
    let own = PatternFilter { preset: Some(preset.id.clone()), ..PatternFilter::default() };
    if tx.count_guardrail_patterns(&own).await? >= MAX_PATTERNS {
        return Err(Problem::conflict("too_many_patterns", "The preset has 200 patterns: remove one first").into());
    }
    let pattern = checked(GuardrailPattern {
        id: tx.new_id(),
        account_id: tx.account().clone(),
        preset_id: preset.id,
        guard_type,
        pattern_name: new.pattern_name.into_string(),
        pattern_regex: new.pattern_regex,
        pattern_type,
        action: new.action,
        enabled: new.enabled,
        is_system: false,
        created_by: Some(tx.acting().actor.subject.to_string()),
        created_at: tx.now(),
        updated_at: tx.now(),
        version: 1,
    })?;
    tx.insert_guardrail_pattern(&pattern).await.map_err(taken("pattern_name", NAME_TAKEN))?;
    tx.audit(entry(Action::Create, TABLE, pattern.id.as_str()), None::<&()>, &pattern).await?;
    call.done_tagged(tx, &Item { item: &pattern }, pattern.version).await
}

/// Show a guardrail pattern
#[utoipa::path(get, path = "/v1/copilot/guardrails/patterns/{pattern_id}", tag = "guardrails", params(AtPattern),
    responses((status = 200, description = "The pattern", body = Item<GuardrailPattern>), Refusals))]
pub async fn get_guardrail_pattern(
    call: Call<CopilotAdmin>,
    Path(AtPattern { pattern_id: id }): Path<AtPattern>,
) -> Outcome {
    let pattern = or_404(call.read().await?.guardrail_pattern(&id).await?, PATTERN_NOT_FOUND)?;
    Ok(Answer::of(&Item { item: &pattern }).tagged(pattern.version))
}

async fn held(tx: &mut Tx<Tenant>, id: &Id<GuardrailPattern>) -> Result<GuardrailPattern, Halt> {
    Ok(or_404(tx.hold_guardrail_pattern(id).await?, PATTERN_NOT_FOUND)?)
}

/// Change a guardrail pattern
#[utoipa::path(put, path = "/v1/copilot/guardrails/patterns/{pattern_id}", tag = "guardrails",
    params(AtPattern, Trial, IfMatch), request_body = PatternChange,
    responses((status = 200, description = "The changed pattern", body = Tried<Item<GuardrailPattern>>), Refusals))]
pub async fn update_guardrail_pattern(
    call: Call<CopilotAdmin>,
    Path(AtPattern { pattern_id: id }): Path<AtPattern>,
    Query(trial): Query<Trial>,
    Body(change): Body<PatternChange>,
) -> Outcome {
    let mut tx = call.begin_or_try(&trial).await?;
    let before = held(&mut tx, &id).await?;
    call.expects(before.version)?;
    let pattern = change.over(before.clone())?;
    let pattern = tx.update_guardrail_pattern(&pattern).await.map_err(taken("pattern_name", NAME_TAKEN))?;
    tx.audit(entry(Action::Update, TABLE, id.as_str()), Some(&before), &pattern).await?;
    call.done_tagged(tx, &Item { item: &pattern }, pattern.version).await
}

impl PatternChange {
    fn over(self, old: GuardrailPattern) -> Result<GuardrailPattern, Problem> {
        let Self { pattern_name, pattern_regex, pattern_type, action, enabled } = self;
        if old.is_system {
            let more =
                !(pattern_name.is_keep() && pattern_regex.is_keep() && pattern_type.is_keep() && action.is_keep());
            if more || enabled.is_keep() {
                return Err(Problem::bad_request("system_pattern", "System patterns can only toggle enabled"));
            }
        }
        let kind = pattern_type.over_required(old.pattern_type.as_str().to_owned(), "/pattern_type")?;
        checked(GuardrailPattern {
            pattern_name: pattern_name.map(Name::into_string).over_required(old.pattern_name, "/pattern_name")?,
            pattern_regex: pattern_regex.over_required(old.pattern_regex, "/pattern_regex")?,
            pattern_type: PatternType::parse(&kind)?,
            action: action.over(old.action),
            enabled: enabled.over_required(old.enabled, "/enabled")?,
            ..old
        })
    }
}

/// Remove a guardrail pattern
///
/// System patterns stay; they can be switched off.
#[utoipa::path(delete, path = "/v1/copilot/guardrails/patterns/{pattern_id}", tag = "guardrails",
    params(AtPattern, Trial, IfMatch),
    responses((status = 200, description = "Removed", body = Tried<Deleted>), Refusals))]
pub async fn delete_guardrail_pattern(
    call: Call<CopilotAdmin>,
    Path(AtPattern { pattern_id: id }): Path<AtPattern>,
    Query(trial): Query<Trial>,
) -> Outcome {
    let mut tx = call.begin_or_try(&trial).await?;
    let pattern = held(&mut tx, &id).await?;
    call.expects(pattern.version)?;
    if pattern.is_system {
        return Err(Problem::forbidden("system_pattern", "System patterns cannot be deleted").into());
    }
    let deleted = tx.delete_guardrail_pattern(&pattern).await?;
    tx.audit(entry(Action::Delete, TABLE, id.as_str()), Some(&pattern), &serde_json::json!({})).await?;
    call.done(tx, &Deleted { deleted }).await
}
