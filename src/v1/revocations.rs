//! `/v1/auth/revocations`: tokens cut off before they expire.
//!
//! A revocation belongs to no account; its audit is in the operator's own chain.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::App;
use super::answer::{Answer, Deleted, Item, Items, Outcome, Refusals, or_404};
use super::call::{Call, SuperAdmin};
use super::input::{Body, PageParams, Paging, Path, require};
use crate::clock::Timestamp;
use crate::id::Id;
use crate::model::audit::{Action, Label};
use crate::model::revocations::Revocation;
use crate::model::text::{Description, Name};
use crate::problem::Problem;
use crate::store::audit::Entry;

/// How far a moment may be ahead, whatever the clock that it was read from.
const AHEAD: Duration = Duration::from_secs(3_600);

type Tell = dyn Fn(&str, &str, Timestamp) + Send + Sync;

/// Makes a revocation hold in this process.
#[derive(Clone)]
pub struct CutOff(Arc<Tell>);

impl CutOff {
    /// Calls `tell` with issuer, subject and moment once the revocation is in the database.
    pub fn new(tell: impl Fn(&str, &str, Timestamp) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }
}

impl Default for CutOff {
    fn default() -> Self {
        Self::new(|_, _, _| {})
    }
}

impl fmt::Debug for CutOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CutOff")
    }
}

/// Whose tokens to cut off.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRevocation {
    /// The issuer, of whose tokens alone it holds; may be left out where only one is configured.
    #[serde(default)]
    #[schema(example = "https://login.example.com")]
    issuer: Option<String>,
    /// The token's `sub`.
    #[schema(value_type = String, example = "259242039378444290")]
    subject: Name,
    /// Tokens issued before this are refused; now, if left out. The issuer's clock may be
    /// ahead by `identity.leeway_seconds`: tokens that say a moment up to so much later are
    /// refused too.
    #[serde(default)]
    issued_before: Option<Timestamp>,
    /// Why.
    #[serde(default)]
    reason: Option<Description>,
}

/// The revocation of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtRevocation {
    /// The revocation.
    #[param(value_type = String)]
    revocation_id: Id<Revocation>,
}

fn entry(action: Action, revocation: &Revocation) -> Entry<'_> {
    Entry { action, table: "Alchemi_RevocationTable", id: revocation.id.as_str(), label: Label::Iam }
}

fn issuer_of(app: &App, named: Option<String>) -> Result<String, Problem> {
    match (named, &*app.issuers) {
        (Some(issuer), _) => accepted(app, &issuer).map(|()| issuer),
        (None, [only]) => Ok(only.clone()),
        (None, []) => Err(Problem::invalid("/issuer", "is required")),
        (None, known) => Err(one_of(known)),
    }
}

/// Refuses an issuer whose tokens are not accepted: a misspelt one must not look as if it
/// had worked.
pub(super) fn accepted(app: &App, issuer: &str) -> Result<(), Problem> {
    let known = &*app.issuers;
    if known.is_empty() || known.iter().any(|own| own == issuer) { Ok(()) } else { Err(one_of(known)) }
}

fn one_of(known: &[String]) -> Problem {
    Problem::invalid("/issuer", format!("must be one of: {}", known.join(", ")))
}

/// List revocations
#[utoipa::path(get, path = "/v1/auth/revocations", tag = "revocations", params(PageParams),
    responses((status = 200, description = "A page of revocations, newest first", body = Items<Revocation>), Refusals))]
pub async fn list_revocations(call: Call<SuperAdmin>, Paging(slice): Paging<100>) -> Outcome {
    let revocations = call.read().await?.revocation_page(&slice).await?;
    Ok(Answer::of(&Items::from(revocations)))
}

/// Cut off a subject's tokens
///
/// This gateway refuses the tokens of the subject that were issued before the moment at
/// once, the others as soon as the change reaches them. Of several issuers, each is told by
/// itself. A subject that is cut off already keeps the later of the two moments; who signs in
/// again is let in once `identity.leeway_seconds` are over.
#[utoipa::path(post, path = "/v1/auth/revocations", tag = "revocations", request_body = NewRevocation,
    responses((status = 200, description = "What holds for the subject now", body = Item<Revocation>), Refusals))]
pub async fn create_revocation(call: Call<SuperAdmin>, Body(new): Body<NewRevocation>) -> Outcome {
    let issuer = issuer_of(&call.app, new.issuer)?;
    let subject = new.subject.into_string();
    let mut tx = call.begin().await?;
    let is_ahead = new.issued_before.is_some_and(|before| before > tx.now().plus(AHEAD));
    require(!is_ahead, "/issued_before", "cannot be more than an hour ahead: nobody could sign in until then")?;
    let before = tx.revocation_of(&issuer, &subject).await?;
    let revocation = Revocation {
        id: tx.new_id(),
        issuer,
        subject,
        issued_before: new.issued_before.unwrap_or(tx.now()),
        reason: new.reason.map(Description::into_string),
        created_by: Some(tx.acting().actor.subject.to_string()),
        created_at: tx.now(),
    };
    let revocation = tx.put_revocation(&revocation).await?;
    tx.audit(entry(Action::Upsert, &revocation), before.as_ref(), &revocation).await?;
    let answer = call.done(tx, &Item { item: &revocation }).await?;
    (call.app.cut_off.0)(&revocation.issuer, &revocation.subject, revocation.issued_before);
    Ok(answer)
}

/// Let a subject's older tokens in again
#[utoipa::path(delete, path = "/v1/auth/revocations/{revocation_id}", tag = "revocations", params(AtRevocation),
    responses((status = 200, description = "Removed", body = Deleted), Refusals))]
pub async fn delete_revocation(
    call: Call<SuperAdmin>,
    Path(AtRevocation { revocation_id: id }): Path<AtRevocation>,
) -> Outcome {
    let mut tx = call.begin().await?;
    let revocation = or_404(tx.revocation(&id).await?, "Revocation not found")?;
    let deleted = tx.delete_revocation(&id).await?;
    tx.audit(entry(Action::Delete, &revocation), Some(&revocation), &serde_json::json!({})).await?;
    call.done(tx, &Deleted { deleted }).await
}
