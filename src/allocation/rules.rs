//! Effective rules, cached: what [`decide`](crate::policy::decide) needs to know of
//! a subject, without a statement once it is known.
//!
//! An entry is good while nothing of its account has changed: the change feed bumps
//! the account's epoch, and an entry loaded under an older one is loaded anew. A
//! load that was under way during the change carries the older epoch as well, so
//! it cannot hide it. A change of this process has bumped the epoch when its commit
//! returns, so that what was answered holds for the next request. A time limit
//! stands behind the feed. While the database is away, what it said last is believed for
//! longer: nobody could have changed it here, and requests within leases go on.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kept::{Kept, Outage};
use moka::future::Cache;

use super::AllocationConfig;
use crate::clock::Timestamp;
use crate::context::{Actor, Context, Domain, Granted, Tenant};
use crate::id::Id;
use crate::model::accounts::{Account, AccountStatus, ZitadelConfig};
use crate::model::agents::Agent;
use crate::model::audit::Action;
use crate::model::connections::Connection;
use crate::model::directory::{Team, User};
use crate::model::guardrails::GuardrailPreset;
use crate::model::scope::{Scope, ScopeType};
use crate::policy::Rules;
use crate::policy::guardrails::{CompiledPreset, Guardrails, PresetSource};
use crate::problem::Problem;
use crate::store::audit::Entry;
use crate::store::changes::{Change, ChangeKind};
use crate::store::directory::PlacementError;
use crate::store::{Store, StoreError, Tx};

mod kept;
mod terms;

pub use terms::RuleTerms;

/// An account and how tokens are bound to it.
#[derive(Debug, Clone)]
pub struct AccountFacts {
    /// The account.
    pub account: Account,
    /// Its Zitadel settings, where enabled.
    pub zitadel: Option<ZitadelConfig>,
    /// Whether it is bound to Zitadel and the binding is switched off.
    pub binding_is_off: bool,
    /// Addresses of former admins: what was issued to them before counts no more.
    cut_off: HashMap<String, Timestamp>,
}

impl AccountFacts {
    /// Whether it is suspended.
    pub fn suspended(&self) -> bool {
        self.account.status == AccountStatus::Suspended
    }

    /// Since when a verified e-mail address is cut off in the account.
    pub fn cut_off(&self, email: &str) -> Option<Timestamp> {
        if self.cut_off.is_empty() { None } else { self.cut_off.get(&email.to_lowercase()).copied() }
    }

    /// The issuer that it is bound to, whose tokens alone are for it.
    pub fn issuer(&self) -> Option<&str> {
        self.zitadel.as_ref()?.issuer.as_deref()
    }
}

/// Why there are no rules.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RulesError {
    /// The account is gone.
    #[error("the account does not exist")]
    AccountUnknown,
    /// The subject is no member of the team that was asked for.
    #[error("not a member of the team")]
    TeamDenied,
    /// The store failed.
    #[error(transparent)]
    Store(Arc<StoreError>),
}

impl RulesError {
    /// Whether the database could not be asked.
    fn is_outage(&self) -> bool {
        matches!(self, Self::Store(error) if matches!(**error, StoreError::Unavailable(_)))
    }
}

impl From<StoreError> for RulesError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<PlacementError> for RulesError {
    fn from(error: PlacementError) -> Self {
        match error {
            PlacementError::TeamDenied => Self::TeamDenied,
            PlacementError::Store(error) => error.into(),
        }
    }
}

impl From<RulesError> for Problem {
    fn from(error: RulesError) -> Self {
        match error {
            RulesError::AccountUnknown => account_unknown(),
            RulesError::TeamDenied => PlacementError::TeamDenied.into(),
            RulesError::Store(error) => {
                tracing::warn!(error = &*error as &dyn std::error::Error, "effective rules cannot be read");
                Self::unavailable("store_unavailable", "The database cannot be reached; try again", 1)
            }
        }
    }
}

/// 403 for a token of no account of this installation.
pub fn account_unknown() -> Problem {
    Problem::forbidden(
        "account_unknown",
        "Your token belongs to no account here: ask the operator to create one for your organization",
    )
}

/// 403 for an operator who names an account that does not exist.
pub(crate) fn no_such_account() -> Problem {
    Problem::forbidden(
        "account_unknown",
        "X-Account-Id names no account: send the id of an account, or of the Zitadel organization that it is bound to",
    )
}

/// 403 for a caller without an account: an operator is to name one.
pub(crate) fn without_account(is_operator: bool) -> Problem {
    if !is_operator {
        return account_unknown();
    }
    Problem::forbidden("account_context_required", "Name the account to act in by the header X-Account-Id")
}

/// Whose rules are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The account.
    pub account: Id<Account>,
    /// The product domain.
    pub domain: Domain,
    /// Who.
    pub actor: Actor,
    /// The team that was asked for.
    pub team: Option<Id<Team>>,
    /// The agent that was asked for.
    pub agent: Option<Id<Agent>>,
    /// The connection that was asked for.
    pub connection: Option<Id<Connection>>,
}

/// At which state of an account something was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(u64, u64);

/// The cache of rules.
#[derive(Debug, Clone)]
pub struct RuleBook(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    terms: RuleTerms,
    accounts: Kept<(Box<str>, u64), Option<Arc<AccountFacts>>>,
    subjects: Kept<(Subject, Epoch), Arc<Rules>>,
    /// Presets that say the same are compiled once, whosever they are.
    presets: Cache<Arc<PresetSource>, Arc<CompiledPreset>>,
    epochs: Arc<Epochs>,
    loads: AtomicU64,
}

/// Counters that change when what they stand for changes.
#[derive(Debug)]
struct Epochs {
    /// Any account came, went or changed its binding.
    accounts: AtomicU64,
    everything: AtomicU64,
    /// By the account's hash: a neighbour in the same slot costs one load too many.
    slots: Box<[AtomicU64]>,
    hasher: foldhash::fast::FixedState,
}

const SLOTS: usize = 4_096;

/// How many compiled presets are kept beyond those in use.
const PRESETS: u64 = 1_024;

impl Epochs {
    fn new() -> Self {
        Self {
            accounts: AtomicU64::new(0),
            everything: AtomicU64::new(0),
            slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            hasher: foldhash::fast::FixedState::default(),
        }
    }

    fn slot(&self, account: &Id<Account>) -> Option<&AtomicU64> {
        let hash = self.hasher.hash_one(account.as_str());
        self.slots.get(usize::try_from(hash % SLOTS as u64).unwrap_or(0))
    }

    fn of(&self, account: &Id<Account>) -> Epoch {
        let own = self.slot(account).map_or(0, |slot| slot.load(Ordering::Acquire));
        Epoch(self.everything.load(Ordering::Acquire), own)
    }

    fn bump(&self, change: &Change) {
        match change.kind {
            ChangeKind::Everything => {
                self.everything.fetch_add(1, Ordering::AcqRel);
                self.accounts.fetch_add(1, Ordering::AcqRel);
            }
            // Deny-lists and leases are kept elsewhere; the others are no rules of the data plane.
            ChangeKind::Revocations | ChangeKind::Leases | ChangeKind::Marketplace | ChangeKind::Alerts => {}
            ChangeKind::Account
            | ChangeKind::Directory
            | ChangeKind::Budget
            | ChangeKind::Models
            | ChangeKind::Features
            | ChangeKind::Agents
            | ChangeKind::Connections
            | ChangeKind::Guardrails => {
                if change.kind == ChangeKind::Account {
                    self.accounts.fetch_add(1, Ordering::AcqRel);
                }
                if let Some(slot) = self.slot(&change.account) {
                    slot.fetch_add(1, Ordering::AcqRel);
                }
            }
        }
    }
}

impl RuleBook {
    /// An empty cache over `store`, whose changes it follows.
    pub fn new(store: Store, config: &AllocationConfig, terms: RuleTerms) -> Self {
        let ttl = Duration::from_secs(config.rules_ttl_seconds.max(1));
        let grace = Duration::from_secs(config.rules_stale_seconds);
        let outage = Outage::of(store.clone());
        let epochs = Arc::new(Epochs::new());
        let watched = Arc::clone(&epochs);
        store.on_change(move |change| watched.bump(change));
        Self(Arc::new(Inner {
            store,
            terms,
            accounts: Kept::new(config.rules_capacity, ttl, grace, Arc::clone(&outage)),
            subjects: Kept::new(config.rules_capacity, ttl, grace, outage),
            presets: Cache::builder().max_capacity(PRESETS).time_to_idle(Duration::from_secs(3600)).build(),
            epochs,
            loads: AtomicU64::new(0),
        }))
    }

    /// Whether what was read at `epoch` still holds.
    pub fn is_current(&self, account: &Id<Account>, epoch: Epoch) -> bool {
        self.0.epochs.of(account) == epoch
    }

    /// The state of an account, to be taken before reading what depends on it.
    pub fn epoch(&self, account: &Id<Account>) -> Epoch {
        self.0.epochs.of(account)
    }

    /// The state of all accounts' bindings to tokens.
    pub fn bindings_epoch(&self) -> u64 {
        self.0.epochs.accounts.load(Ordering::Acquire)
    }

    /// How often rules were read from the database.
    pub fn loads(&self) -> u64 {
        self.0.loads.load(Ordering::Relaxed)
    }

    /// The account whose id, or whose Zitadel organisation, is `key`.
    ///
    /// # Errors
    /// [`RulesError::Store`].
    pub async fn account(&self, key: &str) -> Result<Option<Arc<AccountFacts>>, RulesError> {
        let inner = &self.0;
        let entry = (Box::from(key), inner.epochs.accounts.load(Ordering::Acquire));
        inner.accounts.get(entry, inner.load_account(key)).await
    }

    /// The effective rules of a subject.
    ///
    /// # Errors
    /// [`RulesError`].
    pub async fn rules(&self, subject: &Subject) -> Result<Arc<Rules>, RulesError> {
        let inner = &self.0;
        let entry = (subject.clone(), inner.epochs.of(&subject.account));
        let load = || inner.subjects.get(entry.clone(), inner.load_rules(subject));
        let known = load().await?;
        if known.chain.holds_at(inner.store.now()) {
            return Ok(known);
        }
        // A window has ended, or an override has.
        inner.subjects.forget(&entry).await;
        load().await
    }

    /// Gives a caller whom the directory does not know a row in it, and says whether it
    /// has made one: a subject of the account itself, in a domain that they may use. A
    /// row that cannot be made refuses nobody.
    pub async fn enrol(&self, caller: &Context, subject: &Subject) -> bool {
        let of_the_account = !caller.is_super_admin() && caller.check_domain(subject.domain).is_ok();
        let Some(granted) = caller.member().ok().filter(|_| of_the_account) else { return false };
        self.0.enrol(&granted, subject).await.unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "a caller cannot be put into the directory");
            false
        })
    }
}

impl Inner {
    async fn enrol(&self, granted: &Granted<Tenant>, subject: &Subject) -> Result<bool, StoreError> {
        let mut tx = self.store.begin(granted).await?;
        let Some(user) = tx.enrol_user(subject.domain, &subject.actor).await? else { return Ok(false) };
        let label = subject.domain.into();
        let entry = Entry { action: Action::Create, table: "Alchemi_UserTable", id: user.id.as_str(), label };
        tx.audit(entry, None::<&User>, &user).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn load_account(&self, key: &str) -> Result<Option<Arc<AccountFacts>>, RulesError> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        let mut tx = self.store.read(&Granted::system()).await?;
        let Some(account) = tx.account_by_id_or_organization(key).await? else { return Ok(None) };
        let mut tx = tx.within(account.account_id.clone());
        let bound = tx.zitadel_config().await?.map(|config| config.value);
        let binding_is_off = bound.as_ref().is_some_and(|config| !config.enabled);
        let (zitadel, cut_off) = (bound.filter(|config| config.enabled), tx.cut_off_addresses().await?);
        Ok(Some(Arc::new(AccountFacts { account, zitadel, binding_is_off, cut_off })))
    }

    /// The first to read after the end of a window carries over what it has left.
    async fn load_rules(&self, subject: &Subject) -> Result<Arc<Rules>, RulesError> {
        let rules = self.read_rules(subject).await?;
        if !rules.budget.rollover_is_due(self.store.now()) {
            return Ok(rules);
        }
        match self.store.roll_over(&subject.account).await {
            Ok(_) => self.read_rules(subject).await,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error, account = %subject.account,
                    "what a window has left cannot be carried over; the next one tries again"
                );
                Ok(rules)
            }
        }
    }

    async fn read_rules(&self, subject: &Subject) -> Result<Arc<Rules>, RulesError> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        let Subject { account, domain, actor, team, agent, connection } = subject;
        let mut tx = self.store.read(&Granted::system().over(account.clone())).await?;
        let row = tx.this_account().await?.ok_or(RulesError::AccountUnknown)?;
        let placement = tx.placement(*domain, &actor.subject, actor.email.as_deref(), team.as_ref()).await?;
        let companions = (agent.as_ref(), connection.as_ref());
        let mut rules = self.terms.rules(&mut tx, row, *domain, placement, companions).await?;
        rules.guardrails = self.guardrails(&mut tx, &rules).await?;
        Ok(Arc::new(rules))
    }

    /// The presets of the agent, the user, the team, the org and the account, each once.
    /// Presets are the copilot's; what is assigned to the account holds in the console
    /// too, so that naming another domain is no way around it.
    async fn guardrails(&self, tx: &mut Tx<Tenant>, rules: &Rules) -> Result<Guardrails, StoreError> {
        let mut scopes = rules.placement.scopes(&rules.account);
        if let Some(agent) = rules.agent.as_ref().filter(|agent| agent.allowed) {
            scopes.insert(0, Scope::new(ScopeType::Agent, agent.id.as_str()));
        }
        let mut presets = Vec::new();
        for assigned in tx.assigned_presets(&scopes).await? {
            if !presets.iter().any(|known: &GuardrailPreset| known.id == assigned.preset.id) {
                presets.push(assigned.preset);
            }
        }
        let ids: Vec<_> = presets.iter().map(|preset| preset.id.clone()).collect();
        let patterns = tx.patterns_of_presets(&ids).await?;
        let mut compiled = Vec::new();
        for source in presets.iter().map(|preset| PresetSource::new(preset, &patterns)).filter(|s| !s.is_empty()) {
            compiled.push(self.compiled(Arc::new(source)).await?);
        }
        Ok(Guardrails::new(compiled))
    }

    /// Compiled where no request waits.
    async fn compiled(&self, source: Arc<PresetSource>) -> Result<Arc<CompiledPreset>, StoreError> {
        let compiling = {
            let source = Arc::clone(&source);
            async move { tokio::task::spawn_blocking(move || Arc::new(source.compile())).await }
        };
        let compiled = self.presets.try_get_with(source, compiling).await;
        compiled.map_err(|error| StoreError::Unavailable(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::databases;

    #[tokio::test]
    async fn what_a_commit_changed_is_seen_when_it_returns() {
        for fresh in databases().await {
            let book = RuleBook::new(fresh.store.clone(), &AllocationConfig::default(), RuleTerms::default());
            let account = fresh.account("Acme").await;
            assert!(book.account(account.as_str()).await.unwrap().is_some());
            let (epoch, bindings) = (book.epoch(&account), book.bindings_epoch());
            fresh.remove(&account).await;
            assert!(!book.is_current(&account, epoch));
            assert!(book.bindings_epoch() > bindings);
            assert!(book.account(account.as_str()).await.unwrap().is_none());
        }
    }
}
