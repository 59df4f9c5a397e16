//! Pages of what a plan gives, as it counts now.

use super::rules::{EffectiveRow, push_effective};
use crate::context::Tenant;
use crate::id::Id;
use crate::model::budgets::{EffectiveAllocation, Plan};
use crate::store::page::{Page, Slice};
use crate::store::{Result, Tx, on};

impl Tx<Tenant> {
    /// What `plan` gives now, newest first.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn effective_page(&mut self, plan: &Id<Plan>, slice: &Slice) -> Result<Page<EffectiveAllocation>> {
        let (account, now, (at, id)) = (self.account.clone(), self.now, slice.before());
        let rows: Vec<EffectiveRow> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new("");
            push_effective!(q, now, &account, plan);
            q.push(" AND (a.created_at, a.id) < (").push_bind(at).push(", ").push_bind(&id);
            q.push(") ORDER BY a.created_at DESC, a.id DESC LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip()).build_query_as().fetch_all(c).await
        })?;
        Ok(slice.page(rows, |row| (row.created_at, row.id.as_str())).map(|row| row.at(now)))
    }
}
