//! Several issuers: whose tokens are for an account, and whose make an operator.

use std::sync::Arc;

use alchemi::clock::SystemClock;
use alchemi::dev::DevIssuer;
use alchemi::id::RandomIds;
use alchemi::identity::IssuerConfig;
use jsonwebtoken::Algorithm;
use serde_json::json;

use crate::common::{Backend, Client, Gateway, Person, backends};
use crate::{invalid, refusal};

/// A gateway that believes two issuers; whether the first and the other may make super admins.
async fn with_two(backend: Backend, platform: [Option<bool>; 2]) -> (Gateway, DevIssuer) {
    let (clock, ids) = (Arc::new(SystemClock), Arc::new(RandomIds));
    let other = DevIssuer::start("127.0.0.1:0".parse().unwrap(), clock, ids).await.unwrap();
    let gateway = Gateway::start_with(backend, |config| {
        config.identity.issuers.push(IssuerConfig::at(other.url()));
        for (issuer, platform) in config.identity.issuers.iter_mut().zip(platform) {
            issuer.platform = platform;
        }
    })
    .await;
    (gateway, other)
}

/// A person with the same claims, by the other issuer's word.
fn at_the_other(gateway: &Gateway, other: &DevIssuer, person: &Person) -> Client {
    let mut claims = gateway.claims(person);
    claims.insert("iss".to_owned(), json!(other.url()));
    gateway.anybody().with_token(&other.sign(Algorithm::RS256, &claims).unwrap())
}

#[tokio::test]
async fn another_issuers_tokens_are_as_those_of_an_unknown_organisation() {
    for backend in backends().await {
        let (gateway, other) = with_two(backend, [None, None]).await;
        let account = gateway.account("Acme").await;
        gateway.open_models(&account).await;
        let config = format!("/v1/accounts/{account}/zitadel/config");
        let bound = json!({"organization_id": "7001", "issuer": gateway.issuer.url()});
        gateway.operator().put(&config, bound).await.ok();

        let by_organisation = Person::of("nothing", "eve").of_org("7001").role("account_admin");
        let by_claim = Person::of(&account, "eve").of_org("7001").role("account_admin");
        let chat = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]});
        let stranger = gateway.sign_in(&Person::of("nothing", "eve").of_org("7999").role("account_admin"));
        let unknown = refusal(&stranger.get("/v1/audit").await, 403, "account_context_required");
        let unknown_there = stranger.post("/v1/chat/completions", chat.clone()).await;
        assert_eq!(unknown_there.status, 403, "{}", unknown_there.text());
        for person in [&by_organisation, &by_claim] {
            let own = gateway.sign_in(person);
            assert_eq!(own.get("/v1/me/context").await.ok()["account_id"], account.as_str());
            own.get("/v1/audit").await.ok();
            own.post("/v1/chat/completions", chat.clone()).await.ok();

            let foreign = at_the_other(&gateway, &other, person);
            assert_eq!(foreign.get("/v1/me/context").await.ok()["account_id"], json!(null));
            let refused = refusal(&foreign.get("/v1/audit").await, 403, "account_context_required");
            assert_eq!(refused["detail"], unknown["detail"]);
            let there = foreign.post("/v1/chat/completions", chat.clone()).await;
            assert_eq!((there.status, there.code()), (unknown_there.status, unknown_there.code()));
            // Nor by asking for it.
            refusal(&foreign.within(&account).get("/v1/audit").await, 403, "account_mismatch");
        }
        assert_eq!(gateway.forwarded().len(), 2);

        // An account that is bound to no issuer is the first one's.
        let warnings = async || gateway.operator().get("/readyz?verbose").await.ok()["warnings"].to_string();
        gateway.operator().put(&config, json!({"issuer": null})).await.ok();
        let foreign = at_the_other(&gateway, &other, &by_organisation);
        refusal(&foreign.get("/v1/audit").await, 403, "account_context_required");
        gateway.sign_in(&by_organisation).get("/v1/audit").await.ok();

        // Found, but switched off: it is said so, instead of that it was not found.
        gateway.operator().put(&config, json!({"enabled": false})).await.ok();
        let own = gateway.sign_in(&by_organisation);
        refusal(&own.get("/v1/audit").await, 403, "binding_off");
        assert_eq!(own.post("/v1/chat/completions", chat).await.code(), "binding_off");

        let misspelt = json!({"issuer": format!("{}/", gateway.issuer.url())});
        invalid(&gateway.operator().put(&config, misspelt).await, "/issuer");
        let update = r#"UPDATE "Alchemi_AccountZitadelTable" SET enabled = TRUE, issuer = 'https://old.example.com'"#;
        gateway.database.execute(update).await;
        assert!(warnings().await.contains("https://old.example.com, which is none of"), "{}", warnings().await);
    }
}

#[tokio::test]
async fn the_first_issuer_is_the_platforms_own_and_another_when_it_is_told_to() {
    for backend in backends().await {
        let cases =
            [([None, None], [true, false]), ([None, Some(true)], [true, true]), ([Some(false), None], [false; 2])];
        for (platform, may) in cases {
            // A file is one gateway's; a server's database may have been another's before.
            let (gateway, other) = with_two(backend.clone(), platform).await;
            let account = gateway.account(&format!("Acme {platform:?}")).await;
            let ada = Person::of(&account, "ada").role("account_admin");
            let admins = [gateway.sign_in(&ada), at_the_other(&gateway, &other, &ada)];
            for (admin, may) in admins.iter().zip(may) {
                // For an account that is bound to no issuer.
                let account = admin.get("/v1/me/context").await.ok()["account_id"].clone();
                assert_eq!(account.is_string(), may, "{platform:?}: {account}");
            }
            let root = Person::of("nothing", "root").role("super_admin");
            let [first, second] = [gateway.sign_in(&root), at_the_other(&gateway, &other, &root)];
            for (client, may) in [(first, may[0]), (second, may[1])] {
                let context = client.get("/v1/me/context").await.ok();
                assert_eq!(context["is_super_admin"], may, "{platform:?}: {context}");
                assert_eq!(context["roles"], if may { json!(["super_admin"]) } else { json!([]) });
                let listed = client.get("/v1/accounts").await;
                assert_eq!(listed.status.as_u16(), if may { 200 } else { 403 }, "{platform:?}");
            }
        }
    }
}
