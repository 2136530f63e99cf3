//! The Lease service.

use std::pin::Pin;

use etcd_client::proto::{
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse,
    PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseService,
    PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse,
};
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::engine::Engine;

pub(crate) struct LeaseService(pub(crate) Engine);

#[tonic::async_trait]
impl PbLeaseService for LeaseService {
    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<PbLeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        let request = request.into_inner();
        let fresh = self.0.fresh_lease();
        Ok(Response::new(self.0.ask(move |state, now| state.grant(&request, fresh, now)).await?))
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        let id = request.into_inner().id;
        Ok(Response::new(self.0.ask(move |state, _| state.revoke(id)).await?))
    }

    /// Answers each request in turn until the client is done or the server stops.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (engine, stop) = (self.0.clone(), self.0.clone());
        let answers = request.into_inner().then(move |request| {
            let engine = engine.clone();
            async move {
                let id = request?.id;
                Ok(engine.ask_urgently(move |state, now| Ok(state.keep_alive(id, now))).await?)
            }
        });
        let stopping = async move { stop.stopping().await };
        Ok(Response::new(Box::pin(answers.take_until(stopping))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.0.ask(move |state, now| state.time_to_live(&request, now)).await?))
    }

    async fn lease_leases(
        &self,
        _: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        Ok(Response::new(self.0.ask(|state, _| state.leases()).await?))
    }
}
