//! `/v1/audit` for an account's own admins, and the same under
//! `/v1/accounts/{account_id}/audit` for the operator, who can also read the chain of
//! a deleted account and, as the account `platform`, their own.

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use http::header;
use serde::{Deserialize, Serialize};

use super::accounts::{ACCOUNT_NOT_FOUND, AtAccount};
use super::answer::{Answer, Halt, Item, Outcome, Refusals};
use super::call::{AccountAdmin, Call, SuperAdmin};
use super::input::{PageParams, Paging, Path, Query, require};
use crate::clock::Timestamp;
use crate::context::{Granted, Tenant};
use crate::model::audit::{Action, Label, Recorded};
use crate::problem::Problem;
use crate::store::audit::{AuditFilter, AuditVerdict, platform};
use crate::store::page::Slice;
use crate::store::{Store, StoreError, Tx};

/// The part of the product whose events are wanted.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AuditDomain {
    /// Every part.
    #[default]
    All,
    /// The console domain.
    Console,
    /// The copilot domain.
    Copilot,
    /// Accounts, admins, sign-on, revocations.
    Iam,
    /// Money.
    Billing,
}

impl AuditDomain {
    const fn label(self) -> Option<Label> {
        match self {
            Self::All => None,
            Self::Console => Some(Label::Console),
            Self::Copilot => Some(Label::Copilot),
            Self::Iam => Some(Label::Iam),
            Self::Billing => Some(Label::Billing),
        }
    }
}

/// Which events are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AuditParams {
    /// Only this part of the product.
    #[serde(default)]
    #[param(inline)]
    domain: AuditDomain,
    /// Only what this subject, or the one with this e-mail address, did.
    actor: Option<String>,
    /// Only this action.
    #[param(inline)]
    action: Option<Action>,
    /// Only what was done to the row of this id, or in this table.
    resource: Option<String>,
    /// From this moment on.
    #[param(value_type = Option<Timestamp>, inline)]
    from: Option<Timestamp>,
    /// Before this moment.
    #[param(value_type = Option<Timestamp>, inline)]
    to: Option<Timestamp>,
}

/// Where an export starts.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ExportParams {
    /// Only events behind this `seq`, to go on from an earlier export.
    #[serde(default)]
    #[param(minimum = 0)]
    after: u64,
}

/// An event, also by the names that earlier clients know.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AuditItem {
    #[serde(flatten)]
    recorded: Recorded,
    /// `resource_type`
    #[schema(example = "Alchemi_OrgTable")]
    table_name: String,
    /// `resource_id`
    object_id: String,
    /// `actor.subject`
    changed_by: String,
    /// `at`
    updated_at: Timestamp,
}

impl From<Recorded> for AuditItem {
    fn from(recorded: Recorded) -> Self {
        Self {
            table_name: recorded.event.resource_type.clone(),
            object_id: recorded.event.resource_id.clone(),
            changed_by: recorded.event.actor.subject.clone(),
            updated_at: recorded.event.at,
            recorded,
        }
    }
}

/// A page of events.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AuditPage {
    /// The part of the product that was asked for.
    domain: AuditDomain,
    /// The page, newest first.
    items: Vec<AuditItem>,
    /// Where the next page starts: send it as `cursor`. `null` at the end.
    next_cursor: Option<String>,
}

/// Events that go into one piece of an export.
const RUN: u32 = 500;

async fn page(mut tx: Tx<Tenant>, params: AuditParams, slice: &Slice) -> Outcome {
    let AuditParams { domain, actor, action, resource, from, to } = params;
    let backwards = from.zip(to).is_some_and(|(from, to)| from > to);
    require(!backwards, "to", "is before from")?;
    let filter = AuditFilter { label: domain.label(), actor, action, resource, from, to };
    let events = tx.events(&filter, slice).await?;
    let next_cursor = events.next.map(|c| c.encode());
    Ok(Answer::of(&AuditPage { domain, items: events.items.into_iter().map(AuditItem::from).collect(), next_cursor }))
}

/// The chain as JSON lines. Each piece is read in a transaction of its own: the chain
/// only grows, and a slow client holds nothing.
fn export(store: Store, granted: Granted<Tenant>, after: u64) -> Response {
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let pieces = stream::try_unfold(after, move |after| {
        let (store, granted) = (store.clone(), granted.clone());
        async move {
            let run = store.read(&granted).await?.chain(after, RUN).await?;
            let Some(last) = run.last().map(|r| r.event.seq) else { return Ok(None) };
            let mut lines = Vec::new();
            for recorded in &run {
                // Writing into a Vec cannot fail.
                let _ = serde_json::to_writer(&mut lines, recorded);
                lines.push(b'\n');
            }
            Ok::<_, StoreError>(Some((Bytes::from(lines), last)))
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"audit.ndjson\""),
    ];
    (headers, Body::from_stream(pieces)).into_response()
}

/// The chain of the path, if there ever was such an account.
async fn chain_of(call: &Call<SuperAdmin>, at: AtAccount) -> Result<Tx<Tenant>, Halt> {
    let known = at.account_id == platform();
    let mut tx = call.read().await?.within(at.account_id);
    if !known && tx.chain_head().await?.is_none() {
        return Err(Problem::not_found(ACCOUNT_NOT_FOUND).into());
    }
    Ok(tx)
}

/// List what was changed in the account
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(AuditParams, PageParams),
    responses((status = 200, description = "A page of events, newest first", body = AuditPage), Refusals))]
pub async fn list_audit(
    call: Call<AccountAdmin>,
    Query(params): Query<AuditParams>,
    Paging(slice): Paging<100>,
) -> Outcome {
    page(call.read().await?, params, &slice).await
}

/// Check the account's audit
///
/// Recomputes every hash from the first event to the last. A chain that does not hold
/// is an answer, not an error: it names the first event that does not fit.
#[utoipa::path(get, path = "/v1/audit/verify", tag = "audit",
    responses((status = 200, description = "Whether the chain holds", body = Item<AuditVerdict>), Refusals))]
pub async fn verify_audit(call: Call<AccountAdmin>) -> Outcome {
    let item = call.read().await?.verify_audit().await?;
    Ok(Answer::of(&Item { item }))
}

/// Export the account's audit
///
/// JSON lines in the order of the chain. The last member of a line is its `hash`: the
/// SHA-256, in hex, of the line before's `hash` (nothing for the first) followed by the
/// line's own text without that member.
#[utoipa::path(get, path = "/v1/audit/export", tag = "audit", params(ExportParams),
    responses((status = 200, description = "One event on each line", body = Recorded, content_type = "application/x-ndjson"), Refusals))]
pub async fn export_audit(call: Call<AccountAdmin>, Query(params): Query<ExportParams>) -> Result<Response, Halt> {
    Ok(export(call.app.store.clone(), call.granted().clone(), params.after))
}

/// List what was changed in an account
///
/// Also of a deleted account, and of the operator's own doings as account `platform`.
#[utoipa::path(get, path = "/v1/accounts/{account_id}/audit", tag = "audit", params(AtAccount, AuditParams, PageParams),
    responses((status = 200, description = "A page of events, newest first", body = AuditPage), Refusals))]
pub async fn list_account_audit(
    call: Call<SuperAdmin>,
    Path(at): Path<AtAccount>,
    Query(params): Query<AuditParams>,
    Paging(slice): Paging<100>,
) -> Outcome {
    page(chain_of(&call, at).await?, params, &slice).await
}

/// Check an account's audit
///
/// As `/v1/audit/verify`.
#[utoipa::path(get, path = "/v1/accounts/{account_id}/audit/verify", tag = "audit", params(AtAccount),
    responses((status = 200, description = "Whether the chain holds", body = Item<AuditVerdict>), Refusals))]
pub async fn verify_account_audit(call: Call<SuperAdmin>, Path(at): Path<AtAccount>) -> Outcome {
    let item = chain_of(&call, at).await?.verify_audit().await?;
    Ok(Answer::of(&Item { item }))
}

/// Export an account's audit
///
/// As `/v1/audit/export`.
#[utoipa::path(get, path = "/v1/accounts/{account_id}/audit/export", tag = "audit", params(AtAccount, ExportParams),
    responses((status = 200, description = "One event on each line", body = Recorded, content_type = "application/x-ndjson"), Refusals))]
pub async fn export_account_audit(
    call: Call<SuperAdmin>,
    Path(at): Path<AtAccount>,
    Query(params): Query<ExportParams>,
) -> Result<Response, Halt> {
    let granted = call.granted().over(at.account_id.clone());
    drop(chain_of(&call, at).await?);
    Ok(export(call.app.store.clone(), granted, params.after))
}
