//! Fifty admins to be made in a Zitadel where others hold roles already.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::client::Client;
use super::zitadel::Zitadel;

pub(crate) const ADMINS: usize = 50;
/// Of them, those who hold a role of somebody else's before.
const REVIEWERS: usize = 10;

/// What is there before: an organisation with users, another one's project, and somebody else's role.
pub(crate) struct Fifty {
    pub(crate) zitadel: Zitadel,
    project: String,
    org: String,
    users: Vec<String>,
    eve: String,
}

impl Fifty {
    pub(crate) async fn new() -> Self {
        let zitadel = Zitadel::start("127.0.0.1:0".parse().unwrap()).await;
        let (owner, org) = (zitadel.org("Platform"), zitadel.org("Acme"));
        let project = zitadel.project(&owner, "gateway");
        let users: Vec<String> = (0..ADMINS).map(|n| zitadel.user(&org, &address(n))).collect();
        let eve = zitadel.user(&org, "eve@acme.com");
        {
            let mut world = zitadel.world();
            world.put_role(&project, "reviewer");
            world.add_project_grant_of(&project, &org, &["reviewer"]);
            for user in users.iter().take(REVIEWERS).chain([&eve]) {
                world.put_grant(user, &project, &org, &["reviewer"]);
            }
        }
        Self { zitadel, project, org, users, eve }
    }

    /// Makes them admins of an account.
    pub(crate) async fn admit(&self, operator: &Client, account: &str) {
        for n in 0..ADMINS {
            let body = json!({"user_email": address(n), "role": "copilot_org_admin"});
            operator.post(&format!("/v1/accounts/{account}/admins"), body).await.ok();
        }
    }

    pub(crate) fn bootstrap(&self) -> Value {
        json!({"project_id": self.project, "organization_id": self.org, "resolve_user_ids_from_zitadel": true})
    }

    /// All is as wanted, and nobody else's roles were touched.
    #[track_caller]
    pub(crate) fn check(&self) {
        let world = self.zitadel.world();
        for (n, user) in self.users.iter().enumerate() {
            let held: Vec<String> = world.roles_of(user, &self.project).into_iter().collect();
            let wanted: &[&str] =
                if n < REVIEWERS { &["copilot_org_admin", "reviewer"] } else { &["copilot_org_admin"] };
            assert_eq!(held, wanted, "admin{n}");
        }
        let granted: Vec<&String> = world.live_grants().map(|grant| &grant.user).collect();
        let once: BTreeSet<&&String> = granted.iter().collect();
        assert_eq!((granted.len(), once.len()), (ADMINS + 1, ADMINS + 1), "one grant for each");
        assert_eq!(world.roles_of(&self.eve, &self.project).into_iter().collect::<Vec<_>>(), ["reviewer"]);
        assert_eq!(world.role_keys(&self.project).len(), 7);
    }
}

fn address(n: usize) -> String {
    format!("admin{n}@acme.com")
}
