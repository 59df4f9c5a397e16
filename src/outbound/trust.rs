//! Whom we believe to be who they say: the system's trust store.

use std::sync::{Arc, OnceLock};

use reqwest::ClientBuilder;
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls_platform_verifier::BuilderVerifierExt as _;

/// The builder with the system's trust store, which a process reads once for all clients that
/// are built so: there are a hundred certificates and more in it. They speak HTTP/1.1, and other
/// settings of the builder for TLS have no effect.
pub fn with_trust_store(builder: ClientBuilder) -> ClientBuilder {
    static READ: OnceLock<Option<ClientConfig>> = OnceLock::new();
    match READ.get_or_init(read) {
        Some(config) => builder.tls_backend_preconfigured(config.clone()),
        // Building it tells why not.
        None => builder,
    }
}

fn read() -> Option<ClientConfig> {
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let config = config.with_safe_default_protocol_versions().ok()?.with_platform_verifier().ok()?;
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Some(config)
}
