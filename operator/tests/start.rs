//! The process at an API server that has another CRD than it needs: it says so, ends, and asks for
//! nothing else.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use crds::manifests::{SCHEMA, SCHEMA_ANNOTATION};
use operator::kind::CRD;
use serde_json::{Value, json};

/// How long the process may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases";

/// An API server that has a CRD and a lease.
struct Server {
    crd: Value,
    /// The CRD that takes its place when the lease is taken.
    later: Option<Value>,
    lease: Option<Value>,
    asked: Vec<String>,
}

type Shared = Arc<Mutex<Server>>;

fn crd(schema: Option<&str>) -> Value {
    let mut annotations = json!({});
    if let Some(schema) = schema {
        annotations[SCHEMA_ANNOTATION] = json!(schema);
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": CRD, "annotations": annotations },
        "spec": {
            "group": "cairn.dev", "scope": "Namespaced", "versions": [],
            "names": { "plural": "etcdclusters", "kind": "EtcdCluster" },
        },
        "status": { "conditions": [{ "type": "Established", "status": "True" }] },
    })
}

async fn answer(State(shared): State<Shared>, method: Method, uri: Uri, body: Bytes) -> Response {
    let mut server = shared.lock().unwrap();
    let path = uri.path();
    server.asked.push(format!("{method} {path}"));
    let missing = || {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "reason": "NotFound", "message": "not found", "code": 404,
        });
        (StatusCode::NOT_FOUND, status.to_string()).into_response()
    };
    let found = match (method.as_str(), path) {
        ("GET", path) if path.ends_with(CRD) => Some(server.crd.clone()),
        ("GET", path) if path.starts_with(LEASES) => server.lease.clone(),
        ("POST" | "PUT", path) if path.starts_with(LEASES) => {
            server.lease = serde_json::from_slice(&body).ok();
            if let Some(later) = server.later.take() {
                server.crd = later;
            }
            server.lease.clone()
        }
        _ => None,
    };
    found.map_or_else(missing, |found| found.to_string().into_response())
}

/// Ends with the test, also when that fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server and the operator at it; gives what it said when it ended, or nothing when
/// `until` holds before.
fn run(server: Server, until: impl Fn(&Server) -> bool) -> (Shared, Option<(bool, String)>) {
    let shared = Arc::new(Mutex::new(server));
    let (port, ports) = mpsc::channel();
    let router = Router::new().fallback(answer).with_state(shared.clone());
    thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            port.send(listener.local_addr().unwrap()).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
    });
    let address = ports.recv().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("kubeconfig");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "c", "cluster": { "server": format!("http://{address}") } }],
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
        "users": [{ "name": "u", "user": {} }],
    });
    fs::write(&config, text.to_string()).unwrap();
    let log = folder.path().join("log");
    let child = Command::new(env!("CARGO_BIN_EXE_cairn-operator"))
        .args(["--metrics-address=127.0.0.1:0", "--identity=it"])
        .env_clear()
        .env("KUBECONFIG", &config)
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .spawn();
    let mut running = Running(child.unwrap());
    let began = Instant::now();
    loop {
        if let Some(status) = running.0.try_wait().unwrap() {
            let said = fs::read_to_string(&log).unwrap();
            return (shared, Some((status.success(), said)));
        }
        if until(&shared.lock().unwrap()) {
            return (shared, None);
        }
        let asked = shared.lock().unwrap().asked.join("\n");
        assert!(began.elapsed() < LIMIT, "still waiting:\n{asked}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn server(crd: Value) -> Server {
    Server {
        crd,
        later: None,
        lease: None,
        asked: Vec::new(),
    }
}

/// Whether it looks for clusters to work on.
fn works(server: &Server) -> bool {
    let clusters = |asked: &String| asked.ends_with("/apis/cairn.dev/v1alpha1/etcdclusters");
    server.asked.iter().any(clusters)
}

#[test]
fn under_an_older_crd_it_says_so_and_asks_for_nothing_else() {
    let older = (SCHEMA - 1).to_string();
    for schema in [None, Some("none"), Some(older.as_str())] {
        let (shared, ended) = run(server(crd(schema)), works);
        let (success, said) = ended.unwrap_or_else(|| panic!("it works under {schema:?}"));
        assert!(!success);
        for words in [
            format!("has schema 0 and this operator needs {SCHEMA}"),
            "Upgrade the CRD first".to_owned(),
        ] {
            assert!(said.contains(&words), "no {words:?} in: {said}");
        }
        let asked = shared.lock().unwrap().asked.clone();
        let only = format!("GET /apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD}");
        assert_eq!(asked, [only], "{schema:?}");
    }
}

/// The check above would also pass if the operator ended for another reason.
#[test]
fn under_its_own_crd_or_a_newer_one_it_works() {
    for schema in [SCHEMA, SCHEMA + 1] {
        let (shared, ended) = run(server(crd(Some(&schema.to_string()))), works);
        assert_eq!(ended, None, "{schema}");
        let lease = shared.lock().unwrap().lease.clone().unwrap();
        assert_eq!(lease["spec"]["holderIdentity"], "it");
    }
}

#[test]
fn a_crd_that_became_older_while_the_lease_was_waited_for_is_refused() {
    let mut changing = server(crd(Some(&SCHEMA.to_string())));
    changing.later = Some(crd(None));
    let (shared, ended) = run(changing, works);
    let (success, said) = ended.expect("it works under an older CRD");
    assert!(!success);
    assert!(said.contains("Upgrade the CRD first"), "{said}");
    // Given back: another operator need not wait for it to run out.
    let lease = shared.lock().unwrap().lease.clone().unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "", "{lease}");
    assert!(!works(&shared.lock().unwrap()));
}
