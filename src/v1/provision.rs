//! `/v1/accounts/{account_id}/zitadel/provision`: roles and grants in Zitadel.
//!
//! What an operator asks for is written down first and made so while they wait; what is
//! not so when the answer is due is made so later, and `…/drift` shows how far it is.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::accounts::{ACCOUNT_NOT_FOUND, AtAccount, held_account};
use super::answer::{Answer, Halt, Refusals, StatusOk, or_404};
use super::call::{Call, SuperAdmin};
use super::input::{Body, Path, Query};
use crate::context::Tenant;
use crate::id::Id;
use crate::model::accounts::{Account, AccountAdmin, ZitadelConfig};
use crate::model::audit::{Action, Label};
use crate::model::provision::{ProvisionItem, Wanted, role_key};
use crate::model::revocations::Revocation;
use crate::model::text::Name;
use crate::problem::Problem;
use crate::provision::{Outcome, Outcomes, Provisioner};
use crate::store::audit::Entry;
use crate::store::{StoreError, Tx};

mod admins;
mod asked;
mod bootstrap;
mod drift;
mod plan;
mod roles;
mod told;

pub use admins::*;
use asked::AdminGrants;
pub use asked::{AdminGrantSync, Bootstrap, NewProjectRole, NewUserGrant, RoleSync};
pub use bootstrap::*;
pub use drift::*;
pub use plan::*;
pub use roles::*;
pub use told::*;

use roles::{remote_word, roles_of};

/// How long a caller waits for it to be made so.
const PATIENCE: Duration = Duration::from_secs(25);

const NOT_CONFIGURED: &str = "Zitadel management client is not configured";

fn yes() -> bool {
    true
}

/// The account, how it is bound, and the binding's version.
struct Bound {
    config: ZitadelConfig,
    /// Whether there is a binding at all.
    stored: bool,
    version: i64,
}

/// A binding without anything in it.
fn unbound() -> ZitadelConfig {
    ZitadelConfig {
        enabled: true,
        issuer: None,
        audience: None,
        project_id: None,
        organization_id: None,
        role_prefix: None,
        role_mappings: BTreeMap::new(),
        account_id_claim: None,
        product_domains_claim: None,
    }
}

async fn bound(tx: &mut Tx<Tenant>) -> Result<Bound, StoreError> {
    Ok(match tx.zitadel_config().await? {
        Some(stored) => Bound { config: stored.value, stored: true, version: stored.version },
        None => Bound { config: unbound(), stored: false, version: 0 },
    })
}

async fn read_bound(call: &Call<SuperAdmin>, account: Id<Account>) -> Result<(Tx<Tenant>, Bound), Halt> {
    let mut tx = call.read().await?.within(account);
    or_404(tx.this_account().await?, ACCOUNT_NOT_FOUND)?;
    let bound = bound(&mut tx).await?;
    Ok((tx, bound))
}

async fn begin_bound(call: &Call<SuperAdmin>, account: Id<Account>) -> Result<(Tx<Tenant>, Bound), Halt> {
    let mut tx = call.begin().await?.within(account);
    held_account(&mut tx).await?;
    let bound = bound(&mut tx).await?;
    Ok((tx, bound))
}

/// The project that is meant: the request's, else the account's.
fn project_of(asked: Option<Name>, config: &ZitadelConfig) -> Result<String, Problem> {
    asked.map(Name::into_string).or_else(|| config.project_id.clone()).ok_or_else(|| {
        Problem::bad_request("project_id_missing", "project_id missing in request and account zitadel config")
    })
}

fn not_configured() -> Problem {
    Problem::bad_request("zitadel_not_configured", NOT_CONFIGURED)
}

/// The prefix that is meant: the request's, else the account's, else none.
fn prefix_of(asked: Option<Name>, config: &ZitadelConfig) -> String {
    asked.map(Name::into_string).or_else(|| config.role_prefix.clone()).unwrap_or_default()
}

/// What the audit says of an operation.
fn provision_entry<'a>(account: &'a Id<Account>) -> Entry<'a> {
    Entry { action: Action::Create, table: "Alchemi_ZitadelProvision", id: account.as_str(), label: Label::Iam }
}

/// Wants all of it, in one transaction.
async fn want_all(tx: &mut Tx<Tenant>, wanted: &[Wanted]) -> Result<Vec<ProvisionItem>, StoreError> {
    let mut items = Vec::with_capacity(wanted.len());
    for one in wanted {
        items.push(tx.want(one).await?);
    }
    Ok(items)
}

/// Makes it so while the caller waits.
async fn converged(
    call: &Call<SuperAdmin>,
    account: &Id<Account>,
    project: &str,
    items: &[ProvisionItem],
) -> Result<Outcomes, Halt> {
    let mut outcomes = call.app.provisioner.converge(project, items, PATIENCE).await?;
    if items.iter().any(|item| !outcomes.contains_key(item.id.as_str())) {
        // Another gateway was quicker.
        for item in call.read().await?.within(account.clone()).provision_items().await? {
            if let (false, Some(outcome)) = (outcomes.contains_key(item.id.as_str()), Outcome::elsewhere(&item)) {
                outcomes.insert(item.id.to_string(), outcome);
            }
        }
    }
    Ok(outcomes)
}

/// Writes the audit row of an operation and answers.
async fn audited(
    call: &Call<SuperAdmin>,
    account: &Id<Account>,
    what: &Value,
    body: &impl Serialize,
) -> Result<Answer, Halt> {
    let mut tx = call.begin().await?.within(account.clone());
    tx.audit(provision_entry(account), None::<&()>, what).await?;
    call.done(tx, body).await
}

/// Subjects that a transaction cuts off, to be told once it is committed.
#[derive(Debug, Default)]
pub(super) struct Cut(Vec<Revocation>);

impl Cut {
    /// To be called after the commit.
    pub(super) fn told(&self, provisioner: &Provisioner) {
        for cut in &self.0 {
            provisioner.tell(cut);
        }
        provisioner.wake();
    }
}

/// Follows a change of an admin: in an account whose admins were granted their roles here,
/// a new one is granted theirs, and one who goes, or whose role changes, loses the former
/// and every token that shows it.
pub(super) async fn follow_admin(
    provisioner: &Provisioner,
    tx: &mut Tx<Tenant>,
    before: Option<&AccountAdmin>,
    after: Option<&AccountAdmin>,
) -> Result<Cut, StoreError> {
    let bound = bound(tx).await?;
    let (Some(project), true) = (bound.config.project_id.clone(), bound.config.enabled) else {
        return Ok(Cut::default());
    };
    let config = &bound.config;
    let prefix = config.role_prefix.as_deref().unwrap_or_default();
    let organization = config.organization_id.as_deref();
    let items = tx.provision_items().await?;
    let managed = items.iter().any(|item| item.project_id == project);
    let mut cut = Cut::default();
    let same = |a: &AccountAdmin, b: &AccountAdmin| a.user_email == b.user_email;
    if let Some(gone) = before.filter(|before| after.is_none_or(|after| !same(before, after))) {
        let known: Vec<_> = items.iter().filter(|item| item.target == gone.user_email).collect();
        for item in &known {
            let org = item.organization_id.as_deref();
            tx.want(&Wanted::user_grant(&item.project_id, org, &gone.user_email, Vec::new())).await?;
        }
        if known.is_empty() && provisioner.is_configured() {
            let mut wanted = Wanted::user_grant(&project, organization, &gone.user_email, Vec::new());
            wanted.retired_keys.extend(role_key(config, prefix, &gone.role).ok());
            tx.want(&wanted).await?;
        }
        let mut subjects = tx.subjects_of(&gone.user_email).await?;
        subjects.extend(known.iter().filter_map(|item| item.user_id.clone()));
        subjects.sort();
        subjects.dedup();
        for subject in subjects {
            cut.0.extend(provisioner.cut_off(tx, &subject, "removed as an admin").await?);
        }
    }
    if let Some(now) = after.filter(|_| managed)
        && let Ok(key) = role_key(config, prefix, &now.role)
    {
        let known = items.iter().find(|item| item.target == now.user_email && item.project_id == project);
        let mut keys = vec![key];
        if let Some(known) = known {
            // Roles beside the one that changes were asked for, and stay.
            let former = before.and_then(|before| role_key(config, prefix, &before.role).ok());
            let others = known.role_keys.iter().filter(|key| Some(*key) != former.as_ref()).cloned();
            crate::model::provision::add_missing(&mut keys, others);
        }
        tx.want(&Wanted::user_grant(&project, organization, &now.user_email, keys)).await?;
    }
    Ok(cut)
}
