use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, GetOptions, GetResponse, Identity, KvClient, LeaseClient,
    PutOptions, ResponseHeader, TlsOptions, Txn, TxnOp, WatchClient,
};

use etcd_client::proto::PbTxnOpResponse;
use futures::stream::{FuturesUnordered, StreamExt};
use futures_core::future::BoxFuture;
use tokio::sync::watch;

use super::config::{EtcdConfig, read_pem};
use super::keys::Keys;
use super::told::Way;
use crate::model::lease::PublicAddrs;
use crate::store::StoreError;

/// An answer takes at most this long; a watch has no end.
const REQUEST: Duration = Duration::from_secs(10);
/// The client library's own limit ends with the headers of an answer. The whole answer takes at most this long. Ours: a
/// page of records over a slow link takes some seconds.
const WHOLE: Duration = Duration::from_secs(60);
/// Long enough for a far data centre, short enough to get past a dead endpoint.
const CONNECT: Duration = Duration::from_secs(3);
/// An endpoint that says nothing for so long is not waited for alone: a member that hangs, or is cut off from the others,
/// takes connections and gives no answers. Ours: many times what an answer takes, a third of [`REQUEST`].
const SILENT: Duration = Duration::from_secs(3);
/// etcd closes connections that ping more often than every 5 s. A half-open connection is noticed after both.
const PING: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3));
/// The client's own limit of 4 MiB lets four fat records stop every host.
const LARGEST_MESSAGE: usize = 64 << 20;

/// Opens connections.
#[derive(Debug)]
pub(super) struct Dialer {
    pub(super) config: EtcdConfig,
    pub(super) keys: Keys,
    /// The place of the one that answered last.
    endpoint: AtomicUsize,
    /// The address of this host, as it was last claimed.
    pub(super) host: watch::Sender<PublicAddrs>,
    /// What tells this host's pauses from those of others.
    pub(super) seed: u64,
    /// In a simulation, in place of TCP.
    #[cfg(all(test, feature = "server"))]
    pub(super) wire: Option<crate::simulation::Wire>,
}

/// One connection to one endpoint.
#[derive(Clone)]
pub(super) struct Session {
    kv: KvClient,
    lease: LeaseClient,
    pub(super) watch: WatchClient,
    way: Way,
    keys: Keys,
    pub(super) ttl: Duration,
}

impl Dialer {
    pub(super) fn new(config: EtcdConfig) -> Result<Self, StoreError> {
        config.check()?;
        if config.ca_file.is_some()
            && !config.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"))
        {
            tracing::warn!(
                "etcd-cafile is given, but no endpoint begins with https://: nothing is encrypted"
            );
        }
        let host = watch::Sender::new(PublicAddrs::default());
        Ok(Self {
            keys: Keys::new(&config.prefix),
            config,
            endpoint: AtomicUsize::new(0),
            host,
            seed: RandomState::new().hash_one(0),
            #[cfg(all(test, feature = "server"))]
            wire: None,
        })
    }

    /// Connects to the endpoint that answered last, else to the next one that does. A connection is made with its first
    /// request, and a member without a quorum is as good as down: so the first request, which must be one that may be
    /// made twice, is what the caller wants to know. An endpoint that fails is passed over at once; one that is silent
    /// goes on being waited for beside the next.
    pub(super) async fn reach<T: Send>(
        &self,
        first: impl for<'a> Fn(&'a mut Session) -> BoxFuture<'a, Result<T, StoreError>> + Sync,
    ) -> Result<(Session, T), StoreError> {
        let (begin, count) = (self.endpoint.load(Ordering::Relaxed), self.config.endpoints.len());
        let mut untried = begin..begin + count;
        let (mut tried, mut failure) = (FuturesUnordered::new(), None);
        loop {
            tried.extend(untried.next().map(|index| self.attempt(index, &first)));
            let patience = if untried.is_empty() { Duration::MAX } else { SILENT };
            match tokio::time::timeout(patience, tried.next()).await {
                Ok(Some((index, Ok(reached)))) => {
                    self.endpoint.store(index % count, Ordering::Relaxed);
                    return Ok(reached);
                }
                // What one of them answered says more than another's silence.
                Ok(Some((_, Err(error)))) => {
                    failure =
                        failure.filter(|told| !matches!(told, StoreError::Unreachable(_))).or(Some(error));
                }
                Ok(None) => {
                    return Err(failure.unwrap_or_else(|| StoreError::Unreachable("no endpoint".into())));
                }
                Err(_) => {}
            }
        }
    }

    async fn attempt<T>(
        &self,
        index: usize,
        first: &(impl for<'a> Fn(&'a mut Session) -> BoxFuture<'a, Result<T, StoreError>> + Sync),
    ) -> (usize, Result<(Session, T), StoreError>) {
        let endpoint = &self.config.endpoints[index % self.config.endpoints.len()];
        let reached = async {
            let mut session = self.open(endpoint).await?;
            let answer = first(&mut session).await?;
            Ok((session, answer))
        };
        (index, reached.await)
    }

    /// Whoever lost a connection to this endpoint begins with the next one: it would wait once more for a member that hangs.
    pub(super) fn turn_from(&self, endpoint: &str) {
        let (last, count) = (self.endpoint.load(Ordering::Relaxed), self.config.endpoints.len());
        if self.config.endpoints.get(last).is_some_and(|it| it == endpoint) {
            self.endpoint.store((last + 1) % count, Ordering::Relaxed);
        }
    }

    /// Notes under which address the host is known. Connections from another one it had are dead, and only the pings
    /// would find out: whoever waits for [`host`](Self::host) to change opens a new one.
    pub(super) fn stands_at(&self, public: PublicAddrs) {
        self.host.send_if_modified(|host| std::mem::replace(host, public) != public);
    }

    async fn open(&self, endpoint: &str) -> Result<Session, StoreError> {
        let way = Way::new(endpoint, &self.config);
        let options = self.options(endpoint)?;
        self.resolve(endpoint).await?;
        let connecting = self.connect(endpoint, options);
        let client = tokio::time::timeout(REQUEST, connecting).await.map_err(|_| way.silent())?;
        let client = client.map_err(|error| way.told(None, &error))?;
        Ok(Session {
            kv: client.kv_client().max_decoding_message_size(LARGEST_MESSAGE),
            lease: client.lease_client(),
            watch: client.watch_client().max_decoding_message_size(LARGEST_MESSAGE),
            way,
            keys: self.keys.clone(),
            ttl: self.config.ttl,
        })
    }

    /// Looks up the server's name before the client does, whose error does not tell a name without an address from a server
    /// that does not answer.
    async fn resolve(&self, endpoint: &str) -> Result<(), StoreError> {
        #[cfg(all(test, feature = "server"))]
        if self.wire.is_some() {
            return Ok(());
        }
        let place = endpoint.split_once("://").map_or(endpoint, |(_, place)| place).trim_end_matches('/');
        let why = match tokio::time::timeout(CONNECT, tokio::net::lookup_host(place)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no name server answers within {} s (/etc/resolv.conf)", CONNECT.as_secs()),
        };
        Err(StoreError::Unreachable(format!("{endpoint}: its name has no address: {why}")))
    }

    async fn connect(&self, endpoint: &str, options: ConnectOptions) -> Result<Client, Error> {
        #[cfg(all(test, feature = "server"))]
        if let Some(wire) = &self.wire {
            let way = tonic::transport::Endpoint::from_shared(endpoint.to_owned())?
                .timeout(REQUEST)
                .connect_timeout(CONNECT)
                .http2_keep_alive_interval(PING.0)
                .keep_alive_timeout(PING.1)
                .keep_alive_while_idle(true);
            let channel = etcd_client::Channel::Tonic(way.connect_with_connector_lazy(wire.clone()));
            return Client::from_channel(channel, Some(options)).await;
        }
        Client::connect([endpoint], Some(options)).await
    }

    fn options(&self, endpoint: &str) -> Result<ConnectOptions, StoreError> {
        let config = &self.config;
        let mut options = ConnectOptions::new()
            .with_timeout(REQUEST)
            .with_connect_timeout(CONNECT)
            .with_keep_alive(PING.0, PING.1)
            .with_require_leader(true);
        if let (Some(user), Some(password)) = (&config.username, &config.password) {
            options = options.with_user(user, password);
        }
        if endpoint.starts_with("https://") {
            options = options.with_tls(tls(config)?);
        }
        Ok(options)
    }
}

fn tls(config: &EtcdConfig) -> Result<TlsOptions, StoreError> {
    let mut tls = match &config.ca_file {
        Some(path) => TlsOptions::new().ca_certificate(Certificate::from_pem(read_pem("etcd-cafile", path)?)),
        None => TlsOptions::new().with_native_roots(),
    };
    if let (Some(cert), Some(key)) = (&config.cert_file, &config.key_file) {
        let (cert, key) = (read_pem("etcd-certfile", cert)?, read_pem("etcd-keyfile", key)?);
        tls = tls.identity(Identity::from_pem(cert, key));
    }
    Ok(tls)
}

impl Session {
    /// Where it leads.
    pub(super) fn endpoint(&self) -> &str {
        &self.way.endpoint
    }

    pub(super) fn way(&self) -> &Way {
        &self.way
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(super) async fn get(
        &mut self,
        key: impl Into<Vec<u8>>,
        options: Option<GetOptions>,
    ) -> Result<GetResponse, StoreError> {
        let key = key.into();
        let name = String::from_utf8_lossy(&key).into_owned();
        whole(&self.way, Some(&name), self.kv.get(key, options)).await
    }

    /// A key, and a page of a range, at one revision, which is in the header.
    pub(super) async fn get_both(
        &mut self,
        key: String,
        from: String,
        page: GetOptions,
    ) -> Result<(Option<ResponseHeader>, GetResponse, GetResponse), StoreError> {
        let both = Txn::new().and_then([TxnOp::get(key, None), TxnOp::get(from.clone(), Some(page))]);
        let mut answer = whole(&self.way, Some(&from), self.kv.txn(both)).await?;
        let header = answer.take_header();
        // Not by the client library's own method: it panics where an answer has no content.
        let mut answers = answer.0.responses.into_iter().map(|one| match one.response {
            Some(PbTxnOpResponse::ResponseRange(range)) => Some(GetResponse(range)),
            _ => None,
        });
        match (answers.next().flatten(), answers.next().flatten(), answers.next()) {
            (Some(one), Some(page), None) => Ok((header, one, page)),
            _ => Err(StoreError::Unsupported(format!("{} answers what was not asked", self.way.endpoint))),
        }
    }

    /// Runs a compare-and-swap that is about `key`. Returns the revision of the change; `Raced` if the comparison failed.
    pub(super) async fn swap(&mut self, key: &str, txn: Txn) -> Result<i64, StoreError> {
        let answer = whole(&self.way, Some(key), self.kv.txn(txn)).await?;
        match answer.header() {
            Some(header) if answer.succeeded() => Ok(header.revision()),
            _ => Err(StoreError::Raced(key.into())),
        }
    }

    /// A new etcd lease: id and time granted.
    pub(super) async fn grant(&mut self, ttl: Duration) -> Result<(i64, Duration), StoreError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let granted = whole(&self.way, None, self.lease.grant(seconds, None)).await?;
        Ok((granted.id(), seconds_of(granted.ttl()).unwrap_or(ttl)))
    }

    /// Gives an etcd lease its whole time again. Returns that time; `None` if the lease has ended.
    pub(super) async fn keep_alive(&mut self, id: i64) -> Result<Option<Duration>, StoreError> {
        let keeping = async {
            let (mut keeper, mut answers) = match self.lease.keep_alive(id).await {
                Ok(both) => both,
                // The library's error for a lifetime of 0, by which etcd means that there is no such lease.
                Err(Error::LeaseKeepAliveError(_)) => return Ok(None),
                Err(error) => return Err(error),
            };
            // The library does not pass on the time from the first answer.
            keeper.keep_alive().await?;
            answers.message().await
        };
        let answer = whole(&self.way, None, keeping).await?;
        Ok(answer.and_then(|answer| seconds_of(answer.ttl())))
    }

    /// Ends an etcd lease that is not needed; where that fails it ends by itself.
    pub(super) async fn revoke(&mut self, id: i64) {
        if let Err(error) = whole(&self.way, None, self.lease.revoke(id)).await {
            tracing::debug!(%error, "could not give back an unused etcd lease");
        }
    }

    /// The time an etcd lease has left; `None` if it has ended.
    pub(super) async fn time_left(&mut self, id: i64) -> Result<Option<Duration>, StoreError> {
        let answer = whole(&self.way, None, self.lease.time_to_live(id, None)).await?;
        Ok(seconds_of(answer.ttl()))
    }

    /// The time an etcd lease was granted, and what is left of it; `None` if it has ended.
    pub(super) async fn times(&mut self, id: i64) -> Result<Option<(Duration, Duration)>, StoreError> {
        let answer = whole(&self.way, None, self.lease.time_to_live(id, None)).await?;
        Ok(seconds_of(answer.granted_ttl()).zip(seconds_of(answer.ttl())))
    }

    pub(super) fn told(&self, error: &Error) -> StoreError {
        self.way.told(None, error)
    }
}

/// Waits for a whole answer; `key` is what it is about.
pub(super) async fn whole<T>(
    way: &Way,
    key: Option<&str>,
    asking: impl Future<Output = Result<T, Error>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(WHOLE, asking).await {
        Ok(answer) => answer.map_err(|error| way.told(key, &error)),
        Err(_) => Err(way.silent()),
    }
}

/// Options of a put that attaches the key to an etcd lease; 0 is none.
pub(super) fn attached(etcd_lease: i64) -> Option<PutOptions> {
    (etcd_lease != 0).then(|| PutOptions::new().with_lease(etcd_lease))
}

fn seconds_of(ttl: i64) -> Option<Duration> {
    u64::try_from(ttl).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}
