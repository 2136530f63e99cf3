//! The Maintenance service: status, and an honest no to what has no meaning for one process on one file.

use std::path::PathBuf;
use std::pin::Pin;

use etcd_client::proto::{
    PbAlarmRequest, PbAlarmResponse, PbDefragmentRequest, PbDefragmentResponse, PbDowngradeRequest,
    PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest, PbHashResponse,
    PbMaintenanceService, PbMoveLeaderRequest, PbMoveLeaderResponse, PbSnapshotRequest, PbSnapshotResponse,
    PbStatusRequest, PbStatusResponse,
};
use futures::Stream;
use tonic::{Request, Response, Status};

use super::engine::Engine;
use super::limits::QUOTA;

/// Level of the etcd API that is answered; clients choose features by it.
const API_VERSION: &str = "3.5.0";

pub(crate) struct MaintenanceService {
    pub(crate) engine: Engine,
    /// The database file, for its size.
    pub(crate) file: PathBuf,
}

#[tonic::async_trait]
impl PbMaintenanceService for MaintenanceService {
    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<PbSnapshotResponse, Status>> + Send>>;

    /// There are never alarms: a full quota shows in each refused write and ends by itself.
    async fn alarm(&self, request: Request<PbAlarmRequest>) -> Result<Response<PbAlarmResponse>, Status> {
        const ACTIVATE: i32 = 1;
        if request.into_inner().action == ACTIVATE {
            return Err(Status::unimplemented("the embedded store has no alarms to raise"));
        }
        let header = self.engine.ask(|state, _| Ok(state.header())).await?;
        Ok(Response::new(PbAlarmResponse { header: Some(header), alarms: Vec::new() }))
    }

    async fn status(&self, _: Request<PbStatusRequest>) -> Result<Response<PbStatusResponse>, Status> {
        let (header, in_use) = self.engine.ask(|state, _| Ok((state.header(), state.mvcc.bytes()))).await?;
        let file = std::fs::metadata(&self.file).map_or(0, |file| file.len());
        let applied = header.revision.unsigned_abs();
        Ok(Response::new(PbStatusResponse {
            version: API_VERSION.to_owned(),
            db_size: i64::try_from(file).unwrap_or(i64::MAX),
            db_size_in_use: i64::try_from(in_use).unwrap_or(i64::MAX),
            db_size_quota: i64::try_from(QUOTA).unwrap_or(i64::MAX),
            leader: header.member_id,
            raft_index: applied,
            raft_applied_index: applied,
            raft_term: header.raft_term,
            header: Some(header),
            ..Default::default()
        }))
    }

    async fn defragment(
        &self,
        _: Request<PbDefragmentRequest>,
    ) -> Result<Response<PbDefragmentResponse>, Status> {
        Err(Status::unimplemented("the embedded store reuses the free pages of its file by itself"))
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Result<Response<PbHashResponse>, Status> {
        Err(Status::unimplemented("the embedded store has no other members to compare hashes with"))
    }

    async fn hash_kv(&self, _: Request<PbHashKvRequest>) -> Result<Response<PbHashKvResponse>, Status> {
        Err(Status::unimplemented("the embedded store has no other members to compare hashes with"))
    }

    async fn snapshot(
        &self,
        _: Request<PbSnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented(
            "the embedded store gives no etcd snapshot: read all keys, or copy its file while it is stopped",
        ))
    }

    async fn move_leader(
        &self,
        _: Request<PbMoveLeaderRequest>,
    ) -> Result<Response<PbMoveLeaderResponse>, Status> {
        Err(Status::failed_precondition("etcdserver: bad leader transferee"))
    }

    async fn downgrade(
        &self,
        _: Request<PbDowngradeRequest>,
    ) -> Result<Response<PbDowngradeResponse>, Status> {
        Err(Status::unimplemented("the embedded store has one version only"))
    }
}
