//! TLS for the embedded store: the server's certificate, and the authority of its clients' where one is named.
//!
//! The files are looked at with every connection, so a certificate that was replaced is used at once. New files that
//! do not go together leave the old ones in force, with a warning.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::warn;

use super::error::ServerError;

/// Where the certificates are: PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, followed by those between it and its authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority of clients; where it is given, a client without a certificate of it is turned away.
    pub client_authority: Option<PathBuf>,
}

/// When each file was last changed, and its length.
type Stamp = Vec<Option<(SystemTime, u64)>>;

/// Makes connections secret.
pub(crate) struct Tls {
    files: TlsFiles,
    loaded: Mutex<(Stamp, Arc<rustls::ServerConfig>)>,
}

impl Tls {
    pub(crate) fn load(files: TlsFiles) -> Result<Self, ServerError> {
        let stamp = files.stamp();
        let config = files.read()?;
        Ok(Self { files, loaded: Mutex::new((stamp, config)) })
    }

    /// Shakes hands with a client.
    pub(crate) async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.current()).accept(stream).await
    }

    fn current(&self) -> Arc<rustls::ServerConfig> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.files.stamp();
        if loaded.0 != stamp {
            match self.files.read() {
                Ok(config) => loaded.1 = config,
                Err(error) => warn!("going on with the certificates read before: {error}"),
            }
            loaded.0 = stamp;
        }
        Arc::clone(&loaded.1)
    }
}

impl TlsFiles {
    fn stamp(&self) -> Stamp {
        let changed = |path: &PathBuf| fs::metadata(path).and_then(|m| Ok((m.modified()?, m.len()))).ok();
        [Some(&self.cert), Some(&self.key), self.client_authority.as_ref()]
            .into_iter()
            .flatten()
            .map(changed)
            .collect()
    }

    fn read(&self) -> Result<Arc<rustls::ServerConfig>, ServerError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|e| unusable(&self.key, &e))?;
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| unusable(&self.cert, &e))?;
        let builder = match &self.client_authority {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path)? {
                    roots.add(authority).map_err(|e| unusable(path, &e))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().map_err(|e| unusable(path, &e))?)
            }
        };
        let mut config =
            builder.with_single_cert(certificates(&self.cert)?, key).map_err(|e| unusable(&self.cert, &e))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServerError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => Err(unusable(path, &"no certificate in it")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(unusable(path, &error)),
    }
}

fn unusable(path: &Path, reason: &impl std::fmt::Display) -> ServerError {
    ServerError::Certificate { path: path.to_owned(), reason: reason.to_string() }
}
