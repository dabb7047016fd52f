//! An API server in memory, as far as the operator can tell: versions, conflicts, selectors, merge
//! patches, apply with owned fields, the status subresource. Requests arrive as HTTP, so the
//! operator's own code is what is tested.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt, future::BoxFuture};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tower::{BoxError, Service};

use crate::world::{Fate, World};

/// Plural, namespace (empty when there is none), name.
pub type Key = (String, String, String);

/// The objects.
#[derive(Clone, Default)]
pub struct Store {
    pub objects: BTreeMap<Key, Value>,
    /// What each manager applied, as paths of leaves.
    applied: BTreeMap<(Key, String), BTreeSet<String>>,
    version: u64,
    uids: u64,
}

/// What the store answers: a status code and a body.
pub type Answer = (u16, Value);

pub fn failure(code: u16, reason: &str, message: &str) -> Answer {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "message": message, "code": code,
    });
    (code, body)
}

fn kind(plural: &str) -> (&'static str, &'static str) {
    match plural {
        "etcdclusters" => ("cairn.dev/v1alpha1", "EtcdCluster"),
        "statefulsets" => ("apps/v1", "StatefulSet"),
        "persistentvolumeclaims" => ("v1", "PersistentVolumeClaim"),
        "configmaps" => ("v1", "ConfigMap"),
        "services" => ("v1", "Service"),
        "pods" => ("v1", "Pod"),
        "poddisruptionbudgets" => ("policy/v1", "PodDisruptionBudget"),
        "storageclasses" => ("storage.k8s.io/v1", "StorageClass"),
        "events" => ("events.k8s.io/v1", "Event"),
        "leases" => ("coordination.k8s.io/v1", "Lease"),
        "customresourcedefinitions" => ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        other => panic!("the operator asks for {other}, which it has no business with"),
    }
}

impl Store {
    fn next_version(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    pub fn next_uid(&mut self) -> String {
        self.uids += 1;
        format!("uid-{}", self.uids)
    }

    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects
            .get(&(plural.to_owned(), namespace.to_owned(), name.to_owned()))
    }

    /// All of a kind.
    pub fn all(&self, plural: &str) -> Vec<Value> {
        let all = self.objects.iter().filter(|((of, ..), _)| of == plural);
        all.map(|(_, object)| object.clone()).collect()
    }

    /// Stores a new object.
    pub fn create(&mut self, plural: &str, namespace: &str, mut object: Value) -> Answer {
        let Some(name) = object["metadata"]["name"].as_str().map(str::to_owned) else {
            return failure(422, "Invalid", "no name");
        };
        let key = (plural.to_owned(), namespace.to_owned(), name.clone());
        if self.objects.contains_key(&key) {
            return failure(
                409,
                "AlreadyExists",
                &format!("{plural} \"{name}\" already exists"),
            );
        }
        let (api, kind) = kind(plural);
        object["apiVersion"] = json!(api);
        object["kind"] = json!(kind);
        let metadata = &mut object["metadata"];
        metadata["namespace"] = json!(namespace);
        metadata["uid"] = json!(self.next_uid());
        metadata["generation"] = json!(1);
        metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        metadata["resourceVersion"] = json!(self.next_version());
        if plural == "persistentvolumeclaims" && object["spec"]["storageClassName"].is_null() {
            object["spec"]["storageClassName"] = json!("standard");
        }
        self.objects.insert(key, object.clone());
        (201, object)
    }

    /// Replaces an object, if it changed, and bumps its version.
    pub fn put(&mut self, key: &Key, mut object: Value) -> Value {
        let before = self.objects.get(key).cloned().unwrap_or_default();
        object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
        if object == before {
            return object;
        }
        if object["spec"] != before["spec"] {
            let generation = before["metadata"]["generation"]
                .as_i64()
                .unwrap_or_default();
            object["metadata"]["generation"] = json!(generation + 1);
        }
        object["metadata"]["resourceVersion"] = json!(self.next_version());
        self.objects.insert(key.clone(), object.clone());
        object
    }

    /// Changes an object from the outside: a user or a controller.
    pub fn change(
        &mut self,
        plural: &str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        if let Some(mut object) = self.objects.get(&key).cloned() {
            change(&mut object);
            self.put(&key, object);
        }
    }

    fn update(&mut self, key: &Key, body: Value, status: bool) -> Answer {
        let Some(mut object) = self.objects.get(key).cloned() else {
            return failure(404, "NotFound", "not found");
        };
        if let Some(refused) = precondition(&object, &body["metadata"]) {
            return refused;
        }
        match status {
            true => object["status"] = body["status"].clone(),
            false => {
                let kept = (object["metadata"].clone(), object["status"].clone());
                object = body;
                for field in ["uid", "generation", "creationTimestamp", "resourceVersion"] {
                    object["metadata"][field] = kept.0[field].clone();
                }
                object["metadata"]["namespace"] = json!(key.1);
                if !kept.1.is_null() {
                    object["status"] = kept.1;
                }
                let (api, kind) = kind(&key.0);
                object["apiVersion"] = json!(api);
                object["kind"] = json!(kind);
            }
        }
        (200, self.put(key, object))
    }

    fn merge(&mut self, key: &Key, mut patch: Value) -> Answer {
        let Some(mut object) = self.objects.get(key).cloned() else {
            return failure(404, "NotFound", "not found");
        };
        if let Some(refused) = precondition(&object, &patch["metadata"]) {
            return refused;
        }
        if let Some(metadata) = patch["metadata"].as_object_mut() {
            metadata.remove("uid");
            metadata.remove("resourceVersion");
        }
        merged(&mut object, &patch);
        (200, self.put(key, object))
    }

    /// Server-side apply: fields that the manager applied before and leaves out now go.
    fn apply(&mut self, key: &Key, mut wanted: Value, manager: &str, force: bool) -> Answer {
        let Some(mut object) = self.objects.get(key).cloned() else {
            return self.create(&key.0, &key.1, wanted);
        };
        if let Some(refused) = precondition(&object, &wanted["metadata"]) {
            return refused;
        }
        if let Some(metadata) = wanted["metadata"].as_object_mut() {
            metadata.remove("uid");
            metadata.remove("resourceVersion");
        }
        let mut paths = BTreeSet::new();
        leaves(&wanted, "", &mut paths);
        let others = self
            .applied
            .iter()
            .filter(|((of, who), _)| of == key && who != manager);
        let others: BTreeSet<String> = others.flat_map(|(_, paths)| paths.clone()).collect();
        if !force && paths.intersection(&others).next().is_some() {
            return failure(409, "Conflict", "another manager applied this field");
        }
        let before = self
            .applied
            .insert((key.clone(), manager.to_owned()), paths.clone());
        for gone in before.unwrap_or_default().difference(&paths) {
            if !others.contains(gone)
                && let Some((parent, field)) = gone.rsplit_once('\u{1}')
            {
                let pointer = parent.split('\u{1}').collect::<Vec<_>>().join("/");
                if let Some(parent) = object.pointer_mut(&pointer).and_then(Value::as_object_mut) {
                    parent.remove(&field.replace("~1", "/").replace("~0", "~"));
                }
            }
        }
        merged(&mut object, &wanted);
        (200, self.put(key, object))
    }

    fn delete(&mut self, key: &Key, options: &Value) -> Answer {
        let Some(object) = self.objects.get(key) else {
            return failure(404, "NotFound", "not found");
        };
        if let Some(refused) = precondition(object, &options["preconditions"]) {
            return refused;
        }
        self.objects.remove(key);
        (
            200,
            json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" }),
        )
    }

    fn list(&self, plural: &str, namespace: &str, selector: &str) -> Answer {
        let wanted: Vec<(&str, &str)> = selector
            .split(',')
            .filter_map(|term| term.split_once('='))
            .collect();
        let items = self.objects.iter().filter(|((of, within, _), object)| {
            let labels = &object["metadata"]["labels"];
            of == plural
                && within == namespace
                && wanted
                    .iter()
                    .all(|(key, value)| labels[*key].as_str() == Some(value))
        });
        let items: Vec<Value> = items.map(|(_, object)| object.clone()).collect();
        let (api, kind) = kind(plural);
        let body = json!({
            "apiVersion": api, "kind": format!("{kind}List"),
            "metadata": { "resourceVersion": self.version.to_string() }, "items": items,
        });
        (200, body)
    }
}

/// Whether a write means another object or version than there is.
fn precondition(object: &Value, meant: &Value) -> Option<Answer> {
    for field in ["uid", "resourceVersion"] {
        if meant[field].is_string() && meant[field] != object["metadata"][field] {
            return Some(failure(409, "Conflict", &format!("the {field} is another")));
        }
    }
    None
}

fn merged(to: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *to = patch.clone();
        return;
    };
    if !to.is_object() {
        *to = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => {
                to.as_object_mut().unwrap().remove(key);
            }
            value => merged(&mut to[key], value),
        }
    }
}

fn leaves(value: &Value, path: &str, to: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, field) in fields {
                let key = key.replace('~', "~0").replace('/', "~1");
                leaves(field, &format!("{path}\u{1}{key}"), to);
            }
        }
        _ => {
            to.insert(path.to_owned());
        }
    }
}

/// The API server as the operator's client sees it.
#[derive(Clone)]
pub struct Api(pub Arc<Mutex<World>>);

impl Service<Request<Body>> for Api {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let world = self.0.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let body: Value = match body.is_empty() {
                true => Value::Null,
                false => serde_json::from_slice(&body)?,
            };
            let path = head.uri.path().to_owned();
            let mutates = head.method != Method::GET;
            let what = format!("{} {path}", head.method);
            let fate = world.lock().meet(mutates, &what);
            let serve = || {
                let query = head.uri.query().unwrap_or_default();
                let media = head
                    .headers
                    .get("content-type")
                    .and_then(|media| media.to_str().ok());
                let mut world = world.lock();
                let answer = route(
                    &mut world.store,
                    &head.method,
                    &path,
                    query,
                    media.unwrap_or_default(),
                    body,
                );
                if mutates && answer.0 < 300 {
                    world.changed(&what, &answer.1);
                }
                answer
            };
            let (code, body) = match fate {
                Fate::Normal => serve(),
                Fate::Refuse(code) => {
                    let reason = match code {
                        409 => "Conflict",
                        429 => "TooManyRequests",
                        _ => "InternalError",
                    };
                    failure(code, reason, "injected")
                }
                Fate::Hang => return futures::future::pending().await,
                Fate::LoseAnswer => {
                    serve();
                    return Err("the connection broke".into());
                }
                Fate::KillBefore => {
                    world.lock().kill();
                    return futures::future::pending().await;
                }
                Fate::KillAfter => {
                    serve();
                    world.lock().kill();
                    return futures::future::pending().await;
                }
            };
            let response = Response::builder()
                .status(code)
                .header("content-type", "application/json");
            Ok(response.body(Body::from(serde_json::to_vec(&body)?))?)
        }
        .boxed()
    }
}

fn route(
    store: &mut Store,
    method: &Method,
    path: &str,
    query: &str,
    media: &str,
    body: Value,
) -> Answer {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let rest = match parts.first() {
        Some(&"api") => &parts[2..],
        _ => &parts[3..],
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] => (*namespace, rest),
        rest => ("", rest),
    };
    let query: BTreeMap<String, String> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| {
            (
                key.to_owned(),
                value
                    .replace("%3D", "=")
                    .replace("%2F", "/")
                    .replace("%2C", ","),
            )
        })
        .collect();
    let given = |key: &str| query.get(key).cloned().unwrap_or_default();
    let key = |name: &str| (rest[0].to_owned(), namespace.to_owned(), name.to_owned());
    match (method, rest) {
        (&Method::GET, [plural]) => store.list(plural, namespace, &given("labelSelector")),
        (&Method::GET, [plural, name]) => match store.get(plural, namespace, name) {
            Some(object) => (200, object.clone()),
            None => failure(404, "NotFound", "not found"),
        },
        (&Method::POST, [plural]) => store.create(plural, namespace, body),
        (&Method::PUT, [_, name]) => store.update(&key(name), body, false),
        (&Method::PUT, [_, name, "status"]) => store.update(&key(name), body, true),
        (&Method::PATCH, [_, name]) if media.contains("apply-patch") => store.apply(
            &key(name),
            body,
            &given("fieldManager"),
            given("force") == "true",
        ),
        (&Method::PATCH, [_, name]) if media.contains("merge-patch") => {
            store.merge(&key(name), body)
        }
        (&Method::DELETE, [_, name]) => store.delete(&key(name), &body),
        _ => panic!("the operator does {method} {path} ({media}), which nobody expected"),
    }
}
