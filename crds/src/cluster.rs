//! `EtcdCluster`: one etcd cluster as its user wants it.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{LocalObjectReference, ResourceRequirements, Toleration},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::EtcdClusterStatus;

/// Longest name of a cluster, in bytes: the names of its pods and services stay labels of DNS.
pub const MAX_NAME_BYTES: usize = 42;

/// Flags that the operator sets itself or that would take a member out of its hands: `extraArgs`
/// may not name them. The CEL rule of [`EtcdSettings::extra_args`] is made from this list.
pub const OPERATOR_FLAGS: &[&str] = &[
    "advertise-client-urls",
    "auto-tls",
    "cert-file",
    "client-cert-auth",
    "config-file",
    "data-dir",
    "discovery",
    "discovery-srv",
    "discovery-token",
    "election-timeout",
    "force-new-cluster",
    "heartbeat-interval",
    "initial-advertise-peer-urls",
    "initial-cluster",
    "initial-cluster-state",
    "initial-cluster-token",
    "key-file",
    "listen-client-http-urls",
    "listen-client-urls",
    "listen-metrics-urls",
    "listen-peer-urls",
    "log-level",
    "max-learners",
    "max-request-bytes",
    "max-txn-ops",
    "name",
    "peer-auto-tls",
    "peer-cert-file",
    "peer-client-cert-auth",
    "peer-key-file",
    "peer-trusted-ca-file",
    "quota-backend-bytes",
    "trusted-ca-file",
    "unsafe-no-fsync",
    "wal-dir",
];

/// One etcd cluster: its members, their disks and the services that lead to them.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "cairn.dev",
    version = "v1alpha1",
    kind = "EtcdCluster",
    plural = "etcdclusters",
    singular = "etcdcluster",
    shortname = "etcd",
    namespaced,
    status = "EtcdClusterStatus",
    derive = "PartialEq",
    doc = "One etcd cluster: its members, their disks and the services that lead to them.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    validation = Rule::new("self.metadata.name.size() <= 42").message("the name of an EtcdCluster has at most 42 characters, so that its pods' names fit into DNS"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("the name of an EtcdCluster starts with a letter and holds only a-z, 0-9 and '-', as its services are named after it"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.ready", description = "Members that serve, of those asked for"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Leader", type_ = "string", json_path = ".status.leader"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "DB Size", type_ = "string", json_path = ".status.dbSize", description = "The largest database of a member, rounded up"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct EtcdClusterSpec {
    /// Number of voting members: odd, 1 to 9.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 1, max = 9))]
    #[x_kube(validation = Rule::new("self % 2 == 1").message("replicas is odd: an even member adds cost and no tolerance of failures"))]
    pub replicas: i32,

    /// Version of the server, for example 0.1.0. Unset: the operator's own at creation, kept from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+\.[0-9]+\.[0-9]+([-+.][0-9A-Za-z.+-]*)?$"))]
    pub version: Option<String>,

    /// Where the server's image comes from, when it is not the operator's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,

    /// Settings of the server.
    #[serde(default)]
    pub etcd: EtcdSettings,

    /// The members' disks.
    #[serde(default)]
    pub storage: Storage,

    /// The members' pods.
    #[serde(default)]
    pub pod: PodSettings,

    /// The services that lead to the members.
    #[serde(default)]
    pub services: Services,

    /// Whether the operator leaves this cluster alone. Its pods go on running.
    #[serde(default)]
    pub paused: bool,
}

/// The server's image.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Repository without tag; the version is the tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub repository: Option<String>,
    /// Digest, used in place of the version's tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^sha256:[0-9a-f]{64}$"))]
    pub digest: Option<String>,
    /// When the kubelet pulls.
    #[serde(default)]
    pub pull_policy: PullPolicy,
    /// Secrets with the registry's credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub pull_secrets: Vec<LocalObjectReference>,
}

/// When the kubelet pulls an image.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// When the node does not have it.
    #[default]
    IfNotPresent,
    /// Never; the node has it.
    Never,
}

/// Settings of the server. What is unset is etcd's default.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.electionTimeout) ? self.electionTimeout : 1000) >= 5 * (has(self.heartbeatInterval) ? self.heartbeatInterval : 100)").message("electionTimeout (1000 when unset) is at least five times heartbeatInterval (100 when unset): the server does not start otherwise"))]
pub struct EtcdSettings {
    /// Size of the database above which writes are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("quantity(string(self)).isGreaterThan(quantity('0'))").message("quotaBackendBytes is a positive size such as 8Gi"))]
    pub quota_backend_bytes: Option<Quantity>,
    /// Time between heartbeats, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 10_000))]
    pub heartbeat_interval: Option<i64>,
    /// Time without a leader until an election, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 50, max = 50_000))]
    pub election_timeout: Option<i64>,
    /// Largest request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 104_857_600))]
    pub max_request_bytes: Option<i64>,
    /// Most operations in one transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_txn_ops: Option<i64>,
    /// What the server logs.
    #[serde(default)]
    pub log_level: LogLevel,
    /// Further flags, without the leading dashes. Those that the operator sets are refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), schema_with = "extra_args_schema")]
    pub extra_args: Vec<ExtraArg>,
}

/// How much the server logs.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What an operator of the cluster wants to know.
    #[default]
    Info,
    /// What may need attention.
    Warn,
    /// What failed.
    Error,
}

/// One flag of the server.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct ExtraArg {
    /// The flag's name without dashes.
    #[schemars(regex(pattern = "^[a-z][a-z0-9-]*$"), length(max = 64))]
    pub name: String,
    /// Its value.
    #[schemars(length(max = 1024))]
    pub value: String,
}

/// The list's schema with the one rule that is made from [`OPERATOR_FLAGS`].
fn extra_args_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let item = <ExtraArg as JsonSchema>::json_schema(generator);
    let denied = OPERATOR_FLAGS
        .iter()
        .map(|flag| format!("'{flag}'"))
        .collect::<Vec<_>>()
        .join(",");
    schemars::json_schema!({
        "type": "array",
        "items": item,
        "maxItems": 32,
        "x-kubernetes-validations": [
            {
                "rule": format!("self.all(arg, !(arg.name in [{denied}]) && !arg.name.startsWith('cairn-'))"),
                "message": "extraArgs may not name a flag that the operator sets itself",
            },
            {
                "rule": "self.all(arg, self.exists_one(other, other.name == arg.name))",
                "message": "extraArgs names a flag twice",
            },
        ],
    })
}

/// The members' disks.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)").message("storageClassName cannot be changed: the disks exist"))]
pub struct Storage {
    /// Size of each member's disk. It may grow, never shrink.
    #[serde(default = "default_size")]
    #[x_kube(
        validation = Rule::new("quantity(string(self)).isGreaterThan(quantity('0'))").message("size is a positive size such as 8Gi"),
        validation = Rule::new("quantity(string(self)).compareTo(quantity(string(oldSelf))) >= 0").message("storage can only grow: a disk cannot be made smaller without losing its data")
    )]
    pub size: Quantity,
    /// Class of the disks; unset: the Kubernetes cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// What becomes of disks that are no longer used.
    #[serde(default)]
    pub retain: Retain,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            size: default_size(),
            storage_class_name: None,
            retain: Retain::default(),
        }
    }
}

/// What becomes of disks that are no longer used.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Retain {
    /// When the EtcdCluster is deleted.
    #[serde(default)]
    pub on_delete: RetainPolicy,
}

/// Whether a disk stays.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetainPolicy {
    /// The disk and its data stay.
    #[default]
    Retain,
    /// The disk and its data go.
    Delete,
}

/// The members' pods.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PodSettings {
    /// Further labels; the operator's own win.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Further annotations; the operator's own win.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Requests and limits of the server's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Whether members share a node.
    #[serde(default)]
    pub anti_affinity: AntiAffinity,
    /// Labels that a member's node has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the members tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// Service account of the pods. Its token is never mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
    /// Seconds that a member has to hand over its leadership and stop.
    #[serde(default = "default_grace")]
    #[schemars(range(min = 5, max = 600))]
    pub termination_grace_period_seconds: i64,
}

impl Default for PodSettings {
    fn default() -> Self {
        Self {
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            resources: None,
            anti_affinity: AntiAffinity::default(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            priority_class_name: None,
            service_account_name: None,
            termination_grace_period_seconds: default_grace(),
        }
    }
}

/// Whether members share a node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AntiAffinity {
    /// On different nodes where possible.
    #[default]
    Preferred,
    /// On different nodes or not at all.
    Required,
    /// Wherever the scheduler likes.
    None,
}

/// The services that lead to the members.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Services {
    /// The service that clients use.
    #[serde(default)]
    pub client: ClientService,
}

/// The service that clients use.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClientService {
    /// How it is reached.
    #[serde(default)]
    pub r#type: ServiceType,
    /// Further labels; the operator's own win.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// How a service is reached.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceType {
    /// From inside the Kubernetes cluster.
    #[default]
    ClusterIP,
    /// Also through a port of every node.
    NodePort,
    /// Also through a load balancer.
    LoadBalancer,
}

impl ServiceType {
    /// The value that Kubernetes knows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIP => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

impl Default for EtcdClusterSpec {
    fn default() -> Self {
        Self {
            replicas: default_replicas(),
            version: None,
            image: None,
            etcd: EtcdSettings::default(),
            storage: Storage::default(),
            pod: PodSettings::default(),
            services: Services::default(),
            paused: false,
        }
    }
}

fn default_replicas() -> i32 {
    3
}

fn default_size() -> Quantity {
    Quantity("8Gi".into())
}

fn default_grace() -> i64 {
    30
}
