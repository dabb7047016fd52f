//! `make demo`: the one thread through everything, for a person who watches. A Kubernetes of three
//! nodes, the operator by helm, a cluster of three members used by etcdctl, and its leader's pod
//! deleted while somebody writes. Each step checks what it shows; `tests/` go further.
//!
//! Start reading at `run`. `show` is what it looks like, `writer` the program that writes.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod show;
mod writer;

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufRead, BufReader},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use e2e::k8s::{self, Image, Kubernetes};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{show::Step, writer::Writes};

/// Nodes of the Kubernetes, and members of the cluster.
const THREE: usize = 3;
/// Where the cluster lives. Deleted and made anew by each run.
const NAMESPACE: &str = "demo";
/// The cluster.
const CLUSTER: &str = "my-etcd";
/// Where the operator lives. It stays from run to run.
const OPERATOR_NAMESPACE: &str = "cairn-system";
/// The operator's release.
const RELEASE: &str = "cairn-operator";
/// Where our images are said to come from.
const REGISTRY: &str = "cairn.test";

/// How long all nodes may take to be ready in a Kubernetes that runs already.
const NODES_READY: Duration = Duration::from_secs(60);
/// How long three members may take, or one to come back.
const CLUSTER_READY: Duration = Duration::from_secs(300);
/// How long a pod of ours may take.
const POD_READY: Duration = Duration::from_secs(120);
/// How long members may take to hold the same.
const EQUAL: Duration = Duration::from_secs(60);
/// Pause between two looks at a cluster that changes.
const LOOK: Duration = Duration::from_millis(300);
/// Writes that are acknowledged before the leader's pod goes, and again after it is back.
const WRITES: usize = 100;

fn main() -> ExitCode {
    match run() {
        Ok(passed) => {
            println!("demo passed: {passed}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\ndemo failed: {error:#}");
            eprintln!("What runs stays for a look; `make demo-down` removes all of it.");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String> {
    let began = Instant::now();
    let demo = Demo {
        kubernetes: kubernetes()?,
    };
    demo.images()?;
    demo.operator()?;
    demo.cluster()?;
    demo.put_and_get()?;
    let survived = demo.lose_the_leader()?;
    demo.what_next();
    let seconds = began.elapsed().as_secs();
    Ok(format!("{survived}; {seconds} s in all"))
}

/// The Kubernetes that runs already, or a new one.
fn kubernetes() -> Result<Kubernetes> {
    let step = Step::begin("Kubernetes: three nodes, whose objects lie in a Cairn server");
    if let Ok(running) = Kubernetes::attach() {
        let nodes = running.nodes()?;
        ensure!(
            nodes == THREE,
            "a Kubernetes with {nodes} node(s) is running, the demo wants {THREE}: \
             `make k8s-down` ends it"
        );
        let all_ready = || {
            let ready = (1..=nodes).map(|number| running.node_ready(number));
            let ready = ready.collect::<Result<Vec<bool>>>()?;
            Ok(ready.iter().all(|&ready| ready).then_some(()))
        };
        let waited = running.wait_for("all nodes to be ready", NODES_READY, all_ready);
        waited.context("the Kubernetes that runs already is not well: `make k8s-down` ends it")?;
        step.end("it runs already");
        return Ok(running);
    }
    let mut child = Command::new(sibling("k8s")?)
        .args(["up", "--nodes", &THREE.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .context("could not run k8s, which `make build` makes")?;
    let output = child.stdout.take().context("k8s has an output")?;
    let mut hints = false;
    for line in BufReader::new(output).lines() {
        let line = line?;
        // What comes then is for who started it by hand.
        hints = hints || line.starts_with("Kubernetes is up");
        if !hints {
            step.say(&line);
        }
    }
    ensure!(child.wait()?.success(), "Kubernetes did not start");
    let started = Kubernetes::attach()?;
    step.end("ready");
    Ok(started)
}

/// A program that lies beside this one.
fn sibling(name: &str) -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

/// What goes by in a cluster's status.
#[derive(PartialEq, Eq)]
struct Seen {
    ready: bool,
    leader: Option<String>,
    line: String,
    stalled: Option<String>,
}

struct Demo {
    kubernetes: Kubernetes,
}

impl Demo {
    fn images(&self) -> Result<()> {
        let step = Step::begin("Images: cairn, cairn-operator and etcdctl, in every node");
        let images: [Image; 3] = [
            k8s::cairn(&sibling("cairn")?)?,
            k8s::operator(&sibling("cairn-operator")?)?,
            k8s::tools(&e2e::tool("etcdctl"))?,
        ];
        for image in images {
            step.say(&self.kubernetes.load_image(&image)?);
        }
        step.end("loaded");
        Ok(())
    }

    fn operator(&self) -> Result<()> {
        let step = Step::begin("Operator: helm install");
        self.remove_half_installed()?;
        let chart = e2e::root().join("charts/cairn-operator");
        let chart = chart
            .to_str()
            .context("the path of the charts is not UTF-8")?;
        // An image that was built anew under the same tag is run anew.
        let image = digest(&sibling("cairn-operator")?)?;
        let settings = format!(
            "image.registry={REGISTRY},serverImage.registry={REGISTRY},\
             podAnnotations.demo/binary=sha256-{image}"
        );
        let words = [
            "upgrade",
            RELEASE,
            chart,
            "--install",
            "--namespace",
            OPERATOR_NAMESPACE,
            "--create-namespace",
            "--set-string",
            &settings,
            "--wait",
            "--timeout",
            "3m",
        ];
        let installed = self.kubernetes.helm(&words);
        installed.with_context(|| {
            self.look(
                "the operator's log",
                &[
                    "logs",
                    "--namespace",
                    OPERATOR_NAMESPACE,
                    "deployment/cairn-operator",
                    "--tail=20",
                ],
            )
        })?;
        step.end("it runs, its CRD is served");
        Ok(())
    }

    /// A run that was interrupted while helm worked leaves a release that helm does not touch.
    fn remove_half_installed(&self) -> Result<()> {
        let namespaced = ["--namespace", OPERATOR_NAMESPACE];
        let asked = [&["status", RELEASE, "--output=json"], &namespaced[..]].concat();
        let Ok(status) = self.kubernetes.helm(&asked) else {
            return Ok(());
        };
        let status: Value = serde_json::from_str(&status)?;
        if status["info"]["status"] != "deployed" {
            let words = [&["uninstall", RELEASE, "--wait"], &namespaced[..]].concat();
            self.kubernetes.helm(&words)?;
        }
        Ok(())
    }

    fn cluster(&self) -> Result<()> {
        let step = Step::begin("Cluster: kubectl apply, three members");
        let words = [
            "delete",
            "namespace",
            NAMESPACE,
            "--ignore-not-found",
            "--timeout=180s",
        ];
        let removed = self.kubernetes.must(&words)?;
        if !removed.is_empty() {
            step.say("that of an earlier run is gone");
        }
        step.quote(MANIFEST.trim_start());
        self.kubernetes.apply(MANIFEST)?;
        self.wait_ready(&step)?;
        step.run(
            "kubectl -n demo get etcd",
            &self.kubernetes.must(&["get", "etcd", "-n", NAMESPACE])?,
        );
        step.end("Ready");
        Ok(())
    }

    /// Waits until the cluster says that it is, and shows each change on the way.
    fn wait_ready(&self, step: &Step) -> Result<()> {
        let began = Instant::now();
        let mut shown = String::new();
        loop {
            let seen = self.seen()?;
            if seen.line != shown {
                step.say(&seen.line);
                shown.clone_from(&seen.line);
            }
            if seen.ready {
                return Ok(());
            }
            let failed = match seen.stalled {
                Some(reason) => reason,
                None if began.elapsed() > CLUSTER_READY => {
                    format!("not Ready after {} s: {shown}", CLUSTER_READY.as_secs())
                }
                None => {
                    std::thread::sleep(LOOK);
                    continue;
                }
            };
            let described = self.look(
                "kubectl says",
                &["describe", "etcd", "-n", NAMESPACE, CLUSTER],
            );
            let pods = self.look("its pods", &["get", "pods", "-n", NAMESPACE, "-o", "wide"]);
            bail!("{failed}\n{described}\n{pods}");
        }
    }

    fn seen(&self) -> Result<Seen> {
        let object = self.kubernetes.get(&["etcd", CLUSTER, "-n", NAMESPACE])?;
        let status = &object["status"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let members = status["members"].as_array().into_iter().flatten();
        let members = members.map(|member| {
            let name = member["name"].as_str().unwrap_or_default();
            let (role, phase) = (&member["role"], &member["phase"]);
            let shown = if phase == "Ready" { role } else { phase };
            format!("{name} {}", shown.as_str().unwrap_or_default())
        });
        let members: Vec<String> = members.collect();
        let current = status["observedGeneration"] == object["metadata"]["generation"];
        let stalled =
            condition(status, "Stalled").filter(|condition| condition["status"] == "True");
        Ok(Seen {
            ready: current
                && condition(status, "Ready").is_some_and(|ready| ready["status"] == "True"),
            leader: text(&status["leader"]),
            line: format!(
                "{:<11} {:<4} {}",
                text(&status["phase"]).unwrap_or_else(|| "asked for".into()),
                text(&status["ready"]).unwrap_or_default(),
                members.join("   "),
            ),
            stalled: stalled
                .map(|condition| format!("{}: {}", condition["reason"], condition["message"])),
        })
    }

    /// Runs a command in the pod that stands for a user of the cluster.
    fn client(&self, words: &[&str]) -> Result<String> {
        let pod = ["exec", "-n", NAMESPACE, "client", "--"];
        self.kubernetes.must(&[&pod[..], words].concat())
    }

    fn put_and_get(&self) -> Result<()> {
        let step = Step::begin("etcdctl, in a pod, through the Service my-etcd-client");
        let client = writer::pod("client", "while [ ! -e /tmp/stop ]; do sleep 1; done", None);
        self.kubernetes.apply(&client)?;
        self.kubernetes.wait_pod(NAMESPACE, "client", POD_READY)?;
        for (words, expected) in [
            (["etcdctl", "put", "greeting", "hello"].as_slice(), "OK"),
            (&["etcdctl", "get", "greeting"], "greeting\nhello"),
        ] {
            let said = self.client(words)?;
            step.run(&words.join(" "), &said);
            ensure!(
                said.trim() == expected,
                "{words:?} said {said:?}, not {expected:?}"
            );
        }
        step.end("written and read");
        Ok(())
    }

    fn lose_the_leader(&self) -> Result<String> {
        let step = Step::begin("A loss: the leader's pod is deleted while somebody writes");
        let pod = writer::pod("writer", writer::SCRIPT, Some(writer::LIMIT));
        self.kubernetes.apply(&pod)?;
        let before = self.wait_writes(WRITES)?;
        step.say(&format!(
            "{} writes acknowledged, each by its own etcdctl",
            before.acknowledged.len()
        ));

        let leader = self.seen()?.leader.context("the status names no leader")?;
        let pod = format!("{leader}-0");
        let uid = self
            .pod_uid(&pod)?
            .with_context(|| format!("there is no pod {pod}"))?;
        self.kubernetes
            .must(&["delete", "pod", "-n", NAMESPACE, &pod, "--wait=false"])?;
        step.say(&format!("kubectl delete pod {pod}, which led"));
        let deleted = Instant::now();
        self.kubernetes
            .wait_for("the deleted pod to be made anew", POD_READY, || {
                Ok(self.pod_uid(&pod)?.filter(|new| *new != uid).map(|_| ()))
            })?;
        self.kubernetes.wait_pod(NAMESPACE, &pod, POD_READY)?;
        let back = deleted.elapsed().as_secs();
        step.say(&format!("{pod} is back with its data after {back} s"));
        self.wait_ready(&step)?;
        let after = self.writes()?.acknowledged.len();
        self.wait_writes(after + WRITES)?;

        let writes = self.end_writer()?;
        step.say(&writes.to_string());
        let lost = self.lost(&writes.acknowledged)?;
        ensure!(
            lost.is_empty(),
            "these acknowledged writes are lost: {lost:?}"
        );
        let count = writes.acknowledged.len();
        step.say(&format!(
            "all {count} acknowledged writes read back, value by value"
        ));
        let hash = self.wait_equal()?;
        step.say(&format!("all three members hold the same: hash {hash}"));
        step.end("nothing was lost");
        Ok(format!(
            "three members, {count} acknowledged writes, none lost when the leader's pod was deleted"
        ))
    }

    fn pod_uid(&self, pod: &str) -> Result<Option<String>> {
        let words = [
            "get",
            "pod",
            pod,
            "-n",
            NAMESPACE,
            "--ignore-not-found",
            "-o",
        ];
        let uid = self
            .kubernetes
            .must(&[&words[..], &["jsonpath={.metadata.uid}"]].concat())?;
        Ok(Some(uid).filter(|uid| !uid.is_empty()))
    }

    fn writes(&self) -> Result<Writes> {
        let said = self
            .kubernetes
            .kubectl(&["logs", "-n", NAMESPACE, "writer"])?;
        // Before it runs it has no log.
        Ok(if said.ok {
            Writes::read(&said.stdout)?
        } else {
            Writes::default()
        })
    }

    fn wait_writes(&self, count: usize) -> Result<Writes> {
        let what = format!("{count} acknowledged writes");
        self.kubernetes.wait_for(&what, POD_READY, || {
            Ok(Some(self.writes()?).filter(|writes| writes.acknowledged.len() >= count))
        })
    }

    fn end_writer(&self) -> Result<Writes> {
        self.kubernetes.must(&[
            "exec",
            "-n",
            NAMESPACE,
            "writer",
            "--",
            "touch",
            "/tmp/stop",
        ])?;
        let phase = [
            "get",
            "pod",
            "writer",
            "-n",
            NAMESPACE,
            "-o",
            "jsonpath={.status.phase}",
        ];
        self.kubernetes
            .wait_for("the writer to end", POD_READY, || {
                let phase = self.kubernetes.must(&phase)?;
                ensure!(phase != "Failed", "the writer failed");
                Ok((phase == "Succeeded").then_some(()))
            })?;
        self.writes()
    }

    /// The acknowledged writes that the cluster does not have, or has with another value.
    fn lost(&self, acknowledged: &BTreeSet<u64>) -> Result<Vec<u64>> {
        let said = self.client(&["etcdctl", "get", "--prefix", writer::PREFIX])?;
        let lines: Vec<&str> = said.lines().collect();
        let found: BTreeSet<u64> = lines
            .chunks(2)
            .filter_map(|pair| {
                let [key, value] = pair else { return None };
                let number: u64 = key.strip_prefix(writer::PREFIX)?.parse().ok()?;
                (*value == number.to_string()).then_some(number)
            })
            .collect();
        Ok(acknowledged.difference(&found).copied().collect())
    }

    /// Waits until every member has the same hash of all that it keeps.
    fn wait_equal(&self) -> Result<u64> {
        let words = [
            "etcdctl",
            "endpoint",
            "hashkv",
            "--cluster",
            "--write-out=json",
        ];
        self.kubernetes
            .wait_for("the members' hashes to be equal", EQUAL, || {
                let answers: Value = serde_json::from_str(&self.client(&words)?)?;
                let answers = answers.as_array().context("etcdctl gave no list")?.iter();
                let hashes = answers.map(|answer| answer["HashKV"]["hash"].as_u64());
                let hashes = hashes
                    .collect::<Option<Vec<u64>>>()
                    .context("an answer has no hash")?;
                ensure!(hashes.len() == THREE, "{} members answer", hashes.len());
                Ok(hashes
                    .iter()
                    .all(|hash| *hash == hashes[0])
                    .then_some(hashes[0]))
            })
    }

    /// What kubectl says, for an error.
    fn look(&self, what: &str, words: &[&str]) -> String {
        match self.kubernetes.kubectl(words) {
            Ok(output) => format!("{what}:\n{}{}", output.stdout, output.stderr),
            Err(error) => format!("{what}: {error:#}"),
        }
    }

    fn what_next(&self) {
        let wrappers = self.kubernetes.folder().with_file_name("bin");
        println!(
            "What to try next
  export PATH={}:$PATH
  kubectl -n demo get etcd,statefulsets,pods,pvc
  kubectl -n demo exec -it client -- sh        # etcdctl is in there
  kubectl -n demo patch etcd {CLUSTER} --type=merge -p '{{\"spec\":{{\"replicas\":5}}}}'
  helm -n {OPERATOR_NAMESPACE} test {RELEASE}
  make demo-down                               # removes all of it
",
            wrappers.display()
        );
    }
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = status["conditions"].as_array()?;
    conditions
        .iter()
        .find(|condition| condition["type"] == kind)
}

fn digest(path: &PathBuf) -> Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path).with_context(|| format!("no {}", path.display()))?;
    io::copy(&mut file, &mut hash)?;
    Ok(hex::encode(hash.finalize()))
}

/// The namespace admits restricted pods only; the disks go with the cluster.
const MANIFEST: &str = "
apiVersion: v1
kind: Namespace
metadata:
  name: demo
  labels:
    pod-security.kubernetes.io/enforce: restricted
---
apiVersion: cairn.dev/v1alpha1
kind: EtcdCluster
metadata:
  name: my-etcd
  namespace: demo
spec:
  replicas: 3
  storage:
    size: 1Gi
    retain:
      onDelete: Delete
";
