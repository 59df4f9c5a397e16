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
use crate::model::accounts::{Account, AccountAdmin, AccountStatus, ZitadelConfig};
use crate::model::audit::{Action, Label};
use crate::model::provision::{ItemKind, ProvisionItem, Wanted, add_missing, role_key, under_prefix};
use crate::model::text::Name;
use crate::problem::Problem;
use crate::provision::{Outcome, Outcomes, Provisioner};
use crate::store::audit::Entry;
use crate::store::{StoreError, Tx};

mod admins;
mod asked;
mod bootstrap;
mod drift;
mod follow;
mod forget;
mod plan;
mod roles;
mod told;

pub use admins::*;
use asked::AdminGrants;
pub use asked::{AdminGrantSync, Bootstrap, NewProjectRole, NewUserGrant, RoleSync};
pub use bootstrap::*;
pub use drift::*;
pub(super) use follow::follow_admin;
pub use forget::*;
pub use plan::*;
pub use roles::*;
pub use told::*;

use roles::roles_of;

/// How long a caller waits for it to be made so.
const PATIENCE: Duration = Duration::from_secs(25);

const NOT_CONFIGURED: &str = "Zitadel management client is not configured: set ZITADEL_KEY_FILE, or ZITADEL_CLIENT_ID and \
    ZITADEL_CLIENT_SECRET, or ZITADEL_MGMT_API_TOKEN, at the gateway";

fn yes() -> bool {
    true
}

/// The account, how it is bound, and the binding's version.
struct Bound {
    config: ZitadelConfig,
    /// Whether there is a binding at all.
    stored: bool,
    version: i64,
    /// Whether the account is suspended: nobody is granted anything there.
    suspended: bool,
}

async fn bound(tx: &mut Tx<Tenant>, account: &Account) -> Result<Bound, StoreError> {
    let suspended = account.status != AccountStatus::Active;
    Ok(match tx.zitadel_config().await? {
        Some(stored) => Bound { config: stored.value, stored: true, version: stored.version, suspended },
        None => Bound { config: ZitadelConfig::unbound(), stored: false, version: 0, suspended },
    })
}

async fn read_bound(call: &Call<SuperAdmin>, account: Id<Account>) -> Result<(Tx<Tenant>, Bound), Halt> {
    let mut tx = call.read().await?.within(account);
    let found = or_404(tx.this_account().await?, ACCOUNT_NOT_FOUND)?;
    let bound = bound(&mut tx, &found).await?;
    Ok((tx, bound))
}

async fn begin_bound(call: &Call<SuperAdmin>, account: Id<Account>) -> Result<(Tx<Tenant>, Bound), Halt> {
    let mut tx = call.begin().await?.within(account);
    let held = held_account(&mut tx).await?;
    let bound = bound(&mut tx, &held).await?;
    Ok((tx, bound))
}

/// The project that is meant, if Zitadel knows it: what is wanted in one that was mistyped
/// would be wanted for ever. Nothing is made for an account whose binding is switched off.
async fn aimed(call: &Call<SuperAdmin>, account: &Id<Account>, asked: Option<Name>) -> Result<String, Halt> {
    let (tx, Bound { config, .. }) = read_bound(call, account.clone()).await?;
    drop(tx);
    let project = project_of(asked, &config)?;
    if !config.enabled {
        let detail = "The account's binding to Zitadel is switched off; set `enabled` in its zitadel/config first";
        return Err(Problem::conflict("binding_off", detail).into());
    }
    let known = call.app.provisioner.remote().knows_project(&project, config.organization_id.as_deref()).await;
    // Who cannot be asked now is asked later.
    if known == Ok(false) {
        let detail = format!("Zitadel knows no project {project} that it would show with these credentials");
        return Err(Problem::new(http::StatusCode::NOT_FOUND, "project_not_found", detail).into());
    }
    Ok(project)
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

/// The binding under the prefix that is meant: the request's, else its own.
fn prefixed(asked: Option<Name>, config: ZitadelConfig) -> ZitadelConfig {
    match asked {
        Some(prefix) => under_prefix(config, &prefix.into_string()),
        None => config,
    }
}

/// What stands before the canonical names.
fn prefix_of(config: &ZitadelConfig) -> &str {
    config.role_prefix.as_deref().unwrap_or_default()
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
fn may_grant(
    items: &[ProvisionItem],
    project: &str,
    organization: Option<&str>,
    mut keys: Vec<String>,
) -> Option<Wanted> {
    let organization = organization.filter(|_| !keys.is_empty())?;
    let known = items.iter().filter(|item| {
        item.kind == ItemKind::ProjectGrant && item.project_id == project && item.target == organization
    });
    add_missing(&mut keys, known.flat_map(|item| item.role_keys.iter().cloned()));
    Some(Wanted::project_grant(project, organization, keys))
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
