//! One object, again and again: look, plan, do one thing.
//!
//! A pass either writes the status, when it is to say something else, or does the plan's step. So
//! what stands in the status was written before its first effect, and each pass has one effect at
//! most. Passes follow each other until there is something to wait for.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crds::{EtcdCluster, EtcdClusterStatus, status::condition};
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Client, ResourceExt,
    core::{DeserializeGuard, Resource},
    runtime::{
        controller::Action,
        events::{Event, EventType, Recorder, Reporter},
    },
};
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::{
    Error, Settings,
    act::{Hands, MANAGER, Outcome},
    etcd::Etcd,
    lease::Fence,
    names::Names,
    observe::{Failure, Observed, observe},
    plan::{Plan, Step, plan},
    telemetry::Telemetry,
};

/// Passes that one reconciliation makes at most before others get their turn.
const MAX_PASSES: usize = 40;
/// When something is under way that no watch tells of: etcd's members.
const SOON: Duration = Duration::from_secs(2);
/// Drift that no watch told of is found after this time.
const REST: Duration = Duration::from_secs(30);
/// Longest time between tries of what fails.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// How long an event may take: work waits meanwhile.
const EVENT: Duration = Duration::from_secs(3);
/// Longest note of an event that Kubernetes takes, in bytes.
const MAX_NOTE_BYTES: usize = 1000;

/// What reconciliations share.
pub struct Context<E> {
    client: Client,
    etcd: E,
    settings: Settings,
    fence: Fence,
    recorder: Recorder,
    telemetry: Telemetry,
    /// What went wrong last with each cluster. Nothing is decided upon it: it is told, and says
    /// how long to wait.
    memory: Mutex<HashMap<(String, String), Memory>>,
    planner: fn(&Observed) -> Plan,
}

#[derive(Clone, Debug, Default)]
struct Memory {
    failure: Option<Failure>,
    errors: u32,
}

/// What a pass came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// The object is gone.
    Gone,
    /// Something changed: look again.
    Again,
    /// Something is under way.
    Waiting,
    /// Nothing to do.
    Resting,
}

impl<E: Etcd> Context<E> {
    /// What reconciliations need. `identity` names this process in events.
    pub fn new(
        client: Client,
        etcd: E,
        settings: Settings,
        fence: Fence,
        telemetry: Telemetry,
        identity: &str,
    ) -> Self {
        let reporter = Reporter {
            controller: MANAGER.to_owned(),
            instance: Some(identity.to_owned()),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            etcd,
            settings,
            fence,
            telemetry,
            memory: Mutex::default(),
            planner: plan,
        }
    }

    /// With another planner: tests show with a broken one that they would notice.
    pub fn with_planner(mut self, planner: fn(&Observed) -> Plan) -> Self {
        self.planner = planner;
        self
    }

    /// Looks, plans and does one thing.
    ///
    /// # Errors
    /// Something did not answer or was refused; what was done is seen in the next pass.
    pub async fn pass(&self, namespace: &str, name: &str) -> Result<Passed, Error> {
        let key = (namespace.to_owned(), name.to_owned());
        let failure = self
            .memory
            .lock()
            .get(&key)
            .and_then(|memory| memory.failure.clone());
        let looked = observe(
            &self.client,
            &self.etcd,
            &self.settings,
            namespace,
            name,
            failure,
        );
        let Some(seen) = looked.await? else {
            self.memory.lock().remove(&key);
            self.telemetry.forget(namespace, name);
            return Ok(Passed::Gone);
        };
        let plan = (self.planner)(&seen);
        self.telemetry.cluster(namespace, name, &plan.status);
        let hands = Hands {
            client: &self.client,
            etcd: &self.etcd,
            fence: &self.fence,
        };
        if plan.status != seen.status {
            hands.tell(&seen, &plan.status).await?;
            self.announce_status(&seen, &plan.status).await;
            return Ok(Passed::Again);
        }
        match plan.step {
            Step::Wait => return Ok(Passed::Waiting),
            Step::Rest => return Ok(Passed::Resting),
            _ => {}
        }
        let operation = seen
            .status
            .operation
            .as_ref()
            .map(|operation| operation.id.clone());
        let step = plan.step.name();
        debug!(step, operation, "doing");
        self.telemetry.step(step);
        match hands.act(&seen, &plan.step).await {
            Ok(outcome) => {
                info!(step, operation, ?outcome, "done");
                self.memory.lock().entry(key).or_default().failure = None;
                if outcome == Outcome::NotYet {
                    return Ok(Passed::Waiting);
                }
                self.announce_step(&seen, &plan.step).await;
                Ok(Passed::Again)
            }
            Err(error) => {
                if !error.is_conflict() {
                    let mut memory = self.memory.lock();
                    let memory = memory.entry(key).or_default();
                    let before = memory.failure.take().filter(|failure| failure.step == step);
                    memory.failure = Some(Failure {
                        step: step.to_owned(),
                        reason: error.reason().to_owned(),
                        message: error.to_string(),
                        attempts: before.map_or(0, |before| before.attempts).saturating_add(1),
                    });
                }
                Err(error)
            }
        }
    }

    /// Passes until there is something to wait for.
    ///
    /// # Errors
    /// The last pass failed.
    pub async fn reconcile(&self, namespace: &str, name: &str) -> Result<Passed, Error> {
        let began = Instant::now();
        let mut result = Ok(Passed::Again);
        for _ in 0..MAX_PASSES {
            result = self.pass(namespace, name).await;
            match &result {
                Ok(Passed::Again) => {}
                // Somebody wrote in between: look again.
                Err(error) if error.is_conflict() => debug!(%error, "looking again"),
                _ => break,
            }
        }
        let word = match &result {
            Ok(_) => "success",
            Err(error) => error.reason(),
        };
        self.telemetry.reconciled(word, began.elapsed());
        result
    }

    async fn announce_status(&self, seen: &Observed, status: &EtcdClusterStatus) {
        let before = find(&seen.status, condition::STALLED);
        if let Some(stalled) = find(status, condition::STALLED).filter(|now| now.status == "True")
            && before
                .is_none_or(|before| before.status != "True" || before.reason != stalled.reason)
        {
            self.event(
                seen,
                EventType::Warning,
                &stalled.reason,
                "Stall",
                &stalled.message,
            )
            .await;
        }
        if seen.status.cluster_id.is_none()
            && let Some(id) = &status.cluster_id
        {
            let note = format!("the cluster has the ID {id}");
            self.event(
                seen,
                EventType::Normal,
                "ClusterFounded",
                "Bootstrap",
                &note,
            )
            .await;
        }
        let was_ready =
            find(&seen.status, condition::READY).is_some_and(|old| old.status == "True");
        if let Some(ready) = find(status, condition::READY) {
            let is_ready = ready.status == "True";
            if is_ready && !was_ready {
                self.event(seen, EventType::Normal, "Ready", "Observe", &ready.message)
                    .await;
            } else if was_ready && !is_ready {
                self.event(
                    seen,
                    EventType::Warning,
                    "NotReady",
                    "Observe",
                    &ready.message,
                )
                .await;
            }
        }
    }

    async fn announce_step(&self, seen: &Observed, step: &Step) {
        let (reason, action, number, words) = match step {
            Step::CreateSet(number) => {
                ("MemberCreated", "Create", *number, "its pod is being made")
            }
            Step::AddLearner(number) => ("MemberAdded", "Grow", *number, "it joins without a vote"),
            Step::Promote { member, .. } => ("MemberPromoted", "Grow", *member, "it votes now"),
            _ => return,
        };
        let note = format!("member {}: {words}", seen.names.member(number));
        self.event(seen, EventType::Normal, reason, action, &note)
            .await;
    }

    async fn event(
        &self,
        seen: &Observed,
        kind: EventType,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        let mut note = note.to_owned();
        while note.len() > MAX_NOTE_BYTES {
            note.pop();
        }
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(note),
            action: action.to_owned(),
            secondary: None,
        };
        let Ok(left) = self.fence.remaining() else {
            return;
        };
        let reference = reference(&seen.names);
        let limit = left.min(EVENT);
        let published =
            tokio::time::timeout(limit, self.recorder.publish(&event, &reference)).await;
        // An event is for people: nothing rests on it.
        if !matches!(published, Ok(Ok(()))) {
            debug!(reason, "could not publish an event");
        }
    }
}

fn reference(names: &Names) -> ObjectReference {
    ObjectReference {
        api_version: Some(format!("{}/{}", crds::GROUP, crds::VERSION)),
        kind: Some("EtcdCluster".to_owned()),
        name: Some(names.cluster.clone()),
        namespace: Some(names.namespace.clone()),
        uid: Some(names.uid.clone()),
        ..ObjectReference::default()
    }
}

fn find<'a>(status: &'a EtcdClusterStatus, name: &str) -> Option<&'a Condition> {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == name)
}

/// Some time around this one, so that many objects do not come at once.
fn around(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.8..1.2))
}

/// The controller's entry: reconciles one object.
///
/// # Errors
/// See [`Error`].
pub async fn run<E: Etcd>(
    cluster: Arc<DeserializeGuard<EtcdCluster>>,
    context: Arc<Context<E>>,
) -> Result<Action, Error> {
    let metadata = cluster.meta();
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let name = metadata.name.clone().unwrap_or_default();
    if let Err(invalid) = &cluster.0 {
        // Written under another schema. Its members go on; it is looked at again when it changes.
        warn!(
            namespace,
            cluster = name,
            error = invalid.error,
            "this EtcdCluster cannot be read; it is left alone"
        );
        context
            .telemetry
            .reconciled("InvalidObject", Duration::ZERO);
        return Ok(Action::await_change());
    }
    let span = info_span!("reconcile", namespace, cluster = name);
    let passed = context
        .reconcile(&namespace, &name)
        .instrument(span)
        .await?;
    if let Some(memory) = context.memory.lock().get_mut(&(namespace, name)) {
        memory.errors = 0;
    }
    Ok(match passed {
        Passed::Gone => Action::await_change(),
        Passed::Again => Action::requeue(Duration::from_millis(10)),
        Passed::Waiting => Action::requeue(around(SOON)),
        Passed::Resting => Action::requeue(around(REST)),
    })
}

/// What the controller does after an error: tries again, later each time, object by object.
pub fn on_error<E: Etcd>(
    cluster: Arc<DeserializeGuard<EtcdCluster>>,
    error: &Error,
    context: Arc<Context<E>>,
) -> Action {
    let key = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let errors = {
        let mut memory = context.memory.lock();
        let memory = memory.entry(key.clone()).or_default();
        memory.errors = memory.errors.saturating_add(1);
        memory.errors
    };
    let backoff = Duration::from_millis(500)
        .saturating_mul(1 << errors.min(8))
        .min(MAX_BACKOFF);
    warn!(namespace = key.0, cluster = key.1, %error, errors, "reconciling failed; trying again");
    Action::requeue(around(backoff))
}
