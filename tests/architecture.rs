//! The architecture as data: who may import whom, and where a thing may be written.
//!
//! A module that needs something new either belongs elsewhere, or its line here is changed in the same commit, with
//! the reason.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use alchemi::store::migrate::migrations;

/// Everybody may import these, and they import nothing but each other.
const VOCABULARY: &[&str] = &["clock", "credits", "id", "outbound", "problem", "secret"];

/// What a module may import besides the vocabulary.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    // Nouns and rules, without I/O
    ("model", &[]),
    ("context", &["model"]),
    ("policy", &["context", "model"]),
    // Capabilities. Of `policy`, the store needs the links that a reservation is counted under, and metering the size
    // of what was asked: both are values that the pipeline hands on.
    ("store", &["context", "model", "policy"]),
    ("identity", &["context", "model"]),
    ("zitadel", &["model"]),
    // Opaque bytes: what they mean is its owner's.
    ("journal", &[]),
    ("plugin", &["context", "model", "policy"]),
    ("allocation", &["context", "journal", "model", "policy", "store"]),
    ("alerts", &["context", "model", "store"]),
    ("metering", &["allocation", "context", "journal", "model", "policy", "store"]),
    // What is to be so in Zitadel: kept in the store, made so by the client.
    ("provision", &["context", "model", "store", "zitadel"]),
    // Surfaces: the proxy is made with the layer, never the other way round.
    ("layer", &["allocation", "context", "identity"]),
    ("proxy", &["allocation", "context", "identity", "layer", "metering", "model", "plugin", "policy"]),
    ("v1", &["allocation", "context", "model", "policy", "provision", "store", "zitadel"]),
    // What every gateway does beside its requests.
    ("jobs", &["allocation", "context", "identity", "store"]),
    // For development alone: nothing that serves knows of it.
    ("dev", &[]),
    // Composition
    (
        "config",
        &["alerts", "allocation", "context", "identity", "journal", "model", "policy", "proxy", "store", "zitadel"],
    ),
    ("telemetry", &["alerts", "allocation", "config", "identity", "journal", "metering", "proxy", "store", "zitadel"]),
    (
        "server",
        &[
            "alerts",
            "allocation",
            "config",
            "context",
            "identity",
            "jobs",
            "journal",
            "layer",
            "metering",
            "model",
            "plugin",
            "provision",
            "proxy",
            "store",
            "telemetry",
            "v1",
            "zitadel",
        ],
    ),
    // `alchemi dev` puts a configuration together, which takes the types of its parts.
    (
        "cli",
        &[
            "allocation",
            "config",
            "context",
            "dev",
            "identity",
            "jobs",
            "layer",
            "metering",
            "model",
            "provision",
            "proxy",
            "server",
            "store",
            "telemetry",
            "v1",
            "zitadel",
        ],
    ),
];

/// Words that only these files may contain.
const ONLY_IN: &[(&str, &[&str], &str)] = &[
    ("sqlx", &["store.rs", "store/"], "all SQL is in the store"),
    ("AssertSqlSafe", &["store/migrate.rs"], "SQL is a literal; only the text of a migration is not"),
    ("std::env", &["config.rs", "config/reference.rs"], "the environment is read by the configuration"),
    ("SystemTime::now", &["clock.rs"], "time is injected"),
    ("now_v7", &["id.rs"], "ids are injected"),
];

/// Words that these files may not contain.
const NEVER_IN: &[(&str, &[&str], &str)] = &[
    ("policy", &["async", "await", "tokio", "sqlx", "reqwest", "hyper"], "a verdict is a pure function"),
    ("model", &["async", "await", "tokio", "reqwest", "hyper"], "nouns do no I/O"),
];

/// What says nothing about what is inside.
const EMPTY_NAMES: &[&str] =
    &["mod", "util", "utils", "helper", "helpers", "manager", "data", "common", "types", "misc"];

/// Lines of a file without its tests. 500 is the aim.
const MAX_LINES: usize = 600;

/// SHA-256 of each migration: one that was released is never changed.
const MIGRATIONS: &[(&str, i64, &str, &str)] = &[
    ("postgres", 1, "init", "f0a7a9b659d09332d5ae9414bff7a4d3d0be5fbc215f554f2dbb12e7239a16fa"),
    ("postgres", 2, "connections", "71a3cfc117da26e9f1e80401f1d13b22e8fdd2ee1c0c7fa2ff587f66575cc540"),
    ("postgres", 3, "guardrails", "3b7519684a520c47680327af02ef1b0ab47556ce71b1810224795d6ae5fac86b"),
    ("postgres", 4, "marketplace", "6aa4627763f83ff0d6fede787768697a133dbb6f8cf7c3cac723ace2cb83d7b8"),
    ("postgres", 5, "zitadel", "b4d0d2627dd8fc89902602ac70424348509f886c8db4262a722c8c4aec2ea1a1"),
    ("postgres", 6, "lifecycle", "8f4fc42bce42fdf1bd50f0974c59e101f31b84c696c068bc7a89352a07e5c941"),
    ("postgres", 7, "listings", "f758919548834968f015f1c682e52282d3c0b120a3465aea280098310bfe59da"),
    ("postgres", 8, "leases", "d9b149b7111edc99b37fdc8469815bbc2155e06e1082a107bfa4a19b69e5899b"),
    ("postgres", 9, "indexes", "74c8808bf2c67a3d68158fc3e743eddd95d5a82a1a684977098b47f9ae33cace"),
    ("postgres", 10, "visible_agents", "482e122c1c5eddb316bd5710e1cf197f53af99ccfa3314f09c3cd799b8b42d4f"),
    ("postgres", 11, "ledger_check", "ce52e40bbd27f4a6f068e01af9b1c8d16b9fabcd0775069fd75b8fda6cd1a9f2"),
    ("postgres", 12, "cycles", "ec64a312635eb3b3e1149e37621197b6bb02d5e82736c4af7c23023a295cc6c7"),
    ("postgres", 13, "alerts", "ed34d7e70c1f4f0a01dd20499d7bfe2f00e9c7c04f5c5a851c9ee829b6f1b83c"),
    ("postgres", 14, "totals", "54cdaeefb94efb15a50d588ba73727618811d450fef06e0bf816860eb5616922"),
    ("postgres", 15, "cut_off_addresses", "4480c7f94bd95fa68c7e137ab8524026294d8199d9b702935974abaf8b81b3b3"),
    ("postgres", 16, "counted_requests", "9b975b6157e842b5c1605f3a5e6d71e54e3da905ec99b7f3dfa954e32e81236b"),
    ("postgres", 17, "database_id", "d8d3461b9abea7bdf91cc7a1dbe82d643f6c5d54bd5bc5708157eb95fb54606d"),
    ("postgres", 18, "renewed_credits", "dc9212d2ba4474748febf8d80a9963f518fefef5aa68e2581c955b698d265764"),
    ("postgres", 19, "calendars", "8406797d86090bfc59cbd3a32e3eea7a7ff9f15e193c10b2eec0e77773ae6b88"),
    ("postgres", 20, "ranked_budgets", "c39d95af04d3d006053d52e483bacdc48a4ebebc26e190844ec21d0348a5e0ff"),
    ("postgres", 21, "listed_usage", "87b3784499f6fae02595794c2d4723d9f5d53f6b6957f8270e9a35c57ddea6cf"),
    ("sqlite", 1, "init", "f0a7a9b659d09332d5ae9414bff7a4d3d0be5fbc215f554f2dbb12e7239a16fa"),
    ("sqlite", 2, "connections", "71a3cfc117da26e9f1e80401f1d13b22e8fdd2ee1c0c7fa2ff587f66575cc540"),
    ("sqlite", 3, "guardrails", "3b7519684a520c47680327af02ef1b0ab47556ce71b1810224795d6ae5fac86b"),
    ("sqlite", 4, "marketplace", "6aa4627763f83ff0d6fede787768697a133dbb6f8cf7c3cac723ace2cb83d7b8"),
    ("sqlite", 5, "zitadel", "b4d0d2627dd8fc89902602ac70424348509f886c8db4262a722c8c4aec2ea1a1"),
    ("sqlite", 6, "lifecycle", "8f4fc42bce42fdf1bd50f0974c59e101f31b84c696c068bc7a89352a07e5c941"),
    ("sqlite", 7, "listings", "f758919548834968f015f1c682e52282d3c0b120a3465aea280098310bfe59da"),
    ("sqlite", 8, "leases", "d9b149b7111edc99b37fdc8469815bbc2155e06e1082a107bfa4a19b69e5899b"),
    ("sqlite", 9, "indexes", "fe3669664ee5fc0b8e9150ff794dc18d1944740e8e78f7f3e862d7164178998b"),
    ("sqlite", 10, "visible_agents", "840cb70f47927a3352527014645c981a05730db8694e1c0a3187d3ef7a53d11e"),
    ("sqlite", 11, "ledger_check", "ce52e40bbd27f4a6f068e01af9b1c8d16b9fabcd0775069fd75b8fda6cd1a9f2"),
    ("sqlite", 12, "cycles", "ec64a312635eb3b3e1149e37621197b6bb02d5e82736c4af7c23023a295cc6c7"),
    ("sqlite", 13, "alerts", "ed34d7e70c1f4f0a01dd20499d7bfe2f00e9c7c04f5c5a851c9ee829b6f1b83c"),
    ("sqlite", 14, "totals", "fcb22417ef87ce1702ef3c510b58b4e6dae1b81d6be0923bff8a7476bbc10950"),
    ("sqlite", 15, "cut_off_addresses", "4480c7f94bd95fa68c7e137ab8524026294d8199d9b702935974abaf8b81b3b3"),
    ("sqlite", 16, "counted_requests", "9b975b6157e842b5c1605f3a5e6d71e54e3da905ec99b7f3dfa954e32e81236b"),
    ("sqlite", 17, "database_id", "a75d6f12f6cb70821f007ade39ff2ed3206a23cf9852a155d3514eaca918679e"),
    ("sqlite", 18, "renewed_credits", "ad420b42ec7adffae7d809c33069b8838de86655bd339bcad8f4a2e9fcec2bfe"),
    ("sqlite", 19, "calendars", "8406797d86090bfc59cbd3a32e3eea7a7ff9f15e193c10b2eec0e77773ae6b88"),
    ("sqlite", 20, "ranked_budgets", "0155d5342b63b34d602be98072ff48c29b444164eecae120e76720b0f41574b6"),
    ("sqlite", 21, "listed_usage", "87b3784499f6fae02595794c2d4723d9f5d53f6b6957f8270e9a35c57ddea6cf"),
];

/// A source file, by its path below `src`.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The top-level module that it belongs to; none for the crate's roots.
    fn module(&self) -> Option<&str> {
        let first = self.path.split('/').next()?.trim_end_matches(".rs");
        (!matches!(first, "lib" | "main")).then_some(first)
    }

    /// Its lines but for comments and tests, with their numbers.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        lines.take_while(|(_, line)| *line != "#[cfg(test)]").filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// Top-level modules that a line names, from the crate's root or by going up to it.
    fn named<'a>(&self, line: &'a str) -> Vec<&'a str> {
        let up = "super::".repeat(self.path.split('/').count());
        let after =
            |root: &'a str, prefix: &str| -> Vec<&'a str> { root.split(prefix).skip(1).map(first_word).collect() };
        let mut names = after(line, "crate::");
        names.extend(after(line, &up));
        names.retain(|name| VOCABULARY.contains(name) || MAY_IMPORT.iter().any(|(module, _)| module == name));
        names
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path == *place || (place.ends_with('/') && self.path.starts_with(place)))
    }
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

fn has_word(line: &str, word: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + word.len()..]);
        !before.ends_with(inside) && !after.starts_with(inside)
    })
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    fn walk(folder: &Path, base: &Path, found: &mut Vec<Source>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, base, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source { path: path.strip_prefix(base).unwrap().to_str().unwrap().to_owned(), text });
            }
        }
    }
    let base = root().join("src");
    let mut found = Vec::new();
    walk(&base, &base, &mut found);
    assert!(!found.is_empty());
    found
}

/// Fails with every line that breaks a rule.
#[track_caller]
fn hold(broken: &str) {
    assert!(broken.is_empty(), "\n{broken}");
}

#[test]
fn modules_import_only_what_they_may() {
    let mut broken = String::new();
    for source in sources() {
        let Some(module) = source.module() else { continue };
        let allowed = match MAY_IMPORT.iter().find(|(name, _)| *name == module) {
            Some((_, allowed)) => *allowed,
            None if VOCABULARY.contains(&module) => &[],
            None => panic!("src/{}: the module {module} has no line in MAY_IMPORT", source.path),
        };
        for (number, line) in source.code() {
            for name in source.named(line) {
                if name != module && !VOCABULARY.contains(&name) && !allowed.contains(&name) {
                    writeln!(broken, "src/{}:{number}: {module} may not import {name}: {}", source.path, line.trim())
                        .unwrap();
                }
            }
            if line.contains("crate::{") {
                writeln!(broken, "src/{}:{number}: one line for each module, so that this test sees it", source.path)
                    .unwrap();
            }
        }
    }
    hold(&broken);
}

#[test]
fn the_control_plane_and_the_proxy_do_not_know_each_other() {
    let allowed = |module: &str| MAY_IMPORT.iter().find(|(name, _)| *name == module).unwrap().1;
    assert!(!allowed("proxy").contains(&"v1") && !allowed("layer").contains(&"v1"));
    assert!(!allowed("v1").contains(&"proxy") && !allowed("v1").contains(&"layer"));
    for (module, allowed) in MAY_IMPORT {
        assert!(*module == "cli" || !allowed.contains(&"dev"), "{module} reaches the development issuer");
    }
}

#[test]
fn words_stay_where_they_belong() {
    let mut broken = String::new();
    for source in sources() {
        for (number, line) in source.code() {
            for (word, places, why) in ONLY_IN {
                if has_word(line, word) && !source.is_in(places) {
                    writeln!(broken, "src/{}:{number}: {word}: {why}: {}", source.path, line.trim()).unwrap();
                }
            }
            for (module, words, why) in NEVER_IN {
                let word = words.iter().find(|word| source.module() == Some(module) && has_word(line, word));
                if let Some(word) = word {
                    writeln!(broken, "src/{}:{number}: {word}: {why}: {}", source.path, line.trim()).unwrap();
                }
            }
        }
    }
    hold(&broken);
}

/// `AssertSqlSafe` is what sqlx wants for text that is no literal; this also finds text that is pushed in pieces.
#[test]
fn values_are_bound_into_sql_and_never_formatted() {
    const SQL: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE", "WHERE", "VALUES", "ORDER BY", "CREATE"];
    let mut broken = String::new();
    for source in sources().iter().filter(|source| source.is_in(&["store.rs", "store/"])) {
        // It makes text for people to run, out of nothing but its own constants.
        if source.path == "store/migrate.rs" {
            continue;
        }
        let code: Vec<_> = source.code().collect();
        for (index, (number, line)) in code.iter().enumerate() {
            let mut statement = code[index..].iter().take(4).map(|(_, line)| *line);
            let formats = line.contains("format!") || line.contains("write!(");
            if formats && statement.any(|line| SQL.iter().any(|word| has_word(line, word))) {
                writeln!(broken, "src/{}:{number}: SQL out of pieces: {}", source.path, line.trim()).unwrap();
            }
        }
    }
    hold(&broken);
}

#[test]
fn names_say_what_is_inside() {
    let mut broken = String::new();
    for source in sources() {
        for part in source.path.split('/').map(|part| part.trim_end_matches(".rs")) {
            if EMPTY_NAMES.contains(&part) {
                writeln!(broken, "src/{}: {part} says nothing", source.path).unwrap();
            }
        }
        for (number, line) in source.code() {
            let name = line.trim().strip_prefix("pub ").unwrap_or(line.trim()).strip_prefix("mod ").map(first_word);
            if let Some(name) = name.filter(|name| EMPTY_NAMES.contains(name)) {
                writeln!(broken, "src/{}:{number}: {name} says nothing", source.path).unwrap();
            }
        }
    }
    hold(&broken);
}

#[test]
fn files_are_short_enough_to_be_read() {
    let mut broken = String::new();
    for source in sources() {
        let lines = source.text.lines().take_while(|line| *line != "#[cfg(test)]").count();
        if lines > MAX_LINES {
            writeln!(broken, "src/{}: {lines} lines, {MAX_LINES} at most", source.path).unwrap();
        }
    }
    hold(&broken);
}

/// A file that no test names is not compiled, and says nothing when it breaks.
#[test]
fn every_file_of_a_test_is_part_of_it() {
    let mut broken = String::new();
    for folder in fs::read_dir(root().join("tests")).unwrap().map(|entry| entry.unwrap().path()) {
        let Ok(main) = fs::read_to_string(folder.join("main.rs")) else { continue };
        for file in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = file.file_stem().and_then(|name| name.to_str()).unwrap();
            let is_part = name == "main" || main.contains(&format!("mod {name};"));
            if file.extension().is_some_and(|extension| extension == "rs") && !is_part {
                writeln!(broken, "{}: main.rs has no `mod {name};`", file.display()).unwrap();
            }
        }
    }
    hold(&broken);
}

/// What makes a problem, and how many arguments stand before its code.
const PROBLEMS: &[(&str, usize)] = &[
    ("Problem::new(", 1),
    ("Self::new(", 1),
    ("bad_request(", 0),
    ("unauthenticated(", 0),
    ("forbidden(", 0),
    ("conflict(", 0),
    ("unavailable(", 0),
    ("invalid_request(", 0),
];

/// Codes that are no literals, by file: `fn code` there tells them, or whoever calls is looked at.
const CODES_OF_OTHERS: &[(&str, &str)] =
    &[("policy.rs", "code"), ("proxy/ask.rs", "error.code()"), ("problem.rs", "code"), ("v1/logout.rs", "code")];

/// What stands between quotes.
fn literals(text: &str) -> impl Iterator<Item = &str> {
    text.split('"').skip(1).step_by(2)
}

#[test]
fn every_code_of_a_problem_has_a_page_and_every_page_a_code() {
    let (mut broken, mut codes) = (String::new(), std::collections::BTreeSet::new());
    for source in sources().iter().filter(|source| source.text.contains("Problem") && !source.is_in(&["dev/"])) {
        let code: Vec<&str> = source.code().map(|(_, line)| line.trim()).collect();
        let code = code.join(" ");
        for (call, before) in PROBLEMS {
            for (at, _) in code.match_indices(call) {
                let mut arguments = code[at + call.len()..].splitn(before + 2, ',').map(str::trim);
                let is_problem = match before {
                    0 => true,
                    _ => arguments.next().is_some_and(|status| status.contains("StatusCode::") || status == "status"),
                };
                let argument = arguments.next().unwrap_or_default();
                // Where it is defined, it has a type.
                if !is_problem || argument.contains(": ") || argument.starts_with("&self") {
                    continue;
                }
                match literals(argument).next() {
                    Some(literal) if argument.starts_with('"') => _ = codes.insert(literal.to_owned()),
                    _ if CODES_OF_OTHERS.contains(&(source.path.as_str(), argument)) => {}
                    _ => writeln!(broken, "src/{}: {call}… {argument}: which codes are these?", source.path).unwrap(),
                }
            }
        }
        if CODES_OF_OTHERS.iter().any(|(path, _)| *path == source.path)
            && let Some((_, rest)) = source.text.split_once("fn code(&self) -> &'static str {\n        match")
        {
            let body = rest.split_once("\n    }\n").map_or(rest, |(body, _)| body);
            codes.extend(literals(body).map(str::to_owned));
        }
    }
    assert!(codes.len() > 90, "{codes:?}");
    for code in codes.iter().filter(|code| alchemi::problem::pages::find(code).is_none()) {
        writeln!(broken, "docs/problems.md has no section for {code}").unwrap();
    }
    for page in alchemi::problem::pages::all().iter().filter(|page| !codes.contains(page.code)) {
        writeln!(broken, "docs/problems.md: nothing has the code {}", page.code).unwrap();
    }
    hold(&broken);
}

#[test]
fn migrations_are_the_same_on_both_databases_and_frozen() {
    let mut found = Vec::new();
    for backend in ["postgres", "sqlite"] {
        let embedded = migrations(backend).unwrap();
        let mut files: Vec<String> = fs::read_dir(root().join("migrations").join(backend))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let names: Vec<String> = embedded.iter().map(|m| format!("{:04}_{}.sql", m.version, m.name)).collect();
        assert_eq!(files, names, "migrations/{backend} and what is embedded");
        found.extend(embedded.iter().map(|m| (backend, m.version, m.name, m.checksum())));
    }
    let known: Vec<_> =
        MIGRATIONS.iter().map(|(b, version, name, sum)| (*b, *version, *name, (*sum).to_owned())).collect();
    assert_eq!(found, known, "a released migration never changes: add another one");
}
