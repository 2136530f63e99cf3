//! A call from its headers to its last byte, and what it holds meanwhile.
//!
//! ```text
//!   headers ─▶ a call ─▶ message, as it arrives ─▶ job ─▶ answer ─▶ sent, or the client is gone
//!              │         │                                │
//!              Calls     Received                         Answers
//! ```
//! A client announces the length of a message before it sends the message, and the gRPC library reserves that much at
//! once. So the length is counted here, before the library reads it. What a call holds is free when the last of its
//! parts is gone: its request, its job, its answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Bytes, Service, http};
use tonic::server::NamedService;

use super::connection::Peer;
use super::connections::{Client, Held, Room};
use super::error::ApiError;
use super::limits::{MESSAGE, SMALL};

tokio::task_local! {
    /// The call that the current task answers.
    static CALL: Arc<Call>;
}

/// What one call holds.
pub(crate) struct Call {
    client: Arc<Client>,
    /// The call itself, and its answer.
    held: Mutex<Vec<Held>>,
    /// The message that arrives, or has arrived last.
    message: Mutex<Option<Held>>,
}

impl Call {
    fn begin(client: Arc<Client>) -> Result<Arc<Self>, ApiError> {
        let held = Mutex::new(vec![client.hold(Room::Calls, 1)?]);
        Ok(Arc::new(Self { client, held, message: Mutex::new(None) }))
    }

    /// The call that is answered by the code that asks. None within a stream, whose jobs are small, and in tests.
    pub(crate) fn current() -> Option<Arc<Self>> {
        CALL.try_with(Arc::clone).ok()
    }

    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Counts an answer.
    pub(crate) fn hold_answer(&self, bytes: usize) -> Result<(), ApiError> {
        if bytes > SMALL {
            let answer = self.client.hold(Room::Answers, bytes)?;
            self.held.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
        }
        Ok(())
    }

    fn has_large_answer(&self) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).len() > 1
    }

    /// Counts a message whose length has arrived; the one before it has been answered.
    fn hold_message(&self, bytes: usize) -> Result<(), ApiError> {
        let mut message = self.message.lock().unwrap_or_else(PoisonError::into_inner);
        *message = None;
        if bytes > SMALL {
            *message = Some(self.client.hold(Room::Received, bytes.min(MESSAGE))?);
        }
        Ok(())
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
pub(crate) struct Counted<S>(pub(crate) S);

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Counted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<S::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // Connections of a simulated network have no place among the others.
        let Some(client) = request.extensions().get::<Peer>().map(|peer| peer.client.clone()) else {
            return Box::pin(self.0.call(request));
        };
        let call = match Call::begin(client) {
            Ok(call) => call,
            Err(error) => return Box::pin(std::future::ready(Ok(Status::from(error).into_http()))),
        };
        let incoming = |body| Body::new(Incoming { body, call: call.clone(), framing: Framing::default() });
        let answering = CALL.scope(call.clone(), self.0.call(request.map(incoming)));
        Box::pin(async move {
            let answer = answering.await?;
            let is_large = call.has_large_answer();
            Ok(answer.map(|body| Body::new(Outgoing { body, waits: is_large, call })))
        })
    }
}

/// What a client sends.
struct Incoming {
    body: Body,
    call: Arc<Call>,
    framing: Framing,
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            this.framing.read(data, |length| this.call.hold_message(length))?;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a client is sent. The call ends with it.
struct Outgoing {
    body: Body,
    /// A large answer is encoded as a whole when it is polled first. So it waits for its turn: with hundreds of them in
    /// the queue of tasks, small answers would wait for all.
    waits: bool,
    call: Arc<Call>,
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.waits && !this.call.client.may_encode() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.waits = false;
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Where a stream of bytes is among its messages: each is a byte of flags, four bytes of length, and so many bytes.
#[derive(Debug, Default)]
struct Framing {
    head: [u8; 5],
    /// Bytes of the head that have arrived, and bytes of the message that have not.
    have: usize,
    left: usize,
}

impl Framing {
    /// Goes on through `data`, and names the length of each message that begins in it.
    fn read(
        &mut self,
        mut data: &[u8],
        mut begins: impl FnMut(usize) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        while !data.is_empty() {
            if self.left > 0 {
                let part = self.left.min(data.len());
                self.left -= part;
                data = &data[part..];
                continue;
            }
            self.head[self.have] = data[0];
            self.have += 1;
            data = &data[1..];
            if self.have == self.head.len() {
                let [_, length @ ..] = self.head;
                (self.have, self.left) =
                    (0, usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX));
                begins(self.left)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_found_however_the_bytes_arrive() {
        let mut said = Vec::new();
        for length in [0_u32, 1, 300, 70_000] {
            said.push(0);
            said.extend(length.to_be_bytes());
            said.extend(vec![7; usize::try_from(length).unwrap()]);
        }
        for chunk in [1, 2, 3, 4, 5, 6, 7, 304, 1000, said.len()] {
            let (mut framing, mut lengths) = (Framing::default(), Vec::new());
            for part in said.chunks(chunk) {
                let note = |length| {
                    lengths.push(length);
                    Ok(())
                };
                framing.read(part, note).unwrap();
            }
            assert_eq!(lengths, [0, 1, 300, 70_000], "in chunks of {chunk}");
        }
    }
}
