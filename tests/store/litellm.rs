//! Beside LiteLLM: its real schema, as its own package carries it, in the same database.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use alchemi::store::migrate;

use crate::{Place, insert, places};

const PACKAGE: &str = "litellm-proxy-extras==0.4.108";

/// LiteLLM's migrations in their order, fetched once; `None` where the package cannot be had and need not be.
fn schema() -> Option<&'static [PathBuf]> {
    static SCHEMA: OnceLock<Option<Vec<PathBuf>>> = OnceLock::new();
    SCHEMA.get_or_init(fetched).as_deref()
}

fn fetched() -> Option<Vec<PathBuf>> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(PACKAGE);
    if !folder.is_dir() {
        // Into a place of its own first: what is cut short is not taken for the whole.
        let fresh = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--disable-pip-version-check"];
        let done = Command::new("python3").args(install).arg("--target").arg(fresh.path()).arg(PACKAGE).status();
        if !done.is_ok_and(|status| status.success()) {
            assert!(std::env::var_os("CI").is_none(), "{PACKAGE} cannot be installed");
            eprintln!("note: the test beside LiteLLM's schema is skipped");
            return None;
        }
        // Another process may have been quicker.
        let _ = std::fs::rename(fresh.keep(), &folder);
    }
    let migrations = folder.join("litellm_proxy_extras/migrations");
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(migrations).unwrap().map(|entry| entry.unwrap().path().join("migration.sql")).collect();
    found.retain(|file| file.is_file());
    found.sort();
    Some(found)
}

/// Runs files as `psql` does, each statement in a transaction of its own: some of LiteLLM's must be.
fn psql(place: &Place, files: &[PathBuf]) {
    let mut command = Command::new("psql");
    command.args(["--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--dbname", &place.url]);
    for file in files {
        command.arg("--file").arg(file);
    }
    let output = command.env("PGOPTIONS", "-c client_min_messages=warning").output().expect("psql is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Everything in the database that is not ours, object by object.
async fn theirs(place: &Place) -> Vec<String> {
    let all = "SELECT concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default) FROM information_schema.columns WHERE table_schema = 'public'
        UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
        UNION ALL SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT concat_ws(' ', tgrelid::regclass, tgname) FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT typname::TEXT FROM pg_type WHERE typnamespace = 'public'::regnamespace
        ORDER BY 1";
    place.texts(all).await.into_iter().filter(|object| !object.contains("Alchemi_")).collect()
}

#[tokio::test]
async fn we_live_beside_its_schema_and_touch_nothing_of_it() {
    let Some(place) = places().await.into_iter().find(Place::is_postgres) else { return };
    let Some(migrations) = schema() else { return };
    psql(&place, migrations);
    let before = theirs(&place).await;
    let tables = before.iter().filter(|object| object.starts_with("LiteLLM_SpendLogs ")).count();
    assert!(tables > 30, "the schema is there: {tables}");

    let store = place.open().await;
    assert!(!migrate::apply(&store).await.unwrap().is_empty());
    insert(&store, "Acme").await;
    assert_eq!(theirs(&place).await, before);

    // And by hand, where the process has been already.
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), migrate::print("postgres").unwrap()).unwrap();
    psql(&place, &[script.path().to_owned()]);
    assert!(migrate::pending(&store).await.unwrap().is_empty());
    assert_eq!(theirs(&place).await, before);
}

/// The other way round: LiteLLM is set up where we are already.
#[tokio::test]
async fn its_schema_comes_after_ours_too() {
    let Some(place) = places().await.into_iter().find(Place::is_postgres) else { return };
    let Some(migrations) = schema() else { return };
    let store = place.store().await;
    insert(&store, "Acme").await;
    psql(&place, migrations);
    insert(&store, "Other").await;
    assert!(migrate::pending(&store).await.unwrap().is_empty());
}
