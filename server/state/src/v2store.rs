//! The members in the form of etcd's store of version 2, which travels with a snapshot's metadata.
//! etcd 3.7 and later do not read it; 3.6 ends without it.

use proto::raftpb;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    ids,
    machine::Published,
    members::{Member, go_json},
};

/// What etcd writes for "does not expire".
const NEVER: &str = "0001-01-01T00:00:00Z";
/// Changes that etcd's store of version 2 remembers; here it remembers none yet.
const HISTORY: usize = 1000;
/// The format of its file.
const FORMAT: u32 = 2;

#[derive(Serialize)]
struct RaftAttributes<'a> {
    #[serde(rename = "peerURLs")]
    peer_urls: &'a [String],
    #[serde(rename = "isLearner", skip_serializing_if = "std::ops::Not::not")]
    is_learner: bool,
}

#[derive(Serialize)]
struct Attributes<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(rename = "clientURLs")]
    client_urls: &'a [String],
}

/// The data of a snapshot of this state: members, those removed, and the cluster's version.
pub fn v2_store<S>(published: &Published<S>) -> Vec<u8> {
    let mut tree = Tree { index: 0 };
    let mut members = Map::new();
    let first = tree.index + 1;
    for member in published.members.iter() {
        let id = ids::to_text(member.id);
        members.insert(id.clone(), tree.member(&id, member));
    }
    let mut cluster = Map::new();
    if !members.is_empty() {
        cluster.insert("members".into(), folder("/0/members", first, members));
    }
    let mut removed = Map::new();
    let first = tree.index + 1;
    for id in published.members.removed() {
        let id = ids::to_text(id);
        let path = format!("/0/removed_members/{id}");
        removed.insert(id, tree.file(&path, ""));
    }
    if !removed.is_empty() {
        let removed = folder("/0/removed_members", first, removed);
        cluster.insert("removed_members".into(), removed);
    }
    if let Some(version) = published.cluster_version {
        let version = tree.file("/0/version", &version.to_string());
        cluster.insert("version".into(), version);
    }
    let mut root = Map::new();
    root.insert("0".into(), folder("/0", 0, cluster));
    root.insert("1".into(), folder("/1", 0, Map::new()));
    let store = json!({
        "Root": folder("/", 0, root),
        "WatcherHub": {"EventHistory": {
            "Queue": {
                "Events": vec![Value::Null; HISTORY],
                "Size": 0, "Front": 0, "Back": 0, "Capacity": HISTORY,
            },
            "StartIndex": 0,
            "LastIndex": 0,
        }},
        "CurrentIndex": tree.index,
        "Stats": {},
        "CurrentVersion": FORMAT,
    });
    go_json(&store).to_vec()
}

/// What raft is told of a state that is sent as a whole, or kept as one: its place in the log, the
/// membership there, and the members in the old form.
pub fn raft_snapshot<S>(published: &Published<S>) -> raftpb::Snapshot {
    raftpb::Snapshot {
        data: Some(v2_store(published).into()),
        metadata: Some(raftpb::SnapshotMetadata {
            conf_state: Some(published.members.conf_state()),
            index: Some(published.applied.index),
            term: Some(published.applied.term),
        }),
    }
}

/// The tree in the making: each change of it has an index.
struct Tree {
    index: u64,
}

impl Tree {
    fn member(&mut self, id: &str, member: &Member) -> Value {
        let path = format!("/0/members/{id}");
        let first = self.index + 1;
        let mut files = Map::new();
        let raft = RaftAttributes {
            peer_urls: &member.peer_urls,
            is_learner: member.is_learner,
        };
        let raft = self.file(&format!("{path}/raftAttributes"), &text(&raft));
        files.insert("raftAttributes".into(), raft);
        if !member.client_urls.is_empty() {
            let attributes = Attributes {
                name: &member.name,
                client_urls: &member.client_urls,
            };
            let attributes = self.file(&format!("{path}/attributes"), &text(&attributes));
            files.insert("attributes".into(), attributes);
        }
        folder(&path, first, files)
    }

    fn file(&mut self, path: &str, value: &str) -> Value {
        self.index += 1;
        node(path, self.index, value, Value::Null)
    }
}

fn folder(path: &str, index: u64, children: Map<String, Value>) -> Value {
    node(path, index, "", Value::Object(children))
}

fn node(path: &str, index: u64, value: &str, children: Value) -> Value {
    json!({
        "Path": path,
        "CreatedIndex": index,
        "ModifiedIndex": index,
        "ExpireTime": NEVER,
        "Value": value,
        "Children": children,
    })
}

fn text<T: Serialize>(value: &T) -> String {
    String::from_utf8_lossy(&go_json(value)).into_owned()
}
