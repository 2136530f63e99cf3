//! A watch's body as events: each with its length in four bytes before it.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::fault::{Answer, Fault};
use super::http::Connection;
use super::proto::{Broken, Fields, object};
use crate::store::StoreError;

/// No event is larger, in bytes: etcd keeps no Node of more than 1.5 MiB.
const LARGEST: usize = 8 << 20;
/// A bookmark comes every minute; a server that sends nothing for so long hangs.
const SILENT: Duration = Duration::from_secs(150);

/// An open watch.
pub(super) struct Frames {
    /// Held because the connection ends with its last user.
    connection: Connection,
    body: Incoming,
    buffer: Vec<u8>,
    /// Where the next event begins.
    start: usize,
}

/// An event of a watch.
#[derive(Debug)]
pub(super) enum Event<'a> {
    /// A Node came or changed.
    There(Fields<'a>),
    /// A Node went.
    Gone(Fields<'a>),
    /// Nothing changed up to here.
    Bookmark(Fields<'a>),
    /// The watch ends for this reason.
    Failed(Answer),
}

impl Frames {
    pub(super) fn new(connection: Connection, body: Incoming) -> Self {
        Self { connection, body, buffer: Vec::new(), start: 0 }
    }

    /// Waits until an event is there whole; false where the server has ended the watch. May be dropped at any await.
    pub(super) async fn wait(&mut self) -> Result<bool, StoreError> {
        while self.end().map_err(|why| self.connection.broken(why))?.is_none() {
            if self.start > 0 {
                self.buffer.drain(..self.start);
                self.start = 0;
            }
            let frame = timeout(SILENT, self.body.frame()).await;
            let frame = frame.map_err(|_| self.connection.broken("the watch is silent"))?;
            match frame.transpose().map_err(|error| self.connection.broken(&error.to_string()))? {
                Some(frame) => self.buffer.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The event that was waited for; it counts as read.
    pub(super) fn event(&mut self) -> Result<Event<'_>, Fault> {
        let (begin, end) = (self.start + 4, self.end().ok().flatten().unwrap_or(self.start + 4));
        self.start = end;
        let bytes = self.buffer.get(begin..end).unwrap_or_default();
        let broken = |Broken| self.connection.broken("an event that is not Kubernetes' protobuf");
        read(bytes).map_err(broken).map_err(Fault::Store)
    }

    /// Where the next event ends, once it is there whole.
    fn end(&self) -> Result<Option<usize>, &'static str> {
        let rest = &self.buffer[self.start..];
        let Some((length, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > LARGEST {
            return Err("an event of more than 8 MiB");
        }
        Ok((rest.len() >= length).then_some(self.start + 4 + length))
    }
}

fn read(bytes: &[u8]) -> Result<Event<'_>, Broken> {
    let (mut kind, mut raw) = ("", &[][..]);
    for field in Fields::of(bytes) {
        match field? {
            (1, text) => kind = text.text()?,
            // RawExtension.
            (2, extension) => {
                for field in extension.fields()? {
                    if let (1, bytes) = field? {
                        raw = bytes.bytes()?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(match kind {
        "ADDED" | "MODIFIED" => Event::There(object(raw)?.1),
        "DELETED" => Event::Gone(object(raw)?.1),
        "BOOKMARK" => Event::Bookmark(object(raw)?.1),
        "ERROR" => Event::Failed(Answer::of_event(raw)),
        _ => return Err(Broken),
    })
}
