//! The examples for embedders, at work.

use alchemi::config::Config;
use axum::body::{Body, to_bytes};
use http::Request;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::common::{Backend, Client, Gateway, MASTER_KEY, Person, UPSTREAM_KEY};

#[expect(dead_code, unreachable_pub, reason = "an example is a program of its own")]
#[path = "../../examples/axum_embed.rs"]
mod axum_embed;
#[expect(dead_code, unreachable_pub, reason = "an example is a program of its own")]
#[path = "../../examples/plugin.rs"]
mod plugin;
#[expect(dead_code, unreachable_pub, reason = "an example is a program of its own")]
#[path = "../../examples/tower_stack.rs"]
mod tower_stack;

async fn get(app: &axum::Router, path: &str, caller: Option<&Client>) -> (u16, String) {
    let mut request = Request::get(path);
    if let Some(caller) = caller {
        request = request.header("authorization", format!("Bearer {}", caller.token()));
    }
    let answer = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    (status, String::from_utf8(to_bytes(answer.into_body(), usize::MAX).await.unwrap().to_vec()).unwrap())
}

#[tokio::test]
async fn an_axum_application_knows_its_callers_and_has_the_control_plane() {
    // The gateway lends its issuer, and makes the account in the database that both have.
    let gateway = Gateway::start(Backend::Sqlite).await;
    let account = gateway.account("Acme").await;
    let config = Config::from_toml(&format!(
        "master_key = '{MASTER_KEY}'\n[database]\nurl = '{}'\n[identity]\nproject_id = '{}'\nissuers = [{{ url = '{}' }}]\n",
        gateway.database_url(),
        gateway.issuer.project_id(),
        gateway.issuer.url(),
    ));
    let app = axum_embed::application(&config.unwrap()).await.unwrap();
    let ada = gateway.as_end_user(&account, "ada");
    let admin = gateway.as_domain_admin(&account, "copilot");

    assert_eq!(get(&app, "/hello", None).await, (200, "Hello".to_owned()));
    assert_eq!(get(&app, "/hello", Some(&ada)).await, (200, "Hello ada".to_owned()));
    let forged = gateway.anybody().with_token("a.b.c");
    assert_eq!(get(&app, "/hello", Some(&forged)).await.0, 401);
    let (status, body) = get(&app, "/report", None).await;
    assert!(status == 401 && body.contains("token_missing"), "{body}");
    let (status, body) = get(&app, "/report", Some(&ada)).await;
    assert!(status == 403 && body.contains("domain_admin_required"), "{body}");
    // The task-local says the same as the extractor.
    assert_eq!(get(&app, "/report", Some(&admin)).await, (200, format!("Report of {account} for {}", "copilot-admin")));
    let (status, body) = get(&app, "/v1/me/context", Some(&admin)).await;
    let context: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &context["account_id"]), (200, &json!(account)));
    // The account that a token does not name is nobody's.
    let stranger = gateway.sign_in(&Person::of("nowhere", "eve"));
    assert_eq!(get(&app, "/report", Some(&stranger)).await.0, 403);
}

#[tokio::test]
async fn a_tower_service_is_governed_and_paid_like_an_upstream() {
    let (answers, spent) = tower_stack::show().await.unwrap();
    let statuses: Vec<_> = answers.iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses, [200, 200, 402, 403], "{answers:?}");
    assert_eq!(answers[0].1["choices"][0]["message"]["content"], "Pretty Polly");
    assert_eq!(answers[0].1["user"], "ada", "the service at the bottom knows who calls");
    let codes: Vec<_> = answers[2..].iter().map(|(_, body)| body["error"]["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["allocation_exhausted", "model_denied"]);
    // Two answers at 4 tokens in and 4 out.
    assert_eq!(spent.to_string(), "0.024");
}

#[tokio::test]
async fn a_tower_service_has_the_control_plane_beside_it() {
    let stack = tower_stack::Stack::over(tower::service_fn(tower_stack::parrot), "1").await.unwrap();
    let get = async |path: &str, token: &str| {
        let request = Request::get(path).header("host", "h").header("authorization", format!("Bearer {token}"));
        let answer = stack.service.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert!(answer.headers().contains_key("x-request-id"), "{path}");
        let status = answer.status().as_u16();
        (status, String::from_utf8(to_bytes(answer.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap())
    };
    let (status, context) = get("/v1/me/context", &stack.token).await;
    assert!(status == 200 && context.contains(r#""auth_provider":"zitadel""#), "{context}");
    for (path, token, status, code) in [
        ("/v1/me/context", "a.b.c", 401, "token_invalid"),
        ("/v1/accounts", &*stack.token, 403, "super_admin_required"),
        ("/elsewhere", &*stack.token, 404, "route_not_governed"),
        ("/.alchemi/refused/field", &*stack.token, 400, "malformed_request"),
    ] {
        let (answered, body) = get(path, token).await;
        assert!(answered == status && body.contains(code), "{path}: {answered} {body}");
    }
}

#[tokio::test]
async fn a_guardrail_of_ones_own_masks_and_refuses() {
    let gateway = Gateway::start(Backend::Sqlite).await;
    let account = gateway.account("Acme").await;
    gateway.open_models(&account).await;
    let config = Config::from_toml(&format!(
        "listen = '127.0.0.1:0'\nmaster_key = '{MASTER_KEY}'\n[database]\nurl = '{}'\n\
         [identity]\nproject_id = '{}'\nissuers = [{{ url = '{}' }}]\n\
         [upstream]\nurls = ['{}']\napi_key = '{UPSTREAM_KEY}'\nhealth_interval = 0\n",
        gateway.database_url(),
        gateway.issuer.project_id(),
        gateway.issuer.url(),
        gateway.upstream.url(),
    ));
    let server = plugin::start(&config.unwrap()).await.unwrap();
    let ada = gateway.as_end_user(&account, "ada").at(&format!("http://{}", server.address()));
    let ask = |content: &str| json!({"model": "gpt-4o", "messages": [{"role": "user", "content": content}]});
    ada.post("/v1/chat/completions", ask("How is Bluebird?")).await.ok();
    let seen = String::from_utf8(gateway.last_forwarded().body.to_vec()).unwrap();
    assert!(seen.contains("How is [project]?") && !seen.contains("Bluebird"), "{seen}");
    let long = ask(&"x".repeat(200_000));
    let refused = ada.post("/v1/chat/completions", long.clone()).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (403, "guardrail_blocked"));
    let admin = gateway.as_account_admin(&account).at(&format!("http://{}", server.address()));
    admin.post("/v1/chat/completions", long).await.ok();
    server.stop().await;
}
