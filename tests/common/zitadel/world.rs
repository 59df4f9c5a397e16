//! What the stand-in holds, and what a write does to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Code, Refusal, refuse};

/// Organisations, projects, users and grants, by id.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) orgs: BTreeMap<String, String>,
    pub(crate) projects: BTreeMap<String, Project>,
    pub(crate) users: BTreeMap<String, User>,
    pub(crate) project_grants: Vec<ProjectGrant>,
    pub(crate) grants: Vec<Grant>,
    /// Writes of grants and roles so far.
    pub(crate) writes: u64,
    pub(super) lag: Duration,
    pub(super) ghost_of: Option<String>,
    next: u64,
}

#[derive(Debug)]
pub(crate) struct Project {
    pub(crate) org: String,
    pub(crate) name: String,
    /// By key: display name, group, and since when lists show it.
    pub(crate) roles: BTreeMap<String, (String, String, Instant)>,
}

#[derive(Debug)]
pub(crate) struct User {
    pub(crate) org: String,
    pub(crate) email: String,
    pub(crate) verified: bool,
    pub(crate) active: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct ProjectGrant {
    pub(crate) id: String,
    pub(crate) project: String,
    pub(crate) org: String,
    pub(crate) roles: Vec<String>,
    /// What lists show until the last write is projected; nothing, while it is new.
    pub(super) before: Option<Vec<String>>,
    pub(super) shown_from: Instant,
}

/// What a user may do in a project, for an organisation.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) id: String,
    pub(crate) user: String,
    pub(crate) project: String,
    pub(crate) org: String,
    pub(crate) roles: Vec<String>,
    pub(crate) active: bool,
    /// What lists show until the last write is projected; no roles: nothing.
    pub(super) before: Option<Vec<String>>,
    pub(super) shown_from: Instant,
    pub(super) deleted: bool,
}

impl World {
    fn id(&mut self) -> String {
        self.next += 1;
        format!("{}", 300_000_000_000_000_000 + self.next)
    }

    pub(crate) fn add_org(&mut self, name: &str) -> String {
        let id = self.id();
        self.orgs.insert(id.clone(), name.to_owned());
        id
    }

    pub(crate) fn add_project(&mut self, org: &str, name: &str) -> String {
        let id = self.id();
        let project = Project { org: org.to_owned(), name: name.to_owned(), roles: BTreeMap::new() };
        self.projects.insert(id.clone(), project);
        id
    }

    pub(crate) fn add_user(&mut self, org: &str, email: &str) -> String {
        let id = self.id();
        self.users
            .insert(id.clone(), User { org: org.to_owned(), email: email.to_owned(), verified: true, active: true });
        id
    }

    /// The roles of a user in a project, over all organisations.
    pub(crate) fn roles_of(&self, user: &str, project: &str) -> BTreeSet<String> {
        let grants = self.grants.iter().filter(|g| !g.deleted && g.active && g.user == user && g.project == project);
        grants.flat_map(|grant| grant.roles.iter().cloned()).collect()
    }

    /// The keys of a project's roles.
    pub(crate) fn role_keys(&self, project: &str) -> Vec<String> {
        self.projects[project].roles.keys().cloned().collect()
    }

    /// Grants that were not removed.
    pub(crate) fn live_grants(&self) -> impl Iterator<Item = &Grant> {
        self.grants.iter().filter(|grant| !grant.deleted)
    }

    /// Writes behind the API's back, shown at once.
    pub(crate) fn put_grant(&mut self, user: &str, project: &str, org: &str, roles: &[&str]) -> String {
        let id = self.id();
        self.grants.push(Grant {
            id: id.clone(),
            user: user.to_owned(),
            project: project.to_owned(),
            org: org.to_owned(),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            active: true,
            before: None,
            shown_from: Instant::now(),
            deleted: false,
        });
        id
    }

    /// Lets an organisation grant roles, behind the API's back.
    pub(crate) fn add_project_grant_of(&mut self, project: &str, org: &str, roles: &[&str]) {
        let roles = roles.iter().map(|role| (*role).to_owned()).collect();
        self.add_project_grant(project, org, roles).unwrap();
    }

    pub(crate) fn put_role(&mut self, project: &str, key: &str) {
        let role = (key.to_owned(), String::new(), Instant::now());
        self.projects.get_mut(project).unwrap().roles.insert(key.to_owned(), role);
    }
}

/// What the API does.
impl World {
    fn shown_from(&self) -> Instant {
        Instant::now() + self.lag
    }

    pub(super) fn project(&self, id: &str) -> Result<&Project, Refusal> {
        match self.projects.get(id) {
            Some(project) => Ok(project),
            None => refuse(Code::NotFound, "QUERY-fk2fs", "Project could not be found"),
        }
    }

    pub(super) fn add_role(&mut self, project: &str, key: &str, display: &str, group: &str) -> Result<(), Refusal> {
        let shown_from = self.shown_from();
        self.project(project)?;
        let roles = &mut self.projects.get_mut(project).unwrap().roles;
        if roles.contains_key(key) {
            return refuse(Code::AlreadyExists, "V3-DKcYh", "Role existiert bereits");
        }
        roles.insert(key.to_owned(), (display.to_owned(), group.to_owned(), shown_from));
        self.writes += 1;
        Ok(())
    }

    /// The roles that `org` may grant in a project.
    fn grantable(&self, project: &str, org: &str) -> Result<Vec<String>, Refusal> {
        let found = self.project(project)?;
        if found.org == org {
            return Ok(found.roles.keys().cloned().collect());
        }
        let grant = self.project_grants.iter().find(|grant| grant.project == project && grant.org == org);
        match grant {
            Some(grant) => Ok(grant.roles.clone()),
            None => refuse(Code::FailedPrecondition, "COMMAND-4m9Vs", "Project grant not found"),
        }
    }

    fn check_roles(&self, project: &str, org: &str, roles: &[String]) -> Result<(), Refusal> {
        let grantable = self.grantable(project, org)?;
        if roles.iter().all(|role| grantable.contains(role)) {
            return Ok(());
        }
        refuse(Code::FailedPrecondition, "COMMAND-mm9F4", "One role does not exist in the project")
    }

    pub(super) fn add_grant(
        &mut self,
        user: &str,
        project: &str,
        org: &str,
        roles: Vec<String>,
    ) -> Result<String, Refusal> {
        if !self.orgs.contains_key(org) {
            return refuse(Code::NotFound, "ORG-1m9fs", "Organisation not found");
        }
        if !self.users.contains_key(user) {
            return refuse(Code::FailedPrecondition, "COMMAND-4f8sg", "User not found");
        }
        self.check_roles(project, org, &roles)?;
        let same = |g: &&Grant| !g.deleted && g.user == user && g.project == project && g.org == org;
        if self.ghost_of.as_deref() == Some(user) || self.grants.iter().any(|g| same(&g)) {
            return refuse(Code::AlreadyExists, "V3-DKcYh", "Benutzerberechtigung existiert bereits");
        }
        let (id, shown_from) = (self.id(), self.shown_from());
        let (user, project, org) = (user.to_owned(), project.to_owned(), org.to_owned());
        let (before, active, deleted) = (Some(Vec::new()), true, false);
        self.grants.push(Grant { id: id.clone(), user, project, org, roles, active, before, shown_from, deleted });
        self.writes += 1;
        Ok(id)
    }

    pub(super) fn live_grant(&mut self, id: &str) -> Result<&mut Grant, Refusal> {
        match self.grants.iter_mut().find(|grant| grant.id == id && !grant.deleted) {
            Some(grant) => Ok(grant),
            None => refuse(Code::NotFound, "QUERY-wIPkA", "User grant not found"),
        }
    }

    /// Whether the roles are others now.
    pub(super) fn set_grant(&mut self, id: &str, roles: Vec<String>) -> Result<bool, Refusal> {
        let shown_from = self.shown_from();
        let grant = self.live_grant(id)?.clone();
        self.check_roles(&grant.project, &grant.org, &roles)?;
        if grant.roles == roles {
            return Ok(false);
        }
        let grant = self.live_grant(id)?;
        grant.before = Some(std::mem::replace(&mut grant.roles, roles));
        grant.shown_from = shown_from;
        self.writes += 1;
        Ok(true)
    }

    pub(super) fn remove_grant(&mut self, id: &str) -> Result<(), Refusal> {
        let shown_from = self.shown_from();
        let grant = self.live_grant(id)?;
        (grant.deleted, grant.before, grant.shown_from) = (true, Some(grant.roles.clone()), shown_from);
        self.writes += 1;
        Ok(())
    }

    /// Grants as lists show them.
    pub(super) fn listed_grants(&self) -> Vec<Grant> {
        let now = Instant::now();
        let shown = |grant: &Grant| {
            let mut grant = grant.clone();
            if grant.shown_from > now {
                grant.roles = grant.before.clone()?;
                grant.deleted = false;
                if grant.roles.is_empty() {
                    return None;
                }
            }
            (!grant.deleted).then_some(grant)
        };
        self.grants.iter().filter_map(shown).collect()
    }

    pub(super) fn add_project_grant(
        &mut self,
        project: &str,
        org: &str,
        roles: Vec<String>,
    ) -> Result<String, Refusal> {
        let found = self.project(project)?;
        if found.org == org {
            return refuse(Code::FailedPrecondition, "PROJECT-3b8fs", "The project is the organisation's own");
        }
        if !self.orgs.contains_key(org) {
            return refuse(Code::FailedPrecondition, "PROJECT-ovzfs", "Organisation not found");
        }
        if !roles.iter().all(|role| found.roles.contains_key(role)) {
            return refuse(Code::FailedPrecondition, "COMMAND-mm9F4", "One role does not exist in the project");
        }
        if self.project_grants.iter().any(|grant| grant.project == project && grant.org == org) {
            return refuse(Code::AlreadyExists, "V3-DKcYh", "Project grant already exists");
        }
        let (id, shown_from) = (self.id(), self.shown_from());
        let (project, org) = (project.to_owned(), org.to_owned());
        self.project_grants.push(ProjectGrant { id: id.clone(), project, org, roles, before: None, shown_from });
        self.writes += 1;
        Ok(id)
    }

    /// Removing a role removes it from the grants that rest on it.
    pub(super) fn set_project_grant(&mut self, project: &str, org: &str, roles: Vec<String>) -> Result<bool, Refusal> {
        let shown_from = self.shown_from();
        let known = &self.project(project)?.roles;
        if !roles.iter().all(|role| known.contains_key(role)) {
            return refuse(Code::FailedPrecondition, "COMMAND-mm9F4", "One role does not exist in the project");
        }
        let Some(grant) = self.project_grants.iter_mut().find(|g| g.project == project && g.org == org) else {
            return refuse(Code::NotFound, "PROJECT-4m9ds", "Project grant not found");
        };
        if grant.roles == roles {
            return Ok(false);
        }
        grant.before = Some(std::mem::replace(&mut grant.roles, roles.clone()));
        grant.shown_from = shown_from;
        self.writes += 1;
        for grant in self.grants.iter_mut().filter(|g| g.project == project && g.org == org) {
            grant.roles.retain(|role| roles.contains(role));
        }
        Ok(true)
    }
}
