//! What the upstream hears about the caller, and what it must not hear from them.

use std::collections::BTreeMap;

use alchemi::dev::upstream::Recorded;
use http::Method;
use serde_json::json;

use crate::common::{Backend, Gateway, Person, UPSTREAM_KEY};
use crate::{Stage, chat};

/// The names of context headers as an upstream might fold them.
fn folded(name: &str) -> String {
    name.to_ascii_lowercase().replace(['_', '.'], "-")
}

/// Every spelling of a header that an upstream might take for `name`.
fn spellings(name: &str) -> Vec<String> {
    let title = name.split('-').map(|word| word[..1].to_uppercase() + &word[1..]).collect::<Vec<_>>();
    vec![
        title.join("-"),
        name.to_uppercase(),
        name.replace('-', "_"),
        title.join("_"),
        name.replace('-', "."),
        name.replacen('-', "_", 1),
        name.replacen('-', ".", 1).to_uppercase(),
    ]
}

#[tokio::test]
async fn context_arrives_exactly_once_with_our_value_whatever_the_caller_spells() {
    let stage = Stage::set().await;
    let (gateway, account) = (&stage.gateway, &stage.account);
    let org = gateway.org(account, "copilot", "Research").await;
    let team = gateway.team(account, "copilot", &org, "Physics").await;
    let user = gateway.user(account, "copilot", "ada", &[&team]).await;
    let person = Person::of(account, "ada").role("copilot_team_admin").role("reader").domains(&["copilot", "x y"]);
    let token = gateway.token(&person);

    let ours = [
        "account-id",
        "subject",
        "roles",
        "scopes",
        "product-domains",
        "org-id",
        "user-id",
        "reservation-id",
        "context",
        "anything-else",
    ];
    let ours = ours.map(|name| format!("x-alchemi-{name}"));
    let theirs = ["customer-id", "tags", "call-id", "end-user-id", "spend-logs-metadata", "api-key", "timeout"];
    let theirs = theirs.map(|name| format!("x-litellm-{name}"));
    let mut forged = Vec::new();
    for name in ours.iter().chain(&theirs) {
        // Each twice, as some parsers keep the first and some the last.
        forged.extend([spellings(name), spellings(name)].concat());
    }
    let disguised = ["x_account_id", "X-Account_Id", "x.account.id", "x_alchemi_domain", "x.alchemi.team.id"];
    let forwarding = ["X-Forwarded-For", "X-Forwarded-Host", "X_Forwarded_Proto", "Forwarded", "X-Real-Ip"];
    forged.extend(disguised.iter().chain(&forwarding).map(|name| (*name).to_owned()));
    // A request takes about a hundred headers.
    for forged in forged.chunks(70) {
        let forged: String = forged.iter().map(|name| format!("{name}: evil\r\n")).collect();
        let sent = send_raw(&stage, &token, &forged).await;
        let expected = expected(&stage, &sent, [&org, &team, &user]);
        check(&sent.1, &token, &expected);
    }
}

/// Sends a question with these headers; gives our id of it, and what the upstream received.
async fn send_raw(stage: &Stage, token: &str, forged: &str) -> (String, Recorded) {
    let body = chat("gpt-4o-mini").to_string();
    let answer = stage
        .gateway
        .raw(format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway.example\r\nAuthorization: Bearer {token}\r\n{forged}\
             Connection: close, X-Alchemi-Account-Id, x-hop, authorization, X-LiteLLM-Tags\r\nX-Hop: evil\r\n\
             X-Request-Id: mine\r\nX-Kept: as-it-came\r\nX-Kept: twice\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let id = answer.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap().trim().to_owned();
    (id, stage.gateway.last_forwarded())
}

fn expected(stage: &Stage, (id, _): &(String, Recorded), [org, team, user]: [&str; 3]) -> Vec<(&'static str, String)> {
    let (gateway, account) = (&stage.gateway, &stage.account);
    vec![
        ("x-alchemi-account-id", account.clone()),
        ("x-alchemi-subject", "ada".to_owned()),
        ("x-alchemi-roles", "copilot_team_admin,reader".to_owned()),
        ("x-alchemi-scopes", "copilot_team_admin,reader".to_owned()),
        ("x-alchemi-product-domains", "copilot,x%20y".to_owned()),
        ("x-alchemi-domain", "copilot".to_owned()),
        ("x-alchemi-org-id", org.to_owned()),
        ("x-alchemi-team-id", team.to_owned()),
        ("x-alchemi-user-id", user.to_owned()),
        ("x-alchemi-reservation-id", id.clone()),
        ("x-litellm-customer-id", format!("{account}:{user}")),
        ("x-litellm-tags", format!("account:{account},domain:copilot,org:{org},team:{team}")),
        ("x-litellm-call-id", id.clone()),
        ("x-request-id", id.clone()),
        ("authorization", format!("Bearer {UPSTREAM_KEY}")),
        ("x-forwarded-for", "127.0.0.1".to_owned()),
        ("x-forwarded-proto", "http".to_owned()),
        ("x-forwarded-host", "gateway.example".to_owned()),
        ("host", gateway.upstream.url().trim_start_matches("http://").to_owned()),
    ]
}

/// Every one of ours once and with our value, nothing else like it, and nothing of the caller's.
fn check(sent: &Recorded, token: &str, expected: &[(&'static str, String)]) {
    assert!(sent.headers.iter().all(|(_, value)| !value.contains("evil")), "{:?}", sent.headers);
    let mut seen: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, value) in &sent.headers {
        seen.entry(folded(name)).or_default().push(value);
    }
    for (name, value) in expected {
        assert_eq!(seen.get(*name).map(Vec::as_slice), Some([value.as_str()].as_slice()), "{name}");
    }
    let known = |name: &str| expected.iter().any(|(expected, _)| *expected == name);
    let strangers = seen.keys().filter(|name| name.starts_with("x-alchemi") || name.starts_with("x-litellm"));
    assert_eq!(strangers.filter(|name| !known(name)).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(seen["x-kept"], ["as-it-came", "twice"]);
    assert!(!seen.contains_key("x-hop") && !sent.headers.iter().any(|(_, value)| value.contains(token)));
    assert_eq!(seen["traceparent"].len(), 1);
}

#[tokio::test]
async fn the_callers_credentials_stay_here_and_the_upstreams_stay_there() {
    let stage = Stage::set().await;
    let request = stage.ada.request(Method::POST, "/v1/chat/completions");
    let request = request
        .header("cookie", "session=mine")
        .header("x-goog-api-key", "mine")
        .header("x-api-key", stage.ada.token());
    let reply = stage.ada.send(request.json(&chat("gpt-4o-mini"))).await;
    let sent = stage.gateway.last_forwarded();
    assert_eq!(sent.header("authorization"), Some(format!("Bearer {UPSTREAM_KEY}").as_str()));
    for name in ["cookie", "x-goog-api-key", "x-api-key"] {
        assert_eq!(sent.header_values(name), Vec::<&str>::new(), "{name}");
    }
    let told = format!("{:?} {}", reply.headers, reply.text());
    assert!(!told.contains(UPSTREAM_KEY));
    assert!(
        reply.headers.keys().all(|name| !name.as_str().starts_with("x-litellm-key")),
        "what our key has spent is ours"
    );
}

#[tokio::test]
async fn a_subject_that_is_no_ascii_is_encoded() {
    let stage = Stage::set().await;
    let ada = stage.gateway.as_end_user(&stage.account, "Ada, Gräfin\n50%");
    ada.post("/v1/chat/completions", chat("gpt-4o-mini")).await.ok();
    let sent = stage.gateway.last_forwarded();
    assert_eq!(sent.header("x-alchemi-subject"), Some("Ada%2C%20Gr%C3%A4fin%0A50%25"));
}

#[tokio::test]
async fn a_trace_goes_on_and_a_malformed_one_begins_anew() {
    let stage = Stage::set().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (sent, kept) in
        [(trace, true), ("00-00000000000000000000000000000000-b7ad6b7169203331-01", false), ("x", false)]
    {
        let request = stage.ada.request(Method::POST, "/v1/chat/completions").header("traceparent", sent);
        stage.ada.send(request.json(&chat("gpt-4o-mini"))).await.ok();
        let arrived = stage.gateway.last_forwarded();
        assert_eq!(arrived.header("traceparent") == Some(sent), kept, "{sent}");
    }
}

#[tokio::test]
async fn a_clients_own_id_goes_along_beside_ours() {
    let stage = Stage::set().await;
    let ask = async |client: &crate::Client, own: &str| {
        let request = client.request(Method::POST, "/v1/chat/completions").header("x-request-id", own);
        client.send(request.json(&chat("gpt-4o-mini"))).await
    };
    let reply = ask(&stage.ada, "client-7/b").await;
    assert_eq!(reply.header("x-correlation-id"), "client-7/b");
    assert_eq!(reply.header("x-request-id").len(), 36);
    let sent = stage.gateway.last_forwarded();
    assert_eq!(sent.header_values("x-correlation-id"), ["client-7/b"]);
    assert_eq!(sent.header_values("x-request-id"), [reply.header("x-request-id")]);
    // A refusal, and an answer of the control plane.
    assert_eq!(ask(&stage.gateway.anybody(), "client-8").await.header("x-correlation-id"), "client-8");
    let me = stage.ada.request(Method::GET, "/v1/me/context").header("x-request-id", "client-9");
    assert_eq!(stage.ada.send(me).await.header("x-correlation-id"), "client-9");
    for odd in ["x".repeat(129), "two words".to_owned()] {
        assert!(!ask(&stage.ada, &odd).await.headers.contains_key("x-correlation-id"), "{odd}");
        assert!(stage.gateway.last_forwarded().header_values("x-correlation-id").is_empty());
    }
}

#[tokio::test]
async fn without_litellm_behind_us_nothing_is_said_to_it() {
    let stage = Stage::with(Backend::Sqlite, |config| config.context.litellm = false).await;
    stage.ada.post("/v1/chat/completions", chat("gpt-4o-mini")).await.ok();
    let sent = stage.gateway.last_forwarded();
    assert!(sent.headers.iter().all(|(name, _)| !name.starts_with("x-litellm-")));
    assert_eq!(sent.header("x-alchemi-account-id"), Some(stage.account.as_str()));
}

#[tokio::test]
async fn the_upstreams_own_key_passes_as_it_came_but_for_our_context() {
    let stage = Stage::set().await;
    let own = stage.gateway.anybody().with_token(UPSTREAM_KEY);
    for (path, governed) in [("/v1/chat/completions", true), ("/openai/images/generations", false)] {
        let body = if governed { chat("gpt-4o-mini") } else { json!({"model": "dall-e-3", "prompt": "x"}) };
        let request = own.request(Method::POST, path).header("x-alchemi-account-id", "evil").header("cookie", "ui=1");
        let reply = own.send(request.header("x_litellm_tags", "evil").json(&body)).await;
        let decision = reply.header("x-alchemi-decision");
        assert_eq!((reply.status.as_u16(), decision), (200, "allow;code=passthrough"), "{}", reply.text());
        let sent = stage.gateway.last_forwarded();
        assert_eq!((sent.method.as_str(), sent.target.as_str()), ("POST", path));
        assert_eq!(sent.json(), Some(body));
        assert_eq!(sent.header("authorization"), Some(format!("Bearer {UPSTREAM_KEY}").as_str()));
        assert_eq!(sent.header("cookie"), Some("ui=1"));
        assert!(sent.headers.iter().all(|(name, value)| !folded(name).starts_with("x-alchemi") && value != "evil"));
    }
    assert_eq!(stage.gateway.ledger(&stage.account).await, [], "nothing of it is ours to meter");

    // Another key than ours is the upstream's to refuse: ours is never lent.
    let other = stage.gateway.anybody().with_token("sk-somebody-elses");
    for path in ["/v1/chat/completions", "/model/info", "/v1/images/variations"] {
        let reply = other.post(path, chat("gpt-4o-mini")).await;
        assert_eq!(reply.status, 401, "{path}");
        assert_eq!(reply.json()["error"]["code"], "401", "the upstream's own words");
        let sent = stage.gateway.upstream.last_request().unwrap();
        assert_eq!(sent.header("authorization"), Some("Bearer sk-somebody-elses"), "{path}");
    }
}

#[tokio::test]
async fn with_pass_through_off_the_upstreams_key_is_no_credential() {
    let gateway = Gateway::start_with(Backend::Sqlite, |config| config.passthrough = false).await;
    let own = gateway.anybody().with_token(UPSTREAM_KEY);
    for path in ["/v1/chat/completions", "/key/generate"] {
        let reply = own.post(path, chat("gpt-4o-mini")).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (401, "token_invalid"));
        assert!(reply.header("www-authenticate").starts_with("Bearer error="));
    }
    assert_eq!(gateway.forwarded(), []);
}

#[tokio::test]
async fn our_credential_goes_nowhere_but_to_governed_routes() {
    let stage = Stage::set().await;
    let operator = stage.gateway.operator_for(&stage.account);
    for client in [&stage.ada, &operator, &stage.gateway.anybody()] {
        for path in ["/key/generate", "/openai/images/generations", "/v1/files", "/sso/key/generate", "/"] {
            assert!(client.post(path, json!({})).await.status.is_client_error());
            assert!(client.get(path).await.status.is_client_error());
        }
    }
    assert_eq!(stage.gateway.forwarded(), []);
}
