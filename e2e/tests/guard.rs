//! The bootstrap guard, row by row, on the real process: what is on the disk, what the record says,
//! what the member does. A folder stands for the pod: its disk, the mounted record, the emptyDir.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use e2e::{
    Kind, Member, Process,
    client::{channel, eventually, get, put, status},
    free_port,
    process::{contents, page, wait_for_page},
};
use proto::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberRemoveRequest, cluster_client::ClusterClient,
};
use serde_json::{Value, json};
use wal::{Metadata, OsVfs, Wal};

const READY: &str = "ready to serve client requests";
const WAITING: &str = "waiting for the bootstrap record";
const CLUSTER: &str = "2f1a-cluster";

/// One member in its pod.
struct Pod {
    folder: tempfile::TempDir,
    name: &'static str,
    uid: &'static str,
    cluster: &'static str,
    client: u16,
    peer: u16,
    metrics: u16,
}

impl Pod {
    fn new(name: &'static str) -> Self {
        let pod = Self {
            folder: tempfile::tempdir().unwrap(),
            name,
            uid: "pod-1",
            cluster: CLUSTER,
            client: free_port(),
            peer: free_port(),
            metrics: free_port(),
        };
        fs::create_dir(pod.path("record")).unwrap();
        fs::create_dir(pod.path("marks")).unwrap();
        pod
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.path("disk/data")
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer)
    }

    fn pair(&self) -> String {
        format!("{}={}", self.name, self.peer_url())
    }

    /// A record for this member, as the operator writes it.
    fn record(&self, id: &str, action: &str, pod: Option<&str>, cluster: &[String]) -> Value {
        json!({
            "recordID": id,
            "clusterUID": CLUSTER,
            "member": self.name,
            "action": action,
            "memberPodUID": pod,
            "initialCluster": cluster.join(","),
            "token": "a-token",
        })
    }

    /// Mounts a record, all of it at once, as the kubelet does.
    fn mount(&self, record: &str) {
        let beside = self.path("record/beside");
        fs::write(&beside, record).unwrap();
        fs::rename(beside, self.path("record/record.json")).unwrap();
    }

    fn unmount(&self) {
        fs::remove_file(self.path("record/record.json")).unwrap();
    }

    /// Mounts a record by which this pod founds a cluster of its own.
    fn mount_new(&self, id: &str) {
        let record = self.record(id, "new", Some(self.uid), &[self.pair()]);
        self.mount(&record.to_string());
    }

    /// Starts the container.
    fn start(&self) -> Process {
        fs::create_dir_all(self.path("disk")).unwrap();
        fs::write(self.path("termination"), "").unwrap();
        let (client, peer) = (self.url(), self.peer_url());
        let arguments = [
            format!("--name={}", self.name),
            format!("--data-dir={}", self.data().display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--listen-metrics-urls=http://127.0.0.1:{}", self.metrics),
            format!(
                "--cairn-termination-log={}",
                self.path("termination").display()
            ),
        ];
        let path = |name| self.path(name).display().to_string();
        let (record, marks) = (path("record/record.json"), path("marks"));
        let env = [
            ("CAIRN_BOOTSTRAP_RECORD", record.as_str()),
            ("CAIRN_BOOTSTRAP_MARKS", marks.as_str()),
            ("CAIRN_POD_UID", self.uid),
            ("CAIRN_CLUSTER_UID", self.cluster),
        ];
        Process::cairn(&self.path("log"), &arguments, &env)
    }

    /// Starts the container and waits until it serves.
    fn serve(&self) -> Process {
        let mut process = self.start();
        process.wait_for(READY);
        process
    }

    /// The pod is replaced by another one: the disk stays, the emptyDir does not.
    fn replace(&mut self, uid: &'static str) {
        self.uid = uid;
        fs::remove_dir_all(self.path("marks")).unwrap();
        fs::create_dir(self.path("marks")).unwrap();
    }

    /// The member waits: alive, not ready, nothing on its disk is touched.
    fn assert_waits(&self, process: &mut Process, why: &str) {
        let before = contents(&self.path("disk"));
        process.wait_for(why);
        wait_for_page(self.metrics, "/readyz", 503, why);
        assert_eq!(
            page(self.metrics, "/livez"),
            Some((200, "ok\n".to_owned())),
            "{}",
            process.log()
        );
        let health = page(self.metrics, "/health").unwrap();
        assert_eq!(health.0, 503);
        assert!(health.1.contains(r#""health":"false""#), "{health:?}");
        assert!(process.is_running(), "{}", process.log());
        assert!(!process.log().contains(READY));
        assert_eq!(before, contents(&self.path("disk")));
    }

    /// The member ends, with a word for the operator, and touches nothing.
    fn assert_refuses(&self, code: i32, reason: &str, says: &str) {
        let before = contents(&self.path("disk"));
        let mut process = self.start();
        let status = process.wait_end();
        let log = process.log();
        assert_eq!(status.code(), Some(code), "{log}");
        assert!(log.contains(says), "{log}");
        let word = fs::read_to_string(self.path("termination")).unwrap();
        let word: Value = serde_json::from_str(&word).unwrap();
        assert_eq!(word["reason"], reason, "{word}");
        assert_eq!(word["exitCode"], code, "{word}");
        let message = word["message"].as_str().unwrap();
        assert!(message.contains(says), "{word}");
        assert_eq!(before, contents(&self.path("disk")));
    }

    fn identity(&self) -> Value {
        let text = fs::read_to_string(self.data().join("cairn-identity.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_disk_waits_for_a_record_of_its_own_and_begins_once() {
    let pod = Pod::new("db-1");
    let mut process = pod.start();
    process.wait_for(WAITING);
    pod.assert_waits(&mut process, "there is no record yet");
    // A word to end is heard while it waits.
    for signal in ["TERM", "INT"] {
        process.signal(signal);
        assert!(process.wait_end().success(), "{}", process.log());
        process = pod.start();
        process.wait_for(WAITING);
    }

    let cluster = [pod.pair()];
    let hold = pod.record("r1", "hold", None, &cluster);
    pod.mount(&hold.to_string());
    pod.assert_waits(&mut process, "the operator has not said yet how to begin");
    for other in [None, Some("pod-0")] {
        let record = pod.record("r2", "new", other, &cluster);
        pod.mount(&record.to_string());
        pod.assert_waits(&mut process, "the record is for another pod");
    }
    let mut stranger = pod.record("r3", "new", Some(pod.uid), &cluster);
    stranger["member"] = json!("db-2");
    pod.mount(&stranger.to_string());
    pod.assert_waits(&mut process, "the record is for member db-2");
    // What cannot be read or acted on.
    pod.mount("{\"recordID\":");
    pod.assert_waits(&mut process, "the record cannot be read");
    let mut unknown = pod.record("r4", "rebuild", Some(pod.uid), &cluster);
    pod.mount(&unknown.to_string());
    pod.assert_waits(&mut process, "unknown variant `rebuild`");
    unknown["action"] = json!("new");
    unknown["initialCluster"] = json!("db-2=http://127.0.0.1:1");
    pod.mount(&unknown.to_string());
    pod.assert_waits(&mut process, "the record cannot be acted on");

    // At last the one for this pod, with a field that a later version may add.
    let mut record = pod.record("r5", "new", Some(pod.uid), &cluster);
    record["later"] = json!({"a": [1]});
    pod.mount(&record.to_string());
    process.wait_for(READY);
    wait_for_page(pod.metrics, "/readyz", 200, "ok");
    put(&pod.url(), "k", "v").await;
    let id = status(&pod.url()).await.header.unwrap().cluster_id;
    let identity = pod.identity();
    assert_eq!(identity["clusterID"], format!("{id:x}"));
    assert_eq!(identity["clusterUID"], CLUSTER);
    assert_eq!(identity["member"], "db-1");
    assert_eq!(identity["lastRecordID"], "r5");
    assert!(pod.path("marks/r5").exists());
    drop(process);

    // The disk is lost in this pod's life: by hand, wholly, and all but the identity.
    fs::remove_dir_all(pod.data().join("member")).unwrap();
    pod.assert_refuses(64, "DataLost", "this member's data are gone");
    fs::remove_dir_all(pod.data()).unwrap();
    pod.assert_refuses(64, "DataLost", "the record says 'done'");
    assert!(!pod.data().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_run_without_a_record_and_with_any_but_hold() {
    let mut pod = Pod::new("db-1");
    pod.mount_new("r1");
    let mut process = pod.serve();
    put(&pod.url(), "k", "v").await;
    let id = status(&pod.url()).await.header.unwrap().cluster_id;
    // A power cycle while the operator is down: another pod, no ConfigMap, no marks.
    process.kill();
    pod.unmount();
    pod.replace("pod-2");
    let cluster = [pod.pair()];
    let records = [
        None,
        Some(pod.record("r1", "new", Some("pod-1"), &cluster).to_string()),
        Some(pod.record("r2", "new", Some("pod-2"), &cluster).to_string()),
        Some(pod.record("r3", "run", None, &[]).to_string()),
        Some("no record at all".to_owned()),
        Some("x".repeat(70 << 10)),
    ];
    for record in records {
        if let Some(record) = &record {
            pod.mount(record);
        }
        let mut process = pod.serve();
        let found = get(&pod.url(), "k", false).await;
        assert_eq!(found.as_deref(), Some("v"), "{record:?}");
        let now = status(&pod.url()).await.header.unwrap().cluster_id;
        assert_eq!(now, id, "{record:?}");
        process.kill();
    }
    // A record for this pod that would found anew is used up by the data that are there.
    assert!(pod.path("marks/r2").exists());

    // Held: alive, not ready, and let go again.
    let hold = pod.record("r4", "hold", None, &cluster).to_string();
    pod.mount(&hold);
    let mut process = pod.start();
    pod.assert_waits(&mut process, "the operator holds this member");
    pod.mount(&pod.record("r5", "run", None, &[]).to_string());
    process.wait_for(READY);
    assert_eq!(get(&pod.url(), "k", false).await.as_deref(), Some("v"));
    process.signal("TERM");
    assert!(process.wait_end().success());

    // What this version cannot do is not done half.
    for action in ["restore", "force-new"] {
        pod.mount(&pod.record("r6", action, Some("pod-2"), &[]).to_string());
        pod.assert_refuses(67, "NotSupported", action);
    }

    // Without a place for marks the data run all the same.
    pod.mount_new("r7");
    fs::remove_dir_all(pod.path("marks")).unwrap();
    let process = pod.serve();
    assert!(process.log().contains("could not mark the record as used"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_disk_that_should_hold_data_is_said_at_once() {
    let pod = Pod::new("db-1");
    for uid in [None, Some("pod-1"), Some("pod-0")] {
        pod.mount(&pod.record("r1", "run", uid, &[]).to_string());
        pod.assert_refuses(64, "DataLost", "the record says 'run'");
    }
    assert!(!pod.data().exists());
    // A folder that cannot be read is no empty one: nothing is said of lost data.
    fs::create_dir_all(pod.data().join("member")).unwrap();
    fs::write(pod.data().join("member/wal"), "a file").unwrap();
    let mut process = pod.start();
    assert_eq!(process.wait_end().code(), Some(1), "{}", process.log());
    assert!(process.log().contains("could not read the log's folder"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_place_for_the_mark_nothing_begins() {
    let pod = Pod::new("db-1");
    pod.mount_new("r1");
    fs::remove_dir_all(pod.path("marks")).unwrap();
    let mut process = pod.start();
    assert_eq!(process.wait_end().code(), Some(1), "{}", process.log());
    assert!(
        process.log().contains("nothing was touched"),
        "{}",
        process.log()
    );
    assert!(!pod.data().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_data_are_refused_and_named() {
    let mut pod = Pod::new("db-1");
    pod.mount_new("r1");
    let mut process = pod.serve();
    let id = status(&pod.url()).await.header.unwrap().cluster_id;
    process.kill();
    let whose = format!("member db-1 of the cluster with UID {CLUSTER} (cluster ID {id:x})");
    pod.name = "db-2";
    pod.assert_refuses(65, "ForeignData", &whose);
    pod.mount(&pod.record("r2", "run", None, &[]).to_string());
    pod.assert_refuses(65, "ForeignData", &whose);
    pod.name = "db-1";
    pod.cluster = "another-cluster";
    pod.assert_refuses(65, "ForeignData", &whose);
    pod.cluster = CLUSTER;
    let identity = pod.data().join("cairn-identity.json");
    fs::remove_file(&identity).unwrap();
    pod.assert_refuses(65, "ForeignData", "data without an identity file");
    // One that is damaged says nothing of whose data these are.
    fs::write(&identity, "{").unwrap();
    let mut process = pod.start();
    assert_eq!(process.wait_end().code(), Some(1));
    assert!(process.log().contains("Restore it, or remove this member"));
}

/// Adds a learner to the cluster behind `url`.
async fn add(url: &str, peer: &str) -> MemberAddResponse {
    let request = MemberAddRequest {
        peer_ur_ls: vec![peer.to_owned()],
        is_learner: true,
    };
    let mut client = ClusterClient::new(channel(url));
    let added = eventually("add", async || client.member_add(request.clone()).await).await;
    added.into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_joins_by_its_record_and_ends_when_it_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let seed = Member::new(Kind::Cairn, "seed");
    let pod = Pod::new("db-2");
    let cluster = [seed.pair(), pod.pair()];
    let record = pod.record("r1", "join", Some(pod.uid), &cluster);
    pod.mount(&record.to_string());
    // Nobody is there yet: it asks on.
    let mut process = pod.start();
    process.wait_for("nobody to join yet; asking again");
    wait_for_page(pod.metrics, "/readyz", 503, "could not ask");
    assert_eq!(page(pod.metrics, "/livez").unwrap().0, 200);
    assert!(!pod.data().join("member").exists());
    process.kill();
    let mut first = seed.launch(folder.path(), &[&seed], "new");
    first.wait_ready();
    put(first.url(), "k", "v").await;
    let id = add(first.url(), &pod.peer_url()).await.member.unwrap().id;
    let mut process = pod.serve();
    assert_eq!(get(&pod.url(), "k", true).await.as_deref(), Some("v"));
    assert!(pod.path("marks/r1").exists());
    // It comes back without a record, and with the same one.
    process.kill();
    let mut process = pod.serve();
    process.kill();
    pod.unmount();
    let mut process = pod.serve();
    let own = status(&pod.url()).await.header.unwrap().member_id;
    assert_eq!(own, id);

    let mut client = ClusterClient::new(channel(first.url()));
    let remove = MemberRemoveRequest { id };
    eventually("remove", async || client.member_remove(remove).await).await;
    let ended = process.wait_end();
    assert_eq!(ended.code(), Some(66), "{}", process.log());
    for _ in 0..2 {
        let word = fs::read_to_string(pod.path("termination")).unwrap();
        let word: Value = serde_json::from_str(&word).unwrap();
        assert_eq!(word["reason"], "MemberRemoved", "{word}");
        let mut process = pod.start();
        assert_eq!(process.wait_end().code(), Some(66), "{}", process.log());
    }
}

/// What a crash leaves behind it: the identity, and a log that holds nothing but whose it is.
fn leave_an_empty_log(pod: &Pod, join: bool, cluster: &[String], metadata: Metadata) {
    let identity = json!({
        "clusterUID": CLUSTER,
        "member": pod.name,
        "lastRecordID": "r1",
        "begun": {"join": join, "initialCluster": cluster.join(","), "token": "a-token"},
    });
    let member = pod.data().join("member");
    fs::create_dir_all(&member).unwrap();
    let file = pod.data().join("cairn-identity.json");
    fs::write(file, identity.to_string()).unwrap();
    let log: &Path = &member.join("wal");
    Wal::create(
        Arc::new(OsVfs::new()),
        log,
        metadata,
        wal::Options::default(),
    )
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_before_the_first_entry_goes_on_without_a_record() {
    // Whoever founds: the same flags make the same IDs, as a first life shows.
    let mut pod = Pod::new("db-1");
    pod.mount_new("r1");
    let mut process = pod.serve();
    let header = status(&pod.url()).await.header.unwrap();
    process.kill();
    fs::remove_dir_all(pod.path("disk")).unwrap();
    pod.unmount();
    pod.replace("pod-2");
    let metadata = Metadata {
        node_id: header.member_id,
        cluster_id: header.cluster_id,
    };
    leave_an_empty_log(&pod, false, &[pod.pair()], metadata);
    let process = pod.serve();
    put(&pod.url(), "k", "v").await;
    let now = status(&pod.url()).await.header.unwrap();
    assert_eq!(now.cluster_id, header.cluster_id);
    assert_eq!(now.member_id, header.member_id);

    // Whoever joins.
    let joining = Pod::new("db-2");
    let added = add(&pod.url(), &joining.peer_url()).await;
    let metadata = Metadata {
        node_id: added.member.unwrap().id,
        cluster_id: header.cluster_id,
    };
    let cluster = [pod.pair(), joining.pair()];
    leave_an_empty_log(&joining, true, &cluster, metadata);
    let second = joining.serve();
    assert_eq!(get(&joining.url(), "k", true).await.as_deref(), Some("v"));
    assert_eq!(
        status(&joining.url()).await.header.unwrap().member_id,
        metadata.node_id
    );
    drop((process, second));
}
