//! The examples for embedders, at work.

use alchemi::config::Config;
use alchemi::model::models::AccessMode;
use axum::body::{Body, to_bytes};
use http::Request;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::common::{Backend, Client, Gateway, MASTER_KEY, Person};

#[expect(dead_code, unreachable_pub, reason = "an example is a program of its own")]
#[path = "../../examples/axum_embed.rs"]
mod axum_embed;
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
async fn a_tower_stack_without_axum_asks_the_policy() {
    let [known, anonymous] = tower_stack::show(AccessMode::Allow).await.unwrap();
    assert_eq!(known, (200, "gpt-4o for ada".to_owned()));
    assert!(anonymous.0 == 401 && anonymous.1.contains("token_missing"), "{anonymous:?}");
    let [known, _] = tower_stack::show(AccessMode::Deny).await.unwrap();
    assert!(known.0 == 403 && known.1.contains("model_denied"), "{known:?}");
}
