//! What the operator shows of itself: metrics, liveness, readiness.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{self, Poll},
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::get};
use crds::{
    EtcdClusterStatus,
    status::{Phase, condition},
};
use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tower::{Layer, Service};

/// All phases, so that those without a cluster are shown as zero.
const PHASES: [Phase; 8] = [
    Phase::Creating,
    Phase::Growing,
    Phase::Running,
    Phase::Degraded,
    Phase::Unavailable,
    Phase::Stalled,
    Phase::Paused,
    Phase::Deleting,
];

/// The metrics. Clones share them.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

struct Inner {
    registry: Registry,
    leader: Gauge,
    reconciles: Family<ResultLabel, Counter>,
    durations: Histogram,
    steps: Family<StepLabel, Counter>,
    requests: Family<RequestLabel, Counter>,
    phases: Family<PhaseLabel, Gauge>,
    members: Family<ClusterLabel, Gauge>,
    ready_members: Family<ClusterLabel, Gauge>,
    ready: Family<ClusterLabel, Gauge>,
    known: Mutex<HashMap<(String, String), Phase>>,
    serving: AtomicBool,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabel {
    result: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StepLabel {
    step: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabel {
    method: String,
    code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabel {
    phase: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ClusterLabel {
    namespace: String,
    name: String,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

impl Telemetry {
    /// Metrics at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("cairn_operator");
        let leader = Gauge::default();
        registry.register(
            "leader",
            "Whether this operator holds the lease",
            leader.clone(),
        );
        let reconciles = Family::default();
        registry.register(
            "reconciles",
            "Reconciliations by result",
            reconciles.clone(),
        );
        let durations = Histogram::new(exponential_buckets(0.005, 2.0, 14));
        registry.register(
            "reconcile_duration_seconds",
            "Time of a reconciliation",
            durations.clone(),
        );
        let steps = Family::default();
        registry.register("steps", "Steps that were begun", steps.clone());
        let requests = Family::default();
        registry.register(
            "api_requests",
            "Requests to the API server",
            requests.clone(),
        );
        let phases = Family::default();
        registry.register("clusters", "Clusters by phase", phases.clone());
        let members = Family::default();
        registry.register(
            "cluster_members",
            "Voting members of a cluster",
            members.clone(),
        );
        let ready_members = Family::default();
        registry.register(
            "cluster_ready_members",
            "Those of them that are ready",
            ready_members.clone(),
        );
        let ready = Family::default();
        registry.register("cluster_ready", "Whether a cluster is Ready", ready.clone());
        let inner = Inner {
            registry,
            leader,
            reconciles,
            durations,
            steps,
            requests,
            phases,
            members,
            ready_members,
            ready,
            known: Mutex::default(),
            serving: AtomicBool::new(false),
        };
        let telemetry = Self(Arc::new(inner));
        telemetry.count_phases(&HashMap::new());
        telemetry
    }

    /// Counts a reconciliation.
    pub fn reconciled(&self, result: &str, took: Duration) {
        let label = ResultLabel {
            result: result.to_owned(),
        };
        self.0.reconciles.get_or_create(&label).inc();
        self.0.durations.observe(took.as_secs_f64());
    }

    /// Counts a step.
    pub fn step(&self, step: &str) {
        let label = StepLabel {
            step: step.to_owned(),
        };
        self.0.steps.get_or_create(&label).inc();
    }

    /// Notes how a cluster is.
    pub fn cluster(&self, namespace: &str, name: &str, status: &EtcdClusterStatus) {
        let label = ClusterLabel {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        self.0
            .members
            .get_or_create(&label)
            .set(status.replicas.into());
        self.0
            .ready_members
            .get_or_create(&label)
            .set(status.ready_replicas.into());
        let ready = status
            .conditions
            .iter()
            .find(|told| told.type_ == condition::READY);
        let ready = ready.is_some_and(|ready| ready.status == "True");
        self.0.ready.get_or_create(&label).set(ready.into());
        if let Some(phase) = status.phase {
            let mut known = self.0.known.lock();
            known.insert((label.namespace, label.name), phase);
            self.count_phases(&known);
        }
    }

    /// Drops what is shown of a cluster that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let label = ClusterLabel {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        self.0.members.remove(&label);
        self.0.ready_members.remove(&label);
        self.0.ready.remove(&label);
        let mut known = self.0.known.lock();
        known.remove(&(label.namespace, label.name));
        self.count_phases(&known);
    }

    fn count_phases(&self, known: &HashMap<(String, String), Phase>) {
        for phase in PHASES {
            let count = known.values().filter(|known| **known == phase).count();
            let label = PhaseLabel {
                phase: format!("{phase:?}"),
            };
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.0.phases.get_or_create(&label).set(count);
        }
    }

    /// From now on the lease is ours: until the process ends.
    pub fn lead(&self) {
        self.0.leader.set(1);
    }

    /// From now on the operator says that it is ready.
    pub fn serve(&self) {
        self.0.serving.store(true, Ordering::Relaxed);
    }

    /// The text of all metrics.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.0.registry);
        text
    }

    /// `/metrics`, `/livez` and `/readyz`.
    pub fn router(&self) -> Router {
        let (metrics, readiness) = (self.clone(), self.clone());
        let content = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        Router::new()
            .route(
                "/metrics",
                get(move || async move { ([("content-type", content)], metrics.text()) }),
            )
            .route("/livez", get(|| async { "ok\n" }))
            .route(
                "/readyz",
                get(move || async move {
                    match readiness.0.serving.load(Ordering::Relaxed) {
                        true => (StatusCode::OK, "ok\n"),
                        false => (
                            StatusCode::SERVICE_UNAVAILABLE,
                            "the operator is starting\n",
                        ),
                    }
                }),
            )
    }
}

/// Counts the requests of a client.
#[derive(Clone)]
pub struct Counted(pub Telemetry);

/// A client whose requests are counted.
#[derive(Clone)]
pub struct Counting<S> {
    inner: S,
    telemetry: Telemetry,
}

impl<S> Layer<S> for Counted {
    type Service = Counting<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Counting {
            inner,
            telemetry: self.0.clone(),
        }
    }
}

impl<S, A, B> Service<Request<A>> for Counting<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let method = request.method().to_string();
        let requests = self.telemetry.0.requests.clone();
        let answer = self.inner.call(request);
        async move {
            let answer = answer.await;
            let code = match &answer {
                Ok(response) => response.status().as_str().to_owned(),
                Err(_) => "error".to_owned(),
            };
            requests.get_or_create(&RequestLabel { method, code }).inc();
            answer
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_is_gone_leaves_no_series() {
        let telemetry = Telemetry::new();
        let status = EtcdClusterStatus {
            phase: Some(Phase::Running),
            replicas: 3,
            ..EtcdClusterStatus::default()
        };
        telemetry.cluster("prod", "db", &status);
        let series = r#"cairn_operator_cluster_members{namespace="prod",name="db"} 3"#;
        let running = r#"cairn_operator_clusters{phase="Running"} "#;
        assert!(telemetry.text().contains(series), "{}", telemetry.text());
        assert!(telemetry.text().contains(&format!("{running}1")));
        telemetry.forget("prod", "db");
        assert!(!telemetry.text().contains("prod"));
        assert!(telemetry.text().contains(&format!("{running}0")));
    }
}
