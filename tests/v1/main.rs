//! The control plane on both databases: resource by resource through its routes ([`gateway`]), and what holds across
//! all of them through a whole gateway over real HTTP ([`common`]).
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod accounts;
mod admins;
mod agents;
mod alerts;
mod audit;
mod authz;
mod budgets;
mod canary;
mod concurrency;
mod connections;
mod context;
mod conventions;
mod defects;
mod directory;
mod exercised;
mod explain;
mod features;
mod gateway;
mod guardrails;
mod idempotency;
mod identities;
mod issuers;
mod logout;
mod marketplace;
mod models;
mod operations;
mod over_commitment;
mod pages;
mod policies;
mod problems;
mod provision;
mod provision_convergence;
mod provision_cut_off;
mod provision_followed;
mod provision_items;
mod provision_told;
mod ranking;
mod reference;
mod renewals;
mod revocations;
mod rollover;
mod schemas;
mod secrets;
mod sso;
mod standing;
mod statements;
mod tenants;
mod trials;
mod usage;
mod versions;
mod windows;

use std::sync::Arc;

use alchemi::clock::{ManualClock, Timestamp};
use alchemi::server::Surroundings;
use common::{Backend, Gateway, Reply};
use http::StatusCode;
use serde_json::Value;

/// 2026-01-15T12:00:00Z
const MID_JANUARY: i64 = 1_768_478_400;

/// A gateway whose time stands still until the test moves it.
async fn at_mid_january(backend: Backend) -> (Gateway, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at(Timestamp::from_secs(MID_JANUARY)));
    let shared = Arc::clone(&clock);
    let surroundings = Surroundings { clock: shared, ..Surroundings::default() };
    (Gateway::start_in(backend, surroundings, |_| {}).await, clock)
}

/// A gateway that also believes the issuer of the description's examples.
async fn with_the_issuer_of_examples(backend: Backend) -> Gateway {
    Gateway::start_with(backend, |config| {
        let mut issuer = config.identity.issuers[0].clone();
        issuer.url = "https://login.example.com".to_owned();
        config.identity.issuers.push(issuer);
    })
    .await
}

/// Checks that an answer is a refusal as every refusal must be; gives its body.
#[track_caller]
fn refusal(reply: &Reply, status: u16, code: &str) -> Value {
    assert_eq!(reply.status, StatusCode::from_u16(status).unwrap(), "{}", reply.text());
    assert_eq!(reply.header("content-type"), "application/problem+json");
    let body = reply.json();
    assert_eq!(body["code"], code, "{body}");
    assert_eq!(body["status"], status);
    assert_eq!(body["request_id"], reply.header("x-request-id"));
    assert!(body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{body}");
    assert!(body["title"].is_string() && body["type"].is_string(), "{body}");
    body
}

/// Checks that an answer is a 422 about one field.
#[track_caller]
fn invalid(reply: &Reply, pointer: &str) {
    let body = refusal(reply, 422, "validation_failed");
    assert_eq!(body["errors"][0]["pointer"], pointer, "{body}");
}

/// The ids of the items of a list.
fn ids(list: &Value) -> Vec<String> {
    list["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("expected text, found {value}")).to_owned()
}
