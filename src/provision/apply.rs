//! One attempt at one item.

use std::time::Duration;

use serde_json::{Value, json};

use super::Provisioner;
use super::remote::UserLookup;
use crate::context::Granted;
use crate::model::provision::{ItemKind, ItemState, ProvisionItem, add_missing};
use crate::store::StoreError;
use crate::zitadel::{Code, Error, FoundUser, NewGrant, ProjectRole, UserGrant};

/// Pauses between looks at a list that may lag behind; in milliseconds.
const LOOKS: [u64; 7] = [50, 100, 200, 400, 800, 1_600, 3_200];

/// Before a grant that is gone is looked for again.
const RACE: Duration = Duration::from_millis(200);

/// How often a grant that changes under our hands is begun anew.
const RACES: u32 = 3;

/// Why an item is not as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// Zitadel's own word.
    #[error("{0}")]
    Remote(Error),
    /// Its word on a grant: the state of things does not allow it.
    #[error("{0}: the project may lack the role, or the organisation may not grant it, or there is no such user")]
    NotGrantable(Error),
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
            Self::UserNotFound => "user_id_not_found",
            Self::AmbiguousEmail(_) => "ambiguous_email",
            Self::NotListed => "exists_but_not_listed",
            Self::Deactivated => "grant_deactivated",
            Self::Lagging => "not_listed_yet",
            Self::Racing => "changed_meanwhile",
        }
    }

    const fn state(&self) -> ItemState {
        match self {
            Self::Remote(Error::Refused { .. }) | Self::NotGrantable(_) | Self::UserNotFound => ItemState::Failed,
            Self::Remote(_) | Self::Lagging | Self::Racing => ItemState::Pending,
            Self::AmbiguousEmail(_) | Self::NotListed | Self::Deactivated => ItemState::Conflict,
        }
    }
}

impl Why {
    fn of_grant(error: Error) -> Self {
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

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    result: Result<Did, Why>,
    user: Option<String>,
    grant: Option<String>,
    /// Roles that a write has taken, or may have.
    lost: Vec<String>,
    /// Whether roles were to be taken back: perhaps an earlier attempt did it and could not say so.
    retires: bool,
}

impl Outcome {
    pub(super) fn later(why: Why, user: Option<String>) -> Self {
        Self { result: Err(why), user, grant: None, lost: Vec::new(), retires: false }
    }

    fn did(did: Did) -> Self {
        Self { result: Ok(did), user: None, grant: None, lost: Vec::new(), retires: false }
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

    pub(super) fn asked_pause(&self) -> Duration {
        match self.why() {
            Some(Why::Remote(error)) => error.retry_after().unwrap_or_default(),
            _ => Duration::ZERO,
        }
    }

    /// What the audit says, if anything was done.
    pub(super) fn audit(&self, item: &ProvisionItem) -> Option<Value> {
        let did = match self.result {
            Ok(Did::Created) => "created",
            Ok(Did::Updated) => "updated",
            Ok(Did::Removed) => "removed",
            Ok(Did::Nothing) | Err(_) => return None,
        };
        Some(json!({
            "zitadel": did, "kind": item.kind, "project_id": item.project_id, "organization_id": item.organization_id,
            "target": item.target, "user_id": self.user, "role_keys": item.role_keys, "taken_back": self.lost,
        }))
    }
}

/// Where a user's grant is: an organisation's of a project's roles.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    project: &'a str,
    organization: &'a str,
    /// Whose the project is.
    owner: &'a str,
}

impl<'a> Place<'a> {
    fn of(item: &'a ProvisionItem, owner: &'a str) -> Self {
        Self { project: &item.project_id, organization: item.organization_id.as_deref().unwrap_or(owner), owner }
    }

    /// How items may name the organisation: the project's own need not be named.
    fn names(&self) -> [&'a str; 2] {
        [self.organization, if self.organization == self.owner { "" } else { self.organization }]
    }
}

impl Provisioner {
    /// One attempt. Of an account that is suspended or gone, every grant is taken back.
    pub(super) async fn apply(
        &self,
        item: &ProvisionItem,
        active: bool,
        known_user: Option<String>,
    ) -> Result<Outcome, StoreError> {
        let outcome = match item.kind {
            ItemKind::Role => self.role(item).await.map_or_else(|why| Outcome::later(why, None), Outcome::did),
            ItemKind::ProjectGrant => {
                self.project_grant(item).await.map_or_else(|why| Outcome::later(why, None), Outcome::did)
            }
            ItemKind::UserGrant => return self.user_grant(item, active, known_user).await,
        };
        Ok(outcome)
    }

    async fn role(&self, item: &ProvisionItem) -> Result<Did, Why> {
        let zitadel = self.management();
        let owner = zitadel.project_owner(&item.project_id, item.organization_id.as_deref()).await?;
        let roles = zitadel.roles(&item.project_id, &owner).await?;
        if roles.iter().any(|role| role.key == item.target) {
            return Ok(Did::Nothing);
        }
        let role = ProjectRole {
            key: item.target.clone(),
            display_name: item.display_name.clone().unwrap_or_else(|| item.target.clone()),
            group: item.role_group.clone(),
        };
        match zitadel.add_role(&item.project_id, &owner, &role).await {
            Ok(()) => Ok(Did::Created),
            // The list lags behind, or an earlier answer was lost.
            Err(error) if error.already_exists() => Ok(Did::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    async fn project_grant(&self, item: &ProvisionItem) -> Result<Did, Why> {
        let zitadel = self.management();
        let (project, organization) = (&item.project_id, &item.target);
        let owner = zitadel.project_owner(project, Some(organization)).await?;
        if owner == *organization {
            return Ok(Did::Nothing);
        }
        for pause in LOOKS {
            if let Some(grant) = zitadel.project_grant(project, &owner, organization).await? {
                let mut keys = grant.role_keys.clone();
                add_missing(&mut keys, item.role_keys.iter().cloned());
                if keys == grant.role_keys {
                    return Ok(Did::Nothing);
                }
                zitadel.set_project_grant(project, &owner, &grant, &keys).await?;
                self.until_grantable(project, &owner, organization, &keys).await?;
                return Ok(Did::Updated);
            }
            match zitadel.add_project_grant(project, &owner, organization, &item.role_keys).await {
                Ok(()) => {
                    self.until_grantable(project, &owner, organization, &item.role_keys).await?;
                    return Ok(Did::Created);
                }
                Err(error) if error.already_exists() => tokio::time::sleep(Duration::from_millis(pause)).await,
                Err(error) => return Err(error.into()),
            }
        }
        Err(Why::NotListed)
    }

    /// Waits until lists show that the organisation may grant what was written: the next
    /// writer replaces all of it.
    async fn until_grantable(
        &self,
        project: &str,
        owner: &str,
        organization: &str,
        written: &[String],
    ) -> Result<(), Why> {
        for pause in LOOKS {
            let shown = self.management().project_grant(project, owner, organization).await?;
            let shown = shown.map(|grant| grant.role_keys).unwrap_or_default();
            if written.iter().all(|key| shown.contains(key)) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Err(Why::Lagging)
    }

    async fn user_grant(
        &self,
        item: &ProvisionItem,
        active: bool,
        known_user: Option<String>,
    ) -> Result<Outcome, StoreError> {
        let user = match self.user_of(item, known_user).await {
            Ok(user) => user,
            // Nobody there, nothing to take back.
            Err(Why::UserNotFound) if item.role_keys.is_empty() || !active => return Ok(Outcome::did(Did::Nothing)),
            Err(why) => return Ok(Outcome::later(why, None)),
        };
        let (wanted, mut retired) = if active {
            (item.role_keys.clone(), item.retired_keys.clone())
        } else {
            let mut all = item.retired_keys.clone();
            add_missing(&mut all, item.role_keys.iter().cloned());
            (Vec::new(), all)
        };
        let owner = self.management().project_owner(&item.project_id, item.organization_id.as_deref()).await;
        let owner = match owner {
            Ok(owner) => owner,
            Err(error) => return Ok(Outcome::later(error.into(), Some(user))),
        };
        let place = Place::of(item, &owner);
        let besides = self.0.store.read(&Granted::system()).await?.wanted_besides(item, &user, place.names()).await?;
        retired.retain(|key| !besides.contains(key) && !wanted.contains(key));
        let mut outcome = Outcome::did(Did::Nothing);
        outcome.retires = !retired.is_empty();
        outcome.result = self.grant(place, &user, &wanted, &retired, &mut outcome.grant, &mut outcome.lost).await;
        outcome.user = Some(user);
        Ok(outcome)
    }

    async fn user_of(&self, item: &ProvisionItem, known: Option<String>) -> Result<String, Why> {
        if let Some(user) = known {
            return Ok(user);
        }
        if !item.target.contains('@') {
            return Ok(item.target.clone());
        }
        match self.remote().user(&item.target, item.organization_id.as_deref()).await? {
            UserLookup::Found(user) => Ok(user.user_id),
            UserLookup::Nobody => Err(Why::UserNotFound),
            UserLookup::Several(candidates) => Err(Why::AmbiguousEmail(candidates)),
        }
    }

    /// Brings a user's grant to what it is without `retired` and with `wanted`.
    async fn grant(
        &self,
        Place { project, organization, owner }: Place<'_>,
        user: &str,
        wanted: &[String],
        retired: &[String],
        grant_id: &mut Option<String>,
        lost: &mut Vec<String>,
    ) -> Result<Did, Why> {
        let zitadel = self.management();
        for _ in 0..RACES {
            let Some(found) = self.look(project, organization, user).await? else {
                if wanted.is_empty() {
                    return Ok(Did::Nothing);
                }
                let new = NewGrant { user, project, organization, role_keys: wanted };
                match zitadel.add_grant(&new, owner).await {
                    Ok(id) => {
                        *grant_id = Some(id);
                        self.until_listed(project, organization, user, wanted).await?;
                        return Ok(Did::Created);
                    }
                    Err(error) if error.already_exists() => {
                        self.until_there(project, organization, user).await?;
                        continue;
                    }
                    Err(error) => return Err(Why::of_grant(error)),
                }
            };
            *grant_id = Some(found.id.clone());
            let mut keys: Vec<String> = found.role_keys.iter().filter(|key| !retired.contains(key)).cloned().collect();
            let gone = found.role_keys.iter().filter(|key| retired.contains(key)).cloned();
            if !found.active && !wanted.is_empty() {
                return Err(Why::Deactivated);
            }
            add_missing(&mut keys, wanted.iter().cloned());
            if keys == found.role_keys {
                return Ok(Did::Nothing);
            }
            let written = match keys.is_empty() {
                true => zitadel.remove_grant(&found).await,
                false => zitadel.set_grant(&found, &keys).await,
            };
            // What was refused took nothing; what may have been done did.
            if written.as_ref().err().is_none_or(Error::is_ambiguous) {
                add_missing(lost, gone);
            }
            match written {
                Ok(()) => {
                    self.until_listed(project, organization, user, &keys).await?;
                    return Ok(if keys.is_empty() { Did::Removed } else { Did::Updated });
                }
                // It was removed since it was listed.
                Err(error) if error.not_found() => tokio::time::sleep(RACE).await,
                Err(error) => return Err(Why::of_grant(error)),
            }
        }
        Err(Why::Racing)
    }

    async fn look(&self, project: &str, organization: &str, user: &str) -> Result<Option<UserGrant>, Why> {
        Ok(self.management().grants(project, organization, Some(user)).await?.into_iter().next())
    }

    /// Waits until lists show a grant that is said to exist.
    async fn until_there(&self, project: &str, organization: &str, user: &str) -> Result<(), Why> {
        for pause in LOOKS {
            if self.look(project, organization, user).await?.is_some() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Err(Why::NotListed)
    }

    /// Waits until lists show the roles that were written.
    async fn until_listed(&self, project: &str, organization: &str, user: &str, written: &[String]) -> Result<(), Why> {
        for pause in LOOKS {
            let shown = self.look(project, organization, user).await?.map(|grant| grant.role_keys).unwrap_or_default();
            if shown.len() == written.len() && written.iter().all(|key| shown.contains(key)) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Err(Why::Lagging)
    }
}
