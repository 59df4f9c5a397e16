use super::*;

fn from_environment(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let lookup = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
    Config::from_figment(&figment(None, &lookup)?)
}

const KEY: (&str, &str) = ("ALCHEMI_MASTER_KEY", "0123456789abcdef0123456789abcdef");

#[test]
fn the_example_is_the_default_of_every_section() {
    let config = from_environment(&[KEY]).unwrap();
    assert_eq!(format!("{:?}", config.secrets), format!("{:?}", SecretsConfig::default()));
    assert_eq!(config.outbound, OutboundRules::default());
    assert_eq!(format!("{:?}", config.identity), format!("{:?}", IdentityConfig::default()));
    assert_eq!(format!("{:?}", config.upstream), format!("{:?}", UpstreamConfig::default()));
    assert_eq!(format!("{:?}", config.context), format!("{:?}", ContextConfig::default()));
    assert_eq!(format!("{:?}", config.allocation), format!("{:?}", AllocationConfig::default()));
    assert_eq!(format!("{:?}", config.journal), format!("{:?}", JournalConfig::default()));
    assert_eq!(format!("{:?}", config.ledger), format!("{:?}", LedgerConfig::default()));
    assert_eq!(format!("{:?}", config.alerts), format!("{:?}", AlertConfig::default()));
    assert_eq!(format!("{:?}", config.directory), format!("{:?}", DirectoryConfig::default()));
    assert_eq!(format!("{:?}", config.metering), format!("{:?}", MeteringConfig::default()));
    assert_eq!(format!("{:?}", config.policy), format!("{:?}", PolicyConfig::default()));
    assert_eq!(format!("{:?}", config.features), format!("{:?}", FeaturesConfig::default()));
    assert_eq!(format!("{:?}", config.guardrails), format!("{:?}", GuardrailsConfig::default()));
    assert_eq!(format!("{:?}", config.ask), format!("{:?}", AskRules::default()));
    assert_eq!(format!("{:?}", config.limits), format!("{:?}", LimitsConfig::default()));
    assert_eq!(format!("{:?}", config.log), format!("{:?}", LogConfig::default()));
    assert_eq!(format!("{:?}", config.telemetry), format!("{:?}", TelemetryConfig::default()));
    let database = DatabaseConfig { url: "sqlite:./data/alchemi.db".to_owned(), ..DatabaseConfig::default() };
    assert_eq!(format!("{:?}", config.database), format!("{database:?}"));
}

#[test]
fn variables_override_keys() {
    let config = from_environment(&[
        KEY,
        ("ALCHEMI_LISTEN", "127.0.0.1:9"),
        ("ALCHEMI_PASSTHROUGH", "off"),
        ("ALCHEMI_UPSTREAM_URL", "http://a:1, http://b:2"),
        ("ZITADEL_ISSUER", "https://id.example.com"),
        ("ZITADEL_JWKS_URI", "https://id.example.com/keys"),
        ("ZITADEL_PROJECT_ID", "31"),
        ("DATABASE_URL", "postgres://u:p@h/d"),
    ])
    .unwrap();
    assert_eq!(config.listen.port(), 9);
    assert!(!config.passthrough);
    assert_eq!(config.upstream.urls, ["http://a:1", "http://b:2"]);
    assert_eq!(config.identity.issuers[0].jwks_uri.as_deref(), Some("https://id.example.com/keys"));
    assert_eq!(config.database.url, "postgres://u:p@h/d");
}

#[test]
fn a_mistake_is_one_sentence_that_names_the_key() {
    let error = |pairs: &[(&str, &str)]| from_environment(pairs).unwrap_err().to_string();
    assert!(error(&[]).contains("ALCHEMI_MASTER_KEY"));
    assert!(error(&[("ALCHEMI_MASTER_KEY", "short")]).contains("32 characters"));
    let keys = error(&[KEY, ("ALCHEMI_SECRET_KEY", "a:hidden,hidden")]);
    assert!(keys.contains("secrets.keys (ALCHEMI_SECRET_KEY)") && !keys.contains("hidden"), "{keys}");
    assert!(error(&[KEY, ("ALCHEMI_LISTEN", "nowhere")]).contains("listen (ALCHEMI_LISTEN)"));
    assert!(error(&[KEY, ("ALCHEMI_PASSTHROUGH", "perhaps")]).contains("expected on or off"));
    assert!(error(&[KEY, ("ALCHEMI_ENFORCEMENT", "lax")]).contains("allocation.enforcement (ALCHEMI_ENFORCEMENT)"));
    assert!(error(&[KEY, ("ZITADEL_ISSUER", "https://a")]).contains("ZITADEL_PROJECT_ID"));
    assert!(error(&[KEY, ("ALCHEMI_CORS_ORIGINS", "*")]).contains("ALCHEMI_CORS_ORIGINS"));
    assert!(error(&[KEY, ("ALCHEMI_CORS_ORIGINS", "https://a, b")]).contains("holds \"b\""));
    let abandoned = |upstream: &str| {
        let text =
            format!("master_key = '{}'\n[allocation]\nabandon_after_seconds = 100\n[upstream]\n{upstream}", KEY.1);
        Config::from_toml(&text).unwrap_err().to_string()
    };
    let leases = |text: &str| format!("master_key = '{}'\n[allocation.leases]\n{text}", KEY.1);
    assert!(Config::from_toml(&leases("heartbeat_ms = 20001")).unwrap_err().to_string().contains("heartbeat_ms"));
    assert!(Config::from_toml(&leases("heartbeat_ms = 20000")).is_ok());
    assert!(abandoned("total_timeout = 100").contains("upstream.total_timeout"));
    assert!(abandoned("total_timeout = 99\nresponse_timeout = 100").contains("upstream.response_timeout"));
    assert!(Config::from_toml("lisen = 'x'").unwrap_err().to_string().contains("lisen"));
}

#[test]
fn what_is_allowed_and_bounds_less_than_it_says_is_warned_of() {
    let warned = |text: &str| {
        let config =
            Config::from_toml(&format!("master_key = '{}'\n[metering]\nstrict = true\n{text}", KEY.1)).unwrap();
        config.warnings().iter().any(|warning| warning.contains("strict bounds nothing"))
    };
    assert!(warned(""));
    assert!(!warned("unpriced = \"deny\"") && !warned("unpriced = \"flat:1\""));
}

#[test]
fn secrets_are_masked() {
    let text = r#"
        master_key = "hidden-1"
        upstream.urls = ["http://plain:1/", "http://u:hidden-2@a:1", "http://hidden-3@b"]
        database.url = "postgres://u:hidden-4@h/d?password=hidden-5&sslmode=require"
        other.url = "postgres://u:hidden-6#@h/d"
        identity.introspection_client_secret = "hidden-7"
        secrets.keys = ["a:hidden-10", "hidden-11"]
        [[identity.issuers]]
        url = "https://id.example.com"
        jwks_uri = "https://x:hidden-8@id/keys"
        internal_url = "http://id?db_Password=hidden-9"
    "#;
    let mut tree: toml::Table = text.parse().unwrap();
    tree.iter_mut().for_each(|(key, value)| mask(key, value));
    let text = toml::to_string(&tree).unwrap();
    assert!(!text.contains("hidden"), "{text}");
    for shown in ["\"http://plain:1/\"", "@h/d", "sslmode=require", "\"https://id.example.com\"", "@id/keys"] {
        assert!(text.contains(shown), "{shown} in {text}");
    }
}

#[test]
fn origins_are_as_browsers_write_them() {
    for origin in ["https://a.example.com", "http://localhost:3000", "http://[::1]:8080", "tauri://localhost"] {
        assert!(is_origin(origin), "{origin}");
    }
    for text in ["*", "a.example.com", "https://a/", "https://a/b", "https://A", "https://u@a", "https://a:443", "x\ny"]
    {
        assert!(!is_origin(text), "{text}");
    }
}
