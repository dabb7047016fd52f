//! The client edge: gRPC services and HTTP endpoints.
//!
//! Owns: what clients see of the server: the static checks of requests, etcd's errors as gRPC
//! statuses, response headers, streams, health and metrics over HTTP; and the [`Backend`] that it
//! asks for everything else.
//!
//! Must never know: raft, the engine, how the store keeps its rows, or sockets.
//!
//! Not here yet: the JSON gateway.
//! Hash is answered UNIMPLEMENTED.
//!
//! Start reading in `backend.rs`, then [`router`] and `kv.rs`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

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
use http::{HeaderValue, StatusCode, header};
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

pub use backend::Backend;
pub use caller::{Caller, CommonName};
pub use endpoints::versions_json;
pub use meter::Meter;
pub use slow::{Remote, Slow};
pub use snapshot::SnapshotFile;

/// What a request may be longer than `max_request_bytes`: its frame and its metadata, as in etcd.
const REQUEST_OVERHEAD: usize = 512 << 10;
/// The longest response, as in etcd.
const MAX_RESPONSE_BYTES: usize = i32::MAX as usize;

/// All services and endpoints of a client port.
pub fn router<B: Backend>(backend: B) -> Router {
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
    let services = services.layer(count);
    services.merge(endpoints::client(backend)).fallback(unknown)
}

/// The endpoints of a port for metrics and probes.
pub fn metrics_router<B: Backend>(backend: B) -> Router {
    endpoints::metrics(backend).fallback(unknown)
}

/// What is asked for is not there: in gRPC's way for gRPC calls.
async fn unknown(request: Request) -> axum::response::Response {
    let grpc = HeaderValue::from_static("application/grpc");
    let kind = request.headers().get(header::CONTENT_TYPE);
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(grpc.as_bytes())) {
        let service = request.uri().path().trim_start_matches('/');
        let service = service.split('/').next().unwrap_or_default();
        return Status::unimplemented(format!("unknown service {service}")).into_http();
    }
    (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
}
