//! What other members ask of this one.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use prost::Message as _;
use proto::{
    etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse, ResponseHeader},
    leasepb::{LeaseInternalRequest, LeaseInternalResponse},
    raftpb::Message,
};
use serde_json::json;
use state::{Error, ids};

use crate::{
    Transport,
    client::CLUSTER_ID,
    codec::Stream,
    hashkv::{self, RequestJson},
    snapshot,
};

/// The longest message that may be posted: anything longer comes by a stream.
const MAX_POST_BYTES: usize = 64 << 20;
const JSON: &str = "application/json";
const PROTOBUF: &str = "application/protobuf";

type Shared = State<Arc<Transport>>;

/// Everything that a peer port serves.
pub(crate) fn router(transport: Arc<Transport>) -> Router {
    Router::new()
        .route("/raft", post(raft))
        .route("/raft/stream/message/{from}", get(message_stream))
        .route("/raft/stream/msgapp/{from}", get(append_stream))
        .route("/raft/snapshot", post(take_snapshot))
        .route("/raft/probing", get(probing))
        .route("/members", get(members))
        .route("/members/promote/{id}", post(promote))
        .route(hashkv::PATH, get(hash_kv))
        .route("/leases", post(renew))
        .route("/leases/internal", post(time_to_live))
        .route("/version", get(version))
        .route("/downgrade/enabled", get(downgrade))
        .layer(DefaultBodyLimit::max(MAX_POST_BYTES))
        .with_state(transport)
}

fn text(headers: &HeaderMap, name: &str) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

impl Transport {
    /// Whether a request comes from a member of this cluster.
    fn refusal(&self, headers: &HeaderMap) -> Option<Response> {
        let own = ids::to_text(self.config.cluster_id);
        let refuse = |status: StatusCode, text: &str| {
            let headers = [(CLUSTER_ID, own.clone())];
            Some((status, headers, format!("{text}\n")).into_response())
        };
        if text(headers, CLUSTER_ID) != own {
            return refuse(StatusCode::PRECONDITION_FAILED, hashkv::CLUSTER_MISMATCH);
        }
        let from = u64::from_str_radix(&text(headers, "x-server-from"), 16);
        if from.is_ok_and(|from| self.handler.is_removed(from)) {
            return refuse(
                StatusCode::GONE,
                "the member has been removed from the cluster",
            );
        }
        let to = text(headers, "x-raft-to");
        if !to.is_empty() && to != ids::to_text(self.config.member_id) {
            return refuse(StatusCode::PRECONDITION_FAILED, "to field mismatch");
        }
        None
    }

    fn stream(&self, headers: &HeaderMap, from: &str, stream: Stream) -> Response {
        if let Some(refusal) = self.refusal(headers) {
            return refusal;
        }
        let peer = u64::from_str_radix(from, 16).ok();
        let Some(peer) = peer.and_then(|id| self.peer(id)) else {
            return (StatusCode::NOT_FOUND, "error sender not found\n").into_response();
        };
        let frames = peer.outbound(stream).attach();
        let headers = [
            (CLUSTER_ID, ids::to_text(self.config.cluster_id)),
            ("x-server-version", self.config.version.to_string()),
            ("x-min-cluster-version", self.config.min_version.to_string()),
        ];
        (StatusCode::OK, headers, Body::from_stream(frames)).into_response()
    }
}

async fn message_stream(
    State(transport): Shared,
    Path(from): Path<String>,
    headers: HeaderMap,
) -> Response {
    transport.stream(&headers, &from, Stream::Message)
}

async fn append_stream(
    State(transport): Shared,
    Path(from): Path<String>,
    headers: HeaderMap,
) -> Response {
    transport.stream(&headers, &from, Stream::Append)
}

async fn raft(State(transport): Shared, headers: HeaderMap, body: Bytes) -> Response {
    if let Some(refusal) = transport.refusal(&headers) {
        return refusal;
    }
    match Message::decode(body) {
        Ok(message) => {
            transport.handler.step(message).await;
            StatusCode::NO_CONTENT.into_response()
        }
        Err(_) => {
            let text = "error unmarshalling raft message\n";
            (StatusCode::BAD_REQUEST, text).into_response()
        }
    }
}

async fn take_snapshot(State(transport): Shared, headers: HeaderMap, body: Body) -> Response {
    if let Some(refusal) = transport.refusal(&headers) {
        return refusal;
    }
    snapshot::receive(&transport, body).await.into_response()
}

/// The form that etcd's prober reads. It warns of clocks that differ, so the time is there.
async fn probing(State(transport): Shared) -> Response {
    let now = transport.handler.wall_clock();
    let body = json!({ "OK": true, "Now": now }).to_string();
    ([(header::CONTENT_TYPE, JSON)], body).into_response()
}

async fn members(State(transport): Shared) -> Response {
    let members = transport.handler.members();
    let headers = [
        (CLUSTER_ID, ids::to_text(transport.config.cluster_id)),
        ("content-type", JSON.to_owned()),
    ];
    // Members always have a JSON form.
    let body = serde_json::to_string(&members).unwrap_or_default() + "\n";
    (headers, body).into_response()
}

async fn promote(State(transport): Shared, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let token = headers.get(header::AUTHORIZATION);
    let token = token.map(|token| String::from_utf8_lossy(token.as_bytes()).into_owned());
    let Ok(id) = id.parse() else {
        return (StatusCode::BAD_REQUEST, "invalid member ID\n").into_response();
    };
    match transport.handler.promote(id, token).await {
        Ok(members) => {
            let body = serde_json::to_string(&members).unwrap_or_default();
            ([(header::CONTENT_TYPE, JSON)], body).into_response()
        }
        Err(error) => {
            let status = match error {
                Error::MemberNotFound => StatusCode::NOT_FOUND,
                Error::MemberNotLearner | Error::LearnerNotReady => StatusCode::PRECONDITION_FAILED,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            (status, format!("{error}\n")).into_response()
        }
    }
}

fn lease_refusal(error: Error) -> Response {
    match error {
        Error::LeaseNotFound => (StatusCode::NOT_FOUND, "requested lease not found\n"),
        Error::Timeout => (StatusCode::REQUEST_TIMEOUT, "request timed out\n"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "not a primary lessor\n"),
    }
    .into_response()
}

async fn renew(State(transport): Shared, body: Bytes) -> Response {
    let Ok(request) = LeaseKeepAliveRequest::decode(body) else {
        return (StatusCode::BAD_REQUEST, "error unmarshalling request\n").into_response();
    };
    match transport.handler.renew_lease(request.id).await {
        Ok(ttl) => {
            let response = LeaseKeepAliveResponse {
                header: Some(ResponseHeader::default()),
                id: request.id,
                ttl,
            };
            let body = response.encode_to_vec();
            ([(header::CONTENT_TYPE, PROTOBUF)], body).into_response()
        }
        Err(error) => lease_refusal(error),
    }
}

async fn time_to_live(State(transport): Shared, body: Bytes) -> Response {
    let request = LeaseInternalRequest::decode(body).ok();
    let Some(request) = request.and_then(|request| request.lease_time_to_live_request) else {
        return (StatusCode::BAD_REQUEST, "error unmarshalling request\n").into_response();
    };
    match transport.handler.lease_time_to_live(request).await {
        Ok(mut response) => {
            // A member that is etcd reads the header without looking whether there is one.
            response.header.get_or_insert_default();
            let response = LeaseInternalResponse {
                lease_time_to_live_response: Some(response),
            };
            let body = response.encode_to_vec();
            ([(header::CONTENT_TYPE, PROTOBUF)], body).into_response()
        }
        Err(error) => lease_refusal(error),
    }
}

async fn hash_kv(State(transport): Shared, headers: HeaderMap, body: Bytes) -> Response {
    let own = ids::to_text(transport.config.cluster_id);
    if hashkv::is_foreign(&headers, &own) {
        let text = format!("{}\n", hashkv::CLUSTER_MISMATCH);
        return (StatusCode::PRECONDITION_FAILED, text).into_response();
    }
    let Ok(request) = serde_json::from_slice::<RequestJson>(&body) else {
        return (StatusCode::BAD_REQUEST, "error unmarshalling request\n").into_response();
    };
    match transport.handler.hash_kv(request.revision).await {
        Ok(hash) => {
            let headers = [(CLUSTER_ID, own), ("content-type", JSON.to_owned())];
            (headers, hash.to_json()).into_response()
        }
        Err(error) => {
            let text = format!("{}\n", hashkv::text(error));
            (StatusCode::BAD_REQUEST, text).into_response()
        }
    }
}

async fn version(State(transport): Shared) -> Response {
    let body = transport.handler.versions();
    ([(header::CONTENT_TYPE, JSON)], body).into_response()
}

async fn downgrade(State(transport): Shared) -> Response {
    transport.handler.downgrading().to_string().into_response()
}
