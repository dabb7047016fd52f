//! The charts as helm renders them, without a Kubernetes: what they make for which values, what
//! they refuse, and that they agree with the CRD and with what the operator may do.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use e2e::{Helm, root};
use serde_json::{Value, json};

const OPERATOR: &str = "charts/cairn-operator";
const CLUSTER: &str = "charts/cairn-cluster";
const NAMESPACE: &str = "etcd-system";

/// The files in `ci/` of a chart: its values in the variations that matter.
fn variations(chart: &str) -> Vec<PathBuf> {
    let folder = fs::read_dir(root().join(chart).join("ci")).unwrap();
    let mut files: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{chart}/ci is empty");
    files
}

fn documents(yaml: &str) -> Vec<Value> {
    let parsed = serde_saphyr::from_multiple(yaml);
    let mut documents = parsed.unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    documents.iter_mut().for_each(whole_numbers);
    documents
}

/// 50.0 is 50 to YAML and to Kubernetes.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let whole = number.as_f64().filter(|float| float.fract() == 0.0);
            if let (true, Some(whole)) = (number.is_f64(), whole) {
                *value = json!(whole as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(entries) => entries.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

fn file(path: &str) -> Value {
    let text = fs::read_to_string(root().join(path)).unwrap();
    documents(&text).remove(0)
}

/// What `helm template` makes of a chart, or what it says against it.
fn try_render(chart: &str, more: &[&str]) -> Result<Vec<Value>, String> {
    let mut arguments = vec!["template", "test", chart, "--namespace", NAMESPACE];
    arguments.extend(more);
    let said = Helm::new().run(&arguments);
    match said.success {
        true => Ok(documents(&said.out)),
        false => Err(said.err),
    }
}

fn render(chart: &str, more: &[&str]) -> Vec<Value> {
    try_render(chart, more).unwrap_or_else(|error| panic!("{chart} {more:?}: {error}"))
}

/// Every chart with each of its variations, rendered.
fn all() -> Vec<(String, Vec<Value>)> {
    let mut all = Vec::new();
    for chart in [OPERATOR, CLUSTER] {
        for values in variations(chart) {
            let values = values.display().to_string();
            let rendered = render(chart, &["--values", &values]);
            all.push((values, rendered));
        }
    }
    all
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("no text at {pointer} of {value:#}"))
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    let matching = objects.iter().filter(|object| object["kind"] == kind);
    matching.collect()
}

fn only<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found = of_kind(objects, kind);
    assert_eq!(found.len(), 1, "{kind}: {found:#?}");
    found[0]
}

/// Kinds that run nothing.
const INERT: &[&str] = &[
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "EtcdCluster",
    "PodDisruptionBudget",
    "PodMonitor",
    "Role",
    "RoleBinding",
    "Service",
    "ServiceAccount",
];

/// The pod that an object makes, if any.
fn pod(object: &Value) -> Option<&Value> {
    match text(object, "/kind") {
        "Pod" => Some(&object["spec"]),
        "Deployment" => Some(&object["spec"]["template"]["spec"]),
        inert if INERT.contains(&inert) => None,
        other => panic!("{other}: decide here whether it runs something"),
    }
}

#[test]
fn both_lint_without_a_warning() {
    let helm = Helm::new();
    for chart in [OPERATOR, CLUSTER] {
        for values in variations(chart) {
            let values = values.display().to_string();
            let said = helm.run(["lint", "--strict", chart, "--values", &values]);
            assert!(said.success, "{values}: {}{}", said.out, said.err);
            assert!(!said.out.contains("[WARNING]"), "{values}: {}", said.out);
        }
    }
}

#[test]
fn both_have_the_version_of_what_they_install() {
    for chart in [OPERATOR, CLUSTER] {
        let about = file(&format!("{chart}/Chart.yaml"));
        assert_eq!(text(&about, "/appVersion"), env!("CARGO_PKG_VERSION"));
    }
}

/// Kubernetes' pod security standard `restricted`, and what this project asks beyond it.
fn restricted(pod: &Value) -> Result<(), String> {
    let refuse = |what: &str| Err(format!("{what}: {pod:#}"));
    for host in [
        "hostNetwork",
        "hostPID",
        "hostIPC",
        "volumes",
        "initContainers",
    ] {
        if pod.get(host).is_some() {
            return refuse(host);
        }
    }
    let security = &pod["securityContext"];
    if security["runAsNonRoot"] != true || security["runAsUser"] == 0 {
        return refuse("may run as root");
    }
    if security["seccompProfile"] != json!({"type": "RuntimeDefault"}) {
        return refuse("has no seccomp profile");
    }
    let containers = pod["containers"].as_array();
    for container in containers.into_iter().flatten() {
        let wanted = json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        });
        if container["securityContext"] != wanted {
            return refuse("has more rights than it needs");
        }
        let image = container["image"].as_str().unwrap_or_default();
        let last = image.rsplit('/').next().unwrap_or_default();
        if !last.contains([':', '@']) || last.ends_with(":latest") {
            return refuse("may run another image tomorrow");
        }
        let requests = &container["resources"]["requests"];
        if requests["cpu"].is_null() || requests["memory"].is_null() {
            return refuse("asks for nothing and is evicted first");
        }
    }
    Ok(())
}

#[test]
fn every_pod_is_restricted() {
    let mut pods = 0;
    for (values, objects) in all() {
        for object in &objects {
            let Some(pod) = pod(object) else { continue };
            restricted(pod).unwrap_or_else(|error| panic!("{values}: {error}"));
            pods += 1;
        }
    }
    assert!(pods > 0);
}

/// The check above would also pass if it looked at nothing.
#[test]
fn a_pod_that_is_not_restricted_is_noticed() {
    let objects = render(OPERATOR, &[]);
    let good = pod(only(&objects, "Deployment")).unwrap();
    restricted(good).unwrap();
    let container = "/containers/0";
    for (pointer, bad) in [
        ("/securityContext/runAsNonRoot".to_owned(), json!(false)),
        ("/securityContext/runAsUser".to_owned(), json!(0)),
        ("/securityContext/seccompProfile".to_owned(), Value::Null),
        (
            format!("{container}/securityContext/privileged"),
            json!(true),
        ),
        (
            format!("{container}/securityContext/capabilities/add"),
            json!(["NET_RAW"]),
        ),
        (
            format!("{container}/securityContext/readOnlyRootFilesystem"),
            json!(false),
        ),
        (format!("{container}/image"), json!("registry:5000/cairn")),
        (format!("{container}/resources"), Value::Null),
        ("/hostNetwork".to_owned(), json!(true)),
        ("/volumes".to_owned(), json!([{"hostPath": {"path": "/"}}])),
    ] {
        let mut pod = good.clone();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[name] = bad;
        assert!(restricted(&pod).is_err(), "{pointer}");
    }
}

#[test]
fn the_crds_are_those_of_the_crate_and_stay() {
    let names = |folder: &str| -> BTreeSet<String> {
        let files = fs::read_dir(root().join(folder)).unwrap();
        let names = files.map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect()
    };
    let copies = format!("{OPERATOR}/files/crds");
    assert_eq!(names("crds/yaml"), names(&copies));
    for name in names("crds/yaml") {
        let original = fs::read(root().join("crds/yaml").join(&name)).unwrap();
        let copy = fs::read(root().join(&copies).join(&name)).unwrap();
        assert!(
            original == copy,
            "{name}: run `cargo run -p crds --bin crdgen`"
        );
    }

    let keep = "helm.sh/resource-policy";
    let rendered = render(OPERATOR, &[]);
    let mut crd = only(&rendered, "CustomResourceDefinition").clone();
    assert_eq!(crd["metadata"]["annotations"][keep], "keep");
    // Nothing but metadata is added on the way through helm.
    let annotations = crd["metadata"]["annotations"].as_object_mut().unwrap();
    annotations.remove(keep);
    let metadata = crd["metadata"].as_object_mut().unwrap();
    metadata.remove("labels").unwrap();
    let same = crd == file("crds/yaml/etcdclusters.yaml");
    assert!(same, "helm changes the CRD on its way through");

    let rendered = render(OPERATOR, &["--set", "crds.keep=false"]);
    let crd = only(&rendered, "CustomResourceDefinition");
    assert!(crd["metadata"]["annotations"].get(keep).is_none());
    let rendered = render(OPERATOR, &["--set", "crds.enabled=false"]);
    assert!(of_kind(&rendered, "CustomResourceDefinition").is_empty());
}

/// The environment of the operator's container.
fn environment(objects: &[Value]) -> BTreeMap<String, Value> {
    let pod = pod(only(objects, "Deployment")).unwrap();
    let variables = pod["containers"][0]["env"].as_array().unwrap().iter();
    let variables = variables.map(|variable| {
        let value = variable.get("value").unwrap_or(&variable["valueFrom"]);
        (text(variable, "/name").to_owned(), value.clone())
    });
    variables.collect()
}

#[test]
fn the_operator_is_told_what_the_values_say() {
    let objects = render(OPERATOR, &[]);
    let name = text(only(&objects, "Deployment"), "/metadata/name");
    let told = environment(&objects);
    for (variable, value) in [
        ("CAIRN_SERVER_IMAGE", "cairn"),
        ("CAIRN_METRICS_ADDRESS", "0.0.0.0:8080"),
        ("CAIRN_CLUSTER_DOMAIN", "cluster.local"),
        ("CAIRN_LEASE_NAME", name),
        ("CAIRN_CONCURRENCY", "8"),
        ("CAIRN_LOG_LEVEL", "info"),
        ("CAIRN_LOG_FORMAT", "json"),
    ] {
        assert_eq!(told[variable], value, "{variable}");
    }
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    assert_eq!(told["POD_NAME"], field("metadata.name"));
    assert_eq!(told["POD_NAMESPACE"], field("metadata.namespace"));
    let container = &pod(only(&objects, "Deployment")).unwrap()["containers"][0];
    assert_eq!(
        container["image"],
        concat!("cairn-operator:", env!("CARGO_PKG_VERSION"))
    );

    let full = root().join(OPERATOR).join("ci/full-values.yaml");
    let objects = render(OPERATOR, &["--values", full.to_str().unwrap()]);
    let told = environment(&objects);
    for (variable, value) in [
        (
            "CAIRN_SERVER_IMAGE",
            "registry.example:5000/mirror/tools/cairn",
        ),
        ("CAIRN_METRICS_ADDRESS", "0.0.0.0:9090"),
        ("CAIRN_CLUSTER_DOMAIN", "k8s.example"),
        ("CAIRN_CONCURRENCY", "2"),
        ("CAIRN_LOG_LEVEL", "debug"),
        ("CAIRN_LOG_FORMAT", "console"),
        ("HTTPS_PROXY", "http://proxy.example:3128"),
    ] {
        assert_eq!(told[variable], value, "{variable}");
    }
    let pod = pod(only(&objects, "Deployment")).unwrap();
    let image = text(pod, "/containers/0/image");
    let expected = "registry.example:5000/mirror/tools/cairn-operator@sha256:0123456789abcdef";
    assert!(image.starts_with(expected), "{image}");
    assert_eq!(pod["serviceAccountName"], "etcd-operator");
    assert_eq!(pod["securityContext"]["runAsUser"], 1000);
    assert!(pod["securityContext"].get("runAsGroup").is_none());
    for (pointer, value) in [
        ("/nodeSelector/kubernetes.io~1os", json!("linux")),
        ("/tolerations/0/key", json!("control-plane")),
        ("/topologySpreadConstraints/0/maxSkew", json!(1)),
        ("/priorityClassName", json!("system-cluster-critical")),
        ("/imagePullSecrets", json!([{"name": "registry"}])),
        ("/containers/0/imagePullPolicy", json!("Always")),
        ("/containers/0/resources/limits/memory", json!("256Mi")),
    ] {
        assert_eq!(pod.pointer(pointer), Some(&value), "{pointer}");
    }
    assert!(pod["affinity"].get("podAntiAffinity").is_some());
}

/// Whether all labels of a selector are among those of what it shall select.
fn selects(selector: &Value, labels: &Value) -> bool {
    let selector = selector.as_object().unwrap();
    !selector.is_empty() && selector.iter().all(|(name, value)| &labels[name] == value)
}

#[test]
fn selectors_find_the_operator_and_nothing_else() {
    for (values, objects) in all() {
        let [deployment] = of_kind(&objects, "Deployment")[..] else {
            continue;
        };
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        let mut selectors = vec![&deployment["spec"]["selector"]["matchLabels"]];
        for service in of_kind(&objects, "Service") {
            selectors.push(&service["spec"]["selector"]);
            let port = text(service, "/spec/ports/0/targetPort");
            let pod = pod(deployment).unwrap();
            assert_eq!(pod["containers"][0]["ports"][0]["name"], port);
        }
        for kind in ["PodDisruptionBudget", "PodMonitor"] {
            for object in of_kind(&objects, kind) {
                selectors.push(&object["spec"]["selector"]["matchLabels"]);
            }
        }
        for selector in selectors {
            assert!(selects(selector, labels), "{values}: {selector} {labels}");
            for other in of_kind(&objects, "Pod") {
                let labels = &other["metadata"]["labels"];
                assert!(!selects(selector, labels), "{values}: {selector} {labels}");
            }
        }
    }
    // The check of labels can fail.
    assert!(!selects(&json!({"a": "b"}), &json!({"a": "c"})));
}

#[test]
fn labels_of_the_chart_win() {
    let full = root().join(OPERATOR).join("ci/full-values.yaml");
    let objects = render(OPERATOR, &["--values", full.to_str().unwrap()]);
    for object in &objects {
        let labels = &object["metadata"]["labels"];
        assert_eq!(labels["team"], "storage", "{object:#}");
        assert_eq!(labels["app.kubernetes.io/part-of"], "cairn", "{object:#}");
        assert_eq!(labels["app.kubernetes.io/instance"], "test", "{object:#}");
    }
    let deployment = only(&objects, "Deployment");
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels["app.kubernetes.io/name"], "op");
}

#[test]
fn a_budget_exists_only_beside_a_second_operator() {
    for (replicas, budgets) in [("0", 0), ("1", 0), ("2", 1), ("3", 1)] {
        let objects = render(OPERATOR, &["--set", &format!("replicas={replicas}")]);
        let found = of_kind(&objects, "PodDisruptionBudget").len();
        assert_eq!(found, budgets, "{replicas}");
    }
    let off = ["--set", "replicas=2,podDisruptionBudget.enabled=false"];
    let objects = render(OPERATOR, &off);
    assert!(of_kind(&objects, "PodDisruptionBudget").is_empty());
}

/// Two operators beside each other would only wait for one lease, were it not for an update: then
/// the old one ends before the new one starts.
#[test]
fn an_update_ends_the_old_operator_first() {
    let objects = render(OPERATOR, &[]);
    let strategy = &only(&objects, "Deployment")["spec"]["strategy"];
    assert_eq!(strategy["rollingUpdate"]["maxSurge"], 0);
    assert_eq!(strategy["rollingUpdate"]["maxUnavailable"], 1);
}

#[test]
fn what_is_switched_off_is_not_there() {
    let minimal = root().join(OPERATOR).join("ci/minimal-values.yaml");
    let objects = render(OPERATOR, &["--values", minimal.to_str().unwrap()]);
    let kinds: Vec<&str> = objects.iter().map(|object| text(object, "/kind")).collect();
    assert_eq!(kinds, ["Deployment"]);
    let pod = pod(&objects[0]).unwrap();
    assert_eq!(pod["serviceAccountName"], "given");
}

#[test]
fn bad_values_are_refused_with_a_word() {
    // Chart, values, and what the refusal has to name.
    let cases: &[(&str, &str, &[&str])] = &[
        (OPERATOR, "replicaCount=2", &["replicaCount", "not allowed"]),
        (OPERATOR, "replicas=two", &["/replicas", "want integer"]),
        (OPERATOR, "replicas=-1", &["/replicas", "minimum"]),
        (OPERATOR, "image.tags=1", &["/image", "tags", "not allowed"]),
        (
            OPERATOR,
            "image.pullPolicy=Sometimes",
            &["/image/pullPolicy", "IfNotPresent"],
        ),
        (
            OPERATOR,
            "image.digest=sha256:12",
            &["/image/digest", "pattern"],
        ),
        (
            OPERATOR,
            "image.registry=https://registry",
            &["/image/registry", "pattern"],
        ),
        (OPERATOR, "image.repository=", &["/image/repository"]),
        (
            OPERATOR,
            "serverImage.tag=1",
            &["/serverImage", "tag", "not allowed"],
        ),
        (
            OPERATOR,
            "crds.keep=sometimes",
            &["/crds/keep", "want boolean"],
        ),
        (OPERATOR, "logLevel=loud", &["/logLevel", "debug"]),
        (OPERATOR, "logFormat=xml", &["/logFormat", "json"]),
        (OPERATOR, "concurrency=0", &["/concurrency", "minimum"]),
        (OPERATOR, "metrics.port=80", &["/metrics/port", "minimum"]),
        (
            OPERATOR,
            "metrics.podMonitor.interval=often",
            &["/interval", "pattern"],
        ),
        (OPERATOR, "runAsUser=0", &["/runAsUser", "minimum"]),
        (
            OPERATOR,
            "resources.limit.cpu=1",
            &["/resources", "limit", "not allowed"],
        ),
        (
            OPERATOR,
            "resources.requests.cpu=lots",
            &["/resources/requests/cpu"],
        ),
        (OPERATOR, "podLabels.a=1", &["/podLabels/a", "want string"]),
        (
            OPERATOR,
            "fullnameOverride=Upper",
            &["/fullnameOverride", "pattern"],
        ),
        (
            OPERATOR,
            "serviceAccount.create=false",
            &["serviceAccount.name"],
        ),
        (
            CLUSTER,
            "spec.replicas=2",
            &["/spec/replicas", "1, 3, 5, 7, 9"],
        ),
        (CLUSTER, "spec.replicas=11", &["/spec/replicas"]),
        (
            CLUSTER,
            "spec.replica=3",
            &["/spec", "replica", "not allowed"],
        ),
        (CLUSTER, "replicas=3", &["replicas", "not allowed"]),
        (
            CLUSTER,
            "spec.storage.size=big",
            &["/spec/storage/size", "pattern"],
        ),
        (
            CLUSTER,
            "spec.storage.retain.onDelete=Keep",
            &["/onDelete", "Retain"],
        ),
        (
            CLUSTER,
            "spec.etcd.logLevel=loud",
            &["/spec/etcd/logLevel", "debug"],
        ),
        (
            CLUSTER,
            "spec.etcd.snapshotCounts=1",
            &["snapshotCounts", "not allowed"],
        ),
        (
            CLUSTER,
            "spec.etcd.heartbeatInterval=1",
            &["/heartbeatInterval", "minimum"],
        ),
        (
            CLUSTER,
            "spec.pod.resources.limit.cpu=1",
            &["/spec/pod/resources", "limit"],
        ),
        (
            CLUSTER,
            "spec.pod.antiAffinity=Sometimes",
            &["/antiAffinity", "Preferred"],
        ),
        (
            CLUSTER,
            "spec.pod.terminationGracePeriodSeconds=1",
            &["minimum"],
        ),
        (
            CLUSTER,
            "spec.image.digest=latest",
            &["/spec/image/digest", "pattern"],
        ),
        (
            CLUSTER,
            "spec.version=latest",
            &["/spec/version", "pattern"],
        ),
        (
            CLUSTER,
            "spec.paused=maybe",
            &["/spec/paused", "want boolean"],
        ),
        (CLUSTER, "name=-x", &["/name", "pattern"]),
        (
            CLUSTER,
            "test.timeoutSeconds=1",
            &["/test/timeoutSeconds", "minimum"],
        ),
    ];
    for (chart, values, words) in cases {
        let error = try_render(chart, &["--set", values])
            .err()
            .unwrap_or_else(|| panic!("{values} is taken"));
        for word in *words {
            assert!(error.contains(word), "{values}: no {word:?} in: {error}");
        }
    }
}

#[test]
fn a_release_whose_name_cannot_be_a_cluster_is_refused() {
    let helm = Helm::new();
    let long = "a".repeat(43);
    for (release, word) in [
        (long.as_str(), "at most 42"),
        ("1st", "starts with a letter"),
    ] {
        let said = helm.run(["template", release, CLUSTER]);
        assert!(!said.success && said.err.contains(word), "{}", said.err);
        let said = helm.run(["template", release, CLUSTER, "--set", "name=fine"]);
        assert!(said.success, "{}", said.err);
    }
}

/// Names that Kubernetes takes, also for the longest release.
#[test]
fn names_stay_short_enough() {
    let release = format!("r{}", "x".repeat(52));
    for name in ["", "--set=fullnameOverride=o"] {
        let mut arguments = vec!["template", &release, OPERATOR, "--set", "replicas=2"];
        arguments.extend(Some(name).filter(|name| !name.is_empty()));
        let said = Helm::new().run(&arguments);
        assert!(said.success, "{}", said.err);
        for object in documents(&said.out) {
            let (kind, name) = (text(&object, "/kind"), text(&object, "/metadata/name"));
            let longest = match kind {
                "CustomResourceDefinition" | "ClusterRole" | "ClusterRoleBinding" => 253,
                "EtcdCluster" => 42,
                _ => 63,
            };
            assert!(name.len() <= longest, "{kind} {name}");
            for (label, value) in object["metadata"]["labels"].as_object().unwrap() {
                assert!(
                    value.as_str().unwrap().len() <= 63,
                    "{kind} {label} {value}"
                );
            }
        }
    }
}

/// One right: group, resource, verb; a resource with a name behind `/=` is limited to it.
type Right = (String, String, String);

/// What the rules of a role grant.
fn granted(role: &Value) -> BTreeSet<Right> {
    let list = |rule: &Value, what: &str| -> Vec<String> {
        let list = rule[what].as_array().into_iter().flatten();
        list.map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    let mut rights = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        assert!(rule.get("nonResourceURLs").is_none(), "{rule}");
        let names = list(rule, "resourceNames");
        for group in list(rule, "apiGroups") {
            for resource in list(rule, "resources") {
                for verb in list(rule, "verbs") {
                    let mut resource = resource.clone();
                    if !names.is_empty() {
                        resource = format!("{resource}/={}", names.join(","));
                    }
                    rights.insert((group.clone(), resource, verb));
                }
            }
        }
    }
    rights
}

/// What the operator does, and so what it may do: no more, since it holds these rights in every
/// namespace, and no less.
const OPERATOR_MAY: &[(&str, &str, &[&str])] = &[
    ("cairn.dev", "etcdclusters", &["get", "list", "watch"]),
    (
        "cairn.dev",
        "etcdclusters/status",
        &["get", "update", "patch"],
    ),
    ("cairn.dev", "etcdclusters/finalizers", &["update"]),
    (
        "apps",
        "statefulsets",
        &["get", "list", "watch", "create", "patch"],
    ),
    ("", "pods", &["get", "list", "watch", "patch"]),
    (
        "",
        "persistentvolumeclaims",
        &["get", "list", "watch", "create", "patch"],
    ),
    (
        "",
        "configmaps",
        &["get", "list", "watch", "create", "update", "patch"],
    ),
    ("", "services", &["get", "list", "watch", "create", "patch"]),
    (
        "policy",
        "poddisruptionbudgets",
        &["get", "list", "watch", "create", "patch", "delete"],
    ),
    ("storage.k8s.io", "storageclasses", &["get"]),
    ("events.k8s.io", "events", &["create", "patch"]),
    (
        "apiextensions.k8s.io",
        "customresourcedefinitions/=etcdclusters.cairn.dev",
        &["get"],
    ),
];
/// The same in its own namespace.
const LEASE: &[(&str, &str, &[&str])] = &[
    ("coordination.k8s.io", "leases", &["create"]),
    ("coordination.k8s.io", "leases/=LEASE", &["get", "update"]),
];

fn rights(table: &[(&str, &str, &[&str])]) -> BTreeSet<Right> {
    let rows = table.iter().flat_map(|(group, resource, verbs)| {
        let verbs = verbs.iter();
        verbs.map(|verb| (group.to_string(), resource.to_string(), verb.to_string()))
    });
    rows.collect()
}

#[test]
fn the_operator_may_do_what_it_does_and_no_more() {
    for values in [
        "crds.enabled=true",
        "fullnameOverride=other,nameOverride=name",
    ] {
        let objects = render(OPERATOR, &["--set", values]);
        let account = only(&objects, "ServiceAccount");
        let deployment = only(&objects, "Deployment");
        let name = text(account, "/metadata/name");
        assert_eq!(text(pod(deployment).unwrap(), "/serviceAccountName"), name);
        let subject = json!([{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}]);

        for (binding, kind) in [
            ("ClusterRoleBinding", "ClusterRole"),
            ("RoleBinding", "Role"),
        ] {
            let binding = only(&objects, binding);
            assert_eq!(binding["subjects"], subject);
            assert_eq!(text(binding, "/roleRef/kind"), kind);
            let roles = of_kind(&objects, kind);
            let role = roles
                .iter()
                .find(|role| text(role, "/metadata/name") == text(binding, "/roleRef/name"));
            let expected = match kind {
                "ClusterRole" => rights(OPERATOR_MAY),
                _ => {
                    let lease = &environment(&objects)["CAIRN_LEASE_NAME"];
                    let lease = lease.as_str().unwrap();
                    let named = rights(LEASE).into_iter();
                    let named = named.map(|(group, resource, verb)| {
                        (group, resource.replace("LEASE", lease), verb)
                    });
                    named.collect()
                }
            };
            assert_eq!(granted(role.unwrap()), expected);
        }
    }
}

#[test]
fn who_may_edit_a_namespace_may_edit_its_clusters() {
    let label = |role: &str| format!("rbac.authorization.k8s.io/aggregate-to-{role}");
    let objects = render(OPERATOR, &[]);
    let mut found = BTreeMap::new();
    for role in of_kind(&objects, "ClusterRole") {
        for user in ["view", "edit", "admin"] {
            if role["metadata"]["labels"][label(user)] == "true" {
                let rights: &mut BTreeSet<Right> = found.entry(user).or_default();
                rights.extend(granted(role));
            }
        }
    }
    let right =
        |resource: &str, verb: &str| ("cairn.dev".to_owned(), resource.to_owned(), verb.to_owned());
    for user in ["view", "edit", "admin"] {
        for verb in ["get", "list", "watch"] {
            assert!(
                found[user].contains(&right("etcdclusters", verb)),
                "{user} {verb}"
            );
        }
        for verb in ["create", "update", "patch", "delete"] {
            let may = found[user].contains(&right("etcdclusters", verb));
            assert_eq!(may, user != "view", "{user} {verb}");
        }
        let scales = found[user].contains(&right("etcdclusters/scale", "update"));
        assert_eq!(scales, user != "view", "{user}");
        // What the operator says of a cluster only the operator may say.
        assert!(!found[user].contains(&right("etcdclusters/status", "update")));
    }
    let objects = render(OPERATOR, &["--set", "rbac.aggregate=false"]);
    assert_eq!(of_kind(&objects, "ClusterRole").len(), 1);
}

/// All paths of fields that a schema has, with `*` for what lists and maps hold.
fn fields(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    let properties = schema["properties"].as_object().into_iter().flatten();
    for (name, schema) in properties {
        let path = format!("{path}/{name}");
        fields(schema, &path, found);
        found.insert(path);
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            fields(&schema[inner], &format!("{path}/*"), found);
        }
    }
}

/// The paths among them that a value has.
fn used(schema: &Value, value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(entries) => {
            for (name, value) in entries {
                let (path, schema) = match schema["properties"].get(name) {
                    Some(schema) => (format!("{path}/{name}"), schema),
                    None => (format!("{path}/*"), &schema["additionalProperties"]),
                };
                used(schema, value, &path, found);
                found.insert(path);
            }
        }
        Value::Array(items) => {
            for item in items {
                used(&schema["items"], item, &format!("{path}/*"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn every_field_of_the_spec_passes_through_the_cluster_chart() {
    let crd = file("crds/yaml/etcdclusters.yaml");
    let schema = crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec");
    let (schema, mut known) = (schema.unwrap(), BTreeSet::new());
    fields(schema, "", &mut known);

    let values = format!("{CLUSTER}/ci/full-values.yaml");
    let given = file(&values);
    let objects = render(CLUSTER, &["--values", &values]);
    let cluster = only(&objects, "EtcdCluster");
    assert_eq!(cluster["spec"], given["spec"]);
    assert_eq!(text(cluster, "/metadata/name"), "orders");
    assert_eq!(cluster["metadata"]["annotations"], given["annotations"]);
    let labels = &cluster["metadata"]["labels"];
    assert_eq!(labels["team"], "shop");
    assert_eq!(labels["app.kubernetes.io/name"], "cairn-cluster");

    let mut given_fields = BTreeSet::new();
    used(schema, &given["spec"], "", &mut given_fields);
    let forgotten: Vec<_> = known.difference(&given_fields).collect();
    assert!(forgotten.is_empty(), "{values} lacks {forgotten:?}");
}

#[test]
fn the_tests_of_the_charts_probe_the_service_of_their_cluster() {
    let given = format!("{CLUSTER}/ci/full-values.yaml");
    for (chart, more, image) in [
        (OPERATOR, vec!["--set", "replicas=1"], "cairn-operator:"),
        (CLUSTER, vec!["--set", "name=x"], "cairn-operator:"),
        (
            CLUSTER,
            vec!["--values", &given],
            "registry.example:5000/cairn-operator@sha256:",
        ),
    ] {
        let objects = render(chart, &more);
        let cluster = text(only(&objects, "EtcdCluster"), "/metadata/name");
        let probe = only(&objects, "Pod");
        assert_eq!(probe["metadata"]["annotations"]["helm.sh/hook"], "test");
        let container = &probe["spec"]["containers"][0];
        let endpoint = format!("--endpoint=http://{cluster}-client.{NAMESPACE}.svc:2379");
        assert_eq!(container["args"][0], "probe");
        assert_eq!(container["args"][1], endpoint);
        assert!(text(container, "/image").starts_with(image));
        let none = render(
            chart,
            &[&more[..], &["--set", "test.enabled=false"]].concat(),
        );
        assert!(of_kind(&none, "Pod").is_empty());
    }
    // The operator's test takes its cluster's disk along.
    let objects = render(OPERATOR, &[]);
    let cluster = only(&objects, "EtcdCluster");
    assert_eq!(cluster["metadata"]["annotations"]["helm.sh/hook"], "test");
    assert_eq!(cluster["spec"]["storage"]["retain"]["onDelete"], "Delete");
}

fn notes(chart: &str, more: &[&str]) -> String {
    let mut arguments = vec!["install", "test", chart, "--namespace", NAMESPACE];
    arguments.extend(["--dry-run=client"]);
    arguments.extend(more);
    let said = Helm::new().run(&arguments);
    assert!(said.success, "{}", said.err);
    let (_, notes) = said.out.split_once("\nNOTES:\n").unwrap();
    notes.to_owned()
}

#[test]
fn the_operator_s_notes_hold_a_cluster_to_paste() {
    let notes = notes(OPERATOR, &[]);
    let (_, pasted) = notes.split_once("<<'EOF'\n").unwrap();
    let (pasted, _) = pasted.split_once("\nEOF\n").unwrap();
    let cluster = documents(pasted).remove(0);
    assert_eq!(text(&cluster, "/apiVersion"), "cairn.dev/v1alpha1");
    assert_eq!(text(&cluster, "/kind"), "EtcdCluster");
    // It is one that the other chart's schema takes too: the same fields, the same types.
    let folder = tempfile::tempdir().unwrap();
    let values = folder.path().join("values.yaml");
    fs::write(&values, json!({"spec": cluster["spec"]}).to_string()).unwrap();
    let objects = render(CLUSTER, &["--values", values.to_str().unwrap()]);
    assert_eq!(only(&objects, "EtcdCluster")["spec"], cluster["spec"]);

    let name = text(&cluster, "/metadata/name");
    for command in [
        format!("get etcd {name}"),
        format!("service/{name}-client 2379"),
        format!("helm -n {NAMESPACE} test test"),
        "put greeting hello".to_owned(),
    ] {
        assert!(notes.contains(&command), "no {command:?} in: {notes}");
    }
}

#[test]
fn the_cluster_s_notes_say_how_to_put_and_what_stays() {
    let kept = notes(CLUSTER, &[]);
    for word in [
        "kubectl -n etcd-system wait etcd/test --for=condition=Ready",
        "service/test-client 2379",
        "put greeting hello",
        "http://test-client.etcd-system.svc:2379",
        concat!("with the image cairn-operator:", env!("CARGO_PKG_VERSION")),
        "helm -n etcd-system test test",
        "keeps its disks",
    ] {
        assert!(kept.contains(word), "no {word:?} in: {kept}");
    }
    let gone = notes(CLUSTER, &["--set", "spec.storage.retain.onDelete=Delete"]);
    assert!(gone.contains("deletes the cluster and its data"), "{gone}");
}
