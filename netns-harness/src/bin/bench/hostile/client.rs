//! A client of the etcd API that can stop anywhere: gRPC by hand on HTTP/2.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{Method, Request, Version};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// A connection; it ends when this is dropped.
pub(crate) struct Client {
    requests: SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// How long a connection or an answer may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes that a client takes without reading them.
pub(crate) const WINDOW: u32 = 1 << 20;

impl Client {
    pub(crate) async fn connect(to: SocketAddr, window: u32) -> Result<Self> {
        let connecting = async {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            let mut builder = h2::client::Builder::new();
            builder.initial_window_size(window).initial_connection_window_size(window.max(65_535));
            let (requests, connection) = builder.handshake(stream).await?;
            let driver = tokio::spawn(async { drop(connection.await) });
            Ok(Self { requests, driver })
        };
        tokio::time::timeout(PATIENCE, connecting).await.context("no connection")?
    }

    /// Begins a call.
    pub(crate) async fn begin(&mut self, path: &str) -> Result<(ResponseFuture, SendStream<Bytes>)> {
        let request = Request::builder()
            .method(Method::POST)
            .version(Version::HTTP_2)
            .uri(format!("http://store{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        self.requests = self.requests.clone().ready().await?;
        Ok(self.requests.send_request(request, false)?)
    }

    /// Sends a whole message, whose answer may be read or not.
    pub(crate) async fn send(&mut self, path: &str, message: &[u8]) -> Result<ResponseFuture> {
        let (response, mut stream) = self.begin(path).await?;
        stream.send_data(framed(message), true)?;
        Ok(response)
    }

    /// Asks and reads the answer; an error of the server is an error.
    pub(crate) async fn ask(&mut self, path: &str, message: &[u8]) -> Result<usize> {
        let asking = async {
            let response = self.send(path, message).await?.await?;
            let refused = status(response.headers());
            let mut body = response.into_body();
            let bytes = read(&mut body).await?;
            let trailers = body.trailers().await?;
            match refused.or_else(|| trailers.as_ref().and_then(status)) {
                Some(code) if code != "0" => Err(anyhow!("refused: {code}")),
                _ => Ok(bytes),
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.context("no answer")?
    }
}

fn status(headers: &http::HeaderMap) -> Option<String> {
    Some(headers.get("grpc-status")?.to_str().ok()?.to_owned())
}

async fn read(body: &mut RecvStream) -> Result<usize> {
    let mut bytes = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        bytes += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(bytes)
}

/// A message with its head.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut bytes = announced(message.len());
    bytes.put_slice(message);
    bytes.freeze()
}

/// The head of a message that is so long.
pub(crate) fn announced(length: usize) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(5);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    bytes
}

/// A field of bytes, as protocol buffers have it.
pub(crate) fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    varint(&mut out, bytes.len() as u64);
    out.extend(bytes);
    out
}

/// A field that is a number.
pub(crate) fn number(number: u8, value: i64) -> Vec<u8> {
    let mut out = vec![number << 3];
    varint(&mut out, value.cast_unsigned());
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Requests of the API.
pub(crate) fn put(key: &str, value: &[u8]) -> Vec<u8> {
    [field(1, key.as_bytes()), field(2, value)].concat()
}

pub(crate) fn get(key: &str) -> Vec<u8> {
    field(1, key.as_bytes())
}

/// All keys; sorted by value where wanted.
pub(crate) fn everything(sorted: bool) -> Vec<u8> {
    let mut all = [field(1, &[0]), field(2, &[0])].concat();
    if sorted {
        all.extend([number(5, 1), number(6, 4)].concat());
    }
    all
}

pub(crate) fn watch(key: &[u8], range_end: &[u8]) -> Vec<u8> {
    field(1, &[field(1, key), field(2, range_end), number(6, 1)].concat())
}

pub(crate) const PUT: &str = "/etcdserverpb.KV/Put";
pub(crate) const RANGE: &str = "/etcdserverpb.KV/Range";
pub(crate) const TXN: &str = "/etcdserverpb.KV/Txn";
pub(crate) const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
pub(crate) const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
pub(crate) const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// Sends bytes of a stream as far as the server takes them, for a while.
pub(crate) async fn push(stream: &mut SendStream<Bytes>, mut bytes: Bytes, time: Duration) -> Result<()> {
    let pushing = async {
        while !bytes.is_empty() {
            stream.reserve_capacity(bytes.len());
            let capacity = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
            let Some(capacity) = capacity else { bail!("the stream has ended") };
            let part = bytes.split_to(capacity?.min(bytes.len()));
            stream.send_data(part, false)?;
        }
        Ok(())
    };
    tokio::time::timeout(time, pushing).await.unwrap_or(Ok(()))
}
