//! What the operator answers in `EtcdCluster.status`. It is also the operator's only memory.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Names of the conditions, in the order in which they are shown. The first three are what helm
/// and GitOps tools wait for.
pub mod condition {
    /// The cluster is what the spec asks for and every member is healthy.
    pub const READY: &str = "Ready";
    /// The operator is at work, or waits for something that is under way.
    pub const RECONCILING: &str = "Reconciling";
    /// Nothing more will happen until somebody does what the message says.
    pub const STALLED: &str = "Stalled";
    /// A quorum of members answers linearizable requests.
    pub const AVAILABLE: &str = "Available";
    /// Every member of the cluster is healthy.
    pub const ALL_MEMBERS_READY: &str = "AllMembersReady";
    /// All members name the same cluster ID, the one that was latched.
    pub const CLUSTER_ID_CONSISTENT: &str = "ClusterIDConsistent";
    /// All of them, in order.
    pub const ALL: &[&str] = &[
        READY,
        RECONCILING,
        STALLED,
        AVAILABLE,
        ALL_MEMBERS_READY,
        CLUSTER_ID_CONSISTENT,
    ];
}

/// What is known of a cluster. Written by the operator only.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EtcdClusterStatus {
    /// The generation of the spec that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// In one word what goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Voting members.
    #[serde(default)]
    pub replicas: i32,
    /// Voting members that are healthy.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Both in one: healthy members of those asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// Selects the members' pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Version of the server, latched at creation when the spec has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// etcd's cluster ID in hexadecimal. Once set it never changes: a member that names another is not of this cluster.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "clusterID")]
    pub cluster_id: Option<String>,
    /// The member that leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// The largest database of a member, rounded up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub db_size: Option<String>,
    /// Client URLs: the service first, then each member.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// Number that the next new member gets. It only grows: names are never used again.
    #[serde(default)]
    pub next_member: i64,
    /// The members, lowest number first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberStatus>,
    /// What is being done, written before its first side effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// How the cluster is, in detail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// In one word what goes on.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The first member is being made.
    Creating,
    /// Members are being added.
    Growing,
    /// All is as the spec asks.
    Running,
    /// It serves, but a member is missing or unhealthy.
    Degraded,
    /// No quorum answers.
    Unavailable,
    /// Something that the user has to decide or undo stands in the way.
    Stalled,
    /// The spec says that the operator is to leave it alone.
    Paused,
    /// It is being deleted.
    Deleting,
}

/// One member.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Its name, also of its StatefulSet.
    pub name: String,
    /// etcd's member ID in hexadecimal, once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "memberID")]
    pub member_id: Option<String>,
    /// Its pod.
    pub pod_name: String,
    /// Its part in the cluster.
    pub role: Role,
    /// How it is.
    pub phase: MemberPhase,
    /// Version that it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Size of its database, rounded up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub db_size: Option<String>,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A member's part in the cluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It leads.
    Leader,
    /// It votes.
    Voter,
    /// It receives the log and has no vote.
    Learner,
    /// It is not in the cluster's member list.
    None,
}

/// How a member is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberPhase {
    /// Its objects are being made, or its pod starts for the first time.
    Provisioning,
    /// It catches up with the leader.
    Learner,
    /// It serves.
    Ready,
    /// It does not answer, or says that something is wrong.
    Unhealthy,
}

/// The operation in flight. At most one at a time.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// Unique among the operations of this cluster.
    pub id: String,
    /// What is done.
    pub r#type: OperationType,
    /// The number of the member that it is done to.
    pub member: i64,
    /// The step that is taken next.
    pub step: String,
    /// What of the spec was in force when it began.
    pub spec_hash: String,
    /// When it began.
    pub started_at: Time,
    /// How often the step was tried.
    pub attempt: i64,
    /// When it counts as overdue. It goes on, and a condition says so.
    pub deadline: Time,
}

/// What an operation does.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationType {
    /// Makes the first member and with it the cluster.
    Bootstrap,
    /// Adds a member as a learner and promotes it.
    Grow,
}

/// Conditions are a map by type, so that others may add their own.
fn conditions_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let item = <Condition as JsonSchema>::json_schema(generator);
    schemars::json_schema!({
        "type": "array",
        "items": item,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}
