//! The Auth service, as of an etcd whose authentication is off and that has no users.
//!
//! Written by hand on tonic's service interface, because the generated trait names a message that the client crate
//! does not export. All answers that are not refusals consist of the header alone, so one message stands for them.

use std::convert::Infallible;

use etcd_client::proto::{PbAuthDisableResponse, PbAuthEnableRequest};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Context, Poll, Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::engine::Engine;
use super::limits::SMALL_MESSAGE;

#[derive(Clone)]
pub(crate) struct AuthService(pub(crate) Engine);

impl NamedService for AuthService {
    const NAME: &'static str = "etcdserverpb.Auth";
}

impl Service<http::Request<Body>> for AuthService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        let answer = Answer { engine: self.0.clone(), refusal: refusal(method) };
        Box::pin(async move {
            let codec = ProstCodec::<PbAuthDisableResponse, PbAuthEnableRequest>::default();
            let mut grpc = Grpc::new(codec).apply_max_message_size_config(Some(SMALL_MESSAGE), None);
            Ok(grpc.unary(answer, request).await)
        })
    }
}

/// What etcd says to each method when it has no users and no roles.
fn refusal(method: &str) -> Option<Status> {
    let text = match method {
        "AuthDisable" | "AuthStatus" | "UserList" | "RoleList" => return None,
        "Authenticate" => "etcdserver: authentication is not enabled",
        "AuthEnable" => "etcdserver: root user does not exist",
        "UserGet" | "UserDelete" | "UserChangePassword" | "UserGrantRole" | "UserRevokeRole" => {
            "etcdserver: user name not found"
        }
        "RoleGet" | "RoleDelete" | "RoleGrantPermission" | "RoleRevokePermission" => {
            "etcdserver: role name not found"
        }
        _ => return Some(Status::unimplemented("the embedded store keeps no users and roles")),
    };
    Some(Status::failed_precondition(text))
}

struct Answer {
    engine: Engine,
    refusal: Option<Status>,
}

/// The request's fields do not matter, so a message without fields stands for it.
impl UnaryService<PbAuthEnableRequest> for Answer {
    type Response = PbAuthDisableResponse;
    type Future = BoxFuture<Response<Self::Response>, Status>;

    fn call(&mut self, _: Request<PbAuthEnableRequest>) -> Self::Future {
        let (engine, refusal) = (self.engine.clone(), self.refusal.take());
        Box::pin(async move {
            if let Some(refusal) = refusal {
                return Err(refusal);
            }
            let header = engine.ask(|state, _| Ok(state.header())).await?;
            Ok(Response::new(PbAuthDisableResponse { header: Some(header) }))
        })
    }
}
