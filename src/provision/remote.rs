//! What Zitadel holds, for those who only look.

use crate::zitadel::{Error, FoundUser, Management, ProjectGrant, UserGrant};

/// Looks, and writes nothing.
#[derive(Debug, Clone, Copy)]
pub struct Remote<'a>(&'a Management);

/// Whose an e-mail address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserLookup {
    /// One user's.
    Found(FoundUser),
    /// Nobody's.
    Nobody,
    /// Several users'.
    Several(Vec<FoundUser>),
}

impl<'a> Remote<'a> {
    pub(super) fn new(management: &'a Management) -> Self {
        Self(management)
    }

    /// Whose an address is: of those who have shown that it is theirs, a user of the
    /// organisation, else anybody's. Anyone may sign up with an address that is not theirs.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn user(&self, email: &str, organization: Option<&str>) -> Result<UserLookup, Error> {
        if organization.is_some() {
            let own = self.verified_users(email, organization).await?;
            if !own.is_empty() {
                return Ok(one_of(own));
            }
        }
        Ok(one_of(self.verified_users(email, None).await?))
    }

    async fn verified_users(&self, email: &str, organization: Option<&str>) -> Result<Vec<FoundUser>, Error> {
        let mut found = self.0.users_with_email(email, organization).await?;
        found.retain(|user| user.email_verified);
        Ok(found)
    }

    /// Whether there is such a project, as far as these credentials may see.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn knows_project(&self, project: &str, organization: Option<&str>) -> Result<bool, Error> {
        match self.0.project_owner(project, organization).await {
            Ok(_) => Ok(true),
            Err(error) if error.not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whose a project is.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn owner(&self, project: &str, organization: Option<&str>) -> Result<String, Error> {
        self.0.project_owner(project, organization).await
    }

    /// The keys of a project's roles.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn roles(&self, project: &str, organization: Option<&str>) -> Result<Vec<String>, Error> {
        let owner = self.0.project_owner(project, organization).await?;
        Ok(self.0.roles(project, &owner).await?.into_iter().map(|role| role.key).collect())
    }

    /// What the organisation may grant of the project; `None` where the project is its own.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn project_grant(
        &self,
        project: &str,
        organization: &str,
    ) -> Result<Option<Option<ProjectGrant>>, Error> {
        let owner = self.0.project_owner(project, Some(organization)).await?;
        if owner == organization {
            return Ok(None);
        }
        self.0.project_grant(project, &owner, organization).await.map(Some)
    }

    /// Every grant of the organisation in the project, or of the project's owner.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn grants(&self, project: &str, organization: Option<&str>) -> Result<Vec<UserGrant>, Error> {
        match organization {
            Some(organization) => self.0.grants(project, organization, None).await,
            None => {
                let owner = self.0.project_owner(project, None).await?;
                self.0.grants(project, &owner, None).await
            }
        }
    }
}

fn one_of(mut users: Vec<FoundUser>) -> UserLookup {
    match users.len() {
        0 => UserLookup::Nobody,
        1 => users.pop().map_or(UserLookup::Nobody, UserLookup::Found),
        _ => UserLookup::Several(users),
    }
}
