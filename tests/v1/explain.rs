//! Explanations: what they say is what the data plane does, and who may ask.

use alchemi::metering::charge::Unpriced;
use http::Method;
use serde_json::{Value, json};

use crate::common::{Client, Gateway, Person, backends};
use crate::invalid;

const EXPLAIN: &str = "/v1/policy/explain";

/// Sends a chat request with headers; gives the code of its refusal and the message, or nothing.
async fn chat(client: &Client, model: &str, headers: &[(&str, &str)]) -> Option<(String, String)> {
    let body = json!({"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16});
    let request =
        headers.iter().fold(client.request(Method::POST, "/v1/chat/completions"), |r, (n, v)| r.header(*n, *v));
    let reply = client.send(request.json(&body)).await;
    let message = reply.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
    (!reply.status.is_success()).then(|| (reply.code(), message))
}

/// Asks the same; gives the same.
async fn explained(admin: &Client, question: Value) -> (Option<(String, String)>, Value) {
    let answer = admin.post(EXPLAIN, question).await.ok();
    let text = |name: &str| answer[name].as_str().map(str::to_owned);
    let refusal = text("code").filter(|_| answer["decision"] == "deny").zip(text("detail"));
    assert_eq!(answer["decision"], if refusal.is_some() { "deny" } else { "allow" }, "{answer}");
    (refusal, answer)
}

fn rules(answer: &Value) -> Vec<(&str, bool)> {
    let asked = answer["rules"].as_array().unwrap();
    asked.iter().map(|rule| (rule["rule"].as_str().unwrap(), rule["passed"] == true)).collect()
}

#[tokio::test]
async fn what_is_explained_is_what_is_done() {
    for backend in backends().await {
        let gateway = Gateway::start_with(backend, |config| config.metering.unpriced = Unpriced::Deny).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        let org = gateway.org(&account, "copilot", "Research").await;
        let team = gateway.team(&account, "copilot", &org, "Language").await;
        let other = gateway.team(&account, "copilot", &org, "Vision").await;
        let user = gateway.user(&account, "copilot", "ada", &[&team]).await;
        let grant = gateway.grant(&account, "copilot", "gpt-4o-mini", ("team", &team), "allow").await;
        gateway.grant(&account, "copilot", "nobody-knows-its-price", ("account", &account), "allow").await;
        gateway.allocate(&account, "1000").await;
        let plan = gateway.plan(&account).await;
        let ada = gateway.as_end_user(&account, "ada");
        let ask = |model: &str| json!({"subject": "ada", "model": model, "estimate": {"input_tokens": 20, "max_output_tokens": 16}});
        let with = |name: &str, value: Value| {
            let mut question = ask("gpt-4o-mini");
            question[name] = value;
            question
        };

        let (refusal, answer) = explained(&admin, ask("gpt-4o-mini")).await;
        assert_eq!((refusal, chat(&ada, "gpt-4o-mini", &[]).await), (None, None), "{answer}");
        assert_eq!(answer["place"], json!({"user_id": user, "team_id": team, "org_id": org}));
        let names: Vec<_> = rules(&answer)
            .into_iter()
            .map(|(name, passed)| {
                assert!(passed, "{answer}");
                name
            })
            .collect();
        let chain = ["credits"; 4];
        assert_eq!(names, [&["account", "user", "domain", "model", "allocation"][..], &chain].concat());
        let model = &answer["rules"][3];
        assert_eq!((&model["grant_id"], &model["scope"]["scope_id"]), (&json!(grant), &json!(team)));
        assert!(model["detail"].as_str().unwrap().contains("gpt-4o-mini allowed by a grant on team"), "{model}");
        let whole = &answer["rules"][5];
        assert_eq!((&whole["scope"]["scope_type"], &whole["credits"]["cap"]), (&json!("account"), &json!(1000)));
        assert!(answer["estimate"]["raw_cost"].as_f64().unwrap() > 0.0, "{answer}");

        // The same user by their row, and whoever stands in the team.
        for question in
            [json!({"user_id": user, "model": "gpt-4o-mini"}), json!({"team_id": team, "model": "gpt-4o-mini"})]
        {
            assert_eq!(explained(&admin, question).await.0, None);
        }
        let nobody = explained(&admin, json!({"model": "gpt-4o-mini"})).await.0.unwrap();
        assert_eq!(nobody.0, "model_denied");

        let refused = chat(&ada, "gpt-4o", &[]).await;
        assert_eq!(refused.as_ref().unwrap().0, "model_denied");
        assert_eq!(explained(&admin, ask("gpt-4o")).await.0, refused);
        let unpriced = chat(&ada, "nobody-knows-its-price", &[]).await;
        assert_eq!(unpriced.as_ref().unwrap().0, "model_unpriced");
        let (refusal, answer) = explained(&admin, ask("nobody-knows-its-price")).await;
        assert_eq!((refusal, rules(&answer).pop()), (unpriced, Some(("price", false))));
        let mut known = ask("nobody-knows-its-price");
        known["estimate"] = json!({"raw_cost": 0.5});
        assert_eq!(explained(&admin, known).await.1["estimate"], json!({"raw_cost": 0.5, "credits": 0.5}));

        let (mut agent, mut connection) = (with("agent_id", json!("a")), with("connection_id", json!("c")));
        agent["fallbacks"] = json!(["gpt-4o-mini"]);
        connection["kind"] = json!("messages");
        let by_agent = chat(&ada, "gpt-4o-mini", &[("x-alchemi-agent-id", "a")]).await;
        let by_connection = chat(&ada, "gpt-4o-mini", &[("x-alchemi-connection-id", "c")]).await;
        assert_eq!(explained(&admin, agent).await.0, by_agent);
        assert_eq!(explained(&admin, connection).await.0, by_connection);
        assert_eq!(explained(&admin, with("fallbacks", json!(["gpt-4o"]))).await.0, refused);

        let limited = gateway.sign_in(&Person::of(&account, "ada").domains(&["console"]));
        let denied = chat(&limited, "gpt-4o-mini", &[("x-alchemi-domain", "copilot")]).await.unwrap();
        let (refusal, answer) = explained(&admin, with("product_domains_allowed", json!(["console"]))).await;
        assert_eq!((refusal.unwrap().0, denied.0), ("domain_denied".to_owned(), "domain_denied".to_owned()));
        assert_eq!(rules(&answer), [("account", true), ("user", true), ("domain", false)], "the first failure answers");

        let denied = chat(&ada, "gpt-4o-mini", &[("x-alchemi-team-id", &other)]).await;
        let (refusal, answer) = explained(&admin, with("team_id", json!(other))).await;
        assert_eq!((refusal, rules(&answer)), (denied, vec![("team", false)]));

        gateway.allot(&account, &plan, ("team", &team), "0.000000001").await;
        let exhausted = chat(&ada, "gpt-4o-mini", &[]).await.unwrap();
        let (refusal, answer) = explained(&admin, ask("gpt-4o-mini")).await;
        assert_eq!(
            (refusal.unwrap().0, exhausted.0),
            ("allocation_exhausted".to_owned(), "allocation_exhausted".to_owned())
        );
        assert_eq!(answer["status"], 402);
        let failed: Vec<_> = answer["rules"].as_array().unwrap().iter().filter(|r| r["passed"] == false).collect();
        assert_eq!((failed.len(), &failed[0]["scope"]["scope_id"]), (1, &json!(team)));
        for (enforcement, code) in
            [("soft", json!("over_cap")), ("shadow", json!("would_refuse")), ("off", json!(null))]
        {
            let terms = json!({"account_id": account, "monthly_credits": 1000, "enforcement": enforcement});
            gateway.operator().post("/v1/budgets/account-allocation", terms).await.ok();
            let (_, answer) = explained(&admin, ask("gpt-4o-mini")).await;
            assert_eq!((&answer["decision"], &answer["code"]), (&json!("allow"), &code), "{enforcement}");
        }
        // What names no model costs nothing.
        assert_eq!(explained(&admin, json!({"subject": "ada", "kind": "models"})).await.0, None);

        admin.patch(&format!("/v1/copilot/users/{user}"), json!({"status": "suspended"})).await.ok();
        let suspended = chat(&ada, "gpt-4o-mini", &[]).await;
        assert_eq!(suspended.as_ref().unwrap().0, "user_suspended");
        for own in ["models", "features", "agents", "allocation"] {
            assert_eq!(ada.get(&format!("/v1/me/{own}")).await.code(), "user_suspended", "{own}");
        }
        ada.get("/v1/me/context").await.ok();
        assert_eq!(explained(&admin, ask("gpt-4o-mini")).await.0, suspended);
        gateway.operator().post(&format!("/v1/accounts/{account}/status"), json!({"status": "suspended"})).await.ok();
        let suspended = chat(&ada, "gpt-4o-mini", &[]).await;
        assert_eq!(suspended.as_ref().unwrap().0, "account_suspended");
        assert_eq!(explained(&gateway.operator_for(&account), ask("gpt-4o-mini")).await.0, suspended);
    }
}

#[tokio::test]
async fn a_question_must_make_sense() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        let other = gateway.account("Other").await;
        let org = gateway.org(&other, "copilot", "Theirs").await;
        let user = gateway.user(&other, "copilot", "eve", &[]).await;
        for (question, pointer) in [
            (json!({}), "/model"),
            (json!({"model": "m", "subject": "ada", "user_id": user}), "/user_id"),
            (json!({"model": "m", "subject": "ada", "org_id": org}), "/org_id"),
            (json!({"model": "m", "kind": "poem"}), "/kind"),
            (json!({"model": "m", "estimate": {"raw_cost": -1}}), "/estimate/raw_cost"),
            (json!({"model": "m", "estimate": {"answers": 0}}), "/estimate/answers"),
            (json!({"model": "m", "estimate": {"tokens": 1}}), "/estimate/tokens"),
            (json!({"model": "m", "domain": "sales"}), "/domain"),
        ] {
            invalid(&admin.post(EXPLAIN, question).await, pointer);
        }
        // What is another account's does not exist.
        for question in [json!({"model": "m", "org_id": org}), json!({"model": "m", "user_id": user})] {
            let reply = admin.post(EXPLAIN, question).await;
            assert_eq!(reply.status, 404, "{}", reply.text());
        }
        let console = gateway.as_domain_admin(&account, "console");
        assert_eq!(console.post(EXPLAIN, json!({"model": "m"})).await.code(), "domain_denied");
        assert_eq!(
            console.post(EXPLAIN, json!({"model": "m", "domain": "console"})).await.ok()["code"],
            "model_denied"
        );
        // Numbers at the end of their range are no way to a free request.
        let huge = json!({"model": "m", "estimate": {"input_tokens": u64::MAX, "max_output_tokens": u64::MAX, "answers": u64::MAX}});
        gateway.open_models(&account).await;
        assert_eq!(admin.post(EXPLAIN, huge).await.status, 200);
    }
}
