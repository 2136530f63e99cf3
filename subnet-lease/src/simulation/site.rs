//! The server: its services, its engine, and a file that outlives them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use etcd_client::proto::PbPutRequest;
use futures::stream;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;

use super::net::{Arrived, Net};
use super::{Diary, NETWORK};
use crate::model::lease::Lease;
use crate::server::disk::tests::{FakeFile, IDENTITY};
use crate::server::engine::{Batch, Engine, Running};
use crate::server::router;

const PREFIX: &str = "/coreos.com/network";

pub(super) struct Site {
    file: FakeFile,
    arrived: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Arrived>>>,
    diary: Diary,
    /// Who holds which key: key and record, as the file has them.
    holders: Arc<Mutex<BTreeMap<String, Lease>>>,
    serving: Option<Serving>,
}

struct Serving {
    running: Running,
    tasks: [JoinHandle<()>; 2],
    /// Never told: it is killed.
    _stop: watch::Sender<bool>,
}

impl Site {
    pub(super) async fn start(arrived: mpsc::UnboundedReceiver<Arrived>, diary: Diary) -> Self {
        let mut site = Self {
            file: FakeFile::default(),
            arrived: Arc::new(tokio::sync::Mutex::new(arrived)),
            diary,
            holders: Arc::default(),
            serving: None,
        };
        site.serve().await;
        site
    }

    async fn serve(&mut self) {
        let (stop, stopping) = watch::channel(false);
        let (engine, running) = Engine::start(self.file.disk(), IDENTITY, stopping).await.unwrap();
        let put = PbPutRequest {
            key: format!("{PREFIX}/config").into(),
            value: NETWORK.into(),
            ..PbPutRequest::default()
        };
        let observing = observe(engine.follow(), Arc::clone(&self.holders), self.diary.clone());
        engine.ask(move |state, _| state.put(put)).await.unwrap();
        let arrived = Arc::clone(&self.arrived);
        let connections = stream::unfold((), move |()| {
            let arrived = Arc::clone(&arrived);
            async move { Some((Ok::<_, io::Error>(arrived.lock().await.recv().await?), ())) }
        });
        let router = router(&engine, "store".into(), "http");
        let serving =
            tokio::spawn(async { router.serve_with_incoming(Box::pin(connections)).await.unwrap() });
        self.serving = Some(Serving { running, tasks: [serving, tokio::spawn(observing)], _stop: stop });
    }

    /// As by a kill in the midst of work: nobody is told, what is on the disk stays.
    pub(super) async fn restart(&mut self, net: &Net) {
        if let Some(Serving { running, tasks: [serving, observing], .. }) = self.serving.take() {
            serving.abort();
            net.hang_up();
            running.quit().await.unwrap();
            // It ends with the last of its connections.
            drop(observing);
        }
        self.serve().await;
    }
}

/// Nobody ever writes over somebody else's lease.
async fn observe(
    mut batches: broadcast::Receiver<Arc<Batch>>,
    holders: Arc<Mutex<BTreeMap<String, Lease>>>,
    diary: Diary,
) {
    loop {
        let batch = match batches.recv().await {
            Ok(batch) => batch,
            Err(broadcast::error::RecvError::Closed) => return,
            Err(broadcast::error::RecvError::Lagged(n)) => panic!("{n} batches were not observed"),
        };
        let mut holders = holders.lock().unwrap();
        for event in &batch.events {
            let key = String::from_utf8(event.kv.key.to_vec()).unwrap();
            let Some(name) = key.strip_prefix(&format!("{PREFIX}/subnets/")) else { continue };
            if event.kv.version == 0 {
                diary.note(format_args!("store: {name} ended"));
                holders.remove(name);
                continue;
            }
            let lease = Lease::from_record(name, &event.kv.value).unwrap();
            diary.note(format_args!("store: {name} is held by {:?}", lease.node));
            let before = holders.insert(name.to_owned(), lease.clone());
            assert!(before.is_none_or(|before| before.is_of(&lease)), "{name} was taken from its holder");
        }
    }
}
