//! The KV service: checks a request's shape, has the engine answer it.

use std::pin::Pin;

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKvService, PbPutRequest,
    PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse, PbTxnRequest, PbTxnResponse,
};
use futures::Stream;
use tonic::{Request, Response, Status};

use super::check;
use super::engine::Engine;

pub(crate) struct KvService(pub(crate) Engine);

#[tonic::async_trait]
impl PbKvService for KvService {
    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<PbRangeStreamResponse, Status>> + Send>>;

    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        let request = request.into_inner();
        check::key(&request.key)?;
        Ok(Response::new(self.0.ask(move |state, _| state.range(&request)).await?))
    }

    /// Newer than the API level that this server states; clients fall back to `range`.
    async fn range_stream(
        &self,
        _: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("unknown method RangeStream for service etcdserverpb.KV"))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        let request = request.into_inner();
        check::put(&request)?;
        Ok(Response::new(self.0.ask(move |state, _| state.put(request)).await?))
    }

    async fn delete_range(
        &self,
        request: Request<PbDeleteRequest>,
    ) -> Result<Response<PbDeleteResponse>, Status> {
        let request = request.into_inner();
        check::delete(&request)?;
        Ok(Response::new(self.0.ask(move |state, _| state.delete_range(&request)).await?))
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        let request = request.into_inner();
        check::txn(&request)?;
        Ok(Response::new(self.0.ask(move |state, _| state.txn(request)).await?))
    }

    async fn compact(
        &self,
        request: Request<PbCompactionRequest>,
    ) -> Result<Response<PbCompactionResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.0.ask(move |state, _| state.compact(&request)).await?))
    }
}
