//! Project Wycheproof's JWS and JWK vectors through our own import and verification.

use std::collections::BTreeMap;
use std::path::PathBuf;

use alchemi::identity::jwks::{Key, KeySet};
use alchemi::identity::jwt::Jws;
use serde_json::Value;

/// Byte for byte the valid vector 357, and yet marked invalid.
const DEFECTIVE: [u64; 2] = [367, 370];

/// Valid vectors that every careful verifier with these algorithms refuses: ES512
/// (347, 351), a PS384 token under a key pinned to PS256 (346, 350), and stray
/// characters that only lax base64 skips (372, 373).
const EXPECTED_REFUSALS: [u64; 6] = [346, 347, 350, 351, 372, 373];

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Class {
    Accepted,
    Refused,
    /// Valid, with an algorithm that is never accepted: HMAC, PSS, ES512.
    Unsupported,
    Excluded,
}

fn folder() -> Option<PathBuf> {
    match std::env::var_os("ALCHEMI_WYCHEPROOF_DIR") {
        Some(folder) => Some(folder.into()),
        None if std::env::var_os("CI").is_some() => {
            panic!("ALCHEMI_WYCHEPROOF_DIR must name the folder of the vectors")
        }
        None => {
            println!("skipped: ALCHEMI_WYCHEPROOF_DIR names no folder with the vectors");
            None
        }
    }
}

/// As a verifier would: import the key or set, find the key, verify.
fn accepts(keys: &Value, token: &str) -> bool {
    let Ok(jws) = Jws::parse(token) else { return false };
    if keys.get("keys").is_some() {
        let Ok(set) = KeySet::parse(keys.to_string().as_bytes()) else { return false };
        return jws.kid().and_then(|kid| set.get(kid)).is_some_and(|key| jws.verify(key).is_ok());
    }
    let kid = keys.get("kid").and_then(Value::as_str);
    let named = jws.kid().is_none() || kid.is_none() || jws.kid() == kid;
    named && keys.as_object().and_then(|jwk| Key::import(jwk).ok()).is_some_and(|key| jws.verify(&key).is_ok())
}

fn run(file: &str) -> Option<BTreeMap<Class, usize>> {
    let text = std::fs::read_to_string(folder()?.join(file)).unwrap();
    let vectors: Value = serde_json::from_str(&text).unwrap();
    let mut classes = BTreeMap::new();
    for group in vectors["testGroups"].as_array().unwrap() {
        let keys = group.get("public").unwrap_or(&group["private"]);
        for test in group["tests"].as_array().unwrap() {
            let token = match &test["jws"] {
                Value::Null => continue, // JWE
                Value::String(compact) => compact.clone(),
                json_serialization => json_serialization.to_string(),
            };
            let token = token.as_str();
            let id = test["tcId"].as_u64().unwrap();
            let signature_file = file.contains("signature");
            let class = if signature_file && DEFECTIVE.contains(&id) {
                Class::Excluded
            } else {
                match (test["result"].as_str().unwrap(), accepts(keys, token)) {
                    ("valid", true) => Class::Accepted,
                    ("valid", false) if is_unsupported(keys, token) => Class::Unsupported,
                    ("valid", false) => panic!("{file} {id}: valid and refused"),
                    ("invalid", false) => Class::Refused,
                    (result, accepted) => panic!("{file} {id}: {result}, accepted: {accepted}"),
                }
            };
            if signature_file && EXPECTED_REFUSALS.contains(&id) {
                assert_eq!(class, Class::Unsupported, "{id}");
            }
            *classes.entry(class).or_insert(0) += 1;
        }
    }
    println!("{file}: {classes:?}");
    Some(classes)
}

fn is_unsupported(keys: &Value, token: &str) -> bool {
    let key = keys.get("keys").map_or(keys, |list| &list[0]);
    let supported = ["RS256", "RS384", "RS512", "ES256", "ES384", "EdDSA"];
    key["kty"] == "oct" || (Jws::parse(token).is_err() && !supported.iter().any(|alg| key["alg"] == *alg))
}

#[test]
fn json_web_signature() {
    let Some(classes) = run("json_web_signature_test.json") else { return };
    let expected = [(Class::Accepted, 18), (Class::Refused, 353), (Class::Unsupported, 28), (Class::Excluded, 2)];
    assert_eq!(classes, expected.into());
    assert_eq!(classes.values().sum::<usize>(), 401);
}

#[test]
fn json_web_key() {
    let Some(classes) = run("json_web_key_test.json") else { return };
    assert_eq!(classes, [(Class::Accepted, 1), (Class::Refused, 21), (Class::Unsupported, 4)].into());
}

#[test]
fn json_web_crypto() {
    let Some(classes) = run("json_web_crypto_test.json") else { return };
    assert_eq!(classes, [(Class::Accepted, 2), (Class::Refused, 45), (Class::Unsupported, 2)].into());
}
