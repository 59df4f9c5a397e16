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
use crate::model::provision::{ItemKind, ProvisionItem, Wanted, add_missing, role_key};
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
fn provision_entry(action: Action, account: &Id<Account>) -> Entry<'_> {
    Entry { action, table: "Alchemi_ZitadelProvision", id: account.as_str(), label: Label::Iam }
}

/// Writes down what is wanted, and in the audit who asked for it, in one commit: what
/// comes of it later, or never, takes nothing of that back.
async fn want_all(mut tx: Tx<Tenant>, asked: &Value, wanted: &[Wanted]) -> Result<Vec<ProvisionItem>, StoreError> {
    let account = tx.account().clone();
    let mut items = Vec::with_capacity(wanted.len());
    for one in wanted {
        items.push(tx.want(one).await?);
    }
    let named = |one: &Wanted| serde_json::json!({"kind": one.kind, "target": one.target, "role_keys": one.role_keys});
    let wanted: Vec<Value> = wanted.iter().map(named).collect();
    let asked = with(asked.clone(), "wanted", wanted.into());
    tx.audit(provision_entry(Action::Create, &account), None::<&()>, &asked).await?;
    tx.commit().await?;
    Ok(items)
}

/// That an organisation may grant these roles of the project, which may be another's;
/// beside those that it was to be able to grant before.
async fn may_grant(
    tx: &mut Tx<Tenant>,
    project: &str,
    organization: Option<&str>,
    mut keys: Vec<String>,
) -> Result<Option<Wanted>, StoreError> {
    let Some(organization) = organization.filter(|_| !keys.is_empty()) else { return Ok(None) };
    let known = tx.provision_items().await?.into_iter().filter(|item| {
        item.kind == ItemKind::ProjectGrant && item.project_id == project && item.target == organization
    });
    add_missing(&mut keys, known.flat_map(|item| item.role_keys));
    Ok(Some(Wanted::project_grant(project, organization, keys)))
}

/// An object with one more key.
fn with(mut object: Value, key: &str, value: Value) -> Value {
    if let Value::Object(keys) = &mut object {
        keys.insert(key.to_owned(), value);
    }
    object
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

/// Writes the audit row of what came of an operation, and answers. A dry run has left no
/// other row: it says there what was asked.
async fn audited(
    call: &Call<SuperAdmin>,
    account: &Id<Account>,
    asked: &Value,
    result: Value,
    body: &impl Serialize,
) -> Result<Answer, Halt> {
    let dry_run = asked.get("dry_run") == Some(&Value::Bool(true));
    let (action, row) = if dry_run {
        (Action::Create, asked.clone())
    } else {
        (Action::Update, serde_json::json!({"operation": asked.get("operation")}))
    };
    let mut tx = call.begin().await?.within(account.clone());
    tx.audit(provision_entry(action, account), None::<&()>, &with(row, "result", result)).await?;
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

/// Follows a change of an admin: one who goes, or whose role changes, loses every token that
/// shows the former role. What Zitadel is to hold is wanted where the account is bound to it: in
/// one whose admins were granted their roles here, a new one is granted theirs, and the former
/// role is taken back.
pub(super) async fn follow_admin(
    provisioner: &Provisioner,
    tx: &mut Tx<Tenant>,
    before: Option<&AccountAdmin>,
    after: Option<&AccountAdmin>,
) -> Result<Cut, StoreError> {
    let items = tx.provision_items().await?;
    let remains = after.filter(|after| before.is_some_and(|before| before.user_email == after.user_email));
    let mut cut = Cut::default();
    if let Some(former) = before.filter(|before| remains.is_none_or(|now| now.role != before.role)) {
        let reason = if remains.is_some() { "the role as an admin changed" } else { "removed as an admin" };
        let mut subjects = tx.subjects_of(&former.user_email).await?;
        let known = items.iter().filter(|item| item.target == former.user_email);
        subjects.extend(known.filter_map(|item| item.user_id.clone()));
        subjects.sort();
        subjects.dedup();
        for subject in subjects {
            cut.0.extend(provisioner.cut_off(tx, &subject, reason).await?);
        }
    }
    let config = bound(tx).await?.config;
    if let (Some(project), true) = (&config.project_id, config.enabled) {
        let place = Place { project, config: &config, items: &items };
        if let Some(gone) = before.filter(|_| remains.is_none()) {
            place.want_nothing(tx, gone, provisioner.is_configured()).await?;
        }
        if let Some(now) = after {
            place.want_role(tx, before, now).await?;
        }
    }
    Ok(cut)
}

/// Where an account's admins hold their roles, and what is wanted there.
struct Place<'a> {
    project: &'a str,
    config: &'a ZitadelConfig,
    items: &'a [ProvisionItem],
}

impl Place<'_> {
    fn key_of(&self, admin: &AccountAdmin) -> Option<String> {
        role_key(self.config, self.config.role_prefix.as_deref().unwrap_or_default(), &admin.role).ok()
    }

    /// Takes back what an admin was granted; their role, where nobody remembers what.
    async fn want_nothing(&self, tx: &mut Tx<Tenant>, gone: &AccountAdmin, configured: bool) -> Result<(), StoreError> {
        let nothing = |project: &str, organization: Option<&str>| {
            Wanted::user_grant(project, organization, &gone.user_email, Vec::new())
        };
        let known: Vec<_> = self.items.iter().filter(|item| item.target == gone.user_email).collect();
        if known.is_empty() && configured {
            let mut wanted = nothing(self.project, self.config.organization_id.as_deref());
            wanted.retired_keys.extend(self.key_of(gone));
            tx.want(&wanted).await?;
        }
        for item in known {
            tx.want(&nothing(&item.project_id, item.organization_id.as_deref())).await?;
        }
        Ok(())
    }

    /// Grants an admin their role, if admins were granted theirs here.
    async fn want_role(
        &self,
        tx: &mut Tx<Tenant>,
        before: Option<&AccountAdmin>,
        now: &AccountAdmin,
    ) -> Result<(), StoreError> {
        let here: Vec<_> = self.items.iter().filter(|item| item.project_id == self.project).collect();
        let Some(key) = self.key_of(now).filter(|_| !here.is_empty()) else { return Ok(()) };
        let mut keys = vec![key];
        if let Some(known) = here.iter().find(|item| item.target == now.user_email) {
            // Roles beside the one that changes were asked for, and stay.
            let former = before.and_then(|before| self.key_of(before));
            let others = known.role_keys.iter().filter(|key| Some(*key) != former.as_ref()).cloned();
            add_missing(&mut keys, others);
        }
        let organization = self.config.organization_id.as_deref();
        tx.want(&Wanted::user_grant(self.project, organization, &now.user_email, keys)).await.map(drop)
    }
}
