//! Commands that print something and end.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::process::{Ended, Place};

const MASTER_KEY: &str = "operator-key-of-the-tests-0123456789";

#[track_caller]
fn ok(ended: Ended) -> String {
    assert_eq!(ended.status, 0, "{ended:?}");
    assert_eq!(ended.err, "", "{ended:?}");
    ended.out
}

/// The same, with warnings perhaps.
#[track_caller]
fn good(ended: Ended) -> String {
    assert!(ended.err.lines().all(|line| line.starts_with("alchemi: warning: ")), "{ended:?}");
    ok(Ended { err: String::new(), ..ended })
}

#[test]
fn it_says_what_it_can_do() {
    let place = Place::new();
    let help = ok(place.run(&["--help"]));
    for command in ["serve", "dev", "migrate", "check-config", "openapi", "keygen", "audit", "ledger", "healthcheck"] {
        assert!(help.contains(command), "{command}: {help}");
    }
    assert_eq!(ok(place.run(&["--version"])), format!("alchemi {}\n", env!("CARGO_PKG_VERSION")));
    for wrong in [&["dance"][..], &[], &["serve", "--fast"], &["migrate", "--print", "mysql"], &["keygen", "lock"]] {
        let ended = place.run(wrong);
        assert!(ended.status == 2 && ended.out.is_empty() && !ended.err.is_empty(), "{wrong:?}: {ended:?}");
    }
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn the_configuration_in_force_is_shown_without_its_secrets() {
    let place = Place::new()
        .with("ALCHEMI_MASTER_KEY", MASTER_KEY)
        .with("ALCHEMI_UPSTREAM_API_KEY", "sk-canary-of-the-upstream")
        .with("DATABASE_URL", "postgres://alchemi:canary-of-the-database@db/litellm");
    let file = place.file("alchemi.toml", "[limits]\nstreams = 7\n");
    let shown = good(place.run(&["check-config", "--config", &file]));
    assert!(!shown.contains("canary") && !shown.contains(MASTER_KEY), "{shown}");
    let shown: toml::Table = shown.parse().unwrap();
    assert_eq!(shown["limits"]["streams"].as_integer(), Some(7));
    assert!(shown["database"]["url"].as_str().unwrap().ends_with("@db/litellm"));
    let from_environment = place.with("ALCHEMI_CONFIG", &file);
    assert!(good(from_environment.run(&["check-config"])).contains("streams = 7"));
    let example = ok(Place::new().run(&["check-config", "--example"]));
    assert_eq!(example.trim_end(), alchemi::config::DEFAULTS.trim_end());
}

#[test]
fn migrations_are_printed_and_applied_once() {
    let place = Place::new().with("ALCHEMI_MASTER_KEY", MASTER_KEY);
    for backend in ["sqlite", "postgres"] {
        let sql = ok(place.run(&["migrate", "--print", backend]));
        assert!(sql.contains("CREATE TABLE IF NOT EXISTS \"Alchemi_AccountTable\""), "{backend}");
    }
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "printing touches nothing");
    let first = ok(place.run(&["migrate"]));
    assert!(first.starts_with("applied 0001_init\n"), "{first}");
    assert_eq!(ok(place.run(&["migrate"])), "nothing to apply\n");
    assert!(place.path().join("data/alchemi.db").exists());
}

/// A command that looks after a database makes none where it finds none: it was started in the wrong folder.
#[test]
fn a_database_that_is_not_there_is_not_made() {
    let place = Place::new().with("ALCHEMI_MASTER_KEY", MASTER_KEY);
    let commands: &[&[&str]] = &[
        &["zitadel", "status"],
        &["zitadel", "plan", "--account", "acme"],
        &["zitadel", "bootstrap", "--account", "acme"],
        &["zitadel", "drift", "--account", "acme"],
        &["zitadel", "why", "a.b.c"],
        &["audit", "verify"],
        &["ledger", "verify"],
        &["secrets", "status"],
        &["secrets", "rotate"],
    ];
    for command in commands {
        let ended = place.run(command);
        assert_eq!(ended.status, 2, "{command:?}: {ended:?}");
        let path = place.path().join("data/alchemi.db");
        for words in ["there is no database at", path.to_str().unwrap(), "--config", "alchemi migrate"] {
            assert!(ended.err.contains(words), "{command:?}: no {words:?} in {ended:?}");
        }
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "{command:?} leaves something behind");
    }
    ok(place.run(&["migrate"]));
    ok(place.run(&["ledger", "verify"]));
}

#[test]
fn the_description_is_the_one_that_is_served() {
    let printed: Value = serde_json::from_str(&ok(Place::new().run(&["openapi"]))).unwrap();
    assert_eq!(printed, serde_json::to_value(alchemi::v1::description()).unwrap());
}

#[test]
fn keys_are_fresh_and_of_their_kind() {
    let place = Place::new();
    let key = |arguments: &[&str]| ok(place.run(arguments)).trim_end().to_owned();
    let master = key(&["keygen"]);
    assert!(master.len() == 64 && master.bytes().all(|b| b.is_ascii_hexdigit()), "{master}");
    assert_ne!(key(&["keygen", "master"]), master);
    assert_eq!(STANDARD.decode(key(&["keygen", "secret"])).unwrap().len(), 32);
    // It is good for what it is for.
    let place = Place::new().with("ALCHEMI_MASTER_KEY", &master);
    good(place.run(&["check-config"]));
}

#[test]
fn shells_are_told_how_to_complete() {
    for shell in ["bash", "zsh", "fish"] {
        let script = ok(Place::new().run(&["completions", shell]));
        assert!(script.contains("alchemi") && script.contains("check-config"), "{shell}");
    }
    assert_eq!(Place::new().run(&["completions", "abacus"]).status, 2);
}

#[test]
fn nobody_there_is_not_healthy() {
    let ended = Place::new().run(&["healthcheck", "--url", "http://127.0.0.1:1/readyz"]);
    assert_eq!((ended.status, ended.out.as_str()), (1, ""));
    let cause = "alchemi: http://127.0.0.1:1/readyz: Connection refused";
    assert!(ended.err.starts_with(cause), "{ended:?}");
    // Without an address, the configuration says where.
    for (listen, asked) in [("0.0.0.0:1", "http://127.0.0.1:1/readyz"), ("[::1]:2", "http://[::1]:2/readyz")] {
        let ended = Place::new().with("ALCHEMI_LISTEN", listen).run(&["healthcheck"]);
        assert!(ended.status == 1 && ended.err.contains(asked), "{ended:?}");
        let place = Place::new().with("ALCHEMI_LISTEN", listen).with("ALCHEMI_ADMIN_LISTEN", "127.0.0.1:3");
        assert!(place.run(&["healthcheck"]).err.contains("http://127.0.0.1:3/readyz"));
    }
}
