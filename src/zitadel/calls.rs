//! The operations, whichever API the instance has.

use super::config::Surface;
use super::error::Error;
use super::{FoundUser, Management, NewGrant, ProjectGrant, ProjectRole, UserGrant, v1, v2};

impl Management {
    /// Which API the instance has; asked once.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn surface(&self) -> Result<Surface, Error> {
        self.transport()?.surface().await
    }

    /// The same, once it has answered a question that needs the credentials.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn probe(&self) -> Result<Surface, Error> {
        self.transport()?.probe().await
    }

    /// The organisation that owns a project. `hint` is an organisation that may be it,
    /// which v1 needs to find a project of another organisation than the service user's.
    ///
    /// # Errors
    /// [`Error`]; [`Error::not_found`] when there is no such project.
    pub async fn project_owner(&self, project: &str, hint: Option<&str>) -> Result<String, Error> {
        let at = self.transport()?;
        match at.surface().await? {
            Surface::V1 => v1::project_owner(at, project, hint).await,
            _ => v2::project_owner(at, project).await,
        }
    }

    /// The roles of a project; `owner` is the organisation that owns it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn roles(&self, project: &str, owner: &str) -> Result<Vec<ProjectRole>, Error> {
        let at = self.transport()?;
        match at.surface().await? {
            Surface::V1 => v1::roles(at, project, owner).await,
            _ => v2::roles(at, project).await,
        }
    }

    /// Adds a role to a project.
    ///
    /// # Errors
    /// [`Error`]; [`Error::already_exists`] when the key is taken.
    pub async fn add_role(&self, project: &str, owner: &str, role: &ProjectRole) -> Result<(), Error> {
        let at = self.transport()?;
        match at.surface().await? {
            Surface::V1 => v1::add_role(at, project, owner, role).await,
            _ => v2::add_role(at, project, role).await,
        }
    }

    /// What an organisation may grant of a project that is another's.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn project_grant(
        &self,
        project: &str,
        owner: &str,
        organization: &str,
    ) -> Result<Option<ProjectGrant>, Error> {
        let at = self.transport()?;
        let grants = match at.surface().await? {
            Surface::V1 => v1::project_grants(at, project, owner).await?,
            _ => v2::project_grants(at, project, organization).await?,
        };
        Ok(grants.into_iter().find(|grant| grant.organization == organization))
    }

    /// Lets an organisation grant roles of a project.
    ///
    /// # Errors
    /// [`Error`]; [`Error::already_exists`] when it may grant some already.
    pub async fn add_project_grant(
        &self,
        project: &str,
        owner: &str,
        organization: &str,
        role_keys: &[String],
    ) -> Result<(), Error> {
        let at = self.transport()?;
        match at.surface().await? {
            Surface::V1 => v1::add_project_grant(at, project, owner, organization, role_keys).await,
            _ => v2::add_project_grant(at, project, organization, role_keys).await,
        }
    }

    /// Replaces what an organisation may grant of a project. What is left out is taken
    /// from every user to whom the organisation granted it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn set_project_grant(
        &self,
        project: &str,
        owner: &str,
        grant: &ProjectGrant,
        role_keys: &[String],
    ) -> Result<(), Error> {
        let at = self.transport()?;
        match at.surface().await? {
            Surface::V1 => v1::set_project_grant(at, project, owner, grant, role_keys).await,
            _ => v2::set_project_grant(at, project, grant, role_keys).await,
        }
    }

    /// The grants of an organisation in a project: a user's, or all.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn grants(&self, project: &str, organization: &str, user: Option<&str>) -> Result<Vec<UserGrant>, Error> {
        let at = self.transport()?;
        let mut grants = match at.surface().await? {
            Surface::V1 => v1::grants(at, project, organization, user).await?,
            _ => v2::grants(at, project, organization, user).await?,
        };
        // A filter that an instance does not know must not make a neighbour's grant ours.
        grants.retain(|grant| {
            grant.project == project && grant.organization == organization && user.is_none_or(|user| grant.user == user)
        });
        Ok(grants)
    }

    /// Grants a user roles; gives the grant's id.
    ///
    /// # Errors
    /// [`Error`]; [`Error::already_exists`] when the organisation has granted the user
    /// roles of the project already.
    pub async fn add_grant(&self, grant: &NewGrant<'_>, owner: &str) -> Result<String, Error> {
        let at = self.transport()?;
        match at.surface().await? {
            Surface::V1 => {
                let by = match grant.organization == owner {
                    true => None,
                    false => self.project_grant(grant.project, owner, grant.organization).await?.and_then(|g| g.id),
                };
                v1::add_grant(at, grant, by.as_deref()).await
            }
            _ => v2::add_grant(at, grant).await,
        }
    }

    /// Replaces the roles of a grant.
    ///
    /// # Errors
    /// [`Error`]; [`Error::not_found`] when it is gone.
    pub async fn set_grant(&self, grant: &UserGrant, role_keys: &[String]) -> Result<(), Error> {
        let at = self.transport()?;
        match at.surface().await? {
            Surface::V1 => v1::set_grant(at, grant, role_keys).await,
            _ => v2::set_grant(at, grant, role_keys).await,
        }
    }

    /// Removes a grant; one that is gone is no failure.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn remove_grant(&self, grant: &UserGrant) -> Result<(), Error> {
        let at = self.transport()?;
        match at.surface().await? {
            Surface::V1 => v1::remove_grant(at, grant).await,
            _ => v2::remove_grant(at, grant).await,
        }
    }

    /// The active users with an e-mail address: those of an organisation, or of the whole
    /// instance, where v1 sees the service user's organisation alone.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn users_with_email(&self, email: &str, organization: Option<&str>) -> Result<Vec<FoundUser>, Error> {
        let at = self.transport()?;
        match at.surface().await? {
            Surface::V1 => v1::users_with_email(at, email, organization).await,
            _ => v2::users_with_email(at, email, organization).await,
        }
    }
}
