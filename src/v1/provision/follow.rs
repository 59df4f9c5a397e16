//! What follows in Zitadel, and for tokens, from a change of an admin.

use super::*;
use crate::model::revocations::Revocation;

/// Subjects that a transaction cuts off, to be told once it is committed.
#[derive(Debug, Default)]
pub(in crate::v1) struct Cut(Vec<Revocation>);

impl Cut {
    /// To be called after the commit.
    pub(in crate::v1) fn told(&self, provisioner: &Provisioner) {
        for cut in &self.0 {
            provisioner.tell(cut);
        }
        provisioner.wake();
    }
}

/// Follows a change of an admin: one who goes, or whose role changes, loses every token that
/// shows the former role: those of every subject that is known under the address, and whatever
/// shows the address itself. The former role is taken back wherever it was granted. The new one
/// is granted in the place to which the account is bound, if admins were granted theirs there.
pub(in crate::v1) async fn follow_admin(
    provisioner: &Provisioner,
    tx: &mut Tx<Tenant>,
    before: Option<&AccountAdmin>,
    after: Option<&AccountAdmin>,
) -> Result<Cut, StoreError> {
    let items = tx.provision_items().await?;
    let remains = after.filter(|after| before.is_some_and(|before| before.user_email == after.user_email));
    let former = before.filter(|before| remains.is_none_or(|now| now.role != before.role));
    let config = tx.zitadel_config().await?.map_or_else(ZitadelConfig::unbound, |stored| stored.value);
    let follow = Follow { config: &config, items: &items };
    let mut cut = Cut::default();
    if let Some(former) = former {
        let reason = if remains.is_some() { "the role as an admin changed" } else { "removed as an admin" };
        tx.cut_off_address(&former.user_email).await?;
        let mut subjects = tx.subjects_of(&former.user_email).await?;
        subjects.extend(follow.grants_of(former).filter_map(|item| item.user_id.clone()));
        subjects.sort();
        subjects.dedup();
        for subject in subjects {
            cut.0.extend(provisioner.cut_off(tx, &subject, reason).await?);
        }
        follow.take_back(tx, former, remains.is_some(), provisioner.is_configured()).await?;
    }
    if let Some(now) = after {
        follow.grant(tx, before, now).await?;
    }
    Ok(cut)
}

/// What is wanted for an account's admins, and where they are to hold their roles.
struct Follow<'a> {
    config: &'a ZitadelConfig,
    items: &'a [ProvisionItem],
}

impl Follow<'_> {
    /// Where the account is bound: project and organisation.
    fn own_place(&self) -> Option<(&str, Option<&str>)> {
        let project = self.config.project_id.as_deref().filter(|_| self.config.enabled)?;
        Some((project, self.config.organization_id.as_deref()))
    }

    fn is_own(&self, item: &ProvisionItem) -> bool {
        self.own_place() == Some((&item.project_id, item.organization_id.as_deref()))
    }

    /// Everything that an admin was granted, anywhere.
    fn grants_of(&self, admin: &AccountAdmin) -> impl Iterator<Item = &ProvisionItem> {
        let email = admin.user_email.clone();
        self.items.iter().filter(move |item| item.kind == ItemKind::UserGrant && item.target == email)
    }

    fn key_of(&self, admin: &AccountAdmin) -> Option<String> {
        role_key(self.config, prefix_of(self.config), &admin.role).ok()
    }

    /// The roles of a grant beside the admin's own, which is the first of them, whatever prefix
    /// or mapping it was made under.
    fn others(&self, former: &AccountAdmin, item: &ProvisionItem) -> Vec<String> {
        let key = self.key_of(former);
        item.role_keys.iter().skip(1).filter(|other| Some(*other) != key.as_ref()).cloned().collect()
    }

    /// Takes back all that an admin who goes was granted, and the former role of one who
    /// remains; in the account's own place also where nobody remembers having granted it.
    async fn take_back(
        &self,
        tx: &mut Tx<Tenant>,
        former: &AccountAdmin,
        remains: bool,
        configured: bool,
    ) -> Result<(), StoreError> {
        let grant = |project: &str, organization: Option<&str>, keys: Vec<String>| {
            Wanted::user_grant(project, organization, &former.user_email, keys)
        };
        for item in self.grants_of(former) {
            let stays = if remains { self.others(former, item) } else { Vec::new() };
            tx.want(&grant(&item.project_id, item.organization_id.as_deref(), stays)).await?;
        }
        let by_hand = configured && !self.grants_of(former).any(|item| self.is_own(item));
        if let Some((project, organization)) = self.own_place().filter(|_| by_hand) {
            let retired_keys = self.key_of(former).into_iter().collect();
            tx.want(&Wanted { retired_keys, ..grant(project, organization, Vec::new()) }).await?;
        }
        Ok(())
    }

    /// Grants an admin their role in the account's own place, if admins were granted theirs there.
    async fn grant(
        &self,
        tx: &mut Tx<Tenant>,
        before: Option<&AccountAdmin>,
        now: &AccountAdmin,
    ) -> Result<(), StoreError> {
        let Some((project, organization)) = self.own_place() else { return Ok(()) };
        let here = self.items.iter().any(|item| item.project_id == project);
        let Some(key) = self.key_of(now).filter(|_| here) else { return Ok(()) };
        let known = self.grants_of(now).find(|item| self.is_own(item));
        let mut keys = vec![key];
        if let Some(known) = known.filter(|known| !known.role_keys.is_empty()) {
            match before {
                // The role is what it was: so is what was granted.
                Some(before) if before.role == now.role => keys.clone_from(&known.role_keys),
                // Roles beside the one that changes were asked for, and stay.
                Some(before) => add_missing(&mut keys, self.others(before, known)),
                None => add_missing(&mut keys, known.role_keys.iter().cloned()),
            }
        }
        let may = may_grant(self.items, project, organization, keys.clone());
        let may = may.filter(|may| !self.is_grantable(may));
        for wanted in may.into_iter().chain([Wanted::user_grant(project, organization, &now.user_email, keys)]) {
            tx.want(&wanted).await?;
        }
        Ok(())
    }

    /// Whether it is wanted already.
    fn is_grantable(&self, may: &Wanted) -> bool {
        let same = |item: &&ProvisionItem| {
            item.kind == may.kind && item.project_id == may.project_id && item.target == may.target
        };
        self.items.iter().find(same).is_some_and(|item| may.role_keys.iter().all(|key| item.role_keys.contains(key)))
    }
}
