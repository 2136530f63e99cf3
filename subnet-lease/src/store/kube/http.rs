//! One HTTP connection to the API server, and what is asked over it.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::client::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{RootCertStore, crypto};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::config::KubeConfig;
use super::exec::{self, Credentials};
use super::fault::{Answer, Fault, unreached};
use super::kubeconfig::{Access, Server};
use crate::store::StoreError;

/// For a connection, TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// For an answer, and for the rest of its body.
const REQUEST: Duration = Duration::from_secs(30);
/// A silent connection is asked after so long, so often, in such steps: a host that is gone is noticed in 20 seconds.
const KEEP_ALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(8))
    .with_interval(Duration::from_secs(4))
    .with_retries(3);
/// No whole answer is larger, in bytes: a page of Nodes.
const LARGEST: usize = 64 << 20;
/// Answers of the fast and small kind; JSON for what a proxy answers.
pub(super) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf,application/json";

/// Makes connections. Credentials are read anew for each: they are replaced while we run.
#[derive(Debug)]
pub(super) struct Dialer {
    pub(super) config: KubeConfig,
    /// What the credential plugin printed last, until the server refuses it.
    printed: Mutex<Option<Credentials>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(***)")
    }
}

/// A request.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) accept: &'a str,
    /// Its type, and itself.
    pub(super) body: Option<(&'static str, Vec<u8>)>,
}

impl<'a> Ask<'a> {
    pub(super) fn get(path: &'a str) -> Self {
        Self { method: Method::GET, path, accept: PROTOBUF, body: None }
    }
}

/// An open connection.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    server: Server,
    token: Option<String>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Dialer {
    /// Checks what can be checked without a connection.
    pub(super) fn new(config: KubeConfig) -> Result<Self, StoreError> {
        Access::read(&config).map_err(StoreError::Config)?;
        Ok(Self { config, printed: Mutex::new(None) })
    }

    pub(super) async fn connect(&self) -> Result<Connection, StoreError> {
        let access = self.access().await?;
        let server = access.server.clone();
        let silent = || StoreError::Unreachable(format!("{server} does not answer"));
        let stream = timeout(CONNECT, open(&access)).await.map_err(|_| silent())?;
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                self.forget_printed();
                return Err(error);
            }
        };
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| StoreError::Unreachable(format!("{server}: {error}")))?;
        // Ends with its last user; the error is the user's to report.
        tokio::spawn(connection);
        Ok(Connection { sender, server, token: access.token })
    }

    /// The server refused the credentials: the next connection gets others, if a program yields them.
    pub(super) fn forget_printed(&self) {
        self.lock().take();
    }

    async fn access(&self) -> Result<Access, StoreError> {
        let mut access = Access::read(&self.config).map_err(StoreError::Untrusted)?;
        let Some(exec) = access.exec.take() else { return Ok(access) };
        let known = self.lock().clone();
        let credentials = match known {
            Some(known) => known,
            None => exec::run(&exec).await.map_err(StoreError::Untrusted)?,
        };
        *self.lock() = Some(credentials.clone());
        credentials.put_into(&mut access);
        Ok(access)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Credentials>> {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn open(access: &Access) -> Result<Box<dyn Stream>, StoreError> {
    let server = &access.server;
    let reached = |error: io::Error| unreached(server, &error);
    let tcp = TcpStream::connect((server.host.as_str(), server.port)).await.map_err(reached)?;
    tcp.set_nodelay(true).map_err(reached)?;
    SockRef::from(&tcp).set_tcp_keepalive(&KEEP_ALIVE).map_err(reached)?;
    if !server.tls {
        return Ok(Box::new(tcp));
    }
    let config = tls(access).map_err(StoreError::Untrusted)?;
    let name = access.server_name.as_ref().unwrap_or(&server.host).clone();
    let name = ServerName::try_from(name.clone()).map_err(|_| {
        StoreError::Untrusted(format!("{server}: {name:?} is not a name that a certificate has"))
    })?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(reached)?;
    Ok(Box::new(stream))
}

fn tls(access: &Access) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match &access.authority {
        Some(pem) => {
            for cert in CertificateDer::pem_slice_iter(pem) {
                let cert = cert.map_err(|error| format!("certificate-authority: {error}"))?;
                roots.add(cert).map_err(|error| format!("certificate-authority: {error}"))?;
            }
            if roots.is_empty() {
                return Err("certificate-authority: no certificate in PEM form".to_owned());
            }
        }
        // One that can't be read matters when it is missed.
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let Some((cert, key)) = &access.identity else { return Ok(builder.with_no_client_auth()) };
    let chain = CertificateDer::pem_slice_iter(cert).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| format!("client-certificate: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("client-key: {error}"))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| format!("client-certificate: {error}"))
}

impl Connection {
    /// Asks, and reads the whole answer.
    pub(super) async fn whole(&mut self, ask: Ask<'_>) -> Result<Vec<u8>, Fault> {
        let mut body = self.stream(ask).await?.into_body();
        let reading = timeout(REQUEST, collect(&mut body)).await;
        reading.map_err(|_| self.silent())?.map_err(|why| self.broken(&why).into())
    }

    /// Asks, and leaves the answer's body to be read.
    pub(super) async fn stream(&mut self, ask: Ask<'_>) -> Result<Response<Incoming>, Fault> {
        let Server { host, port, path, .. } = &self.server;
        let host = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let mut request = Request::builder()
            .method(ask.method)
            .uri(format!("{path}{}", ask.path))
            .header(HOST, host)
            .header(USER_AGENT, concat!("selvage/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, ask.accept);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let (kind, body) = ask.body.unwrap_or_default();
        if !kind.is_empty() {
            request = request.header(CONTENT_TYPE, kind);
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| StoreError::Config(format!("{}: {error}", self.server)))?;
        let asked = async {
            self.sender.ready().await?;
            self.sender.send_request(request).await
        };
        let answer = timeout(REQUEST, asked).await.map_err(|_| self.silent())?;
        let answer = answer.map_err(|error| self.broken(&error.to_string()))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (code, seconds) = (answer.status().as_u16(), answer.headers().get(RETRY_AFTER));
        let seconds = seconds.and_then(|value| value.to_str().ok()?.parse().ok());
        let body = timeout(REQUEST, collect(&mut answer.into_body())).await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        Err(Fault::Answer(Answer::read(code, seconds.map(Duration::from_secs), &body)))
    }

    fn silent(&self) -> StoreError {
        StoreError::Unreachable(format!("{} does not answer", self.server))
    }

    /// The connection, or what came over it, is of no use.
    pub(super) fn broken(&self, why: &str) -> StoreError {
        StoreError::Unreachable(format!("{}: {why}", self.server))
    }
}

async fn collect(body: &mut Incoming) -> Result<Vec<u8>, String> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        if let Some(data) = frame.data_ref() {
            if whole.len() + data.len() > LARGEST {
                return Err(format!("an answer of more than {LARGEST} bytes"));
            }
            whole.extend_from_slice(data);
        }
    }
    Ok(whole)
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let Self { host, port, path, .. } = self;
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}{path}")
        } else {
            write!(f, "{scheme}://{host}:{port}{path}")
        }
    }
}
