//! What came of an attempt at an item.

use std::time::Duration;

use serde_json::{Value, json};

use crate::model::provision::{ItemState, NOT_LISTED_YET, ProvisionItem, add_missing};
use crate::zitadel::{Code, Error, FoundUser};

/// Why an item is not as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// Zitadel's own word.
    #[error("{0}")]
    Remote(Error),
    /// Its word on a grant: the state of things does not allow it.
    #[error("{0}: the project may lack the role, or the organisation may not grant it, or there is no such user")]
    NotGrantable(Error),
    /// Its word on a grant whose role or project grant is still to be made.
    #[error("the role, or that the organisation may grant it, is still to be made")]
    Waiting,
    /// Nobody has the e-mail address.
    #[error("no active user of Zitadel has this e-mail address")]
    UserNotFound,
    /// Several have it.
    #[error("several users of Zitadel have this e-mail address; grant the right one by id")]
    AmbiguousEmail(Vec<FoundUser>),
    /// Zitadel says that it exists and does not show it.
    #[error("Zitadel says that the grant exists but lists none; it must be put right there")]
    NotListed,
    /// Somebody has deactivated it.
    #[error("the grant is deactivated in Zitadel; activate it there, or remove it")]
    Deactivated,
    /// Lists do not show what was written.
    #[error("Zitadel does not list yet what was written")]
    Lagging,
    /// Somebody else writes it all the time.
    #[error("somebody else changes the grant at the same time")]
    Racing,
}

impl Why {
    /// A stable word for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Remote(error) | Self::NotGrantable(error) => error.code(),
            Self::Waiting => "rests_on_pending",
            Self::UserNotFound => "user_id_not_found",
            Self::AmbiguousEmail(_) => "ambiguous_email",
            Self::NotListed => "exists_but_not_listed",
            Self::Deactivated => "grant_deactivated",
            Self::Lagging => NOT_LISTED_YET,
            Self::Racing => "changed_meanwhile",
        }
    }

    const fn state(&self) -> ItemState {
        match self {
            Self::Remote(Error::Refused { .. }) | Self::NotGrantable(_) | Self::UserNotFound => ItemState::Failed,
            Self::Remote(_) | Self::Waiting | Self::Lagging | Self::Racing => ItemState::Pending,
            Self::AmbiguousEmail(_) | Self::NotListed | Self::Deactivated => ItemState::Conflict,
        }
    }

    pub(super) fn of_grant(error: Error) -> Self {
        match error {
            Error::Refused { code: Code::FailedPrecondition, .. } => Self::NotGrantable(error),
            other => Self::Remote(other),
        }
    }
}

impl From<Error> for Why {
    fn from(error: Error) -> Self {
        Self::Remote(error)
    }
}

/// What was done in Zitadel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Did {
    /// Made.
    Created,
    /// Changed.
    Updated,
    /// Removed.
    Removed,
    /// Nothing: it was so.
    Nothing,
}

/// What came of an attempt, or has come of it so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub(super) result: Result<Did, Why>,
    pub(super) user: Option<String>,
    pub(super) grant: Option<String>,
    /// What was written in Zitadel, and whether it has said so: an answer may be lost.
    wrote: Option<(Did, bool)>,
    /// Roles that a write has taken, or may have.
    lost: Vec<String>,
    /// Whether roles were to be taken back: perhaps an earlier attempt did it and could not say so.
    pub(super) retires: bool,
}

impl Outcome {
    /// Of an attempt that has not ended: if it never does, Zitadel was too slow.
    pub(super) fn begun(user: Option<String>) -> Self {
        let result = Err(Why::Remote(Error::Timeout));
        Self { result, user, grant: None, wrote: None, lost: Vec::new(), retires: false }
    }

    pub(super) fn did(did: Did) -> Self {
        Self { result: Ok(did), ..Self::begun(None) }
    }

    /// Sends a write that takes roles. While it is under way, and where its answer is lost, it may
    /// have been done; what was refused took nothing.
    pub(super) async fn sends<T>(
        &mut self,
        did: Did,
        takes: &[String],
        write: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let (wrote, lost) = (self.wrote, self.lost.len());
        self.may_have_written(did);
        add_missing(&mut self.lost, takes.iter().cloned());
        let written = write.await;
        match &written {
            Ok(_) => self.wrote = Some((did, true)),
            Err(error) => {
                let may_be_done = error.is_ambiguous() || error.is_transient();
                if !may_be_done || matches!(error, Error::Throttled(_)) {
                    self.wrote = wrote;
                }
                if !error.is_ambiguous() {
                    self.lost.truncate(lost);
                }
            }
        }
        written
    }

    /// Whether a write was sent that no list has shown.
    pub(super) fn is_unlisted(&self) -> bool {
        self.wrote.is_some() && self.result.is_err()
    }

    /// A write may have been done although it was not answered so.
    pub(super) fn may_have_written(&mut self, did: Did) {
        self.wrote = self.wrote.or(Some((did, false)));
    }

    /// What another process has come to: that the item is so, if it is.
    pub fn elsewhere(item: &ProvisionItem) -> Option<Self> {
        let user = item.user_id.clone();
        (item.state == ItemState::Applied).then(|| Self { user, ..Self::did(Did::Nothing) })
    }

    /// What was done, or why it is not so.
    ///
    /// # Errors
    /// [`Why`].
    pub fn result(&self) -> Result<Did, &Why> {
        self.result.as_ref().copied()
    }

    pub(super) fn why(&self) -> Option<&Why> {
        self.result.as_ref().err()
    }

    /// How far the item is.
    pub fn item_state(&self) -> ItemState {
        self.why().map_or(ItemState::Applied, Why::state)
    }

    /// The user, once known.
    pub fn user_id(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The grant, where there is one.
    pub fn grant_id(&self) -> Option<&str> {
        self.grant.as_deref()
    }

    /// The user, if they have lost a role.
    pub(super) fn lost_roles(&self) -> Option<&str> {
        let retired = self.retires && self.result.is_ok();
        self.user.as_deref().filter(|_| retired || !self.lost.is_empty())
    }

    /// Whether Zitadel does not allow the grant: for good, or until what it rests on is made.
    pub(super) fn is_not_grantable(&self) -> bool {
        matches!(self.why(), Some(Why::NotGrantable(_)))
    }

    /// What it rests on is still to be made.
    pub(super) fn waits(&mut self) {
        self.result = Err(Why::Waiting);
    }

    pub(super) fn asked_pause(&self) -> Duration {
        match self.why() {
            Some(Why::Remote(error)) => error.retry_after().unwrap_or_default(),
            _ => Duration::ZERO,
        }
    }

    /// What the audit says, if anything was written.
    pub(super) fn audit(&self, item: &ProvisionItem) -> Option<Value> {
        let (did, confirmed) = self.wrote?;
        let did = match did {
            Did::Created => "created",
            Did::Updated => "updated",
            Did::Removed => "removed",
            Did::Nothing => return None,
        };
        Some(json!({
            "zitadel": did, "confirmed": confirmed, "kind": item.kind, "project_id": item.project_id,
            "organization_id": item.organization_id, "target": item.target, "user_id": self.user,
            "role_keys": item.role_keys, "taken_back": self.lost,
        }))
    }
}
