//! The change feed: what a commit changed, for caches in every process.
//!
//! Within this process a commit tells its listeners before it returns. On SQLite
//! there is no other process. On PostgreSQL the same rides on `NOTIFY`, and a lost connection is reported as
//! [`ChangeKind::Everything`]: whoever listens must then assume the worst. A
//! cache keeps a time limit beside the feed all the same.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::broadcast;

use super::{Pools, Result};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::scope::Scope;
#[cfg(feature = "postgres")]
use crate::model::scope::ScopeType;

#[cfg(feature = "postgres")]
pub(super) const CHANNEL: &str = "alchemi_changes";

/// How many changes a slow listener may lag behind before it is told `Everything`.
const BACKLOG: usize = 4_096;

/// What kind of rows changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// The account itself: status, names, Zitadel binding, policies.
    Account,
    /// Orgs, teams, users, memberships.
    Directory,
    /// Account allocation, plans, allocations, overrides.
    Budget,
    /// Model grants.
    Models,
    /// Feature entitlements.
    Features,
    /// Agents and their grants.
    Agents,
    /// Which connections there are, and their grants.
    Connections,
    /// Guardrail presets, patterns, assignments.
    Guardrails,
    /// Listings of the marketplace, whom they are for, their counters.
    Marketplace,
    /// Cut-off tokens.
    Revocations,
    /// Where alerts are sent, or that one is to be.
    Alerts,
    /// Nothing: somebody asks for what lies idle in leases on a scope.
    Leases,
    /// Unknown: the feed was interrupted.
    Everything,
}

#[cfg(feature = "postgres")]
impl ChangeKind {
    const ALL: [Self; 13] = [
        Self::Account,
        Self::Directory,
        Self::Budget,
        Self::Models,
        Self::Features,
        Self::Agents,
        Self::Connections,
        Self::Guardrails,
        Self::Marketplace,
        Self::Revocations,
        Self::Alerts,
        Self::Leases,
        Self::Everything,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Directory => "directory",
            Self::Budget => "budget",
            Self::Models => "models",
            Self::Features => "features",
            Self::Agents => "agents",
            Self::Connections => "connections",
            Self::Guardrails => "guardrails",
            Self::Marketplace => "marketplace",
            Self::Revocations => "revocations",
            Self::Alerts => "alerts",
            Self::Leases => "leases",
            Self::Everything => "everything",
        }
    }
}

/// One line of the feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Whose rows.
    pub account: Id<Account>,
    /// Which rows.
    pub kind: ChangeKind,
    /// Of [`ChangeKind::Leases`], the scope that runs short.
    pub scope: Option<Scope>,
}

impl Change {
    /// What a listener assumes when it may have missed something.
    pub fn everything() -> Self {
        Self::of(Id::nobody(), ChangeKind::Everything)
    }

    /// `kind` of `account` has changed.
    pub fn of(account: Id<Account>, kind: ChangeKind) -> Self {
        Self { account, kind, scope: None }
    }

    #[cfg(feature = "postgres")]
    pub(super) fn encode(&self) -> String {
        let scope = self.scope.as_ref().map(|scope| format!(" {scope}")).unwrap_or_default();
        format!("{} {}{scope}", self.kind.as_str(), self.account)
    }

    #[cfg(feature = "postgres")]
    fn decode(text: &str) -> Self {
        // A scope's id comes last: it may have spaces in it.
        let mut words = text.splitn(4, ' ');
        let mut word = || words.next().unwrap_or_default();
        let (kind, account, scope_type, scope_id) = (word(), word(), word(), word());
        match ChangeKind::ALL.into_iter().find(|k| k.as_str() == kind) {
            Some(kind) => {
                let scope_type = ScopeType::parse(scope_type, &ScopeType::ALL).ok();
                let scope = scope_type.map(|scope_type| Scope::new(scope_type, scope_id));
                Self { account: Id::stored(account), kind, scope }
            }
            None => Self::everything(),
        }
    }
}

/// How long the change feed waits between two attempts to be heard of again.
#[cfg(feature = "postgres")]
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_millis(250);

type Watcher = Box<dyn Fn(&Change) + Send + Sync>;

/// Whoever wants to know.
struct Audience {
    sender: broadcast::Sender<Change>,
    /// Called before the commit that made the change returns.
    watchers: RwLock<Vec<Watcher>>,
}

impl Audience {
    fn tell(&self, change: Change) {
        for watch in &*self.watchers.read().unwrap_or_else(PoisonError::into_inner) {
            watch(&change);
        }
        // An error only says that nobody listens.
        let _ = self.sender.send(change);
    }
}

pub(super) struct ChangeFeed {
    audience: Arc<Audience>,
    #[cfg(feature = "postgres")]
    _listener: Option<AbortOnDrop>,
}

#[cfg(feature = "postgres")]
struct AbortOnDrop(tokio::task::JoinHandle<()>);

#[cfg(feature = "postgres")]
impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ChangeFeed {
    pub(super) async fn start(pools: &Pools) -> Result<Self> {
        let (sender, _) = broadcast::channel(BACKLOG);
        let audience = Arc::new(Audience { sender, watchers: RwLock::default() });
        Ok(match pools {
            #[cfg(feature = "sqlite")]
            Pools::Sqlite { .. } => Self {
                audience,
                #[cfg(feature = "postgres")]
                _listener: None,
            },
            #[cfg(feature = "postgres")]
            Pools::Postgres(pool) => {
                let listener = listener(pool).await?;
                let listening = tokio::spawn(listen(listener, pool.clone(), Arc::clone(&audience)));
                Self { audience, _listener: Some(AbortOnDrop(listening)) }
            }
        })
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.audience.sender.subscribe()
    }

    pub(super) fn watch(&self, watcher: Watcher) {
        self.audience.watchers.write().unwrap_or_else(PoisonError::into_inner).push(watcher);
    }

    /// Tells this process at once; on PostgreSQL the notification follows and says
    /// the same again, which costs a cache one more look.
    pub(super) fn publish(&self, changes: &[Change]) {
        for change in changes {
            self.audience.tell(change.clone());
        }
    }
}

/// A connection of its own that hears of changes.
#[cfg(feature = "postgres")]
async fn listener(pool: &sqlx::PgPool) -> sqlx::Result<sqlx::postgres::PgListener> {
    let mut listener = sqlx::postgres::PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

/// While the database is away nobody is told anything: what is known stays in use, for as
/// long as its own time says. When it is back, what passed meanwhile is unknown.
#[cfg(feature = "postgres")]
async fn listen(mut heard: sqlx::postgres::PgListener, pool: sqlx::PgPool, audience: Arc<Audience>) {
    loop {
        match heard.try_recv().await {
            Ok(Some(notification)) => {
                audience.tell(Change::decode(notification.payload()));
                continue;
            }
            // The connection was lost, and is there again.
            Ok(None) => {}
            Err(sqlx::Error::PoolClosed) => return,
            Err(error) => {
                tracing::warn!(%error, "the change feed is interrupted");
                heard = loop {
                    match listener(&pool).await {
                        Ok(listener) => break listener,
                        Err(sqlx::Error::PoolClosed) => return,
                        Err(_) => tokio::time::sleep(RETRY_AFTER).await,
                    }
                };
            }
        }
        audience.tell(Change::everything());
    }
}
