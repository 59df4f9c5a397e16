//! Wrong settings: one sentence that names the key and the remedy, and status 2.

use std::net::TcpListener;

use crate::process::{Ended, Place};

const MASTER_KEY: &str = "operator-key-of-the-tests-0123456789";

/// Variables, and words of the sentence.
type Case = (&'static [(&'static str, &'static str)], &'static [&'static str]);

/// Checks that a command ended with one sentence, which holds `words`.
#[track_caller]
fn one_sentence(ended: &Ended, status: i32, words: &[&str]) {
    assert_eq!(ended.status, status, "{ended:?}");
    assert_eq!(ended.out, "", "{ended:?}");
    let sentence = ended.err.trim_end();
    assert!(sentence.starts_with("alchemi: ") && !sentence.contains('\n'), "{ended:?}");
    for word in words {
        assert!(sentence.contains(word), "no {word:?} in {sentence:?}");
    }
}

#[test]
fn each_wrong_setting_is_named_with_its_remedy() {
    let cases: &[Case] = &[
        (&[], &["ZITADEL_ISSUER", "ALCHEMI_MASTER_KEY", "alchemi dev"]),
        (&[("ALCHEMI_MASTER_KEY", "short")], &["ALCHEMI_MASTER_KEY", "32"]),
        (&[("ZITADEL_ISSUER", "https://id.example.com")], &["ZITADEL_PROJECT_ID", "ZITADEL_AUDIENCE"]),
        (&[("ZITADEL_ISSUER", "http://id.example.com"), ("ZITADEL_PROJECT_ID", "1")], &["id.example.com", "https"]),
        (&[("ALCHEMI_LISTEN", "nonsense")], &["ALCHEMI_LISTEN", "nonsense"]),
        (&[("ALCHEMI_LISTEN", "localhost:99999")], &["ALCHEMI_LISTEN"]),
        (&[("DATABASE_URL", "mysql://db/litellm")], &["DATABASE_URL", "postgres://"]),
        (&[("DATABASE_URL", "sqlite::memory:")], &["DATABASE_URL", "file"]),
        (&[("ALCHEMI_UPSTREAM_URL", "ftp://upstream")], &["upstream", "http://"]),
        (&[("ALCHEMI_ENFORCEMENT", "maybe")], &["ALCHEMI_ENFORCEMENT", "maybe", "hard"]),
        (&[("ALCHEMI_PASSTHROUGH", "perhaps")], &["ALCHEMI_PASSTHROUGH", "perhaps"]),
        (&[("ALCHEMI_DOMAIN_DEFAULT", "kitchen")], &["ALCHEMI_DOMAIN_DEFAULT", "copilot"]),
        (&[("ALCHEMI_CORS_ORIGINS", "*")], &["ALCHEMI_CORS_ORIGINS", "name the origins"]),
        (&[("ALCHEMI_CORS_ORIGINS", "https://a/b")], &["ALCHEMI_CORS_ORIGINS", "https://a/b"]),
        (&[("ALCHEMI_TRUSTED_PROXIES", "0.0.0.0/0")], &["ALCHEMI_TRUSTED_PROXIES", "0.0.0.0/0"]),
        (
            &[("ALCHEMI_TLS_CERT", "/nowhere.pem"), ("ALCHEMI_TLS_KEY", "/nowhere.key")],
            &["ALCHEMI_TLS_CERT", "/nowhere.pem"],
        ),
        (&[("ALCHEMI_TLS_CERT", "/nowhere.pem")], &["tls", "key"]),
        (&[("ALCHEMI_LOG_FORMAT", "xml")], &["ALCHEMI_LOG_FORMAT", "xml", "json"]),
        (&[("RUST_LOG", "alchemi=loud")], &["RUST_LOG"]),
        (
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")],
            &["OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"],
        ),
        (&[("OTEL_EXPORTER_OTLP_HEADERS", "no pair")], &["OTEL_EXPORTER_OTLP_HEADERS", "name=value"]),
        (&[("ALCHEMI_SECRET_KEY", "c2hvcnQ=")], &["ALCHEMI_SECRET_KEY", "32 bytes"]),
        (&[("ALCHEMI_TRUSTED_PROXIES", "everywhere")], &["ALCHEMI_TRUSTED_PROXIES", "everywhere", "CIDR"]),
    ];
    for (environment, words) in cases {
        let mut place = Place::new();
        let alone = environment.is_empty()
            || environment.iter().any(|(name, _)| name.contains("MASTER") || *name == "ZITADEL_ISSUER");
        if !alone {
            place = place.with("ALCHEMI_MASTER_KEY", MASTER_KEY);
        }
        // What is only seen while starting comes behind the log.
        place = place.with("RUST_LOG", "error");
        for (name, value) in *environment {
            place = place.with(name, value);
        }
        one_sentence(&place.run(&["serve"]), 2, words);
    }
}

/// What the start would fail at, `check-config` finds.
#[test]
fn the_files_that_settings_name_are_looked_at() {
    let issuer = [("ZITADEL_ISSUER", "https://id.example.com"), ("ZITADEL_PROJECT_ID", "1")];
    let cases: &[Case] = &[
        (&[("ZITADEL_KEY_FILE", "nowhere.json")], &["ZITADEL_KEY_FILE", "nowhere.json"]),
        (&[("ZITADEL_INTROSPECTION_KEY_FILE", "nowhere.json")], &["introspection_key_file", "nowhere.json"]),
        (&[("ALCHEMI_TLS_CERT", "nowhere.pem"), ("ALCHEMI_TLS_KEY", "nowhere.key")], &["nowhere.pem"]),
        (&[("ZITADEL_ISSUER", "https://id.example.com/")], &["ZITADEL_ISSUER", "no slash at the end"]),
        (&[("DATABASE_URL", "mysql://db/litellm")], &["DATABASE_URL", "postgres://"]),
        (&[("DATABASE_URL", "sqlite::memory:")], &["DATABASE_URL", "file"]),
        (&[("RUST_LOG", "alchemi=loud")], &["RUST_LOG", "alchemi=loud"]),
    ];
    for (environment, words) in cases {
        let mut place = Place::new().with("ALCHEMI_MASTER_KEY", MASTER_KEY).with("RUST_LOG", "error");
        for (name, value) in issuer.iter().chain(*environment) {
            place = place.with(name, value);
        }
        for command in ["check-config", "serve"] {
            one_sentence(&place.run(&[command]), 2, words);
        }
    }
}

#[test]
fn what_is_left_open_is_warned_of() {
    let place = Place::new().with("ALCHEMI_MASTER_KEY", MASTER_KEY).with("ZITADEL_CLIENT_ID", "provisioner");
    let ended = place.run(&["check-config"]);
    assert_eq!(ended.status, 0, "{ended:?}");
    let half = "alchemi: warning: zitadel: client_id (ZITADEL_CLIENT_ID) without client_secret (ZITADEL_CLIENT_SECRET)";
    assert!(ended.err.lines().any(|line| line.starts_with(half)), "{ended:?}");
    let whole =
        place.with("ZITADEL_CLIENT_SECRET", "secret").with("ZITADEL_MGMT_API_BASE_URL", "https://id.example.com");
    assert!(!whole.run(&["check-config"]).err.contains("ZITADEL_CLIENT_ID"));
    let misspelt = Place::new().with("ALCHEMI_MASTER_KEY", MASTER_KEY).with("ALCHEMI_UPSTREAM", "http://a:1");
    let warned = "alchemi: warning: ALCHEMI_UPSTREAM is no variable that is read here, and changes nothing";
    let ended = misspelt.run(&["check-config"]);
    assert!(ended.status == 0 && ended.err.lines().any(|line| line == warned), "{ended:?}");
}

#[test]
fn a_wrong_file_is_named_with_the_key() {
    let place = Place::new().with("ALCHEMI_MASTER_KEY", MASTER_KEY);
    for (text, words) in [
        ("lissten = \"127.0.0.1:1\"", &["lissten", "alchemi.toml"][..]),
        ("[limits]\nbody_bytes = \"many\"", &["limits.body_bytes", "many"]),
        ("[upstream]\nresponse_timeout = -1", &["upstream.response_timeout"]),
        ("listen = ", &["alchemi.toml"]),
        ("[allocation]\nabandon_after_seconds = 60", &["allocation.abandon_after_seconds", "upstream."]),
    ] {
        let file = place.file("alchemi.toml", text);
        // A command that only looks after the database leaves alone what no gateway could run with.
        let commands = if text.contains("abandon_after") {
            &["serve", "check-config"][..]
        } else {
            &["serve", "check-config", "migrate"]
        };
        for command in commands {
            one_sentence(&place.run(&[command, "--config", &file]), 2, words);
        }
    }
    one_sentence(&place.run(&["serve", "--config", "nowhere.toml"]), 2, &["nowhere.toml", "no such file"]);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let place = Place::new().with("ALCHEMI_MASTER_KEY", MASTER_KEY);
    let place = place.with("ALCHEMI_LISTEN", &address).with("RUST_LOG", "error");
    one_sentence(&place.run(&["serve"]), 2, &["ALCHEMI_LISTEN", &address]);
}

/// What may be there in a moment is no mistake of the operator's.
#[test]
fn a_database_that_is_away_is_status_1() {
    let place = Place::new().with("ALCHEMI_MASTER_KEY", MASTER_KEY).with("RUST_LOG", "error");
    let place = place.with("DATABASE_URL", "postgres://alchemi@127.0.0.1:1/litellm");
    for command in ["serve", "migrate"] {
        one_sentence(&place.run(&[command]), 1, &["database", "refused"]);
    }
}
