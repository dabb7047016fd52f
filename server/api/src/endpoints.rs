//! The HTTP endpoints: health in etcd's three forms, the version, the metrics.

use std::collections::HashSet;

use axum::{
    Router,
    extract::{RawQuery, Request, State},
    handler::Handler,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{MethodRouter, any},
};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use proto::etcdserverpb::{AlarmType, RangeRequest};
use serde_json::json;

use crate::{Backend, caller::Caller};

/// What Prometheus' text format calls itself.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const NO_SNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

/// The endpoints of a listener for metrics: health and metrics, nothing else.
pub(crate) fn metrics<B: Backend>(backend: B) -> Router {
    let mut router = Router::new()
        .route("/health", get(health::<B>))
        .route("/metrics", any(show_metrics::<B>));
    for (kind, checks) in [("livez", LIVEZ), ("readyz", READYZ)] {
        let all = move |State(backend): State<B>, query: RawQuery| async move {
            probe(&backend, kind, checks, Query::of(query)).await
        };
        router = router.route(&format!("/{kind}"), get(all));
        for check in checks {
            let one = move |State(backend): State<B>, query: RawQuery| async move {
                // Nothing is left out of what is asked for by its name.
                let query = Query::of(query).without("exclude");
                probe(&backend, kind, &[*check], query).await
            };
            router = router.route(&format!("/{kind}/{}", check.name()), get(one));
        }
    }
    router.with_state(backend)
}

/// The endpoints of a client port.
pub(crate) fn client<B: Backend>(backend: B) -> Router {
    let version = Router::new()
        .route("/version", get(version::<B>))
        .with_state(backend.clone());
    metrics(backend).merge(version)
}

/// Something that is only read: GET, and as in etcd nothing else, not even HEAD.
pub fn get<H, T, B>(handler: H) -> MethodRouter<B>
where
    H: Handler<T, B>,
    T: 'static,
    B: Clone + Send + Sync + 'static,
{
    any(handler).layer(from_fn(only_get))
}

async fn only_get(request: Request, next: Next) -> Response {
    if request.method() == Method::GET {
        return next.run(request).await;
    }
    let refused = "Method Not Allowed".to_owned();
    let mut response = failed(StatusCode::METHOD_NOT_ALLOWED, refused);
    let allowed = HeaderValue::from_static("GET");
    response.headers_mut().insert(header::ALLOW, allowed);
    response
}

/// An error as Go's net/http answers it: with a line's end.
pub fn failed(status: StatusCode, text: String) -> Response {
    let headers = [(header::CONTENT_TYPE, TEXT), (NO_SNIFF, "nosniff")];
    (status, headers, text + "\n").into_response()
}

/// Nothing has this path.
pub(crate) fn not_found() -> Response {
    failed(StatusCode::NOT_FOUND, "404 page not found".to_owned())
}

async fn show_metrics<B: Backend>(State(backend): State<B>) -> Response {
    let metrics = backend.metrics();
    ([(header::CONTENT_TYPE, METRICS_TYPE)], metrics).into_response()
}

async fn version<B: Backend>(State(backend): State<B>) -> Response {
    let json = versions_json(&backend);
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}

/// What `/version` answers, on client and peer ports alike.
pub fn versions_json<B: Backend>(backend: &B) -> String {
    let versions = backend.versions();
    let cluster = versions.cluster.as_deref().unwrap_or("not_decided");
    // In the order of etcd's fields, which some scripts cut out as text.
    let fields = [
        ("etcdserver", versions.server.as_str()),
        ("etcdcluster", cluster),
        ("storage", versions.storage.as_deref().unwrap_or("unknown")),
    ];
    let fields = fields.map(|(name, value)| format!("{}:{}", json!(name), json!(value)));
    format!("{{{}}}", fields.join(","))
}

/// A query in parts; a key may come more than once.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(raw: RawQuery) -> Self {
        let raw = raw.0.unwrap_or_default();
        Self(
            url::form_urlencoded::parse(raw.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    fn all(&self, key: &str) -> HashSet<&str> {
        let of = self.0.iter().filter(|(name, _)| name == key);
        of.map(|(_, value)| value.as_str()).collect()
    }

    fn without(mut self, key: &str) -> Self {
        self.0.retain(|(name, _)| name != key);
        self
    }

    fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(name, _)| name == key)
    }
}

async fn health<B: Backend>(State(backend): State<B>, query: RawQuery) -> Response {
    let query = Query::of(query);
    let serializable = query.0.iter().find(|(name, _)| name == "serializable");
    let serializable = serializable.is_some_and(|(_, value)| value == "true");
    let reason = unhealthy(&backend, &query.all("exclude"), serializable).await;
    backend.meter().health(reason.is_none());
    let (well, reason) = (reason.is_none(), json!(reason.unwrap_or_default()));
    // The order of etcd's fields, which some probes compare as text.
    let body = format!("{{\"health\":\"{well}\",\"reason\":{reason}}}");
    match well {
        true => ([(header::CONTENT_TYPE, TEXT)], body).into_response(),
        false => failed(StatusCode::SERVICE_UNAVAILABLE, body),
    }
}

async fn unhealthy<B: Backend>(
    backend: &B,
    excluded: &HashSet<&str>,
    serializable: bool,
) -> Option<String> {
    for alarm in backend.alarms() {
        let name = AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |of| of.as_str_name());
        if !excluded.contains(name) {
            return Some(format!("ALARM {name}"));
        }
    }
    if !serializable && backend.standing().leader == 0 {
        return Some("RAFT NO LEADER".to_owned());
    }
    let read = read(backend, serializable).await;
    read.err().map(|error| format!("RANGE ERROR:{error}"))
}

/// The cheapest read there is.
async fn read<B: Backend>(backend: &B, serializable: bool) -> Result<(), state::Error> {
    let request = RangeRequest {
        keys_only: true,
        limit: 1,
        serializable,
        ..RangeRequest::default()
    };
    backend.range(&Caller::server(), request).await.map(|_| ())
}

/// What a probe looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

const LIVEZ: &[Check] = &[Check::SerializableRead];
const READYZ: &[Check] = &[
    Check::DataCorruption,
    Check::SerializableRead,
    Check::LinearizableRead,
    Check::NonLearner,
];

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
        }
    }

    async fn run<B: Backend>(self, backend: &B) -> Result<(), String> {
        match self {
            Self::DataCorruption => {
                let corrupt = AlarmType::Corrupt as i32;
                match backend.alarms().iter().any(|alarm| alarm.alarm == corrupt) {
                    true => Err("alarm activated: CORRUPT".to_owned()),
                    false => Ok(()),
                }
            }
            Self::SerializableRead => read(backend, true).await.map_err(|e| e.to_string()),
            Self::LinearizableRead => read(backend, false).await.map_err(|e| e.to_string()),
            Self::NonLearner => match backend.standing().is_learner {
                true => Err("not supported for learner".to_owned()),
                false => Ok(()),
            },
        }
    }
}

async fn probe<B: Backend>(
    backend: &B,
    kind: &'static str,
    checks: &[Check],
    query: Query,
) -> Response {
    let excluded = query.all("exclude");
    let mut lines = String::new();
    let mut ill = false;
    for check in checks {
        let name = check.name();
        if excluded.contains(name) {
            continue;
        }
        let checked = check.run(backend).await;
        backend.meter().check(kind, name, checked.is_ok());
        match checked {
            Ok(()) => lines += &format!("[+]{name} ok\n"),
            Err(error) => {
                ill = true;
                lines += &format!("[-]{name} failed: {error}\n");
            }
        }
    }
    if ill {
        return failed(StatusCode::SERVICE_UNAVAILABLE, lines);
    }
    let headers = [(header::CONTENT_TYPE, TEXT), (NO_SNIFF, "nosniff")];
    if !query.has("verbose") {
        lines.clear();
    }
    (StatusCode::OK, headers, lines + "ok\n").into_response()
}
