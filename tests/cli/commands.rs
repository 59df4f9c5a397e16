//! Commands that need no running gateway.

use base64::Engine;

use crate::{alchemi, run};

#[test]
fn help_teaches_and_what_is_wrong_ends_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let help = run(alchemi(folder.path()).arg("--help")).done();
    for command in ["serve", "dev", "migrate", "check-config", "openapi", "keygen", "audit", "ledger", "healthcheck"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command} is not in {help}");
    }
    assert!(help.contains("Start with `alchemi dev`"), "{help}");
    assert!(run(alchemi(folder.path()).arg("--version")).done().starts_with("alchemi "));
    run(alchemi(folder.path()).arg("sevre")).refused(2, "sevre");
    run(&mut alchemi(folder.path())).refused_without_a_command();
}

impl crate::Ended {
    #[track_caller]
    fn refused_without_a_command(self) {
        assert_eq!(self.status, 2);
        assert!(self.err.contains("Usage: alchemi"), "{}", self.err);
    }
}

#[test]
fn the_example_is_a_configuration_and_shows_every_default() {
    let folder = tempfile::tempdir().unwrap();
    let example = run(alchemi(folder.path()).args(["check-config", "--example"])).done();
    let file = folder.path().join("alchemi.toml");
    std::fs::write(&file, &example).unwrap();
    let shown = |file: &[&std::ffi::OsStr]| {
        let mut command = alchemi(folder.path());
        command.arg("check-config").args(file);
        run(command.env("ZITADEL_ISSUER", "https://login.example.com").env("ZITADEL_PROJECT_ID", "1")).done()
    };
    let from_file = shown(&["--config".as_ref(), file.as_os_str()]);
    let by_default = shown(&[]);
    assert_eq!(from_file, by_default);
}

#[test]
fn settings_in_force_are_shown_without_secrets_and_wrong_ones_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = alchemi(folder.path());
    command.arg("check-config").env("ZITADEL_ISSUER", "https://login.example.com").env("ZITADEL_PROJECT_ID", "1");
    command
        .env("ALCHEMI_MASTER_KEY", "canary-master-0123456789-0123456789")
        .env("ALCHEMI_UPSTREAM_API_KEY", "canary-upstream");
    command.env("DATABASE_URL", "postgres://me:canary-database@127.0.0.1/alchemi").env("ALCHEMI_LISTEN", "0.0.0.0:9");
    let shown = run(&mut command).done();
    assert!(shown.contains("0.0.0.0:9") && shown.contains("login.example.com") && !shown.contains("canary"), "{shown}");

    let file = folder.path().join("wrong.toml");
    for (text, because) in [
        ("listne = '127.0.0.1:1'", "listne"),
        ("listen = 'here'", "listen"),
        ("[upstream]\nurls = ['ftp://x']", "urls"),
        ("[allocation]\nenforcement = 'sometimes'", "enforcement"),
        ("not toml", "wrong.toml"),
    ] {
        std::fs::write(&file, text).unwrap();
        for command in ["check-config", "serve"] {
            let mut command_line = alchemi(folder.path());
            command_line.args([command, "-c"]).arg(&file);
            command_line.env("ZITADEL_ISSUER", "https://login.example.com").env("ZITADEL_PROJECT_ID", "1");
            run(&mut command_line).refused(2, because);
        }
    }
    run(alchemi(folder.path()).args(["serve", "-c", "missing.toml"])).refused(2, "missing.toml");
}

#[test]
fn keys_are_fresh_and_of_their_shape() {
    let folder = tempfile::tempdir().unwrap();
    let key = |kind: &str| run(alchemi(folder.path()).args(["keygen", kind])).done().trim().to_owned();
    let (one, other) = (key("master"), key("master"));
    assert_ne!(one, other);
    assert!(one.len() == 64 && one.bytes().all(|b| b.is_ascii_hexdigit()), "{one}");
    let secret = key("secret");
    assert_ne!(secret, key("secret"));
    let bytes = base64::engine::general_purpose::STANDARD.decode(secret.rsplit(':').next().unwrap()).unwrap();
    assert_eq!(bytes.len(), 32);
}

#[test]
fn the_description_is_the_servers_own() {
    let folder = tempfile::tempdir().unwrap();
    let printed: serde_json::Value = serde_json::from_str(&run(alchemi(folder.path()).arg("openapi")).done()).unwrap();
    assert_eq!(printed, serde_json::to_value(alchemi::v1::description()).unwrap());
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(alchemi(folder.path()).args(["completions", shell])).done().contains("check-config"));
    }
}
