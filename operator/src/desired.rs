//! The objects as they are to be. Pure: a cluster's spec in, objects out.

use std::collections::BTreeMap;

use crds::{
    EtcdClusterSpec,
    cluster::{AntiAffinity, LogLevel, PullPolicy, RetainPolicy},
    quantity,
};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, PersistentVolumeClaim, Service},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use record::{RECORD_FILE, Record};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{
    Error, Settings,
    names::{CLIENT_PORT, METRICS_PORT, Names, PEER_PORT, SERVING, SPEC_HASH, VOLUME_UID, WANTED},
};

/// The user and group that the server runs as.
const USER: i64 = 65532;
/// Where the claim is mounted; the data directory lies below, beside what the file system puts
/// there.
const VOLUME: &str = "/var/lib/cairn";
/// Learners that a cluster may have at a time. The same for all members: with different values
/// they would judge one request differently.
const MAX_LEARNERS: u32 = 2;
/// Room for the marks of records that were acted on.
const MARKS_SIZE: &str = "4Mi";
/// Failures of the startup probe, two seconds apart, until the kubelet restarts a member.
const STARTUP_FAILURES: u32 = 300;

/// What objects are made of.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The cluster's names.
    pub names: &'a Names,
    /// What the user wants.
    pub spec: &'a EtcdClusterSpec,
    /// The latched version of the server.
    pub version: &'a str,
    /// The operator's settings.
    pub settings: &'a Settings,
}

fn object<K: DeserializeOwned>(what: &'static str, value: Value) -> Result<K, Error> {
    serde_json::from_value(value).map_err(|source| Error::Spec {
        object: what,
        source,
    })
}

/// Equal values have equal hashes, whatever order a build's JSON library keeps keys in. Nulls count
/// as absent, so that a field added to a type later changes no hash while nobody sets it.
fn hash(value: &Value) -> String {
    let mut text = String::new();
    canonical(value, &mut text);
    hex::encode(&Sha256::digest(text.as_bytes())[..8])
}

fn canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<_, _> = fields
                .iter()
                .filter(|(_, field)| !field.is_null())
                .collect();
            text.push('{');
            for (key, field) in sorted {
                text.push_str(&json!(key).to_string());
                text.push(':');
                canonical(field, text);
                text.push(',');
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for item in items {
                canonical(item, text);
                text.push(',');
            }
            text.push(']');
        }
        plain => text.push_str(&plain.to_string()),
    }
}

fn value<T: Serialize>(of: &T) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}

impl Wanted<'_> {
    /// The cluster's object as owner: with it go its children.
    pub fn owner(&self) -> OwnerReference {
        OwnerReference {
            api_version: format!("{}/{}", crds::GROUP, crds::VERSION),
            kind: "EtcdCluster".to_owned(),
            name: self.names.cluster.clone(),
            uid: self.names.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    /// Hash of what the user says about pods. Pods with another one were made from another spec.
    /// The operator's own settings are left out: a new operator restarts nobody.
    pub fn template_hash(&self) -> String {
        hash(&json!({
            "etcd": value(&self.spec.etcd),
            "pod": value(&self.spec.pod),
            "image": value(&self.spec.image),
            "version": self.version,
        }))
    }

    /// Hash of the whole spec, for the operation's record.
    pub fn spec_hash(&self) -> String {
        hash(&value(self.spec))
    }

    fn metadata(&self, name: String, labels: &BTreeMap<String, String>) -> Value {
        json!({
            "name": name,
            "namespace": self.names.namespace,
            "labels": labels,
            "ownerReferences": [value(&self.owner())],
        })
    }

    /// The headless service that gives pods their names, also before they are ready: members find
    /// each other by them to become ready.
    pub fn peer_service(&self) -> Result<Service, Error> {
        let ports = json!([
            port("client", CLIENT_PORT),
            port("peer", PEER_PORT),
            port("metrics", METRICS_PORT),
        ]);
        let mut service = json!({
            "metadata": self.metadata(self.names.peer_service(), &self.names.labels()),
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": true,
                "selector": self.names.pod_selector(),
                "ports": ports,
            },
        });
        mark_wanted(&mut service);
        object("the peer Service", service)
    }

    /// The service for clients: only pods whose member votes.
    pub fn client_service(&self) -> Result<Service, Error> {
        let client = &self.spec.services.client;
        let mut labels = client.labels.clone();
        labels.extend(self.names.labels());
        let mut metadata = self.metadata(self.names.client_service(), &labels);
        metadata["annotations"] = value(&client.annotations);
        let mut service = json!({
            "metadata": metadata,
            "spec": {
                "type": client.r#type.as_str(),
                "selector": self.names.serving_selector(),
                "ports": [port("client", CLIENT_PORT)],
            },
        });
        mark_wanted(&mut service);
        object("the client Service", service)
    }

    /// The disruption budget. A number and not a percentage, which the disruption controller
    /// would take of each StatefulSet.
    pub fn budget(&self, min_available: i32) -> Result<PodDisruptionBudget, Error> {
        let mut budget = json!({
            "metadata": self.metadata(self.names.budget(), &self.names.labels()),
            "spec": {
                "minAvailable": min_available,
                "selector": { "matchLabels": self.names.pod_selector() },
                "unhealthyPodEvictionPolicy": "IfHealthyBudget",
            },
        });
        mark_wanted(&mut budget);
        object("the PodDisruptionBudget", budget)
    }

    /// A member's record. `resource_version` is that of the one it replaces.
    pub fn record(
        &self,
        number: i64,
        record: &Record,
        volume_uid: Option<&str>,
        resource_version: Option<&str>,
    ) -> Result<ConfigMap, Error> {
        let mut metadata =
            self.metadata(self.names.member(number), &self.names.member_labels(number));
        if let Some(uid) = volume_uid {
            metadata["annotations"] = json!({ VOLUME_UID: uid });
        }
        if let Some(version) = resource_version {
            metadata["resourceVersion"] = json!(version);
        }
        let text = serde_json::to_string(record).map_err(|source| Error::Spec {
            object: "the bootstrap record",
            source,
        })?;
        object(
            "the bootstrap record",
            json!({ "metadata": metadata, "data": { RECORD_FILE: text } }),
        )
    }

    /// A member's claim. It stays when the cluster is deleted, unless the spec says otherwise.
    pub fn volume(&self, number: i64) -> Result<PersistentVolumeClaim, Error> {
        let storage = &self.spec.storage;
        let mut metadata =
            self.metadata(self.names.member(number), &self.names.member_labels(number));
        if storage.retain.on_delete == RetainPolicy::Retain {
            metadata["ownerReferences"] = json!([]);
        }
        let mut spec = json!({
            "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": value(&storage.size) } },
        });
        if let Some(class) = &storage.storage_class_name {
            spec["storageClassName"] = json!(class);
        }
        object("the claim", json!({ "metadata": metadata, "spec": spec }))
    }

    /// A member's StatefulSet: one pod on the claim that the operator made. No claim templates:
    /// they would give a member that lost its disk a blank one.
    pub fn set(&self, number: i64) -> Result<StatefulSet, Error> {
        let labels = self.names.member_labels(number);
        let mut metadata = self.metadata(self.names.member(number), &labels);
        metadata["annotations"] = json!({ SPEC_HASH: self.template_hash() });
        let mut selector = self.names.pod_selector();
        selector.extend(
            labels
                .get_key_value(crate::names::MEMBER)
                .map(|(k, v)| (k.clone(), v.clone())),
        );
        let mut pod_labels = self.spec.pod.labels.clone();
        pod_labels.remove(SERVING);
        pod_labels.extend(labels);
        object(
            "the StatefulSet",
            json!({
                "metadata": metadata,
                "spec": {
                    "serviceName": self.names.peer_service(),
                    "replicas": 1,
                    "podManagementPolicy": "Parallel",
                    "updateStrategy": { "type": "OnDelete" },
                    "selector": { "matchLabels": selector },
                    "template": {
                        "metadata": {
                            "labels": pod_labels,
                            "annotations": self.spec.pod.annotations,
                        },
                        "spec": self.pod(number),
                    },
                },
            }),
        )
    }

    fn pod(&self, number: i64) -> Value {
        let pod = &self.spec.pod;
        let member = self.names.member(number);
        let mut spec = json!({
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": pod.termination_grace_period_seconds,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "topologySpreadConstraints": [{
                "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": { "matchLabels": self.names.pod_selector() },
            }],
            "containers": [self.container(number)],
            "volumes": [
                { "name": "data", "persistentVolumeClaim": { "claimName": member } },
                { "name": "record", "configMap": { "name": member, "optional": true } },
                { "name": "marks", "emptyDir": { "sizeLimit": MARKS_SIZE } },
            ],
        });
        let mut set = |key: &str, field: Value| {
            spec[key] = field;
        };
        if let Some(affinity) = self.anti_affinity() {
            set("affinity", json!({ "podAntiAffinity": affinity }));
        }
        if !pod.node_selector.is_empty() {
            set("nodeSelector", value(&pod.node_selector));
        }
        if !pod.tolerations.is_empty() {
            set("tolerations", value(&pod.tolerations));
        }
        if let Some(class) = &pod.priority_class_name {
            set("priorityClassName", json!(class));
        }
        if let Some(account) = &pod.service_account_name {
            set("serviceAccountName", json!(account));
        }
        let image = self.spec.image.clone().unwrap_or_default();
        if !image.pull_secrets.is_empty() {
            set("imagePullSecrets", value(&image.pull_secrets));
        }
        spec
    }

    fn anti_affinity(&self) -> Option<Value> {
        let term = json!({
            "topologyKey": "kubernetes.io/hostname",
            "labelSelector": { "matchLabels": self.names.pod_selector() },
        });
        match self.spec.pod.anti_affinity {
            AntiAffinity::None => None,
            AntiAffinity::Required => {
                Some(json!({ "requiredDuringSchedulingIgnoredDuringExecution": [term] }))
            }
            AntiAffinity::Preferred => Some(json!({
                "preferredDuringSchedulingIgnoredDuringExecution":
                    [{ "weight": 100, "podAffinityTerm": term }],
            })),
        }
    }

    fn container(&self, number: i64) -> Value {
        let image = self.spec.image.clone().unwrap_or_default();
        let pull = match image.pull_policy {
            PullPolicy::Always => "Always",
            PullPolicy::IfNotPresent => "IfNotPresent",
            PullPolicy::Never => "Never",
        };
        let probe = |path: &str| json!({ "path": path, "port": "metrics" });
        let mut container = json!({
            "name": "cairn",
            "image": self.image(),
            "imagePullPolicy": pull,
            // Of a server that ends without a word of its own, its last lines say why.
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "command": ["/usr/local/bin/cairn"],
            "args": self.arguments(number),
            "env": [
                { "name": "CAIRN_BOOTSTRAP_RECORD", "value": format!("/record/{RECORD_FILE}") },
                { "name": "CAIRN_BOOTSTRAP_MARKS", "value": "/marks" },
                { "name": "CAIRN_POD_UID",
                  "valueFrom": { "fieldRef": { "fieldPath": "metadata.uid" } } },
                { "name": "CAIRN_CLUSTER_UID", "value": self.names.uid },
            ],
            "ports": [
                { "name": "client", "containerPort": CLIENT_PORT },
                { "name": "peer", "containerPort": PEER_PORT },
                { "name": "metrics", "containerPort": METRICS_PORT },
            ],
            "startupProbe": {
                "httpGet": probe("/livez"),
                "periodSeconds": 2,
                "timeoutSeconds": 5,
                "failureThreshold": STARTUP_FAILURES,
            },
            "livenessProbe": {
                "httpGet": probe("/livez"),
                "periodSeconds": 10,
                "timeoutSeconds": 5,
                "failureThreshold": 6,
            },
            "readinessProbe": {
                "httpGet": probe("/readyz"),
                "periodSeconds": 3,
                "timeoutSeconds": 3,
                "failureThreshold": 3,
            },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            },
            "volumeMounts": [
                { "name": "data", "mountPath": VOLUME },
                // Whole, without subPath: a file mounted alone is never refreshed.
                { "name": "record", "mountPath": "/record", "readOnly": true },
                { "name": "marks", "mountPath": "/marks" },
            ],
        });
        if let Some(resources) = &self.spec.pod.resources {
            container["resources"] = value(resources);
        }
        container
    }

    /// The server's image.
    pub fn image(&self) -> String {
        let image = self.spec.image.clone().unwrap_or_default();
        let repository = image
            .repository
            .unwrap_or_else(|| self.settings.server_image.clone());
        match image.digest {
            Some(digest) => format!("{repository}@{digest}"),
            None => format!("{repository}:{}", self.version),
        }
    }

    fn arguments(&self, number: i64) -> Vec<String> {
        let names = self.names;
        let mut arguments = vec![
            format!("--name={}", names.member(number)),
            format!("--data-dir={VOLUME}/data"),
            format!("--listen-client-urls=http://0.0.0.0:{CLIENT_PORT}"),
            format!("--listen-peer-urls=http://0.0.0.0:{PEER_PORT}"),
            format!("--listen-metrics-urls=http://0.0.0.0:{METRICS_PORT}"),
            format!("--advertise-client-urls={}", names.client_url(number)),
            format!("--initial-advertise-peer-urls={}", names.peer_url(number)),
            format!("--max-learners={MAX_LEARNERS}"),
        ];
        let etcd = &self.spec.etcd;
        let level = match etcd.log_level {
            LogLevel::Debug => "debug",
            LogLevel::Info => "info",
            LogLevel::Warn => "warn",
            LogLevel::Error => "error",
        };
        arguments.push(format!("--log-level={level}"));
        let quota = etcd.quota_backend_bytes.as_ref().and_then(quantity::bytes);
        let numbers = [
            ("quota-backend-bytes", quota.map(|bytes| bytes.to_string())),
            (
                "heartbeat-interval",
                etcd.heartbeat_interval.map(|ms| ms.to_string()),
            ),
            (
                "election-timeout",
                etcd.election_timeout.map(|ms| ms.to_string()),
            ),
            (
                "max-request-bytes",
                etcd.max_request_bytes.map(|bytes| bytes.to_string()),
            ),
            (
                "max-txn-ops",
                etcd.max_txn_ops.map(|count| count.to_string()),
            ),
        ];
        for (flag, number) in numbers {
            arguments.extend(number.map(|number| format!("--{flag}={number}")));
        }
        let extra = etcd.extra_args.iter();
        arguments.extend(extra.map(|arg| format!("--{}={}", arg.name, arg.value)));
        arguments
    }
}

fn port(name: &str, port: i32) -> Value {
    json!({ "name": name, "port": port, "targetPort": name })
}

/// Notes on the object what it is to be, so that a label that the spec no longer has is noticed.
fn mark_wanted(object: &mut Value) {
    let hash = hash(object);
    let annotations = &mut object["metadata"]["annotations"];
    match annotations.as_object_mut() {
        Some(annotations) => {
            annotations.insert(WANTED.to_owned(), json!(hash));
        }
        None => *annotations = json!({ WANTED: hash }),
    }
}

/// Whether an object has all that is wanted of it; what the API server or others added is theirs.
pub fn covers<K: Serialize>(seen: &K, wanted: &K) -> bool {
    contains(&value(seen), &value(wanted))
}

fn contains(seen: &Value, wanted: &Value) -> bool {
    match (seen, wanted) {
        (Value::Object(seen), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            let absent = Value::Object(Map::new());
            contains(seen.get(key).unwrap_or(&absent), wanted)
        }),
        (Value::Array(seen), Value::Array(wanted)) => {
            seen.len() == wanted.len() && seen.iter().zip(wanted).all(|(a, b)| contains(a, b))
        }
        _ => seen == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::cluster::ExtraArg;

    fn settings() -> Settings {
        Settings {
            server_image: "registry.example/cairn".into(),
            version: "0.1.0".into(),
            cluster_domain: "cluster.local".into(),
        }
    }

    fn names() -> Names {
        Names {
            namespace: "prod".into(),
            cluster: "db".into(),
            uid: "uid-1".into(),
        }
    }

    fn with<T>(change: impl FnOnce(&mut EtcdClusterSpec), look: impl FnOnce(Wanted<'_>) -> T) -> T {
        let mut spec = EtcdClusterSpec::default();
        change(&mut spec);
        look(Wanted {
            names: &names(),
            spec: &spec,
            version: "0.1.0",
            settings: &settings(),
        })
    }

    #[test]
    fn pods_pass_the_restricted_standard() {
        let set = with(|_| {}, |wanted| wanted.set(0).unwrap());
        let pod = set.spec.unwrap().template.spec.unwrap();
        let security = pod.security_context.unwrap();
        assert_eq!(security.run_as_non_root, Some(true));
        assert_eq!(security.seccomp_profile.unwrap().type_, "RuntimeDefault");
        assert_eq!(security.fs_group, Some(USER));
        assert_eq!(pod.automount_service_account_token, Some(false));
        let container = pod.containers[0].security_context.clone().unwrap();
        assert_eq!(container.allow_privilege_escalation, Some(false));
        assert_eq!(container.read_only_root_filesystem, Some(true));
        assert_eq!(container.capabilities.unwrap().drop.unwrap(), ["ALL"]);
    }

    #[test]
    fn the_record_is_mounted_whole_and_may_be_missing() {
        let set = with(|_| {}, |wanted| wanted.set(2).unwrap());
        let spec = set.spec.unwrap();
        assert!(spec.volume_claim_templates.unwrap_or_default().is_empty());
        let pod = spec.template.spec.unwrap();
        let volumes = pod.volumes.unwrap();
        let record = volumes
            .iter()
            .find(|volume| volume.name == "record")
            .unwrap();
        let map = record.config_map.clone().unwrap();
        assert_eq!((map.name.as_str(), map.optional), ("db-2", Some(true)));
        let mounts = pod.containers[0].volume_mounts.clone().unwrap();
        assert!(mounts.iter().all(|mount| mount.sub_path.is_none()));
    }

    #[test]
    fn labels_of_users_never_win() {
        let set = with(
            |spec| {
                for (key, value) in [
                    (SERVING, "true"),
                    (crate::names::MEMBER, "7"),
                    ("team", "a"),
                ] {
                    spec.pod.labels.insert(key.into(), value.into());
                }
            },
            |wanted| wanted.set(1).unwrap(),
        );
        let labels = set.spec.unwrap().template.metadata.unwrap().labels.unwrap();
        assert_eq!(labels[crate::names::MEMBER], "1");
        assert_eq!(labels["team"], "a");
        assert!(!labels.contains_key(SERVING));
    }

    #[test]
    fn flags_follow_the_spec() {
        let arguments = with(
            |spec| {
                spec.etcd.quota_backend_bytes = Some(
                    k8s_openapi::apimachinery::pkg::api::resource::Quantity("2Gi".into()),
                );
                spec.etcd.extra_args = vec![ExtraArg {
                    name: "snapshot-count".into(),
                    value: "5000".into(),
                }];
            },
            |wanted| wanted.arguments(0),
        );
        for flag in [
            "--name=db-0",
            "--max-learners=2",
            "--quota-backend-bytes=2147483648",
            "--initial-advertise-peer-urls=http://db-0-0.db-peer.prod.svc:2380",
            "--snapshot-count=5000",
        ] {
            assert!(
                arguments.iter().any(|has| has == flag),
                "{flag}: {arguments:?}"
            );
        }
    }

    #[test]
    fn only_what_the_user_says_changes_the_template() {
        let plain = with(|_| {}, |wanted| wanted.template_hash());
        let bigger = with(|spec| spec.replicas = 5, |wanted| wanted.template_hash());
        let level = with(
            |spec| spec.etcd.log_level = LogLevel::Debug,
            |wanted| wanted.template_hash(),
        );
        assert_eq!(plain, bigger);
        assert_ne!(plain, level);
    }

    #[test]
    fn claims_outlive_the_cluster_unless_told_otherwise() {
        let kept = with(|_| {}, |wanted| wanted.volume(0).unwrap());
        assert!(
            kept.metadata
                .owner_references
                .unwrap_or_default()
                .is_empty()
        );
        let gone = with(
            |spec| spec.storage.retain.on_delete = RetainPolicy::Delete,
            |wanted| wanted.volume(0).unwrap(),
        );
        assert_eq!(gone.metadata.owner_references.unwrap()[0].uid, "uid-1");
    }

    #[test]
    fn a_label_that_left_the_spec_is_noticed() {
        let labelled = |label: bool| {
            with(
                |spec| {
                    if label {
                        spec.services.client.labels.insert("a".into(), "b".into());
                    }
                },
                |wanted| wanted.client_service().unwrap(),
            )
        };
        assert!(covers(&labelled(true), &labelled(true)));
        assert!(!covers(&labelled(true), &labelled(false)));
        let mut defaulted = labelled(false);
        defaulted.spec.as_mut().unwrap().cluster_ip = Some("10.0.0.1".into());
        assert!(covers(&defaulted, &labelled(false)));
    }
}
