//! One attempt at one item.

use std::time::Duration;

use super::Provisioner;
use super::outcome::{Did, Outcome, Why};
use super::remote::UserLookup;
use crate::context::Granted;
use crate::model::provision::{GrantPlace, ItemKind, NOT_LISTED_YET, ProvisionItem, add_missing};
use crate::store::StoreError;
use crate::zitadel::{Error, NewGrant, ProjectRole, UserGrant};

/// Pauses between looks at a list that may lag behind; in milliseconds.
const LOOKS: [u64; 7] = [50, 100, 200, 400, 800, 1_600, 3_200];

/// Before a grant that is gone is looked for again.
const RACE: Duration = Duration::from_millis(200);

/// How many attempts look for a grant that was written and not listed, before there is believed to be none.
const LOOKS_AGAIN: i64 = 4;

/// How often a grant that changes under our hands is begun anew.
const RACES: u32 = 3;

impl Provisioner {
    /// One attempt. Of an account that is suspended or gone, every grant is taken back.
    pub(super) async fn apply(
        &self,
        item: &ProvisionItem,
        active: bool,
        outcome: &mut Outcome,
    ) -> Result<(), StoreError> {
        outcome.result = match item.kind {
            ItemKind::Role => self.role(item, outcome).await,
            ItemKind::ProjectGrant => self.project_grant(item, outcome).await,
            ItemKind::UserGrant => self.user_grant(item, active, outcome).await?,
        };
        Ok(())
    }

    async fn role(&self, item: &ProvisionItem, outcome: &mut Outcome) -> Result<Did, Why> {
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
        match outcome.sends(Did::Created, &[], zitadel.add_role(&item.project_id, &owner, &role)).await {
            Ok(()) => Ok(Did::Created),
            // The list lags behind, or an earlier answer was lost.
            Err(error) if error.already_exists() => {
                outcome.may_have_written(Did::Created);
                Ok(Did::Nothing)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn project_grant(&self, item: &ProvisionItem, outcome: &mut Outcome) -> Result<Did, Why> {
        let (zitadel, project) = (self.management(), &item.project_id);
        let owner = zitadel.project_owner(project, Some(&item.target)).await?;
        if owner == item.target {
            return Ok(Did::Nothing);
        }
        let refused = match self.let_grant(item, &owner, &item.role_keys, outcome).await {
            Err(Why::Remote(error @ Error::Refused { .. })) => error,
            came => return came,
        };
        // One role that the project lacks must not keep the others from being granted.
        let there = zitadel.roles(project, &owner).await?;
        let is_there = |key: &&String| there.iter().any(|role| role.key == **key);
        let keys: Vec<String> = item.role_keys.iter().filter(is_there).cloned().collect();
        if !keys.is_empty() && keys.len() < item.role_keys.len() {
            self.let_grant(item, &owner, &keys, outcome).await?;
        }
        Err(Why::of_grant(refused))
    }

    /// Lets an organisation grant roles, beside those that it may grant already.
    async fn let_grant(
        &self,
        item: &ProvisionItem,
        owner: &str,
        role_keys: &[String],
        outcome: &mut Outcome,
    ) -> Result<Did, Why> {
        let zitadel = self.management();
        let (project, organization) = (&item.project_id, &item.target);
        let mut said_to_exist = false;
        for pause in LOOKS {
            if let Some(grant) = zitadel.project_grant(project, owner, organization).await? {
                if said_to_exist {
                    outcome.may_have_written(Did::Created);
                }
                let mut keys = grant.role_keys.clone();
                add_missing(&mut keys, role_keys.iter().cloned());
                if keys == grant.role_keys {
                    return Ok(Did::Nothing);
                }
                let write = zitadel.set_project_grant(project, owner, &grant, &keys);
                outcome.sends(Did::Updated, &[], write).await?;
                return self.until_grantable(project, owner, organization, &keys).await.map(|()| Did::Updated);
            }
            let write = zitadel.add_project_grant(project, owner, organization, role_keys);
            match outcome.sends(Did::Created, &[], write).await {
                Ok(()) => {
                    return self.until_grantable(project, owner, organization, role_keys).await.map(|()| Did::Created);
                }
                Err(error) if error.already_exists() => {
                    said_to_exist = true;
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
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
        let shown = until(|| async {
            let grant = self.management().project_grant(project, owner, organization).await?;
            let shown = grant.map(|grant| grant.role_keys).unwrap_or_default();
            Ok(written.iter().all(|key| shown.contains(key)))
        });
        if shown.await? { Ok(()) } else { Err(Why::Lagging) }
    }

    async fn user_grant(
        &self,
        item: &ProvisionItem,
        active: bool,
        outcome: &mut Outcome,
    ) -> Result<Result<Did, Why>, StoreError> {
        let user = match self.user_of(item, outcome.user.take()).await {
            Ok(user) => user,
            // Nobody there, nothing to take back.
            Err(Why::UserNotFound) if item.role_keys.is_empty() || !active => return Ok(Ok(Did::Nothing)),
            Err(why) => return Ok(Err(why)),
        };
        outcome.user = Some(user.clone());
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
            Err(error) => return Ok(Err(error.into())),
        };
        let place = GrantPlace::of(&item.project_id, item.organization_id.as_deref(), &owner);
        let besides = self.0.store.read(&Granted::system()).await?.wanted_besides(place, &user, Some(&item.id)).await?;
        retired.retain(|key| !besides.contains(key) && !wanted.contains(key));
        outcome.retires = !retired.is_empty();
        Ok(match self.grant(place, &user, &wanted, &retired, outcome).await {
            Ok(Did::Nothing) if outcome.retires && self.may_be_listed_yet(item) => Err(Why::Lagging),
            came => came,
        })
    }

    /// Whether a list may still come to show what an earlier attempt has written, here or in another
    /// process.
    fn may_be_listed_yet(&self, item: &ProvisionItem) -> bool {
        self.0.unlisted.contains_key(item.id.as_str())
            || (item.reason.as_deref() == Some(NOT_LISTED_YET) && item.attempts < LOOKS_AGAIN)
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
        place: GrantPlace<'_>,
        user: &str,
        wanted: &[String],
        retired: &[String],
        outcome: &mut Outcome,
    ) -> Result<Did, Why> {
        for _ in 0..RACES {
            let did = match self.look(place, user).await? {
                None if wanted.is_empty() => return Ok(Did::Nothing),
                None => self.make_grant(place, user, wanted, outcome).await?,
                Some(found) => self.change_grant(place, &found, wanted, retired, outcome).await?,
            };
            if let Some(did) = did {
                return Ok(did);
            }
        }
        Err(Why::Racing)
    }

    /// Makes a grant; nothing, where there is one by now.
    async fn make_grant(
        &self,
        place: GrantPlace<'_>,
        user: &str,
        wanted: &[String],
        outcome: &mut Outcome,
    ) -> Result<Option<Did>, Why> {
        let GrantPlace { project, organization, owner } = place;
        let grant = NewGrant { user, project, organization, role_keys: wanted };
        match outcome.sends(Did::Created, &[], self.management().add_grant(&grant, owner)).await {
            Ok(id) => {
                outcome.grant = Some(id);
                self.until_listed(place, user, wanted).await?;
                Ok(Some(Did::Created))
            }
            Err(error) if error.already_exists() => {
                self.until_there(place, user).await?;
                outcome.may_have_written(Did::Created);
                Ok(None)
            }
            Err(error) => Err(Why::of_grant(error)),
        }
    }

    /// Changes a grant; nothing, where it is gone by now.
    async fn change_grant(
        &self,
        place: GrantPlace<'_>,
        found: &UserGrant,
        wanted: &[String],
        retired: &[String],
        outcome: &mut Outcome,
    ) -> Result<Option<Did>, Why> {
        outcome.grant = Some(found.id.clone());
        let (gone, mut keys): (Vec<_>, Vec<_>) = found.role_keys.iter().cloned().partition(|key| retired.contains(key));
        if !found.active && !wanted.is_empty() {
            return Err(Why::Deactivated);
        }
        add_missing(&mut keys, wanted.iter().cloned());
        if keys == found.role_keys {
            return Ok(Some(Did::Nothing));
        }
        let did = if keys.is_empty() { Did::Removed } else { Did::Updated };
        let write = async {
            match did {
                Did::Removed => self.management().remove_grant(found).await,
                _ => self.management().set_grant(found, &keys).await,
            }
        };
        match outcome.sends(did, &gone, write).await {
            Ok(()) => {
                self.until_listed(place, &found.user, &keys).await?;
                Ok(Some(did))
            }
            // It was removed since it was listed.
            Err(error) if error.not_found() => {
                tokio::time::sleep(RACE).await;
                Ok(None)
            }
            Err(error) => Err(Why::of_grant(error)),
        }
    }

    async fn look(&self, place: GrantPlace<'_>, user: &str) -> Result<Option<UserGrant>, Why> {
        Ok(self.management().grants(place.project, place.organization, Some(user)).await?.into_iter().next())
    }

    /// Waits until lists show a grant that is said to exist.
    async fn until_there(&self, place: GrantPlace<'_>, user: &str) -> Result<(), Why> {
        let there = until(|| async { Ok(self.look(place, user).await?.is_some()) });
        if there.await? { Ok(()) } else { Err(Why::NotListed) }
    }

    /// Waits until lists show the roles that were written.
    async fn until_listed(&self, place: GrantPlace<'_>, user: &str, written: &[String]) -> Result<(), Why> {
        let shown = until(|| async {
            let shown = self.look(place, user).await?.map(|grant| grant.role_keys).unwrap_or_default();
            Ok(shown.len() == written.len() && written.iter().all(|key| shown.contains(key)))
        });
        if shown.await? { Ok(()) } else { Err(Why::Lagging) }
    }
}

/// Looks until what is looked for is there, with a pause after each look that was in vain and a
/// last look after them all.
async fn until<F>(mut there: impl FnMut() -> F) -> Result<bool, Why>
where
    F: Future<Output = Result<bool, Why>>,
{
    for pause in LOOKS {
        if there().await? {
            return Ok(true);
        }
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    there().await
}
