//! Making it so in Zitadel: the roles, project grants and user grants that accounts want.
//!
//! What is wanted is written first ([`Tx::want`](crate::store::Tx::want)); then it is made so, by the
//! request that wanted it while its caller waits, and by [`Provisioner::run`] ever after:
//! a process that dies in between, or a Zitadel that is down, only delays it. One gateway
//! at a time writes into a project, because Zitadel itself does not take parallel writes
//! there, and because an update replaces all roles of a grant:
//!
//! 1. Look: what is so already is left alone.
//! 2. Write the union of what is there and what is wanted, without what is to be taken
//!    back; nobody else's roles are touched.
//! 3. Look again until lists show it, so that the next writer does not build on less.
//!
//! A user who loses a role here is cut off: tokens that still say so are refused.

mod apply;
mod outcome;
mod remote;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

pub use self::outcome::{Did, Outcome, Why};
pub use self::remote::{Remote, UserLookup};
use crate::clock::Timestamp;
use crate::context::{Granted, Tenant};
use crate::id::{IdSource, RandomIds};
use crate::model::provision::{ItemKind, ItemState, ProvisionItem};
use crate::model::revocations::Revocation;
use crate::store::provision::Attempt;
use crate::store::{Store, StoreError, Tx};
use crate::zitadel::Management;

/// How long the right to write into a project lasts; it is renewed meanwhile.
const LEASE: Duration = Duration::from_secs(15);
/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(4);
/// How often other gateways' wishes are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How long one item may take.
const ITEM_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest pause before another attempt, while Zitadel cannot be reached, and when it refuses.
const LONGEST: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3_600));

/// How long it is known what came of an item.
const LATELY: Duration = Duration::from_secs(120);

/// How long a write that no list has shown is reckoned with.
const UNLISTED: Duration = Duration::from_secs(30);

/// Told of a subject that is cut off: issuer, subject, moment.
type CutOff = dyn Fn(&str, &str, Timestamp) + Send + Sync;

/// Makes it so. Clones share everything.
#[derive(Clone)]
pub struct Provisioner(Arc<Inner>);

struct Inner {
    store: Store,
    management: Management,
    /// The platform's own: one instance has an issuer for each of its domains, and a subject is the
    /// same in all of them.
    issuers: Vec<String>,
    cut_off: Option<Box<CutOff>>,
    /// Who holds leases: this process.
    holder: String,
    wake: Notify,
    /// Writers of this process into a project take turns, item by item.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// What came of items lately, by id and version: whoever waits for one may not be who did it.
    lately: moka::sync::Cache<(String, i64), Outcome>,
    /// Items of which a write was sent that no list has shown: it may still come to light.
    unlisted: moka::sync::Cache<String, ()>,
}

/// What came of items, by their id.
pub type Outcomes = HashMap<String, Outcome>;

impl fmt::Debug for Provisioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provisioner").field("management", &self.0.management).finish_non_exhaustive()
    }
}

impl Provisioner {
    /// A provisioner of what `store` wants. Who loses a role in an account that is bound to no issuer
    /// is cut off at each of `issuers`, the platform's own.
    pub fn new(store: Store, management: Management, issuers: Vec<String>) -> Self {
        let holder = RandomIds.uuid(Timestamp::default()).to_string();
        let lately = moka::sync::Cache::builder().max_capacity(10_000).time_to_live(LATELY).build();
        let unlisted = moka::sync::Cache::builder().max_capacity(10_000).time_to_live(UNLISTED).build();
        let (wake, turns) = (Notify::new(), Mutex::default());
        Self(Arc::new(Inner { store, management, issuers, cut_off: None, holder, wake, turns, lately, unlisted }))
    }

    /// With what makes a cut-off hold in this process at once. To be called before it is shared.
    #[must_use]
    pub fn with_cut_off(self, tell: impl Fn(&str, &str, Timestamp) + Send + Sync + 'static) -> Self {
        match Arc::try_unwrap(self.0) {
            Ok(inner) => Self(Arc::new(Inner { cut_off: Some(Box::new(tell)), ..inner })),
            Err(shared) => Self(shared),
        }
    }

    /// Zitadel's side.
    pub fn management(&self) -> &Management {
        &self.0.management
    }

    /// What Zitadel holds, as far as it can be told.
    pub fn remote(&self) -> Remote<'_> {
        Remote::new(&self.0.management)
    }

    /// Has it looked at what is due now; after a commit that wants something.
    pub fn wake(&self) {
        self.0.wake.notify_one();
    }

    /// Makes it so until the process ends. Without credentials, never.
    pub async fn run(self) {
        if !self.0.management.is_configured() {
            return;
        }
        loop {
            if let Err(error) = self.round().await {
                tracing::warn!(error = &error as &dyn std::error::Error, "provisioning: the store cannot be read");
            }
            tokio::select! {
                () = self.0.wake.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Makes everything so that is due, once; whether there was anything.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn run_once(&self) -> Result<bool, StoreError> {
        self.round().await
    }

    /// Makes a project's items so while the caller waits for `items`, at most for `patience`.
    /// What then is not so is made so later.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn converge(
        &self,
        project: &str,
        items: &[ProvisionItem],
        patience: Duration,
    ) -> Result<Outcomes, StoreError> {
        if !self.0.management.is_configured() {
            return Ok(Outcomes::new());
        }
        let until = Instant::now() + patience;
        loop {
            let turn = self.project(project, Some(until));
            let all = tokio::time::timeout_at(until, turn).await.unwrap_or(Ok(true))?;
            if all || Instant::now() >= until {
                break;
            }
            // Another gateway is at it.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.wake();
        let known = |item: &ProvisionItem| {
            let id = item.id.to_string();
            self.0.lately.get(&(id.clone(), item.version)).map(|outcome| (id, outcome))
        };
        Ok(items.iter().filter_map(known).collect())
    }

    /// Everything that is due, once; whether there was anything.
    async fn round(&self) -> Result<bool, StoreError> {
        let projects = self.0.store.read(&Granted::system()).await?.due_projects().await?;
        for project in &projects {
            self.project(project, None).await?;
        }
        Ok(!projects.is_empty())
    }

    /// Makes what is due in a project so; false when another gateway is at it.
    async fn project(&self, project: &str, until: Option<Instant>) -> Result<bool, StoreError> {
        let system = Granted::system();
        let turns = {
            let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(project.to_owned()).or_default())
        };
        loop {
            let turn = Arc::clone(&turns).lock_owned().await;
            let item = self.0.store.read(&system).await?.due_item(project).await?;
            let Some(item) = item.filter(|_| until.is_none_or(|until| Instant::now() < until)) else {
                let mut tx = self.0.store.begin(&system).await?;
                tx.release_project(project, &self.0.holder).await?;
                tx.commit().await?;
                return Ok(true);
            };
            if !self.lease(project).await? {
                return Ok(false);
            }
            // Carried through, whether or not its caller still waits: what is written is noted.
            let (this, due) = (self.clone(), item.clone());
            let done = tokio::spawn(async move {
                let _turn = turn;
                this.item(&due).await
            });
            let done = done.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())));
            match done? {
                Some(outcome) => self.0.lately.insert((item.id.to_string(), item.version), outcome),
                None => return Ok(false),
            }
        }
    }

    async fn lease(&self, project: &str) -> Result<bool, StoreError> {
        let mut tx = self.0.store.begin(&Granted::system()).await?;
        let until = tx.now().plus(LEASE);
        let had = tx.lease_project(project, &self.0.holder, until).await?;
        tx.commit().await?;
        Ok(had)
    }

    /// Renews the lease; ends when it is lost.
    async fn keep_lease(&self, project: &str) -> Result<(), StoreError> {
        loop {
            tokio::time::sleep(RENEW).await;
            if !self.lease(project).await? {
                return Ok(());
            }
        }
    }

    /// One attempt at one item; none, where another gateway has taken over meanwhile. What it has
    /// written is audited, and who lost a role by it cut off, however it ended.
    async fn item(&self, item: &ProvisionItem) -> Result<Option<Outcome>, StoreError> {
        let active = self.0.store.read(&Granted::system()).await?.is_active(item).await?;
        let mut outcome = Outcome::begun(item.user_id.clone());
        let still_ours = {
            let work = tokio::time::timeout(ITEM_TIMEOUT, self.apply(item, active, &mut outcome));
            tokio::select! {
                // What is cut short leaves what it has come to so far.
                done = work => done.unwrap_or(Ok(())).map(|()| true),
                lost = self.keep_lease(&item.project_id) => lost.map(|()| false),
            }
        };
        if outcome.is_unlisted() {
            self.0.unlisted.insert(item.id.to_string(), ());
        } else if outcome.result().is_ok() {
            self.0.unlisted.invalidate(item.id.as_str());
        }
        let mut tx = self.0.store.begin(&Granted::system().over(item.account_id.clone())).await?;
        // First the account, as whoever changes it does: neither waits for the other in turn.
        let exists = tx.hold_account().await?.is_some();
        if outcome.is_not_grantable() && tx.rests_on_pending(item).await? {
            outcome.waits();
        }
        if let Some(change) = outcome.audit(item) {
            tx.note_write(item, &change).await?;
        }
        // Tokens from before a role was taken still show it.
        let cut = match outcome.lost_roles() {
            Some(user) => self.cut_off(&mut tx, user, "a role was taken back").await?,
            None => Vec::new(),
        };
        let still_ours = match still_ours {
            Ok(true) => {
                note(&mut tx, item, &outcome, exists).await?;
                Ok(true)
            }
            other => other,
        };
        tx.commit().await?;
        cut.iter().for_each(|cut| self.tell(cut));
        Ok(still_ours?.then_some(outcome))
    }

    /// Cuts off a subject's tokens of now and before, with the transaction's commit: those of
    /// the account's issuer, or of each of the platform's own where the account is bound to none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cut_off(
        &self,
        tx: &mut Tx<Tenant>,
        subject: &str,
        reason: &str,
    ) -> Result<Vec<Revocation>, StoreError> {
        let bound = tx.zitadel_config().await?.filter(|config| config.value.enabled);
        let issuers = match bound.and_then(|config| config.value.issuer) {
            Some(issuer) => vec![issuer],
            None => self.0.issuers.clone(),
        };
        let mut cut = Vec::with_capacity(issuers.len());
        for issuer in issuers {
            let revocation = Revocation {
                id: tx.new_id(),
                issuer,
                subject: subject.to_owned(),
                issued_before: tx.now(),
                reason: Some(reason.to_owned()),
                created_by: Some(tx.acting().actor.subject.to_string()),
                created_at: tx.now(),
            };
            cut.push(tx.put_revocation(&revocation).await?);
        }
        Ok(cut)
    }

    /// Whether there are credentials to make anything with.
    pub fn is_configured(&self) -> bool {
        self.0.management.is_configured()
    }

    /// Tells this process of a cut-off that is committed.
    pub fn tell(&self, cut: &Revocation) {
        if let Some(tell) = &self.0.cut_off {
            tell(&cut.issuer, &cut.subject, cut.issued_before);
        }
    }
}

/// How far an item is after an attempt. Of what nobody wants any more nothing is kept, and of a
/// deleted account only what is to be taken back.
async fn note(
    tx: &mut Tx<Tenant>,
    item: &ProvisionItem,
    outcome: &Outcome,
    account_exists: bool,
) -> Result<(), StoreError> {
    let attempt = attempt(item, outcome, tx.now());
    let is_retired = item.role_keys.is_empty() && item.kind == ItemKind::UserGrant;
    tx.note_attempt(item, &attempt, account_exists && !is_retired).await?;
    if attempt.state != ItemState::Applied {
        tracing::info!(
            account = %item.account_id, kind = item.kind.as_str(), state = attempt.state.as_str(),
            reason = attempt.reason.as_deref().unwrap_or_default(), "provisioning: not so yet"
        );
    }
    Ok(())
}

/// What is noted of an outcome.
fn attempt(item: &ProvisionItem, outcome: &Outcome, now: Timestamp) -> Attempt {
    let (state, why) = (outcome.item_state(), outcome.why());
    let doubled = |first: u64, longest: Duration| {
        let factor = 2_u64.saturating_pow(u32::try_from(item.attempts.clamp(0, 20)).unwrap_or(0));
        Duration::from_secs(first.saturating_mul(factor)).min(longest)
    };
    let pause = match state {
        ItemState::Applied => Duration::ZERO,
        ItemState::Pending => doubled(1, LONGEST.0),
        ItemState::Conflict | ItemState::Failed => doubled(15, LONGEST.1),
    };
    Attempt {
        state,
        reason: why.map(|why| why.code().to_owned()),
        detail: why.map(ToString::to_string),
        next_attempt_at: now.plus(pause.max(outcome.asked_pause().min(LONGEST.1))),
        user_id: outcome.user_id().map(str::to_owned),
    }
}
