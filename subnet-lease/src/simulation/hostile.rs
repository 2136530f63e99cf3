//! The client against a server that answers anything: other messages than asked for, changed bytes, errors, halves,
//! streams without end, nothing at all. Every call of the store ends, and none panics.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use etcd_client::proto::{
    PbKeyValue, PbLeaseGrantResponse, PbLeaseKeepAliveResponse, PbLeaseTimeToLiveResponse, PbPutResponse,
    PbRangeResponse, PbResponseHeader, PbResponseOp, PbTxnOpResponse, PbTxnResponse, PbWatchResponse,
};
use futures::{StreamExt, stream};
use hyper::body::{Body as HttpBody, Frame};
use prost::Message;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Bytes, Service, http};
use tonic::server::NamedService;
use tonic::{Code, Status};

use super::net::Net;
use super::{MARGIN, NETWORK, TTL};
use crate::admit::claim::Claim;
use crate::model::lease::BackendAttrs;
use crate::model::net::Subnets;
use crate::model::netconf::NetworkConfig;
use crate::store::Store;
use crate::store::etcd::{EtcdConfig, EtcdStore};

type Rng = Arc<Mutex<fastrand::Rng>>;

trait Name: Send + Sync + 'static {
    const NAME: &'static str;
}

struct Hostile<N>(Rng, PhantomData<N>);

impl<N> Clone for Hostile<N> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<N: Name> NamedService for Hostile<N> {
    const NAME: &'static str = N::NAME;
}

macro_rules! names {
    ($($name:ident = $text:literal),*) => {$(
        struct $name;
        impl Name for $name {
            const NAME: &'static str = $text;
        }
    )*};
}

names!(
    Kv = "etcdserverpb.KV",
    Lease = "etcdserverpb.Lease",
    Watch = "etcdserverpb.Watch",
    Maintenance = "etcdserverpb.Maintenance",
    Auth = "etcdserverpb.Auth"
);

impl<N: Name> Service<http::Request<Body>> for Hostile<N> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let rng = self.0.clone();
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            let (odds, answer) = {
                let mut rng = rng.lock().unwrap_or_else(PoisonError::into_inner);
                (rng.u32(0..100), answer(&mut rng, &method))
            };
            if odds < 3 {
                return std::future::pending().await;
            }
            // A stream that is not read to its end counts as taken back.
            tokio::spawn(async move { drop(request) });
            Ok(answer)
        })
    }
}

/// What follows the last message.
enum End {
    Trailers(Code),
    Nothing,
    Silence,
    Reset,
    /// The messages again, so many times, and then silence.
    Again(Vec<Bytes>, u32),
}

struct Said {
    frames: VecDeque<Bytes>,
    end: End,
    over: bool,
}

impl HttpBody for Said {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(data) = self.frames.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if self.over {
            return Poll::Ready(None);
        }
        match &mut self.end {
            End::Again(frames, times) if *times > 0 && !frames.is_empty() => {
                *times -= 1;
                let again = frames.clone();
                self.frames.extend(again);
                let data = self.frames.pop_front().unwrap_or_default();
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            End::Silence | End::Again(..) => Poll::Pending,
            End::Reset => {
                self.over = true;
                Poll::Ready(Some(Err(Status::internal("reset"))))
            }
            End::Trailers(code) => {
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", i32::from(*code).into());
                self.over = true;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            End::Nothing => Poll::Ready(None),
        }
    }
}

fn answer(rng: &mut fastrand::Rng, method: &str) -> http::Response<Body> {
    if rng.u32(0..20) == 0 {
        let code = Code::from_i32(rng.i32(-1..20));
        return Status::new(code, "x".repeat(rng.usize(0..9000))).into_http();
    }
    let is_stream = matches!(method, "Watch" | "LeaseKeepAlive");
    let count = if is_stream { rng.usize(0..20) } else { usize::from(rng.u32(0..20) != 0) };
    let mut frames: Vec<Bytes> = (0..count).map(|_| framed(rng, method)).collect();
    if rng.u32(0..15) == 0 {
        // A length that never arrives.
        frames.push(Bytes::from_static(&[0, 0x7f, 0xff, 0xff, 0xff, 1, 2, 3]));
    }
    let end = match rng.u32(0..30) {
        0 => End::Nothing,
        1 => End::Silence,
        2 => End::Reset,
        3 => End::Again(frames.clone(), 20),
        4 => End::Trailers(Code::from_i32(rng.i32(0..17))),
        _ if is_stream && rng.bool() => End::Silence,
        _ => End::Trailers(Code::Ok),
    };
    let body = Body::new(Said { frames: frames.into(), end, over: false });
    let mut response = http::Response::new(body);
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
    if rng.u32(0..40) == 0 {
        *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
    }
    response
}

fn framed(rng: &mut fastrand::Rng, method: &str) -> Bytes {
    let mut message = message(rng, method);
    if rng.u32(0..8) == 0 && !message.is_empty() {
        let at = rng.usize(..message.len());
        match rng.u32(0..2) {
            0 => message[at] = rng.u8(..),
            _ => message.truncate(at),
        }
    }
    let length = u32::try_from(message.len()).unwrap();
    [&[0][..], &length.to_be_bytes(), &message].concat().into()
}

fn message(rng: &mut fastrand::Rng, method: &str) -> Vec<u8> {
    // Now and then the answer to something else.
    let methods = ["Range", "Txn", "Put", "Watch", "LeaseGrant", "LeaseKeepAlive", "LeaseTimeToLive"];
    let method = if rng.u32(0..25) == 0 { methods[rng.usize(..methods.len())] } else { method };
    let header = header(rng);
    match method {
        "Range" => range(rng).encode_to_vec(),
        "Put" => PbPutResponse { header, prev_kv: None }.encode_to_vec(),
        "Txn" => {
            let responses = (0..rng.usize(0..4)).map(|_| {
                let response = match rng.u32(0..4) {
                    0 => None,
                    1 => Some(PbTxnOpResponse::ResponsePut(PbPutResponse::default())),
                    _ => Some(PbTxnOpResponse::ResponseRange(range(rng))),
                };
                PbResponseOp { response }
            });
            let responses = responses.collect();
            PbTxnResponse { header, succeeded: rng.u32(0..3) > 0, responses }.encode_to_vec()
        }
        "LeaseGrant" => {
            let (id, ttl) = (odd(rng), odd(rng));
            PbLeaseGrantResponse { header, id, ttl, error: String::new() }.encode_to_vec()
        }
        "LeaseKeepAlive" => PbLeaseKeepAliveResponse { header, id: odd(rng), ttl: odd(rng) }.encode_to_vec(),
        "LeaseTimeToLive" => PbLeaseTimeToLiveResponse {
            header,
            id: odd(rng),
            ttl: odd(rng),
            granted_ttl: odd(rng),
            keys: Vec::new(),
        }
        .encode_to_vec(),
        "Watch" => {
            let mut response = PbWatchResponse {
                header,
                watch_id: if rng.u32(0..10) == 0 { odd(rng) } else { 0 },
                created: rng.u32(0..4) == 0,
                canceled: rng.u32(0..15) == 0,
                compact_revision: if rng.u32(0..15) == 0 { odd(rng) } else { 0 },
                ..Default::default()
            };
            for _ in 0..rng.usize(0..4) {
                response.events.push(etcd_client::proto::PbEvent {
                    r#type: rng.i32(-1..4),
                    kv: (rng.u32(0..8) > 0).then(|| row(rng)),
                    prev_kv: None,
                });
            }
            response.encode_to_vec()
        }
        _ => (0..rng.usize(0..64)).map(|_| rng.u8(..)).collect(),
    }
}

fn header(rng: &mut fastrand::Rng) -> Option<PbResponseHeader> {
    let revision = if rng.u32(0..10) == 0 { odd(rng) } else { rng.i64(5..50) };
    (rng.u32(0..12) > 0).then_some(PbResponseHeader { cluster_id: 1, member_id: 1, revision, raft_term: 1 })
}

fn range(rng: &mut fastrand::Rng) -> PbRangeResponse {
    let mut kvs: Vec<_> = (0..rng.usize(0..6)).map(|_| row(rng)).collect();
    if rng.u32(0..4) > 0 {
        kvs.sort_by(|a, b| a.key.cmp(&b.key));
    }
    let count = if rng.u32(0..4) == 0 { odd(rng) } else { i64::try_from(kvs.len()).unwrap() };
    PbRangeResponse { header: header(rng), kvs, more: rng.u32(0..6) == 0, count }
}

fn row(rng: &mut fastrand::Rng) -> PbKeyValue {
    let third = rng.u8(..);
    let key = match rng.u32(0..10) {
        0 => "/coreos.com/network/config".to_owned(),
        1 => "/elsewhere".to_owned(),
        2 => format!("/coreos.com/network/subnets/{}", "9".repeat(rng.usize(0..300))),
        3 => format!("/coreos.com/network/subnets/10.5.{third}.0-24&fc00:0:0:{third:x}::-64"),
        4 => String::new(),
        _ => format!("/coreos.com/network/subnets/10.5.{}.0-24&fc00:0:0:{:x}::-64", third & 31, third & 31),
    };
    let value = match rng.u32(0..10) {
        0 => Vec::new(),
        1 => (0..rng.usize(0..80)).map(|_| rng.u8(..)).collect(),
        2 => vec![b'{'; rng.usize(0..100_000)],
        3 | 4 => NETWORK.as_bytes().to_vec(),
        _ => format!(
            r#"{{"PublicIP":"192.168.0.{}","PublicIPv6":"fd00::{:x}","BackendType":"host-gw"}}"#,
            third, third
        )
        .into_bytes(),
    };
    PbKeyValue {
        key: key.into_bytes(),
        value,
        create_revision: odd(rng),
        mod_revision: odd(rng),
        version: odd(rng),
        lease: odd(rng),
    }
}

/// A number that is sensible, or not.
fn odd(rng: &mut fastrand::Rng) -> i64 {
    match rng.u32(0..10) {
        0 => i64::MIN,
        1 => i64::MAX,
        2 => -1,
        3 => 0,
        _ => rng.i64(1..100),
    }
}

/// Time for all runs; a machine that is slow does fewer of them.
const MOST: Duration = Duration::from_secs(20);

/// Longer than every limit of the client together.
const END: Duration = Duration::from_secs(3600);

/// Each call of the store, once.
async fn use_the_store(store: &EtcdStore, claim: &Claim, rng: &mut fastrand::Rng) {
    let subnets: Subnets = "10.5.3.0-24&fc00:0:0:3::-64".parse().unwrap();
    match rng.u32(0..8) {
        0 => drop(store.claim(claim).await),
        1 => drop(store.get_config().await),
        2 => drop(store.put_config(NETWORK.as_bytes(), None).await),
        3 => drop(store.list().await),
        4 => drop(store.show(&subnets).await),
        5 => drop(store.export().await),
        6 => {
            if let Ok(Some(shown)) = store.show(&subnets).await {
                drop(store.end(&shown).await);
            }
        }
        _ => {
            // The stream goes on for ever; what comes in a minute is looked at.
            let events = store.watch().take(200).take_until(tokio::time::sleep(Duration::from_secs(60)));
            assert!(events.count().await <= 200);
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "it bounds how long the test runs, not what it does")]
#[test]
fn a_server_that_answers_anything_neither_stops_nor_breaks_the_client() {
    let runs = std::env::var("FUZZ_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(200);
    let began = std::time::Instant::now();
    for seed in 0..runs {
        if began.elapsed() > MOST && seed > 0 {
            break;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let (net, arrived) = Net::new(1, seed);
            let rng: Rng = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
            let arrived = stream::unfold(arrived, |mut arrived| async move {
                let connection = arrived.recv().await?;
                Some((Ok::<_, std::io::Error>(connection), arrived))
            });
            let router = tonic::transport::Server::builder()
                .add_service(Hostile::<Kv>(rng.clone(), PhantomData))
                .add_service(Hostile::<Lease>(rng.clone(), PhantomData))
                .add_service(Hostile::<Watch>(rng.clone(), PhantomData))
                .add_service(Hostile::<Maintenance>(rng.clone(), PhantomData))
                .add_service(Hostile::<Auth>(rng, PhantomData));
            tokio::spawn(async move { router.serve_with_incoming(Box::pin(arrived)).await });
            let config = EtcdConfig {
                endpoints: vec!["http://store".into()],
                ttl: TTL,
                renew_margin: MARGIN,
                ..EtcdConfig::default()
            };
            let store = EtcdStore::simulated(config, net.wire(0), seed);
            let (network, _) = NetworkConfig::parse(NETWORK.as_bytes()).unwrap();
            let claim = Claim {
                avoid: Vec::new(),
                public: ["192.168.0.1", "fd00::1"].iter().map(|address| address.parse().unwrap()).collect(),
                attrs: BackendAttrs::plain("host-gw"),
                previous: None,
                network: Arc::new(network),
                node: Some("node".into()),
            };
            let mut rng = fastrand::Rng::with_seed(!seed);
            for n in 0..20 {
                let done = tokio::time::timeout(END, use_the_store(&store, &claim, &mut rng)).await;
                assert!(done.is_ok(), "seed {seed}: call {n} does not end");
            }
        });
    }
}
