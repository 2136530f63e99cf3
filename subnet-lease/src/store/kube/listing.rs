//! All Nodes at one version: streamed as events where the server knows how, else in pages.

use std::time::Duration;

use tokio::time::timeout;

use super::Shared;
use super::fault::{Answer, Fault};
use super::frames::{Event, Frames};
use super::http::{Ask, Connection};
use super::node::Node;
use super::own::OwnNode;
use super::proto::{Broken, Fields, object};
use super::table::Listing;
use crate::store::StoreError;

pub(super) const NODES: &str = "/api/v1/nodes";
/// A watch's events, with their lengths before them.
const WATCH: &str = "application/vnd.kubernetes.protobuf;stream=watch";
/// How long a watch lasts: long, since each new one costs a request.
const LASTS: &str = "timeoutSeconds=3600";
/// Nodes in one answer, where the server does not stream its list: a page of large ones is a few MiB.
const PAGE: usize = 100;
/// A server that streams its list is not silent for so long before the end of it.
const SILENT: Duration = Duration::from_secs(5);

/// All Nodes, the version at which they are so, and ours among them.
#[derive(Default)]
pub(super) struct Listed {
    pub(super) version: String,
    pub(super) listing: Listing,
    pub(super) own: Option<OwnNode>,
}

impl Listed {
    fn add(&mut self, shared: &Shared, fields: Fields<'_>) -> Result<(), Broken> {
        let node = Node::read(fields, &shared.prefix)?;
        if node.name == shared.name {
            self.own = Some(OwnNode::of(&node));
        }
        self.listing.add(&node);
        Ok(())
    }
}

/// All Nodes as the first events of a watch that goes on. None where the server does not know how.
pub(super) async fn streamed(
    shared: &Shared,
    mut connection: Connection,
) -> Result<Option<(Listed, Frames)>, Fault> {
    let path = format!(
        "{NODES}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&{LASTS}"
    );
    let body = match connection.stream(Ask { accept: WATCH, ..Ask::get(&path) }).await {
        Ok(answer) => answer.into_body(),
        Err(Fault::Answer(Answer { code: 400 | 422, .. })) => return Ok(None),
        Err(fault) => return Err(fault),
    };
    let (mut frames, mut listed) = (Frames::new(connection, body), Listed::default());
    loop {
        // Older servers take it for a watch, and have no mark for the end of the list.
        let Ok(more) = timeout(SILENT, frames.wait()).await else { return Ok(None) };
        if !more? {
            return Err(StoreError::Unreachable("the list ended before its end".into()).into());
        }
        match frames.event()? {
            Event::There(fields) => listed.add(shared, fields).map_err(broken)?,
            Event::Gone(_) => {}
            Event::Bookmark(fields) => {
                let node = Node::read(fields, &shared.prefix).map_err(broken)?;
                if node.ends_list {
                    listed.version = node.version.to_owned();
                    return Ok(Some((listed, frames)));
                }
            }
            Event::Failed(answer) => return Err(Fault::Answer(answer)),
        }
    }
}

/// All Nodes, a page a request.
pub(super) async fn paged(shared: &Shared, connection: &mut Connection) -> Result<Listed, Fault> {
    let (mut listed, mut more) = (Listed::default(), String::new());
    loop {
        let path = format!("{NODES}?limit={PAGE}{more}");
        let page = connection.whole(Ask::get(&path)).await?;
        let next = take_page(shared, &mut listed, &page).map_err(broken)?;
        if next.is_empty() {
            return Ok(listed);
        }
        more = format!("&continue={}", escaped(&next));
    }
}

/// Returns by what the next page is asked for; empty after the last one.
fn take_page(shared: &Shared, listed: &mut Listed, page: &[u8]) -> Result<String, Broken> {
    let mut next = String::new();
    for field in object(page)?.1 {
        match field? {
            // ListMeta.
            (1, meta) => {
                for field in meta.fields()? {
                    match field? {
                        (2, text) => listed.version = text.text()?.to_owned(),
                        (3, text) => next = text.text()?.to_owned(),
                        _ => {}
                    }
                }
            }
            (2, item) => listed.add(shared, item.fields()?)?,
            _ => {}
        }
    }
    Ok(next)
}

/// Changes from a version on.
pub(super) async fn watch(mut connection: Connection, from: &str) -> Result<Frames, Fault> {
    let path =
        format!("{NODES}?watch=true&allowWatchBookmarks=true&resourceVersion={}&{LASTS}", escaped(from));
    let body = connection.stream(Ask { accept: WATCH, ..Ask::get(&path) }).await?.into_body();
    Ok(Frames::new(connection, body))
}

pub(super) fn broken(Broken: Broken) -> Fault {
    StoreError::Unsupported("the API server's answer is not Kubernetes' protobuf".into()).into()
}

/// As a query takes it.
fn escaped(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut all, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => all.push(byte.into()),
            _ => all.push_str(&format!("%{byte:02X}")),
        }
        all
    })
}
