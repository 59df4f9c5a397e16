//! TLS of our listener: rustls, HTTP/1.1 and HTTP/2 by ALPN, read again when the files change.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::TlsConfig;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The certificate in force.
#[derive(Clone)]
pub(super) struct Tls(Arc<ArcSwap<ServerConfig>>);

impl Tls {
    /// Reads certificate and key.
    pub(super) fn open(files: &TlsConfig) -> Result<Self, String> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(read(files)?))))
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.0.load_full()).accept(stream).await
    }

    /// Follows the files for ever; a pair that cannot be read leaves the last good one in force.
    pub(super) async fn follow(self, files: TlsConfig) {
        let mut seen = changed(&files);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = changed(&files);
            if now == seen {
                continue;
            }
            seen = now;
            match read(&files) {
                Ok(config) => {
                    self.0.store(Arc::new(config));
                    tracing::info!("the TLS certificate was read again");
                }
                Err(error) => tracing::warn!(error, "the TLS certificate has changed but cannot be used"),
            }
        }
    }
}

fn changed(files: &TlsConfig) -> [Option<SystemTime>; 2] {
    [&files.cert, &files.key].map(|path| std::fs::metadata(path).and_then(|m| m.modified()).ok())
}

fn read(files: &TlsConfig) -> Result<ServerConfig, String> {
    let wrong = |key: &str, path: &Path, error: &dyn std::fmt::Display| format!("{key} = {}: {error}", path.display());
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| wrong("tls.cert (ALCHEMI_TLS_CERT)", &files.cert, &e))?;
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|e| wrong("tls.key (ALCHEMI_TLS_KEY)", &files.key, &e))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| wrong("tls.cert (ALCHEMI_TLS_CERT)", &files.cert, &e))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
