//! Every call that alchemi makes to Zitadel's management API, made to the tests' stand-in in both styles; prints what was
//! said as JSON, for others to judge. It fails when the client can ask something that is not asked here.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a program of the tests: it fails by panicking"
)]
#![allow(dead_code, unused_imports, reason = "it uses its own part of the stand-in")]

#[path = "../common/zitadel.rs"]
mod zitadel;

use std::collections::BTreeSet;
use std::sync::Arc;

use alchemi::clock::SystemClock;
use alchemi::zitadel::{Management, ManagementConfig, ManagementMetrics, NewGrant, ProjectRole, Surface};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::Value;
use zitadel::{Asked, CLIENT, TOKEN, Zitadel};

#[tokio::main]
async fn main() {
    let mut said = Vec::new();
    for api in [Surface::V2, Surface::V1, Surface::Auto] {
        let zitadel = Zitadel::start("127.0.0.1:0".parse().unwrap()).await;
        let client = client(&zitadel, api);
        every_call(&zitadel, &client).await;
        let asked = operations(&client);
        let unasked: Vec<_> = ManagementMetrics::operations().filter(|name| !asked.contains(*name)).collect();
        assert!(
            unasked.is_empty() || unasked == ["token"] && api == Surface::V2,
            "{api:?} is not asked for {unasked:?}"
        );
        said.extend(zitadel.requests().iter().map(Asked::told));
    }
    println!("{}", Value::from(said));
}

/// With another credential for each style, so that all are tried.
fn client(zitadel: &Zitadel, api: Surface) -> Management {
    let url = Some(zitadel.url().to_owned());
    // It is read when the client is made.
    let key_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key_file.path(), zitadel.key_file().to_string()).unwrap();
    let config = match api {
        Surface::V2 => ManagementConfig { token: Some(TOKEN.into()), ..ManagementConfig::default() },
        Surface::V1 => ManagementConfig {
            client_id: Some(CLIENT.0.to_owned()),
            client_secret: Some(CLIENT.1.into()),
            ..ManagementConfig::default()
        },
        Surface::Auto => ManagementConfig { key_file: Some(key_file.path().to_owned()), ..ManagementConfig::default() },
    };
    let config = ManagementConfig { url, api, requests_per_second: 1_000, ..config };
    Management::new(&config, None, Arc::new(SystemClock)).unwrap()
}

/// What the client has asked with success.
fn operations(client: &Management) -> BTreeSet<String> {
    let (mut registry, mut told) = (Registry::default(), String::new());
    client.metrics().register(&mut registry);
    encode(&mut told, &registry).unwrap();
    let counted = told.lines().filter_map(|line| {
        line.strip_prefix("zitadel_calls_total{operation=\"")?.split_once("\",outcome=\"ok\"}").map(|(name, _)| name)
    });
    counted.map(str::to_owned).collect()
}

async fn every_call(zitadel: &Zitadel, client: &Management) {
    client.probe().await.unwrap();
    let (owner, tenant) = (zitadel.org("Platform"), zitadel.org("Acme"));
    let project = zitadel.project(&owner, "gateway");
    let (ada, bob) = (zitadel.user(&tenant, "ada@acme.com"), zitadel.user(&owner, "bob@platform.com"));
    assert_eq!(client.project_owner(&project, Some(&owner)).await.unwrap(), owner);
    // v1 finds another organisation's project by that organisation alone.
    let theirs = zitadel.project(&tenant, "theirs");
    assert_eq!(client.project_owner(&theirs, Some(&tenant)).await.unwrap(), tenant);
    let keys = ["reader".to_owned(), "writer".to_owned()];
    for (key, group) in keys.iter().zip([Some("gateway".to_owned()), None]) {
        let role = ProjectRole { key: key.clone(), display_name: key.clone(), group };
        client.add_role(&project, &owner, &role).await.unwrap();
    }
    assert_eq!(client.roles(&project, &owner).await.unwrap().len(), 2);
    client.add_project_grant(&project, &owner, &tenant, &keys[..1]).await.unwrap();
    let granted = client.project_grant(&project, &owner, &tenant).await.unwrap().unwrap();
    client.set_project_grant(&project, &owner, &granted, &keys).await.unwrap();
    for (user, organization) in [(&ada, &tenant), (&bob, &owner)] {
        let grant = NewGrant { user, project: &project, organization, role_keys: &keys[..1] };
        client.add_grant(&grant, &owner).await.unwrap();
        let made = client.grants(&project, organization, Some(user)).await.unwrap().remove(0);
        client.set_grant(&made, &keys).await.unwrap();
        client.set_grant(&made, &keys).await.unwrap();
        assert_eq!(client.grants(&project, organization, None).await.unwrap().len(), 1);
        client.remove_grant(&made).await.unwrap();
        client.remove_grant(&made).await.unwrap();
    }
    let found = client.users_with_email("Ada@acme.com", Some(&tenant)).await.unwrap();
    assert!(found.len() == 1 && found[0].user_id == ada && found[0].email_verified);
    client.users_with_email("ada@acme.com", None).await.unwrap();
}
