//! A client's connection, with one old habit of Go clients put right on the way in.
//!
//! `etcdctl` 3.4 and its contemporaries name the server as `:authority: http://127.0.0.1:2379` in calls that go to one
//! endpoint (status, alarms, snapshot). A URL is not an authority, and the HTTP/2 library answers with a protocol
//! error before any of our code is asked. So the first HEADERS frame of a connection is looked at: an authority that
//! starts with `http://` gets three characters that a host name may have in place of `://`. They are as long as what
//! they replace, also in the header compression's code, so client and server keep the same idea of the compression's
//! state; later requests refer to the first one's value. From then on bytes pass untouched.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::connections::{Client, Place};
use super::limits::FIRST_REQUEST;

/// Length of "PRI * HTTP/2.0…", which a client says first.
const PREFACE: usize = 24;

/// Length of a frame's head: three bytes length, one type, one flags, four stream.
const FRAME_HEAD: usize = 9;

const HEADERS: u8 = 1;

/// Bytes looked at before the first HEADERS frame is complete; real clients need a few hundred.
const PATIENCE: usize = 32 << 10;

/// "http://" in the compression's Huffman code, as far as whole bytes go, and "httpB--".
const URL: [u8; 5] = [0x9d, 0x29, 0xae, 0xe3, 0x0c];
const NAME: [u8; 5] = [0x9d, 0x29, 0xae, 0xea, 0xcb];

/// The first byte of an `:authority` that is spelled out, to be remembered.
const AUTHORITY: u8 = 0x41;

/// The bit in a value's length that says it is in Huffman code.
const HUFFMAN: u8 = 0x80;

pub(crate) struct Connection<T> {
    inner: T,
    opening: Option<Opening>,
    /// Until when the first request must be here.
    first: Pin<Box<Sleep>>,
    place: Place,
    /// Another connection takes the place.
    cut: oneshot::Receiver<()>,
}

impl<T> Connection<T> {
    pub(crate) fn new(inner: T, place: Place, cut: oneshot::Receiver<()>) -> Self {
        let first = Box::pin(tokio::time::sleep(FIRST_REQUEST));
        Self { inner, opening: Some(Opening::default()), first, place, cut }
    }

    /// Why the connection ends, if it does.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Option<io::Error> {
        if Pin::new(&mut self.cut).poll(cx).is_ready() {
            return Some(io::Error::new(io::ErrorKind::ConnectionAborted, "too many connections"));
        }
        let late = self.opening.is_some() && self.first.as_mut().poll(cx).is_ready();
        late.then(|| io::Error::new(io::ErrorKind::TimedOut, "no request came"))
    }
}

/// Who sent a request, and which of our addresses it reached. Each request has it among its extensions.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) client: Arc<Client>,
    pub(crate) reached: Option<SocketAddr>,
}

impl Connected for Connection<Wire> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let stream = match &self.inner {
            Wire::Plain(stream) => stream,
            Wire::Tls(stream) => stream.get_ref().0,
        };
        Peer { client: self.place.client(), reached: stream.local_addr().ok() }
    }
}

/// With TLS or without.
pub(crate) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Calls a method of whichever stream there is.
macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Wire::Plain($stream) => $call,
            Wire::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(cx, out))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Connection<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(end) = this.poll_end(cx) {
            return Poll::Ready(Err(end));
        }
        while let Some(opening) = &mut this.opening {
            if opening.hand_out(out) {
                return Poll::Ready(Ok(()));
            }
            if opening.done {
                this.opening = None;
                this.place.proven();
                break;
            }
            let mut chunk = [0; 1024];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut chunk))?;
            opening.take_in(chunk.filled());
        }
        let read = ready!(Pin::new(&mut this.inner).poll_read(cx, out));
        this.place.heard();
        Poll::Ready(read)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Connection<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// The bytes up to the first HEADERS frame, which is held back until it is complete.
#[derive(Default)]
struct Opening {
    bytes: Vec<u8>,
    /// Where the frame being looked at starts.
    frame: usize,
    /// Up to where bytes may be handed out, and were.
    ready: usize,
    given: usize,
    done: bool,
}

impl Opening {
    /// Takes what the client sent; nothing means that it has said all.
    fn take_in(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
        let found = self.find_headers();
        if let Some(headers) = &found {
            rename(&mut self.bytes[headers.clone()]);
        }
        if found.is_some() || chunk.is_empty() || self.bytes.len() > PATIENCE {
            self.done = true;
            self.ready = self.bytes.len();
        }
    }

    /// Walks over complete frames to the first HEADERS frame; returns where its content is, once it is all there.
    fn find_headers(&mut self) -> Option<std::ops::Range<usize>> {
        self.frame = self.frame.max(PREFACE);
        while let Some([a, b, c, kind]) = self.bytes.get(self.frame..self.frame + 4) {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            let content = self.frame + FRAME_HEAD..self.frame + FRAME_HEAD + length;
            if *kind == HEADERS {
                self.ready = self.frame;
                return (content.end <= self.bytes.len()).then_some(content);
            }
            self.frame = content.end;
        }
        // The head of the next frame is held until its kind is known.
        self.ready = self.frame.min(self.bytes.len());
        None
    }

    fn hand_out(&mut self, out: &mut ReadBuf<'_>) -> bool {
        let part = &self.bytes[self.given..self.ready];
        let part = &part[..part.len().min(out.remaining())];
        out.put_slice(part);
        self.given += part.len();
        !part.is_empty()
    }
}

fn rename(headers: &mut [u8]) {
    let is_url =
        |at: &[u8]| at[0] == AUTHORITY && at[1] & HUFFMAN != 0 && at[2..7] == URL && at[7] & HUFFMAN == 0;
    if let Some(at) = headers.windows(8).position(is_url) {
        headers[at + 2..at + 7].copy_from_slice(&NAME);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What etcdctl 3.4 sends for `endpoint status`, up to the path.
    const FIRST: [u8; 24] = [
        0x83, 0x86, 0x41, 0x90, 0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x04, 0x4e, 0xae, 0x05, 0xc0, 0xb8, 0x6e, 0x34,
        0x16, 0xc0, 0xdf, 0x5f, 0x8b, 0x1d, 0x75,
    ];

    fn conversation(headers: &[u8]) -> Vec<u8> {
        let mut said = vec![b'P'; PREFACE];
        said.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        said.extend([0, 0, 24, HEADERS, 4, 0, 0, 0, 1]);
        said.extend(headers);
        said.extend(b"and more");
        said
    }

    fn heard(said: &[u8], chunk: usize) -> Vec<u8> {
        let (mut opening, mut heard) = (Opening::default(), Vec::new());
        for part in said.chunks(chunk) {
            if opening.done {
                heard.extend(part);
                continue;
            }
            opening.take_in(part);
            let mut room = [0; 256];
            let mut out = ReadBuf::new(&mut room);
            opening.hand_out(&mut out);
            heard.extend(out.filled());
        }
        heard
    }

    #[test]
    fn a_url_as_authority_becomes_a_name_however_the_bytes_arrive() {
        let mut renamed = FIRST;
        renamed[4..9].copy_from_slice(&NAME);
        for chunk in 1..80 {
            assert_eq!(heard(&conversation(&FIRST), chunk), conversation(&renamed), "in chunks of {chunk}");
        }
    }

    #[test]
    fn any_other_conversation_passes_untouched() {
        let mut proper = FIRST;
        proper[4..9].copy_from_slice(&[0x08, 0x9d, 0x5c, 0x0b, 0x81]);
        assert_eq!(heard(&conversation(&proper), 7), conversation(&proper));
        let garbage = vec![0xff; PATIENCE + 1000];
        assert_eq!(heard(&garbage, 200), garbage);
    }

    #[test]
    fn what_comes_before_the_first_request_is_not_held_back() {
        let mut opening = Opening::default();
        opening.take_in(&conversation(&FIRST)[..PREFACE + FRAME_HEAD + FRAME_HEAD + 3]);
        assert_eq!((opening.ready, opening.done), (PREFACE + FRAME_HEAD, false));
    }
}
