//! What there is: everything that a plan rests on, read anew in each pass.
//!
//! Nothing comes from a watch's cache. A list that lags behind a write of our own would make a
//! member twice.

use std::{collections::BTreeMap, future::Future, time::Duration};

use crds::{EtcdCluster, EtcdClusterSpec, EtcdClusterStatus, quantity};
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, ContainerStateTerminated, PersistentVolumeClaim, Pod, Service},
        policy::v1::PodDisruptionBudget,
        storage::v1::StorageClass,
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use kube::{Api, Client, ResourceExt, api::ListParams};
use record::{RECORD_FILE, Record, Termination};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    Error, Settings,
    desired::{Wanted, covers},
    etcd::{Answer, Etcd, Member},
    names::{self, Names},
};

/// How long the API server has to answer a question.
const READ: Duration = Duration::from_secs(15);
/// Exit code of a server that cannot read its flags, as etcd's.
const USAGE: u8 = 2;
/// Reason of a [`PodSeen::refused`] with that exit code.
pub const INVALID_FLAGS: &str = "InvalidFlags";
/// How much of what a container said last is told.
const LAST_LINES: usize = 3;
/// See [`LAST_LINES`].
const LAST_CHARS: usize = 300;

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The cluster's names.
    pub names: Names,
    /// What the user wants.
    pub spec: EtcdClusterSpec,
    /// What was told last; also the operator's memory.
    pub status: EtcdClusterStatus,
    /// Generation of the spec.
    pub generation: Option<i64>,
    /// Version of the object that spec and status were read from.
    pub resource_version: String,
    /// Whether the object is being deleted.
    pub deleting: bool,
    /// When this was seen.
    pub now: Timestamp,
    /// The operator's settings.
    pub settings: Settings,
    /// Hash of what the spec says about pods now.
    pub template_hash: String,
    /// Hash of the whole spec.
    pub spec_hash: String,
    /// What exists of each member, by its number.
    pub members: BTreeMap<i64, Seen>,
    /// Objects that bear the cluster's name and are not its own.
    pub foreign: Vec<Foreign>,
    /// The headless service: whether it is as it should be.
    pub peer_service: Option<bool>,
    /// The clients' service: whether it is as it should be.
    pub client_service: Option<bool>,
    /// The disruption budget.
    pub budget: Option<Budget>,
    /// etcd's member list, if a quorum gave it.
    pub list: Option<Vec<Member>>,
    /// Whether a storage class lets claims grow, for classes that matter now.
    pub classes: BTreeMap<String, bool>,
    /// What went wrong in this operator's last try.
    pub failure: Option<Failure>,
}

/// What failed last. It is only told, never decided upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The step's name.
    pub step: String,
    /// One word.
    pub reason: String,
    /// What happened.
    pub message: String,
    /// How often in a row.
    pub attempts: i64,
}

/// An object with the cluster's name on it that belongs to somebody else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Foreign {
    /// Kind of the object.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// UID of the cluster that it says it is of.
    pub cluster_uid: String,
}

/// The disruption budget as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Pods that stay.
    pub min_available: i32,
    /// Whether the rest of it is as it should be.
    pub intact: bool,
    /// For deleting exactly this one.
    pub target: Target,
}

/// One version of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Its UID.
    pub uid: String,
    /// Its version.
    pub resource_version: String,
}

impl Target {
    fn of(metadata: &ObjectMeta) -> Self {
        Self {
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
        }
    }
}

/// What exists of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its StatefulSet.
    pub set: Option<Set>,
    /// Its claim.
    pub volume: Option<Volume>,
    /// Its record.
    pub record: Option<Written>,
    /// Its pod.
    pub pod: Option<PodSeen>,
    /// What it says of itself; `None` when it was not asked.
    pub answer: Option<Result<Answer, String>>,
}

/// A StatefulSet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// This version of it.
    pub target: Target,
    /// Hash of what of the spec went into its pod.
    pub hash: String,
    /// Whether its pods are born with the label of those that serve.
    pub serving: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
}

/// A claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// This version of it.
    pub target: Target,
    /// etcd's cluster ID, in hexadecimal, that was noted on it.
    pub cluster_id: Option<String>,
    /// Whether it goes with the cluster.
    pub owned: bool,
    /// Bytes that are asked for.
    pub asked: u64,
    /// Its class.
    pub class: Option<String>,
    /// Whether it is being deleted.
    pub deleting: bool,
}

/// A record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// This version of it.
    pub target: Target,
    /// What it says; `None` when somebody made it unreadable.
    pub record: Option<Record>,
    /// UID of the claim that it was written for.
    pub volume_uid: Option<String>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSeen {
    /// This version of it.
    pub target: Target,
    /// Its address.
    pub ip: Option<String>,
    /// Whether its container runs.
    pub running: bool,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// The record that it was told of.
    pub record: Option<String>,
    /// Whether it bears the label of those that serve.
    pub serving: bool,
    /// Why its server refused to start, last.
    pub refused: Option<Termination>,
    /// What Kubernetes says that keeps it from running.
    pub trouble: Option<String>,
}

impl Seen {
    /// What the record says, if it can be read.
    pub fn said(&self) -> Option<&Record> {
        self.record.as_ref()?.record.as_ref()
    }
}

/// Reads all that matters to one cluster. `None` when its object is gone.
///
/// # Errors
/// The API server did not answer. That members do not answer is part of the picture.
pub async fn observe<E: Etcd>(
    client: &Client,
    etcd: &E,
    settings: &Settings,
    namespace: &str,
    name: &str,
    failure: Option<Failure>,
) -> Result<Option<Observed>, Error> {
    let api: Api<EtcdCluster> = Api::namespaced(client.clone(), namespace);
    let Some(cluster) = read("read the EtcdCluster", api.get_opt(name)).await? else {
        return Ok(None);
    };
    let names = Names::of(&cluster);
    let status = cluster.status.clone().unwrap_or_default();
    let version = version(&cluster.spec, &status, settings);
    let wanted = Wanted {
        names: &names,
        spec: &cluster.spec,
        version: &version,
        settings,
    };
    let mut observed = Observed {
        status,
        generation: cluster.metadata.generation,
        resource_version: cluster.resource_version().unwrap_or_default(),
        deleting: cluster.metadata.deletion_timestamp.is_some(),
        now: Timestamp::now(),
        settings: settings.clone(),
        template_hash: wanted.template_hash(),
        spec_hash: wanted.spec_hash(),
        members: BTreeMap::new(),
        foreign: Vec::new(),
        peer_service: None,
        client_service: None,
        budget: None,
        list: None,
        classes: BTreeMap::new(),
        failure,
        spec: cluster.spec.clone(),
        names: names.clone(),
    };
    objects(client, &wanted, &mut observed).await?;
    classes(client, &mut observed).await?;
    members(etcd, &mut observed).await;
    Ok(Some(observed))
}

/// The version that a cluster runs: what was latched, what the spec says, our own.
pub fn version(spec: &EtcdClusterSpec, status: &EtcdClusterStatus, settings: &Settings) -> String {
    let said = status.version.clone().or_else(|| spec.version.clone());
    said.unwrap_or_else(|| settings.version.clone())
}

async fn read<T>(
    action: &str,
    question: impl Future<Output = kube::Result<T>>,
) -> Result<T, Error> {
    match tokio::time::timeout(READ, question).await {
        Ok(answer) => answer.map_err(|source| Error::Api {
            action: action.to_owned(),
            source: Box::new(source),
        }),
        Err(_) => Err(Error::Timeout(action.to_owned())),
    }
}

async fn list<K>(client: &Client, names: &Names, what: &str) -> Result<Vec<K>, Error>
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), &names.namespace);
    let selector = ListParams::default().labels(&names.selector());
    Ok(read(&format!("list {what}"), api.list(&selector))
        .await?
        .items)
}

async fn objects(client: &Client, wanted: &Wanted<'_>, to: &mut Observed) -> Result<(), Error> {
    let names = wanted.names;
    let (sets, volumes, maps, pods, services, budgets) = tokio::try_join!(
        list::<StatefulSet>(client, names, "StatefulSets"),
        list::<PersistentVolumeClaim>(client, names, "claims"),
        list::<ConfigMap>(client, names, "ConfigMaps"),
        list::<Pod>(client, names, "pods"),
        list::<Service>(client, names, "Services"),
        list::<PodDisruptionBudget>(client, names, "PodDisruptionBudgets"),
    )?;
    for set in sets {
        if let Some(seen) = to.owned("StatefulSet", &set.metadata) {
            seen.set = Some(set_seen(&set));
        }
    }
    for volume in volumes {
        // A claim has no owner while it is to outlive the cluster: its label says whose it is.
        if let Some(seen) = to.labelled("PersistentVolumeClaim", &volume.metadata) {
            seen.volume = Some(volume_seen(&volume, &names.uid));
        }
    }
    for map in maps {
        if let Some(seen) = to.owned("ConfigMap", &map.metadata) {
            seen.record = Some(record_seen(&map));
        }
    }
    for pod in pods {
        let number = pod.name_any();
        let number = number
            .strip_suffix("-0")
            .and_then(|member| names.number(member));
        if let Some(number) = number.filter(|_| is_labelled(&pod.metadata, names)) {
            to.members.entry(number).or_default().pod = Some(pod_seen(&pod));
        }
    }
    for service in services {
        service_seen(&service, wanted, to)?;
    }
    for budget in budgets {
        budget_seen(&budget, wanted, to)?;
    }
    to.foreign.sort();
    Ok(())
}

fn service_seen(service: &Service, wanted: &Wanted<'_>, to: &mut Observed) -> Result<(), Error> {
    if !to.is_owned("Service", &service.metadata) {
        return Ok(());
    }
    let name = service.name_any();
    if name == wanted.names.peer_service() {
        to.peer_service = Some(covers(service, &wanted.peer_service()?));
    } else if name == wanted.names.client_service() {
        to.client_service = Some(covers(service, &wanted.client_service()?));
    }
    Ok(())
}

fn budget_seen(
    budget: &PodDisruptionBudget,
    wanted: &Wanted<'_>,
    to: &mut Observed,
) -> Result<(), Error> {
    if !to.is_owned("PodDisruptionBudget", &budget.metadata)
        || budget.name_any() != wanted.names.budget()
    {
        return Ok(());
    }
    let available = budget
        .spec
        .as_ref()
        .and_then(|spec| spec.min_available.clone());
    let min_available = match available {
        Some(IntOrString::Int(number)) => number,
        _ => 0,
    };
    to.budget = Some(Budget {
        min_available,
        intact: covers(budget, &wanted.budget(min_available)?),
        target: Target::of(&budget.metadata),
    });
    Ok(())
}

fn is_labelled(metadata: &ObjectMeta, names: &Names) -> bool {
    let labels = metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(names::CLUSTER_UID)) == Some(&names.uid)
}

impl Observed {
    /// Whether an object's owner is this very cluster; if not, it is noted as foreign.
    fn is_owned(&mut self, kind: &'static str, metadata: &ObjectMeta) -> bool {
        let owners = metadata.owner_references.as_deref().unwrap_or_default();
        let own = owners.iter().any(|owner| owner.uid == self.names.uid);
        if !own {
            self.note_foreign(kind, metadata);
        }
        own
    }

    fn note_foreign(&mut self, kind: &'static str, metadata: &ObjectMeta) {
        let name = metadata.name.clone().unwrap_or_default();
        let names = &self.names;
        let in_the_way = names.number(&name).is_some()
            || [names.peer_service(), names.client_service(), names.budget()].contains(&name);
        // What else bears the label is no concern of ours, unless it holds or runs a member.
        if !in_the_way && !matches!(kind, "StatefulSet" | "PersistentVolumeClaim") {
            return;
        }
        let labels = metadata.labels.as_ref();
        let uid = labels
            .and_then(|labels| labels.get(names::CLUSTER_UID))
            .cloned();
        self.foreign.push(Foreign {
            kind,
            name,
            cluster_uid: uid.unwrap_or_default(),
        });
    }

    fn owned(&mut self, kind: &'static str, metadata: &ObjectMeta) -> Option<&mut Seen> {
        match self.is_owned(kind, metadata) {
            true => self.member(metadata),
            false => None,
        }
    }

    fn labelled(&mut self, kind: &'static str, metadata: &ObjectMeta) -> Option<&mut Seen> {
        if is_labelled(metadata, &self.names) {
            return self.member(metadata);
        }
        self.note_foreign(kind, metadata);
        None
    }

    fn member(&mut self, metadata: &ObjectMeta) -> Option<&mut Seen> {
        let number = self.names.number(metadata.name.as_deref()?)?;
        Some(self.members.entry(number).or_default())
    }
}

fn annotation(metadata: &ObjectMeta, key: &str) -> Option<String> {
    metadata.annotations.as_ref()?.get(key).cloned()
}

fn is_serving(metadata: Option<&ObjectMeta>) -> bool {
    let labels = metadata.and_then(|metadata| metadata.labels.as_ref());
    labels.is_some_and(|labels| {
        labels
            .get(names::SERVING)
            .is_some_and(|value| value == "true")
    })
}

fn set_seen(set: &StatefulSet) -> Set {
    let template = set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.metadata.as_ref());
    Set {
        target: Target::of(&set.metadata),
        hash: annotation(&set.metadata, names::SPEC_HASH).unwrap_or_default(),
        serving: is_serving(template),
        deleting: set.metadata.deletion_timestamp.is_some(),
    }
}

fn volume_seen(volume: &PersistentVolumeClaim, cluster_uid: &str) -> Volume {
    let owners = volume
        .metadata
        .owner_references
        .as_deref()
        .unwrap_or_default();
    let spec = volume.spec.as_ref();
    let requests = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let asked = requests.and_then(|requests| requests.get("storage"));
    Volume {
        target: Target::of(&volume.metadata),
        cluster_id: annotation(&volume.metadata, names::CLUSTER_ID),
        owned: owners.iter().any(|owner| owner.uid == cluster_uid),
        asked: asked.and_then(quantity::bytes).unwrap_or_default(),
        class: spec.and_then(|spec| spec.storage_class_name.clone()),
        deleting: volume.metadata.deletion_timestamp.is_some(),
    }
}

fn record_seen(map: &ConfigMap) -> Written {
    let text = map.data.as_ref().and_then(|data| data.get(RECORD_FILE));
    Written {
        target: Target::of(&map.metadata),
        record: text.and_then(|text| serde_json::from_str(text).ok()),
        volume_uid: annotation(&map.metadata, names::VOLUME_UID),
    }
}

fn pod_seen(pod: &Pod) -> PodSeen {
    let status = pod.status.clone().unwrap_or_default();
    let ready = status.conditions.as_deref().unwrap_or_default().iter();
    let ready = ready.filter(|condition| condition.type_ == "Ready");
    let container = status
        .container_statuses
        .as_deref()
        .unwrap_or_default()
        .first();
    let state = container.and_then(|container| container.state.as_ref());
    let ended = state
        .and_then(|state| state.terminated.clone())
        .or_else(|| {
            let last = container.and_then(|container| container.last_state.as_ref());
            last.and_then(|last| last.terminated.clone())
        });
    let running = state.is_some_and(|state| state.running.is_some());
    let refused = ended.as_ref().and_then(|ended| {
        let words = ended.message.as_deref().unwrap_or_default();
        if ended.exit_code == i32::from(USAGE) {
            return Some(Termination {
                reason: INVALID_FLAGS.to_owned(),
                message: last_words(words),
                exit_code: USAGE,
            });
        }
        let said: Option<Termination> = serde_json::from_str(words).ok();
        // What made the server refuse may be undone: once it runs ready again it is past.
        said.filter(|said| i32::from(said.exit_code) == ended.exit_code)
    });
    let ready = ready
        .into_iter()
        .any(|condition| condition.status == "True");
    PodSeen {
        target: Target::of(&pod.metadata),
        ip: status.pod_ip.clone(),
        running,
        ready,
        deleting: pod.metadata.deletion_timestamp.is_some(),
        record: annotation(&pod.metadata, names::RECORD),
        serving: is_serving(Some(&pod.metadata)),
        refused: refused.filter(|_| !ready),
        trouble: trouble(pod),
    }
}

/// What Kubernetes says that keeps a pod from running, in a line.
fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.as_deref().unwrap_or_default().iter();
    let mut unscheduled = conditions
        .filter(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled.next() {
        let message = condition.message.clone().unwrap_or_default();
        return Some(format!("not scheduled: {message}"));
    }
    let container = status.container_statuses.as_deref()?.first()?;
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.clone().unwrap_or_default();
        if matches!(
            reason.as_str(),
            "" | "ContainerCreating" | "PodInitializing"
        ) {
            return None;
        }
        // Its text counts seconds: a status that shows it would be written all the time.
        let message = match reason.as_str() {
            "CrashLoopBackOff" => "its container ends again and again".to_owned(),
            _ => waiting.message.clone().unwrap_or_default(),
        };
        let ended = container
            .last_state
            .as_ref()
            .and_then(|last| last.terminated.as_ref());
        let ended = ended.map(|ended| format!(", last with {}", end(ended)));
        return Some(format!("{reason}: {message}{}", ended.unwrap_or_default()));
    }
    Some(format!("ended with {}", end(state.terminated.as_ref()?)))
}

fn end(ended: &ContainerStateTerminated) -> String {
    let words = last_words(ended.message.as_deref().unwrap_or_default());
    match words.is_empty() {
        true => format!("exit code {}", ended.exit_code),
        false => format!("exit code {}: {words}", ended.exit_code),
    }
}

/// What a container said last, in a line: of log lines only their message and error, since times
/// would differ at each end.
fn last_words(log: &str) -> String {
    let lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<String> = lines.map(plain).collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    let text = last.join("; ");
    text.chars().take(LAST_CHARS).collect()
}

fn plain(line: &str) -> String {
    let Ok(Value::Object(fields)) = serde_json::from_str(line) else {
        return line.to_owned();
    };
    let said = ["msg", "message", "error"].map(|key| fields.get(key).and_then(Value::as_str));
    let said: Vec<&str> = said.into_iter().flatten().collect();
    said.join(": ")
}

/// Looks at the classes of claims that are to grow.
async fn classes(client: &Client, to: &mut Observed) -> Result<(), Error> {
    let wanted = quantity::bytes(&to.spec.storage.size).unwrap_or_default();
    let volumes = to.members.values().filter_map(|seen| seen.volume.as_ref());
    let small = volumes.filter(|volume| volume.asked < wanted);
    let classes: Vec<String> = small.filter_map(|volume| volume.class.clone()).collect();
    for class in classes {
        if to.classes.contains_key(&class) {
            continue;
        }
        let api: Api<StorageClass> = Api::all(client.clone());
        let found = read("read the StorageClass", api.get_opt(&class)).await?;
        let grows = found
            .and_then(|found| found.allow_volume_expansion)
            .unwrap_or_default();
        to.classes.insert(class, grows);
    }
    Ok(())
}

/// A member that does not answer must not hold up all others' cluster.
async fn bounded<T>(question: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let answer = tokio::time::timeout(READ, question).await;
    answer.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

/// Asks the members.
async fn members<E: Etcd>(etcd: &E, to: &mut Observed) {
    let asked = to.members.iter().filter_map(|(number, seen)| {
        let pod = seen
            .pod
            .as_ref()
            .filter(|pod| pod.running && !pod.deleting)?;
        Some((*number, pod.ip.clone()?))
    });
    let asked: Vec<(i64, String)> = asked.collect();
    let answers = asked.iter().map(|(_, ip)| bounded(etcd.status(ip)));
    let answers = join_all(answers).await;
    let mut addresses = Vec::new();
    for ((number, ip), answer) in asked.into_iter().zip(answers) {
        if answer.is_ok() {
            addresses.push(ip);
        }
        if let Some(seen) = to.members.get_mut(&number) {
            seen.answer = Some(answer);
        }
    }
    if !addresses.is_empty() {
        to.list = bounded(etcd.members(&addresses)).await.ok();
    }
}

impl Observed {
    /// Addresses of members that answered as part of this cluster.
    pub fn addresses(&self) -> Vec<String> {
        let answered = self
            .members
            .values()
            .filter(|seen| matches!(seen.answer, Some(Ok(_))));
        let pods = answered.filter_map(|seen| seen.pod.as_ref());
        pods.filter_map(|pod| pod.ip.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn crashed(exit_code: u8, words: &str) -> PodSeen {
        let pod = json!({
            "metadata": { "name": "db-0-0" },
            "status": { "containerStatuses": [{
                "name": "cairn", "image": "", "imageID": "", "ready": false, "restartCount": 3,
                "state": { "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 20s" } },
                "lastState": { "terminated": { "exitCode": exit_code, "message": words } },
            }] },
        });
        pod_seen(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn what_a_server_said_last_is_told_without_times() {
        let log = "{\"ts\":\"12:00\",\"msg\":\"opening\"}\n\n\
                   {\"ts\":\"12:01\",\"msg\":\"no disk\",\"error\":\"I/O error\"}\n";
        let seen = crashed(1, log);
        assert_eq!(
            seen.trouble.unwrap(),
            "CrashLoopBackOff: its container ends again and again, last with exit code 1: opening; \
             no disk: I/O error"
        );
        assert_eq!(seen.refused, None);
        assert!(last_words(&"ä\n".repeat(9000)).chars().count() <= LAST_CHARS);
        assert!(crashed(137, "").trouble.unwrap().ends_with("exit code 137"));
    }

    #[test]
    fn a_server_that_cannot_read_its_flags_has_refused() {
        let refused = crashed(2, "flag provided but not defined: -x\n").refused;
        assert_eq!(
            refused.unwrap(),
            Termination {
                reason: INVALID_FLAGS.into(),
                message: "flag provided but not defined: -x".into(),
                exit_code: 2,
            }
        );
        let own = json!({ "reason": "DataLost", "message": "gone", "exitCode": 64 }).to_string();
        assert_eq!(crashed(64, &own).refused.unwrap().reason, "DataLost");
        // One that ended with another code than it says did not say it.
        assert_eq!(crashed(65, &own).refused, None);
    }
}
