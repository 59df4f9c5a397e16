//! Defects that the product's former control plane had, and the tests that show that this one has not. The numbers are of
//! the list that was made when it was replaced; a test is named as `directory/file::function` under `tests`.
//!
//! | | what was wrong | what shows that it is not |
//! |---|---|---|
//! | S1 | a header led into any tenant | `v1/authz::every_operation_admits_whom_its_guard_admits`, `proxy/refused::who_may_not_be_here_at_all`, `v1/tenants::the_ids_of_another_account_answer_as_missing_ones` |
//! | S2 | sessions signed with the operator's key, or with none | `v1/defects::s2_the_operators_key_signs_nothing`, `proxy/tokens::what_is_not_to_be_believed_is_401_in_every_plane`, `identity/tokens::forged_and_malformed_headers_are_refused_without_asking_the_issuer` |
//! | S3 | roles of any project or organisation counted | `v1/defects::s3_roles_come_from_the_project_alone`, `identity/claims::only_the_accounts_own_organisation_grants_its_roles`, `identity/claims::a_super_admin_is_one_by_the_trusted_organisation` |
//! | S4 | no product domain meant all of them | `v1/defects::s4_no_product_domain_is_none`, `identity/claims::scopes_and_domains_follow_the_rules` |
//! | S5 | nothing for callers without a role | `v1/models::a_subject_sees_the_models_of_their_own_place`, `v1/usage::a_member_sees_their_own_usage`, `v1/marketplace::who_sees_a_listing`, `v1/agents::grants_come_and_go_and_the_last_one_opens_nothing` |
//! | S6 | a cookie was a credential, and went before the header | `v1/defects::s6_a_cookie_is_no_credential`, `proxy/listener::browsers_of_named_origins_may_call_the_control_plane` |
//! | S7 | a suspended account went on | `v1/standing::a_suspended_account_is_shut_at_once_and_can_be_restored`, `proxy/refused::suspension_holds_from_the_next_request_on` |
//! | S8 | naming an admin took them from another account | `v1/defects::s8_an_admin_of_two_accounts_stays_in_both`, `v1/admins::roles_addresses_and_passwords_are_checked`, `v1/provision_cut_off::an_admin_who_is_removed_is_cut_off_on_every_gateway_by_the_feed` |
//! | S9 | secrets in clear, in the database and in the audit | `v1/canary::no_secret_comes_out_anywhere`, `v1/connections::secrets_merge_and_only_the_gateway_opens_them`, `v1/sso::settings_are_masked_merged_and_removed` |
//! | S10 | unknown roles were admins, the issuer and Zitadel's errors were told to anybody | `v1/admins::roles_addresses_and_passwords_are_checked`, `v1/context::the_issuer_is_shown_to_those_who_signed_in`, `v1/provision::refusals_speak_in_our_words_and_are_tried_again` |
//! | S11 | each unknown key was a fetch, each expression was believed | `identity/keys::ten_thousand_unknown_kids_cost_one_fetch_per_cooldown`, `v1/guardrails::a_pattern_is_refused_with_the_reason` |
//! | S12 | money that is no number | `v1/defects::s12_no_amount_is_no_number`, `v1/conventions::amounts_are_exact_and_bounded` |
//! | C1 | the audit of one domain failed | `v1/audit::filters_and_pages_follow_the_chain`, `v1/reference/dashboards::the_dashboards_find_what_they_read` |
//! | C2 | alerts failed as soon as there were any | `v1/usage::alerts_name_whose_budget_nears_its_end`, `v1/reference/dashboards::the_dashboards_find_what_they_read` |
//! | C3 | calls that Zitadel refuses, keys from where there are none | `zitadel/client::both_apis_do_the_same`, `v1/provision::a_bootstrap_makes_all_of_it_and_a_second_one_changes_nothing`, `identity/keys::discovery_must_speak_for_the_issuer` |
//! | C4 | prefixed roles granted nothing | `v1/standing::roles_follow_the_accounts_binding`, `v1/provision::a_prefix_holds_in_both_directions`, `v1/reference/dashboards::the_dashboards_find_what_they_read` |
//! | C5 | which override held was chance, and usage did not know of it | `v1/defects::c5_usage_and_alerts_know_the_override_that_holds`, `v1/budgets::the_newest_override_counts_until_it_expires_or_goes` |
//! | C6 | grants and assignments came twice and never went | `v1/models::a_grant_is_unique_and_posted_again_it_changes`, `v1/guardrails::assignments_are_unique_and_agents_keep_one`, `v1/connections::grants_of_a_connection` |
//! | C7 | a month's share against the use of all time | `v1/defects::c7_usage_and_alerts_are_of_the_window`, `v1/windows::windows_roll_by_themselves`, `v1/budgets::a_renewal_carries_over_what_was_not_used_once` |
//! | C8 | shares above the whole, counted level by level, costs of the wrong domain | `v1/over_commitment::a_plan_can_forbid_over_commitment`, `v1/usage::recorded_usage_draws_on_the_whole_chain`, `v1/usage::costs_add_up_however_they_are_broken_down`, `proxy/refused::an_exhausted_allocation_is_not_to_be_retried` |
//! | C9 | half of it written | `v1/agents::an_agent_that_is_refused_leaves_nothing_behind`, `v1/directory::a_user_is_made_once_and_completed_after`, `v1/marketplace::a_listing_goes_with_what_it_is_about`, `v1/standing::a_hard_delete_keeps_the_audit_and_the_ledgers_totals`, `v1/provision_convergence::a_bootstrap_of_fifty_that_is_killed_at_every_step_converges` |
//! | C10 | documents of one account lost each other's changes | `v1/versions::the_operators_documents_do_not_touch_each_other`, `v1/accounts::a_patch_keeps_clears_and_sets` |
//! | C11 | what is taken was an internal error | `v1/defects::c11_what_is_taken_is_named`, `v1/accounts::what_is_taken_is_a_conflict`, `v1/directory::a_user_is_made_once_and_completed_after` |
//! | C12 | listed, masked or posted again, it lost what it had | `v1/marketplace::a_listing_is_made_shown_changed_and_removed`, `v1/marketplace::who_sees_a_listing`, `v1/connections::a_connection_is_made_shown_changed_and_removed`, `v1/guardrails::a_preset_posted_again_keeps_its_patterns` |
//! | C13 | the audit did not know who, and hid what operators did | `v1/defects::c13_an_accounts_domain_is_not_its_events_label`, `v1/audit::events_say_who_did_what_by_both_sets_of_names`, `v1/standing::reads_and_refusals_leave_no_event` |
//! | C14 | an account's first admin had no role | `v1/reference/dashboards::the_dashboards_find_what_they_read`, `v1/provision_convergence::an_admin_who_is_added_later_is_granted_their_role` |
//! | C15 | misspelt fields were ignored | `v1/defects::c15_a_misspelt_field_is_named`, `v1/conventions::bodies_are_read_strictly` |

use std::path::Path;
use std::time::Duration;

use http::{Method, header};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::common::gateway::MASTER_KEY;
use crate::common::{Client, Gateway, Person, backends};
use crate::{at_mid_january, invalid, refusal, text};

const BUDGETS: &str = "/v1/budgets/copilot";

/// The table names tests that there are.
#[test]
fn the_table_names_tests_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let table = include_str!("defects.rs").lines().filter(|line| line.starts_with("//! | ")).skip(1);
    let mut rows = 0;
    for row in table {
        rows += 1;
        let tests: Vec<_> = row.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{row}");
        for test in tests {
            let (file, function) = test.split_once("::").unwrap();
            let source = std::fs::read_to_string(root.join(format!("{file}.rs"))).unwrap_or_default();
            assert!(source.contains(&format!("fn {function}(")), "there is no {test}");
        }
    }
    assert_eq!(rows, 12 + 15);
}

#[tokio::test]
async fn s2_the_operators_key_signs_nothing() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let person = Person::of(&account, "mallory").role("super_admin");
        let kid = jsonwebtoken::decode_header(gateway.token(&person)).unwrap().kid;
        let claims = gateway.claims(&person);
        for key in [MASTER_KEY, ""] {
            for kid in [kid.clone(), None] {
                let header = Header { kid, ..Header::new(Algorithm::HS256) };
                let forged = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(key.as_bytes())).unwrap();
                let reply = gateway.anybody().with_token(&forged).get("/v1/me/context").await;
                refusal(&reply, 401, "token_invalid");
            }
        }
        let keyless = gateway.anybody().with_token("").get("/v1/accounts").await;
        assert_eq!(keyless.status.as_u16(), 401, "{}", keyless.text());
    }
}

#[tokio::test]
async fn s3_roles_come_from_the_project_alone() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let granted = json!({"super_admin": {format!("org-of-{account}"): "acme.localhost"}});
        let eve = Person::of(&account, "eve")
            .claim("roles", json!(["super_admin", "account_admin"]))
            .claim("role", json!("super_admin"))
            .claim("is_super_admin", json!(true))
            .claim("alchemi:roles", granted.clone())
            .claim("urn:zitadel:iam:org:project:elsewhere:roles", granted);
        let eve = gateway.sign_in(&eve);
        let context = eve.get("/v1/me/context").await.ok();
        assert_eq!((&context["is_super_admin"], &context["roles"]), (&json!(false), &json!([])), "{context}");
        refusal(&eve.get("/v1/accounts").await, 403, "super_admin_required");
        refusal(&eve.get("/v1/audit").await, 403, "account_admin_required");
    }
}

#[tokio::test]
async fn s4_no_product_domain_is_none() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let nowhere = gateway.sign_in(&Person::of(&account, "ada").role("account_admin").domains(&[]));
        for path in ["/v1/copilot/orgs", "/v1/console/orgs", "/v1/me/models"] {
            refusal(&nowhere.get(path).await, 403, "domain_denied");
        }
    }
}

#[tokio::test]
async fn s6_a_cookie_is_no_credential() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let cookie = format!("token={}", gateway.as_account_admin(&account).token());
        let with_cookie = async |client: &Client, path: &str| {
            client.send(client.request(Method::GET, path).header(header::COOKIE, &cookie)).await
        };
        assert_eq!(with_cookie(&gateway.anybody(), "/v1/audit").await.status.as_u16(), 401);
        let eve = gateway.as_end_user(&account, "eve");
        let context = with_cookie(&eve, "/v1/me/context").await;
        assert!(!context.headers.contains_key(header::SET_COOKIE));
        assert_eq!(context.ok()["roles"], json!([]), "the header holds");
        refusal(&with_cookie(&eve, "/v1/audit").await, 403, "account_admin_required");
    }
}

#[tokio::test]
async fn s8_an_admin_of_two_accounts_stays_in_both() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let accounts = [gateway.account("Acme").await, gateway.account("Other").await];
        let [own, other] = accounts.each_ref().map(|account| format!("/v1/accounts/{account}/admins"));
        let operator = gateway.operator();
        for path in [&own, &other] {
            operator.post(path, json!({"user_email": "ada@acme.com"})).await.ok();
        }
        let of = async |path: &str| operator.get(path).await.ok()["items"].clone();
        let before = of(&own).await;
        let renamed = json!({"new_email": "al@acme.com", "role": "copilot_org_admin"});
        operator.patch(&format!("{other}/ada@acme.com"), renamed).await.ok();
        operator.delete(&format!("{other}/al@acme.com")).await.ok();
        assert_eq!((of(&own).await, of(&other).await), (before.clone(), json!([])));
        assert_eq!((&before[0]["user_email"], &before[0]["role"]), (&json!("ada@acme.com"), &json!("account_admin")));
    }
}

/// An account with 100 credits a month, and a plan that gives its org some of them.
struct Funded {
    admin: Client,
    account: String,
    plan: String,
    org: String,
}

impl Funded {
    async fn new(gateway: &Gateway, credits: &str) -> Self {
        let account = gateway.account("Acme").await;
        gateway.allocate(&account, "100").await;
        let org = gateway.org(&account, "copilot", "Research").await;
        let plan = gateway.plan(&account).await;
        gateway.allot(&account, &plan, ("org", &org), credits).await;
        Self { admin: gateway.as_account_admin(&account), account, plan, org }
    }

    async fn use_up(&self, cost: u32) {
        let body = json!({"org_id": self.org, "raw_cost": cost});
        self.admin.post(&format!("{BUDGETS}/usage/record"), body).await.ok();
    }

    /// What the org has and has used, and the levels of the alerts.
    async fn told(&self) -> Value {
        let usage = self.admin.get(&format!("{BUDGETS}/usage-by-scope")).await.ok()["items"][0].clone();
        let alerts = self.admin.get(&format!("{BUDGETS}/alerts")).await.ok();
        let levels: Vec<_> = alerts["items"].as_array().unwrap().iter().map(|alert| &alert["alert_level"]).collect();
        json!([usage["allocated_credits"], usage["used"], levels])
    }
}

#[tokio::test]
async fn s12_no_amount_is_no_number() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let Funded { account, plan, org, .. } = Funded::new(&gateway, "10").await;
        let operator = gateway.operator_for(&account);
        let over = |field: &str| format!(r#"{{"account_id":"{account}","{field}":AMOUNT}}"#);
        let scoped = |rest: &str| format!(r#"{{"plan_id":"{plan}","scope_type":"org","scope_id":"{org}",{rest}}}"#);
        let equal = |rest: &str| format!(r#"{{"plan_id":"{plan}","scope_type":"org","scope_ids":["{org}"],{rest}}}"#);
        let one = format!("/v1/accounts/{account}");
        let post = |path: &str, body: String| (Method::POST, path.to_owned(), body);
        let budgets = |path: &str, body: String| (Method::POST, format!("{BUDGETS}{path}"), body);
        let renewal =
            r#"{"cycle_start":"2026-01-01T00:00:00Z","cycle_end":"2026-02-01T00:00:00Z","rollover_cap":AMOUNT}"#;
        let requests = [
            post("/v1/accounts", r#"{"account_name":"New","max_budget":AMOUNT}"#.to_owned()),
            (Method::PATCH, one.clone(), r#"{"max_budget":AMOUNT}"#.to_owned()),
            post("/v1/budgets/account-allocation", over("monthly_credits")),
            post("/v1/budgets/account-allocation", over("overflow_limit")),
            post("/v1/budgets/account-allocation", over("credit_factor")),
            budgets("/allocations/upsert", scoped(r#""allocated_credits":AMOUNT"#)),
            budgets("/allocations/upsert", scoped(r#""allocated_credits":1,"overflow_cap":AMOUNT"#)),
            budgets("/distribute/equal", equal(r#""total_credits":AMOUNT"#)),
            budgets("/distribute/equal", equal(r#""total_credits":1,"overflow_cap":AMOUNT"#)),
            budgets("/overrides", scoped(r#""override_credits":AMOUNT"#)),
            budgets("/usage/record", r#"{"raw_cost":AMOUNT}"#.to_owned()),
            budgets("/cycles/renew", renewal.to_owned()),
        ];
        let before = gateway.operator().get(&one).await.ok();
        for (method, path, body) in &requests {
            let too_fine_or_large = ["0.0000000001", "9000000001", r#""9000000000.000000001""#];
            let no_amounts = ["NaN", "Infinity", "-Infinity", r#""NaN""#, r#""Infinity""#, "1e999", "-1", r#""1e999""#];
            for amount in no_amounts.into_iter().chain(too_fine_or_large) {
                let request = operator.request(method.clone(), path).header(header::CONTENT_TYPE, "application/json");
                let reply = operator.send(request.body(body.replace("AMOUNT", amount))).await;
                let status = reply.status.as_u16();
                assert!(matches!(status, 400 | 422), "{method} {path} {body} {amount}: {status} {}", reply.text());
            }
        }
        for threshold in ["NaN", "inf", "-1"] {
            invalid(&operator.get(&format!("{BUDGETS}/alerts?threshold={threshold}")).await, "threshold");
        }
        assert_eq!(gateway.operator().get(&one).await.ok(), before);
        assert_eq!(gateway.ledger(&account).await, []);
        assert!(gateway.verify_books().await.differences.is_empty());
    }
}

#[tokio::test]
async fn c5_usage_and_alerts_know_the_override_that_holds() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let funded = Funded::new(&gateway, "10").await;
        funded.use_up(18).await;
        assert_eq!(funded.told().await, json!([10, 18, ["exceeded"]]));
        let path = format!("{BUDGETS}/overrides");
        let over = async |credits: u32| {
            let body = json!({"plan_id": funded.plan, "scope_type": "org", "scope_id": funded.org, "override_credits": credits});
            text(&funded.admin.post(&path, body).await.ok()["item"]["id"])
        };
        over(60).await;
        assert_eq!(funded.told().await, json!([60, 18, []]));
        let latest = over(20).await;
        assert_eq!(funded.told().await, json!([20, 18, ["critical"]]));
        funded.admin.delete(&format!("{path}/{latest}")).await.ok();
        assert_eq!(funded.told().await, json!([60, 18, []]));
    }
}

#[tokio::test]
async fn c7_usage_and_alerts_are_of_the_window() {
    for backend in backends().await {
        let (gateway, clock) = at_mid_january(backend).await;
        let funded = Funded::new(&gateway, "50").await;
        funded.use_up(45).await;
        assert_eq!(funded.told().await, json!([50, 45, ["critical"]]));
        clock.advance(Duration::from_secs(17 * 24 * 3600));
        let funded = Funded { admin: gateway.as_account_admin(&funded.account), ..funded };
        assert_eq!(funded.told().await, json!([50, 0, []]), "February");

        let quarterly = json!({"name": "Quarters", "cycle": "quarterly"});
        let plan = text(&funded.admin.post(&format!("{BUDGETS}/plans"), quarterly).await.ok()["item"]["id"]);
        gateway.allot(&funded.account, &plan, ("org", &funded.org), "50").await;
        let effective = funded.admin.get(&format!("{BUDGETS}/effective-allocation?plan_id={plan}")).await.ok();
        assert_eq!(effective["items"][0]["window"]["end"], "2026-04-01T00:00:00Z", "{effective}");
    }
}

#[tokio::test]
async fn c11_what_is_taken_is_named() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        for domain in ["console", "copilot"] {
            let orgs = format!("/v1/{domain}/orgs");
            let org = gateway.org(&account, domain, "Research").await;
            let other = gateway.org(&account, domain, "Science").await;
            let team = json!({"org_id": org, "name": "Language"});
            gateway.team(&account, domain, &org, "Language").await;
            let teams = format!("/v1/{domain}/teams");
            for taken in [
                admin.post(&orgs, json!({"name": "Research"})).await,
                admin.patch(&format!("{orgs}/{other}"), json!({"name": "Research"})).await,
                admin.post(&teams, team.clone()).await,
            ] {
                assert_eq!(refusal(&taken, 409, "already_exists")["field"], "name");
            }
            gateway.team(&account, domain, &other, "Language").await;
        }
        // Of presets with one code that are made at the same moment, there is one.
        let path = "/v1/copilot/guardrails/presets";
        let calls = (0..6).map(|number| {
            let (admin, body) = (admin.clone(), json!({"code": "own", "name": format!("Own {number}")}));
            async move { admin.post(path, body).await.ok()["item"]["id"].clone() }
        });
        let mut made = futures_util::future::join_all(calls).await;
        made.dedup();
        assert_eq!(made.len(), 1, "{made:?}");
    }
}

#[tokio::test]
async fn c13_an_accounts_domain_is_not_its_events_label() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let change = json!({"domain": "console.example"});
        gateway.operator().patch(&format!("/v1/accounts/{account}"), change).await.ok();
        let admin = gateway.as_account_admin(&account);
        let of = async |domain: &str| {
            admin.get(&format!("/v1/audit?domain={domain}&action=update")).await.ok()["items"].clone()
        };
        assert_eq!(of("console").await, json!([]));
        let events = of("iam").await;
        assert_eq!((&events[0]["domain"], &events[0]["object_id"]), (&json!("iam"), &json!(account)), "{events}");
        assert_eq!(events[0]["updated_values"]["domain"], "console.example");
        assert_eq!(events[0]["changed_by"], "master_key", "the account sees what the operator did");
    }
}

#[tokio::test]
async fn c15_a_misspelt_field_is_named() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let operator = gateway.operator();
        let new = json!({"account_name": "Beta", "email_domain": "beta.example"});
        invalid(&operator.post("/v1/accounts", new).await, "/email_domain");
        for field in ["provider", "settings"] {
            let body = json!({"enabled": true, field: "google"});
            invalid(&operator.post(&format!("/v1/accounts/{account}/sso"), body).await, &format!("/{field}"));
        }
    }
}
