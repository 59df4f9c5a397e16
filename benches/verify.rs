//! What a token costs: cold, a signature check and the claims; warm, a look-up.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a bench may panic")]

#[path = "../tests/identity/issuer.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod issuer;

use std::hint::black_box;

use alchemi::identity::IdentityConfig;
use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::json;

use issuer::{EC, ED, PROJECT, RSA, Signer, TestIssuer, identity};

fn verify(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let issuer = runtime.block_on(TestIssuer::start());
    let roles = format!("urn:zitadel:iam:org:project:{PROJECT}:roles");
    let claims = issuer.claims(json!({roles: {"account_admin": {"310716000000000001": "acme.example.com"}}}));
    let (cold, _clock) = identity(&IdentityConfig { cache_capacity: 0, ..issuer.config() });
    let (warm, _clock) = issuer.identity();
    runtime.block_on(async { tokio::join!(cold.warm(), warm.warm()) });

    let mut group = c.benchmark_group("verify");
    let signers: [(&str, &Signer, &str); 3] = [("RS256", &RSA, "rsa"), ("ES256", &EC, "ec"), ("EdDSA", &ED, "ed")];
    for (alg, signer, kid) in signers {
        let token = signer.sign(kid, &claims);
        group.bench_function(format!("cold/{alg}"), |b| {
            b.iter(|| runtime.block_on(cold.verify(black_box(&token))).unwrap());
        });
    }
    let token = RSA.sign("rsa", &claims);
    runtime.block_on(warm.verify(&token)).unwrap();
    group.bench_function("warm", |b| b.iter(|| warm.verify_cached(black_box(&token)).unwrap().unwrap()));
    group.bench_function("warm/async", |b| {
        b.iter(|| runtime.block_on(warm.verify(black_box(&token))).unwrap());
    });
    group.finish();
}

criterion_group!(benches, verify);
criterion_main!(benches);
