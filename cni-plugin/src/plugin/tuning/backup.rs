//! What the link was like before: a file of the reference plugin's form, from which DEL sets it back.

use std::fs::{self, DirBuilder};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use backends::IfName;
use backends::local::files::Draft;
use backends::netlink::link::{self, IFF_ALLMULTI, IFF_PROMISC, LinkView, get_link};
use backends::netlink::{Batch, Socket};

use super::conf::Tuning;
use crate::contract::json::Object;
use crate::contract::{Call, Code, During, Failure};
use crate::sys::small_file;

/// What of a link can be tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub(super) index: u32,
    pub(super) mac: backends::Mac,
    pub(super) mtu: u32,
    pub(super) queue: u32,
    /// How many want to see every frame.
    pub(super) watchers: u32,
    pub(super) all_multicast: bool,
}

impl State {
    pub(super) fn read(socket: &mut Socket, name: IfName) -> Result<Self, Failure> {
        let what = || format!("cannot read {name} of the container");
        let found = socket.get(&mut get_link(name), |message| {
            let view = LinkView::parse(&message).ok()?;
            Some(Self {
                index: view.index,
                mac: view.mac.unwrap_or_default(),
                mtu: view.mtu,
                queue: view.queue_length,
                watchers: view.watchers,
                all_multicast: view.flags & IFF_ALLMULTI != 0,
            })
        });
        found.during(Code::Kernel, what)?.ok_or_else(|| Failure::new(Code::Kernel, what()))
    }
}

/// Under this name the file is written before it gets its own.
fn draft(path: &Path) -> PathBuf {
    path.with_extension("draft")
}

fn path(call: &Call, conf: &Tuning) -> PathBuf {
    conf.folder.join(format!("{}_{}.json", call.container, call.ifname))
}

/// Writes down what will be changed.
pub(super) fn write(call: &Call, conf: &Tuning, state: &State) -> Result<(), Failure> {
    let mut old = Object::default();
    if conf.mac.is_some() {
        old.set("mac", state.mac.to_string());
    }
    if conf.promiscuous {
        old.set("promisc", state.watchers != 0);
    }
    if conf.mtu != 0 {
        old.set("mtu", state.mtu);
    }
    if conf.all_multicast.is_some() {
        old.set("allmulti", state.all_multicast);
    }
    if conf.queue.is_some() {
        old.set("txQLen", state.queue);
    }
    let path = path(call, conf);
    let what = || format!("cannot write {}", path.display());
    DirBuilder::new().recursive(true).mode(0o700).create(&conf.folder).during(Code::Io, what)?;
    let written = || {
        let mut draft = Draft::named(&path, draft(&path), 0o600)?;
        draft.write_all(old.to_string().as_bytes())?;
        draft.put()
    };
    written().during(Code::Io, what)
}

/// Restores the values in the file as far as possible, and removes the file. The interface exists.
pub(super) fn restore(call: &Call, conf: &Tuning, socket: &mut Socket) {
    let text = small_file::read(&path(call, conf)).unwrap_or_default();
    let old = Object::parse("the backup", text.as_bytes());
    if let (Ok(old), Ok(state)) = (old, State::read(socket, call.ifname)) {
        let mut batch = Batch::new();
        let index = state.index;
        if let Ok(Some(mtu)) = old.number("mtu") {
            link::mtu(link::change(&mut batch, index, 0, 0), mtu);
        }
        if let Ok(Some(mac)) = old.parsed("mac", "") {
            link::mac(link::change(&mut batch, index, 0, 0), mac);
        }
        for (key, bit) in [("promisc", IFF_PROMISC), ("allmulti", IFF_ALLMULTI)] {
            if let Ok(Some(on)) = old.flag(key) {
                link::change(&mut batch, index, if on { bit } else { 0 }, bit);
            }
        }
        if let Ok(Some(queue)) = old.number("txQLen") {
            link::queue_length(link::change(&mut batch, index, 0, 0), queue);
        }
        // An interface that is about to go need not be as it was.
        let _ = socket.apply(&mut batch);
    }
    forget(call, conf);
}

/// Removes the file; what is already gone is not an error. What cannot be removed is named: the next ADD of the same
/// container replaces it.
pub(super) fn forget(call: &Call, conf: &Tuning) {
    let path = path(call, conf);
    for file in [draft(&path), path] {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                eprintln!("tuning: cannot remove {}: {error}", file.display());
            }
            _ => {}
        }
    }
}
