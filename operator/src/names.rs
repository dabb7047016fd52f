//! What everything is called: objects, labels, annotations, URLs.

use std::collections::BTreeMap;

use crds::EtcdCluster;
use kube::ResourceExt;

/// Label with the cluster's name, on every object.
pub const CLUSTER: &str = "cairn.dev/cluster";
/// Label with the UID of the cluster's object: a name can come back, a UID cannot.
pub const CLUSTER_UID: &str = "cairn.dev/cluster-uid";
/// Label with the member's number.
pub const MEMBER: &str = "cairn.dev/member";
/// Label of pods whose member votes: the client Service selects it.
pub const SERVING: &str = "cairn.dev/serving";
/// Label that tells members from Jobs.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// Value of [`COMPONENT`] for members.
pub const MEMBER_COMPONENT: &str = "member";
/// Annotation of a claim with etcd's cluster ID.
pub const CLUSTER_ID: &str = "cairn.dev/cluster-id";
/// Annotation of a StatefulSet: hash of what of the spec went into its pod.
pub const SPEC_HASH: &str = "cairn.dev/spec-hash";
/// Annotation of a record: UID of the claim that it was written for. Another claim is another
/// disk, and the record is not renewed for it.
pub const VOLUME_UID: &str = "cairn.dev/volume-uid";
/// Annotation of what users may add labels to: hash of what the operator wants it to be.
pub const WANTED: &str = "cairn.dev/wanted";
/// Annotation of a pod: the record that was written last. Its change makes the kubelet refresh the
/// pod's mounts at once and not after a minute.
pub const RECORD: &str = "cairn.dev/record";

/// Port for clients.
pub const CLIENT_PORT: i32 = 2379;
/// Port for other members.
pub const PEER_PORT: i32 = 2380;
/// Port for probes and scrapers.
pub const METRICS_PORT: i32 = 2381;

/// A cluster's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The namespace.
    pub namespace: String,
    /// The cluster's name.
    pub cluster: String,
    /// The UID of its object.
    pub uid: String,
}

impl Names {
    /// The names of a cluster. Objects that a server has stored have a namespace and a UID.
    pub fn of(cluster: &EtcdCluster) -> Self {
        Self {
            namespace: cluster.namespace().unwrap_or_default(),
            cluster: cluster.name_any(),
            uid: cluster.uid().unwrap_or_default(),
        }
    }

    /// A member; also its StatefulSet, claim and record.
    pub fn member(&self, number: i64) -> String {
        format!("{}-{number}", self.cluster)
    }

    /// The number of the member that a name belongs to.
    pub fn number(&self, member: &str) -> Option<i64> {
        let number = member.strip_prefix(&self.cluster)?.strip_prefix('-')?;
        let plain = number.bytes().all(|byte| byte.is_ascii_digit());
        number.parse().ok().filter(|_| plain)
    }

    /// A member's pod.
    pub fn pod(&self, number: i64) -> String {
        format!("{}-0", self.member(number))
    }

    /// The headless service that gives pods their names.
    pub fn peer_service(&self) -> String {
        format!("{}-peer", self.cluster)
    }

    /// The service for clients.
    pub fn client_service(&self) -> String {
        format!("{}-client", self.cluster)
    }

    /// The disruption budget.
    pub fn budget(&self) -> String {
        self.cluster.clone()
    }

    /// A pod's name in DNS.
    pub fn host(&self, number: i64) -> String {
        format!(
            "{}.{}.{}.svc",
            self.pod(number),
            self.peer_service(),
            self.namespace
        )
    }

    /// Where other members reach a member.
    pub fn peer_url(&self, number: i64) -> String {
        format!("http://{}:{PEER_PORT}", self.host(number))
    }

    /// Where clients reach a member.
    pub fn client_url(&self, number: i64) -> String {
        format!("http://{}:{CLIENT_PORT}", self.host(number))
    }

    /// The member whose peer URL this is.
    pub fn number_of_url(&self, url: &str) -> Option<i64> {
        let pod = url.strip_prefix("http://")?.split('.').next()?;
        let number = self.number(pod.strip_suffix("-0")?)?;
        (self.peer_url(number) == url).then_some(number)
    }

    /// Where clients reach the cluster, with the domain: it is also read outside of pods.
    pub fn service_url(&self, domain: &str) -> String {
        let service = self.client_service();
        format!(
            "http://{service}.{}.svc.{domain}:{CLIENT_PORT}",
            self.namespace
        )
    }

    /// Where clients reach one member, with the domain.
    pub fn member_url(&self, number: i64, domain: &str) -> String {
        format!("http://{}.{domain}:{CLIENT_PORT}", self.host(number))
    }

    /// The cluster's token: no other cluster has ever had it.
    pub fn token(&self) -> String {
        format!("{}-{}-{}", self.namespace, self.cluster, self.uid)
    }

    /// What selects all objects of the name, whatever their UID.
    pub fn selector(&self) -> String {
        format!("{CLUSTER}={}", self.cluster)
    }

    /// What selects the pods that serve clients.
    pub fn serving_selector(&self) -> BTreeMap<String, String> {
        let mut selector = self.pod_selector();
        selector.insert(SERVING.to_owned(), "true".to_owned());
        selector
    }

    /// What selects the members' pods.
    pub fn pod_selector(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (CLUSTER_UID.to_owned(), self.uid.clone()),
            (COMPONENT.to_owned(), MEMBER_COMPONENT.to_owned()),
        ])
    }

    /// The labels of every object.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let labels = [
            ("app.kubernetes.io/name", "etcd"),
            ("app.kubernetes.io/instance", &self.cluster),
            ("app.kubernetes.io/managed-by", "cairn-operator"),
            (CLUSTER, &self.cluster),
            (CLUSTER_UID, &self.uid),
        ];
        labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }

    /// The labels of a member's objects.
    pub fn member_labels(&self, number: i64) -> BTreeMap<String, String> {
        let mut labels = self.labels();
        labels.insert(COMPONENT.to_owned(), MEMBER_COMPONENT.to_owned());
        labels.insert(MEMBER.to_owned(), number.to_string());
        labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_from_names() {
        let names = Names {
            namespace: "prod".into(),
            cluster: "db".into(),
            uid: "u".into(),
        };
        for (name, number) in [
            ("db-0", Some(0)),
            ("db-12", Some(12)),
            ("db-12-0", None),
            ("db--1", None),
            ("db-+1", None),
            ("db-", None),
            ("db", None),
            ("dbs-1", None),
            ("other-1", None),
        ] {
            assert_eq!(names.number(name), number, "{name}");
        }
        assert_eq!(names.peer_url(3), "http://db-3-0.db-peer.prod.svc:2380");
        assert_eq!(names.number_of_url(&names.peer_url(3)), Some(3));
        for url in [
            "http://db-3-0.db-peer.test.svc:2380",
            "http://db-3.db-peer.prod.svc:2380",
        ] {
            assert_eq!(names.number_of_url(url), None, "{url}");
        }
    }
}
