//! The rows of the ledger, for admins: which requests made up what was spent.

use serde::Deserialize;

use super::answer::{Answer, Items, Outcome, Refusals};
use super::call::{Call, Member};
use super::costs::{Days, Payer};
use super::input::{PageParams, Paging, Query};
use crate::model::text::Name;
use crate::model::usage::{EntryKind, UsageEntry};
use crate::store::usage::EntryFilter;

/// Which rows are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WantedEntries {
    /// Only usage, or only corrections of a kind.
    #[param(inline)]
    entry: Option<EntryKind>,
    /// Only rows with this mark: `over_cap` and `would_refuse` (let through by soft and shadow
    /// enforcement), `cut`, `not_forwarded`, `unsettled` (charged at the estimate), `late`, `lost_lease`.
    #[param(value_type = Option<String>, example = "would_refuse")]
    mark: Option<Name>,
}

/// List the rows of the ledger
///
/// Each request with what it cost, the newest first, and what corrects them. A row's `id` is the request id that its
/// caller was told in `x-request-id`; in the copilot domain, `reverses` of an adjustment names it. Needs the admin rights
/// of the domain that is asked for.
#[utoipa::path(get, path = "/v1/costs/entries", tag = "costs", params(Payer, WantedEntries, Days, PageParams),
    responses((status = 200, description = "A page of the ledger", body = Items<UsageEntry>), Refusals))]
pub async fn list_ledger_entries(
    call: Call<Member>,
    Query(payer): Query<Payer>,
    Query(wanted): Query<WantedEntries>,
    Query(days): Query<Days>,
    Paging(slice): Paging<100>,
) -> Outcome {
    let call = call.domain_admin(payer.domain)?;
    let mut tx = call.read().await?;
    let costs = days.read(&mut tx, payer.filter()).await?;
    let filter = EntryFilter { costs, entry: wanted.entry, mark: wanted.mark.map(Name::into_string) };
    Ok(Answer::of(&Items::from(tx.usage_entries(&filter, &slice).await?)))
}
