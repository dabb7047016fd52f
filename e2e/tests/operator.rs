//! The operator on a real Kubernetes: one story from `helm install` to `helm uninstall`.
//!
//! A Kubernetes costs half a minute and two cores, so the story is one test. Each chapter is a
//! function that says what a user does and what must be true then.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::{Child, Stdio},
    time::Duration,
};

use e2e::{
    k8s::{self, Kubernetes, Store},
    target_folder, tool,
};
use serde_json::Value;

/// How long anything that ends well may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(240);
/// The user's namespace. Pod security "restricted" is enforced there.
const NS: &str = "store";
/// The pod with busybox and etcdctl.
const TOOLS: &str = "tools";
/// The operator's namespace.
const OPERATOR_NS: &str = "--namespace=cairn-system";
const OPERATOR_PODS: &str = "--selector=app.kubernetes.io/name=cairn-operator";
/// What decides which operator works.
const LEASE: [&str; 3] = ["lease", "cairn-operator", OPERATOR_NS];
/// The CustomResourceDefinition, and the annotation with its schema's generation.
const CRD: &str = "etcdclusters.cairn.dev";
const SCHEMA: &str = "cairn.dev/schema";

struct Story {
    k8s: Kubernetes,
}

#[test]
fn a_cluster_lives_on_a_real_kubernetes() {
    let k8s = Kubernetes::start(3, Store::Cairn).unwrap();
    let story = Story { k8s };
    story.install();
    story.refuse_what_cannot_work();
    story.create_and_use();
    story.one_operator_leads_and_hands_over();
    story.say_why_a_member_does_not_start();
    story.lose_the_leaders_pod_while_writing();
    story.wipe_the_status();
    story.drain_a_member();
    story.grow_while_the_operator_dies();
    story.ask_for_what_is_not_there_yet();
    story.lose_a_disk();
    story.delete_and_keep_the_data();
    story.refuse_an_older_crd();
    story.uninstall();
}

impl Story {
    fn install(&self) {
        let k8s = &self.k8s;
        let bin = target_folder();
        k8s.load_image(&k8s::cairn(&bin.join("cairn")).unwrap())
            .unwrap();
        k8s.load_image(&k8s::operator(&bin.join("cairn-operator")).unwrap())
            .unwrap();
        let tools = k8s
            .load_image(&k8s::tools(&tool("etcdctl")).unwrap())
            .unwrap();
        let chart = chart("cairn-operator");
        k8s.helm(&[
            "install",
            "cairn-operator",
            &chart,
            OPERATOR_NS,
            "--create-namespace",
            "--set=image.registry=cairn.test,serverImage.registry=cairn.test,replicas=2",
            "--wait",
            "--timeout=4m",
        ])
        .unwrap();
        k8s.must(&["create", "namespace", NS]).unwrap();
        let enforce = "pod-security.kubernetes.io/enforce=restricted";
        k8s.must(&["label", "namespace", NS, enforce]).unwrap();
        k8s.apply(&tools_pod(&tools)).unwrap();
        k8s.wait_pod(NS, TOOLS, LIMIT).unwrap();
    }

    /// The API server itself refuses what can never work, with a reason.
    fn refuse_what_cannot_work(&self) {
        for (spec, reason) in [
            ("{replicas: 2}", "replicas is odd"),
            ("{replicas: 11}", "should be less than or equal to 9"),
            ("{replicas: 0}", "should be greater than or equal to 1"),
            ("{storage: {size: '-1Gi'}}", "positive size"),
            (
                "{etcd: {extraArgs: [{name: data-dir, value: /tmp}]}}",
                "a flag that the operator sets itself",
            ),
            (
                "{etcd: {heartbeatInterval: 300}}",
                "at least five times heartbeatInterval",
            ),
            ("{version: latest}", "spec.version"),
            ("{replica: 3}", "unknown field"),
        ] {
            let refused = self.try_apply(&cluster("wrong", spec)).unwrap_err();
            assert!(refused.contains(reason), "{spec}: {refused}");
        }
        let long = "a".repeat(43);
        let refused = self.try_apply(&cluster(&long, "{}")).unwrap_err();
        assert!(refused.contains("at most 42"), "{refused}");
        // Only the server knows all of its flags: looked at in a later chapter.
        let flag = "{replicas: 1, storage: {size: 1Gi, retain: {onDelete: Delete}}, \
                    etcd: {extraArgs: [{name: frobnicate, value: 'yes'}]}}";
        self.k8s.apply(&cluster("typo", flag)).unwrap();
    }

    /// By the other chart, whose `--wait` ends when the cluster is Ready.
    fn create_and_use(&self) {
        self.k8s
            .helm(&[
                "install",
                "db",
                &chart("cairn-cluster"),
                "--namespace",
                NS,
                "--set=spec.replicas=1,spec.storage.size=1Gi,test.image.registry=cairn.test",
                "--wait",
                "--timeout=4m",
            ])
            .unwrap();
        self.wait_ready("db", 1);
        self.etcdctl("db", &["put", "greeting", "hello"]);
        // Growing from one to three, as a user would with kubectl; an even number is refused.
        let scale = ["scale", "etcd/db", "--namespace", NS];
        let even = self.k8s.kubectl(&[&scale[..], &["--replicas=2"]].concat());
        assert!(!even.unwrap().ok, "kubectl scale took an even number");
        let odd = [&scale[..], &["--replicas=3"]].concat();
        self.k8s.must(&odd).unwrap();
        self.wait_ready("db", 3);
        assert_eq!(
            self.etcdctl("db", &["get", "greeting", "--print-value-only"]),
            "hello\n"
        );
        let list = self.etcdctl("db", &["member", "list"]);
        assert_eq!(list.lines().count(), 3, "{list}");
        let shown = self
            .k8s
            .must(&["get", "etcd", "db", "--namespace", NS])
            .unwrap();
        for column in [
            "READY", "STATUS", "LEADER", "VERSION", "DB SIZE", "3/3", "Running",
        ] {
            assert!(shown.contains(column), "{column} is missing:\n{shown}");
        }
        let budget = self.k8s.get(&["pdb", "db", "--namespace", NS]).unwrap();
        assert_eq!(budget["spec"]["minAvailable"], 2);
        // Members stand on different nodes.
        let pods = self.pods("db");
        let nodes: BTreeSet<String> = pods
            .values()
            .map(|pod| text(&pod["spec"]["nodeName"]))
            .collect();
        assert_eq!(nodes.len(), 3, "{nodes:?}");
        self.helm_test("cairn-operator", "cairn-system");
        self.helm_test("db", NS);
    }

    /// Its pod writes, reads and deletes a key; helm shows what it said.
    fn helm_test(&self, release: &str, namespace: &str) {
        let words = ["test", release, "--namespace", namespace, "--timeout=4m"];
        let output = self.k8s.program("helm").args(words).output().unwrap();
        let [said, log] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        let passed = output.status.success() && said.contains("Phase:          Succeeded");
        let done = "put a key, read it back and deleted it";
        assert!(passed && log.contains(done), "{release}:\n{said}\n{log}");
    }

    /// Of two operators the lease's holder works. Told to end it gives the lease back, and another
    /// goes on.
    fn one_operator_leads_and_hands_over(&self) {
        let held = self.k8s.get(&LEASE).unwrap();
        let leader = text(&held["spec"]["holderIdentity"]);
        let pods = self.operator_pods();
        assert_eq!(pods.len(), 2, "{pods:?}");
        assert!(pods.contains_key(&leader), "{leader} leads: {pods:?}");
        for (name, pod) in &pods {
            let metrics = self.operator_metrics(pod);
            let works = metrics.contains("cairn_operator_reconciles_total{");
            let leads = metrics.contains("cairn_operator_leader 1\n");
            assert_eq!(
                (leads, works),
                (name == &leader, name == &leader),
                "{metrics}"
            );
            // Who waits changes nothing; a lease that another was faster to take is a conflict.
            let changes = metrics
                .lines()
                .filter(|line| line.starts_with("cairn_operator_api_requests_total{"))
                .filter(|line| !line.contains("method=\"GET\"") && !line.contains("code=\"409\""));
            assert_eq!(changes.count() > 0, name == &leader, "{name}: {metrics}");
        }

        let holders = Watch::holders(&self.k8s);
        self.k8s
            .wait_for("the lease to be watched", LIMIT, || {
                Ok(holders.seen().contains(&leader).then_some(()))
            })
            .unwrap();
        self.k8s
            .must(&["delete", "pod", &leader, OPERATOR_NS, "--wait=false"])
            .unwrap();
        let label = r#"{"spec":{"services":{"client":{"labels":{"handed":"over"}}}}}"#;
        self.patch("db", label);
        let next = self
            .k8s
            .wait_for("another operator to take the lease", LIMIT, || {
                let held = self.k8s.get(&LEASE)?;
                let holder = text(&held["spec"]["holderIdentity"]);
                Ok((holder != leader && !holder.is_empty()).then_some(holder))
            })
            .unwrap();
        // It did not run out: between the two nobody held it.
        self.k8s
            .wait_for("the watch to see it", LIMIT, || {
                Ok(holders.seen().contains(&next).then_some(()))
            })
            .unwrap();
        let mut seen = holders.seen();
        seen.dedup();
        let given_back = [leader.clone(), String::new(), next.clone()];
        assert!(
            seen.windows(3).any(|three| three == given_back),
            "not given back: {seen:?}"
        );
        let now = self.k8s.get(&LEASE).unwrap();
        let turns = |lease: &Value| lease["spec"]["leaseTransitions"].as_i64().unwrap();
        assert_eq!(turns(&now), turns(&held) + 1, "{now}");
        self.k8s
            .wait_for("the new leader to go on", LIMIT, || {
                let service = self.k8s.get(&["service", "db-client", "--namespace", NS])?;
                Ok((service["metadata"]["labels"]["handed"] == "over").then_some(()))
            })
            .unwrap();
        let metrics = self.operator_metrics(&self.operator_pods()[&next]);
        assert!(metrics.contains("cairn_operator_leader 1\n"), "{metrics}");
        self.wait_ready("db", 3);
    }

    /// A flag that the server does not know: the condition has the server's own word for it.
    fn say_why_a_member_does_not_start(&self) {
        let message = self.wait_condition("typo", "Stalled", "True");
        for word in ["typo-0", "not defined: -frobnicate", "spec.etcd.extraArgs"] {
            assert!(message.contains(word), "no {word:?} in: {message}");
        }
        self.k8s
            .must(&["delete", "etcd", "typo", "--namespace", NS])
            .unwrap();
        self.wait_no_pods("typo");
    }

    fn lose_the_leaders_pod_while_writing(&self) {
        let before = self.pods("db");
        let ids = self.member_ids("db");
        self.start_writing("db");
        self.wait_written(50);
        let leader = text(&self.status("db")["leader"]);
        let pod = format!("{leader}-0");
        self.k8s
            .must(&["delete", "pod", &pod, "--namespace", NS, "--wait=false"])
            .unwrap();
        self.k8s
            .wait_for("the pod to come back", LIMIT, || {
                let pods = self.pods("db");
                let back = pods.get(&pod);
                Ok(back
                    .filter(|new| new["metadata"]["uid"] != before[&pod]["metadata"]["uid"])
                    .map(|_| ()))
            })
            .unwrap();
        self.wait_ready("db", 3);
        let written = self.stop_writing();
        assert!(written.len() > 50, "only {} writes", written.len());
        self.check_written("db", &written);
        assert_eq!(self.member_ids("db"), ids, "the members changed");
        for (name, pod) in self.pods("db") {
            if name != format!("{leader}-0") {
                assert_eq!(uid(&pod), uid(&before[&name]), "{name} was restarted");
            }
        }
    }

    /// The operator has no memory but what it can see: without its status it begins nothing anew.
    fn wipe_the_status(&self) {
        let before = self.pods("db");
        let id = text(&self.status("db")["clusterID"]);
        let ids = self.member_ids("db");
        self.k8s
            .must(&[
                "patch",
                "etcd",
                "db",
                "--namespace",
                NS,
                "--subresource=status",
                "--type=json",
                "--patch",
                r#"[{"op":"remove","path":"/status"}]"#,
            ])
            .unwrap();
        self.wait_ready("db", 3);
        assert_eq!(text(&self.status("db")["clusterID"]), id);
        assert_eq!(self.member_ids("db"), ids);
        let after = self.pods("db");
        assert_eq!(before.len(), after.len());
        for (name, pod) in &before {
            assert_eq!(uid(pod), uid(&after[name]), "{name} was restarted");
        }
    }

    /// One member may be evicted; while it is away a second one may not.
    fn drain_a_member(&self) {
        let pods = self.pods("db");
        let mut nodes = pods.values().map(|pod| text(&pod["spec"]["nodeName"]));
        let (first, second) = (nodes.next().unwrap(), nodes.next().unwrap());
        let drain = |node: &str, limit: &str| {
            let selector = "--pod-selector=app.kubernetes.io/component=member";
            let words = [
                "drain",
                node,
                selector,
                "--ignore-daemonsets",
                "--delete-emptydir-data",
                limit,
            ];
            self.k8s.kubectl(&words).unwrap()
        };
        // The disk is local: the evicted member waits for its node.
        let drained = drain(&first, "--timeout=120s");
        assert!(drained.ok, "{}", drained.stderr);
        let refused = drain(&second, "--timeout=15s");
        assert!(!refused.ok, "a second member was evicted");
        assert!(
            refused.stderr.contains("disruption budget"),
            "{}",
            refused.stderr
        );
        self.etcdctl("db", &["put", "drained", "yes"]);
        for node in [&first, &second] {
            self.k8s.must(&["uncordon", node]).unwrap();
        }
        self.wait_ready("db", 3);
    }

    fn grow_while_the_operator_dies(&self) {
        let patch = [
            "patch",
            "etcd",
            "db",
            "--namespace",
            NS,
            "--type=merge",
            "--patch",
        ];
        let patch = [&patch[..], &[r#"{"spec":{"replicas":5}}"#]].concat();
        self.k8s.must(&patch).unwrap();
        // It dies in the middle, again and again, and has nothing to remember.
        for members in [4, 5] {
            self.k8s
                .wait_for("another member", LIMIT, || {
                    Ok((self.pods("db").len() >= members).then_some(()))
                })
                .unwrap();
            self.k8s
                .must(&[
                    "delete",
                    "pod",
                    OPERATOR_NS,
                    "--force",
                    "--grace-period=0",
                    OPERATOR_PODS,
                ])
                .unwrap();
        }
        self.wait_ready("db", 5);
        let list = self.etcdctl("db", &["member", "list"]);
        assert_eq!(list.lines().count(), 5, "{list}");
        assert!(!list.contains(", true"), "a learner is left:\n{list}");
        let hashes = self.etcdctl(
            "db",
            &["endpoint", "hashkv", "--cluster", "--write-out=json"],
        );
        let hashes: Value = serde_json::from_str(&hashes).unwrap();
        let hashes: BTreeSet<String> = hashes
            .as_array()
            .unwrap()
            .iter()
            .map(|member| member["HashKV"]["hash"].to_string())
            .collect();
        assert_eq!(hashes.len(), 1, "members differ: {hashes:?}");
    }

    fn ask_for_what_is_not_there_yet(&self) {
        let before = self.pods("db");
        self.patch("db", r#"{"spec":{"replicas":3}}"#);
        let message = self.wait_condition("db", "Stalled", "True");
        assert!(message.contains("set spec.replicas to 5"), "{message}");
        self.etcdctl("db", &["put", "stalled", "and serving"]);
        self.patch("db", r#"{"spec":{"replicas":5}}"#);
        self.wait_ready("db", 5);
        let shrunk = self.k8s.kubectl(&[
            "patch",
            "etcd",
            "db",
            "--namespace",
            NS,
            "--type=merge",
            "--patch",
            r#"{"spec":{"storage":{"size":"512Mi"}}}"#,
        ]);
        assert!(shrunk.unwrap().stderr.contains("storage can only grow"));
        for (name, pod) in self.pods("db") {
            assert_eq!(uid(&pod), uid(&before[&name]), "{name} was restarted");
        }
    }

    /// Data that are gone are said to be gone; never does the member begin anew.
    fn lose_a_disk(&self) {
        let ids = self.member_ids("db");
        let victim = self.a_follower("db");
        let claim = self.k8s.get(&["pvc", &victim, "--namespace", NS]).unwrap();
        let volume = text(&claim["spec"]["volumeName"]);
        let volume = self.k8s.get(&["pv", &volume]).unwrap();
        let path = text(&volume["spec"]["local"]["path"]);
        let wiped = self
            .k8s
            .exec(&["find", &path, "-mindepth", "1", "-delete"])
            .unwrap();
        assert!(wiped.ok, "{}", wiped.stderr);
        let pod = format!("{victim}-0");
        self.k8s
            .must(&["delete", "pod", &pod, "--namespace", NS])
            .unwrap();
        self.k8s
            .wait_for("the lost data to be told", LIMIT, || {
                let status = self.status("db");
                let members = status["members"].as_array().cloned().unwrap_or_default();
                let told = members.iter().any(|member| {
                    member["name"] == victim.as_str()
                        && text(&member["message"]).contains("data are gone")
                });
                Ok(told.then_some(()))
            })
            .unwrap();
        assert_eq!(self.member_ids("db"), ids, "a member began anew");
        self.etcdctl("db", &["put", "four", "serve"]);
    }

    fn delete_and_keep_the_data(&self) {
        let kept = uid(&self.object("db"));
        self.k8s
            .helm(&["uninstall", "db", "--namespace", NS, "--wait"])
            .unwrap();
        self.wait_no_pods("db");
        assert_eq!(self.claims(&kept), 5);
        // The same name again is not the same cluster: it founds nothing beside the old disks.
        let yaml = cluster("db", "{replicas: 1, storage: {size: 1Gi}}");
        self.k8s.apply(&yaml).unwrap();
        let message = self.wait_condition("db", "Stalled", "True");
        assert!(message.contains(&kept), "{message}");
        assert!(self.pods("db").is_empty());
        self.k8s
            .must(&["delete", "etcd", "db", "--namespace", NS])
            .unwrap();
    }

    /// An operator under a CRD that lacks what it needs says so and leaves everything alone. With
    /// the right one it goes on.
    fn refuse_an_older_crd(&self) {
        let crd = self.k8s.get(&["crd", CRD]).unwrap();
        let own = text(&crd["metadata"]["annotations"][SCHEMA]);
        self.annotate_crd("0");
        self.k8s
            .must(&["delete", "pod", OPERATOR_NS, OPERATOR_PODS])
            .unwrap();
        let yaml = cluster(
            "short",
            "{replicas: 1, storage: {size: 1Gi, retain: {onDelete: Delete}}}",
        );
        self.k8s.apply(&yaml).unwrap();
        let refusal = format!("has schema 0 and this operator needs {own}");
        self.k8s
            .wait_for("both operators to refuse", LIMIT, || {
                let pods = self.operator_pods();
                let refused = pods.values().filter(|pod| {
                    let container = &pod["status"]["containerStatuses"][0];
                    ["state", "lastState"].iter().any(|state| {
                        let ended = &container[*state]["terminated"];
                        ended["exitCode"] == 1 && text(&ended["message"]).contains(&refusal)
                    })
                });
                Ok((refused.count() == 2).then_some(()))
            })
            .unwrap();
        let untouched = self.object("short");
        assert!(untouched["status"]["conditions"].is_null(), "{untouched}");
        let sets = self.k8s.get(&["statefulset", "--namespace", NS]).unwrap();
        assert_eq!(sets["items"], Value::Array(Vec::new()));

        self.annotate_crd(&own);
        // So that nobody waits for the kubelet's next try.
        self.k8s
            .must(&["delete", "pod", OPERATOR_NS, OPERATOR_PODS])
            .unwrap();
        self.wait_ready("short", 1);
        let gone = uid(&self.object("short"));
        self.k8s
            .must(&["delete", "etcd", "short", "--namespace", NS])
            .unwrap();
        self.k8s
            .wait_for("the disks to go", LIMIT, || {
                Ok((self.claims(&gone) == 0).then_some(()))
            })
            .unwrap();
    }

    fn uninstall(&self) {
        self.k8s
            .helm(&["uninstall", "cairn-operator", OPERATOR_NS, "--wait"])
            .unwrap();
        self.k8s.must(&["get", "crd", CRD]).unwrap();
    }
}

/// What the chapters are told with.
impl Story {
    fn try_apply(&self, yaml: &str) -> Result<(), String> {
        self.k8s.apply(yaml).map_err(|error| format!("{error:#}"))
    }

    fn object(&self, name: &str) -> Value {
        self.k8s.get(&["etcd", name, "--namespace", NS]).unwrap()
    }

    fn status(&self, name: &str) -> Value {
        self.object(name)["status"].clone()
    }

    fn patch(&self, name: &str, patch: &str) {
        self.k8s
            .must(&[
                "patch",
                "etcd",
                name,
                "--namespace",
                NS,
                "--type=merge",
                "--patch",
                patch,
            ])
            .unwrap();
    }

    /// The condition's message, once it has that value and answers the newest spec.
    fn wait_condition(&self, name: &str, kind: &str, value: &str) -> String {
        let what = format!("{name}: {kind}={value}");
        let mut last = Value::Null;
        let found = self.k8s.wait_for(&what, LIMIT, || {
            last = self.object(name);
            let generation = &last["metadata"]["generation"];
            let conditions = last["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            Ok(conditions
                .iter()
                .find(|condition| {
                    condition["type"] == kind
                        && condition["status"] == value
                        && condition["observedGeneration"] == *generation
                })
                .map(|condition| text(&condition["message"])))
        });
        found.unwrap_or_else(|error| {
            panic!("{error:#}\n{}\n{}", last["status"], self.operator_log())
        })
    }

    fn wait_ready(&self, name: &str, members: i64) {
        self.wait_condition(name, "Ready", "True");
        let status = self.status(name);
        assert_eq!(status["readyReplicas"], members, "{status}");
        assert_eq!(status["ready"], format!("{members}/{members}"), "{status}");
    }

    fn operator_log(&self) -> String {
        let log = self
            .k8s
            .kubectl(&["logs", OPERATOR_NS, OPERATOR_PODS, "--tail=40"]);
        log.map(|log| log.stdout).unwrap_or_default()
    }

    /// The operator's pods that are not about to go, by name. The pod of its helm test is none.
    fn operator_pods(&self) -> BTreeMap<String, Value> {
        let selector = format!("{OPERATOR_PODS},app.kubernetes.io/component=operator");
        self.lasting(&[OPERATOR_NS, &selector])
    }

    fn operator_metrics(&self, pod: &Value) -> String {
        let address = text(&pod["status"]["podIP"]);
        self.shell(&format!("wget -q -O - http://{address}:8080/metrics"))
    }

    fn annotate_crd(&self, schema: &str) {
        let annotation = format!("{SCHEMA}={schema}");
        self.k8s
            .must(&["annotate", "crd", CRD, "--overwrite", &annotation])
            .unwrap();
    }

    /// How many claims bear a cluster's UID.
    fn claims(&self, uid: &str) -> usize {
        let selector = format!("cairn.dev/cluster-uid={uid}");
        let found = self
            .k8s
            .get(&["pvc", "--namespace", NS, "--selector", &selector]);
        found.unwrap()["items"].as_array().unwrap().len()
    }

    /// The members' pods that are not about to go, by name.
    fn pods(&self, cluster: &str) -> BTreeMap<String, Value> {
        let selector = format!("cairn.dev/cluster={cluster},app.kubernetes.io/component=member");
        self.lasting(&["--namespace", NS, "--selector", &selector])
    }

    fn lasting(&self, which: &[&str]) -> BTreeMap<String, Value> {
        let pods = self.k8s.get(&[&["pods"], which].concat()).unwrap();
        let pods = pods["items"].as_array().unwrap().iter();
        pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .map(|pod| (text(&pod["metadata"]["name"]), pod.clone()))
            .collect()
    }

    fn wait_no_pods(&self, cluster: &str) {
        let selector = format!("cairn.dev/cluster={cluster},app.kubernetes.io/component=member");
        self.k8s
            .wait_for("the pods to go", LIMIT, || {
                let pods = self
                    .k8s
                    .get(&["pods", "--namespace", NS, "--selector", &selector])?;
                Ok(pods["items"]
                    .as_array()
                    .is_some_and(Vec::is_empty)
                    .then_some(()))
            })
            .unwrap();
    }

    fn a_follower(&self, cluster: &str) -> String {
        let status = self.status(cluster);
        let members = status["members"].as_array().unwrap().iter();
        let mut followers = members.filter(|member| member["role"] == "Voter");
        text(&followers.next().unwrap()["name"])
    }

    fn member_ids(&self, cluster: &str) -> BTreeSet<String> {
        let list = self.etcdctl(cluster, &["member", "list"]);
        list.lines()
            .map(|line| line.split(',').next().unwrap().to_owned())
            .collect()
    }

    /// etcdctl in a pod, through the client Service. A connection may meet a pod that just went.
    fn etcdctl(&self, cluster: &str, words: &[&str]) -> String {
        let endpoint = format!("http://{cluster}-client.{NS}.svc:2379");
        let command = [
            &[
                "exec",
                "--namespace",
                NS,
                TOOLS,
                "--",
                "etcdctl",
                "--endpoints",
                &endpoint,
                "--command-timeout=20s",
            ][..],
            words,
        ]
        .concat();
        let mut failed = String::new();
        let answer = self.k8s.wait_for(&format!("etcdctl {words:?}"), LIMIT, || {
            let output = self.k8s.kubectl(&command)?;
            failed.clone_from(&output.stderr);
            Ok(output.ok.then_some(output.stdout))
        });
        answer.unwrap_or_else(|error| panic!("{error:#}: {failed}"))
    }

    fn shell(&self, script: &str) -> String {
        self.k8s
            .must(&["exec", "--namespace", NS, TOOLS, "--", "sh", "-c", script])
            .unwrap()
    }

    /// Writes keys one after the other in the tools pod and notes each that was acknowledged.
    /// Bounded by count.
    fn start_writing(&self, cluster: &str) {
        let endpoint = format!("http://{cluster}-client.{NS}.svc:2379");
        self.shell(&format!(
            "rm -f /tmp/stop /tmp/done; : > /tmp/acked; (i=0; while [ ! -f /tmp/stop ] && [ $i -lt 20000 ]; do i=$((i+1)); \
             etcdctl --endpoints {endpoint} --command-timeout=5s put key-$i $i >/dev/null 2>&1 && echo $i >> /tmp/acked; \
             done; touch /tmp/done) >/dev/null 2>&1 &"
        ));
    }

    fn wait_written(&self, count: usize) {
        self.k8s
            .wait_for("the writer", LIMIT, || {
                let lines = self.shell("wc -l < /tmp/acked");
                Ok((lines.trim().parse().unwrap_or(0) >= count).then_some(()))
            })
            .unwrap();
    }

    fn stop_writing(&self) -> BTreeSet<u64> {
        self.shell("touch /tmp/stop");
        self.k8s
            .wait_for("the writer to end", LIMIT, || {
                Ok(self.shell("ls /tmp").contains("done").then_some(()))
            })
            .unwrap();
        let acked = self.shell("cat /tmp/acked");
        acked.lines().map(|line| line.parse().unwrap()).collect()
    }

    fn check_written(&self, cluster: &str, written: &BTreeSet<u64>) {
        let all = self.etcdctl(cluster, &["get", "--prefix", "key-"]);
        let lines: Vec<&str> = all.lines().collect();
        let there: BTreeMap<&str, &str> = lines.chunks(2).map(|pair| (pair[0], pair[1])).collect();
        for number in written {
            let value = there.get(format!("key-{number}").as_str());
            assert_eq!(
                value,
                Some(&number.to_string().as_str()),
                "an acknowledged write is lost"
            );
        }
    }
}

/// kubectl that writes down who holds the operators' lease, change by change.
struct Watch {
    kubectl: Child,
    written: tempfile::NamedTempFile,
}

impl Watch {
    fn holders(k8s: &Kubernetes) -> Self {
        let written = tempfile::NamedTempFile::new().unwrap();
        let holder = r#"--output=jsonpath=[{.spec.holderIdentity}]{"\n"}"#;
        let mut kubectl = k8s.program("kubectl");
        kubectl.arg("get").args(LEASE).args(["--watch", holder]);
        kubectl
            .stdin(Stdio::null())
            .stdout(written.reopen().unwrap());
        Self {
            kubectl: kubectl.spawn().unwrap(),
            written,
        }
    }

    /// All holders so far; empty where nobody held it.
    fn seen(&self) -> Vec<String> {
        let text = fs::read_to_string(self.written.path()).unwrap();
        let whole = text.lines().filter_map(|line| {
            let holder = line.strip_prefix('[')?.strip_suffix(']')?;
            Some(holder.to_owned())
        });
        whole.collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

fn chart(name: &str) -> String {
    format!("{}/../charts/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn cluster(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: cairn.dev/v1alpha1\nkind: EtcdCluster\nmetadata:\n  name: {name}\n  \
         namespace: {NS}\nspec: {spec}\n"
    )
}

fn tools_pod(image: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {TOOLS}, namespace: {NS}}}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
  - name: tools
    image: {image}
    command: [sleep, '3600']
    securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
    volumeMounts: [{{name: tmp, mountPath: /tmp}}]
  volumes: [{{name: tmp, emptyDir: {{}}}}]
"
    )
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn uid(object: &Value) -> String {
    text(&object["metadata"]["uid"])
}
