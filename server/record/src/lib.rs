//! The bootstrap guard: which member may make or join a cluster, decided from what is on its disk
//! and what the operator wrote for it.
//!
//! An empty disk is the dangerous case: a member that founds a cluster because its disk was lost
//! makes a second, empty cluster under the name of the first. So under an operator a member with an
//! empty disk does nothing that one certain record, made for one certain pod, does not name.
//!
//! Owns: the [`Record`] (written by the operator, read by the server), the [`Identity`] (a file
//! beside the data), the exit codes, and the table, [`decide`].
//!
//! Must never know: files, Kubernetes' API, or how a cluster is founded.
//!
//! Start reading in [`decide`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

use serde::{Deserialize, Serialize};

/// The record's name in its ConfigMap, and so its file's name below the mount.
pub const RECORD_FILE: &str = "record.json";
/// The identity's file, in the data directory beside `member/`.
pub const IDENTITY_FILE: &str = "cairn-identity.json";

/// What a member is told to begin with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// Unique among all records that were ever written. It becomes a file's name: letters, digits,
    /// `-`, `_` and `.` only.
    #[serde(rename = "recordID")]
    pub record_id: String,
    /// UID of the object that the cluster belongs to.
    #[serde(rename = "clusterUID")]
    pub cluster_uid: String,
    /// Name of the member that it is for.
    pub member: String,
    /// What it may do with an empty disk.
    pub action: Action,
    /// The one pod that may do it.
    #[serde(
        rename = "memberPodUID",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub member_pod_uid: Option<String>,
    /// Value of `--initial-cluster`, for `new` and `join`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub initial_cluster: String,
    /// Value of `--initial-cluster-token`, for `new` and `join`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token: String,
}

/// What a member with an empty disk may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Nothing; with data neither.
    Hold,
    /// Found a cluster.
    New,
    /// Join the cluster that exists.
    Join,
    /// Nothing: its data must be there.
    Run,
    /// Begin from a snapshot. Not there yet: refused.
    Restore,
    /// Go on alone with what it has. Not there yet: refused.
    ForceNew,
}

/// Whose data a disk holds. Written and synced before the first data are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// UID of the object that the cluster belongs to.
    #[serde(rename = "clusterUID")]
    pub cluster_uid: String,
    /// Name of the member.
    pub member: String,
    /// etcd's cluster ID in hexadecimal, once the member knows it.
    #[serde(rename = "clusterID", default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// The last record that the member acted on.
    #[serde(
        rename = "lastRecordID",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub last_record_id: Option<String>,
}

/// What the member knows of itself from its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// UID of the pod.
    pub uid: String,
    /// UID of the object that the cluster belongs to.
    pub cluster_uid: String,
    /// Name of the member.
    pub member: String,
}

/// What is on the member's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Whether there is a log.
    pub data: bool,
    /// The identity file, if there is one.
    pub identity: Option<Identity>,
}

/// What a member does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It runs on its data. It must not found or join anything.
    Run,
    /// It begins as the record says: `new` or `join`.
    Begin,
    /// It stays alive and looks again; the text says for what it waits.
    Wait(String),
    /// It ends.
    Refuse(Refusal),
}

/// Why a member must not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The data of a member that had some are gone.
    #[error(
        "this member's data are gone: the record says '{record}', and the disk is empty. Put the \
         disk back, or remove this member from the cluster and add a new one"
    )]
    DataLost {
        /// The record's action.
        record: String,
    },
    /// The disk is somebody else's.
    #[error(
        "the disk holds {owner}; this is member {member} of the cluster with UID {cluster_uid}. \
         Nothing on it was touched: give the member its own disk"
    )]
    Foreign {
        /// Whose it is.
        owner: String,
        /// Who we are.
        member: String,
        /// Of which cluster.
        cluster_uid: String,
    },
    /// The cluster has removed this member for good.
    #[error(
        "the cluster has removed this member for good; its data are of no more use. Delete the \
         member, or add one under a new name"
    )]
    Removed,
    /// The record asks for what this version cannot do.
    #[error("the record says '{0}', which this version cannot do yet; nothing was touched")]
    NotThere(&'static str),
}

impl Refusal {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::DataLost { .. } => 64,
            Self::Foreign { .. } => 65,
            Self::Removed => 66,
            Self::NotThere(_) => 67,
        }
    }

    /// One word for conditions and termination messages.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::DataLost { .. } => "DataLost",
            Self::Foreign { .. } => "ForeignData",
            Self::Removed => "MemberRemoved",
            Self::NotThere(_) => "NotSupported",
        }
    }

    /// What the member leaves behind for the operator to read.
    pub fn termination(&self) -> Termination {
        Termination {
            reason: self.reason().to_owned(),
            message: self.to_string(),
            exit_code: self.exit_code(),
        }
    }
}

/// The termination message of a member that refused to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Termination {
    /// One word.
    pub reason: String,
    /// What to do.
    pub message: String,
    /// The process's exit code.
    pub exit_code: u8,
}

/// The table: what a member does with this disk and this record. `used` says whether the record
/// was already acted on in this pod's life.
pub fn decide(disk: &Disk, record: Option<&Record>, used: bool, pod: &Pod) -> Decision {
    if let Some(refusal) = foreign(disk, pod) {
        return Decision::Refuse(refusal);
    }
    // A record for somebody else is no record: the mount may lag behind, or be wrong.
    let record = record
        .filter(|record| record.cluster_uid == pod.cluster_uid && record.member == pod.member);
    match disk.data {
        true => with_data(disk, record),
        false => without_data(record, used, pod),
    }
}

fn foreign(disk: &Disk, pod: &Pod) -> Option<Refusal> {
    let owner = match &disk.identity {
        Some(identity)
            if identity.cluster_uid == pod.cluster_uid && identity.member == pod.member =>
        {
            return None;
        }
        Some(identity) => format!(
            "member {} of the cluster with UID {}{}",
            identity.member,
            identity.cluster_uid,
            match &identity.cluster_id {
                Some(id) => format!(" (cluster ID {id})"),
                None => String::new(),
            }
        ),
        // The identity is synced before the first data: data without one came from elsewhere.
        None if disk.data => "data without an identity file".to_owned(),
        None => return None,
    };
    Some(Refusal::Foreign {
        owner,
        member: pod.member.clone(),
        cluster_uid: pod.cluster_uid.clone(),
    })
}

fn with_data(disk: &Disk, record: Option<&Record>) -> Decision {
    let Some(record) = record else {
        return Decision::Run;
    };
    let done = disk.identity.as_ref().and_then(|own| own.last_record_id.as_ref());
    match record.action {
        Action::Hold => Decision::Wait("the operator holds this member".to_owned()),
        Action::Restore if done != Some(&record.record_id) => {
            Decision::Refuse(Refusal::NotThere("restore"))
        }
        Action::ForceNew if done != Some(&record.record_id) => {
            Decision::Refuse(Refusal::NotThere("force-new"))
        }
        _ => Decision::Run,
    }
}

fn without_data(record: Option<&Record>, used: bool, pod: &Pod) -> Decision {
    let Some(record) = record else {
        return Decision::Wait("the disk is empty and there is no record yet".to_owned());
    };
    let own = record.member_pod_uid.as_ref() == Some(&pod.uid);
    let lost = |record: &str| {
        Decision::Refuse(Refusal::DataLost {
            record: record.to_owned(),
        })
    };
    match record.action {
        Action::Hold => Decision::Wait("the operator has not said yet how to begin".to_owned()),
        Action::Run => lost("run"),
        Action::New | Action::Join if own && used => lost("done"),
        Action::New | Action::Join if own => Decision::Begin,
        Action::Restore if own => Decision::Refuse(Refusal::NotThere("restore")),
        Action::ForceNew if own => Decision::Refuse(Refusal::NotThere("force-new")),
        _ => Decision::Wait("the record is for another pod".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        Pod {
            uid: "pod".into(),
            cluster_uid: "cluster".into(),
            member: "db-0".into(),
        }
    }

    fn record(action: Action, pod: Option<&str>) -> Record {
        Record {
            record_id: "r1".into(),
            cluster_uid: "cluster".into(),
            member: "db-0".into(),
            action,
            member_pod_uid: pod.map(str::to_owned),
            initial_cluster: String::new(),
            token: String::new(),
        }
    }

    fn own() -> Identity {
        Identity {
            cluster_uid: "cluster".into(),
            member: "db-0".into(),
            cluster_id: Some("c1".into()),
            last_record_id: None,
        }
    }

    /// The decision in a word.
    fn word(disk: &Disk, record: Option<&Record>, used: bool) -> String {
        match decide(disk, record, used, &pod()) {
            Decision::Run => "run".into(),
            Decision::Begin => "begin".into(),
            Decision::Wait(_) => "wait".into(),
            Decision::Refuse(refusal) => refusal.exit_code().to_string(),
        }
    }

    #[test]
    fn own_data_run_whatever_the_record_says_unless_it_holds() {
        let disk = Disk {
            data: true,
            identity: Some(own()),
        };
        assert_eq!(word(&disk, None, false), "run");
        for (action, expected) in [
            (Action::New, "run"),
            (Action::Join, "run"),
            (Action::Run, "run"),
            (Action::Hold, "wait"),
            (Action::Restore, "67"),
            (Action::ForceNew, "67"),
        ] {
            for pod in [None, Some("pod"), Some("other")] {
                let record = record(action, pod);
                assert_eq!(word(&disk, Some(&record), false), expected, "{action:?}");
                assert_eq!(word(&disk, Some(&record), true), expected, "{action:?}");
            }
        }
    }

    #[test]
    fn what_was_done_once_is_not_done_again() {
        let mut identity = own();
        identity.last_record_id = Some("r1".into());
        let disk = Disk {
            data: true,
            identity: Some(identity),
        };
        for action in [Action::Restore, Action::ForceNew] {
            assert_eq!(word(&disk, Some(&record(action, Some("pod"))), false), "run");
        }
    }

    #[test]
    fn foreign_data_are_never_touched() {
        let mut strangers = vec![None];
        for change in [
            |identity: &mut Identity| identity.cluster_uid = "old".into(),
            |identity: &mut Identity| identity.member = "db-1".into(),
        ] {
            let mut identity = own();
            change(&mut identity);
            strangers.push(Some(identity));
        }
        for identity in strangers {
            let disk = Disk {
                data: true,
                identity,
            };
            for action in [Action::New, Action::Join, Action::Run, Action::Hold] {
                let record = record(action, Some("pod"));
                assert_eq!(word(&disk, Some(&record), false), "65", "{disk:?}");
            }
            assert_eq!(word(&disk, None, false), "65");
        }
    }

    #[test]
    fn an_empty_disk_begins_once_and_only_in_the_pod_that_is_named() {
        // An identity without data: the crash between the two.
        for identity in [None, Some(own())] {
            let disk = Disk {
                data: false,
                identity,
            };
            for action in [Action::New, Action::Join] {
                let named = record(action, Some("pod"));
                assert_eq!(word(&disk, Some(&named), false), "begin");
                assert_eq!(word(&disk, Some(&named), true), "64");
                for other in [None, Some("other")] {
                    let other = record(action, other);
                    assert_eq!(word(&disk, Some(&other), false), "wait");
                }
            }
        }
    }

    #[test]
    fn an_empty_disk_that_should_hold_data_is_said_at_once() {
        for pod in [None, Some("pod"), Some("other")] {
            let run = record(Action::Run, pod);
            assert_eq!(word(&Disk::default(), Some(&run), false), "64");
        }
    }

    #[test]
    fn an_empty_disk_waits_for_a_record_of_its_own() {
        assert_eq!(word(&Disk::default(), None, false), "wait");
        let hold = record(Action::Hold, Some("pod"));
        assert_eq!(word(&Disk::default(), Some(&hold), false), "wait");
        let mut strange = record(Action::New, Some("pod"));
        strange.cluster_uid = "other".into();
        assert_eq!(word(&Disk::default(), Some(&strange), false), "wait");
        let mut strange = record(Action::Run, Some("pod"));
        strange.member = "db-1".into();
        assert_eq!(word(&Disk::default(), Some(&strange), false), "wait");
    }

    #[test]
    fn the_record_is_the_json_that_both_sides_agreed_on() {
        let text = r#"{"recordID":"r1","clusterUID":"cluster","member":"db-0","action":"new","memberPodUID":"pod","initialCluster":"db-0=http://db-0:2380","token":"t"}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
        assert_eq!(record.action, Action::New);
        assert!(serde_json::from_str::<Record>(&text.replace("new", "old")).is_err());
    }
}
