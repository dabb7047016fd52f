//! Kubernetes on a Cairn store: nodes, volumes, names, evictions, and the crash of a node.
//! `CAIRN_STORE=etcd` runs the same on real etcd, to tell whose fault a failure is.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::k8s::{self, Kubernetes, Layout, Store};

/// How long anything may take on a busy machine; most of it takes seconds.
const LIMIT: Duration = Duration::from_secs(120);
/// The pods of the StatefulSet.
const PODS: [&str; 3] = ["web-0", "web-1", "web-2"];
/// Three pods with a volume each, one on each node, and one to look at them from.
const OBJECTS: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: proof, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: proof}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: client, namespace: proof}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web, namespace: proof}
spec: {maxUnavailable: 0, selector: {matchLabels: {app: web}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web, namespace: proof}
spec:
  serviceName: web
  replicas: 3
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: web}}}
      securityContext: $POD
      containers:
      - name: web
        image: cairn.test/tools:1
        command: [/bin/sh, -c, 'test -f /data/name || hostname > /data/name; exec httpd -f -p 8080 -h /data']
        readinessProbe: {httpGet: {path: /name, port: 8080}, periodSeconds: 1}
        securityContext: $CONTAINER
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: tools, namespace: proof}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: $POD
  containers:
  - name: tools
    image: cairn.test/tools:1
    command: [/bin/sleep, '100000']
    securityContext: $CONTAINER
";
/// What the namespace demands of a pod, for `$POD`.
const POD: &str = "{runAsNonRoot: true, runAsUser: 65532, fsGroup: 65532, \
    seccompProfile: {type: RuntimeDefault}}";
/// What it demands of a container, for `$CONTAINER`.
const CONTAINER: &str = "{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, \
    capabilities: {drop: [ALL]}}";
/// What the namespace must refuse.
const PRIVILEGED: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: privileged, namespace: proof}
spec:
  containers:
  - {name: a, image: 'cairn.test/tools:1', securityContext: {privileged: true}}
";

#[test]
fn everyday_life_on_three_nodes() {
    let killed = kill_a_supervisor();
    let store = match std::env::var("CAIRN_STORE").as_deref() {
        Ok("etcd") => Store::Etcd,
        _ => Store::Cairn,
    };
    let began = Instant::now();
    let kubernetes = Kubernetes::start(3, store).unwrap();
    println!("up after {:.1} s", began.elapsed().as_secs_f32());
    for trace in killed {
        assert!(!trace.exists(), "{} was not swept", trace.display());
    }
    story(&kubernetes).unwrap();
    let traces = kubernetes.traces().unwrap();
    for trace in &traces {
        assert!(trace.exists(), "{} is no trace", trace.display());
    }
    drop(kubernetes);
    for trace in &traces {
        assert!(!trace.exists(), "{} is left", trace.display());
    }
    println!("all of it took {:.1} s", began.elapsed().as_secs_f32());
}

fn story(kubernetes: &Kubernetes) -> Result<()> {
    for number in 1..=3 {
        ensure!(kubernetes.node_ready(number)?, "node {number} is not ready");
    }
    let etcdctl = e2e::tool("etcdctl");
    kubernetes.load_image(&k8s::tools(&etcdctl)?)?;
    let objects = OBJECTS
        .replace("$POD", POD)
        .replace("$CONTAINER", CONTAINER);
    kubernetes.apply(&objects)?;
    wait_pods(kubernetes)?;
    kubernetes.wait_pod("proof", "tools", LIMIT)?;
    step("three pods with volumes are ready");

    security(kubernetes)?;
    step("a privileged pod is refused");
    names(kubernetes)?;
    step("names and services lead to the pods");
    a_deleted_pod_keeps_its_data(kubernetes)?;
    step("a deleted pod came back with its data");
    evictions(kubernetes)?;
    step("a disruption budget is kept");
    a_node_crashes(kubernetes)?;
    step("a node crashed and returned with its data");
    volumes_are_used_again(kubernetes)?;
    step("volumes without a claim are empty and available");
    Ok(())
}

fn step(done: &str) {
    println!("{done}");
}

fn wait_pods(kubernetes: &Kubernetes) -> Result<()> {
    for pod in PODS {
        kubernetes.wait_pod("proof", pod, LIMIT)?;
    }
    Ok(())
}

fn pod(kubernetes: &Kubernetes, name: &str, field: &str) -> Result<String> {
    let path = format!("jsonpath={{{field}}}");
    kubernetes.must(&["get", "pod", "--namespace=proof", name, "--output", &path])
}

/// Runs a shell's words in a pod.
fn shell(kubernetes: &Kubernetes, pod: &str, words: &str) -> Result<String> {
    let command = ["--", "/bin/sh", "-c", words];
    let place = ["exec", "--namespace=proof", pod];
    kubernetes.must(&[&place[..], &command].concat())
}

fn security(kubernetes: &Kubernetes) -> Result<()> {
    let refused = kubernetes.apply(PRIVILEGED).unwrap_err().to_string();
    ensure!(refused.contains("violates PodSecurity"), "{refused}");
    let who = shell(kubernetes, "web-0", "id -u; touch /x 2>&1 || true")?;
    ensure!(who.contains("65532") && who.contains("Read-only"), "{who}");
    Ok(())
}

fn names(kubernetes: &Kubernetes) -> Result<()> {
    let nodes: BTreeSet<String> = PODS
        .iter()
        .map(|name| pod(kubernetes, name, ".spec.nodeName"))
        .collect::<Result<_>>()?;
    ensure!(nodes.len() == 3, "not one on each node: {nodes:?}");
    for name in PODS {
        let address = pod(kubernetes, name, ".status.podIP")?;
        let full = format!("{name}.web.proof.svc.cluster.local");
        // CoreDNS hears of a pod a moment after everybody else.
        kubernetes.wait_for(&full, LIMIT, || {
            let found = shell(kubernetes, "tools", &format!("nslookup {full} || true"))?;
            Ok(found.contains(&address).then_some(()))
        })?;
        let ask = |host: &str| format!("printf 'GET /name HTTP/1.0\\r\\n\\r\\n' | nc {host}");
        let own = shell(kubernetes, "tools", &ask(&format!("{full} 8080")))?;
        ensure!(own.trim_end().ends_with(name), "{name}: {own}");
        let any = shell(kubernetes, "tools", &ask("client 80"))?;
        ensure!(any.contains("web-"), "the service: {any}");
    }
    Ok(())
}

fn a_deleted_pod_keeps_its_data(kubernetes: &Kubernetes) -> Result<()> {
    shell(kubernetes, "web-0", "echo kept > /data/more")?;
    let before = pod(kubernetes, "web-0", ".metadata.uid")?;
    kubernetes.must(&["delete", "pod", "--namespace=proof", "web-0"])?;
    kubernetes.wait_pod("proof", "web-0", LIMIT)?;
    let after = pod(kubernetes, "web-0", ".metadata.uid")?;
    ensure!(before != after, "the pod is still the same");
    let data = shell(kubernetes, "web-0", "cat /data/name /data/more")?;
    ensure!(data == "web-0\nkept\n", "{data}");
    Ok(())
}

fn evictions(kubernetes: &Kubernetes) -> Result<()> {
    // Every try of a drain is refused as long as the budget does not allow it.
    let node = pod(kubernetes, "web-1", ".spec.nodeName")?;
    let drain = [
        "drain",
        &node,
        "--ignore-daemonsets",
        "--force",
        "--timeout=4s",
    ];
    let refused = kubernetes.kubectl(&drain)?;
    ensure!(!refused.ok, "the budget did not hold: {}", refused.stdout);
    ensure!(
        refused.stderr.contains("disruption budget"),
        "{}",
        refused.stderr
    );
    let before = pod(kubernetes, "web-1", ".metadata.uid")?;

    let allow = r#"{"spec": {"maxUnavailable": 1}}"#;
    kubernetes.must(&["patch", "pdb", "web", "--namespace=proof", "--patch", allow])?;
    let drain = [
        "drain",
        &node,
        "--ignore-daemonsets",
        "--force",
        "--timeout=60s",
    ];
    kubernetes.must(&drain)?;
    // Its volume binds it to this node.
    kubernetes.must(&["uncordon", &node])?;
    kubernetes.wait_pod("proof", "web-1", LIMIT)?;
    let after = pod(kubernetes, "web-1", ".metadata.uid")?;
    ensure!(before != after, "the pod was not evicted");
    Ok(())
}

fn a_node_crashes(kubernetes: &Kubernetes) -> Result<()> {
    let node = pod(kubernetes, "web-2", ".spec.nodeName")?;
    let number: usize = node.trim_start_matches("node-").parse()?;
    let restarts = ".status.containerStatuses[0].restartCount";
    let before: u32 = pod(kubernetes, "web-2", restarts)?.parse()?;
    kubernetes.crash_node(number)?;
    kubernetes.wait_for("the node to be missed", LIMIT, || {
        Ok((!kubernetes.node_ready(number)?).then_some(()))
    })?;
    let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    kubernetes.wait_for("its pod to be missed", LIMIT, || {
        let asked = ["get", "pod", "--namespace=proof", "web-2", "--output", path];
        Ok((kubernetes.must(&asked)? == "False").then_some(()))
    })?;
    kubernetes.return_node(number)?;
    kubernetes.wait_for("the node to return", LIMIT, || {
        Ok(kubernetes.node_ready(number)?.then_some(()))
    })?;
    wait_pods(kubernetes)?;
    let after: u32 = pod(kubernetes, "web-2", restarts)?.parse()?;
    ensure!(after > before, "its container survived a crash");
    let data = shell(kubernetes, "web-2", "cat /data/name")?;
    ensure!(data == "web-2\n", "{data}");
    Ok(())
}

fn volumes_are_used_again(kubernetes: &Kubernetes) -> Result<()> {
    let claim = kubernetes.get(&["pvc", "--namespace=proof", "data-web-0"])?;
    let name = claim["spec"]["volumeName"].as_str().context("no volume")?;
    let volume = kubernetes.get(&["pv", name])?;
    let folder = volume["spec"]["local"]["path"]
        .as_str()
        .context("no path")?;
    ensure!(
        Path::new(folder).join("more").exists(),
        "{folder} is not its volume"
    );
    kubernetes.must(&["delete", "statefulset", "--namespace=proof", "web"])?;
    kubernetes.must(&["delete", "pvc", "--namespace=proof", "--all"])?;
    kubernetes.wait_for("the volumes", LIMIT, || {
        let path = "jsonpath={.items[*].status.phase}";
        let phases = kubernetes.must(&["get", "pv", "--output", path])?;
        let mut phases = phases.split_whitespace();
        Ok(phases.all(|phase| phase == "Available").then_some(()))
    })?;
    let left = fs::read_dir(folder)?.count();
    ensure!(left == 0, "{left} files are left in {folder}");
    Ok(())
}

fn program() -> &'static str {
    env!("CARGO_BIN_EXE_k8s")
}

/// Kills the supervisor of an instance that is starting. All that it started ends with it; what
/// lies on disk, whose paths this gives, waits for the next one to start.
fn kill_a_supervisor() -> Vec<PathBuf> {
    k8s::kubernetes(Store::Cairn).unwrap();
    let folder = tempfile::Builder::new()
        .prefix("cairn-k8s-")
        .tempdir()
        .unwrap();
    let folder = folder.keep();
    let layout = Layout::new(&folder).unwrap();
    let mut supervisor = Command::new(program())
        .args([
            "supervise",
            "--nodes=1",
            "--store=cairn",
            "--logs=/dev/null",
            "--dir",
        ])
        .arg(&folder)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let store = loop {
        assert!(began.elapsed() < LIMIT, "no store was started");
        assert!(supervisor.try_wait().unwrap().is_none(), "it ended");
        let running = layout.node_running(1).exists();
        if let (true, Some(pid)) = (running, process_of(&folder.join("store"))) {
            break pid;
        }
        thread::sleep(Duration::from_millis(50));
    };
    let traces = layout.traces().unwrap();
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    while Path::new(&format!("/proc/{store}")).exists() {
        assert!(
            began.elapsed() < LIMIT,
            "process {store} outlived its supervisor"
        );
        thread::sleep(Duration::from_millis(50));
    }
    for trace in &traces {
        assert!(
            trace.exists(),
            "{} is not there to be swept",
            trace.display()
        );
    }
    traces
}

/// The process that was started with a data folder.
fn process_of(data: &Path) -> Option<u32> {
    let flag = format!("--data-dir={}", data.display());
    let all = fs::read_dir("/proc").unwrap();
    all.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .find(|pid: &u32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words
                .split(|&byte| byte == 0)
                .any(|word| word == flag.as_bytes())
        })
}

fn complaint(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(!output.status.success(), "{command:?} succeeded");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn wrong_use_is_told_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let k8s = || {
        let mut command = Command::new(program());
        command.env("XDG_CACHE_HOME", home.path());
        command
    };
    let nobody_there = complaint(k8s().args(["kubectl", "get", "nodes"]));
    assert!(nobody_there.contains("make k8s-up"), "{nobody_there}");
    let even = complaint(k8s().args(["up", "--nodes=2"]));
    assert!(even.contains("say 1 or 3"), "{even}");
    let folder = format!("/tmp/{}", "long".repeat(40));
    let supervise = [
        "supervise",
        "--nodes=1",
        "--store=cairn",
        "--logs=/dev/null",
        "--dir",
    ];
    let long = complaint(k8s().args(supervise).arg(folder));
    assert!(long.contains("choose a shorter folder"), "{long}");
    // The folder of what cargo built may be closed to others.
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = home.path().join("k8s");
    fs::copy(program(), &copy).unwrap();
    let mut user = Command::new("setpriv");
    user.args(["--reuid=65534", "--clear-groups"]).arg(copy);
    user.args(supervise).arg(home.path().join("x"));
    let no_root = complaint(&mut user);
    assert!(no_root.contains("run it as root"), "{no_root}");
}

#[test]
fn only_one_runs_for_a_user() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("cairn/k8s");
    fs::create_dir_all(&folder).unwrap();
    let lock = fs::File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let mut up = Command::new(program());
    up.args(["up", "--nodes=1"])
        .env("XDG_CACHE_HOME", home.path());
    let second = complaint(&mut up);
    assert!(second.contains("running already"), "{second}");
}
