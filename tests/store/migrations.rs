//! Migrations: applied once, by whoever comes first, by the process or by hand.

use alchemi::store::migrate::{self, AtStart};
use alchemi::store::{DatabaseConfig, Store, StoreError};

use crate::{insert, places};

#[tokio::test]
async fn they_are_applied_once() {
    for place in places().await {
        let store = place.open().await;
        let all = migrate::migrations(place.kind()).unwrap();
        let lacking = migrate::at_start(&store, AtStart::Check).await.unwrap_err();
        assert!(matches!(&lacking, StoreError::Setup(text) if text.contains("alchemi migrate")), "{lacking}");
        assert_eq!(migrate::pending(&store).await.unwrap().len(), all.len());
        assert!(migrate::at_start(&store, AtStart::Off).await.unwrap().is_empty());
        assert_eq!(migrate::pending(&store).await.unwrap().len(), all.len(), "looking writes nothing");

        assert_eq!(migrate::at_start(&store, AtStart::Auto).await.unwrap().len(), all.len());
        assert!(migrate::at_start(&store, AtStart::Auto).await.unwrap().is_empty());
        assert!(migrate::at_start(&store, AtStart::Check).await.unwrap().is_empty());
        insert(&store, "Acme").await;
        store.close().await;
        let again = place.open().await;
        assert!(migrate::apply(&again).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn they_can_be_run_by_hand_and_twice() {
    for place in places().await {
        let script = migrate::print(place.kind()).unwrap();
        place.run(&script).await;
        place.run(&script).await;
        let store = place.open().await;
        assert!(migrate::pending(&store).await.unwrap().is_empty());
        assert!(migrate::apply(&store).await.unwrap().is_empty());
        insert(&store, "Acme").await;
        place.run(&script).await;
        let kept = place.texts(r#"SELECT account_name FROM "Alchemi_AccountTable""#).await;
        assert_eq!(kept, ["Acme"], "running it again removes nothing");
    }
}

/// Migration 16: sums from before corrections of the ledger were told from requests.
#[tokio::test]
async fn corrections_that_were_counted_as_requests_are_so_no_more() {
    for place in places().await {
        let script = migrate::print(place.kind()).unwrap();
        place.run(&script).await;
        for (id, entry, day, model) in [
            ("a", "usage", "2027-01-01", "'m'"),
            ("a:reversed", "reversal", "2027-01-01", "'m'"),
            ("b", "usage", "2027-01-01", "NULL"),
            ("c", "adjustment", "2027-01-02", "NULL"),
        ] {
            let row = format!(
                r#"INSERT INTO "Alchemi_UsageLedgerTable" (request_id, account_id, kind, entry, domain, model_name, raw_cost,
                   credit_factor, credits_incurred, cost_source, status, duration_us, day, created_at)
                   VALUES ('{id}', 'acme', 'chat', '{entry}', 'copilot', {model}, 0, 0, 0, 'recorded', 0, 0, '{day}', 0);"#
            );
            place.run(&row).await;
        }
        for (day, model, requests) in
            [("2027-01-01", "m", 2), ("2027-01-01", "", 1), ("2027-01-02", "", 1), ("2027-01-03", "", 7)]
        {
            let row = format!(
                r#"INSERT INTO "Alchemi_UsageRollupTable" (account_id, domain, day, org_id, team_id, user_id, agent_id,
                   model_name, connection_id, guardrail_code, requests, input_tokens, output_tokens, raw_cost,
                   credits_incurred)
                   VALUES ('acme', 'copilot', '{day}', '', '', '', '', '{model}', '', '', {requests}, 0, 0, 0, 0);"#
            );
            place.run(&row).await;
        }
        place.run(&script).await;
        let counted = place
            .texts(r#"SELECT CAST(requests AS TEXT) FROM "Alchemi_UsageRollupTable" ORDER BY day, model_name"#)
            .await;
        assert_eq!(counted, ["1", "1", "0", "7"]);
    }
}

#[tokio::test]
async fn by_hand_is_the_same_as_by_the_process() {
    for (by_hand, by_process) in places().await.into_iter().zip(places().await) {
        by_hand.run(&migrate::print(by_hand.kind()).unwrap()).await;
        by_process.store().await;
        let schema = if by_hand.is_postgres() {
            "SELECT concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default) FROM information_schema.columns WHERE table_schema = 'public'
             UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
             UNION ALL SELECT concat_ws(' ', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
             ORDER BY 1"
        } else {
            "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY 1"
        };
        let found = by_process.texts(schema).await;
        assert_eq!(by_hand.texts(schema).await, found);
        assert!(found.len() > 30);
    }
}

#[tokio::test]
async fn an_applied_migration_never_changes() {
    for place in places().await {
        let store = place.store().await;
        place.run(r#"UPDATE "Alchemi_MigrationTable" SET checksum = 'x'"#).await;
        for refused in [migrate::apply(&store).await, migrate::pending(&store).await] {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("0001_init was applied with another text"), "{error}");
        }
    }
}

/// Processes that start together wait for each other.
#[tokio::test]
async fn of_many_at_once_one_applies_them() {
    for place in places().await {
        let mut applying = Vec::new();
        for _ in 0..4 {
            let store = place.open().await;
            applying.push(tokio::spawn(async move { migrate::apply(&store).await.unwrap().len() }));
        }
        let mut applied = Vec::new();
        for one in applying {
            applied.push(one.await.unwrap());
        }
        applied.sort_unstable();
        assert_eq!(applied, [0, 0, 0, migrate::migrations(place.kind()).unwrap().len()]);
    }
}

#[tokio::test]
async fn they_make_nothing_but_our_own() {
    for place in places().await {
        place.store().await;
        let names = if place.is_postgres() {
            "SELECT relname::TEXT FROM pg_class WHERE relnamespace = 'public'::regnamespace
             UNION ALL SELECT proname::TEXT FROM pg_proc WHERE pronamespace = 'public'::regnamespace
             UNION ALL SELECT nspname::TEXT FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema|public)'"
        } else {
            // Statistics are SQLite's own, about our tables.
            "SELECT name FROM sqlite_master
             WHERE name NOT LIKE 'sqlite_autoindex_Alchemi%' AND name NOT LIKE 'sqlite_stat_'"
        };
        let names = place.texts(names).await;
        let foreign: Vec<_> = names.iter().filter(|name| !name.starts_with("Alchemi_")).collect();
        assert!(foreign.is_empty() && names.contains(&"Alchemi_MigrationTable".to_owned()), "{foreign:?}");
    }
}

/// Every table of a tenant is reached through the account: its keys begin with it.
#[tokio::test]
async fn keys_of_a_tenants_rows_hold_the_account() {
    let Some(place) = places().await.into_iter().find(crate::Place::is_postgres) else { return };
    place.store().await;
    let loose = place
        .texts(
            "SELECT concat_ws(' ', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
             WHERE contype = 'f' AND connamespace = 'public'::regnamespace
               AND pg_get_constraintdef(oid) NOT LIKE 'FOREIGN KEY (account_id%'",
        )
        .await;
    assert!(loose.is_empty(), "{loose:#?}");
}

#[tokio::test]
async fn a_url_that_cannot_be_is_refused_by_its_key() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    for url in [
        "mysql://u@h/d".to_owned(),
        "alchemi.db".to_owned(),
        "sqlite::memory:".to_owned(),
        "sqlite:x.db?mode=memory".to_owned(),
        format!("sqlite:{}/file/alchemi.db", folder.path().display()),
    ] {
        let config = DatabaseConfig { url: url.clone(), ..DatabaseConfig::default() };
        let clock = std::sync::Arc::new(alchemi::clock::SystemClock);
        let refused = Store::open(&config, clock, std::sync::Arc::new(alchemi::id::RandomIds)).await;
        let error = refused.map(drop).unwrap_err();
        assert!(
            matches!(&error, StoreError::Setup(text) if text.contains("database.url (DATABASE_URL)")),
            "{url}: {error}"
        );
    }
}
