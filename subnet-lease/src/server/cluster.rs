//! The Cluster service: one member, and no way to get another.

use std::net::SocketAddr;

use etcd_client::proto::{
    PbClusterService, PbMember, PbMemberAddRequest, PbMemberAddResponse, PbMemberListRequest,
    PbMemberListResponse, PbMemberPromoteRequest, PbMemberPromoteResponse, PbMemberRemoveRequest,
    PbMemberRemoveResponse, PbMemberUpdateRequest, PbMemberUpdateResponse,
};
use tonic::{Request, Response, Status};

use super::connection::Peer;
use super::engine::Engine;

/// Name of the only member.
const MEMBER: &str = "embedded";

pub(crate) struct ClusterService {
    pub(crate) engine: Engine,
    /// How its addresses begin.
    pub(crate) scheme: &'static str,
}

#[tonic::async_trait]
impl PbClusterService for ClusterService {
    /// The member's address is the one that this client reached: clients replace their list by it.
    async fn member_list(
        &self,
        request: Request<PbMemberListRequest>,
    ) -> Result<Response<PbMemberListResponse>, Status> {
        let reached = request.extensions().get::<Peer>().and_then(|peer| peer.reached);
        let header = self.engine.ask(|state, _| Ok(state.header())).await?;
        let url = |addr: &SocketAddr| format!("{}://{addr}", self.scheme);
        let member = PbMember {
            id: header.member_id,
            name: MEMBER.to_owned(),
            client_ur_ls: reached.iter().map(url).collect(),
            ..Default::default()
        };
        Ok(Response::new(PbMemberListResponse { header: Some(header), members: vec![member] }))
    }

    async fn member_add(
        &self,
        _: Request<PbMemberAddRequest>,
    ) -> Result<Response<PbMemberAddResponse>, Status> {
        Err(alone())
    }

    async fn member_remove(
        &self,
        _: Request<PbMemberRemoveRequest>,
    ) -> Result<Response<PbMemberRemoveResponse>, Status> {
        Err(alone())
    }

    async fn member_update(
        &self,
        _: Request<PbMemberUpdateRequest>,
    ) -> Result<Response<PbMemberUpdateResponse>, Status> {
        Err(alone())
    }

    async fn member_promote(
        &self,
        _: Request<PbMemberPromoteRequest>,
    ) -> Result<Response<PbMemberPromoteResponse>, Status> {
        Err(alone())
    }
}

fn alone() -> Status {
    Status::unimplemented("the embedded store is one process without quorum; a cluster needs etcd")
}
