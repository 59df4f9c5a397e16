//! Orgs, teams, users and memberships, in both domains.

use serde_json::{Value, json};

use crate::common::{Gateway, backends};
use crate::operations::NOBODY;
use crate::{at_mid_january, ids, invalid, refusal, text};

const DOMAINS: [&str; 2] = ["console", "copilot"];

#[tokio::test]
async fn orgs_are_made_shown_changed_and_removed() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        for domain in DOMAINS {
            let path = format!("/v1/{domain}/orgs");
            let made = admin.post(&path, json!({"name": "Research", "description": "d"})).await.ok()["item"].clone();
            assert_eq!(
                (&made["domain"], &made["account_id"], &made["created_by"]),
                (&json!(domain), &json!(account), &json!("admin"))
            );
            let one = format!("{path}/{}", text(&made["id"]));
            assert_eq!(admin.get(&one).await.ok()["item"], made);
            assert_eq!(
                refusal(&admin.post(&path, json!({"name": "Research"})).await, 409, "already_exists")["field"],
                "name"
            );
            admin.post(&path, json!({"name": "Science"})).await.ok();
            assert_eq!(
                refusal(&admin.patch(&one, json!({"name": "Science"})).await, 409, "already_exists")["field"],
                "name"
            );
            assert_eq!(admin.patch(&one, json!({"name": "Art"})).await.ok()["item"]["name"], "Art");
            assert_eq!(admin.delete(&one).await.ok(), json!({"deleted": true}));
            let gone = refusal(&admin.delete(&one).await, 404, "not_found");
            assert_eq!(gone["detail"], format!("{domain} org not found"));
        }
        let other = gateway.account("Other").await;
        assert_eq!(
            gateway.as_account_admin(&other).post("/v1/console/orgs", json!({"name": "Science"})).await.status.as_u16(),
            200
        );
    }
}

#[tokio::test]
async fn what_is_not_empty_is_removed_only_by_cascade() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        gateway.allocate(&account, "1000").await;
        let plan = gateway.plan(&account).await;
        for domain in DOMAINS {
            let org = gateway.org(&account, domain, "Research").await;
            let team = gateway.team(&account, domain, &org, "Language").await;
            let user = gateway.user(&account, domain, &format!("{domain}-ada"), &[&team]).await;
            gateway.grant(&account, domain, "gpt-4o", ("team", &team), "allow").await;
            if domain == "copilot" {
                gateway.allot(&account, &plan, ("team", &team), "10").await;
            }
            let (one_org, one_team) = (format!("/v1/{domain}/orgs/{org}"), format!("/v1/{domain}/teams/{team}"));
            refusal(&admin.delete(&one_org).await, 409, "not_empty");
            refusal(&admin.delete(&format!("{one_team}?cascade=false")).await, 409, "not_empty");
            assert_eq!(admin.get(&one_team).await.status.as_u16(), 200);
            assert_eq!(admin.delete(&format!("{one_org}?cascade=true")).await.ok()["deleted"], true);
            refusal(&admin.get(&one_team).await, 404, "not_found");
            assert_eq!(admin.get(&format!("/v1/{domain}/users/{user}")).await.status.as_u16(), 200, "people stay");
            assert_eq!(admin.get(&format!("/v1/{domain}/models/grants")).await.ok()["items"], json!([]));
        }
        assert_eq!(admin.get("/v1/budgets/copilot/allocations").await.ok()["items"], json!([]));
        let audit = admin.get("/v1/audit?action=delete&resource=Alchemi_OrgTable").await.ok();
        for gone in ["teams", "memberships", "model_grants", "budget_allocations"] {
            assert_eq!(audit["items"][0]["updated_values"][gone].as_array().map(Vec::len), Some(1), "{gone}: {audit}");
        }
    }
}

#[tokio::test]
async fn teams_belong_to_an_org() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        let (a, b) = (gateway.org(&account, "copilot", "A").await, gateway.org(&account, "copilot", "B").await);
        let path = "/v1/copilot/teams";
        let made = text(&admin.post(path, json!({"org_id": a, "name": "T"})).await.ok()["item"]["id"]);
        assert_eq!(
            refusal(&admin.post(path, json!({"org_id": a, "name": "T"})).await, 409, "already_exists")["field"],
            "name"
        );
        let other = text(&admin.post(path, json!({"org_id": b, "name": "T"})).await.ok()["item"]["id"]);
        assert_eq!(ids(&admin.get(&format!("{path}?org_id={a}")).await.ok()), [made.clone()]);
        assert_eq!(ids(&admin.get(path).await.ok()).len(), 2);
        assert_eq!(ids(&admin.get(&format!("{path}?org_id={NOBODY}")).await.ok()).len(), 0);
        let unknown = refusal(&admin.post(path, json!({"org_id": NOBODY, "name": "U"})).await, 404, "not_found");
        assert_eq!(unknown["detail"], "copilot org not found");
        let console = gateway.org(&account, "console", "C").await;
        refusal(&admin.post(path, json!({"org_id": console, "name": "U"})).await, 404, "not_found");
        assert_eq!(
            admin.patch(&format!("{path}/{other}"), json!({"name": "V", "description": "d"})).await.ok()["item"]["description"],
            "d"
        );
        invalid(&admin.patch(&format!("{path}/{other}"), json!({"org_id": a})).await, "/org_id");
    }
}

#[tokio::test]
async fn users_are_known_by_address_or_identity() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        for domain in DOMAINS {
            let path = format!("/v1/{domain}/users");
            let org = gateway.org(&account, domain, "Research").await;
            let team = gateway.team(&account, domain, &org, "Language").await;
            refusal(&admin.post(&path, json!({"display_name": "Ada"})).await, 400, "unidentified_user");
            refusal(&admin.post(&path, json!({"email": "", "identity_user_id": null})).await, 400, "unidentified_user");
            let made =
                admin.post(&path, json!({"email": "Ada@acme.com", "team_ids": [team]})).await.ok()["item"].clone();
            assert_eq!((&made["email"], &made["status"]), (&json!("ada@acme.com"), &json!("active")));
            let completed = admin
                .post(&path, json!({"email": "ada@acme.com", "identity_user_id": "17", "display_name": "Ada"}))
                .await
                .ok();
            assert_eq!((&completed["item"]["id"], &completed["item"]["identity_user_id"]), (&made["id"], &json!("17")));
            let again = admin.post(&path, json!({"identity_user_id": "17"})).await.ok();
            assert_eq!((&again["item"]["id"], &again["item"]["display_name"]), (&made["id"], &json!("Ada")));
            admin.post(&path, json!({"email": "bob@acme.com"})).await.ok();
            let both = admin.post(&path, json!({"email": "bob@acme.com", "identity_user_id": "17"})).await;
            refusal(&both, 409, "ambiguous_user");
            assert_eq!(admin.get(&path).await.ok()["items"].as_array().unwrap().len(), 2);

            let one = format!("{path}/{}", text(&made["id"]));
            let taken = admin.patch(&one, json!({"email": "BOB@acme.com"})).await;
            assert_eq!(refusal(&taken, 409, "already_exists")["field"], "email");
            refusal(
                &admin.patch(&one, json!({"email": null, "identity_user_id": null})).await,
                400,
                "unidentified_user",
            );
            assert_eq!(admin.patch(&one, json!({"email": null})).await.ok()["item"]["email"], json!(null));
            assert_eq!(admin.patch(&one, json!({"status": "suspended"})).await.ok()["item"]["status"], "suspended");
            invalid(&admin.patch(&one, json!({"status": null})).await, "/status");
            let before = admin.get(&format!("/v1/{domain}/teams/{team}/members")).await.ok();
            assert_eq!(before["items"][0]["user_id"], made["id"]);
            assert_eq!(admin.delete(&one).await.ok()["deleted"], true);
            assert_eq!(admin.get(&format!("/v1/{domain}/teams/{team}/members")).await.ok()["items"], json!([]));
            let nobody = admin.post(&path, json!({"email": "c@acme.com", "team_ids": [team, NOBODY]})).await;
            refusal(&nobody, 404, "not_found");
            assert_eq!(admin.get(&path).await.ok()["items"].as_array().unwrap().len(), 1, "nothing is half made");
        }
    }
}

#[tokio::test]
async fn memberships_are_listed_added_changed_and_ended() {
    for backend in backends().await {
        let (gateway, _) = at_mid_january(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        for domain in DOMAINS {
            let org = gateway.org(&account, domain, "Research").await;
            let team = gateway.team(&account, domain, &org, "Language").await;
            let user = gateway.user(&account, domain, "ada", &[]).await;
            let path = format!("/v1/{domain}/teams/{team}/members");
            let role = async |body: Value| admin.post(&path, body).await.ok()["item"]["role"].clone();
            assert_eq!(role(json!({"user_id": user})).await, "member");
            assert_eq!(role(json!({"user_id": user, "role": "lead"})).await, "lead");
            assert_eq!(role(json!({"user_id": user})).await, "lead", "kept when none is sent");
            assert_eq!(admin.get(&path).await.ok()["items"].as_array().unwrap().len(), 1);
            let one = format!("{path}/{user}");
            assert_eq!(admin.patch(&one, json!({"role": "guest"})).await.ok()["item"]["role"], "guest");
            invalid(&admin.patch(&one, json!({})).await, "/role");
            refusal(&admin.post(&path, json!({"user_id": NOBODY})).await, 404, "not_found");
            assert_eq!(admin.delete(&one).await.ok()["deleted"], true);
            refusal(&admin.delete(&one).await, 404, "not_found");
            refusal(&admin.patch(&one, json!({"role": "lead"})).await, 404, "not_found");
            refusal(&admin.get(&format!("/v1/{domain}/teams/{NOBODY}/members")).await, 404, "not_found");
        }
    }
}

/// Names are unique whatever happens at the same time.
#[tokio::test]
async fn of_many_at_once_one_gets_the_name() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        let calls = (0..8).map(|_| {
            let admin = admin.clone();
            tokio::spawn(
                async move { admin.post("/v1/console/orgs", json!({"name": "Research"})).await.status.as_u16() },
            )
        });
        let mut statuses = Vec::new();
        for call in calls.collect::<Vec<_>>() {
            statuses.push(call.await.unwrap());
        }
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409, 409, 409, 409, 409, 409, 409]);
    }
}
