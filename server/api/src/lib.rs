//! The client edge: gRPC services and HTTP endpoints.
//!
//! Owns: what clients see of the server: the static checks of requests, etcd's errors as gRPC
//! statuses, response headers, streams, health and metrics over HTTP; and the [`Backend`] that it
//! asks for everything else.
//!
//! Must never know: raft, the engine, how the store keeps its rows, or sockets.
//!
//! Not here yet: Hash, which is answered UNIMPLEMENTED.
//!
//! Start reading in `backend.rs`, then [`router`] and `kv.rs`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod access;
mod auth;
pub mod backend;
mod caller;
mod checks;
mod cluster;
mod concurrency;
mod election;
mod endpoints;
mod gate;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod meter;
mod range_stream;
mod sizes;
mod slow;
mod snapshot;
mod status;
mod stream;
mod watch;

use axum::{Router, extract::Request, response::IntoResponse};
use gateway::Gateway;
use http::{HeaderValue, header};
use proto::{
    etcdserverpb::{
        auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer,
        lease_server::LeaseServer, maintenance_server::MaintenanceServer,
        watch_server::WatchServer,
    },
    v3electionpb::election_server::ElectionServer,
    v3lockpb::lock_server::LockServer,
};
use tonic::{Status, service::Routes};

pub use access::{Access, Secured};
pub use backend::Backend;
pub use caller::{Caller, CommonName};
pub use endpoints::{failed, get, versions_json};
pub use meter::Meter;
pub use slow::{Remote, Slow};
pub use snapshot::SnapshotFile;

/// What a request may be longer than `max_request_bytes`: its frame and its metadata, as in etcd.
const REQUEST_OVERHEAD: usize = 512 << 10;
/// The longest response, as in etcd.
const MAX_RESPONSE_BYTES: usize = i32::MAX as usize;

/// What a client port serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// gRPC and HTTP.
    All,
    /// gRPC, where HTTP has ports of its own.
    Grpc,
    /// HTTP alone.
    Http,
}

/// How the client edge is set up.
#[derive(Clone, Debug)]
pub struct Edge {
    /// Who may ask over HTTP.
    pub access: Access,
    /// Whether there is a JSON gateway.
    pub gateway: bool,
    /// More endpoints, for HTTP ports.
    pub more: Router,
}

impl Edge {
    /// The router of a client port.
    ///
    /// # Errors
    /// When there can be no gateway, which is a mistake of ours.
    pub fn router<B: Backend>(&self, backend: B, serves: Serves) -> Result<Router, gateway::Error> {
        let services = services(backend.clone());
        if serves == Serves::Grpc {
            return Ok(services.fallback(unknown));
        }
        let mut http = endpoints::client(backend.clone()).merge(self.more.clone());
        if self.gateway {
            let longest = backend.limits().max_request_bytes + REQUEST_OVERHEAD;
            let called = services.clone().fallback(unknown);
            http = http.merge(Gateway::new(called, longest)?.router());
        }
        let http = self
            .access
            .guard(http.fallback(unknown), backend, self.gateway);
        Ok(match serves {
            Serves::Http => http,
            _ => services.merge(http),
        })
    }
}

/// All services, behind what counts their calls.
fn services<B: Backend>(backend: B) -> Router {
    let decoding = backend.limits().max_request_bytes + REQUEST_OVERHEAD;
    macro_rules! limited {
        ($server:ident, $service:expr) => {
            $server::new($service)
                .max_decoding_message_size(decoding)
                .max_encoding_message_size(MAX_RESPONSE_BYTES)
        };
    }
    let (_, health) = tonic_health::server::health_reporter();
    let mut routes = Routes::builder();
    routes
        .add_service(limited!(KvServer, kv::KvService(backend.clone())))
        .add_service(limited!(WatchServer, watch::WatchService(backend.clone())))
        .add_service(limited!(LeaseServer, lease::LeaseService(backend.clone())))
        .add_service(limited!(AuthServer, auth::AuthService(backend.clone())))
        .add_service(limited!(
            ClusterServer,
            cluster::ClusterService(backend.clone())
        ))
        .add_service(limited!(
            MaintenanceServer,
            maintenance::MaintenanceService(backend.clone())
        ))
        .add_service(limited!(LockServer, lock::LockService(backend.clone())))
        .add_service(limited!(
            ElectionServer,
            election::ElectionService(backend.clone())
        ))
        .add_service(health);
    let services = routes.routes().into_axum_router().reset_fallback();
    let counting = (backend.meter(), backend.limits().slow);
    let count = axum::middleware::from_fn_with_state(counting, meter::count);
    services.layer(count)
}

/// The endpoints of a port for metrics and probes.
pub fn metrics_router<B: Backend>(backend: B) -> Router {
    endpoints::metrics(backend).fallback(unknown)
}

/// What is asked for is not there: in gRPC's way for gRPC calls.
async fn unknown(request: Request) -> axum::response::Response {
    if is_grpc(&request) {
        let service = request.uri().path().trim_start_matches('/');
        let service = service.split('/').next().unwrap_or_default();
        return Status::unimplemented(format!("unknown service {service}")).into_http();
    }
    endpoints::not_found().into_response()
}

fn is_grpc<T>(request: &http::Request<T>) -> bool {
    let grpc = HeaderValue::from_static("application/grpc");
    let kind = request.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(grpc.as_bytes()))
}
